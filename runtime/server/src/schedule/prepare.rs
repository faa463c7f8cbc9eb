//! Preparing: what is done for a job before its prompt is read, beside the steps of others: images, words, memory.

use super::{LOOK, Shared, Slot, State, Waiting, Work};
use crate::work::{Event, Job, JobError};
use runtime::image::{ImageId, Picture, PixelValues};
use runtime::prompt::catch::catch;
use runtime::prompt::{Prompt, Span};
use runtime::{Conversation, EngineError, Message, Model, Reading, Target};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Images of one job whose pixels are held from the time when they are told apart until they are encoded; those of more are
/// prepared twice, for pixels are large.
const PIXELS_HELD: usize = 2;

/// Why a job is not handed over.
enum Stopped {
    /// Nobody listens any more.
    Cancelled,
    Failed(JobError),
}

impl From<EngineError> for Stopped {
    fn from(error: EngineError) -> Stopped {
        match error {
            EngineError::Cancelled => Stopped::Cancelled,
            EngineError::Constraint(error) => Stopped::Failed(JobError::Constraint(error.to_string())),
            EngineError::TooLong { .. } => Stopped::Failed(JobError::TooLong(error.to_string())),
            error if is_engines(&error) => Stopped::Failed(JobError::Engine(error.to_string())),
            error => Stopped::Failed(JobError::Refused(error.to_string())),
        }
    }
}

/// Whether it is the engine's fault, or the model's, and not that of what was asked for.
fn is_engines(error: &EngineError) -> bool {
    let computed = matches!(
        error,
        EngineError::Backend(_)
            | EngineError::Splice(_)
            | EngineError::Output { .. }
            | EngineError::Panic { .. }
    );
    // What an answer is to be one of is the request's.
    computed || (error.is_about_model() && !matches!(error, EngineError::Choices(_)))
}

/// What a thread does: takes jobs as slots become free, to the end.
pub(super) fn run(shared: &Arc<Shared>) {
    while let Some((waiting, slot)) = next(shared) {
        let Waiting { job, reporter, taken } = waiting;
        let mut work = Work {
            reporter,
            taken,
            slot,
        };
        let prepared = catch(|| {
            #[cfg(test)]
            shared.faults.prepare();
            prepare(shared, &job, &mut work)
        });
        // Pictures are large.
        drop(job);
        let stopped = match prepared {
            Ok(Ok(reading)) => {
                let mut state = shared.state();
                state.done.reused_positions += count(reading.reused_positions());
                state.handed.push((work, reading));
                drop(state);
                shared.changed.notify_all();
                continue;
            }
            Ok(Err(stopped)) => stopped,
            Err(panic) => Stopped::Failed(JobError::Engine(format!("a bug: {panic}"))),
        };
        match stopped {
            Stopped::Cancelled => shared.state().done.cancelled += 1,
            Stopped::Failed(error) => {
                shared.state().done.failed += 1;
                work.reporter.say(Event::Failed(error));
            }
        }
    }
}

pub(super) fn count(number: usize) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}

/// The next job, with a slot; `None` where there will be none.
fn next(shared: &Arc<Shared>) -> Option<(Waiting, Slot)> {
    let mut state = shared.state();
    loop {
        if state.closed {
            return None;
        }
        state.sweep();
        if state.running < shared.limits.slots
            && let Some(waiting) = state.queue.pop()
        {
            state.running += 1;
            drop(state);
            return Some((waiting, Slot::new(shared)));
        }
        let most = if state.queue.is_empty() {
            Duration::from_secs(60)
        } else {
            LOOK
        };
        state = shared.wait(state, most);
    }
}

/// An image of a job.
struct Seen<'a> {
    picture: &'a Picture,
    pixels: Option<(PixelValues, Duration)>,
}

