//! How does ONNX Runtime come to run our kernels? As custom operators of the domain that the fused functions live in:
//! a registered operator goes before a function's body.

use crate::kernels::decoder_attention::{DecoderAttention, decoder_attention};
use crate::kernels::depthwise::{DepthwiseConv, depthwise};
use crate::kernels::feed_forward::{FeedForward, feed_forward};
use crate::kernels::linear::{Activation, linear};
use crate::kernels::logits::{Table, logits};
use crate::kernels::matrix::{Matrix, Panels};
use crate::kernels::norm::Norm;
use crate::kernels::parallel::Parallel;
use crate::kernels::planes::Planes;
use crate::kernels::self_attention::self_attention;
use crate::kernels::simd::Isa;
use crate::kernels::stem::{Depthwise, StemConv, stem};
use half::slice::HalfFloatSliceExt as _;
use ort::operator::{
    ComputeContext, Kernel, KernelContext, Operator, OperatorDomain, OperatorInput, OperatorOutput,
};
use ort::value::{PrimitiveTensorElementType, TensorElementType, ValueRef, ValueRefMut};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// The domain of the fused operators, as `models::graph::fused` has it.
const DOMAIN: &str = "fvlm";

/// The fused operators for a session with this many threads.
pub(super) fn domain(threads: usize) -> ort::Result<OperatorDomain> {
    let mut domain = OperatorDomain::new(DOMAIN)?;
    for kind in Kind::ALL {
        domain = domain.add(Fused { kind, threads })?;
    }
    Ok(domain)
}

/// The operators of `models::graph::fused::Fused`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
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
    const ALL: [Kind; 8] = [
        Kind::Stem,
        Kind::DepthwiseConv,
        Kind::Linear,
        Kind::FeedForward,
        Kind::SelfAttention,
        Kind::DecoderAttention,
        Kind::Embedding,
        Kind::Logits,
    ];
}

/// One operator; its inputs have any types, which the kernel checks.
struct Fused {
    kind: Kind,
    threads: usize,
}

impl Operator for Fused {
    type Kernel<'attr> = FusedKernel;

    fn name(&self) -> &str {
        match self.kind {
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

    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        [OperatorInput::variadic(1)]
    }

    fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
        let count = if self.kind == Kind::DecoderAttention { 3 } else { 1 };
        (0..count).map(|_| OperatorOutput::required(TensorElementType::Float32))
    }

    fn create_kernel<'attr>(&self, context: &KernelContext<'attr>) -> ort::Result<FusedKernel> {
        let attributes = Attributes { context };
        Ok(FusedKernel {
            step: Step::new(self.kind, &attributes)?,
            threads: self.threads,
            isa: Isa::detect(),
        })
    }
}

/// The attributes of a node.
struct Attributes<'a, 'attr> {
    context: &'a KernelContext<'attr>,
}

impl Attributes<'_, '_> {
    fn int(&self, name: &str) -> ort::Result<i64> {
        let missing = || ort::Error::new(format!("a fused operator has no attribute `{name}`"));
        self.context.get::<i64>(name).ok_or_else(missing)
    }

    fn size(&self, name: &str) -> ort::Result<usize> {
        let value = self.int(name)?;
        let size = usize::try_from(value)
            .ok()
            .filter(|size| (1..=1 << 24).contains(size));
        size.ok_or_else(|| ort::Error::new(format!("attribute `{name}` is {value}, expected 1 to 2^24")))
    }

    fn flag(&self, name: &str) -> ort::Result<bool> {
        Ok(self.int(name)? != 0)
    }

    fn encoding(&self) -> ort::Result<Encoding> {
        match self.int("bits")? {
            32 => Ok(Encoding::Float32),
            8 => Ok(Encoding::Int8),
            4 => Ok(Encoding::Int4),
            other => Err(ort::Error::new(format!(
                "weights have {other} bits, expected 32, 8 or 4"
            ))),
        }
    }

    fn table(&self) -> ort::Result<TableForm> {
        match (self.int("bits")?, self.int("planes")?) {
            (32, 1) => Ok(TableForm::Float32),
            (8, 1) => Ok(TableForm::Bytes),
            (8, 2) => Ok(TableForm::Planes),
            (bits, planes) => Err(ort::Error::new(format!(
                "a table has {bits} bits in {planes} planes, expected 32 or 8 in one, or 8 in two"
            ))),
        }
    }

    fn norm(&self) -> ort::Result<NormKind> {
        let missing = || ort::Error::new("a fused operator has no attribute `epsilon`");
        let epsilon = self.context.get::<f32>("epsilon").ok_or_else(missing)?;
        match self.int("norm")? {
            0 => Ok(NormKind::None),
            1 => Ok(NormKind::Rms(epsilon)),
            2 => Ok(NormKind::Layer(epsilon)),
            other => Err(ort::Error::new(format!("norm is {other}, expected 0, 1 or 2"))),
        }
    }
}

