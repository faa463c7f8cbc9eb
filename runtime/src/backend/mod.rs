//! Who computes? The roles that a model is made of, and the engines that can play them.
//!
//! "Compiled in" and "usable here" are two things: [`Backend::check`] tells the second. [`choose`] follows the order
//! in which providers replace each other.

pub mod kv;
#[cfg(feature = "ort")]
mod ort;
#[cfg(any(feature = "ort", feature = "tract"))]
mod parts;
pub mod session;
pub mod stateless;
#[cfg(feature = "tract")]
mod tract;

use crate::error::BackendError;
use models::bundle::{Bundle, Variant};
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
    /// ONNX Runtime on the CPU.
    Cpu,
    /// tract: pure Rust, no shared library.
    Tract,
}

impl Provider {
    /// The name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Provider::Auto => "auto",
            Provider::CoreMl => "coreml",
            Provider::Cpu => "cpu",
            Provider::Tract => "tract",
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
            Provider::Cpu => &[Provider::Cpu, Provider::Tract],
            Provider::Tract => &[Provider::Tract, Provider::Cpu],
        }
    }
}

impl fmt::Display for Provider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How engines are opened.
#[derive(Debug, Clone, PartialEq)]
pub struct Options {
    /// Who shall compute.
    pub provider: Provider,
    /// Whether another may when that one cannot run here.
    pub fallback: bool,
    /// Which of the bundle's variants, by precision (`fp32`); the bundle's first when not given.
    pub precision: Option<String>,
    /// ONNX Runtime's shared library, or a directory with it; well-known places when not given.
    pub onnxruntime: Option<PathBuf>,
    /// Threads that compute; as many as there are physical cores when not given.
    pub threads: Option<usize>,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            provider: Provider::Auto,
            fallback: true,
            precision: None,
            onnxruntime: None,
            threads: None,
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
        let parts = [
            self.vision_encoder.placement(),
            self.embedder.placement(),
            self.decoder.placement(),
        ];
        parts.into_iter().try_fold(
            Placement {
                accelerated: 0,
                nodes: 0,
            },
            |sum, part| {
                let part = part?;
                Some(Placement {
                    accelerated: sum.accelerated + part.accelerated,
                    nodes: sum.nodes + part.nodes,
                })
            },
        )
    }
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

    /// Prepares a model.
    ///
    /// # Errors
    /// Graphs that are not those of the contract, or that the engine refuses; or an engine that cannot run here.
    fn open(
        &self,
        directory: &Path,
        bundle: &Bundle,
        variant: &Variant,
        options: &Options,
    ) -> Result<Parts, BackendError>;
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
    choose_after(asked, fallback, options, None)
}

/// As [`choose`], among those that come after `failed`, which turned out not to work when it was opened.
pub(crate) fn choose_after(
    asked: Provider,
    fallback: bool,
    options: &Options,
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
        let error = match backend(candidate).and_then(|backend| backend.check(options).map(|()| backend)) {
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

/// Runs code of others that has assertions which a corrupt file can reach; `Err` has the words of the panic.
#[cfg(feature = "tract")]
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