/// All of it, to a prompt that is ready to be read.
fn prepare(shared: &Arc<Shared>, job: &Job, work: &mut Work) -> Result<Reading, Stopped> {
    let model = &shared.model;
    let cancel = work.reporter.cancelled();
    let request = job.request.clone().with_cancel(Arc::clone(&cancel));
    shared.check(&cancel)?;
    let (messages, mut seen) = look(shared, job, &cancel)?;
    let prompt = model.prompter()?.build(&messages).map_err(EngineError::from)?;
    let context = model.context()?;
    let fits = prompt.len() < context;
    if !fits && !job.context_shift {
        let (found, expected) = (prompt.len(), context);
        return Err(EngineError::TooLong { found, expected }.into());
    }
    let need = need(shared, &prompt, job.request.max_tokens, context)?;
    let prompts = Prompts::of(shared, job, &messages, prompt)?;
    let common = |conversation: &Conversation| {
        let read = prompts.read_by(conversation);
        read.map_or(0, |read| conversation.in_common(read))
    };
    let kept = shared.reserve(need, common, &mut work.slot, &cancel)?;
    let mut conversation = kept.unwrap_or_else(|| model.conversation());
    conversation.set_context_shift(job.context_shift);
    let read = prompts.read_by(&conversation).unwrap_or(&prompts.whole);
    // As `Conversation::begin` has it: an answer wants room too.
    let answer = job.request.max_tokens.min(context / 4).max(1);
    let shifts = job.context_shift && read.len().saturating_add(answer) > context;
    let wanted: Vec<ImageId> = if !shifts {
        let known = conversation.in_common(read).min(read.len().saturating_sub(1));
        let spans = read.spans(known);
        spans.iter().filter_map(image).collect()
    } else {
        // Another prompt than this will be read: turns are left out, but no image is.
        seen.keys().copied().collect()
    };
    let mut encoded = 0;
    for id in wanted {
        if let Some(image) = seen.get_mut(&id) {
            match encode(shared, &mut conversation, id, image, &cancel) {
                Ok(now) => encoded += usize::from(now),
                Err(stopped) => {
                    work.slot.put_back(conversation);
                    return Err(stopped);
                }
            }
        }
    }
    {
        let mut state = shared.state();
        state.done.images_encoded += count(encoded);
        state.done.images_reused += count(seen.len() - encoded);
    }
    drop(seen);
    conversation.begin(&messages, &request).map_err(|refused| {
        // It may be asked again, and better.
        let (conversation, error) = *refused;
        work.slot.put_back(conversation);
        error.into()
    })
}

/// What is read for a job: its whole prompt, or where turns may be left out, one without those that a kept conversation left out
/// before.
struct Prompts<'a> {
    /// Whether turns may be left out.
    shifts: bool,
    messages: &'a [Message],
    whole: Prompt,
    /// By how many of the messages are left out.
    shorter: BTreeMap<usize, Prompt>,
}

impl<'a> Prompts<'a> {
    /// Those of the conversations that are kept now.
    fn of(
        shared: &Shared,
        job: &Job,
        messages: &'a [Message],
        whole: Prompt,
    ) -> Result<Prompts<'a>, EngineError> {
        let mut left_out = BTreeSet::new();
        if job.context_shift {
            let state = shared.state();
            let kept = state.kept.conversations();
            left_out.extend(kept.map(|conversation| conversation.left_out_of(messages)));
        }
        left_out.remove(&0);
        // A prompt takes a while, and others want to look at the state.
        let model = &shared.model;
        let prompter = model.prompter()?;
        let built = left_out.into_iter().filter_map(|count| {
            let prompt = prompter.build(&model.without_first(messages, count)).ok()?;
            Some((count, prompt))
        });
        Ok(Prompts {
            shifts: job.context_shift,
            messages,
            whole,
            shorter: built.collect(),
        })
    }

    /// The prompt that a conversation reads; `None` where it was not there before.
    fn read_by(&self, conversation: &Conversation) -> Option<&Prompt> {
        match conversation.left_out_of(self.messages) {
            count if self.shifts && count > 0 => self.shorter.get(&count),
            _ => Some(&self.whole),
        }
    }
}

fn image(span: &Span<'_>) -> Option<ImageId> {
    match span {
        Span::Image { id, .. } => Some(*id),
        Span::Tokens(_) => None,
    }
}

/// The messages, and what images they show: each is prepared, so that it has an id.
fn look<'a>(
    shared: &Shared,
    job: &'a Job,
    cancel: &AtomicBool,
) -> Result<(Vec<Message>, BTreeMap<ImageId, Seen<'a>>), Stopped> {
    let mut seen: BTreeMap<ImageId, Seen<'a>> = BTreeMap::new();
    let mut messages = Vec::with_capacity(job.turns.len());
    for turn in &job.turns {
        let mut message = Message::new(turn.role, turn.text.clone());
        for picture in &turn.images {
            shared.check(cancel)?;
            let (pixels, spent) = preprocess(&shared.model, picture)?;
            let id = pixels.id;
            message.images.push(id);
            let held = seen.values().filter(|image| image.pixels.is_some()).count();
            let hold = held < PIXELS_HELD && !shared.model.knows_image(id);
            seen.entry(id).or_insert(Seen {
                picture,
                pixels: hold.then_some((pixels, spent)),
            });
        }
        messages.push(message);
    }
    Ok((messages, seen))
}

fn preprocess(model: &Model, picture: &Picture) -> Result<(PixelValues, Duration), EngineError> {
    let begun = Instant::now();
    let pixels = model.preprocess(picture)?;
    Ok((pixels, begun.elapsed()))
}

