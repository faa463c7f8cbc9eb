//! Adapters: what a fine-tune leaves behind beside the model that it was made from. PEFT's LoRA and DoRA, and
//! what LLaVA's and ml-fastvlm's training scripts write.
//!
//! | file | what |
//! |---|---|
//! | `adapter_model.safetensors` or `.bin`, and `adapter_config.json` | LoRA, DoRA, whole modules |
//! | `non_lora_trainables.bin` | tensors that were trained beside LoRA: the projector, the tower |
//! | `mm_projector.bin` | a projector |
//!
//! An adapter is what it makes of each tensor of its base: `M(W)`. What is exported is
//! `W + sum of weight * (M(W) - W)` over all adapters; with one adapter of weight 1 that is `M(W)`.

#![deny(clippy::as_conversions)]

mod applied;
mod beside;
mod config;
mod fit;
mod merge;
mod names;
mod pattern;
mod reach;
mod scan;
mod whole;

pub(super) use applied::{Applied, Reading};
pub use fit::Merged;
pub(super) use fit::{Fitted, Target, fit};
pub(super) use merge::Patch;

use super::{ADAPTER, CheckpointError, SourceFile, TensorFile};
use crate::config::CONFIG;
use config::LoraConfig;
use std::fs;
use std::path::{Path, PathBuf};

/// File names of PEFT, the first that is there is read.
const LORA: [&str; 2] = ["adapter_model.safetensors", "adapter_model.bin"];
/// What LLaVA's training script writes beside LoRA.
const TRAINABLES: &str = "non_lora_trainables.bin";
/// What it writes where only the projector was trained.
const PROJECTOR: &str = "mm_projector.bin";
/// What is there instead, and what to do with it.
const OTHERS: [(&str, &str); 8] = [
    (
        "adapter_model.safetensors.index.json",
        "an adapter in several files, which are not read: save it with a larger `max_shard_size`",
    ),
    (
        "adapter_model.bin.index.json",
        "an adapter in several files, which are not read: save it with a larger `max_shard_size`",
    ),
    (
        "adapters.safetensors",
        "an adapter of MLX: fuse it into the weights first (`fuse` of mlx_lm or mlx_vlm)",
    ),
    (
        "adapters.npz",
        "an adapter of MLX: fuse it into the weights first (`fuse` of mlx_lm or mlx_vlm)",
    ),
    ("model.safetensors", WHOLE),
    ("model.safetensors.index.json", WHOLE),
    ("pytorch_model.bin", WHOLE),
    ("pytorch_model.bin.index.json", WHOLE),
];
const WHOLE: &str = "a whole model, which is a checkpoint and no adapter";

/// What a fine-tune left behind. Its tensors stay in the files.
#[derive(Debug)]
pub struct Adapter {
    path: PathBuf,
    name: String,
    weight: f64,
    config: Option<LoraConfig>,
    files: Vec<AdapterFile>,
    sources: Vec<SourceFile>,
    /// What the user should know.
    warnings: Vec<String>,
}

/// A file of an adapter's tensors.
#[derive(Debug)]
struct AdapterFile {
    tensors: TensorFile,
    kind: Kind,
}

/// What is expected in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Everything.
    Lora,
    /// Tensors that take the place of the base's.
    Trainables,
    /// The same, and all of a projector.
    Projector,
}

impl Adapter {
    /// Opens the adapter in a directory, or a file of tensors that take the place of the base's. What it
    /// makes of the base is multiplied by `weight`.
    ///
    /// # Errors
    /// A weight that is no number or 0; a directory without an adapter; a file that is not what its format
    /// demands; a config that asks for something this build does not do.
    pub fn open(path: &Path, weight: f64) -> Result<Adapter, CheckpointError> {
        let not_an_adapter = |problem: String| CheckpointError::NotAnAdapter {
            path: path.to_owned(),
            problem,
        };
        if !weight.is_finite() || weight == 0.0 {
            return Err(not_an_adapter(format!(
                "is given the weight {weight}, expected a number other than 0"
            )));
        }
        let whole = path.canonicalize().map_err(|source| CheckpointError::Io {
            path: path.to_owned(),
            source,
        })?;
        let name = whole.file_name().map_or_else(
            || "adapter".to_owned(),
            |name| name.to_string_lossy().into_owned(),
        );
        let mut adapter = Adapter {
            path: path.to_owned(),
            name,
            weight,
            config: None,
            files: Vec::new(),
            sources: Vec::new(),
            warnings: Vec::new(),
        };
        if whole.is_dir() {
            adapter.open_directory().map_err(|problem| match problem {
                Problem::Here(problem) => not_an_adapter(problem),
                Problem::Inside(error) => error,
            })?;
        } else {
            adapter.add(path, Kind::Trainables)?;
        }
        adapter.sources.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(adapter)
    }

