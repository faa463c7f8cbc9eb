//! The stem of the image encoder: the first convolution, few planes in, many channels out, channels last; and
//! the depthwise one that follows.
//!
//! What is between the two is the largest activation of the network, four times what goes in or comes out. It
//! is computed for a band of rows at a time, which the depthwise convolution reads while it is near.
//!
//! For each output row, the input rows under it are copied with zeros at both ends; then a tile of
//! neighbouring pixels times some vectors of channels is kept in registers over all taps.

use super::depthwise::{Band, DepthwiseConv, depthwise_band};
use super::isa::{Isa, LANES, Lanes, dispatch};
use super::math::gelu;
use super::parallel::{Parallel, Shared, scratch};
use super::sizes::{MOST, product};
use super::unroll::unroll;
use std::ops::Range;

/// A convolution from planes to channels last with GELU, padded with zeros by half the kernel on each side.
#[derive(Debug, Clone, Copy)]
pub struct StemConv<'a> {
    /// Images, B.
    pub batch: usize,
    /// Planes of the input, I: few, such as red, green and blue.
    pub planes: usize,
    /// Rows of the input, H.
    pub height: usize,
    /// Columns of the input, W.
    pub width: usize,
    /// Channels of the output, C.
    pub channels: usize,
    /// Rows and columns of the kernel, k: odd.
    pub kernel_size: usize,
    /// Rows and columns from one output pixel to the next.
    pub stride: usize,
    /// `[I * k * k, C]`: plane, row, column.
    pub kernel: &'a [f32],
    /// `[C]`
    pub bias: &'a [f32],
}

impl StemConv<'_> {
    /// Rows and columns of the output.
    pub fn output_size(&self) -> (usize, usize) {
        (
            self.height.div_ceil(self.stride),
            self.width.div_ceil(self.stride),
        )
    }

    /// Numbers in a padded input row, enough for whole tiles of [`TILE`] pixels.
    fn padded_width(&self) -> usize {
        let (_, width) = self.output_size();
        ((width.next_multiple_of(TILE) - 1) * self.stride + self.kernel_size)
            .max(self.width + self.kernel_size / 2)
    }
}

/// Pixels in the widest tile; a multiple of the narrower ones.
const TILE: usize = 8;

/// Output rows of a task.
const TASK_ROWS: usize = 4;

/// Output rows of a band for each thread: a band of the first convolution's output takes some megabytes.
const BAND_ROWS: usize = 8;

/// The depthwise convolution that follows, padded likewise, with GELU.
#[derive(Debug, Clone, Copy)]
pub struct Depthwise<'a> {
    /// Rows and columns of the kernel, j: odd.
    pub kernel_size: usize,
    /// Rows and columns from one output pixel to the next.
    pub stride: usize,
    /// `[j * j, C]`
    pub kernel: &'a [f32],
    /// `[C]`
    pub bias: &'a [f32],
}

impl Depthwise<'_> {
    fn over<'a>(&'a self, first: &StemConv<'_>) -> DepthwiseConv<'a> {
        let (height, width) = first.output_size();
        DepthwiseConv {
            batch: 1,
            height,
            width,
            channels: first.channels,
            multiplier: 1,
            kernel_size: self.kernel_size,
            stride: self.stride,
            kernel: self.kernel,
            bias: self.bias,
            gelu: true,
        }
    }

    /// Rows and columns of the output.
    pub fn output_size(&self, first: &StemConv<'_>) -> (usize, usize) {
        self.over(first).output_size()
    }
}

