//! Which kernel does a node of target `cpu` call, and with what? Its parameters, as [`models::fused`] has
//! them, and tensors in, whatever engine holds them.

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
use kernels::{Isa, layout};
use models::dtype::DType;
use models::fused::{self, Encoding, Fused, TableEncoding};

// The kernels know nothing of bundles; that they read weights as a bundle stores them is said here.
const _: () = {
    assert!(layout::PANEL as u64 == fused::PANEL);
    assert!(layout::GROUP as u64 == fused::GROUP);
    assert!(layout::BLOCK as u64 == fused::BLOCK);
    assert!(layout::PLANE_BLOCK as u64 == fused::PLANE_BLOCK);
};

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

impl Input<'_> {
    /// As the contract of the operators looks at it.
    fn as_declared(&self) -> fused::Input<'_, usize> {
        fused::Input {
            name: self.data.name(),
            dtype: match self.data {
                Data::F32(_) => DType::Float32,
                Data::F16(_) => DType::Float16,
                Data::U8(_) => DType::UInt8,
                Data::I64(_) => DType::Int64,
            },
            shape: &self.shape,
        }
    }
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

/// How the nodes of a session are computed.
#[derive(Clone, Copy)]
pub(super) struct Means<'p> {
    pub(super) isa: Isa,
    pub(super) pool: &'p dyn Parallel,
    /// Whether weights are in bytes or less, so that what has none may be computed in words of 16 bits.
    pub(super) words: bool,
}

