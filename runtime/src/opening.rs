//! How does a bundle become a model? Each part is opened on a thread of its own and joined when it is first needed, so
//! that the image is encoded while the decoder still loads.

use crate::backend::{self, Backend, Choice, Decoder, Form, Model, Options, TokenEmbedder, VisionEncoder};
use crate::backend::{KernelReport, Provider, session::Placement};
use crate::error::{BackendError, EngineError};
use crate::features::Features;
use crate::lazy::Lazy;
use crate::replaceable::Replaceable;
use crate::timeline::Timeline;
use models::bundle::Bundle;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

/// What is opened, and how.
#[derive(Debug)]
pub(crate) struct Source {
    pub(crate) directory: PathBuf,
    pub(crate) bundle: Bundle,
    pub(crate) options: Options,
    pub(crate) timeline: Timeline,
    /// Who decides which engine runs it: [`choose_for`](crate::backend::choose_for).
    pub(crate) choose: Choose,
    /// What is to be said about the choice of the engine, one line each.
    pub(crate) notices: Mutex<Vec<String>>,
}

impl Source {
    /// What is to be said about the choice of the engine so far.
    pub(crate) fn notices(&self) -> Vec<String> {
        let notices = self.notices.lock().unwrap_or_else(PoisonError::into_inner);
        notices.clone()
    }
}

/// From a bundle, and the provider that turned out not to work when it was opened, to the engine that is to open it.
pub(crate) type Choose =
    fn(&Bundle, &Options, Option<(Provider, BackendError)>) -> Result<Choice, EngineError>;

/// A model on the engine that was chosen for it.
#[derive(Debug)]
pub(crate) struct Roles {
    pub(crate) provider: Provider,
    pub(crate) form: Form,
    /// The instruction set of its kernels, if it has any.
    pub(crate) kernels: Option<KernelReport>,
    encoder: Lazy<Arc<dyn VisionEncoder>>,
    embedder: Lazy<Arc<dyn TokenEmbedder>>,
    decoder: Lazy<Arc<dyn Decoder>>,
}

impl Roles {
    /// Chooses the engine, which loads its library, and begins to open the parts.
    fn begin(
        source: &Arc<Source>,
        failed: Option<(Provider, BackendError)>,
    ) -> Result<Arc<Roles>, EngineError> {
        let Source {
            bundle,
            options,
            timeline,
            choose,
            ..
        } = &**source;
        let Choice { backend, notice } =
            timeline.measure("load library", || choose(bundle, options, failed))?;
        let form = backend::form(backend, bundle, options)?;
        let kernels = backend::isa::report(&form)?;
        let mut notices = source.notices.lock().unwrap_or_else(PoisonError::into_inner);
        notices.extend(notice);
        drop(notices);
        let open = Open {
            source: Arc::clone(source),
            backend,
            form: form.clone(),
        };
        // The first that is needed is the first that begins.
        let (first, second, third) = (open.clone(), open.clone(), open);
        Ok(Arc::new(Roles {
            provider: backend.provider(),
            form,
            kernels,
            encoder: Lazy::begin("encoder", move || {
                first.part("load encoder", |backend, model| backend.vision_encoder(model))
            }),
            decoder: Lazy::begin("decoder", move || {
                second.part("load decoder", |backend, model| backend.decoder(model))
            }),
            embedder: Lazy::begin("embeddings", move || {
                third.part("load embeddings", |backend, model| backend.embedder(model))
            }),
        }))
    }
}

/// Opens parts of a form on an engine.
#[derive(Clone)]
struct Open {
    source: Arc<Source>,
    backend: &'static dyn Backend,
    form: Form,
}

impl Open {
    fn part<T>(
        &self,
        step: &str,
        open: impl FnOnce(&dyn Backend, &Model<'_>) -> Result<T, BackendError>,
    ) -> Result<T, EngineError> {
        let Source {
            directory,
            bundle,
            options,
            timeline,
            ..
        } = &*self.source;
        let model = Model {
            directory,
            bundle,
            form: &self.form,
            options,
        };
        Ok(timeline.measure(step, || open(self.backend, &model))?)
    }
}

/// A model whose parts are there when they are needed, for all who share it.
#[derive(Debug)]
pub(crate) struct Opening {
    source: Arc<Source>,
    /// Others where an engine turned out not to work.
    roles: Replaceable<Roles>,
}

impl Opening {
    /// Begins to open the model of `source`.
    pub(crate) fn begin(source: &Arc<Source>) -> Opening {
        let inner = Arc::clone(source);
        Opening {
            source: Arc::clone(source),
            roles: Replaceable::new(Lazy::begin("opening", move || Roles::begin(&inner, None))),
        }
    }

