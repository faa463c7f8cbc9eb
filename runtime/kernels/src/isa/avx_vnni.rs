//! AVX-VNNI: AVX2 and products of bytes in one instruction, 256 bits wide. Intel since 2021, AMD since 2024.
//!
//! The instruction has two encodings. VEX is AVX-VNNI proper. EVEX is that of AVX-512 with VNNI and VL, which does
//! the same at the same width. A processor that has only the second has the set too: nobody runs it there by
//! choice, but it is tested and measured there.

use super::avx2::{Products, Two};
use super::dispatch::Kernel;
use std::arch::x86_64::*;

mod vex {
    use super::super::dispatch::features;
    features!(
        super::Two<super::Vex>, is_x86_feature_detected: "avxvnni", "avx2", "fma", "f16c"
    );
}

mod evex {
    use super::super::dispatch::features;
    features!(
        super::Two<super::Evex>, is_x86_feature_detected: "avx512vnni", "avx512vl", "avx2", "fma", "f16c"
    );
}

/// Whether this processor has the set, in either encoding.
pub(super) fn detected() -> bool {
    vex::detected() || evex::detected()
}

/// Runs a kernel that is compiled for the set.
///
/// # Safety
/// The processor has the set.
pub(super) unsafe fn run<K: Kernel>(kernel: K) -> K::Out {
    // SAFETY: the first was detected; if not, the second was, by the promise to this function.
    unsafe {
        if vex::detected() {
            vex::run(kernel)
        } else {
            evex::run(kernel)
        }
    }
}

/// Products in the encoding of AVX-VNNI.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Vex;

// SAFETY: the instruction is of AVX-VNNI.
unsafe impl Products for Vex {
    #[inline(always)]
    unsafe fn words(acc: __m256i, a: __m256i, b: __m256i) -> __m256i {
        unsafe { _mm256_dpwssd_avx_epi32(acc, a, b) }
    }
    #[inline(always)]
    unsafe fn bytes(acc: __m256i, weights: __m256i, activations: __m256i) -> __m256i {
        unsafe { _mm256_dpbusd_avx_epi32(acc, weights, activations) }
    }
}

/// Products in the encoding of AVX-512.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Evex;

// SAFETY: the instruction is of AVX-512 VNNI with VL.
unsafe impl Products for Evex {
    #[inline(always)]
    unsafe fn words(acc: __m256i, a: __m256i, b: __m256i) -> __m256i {
        unsafe { _mm256_dpwssd_epi32(acc, a, b) }
    }
    #[inline(always)]
    unsafe fn bytes(acc: __m256i, weights: __m256i, activations: __m256i) -> __m256i {
        unsafe { _mm256_dpbusd_epi32(acc, weights, activations) }
    }
}
