//! Checkpoints for MLX, as mlx-vlm converts them, exported end to end: the bundle is, byte for byte, that of the
//! same weights in the other layouts, in bf16 and in groups of 4 and 8 bits.

#![expect(clippy::unwrap_used, reason = "a failure here is a failed test")]

#[path = "../../models/src/checkpoint/tests/mlx_write.rs"]
mod mlx_write;
#[path = "support/ran.rs"]
mod ran;
#[path = "support/tensors.rs"]
mod tensors;
#[path = "support/world.rs"]
mod world;
#[path = "../../models/src/checkpoint/tests/write.rs"]
mod write;

use mlx_write::{channels_last, grouped};
use models::checkpoint::TEXT_TEMPLATE;
use ran::tree;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use tensors::read;
use world::World;

type Stored = BTreeMap<String, (Vec<u64>, Vec<f32>)>;

/// Where Apple's `network` list has each stage's blocks, the downsampling into it, its positional encoding.
const NETWORK: [(&str, u8); 11] = [
    ("stages.0.blocks.", 0),
    ("stages.1.downsample.", 1),
    ("stages.1.blocks.", 2),
    ("stages.2.downsample.", 3),
    ("stages.2.blocks.", 4),
    ("stages.3.downsample.", 5),
    ("stages.3.pos_emb.", 6),
    ("stages.3.blocks.", 7),
    ("stages.4.downsample.", 8),
    ("stages.4.pos_emb.", 9),
    ("stages.4.blocks.", 10),
];

/// Parts of names: timm's and Apple's.
const PARTS: [(&str, &str); 9] = [
    (".conv_kxk.", ".rbr_conv."),
    (".conv_scale.", ".rbr_scale."),
    (".identity.", ".rbr_skip."),
    (".large_conv.", ".lkb_origin."),
    (".pos_enc.", ".pe."),
    (".se.fc1.", ".se.reduce."),
    (".se.fc2.", ".se.expand."),
    (".mlp.", ".convffn."),
    (".gamma", ""),
];

/// How a layout begins names: of the tower, its stem, the projector and the decoder.
struct Prefixes {
    tower: &'static str,
    stem: &'static str,
    projector: &'static str,
    decoder: &'static str,
}

const LLAVA: Prefixes = Prefixes {
    tower: "model.vision_tower.vision_tower.model.",
    stem: "patch_embed.",
    projector: "model.mm_projector.",
    decoder: "model.",
};

const MLX: Prefixes = Prefixes {
    tower: "vision_tower.vision_model.",
    stem: "patch_embed.blocks.",
    projector: "mm_projector.",
    decoder: "language_model.model.",
};

/// Another layout's name of one of the demo model's tensors.
fn renamed(name: &str, to: &Prefixes) -> String {
    if let Some(rest) = name.strip_prefix("model.language_model.") {
        return format!("{}{rest}", to.decoder);
    }
    if let Some(rest) = name.strip_prefix("model.multi_modal_projector.linear_") {
        let (layer, rest) = rest.split_once('.').unwrap();
        let layer = if layer == "1" { "0" } else { "2" };
        return format!("{}{layer}.{rest}", to.projector);
    }
    let rest = name.strip_prefix("model.vision_tower.timm_model.").unwrap();
    let rest = PARTS.iter().fold(format!(".{rest}"), |rest, (timm, apple)| {
        rest.replace(timm, apple)
    });
    let rest = &rest[1..];
    if let Some(rest) = rest.strip_prefix("stem.") {
        return format!("{}{}{rest}", to.tower, to.stem);
    }
    if let Some(rest) = rest.strip_prefix("final_conv.") {
        return format!("{}conv_exp.{rest}", to.tower);
    }
    let found = NETWORK
        .iter()
        .find_map(|(stage, at)| Some((at, rest.strip_prefix(stage)?)));
    let (at, rest) = found.unwrap();
    format!("{}network.{at}.{rest}", to.tower)
}

