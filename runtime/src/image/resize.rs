//! How does Pillow resize, to the last bit?
//!
//! The algorithm of Pillow's `src/libImaging/Resample.c` for 8-bit channels: antialiased separable filters, weights in
//! f64, normalised, rounded to 22-bit fixed point; two passes, rounded to bytes in between. Only a window of the
//! result is computed, a margin in one colour around the picture is never stored, and rows of the first pass live as
//! long as the second needs them: memory follows the window; beside it, a thread takes a megabyte, or one row.
//!
//! Both passes are sums of rows ([`kernels::resample`]), the horizontal one of up to sixteen picture rows side by
//! side, column after column.

use super::Picture;
use super::threads::{cores, share};
use crate::backend::isa;
use kernels::Isa;
use kernels::resample::{self, Ring, resample};
use models::bundle::Resample;
use std::f64::consts::PI;
use std::ops::Range;

/// Fraction bits of a weight: 32 - 8 bits of a channel - 2 for overshoot, as in Pillow.
const PRECISION_BITS: u32 = 32 - 8 - 2;

/// Rounds a sum to nearest when it is shifted down.
const HALF: i32 = 1 << (PRECISION_BITS - 1);

/// Rows of the result that are worth a thread.
const ROWS_PER_THREAD: usize = 64;

/// A picture on a canvas of one colour.
#[derive(Debug, Clone, Copy)]
pub struct Canvas<'a> {
    /// What is painted.
    pub picture: &'a Picture,
    /// Width of the canvas, at least `left` + the picture's.
    pub width: u64,
    /// Height of the canvas, at least `top` + the picture's.
    pub height: u64,
    /// Columns to the left of the picture.
    pub left: u64,
    /// Rows above the picture.
    pub top: u64,
    /// RGB of everything else.
    pub color: [u8; 3],
}

impl<'a> Canvas<'a> {
    /// The picture alone.
    pub fn new(picture: &'a Picture) -> Canvas<'a> {
        let (width, height) = (u64::from(picture.width()), u64::from(picture.height()));
        Canvas {
            picture,
            width,
            height,
            left: 0,
            top: 0,
            color: [0; 3],
        }
    }
}

/// Resizes `canvas` to `width` x `height` and returns the window `columns` x `rows` of the result:
/// `[rows, columns, 3]`. The windows must lie within the new size.
pub fn resize(
    canvas: &Canvas<'_>,
    width: u64,
    height: u64,
    columns: Range<u64>,
    rows: Range<u64>,
    filter: Resample,
) -> Vec<u8> {
    let picture = canvas.picture;
    let horizontal = Axis::new(
        canvas.width,
        width,
        columns,
        canvas.left,
        u64::from(picture.width()),
        filter,
    );
    let vertical = Axis::new(
        canvas.height,
        height,
        rows,
        canvas.top,
        u64::from(picture.height()),
        filter,
    );
    let passes = Passes::new(picture, canvas.color, &horizontal, &vertical);
    let vertical_first = vertical_first(canvas.width, canvas.height, width, height);

    let row_bytes = horizontal.taps.len() * 3;
    let mut result = vec![0; row_bytes * vertical.taps.len()];
    if result.is_empty() {
        return result;
    }
    let count = cores().min(vertical.taps.len().div_ceil(ROWS_PER_THREAD));
    let length = vertical.taps.len().div_ceil(count);
    let taps = vertical.taps.chunks(length);
    share(taps.zip(result.chunks_mut(length * row_bytes)), |(taps, out)| {
        if vertical_first {
            passes.vertical_first(taps, out);
        } else {
            passes.horizontal_first(taps, out);
        }
    });
    result
}

/// Which pass Pillow runs first: since version 13, the vertical one where it shrinks much more. Both orders round
/// once between the passes, so that they differ by a level here and there.
fn vertical_first(width: u64, height: u64, new_width: u64, new_height: u64) -> bool {
    let shrinks_by = |old: u64, new: u64| i128::from(old) - i128::from(new);
    let (across, down) = (shrinks_by(width, new_width), shrinks_by(height, new_height));
    down > 0 && down > 2 * across
}

/// The weights of one axis for a window of the result.
struct Axis {
    taps: Vec<Taps>,
    weights: Vec<i32>,
}

/// How one row or column of the result is made.
struct Taps {
    /// First row or column of the picture that counts.
    first: usize,
    /// Its weights in [`Axis::weights`] and those of the next ones.
    weights: Range<usize>,
    /// Sum of the weights that fall on the margin.
    margin: i32,
}

impl Taps {
    fn len(&self) -> usize {
        self.weights.len()
    }

