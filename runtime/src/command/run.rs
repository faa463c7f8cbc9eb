//! The work of `fvlm-run`: opens the bundle, asks, writes answers.

mod beside;
mod captions;
mod chat;
mod frames;

use crate::command::output::{
    self, ChoicesRecord, FailureRecord, FrameRecord, OfFrame, Question, Record, Spinner, Work,
};
use crate::command::plan::{Name, Plan, Source, Task};
use crate::command::verify;
use crate::image::{self, ImageId, Picture};
use crate::{
    Answer, Choices, Engine, EngineError, Finish, LogprobRecord, Message, Model, ProviderReport, Request,
    Role, Stats, Timeline, TokenLogprob,
};
use captions::CaptionRun;
use programs::signals::{self, Signal};
use programs::stdout;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// All is done.
const DONE: u8 = 0;

/// All is done, and some of the lines of `--output` have an error in the place of an answer.
const SOME_FAILED: u8 = 1;

/// An error was said.
const FAILED: u8 = 2;

/// Why an answer was not written.
enum Failure {
    Engine(EngineError),
    /// stdout is closed or full.
    Output(io::Error),
    /// The file of `--output` cannot be written; it is named.
    Captions(String),
}

impl From<EngineError> for Failure {
    fn from(error: EngineError) -> Failure {
        Failure::Engine(error)
    }
}

impl From<image::ImageError> for Failure {
    fn from(error: image::ImageError) -> Failure {
        Failure::Engine(error.into())
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        Failure::Output(error)
    }
}

/// Ctrl-C: ends the answer that is coming; at any other time, and the second time, the program.
#[derive(Clone, Default)]
struct Interrupt {
    cancel: Arc<AtomicBool>,
    answering: Arc<AtomicBool>,
}

impl Interrupt {
    fn install() -> Interrupt {
        let interrupt = Interrupt::default();
        let Interrupt { cancel, answering } = interrupt.clone();
        // SIGTERM and SIGHUP end the program as they end others: there is nothing to clean up.
        signals::on(&[Signal::Interrupt], move |signal| {
            if !answering.load(Ordering::Relaxed) || cancel.swap(true, Ordering::Relaxed) {
                signal.end();
            }
        });
        interrupt
    }
}

struct Run<'a> {
    plan: &'a Plan,
    timeline: &'a Timeline,
    engine: Engine,
    request: Request,
    interrupt: Interrupt,
    /// What stands above the next answer.
    title: Option<String>,
    /// Whether there was an answer.
    answered: bool,
    failed: bool,
    /// Turns of the chat that were left out, as far as somebody was told.
    left_out: usize,
    /// The frame of a stream that is asked about.
    frame: Option<frames::Note>,
    /// Where answers go that are lines of a file.
    captions: Option<CaptionRun>,
}

/// Does what the plan says; the exit code.
pub(crate) fn run(plan: Plan, timeline: &Timeline) -> u8 {
    let interrupt = Interrupt::install();
    for notice in plan.notices.iter().filter(|_| !plan.quiet) {
        output::tell(notice);
    }
    let complain = |error: EngineError| {
        output::complain(&error.to_string(), output::hint(&error, &plan.model).as_deref());
        FAILED
    };
    if plan.task == Task::Verify {
        return match verify::alone(&plan) {
            Ok(Err(error)) if !stdout::is_had_enough(&error) => {
                output::complain(&format!("cannot write to stdout: {error}"), None);
                FAILED
            }
            Ok(_written_or_had_enough) => DONE,
            Err(error) => complain(error),
        };
    }
    let captions = match &plan.task {
        Task::Captions(task) => match CaptionRun::begin(task, &plan.prompt, &plan.choices) {
            Ok(begun) => Some(begun),
            Err(problem) => {
                output::complain(&problem, None);
                return FAILED;
            }
        },
        _ => None,
    };
    let (images, mut captions) = captions.unzip();
    if let (Some([]), Some(captions)) = (images.as_deref(), &mut captions) {
        // Nothing is left to ask.
        if plan.verify
            && let Err(error) = verify::alone(&plan)
        {
            return complain(error);
        }
        return if captions.end(&plan) { DONE } else { SOME_FAILED };
    }
    let engine = match Engine::open_timed(&plan.model, &plan.options, timeline) {
        Ok(engine) => engine,
        Err(error) => return complain(error),
    };
    if plan.verify
        && let Err(error) = verify::before_answers(&plan, engine.model())
    {
        return complain(error);
    }
    let request = plan.request.clone().with_cancel(Arc::clone(&interrupt.cancel));
    let mut run = Run {
        plan: &plan,
        timeline,
        engine,
        request,
        interrupt,
        title: None,
        answered: false,
        failed: false,
        left_out: 0,
        frame: None,
        captions,
    };
    run.engine.conversation().set_context_shift(plan.context_shift);
    let result = match &plan.task {
        Task::Each(images) => run.each(images),
        Task::Once(images) => run.together(images),
        Task::Captions(_) => run.lines(&images.unwrap_or_default()),
        Task::Frames(task) => run.frames(task),
        Task::Chat(images, question) => run.chat(images, question.as_deref()),
        Task::Verify => Ok(Finish::Stop),
    };
    let code = match result {
        // Whoever read our output has had enough: success.
        Err(Failure::Output(error)) if stdout::is_had_enough(&error) => DONE,
        Err(Failure::Output(error)) => {
            output::complain(&format!("cannot write the answer: {error}"), None);
            FAILED
        }
        Err(Failure::Engine(error)) => {
            run.complain(&error);
            FAILED
        }
        Err(Failure::Captions(problem)) => {
            output::complain(&problem, None);
            FAILED
        }
        Ok(Finish::Cancelled) => programs::INTERRUPTED,
        Ok(_) if run.failed && run.captions.is_some() => SOME_FAILED,
        Ok(_) if run.failed => FAILED,
        Ok(_) => DONE,
    };
    // The process ends: the system takes the model's memory back faster than its destructors.
    std::mem::forget(run);
    code
}