/// Computes a node. What does not fit together is an error, not a panic.
pub(super) fn run(
    fused: &Fused,
    means: Means<'_>,
    inputs: &[Input<'_>],
    outputs: &mut dyn Outputs,
) -> Result<(), String> {
    let Means { isa, pool, words } = means;
    let call = Call {
        isa,
        words,
        pool,
        inputs: Taken {
            inputs: inputs.iter(),
        },
        outputs: Made {
            fused,
            inputs,
            outputs,
        },
    };
    // Kernels assert what they are given.
    super::catch(|| call.run(fused)).unwrap_or_else(|words| {
        Err(format!(
            "the inputs of a {} do not fit together: {words}",
            fused.name()
        ))
    })
}

/// A node that is computed.
struct Call<'c, 'd> {
    isa: Isa,
    words: bool,
    pool: &'c dyn Parallel,
    inputs: Taken<'c, 'd>,
    outputs: Made<'c, 'd>,
}

impl Call<'_, '_> {
    fn run(mut self, fused: &Fused) -> Result<(), String> {
        match *fused {
            Fused::Stem {
                kernel,
                stride,
                depthwise_kernel,
                depthwise_stride,
            } => self.stem([kernel, stride], [depthwise_kernel, depthwise_stride]),
            Fused::DepthwiseConv { kernel, stride, gelu } => self.depthwise([kernel, stride], gelu),
            Fused::Linear {
                inputs,
                outputs,
                norm,
                encoding,
                bias,
                gelu,
                residual,
            } => {
                let (_, x) = self.inputs.next::<f32>()?;
                let residual = self.inputs.optional(residual)?;
                let layer = Linear {
                    norm: self.inputs.norm(norm)?,
                    weight: self.inputs.matrix(encoding, outputs, inputs)?,
                    bias: self.inputs.optional(bias)?,
                    activation: if gelu { Activation::Gelu } else { Activation::None },
                };
                let out = self.outputs.one()?;
                linear(self.isa, self.pool, x, &layer, residual, out);
                Ok(())
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
                let (_, x) = self.inputs.next::<f32>()?;
                let residual = self.inputs.optional(residual)?;
                let block = FeedForward {
                    norm: self.inputs.norm(norm)?,
                    gate: if gated {
                        Some(self.inputs.matrix(encoding, hidden, inputs)?)
                    } else {
                        None
                    },
                    up: self.inputs.matrix(encoding, hidden, inputs)?,
                    up_bias: self.inputs.optional(bias)?,
                    down: self.inputs.matrix(encoding, outputs, hidden)?,
                    down_bias: self.inputs.optional(bias)?,
                };
                let out = self.outputs.one()?;
                feed_forward(self.isa, self.pool, x, &block, residual, out);
                Ok(())
            }
            Fused::SelfAttention { heads, head_dim } => self.self_attention(size(heads), size(head_dim)),
            Fused::DecoderAttention {
                heads,
                kv_heads,
                head_dim,
            } => self.decoder_attention(size(heads), size(kv_heads), size(head_dim)),
            Fused::Embedding { width, encoding } => self.embedding(size(width), encoding),
            Fused::Logits { encoding } => self.logits(encoding),
        }
    }

    /// Each convolution is the side of its kernel and its step.
    fn stem(mut self, first: [u64; 2], second: [u64; 2]) -> Result<(), String> {
        let (shape, x) = self.inputs.next::<f32>()?;
        let [batch, planes, height, width] = rank(shape)?;
        let (_, kernel) = self.inputs.next::<f32>()?;
        let (_, bias) = self.inputs.next::<f32>()?;
        let [kernel_size, stride] = first.map(size);
        let conv = StemConv {
            batch,
            planes,
            height,
            width,
            channels: bias.len(),
            kernel_size,
            stride,
            kernel,
            bias,
        };
        let [kernel_size, stride] = second.map(size);
        let then = Depthwise {
            kernel_size,
            stride,
            kernel: self.inputs.next::<f32>()?.1,
            bias: self.inputs.next::<f32>()?.1,
        };
        stem(self.isa, self.pool, &conv, &then, x, self.outputs.one()?);
        Ok(())
    }

    fn depthwise(mut self, sizes: [u64; 2], gelu: bool) -> Result<(), String> {
        let (shape, x) = self.inputs.next::<f32>()?;
        let [batch, height, width, channels] = rank(shape)?;
        let (_, kernel) = self.inputs.next::<f32>()?;
        let (_, bias) = self.inputs.next::<f32>()?;
        let [kernel_size, stride] = sizes.map(size);
        let conv = DepthwiseConv {
            batch,
            height,
            width,
            channels,
            multiplier: bias.len() / channels.max(1),
            kernel_size,
            stride,
            kernel,
            bias,
            gelu,
        };
        depthwise(self.isa, self.pool, &conv, x, self.outputs.one()?);
        Ok(())
    }

    fn self_attention(mut self, heads: usize, head_dim: usize) -> Result<(), String> {
        let (shape, qkv) = self.inputs.next::<f32>()?;
        let [batch, tokens, _] = rank(shape)?;
        let shape = SelfAttention {
            batch,
            tokens,
            heads,
            head_dim,
            scale: scale(head_dim),
            words: self.words,
        };
        self_attention(self.isa, self.pool, &shape, qkv, self.outputs.one()?);
        Ok(())
    }

    fn decoder_attention(mut self, heads: usize, kv_heads: usize, head_dim: usize) -> Result<(), String> {
        let (shape, qkv) = self.inputs.next::<f32>()?;
        let [batch, new, _] = rank(shape)?;
        let (cache, key) = self.inputs.next::<f32>()?;
        let (_, value) = self.inputs.next::<f32>()?;
        let [_, _, past, _] = rank(cache)?;
        let input = decoder_attention::Input {
            qkv,
            past: Cache { key, value },
            mask: self.inputs.next::<i64>()?.1,
            positions: self.inputs.next::<i64>()?.1,
            inv_freq: self.inputs.next::<f32>()?.1,
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
        let [out, key, value] = self.outputs.all()?;
        let present = CacheMut { key, value };
        decoder_attention(self.isa, self.pool, &shape, &input, out, present);
        Ok(())
    }

    fn embedding(mut self, width: usize, encoding: TableEncoding) -> Result<(), String> {
        let (_, ids) = self.inputs.next::<i64>()?;
        let (table, rows) = self.inputs.table(encoding)?;
        let out = self.outputs.one()?;
        for (out, id) in out.chunks_mut(width).zip(ids) {
            let row = usize::try_from(*id).ok().filter(|row| *row < rows);
            if row.and_then(|row| table.row(row, out)).is_none() {
                return Err(format!("token id {id} is not in a table of {rows} rows"));
            }
        }
        Ok(())
    }

    fn logits(mut self, encoding: TableEncoding) -> Result<(), String> {
        let (shape, x) = self.inputs.next::<f32>()?;
        let [_, width] = rank(shape)?;
        let (table, entries) = self.inputs.table(encoding)?;
        let out = self.outputs.one()?;
        logits(self.isa, self.pool, x, width, table, entries, out);
        Ok(())
    }
}

/// The outputs of a node, not made yet.
struct Made<'c, 'd> {
    fused: &'c Fused,
    inputs: &'c [Input<'d>],
    outputs: &'c mut dyn Outputs,
}

impl<'c> Made<'c, '_> {
    /// All outputs, of the shapes that the operator's rule gives, for inputs that fit together: attributes are held
    /// against all shapes before anything is allocated by them.
    fn all<const N: usize>(self) -> Result<[&'c mut [f32]; N], String> {
        let fused = self.fused;
        let inputs: Vec<fused::Input<'_, usize>> = self.inputs.iter().map(Input::as_declared).collect();
        let shapes = fused
            .infer(&inputs)
            .map_err(|words| format!("the inputs of a {} do not fit together: {words}", fused.name()))?;
        let shapes: Vec<&[usize]> = shapes.iter().map(|shape| &shape[..]).collect();
        let made = self.outputs.make(&shapes)?;
        let count = made.len();
        <[&mut [f32]; N]>::try_from(made).map_err(|_| format!("{count} outputs were made, expected {N}"))
    }

    /// The only output.
    fn one(self) -> Result<&'c mut [f32], String> {
        self.all().map(|[only]| only)
    }
}

