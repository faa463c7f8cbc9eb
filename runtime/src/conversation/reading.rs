//! Reading a prompt in pieces, so that others' answers go on between them.

use super::{Answer, Conversation, Held, Plan};
use crate::error::EngineError;
use crate::image::{ImageId, PixelValues};
use crate::prompt::{Message, Prompt};
use crate::request::Request;
use std::fmt;
use std::time::{Duration, Instant};

/// A prompt that is being read ([`Conversation::begin`]): an answer before its first token.
pub struct Reading {
    conversation: Box<Conversation>,
    plan: Plan,
    request: Request,
}

/// What a piece of a prompt leads to.
#[derive(Debug)]
pub enum Progress {
    /// There is more to read.
    Reading(Box<Reading>),
    /// All was read: the answer.
    Answer(Box<Answer<'static>>),
}

impl Conversation {
    /// As [`Conversation::into_chat`], but the prompt is read by [`Reading::advance`], a piece at a time. Its images are
    /// encoded before this returns, unless they were or are not to be read.
    ///
    /// # Errors
    /// As [`Conversation::chat`] before it reads the prompt, with the conversation.
    pub fn begin(
        mut self,
        messages: &[Message],
        request: &Request,
    ) -> Result<Reading, Box<(Conversation, EngineError)>> {
        match self.plan(messages, request) {
            Ok(plan) => Ok(Reading {
                conversation: Box::new(self),
                plan,
                request: request.clone(),
            }),
            Err(error) => Err(Box::new((self, error))),
        }
    }

    /// Positions in its KV cache: of the last prompt and its answer.
    pub fn positions(&self) -> usize {
        self.sequence.fed()
    }

    /// How many positions of a prompt, from its beginning, are in the KV cache already.
    pub fn in_common(&self, prompt: &Prompt) -> usize {
        self.sequence.in_common(prompt)
    }

    /// As [`Conversation::add_image`], of what [`Model::preprocess`](crate::Model::preprocess) made in `spent`.
    pub fn add_pixels(&mut self, pixels: PixelValues, spent: Duration) -> ImageId {
        self.ahead.preprocess += spent;
        self.ahead.waited += spent;
        self.sequence.add(pixels)
    }

    /// Makes an image known whose features the model keeps ([`Model::knows_image`](crate::Model::knows_image)), without its
    /// pixels. Says whether it does.
    pub fn recall_image(&mut self, image: ImageId) -> bool {
        self.sequence.recall(image)
    }

    /// Encodes an image that was added now, and not only when a prompt shows it; its pixels are freed. Says whether its
    /// features were not there yet ([`Model::knows_image`](crate::Model::knows_image)).
    ///
    /// # Errors
    /// An unknown image, or what the engine says.
    pub fn encode(&mut self, image: ImageId) -> Result<bool, EngineError> {
        #[cfg(feature = "ort")]
        crate::backend::watch_thread();
        let begun = Instant::now();
        let (encoded, encode) = self.sequence.encode([image].into_iter())?;
        self.ahead.encoded += encoded;
        self.ahead.encode += encode;
        self.ahead.waited += begun.elapsed();
        Ok(encoded > 0)
    }
}

impl Reading {
    /// Positions of the prompt, image features among them.
    pub fn prompt_positions(&self) -> usize {
        self.plan.feeding.prompt().len()
    }

    /// How many of them were in the KV cache already.
    pub fn reused_positions(&self) -> usize {
        self.plan.feeding.reused
    }

    /// Positions that are still to be read.
    pub fn left(&self) -> usize {
        self.conversation.sequence.left(&self.plan.feeding)
    }

    /// Bytes of the KV cache so far.
    pub fn cache_bytes(&self) -> usize {
        self.conversation.cache_bytes()
    }

    /// Reads the next positions, at most `most` and at least one. The answer is that of a prompt that is read at once, up to
    /// the order of sums inside the engine.
    ///
    /// # Errors
    /// What the engine says, or [`EngineError::Cancelled`], with the conversation, which keeps what was read.
    pub fn advance(mut self, most: usize) -> Result<Progress, Box<(Conversation, EngineError)>> {
        #[cfg(feature = "ort")]
        crate::backend::watch_thread();
        let Reading {
            conversation,
            plan,
            request,
        } = &mut self;
        let read = request
            .check()
            .and_then(|()| conversation.sequence.read(&mut plan.feeding, most));
        match read {
            Ok(None) => Ok(Progress::Reading(Box::new(self))),
            Ok(Some(logits)) => {
                let Reading {
                    mut conversation,
                    plan,
                    request,
                } = self;
                let prepared = conversation.prepared(plan, &request, logits);
                let timeline = conversation.timeline.clone();
                let answer = Answer::new(Held::Owned(conversation), timeline, prepared);
                Ok(Progress::Answer(Box::new(answer)))
            }
            Err(error) => Err(Box::new((*self.conversation, error))),
        }
    }

    /// The conversation, which keeps what was read.
    pub fn into_conversation(self) -> Conversation {
        *self.conversation
    }
}

impl fmt::Debug for Reading {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reading")
            .field("prompt_positions", &self.prompt_positions())
            .field("left", &self.left())
            .finish_non_exhaustive()
    }
}

/// A reading may move between threads: this does not compile otherwise.
const _: () = {
    const fn moves<T: Send>() {}
    moves::<Reading>();
};
