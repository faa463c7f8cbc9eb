//! How is a weight matrix laid out, and how are rows multiplied with it? Panels of sixteen outputs, and tiles of up
//! to twelve rows by two panels whose sums stay in registers.
//!
//! - The forms are those of the file: weights are mapped into memory and used where they lie.
//! - Bytes: `dot` multiplies unsigned with signed bytes, so weights are stored + 128; what that adds to a sum, 128
//!   times the sum of the activations, is taken off beforehand (`quantise.rs`). Sums are exact within a block of
//!   128 and are added up in float32, each times its activations' scale. The column's scale comes last.
//! - Nibbles, many rows: two panels at a time are turned into bytes on one scale per column, and go the way of the
//!   bytes.
//! - Few rows: there the weights are read from memory once and used once, so all that counts is to read them in order.
//!
//! A sum's order over the inputs is always the same, whatever the tile and the task: results do not depend on either.

#![allow(clippy::needless_range_loop)] // A tile's loops run over registers: all of its arrays by the same index.

use crate::isa::{AHEAD, Isa, LANES, Lanes, dispatch, prefetch};
use crate::norm::load_part;
use crate::quantise::{BLOCK, Quantised, Rows};

/// A weight `[N, K]` (`y = x W^T`) in panels of 16 outputs. What lies beyond `N` and `K` is zero.
#[derive(Debug, Clone, Copy)]
pub enum Panels<'a> {
    /// `[ceil(N / 16), K, 16]`
    Float32(&'a [f32]),
    /// One scale per output.
    Int8 {
        /// `[ceil(N / 16), ceil(K / 4), 16, 4]`, value + 128
        bytes: &'a [u8],
        /// `[N]`: `w = scale * (byte - 128)`
        scales: &'a [f32],
    },
    /// One scale per output and 32 inputs.
    Int4 {
        /// `[ceil(N / 16), ceil(K / 32), 4, 16, 4]`, value + 8: byte `[.., b, p, c, i]` holds input `32 b + 8 p + i` of
        /// column `c` in its low nibble and input `32 b + 8 p + 4 + i` in its high one.
        nibbles: &'a [u8],
        /// `[ceil(N / 16), ceil(K / 32), 16]`, half precision: `w = scale * (nibble - 8)`
        scales: &'a [u16],
    },
}

/// A weight matrix.
#[derive(Debug, Clone, Copy)]
pub struct Matrix<'a> {
    /// `N`, numbers in a row of the result.
    pub outputs: usize,
    /// `K`, numbers in a row of what is multiplied.
    pub inputs: usize,
    /// The weights.
    pub panels: Panels<'a>,
}

/// Inputs with a common scale in [`Panels::Int4`].
pub(super) const NIBBLE_BLOCK: usize = 32;
/// Panels that are multiplied together.
pub(super) const PAIR: usize = 2;
/// Columns of those.
pub(super) const WIDTH: usize = PAIR * LANES;
/// Rows up to which a product is bound by reading the weights.
pub(super) const FEW: usize = 4;
/// Rows of the largest tile of any instruction set: tasks have multiples of it.
pub(super) const TILE: usize = 12;

