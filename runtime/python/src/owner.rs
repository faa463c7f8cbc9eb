//! Who may compute: the process that opened a model, until its interpreter ends.
//!
//! A copy of the process, which `fork` makes, has none of its threads. When an interpreter ends, Python ends threads where they
//! ask for its lock, and crashes if such a thread has functions of ours above it: so an interpreter waits for them first.

use crate::error;
use pyo3::prelude::*;
use std::ops::Deref;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Calls that have begun and not returned.
static INSIDE: AtomicUsize = AtomicUsize::new(0);
/// Interpreters that have the module.
static INTERPRETERS: AtomicUsize = AtomicUsize::new(0);
/// Whether the last of them is ending.
static ENDING: AtomicBool = AtomicBool::new(false);
/// The process that has imported the module.
static PROCESS: AtomicU32 = AtomicU32::new(0);
/// So long an interpreter that ends waits for calls.
const PATIENCE: Duration = Duration::from_secs(30);

/// A call, for as long as it takes.
#[derive(Debug)]
pub(crate) struct Inside(());

impl Inside {
    /// Of what computes nothing.
    pub(crate) fn briefly() -> Inside {
        INSIDE.fetch_add(1, Ordering::SeqCst);
        Inside(())
    }

    /// Refuses calls when the interpreter is ending.
    pub(crate) fn enter() -> PyResult<Inside> {
        let inside = Inside::briefly();
        if ENDING.load(Ordering::SeqCst) {
            return Err(error::Error::new_err("the interpreter is ending"));
        }
        Ok(inside)
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        INSIDE.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Has an interpreter wait for calls of its threads before it ends them.
pub(crate) fn watch(module: &Bound<'_, PyModule>) -> PyResult<()> {
    INTERPRETERS.fetch_add(1, Ordering::SeqCst);
    PROCESS.store(std::process::id(), Ordering::SeqCst);
    let end = wrap_pyfunction!(end, module)?;
    module.py().import("atexit")?.call_method1("register", (end,))?;
    Ok(())
}

/// Refuses new calls, and returns when those in progress have.
#[pyfunction]
fn end(py: Python<'_>) {
    // A copy of a process has the numbers of threads that it does not have.
    let last = INTERPRETERS.fetch_sub(1, Ordering::SeqCst) == 1;
    if !last || PROCESS.load(Ordering::SeqCst) != std::process::id() {
        return;
    }
    ENDING.store(true, Ordering::SeqCst);
    py.detach(|| {
        let begun = Instant::now();
        while INSIDE.load(Ordering::SeqCst) > 0 && begun.elapsed() < PATIENCE {
            std::thread::sleep(Duration::from_millis(1));
        }
    });
}

/// A model, and the process that opened it.
#[derive(Debug, Clone)]
pub(crate) struct Owned {
    model: runtime::Model,
    process: u32,
}

/// A model that a call may use.
#[derive(Debug)]
pub(crate) struct Used<'a> {
    model: &'a runtime::Model,
    _inside: Inside,
}

impl Deref for Used<'_> {
    type Target = runtime::Model;

    fn deref(&self) -> &runtime::Model {
        self.model
    }
}

impl Owned {
    /// Of this process.
    pub(crate) fn new(model: runtime::Model) -> Owned {
        Owned {
            model,
            process: std::process::id(),
        }
    }

    /// The model, whoever asks.
    pub(crate) fn model(&self) -> &runtime::Model {
        &self.model
    }

    /// The model for a call, which keeps this to its end. Refuses a process that is another, and an interpreter that ends.
    pub(crate) fn check(&self) -> PyResult<Used<'_>> {
        let now = std::process::id();
        if self.process != now {
            return Err(error::Error::new_err(format!(
                "this model was opened by process {}, found process {now}: open it after `fork`, in each process",
                self.process
            )));
        }
        Ok(Used {
            model: &self.model,
            _inside: Inside::enter()?,
        })
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        if self.process != std::process::id() {
            // Engines would wait for threads that are not here.
            std::mem::forget(self.model.clone());
        }
    }
}
