//! Exceptions: the words of the library's errors, as classes of Python.

use exporter::ExportError;
use exporter::command::ExportAsError;
use pyo3::create_exception;
use pyo3::exceptions::{PyException, PyKeyboardInterrupt};
use pyo3::prelude::*;
use runtime::EngineError;
use runtime::image::ImageError;

create_exception!(
    fvlm,
    Error,
    PyException,
    "What fvlm refuses, or cannot do; the message says what was found and what was expected."
);
create_exception!(
    fvlm,
    ImageError_,
    Error,
    "An image that cannot be read or prepared."
);
create_exception!(
    fvlm,
    ExportError_,
    Error,
    "An export that failed, or whose arguments mean none. No bundle was left behind."
);
create_exception!(
    fvlm,
    IncompleteError,
    Error,
    "An answer that was to be JSON and was cut off; `.text` is what there is of it."
);

/// Adds the classes.
pub(crate) fn add(module: &Bound<'_, PyModule>) -> PyResult<()> {
    let py = module.py();
    for (name, class) in [
        ("Error", py.get_type::<Error>()),
        ("ImageError", py.get_type::<ImageError_>()),
        ("ExportError", py.get_type::<ExportError_>()),
        ("IncompleteError", py.get_type::<IncompleteError>()),
    ] {
        class.setattr("__name__", name)?;
        class.setattr("__qualname__", name)?;
        module.add(name, class)?;
    }
    Ok(())
}

/// Of an engine.
pub(crate) fn engine(error: EngineError) -> PyErr {
    match error {
        EngineError::Image(error) => image(error),
        EngineError::Cancelled => Error::new_err("the answer was cancelled"),
        error => Error::new_err(error.to_string()),
    }
}

/// Of an image.
pub(crate) fn image(error: ImageError) -> PyErr {
    ImageError_::new_err(error.to_string())
}

/// Of an export.
pub(crate) fn export(error: ExportAsError) -> PyErr {
    match error {
        ExportAsError::Export(ExportError::Interrupted | ExportError::InterruptedDownload { .. }) => {
            PyKeyboardInterrupt::new_err("the export was interrupted")
        }
        error => ExportError_::new_err(error.to_string()),
    }
}
