//! A bundle that answers: how do all the parts come together?

use crate::backend::session::Placement;
use crate::backend::{self, Options, Provider};
use crate::error::EngineError;
use crate::generate::{Finish, Generation, Limits, Piece};
use crate::image::{ImageId, Picture, preprocess};
use crate::lazy::Lazy;
use crate::opening::{Opening, Source};
use crate::prompt::{Message, Prompter};
use crate::sample::{Sampler, Sampling};
use crate::sequence::{Geometry, Sequence};
use crate::stats::{Stats, peak_memory};
use crate::timeline::Timeline;
use models::bundle::{Bundle, Precision, Target};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Tokens of an answer where nobody says how many.
pub const DEFAULT_MAX_TOKENS: usize = 256;

/// The question where nobody asks one.
pub const DEFAULT_PROMPT: &str = "Describe the image.";

/// How to answer. [`Request::default`] is greedy.
#[derive(Debug, Clone)]
pub struct Request {
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// Most tokens of the answer.
    pub max_tokens: usize,
    /// Texts that end the answer and are not part of it.
    pub stops: Vec<String>,
    /// Ends the answer as soon as somebody sets this, from whatever thread: between two tokens, or before the prompt is
    /// read; the encoding of an image and the reading of a prompt are not broken off.
    pub cancel: Option<Arc<AtomicBool>>,
}

impl Request {
    /// Whether somebody has ended it.
    fn check(&self) -> Result<(), EngineError> {
        match &self.cancel {
            Some(flag) if flag.load(Ordering::Relaxed) => Err(EngineError::Cancelled),
            _goes_on => Ok(()),
        }
    }
}

impl Default for Request {
    fn default() -> Request {
        Request {
            sampling: Sampling::default(),
            max_tokens: DEFAULT_MAX_TOKENS,
            stops: Vec::new(),
            cancel: None,
        }
    }
}

/// Who computes, and with which graphs.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct ProviderReport {
    /// Who was asked for.
    pub asked: Provider,
    /// Who computes.
    pub used: Provider,
    /// Target of the graphs; `None`, in JSON `coreml-native`, where Core ML packages are run, which have none.
    #[serde(serialize_with = "serialize_target")]
    pub target: Option<Target>,
    /// Precision of the weights.
    pub precision: Precision,
    /// What images become.
    pub image: ImageSize,
    /// For CoreML: how many nodes it took; `None` where it does not say, and for others.
    pub placement: Option<Placement>,
    /// Why it is not who was asked for; empty where it is.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub notices: Vec<String>,
}

impl ProviderReport {
    /// The target's name; where Core ML packages are run, that of the provider which runs them.
    pub fn target_name(&self) -> &'static str {
        target_name(self.target)
    }
}

fn target_name(target: Option<Target>) -> &'static str {
    target.map_or(Provider::CoreMlNative.name(), Target::name)
}

fn serialize_target<S: serde::Serializer>(target: &Option<Target>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(target_name(*target))
}

/// What an image becomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct ImageSize {
    /// Height of `pixel_values`.
    pub height: u32,
    /// Width of `pixel_values`.
    pub width: u32,
    /// Positions that it takes in the decoder's sequence.
    pub tokens: usize,
}

/// A bundle that answers. It remembers one conversation: what the next prompt has in common with it is not computed
/// again, and an image is encoded once.
///
/// An engine is used by one thread at a time and may move between threads (it is [`Send`]); several engines share
/// nothing but ONNX Runtime's library and the threads that compute.
///
/// Dropping it waits for what is still being opened. Drop all engines before the process ends (not by
/// [`std::process::exit`] while one is open): ONNX Runtime does not bear to be unloaded while it opens a graph.
///
/// ```no_run
/// use runtime::{Engine, Message, Options, Request, image};
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let mut engine = Engine::open("fastvlm-bundle".as_ref(), &Options::default())?;
/// let picture = image::open("image.png".as_ref(), &image::Limits::default())?;
/// let image = engine.add_image(&picture)?;
/// let messages = [Message::user([image], "What is in the image?")];
/// for piece in engine.chat(&messages, &Request::default())? {
///     print!("{}", piece?.text);
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Engine {
    source: Arc<Source>,
    prompter: Lazy<Prompter>,
    sequence: Sequence<Opening>,
    begun: Instant,
    /// Time spent on images since the last answer.
    preprocess: Duration,
}