fn with_names(stored: &Stored, to: &Prefixes) -> Stored {
    let tensors = stored.iter();
    tensors
        .map(|(name, tensor)| (renamed(name, to), tensor.clone()))
        .collect()
}

/// The demo model's config in Apple's dialect.
fn apples(config: &Value) -> Value {
    let mut apples = config["text_config"].clone();
    for (name, value) in [
        ("model_type", json!("llava_qwen2")),
        ("architectures", json!(["LlavaQwen2ForCausalLM"])),
        ("mm_hidden_size", config["vision_config"]["hidden_size"].clone()),
        ("mm_projector_type", json!("mlp2x_gelu")),
        ("mm_vision_tower", json!("mobileclip_l_256")),
        ("tie_word_embeddings", config["tie_word_embeddings"].clone()),
        ("vision_config", config["vision_config"]["model_args"].clone()),
    ] {
        apples[name] = value;
    }
    apples
}

impl World {
    /// The demo model's tensors.
    fn demo(&self) -> Stored {
        read(&self.path("model/model.safetensors"))
    }

    /// The demo model's files but weights and config, in a new directory.
    fn beside(&self, name: &str, config: &Value) -> PathBuf {
        let directory = self.path(name);
        fs::create_dir(&directory).unwrap();
        for entry in fs::read_dir(self.path("model")).unwrap() {
            let entry = entry.unwrap();
            if entry.file_name() != "model.safetensors" {
                fs::copy(entry.path(), directory.join(entry.file_name())).unwrap();
            }
        }
        fs::write(directory.join("config.json"), config.to_string()).unwrap();
        directory.join("model.safetensors")
    }

    /// Exports a checkpoint: the files of its bundle, and its contract without the source and the name.
    fn bundle(&self, model: &str) -> (BTreeMap<PathBuf, Vec<u8>>, Value) {
        let output = format!("{model}-bundle");
        let ran = self.exported(&[
            "--model",
            model,
            "--precision",
            "fp32",
            "--precision",
            "q4",
            "-o",
            &output,
        ]);
        assert_eq!(ran.stdout, "");
        let root = self.path(&output);
        let files = tree(&root).into_iter();
        let files = files.filter(|(path, _)| path.is_file() && !path.ends_with("bundle.json"));
        let files = files.map(|(path, contents)| (path.strip_prefix(&root).unwrap().to_owned(), contents));
        let mut contract = self.json(&format!("{output}/bundle.json"));
        contract.as_object_mut().unwrap().remove("source").unwrap();
        contract["model"].as_object_mut().unwrap().remove("name").unwrap();
        (files.collect(), contract)
    }
}

/// Requires that two bundles are the same but for these fields of the contract, which differ, and but for the config
/// that other programs read where their checkpoints' are of two dialects.
fn same(
    (files, contract): &(BTreeMap<PathBuf, Vec<u8>>, Value),
    (expected, of): &(BTreeMap<PathBuf, Vec<u8>>, Value),
    but: &[(&str, [Value; 2])],
    dialects: usize,
) {
    assert!(files.len() > 10);
    assert_eq!(
        files.keys().collect::<Vec<_>>(),
        expected.keys().collect::<Vec<_>>()
    );
    let others = files
        .iter()
        .filter(|(path, contents)| **contents != expected[*path]);
    let others: Vec<&PathBuf> = others.map(|(path, _)| path).collect();
    let config = [&PathBuf::from("config.json")];
    assert_eq!(others, config[..dialects - 1]);
    let (mut contract, mut of) = (contract.clone(), of.clone());
    for (field, values) in but {
        let [found, expected] = [&mut contract, &mut of].map(|json| json.pointer_mut(field).unwrap().take());
        assert_eq!([found, expected], *values, "{field}");
    }
    for contract in [&mut contract, &mut of] {
        let listed = contract["files"].as_array_mut().unwrap();
        listed.retain(|file| dialects == 1 || file["path"] != "config.json");
    }
    assert_eq!(contract, of);
}

