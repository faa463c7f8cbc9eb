//! The work of `fvlm-run`: opens the bundle, asks, writes answers.

mod frames;

use crate::lines::{Lines, MAX_LINE, Problem};
use crate::output::{self, ChoicesRecord, FailureRecord, FrameRecord, OfFrame, Record, Spinner};
use crate::plan::{Name, Plan, Source, Task};
use crate::verify;
use programs::signals::{self, Signal};
use programs::stdout;
use runtime::image::{self, ImageId, Picture};
use runtime::{
    Answer, Choices, Conversation, Engine, EngineError, Finish, LogprobRecord, Message, Model, Request, Role,
    Timeline, TokenLogprob,
};
use std::collections::VecDeque;
use std::io::{self, IsTerminal};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// All is done.
const DONE: u8 = 0;

/// An error was said.
const FAILED: u8 = 2;

/// Why an answer was not written.
enum Failure {
    Engine(EngineError),
    /// stdout is closed or full.
    Output(io::Error),
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
    Failed(Failure),
}

impl Description {
    /// The answer, while more of it comes.
    fn coming(&mut self) -> Option<&mut Answer<'static>> {
        match &mut self.state {
            State::Answering(answer) if answer.finish().is_none() => Some(answer),
            _ => None,
        }
    }
}

/// Images that are described at once where nobody says how many.
const BATCH: usize = 8;

/// Bytes that what the model remembers of them may take then.
const BATCH_BYTES: usize = 1 << 30;

/// Positions of a prompt beside those of its image, at most: a guess, for memory.
const PROMPT_TEXT: usize = 64;

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
}

/// Does what the plan says; the exit code.
pub(crate) fn run(plan: Plan, timeline: &Timeline) -> u8 {
    let interrupt = Interrupt::install();
    if plan.ignores_library && !plan.quiet {
        output::tell("--onnxruntime is only looked at if tract cannot run");
    }
    let threads = plan.options.thread_count();
    if plan.options.threads.is_some_and(|asked| asked > threads) && !plan.quiet {
        output::tell(&format!(
            "--threads: {threads} threads are used, four for each processor"
        ));
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
    };
    run.engine.conversation().set_context_shift(plan.context_shift);
    let result = match &plan.task {
        Task::Each(images) => run.each(images),
        Task::Once(images) => run.once(images),
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
        Ok(Finish::Cancelled) => programs::INTERRUPTED,
        Ok(_) if run.failed => FAILED,
        Ok(_) => DONE,
    };
    // The process ends: the system takes the model's memory back faster than its destructors.
    std::mem::forget(run);
    code
}

/// Whether a path leads to something that is read and is no file: a pipe, a device, a terminal.
fn is_stream(path: &Path) -> bool {
    path.metadata()
        .is_ok_and(|found| !found.is_file() && !found.is_dir())
}

