//! A checkpoint directory: its config, its tensors, its layout, and the canonical weights that they make.
//!
//! `open` believes nothing that it has not checked; [`canonical()`] accounts for every tensor.

#![deny(clippy::as_conversions)]

mod accounting;
mod adapter;
mod assets;
mod branches;
mod canonical;
pub(crate) mod error;
mod fold;
mod grouped;
mod layout;
mod license;
mod llava;
mod mlx;
mod prefix;
mod safetensors;
pub(crate) mod small;
mod statistics;
mod tensor_file;
mod torch;
mod weight_files;

pub use crate::config::Layout;
pub use accounting::{Accounting, Ignored, Used};
pub use adapter::{Adapter, Merged, adapter_files, check_adapter_config};
pub use assets::{Asset, Assets, Origin, SMALL_FILES, TEXT_TEMPLATE, input_files, is_named_template};
pub use canonical::{Canonical, canonical, canonical_with};
pub use error::{CheckpointError, WeightProblems};
pub use license::is_license;
pub use small::MAX_INDEX;
pub use statistics::{FINGERPRINT, Statistics, moments_name, peaks_name};
pub use tensor_file::{StoredTensor, StoredType, TensorFile};
pub use weight_files::SINGLE;

use crate::config::{CONFIG, Declared, ModelConfig};
use crate::dtype::DType;
use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use weight_files::WeightFiles;

/// What peft writes beside the weights of an adapter.
const ADAPTER: &str = "adapter_config.json";

/// An opened checkpoint; its weights stay in the files.
#[derive(Debug)]
pub struct Checkpoint {
    path: PathBuf,
    declared: Declared,
    files: Arc<Vec<TensorFile>>,
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
    /// Opens the checkpoint in `directory`: `config.json` beside `model.safetensors` or `pytorch_model.bin`,
    /// or beside an index and shards of either, or beside one torch file of another name. Where there is more
    /// than one of these, the first is read. What trainers write beside the weights is not opened.
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
            return Err(CheckpointError::HasAdapter {
                path: directory.to_owned(),
                of: base_of_adapter(directory),
            });
        }
        if !directory.join(CONFIG).exists() {
            return Err(not_a_checkpoint(format!("has no `{CONFIG}`")));
        }
        let fields = Declared::fields(directory)?;

        let found = weight_files::open(directory)?;
        weight_files::expect_named(&found, &fields, &directory.join(CONFIG))?;
        let WeightFiles { mut files, index } = found;
        mlx::channels_first(&mut files);
        let names = files
            .iter()
            .flat_map(TensorFile::tensors)
            .map(|tensor| tensor.name.as_str());
        mlx::refuse(directory, &fields, names)?;
        refuse_empty(directory, &files)?;
        let declared = Declared::read(directory, fields)?;

        let mut sources = Vec::new();
        for path in [Some(directory.join(CONFIG)), index].into_iter().flatten() {
            if let Ok(found) = fs::metadata(&path) {
                sources.push(SourceFile {
                    path,
                    bytes: found.len(),
                });
            }
        }
        sources.extend(files.iter().map(|file| SourceFile {
            path: file.path().to_owned(),
            bytes: file.length(),
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

    /// SHA-256 of all tensors with their names, types and shapes, in order of the names: the same however
    /// they are spread over files.
    pub fn fingerprint(&self) -> [u8; 32] {
        let files = self.files.iter();
        let mut tensors: Vec<_> = files
            .flat_map(|file| file.tensors().iter().map(move |tensor| (file, tensor)))
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
            file.each_piece(tensor, &mut |piece| hash.update(piece));
        }
        hash.finalize().into()
    }

    /// Element type of most of the weights' bytes.
    pub fn stored(&self) -> DType {
        let mut bytes: BTreeMap<DType, u64> = BTreeMap::new();
        for file in self.files.iter() {
            for tensor in file.tensors() {
                if let StoredType::Float(dtype) = tensor.dtype {
                    *bytes.entry(dtype).or_default() += tensor.bytes();
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
            .flat_map(TensorFile::tensors)
            .map(|tensor| tensor.name.as_str());
        match Layout::of_tensors(names) {
            Some(found) if found.dialect() != self.declared.layout => Err(CheckpointError::Layout {
                path: self.path.clone(),
                problem: format!(
                    "config.json declares the {} layout, the tensors have names of the {} layout",
                    self.declared.layout.name(),
                    found.name()
                ),
            }),
            Some(found) => Ok(found),
            None => Ok(self.declared.layout),
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

/// Reads everything but the graphs of a directory that others exported them to, and what it says of the
/// networks: `config.json`, the tokenizer's files and the processor's, as transformers.js reads them.
///
/// # Errors
/// A file that is missing, cannot be read, asks for something that this build does not do, or contradicts
/// another.
pub fn assets_of_graphs(directory: &Path) -> Result<(ModelConfig, Assets), CheckpointError> {
    let not_there = |problem: &str| CheckpointError::NotACheckpoint {
        path: directory.to_owned(),
        problem: problem.to_owned(),
    };
    if !directory.is_dir() {
        return Err(not_there("is not a directory"));
    }
    if !directory.join(CONFIG).exists() {
        return Err(not_there("has no `config.json`"));
    }
    let declared = Declared::of_graphs(directory)?;
    let assets = assets::of_graphs(directory, &declared)?;
    Ok((declared.config, assets))
}

/// What an adapter in a directory was made from, if it says so.
fn base_of_adapter(directory: &Path) -> Option<String> {
    let stated = small::object_if_there(&directory.join(ADAPTER), MAX_INDEX);
    let base = stated.ok().flatten()?.get("base_model_name_or_path")?.clone();
    base.as_str().map(str::to_owned)
}

/// Refuses weights that are not there: DeepSpeed's ZeRO-3 writes empty tensors where nothing gathers them.
fn refuse_empty(directory: &Path, files: &[TensorFile]) -> Result<(), CheckpointError> {
    let tensors = || files.iter().flat_map(TensorFile::tensors);
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

#[cfg(test)]
mod tests;
