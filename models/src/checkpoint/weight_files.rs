//! Which files of a directory hold its weights? safetensors before torch's, a whole file before shards, as
//! transformers looks; then the one torch file that may be called anything.

#![deny(clippy::as_conversions)]

use super::CheckpointError;
use super::error::{first_few, short};
use super::small::{self, MAX_INDEX};
use super::tensor_file::TensorFile;
use serde::Deserialize;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Component, Path, PathBuf};

/// The file of weights where they are in one.
pub const SINGLE: &str = "model.safetensors";
pub(super) const INDEX: &str = "model.safetensors.index.json";
const TORCH_SINGLE: &str = "pytorch_model.bin";
const TORCH_INDEX: &str = "pytorch_model.bin.index.json";

/// Names that torch files end with.
const TORCH_ENDINGS: [&str; 3] = [".bin", ".pth", ".pt"];
/// How files begin that trainers write beside the weights, which are not opened: optimizers, schedules,
/// random states and arguments.
const OF_TRAINERS: [&str; 9] = [
    "training_args.",
    "optimizer",
    "scheduler",
    "scaler",
    "rng_state",
    "random_states",
    "trainer_state",
    "zero_pp_rank_",
    "bf16_zero_pp_rank_",
];
/// Parts of a model's weights, which adapters and projectors are saved as.
const PARTS: [&str; 3] = ["adapter_model.bin", "non_lora_trainables.bin", "mm_projector.bin"];

/// The files that weights are read from, opened, and the index that names them.
pub(super) struct WeightFiles {
    pub(super) files: Vec<TensorFile>,
    pub(super) index: Option<PathBuf>,
}

/// Finds and opens the weights of a directory.
///
/// # Errors
/// No weights, more than one file that may be them, or files that are not what their formats demand.
pub(super) fn open(directory: &Path) -> Result<WeightFiles, CheckpointError> {
    let there = |name: &str| Some(directory.join(name)).filter(|path| path.exists());
    let single = |file: TensorFile| WeightFiles {
        files: vec![file],
        index: None,
    };
    if let Some(path) = there(SINGLE) {
        return Ok(WeightFiles {
            files: vec![TensorFile::open_safetensors(&path)?],
            // Not needed, but what it says of the checkpoint is a part of what was there.
            index: there(INDEX),
        });
    }
    if let Some(index) = there(INDEX) {
        return open_shards(directory, index, ".safetensors", TensorFile::open_safetensors);
    }
    if let Some(path) = there(TORCH_SINGLE) {
        return TensorFile::open(&path).map(single);
    }
    if let Some(index) = there(TORCH_INDEX) {
        return open_shards(directory, index, ".bin", TensorFile::open);
    }
    match the_torch_file(directory) {
        Ok(path) => TensorFile::open(&path).map(single),
        Err(problem) => Err(CheckpointError::NotACheckpoint {
            path: directory.to_owned(),
            problem,
        }),
    }
}

/// Refuses a config, at `path`, that names other weights than those that are read: transformers 5 loads the file
/// that the field names.
///
/// # Errors
/// Another file.
pub(super) fn expect_named(found: &WeightFiles, config: &Value, path: &Path) -> Result<(), CheckpointError> {
    const NAME: &str = "transformers_weights";
    let Some(named) = config.get(NAME).filter(|named| !named.is_null()) else {
        return Ok(());
    };
    let whole = found.files.first().map(TensorFile::path);
    let whole = whole.filter(|path| path.ends_with(SINGLE) || found.index.is_none());
    let read = whole.or(found.index.as_deref()).and_then(Path::file_name);
    let read = read.map(|name| name.to_string_lossy()).unwrap_or_default();
    if named.as_str() == Some(&*read) {
        return Ok(());
    }
    Err(CheckpointError::Config {
        path: path.to_owned(),
        problems: vec![format!(
            "`{NAME}` is {}, which transformers would read instead of `{read}`: expected `{read}`; call the file \
             with the weights `{SINGLE}` and remove the field",
            short(named)
        )],
    })
}

