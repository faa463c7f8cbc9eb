//! How is a graph written for Core ML itself? As an ML Program in a package, with its weights in one file beside it.
//!
//! ```text
//! decoder.mlpackage/
//!   Manifest.json                                 which file is what
//!   Data/com.apple.CoreML/model.mlmodel           functions step, prefill_64, ...; the cache is their state
//!   Data/com.apple.CoreML/weights/weight.bin      what all functions read, once
//! ```
//!
//! Prompt and token are two functions, not one with enumerated shapes: a function can be loaded and specialised by itself,
//! Core ML's compiler sees fixed lengths in each, and states with enumerated shapes are not documented. All read the same
//! records of the weight file.

pub mod blob;
pub mod lower;
pub mod proto;

use crate::error::ExportError;
use crate::files;
use crate::onnx::external::{self, DataFile};
use crate::passes;
use crate::plan::Precision;
use crate::report::Report;
use blob::Blob;
use models::arch::fixed::{self, Lengths};
use models::arch::stateful;
use models::bundle::{CoreMlPackages, EmbeddingRows, FileEntry};
use models::config::ModelConfig;
use models::dtype::DType;
use models::fused::BLOCK;
use models::graph::{Graph, Op, Source, ValueId, WeightForm, WeightRef};
use models::weights::Weights;
use prost::Message as _;
use proto::{
    ArrayDataType, ArrayFeatureType, DataType, FeatureDescription, FeatureType, FunctionDescription,
    Metadata, Model, ModelDescription, Program, StateFeatureType, feature_type,
};
use std::collections::BTreeMap;
use std::path::Path;

/// The weight file inside a model.
pub const WEIGHT_FILE: &str = "weights/weight.bin";

/// Where a model lies inside a package.
pub const MODEL_DIRECTORY: &str = "Data/com.apple.CoreML";

/// Elements below which a weight is not worth compressing.
const SMALL: u64 = 2048;

/// The first systems that load a package.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deployment {
    /// iOS 16, macOS 13.
    Ios16,
    /// iOS 18, macOS 15: states, functions, attention in one operator, compressed weights in blocks.
    Ios18,
}

impl Deployment {
    /// The operator set of programs.
    pub const fn opset(self) -> &'static str {
        match self {
            Deployment::Ios16 => "CoreML6",
            Deployment::Ios18 => "CoreML8",
        }
    }

    const fn specification(self) -> i32 {
        match self {
            Deployment::Ios16 => 7,
            Deployment::Ios18 => 9,
        }
    }

    const fn systems(self) -> &'static str {
        match self {
            Deployment::Ios16 => "iOS 16, macOS 13",
            Deployment::Ios18 => "iOS 18, macOS 15",
        }
    }
}

/// How a weight lies in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Storage {
    /// In its own type.
    Plain,
    /// Signed bytes, a scale for each output.
    Int8,
    /// Signed nibbles, a scale for each output and 32 inputs.
    Int4,
}

/// The directory of Core ML packages inside a bundle.
pub(crate) const DIRECTORY: &str = "coreml";

/// The path in the bundle of a file or package there.
pub(crate) fn in_bundle(name: &str) -> String {
    format!("{DIRECTORY}/{name}")
}

/// What the packages of a precision are made from.
#[derive(Debug, Clone, Copy)]
pub struct Recipe<'a> {
    /// The networks' sizes.
    pub config: &'a ModelConfig,
    /// How weights are stored.
    pub precision: Precision,
    /// Slots of the cache.
    pub context: u64,
    /// New positions of the prefill functions, ascending.
    pub prefill: &'a [u64],
    /// Whether there is an encoder for iOS 16 too.
    pub older: bool,
    /// Whether the encoders are laid out for the Neural Engine.
    pub neural_engine: bool,
    /// The model's name, for people.
    pub name: &'a str,
}

/// The packages of a precision, nothing written yet.
#[derive(Debug)]
pub struct Packages {
    /// How weights are stored.
    pub precision: Precision,
    /// The image encoder.
    pub vision_encoder: Package,
    /// The decoder.
    pub decoder: Package,
    /// The image encoder for iOS 16, where it was asked for.
    pub vision_encoder_ios16: Option<Package>,
    /// The embedding's rows in the decoder's weight file; the path is relative to the directory of the packages.
    pub embedding: EmbeddingRows,
}

