//! `--frames`: the question about each frame of a stream, or about the newest where they come faster than answers.

use super::{Failure, Run};
use crate::command::newest::{Counts, Newest, Next, Patient};
use crate::command::output::{self, FrameRecord};
use crate::command::plan::{FrameTask, Name, Source};
use crate::image::Picture;
use crate::image::frames::{Frame, Frames, Sketch};
use crate::{Finish, Message, Timeline};
use std::fs::File;
use std::io::{self, IsTerminal as _, Read};
use std::sync::atomic::Ordering;
use std::time::Instant;

/// Frames whose features are kept: who shows the same again need not be looked at again, and memory is bounded.
const REMEMBERED: usize = 16;

/// The frame that an answer is about.
#[derive(Debug, Clone, Copy)]
pub(super) struct Note {
    number: u64,
    /// When its last byte was there; unknown of broken ones.
    arrived: Option<Instant>,
    /// When it was asked about.
    asked: Instant,
    counts: Counts,
}

impl Note {
    /// For programs; `first_token` is the time from asking to there.
    pub(super) fn record(&self, timeline: &Timeline, first_token: Option<f64>) -> FrameRecord {
        FrameRecord {
            frame: self.number,
            arrived: self.arrived.map(|arrived| timeline.seconds(arrived)),
            first_token: first_token.map(|time| timeline.seconds(self.asked) + time),
            answered: timeline.seconds(Instant::now()),
            dropped: self.counts.dropped,
            passed_over: self.counts.passed_over,
            broken: self.counts.broken,
            skipped_bytes: self.counts.skipped_bytes,
        }
    }
}

/// What a stream came to.
#[derive(Debug, Default)]
struct Total {
    answered: u64,
    counts: Counts,
}

