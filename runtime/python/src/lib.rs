#![doc = include_str!("../README.md")]

mod answer;
mod commands;
mod conversation;
mod error;
mod export;
mod images;
mod model;
mod options;
mod owner;
mod values;

use pyo3::prelude::*;

/// The native half of package `fvlm`.
#[pymodule]
fn _native(module: &Bound<'_, PyModule>) -> PyResult<()> {
    runtime::backend::silence_caught_panics();
    // Whoever imports the module is most often the main thread.
    runtime::backend::watch_thread();
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    owner::watch(module)?;
    error::add(module)?;
    module.add_class::<model::Model>()?;
    module.add_class::<conversation::Conversation>()?;
    module.add_class::<answer::Answer>()?;
    module.add_class::<values::Choice>()?;
    module.add_function(wrap_pyfunction!(export::export, module)?)?;
    module.add_function(wrap_pyfunction!(commands::command, module)?)?;
    Ok(())
}