impl Packages {
    /// All of them, in the order in which they are written.
    pub fn all(&self) -> impl Iterator<Item = &Package> {
        [&self.vision_encoder, &self.decoder]
            .into_iter()
            .chain(&self.vision_encoder_ios16)
    }
}

/// A package on its way into a directory.
#[derive(Debug)]
pub struct Package {
    /// `decoder_int8.mlpackage`
    pub file_name: String,
    /// Its weight file.
    pub data: DataFile,
    /// The model, without weights.
    pub model: Model,
    /// Names of its functions.
    pub functions: Vec<String>,
}

/// Builds, rewrites and lowers the networks, and gives every weight its place.
///
/// # Errors
/// A config that does not fit, or a graph that has no form.
pub fn prepare(recipe: Recipe<'_>) -> Result<Packages, ExportError> {
    if !CoreMlPackages::PRECISIONS.contains(&recipe.precision) {
        return Err(ExportError::NoPackages {
            precision: recipe.precision,
        });
    }
    let suffix = match recipe.precision {
        Precision::Fp16 => String::new(),
        other => format!("_{}", other.name()),
    };
    let encoder = |graph: Graph, precision: Precision, deployment: Deployment, stem: &str| {
        let about = format!("the image encoder of {}", recipe.name);
        let mut plan = Plan::new(format!("{stem}{suffix}.mlpackage"), about, deployment);
        let graph = if recipe.neural_engine {
            passes::for_neural_engine(&graph, precision)?
        } else {
            passes::stored_as(graph, precision)?
        };
        plan.add("main", graph, precision)?;
        plan.finish(&[])
    };
    let graph = stateful::vision_encoder(recipe.config)?;
    let vision_encoder = encoder(graph, recipe.precision, Deployment::Ios18, "vision_encoder")?;

    let about = format!("the language model of {}; its cache is a state", recipe.name);
    let mut plan = Plan::new(format!("decoder{suffix}.mlpackage"), about, Deployment::Ios18);
    for new in std::iter::once(&1).chain(recipe.prefill) {
        let lengths = Lengths {
            context: recipe.context,
            new: *new,
        };
        let graph = passes::stored_as(stateful::decoder(recipe.config, lengths)?, recipe.precision)?;
        plan.add(&function_name(*new), graph, recipe.precision)?;
    }
    let embedding = plan.embedding(recipe.config, recipe.precision)?;
    let states = stateful::CACHES.into_iter().zip(stateful::UPDATED);
    let decoder = plan.finish(&states.collect::<Vec<_>>())?;

    let older = || {
        // Its operator set has no attention and no compression in blocks: products, in the type of the rest.
        let precision = match recipe.precision {
            Precision::Fp32 => Precision::Fp32,
            Precision::Fp16 | Precision::Int8 | Precision::Q8 | Precision::Q4 | Precision::Q4F16 => {
                Precision::Fp16
            }
        };
        let graph = fixed::vision_encoder(recipe.config)?;
        encoder(graph, precision, Deployment::Ios16, "vision_encoder_ios16")
    };
    Ok(Packages {
        precision: recipe.precision,
        vision_encoder,
        decoder,
        vision_encoder_ios16: recipe.older.then(older).transpose()?,
        embedding,
    })
}

/// The function for a number of new positions: `step`, `prefill_64`.
pub fn function_name(new: u64) -> String {
    match new {
        1 => "step".to_owned(),
        new => format!("prefill_{new}"),
    }
}

