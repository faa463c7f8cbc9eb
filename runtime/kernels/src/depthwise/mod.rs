//! Depthwise convolutions of the image encoder, channels last: what is around each pixel, channel by channel.
//!
//! A task computes a rectangle of pixels in some vectors of channels. It copies the input rows it needs, one
//! vector of channels after the other and zeros where the image ends, into a ring of rows that stays in the
//! second-level cache, and runs down tiles of neighbouring pixels, so that the part of the ring under a tile
//! stays in the first. In a tile, every number loaded from the ring meets two taps in registers: those of two
//! output rows or, where every input channel has two output channels, of both.
//!
//! Kernels of 3 x 3 read the input where it lies: nine taps do not pay for a copy.

mod three;
mod tile;

use super::isa::{Isa, LANES, Lanes, dispatch, prefetch};
use super::parallel::{Parallel, Shared, scratch};
use super::sizes::{MOST, product};
use std::ops::Range;
use three::three;
use tile::{Tile, UnderTile, both_parts, put_row};

/// A depthwise convolution (as many groups as input channels), padded with zeros by half the kernel on each
/// side.
#[derive(Debug, Clone, Copy)]
pub struct DepthwiseConv<'a> {
    /// Images, B.
    pub batch: usize,
    /// Rows of the input, H.
    pub height: usize,
    /// Columns of the input, W.
    pub width: usize,
    /// Channels of the input, C.
    pub channels: usize,
    /// Output channels of each input channel, M: output channel `o` is made of input channel `o / M`.
    pub multiplier: usize,
    /// Rows and columns of the kernel, k: odd.
    pub kernel_size: usize,
    /// Rows and columns from one output pixel to the next.
    pub stride: usize,
    /// `[k * k, C * M]`, rows of taps one after the other.
    pub kernel: &'a [f32],
    /// `[C * M]`
    pub bias: &'a [f32],
    /// Whether GELU follows.
    pub gelu: bool,
}

impl DepthwiseConv<'_> {
    /// Rows and columns of the output.
    pub fn output_size(&self) -> (usize, usize) {
        (
            self.height.div_ceil(self.stride),
            self.width.div_ceil(self.stride),
        )
    }
}

/// Pixels in the widest tile; a multiple of the narrower ones.
const TILE: usize = 8;

/// Input columns of a task, about: what is copied twice at its borders stays a small part, and a ring of eight
/// rows of them in the second-level cache.
const TASK_COLUMNS: usize = 32;

/// Vectors of channels of a task, at most: enough that whole pages are read one after the other.
const TASK_VECTORS: usize = 12;

/// Bytes that a ring may take, if a tile needs no more.
const RING_BYTES: usize = 64 << 10;

/// Rows that are computed, and those that are there to compute them from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Band {
    /// Input rows of each image that are held.
    pub(super) held: Range<usize>,
    /// Output rows of each image that are wanted.
    pub(super) wanted: Range<usize>,
}

impl DepthwiseConv<'_> {
    /// The input rows that some output rows are computed from.
    pub(super) fn under(&self, rows: Range<usize>) -> Range<usize> {
        let pad = self.kernel_size / 2;
        let end = (rows.end * self.stride + self.kernel_size).saturating_sub(self.stride + pad);
        (rows.start * self.stride).saturating_sub(pad)..end.min(self.height)
    }
}

/// How the output is cut into tasks, and what a task keeps of the input.
#[derive(Debug, Clone)]
struct Work {
    band: Band,
    /// Vectors of input channels of a task.
    vectors: usize,
    /// Output columns of a task.
    columns: usize,
    /// Output rows of a task.
    rows: usize,
    /// Output rows computed between two fillings of the ring.
    strip: usize,
    /// Rows in the ring.
    ring: usize,
    /// Input columns in the ring: enough for whole tiles of [`TILE`] pixels.
    padded: usize,
}

