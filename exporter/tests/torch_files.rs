//! Checkpoints with PyTorch's own files (`pytorch_model.bin`): the bundle is, byte for byte, that of the same
//! weights as safetensors, but for what is said of the source.

#![expect(clippy::unwrap_used, reason = "a failure here is a failed test")]

#[path = "torch/demo.rs"]
mod demo;
#[path = "../../models/src/checkpoint/torch/write.rs"]
mod write;

use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use write::Saved;

/// The demo model in `directory` without its weights, and its tensors.
fn demo(directory: &Path) -> Saved {
    fs::create_dir(directory).unwrap();
    exporter::demo::extract(directory).unwrap();
    let path = directory.join("model.safetensors");
    let saved = demo::saved(&fs::read(&path).unwrap());
    fs::remove_file(path).unwrap();
    saved
}

/// Exports `model` in `directory`: all files of the bundle, its contract without the source, and the source.
fn exported(directory: &Path, model: &str) -> (BTreeMap<PathBuf, Vec<u8>>, Value, Vec<String>) {
    let output = directory.join(format!("{model}-bundle"));
    let ran = Command::new(env!("CARGO_BIN_EXE_fvlm-export"))
        .args(["--model", model, "--precision", "fp32", "--precision", "q4", "-o"])
        .arg(&output)
        .current_dir(directory)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    let mut files = BTreeMap::new();
    let mut folders = vec![output.clone()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                files.insert(
                    path.strip_prefix(&output).unwrap().to_owned(),
                    fs::read(&path).unwrap(),
                );
            }
        }
    }
    let contract = files.remove(Path::new("bundle.json")).unwrap();
    let mut contract: Value = serde_json::from_slice(&contract).unwrap();
    let source = contract.as_object_mut().unwrap().remove("source").unwrap();
    contract["model"].as_object_mut().unwrap().remove("name").unwrap();
    let named = |file: &Value| file["path"].as_str().unwrap().to_owned();
    let source = source.as_array().unwrap().iter().map(named).collect();
    (files, contract, source)
}

/// A half of the tensors with their storages.
fn half(saved: &Saved, which: usize) -> Saved {
    let mut half = Saved::default();
    for tensor in saved.tensors.iter().skip(which).step_by(2) {
        let (kind, bytes) = saved.storages[tensor.storage].clone();
        half.add(&tensor.name, &kind, &tensor.shape, bytes);
    }
    half
}

#[test]
fn bundles_of_torch_files_are_those_of_safetensors() {
    let world = tempfile::tempdir().unwrap();
    let directory = |name: &str| world.path().join(name);
    fs::create_dir(directory("plain")).unwrap();
    exporter::demo::extract(&directory("plain")).unwrap();
    let (files, contract, source) = exported(world.path(), "plain");
    assert_eq!(source, ["config.json", "model.safetensors"]);

    let shards = [
        "pytorch_model-00001-of-00002.bin",
        "pytorch_model-00002-of-00002.bin",
    ];
    let saved = demo(&directory("archive"));
    fs::write(directory("archive").join("pytorch_model.bin"), saved.archive()).unwrap();
    demo(&directory("legacy"));
    fs::write(directory("legacy").join("pytorch_model.bin"), saved.legacy()).unwrap();
    // What a trainer leaves: weights in shards, and files of its own, which are programs.
    demo(&directory("checkpoint-1000"));
    let mut map = Map::new();
    for (which, name) in shards.iter().enumerate() {
        let half = half(&saved, which);
        map.extend(
            half.tensors
                .iter()
                .map(|tensor| (tensor.name.clone(), json!(name))),
        );
        fs::write(directory("checkpoint-1000").join(name), half.archive()).unwrap();
    }
    let index = json!({"metadata": {}, "weight_map": map}).to_string();
    fs::write(
        directory("checkpoint-1000").join("pytorch_model.bin.index.json"),
        index,
    )
    .unwrap();
    for name in [
        "optimizer.pt",
        "scheduler.pt",
        "rng_state.pth",
        "training_args.bin",
    ] {
        fs::write(directory("checkpoint-1000").join(name), b"\x80\x02cos\nsystem\n.").unwrap();
    }

    for (model, expected) in [
        ("archive", vec!["config.json", "pytorch_model.bin"]),
        ("legacy", vec!["config.json", "pytorch_model.bin"]),
        (
            "checkpoint-1000",
            vec![
                "config.json",
                shards[0],
                shards[1],
                "pytorch_model.bin.index.json",
            ],
        ),
    ] {
        let (others, other, source) = exported(world.path(), model);
        assert_eq!(source, expected);
        assert!(others == files, "{model}");
        assert_eq!(other, contract, "{model}");
    }
}
