//! What in `tokenizer.json` and beside it makes other ids than a runtime of ours does, whose texts are cut at images and
//! get no tokens but those of the template? It is refused, for answers would silently be others than transformers'; what
//! seldom matters is said.

use super::text::QWEN2_WORDS;
use super::tokens::{QWEN2_CLASS, Special, TOKENIZER, TOKENIZER_CONFIG, is_qwen2};
use super::{Files, IMAGE_TOKEN};
use crate::checkpoint::error::{CheckpointError, short};
use serde_json::Value;
use std::collections::BTreeMap;

/// What transformers makes of these around an image: white space disappears, or it is no image.
const FLAGS: [&str; 3] = ["lstrip", "rstrip", "single_word"];
/// The field of `tokenizer_config.json` that has tokens with flags.
const DECODER: &str = "added_tokens_decoder";

/// Refuses what is not done here; what the user should know comes back. `made` says that there is no `tokenizer.json`
/// and the tokenizer was made of other files; `config` is `tokenizer_config.json`, whose flags of a token count, too.
///
/// # Errors
/// Everything of it.
pub(super) fn check(
    files: &Files<'_>,
    tokenizer: &Value,
    made: bool,
    config: &Value,
    special: &Special,
) -> Result<Vec<String>, CheckpointError> {
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
    image_flags(added(tokenizer), "added_tokens", &mut problems);
    let mut of_config = Vec::new();
    image_flags(decoder(config), DECODER, &mut of_config);
    if problems.is_empty() && of_config.is_empty() {
        other_flags(tokenizer, config, special, &mut problems);
    }
    switches(tokenizer, made, config, &mut of_config);
    for (file, problems) in [(TOKENIZER, problems), (TOKENIZER_CONFIG, of_config)] {
        if !problems.is_empty() {
            return Err(CheckpointError::Config {
                path: files.path(file),
                problems,
            });
        }
    }
    let mut warnings = Vec::new();
    warnings.extend(cut(tokenizer));
    if !made && is_qwen2(config) {
        warnings.extend(replaced(tokenizer));
    }
    Ok(warnings)
}

/// The added tokens of `tokenizer.json`.
fn added(tokenizer: &Value) -> impl Iterator<Item = &Value> {
    let tokens = tokenizer.get("added_tokens").and_then(Value::as_array);
    tokens.into_iter().flatten()
}

/// Those of `tokenizer_config.json`.
fn decoder(config: &Value) -> impl Iterator<Item = &Value> {
    let tokens = config.get(DECODER).and_then(Value::as_object);
    tokens.into_iter().flatten().map(|(_, token)| token)
}

fn content(token: &Value) -> Option<&str> {
    token.get("content").and_then(Value::as_str)
}

fn is_set(token: &Value, flag: &str) -> bool {
    token.get(flag).and_then(Value::as_bool) == Some(true)
}

/// Refuses tokens whose flags transformers takes from elsewhere, and finds others there: in `added_tokens_decoder`, and
/// for tokens that a name stands for in Qwen2's class, which has none set.
fn other_flags(tokenizer: &Value, config: &Value, special: &Special, problems: &mut Vec<String>) {
    let beside: BTreeMap<&str, &Value> = decoder(config)
        .filter_map(|token| Some((content(token)?, token)))
        .collect();
    let qwen2 = is_qwen2(config);
    let stands_for = |token: &str| {
        special.named.iter().any(|(_, named)| named == token) || special.listed.iter().any(|one| one == token)
    };
    for token in added(tokenizer) {
        let Some(name) = content(token) else { continue };
        for flag in FLAGS {
            let own = is_set(token, flag);
            let (theirs, whose) = if qwen2 && stands_for(name) {
                (
                    false,
                    format!("`{QWEN2_CLASS}`, the `tokenizer_class` of {TOKENIZER_CONFIG},"),
                )
            } else if let Some(other) = beside.get(name) {
                (is_set(other, flag), format!("`{DECODER}` of {TOKENIZER_CONFIG}"))
            } else {
                continue;
            };
            if own != theirs {
                problems.push(format!(
                    "`added_tokens` has `{name}` with `{flag}` {own}, and {whose} has {theirs}: expected the same"
                ));
            }
        }
    }
}

