//! Which kernel does a node of target `cpu` call, and with what? Attributes and tensors in, whatever engine holds them.

use kernels::Isa;
use kernels::decoder_attention::{self, Cache, CacheMut, DecoderAttention, decoder_attention};
use kernels::depthwise::{DepthwiseConv, depthwise};
use kernels::feed_forward::{FeedForward, feed_forward};
use kernels::linear::{Activation, Linear, linear};
use kernels::logits::{Table, logits};
use kernels::matrix::{Matrix, Panels};
use kernels::norm::Norm;
use kernels::parallel::Parallel;
use kernels::planes::Planes;
use kernels::self_attention::{SelfAttention, self_attention};
use kernels::stem::{Depthwise, StemConv, stem};

/// The domain of the fused operators, as `models::graph::fused` has it.
pub(super) const DOMAIN: &str = "fvlm";

/// The operators of `models::graph::fused::Fused`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Stem,
    DepthwiseConv,
    Linear,
    FeedForward,
    SelfAttention,
    DecoderAttention,
    Embedding,
    Logits,
}

impl Kind {
    pub(super) const ALL: [Kind; 8] = [
        Kind::Stem,
        Kind::DepthwiseConv,
        Kind::Linear,
        Kind::FeedForward,
        Kind::SelfAttention,
        Kind::DecoderAttention,
        Kind::Embedding,
        Kind::Logits,
    ];

    pub(super) const fn name(self) -> &'static str {
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
    pub(super) const fn outputs(self) -> usize {
        match self {
            Kind::DecoderAttention => 3,
            _ => 1,
        }
    }
}

/// The attributes of a node.
pub(super) trait Attributes {
    /// An integer.
    fn int(&self, name: &str) -> Option<i64>;
    /// A float32.
    fn float(&self, name: &str) -> Option<f32>;
}

/// What is read of them; errors name the attribute.
struct Read<'a>(&'a dyn Attributes);

impl Read<'_> {
    fn int(&self, name: &str) -> Result<i64, String> {
        self.0
            .int(name)
            .ok_or_else(|| format!("a fused operator has no attribute `{name}`"))
    }

    fn size(&self, name: &str) -> Result<usize, String> {
        let value = self.int(name)?;
        let size = usize::try_from(value)
            .ok()
            .filter(|size| (1..=1 << 24).contains(size));
        size.ok_or_else(|| format!("attribute `{name}` is {value}, expected 1 to 2^24"))
    }

    fn flag(&self, name: &str) -> Result<bool, String> {
        Ok(self.int(name)? != 0)
    }

    fn encoding(&self) -> Result<Encoding, String> {
        match self.int("bits")? {
            32 => Ok(Encoding::Float32),
            8 => Ok(Encoding::Int8),
            4 => Ok(Encoding::Int4),
            other => Err(format!("weights have {other} bits, expected 32, 8 or 4")),
        }
    }

    fn table(&self) -> Result<TableForm, String> {
        match (self.int("bits")?, self.int("planes")?) {
            (32, 1) => Ok(TableForm::Float32),
            (8, 1) => Ok(TableForm::Bytes),
            (8, 2) => Ok(TableForm::Planes),
            (bits, planes) => Err(format!(
                "a table has {bits} bits in {planes} planes, expected 32 or 8 in one, or 8 in two"
            )),
        }
    }

    fn norm(&self) -> Result<NormKind, String> {
        let missing = || "a fused operator has no attribute `epsilon`".to_owned();
        let epsilon = self.0.float("epsilon").ok_or_else(missing)?;
        match self.int("norm")? {
            0 => Ok(NormKind::None),
            1 => Ok(NormKind::Rms(epsilon)),
            2 => Ok(NormKind::Layer(epsilon)),
            other => Err(format!("norm is {other}, expected 0, 1 or 2")),
        }
    }
}

/// An input of a node: its shape and elements.
#[derive(Debug)]
pub(super) struct Input<'a> {
    pub(super) shape: Vec<usize>,
    pub(super) data: Data<'a>,
}

