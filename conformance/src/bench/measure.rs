//! What does one process measure? It opens one combination, runs it without a clock as often as it is told, and once
//! with one.

use super::Settings;
use crate::golden::argmax;
use crate::loaded::{Combination, Loaded, picture};
use crate::setup::error::CaseError;
use ndarray::Array1;
use runtime::image::Picture;
use serde::{Deserialize, Serialize};
use std::time::Instant;

/// Tokens after the first in a run that does not count: the first step can be slower, the others are like it.
const WARM_UP_TOKENS: usize = 2;

/// One measurement, in seconds and bytes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// Positions of the prompt.
    pub prompt_tokens: usize,
    /// Opening the bundle.
    pub load: f64,
    /// From RGB bytes to `pixel_values`.
    pub preprocess: f64,
    /// The vision encoder.
    pub encode: f64,
    /// Embedding and decoder over the prompt.
    pub prefill: f64,
    /// From RGB bytes and the question to the first token.
    pub first_token: f64,
    /// Per token after the first.
    pub decode: f64,
    /// Most memory that the process held.
    pub peak_memory: Option<u64>,
}

/// Measures a combination in this process.
///
/// # Errors
/// A combination that cannot be opened, or an engine that gives up.
pub fn measure(settings: &Settings, combination: &Combination) -> Result<Sample, CaseError> {
    let picture = picture(settings.image.as_deref())?;
    let begun = Instant::now();
    let mut loaded = Loaded::open(&settings.model, combination, &settings.options())?;
    let load = begun.elapsed().as_secs_f64();
    for _ in 0..settings.warm_up {
        let tokens = settings.decode_tokens.min(WARM_UP_TOKENS);
        run(&mut loaded, &picture, &settings.prompt, tokens)?;
    }
    let sample = run(&mut loaded, &picture, &settings.prompt, settings.decode_tokens)?;
    Ok(Sample {
        load,
        peak_memory: runtime::stats::peak_memory(),
        ..sample
    })
}

/// Image and question to `tokens` tokens after the first; whatever comes is fed, also what would end an answer.
fn run(loaded: &mut Loaded, picture: &Picture, question: &str, tokens: usize) -> Result<Sample, CaseError> {
    let begun = Instant::now();
    let pixels = loaded.preprocess(picture)?;
    let preprocess = begun.elapsed().as_secs_f64();

    let encoding = Instant::now();
    let features = loaded.encode(&pixels)?;
    let encode = encoding.elapsed().as_secs_f64();

    let prompt = loaded.prompt(Some(pixels.id), question)?;
    loaded.check_room(&prompt, tokens)?;
    let prefilling = Instant::now();
    let logits = loaded.prefill(&prompt, features.view())?;
    let prefill = prefilling.elapsed().as_secs_f64();

    let mut next = best(&logits)?;
    let first = Instant::now();
    for _ in 0..tokens {
        next = best(&loaded.step(next)?)?;
    }
    let decode = first.elapsed().as_secs_f64() / tokens.max(1) as f64;
    Ok(Sample {
        prompt_tokens: prompt.len(),
        load: 0.0,
        preprocess,
        encode,
        prefill,
        first_token: first.duration_since(begun).as_secs_f64(),
        decode,
        peak_memory: None,
    })
}

fn best(logits: &Array1<f32>) -> Result<i64, CaseError> {
    let best = argmax(logits.as_slice().unwrap_or_default()).and_then(|best| i64::try_from(best).ok());
    best.ok_or_else(|| CaseError::Failed {
        context: "choosing a token".to_owned(),
        message: "there are no logits".to_owned(),
    })
}
