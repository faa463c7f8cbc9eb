//! Which weights does a test use? Synthetic checkpoints of any size, in every layout, from nothing but a seed.
//!
//! Element `i` of a tensor is a function of the seed, the tensor's canonical name and `i` alone, so that layouts that
//! hold the same canonical tensors hold the same bits, files can be written in parallel and in pieces, and
//! `fvlm_conformance.reference.synth` writes byte for byte the same files where references are recorded. Geometry,
//! scales and outliers stand in `table.json`, which both programs read.

mod file;
pub mod image;
mod layout;
mod noise;
mod table;
mod tensors;
mod text_files;

use clap::{Args, ValueEnum};
use serde::Deserialize;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use table::Table;
use thiserror::Error;

/// Files above this many bytes are split, as transformers does.
pub const DEFAULT_SHARD_BYTES: u64 = 5_000_000_000;

/// Which geometry: a small one, or that of a published size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Deserialize)]
pub enum Size {
    /// The geometry of the demo model, 3 M parameters.
    #[value(name = "demo")]
    #[serde(rename = "demo")]
    Demo,
    /// FastVLM-0.5B.
    #[value(name = "0.5b")]
    #[serde(rename = "0.5b")]
    HalfB,
    /// FastVLM-1.5B.
    #[value(name = "1.5b")]
    #[serde(rename = "1.5b")]
    OneAndHalfB,
    /// FastVLM-7B.
    #[value(name = "7b")]
    #[serde(rename = "7b")]
    SevenB,
}

impl Size {
    /// The name on the command line, in `table.json` and in references.
    pub const fn name(self) -> &'static str {
        match self {
            Size::Demo => "demo",
            Size::HalfB => "0.5b",
            Size::OneAndHalfB => "1.5b",
            Size::SevenB => "7b",
        }
    }
}

/// How tensors are named, and which there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Layout {
    /// Apple's `LlavaQwen2ForCausalLM`; the values are those of `transformers`.
    Llava,
    /// transformers' `FastVlmForConditionalGeneration`, fused.
    Transformers,
    /// The same with train-time branches.
    TransformersTrain,
}

/// The element type of a checkpoint's floating-point tensors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stored {
    /// float32.
    Fp32,
    /// float16.
    Fp16,
    /// bfloat16.
    Bf16,
}

/// What to write: the flags of `fvlm-conform synth`.
#[derive(Debug, Clone, Args)]
pub struct Options {
    /// Geometry
    #[arg(long, value_enum)]
    pub size: Size,
    /// Names and branches of the tensors
    #[arg(long, value_enum)]
    pub layout: Layout,
    /// Element type of the tensors
    #[arg(long, value_enum, default_value = "fp32")]
    pub dtype: Stored,
    /// Another seed, other weights
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Plant the massive activations known from Qwen2
    #[arg(long)]
    pub outliers: bool,
    /// Split the tensors into files of at most this many bytes
    #[arg(long, value_name = "BYTES", default_value_t = DEFAULT_SHARD_BYTES)]
    pub shard_bytes: u64,
    /// A tokenizer.json to use instead of the byte-level stand-in
    #[arg(long, value_name = "FILE")]
    pub tokenizer: Option<PathBuf>,
    /// Directory to make
    #[arg(short, long, value_name = "DIR")]
    pub output: PathBuf,
}

/// What was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Summary {
    /// Tensors in all files.
    pub tensors: usize,
    /// Elements of the floating-point tensors.
    pub parameters: u64,
    /// Files of tensors.
    pub files: usize,
    /// Bytes of those files.
    pub bytes: u64,
}

/// Is told bytes done and bytes in all, and says whether to go on.
pub type Progress<'a> = dyn FnMut(u64, u64) -> ControlFlow<()> + 'a;

