//! NEON, which every AArch64 has: four registers of 128 bits have all lanes.
//!
//! Sets with these registers differ in how bytes are multiplied: [`Products`].

#![expect(
    clippy::needless_range_loop,
    reason = "a tile's loops run over registers: all of its arrays by the same index"
)]

use super::dispatch::features;
use super::lanes::{AHEAD, LANES, Lanes, Part};
use std::arch::aarch64::*;
use std::arch::asm;
use std::marker::PhantomData;

features!(Neon, is_aarch64_feature_detected: "neon");

/// Lanes in four registers, bytes multiplied as NEON can.
pub(crate) type Neon = Four<Widened>;

/// Four registers; bytes are multiplied as `P` says.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Four<P>([float32x4_t; 4], PhantomData<P>);

/// Sixteen int32, the sums of a panel's columns.
pub(super) type Sums = [int32x4_t; 4];

/// How bytes are multiplied. The methods do what those of [`Lanes`] with the same names do.
///
/// # Safety
/// As [`Lanes`]: only instructions of the set.
pub(super) unsafe trait Products: Copy {
    /// As [`Lanes::SIGNED`].
    const SIGNED: bool;

    /// Adds the products of 16 weights with 16 activations, four to a lane.
    ///
    /// # Safety
    /// As [`Lanes::products`].
    unsafe fn products(acc: int32x4_t, weights: uint8x16_t, activations: int8x16_t) -> int32x4_t;

    /// The same twice, with weights that are at most 15.
    ///
    /// # Safety
    /// As [`Lanes::nibble_products`].
    #[inline(always)]
    unsafe fn nibbles(acc: int32x4_t, weights: [uint8x16_t; 2], activations: [int8x16_t; 2]) -> int32x4_t {
        unsafe {
            let acc = Self::products(acc, weights[0], activations[0]);
            Self::products(acc, weights[1], activations[1])
        }
    }

    /// # Safety
    /// As [`Lanes::pack`].
    #[inline(always)]
    unsafe fn pack(from: *const u8, to: *mut u8) {
        unsafe {
            for i in (0..8 * LANES).step_by(16) {
                vst1q_u8(to.add(i), signed(vld1q_u8(from.add(i))));
            }
        }
    }

    /// Packs what [`Lanes::spread_nibbles`] makes: 16 weights of four columns, as they are multiplied; the low
    /// nibbles and the high ones of the first four columns, and so on.
    ///
    /// # Safety
    /// As [`Lanes::spread_nibbles`].
    #[inline(always)]
    unsafe fn pack_spread(spread: [[int8x16_t; 2]; 4], to: *mut u8) {
        unsafe {
            for (i, [low, high]) in spread.into_iter().enumerate() {
                vst1q_s8(to.cast::<i8>().add(16 * i), low);
                vst1q_s8(to.cast::<i8>().add(16 * i + 4 * LANES), high);
            }
        }
    }

    /// # Safety
    /// As [`Lanes::tile_block`].
    unsafe fn tile_block<const ROWS: usize, const PANELS: usize>(
        activations: *const i8,
        stride: usize,
        weights: *const u8,
        panel_stride: usize,
        quads: usize,
    ) -> [[Sums; PANELS]; ROWS];

    /// # Safety
    /// As [`Lanes::few_block`].
    unsafe fn few_block<const ROWS: usize>(
        activations: *const i8,
        stride: usize,
        corrections: [i32; ROWS],
        weights: *const u8,
        quads: usize,
    ) -> [Sums; ROWS];

    /// # Safety
    /// As [`Lanes::few_nibbles`].
    unsafe fn few_nibbles<const ROWS: usize>(
        activations: *const i8,
        stride: usize,
        corrections: [i32; ROWS],
        nibbles: *const u8,
    ) -> [Sums; ROWS];
}

/// Products through 16 bits: two products of signed bytes fit them, if one of each pair of factors is not
/// -128.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Widened;

// SAFETY: every AArch64 has the instructions.
unsafe impl Products for Widened {
    const SIGNED: bool = true;

