//! Panels: how is a weight matrix laid out? Sixteen outputs together, in float32, bytes or nibbles.

use super::tiles::TILE;
use crate::coming::{Coming, MOST_PARTS, NOTHING};
use crate::isa::{Isa, LANES, Lanes, Nibbles, dispatch};
use crate::quantise::{BLOCK, Wanted};
use crate::sizes::{MOST, product};

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
        /// `[ceil(N / 16), ceil(K / 32), 4, 16, 4]`, value + 8: byte `[.., b, p, c, i]` holds input
        /// `32 b + 8 p + i` of column `c` in its low nibble and input `32 b + 8 p + 4 + i` in its high one.
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
pub(crate) const NIBBLE_BLOCK: usize = 32;
/// Such blocks in a block of activations.
pub(super) const NIBBLE_BLOCKS: usize = BLOCK / NIBBLE_BLOCK;
/// Bytes of such a block of a panel.
pub(super) const NIBBLE_BYTES: usize = NIBBLE_BLOCK * LANES / 2;
/// Bytes of 32 inputs of a panel in [`Pair::Nibbles`], if a nibble takes `size` bytes: the nibbles, then a
/// float32 for each column.
pub(super) const fn nibble_record(size: usize) -> usize {
    NIBBLE_BLOCK * LANES * size + 4 * LANES
}
/// Panels that are multiplied together.
pub(crate) const PAIR: usize = 2;
/// Columns of those.
pub(crate) const WIDTH: usize = PAIR * LANES;

