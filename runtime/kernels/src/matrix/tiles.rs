//! Tiles: how are many rows multiplied with a matrix? Up to twelve rows by two panels, whose sums stay in
//! registers.

#![expect(
    clippy::needless_range_loop,
    reason = "a tile's loops run over registers: all of its arrays by the same index"
)]

use super::panels::{PACKED_INPUTS, Pair, tile_inputs};
use crate::isa::{Isa, LANES, Lanes, dispatch};
use crate::quantise::{BLOCK, Quantised, Rows};
use std::ops::Range;

/// Rows of the largest tile of any instruction set: tasks have multiples of it.
pub(crate) const TILE: usize = 12;

/// Sums that are added up over several blocks of inputs: `[rows, stride]`, without the columns' scales.
#[derive(Debug)]
pub(crate) struct Sums<'a> {
    /// From the first column of the pair on.
    pub(crate) values: &'a mut [f32],
    /// Numbers from row to row.
    pub(crate) stride: usize,
    /// Whether what they hold is to be forgotten.
    pub(crate) fresh: bool,
}

/// `sums += rows[range] * pair`
pub(crate) fn accumulate(isa: Isa, rows: &Rows<'_>, range: Range<usize>, pair: &Pair<'_>, sums: Sums<'_>) {
    let (first, count) = (range.start, range.len());
    if count == 0 {
        return;
    }
    match (rows, pair) {
        (
            Rows::Floats {
                inputs,
                values,
                stride,
            },
            Pair::Floats {
                values: weights,
                stride: weight_stride,
                count: panels,
            },
        ) => {
            assert!(
                values.len() >= (first + count - 1) * stride + inputs,
                "rows that are not there"
            );
            assert!(
                weights.len() >= (panels - 1) * weight_stride + inputs * LANES,
                "weights that are not there"
            );
            assert!(
                sums.values.len() >= (count - 1) * sums.stride + panels * LANES,
                "too few sums"
            );
            // SAFETY: the row exists by the first of the assertions.
            let from = unsafe { values.as_ptr().add(first * stride) };
            let (inputs, stride) = (*inputs, *stride);
            let weights = Ahead {
                start: weights.as_ptr(),
                stride: *weight_stride,
                panels: *panels,
            };
            dispatch!(isa, multiply_floats(
                from: *const f32, stride: usize, count: usize, inputs: usize, weights: Ahead<f32>,
                sums: Sums<'_>,
            ));
        }
        (
            Rows::Bytes(rows),
            Pair::Bytes {
                bytes,
                stride,
                count: panels,
            },
        ) => {
            assert!(
                first + count <= rows.scales.len() / rows.blocks,
                "rows that are not there"
            );
            assert!(
                bytes.len() >= (panels - 1) * stride + tile_inputs(isa, rows.inputs) * LANES,
                "weights that are not there"
            );
            assert!(
                sums.values.len() >= (count - 1) * sums.stride + panels * LANES,
                "too few sums"
            );
            let weights = Ahead {
                start: bytes.as_ptr(),
                stride: *stride,
                panels: *panels,
            };
            let rows = *rows;
            dispatch!(isa, multiply_bytes(
                rows: Quantised<'_>, first: usize, count: usize, weights: Ahead<u8>, sums: Sums<'_>,
            ));
        }
        _ => panic!("rows are not prepared for these weights"),
    }
}

/// Where panels lie.
#[derive(Debug, Clone, Copy)]
struct Ahead<T> {
    start: *const T,
    stride: usize,
    panels: usize,
}

/// Inputs of float32 weights that are multiplied with all rows before the next are: two panels of them fit a
/// first cache.
const FLOAT_CHUNK: usize = 128;
/// Blocks of byte weights, likewise.
const BYTE_CHUNK: usize = 4;
/// Rows of a tile of bytes whose sums stay in registers while all blocks of a chunk are multiplied: half of
/// the registers have the whole sums of a block, half the sums of all blocks.
const KEPT_ROWS: usize = 6;

/// Calls `$tile::<V, ROWS, VECTORS>` for a number of rows known only now, at most as many as the set's tiles
/// have.
macro_rules! with_rows_known {
    ($rows:expr, $tile:ident::<$v:ident, $vectors:literal>($($arg:expr),*)) => {{
        const { assert!($v::TILE_ROWS <= TILE && $v::TILE_PANELS <= 2) }
        match $rows {
            1 => $tile::<$v, 1, $vectors>($($arg),*),
            2 if $v::TILE_ROWS >= 2 => $tile::<$v, 2, $vectors>($($arg),*),
            3 if $v::TILE_ROWS >= 3 => $tile::<$v, 3, $vectors>($($arg),*),
            4 if $v::TILE_ROWS >= 4 => $tile::<$v, 4, $vectors>($($arg),*),
            5 if $v::TILE_ROWS >= 5 => $tile::<$v, 5, $vectors>($($arg),*),
            6 if $v::TILE_ROWS >= 6 => $tile::<$v, 6, $vectors>($($arg),*),
            7 if $v::TILE_ROWS >= 7 => $tile::<$v, 7, $vectors>($($arg),*),
            8 if $v::TILE_ROWS >= 8 => $tile::<$v, 8, $vectors>($($arg),*),
            9 if $v::TILE_ROWS >= 9 => $tile::<$v, 9, $vectors>($($arg),*),
            10 if $v::TILE_ROWS >= 10 => $tile::<$v, 10, $vectors>($($arg),*),
            11 if $v::TILE_ROWS >= 11 => $tile::<$v, 11, $vectors>($($arg),*),
            _ => $tile::<$v, 12, $vectors>($($arg),*),
        }
    }};
}

