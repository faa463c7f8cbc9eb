//! Which vector instructions does this processor have, and how is a kernel written once for all of them?
//!
//! A kernel is a generic function over [`Lanes`], sixteen numbers side by side. `dispatch!` compiles
//! it once for each instruction set and calls the best that the processor has. Nothing here allocates.

use std::sync::OnceLock;

/// The instruction sets that kernels are compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Isa {
    /// Whatever the compiler makes of plain arrays: SSE2 on x86-64, NEON on AArch64.
    Portable,
    /// AVX2 with FMA and F16C.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// AVX-512 F, BW, DQ, VL and VNNI.
    #[cfg(target_arch = "x86_64")]
    Avx512Vnni,
}

impl Isa {
    /// The best of this processor, found once.
    pub fn detect() -> Isa {
        static BEST: OnceLock<Isa> = OnceLock::new();
        *BEST.get_or_init(|| Isa::available().last().copied().unwrap_or(Isa::Portable))
    }

    /// All that this processor has, the best last.
    pub fn available() -> Vec<Isa> {
        #[allow(unused_mut)]
        let mut sets = vec![Isa::Portable];
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("fma")
                && is_x86_feature_detected!("f16c")
            {
                sets.push(Isa::Avx2);
            }
            if is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl")
                && is_x86_feature_detected!("avx512vnni")
                && sets.contains(&Isa::Avx2)
            {
                sets.push(Isa::Avx512Vnni);
            }
        }
        sets
    }

    /// Name for reports.
    pub fn name(self) -> &'static str {
        match self {
            Isa::Portable => "portable",
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => "avx2",
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Vnni => "avx512-vnni",
        }
    }
}

/// Compiles `$body::<V>($args)` once for each instruction set and calls the one asked for.
///
/// `$body` is an `#[inline(always)] unsafe fn` generic over [`Lanes`] that takes exactly the given arguments.
macro_rules! dispatch {
    ($isa:expr, $body:ident($($arg:ident: $type:ty),* $(,)?) $(-> $out:ty)?) => {{
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
        #[allow(clippy::too_many_arguments)]
        unsafe fn avx512($($arg: $type),*) $(-> $out)? {
            // SAFETY: this function is compiled for the set.
            unsafe { $body::<$crate::isa::Avx512>($($arg),*) }
        }
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx2,fma,f16c")]
        #[allow(clippy::too_many_arguments)]
        unsafe fn avx2($($arg: $type),*) $(-> $out)? {
            // SAFETY: this function is compiled for the set.
            unsafe { $body::<$crate::isa::Avx2>($($arg),*) }
        }
        // SAFETY: an `Isa` other than `Portable` exists only where the processor has it.
        match $isa {
            $crate::isa::Isa::Portable => unsafe { $body::<$crate::isa::Portable>($($arg),*) },
            #[cfg(target_arch = "x86_64")]
            $crate::isa::Isa::Avx2 => unsafe { avx2($($arg),*) },
            #[cfg(target_arch = "x86_64")]
            $crate::isa::Isa::Avx512Vnni => unsafe { avx512($($arg),*) },
        }
    }};
}
pub(crate) use dispatch;

/// Number of lanes in every [`Lanes`].
pub const LANES: usize = 16;

/// Bytes between the weights that are multiplied and those to [`prefetch`], where they are read from memory in order.
pub const AHEAD: usize = 8192;

