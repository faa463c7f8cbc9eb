//! A model: a bundle that is opened once, for any number of threads.

use crate::answer::{self, Answer};
use crate::conversation::Conversation;
use crate::images::{Source, is_several};
use crate::owner::{Inside, Owned};
use crate::values::{self, Choice};
use crate::{error, options};
use numpy::{PyArray3, ToPyArray as _};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyDict;
use runtime::{
    Constraint, DEFAULT_PROMPT, EngineError, Finish, Message, Options, Request, UnknownWord, library,
};
use std::fmt::Display;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// Signatures show the text itself.
const _: () = assert!(matches!(DEFAULT_PROMPT.as_bytes(), b"Describe the image."));

/// A bundle that is opened once: graphs, tokenizer, chat template. Threads share it.
#[pyclass(frozen, module = "fvlm")]
pub(crate) struct Model {
    owned: Owned,
    bundle: PathBuf,
}

/// A word of a set, or an error with those that there are.
fn word<T: FromStr<Err = UnknownWord>>(name: &str, word: Option<&str>) -> PyResult<Option<T>> {
    let parse = |word: &str| {
        let found: Result<T, UnknownWord> = word.parse();
        found.map_err(|error| PyValueError::new_err(format!("{name}: {error}")))
    };
    word.map(parse).transpose()
}

/// A number from 1 to `most`, or an error with its name.
fn number<T: TryFrom<i64> + PartialOrd + Display>(
    name: &str,
    found: Option<i64>,
    most: T,
) -> PyResult<Option<T>> {
    let Some(found) = found else { return Ok(None) };
    match T::try_from(found) {
        Ok(number) if found > 0 && number <= most => Ok(Some(number)),
        _outside => Err(PyValueError::new_err(format!(
            "{name} is {found}, expected 1 to {most}"
        ))),
    }
}

/// The library of the installed package `onnxruntime`, unless the environment names another.
fn installed(py: Python<'_>) -> PyResult<Option<PathBuf>> {
    if std::env::var_os(library::VARIABLE).is_some_and(|named| !named.is_empty()) {
        return Ok(None);
    }
    py.import("fvlm._library")?.call_method0("onnxruntime")?.extract()
}

/// What images of several are, and why one of them is not.
type Described = Result<String, EngineError>;

impl Model {
    /// The answer to a question about one image.
    fn begin(
        &self,
        py: Python<'_>,
        image: &Bound<'_, PyAny>,
        question: &str,
        request: &Request,
        cancel: Arc<AtomicBool>,
    ) -> PyResult<Answer> {
        let model = self.owned.check()?;
        let source = Source::of(image)?;
        let begin = || -> Result<runtime::Answer<'static>, EngineError> {
            let mut conversation = model.conversation();
            let image = conversation.add_image(&source.picture()?)?;
            let messages = [Message::user([image], question)];
            let begun = conversation.into_chat(&messages, request);
            begun.map_err(|refused| refused.1)
        };
        let begun = py.detach(begin).map_err(error::engine)?;
        Answer::begin(py, begun, cancel, self.owned.clone(), None)
    }
}