    /// What is to be said about the choice of the engine so far.
    pub(crate) fn notices(&self) -> Vec<String> {
        self.source.notices()
    }

    /// Who computes, and with which graphs; waits for the choice, not for the parts.
    pub(crate) fn chosen(&self) -> Result<Arc<Roles>, EngineError> {
        self.roles.current().get()
    }

    /// Waits until every part is there; says how many nodes an accelerator took, where all parts say so.
    pub(crate) fn ready(&self) -> Result<Option<Placement>, EngineError> {
        let parts = [
            self.encoder()?.placement(),
            self.embedder()?.placement(),
            self.decoder()?.placement(),
        ];
        Ok(Placement::sum(&parts))
    }

    /// When the last part was there; `None` while some are not.
    pub(crate) fn finished(&self) -> Option<Instant> {
        let roles = self.chosen().ok()?;
        let parts = [
            roles.encoder.finished()?,
            roles.embedder.finished()?,
            roles.decoder.finished()?,
        ];
        parts.into_iter().max()
    }

    /// Whether another engine may be tried after this error. One that refuses a graph is replaced where another may be:
    /// without that leave its own words are the better ones.
    fn may_replace(&self, error: &EngineError) -> bool {
        match error {
            EngineError::Backend(error) => {
                error.is_unavailable() || (error.is_of_engine() && self.source.options.fallback)
            }
            _ => false,
        }
    }

    /// The parts on the engine that comes after the one of `roles`, of which one had this error.
    fn replace(&self, roles: &Roles, error: EngineError) -> Result<Lazy<Arc<Roles>>, EngineError> {
        let EngineError::Backend(error) = error else {
            return Err(error);
        };
        let begun = Roles::begin(&self.source, Some((roles.provider, error)))?;
        let again = Arc::clone(&self.source);
        Ok(Lazy::ready("opening", begun, move || Roles::begin(&again, None)))
    }

    /// Waits for a part. If its engine turns out not to work, or refuses it, the next one opens all of them.
    fn part<T>(&self, get: impl Fn(&Roles) -> Result<T, EngineError>) -> Result<T, EngineError> {
        self.roles.part(
            get,
            |error| self.may_replace(error),
            |roles, error| self.replace(roles, error),
        )
    }
}

/// The parts of a model, whoever has them.
pub(crate) trait Parts {
    /// Images to features.
    fn encoder(&self) -> Result<Arc<dyn VisionEncoder>, EngineError>;
    /// Ids to embeddings.
    fn embedder(&self) -> Result<Arc<dyn TokenEmbedder>, EngineError>;
    /// Sequences.
    fn decoder(&self) -> Result<Arc<dyn Decoder>, EngineError>;
    /// Longest sequence that the decoder takes; waits for the choice, not for the decoder.
    fn context(&self) -> Result<usize, EngineError>;
    /// Features of images that were encoded.
    fn features(&self) -> &Features;
}

impl Opening {
    pub(crate) fn encoder(&self) -> Result<Arc<dyn VisionEncoder>, EngineError> {
        self.part(|roles| roles.encoder.get())
    }

    pub(crate) fn embedder(&self) -> Result<Arc<dyn TokenEmbedder>, EngineError> {
        self.part(|roles| roles.embedder.get())
    }

    pub(crate) fn decoder(&self) -> Result<Arc<dyn Decoder>, EngineError> {
        self.part(|roles| roles.decoder.get())
    }

