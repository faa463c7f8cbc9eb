//! The model: a bundle that is opened once, for any number of conversations on any number of threads.

use crate::backend::session::Placement;
use crate::backend::{self, Decoder, KernelReport, Options, Provider, TokenEmbedder, VisionEncoder};
use crate::constrain::{Constraint, ConstraintError, Follower, Vocabulary};
use crate::error::EngineError;
use crate::features::Features;
use crate::image::{ImageId, Picture, PixelValues, preprocess};
use crate::lazy::Lazy;
use crate::opening::{Opening, Parts, Source};
use crate::prompt::text::Tokenizer;
use crate::prompt::{PromptError, Prompter};
use crate::request::Request;
use crate::timeline::Timeline;
use models::bundle::{Bundle, Precision, Target};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

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
    /// Which instruction set our kernels use; `None` where the engine's own run all of it.
    pub kernels: Option<KernelReport>,
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

/// A bundle that is opened once: graphs, tokenizer, chat template, contract. Clones share it, and any thread may use it.
///
/// A [`Conversation`](crate::Conversation) has what belongs to one dialogue; many of them live beside each other over one model. Nothing is loaded
/// twice. The features of an image are computed once, whoever shows it, and the latest 32 MiB of them are kept. Runs of one
/// graph follow one another on ONNX Runtime, and images are encoded one at a time on every engine, so that memory is that of
/// one model and of the conversations' KV caches.
///
/// The last clone that is dropped, of models and conversations, waits for what is still being opened. The process may end at
/// any time, also by [`std::process::exit`], and with models that are never dropped.
///
/// ```no_run
/// use runtime::{Message, Model, Options, Request, image};
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let model = Model::open("fastvlm-bundle".as_ref(), &Options::default())?;
/// let answers = std::thread::scope(|scope| {
///     let describe = |path: &'static str| {
///         let mut conversation = model.conversation();
///         scope.spawn(move || {
///             let picture = image::open(path.as_ref(), &image::Limits::default())?;
///             conversation.describe(&picture, "What is it?", &Request::default())?.text()
///         })
///     };
///     ["one.png", "two.png"].map(describe).map(|thread| thread.join())
/// });
/// # drop(answers);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Model(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    source: Arc<Source>,
    opening: Opening,
    prompter: Lazy<Arc<Prompter>>,
    features: Features,
    /// Held by who has pixels of an image, from preparing it until it is encoded.
    image: Mutex<()>,
    /// What constraints share; there from the first on.
    vocabulary: OnceLock<Result<Vocabulary, ConstraintError>>,
    begun: Instant,
}

impl Model {
    /// Opens the bundle in `directory` on an engine that works here.
    ///
    /// This returns as soon as the contract is read and compared with the bundle's small files, which are hashed. Graphs and
    /// the tokenizer are hashed before they are used, weights by [`Model::verify`] alone. Everything else is opened on threads of its own and waited for where
    /// it is first needed: an image can be decoded, prepared and encoded while the decoder still loads. What cannot be
    /// opened is the error of whoever needs it; [`Model::ready`] waits for all of it.
    ///
    /// # Errors
    /// A contract that is broken, nothing in the bundle that is what `options` ask for, an image size included, or a set in
    /// `FVLM_ISA` that this processor lacks.
    pub fn open(directory: &Path, options: &Options) -> Result<Model, EngineError> {
        Model::open_timed(directory, options, &Timeline::begin())
    }

    /// As [`Model::open`]; the steps go to `timeline`, which may have begun earlier.
    ///
    /// # Errors
    /// As [`Model::open`].
    pub fn open_timed(
        directory: &Path,
        options: &Options,
        timeline: &Timeline,
    ) -> Result<Model, EngineError> {
        #[cfg(feature = "ort")]
        backend::watch_thread();
        let begun = Instant::now();
        backend::isa::check()?;
        let mut bundle = timeline.measure("open bundle", || Bundle::open(directory))?;
        if let Some(side) = options.image_size {
            bundle = at_image_size(&bundle, side)?;
        }
        backend::check_forms(&bundle, options)?;
        let unknown = bundle.unknown.iter();
        let notices = unknown.map(|form| format!("a form of the bundle is left out: {form}"));
        let notices = notices.collect();
        let source = Arc::new(Source {
            directory: directory.to_owned(),
            bundle,
            options: options.clone(),
            timeline: timeline.clone(),
            choose: backend::choose_for,
            notices: Mutex::new(notices),
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
            let prompter = timeline.measure("load tokenizer", || open_prompter(directory, bundle))?;
            Ok(Arc::new(prompter))
        });
        Ok(Model(Arc::new(Inner {
            source,
            opening,
            prompter,
            features: Features::default(),
            image: Mutex::default(),
            vocabulary: OnceLock::new(),
            begun,
        })))
    }