impl Matrix<'_> {
    /// That the weights have the size that the shape asks for.
    ///
    /// # Panics
    /// Otherwise.
    pub(super) fn check(&self) {
        assert!(self.outputs > 0 && self.inputs > 0, "a weight without numbers");
        let panels = self.panel_count();
        match self.panels {
            Panels::Float32(values) => {
                assert_eq!(
                    values.len(),
                    panels * self.inputs * LANES,
                    "length of float32 weights"
                );
            }
            Panels::Int8 { bytes, scales } => {
                assert_eq!(bytes.len(), panels * self.panel_bytes(), "length of int8 weights");
                assert_eq!(scales.len(), self.outputs, "length of int8 scales");
            }
            Panels::Int4 { nibbles, scales } => {
                let blocks = self.inputs.div_ceil(NIBBLE_BLOCK);
                assert_eq!(nibbles.len(), panels * blocks * 256, "length of int4 weights");
                assert_eq!(scales.len(), panels * blocks * LANES, "length of int4 scales");
            }
        }
    }

    /// Panels.
    pub(super) fn panel_count(&self) -> usize {
        self.outputs.div_ceil(LANES)
    }

    /// Whether activations are quantised for it.
    pub(super) fn is_bytes(&self) -> bool {
        !matches!(self.panels, Panels::Float32(_))
    }

    /// Whether panels are made when they are used, so that a task should have many rows.
    pub(super) fn is_nibbles(&self) -> bool {
        matches!(self.panels, Panels::Int4 { .. })
    }

    /// Bytes of a panel of [`Panels::Int8`].
    fn panel_bytes(&self) -> usize {
        self.inputs.div_ceil(4) * 4 * LANES
    }

    /// Bytes that one panel of this matrix takes in memory, nearly.
    pub(super) fn panel_size(&self) -> usize {
        match self.panels {
            Panels::Float32(_) => self.inputs * 4 * LANES,
            Panels::Int8 { .. } => self.panel_bytes(),
            Panels::Int4 { .. } => self.inputs * LANES * 9 / 16,
        }
    }

    /// Bytes that [`Matrix::pair`] wants for `inputs` inputs.
    pub(super) fn room(&self, inputs: usize) -> usize {
        if self.is_nibbles() {
            inputs.next_multiple_of(NIBBLE_BLOCK) * WIDTH
        } else {
            0
        }
    }

    /// What the sums of each column of panels `first..first + count` must be multiplied with: 16 numbers a panel,
    /// zeros beyond the last output.
    pub(super) fn column_scales(&self, isa: Isa, first: usize, count: usize, to: &mut [f32]) {
        assert!(
            to.len() >= count * LANES && first + count <= self.panel_count(),
            "scales of no column"
        );
        let to = to.split_at_mut(count * LANES).0;
        match self.panels {
            Panels::Float32(_) => to.fill(1.0),
            Panels::Int8 { scales, .. } => {
                to.fill(0.0);
                for (to, scale) in to.iter_mut().zip(scales.iter().skip(first * LANES)) {
                    *to = *scale;
                }
            }
            Panels::Int4 { scales, .. } => {
                let blocks = self.inputs.div_ceil(NIBBLE_BLOCK);
                for (panel, to) in to.chunks_exact_mut(LANES).enumerate() {
                    let from = scales.get((first + panel) * blocks * LANES..).unwrap_or(&[]);
                    column_scale(isa, from, blocks, to);
                    let real = self.outputs.saturating_sub((first + panel) * LANES);
                    to.iter_mut().skip(real).for_each(|scale| *scale = 0.0);
                }
            }
        }
    }

    /// Panels `first..first + count` for the inputs from `block * BLOCK` on, `inputs` of them (all that are left, or
    /// a multiple of `BLOCK`).
    ///
    /// `column_scales` are those of these panels; `room` as long as [`Matrix::room`] says.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn pair<'a>(
        &'a self,
        isa: Isa,
        first: usize,
        count: usize,
        block: usize,
        inputs: usize,
        column_scales: &[f32],
        room: &'a mut [u8],
    ) -> Pair<'a> {
        assert!(
            first + count <= self.panel_count() && count <= PAIR,
            "panels of another matrix"
        );
        assert!(block * BLOCK + inputs <= self.inputs, "inputs of another matrix");
        match self.panels {
            Panels::Float32(values) => {
                let stride = self.inputs * LANES;
                let start = first * stride + block * BLOCK * LANES;
                Pair::Floats {
                    values: values.get(start..).unwrap_or(&[]),
                    stride,
                    count,
                }
            }
            Panels::Int8 { bytes, .. } => {
                let stride = self.panel_bytes();
                let start = first * stride + block * BLOCK * LANES;
                Pair::Bytes {
                    bytes: bytes.get(start..).unwrap_or(&[]),
                    stride,
                    count,
                }
            }
            Panels::Int4 { nibbles, scales } => {
                let (all, start) = (self.inputs.div_ceil(NIBBLE_BLOCK), block * BLOCK / NIBBLE_BLOCK);
                let blocks = inputs.div_ceil(NIBBLE_BLOCK);
                let stride = blocks * NIBBLE_BLOCK * LANES;
                for panel in 0..count {
                    let at = (first + panel) * all + start;
                    let nibbles = nibbles.get(at * 256..(at + blocks) * 256).unwrap_or(&[]);
                    let scales = scales.get(at * LANES..(at + blocks) * LANES).unwrap_or(&[]);
                    let columns = column_scales
                        .get(panel * LANES..(panel + 1) * LANES)
                        .unwrap_or(&[]);
                    let to = room
                        .get_mut(panel * stride..(panel + 1) * stride)
                        .unwrap_or(&mut []);
                    spread(isa, nibbles, scales, columns, to);
                }
                Pair::Bytes {
                    bytes: room,
                    stride,
                    count,
                }
            }
        }
    }
}

