//! Choice of a provider: the engines that this program was built with, in which order they replace each
//! other, and which form of a bundle each of them runs.

use super::form::Form;
use super::isa;
#[cfg(feature = "coreml-native")]
use super::native;
use super::options::Options;
#[cfg(feature = "ort")]
use super::ort;
use super::provider::Provider;
use super::roles::Backend;
#[cfg(feature = "rten")]
use super::rten;
use super::session::Session;
#[cfg(feature = "tract")]
use super::tract;
use crate::error::{BackendError, EngineError};
use models::bundle::{Bundle, Precision, Target, Variant};
use std::fmt;
use std::path::Path;

impl Provider {
    /// Whether it can run here; `Auto` can where any other can.
    ///
    /// # Errors
    /// Why not.
    pub fn usable(self, options: &Options) -> Result<(), BackendError> {
        match self {
            Provider::Auto => choose(self, true, options).map(|_| ()),
            named => {
                let backend = backend(named)?;
                backend.check(options)?;
                backend.check_form(None, options)
            }
        }
    }

    /// Who is tried, in order, when this one is asked for.
    const fn order(self) -> &'static [Provider] {
        match self {
            Provider::Auto | Provider::OrtCoreMl => &[Provider::OrtCoreMl, Provider::Cpu, Provider::Tract],
            Provider::CoreMlNative => &[
                Provider::CoreMlNative,
                Provider::OrtCoreMl,
                Provider::Cpu,
                Provider::Tract,
            ],
            Provider::Cpu => &[Provider::Cpu, Provider::Tract],
            Provider::Tract => &[Provider::Tract, Provider::Cpu],
            Provider::Rten => &[Provider::Rten, Provider::Cpu, Provider::Tract],
        }
    }
}

/// Every engine that this program was built with, in the order of `auto`.
pub fn backends() -> &'static [&'static dyn Backend] {
    &[
        #[cfg(feature = "ort")]
        &ort::OnnxRuntime {
            provider: Provider::OrtCoreMl,
        },
        #[cfg(feature = "ort")]
        &ort::OnnxRuntime {
            provider: Provider::Cpu,
        },
        #[cfg(feature = "tract")]
        &tract::Tract,
        #[cfg(feature = "coreml-native")]
        &native::CoreMlNative,
        #[cfg(feature = "rten")]
        &rten::Rten,
    ]
}