    fn end(&self) -> usize {
        self.first + self.len()
    }
}

impl Axis {
    fn weights(&self, taps: &Taps) -> &[i32] {
        &self.weights[taps.weights.clone()]
    }

    /// What a row or column of one colour is multiplied with, on the picture and beside it.
    fn total(&self, taps: &Taps) -> i32 {
        self.weights(taps).iter().sum::<i32>() + taps.margin
    }

    /// Taps of this axis as the kernel takes them.
    fn sums<'a>(&'a self, taps: &[Taps]) -> Vec<resample::Taps<'a>> {
        let sum = |taps: &Taps| resample::Taps {
            first: taps.first,
            weights: self.weights(taps),
            margin: taps.margin,
        };
        taps.iter().map(sum).collect()
    }

    /// `source` rows become `target`; of the source, `length` rows from `offset` on are the picture.
    #[expect(
        clippy::as_conversions,
        reason = "f64 to integer as C does it: truncated, and in range because edges are bounded"
    )]
    fn new(source: u64, target: u64, window: Range<u64>, offset: u64, length: u64, filter: Resample) -> Axis {
        let (weight, support): (fn(f64) -> f64, f64) = match filter {
            Resample::Bicubic => (bicubic, 2.0),
            Resample::Bilinear => (bilinear, 1.0),
            Resample::Lanczos => (lanczos, 3.0),
        };
        let scale = source as f64 / target as f64;
        let filter_scale = scale.max(1.0);
        let support = support * filter_scale;
        let stretch = 1.0 / filter_scale;
        let mut axis = Axis {
            taps: Vec::new(),
            weights: Vec::new(),
        };
        let mut exact = Vec::new();
        for position in window {
            if source == target {
                // Pillow leaves out a pass that changes nothing.
                axis.push(position, &[1 << PRECISION_BITS], offset, length);
                continue;
            }
            let center = (position as f64 + 0.5) * scale;
            let first = (center - support + 0.5) as u64;
            let end = ((center + support + 0.5) as u64).min(source);
            exact.clear();
            exact.extend((first..end).map(|at| weight((at as f64 - center + 0.5) * stretch)));
            let sum: f64 = exact.iter().sum();
            let fixed: Vec<i32> = exact
                .iter()
                .map(|&weight| {
                    let weight = if sum == 0.0 { weight } else { weight / sum };
                    let scaled = weight * f64::from(1 << PRECISION_BITS);
                    if weight < 0.0 {
                        (scaled - 0.5) as i32
                    } else {
                        (scaled + 0.5) as i32
                    }
                })
                .collect();
            axis.push(first, &fixed, offset, length);
        }
        axis
    }

    /// Adds the taps `weights` from row `first` of the canvas on, split into picture and margin.
    #[expect(
        clippy::as_conversions,
        reason = "positions within a picture in memory fit in usize"
    )]
    fn push(&mut self, first: u64, weights: &[i32], offset: u64, length: u64) {
        let end = first + weights.len() as u64;
        let inside = first.clamp(offset, offset + length)..end.clamp(offset, offset + length);
        let from = self.weights.len();
        let mut margin = 0;
        for (at, &weight) in (first..).zip(weights) {
            if inside.contains(&at) {
                self.weights.push(weight);
            } else {
                margin += weight;
            }
        }
        let taps = Taps {
            first: (inside.start - offset) as usize,
            weights: from..self.weights.len(),
            margin,
        };
        self.taps.push(taps);
    }
}

/// Both passes, ready to run on any rows of the result.
struct Passes<'a> {
    isa: Isa,
    picture: &'a Picture,
    color: [u8; 3],
    horizontal: &'a Axis,
    vertical: &'a Axis,
    /// A row of the canvas above or below the picture, after the horizontal pass.
    margin: Vec<u8>,
    /// The columns of the result that see the picture.
    active: Range<usize>,
}

