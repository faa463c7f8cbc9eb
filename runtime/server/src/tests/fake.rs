//! A worker that computes nothing: it says word for word what a test has it say, and remembers what it was asked.

use crate::app::Words;
use crate::work::{Busy, Counts, Event, Events, Job, JobError, Reporter, Worker, events};
use crate::{About, App, Settings};
use runtime::{Finish, Piece, Stats, TokenLogprob};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

/// What becomes of every job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Act {
    /// `two words`, in three pieces.
    Answer,
    /// The same, cut off.
    CutOff,
    /// The queue is full.
    Busy,
    /// The prompt is too long.
    Refuse,
    /// The engine fails before the first token.
    Fail,
    /// The engine fails after it.
    FailLater,
    /// Words, until nobody listens any more.
    Endless,
    /// Nothing, until nobody listens any more.
    Silent,
    /// It ends without a word why.
    Break,
    /// It panics.
    Panic,
}

#[derive(Debug)]
pub(crate) struct Fake {
    act: Act,
    pub(crate) jobs: Mutex<Vec<Job>>,
    /// Jobs that run.
    pub(crate) running: Arc<AtomicUsize>,
    ending: Arc<AtomicBool>,
}

impl Fake {
    pub(crate) fn new(act: Act) -> Arc<Fake> {
        Arc::new(Fake {
            act,
            jobs: Mutex::default(),
            running: Arc::default(),
            ending: Arc::default(),
        })
    }

    /// The last job.
    pub(crate) fn job(&self) -> Job {
        self.jobs.lock().unwrap().last().unwrap().clone()
    }
}

fn piece(id: i64, text: &str, logprobs: Option<usize>) -> Event {
    let logprob = logprobs.map(|count| TokenLogprob {
        id,
        logprob: -0.5,
        top: [(id, -0.5), (9, f64::NEG_INFINITY)]
            .into_iter()
            .take(count)
            .collect(),
    });
    Event::Piece(Piece {
        id: Some(id),
        text: text.to_owned(),
        logprob,
    })
}

fn ended(finish: Finish) -> Event {
    let stats = Stats {
        tokens: 3,
        images_encoded: 1,
        prefill: 0.002,
        encode: 0.001,
        tokens_per_second: Some(50.0),
        ..Stats::default()
    };
    Event::Ended {
        finish,
        stats: Box::new(stats),
        first_token: Duration::from_millis(5),
        queued: Duration::from_millis(1),
    }
}

fn act(act: Act, logprobs: Option<usize>, reporter: &Reporter, ending: &AtomicBool) {
    let begun = Event::Begun {
        prompt_positions: 12,
        reused_positions: 4,
    };
    match act {
        Act::Refuse => return reporter.say(Event::Failed(JobError::Refused("too long".to_owned()))),
        Act::Fail => return reporter.say(Event::Failed(JobError::Engine("no logits".to_owned()))),
        Act::Break | Act::Busy | Act::Panic => return,
        Act::Silent => {}
        Act::Answer | Act::CutOff | Act::FailLater | Act::Endless => reporter.say(begun),
    }
    match act {
        Act::Answer | Act::CutOff => {
            reporter.say(piece(1, "two", logprobs));
            reporter.say(piece(2, "", logprobs));
            reporter.say(piece(3, " words", logprobs));
            let finish = if act == Act::Answer {
                Finish::Stop
            } else {
                Finish::MaxTokens
            };
            reporter.say(ended(finish));
        }
        Act::FailLater => {
            reporter.say(piece(1, "two", logprobs));
            reporter.say(Event::Failed(JobError::Engine("no logits".to_owned())));
        }
        _until_nobody_listens => {
            let cancelled = reporter.cancelled();
            while !cancelled.load(Ordering::Relaxed) {
                if ending.load(Ordering::Relaxed) {
                    return reporter.say(Event::Failed(JobError::Ending));
                }
                if act == Act::Endless {
                    reporter.say(piece(1, &"word ".repeat(1000), logprobs));
                }
                std::thread::sleep(Duration::from_millis(2));
            }
        }
    }
}

impl Worker for Fake {
    fn submit(&self, job: Job) -> Result<Events, Busy> {
        assert!(self.act != Act::Panic, "a worker that panics");
        if self.act == Act::Busy {
            return Err(Busy {
                waiting: 7,
                retry_after: Duration::from_millis(2500),
            });
        }
        let logprobs = job.request.logprobs;
        self.jobs.lock().unwrap().push(job);
        let (reporter, events) = events();
        let (doing, running, ending) = (self.act, Arc::clone(&self.running), Arc::clone(&self.ending));
        running.fetch_add(1, Ordering::SeqCst);
        std::thread::spawn(move || {
            act(doing, logprobs, &reporter, &ending);
            running.fetch_sub(1, Ordering::SeqCst);
        });
        Ok(events)
    }

    fn counts(&self) -> Counts {
        Counts {
            running: self.running.load(Ordering::SeqCst),
            slots: 8,
            tokens: 42,
            ..Counts::default()
        }
    }

    fn end(&self, grace: Duration) {
        let until = std::time::Instant::now() + grace;
        while self.running.load(Ordering::SeqCst) > 0 {
            if std::time::Instant::now() >= until {
                self.ending.store(true, Ordering::Relaxed);
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

/// Token 9 is a part of a character.
#[derive(Debug)]
struct FakeWords;

impl Words for FakeWords {
    fn bytes(&self, id: i64) -> Vec<u8> {
        match id {
            1 => b"two".to_vec(),
            2 => Vec::new(),
            3 => b" words".to_vec(),
            _part => vec![0xe2, 0x82],
        }
    }
}

/// A server of model `demo`.
pub(crate) fn app(worker: Arc<Fake>, settings: Settings) -> App {
    let about = About {
        name: "demo".to_owned(),
        parameters: 13_000_000,
        precision: "fp16".to_owned(),
        context: 512,
        width: 64,
        bytes: 1234,
        digest: "00".repeat(32),
        modified: SystemTime::UNIX_EPOCH + Duration::from_secs(951_782_400),
        license: None,
    };
    App::new(worker, Box::new(FakeWords), about, settings)
}
