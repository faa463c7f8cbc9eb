//! Who computes? The roles that a model is made of, and the engines that can play them.
//!
//! "Compiled in" and "usable here" are two things: [`Backend::check`] tells the second. [`choose`] follows the order
//! in which providers replace each other.

pub mod fixed;
#[cfg(any(feature = "ort", feature = "tract"))]
mod fused;
pub mod kv;
#[cfg(feature = "coreml-native")]
mod native;
#[cfg(feature = "ort")]
mod ort;
#[cfg(any(feature = "ort", feature = "rten", feature = "tract"))]
mod parts;
#[cfg(feature = "rten")]
mod rten;
pub mod session;
pub mod stateless;
#[cfg(feature = "tract")]
mod tract;

use crate::error::{BackendError, EngineError};
use models::bundle::{Bundle, GraphEntry, Variant};
use session::{Placement, Session};
use std::fmt;
use std::path::{Path, PathBuf};

/// An engine, as the command line names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, clap::ValueEnum, serde::Serialize)]
#[serde(rename_all = "lowercase")]
#[value(rename_all = "lowercase")]
pub enum Provider {
    /// The first of the others that works here.
    #[default]
    Auto,
    /// ONNX Runtime with its CoreML execution provider.
    CoreMl,
    /// Core ML itself, on the packages of `fvlm-export --to coreml`; on macOS, where it was built in. Never run by its authors.
    #[value(name = "coreml-native")]
    #[serde(rename = "coreml-native")]
    CoreMlNative,
    /// ONNX Runtime on the CPU.
    Cpu,
    /// tract: pure Rust, no shared library.
    Tract,
    /// rten: pure Rust, float32 only, for comparison; where it was built in. Nothing falls back to it.
    Rten,
}

impl Provider {
    /// The name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Provider::Auto => "auto",
            Provider::CoreMl => "coreml",
            Provider::CoreMlNative => "coreml-native",
            Provider::Cpu => "cpu",
            Provider::Tract => "tract",
            Provider::Rten => "rten",
        }
    }

    /// Whether it can run here; `Auto` can where any other can.
    ///
    /// # Errors
    /// Why not.
    pub fn usable(self, options: &Options) -> Result<(), BackendError> {
        match self {
            Provider::Auto => choose(self, true, options).map(|_| ()),
            named => backend(named)?.check(options),
        }
    }

    /// Who is tried, in order, when this one is asked for.
    const fn order(self) -> &'static [Provider] {
        match self {
            Provider::Auto | Provider::CoreMl => &[Provider::CoreMl, Provider::Cpu, Provider::Tract],
            Provider::CoreMlNative => &[
                Provider::CoreMlNative,
                Provider::CoreMl,
                Provider::Cpu,
                Provider::Tract,
            ],
            Provider::Cpu => &[Provider::Cpu, Provider::Tract],
            Provider::Tract => &[Provider::Tract, Provider::Cpu],
            Provider::Rten => &[Provider::Rten, Provider::Cpu, Provider::Tract],
        }
    }
}

impl fmt::Display for Provider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl std::str::FromStr for Provider {
    type Err = String;

    /// By its name on the command line.
    fn from_str(name: &str) -> Result<Provider, String> {
        let all = <Provider as clap::ValueEnum>::value_variants();
        all.iter()
            .copied()
            .find(|provider| provider.name() == name)
            .ok_or_else(|| {
                let names: Vec<&str> = all.iter().map(|provider| provider.name()).collect();
                format!("no provider `{name}`, expected one of {}", names.join(", "))
            })
    }
}

/// How engines are opened.
#[derive(Debug, Clone, PartialEq)]
pub struct Options {
    /// Who shall compute.
    pub provider: Provider,
    /// Whether another may when that one cannot run here.
    pub fallback: bool,
    /// Which of the bundle's variants, by precision (`fp32`); the first of the target when not given.
    pub precision: Option<String>,
    /// Which of the bundle's variants, by target (`portable`); the best that the provider takes when not given.
    pub target: Option<String>,
    /// Side of the square that images become, in pixels, one of those that the bundle has encoders for; its default when
    /// not given.
    pub image_size: Option<u32>,
    /// ONNX Runtime's shared library, or a directory with it; well-known places when not given.
    pub onnxruntime: Option<PathBuf>,
    /// Threads that compute; as many as there are physical cores when not given.
    pub threads: Option<usize>,
    /// How the provider `coreml` works.
    pub coreml: CoreMlOptions,
}