impl<'a> Passes<'a> {
    fn new(picture: &'a Picture, color: [u8; 3], horizontal: &'a Axis, vertical: &'a Axis) -> Passes<'a> {
        let margin = horizontal
            .taps
            .iter()
            .flat_map(|taps| {
                let sum = horizontal.total(taps);
                color.map(|channel| clip(HALF + i32::from(channel) * sum))
            })
            .collect();
        let seen = |taps: &Taps| taps.len() > 0;
        let start = horizontal.taps.iter().position(seen).unwrap_or(0);
        let end = horizontal
            .taps
            .iter()
            .rposition(seen)
            .map_or(start, |last| last + 1);
        Passes {
            isa: isa::of_pictures(),
            picture,
            color,
            horizontal,
            vertical,
            margin,
            active: start..end,
        }
    }

    /// The rows of the result that `taps` stand for, the horizontal pass first.
    fn horizontal_first(&self, taps: &[Taps], out: &mut [u8]) {
        let active = self.active.start * 3..self.active.end * 3;
        let length = active.len();
        let beside = self.color.repeat(SIDE);
        // Picture rows after the horizontal pass, row r at r % depth: no row of the result needs more at once, and as
        // many are made at a time as go side by side.
        let most = taps.iter().map(Taps::len).max().unwrap_or(0);
        let end = taps.iter().map(Taps::end).max().unwrap_or(0);
        let start = taps.iter().map(|taps| taps.first).min().unwrap_or(0);
        let across = self.horizontal.sums(&self.horizontal.taps[self.active.clone()]);
        let mut side = Side::new(self.isa, across, end - start);
        let depth = most + side.rows;
        let mut ring = vec![0; depth * length];
        let mut next = 0;
        let rows = self.vertical.sums(taps);
        for ((taps, row), out) in taps
            .iter()
            .zip(&rows)
            .zip(out.chunks_exact_mut(self.margin.len()))
        {
            next = next.max(taps.first);
            while next < taps.end() {
                let count = side.rows.min(end - next);
                side.sum((next..next + count).map(|row| self.row(row)), &beside);
                for place in 0..count {
                    let slot = (next + place) % depth * length;
                    side.take(place, &mut ring[slot..slot + length]);
                }
                next += count;
            }
            let total = self.vertical.total(taps);
            for columns in [0..active.start, active.end..out.len()] {
                let margins = &self.margin[columns.clone()];
                for (out, &margin) in out[columns].iter_mut().zip(margins) {
                    *out = clip(HALF + i32::from(margin) * total);
                }
            }
            let ring = Ring { bytes: &ring, length };
            let (beside, out) = (&self.margin[active.clone()], &mut out[active.clone()]);
            resample(
                self.isa,
                ring,
                beside,
                std::slice::from_ref(row),
                PRECISION_BITS,
                out,
            );
        }
    }

    /// The rows of the result that `taps` stand for, the vertical pass first.
    fn vertical_first(&self, taps: &[Taps], out: &mut [u8]) {
        let picture = Ring {
            bytes: self.picture.pixels(),
            length: self.picture.pixels().len() / self.rows(),
        };
        let beside: Vec<u8> = self.color.iter().copied().cycle().take(picture.length).collect();
        let mut side = Side::new(self.isa, self.horizontal.sums(&self.horizontal.taps), taps.len());
        let mut rows = vec![0; side.rows * picture.length];
        let out_length = self.margin.len();
        for (taps, out) in taps.chunks(side.rows).zip(out.chunks_mut(side.rows * out_length)) {
            let rows = &mut rows[..taps.len() * picture.length];
            resample(
                self.isa,
                picture,
                &beside,
                &self.vertical.sums(taps),
                PRECISION_BITS,
                rows,
            );
            let mut colors = [0; SIDE * 3];
            for (color, taps) in colors.as_chunks_mut::<3>().0.iter_mut().zip(taps) {
                let total = self.vertical.total(taps);
                *color = self.color.map(|channel| clip(HALF + i32::from(channel) * total));
            }
            side.sum(rows.chunks_exact(picture.length), &colors);
            for (place, out) in out.chunks_exact_mut(out_length).enumerate() {
                side.take(place, out);
            }
        }
    }

    fn rows(&self) -> usize {
        usize::try_from(self.picture.height()).unwrap_or(1)
    }

    fn row(&self, row: usize) -> &[u8] {
        let row_bytes = self.picture.pixels().len() / self.rows();
        &self.picture.pixels()[row * row_bytes..(row + 1) * row_bytes]
    }
}

/// Rows that go through the horizontal pass at once, at most.
const SIDE: usize = 16;

/// Bytes of rows side by side: of very long rows there are fewer.
const SIDE_BYTES: usize = 1 << 20;

/// Rows side by side, the pixels of a column one after the other: so the horizontal pass is one of whole rows too.
struct Side<'a> {
    isa: Isa,
    /// Rows, up to [`SIDE`].
    rows: usize,
    /// Columns of the picture that a tap sees.
    seen: Range<usize>,
    /// From the first of these on.
    taps: Vec<resample::Taps<'a>>,
    /// `[seen, rows, 3]`
    columns: Vec<u8>,
    /// `[taps, rows, 3]`
    sums: Vec<u8>,
}

