//! The operators of target `cpu`: each stands for a run of standard operators that one kernel computes faster.
//!
//! Activations are `[.., rows, channels]`, channels last. What each computes is written down in standard operators in
//! [`crate::arch::fused::body`], which becomes the ONNX function's body; here are its parameters, the order of its
//! inputs and the forms of its weights.
//!
//! A weight `[N, K]` (`y = x W^T`) is stored in panels of 16 outputs, so that a kernel reads it from front to back:
//!
//! | encoding | elements | scales | value |
//! |---|---|---|---|
//! | float32 | f32 `[N/16, K, 16]` | – | `w` |
//! | int8 | u8 `[N/16, K/4, 16, 4]` | f32 `[N]` | `scale[n] * (byte - 128)` |
//! | int4 | u8 `[N/16, K/32, 256]` | f16 `[N/16, K/32, 16]` | `scale * (nibble - 8)` |
//!
//! Quotients are rounded up; what is padded has the value 0. The 256 bytes of an int4 block of 32 inputs are four groups
//! of 64: byte `4 c + i` of group `p` holds input `8 p + i` of output `c` in its low nibble and input `8 p + 4 + i` in
//! its high one.
//!
//! A table `[V, D]`, of which single rows are read as well, lies row by row. Its bytes are either whole or parted into
//! two planes of nibbles, of which the high one alone tells which tokens may come next:
//!
//! | table | elements | scales | value |
//! |---|---|---|---|
//! | float32 | f32 `[V, D]` | – | `w` |
//! | bytes | u8 `[V, D]` | f32 `[V]` | `scale[v] * (byte - 128)` |
//! | planes | high and low, u8 `[V, D/128, 64]` each | f32 `[V]` | `scale[v] * (16 high + low - 128)` |
//!
//! Byte `i` of a plane's run of 128 numbers holds number `i` in its low nibble and number `64 + i` in its high one.

use super::{Dim, Value, shape};
use crate::dtype::DType;

/// The ONNX domain of the fused operators.
pub const DOMAIN: &str = "fvlm";

/// Outputs in a panel.
pub const PANEL: u64 = 16;

/// Inputs that share an int4 scale.
pub const BLOCK: u64 = 32;

/// How a matrix is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Encoding {
    /// float32.
    Float32,
    /// Bytes with a scale for each output.
    Int8,
    /// Nibbles with a scale for each output and 32 inputs.
    Int4,
}

impl Encoding {
    /// dtype and shape of the elements of an `[outputs, inputs]` matrix.
    pub fn elements(self, outputs: u64, inputs: u64) -> (DType, Vec<u64>) {
        let panels = outputs.div_ceil(PANEL);
        match self {
            Encoding::Float32 => (DType::Float32, vec![panels, inputs, PANEL]),
            Encoding::Int8 => (DType::UInt8, vec![panels, inputs.div_ceil(4), PANEL, 4]),
            Encoding::Int4 => (
                DType::UInt8,
                vec![panels, inputs.div_ceil(BLOCK), PANEL * BLOCK / 2],
            ),
        }
    }

    /// dtype and shape of the scales, where there are any.
    pub fn scales(self, outputs: u64, inputs: u64) -> Option<(DType, Vec<u64>)> {
        match self {
            Encoding::Float32 => None,
            Encoding::Int8 => Some((DType::Float32, vec![outputs])),
            Encoding::Int4 => Some((
                DType::Float16,
                vec![outputs.div_ceil(PANEL), inputs.div_ceil(BLOCK), PANEL],
            )),
        }
    }

    /// The number that stands for it in ONNX attributes: the bits of an element.
    pub const fn bits(self) -> i64 {
        match self {
            Encoding::Float32 => 32,
            Encoding::Int8 => 8,
            Encoding::Int4 => 4,
        }
    }

    /// Inputs of an operator that make up a matrix.
    const fn tensors(self) -> usize {
        match self {
            Encoding::Float32 => 1,
            Encoding::Int8 | Encoding::Int4 => 2,
        }
    }
}

/// Numbers of a table's row that lie together in a plane.
pub const PLANE_BLOCK: u64 = 128;