impl Matrix<'_> {
    /// That the weights have the size that the shape asks for.
    ///
    /// # Panics
    /// Otherwise.
    pub(crate) fn check(&self) {
        assert!(self.outputs > 0 && self.inputs > 0, "a weight without numbers");
        assert!(self.outputs <= MOST && self.inputs <= MOST, "sizes of no weight");
        let panels = self.panel_count();
        match self.panels {
            Panels::Float32(values) => {
                assert_eq!(
                    values.len(),
                    product([panels, self.inputs, LANES]),
                    "length of float32 weights"
                );
            }
            Panels::Int8 { bytes, scales } => {
                assert_eq!(
                    bytes.len(),
                    product([panels, self.panel_bytes()]),
                    "length of int8 weights"
                );
                assert_eq!(scales.len(), self.outputs, "length of int8 scales");
            }
            Panels::Int4 { nibbles, scales } => {
                let blocks = self.inputs.div_ceil(NIBBLE_BLOCK);
                assert_eq!(
                    nibbles.len(),
                    product([panels, blocks, NIBBLE_BYTES]),
                    "length of int4 weights"
                );
                assert_eq!(
                    scales.len(),
                    product([panels, blocks, LANES]),
                    "length of int4 scales"
                );
            }
        }
    }

    /// Panels.
    pub(crate) fn panel_count(&self) -> usize {
        self.outputs.div_ceil(LANES)
    }

    /// Whether activations are quantised for it.
    pub(crate) fn is_bytes(&self) -> bool {
        !matches!(self.panels, Panels::Float32(_))
    }

    /// What a product of many rows wants of them.
    pub(crate) fn wants(&self, isa: Isa) -> Wanted {
        let way = Way::of(isa);
        match self.panels {
            Panels::Float32(_) => Wanted::default(),
            Panels::Int4 { .. } if way.nibbles != Nibbles::Spread => Wanted {
                words: way.nibbles == Nibbles::Words,
                nibbles: true,
                ..Wanted::BYTES
            },
            Panels::Int8 { .. } | Panels::Int4 { .. } => Wanted {
                words: way.words,
                ..Wanted::BYTES
            },
        }
    }

    /// What a product of few rows wants of them.
    pub(crate) fn wants_few(&self) -> Wanted {
        if self.is_bytes() {
            Wanted::BYTES
        } else {
            Wanted::default()
        }
    }

    /// Whether panels are made when they are used, so that a task should have many rows.
    pub(crate) fn is_made(&self, isa: Isa) -> bool {
        match self.panels {
            Panels::Float32(_) => false,
            Panels::Int8 { .. } => Way::of(isa).words,
            Panels::Int4 { .. } => true,
        }
    }

    /// Bytes of a panel of [`Panels::Int8`].
    pub(super) fn panel_bytes(&self) -> usize {
        self.inputs.div_ceil(4) * 4 * LANES
    }

    /// Bytes that one panel of this matrix takes in memory, nearly.
    pub(crate) fn panel_size(&self) -> usize {
        match self.panels {
            Panels::Float32(_) => self.inputs * 4 * LANES,
            Panels::Int8 { .. } => self.panel_bytes(),
            Panels::Int4 { .. } => self.inputs * LANES * 9 / 16,
        }
    }

    /// Bytes that [`Matrix::pair`] wants for `inputs` inputs.
    pub(crate) fn room(&self, isa: Isa, inputs: usize) -> usize {
        let way = Way::of(isa);
        match self.panels {
            Panels::Float32(_) => 0,
            Panels::Int8 { .. } if way.words || way.packed => way.inputs(inputs) * WIDTH * way.size(),
            Panels::Int8 { .. } => 0,
            Panels::Int4 { .. } => {
                let blocks = inputs.div_ceil(NIBBLE_BLOCK);
                PAIR * blocks
                    * match way.nibbles {
                        Nibbles::Spread => NIBBLE_BLOCK * LANES,
                        Nibbles::Bytes => nibble_record(1),
                        Nibbles::Words => nibble_record(2),
                    }
            }
        }
    }

    /// What the sums of each column of panels `first..first + count` must be multiplied with: 16 numbers a
    /// panel, zeros beyond the last output.
    pub(crate) fn column_scales(&self, isa: Isa, first: usize, count: usize, to: &mut [f32]) {
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
                let spread = Way::of(isa).nibbles == Nibbles::Spread;
                for (panel, to) in to.chunks_exact_mut(LANES).enumerate() {
                    let from = scales.get((first + panel) * blocks * LANES..).unwrap_or(&[]);
                    if spread {
                        column_scale(isa, from, blocks, to);
                    } else {
                        to.fill(1.0);
                    }
                    let real = self.outputs.saturating_sub((first + panel) * LANES);
                    to.iter_mut().skip(real).for_each(|scale| *scale = 0.0);
                }
            }
        }
    }

    /// Some panels, for some of the inputs.
    ///
    /// `column_scales` are those of these panels; `room` as long as [`Matrix::room`] says.
    pub(crate) fn pair<'a>(
        &'a self,
        isa: Isa,
        cut: Cut,
        column_scales: &[f32],
        room: &'a mut [u8],
    ) -> Pair<'a> {
        let Cut {
            first,
            count,
            block,
            inputs,
        } = cut;
        assert!(
            first + count <= self.panel_count() && count <= PAIR,
            "panels of another matrix"
        );
        assert!(block * BLOCK + inputs <= self.inputs, "inputs of another matrix");
        let way = Way::of(isa);
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
                let bytes = bytes.get(first * stride + block * BLOCK * LANES..).unwrap_or(&[]);
                if !way.words && !way.packed {
                    return Pair::Bytes { bytes, stride, count };
                }
                let stored = inputs.div_ceil(4) * 4 * LANES;
                let made = way.inputs(inputs) * LANES * way.size();
                for panel in 0..count {
                    let from = panel * stride..panel * stride + stored;
                    let to = panel * made..(panel + 1) * made;
                    let (from, to) = (bytes.get(from).unwrap_or(&[]), room.get_mut(to));
                    let to = to.unwrap_or(&mut []);
                    if way.words {
                        widen(isa, from, to);
                    } else {
                        pack(isa, from, to);
                    }
                }
                Pair::Bytes {
                    bytes: room,
                    stride: made,
                    count,
                }
            }
            Panels::Int4 { nibbles, scales } if way.nibbles != Nibbles::Spread => {
                let (all, start) = (self.inputs.div_ceil(NIBBLE_BLOCK), block * NIBBLE_BLOCKS);
                let blocks = inputs.div_ceil(NIBBLE_BLOCK);
                let size = if way.nibbles == Nibbles::Words { 2 } else { 1 };
                let stride = blocks * nibble_record(size);
                for (panel, to) in room.chunks_exact_mut(stride).take(count).enumerate() {
                    let at = (first + panel) * all + start;
                    let nibbles = nibbles
                        .get(at * NIBBLE_BYTES..(at + blocks) * NIBBLE_BYTES)
                        .unwrap_or(&[]);
                    let scales = scales.get(at * LANES..(at + blocks) * LANES).unwrap_or(&[]);
                    unpack(isa, nibbles, scales, to);
                }
                Pair::Nibbles {
                    records: room,
                    stride,
                    count,
                }
            }
            Panels::Int4 { nibbles, scales } => {
                let (all, start) = (self.inputs.div_ceil(NIBBLE_BLOCK), block * NIBBLE_BLOCKS);
                let blocks = inputs.div_ceil(NIBBLE_BLOCK);
                let stride = blocks * NIBBLE_BLOCK * LANES;
                for panel in 0..count {
                    let at = (first + panel) * all + start;
                    let nibbles = nibbles
                        .get(at * NIBBLE_BYTES..(at + blocks) * NIBBLE_BYTES)
                        .unwrap_or(&[]);
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

impl Cut {
    /// What is asked for while these panels are multiplied with so many rows: the next ones of the matrix, for the
    /// same inputs, where they are made of nibbles. Making them takes so short that memory would be waited for.
    pub(crate) fn next(&self, matrix: &Matrix<'_>, rows: usize) -> Option<Coming> {
        const { assert!(MOST_PARTS >= 2 * PAIR) }
        let Panels::Int4 { nibbles, scales } = matrix.panels else {
            return None;
        };
        let mut parts = [NOTHING; MOST_PARTS];
        let all = matrix.inputs.div_ceil(NIBBLE_BLOCK);
        let start = self.block * NIBBLE_BLOCKS;
        let blocks = self.inputs.div_ceil(NIBBLE_BLOCK);
        let next = self.first + self.count..matrix.panel_count();
        for (panel, parts) in next.zip(parts.as_chunks_mut::<2>().0) {
            let at = panel * all + start;
            *parts = [
                (
                    nibbles.as_ptr().wrapping_add(at * NIBBLE_BYTES).cast(),
                    blocks * NIBBLE_BYTES / 4,
                ),
                (
                    scales.as_ptr().wrapping_add(at * LANES).cast(),
                    blocks * LANES / 2,
                ),
            ];
        }
        Some(Coming::new(parts, rows.div_ceil(TILE)))
    }
}

/// Panels `first..first + count` (up to two) for the inputs from `block * BLOCK` on, `inputs` of them: all
/// that are left, or a multiple of `BLOCK`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cut {
    pub(crate) first: usize,
    pub(crate) count: usize,
    pub(crate) block: usize,
    pub(crate) inputs: usize,
}

/// One or two neighbouring panels, from some input on.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Pair<'a> {
    /// `[inputs, 16]` each, `stride` numbers from panel to panel.
    Floats {
        values: &'a [f32],
        stride: usize,
        count: usize,
    },
    /// `[inputs / 4, 16, 4]` each, or what the set's tiles multiply instead: a form of the set's own as long, or
    /// words `[inputs / 32, 2, 8, 16, 2]`. `stride` bytes from panel to panel.
    Bytes {
        bytes: &'a [u8],
        stride: usize,
        count: usize,
    },
    /// For each 32 inputs [`nibble_record`] bytes: nibbles 0..=15 in the order of bytes or of words, as
    /// [`Lanes::NIBBLES`] has them, and their scales; `stride` bytes from panel to panel.
    Nibbles {
        records: &'a [u8],
        stride: usize,
        count: usize,
    },
}