impl Work {
    fn new(conv: &DepthwiseConv<'_>, band: Band, threads: usize) -> Work {
        let (rows, columns) = (band.wanted.len(), conv.output_size().1);
        let vectors = conv.channels.div_ceil(LANES);
        let groups = vectors.div_ceil(TASK_VECTORS);
        let vectors = vectors.div_ceil(groups);
        let most = (TASK_COLUMNS / conv.stride).max(1).next_multiple_of(TILE);
        let columns = columns.div_ceil(columns.div_ceil(most)).next_multiple_of(TILE);
        let padded = (columns - 1) * conv.stride + conv.kernel_size;
        let ring = RING_BYTES / (padded * vectors * LANES * size_of::<f32>());
        let strip = (ring.saturating_sub(conv.kernel_size) / conv.stride + 1)
            .max(2)
            .next_multiple_of(2)
            .min(rows);
        // A few tasks a thread, but not so many that they mostly fill rings.
        let chunks = (4 * threads).div_ceil(conv.batch * groups * conv.output_size().1.div_ceil(columns));
        Work {
            band,
            vectors,
            columns,
            rows: rows.div_ceil(chunks).max(8.min(rows)),
            strip,
            ring: (strip - 1) * conv.stride + conv.kernel_size,
            padded,
        }
    }
}

/// `x` `[B, H, W, C]` to `out` `[B, ceil(H / stride), ceil(W / stride), C * M]`.
///
/// # Panics
/// Slices of the wrong length, an even kernel or a stride of 0: bugs of the caller.
pub fn depthwise(isa: Isa, parallel: &dyn Parallel, conv: &DepthwiseConv<'_>, x: &[f32], out: &mut [f32]) {
    assert!(conv.stride > 0, "a stride");
    let band = Band {
        held: 0..conv.height,
        wanted: 0..conv.output_size().0,
    };
    depthwise_band(isa, parallel, conv, band, x, out);
}

/// Some rows: `x` `[B, held, W, C]` to `out` `[B, wanted, ceil(W / stride), C * M]`.
///
/// # Panics
/// As [`depthwise`]; input rows that are not held.
pub(super) fn depthwise_band(
    isa: Isa,
    parallel: &dyn Parallel,
    conv: &DepthwiseConv<'_>,
    band: Band,
    x: &[f32],
    out: &mut [f32],
) {
    assert!(
        conv.kernel_size % 2 == 1 && (1..=MOST).contains(&conv.stride),
        "an odd kernel and a stride"
    );
    assert!(
        conv.kernel_size <= MOST && conv.height <= MOST && conv.width <= MOST,
        "sizes of no image"
    );
    // A stride beyond the image gives the same one pixel as the image's size.
    let conv = &DepthwiseConv {
        stride: conv.stride.min(conv.height.max(conv.width).max(1)),
        ..*conv
    };
    let (height, columns) = conv.output_size();
    let rows = band.wanted.len();
    let under = conv.under(band.wanted.clone());
    assert!(
        band.wanted.end <= height
            && band.held.end <= conv.height
            && (rows == 0 || (band.held.start <= under.start && under.end <= band.held.end)),
        "rows that are not there"
    );
    let outputs = product([conv.channels, conv.multiplier]);
    assert_eq!(
        conv.kernel.len(),
        product([conv.kernel_size, conv.kernel_size, outputs]),
        "kernel"
    );
    assert_eq!(conv.bias.len(), outputs, "bias");
    assert_eq!(
        x.len(),
        product([conv.batch, band.held.len(), conv.width, conv.channels]),
        "input"
    );
    assert_eq!(out.len(), product([conv.batch, rows, columns, outputs]), "output");
    if out.is_empty() {
        return;
    }
    if conv.kernel_size == 3
        && conv.stride == 1
        && conv.multiplier == 1
        && conv.channels.is_multiple_of(LANES)
    {
        return three(isa, parallel, conv, &band, x, out);
    }
    let work = &Work::new(conv, band, parallel.threads());
    let shared = Shared::new(out);
    let shared = &shared;
    let groups = conv.channels.div_ceil(work.vectors * LANES);
    let taps = conv.kernel_size * conv.kernel_size;
    let tasks = conv.batch * rows.div_ceil(work.rows) * columns.div_ceil(work.columns) * groups;
    parallel.run(tasks, &|task| {
        let ring = product([work.ring, work.vectors, work.padded, LANES]);
        let taps = product([work.vectors, conv.multiplier, taps + 1, LANES]);
        scratch(ring + taps, |space: &mut [f32]| {
            dispatch!(
                isa,
                run_task(
                    conv: &DepthwiseConv<'_>,
                    work: &Work,
                    task: usize,
                    x: &[f32],
                    space: &mut [f32],
                    shared: &Shared<f32>,
                )
            );
        });
    });
}

