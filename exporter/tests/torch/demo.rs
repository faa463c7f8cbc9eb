//! The demo model's tensors as torch would save them.

use crate::write::Saved;
use serde_json::{Map, Value};

/// The tensors of a safetensors file.
pub(crate) fn saved(file: &[u8]) -> Saved {
    let (length, rest) = file.split_first_chunk::<8>().unwrap();
    let (header, data) = rest.split_at(usize::try_from(u64::from_le_bytes(*length)).unwrap());
    let header: Map<String, Value> = serde_json::from_slice(header).unwrap();
    let mut saved = Saved::default();
    for (name, tensor) in header.iter().filter(|(name, _)| *name != "__metadata__") {
        let kind = match tensor["dtype"].as_str().unwrap() {
            "F32" => "FloatStorage",
            "F16" => "HalfStorage",
            "BF16" => "BFloat16Storage",
            "I64" => "LongStorage",
            other => panic!("the demo model has tensors of {other}"),
        };
        let numbers = |field: &str| -> Vec<u64> { serde_json::from_value(tensor[field].clone()).unwrap() };
        let offsets = numbers("data_offsets");
        let place = |at: usize| usize::try_from(offsets[at]).unwrap();
        saved.add(name, kind, &numbers("shape"), data[place(0)..place(1)].to_vec());
    }
    saved
}
