//! Adapters as peft and LLaVA's training script write them, against what peft's `merge_and_unload` and the
//! steps of LLaVA's `builder.py` made of the same base. Recorded by
//! `conformance/python/fvlm_conformance/reference/adapters.py`.

#![cfg(feature = "describe")]
#![expect(clippy::unwrap_used, reason = "a failure here is a failed test")]

#[path = "../src/checkpoint/tests/write.rs"]
mod write;

use models::checkpoint::{Accounting, Adapter, Canonical, Checkpoint, canonical_with};
use models::weights::Weights as _;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// Shape and float32 values of tensors by name.
type Tensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

fn data() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/adapters")
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// The recorder's formula.
fn values(name: &str, count: usize) -> Vec<f32> {
    let seed = name
        .bytes()
        .fold(7, |seed, byte| seed * 31 % 1009 + usize::from(byte));
    let value = |at: usize| f32::from(u8::try_from((at * 17 + seed) % 61).unwrap()) / 64.0 + 0.25;
    (0..count).map(value).collect()
}

/// The base that the recorder made.
fn base(layout: &str) -> (Value, Tensors) {
    let base = json(&data().join(format!("{layout}.json")));
    let shape = |shape: &Value| -> Vec<usize> {
        let sides = shape.as_array().unwrap().iter();
        sides
            .map(|side| usize::try_from(side.as_u64().unwrap()).unwrap())
            .collect()
    };
    let tensors = base["tensors"].as_object().unwrap().iter();
    let tensors = tensors
        .filter(|(name, _)| !name.ends_with("num_batches_tracked"))
        .map(|(name, of)| {
            let shape = shape(of);
            let count = shape.iter().product();
            (name.clone(), (shape, values(name, count)))
        });
    (base["config"].clone(), tensors.collect())
}

/// A checkpoint on disk.
fn written(config: &Value, tensors: &Tensors) -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    write::float32(&directory.path().join("model.safetensors"), tensors);
    fs::write(directory.path().join("config.json"), config.to_string()).unwrap();
    let image = json!({"crop_size": {"height": 64, "width": 64}, "size": {"shortest_edge": 64}});
    fs::write(
        directory.path().join("preprocessor_config.json"),
        image.to_string(),
    )
    .unwrap();
    directory
}

/// Tensors of a safetensors file of float32.
fn tensors_of(path: &Path) -> Tensors {
    let bytes = fs::read(path).unwrap();
    let (length, rest) = bytes.split_first_chunk::<8>().unwrap();
    let (header, data) = rest.split_at(usize::try_from(u64::from_le_bytes(*length)).unwrap());
    let header: Map<String, Value> = serde_json::from_slice(header).unwrap();
    let number = |value: &Value| usize::try_from(value.as_u64().unwrap()).unwrap();
    let entries = header.iter().filter(|(name, _)| *name != "__metadata__");
    entries
        .map(|(name, entry)| {
            assert_eq!(entry["dtype"], "F32");
            let shape = entry["shape"].as_array().unwrap().iter().map(number).collect();
            let [start, end] = [0, 1].map(|at| number(&entry["data_offsets"][at]));
            let (chunks, _) = data[start..end].as_chunks::<4>();
            let values = chunks.iter().map(|bytes| f32::from_le_bytes(*bytes));
            (name.clone(), (shape, values.collect()))
        })
        .collect()
}

fn merged(base: &Path, adapters: &[(PathBuf, f64)]) -> (Canonical, Accounting) {
    let mut opened = Checkpoint::open(base).unwrap();
    let adapters = adapters.iter().map(|(path, weight)| Adapter::open(path, *weight));
    let adapters: Vec<Adapter> = adapters.collect::<Result<_, _>>().unwrap();
    opened.adapt(&adapters).unwrap();
    canonical_with(&opened, None, adapters.into()).unwrap()
}

/// Merged by us, and a checkpoint of the tensors that were recorded.
fn check(case: &str) {
    let folder = data().join(case);
    let stated = json(&folder.join("case.json"));
    let (config, mut tensors) = base(stated["base"].as_str().unwrap());
    let adapters = stated["adapters"].as_array().unwrap().iter();
    let adapters: Vec<(PathBuf, f64)> = adapters
        .map(|one| (folder.join(one[0].as_str().unwrap()), one[1].as_f64().unwrap()))
        .collect();
    let plain = written(&config, &tensors);
    let (found, accounting) = merged(plain.path(), &adapters);

    let recorded = tensors_of(&folder.join("merged.safetensors"));
    for (name, tensor) in &recorded {
        let own = tensors.insert(name.clone(), tensor.clone()).unwrap();
        assert_eq!(own.0, tensor.0, "{name}");
    }
    // All that peft changed was merged, and nothing else.
    let mut touched: Vec<&str> = accounting
        .merged
        .iter()
        .map(|merged| merged.tensor.as_str())
        .collect();
    touched.dedup();
    assert_eq!(
        touched,
        recorded.keys().map(String::as_str).collect::<Vec<_>>(),
        "{case}"
    );

    let reference = written(&config, &tensors);
    let (expected, _) = merged(reference.path(), &[]);
    for spec in expected.specs() {
        let expected = expected.read(&spec.name).unwrap();
        for (found, expected) in found.read(&spec.name).unwrap().into_iter().zip(expected) {
            let (found, expected) = (f64::from(found), f64::from(expected));
            let off = (found - expected).abs() / expected.abs().max(1.0);
            assert!(
                off < ROUNDING,
                "{case}, {}: {found}, expected {expected}",
                spec.name
            );
        }
    }
}

/// PyTorch sums in float32, in another order: 3e-7 at most was found.
const ROUNDING: f64 = 1e-6;

macro_rules! cases {
    ($($name:ident $case:literal)*) => { $(
        #[test]
        fn $name() {
            check($case);
        }
    )* };
}

cases! {
    lora "lora"
    lora_in_a_torch_file "lora-bin"
    rank_stabilised "rslora"
    patterns "patterns"
    dora "dora"
    modules_to_save_and_biases "modules-to-save"
    bias_of_b "lora-bias"
    two_by_their_weights "weighted"
    llava_lora_and_what_was_trained_beside_it "llava-lora"
    llava_with_biases "llava-bias"
    llava_projector_alone "llava-projector"
}

#[test]
fn every_recorded_case_is_checked() {
    let folders = fs::read_dir(data()).unwrap().map(|entry| entry.unwrap());
    let folders = folders.filter(|entry| entry.path().is_dir());
    assert_eq!(folders.count(), 11);
}
