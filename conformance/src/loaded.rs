//! What do `bench` and `quality` work on? One exported form of a bundle on one engine, and its parts, ready
//! to compute.

use crate::golden::argmax;
use crate::setup::error::{CaseError, Context};
use crate::synth;
use models::bundle::{Bundle, Precision, Target};
use ndarray::{Array1, Array2, ArrayView2};
use runtime::backend::{self, DecoderState, TokenEmbedder, VisionEncoder};
use runtime::image::{ImageId, Limits, Picture, PixelValues};
use runtime::prompt::{Message, Prompt, Span, token_ids};
use runtime::splice::splice;
use runtime::{Model, Options, Provider};
use serde::Serialize;
use std::fmt;
use std::path::Path;
use std::sync::Arc;

/// Edges of painted scenes.
const SCENE: (u32, u32) = (1280, 960);

/// Seed of the scene that is looked at where no image is given.
const SEED: u64 = 1;

/// One exported form on one engine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Combination {
    /// Who computes.
    pub provider: Provider,
    /// For what the graphs were lowered.
    pub target: Target,
    /// In which precision they were exported.
    pub precision: Precision,
}

impl Combination {
    /// `cpu portable fp32`
    pub fn name(&self) -> String {
        format!("{} {} {}", self.provider, self.target, self.precision)
    }
}

/// The forms of bundles that `targets` and `precisions` name, in their order: the number of the bundle,
/// target and precision. An empty list names all.
///
/// # Errors
/// A sentence on what is named and in no bundle, or on two lists that have no form in common.
pub fn forms(
    bundles: &[&Bundle],
    targets: &[Target],
    precisions: &[Precision],
) -> Result<Vec<(usize, Target, Precision)>, String> {
    let mut forms = Vec::new();
    for (number, bundle) in bundles.iter().enumerate() {
        let variants = bundle.variants.iter();
        forms.extend(variants.map(|variant| (number, variant.target, variant.precision)));
    }
    let mut found: Vec<String> = Vec::new();
    for (_, target, precision) in &forms {
        let name = format!("{target} {precision}");
        if !found.contains(&name) {
            found.push(name);
        }
    }
    let found = found.join(", ");
    let absent = |name: String| format!("there is no {name} in the bundle, found {found}");
    let mut absent_targets = targets
        .iter()
        .filter(|asked| !forms.iter().any(|form| form.1 == **asked));
    let mut absent_precisions = precisions
        .iter()
        .filter(|asked| !forms.iter().any(|form| form.2 == **asked));
    let problem = match (absent_targets.next(), absent_precisions.next()) {
        (Some(target), _) => Some(absent(format!("target `{target}`"))),
        (None, Some(precision)) => Some(absent(format!("precision `{precision}`"))),
        (None, None) => None,
    };
    if let Some(problem) = problem {
        return Err(problem);
    }
    forms.retain(|(_, target, precision)| {
        (targets.is_empty() || targets.contains(target))
            && (precisions.is_empty() || precisions.contains(precision))
    });
    if forms.is_empty() {
        return Err(format!(
            "there is no target {} in precision {} in the bundle, found {found}",
            names(targets),
            names(precisions),
        ));
    }
    Ok(forms)
}

fn names(asked: &[impl ToString]) -> String {
    let names: Vec<String> = asked.iter().map(ToString::to_string).collect();
    names.join(" or ")
}

/// A provider that is left out, and why.
pub type Missing = (Provider, String);

