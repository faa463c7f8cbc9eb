//! Logits of a table in planes of nibbles. Few need all of their bits: a table of bytes in two planes of
//! nibbles is read by its high plane, and the low one only where an entry may still be among the likely.
//!
//! With `w = scale (16 high + low - 128)` and the mean 7.5 in place of `low`, a logit is off by
//! `scale sum(x (low - 7.5))`. Low nibbles are as good as random, so that this sum's standard deviation is
//! `scale |x| sqrt(85 / 4)` (`(16^2 - 1) / 12` is the variance of a nibble). Every entry that can, within
//! eight such deviations, reach the largest logit is computed with all bits: the first token is the one that
//! bytes give, the likely ones have their bytes' logits, and what is far below has those of a table of four
//! bits.

#![expect(
    clippy::needless_range_loop,
    reason = "chains of sums are registers: all arrays by the same index"
)]

use super::isa::{AHEAD, Isa, LANES, Lanes, dispatch, prefetch};
use super::logits::near;
use super::parallel::{Parallel, Shared, scratch};
use super::quantise::{BLOCK, Quantised};
use super::sizes::product;
use std::cell::Cell;
use std::ops::Range;

/// Bytes of a plane that hold a block of 128 numbers: number `i` in the low nibble of byte `i`, number
/// `64 + i` in its high one.
const RUN: usize = BLOCK / 2;
const _: () = assert!(RUN == 4 * LANES, "a vector of `Lanes::dot_plane` is a run");
/// Standard deviations within which a logit counts as known.
const CERTAIN: f32 = 8.0;
/// The mean of a low nibble.
const MEAN: f32 = 7.5;
/// The variance of a low nibble.
const VARIANCE: f32 = 21.25;
/// Rows of the table that are multiplied at once.
const ROWS: usize = 4;

thread_local! {
    /// Whether this thread wants logits that are not the likeliest as exact as those.
    static ALL_BITS: Cell<bool> = const { Cell::new(false) };
}

/// Does `work`, in which this thread's logits of planes have all their bits, the unlikely ones too: for who compares those.
/// The table is read whole then, twice as many bytes.
pub fn with_all_bits<R>(work: impl FnOnce() -> R) -> R {
    struct Before(bool);
    impl Drop for Before {
        fn drop(&mut self) {
            ALL_BITS.set(self.0);
        }
    }
    let _before = Before(ALL_BITS.replace(true));
    work()
}

/// A table `[V, K]` of bytes in two planes.
#[derive(Debug, Clone, Copy)]
pub struct Planes<'a> {
    /// `[V, ceil(K / 128), 64]`
    pub high: &'a [u8],
    /// `[V, ceil(K / 128), 64]`
    pub low: &'a [u8],
    /// `[V]`: `w = scale * (16 * high + low - 128)`
    pub scales: &'a [f32],
}

impl Planes<'_> {
    /// That there are as many rows of this length.
    pub(super) fn check(&self, entries: usize, inputs: usize) {
        let length = product([entries, inputs.div_ceil(BLOCK), RUN]);
        assert_eq!(
            self.scales.len(),
            entries,
            "the table has not one scale per entry"
        );
        assert_eq!(self.high.len(), length, "the high plane is not whole rows");
        assert_eq!(self.low.len(), length, "the low plane is not whole rows");
    }

    /// Writes a row's `K` numbers; `None` if there is no such row.
    pub fn row(&self, entry: usize, out: &mut [f32]) -> Option<()> {
        let length = out.len().div_ceil(BLOCK) * RUN;
        let place = entry.checked_mul(length)?..entry.checked_add(1)?.checked_mul(length)?;
        let (high, low) = (self.high.get(place.clone())?, self.low.get(place)?);
        let scale = *self.scales.get(entry)?;
        let runs = high.chunks_exact(RUN).zip(low.chunks_exact(RUN));
        for (out, (high, low)) in out.chunks_mut(BLOCK).zip(runs) {
            let (first, second) = out.split_at_mut(RUN.min(out.len()));
            for (shift, out) in [(0, first), (4, second)] {
                for ((out, high), low) in out.iter_mut().zip(high).zip(low) {
                    let byte = (high >> shift & 15) << 4 | low >> shift & 15;
                    *out = scale * (f32::from(byte) - 128.0);
                }
            }
        }
        Some(())
    }
}