impl<'a> Side<'a> {
    /// For `count` rows in all.
    fn new(isa: Isa, mut taps: Vec<resample::Taps<'a>>, count: usize) -> Side<'a> {
        let real = || taps.iter().filter(|taps| !taps.weights.is_empty());
        let start = real().map(|taps| taps.first).min().unwrap_or(0);
        let end = real()
            .map(|taps| taps.first + taps.weights.len())
            .max()
            .unwrap_or(start);
        for taps in &mut taps {
            taps.first = taps.first.saturating_sub(start);
        }
        let rows = (SIDE_BYTES / (3 * (end - start)).max(1))
            .min(count)
            .clamp(1, SIDE);
        Side {
            isa,
            rows,
            seen: start..end,
            columns: vec![0; (end - start) * rows * 3],
            sums: vec![0; taps.len() * rows * 3],
            taps,
        }
    }

    /// The horizontal pass of up to `self.rows` rows; left and right of row `i` is the `i`th color of `beside`.
    fn sum<'r>(&mut self, rows: impl Iterator<Item = &'r [u8]>, beside: &[u8]) {
        for (place, row) in rows.enumerate() {
            let columns = self.columns.as_chunks_mut::<3>().0.iter_mut();
            let seen = &row.as_chunks::<3>().0[self.seen.clone()];
            for (to, from) in columns.skip(place).step_by(self.rows).zip(seen) {
                *to = *from;
            }
        }
        let length = self.rows * 3;
        let columns = Ring {
            bytes: &self.columns,
            length,
        };
        resample(
            self.isa,
            columns,
            &beside[..length],
            &self.taps,
            PRECISION_BITS,
            &mut self.sums,
        );
    }

    /// Row `place` of the last sums.
    fn take(&self, place: usize, out: &mut [u8]) {
        let sums = self.sums.as_chunks::<3>().0.iter().skip(place).step_by(self.rows);
        for (to, from) in out.as_chunks_mut::<3>().0.iter_mut().zip(sums) {
            *to = *from;
        }
    }
}

/// A fixed-point sum as a byte.
fn clip(sum: i32) -> u8 {
    u8::try_from((sum >> PRECISION_BITS).clamp(0, 255)).unwrap_or(u8::MAX)
}

/// Keys' cubic with a = -0.5, in Pillow's order of operations.
fn bicubic(x: f64) -> f64 {
    const A: f64 = -0.5;
    let x = x.abs();
    if x < 1.0 {
        ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        (((x - 5.0) * x + 8.0) * x - 4.0) * A
    } else {
        0.0
    }
}

fn bilinear(x: f64) -> f64 {
    (1.0 - x.abs()).max(0.0)
}

fn lanczos(x: f64) -> f64 {
    let sinc = |x: f64| if x == 0.0 { 1.0 } else { (x * PI).sin() / (x * PI) };
    if (-3.0..3.0).contains(&x) {
        sinc(x) * sinc(x / 3.0)
    } else {
        0.0
    }
}
