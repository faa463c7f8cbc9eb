//! Parallel tasks: how does a kernel use several cores? It hands out numbered tasks; the engine that calls it
//! owns the threads.

use super::isa::prefetch;
use std::cell::RefCell;
use std::ops::Range;

/// Runs numbered tasks, on as many threads as there are.
///
/// # Safety
/// Kernels give each task its own part of a slice by the task's number. So [`Parallel::run`] calls the task
/// once with each number below `count`, and with no other, and no call outlives it; [`Parallel::threads`] is
/// at least 1 and at most 65536.
pub unsafe trait Parallel: Sync {
    /// How many tasks can run at once.
    fn threads(&self) -> usize;

    /// Calls `task(0) .. task(count - 1)`, in any order, and returns when all are done.
    fn run(&self, count: usize, task: &(dyn Fn(usize) + Sync));
}

/// One after the other, on the caller's thread.
#[derive(Debug, Clone, Copy)]
pub struct Serial;

// SAFETY: a loop over the numbers.
unsafe impl Parallel for Serial {
    fn threads(&self) -> usize {
        1
    }

    fn run(&self, count: usize, task: &(dyn Fn(usize) + Sync)) {
        (0..count).for_each(task);
    }
}

/// Part `i` of `0..count` in so many parts, of which none has two more than another.
#[inline(always)]
pub(crate) fn part_of(count: usize, parts: usize, i: usize) -> Range<usize> {
    count * i / parts..count * (i + 1) / parts
}

/// A slice of which every task writes its own part.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shared<T> {
    start: *mut T,
    length: usize,
}

// SAFETY: the only way in is `part`, whose caller promises that parts do not overlap.
unsafe impl<T: Send> Sync for Shared<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Send for Shared<T> {}

impl<T> Shared<T> {
    /// Shares a slice for as long as the borrow that `slice` came from lasts.
    pub(crate) fn new(slice: &mut [T]) -> Self {
        Shared {
            start: slice.as_mut_ptr(),
            length: slice.len(),
        }
    }

    /// Asks for the cache line that will be written to, which need not exist.
    #[inline(always)]
    pub(crate) fn ahead(&self, start: usize) {
        prefetch(self.start.wrapping_add(start));
    }

    /// Where a number lies, or would.
    pub(crate) fn at(&self, start: usize) -> *mut T {
        self.start.wrapping_add(start)
    }

    /// `slice[start..start + length]`
    ///
    /// # Safety
    /// No other task may hold a part that overlaps, and the shared slice must still be borrowed.
    ///
    /// # Panics
    /// A part outside the slice: a bug of the kernel.
    #[expect(clippy::mut_from_ref, reason = "parts of tasks do not overlap: the promise")]
    pub(crate) unsafe fn part(&self, start: usize, length: usize) -> &mut [T] {
        assert!(
            start <= self.length && length <= self.length - start,
            "a part lies outside its slice"
        );
        // SAFETY: inside the slice by the line above, alone by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(start), length) }
    }
}

/// Types of numbers for which every bit pattern is a value.
///
/// # Safety
/// So it is; and the type has no padding, and an alignment of at most 64.
pub(crate) unsafe trait Plain: Copy + 'static {}

// SAFETY: integers and floats.
unsafe impl Plain for f32 {}
// SAFETY: as above.
unsafe impl Plain for i32 {}
// SAFETY: as above.
unsafe impl Plain for i16 {}
// SAFETY: as above.
unsafe impl Plain for i8 {}
// SAFETY: as above.
unsafe impl Plain for u8 {}

/// Bytes of a cache line, at which lent buffers start.
const LINE: usize = 64;

/// Lends a buffer of this thread, `length` long, with whatever was left in it.
///
/// # Panics
/// Where there is no memory for it.
pub(crate) fn scratch<T: Plain, R>(length: usize, body: impl FnOnce(&mut [T]) -> R) -> R {
    thread_local! {
        /// Buffers that are not lent out, largest last used on top.
        static FREE: RefCell<Vec<Vec<u64>>> = const { RefCell::new(Vec::new()) };
    }
    // One cache line more than asked for, so that the start can be aligned to one.
    let words = length
        .checked_mul(size_of::<T>())
        .map(|bytes| bytes.div_ceil(8) + LINE / 8);
    let Some(wanted) = words else {
        panic!("no memory has {length} numbers");
    };
    let mut words = FREE.with_borrow_mut(Vec::pop).unwrap_or_default();
    let more = wanted.saturating_sub(words.len());
    if let Err(error) = words.try_reserve(more) {
        panic!("no memory for {length} numbers: {error}");
    }
    words.resize(words.len().max(wanted), 0);
    let start = words.as_mut_ptr().cast::<u8>();
    let start = start.wrapping_add(start.addr().wrapping_neg() % LINE).cast::<T>();
    // SAFETY: inside `words`, which is initialised, by its length; aligned to a line; every bit pattern is a
    // value.
    let out = body(unsafe { std::slice::from_raw_parts_mut(start, length) });
    FREE.with_borrow_mut(|free| free.push(words));
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::panic::catch_unwind;

    #[test]
    fn parts_follow_each_other_to_the_end() {
        for (count, parts) in [(280, 2), (28, 8), (11, 4), (3, 3), (5, 8)] {
            let all: Vec<_> = (0..parts).map(|i| part_of(count, parts, i)).collect();
            let lengths = all.iter().map(ExactSizeIterator::len);
            assert!(lengths.clone().max() <= lengths.min().map(|least| least + 1));
            assert!(all.into_iter().flatten().eq(0..count));
        }
    }

    #[test]
    fn buffers_are_as_long_as_asked_for_and_apart() {
        for length in [0, 1, 7, 64, 1000] {
            scratch(length, |a: &mut [u8]| {
                assert!(a.len() == length && a.as_ptr().addr().is_multiple_of(LINE));
                a.fill(1);
                scratch(length, |b: &mut [f32]| {
                    assert!(b.len() == length && b.as_ptr().addr().is_multiple_of(LINE));
                    b.fill(2.0);
                });
                assert!(a.iter().all(|byte| *byte == 1));
            });
        }
    }

    #[test]
    fn buffers_that_no_memory_holds_are_panics() {
        for length in [usize::MAX, usize::MAX / 4, usize::MAX / 8, 1 << 60] {
            assert!(catch_unwind(|| scratch(length, |_: &mut [f32]| ())).is_err());
        }
    }

    #[test]
    #[should_panic(expected = "outside its slice")]
    fn parts_lie_inside() {
        let mut slice = [0.0; 8];
        let shared = Shared::new(&mut slice);
        // SAFETY: the only part.
        let _ = unsafe { shared.part(usize::MAX, 2) };
    }
}