/// A row of activations, and the sums over it that every logit needs.
#[derive(Debug, Clone, Copy)]
struct Row<'a> {
    /// `[blocks, 128]`
    bytes: &'a [i8],
    /// `[blocks]`
    scales: &'a [f32],
    /// The sum of its numbers.
    sum: f32,
    /// [`CERTAIN`] standard deviations of the sum that the low nibbles add, without an entry's scale.
    margin: f32,
}

impl<'a> Row<'a> {
    fn new(rows: &Quantised<'a>, row: usize) -> Self {
        let bytes = rows.bytes.get(row * rows.stride..).unwrap_or(&[]);
        let bytes = bytes.get(..rows.blocks * BLOCK).unwrap_or(&[]);
        let scales = rows.scales.get(row * rows.blocks..).unwrap_or(&[]);
        let scales = scales.get(..rows.blocks).unwrap_or(&[]);
        let (mut sum, mut square) = (0.0, 0.0);
        for (bytes, scale) in bytes.chunks_exact(BLOCK).zip(scales) {
            let (mut of_bytes, mut of_squares) = (0_i16, 0_i32);
            for byte in bytes {
                of_bytes += i16::from(*byte);
                of_squares += i32::from(*byte) * i32::from(*byte);
            }
            sum += scale * f32::from(of_bytes);
            // At most 128^3: exact.
            let of_squares = of_squares as f32;
            square += scale * scale * of_squares;
        }
        let margin = CERTAIN * (VARIANCE * square).sqrt();
        Row {
            bytes,
            scales,
            sum,
            margin,
        }
    }
}

/// Logits `[rows, entries]` of all rows; `length` entries make a task.
pub(super) fn plane_logits(
    isa: Isa,
    parallel: &dyn Parallel,
    quantised: &Quantised<'_>,
    count: usize,
    planes: &Planes<'_>,
    [entries, length]: [usize; 2],
    out: &Shared<f32>,
) {
    let rows: Vec<Row<'_>> = (0..count).map(|row| Row::new(quantised, row)).collect();
    let rows = &*rows;
    let tasks = entries.div_ceil(length);
    scratch(product([tasks, count]), |floors: &mut [f32]| {
        let shared = Shared::new(floors);
        parallel.run(tasks, &|task| {
            // SAFETY: these floors are this task's own.
            let floors = unsafe { shared.part(task * count, count) };
            floors.fill(f32::NEG_INFINITY);
            let own = task * length..entries.min((task + 1) * length);
            for Range { start, end } in near(own, quantised.blocks * RUN, count) {
                for (index, (row, floor)) in rows.iter().zip(&mut *floors).enumerate() {
                    // SAFETY: these entries are this task's own.
                    let to = unsafe { out.part(index * entries + start, end - start) };
                    dispatch!(isa, coarse(
                        row: &Row<'_>, planes: &Planes<'_>, start: usize, to: &mut [f32], floor: &mut f32,
                    ));
                }
            }
        });
        // What the largest logit of a row is at least.
        let all_bits = ALL_BITS.get();
        let floor = |row: usize| {
            if all_bits {
                return f32::NEG_INFINITY;
            }
            let floors = floors.iter().skip(row).step_by(count);
            floors.fold(f32::NEG_INFINITY, |most, floor| most.max(*floor))
        };
        parallel.run(tasks, &|task| {
            let (start, end) = (task * length, entries.min((task + 1) * length));
            for (index, row) in rows.iter().enumerate() {
                let floor = floor(index);
                // SAFETY: these entries are this task's own.
                let to = unsafe { out.part(index * entries + start, end - start) };
                dispatch!(isa, refine(
                    row: &Row<'_>, planes: &Planes<'_>, start: usize, to: &mut [f32], floor: f32,
                ));
            }
        });
    });
}

