//! How does something get ready while other things happen? A thread of its own prepares it, whoever needs it first waits.
//!
//! `tests/interleavings.rs` compiles this file too, with loom's threads and locks in place of `crate::sync`.

use crate::error::EngineError;
use crate::sync::{Builder, JoinHandle, Mutex, MutexGuard};
use std::fmt;
use std::sync::{Arc, PoisonError, TryLockError};
use std::time::Instant;

type Outcome<T> = (Result<T, EngineError>, Instant);

/// A value that a thread prepares, for all who share it.
pub(crate) struct Lazy<T> {
    name: &'static str,
    prepare: Arc<dyn Fn() -> Result<T, EngineError> + Send + Sync>,
    /// Held by who waits for the thread or prepares the value; the others wait for that one.
    state: Mutex<State<T>>,
}

enum State<T> {
    Coming(JoinHandle<Outcome<T>>),
    /// And when it was there.
    Here(T, Instant),
    /// Nobody prepares it: whoever needs it does.
    Open,
}

impl<T: Clone + Send + 'static> Lazy<T> {
    /// Begins to prepare a value on a thread called `name`.
    pub(crate) fn begin(
        name: &'static str,
        prepare: impl Fn() -> Result<T, EngineError> + Send + Sync + 'static,
    ) -> Lazy<T> {
        let prepare: Arc<dyn Fn() -> Result<T, EngineError> + Send + Sync> = Arc::new(prepare);
        let work = Arc::clone(&prepare);
        let thread = Builder::new().name(name.to_owned());
        let state = match thread.spawn(move || (work(), Instant::now())) {
            Ok(handle) => State::Coming(handle),
            // No more threads: slower, not wrong.
            Err(_) => State::Open,
        };
        Lazy {
            name,
            prepare,
            state: Mutex::new(state),
        }
    }

    /// A value that is there; `prepare` would make it again.
    pub(crate) fn ready(
        name: &'static str,
        value: T,
        prepare: impl Fn() -> Result<T, EngineError> + Send + Sync + 'static,
    ) -> Lazy<T> {
        Lazy {
            name,
            prepare: Arc::new(prepare),
            state: Mutex::new(State::Here(value, Instant::now())),
        }
    }

    /// Whether [`Lazy::get`] would not wait.
    pub(crate) fn is_ready(&self) -> bool {
        match self.at_once().as_deref() {
            Some(State::Coming(thread)) => thread.is_finished(),
            Some(State::Here(..)) => true,
            Some(State::Open) | None => false,
        }
    }

    /// When it was there; `None` if nobody has needed it yet.
    pub(crate) fn finished(&self) -> Option<Instant> {
        match self.at_once().as_deref() {
            Some(State::Here(_, finished)) => Some(*finished),
            _ => None,
        }
    }

    /// The state, unless somebody waits for the value.
    fn at_once(&self) -> Option<MutexGuard<'_, State<T>>> {
        match self.state.try_lock() {
            Ok(state) => Some(state),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    /// The value, as soon as it is there. After an error it is prepared again when it is next needed.
    pub(crate) fn get(&self) -> Result<T, EngineError> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let (value, finished) = match std::mem::replace(&mut *state, State::Open) {
            State::Here(value, finished) => (Ok(value), finished),
            State::Coming(thread) => {
                let network = self.name;
                thread.join().map_err(|_| EngineError::Thread { network })?
            }
            State::Open => ((self.prepare)(), Instant::now()),
        };
        let value = value?;
        *state = State::Here(value.clone(), finished);
        Ok(value)
    }
}

/// Waits for its thread: what comes after us finds nobody at work.
impl<T> Drop for Lazy<T> {
    fn drop(&mut self) {
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let State::Coming(thread) = std::mem::replace(state, State::Open) {
            drop(thread.join());
        }
    }
}

impl<T> fmt::Debug for Lazy<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lazy")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}