/// How ONNX Runtime's CoreML provider is asked to work.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CoreMlOptions {
    /// What Core ML may compute on.
    pub units: CoreMlUnits,
    /// In which format it is given the graphs.
    pub format: CoreMlFormat,
    /// Whether it shall prepare for the fastest predictions, at the cost of a longer first start and more disk.
    pub fast_prediction: bool,
    /// A directory for compiled models, so that a later start does not compile them again; made where it is missing.
    pub cache: Option<PathBuf>,
    /// Whether nodes of target `coreml` may stay on the CPU. Otherwise that is an error, for its graphs are written to be
    /// taken whole.
    pub partial: bool,
}

/// What Core ML may compute on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CoreMlUnits {
    /// Whatever is best.
    #[default]
    All,
    /// The CPU and the Neural Engine.
    CpuAndNe,
    /// The CPU and the GPU.
    CpuAndGpu,
    /// The CPU.
    Cpu,
}

/// In which format Core ML is given a graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CoreMlFormat {
    /// ML Program: what our graphs are written for.
    #[default]
    MlProgram,
    /// The older one, which knows fewer operators.
    NeuralNetwork,
}

impl Options {
    /// Most threads that make sense; a typo must not start thousands.
    pub const MAX_THREADS: usize = 1024;
}

impl Default for Options {
    fn default() -> Options {
        Options {
            provider: Provider::Auto,
            fallback: true,
            precision: None,
            target: None,
            image_size: None,
            onnxruntime: None,
            threads: None,
            coreml: CoreMlOptions::default(),
        }
    }
}

impl Options {
    /// Threads that compute.
    pub fn thread_count(&self) -> usize {
        self.threads.unwrap_or_else(physical_cores).max(1)
    }
}

/// Turns an image into features.
pub trait VisionEncoder: Send {
    /// `pixels`: `[3, height, width]` of one image; returns `[tokens, hidden]`.
    ///
    /// # Errors
    /// What the engine says.
    fn encode(&mut self, pixels: &[f32], height: usize, width: usize) -> Result<Vec<f32>, BackendError>;

    /// How many nodes an accelerator took, where one was asked for and says so.
    fn placement(&self) -> Option<Placement> {
        None
    }
}

/// Turns token ids into embeddings.
pub trait TokenEmbedder: Send {
    /// Returns `[ids, hidden]`.
    ///
    /// # Errors
    /// What the engine says.
    fn embed(&mut self, ids: &[i64]) -> Result<Vec<f32>, BackendError>;

    /// How many nodes an accelerator took, where one was asked for and says so.
    fn placement(&self) -> Option<Placement> {
        None
    }
}

/// Continues one sequence. It owns what it remembers of it.
pub trait Decoder: Send {
    /// Appends `embeds`, `[new, hidden]` with `new` at least 1, and returns the logits `[vocab]` of the last position.
    /// Prompt and single step alike. After an error the sequence is as it was.
    ///
    /// # Errors
    /// What the engine says.
    fn feed(&mut self, embeds: &[f32]) -> Result<Vec<f32>, BackendError>;

    /// Positions in the sequence.
    fn len(&self) -> usize;

    /// Whether nothing was fed.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Forgets all positions from `len` on.
    ///
    /// # Errors
    /// What the engine says.
    fn truncate(&mut self, len: usize) -> Result<(), BackendError>;

    /// How many nodes an accelerator took, where one was asked for and says so.
    fn placement(&self) -> Option<Placement> {
        None
    }
}

/// A model, ready to compute.
pub struct Parts {
    /// Images to features.
    pub vision_encoder: Box<dyn VisionEncoder>,
    /// Ids to embeddings.
    pub embedder: Box<dyn TokenEmbedder>,
    /// The sequence.
    pub decoder: Box<dyn Decoder>,
}

impl fmt::Debug for Parts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Parts").finish_non_exhaustive()
    }
}

impl Parts {
    /// How many nodes an accelerator took of all three graphs; `None` where not all of them say.
    pub fn placement(&self) -> Option<Placement> {
        Placement::sum(&[
            self.vision_encoder.placement(),
            self.embedder.placement(),
            self.decoder.placement(),
        ])
    }
}

/// What a backend opens parts of.
#[derive(Debug, Clone, Copy)]
pub struct Model<'a> {
    /// The bundle's directory.
    pub directory: &'a Path,
    /// Its contract.
    pub bundle: &'a Bundle,
    /// Which of its variants.
    pub variant: &'a Variant,
    /// How.
    pub options: &'a Options,
}

