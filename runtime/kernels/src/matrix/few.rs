//! Few rows: how are up to sixteen rows multiplied with a matrix? Its weights are read once, in order, and that
//! is nearly all that counts: groups of rows ([`in_groups`]) follow each other while a panel is in a cache. A
//! row's sums are the same bits however many rows there are: a step of many sequences computes what their
//! single steps compute.

#![expect(
    clippy::needless_range_loop,
    reason = "chains of sums are registers: all arrays by the same index"
)]

use super::panels::{Matrix, NIBBLE_BLOCK, NIBBLE_BLOCKS, NIBBLE_BYTES, Panels};
use crate::isa::{AHEAD, LANES, Lanes, prefetch};
use crate::norm::load_part;
use crate::quantise::{BLOCK, Quantised, Rows};

/// Rows up to which a product is bound by reading the weights.
pub(crate) const FEW: usize = 16;

/// Calls `$part::<V, N>(.., first, ..)` for groups of `N` of `$rows` rows, the first of each in `$first`: eight
/// where the set has registers enough, otherwise up to four.
macro_rules! in_groups {
    ($v:ty, $rows:expr, $first:ident => $part:ident($($arg:expr),* $(,)?)) => {{
        let mut $first = 0;
        while $first < $rows {
            let left = $rows - $first;
            if left >= 8 && <$v as $crate::isa::Lanes>::TILE_ROWS >= 8 {
                $part::<$v, 8>($($arg),*);
                $first += 8;
                continue;
            }
            match left {
                1 => $part::<$v, 1>($($arg),*),
                2 => $part::<$v, 2>($($arg),*),
                3 => $part::<$v, 3>($($arg),*),
                _ => $part::<$v, 4>($($arg),*),
            }
            $first += left.min(4);
        }
    }};
}
pub(crate) use in_groups;

/// Few rows and what the products with nibbles need of them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct FewRows<'a> {
    /// The rows.
    pub(crate) rows: &'a Rows<'a>,
    /// `[rows, ceil(inputs / 32)]`: -8 times the sum of 32 bytes.
    pub(crate) corrections: &'a [i32],
}

/// Fills [`FewRows::corrections`].
pub(crate) fn nibble_corrections(rows: &Quantised<'_>, to: &mut [i32]) {
    let blocks = rows.inputs.div_ceil(NIBBLE_BLOCK);
    for (bytes, to) in rows
        .bytes
        .chunks_exact(rows.stride)
        .zip(to.chunks_exact_mut(blocks))
    {
        for (bytes, to) in bytes.chunks_exact(NIBBLE_BLOCK).zip(to) {
            *to = -8 * bytes.iter().map(|byte| i32::from(*byte)).sum::<i32>();
        }
    }
}

/// The products of `ROWS` rows (from `first` on) with one panel, times the columns' scales.
///
/// # Safety
/// As [`Lanes`]; `few` has these rows, at most eight, of the matrix's number of inputs, and the matrix has the
/// panel and passed its `check`.
#[inline(always)]
pub(crate) unsafe fn few_panel<V: Lanes, const ROWS: usize>(
    few: &FewRows<'_>,
    first: usize,
    matrix: &Matrix<'_>,
    panel: usize,
) -> [V; ROWS] {
    // SAFETY: as for this function.
    unsafe {
        match (few.rows, matrix.panels) {
            (Rows::Floats { values, stride, .. }, Panels::Float32(weights)) => {
                let weights = weights.as_ptr().add(panel * matrix.inputs * LANES);
                let values = values.as_ptr().add(first * stride);
                if ROWS <= 4 {
                    return few_floats::<V, ROWS>(values, *stride, weights, matrix.inputs);
                }
                // Chains of sums take the registers of eight rows.
                let mut sums = [V::splat(0.0); ROWS];
                for half in 0..2 {
                    let values = values.add(half * 4 * stride);
                    let four = few_floats::<V, 4>(values, *stride, weights, matrix.inputs);
                    for (row, sum) in four.into_iter().enumerate() {
                        if half * 4 + row < ROWS {
                            sums[half * 4 + row] = sum;
                        }
                    }
                }
                sums
            }
            (Rows::Bytes(rows), Panels::Int8 { bytes, scales }) => {
                let weights = bytes.as_ptr().add(panel * matrix.panel_bytes());
                let scales: V = load_part(scales, panel * LANES);
                let mut sums = few_bytes::<V, ROWS>(rows, first, weights);
                for sum in &mut sums {
                    *sum = sum.mul(scales);
                }
                sums
            }
            (Rows::Bytes(rows), Panels::Int4 { nibbles, scales }) => {
                let blocks = matrix.inputs.div_ceil(NIBBLE_BLOCK);
                let nibbles = nibbles.as_ptr().add(panel * blocks * NIBBLE_BYTES);
                let scales = scales.as_ptr().add(panel * blocks * LANES);
                few_nibbles::<V, ROWS>(rows, first, few.corrections.as_ptr(), nibbles, scales)
            }
            _ => [V::splat(f32::NAN); ROWS],
        }
    }
}

/// Chains of sums: enough to wait for memory and not for additions.
const CHAINS: usize = 4;

