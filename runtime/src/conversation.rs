//! A conversation: what belongs to one dialogue with a model: images, KV cache, answers.

mod reading;

use crate::constrain::{ConstraintError, Follower};
use crate::error::EngineError;
use crate::generate::{self, Finish, Generation, Limits, NextToken, Piece};
use crate::image::{ImageId, Picture};
use crate::model::{Model, ProviderReport};
use crate::prompt::{Message, Prompt, Prompter};
use crate::request::Request;
use crate::sample::Sampler;
use crate::sequence::{Feeding, Geometry, Sequence};
use crate::shift::{Room, Shift};
use crate::stats::{Stats, peak_memory};
use crate::text::TextStream;
use crate::timeline::Timeline;
use ndarray::{Array1, Array2};
pub use reading::{Progress, Reading};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// One dialogue with a [`Model`], which it keeps alive. It remembers what was said: what the next prompt has in common with
/// it is not computed again, and an image is encoded once.
///
/// A conversation is used by one thread at a time and may move between threads (it is [`Send`]). Any number of them live
/// beside each other; each has its own KV cache, which is freed with it.
#[derive(Debug)]
pub struct Conversation {
    pub(crate) sequence: Sequence<Model>,
    timeline: Timeline,
    /// What was done for the next answer before it was asked for.
    ahead: Ahead,
    /// How many of the model's notices were taken.
    told: usize,
    /// What is left out of it when the context is full.
    shift: Shift,
}

/// What is done for an answer before its prompt is built.
#[derive(Debug, Clone, Copy, Default)]
struct Ahead {
    /// Time that images were prepared for.
    preprocess: Duration,
    /// Images that were encoded, and for how long.
    encoded: usize,
    encode: Duration,
    /// Time that the answer was waited for meanwhile.
    waited: Duration,
}

impl Model {
    /// A conversation of nothing.
    pub fn conversation(&self) -> Conversation {
        Conversation::new(self.clone())
    }

    /// The messages without the first `count` behind the instructions, as a context shift leaves them out: the next one shows
    /// their images.
    #[must_use]
    pub fn without_first(&self, messages: &[Message], count: usize) -> Vec<Message> {
        crate::shift::without_first(messages, count, &self.bundle().prompt.image_token)
    }

    /// The features `[tokens, hidden]` of an image, as the decoder takes them: computed, or those that are kept of it.
    ///
    /// # Errors
    /// As [`Conversation::add_image`], what cannot be opened, and what the engine says.
    pub fn encode(&self, picture: &Picture) -> Result<Arc<Array2<f32>>, EngineError> {
        let mut conversation = self.conversation();
        let turn = self.image_turn();
        let image = conversation.add_image(picture)?;
        conversation.sequence.encode([image].into_iter())?;
        drop(turn);
        conversation
            .sequence
            .features_of(image)
            .ok_or(EngineError::UnknownImage)
    }
}

impl Conversation {
    fn new(model: Model) -> Conversation {
        #[cfg(feature = "ort")]
        crate::backend::watch_thread();
        let bundle = model.bundle();
        let geometry = Geometry {
            hidden: bundle.prompt.hidden_size,
            image_tokens: bundle.image.tokens,
        };
        let timeline = model.timeline().beside();
        Conversation {
            sequence: Sequence::new(model, geometry, timeline.clone()),
            timeline,
            ahead: Ahead::default(),
            told: 0,
            shift: Shift::default(),
        }
    }

    /// The model that it is with.
    pub fn model(&self) -> &Model {
        self.sequence.parts()
    }

    /// Bytes of its KV cache; 0 before the first prompt.
    pub fn cache_bytes(&self) -> usize {
        self.sequence.cache_bytes()
    }

    /// What is to be said about the choice of the engine since this conversation was last asked; one line each, none where
    /// all is as asked for.
    pub fn take_notices(&mut self) -> Vec<String> {
        let mut notices = self.model().notices();
        let told = std::mem::replace(&mut self.told, notices.len());
        notices.split_off(told.min(notices.len()))
    }