/// Picks the kernel compiled for this size.
///
/// # Safety
/// As [`Lanes`]; slices as [`depthwise`] makes them.
#[inline(always)]
unsafe fn run_task<V: Lanes>(
    conv: &DepthwiseConv<'_>,
    work: &Work,
    task: usize,
    x: &[f32],
    space: &mut [f32],
    out: &Shared<f32>,
) {
    macro_rules! sized {
        ($pixels:literal) => {
            match (conv.stride, conv.kernel_size) {
                (1, 7) => rows::<V, 1, $pixels, 7>(conv, work, task, x, space, out),
                (2, 7) => rows::<V, 2, $pixels, 7>(conv, work, task, x, space, out),
                (2, _) => rows::<V, 2, $pixels, 0>(conv, work, task, x, space, out),
                _ => rows::<V, 0, $pixels, 0>(conv, work, task, x, space, out),
            }
        };
    }
    // SAFETY: the caller's promise.
    unsafe {
        // What is compiled; a tile divides `TILE`.
        const { assert!(matches!(V::DEPTHWISE_PIXELS, TILE | 4 | 2)) }
        match V::DEPTHWISE_PIXELS {
            TILE => sized!(8),
            4 => sized!(4),
            _ => sized!(2),
        }
    }
}

/// A size that is compiled in, or, where that is 0, the one of this call.
#[inline(always)]
fn known<const N: usize>(size: usize) -> usize {
    if N > 0 { N } else { size }
}

