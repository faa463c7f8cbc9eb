//! Decoding: steps of all running answers together, and between two of them a piece of one prompt.

use super::prepare::count;
use super::{LOOK, Shared, Slot, Work};
use crate::work::{Event, JobError};
use runtime::prompt::catch::catch;
use runtime::{Answer, Conversation, EngineError, Finish, Piece, Progress, Reading};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// How many pieces of a prompt are read at once where no answer runs.
const UNDISTURBED: usize = 4;

/// Positions up to which the kernels compute as for steps: sums have another order there, so that what is read in so few
/// may be other bits.
const FEW: usize = 16;

/// An answer that runs.
struct Running {
    work: Work,
    answer: Answer<'static>,
    first: Option<Instant>,
}

/// All that is computed.
struct Decoding<'a> {
    shared: &'a Shared,
    /// In the order in which their prompts were ready.
    readings: Vec<(Work, Reading)>,
    answers: Vec<Running>,
    /// Whether the shortest prompt is next, and not the oldest.
    shortest: bool,
    /// Whether a cache takes all that is reserved for it; known when the first prompt is there.
    whole: Option<bool>,
}

/// What the thread does, to the end.
pub(super) fn run(shared: &Arc<Shared>) {
    let mut decoding = Decoding {
        shared,
        readings: Vec::new(),
        answers: Vec::new(),
        shortest: false,
        whole: None,
    };
    while decoding.take_in() {
        // The engine's panics are errors already; what is left are our own bugs, and end what runs, not the server.
        if let Err(panic) = catch(|| decoding.turn()) {
            decoding.fail_all(&|| JobError::Engine(format!("a bug: {panic}")));
        }
        decoding.count_bytes();
    }
}

