//! `fused`: a node of target `cpu`, computed on every instruction set as an engine's operator computes it.
//!
//! Attributes and shapes are those of a sound node, or nearly. All sets take a node or refuse it, with the
//! same bits whatever the number of threads and nearly the same numbers; every output is written; and nothing
//! is computed that does not fit by the operators' own rule.

use crate::words;
use arbitrary::{Result, Unstructured};
use kernels::Isa;
use kernels::parallel::Serial;
use kernels::pool::Pool;
use models::dtype::DType;
use models::fused::{Attribute, Attributes, Encoding, Fused, Input, Kind, Norm, TableEncoding};
use runtime::backend::node::{Elements, Output, UNWRITTEN, compute};
use std::sync::{Arc, OnceLock};

/// Most elements of an input.
const MOST: usize = 1 << 15;
/// Sizes that are put where another one was.
const SIZES: [i64; 16] = [
    0,
    1,
    2,
    3,
    5,
    8,
    16,
    17,
    31,
    64,
    257,
    1 << 12,
    1 << 20,
    1 << 24,
    (1 << 24) + 1,
    -1,
];

/// An operator, its attributes, the shapes of its inputs, and what they hold.
pub fn run(data: &[u8]) {
    let _ = node(data, &mut Unstructured::new(data));
}

/// A node of any sense.
struct Node {
    kind: Kind,
    attributes: Vec<(&'static str, Attribute)>,
    inputs: Vec<Tensor>,
}

struct Tensor {
    dtype: DType,
    shape: Vec<usize>,
}

impl Attributes for Node {
    fn int(&self, name: &str) -> Option<i64> {
        self.attributes.iter().find_map(|(known, value)| match value {
            Attribute::Int(value) if *known == name => Some(value.cast_signed()),
            _ => None,
        })
    }

    fn float(&self, name: &str) -> Option<f32> {
        self.attributes.iter().find_map(|(known, value)| match value {
            Attribute::Float(value) if *known == name => Some(*value),
            _ => None,
        })
    }
}

fn node(data: &[u8], u: &mut Unstructured<'_>) -> Result<()> {
    let fused = sound(u)?;
    let mut node = Node {
        kind: fused.kind(),
        attributes: fused.attributes(),
        inputs: inputs(&fused, u)?,
    };
    for _ in 0..u.int_in_range(0..=2)? {
        change(&mut node, u)?;
    }
    let seed: u64 = u.arbitrary()?;
    let lengths = node.inputs.iter().map(|input| {
        input
            .shape
            .iter()
            .try_fold(1_usize, |n, side| n.checked_mul(*side))
    });
    let Some(lengths) = lengths
        .map(|length| length.filter(|length| *length <= MOST))
        .collect::<Option<Vec<_>>>()
    else {
        return Ok(());
    };
    let words = seed.is_multiple_of(2);
    let held: Vec<Held> = node
        .inputs
        .iter()
        .zip(&lengths)
        .zip(1..)
        .map(|((input, length), salt)| Held::new(input.dtype, *length, seed ^ salt))
        .collect();
    let given: Vec<(&[usize], Elements<'_>)> = node
        .inputs
        .iter()
        .zip(&held)
        .map(|(input, held)| (&input.shape[..], held.elements()))
        .collect();

    let mut first: Option<std::result::Result<Vec<Output>, String>> = None;
    for isa in Isa::available() {
        let alone = compute(node.kind, &node, (isa, &Serial, words), &given);
        let threads = compute(node.kind, &node, (isa, &**pool(), words), &given);
        match (&alone, &threads) {
            (Ok(alone), Ok(threads)) => {
                assert!(bits(alone) == bits(threads), "{isa:?}: other bits with threads")
            }
            (Err(alone), Err(_)) => words::check(alone, data),
            _ => panic!("{isa:?}: {alone:?} alone, {threads:?} with threads"),
        }
        if let Ok(alone) = &alone {
            assert!(
                bits(alone).iter().flatten().all(|bits| *bits != UNWRITTEN),
                "{isa:?}: not all is written"
            );
        }
        match (&first, &alone) {
            (None, _) => first = Some(alone),
            (Some(Ok(first)), Ok(alone)) => near(first, alone, isa),
            (Some(Err(_)), Err(_)) => {}
            (Some(first), alone) => panic!("{isa:?}: {alone:?}, another set: {first:?}"),
        }
    }
    rule(&node, first.is_some_and(|found| found.is_ok()));
    Ok(())
}

/// A node is refused if its inputs do not fit by the operators' own rule.
fn rule(node: &Node, computed: bool) {
    let read = Fused::read(node.kind, node);
    let inputs: Vec<Input<'_, usize>> = node
        .inputs
        .iter()
        .map(|input| Input {
            name: "x",
            dtype: input.dtype,
            shape: &input.shape,
        })
        .collect();
    let fits = read.and_then(|fused| fused.infer(&inputs));
    if let (Err(error), true) = (&fits, computed) {
        panic!("computed, and it does not fit: {error}");
    }
}

fn pool() -> &'static Arc<Pool> {
    static POOL: OnceLock<Arc<Pool>> = OnceLock::new();
    POOL.get_or_init(|| Pool::shared(3))
}

fn bits(outputs: &[Output]) -> Vec<Vec<u32>> {
    outputs
        .iter()
        .map(|(_, values)| values.iter().map(|value| value.to_bits()).collect())
        .collect()
}

/// Sets round products otherwise, and activations to other bytes: no more than a few steps of the largest.
fn near(a: &[Output], b: &[Output], isa: Isa) {
    for ((a_shape, a), (b_shape, b)) in a.iter().zip(b) {
        assert_eq!(a_shape, b_shape);
        let largest = a
            .iter()
            .filter(|value| value.is_finite())
            .fold(1.0_f32, |most, value| most.max(value.abs()));
        for (a, b) in a.iter().zip(b) {
            let same = a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan());
            assert!(
                same || (a - b).abs() <= 0.05 * largest,
                "{isa:?}: {b}, another set: {a}"
            );
        }
    }
}

