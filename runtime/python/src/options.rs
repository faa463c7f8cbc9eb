//! Options: keyword arguments that say how an answer is made, as a [`Request`].

use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString};
use runtime::{Constraint, Request, Sampling};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// The names, in the order of the documentation.
const NAMES: [&str; 10] = [
    "max_tokens",
    "temperature",
    "top_k",
    "top_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "seed",
    "stop",
    "regex",
];

/// The request that keyword arguments mean, and the flag that ends its answer.
pub(crate) fn request(options: Option<&Bound<'_, PyDict>>) -> PyResult<(Request, Arc<AtomicBool>)> {
    let mut request = Request::default();
    let mut sampling = Sampling::default();
    if let Some(options) = options {
        known(options)?;
        set(options, "max_tokens", &mut request.max_tokens)?;
        set(options, "temperature", &mut sampling.temperature)?;
        set(options, "top_k", &mut sampling.top_k)?;
        set(options, "top_p", &mut sampling.top_p)?;
        set(options, "repetition_penalty", &mut sampling.repetition_penalty)?;
        set(options, "presence_penalty", &mut sampling.presence_penalty)?;
        set(options, "frequency_penalty", &mut sampling.frequency_penalty)?;
        set(options, "seed", &mut sampling.seed)?;
        if let Some(stop) = options.get_item("stop")?.filter(|stop| !stop.is_none()) {
            request.stops = match stop.cast::<PyString>() {
                Ok(one) => vec![
                    one.to_str()
                        .map_err(|error| named(&stop, "stop", &error))?
                        .to_owned(),
                ],
                Err(_) => stop.extract().map_err(|error| named(&stop, "stop", &error))?,
            };
        }
        let mut regex: Option<String> = None;
        set(options, "regex", &mut regex)?;
        request.constraint = regex.map(Constraint::Regex);
    }
    if request.stops.iter().any(String::is_empty) {
        return Err(PyValueError::new_err(
            "stop has an empty text, expected one character or more",
        ));
    }
    sampling
        .check()
        .map_err(|error| PyValueError::new_err(error.to_string()))?;
    if request.max_tokens == 0 {
        return Err(PyValueError::new_err("max_tokens is 0, expected 1 or more"));
    }
    let cancel = Arc::new(AtomicBool::new(false));
    let request = request.with_sampling(sampling).with_cancel(Arc::clone(&cancel));
    Ok((request, cancel))
}

/// Refuses names that are none.
fn known(options: &Bound<'_, PyDict>) -> PyResult<()> {
    for name in options.keys() {
        let name = name.to_string();
        if !NAMES.contains(&name.as_str()) {
            let expected = NAMES.join(", ");
            return Err(PyTypeError::new_err(format!(
                "unexpected keyword argument `{name}`, expected one of {expected}"
            )));
        }
    }
    Ok(())
}

/// Takes a value where one is given; None leaves the usual one.
fn set<'py, T: FromPyObjectOwned<'py>>(options: &Bound<'py, PyDict>, name: &str, to: &mut T) -> PyResult<()> {
    if let Some(value) = options.get_item(name)?.filter(|value| !value.is_none()) {
        *to = value.extract().map_err(|error: T::Error| {
            let error: PyErr = error.into();
            named(&value, name, &error)
        })?;
    }
    Ok(())
}

/// An error of a value, with the name of its argument.
fn named(value: &Bound<'_, PyAny>, name: &str, error: &PyErr) -> PyErr {
    let py = value.py();
    let found = value
        .repr()
        .map_or_else(|_| "it".to_owned(), |found| found.to_string());
    let message = format!("{name} is {found}: {}", error.value(py));
    if error.is_instance_of::<PyTypeError>(py) {
        PyTypeError::new_err(message)
    } else {
        PyValueError::new_err(message)
    }
}