/// Whether a path is that of something which the process was given open, and no file: what a shell writes for `<(command)`.
/// A pipe that has a name of its own may have nobody at its other end.
fn is_stream(path: &Path) -> bool {
    let given = path == Path::new("/dev/stdin")
        || ["/dev/fd", "/proc/self/fd"]
            .iter()
            .any(|folder| path.parent() == Some(Path::new(folder)));
    given
        && path
            .metadata()
            .is_ok_and(|found| !found.is_file() && !found.is_dir())
}

/// Whether an image may be waited for.
fn waits(source: &Source) -> bool {
    match source {
        Source::Stdin => true,
        Source::File(path) => is_stream(path),
    }
}

impl Run<'_> {
    /// Whether people read the answers on stdout as they come.
    fn shows(&self) -> bool {
        !self.plan.json && self.captions.is_none()
    }

    /// The question about each image, whose answers become lines of a file.
    fn lines(&mut self, images: &[Source]) -> Result<Finish, Failure> {
        if let Some(captions) = &mut self.captions {
            captions.show(self.plan, images.len());
        }
        let result = self.each(images);
        if let Some(captions) = &mut self.captions {
            self.failed |= !captions.end(self.plan);
        }
        result
    }

    /// The question about each image; one that fails does not stop the others.
    fn each(&mut self, images: &[Source]) -> Result<Finish, Failure> {
        let batch = match self.plan.choices.as_slice() {
            [] => self.batch().min(images.len()),
            _choices => 1,
        };
        if batch > 1 {
            return self.each_beside(images, batch);
        }
        for source in images {
            if images.len() > 1 && self.shows() {
                self.title = Some(output::title(&source.name(), self.answered));
            }
            match self.once(std::slice::from_ref(source)) {
                Ok(Finish::Cancelled) => return Ok(Finish::Cancelled),
                // Ctrl-C may have come behind the last word of an answer.
                Ok(_) if self.interrupt.cancel.load(Ordering::Relaxed) => return Ok(Finish::Cancelled),
                Ok(_) => {}
                Err(Failure::Engine(error)) if !error.is_about_model() => {
                    self.failed_on(&source.name(), &error)?;
                }
                Err(fatal) => return Err(fatal),
            }
            self.engine.forget_images();
        }
        Ok(Finish::Stop)
    }

    /// The question about all `images` at once, and nothing else.
    fn together(&mut self, images: &[Source]) -> Result<Finish, Failure> {
        match self.once(images) {
            Err(Failure::Engine(error)) if !error.is_about_model() => {
                let names: Vec<Name> = images.iter().map(Source::name).collect();
                self.no_answer(&names, &error)?;
                Ok(Finish::Stop)
            }
            ended => ended,
        }
    }

    /// The question about all `images` at once.
    fn once(&mut self, images: &[Source]) -> Result<Finish, Failure> {
        let mut ids = Vec::new();
        for source in images {
            ids.push(self.add(source)?);
        }
        let mut messages = self.beginning();
        messages.push(Message::user(ids, self.plan.prompt.clone()));
        let names: Vec<Name> = images.iter().map(Source::name).collect();
        self.answer(&messages, &names, &self.plan.prompt)
            .map(|(_, finish)| finish)
    }

    /// Says that one of several images has no answer; the others have theirs.
    fn failed_on(&mut self, name: &Name, error: &EngineError) -> Result<(), Failure> {
        if let Some(captions) = &mut self.captions {
            if error.is_about_question() {
                // A line would say that this image is done, and that of all others too.
                return Err(Failure::Captions(format!("no image can be asked this: {error}")));
            }
            self.failed = true;
            return captions.error(name, &error.to_string());
        }
        self.no_answer(std::slice::from_ref(name), error)
    }

    /// Says that a question has no answer.
    fn no_answer(&mut self, names: &[Name], error: &EngineError) -> Result<(), Failure> {
        self.failed = true;
        self.complain(error);
        self.note_failure(names, &error.to_string())
    }

    /// For programs, what became of a question that has no answer.
    fn note_failure(&self, names: &[Name], error: &str) -> Result<(), Failure> {
        if self.plan.json {
            output::write_json(&OfFrame {
                frame: self.frame.map(|note| note.record(self.timeline, None)),
                record: FailureRecord {
                    images: names,
                    images_hex: output::images_hex(names),
                    error: error.to_owned(),
                },
            })?;
        }
        Ok(())
    }

    /// What stands before the first question.
    fn beginning(&self) -> Vec<Message> {
        self.plan
            .system
            .iter()
            .map(|text| Message::new(Role::System, text.clone()))
            .collect()
    }

    fn open(&self, source: &Source) -> Result<Picture, Failure> {
        let limits = &self.plan.limits;
        let picture = self.timeline.measure("decode image", || match source {
            // What a shell gives in the place of a file, `<(command)`, is waited for: Ctrl-C ends that.
            Source::File(path) if is_stream(path) => {
                let name = path.display().to_string();
                match std::fs::File::open(path) {
                    Ok(stream) => image::read(stream, &name, limits),
                    Err(source) => Err(image::ImageError::Read { name, source }),
                }
            }
            Source::File(path) => image::open(path, limits),
            Source::Stdin => image::read(io::stdin().lock(), "stdin", limits),
        });
        Ok(picture?)
    }

    fn add(&mut self, source: &Source) -> Result<ImageId, Failure> {
        let picture = self.open(source)?;
        Ok(self.engine.add_image(&picture)?)
    }

    /// Asks, and writes the answer while it comes.
    fn answer(
        &mut self,
        messages: &[Message],
        names: &[Name],
        prompt: &str,
    ) -> Result<(String, Finish), Failure> {
        self.interrupt.cancel.store(false, Ordering::Relaxed);
        // Until there are words to keep, Ctrl-C ends the program, except where it would end a chat.
        let chat = matches!(self.plan.task, Task::Chat(..));
        self.interrupt.answering.store(chat, Ordering::Relaxed);
        let result = self.write_answer(messages, names, prompt);
        self.interrupt.answering.store(false, Ordering::Relaxed);
        result
    }

    fn write_answer(
        &mut self,
        messages: &[Message],
        names: &[Name],
        prompt: &str,
    ) -> Result<(String, Finish), Failure> {
        if !self.plan.choices.is_empty() {
            return self.write_choice(messages, names, prompt);
        }
        let shows = self.shows();
        let spinner = Spinner::new(self.plan.quiet || self.captions.is_some(), "reading the question");
        let model = self.engine.model().clone();
        let mut answer = match self.engine.chat(messages, &self.request) {
            Ok(answer) => answer,
            Err(error) => {
                drop(spinner);
                if !self.plan.quiet {
                    let notices = self.engine.take_notices();
                    notices.iter().for_each(|notice| output::tell(notice));
                }
                return Err(error.into());
            }
        };
        self.interrupt.answering.store(true, Ordering::Relaxed);
        drop(spinner);
        if !self.plan.quiet {
            answer.notices().iter().for_each(|notice| output::tell(notice));
        }
        if let Some(title) = self.title.take() {
            output::write_text(&title)?;
        }
        self.answered = true;
        let mut text = String::new();
        let mut logprobs = Vec::new();
        let mut failure = None;
        for piece in answer.by_ref() {
            match piece {
                Ok(piece) => {
                    if shows && !piece.text.is_empty() {
                        output::write_text(&piece.text)?;
                    }
                    text.push_str(&piece.text);
                    logprobs.extend(piece.logprob);
                }
                Err(error) => failure = Some(error),
            }
        }
        if shows && !text.ends_with('\n') && (failure.is_none() || !text.is_empty()) {
            output::write_text("\n")?;
        }
        if let Some(error) = failure {
            return Err(error.into());
        }
        let finish = answer.finish();
        let left_out = answer.stats().left_out;
        if left_out > self.left_out && !self.plan.quiet {
            output::tell(&format!(
                "the context is full: of this chat the oldest turns, {left_out}, are left out"
            ));
        }
        self.left_out = left_out;
        if let (Some(captions), [name, ..]) = (&mut self.captions, names) {
            captions.answer(name, &text, finish)?;
            return Ok((text, finish.unwrap_or(Finish::Stop)));
        }
        let logprobs = logprob_records(self.plan, &model, &logprobs)?;
        let first_token = answer.stats().time_to_first_token;
        let frame = self.frame.map(|note| note.record(self.timeline, first_token));
        write_record(
            self.plan,
            &Ended::of(&answer),
            names,
            prompt,
            &text,
            logprobs,
            frame,
        )?;
        Ok((text, finish.unwrap_or(Finish::Stop)))
    }

    /// Asks which of the choices is the likeliest, and writes it.
    fn write_choice(
        &mut self,
        messages: &[Message],
        names: &[Name],
        prompt: &str,
    ) -> Result<(String, Finish), Failure> {
        let spinner = Spinner::new(
            self.plan.quiet || self.captions.is_some(),
            "comparing the choices",
        );
        let result = self.engine.choose(messages, &self.plan.choices, &self.request);
        drop(spinner);
        let notices = match &result {
            Ok(chosen) => chosen.notices.clone(),
            Err(_) => self.engine.take_notices(),
        };
        if !self.plan.quiet {
            notices.iter().for_each(|notice| output::tell(notice));
        }
        let chosen = match result {
            Ok(chosen) => chosen,
            // Nothing of an answer is there to keep.
            Err(EngineError::Cancelled) if matches!(self.plan.task, Task::Chat(..)) => {
                return Err(EngineError::Cancelled.into());
            }
            Err(EngineError::Cancelled) => return Ok((String::new(), Finish::Cancelled)),
            Err(error) => return Err(error.into()),
        };
        if let Some(title) = self.title.take() {
            output::write_text(&title)?;
        }
        self.answered = true;
        let text = chosen
            .best()
            .map(|choice| choice.text.clone())
            .unwrap_or_default();
        if let (Some(captions), [name, ..]) = (&mut self.captions, names) {
            captions.choice(name, &text, &chosen.choices)?;
            return Ok((text, Finish::Stop));
        }
        if !self.plan.json {
            output::write_text(&format!("{text}\n"))?;
        }
        let first_token = chosen.stats.time_to_first_token;
        let frame = self.frame.map(|note| note.record(self.timeline, first_token));
        write_choices(self.plan, &chosen, names, prompt, &text, frame)?;
        Ok((text, Finish::Stop))
    }

    fn complain(&self, error: &EngineError) {
        output::complain(
            &error.to_string(),
            output::hint(error, &self.plan.model).as_deref(),
        );
    }

    fn report(&mut self, problem: &str) {
        output::complain(problem, None);
        self.failed = true;
    }
}

