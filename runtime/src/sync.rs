//! Synchronization of what conversations share: threads and locks, from the standard library.
//!
//! `tests/interleavings.rs` has a module of the same names with loom's in place of them.

pub(crate) use std::sync::{Mutex, MutexGuard};
pub(crate) use std::thread::{Builder, JoinHandle};
