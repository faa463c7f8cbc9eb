//! How does a bundle become a model? Each part is opened on a thread of its own and joined when it is first needed, so
//! that the image is encoded while the decoder still loads.

use crate::backend::{self, Backend, Choice, Decoder, Form, Model, Options, TokenEmbedder, VisionEncoder};
use crate::backend::{Provider, session::Placement};
use crate::error::{BackendError, EngineError};
use crate::lazy::Lazy;
use crate::timeline::Timeline;
use models::bundle::Bundle;
use std::path::PathBuf;
use std::sync::Arc;
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
}

/// From a bundle, and the provider that turned out not to work when it was opened, to the engine that is to open it.
pub(crate) type Choose =
    fn(&Bundle, &Options, Option<(Provider, BackendError)>) -> Result<Choice, EngineError>;

/// A model on the engine that was chosen for it.
#[derive(Debug)]
struct Roles {
    provider: Provider,
    form: Form,
    notice: Option<String>,
    encoder: Lazy<Box<dyn VisionEncoder>>,
    embedder: Lazy<Box<dyn TokenEmbedder>>,
    decoder: Lazy<Box<dyn Decoder>>,
}

impl Roles {
    /// Chooses the engine, which loads its library, and begins to open the parts.
    fn begin(source: &Arc<Source>, failed: Option<(Provider, BackendError)>) -> Result<Roles, EngineError> {
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
        let open = Open {
            source: Arc::clone(source),
            backend,
            form: form.clone(),
        };
        // The first that is needed is the first that begins.
        let (first, second, third) = (open.clone(), open.clone(), open);
        Ok(Roles {
            provider: backend.provider(),
            form,
            notice,
            encoder: Lazy::begin("encoder", move || {
                first.part("load encoder", |backend, model| backend.vision_encoder(model))
            }),
            decoder: Lazy::begin("decoder", move || {
                second.part("load decoder", |backend, model| backend.decoder(model))
            }),
            embedder: Lazy::begin("embeddings", move || {
                third.part("load embeddings", |backend, model| backend.embedder(model))
            }),
        })
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

/// A model whose parts are there when they are needed.
#[derive(Debug)]
pub(crate) struct Opening {
    source: Arc<Source>,
    roles: Lazy<Roles>,
    /// What is to be said about the choice of the engine, and how much of it was.
    notices: Vec<String>,
    told: usize,
}

impl Opening {
    /// Begins to open the model of `source`.
    pub(crate) fn begin(source: &Arc<Source>) -> Opening {
        let inner = Arc::clone(source);
        Opening {
            source: Arc::clone(source),
            roles: Lazy::begin("opening", move || Roles::begin(&inner, None)),
            notices: Vec::new(),
            told: 0,
        }
    }

    /// What is to be said about the choice of the engine, since this was last asked.
    pub(crate) fn take_notices(&mut self) -> Vec<String> {
        let new = self.notices[self.told..].to_vec();
        self.told = self.notices.len();
        new
    }

    /// All of what was to be said about it.
    pub(crate) fn notices(&self) -> &[String] {
        &self.notices
    }

    /// Who computes, and with which graphs; waits for the choice, not for the parts.
    pub(crate) fn chosen(&mut self) -> Result<(Provider, &Form), EngineError> {
        let roles = self.roles()?;
        Ok((roles.provider, &roles.form))
    }

    /// Waits until every part is there; says how many nodes an accelerator took, where all parts say so.
    pub(crate) fn ready(&mut self) -> Result<Option<Placement>, EngineError> {
        let parts = [
            self.encoder()?.placement(),
            self.embedder()?.placement(),
            self.decoder()?.placement(),
        ];
        Ok(Placement::sum(&parts))
    }

    /// When the last part was there; `None` while some are not.
    pub(crate) fn finished(&mut self) -> Option<Instant> {
        let roles = self.roles.get().ok()?;
        let parts = [
            roles.encoder.finished()?,
            roles.embedder.finished()?,
            roles.decoder.finished()?,
        ];
        parts.into_iter().max()
    }

    fn roles(&mut self) -> Result<&mut Roles, EngineError> {
        let roles = self.roles.get()?;
        self.notices.extend(roles.notice.take());
        Ok(roles)
    }

    /// Waits for a part. If its engine turns out not to work, the next one opens all of them.
    fn part<T>(
        &mut self,
        get: impl Fn(&mut Roles) -> Result<&mut T, EngineError>,
    ) -> Result<&mut T, EngineError> {
        loop {
            let roles = self.roles()?;
            match get(roles) {
                Ok(_) => break,
                Err(EngineError::Backend(error)) if error.is_unavailable() => {
                    let failed = (roles.provider, error);
                    let roles = Roles::begin(&self.source, Some(failed))?;
                    let again = Arc::clone(&self.source);
                    self.roles = Lazy::ready("opening", roles, move || Roles::begin(&again, None));
                }
                Err(error) => return Err(error),
            }
        }
        get(self.roles.get()?)
    }
}

/// The parts of a model, whoever has them.
pub(crate) trait Parts {
    /// Images to features.
    fn encoder(&mut self) -> Result<&mut dyn VisionEncoder, EngineError>;
    /// Ids to embeddings.
    fn embedder(&mut self) -> Result<&mut dyn TokenEmbedder, EngineError>;
    /// The sequence.
    fn decoder(&mut self) -> Result<&mut dyn Decoder, EngineError>;
    /// Longest sequence that the decoder takes; waits for the choice, not for the decoder.
    fn context(&mut self) -> Result<usize, EngineError>;
}

impl Parts for Opening {
    fn encoder(&mut self) -> Result<&mut dyn VisionEncoder, EngineError> {
        Ok(&mut **self.part(|roles| roles.encoder.get())?)
    }

    fn embedder(&mut self) -> Result<&mut dyn TokenEmbedder, EngineError> {
        Ok(&mut **self.part(|roles| roles.embedder.get())?)
    }

    fn decoder(&mut self) -> Result<&mut dyn Decoder, EngineError> {
        Ok(&mut **self.part(|roles| roles.decoder.get())?)
    }

    fn context(&mut self) -> Result<usize, EngineError> {
        let source = Arc::clone(&self.source);
        Ok(self.roles()?.form.context(&source.bundle))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::session::Session;
    use models::bundle::Target;
    use std::path::Path;

    /// An engine whose parts do nothing, or of which some turn out not to work.
    struct Fake {
        provider: Provider,
        decodes: bool,
    }

    struct Nothing;

    impl VisionEncoder for Nothing {
        fn encode(&mut self, pixels: &[f32], _: usize, _: usize) -> Result<Vec<f32>, BackendError> {
            Ok(pixels.to_vec())
        }
    }

    impl TokenEmbedder for Nothing {
        fn embed(&mut self, _: &[i64]) -> Result<Vec<f32>, BackendError> {
            Ok(Vec::new())
        }
    }

    impl Decoder for Nothing {
        fn feed(&mut self, _: &[f32]) -> Result<Vec<f32>, BackendError> {
            Ok(Vec::new())
        }

        fn len(&self) -> usize {
            0
        }

        fn truncate(&mut self, _: usize) -> Result<(), BackendError> {
            Ok(())
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

        fn vision_encoder(&self, _: &Model<'_>) -> Result<Box<dyn VisionEncoder>, BackendError> {
            Ok(Box::new(Nothing))
        }

        fn embedder(&self, _: &Model<'_>) -> Result<Box<dyn TokenEmbedder>, BackendError> {
            Ok(Box::new(Nothing))
        }

        fn decoder(&self, _: &Model<'_>) -> Result<Box<dyn Decoder>, BackendError> {
            if self.decodes {
                return Ok(Box::new(Nothing));
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
        let mut opening = Opening::begin(&source);
        assert_eq!(opening.encoder().unwrap().encode(&[1.0], 1, 1).unwrap(), [1.0]);
        assert_eq!(opening.chosen().unwrap().0, Provider::OrtCoreMl);
        assert_eq!(opening.take_notices(), [""; 0]);
        assert!(opening.decoder().unwrap().is_empty());
        assert_eq!(opening.chosen().unwrap().0, Provider::Cpu);
        let notices = opening.take_notices();
        assert!(
            notices.len() == 1 && notices[0].contains("asked to fail"),
            "{notices:?}"
        );
        opening.ready().unwrap();
        assert!(opening.finished().is_some());
        assert_eq!(opening.take_notices(), [""; 0]);
        let steps = source.timeline.take();
        let loads = steps.iter().filter(|step| step.step == "load decoder").count();
        assert_eq!(loads, 2, "{steps:?}");
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
        let mut opening = Opening::begin(&source);
        for _ in 0..2 {
            let error = opening.decoder().map(|_| ()).unwrap_err();
            assert!(error.to_string().contains("asked to fail"), "{error}");
            assert!(error.is_about_model());
        }
        assert!(opening.encoder().is_ok());
    }
}
