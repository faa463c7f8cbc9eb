//! A bundle that answers: how do all the parts come together?

use crate::backend::session::Placement;
use crate::backend::{self, Options, Provider};
use crate::error::EngineError;
use crate::generate::{Finish, Generation, Limits, Piece};
use crate::image::{ImageId, Picture, preprocess};
use crate::prompt::{Message, Prompter};
use crate::sample::{Sampler, Sampling};
use crate::sequence::{Geometry, Sequence};
use crate::stats::{Stats, peak_memory};
use models::bundle::{Bundle, Variant};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
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
    /// Ends the answer as soon as somebody sets this.
    pub cancel: Option<Arc<AtomicBool>>,
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

/// Who computes.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct ProviderReport {
    /// Who was asked for.
    pub asked: Provider,
    /// Who computes.
    pub used: Provider,
    /// For CoreML: how many nodes it took; `None` where it does not say, and for others.
    pub placement: Option<Placement>,
}

/// A bundle that answers. It remembers one conversation: what the next prompt has in common with it is not computed
/// again, and an image is encoded once.
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
    bundle: Bundle,
    precision: String,
    prompter: Prompter,
    sequence: Sequence,
    report: ProviderReport,
    notices: Vec<String>,
    load: Duration,
    /// Time spent on images since the last answer.
    preprocess: Duration,
}

impl Engine {
    /// Opens the bundle in `directory` on an engine that works here.
    ///
    /// # Errors
    /// A bundle that is broken, or no engine that works.
    pub fn open(directory: &Path, options: &Options) -> Result<Engine, EngineError> {
        let begun = Instant::now();
        let bundle = Bundle::open(directory)?;
        let variant = variant(&bundle, options.precision.as_deref())?.clone();
        // Tokenizer and template are read while the engine reads weights.
        let (prompter, parts) = std::thread::scope(|scope| {
            let prompter = scope.spawn(|| Prompter::open(directory, &bundle.prompt, bundle.image.tokens));
            let parts = open_parts(directory, &bundle, &variant, options);
            (prompter.join(), parts)
        });
        let prompter = prompter.map_err(|_| EngineError::Thread { network: "tokenizer" })??;
        let (parts, used, notices) = parts?;
        let report = ProviderReport {
            asked: options.provider,
            used,
            placement: parts.placement(),
        };
        let geometry = Geometry {
            hidden: bundle.prompt.hidden_size,
            image_tokens: bundle.image.tokens,
            max_context: bundle.kv.max_context,
        };
        Ok(Engine {
            precision: variant.precision,
            prompter,
            sequence: Sequence::new(parts, geometry),
            report,
            notices,
            load: begun.elapsed(),
            preprocess: Duration::ZERO,
            bundle,
        })
    }

    /// The bundle's contract.
    pub fn bundle(&self) -> &Bundle {
        &self.bundle
    }

    /// The precision of the graphs in use.
    pub fn precision(&self) -> &str {
        &self.precision
    }

    /// Who computes.
    pub fn provider(&self) -> &ProviderReport {
        &self.report
    }

    /// What is to be said about the choice of the engine; one line each, none where all is as asked for.
    pub fn notices(&self) -> &[String] {
        &self.notices
    }

    /// From messages to token ids.
    pub fn prompter(&self) -> &Prompter {
        &self.prompter
    }

    /// Prepares an image, so that messages can name it. The same image is the same id.
    ///
    /// # Errors
    /// An image that cannot be prepared as the bundle says.
    pub fn add_image(&mut self, picture: &Picture) -> Result<ImageId, EngineError> {
        let begun = Instant::now();
        let pixels = preprocess(picture, &self.bundle.image)?;
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

    /// The answer to `messages`, the whole conversation: an iterator that computes a token at a time.
    ///
    /// The prompt is read before this returns.
    ///
    /// # Errors
    /// Messages that make no prompt, an unknown image, a prompt that is too long, or what the engine says.
    pub fn chat(&mut self, messages: &[Message], request: &Request) -> Result<Answer<'_>, EngineError> {
        let begun = Instant::now();
        let sampler = Sampler::new(request.sampling, self.prompter.tokenizer().vocabulary())?;
        let prompt = self.prompter.build(messages)?;
        let prefill = self.sequence.prefill(&prompt)?;
        let preprocess = std::mem::take(&mut self.preprocess);
        let stats = Stats {
            load: self.load.as_secs_f64(),
            preprocess: preprocess.as_secs_f64(),
            images_encoded: prefill.encoded,
            encode: prefill.encode.as_secs_f64(),
            prompt_positions: prompt.len(),
            reused_positions: prefill.reused,
            prefill: prefill.prefill.as_secs_f64(),
            ..Stats::default()
        };
        let limits = Limits {
            stop_ids: self.bundle.prompt.stop_ids.clone(),
            max_tokens: request.max_tokens,
            cancel: request.cancel.clone(),
        };
        let stream = self.prompter.stream(&request.stops);
        let context = prompt.token_ids();
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
            begun,
            preprocess,
            first: None,
            last: None,
            stats,
        })
    }
}

/// The bundle's variant of a precision; its first when none is asked for.
fn variant<'a>(bundle: &'a Bundle, precision: Option<&str>) -> Result<&'a Variant, EngineError> {
    let wanted = |variant: &&Variant| precision.is_none_or(|precision| variant.precision == precision);
    bundle
        .variants
        .iter()
        .find(wanted)
        .ok_or_else(|| EngineError::NoVariant {
            asked: precision.unwrap_or("any").to_owned(),
            found: bundle
                .variants
                .iter()
                .map(|variant| format!("`{}`", variant.precision))
                .collect(),
        })
}

/// Opens the model on the first engine that works, which shows when it is opened.
fn open_parts(
    directory: &Path,
    bundle: &Bundle,
    variant: &Variant,
    options: &Options,
) -> Result<(backend::Parts, Provider, Vec<String>), EngineError> {
    let mut notices = Vec::new();
    let mut choice = backend::choose(options.provider, options.fallback, options)?;
    loop {
        let used = choice.backend.provider();
        notices.extend(choice.notice);
        match choice.backend.open(directory, bundle, variant, options) {
            Ok(parts) => return Ok((parts, used, notices)),
            Err(error) if error.is_unavailable() => {
                choice =
                    backend::choose_after(options.provider, options.fallback, options, Some((used, error)))?;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// An answer as it comes.
#[derive(Debug)]
pub struct Answer<'a> {
    generation: Generation<'a, Sequence>,
    begun: Instant,
    preprocess: Duration,
    first: Option<Instant>,
    last: Option<Instant>,
    stats: Stats,
}

impl Answer<'_> {
    /// Why it ended; `None` while it has not, or if it failed.
    pub fn finish(&self) -> Option<Finish> {
        self.generation.finish()
    }

    /// Its ids so far, without the one that stopped it.
    pub fn tokens(&self) -> &[i64] {
        self.generation.tokens()
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
        Stats {
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