    /// Whether [`Conversation::chat`] may leave out the oldest turns of its messages where the prompt would leave no room for
    /// an answer, instead of failing with [`EngineError::TooLong`]. Instructions before the first turn stay, and so do all
    /// images, which the oldest turn that stays then shows; a quarter of the context is made free at once. What is left out
    /// once stays left out, as long as the messages begin alike; [`Stats::left_out`] says how much it is. Off at first.
    pub fn set_context_shift(&mut self, allowed: bool) {
        self.shift.allowed = allowed;
    }

    /// How many of `messages` a context shift of this conversation left out before, behind the instructions: what
    /// [`Conversation::chat`] reads is [`Model::without_first`] of them, as long as that leaves room for an answer. 0 where none
    /// was left out, or another conversation goes on.
    pub fn left_out_of(&self, messages: &[Message]) -> usize {
        self.shift.remembered(messages)
    }

    /// Prepares an image, so that messages can name it. The same image is the same id.
    ///
    /// # Errors
    /// An image that cannot be prepared as the bundle says.
    pub fn add_image(&mut self, picture: &Picture) -> Result<ImageId, EngineError> {
        let begun = Instant::now();
        let model = self.sequence.parts();
        let pixels = self
            .timeline
            .measure("preprocess", || model.preprocess(picture))?;
        let id = self.sequence.add(pixels);
        let spent = begun.elapsed();
        self.ahead.preprocess += spent;
        self.ahead.waited += spent;
        Ok(id)
    }

    /// Forgets what was said and all images, and frees the KV cache.
    pub fn reset(&mut self) {
        self.ahead = Ahead::default();
        self.shift.reset();
        self.sequence.reset();
    }

    /// Forgets all images, but not what was said: what is in the KV cache stays useful.
    pub fn forget_images(&mut self) {
        self.sequence.forget_images();
    }