/// Writes a package into a directory. Returns its files, relative to that directory.
///
/// # Errors
/// Weights that cannot be read, files that cannot be written, or an interruption. Partial files stay: the directory
/// is the caller's to remove.
pub fn write(
    package: &Package,
    weights: &dyn Weights,
    directory: &Path,
    report: &mut dyn Report,
) -> Result<Vec<FileEntry>, ExportError> {
    let root = directory.join(&package.file_name);
    let model = root.join(MODEL_DIRECTORY);
    let data = model.join("weights");
    std::fs::create_dir_all(&data).map_err(ExportError::io("create", &data))?;
    let mut written = Vec::new();
    let mut add = |folder: &str, entry: FileEntry| {
        let path = format!("{}/{folder}{}", package.file_name, entry.path);
        written.push(FileEntry { path, ..entry });
    };
    let folder = format!("{MODEL_DIRECTORY}/");
    add(
        &format!("{folder}weights/"),
        external::write(&package.data, weights, &data, report)?,
    );
    let bytes = package.model.encode_to_vec();
    add(&folder, files::write(&model, "model.mlmodel", &bytes)?);
    add("", files::write(&root, "Manifest.json", manifest().as_bytes())?);
    for directory in [&data, &model, &root.join("Data"), &root] {
        files::sync_directory(directory);
    }
    Ok(written)
}

/// Which file is what, spelled as coremltools spells it: it writes this file anew whenever it opens a package, and the
/// bundle's hash of it is to stay true. The identifiers name entries of this file only.
fn manifest() -> String {
    const MODEL: &str = "8C1F6C2E-6B5E-4E0C-9C3B-5A0F6D1B7A01";
    const WEIGHTS: &str = "8C1F6C2E-6B5E-4E0C-9C3B-5A0F6D1B7A02";
    let entry = |description: &str, name: &str| {
        serde_json::json!({
            "author": "com.apple.CoreML",
            "description": description,
            "name": name,
            "path": format!("com.apple.CoreML/{name}"),
        })
    };
    let manifest = serde_json::json!({
        "fileFormatVersion": "1.0.0",
        "itemInfoEntries": {
            MODEL: entry("CoreML Model Specification", "model.mlmodel"),
            WEIGHTS: entry("CoreML Model Weights", "weights"),
        },
        "rootModelIdentifier": MODEL,
    });
    // Two spaces a level to four.
    let lines = format!("{manifest:#}\n");
    lines
        .lines()
        .map(|line| {
            let indent = line.len() - line.trim_start().len();
            format!("{}{line}\n", " ".repeat(indent))
        })
        .collect()
}

/// A package while its functions are gathered.
struct Plan {
    file_name: String,
    about: String,
    deployment: Deployment,
    functions: Vec<(String, Graph, BTreeMap<ValueId, Storage>)>,
    blob: Blob,
}

impl Plan {
    fn new(file_name: String, about: String, deployment: Deployment) -> Self {
        Plan {
            file_name,
            about,
            deployment,
            functions: Vec::new(),
            blob: Blob::default(),
        }
    }

    fn add(&mut self, name: &str, graph: Graph, precision: Precision) -> Result<(), ExportError> {
        // Before any weight: the file ends with one.
        lower::place_literals(&graph, &mut self.blob)?;
        let storage = storage(&graph, precision);
        for (index, value) in graph.values.iter().enumerate() {
            let Source::Weight(weight) = &value.source else {
                continue;
            };
            let shape = lower::shape(value)?;
            let storage = storage.get(&ValueId(index)).copied().unwrap_or(Storage::Plain);
            self.place(weight, value.dtype, &shape, storage)?;
        }
        self.functions.push((name.to_owned(), graph, storage));
        Ok(())
    }

    fn place(
        &mut self,
        weight: &WeightRef,
        dtype: DType,
        shape: &[u64],
        storage: Storage,
    ) -> Result<(), ExportError> {
        match storage.parts(weight, shape) {
            None => {
                let count: u64 = shape.iter().product();
                let bytes = count * u64::try_from(dtype.size()).unwrap_or(u64::MAX);
                self.blob.weight(weight, dtype, lower::data_type(dtype)?, bytes);
            }
            Some((data, scales)) => {
                for part in [data, scales] {
                    self.blob.weight(&part.weight, part.dtype, part.kind, part.bytes);
                }
            }
        }
        Ok(())
    }