/// Logits by the high plane, and the most that one of them is at least.
///
/// # Safety
/// As [`Lanes`]; the planes have the entries and passed their check.
#[inline(always)]
unsafe fn coarse<V: Lanes>(
    row: &Row<'_>,
    planes: &Planes<'_>,
    start: usize,
    to: &mut [f32],
    floor: &mut f32,
) {
    let length = row.scales.len() * RUN;
    let offset = row.sum * (MEAN - 128.0);
    let mut most = *floor;
    for (index, to) in to.chunks_mut(ROWS).enumerate() {
        let entry = start + index * ROWS;
        let scales = &planes.scales[entry..entry + to.len()];
        // SAFETY: there are `to.len()` entries from here on.
        unsafe {
            let from = planes.high.as_ptr().add(entry * length);
            let mut sums = [0.0; ROWS];
            if to.len() == ROWS {
                sums = products::<V, ROWS>(row, from);
            } else {
                for i in 0..to.len() {
                    [sums[i]] = products::<V, 1>(row, from.add(i * length));
                }
            }
            for ((to, scale), sum) in to.iter_mut().zip(scales).zip(sums) {
                *to = scale * 16.0_f32.mul_add(sum, offset);
                most = most.max(*to - scale.abs() * row.margin);
            }
        }
    }
    *floor = most;
}

/// Logits with all bits, of the entries that can reach the floor.
///
/// # Safety
/// As [`coarse`].
#[inline(always)]
unsafe fn refine<V: Lanes>(row: &Row<'_>, planes: &Planes<'_>, start: usize, to: &mut [f32], floor: f32) {
    let length = row.scales.len() * RUN;
    let scales = &planes.scales[start..start + to.len()];
    for (index, (to, scale)) in to.iter_mut().zip(scales).enumerate() {
        if *to + scale.abs() * row.margin < floor {
            continue;
        }
        // SAFETY: the planes have the entry.
        unsafe {
            let at = (start + index) * length;
            let [high] = products::<V, 1>(row, planes.high.as_ptr().add(at));
            let [low] = products::<V, 1>(row, planes.low.as_ptr().add(at));
            *to = scale * (16.0_f32.mul_add(high, low) - 128.0 * row.sum);
        }
    }
}

