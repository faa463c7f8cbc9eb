//! An answer as it comes: an iterator over pieces of its text.

use crate::conversation::Dialogue;
use crate::owner::{Inside, Owned};
use crate::{error, values};
use pyo3::exceptions::PyUserWarning;
use pyo3::prelude::*;
use runtime::{Finish, ProviderReport, Stats};
use std::ffi::CString;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// An answer as it comes: an iterator over pieces of its text, computed one token at a time.
///
/// Any thread may take the next piece. `close()` ends it; so does Ctrl-C.
#[pyclass(frozen, module = "fvlm")]
pub(crate) struct Answer {
    state: Mutex<State>,
    cancel: Arc<AtomicBool>,
    owned: Owned,
}

struct State {
    /// While it goes on.
    going: Option<runtime::Answer<'static>>,
    text: String,
    finish: Option<Finish>,
    provider: ProviderReport,
    stats: Stats,
    /// Whose answer it is, to be told of its end.
    dialogue: Option<Arc<Mutex<Dialogue>>>,
}

impl State {
    /// The next piece that has text; `None` at the end.
    fn next(&mut self) -> Option<Result<String, runtime::EngineError>> {
        loop {
            let piece = self.going.as_mut()?.next();
            match piece {
                Some(Ok(piece)) if piece.text.is_empty() => {}
                Some(Ok(piece)) => {
                    self.text.push_str(&piece.text);
                    return Some(Ok(piece.text));
                }
                Some(Err(error)) => {
                    self.end(None);
                    return Some(Err(error));
                }
                None => {
                    self.end(None);
                    return None;
                }
            }
        }
    }

    /// Keeps what is asked for later, and gives the conversation back. `why` it ended, where it did not by itself.
    fn end(&mut self, why: Option<Finish>) {
        let Some(answer) = self.going.take() else { return };
        self.finish = answer.finish().or(why);
        self.stats = answer.stats();
        let conversation = answer.into_conversation();
        if let Some(dialogue) = self.dialogue.take() {
            let mut dialogue = dialogue.lock().unwrap_or_else(PoisonError::into_inner);
            dialogue.answered(conversation, self.text.clone());
        }
    }
}

impl State {
    /// Gives the conversation back as if nothing had been asked.
    fn give_up(&mut self) {
        let Some(answer) = self.going.take() else { return };
        let conversation = answer.into_conversation();
        if let Some(dialogue) = self.dialogue.take() {
            let mut dialogue = dialogue.lock().unwrap_or_else(PoisonError::into_inner);
            dialogue.unasked(conversation);
        }
    }
}

impl Drop for State {
    fn drop(&mut self) {
        self.end(None);
    }
}

impl Answer {
    /// The answer, and warnings of what was chosen otherwise than asked for.
    pub(crate) fn begin(
        py: Python<'_>,
        answer: runtime::Answer<'static>,
        cancel: Arc<AtomicBool>,
        owned: Owned,
        dialogue: Option<Arc<Mutex<Dialogue>>>,
    ) -> PyResult<Answer> {
        let notices = answer.notices().to_vec();
        let answer = Answer {
            state: Mutex::new(State {
                provider: answer.provider().clone(),
                stats: answer.stats(),
                going: Some(answer),
                text: String::new(),
                finish: None,
                dialogue,
            }),
            cancel,
            owned,
        };
        // A warning may be an exception.
        if let Err(refused) = warn(py, &notices) {
            py.detach(|| answer.state().give_up());
            return Err(refused);
        }
        Ok(answer)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Why it ended; `None` while it goes on.
    pub(crate) fn ended(&self, py: Python<'_>) -> Option<Finish> {
        let _inside = Inside::briefly();
        py.detach(|| {
            let state = self.state();
            match &state.going {
                Some(answer) => answer.finish(),
                None => state.finish,
            }
        })
    }
}

/// Says each notice as a warning of Python.
pub(crate) fn warn(py: Python<'_>, notices: &[String]) -> PyResult<()> {
    let category = py.get_type::<PyUserWarning>();
    for notice in notices {
        let text = CString::new(notice.replace('\0', " ")).unwrap_or_default();
        PyErr::warn(py, &category, &text, 2)?;
    }
    Ok(())
}

#[pymethods]
impl Answer {
    fn __iter__(this: Py<Answer>) -> Py<Answer> {
        this
    }

    fn __next__(&self, py: Python<'_>) -> PyResult<Option<String>> {
        let _model = self.owned.check()?;
        if let Err(interrupted) = py.check_signals() {
            self.close(py);
            return Err(interrupted);
        }
        py.detach(|| self.state().next().transpose())
            .map_err(error::engine)
    }

    /// The rest of the text, computed to its end. Ctrl-C is looked for between tokens.
    pub(crate) fn read(&self, py: Python<'_>) -> PyResult<String> {
        let mut rest = String::new();
        while let Some(piece) = self.__next__(py)? {
            rest.push_str(&piece);
        }
        Ok(rest)
    }

    /// Ends it after the token that is being computed. What came stays said. Any thread may call it.
    fn close(&self, py: Python<'_>) {
        let _inside = Inside::briefly();
        self.cancel.store(true, Ordering::Relaxed);
        py.detach(|| self.state().end(Some(Finish::Cancelled)));
    }

    fn __enter__(this: Py<Answer>) -> Py<Answer> {
        this
    }

    #[pyo3(signature = (*_error))]
    fn __exit__(&self, py: Python<'_>, _error: &Bound<'_, pyo3::types::PyTuple>) {
        self.close(py);
    }

    /// The text so far.
    #[getter]
    fn text(&self, py: Python<'_>) -> String {
        let _inside = Inside::briefly();
        py.detach(|| self.state().text.clone())
    }

    /// Why it ended: `stop`, `stop_string`, `max_tokens`, `max_context` or `cancelled`; None while it goes on.
    #[getter]
    fn finish<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        values::object(py, &self.ended(py))
    }

    /// What it took so far: times in seconds, counts, bytes.
    #[getter]
    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let _inside = Inside::briefly();
        let stats = py.detach(|| {
            let state = self.state();
            state
                .going
                .as_ref()
                .map_or_else(|| state.stats.clone(), runtime::Answer::stats)
        });
        values::object(py, &stats)
    }

    /// Who computes, and with which graphs.
    #[getter]
    fn provider<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let _inside = Inside::briefly();
        let provider = py.detach(|| self.state().provider.clone());
        values::object(py, &provider)
    }
}
