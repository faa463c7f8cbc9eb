//! From messages to ids: the tokenizer, the chat template, and the ids that a prompt and an answer are told
//! apart by.

use super::asset::Origin;
use super::{Files, IMAGE_TOKEN};
use crate::checkpoint::error::CheckpointError;
use crate::config::{CONFIG, Layout, ModelConfig};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// Ends a turn; Apple's code stops there whatever the config says.
pub(super) const TURN_END: &str = "<|im_end|>";
/// The template of transformers' conversion script: a message's content is a list of parts.
const PARTS_TEMPLATE: &str = "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}{{ '<|im_start|>' + message['role'] + '\n' }}{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>' }}{% endfor %}{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ '\n' + content['text'] }}{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

/// Apple's conversation `qwen_2`, which is Qwen2's own template: content is a string.
pub(super) const TEXT_TEMPLATE: &str = "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

/// Qwen2's way of cutting text into words, for checkpoints that ship `vocab.json` and `merges.txt` only.
const QWEN2_WORDS: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// `tokenizer.json`, or one made of `vocab.json`, `merges.txt` and `added_tokens.json`.
pub(super) fn tokenizer(files: &Files<'_>) -> Result<Value, CheckpointError> {
    if let Some(tokenizer) = files.json("tokenizer.json")? {
        return Ok(tokenizer);
    }
    let (Some(vocab), Some(merges)) = (files.json("vocab.json")?, files.text("merges.txt")?) else {
        return Err(files.absent("tokenizer.json"));
    };
    let merges: Vec<&str> = merges
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with("#version"))
        .collect();
    let added = files.json("added_tokens.json")?.unwrap_or_else(|| json!({}));
    let mut added: Vec<(String, u64)> = added
        .as_object()
        .into_iter()
        .flatten()
        .filter_map(|(token, id)| Some((token.clone(), id.as_u64()?)))
        .collect();
    added.sort_by_key(|(_, id)| *id);
    let added: Vec<Value> = added.iter().map(|(token, id)| added_token(token, *id)).collect();
    let level = |kind: &str| json!({"type": kind, "add_prefix_space": false, "trim_offsets": false, "use_regex": false});
    Ok(json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": QWEN2_WORDS}, "behavior": "Isolated", "invert": false},
            level("ByteLevel"),
        ]},
        "post_processor": level("ByteLevel"),
        "decoder": level("ByteLevel"),
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": "",
            "end_of_word_suffix": "", "fuse_unk": false, "byte_fallback": false, "vocab": vocab, "merges": merges,
        },
    }))
}

fn added_token(token: &str, id: u64) -> Value {
    json!({
        "id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
        "special": true,
    })
}

/// Ids of a tokenizer's added tokens by content, and the highest id of all.
pub(super) struct Ids {
    pub(super) added: BTreeMap<String, i64>,
    highest: Option<i64>,
}

impl Ids {
    pub(super) fn of(tokenizer: &Value) -> Ids {
        let tokens = tokenizer.get("added_tokens").and_then(Value::as_array);
        let added: BTreeMap<String, i64> = tokens
            .into_iter()
            .flatten()
            .filter_map(|token| {
                Some((
                    token.get("content")?.as_str()?.to_owned(),
                    token.get("id")?.as_i64()?,
                ))
            })
            .collect();
        let vocabulary = tokenizer.pointer("/model/vocab").and_then(Value::as_object);
        let ids = vocabulary.into_iter().flatten().filter_map(|(_, id)| id.as_i64());
        let highest = ids.chain(added.values().copied()).max();
        Ids { added, highest }
    }
}

