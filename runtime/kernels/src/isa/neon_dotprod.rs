//! NEON with dot products (`sdot`): Cortex-A55, A75 and later, Apple A11 and M1 and later. Four products a
//! lane in one instruction, of signed bytes, with four activations out of sixteen that a register holds.

#![expect(
    clippy::needless_range_loop,
    reason = "a tile's loops run over registers: all of its arrays by the same index"
)]

use super::dispatch::features;
use super::lanes::{AHEAD, LANES};
use super::neon::{Four, Products, Sums, four_times, prefetch, signed};
use std::arch::aarch64::*;
use std::arch::asm;

features!(NeonDotprod, is_aarch64_feature_detected: "neon", "dotprod");

/// Lanes in four registers, bytes multiplied by `sdot`.
pub(crate) type NeonDotprod = Four<Signed>;

/// Instructions that multiply 16 bytes with four or sixteen, four products to a lane.
///
/// # Safety
/// As [`Products`].
pub(super) unsafe trait Dot: Copy {
    /// Weights as they are multiplied, of stored ones.
    ///
    /// # Safety
    /// As [`Products`].
    unsafe fn weights(stored: uint8x16_t) -> uint8x16_t;

    /// What sums of stored weights start from.
    ///
    /// # Safety
    /// As [`Products`].
    unsafe fn start(correction: i32) -> int32x4_t;

    /// Adds the products with sixteen activations.
    ///
    /// # Safety
    /// As [`Products`].
    unsafe fn sixteen(acc: int32x4_t, weights: uint8x16_t, activations: int8x16_t) -> int32x4_t;

    /// Adds the products with four of the activations, the same for every lane.
    ///
    /// # Safety
    /// As [`Products`].
    unsafe fn four<const QUAD: i32>(acc: int32x4_t, weights: uint8x16_t, activations: int8x16_t)
    -> int32x4_t;
}

/// `sdot`
#[derive(Debug, Clone, Copy)]
pub(crate) struct Signed;

// SAFETY: the instruction is of `dotprod`.
unsafe impl Dot for Signed {
    #[inline(always)]
    unsafe fn weights(stored: uint8x16_t) -> uint8x16_t {
        unsafe { signed(stored) }
    }
    #[inline(always)]
    unsafe fn start(_: i32) -> int32x4_t {
        unsafe { vdupq_n_s32(0) }
    }
    #[inline(always)]
    unsafe fn sixteen(mut acc: int32x4_t, weights: uint8x16_t, activations: int8x16_t) -> int32x4_t {
        // SAFETY: by the promise to this function; it touches no memory.
        unsafe {
            asm!("sdot {0:v}.4s, {1:v}.16b, {2:v}.16b",
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
            asm!("sdot {0:v}.4s, {1:v}.16b, {2:v}.4b[{3}]",
                inout(vreg) acc, in(vreg) weights, in(vreg) activations, const QUAD,
                options(pure, nomem, nostack, preserves_flags));
        }
        acc
    }
}

// SAFETY: the instructions are NEON's and of `Dot`.
unsafe impl Products for Signed {
    const SIGNED: bool = true;

