//! Quantisation of activations: each row becomes bytes in blocks of 128, each block with a scale of its own.
//!
//! A block's scale is its largest magnitude / 127. One scale for a whole tensor, or even for a row, is lost
//! where a few channels are a thousand times larger than the others, as in Qwen2's residual stream; with
//! blocks, only the neighbours of such a channel are rounded coarsely.
//!
//! Weights are unsigned bytes around 128 (see [`super::matrix`]), so a block also keeps
//! `-128 * sum of its bytes`, with which a sum of products starts.

use super::isa::{Isa, LANES, Lanes, dispatch};
use super::matrix::NIBBLE_BLOCK;
use super::norm::{Norm, load_part, normalise_row, normalise_rows};
use super::parallel::{Parallel, Shared, scratch};
use super::sizes::product;

/// Activations that share a scale.
pub(super) const BLOCK: usize = 128;
/// Vectors in a block.
pub(super) const VECTORS: usize = BLOCK / LANES;
/// Below this a block counts as zero: its reciprocal would overflow.
const TINY: f32 = 1e-30;

/// What a product wants of rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Wanted {
    /// Whether it wants bytes; otherwise float32.
    pub(super) bytes: bool,
    /// Whether it wants words, too: [`Lanes::WORDS`].
    pub(super) words: bool,
    /// Whether it wants [`Quantised::nibbles`], too.
    pub(super) nibbles: bool,
}

impl Wanted {
    /// Bytes and nothing else.
    pub(super) const BYTES: Wanted = Wanted {
        bytes: true,
        words: false,
        nibbles: false,
    };

    /// What two products want of the same rows.
    pub(super) fn and(self, other: Wanted) -> Wanted {
        Wanted {
            bytes: self.bytes || other.bytes,
            words: self.words || other.words,
            nibbles: self.nibbles || other.nibbles,
        }
    }
}

/// Rows of activations in bytes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Quantised<'a> {
    /// Numbers in a row.
    pub(super) inputs: usize,
    /// `[rows, stride]`, zeros behind the end of a row's last block.
    pub(super) bytes: &'a [i8],
    /// The bytes as words, `[rows, stride]`, of 32 those of even place first; empty where nobody wants them.
    pub(super) words: &'a [i16],
    /// Numbers from row to row.
    pub(super) stride: usize,
    /// `[rows, blocks]`
    pub(super) scales: &'a [f32],
    /// `[rows, blocks]`: -128 times the sum of the block's bytes.
    pub(super) corrections: &'a [i32],
    /// `[rows, blocks, 4]`: [`Lanes::nibble_correction`] of 32 bytes; empty where nobody wants them.
    pub(super) nibbles: &'a [i32],
    /// Blocks in a row.
    pub(super) blocks: usize,
}

/// [`Quantised`] being written, by several tasks.
#[derive(Debug)]
pub(super) struct Target {
    rows: usize,
    inputs: usize,
    stride: usize,
    blocks: usize,
    wanted: Wanted,
    bytes: Shared<i8>,
    words: Shared<i16>,
    scales: Shared<f32>,
    corrections: Shared<i32>,
    nibbles: Shared<i32>,
}

/// Where a block of several rows is written: the first row's part of each slice of [`Quantised`].
#[derive(Debug)]
struct Slots {
    bytes: *mut i8,
    words: *mut i16,
    scales: *mut f32,
    corrections: *mut i32,
    nibbles: *mut i32,
}

impl Target {
    /// Block `block` of `count` rows from `first` on.
    fn slots(&self, first: usize, count: usize, block: usize) -> Slots {
        assert!(
            first <= self.rows && count <= self.rows - first && block < self.blocks,
            "rows that are not there"
        );
        let (at, start) = (first * self.blocks + block, first * self.stride + block * BLOCK);
        Slots {
            bytes: self.bytes.at(start),
            words: self.words.at(start),
            scales: self.scales.at(at),
            corrections: self.corrections.at(at),
            nibbles: self.nibbles.at(4 * at),
        }
    }

