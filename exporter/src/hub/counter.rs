//! A counter of bytes that arrive, between a download and who watches it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Counts what arrives, and says whether somebody still waits for it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Counter(Arc<Counted>);

#[derive(Debug, Default)]
struct Counted {
    /// Bytes of the file that are here, those of earlier calls included.
    here: AtomicU64,
    abandoned: AtomicBool,
}

impl Counter {
    /// So many bytes of the file are here.
    pub(crate) fn set(&self, here: u64) {
        self.0.here.store(here, Ordering::Relaxed);
    }

    /// How many are.
    pub(crate) fn here(&self) -> u64 {
        self.0.here.load(Ordering::Relaxed)
    }

    /// Nobody waits any more.
    pub(crate) fn abandon(&self) {
        self.0.abandoned.store(true, Ordering::Relaxed);
    }

    /// Whether nobody waits any more.
    pub(crate) fn is_abandoned(&self) -> bool {
        self.0.abandoned.load(Ordering::Relaxed)
    }
}