/// How a table is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TableEncoding {
    /// float32.
    Float32,
    /// Bytes with a scale for each row.
    Bytes,
    /// The same bytes, high nibbles and low nibbles each by themselves.
    Planes,
}

impl TableEncoding {
    /// dtype and shape of each of the tensors of elements of a `[rows, width]` table.
    pub fn elements(self, rows: u64, width: u64) -> Vec<(DType, Vec<u64>)> {
        match self {
            TableEncoding::Float32 => vec![(DType::Float32, vec![rows, width])],
            TableEncoding::Bytes => vec![(DType::UInt8, vec![rows, width])],
            TableEncoding::Planes => {
                let plane = vec![rows, width.div_ceil(PLANE_BLOCK), PLANE_BLOCK / 2];
                vec![(DType::UInt8, plane.clone()), (DType::UInt8, plane)]
            }
        }
    }

    /// The bits of an element, as in ONNX attributes.
    pub const fn bits(self) -> i64 {
        match self {
            TableEncoding::Float32 => 32,
            TableEncoding::Bytes | TableEncoding::Planes => 8,
        }
    }

    /// Tensors that an element is spread over, as in ONNX attributes.
    pub const fn planes(self) -> i64 {
        match self {
            TableEncoding::Float32 | TableEncoding::Bytes => 1,
            TableEncoding::Planes => 2,
        }
    }

