//! Lanes: what can every instruction set do with sixteen numbers?

#![expect(
    clippy::needless_range_loop,
    reason = "sums of a tile are registers: all arrays by the same index"
)]

/// Number of lanes in every [`Lanes`].
pub(crate) const LANES: usize = 16;

/// Bytes between the weights that are multiplied and those to [`prefetch`], where they are read from memory
/// in order.
pub(crate) const AHEAD: usize = 8192;

/// Asks for the cache line at an address, which need not be valid, where the processor has an instruction for
/// it.
#[inline(always)]
pub(crate) fn prefetch<T>(address: *const T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: part of every x86-64; it reads nothing and never faults.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T1>(address.cast());
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: part of every AArch64; it reads nothing and never faults.
    unsafe {
        std::arch::asm!("prfm pldl2keep, [{0}]", in(reg) address,
            options(readonly, nostack, preserves_flags));
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let _ = address;
}

/// How nibbles are multiplied with many rows: what a panel is unpacked to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Nibbles {
    /// Bytes on one scale per column, which go the way of bytes.
    Spread,
    /// A byte for each nibble, multiplied by [`Lanes::nibble_step`], four inputs at a time.
    #[cfg_attr(
        not(target_arch = "x86_64"),
        expect(dead_code, reason = "only AVX2 has them so")
    )]
    Bytes,
    /// A word for each nibble, multiplied by [`Lanes::nibble_step`], two inputs at a time.
    Words,
}

/// Sixteen float32 side by side, with sixteen int32 for exact sums of products of bytes.
///
/// A set needs its types, its tiles, and how the three types are read and written; everything else has a
/// default, computed number by number, which is also what the portable set computes and what the others are
/// tested against. A set has what it does better. Products of bytes all go through [`Lanes::products`] and those
/// of nibbles through [`Lanes::nibble_products`], but where a set has a better order of its own for the sums of
/// a tile or of few rows.
///
/// # Safety
/// To call: every method may use instructions of the implementation's own set, so call it only inside a
/// [`Kernel`](super::Kernel) that runs on that set. Pointers must be valid for 16 elements, those of
/// [`Lanes::bytes_load`] and of everything that multiplies bytes for 64 bytes, or as said there; they need no
/// alignment.
///
/// To implement: methods use no instructions beyond the set, and reach no further through pointers than that.
pub(crate) unsafe trait Lanes: Copy {
    /// Sixteen int32.
    type Int: Copy;
    /// Sixty-four bytes, signed or not: four to a lane.
    type Bytes: Copy;
    /// What is computed at once where a tile's sums need more registers than there are: some of the lanes, or
    /// all.
    type Part: Part;

    /// Rows of a matrix product's tile for which there are registers enough, at most 12.
    const TILE_ROWS: usize;
    /// Panels of a matrix product's tile, 1 or 2.
    const TILE_PANELS: usize;
    /// Whether a tile of bytes keeps its sums over several blocks of inputs in registers: 26 that hold sixteen
    /// lanes each are enough.
    const KEEPS_SUMS: bool = false;
    /// Whether tiles multiply bytes as words, by [`Lanes::dot_words`]: weights as they are stored, unsigned. Of 32
    /// inputs as words, those of even place come first, then those of odd place.
    const WORDS: bool = false;
    /// How tiles multiply nibbles.
    const NIBBLES: Nibbles = Nibbles::Spread;
    /// Query rows of a tile of attention, for heads of up to 32 numbers and for longer ones: 12 or 6, or 4
    /// for both.
    const ATTENTION_ROWS: [usize; 2];
    /// Whether [`Lanes::word_products`] are faster than twice as many float32 ones.
    const WORD_PAIRS: bool = false;
    /// Whether [`Lanes::pick`] is one instruction.
    const PICKS: bool = false;
    /// Pixels of a tile of the depthwise convolution, which has two rows of them: 8, 4 or 2. There are registers
    /// for two [`Lanes::Part`] for each, and for three more.
    const DEPTHWISE_PIXELS: usize;
    /// Pixels and vectors of channels of a tile of the first convolution: `(8, 3)` or `(4, 1)`.
    const STEM_TILE: (usize, usize);
    /// Vectors of sums for which there are registers enough where few rows of float32 are multiplied.
    const FEW_SUMS: usize = 16;
    /// Whether byte weights, which are stored as value + 128, are multiplied as signed values. Otherwise they
    /// are multiplied as they are stored, and sums start from -128 times the sum of the activations.
    const SIGNED: bool = false;
    /// Whether tiles multiply byte weights in a form of the set's own, which [`Lanes::pack`] makes.
    const PACKED: bool = false;

