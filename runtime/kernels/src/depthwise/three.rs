//! Depthwise convolutions of 3 x 3, computed from the input where it lies.

use super::{Band, DepthwiseConv};
use crate::isa::{Isa, LANES, Lanes, Part, dispatch, prefetch};
use crate::math::gelu;
use crate::parallel::{Parallel, Shared};
use crate::unroll::unroll;
use std::ops::Range;

/// Convolutions of 3 x 3 with whole vectors of channels, without a copy of the input: there are too few taps
/// to make up for one.
pub(super) fn three(
    isa: Isa,
    parallel: &dyn Parallel,
    conv: &DepthwiseConv<'_>,
    band: &Band,
    x: &[f32],
    out: &mut [f32],
) {
    let rows = band.wanted.len();
    let shared = Shared::new(out);
    // Pairs of rows, as they are computed.
    let task_rows = rows.div_ceil(4 * parallel.threads()).max(4).next_multiple_of(2);
    let tasks = rows.div_ceil(task_rows);
    parallel.run(conv.batch * tasks, &|task| {
        let (image, first) = (task / tasks, task % tasks * task_rows);
        let length = conv.width * conv.channels;
        let x = &x[image * band.held.len() * length..][..band.held.len() * length];
        for row in (first..rows.min(first + task_rows)).step_by(2) {
            let count = 2.min(rows - row);
            // SAFETY: the task's own rows.
            let out = unsafe { shared.part((image * rows + row) * length, count * length) };
            let top = band.wanted.start + row;
            let under = conv.under(top..top + count);
            let x = &x[(under.start - band.held.start) * length..][..under.len() * length];
            dispatch!(isa, three_rows(conv: &DepthwiseConv<'_>, top: usize, x: &[f32], out: &mut [f32]));
        }
    });
}

/// One or two output rows from `top` on, of the input rows under them.
///
/// # Safety
/// As [`Lanes`]; whole vectors of channels, and both slices whole rows.
#[inline(always)]
unsafe fn three_rows<V: Lanes>(conv: &DepthwiseConv<'_>, top: usize, x: &[f32], out: &mut [f32]) {
    let (width, channels) = (conv.width, conv.channels);
    // The row of taps that the first input row meets in the first output row.
    let skipped = usize::from(top == 0);
    // SAFETY: the caller's promise.
    unsafe {
        let mut column = 0;
        while column < width {
            // A tile whose neighbours are all inside the image, or one pixel.
            let inside = column > 0;
            macro_rules! tile {
                ($pixels:literal) => {
                    if inside && column + $pixels < width {
                        for channel in (0..channels).step_by(LANES) {
                            three_tile::<V, $pixels>(conv, skipped, x, out, column, channel, 0..3);
                        }
                        column += $pixels;
                        continue;
                    }
                };
            }
            if <V::Part as Part>::LANES == LANES && V::DEPTHWISE_PIXELS >= 4 {
                tile!(4);
            }
            tile!(2);
            let taps = usize::from(column == 0)..if column + 1 < width { 3 } else { 2 };
            for channel in (0..channels).step_by(LANES) {
                three_tile::<V, 1>(conv, skipped, x, out, column, channel, taps.clone());
            }
            column += 1;
        }
    }
}

/// `P` pixels of [`three_rows`] in one vector of channels; `columns` of the taps lie inside the image.
///
/// # Safety
/// As [`three_rows`].
#[inline(always)]
unsafe fn three_tile<V: Lanes, const P: usize>(
    conv: &DepthwiseConv<'_>,
    skipped: usize,
    x: &[f32],
    out: &mut [f32],
    column: usize,
    channel: usize,
    columns: Range<usize>,
) {
    let channels = conv.channels;
    let length = conv.width * channels;
    let pair = out.len() > length;
    let rows = x.len() / length;
    // SAFETY: the caller's promise.
    unsafe {
        let to = out.as_mut_ptr().add(column * channels + channel);
        let bias = V::load(conv.bias.as_ptr().add(channel));
        let mut acc = [[bias; P]; 2];
        let taps = conv.kernel.as_ptr().add(channel);
        let from = x
            .as_ptr()
            .wrapping_add(column * channels + channel)
            .wrapping_sub(channels);
        macro_rules! row {
            ($row:expr, $upper:expr, $lower:expr) => {
                for kx in columns.clone() {
                    let from = from.wrapping_add($row * length + kx * channels);
                    let weight = |ky: usize| taps.wrapping_add((3 * ky + kx) * channels);
                    if let Some(ky) = $upper {
                        let weight = V::load(weight(ky));
                        unroll!(I < P {
                            acc[0][I] = V::load(from.add(I * channels)).mul_add(weight, acc[0][I]);
                        });
                    }
                    if let Some(ky) = $lower {
                        let weight = V::load(weight(ky));
                        unroll!(I < P {
                            acc[1][I] = V::load(from.add(I * channels)).mul_add(weight, acc[1][I]);
                        });
                    }
                }
            };
        }
        // What the next two rows are computed of, and where this tile's neighbour goes.
        for row in 0..2 {
            for i in 0..P {
                prefetch(from.wrapping_add((rows + row) * length + (1 + i) * channels));
            }
        }
        if rows == 4 && pair && P > 1 {
            row!(0, Some(0), None::<usize>);
            row!(1, Some(1), Some(0));
            row!(2, Some(2), Some(1));
            row!(3, None::<usize>, Some(2));
        } else {
            for row in 0..rows {
                let upper = row + skipped;
                row!(
                    row,
                    Some(upper).filter(|upper| *upper < 3),
                    upper.checked_sub(1).filter(|_| pair)
                );
            }
        }
        if conv.gelu {
            unroll!(I < P { acc[0][I] = gelu(acc[0][I]) });
            unroll!(I < P { acc[1][I] = gelu(acc[1][I]) });
        }
        unroll!(I < P { acc[0][I].store(to.add(I * channels)) });
        if pair {
            unroll!(I < P { acc[1][I].store(to.add(length + I * channels)) });
        }
    }
}