/// The id of `<image>`. Apple's tokenizer has none (its code cuts the text there): clients that look for it
/// by id get the next free one, where the embedding table has a row for it. The row is never read.
pub(super) fn image_token(
    files: &Files<'_>,
    declared: &Value,
    config: &ModelConfig,
    layout: Layout,
    tokenizer: &mut Value,
) -> Result<Option<i64>, CheckpointError> {
    let ids = Ids::of(tokenizer);
    let known = ids.added.get(IMAGE_TOKEN).copied();
    let stated = ["image_token_index", "image_token_id"]
        .iter()
        .find_map(|name| declared.get(*name).and_then(Value::as_i64));
    match layout {
        Layout::Transformers => {
            // FastVlmConfig's default.
            let stated = stated.unwrap_or(151_646);
            if known == Some(stated) {
                return Ok(known);
            }
            let found = known.map_or("no such token".to_owned(), |id| format!("id {id}"));
            let problem =
                format!("`image_token_index` is {stated}, the tokenizer has {found} for `{IMAGE_TOKEN}`");
            Err(files.config(CONFIG, problem))
        }
        Layout::Llava => {
            if known.is_some() {
                return Ok(known);
            }
            let next = ids.highest.map_or(0, |id| id + 1);
            let rows = i64::try_from(config.decoder.vocab_size).unwrap_or(i64::MAX);
            let (true, Ok(id)) = (next < rows, u64::try_from(next)) else {
                return Ok(None);
            };
            match tokenizer.get_mut("added_tokens").and_then(Value::as_array_mut) {
                Some(tokens) => tokens.push(added_token(IMAGE_TOKEN, id)),
                None => tokenizer["added_tokens"] = json!([added_token(IMAGE_TOKEN, id)]),
            }
            Ok(Some(next))
        }
    }
}

/// Ids of `eos_token_id`, which is a number or a list, wherever it stands; and the end of a turn.
pub(super) fn stop_ids(generation: &Value, declared: &Value, ids: &Ids) -> Vec<i64> {
    let numbers = |value: &Value| -> Vec<i64> {
        match value {
            Value::Array(list) => list.iter().filter_map(Value::as_i64).collect(),
            other => other.as_i64().into_iter().collect(),
        }
    };
    let places = [
        generation.get("eos_token_id"),
        declared.get("eos_token_id"),
        declared.pointer("/text_config/eos_token_id"),
    ];
    let mut stop: BTreeSet<i64> = places
        .into_iter()
        .flatten()
        .find(|v| !v.is_null())
        .map(numbers)
        .into_iter()
        .flatten()
        .collect();
    stop.extend(ids.added.get(TURN_END));
    stop.into_iter().collect()
}

pub(super) fn special_tokens(tokenizer_config: &Value) -> BTreeMap<String, String> {
    ["bos_token", "eos_token", "pad_token", "unk_token"]
        .into_iter()
        .filter_map(|name| {
            let value = tokenizer_config.get(name)?;
            let text = value.as_str().or_else(|| value.get("content")?.as_str())?;
            Some((name.to_owned(), text.to_owned()))
        })
        .collect()
}

/// The checkpoint's chat template, or the published one of its layout.
pub(super) fn template(
    files: &Files<'_>,
    tokenizer_config: &Value,
    layout: Layout,
) -> Result<(String, Origin), CheckpointError> {
    if let Some(text) = files.text("chat_template.jinja")? {
        if text.trim().is_empty() {
            return Err(files.config("chat_template.jinja", "is empty".to_owned()));
        }
        return Ok((text, Origin::Kept));
    }
    let of = |text: &str, from: &str| Ok((text.to_owned(), Origin::Derived(from.to_owned())));
    if let Some(Value::String(text)) = files
        .json("chat_template.json")?
        .as_ref()
        .and_then(|v| v.get("chat_template"))
    {
        return of(text, "chat_template.json");
    }
    match tokenizer_config.get("chat_template") {
        Some(Value::String(text)) => return of(text, "tokenizer_config.json"),
        Some(Value::Array(named)) => {
            let default = named
                .iter()
                .find(|entry| entry.get("name").and_then(Value::as_str) == Some("default"));
            if let Some(text) = default
                .and_then(|entry| entry.get("template"))
                .and_then(Value::as_str)
            {
                return of(text, "tokenizer_config.json");
            }
        }
        _ => {}
    }
    match layout {
        Layout::Llava => of(TEXT_TEMPLATE, "the conversation `qwen_2` in Apple's code"),
        Layout::Transformers => of(PARTS_TEMPLATE, "transformers' conversion script"),
    }
}