/// Tile `i` of `tiles`, of `count` rows split evenly: its first row and how many it has.
#[inline(always)]
fn tile_of(count: usize, tiles: usize, i: usize) -> (usize, usize) {
    let start = count * i / tiles;
    (start, count * (i + 1) / tiles - start)
}

/// # Safety
/// As [`Lanes`]; everything pointed to exists as [`accumulate`] checks.
#[inline(always)]
unsafe fn multiply_floats<V: Lanes>(
    from: *const f32,
    stride: usize,
    count: usize,
    inputs: usize,
    weights: Ahead<f32>,
    sums: Sums<'_>,
) {
    let out = sums.values.as_mut_ptr();
    let mut start = 0;
    while start < inputs {
        let length = FLOAT_CHUNK.min(inputs - start);
        let fresh = sums.fresh && start == 0;
        let tiles = count.div_ceil(V::TILE_ROWS);
        for i in 0..tiles {
            let (row, rows) = tile_of(count, tiles, i);
            // SAFETY: as for this function.
            unsafe {
                let a = from.add(row * stride + start);
                let w = weights.start.add(start * LANES);
                let c = out.add(row * sums.stride);
                if weights.panels == 2 && V::TILE_PANELS >= 2 {
                    with_rows_known!(
                        rows,
                        float_tile::<V, 2>(a, stride, w, weights.stride, length, c, sums.stride, fresh)
                    );
                } else {
                    for panel in 0..weights.panels {
                        let (w, c) = (w.add(panel * weights.stride), c.add(panel * LANES));
                        with_rows_known!(
                            rows,
                            float_tile::<V, 1>(a, stride, w, 0, length, c, sums.stride, fresh)
                        );
                    }
                }
            }
        }
        start += length;
    }
}

/// `c[ROWS, VECTORS * 16] += a[ROWS, length] * w[length, VECTORS * 16]`, one chain of additions per number of
/// `c`.
///
/// # Safety
/// As [`Lanes`].
#[inline(always)]
#[expect(
    clippy::too_many_arguments,
    reason = "three places and their distances: all of it stays in registers"
)]
unsafe fn float_tile<V: Lanes, const ROWS: usize, const VECTORS: usize>(
    a: *const f32,
    stride: usize,
    w: *const f32,
    panel_stride: usize,
    length: usize,
    c: *mut f32,
    c_stride: usize,
    fresh: bool,
) {
    unsafe {
        let mut acc = [[V::splat(0.0); VECTORS]; ROWS];
        if !fresh {
            for i in 0..ROWS {
                for j in 0..VECTORS {
                    acc[i][j] = V::load(c.add(i * c_stride + j * LANES));
                }
            }
        }
        for k in 0..length {
            let mut weights = [V::splat(0.0); VECTORS];
            for j in 0..VECTORS {
                weights[j] = V::load(w.add(j * panel_stride + k * LANES));
            }
            for i in 0..ROWS {
                let value = V::splat(*a.add(i * stride + k));
                for j in 0..VECTORS {
                    acc[i][j] = value.mul_add(weights[j], acc[i][j]);
                }
            }
        }
        for i in 0..ROWS {
            for j in 0..VECTORS {
                acc[i][j].store(c.add(i * c_stride + j * LANES));
            }
        }
    }
}

