//! Tiles: how are many rows multiplied with a matrix? Up to twelve rows by two panels, whose sums stay in
//! registers.

#![expect(
    clippy::needless_range_loop,
    reason = "a tile's loops run over registers: all of its arrays by the same index"
)]

use super::panels::{NIBBLE_BLOCK, NIBBLE_BLOCKS, Pair, Way, nibble_record};
use crate::coming::Coming;
use crate::isa::{Isa, LANES, Lanes, Nibbles, dispatch};
use crate::parallel::part_of;
use crate::quantise::{BLOCK, Quantised, Rows};
use std::ops::Range;

/// Rows of the largest tile of any instruction set.
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
    /// What is asked for with every tile.
    pub(crate) coming: [Option<&'a Coming>; 2],
}

impl Sums<'_> {
    /// Asks for some of what is coming.
    #[inline(always)]
    fn ask(&self) {
        for coming in self.coming.into_iter().flatten() {
            coming.ask();
        }
    }
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
                bytes: data,
                stride,
                count: panels,
            }
            | Pair::Nibbles {
                records: data,
                stride,
                count: panels,
            },
        ) => {
            check(rows, first + count, *panels, count, &sums);
            let weights = Ahead {
                start: data.as_ptr(),
                stride: *stride,
                panels: *panels,
            };
            let (rows, length) = (*rows, data.len());
            if matches!(pair, Pair::Bytes { .. }) {
                dispatch!(isa, multiply_bytes(
                    rows: Quantised<'_>, first: usize, count: usize, weights: Ahead<u8>, length: usize,
                    sums: Sums<'_>,
                ));
            } else {
                dispatch!(isa, multiply_nibbles(
                    rows: Quantised<'_>, first: usize, count: usize, weights: Ahead<u8>, length: usize,
                    sums: Sums<'_>,
                ));
            }
        }
        _ => panic!("rows are not prepared for these weights"),
    }
}

/// That there are as many quantised rows, and room for the sums of `count` of them.
fn check(rows: &Quantised<'_>, end: usize, panels: usize, count: usize, sums: &Sums<'_>) {
    assert!(
        end <= rows.scales.len() / rows.blocks && end <= rows.corrections.len() / rows.blocks,
        "rows that are not there"
    );
    assert!(
        rows.bytes.len() >= end * rows.stride && rows.inputs <= rows.blocks * BLOCK,
        "rows that are not there"
    );
    assert!(
        sums.values.len() >= (count - 1) * sums.stride + panels * LANES,
        "too few sums"
    );
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
/// Blocks of weights of one byte, likewise; of words half as many.
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
            12 if $v::TILE_ROWS >= 12 => $tile::<$v, 12, $vectors>($($arg),*),
            rows => unreachable!("{rows} rows in a tile of {}", $v::TILE_ROWS),
        }
    }};
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
            let part = part_of(count, tiles, i);
            let (row, rows) = (part.start, part.len());
            sums.ask();
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
        let acc = V::add_floats(acc, a, stride, w, panel_stride, length);
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
    length: usize,
    sums: Sums<'_>,
) {
    let way = Way::of_set::<V>();
    // Bytes of a number.
    let size = way.size();
    assert!(
        length >= (weights.panels - 1) * weights.stride + way.inputs(rows.inputs) * LANES * size,
        "weights that are not there"
    );
    assert!(
        !V::WORDS || rows.words.len() >= (first + count) * rows.stride,
        "rows that are not there"
    );
    let bytes = if V::WORDS {
        rows.words.as_ptr().cast()
    } else {
        rows.bytes.as_ptr()
    };
    let out = sums.values.as_mut_ptr();
    let chunks = rows.blocks.div_ceil(BYTE_CHUNK / size);
    let kept = V::KEEPS_SUMS && !V::WORDS && weights.panels == 2;
    for chunk in 0..chunks {
        let part = part_of(rows.blocks, chunks, chunk);
        let (start, blocks) = (part.start, part.len());
        let inputs = way.inputs(rows.inputs - start * BLOCK).min(blocks * BLOCK);
        let fresh = sums.fresh && start == 0;
        let tiles = count.div_ceil(if kept { KEPT_ROWS } else { V::TILE_ROWS });
        for i in 0..tiles {
            let part = part_of(count, tiles, i);
            let (row, rows_here) = (part.start, part.len());
            sums.ask();
            let at = (first + row) * rows.blocks + start;
            // SAFETY: as for this function.
            unsafe {
                let a = ByteRows {
                    bytes: bytes.add(((first + row) * rows.stride + start * BLOCK) * size),
                    stride: rows.stride * size,
                    scales: rows.scales.as_ptr().add(at),
                    corrections: rows.corrections.as_ptr().add(at),
                    blocks: rows.blocks,
                };
                let w = weights.start.add(start * BLOCK * LANES * size);
                let c = out.add(row * sums.stride);
                if kept {
                    macro_rules! kept {
                        ($rows:literal) => {
                            kept_tile::<V, $rows>(a, w, weights.stride, inputs / 4, c, sums.stride, fresh)
                        };
                    }
                    match rows_here {
                        1 => kept!(1),
                        2 => kept!(2),
                        3 => kept!(3),
                        4 => kept!(4),
                        5 => kept!(5),
                        _ => kept!(6),
                    }
                } else if weights.panels == 2 && V::TILE_PANELS >= 2 {
                    with_rows_known!(
                        rows_here,
                        byte_tile::<V, 2>(a, w, weights.stride, inputs, c, sums.stride, fresh)
                    );
                } else {
                    for panel in 0..weights.panels {
                        let (w, c) = (w.add(panel * weights.stride), c.add(panel * LANES));
                        with_rows_known!(
                            rows_here,
                            byte_tile::<V, 1>(a, w, 0, inputs, c, sums.stride, fresh)
                        );
                    }
                }
            }
        }
    }
}

