//! Tiles of a depthwise convolution: neighbouring pixels in one vector of channels, two rows of them or both
//! output channels of each input channel.

use super::{DepthwiseConv, known};
use crate::isa::{LANES, Lanes, Part};
use crate::math::gelu;
use crate::parallel::Shared;
use crate::unroll::unroll;

/// Two tiles of `P` pixels each, computed in as many parts of the lanes as the set needs for its registers; a
/// part starts at lane `$part`.
macro_rules! in_parts {
    ($V:ident, $P:ident, $part:ident => $sums:expr) => {{
        let mut lanes = [[[0.0; LANES]; $P]; 2];
        for $part in (0..LANES).step_by(<$V::Part as Part>::LANES) {
            let sums: [[$V::Part; $P]; 2] = $sums;
            unroll!(I < $P {
                sums[0][I].store(lanes[0][I].as_mut_ptr().add($part));
                sums[1][I].store(lanes[1][I].as_mut_ptr().add($part));
            });
        }
        let mut acc = [[$V::splat(0.0); $P]; 2];
        unroll!(I < $P {
            acc[0][I] = $V::load(lanes[0][I].as_ptr());
            acc[1][I] = $V::load(lanes[1][I].as_ptr());
        });
        acc
    }};
}

/// What a tile's sums are made of, in one vector of channels.
#[derive(Debug, Clone, Copy)]
pub(super) struct UnderTile {
    /// The tile's first column in the first row of the ring.
    pub(super) ring: *const f32,
    /// Numbers from one row of the ring to the next.
    pub(super) row_length: usize,
    /// Rows of the ring.
    pub(super) rows: usize,
    /// The taps of each output channel, then its bias.
    pub(super) taps: *const f32,
}

impl UnderTile {
    /// The tile's sums in output row `row` and, if wanted, in the one below it.
    ///
    /// # Safety
    /// As [`rows`](super::rows): the ring has the input rows under both.
    #[inline(always)]
    pub(super) unsafe fn two_rows<V: Lanes, const S: usize, const P: usize, const K: usize>(
        &self,
        conv: &DepthwiseConv<'_>,
        row: usize,
        pair: bool,
    ) -> [[V; P]; 2] {
        // SAFETY: the caller's promise.
        unsafe { in_parts!(V, P, part => self.part_of_rows::<V::Part, S, P, K>(conv, row, pair, part)) }
    }

    /// [`UnderTile::two_rows`] from lane `part` on.
    ///
    /// # Safety
    /// The same.
    #[inline(always)]
    unsafe fn part_of_rows<Q: Part, const S: usize, const P: usize, const K: usize>(
        &self,
        conv: &DepthwiseConv<'_>,
        row: usize,
        pair: bool,
        part: usize,
    ) -> [[Q; P]; 2] {
        let size = known::<K>(conv.kernel_size);
        let stride = known::<S>(conv.stride);
        let pad = size / 2;
        // SAFETY: the caller's promise.
        unsafe {
            let (ring, taps) = (self.ring.add(part), self.taps.add(part));
            let bias = Q::load(taps.add(size * size * LANES));
            let mut acc = [[bias; P]; 2];
            // Input rows under the tile, counted from the first tap's, as far as they lie in the image.
            let top = row * stride;
            let first = pad.saturating_sub(top);
            let last = (conv.height + pad - top).min(if pair { size + stride } else { size });
            let mut ring_row = (top + first - pad) % self.rows;
            for at in first..last {
                let from = ring.add(ring_row * self.row_length);
                ring_row += 1;
                if ring_row == self.rows {
                    ring_row = 0;
                }
                let upper = taps.wrapping_add(at * size * LANES);
                let lower = taps.wrapping_add(at.wrapping_sub(stride).wrapping_mul(size * LANES));
                match (at < size, pair && at >= stride) {
                    (true, true) => add_both::<Q, S, P, K>(&mut acc, from, [upper, lower], size, stride),
                    (true, false) => add_one::<Q, S, P, K>(&mut acc[0], from, upper, size, stride),
                    (false, true) => add_one::<Q, S, P, K>(&mut acc[1], from, lower, size, stride),
                    (false, false) => (),
                }
            }
            acc
        }
    }

    /// The tile's sums in an output row for two output channels of each input channel, of which `second` has
    /// the taps of the other; from lane `part` on.
    ///
    /// # Safety
    /// As [`UnderTile::two_rows`].
    #[inline(always)]
    unsafe fn part_of_channels<Q: Part, const S: usize, const P: usize, const K: usize>(
        &self,
        conv: &DepthwiseConv<'_>,
        row: usize,
        second: *const f32,
        part: usize,
    ) -> [[Q; P]; 2] {
        let size = known::<K>(conv.kernel_size);
        let stride = known::<S>(conv.stride);
        let pad = size / 2;
        // SAFETY: the caller's promise.
        unsafe {
            let (ring, taps, second) = (self.ring.add(part), self.taps.add(part), second.add(part));
            let bias = size * size * LANES;
            let mut acc = [[Q::load(taps.add(bias)); P], [Q::load(second.add(bias)); P]];
            let top = row * stride;
            let first = pad.saturating_sub(top);
            let last = (conv.height + pad - top).min(size);
            let mut ring_row = (top + first - pad) % self.rows;
            for tap in first..last {
                let from = ring.add(ring_row * self.row_length);
                ring_row += 1;
                if ring_row == self.rows {
                    ring_row = 0;
                }
                let tap = tap * size * LANES;
                add_both::<Q, S, P, K>(&mut acc, from, [taps.add(tap), second.add(tap)], size, stride);
            }
            acc
        }
    }
}

