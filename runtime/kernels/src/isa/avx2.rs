//! AVX2 with FMA and F16C: Intel since 2013, AMD since 2015. Two registers have all lanes.
//!
//! Sets with these registers differ in how bytes are multiplied: [`Products`].

#![expect(
    clippy::needless_range_loop,
    reason = "sums of few rows are registers: all arrays by the same index"
)]

use super::dispatch::features;
use super::lanes::{AHEAD, LANES, Lanes, Nibbles, Part, few_nibbles, prefetch};
use std::arch::x86_64::*;
use std::marker::PhantomData;

features!(Avx2, is_x86_feature_detected: "avx2", "fma", "f16c");

/// Lanes in two registers, bytes multiplied as AVX2 can.
pub(crate) type Avx2 = Two<Widened>;

/// Sixteen vectors to one number each: lanes are folded by what is done with halves and quarters of several
/// registers at once.
macro_rules! combine {
    ($vectors:expr, $fold:ident) => {{
        let mut numbers = [0.0; LANES];
        for (eight, to) in $vectors.chunks_exact(8).zip(numbers.chunks_exact_mut(8)) {
            let mut halves = [_mm256_setzero_ps(); 4];
            for i in 0..4 {
                let (a, b) = (eight[2 * i].0, eight[2 * i + 1].0);
                let (a, b) = ($fold(a[0], a[1]), $fold(b[0], b[1]));
                halves[i] = $fold(
                    _mm256_permute2f128_ps::<0x20>(a, b),
                    _mm256_permute2f128_ps::<0x31>(a, b),
                );
            }
            let mut pairs = [_mm256_setzero_ps(); 2];
            for i in 0..2 {
                let (a, b) = (halves[2 * i], halves[2 * i + 1]);
                pairs[i] = $fold(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
            }
            let (a, b) = (_mm256_castps_pd(pairs[0]), _mm256_castps_pd(pairs[1]));
            let (low, high) = (_mm256_unpacklo_pd(a, b), _mm256_unpackhi_pd(a, b));
            let folded = $fold(_mm256_castpd_ps(low), _mm256_castpd_ps(high));
            let order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
            _mm256_storeu_ps(to.as_mut_ptr(), _mm256_permutevar8x32_ps(folded, order));
        }
        numbers
    }};
}

/// Two registers; bytes are multiplied as `P` says.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Two<P>([__m256; 2], PhantomData<P>);

/// How 32 bytes are multiplied.
///
/// # Safety
/// As [`Lanes`]: only instructions of the set.
pub(super) unsafe trait Products: Copy {
    /// [`Lanes::WORDS`]
    const WORDS: bool = false;
    /// [`Lanes::NIBBLES`]: spread, or bytes.
    const NIBBLES: Nibbles = Nibbles::Spread;

    /// Adds the products of signed words, two to a lane.
    ///
    /// # Safety
    /// As [`Lanes`].
    #[inline(always)]
    unsafe fn words(acc: __m256i, a: __m256i, b: __m256i) -> __m256i {
        unsafe { _mm256_add_epi32(acc, _mm256_madd_epi16(a, b)) }
    }

    /// Adds the products of unsigned with signed bytes, four to a lane.
    ///
    /// # Safety
    /// As [`Lanes`].
    unsafe fn bytes(acc: __m256i, weights: __m256i, activations: __m256i) -> __m256i;

    /// The same twice, with weights that are at most 15.
    ///
    /// # Safety
    /// As [`Lanes`].
    #[inline(always)]
    unsafe fn nibbles(acc: __m256i, weights: [__m256i; 2], activations: [__m256i; 2]) -> __m256i {
        unsafe {
            let acc = Self::bytes(acc, weights[0], activations[0]);
            Self::bytes(acc, weights[1], activations[1])
        }
    }
}

/// Products through 16 bits. Tiles have both sides as words. Nibbles stay bytes: the sum of the products with 32
/// nibbles, less 8 times their activations, fits 16 bits, and so it is right even where sums on the way wrap
/// around.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Widened;

// SAFETY: the instructions are of AVX2.
unsafe impl Products for Widened {
    const WORDS: bool = true;
    const NIBBLES: Nibbles = Nibbles::Bytes;

    /// Even and odd bytes apart, widened: their sums cannot overflow.
    #[inline(always)]
    unsafe fn bytes(acc: __m256i, weights: __m256i, activations: __m256i) -> __m256i {
        unsafe {
            let low = _mm256_and_si256(weights, _mm256_set1_epi16(0xff));
            let high = _mm256_srli_epi16::<8>(weights);
            let low_a = _mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(activations));
            let high_a = _mm256_srai_epi16::<8>(activations);
            let sum = _mm256_add_epi32(_mm256_madd_epi16(low, low_a), _mm256_madd_epi16(high, high_a));
            _mm256_add_epi32(acc, sum)
        }
    }
    /// Nibbles are at most 15, so four products fit 16 bits.
    #[inline(always)]
    unsafe fn nibbles(acc: __m256i, weights: [__m256i; 2], activations: [__m256i; 2]) -> __m256i {
        unsafe {
            let sums = _mm256_add_epi16(
                _mm256_maddubs_epi16(weights[0], activations[0]),
                _mm256_maddubs_epi16(weights[1], activations[1]),
            );
            _mm256_add_epi32(acc, _mm256_madd_epi16(sums, _mm256_set1_epi16(1)))
        }
    }
}