/// The providers that are asked for, of which each must work here; or, where none is, all that do, and why
/// the others do not.
///
/// # Errors
/// The provider that was asked for and does not work here, or that none does.
pub fn providers(asked: &[Provider], options: &Options) -> Result<(Vec<Provider>, Vec<Missing>), CaseError> {
    let (mut found, mut missing): (Vec<Provider>, Vec<Missing>) = (Vec::new(), Vec::new());
    for &provider in asked {
        let choice = backend::choose(provider, provider == Provider::Auto, options)
            .during(|| "choosing who computes".to_owned())?;
        let provider = choice.backend.provider();
        if !found.contains(&provider) {
            found.push(provider);
        }
    }
    if !asked.is_empty() {
        return Ok((found, missing));
    }
    for backend in backend::backends() {
        let provider = backend.provider();
        // Elsewhere nobody misses it.
        if provider == Provider::OrtCoreMl && !cfg!(target_os = "macos") {
            continue;
        }
        match backend
            .check(options)
            .and_then(|()| backend.check_form(None, options))
        {
            Ok(()) => found.push(provider),
            Err(error) => missing.push((provider, error.to_string())),
        }
    }
    if found.is_empty() {
        let reasons: Vec<&str> = missing.iter().map(|(_, reason)| reason.as_str()).collect();
        return Err(CaseError::Failed {
            context: "choosing who computes".to_owned(),
            message: format!("no engine works here: {}", reasons.join("; ")),
        });
    }
    Ok((found, missing))
}

/// A painted scene.
///
/// # Errors
/// A scene without pixels: a bug.
pub fn scene(seed: u64) -> Result<Picture, CaseError> {
    let (width, height) = SCENE;
    let scene = Picture::new(width, height, synth::image::scene(width, height, seed));
    scene.ok_or_else(|| CaseError::Failed {
        context: "painting a scene".to_owned(),
        message: format!("{width} x {height} has no pixels"),
    })
}

/// The image in `path`, or a painted scene.
///
/// # Errors
/// A file that is no image.
pub fn picture(path: Option<&Path>) -> Result<Picture, CaseError> {
    let Some(path) = path else {
        return scene(SEED);
    };
    runtime::image::open(path, &Limits::default()).during(|| "opening the image".to_owned())
}

/// The name of what [`picture`] gives.
pub fn picture_name(path: Option<&Path>) -> String {
    let ((width, height), seed) = (SCENE, SEED);
    match path {
        Some(path) => path
            .file_name()
            .map(|name| name.to_string_lossy().into_owned())
            .unwrap_or_default(),
        None => format!("scene {width} x {height}, seed {seed}"),
    }
}

/// Opens a bundle's form on its engine, all of it.
///
/// # Errors
/// A bundle that breaks its contract, a form that it does not have, or an engine that refuses it.
pub fn open(directory: &Path, combination: &Combination, options: &Options) -> Result<Model, CaseError> {
    let opening = || format!("opening {}", combination.name());
    let mut options = options.clone();
    options.provider = combination.provider;
    options.fallback = false;
    options.target = Some(combination.target);
    options.precision = Some(combination.precision);
    let model = Model::open(directory, &options).during(opening)?;
    model.ready().during(opening)?;
    Ok(model)
}

/// The prompt of a question about an image, or about none, after which `tokens` more fit.
///
/// # Errors
/// A question that the template refuses, or no room for so many.
pub fn prompt(
    model: &Model,
    image: Option<ImageId>,
    question: &str,
    tokens: usize,
) -> Result<Prompt, CaseError> {
    let building = || "building the prompt".to_owned();
    let images: Vec<ImageId> = image.into_iter().collect();
    let prompter = model.prompter().during(building)?;
    let prompt = prompter
        .build(&[Message::user(images, question)])
        .during(building)?;
    let (positions, room) = (prompt.len(), model.bundle().kv.max_context);
    if positions.saturating_add(tokens) <= room {
        return Ok(prompt);
    }
    Err(CaseError::Failed {
        context: building(),
        message: format!("{positions} positions and {tokens} tokens, expected at most {room} together"),
    })
}

/// A form of a bundle whose logits are looked at: the roles of a [`Model`], and one sequence that is fed what
/// a script says. Nothing else feeds a model token by token; who wants answers has them from a
/// [`runtime::Conversation`].
pub struct Loaded {
    /// What it is of.
    pub model: Model,
    encoder: Arc<dyn VisionEncoder>,
    embedder: Arc<dyn TokenEmbedder>,
    sequence: Box<dyn DecoderState>,
}

impl fmt::Debug for Loaded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Loaded").finish_non_exhaustive()
    }
}

