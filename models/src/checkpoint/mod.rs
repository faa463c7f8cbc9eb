//! A checkpoint directory: its config, its tensors, its layout, and the canonical weights that they make.
//!
//! `open` believes nothing that it has not checked; [`canonical()`] accounts for every tensor.

#![deny(clippy::as_conversions)]

mod assets;
mod branches;
mod canonical;
pub(crate) mod error;
mod fold;
mod layout;
mod license;
mod llava;
mod mlx;
mod prefix;
mod safetensors;
pub(crate) mod small;
mod statistics;

pub use crate::config::Layout;
pub use assets::{Asset, Assets, Origin, SMALL_FILES};
pub use canonical::{Accounting, Canonical, Ignored, Used, canonical};
pub use error::{CheckpointError, WeightProblems};
pub use license::is_license;
pub use small::MAX_INDEX;
pub use statistics::{FINGERPRINT, Statistics, moments_name, peaks_name};

use crate::config::{CONFIG, Declared, ModelConfig};
use crate::dtype::DType;
use safetensors::{SafetensorsFile, StoredType};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

/// File names of the format.
const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
/// What peft writes beside the weights of an adapter.
const ADAPTER: &str = "adapter_config.json";

/// An opened checkpoint; its weights stay in the files.
#[derive(Debug)]
pub struct Checkpoint {
    path: PathBuf,
    declared: Declared,
    files: Arc<Vec<SafetensorsFile>>,
    sources: Vec<SourceFile>,
}

/// A file that weights or config are read from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceFile {
    /// Where it lies.
    pub path: PathBuf,
    /// Its length.
    pub bytes: u64,
}

