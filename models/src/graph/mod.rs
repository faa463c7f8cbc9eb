//! Networks as plain data: an ordered list of nodes over named, typed, shaped values.
//!
//! A [`Graph`] is made by [`Builder`], which applies the shape rules and keeps the first error; every
//! consumer (ONNX writer, reference interpreter, printer) is one exhaustive `match` over [`Op`].

mod blocks;
mod build;
mod check;
mod dim;
mod error;
mod op;
mod print;
mod shape;

pub use blocks::Blocks;
pub use build::{Builder, Conv, Scope};
pub use dim::Dim;
pub(crate) use dim::signed;
pub use error::GraphError;
pub use op::{OPSET, Op};

use crate::dtype::DType;
use crate::fused;

/// Index of a value in [`Graph::values`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ValueId(pub usize);

/// A network, ready to be lowered.
#[derive(Debug, Clone, PartialEq)]
pub struct Graph {
    /// `vision_encoder`, `vision_encoder_512`, `embed_tokens` or `decoder_model_merged`: also the file's
    /// name.
    pub name: String,
    /// The graph's inputs, in order.
    pub inputs: Vec<ValueId>,
    /// The graph's outputs, in order.
    pub outputs: Vec<ValueId>,
    /// Every value: inputs, weights, constants and node outputs.
    pub values: Vec<Value>,
    /// The nodes in an order in which they can be computed.
    pub nodes: Vec<Node>,
}

impl Graph {
    /// Whether the graph is sound: names are unique, every value is defined before it is used and by one
    /// node, and everything declared is used. Whoever rewrites a graph asks this.
    ///
    /// # Errors
    /// The first invariant that does not hold.
    pub fn check(&self) -> Result<(), GraphError> {
        check::check(self)
    }

    /// A further value, and its id: `shape` as [`Value::shape`] has it. Its name must be one that the graph does
    /// not have; [`Graph::check`] says so.
    pub fn push(&mut self, name: String, dtype: DType, shape: &[Dim], source: Source) -> ValueId {
        self.values.push(Value {
            name,
            dtype,
            shape: shape.to_vec(),
            source,
        });
        ValueId(self.values.len() - 1)
    }

    /// The value behind an id of this graph.
    pub fn value(&self, id: ValueId) -> &Value {
        &self.values[id.0]
    }

    /// Canonical names of the weights that the graph reads, in order of first use, each once.
    pub fn weights(&self) -> Vec<&WeightRef> {
        self.values
            .iter()
            .filter_map(|value| match &value.source {
                Source::Weight(weight) => Some(weight),
                Source::Input | Source::Node | Source::Constant(_) => None,
            })
            .collect()
    }
}

/// A tensor in a graph.
#[derive(Debug, Clone, PartialEq)]
pub struct Value {
    /// Unique in the graph. Inputs, outputs and weights have their public names; others their node's name
    /// with `_output_<index>`.
    pub name: String,
    /// Element type.
    pub dtype: DType,
    /// Shape, outermost first.
    pub shape: Vec<Dim>,
    /// Where the value comes from.
    pub source: Source,
}

/// Where a value comes from.
#[derive(Debug, Clone, PartialEq)]
pub enum Source {
    /// Given by the caller.
    Input,
    /// Computed by a node.
    Node,
    /// A canonical weight of the checkpoint.
    Weight(WeightRef),
    /// A small literal.
    Constant(Constant),
}

/// A canonical weight as a graph reads it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct WeightRef {
    /// Canonical name, see [`crate::weights`]; the first of [`Rows`] where there are several.
    pub name: String,
    /// In which form.
    pub form: WeightForm,
}

/// What a graph reads of a weight. A weight of rank n is addressed as the matrix
/// `[shape[0], product of the rest]`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum WeightForm {
    /// As it is.
    Stored,
    /// The transposed matrix: linear layers are `[out, in]` in checkpoints, `MatMul` wants `[in, out]`.
    Transposed,
    /// Vectors one after the other.
    Vector(Rows),
    /// The elements of a matrix in panels, see [`fused`].
    Panels(fused::Encoding, Rows),
    /// The scales of those panels.
    PanelScales(fused::Encoding, Rows),
    /// A matrix of bytes, row by row: `round(w / scale[row]) + 128`.
    Bytes,
    /// One of the two planes of nibbles of those bytes, see [`fused`].
    Plane(Nibble),
    /// The scales of those rows.
    ByteScales,
    /// A matrix of signed bytes, row by row: `round(w / scale[row])`, for Core ML.
    Signed8,
    /// The scales of those rows, float16.
    Signed8Scales,
    /// A matrix of signed nibbles, row by row, the lower one first: `round(w / scale[row, column / 32])`, for
    /// Core ML.
    Signed4,
    /// The scales of those blocks, float16.
    Signed4Scales,
    /// A matrix of signed bytes, row by row: `round(w / scale[row])` with the scales of [`WeightForm::ByteScales`].
    Int8,
    /// The transpose of that matrix.
    Int8Transposed,
    /// The codes of a matrix in blocks.
    Blocks(Blocks),
    /// The scales of those blocks.
    BlockScales(Blocks),
}

/// Which half of a byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Nibble {
    /// `byte >> 4`
    High,
    /// `byte & 15`
    Low,
}

/// Rows of several weights, one below the other, as one matrix or vector.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Rows {
    /// Canonical names of the weights below the first.
    pub below: Vec<String>,
    /// Canonical name of a vector with a factor for each row.
    pub gain: Option<String>,
}

impl WeightRef {
    /// Every canonical weight that it is made of.
    pub fn sources(&self) -> impl Iterator<Item = &str> {
        let rows = match &self.form {
            WeightForm::Vector(rows) | WeightForm::Panels(_, rows) | WeightForm::PanelScales(_, rows) => {
                Some(rows)
            }
            WeightForm::Stored
            | WeightForm::Transposed
            | WeightForm::Bytes
            | WeightForm::Plane(_)
            | WeightForm::ByteScales
            | WeightForm::Signed8
            | WeightForm::Signed8Scales
            | WeightForm::Signed4
            | WeightForm::Signed4Scales
            | WeightForm::Int8
            | WeightForm::Int8Transposed
            | WeightForm::Blocks(_)
            | WeightForm::BlockScales(_) => None,
        };
        let more = rows
            .into_iter()
            .flat_map(|rows| rows.below.iter().chain(&rows.gain));
        std::iter::once(self.name.as_str()).chain(more.map(String::as_str))
    }
}

/// A literal tensor, row-major; its shape and dtype stand in its [`Value`].
#[derive(Debug, Clone, PartialEq)]
pub enum Constant {
    /// float32 elements.
    Float32(Vec<f32>),
    /// int64 elements.
    Int64(Vec<i64>),
}

/// How precisely a node must be computed, whatever the storage precision of an export.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Precision {
    /// In the precision of the export.
    Storage,
    /// In float32: a sum, norm, softmax, angle or residual stream that half precision would spoil.
    Full,
}

/// One operation.
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    /// Scope path and operator: `/model/layers.0/self_attn/q_proj/MatMul`. Unique in the graph.
    pub name: String,
    /// The operator and its attributes.
    pub op: Op,
    /// Inputs, in the operator's order.
    pub inputs: Vec<ValueId>,
    /// Outputs, in the operator's order.
    pub outputs: Vec<ValueId>,
    /// Lower bound on the precision.
    pub precision: Precision,
}
