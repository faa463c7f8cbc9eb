//! A request: how is an answer to be made, and when does it end?

use crate::error::EngineError;
use crate::sample::Sampling;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Tokens of an answer where nobody says how many.
pub const DEFAULT_MAX_TOKENS: usize = 256;

/// The question where nobody asks one.
pub const DEFAULT_PROMPT: &str = "Describe the image.";

/// How to answer. [`Request::default`] is greedy.
///
/// ```
/// use runtime::{Request, Sampling};
/// let sampling = Sampling { temperature: 0.7, ..Sampling::default() };
/// let request = Request::default().with_max_tokens(64).with_stops(["\n"]).with_sampling(sampling);
/// # assert_eq!((request.max_tokens, request.stops.len()), (64, 1));
/// ```
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Request {
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// Most tokens of the answer.
    pub max_tokens: usize,
    /// Texts that end the answer and are not part of it.
    pub stops: Vec<String>,
    /// Whether the answer goes on where the model would end it, to [`Request::max_tokens`]: for measurements.
    pub past_end: bool,
    /// Ends the answer as soon as somebody sets this, from whatever thread: between two tokens, or before the prompt is
    /// read; the encoding of an image and the reading of a prompt are not broken off.
    pub cancel: Option<Arc<AtomicBool>>,
}

impl Request {
    /// With another way to choose tokens.
    #[must_use]
    pub fn with_sampling(mut self, sampling: Sampling) -> Request {
        self.sampling = sampling;
        self
    }

    /// With another length.
    #[must_use]
    pub fn with_max_tokens(mut self, max_tokens: usize) -> Request {
        self.max_tokens = max_tokens;
        self
    }

    /// With these texts that end the answer.
    #[must_use]
    pub fn with_stops<T: Into<String>>(mut self, stops: impl IntoIterator<Item = T>) -> Request {
        self.stops = stops.into_iter().map(Into::into).collect();
        self
    }

    /// Without an end that the model chooses: for measurements.
    #[must_use]
    pub fn with_past_end(mut self) -> Request {
        self.past_end = true;
        self
    }

    /// With a flag that ends the answer.
    #[must_use]
    pub fn with_cancel(mut self, cancel: Arc<AtomicBool>) -> Request {
        self.cancel = Some(cancel);
        self
    }

    /// Whether somebody has ended it.
    pub(crate) fn check(&self) -> Result<(), EngineError> {
        match &self.cancel {
            Some(flag) if flag.load(Ordering::Relaxed) => Err(EngineError::Cancelled),
            _goes_on => Ok(()),
        }
    }
}

impl Default for Request {
    fn default() -> Request {
        Request {
            sampling: Sampling::default(),
            max_tokens: DEFAULT_MAX_TOKENS,
            stops: Vec::new(),
            past_end: false,
            cancel: None,
        }
    }
}