/// The engine of a provider that is not `Auto`.
fn backend(provider: Provider) -> Result<&'static dyn Backend, BackendError> {
    let found = backends().iter().find(|backend| backend.provider() == provider);
    found.copied().ok_or(match provider {
        Provider::Auto => BackendError::NoBackend,
        Provider::OrtCoreMl | Provider::Cpu => BackendError::NotCompiled {
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
/// None works; or, without `fallback`, the one that is asked for does not (for `auto`: neither coreml nor
/// cpu).
pub fn choose(asked: Provider, fallback: bool, options: &Options) -> Result<Choice, BackendError> {
    choose_among(asked, fallback, options, &|_| Ok(None), None)
}

/// As [`choose`], among those that can run a form of `bundle` and come after `failed`, which turned out
/// not to work when it was opened.
pub(crate) fn choose_for(
    bundle: &Bundle,
    options: &Options,
    failed: Option<(Provider, BackendError)>,
) -> Result<Choice, EngineError> {
    let takes = |backend: &dyn Backend| form(backend, bundle, options).map(Some);
    Ok(choose_among(
        options.provider,
        options.fallback,
        options,
        &takes,
        failed,
    )?)
}

/// What an engine is to run, if that is known; or why it cannot.
type Suits<'s> = &'s dyn Fn(&dyn Backend) -> Result<Option<Form>, BackendError>;

/// The first that works, with the form that `suits` says it is to run if it says one, among those that come after
/// `failed`.
fn choose_among(
    asked: Provider,
    fallback: bool,
    options: &Options,
    suits: Suits<'_>,
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
        let silent = asked == Provider::Auto && candidate == Provider::OrtCoreMl;
        let usable = |backend: &'static dyn Backend| {
            let form = suits(backend)?;
            backend.check(options)?;
            backend.check_form(form.as_ref(), options)?;
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

/// The form of `bundle` that `backend` is to run: of the best target that it takes and the bundle has in
/// the precision that is asked for, the first.
pub(crate) fn form(backend: &dyn Backend, bundle: &Bundle, options: &Options) -> Result<Form, BackendError> {
    let asked = |precision: Precision| options.precision.is_none_or(|asked| asked == precision);
    let targets = backend.targets().iter();
    let mut targets = targets.filter(|target| options.target.is_none_or(|asked| asked == **target));
    let graphs = targets.find_map(|target| {
        let mut variants = bundle.variants.iter();
        let runs = |variant: &Variant| asked(variant.precision) && takes(backend, *target, variant);
        variants.find(|variant| variant.target == *target && runs(variant))
    });
    let packages = || {
        let mut packages = bundle.packages.iter();
        let found = packages.find(|packages| asked(packages.precision));
        // Packages have no target that could be asked for.
        found.filter(|_| backend.runs_packages() && options.target.is_none())
    };
    let graphs = graphs.map(|variant| Form::Graphs(Box::new(variant.clone())));
    graphs
        .or_else(|| packages().cloned().map(Form::Packages))
        .ok_or_else(|| match beyond(backend, bundle, options) {
            Some(variant) => BackendError::Unavailable {
                provider: backend.provider(),
                reason: lacks(variant),
            },
            None => BackendError::NoGraphs {
                provider: backend.provider(),
                asked: asked_for(options),
                takes: backend.targets(),
            },
        })
}

/// Whether an engine runs a variant of a target that it takes.
fn takes(backend: &dyn Backend, target: Target, variant: &Variant) -> bool {
    backend.runs(target, variant.precision) && (backend.runs_adopted() || !variant.is_adopted())
}

/// Why a variant is not run by an engine that takes its target.
fn lacks(variant: &Variant) -> String {
    let Variant {
        target, precision, ..
    } = variant;
    let cpu = Provider::Cpu;
    if variant.is_adopted() {
        return format!(
            "{target} `{precision}` has graphs of another program, expected `{cpu}`, which runs any"
        );
    }
    format!("it lacks operators of {target} `{precision}`, expected `{cpu}`, which has them")
}

/// What is there, is asked for, and is of a target that `backend` takes, and that it does not run.
fn beyond<'b>(backend: &dyn Backend, bundle: &'b Bundle, options: &Options) -> Option<&'b Variant> {
    let mut variants = bundle.variants.iter();
    variants.find(|variant| {
        options.target.is_none_or(|asked| asked == variant.target)
            && options.precision.is_none_or(|asked| asked == variant.precision)
            && backend.targets().contains(&variant.target)
    })
}

/// Whether `bundle` has what is asked for at all: a form for any provider that may be taken.
pub(crate) fn check_forms(bundle: &Bundle, options: &Options) -> Result<(), EngineError> {
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
    if built.peek().is_none() || built.any(|backend| form(backend, bundle, options).is_ok()) {
        return Ok(());
    }
    // Where one alone may be taken, what it lacks says more than what there is.
    if !options.fallback
        && let Ok(backend) = backend(options.provider)
        && let Err(lacks @ BackendError::Unavailable { .. }) = form(backend, bundle, options)
    {
        return Err(lacks.into());
    }
    let variants = bundle.variants.iter();
    let packages = bundle.packages.iter();
    Err(EngineError::NoVariant {
        asked: asked_for(options),
        provider: options.provider,
        variants: variants
            .map(|variant| (variant.target, variant.precision))
            .collect(),
        packages: packages.map(|packages| packages.precision).collect(),
        unknown: bundle.unknown.iter().map(ToString::to_string).collect(),
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
    isa::check()?;
    backend.check(options)?;
    backend.check_form(None, options)?;
    backend.open_session(path, options)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    #[test]
    fn every_order_begins_with_the_one_asked_for() {
        for provider in [Provider::OrtCoreMl, Provider::Cpu, Provider::Tract] {
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
        let result = choose(Provider::OrtCoreMl, true, &options);
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
        let error = choose(Provider::OrtCoreMl, false, &options).unwrap_err();
        assert!(
            error.is_unavailable() || matches!(error, BackendError::NoBackend),
            "{error}"
        );
    }

    #[cfg(all(feature = "ort", feature = "tract"))]
    fn bundle(variants: &[(Target, Precision)]) -> Bundle {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/bundle");
        let mut bundle = Bundle::open(&directory).unwrap();
        let one = bundle.variants[0].clone();
        let variant = |&(target, precision): &(Target, Precision)| Variant {
            target,
            precision,
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
            target: Option<Target>,
            precision: Option<Precision>,
            expected: Option<(Target, Precision)>,
        }
        let case = |provider, target, precision, expected| Case {
            provider,
            target,
            precision,
            expected,
        };
        use Provider::{Cpu, OrtCoreMl, Tract};
        let bundle = bundle(&[
            (Target::Portable, Precision::Fp32),
            (Target::Portable, Precision::Fp16),
            (Target::Portable, Precision::Q4),
            (Target::Portable, Precision::Q8),
            (Target::Cpu, Precision::Int8),
            (Target::Cpu, Precision::Fp32),
            (Target::Cpu, Precision::Q4),
        ]);
        let cases = [
            case(Cpu, None, None, Some((Target::Cpu, Precision::Int8))),
            case(
                Cpu,
                None,
                Some(Precision::Fp32),
                Some((Target::Cpu, Precision::Fp32)),
            ),
            case(
                Cpu,
                None,
                Some(Precision::Fp16),
                Some((Target::Portable, Precision::Fp16)),
            ),
            case(
                Cpu,
                Some(Target::Portable),
                None,
                Some((Target::Portable, Precision::Fp32)),
            ),
            case(Cpu, Some(Target::Portable), Some(Precision::Int8), None),
            case(Cpu, Some(Target::OrtCoreMl), None, None),
            case(Tract, None, None, Some((Target::Cpu, Precision::Int8))),
            case(
                Tract,
                None,
                Some(Precision::Fp16),
                Some((Target::Portable, Precision::Fp16)),
            ),
            case(Tract, Some(Target::OrtCoreMl), None, None),
            case(
                OrtCoreMl,
                None,
                Some(Precision::Fp16),
                Some((Target::Portable, Precision::Fp16)),
            ),
            case(OrtCoreMl, None, Some(Precision::Int8), None),
            case(Cpu, None, Some(Precision::Q4), Some((Target::Cpu, Precision::Q4))),
            case(
                Cpu,
                Some(Target::Portable),
                Some(Precision::Q4),
                Some((Target::Portable, Precision::Q4)),
            ),
            case(
                Cpu,
                None,
                Some(Precision::Q8),
                Some((Target::Portable, Precision::Q8)),
            ),
            case(
                Tract,
                None,
                Some(Precision::Q4),
                Some((Target::Cpu, Precision::Q4)),
            ),
            case(Tract, Some(Target::Portable), Some(Precision::Q4), None),
            case(Tract, None, Some(Precision::Q8), None),
        ];
        for case in cases {
            let options = Options {
                target: case.target,
                precision: case.precision,
                ..Options::default()
            };
            let found = form(backend(case.provider).unwrap(), &bundle, &options).ok();
            let found = found.and_then(|found| Some((found.target()?, found.precision())));
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
        let bundle = bundle(&[(Target::Portable, Precision::Fp32), (Target::Cpu, Precision::Q4)]);
        let check = |provider, fallback, target: Option<Target>, precision: Precision| {
            let options = Options {
                provider,
                fallback,
                target,
                precision: Some(precision),
                ..Options::default()
            };
            check_forms(&bundle, &options).map_err(|error| error.to_string())
        };
        assert_eq!(check(Provider::Auto, true, None, Precision::Q4), Ok(()));
        assert_eq!(check(Provider::Tract, true, None, Precision::Q4), Ok(()));
        assert_eq!(check(Provider::Tract, false, None, Precision::Q4), Ok(()));
        let error = check(Provider::OrtCoreMl, false, None, Precision::Q4).unwrap_err();
        assert!(
            error.contains("precision `q4`") && error.contains("portable `fp32`, cpu `q4`"),
            "{error}"
        );
        let error = check(Provider::Auto, true, Some(Target::Portable), Precision::Q4).unwrap_err();
        assert!(error.contains("target `portable` and precision `q4`"), "{error}");
        assert!(check(Provider::Cpu, true, None, Precision::Int8).is_err());
    }

    #[test]
    #[cfg(all(feature = "ort", feature = "tract"))]
    fn a_provider_without_graphs_in_the_bundle_is_passed_over() {
        let options = Options {
            provider: Provider::Cpu,
            onnxruntime: Some(PathBuf::from("/nowhere/libonnxruntime.so")),
            ..Options::default()
        };
        let only_cpu = bundle(&[(Target::Cpu, Precision::Q4)]);
        let choice = choose_for(&only_cpu, &options, None).unwrap();
        assert_eq!(choice.backend.provider(), Provider::Tract);
        let alone = Options {
            fallback: false,
            ..options.clone()
        };
        let error = choose_for(&only_cpu, &alone, None).unwrap_err();
        assert!(error.to_string().contains("/nowhere"), "{error}");
        let none = bundle(&[]);
        let error = choose_for(&none, &options, None).unwrap_err();
        assert!(
            error.to_string().contains("takes target `cpu`, `portable`"),
            "{error}"
        );
        let portable = bundle(&[(Target::Portable, Precision::Fp32)]);
        let choice = choose_for(&portable, &options, None).unwrap();
        assert_eq!(choice.backend.provider(), Provider::Tract);
    }

    /// Graphs that are there, and that tract has no operators for.
    #[test]
    #[cfg(all(feature = "ort", feature = "tract"))]
    fn tract_says_what_it_lacks() {
        let blocks = bundle(&[(Target::Portable, Precision::Q4)]);
        let tract = backend(Provider::Tract).unwrap();
        let error = form(tract, &blocks, &Options::default()).unwrap_err();
        assert!(error.is_unavailable(), "{error}");
        let words = error.to_string();
        assert!(
            words.contains("`tract`") && words.contains("portable `q4`") && words.contains("expected `cpu`"),
            "{words}"
        );
        let asked = Options {
            precision: Some(Precision::Fp32),
            ..Options::default()
        };
        let words = form(tract, &blocks, &asked).unwrap_err().to_string();
        assert!(words.contains("no graphs of precision `fp32`"), "{words}");
    }

    /// Graphs of another program: ONNX Runtime runs any, the others know ours.
    #[test]
    #[cfg(all(feature = "ort", feature = "tract"))]
    fn adopted_graphs_are_for_onnx_runtime() {
        let mut adopted = bundle(&[(Target::Portable, Precision::Fp32)]);
        let [variant] = adopted.variants.as_mut_slice() else {
            panic!("{adopted:?}")
        };
        for graph in [
            &mut variant.vision_encoder,
            &mut variant.embed_tokens,
            &mut variant.decoder,
        ] {
            graph.adopted = Some(models::bundle::Adopted::default());
        }
        let found = |provider| form(backend(provider).unwrap(), &adopted, &Options::default());
        assert!(found(Provider::Cpu).is_ok());
        for provider in [Provider::Tract, Provider::OrtCoreMl] {
            let words = found(provider).unwrap_err().to_string();
            assert!(
                words.contains("portable `fp32` has graphs of another program, expected `cpu`"),
                "{words}"
            );
        }
        let alone = Options::default()
            .with_provider(Provider::Tract)
            .with_fallback(false);
        let words = check_forms(&adopted, &alone).unwrap_err().to_string();
        assert!(words.contains("graphs of another program"), "{words}");
        assert!(check_forms(&adopted, &alone.with_fallback(true)).is_ok());
    }

    /// Packages have no target, so whoever asks for one asks for graphs.
    #[test]
    #[cfg(feature = "coreml-native")]
    fn packages_are_a_form_of_their_own() {
        use models::bundle::{CoreMlPackages, EmbeddingRows};
        use models::dtype::DType;
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/bundle");
        let mut bundle = Bundle::open(&directory).unwrap();
        bundle.packages.push(CoreMlPackages {
            precision: Precision::Int8,
            vision_encoder: "coreml/vision_encoder.mlpackage".to_owned(),
            vision_encoder_ios16: None,
            decoder: "coreml/decoder.mlpackage".to_owned(),
            context: 8,
            prefill: vec![4],
            embedding: EmbeddingRows {
                path: "rows".to_owned(),
                dtype: DType::Float16,
                offset: 0,
                scales: None,
            },
        });
        let found = |target, precision| {
            let options = Options {
                target,
                precision,
                ..Options::default()
            };
            form(&native::CoreMlNative, &bundle, &options).map_err(|error| error.to_string())
        };
        let packages = found(None, None).unwrap();
        assert_eq!((packages.target(), packages.precision()), (None, Precision::Int8));
        assert_eq!(packages.context(&bundle), 8);
        assert!(packages.graphs(Provider::Cpu).is_err());
        let error = found(None, Some(Precision::Fp16)).unwrap_err();
        assert!(
            error.contains("finds no Core ML packages of precision `fp16`"),
            "{error}"
        );
        assert!(found(Some(Target::Portable), None).is_err());
    }
}