    /// Normalises and quantises rows of `x` `[rows, inputs]`, into the rows from `first` on.
    ///
    /// # Safety
    /// Each row belongs to one task.
    pub(super) unsafe fn fill(&self, isa: Isa, x: &[f32], norm: &Norm<'_>, first: usize) {
        #[inline(always)]
        unsafe fn body<V: Lanes>(
            target: &Target,
            x: &[f32],
            norm: &Norm<'_>,
            first: usize,
            buffer: &mut [f32],
        ) {
            let inputs = target.inputs;
            for (i, x) in x.chunks(inputs * GROUP).enumerate() {
                let count = x.len() / inputs;
                let rows: &[f32] = if matches!(norm, Norm::None) {
                    x
                } else {
                    for (x, to) in x.chunks_exact(inputs).zip(buffer.chunks_exact_mut(inputs)) {
                        // SAFETY: as for this function.
                        unsafe { normalise_row::<V>(x, norm, to) };
                    }
                    buffer
                };
                for block in 0..target.blocks {
                    let start = block * BLOCK;
                    // SAFETY: the rows have numbers from `start` on, and are the task's own by the promise to
                    // `fill`.
                    unsafe {
                        let mut group = Group {
                            from: rows.as_ptr().add(start),
                            stride: inputs,
                            length: BLOCK.min(inputs - start),
                            count,
                            largest: [V::splat(0.0); GROUP],
                        };
                        group.measure();
                        group.quantise(target, first + i * GROUP, block);
                    }
                }
            }
        }
        let target = self;
        let length = if matches!(norm, Norm::None) {
            0
        } else {
            product([GROUP.min(x.len() / self.inputs), self.inputs])
        };
        scratch(length, |buffer: &mut [f32]| {
            dispatch!(isa, body(
                target: &Target, x: &[f32], norm: &Norm<'_>, first: usize, buffer: &mut [f32],
            ));
        });
    }
}

/// Rows whose blocks are quantised together: what is done once for a block is done for all of them at once.
pub(super) const GROUP: usize = LANES;
/// Up to so many rows are folded one by one.
const ALONE: usize = 4;

/// A block of up to sixteen rows before it is quantised.
#[derive(Debug)]
pub(super) struct Group<V> {
    /// The first row's numbers.
    pub(super) from: *const f32,
    /// Numbers from row to row.
    pub(super) stride: usize,
    /// Numbers of the block that a row has, at most 128; what is missing counts as zero.
    pub(super) length: usize,
    /// Rows.
    pub(super) count: usize,
    /// Of each row sixteen numbers whose largest is the block's largest magnitude; NaN may be missing.
    pub(super) largest: [V; GROUP],
}

impl<V: Lanes> Group<V> {
    /// A row's numbers, which are a `WHOLE` block or not.
    ///
    /// # Safety
    /// As [`Lanes`]; the row exists.
    #[inline(always)]
    unsafe fn values<const WHOLE: bool>(&self, row: usize) -> [V; VECTORS] {
        // SAFETY: by the promise to this function.
        unsafe {
            let from = self.from.add(row * self.stride);
            let mut values = [V::splat(0.0); VECTORS];
            for (i, value) in values.iter_mut().enumerate() {
                let at = i * LANES;
                if WHOLE || at + LANES <= self.length {
                    *value = V::load(from.add(at));
                } else if at < self.length {
                    *value = load_part(std::slice::from_raw_parts(from, self.length), at);
                }
            }
            values
        }
    }

    /// Finds the largest magnitudes.
    ///
    /// # Safety
    /// As [`Lanes`]; the rows exist.
    #[inline(always)]
    unsafe fn measure(&mut self) {
        for row in 0..self.count.min(GROUP) {
            // SAFETY: by the promise to this function.
            unsafe {
                self.largest[row] = if self.length == BLOCK {
                    largest(&self.values::<true>(row))
                } else {
                    largest(&self.values::<false>(row))
                };
            }
        }
    }

