//! NEON with products of matrices of bytes (`smmla`, `usdot`): Apple M2, Neoverse V1, Snapdragon 8 Gen 1 and
//! later. Tiles multiply two rows with two columns over eight inputs, 32 products in one instruction; few rows
//! take weights as they are stored.

#![expect(
    clippy::needless_range_loop,
    reason = "a tile's loops run over registers: all of its arrays by the same index"
)]

use super::dispatch::features;
use super::lanes::LANES;
use super::neon::{Four, Products, Sums, signed};
use super::neon_dotprod::{Dot, few_block, few_nibbles};
use std::arch::aarch64::*;
use std::arch::asm;

features!(NeonI8mm, is_aarch64_feature_detected: "neon", "dotprod", "i8mm");

/// Lanes in four registers, bytes multiplied by `smmla` and `usdot`.
pub(crate) type NeonI8mm = Four<Pairs>;

/// `smmla` and `usdot`
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pairs;

// SAFETY: the instruction is of `i8mm`.
unsafe impl Dot for Pairs {
    #[inline(always)]
    unsafe fn weights(stored: uint8x16_t) -> uint8x16_t {
        stored
    }
    #[inline(always)]
    unsafe fn start(correction: i32) -> int32x4_t {
        unsafe { vdupq_n_s32(correction) }
    }
    #[inline(always)]
    unsafe fn sixteen(mut acc: int32x4_t, weights: uint8x16_t, activations: int8x16_t) -> int32x4_t {
        // SAFETY: by the promise to this function; it touches no memory.
        unsafe {
            asm!("usdot {0:v}.4s, {1:v}.16b, {2:v}.16b",
                inout(vreg) acc, in(vreg) weights, in(vreg) activations,
                options(pure, nomem, nostack, preserves_flags));
        }
        acc
    }
    #[inline(always)]
    unsafe fn four<const QUAD: i32>(
        mut acc: int32x4_t,
        weights: uint8x16_t,
        activations: int8x16_t,
    ) -> int32x4_t {
        // SAFETY: as above.
        unsafe {
            asm!("usdot {0:v}.4s, {1:v}.16b, {2:v}.4b[{3}]",
                inout(vreg) acc, in(vreg) weights, in(vreg) activations, const QUAD,
                options(pure, nomem, nostack, preserves_flags));
        }
        acc
    }
}

/// Adds the products of two rows and two columns: `[row 0 column 0, row 0 column 1, row 1 column 0, ..]`.
#[inline(always)]
unsafe fn two_by_two(mut acc: int32x4_t, activations: int8x16_t, weights: int8x16_t) -> int32x4_t {
    // SAFETY: by the promise to this function; it touches no memory.
    unsafe {
        asm!("smmla {0:v}.4s, {1:v}.16b, {2:v}.16b",
            inout(vreg) acc, in(vreg) activations, in(vreg) weights,
            options(pure, nomem, nostack, preserves_flags));
    }
    acc
}

// SAFETY: the instructions are NEON's and of `i8mm`.
unsafe impl Products for Pairs {
    const SIGNED: bool = false;

    #[inline(always)]
    unsafe fn products(acc: int32x4_t, weights: uint8x16_t, activations: int8x16_t) -> int32x4_t {
        unsafe { Self::sixteen(acc, weights, activations) }
    }

    /// `[8, 2, 8]`: pairs of columns, eight inputs together, signed.
    #[inline(always)]
    unsafe fn pack(from: *const u8, to: *mut u8) {
        unsafe {
            let mut quads = [[vdupq_n_s8(0); 2]; 4];
            for i in 0..4 {
                for quad in 0..2 {
                    let stored = vld1q_u8(from.add(16 * i + 4 * LANES * quad));
                    quads[i][quad] = vreinterpretq_s8_u8(signed(stored));
                }
            }
            Self::pack_spread(quads, to);
        }
    }
    #[inline(always)]
    unsafe fn pack_spread(spread: [[int8x16_t; 2]; 4], to: *mut u8) {
        unsafe {
            for (i, quads) in spread.into_iter().enumerate() {
                let [first, second] = quads.map(|quad| vreinterpretq_s32_s8(quad));
                let to = to.cast::<i32>().add(8 * i);
                vst1q_s32(to, vzip1q_s32(first, second));
                vst1q_s32(to.add(4), vzip2q_s32(first, second));
            }
        }
    }

    #[inline(always)]
    unsafe fn tile_block<const ROWS: usize, const PANELS: usize>(
        activations: *const i8,
        stride: usize,
        weights: *const u8,
        panel_stride: usize,
        quads: usize,
    ) -> [[Sums; PANELS]; ROWS] {
        unsafe {
            let mut sums = [[[vdupq_n_s32(0); 4]; PANELS]; ROWS];
            for panel in 0..PANELS {
                let weights = weights.add(panel * panel_stride);
                // A pair of rows has what the first of them says; those of the second stay unused.
                let mut acc = [[vdupq_n_s32(0); 8]; ROWS];
                for quad in (0..quads).step_by(2) {
                    let mut a = [vdupq_n_s8(0); ROWS];
                    for row in (0..ROWS).step_by(2) {
                        // The last row of an odd number is its own neighbour.
                        let second = (row + 1).min(ROWS - 1);
                        let from = activations.add(quad * 4);
                        a[row] = two_eights(from.add(row * stride), from.add(second * stride));
                    }
                    let weights = weights.add(quad * 4 * LANES).cast::<i8>();
                    for i in 0..8 {
                        let weights = vld1q_s8(weights.add(16 * i));
                        for row in (0..ROWS).step_by(2) {
                            acc[row][i] = two_by_two(acc[row][i], a[row], weights);
                        }
                    }
                }
                for row in 0..ROWS {
                    for i in 0..4 {
                        let pair = acc[row / 2 * 2];
                        let first = vreinterpretq_s64_s32(pair[2 * i]);
                        let second = vreinterpretq_s64_s32(pair[2 * i + 1]);
                        sums[row][panel][i] = vreinterpretq_s32_s64(if row % 2 == 0 {
                            vzip1q_s64(first, second)
                        } else {
                            vzip2q_s64(first, second)
                        });
                    }
                }
            }
            sums
        }
    }

    #[inline(always)]
    unsafe fn few_block<const ROWS: usize>(
        activations: *const i8,
        stride: usize,
        corrections: [i32; ROWS],
        weights: *const u8,
        quads: usize,
    ) -> [Sums; ROWS] {
        unsafe { few_block::<Self, ROWS>(activations, stride, corrections, weights, quads) }
    }

    #[inline(always)]
    unsafe fn few_nibbles<const ROWS: usize>(
        activations: *const i8,
        stride: usize,
        corrections: [i32; ROWS],
        nibbles: *const u8,
    ) -> [Sums; ROWS] {
        unsafe { few_nibbles::<Self, ROWS>(activations, stride, corrections, nibbles) }
    }
}

/// Eight bytes from each of two places.
#[inline(always)]
unsafe fn two_eights(first: *const i8, second: *const i8) -> int8x16_t {
    unsafe { vcombine_s8(vld1_s8(first), vld1_s8(second)) }
}