    fn open_directory(&mut self) -> Result<(), Problem> {
        let directory = self.path.clone();
        let there = |name: &str| directory.join(name).exists();
        let config = directory.join(ADAPTER);
        if config.exists() {
            self.note(&config)?;
            let config = LoraConfig::read(&config)?;
            self.warnings.extend(config.warnings.iter().cloned());
            self.config = Some(config);
        }
        if let [read, other] = LORA
            && there(read)
            && there(other)
        {
            self.warnings.push(format!(
                "`{other}` stands beside `{read}` and, as in peft, is not read"
            ));
        }
        for (name, kind) in files(&there).map_err(Problem::Here)? {
            self.add(&directory.join(name), kind)?;
        }
        // Looked at with the base's.
        if there(CONFIG) {
            self.note(&directory.join(CONFIG))?;
        }
        Ok(())
    }

    fn add(&mut self, path: &Path, kind: Kind) -> Result<(), CheckpointError> {
        // LLaVA's script writes them whatever was trained: beside LoRA, perhaps nothing.
        let beside = kind == Kind::Trainables && self.files.iter().any(|file| file.kind == Kind::Lora);
        let tensors = match beside {
            true => TensorFile::open_any(path)?,
            false => TensorFile::open(path)?,
        };
        let file = file_name(path);
        if let [first, rest @ ..] = tensors.skipped() {
            let more = if rest.is_empty() {
                String::new()
            } else {
                format!(" and {} more", rest.len())
            };
            self.warnings.push(format!(
                "`{file}` has `{first}`{more} beside its tensors, which is not used"
            ));
        }
        self.note(path)?;
        self.files.push(AdapterFile { tensors, kind });
        Ok(())
    }

    /// Notes a file that is read.
    fn note(&mut self, path: &Path) -> Result<(), CheckpointError> {
        let found = fs::metadata(path).map_err(|source| CheckpointError::Io {
            path: path.to_owned(),
            source,
        })?;
        self.sources.push(SourceFile {
            path: path.to_owned(),
            bytes: found.len(),
        });
        Ok(())
    }

    /// Where it lies, as it was given.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// For people: the name of its directory or file, or what it was [called](Adapter::called).
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The same adapter under another name: that of a model of the hub, say.
    #[must_use]
    pub fn called(self, name: String) -> Adapter {
        Adapter { name, ..self }
    }

    /// What it makes of the base is multiplied by this.
    pub fn weight(&self) -> f64 {
        self.weight
    }

    /// The files that are read, sorted.
    pub fn files(&self) -> &[SourceFile] {
        &self.sources
    }

    /// What it says that it was trained on: a directory or a model of the hub, and which revision of that.
    pub fn base(&self) -> Option<(&str, Option<&str>)> {
        let config = self.config.as_ref()?;
        Some((config.base.as_deref()?, config.revision.as_deref()))
    }
}

/// Something that is wrong with a directory, or with a file in it.
enum Problem {
    Here(String),
    Inside(CheckpointError),
}

impl From<CheckpointError> for Problem {
    fn from(error: CheckpointError) -> Self {
        Problem::Inside(error)
    }
}

/// The files of tensors that are read of an adapter, where `there` says which files it has, by name: what
/// [`Adapter::open`] reads of a directory.
///
/// # Errors
/// Why these files are no adapter; reads on after who has them.
pub fn adapter_files(there: &dyn Fn(&str) -> bool) -> Result<Vec<&'static str>, String> {
    Ok(files(there)?.into_iter().map(|(name, _)| name).collect())
}

/// As [`adapter_files`], and what is expected in each.
fn files(there: &dyn Fn(&str) -> bool) -> Result<Vec<(&'static str, Kind)>, String> {
    let [first, second] = LORA;
    let others = OTHERS.iter().find(|(name, _)| there(name));
    let others = others.map_or(String::new(), |(name, what)| format!("; `{name}` is {what}"));
    let lora = match (LORA.into_iter().find(|name| there(name)), there(ADAPTER)) {
        (Some(name), false) => {
            return Err(format!(
                "has `{name}` without `{ADAPTER}`, which states its rank and alpha"
            ));
        }
        (None, true) => {
            return Err(format!(
                "has `{ADAPTER}` and neither `{first}` nor `{second}`{others}"
            ));
        }
        (lora, _) => lora.map(|name| (name, Kind::Lora)),
    };
    let beside = [(TRAINABLES, Kind::Trainables), (PROJECTOR, Kind::Projector)];
    let beside = beside.into_iter().filter(|(name, _)| there(name));
    let found: Vec<_> = lora.into_iter().chain(beside).collect();
    if found.is_empty() {
        return Err(format!(
            "has no `{first}`, `{second}`, `{TRAINABLES}` or `{PROJECTOR}`, by one of which an adapter is \
             known{others}"
        ));
    }
    Ok(found)
}

/// Whether the `adapter_config.json` in a directory, where there is one, asks for what this build does.
///
/// # Errors
/// As [`Adapter::open`] of that file.
pub fn check_adapter_config(directory: &Path) -> Result<(), CheckpointError> {
    let config = directory.join(ADAPTER);
    if config.exists() {
        LoraConfig::read(&config)?;
    }
    Ok(())
}

/// The name of a file, for messages.
fn file_name(path: &Path) -> String {
    path.file_name().map_or_else(
        || path.display().to_string(),
        |name| name.to_string_lossy().into_owned(),
    )
}
