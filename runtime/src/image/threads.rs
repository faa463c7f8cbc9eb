//! Images in threads: who does which share of the rows?

use std::sync::{Mutex, PoisonError};

/// Threads that can run at once.
pub(super) fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Calls `run` with every share, in order and as many at once as there are [`cores`], the caller's among them.
pub(super) fn share<T>(shares: impl ExactSizeIterator<Item = T> + Send, run: impl Fn(T) + Sync) {
    let helpers = shares.len().min(cores()).saturating_sub(1);
    let shares = Mutex::new(shares);
    let next = || shares.lock().unwrap_or_else(PoisonError::into_inner).next();
    let work = || {
        while let Some(share) = next() {
            run(share);
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..helpers {
            // Where a thread cannot be had, the others do its share.
            drop(std::thread::Builder::new().spawn_scoped(scope, work));
        }
        work();
    });
}