    #[inline(always)]
    unsafe fn products(acc: int32x4_t, weights: uint8x16_t, activations: int8x16_t) -> int32x4_t {
        unsafe { Self::sixteen(acc, weights, activations) }
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
                let mut acc = [[vdupq_n_s32(0); 4]; ROWS];
                for quad in (0..quads).step_by(4) {
                    let mut a = [vdupq_n_s8(0); ROWS];
                    for row in 0..ROWS {
                        a[row] = vld1q_s8(activations.add(row * stride + quad * 4));
                    }
                    let weights = weights.add(quad * 4 * LANES);
                    tile_quad::<ROWS, 0>(&mut acc, &a, weights);
                    tile_quad::<ROWS, 1>(&mut acc, &a, weights.add(4 * LANES));
                    tile_quad::<ROWS, 2>(&mut acc, &a, weights.add(8 * LANES));
                    tile_quad::<ROWS, 3>(&mut acc, &a, weights.add(12 * LANES));
                }
                for row in 0..ROWS {
                    sums[row][panel] = acc[row];
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

/// Adds the products of one quad of a panel.
#[inline(always)]
unsafe fn tile_quad<const ROWS: usize, const QUAD: i32>(
    acc: &mut [Sums; ROWS],
    activations: &[int8x16_t; ROWS],
    weights: *const u8,
) {
    unsafe {
        for i in 0..4 {
            let weights = vld1q_u8(weights.add(16 * i));
            for row in 0..ROWS {
                acc[row][i] = Signed::four::<QUAD>(acc[row][i], weights, activations[row]);
            }
        }
    }
}

/// [`Products::few_block`] by either instruction.
///
/// # Safety
/// As there.
#[inline(always)]
pub(super) unsafe fn few_block<D: Dot, const ROWS: usize>(
    activations: *const i8,
    stride: usize,
    corrections: [i32; ROWS],
    weights: *const u8,
    quads: usize,
) -> [Sums; ROWS] {
    unsafe {
        // Two chains of sums, for the latency where rows are few.
        let mut acc = [[[vdupq_n_s32(0); 4]; ROWS]; 2];
        for row in 0..ROWS {
            acc[0][row] = [D::start(corrections[row]); 4];
        }
        let mut quad = 0;
        while quad + 4 <= quads {
            let mut a = [vdupq_n_s8(0); ROWS];
            for row in 0..ROWS {
                a[row] = vld1q_s8(activations.add(row * stride + quad * 4));
            }
            let weights = weights.add(quad * 4 * LANES);
            let second = if ROWS <= 2 { 1 } else { 0 };
            few_quad::<D, ROWS, 0>(&mut acc[0], &a, weights);
            few_quad::<D, ROWS, 1>(&mut acc[second], &a, weights.add(4 * LANES));
            few_quad::<D, ROWS, 2>(&mut acc[0], &a, weights.add(8 * LANES));
            few_quad::<D, ROWS, 3>(&mut acc[second], &a, weights.add(12 * LANES));
            quad += 4;
        }
        while quad < quads {
            for i in 0..4 {
                let weights = D::weights(vld1q_u8(weights.add(quad * 4 * LANES + 16 * i)));
                for row in 0..ROWS {
                    let a = four_times(activations.add(row * stride + quad * 4));
                    acc[0][row][i] = D::sixteen(acc[0][row][i], weights, a);
                }
            }
            quad += 1;
        }
        let mut sums = acc[0];
        for row in 0..ROWS {
            for i in 0..4 {
                sums[row][i] = vaddq_s32(acc[0][row][i], acc[1][row][i]);
            }
        }
        sums
    }
}

/// Adds the products of one quad of stored weights.
#[inline(always)]
unsafe fn few_quad<D: Dot, const ROWS: usize, const QUAD: i32>(
    acc: &mut [Sums; ROWS],
    activations: &[int8x16_t; ROWS],
    weights: *const u8,
) {
    unsafe {
        if QUAD % 2 == 0 {
            prefetch::<AHEAD>(weights);
        }
        for i in 0..4 {
            let weights = D::weights(vld1q_u8(weights.add(16 * i)));
            for row in 0..ROWS {
                acc[row][i] = D::four::<QUAD>(acc[row][i], weights, activations[row]);
            }
        }
    }
}

/// [`Products::few_nibbles`] by either instruction.
///
/// # Safety
/// As there.
#[inline(always)]
pub(super) unsafe fn few_nibbles<D: Dot, const ROWS: usize>(
    activations: *const i8,
    stride: usize,
    corrections: [i32; ROWS],
    nibbles: *const u8,
) -> [Sums; ROWS] {
    unsafe {
        let mut acc = [[vdupq_n_s32(0); 4]; ROWS];
        for row in 0..ROWS {
            acc[row] = [vdupq_n_s32(corrections[row]); 4];
        }
        for half in 0..2 {
            let mut a = [vdupq_n_s8(0); ROWS];
            for row in 0..ROWS {
                a[row] = vld1q_s8(activations.add(row * stride + half * 16));
            }
            let nibbles = nibbles.add(half * 8 * LANES);
            few_nibble_quads::<D, ROWS, 0, 1>(&mut acc, &a, nibbles);
            few_nibble_quads::<D, ROWS, 2, 3>(&mut acc, &a, nibbles.add(4 * LANES));
        }
        acc
    }
}

/// Adds the products of one quad of low nibbles and one of high ones.
#[inline(always)]
unsafe fn few_nibble_quads<D: Dot, const ROWS: usize, const LOW: i32, const HIGH: i32>(
    acc: &mut [Sums; ROWS],
    activations: &[int8x16_t; ROWS],
    nibbles: *const u8,
) {
    unsafe {
        if LOW == 0 {
            prefetch::<AHEAD>(nibbles);
        }
        for i in 0..4 {
            let both = vld1q_u8(nibbles.add(16 * i));
            let (low, high) = (vandq_u8(both, vdupq_n_u8(15)), vshrq_n_u8::<4>(both));
            for row in 0..ROWS {
                acc[row][i] = D::four::<LOW>(acc[row][i], low, activations[row]);
                acc[row][i] = D::four::<HIGH>(acc[row][i], high, activations[row]);
            }
        }
    }
}
