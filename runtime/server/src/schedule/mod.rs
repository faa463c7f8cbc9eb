//! Scheduler: who is computed when? Jobs wait by client, are prepared on threads of their own, and are answered together.

mod decode;
mod kept;
mod prepare;
mod queue;
mod slot;
#[cfg(test)]
mod tests;

use crate::work::{Busy, Counts, Event, Events, Job, JobError, Reporter, Worker, events};
use kept::{Entry, Kept};
use queue::Queue;
use runtime::{Conversation, Model, Reading};
use slot::Slot;
use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// What jobs may take, together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Most jobs at once, at least 1: in preparation, or with an answer that runs. Sixteen answers are one step of the
    /// decoder, more are several.
    pub slots: usize,
    /// Most jobs that wait for a slot.
    pub queue: usize,
    /// Cache positions of all conversations, running and kept. A job reserves what it may come to at most: its prompt and
    /// its longest answer.
    pub cache_positions: usize,
    /// Most conversations that are kept for a next turn when nobody uses them.
    pub kept: usize,
    /// Positions of a prompt that are read between two steps of the running answers, at least 1; a rest of up to 16 is read
    /// with the last of them. With 16 or fewer, an answer may differ in its last bits from that of a prompt read at once.
    pub prefill_piece: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            slots: 8,
            queue: 64,
            cache_positions: 32_768,
            kept: 16,
            prefill_piece: 32,
        }
    }
}

/// The most slots that make sense; a typo must not start thousands of threads.
pub const MOST_SLOTS: usize = 256;

/// How often who waits looks whether its client is still there.
const LOOK: Duration = Duration::from_millis(50);

/// Answers jobs with one model.
#[derive(Debug)]
pub struct Scheduler {
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

/// What the threads share.
#[derive(Debug)]
struct Shared {
    model: Model,
    limits: Limits,
    /// Bytes of the caches of running answers.
    running_bytes: AtomicUsize,
    state: Mutex<State>,
    /// Something in `state` is not as it was.
    changed: Condvar,
    #[cfg(test)]
    faults: tests::Faults,
}

/// A job that waits.
#[derive(Debug)]
struct Waiting {
    job: Job,
    reporter: Reporter,
    taken: Instant,
}

/// A job that has a slot, and who is told about it.
#[derive(Debug)]
struct Work {
    reporter: Reporter,
    taken: Instant,
    slot: Slot,
}

#[derive(Debug)]
struct State {
    queue: Queue<Waiting>,
    kept: Kept<Conversation>,
    /// Who waits for memory, and who for the encoder, first come first; who has the encoder is the first.
    memory: VecDeque<u64>,
    encoder: VecDeque<u64>,
    tickets: u64,
    /// Cache positions that jobs in slots have.
    reserved: usize,
    /// Jobs in slots.
    running: usize,
    /// Prompts that are ready to be read.
    handed: Vec<(Work, Reading)>,
    /// Nothing is taken in any more, and from then on nothing goes on.
    ending: Option<Instant>,
    /// Threads end.
    closed: bool,
    /// How long a job has a slot, of late.
    service: Option<Duration>,
    /// Counters since the start.
    done: Counts,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until something changes, at most for `most`.
    fn wait<'a>(&self, state: MutexGuard<'a, State>, most: Duration) -> MutexGuard<'a, State> {
        let waited = self.changed.wait_timeout(state, most);
        waited.unwrap_or_else(PoisonError::into_inner).0
    }
}

impl State {
    /// Forgets those in the queue whose client is gone.
    fn sweep(&mut self) {
        let gone = |waiting: &Waiting| waiting.reporter.cancelled().load(Ordering::Relaxed);
        let swept = self.queue.sweep(gone).len();
        self.done.cancelled += u64::try_from(swept).unwrap_or(u64::MAX);
    }

    /// Whether even what runs is to be cut off.
    fn is_over(&self) -> bool {
        self.ending.is_some_and(|end| Instant::now() >= end)
    }

    /// When who comes now is likely to have a slot.
    fn retry_after(&self, slots: usize) -> Duration {
        let service = self.service.unwrap_or(Duration::from_secs(1));
        let rounds = u32::try_from(self.queue.len() / slots + 1).unwrap_or(u32::MAX);
        let seconds = service.saturating_mul(rounds).as_secs().saturating_add(1);
        Duration::from_secs(seconds.min(600))
    }
}