/// Inputs of which packed weights have a multiple.
const PACKED_INPUTS: usize = 16;

/// How a set's tiles multiply bytes and nibbles.
#[derive(Debug, Clone, Copy)]
pub(super) struct Way {
    /// [`Lanes::WORDS`]
    words: bool,
    /// [`Lanes::PACKED`]
    packed: bool,
    /// [`Lanes::NIBBLES`]
    nibbles: Nibbles,
}

impl Way {
    fn of(isa: Isa) -> Way {
        #[inline(always)]
        unsafe fn body<V: Lanes>() -> Way {
            Way::of_set::<V>()
        }
        dispatch!(isa, body() -> Way)
    }

    #[inline(always)]
    pub(super) fn of_set<V: Lanes>() -> Way {
        const {
            assert!(
                !V::WORDS || !V::PACKED && !matches!(V::NIBBLES, Nibbles::Spread),
                "words are not packed, and spread nibbles are bytes"
            );
        }
        Way {
            words: V::WORDS,
            packed: V::PACKED,
            nibbles: V::NIBBLES,
        }
    }

    /// Bytes of a weight of [`Pair::Bytes`].
    #[inline(always)]
    pub(super) fn size(self) -> usize {
        if self.words { 2 } else { 1 }
    }

    /// Inputs of a panel of [`Pair::Bytes`].
    #[inline(always)]
    pub(super) fn inputs(self, inputs: usize) -> usize {
        inputs.next_multiple_of(if self.words {
            NIBBLE_BLOCK
        } else if self.packed {
            PACKED_INPUTS
        } else {
            4
        })
    }
}