/// [`Quantised`] from one row and block on.
#[derive(Debug, Clone, Copy)]
struct ByteRows {
    /// Bytes or words.
    bytes: *const i8,
    /// Bytes from row to row.
    stride: usize,
    scales: *const f32,
    /// Of blocks, or four times as many of nibbles.
    corrections: *const i32,
    blocks: usize,
}

/// `c[ROWS, VECTORS * 16] += a[ROWS, inputs] * w[inputs, VECTORS * 16]`, one addition per block of 128.
///
/// # Safety
/// As [`Lanes`].
#[inline(always)]
unsafe fn byte_tile<V: Lanes, const ROWS: usize, const VECTORS: usize>(
    a: ByteRows,
    w: *const u8,
    panel_stride: usize,
    inputs: usize,
    c: *mut f32,
    c_stride: usize,
    fresh: bool,
) {
    unsafe {
        for block in 0..inputs.div_ceil(BLOCK) {
            let mut corrections = [0; ROWS];
            for i in 0..ROWS {
                corrections[i] = *a.corrections.add(i * a.blocks + block);
            }
            let start = block * BLOCK;
            let here = (inputs - start).min(BLOCK);
            let acc = if V::WORDS {
                let (from, w) = (a.bytes.add(start * 2), w.add(start * LANES * 2));
                V::tile_words::<ROWS, VECTORS>(from, a.stride, corrections, w, panel_stride, here / 2)
            } else {
                let (from, w) = (a.bytes.add(start), w.add(start * LANES));
                V::tile_block::<ROWS, VECTORS>(from, a.stride, corrections, w, panel_stride, here / 4)
            };
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

/// # Safety
/// As [`Lanes`]; everything pointed to exists as [`accumulate`] checks.
#[inline(always)]
unsafe fn multiply_nibbles<V: Lanes>(
    rows: Quantised<'_>,
    first: usize,
    count: usize,
    weights: Ahead<u8>,
    length: usize,
    sums: Sums<'_>,
) {
    // Bytes of a number.
    let size = nibble_size::<V>();
    let parts = rows.inputs.div_ceil(NIBBLE_BLOCK);
    assert!(
        length >= (weights.panels - 1) * weights.stride + parts * nibble_record(size),
        "weights that are not there"
    );
    assert!(
        rows.nibbles.len() >= (first + count) * rows.blocks * NIBBLE_BLOCKS
            && (size == 1 || rows.words.len() >= (first + count) * rows.stride),
        "rows that are not there"
    );
    let bytes = if size == 1 {
        rows.bytes.as_ptr()
    } else {
        rows.words.as_ptr().cast()
    };
    let out = sums.values.as_mut_ptr();
    let mut start = 0;
    while start < rows.blocks {
        let blocks = (BYTE_CHUNK / size).min(rows.blocks - start);
        let parts = (parts - start * NIBBLE_BLOCKS).min(blocks * NIBBLE_BLOCKS);
        let fresh = sums.fresh && start == 0;
        let tiles = count.div_ceil(V::TILE_ROWS);
        for i in 0..tiles {
            let part = part_of(count, tiles, i);
            let (row, rows_here) = (part.start, part.len());
            sums.ask();
            let at = (first + row) * rows.blocks + start;
            // SAFETY: as for this function.
            unsafe {
                let a = ByteRows {
                    bytes: bytes.add(((first + row) * rows.stride + start * BLOCK) * size),
                    stride: rows.stride * size,
                    scales: rows.scales.as_ptr().add(at),
                    corrections: rows.nibbles.as_ptr().add(at * NIBBLE_BLOCKS),
                    blocks: rows.blocks,
                };
                let w = weights.start.add(start * NIBBLE_BLOCKS * nibble_record(size));
                for panel in 0..weights.panels {
                    let w = w.add(panel * weights.stride);
                    let c = out.add(row * sums.stride + panel * LANES);
                    with_rows_known!(rows_here, nibble_tile::<V, 1>(a, w, parts, c, sums.stride, fresh));
                }
            }
        }
        start += blocks;
    }
}

/// Bytes of a nibble in [`Pair::Nibbles`].
#[inline(always)]
fn nibble_size<V: Lanes>() -> usize {
    if V::NIBBLES == Nibbles::Words { 2 } else { 1 }
}

/// `c[ROWS, 16] += a[ROWS, 32 * parts] * w[parts, 32, 16]`, one addition per block of 128.
///
/// # Safety
/// As [`Lanes`].
#[inline(always)]
unsafe fn nibble_tile<V: Lanes, const ROWS: usize, const VECTORS: usize>(
    a: ByteRows,
    w: *const u8,
    parts: usize,
    c: *mut f32,
    c_stride: usize,
    fresh: bool,
) {
    const { assert!(VECTORS == 1) }
    unsafe {
        let size = nibble_size::<V>();
        let steps = NIBBLE_BLOCK * size / 4;
        for block in 0..parts.div_ceil(NIBBLE_BLOCKS) {
            let mut sums = [V::splat(0.0); ROWS];
            for part in block * NIBBLE_BLOCKS..parts.min((block + 1) * NIBBLE_BLOCKS) {
                let w = w.add(part * nibble_record(size));
                let mut acc = [V::int_splat(0); ROWS];
                for i in 0..ROWS {
                    acc[i] = V::nibble_start(*a.corrections.add(i * a.blocks * NIBBLE_BLOCKS + part));
                }
                for step in 0..steps {
                    let w = w.add(step * 4 * LANES);
                    for i in 0..ROWS {
                        let values = a.bytes.add(i * a.stride + (part * steps + step) * 4);
                        let values = values.cast::<[i8; 4]>().read_unaligned();
                        acc[i] = V::nibble_step(acc[i], w, values);
                    }
                }
                let scale = V::load(w.add(steps * 4 * LANES).cast());
                for i in 0..ROWS {
                    sums[i] = V::from_int(V::nibble_end(acc[i])).mul_add(scale, sums[i]);
                }
            }
            let fresh = fresh && block == 0;
            for i in 0..ROWS {
                let scale = V::splat(*a.scales.add(i * a.blocks + block));
                let to = c.add(i * c_stride);
                let before = if fresh { V::splat(0.0) } else { V::load(to) };
                sums[i].mul_add(scale, before).store(to);
            }
        }
    }
}