    #[inline(always)]
    unsafe fn products(acc: int32x4_t, weights: uint8x16_t, activations: int8x16_t) -> int32x4_t {
        unsafe {
            let weights = vreinterpretq_s8_u8(weights);
            vpadalq_s16(
                acc,
                vpaddq_s16(smull(weights, activations), smull2(weights, activations)),
            )
        }
    }
    /// Nibbles are at most 15, so many products fit 16 bits.
    #[inline(always)]
    unsafe fn nibbles(acc: int32x4_t, weights: [uint8x16_t; 2], activations: [int8x16_t; 2]) -> int32x4_t {
        unsafe {
            let [first, second] = weights.map(|weights| vreinterpretq_s8_u8(weights));
            let [low, high] = wide_products(first, activations[0], second, activations[1]);
            vpadalq_s16(acc, vpaddq_s16(low, high))
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
                for row in (0..ROWS / 2 * 2).step_by(2) {
                    let activations = activations.add(row * stride);
                    let [a, b] = tile_rows::<2>(activations, stride, weights, quads);
                    (sums[row][panel], sums[row + 1][panel]) = (a, b);
                }
                if ROWS % 2 == 1 {
                    let activations = activations.add((ROWS - 1) * stride);
                    [sums[ROWS - 1][panel]] = tile_rows::<1>(activations, stride, weights, quads);
                }
            }
            sums
        }
    }

    #[inline(always)]
    unsafe fn few_block<const ROWS: usize>(
        activations: *const i8,
        stride: usize,
        _: [i32; ROWS],
        weights: *const u8,
        quads: usize,
    ) -> [Sums; ROWS] {
        unsafe {
            let mut sums = [[vdupq_n_s32(0); 4]; ROWS];
            for row in (0..ROWS / 2 * 2).step_by(2) {
                let activations = activations.add(row * stride);
                let [a, b] = stored_rows::<2>(activations, stride, weights, quads);
                (sums[row], sums[row + 1]) = (a, b);
            }
            if ROWS % 2 == 1 {
                let activations = activations.add((ROWS - 1) * stride);
                [sums[ROWS - 1]] = stored_rows::<1>(activations, stride, weights, quads);
            }
            sums
        }
    }

    /// All products of a lane with the 32 inputs fit 16 bits: 16 * 15 * 127.
    #[inline(always)]
    unsafe fn few_nibbles<const ROWS: usize>(
        activations: *const i8,
        stride: usize,
        corrections: [i32; ROWS],
        nibbles: *const u8,
    ) -> [Sums; ROWS] {
        unsafe {
            let mut sums = [[vdupq_n_s32(0); 4]; ROWS];
            prefetch::<AHEAD>(nibbles);
            prefetch::<{ AHEAD + 128 }>(nibbles);
            for row in 0..ROWS {
                let mut acc = [[vdupq_n_s16(0); 2]; 4];
                for group in 0..4 {
                    let at = activations.add(row * stride + group * 8);
                    let (low_a, high_a) = (four_times(at), four_times(at.add(4)));
                    for i in 0..4 {
                        let both = vld1q_u8(nibbles.add(group * 4 * LANES + i * 16));
                        let low = vreinterpretq_s8_u8(vandq_u8(both, vdupq_n_u8(15)));
                        let high = vreinterpretq_s8_u8(vshrq_n_u8::<4>(both));
                        acc[i][0] = smlal(acc[i][0], low, low_a);
                        acc[i][1] = smlal2(acc[i][1], low, low_a);
                        acc[i][0] = smlal(acc[i][0], high, high_a);
                        acc[i][1] = smlal2(acc[i][1], high, high_a);
                    }
                }
                let start = vdupq_n_s32(corrections[row]);
                for i in 0..4 {
                    let [low, high] = acc[i];
                    sums[row][i] = vpadalq_s16(start, vpaddq_s16(low, high));
                }
            }
            sums
        }
    }
}