    /// Writes the bytes and what belongs to them, to rows from `first` on. A block that holds a NaN or an
    /// infinity gets the scale NaN, and so makes NaN of every sum.
    ///
    /// # Safety
    /// As [`Lanes`]; the rows exist, `largest` is theirs, and the target's rows belong to one task.
    #[inline(always)]
    #[expect(
        clippy::needless_range_loop,
        reason = "a row is an index of arrays and of what pointers point to"
    )]
    pub(super) unsafe fn quantise(&self, target: &Target, first: usize, block: usize) {
        let count = self.count.min(GROUP);
        let slots = target.slots(first, count, block);
        // SAFETY: by the promise to this function, and that of `slots`.
        unsafe {
            let mut tops = [0.0; GROUP];
            if count > ALONE {
                tops = V::max_lanes(&self.largest);
            } else {
                for row in 0..count {
                    tops[row] = self.largest[row].max_lane();
                }
            }
            // Zero times NaN or infinity is NaN, which the sum then shows.
            let mut factors = [0.0; GROUP];
            for i in 0..GROUP {
                if tops[i] > TINY && tops[i] < f32::INFINITY {
                    factors[i] = 127.0 / tops[i];
                }
            }
            let mut none = 0;
            let mut sums = [V::splat(0.0); GROUP];
            for row in 0..count {
                let (factor, to) = (V::splat(factors[row]), slots.bytes.add(row * target.stride));
                sums[row] = if self.length == BLOCK {
                    V::store_block(&self.values::<true>(row), factor, to, &mut none)
                } else {
                    V::store_block(&self.values::<false>(row), factor, to, &mut none)
                };
            }
            let mut totals = [0.0; GROUP];
            if count > ALONE {
                totals = V::sum_lanes(&sums);
            } else {
                for row in 0..count {
                    totals[row] = sums[row].sum();
                }
            }
            if none != 0 {
                for row in 0..count {
                    let bytes = std::slice::from_raw_parts(slots.bytes.add(row * target.stride), BLOCK);
                    if bytes.contains(&-128) {
                        totals[row] = f32::NAN;
                    }
                }
            }
            let (mut scales, mut corrections) = ([0.0; GROUP], [0; GROUP]);
            for i in 0..GROUP {
                let scale = if tops[i] > TINY {
                    tops[i] * (1.0 / 127.0)
                } else {
                    0.0
                };
                // NaN if the sum is, the scale otherwise.
                scales[i] = scale + totals[i] * 0.0;
                // Whole and at most 128 * 127 * 128 < 2^24: exact.
                corrections[i] = (-128.0 * totals[i]) as i32;
            }
            for row in 0..count {
                *slots.scales.add(row * target.blocks) = scales[row];
                *slots.corrections.add(row * target.blocks) = corrections[row];
            }
            if target.wanted.words {
                for row in 0..count {
                    let at = row * target.stride;
                    let bytes = std::slice::from_raw_parts(slots.bytes.add(at), BLOCK);
                    widen(bytes, std::slice::from_raw_parts_mut(slots.words.add(at), BLOCK));
                }
            }
            if target.wanted.nibbles {
                for row in 0..count {
                    for part in 0..BLOCK / NIBBLE_BLOCK {
                        let bytes = slots.bytes.add(row * target.stride + part * NIBBLE_BLOCK);
                        *slots.nibbles.add(4 * row * target.blocks + part) = V::nibble_correction(bytes);
                    }
                }
            }
        }
    }
}

/// The largest of each lane's magnitudes; NaN is ignored or kept, whichever is faster.
///
/// # Safety
/// As [`Lanes`].
#[inline(always)]
pub(super) unsafe fn largest<V: Lanes>(values: &[V; VECTORS]) -> V {
    // SAFETY: as for this function.
    unsafe {
        let [a, b, c, d, e, f, g, h] = *values;
        let (abcd, efgh) = (a.max_abs(b).max(c.max_abs(d)), e.max_abs(f).max(g.max_abs(h)));
        abcd.max(efgh)
    }
}

/// Bytes to words, of 32 those of even place first.
#[inline(always)]
fn widen(bytes: &[i8], words: &mut [i16]) {
    let words = words.as_chunks_mut::<16>().0.as_chunks_mut::<2>().0;
    for (from, to) in bytes.as_chunks::<2>().0.as_chunks::<16>().0.iter().zip(words) {
        // All are read before one is written, so that they go through vectors.
        let pairs = from.map(|pair| i16::from_le_bytes(pair.map(i8::cast_unsigned)));
        *to = [pairs.map(|pair| pair << 8 >> 8), pairs.map(|pair| pair >> 8)];
    }
}