/// Moves sixteen numbers of 32 bits by `shift` bits and keeps those of `mask`. All are read before one is
/// written, so that they go through vectors.
#[inline(always)]
fn cut_off(from: &[u8; 64], shift: u32, mask: u32, to: &mut [u8; 64]) {
    let mut numbers = [0; LANES];
    for (number, from) in numbers.iter_mut().zip(from.as_chunks::<4>().0) {
        *number = u32::from_le_bytes(*from) >> shift & mask;
    }
    for (to, number) in to.as_chunks_mut::<4>().0.iter_mut().zip(numbers) {
        *to = number.to_le_bytes();
    }
}

/// Bytes of a panel to words, of 32 inputs those of even place first. Inputs beyond the last keep what was
/// there: they meet zeros.
fn widen(isa: Isa, from: &[u8], to: &mut [u8]) {
    #[inline(always)]
    unsafe fn body<V: Lanes>(from: &[u8], to: &mut [u8]) {
        const { assert!(LANES == 16 && NIBBLE_BLOCK == 32) }
        for (from, to) in from.chunks(512).zip(to.chunks_exact_mut(1024)) {
            let (even, odd) = to.split_at_mut(512);
            let (even, odd) = (even.as_chunks_mut().0, odd.as_chunks_mut().0);
            for (from, (even, odd)) in from.as_chunks().0.iter().zip(even.iter_mut().zip(odd)) {
                cut_off(from, 0, 0x00ff_00ff, even);
                cut_off(from, 8, 0x00ff_00ff, odd);
            }
        }
    }
    assert!(
        to.len() >= from.len().next_multiple_of(NIBBLE_BLOCK * LANES) * 2,
        "words of a panel"
    );
    dispatch!(isa, body(from: &[u8], to: &mut [u8]));
}

