//! `--adapter ORG/NAME`: a fine-tune comes from the hub as its model does.

#[path = "../../../models/src/checkpoint/tests/write.rs"]
mod float32;

use crate::server::{COMMIT, Kind};
use crate::write::Saved;
use crate::{World, json};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;

const CACHED: &str = "home/hub/models--org--lora";
const LORA: &str = "adapter_model.safetensors";
const Q: &str = "base_model.model.model.layers.0.self_attn.q_proj";

/// Numbers of which sums are exact.
fn numbers(count: usize) -> Vec<f32> {
    let values = (0..count).map(|at| u8::try_from(at * 3 % 7).unwrap());
    values.map(|value| (f32::from(value) - 3.0) / 64.0).collect()
}

/// LoRA of the demo model, and what else its repository has.
fn lora(config: &Value) -> BTreeMap<String, Vec<u8>> {
    let directory = tempfile::tempdir().unwrap();
    let tensors = BTreeMap::from([
        (format!("{Q}.lora_A.weight"), (vec![2, 192], numbers(2 * 192))),
        (format!("{Q}.lora_B.weight"), (vec![192, 2], numbers(2 * 192))),
    ]);
    float32::float32(&directory.path().join(LORA), &tensors);
    BTreeMap::from([
        (LORA.to_owned(), fs::read(directory.path().join(LORA)).unwrap()),
        ("adapter_config.json".to_owned(), config.to_string().into_bytes()),
        ("README.md".to_owned(), b"---\nlicense: mit\n---\n".to_vec()),
        ("optimizer.pt".to_owned(), vec![7; 1000]),
        ("checkpoint-1/adapter_model.safetensors".to_owned(), vec![7; 1000]),
    ])
}

fn config() -> Value {
    json!({
        "peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"],
        "base_model_name_or_path": "org/name",
    })
}

/// As torch saves it.
fn saved(name: &str, shape: &[u64]) -> Vec<u8> {
    let mut saved = Saved::default();
    let count = usize::try_from(shape.iter().product::<u64>()).unwrap();
    let bytes = numbers(count)
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect();
    saved.add(name, "FloatStorage", shape, bytes);
    saved.archive()
}

/// What LLaVA's training script leaves behind.
fn llava() -> BTreeMap<String, Vec<u8>> {
    let mut files = lora(&config());
    let trainables = saved("base_model.model.model.norm.weight", &[192]);
    files.insert("non_lora_trainables.bin".to_owned(), trainables);
    files.insert("tokenizer_config.json".to_owned(), b"{}".to_vec());
    files
}

impl World {
    fn with_adapter(files: BTreeMap<String, Vec<u8>>) -> World {
        let world = World::new();
        world
            .hub
            .with(|state| state.others.insert("org/lora".to_owned(), files));
        world
    }

    /// Names of the files of the adapter that came since the last call, sorted.
    fn came(&self) -> Vec<String> {
        let requests = self.hub.with(|state| std::mem::take(&mut state.requests));
        let start = format!("/org/lora/resolve/{COMMIT}/");
        let bodies = requests.iter().filter(|request| request.from.is_some());
        let names = bodies.filter_map(|request| request.path.strip_prefix(&start));
        let mut names: Vec<String> = names.map(str::to_owned).collect();
        names.sort();
        names
    }
}

