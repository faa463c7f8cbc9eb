//! JPEG's inverse DCT: coefficients become samples, to the bit as libjpeg's accurate integer method has them.
//!
//! The method is that of Loeffler, Ligtenberg and Moschytz (ICASSP 1989) with constants of 13 bits: 11
//! products for eight values. Columns first, which keep 2 bits more, then rows.

use super::header::Component;
use super::scan::Block;
use std::num::Wrapping;

/// Bits of the constants.
const BITS: usize = 13;

/// Bits that columns keep for rows.
const KEPT: usize = 2;

/// The samples of some rows of MCUs of a component: room for three, because a row at full size may need the
/// one above and the one below.
#[derive(Debug)]
pub(super) struct Plane {
    stride: usize,
    /// Samples from top to bottom; row r of the component is at r modulo this.
    height: usize,
    samples: Vec<u8>,
}

impl Plane {
    pub(super) fn new(component: &Component) -> Plane {
        let (stride, height) = (component.across * 8, component.vertical * 8 * 3);
        Plane {
            stride,
            height,
            samples: vec![0; stride * height],
        }
    }

    /// The samples of row `row` of blocks.
    pub(super) fn line(&mut self, row: usize) -> &mut [u8] {
        let start = row * 8 % self.height * self.stride;
        &mut self.samples[start..start + 8 * self.stride]
    }

    /// The first `width` samples of row `row`.
    #[inline(always)]
    pub(super) fn row(&self, row: usize, width: usize) -> &[u8] {
        &self.samples[row % self.height * self.stride..][..width]
    }
}

/// The samples of a row of blocks: eight lines of `blocks.len() * 8`.
pub(super) fn samples(blocks: &[Block], table: &[i16; 64], lines: &mut [u8]) {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") {
        #[target_feature(enable = "avx2")]
        fn wide(blocks: &[Block], table: &[i16; 64], lines: &mut [u8]) {
            each(blocks, table, lines);
        }
        #[expect(unsafe_code, reason = "the same code for wider registers")]
        // SAFETY: the processor has AVX2, as was asked above.
        unsafe {
            wide(blocks, table, lines);
        }
        return;
    }
    each(blocks, table, lines);
}

#[inline(always)]
fn each(blocks: &[Block], table: &[i16; 64], lines: &mut [u8]) {
    let stride = blocks.len() * 8;
    for (column, block) in blocks.iter().enumerate() {
        let mut fine = *block;
        fine[0] = 0;
        if fine.iter().fold(0, |bits, value| bits | value) == 0 {
            let mean = i32::from(block[0].wrapping_mul(table[0]));
            let value = sample((mean + 4) >> 3);
            for line in lines.chunks_exact_mut(stride) {
                line[column * 8..column * 8 + 8].fill(value);
            }
            continue;
        }
        let rows = inverse(block, table);
        for (line, row) in lines.chunks_exact_mut(stride).zip(rows.chunks_exact(8)) {
            line[column * 8..column * 8 + 8].copy_from_slice(row);
        }
    }
}

/// The samples of a block, row by row.
#[inline(always)]
fn inverse(block: &Block, table: &[i16; 64]) -> [u8; 64] {
    let mut values = [0; 64];
    for ((value, &coefficient), &factor) in values.iter_mut().zip(block).zip(table) {
        *value = coefficient.wrapping_mul(factor);
    }
    let mut columns = [0; 64];
    pass::<{ BITS - KEPT }, i16>(&values, &mut columns, |value| {
        value.clamp(i16::MIN.into(), i16::MAX.into()) as i16
    });
    let mut rows = [0; 64];
    pass::<{ BITS + KEPT + 3 }, u8>(&transpose(columns), &mut rows, sample);
    transpose(rows)
}

/// A sample from a value around 0.
#[inline(always)]
fn sample(value: i32) -> u8 {
    (value + 128).clamp(0, 255) as u8
}

/// Rows become columns: three times, the second half of all values goes between those of the first.
#[inline(always)]
fn transpose<T: Copy + Default>(mut values: [T; 64]) -> [T; 64] {
    for _ in 0..3 {
        let mut mixed = [T::default(); 64];
        let (first, second) = values.split_at(32);
        for ((pair, &first), &second) in mixed.chunks_exact_mut(2).zip(first).zip(second) {
            pair[0] = first;
            pair[1] = second;
        }
        values = mixed;
    }
    values
}

/// `value` with [`BITS`] bits behind the point.
const fn fix(value: f64) -> Wrapping<i32> {
    Wrapping((value * (1 << BITS) as f64 + 0.5) as i32)
}

/// The inverse DCT of each column; of the result, `DROPPED` bits are rounded away before `narrow`.
#[inline(always)]
fn pass<const DROPPED: usize, T>(values: &[i16; 64], out: &mut [T; 64], narrow: impl Fn(i32) -> T) {
    for column in 0..8 {
        // Sums of a damaged file may wrap around.
        let x = |row: usize| Wrapping(i32::from(values[row * 8 + column]));
        // The even part.
        let z = (x(2) + x(6)) * const { fix(0.541_196_100) };
        let low = z - x(6) * const { fix(1.847_759_065) };
        let high = z + x(2) * const { fix(0.765_366_865) };
        let (sum, difference) = ((x(0) + x(4)) << BITS, (x(0) - x(4)) << BITS);
        let even = [sum + high, difference + low, difference - low, sum - high];
        // The odd part.
        let (z3, z4) = (x(7) + x(3), x(5) + x(1));
        let z5 = (z3 + z4) * const { fix(1.175_875_602) };
        let z1 = (x(7) + x(1)) * const { fix(0.899_976_223) };
        let z2 = (x(5) + x(3)) * const { fix(2.562_915_447) };
        let z3 = z5 - z3 * const { fix(1.961_570_560) };
        let z4 = z5 - z4 * const { fix(0.390_180_644) };
        let odd = [
            x(1) * const { fix(1.501_321_110) } - z1 + z4,
            x(3) * const { fix(3.072_711_026) } - z2 + z3,
            x(5) * const { fix(2.053_119_869) } - z2 + z4,
            x(7) * const { fix(0.298_631_336) } - z1 + z3,
        ];
        let round = |value: Wrapping<i32>| narrow(((value + Wrapping(1 << (DROPPED - 1))) >> DROPPED).0);
        for k in 0..4 {
            out[k * 8 + column] = round(even[k] + odd[k]);
            out[(7 - k) * 8 + column] = round(even[k] - odd[k]);
        }
    }
}