/// One or two neighbouring panels, from some input on.
#[derive(Debug, Clone, Copy)]
pub(super) enum Pair<'a> {
    /// `[inputs, 16]` each, `stride` numbers from panel to panel.
    Floats {
        values: &'a [f32],
        stride: usize,
        count: usize,
    },
    /// `[inputs / 4, 16, 4]` each, `stride` bytes from panel to panel.
    Bytes {
        bytes: &'a [u8],
        stride: usize,
        count: usize,
    },
}

/// The scale of bytes that hold a column of nibbles: its largest block scale times 8 becomes 127.
fn column_scale(isa: Isa, scales: &[u16], blocks: usize, to: &mut [f32]) {
    #[inline(always)]
    unsafe fn body<V: Lanes>(scales: &[u16], blocks: usize, to: &mut [f32]) {
        // SAFETY: lengths are checked below.
        unsafe {
            let mut top = V::splat(0.0);
            for block in 0..blocks {
                top = top.max(V::load_f16(scales.as_ptr().add(block * LANES)).abs());
            }
            top.mul(V::splat(8.0 / 127.0)).store(to.as_mut_ptr());
        }
    }
    assert!(
        scales.len() >= blocks * LANES && to.len() == LANES,
        "scales of nibbles"
    );
    dispatch!(isa, body(scales: &[u16], blocks: usize, to: &mut [f32]));
}

/// Nibbles of one panel to bytes of one panel, on the columns' scales.
fn spread(isa: Isa, nibbles: &[u8], scales: &[u16], columns: &[f32], to: &mut [u8]) {
    #[inline(always)]
    unsafe fn body<V: Lanes>(nibbles: &[u8], scales: &[u16], columns: &[f32], to: &mut [u8]) {
        // SAFETY: lengths are checked below.
        unsafe {
            let columns = V::load(columns.as_ptr());
            // Where a column is zero its scales are, too; 2048 is what the ratios are in units of.
            let factor = V::splat(2048.0).div(columns.max(V::splat(1e-30)));
            for block in 0..scales.len() / LANES {
                let ratios = V::load_f16(scales.as_ptr().add(block * LANES))
                    .mul(factor)
                    .round();
                let ratios = ratios.max(V::splat(-32512.0)).min(V::splat(32512.0));
                for group in 0..4 {
                    let to = to.as_mut_ptr().add(block * 512 + group * 128);
                    V::spread_nibbles(
                        nibbles.as_ptr().add(block * 256 + group * 64),
                        ratios,
                        to,
                        to.add(64),
                    );
                }
            }
        }
    }
    let blocks = scales.len() / LANES;
    assert!(
        nibbles.len() == blocks * 256 && to.len() == blocks * 512,
        "a panel of nibbles"
    );
    assert_eq!(columns.len(), LANES, "a scale per column");
    dispatch!(isa, body(nibbles: &[u8], scales: &[u16], columns: &[f32], to: &mut [u8]));
}

