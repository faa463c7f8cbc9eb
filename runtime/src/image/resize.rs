//! How does Pillow resize, to the last bit?
//!
//! The algorithm of Pillow's `src/libImaging/Resample.c` for 8-bit channels: antialiased separable filters, weights in
//! f64, normalised, rounded to 22-bit fixed point; a horizontal pass rounded to bytes, then a vertical one.
//! Only a window of the result is computed, a margin in one colour around the picture is never stored, and rows
//! of the first pass live as long as the second needs them: memory follows the window, not the picture.

use super::Picture;
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
/// `[rows, columns, 3]`.
///
/// The windows must lie within the new size; the part of them beyond it would repeat the last weights.
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
    let pass = Pass::new(picture, canvas.color, &horizontal);

    let row_bytes = horizontal.taps.len() * 3;
    let mut result = vec![0; row_bytes * vertical.taps.len()];
    if result.is_empty() {
        return result;
    }
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = cores.min(vertical.taps.len().div_ceil(ROWS_PER_THREAD));
    let share = vertical.taps.len().div_ceil(threads);
    std::thread::scope(|scope| {
        let mut shares = vertical
            .taps
            .chunks(share)
            .zip(result.chunks_mut(share * row_bytes));
        let own = shares.next();
        for (taps, out) in shares {
            let (pass, weights) = (&pass, &vertical.weights);
            scope.spawn(move || pass.rows(taps, weights, out));
        }
        if let Some((taps, out)) = own {
            pass.rows(taps, &vertical.weights, out);
        }
    });
    result
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

/// The horizontal pass, ready to run on any row.
struct Pass<'a> {
    picture: &'a Picture,
    color: [u8; 3],
    axis: &'a Axis,
    /// A row of the canvas above or below the picture, after the pass.
    margin: Vec<u8>,
    /// The columns of the result that see the picture.
    active: Range<usize>,
}

impl<'a> Pass<'a> {
    fn new(picture: &'a Picture, color: [u8; 3], axis: &'a Axis) -> Pass<'a> {
        let margin = axis
            .taps
            .iter()
            .flat_map(|taps| {
                let sum = axis.weights[taps.weights.clone()].iter().sum::<i32>() + taps.margin;
                color.map(|channel| clip(HALF + i32::from(channel) * sum))
            })
            .collect();
        let seen = |taps: &Taps| taps.len() > 0;
        let start = axis.taps.iter().position(seen).unwrap_or(0);
        let end = axis.taps.iter().rposition(seen).map_or(0, |last| last + 1);
        Pass {
            picture,
            color,
            axis,
            margin,
            active: start..end.max(start),
        }
    }

    /// Both passes for the rows of the result that `taps` stand for.
    fn rows(&self, taps: &[Taps], weights: &[i32], out: &mut [u8]) {
        let row_bytes = self.margin.len();
        let active = self.active.start * 3..self.active.end * 3;
        // Source rows after the horizontal pass, row r at r % depth: no output row needs more at once.
        let depth = taps.iter().map(Taps::len).max().unwrap_or(0).max(1);
        let mut ring = vec![0; depth * active.len()];
        let mut next = taps.first().map_or(0, |taps| taps.first);
        let mut sums = vec![0_i32; active.len()];
        for (taps, out) in taps.iter().zip(out.chunks_exact_mut(row_bytes)) {
            next = next.max(taps.first);
            while next < taps.end() {
                let slot = next % depth * active.len();
                self.row(next, &mut ring[slot..slot + active.len()]);
                next += 1;
            }
            let weights = &weights[taps.weights.clone()];
            let total = weights.iter().sum::<i32>() + taps.margin;
            for (out, &margin) in out.iter_mut().zip(&self.margin) {
                *out = clip(HALF + i32::from(margin) * total);
            }
            for (sum, &margin) in sums.iter_mut().zip(&self.margin[active.clone()]) {
                *sum = HALF + i32::from(margin) * taps.margin;
            }
            for (row, &weight) in (taps.first..).zip(weights) {
                let slot = row % depth * active.len();
                for (sum, &value) in sums.iter_mut().zip(&ring[slot..slot + active.len()]) {
                    *sum += i32::from(value) * weight;
                }
            }
            for (out, &sum) in out[active.clone()].iter_mut().zip(&sums) {
                *out = clip(sum);
            }
        }
    }

    /// The horizontal pass on one row of the picture.
    fn row(&self, row: usize, out: &mut [u8]) {
        let row_bytes = self.picture.pixels().len() / usize::try_from(self.picture.height()).unwrap_or(1);
        let pixels = &self.picture.pixels()[row * row_bytes..(row + 1) * row_bytes];
        for (taps, out) in self.axis.taps[self.active.clone()]
            .iter()
            .zip(out.chunks_exact_mut(3))
        {
            let weights = &self.axis.weights[taps.weights.clone()];
            let source = &pixels[taps.first * 3..taps.end() * 3];
            let mut sums = self.color.map(|channel| HALF + i32::from(channel) * taps.margin);
            for (pixel, &weight) in source.chunks_exact(3).zip(weights) {
                sums[0] += i32::from(pixel[0]) * weight;
                sums[1] += i32::from(pixel[1]) * weight;
                sums[2] += i32::from(pixel[2]) * weight;
            }
            for (out, sum) in out.iter_mut().zip(sums) {
                *out = clip(sum);
            }
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