/// # Safety
/// As [`few_panel`].
#[inline(always)]
unsafe fn few_floats<V: Lanes, const ROWS: usize>(
    values: *const f32,
    stride: usize,
    weights: *const f32,
    inputs: usize,
) -> [V; ROWS] {
    unsafe {
        if V::FEW_SUMS >= CHAINS * ROWS {
            return few_chains::<V, ROWS>(values, stride, weights, inputs);
        }
        // A row at a time: the panel is in a cache then, and the order of a row's sum is the same.
        let mut sums = [V::splat(0.0); ROWS];
        for row in 0..ROWS {
            [sums[row]] = few_chains::<V, 1>(values.add(row * stride), stride, weights, inputs);
        }
        sums
    }
}

/// # Safety
/// As [`few_panel`].
#[inline(always)]
unsafe fn few_chains<V: Lanes, const ROWS: usize>(
    values: *const f32,
    stride: usize,
    weights: *const f32,
    inputs: usize,
) -> [V; ROWS] {
    unsafe {
        let mut acc = [[V::splat(0.0); ROWS]; CHAINS];
        let mut k = 0;
        while k + CHAINS <= inputs {
            for chain in 0..CHAINS {
                let weights = V::load(weights.add((k + chain) * LANES));
                for row in 0..ROWS {
                    let value = V::splat(*values.add(row * stride + k + chain));
                    acc[chain][row] = value.mul_add(weights, acc[chain][row]);
                }
            }
            k += CHAINS;
        }
        while k < inputs {
            let weights = V::load(weights.add(k * LANES));
            for row in 0..ROWS {
                acc[0][row] = V::splat(*values.add(row * stride + k)).mul_add(weights, acc[0][row]);
            }
            k += 1;
        }
        let mut sums = acc[0];
        for row in 0..ROWS {
            sums[row] = acc[0][row].add(acc[1][row]).add(acc[2][row].add(acc[3][row]));
        }
        sums
    }
}

/// # Safety
/// As [`few_panel`].
#[inline(always)]
unsafe fn few_bytes<V: Lanes, const ROWS: usize>(
    rows: &Quantised<'_>,
    first: usize,
    weights: *const u8,
) -> [V; ROWS] {
    unsafe {
        let quads = rows.inputs.div_ceil(4);
        let mut sums = [V::splat(0.0); ROWS];
        for block in 0..rows.blocks {
            let mut corrections = [0; ROWS];
            for row in 0..ROWS {
                corrections[row] = *rows.corrections.as_ptr().add((first + row) * rows.blocks + block);
            }
            let start = block * BLOCK / 4;
            let acc = V::few_block::<ROWS>(
                rows.bytes.as_ptr().add(first * rows.stride + block * BLOCK),
                rows.stride,
                corrections,
                weights.add(block * BLOCK * LANES),
                (quads - start).min(BLOCK / 4),
            );
            for row in 0..ROWS {
                let scale = V::splat(*rows.scales.as_ptr().add((first + row) * rows.blocks + block));
                sums[row] = V::from_int(acc[row]).mul_add(scale, sums[row]);
            }
        }
        sums
    }
}

/// # Safety
/// As [`few_panel`].
#[inline(always)]
unsafe fn few_nibbles<V: Lanes, const ROWS: usize>(
    rows: &Quantised<'_>,
    first: usize,
    corrections: *const i32,
    nibbles: *const u8,
    scales: *const u16,
) -> [V; ROWS] {
    unsafe {
        let blocks = rows.inputs.div_ceil(NIBBLE_BLOCK);
        // Read once: a prefetch keeps the compiler from knowing that they stay.
        let (stride, row_blocks) = (rows.stride, rows.blocks);
        let bytes = rows.bytes.as_ptr().add(first * stride);
        let row_scales = rows.scales.as_ptr().add(first * row_blocks);
        let corrections = corrections.add(first * blocks);
        let mut sums = [V::splat(0.0); ROWS];
        for step in 0..blocks.div_ceil(NIBBLE_BLOCKS) {
            let mut parts = [V::splat(0.0); ROWS];
            // A line has the scales of two blocks.
            for ahead in 0..NIBBLE_BLOCKS / 2 {
                prefetch(scales.wrapping_add((step * NIBBLE_BLOCKS + 2 * ahead) * LANES + AHEAD / 16));
            }
            for block in step * NIBBLE_BLOCKS..blocks.min((step + 1) * NIBBLE_BLOCKS) {
                let mut starts = [0; ROWS];
                for row in 0..ROWS {
                    starts[row] = *corrections.add(row * blocks + block);
                }
                let acc = V::few_nibbles::<ROWS>(
                    bytes.add(block * NIBBLE_BLOCK),
                    stride,
                    starts,
                    nibbles.add(block * NIBBLE_BYTES),
                );
                let scale = V::load_f16(scales.add(block * LANES));
                for row in 0..ROWS {
                    parts[row] = V::from_int(acc[row]).mul_add(scale, parts[row]);
                }
            }
            for row in 0..ROWS {
                let factor = V::splat(*row_scales.add(row * row_blocks + step));
                sums[row] = parts[row].mul_add(factor, sums[row]);
            }
        }
        sums
    }
}