#[derive(Debug, Clone, Copy)]
enum Encoding {
    Float32,
    Int8,
    Int4,
}

#[derive(Debug, Clone, Copy)]
enum TableForm {
    Float32,
    Bytes,
    Planes,
}

#[derive(Debug, Clone, Copy)]
enum NormKind {
    None,
    Rms(f32),
    Layer(f32),
}

/// An operator with its parameters.
#[derive(Debug, Clone, Copy)]
enum Step {
    Stem {
        kernel: usize,
        stride: usize,
        depthwise_kernel: usize,
        depthwise_stride: usize,
    },
    DepthwiseConv(Window),
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

/// Parameters of a convolution.
#[derive(Debug, Clone, Copy)]
struct Window {
    kernel: usize,
    stride: usize,
    gelu: bool,
}

impl Step {
    fn new(kind: Kind, attributes: &Attributes<'_, '_>) -> ort::Result<Step> {
        let window = || {
            Ok::<_, ort::Error>(Window {
                kernel: attributes.size("kernel")?,
                stride: attributes.size("stride")?,
                gelu: attributes.flag("gelu")?,
            })
        };
        Ok(match kind {
            Kind::Stem => Step::Stem {
                kernel: attributes.size("kernel")?,
                stride: attributes.size("stride")?,
                depthwise_kernel: attributes.size("depthwise_kernel")?,
                depthwise_stride: attributes.size("depthwise_stride")?,
            },
            Kind::DepthwiseConv => Step::DepthwiseConv(window()?),
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
}

/// What ONNX Runtime calls.
struct FusedKernel {
    step: Step,
    threads: usize,
    isa: Isa,
}

impl Kernel for FusedKernel {
    fn compute(&mut self, context: &ComputeContext) -> ort::Result<()> {
        // Kernels assert what they are given; through the library's C code no panic may pass.
        let run = AssertUnwindSafe(|| self.run(context));
        catch_unwind(run).unwrap_or_else(|_| {
            let step = self.step;
            Err(ort::Error::new(format!(
                "the inputs of {step:?} do not fit together"
            )))
        })
    }
}

/// ONNX Runtime's threads.
struct Pool<'a> {
    context: &'a ComputeContext,
    threads: usize,
}

// SAFETY: `ComputeContext` is a pointer to the library's kernel context, used here only to start parallel loops, from
// the thread that computes.
unsafe impl Sync for Pool<'_> {}

impl Parallel for Pool<'_> {
    fn threads(&self) -> usize {
        self.threads
    }

    fn run(&self, count: usize, task: &(dyn Fn(usize) + Sync)) {
        if count <= 1 || self.threads <= 1 || self.context.par_for(count, 0, task).is_err() {
            (0..count).for_each(task);
        }
    }
}

impl FusedKernel {
    fn run(&self, context: &ComputeContext) -> ort::Result<()> {
        let inputs = Inputs::new(context)?;
        let mut inputs = Taken {
            inputs: &inputs,
            next: 0,
        };
        let pool = Pool {
            context,
            threads: self.threads,
        };
        let isa = self.isa;
        match self.step {
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
                let mut out = Output::new(context, 0, &[batch, rows, columns, bias.len()])?;
                stem(isa, &pool, &conv, &then, x, out.data()?);
            }
            Step::DepthwiseConv(Window { kernel, stride, gelu }) => {
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
                let mut out = Output::new(context, 0, &[batch, rows, columns, bias.len()])?;
                depthwise(isa, &pool, &conv, x, out.data()?);
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
                let norm = inputs.norm(norm)?;
                let weight = inputs.matrix(encoding, outputs, width)?;
                let bias = inputs.optional(bias)?;
                let activation = if gelu { Activation::Gelu } else { Activation::None };
                let mut out = Output::new(context, 0, &with_last(shape, outputs))?;
                linear(
                    isa,
                    &pool,
                    x,
                    &norm,
                    &weight,
                    bias,
                    activation,
                    residual,
                    out.data()?,
                );
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
                let mut out = Output::new(context, 0, &with_last(shape, outputs))?;
                feed_forward(isa, &pool, x, &block, residual, out.data()?);
            }
            Step::SelfAttention { heads, head_dim } => {
                let (shape, qkv) = inputs.next::<f32>()?;
                let [batch, tokens, _] = rank(&shape)?;
                let scale = scale(head_dim);
                let mut out = Output::new(context, 0, &[batch, tokens, heads * head_dim])?;
                self_attention(
                    isa,
                    &pool,
                    batch,
                    tokens,
                    heads,
                    head_dim,
                    scale,
                    qkv,
                    out.data()?,
                );
            }
            Step::DecoderAttention {
                heads,
                kv_heads,
                head_dim,
            } => {
                let (shape, qkv) = inputs.next::<f32>()?;
                let [batch, new, _] = rank(&shape)?;
                let (cache, past_key) = inputs.next::<f32>()?;
                let (_, past_value) = inputs.next::<f32>()?;
                let [_, _, past, _] = rank(&cache)?;
                let (_, mask) = inputs.next::<i64>()?;
                let (_, positions) = inputs.next::<i64>()?;
                let (_, frequencies) = inputs.next::<f32>()?;
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
                let mut out = Output::new(context, 0, &[batch, new, heads * head_dim])?;
                let mut key = Output::new(context, 1, &present)?;
                let mut value = Output::new(context, 2, &present)?;
                decoder_attention(
                    isa,
                    &pool,
                    &shape,
                    qkv,
                    past_key,
                    past_value,
                    mask,
                    positions,
                    frequencies,
                    out.data()?,
                    key.data()?,
                    value.data()?,
                );
            }
            Step::Embedding { width, form } => {
                let (shape, ids) = inputs.next::<i64>()?;
                let (table, rows) = inputs.table(form)?;
                let mut out = Output::new(context, 0, &[&shape[..], &[width]].concat())?;
                for (out, id) in out.data()?.chunks_mut(width).zip(ids) {
                    let row = usize::try_from(*id).ok().filter(|row| *row < rows);
                    if row.and_then(|row| table.row(row, out)).is_none() {
                        return Err(ort::Error::new(format!(
                            "token id {id} is not in a table of {rows} rows"
                        )));
                    }
                }
            }
            Step::Logits(form) => {
                let (shape, x) = inputs.next::<f32>()?;
                let [rows, width] = rank(&shape)?;
                let (table, entries) = inputs.table(form)?;
                let mut out = Output::new(context, 0, &[rows, entries])?;
                logits(isa, &pool, x, width, table, entries, out.data()?);
            }
        }
        Ok(())
    }
}

/// `1 / sqrt(d)`
#[allow(clippy::as_conversions, clippy::cast_precision_loss)]
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

fn rank<const N: usize>(shape: &[usize]) -> ort::Result<[usize; N]> {
    <[usize; N]>::try_from(shape)
        .map_err(|_| ort::Error::new(format!("an input has shape {shape:?}, expected rank {N}")))
}

/// The inputs of a call.
struct Inputs<'c> {
    values: Vec<ValueRef<'c>>,
}