/// Elements, row-major.
#[derive(Debug, Clone, Copy)]
pub(super) enum Data<'a> {
    F32(&'a [f32]),
    /// Bits of float16.
    F16(&'a [u16]),
    U8(&'a [u8]),
    I64(&'a [i64]),
}

impl Data<'_> {
    const fn name(self) -> &'static str {
        match self {
            Data::F32(_) => "float32",
            Data::F16(_) => "float16",
            Data::U8(_) => "uint8",
            Data::I64(_) => "int64",
        }
    }
}

/// A type of elements that a kernel takes.
trait Element: Sized + 'static {
    const NAME: &'static str;
    fn of(data: Data<'_>) -> Option<&[Self]>;
}

macro_rules! element {
    ($type:ty, $variant:ident, $name:literal) => {
        impl Element for $type {
            const NAME: &'static str = $name;
            fn of(data: Data<'_>) -> Option<&[Self]> {
                match data {
                    Data::$variant(data) => Some(data),
                    _ => None,
                }
            }
        }
    };
}

element!(f32, F32, "float32");
element!(u16, F16, "float16");
element!(u8, U8, "uint8");
element!(i64, I64, "int64");

/// Where a node's outputs go.
pub(super) trait Outputs {
    /// Makes all outputs of the node, float32 with these shapes.
    fn make(&mut self, shapes: &[&[usize]]) -> Result<Vec<&mut [f32]>, String>;
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Encoding {
    Float32,
    Int8,
    Int4,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum TableForm {
    Float32,
    Bytes,
    Planes,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum NormKind {
    None,
    Rms(f32),
    Layer(f32),
}

/// An operator with its parameters.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Step {
    Stem {
        kernel: usize,
        stride: usize,
        depthwise_kernel: usize,
        depthwise_stride: usize,
    },
    DepthwiseConv {
        kernel: usize,
        stride: usize,
        gelu: bool,
    },
    Linear {
        inputs: usize,
        outputs: usize,
        norm: NormKind,
        encoding: Encoding,
        bias: bool,
        gelu: bool,
        residual: bool,
    },
    FeedForward {
        inputs: usize,
        hidden: usize,
        outputs: usize,
        norm: NormKind,
        encoding: Encoding,
        bias: bool,
        gated: bool,
        residual: bool,
    },
    SelfAttention {
        heads: usize,
        head_dim: usize,
    },
    DecoderAttention {
        heads: usize,
        kv_heads: usize,
        head_dim: usize,
    },
    Embedding {
        width: usize,
        form: TableForm,
    },
    Logits(TableForm),
}

impl Step {
    /// Reads a node's parameters.
    pub(super) fn new(kind: Kind, attributes: &dyn Attributes) -> Result<Step, String> {
        let attributes = Read(attributes);
        Ok(match kind {
            Kind::Stem => Step::Stem {
                kernel: attributes.size("kernel")?,
                stride: attributes.size("stride")?,
                depthwise_kernel: attributes.size("depthwise_kernel")?,
                depthwise_stride: attributes.size("depthwise_stride")?,
            },
            Kind::DepthwiseConv => Step::DepthwiseConv {
                kernel: attributes.size("kernel")?,
                stride: attributes.size("stride")?,
                gelu: attributes.flag("gelu")?,
            },
            Kind::Linear => Step::Linear {
                inputs: attributes.size("inputs")?,
                outputs: attributes.size("outputs")?,
                norm: attributes.norm()?,
                encoding: attributes.encoding()?,
                bias: attributes.flag("bias")?,
                gelu: attributes.flag("gelu")?,
                residual: attributes.flag("residual")?,
            },
            Kind::FeedForward => Step::FeedForward {
                inputs: attributes.size("inputs")?,
                hidden: attributes.size("hidden")?,
                outputs: attributes.size("outputs")?,
                norm: attributes.norm()?,
                encoding: attributes.encoding()?,
                bias: attributes.flag("bias")?,
                gated: attributes.flag("gated")?,
                residual: attributes.flag("residual")?,
            },
            Kind::SelfAttention => Step::SelfAttention {
                heads: attributes.size("heads")?,
                head_dim: attributes.size("head_dim")?,
            },
            Kind::DecoderAttention => Step::DecoderAttention {
                heads: attributes.size("heads")?,
                kv_heads: attributes.size("kv_heads")?,
                head_dim: attributes.size("head_dim")?,
            },
            Kind::Embedding => Step::Embedding {
                width: attributes.size("width")?,
                form: attributes.table()?,
            },
            Kind::Logits => Step::Logits(attributes.table()?),
        })
    }

    /// Computes the node. What does not fit together is an error, not a panic.
    pub(super) fn run(
        self,
        isa: Isa,
        pool: &dyn Parallel,
        inputs: &[Input<'_>],
        made: &mut dyn Outputs,
    ) -> Result<(), String> {
        // Kernels assert what they are given.
        super::catch(|| self.call(isa, pool, inputs, made))
            .unwrap_or_else(|words| Err(format!("the inputs of {self:?} do not fit together: {words}")))
    }

    fn call(
        self,
        isa: Isa,
        pool: &dyn Parallel,
        inputs: &[Input<'_>],
        made: &mut dyn Outputs,
    ) -> Result<(), String> {
        let mut inputs = Taken {
            inputs: inputs.iter(),
        };
        match self {
            Step::Stem {
                kernel,
                stride,
                depthwise_kernel,
                depthwise_stride,
            } => {
                let (shape, x) = inputs.next::<f32>()?;
                let [batch, planes, height, width] = rank(&shape)?;
                let (_, taps) = inputs.next::<f32>()?;
                let (_, bias) = inputs.next::<f32>()?;
                let conv = StemConv {
                    batch,
                    planes,
                    height,
                    width,
                    channels: bias.len(),
                    kernel_size: kernel,
                    stride,
                    kernel: taps,
                    bias,
                };
                let then = Depthwise {
                    kernel_size: depthwise_kernel,
                    stride: depthwise_stride,
                    kernel: inputs.next::<f32>()?.1,
                    bias: inputs.next::<f32>()?.1,
                };
                let (rows, columns) = then.output_size(&conv);
                let out = one(made, &[batch, rows, columns, bias.len()])?;
                stem(isa, pool, &conv, &then, x, out);
            }
            Step::DepthwiseConv { kernel, stride, gelu } => {
                let (shape, x) = inputs.next::<f32>()?;
                let [batch, height, width, channels] = rank(&shape)?;
                let (_, taps) = inputs.next::<f32>()?;
                let (_, bias) = inputs.next::<f32>()?;
                let conv = DepthwiseConv {
                    batch,
                    height,
                    width,
                    channels,
                    multiplier: bias.len() / channels.max(1),
                    kernel_size: kernel,
                    stride,
                    kernel: taps,
                    bias,
                    gelu,
                };
                let (rows, columns) = conv.output_size();
                let out = one(made, &[batch, rows, columns, bias.len()])?;
                depthwise(isa, pool, &conv, x, out);
            }
            Step::Linear {
                inputs: width,
                outputs,
                norm,
                encoding,
                bias,
                gelu,
                residual,
            } => {
                let (shape, x) = inputs.next::<f32>()?;
                let residual = inputs.optional(residual)?;
                let layer = Linear {
                    norm: inputs.norm(norm)?,
                    weight: inputs.matrix(encoding, outputs, width)?,
                    bias: inputs.optional(bias)?,
                    activation: if gelu { Activation::Gelu } else { Activation::None },
                };
                let out = one(made, &with_last(shape, outputs))?;
                linear(isa, pool, x, &layer, residual, out);
            }
            Step::FeedForward {
                inputs: width,
                hidden,
                outputs,
                norm,
                encoding,
                bias,
                gated,
                residual,
            } => {
                let (shape, x) = inputs.next::<f32>()?;
                let residual = inputs.optional(residual)?;
                let block = FeedForward {
                    norm: inputs.norm(norm)?,
                    gate: if gated {
                        Some(inputs.matrix(encoding, hidden, width)?)
                    } else {
                        None
                    },
                    up: inputs.matrix(encoding, hidden, width)?,
                    up_bias: inputs.optional(bias)?,
                    down: inputs.matrix(encoding, outputs, hidden)?,
                    down_bias: inputs.optional(bias)?,
                };
                let out = one(made, &with_last(shape, outputs))?;
                feed_forward(isa, pool, x, &block, residual, out);
            }
            Step::SelfAttention { heads, head_dim } => {
                let (shape, qkv) = inputs.next::<f32>()?;
                let [batch, tokens, _] = rank(&shape)?;
                let shape = SelfAttention {
                    batch,
                    tokens,
                    heads,
                    head_dim,
                    scale: scale(head_dim),
                };
                let out = one(made, &[batch, tokens, heads * head_dim])?;
                self_attention(isa, pool, &shape, qkv, out);
            }
            Step::DecoderAttention {
                heads,
                kv_heads,
                head_dim,
            } => {
                let (shape, qkv) = inputs.next::<f32>()?;
                let [batch, new, _] = rank(&shape)?;
                let (cache, key) = inputs.next::<f32>()?;
                let (_, value) = inputs.next::<f32>()?;
                let [_, _, past, _] = rank(&cache)?;
                let input = decoder_attention::Input {
                    qkv,
                    past: Cache { key, value },
                    mask: inputs.next::<i64>()?.1,
                    positions: inputs.next::<i64>()?.1,
                    inv_freq: inputs.next::<f32>()?.1,
                };
                let shape = DecoderAttention {
                    batch,
                    new,
                    past,
                    heads,
                    kv_heads,
                    head_dim,
                    scale: scale(head_dim),
                };
                let present = [batch, kv_heads, past + new, head_dim];
                let mixed = [batch, new, heads * head_dim];
                let [out, key, value] =
                    <[&mut [f32]; 3]>::try_from(made.make(&[&mixed, &present, &present])?)
                        .map_err(|_| "not three outputs".to_owned())?;
                let present = CacheMut { key, value };
                decoder_attention(isa, pool, &shape, &input, out, present);
            }
            Step::Embedding { width, form } => {
                let (shape, ids) = inputs.next::<i64>()?;
                let (table, rows) = inputs.table(form)?;
                let out = one(made, &[&shape[..], &[width]].concat())?;
                for (out, id) in out.chunks_mut(width).zip(ids) {
                    let row = usize::try_from(*id).ok().filter(|row| *row < rows);
                    if row.and_then(|row| table.row(row, out)).is_none() {
                        return Err(format!("token id {id} is not in a table of {rows} rows"));
                    }
                }
            }
            Step::Logits(form) => {
                let (shape, x) = inputs.next::<f32>()?;
                let [rows, width] = rank(&shape)?;
                let (table, entries) = inputs.table(form)?;
                let out = one(made, &[rows, entries])?;
                logits(isa, pool, x, width, table, entries, out);
            }
        }
        Ok(())
    }
}

/// The only output.
fn one<'o>(outputs: &'o mut dyn Outputs, shape: &[usize]) -> Result<&'o mut [f32], String> {
    let made = outputs.make(&[shape])?;
    made.into_iter().next().ok_or_else(|| "no output".to_owned())
}

/// `1 / sqrt(d)`
fn scale(head_dim: usize) -> f32 {
    1.0 / (head_dim as f32).sqrt()
}

/// The shape with another last dimension.
fn with_last(mut shape: Vec<usize>, last: usize) -> Vec<usize> {
    if let Some(length) = shape.last_mut() {
        *length = last;
    }
    shape
}

fn rank<const N: usize>(shape: &[usize]) -> Result<[usize; N], String> {
    <[usize; N]>::try_from(shape).map_err(|_| format!("an input has shape {shape:?}, expected rank {N}"))
}

/// Inputs in order.
struct Taken<'i, 'd> {
    inputs: std::slice::Iter<'i, Input<'d>>,
}

impl<'i> Taken<'i, '_> {
    fn next<T: Element>(&mut self) -> Result<(Vec<usize>, &'i [T]), String> {
        let input = self.inputs.next().ok_or("a fused operator has too few inputs")?;
        let data = T::of(input.data)
            .ok_or_else(|| format!("an input is {}, expected {}", input.data.name(), T::NAME))?;
        Ok((input.shape.clone(), data))
    }

    fn optional(&mut self, there: bool) -> Result<Option<&'i [f32]>, String> {
        if there {
            Ok(Some(self.next::<f32>()?.1))
        } else {
            Ok(None)
        }
    }

    fn norm(&mut self, kind: NormKind) -> Result<Norm<'i>, String> {
        Ok(match kind {
            NormKind::None => Norm::None,
            NormKind::Rms(epsilon) => Norm::Rms {
                gamma: self.next()?.1,
                epsilon,
            },
            NormKind::Layer(epsilon) => Norm::Layer {
                gamma: self.next()?.1,
                beta: self.next()?.1,
                epsilon,
            },
        })
    }

    /// A table, and how many rows it has.
    fn table(&mut self, form: TableForm) -> Result<(Table<'i>, usize), String> {
        Ok(match form {
            TableForm::Float32 => {
                let (shape, values) = self.next()?;
                (Table::Float32(values), rank::<2>(&shape)?[0])
            }
            TableForm::Bytes => {
                let (shape, bytes) = self.next()?;
                let scales = self.next()?.1;
                (Table::Int8 { bytes, scales }, rank::<2>(&shape)?[0])
            }
            TableForm::Planes => {
                let (shape, high) = self.next()?;
                let (low, scales) = (self.next()?.1, self.next()?.1);
                (Table::Planes(Planes { high, low, scales }), rank::<3>(&shape)?[0])
            }
        })
    }

    fn matrix(&mut self, encoding: Encoding, outputs: usize, inputs: usize) -> Result<Matrix<'i>, String> {
        let panels = match encoding {
            Encoding::Float32 => Panels::Float32(self.next()?.1),
            Encoding::Int8 => Panels::Int8 {
                bytes: self.next()?.1,
                scales: self.next()?.1,
            },
            Encoding::Int4 => Panels::Int4 {
                nibbles: self.next()?.1,
                scales: self.next()?.1,
            },
        };
        Ok(Matrix {
            outputs,
            inputs,
            panels,
        })
    }
}