/// A checkpoint that could not be written.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SynthError {
    /// `table.json`, which is compiled in, does not say what is needed.
    #[error("synth/table.json: {reason}")]
    Table {
        /// What is wrong with it.
        reason: String,
    },
    /// The directory holds something.
    #[error("`{}` exists and is not empty, expected a new directory", path.display())]
    OutputNotEmpty {
        /// The directory.
        path: PathBuf,
    },
    /// The directory has no name of its own: `.`, `..` or the root.
    #[error("`{}` is no name of a directory, expected a new one", path.display())]
    OutputName {
        /// What was given.
        path: PathBuf,
    },
    /// A file could not be read or written.
    #[error("`{}`: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// A tokenizer that cannot serve this size.
    #[error("tokenizer `{}`: {reason}", path.display())]
    Tokenizer {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Whoever asked for it changed their mind.
    #[error("interrupted, nothing was written")]
    Interrupted,
}

impl SynthError {
    fn io(path: &Path) -> impl FnOnce(std::io::Error) -> SynthError + use<> {
        let path = path.to_owned();
        move |source| SynthError::Io { path, source }
    }
}

/// Writes a checkpoint: beside the directory at first, so that it appears whole or not at all. `progress` is told bytes
/// done and bytes in all, and says whether to go on.
///
/// # Errors
/// A directory that is not empty, a file that cannot be written, a tokenizer whose ids do not fit,
/// [`SynthError::Interrupted`] where `progress` breaks off: nothing stays then.
pub fn write(options: &Options, progress: &mut Progress<'_>) -> Result<Summary, SynthError> {
    let table = Table::read()?;
    let geometry = table.geometry(options.size)?;
    let output = &options.output;
    let exists = match std::fs::read_dir(output).map(Iterator::count) {
        Ok(0) => true,
        Ok(_) => return Err(SynthError::OutputNotEmpty { path: output.clone() }),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => false,
        Err(error) => return Err(SynthError::io(output)(error)),
    };
    let Some(name) = output.file_name() else {
        return Err(SynthError::OutputName { path: output.clone() });
    };
    let parent = parent_of(output);
    std::fs::create_dir_all(parent).map_err(SynthError::io(parent))?;
    let partial = tempfile::Builder::new()
        .prefix(&format!(".{}.partial-", name.to_string_lossy()))
        .tempdir_in(parent)
        .map_err(SynthError::io(parent))?;
    let written = partial.path().join("checkpoint");
    std::fs::create_dir(&written).map_err(SynthError::io(&written))?;
    let beside = Options {
        output: written,
        ..options.clone()
    };
    text_files::write(&beside, &table, geometry)?;
    let tensors = tensors::list(geometry, options.layout);
    let summary = file::write(&beside, &table, geometry, &tensors, progress)?;
    if exists {
        // An empty directory; not every system renames over one.
        std::fs::remove_dir(output).map_err(SynthError::io(output))?;
    }
    std::fs::rename(&beside.output, output).map_err(SynthError::io(output))?;
    Ok(summary)
}

