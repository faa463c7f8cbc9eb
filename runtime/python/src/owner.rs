//! Who opened a model: a copy of that process, which `fork` makes, has none of its threads.

use crate::error;
use pyo3::prelude::*;

/// A model, and the process that opened it.
#[derive(Debug, Clone)]
pub(crate) struct Owned {
    model: runtime::Model,
    process: u32,
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

    /// Refuses a process that is another.
    pub(crate) fn check(&self) -> PyResult<&runtime::Model> {
        let now = std::process::id();
        if self.process == now {
            return Ok(&self.model);
        }
        Err(error::Error::new_err(format!(
            "this model was opened by process {}, found process {now}: open it after `fork`, in each process",
            self.process
        )))
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