    /// The embedding is looked up outside, a row for a token: it lies in the file whether the head reads it or not.
    fn embedding(
        &mut self,
        config: &ModelConfig,
        precision: Precision,
    ) -> Result<EmbeddingRows, ExportError> {
        let weight = WeightRef {
            name: stateful::EMBED_TOKENS.to_owned(),
            form: WeightForm::Stored,
        };
        let shape = [config.decoder.vocab_size, config.decoder.hidden_size];
        let (dtype, storage) = match precision {
            Precision::Fp32 => (DType::Float32, Storage::Plain),
            Precision::Fp16 => (DType::Float16, Storage::Plain),
            Precision::Int8 | Precision::Q8 | Precision::Q4 | Precision::Q4F16 => {
                (DType::Float16, compressed(&weight, &shape, precision))
            }
        };
        self.place(&weight, dtype, &shape, storage)?;
        let (offset, scales) = match storage.parts(&weight, &shape) {
            None => (self.blob.weight_data(&weight, dtype)?, None),
            Some((data, scales)) => (
                self.blob.weight_data(&data.weight, data.dtype)?,
                Some(self.blob.weight_data(&scales.weight, scales.dtype)?),
            ),
        };
        Ok(EmbeddingRows {
            path: format!("{}/{MODEL_DIRECTORY}/{WEIGHT_FILE}", self.file_name),
            dtype,
            offset,
            scales,
        })
    }

    fn finish(self, states: &[(&str, &str)]) -> Result<Package, ExportError> {
        let mut functions = BTreeMap::new();
        let mut described = Vec::new();
        for (name, graph, storage) in &self.functions {
            let function = lower::lower(graph, states, storage, &self.blob, self.deployment)?;
            functions.insert(name.clone(), function);
            described.push(describe(name, graph, states)?);
        }
        let metadata = Metadata {
            short_description: self.about,
            version_string: env!("CARGO_PKG_VERSION").to_owned(),
            author: format!("fvlm-export {}", env!("CARGO_PKG_VERSION")),
            license: "that of the weights: see the licence of the model it was made from".to_owned(),
            user_defined: BTreeMap::from([
                ("fvlm.systems".to_owned(), self.deployment.systems().to_owned()),
                (
                    "fvlm.device_class".to_owned(),
                    "made for the Neural Engine and the GPU of Apple silicon; placement is Core ML's"
                        .to_owned(),
                ),
            ]),
        };
        let mut description = ModelDescription {
            metadata: Some(metadata),
            ..ModelDescription::default()
        };
        let names = described.iter().map(|function| function.name.clone()).collect();
        if let [only] = &mut described[..] {
            description.input = std::mem::take(&mut only.input);
            description.output = std::mem::take(&mut only.output);
        } else {
            description.default_function_name = described
                .first()
                .map(|function| function.name.clone())
                .unwrap_or_default();
            description.functions = described;
        }
        let model = Model {
            specification_version: self.deployment.specification(),
            description: Some(description),
            ml_program: Some(Program {
                version: 1,
                functions,
            }),
        };
        Ok(Package {
            data: self.blob.file("weight.bin")?,
            file_name: self.file_name,
            model,
            functions: names,
        })
    }
}

/// How each weight of a graph is stored, where that is not in its own type.
fn storage(graph: &Graph, precision: Precision) -> BTreeMap<ValueId, Storage> {
    let product = |op: &Op| matches!(op, Op::Gemm { .. } | Op::Conv { group: 1, .. });
    let read = graph.nodes.iter().filter(|node| product(&node.op));
    let weights = read.filter_map(|node| node.inputs.get(1));
    let stored = weights.filter_map(|id| {
        let value = graph.value(*id);
        let shape = lower::shape(value).ok()?;
        match &value.source {
            Source::Weight(weight) => Some((*id, compressed(weight, &shape, precision))),
            Source::Input | Source::Node | Source::Constant(_) => None,
        }
    });
    stored.collect()
}