    /// Sixteen numbers from memory.
    unsafe fn load(from: *const f32) -> Self;
    /// Sixteen numbers to memory.
    unsafe fn store(self, to: *mut f32);
    /// Sixteen int32 from memory.
    unsafe fn int_load(from: *const i32) -> Self::Int;
    /// Sixteen int32 to memory.
    unsafe fn int_store(value: Self::Int, to: *mut i32);
    /// 64 bytes from memory.
    unsafe fn bytes_load(from: *const u8) -> Self::Bytes;
    /// 64 bytes to memory.
    unsafe fn bytes_store(value: Self::Bytes, to: *mut u8);

    /// The same number in every lane.
    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        unsafe { each(|_| value) }
    }
    /// Sixteen half-precision numbers from memory.
    #[inline(always)]
    unsafe fn load_f16(from: *const u16) -> Self {
        unsafe {
            let bits = from.cast::<[u16; LANES]>().read_unaligned();
            each(|i| half::f16::from_bits(bits[i]).to_f32())
        }
    }
    /// `self + other`
    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        unsafe {
            let (a, b) = (lanes(self), lanes(other));
            each(|i| a[i] + b[i])
        }
    }
    /// `self - other`
    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        unsafe {
            let (a, b) = (lanes(self), lanes(other));
            each(|i| a[i] - b[i])
        }
    }
    /// `self * other`
    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        unsafe {
            let (a, b) = (lanes(self), lanes(other));
            each(|i| a[i] * b[i])
        }
    }
    /// `self / other`
    #[inline(always)]
    unsafe fn div(self, other: Self) -> Self {
        unsafe {
            let (a, b) = (lanes(self), lanes(other));
            each(|i| a[i] / b[i])
        }
    }
    /// `self * b + c`, rounded once where the set has that.
    #[inline(always)]
    unsafe fn mul_add(self, b: Self, c: Self) -> Self {
        unsafe {
            let (a, b, c) = (lanes(self), lanes(b), lanes(c));
            // Not `f32::mul_add`: without an instruction for it that is a call of a library function.
            each(|i| a[i] * b[i] + c[i])
        }
    }
    /// The larger of each pair; NaN is ignored or kept, whichever is faster.
    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        unsafe {
            let (a, b) = (lanes(self), lanes(other));
            each(|i| if a[i] > b[i] { a[i] } else { b[i] })
        }
    }
    /// The smaller of each pair.
    #[inline(always)]
    unsafe fn min(self, other: Self) -> Self {
        unsafe {
            let (a, b) = (lanes(self), lanes(other));
            each(|i| if a[i] < b[i] { a[i] } else { b[i] })
        }
    }
    /// Magnitudes.
    #[inline(always)]
    unsafe fn abs(self) -> Self {
        unsafe {
            let a = lanes(self);
            each(|i| a[i].abs())
        }
    }
    /// The larger magnitude of each pair, the second one's where the first is NaN or the other way round.
    #[inline(always)]
    unsafe fn max_abs(self, other: Self) -> Self {
        unsafe { self.abs().max(other.abs()) }
    }
    /// Of sixteen numbers the one that the low four bits of each lane's representation say.
    #[inline(always)]
    unsafe fn pick(self, numbers: &[f32; LANES]) -> Self {
        unsafe {
            let at = lanes(self);
            each(|i| numbers[at[i].to_bits() as usize % LANES])
        }
    }
    /// Nearest whole number, halves to even. Magnitudes below 2^22.
    #[inline(always)]
    unsafe fn round(self) -> Self {
        // Adding 1.5 * 2^23 leaves no bits for a fraction, and the adder rounds halves to even.
        const MAGIC: f32 = 12_582_912.0;
        unsafe {
            let a = lanes(self);
            each(|i| (a[i] + MAGIC) - MAGIC)
        }
    }
    /// `self * 2^exponent` for whole exponents in -126..=127 (given as float32).
    #[inline(always)]
    unsafe fn scale_by_power(self, exponent: Self) -> Self {
        unsafe {
            let (a, b) = (lanes(self), lanes(exponent));
            each(|i| a[i] * f32::from_bits((((b[i] as i32).wrapping_add(127)) << 23) as u32))
        }
    }
    /// The lanes of both in turn: `self[0], other[0], self[1], ..`, thirty-two numbers.
    #[inline(always)]
    unsafe fn interleave(self, other: Self) -> [Self; 2] {
        unsafe {
            let both = [lanes(self), lanes(other)];
            [
                each(|i| both[i % 2][i / 2]),
                each(|i| both[i % 2][i / 2 + LANES / 2]),
            ]
        }
    }
    /// Sum of the lanes.
    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        let mut parts = unsafe { lanes(self) };
        let mut width = LANES / 2;
        while width > 0 {
            for i in 0..width {
                parts[i] += parts[i + width];
            }
            width /= 2;
        }
        parts[0]
    }
    /// Largest lane.
    #[inline(always)]
    unsafe fn max_lane(self) -> f32 {
        unsafe { lanes(self) }
            .into_iter()
            .fold(f32::NEG_INFINITY, f32::max)
    }
    /// Nearest whole numbers (halves to even) as signed bytes; lanes must lie in -127..=127.
    #[inline(always)]
    unsafe fn store_i8(self, to: *mut i8) {
        unsafe {
            let bytes = lanes(self.round()).map(|value| value as i8);
            to.cast::<[i8; LANES]>().write_unaligned(bytes);
        }
    }

    /// Nearest whole numbers (halves to even) as signed words; lanes must lie in -32767..=32767, or be NaN,
    /// which becomes any number.
    #[inline(always)]
    unsafe fn store_i16(self, to: *mut i16) {
        unsafe {
            let words = lanes(self.round()).map(|value| value as i16);
            to.cast::<[i16; LANES]>().write_unaligned(words);
        }
    }
    /// `acc[lane] += a[2 * lane] * b[2 * lane] + a[2 * lane + 1] * b[2 * lane + 1]` of signed words, exact
    /// where the sum fits.
    #[inline(always)]
    unsafe fn word_products(acc: Self::Int, a: Self::Bytes, b: Self::Bytes) -> Self::Int {
        unsafe {
            let (a, b) = (bytes_of::<Self>(a), bytes_of::<Self>(b));
            let mut sums = ints::<Self>(acc);
            let word = |from: &[u8; 4 * LANES], i: usize| {
                i32::from(i16::from_le_bytes([from[2 * i], from[2 * i + 1]]))
            };
            for (lane, sum) in sums.iter_mut().enumerate() {
                for i in [2 * lane, 2 * lane + 1] {
                    *sum = sum.wrapping_add(word(&a, i) * word(&b, i));
                }
            }
            Self::int_load(sums.as_ptr())
        }
    }
    /// The largest lane of each of sixteen. NaN is ignored or kept, whichever is faster.
    #[inline(always)]
    unsafe fn max_lanes(vectors: &[Self; LANES]) -> [f32; LANES] {
        let mut largest = [0.0; LANES];
        for i in 0..LANES {
            largest[i] = unsafe { vectors[i].max_lane() };
        }
        largest
    }
    /// The sum of the lanes of each of sixteen, in any order.
    #[inline(always)]
    unsafe fn sum_lanes(vectors: &[Self; LANES]) -> [f32; LANES] {
        let mut sums = [0.0; LANES];
        for i in 0..LANES {
            sums[i] = unsafe { vectors[i].sum() };
        }
        sums
    }
    /// Writes `values * factor` as 128 signed bytes, nearest whole numbers; products must lie in -127..=127 or
    /// be NaN. The lanes of what is returned add up to the sum of the bytes; where any product is NaN, to NaN, or
    /// `none` is not 0 and the product's byte is -128.
    #[inline(always)]
    unsafe fn store_block(values: &[Self; 8], factor: Self, to: *mut i8, _none: &mut u64) -> Self {
        unsafe {
            let mut sums = [Self::splat(0.0); 2];
            for (i, value) in values.iter().enumerate() {
                let value = value.mul(factor).round();
                sums[i % 2] = sums[i % 2].add(value);
                value.store_i8(to.add(i * LANES));
            }
            let [even, odd] = sums;
            even.add(odd)
        }
    }

    /// Sixteen times the same int32.
    #[inline(always)]
    unsafe fn int_splat(value: i32) -> Self::Int {
        unsafe { Self::int_load([value; LANES].as_ptr()) }
    }
    /// `a + b`
    #[inline(always)]
    unsafe fn int_add(a: Self::Int, b: Self::Int) -> Self::Int {
        unsafe {
            let (mut sums, b) = (ints::<Self>(a), ints::<Self>(b));
            for (sum, b) in sums.iter_mut().zip(b) {
                *sum += b;
            }
            Self::int_load(sums.as_ptr())
        }
    }
    /// Converted to float32.
    #[inline(always)]
    unsafe fn from_int(value: Self::Int) -> Self {
        unsafe {
            let value = ints::<Self>(value);
            each(|i| value[i] as f32)
        }
    }

    /// Four signed bytes, the same in every lane.
    #[inline(always)]
    unsafe fn bytes_splat(bytes: [i8; 4]) -> Self::Bytes {
        let four = bytes.map(i8::cast_unsigned);
        unsafe { Self::bytes_load([four; LANES].as_flattened().as_ptr()) }
    }
    /// The low halves of unsigned bytes, and their high ones.
    #[inline(always)]
    unsafe fn nibbles(bytes: Self::Bytes) -> [Self::Bytes; 2] {
        unsafe {
            let all = bytes_of::<Self>(bytes);
            let (low, high) = (all.map(|byte| byte & 15), all.map(|byte| byte >> 4));
            [Self::bytes_load(low.as_ptr()), Self::bytes_load(high.as_ptr())]
        }
    }
    /// What exact sums of products of byte weights start from: `correction` is -128 times the sum of the
    /// activations that are to be multiplied.
    #[inline(always)]
    unsafe fn start(correction: i32) -> Self::Int {
        unsafe { Self::int_splat(if Self::SIGNED { 0 } else { correction }) }
    }
    /// 64 stored byte weights from memory, as [`Lanes::products`] multiplies them.
    #[inline(always)]
    unsafe fn weights_load(from: *const u8) -> Self::Bytes {
        unsafe {
            if Self::SIGNED {
                let stored = from.cast::<[u8; 4 * LANES]>().read_unaligned();
                Self::bytes_load(stored.map(|byte| byte ^ 0x80).as_ptr())
            } else {
                Self::bytes_load(from)
            }
        }
    }
    /// `acc[lane] += sum over i < 4 of weights[4 * lane + i] * activations[4 * lane + i]`: weights are
    /// unsigned or, where the set says so, signed; activations lie in -127..=127.
    #[inline(always)]
    unsafe fn products(acc: Self::Int, weights: Self::Bytes, activations: Self::Bytes) -> Self::Int {
        unsafe {
            let (weights, activations) = (bytes_of::<Self>(weights), bytes_of::<Self>(activations));
            let mut sums = ints::<Self>(acc);
            for (lane, sum) in sums.iter_mut().enumerate() {
                for i in 4 * lane..4 * lane + 4 {
                    let weight = if Self::SIGNED {
                        i32::from(weights[i].cast_signed())
                    } else {
                        i32::from(weights[i])
                    };
                    *sum += weight * i32::from(activations[i].cast_signed());
                }
            }
            Self::int_load(sums.as_ptr())
        }
    }
    /// Two [`Lanes::products`], of weights that are at most 15.
    #[inline(always)]
    unsafe fn nibble_products(
        acc: Self::Int,
        weights: [Self::Bytes; 2],
        activations: [Self::Bytes; 2],
    ) -> Self::Int {
        unsafe {
            let acc = Self::products(acc, weights[0], activations[0]);
            Self::products(acc, weights[1], activations[1])
        }
    }

    /// [`Lanes::products`] of 64 stored byte weights with four activations, the same in every lane.
    #[inline(always)]
    unsafe fn dot(acc: Self::Int, weights: *const u8, activations: [i8; 4]) -> Self::Int {
        unsafe { Self::products(acc, Self::weights_load(weights), Self::bytes_splat(activations)) }
    }
    /// Two such products over 64 bytes of nibbles: the low ones (0..=15) times `low`, the high ones times
    /// `high`.
    #[inline(always)]
    unsafe fn dot_nibbles(acc: Self::Int, weights: *const u8, low: [i8; 4], high: [i8; 4]) -> Self::Int {
        unsafe {
            let weights = Self::nibbles(Self::bytes_load(weights));
            let activations = [Self::bytes_splat(low), Self::bytes_splat(high)];
            Self::nibble_products(acc, weights, activations)
        }
    }
    /// `acc[lane] += sum over i < 2 of weights[2 * lane + i] * activations[i]` of unsigned with signed words, 64
    /// and 4 bytes of them; weights are at most 255.
    #[inline(always)]
    unsafe fn dot_words(acc: Self::Int, weights: *const u8, activations: [i8; 4]) -> Self::Int {
        unsafe {
            let weights = weights.cast::<[[i16; 2]; LANES]>().read_unaligned();
            let [a, b] = halves(i32::from_ne_bytes(activations.map(i8::cast_unsigned)));
            let mut sums = ints::<Self>(acc);
            for (sum, [first, second]) in sums.iter_mut().zip(weights) {
                *sum += i32::from(first) * i32::from(a) + i32::from(second) * i32::from(b);
            }
            Self::int_load(sums.as_ptr())
        }
    }
    /// Where the sums of products with 32 nibbles start: at what [`Lanes::nibble_correction`] says.
    #[inline(always)]
    unsafe fn nibble_start(correction: i32) -> Self::Int {
        let [even, odd] = halves(correction);
        unsafe { Self::int_splat(i32::from(even) + i32::from(odd)) }
    }
    /// Products of four inputs as bytes or of two as words, whichever [`Lanes::NIBBLES`] says, with weights that
    /// are at most 15; sums may be kept as the set likes.
    #[inline(always)]
    unsafe fn nibble_step(acc: Self::Int, weights: *const u8, activations: [i8; 4]) -> Self::Int {
        unsafe {
            if Self::NIBBLES == Nibbles::Words {
                Self::dot_words(acc, weights, activations)
            } else {
                Self::products(acc, Self::bytes_load(weights), Self::bytes_splat(activations))
            }
        }
    }
    /// The sums after up to 32 inputs.
    #[inline(always)]
    unsafe fn nibble_end(acc: Self::Int) -> Self::Int {
        acc
    }
    /// -8 times the sum of 32 signed bytes as two signed words: of the bytes whose place is 0 or 1 modulo 4 in
    /// the low word, of the others in the high one.
    #[inline(always)]
    unsafe fn nibble_correction(bytes: *const i8) -> i32 {
        let bytes = unsafe { bytes.cast::<[[i8; 4]; 8]>().read_unaligned() };
        let (mut low, mut high) = (0_i16, 0_i16);
        for [a, b, c, d] in bytes {
            low += i16::from(a) + i16::from(b);
            high += i16::from(c) + i16::from(d);
        }
        let [low, high] = [low, high].map(|sum| (-8 * sum).cast_unsigned());
        (u32::from(low) | u32::from(high) << 16).cast_signed()
    }
    /// [`Lanes::products`] of 64 stored byte weights with as many activations.
    #[inline(always)]
    unsafe fn dot_bytes(acc: Self::Int, weights: *const u8, activations: *const i8) -> Self::Int {
        unsafe {
            Self::products(
                acc,
                Self::weights_load(weights),
                Self::bytes_load(activations.cast()),
            )
        }
    }
    /// Two products of 64 nibbles each: the low ones (0..=15) of 64 bytes times the first 64 activations, the
    /// high ones times the next 64.
    #[inline(always)]
    unsafe fn dot_plane(acc: Self::Int, weights: *const u8, activations: *const i8) -> Self::Int {
        unsafe {
            let weights = Self::nibbles(Self::bytes_load(weights));
            let low = Self::bytes_load(activations.cast());
            let high = Self::bytes_load(activations.add(4 * LANES).cast());
            Self::nibble_products(acc, weights, [low, high])
        }
    }
    /// 64 bytes of nibbles to 128 byte weights, in the form that tiles multiply:
    /// `round((nibble - 8) * ratios[lane] / 2048)`, the low nibbles' before the high ones'. A lane is four
    /// bytes; ratios are whole numbers in -32512..=32512.
    #[inline(always)]
    unsafe fn spread_nibbles(weights: *const u8, ratios: Self, to: *mut u8) {
        unsafe {
            let weights = weights.cast::<[u8; 4 * LANES]>().read_unaligned();
            let ratios = lanes(ratios).map(|ratio| ratio as i32);
            let mut both = [[0; 4 * LANES]; 2];
            for (i, byte) in weights.into_iter().enumerate() {
                both[0][i] = spread_nibble(byte & 15, ratios[i / 4]);
                both[1][i] = spread_nibble(byte >> 4, ratios[i / 4]);
            }
            if Self::PACKED {
                Self::pack(both.as_flattened().as_ptr(), to);
            } else {
                to.cast::<[[u8; 4 * LANES]; 2]>().write_unaligned(both);
            }
        }
    }
    /// Eight inputs of a panel, 128 stored byte weights `[2, 16, 4]`, in the form that tiles multiply, where
    /// [`Lanes::PACKED`] says that it is another.
    #[inline(always)]
    unsafe fn pack(from: *const u8, to: *mut u8) {
        unsafe { std::ptr::copy_nonoverlapping(from, to, 8 * LANES) }
    }

    /// Adds the products of `ROWS` rows with `PANELS` panels in float32, one chain of additions for each sum.
    /// The rows are `stride` numbers apart, the panels `panel_stride`; `length` inputs are multiplied.
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
            for k in 0..length {
                let mut w = [Self::splat(0.0); PANELS];
                for j in 0..PANELS {
                    w[j] = Self::load(weights.add(j * panel_stride + k * LANES));
                }
                for i in 0..ROWS {
                    let value = Self::splat(*values.add(i * stride + k));
                    for j in 0..PANELS {
                        acc[i][j] = value.mul_add(w[j], acc[i][j]);
                    }
                }
            }
            acc
        }
    }
    /// Exact sums of `ROWS` rows' products with `PANELS` panels, over the inputs of one block.
    ///
    /// The weights are in the form that tiles multiply, `panel_stride` bytes from panel to panel, the
    /// activations `stride` bytes from row to row; `quads` times four of each are multiplied. Where weights are
    /// packed, that is a multiple of sixteen. `corrections` are those of [`Lanes::start`].
    #[inline(always)]
    unsafe fn tile_block<const ROWS: usize, const PANELS: usize>(
        activations: *const i8,
        stride: usize,
        corrections: [i32; ROWS],
        weights: *const u8,
        panel_stride: usize,
        quads: usize,
    ) -> [[Self::Int; PANELS]; ROWS] {
        unsafe {
            let mut acc = [[Self::int_splat(0); PANELS]; ROWS];
            for i in 0..ROWS {
                acc[i] = [Self::start(corrections[i]); PANELS];
            }
            for quad in 0..quads {
                let weights = weights.add(quad * 4 * LANES);
                for i in 0..ROWS {
                    let values = activations.add(i * stride + quad * 4);
                    let values = values.cast::<[i8; 4]>().read_unaligned();
                    for j in 0..PANELS {
                        acc[i][j] = Self::dot(acc[i][j], weights.add(j * panel_stride), values);
                    }
                }
            }
            acc
        }
    }
    /// The same of words: `stride` and `panel_stride` are bytes, a step has two inputs.
    #[inline(always)]
    unsafe fn tile_words<const ROWS: usize, const PANELS: usize>(
        activations: *const i8,
        stride: usize,
        corrections: [i32; ROWS],
        weights: *const u8,
        panel_stride: usize,
        steps: usize,
    ) -> [[Self::Int; PANELS]; ROWS] {
        unsafe {
            let mut acc = [[Self::int_splat(0); PANELS]; ROWS];
            for i in 0..ROWS {
                acc[i] = [Self::int_splat(corrections[i]); PANELS];
            }
            for step in 0..steps {
                let weights = weights.add(step * 4 * LANES);
                for i in 0..ROWS {
                    let values = activations.add(i * stride + step * 4);
                    let values = values.cast::<[i8; 4]>().read_unaligned();
                    for j in 0..PANELS {
                        acc[i][j] = Self::dot_words(acc[i][j], weights.add(j * panel_stride), values);
                    }
                }
            }
            acc
        }
    }
    /// [`Lanes::tile_block`] of few rows with one panel whose weights are read from memory, in order, as they are stored.
    #[inline(always)]
    unsafe fn few_block<const ROWS: usize>(
        activations: *const i8,
        stride: usize,
        corrections: [i32; ROWS],
        weights: *const u8,
        quads: usize,
    ) -> [Self::Int; ROWS] {
        const CHAINS: usize = 2;
        unsafe {
            let mut acc = [[Self::int_splat(0); ROWS]; CHAINS];
            for row in 0..ROWS {
                acc[0][row] = Self::start(corrections[row]);
            }
            let mut quad = 0;
            while quad + CHAINS <= quads {
                for chain in 0..CHAINS {
                    let weights = weights.add((quad + chain) * 4 * LANES);
                    prefetch(weights.wrapping_add(AHEAD));
                    for row in 0..ROWS {
                        let values = activations.add(row * stride + (quad + chain) * 4);
                        let values = values.cast::<[i8; 4]>().read_unaligned();
                        acc[chain][row] = Self::dot(acc[chain][row], weights, values);
                    }
                }
                quad += CHAINS;
            }
            while quad < quads {
                let weights = weights.add(quad * 4 * LANES);
                for row in 0..ROWS {
                    let values = activations.add(row * stride + quad * 4);
                    let values = values.cast::<[i8; 4]>().read_unaligned();
                    acc[0][row] = Self::dot(acc[0][row], weights, values);
                }
                quad += 1;
            }
            let mut sums = acc[0];
            for row in 0..ROWS {
                sums[row] = Self::int_add(acc[0][row], acc[1][row]);
            }
            sums
        }
    }
    /// The same of 32 inputs in nibbles, 256 bytes: `corrections` are -8 times the sums of the activations.
    #[inline(always)]
    unsafe fn few_nibbles<const ROWS: usize>(
        activations: *const i8,
        stride: usize,
        corrections: [i32; ROWS],
        nibbles: *const u8,
    ) -> [Self::Int; ROWS] {
        unsafe { few_nibbles::<Self, ROWS>(activations, stride, corrections, nibbles) }
    }
}