/// Nibbles of one panel to records of [`Pair::Nibbles`].
fn unpack(isa: Isa, nibbles: &[u8], scales: &[u16], to: &mut [u8]) {
    #[inline(always)]
    unsafe fn body<V: Lanes>(nibbles: &[u8], scales: &[u16], to: &mut [u8]) {
        let size = if V::NIBBLES == Nibbles::Words { 2 } else { 1 };
        let records = to.chunks_exact_mut(nibble_record(size));
        for ((from, scales), to) in nibbles
            .chunks_exact(NIBBLE_BYTES)
            .zip(scales.chunks_exact(LANES))
            .zip(records)
        {
            let (to, last) = to.split_at_mut(NIBBLE_BLOCK * LANES * size);
            let from = from.as_chunks::<64>().0.iter();
            if size == 1 {
                for (from, [low, high]) in from.zip(to.as_chunks_mut().0.as_chunks_mut::<2>().0) {
                    cut_off(from, 0, 0x0f0f_0f0f, low);
                    cut_off(from, 4, 0x0f0f_0f0f, high);
                }
            } else {
                let (even, odd) = to.split_at_mut(NIBBLE_BLOCK * LANES);
                let even = even.as_chunks_mut().0.as_chunks_mut::<2>().0;
                let odd = odd.as_chunks_mut().0.as_chunks_mut::<2>().0;
                for (from, (even, odd)) in from.zip(even.iter_mut().zip(odd)) {
                    cut_off(from, 0, 0x000f_000f, &mut even[0]);
                    cut_off(from, 4, 0x000f_000f, &mut even[1]);
                    cut_off(from, 8, 0x000f_000f, &mut odd[0]);
                    cut_off(from, 12, 0x000f_000f, &mut odd[1]);
                }
            }
            // SAFETY: sixteen numbers of each; stores need no alignment.
            unsafe { V::load_f16(scales.as_ptr()).store(last.as_mut_ptr().cast()) };
        }
    }
    let blocks = scales.len() / LANES;
    let size = if Way::of(isa).nibbles == Nibbles::Words {
        2
    } else {
        1
    };
    assert!(
        nibbles.len() == blocks * NIBBLE_BYTES && to.len() == blocks * nibble_record(size),
        "a panel of nibbles"
    );
    dispatch!(isa, body(nibbles: &[u8], scales: &[u16], to: &mut [u8]));
}

/// Bytes of one panel, `[quads, 16, 4]`, as the set's tiles multiply them. What lies behind the last input is
/// multiplied with zeros.
fn pack(isa: Isa, bytes: &[u8], to: &mut [u8]) {
    #[inline(always)]
    unsafe fn body<V: Lanes>(bytes: &[u8], to: &mut [u8]) {
        let (pairs, last) = bytes.as_chunks::<{ 8 * LANES }>();
        let (to, _) = to.as_chunks_mut::<{ 8 * LANES }>();
        for (from, to) in pairs.iter().zip(to.iter_mut()) {
            // SAFETY: 128 bytes of each.
            unsafe { V::pack(from.as_ptr(), to.as_mut_ptr()) };
        }
        if let (false, Some(to)) = (last.is_empty(), to.get_mut(pairs.len())) {
            let mut from = [0x80; 8 * LANES];
            from.iter_mut().zip(last).for_each(|(to, from)| *to = *from);
            // SAFETY: as above.
            unsafe { V::pack(from.as_ptr(), to.as_mut_ptr()) };
        }
    }
    assert!(
        to.len() == bytes.len().next_multiple_of(PACKED_INPUTS * LANES),
        "a panel of bytes"
    );
    dispatch!(isa, body(bytes: &[u8], to: &mut [u8]));
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
                    let from = nibbles.as_ptr().add(block * NIBBLE_BYTES + group * 64);
                    V::spread_nibbles(from, ratios, to.as_mut_ptr().add(block * 512 + group * 128));
                }
            }
        }
    }
    let blocks = scales.len() / LANES;
    assert!(
        nibbles.len() == blocks * NIBBLE_BYTES && to.len() == blocks * 512,
        "a panel of nibbles"
    );
    assert_eq!(columns.len(), LANES, "a scale per column");
    dispatch!(isa, body(nibbles: &[u8], scales: &[u16], columns: &[f32], to: &mut [u8]));
}