/// An engine that this program was built with.
pub trait Backend: Sync {
    /// Which provider it is.
    fn provider(&self) -> Provider;

    /// Whether it can run here.
    ///
    /// # Errors
    /// Why not.
    fn check(&self, options: &Options) -> Result<(), BackendError>;

    /// Prepares one graph, with any inputs and outputs.
    ///
    /// # Errors
    /// A graph that it refuses, or an engine that cannot run here.
    fn open_session(&self, path: &Path, options: &Options) -> Result<Box<dyn Session>, BackendError>;

    /// The targets whose graphs it can run, the best first.
    fn targets(&self) -> &'static [&'static str];

    /// Prepares a model's vision encoder.
    ///
    /// # Errors
    /// A graph that is not that of the contract, or that the engine refuses; or an engine that cannot run here.
    fn vision_encoder(&self, model: &Model<'_>) -> Result<Box<dyn VisionEncoder>, BackendError>;

    /// Prepares a model's token embedding.
    ///
    /// # Errors
    /// As for the vision encoder.
    fn embedder(&self, model: &Model<'_>) -> Result<Box<dyn TokenEmbedder>, BackendError>;

    /// Prepares a model's decoder.
    ///
    /// # Errors
    /// As for the vision encoder.
    fn decoder(&self, model: &Model<'_>) -> Result<Box<dyn Decoder>, BackendError>;

    /// Prepares a model, its parts at the same time.
    ///
    /// # Errors
    /// Graphs that are not those of the contract, or that the engine refuses; or an engine that cannot run here.
    fn open(
        &self,
        directory: &Path,
        bundle: &Bundle,
        variant: &Variant,
        options: &Options,
    ) -> Result<Parts, BackendError> {
        let model = &Model {
            directory,
            bundle,
            variant,
            options,
        };
        let (vision_encoder, embedder, decoder) = std::thread::scope(|scope| {
            let vision_encoder = scope.spawn(move || self.vision_encoder(model));
            let embedder = scope.spawn(move || self.embedder(model));
            let decoder = self.decoder(model);
            (
                join(vision_encoder, directory, &variant.vision_encoder),
                join(embedder, directory, &variant.embed_tokens),
                decoder,
            )
        });
        Ok(Parts {
            vision_encoder: vision_encoder?,
            embedder: embedder?,
            decoder: decoder?,
        })
    }
}

fn join<T>(
    thread: std::thread::ScopedJoinHandle<'_, Result<T, BackendError>>,
    directory: &Path,
    entry: &GraphEntry,
) -> Result<T, BackendError> {
    thread.join().unwrap_or_else(|_| {
        Err(BackendError::Run {
            path: directory.join(&entry.path),
            reason: "the thread that opened it ended without an answer".to_owned(),
        })
    })
}

/// Every engine that this program was built with, in the order of `auto`.
pub fn backends() -> &'static [&'static dyn Backend] {
    &[
        #[cfg(feature = "ort")]
        &ort::OnnxRuntime {
            provider: Provider::CoreMl,
        },
        #[cfg(feature = "ort")]
        &ort::OnnxRuntime {
            provider: Provider::Cpu,
        },
        #[cfg(feature = "tract")]
        &tract::Tract,
        #[cfg(feature = "coreml-native")]
        &native::CoreMl,
        #[cfg(feature = "rten")]
        &rten::Rten,
    ]
}

/// The engine of a provider that is not `Auto`.
fn backend(provider: Provider) -> Result<&'static dyn Backend, BackendError> {
    let found = backends().iter().find(|backend| backend.provider() == provider);
    found.copied().ok_or(match provider {
        Provider::Auto => BackendError::NoBackend,
        Provider::CoreMl | Provider::Cpu => BackendError::NotCompiled {
            provider,
            feature: "ort",
        },
        Provider::Tract => BackendError::NotCompiled {
            provider,
            feature: "tract",
        },
        Provider::CoreMlNative => BackendError::NotCompiled {
            provider,
            feature: "coreml-native",
        },
        Provider::Rten => BackendError::NotCompiled {
            provider,
            feature: "rten",
        },
    })
}

/// Who computes, and what is to be said about it.
pub struct Choice {
    /// The engine.
    pub backend: &'static dyn Backend,
    /// One line where it is not the one that was asked for.
    pub notice: Option<String>,
}

impl fmt::Debug for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Choice { backend, notice } = self;
        f.debug_struct("Choice")
            .field("provider", &backend.provider())
            .field("notice", notice)
            .finish()
    }
}