/// `x` `[B, I, H, W]` to `out` `[B, H', W', C]`, of the size that [`Depthwise::output_size`] says.
///
/// # Panics
/// Slices of the wrong length, an even kernel or a stride of 0: bugs of the caller.
pub fn stem(
    isa: Isa,
    parallel: &dyn Parallel,
    first: &StemConv<'_>,
    then: &Depthwise<'_>,
    x: &[f32],
    out: &mut [f32],
) {
    for (kernel_size, stride) in [(first.kernel_size, first.stride), (then.kernel_size, then.stride)] {
        assert!(
            kernel_size % 2 == 1 && kernel_size <= MOST && (1..=MOST).contains(&stride),
            "odd kernels and strides"
        );
    }
    assert!(first.planes > 0, "planes");
    // A stride beyond the image gives the same one pixel as the image's size.
    let first = &StemConv {
        stride: first.stride.min(first.height.max(first.width).max(1)),
        ..*first
    };
    let then = then.over(first);
    assert_eq!(
        first.kernel.len(),
        product([first.kernel_size, first.kernel_size, first.planes, first.channels]),
        "kernel"
    );
    assert_eq!(first.bias.len(), first.channels, "bias");
    assert_eq!(
        x.len(),
        product([first.batch, first.planes, first.height, first.width]),
        "input"
    );
    let (rows, columns) = then.output_size();
    let row_length = product([columns, then.channels]);
    assert_eq!(out.len(), product([first.batch, rows, row_length]), "output");
    if out.is_empty() {
        return;
    }
    let most = (BAND_ROWS * parallel.threads()).min(rows);
    for (image, out) in out.chunks_exact_mut(rows * row_length).enumerate() {
        for (index, out) in out.chunks_mut(most * row_length).enumerate() {
            let start = index * most;
            let wanted = start..start + out.len() / row_length;
            let held = then.under(wanted.clone());
            let length = product([held.len(), then.width, then.channels]);
            scratch(length, |band: &mut [f32]| {
                first_rows(isa, parallel, first, x, image, held.clone(), band);
                depthwise_band(isa, parallel, &then, Band { held, wanted }, band, out);
            });
        }
    }
}

/// Some rows of an image after the first convolution, `[rows, W', C]`.
fn first_rows(
    isa: Isa,
    parallel: &dyn Parallel,
    conv: &StemConv<'_>,
    x: &[f32],
    image: usize,
    rows: Range<usize>,
    out: &mut [f32],
) {
    let (_, columns) = conv.output_size();
    let taps = conv.kernel_size * conv.kernel_size * conv.planes;
    let shared = Shared::new(out);
    let shared = &shared;
    let padded_channels = conv.channels.next_multiple_of(LANES);
    parallel.run(rows.len().div_ceil(TASK_ROWS), &|task| {
        scratch(product([taps + 1, padded_channels]), |weights: &mut [f32]| {
            let length = product([conv.kernel_size, conv.planes, conv.padded_width()]);
            scratch(length, |input: &mut [f32]| {
                pack_kernel(conv, weights, padded_channels);
                let weights: &[f32] = weights;
                let start = rows.start + task * TASK_ROWS;
                for row in start..(start + TASK_ROWS).min(rows.end) {
                    pack_rows(conv, image, row, x, input);
                    let at = (row - rows.start) * columns * conv.channels;
                    // SAFETY: every task has its own rows.
                    let to = unsafe { shared.part(at, columns * conv.channels) };
                    let from: &[f32] = input;
                    dispatch!(
                        isa,
                        one_row(
                            conv: &StemConv<'_>, row: usize, weights: &[f32], from: &[f32], to: &mut [f32],
                        )
                    );
                }
            });
        });
    });
}

/// The kernel and, after it, the bias, with zeros in the channels that fill up the last vector.
fn pack_kernel(conv: &StemConv<'_>, weights: &mut [f32], padded_channels: usize) {
    let rows = conv.kernel.chunks_exact(conv.channels).chain([conv.bias]);
    for (from, to) in rows.zip(weights.chunks_exact_mut(padded_channels)) {
        let (live, rest) = to.split_at_mut(conv.channels);
        live.copy_from_slice(from);
        rest.fill(0.0);
    }
}

/// The input rows under an output row, `[k, I, padded width]`; those outside the image are left as they are.
fn pack_rows(conv: &StemConv<'_>, image: usize, row: usize, x: &[f32], input: &mut [f32]) {
    let pad = conv.kernel_size / 2;
    let packed = input.chunks_exact_mut(conv.padded_width());
    for (i, to) in packed.enumerate().take(conv.kernel_size * conv.planes) {
        let (ky, plane) = (i / conv.planes, i % conv.planes);
        let y = row * conv.stride + ky;
        if (pad..pad + conv.height).contains(&y) {
            let start = ((image * conv.planes + plane) * conv.height + y - pad) * conv.width;
            to[..pad].fill(0.0);
            to[pad..pad + conv.width].copy_from_slice(&x[start..start + conv.width]);
            to[pad + conv.width..].fill(0.0);
        }
    }
}