/// `$f` of the first registers, then of the second ones.
macro_rules! both {
    ($f:ident($($value:expr),+)) => {
        Two(
            unsafe { [$f($($value.0[0]),+), $f($($value.0[1]),+)] },
            PhantomData,
        )
    };
}

// SAFETY: the instructions are of the features above and of `P`; registers have the size of the types.
unsafe impl<P: Products> Lanes for Two<P> {
    type Int = [__m256i; 2];
    type Bytes = [__m256i; 2];
    const TILE_ROWS: usize = 6;
    const TILE_PANELS: usize = 1;
    const WORDS: bool = P::WORDS;
    const NIBBLES: Nibbles = P::NIBBLES;
    type Part = Eight;
    const WORD_PAIRS: bool = true;
    const ATTENTION_ROWS: [usize; 2] = [4, 4];
    const DEPTHWISE_PIXELS: usize = 4;
    const STEM_TILE: (usize, usize) = (4, 1);

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        unsafe { Two([_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(8))], PhantomData) }
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
    unsafe fn int_load(from: *const i32) -> Self::Int {
        unsafe {
            [
                _mm256_loadu_si256(from.cast()),
                _mm256_loadu_si256(from.add(8).cast()),
            ]
        }
    }
    #[inline(always)]
    unsafe fn int_store([low, high]: Self::Int, to: *mut i32) {
        unsafe {
            _mm256_storeu_si256(to.cast(), low);
            _mm256_storeu_si256(to.add(8).cast(), high);
        }
    }
    #[inline(always)]
    unsafe fn bytes_load(from: *const u8) -> Self::Bytes {
        unsafe { Self::int_load(from.cast()) }
    }
    #[inline(always)]
    unsafe fn bytes_store(value: Self::Bytes, to: *mut u8) {
        unsafe { Self::int_store(value, to.cast()) }
    }

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        Two([unsafe { _mm256_set1_ps(value) }; 2], PhantomData)
    }
    #[inline(always)]
    unsafe fn load_f16(from: *const u16) -> Self {
        unsafe {
            let low = _mm256_cvtph_ps(_mm_loadu_si128(from.cast()));
            Two(
                [low, _mm256_cvtph_ps(_mm_loadu_si128(from.add(8).cast()))],
                PhantomData,
            )
        }
    }
    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        both!(_mm256_add_ps(self, other))
    }
    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        both!(_mm256_sub_ps(self, other))
    }
    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        both!(_mm256_mul_ps(self, other))
    }
    #[inline(always)]
    unsafe fn div(self, other: Self) -> Self {
        both!(_mm256_div_ps(self, other))
    }
    #[inline(always)]
    unsafe fn mul_add(self, b: Self, c: Self) -> Self {
        both!(_mm256_fmadd_ps(self, b, c))
    }
    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        both!(_mm256_max_ps(self, other))
    }
    #[inline(always)]
    unsafe fn min(self, other: Self) -> Self {
        both!(_mm256_min_ps(self, other))
    }
    #[inline(always)]
    unsafe fn abs(self) -> Self {
        both!(abs(self))
    }
    #[inline(always)]
    unsafe fn round(self) -> Self {
        both!(round(self))
    }
    #[inline(always)]
    unsafe fn scale_by_power(self, exponent: Self) -> Self {
        both!(scale_by_power(self, exponent))
    }
    #[inline(always)]
    unsafe fn interleave(self, other: Self) -> [Self; 2] {
        let ([a0, a1], [b0, b1]) = (self.0, other.0);
        unsafe {
            [
                Two(interleave(a0, b0), PhantomData),
                Two(interleave(a1, b1), PhantomData),
            ]
        }
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
    unsafe fn store_i16(self, to: *mut i16) {
        let [low, high] = self.0;
        unsafe {
            let words = _mm256_packs_epi32(_mm256_cvtps_epi32(low), _mm256_cvtps_epi32(high));
            let words = _mm256_permute4x64_epi64::<0b11_01_10_00>(words);
            _mm256_storeu_si256(to.cast(), words);
        }
    }
    #[inline(always)]
    unsafe fn word_products(acc: Self::Int, a: Self::Bytes, b: Self::Bytes) -> Self::Int {
        unsafe { [P::words(acc[0], a[0], b[0]), P::words(acc[1], a[1], b[1])] }
    }
    #[inline(always)]
    unsafe fn max_lanes(vectors: &[Self; LANES]) -> [f32; LANES] {
        unsafe { combine!(vectors, _mm256_max_ps) }
    }
    #[inline(always)]
    unsafe fn sum_lanes(vectors: &[Self; LANES]) -> [f32; LANES] {
        unsafe { combine!(vectors, _mm256_add_ps) }
    }
    #[inline(always)]
    unsafe fn store_block(values: &[Self; 8], factor: Self, to: *mut i8, none: &mut u64) -> Self {
        unsafe {
            // Packing works within halves of a register: the permutation puts the lanes back in order.
            let order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
            let (mut sums, mut bad) = (_mm256_setzero_si256(), _mm256_setzero_si256());
            for (pair, values) in values.chunks_exact(2).enumerate() {
                let words = |value: &Self| {
                    let whole =
                        |half: usize| _mm256_cvtps_epi32(_mm256_mul_ps(value.0[half], factor.0[half]));
                    _mm256_packs_epi32(whole(0), whole(1))
                };
                let bytes = _mm256_packs_epi16(words(&values[0]), words(&values[1]));
                let bytes = _mm256_permutevar8x32_epi32(bytes, order);
                // NaN becomes the least int32, and so -128.
                bad = _mm256_or_si256(bad, _mm256_cmpeq_epi8(bytes, _mm256_set1_epi8(-128)));
                // At most 4 times 2 times 127.
                sums = _mm256_add_epi16(sums, _mm256_maddubs_epi16(_mm256_set1_epi8(1), bytes));
                _mm256_storeu_si256(to.add(32 * pair).cast(), bytes);
            }
            *none |= u64::from(_mm256_testz_si256(bad, bad) == 0);
            let eight = _mm256_cvtepi32_ps(_mm256_madd_epi16(sums, _mm256_set1_epi16(1)));
            Two([eight, _mm256_setzero_ps()], PhantomData)
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
        unsafe { Two([_mm256_cvtepi32_ps(low), _mm256_cvtepi32_ps(high)], PhantomData) }
    }

    #[inline(always)]
    unsafe fn bytes_splat(bytes: [i8; 4]) -> Self::Bytes {
        unsafe { Self::int_splat(i32::from_ne_bytes(bytes.map(i8::cast_unsigned))) }
    }
    #[inline(always)]
    unsafe fn nibbles([first, second]: Self::Bytes) -> [Self::Bytes; 2] {
        unsafe {
            let mask = _mm256_set1_epi8(15);
            [
                [_mm256_and_si256(first, mask), _mm256_and_si256(second, mask)],
                [
                    _mm256_and_si256(_mm256_srli_epi16::<4>(first), mask),
                    _mm256_and_si256(_mm256_srli_epi16::<4>(second), mask),
                ],
            ]
        }
    }
    #[inline(always)]
    unsafe fn products(acc: Self::Int, weights: Self::Bytes, activations: Self::Bytes) -> Self::Int {
        unsafe {
            [
                P::bytes(acc[0], weights[0], activations[0]),
                P::bytes(acc[1], weights[1], activations[1]),
            ]
        }
    }
    #[inline(always)]
    unsafe fn nibble_products(
        acc: Self::Int,
        [low, high]: [Self::Bytes; 2],
        [low_a, high_a]: [Self::Bytes; 2],
    ) -> Self::Int {
        unsafe {
            [
                P::nibbles(acc[0], [low[0], high[0]], [low_a[0], high_a[0]]),
                P::nibbles(acc[1], [low[1], high[1]], [low_a[1], high_a[1]]),
            ]
        }
    }
    #[inline(always)]
    unsafe fn dot_words(acc: Self::Int, weights: *const u8, activations: [i8; 4]) -> Self::Int {
        unsafe {
            let (weights, activations) = (Self::bytes_load(weights), Self::bytes_splat(activations));
            [
                _mm256_add_epi32(acc[0], _mm256_madd_epi16(weights[0], activations[0])),
                _mm256_add_epi32(acc[1], _mm256_madd_epi16(weights[1], activations[1])),
            ]
        }
    }
    #[inline(always)]
    unsafe fn nibble_start(correction: i32) -> Self::Int {
        unsafe { Self::int_splat(correction) }
    }
    #[inline(always)]
    unsafe fn nibble_step(acc: Self::Int, weights: *const u8, activations: [i8; 4]) -> Self::Int {
        unsafe {
            let (weights, activations) = (Self::bytes_load(weights), Self::bytes_splat(activations));
            [
                _mm256_add_epi16(acc[0], _mm256_maddubs_epi16(weights[0], activations[0])),
                _mm256_add_epi16(acc[1], _mm256_maddubs_epi16(weights[1], activations[1])),
            ]
        }
    }
    #[inline(always)]
    unsafe fn nibble_end([low, high]: Self::Int) -> Self::Int {
        unsafe {
            let ones = _mm256_set1_epi16(1);
            [_mm256_madd_epi16(low, ones), _mm256_madd_epi16(high, ones)]
        }
    }
    #[inline(always)]
    unsafe fn nibble_correction(bytes: *const i8) -> i32 {
        unsafe {
            let bytes = _mm256_loadu_si256(bytes.cast());
            // Sums of pairs, eight times: even ones are of places 0 and 1.
            let pairs = _mm256_maddubs_epi16(_mm256_set1_epi8(8), bytes);
            let four = _mm_add_epi16(
                _mm256_castsi256_si128(pairs),
                _mm256_extracti128_si256::<1>(pairs),
            );
            let two = _mm_add_epi16(four, _mm_unpackhi_epi64(four, four));
            let one = _mm_add_epi16(two, _mm_shuffle_epi32::<1>(two));
            _mm_cvtsi128_si32(_mm_sub_epi16(_mm_setzero_si128(), one))
        }
    }
    #[inline(always)]
    unsafe fn few_nibbles<const ROWS: usize>(
        activations: *const i8,
        stride: usize,
        corrections: [i32; ROWS],
        nibbles: *const u8,
    ) -> [Self::Int; ROWS] {
        unsafe {
            if P::NIBBLES == Nibbles::Spread {
                return few_nibbles::<Self, ROWS>(activations, stride, corrections, nibbles);
            }
            // Sums of 16 bits: at most 8 times twice 15 times 127, and then those of 32 bits.
            let mut acc = [[_mm256_setzero_si256(); 2]; ROWS];
            for group in 0..4 {
                let weights = nibbles.add(group * 4 * LANES);
                prefetch(weights.wrapping_add(AHEAD));
                let [low, high] = Self::nibbles(Self::bytes_load(weights));
                for row in 0..ROWS {
                    let at = activations.add(row * stride + group * 8).cast::<[i8; 4]>();
                    let first = Self::bytes_splat(at.read_unaligned());
                    let second = Self::bytes_splat(at.add(1).read_unaligned());
                    for half in 0..2 {
                        let products = _mm256_add_epi16(
                            _mm256_maddubs_epi16(low[half], first[half]),
                            _mm256_maddubs_epi16(high[half], second[half]),
                        );
                        acc[row][half] = _mm256_add_epi16(acc[row][half], products);
                    }
                }
            }
            let mut sums = acc;
            for row in 0..ROWS {
                sums[row] = Self::int_add(Self::nibble_end(acc[row]), Self::int_splat(corrections[row]));
            }
            sums
        }
    }
    #[inline(always)]
    unsafe fn spread_nibbles(weights: *const u8, ratios: Self, to: *mut u8) {
        unsafe {
            let mask = _mm256_set1_epi16(15);
            for (half, ratios) in ratios.0.into_iter().enumerate() {
                let weights = _mm256_loadu_si256(weights.add(32 * half).cast());
                let ratios = _mm256_cvtps_epi32(ratios);
                // Both halves of each lane.
                let ratios = _mm256_blend_epi16::<0b1010_1010>(ratios, _mm256_slli_epi32::<16>(ratios));
                let lows = spread_pair(
                    _mm256_and_si256(weights, mask),
                    _mm256_and_si256(_mm256_srli_epi16::<8>(weights), mask),
                    ratios,
                );
                let highs = spread_pair(
                    _mm256_and_si256(_mm256_srli_epi16::<4>(weights), mask),
                    _mm256_srli_epi16::<12>(weights),
                    ratios,
                );
                _mm256_storeu_si256(to.add(32 * half).cast(), lows);
                _mm256_storeu_si256(to.add(64 + 32 * half).cast(), highs);
            }
        }
    }
}

/// One register: half of the lanes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Eight(__m256);

// SAFETY: the instructions are of AVX2 and FMA.
unsafe impl Part for Eight {
    const LANES: usize = 8;

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        Eight(unsafe { _mm256_loadu_ps(from) })
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        unsafe { _mm256_storeu_ps(to, self.0) }
    }
    #[inline(always)]
    unsafe fn mul_add(self, b: Self, c: Self) -> Self {
        Eight(unsafe { _mm256_fmadd_ps(self.0, b.0, c.0) })
    }
}