/// What an input holds: numbers that look random, from a seed.
enum Held {
    F32(Vec<f32>),
    F16(Vec<u16>),
    U8(Vec<u8>),
    I64(Vec<i64>),
}

impl Held {
    fn new(dtype: DType, length: usize, seed: u64) -> Held {
        let mut state = seed | 1;
        let mut next = move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32
        };
        match dtype {
            DType::Float16 => Held::F16((0..length).map(|_| 0x2c00 | (next() & 0x83ff) as u16).collect()),
            DType::UInt8 => Held::U8((0..length).map(|_| next() as u8).collect()),
            // Ones of a mask, positions, ids: small, some of them none.
            DType::Int64 => Held::I64(
                (0..length)
                    .map(|_| (next() % 5).cast_signed() - i64::from(seed.is_multiple_of(97)))
                    .collect(),
            ),
            _ => Held::F32(
                (0..length)
                    .map(|_| next() as f32 / (1_u64 << 31) as f32 - 1.0)
                    .collect(),
            ),
        }
    }

    fn elements(&self) -> Elements<'_> {
        match self {
            Held::F32(data) => Elements::Float32(data),
            Held::F16(data) => Elements::Float16(data),
            Held::U8(data) => Elements::UInt8(data),
            Held::I64(data) => Elements::Int64(data),
        }
    }
}

