//! How weights of the fused operators are stored: encodings, packing constants, dtypes and shapes.
//!
//! A weight `[N, K]` (`y = x W^T`) is stored in panels of 16 outputs, so that a kernel reads it from front to
//! back:
//!
//! | encoding | elements | scales | value |
//! |---|---|---|---|
//! | float32 | f32 `[N/16, K, 16]` | – | `w` |
//! | int8 | u8 `[N/16, K/4, 16, 4]` | f32 `[N]` | `scale[n] * (byte - 128)` |
//! | int4 | u8 `[N/16, K/32, 256]` | f16 `[N/16, K/32, 16]` | `scale * (nibble - 8)` |
//!
//! Quotients are rounded up; what is padded has the value 0. The 256 bytes of an int4 block of 32 inputs are
//! four groups of 64: byte `4 c + i` of group `p` holds input `8 p + i` of output `c` in its low nibble and
//! input `8 p + 4 + i` in its high one.
//!
//! A table `[V, D]`, of which single rows are read as well, lies row by row. Its bytes are either whole or
//! parted into two planes of nibbles, of which the high one alone tells which tokens may come next:
//!
//! | table | elements | scales | value |
//! |---|---|---|---|
//! | float32 | f32 `[V, D]` | – | `w` |
//! | bytes | u8 `[V, D]` | f32 `[V]` | `scale[v] * (byte - 128)` |
//! | planes | high and low, u8 `[V, D/128, 64]` each | f32 `[V]` | `scale[v] * (16 high + low - 128)` |
//!
//! Byte `i` of a plane's run of 128 numbers holds number `i` in its low nibble and number `64 + i` in its
//! high one.

use crate::dtype::DType;

/// Outputs in a panel.
pub const PANEL: u64 = 16;

/// Inputs of an output whose bytes lie together in a panel.
pub const GROUP: u64 = 4;

/// Inputs that share an int4 scale.
pub const BLOCK: u64 = 32;

/// Numbers of a table's row that lie together in a plane.
pub const PLANE_BLOCK: u64 = 128;

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
    /// Every encoding.
    pub const ALL: [Encoding; 3] = [Encoding::Float32, Encoding::Int8, Encoding::Int4];

    /// dtype and shape of the elements of an `[outputs, inputs]` matrix.
    pub fn elements(self, outputs: u64, inputs: u64) -> (DType, Vec<u64>) {
        let panels = outputs.div_ceil(PANEL);
        match self {
            Encoding::Float32 => (DType::Float32, vec![panels, inputs, PANEL]),
            Encoding::Int8 => (DType::UInt8, vec![panels, inputs.div_ceil(GROUP), PANEL, GROUP]),
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

    /// The bits of an element, which stand for the encoding in attributes.
    pub const fn bits(self) -> u64 {
        match self {
            Encoding::Float32 => 32,
            Encoding::Int8 => 8,
            Encoding::Int4 => 4,
        }
    }

    /// Inputs of an operator that make up a matrix.
    pub(super) const fn tensors(self) -> usize {
        match self {
            Encoding::Float32 => 1,
            Encoding::Int8 | Encoding::Int4 => 2,
        }
    }
}

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
    /// Every encoding.
    pub const ALL: [TableEncoding; 3] = [
        TableEncoding::Float32,
        TableEncoding::Bytes,
        TableEncoding::Planes,
    ];

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

    /// The bits of an element, as in attributes.
    pub const fn bits(self) -> u64 {
        match self {
            TableEncoding::Float32 => 32,
            TableEncoding::Bytes | TableEncoding::Planes => 8,
        }
    }

    /// Tensors that an element is spread over, as in attributes.
    pub const fn planes(self) -> u64 {
        match self {
            TableEncoding::Float32 | TableEncoding::Bytes => 1,
            TableEncoding::Planes => 2,
        }
    }

    /// Inputs of an operator that make up a table.
    pub(super) const fn tensors(self) -> usize {
        match self {
            TableEncoding::Float32 => 1,
            TableEncoding::Bytes => 2,
            TableEncoding::Planes => 3,
        }
    }
}