/// One row of the output.
///
/// # Safety
/// As [`Lanes`].
#[inline(always)]
unsafe fn one_row<V: Lanes>(
    conv: &StemConv<'_>,
    row: usize,
    weights: &[f32],
    input: &[f32],
    out: &mut [f32],
) {
    let (_, width) = conv.output_size();
    let pad = conv.kernel_size / 2;
    let vectors = conv.channels.div_ceil(LANES);
    let first_tap = pad.saturating_sub(row * conv.stride);
    let last_tap = conv.kernel_size.min(conv.height + pad - row * conv.stride);
    // SAFETY: tiles end inside the padded row; vectors inside the padded channels.
    unsafe {
        macro_rules! tiles {
            ($pixels:literal, $most:literal) => {
                for tile in (0..width).step_by($pixels) {
                    let pixels = $pixels.min(width - tile);
                    let mut vector = 0;
                    while vector < vectors {
                        let at = Tile {
                            taps: first_tap..last_tap,
                            tile,
                            pixels,
                            channel: vector * LANES,
                        };
                        if vectors - vector >= $most {
                            one_tile::<V, $pixels, $most>(conv, at, weights, input, out);
                            vector += $most;
                        } else {
                            one_tile::<V, $pixels, 1>(conv, at, weights, input, out);
                            vector += 1;
                        }
                    }
                }
            };
        }
        // What is compiled; a tile divides `TILE`.
        const { assert!(matches!(V::STEM_TILE, (TILE, 3) | (4, 1))) }
        match V::STEM_TILE {
            (TILE, _) => tiles!(8, 3),
            _ => tiles!(4, 1),
        }
    }
}

/// Where a tile lies.
struct Tile {
    /// Rows of the kernel that lie inside the image.
    taps: std::ops::Range<usize>,
    /// First pixel.
    tile: usize,
    /// Pixels to be written.
    pixels: usize,
    /// First channel.
    channel: usize,
}