    /// Waits until everything is open.
    ///
    /// # Errors
    /// What cannot be opened.
    pub fn ready(&self) -> Result<(), EngineError> {
        self.0.opening.ready()?;
        self.0.prompter.get()?;
        Ok(())
    }

    /// Reads every file of the bundle, weights too, and compares its SHA-256 with the contract: at the speed of the disk, on
    /// all processors. `progress` is told of bytes read, from several threads; [`Bundle::files`] says how many there are.
    ///
    /// Weights are not hashed otherwise, since that takes longer than to open them; a byte of them that changed is then a
    /// silently other answer. Whoever can write to the bundle while it is open can still change it.
    ///
    /// # Errors
    /// All files whose contents are not those of the contract, or that cannot be read.
    pub fn verify(&self, progress: &(dyn Fn(u64) + Sync)) -> Result<(), EngineError> {
        let Source {
            directory, bundle, ..
        } = &*self.0.source;
        Ok(bundle.verify(directory, progress)?)
    }

    /// The bundle's contract; where an image size was asked for, as if there were no other
    /// ([`Bundle::at_size`]).
    pub fn bundle(&self) -> &Bundle {
        &self.0.source.bundle
    }

    /// Who computes, and with which graphs; waits for them.
    ///
    /// # Errors
    /// What cannot be opened.
    pub fn provider(&self) -> Result<ProviderReport, EngineError> {
        let Inner { source, opening, .. } = &*self.0;
        let placement = opening.ready()?;
        let roles = opening.chosen()?;
        Ok(ProviderReport {
            asked: source.options.provider,
            used: roles.provider,
            target: roles.form.target(),
            precision: roles.form.precision(),
            kernels: roles.kernels,
            image: ImageSize {
                height: source.bundle.image.height,
                width: source.bundle.image.width,
                tokens: source.bundle.image.tokens,
            },
            placement,
            notices: opening.notices(),
        })
    }

    /// What is to be said about the choice of the engine so far; one line each, none where all is as asked for. The choice
    /// is made before the first answer, or when something waits for it.
    pub fn notices(&self) -> Vec<String> {
        self.0.opening.notices()
    }

    /// Positions of the longest sequence, prompt and answer; waits for the choice of the engine.
    ///
    /// # Errors
    /// What cannot be opened.
    pub fn context(&self) -> Result<usize, EngineError> {
        self.0.opening.context()
    }

    /// From messages to token ids; waits for the tokenizer.
    ///
    /// # Errors
    /// A tokenizer or a template that cannot be used.
    pub fn prompter(&self) -> Result<Arc<Prompter>, EngineError> {
        self.0.prompter.get()
    }

    /// Whether answers can keep to a constraint: what is wrong with it is said here as [`Conversation::chat`] would say it, but
    /// before anything is computed. Waits for the tokenizer. The first constraint of a model waits for its vocabulary to be
    /// indexed, which takes some tenths of a second for 150,000 tokens; an answer does that while its image is encoded.
    ///
    /// [`Conversation::chat`]: crate::Conversation::chat
    ///
    /// # Errors
    /// [`ConstraintError`], or a tokenizer that cannot be used.
    pub fn check_constraint(&self, constraint: &Constraint) -> Result<(), EngineError> {
        self.follow(constraint).map(drop)
    }

    /// The beginning of an answer that keeps to a constraint.
    pub(crate) fn follow(&self, constraint: &Constraint) -> Result<Follower, EngineError> {
        Ok(self.vocabulary()?.follow(constraint)?)
    }

    /// Begins to index the vocabulary, where a request needs that and nobody has begun.
    pub(crate) fn anticipate(&self, request: &Request) {
        if request.constraint.is_none() || self.0.vocabulary.get().is_some() {
            return;
        }
        let model = self.clone();
        let thread = std::thread::Builder::new().name("vocabulary".to_owned());
        // No more threads, or an error: that of whoever needs it.
        drop(thread.spawn(move || drop(model.vocabulary().map(drop))));
    }