impl Engine {
    /// Opens the bundle in `directory` on an engine that works here.
    ///
    /// This returns as soon as the contract is read. Everything else is opened on threads of its own and waited for where
    /// it is first needed: an image can be decoded, prepared and encoded while the decoder still loads. What cannot be
    /// opened is the error of whoever needs it; [`Engine::ready`] waits for all of it.
    ///
    /// # Errors
    /// A contract that is broken, or nothing in the bundle that is what `options` ask for, an image size included.
    pub fn open(directory: &Path, options: &Options) -> Result<Engine, EngineError> {
        Engine::open_timed(directory, options, &Timeline::begin())
    }

    /// As [`Engine::open`]; the steps go to `timeline`, which may have begun earlier.
    ///
    /// # Errors
    /// As [`Engine::open`].
    pub fn open_timed(
        directory: &Path,
        options: &Options,
        timeline: &Timeline,
    ) -> Result<Engine, EngineError> {
        let begun = Instant::now();
        let mut bundle = timeline.measure("open bundle", || Bundle::open(directory))?;
        if let Some(side) = options.image_size {
            bundle = at_image_size(&bundle, side)?;
        }
        backend::check_forms(&bundle, options)?;
        let geometry = Geometry {
            hidden: bundle.prompt.hidden_size,
            image_tokens: bundle.image.tokens,
            max_context: bundle.kv.max_context,
        };
        let source = Arc::new(Source {
            directory: directory.to_owned(),
            bundle,
            options: options.clone(),
            timeline: timeline.clone(),
            choose: backend::choose_for,
        });
        let opening = Opening::begin(&source);
        let words = Arc::clone(&source);
        let prompter = Lazy::begin("text", move || {
            let Source {
                directory,
                bundle,
                timeline,
                ..
            } = &*words;
            Ok(timeline.measure("load tokenizer", || {
                Prompter::open(directory, &bundle.prompt, bundle.image.tokens)
            })?)
        });
        Ok(Engine {
            prompter,
            sequence: Sequence::new(opening, geometry, timeline.clone()),
            begun,
            preprocess: Duration::ZERO,
            source,
        })
    }

    /// Waits until everything is open.
    ///
    /// # Errors
    /// What cannot be opened.
    pub fn ready(&mut self) -> Result<(), EngineError> {
        self.sequence.parts().ready()?;
        self.prompter.get()?;
        Ok(())
    }

    /// The bundle's contract; where an image size was asked for, as if there were no other
    /// ([`Bundle::at_size`]).
    pub fn bundle(&self) -> &Bundle {
        &self.source.bundle
    }

    /// Who computes, and with which graphs; waits for them.
    ///
    /// # Errors
    /// What cannot be opened.
    pub fn provider(&mut self) -> Result<ProviderReport, EngineError> {
        let opening = self.sequence.parts();
        let placement = opening.ready()?;
        let (used, form) = opening.chosen()?;
        Ok(ProviderReport {
            asked: self.source.options.provider,
            used,
            target: form.target(),
            precision: form.precision(),
            image: ImageSize {
                height: self.source.bundle.image.height,
                width: self.source.bundle.image.width,
                tokens: self.source.bundle.image.tokens,
            },
            placement,
            notices: opening.notices().to_vec(),
        })
    }

    /// What is to be said about the choice of the engine since this was last asked; one line each, none where all is as
    /// asked for. The choice is made before the first answer, or when something waits for it.
    pub fn take_notices(&mut self) -> Vec<String> {
        self.sequence.parts().take_notices()
    }

    /// From messages to token ids; waits for the tokenizer.
    ///
    /// # Errors
    /// A tokenizer or a template that cannot be used.
    pub fn prompter(&mut self) -> Result<&Prompter, EngineError> {
        Ok(self.prompter.get()?)
    }

    /// Prepares an image, so that messages can name it. The same image is the same id.
    ///
    /// # Errors
    /// An image that cannot be prepared as the bundle says.
    pub fn add_image(&mut self, picture: &Picture) -> Result<ImageId, EngineError> {
        let Source { bundle, timeline, .. } = &*self.source;
        let begun = Instant::now();
        let pixels = timeline.measure("preprocess", || preprocess(picture, &bundle.image))?;
        let id = self.sequence.add(pixels);
        self.preprocess += begun.elapsed();
        Ok(id)
    }

    /// Forgets the conversation and all images.
    ///
    /// # Errors
    /// What the engine says.
    pub fn reset(&mut self) -> Result<(), EngineError> {
        self.preprocess = Duration::ZERO;
        self.sequence.reset()
    }