/// An operator with small sizes.
fn sound(u: &mut Unstructured<'_>) -> Result<Fused> {
    let size = |u: &mut Unstructured<'_>, most: u64| u.int_in_range(1..=most);
    let norm = |u: &mut Unstructured<'_>| {
        Ok(match u.int_in_range(0..=2)? {
            0 => Norm::None,
            1 => Norm::Rms { epsilon: 1e-6 },
            _ => Norm::Layer { epsilon: 1e-5 },
        })
    };
    Ok(match *u.choose(&Kind::ALL)? {
        Kind::Stem => Fused::Stem {
            kernel: 2 * size(u, 3)? - 1,
            stride: size(u, 3)?,
            depthwise_kernel: 2 * size(u, 3)? - 1,
            depthwise_stride: size(u, 3)?,
        },
        Kind::DepthwiseConv => Fused::DepthwiseConv {
            kernel: 2 * size(u, 4)? - 1,
            stride: size(u, 4)?,
            gelu: u.arbitrary()?,
        },
        Kind::Linear => Fused::Linear {
            inputs: size(u, 130)?,
            outputs: size(u, 70)?,
            norm: norm(u)?,
            encoding: *u.choose(&Encoding::ALL)?,
            bias: u.arbitrary()?,
            gelu: u.arbitrary()?,
            residual: u.arbitrary()?,
        },
        Kind::FeedForward => Fused::FeedForward {
            inputs: size(u, 70)?,
            hidden: size(u, 90)?,
            outputs: size(u, 40)?,
            norm: norm(u)?,
            encoding: *u.choose(&Encoding::ALL)?,
            bias: u.arbitrary()?,
            gated: u.arbitrary()?,
            residual: u.arbitrary()?,
        },
        Kind::SelfAttention => Fused::SelfAttention {
            heads: size(u, 3)?,
            head_dim: size(u, 40)?,
        },
        Kind::DecoderAttention => {
            let kv_heads = size(u, 2)?;
            Fused::DecoderAttention {
                heads: kv_heads * size(u, 8)?,
                kv_heads,
                head_dim: 2 * size(u, 20)?,
            }
        }
        Kind::Embedding => Fused::Embedding {
            width: size(u, 300)?,
            encoding: *u.choose(&TableEncoding::ALL)?,
        },
        Kind::Logits => Fused::Logits {
            encoding: *u.choose(&TableEncoding::ALL)?,
        },
    })
}

/// The inputs of the operator, of small sizes that fit it.
fn inputs(fused: &Fused, u: &mut Unstructured<'_>) -> Result<Vec<Tensor>> {
    let mut list = List(Vec::new());
    let batch = u.int_in_range(1..=2_u64)?;
    let rows = u.int_in_range(1..=40_u64)?;
    match *fused {
        Fused::Stem {
            kernel,
            depthwise_kernel,
            ..
        } => {
            let (planes, channels) = (u.int_in_range(1..=3_u64)?, u.int_in_range(1..=20_u64)?);
            let sides = [u.int_in_range(1..=24_u64)?, u.int_in_range(1..=24_u64)?];
            list.float(&[batch, planes, sides[0], sides[1]]);
            list.float(&[planes * kernel * kernel, channels]);
            list.float(&[channels]);
            list.float(&[depthwise_kernel * depthwise_kernel, channels]);
            list.float(&[channels]);
        }
        Fused::DepthwiseConv { kernel, .. } => {
            let (channels, multiplier) = (u.int_in_range(1..=40_u64)?, u.int_in_range(1..=3_u64)?);
            let sides = [u.int_in_range(1..=16_u64)?, u.int_in_range(1..=16_u64)?];
            list.float(&[batch, sides[0], sides[1], channels]);
            list.float(&[kernel * kernel, multiplier * channels]);
            list.float(&[multiplier * channels]);
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
            list.rows(rows, inputs, outputs, residual, norm);
            list.product(encoding, outputs, inputs, bias);
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
            list.rows(rows, inputs, outputs, residual, norm);
            if gated {
                list.product(encoding, hidden, inputs, false);
            }
            list.product(encoding, hidden, inputs, bias);
            list.product(encoding, outputs, hidden, bias);
        }
        Fused::SelfAttention { heads, head_dim } => list.float(&[batch, rows, 3 * heads * head_dim]),
        Fused::DecoderAttention {
            heads,
            kv_heads,
            head_dim,
        } => {
            let past = u.int_in_range(0..=40_u64)?;
            let new = if u.arbitrary()? { 1 } else { rows };
            let cache = [batch, kv_heads, past, head_dim];
            list.float(&[batch, new, (heads + 2 * kv_heads) * head_dim]);
            list.float(&cache);
            list.float(&cache);
            list.add(DType::Int64, &[batch, past + new]);
            list.add(DType::Int64, &[batch, new]);
            list.float(&[head_dim / 2]);
        }
        Fused::Embedding { width, encoding } => {
            list.add(DType::Int64, &[batch, rows]);
            list.table(encoding, u.int_in_range(3..=40)?, width);
        }
        Fused::Logits { encoding } => {
            let width = u.int_in_range(1..=300_u64)?;
            list.float(&[u.int_in_range(1..=6_u64)?, width]);
            list.table(encoding, u.int_in_range(1..=60)?, width);
        }
    }
    Ok(list.0)
}

