//! Resampling: rows of bytes become weighted sums of rows, in whole numbers, as images are resized.

use super::isa::{Isa, Lanes, dispatch};
use super::sizes::product;

/// Numbers that are summed at once, in registers: bytes of sixteen pixels.
const BLOCK: usize = 48;

/// Rows of bytes of which the last `depth` are there: row `r` is the one at `r % depth`.
#[derive(Debug, Clone, Copy)]
pub struct Ring<'a> {
    /// `[depth, length]`
    pub bytes: &'a [u8],
    /// Bytes of a row.
    pub length: usize,
}

/// How a row of the result is made: `sum(weights[i] * rows[first + i]) + margin * beside`, in fixed point.
#[derive(Debug, Clone, Copy)]
pub struct Taps<'a> {
    /// The first row that counts.
    pub first: usize,
    /// Its weight and those of the next ones.
    pub weights: &'a [i32],
    /// The weight of what lies beside the rows.
    pub margin: i32,
}

/// `out` `[taps, length]`, rounded to nearest and kept in `0..=255`: a weight of `1 << bits` is 1. `beside`
/// `[length]` is the row beside all rows. Sums must fit 32 bits.
///
/// # Panics
/// Lengths that do not fit each other, more weights than the ring has rows, 0 or more than 31 bits.
pub fn resample(isa: Isa, ring: Ring<'_>, beside: &[u8], taps: &[Taps<'_>], bits: u32, out: &mut [u8]) {
    let Ring { bytes, length } = ring;
    assert!((1..32).contains(&bits), "bits of a fraction");
    assert_eq!(beside.len(), length, "the row beside");
    assert_eq!(out.len(), product([taps.len(), length]), "output");
    if out.is_empty() {
        return;
    }
    let depth = bytes.len() / length;
    assert_eq!(bytes.len(), depth * length, "the ring is not whole rows");
    let held = |taps: &Taps<'_>| taps.weights.len() <= depth;
    assert!(taps.iter().all(held), "rows that are not there");
    dispatch!(
        isa,
        body(ring: Ring<'_>, beside: &[u8], taps: &[Taps<'_>], bits: u32, out: &mut [u8])
    );
}

/// # Safety
/// As [`Lanes`].
#[inline(always)]
unsafe fn body<V: Lanes>(ring: Ring<'_>, beside: &[u8], taps: &[Taps<'_>], bits: u32, out: &mut [u8]) {
    let whole = ring.length / BLOCK * BLOCK;
    for (taps, out) in taps.iter().zip(out.chunks_exact_mut(ring.length)) {
        for (block, out) in out.as_chunks_mut::<BLOCK>().0.iter_mut().enumerate() {
            let start = block * BLOCK;
            let mut sums = [1 << (bits - 1); BLOCK];
            if taps.margin != 0 {
                add(&mut sums, &beside[start..], taps.margin);
            }
            for (row, weight) in rows(ring, taps) {
                add(&mut sums, &row[start..], weight);
            }
            for (out, sum) in out.iter_mut().zip(sums) {
                *out = (sum >> bits).clamp(0, 255) as u8;
            }
        }
        for (at, out) in out.iter_mut().enumerate().skip(whole) {
            let sum = rows(ring, taps).map(|(row, weight)| i32::from(row[at]) * weight);
            let sum = sum.sum::<i32>() + i32::from(beside[at]) * taps.margin + (1 << (bits - 1));
            *out = (sum >> bits).clamp(0, 255) as u8;
        }
    }
}

/// The rows that count, and their weights.
#[inline(always)]
fn rows<'a>(ring: Ring<'a>, taps: &Taps<'a>) -> impl Iterator<Item = (&'a [u8], i32)> {
    let depth = ring.bytes.len() / ring.length;
    let mut at = if depth > 0 { taps.first % depth } else { 0 };
    taps.weights.iter().map(move |weight| {
        let row = &ring.bytes[at * ring.length..][..ring.length];
        at = if at + 1 == depth { 0 } else { at + 1 };
        (row, *weight)
    })
}

/// Adds the first bytes of a row, times its weight.
#[inline(always)]
fn add(sums: &mut [i32; BLOCK], row: &[u8], weight: i32) {
    for (sum, byte) in sums.iter_mut().zip(&row[..BLOCK]) {
        *sum += i32::from(*byte) * weight;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::noise;

    #[test]
    fn every_set_sums_as_numbers_do() {
        const BITS: u32 = 22;
        let byte = |x: f32| (x * 127.0 + 128.0) as u8;
        for (length, depth, counts) in [(48, 7, [7, 1, 0]), (100, 5, [5, 2, 3]), (3, 3, [1, 2, 3])] {
            let bytes: Vec<u8> = noise(length * depth, 3).into_iter().map(byte).collect();
            let beside: Vec<u8> = noise(length, 4).into_iter().map(byte).collect();
            let weight = |x: &f32| (x * f32::from(1_u8 << 2) * (1 << (BITS - 2)) as f32) as i32;
            let weights: Vec<i32> = noise(depth, 5).iter().map(weight).collect();
            let taps = counts.map(|count| Taps {
                // Also around the end.
                first: 3 * depth + 2,
                weights: &weights[..count],
                margin: if count % 2 == 0 { 1 << (BITS - 1) } else { 0 },
            });
            let expected: Vec<u8> = taps
                .iter()
                .flat_map(|taps| {
                    (0..length).map(|at| {
                        let row = |i: usize| i64::from(bytes[(taps.first + i) % depth * length + at]);
                        let mut sum = i64::from(taps.margin) * i64::from(beside[at]) + (1 << (BITS - 1));
                        for (i, weight) in taps.weights.iter().enumerate() {
                            sum += row(i) * i64::from(*weight);
                        }
                        (sum >> BITS).clamp(0, 255) as u8
                    })
                })
                .collect();
            for isa in Isa::available() {
                let mut out = vec![0; 3 * length];
                let ring = Ring {
                    bytes: &bytes,
                    length,
                };
                resample(isa, ring, &beside, &taps, BITS, &mut out);
                assert_eq!(out, expected, "{} {length}", isa.name());
            }
        }
    }

    #[test]
    #[should_panic(expected = "rows that are not there")]
    fn a_ring_has_the_rows() {
        let ring = Ring {
            bytes: &[0; 6],
            length: 3,
        };
        let taps = Taps {
            first: 0,
            weights: &[1; 3],
            margin: 0,
        };
        resample(Isa::detect(), ring, &[0; 3], &[taps], 22, &mut [0; 3]);
    }
}