/// [`Lanes::few_nibbles`] by [`Lanes::dot_nibbles`].
///
/// # Safety
/// As [`Lanes`].
#[inline(always)]
pub(super) unsafe fn few_nibbles<V: Lanes, const ROWS: usize>(
    activations: *const i8,
    stride: usize,
    corrections: [i32; ROWS],
    nibbles: *const u8,
) -> [V::Int; ROWS] {
    unsafe {
        let mut acc = [V::int_splat(0); ROWS];
        for row in 0..ROWS {
            acc[row] = V::int_splat(corrections[row]);
        }
        for group in 0..4 {
            let weights = nibbles.add(group * 4 * LANES);
            prefetch(weights.wrapping_add(AHEAD));
            for row in 0..ROWS {
                let at = activations.add(row * stride + group * 8).cast::<[i8; 4]>();
                let (low, high) = (at.read_unaligned(), at.add(1).read_unaligned());
                acc[row] = V::dot_nibbles(acc[row], weights, low, high);
            }
        }
        acc
    }
}

/// One byte of [`Lanes::spread_nibbles`].
#[inline(always)]
fn spread_nibble(nibble: u8, ratio: i32) -> u8 {
    let product = ((i32::from(nibble) - 8) * 16).wrapping_mul(ratio);
    (128 + (product.wrapping_add(0x4000) >> 15)) as u8
}

