//! The commands: `fvlm-export`, `fvlm-run` and `fvlm-serve` in the process of an interpreter that was started for them.

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use std::ffi::OsString;

/// Does what the program `name` does with `arguments` (without its name) and ends the process with its exit code.
#[pyfunction]
pub(crate) fn command(py: Python<'_>, name: &str, arguments: Vec<OsString>) -> PyResult<()> {
    let program = OsString::from(name);
    let arguments = std::iter::once(program).chain(arguments);
    let run = |main: fn(Vec<OsString>) -> u8| -> PyResult<()> {
        let arguments: Vec<OsString> = arguments.collect();
        py.detach(|| programs::finish(main(arguments)))
    };
    match name {
        "fvlm-export" => run(exporter::command::main),
        "fvlm-run" => run(runtime::command::main),
        "fvlm-serve" => run(server::command::main),
        other => Err(PyValueError::new_err(format!(
            "found command `{other}`, expected fvlm-export, fvlm-run or fvlm-serve"
        ))),
    }
}
