//! What does an export hold? The account that `--dry-run`, `--json` and the last lines of a run are made from.

use crate::forms::{Forms, Lowered, Opened};
use crate::mlpackage::{self, Package, Packages};
use crate::onnx;
use models::bundle::{GraphEntry, ModelInfo, Precision, Target};
use models::checkpoint::{Accounting, Asset, Origin};
use serde::{Serialize, Serializer};
use std::path::PathBuf;

/// An export's account. The JSON form is stable.
#[derive(Debug, Clone, Serialize)]
pub struct Summary {
    /// The bundle; `null` after a dry run.
    #[serde(serialize_with = "shown")]
    pub output: Option<PathBuf>,
    /// In JSON only, and only where `output` is no Unicode: its bytes in hex.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub output_hex: Option<String>,
    /// Bytes of the bundle's files without `bundle.json`; of a dry run, without the graphs' structure either.
    pub bytes: u64,
    /// What was exported, with parameter counts of the canonical weights.
    pub model: ModelInfo,
    /// The exported forms.
    pub variants: Vec<VariantSummary>,
    /// Core ML packages.
    pub packages: Vec<PackageSummary>,
    /// The small files, terms of use among them.
    pub files: Vec<FileSummary>,
    /// What became of every tensor of the checkpoint.
    pub accounting: Accounting,
    /// What the user should know.
    pub warnings: Vec<String>,
}

/// One exported form.
#[derive(Debug, Clone, Serialize)]
pub struct VariantSummary {
    /// For which engines.
    pub target: Target,
    /// How weights are stored.
    pub precision: Precision,
    /// ONNX opset.
    pub opset: i64,
    /// Vision encoder, token embedding, decoder, then decoders for several new positions, then vision encoders for other
    /// image sizes.
    pub graphs: Vec<GraphSummary>,
}

/// One graph.
#[derive(Debug, Clone, Serialize)]
pub struct GraphSummary {
    /// Files, inputs and outputs.
    #[serde(flatten)]
    pub entry: GraphEntry,
    /// Operations.
    pub nodes: usize,
    /// Bytes of weights in the data file that this graph adds; those that it shares count elsewhere.
    pub data_bytes: u64,
}

/// One Core ML package.
#[derive(Debug, Clone, Serialize)]
pub struct PackageSummary {
    /// Directory of the package in the bundle.
    pub path: String,
    /// How weights are stored.
    pub precision: Precision,
    /// Names of its functions.
    pub functions: Vec<String>,
    /// Bytes of its weight file.
    pub data_bytes: u64,
}

/// A small file that the networks' clients read.
#[derive(Debug, Clone, Serialize)]
pub struct FileSummary {
    /// Path in the bundle.
    pub path: String,
    /// Whether the checkpoint has it.
    pub origin: FileOrigin,
    /// What was changed, or what it was derived from; empty for a file that is kept.
    pub how: String,
}

/// Whether the checkpoint has a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FileOrigin {
    /// It has, and this is it.
    Kept,
    /// It has, and this is a changed form of it.
    Adapted,
    /// It has none: this one is derived from what else there is.
    Derived,
}

/// A path as text, whatever it is made of.
fn shown<S: Serializer>(path: &Option<PathBuf>, serializer: S) -> Result<S::Ok, S::Error> {
    path.as_ref()
        .map(|path| path.to_string_lossy())
        .serialize(serializer)
}

impl Summary {
    pub(crate) fn new(opened: &Opened<'_>, model: ModelInfo, forms: &Forms) -> Self {
        let assets: usize = opened.assets.files.iter().map(|asset| asset.contents.len()).sum();
        Summary {
            output: None,
            output_hex: None,
            bytes: forms.data_bytes() + u64::try_from(assets).unwrap_or(u64::MAX),
            model,
            variants: forms.variants.iter().map(variant).collect(),
            packages: forms.packages.iter().flat_map(packages).collect(),
            files: opened.assets.files.iter().map(file).collect(),
            accounting: opened.accounting.clone(),
            warnings: opened.accounting.warnings.clone(),
        }
    }
}

fn variant(lowered: &Lowered) -> VariantSummary {
    let graphs = lowered.all().map(|graph| GraphSummary {
        entry: onnx::entry(graph),
        nodes: graph.graph.nodes.len(),
        data_bytes: graph.data.length,
    });
    VariantSummary {
        target: lowered.variant.target(),
        precision: lowered.variant.precision(),
        opset: models::graph::OPSET,
        graphs: graphs.collect(),
    }
}

/// The account of a small file.
pub(crate) fn file(asset: &Asset) -> FileSummary {
    let (origin, how) = match &asset.origin {
        Origin::Kept => (FileOrigin::Kept, ""),
        Origin::Adapted(how) => (FileOrigin::Adapted, how.as_str()),
        Origin::Derived(how) => (FileOrigin::Derived, how.as_str()),
    };
    FileSummary {
        path: asset.path.clone(),
        origin,
        how: how.to_owned(),
    }
}

fn packages(packages: &Packages) -> Vec<PackageSummary> {
    let one = |package: &Package| PackageSummary {
        path: mlpackage::in_bundle(&package.file_name),
        precision: packages.precision,
        functions: package.functions.clone(),
        data_bytes: package.data.length,
    };
    packages.all().map(one).collect()
}