impl Loaded {
    /// Opens a bundle's form.
    ///
    /// # Errors
    /// As [`open`].
    pub fn open(directory: &Path, combination: &Combination, options: &Options) -> Result<Loaded, CaseError> {
        let opening = || format!("opening {}", combination.name());
        let model = open(directory, combination, options)?;
        Ok(Loaded {
            encoder: model.vision_encoder().during(opening)?,
            embedder: model.token_embedder().during(opening)?,
            sequence: model.decoder().during(opening)?.start().during(opening)?,
            model,
        })
    }

    /// The bundle's contract.
    pub fn bundle(&self) -> &Bundle {
        self.model.bundle()
    }

    /// Image features `[tokens, hidden]`.
    ///
    /// # Errors
    /// What the engine says, or features of another size than the bundle's.
    pub fn encode(&self, pixels: &PixelValues) -> Result<Array2<f32>, CaseError> {
        let running = || "running the vision encoder".to_owned();
        let features = self.encoder.encode(pixels.values.view()).during(running)?;
        let expected = (self.bundle().image.tokens, self.bundle().prompt.hidden_size);
        if features.dim() != expected {
            return Err(CaseError::Failed {
                context: running(),
                message: format!("features of {:?}, expected {expected:?}", features.dim()),
            });
        }
        Ok(features)
    }

    /// Empties the sequence, feeds a prompt whose images all have these features `[tokens, hidden]`, and
    /// returns the logits `[vocab]` that follow.
    ///
    /// # Errors
    /// What the engine says.
    pub fn prefill(
        &mut self,
        prompt: &Prompt,
        features: ArrayView2<'_, f32>,
    ) -> Result<Array1<f32>, CaseError> {
        let prefilling = || "feeding the prompt".to_owned();
        self.sequence.truncate(0).during(prefilling)?;
        let embeds = self.embeds(prompt, features)?;
        self.sequence.feed(embeds.view()).during(prefilling)
    }

    /// What is fed of a prompt whose images all have these features `[tokens, hidden]`: `[positions, hidden]`.
    ///
    /// # Errors
    /// What the engine says.
    pub fn embeds(&self, prompt: &Prompt, features: ArrayView2<'_, f32>) -> Result<Array2<f32>, CaseError> {
        let embedding = || "embedding the prompt".to_owned();
        let spans = prompt.spans(0);
        let text = self.embedder.embed(&token_ids(&spans)).during(embedding)?;
        let images = spans.iter().filter(|span| matches!(span, Span::Image { .. }));
        let images: Vec<ArrayView2<'_, f32>> = images.map(|_| features).collect();
        let hidden = self.bundle().prompt.hidden_size;
        splice(&spans, text.view(), &images, hidden).during(embedding)
    }

    /// What is fed of tokens: `[positions, hidden]`.
    ///
    /// # Errors
    /// What the engine says.
    pub fn embed(&self, ids: &[i64]) -> Result<Array2<f32>, CaseError> {
        self.embedder.embed(ids).during(|| "embedding tokens".to_owned())
    }

    /// Feeds a prompt and what is likeliest after it, until a stop token, which is not among the tokens that are
    /// returned; at most `limit`.
    ///
    /// # Errors
    /// What the engine says.
    pub fn greedy(
        &mut self,
        prompt: &Prompt,
        features: ArrayView2<'_, f32>,
        limit: usize,
    ) -> Result<Vec<i64>, CaseError> {
        let mut logits = self.prefill(prompt, features)?;
        let mut ids = Vec::new();
        while ids.len() < limit {
            let next = argmax(logits.iter()).and_then(|next| i64::try_from(next).ok());
            let Some(next) = next else { break };
            if self.bundle().prompt.stop_ids.contains(&next) {
                break;
            }
            ids.push(next);
            logits = self.step(next)?;
        }
        Ok(ids)
    }

    /// Feeds one token and returns the logits `[vocab]` that follow.
    ///
    /// # Errors
    /// What the engine says.
    pub fn step(&mut self, id: i64) -> Result<Array1<f32>, CaseError> {
        let stepping = || format!("feeding token {id}");
        let embeds = self.embedder.embed(&[id]).during(stepping)?;
        self.sequence.feed(embeds.view()).during(stepping)
    }
}