/// Refuses switches of `tokenizer_config.json` that are not thrown in the tokenizer itself.
fn switches(tokenizer: &Value, made: bool, config: &Value, problems: &mut Vec<String>) {
    const SPLIT: &str = "split_special_tokens";
    const PREFIX: &str = "add_prefix_space";
    let unset = |value: &&Value| !matches!(value, Value::Null | Value::Bool(false));
    if let Some(found) = config.get(SPLIT).filter(unset) {
        problems.push(format!(
            "`{SPLIT}` is {found}, by which special tokens would be read as letters: this build supports false"
        ));
    }
    // Other classes take what the tokenizer has.
    if !made && !is_qwen2(config) {
        return;
    }
    let own = adds_space(tokenizer.get("pre_tokenizer").unwrap_or(&Value::Null));
    let stated = config.get(PREFIX).unwrap_or(&Value::Null);
    if *stated != Value::Bool(own) && (own || !stated.is_null()) {
        let from = if made { "vocab.json" } else { TOKENIZER };
        let stated = if stated.is_null() {
            "not set".to_owned()
        } else {
            stated.to_string()
        };
        problems.push(format!(
            "`{PREFIX}` is {stated}, and the pre-tokenizer of {from} has {own}: expected the same"
        ));
    }
}

/// Whether a pre-tokenizer puts a space before a text.
fn adds_space(pre_tokenizer: &Value) -> bool {
    let inside = pre_tokenizer.get("pretokenizers").and_then(Value::as_array);
    is_set(pre_tokenizer, "add_prefix_space") || inside.into_iter().flatten().any(adds_space)
}

/// What is said of a length that transformers cuts prompts to.
fn cut(tokenizer: &Value) -> Option<String> {
    let truncation = tokenizer.get("truncation").filter(|value| !value.is_null())?;
    let length = truncation.get("max_length").unwrap_or(truncation);
    Some(format!(
        "{TOKENIZER}: `truncation` has `max_length` {}, and transformers cuts prompts to as many positions, those of \
         images too: nothing is cut here",
        short(length)
    ))
}

/// What is said of parts of `tokenizer.json` that Qwen2's class replaces by its own.
fn replaced(tokenizer: &Value) -> Vec<String> {
    let whose = format!("`{QWEN2_CLASS}`, the `tokenizer_class` of {TOKENIZER_CONFIG}");
    let mut said = Vec::new();
    let normalizer = tokenizer.get("normalizer").unwrap_or(&Value::Null);
    if normalizer.get("type").and_then(Value::as_str) != Some("NFC") {
        said.push(format!(
            "{TOKENIZER}: `normalizer` is {}, and {whose}, has NFC in transformers: that of {TOKENIZER} is taken",
            short(normalizer)
        ));
    }
    let pre_tokenizer = tokenizer.get("pre_tokenizer").unwrap_or(&Value::Null);
    let mut words = Vec::new();
    patterns(pre_tokenizer, &mut words);
    if words != [QWEN2_WORDS] {
        said.push(format!(
            "{TOKENIZER}: `pre_tokenizer` cuts texts into other words than {whose}, does in transformers: that of \
             {TOKENIZER} is taken"
        ));
    }
    said
}

/// The expressions by which a pre-tokenizer cuts texts.
fn patterns<'a>(pre_tokenizer: &'a Value, found: &mut Vec<&'a str>) {
    found.extend(pre_tokenizer.pointer("/pattern/Regex").and_then(Value::as_str));
    let inside = pre_tokenizer.get("pretokenizers").and_then(Value::as_array);
    for inside in inside.into_iter().flatten() {
        patterns(inside, found);
    }
}

/// Refuses an image token that takes more than itself, or is one only between spaces.
fn image_flags<'a>(tokens: impl Iterator<Item = &'a Value>, field: &str, problems: &mut Vec<String>) {
    for token in tokens.filter(|token| content(token) == Some(IMAGE_TOKEN)) {
        for flag in FLAGS {
            if is_set(token, flag) {
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
