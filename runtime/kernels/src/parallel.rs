//! How does a kernel use several cores? It hands out numbered tasks; the engine that calls it owns the threads.

use std::cell::RefCell;

/// Runs numbered tasks, on as many threads as there are.
pub trait Parallel: Sync {
    /// How many tasks can run at once.
    fn threads(&self) -> usize;

    /// Calls `task(0) .. task(count - 1)`, in any order, and returns when all are done.
    fn run(&self, count: usize, task: &(dyn Fn(usize) + Sync));
}

/// One after the other, on the caller's thread.
#[derive(Debug, Clone, Copy)]
pub struct Serial;

impl Parallel for Serial {
    fn threads(&self) -> usize {
        1
    }

    fn run(&self, count: usize, task: &(dyn Fn(usize) + Sync)) {
        (0..count).for_each(task);
    }
}

/// A slice of which every task writes its own part.
#[derive(Debug, Clone, Copy)]
pub struct Shared<T> {
    start: *mut T,
    length: usize,
}

// SAFETY: the only way in is `part`, whose caller promises that parts do not overlap.
unsafe impl<T: Send> Sync for Shared<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Send for Shared<T> {}

impl<T> Shared<T> {
    /// Shares a slice for as long as the borrow that `slice` came from lasts.
    pub fn new(slice: &mut [T]) -> Self {
        Shared {
            start: slice.as_mut_ptr(),
            length: slice.len(),
        }
    }

    /// `slice[start..start + length]`
    ///
    /// # Safety
    /// No other task may hold a part that overlaps, and the shared slice must still be borrowed.
    ///
    /// # Panics
    /// A part outside the slice: a bug of the kernel.
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn part(&self, start: usize, length: usize) -> &mut [T] {
        assert!(
            start <= self.length && length <= self.length - start,
            "a part lies outside its slice"
        );
        // SAFETY: inside the slice by the line above, alone by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(start), length) }
    }
}

/// Lends a buffer of this thread, at least `length` long, with whatever was left in it.
///
pub fn scratch<T: Copy + Default + 'static, R>(length: usize, body: impl FnOnce(&mut [T]) -> R) -> R {
    thread_local! {
        /// Buffers that are not lent out, largest last used on top.
        static FREE: RefCell<Vec<Vec<u64>>> = const { RefCell::new(Vec::new()) };
    }
    let bytes = length * size_of::<T>();
    let mut words = FREE.with_borrow_mut(Vec::pop).unwrap_or_default();
    // One cache line more than asked for, so that the start can be aligned to one.
    words.resize(words.len().max(bytes.div_ceil(8) + 8), 0);
    let start = words.as_mut_ptr().cast::<u8>();
    let start = start.wrapping_add(start.align_offset(64)).cast::<T>();
    // SAFETY: inside `words` by its length, aligned to 64, and every bit pattern of the element types used here
    // (integers and floats) is a value.
    let out = body(unsafe { std::slice::from_raw_parts_mut(start, length) });
    FREE.with_borrow_mut(|free| free.push(words));
    out
}