/// Asks for the cache line at an address, which need not be valid, where the processor has an instruction for it.
#[inline(always)]
pub fn prefetch<T>(address: *const T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: part of every x86-64; it reads nothing and never faults.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T1>(address.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}

/// Sixteen float32 side by side, with sixteen int32 for exact sums of products of bytes.
///
/// # Safety
/// Every method may use instructions of the implementation's own set: call it only inside a function that
/// `dispatch!` has compiled for that set. Pointers must be valid for 16 elements (64 bytes for
/// [`Lanes::dot`] and [`Lanes::dot_nibbles`]); they need no alignment.
pub unsafe trait Lanes: Copy {
    /// Sixteen int32.
    type Int: Copy;
    /// Rows of a matrix product's tile for which there are registers enough.
    const TILE_ROWS: usize;
    /// Vectors in each of those rows.
    const TILE_VECTORS: usize;
    /// How many of these the registers hold at once: what a kernel's tile is cut to.
    const REGISTERS: usize;

    /// The same number in every lane.
    unsafe fn splat(value: f32) -> Self;
    /// Sixteen numbers from memory.
    unsafe fn load(from: *const f32) -> Self;
    /// Sixteen half-precision numbers from memory.
    unsafe fn load_f16(from: *const u16) -> Self;
    /// Sixteen numbers to memory.
    unsafe fn store(self, to: *mut f32);
    /// `self + other`
    unsafe fn add(self, other: Self) -> Self;
    /// `self - other`
    unsafe fn sub(self, other: Self) -> Self;
    /// `self * other`
    unsafe fn mul(self, other: Self) -> Self;
    /// `self / other`
    unsafe fn div(self, other: Self) -> Self;
    /// `self * b + c`, rounded once where the set has that.
    unsafe fn mul_add(self, b: Self, c: Self) -> Self;
    /// The larger of each pair; NaN is ignored or kept, whichever is faster.
    unsafe fn max(self, other: Self) -> Self;
    /// The smaller of each pair.
    unsafe fn min(self, other: Self) -> Self;
    /// Magnitudes.
    unsafe fn abs(self) -> Self;
    /// The magnitude of `self` with the sign of `sign`.
    unsafe fn copysign(self, sign: Self) -> Self;
    /// Nearest whole number, halves to even. Magnitudes below 2^22.
    unsafe fn round(self) -> Self;
    /// `self * 2^exponent` for whole exponents in -126..=127 (given as float32).
    unsafe fn scale_by_power(self, exponent: Self) -> Self;
    /// The lanes of both in turn: `self[0], other[0], self[1], ..`, thirty-two numbers.
    unsafe fn interleave(self, other: Self) -> [Self; 2];
    /// Sum of the lanes.
    unsafe fn sum(self) -> f32;
    /// Largest lane.
    unsafe fn max_lane(self) -> f32;
    /// Nearest whole numbers (halves to even) as signed bytes; lanes must lie in -127..=127.
    unsafe fn store_i8(self, to: *mut i8);

    /// Sixteen times the same int32.
    unsafe fn int_splat(value: i32) -> Self::Int;
    /// `a + b`
    unsafe fn int_add(a: Self::Int, b: Self::Int) -> Self::Int;
    /// Converted to float32.
    unsafe fn from_int(value: Self::Int) -> Self;
    /// Sixteen bytes (unsigned) as float32.
    unsafe fn load_u8(from: *const u8) -> Self;
    /// `acc[lane] += sum over i < 4 of weights[4 * lane + i] * activations[i]`: `weights` are 64 unsigned bytes,
    /// `activations` four signed ones.
    unsafe fn dot(acc: Self::Int, weights: *const u8, activations: [i8; 4]) -> Self::Int;
    /// Two [`Lanes::dot`]s over 64 bytes of nibbles: the low ones (0..=15) times `low`, the high ones times `high`.
    unsafe fn dot_nibbles(acc: Self::Int, weights: *const u8, low: [i8; 4], high: [i8; 4]) -> Self::Int;
    /// Sixteen int32 from memory.
    unsafe fn int_load(from: *const i32) -> Self::Int;
    /// `acc[lane] += sum over i < 4 of weights[4 * lane + i] * activations[4 * lane + i]`, 64 bytes of each.
    unsafe fn dot_bytes(acc: Self::Int, weights: *const u8, activations: *const i8) -> Self::Int;
    /// Two [`Lanes::dot_bytes`] over 64 bytes of nibbles: the low ones (0..=15) times the first 64 activations, the high
    /// ones times the next 64.
    unsafe fn dot_plane(acc: Self::Int, weights: *const u8, activations: *const i8) -> Self::Int;
    /// 64 bytes of nibbles to 128 bytes: `128 + round((nibble - 8) * ratios[lane] / 2048)`, the low nibbles' to `low`
    /// and the high ones' to `high`. A lane is four bytes; ratios are whole numbers in -32512..=32512.
    unsafe fn spread_nibbles(weights: *const u8, ratios: Self, low: *mut u8, high: *mut u8);
}

/// Plain arrays: the reference for the others, and what processors without a set of their own run.
#[derive(Debug, Clone, Copy)]
pub struct Portable([f32; LANES]);

/// `map(|i| ..)` over the lanes.
#[inline(always)]
fn each(mut f: impl FnMut(usize) -> f32) -> Portable {
    let mut out = [0.0; LANES];
    for (i, value) in out.iter_mut().enumerate() {
        *value = f(i);
    }
    Portable(out)
}

// SAFETY: no instruction beyond the target's own.
#[allow(clippy::indexing_slicing)]
unsafe impl Lanes for Portable {
    type Int = [i32; LANES];
    const TILE_ROWS: usize = 2;
    const TILE_VECTORS: usize = 1;
    const REGISTERS: usize = 4;

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        Portable([value; LANES])
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        Portable(unsafe { from.cast::<[f32; LANES]>().read_unaligned() })
    }
    #[inline(always)]
    unsafe fn load_f16(from: *const u16) -> Self {
        let bits = unsafe { from.cast::<[u16; LANES]>().read_unaligned() };
        each(|i| half::f16::from_bits(bits[i]).to_f32())
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        unsafe { to.cast::<[f32; LANES]>().write_unaligned(self.0) }
    }
    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        each(|i| self.0[i] + other.0[i])
    }
    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        each(|i| self.0[i] - other.0[i])
    }
    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        each(|i| self.0[i] * other.0[i])
    }
    #[inline(always)]
    unsafe fn div(self, other: Self) -> Self {
        each(|i| self.0[i] / other.0[i])
    }
    #[inline(always)]
    unsafe fn mul_add(self, b: Self, c: Self) -> Self {
        // Not `f32::mul_add`: without an instruction for it that is a call of a library function.
        each(|i| self.0[i] * b.0[i] + c.0[i])
    }
    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        each(|i| {
            if self.0[i] > other.0[i] {
                self.0[i]
            } else {
                other.0[i]
            }
        })
    }
    #[inline(always)]
    unsafe fn min(self, other: Self) -> Self {
        each(|i| {
            if self.0[i] < other.0[i] {
                self.0[i]
            } else {
                other.0[i]
            }
        })
    }
    #[inline(always)]
    unsafe fn abs(self) -> Self {
        each(|i| self.0[i].abs())
    }
    #[inline(always)]
    unsafe fn copysign(self, sign: Self) -> Self {
        each(|i| self.0[i].copysign(sign.0[i]))
    }
    #[inline(always)]
    unsafe fn round(self) -> Self {
        // Adding 1.5 * 2^23 leaves no bits for a fraction, and the adder rounds halves to even.
        const MAGIC: f32 = 12_582_912.0;
        each(|i| (self.0[i] + MAGIC) - MAGIC)
    }
    #[inline(always)]
    unsafe fn scale_by_power(self, exponent: Self) -> Self {
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        each(|i| self.0[i] * f32::from_bits(((exponent.0[i] as i32 + 127) << 23) as u32))
    }
    #[inline(always)]
    unsafe fn interleave(self, other: Self) -> [Self; 2] {
        let at = |i: usize| {
            if i.is_multiple_of(2) {
                self.0[i / 2]
            } else {
                other.0[i / 2]
            }
        };
        [each(at), each(|i| at(i + LANES))]
    }
    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        let mut parts = self.0;
        let mut width = LANES / 2;
        while width > 0 {
            for i in 0..width {
                parts[i] += parts[i + width];
            }
            width /= 2;
        }
        parts[0]
    }
    #[inline(always)]
    unsafe fn max_lane(self) -> f32 {
        self.0.iter().copied().fold(f32::NEG_INFINITY, f32::max)
    }
    #[inline(always)]
    unsafe fn store_i8(self, to: *mut i8) {
        let whole = unsafe { self.round() };
        let mut bytes = [0_i8; LANES];
        for (byte, value) in bytes.iter_mut().zip(whole.0) {
            #[allow(clippy::cast_possible_truncation)]
            let narrow = value as i8;
            *byte = narrow;
        }
        unsafe { to.cast::<[i8; LANES]>().write_unaligned(bytes) }
    }

    #[inline(always)]
    unsafe fn int_splat(value: i32) -> Self::Int {
        [value; LANES]
    }
    #[inline(always)]
    unsafe fn int_add(mut a: Self::Int, b: Self::Int) -> Self::Int {
        for (a, b) in a.iter_mut().zip(b) {
            *a += b;
        }
        a
    }
    #[inline(always)]
    unsafe fn from_int(value: Self::Int) -> Self {
        #[allow(clippy::cast_precision_loss)]
        each(|i| value[i] as f32)
    }
    #[inline(always)]
    unsafe fn load_u8(from: *const u8) -> Self {
        let bytes = unsafe { from.cast::<[u8; LANES]>().read_unaligned() };
        each(|i| f32::from(bytes[i]))
    }
    #[inline(always)]
    unsafe fn dot(mut acc: Self::Int, weights: *const u8, activations: [i8; 4]) -> Self::Int {
        let weights = unsafe { weights.cast::<[u8; 4 * LANES]>().read_unaligned() };
        let [a, b, c, d] = activations.map(i32::from);
        for (lane, acc) in acc.iter_mut().enumerate() {
            let at = |i: usize| i32::from(weights[4 * lane + i]);
            *acc += at(0) * a + at(1) * b + at(2) * c + at(3) * d;
        }
        acc
    }
    #[inline(always)]
    unsafe fn dot_nibbles(mut acc: Self::Int, weights: *const u8, low: [i8; 4], high: [i8; 4]) -> Self::Int {
        let weights = unsafe { weights.cast::<[u8; 4 * LANES]>().read_unaligned() };
        let (low, high) = (low.map(i32::from), high.map(i32::from));
        for (lane, acc) in acc.iter_mut().enumerate() {
            for i in 0..4 {
                let byte = i32::from(weights[4 * lane + i]);
                *acc += (byte & 15) * low[i] + (byte >> 4) * high[i];
            }
        }
        acc
    }
    #[inline(always)]
    unsafe fn int_load(from: *const i32) -> Self::Int {
        unsafe { from.cast::<[i32; LANES]>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn dot_bytes(mut acc: Self::Int, weights: *const u8, activations: *const i8) -> Self::Int {
        let weights = unsafe { weights.cast::<[u8; 4 * LANES]>().read_unaligned() };
        let activations = unsafe { activations.cast::<[i8; 4 * LANES]>().read_unaligned() };
        for (lane, acc) in acc.iter_mut().enumerate() {
            for i in 4 * lane..4 * lane + 4 {
                *acc += i32::from(weights[i]) * i32::from(activations[i]);
            }
        }
        acc
    }
    #[inline(always)]
    unsafe fn dot_plane(mut acc: Self::Int, weights: *const u8, activations: *const i8) -> Self::Int {
        let weights = unsafe { weights.cast::<[u8; 4 * LANES]>().read_unaligned() };
        let activations = unsafe { activations.cast::<[i8; 8 * LANES]>().read_unaligned() };
        for (lane, acc) in acc.iter_mut().enumerate() {
            for i in 4 * lane..4 * lane + 4 {
                *acc += i32::from(weights[i] & 15) * i32::from(activations[i]);
                *acc += i32::from(weights[i] >> 4) * i32::from(activations[4 * LANES + i]);
            }
        }
        acc
    }
    #[inline(always)]
    unsafe fn spread_nibbles(weights: *const u8, ratios: Self, low: *mut u8, high: *mut u8) {
        let weights = unsafe { weights.cast::<[u8; 4 * LANES]>().read_unaligned() };
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let spread = |nibble: u8, i: usize| {
            let product = (i32::from(nibble) - 8) * 16 * ratios.0[i / 4] as i32;
            (128 + ((product + 0x4000) >> 15)) as u8
        };
        let (mut lows, mut highs) = ([0; 4 * LANES], [0; 4 * LANES]);
        for (i, byte) in weights.into_iter().enumerate() {
            lows[i] = spread(byte & 15, i);
            highs[i] = spread(byte >> 4, i);
        }
        unsafe {
            low.cast::<[u8; 4 * LANES]>().write_unaligned(lows);
            high.cast::<[u8; 4 * LANES]>().write_unaligned(highs);
        }
    }
}

#[cfg(target_arch = "x86_64")]
pub use x86::{Avx2, Avx512};

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::Lanes;
    use std::arch::x86_64::*;

    /// One AVX-512 register.
    #[derive(Debug, Clone, Copy)]
    pub struct Avx512(__m512);

    // SAFETY: the instructions are of AVX-512 F, BW, DQ, VL, VNNI, AVX2 and F16C.
    unsafe impl Lanes for Avx512 {
        type Int = __m512i;
        const TILE_ROWS: usize = 12;
        const TILE_VECTORS: usize = 2;
        const REGISTERS: usize = 32;

        #[inline(always)]
        unsafe fn splat(value: f32) -> Self {
            Avx512(unsafe { _mm512_set1_ps(value) })
        }
        #[inline(always)]
        unsafe fn load(from: *const f32) -> Self {
            Avx512(unsafe { _mm512_loadu_ps(from) })
        }
        #[inline(always)]
        unsafe fn load_f16(from: *const u16) -> Self {
            Avx512(unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.cast())) })
        }
        #[inline(always)]
        unsafe fn store(self, to: *mut f32) {
            unsafe { _mm512_storeu_ps(to, self.0) }
        }
        #[inline(always)]
        unsafe fn add(self, other: Self) -> Self {
            Avx512(unsafe { _mm512_add_ps(self.0, other.0) })
        }
        #[inline(always)]
        unsafe fn sub(self, other: Self) -> Self {
            Avx512(unsafe { _mm512_sub_ps(self.0, other.0) })
        }
        #[inline(always)]
        unsafe fn mul(self, other: Self) -> Self {
            Avx512(unsafe { _mm512_mul_ps(self.0, other.0) })
        }
        #[inline(always)]
        unsafe fn div(self, other: Self) -> Self {
            Avx512(unsafe { _mm512_div_ps(self.0, other.0) })
        }
        #[inline(always)]
        unsafe fn mul_add(self, b: Self, c: Self) -> Self {
            Avx512(unsafe { _mm512_fmadd_ps(self.0, b.0, c.0) })
        }
        #[inline(always)]
        unsafe fn max(self, other: Self) -> Self {
            Avx512(unsafe { _mm512_max_ps(self.0, other.0) })
        }
        #[inline(always)]
        unsafe fn min(self, other: Self) -> Self {
            Avx512(unsafe { _mm512_min_ps(self.0, other.0) })
        }
        #[inline(always)]
        unsafe fn abs(self) -> Self {
            Avx512(unsafe { _mm512_abs_ps(self.0) })
        }
        #[inline(always)]
        unsafe fn copysign(self, sign: Self) -> Self {
            unsafe {
                let mask = _mm512_set1_ps(-0.0);
                Avx512(_mm512_or_ps(
                    _mm512_andnot_ps(mask, self.0),
                    _mm512_and_ps(mask, sign.0),
                ))
            }
        }
        #[inline(always)]
        unsafe fn round(self) -> Self {
            Avx512(unsafe {
                _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(self.0)
            })
        }
        #[inline(always)]
        unsafe fn scale_by_power(self, exponent: Self) -> Self {
            Avx512(unsafe { _mm512_scalef_ps(self.0, exponent.0) })
        }
        #[inline(always)]
        unsafe fn interleave(self, other: Self) -> [Self; 2] {
            unsafe {
                let low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
                let high = _mm512_add_epi32(low, _mm512_set1_epi32(8));
                [low, high].map(|order| Avx512(_mm512_permutex2var_ps(self.0, order, other.0)))
            }
        }
        #[inline(always)]
        unsafe fn sum(self) -> f32 {
            unsafe { _mm512_reduce_add_ps(self.0) }
        }
        #[inline(always)]
        unsafe fn max_lane(self) -> f32 {
            unsafe { _mm512_reduce_max_ps(self.0) }
        }
        #[inline(always)]
        unsafe fn store_i8(self, to: *mut i8) {
            unsafe { _mm_storeu_si128(to.cast(), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(self.0))) }
        }

        #[inline(always)]
        unsafe fn int_splat(value: i32) -> Self::Int {
            unsafe { _mm512_set1_epi32(value) }
        }
        #[inline(always)]
        unsafe fn int_add(a: Self::Int, b: Self::Int) -> Self::Int {
            unsafe { _mm512_add_epi32(a, b) }
        }
        #[inline(always)]
        unsafe fn from_int(value: Self::Int) -> Self {
            Avx512(unsafe { _mm512_cvtepi32_ps(value) })
        }
        #[inline(always)]
        unsafe fn load_u8(from: *const u8) -> Self {
            Avx512(unsafe { _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(from.cast()))) })
        }
        #[inline(always)]
        unsafe fn dot(acc: Self::Int, weights: *const u8, activations: [i8; 4]) -> Self::Int {
            unsafe {
                let weights = _mm512_loadu_si512(weights.cast());
                let activations = _mm512_set1_epi32(i32::from_ne_bytes(activations.map(i8::cast_unsigned)));
                _mm512_dpbusd_epi32(acc, weights, activations)
            }
        }
        #[inline(always)]
        unsafe fn dot_nibbles(acc: Self::Int, weights: *const u8, low: [i8; 4], high: [i8; 4]) -> Self::Int {
            unsafe {
                let weights = _mm512_loadu_si512(weights.cast());
                let mask = _mm512_set1_epi8(15);
                let lows = _mm512_and_si512(weights, mask);
                let highs = _mm512_and_si512(_mm512_srli_epi16::<4>(weights), mask);
                let low = _mm512_set1_epi32(i32::from_ne_bytes(low.map(i8::cast_unsigned)));
                let high = _mm512_set1_epi32(i32::from_ne_bytes(high.map(i8::cast_unsigned)));
                _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(acc, lows, low), highs, high)
            }
        }
        #[inline(always)]
        unsafe fn int_load(from: *const i32) -> Self::Int {
            unsafe { _mm512_loadu_si512(from.cast()) }
        }
        #[inline(always)]
        unsafe fn dot_bytes(acc: Self::Int, weights: *const u8, activations: *const i8) -> Self::Int {
            unsafe {
                let weights = _mm512_loadu_si512(weights.cast());
                _mm512_dpbusd_epi32(acc, weights, _mm512_loadu_si512(activations.cast()))
            }
        }
        #[inline(always)]
        unsafe fn dot_plane(acc: Self::Int, weights: *const u8, activations: *const i8) -> Self::Int {
            unsafe {
                let weights = _mm512_loadu_si512(weights.cast());
                let mask = _mm512_set1_epi8(15);
                let low = _mm512_and_si512(weights, mask);
                let high = _mm512_and_si512(_mm512_srli_epi16::<4>(weights), mask);
                let acc = _mm512_dpbusd_epi32(acc, low, _mm512_loadu_si512(activations.cast()));
                _mm512_dpbusd_epi32(acc, high, _mm512_loadu_si512(activations.add(64).cast()))
            }
        }
        #[inline(always)]
        unsafe fn spread_nibbles(weights: *const u8, ratios: Self, low: *mut u8, high: *mut u8) {
            unsafe {
                let weights = _mm512_loadu_si512(weights.cast());
                let mask = _mm512_set1_epi16(15);
                let ratios = _mm512_cvtps_epi32(ratios.0);
                // Both halves of each lane.
                let ratios = _mm512_mask_blend_epi16(0xaaaa_aaaa, ratios, _mm512_slli_epi32::<16>(ratios));
                // One nibble in each 16 bits, to a byte in each.
                let spread = |nibbles: __m512i| {
                    let centred = _mm512_sub_epi16(_mm512_slli_epi16::<4>(nibbles), _mm512_set1_epi16(128));
                    _mm512_add_epi16(_mm512_mulhrs_epi16(centred, ratios), _mm512_set1_epi16(128))
                };
                let pair = |even: __m512i, odd: __m512i| {
                    _mm512_or_si512(spread(even), _mm512_slli_epi16::<8>(spread(odd)))
                };
                let lows = pair(
                    _mm512_and_si512(weights, mask),
                    _mm512_and_si512(_mm512_srli_epi16::<8>(weights), mask),
                );
                let highs = pair(
                    _mm512_and_si512(_mm512_srli_epi16::<4>(weights), mask),
                    _mm512_srli_epi16::<12>(weights),
                );
                _mm512_storeu_si512(low.cast(), lows);
                _mm512_storeu_si512(high.cast(), highs);
            }
        }
    }

    /// Two AVX2 registers.
    #[derive(Debug, Clone, Copy)]
    pub struct Avx2([__m256; 2]);

    /// `[f(a[0], b[0]), f(a[1], b[1])]`
    #[inline(always)]
    fn both(a: Avx2, b: Avx2, f: impl Fn(__m256, __m256) -> __m256) -> Avx2 {
        let ([a0, a1], [b0, b1]) = (a.0, b.0);
        Avx2([f(a0, b0), f(a1, b1)])
    }

    /// Adds the products of unsigned with signed bytes, four to a lane: through 16 bits, which cannot overflow.
    #[inline(always)]
    unsafe fn dot8(acc: __m256i, weights: __m256i, activations: __m256i) -> __m256i {
        unsafe {
            let low = _mm256_and_si256(weights, _mm256_set1_epi16(0xff));
            let high = _mm256_srli_epi16::<8>(weights);
            let low_a = _mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(activations));
            let high_a = _mm256_srai_epi16::<8>(activations);
            let sum = _mm256_add_epi32(_mm256_madd_epi16(low, low_a), _mm256_madd_epi16(high, high_a));
            _mm256_add_epi32(acc, sum)
        }
    }

    // SAFETY: the instructions are of AVX2, FMA and F16C.
    unsafe impl Lanes for Avx2 {
        type Int = [__m256i; 2];
        const TILE_ROWS: usize = 4;
        const TILE_VECTORS: usize = 1;
        const REGISTERS: usize = 8;

        #[inline(always)]
        unsafe fn splat(value: f32) -> Self {
            Avx2([unsafe { _mm256_set1_ps(value) }; 2])
        }
        #[inline(always)]
        unsafe fn load(from: *const f32) -> Self {
            Avx2(unsafe { [_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(8))] })
        }
        #[inline(always)]
        unsafe fn load_f16(from: *const u16) -> Self {
            unsafe {
                Avx2([
                    _mm256_cvtph_ps(_mm_loadu_si128(from.cast())),
                    _mm256_cvtph_ps(_mm_loadu_si128(from.add(8).cast())),
                ])
            }
        }
        #[inline(always)]
        unsafe fn store(self, to: *mut f32) {
            let [low, high] = self.0;
            unsafe {
                _mm256_storeu_ps(to, low);
                _mm256_storeu_ps(to.add(8), high);
            }
        }
        #[inline(always)]
        unsafe fn add(self, other: Self) -> Self {
            both(self, other, |a, b| unsafe { _mm256_add_ps(a, b) })
        }
        #[inline(always)]
        unsafe fn sub(self, other: Self) -> Self {
            both(self, other, |a, b| unsafe { _mm256_sub_ps(a, b) })
        }
        #[inline(always)]
        unsafe fn mul(self, other: Self) -> Self {
            both(self, other, |a, b| unsafe { _mm256_mul_ps(a, b) })
        }
        #[inline(always)]
        unsafe fn div(self, other: Self) -> Self {
            both(self, other, |a, b| unsafe { _mm256_div_ps(a, b) })
        }
        #[inline(always)]
        unsafe fn mul_add(self, b: Self, c: Self) -> Self {
            let ([a0, a1], [b0, b1], [c0, c1]) = (self.0, b.0, c.0);
            Avx2(unsafe { [_mm256_fmadd_ps(a0, b0, c0), _mm256_fmadd_ps(a1, b1, c1)] })
        }
        #[inline(always)]
        unsafe fn max(self, other: Self) -> Self {
            both(self, other, |a, b| unsafe { _mm256_max_ps(a, b) })
        }
        #[inline(always)]
        unsafe fn min(self, other: Self) -> Self {
            both(self, other, |a, b| unsafe { _mm256_min_ps(a, b) })
        }
        #[inline(always)]
        unsafe fn abs(self) -> Self {
            let [low, high] = self.0;
            unsafe {
                let mask = _mm256_set1_ps(-0.0);
                Avx2([_mm256_andnot_ps(mask, low), _mm256_andnot_ps(mask, high)])
            }
        }
        #[inline(always)]
        unsafe fn copysign(self, sign: Self) -> Self {
            both(self, sign, |value, sign| unsafe {
                let mask = _mm256_set1_ps(-0.0);
                _mm256_or_ps(_mm256_andnot_ps(mask, value), _mm256_and_ps(mask, sign))
            })
        }
        #[inline(always)]
        unsafe fn round(self) -> Self {
            let [low, high] = self.0;
            unsafe {
                Avx2([
                    _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(low),
                    _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(high),
                ])
            }
        }
        #[inline(always)]
        unsafe fn scale_by_power(self, exponent: Self) -> Self {
            both(self, exponent, |value, exponent| unsafe {
                let biased = _mm256_add_epi32(_mm256_cvtps_epi32(exponent), _mm256_set1_epi32(127));
                _mm256_mul_ps(value, _mm256_castsi256_ps(_mm256_slli_epi32::<23>(biased)))
            })
        }
        #[inline(always)]
        unsafe fn interleave(self, other: Self) -> [Self; 2] {
            // Unpacking works within halves of a register.
            let half = |a: __m256, b: __m256| unsafe {
                let (low, high) = (_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
                Avx2([
                    _mm256_permute2f128_ps::<0x20>(low, high),
                    _mm256_permute2f128_ps::<0x31>(low, high),
                ])
            };
            let ([a0, a1], [b0, b1]) = (self.0, other.0);
            [half(a0, b0), half(a1, b1)]
        }
        #[inline(always)]
        unsafe fn sum(self) -> f32 {
            let [low, high] = self.0;
            unsafe {
                let eight = _mm256_add_ps(low, high);
                let four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
                let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
                _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps::<1>(two, two)))
            }
        }
        #[inline(always)]
        unsafe fn max_lane(self) -> f32 {
            let [low, high] = self.0;
            unsafe {
                let eight = _mm256_max_ps(low, high);
                let four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
                let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
                _mm_cvtss_f32(_mm_max_ss(two, _mm_shuffle_ps::<1>(two, two)))
            }
        }
        #[inline(always)]
        unsafe fn store_i8(self, to: *mut i8) {
            let [low, high] = self.0;
            unsafe {
                // Packing works within halves of a register: the permutation puts the lanes back in order.
                let words = _mm256_packs_epi32(_mm256_cvtps_epi32(low), _mm256_cvtps_epi32(high));
                let words = _mm256_permute4x64_epi64::<0b11_01_10_00>(words);
                let bytes = _mm_packs_epi16(
                    _mm256_castsi256_si128(words),
                    _mm256_extracti128_si256::<1>(words),
                );
                _mm_storeu_si128(to.cast(), bytes);
            }
        }

        #[inline(always)]
        unsafe fn int_splat(value: i32) -> Self::Int {
            [unsafe { _mm256_set1_epi32(value) }; 2]
        }
        #[inline(always)]
        unsafe fn int_add([a0, a1]: Self::Int, [b0, b1]: Self::Int) -> Self::Int {
            unsafe { [_mm256_add_epi32(a0, b0), _mm256_add_epi32(a1, b1)] }
        }
        #[inline(always)]
        unsafe fn from_int([low, high]: Self::Int) -> Self {
            Avx2(unsafe { [_mm256_cvtepi32_ps(low), _mm256_cvtepi32_ps(high)] })
        }
        #[inline(always)]
        unsafe fn load_u8(from: *const u8) -> Self {
            unsafe {
                let bytes = _mm_loadu_si128(from.cast());
                let low = _mm256_cvtepu8_epi32(bytes);
                let high = _mm256_cvtepu8_epi32(_mm_unpackhi_epi64(bytes, bytes));
                Avx2([_mm256_cvtepi32_ps(low), _mm256_cvtepi32_ps(high)])
            }
        }
        #[inline(always)]
        unsafe fn dot([low, high]: Self::Int, weights: *const u8, activations: [i8; 4]) -> Self::Int {
            unsafe {
                let activations = _mm256_set1_epi32(i32::from_ne_bytes(activations.map(i8::cast_unsigned)));
                [
                    dot8(low, _mm256_loadu_si256(weights.cast()), activations),
                    dot8(high, _mm256_loadu_si256(weights.add(32).cast()), activations),
                ]
            }
        }
        #[inline(always)]
        unsafe fn dot_nibbles(acc: Self::Int, weights: *const u8, low: [i8; 4], high: [i8; 4]) -> Self::Int {
            unsafe {
                let mask = _mm256_set1_epi8(15);
                let low = _mm256_set1_epi32(i32::from_ne_bytes(low.map(i8::cast_unsigned)));
                let high = _mm256_set1_epi32(i32::from_ne_bytes(high.map(i8::cast_unsigned)));
                let [first, second] = acc;
                // Nibbles are at most 15, so pairs of products fit 16 bits.
                let one = _mm256_set1_epi16(1);
                let add = |acc: __m256i, bytes: __m256i| {
                    let lows = _mm256_and_si256(bytes, mask);
                    let highs = _mm256_and_si256(_mm256_srli_epi16::<4>(bytes), mask);
                    let sums =
                        _mm256_add_epi16(_mm256_maddubs_epi16(lows, low), _mm256_maddubs_epi16(highs, high));
                    _mm256_add_epi32(acc, _mm256_madd_epi16(sums, one))
                };
                [
                    add(first, _mm256_loadu_si256(weights.cast())),
                    add(second, _mm256_loadu_si256(weights.add(32).cast())),
                ]
            }
        }
        #[inline(always)]
        unsafe fn int_load(from: *const i32) -> Self::Int {
            unsafe {
                [
                    _mm256_loadu_si256(from.cast()),
                    _mm256_loadu_si256(from.add(8).cast()),
                ]
            }
        }
        #[inline(always)]
        unsafe fn dot_bytes([low, high]: Self::Int, weights: *const u8, activations: *const i8) -> Self::Int {
            unsafe {
                let load = |i: usize| {
                    (
                        _mm256_loadu_si256(weights.add(i).cast()),
                        _mm256_loadu_si256(activations.add(i).cast()),
                    )
                };
                let ((low_w, low_a), (high_w, high_a)) = (load(0), load(32));
                [dot8(low, low_w, low_a), dot8(high, high_w, high_a)]
            }
        }
        #[inline(always)]
        unsafe fn dot_plane(acc: Self::Int, weights: *const u8, activations: *const i8) -> Self::Int {
            unsafe {
                let mask = _mm256_set1_epi8(15);
                let mut acc = acc;
                for (half, acc) in acc.iter_mut().enumerate() {
                    let weights = _mm256_loadu_si256(weights.add(32 * half).cast());
                    let low = _mm256_and_si256(weights, mask);
                    let high = _mm256_and_si256(_mm256_srli_epi16::<4>(weights), mask);
                    let at = activations.add(32 * half);
                    // Nibbles are at most 15, so four products fit 16 bits.
                    let sums = _mm256_add_epi16(
                        _mm256_maddubs_epi16(low, _mm256_loadu_si256(at.cast())),
                        _mm256_maddubs_epi16(high, _mm256_loadu_si256(at.add(64).cast())),
                    );
                    *acc = _mm256_add_epi32(*acc, _mm256_madd_epi16(sums, _mm256_set1_epi16(1)));
                }
                acc
            }
        }
        #[inline(always)]
        unsafe fn spread_nibbles(weights: *const u8, ratios: Self, low: *mut u8, high: *mut u8) {
            unsafe {
                let mask = _mm256_set1_epi16(15);
                for (half, ratios) in ratios.0.into_iter().enumerate() {
                    let weights = _mm256_loadu_si256(weights.add(32 * half).cast());
                    let ratios = _mm256_cvtps_epi32(ratios);
                    // Both halves of each lane.
                    let ratios = _mm256_blend_epi16::<0b1010_1010>(ratios, _mm256_slli_epi32::<16>(ratios));
                    // One nibble in each 16 bits, to a byte in each.
                    let spread = |nibbles: __m256i| {
                        let centred =
                            _mm256_sub_epi16(_mm256_slli_epi16::<4>(nibbles), _mm256_set1_epi16(128));
                        _mm256_add_epi16(_mm256_mulhrs_epi16(centred, ratios), _mm256_set1_epi16(128))
                    };
                    let pair = |even: __m256i, odd: __m256i| {
                        _mm256_or_si256(spread(even), _mm256_slli_epi16::<8>(spread(odd)))
                    };
                    let lows = pair(
                        _mm256_and_si256(weights, mask),
                        _mm256_and_si256(_mm256_srli_epi16::<8>(weights), mask),
                    );
                    let highs = pair(
                        _mm256_and_si256(_mm256_srli_epi16::<4>(weights), mask),
                        _mm256_srli_epi16::<12>(weights),
                    );
                    _mm256_storeu_si256(low.add(32 * half).cast(), lows);
                    _mm256_storeu_si256(high.add(32 * half).cast(), highs);
                }
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;

    /// Everything that a set computes on the given numbers.
    #[inline(always)]
    unsafe fn everything<V: Lanes>(a: &[f32; 16], b: &[f32; 16], bytes: &[u8; 64]) -> Vec<f32> {
        let mut out = Vec::new();
        let keep = |value: V, out: &mut Vec<f32>| {
            let mut lanes = [0.0; 16];
            unsafe { value.store(lanes.as_mut_ptr()) };
            out.extend(lanes);
        };
        unsafe {
            let (x, y) = (V::load(a.as_ptr()), V::load(b.as_ptr()));
            for value in [
                x.add(y),
                x.sub(y),
                x.mul(y),
                x.div(y),
                x.max(y),
                x.min(y),
                x.abs(),
                x.copysign(y),
                x.round(),
                x.scale_by_power(y.round()),
                V::splat(3.5),
                V::load_u8(bytes.as_ptr()),
            ] {
                keep(value, &mut out);
            }
            for value in x.interleave(y) {
                keep(value, &mut out);
            }
            let halves: Vec<u16> = a.iter().map(|x| half::f16::from_f32(*x).to_bits()).collect();
            keep(V::load_f16(halves.as_ptr()), &mut out);
            out.push(x.max_lane());
            let mut narrow = [0_i8; 16];
            x.store_i8(narrow.as_mut_ptr());
            out.extend(narrow.map(f32::from));
            let acc = V::int_add(V::int_splat(7), V::int_splat(-9));
            keep(
                V::from_int(V::dot(acc, bytes.as_ptr(), [-127, 127, 5, -128])),
                &mut out,
            );
            keep(
                V::from_int(V::dot_nibbles(
                    acc,
                    bytes.as_ptr(),
                    [127, 127, 127, 127],
                    [-3, 9, -127, 1],
                )),
                &mut out,
            );
            let signed: [i8; 64] = std::array::from_fn(|i| (i as i8).wrapping_mul(29));
            let start: [i32; 16] = std::array::from_fn(|i| i as i32 * 1000 - 7000);
            keep(
                V::from_int(V::dot_bytes(
                    V::int_load(start.as_ptr()),
                    bytes.as_ptr(),
                    signed.as_ptr(),
                )),
                &mut out,
            );
            let wide: [i8; 128] = std::array::from_fn(|i| (i as i8).wrapping_mul(29).wrapping_sub(100));
            keep(
                V::from_int(V::dot_plane(
                    V::int_load(start.as_ptr()),
                    bytes.as_ptr(),
                    wide.as_ptr(),
                )),
                &mut out,
            );
            for ratio in [-32512.0, 1.0, 700.0, 20_011.0, 32_512.0] {
                let (mut low, mut high) = ([0_u8; 64], [0_u8; 64]);
                let ratios = V::splat(ratio).add(y.round());
                let ratios = ratios.max(V::splat(-32512.0)).min(V::splat(32512.0));
                V::spread_nibbles(bytes.as_ptr(), ratios, low.as_mut_ptr(), high.as_mut_ptr());
                out.extend(low.map(f32::from));
                out.extend(high.map(f32::from));
            }
        }
        out
    }

    #[test]
    fn every_set_computes_the_same() {
        let a: [f32; 16] = std::array::from_fn(|i| (i as f32 - 7.5) * 3.25);
        let b: [f32; 16] = std::array::from_fn(|i| 5.5 - i as f32);
        let bytes: [u8; 64] = std::array::from_fn(|i| (i * 37 % 256) as u8 | 0x80);
        // SAFETY: each set is available where it is called.
        let expected = unsafe { everything::<Portable>(&a, &b, &bytes) };
        #[cfg(target_arch = "x86_64")]
        for isa in Isa::available() {
            #[target_feature(enable = "avx2,fma,f16c")]
            unsafe fn avx2(a: &[f32; 16], b: &[f32; 16], bytes: &[u8; 64]) -> Vec<f32> {
                unsafe { everything::<Avx2>(a, b, bytes) }
            }
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
            unsafe fn avx512(a: &[f32; 16], b: &[f32; 16], bytes: &[u8; 64]) -> Vec<f32> {
                unsafe { everything::<Avx512>(a, b, bytes) }
            }
            let found = match isa {
                Isa::Portable => continue,
                Isa::Avx2 => unsafe { avx2(&a, &b, &bytes) },
                Isa::Avx512Vnni => unsafe { avx512(&a, &b, &bytes) },
            };
            assert_eq!(found, expected, "{}", isa.name());
        }
    }
}