#[pymethods]
impl Model {
    /// Opens the bundle in a directory. What takes long is opened behind it and waited for where it is needed first.
    #[new]
    #[pyo3(signature = (
        bundle, *, provider="auto", fallback=true, precision=None, target=None, image_size=None, threads=None,
        onnxruntime=None
    ))]
    #[expect(clippy::too_many_arguments, reason = "keyword arguments of Python")]
    fn new(
        py: Python<'_>,
        bundle: PathBuf,
        provider: &str,
        fallback: bool,
        precision: Option<&str>,
        target: Option<&str>,
        image_size: Option<i64>,
        threads: Option<i64>,
        onnxruntime: Option<PathBuf>,
    ) -> PyResult<Model> {
        let _inside = Inside::enter()?;
        let threads = number("threads", threads, Options::MAX_THREADS)?;
        let image_size = number("image_size", image_size, u32::MAX)?;
        let onnxruntime = match onnxruntime {
            None => installed(py)?,
            named => named,
        };
        let provider = word("provider", Some(provider))?.unwrap_or_default();
        let options = Options::default()
            .with_provider(provider)
            .with_fallback(fallback)
            .with_precision(word("precision", precision)?)
            .with_target(word("target", target)?)
            .with_image_size(image_size)
            .with_threads(threads)
            .with_onnxruntime(onnxruntime);
        let model = py
            .detach(|| runtime::Model::open(&bundle, &options))
            .map_err(error::engine)?;
        Ok(Model {
            owned: Owned::new(model),
            bundle,
        })
    }

    fn __repr__(&self) -> String {
        format!("fvlm.Model({:?})", self.bundle)
    }

    /// Waits until everything is open; raises what cannot be opened. Returns itself.
    fn ready<'py>(this: &Bound<'py, Model>) -> PyResult<Bound<'py, Model>> {
        let py = this.py();
        let inner = this.get();
        let model = inner.owned.check()?;
        let notices = py.detach(|| model.ready().map(|()| model.notices()));
        answer::warn(py, &notices.map_err(error::engine)?)?;
        Ok(this.clone())
    }

    /// Reads every file of the bundle and compares its SHA-256 with the contract.
    fn verify(&self, py: Python<'_>) -> PyResult<()> {
        let model = self.owned.check()?;
        py.detach(|| model.verify(&|_bytes| ())).map_err(error::engine)
    }

    /// The answer to a question about an image.
    #[pyo3(signature = (image, question="Describe the image.", **options))]
    fn describe(
        &self,
        py: Python<'_>,
        image: &Bound<'_, PyAny>,
        question: &str,
        options: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<String> {
        self.stream(py, image, question, options)?.read(py)
    }

    /// The answer to a question about an image, as it comes: an iterator over its text.
    #[pyo3(signature = (image, question="Describe the image.", **options))]
    fn stream(
        &self,
        py: Python<'_>,
        image: &Bound<'_, PyAny>,
        question: &str,
        options: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<Answer> {
        let (request, cancel) = options::request(options)?;
        self.begin(py, image, question, &request, cancel)
    }

    /// The answers to one question about each of several images, whose tokens are computed together.
    #[pyo3(signature = (images, question="Describe the image.", *, errors="raise", **options))]
    fn describe_each<'py>(
        &self,
        py: Python<'py>,
        images: &Bound<'py, PyAny>,
        question: &str,
        errors: &str,
        options: Option<&Bound<'py, PyDict>>,
    ) -> PyResult<Vec<Bound<'py, PyAny>>> {
        let _model = self.owned.check()?;
        let keep = match errors {
            "raise" => false,
            "return" => true,
            other => {
                return Err(PyValueError::new_err(format!(
                    "errors is `{other}`, expected `raise` or `return`"
                )));
            }
        };
        let (request, _) = options::request(options)?;
        let mut found = Vec::new();
        // What makes images one after the other may make them all in one buffer.
        let source = if is_several(images) {
            Source::of
        } else {
            Source::copied
        };
        for image in images.try_iter()? {
            py.check_signals()?;
            found.push(source(&image?));
        }
        let mut sources = Vec::with_capacity(found.len());
        let mut refused = Vec::with_capacity(found.len());
        for source in found {
            match source {
                Ok(source) => {
                    sources.push(source);
                    refused.push(None);
                }
                Err(error) if keep => refused.push(Some(error)),
                Err(error) => return Err(error),
            }
        }
        let mut described = together(py, &self.owned, sources, question, &request)?.into_iter();
        let mut all = Vec::with_capacity(refused.len());
        for refusal in refused {
            let outcome = match refusal {
                Some(error) => Err(error),
                None => match described.next() {
                    Some(outcome) => outcome.map_err(error::engine),
                    None => continue,
                },
            };
            all.push(match outcome {
                Ok(text) => text.into_pyobject(py)?.into_any(),
                Err(error) if keep => error.into_value(py).into_bound(py).into_any(),
                Err(error) => return Err(error),
            });
        }
        Ok(all)
    }

    /// How likely each of several answers to a question about an image is, in their order.
    #[pyo3(signature = (image, question, choices))]
    fn choices(
        &self,
        py: Python<'_>,
        image: &Bound<'_, PyAny>,
        question: &str,
        choices: Vec<String>,
    ) -> PyResult<Vec<Choice>> {
        let model = self.owned.check()?;
        let (request, _) = options::request(None)?;
        let source = Source::of(image)?;
        let choose = || -> Result<runtime::Choices, EngineError> {
            let mut conversation = model.conversation();
            let image = conversation.add_image(&source.picture()?)?;
            conversation.choose(&[Message::user([image], question)], &choices, &request)
        };
        let chosen = py.detach(choose).map_err(error::engine)?;
        answer::warn(py, &chosen.notices)?;
        Ok(chosen.choices.into_iter().map(Choice::from).collect())
    }

    /// The answer to a question about an image as JSON that is valid against a schema, read: dicts, lists, numbers, text.
    #[pyo3(signature = (image, question, schema=None, **options))]
    fn json<'py>(
        &self,
        py: Python<'py>,
        image: &Bound<'py, PyAny>,
        question: &str,
        schema: Option<&Bound<'py, PyAny>>,
        options: Option<&Bound<'py, PyDict>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let (request, cancel) = options::request(options)?;
        if request.constraint.is_some() {
            return Err(PyValueError::new_err(
                "found both a regex and JSON, expected one of them",
            ));
        }
        let constraint = match schema {
            Some(schema) => Constraint::JsonSchema(values::json(schema)?),
            None => Constraint::JsonObject,
        };
        let most = request.max_tokens;
        let request = request.with_constraint(constraint);
        let answer = self.begin(py, image, question, &request, cancel)?;
        let text = answer.read(py)?;
        let why = match answer.ended(py) {
            Some(Finish::Stop) => return values::parse(py, &text),
            Some(Finish::MaxTokens) => format!("after {most} tokens (max_tokens)"),
            Some(Finish::MaxContext) => "at the end of the model's context".to_owned(),
            Some(Finish::StopString) => "at a text of `stop`".to_owned(),
            _cancelled => "as it was asked to".to_owned(),
        };
        let error = error::IncompleteError::new_err(format!("the JSON ended {why}, it is not complete"));
        error.value(py).setattr("text", text)?;
        Err(error)
    }

    /// Features `[n, tokens, hidden]` of images in float32, as the decoder takes them.
    fn encode<'py>(
        &self,
        py: Python<'py>,
        images: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyArray3<f32>>> {
        let model = self.owned.check()?;
        let mut rows = Vec::new();
        for source in Source::several(Some(images))? {
            py.check_signals()?;
            let encode = || -> Result<_, EngineError> { model.encode(&source.picture()?) };
            rows.push(py.detach(encode).map_err(error::engine)?);
        }
        let bundle = model.bundle();
        let (tokens, hidden) = (bundle.image.tokens, bundle.prompt.hidden_size);
        let mut all = ndarray::Array3::zeros((rows.len(), tokens, hidden));
        for (mut to, row) in all.outer_iter_mut().zip(&rows) {
            to.assign(&**row);
        }
        Ok(all.to_pyarray(py))
    }

    /// A dialogue that remembers what was said.
    #[pyo3(signature = (*, system=None, context_shift=false))]
    fn conversation(&self, system: Option<String>, context_shift: bool) -> PyResult<Conversation> {
        let _model = self.owned.check()?;
        Ok(Conversation::new(self.owned.clone(), system, context_shift))
    }

    /// Who computes, and with which graphs; waits for them.
    #[getter]
    fn provider<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let model = self.owned.check()?;
        let provider = py.detach(|| model.provider()).map_err(error::engine)?;
        values::object(py, &provider)
    }

    /// Positions of the longest sequence, prompt and answer; waits for the engine.
    #[getter]
    fn context(&self, py: Python<'_>) -> PyResult<usize> {
        let model = self.owned.check()?;
        py.detach(|| model.context()).map_err(error::engine)
    }

    /// The bundle's directory.
    #[getter]
    fn bundle(&self) -> PathBuf {
        self.bundle.clone()
    }
}

