//! Several images that are described at once: what they cost together is little more than what one costs.

use super::{Ended, Failure, Run, logprob_records, waits, write_record};
use crate::command::output::{self, Spinner};
use crate::command::plan::{Name, Source};
use crate::{Answer, Conversation, EngineError, Finish, Message, TokenLogprob};
use std::collections::VecDeque;
use std::sync::atomic::Ordering;

/// Images that are described at once where nobody says how many.
const BATCH: usize = 8;

/// Bytes that what the model remembers of them may take then.
const BATCH_BYTES: usize = 1 << 30;

/// Positions of a prompt beside those of its image, at most: a guess, for memory.
const PROMPT_TEXT: usize = 64;

/// An image of several that are described at once, in the order of the output.
struct Description {
    name: Name,
    state: State,
    /// How much of the text is written.
    written: usize,
    text: String,
    logprobs: Vec<TokenLogprob>,
    /// Whether its title is written.
    titled: bool,
}

enum State {
    Answering(Box<Answer<'static>>),
    Ended(Box<Ended>),
    Failed(Failure),
}

impl Description {
    /// The answer, while more of it comes.
    fn coming(&mut self) -> Option<&mut Answer<'static>> {
        match &mut self.state {
            State::Answering(answer) => Some(answer),
            _ => None,
        }
    }

    /// Its conversation, where the answer has just ended: however long this one waits for its turn, another goes on with it.
    fn end(&mut self) -> Option<Conversation> {
        let ended = match &self.state {
            State::Answering(answer) if answer.finish().is_some() => {
                State::Ended(Box::new(Ended::of(answer)))
            }
            _ => return None,
        };
        match std::mem::replace(&mut self.state, ended) {
            State::Answering(answer) => answer.into_conversation(),
            _ => None,
        }
    }
}

