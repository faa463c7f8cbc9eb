//! The only list of operators: names and semantics are ONNX's at opset [`OPSET`], but for two that only Core
//! ML's form has, and one of ONNX Runtime's domain `com.microsoft`, which engines share.
//!
//! What ONNX passes as small constant tensors (axes, shapes, sizes, bounds) is an attribute here; the ONNX
//! writer turns it back into a constant.

use super::blocks::Blocks;
use super::dim::Dim;
use crate::dtype::DType;
use crate::fused::Fused;

/// The ONNX opset whose semantics the operators have. 20 is the first with `Gelu`.
pub const OPSET: i64 = 20;

/// An operator with its attributes. Inputs are listed in order.
#[derive(Debug, Clone, PartialEq)]
pub enum Op {
    /// `a + b`, broadcasting.
    Add,
    /// `a - b`, broadcasting.
    Sub,
    /// `a * b`, broadcasting.
    Mul,
    /// `a / b`, broadcasting.
    Div,
    /// `-x`.
    Neg,
    /// Square root.
    Sqrt,
    /// Cosine, radians.
    Cos,
    /// Sine, radians.
    Sin,
    /// `1 / (1 + exp(-x))`.
    Sigmoid,
    /// `max(x, 0)`.
    Relu,
    /// `x / 2 * (1 + erf(x / sqrt(2)))`: the exact form.
    Gelu,
    /// Normalised exponentials along `axis`.
    Softmax {
        /// Counted from the back when negative.
        axis: i64,
    },
    /// Matrix product over the last two axes, leading axes broadcast.
    MatMul,
    /// `a * b` or `a * b^T` for rank 2, plus a vector to every row where there is a third input.
    Gemm {
        /// Whether `b` is `[N, K]`.
        trans_b: bool,
    },
    /// 2-D convolution: `x [N,C,H,W]`, `w [M,C/group,kH,kW]`, `bias [M]` (the bias may be absent).
    Conv {
        /// Groups of channels.
        group: u64,
        /// Along H and W.
        strides: [u64; 2],
        /// Zeros added: top, left, bottom, right.
        pads: [u64; 4],
    },
    /// Mean over `axes`.
    ReduceMean {
        /// Counted from the back when negative.
        axes: Vec<i64>,
        /// Keep the reduced axes with length 1.
        keep_dims: bool,
    },
    /// `x, scale, bias`: normalised over the axes from `axis` to the last.
    LayerNormalization {
        /// First normalised axis.
        axis: i64,
        /// Added to the variance.
        epsilon: f32,
    },
    /// Change of element type.
    Cast {
        /// The new type.
        to: DType,
    },
    /// Inputs joined along `axis`.
    Concat {
        /// Counted from the back when negative.
        axis: i64,
    },
    /// `data, indices`: slices of `data` along `axis`.
    Gather {
        /// Axis of `data`.
        axis: i64,
    },
    /// `x[.., start..end, ..]` along one axis, ONNX bounds (negative counts from the end, `i64::MAX` is the
    /// end).
    Slice {
        /// The axis.
        axis: i64,
        /// First index.
        start: i64,
        /// One past the last index.
        end: i64,
    },
    /// Parts of the given sizes along `axis`; one output each.
    Split {
        /// The axis.
        axis: i64,
        /// Sizes of the parts.
        sizes: Vec<u64>,
    },
    /// New shape: 0 copies the input's dimension at that place, one -1 is computed.
    Reshape {
        /// The target.
        shape: Vec<i64>,
    },
    /// Axes permuted: output axis `i` is input axis `perm[i]`.
    Transpose {
        /// The permutation.
        perm: Vec<u64>,
    },
    /// Axes of length 1 inserted, positions in the output.
    Unsqueeze {
        /// Positions.
        axes: Vec<i64>,
    },
    /// Axes of length 1 removed.
    Squeeze {
        /// Positions.
        axes: Vec<i64>,
    },
    /// The dimensions from `start` to `end` as an int64 vector.
    Shape {
        /// First axis.
        start: i64,
        /// One past the last axis.
        end: i64,
    },
    /// `start, limit, delta` (int64 scalars): `start, start + delta, ..` below `limit`.
    Range {
        /// The dimension that the output's length is.
        dim: Dim,
    },
    /// `a <= b` as bool, broadcasting.
    LessOrEqual,
    /// Logical and, broadcasting.
    And,
    /// `condition ? a : b`, broadcasting.
    Where,
    /// `data, update, begin`: `data` with `update` written at `begin` (int64, one index for each axis). Core
    /// ML's `slice_update`.
    SliceUpdate,
    /// `query [..,L,E], key [..,S,E], value [..,S,E], bias` (broadcast to `[..,L,S]`; it may be absent):
    /// `softmax(query key^T / sqrt(E) + bias) value`. Core ML's `scaled_dot_product_attention`.
    ScaledDotProductAttention,
    /// `elements int8, scales [n]`: `element * scale`, where axis `axis` has a scale for each index.
    DequantizeLinear {
        /// The axis of length n.
        axis: u64,
    },
    /// `x [..,K], elements, scales`: `x w^T` with `w [N,K]` in blocks, see [`Blocks`]. ONNX Runtime's; K need not be a
    /// multiple of a block.
    MatMulNBits {
        /// How the weight is stored.
        blocks: Blocks,
        /// K.
        inputs: u64,
        /// N.
        outputs: u64,
    },
    /// An operator of target `cpu`, whose meaning is a graph of the others.
    Fused(Fused),
}

impl Op {
    /// The operator's name: ONNX's, where ONNX has it.
    pub const fn name(&self) -> &'static str {
        match self {
            Op::Add => "Add",
            Op::Sub => "Sub",
            Op::Mul => "Mul",
            Op::Div => "Div",
            Op::Neg => "Neg",
            Op::Sqrt => "Sqrt",
            Op::Cos => "Cos",
            Op::Sin => "Sin",
            Op::Sigmoid => "Sigmoid",
            Op::Relu => "Relu",
            Op::Gelu => "Gelu",
            Op::Softmax { .. } => "Softmax",
            Op::MatMul => "MatMul",
            Op::Gemm { .. } => "Gemm",
            Op::Conv { .. } => "Conv",
            Op::ReduceMean { .. } => "ReduceMean",
            Op::LayerNormalization { .. } => "LayerNormalization",
            Op::Cast { .. } => "Cast",
            Op::Concat { .. } => "Concat",
            Op::Gather { .. } => "Gather",
            Op::Slice { .. } => "Slice",
            Op::Split { .. } => "Split",
            Op::Reshape { .. } => "Reshape",
            Op::Transpose { .. } => "Transpose",
            Op::Unsqueeze { .. } => "Unsqueeze",
            Op::Squeeze { .. } => "Squeeze",
            Op::Shape { .. } => "Shape",
            Op::Range { .. } => "Range",
            Op::LessOrEqual => "LessOrEqual",
            Op::And => "And",
            Op::Where => "Where",
            Op::SliceUpdate => "SliceUpdate",
            Op::ScaledDotProductAttention => "ScaledDotProductAttention",
            Op::DequantizeLinear { .. } => "DequantizeLinear",
            Op::MatMulNBits { .. } => "MatMulNBits",
            Op::Fused(fused) => fused.name(),
        }
    }
}
