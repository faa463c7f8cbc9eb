//! Values: what Rust serializes, as objects of Python.

use pyo3::prelude::*;
use pyo3::types::PyString;
use serde::Serialize;

/// As Python's module `json` reads it.
pub(crate) fn object<'py>(py: Python<'py>, value: &impl Serialize) -> PyResult<Bound<'py, PyAny>> {
    let text =
        serde_json::to_string(value).map_err(|error| crate::error::Error::new_err(error.to_string()))?;
    parse(py, &text)
}

/// A JSON text as Python's module `json` reads it.
pub(crate) fn parse<'py>(py: Python<'py>, text: &str) -> PyResult<Bound<'py, PyAny>> {
    py.import("json")?
        .call_method1("loads", (PyString::new(py, text),))
}

/// A Python object as JSON.
pub(crate) fn json(value: &Bound<'_, PyAny>) -> PyResult<serde_json::Value> {
    let text: String = value
        .py()
        .import("json")?
        .call_method1("dumps", (value,))?
        .extract()?;
    serde_json::from_str(&text).map_err(|error| crate::error::Error::new_err(error.to_string()))
}

/// One of several answers, and how likely it is.
#[pyclass(frozen, module = "fvlm", get_all, eq)]
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Choice {
    /// The answer.
    text: String,
    /// Natural logarithm of its probability in the model's own distribution.
    logprob: f64,
    /// Its share among the choices, 0 to 1; those of all choices sum to 1.
    probability: f64,
}

#[pymethods]
impl Choice {
    fn __repr__(&self) -> String {
        format!(
            "Choice(text={:?}, probability={:.4})",
            self.text, self.probability
        )
    }
}

impl From<runtime::Choice> for Choice {
    fn from(choice: runtime::Choice) -> Choice {
        Choice {
            text: choice.text,
            logprob: choice.logprob,
            probability: choice.probability,
        }
    }
}