    /// Inputs of an operator that make up a table.
    const fn tensors(self) -> usize {
        match self {
            TableEncoding::Float32 => 1,
            TableEncoding::Bytes => 2,
            TableEncoding::Planes => 3,
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

/// A fused operator with its parameters. Inputs are listed in order; those in brackets are there if the parameters say so.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Fused {
    /// `pixels [B,c,H,W], taps [c*k*k,C], bias [C], depthwise taps [j*j,C], depthwise bias [C] -> [B,H',W',C]`: the
    /// first convolution, from planes to channels last, then a depthwise one; both padded by half their kernel, exact
    /// GELU after each. The first one's taps are ordered by channel, row, column.
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
    /// `x [B,H,W,C], taps [k*k,m*C], bias [m*C] -> [B,H/stride,W/stride,m*C]`, padded by `k / 2`: output channel `o`
    /// reads input channel `o / m`.
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
    /// `x [..,K], [residual [..,N]], [gamma, [beta]], [gate, [scales]], up, [scales], [bias], down, [scales], [bias]
    /// -> [..,N]`: `residual + down(act)`, `act = gelu(up(norm(x)))`, or `silu(gate(norm(x))) * up(norm(x))` if gated.
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
    /// `qkv [B,n,(h+2k)*d], past_key [B,k,past,d], past_value, attention_mask [B,total], position_ids [B,n],
    /// inverse_frequencies [d/2] -> [B,n,h*d], present_key [B,k,total,d], present_value`: grouped-query attention with
    /// rotary positions over the cache and the new positions.
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
    /// With a table of planes, a kernel may leave out the low nibbles (whose mean it adds) where a logit is far below
    /// the largest.
    Logits {
        /// Of the table.
        encoding: TableEncoding,
    },
}

impl Fused {
    /// Name in the domain [`DOMAIN`].
    pub const fn name(&self) -> &'static str {
        match self {
            Fused::Stem { .. } => "Stem",
            Fused::DepthwiseConv { .. } => "DepthwiseConv",
            Fused::Linear { .. } => "Linear",
            Fused::FeedForward { .. } => "FeedForward",
            Fused::SelfAttention { .. } => "SelfAttention",
            Fused::DecoderAttention { .. } => "DecoderAttention",
            Fused::Embedding { .. } => "Embedding",
            Fused::Logits { .. } => "Logits",
        }
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

    /// dtype and shape of each output; the error says what was expected and what was found.
    pub(super) fn infer(&self, inputs: &[&Value]) -> Result<Vec<(DType, Vec<Dim>)>, String> {
        if inputs.len() != self.inputs() {
            return Err(format!("takes {} inputs, found {}", self.inputs(), inputs.len()));
        }
        let mut rest = Inputs { rest: inputs.iter() };
        let one = |shape: Vec<Dim>| Ok(vec![(DType::Float32, shape)]);
        match *self {
            Fused::Stem {
                kernel,
                stride,
                depthwise_kernel,
                depthwise_stride,
            } => {
                let x = rest.float(4)?;
                let [batch, channels, height, width] = x[..] else {
                    return Err("wants rank 4".to_owned());
                };
                let taps = rest.float(2)?;
                let channels = channels.fixed().unwrap_or(0);
                if taps[0] != Dim::Fixed(channels * kernel * kernel) {
                    return Err(format!(
                        "wants {} taps, found {}",
                        channels * kernel * kernel,
                        taps[0]
                    ));
                }
                rest.exactly(DType::Float32, &taps[1..])?;
                let side = Dim::Fixed(depthwise_kernel * depthwise_kernel);
                rest.exactly(DType::Float32, &[side, taps[1]])?;
                rest.exactly(DType::Float32, &taps[1..])?;
                let length = |length| strided(strided(length, stride)?, depthwise_stride);
                one(vec![batch, length(height)?, length(width)?, taps[1]])
            }
            Fused::DepthwiseConv { kernel, stride, .. } => {
                let x = rest.float(4)?;
                let [batch, height, width, channels] = x[..] else {
                    return Err("wants rank 4".to_owned());
                };
                let taps = rest.float(2)?;
                let (inputs, outputs) = (channels.fixed().unwrap_or(0), taps[1].fixed().unwrap_or(0));
                if taps[0] != Dim::Fixed(kernel * kernel) || inputs == 0 || outputs % inputs != 0 {
                    return Err(format!("wants {} taps for {channels} channels", kernel * kernel));
                }
                rest.exactly(DType::Float32, &taps[1..])?;
                one(vec![
                    batch,
                    strided(height, stride)?,
                    strided(width, stride)?,
                    taps[1],
                ])
            }
            Fused::Linear {
                inputs,
                outputs,
                norm,
                encoding,
                bias,
                residual,
                ..
            } => {
                let out = rest.rows(inputs, outputs, residual)?;
                rest.norm(norm, inputs)?;
                rest.matrix(encoding, outputs, inputs)?;
                if bias {
                    rest.exactly(DType::Float32, &[Dim::Fixed(outputs)])?;
                }
                one(out)
            }
            Fused::FeedForward {
                inputs,
                hidden,
                outputs,
                norm,
                encoding,
                bias,
                gated,
                residual,
            } => {
                let out = rest.rows(inputs, outputs, residual)?;
                rest.norm(norm, inputs)?;
                if gated {
                    rest.matrix(encoding, hidden, inputs)?;
                }
                for (outputs, inputs) in [(hidden, inputs), (outputs, hidden)] {
                    rest.matrix(encoding, outputs, inputs)?;
                    if bias {
                        rest.exactly(DType::Float32, &[Dim::Fixed(outputs)])?;
                    }
                }
                one(out)
            }
            Fused::SelfAttention { heads, head_dim } => {
                let mut x = rest.float(3)?;
                if x[2] != Dim::Fixed(3 * heads * head_dim) {
                    return Err(format!("wants {} channels, found {}", 3 * heads * head_dim, x[2]));
                }
                x[2] = Dim::Fixed(heads * head_dim);
                one(x)
            }
            Fused::DecoderAttention {
                heads,
                kv_heads,
                head_dim,
            } => {
                let mut x = rest.float(3)?;
                let wide = (heads + 2 * kv_heads) * head_dim;
                if x[2] != Dim::Fixed(wide) {
                    return Err(format!("wants {wide} channels, found {}", x[2]));
                }
                let past = rest.float(4)?;
                if past[..] != [x[0], Dim::Fixed(kv_heads), Dim::Past, Dim::Fixed(head_dim)] {
                    return Err(format!("has a cache of shape {}", shape::show(&past)));
                }
                rest.exactly(DType::Float32, &past)?;
                rest.exactly(DType::Int64, &[x[0], Dim::Total])?;
                rest.exactly(DType::Int64, &x[..2])?;
                rest.exactly(DType::Float32, &[Dim::Fixed(head_dim / 2)])?;
                x[2] = Dim::Fixed(heads * head_dim);
                let mut present = past;
                present[2] = Dim::Total;
                let cache = (DType::Float32, present);
                Ok(vec![(DType::Float32, x), cache.clone(), cache])
            }
            Fused::Embedding { width, encoding } => {
                let ids = rest.next(DType::Int64)?;
                rest.table(width, encoding)?;
                one([&ids[..], &[Dim::Fixed(width)]].concat())
            }
            Fused::Logits { encoding } => {
                let x = rest.float(2)?;
                let width = x[1].fixed().ok_or("wants rows of a fixed length")?;
                let entries = rest.table(width, encoding)?;
                one(vec![x[0], entries])
            }
        }
    }
}

/// The inputs of an operator, taken one by one.
struct Inputs<'a, 'v> {
    rest: std::slice::Iter<'a, &'v Value>,
}

impl Inputs<'_, '_> {
    fn next(&mut self, dtype: DType) -> Result<Vec<Dim>, String> {
        let value = self.rest.next().ok_or_else(|| "has too few inputs".to_owned())?;
        if value.dtype == dtype {
            Ok(value.shape.clone())
        } else {
            Err(format!("wants {dtype}, `{}` is {}", value.name, value.dtype))
        }
    }

    fn float(&mut self, rank: usize) -> Result<Vec<Dim>, String> {
        let shape = self.next(DType::Float32)?;
        if shape.len() == rank {
            Ok(shape)
        } else {
            Err(format!("wants rank {rank}, found {}", shape::show(&shape)))
        }
    }

    fn exactly(&mut self, dtype: DType, shape: &[Dim]) -> Result<(), String> {
        let found = self.next(dtype)?;
        if found == shape {
            Ok(())
        } else {
            Err(format!(
                "wants shape {}, found {}",
                shape::show(shape),
                shape::show(&found)
            ))
        }
    }

    /// `x [..,inputs]` and, if there is one, the residual `[..,outputs]`: the output's shape.
    fn rows(&mut self, inputs: u64, outputs: u64, residual: bool) -> Result<Vec<Dim>, String> {
        let mut shape = self.next(DType::Float32)?;
        match shape.last_mut() {
            Some(last) if *last == Dim::Fixed(inputs) => *last = Dim::Fixed(outputs),
            _ => {
                return Err(format!(
                    "wants rows of length {inputs}, found {}",
                    shape::show(&shape)
                ));
            }
        }
        if residual {
            self.exactly(DType::Float32, &shape)?;
        }
        Ok(shape)
    }

    fn norm(&mut self, norm: Norm, width: u64) -> Result<(), String> {
        (0..norm.tensors()).try_for_each(|_| self.exactly(DType::Float32, &[Dim::Fixed(width)]))
    }

    fn matrix(&mut self, encoding: Encoding, outputs: u64, inputs: u64) -> Result<(), String> {
        let dims = |shape: Vec<u64>| -> Vec<Dim> { shape.into_iter().map(Dim::Fixed).collect() };
        let (dtype, shape) = encoding.elements(outputs, inputs);
        self.exactly(dtype, &dims(shape))?;
        match encoding.scales(outputs, inputs) {
            Some((dtype, shape)) => self.exactly(dtype, &dims(shape)),
            None => Ok(()),
        }
    }

    /// A table and its scales: how many rows it has.
    fn table(&mut self, width: u64, encoding: TableEncoding) -> Result<Dim, String> {
        let first = self
            .rest
            .clone()
            .next()
            .and_then(|value| value.shape.first().copied());
        let entries = first
            .and_then(Dim::fixed)
            .ok_or("wants a table of fixed length")?;
        for (dtype, shape) in encoding.elements(entries, width) {
            let shape: Vec<Dim> = shape.into_iter().map(Dim::Fixed).collect();
            self.exactly(dtype, &shape)?;
        }
        let entries = Dim::Fixed(entries);
        if encoding != TableEncoding::Float32 {
            self.exactly(DType::Float32, &[entries])?;
        }
        Ok(entries)
    }
}

/// Positions of a kernel with "same" padding and this step.
fn strided(length: Dim, stride: u64) -> Result<Dim, String> {
    let length = length.fixed().ok_or_else(|| "wants fixed sides".to_owned())?;
    Ok(Dim::Fixed(length.div_ceil(stride.max(1))))
}
