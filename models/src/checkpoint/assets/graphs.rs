//! Graphs that others exported: do the files beside them say the same of images as `config.json`?

use super::{Files, IMAGE_TOKEN, text};
use crate::checkpoint::error::CheckpointError;
use crate::config::{CONFIG, Declared};
use serde_json::Value;

/// transformers' own processor of images and text.
const PROCESSOR: &str = "processor_config.json";

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
    let Some(processor) = files.json(PROCESSOR)? else {
        return Ok(());
    };
    let config = &declared.config;
    let differs = |name: &str, expected: Value| -> Option<CheckpointError> {
        let found = processor.get(name).filter(|value| !value.is_null())?;
        let problem =
            || format!("`{name}` is {found}, expected {expected}, as config.json and the tower have it");
        (*found != expected).then(|| files.config(PROCESSOR, problem()))
    };
    let problem = differs("image_token", Value::from(IMAGE_TOKEN))
        .or_else(|| differs("patch_size", Value::from(config.vision.token_side())))
        .or_else(|| differs("num_additional_image_tokens", Value::from(0)));
    problem.map_or(Ok(()), Err)
}