impl Scheduler {
    /// Starts threads: one that computes, and one a slot that prepare prompts.
    ///
    /// # Errors
    /// The system has no threads.
    pub fn start(model: Model, limits: Limits) -> io::Result<Scheduler> {
        let limits = Limits {
            slots: limits.slots.clamp(1, MOST_SLOTS),
            prefill_piece: limits.prefill_piece.max(1),
            ..limits
        };
        let shared = Arc::new(Shared {
            model,
            limits,
            running_bytes: AtomicUsize::new(0),
            state: Mutex::new(State {
                queue: Queue::default(),
                kept: Kept::up_to(limits.kept),
                memory: VecDeque::new(),
                encoder: VecDeque::new(),
                tickets: 0,
                reserved: 0,
                running: 0,
                handed: Vec::new(),
                ending: None,
                closed: false,
                service: None,
                done: Counts::default(),
            }),
            changed: Condvar::new(),
            #[cfg(test)]
            faults: tests::Faults::default(),
        });
        let scheduler = Scheduler {
            shared: Arc::clone(&shared),
            threads: Mutex::default(),
        };
        scheduler.spawn("decode".to_owned(), decode::run)?;
        for number in 1..=limits.slots {
            scheduler.spawn(format!("prepare {number}"), prepare::run)?;
        }
        Ok(scheduler)
    }

    fn spawn(&self, name: String, run: fn(&Arc<Shared>)) -> io::Result<()> {
        let shared = Arc::clone(&self.shared);
        let thread = std::thread::Builder::new().name(name);
        let handle = thread.spawn(move || run(&shared))?;
        let mut threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
        threads.push(handle);
        Ok(())
    }
}

impl Worker for Scheduler {
    fn submit(&self, job: Job) -> Result<Events, Busy> {
        let Shared { limits, changed, .. } = &*self.shared;
        let (reporter, events) = events();
        let mut state = self.shared.state();
        if state.ending.is_some() {
            reporter.say(Event::Failed(JobError::Ending));
            return Ok(events);
        }
        state.sweep();
        let free = limits.slots.saturating_sub(state.running);
        // Some of the queue have a slot already, and will have taken it in a moment.
        let waiting = state.queue.len().saturating_sub(free);
        if state.queue.len() >= limits.queue.saturating_add(free) {
            state.done.refused += 1;
            return Err(Busy {
                waiting,
                retry_after: state.retry_after(limits.slots),
            });
        }
        let client = job.client.clone();
        let taken = Instant::now();
        state.queue.push(client, Waiting { job, reporter, taken });
        drop(state);
        changed.notify_all();
        Ok(events)
    }

    fn counts(&self) -> Counts {
        let mut state = self.shared.state();
        state.sweep();
        Counts {
            waiting: state.queue.len(),
            running: state.running,
            kept: state.kept.len(),
            cache_bytes: state.kept.bytes() + self.shared.running_bytes.load(Ordering::Relaxed),
            slots: self.shared.limits.slots,
            ..state.done
        }
    }

    fn end(&self, grace: Duration) {
        let now = Instant::now();
        // A grace beyond all clocks is a long one.
        let end = now
            .checked_add(grace)
            .unwrap_or(now + Duration::from_secs(86_400 * 365));
        let mut state = self.shared.state();
        let end = state.ending.map_or(end, |earlier| earlier.min(end));
        state.ending = Some(end);
        for waiting in state.queue.sweep(|_| true) {
            state.done.failed += 1;
            waiting.reporter.say(Event::Failed(JobError::Ending));
        }
        self.shared.changed.notify_all();
        while state.running > 0 {
            state = self.shared.wait(state, LOOK);
        }
        state.closed = true;
        drop(state);
        self.shared.changed.notify_all();
        let threads = std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        for thread in threads {
            // Panics of jobs were caught; there is nothing else to fail.
            drop(thread.join());
        }
    }
}

impl Drop for Scheduler {
    fn drop(&mut self) {
        self.end(Duration::ZERO);
    }
}
