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
use std::marker::PhantomData;
use std::ops::Range;

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
    /// float32 of a cache, written where they lie.
    #[cfg_attr(
        not(feature = "ort"),
        expect(dead_code, reason = "one engine gives tensors that may be written")
    )]
    Open(Open<'a>),
}

/// Keys or values of a cache that has room: nobody else reads or writes them while a node is computed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Open<'a> {
    start: *mut f32,
    length: usize,
    held: PhantomData<&'a mut [f32]>,
}

impl<'a> Open<'a> {
    /// # Safety
    /// There are `length` numbers, this node's alone, as long as the lifetime says.
    #[cfg(feature = "ort")]
    #[expect(unsafe_code, reason = "the caller promises what no type says")]
    pub(super) unsafe fn new(start: *mut f32, length: usize) -> Open<'a> {
        Open {
            start,
            length,
            held: PhantomData,
        }
    }

    /// The addresses where they lie.
    fn addresses(self) -> Range<usize> {
        let start = self.start.addr();
        start..start + size_of::<f32>() * self.length
    }

    /// Keys and values; `None` where they are not apart.
    ///
    /// # Safety
    /// To be called once for a node.
    #[expect(unsafe_code, reason = "the caller promises what no type says")]
    unsafe fn both(key: Self, value: Self) -> Option<CacheMut<'a>> {
        let [keys, values] = [key.addresses(), value.addresses()];
        if keys.start < values.end && values.start < keys.end {
            return None;
        }
        // SAFETY: by the promises to `new` and to this function, and they do not overlap.
        let [key, value] =
            [key, value].map(|open| unsafe { std::slice::from_raw_parts_mut(open.start, open.length) });
        Some(CacheMut { key, value })
    }
}

impl Input<'_> {
    /// As the contract of the operators looks at it.
    fn as_declared(&self) -> fused::Input<'_, usize> {
        fused::Input {
            name: self.data.name(),
            dtype: match self.data {
                Data::F32(_) | Data::Open(_) => DType::Float32,
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
            Data::F32(_) | Data::Open(_) => "float32",
            Data::F16(_) => "float16",
            Data::U8(_) => "uint8",
            Data::I64(_) => "int64",
        }
    }

    /// The addresses where it lies.
    fn addresses(self) -> Range<usize> {
        fn of<T>(data: &[T]) -> Range<usize> {
            let Range { start, end } = data.as_ptr_range();
            start.addr()..end.addr()
        }
        match self {
            Data::F32(data) => of(data),
            Data::F16(data) => of(data),
            Data::U8(data) => of(data),
            Data::I64(data) => of(data),
            Data::Open(open) => open.addresses(),
        }
    }
}

/// Refuses a cache that is to be written where it lies and is another input of the node too, as a graph may have it.
fn check_apart(inputs: &[Input<'_>]) -> Result<(), String> {
    let is_open = |input: &&Input<'_>| matches!(input.data, Data::Open(_));
    for open in inputs.iter().filter(is_open) {
        let open = open.data.addresses();
        for other in inputs.iter().filter(|input| !is_open(input)) {
            let other = other.data.addresses();
            if open.start < other.end && other.start < open.end {
                return Err("a cache is another input of its attention too".to_owned());
            }
        }
    }
    Ok(())
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
    check_apart(inputs)?;
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
        let open = self.inputs.open();
        let (cache, past) = match open {
            Some((cache, _)) => (cache, None),
            None => {
                let (cache, key) = self.inputs.next::<f32>()?;
                let (_, value) = self.inputs.next::<f32>()?;
                (cache, Some(Cache { key, value }))
            }
        };
        let [_, _, slots, _] = rank(cache)?;
        let (mask_shape, mask) = self.inputs.next::<i64>()?;
        let input = decoder_attention::Input {
            qkv,
            past,
            mask,
            positions: self.inputs.next::<i64>()?.1,
            inv_freq: self.inputs.next::<f32>()?.1,
        };
        let mut shape = DecoderAttention {
            batch,
            new,
            past: slots,
            slots: slots.saturating_add(new),
            heads,
            kv_heads,
            head_dim,
            scale: scale(head_dim),
        };
        let (out, present) = if let Some((_, present)) = open {
            let [_, total] = rank(mask_shape)?;
            let past = total.checked_sub(new).filter(|_| total <= slots);
            let past = past.ok_or_else(|| {
                format!("a mask of {total} positions, {new} of them new, is for a cache of {slots}")
            })?;
            (shape.past, shape.slots) = (past, slots);
            (self.outputs.beside_cache(past)?, present?)
        } else {
            let [out, key, value] = self.outputs.all()?;
            (out, CacheMut { key, value })
        };
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
        made(self.outputs, &shapes(self.fused, self.inputs)?)
    }

    /// The output beside a cache that grows where it lies, from `past` positions on: what else is made has none.
    fn beside_cache(self, past: usize) -> Result<&'c mut [f32], String> {
        let filled = self.inputs.iter().map(|input| Input {
            shape: match (input.data, &*input.shape) {
                (Data::Open(_), &[batch, heads, _, width]) => vec![batch, heads, past, width],
                _ => input.shape.clone(),
            },
            data: input.data,
        });
        let filled: Vec<Input<'_>> = filled.collect();
        let mut shapes = shapes(self.fused, &filled)?;
        for shape in shapes.iter_mut().skip(1) {
            if let Some(slots) = shape.get_mut(2) {
                *slots = 0;
            }
        }
        let [out, _, _] = made(self.outputs, &shapes)?;
        Ok(out)
    }

    /// The only output.
    fn one(self) -> Result<&'c mut [f32], String> {
        self.all().map(|[only]| only)
    }
}