#[test]
fn a_bundle_of_bf16_is_that_of_the_other_layouts() {
    let world = World::new();
    let mut plain = world.demo();
    let config = world.json("model/config.json");
    let none = |_: &str| None;
    // In transformers' names, rounded to bf16.
    let typed = grouped(&mut plain, none);
    write::typed(&world.beside("plain", &config), &typed);
    let apples = apples(&config);
    let mut llava = with_names(&plain, &LLAVA);
    write::typed(&world.beside("llava", &apples), &grouped(&mut llava, none));
    let mut mlx = channels_last(with_names(&plain, &MLX));
    assert!(mlx.values().any(|(shape, _)| shape[..] == [16, 3, 3, 3]));
    write::typed(&world.beside("mlx", &apples), &grouped(&mut mlx, none));

    let [mut plain, llava, mlx] = ["plain", "llava", "mlx"].map(|model| world.bundle(model));
    // Only transformers puts images on white.
    let alpha = plain.1["image"].as_object_mut().unwrap().remove("alpha");
    assert_eq!(alpha, Some(json!("white")));
    let layouts = |found: &str, expected: &str| ("/model/layout", [json!(found), json!(expected)]);
    same(&mlx, &llava, &[layouts("mlx", "llava")], 1);
    let contents = ("/prompt/content", [json!("text"), json!("parts")]);
    same(&mlx, &plain, &[layouts("mlx", "transformers"), contents], 2);
}

/// Apple's code takes its own conversation, whatever template the files have.
#[test]
fn a_template_that_apples_code_would_not_take_is_a_warning() {
    let world = World::new();
    let apples = apples(&world.json("model/config.json"));
    let stored = with_names(&world.demo(), &LLAVA);
    write::float32(&world.beside("llava", &apples), &stored);
    let other = TEXT_TEMPLATE.replace("helpful", "terse");
    for (template, warned) in [(TEXT_TEMPLATE, false), (other.as_str(), true)] {
        fs::write(world.path("llava/chat_template.jinja"), template).unwrap();
        let ran = world.exported(&["--model", "llava", "--dry-run"]);
        let said = ran.stdout + &ran.stderr;
        assert_eq!(said.contains("makes other prompts"), warned, "{said}");
    }
}

#[test]
fn a_bundle_of_groups_is_that_of_the_values_that_they_stand_for() {
    let world = World::new();
    let mut apples = apples(&world.json("model/config.json"));
    let mut others = Vec::new();
    for (bits, size) in [(4, 64), (8, 32)] {
        let name = |kind: &str| format!("{kind}-{bits}");
        let mut stored = channels_last(with_names(&world.demo(), &MLX));
        // Towers stay as they are, as mlx-vlm leaves them.
        let typed = grouped(&mut stored, |module| {
            (!module.starts_with("vision_tower.")).then_some((bits, size))
        });
        assert!(typed.contains_key("language_model.model.embed_tokens.scales"));
        assert!(typed.contains_key("mm_projector.0.biases"));
        apples.as_object_mut().unwrap().remove("quantization");
        write::float32(&world.beside(&name("plain"), &apples), &stored);
        apples["quantization"] = json!({"bits": bits, "group_size": size, "mode": "affine"});
        write::typed(&world.beside(&name("mlx"), &apples), &typed);
        let [mlx, plain] = ["mlx", "plain"].map(|kind| world.bundle(&name(kind)));
        let types = ("/model/stored", [json!("bfloat16"), json!("float32")]);
        same(&mlx, &plain, &[types], 1);
        others.push(mlx.0);
    }
    assert!(others[0] != others[1]);
}

#[test]
fn kernels_in_torchs_order_are_refused() {
    let world = World::new();
    let apples = apples(&world.json("model/config.json"));
    let mut stored = with_names(&world.demo(), &MLX);
    write::typed(&world.beside("mlx", &apples), &grouped(&mut stored, |_| None));
    world.refused(
        &["--model", "mlx", "-o", "bundle"],
        &["(mlx layout)", "has shape [16, 1, 3, 3], expected [16, 3, 3, 1]"],
    );
}