/// Products by the name of their instruction: the compiler makes of `smull2` an `ext` and a `smull` where it can.
macro_rules! products {
    ($(#[$attribute:meta])* $name:ident: $text:literal) => {
        $(#[$attribute])*
        #[inline(always)]
        unsafe fn $name(a: int8x16_t, b: int8x16_t) -> int16x8_t {
            let products: int16x8_t;
            // SAFETY: every AArch64 has it; it touches no memory.
            unsafe {
                asm!($text, lateout(vreg) products, in(vreg) a, in(vreg) b,
                    options(pure, nomem, nostack, preserves_flags));
            }
            products
        }
    };
    ($(#[$attribute:meta])* add $name:ident: $text:literal) => {
        $(#[$attribute])*
        #[inline(always)]
        unsafe fn $name(mut acc: int16x8_t, a: int8x16_t, b: int8x16_t) -> int16x8_t {
            // SAFETY: as above.
            unsafe {
                asm!($text, inout(vreg) acc, in(vreg) a, in(vreg) b,
                    options(pure, nomem, nostack, preserves_flags));
            }
            acc
        }
    };
}

products! {
    /// Of the first eight bytes.
    smull: "smull {0:v}.8h, {1:v}.8b, {2:v}.8b"
}
products! {
    /// Of the last eight bytes.
    smull2: "smull2 {0:v}.8h, {1:v}.16b, {2:v}.16b"
}
products! {
    /// Those of the first eight bytes, added.
    add smlal: "smlal {0:v}.8h, {1:v}.8b, {2:v}.8b"
}
products! {
    /// Those of the last eight bytes, added.
    add smlal2: "smlal2 {0:v}.8h, {1:v}.16b, {2:v}.16b"
}

/// Sums of two products each in 16 bits: those of the first 8 bytes, and those of the last.
#[inline(always)]
unsafe fn wide_products(w0: int8x16_t, a0: int8x16_t, w1: int8x16_t, a1: int8x16_t) -> [int16x8_t; 2] {
    unsafe { [smlal(smull(w0, a0), w1, a1), smlal2(smull2(w0, a0), w1, a1)] }
}

/// Adds the sums of neighbours.
#[inline(always)]
unsafe fn sadalp(mut acc: int32x4_t, words: int16x8_t) -> int32x4_t {
    // SAFETY: every AArch64 has it; it touches no memory.
    unsafe {
        asm!("sadalp {0:v}.4s, {1:v}.8h", inout(vreg) acc, in(vreg) words,
            options(pure, nomem, nostack, preserves_flags));
    }
    acc
}

/// Sums of `ROWS` rows with one panel of a tile: signed weights, a multiple of four quads. Each column has two
/// sums until the end.
#[inline(always)]
unsafe fn tile_rows<const ROWS: usize>(
    activations: *const i8,
    stride: usize,
    weights: *const u8,
    quads: usize,
) -> [Sums; ROWS] {
    unsafe {
        let mut acc = [[[vdupq_n_s32(0); 2]; 4]; ROWS];
        for quad in (0..quads).step_by(4) {
            let (activations, weights) = (activations.add(quad * 4), weights.add(quad * 4 * LANES));
            two_quads::<ROWS, false>(&mut acc, activations, stride, weights);
            two_quads::<ROWS, false>(&mut acc, activations.add(8), stride, weights.add(8 * LANES));
        }
        joined(acc)
    }
}

/// Sums of `ROWS` rows with one panel of weights as they are stored, from memory.
#[inline(always)]
unsafe fn stored_rows<const ROWS: usize>(
    activations: *const i8,
    stride: usize,
    weights: *const u8,
    quads: usize,
) -> [Sums; ROWS] {
    unsafe {
        let mut acc = [[[vdupq_n_s32(0); 2]; 4]; ROWS];
        let mut quad = 0;
        while quad + 2 <= quads {
            let weights = weights.add(quad * 4 * LANES);
            prefetch::<AHEAD>(weights);
            two_quads::<ROWS, true>(&mut acc, activations.add(quad * 4), stride, weights);
            quad += 2;
        }
        if quad < quads {
            let weights = weights.add(quad * 4 * LANES);
            for i in 0..4 {
                let first = sixteen::<true>(weights.add(i * 16));
                for row in 0..ROWS {
                    let a = four_times(activations.add(row * stride + quad * 4));
                    acc[row][i][0] = sadalp(acc[row][i][0], smull(first, a));
                    acc[row][i][1] = sadalp(acc[row][i][1], smull2(first, a));
                }
            }
        }
        joined(acc)
    }
}

/// Adds the products of two quads of weights, which are as they are `STORED` or signed.
#[inline(always)]
unsafe fn two_quads<const ROWS: usize, const STORED: bool>(
    acc: &mut [[[int32x4_t; 2]; 4]; ROWS],
    activations: *const i8,
    stride: usize,
    weights: *const u8,
) {
    unsafe {
        let mut a = [int32x4x2_t(vdupq_n_s32(0), vdupq_n_s32(0)); ROWS];
        for row in 0..ROWS {
            a[row] = vld2q_dup_s32(activations.add(row * stride).cast());
        }
        for i in 0..4 {
            let first = sixteen::<STORED>(weights.add(16 * i));
            let second = sixteen::<STORED>(weights.add(16 * i + 4 * LANES));
            for row in 0..ROWS {
                let a = (vreinterpretq_s8_s32(a[row].0), vreinterpretq_s8_s32(a[row].1));
                let [low, high] = wide_products(first, a.0, second, a.1);
                acc[row][i] = [sadalp(acc[row][i][0], low), sadalp(acc[row][i][1], high)];
            }
        }
    }
}

/// One sum for each column of the two that it has, of neighbours: those of the first eight bytes, and of the last.
#[inline(always)]
unsafe fn joined<const ROWS: usize>(acc: [[[int32x4_t; 2]; 4]; ROWS]) -> [Sums; ROWS] {
    let mut sums = [[unsafe { vdupq_n_s32(0) }; 4]; ROWS];
    for row in 0..ROWS {
        for i in 0..4 {
            sums[row][i] = unsafe { vpaddq_s32(acc[row][i][0], acc[row][i][1]) };
        }
    }
    sums
}

/// Asks for the memory `OFFSET` bytes on, 128 bytes being what an instruction is worth: two of these processors'
/// lines, or one.
#[inline(always)]
pub(super) unsafe fn prefetch<const OFFSET: usize>(from: *const u8) {
    // SAFETY: every AArch64 has it; it reads nothing and never faults.
    unsafe {
        asm!("prfm pldl2keep, [{0}, {1}]", in(reg) from, const OFFSET,
            options(readonly, nostack, preserves_flags));
    }
}

/// Four bytes, the same in every lane.
#[inline(always)]
pub(super) unsafe fn four_times(from: *const i8) -> int8x16_t {
    unsafe { vreinterpretq_s8_s32(vdupq_n_s32(from.cast::<i32>().read_unaligned())) }
}

/// Stored byte weights to signed ones, and back.
#[inline(always)]
pub(super) unsafe fn signed(stored: uint8x16_t) -> uint8x16_t {
    unsafe { veorq_u8(stored, vdupq_n_u8(0x80)) }
}

/// Sixteen signed weights from memory, where they are as they are `STORED` or signed.
#[inline(always)]
unsafe fn sixteen<const STORED: bool>(from: *const u8) -> int8x16_t {
    unsafe {
        let weights = vld1q_u8(from);
        vreinterpretq_s8_u8(if STORED { signed(weights) } else { weights })
    }
}

/// `$f` of the first registers, of the second ones, and so on.
macro_rules! four {
    ($f:ident($($value:expr),+)) => {
        Four(
            unsafe {
                [$f($($value.0[0]),+), $f($($value.0[1]),+), $f($($value.0[2]),+), $f($($value.0[3]),+)]
            },
            PhantomData,
        )
    };
}

/// One register: a quarter of the lanes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Quarter(float32x4_t);

// SAFETY: the instructions are NEON's.
unsafe impl Part for Quarter {
    const LANES: usize = 4;

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        Quarter(unsafe { vld1q_f32(from) })
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        unsafe { vst1q_f32(to, self.0) }
    }
    #[inline(always)]
    unsafe fn mul_add(self, b: Self, c: Self) -> Self {
        Quarter(unsafe { vfmaq_f32(c.0, self.0, b.0) })
    }
}

// SAFETY: the instructions are NEON's and those of `P`; registers have the size of the types.
unsafe impl<P: Products> Lanes for Four<P> {
    type Int = Sums;
    type Bytes = [uint8x16_t; 4];
    type Part = Quarter;
    const TILE_ROWS: usize = 6;
    const TILE_PANELS: usize = 1;
    const ATTENTION_ROWS: [usize; 2] = [4, 4];
    const DEPTHWISE_PIXELS: usize = 8;
    const STEM_TILE: (usize, usize) = (4, 1);
    const FEW_SUMS: usize = 4;
    const SIGNED: bool = P::SIGNED;
    const PACKED: bool = true;

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        unsafe {
            Four(
                [
                    vld1q_f32(from),
                    vld1q_f32(from.add(4)),
                    vld1q_f32(from.add(8)),
                    vld1q_f32(from.add(12)),
                ],
                PhantomData,
            )
        }
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        unsafe {
            for i in 0..4 {
                vst1q_f32(to.add(4 * i), self.0[i]);
            }
        }
    }
    #[inline(always)]
    unsafe fn int_load(from: *const i32) -> Self::Int {
        unsafe {
            [
                vld1q_s32(from),
                vld1q_s32(from.add(4)),
                vld1q_s32(from.add(8)),
                vld1q_s32(from.add(12)),
            ]
        }
    }
    #[inline(always)]
    unsafe fn int_store(value: Self::Int, to: *mut i32) {
        unsafe {
            for i in 0..4 {
                vst1q_s32(to.add(4 * i), value[i]);
            }
        }
    }
    #[inline(always)]
    unsafe fn bytes_load(from: *const u8) -> Self::Bytes {
        unsafe {
            [
                vld1q_u8(from),
                vld1q_u8(from.add(16)),
                vld1q_u8(from.add(32)),
                vld1q_u8(from.add(48)),
            ]
        }
    }
    #[inline(always)]
    unsafe fn bytes_store(value: Self::Bytes, to: *mut u8) {
        unsafe {
            for i in 0..4 {
                vst1q_u8(to.add(16 * i), value[i]);
            }
        }
    }

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        Four([unsafe { vdupq_n_f32(value) }; 4], PhantomData)
    }
    #[inline(always)]
    unsafe fn load_f16(from: *const u16) -> Self {
        unsafe {
            let [[a, b], [c, d]] = [from_half(vld1q_u16(from)), from_half(vld1q_u16(from.add(8)))];
            Four([a, b, c, d], PhantomData)
        }
    }
    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        four!(vaddq_f32(self, other))
    }
    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        four!(vsubq_f32(self, other))
    }
    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        four!(vmulq_f32(self, other))
    }
    #[inline(always)]
    unsafe fn div(self, other: Self) -> Self {
        four!(vdivq_f32(self, other))
    }
    #[inline(always)]
    unsafe fn mul_add(self, b: Self, c: Self) -> Self {
        four!(vfmaq_f32(c, self, b))
    }
    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        four!(vmaxq_f32(self, other))
    }
    #[inline(always)]
    unsafe fn min(self, other: Self) -> Self {
        four!(vminq_f32(self, other))
    }
    #[inline(always)]
    unsafe fn abs(self) -> Self {
        four!(vabsq_f32(self))
    }
    #[inline(always)]
    unsafe fn round(self) -> Self {
        four!(vrndnq_f32(self))
    }
    #[inline(always)]
    unsafe fn scale_by_power(self, exponent: Self) -> Self {
        four!(scale_by_power(self, exponent))
    }
    #[inline(always)]
    unsafe fn interleave(self, other: Self) -> [Self; 2] {
        let (a, b) = (self.0, other.0);
        unsafe {
            [
                interleave([a[0], a[1]], [b[0], b[1]]),
                interleave([a[2], a[3]], [b[2], b[3]]),
            ]
        }
    }
    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        let [a, b, c, d] = self.0;
        unsafe { vaddvq_f32(vaddq_f32(vaddq_f32(a, b), vaddq_f32(c, d))) }
    }
    #[inline(always)]
    unsafe fn max_lane(self) -> f32 {
        let [a, b, c, d] = self.0;
        unsafe { vmaxvq_f32(vmaxq_f32(vmaxq_f32(a, b), vmaxq_f32(c, d))) }
    }
    #[inline(always)]
    unsafe fn store_i8(self, to: *mut i8) {
        unsafe {
            let [a, b, c, d] = self.0;
            let low = narrow(vcvtnq_s32_f32(a), vcvtnq_s32_f32(b));
            let high = narrow(vcvtnq_s32_f32(c), vcvtnq_s32_f32(d));
            vst1q_s8(to, narrow_words(low, high));
        }
    }

    #[inline(always)]
    unsafe fn int_splat(value: i32) -> Self::Int {
        [unsafe { vdupq_n_s32(value) }; 4]
    }
    #[inline(always)]
    unsafe fn int_add(a: Self::Int, b: Self::Int) -> Self::Int {
        unsafe {
            let mut sums = a;
            for i in 0..4 {
                sums[i] = vaddq_s32(a[i], b[i]);
            }
            sums
        }
    }
    #[inline(always)]
    unsafe fn from_int([a, b, c, d]: Self::Int) -> Self {
        unsafe {
            Four(
                [
                    vcvtq_f32_s32(a),
                    vcvtq_f32_s32(b),
                    vcvtq_f32_s32(c),
                    vcvtq_f32_s32(d),
                ],
                PhantomData,
            )
        }
    }

    #[inline(always)]
    unsafe fn bytes_splat(bytes: [i8; 4]) -> Self::Bytes {
        [unsafe { vreinterpretq_u8_s8(four_times(bytes.as_ptr())) }; 4]
    }
    #[inline(always)]
    unsafe fn weights_load(from: *const u8) -> Self::Bytes {
        unsafe {
            let mut weights = Self::bytes_load(from);
            if Self::SIGNED {
                for i in 0..4 {
                    weights[i] = signed(weights[i]);
                }
            }
            weights
        }
    }
    #[inline(always)]
    unsafe fn nibbles(bytes: Self::Bytes) -> [Self::Bytes; 2] {
        unsafe {
            let mut both = [bytes; 2];
            for i in 0..4 {
                both[0][i] = vandq_u8(bytes[i], vdupq_n_u8(15));
                both[1][i] = vshrq_n_u8::<4>(bytes[i]);
            }
            both
        }
    }
    #[inline(always)]
    unsafe fn products(mut acc: Self::Int, weights: Self::Bytes, activations: Self::Bytes) -> Self::Int {
        unsafe {
            for i in 0..4 {
                acc[i] = P::products(acc[i], weights[i], vreinterpretq_s8_u8(activations[i]));
            }
            acc
        }
    }
    #[inline(always)]
    unsafe fn nibble_products(
        mut acc: Self::Int,
        [low, high]: [Self::Bytes; 2],
        [low_a, high_a]: [Self::Bytes; 2],
    ) -> Self::Int {
        unsafe {
            for i in 0..4 {
                let activations = [vreinterpretq_s8_u8(low_a[i]), vreinterpretq_s8_u8(high_a[i])];
                acc[i] = P::nibbles(acc[i], [low[i], high[i]], activations);
            }
            acc
        }
    }
    #[inline(always)]
    unsafe fn spread_nibbles(weights: *const u8, ratios: Self, to: *mut u8) {
        unsafe {
            let [a, b, c, d] = ratios.0;
            let words = [
                narrow(vcvtnq_s32_f32(a), vcvtnq_s32_f32(b)),
                narrow(vcvtnq_s32_f32(c), vcvtnq_s32_f32(d)),
            ];
            let mut spread = [[vdupq_n_s8(0); 2]; 4];
            for i in 0..4 {
                let both = vld1q_u8(weights.add(16 * i));
                // 16 times the nibble, less 128, is a signed byte.
                let low = vreinterpretq_s8_u8(signed(vshlq_n_u8::<4>(both)));
                let high = vreinterpretq_s8_u8(signed(vandq_u8(both, vdupq_n_u8(0xf0))));
                let ratios = each_four_times(words[i / 2], i % 2 == 1);
                spread[i] = [scaled(low, ratios), scaled(high, ratios)];
            }
            P::pack_spread(spread, to);
        }
    }
    #[inline(always)]
    unsafe fn pack(from: *const u8, to: *mut u8) {
        unsafe { P::pack(from, to) }
    }

    /// Four inputs at a time: instructions take a number of a row out of the four that a register holds.
    #[inline(always)]
    unsafe fn add_floats<const ROWS: usize, const PANELS: usize>(
        mut acc: [[Self; PANELS]; ROWS],
        values: *const f32,
        stride: usize,
        weights: *const f32,
        panel_stride: usize,
        length: usize,
    ) -> [[Self; PANELS]; ROWS] {
        unsafe {
            for panel in 0..PANELS {
                let weights = weights.add(panel * panel_stride);
                let mut sums = [[vdupq_n_f32(0.0); 4]; ROWS];
                for row in 0..ROWS {
                    sums[row] = acc[row][panel].0;
                }
                let mut k = 0;
                while k + 4 <= length {
                    let mut four = [vdupq_n_f32(0.0); ROWS];
                    for row in 0..ROWS {
                        four[row] = vld1q_f32(values.add(row * stride + k));
                    }
                    let weights = weights.add(k * LANES);
                    add_input::<ROWS, 0>(&mut sums, &four, weights);
                    add_input::<ROWS, 1>(&mut sums, &four, weights.add(LANES));
                    add_input::<ROWS, 2>(&mut sums, &four, weights.add(2 * LANES));
                    add_input::<ROWS, 3>(&mut sums, &four, weights.add(3 * LANES));
                    k += 4;
                }
                while k < length {
                    let mut four = [vdupq_n_f32(0.0); ROWS];
                    for row in 0..ROWS {
                        four[row] = vdupq_n_f32(*values.add(row * stride + k));
                    }
                    add_input::<ROWS, 0>(&mut sums, &four, weights.add(k * LANES));
                    k += 1;
                }
                for row in 0..ROWS {
                    acc[row][panel].0 = sums[row];
                }
            }
            acc
        }
    }
    #[inline(always)]
    unsafe fn tile_block<const ROWS: usize, const PANELS: usize>(
        activations: *const i8,
        stride: usize,
        _: [i32; ROWS],
        weights: *const u8,
        panel_stride: usize,
        quads: usize,
    ) -> [[Self::Int; PANELS]; ROWS] {
        unsafe { P::tile_block::<ROWS, PANELS>(activations, stride, weights, panel_stride, quads) }
    }
    #[inline(always)]
    unsafe fn few_block<const ROWS: usize>(
        activations: *const i8,
        stride: usize,
        corrections: [i32; ROWS],
        weights: *const u8,
        quads: usize,
    ) -> [Self::Int; ROWS] {
        unsafe { P::few_block::<ROWS>(activations, stride, corrections, weights, quads) }
    }
    #[inline(always)]
    unsafe fn few_nibbles<const ROWS: usize>(
        activations: *const i8,
        stride: usize,
        corrections: [i32; ROWS],
        nibbles: *const u8,
    ) -> [Self::Int; ROWS] {
        unsafe { P::few_nibbles::<ROWS>(activations, stride, corrections, nibbles) }
    }
}

