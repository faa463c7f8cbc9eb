//! What `conformance/python/fvlm_conformance/reference/adapters.py` recorded, for tests: a small base, and what
//! fine-tunes of it left behind.

#[path = "../../src/checkpoint/tests/write.rs"]
mod write;

use models::checkpoint::{Accounting, Adapter, Canonical, Checkpoint, canonical_with};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// Shape and float32 values of tensors by name.
pub(crate) type Tensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

/// Where the cases are, a folder each.
pub(crate) fn data() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/tests/data/adapters")
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// The recorder's formula: 7 bits, of a size at which a signal neither dies nor explodes.
fn values(name: &str, shape: &[usize]) -> Vec<f32> {
    let seed = name
        .bytes()
        .fold(7, |seed, byte| seed * 31 % 1009 + usize::from(byte));
    let (mut scale, mut offset) = (1.0 / 128.0, 0.75);
    if let [_, inputs @ ..] = shape
        && !inputs.is_empty()
    {
        (scale, offset) = (1.0 / 8.0, 0.0);
        let inputs: f32 = inputs
            .iter()
            .map(|side| f32::from(u16::try_from(*side).unwrap()))
            .product();
        while scale * scale * 64.0 * inputs > 1.0 {
            scale /= 2.0;
        }
    } else if name.ends_with(".bias") || name.ends_with(".running_mean") {
        offset = 0.0;
    }
    let noise = |at: usize| f32::from(u8::try_from((at * 17 + seed) % 61).unwrap()) - 30.0;
    (0..shape.iter().product())
        .map(|at| offset + noise(at) * scale)
        .collect()
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
            let values = values(name, &shape);
            (name.clone(), (shape, values))
        });
    (base["config"].clone(), tensors.collect())
}

/// A checkpoint on disk.
pub(crate) fn written(config: &Value, tensors: &Tensors) -> TempDir {
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

/// The weights of a base with adapters, of which each has a weight.
pub(crate) fn merged(base: &Path, adapters: &[(PathBuf, f64)]) -> (Canonical, Accounting) {
    let mut opened = Checkpoint::open(base).unwrap();
    let adapters = adapters.iter().map(|(path, weight)| Adapter::open(path, *weight));
    let adapters: Vec<Adapter> = adapters.collect::<Result<_, _>>().unwrap();
    opened.adapt(&adapters).unwrap();
    canonical_with(&opened, None, adapters.into()).unwrap()
}

/// What was recorded of a base and adapters.
pub(crate) struct Case {
    pub(crate) folder: PathBuf,
    pub(crate) config: Value,
    /// The base.
    pub(crate) tensors: Tensors,
    /// The adapters with their weights.
    pub(crate) adapters: Vec<(PathBuf, f64)>,
}

pub(crate) fn case(name: &str) -> Case {
    let folder = data().join(name);
    let stated = json(&folder.join("case.json"));
    let (config, tensors) = base(stated["base"].as_str().unwrap());
    let adapters = stated["adapters"].as_array().unwrap().iter();
    let adapters = adapters.map(|one| (folder.join(one[0].as_str().unwrap()), one[1].as_f64().unwrap()));
    Case {
        adapters: adapters.collect(),
        folder,
        config,
        tensors,
    }
}