/// One task. `P` is the number of pixels in a tile; `S` is the stride and `K` the side of the kernel, or 0
/// where they are not known in advance.
///
/// # Safety
/// As [`run_task`]; `P` divides [`TILE`].
#[inline(always)]
unsafe fn rows<V: Lanes, const S: usize, const P: usize, const K: usize>(
    conv: &DepthwiseConv<'_>,
    work: &Work,
    task: usize,
    x: &[f32],
    space: &mut [f32],
    out: &Shared<f32>,
) {
    let size = known::<K>(conv.kernel_size);
    let stride = known::<S>(conv.stride);
    let channels = conv.channels;
    let pad = size / 2;
    // Rows to be fetched ahead for a row: of a stride that is known, so that the loop is of a known length; of
    // any other no more than there are.
    let near = known::<S>(stride.min(conv.height));
    let (_, width) = conv.output_size();
    let Band { held, wanted } = &work.band;
    let (groups, bands) = (
        channels.div_ceil(work.vectors * LANES),
        width.div_ceil(work.columns),
    );
    let chunks = wanted.len().div_ceil(work.rows);
    let (group, band) = (task % groups, task / groups % bands);
    let (chunk, image) = (task / groups / bands % chunks, task / groups / bands / chunks);
    let channel = group * work.vectors * LANES;
    let live = (work.vectors * LANES).min(channels - channel);
    let vectors = live.div_ceil(LANES);
    let image_length = held.len() * conv.width * channels;
    let x = &x[image * image_length..][..image_length];
    let left = band * work.columns;
    let right = (left + work.columns).min(width);
    let first_row = wanted.start + chunk * work.rows;
    let last_row = (first_row + work.rows).min(wanted.end);

    // Per vector of channels, and per output channel of each: the taps, then the bias.
    let (ring, taps) = space.split_at_mut(work.ring * work.vectors * work.padded * LANES);
    let multiplier = conv.multiplier;
    let outputs = channels * multiplier;
    let set = (size * size + 1) * LANES;
    for (i, to) in taps
        .chunks_exact_mut(LANES)
        .enumerate()
        .take(vectors * multiplier * (size * size + 1))
    {
        let (place, tap) = (i / (size * size + 1), i % (size * size + 1));
        let (vector, part) = (place / multiplier, place % multiplier);
        let from = if tap < size * size {
            &conv.kernel[tap * outputs..][..outputs]
        } else {
            conv.bias
        };
        let from = &from[(channel + vector * LANES) * multiplier..];
        to.fill(0.0);
        for (to, from) in to.iter_mut().zip(from.chunks_exact(multiplier)) {
            *to = from[part];
        }
    }
    let run_length = work.padded * LANES;
    let row_length = work.vectors * run_length;

    // The next input row to be copied.
    let mut next = (first_row * stride).saturating_sub(pad);
    // SAFETY: the ring has rows of `row_length`, and a strip reads no more different rows than there are;
    // tiles end inside `padded`. Output offsets are inside the slice whose length `depthwise` has checked; no
    // other task writes these pixels of these channels.
    unsafe {
        for strip in (first_row..last_row).step_by(work.strip) {
            let strip_end = (strip + work.strip).min(last_row);
            let needed = ((strip_end - 1) * stride + size - pad).min(conv.height);
            while next < needed {
                let from = &x[(next - held.start) * conv.width * channels..][..conv.width * channels];
                let to = &mut ring[next % work.ring * row_length..][..row_length];
                copy_row::<V>(from, channels, channel, live, left * stride, pad, to, work.padded);
                next += 1;
            }
            for vector in 0..vectors {
                let live = LANES.min(live - vector * LANES);
                let taps = taps.as_ptr().add(vector * multiplier * set);
                for tile in (left..right).step_by(P) {
                    let pixels = P.min(right - tile);
                    // What the next strip will copy is fetched while this one is computed, with each tile the
                    // columns that no other fetches.
                    let before = if tile == left { pad } else { 0 };
                    let after = if tile + P < right { 0 } else { pad };
                    let first = tile * stride;
                    let last = (first + P * stride + after).min(conv.width);
                    let columns = first.saturating_sub(before)..last;
                    let ring = ring
                        .as_ptr()
                        .add(vector * run_length + (tile - left) * stride * LANES);
                    let under = UnderTile {
                        ring,
                        row_length,
                        rows: work.ring,
                        taps,
                    };
                    if multiplier > 1 {
                        let at = Tile {
                            pixels,
                            live,
                            first_row: wanted.start,
                            start: (image * wanted.len() * width + tile) * outputs
                                + (channel + vector * LANES) * multiplier,
                        };
                        for row in strip..strip_end {
                            let ahead = next - held.start + (row - strip) * stride;
                            let rows = ahead..ahead + near;
                            fetch(conv, x, rows, columns.clone(), channel + vector * LANES);
                            for part in (0..multiplier).step_by(2) {
                                both_parts::<V, S, P, K>(conv, under, &at, row, part, out);
                            }
                        }
                        continue;
                    }
                    for row in (strip..strip_end).step_by(2) {
                        let pair = row + 1 < strip_end;
                        let ahead = next - held.start + (row - strip) * stride;
                        let rows = ahead..ahead + 2 * near;
                        fetch(conv, x, rows, columns.clone(), channel + vector * LANES);
                        // Where the sums go.
                        let row_start = image * wanted.len() + row - wanted.start;
                        let start = (row_start * width + tile) * channels + channel + vector * LANES;
                        for i in 0..P {
                            out.ahead(start + i * channels);
                            out.ahead(start + (width + i) * channels);
                        }
                        let acc = under.two_rows::<V, S, P, K>(conv, row, pair);
                        put_row::<V, P>(conv, acc[0], start, pixels, live, out);
                        if pair {
                            put_row::<V, P>(conv, acc[1], start + width * channels, pixels, live, out);
                        }
                    }
                }
            }
        }
    }
}