    /// The answer to one question about one image, whatever was asked before: an iterator as that of
    /// [`Conversation::chat`].
    ///
    /// # Errors
    /// As [`Conversation::add_image`] and [`Conversation::chat`].
    pub fn describe(
        &mut self,
        picture: &Picture,
        question: &str,
        request: &Request,
    ) -> Result<Answer<'_>, EngineError> {
        let begun = Instant::now();
        request.check_values()?;
        request.check()?;
        self.model().anticipate(request);
        self.forget_images();
        let before = self.ahead.waited;
        let model = self.model().clone();
        // Pixels are large: those of a conversation are made when it is its turn to have them encoded.
        let turn = model.image_turn();
        let image = self.add_image(picture)?;
        let (encoded, encode) = self.sequence.encode([image].into_iter())?;
        drop(turn);
        self.ahead.encoded += encoded;
        self.ahead.encode += encode;
        self.ahead.waited = before + begun.elapsed();
        self.chat(&[Message::user([image], question)], request)
    }

    /// The answer to `messages`, the whole conversation: an iterator that computes a token at a time.
    ///
    /// The prompt is read before this returns.
    ///
    /// # Errors
    /// What cannot be opened, messages that make no prompt, an unknown image, a prompt that is too long, what the engine
    /// says, or [`EngineError::Cancelled`].
    pub fn chat(&mut self, messages: &[Message], request: &Request) -> Result<Answer<'_>, EngineError> {
        let prepared = self.prepare(messages, request)?;
        let timeline = self.timeline.clone();
        Ok(Answer::new(Held::Lent(&mut self.sequence), timeline, prepared))
    }

    /// As [`Conversation::chat`], but the answer keeps the conversation: for answers that are continued together
    /// ([`Answer::next_together`]) and come and go. [`Answer::into_conversation`] gives it back.
    ///
    /// # Errors
    /// As [`Conversation::chat`], with the conversation.
    pub fn into_chat(
        mut self,
        messages: &[Message],
        request: &Request,
    ) -> Result<Answer<'static>, Box<(Conversation, EngineError)>> {
        match self.prepare(messages, request) {
            Ok(prepared) => {
                let timeline = self.timeline.clone();
                Ok(Answer::new(Held::Owned(Box::new(self)), timeline, prepared))
            }
            Err(error) => Err(Box::new((self, error))),
        }
    }

    /// The prompt of the messages, and how many turns it leaves out.
    fn build(
        &mut self,
        prompter: &Prompter,
        messages: &[Message],
        request: &Request,
    ) -> Result<(Prompt, usize), EngineError> {
        if !self.shift.allowed {
            return Ok((prompter.build(messages)?, 0));
        }
        let room = Room {
            context: self.sequence.parts().context()?,
            answer: request.max_tokens,
        };
        let image_token = self.sequence.parts().bundle().prompt.image_token.clone();
        self.shift.fit(messages, &image_token, room, &|messages| {
            Ok(prompter.build(messages)?)
        })
    }

    /// Reads the prompt.
    pub(crate) fn prepare(
        &mut self,
        messages: &[Message],
        request: &Request,
    ) -> Result<Prepared, EngineError> {
        let mut plan = self.plan(messages, request)?;
        let logits = self.sequence.read(&mut plan.feeding, usize::MAX)?;
        let logits = logits.ok_or(EngineError::EmptyPrompt)?;
        Ok(self.prepared(plan, request, logits))
    }

    /// All that is done for an answer before its prompt is read.
    fn plan(&mut self, messages: &[Message], request: &Request) -> Result<Plan, EngineError> {
        #[cfg(feature = "ort")]
        crate::backend::watch_thread();
        let begun = Instant::now();
        request.check_values()?;
        request.check()?;
        self.model().anticipate(request);
        // What to encode is known before the tokenizer is, and while the decoder loads. Not all that messages name has to be
        // known: images that were fed already may be forgotten.
        if !self.model().is_ready() {
            let images = messages.iter().flat_map(|message| message.images.iter().copied());
            let known: Vec<ImageId> = images.filter(|id| self.sequence.knows(*id)).collect();
            let (encoded, encode) = self.sequence.encode(known.into_iter())?;
            self.ahead.encoded += encoded;
            self.ahead.encode += encode;
        }
        let model = self.model().clone();
        let prompter = model.prompter()?;
        let sampler = Sampler::new(request.sampling, prompter.tokenizer().vocabulary())?;
        let follower = match &request.constraint {
            Some(_) if request.past_end => return Err(ConstraintError::PastEnd.into()),
            Some(constraint) => Some(model.follow(constraint)?),
            None => None,
        };
        let (prompt, left_out) = self.build(&prompter, messages, request)?;
        request.check()?;
        // Before anything is fed: waiting for the parts may replace the decoder.
        let provider = model.provider()?;
        Ok(Plan {
            feeding: self.sequence.begin(prompt)?,
            left_out,
            sampler,
            follower,
            stream: prompter.stream(&request.stops),
            provider,
            begun,
            ahead: std::mem::take(&mut self.ahead),
        })
    }

    /// What an answer begins with, when the prompt was read.
    fn prepared(&mut self, plan: Plan, request: &Request, logits: Array1<f32>) -> Prepared {
        let Plan {
            feeding,
            left_out,
            sampler,
            follower,
            stream,
            provider,
            begun,
            ahead,
        } = plan;
        let model = self.model().clone();
        let stats = Stats {
            load: model.load_seconds(),
            preprocess: ahead.preprocess.as_secs_f64(),
            images_encoded: ahead.encoded + feeding.encoded,
            encode: (ahead.encode + feeding.encode).as_secs_f64(),
            prompt_positions: feeding.prompt().len(),
            reused_positions: feeding.reused,
            left_out,
            prefill: feeding.prefill.as_secs_f64(),
            timeline: Timeline::take_all(&[model.timeline(), &self.timeline]),
            ..Stats::default()
        };
        let limits = Limits {
            stop_ids: match request.past_end {
                true => Vec::new(),
                false => model.bundle().prompt.stop_ids.clone(),
            },
            max_tokens: request.max_tokens,
            cancel: request.cancel.clone(),
        };
        Prepared {
            logits,
            context: feeding.prompt().token_ids(),
            sampler,
            stream,
            limits,
            logprobs: request.logprobs,
            follower,
            provider,
            notices: self.take_notices(),
            begun,
            waited: ahead.waited,
            stats,
        }
    }
}

/// What is known of an answer while its prompt is read.
struct Plan {
    feeding: Feeding,
    left_out: usize,
    sampler: Sampler,
    follower: Option<Follower>,
    stream: TextStream,
    provider: ProviderReport,
    begun: Instant,
    ahead: Ahead,
}

