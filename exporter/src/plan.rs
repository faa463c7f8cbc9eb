//! What exactly will be exported? Everything decided, nothing optional left.

use models::checkpoint::Layout;
use models::dtype::DType;
use std::path::PathBuf;

/// An export, ready to be carried out by [`crate::export`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExportPlan {
    /// Where the checkpoint comes from.
    pub source: Source,
    /// The bundle's directory.
    pub output: PathBuf,
    /// One variant for each, in this order, each once.
    pub precisions: Vec<Precision>,
    /// The checkpoint's layout, where it must not be detected.
    pub layout: Option<Layout>,
    /// Whether an existing bundle is replaced. Anything else that exists is never touched.
    pub overwrite: bool,
    /// Account for everything but write nothing.
    pub dry_run: bool,
}

impl ExportPlan {
    /// The default export of a model: float32, layout detected, nothing replaced.
    pub fn new(source: Source, output: PathBuf) -> Self {
        ExportPlan {
            source,
            output,
            precisions: vec![Precision::Fp32],
            layout: None,
            overwrite: false,
            dry_run: false,
        }
    }
}

/// Where a checkpoint comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A directory on this machine.
    Directory(PathBuf),
    /// The embedded demo model.
    Demo,
    /// A model of the Hugging Face hub, read from the local cache.
    Hub {
        /// `org/name`.
        id: String,
        /// Branch, tag or commit.
        revision: String,
    },
}

/// How weights are stored, and most products computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Precision {
    /// float32 throughout.
    Fp32,
    /// float16 weights and KV cache; sums that need it in float32.
    Fp16,
}

impl Precision {
    /// `fp32` or `fp16`, as flags and bundles spell it.
    pub const fn name(self) -> &'static str {
        match self {
            Precision::Fp32 => "fp32",
            Precision::Fp16 => "fp16",
        }
    }

    /// What file names of graphs end with, before the extension: the ecosystem's suffixes.
    pub const fn suffix(self) -> &'static str {
        match self {
            Precision::Fp32 => "",
            Precision::Fp16 => "_fp16",
        }
    }

    /// Element type of the KV cache's inputs and outputs.
    pub const fn kv_dtype(self) -> DType {
        match self {
            Precision::Fp32 => DType::Float32,
            Precision::Fp16 => DType::Float16,
        }
    }
}