    pub(crate) fn context(&self) -> Result<usize, EngineError> {
        Ok(self.chosen()?.form.context(&self.source.bundle))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::DecoderState;
    use crate::backend::session::Session;
    use models::bundle::Target;
    use ndarray::{Array2, Array4, ArrayView4, array};
    use std::path::Path;

    /// An engine whose parts do nothing, or of which some turn out not to work.
    struct Fake {
        provider: Provider,
        decodes: bool,
    }

    struct Nothing;

    impl VisionEncoder for Nothing {
        fn encode(&self, pixels: ArrayView4<'_, f32>) -> Result<Array2<f32>, BackendError> {
            Ok(Array2::from_elem((1, 1), pixels.sum()))
        }
    }

    impl TokenEmbedder for Nothing {
        fn embed(&self, _: &[i64]) -> Result<Array2<f32>, BackendError> {
            Ok(Array2::zeros((0, 0)))
        }
    }

    impl Decoder for Nothing {
        fn start(self: Arc<Self>) -> Result<Box<dyn DecoderState>, BackendError> {
            Err(BackendError::NoBackend)
        }
    }

    impl Backend for Fake {
        fn provider(&self) -> Provider {
            self.provider
        }

        fn check(&self, _: &Options) -> Result<(), BackendError> {
            Ok(())
        }

        fn open_session(&self, _: &Path, _: &Options) -> Result<Box<dyn Session>, BackendError> {
            Err(BackendError::NoBackend)
        }

        fn targets(&self) -> &'static [Target] {
            &[Target::Portable]
        }

        fn vision_encoder(&self, _: &Model<'_>) -> Result<Arc<dyn VisionEncoder>, BackendError> {
            Ok(Arc::new(Nothing))
        }

        fn embedder(&self, _: &Model<'_>) -> Result<Arc<dyn TokenEmbedder>, BackendError> {
            Ok(Arc::new(Nothing))
        }

        fn decoder(&self, _: &Model<'_>) -> Result<Arc<dyn Decoder>, BackendError> {
            if self.decodes {
                return Ok(Arc::new(Nothing));
            }
            Err(BackendError::Unavailable {
                provider: self.provider,
                reason: "asked to fail".to_owned(),
            })
        }
    }

    const BROKEN: Fake = Fake {
        provider: Provider::OrtCoreMl,
        decodes: false,
    };
    const WHOLE: Fake = Fake {
        provider: Provider::Cpu,
        decodes: true,
    };

    fn source(choose: Choose) -> Arc<Source> {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/bundle");
        Arc::new(Source {
            bundle: Bundle::open(&directory).unwrap(),
            directory,
            options: Options::default(),
            timeline: Timeline::begin(),
            choose,
            notices: Mutex::default(),
        })
    }

    #[test]
    fn an_engine_that_fails_later_is_replaced_as_a_whole() {
        let source = source(|_, _, failed| {
            Ok(match failed {
                None => Choice {
                    backend: &BROKEN,
                    notice: None,
                },
                Some((provider, error)) => Choice {
                    backend: &WHOLE,
                    notice: Some(format!("{provider}: {error}")),
                },
            })
        });
        let opening = Opening::begin(&source);
        let old = opening.encoder().unwrap();
        assert_eq!(opening.chosen().unwrap().provider, Provider::OrtCoreMl);
        assert_eq!(opening.notices(), [""; 0]);
        assert!(opening.decoder().is_ok());
        assert_eq!(opening.chosen().unwrap().provider, Provider::Cpu);
        // Who has a part of the old one keeps it.
        let pixels = Array4::ones((1, 1, 1, 1));
        assert_eq!(old.encode(pixels.view()).unwrap(), array![[1.0_f32]]);
        let notices = opening.notices();
        assert!(
            notices.len() == 1 && notices[0].contains("asked to fail"),
            "{notices:?}"
        );
        opening.ready().unwrap();
        assert!(opening.finished().is_some());
        let steps = source.timeline.take();
        let loads = steps.iter().filter(|step| step.step == "load decoder").count();
        assert_eq!(loads, 2, "{steps:?}");
    }

    #[test]
    fn conversations_that_need_it_at_once_replace_an_engine_once() {
        let source = source(|_, _, failed| {
            let backend: &'static dyn Backend = if failed.is_none() { &BROKEN } else { &WHOLE };
            Ok(Choice {
                backend,
                notice: failed.map(|(provider, error)| format!("{provider}: {error}")),
            })
        });
        let opening = Opening::begin(&source);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| assert!(opening.decoder().is_ok()));
            }
        });
        assert_eq!(opening.chosen().unwrap().provider, Provider::Cpu);
        assert_eq!(opening.notices().len(), 1);
    }

    #[test]
    fn without_another_engine_it_is_an_error_each_time() {
        let source = source(|_, _, failed| match failed {
            None => Ok(Choice {
                backend: &BROKEN,
                notice: None,
            }),
            Some((_, error)) => Err(error.into()),
        });
        let opening = Opening::begin(&source);
        for _ in 0..2 {
            let error = opening.decoder().map(|_| ()).unwrap_err();
            assert!(error.to_string().contains("asked to fail"), "{error}");
            assert!(error.is_about_model());
        }
        assert!(opening.encoder().is_ok());
    }
}