/// Adds the products of sixteen weights with one of four numbers of each row.
#[inline(always)]
unsafe fn add_input<const ROWS: usize, const LANE: i32>(
    sums: &mut [[float32x4_t; 4]; ROWS],
    four: &[float32x4_t; ROWS],
    weights: *const f32,
) {
    for i in 0..4 {
        // SAFETY: there are sixteen weights.
        let weights = unsafe { vld1q_f32(weights.add(4 * i)) };
        for row in 0..ROWS {
            // By name: the compiler loads numbers ahead until registers run out.
            // SAFETY: every AArch64 has it; it touches no memory.
            unsafe {
                asm!("fmla {0:v}.4s, {1:v}.4s, {2:v}.s[{3}]",
                    inout(vreg) sums[row][i], in(vreg) weights, in(vreg) four[row], const LANE,
                    options(pure, nomem, nostack));
            }
        }
    }
}

/// Eight pairs.
#[inline(always)]
unsafe fn interleave<P>(a: [float32x4_t; 2], b: [float32x4_t; 2]) -> Four<P> {
    unsafe {
        Four(
            [
                vzip1q_f32(a[0], b[0]),
                vzip2q_f32(a[0], b[0]),
                vzip1q_f32(a[1], b[1]),
                vzip2q_f32(a[1], b[1]),
            ],
            PhantomData,
        )
    }
}

