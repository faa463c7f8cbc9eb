//! `fvlm.export`: a checkpoint becomes a bundle, told to a function of Python.

use crate::owner::Inside;
use crate::{error, values};
use exporter::{Phase, Report, command};
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyDict, PyList, PyString, PyTuple};
use std::ffi::{OsStr, OsString};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// How often the caller is told, and asked whether to go on.
const PAUSE: Duration = Duration::from_millis(50);

/// Keyword arguments that are a flag of `fvlm-export` of the same name.
const NAMES: [&str; 18] = [
    "adapter",
    "calibration",
    "card",
    "dry_run",
    "from_onnx",
    "image_size",
    "ios16_encoder",
    "layout",
    "max_context",
    "neural_engine",
    "overwrite",
    "page",
    "precision",
    "prefill",
    "self_contained",
    "target",
    "to",
    "weights",
];

/// Exports a checkpoint to a bundle; what it holds, as `fvlm-export --json` says it.
#[pyfunction]
#[pyo3(signature = (model, output, *, progress=None, **flags))]
pub(crate) fn export<'py>(
    py: Python<'py>,
    model: Option<PathBuf>,
    output: PathBuf,
    progress: Option<Py<PyAny>>,
    flags: Option<&Bound<'py, PyDict>>,
) -> PyResult<Bound<'py, PyAny>> {
    let mut arguments: Vec<OsString> = Vec::new();
    if let Some(model) = model {
        arguments.push(word("model", &model.into_os_string()));
    }
    if let Some(flags) = flags {
        for (name, value) in flags {
            add(&mut arguments, &name.to_string(), &value)?;
        }
    }
    arguments.push(word("output", &output.into_os_string()));
    let mut told = Told {
        progress,
        phase: Phase::Write,
        done: 0,
        bytes: 0,
        next: Instant::now(),
        refused: None,
    };
    let _inside = Inside::enter()?;
    let exported = py.detach(|| {
        let exported = command::export_as(arguments, &mut told);
        if exported.is_ok() && told.done < told.bytes {
            // Gaps between tensors are not counted on the way.
            told.done = told.bytes;
            told.tell();
        }
        exported
    });
    if let Some(refused) = told.refused {
        // Of the caller's own function, or Ctrl-C.
        return Err(refused);
    }
    let summary = exported.map_err(error::export)?;
    values::object(py, &summary)
}

/// A keyword argument as a flag: True is the flag alone, a list the flag for each.
fn add(arguments: &mut Vec<OsString>, name: &str, value: &Bound<'_, PyAny>) -> PyResult<()> {
    if !NAMES.contains(&name) {
        let expected = NAMES.join(", ");
        return Err(PyTypeError::new_err(format!(
            "unexpected keyword argument `{name}`, expected progress or one of {expected}"
        )));
    }
    if value.is_none() {
        return Ok(());
    }
    if let Ok(switch) = value.cast::<PyBool>() {
        if switch.is_true() {
            arguments.push(format!("--{}", name.replace('_', "-")).into());
        }
        return Ok(());
    }
    if value.is_instance_of::<PyList>() || value.is_instance_of::<PyTuple>() {
        for one in value.try_iter()? {
            add(arguments, name, &one?)?;
        }
        return Ok(());
    }
    let text = match value.cast::<PyString>() {
        Ok(text) => text.extract::<OsString>()?,
        Err(_) => match value.extract::<PathBuf>() {
            Ok(path) => path.into_os_string(),
            Err(_) => value.str()?.extract::<OsString>()?,
        },
    };
    arguments.push(word(name, &text));
    Ok(())
}

/// A flag and its value in one word, so that a value which begins with a dash is no flag.
fn word(name: &str, value: &OsStr) -> OsString {
    let mut word = OsString::from(format!("--{}=", name.replace('_', "-")));
    word.push(value);
    word
}

/// Tells a function of Python how far the export is.
struct Told {
    progress: Option<Py<PyAny>>,
    phase: Phase,
    done: u64,
    bytes: u64,
    /// When to tell next.
    next: Instant,
    /// Why it should end.
    refused: Option<PyErr>,
}

impl Told {
    fn tell(&mut self) {
        if self.refused.is_some() {
            return;
        }
        let phase = match self.phase {
            Phase::Download => "download",
            Phase::Write => "write",
        };
        let told = Python::attach(|py| {
            py.check_signals()?;
            match &self.progress {
                Some(progress) => progress.call1(py, (phase, self.done, self.bytes)).map(drop),
                None => Ok(()),
            }
        });
        self.refused = told.err();
        self.next = Instant::now() + PAUSE;
    }
}

impl Report for Told {
    fn start(&mut self, phase: Phase, bytes: u64) {
        (self.phase, self.done, self.bytes) = (phase, 0, bytes);
        self.tell();
    }

    fn advance(&mut self, bytes: u64) {
        self.done += bytes;
        if self.done >= self.bytes || Instant::now() >= self.next {
            self.tell();
        }
    }

    fn interrupted(&self) -> bool {
        self.refused.is_some()
    }
}
