//! A request: how is an answer to be made, and when does it end?

use crate::constrain::Constraint;
use crate::error::EngineError;
use crate::sample::{SampleError, Sampling};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Tokens of an answer where nobody says how many.
pub const DEFAULT_MAX_TOKENS: usize = 256;

/// Most tokens of an answer that commands and servers take: more than any model holds.
pub const MAX_TOKENS: usize = 10_000_000;

/// Most alternatives of a token whose log-probabilities can be asked for.
pub const MAX_LOGPROBS: usize = 20;

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
    /// Whether each token comes with its log-probability, and with those of how many of the likeliest tokens in its place, 0 to
    /// [`MAX_LOGPROBS`]: [`Piece::logprob`](crate::Piece::logprob).
    pub logprobs: Option<usize>,
    /// What the answer keeps to, whatever the model would say: tokens that cannot continue such an answer are never chosen.
    /// Where [`Request::max_tokens`] or the context ends it before, it is not complete: [`Finish`](crate::Finish) says so.
    pub constraint: Option<Constraint>,
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

    /// With the log-probability of each token, and of so many of the likeliest ones in its place.
    #[must_use]
    pub fn with_logprobs(mut self, alternatives: usize) -> Request {
        self.logprobs = Some(alternatives);
        self
    }

    /// With something that the answer keeps to.
    #[must_use]
    pub fn with_constraint(mut self, constraint: Constraint) -> Request {
        self.constraint = Some(constraint);
        self
    }

    /// Refuses values outside their range.
    pub(crate) fn check_values(&self) -> Result<(), EngineError> {
        self.sampling.check()?;
        match self.logprobs {
            Some(found) if found > MAX_LOGPROBS => {
                let problem = format!("logprobs is {found}, expected 0 to {MAX_LOGPROBS}");
                let problems = vec![problem];
                Err(SampleError::Parameters { problems }.into())
            }
            _in_range => Ok(()),
        }
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
            logprobs: None,
            constraint: None,
        }
    }
}