/// What a tile writes: pixels in one vector of channels.
pub(super) struct Tile {
    /// Pixels to be written.
    pub(super) pixels: usize,
    /// Channels to be written.
    pub(super) live: usize,
    /// The first output row that is wanted.
    pub(super) first_row: usize,
    /// The output's index of the tile's first pixel and channel in that row.
    pub(super) start: usize,
}

/// Computes the tile in one output row, for output channels `part` and `part + 1` of each input channel.
///
/// # Safety
/// As [`rows`](super::rows): the ring has the input rows under the output row, and no other task writes these
/// pixels.
#[inline(always)]
pub(super) unsafe fn both_parts<V: Lanes, const S: usize, const P: usize, const K: usize>(
    conv: &DepthwiseConv<'_>,
    under: UnderTile,
    at: &Tile,
    row: usize,
    part: usize,
    out: &Shared<f32>,
) {
    let multiplier = conv.multiplier;
    let outputs = conv.channels * multiplier;
    let set = (conv.kernel_size * conv.kernel_size + 1) * LANES;
    let (_, width) = conv.output_size();
    // SAFETY: the caller's promise.
    unsafe {
        // Where there is no second part, the first is computed twice.
        let second = under.taps.add((part + 1).min(multiplier - 1) * set);
        let under = UnderTile {
            taps: under.taps.add(part * set),
            ..under
        };
        let acc = in_parts!(V, P, lane => {
            under.part_of_channels::<V::Part, S, P, K>(conv, row, second, lane)
        });
        let start = at.start + (row - at.first_row) * width * outputs;
        unroll!(I < P {
            let mut pair = [acc[0][I], acc[1][I]];
            if conv.gelu {
                pair = [gelu(pair[0]), gelu(pair[1])];
            }
            let pair = pair[0].interleave(pair[1]);
            if I < at.pixels {
                let to = out.part(start + I * outputs, at.live * multiplier);
                if at.live == LANES && multiplier == 2 {
                    pair[0].store(to.as_mut_ptr());
                    pair[1].store(to.as_mut_ptr().add(LANES));
                } else {
                    let mut lanes = [0.0; 2 * LANES];
                    pair[0].store(lanes.as_mut_ptr());
                    pair[1].store(lanes.as_mut_ptr().add(LANES));
                    for (to, lanes) in to.chunks_exact_mut(multiplier).zip(lanes.chunks_exact(2)) {
                        let to = &mut to[part..(part + 2).min(multiplier)];
                        to.copy_from_slice(&lanes[..to.len()]);
                    }
                }
            }
        });
    }
}

/// Adds one input row, times one row of taps, to a tile of pixels.
///
/// # Safety
/// As [`Lanes`]; `from` has `(P - 1) * stride + size` vectors, `taps` has `size`.
#[inline(always)]
unsafe fn add_one<Q: Part, const S: usize, const P: usize, const K: usize>(
    acc: &mut [Q; P],
    from: *const f32,
    taps: *const f32,
    size: usize,
    stride: usize,
) {
    let stride = known::<S>(stride);
    let size = known::<K>(size);
    unsafe {
        for kx in 0..size {
            let weight = Q::load(taps.add(kx * LANES));
            let from = from.add(kx * LANES);
            unroll!(I < P { acc[I] = Q::load(from.add(I * stride * LANES)).mul_add(weight, acc[I]) });
        }
    }
}

/// Adds one input row to two tiles, for which it lies under different rows of taps.
///
/// # Safety
/// As [`add_one`].
#[inline(always)]
unsafe fn add_both<Q: Part, const S: usize, const P: usize, const K: usize>(
    acc: &mut [[Q; P]; 2],
    from: *const f32,
    [upper, lower]: [*const f32; 2],
    size: usize,
    stride: usize,
) {
    let stride = known::<S>(stride);
    let size = known::<K>(size);
    unsafe {
        for kx in 0..size {
            let (first, second) = (Q::load(upper.add(kx * LANES)), Q::load(lower.add(kx * LANES)));
            let from = from.add(kx * LANES);
            unroll!(I < P {
                let x = Q::load(from.add(I * stride * LANES));
                acc[0][I] = x.mul_add(first, acc[0][I]);
                acc[1][I] = x.mul_add(second, acc[1][I]);
            });
        }
    }
}

/// Writes the first `live` channels of the first pixels of a tile, from `start` on.
///
/// # Safety
/// As [`Lanes`]; no other task writes these numbers.
#[inline(always)]
pub(super) unsafe fn put_row<V: Lanes, const P: usize>(
    conv: &DepthwiseConv<'_>,
    mut acc: [V; P],
    start: usize,
    pixels: usize,
    live: usize,
    out: &Shared<f32>,
) {
    let channels = conv.channels;
    // SAFETY: the caller's promise; `part` checks that there is room.
    unsafe {
        if conv.gelu {
            unroll!(I < P { acc[I] = gelu(acc[I]) });
        }
        if live == LANES && pixels == P {
            unroll!(I < P {
                let to = out.part(start + I * channels, LANES);
                acc[I].store(to.as_mut_ptr())
            });
        } else {
            // Sums are in registers only while no place of theirs is known at run time alone: first to memory.
            let mut lanes = [[0.0; LANES]; P];
            unroll!(I < P { acc[I].store(lanes[I].as_mut_ptr()) });
            for (i, lanes) in lanes.iter().take(pixels).enumerate() {
                let to = out.part(start + i * channels, live);
                to.copy_from_slice(&lanes[..live]);
            }
        }
    }
}