/// Gives the conversation an image's features; says whether they were computed now. Images are encoded one at a time, first
/// come first; who needs no encoder does not wait for it.
fn encode(
    shared: &Shared,
    conversation: &mut Conversation,
    id: ImageId,
    image: &mut Seen<'_>,
    cancel: &AtomicBool,
) -> Result<bool, Stopped> {
    if conversation.recall_image(id) {
        return Ok(false);
    }
    let _turn = Turn::wait(shared, cancel)?;
    // Another may have shown it meanwhile.
    if conversation.recall_image(id) {
        return Ok(false);
    }
    let (pixels, spent) = match image.pixels.take() {
        Some(held) => held,
        None => preprocess(&shared.model, image.picture)?,
    };
    conversation.add_pixels(pixels, spent);
    Ok(conversation.encode(id)?)
}

/// Cache positions that a job may come to at most.
///
/// # Errors
/// More than there are.
fn need(shared: &Shared, prompt: &Prompt, answer: usize, context: usize) -> Result<usize, Stopped> {
    let found = prompt.len();
    let need = if shared.takes_whole_context()? {
        context
    } else {
        found.saturating_add(answer).min(context)
    };
    let most = shared.limits.cache_positions;
    if need > most {
        return Err(Stopped::Failed(JobError::Refused(format!(
            "the prompt takes {found} positions, with an answer of at most {answer} tokens {need}: all caches of this \
             server have {most} (--cache-positions)"
        ))));
    }
    Ok(need)
}

impl Shared {
    /// Whether a job is to go on.
    fn check(&self, cancel: &AtomicBool) -> Result<(), Stopped> {
        self.state().check(cancel)
    }

    /// Whether a cache takes room for the whole context, however little of it is used: decoders of fixed lengths.
    pub(super) fn takes_whole_context(&self) -> Result<bool, EngineError> {
        let target = self.model.provider()?.target;
        Ok(!matches!(target, Some(Target::Cpu | Target::Portable)))
    }

    /// Waits until so many cache positions are free, first come first, and has them reserved for the slot; the kept
    /// conversation that the job goes on with, if there is one: that with the most positions `in_common`.
    fn reserve(
        &self,
        need: usize,
        in_common: impl Fn(&Conversation) -> usize,
        slot: &mut Slot,
        cancel: &AtomicBool,
    ) -> Result<Option<Conversation>, Stopped> {
        let mut state = self.state();
        let ticket = state.ticket();
        state.memory.push_back(ticket);
        let most = self.limits.cache_positions;
        let outcome = loop {
            if let Err(stopped) = state.check(cancel) {
                break Err(stopped);
            }
            // The kept ones go where memory is wanted.
            if state.memory.front() == Some(&ticket) && state.reserved + need <= most {
                state.reserved += need;
                slot.reserved(need);
                let taken = state.kept.take(in_common);
                let room = most - state.reserved;
                break Ok((taken, state.kept.shrink(room)));
            }
            state = self.wait(state, LOOK);
        };
        state.memory.retain(|waiting| *waiting != ticket);
        drop(state);
        self.changed.notify_all();
        let (taken, gone) = outcome?;
        // Caches are freed when others may look at the state.
        drop(gone);
        Ok(taken.map(|entry| entry.conversation))
    }
}

impl State {
    fn ticket(&mut self) -> u64 {
        self.tickets += 1;
        self.tickets
    }

    fn check(&self, cancel: &AtomicBool) -> Result<(), Stopped> {
        if cancel.load(Ordering::Relaxed) {
            return Err(Stopped::Cancelled);
        }
        if self.is_over() {
            return Err(Stopped::Failed(JobError::Ending));
        }
        Ok(())
    }
}

/// The encoder, for who was first in line; dropping it lets the next one have it.
struct Turn<'a> {
    shared: &'a Shared,
    ticket: u64,
}

impl<'a> Turn<'a> {
    fn wait(shared: &'a Shared, cancel: &AtomicBool) -> Result<Turn<'a>, Stopped> {
        let mut state = shared.state();
        let ticket = state.ticket();
        state.encoder.push_back(ticket);
        loop {
            if let Err(stopped) = state.check(cancel) {
                state.encoder.retain(|waiting| *waiting != ticket);
                drop(state);
                shared.changed.notify_all();
                return Err(stopped);
            }
            if state.encoder.front() == Some(&ticket) {
                return Ok(Turn { shared, ticket });
            }
            state = shared.wait(state, LOOK);
        }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut state = self.shared.state();
        state.encoder.retain(|waiting| *waiting != self.ticket);
        drop(state);
        self.shared.changed.notify_all();
    }
}
