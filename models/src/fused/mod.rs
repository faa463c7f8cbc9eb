//! The fused operators of target `cpu`: the contract between the exporter that writes their nodes and the
//! kernels that compute them. Each stands for a run of standard operators that one kernel computes faster.
//!
//! Here are the operators' names, parameters and inputs; beside it what both sides read as well: `attributes`
//! (how parameters are written in a node), `shape` (what fits together, and the outputs' shapes) and
//! `encoding` (how weights are stored). Activations are `[.., rows, channels]`, channels last. What each
//! operator computes is written down in standard operators in `models::arch::body`, which becomes the
//! ONNX function's body.

mod attributes;
mod encoding;
mod shape;

pub use attributes::{Attribute, Attributes, LARGEST, LARGEST_KERNEL};
pub use encoding::{BLOCK, Encoding, GROUP, PANEL, PLANE_BLOCK, TableEncoding};
#[cfg(feature = "describe")]
pub(crate) use shape::show;
pub use shape::{Input, Length};

/// The ONNX domain of the fused operators.
pub const DOMAIN: &str = "fvlm";

/// Which fused operator: what is known of a node before its attributes are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// [`Fused::Stem`]
    Stem,
    /// [`Fused::DepthwiseConv`]
    DepthwiseConv,
    /// [`Fused::Linear`]
    Linear,
    /// [`Fused::FeedForward`]
    FeedForward,
    /// [`Fused::SelfAttention`]
    SelfAttention,
    /// [`Fused::DecoderAttention`]
    DecoderAttention,
    /// [`Fused::Embedding`]
    Embedding,
    /// [`Fused::Logits`]
    Logits,
}

impl Kind {
    /// Every operator.
    pub const ALL: [Kind; 8] = [
        Kind::Stem,
        Kind::DepthwiseConv,
        Kind::Linear,
        Kind::FeedForward,
        Kind::SelfAttention,
        Kind::DecoderAttention,
        Kind::Embedding,
        Kind::Logits,
    ];

    /// Name in the domain [`DOMAIN`].
    pub const fn name(self) -> &'static str {
        match self {
            Kind::Stem => "Stem",
            Kind::DepthwiseConv => "DepthwiseConv",
            Kind::Linear => "Linear",
            Kind::FeedForward => "FeedForward",
            Kind::SelfAttention => "SelfAttention",
            Kind::DecoderAttention => "DecoderAttention",
            Kind::Embedding => "Embedding",
            Kind::Logits => "Logits",
        }
    }

    /// How many outputs there are, all float32.
    pub const fn outputs(self) -> usize {
        match self {
            Kind::Stem
            | Kind::DepthwiseConv
            | Kind::Linear
            | Kind::FeedForward
            | Kind::SelfAttention
            | Kind::Embedding
            | Kind::Logits => 1,
            Kind::DecoderAttention => 3,
        }
    }
}

/// The normalisation that an operator applies to its input first, over the last axis.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Norm {
    /// None.
    None,
    /// `x / sqrt(mean(x^2) + epsilon) * gamma`.
    Rms {
        /// Added to the mean square.
        epsilon: f32,
    },
    /// `(x - mean) / sqrt(variance + epsilon) * gamma + beta`.
    Layer {
        /// Added to the variance.
        epsilon: f32,
    },
}

impl Norm {
    const fn tensors(self) -> usize {
        match self {
            Norm::None => 0,
            Norm::Rms { .. } => 1,
            Norm::Layer { .. } => 2,
        }
    }
}