impl Run<'_> {
    /// The question about the frames of a stream, until it ends; one that fails does not stop the others.
    pub(super) fn frames(&mut self, task: &FrameTask) -> Result<Finish, Failure> {
        let name = task.source.name();
        let (reader, is_file) = match open(&task.source) {
            Ok(opened) => opened,
            Err(problem) => {
                self.report(&problem);
                self.note_failure(std::slice::from_ref(&name), &problem)?;
                return Ok(Finish::Stop);
            }
        };
        let frames = Frames::new(Patient(reader), &name.text(), self.plan.limits);
        // What lies on a disk can wait: nothing of it is newer than the rest.
        let newest = match Newest::read(frames, task.every, task.no_drop || is_file) {
            Ok(newest) => newest,
            Err(error) => {
                self.report(&format!("cannot start a thread that reads frames: {error}"));
                return Ok(Finish::Stop);
            }
        };
        // A model that does not open is told now, not when there is something to see.
        self.engine.ready()?;
        let mut total = Total::default();
        let result = self.all_frames(task, &newest, &name, &mut total);
        if !self.plan.quiet && result.is_ok() {
            let Counts {
                dropped,
                passed_over,
                broken,
                skipped_bytes,
            } = total.counts;
            let skipped = match skipped_bytes {
                0 => String::new(),
                bytes => format!("; {bytes} bytes were of no whole frame"),
            };
            let answered = total.answered;
            output::tell(&format!(
                "frames: {answered} answered, {dropped} dropped for newer ones, {passed_over} passed over, {broken} broken{skipped}"
            ));
        }
        result
    }

    fn all_frames(
        &mut self,
        task: &FrameTask,
        newest: &Newest,
        name: &Name,
        total: &mut Total,
    ) -> Result<Finish, Failure> {
        let mut since = Counts::default();
        let mut seen: Option<Sketch> = None;
        loop {
            let (next, counts) = newest.next();
            total.counts.add(counts);
            since.add(counts);
            let (frame, arrived) = match next {
                Next::Frame(frame, arrived) => (frame, arrived),
                Next::Broken(number, error) => {
                    let counts = std::mem::take(&mut since);
                    self.no_frame(name, number, counts, &error.to_string())?;
                    continue;
                }
                Next::End(None) => return Ok(Finish::Stop),
                Next::End(Some(error)) => {
                    self.report(&error.to_string());
                    self.note_failure(std::slice::from_ref(name), &error.to_string())?;
                    return Ok(Finish::Stop);
                }
            };
            let picture = match self.decode(&frame) {
                Ok(picture) => picture,
                Err(error) => {
                    total.counts.broken += 1;
                    since.broken += 1;
                    let counts = std::mem::take(&mut since);
                    self.no_frame(name, frame.number(), counts, &error)?;
                    continue;
                }
            };
            if let Some(threshold) = task.on_change {
                let sketch = Sketch::of(&picture);
                if seen
                    .as_ref()
                    .is_some_and(|seen| seen.difference(&sketch) < threshold)
                {
                    total.counts.passed_over += 1;
                    since.passed_over += 1;
                    continue;
                }
                seen = Some(sketch);
            }
            let note = Note {
                number: frame.number(),
                arrived: Some(arrived),
                asked: Instant::now(),
                counts: std::mem::take(&mut since),
            };
            drop(frame);
            let (finish, answered) = self.about_frame(note, &picture, name)?;
            // Ctrl-C may have come behind the last word of an answer.
            if finish == Finish::Cancelled || self.interrupt.cancel.load(Ordering::Relaxed) {
                return Ok(Finish::Cancelled);
            }
            total.answered += u64::from(answered);
            if answered && total.answered.is_multiple_of(REMEMBERED as u64) {
                self.engine.model().forget_features();
            }
        }
    }

    fn decode(&self, frame: &Frame) -> Result<Picture, String> {
        let limits = &self.plan.limits;
        let picture = self.timeline.measure("decode image", || frame.decode(limits));
        picture.map_err(|error| error.to_string())
    }

    /// Asks about a frame, and writes the answer; whether there is one.
    fn about_frame(&mut self, note: Note, picture: &Picture, name: &Name) -> Result<(Finish, bool), Failure> {
        if !self.plan.json {
            let frame = Name(format!("frame {}", note.number).into());
            self.title = Some(output::title(&frame, self.answered));
        }
        // What the prompt has before the image stays computed.
        self.engine.forget_images();
        let image = self.engine.add_image(picture)?;
        let mut messages = self.beginning();
        messages.push(Message::user([image], self.plan.prompt.clone()));
        self.frame = Some(note);
        let answer = self.answer(&messages, std::slice::from_ref(name), &self.plan.prompt);
        let result = match answer {
            Ok((_, finish)) => Ok((finish, true)),
            Err(Failure::Engine(error)) if !error.is_about_model() => {
                self.no_answer(std::slice::from_ref(name), &error)?;
                Ok((Finish::Stop, false))
            }
            Err(fatal) => Err(fatal),
        };
        self.frame = None;
        result
    }

    /// Says that a frame is none.
    fn no_frame(&mut self, name: &Name, number: u64, counts: Counts, error: &str) -> Result<(), Failure> {
        self.report(error);
        self.frame = Some(Note {
            number,
            arrived: None,
            asked: Instant::now(),
            counts,
        });
        let noted = self.note_failure(std::slice::from_ref(name), error);
        self.frame = None;
        noted
    }
}

/// Opens a stream; whether it is a file on a disk.
fn open(source: &Source) -> Result<(Box<dyn Read + Send>, bool), String> {
    match source {
        Source::File(path) => {
            let failed = |error: io::Error| format!("cannot read frames from `{}`: {error}", path.display());
            let file = File::open(path).map_err(failed)?;
            let kind = file.metadata().map_err(failed)?;
            if kind.is_dir() {
                let what = "it is a folder, expected a file or a pipe of frames";
                return Err(format!("cannot read frames from `{}`: {what}", path.display()));
            }
            Ok((Box::new(file), kind.is_file()))
        }
        Source::Stdin if io::stdin().is_terminal() => {
            Err("cannot read frames from stdin: it is a terminal, expected a pipe or a file".to_owned())
        }
        Source::Stdin => Ok((Box::new(io::stdin()), stdin_is_file())),
    }
}

#[cfg(any(unix, windows))]
fn stdin_is_file() -> bool {
    #[cfg(unix)]
    use std::os::fd::AsFd as _;
    #[cfg(windows)]
    use std::os::windows::io::AsHandle as _;

    let stdin = io::stdin();
    #[cfg(unix)]
    let own = stdin.as_fd().try_clone_to_owned();
    #[cfg(windows)]
    let own = stdin.as_handle().try_clone_to_owned();
    // A pipe and a console of Windows have no such data.
    own.and_then(|own| File::from(own).metadata())
        .is_ok_and(|kind| kind.is_file())
}

#[cfg(not(any(unix, windows)))]
fn stdin_is_file() -> bool {
    false
}
