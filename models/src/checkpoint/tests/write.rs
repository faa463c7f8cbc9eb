//! Writes safetensors, for tests.

use serde::Serialize;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::Path;

/// A tensor as a file has it: type, shape and bytes.
pub(crate) type Typed<N> = (&'static str, Vec<N>, Vec<u8>);

/// Writes float32 tensors, of which shape and values are given by name, in the order of names.
pub(crate) fn float32<N: Serialize + Clone>(path: &Path, tensors: &BTreeMap<String, (Vec<N>, Vec<f32>)>) {
    let bytes = |values: &[f32]| values.iter().flat_map(|value| value.to_le_bytes()).collect();
    let tensors = tensors.iter();
    let tensors =
        tensors.map(|(name, (shape, values))| (name.clone(), ("F32", shape.clone(), bytes(values))));
    typed(path, &tensors.collect());
}

/// Writes tensors in the order of names.
pub(crate) fn typed<N: Serialize>(path: &Path, tensors: &BTreeMap<String, Typed<N>>) {
    let (mut header, mut data) = (Map::new(), Vec::<u8>::new());
    for (name, (dtype, shape, bytes)) in tensors {
        let start = data.len();
        data.extend(bytes);
        let entry = json!({"dtype": dtype, "shape": shape, "data_offsets": [start, data.len()]});
        header.insert(name.clone(), entry);
    }
    let header = Value::Object(header).to_string();
    let mut file = u64::try_from(header.len()).unwrap().to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    file.extend(data);
    std::fs::write(path, file).unwrap();
}
