//! Synchronization of the pool: threads, locks, atomics and clocks, all from the standard library.
//!
//! `tests/interleavings.rs` has a module of the same names with loom's in place of them.

pub(crate) use std::hint::spin_loop;
pub(crate) use std::sync::Mutex;
pub(crate) use std::sync::atomic::AtomicUsize;
pub(crate) use std::thread::{Builder, JoinHandle, Thread, park};

use std::time::{Duration, Instant};

/// How long a thread without work stays awake.
pub(crate) const AWAKE: Duration = Duration::from_micros(200);
/// How often it looks for work before it looks at the clock.
pub(crate) const LOOKS: usize = 64;

/// Since when a thread has had no work.
#[derive(Debug)]
pub(crate) struct Idle(Instant);

impl Idle {
    /// Since now.
    pub(crate) fn begin() -> Idle {
        Idle(Instant::now())
    }

    /// Whether it is to stay awake.
    pub(crate) fn is_short(&self) -> bool {
        self.0.elapsed() < AWAKE
    }
}

/// A value that threads share by rules of their own.
#[derive(Debug)]
pub(crate) struct UnsafeCell<T>(std::cell::UnsafeCell<T>);

impl<T> UnsafeCell<T> {
    /// Holds a value.
    pub(crate) fn new(value: T) -> UnsafeCell<T> {
        UnsafeCell(std::cell::UnsafeCell::new(value))
    }

    /// Lends the place to be read.
    pub(crate) fn with<R>(&self, body: impl FnOnce(*const T) -> R) -> R {
        body(self.0.get())
    }

    /// Lends the place to be written.
    pub(crate) fn with_mut<R>(&self, body: impl FnOnce(*mut T) -> R) -> R {
        body(self.0.get())
    }
}