/// The first engine that works here, in the order that begins with the one that is asked for.
///
/// # Errors
/// None works; or, without `fallback`, the one that is asked for does not (for `auto`: neither coreml nor cpu).
pub fn choose(asked: Provider, fallback: bool, options: &Options) -> Result<Choice, BackendError> {
    choose_among(asked, fallback, options, &|_| Ok(()), None)
}

/// As [`choose`], among those that can run a variant of `bundle` and come after `failed`, which turned out not to work
/// when it was opened.
pub(crate) fn choose_for(
    bundle: &Bundle,
    options: &Options,
    failed: Option<(Provider, BackendError)>,
) -> Result<Choice, EngineError> {
    let takes = |backend: &dyn Backend| variant(backend, bundle, options).map(|_| ());
    Ok(choose_among(
        options.provider,
        options.fallback,
        options,
        &takes,
        failed,
    )?)
}

/// The first that `suits` and that works, among those that come after `failed`.
fn choose_among(
    asked: Provider,
    fallback: bool,
    options: &Options,
    suits: &dyn Fn(&dyn Backend) -> Result<(), BackendError>,
    failed: Option<(Provider, BackendError)>,
) -> Result<Choice, BackendError> {
    let mut order = asked.order().iter().copied();
    let mut first: Option<BackendError> = None;
    if let Some((provider, error)) = failed {
        first = Some(error);
        let _ = order.by_ref().find(|&candidate| candidate == provider);
    }
    for candidate in order {
        // Nobody misses CoreML where `auto` was asked for and CoreML cannot be.
        let silent = asked == Provider::Auto && candidate == Provider::CoreMl;
        let usable = |backend: &'static dyn Backend| {
            suits(backend)?;
            backend.check(options)?;
            Ok(backend)
        };
        let error = match backend(candidate).and_then(usable) {
            Ok(backend) => {
                let notice = match first {
                    Some(error) if !fallback => return Err(error),
                    Some(error) => Some(format!("{error}; using `{candidate}`")),
                    None => None,
                };
                return Ok(Choice { backend, notice });
            }
            Err(error) => error,
        };
        if !silent {
            first.get_or_insert(error);
        }
    }
    Err(if backends().is_empty() {
        BackendError::NoBackend
    } else {
        first.unwrap_or(BackendError::NoBackend)
    })
}

/// The variant of `bundle` that `backend` is to run: of the best target that it takes and the bundle has in the
/// precision that is asked for, the first.
pub(crate) fn variant(
    backend: &dyn Backend,
    bundle: &Bundle,
    options: &Options,
) -> Result<Variant, BackendError> {
    let asked = |target: &&&str| options.target.as_ref().is_none_or(|asked| asked == **target);
    let wanted = |variant: &&Variant| {
        let asked = options.precision.as_ref();
        asked.is_none_or(|precision| *precision == variant.precision)
    };
    let mut targets = backend.targets().iter().filter(asked);
    let packages = packages(bundle);
    targets
        .find_map(|target| {
            let mut variants = bundle.variants.iter().chain(&packages).filter(wanted);
            variants.find(|variant| variant.target == *target).cloned()
        })
        .ok_or_else(|| BackendError::NoGraphs {
            provider: backend.provider(),
            asked: asked_for(options),
            takes: backend.targets(),
        })
}

/// The Core ML packages of a bundle as variants, where this program could use them.
fn packages(bundle: &Bundle) -> Vec<Variant> {
    #[cfg(feature = "coreml-native")]
    return native::variants(bundle).collect();
    #[cfg(not(feature = "coreml-native"))]
    {
        let _ = bundle;
        Vec::new()
    }
}

/// Whether `bundle` has what is asked for at all: a variant for any provider that may be taken.
pub(crate) fn check_variants(bundle: &Bundle, options: &Options) -> Result<(), EngineError> {
    let order = match options.provider {
        Provider::Auto => Provider::Auto.order(),
        named if !options.fallback => &named.order()[..1],
        named => named.order(),
    };
    let mut built = order
        .iter()
        .filter_map(|&provider| backend(provider).ok())
        .peekable();
    // Without any engine there is a better word for it.
    if built.peek().is_none() || built.any(|backend| variant(backend, bundle, options).is_ok()) {
        return Ok(());
    }
    let variants = bundle.variants.iter();
    let variants = variants.map(|variant| format!("{} `{}`", variant.target, variant.precision));
    let packages = bundle.packages.iter();
    let packages = packages.map(|packages| format!("coreml-native `{}`", packages.precision));
    Err(EngineError::NoVariant {
        asked: asked_for(options),
        provider: options.provider,
        found: variants.chain(packages).collect(),
    })
}

