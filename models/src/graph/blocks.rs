//! Blocks: how `MatMulNBits` of domain `com.microsoft` has a matrix `[N,K]`.
//!
//! Each row is cut into blocks of `size` numbers, the last one filled up with zeros, and each block has a scale:
//! `w = scale * (code - 2^(bits - 1))`. Codes of a block lie together, the lower bits of a byte first: u8
//! `[N, K/size, size * bits / 8]`, scales `[N, K/size]`, quotients rounded up. A table whose rows are looked up too
//! has the same bytes as lines, `[N, K/size * size * bits / 8]`, so that a tied one is stored once.

use super::shape::{expect_dtype, show};
use super::{Dim, Value};
use crate::dtype::DType;

/// How a matrix is stored in blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Blocks {
    /// Bits of a code: 4 or 8.
    pub bits: u64,
    /// Numbers in a block: a power of two, at least 16.
    pub size: u64,
    /// Whether scales are float16, otherwise float32.
    pub half: bool,
}

impl Blocks {
    /// Blocks of a row of `width` numbers.
    pub const fn count(self, width: u64) -> u64 {
        width.div_ceil(self.size)
    }

    /// Bytes of a block.
    pub const fn bytes(self) -> u64 {
        self.size * self.bits / 8
    }

    /// Element type of the scales, and of what is computed with them.
    pub const fn scale_type(self) -> DType {
        if self.half { DType::Float16 } else { DType::Float32 }
    }

    /// Shape of the elements of `[rows, width]` as [`Op::MatMulNBits`](super::Op::MatMulNBits) has them.
    pub fn elements(self, rows: u64, width: u64) -> [u64; 3] {
        [rows, self.count(width), self.bytes()]
    }

    /// Shape of the same elements as lines of a table.
    pub fn lines(self, rows: u64, width: u64) -> [u64; 2] {
        [rows, self.count(width) * self.bytes()]
    }

    /// Shape of the scales.
    pub fn scales(self, rows: u64, width: u64) -> [u64; 2] {
        [rows, self.count(width)]
    }
}

/// `elements, scales -> [..]`: the rule of [`Op::DequantizeLinear`](super::Op::DequantizeLinear).
pub(super) fn dequantized(axis: u64, inputs: &[&Value]) -> Result<Vec<Dim>, String> {
    let (elements, scales) = (inputs[0], inputs[1]);
    expect_dtype(elements, DType::Int8)?;
    let length = usize::try_from(axis)
        .ok()
        .and_then(|axis| elements.shape.get(axis));
    if length.is_none_or(|length| scales.shape != [*length]) {
        return Err(format!(
            "wants a scale for each index of axis {axis} of {}, `{}` has shape {}",
            show(&elements.shape),
            scales.name,
            show(&scales.shape)
        ));
    }
    Ok(elements.shape.clone())
}

/// `x [..,K], elements, scales -> [..,N]`: the rule of [`Op::MatMulNBits`](super::Op::MatMulNBits).
pub(super) fn products(
    blocks: Blocks,
    [width, outputs]: [u64; 2],
    inputs: &[&Value],
) -> Result<Vec<Dim>, String> {
    expect_sound(blocks)?;
    expect_stored(inputs[1], DType::UInt8, &blocks.elements(outputs, width))?;
    expect_stored(inputs[2], blocks.scale_type(), &blocks.scales(outputs, width))?;
    let x = inputs[0];
    expect_dtype(x, blocks.scale_type())?;
    match x.shape.split_last() {
        Some((last, outer)) if *last == Dim::Fixed(width) => Ok([outer, &[Dim::Fixed(outputs)]].concat()),
        _ => Err(format!(
            "multiplies rows of length {width}, `{}` has shape {}",
            x.name,
            show(&x.shape)
        )),
    }
}

fn expect_sound(Blocks { bits, size, .. }: Blocks) -> Result<(), String> {
    if matches!(bits, 4 | 8) && size >= 16 && size.is_power_of_two() {
        return Ok(());
    }
    Err(format!(
        "wants blocks of 4 or 8 bits and a power of two from 16 on, found {bits} bits and {size}"
    ))
}