impl Run<'_> {
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
            if images.len() > 1 && !self.plan.json {
                self.title = Some(output::title(&source.name(), self.answered));
            }
            match self.once(std::slice::from_ref(source)) {
                Ok(Finish::Cancelled) => return Ok(Finish::Cancelled),
                Ok(_) => {}
                Err(Failure::Engine(error)) if !error.is_about_model() => {
                    self.complain(&error);
                    self.failed = true;
                    self.note_failure(&[source.name()], &error.to_string())?;
                }
                Err(fatal) => return Err(fatal),
            }
            self.engine.forget_images();
        }
        Ok(Finish::Stop)
    }

    /// How many images are described at once: as many as was said, or as keep what the model remembers of them in bounds.
    fn batch(&self) -> usize {
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
    fn each_beside(&mut self, images: &[Source], batch: usize) -> Result<Finish, Failure> {
        let mut sources = images.iter();
        let mut begun: VecDeque<Description> = VecDeque::new();
        let mut idle: Vec<Conversation> = Vec::new();
        let mut cancelled = false;
        self.interrupt.cancel.store(false, Ordering::Relaxed);
        loop {
            let mut coming = begun.iter_mut().filter_map(Description::coming).count();
            while coming < batch
                && !cancelled
                && let Some(source) = sources.next()
            {
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
            }
            while let Some(first) = begun.front_mut() {
                let complete = first.coming().is_none();
                self.write_coming(first)?;
                if !complete {
                    break;
                }
                if let Some(description) = begun.pop_front() {
                    let (finish, conversation) = self.write_complete(description)?;
                    cancelled |= finish == Finish::Cancelled;
                    idle.extend(conversation);
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
        let spinner = Spinner::new(self.plan.quiet, "reading the question");
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
        if self.plan.json || matches!(&description.state, State::Failed(_) if description.text.is_empty()) {
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

    /// Writes the end of a description; gives its conversation back.
    fn write_complete(
        &mut self,
        description: Description,
    ) -> Result<(Finish, Option<Conversation>), Failure> {
        let Description {
            name,
            state,
            text,
            logprobs,
            ..
        } = description;
        if !self.plan.json
            && !text.ends_with('\n')
            && (matches!(state, State::Answering(_)) || !text.is_empty())
        {
            output::write_text("\n")?;
        }
        match state {
            State::Answering(answer) => {
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
                Ok((
                    answer.finish().unwrap_or(Finish::Stop),
                    answer.into_conversation(),
                ))
            }
            State::Failed(Failure::Engine(error)) if !error.is_about_model() => {
                self.complain(&error);
                self.failed = true;
                self.note_failure(&[name], &error.to_string())?;
                Ok((Finish::Stop, None))
            }
            State::Failed(fatal) => Err(fatal),
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

    /// A chat, a line a question.
    fn chat(&mut self, images: &[Source], first: Option<&str>) -> Result<Finish, Failure> {
        let mut given: Vec<(ImageId, Name)> = Vec::new();
        for source in images {
            given.push((self.add(source)?, source.name()));
        }
        let mut messages = self.beginning();
        let mut pending = given.clone();
        if let Some(question) = first {
            self.turn(&mut messages, &mut pending, question)?;
        }
        let terminal = io::stdin().is_terminal() && !self.plan.quiet;
        let mut lines = Lines::new(io::stdin().lock());
        loop {
            if terminal {
                let _ = io::Write::write_all(&mut io::stderr(), b"> ");
            }
            let Some(line) = lines.next() else { break };
            let line = match line {
                Ok(line) => line,
                Err(Problem::NotText) => {
                    let problem = "a line of the chat is not UTF-8";
                    self.report(problem);
                    self.note_failure(&[], problem)?;
                    continue;
                }
                Err(Problem::TooLong) => {
                    self.report(&format!("a line of the chat is longer than {MAX_LINE} bytes"));
                    break;
                }
                Err(Problem::Read(error)) => {
                    self.report(&format!("cannot read the chat: {error}"));
                    break;
                }
            };
            let line = line.trim();
            let (command, argument) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
            match command {
                "" => {}
                "/quit" if argument.is_empty() => break,
                "/reset" if argument.is_empty() => {
                    // What is computed stays: the next prompt takes from it what fits.
                    messages = self.beginning();
                    pending.clone_from(&given);
                }
                "/image" if !argument.is_empty() => {
                    let source = Source::File(argument.trim().into());
                    match self.add(&source) {
                        Ok(id) => pending.push((id, source.name())),
                        Err(Failure::Engine(error)) if !error.is_about_model() => {
                            self.complain(&error);
                            self.failed = true;
                        }
                        Err(fatal) => return Err(fatal),
                    }
                }
                // A path or a fraction may begin a question; a single word after a slash is a mistyped command.
                _ if command.starts_with('/') && command[1..].chars().all(|c| c.is_ascii_alphabetic()) => {
                    self.report(&format!("`{line}` is not a command: /image PATH, /reset, /quit"));
                }
                _ => self.turn(&mut messages, &mut pending, line)?,
            }
        }
        Ok(Finish::Stop)
    }

    /// One question of a chat. One that fails is as if it had not been asked.
    fn turn(
        &mut self,
        messages: &mut Vec<Message>,
        pending: &mut Vec<(ImageId, Name)>,
        question: &str,
    ) -> Result<(), Failure> {
        let (ids, names): (Vec<ImageId>, Vec<Name>) = pending.iter().cloned().unzip();
        messages.push(Message::user(ids, question));
        match self.answer(messages, &names, question) {
            Ok((text, _)) => {
                messages.push(Message::new(Role::Assistant, text));
                pending.clear();
                Ok(())
            }
            Err(Failure::Engine(error)) if !error.is_about_model() => {
                messages.pop();
                self.complain(&error);
                self.failed = true;
                self.note_failure(&names, &error.to_string())
            }
            Err(fatal) => Err(fatal),
        }
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
        let spinner = Spinner::new(self.plan.quiet, "reading the question");
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
                    if !self.plan.json && !piece.text.is_empty() {
                        output::write_text(&piece.text)?;
                    }
                    text.push_str(&piece.text);
                    logprobs.extend(piece.logprob);
                }
                Err(error) => failure = Some(error),
            }
        }
        if !self.plan.json && !text.ends_with('\n') && (failure.is_none() || !text.is_empty()) {
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
        let logprobs = logprob_records(self.plan, &model, &logprobs)?;
        let first_token = answer.stats().time_to_first_token;
        let frame = self.frame.map(|note| note.record(self.timeline, first_token));
        write_record(self.plan, &answer, names, prompt, &text, logprobs, frame)?;
        Ok((text, finish.unwrap_or(Finish::Stop)))
    }

    /// Asks which of the choices is the likeliest, and writes it.
    fn write_choice(
        &mut self,
        messages: &[Message],
        names: &[Name],
        prompt: &str,
    ) -> Result<(String, Finish), Failure> {
        let spinner = Spinner::new(self.plan.quiet, "comparing the choices");
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

/// What an answer took, and the answer itself, for programs and people who want that.
fn write_record(
    plan: &Plan,
    answer: &Answer<'_>,
    names: &[Name],
    prompt: &str,
    text: &str,
    logprobs: Option<Vec<LogprobRecord>>,
    frame: Option<FrameRecord>,
) -> io::Result<()> {
    let stats = answer.stats();
    if plan.json {
        let record = Record {
            images: names,
            images_hex: output::images_hex(names),
            prompt,
            text,
            tokens: answer.tokens(),
            logprobs,
            finish: answer.finish(),
            provider: answer.provider().into(),
            precision: answer.provider().precision,
            target: answer.provider().target_name(),
            kernels: answer.provider().kernels,
            image_size: answer.provider().image,
            stats: &stats,
            timeline: &stats.timeline,
            peak_rss_bytes: stats.peak_memory,
        };
        output::write_json(&OfFrame { frame, record })?;
    }
    if plan.stats {
        output::tell_stats(&stats, answer.provider());
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
            images: names,
            images_hex: output::images_hex(names),
            prompt,
            text,
            choices,
            end_counts: *end_counts,
            provider: provider.into(),
            precision: provider.precision,
            target: provider.target_name(),
            kernels: provider.kernels,
            image_size: provider.image,
            stats,
            timeline: &stats.timeline,
            peak_rss_bytes: stats.peak_memory,
        };
        output::write_json(&OfFrame { frame, record })?;
    }
    if plan.stats {
        output::tell_stats(stats, provider);
    }
    Ok(())
}