/// What is written of an answer that has ended; its conversation may go on with another.
struct Ended {
    tokens: Vec<i64>,
    finish: Option<Finish>,
    provider: ProviderReport,
    stats: Stats,
}

impl Ended {
    fn of(answer: &Answer<'_>) -> Ended {
        Ended {
            tokens: answer.tokens().to_vec(),
            finish: answer.finish(),
            provider: answer.provider().clone(),
            stats: answer.stats(),
        }
    }
}

/// What an answer took, and the answer itself, for programs and people who want that.
fn write_record(
    plan: &Plan,
    answer: &Ended,
    names: &[Name],
    prompt: &str,
    text: &str,
    logprobs: Option<Vec<LogprobRecord>>,
    frame: Option<FrameRecord>,
) -> io::Result<()> {
    let Ended {
        tokens,
        finish,
        provider,
        stats,
    } = answer;
    if plan.json {
        let record = Record {
            question: Question::new(names, prompt),
            text,
            tokens,
            logprobs,
            finish: *finish,
            work: Work::new(provider, stats),
        };
        output::write_json(&OfFrame { frame, record })?;
    }
    if plan.stats {
        output::tell_stats(stats, provider);
    }
    Ok(())
}

/// How likely the tokens of an answer are, where that was asked for.
fn logprob_records(
    plan: &Plan,
    model: &Model,
    logprobs: &[TokenLogprob],
) -> Result<Option<Vec<LogprobRecord>>, EngineError> {
    if plan.request.logprobs.is_none() {
        return Ok(None);
    }
    let prompter = model.prompter()?;
    let record = |logprob: &TokenLogprob| logprob.record(prompter.tokenizer());
    Ok(Some(logprobs.iter().map(record).collect()))
}

/// The likeliest choice and how likely all are, for programs, and what that took.
fn write_choices(
    plan: &Plan,
    chosen: &Choices,
    names: &[Name],
    prompt: &str,
    text: &str,
    frame: Option<FrameRecord>,
) -> io::Result<()> {
    let Choices {
        choices,
        end_counts,
        provider,
        stats,
        ..
    } = chosen;
    if plan.json {
        let record = ChoicesRecord {
            question: Question::new(names, prompt),
            text,
            choices,
            end_counts: *end_counts,
            work: Work::new(provider, stats),
        };
        output::write_json(&OfFrame { frame, record })?;
    }
    if plan.stats {
        output::tell_stats(stats, provider);
    }
    Ok(())
}