/// Eight half-precision numbers. The intrinsics for it want a type that is not stable.
#[inline(always)]
unsafe fn from_half(halves: uint16x8_t) -> [float32x4_t; 2] {
    let (low, high): (float32x4_t, float32x4_t);
    // SAFETY: every AArch64 has the instructions; they touch no memory.
    unsafe {
        asm!("fcvtl {0:v}.4s, {1:v}.4h", out(vreg) low, in(vreg) halves,
            options(pure, nomem, nostack));
        asm!("fcvtl2 {0:v}.4s, {1:v}.8h", out(vreg) high, in(vreg) halves,
            options(pure, nomem, nostack));
    }
    [low, high]
}

#[inline(always)]
unsafe fn scale_by_power(value: float32x4_t, exponent: float32x4_t) -> float32x4_t {
    unsafe {
        let biased = vaddq_s32(vcvtq_s32_f32(exponent), vdupq_n_s32(127));
        vmulq_f32(value, vreinterpretq_f32_s32(vshlq_n_s32::<23>(biased)))
    }
}

/// The low halves of eight int32.
#[inline(always)]
unsafe fn narrow(a: int32x4_t, b: int32x4_t) -> int16x8_t {
    unsafe { vuzp1q_s16(vreinterpretq_s16_s32(a), vreinterpretq_s16_s32(b)) }
}

/// The low halves of sixteen int16.
#[inline(always)]
unsafe fn narrow_words(a: int16x8_t, b: int16x8_t) -> int8x16_t {
    unsafe { vuzp1q_s8(vreinterpretq_s8_s16(a), vreinterpretq_s8_s16(b)) }
}

/// The first or last four numbers, each four times.
#[inline(always)]
unsafe fn each_four_times(words: int16x8_t, last: bool) -> [int16x8_t; 2] {
    unsafe {
        let twice = if last {
            vzip2q_s16(words, words)
        } else {
            vzip1q_s16(words, words)
        };
        let twice = vreinterpretq_s32_s16(twice);
        [
            vreinterpretq_s16_s32(vzip1q_s32(twice, twice)),
            vreinterpretq_s16_s32(vzip2q_s32(twice, twice)),
        ]
    }
}

/// `round(values * ratios / 32768)`
#[inline(always)]
unsafe fn scaled(values: int8x16_t, [low, high]: [int16x8_t; 2]) -> int8x16_t {
    unsafe {
        let low = vqrdmulhq_s16(vmovl_s8(vget_low_s8(values)), low);
        narrow_words(low, vqrdmulhq_s16(vmovl_high_s8(values), high))
    }
}