/// Inputs in order.
struct List(Vec<Tensor>);

impl List {
    fn add(&mut self, dtype: DType, shape: &[u64]) {
        let shape = shape.iter().map(|side| *side as usize).collect();
        self.0.push(Tensor { dtype, shape });
    }

    fn float(&mut self, shape: &[u64]) {
        self.add(DType::Float32, shape);
    }

    fn rows(&mut self, rows: u64, inputs: u64, outputs: u64, residual: bool, norm: Norm) {
        self.float(&[rows, inputs]);
        if residual {
            self.float(&[rows, outputs]);
        }
        let tensors = match norm {
            Norm::None => 0,
            Norm::Rms { .. } => 1,
            Norm::Layer { .. } => 2,
        };
        (0..tensors).for_each(|_| self.float(&[inputs]));
    }

    fn product(&mut self, encoding: Encoding, outputs: u64, inputs: u64, bias: bool) {
        let (dtype, shape) = encoding.elements(outputs, inputs);
        self.add(dtype, &shape);
        if let Some((dtype, shape)) = encoding.scales(outputs, inputs) {
            self.add(dtype, &shape);
        }
        if bias {
            self.float(&[outputs]);
        }
    }

    fn table(&mut self, encoding: TableEncoding, rows: u64, width: u64) {
        for (dtype, shape) in encoding.elements(rows, width) {
            self.add(dtype, &shape);
        }
        if encoding != TableEncoding::Float32 {
            self.float(&[rows]);
        }
    }
}

/// Another attribute, shape, type or number of inputs.
fn change(node: &mut Node, u: &mut Unstructured<'_>) -> Result<()> {
    let last = node.inputs.len().saturating_sub(1);
    let input = u.int_in_range(0..=last)?;
    match u.int_in_range(0..=6)? {
        0 | 1 => {
            let at = u.int_in_range(0..=node.attributes.len() - 1)?;
            let value = &mut node.attributes[at].1;
            *value = match value {
                Attribute::Int(_) => Attribute::Int(u.choose(&SIZES)?.cast_unsigned()),
                Attribute::Float(_) => Attribute::Float(*u.choose(&[0.0, -1.0, f32::NAN, f32::INFINITY])?),
            };
        }
        2 => {
            let at = u.int_in_range(0..=node.attributes.len() - 1)?;
            node.attributes.remove(at);
        }
        3 if !node.inputs.is_empty() => {
            let shape = &mut node.inputs[input].shape;
            if let Some(side) = shape.get_mut(u.int_in_range(0..=3_usize)?) {
                *side = (*u.choose(&SIZES)?).try_into().unwrap_or(0);
            }
        }
        4 if !node.inputs.is_empty() => {
            let shape = &mut node.inputs[input].shape;
            if u.arbitrary()? {
                shape.push(1);
            } else {
                shape.pop();
            }
        }
        5 if !node.inputs.is_empty() => {
            node.inputs[input].dtype =
                *u.choose(&[DType::Float32, DType::Float16, DType::UInt8, DType::Int64])?;
        }
        _ if !node.inputs.is_empty() => {
            let removed = node.inputs.remove(input);
            if u.arbitrary()? {
                node.inputs.push(removed);
            }
        }
        _ => {}
    }
    Ok(())
}