/// Answers that are continued together, in the order of their images.
fn together(
    py: Python<'_>,
    owned: &Owned,
    sources: Vec<Source>,
    question: &str,
    request: &Request,
) -> PyResult<Vec<Described>> {
    let mut answers: Vec<Result<runtime::Answer<'static>, EngineError>> = Vec::with_capacity(sources.len());
    for source in sources {
        py.check_signals()?;
        let model = owned.check()?;
        answers.push(py.detach(|| {
            let mut conversation = model.conversation();
            let image = conversation.add_image(&source.picture()?)?;
            let begun = conversation.into_chat(&[Message::user([image], question)], request);
            begun.map_err(|refused| refused.1)
        }));
    }
    let mut texts: Vec<Described> = answers.iter().map(|_| Ok(String::new())).collect();
    loop {
        py.check_signals()?;
        owned.check()?;
        let going = py.detach(|| step(&mut answers, &mut texts));
        if !going {
            break;
        }
    }
    let failed = answers.into_iter().map(Result::err);
    Ok(texts
        .into_iter()
        .zip(failed)
        .map(|(text, failed)| failed.map_or(text, Err))
        .collect())
}

/// One token of each answer that goes on; whether there is one.
fn step(answers: &mut [Result<runtime::Answer<'static>, EngineError>], texts: &mut [Described]) -> bool {
    let mut going: Vec<&mut runtime::Answer<'static>> = Vec::new();
    let mut places = Vec::new();
    for (place, answer) in answers.iter_mut().enumerate() {
        if let Ok(answer) = answer
            && answer.finish().is_none()
            && texts.get(place).is_some_and(Result::is_ok)
        {
            going.push(answer);
            places.push(place);
        }
    }
    let pieces = runtime::Answer::next_together(&mut going);
    for (place, piece) in places.iter().zip(pieces) {
        let Some(text) = texts.get_mut(*place) else {
            continue;
        };
        match (piece, &mut *text) {
            (Some(Ok(piece)), Ok(text)) => text.push_str(&piece.text),
            (Some(Err(error)), _) => *text = Err(error),
            _ended => {}
        }
    }
    !places.is_empty()
}