/// The one torch file of a directory that may be its weights, or what to say.
fn the_torch_file(directory: &Path) -> Result<PathBuf, String> {
    let names = names(directory);
    let of_torch = |name: &&String| TORCH_ENDINGS.iter().any(|ending| name.ends_with(ending));
    let of_trainer = |name: &String| OF_TRAINERS.iter().any(|start| name.starts_with(start));
    let torch: Vec<&String> = names
        .iter()
        .filter(of_torch)
        .filter(|name| !of_trainer(name) && directory.join(name).is_file())
        .collect();
    let (parts, whole): (Vec<&String>, Vec<&String>) =
        torch.into_iter().partition(|name| PARTS.contains(&name.as_str()));
    match whole[..] {
        [] => {}
        [name] if !name.contains("-of-") => return Ok(directory.join(name)),
        [first, ..] if first.contains("-of-") => {
            return Err(format!(
                "has shards (`{first}`) and no `{TORCH_INDEX}`, which says which tensor lies where"
            ));
        }
        _ => {
            let listed: Vec<String> = whole.iter().map(|name| format!("`{name}`")).collect();
            return Err(format!(
                "has several torch files and no `{SINGLE}`: call the one with the weights `{TORCH_SINGLE}` ({})",
                first_few(&listed)
            ));
        }
    }
    let neither = format!("has neither `{SINGLE}` nor `{TORCH_SINGLE}` nor an index of shards");
    let sharded = names
        .iter()
        .find(|name| name.starts_with("global_step") || name.contains("zero_pp_rank_"));
    if let Some(name) = sharded {
        return Err(format!(
            "{neither}, only shards of DeepSpeed's ZeRO (`{name}`): `python zero_to_fp32.py . {TORCH_SINGLE}` in \
             it makes whole weights of them"
        ));
    }
    match parts.first() {
        Some(part) => Err(format!(
            "{neither}, only a part of a model's weights (`{part}`), which can be merged as an adapter"
        )),
        None => Err(neither),
    }
}

/// The names in a directory, sorted.
fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

/// The part of an index that matters.
#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// Opens the shards that the index names. Each tensor must lie in the one shard that the index says.
fn open_shards(
    directory: &Path,
    index: PathBuf,
    ending: &str,
    open: fn(&Path) -> Result<TensorFile, CheckpointError>,
) -> Result<WeightFiles, CheckpointError> {
    let malformed = |problem: String| CheckpointError::malformed(&index, problem);
    let Index { weight_map } = serde_json::from_str(&small::text(&index, MAX_INDEX)?)
        .map_err(|error| malformed(error.to_string()))?;
    let names: BTreeSet<&String> = weight_map.values().collect();
    if names.is_empty() {
        return Err(malformed("names no shard".to_owned()));
    }
    let mut problems = Vec::new();
    for name in names.iter() {
        let mut parts = Path::new(name).components();
        let plain = matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None));
        if !plain || !name.ends_with(ending) || name.contains('\\') {
            problems.push(format!("`{name}` is not the name of a shard in this directory"));
        } else if !directory.join(name).is_file() {
            problems.push(format!("shard `{name}` is missing"));
        }
    }
    if !problems.is_empty() {
        return Err(malformed(problems.join("; ")));
    }
    let mut files = Vec::new();
    let mut place: BTreeMap<String, &String> = BTreeMap::new();
    for name in names {
        let file = open(&directory.join(name))?;
        for tensor in file.tensors() {
            if let Some(other) = place.insert(tensor.name.clone(), name) {
                problems.push(format!(
                    "tensor `{}` lies in `{other}` and in `{name}`",
                    tensor.name
                ));
            } else if !weight_map.contains_key(&tensor.name) {
                problems.push(format!(
                    "tensor `{}` of `{name}` is not in the index",
                    tensor.name
                ));
            }
        }
        files.push(file);
    }
    for (tensor, name) in &weight_map {
        if place.get(tensor).is_none_or(|found| *found != name) {
            problems.push(format!(
                "tensor `{tensor}` is not in `{name}`, where the index has it"
            ));
        }
    }
    if problems.is_empty() {
        Ok(WeightFiles {
            files,
            index: Some(index),
        })
    } else {
        Err(malformed(first_few(&problems)))
    }
}