/// ` of target `cpu` and precision `int8``: what of it is asked for.
fn asked_for(options: &Options) -> String {
    let target = options.target.iter().map(|target| format!("target `{target}`"));
    let precision = options.precision.iter();
    let precision = precision.map(|precision| format!("precision `{precision}`"));
    let words: Vec<String> = target.chain(precision).collect();
    if words.is_empty() {
        String::new()
    } else {
        format!(" of {}", words.join(" and "))
    }
}

/// Prepares one graph on one provider, with any inputs and outputs. `Auto` takes the first that works.
///
/// # Errors
/// A graph that the engine refuses, or an engine that cannot run here.
pub fn open_session(
    provider: Provider,
    path: &Path,
    options: &Options,
) -> Result<Box<dyn Session>, BackendError> {
    let backend = match provider {
        Provider::Auto => choose(Provider::Auto, true, options)?.backend,
        named => backend(named)?,
    };
    backend.check(options)?;
    backend.open_session(path, options)
}

thread_local! {
    static CATCHING: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

/// For a program to call once: panics that this library catches and returns as errors are no longer reported; all
/// others are, as the language does.
pub fn silence_caught_panics() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if !CATCHING.get() {
            report(panic);
        }
    }));
}

/// Runs code that has assertions which a corrupt file can reach; `Err` has the words of the panic.
#[cfg(any(feature = "ort", feature = "rten", feature = "tract"))]
fn catch<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    let outer = CATCHING.replace(true);
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
    CATCHING.set(outer);
    result.map_err(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        text.or_else(|| panic.downcast_ref::<&str>().map(|&text| text.to_owned()))
            .unwrap_or_default()
    })
}

/// Physical cores that this process may use. Two threads of one core get in each other's way in matrix products.
fn physical_cores() -> usize {
    let logical = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    siblings().map_or(logical, |cores| cores.clamp(1, logical))
}