/// Lends room for `rows` rows of `inputs` numbers, has it filled, and passes on the result.
pub(super) fn with_target<R>(
    rows: usize,
    inputs: usize,
    wanted: Wanted,
    fill: impl FnOnce(&Target),
    body: impl FnOnce(&Quantised<'_>) -> R,
) -> R {
    let blocks = inputs.div_ceil(BLOCK);
    // An odd number of cache lines: equal places of neighbouring rows then fall into different sets of a
    // cache.
    let stride = blocks * BLOCK + 64;
    let all = product([rows, stride]);
    let nibbles = if wanted.nibbles { 4 } else { 0 };
    scratch(all, |bytes: &mut [i8]| {
        scratch(if wanted.words { all } else { 0 }, |words: &mut [i16]| {
            scratch(product([rows, blocks]), |scales: &mut [f32]| {
                scratch(
                    product([rows, blocks, 1 + nibbles]),
                    |corrections: &mut [i32]| {
                        let (corrections, nibbles) = corrections.split_at_mut(rows * blocks);
                        fill(&Target {
                            rows,
                            inputs,
                            stride,
                            blocks,
                            wanted,
                            bytes: Shared::new(bytes),
                            words: Shared::new(words),
                            scales: Shared::new(scales),
                            corrections: Shared::new(corrections),
                            nibbles: Shared::new(nibbles),
                        });
                        body(&Quantised {
                            inputs,
                            bytes,
                            words,
                            stride,
                            scales,
                            corrections,
                            nibbles,
                            blocks,
                        })
                    },
                )
            })
        })
    })
}

/// Rows as the left side of a matrix product.
#[derive(Debug, Clone, Copy)]
pub(super) enum Rows<'a> {
    /// For float32 weights.
    Floats {
        /// Numbers in a row.
        inputs: usize,
        /// `[rows, stride]`
        values: &'a [f32],
        /// Numbers from row to row.
        stride: usize,
    },
    /// For weights of bytes or nibbles.
    Bytes(Quantised<'a>),
}

/// Normalises the rows of `x` `[rows, inputs]` and, where bytes are wanted, quantises them.
pub(super) fn with_rows<R>(
    isa: Isa,
    parallel: &dyn Parallel,
    x: &[f32],
    inputs: usize,
    norm: &Norm<'_>,
    wanted: Wanted,
    body: impl FnOnce(&Rows<'_>) -> R,
) -> R {
    let rows = x.len() / inputs;
    // Rows to a task.
    let chunk = rows
        .div_ceil(4 * parallel.threads())
        .max(4096_usize.div_ceil(inputs));
    let tasks = rows.div_ceil(chunk);
    let part = |task: usize| {
        x.get(task * chunk * inputs..rows.min((task + 1) * chunk) * inputs)
            .unwrap_or(&[])
    };
    if wanted.bytes {
        let fill = |target: &Target| {
            // SAFETY: tasks have rows of their own.
            parallel.run(tasks, &|task| unsafe {
                target.fill(isa, part(task), norm, task * chunk)
            });
        };
        return with_target(rows, inputs, wanted, fill, |quantised| {
            body(&Rows::Bytes(*quantised))
        });
    }
    if matches!(norm, Norm::None) {
        return body(&Rows::Floats {
            inputs,
            values: x,
            stride: inputs,
        });
    }
    let stride = inputs.next_multiple_of(LANES) + LANES;
    scratch(product([rows, stride]), |values: &mut [f32]| {
        let shared = Shared::new(values);
        parallel.run(tasks, &|task| {
            let x = part(task);
            // SAFETY: tasks have rows of their own.
            let to = unsafe { shared.part(task * chunk * stride, x.len() / inputs * stride) };
            normalise_rows(isa, x, inputs, norm, to, stride);
        });
        body(&Rows::Floats {
            inputs,
            values,
            stride,
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parallel::Serial;
    use crate::testing::noise;

    #[test]
    fn blocks_round_to_half_a_step() {
        for inputs in [1, 31, 128, 129, 300, 1024] {
            let mut x = noise(inputs * 5, 7);
            x[inputs * 3..inputs * 4].fill(0.0);
            x[0] = 5000.0;
            for isa in Isa::available() {
                with_rows(isa, &Serial, &x, inputs, &Norm::None, Wanted::BYTES, |rows| {
                    let Rows::Bytes(q) = rows else { panic!("not bytes") };
                    for (row, x) in x.chunks(inputs).enumerate() {
                        for (block, x) in x.chunks(BLOCK).enumerate() {
                            let scale = q.scales[row * q.blocks + block];
                            let bytes = &q.bytes[row * q.stride + block * BLOCK..][..BLOCK];
                            let top = x.iter().fold(0.0_f32, |top, x| top.max(x.abs()));
                            assert!((scale - top / 127.0).abs() <= top * 1e-7);
                            for (x, byte) in x.iter().zip(bytes) {
                                assert!((x - scale * f32::from(*byte)).abs() <= scale * 0.50002);
                            }
                            assert!(bytes[x.len()..].iter().all(|byte| *byte == 0));
                            let sum: i32 = bytes.iter().map(|byte| i32::from(*byte)).sum();
                            assert_eq!(q.corrections[row * q.blocks + block], -128 * sum);
                        }
                    }
                });
            }
        }
    }

    #[test]
    fn what_is_no_number_stays_none() {
        let places = [(1, 256), (4, 200), (9, 256), (17, 147)];
        for (isa, (rows, inputs)) in Isa::available()
            .into_iter()
            .flat_map(|isa| places.map(|place| (isa, place)))
        {
            for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                for rest in [0.0, 1.0, 1e-40] {
                    let mut x = vec![rest; rows * inputs];
                    let row = rows / 2;
                    x[row * inputs + 77] = bad;
                    with_rows(isa, &Serial, &x, inputs, &Norm::None, Wanted::BYTES, |rows| {
                        let Rows::Bytes(q) = rows else { panic!("not bytes") };
                        for (i, scale) in q.scales.iter().enumerate() {
                            if i == row * q.blocks {
                                assert!(scale.is_nan(), "{} {bad} {rest}", isa.name());
                            } else {
                                assert_eq!(scale.is_normal(), rest == 1.0);
                            }
                        }
                    });
                }
            }
        }
    }
}
