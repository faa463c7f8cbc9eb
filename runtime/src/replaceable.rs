//! Which engine is in use? A value of several parts that get ready, and that is replaced as a whole where one
//! of them turns out not to work.
//!
//! `tests/interleavings.rs` compiles this file too, with loom's threads and locks in place of `crate::sync`.

use crate::error::EngineError;
use crate::lazy::Lazy;
use crate::sync::Mutex;
use std::sync::{Arc, PoisonError};

/// A value that may be replaced by another one. Who has parts of the old one keeps them.
#[derive(Debug)]
pub(crate) struct Replaceable<T> {
    current: Mutex<Arc<Lazy<Arc<T>>>>,
}

impl<T: Send + Sync + 'static> Replaceable<T> {
    /// The first value.
    pub(crate) fn new(first: Lazy<Arc<T>>) -> Replaceable<T> {
        Replaceable {
            current: Mutex::new(Arc::new(first)),
        }
    }

    /// The value that is in use now.
    pub(crate) fn current(&self) -> Arc<Lazy<Arc<T>>> {
        Arc::clone(&self.current.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Waits for a part. Where `may_replace` says so of its error, the part is that of the value that
    /// `replace` makes of the one in use, once for all who wait.
    ///
    /// # Errors
    /// Those of the part and of `replace`.
    pub(crate) fn part<P>(
        &self,
        get: impl Fn(&T) -> Result<P, EngineError>,
        may_replace: impl Fn(&EngineError) -> bool,
        replace: impl Fn(&T, EngineError) -> Result<Lazy<Arc<T>>, EngineError>,
    ) -> Result<P, EngineError> {
        loop {
            let current = self.current();
            let value = current.get()?;
            let error = match get(&value) {
                Err(error) if may_replace(&error) => error,
                outcome => return outcome,
            };
            let mut place = self.current.lock().unwrap_or_else(PoisonError::into_inner);
            // Another conversation may have been first.
            if Arc::ptr_eq(&place, &current) {
                *place = Arc::new(replace(&value, error)?);
            }
        }
    }
}