/// The sums of a row's products with `COUNT` rows of a plane.
///
/// # Safety
/// As [`Lanes`]; there are `COUNT` rows of as many runs as the activations have blocks.
#[inline(always)]
unsafe fn products<V: Lanes, const COUNT: usize>(row: &Row<'_>, from: *const u8) -> [f32; COUNT] {
    let length = row.scales.len() * RUN;
    // SAFETY: as for this function.
    unsafe {
        let mut sums = [V::splat(0.0); COUNT];
        for (block, scale) in row.scales.iter().enumerate() {
            let scale = V::splat(*scale);
            let activations = row.bytes.as_ptr().add(block * BLOCK);
            for i in 0..COUNT {
                let weights = from.add(i * length + block * RUN);
                prefetch(weights.wrapping_add(AHEAD));
                let sum = V::dot_plane(V::int_splat(0), weights, activations);
                sums[i] = V::from_int(sum).mul_add(scale, sums[i]);
            }
        }
        let mut out = [0.0; COUNT];
        for i in 0..COUNT {
            out[i] = sums[i].sum();
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::logits::{Table, logits};
    use crate::testing::{Backwards, noise};

    /// Random bytes, as rows and in planes.
    fn table(entries: usize, inputs: usize) -> (Vec<u8>, [Vec<u8>; 2], Vec<f32>) {
        let bytes: Vec<u8> = noise(entries * inputs, 2)
            .iter()
            .map(|x| (x * 127.0).round() as i32 as u8 ^ 0x80)
            .collect();
        let blocks = inputs.div_ceil(BLOCK);
        let mut planes = [vec![0; entries * blocks * RUN], vec![0; entries * blocks * RUN]];
        for (i, byte) in bytes.iter().enumerate() {
            let (entry, k) = (i / inputs, i % inputs);
            let at = (entry * blocks + k / BLOCK) * RUN + k % RUN;
            let shift = k % BLOCK / RUN * 4;
            planes[0][at] |= (byte >> 4) << shift;
            planes[1][at] |= (byte & 15) << shift;
        }
        let scales = noise(entries, 3).iter().map(|x| x + 1.1).collect();
        (bytes, planes, scales)
    }

    #[test]
    fn rows_are_those_of_the_bytes() {
        for inputs in [5, 128, 200, 896] {
            let (bytes, [high, low], scales) = table(7, inputs);
            let planes = Planes {
                high: &high,
                low: &low,
                scales: &scales,
            };
            let mut out = vec![f32::NAN; inputs];
            for entry in 0..7 {
                planes.row(entry, &mut out).unwrap();
                for (k, value) in out.iter().enumerate() {
                    let byte = f32::from(bytes[entry * inputs + k]) - 128.0;
                    assert_eq!(*value, scales[entry] * byte);
                }
            }
            assert!(planes.row(7, &mut out).is_none());
            assert!(planes.row(usize::MAX, &mut out).is_none());
        }
    }

    /// Scales of others may be negative: the margin is not.
    #[test]
    fn the_largest_of_a_negative_scale_has_all_bits() {
        // 16 * 8 + 15 - 128 each.
        let planes = Planes {
            high: &[0x88; 64],
            low: &[0xff; 64],
            scales: &[-1.0],
        };
        for isa in Isa::available() {
            let mut out = [f32::NAN];
            logits(
                isa,
                &Backwards(1),
                &[1.0; 128],
                128,
                Table::Planes(planes),
                1,
                &mut out,
            );
            assert!((out[0] + 1920.0).abs() < 1.0, "{}: {}", isa.name(), out[0]);
        }
    }

    /// The largest logits are those of the whole bytes, the others within their margin; some of each.
    #[test]
    fn likely_logits_have_all_bits() {
        for (rows, inputs, entries) in [
            (1, 128, 4000),
            (2, 896, 3001),
            (8, 300, 2000),
            (1, 200, 2000),
            (1, 5, 50),
        ] {
            let x = noise(rows * inputs, 1);
            let (bytes, [high, low], scales) = table(entries, inputs);
            let (scales, planes) = (
                scales.as_slice(),
                Planes {
                    high: &high,
                    low: &low,
                    scales: &scales,
                },
            );
            for isa in Isa::available() {
                let mut whole = vec![f32::NAN; rows * entries];
                let one = Backwards(1);
                let table = Table::Int8 {
                    bytes: &bytes,
                    scales,
                };
                logits(isa, &one, &x, inputs, table, entries, &mut whole);
                let mut first: Option<Vec<f32>> = None;
                for threads in [1, 16] {
                    let mut out = vec![f32::NAN; rows * entries];
                    let parallel = Backwards(threads);
                    logits(
                        isa,
                        &parallel,
                        &x,
                        inputs,
                        Table::Planes(planes),
                        entries,
                        &mut out,
                    );
                    let mut counts = [0, 0];
                    for row in 0..rows {
                        let x = &x[row * inputs..][..inputs];
                        let norm = x.iter().map(|x| x * x).sum::<f32>().sqrt() * 1.01;
                        let (found, wanted) = (&out[row * entries..], &whole[row * entries..]);
                        let most = wanted[..entries].iter().fold(f32::MIN, |most, x| most.max(*x));
                        for entry in 0..entries {
                            let off = (found[entry] - wanted[entry]).abs();
                            let size = scales[entry] * norm * (inputs as f32).sqrt() * 128.0;
                            let exact = off <= 1e-5 * size;
                            let margin = scales[entry] * CERTAIN * (VARIANCE.sqrt() * norm);
                            assert!(off <= margin, "{} {entry}", isa.name());
                            if wanted[entry] >= most {
                                assert!(exact, "{} {entry}: {off}", isa.name());
                            }
                            counts[usize::from(exact)] += 1;
                        }
                    }
                    assert!(
                        inputs < 100 || counts.iter().all(|count| *count > 0),
                        "{counts:?}"
                    );
                    // The same bits however many threads there are.
                    assert_eq!(*first.get_or_insert_with(|| out.clone()), out);

                    // Who asks has all bits of all entries, and nobody else.
                    let table = || Table::Planes(planes);
                    let mut all = vec![f32::NAN; rows * entries];
                    with_all_bits(|| logits(isa, &parallel, &x, inputs, table(), entries, &mut all));
                    for (index, (found, wanted)) in all.iter().zip(&whole).enumerate() {
                        let x = &x[index / entries * inputs..][..inputs];
                        let norm = x.iter().map(|x| x * x).sum::<f32>().sqrt() * 1.01;
                        let size = scales[index % entries] * norm * (inputs as f32).sqrt() * 128.0;
                        assert!((found - wanted).abs() <= 1e-5 * size, "{} {index}", isa.name());
                    }
                    let mut again = vec![f32::NAN; rows * entries];
                    logits(isa, &parallel, &x, inputs, table(), entries, &mut again);
                    assert_eq!(again, out);
                }
            }
        }
    }
}