/// # Safety
/// As [`Lanes`]; everything pointed to exists as [`accumulate`] checks.
#[inline(always)]
unsafe fn multiply_bytes<V: Lanes>(
    rows: Quantised<'_>,
    first: usize,
    count: usize,
    weights: Ahead<u8>,
    sums: Sums<'_>,
) {
    let out = sums.values.as_mut_ptr();
    let chunks = rows.blocks.div_ceil(BYTE_CHUNK);
    let kept = V::KEEPS_SUMS && weights.panels == 2;
    for chunk in 0..chunks {
        let (start, blocks) = tile_of(rows.blocks, chunks, chunk);
        let quads = (rows.inputs - start * BLOCK).div_ceil(4).min(blocks * BLOCK / 4);
        let quads = if V::PACKED {
            quads.next_multiple_of(PACKED_INPUTS / 4)
        } else {
            quads
        };
        let fresh = sums.fresh && start == 0;
        let tiles = count.div_ceil(if kept { KEPT_ROWS } else { V::TILE_ROWS });
        for i in 0..tiles {
            let (row, size) = tile_of(count, tiles, i);
            let at = (first + row) * rows.blocks + start;
            // SAFETY: as for this function.
            unsafe {
                let a = ByteRows {
                    bytes: rows
                        .bytes
                        .as_ptr()
                        .add((first + row) * rows.stride + start * BLOCK),
                    stride: rows.stride,
                    scales: rows.scales.as_ptr().add(at),
                    corrections: rows.corrections.as_ptr().add(at),
                    blocks: rows.blocks,
                };
                let w = weights.start.add(start * BLOCK * LANES);
                let c = out.add(row * sums.stride);
                if kept {
                    macro_rules! kept {
                        ($rows:literal) => {
                            kept_tile::<V, $rows>(a, w, weights.stride, quads, c, sums.stride, fresh)
                        };
                    }
                    match size {
                        1 => kept!(1),
                        2 => kept!(2),
                        3 => kept!(3),
                        4 => kept!(4),
                        5 => kept!(5),
                        _ => kept!(6),
                    }
                } else if weights.panels == 2 && V::TILE_PANELS >= 2 {
                    with_rows_known!(
                        size,
                        byte_tile::<V, 2>(a, w, weights.stride, quads, c, sums.stride, fresh)
                    );
                } else {
                    for panel in 0..weights.panels {
                        let (w, c) = (w.add(panel * weights.stride), c.add(panel * LANES));
                        with_rows_known!(size, byte_tile::<V, 1>(a, w, 0, quads, c, sums.stride, fresh));
                    }
                }
            }
        }
    }
}

/// [`Quantised`] from one row and block on.
#[derive(Debug, Clone, Copy)]
struct ByteRows {
    bytes: *const i8,
    stride: usize,
    scales: *const f32,
    corrections: *const i32,
    blocks: usize,
}

/// `c[ROWS, VECTORS * 16] += a[ROWS, 4 * quads] * w[quads, VECTORS * 16, 4]`, one addition per block of 128.
///
/// # Safety
/// As [`Lanes`].
#[inline(always)]
unsafe fn byte_tile<V: Lanes, const ROWS: usize, const VECTORS: usize>(
    a: ByteRows,
    w: *const u8,
    panel_stride: usize,
    quads: usize,
    c: *mut f32,
    c_stride: usize,
    fresh: bool,
) {
    unsafe {
        let blocks = quads.div_ceil(BLOCK / 4);
        for block in 0..blocks {
            let mut corrections = [0; ROWS];
            for i in 0..ROWS {
                corrections[i] = *a.corrections.add(i * a.blocks + block);
            }
            let start = block * (BLOCK / 4);
            let acc = V::tile_block::<ROWS, VECTORS>(
                a.bytes.add(block * BLOCK),
                a.stride,
                corrections,
                w.add(block * BLOCK * LANES),
                panel_stride,
                (quads - start).min(BLOCK / 4),
            );
            let fresh = fresh && block == 0;
            for i in 0..ROWS {
                let scale = V::splat(*a.scales.add(i * a.blocks + block));
                for j in 0..VECTORS {
                    let to = c.add(i * c_stride + j * LANES);
                    let before = if fresh { V::splat(0.0) } else { V::load(to) };
                    V::from_int(acc[i][j]).mul_add(scale, before).store(to);
                }
            }
        }
    }
}

/// [`byte_tile`] of two panels, for sets with so many registers that `c` stays in them too.
///
/// # Safety
/// As [`Lanes`].
#[inline(always)]
unsafe fn kept_tile<V: Lanes, const ROWS: usize>(
    a: ByteRows,
    w: *const u8,
    panel_stride: usize,
    quads: usize,
    c: *mut f32,
    c_stride: usize,
    fresh: bool,
) {
    unsafe {
        let mut sums = [[V::splat(0.0); 2]; ROWS];
        if !fresh {
            for i in 0..ROWS {
                for j in 0..2 {
                    sums[i][j] = V::load(c.add(i * c_stride + j * LANES));
                }
            }
        }
        for block in 0..quads.div_ceil(BLOCK / 4) {
            let mut corrections = [0; ROWS];
            for i in 0..ROWS {
                corrections[i] = *a.corrections.add(i * a.blocks + block);
            }
            let start = block * (BLOCK / 4);
            let acc = V::tile_block::<ROWS, 2>(
                a.bytes.add(block * BLOCK),
                a.stride,
                corrections,
                w.add(block * BLOCK * LANES),
                panel_stride,
                (quads - start).min(BLOCK / 4),
            );
            for i in 0..ROWS {
                let scale = V::splat(*a.scales.add(i * a.blocks + block));
                for j in 0..2 {
                    sums[i][j] = V::from_int(acc[i][j]).mul_add(scale, sums[i][j]);
                }
            }
        }
        for i in 0..ROWS {
            for j in 0..2 {
                sums[i][j].store(c.add(i * c_stride + j * LANES));
            }
        }
    }
}
