//! What in `tokenizer.json` makes other ids than a runtime of ours does, whose texts are cut at images and get no
//! tokens but those of the template? It is refused, for answers would silently be others than transformers'.

use super::tokens::{TOKENIZER, TOKENIZER_CONFIG};
use super::{Files, IMAGE_TOKEN};
use crate::checkpoint::error::CheckpointError;
use serde_json::Value;

/// What transformers makes of these around an image: white space disappears, or it is no image.
const FLAGS: [&str; 3] = ["lstrip", "rstrip", "single_word"];

/// Refuses what is not done here. `config` is `tokenizer_config.json`, whose flags of a token count, too.
///
/// # Errors
/// Everything of it.
pub(super) fn check(files: &Files<'_>, tokenizer: &Value, config: &Value) -> Result<(), CheckpointError> {
    let mut problems = Vec::new();
    if let Some(dropout) = tokenizer
        .pointer("/model/dropout")
        .filter(|dropout| !dropout.is_null() && dropout.as_f64() != Some(0.0))
    {
        problems.push(format!(
            "`model.dropout` is {dropout}, by which every reading would give other tokens: expected null"
        ));
    }
    if let Some(processor) = tokenizer.get("post_processor") {
        adds_tokens(processor, "post_processor", &mut problems);
    }
    let tokens = tokenizer.get("added_tokens").and_then(Value::as_array);
    image_flags(tokens.into_iter().flatten(), "added_tokens", &mut problems);
    let mut of_config = Vec::new();
    let tokens = config.get("added_tokens_decoder").and_then(Value::as_object);
    let tokens = tokens.into_iter().flatten().map(|(_, token)| token);
    image_flags(tokens, "added_tokens_decoder", &mut of_config);
    for (file, problems) in [(TOKENIZER, problems), (TOKENIZER_CONFIG, of_config)] {
        if !problems.is_empty() {
            return Err(CheckpointError::Config {
                path: files.path(file),
                problems,
            });
        }
    }
    Ok(())
}

/// Refuses an image token that takes more than itself, or is one only between spaces.
fn image_flags<'a>(tokens: impl Iterator<Item = &'a Value>, field: &str, problems: &mut Vec<String>) {
    let is_image = |token: &&Value| token.get("content").and_then(Value::as_str) == Some(IMAGE_TOKEN);
    for token in tokens.filter(is_image) {
        for flag in FLAGS {
            if token.get(flag).and_then(Value::as_bool) == Some(true) {
                problems.push(format!(
                    "`{field}` has `{IMAGE_TOKEN}` with `{flag}` true, this build supports false"
                ));
            }
        }
    }
}

/// Refuses tokens that are put around every text.
fn adds_tokens(processor: &Value, way: &str, problems: &mut Vec<String>) {
    let mut adds = |tokens: Vec<String>| {
        if !tokens.is_empty() {
            problems.push(format!(
                "`{way}` adds {} to every text, this build supports one that adds nothing",
                tokens.join(" and ")
            ));
        }
    };
    match processor.get("type").and_then(Value::as_str) {
        Some("TemplateProcessing") => {
            let pieces = processor.get("single").and_then(Value::as_array);
            let special = |piece: &Value| {
                let id = piece.get("SpecialToken")?.get("id")?;
                Some(id.as_str().map_or_else(|| id.to_string(), |id| format!("`{id}`")))
            };
            adds(pieces.into_iter().flatten().filter_map(special).collect());
        }
        Some("BertProcessing" | "RobertaProcessing") => {
            let token = |name: &str| {
                let token = processor.get(name)?.get(0)?.as_str()?;
                Some(format!("`{token}`"))
            };
            adds(["cls", "sep"].into_iter().filter_map(token).collect());
        }
        Some("Sequence") => {
            let inside = processor.get("processors").and_then(Value::as_array);
            for (index, inside) in inside.into_iter().flatten().enumerate() {
                adds_tokens(inside, &format!("{way}.processors[{index}]"), problems);
            }
        }
        // `ByteLevel`, of which Qwen2 has one, moves the places of tokens alone.
        _ => {}
    }
}