impl<'c> Inputs<'c> {
    fn new(context: &'c ComputeContext) -> ort::Result<Self> {
        let missing = || ort::Error::new("an input of a fused operator is missing");
        let count = context.num_inputs()?;
        let values = (0..count).map(|index| context.input(index)?.ok_or_else(missing));
        Ok(Inputs {
            values: values.collect::<ort::Result<_>>()?,
        })
    }
}

/// Inputs in order.
struct Taken<'i> {
    inputs: &'i Inputs<'i>,
    next: usize,
}

impl<'i> Taken<'i> {
    fn next<T: PrimitiveTensorElementType>(&mut self) -> ort::Result<(Vec<usize>, &'i [T])> {
        let missing = || ort::Error::new("a fused operator has too few inputs");
        let value = self.inputs.values.get(self.next).ok_or_else(missing)?;
        self.next += 1;
        let (shape, data) = value.try_extract_tensor::<T>()?;
        let shape = shape
            .iter()
            .map(|length| usize::try_from(*length).unwrap_or(0))
            .collect();
        Ok((shape, data))
    }

    fn optional(&mut self, there: bool) -> ort::Result<Option<&'i [f32]>> {
        if there {
            Ok(Some(self.next::<f32>()?.1))
        } else {
            Ok(None)
        }
    }

    fn norm(&mut self, kind: NormKind) -> ort::Result<Norm<'i>> {
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
    fn table(&mut self, form: TableForm) -> ort::Result<(Table<'i>, usize)> {
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

    fn matrix(&mut self, encoding: Encoding, outputs: usize, inputs: usize) -> ort::Result<Matrix<'i>> {
        let panels = match encoding {
            Encoding::Float32 => Panels::Float32(self.next()?.1),
            Encoding::Int8 => Panels::Int8 {
                bytes: self.next()?.1,
                scales: self.next()?.1,
            },
            Encoding::Int4 => Panels::Int4 {
                nibbles: self.next()?.1,
                scales: self.next::<half::f16>()?.1.reinterpret_cast(),
            },
        };
        Ok(Matrix {
            outputs,
            inputs,
            panels,
        })
    }
}

/// An output of a call.
struct Output<'c> {
    value: ValueRefMut<'c>,
}

impl<'c> Output<'c> {
    fn new(context: &'c ComputeContext, index: usize, shape: &[usize]) -> ort::Result<Self> {
        let missing = || ort::Error::new("an output of a fused operator is missing");
        let shape: Vec<i64> = shape
            .iter()
            .map(|length| i64::try_from(*length).unwrap_or(i64::MAX))
            .collect();
        Ok(Output {
            value: context.output(index, shape)?.ok_or_else(missing)?,
        })
    }

    fn data(&mut self) -> ort::Result<&mut [f32]> {
        Ok(self.value.try_extract_tensor_mut::<f32>()?.1)
    }
}