impl Decoding<'_> {
    /// Takes in what was prepared, and waits where there is nothing to compute; whether there will be more.
    fn take_in(&mut self) -> bool {
        let mut state = self.shared.state();
        loop {
            state.sweep();
            self.readings.append(&mut state.handed);
            let over = state.is_over();
            let nothing = self.readings.is_empty() && self.answers.is_empty();
            if over && !nothing {
                drop(state);
                self.fail_all(&|| JobError::Ending);
                state = self.shared.state();
                continue;
            }
            if !nothing {
                break;
            }
            if state.closed {
                return false;
            }
            let most = if state.queue.is_empty() {
                Duration::from_secs(60)
            } else {
                LOOK
            };
            state = self.shared.wait(state, most);
        }
        drop(state);
        if self.whole.is_none() {
            self.whole = self.shared.takes_whole_context().ok();
        }
        true
    }

    /// Keeps a conversation that nobody uses any more.
    fn keep(&self, slot: Slot, conversation: Conversation) {
        slot.keep(conversation, self.whole.unwrap_or(true));
    }

    /// One step of all answers, and one piece of one prompt.
    fn turn(&mut self) {
        let (gone, stay) = std::mem::take(&mut self.readings)
            .into_iter()
            .partition(|(work, _)| work.reporter.cancelled().load(Ordering::Relaxed));
        self.readings = stay;
        for (work, reading) in gone {
            self.cancelled(work, reading.into_conversation());
        }
        self.step();
        self.piece();
    }

    fn step(&mut self) {
        if self.answers.is_empty() {
            return;
        }
        #[cfg(test)]
        self.shared.faults.step();
        let mut answers: Vec<_> = self
            .answers
            .iter_mut()
            .map(|running| &mut running.answer)
            .collect();
        let pieces = Answer::next_together(&mut answers);
        self.shared.state().done.steps += 1;
        let running = std::mem::take(&mut self.answers).into_iter();
        for (running, piece) in running.zip(pieces) {
            self.came(running, piece);
        }
    }

    /// Passes on what came of an answer, which goes on or is over.
    fn came(&mut self, mut running: Running, piece: Option<Result<Piece, EngineError>>) {
        match piece {
            Some(Ok(piece)) => {
                if piece.id.is_some() {
                    running.first.get_or_insert_with(Instant::now);
                    self.shared.state().done.tokens += 1;
                }
                running.work.reporter.say(Event::Piece(piece));
            }
            Some(Err(error)) => return self.failed(running.work, &error),
            None => {}
        }
        match running.answer.finish() {
            Some(finish) => self.over(running, finish),
            None => self.answers.push(running),
        }
    }

    fn failed(&self, work: Work, error: &EngineError) {
        self.shared.state().done.failed += 1;
        let words = error.to_string();
        work.reporter.say(Event::Failed(match error {
            EngineError::Constraint(_) => JobError::Constraint(words),
            _ => JobError::Engine(words),
        }));
    }

    /// One whose client is gone. What was computed may still be useful: it may ask again.
    fn cancelled(&self, work: Work, conversation: Conversation) {
        self.shared.state().done.cancelled += 1;
        self.keep(work.slot, conversation);
    }

    fn over(&self, running: Running, finish: Finish) {
        let Running { work, answer, first } = running;
        let Work {
            reporter,
            taken,
            slot,
        } = work;
        let stats = Box::new(answer.stats());
        if finish == Finish::Cancelled {
            self.shared.state().done.cancelled += 1;
        } else {
            self.shared.state().done.finished += 1;
        }
        // Before it is told, so that who asks at once goes on with it.
        if let Some(conversation) = answer.into_conversation() {
            self.keep(slot, conversation);
        }
        let first_token = first.unwrap_or_else(Instant::now).duration_since(taken);
        let own = Duration::try_from_secs_f64(stats.preprocess + stats.encode + stats.prefill);
        reporter.say(Event::Ended {
            finish,
            stats,
            first_token,
            queued: first_token.saturating_sub(own.unwrap_or_default()),
        });
    }

    /// Reads a piece of a prompt: in turn of the shortest, so that a short one does not wait for long ones, and of the
    /// oldest, so that a long one is read too.
    fn piece(&mut self) {
        if self.readings.is_empty() {
            return;
        }
        let shortest = self.readings.iter().enumerate();
        let shortest = shortest.min_by_key(|(_, (_, reading))| reading.left());
        let index = match shortest {
            Some((index, _)) if self.shortest => index,
            _ => 0,
        };
        self.shortest = !self.shortest;
        let (work, reading) = self.readings.remove(index);
        let piece = self.shared.limits.prefill_piece;
        let most = if self.answers.is_empty() {
            piece.saturating_mul(UNDISTURBED)
        } else {
            piece
        };
        let before = reading.left();
        let most = piece_length(before, most);
        let (prompt_positions, reused_positions) = (reading.prompt_positions(), reading.reused_positions());
        let read = reading.advance(most);
        let left = match &read {
            Ok(Progress::Reading(reading)) => reading.left(),
            Ok(Progress::Answer(_)) => 0,
            Err(_) => before,
        };
        self.shared.state().done.prompt_positions += count(before - left);
        match read {
            Ok(Progress::Reading(reading)) => self.readings.insert(index, (work, *reading)),
            Ok(Progress::Answer(mut answer)) => {
                work.reporter.say(Event::Begun {
                    prompt_positions,
                    reused_positions,
                });
                // Its first token needs no step.
                let piece = Answer::next_together(&mut [&mut *answer]).pop().flatten();
                let running = Running {
                    work,
                    answer: *answer,
                    first: None,
                };
                self.came(running, piece);
            }
            Err(refused) => match *refused {
                (conversation, EngineError::Cancelled) => self.cancelled(work, conversation),
                (_, error) => self.failed(work, &error),
            },
        }
    }

    /// Ends all that runs.
    fn fail_all(&mut self, error: &dyn Fn() -> JobError) {
        let answers = self.answers.drain(..).map(|running| running.work);
        let readings = self.readings.drain(..).map(|(work, _)| work);
        for work in answers.chain(readings) {
            self.shared.state().done.failed += 1;
            work.reporter.say(Event::Failed(error()));
        }
        self.count_bytes();
    }

    fn count_bytes(&self) {
        let answers = self.answers.iter().map(|running| running.answer.cache_bytes());
        let readings = self.readings.iter().map(|(_, reading)| reading.cache_bytes());
        let bytes = answers.chain(readings).sum();
        self.shared.running_bytes.store(bytes, Ordering::Relaxed);
    }
}

/// How many of the positions that are left are read at once, where a piece has `most`. A short rest goes with the piece
/// before it, so that the bits of an answer do not depend on how its prompt was cut.
fn piece_length(left: usize, most: usize) -> usize {
    if most > FEW && left <= most.saturating_add(FEW) {
        return left;
    }
    left.min(most)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_piece_of_a_prompt_is_short_but_a_short_prompt() {
        for most in [17, 32, 128, usize::MAX] {
            for prompt in 1..600 {
                let mut left = prompt;
                while left > 0 {
                    let length = piece_length(left, most);
                    assert!(length > FEW || length == prompt, "{length} of {prompt}");
                    assert!(length <= most.saturating_add(FEW));
                    left -= length;
                }
            }
        }
        assert_eq!([piece_length(5, 1), piece_length(5, 9)], [1, 5]);
    }
}
