//! What does one process measure? It opens one combination as any program does, has it answer in
//! conversations of their own as often as it is told, and takes what the runtime says of the last one.

use super::Settings;
use crate::loaded::{self, Combination, picture};
use crate::setup::error::{CaseError, Context};
use runtime::image::Picture;
use runtime::{Answer, Conversation, Message, Model, Request};
use serde::{Deserialize, Serialize};
use std::time::{Duration, Instant};

/// Tokens after the first in a run that does not count: the first step can be slower, the others are like it.
const WARM_UP_TOKENS: usize = 2;

/// One measurement, in seconds and bytes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// Which instruction set our kernels used; `None` where the engine's own ran all of it.
    pub isa: Option<String>,
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
    /// Most memory that the process held, before scenes are described.
    pub peak_memory: Option<u64>,
    /// Scenes that were described in a second, where that was asked for.
    pub images_per_second: Option<f64>,
}

/// Measures a combination in this process.
///
/// # Errors
/// A combination that cannot be opened, or an engine that gives up.
pub fn measure(settings: &Settings, combination: &Combination) -> Result<Sample, CaseError> {
    let picture = picture(settings.image.as_deref())?;
    let begun = Instant::now();
    let model = loaded::open(&settings.model, combination, &settings.options())?;
    let load = begun.elapsed().as_secs_f64();
    let image = model
        .preprocess(&picture)
        .during(|| "preprocessing".to_owned())?
        .id;
    loaded::prompt(&model, Some(image), &settings.prompt, settings.decode_tokens)?;
    for _ in 0..settings.warm_up {
        let tokens = settings.decode_tokens.min(WARM_UP_TOKENS);
        run(&model, &picture, &settings.prompt, tokens)?;
    }
    let sample = run(&model, &picture, &settings.prompt, settings.decode_tokens)?;
    let kernels = model.provider().during(|| "opening".to_owned())?.kernels;
    let peak_memory = runtime::stats::peak_memory();
    Ok(Sample {
        isa: kernels.map(|kernels| kernels.isa.to_owned()),
        load,
        peak_memory,
        images_per_second: throughput(&model, settings)?,
        ..sample
    })
}

/// How many painted scenes are described in a second, each with [`Settings::decode_tokens`] tokens, by a program that has
/// the bundle open: as `fvlm-run` describes a folder. Painting does not count.
fn throughput(model: &Model, settings: &Settings) -> Result<Option<f64>, CaseError> {
    let answering = || "describing scenes".to_owned();
    if settings.scenes == 0 {
        return Ok(None);
    }
    model.forget_features();
    let request = Request::default()
        .with_max_tokens(settings.decode_tokens)
        .with_past_end();
    let mut painting = Duration::ZERO;
    let begun = Instant::now();
    let mut seeds = (1_u64..).take(settings.scenes);
    let mut idle: Vec<Conversation> = Vec::new();
    let mut answers: Vec<Answer<'static>> = Vec::new();
    loop {
        while answers.len() < settings.batch
            && let Some(seed) = seeds.next()
        {
            let before = Instant::now();
            let picture = loaded::scene(seed)?;
            painting += before.elapsed();
            let mut conversation = idle.pop().unwrap_or_else(|| model.conversation());
            conversation.forget_images();
            let image = conversation.add_image(&picture).during(answering)?;
            let messages = [Message::user([image], settings.prompt.clone())];
            let answer = conversation.into_chat(&messages, &request);
            answers.push(answer.map_err(|refused| refused.1).during(answering)?);
        }
        if answers.is_empty() {
            break;
        }
        for piece in Answer::next_together(&mut answers.iter_mut().collect::<Vec<_>>()) {
            piece.transpose().during(answering)?;
        }
        let (over, rest): (Vec<_>, Vec<_>) =
            answers.into_iter().partition(|answer| answer.finish().is_some());
        idle.extend(over.into_iter().filter_map(Answer::into_conversation));
        answers = rest;
    }
    let seconds = begun.elapsed().saturating_sub(painting).as_secs_f64();
    Ok(Some(settings.scenes as f64 / seconds))
}

/// Image and question to `tokens` tokens after the first, in a conversation of its own: nothing is known of
/// the run before. Whatever comes is fed, also what would end an answer.
fn run(model: &Model, picture: &Picture, question: &str, tokens: usize) -> Result<Sample, CaseError> {
    let answering = || "answering".to_owned();
    model.forget_features();
    let mut conversation = model.conversation();
    let request = Request::default()
        .with_max_tokens(tokens.saturating_add(1))
        .with_past_end();
    let mut answer = conversation
        .describe(picture, question, &request)
        .during(answering)?;
    answer.text().during(answering)?;
    let (stats, found) = (answer.stats(), answer.tokens().len());
    let (Some(first_token), true) = (stats.time_to_first_token, found == request.max_tokens) else {
        return Err(CaseError::Failed {
            context: answering(),
            message: format!("{found} tokens came, expected {}", request.max_tokens),
        });
    };
    Ok(Sample {
        isa: None,
        prompt_tokens: stats.prompt_positions,
        load: 0.0,
        preprocess: stats.preprocess,
        encode: stats.encode,
        prefill: stats.prefill,
        first_token,
        decode: stats.tokens_per_second.map_or(0.0, f64::recip),
        peak_memory: None,
        images_per_second: None,
    })
}