/// What the outputs of a node will be, for inputs that fit together.
fn shapes(fused: &Fused, inputs: &[Input<'_>]) -> Result<Vec<Vec<usize>>, String> {
    let inputs: Vec<fused::Input<'_, usize>> = inputs.iter().map(Input::as_declared).collect();
    fused
        .infer(&inputs)
        .map_err(|words| format!("the inputs of a {} do not fit together: {words}", fused.name()))
}

/// As many outputs as shapes.
fn made<'c, const N: usize>(
    outputs: &'c mut dyn Outputs,
    shapes: &[Vec<usize>],
) -> Result<[&'c mut [f32]; N], String> {
    let shapes: Vec<&[usize]> = shapes.iter().map(|shape| &shape[..]).collect();
    let made = outputs.make(&shapes)?;
    let count = made.len();
    <[&mut [f32]; N]>::try_from(made).map_err(|_| format!("{count} outputs were made, expected {N}"))
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

    /// A cache that is written where it lies, if the next two inputs are one, and its shape.
    fn open(&mut self) -> Option<(&'i [usize], Result<CacheMut<'i>, String>)> {
        let [key, value, ..] = self.inputs.as_slice() else {
            return None;
        };
        let (Data::Open(keys), Data::Open(values)) = (key.data, value.data) else {
            return None;
        };
        self.inputs.nth(1);
        // SAFETY: the inputs of a node are taken once.
        #[expect(unsafe_code, reason = "as above")]
        let both = unsafe { Open::both(keys, values) }.ok_or("keys and values are the same tensor");
        Some((&key.shape, both.map_err(str::to_owned)))
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

#[cfg(all(test, feature = "ort"))]
mod tests {
    use super::*;
    use kernels::parallel::Serial;

    /// Attention of two query heads and one key head of four numbers, two new positions after three.
    const FUSED: Fused = Fused::DecoderAttention {
        heads: 2,
        kv_heads: 1,
        head_dim: 4,
    };
    const NEW: usize = 2;
    const PAST: usize = 3;

    struct Vectors(Vec<(Vec<usize>, Vec<f32>)>);

    impl Outputs for Vectors {
        fn make(&mut self, shapes: &[&[usize]]) -> Result<Vec<&mut [f32]>, String> {
            let made = shapes
                .iter()
                .map(|shape| (shape.to_vec(), vec![f32::NAN; shape.iter().product()]));
            self.0 = made.collect();
            Ok(self.0.iter_mut().map(|(_, values)| &mut values[..]).collect())
        }
    }

    fn input<'a>(shape: &[usize], data: Data<'a>) -> Input<'a> {
        Input {
            shape: shape.to_vec(),
            data,
        }
    }

    /// The outputs for caches of these shapes and a mask of so many positions.
    fn run_with(shape: &[usize], caches: [Data<'_>; 2], positions: usize) -> Result<Vectors, String> {
        let qkv: Vec<f32> = (0..NEW * 16).map(|i| (i as f32 * 0.7).sin()).collect();
        let mask = vec![1; positions];
        let [key, value] = caches;
        let inputs = [
            input(&[1, NEW, 16], Data::F32(&qkv)),
            input(shape, key),
            input(shape, value),
            input(&[1, positions], Data::I64(&mask)),
            input(&[1, NEW], Data::I64(&[3, 4])),
            input(&[2], Data::F32(&[1.0, 0.1])),
        ];
        let mut outputs = Vectors(Vec::new());
        let means = Means {
            isa: Isa::detect(),
            pool: &Serial,
            words: false,
        };
        run(&FUSED, means, &inputs, &mut outputs)?;
        Ok(outputs)
    }

    fn open(values: &mut [f32]) -> Data<'_> {
        // SAFETY: borrowed for as long.
        #[expect(unsafe_code, reason = "as an engine does")]
        let open = unsafe { Open::new(values.as_mut_ptr(), values.len()) };
        Data::Open(open)
    }

    #[test]
    fn a_cache_with_room_is_written_where_it_lies() {
        let [key, value] = [1.3_f32, 2.9].map(|step| -> Vec<f32> {
            let numbers = 0..PAST * 4;
            numbers.map(|i| (i as f32 * step).cos()).collect()
        });
        let carried = run_with(&[1, 1, PAST, 4], [Data::F32(&key), Data::F32(&value)], PAST + NEW);
        let carried = carried.unwrap().0;
        for slots in [PAST + NEW, PAST + NEW + 3] {
            let mut caches = [&key, &value].map(|filled| {
                let mut cache = filled.clone();
                cache.resize(slots * 4, 9.0);
                cache
            });
            let [keys, values] = &mut caches;
            let made = run_with(&[1, 1, slots, 4], [open(keys), open(values)], PAST + NEW).unwrap();
            assert_eq!(made.0[0], carried[0]);
            assert!(made.0[1..].iter().all(|(shape, _)| *shape == [1, 1, 0, 4]));
            for (cache, (_, carried)) in caches.iter().zip(&carried[1..]) {
                let (filled, free) = cache.split_at((PAST + NEW) * 4);
                assert_eq!(filled, carried);
                assert!(free.iter().all(|number| *number == 9.0));
            }
        }
    }

    #[test]
    fn caches_without_room_or_of_another_shape_are_refused() {
        let refused = |shape: &[usize], positions: usize, words: &str| {
            let length = shape.iter().product();
            let mut caches = [vec![0.5_f32; length], vec![0.5; length]];
            let [key, value] = &mut caches;
            let Err(error) = run_with(shape, [open(key), open(value)], positions) else {
                panic!("{shape:?} {positions}");
            };
            assert!(error.contains(words), "{error}");
            assert!(caches.iter().flatten().all(|number| *number == 0.5));
        };
        refused(
            &[1, 1, 4, 4],
            5,
            "a mask of 5 positions, 2 of them new, is for a cache of 4",
        );
        refused(&[1, 1, 9, 4], 1, "a mask of 1 positions, 2 of them new");
        refused(&[1, 1, 9, 8], 5, "has a cache of shape [1, 1, 3, 8]");
        refused(&[1, 2, 9, 4], 5, "has a cache of shape [1, 2, 3, 4]");
        refused(&[2, 1, 9, 4], 5, "has a cache of shape [2, 1, 3, 4]");
        refused(&[1, 9, 4], 5, "rank 4");
        let mut cache = vec![0.5; 9 * 4];
        let cache = open(&mut cache);
        let error = run_with(&[1, 1, 9, 4], [cache, cache], 5).err();
        assert_eq!(error.unwrap(), "keys and values are the same tensor");
    }

    #[test]
    fn what_is_written_is_nothing_else_that_a_node_reads() {
        let shared = [0.5_f32; 12];
        let input = |data| Input { shape: vec![4], data };
        for (first, apart) in [(0, false), (3, false), (4, true), (8, true)] {
            // Never written: only addresses are compared.
            #[expect(unsafe_code, reason = "a cache that a graph hands over twice")]
            // SAFETY: nothing is read or written by it.
            let cache = unsafe { Open::new(shared.as_ptr().cast_mut(), 4) };
            let inputs = [
                input(Data::F32(&shared[first..first + 4])),
                input(Data::Open(cache)),
            ];
            assert_eq!(check_apart(&inputs).is_ok(), apart, "{first}");
        }
    }
}