    /// What constraints share.
    fn vocabulary(&self) -> Result<&Vocabulary, EngineError> {
        let prompter = self.prompter()?;
        let stop_ids = &self.bundle().prompt.stop_ids;
        let vocabulary = self.0.vocabulary.get_or_init(|| {
            self.timeline().measure("index vocabulary", || {
                Vocabulary::new(prompter.tokenizer(), stop_ids)
            })
        });
        Ok(vocabulary.as_ref().map_err(ConstraintError::clone)?)
    }

    /// An image as the encoder takes it.
    ///
    /// # Errors
    /// An image that cannot be prepared as the bundle says.
    pub fn preprocess(&self, picture: &Picture) -> Result<PixelValues, EngineError> {
        Ok(preprocess(picture, &self.bundle().image)?)
    }

    /// Whether the features of an image are kept, so that it need not be encoded.
    pub fn knows_image(&self, image: ImageId) -> bool {
        self.0.features.has(image)
    }

    /// Forgets the image features that are kept for conversations to come. Those that are going on keep theirs.
    pub fn forget_features(&self) {
        self.0.features.clear();
    }

    /// Images to features; waits for it. For measurements and tests, and may change.
    ///
    /// # Errors
    /// What cannot be opened.
    #[doc(hidden)]
    pub fn vision_encoder(&self) -> Result<Arc<dyn VisionEncoder>, EngineError> {
        self.0.opening.encoder()
    }

    /// Ids to embeddings; waits for it. For measurements and tests, and may change.
    ///
    /// # Errors
    /// What cannot be opened.
    #[doc(hidden)]
    pub fn token_embedder(&self) -> Result<Arc<dyn TokenEmbedder>, EngineError> {
        self.0.opening.embedder()
    }

    /// Sequences; waits for it. For measurements and tests, and may change.
    ///
    /// # Errors
    /// What cannot be opened.
    #[doc(hidden)]
    pub fn decoder(&self) -> Result<Arc<dyn Decoder>, EngineError> {
        self.0.opening.decoder()
    }

    /// Waits until no other conversation has pixels that are to be encoded.
    pub(crate) fn image_turn(&self) -> MutexGuard<'_, ()> {
        self.0.image.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether [`Model::prompter`] and the parts would not wait.
    pub(crate) fn is_ready(&self) -> bool {
        self.0.prompter.is_ready() && self.0.opening.finished().is_some()
    }

    /// How long it took to open: until the last part was there.
    pub(crate) fn load_seconds(&self) -> f64 {
        let Inner { opening, begun, .. } = &*self.0;
        let finished = opening.finished();
        finished.map_or(0.0, |end| end.saturating_duration_since(*begun).as_secs_f64())
    }

    /// The steps of opening it.
    pub(crate) fn timeline(&self) -> &Timeline {
        &self.0.source.timeline
    }
}

impl Parts for Model {
    fn encoder(&self) -> Result<Arc<dyn VisionEncoder>, EngineError> {
        self.0.opening.encoder()
    }

    fn embedder(&self) -> Result<Arc<dyn TokenEmbedder>, EngineError> {
        self.0.opening.embedder()
    }

    fn decoder(&self) -> Result<Arc<dyn Decoder>, EngineError> {
        self.0.opening.decoder()
    }

    fn context(&self) -> Result<usize, EngineError> {
        self.0.opening.context()
    }

    fn features(&self) -> &Features {
        &self.0.features
    }
}

/// Tokenizer and chat template of the bundle in `directory`, of the very bytes that were hashed.
fn open_prompter(directory: &Path, bundle: &Bundle) -> Result<Prompter, EngineError> {
    let spec = &bundle.prompt;
    let json = bundle.read_file(directory, &spec.tokenizer)?;
    let tokenizer = Tokenizer::read(&directory.join(&spec.tokenizer), &json)?;
    drop(json);
    let path = directory.join(&spec.chat_template);
    let source = bundle.read_file(directory, &spec.chat_template)?;
    let source = String::from_utf8(source).map_err(|error| PromptError::Read {
        path: path.clone(),
        source: std::io::Error::new(std::io::ErrorKind::InvalidData, error),
    })?;
    let source = (&*path.display().to_string(), &*source);
    let prompter = Prompter::new(tokenizer, source, spec, bundle.image.tokens)?;
    Ok(prompter.with_context(bundle.kv.max_context))
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

/// A model is shared by threads: this does not compile otherwise.
const _: () = {
    const fn shares<T: Send + Sync + Clone>() {}
    shares::<Model>();
};