fn parent_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// One tensor of a checkpoint, decoded: for tests that need a few values and no file.
///
/// # Errors
/// No rule of the table for the name.
pub fn values(
    seed: u64,
    name: &str,
    shape: &[u64],
    size: Size,
    outliers: bool,
) -> Result<Vec<f32>, SynthError> {
    let table = Table::read()?;
    let noise = noise::Noise::new(&table, table.geometry(size)?, seed, name, shape, outliers)?;
    let count: u64 = shape.iter().product();
    Ok((0..count).map(|i| noise.value(i)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use sha2::{Digest, Sha256};

    /// `hashes.json` is written by `synth.py --hashes` and checked by it and here.
    #[derive(Deserialize)]
    struct Hashes {
        tensors: Vec<TensorHash>,
        files: Vec<FileHash>,
        scenes: Vec<SceneHash>,
    }

    #[derive(Deserialize)]
    struct TensorHash {
        size: Size,
        seed: u64,
        name: String,
        shape: Vec<u64>,
        outliers: bool,
        sha256: String,
    }

    #[derive(Deserialize)]
    struct FileHash {
        layout: Layout,
        dtype: Stored,
        seed: u64,
        outliers: bool,
        shard_bytes: u64,
        sha256: std::collections::BTreeMap<String, String>,
    }

    #[derive(Deserialize)]
    struct SceneHash {
        width: u32,
        height: u32,
        seed: u64,
        sha256: String,
    }

    fn hashes() -> Hashes {
        serde_json::from_str(include_str!("hashes.json")).unwrap()
    }

    fn hex(bytes: &[u8]) -> String {
        Sha256::digest(bytes)
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect()
    }

    #[test]
    fn tensors_are_those_of_python() {
        let mut wrong = Vec::new();
        for case in hashes().tensors {
            let values = values(case.seed, &case.name, &case.shape, case.size, case.outliers).unwrap();
            let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
            if hex(&bytes) != case.sha256 {
                wrong.push(case.name);
            }
        }
        assert!(wrong.is_empty(), "differ from Python: {wrong:?}");
    }

    #[test]
    fn files_are_those_of_python() {
        let mut wrong = Vec::new();
        for case in hashes().files {
            let directory = tempfile::tempdir().unwrap();
            let options = Options {
                size: Size::Demo,
                layout: case.layout,
                dtype: case.dtype,
                seed: case.seed,
                outliers: case.outliers,
                shard_bytes: case.shard_bytes,
                tokenizer: None,
                output: directory.path().to_owned(),
            };
            write(&options, &mut |_, _| ControlFlow::Continue(())).unwrap();
            let mut found = std::collections::BTreeMap::new();
            for entry in std::fs::read_dir(directory.path()).unwrap() {
                let path = entry.unwrap().path();
                let name = path.file_name().unwrap().to_string_lossy().into_owned();
                found.insert(name, hex(&std::fs::read(&path).unwrap()));
            }
            if found != case.sha256 {
                wrong.push((case.layout, case.dtype, found, case.sha256));
            }
        }
        assert!(wrong.is_empty(), "differ from Python: {wrong:#?}");
    }

    #[test]
    fn scenes_are_those_of_python() {
        for case in hashes().scenes {
            let scene = image::scene(case.width, case.height, case.seed);
            assert_eq!(hex(&scene), case.sha256, "scene {} x {}", case.width, case.height);
        }
    }

    #[test]
    fn progress_ends_at_the_total() {
        let directory = tempfile::tempdir().unwrap();
        let options = Options {
            size: Size::Demo,
            layout: Layout::Llava,
            dtype: Stored::Bf16,
            seed: 7,
            outliers: false,
            shard_bytes: DEFAULT_SHARD_BYTES,
            tokenizer: None,
            output: directory.path().join("new"),
        };
        std::fs::create_dir(&options.output).unwrap();
        let mut seen = (0, 0);
        let mut note = |done, total| {
            seen = (done, total);
            ControlFlow::Continue(())
        };
        let summary = write(&options, &mut note).unwrap();
        assert_eq!(seen.0, seen.1);
        assert_eq!(summary.files, 1);
        assert!(matches!(
            write(&options, &mut |_, _| ControlFlow::Continue(())),
            Err(SynthError::OutputNotEmpty { .. })
        ));
        let beside: Vec<_> = std::fs::read_dir(directory.path())
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect();
        assert_eq!(
            beside,
            [options.output],
            "something is left beside the checkpoint"
        );
    }

    #[test]
    fn a_refused_checkpoint_leaves_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let tokenizer = directory.path().join("tokenizer.json");
        std::fs::write(&tokenizer, "{}").unwrap();
        let options = Options {
            size: Size::Demo,
            layout: Layout::Transformers,
            dtype: Stored::Fp32,
            seed: 1,
            outliers: false,
            shard_bytes: DEFAULT_SHARD_BYTES,
            tokenizer: Some(tokenizer),
            output: directory.path().join("new"),
        };
        let error = write(&options, &mut |_, _| ControlFlow::Continue(())).unwrap_err();
        assert!(matches!(error, SynthError::Tokenizer { .. }), "{error}");
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
        let interrupted = Options {
            tokenizer: None,
            ..options
        };
        let error = write(&interrupted, &mut |_, _| ControlFlow::Break(())).unwrap_err();
        assert!(matches!(error, SynthError::Interrupted), "{error}");
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
        let nameless = Options {
            output: "..".into(),
            ..interrupted
        };
        assert!(write(&nameless, &mut |_, _| ControlFlow::Continue(())).is_err());
    }
}
