//! Memory that requests share: who wants bytes takes them from a budget, and gives them back by dropping what it got.

use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Bytes of one permit.
const UNIT: u64 = 4096;

/// So many bytes in all.
#[derive(Debug)]
pub(crate) struct Budget(Arc<Semaphore>);

/// Bytes that are taken, until dropped.
#[derive(Debug, Default)]
pub(crate) struct Taken(Vec<OwnedSemaphorePermit>);

impl Budget {
    pub(crate) fn new(bytes: u64) -> Budget {
        let units = usize::try_from(bytes / UNIT).unwrap_or(usize::MAX);
        Budget(Arc::new(Semaphore::new(units.clamp(1, Semaphore::MAX_PERMITS))))
    }

    /// Adds `bytes` to what is taken; `None` where so many are not there.
    #[must_use]
    pub(crate) fn take(&self, bytes: u64, taken: &mut Taken) -> Option<()> {
        let units = u32::try_from(bytes.div_ceil(UNIT)).ok()?;
        let permit = Arc::clone(&self.0).try_acquire_many_owned(units).ok()?;
        taken.0.push(permit);
        Some(())
    }
}