/// How a matrix is stored: nibbles are for the decoder's layers, as in the other forms.
fn compressed(weight: &WeightRef, shape: &[u64], precision: Precision) -> Storage {
    let columns = shape.get(1).copied().unwrap_or(1);
    let small = shape.iter().product::<u64>() < SMALL;
    match precision {
        _ if small => Storage::Plain,
        Precision::Fp32 | Precision::Fp16 => Storage::Plain,
        Precision::Q4 | Precision::Q4F16
            if weight.name.starts_with("language_model.layers.") && columns.is_multiple_of(BLOCK) =>
        {
            Storage::Int4
        }
        Precision::Int8 | Precision::Q8 | Precision::Q4 | Precision::Q4F16 => Storage::Int8,
    }
}

/// What callers of a function see.
fn describe(name: &str, graph: &Graph, states: &[(&str, &str)]) -> Result<FunctionDescription, ExportError> {
    let mut function = FunctionDescription {
        name: name.to_owned(),
        ..FunctionDescription::default()
    };
    for id in &graph.inputs {
        let value = graph.value(*id);
        let array = array(value)?;
        if states.iter().any(|(input, _)| *input == value.name) {
            let state = StateFeatureType {
                array_type: Some(array),
            };
            let kind = feature_type::Type::State(state);
            function.state.push(feature(&value.name, kind));
        } else {
            function
                .input
                .push(feature(&value.name, feature_type::Type::MultiArray(array)));
        }
    }
    for id in &graph.outputs {
        let value = graph.value(*id);
        if !states.iter().any(|(_, output)| *output == value.name) {
            let kind = feature_type::Type::MultiArray(array(value)?);
            function.output.push(feature(&value.name, kind));
        }
    }
    Ok(function)
}

fn feature(name: &str, kind: feature_type::Type) -> FeatureDescription {
    let about = match name {
        "pixel_values" => "the image, resized, cropped and normalised: red, green, blue",
        "image_features" => "the image as embeddings, in reading order",
        "inputs_embeds" => "embeddings of the new positions, padded behind",
        "position" => "the slot of the first new position: how many positions the cache holds",
        "last" => "which new position is the last one, from 0",
        "logits" => "scores of the token that follows the last position",
        "key_cache" | "value_cache" => "layers, heads, slots, channels",
        _ => "",
    };
    FeatureDescription {
        name: name.to_owned(),
        short_description: about.to_owned(),
        r#type: Some(FeatureType { r#type: Some(kind) }),
    }
}

