//! AVX-512 with VNNI: F, BW, DQ and VL, Intel since 2019 and AMD since 2022. One register has all lanes.

use super::dispatch::features;
use super::lanes::{LANES, Lanes};
use std::arch::x86_64::*;

features!(
    Avx512, is_x86_feature_detected:
    "avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512vnni", "avx2", "fma", "f16c"
);

/// Sixteen vectors to one number each: lanes are folded by what is done with halves, with quarters and so on, of
/// several vectors at once.
macro_rules! combine {
    ($vectors:expr, $fold:ident) => {{
        let vectors: &[Avx512; LANES] = $vectors;
        let mut halves = [_mm512_setzero_ps(); 8];
        for i in 0..8 {
            let (a, b) = (vectors[2 * i].0, vectors[2 * i + 1].0);
            halves[i] = $fold(
                _mm512_shuffle_f32x4::<0x44>(a, b),
                _mm512_shuffle_f32x4::<0xee>(a, b),
            );
        }
        let mut quarters = [_mm512_setzero_ps(); 4];
        for i in 0..4 {
            let (a, b) = (halves[2 * i], halves[2 * i + 1]);
            quarters[i] = $fold(
                _mm512_shuffle_f32x4::<0x88>(a, b),
                _mm512_shuffle_f32x4::<0xdd>(a, b),
            );
        }
        let mut pairs = [_mm512_setzero_ps(); 2];
        for i in 0..2 {
            let (a, b) = (quarters[2 * i], quarters[2 * i + 1]);
            pairs[i] = $fold(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
        }
        let (a, b) = (_mm512_castps_pd(pairs[0]), _mm512_castps_pd(pairs[1]));
        let (low, high) = (_mm512_unpacklo_pd(a, b), _mm512_unpackhi_pd(a, b));
        let folded = $fold(_mm512_castpd_ps(low), _mm512_castpd_ps(high));
        // Of four vectors each, their first, then their second.
        let order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
        let mut numbers = [0.0; LANES];
        _mm512_storeu_ps(numbers.as_mut_ptr(), _mm512_permutexvar_ps(order, folded));
        numbers
    }};
}

/// One register.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Avx512(__m512);

// SAFETY: the instructions are of the features above; registers have the size of the types.
unsafe impl Lanes for Avx512 {
    type Int = __m512i;
    type Bytes = __m512i;
    type Part = Self;
    const TILE_ROWS: usize = 12;
    const TILE_PANELS: usize = 2;
    const KEEPS_SUMS: bool = true;
    const WORD_PAIRS: bool = true;
    const PICKS: bool = true;
    const ATTENTION_ROWS: [usize; 2] = [12, 6];
    const DEPTHWISE_PIXELS: usize = 8;
    const STEM_TILE: (usize, usize) = (8, 3);

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        Avx512(unsafe { _mm512_loadu_ps(from) })
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        unsafe { _mm512_storeu_ps(to, self.0) }
    }
    #[inline(always)]
    unsafe fn int_load(from: *const i32) -> Self::Int {
        unsafe { _mm512_loadu_si512(from.cast()) }
    }
    #[inline(always)]
    unsafe fn int_store(value: Self::Int, to: *mut i32) {
        unsafe { _mm512_storeu_si512(to.cast(), value) }
    }
    #[inline(always)]
    unsafe fn bytes_load(from: *const u8) -> Self::Bytes {
        unsafe { _mm512_loadu_si512(from.cast()) }
    }
    #[inline(always)]
    unsafe fn bytes_store(value: Self::Bytes, to: *mut u8) {
        unsafe { _mm512_storeu_si512(to.cast(), value) }
    }

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        Avx512(unsafe { _mm512_set1_ps(value) })
    }
    #[inline(always)]
    unsafe fn load_f16(from: *const u16) -> Self {
        Avx512(unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.cast())) })
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
    unsafe fn max_abs(self, other: Self) -> Self {
        // The larger magnitude, without a sign.
        Avx512(unsafe { _mm512_range_ps::<0b10_11>(self.0, other.0) })
    }
    #[inline(always)]
    unsafe fn pick(self, numbers: &[f32; 16]) -> Self {
        unsafe {
            let at = _mm512_castps_si512(self.0);
            Avx512(_mm512_permutexvar_ps(at, _mm512_loadu_ps(numbers.as_ptr())))
        }
    }
    #[inline(always)]
    unsafe fn round(self) -> Self {
        Avx512(unsafe { _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(self.0) })
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
            [
                Avx512(_mm512_permutex2var_ps(self.0, low, other.0)),
                Avx512(_mm512_permutex2var_ps(self.0, high, other.0)),
            ]
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
    unsafe fn store_i16(self, to: *mut i16) {
        unsafe { _mm256_storeu_si256(to.cast(), _mm512_cvtepi32_epi16(_mm512_cvtps_epi32(self.0))) }
    }
    #[inline(always)]
    unsafe fn word_products(acc: Self::Int, a: Self::Bytes, b: Self::Bytes) -> Self::Int {
        unsafe { _mm512_dpwssd_epi32(acc, a, b) }
    }
    #[inline(always)]
    unsafe fn max_lanes(vectors: &[Self; LANES]) -> [f32; LANES] {
        unsafe { combine!(vectors, _mm512_max_ps) }
    }
    #[inline(always)]
    unsafe fn sum_lanes(vectors: &[Self; LANES]) -> [f32; LANES] {
        unsafe { combine!(vectors, _mm512_add_ps) }
    }
    #[inline(always)]
    unsafe fn store_block(values: &[Self; 8], factor: Self, to: *mut i8, none: &mut u64) -> Self {
        unsafe {
            // Packing works within quarters of a register: the permutation puts the lanes back in order.
            let order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
            let mut sums = _mm512_setzero_si512();
            for (half, values) in values.chunks_exact(4).enumerate() {
                let whole = |value: &Self| _mm512_cvtps_epi32(_mm512_mul_ps(value.0, factor.0));
                let words = [
                    _mm512_packs_epi32(whole(&values[0]), whole(&values[1])),
                    _mm512_packs_epi32(whole(&values[2]), whole(&values[3])),
                ];
                let bytes = _mm512_packs_epi16(words[0], words[1]);
                let bytes = _mm512_permutexvar_epi32(order, bytes);
                // NaN becomes the least int32, and so -128.
                *none |= _mm512_cmpeq_epi8_mask(bytes, _mm512_set1_epi8(-128));
                sums = _mm512_dpbusd_epi32(sums, _mm512_set1_epi8(1), bytes);
                _mm512_storeu_si512(to.add(64 * half).cast(), bytes);
            }
            Avx512(_mm512_cvtepi32_ps(sums))
        }
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
    unsafe fn bytes_splat(bytes: [i8; 4]) -> Self::Bytes {
        unsafe { _mm512_set1_epi32(i32::from_ne_bytes(bytes.map(i8::cast_unsigned))) }
    }
    #[inline(always)]
    unsafe fn nibbles(bytes: Self::Bytes) -> [Self::Bytes; 2] {
        unsafe {
            let mask = _mm512_set1_epi8(15);
            [
                _mm512_and_si512(bytes, mask),
                _mm512_and_si512(_mm512_srli_epi16::<4>(bytes), mask),
            ]
        }
    }
    #[inline(always)]
    unsafe fn products(acc: Self::Int, weights: Self::Bytes, activations: Self::Bytes) -> Self::Int {
        unsafe { _mm512_dpbusd_epi32(acc, weights, activations) }
    }
    #[inline(always)]
    unsafe fn spread_nibbles(weights: *const u8, ratios: Self, to: *mut u8) {
        unsafe {
            let weights = _mm512_loadu_si512(weights.cast());
            let mask = _mm512_set1_epi16(15);
            let ratios = _mm512_cvtps_epi32(ratios.0);
            // Both halves of each lane.
            let ratios = _mm512_mask_blend_epi16(0xaaaa_aaaa, ratios, _mm512_slli_epi32::<16>(ratios));
            let lows = spread_pair(
                _mm512_and_si512(weights, mask),
                _mm512_and_si512(_mm512_srli_epi16::<8>(weights), mask),
                ratios,
            );
            let highs = spread_pair(
                _mm512_and_si512(_mm512_srli_epi16::<4>(weights), mask),
                _mm512_srli_epi16::<12>(weights),
                ratios,
            );
            _mm512_storeu_si512(to.cast(), lows);
            _mm512_storeu_si512(to.add(64).cast(), highs);
        }
    }
}

/// One nibble in each 16 bits, to a byte in each.
#[inline(always)]
unsafe fn spread(nibbles: __m512i, ratios: __m512i) -> __m512i {
    unsafe {
        let centred = _mm512_sub_epi16(_mm512_slli_epi16::<4>(nibbles), _mm512_set1_epi16(128));
        _mm512_add_epi16(_mm512_mulhrs_epi16(centred, ratios), _mm512_set1_epi16(128))
    }
}

/// The bytes of the even places and those of the odd ones, together.
#[inline(always)]
unsafe fn spread_pair(even: __m512i, odd: __m512i, ratios: __m512i) -> __m512i {
    unsafe { _mm512_or_si512(spread(even, ratios), _mm512_slli_epi16::<8>(spread(odd, ratios))) }
}