/// What an answer begins with.
pub(crate) struct Prepared {
    pub(crate) logits: Array1<f32>,
    context: Vec<i64>,
    pub(crate) sampler: Sampler,
    stream: TextStream,
    limits: Limits,
    logprobs: Option<usize>,
    follower: Option<Follower>,
    pub(crate) provider: ProviderReport,
    pub(crate) notices: Vec<String>,
    begun: Instant,
    waited: Duration,
    pub(crate) stats: Stats,
}

/// The conversation of an answer.
#[derive(Debug)]
enum Held<'a> {
    /// Of somebody else.
    Lent(&'a mut Sequence<Model>),
    /// The answer's own.
    Owned(Box<Conversation>),
}

impl Held<'_> {
    fn sequence(&self) -> &Sequence<Model> {
        match self {
            Held::Lent(sequence) => sequence,
            Held::Owned(conversation) => &conversation.sequence,
        }
    }

    fn sequence_mut(&mut self) -> &mut Sequence<Model> {
        match self {
            Held::Lent(sequence) => sequence,
            Held::Owned(conversation) => &mut conversation.sequence,
        }
    }
}

impl NextToken for Held<'_> {
    fn has_room(&self) -> bool {
        self.sequence().has_room()
    }

    fn step(&mut self, token: i64) -> Result<Array1<f32>, EngineError> {
        self.sequence_mut().step(token)
    }

    fn step_each(sequences: &mut [&mut Self], tokens: &[i64]) -> Vec<Result<Array1<f32>, EngineError>> {
        let sequences = sequences.iter_mut().map(|held| held.sequence_mut());
        Sequence::step_each(&mut sequences.collect::<Vec<_>>(), tokens)
    }
}

/// An answer as it comes.
#[derive(Debug)]
pub struct Answer<'a> {
    generation: Generation<Held<'a>>,
    timeline: Timeline,
    provider: ProviderReport,
    notices: Vec<String>,
    begun: Instant,
    prefilled: Instant,
    /// How long it was waited for before `begun`.
    waited: Duration,
    first: Option<Instant>,
    last: Option<Instant>,
    /// Most answers that it was continued together with, itself included, and most that one computation continued.
    together: [usize; 2],
    stats: Stats,
}

