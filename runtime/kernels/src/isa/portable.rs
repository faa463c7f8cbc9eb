//! The portable set: plain arrays and the defaults of [`Lanes`], of which the compiler makes what the target
//! always has (SSE2 on x86-64, NEON on AArch64). The reference for the others, and what processors without a
//! set of their own run.

use super::lanes::{LANES, Lanes};
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
pub(super) unsafe fn run<K: Kernel>(kernel: K) -> K::Out {
    // SAFETY: no instruction beyond the target's own.
    unsafe { kernel.run::<Portable>() }
}

// SAFETY: no instruction beyond the target's own; arrays of as many elements as the trait says.
unsafe impl Lanes for Portable {
    type Int = [i32; LANES];
    type Bytes = [u8; 4 * LANES];
    const TILE_ROWS: usize = 2;
    const TILE_PANELS: usize = 1;
    const ATTENTION_ROWS: [usize; 2] = [4, 4];
    const DEPTHWISE_PIXELS: usize = 2;
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
}
