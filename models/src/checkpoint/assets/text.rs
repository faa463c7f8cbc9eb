//! From messages to ids: the tokenizer, the chat template, and the ids that a prompt and an answer are told
//! apart by.

use super::asset::Origin;
use super::{Files, IMAGE_TOKEN, tokens};
use crate::checkpoint::error::CheckpointError;
use crate::config::{CONFIG, Layout, ModelConfig};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// The file that says how to generate.
const GENERATION: &str = "generation_config.json";
/// Ends a turn; Apple's code stops there whatever the config says.
const TURN_END: &str = "<|im_end|>";
/// The template of transformers' conversion script: a message's content is a list of parts.
const PARTS_TEMPLATE: &str = "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}{{ '<|im_start|>' + message['role'] + '\n' }}{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>' }}{% endfor %}{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ '\n' + content['text'] }}{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

/// Apple's conversation `qwen_2`, which is Qwen2's own template: content is a string.
pub(super) const TEXT_TEMPLATE: &str = "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

/// Qwen2's way of cutting text into words, for checkpoints that ship `vocab.json` and `merges.txt` only.
const QWEN2_WORDS: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// `tokenizer.json`, or one made of `vocab.json` and `merges.txt`, still without special tokens; and whether
/// it was made so.
pub(super) fn tokenizer(files: &Files<'_>) -> Result<(Value, bool), CheckpointError> {
    if let Some(tokenizer) = files.json("tokenizer.json")? {
        return Ok((tokenizer, false));
    }
    let (Some(vocab), Some(merges)) = (files.json("vocab.json")?, files.text("merges.txt")?) else {
        return Err(files.absent("tokenizer.json"));
    };
    let merges: Vec<&str> = merges
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with("#version"))
        .collect();
    let level = |kind: &str| json!({"type": kind, "add_prefix_space": false, "trim_offsets": false, "use_regex": false});
    let tokenizer = json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": [],
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
    });
    Ok((tokenizer, true))
}

/// Ids of a tokenizer's added tokens by content.
pub(super) struct Ids {
    pub(super) added: BTreeMap<String, i64>,
}

impl Ids {
    pub(super) fn of(tokenizer: &Value) -> Ids {
        let tokens = tokenizer.get("added_tokens").and_then(Value::as_array);
        let added = tokens
            .into_iter()
            .flatten()
            .filter_map(|token| {
                Some((
                    token.get("content")?.as_str()?.to_owned(),
                    token.get("id")?.as_i64()?,
                ))
            })
            .collect();
        Ids { added }
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
        Layout::Llava | Layout::Mlx => {
            if known.is_some() {
                return Ok(known);
            }
            tokens::append(files, IMAGE_TOKEN, tokenizer, config.decoder.vocab_size)
        }
    }
}

/// Ids of `eos_token_id`, which is a number or a list, wherever it stands; and the end of a turn.
///
/// # Errors
/// None anywhere, or one that is no special token: an answer would end at a word, or never.
pub(super) fn stop_ids(
    files: &Files<'_>,
    generation: &Value,
    declared: &Value,
    ids: &Ids,
) -> Result<Vec<i64>, CheckpointError> {
    let places = [
        (GENERATION, generation.get("eos_token_id")),
        (CONFIG, declared.get("eos_token_id")),
        (CONFIG, declared.pointer("/text_config/eos_token_id")),
    ];
    let mut places = places
        .into_iter()
        .filter_map(|(file, value)| Some((file, value?)));
    let stated = places.find(|(_, value)| !value.is_null());
    let mut stop = BTreeSet::new();
    if let Some((file, value)) = stated {
        let list = match value {
            Value::Array(list) => list.as_slice(),
            one => std::slice::from_ref(one),
        };
        for id in list {
            let special = id
                .as_i64()
                .filter(|id| ids.added.values().any(|known| known == id));
            let Some(id) = special else {
                let problem = format!(
                    "`eos_token_id` is {value}: {id} is not the id of a special token of the tokenizer"
                );
                return Err(files.config(file, problem));
            };
            stop.insert(id);
        }
    }
    stop.extend(ids.added.get(TURN_END));
    if stop.is_empty() {
        let problem =
            format!("no `eos_token_id` here, none in config.json, and the tokenizer has no `{TURN_END}`");
        return Err(files.config(GENERATION, problem));
    }
    Ok(stop.into_iter().collect())
}

/// The special tokens that a template may ask for by name: those that every template knows, as
/// `tokenizer_config.json` has them, and any other that this one mentions.
pub(super) fn special_tokens(
    tokenizer_config: &Value,
    named: &[(String, String)],
    template: &str,
) -> BTreeMap<String, String> {
    let stated = |name: &str| {
        let value = tokenizer_config.get(name)?;
        value.as_str().or_else(|| value.get("content")?.as_str())
    };
    let mut tokens: BTreeMap<String, String> = ["bos_token", "eos_token", "pad_token", "unk_token"]
        .into_iter()
        .filter_map(|name| Some((name.to_owned(), stated(name)?.to_owned())))
        .collect();
    for (name, token) in named {
        if template.contains(name.as_str()) {
            tokens.insert(name.clone(), token.clone());
        }
    }
    tokens
}

/// Line ends as Jinja has them before it reads a template: it would otherwise write other text where a file
/// went through a system that changes them.
fn line_feeds(template: &str) -> String {
    template.replace("\r\n", "\n").replace('\r', "\n")
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
        let origin = if text.contains('\r') {
            Origin::Adapted("with line feeds as line ends".to_owned())
        } else {
            Origin::Kept
        };
        return Ok((line_feeds(&text), origin));
    }
    let of = |text: &str, from: &str| Ok((line_feeds(text), Origin::Derived(from.to_owned())));
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
        Layout::Llava | Layout::Mlx => of(TEXT_TEMPLATE, "the conversation `qwen_2` in Apple's code"),
        Layout::Transformers => of(PARTS_TEMPLATE, "transformers' conversion script"),
    }
}