impl Checkpoint {
    /// Opens the checkpoint in `directory`: `config.json` beside `model.safetensors`, or beside an index and
    /// shards.
    ///
    /// # Errors
    /// A file that is missing or is not what its format demands, or a config that this build cannot do.
    pub fn open(directory: &Path) -> Result<Checkpoint, CheckpointError> {
        let not_a_checkpoint = |problem: String| CheckpointError::NotACheckpoint {
            path: directory.to_owned(),
            problem,
        };
        if !directory.is_dir() {
            return Err(not_a_checkpoint("is not a directory".to_owned()));
        }
        if directory.join(ADAPTER).exists() {
            return Err(not_a_checkpoint(with_adapter(directory)));
        }
        if !directory.join(CONFIG).exists() {
            return Err(not_a_checkpoint(format!("has no `{CONFIG}`")));
        }
        let fields = Declared::fields(directory)?;

        let index = directory.join(INDEX);
        let files = if directory.join(SINGLE).exists() {
            vec![SafetensorsFile::open(&directory.join(SINGLE))?]
        } else if index.exists() {
            open_shards(directory, &index)?
        } else {
            return Err(not_a_checkpoint(without_weights(directory)));
        };
        let names = files
            .iter()
            .flat_map(|file| &file.tensors)
            .map(|tensor| tensor.name.as_str());
        mlx::refuse(directory, &fields, names)?;
        refuse_empty(directory, &files)?;
        let declared = Declared::read(directory, fields)?;

        let mut sources = Vec::new();
        for name in [CONFIG, INDEX] {
            let path = directory.join(name);
            if let Ok(found) = fs::metadata(&path) {
                sources.push(SourceFile {
                    path,
                    bytes: found.len(),
                });
            }
        }
        sources.extend(files.iter().map(|file| SourceFile {
            path: file.path.clone(),
            bytes: file.len(),
        }));
        sources.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(Checkpoint {
            path: directory.to_owned(),
            declared,
            files: Arc::new(files),
            sources,
        })
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What `config.json` declares. Whether the head is tied is settled by the tensors: see
    /// [`Canonical::config`].
    pub fn config(&self) -> &ModelConfig {
        &self.declared.config
    }

    /// The dialect of `config.json`.
    pub fn dialect(&self) -> Layout {
        self.declared.layout
    }

    /// `config.json` and the files that weights are read from, sorted.
    pub fn files(&self) -> &[SourceFile] {
        &self.sources
    }

    /// SHA-256 of all tensors with their names, types and shapes, in order of the names: the same however they are
    /// spread over files.
    pub fn fingerprint(&self) -> [u8; 32] {
        let files = self.files.iter();
        let mut tensors: Vec<_> = files
            .flat_map(|file| file.tensors.iter().map(move |tensor| (file, tensor)))
            .collect();
        tensors.sort_by(|(_, a), (_, b)| a.name.cmp(&b.name));
        let mut hash = Sha256::new();
        for (file, tensor) in tensors {
            hash.update(format!(
                "{} {} {:?}\n",
                tensor.name,
                tensor.dtype.name(),
                tensor.shape
            ));
            hash.update(file.bytes(tensor));
        }
        hash.finalize().into()
    }

    /// Element type of most of the weights' bytes.
    pub fn stored(&self) -> DType {
        let mut bytes: BTreeMap<DType, usize> = BTreeMap::new();
        for file in self.files.iter() {
            for tensor in &file.tensors {
                if let StoredType::Float(dtype) = tensor.dtype {
                    *bytes.entry(dtype).or_default() += file.bytes(tensor).len();
                }
            }
        }
        bytes
            .into_iter()
            .max_by_key(|&(_, bytes)| bytes)
            .map_or(DType::Float32, |(dtype, _)| dtype)
    }

    /// The layout, by two declared markers that must agree: the config's `model_type` and the projector's
    /// name.
    fn detect(&self) -> Result<Layout, CheckpointError> {
        let names = self
            .files
            .iter()
            .flat_map(|file| &file.tensors)
            .map(|tensor| tensor.name.as_str());
        match Layout::of_tensors(names) {
            Some(found) if found != self.declared.layout => Err(CheckpointError::Layout {
                path: self.path.clone(),
                problem: format!(
                    "config.json declares the {} layout, the tensors have names of the {} layout",
                    self.declared.layout.name(),
                    found.name()
                ),
            }),
            _ => Ok(self.declared.layout),
        }
    }
}

/// Reads everything but the weights of a checkpoint.
///
/// # Errors
/// A file that is missing, cannot be read or asks for something that this build does not do.
pub fn assets(checkpoint: &Checkpoint, config: &ModelConfig) -> Result<Assets, CheckpointError> {
    assets::assets(&checkpoint.path, config, &checkpoint.declared)
}

/// What to say about a directory with an adapter: transformers would apply it to these or to other weights.
fn with_adapter(directory: &Path) -> String {
    let stated = small::object_if_there(&directory.join(ADAPTER), MAX_INDEX)
        .ok()
        .flatten();
    let base = stated
        .as_ref()
        .and_then(|fields| fields.get("base_model_name_or_path"));
    let base = base.and_then(serde_json::Value::as_str);
    let of = base.map_or(String::new(), |base| format!(" of `{base}`"));
    format!(
        "has `{ADAPTER}`, an adapter{of}, which is not applied here: merge it into the weights first \
         (peft's `merge_and_unload`), or remove `{ADAPTER}` to export the weights without it"
    )
}

/// Refuses weights that are not there: DeepSpeed's ZeRO-3 writes empty tensors where nothing gathers them.
fn refuse_empty(directory: &Path, files: &[SafetensorsFile]) -> Result<(), CheckpointError> {
    let tensors = || files.iter().flat_map(|file| &file.tensors);
    let mut empty = tensors().filter(|tensor| tensor.shape.contains(&0));
    let Some(first) = empty.next() else {
        return Ok(());
    };
    let problem = format!(
        "{} of {} tensors are empty, as DeepSpeed's ZeRO-3 saves what it does not gather (`{}` has shape {:?}): \
         its `zero_to_fp32.py` makes whole weights of them",
        empty.count() + 1,
        tensors().count(),
        first.name,
        first.shape
    );
    Err(CheckpointError::NotACheckpoint {
        path: directory.to_owned(),
        problem,
    })
}

/// What to say about a directory without safetensors.
fn without_weights(directory: &Path) -> String {
    let pickled = fs::read_dir(directory)
        .into_iter()
        .flatten()
        .flatten()
        .any(|entry| {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            name.ends_with(".bin") || name.ends_with(".pth") || name.ends_with(".pt")
        });
    let hint = if pickled {
        "; its PyTorch files are programs and are not read: convert them to safetensors"
    } else {
        ""
    };
    format!("has neither `{SINGLE}` nor `{INDEX}`{hint}")
}

/// The part of an index that matters.
#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// Opens the shards that the index names. Each tensor must lie in the one shard that the index says.
fn open_shards(directory: &Path, index: &Path) -> Result<Vec<SafetensorsFile>, CheckpointError> {
    let malformed = |problem: String| CheckpointError::malformed(index, problem);
    let Index { weight_map } = serde_json::from_str(&small::text(index, MAX_INDEX)?)
        .map_err(|error| malformed(error.to_string()))?;
    let names: BTreeSet<&String> = weight_map.values().collect();
    if names.is_empty() {
        return Err(malformed("names no shard".to_owned()));
    }
    let mut problems = Vec::new();
    for name in names.iter() {
        let mut parts = Path::new(name).components();
        let plain = matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None));
        if !plain || !name.ends_with(".safetensors") || name.contains('\\') {
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
        let file = SafetensorsFile::open(&directory.join(name))?;
        for tensor in &file.tensors {
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
        Ok(files)
    } else {
        Err(malformed(first_few(&problems)))
    }
}

/// A list for people: all counted, the first shown.
fn first_few(problems: &[String]) -> String {
    const SHOWN: usize = 8;
    let shown = problems
        .iter()
        .take(SHOWN)
        .cloned()
        .collect::<Vec<_>>()
        .join("; ");
    match problems.len().checked_sub(SHOWN) {
        Some(more) if more > 0 => format!("{shown}; and {more} more"),
        _ => shown,
    }
}

#[cfg(test)]
mod tests;
