//! An answer on its way from the worker to a client, whoever's words the client speaks.

use crate::app::App;
use crate::budget::Taken;
use crate::error::ApiError;
use crate::guard;
use crate::pictures::Decoded;
use crate::work::{Event, Events, Job, JobError};
use axum::http::StatusCode;
use runtime::{Finish, Piece, Request, Stats};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// An answer that has begun.
#[derive(Debug)]
pub(crate) struct Answering {
    app: Arc<App>,
    events: Events,
    /// Until the prompt was read.
    prompt: Prompt,
    received: Instant,
    decoded: Duration,
    ended: bool,
}

#[derive(Debug, Clone, Copy, Default)]
struct Prompt {
    positions: usize,
    reused: usize,
}

/// What comes next of an answer.
#[derive(Debug)]
pub(crate) enum Said {
    Piece(Piece),
    Ended(Box<Summary>),
    Failed(ApiError),
}

/// What an answer took.
#[derive(Debug)]
pub(crate) struct Summary {
    pub(crate) finish: Finish,
    pub(crate) prompt_positions: usize,
    pub(crate) reused_positions: usize,
    pub(crate) stats: Box<Stats>,
    /// From the request, as a whole, being there.
    pub(crate) first_token: Duration,
    pub(crate) queued: Duration,
    /// Fetching and decoding images.
    pub(crate) decoded: Duration,
    pub(crate) total: Duration,
}

impl Answering {
    /// Hands a job in, and waits until its prompt is read: what is refused is refused with a status of its own.
    pub(crate) async fn begin(
        app: &Arc<App>,
        decoded: Decoded,
        request: Request,
        client: String,
        received: Instant,
    ) -> Result<Answering, ApiError> {
        let Decoded { turns, taken, took } = decoded;
        app.metrics
            .images(turns.iter().map(|turn| turn.images.len()).sum());
        let job = Job {
            turns,
            request,
            client,
            context_shift: app.settings.context_shift,
        };
        let events = app.worker.submit(job).map_err(|busy| {
            ApiError::new(StatusCode::TOO_MANY_REQUESTS, busy.to_string())
                .with_code("rate_limit_exceeded")
                .with_retry_after(busy.retry_after)
        })?;
        let mut answering = Answering {
            app: Arc::clone(app),
            events,
            prompt: Prompt::default(),
            received,
            decoded: took,
            ended: false,
        };
        answering.begun(taken).await?;
        Ok(answering)
    }

    /// The images' memory is held until they are encoded.
    async fn begun(&mut self, taken: Taken) -> Result<(), ApiError> {
        let event = self.events.next().await;
        drop(taken);
        match event {
            Some(Event::Begun {
                prompt_positions,
                reused_positions,
            }) => {
                self.prompt = Prompt {
                    positions: prompt_positions,
                    reused: reused_positions,
                };
                Ok(())
            }
            Some(Event::Failed(error)) => Err(failed(error)),
            Some(Event::Piece(_) | Event::Ended { .. }) | None => Err(lost()),
        }
    }

    /// What comes next; `None` after the end.
    pub(crate) async fn next(&mut self) -> Option<Said> {
        if self.ended {
            return None;
        }
        let said = match self.events.next().await {
            Some(Event::Piece(piece)) => return Some(Said::Piece(piece)),
            Some(Event::Ended {
                finish,
                stats,
                first_token,
                queued,
            }) if finish != Finish::Cancelled => {
                self.app.metrics.answer(first_token, queued);
                let summary = Summary {
                    finish,
                    prompt_positions: self.prompt.positions,
                    reused_positions: self.prompt.reused,
                    stats,
                    first_token: self.decoded + first_token,
                    queued,
                    decoded: self.decoded,
                    total: self.received.elapsed(),
                };
                if self.app.settings.verbose {
                    crate::log(&summary.line());
                }
                Said::Ended(Box::new(summary))
            }
            // Only whoever listens cancels an answer, or the end of the server.
            Some(Event::Ended { .. }) => Said::Failed(guard::ending()),
            Some(Event::Failed(error)) => Said::Failed(failed(error)),
            Some(Event::Begun { .. }) | None => Said::Failed(lost()),
        };
        self.ended = true;
        Some(said)
    }

    /// All of it: pieces, and what they took.
    pub(crate) async fn whole(mut self) -> Result<(Vec<Piece>, Box<Summary>), ApiError> {
        let mut pieces = Vec::new();
        loop {
            match self.next().await {
                Some(Said::Piece(piece)) => pieces.push(piece),
                Some(Said::Ended(summary)) => return Ok((pieces, summary)),
                Some(Said::Failed(error)) => return Err(error),
                None => return Err(lost()),
            }
        }
    }
}

/// The text of pieces.
pub(crate) fn text(pieces: &[Piece]) -> String {
    pieces.iter().map(|piece| piece.text.as_str()).collect()
}

impl Summary {
    /// Times for our own page, beside what others' interfaces have; unknown fields are ignored by others.
    pub(crate) fn details(&self) -> Value {
        let millis = |seconds: f64| (seconds * 1e5).round() / 1e2;
        let Stats {
            preprocess,
            encode,
            prefill,
            images_encoded,
            tokens_per_second,
            ..
        } = &*self.stats;
        json!({
            "first_token_ms": millis(self.first_token.as_secs_f64()),
            "queued_ms": millis(self.queued.as_secs_f64()),
            "decode_image_ms": millis(self.decoded.as_secs_f64()),
            "preprocess_ms": millis(*preprocess),
            "encode_ms": millis(*encode),
            "prefill_ms": millis(*prefill),
            "decode_ms": millis(self.decoding().as_secs_f64()),
            "total_ms": millis(self.total.as_secs_f64()),
            "tokens_per_second": tokens_per_second.map(|rate| (rate * 10.0).round() / 10.0),
            "images_encoded": images_encoded,
            "reused_positions": self.reused_positions,
        })
    }

    /// From the first token to the end.
    pub(crate) fn decoding(&self) -> Duration {
        self.total.saturating_sub(self.first_token)
    }

    /// For a log.
    fn line(&self) -> String {
        format!(
            "answer: {} positions ({} reused), {} images encoded, first token after {} ms ({} ms queued), {} tokens, {} ms",
            self.prompt_positions,
            self.reused_positions,
            self.stats.images_encoded,
            self.first_token.as_millis(),
            self.queued.as_millis(),
            self.stats.tokens,
            self.total.as_millis()
        )
    }
}

/// The code of [`JobError::Constraint`].
pub(crate) const INVALID_CONSTRAINT: &str = "invalid_constraint";

fn failed(error: JobError) -> ApiError {
    match error {
        JobError::Refused(message) => ApiError::bad(message).with_code("invalid_prompt"),
        // The word by which clients shorten what they send.
        JobError::TooLong(message) => ApiError::bad(message)
            .with_code("context_length_exceeded")
            .with_param("messages"),
        JobError::Constraint(message) => ApiError::bad(message).with_code(INVALID_CONSTRAINT),
        JobError::Engine(message) => ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, message),
        JobError::Ending => guard::ending(),
    }
}

/// A worker that breaks its word.
fn lost() -> ApiError {
    let message = "the answer ended without a word why; this is a bug of the server";
    ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, message)
}
