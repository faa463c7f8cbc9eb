//! Work for one model: what is asked for ([`Job`]), and what comes of it ([`Event`]). No HTTP here.

use runtime::image::Picture;
use runtime::{Finish, Piece, Request, Role, Stats};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use thiserror::Error;
use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};

/// A message of a conversation, with its images themselves.
#[derive(Debug, Clone)]
pub struct Turn {
    /// Who says it.
    pub role: Role,
    /// Images, which stand before the text.
    pub images: Vec<Arc<Picture>>,
    /// What is said.
    pub text: String,
}

/// One answer that is asked for: all of a conversation so far, and how to answer.
#[derive(Debug, Clone)]
pub struct Job {
    /// The whole conversation, oldest first.
    pub turns: Vec<Turn>,
    /// How to answer. The scheduler sets [`Request::cancel`] itself: an answer that nobody listens to any more ends.
    pub request: Request,
    /// Whose it is: clients take turns, however many jobs each has.
    pub client: String,
    /// Whether the oldest turns may be left out where the context is full.
    pub context_shift: bool,
}

/// What comes of a job, in this order: [`Event::Begun`], pieces, [`Event::Ended`]; or [`Event::Failed`] at any place, as the
/// last.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event {
    /// Its prompt was read; the first token follows.
    Begun {
        /// Positions of the prompt, image features among them.
        prompt_positions: usize,
        /// How many of them were in the cache already.
        reused_positions: usize,
    },
    /// A token, and the text that is certain with it.
    Piece(Piece),
    /// The answer is done.
    Ended {
        /// Why.
        finish: Finish,
        /// What it took; times are of the engine's work for this job.
        stats: Box<Stats>,
        /// From [`Job`] being taken in to its first token.
        first_token: Duration,
        /// Of it, waiting for others.
        queued: Duration,
    },
    /// It has failed.
    Failed(JobError),
}

/// Why a job is not, or not wholly, answered.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum JobError {
    /// What was asked for cannot be answered: the client's fault.
    #[error("{0}")]
    Refused(String),
    /// The prompt is longer than the model can hold: the client's fault.
    #[error("{0}")]
    TooLong(String),
    /// What an answer is to keep to cannot be kept to: the client's fault.
    #[error("{0}")]
    Constraint(String),
    /// The engine has failed: not the client's fault.
    #[error("{0}")]
    Engine(String),
    /// The server is ending.
    #[error("the server is shutting down")]
    Ending,
}

/// A job that is not taken in: too many wait already.
#[derive(Debug, Error)]
#[error("{waiting} requests wait already, the most that may (--queue); try again in {} s", retry_after.as_secs())]
pub struct Busy {
    /// How many wait.
    pub waiting: usize,
    /// When a place is likely to be free.
    pub retry_after: Duration,
}

/// Who does the work: the scheduler, or what a test of the HTTP side puts in its place.
pub trait Worker: Send + Sync + 'static {
    /// Takes a job in. What comes of it is heard from the returned [`Events`]; dropping them ends the answer at its next step.
    ///
    /// # Errors
    /// [`Busy`] where the queue is full.
    fn submit(&self, job: Job) -> Result<Events, Busy>;

    /// What is going on now, and what was done since the start.
    fn counts(&self) -> Counts;

    /// Takes in nothing more; running answers have `grace` to end, then are cut off with [`JobError::Ending`]. Returns when
    /// none runs.
    fn end(&self, grace: Duration);
}

/// What comes of one job.
#[derive(Debug)]
pub struct Events {
    receiver: UnboundedReceiver<Event>,
    cancel: Arc<AtomicBool>,
}

/// The worker's end of [`Events`].
#[derive(Debug)]
pub struct Reporter {
    sender: UnboundedSender<Event>,
    cancel: Arc<AtomicBool>,
}

/// A pair for one job.
pub fn events() -> (Reporter, Events) {
    let (sender, receiver) = mpsc::unbounded_channel();
    let cancel = Arc::new(AtomicBool::new(false));
    let reporter = Reporter {
        sender,
        cancel: Arc::clone(&cancel),
    };
    (reporter, Events { receiver, cancel })
}

impl Events {
    /// The next event; `None` after the last.
    pub async fn next(&mut self) -> Option<Event> {
        self.receiver.recv().await
    }

    /// As [`Events::next`], for a thread that is not one of an async runtime's.
    ///
    /// # Panics
    /// On a thread that an async runtime runs tasks on.
    pub fn next_blocking(&mut self) -> Option<Event> {
        self.receiver.blocking_recv()
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        self.cancel.store(true, Ordering::Relaxed);
    }
}

impl Reporter {
    /// Says what happened; lost where nobody listens.
    pub fn say(&self, event: Event) {
        drop(self.sender.send(event));
    }

    /// Set as soon as nobody listens any more: for [`Request::cancel`].
    pub fn cancelled(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.cancel)
    }
}

/// Of a worker, for `/health` and `/metrics`. Counters count from the start.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Counts {
    /// Jobs that wait.
    pub waiting: usize,
    /// Jobs whose prompt is read or whose answer runs.
    pub running: usize,
    /// Conversations that are kept for a next turn.
    pub kept: usize,
    /// Bytes of all KV caches.
    pub cache_bytes: usize,
    /// Most jobs at once, waiting ones not counted.
    pub slots: usize,
    /// Jobs that were answered to the end.
    pub finished: u64,
    /// Jobs whose client went away.
    pub cancelled: u64,
    /// Jobs that failed.
    pub failed: u64,
    /// Jobs that were not taken in.
    pub refused: u64,
    /// Positions of prompts that were computed.
    pub prompt_positions: u64,
    /// Positions of prompts that were in a cache already.
    pub reused_positions: u64,
    /// Tokens of answers.
    pub tokens: u64,
    /// Images that were encoded.
    pub images_encoded: u64,
    /// Images whose features were there already.
    pub images_reused: u64,
    /// Steps of the decoder, each for one or more answers.
    pub steps: u64,
}
