//! The portable set: plain arrays and the defaults of [`Lanes`], of which the compiler makes what the target
//! always has, and SSE2's products of words on x86-64. The reference for the others, and what processors
//! without a set of their own run.

use super::lanes::{LANES, Lanes, Nibbles, Part};
use crate::isa::Kernel;

/// An array.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Portable([f32; LANES]);

/// Every processor has it.
pub(super) fn detected() -> bool {
    true
}

/// Runs a kernel that is compiled for the target.
///
/// # Safety
/// None: there is a promise only because other sets have one.
// Never inlined, as those of other sets are not: who reads the disassembly finds it by its name.
#[inline(never)]
pub(super) unsafe fn run<K: Kernel>(kernel: K) -> K::Out {
    // SAFETY: no instruction beyond the target's own.
    unsafe { kernel.run::<Portable>() }
}

/// What fits one register of most targets.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Quarter([f32; 4]);

// SAFETY: no instruction beyond the target's own.
unsafe impl Part for Quarter {
    const LANES: usize = 4;

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        Quarter(unsafe { from.cast::<[f32; 4]>().read_unaligned() })
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        unsafe { to.cast::<[f32; 4]>().write_unaligned(self.0) }
    }
    #[inline(always)]
    unsafe fn mul_add(self, b: Self, c: Self) -> Self {
        Quarter(std::array::from_fn(|i| self.0[i] * b.0[i] + c.0[i]))
    }
}

// SAFETY: no instruction beyond the target's own; arrays of as many elements as the trait says.
unsafe impl Lanes for Portable {
    type Int = [i32; LANES];
    type Bytes = [u8; 4 * LANES];
    type Part = Quarter;
    const TILE_ROWS: usize = 2;
    const TILE_PANELS: usize = 1;
    const WORDS: bool = true;
    const NIBBLES: Nibbles = Nibbles::Words;
    const ATTENTION_ROWS: [usize; 2] = [4, 4];
    const DEPTHWISE_PIXELS: usize = 4;
    const STEM_TILE: (usize, usize) = (4, 1);

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        Portable(unsafe { from.cast::<[f32; LANES]>().read_unaligned() })
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        unsafe { to.cast::<[f32; LANES]>().write_unaligned(self.0) }
    }
    #[inline(always)]
    unsafe fn int_load(from: *const i32) -> Self::Int {
        unsafe { from.cast::<[i32; LANES]>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn int_store(value: Self::Int, to: *mut i32) {
        unsafe { to.cast::<[i32; LANES]>().write_unaligned(value) }
    }
    #[inline(always)]
    unsafe fn bytes_load(from: *const u8) -> Self::Bytes {
        unsafe { from.cast::<[u8; 4 * LANES]>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn bytes_store(value: Self::Bytes, to: *mut u8) {
        unsafe { to.cast::<[u8; 4 * LANES]>().write_unaligned(value) }
    }

    /// By the one instruction for it that every x86-64 has: a compiler finds it in no loop over numbers.
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn dot_words(mut acc: Self::Int, weights: *const u8, activations: [i8; 4]) -> Self::Int {
        use std::arch::x86_64::*;
        // SAFETY: SSE2; four registers of lanes and of weights.
        unsafe {
            let activations = _mm_set1_epi32(i32::from_ne_bytes(activations.map(i8::cast_unsigned)));
            for four in 0..4 {
                let sums = acc.as_mut_ptr().add(4 * four).cast();
                let products = _mm_madd_epi16(_mm_loadu_si128(weights.add(16 * four).cast()), activations);
                _mm_storeu_si128(sums, _mm_add_epi32(_mm_loadu_si128(sums), products));
            }
        }
        acc
    }
    /// Bytes of even places and those of odd ones as words, likewise.
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn products(mut acc: Self::Int, weights: Self::Bytes, activations: Self::Bytes) -> Self::Int {
        use std::arch::x86_64::*;
        // SAFETY: SSE2; four registers of each.
        unsafe {
            for four in 0..4 {
                let sums = acc.as_mut_ptr().add(4 * four).cast();
                let weights = _mm_loadu_si128(weights.as_ptr().add(16 * four).cast());
                let activations = _mm_loadu_si128(activations.as_ptr().add(16 * four).cast());
                let even = _mm_madd_epi16(
                    _mm_and_si128(weights, _mm_set1_epi16(0xff)),
                    _mm_srai_epi16::<8>(_mm_slli_epi16::<8>(activations)),
                );
                let odd = _mm_madd_epi16(_mm_srli_epi16::<8>(weights), _mm_srai_epi16::<8>(activations));
                let products = _mm_add_epi32(even, odd);
                _mm_storeu_si128(sums, _mm_add_epi32(_mm_loadu_si128(sums), products));
            }
        }
        acc
    }
}