/// Sizes are read up to [`fused::LARGEST`].
fn size(size: u64) -> usize {
    usize::try_from(size).unwrap_or(usize::MAX)
}

/// `1 / sqrt(d)`
fn scale(head_dim: usize) -> f32 {
    1.0 / (head_dim as f32).sqrt()
}

fn rank<const N: usize>(shape: &[usize]) -> Result<[usize; N], String> {
    <[usize; N]>::try_from(shape).map_err(|_| format!("an input has shape {shape:?}, expected rank {N}"))
}

/// Inputs in order.
struct Taken<'i, 'd> {
    inputs: std::slice::Iter<'i, Input<'d>>,
}

impl<'i> Taken<'i, '_> {
    fn next<T: Element>(&mut self) -> Result<(&'i [usize], &'i [T]), String> {
        let input = self.inputs.next().ok_or("a fused operator has too few inputs")?;
        let data = T::of(input.data)
            .ok_or_else(|| format!("an input is {}, expected {}", input.data.name(), T::NAME))?;
        Ok((&input.shape, data))
    }

    fn optional(&mut self, there: bool) -> Result<Option<&'i [f32]>, String> {
        if there {
            Ok(Some(self.next::<f32>()?.1))
        } else {
            Ok(None)
        }
    }

    fn norm(&mut self, norm: fused::Norm) -> Result<Norm<'i>, String> {
        Ok(match norm {
            fused::Norm::None => Norm::None,
            fused::Norm::Rms { epsilon } => Norm::Rms {
                gamma: self.next()?.1,
                epsilon,
            },
            fused::Norm::Layer { epsilon } => Norm::Layer {
                gamma: self.next()?.1,
                beta: self.next()?.1,
                epsilon,
            },
        })
    }

    /// A table, and how many rows it has.
    fn table(&mut self, encoding: TableEncoding) -> Result<(Table<'i>, usize), String> {
        Ok(match encoding {
            TableEncoding::Float32 => {
                let (shape, values) = self.next()?;
                (Table::Float32(values), rank::<2>(shape)?[0])
            }
            TableEncoding::Bytes => {
                let (shape, bytes) = self.next()?;
                let scales = self.next()?.1;
                (Table::Int8 { bytes, scales }, rank::<2>(shape)?[0])
            }
            TableEncoding::Planes => {
                let (shape, high) = self.next()?;
                let (low, scales) = (self.next()?.1, self.next()?.1);
                (Table::Planes(Planes { high, low, scales }), rank::<3>(shape)?[0])
            }
        })
    }

    fn matrix(&mut self, encoding: Encoding, outputs: u64, inputs: u64) -> Result<Matrix<'i>, String> {
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
            outputs: size(outputs),
            inputs: size(inputs),
            panels,
        })
    }
}