#[inline(always)]
unsafe fn abs(value: __m256) -> __m256 {
    unsafe { _mm256_andnot_ps(_mm256_set1_ps(-0.0), value) }
}

#[inline(always)]
unsafe fn round(value: __m256) -> __m256 {
    unsafe { _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(value) }
}

#[inline(always)]
unsafe fn scale_by_power(value: __m256, exponent: __m256) -> __m256 {
    unsafe {
        let biased = _mm256_add_epi32(_mm256_cvtps_epi32(exponent), _mm256_set1_epi32(127));
        _mm256_mul_ps(value, _mm256_castsi256_ps(_mm256_slli_epi32::<23>(biased)))
    }
}

/// Sixteen lanes of eight pairs; unpacking works within halves of a register.
#[inline(always)]
unsafe fn interleave(a: __m256, b: __m256) -> [__m256; 2] {
    unsafe {
        let (low, high) = (_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
        [
            _mm256_permute2f128_ps::<0x20>(low, high),
            _mm256_permute2f128_ps::<0x31>(low, high),
        ]
    }
}

/// One nibble in each 16 bits, to a byte in each.
#[inline(always)]
unsafe fn spread(nibbles: __m256i, ratios: __m256i) -> __m256i {
    unsafe {
        let centred = _mm256_sub_epi16(_mm256_slli_epi16::<4>(nibbles), _mm256_set1_epi16(128));
        _mm256_add_epi16(_mm256_mulhrs_epi16(centred, ratios), _mm256_set1_epi16(128))
    }
}

/// The bytes of the even places and those of the odd ones, together.
#[inline(always)]
unsafe fn spread_pair(even: __m256i, odd: __m256i, ratios: __m256i) -> __m256i {
    unsafe { _mm256_or_si256(spread(even, ratios), _mm256_slli_epi16::<8>(spread(odd, ratios))) }
}