impl Run<'_> {
    /// How many images are described at once: as many as was said, or as keep what the model remembers of them in bounds.
    pub(super) fn batch(&self) -> usize {
        let bundle = self.engine.bundle();
        let kv = &bundle.kv;
        // A key and a value, and twice while a step computes the next ones.
        let numbers = 2 * 2 * kv.layers * kv.kv_heads * kv.head_dim;
        let positions = bundle.image.tokens + PROMPT_TEXT + self.plan.request.max_tokens;
        let bytes = numbers
            .saturating_mul(positions.min(kv.max_context))
            .saturating_mul(size_of::<f32>());
        let fit = BATCH_BYTES / bytes.max(1);
        self.plan.batch.unwrap_or(BATCH.min(fit)).max(1)
    }

    /// [`Run::each`], `batch` images at once: their prompts one after another, then all answers a token at a time. The first
    /// one that is not complete is written as it comes, the others when it is their turn.
    pub(super) fn each_beside(&mut self, images: &[Source], batch: usize) -> Result<Finish, Failure> {
        let mut sources = images.iter();
        let mut begun: VecDeque<Description> = VecDeque::new();
        let mut idle: Vec<Conversation> = Vec::new();
        let mut cancelled = false;
        self.interrupt.cancel.store(false, Ordering::Relaxed);
        loop {
            let mut coming = begun.iter_mut().filter_map(Description::coming).count();
            while coming < batch
                && !cancelled
                && let Some(source) = sources.as_slice().first()
            {
                // Who waits for this one has read the others first.
                if waits(source) && !begun.is_empty() {
                    break;
                }
                sources.next();
                // Until there are words to keep, Ctrl-C ends the program.
                let words = begun.iter().any(|description| !description.text.is_empty());
                self.interrupt.answering.store(words, Ordering::Relaxed);
                // What prompts have in common before their images is known to a conversation that had another.
                let conversation = idle.pop().unwrap_or_else(|| self.engine.model().conversation());
                let state = match self.begin(source, conversation) {
                    Ok(answer) => State::Answering(Box::new(answer)),
                    Err(Failure::Engine(EngineError::Cancelled)) => {
                        cancelled = true;
                        break;
                    }
                    Err(failure) => State::Failed(failure),
                };
                let fatal = matches!(&state, State::Failed(Failure::Engine(error)) if error.is_about_model());
                coming += usize::from(matches!(state, State::Answering(_)));
                begun.push_back(Description {
                    name: source.name(),
                    state,
                    written: 0,
                    text: String::new(),
                    logprobs: Vec::new(),
                    titled: false,
                });
                if fatal {
                    // Nobody else would fare better.
                    sources = [].iter();
                }
            }
            self.interrupt.answering.store(true, Ordering::Relaxed);
            let mut answers = Vec::with_capacity(coming);
            let mut places = Vec::with_capacity(coming);
            for (place, description) in begun.iter_mut().enumerate() {
                if let Some(answer) = description.coming() {
                    answers.push(answer);
                    places.push(place);
                }
            }
            let pieces = Answer::next_together(&mut answers);
            for (place, piece) in places.into_iter().zip(pieces) {
                let Some(description) = begun.get_mut(place) else {
                    continue;
                };
                match piece {
                    Some(Ok(piece)) => {
                        description.text.push_str(&piece.text);
                        description.logprobs.extend(piece.logprob);
                    }
                    Some(Err(error)) => description.state = State::Failed(error.into()),
                    None => {}
                }
                idle.extend(description.end());
            }
            while let Some(first) = begun.front_mut() {
                let complete = first.coming().is_none();
                self.write_coming(first)?;
                if !complete {
                    break;
                }
                if let Some(description) = begun.pop_front() {
                    cancelled |= self.write_complete(description)? == Finish::Cancelled;
                }
            }
            if begun.is_empty() && (cancelled || sources.len() == 0) {
                self.interrupt.answering.store(false, Ordering::Relaxed);
                return Ok(if cancelled {
                    Finish::Cancelled
                } else {
                    Finish::Stop
                });
            }
        }
    }

    /// Reads the prompt of one of several images.
    fn begin(&mut self, source: &Source, mut conversation: Conversation) -> Result<Answer<'static>, Failure> {
        let spinner = Spinner::new(self.plan.quiet || self.captions.is_some(), "reading the question");
        let picture = self.open(source)?;
        conversation.forget_images();
        let image = conversation.add_image(&picture)?;
        drop(picture);
        let mut messages = self.beginning();
        messages.push(Message::user([image], self.plan.prompt.clone()));
        let answer = conversation.into_chat(&messages, &self.request);
        drop(spinner);
        if !self.plan.quiet {
            self.engine
                .take_notices()
                .iter()
                .for_each(|notice| output::tell(notice));
        }
        answer.map_err(|refused| Failure::Engine(refused.1))
    }

    /// Writes what came of a description whose turn it is.
    fn write_coming(&mut self, description: &mut Description) -> Result<(), Failure> {
        if !self.shows() || matches!(&description.state, State::Failed(_) if description.text.is_empty()) {
            return Ok(());
        }
        if !description.titled {
            output::write_text(&output::title(&description.name, self.answered))?;
            description.titled = true;
            self.answered = true;
        }
        let rest = description.text.get(description.written..).unwrap_or_default();
        if !rest.is_empty() {
            output::write_text(rest)?;
            description.written = description.text.len();
        }
        Ok(())
    }

    /// Writes the end of a description.
    fn write_complete(&mut self, description: Description) -> Result<Finish, Failure> {
        let Description {
            name,
            state,
            text,
            logprobs,
            ..
        } = description;
        if self.shows() && !text.ends_with('\n') && (matches!(state, State::Ended(_)) || !text.is_empty()) {
            output::write_text("\n")?;
        }
        match state {
            State::Ended(answer) if self.captions.is_some() => {
                if let Some(captions) = &mut self.captions {
                    captions.answer(&name, &text, answer.finish)?;
                }
                Ok(answer.finish.unwrap_or(Finish::Stop))
            }
            State::Ended(answer) => {
                let logprobs = logprob_records(self.plan, self.engine.model(), &logprobs)?;
                let names = [name];
                write_record(
                    self.plan,
                    &answer,
                    &names,
                    &self.plan.prompt,
                    &text,
                    logprobs,
                    None,
                )?;
                Ok(answer.finish.unwrap_or(Finish::Stop))
            }
            // Not complete: it is not written yet.
            State::Answering(_) => Ok(Finish::Stop),
            State::Failed(Failure::Engine(error)) if !error.is_about_model() => {
                self.failed_on(&name, &error)?;
                Ok(Finish::Stop)
            }
            State::Failed(fatal) => Err(fatal),
        }
    }
}