/// Asks for one vector of channels of some rows and columns, which need not exist.
#[inline(always)]
fn fetch(conv: &DepthwiseConv<'_>, x: &[f32], rows: Range<usize>, columns: Range<usize>, channel: usize) {
    for row in rows {
        for column in columns.clone() {
            prefetch(
                x.as_ptr()
                    .wrapping_add((row * conv.width + column) * conv.channels + channel),
            );
        }
    }
}

/// Copies `live` channels of an input row into a row of the ring, `[vectors, padded, 16]`: columns from
/// `left - pad` on, zeros outside the image and after the last channel.
///
/// # Safety
/// As [`Lanes`].
#[inline(always)]
#[expect(
    clippy::too_many_arguments,
    reason = "from where to where, once for each row of the image"
)]
unsafe fn copy_row<V: Lanes>(
    from: &[f32],
    channels: usize,
    channel: usize,
    live: usize,
    left: usize,
    pad: usize,
    to: &mut [f32],
    padded: usize,
) {
    let width = from.len() / channels;
    let (whole, rest) = (live / LANES, live % LANES);
    let vectors = whole + usize::from(rest > 0);
    // Columns of the ring that lie inside the image.
    let first = pad.saturating_sub(left);
    let last = padded.min(width + pad - left).max(first);
    assert!(
        to.len() >= vectors * padded * LANES && channel + live <= channels,
        "a row of the ring"
    );
    for run in to.chunks_exact_mut(padded * LANES).take(vectors) {
        run[..first * LANES].fill(0.0);
        run[last * LANES..].fill(0.0);
    }
    // SAFETY: columns `left + first - pad .. left + last - pad` lie in `from`, vectors and columns in `to`.
    unsafe {
        let to = to.as_mut_ptr();
        for column in first..last {
            let from = from.as_ptr().add((left + column - pad) * channels + channel);
            let to = to.add(column * LANES);
            for vector in 0..whole {
                V::load(from.add(vector * LANES)).store(to.add(vector * padded * LANES));
            }
            if rest > 0 {
                let to = to.add(whole * padded * LANES);
                V::splat(0.0).store(to);
                to.copy_from_nonoverlapping(from.add(whole * LANES), rest);
            }
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::parallel::Serial;
    use crate::testing::{Backwards, gelu, noise};

    /// By the definition.
    pub(crate) fn naive(conv: &DepthwiseConv<'_>, x: &[f64]) -> Vec<f64> {
        let (rows, columns) = conv.output_size();
        let pad = conv.kernel_size / 2;
        let outputs = conv.channels * conv.multiplier;
        let mut out = Vec::new();
        for image in 0..conv.batch {
            for row in 0..rows {
                for column in 0..columns {
                    for c in 0..outputs {
                        let mut sum = f64::from(conv.bias[c]);
                        for tap in 0..conv.kernel_size * conv.kernel_size {
                            let y = row * conv.stride + tap / conv.kernel_size;
                            let z = column * conv.stride + tap % conv.kernel_size;
                            if (pad..pad + conv.height).contains(&y) && (pad..pad + conv.width).contains(&z) {
                                let at = (image * conv.height + y - pad) * conv.width + z - pad;
                                sum += x[at * conv.channels + c / conv.multiplier]
                                    * f64::from(conv.kernel[tap * outputs + c]);
                            }
                        }
                        out.push(if conv.gelu { gelu(sum) } else { sum });
                    }
                }
            }
        }
        out
    }

    #[test]
    fn close_to_float64() {
        // batch, height, width, channels, multiplier, kernel, stride
        for (batch, height, width, channels, multiplier, kernel_size, stride) in [
            (1, 1, 1, 5, 1, 3, 1),
            (2, 9, 11, 17, 1, 3, 1),
            (1, 13, 35, 48, 1, 3, 2),
            (1, 16, 16, 16, 1, 7, 1),
            (2, 5, 19, 17, 1, 7, 1),
            (1, 33, 31, 5, 1, 7, 2),
            (1, 2, 3, 16, 1, 7, 2),
            (1, 12, 10, 20, 1, 5, 1),
            (1, 11, 21, 32, 1, 5, 3),
            (1, 4, 6, 7, 1, 1, 1),
            (1, 41, 600, 16, 1, 7, 1),
            (1, 64, 601, 16, 1, 3, 2),
            (1, 20, 70, 340, 1, 3, 1),
            (1, 19, 90, 140, 1, 7, 2),
            (2, 9, 11, 32, 1, 3, 1),
            (1, 6, 1, 16, 1, 3, 1),
            (1, 1, 2, 16, 1, 3, 1),
            (1, 15, 40, 48, 1, 3, 1),
            (1, 1, 1, 5, 2, 3, 1),
            (2, 9, 11, 17, 2, 3, 1),
            (1, 33, 31, 37, 2, 7, 2),
            (1, 19, 90, 140, 2, 7, 2),
            (1, 16, 16, 48, 2, 3, 1),
            (1, 11, 21, 32, 2, 5, 3),
            (2, 9, 11, 17, 3, 3, 1),
            (1, 15, 21, 33, 3, 7, 2),
            (1, 5, 9, 16, 4, 5, 3),
        ] {
            let x = noise(batch * height * width * channels, 1);
            let kernel = noise(kernel_size * kernel_size * channels * multiplier, 2);
            let bias = noise(channels * multiplier, 3);
            for gelu in [false, true] {
                let conv = DepthwiseConv {
                    batch,
                    height,
                    width,
                    channels,
                    multiplier,
                    kernel_size,
                    stride,
                    kernel: &kernel,
                    bias: &bias,
                    gelu,
                };
                let wide: Vec<f64> = x.iter().map(|x| f64::from(*x)).collect();
                let expected = naive(&conv, &wide);
                for isa in Isa::available() {
                    let mut out = vec![f32::NAN; expected.len()];
                    depthwise(isa, &Serial, &conv, &x, &mut out);
                    // Taps below 1 in magnitude: each sum is of at most k^2 + 1 terms, and rounds as often.
                    let terms = (kernel_size * kernel_size + 1) as f64;
                    let bound = terms * terms.sqrt() * f64::from(f32::EPSILON) + 2e-6;
                    for (i, (found, expected)) in out.iter().zip(&expected).enumerate() {
                        let error = (f64::from(*found) - expected).abs();
                        assert!(
                            error < bound,
                            "{} {conv:?} [{i}]: {found}, {expected}",
                            isa.name()
                        );
                    }
                    let mut again = vec![f32::NAN; expected.len()];
                    depthwise(isa, &Backwards(64), &conv, &x, &mut again);
                    assert!(out == again, "other tasks, other bits");
                    if batch == 1 {
                        let mut bands = Vec::new();
                        let (rows, columns) = conv.output_size();
                        for start in (0..rows).step_by(5) {
                            let wanted = start..rows.min(start + 5);
                            let held = conv.under(wanted.clone());
                            let x = &x[held.start * width * channels..held.end * width * channels];
                            let mut out = vec![f32::NAN; wanted.len() * columns * channels * multiplier];
                            let band = Band { held, wanted };
                            depthwise_band(isa, &Backwards(3), &conv, band, x, &mut out);
                            bands.extend(out);
                        }
                        assert!(out == bands, "other bands, other bits");
                    }
                }
            }
        }
    }
}
