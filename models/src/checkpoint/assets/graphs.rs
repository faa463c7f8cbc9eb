//! Graphs that others exported: do the files beside them say the same of images as `config.json`?

use super::{Files, IMAGE_TOKEN, text};
use crate::checkpoint::error::CheckpointError;
use crate::config::{CONFIG, Declared, ModelConfig, PROCESSOR};
use serde_json::Value;

/// Compares what the files state of the image token and of an image's positions, as far as they state it.
///
/// # Errors
/// The first contradiction.
pub(super) fn check(files: &Files<'_>, declared: &Declared) -> Result<(), CheckpointError> {
    let stated = ["image_token_index", "image_token_id"]
        .into_iter()
        .find_map(|name| Some((name, declared.fields.get(name).filter(|value| !value.is_null())?)));
    if let (Some((name, stated)), Some(tokenizer)) = (stated, files.json("tokenizer.json")?) {
        let known = text::Ids::of(&tokenizer).added.get(IMAGE_TOKEN).copied();
        if known.is_none() || stated.as_i64() != known {
            let found = known.map_or("no such token".to_owned(), |id| format!("id {id}"));
            let problem = format!(
                "`{name}` is {stated}, tokenizer.json has {found} for `{IMAGE_TOKEN}`, expected the same"
            );
            return Err(files.config(CONFIG, problem));
        }
    }
    match processor_problems(files, &declared.config)? {
        problems if problems.is_empty() => Ok(()),
        problems => Err(CheckpointError::Config {
            path: files.path(PROCESSOR),
            problems,
        }),
    }
}

/// What transformers' own processor of images and text states, and the tower has otherwise.
///
/// # Errors
/// A file that cannot be read or is no JSON object.
pub(super) fn processor_problems(
    files: &Files<'_>,
    config: &ModelConfig,
) -> Result<Vec<String>, CheckpointError> {
    let Some(processor) = files.json(PROCESSOR)? else {
        return Ok(Vec::new());
    };
    // The strategy of that name takes one away.
    let strategy = processor.get("vision_feature_select_strategy");
    let additional = u64::from(strategy.is_some_and(|strategy| strategy == "default"));
    let differs = |(name, expected): (&str, Value)| {
        let found = processor.get(name).filter(|value| !value.is_null())?;
        let problem =
            || format!("`{name}` is {found}, expected {expected}, as config.json and the tower have it");
        (*found != expected).then(problem)
    };
    let expected = [
        ("image_token", Value::from(IMAGE_TOKEN)),
        ("patch_size", Value::from(config.vision.token_side())),
        ("num_additional_image_tokens", Value::from(additional)),
    ];
    Ok(expected.into_iter().filter_map(differs).collect())
}