/// Sums that are added up over several blocks of inputs: `[rows, stride]`, without the columns' scales.
#[derive(Debug)]
pub(super) struct Sums<'a> {
    /// From the first column of the pair on.
    pub(super) values: &'a mut [f32],
    /// Numbers from row to row.
    pub(super) stride: usize,
    /// Whether what they hold is to be forgotten.
    pub(super) fresh: bool,
}

/// `sums += rows[first..first + count] * pair`
pub(super) fn accumulate(
    isa: Isa,
    rows: &Rows<'_>,
    first: usize,
    count: usize,
    pair: &Pair<'_>,
    sums: Sums<'_>,
) {
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
                from: *const f32, stride: usize, count: usize, inputs: usize, weights: Ahead<f32>, sums: Sums<'_>,
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
                bytes.len() >= (panels - 1) * stride + rows.inputs.div_ceil(4) * 4 * LANES,
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

/// Inputs of float32 weights that are multiplied with all rows before the next are: two panels of them fit a first
/// cache.
const FLOAT_CHUNK: usize = 128;
/// Blocks of byte weights, likewise.
const BYTE_CHUNK: usize = 4;

/// Calls `$tile::<V, ROWS, VECTORS>` for a number of rows known only now.
macro_rules! with_rows_known {
    ($rows:expr, $tile:ident::<$v:ident, $vectors:literal>($($arg:expr),*)) => {
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
    };
}

/// Tile `i` of `tiles`, of `count` rows split evenly: its first row and how many it has.
///
/// No closures here and below: one that is not inlined loses the instruction set.
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
                if weights.panels == 2 && V::TILE_VECTORS >= 2 {
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

/// `c[ROWS, VECTORS * 16] += a[ROWS, length] * w[length, VECTORS * 16]`, one chain of additions per number of `c`.
///
/// # Safety
/// As [`Lanes`].
#[inline(always)]
#[allow(clippy::too_many_arguments, clippy::indexing_slicing)]
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
    let mut start = 0;
    while start < rows.blocks {
        let blocks = BYTE_CHUNK.min(rows.blocks - start);
        let quads = (rows.inputs - start * BLOCK).div_ceil(4).min(blocks * BLOCK / 4);
        let fresh = sums.fresh && start == 0;
        let tiles = count.div_ceil(V::TILE_ROWS);
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
                if weights.panels == 2 && V::TILE_VECTORS >= 2 {
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
        start += blocks;
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
#[allow(clippy::indexing_slicing)]
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
            let mut acc = [[V::int_splat(0); VECTORS]; ROWS];
            for i in 0..ROWS {
                acc[i] = [V::int_splat(*a.corrections.add(i * a.blocks + block)); VECTORS];
            }
            let start = block * (BLOCK / 4);
            for quad in start..quads.min(start + BLOCK / 4) {
                let w = w.add(quad * 4 * LANES);
                for i in 0..ROWS {
                    let values = a
                        .bytes
                        .add(i * a.stride + quad * 4)
                        .cast::<[i8; 4]>()
                        .read_unaligned();
                    for j in 0..VECTORS {
                        acc[i][j] = V::dot(acc[i][j], w.add(j * panel_stride), values);
                    }
                }
            }
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

/// Few rows and what the products with nibbles need of them.
#[derive(Debug, Clone, Copy)]
pub(super) struct FewRows<'a> {
    /// The rows.
    pub(super) rows: &'a Rows<'a>,
    /// `[rows, ceil(inputs / 32)]`: -8 times the sum of 32 bytes.
    pub(super) corrections: &'a [i32],
}

/// Fills [`FewRows::corrections`].
pub(super) fn nibble_corrections(rows: &Quantised<'_>, to: &mut [i32]) {
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

/// The products of `ROWS` rows (the first of `few`) with one panel, times the columns' scales.
///
/// # Safety
/// As [`Lanes`]; `few` has `ROWS` rows of the matrix's number of inputs, and the matrix has the panel and passed its
/// `check`.
#[inline(always)]
#[allow(clippy::indexing_slicing)]
pub(super) unsafe fn few_panel<V: Lanes, const ROWS: usize>(
    few: &FewRows<'_>,
    matrix: &Matrix<'_>,
    panel: usize,
) -> [V; ROWS] {
    // SAFETY: as for this function.
    unsafe {
        match (few.rows, matrix.panels) {
            (Rows::Floats { values, stride, .. }, Panels::Float32(weights)) => {
                let weights = weights.as_ptr().add(panel * matrix.inputs * LANES);
                few_floats::<V, ROWS>(values.as_ptr(), *stride, weights, matrix.inputs)
            }
            (Rows::Bytes(rows), Panels::Int8 { bytes, scales }) => {
                let weights = bytes.as_ptr().add(panel * matrix.panel_bytes());
                let scales: V = load_part(scales, panel * LANES);
                let mut sums = few_bytes::<V, ROWS>(rows, weights);
                for sum in &mut sums {
                    *sum = sum.mul(scales);
                }
                sums
            }
            (Rows::Bytes(rows), Panels::Int4 { nibbles, scales }) => {
                let blocks = matrix.inputs.div_ceil(NIBBLE_BLOCK);
                let nibbles = nibbles.as_ptr().add(panel * blocks * 256);
                let scales = scales.as_ptr().add(panel * blocks * LANES);
                few_nibbles::<V, ROWS>(rows, few.corrections.as_ptr(), nibbles, scales)
            }
            _ => [V::splat(f32::NAN); ROWS],
        }
    }
}

/// # Safety
/// As [`few_panel`].
#[inline(always)]
#[allow(clippy::indexing_slicing)]
unsafe fn few_floats<V: Lanes, const ROWS: usize>(
    values: *const f32,
    stride: usize,
    weights: *const f32,
    inputs: usize,
) -> [V; ROWS] {
    // Chains enough to wait for memory and not for additions.
    const CHAINS: usize = 4;
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
#[allow(clippy::indexing_slicing)]
unsafe fn few_bytes<V: Lanes, const ROWS: usize>(rows: &Quantised<'_>, weights: *const u8) -> [V; ROWS] {
    const CHAINS: usize = 2;
    unsafe {
        let quads = rows.inputs.div_ceil(4);
        let mut sums = [V::splat(0.0); ROWS];
        for block in 0..rows.blocks {
            let mut acc = [[V::int_splat(0); ROWS]; CHAINS];
            for row in 0..ROWS {
                acc[0][row] = V::int_splat(*rows.corrections.as_ptr().add(row * rows.blocks + block));
            }
            let (mut quad, end) = (block * BLOCK / 4, quads.min((block + 1) * BLOCK / 4));
            let bytes = rows.bytes.as_ptr();
            let four = |row: usize, quad: usize| {
                bytes
                    .add(row * rows.stride + quad * 4)
                    .cast::<[i8; 4]>()
                    .read_unaligned()
            };
            while quad + CHAINS <= end {
                for chain in 0..CHAINS {
                    let w = weights.add((quad + chain) * 4 * LANES);
                    prefetch(w.wrapping_add(AHEAD));
                    for row in 0..ROWS {
                        acc[chain][row] = V::dot(acc[chain][row], w, four(row, quad + chain));
                    }
                }
                quad += CHAINS;
            }
            while quad < end {
                let w = weights.add(quad * 4 * LANES);
                for row in 0..ROWS {
                    acc[0][row] = V::dot(acc[0][row], w, four(row, quad));
                }
                quad += 1;
            }
            for row in 0..ROWS {
                let scale = V::splat(*rows.scales.as_ptr().add(row * rows.blocks + block));
                let sum = V::from_int(V::int_add(acc[0][row], acc[1][row]));
                sums[row] = sum.mul_add(scale, sums[row]);
            }
        }
        sums
    }
}

/// # Safety
/// As [`few_panel`].
#[inline(always)]
#[allow(clippy::indexing_slicing)]
unsafe fn few_nibbles<V: Lanes, const ROWS: usize>(
    rows: &Quantised<'_>,
    corrections: *const i32,
    nibbles: *const u8,
    scales: *const u16,
) -> [V; ROWS] {
    unsafe {
        let blocks = rows.inputs.div_ceil(NIBBLE_BLOCK);
        let mut sums = [V::splat(0.0); ROWS];
        for block in 0..blocks {
            let mut acc = [V::int_splat(0); ROWS];
            for row in 0..ROWS {
                acc[row] = V::int_splat(*corrections.add(row * blocks + block));
            }
            for group in 0..4 {
                let w = nibbles.add(block * 256 + group * 64);
                prefetch(w.wrapping_add(AHEAD));
                for row in 0..ROWS {
                    let start = row * rows.stride + block * NIBBLE_BLOCK + group * 8;
                    let at = rows.bytes.as_ptr().add(start).cast::<[i8; 4]>();
                    acc[row] = V::dot_nibbles(acc[row], w, at.read_unaligned(), at.add(1).read_unaligned());
                }
            }
            prefetch(scales.wrapping_add(block * LANES + AHEAD / 16));
            let scale = V::load_f16(scales.add(block * LANES));
            for row in 0..ROWS {
                let step = block * NIBBLE_BLOCK / BLOCK;
                let factor = scale.mul(V::splat(*rows.scales.as_ptr().add(row * rows.blocks + step)));
                sums[row] = V::from_int(acc[row]).mul_add(factor, sums[row]);
            }
        }
        sums
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
pub(super) mod tests {
    use super::*;
    use crate::testing::noise;
    use half::f16;

    /// The three forms.
    pub(crate) const FORMS: [Form; 3] = [Form::Float32, Form::Int8, Form::Int4];

    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub(crate) enum Form {
        Float32,
        Int8,
        Int4,
    }

    /// A random matrix in one of the forms, and the values that it stands for.
    #[derive(Debug)]
    pub(crate) struct Weights {
        pub(crate) outputs: usize,
        pub(crate) inputs: usize,
        /// `[outputs, inputs]`
        pub(crate) values: Vec<f32>,
        form: Form,
        floats: Vec<f32>,
        bytes: Vec<u8>,
        halves: Vec<u16>,
    }

    impl Weights {
        pub(crate) fn new(form: Form, outputs: usize, inputs: usize, seed: u64) -> Weights {
            let mut values = noise(outputs * inputs, seed);
            let panels = outputs.div_ceil(LANES);
            let (mut floats, mut bytes, mut halves) = (Vec::new(), Vec::new(), Vec::new());
            match form {
                Form::Float32 => {
                    floats = vec![0.0; panels * inputs * LANES];
                    for (i, value) in values.iter().enumerate() {
                        let (n, k) = (i / inputs, i % inputs);
                        floats[(n / LANES * inputs + k) * LANES + n % LANES] = *value;
                    }
                }
                Form::Int8 => {
                    let quads = inputs.div_ceil(4);
                    bytes = vec![128; panels * quads * 4 * LANES];
                    floats = noise(outputs, seed + 1)
                        .iter()
                        .map(|x| (x + 1.5) / 127.0)
                        .collect();
                    for (i, value) in values.iter_mut().enumerate() {
                        let (n, k) = (i / inputs, i % inputs);
                        let whole = (*value * 127.0).round();
                        bytes[((n / LANES * quads + k / 4) * LANES + n % LANES) * 4 + k % 4] =
                            (whole + 128.0) as u8;
                        *value = whole * floats[n];
                    }
                }
                Form::Int4 => {
                    let blocks = inputs.div_ceil(32);
                    bytes = vec![0x88; panels * blocks * 256];
                    let scales = noise(panels * blocks * LANES, seed + 1);
                    halves = scales
                        .iter()
                        .map(|x| f16::from_f32((x + 0.3) / 7.0).to_bits())
                        .collect();
                    for (i, value) in values.iter_mut().enumerate() {
                        let (n, k) = (i / inputs, i % inputs);
                        let whole = (*value * 7.5 - 0.5).round();
                        let block = n / LANES * blocks + k / 32;
                        let (group, part) = (k % 32 / 8, k % 8);
                        let byte = &mut bytes[block * 256 + group * 64 + n % LANES * 4 + part % 4];
                        let nibble = (whole + 8.0) as u8;
                        *byte = if part < 4 {
                            *byte & 0xf0 | nibble
                        } else {
                            *byte & 0x0f | nibble << 4
                        };
                        *value = whole * f16::from_bits(halves[block * LANES + n % LANES]).to_f32();
                    }
                }
            }
            Weights {
                outputs,
                inputs,
                values,
                form,
                floats,
                bytes,
                halves,
            }
        }

        pub(crate) fn matrix(&self) -> Matrix<'_> {
            Matrix {
                outputs: self.outputs,
                inputs: self.inputs,
                panels: match self.form {
                    Form::Float32 => Panels::Float32(&self.floats),
                    Form::Int8 => Panels::Int8 {
                        bytes: &self.bytes,
                        scales: &self.floats,
                    },
                    Form::Int4 => Panels::Int4 {
                        nibbles: &self.bytes,
                        scales: &self.halves,
                    },
                },
            }
        }

        /// `x W^T` in float64 for `x` `[rows, inputs]`, and how far off a kernel may be: what rounding the activations
        /// (to half of a step of their block) and, if `spread`, nibbles (to half of a step of their column) can add
        /// up to, and float32's own rounding.
        pub(crate) fn product(&self, x: &[f64], spread: bool) -> (Vec<f64>, Vec<f64>) {
            let (mut out, mut bounds) = (Vec::new(), Vec::new());
            for x in x.chunks(self.inputs) {
                for w in self.values.chunks(self.inputs) {
                    let (mut sum, mut size, mut bound) = (0.0, 0.0, 0.0);
                    // A column's largest nibble is at most 8 / 7 of the largest value that occurs, or 8 times a scale
                    // that no value makes use of: the test's scales are at most 1.3 / 7.
                    let column_step = if spread && self.form == Form::Int4 {
                        8.0 * 1.3 / 7.0 / 127.0
                    } else {
                        0.0
                    };
                    for (x, w) in x.chunks(128).zip(w.chunks(128)) {
                        let top = x.iter().fold(0.0_f64, |top, x| top.max(x.abs()));
                        let step = if self.form == Form::Float32 {
                            0.0
                        } else {
                            top / 127.0
                        };
                        for (x, w) in x.iter().zip(w) {
                            let w = f64::from(*w);
                            sum += x * w;
                            size += (x * w).abs();
                            bound += 0.501 * step * (w.abs() + 0.51 * column_step);
                            bound += 0.51 * column_step * x.abs();
                        }
                    }
                    out.push(sum);
                    bounds.push(bound + 1e-5 * size + 1e-6);
                }
            }
            (out, bounds)
        }
    }

    #[test]
    fn spread_nibbles_keep_their_values() {
        let weights = Weights::new(Form::Int4, 40, 100, 5);
        let matrix = weights.matrix();
        matrix.check();
        for isa in Isa::available() {
            for (first, count) in [(0, 2), (2, 1)] {
                let mut scales = [0.0; WIDTH];
                matrix.column_scales(isa, first, count, &mut scales);
                let mut room = vec![0; matrix.room(100)];
                let Pair::Bytes { bytes, stride, .. } =
                    matrix.pair(isa, first, count, 0, 100, &scales, &mut room)
                else {
                    panic!("not bytes")
                };
                for n in first * LANES..(40).min((first + count) * LANES) {
                    let column = n - first * LANES;
                    for k in 0..100 {
                        let at = column / LANES * stride + (k / 4 * LANES + column % LANES) * 4 + k % 4;
                        let value = scales[column] * (f32::from(bytes[at]) - 128.0);
                        let error = (value - weights.values[n * 100 + k]).abs();
                        assert!(error <= scales[column] * 0.503, "{} {n} {k}: {error}", isa.name());
                    }
                }
            }
        }
    }
}