fn expect_stored(value: &Value, dtype: DType, shape: &[u64]) -> Result<(), String> {
    expect_dtype(value, dtype)?;
    let expected: Vec<Dim> = shape.iter().map(|length| Dim::Fixed(*length)).collect();
    if value.shape == expected {
        return Ok(());
    }
    Err(format!(
        "wants `{}` of shape {}, found {}",
        value.name,
        show(&expected),
        show(&value.shape)
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::{Op, Source, shape};

    fn value(dtype: DType, dims: &[Dim]) -> Value {
        Value {
            name: "v".to_owned(),
            dtype,
            shape: dims.to_vec(),
            source: Source::Input,
        }
    }

    fn fixed(dims: &[u64]) -> Vec<Dim> {
        dims.iter().map(|length| Dim::Fixed(*length)).collect()
    }

    const NIBBLES: Blocks = Blocks {
        bits: 4,
        size: 32,
        half: true,
    };

    #[test]
    fn lengths_are_rounded_up() {
        assert_eq!(NIBBLES.elements(5, 70), [5, 3, 16]);
        assert_eq!(NIBBLES.lines(5, 70), [5, 48]);
        assert_eq!(NIBBLES.scales(5, 70), [5, 3]);
    }

    #[test]
    fn rules() {
        use DType::{Float16, Float32, Int8, UInt8};
        let x = |dtype, last| value(dtype, &[Dim::Batch, Dim::New, Dim::Fixed(last)]);
        let stored = |dtype, dims: &[u64]| value(dtype, &fixed(dims));
        let product = |blocks| Op::MatMulNBits {
            blocks,
            inputs: 70,
            outputs: 5,
        };
        let elements = stored(UInt8, &[5, 3, 16]);
        let scales = stored(Float16, &[5, 3]);
        let rows = |op: Op, inputs: [Value; 3]| shape::infer(&op, &inputs.each_ref());
        let good = rows(
            product(NIBBLES),
            [x(Float16, 70), elements.clone(), scales.clone()],
        );
        assert_eq!(
            good.unwrap(),
            [(Float16, vec![Dim::Batch, Dim::New, Dim::Fixed(5)])]
        );
        let odd = Blocks { size: 24, ..NIBBLES };
        let none = Blocks { size: 0, ..NIBBLES };
        for (op, inputs, problem) in [
            (
                product(NIBBLES),
                [x(Float32, 70), elements.clone(), scales.clone()],
                "`v` is float32",
            ),
            (
                product(NIBBLES),
                [x(Float16, 71), elements.clone(), scales.clone()],
                "rows of length 70",
            ),
            (
                product(NIBBLES),
                [x(Float16, 70), stored(UInt8, &[5, 48]), scales.clone()],
                "[5, 3, 16]",
            ),
            (
                product(NIBBLES),
                [x(Float16, 70), elements.clone(), stored(Float16, &[15])],
                "[5, 3]",
            ),
            (
                product(odd),
                [x(Float16, 70), elements.clone(), scales.clone()],
                "4 bits and 24",
            ),
            (product(none), [x(Float16, 70), elements, scales], "4 bits and 0"),
        ] {
            let found = rows(op, inputs).unwrap_err();
            assert!(found.contains(problem), "{found} has no {problem}");
        }
        let bytes = stored(Int8, &[5, 7]);
        let dequantize = |axis, scales: &[u64]| {
            let scales = stored(Float32, scales);
            shape::infer(&Op::DequantizeLinear { axis }, &[&bytes, &scales])
        };
        assert_eq!(dequantize(1, &[7]).unwrap(), [(Float32, fixed(&[5, 7]))]);
        for (axis, scales) in [(0, &[7][..]), (1, &[7, 1]), (2, &[7])] {
            let problem = dequantize(axis, scales).unwrap_err();
            assert!(problem.contains("a scale for each index"), "{problem}");
        }
    }
}
