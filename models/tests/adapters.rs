//! Adapters as peft and LLaVA's training script write them, against what peft's `merge_and_unload` and the
//! steps of LLaVA's `builder.py` made of the same base. Recorded by
//! `conformance/python/fvlm_conformance/reference/adapters.py`.

#![cfg(feature = "describe")]
#![expect(clippy::unwrap_used, reason = "a failure here is a failed test")]

#[path = "adapters/recorded.rs"]
mod recorded;

use models::weights::Weights as _;
use recorded::{Tensors, case, data, merged, written};
use serde_json::{Map, Value};
use std::fs;
use std::path::Path;

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

/// Merged by us, and a checkpoint of the tensors that were recorded.
fn check(name: &str) {
    let recorded::Case {
        folder,
        config,
        mut tensors,
        adapters,
    } = case(name);
    let plain = written(&config, &tensors);
    let (found, accounting) = merged(plain.path(), &adapters);

    let recorded = tensors_of(&folder.join("merged.safetensors"));
    for (tensor, found) in &recorded {
        let own = tensors.insert(tensor.clone(), found.clone()).unwrap();
        assert_eq!(own.0, found.0, "{tensor}");
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
        "{name}"
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
                "{name}, {}: {found}, expected {expected}",
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