/// Distinct sets of threads that share a core, where Linux says so.
fn siblings() -> Option<usize> {
    let mut cores = std::collections::BTreeSet::new();
    for entry in std::fs::read_dir("/sys/devices/system/cpu").ok()?.flatten() {
        let name = entry.file_name();
        let Some(number) = name.to_str().and_then(|name| name.strip_prefix("cpu")) else {
            continue;
        };
        if !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()) {
            let list = entry.path().join("topology/thread_siblings_list");
            cores.insert(std::fs::read_to_string(list).ok()?);
        }
    }
    (!cores.is_empty()).then_some(cores.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_order_begins_with_the_one_asked_for() {
        for provider in [Provider::CoreMl, Provider::Cpu, Provider::Tract] {
            assert_eq!(provider.order()[0], provider);
        }
        assert_eq!(Provider::Auto.order().len(), 3);
    }

    #[test]
    fn a_missing_library_is_said_once() {
        let options = Options {
            onnxruntime: Some(PathBuf::from("/nowhere/libonnxruntime.so")),
            ..Options::default()
        };
        let result = choose(Provider::CoreMl, true, &options);
        if cfg!(feature = "tract") {
            let choice = result.unwrap();
            assert_eq!(choice.backend.provider(), Provider::Tract);
            let notice = choice.notice.unwrap();
            assert!(
                notice.contains("`coreml`") && notice.ends_with("using `tract`"),
                "{notice}"
            );
            assert!(!notice.contains('\n'), "{notice}");
        } else {
            assert!(result.is_err());
        }
        let error = choose(Provider::CoreMl, false, &options).unwrap_err();
        assert!(
            error.is_unavailable() || matches!(error, BackendError::NoBackend),
            "{error}"
        );
    }

    #[cfg(all(feature = "ort", feature = "tract"))]
    fn bundle(variants: &[(&str, &str)]) -> Bundle {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/bundle");
        let mut bundle = Bundle::open(&directory).unwrap();
        let one = bundle.variants[0].clone();
        let variant = |&(target, precision): &(&str, &str)| Variant {
            target: target.to_owned(),
            precision: precision.to_owned(),
            ..one.clone()
        };
        bundle.variants = variants.iter().map(variant).collect();
        bundle
    }

    #[test]
    #[cfg(all(feature = "ort", feature = "tract"))]
    fn each_provider_takes_the_best_target_of_what_is_asked_for() {
        struct Case {
            provider: Provider,
            target: Option<&'static str>,
            precision: Option<&'static str>,
            expected: Option<(&'static str, &'static str)>,
        }
        let case = |provider, target, precision, expected| Case {
            provider,
            target,
            precision,
            expected,
        };
        use Provider::{CoreMl, Cpu, Tract};
        let bundle = bundle(&[
            ("portable", "fp32"),
            ("portable", "fp16"),
            ("cpu", "int8"),
            ("cpu", "fp32"),
        ]);
        let cases = [
            case(Cpu, None, None, Some(("cpu", "int8"))),
            case(Cpu, None, Some("fp32"), Some(("cpu", "fp32"))),
            case(Cpu, None, Some("fp16"), Some(("portable", "fp16"))),
            case(Cpu, Some("portable"), None, Some(("portable", "fp32"))),
            case(Cpu, Some("portable"), Some("int8"), None),
            case(Cpu, Some("elsewhere"), None, None),
            case(Tract, None, None, Some(("cpu", "int8"))),
            case(Tract, None, Some("fp16"), Some(("portable", "fp16"))),
            case(Tract, Some("elsewhere"), None, None),
            case(CoreMl, None, Some("fp16"), Some(("portable", "fp16"))),
            case(CoreMl, None, Some("int8"), None),
        ];
        for case in cases {
            let options = Options {
                target: case.target.map(str::to_owned),
                precision: case.precision.map(str::to_owned),
                ..Options::default()
            };
            let found = variant(backend(case.provider).unwrap(), &bundle, &options);
            let found = found
                .as_ref()
                .ok()
                .map(|found| (&*found.target, &*found.precision));
            assert_eq!(
                found, case.expected,
                "{} {:?} {:?}",
                case.provider, case.target, case.precision
            );
        }
    }

    #[test]
    #[cfg(all(feature = "ort", feature = "tract"))]
    fn what_no_provider_can_run_is_an_error_before_anything_is_loaded() {
        let bundle = bundle(&[("portable", "fp32"), ("cpu", "q4")]);
        let check = |provider, fallback, target: Option<&str>, precision: &str| {
            let options = Options {
                provider,
                fallback,
                target: target.map(str::to_owned),
                precision: Some(precision.to_owned()),
                ..Options::default()
            };
            check_variants(&bundle, &options).map_err(|error| error.to_string())
        };
        assert_eq!(check(Provider::Auto, true, None, "q4"), Ok(()));
        assert_eq!(check(Provider::Tract, true, None, "q4"), Ok(()));
        assert_eq!(check(Provider::Tract, false, None, "q4"), Ok(()));
        let error = check(Provider::CoreMl, false, None, "q4").unwrap_err();
        assert!(
            error.contains("precision `q4`") && error.contains("portable `fp32`, cpu `q4`"),
            "{error}"
        );
        let error = check(Provider::Auto, true, Some("portable"), "q4").unwrap_err();
        assert!(error.contains("target `portable` and precision `q4`"), "{error}");
        assert!(check(Provider::Cpu, true, None, "int8").is_err());
    }

    #[test]
    #[cfg(all(feature = "ort", feature = "tract"))]
    fn a_provider_without_graphs_in_the_bundle_is_passed_over() {
        let options = Options {
            provider: Provider::Cpu,
            onnxruntime: Some(PathBuf::from("/nowhere/libonnxruntime.so")),
            ..Options::default()
        };
        let only_cpu = bundle(&[("cpu", "q4")]);
        let choice = choose_for(&only_cpu, &options, None).unwrap();
        assert_eq!(choice.backend.provider(), Provider::Tract);
        let alone = Options {
            fallback: false,
            ..options.clone()
        };
        let error = choose_for(&only_cpu, &alone, None).unwrap_err();
        assert!(error.to_string().contains("/nowhere"), "{error}");
        let elsewhere = bundle(&[("elsewhere", "fp32")]);
        let error = choose_for(&elsewhere, &options, None).unwrap_err();
        assert!(
            error.to_string().contains("takes target `cpu`, `portable`"),
            "{error}"
        );
        let portable = bundle(&[("portable", "fp32")]);
        let choice = choose_for(&portable, &options, None).unwrap();
        assert_eq!(choice.backend.provider(), Provider::Tract);
    }

    #[test]
    fn threads_are_at_least_one() {
        assert!(Options::default().thread_count() >= 1);
        assert_eq!(
            Options {
                threads: Some(3),
                ..Options::default()
            }
            .thread_count(),
            3
        );
    }
}