    /// Forgets all images, but not the conversation: what is in the KV cache stays useful.
    pub fn forget_images(&mut self) {
        self.sequence.forget_images();
    }

    /// The answer to one question about one image, whatever was asked before: an iterator as that of [`Engine::chat`].
    ///
    /// # Errors
    /// As [`Engine::add_image`] and [`Engine::chat`].
    pub fn describe(
        &mut self,
        picture: &Picture,
        question: &str,
        request: &Request,
    ) -> Result<Answer<'_>, EngineError> {
        self.forget_images();
        let image = self.add_image(picture)?;
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
        let begun = Instant::now();
        request.sampling.check()?;
        request.check()?;
        // What to encode is known before the tokenizer is, and while the decoder loads.
        let (mut encoded, mut encode) = (0, Duration::ZERO);
        if !self.prompter.is_ready() || self.sequence.parts().finished().is_none() {
            let images = messages.iter().flat_map(|message| message.images.iter().copied());
            (encoded, encode) = self.sequence.encode(images)?;
        }
        let prompter = self.prompter.get()?;
        let sampler = Sampler::new(request.sampling, prompter.tokenizer().vocabulary())?;
        let prompt = prompter.build(messages)?;
        request.check()?;
        // Before anything is fed: waiting for the parts may replace the decoder.
        let provider = self.provider()?;
        let prefill = self.sequence.prefill(&prompt)?;
        encoded += prefill.encoded;
        encode += prefill.encode;
        let opened = self.sequence.parts().finished();
        let preprocess = std::mem::take(&mut self.preprocess);
        let stats = Stats {
            load: opened.map_or(0.0, |opened| {
                opened.saturating_duration_since(self.begun).as_secs_f64()
            }),
            preprocess: preprocess.as_secs_f64(),
            images_encoded: encoded,
            encode: encode.as_secs_f64(),
            prompt_positions: prompt.len(),
            reused_positions: prefill.reused,
            prefill: prefill.prefill.as_secs_f64(),
            timeline: self.source.timeline.take(),
            ..Stats::default()
        };
        let limits = Limits {
            stop_ids: self.source.bundle.prompt.stop_ids.clone(),
            max_tokens: request.max_tokens,
            cancel: request.cancel.clone(),
        };
        let stream = self.prompter.get()?.stream(&request.stops);
        let context = prompt.token_ids();
        let notices = self.take_notices();
        let generation = Generation::new(
            &mut self.sequence,
            prefill.logits,
            context,
            sampler,
            stream,
            limits,
        );
        Ok(Answer {
            generation,
            timeline: self.source.timeline.clone(),
            provider,
            notices,
            begun,
            prefilled: Instant::now(),
            preprocess,
            first: None,
            last: None,
            stats,
        })
    }
}

/// The bundle for square images of `side` pixels: [`Bundle::at_size`].
///
/// # Errors
/// No variant has such an encoder.
pub fn at_image_size(bundle: &Bundle, side: u32) -> Result<Bundle, EngineError> {
    bundle
        .at_size(side, side)
        .ok_or_else(|| EngineError::NoImageSize {
            asked: side,
            found: bundle
                .image_sizes()
                .iter()
                .map(|(height, width)| format!("{width} x {height}"))
                .collect(),
        })
}

/// An answer as it comes.
#[derive(Debug)]
pub struct Answer<'a> {
    generation: Generation<'a, Sequence<Opening>>,
    timeline: Timeline,
    provider: ProviderReport,
    notices: Vec<String>,
    begun: Instant,
    prefilled: Instant,
    preprocess: Duration,
    first: Option<Instant>,
    last: Option<Instant>,
    stats: Stats,
}

impl Answer<'_> {
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
            .map(|first| self.preprocess + first.duration_since(self.begun));
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
            peak_memory: peak_memory(),
            ..self.stats.clone()
        }
    }
}

impl Iterator for Answer<'_> {
    type Item = Result<Piece, EngineError>;

    fn next(&mut self) -> Option<Self::Item> {
        let piece = self.generation.next();
        if matches!(&piece, Some(Ok(Piece { id: Some(_), .. }))) {
            let now = Instant::now();
            self.first.get_or_insert(now);
            self.last = Some(now);
        }
        piece
    }
}

/// An engine may move between threads: this does not compile otherwise.
const _: () = {
    const fn moves<T: Send>() {}
    moves::<Engine>();
    moves::<Answer<'_>>();
    moves::<EngineError>();
};
