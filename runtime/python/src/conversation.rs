//! A conversation: one dialogue with a model, whose messages it keeps.

use crate::answer::{self, Answer};
use crate::images::Source;
use crate::owner::{Inside, Owned};
use crate::values::Choice;
use crate::{error, options};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};
use runtime::{EngineError, Message, Role};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What is said while an answer still comes.
const BUSY: &str = "an answer of this conversation still comes: read it to its end or close it";

/// A dialogue: what was said, and what the model remembers of it.
pub(crate) struct Dialogue {
    /// Lent to an answer while that comes.
    conversation: Option<runtime::Conversation>,
    messages: Vec<Message>,
}

impl Dialogue {
    /// An answer has ended, with this text.
    pub(crate) fn answered(&mut self, conversation: Option<runtime::Conversation>, text: String) {
        self.conversation = conversation;
        self.messages.push(Message::new(Role::Assistant, text));
    }

    /// There is no answer: what was not answered was not asked.
    pub(crate) fn unasked(&mut self, conversation: Option<runtime::Conversation>) {
        self.conversation = conversation;
        self.messages.pop();
    }
}

/// Why there is no answer.
enum Refusal {
    Busy,
    Image(runtime::image::ImageError),
    Engine(EngineError),
}

impl From<EngineError> for Refusal {
    fn from(error: EngineError) -> Refusal {
        Refusal::Engine(error)
    }
}

impl From<runtime::image::ImageError> for Refusal {
    fn from(error: runtime::image::ImageError) -> Refusal {
        Refusal::Image(error)
    }
}

impl From<Refusal> for PyErr {
    fn from(refusal: Refusal) -> PyErr {
        match refusal {
            Refusal::Busy => error::Error::new_err(BUSY),
            Refusal::Image(error) => error::image(error),
            Refusal::Engine(error) => error::engine(error),
        }
    }
}

/// One dialogue with a model: it remembers what was said, and computes only what is new.
///
/// A thread at a time uses it: while an answer comes, another thread's question is refused.
#[pyclass(frozen, module = "fvlm")]
pub(crate) struct Conversation {
    dialogue: Arc<Mutex<Dialogue>>,
    owned: Owned,
}

impl Conversation {
    pub(crate) fn new(owned: Owned, system: Option<String>, context_shift: bool) -> Conversation {
        let mut conversation = owned.model().conversation();
        conversation.set_context_shift(context_shift);
        let dialogue = Dialogue {
            conversation: Some(conversation),
            messages: system
                .map(|text| Message::new(Role::System, text))
                .into_iter()
                .collect(),
        };
        Conversation {
            dialogue: Arc::new(Mutex::new(dialogue)),
            owned,
        }
    }

    fn dialogue(&self) -> MutexGuard<'_, Dialogue> {
        self.dialogue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A question, with images that the conversation is told of.
fn question(
    conversation: &mut runtime::Conversation,
    sources: Vec<Source>,
    text: &str,
) -> Result<Message, Refusal> {
    let mut images = Vec::with_capacity(sources.len());
    for source in sources {
        images.push(conversation.add_image(&source.picture()?)?);
    }
    Ok(Message::user(images, text))
}

#[pymethods]
impl Conversation {
    /// The answer to a question, about images that are shown with it or were before; an iterator over its text.
    #[pyo3(signature = (question, image=None, **options))]
    fn stream(
        &self,
        py: Python<'_>,
        question: &str,
        image: Option<&Bound<'_, PyAny>>,
        options: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<Answer> {
        let _model = self.owned.check()?;
        let (request, cancel) = options::request(options)?;
        let sources = Source::several(image)?;
        let begin = || -> Result<runtime::Answer<'static>, Refusal> {
            let mut dialogue = self.dialogue();
            let mut conversation = dialogue.conversation.take().ok_or(Refusal::Busy)?;
            let asked = match self::question(&mut conversation, sources, question) {
                Ok(asked) => asked,
                Err(refusal) => {
                    dialogue.conversation = Some(conversation);
                    return Err(refusal);
                }
            };
            dialogue.messages.push(asked);
            conversation
                .into_chat(&dialogue.messages, &request)
                .map_err(|refused| {
                    let (conversation, error) = *refused;
                    dialogue.unasked(Some(conversation));
                    error.into()
                })
        };
        let begun = py.detach(begin)?;
        let dialogue = Some(Arc::clone(&self.dialogue));
        Answer::begin(py, begun, cancel, self.owned.clone(), dialogue)
    }

    /// The answer to a question, about images that are shown with it or were before.
    #[pyo3(signature = (question, image=None, **options))]
    fn ask(
        &self,
        py: Python<'_>,
        question: &str,
        image: Option<&Bound<'_, PyAny>>,
        options: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<String> {
        self.stream(py, question, image, options)?.read(py)
    }

    /// How likely each of several answers to a question is. Nothing is said by it: the conversation is as before.
    #[pyo3(signature = (question, choices, image=None))]
    fn choices(
        &self,
        py: Python<'_>,
        question: &str,
        choices: Vec<String>,
        image: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Vec<Choice>> {
        let _model = self.owned.check()?;
        let (request, _) = options::request(None)?;
        let sources = Source::several(image)?;
        let choose = || -> Result<runtime::Choices, Refusal> {
            let mut dialogue = self.dialogue();
            let Dialogue {
                conversation,
                messages,
            } = &mut *dialogue;
            let conversation = conversation.as_mut().ok_or(Refusal::Busy)?;
            let asked = self::question(conversation, sources, question)?;
            messages.push(asked);
            let chosen = conversation.choose(messages, &choices, &request);
            messages.pop();
            Ok(chosen?)
        };
        let chosen = py.detach(choose)?;
        answer::warn(py, &chosen.notices)?;
        Ok(chosen.choices.into_iter().map(Choice::from).collect())
    }

    /// What was said: dicts with `role` (`system`, `user` or `assistant`), `content` and `images`, their number.
    #[getter]
    fn messages<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        let _inside = Inside::briefly();
        let said = py.detach(|| self.dialogue().messages.clone());
        let list = PyList::empty(py);
        for message in said {
            let dict = PyDict::new(py);
            dict.set_item("role", message.role.name())?;
            dict.set_item("content", message.text)?;
            dict.set_item("images", message.images.len())?;
            list.append(dict)?;
        }
        Ok(list)
    }

    /// Forgets what was said, but for instructions, and all images, and frees the KV cache.
    fn reset(&self, py: Python<'_>) -> PyResult<()> {
        let _inside = Inside::briefly();
        let reset = || -> Result<(), Refusal> {
            let mut dialogue = self.dialogue();
            let conversation = dialogue.conversation.as_mut().ok_or(Refusal::Busy)?;
            conversation.reset();
            dialogue.messages.retain(|message| message.role == Role::System);
            Ok(())
        };
        Ok(py.detach(reset)?)
    }

    /// Bytes of its KV cache; 0 before the first question, and while an answer comes.
    #[getter]
    fn cache_bytes(&self, py: Python<'_>) -> usize {
        let _inside = Inside::briefly();
        py.detach(|| {
            let dialogue = self.dialogue();
            let conversation = dialogue.conversation.as_ref();
            conversation.map_or(0, runtime::Conversation::cache_bytes)
        })
    }
}