/// A fused operator with its parameters. Inputs are listed in order; those in brackets are there if the
/// parameters say so.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Fused {
    /// `pixels [B,c,H,W], taps [c*k*k,C], bias [C], depthwise taps [j*j,C], depthwise bias [C] -> [B,H',W',C]`:
    /// the first convolution, from planes to channels last, then a depthwise one; both padded by half their
    /// kernel, exact GELU after each. The first one's taps are ordered by channel, row, column.
    ///
    /// What is between the two is the largest activation of the network; a kernel need not hold all of it.
    Stem {
        /// k, the side of the first kernel.
        kernel: u64,
        /// The first step.
        stride: u64,
        /// j, the side of the depthwise kernel.
        depthwise_kernel: u64,
        /// The depthwise step.
        depthwise_stride: u64,
    },
    /// `x [B,H,W,C], taps [k*k,m*C], bias [m*C] -> [B,H/stride,W/stride,m*C]`, padded by `k / 2`: output
    /// channel `o` reads input channel `o / m`.
    DepthwiseConv {
        /// Side of the kernel.
        kernel: u64,
        /// Step.
        stride: u64,
        /// Exact GELU afterwards.
        gelu: bool,
    },
    /// `x [..,K], [residual [..,N]], [gamma, [beta]], weight, [scales], [bias [N]] -> [..,N]`:
    /// `residual + gelu(norm(x) W^T + bias)`.
    Linear {
        /// K.
        inputs: u64,
        /// N.
        outputs: u64,
        /// Before the product.
        norm: Norm,
        /// How the weight is stored.
        encoding: Encoding,
        /// Whether there is a bias.
        bias: bool,
        /// Exact GELU after the bias.
        gelu: bool,
        /// Whether something is added at the end.
        residual: bool,
    },
    /// `x [..,K], [residual [..,N]], [gamma, [beta]], [gate, [scales]], up, [scales], [bias], down, [scales], [bias] -> [..,N]`:
    /// `residual + down(act)`, `act = gelu(up(norm(x)))`, or `silu(gate(norm(x))) * up(norm(x))` if gated.
    FeedForward {
        /// K.
        inputs: u64,
        /// Length in between.
        hidden: u64,
        /// N.
        outputs: u64,
        /// Before the first product.
        norm: Norm,
        /// How the weights are stored.
        encoding: Encoding,
        /// Whether `up` and `down` have biases.
        bias: bool,
        /// SwiGLU instead of GELU.
        gated: bool,
        /// Whether something is added at the end.
        residual: bool,
    },
    /// `qkv [B,N,3*h*d] -> [B,N,h*d]`: multi-head self-attention without a mask, scores divided by `sqrt(d)`.
    SelfAttention {
        /// h.
        heads: u64,
        /// d.
        head_dim: u64,
    },
    /// `qkv [B,n,(h+2k)*d], past_key [B,k,past,d], past_value, attention_mask [B,total], position_ids [B,n], inverse_frequencies [d/2] -> [B,n,h*d], present_key [B,k,total,d], present_value`:
    /// grouped-query attention with rotary positions over the cache and the new positions.
    DecoderAttention {
        /// h.
        heads: u64,
        /// k.
        kv_heads: u64,
        /// d.
        head_dim: u64,
    },
    /// `ids [..], table.., [scales [V]] -> [..,D]`: rows of a table.
    Embedding {
        /// D.
        width: u64,
        /// Of the table.
        encoding: TableEncoding,
    },
    /// `x [M,D], table.., [scales [V]] -> [M,V]`: products with the rows of a table.
    ///
    /// With a table of planes, a kernel may leave out the low nibbles (whose mean it adds) where a logit is
    /// far below the largest.
    Logits {
        /// Of the table.
        encoding: TableEncoding,
    },
}

impl Fused {
    /// Which operator it is.
    pub const fn kind(&self) -> Kind {
        match self {
            Fused::Stem { .. } => Kind::Stem,
            Fused::DepthwiseConv { .. } => Kind::DepthwiseConv,
            Fused::Linear { .. } => Kind::Linear,
            Fused::FeedForward { .. } => Kind::FeedForward,
            Fused::SelfAttention { .. } => Kind::SelfAttention,
            Fused::DecoderAttention { .. } => Kind::DecoderAttention,
            Fused::Embedding { .. } => Kind::Embedding,
            Fused::Logits { .. } => Kind::Logits,
        }
    }

    /// Name in the domain [`DOMAIN`].
    pub const fn name(&self) -> &'static str {
        self.kind().name()
    }

    /// How many inputs there are.
    pub const fn inputs(&self) -> usize {
        match self {
            Fused::Stem { .. } => 5,
            Fused::DepthwiseConv { .. } => 3,
            Fused::Linear {
                norm,
                encoding,
                bias,
                residual,
                ..
            } => 1 + *residual as usize + norm.tensors() + encoding.tensors() + *bias as usize,
            Fused::FeedForward {
                norm,
                encoding,
                bias,
                gated,
                residual,
                ..
            } => {
                let matrices = 2 + *gated as usize;
                1 + *residual as usize + norm.tensors() + matrices * encoding.tensors() + 2 * *bias as usize
            }
            Fused::SelfAttention { .. } => 1,
            Fused::DecoderAttention { .. } => 6,
            Fused::Embedding { encoding, .. } | Fused::Logits { encoding } => 1 + encoding.tensors(),
        }
    }
}