#[test]
fn an_adapter_and_what_it_was_made_from_come_once() {
    let world = World::with_adapter(llava());
    let export = ["--adapter", "org/lora=0.5", "-o", "bundle", "--overwrite"];
    // What only looks downloads nothing.
    let mut look = world.command(&["--adapter", "org/lora", "--dry-run"]);
    world.refused(
        &mut look,
        &["`org/lora` is not in the local Hugging Face cache: 4 files to download"],
    );
    assert_eq!(world.came(), Vec::<String>::new());
    assert!(!world.path("home").exists());

    let ran = world.run(&mut world.command(&export));
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    assert!(
        ran.stderr.contains("merged org/lora into 2 tensors"),
        "{}",
        ran.stderr
    );
    let read = ["adapter_config.json", LORA, "non_lora_trainables.bin"];
    let came = [read[0], LORA, read[2], "tokenizer_config.json"];
    assert_eq!(world.came(), came);
    assert_eq!(
        fs::read_to_string(world.path(CACHED).join("refs/main")).unwrap(),
        COMMIT
    );
    let bundle = json(&world.path("bundle/bundle.json"));
    assert_eq!(bundle["model"]["name"], "org/name+org/lora");
    let adapter = &bundle["adapters"][0];
    assert_eq!(
        (&adapter["name"], &adapter["weight"]),
        (&json!("org/lora"), &json!(0.5))
    );
    let files = adapter["files"].as_array().unwrap().iter();
    assert_eq!(
        files
            .map(|file| file["path"].as_str().unwrap())
            .collect::<Vec<_>>(),
        read
    );

    // As from a directory.
    fs::create_dir(world.path("mine")).unwrap();
    for (name, contents) in llava().iter().filter(|(name, _)| !name.contains('/')) {
        fs::write(world.path("mine").join(name), contents).unwrap();
    }
    let mut local = world.command(&["--model", "org/name", "--adapter", "mine=0.5", "-o", "local"]);
    let ran = world.run(&mut local);
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    let local = json(&world.path("local/bundle.json"));
    assert_eq!(bundle["files"], local["files"]);
    assert_eq!(adapter["files"], local["adapters"][0]["files"]);
    world.came();

    // Once is enough, without a network too, at a revision too.
    for adapter in ["org/lora=0.5", "org/lora@v1=0.5", "org/lora@refs/pr/1"] {
        let ran = world.run(&mut world.command(&["--adapter", adapter, "-o", "bundle", "--overwrite"]));
        assert_eq!(ran.code, Some(0), "{}", ran.stderr);
        assert_eq!(world.came(), Vec::<String>::new());
    }
    let ran = world.run(world.command(&export).env("HF_HUB_OFFLINE", "1"));
    assert_eq!(
        (ran.code, ran.stderr.contains("was not asked")),
        (Some(0), false),
        "{}",
        ran.stderr
    );
}

#[test]
fn an_adapter_alone_in_the_cache_may_not_be_all() {
    let world = World::with_adapter(lora(&config()));
    let export = ["--adapter", "org/lora", "-o", "bundle", "--overwrite"];
    let ran = world.run(&mut world.command(&export));
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    assert_eq!(world.came(), ["adapter_config.json", LORA]);
    assert!(!ran.stderr.contains("warning"), "{}", ran.stderr);
    let ran = world.run(world.command(&export).env("HF_HUB_OFFLINE", "1"));
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    let says = "warning: of the adapter `org/lora` the cache has `adapter_model.safetensors`; whether";
    assert!(ran.stderr.contains(says), "{}", ran.stderr);
}

#[test]
fn an_adapter_in_part_is_none() {
    let world = World::with_adapter(llava());
    world
        .hub
        .trick("cdn/adapter_model.safetensors", Kind::Status(404), 100);
    let mut export = world.command(&["--adapter", "org/lora", "-o", "bundle"]);
    world.refused(&mut export, &["answers 404 for adapter_model.safetensors"]);
    let commit = format!("org/lora@{COMMIT}");
    let mut offline = world.command(&["--adapter", &commit, "-o", "bundle"]);
    world.refused(
        offline.env("HF_HUB_OFFLINE", "1"),
        &[
            "`org/lora` at revision",
            "is not in the local Hugging Face cache",
            "--adapter also take a directory",
        ],
    );
}

#[test]
fn what_is_no_adapter_is_not_downloaded() {
    let world = World::with_adapter(lora(&config()));
    for looks in [&[][..], &["--dry-run"]] {
        let mut export = world.command(&["--model", "org/name", "--adapter", "org/name", "-o", "bundle"]);
        let says = [
            "`org/name` at revision `main`",
            "has no adapter there: the repository has no `adapter_model.safetensors`",
            "`model.safetensors` is a whole model",
            "--adapter a fine-tune",
        ];
        world.refused(export.args(looks), &says);
    }
    assert_eq!(world.hub.bodies(""), []);
    let mut other = world.command(&["--adapter", "org/other", "-o", "bundle"]);
    world.refused(&mut other, &["`org/other` at revision `main`", "answers 404"]);

    // Weights of a kind that is not merged here would be for nothing.
    let mut config = config();
    config["peft_type"] = json!("IA3");
    world
        .hub
        .with(|state| state.others.insert("org/lora".to_owned(), lora(&config)));
    let mut export = world.command(&["--adapter", "org/lora", "-o", "bundle"]);
    world.refused(&mut export, &["`peft_type` is \"IA3\", expected \"LORA\""]);
    assert_eq!(world.came(), ["adapter_config.json"]);
    // A model's repository has no such thing, and an adapter's no model.
    let mut model = world.command(&["--model", "org/lora", "-o", "bundle"]);
    world.refused(&mut model, &["has no checkpoint there", "--adapter a fine-tune"]);
}
