//! The real `fvlm-export --adapter`: what it writes in every form, what it says, what it refuses.

#![expect(clippy::unwrap_used, reason = "a failure here is a failed test")]

#[path = "support/ran.rs"]
mod ran;
#[path = "support/tensors.rs"]
mod tensors;
#[path = "support/world.rs"]
mod world;
#[path = "../../models/src/checkpoint/tests/write.rs"]
mod write;

use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use tensors::read;
use world::World;

/// Shape and values by name.
type Tensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

impl World {
    /// An adapter whose sums are exact in float32: whoever computes them finds the same bits.
    fn adapter(&self, name: &str, changes: Value) -> PathBuf {
        let directory = self.path(name);
        fs::create_dir(&directory).unwrap();
        let mut config =
            json!({"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "linear_2"]});
        for (name, value) in changes.as_object().unwrap() {
            config[name] = value.clone();
        }
        fs::write(directory.join("adapter_config.json"), config.to_string()).unwrap();
        let mut tensors = Tensors::new();
        for (module, [outputs, inputs]) in self.targets() {
            let halves = |count: usize, step: usize| -> Vec<f32> {
                let values = (0..count).map(|at| u8::try_from(at * step % 5).unwrap());
                values.map(|value| (f32::from(value) - 2.0) / 64.0).collect()
            };
            let name = |half: &str| format!("base_model.model.{module}.lora_{half}.weight");
            tensors.insert(name("A"), (vec![2, inputs], halves(2 * inputs, 3)));
            tensors.insert(name("B"), (vec![outputs, 2], halves(2 * outputs, 2)));
        }
        write::float32(&directory.join("adapter_model.safetensors"), &tensors);
        directory
    }

    /// The layers that adapters here change.
    fn targets(&self) -> Vec<(String, [usize; 2])> {
        let stored: Tensors = read(&self.path("model/model.safetensors"));
        let weights = stored.into_iter().filter_map(|(name, (shape, _))| {
            let module = name.strip_suffix(".weight")?;
            let wanted =
                module.ends_with("layers.0.self_attn.q_proj") || module.ends_with("projector.linear_2");
            wanted.then(|| (module.to_owned(), [shape[0], shape[1]]))
        });
        weights.collect()
    }

    /// A checkpoint with an adapter in its weights, times `weight`.
    fn merged(&self, name: &str, adapter: &Path, weight: f64) {
        let directory = self.path(name);
        fs::create_dir(&directory).unwrap();
        for entry in fs::read_dir(self.path("model")).unwrap() {
            let entry = entry.unwrap();
            fs::copy(entry.path(), directory.join(entry.file_name())).unwrap();
        }
        let path = directory.join("model.safetensors");
        let mut stored: Tensors = read(&path);
        let parts: Tensors = read(&adapter.join("adapter_model.safetensors"));
        for (module, [outputs, inputs]) in self.targets() {
            let part = |half: &str| &parts[&format!("base_model.model.{module}.lora_{half}.weight")].1;
            let (a, b) = (part("A"), part("B"));
            let own = &mut stored.get_mut(&format!("{module}.weight")).unwrap().1;
            for (row, column) in (0..outputs).flat_map(|row| (0..inputs).map(move |column| (row, column))) {
                let product: f64 = (0..2)
                    .map(|k| f64::from(b[row * 2 + k]) * f64::from(a[k * inputs + column]))
                    .sum();
                let value = &mut own[row * inputs + column];
                #[expect(clippy::cast_possible_truncation, reason = "rounded once, as the export does")]
                let sum = (f64::from(*value) + weight * 2.0 * product) as f32;
                *value = sum;
            }
        }
        write::float32(&path, &stored);
    }
}

/// Hashes of the files that weights are in, by path.
fn weights(bundle: &Value) -> BTreeMap<String, String> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let files = bundle["files"].as_array().unwrap().iter();
    files
        .map(|file| (text(&file["path"]), text(&file["sha256"])))
        .filter(|(path, _)| path.starts_with("onnx/") || path.starts_with("coreml/"))
        .collect()
}

#[test]
fn every_form_is_that_of_a_merged_checkpoint() {
    let world = World::new();
    let adapter = world.adapter("mine", json!({}));
    // Of the same name, which stands in packages.
    world.merged("model+mine", &adapter, 0.5);
    const FORMS: [&str; 12] = [
        "--to",
        "onnx",
        "--to",
        "coreml",
        "--precision",
        "fp32",
        "--precision",
        "fp16",
        "--precision",
        "int8",
        "--precision",
        "q4",
    ];
    let run = |arguments: &[&str]| world.exported(&[arguments, &FORMS].concat());
    run(&["--model", "model", "--adapter", "mine=0.5", "-o", "a"]);
    run(&["--model", "model+mine", "-o", "b"]);
    run(&["--model", "model", "-o", "plain"]);
    let [a, b, plain] = ["a", "b", "plain"].map(|name| weights(&world.json(&format!("{name}/bundle.json"))));
    assert!(a.len() > 20);
    for (path, hash) in &a {
        assert_eq!(Some(hash), b.get(path), "{path}");
    }
    assert_eq!(a.keys().collect::<Vec<_>>(), plain.keys().collect::<Vec<_>>());
    let changed: Vec<&String> = a
        .iter()
        .filter(|(path, hash)| plain[*path] != **hash)
        .map(|(path, _)| path)
        .collect();
    for part in [
        "vision_encoder.onnx_data",
        "decoder_model_merged.onnx_data",
        "decoder_model_merged_q4.onnx_data",
    ] {
        assert!(
            changed.iter().any(|path| path.ends_with(part)),
            "{part}: {changed:?}"
        );
    }
    // Graphs hold small tensors themselves: scales of products in int8 and q4, and no others.
    let graphs = changed.iter().filter(|path| path.ends_with(".onnx"));
    for graph in graphs {
        assert!(
            graph.ends_with("_int8.onnx") || graph.ends_with("_q4.onnx"),
            "{changed:?}"
        );
    }
}

#[test]
fn a_bundle_says_what_was_merged_into_it() {
    let world = World::new();
    world.adapter("mine", json!({"base_model_name_or_path": "model"}));
    // Without --model: what the adapter was made from.
    let ran = world.exported(&["--adapter", "mine", "--card", "-o", "a"]);
    assert!(
        ran.stderr.contains("merged mine into 2 tensors"),
        "{}",
        ran.stderr
    );
    assert!(ran.stderr.contains("model+mine (fp32) is in a"), "{}", ran.stderr);
    let bundle = world.json("a/bundle.json");
    assert_eq!(bundle["model"]["name"], "model+mine");
    let [adapter] = &bundle["adapters"].as_array().unwrap()[..] else {
        panic!("{}", bundle["adapters"]);
    };
    assert_eq!(
        (&adapter["name"], &adapter["weight"]),
        (&json!("mine"), &json!(1.0))
    );
    let files: Vec<&str> = adapter["files"]
        .as_array()
        .unwrap()
        .iter()
        .map(|file| file["path"].as_str().unwrap())
        .collect();
    assert_eq!(files, ["adapter_config.json", "adapter_model.safetensors"]);
    let card = fs::read_to_string(world.path("a/README.md")).unwrap();
    let hash = adapter["files"][1]["sha256"].as_str().unwrap();
    assert!(
        card.contains("Merged into its weights, times 1: `mine`") && card.contains(hash),
        "{card}"
    );
    assert!(!card.contains("Nothing was trained"));
    let ran = world.exported(&["--verify", "a"]);
    assert!(ran.stdout.contains("is whole"), "{}", ran.stdout);

    // A bundle without adapters says nothing of them.
    world.exported(&["--model", "model", "-o", "plain"]);
    assert_eq!(world.json("plain/bundle.json").get("adapters"), None);

    let ran = world.exported(&["--adapter", "mine", "--adapter", "mine=-0.25", "--dry-run"]);
    let line = "lora_B.weight of mine -> ";
    assert_eq!(ran.stdout.matches(line).count(), 4, "{}", ran.stdout);
    assert!(
        ran.stdout.contains(": LoRA of rank 2, scale 2, weight -0.25\n"),
        "{}",
        ran.stdout
    );
    let ran = world.exported(&["--adapter", "mine", "--dry-run", "--json"]);
    let summary: Value = serde_json::from_str(&ran.stdout).unwrap();
    let merged = summary["accounting"]["merged"].as_array().unwrap();
    assert_eq!(merged.len(), 2);
    assert_eq!(merged[0]["adapter"], "mine");
    let ran = world.exported(&["--model", "model", "--dry-run", "--json"]);
    let summary: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(summary["accounting"].get("merged"), None);
}

#[test]
fn bases_and_weights_that_lead_nowhere_are_refused() {
    let world = World::new();
    world.adapter("mine", json!({}));
    world.adapter("gone", json!({"base_model_name_or_path": "/no/such/model"}));
    world.adapter("here", json!({"base_model_name_or_path": "model"}));
    world.adapter(
        "hub",
        json!({"base_model_name_or_path": "apple/FastVLM-0.5B", "revision": "v2"}),
    );
    world.refused(
        &["--adapter", "mine"],
        &[
            "`mine` does not say which model it was made from",
            "hint: --model names",
        ],
    );
    world.refused(
        &["--adapter", "gone"],
        &[
            "adapter `gone` was made from `/no/such/model`",
            "no directory here",
            "hint: --model",
        ],
    );
    world.refused(
        &["--adapter", "here", "--adapter", "hub"],
        &["adapter `here` was made from `model`, adapter `hub` from `apple/FastVLM-0.5B`"],
    );
    world.refused(
        &["--adapter", "hub"],
        &["`apple/FastVLM-0.5B` at revision `v2` is not in the local Hugging Face cache"],
    );
    world.refused(
        &["--model", "model", "--adapter", "nowhere"],
        &["nowhere", "No such file"],
    );
    world.refused(
        &["--model", "model", "--adapter", "model"],
        &["`model.safetensors` is a whole model"],
    );
    for weight in ["0", "nan", "much"] {
        let flag = format!("mine={weight}");
        world.refused(
            &["--model", "model", "--adapter", &flag],
            &[&format!("the weight is `{weight}`")],
        );
    }
    world.refused(&["--verify", "x", "--adapter", "mine"], &["cannot be used with"]);
    // A directory with an adapter is no model.
    world.refused(
        &["--model", "here"],
        &[
            "an adapter of `model`, which is not applied here",
            "hint: --adapter names",
        ],
    );

    // All that is wrong, each on a line of its own.
    let mut tensors: Tensors = read(&world.path("mine/adapter_model.safetensors"));
    let names: Vec<String> = tensors
        .keys()
        .filter(|name| name.contains("lora_A"))
        .cloned()
        .collect();
    for name in &names {
        tensors.insert(name.clone(), (vec![2, 7], vec![1.0; 14]));
    }
    write::float32(&world.path("mine/adapter_model.safetensors"), &tensors);
    let lines: Vec<String> = names
        .iter()
        .map(|name| format!("  `{name}` has shape [2, 7], expected [2, "))
        .collect();
    let says: Vec<&str> = lines.iter().map(String::as_str).collect();
    world.refused(&["--model", "model", "--adapter", "mine"], &says);
    // A half of it is as wrong in a look as in an export.
    world.refused(&["--model", "model", "--adapter", "mine", "--dry-run"], &says);
    world.refused(&["--model", "model", "--adapter", "mine", "--dump"], &says);
}