fn array(value: &models::graph::Value) -> Result<ArrayFeatureType, ExportError> {
    let kind = match lower::data_type(value.dtype)? {
        DataType::Float16 => ArrayDataType::Float16,
        DataType::Int32 => ArrayDataType::Int32,
        DataType::Float32 => ArrayDataType::Float32,
        DataType::Unused | DataType::Bool | DataType::String | DataType::Int8 | DataType::Int4 => {
            ArrayDataType::Invalid
        }
    };
    let shape = lower::shape(value)?.into_iter();
    Ok(ArrayFeatureType {
        shape: shape
            .map(|length| i64::try_from(length).unwrap_or(i64::MAX))
            .collect(),
        data_type: i32::from(kind),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::onnx::external::tests::Memory;
    use crate::report::Silent;
    use models::graph::{Builder, Dim};

    fn tiny() -> Graph {
        let mut b = Builder::new("tiny");
        let x = b.input("x", DType::Float32, &[Dim::Fixed(2), Dim::Fixed(64)]);
        let begin = b.input("begin", DType::Int64, &[Dim::Fixed(2)]);
        let held = b.input("held", DType::Float32, &[Dim::Fixed(4), Dim::Fixed(64)]);
        let (y, held) = {
            let b = &mut b.scope("model.layers.0");
            let y = b.dense("up", x, 64, 64, true);
            let y = b.gelu(y);
            let held = b.slice_update(held, y, begin);
            (b.slice(held, 0, -1, i64::MAX), held)
        };
        b.output("y", y);
        b.output("held_after", held);
        b.finish().unwrap()
    }

    fn package(precision: Precision) -> Package {
        let mut plan = Plan::new(
            "tiny.mlpackage".to_owned(),
            "a test".to_owned(),
            Deployment::Ios18,
        );
        let graph = passes::stored_as(tiny(), precision).unwrap();
        plan.add("main", graph, precision).unwrap();
        plan.finish(&[("held", "held_after")]).unwrap()
    }

    fn operations(package: &Package) -> Vec<&proto::Operation> {
        let program = package.model.ml_program.as_ref().unwrap();
        program.functions["main"].block_specializations["CoreML8"]
            .operations
            .iter()
            .collect()
    }

    /// What is updated is written to its state, read again, and what reads the value reads that.
    #[test]
    fn a_state_is_written_and_read_again() {
        let package = package(Precision::Fp32);
        let operations = operations(&package);
        let kinds: Vec<&str> = operations
            .iter()
            .map(|operation| operation.r#type.as_str())
            .filter(|kind| *kind != "const")
            .collect();
        assert_eq!(
            kinds,
            [
                "read_state",
                "linear",
                "gelu",
                "add",
                "slice_update",
                "write_state",
                "read_state",
                "slice_by_index"
            ]
        );
        let description = package.model.description.as_ref().unwrap();
        assert_eq!(description.input.len(), 2);
        let outputs: Vec<&str> = description.output.iter().map(|output| &*output.name).collect();
        assert_eq!(outputs, ["y"]);
        let names: Vec<&str> = operations
            .iter()
            .flat_map(|operation| &operation.outputs)
            .map(|output| &*output.name)
            .collect();
        let unique: std::collections::BTreeSet<&&str> = names.iter().collect();
        assert_eq!(unique.len(), names.len());
        let legal = |name: &&str| name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
        assert!(names.iter().all(legal), "{names:?}");
    }

    /// The layout of the weight file, byte for byte: the table in `blob.rs`.
    #[test]
    fn records_of_the_weight_file() {
        let package = package(Precision::Int8);
        let weights = Memory::new(&[
            ("model.layers.0.up.weight", &[64, 64]),
            ("model.layers.0.up.bias", &[64]),
        ]);
        let directory = tempfile::tempdir().unwrap();
        let files = write(&package, &weights, directory.path(), &mut Silent).unwrap();
        let paths: Vec<&str> = files.iter().map(|file| &*file.path).collect();
        assert_eq!(
            paths,
            [
                "tiny.mlpackage/Data/com.apple.CoreML/weights/weight.bin",
                "tiny.mlpackage/Data/com.apple.CoreML/model.mlmodel",
                "tiny.mlpackage/Manifest.json"
            ]
        );
        let bytes = std::fs::read(directory.path().join(paths[0])).unwrap();
        let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
        let long = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
        assert_eq!((word(0), word(4), long(8)), (3, 2, 0));
        // Bytes of the matrix, its scales, the bias: type, length, offset.
        let mut at = 64;
        for (kind, length) in [(4, 64 * 64), (1, 2 * 64), (1, 2 * 64)] {
            assert_eq!((word(at), word(at + 4)), (0xDEAD_BEEF, kind));
            assert_eq!(
                (long(at + 8), long(at + 16)),
                (length, u64::try_from(at).unwrap() + 64)
            );
            assert!(bytes[at + 24..at + 64].iter().all(|byte| *byte == 0));
            at = (at + 64 + usize::try_from(length).unwrap()).next_multiple_of(64);
        }
        assert_eq!(bytes.len(), at);
    }

    #[test]
    fn what_has_no_form_is_named() {
        let mut b = Builder::new("tiny");
        let x = b.input(
            "x",
            DType::Float32,
            &[Dim::Fixed(1), Dim::Fixed(4), Dim::Fixed(8)],
        );
        let y = b.scope("block").attention([x, x, x], None);
        b.output("y", y);
        let graph = b.finish().unwrap();
        let lowered = |deployment| {
            lower::lower(&graph, &[], &BTreeMap::new(), &Blob::default(), deployment).map(|_| ())
        };
        lowered(Deployment::Ios18).unwrap();
        let error = lowered(Deployment::Ios16).unwrap_err().to_string();
        assert!(
            error.contains("/block/ScaledDotProductAttention") && error.contains("no Core ML form"),
            "{error}"
        );
    }
}