impl<'a> Answer<'a> {
    fn new(held: Held<'a>, timeline: Timeline, prepared: Prepared) -> Answer<'a> {
        let Prepared {
            logits,
            context,
            sampler,
            stream,
            limits,
            logprobs,
            follower,
            provider,
            notices,
            begun,
            waited,
            stats,
        } = prepared;
        Answer {
            generation: Generation::new(held, logits, context, sampler, stream, limits)
                .with_logprobs(logprobs)
                .with_follower(follower),
            timeline,
            provider,
            notices,
            begun,
            prefilled: Instant::now(),
            waited,
            first: None,
            last: None,
            together: [1, 1],
            stats,
        }
    }

    /// What [`Iterator::next`] gives of each of `answers`, by one step of the decoder for all of them: it reads the weights
    /// once. Answers may join and leave between two calls; one that has ended gives `None`. Each has its own request, and
    /// is what it would be alone; an error ends one answer. At most sixteen are computed at once, in steps of their own
    /// those of very different lengths, and one after another those of several models, and of engines that continue one
    /// sequence at a time: [`Stats::together`] says what was done.
    ///
    /// ```no_run
    /// use runtime::{Answer, Message, Model, Options, Request};
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let model = Model::open("fastvlm-bundle".as_ref(), &Options::default())?;
    /// let mut answers = Vec::new();
    /// for question in ["What is red?", "What is blue?"] {
    ///     let messages = [Message::user([], question)];
    ///     let answer = model.conversation().into_chat(&messages, &Request::default());
    ///     answers.push(answer.map_err(|refused| refused.1)?);
    /// }
    /// loop {
    ///     let pieces = Answer::next_together(&mut answers.iter_mut().collect::<Vec<_>>());
    ///     if pieces.iter().all(Option::is_none) {
    ///         break;
    ///     }
    ///     for (number, piece) in pieces.into_iter().enumerate() {
    ///         if let Some(piece) = piece {
    ///             println!("{number}: {}", piece?.text);
    ///         }
    ///     }
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn next_together(answers: &mut [&mut Answer<'a>]) -> Vec<Option<Result<Piece, EngineError>>> {
        #[cfg(feature = "ort")]
        crate::backend::watch_thread();
        let going = answers
            .iter()
            .filter(|answer| !answer.generation.is_over())
            .count();
        let mut generations: Vec<_> = answers.iter_mut().map(|answer| &mut answer.generation).collect();
        let pieces = generate::next_together(&mut generations);
        for (answer, piece) in answers.iter_mut().zip(&pieces) {
            answer.note(piece.as_ref(), going);
        }
        pieces
    }

    /// Takes note of what came, of so many answers at once.
    fn note(&mut self, piece: Option<&Result<Piece, EngineError>>, going: usize) {
        if matches!(piece, Some(Ok(Piece { id: Some(_), .. }))) {
            let now = Instant::now();
            self.first.get_or_insert(now);
            self.last = Some(now);
            let [asked, computed] = self.together;
            let beside = self.generation.model().sequence().beside();
            self.together = [asked.max(going), computed.max(beside)];
        }
    }

    /// The conversation, where the answer keeps it ([`Conversation::into_chat`]); what came of the answer stays said.
    pub fn into_conversation(self) -> Option<Conversation> {
        match self.generation.into_model() {
            Held::Owned(conversation) => Some(*conversation),
            Held::Lent(_) => None,
        }
    }

    /// The rest of it, computed to its end.
    ///
    /// # Errors
    /// What the engine says; what came before is lost then, [`Answer::tokens`] still has its ids.
    pub fn text(&mut self) -> Result<String, EngineError> {
        self.map(|piece| piece.map(|piece| piece.text)).collect()
    }

    /// Why it ended; `None` while it has not, or if it failed.
    pub fn finish(&self) -> Option<Finish> {
        self.generation.finish()
    }

    /// Its ids so far, without the one that stopped it.
    pub fn tokens(&self) -> &[i64] {
        self.generation.tokens()
    }

    /// Bytes of its conversation's KV cache.
    pub fn cache_bytes(&self) -> usize {
        self.generation.model().sequence().cache_bytes()
    }

    /// Who computes, and with which graphs.
    pub fn provider(&self) -> &ProviderReport {
        &self.provider
    }

    /// What is to be said about the choice of the engine, which the first answer decides; one line each.
    pub fn notices(&self) -> &[String] {
        &self.notices
    }

    /// What it took so far.
    pub fn stats(&self) -> Stats {
        let after_first = match (self.first, self.last) {
            (Some(first), Some(last)) => last.duration_since(first),
            _ => Duration::ZERO,
        };
        let to_first = self
            .first
            .map(|first| self.waited + first.duration_since(self.begun));
        let mut timeline = self.stats.timeline.clone();
        if let Some(first) = self.first {
            timeline.push(self.timeline.step("first token", self.prefilled, first));
        }
        if let (Some(first), Some(last)) = (self.first, self.last)
            && self.tokens().len() > 1
        {
            let count = self.tokens().len() - 1;
            timeline.push(self.timeline.step(&format!("decode {count} tokens"), first, last));
        }
        Stats {
            timeline,
            time_to_first_token: to_first.map(|time| time.as_secs_f64()),
            tokens: self.tokens().len(),
            tokens_per_second: Stats::rate(self.tokens().len(), after_first),
            together_asked: self.together[0],
            together: self.together[1],
            peak_memory: peak_memory(),
            ..self.stats.clone()
        }
    }
}

impl Iterator for Answer<'_> {
    type Item = Result<Piece, EngineError>;

    fn next(&mut self) -> Option<Self::Item> {
        let piece = self.generation.next();
        self.note(piece.as_ref(), 1);
        piece
    }
}

/// A conversation may move between threads: this does not compile otherwise.
const _: () = {
    const fn moves<T: Send>() {}
    moves::<Conversation>();
    moves::<Answer<'_>>();
    moves::<EngineError>();
};