/// Some neighbouring lanes of sixteen.
///
/// # Safety
/// As [`Lanes`]; pointers must be valid for as many elements as there are lanes.
pub(crate) unsafe trait Part: Copy {
    /// How many: a divisor of 16.
    const LANES: usize;

    /// Numbers from memory.
    unsafe fn load(from: *const f32) -> Self;
    /// Numbers to memory.
    unsafe fn store(self, to: *mut f32);
    /// `self * b + c`, as [`Lanes::mul_add`].
    unsafe fn mul_add(self, b: Self, c: Self) -> Self;
}

// SAFETY: the same methods.
unsafe impl<V: Lanes> Part for V {
    const LANES: usize = LANES;

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        unsafe { Lanes::load(from) }
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        unsafe { Lanes::store(self, to) }
    }
    #[inline(always)]
    unsafe fn mul_add(self, b: Self, c: Self) -> Self {
        unsafe { Lanes::mul_add(self, b, c) }
    }
}

/// Two words in memory's order.
#[inline(always)]
fn halves(words: i32) -> [i16; 2] {
    let [a, b, c, d] = words.to_ne_bytes();
    [i16::from_ne_bytes([a, b]), i16::from_ne_bytes([c, d])]
}

/// `f(0), f(1), ..`
#[inline(always)]
unsafe fn each<V: Lanes>(mut f: impl FnMut(usize) -> f32) -> V {
    let mut out = [0.0; LANES];
    for (i, value) in out.iter_mut().enumerate() {
        *value = f(i);
    }
    unsafe { V::load(out.as_ptr()) }
}

/// The lanes one by one.
#[inline(always)]
unsafe fn lanes<V: Lanes>(value: V) -> [f32; LANES] {
    let mut out = [0.0; LANES];
    unsafe { value.store(out.as_mut_ptr()) };
    out
}

/// The same of int32.
#[inline(always)]
unsafe fn ints<V: Lanes>(value: V::Int) -> [i32; LANES] {
    let mut out = [0; LANES];
    unsafe { V::int_store(value, out.as_mut_ptr()) };
    out
}

/// The same of bytes.
#[inline(always)]
unsafe fn bytes_of<V: Lanes>(value: V::Bytes) -> [u8; 4 * LANES] {
    let mut out = [0; 4 * LANES];
    unsafe { V::bytes_store(value, out.as_mut_ptr()) };
    out
}
