//! Tensors of a safetensors file as float32, for tests.

use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::fmt::Debug;
use std::fs;
use std::path::Path;

/// Shape and values by name; counters are left out.
pub(crate) fn read<N: TryFrom<u64, Error: Debug>>(path: &Path) -> BTreeMap<String, (Vec<N>, Vec<f32>)> {
    let bytes = fs::read(path).unwrap();
    let (length, rest) = bytes.split_first_chunk::<8>().unwrap();
    let (header, data) = rest.split_at(usize::try_from(u64::from_le_bytes(*length)).unwrap());
    let header: Map<String, Value> = serde_json::from_slice(header).unwrap();
    let number = |value: &Value| usize::try_from(value.as_u64().unwrap()).unwrap();
    let entries = header.iter().filter(|(name, _)| *name != "__metadata__");
    let tensors = entries
        .filter(|(_, entry)| entry["dtype"] != "I64")
        .map(|(name, entry)| {
            let sides = entry["shape"].as_array().unwrap().iter();
            let shape = sides
                .map(|side| N::try_from(side.as_u64().unwrap()).unwrap())
                .collect();
            let [start, end] = [0, 1].map(|at| number(&entry["data_offsets"][at]));
            let data = &data[start..end];
            let values = match entry["dtype"].as_str().unwrap() {
                "F32" => data
                    .as_chunks()
                    .0
                    .iter()
                    .map(|bytes| f32::from_le_bytes(*bytes))
                    .collect(),
                "BF16" => {
                    let words = data
                        .as_chunks()
                        .0
                        .iter()
                        .map(|bytes| u32::from(u16::from_le_bytes(*bytes)));
                    words.map(|word| f32::from_bits(word << 16)).collect()
                }
                "F16" => {
                    let words = data
                        .as_chunks()
                        .0
                        .iter()
                        .map(|bytes| half::f16::from_le_bytes(*bytes));
                    words.map(half::f16::to_f32).collect()
                }
                other => panic!("{name} is {other}"),
            };
            (name.clone(), (shape, values))
        });
    tensors.collect()
}