/// `P` pixels times `N` vectors of channels.
///
/// # Safety
/// As [`Lanes`]; the tile lies inside the padded row, its vectors inside the padded channels.
#[inline(always)]
unsafe fn one_tile<V: Lanes, const P: usize, const N: usize>(
    conv: &StemConv<'_>,
    at: Tile,
    weights: &[f32],
    input: &[f32],
    out: &mut [f32],
) {
    let (size, stride, planes, channels) = (conv.kernel_size, conv.stride, conv.planes, conv.channels);
    let padded_channels = channels.next_multiple_of(LANES);
    let padded_width = conv.padded_width();
    unsafe {
        let weights = weights.as_ptr().add(at.channel);
        let mut acc = [[V::splat(0.0); N]; P];
        for (n, bias) in (0..N).map(|n| {
            (
                n,
                V::load(weights.add(size * size * planes * padded_channels + n * LANES)),
            )
        }) {
            unroll!(I < P { acc[I][n] = bias });
        }
        for ky in at.taps {
            for kx in 0..size {
                let mut weights = weights.add((ky * size + kx) * padded_channels);
                let mut from = input
                    .as_ptr()
                    .add(ky * planes * padded_width + at.tile * stride + kx);
                for _ in 0..planes {
                    let mut vectors = [V::splat(0.0); N];
                    for (n, vector) in vectors.iter_mut().enumerate() {
                        *vector = V::load(weights.add(n * LANES));
                    }
                    unroll!(I < P {
                        let pixel = V::splat(*from.add(I * stride));
                        for n in 0..N {
                            acc[I][n] = pixel.mul_add(vectors[n], acc[I][n]);
                        }
                    });
                    // Behind the last plane nothing is read, and nothing needs to be there.
                    weights = weights.wrapping_add(size * size * padded_channels);
                    from = from.wrapping_add(padded_width);
                }
            }
        }
        unroll!(I < P {
            for value in &mut acc[I] {
                *value = gelu(*value);
            }
        });
        let live = channels - at.channel;
        let to = &mut out[at.tile * channels..][..at.pixels * channels];
        if live >= N * LANES && at.pixels == P {
            let to = to.as_mut_ptr().add(at.channel);
            unroll!(I < P {
                for (n, value) in acc[I].iter().enumerate() {
                    value.store(to.add(I * channels + n * LANES));
                }
            });
        } else {
            // Sums are in registers only while no place of theirs is known at run time alone: first to memory.
            let mut lanes = [[[0.0; LANES]; N]; P];
            unroll!(I < P {
                for (n, value) in acc[I].iter().enumerate() {
                    value.store(lanes[I][n].as_mut_ptr());
                }
            });
            for (lanes, to) in lanes.iter().zip(to.chunks_exact_mut(channels)) {
                for (lanes, to) in lanes.iter().zip(to[at.channel..].chunks_mut(LANES)) {
                    to.copy_from_slice(&lanes[..to.len()]);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::depthwise;
    use crate::testing::{Backwards, gelu, noise};

    fn naive(conv: &StemConv<'_>, x: &[f32]) -> Vec<f64> {
        let (rows, columns) = conv.output_size();
        let (size, pad) = (conv.kernel_size, conv.kernel_size / 2);
        let mut out = Vec::new();
        for image in 0..conv.batch {
            for row in 0..rows {
                for column in 0..columns {
                    for c in 0..conv.channels {
                        let mut sum = f64::from(conv.bias[c]);
                        for tap in 0..size * size * conv.planes {
                            let (plane, ky, kx) = (tap / size / size, tap / size % size, tap % size);
                            let (y, z) = (row * conv.stride + ky, column * conv.stride + kx);
                            if (pad..pad + conv.height).contains(&y) && (pad..pad + conv.width).contains(&z) {
                                let plane = (image * conv.planes + plane) * conv.height;
                                sum += f64::from(x[(plane + y - pad) * conv.width + z - pad])
                                    * f64::from(conv.kernel[tap * conv.channels + c]);
                            }
                        }
                        out.push(gelu(sum));
                    }
                }
            }
        }
        out
    }

    #[test]
    fn close_to_float64() {
        // batch, planes, height, width, channels, kernel, stride, depthwise kernel, depthwise stride
        for (batch, planes, height, width, channels, kernel_size, stride, size, step) in [
            (1, 3, 1, 1, 5, 3, 2, 3, 2),
            (2, 3, 9, 21, 17, 3, 2, 3, 2),
            (1, 3, 40, 32, 96, 3, 2, 3, 2),
            (1, 3, 150, 12, 16, 3, 2, 3, 2),
            (1, 1, 7, 5, 48, 7, 1, 5, 1),
            (2, 4, 6, 9, 64, 1, 1, 1, 1),
            (1, 2, 70, 33, 20, 5, 3, 7, 1),
            (1, 2, 61, 9, 20, 3, 1, 3, 3),
        ] {
            let x = noise(batch * planes * height * width, 1);
            let kernel = noise(kernel_size * kernel_size * planes * channels, 2);
            let bias = noise(channels, 3);
            let taps = noise(size * size * channels, 4);
            let first = StemConv {
                batch,
                planes,
                height,
                width,
                channels,
                kernel_size,
                stride,
                kernel: &kernel,
                bias: &bias,
            };
            let then = Depthwise {
                kernel_size: size,
                stride: step,
                kernel: &taps,
                bias: &bias,
            };
            // As one convolution of all images.
            let of_all = DepthwiseConv {
                batch,
                ..then.over(&first)
            };
            let expected = depthwise::tests::naive(&of_all, &naive(&first, &x));
            for isa in Isa::available() {
                let mut bits: Option<Vec<f32>> = None;
                for threads in [1, 2, 16] {
                    let mut out = vec![f32::NAN; expected.len()];
                    stem(isa, &Backwards(threads), &first, &then, &x, &mut out);
                    // Taps below 1 in magnitude: each sum is of that many terms, and rounds as often; the
                    // second one adds up the first one's errors and has terms as large as the first one's
                    // sums.
                    let terms = (kernel_size * kernel_size * planes + 1) as f64;
                    let bound = terms * terms.sqrt() * f64::from(f32::EPSILON) + 2e-6;
                    let bound = bound * (size * size + 1) as f64;
                    for (i, (found, expected)) in out.iter().zip(&expected).enumerate() {
                        let error = (f64::from(*found) - expected).abs();
                        assert!(
                            error < bound,
                            "{} {first:?} {then:?} [{i}]: {found}, {expected}",
                            isa.name()
                        );
                    }
                    assert!(
                        *bits.get_or_insert_with(|| out.clone()) == out,
                        "other bands, other bits"
                    );
                }
            }
        }
    }
}
