//! The engine: the short way to a bundle that answers, a model and one conversation with it.

use crate::backend::Options;
use crate::choose::Choices;
use crate::conversation::{Answer, Conversation};
use crate::error::EngineError;
use crate::image::{ImageId, Picture};
use crate::model::{Model, ProviderReport};
use crate::prompt::{Message, Prompter};
use crate::request::Request;
use crate::timeline::Timeline;
use models::bundle::Bundle;
use std::path::Path;
use std::sync::Arc;

/// A bundle that answers: a [`Model`] and one [`Conversation`] with it. What the next prompt has in common with the last is
/// not computed again, and an image is encoded once.
///
/// An engine is used by one thread at a time and may move between threads (it is [`Send`]). For more conversations,
/// [`Engine::model`] makes them; nothing is loaded again.
///
/// ```no_run
/// use runtime::{Engine, Message, Options, Request, image};
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let mut engine = Engine::open("fastvlm-bundle".as_ref(), &Options::default())?;
/// let picture = image::open("image.png".as_ref(), &image::Limits::default())?;
/// let image = engine.add_image(&picture)?;
/// let messages = [Message::user([image], "What is in the image?")];
/// for piece in engine.chat(&messages, &Request::default())? {
///     print!("{}", piece?.text);
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Engine {
    conversation: Conversation,
}

impl From<Conversation> for Engine {
    /// A conversation, used as an engine.
    fn from(conversation: Conversation) -> Engine {
        Engine { conversation }
    }
}

impl Engine {
    /// Opens the bundle in `directory` on an engine that works here: [`Model::open`].
    ///
    /// # Errors
    /// As [`Model::open`].
    pub fn open(directory: &Path, options: &Options) -> Result<Engine, EngineError> {
        Engine::open_timed(directory, options, &Timeline::begin())
    }

    /// As [`Engine::open`]; the steps go to `timeline`, which may have begun earlier.
    ///
    /// # Errors
    /// As [`Engine::open`].
    pub fn open_timed(
        directory: &Path,
        options: &Options,
        timeline: &Timeline,
    ) -> Result<Engine, EngineError> {
        Ok(Model::open_timed(directory, options, timeline)?
            .conversation()
            .into())
    }

    /// The model, for more conversations with it.
    pub fn model(&self) -> &Model {
        self.conversation.model()
    }

    /// The conversation.
    pub fn conversation(&mut self) -> &mut Conversation {
        &mut self.conversation
    }

    /// Waits until everything is open.
    ///
    /// # Errors
    /// What cannot be opened.
    pub fn ready(&mut self) -> Result<(), EngineError> {
        self.model().ready()
    }

    /// The bundle's contract; where an image size was asked for, as if there were no other
    /// ([`Bundle::at_size`]).
    pub fn bundle(&self) -> &Bundle {
        self.model().bundle()
    }

    /// Who computes, and with which graphs; waits for them.
    ///
    /// # Errors
    /// What cannot be opened.
    pub fn provider(&mut self) -> Result<ProviderReport, EngineError> {
        self.model().provider()
    }

    /// What is to be said about the choice of the engine since this was last asked; one line each, none where all is as
    /// asked for. The choice is made before the first answer, or when something waits for it.
    pub fn take_notices(&mut self) -> Vec<String> {
        self.conversation.take_notices()
    }

    /// From messages to token ids; waits for the tokenizer.
    ///
    /// # Errors
    /// A tokenizer or a template that cannot be used.
    pub fn prompter(&mut self) -> Result<Arc<Prompter>, EngineError> {
        self.model().prompter()
    }

    /// Prepares an image, so that messages can name it. The same image is the same id.
    ///
    /// # Errors
    /// An image that cannot be prepared as the bundle says.
    pub fn add_image(&mut self, picture: &Picture) -> Result<ImageId, EngineError> {
        self.conversation.add_image(picture)
    }

    /// Forgets the conversation and all images.
    pub fn reset(&mut self) {
        self.conversation.reset();
    }

    /// Forgets all images, but not the conversation: what is in the KV cache stays useful.
    pub fn forget_images(&mut self) {
        self.conversation.forget_images();
    }

    /// The answer to one question about one image, whatever was asked before: an iterator as that of [`Engine::chat`].
    ///
    /// # Errors
    /// As [`Engine::add_image`] and [`Engine::chat`].
    pub fn describe(
        &mut self,
        picture: &Picture,
        question: &str,
        request: &Request,
    ) -> Result<Answer<'_>, EngineError> {
        self.conversation.describe(picture, question, request)
    }

    /// How likely each of several answers to `messages` is: [`Conversation::choose`].
    ///
    /// # Errors
    /// As [`Conversation::choose`].
    pub fn choose<T: AsRef<str>>(
        &mut self,
        messages: &[Message],
        choices: &[T],
        request: &Request,
    ) -> Result<Choices, EngineError> {
        self.conversation.choose(messages, choices, request)
    }

    /// The answer to `messages`, the whole conversation: [`Conversation::chat`].
    ///
    /// # Errors
    /// As [`Conversation::chat`].
    pub fn chat(&mut self, messages: &[Message], request: &Request) -> Result<Answer<'_>, EngineError> {
        self.conversation.chat(messages, request)
    }
}
