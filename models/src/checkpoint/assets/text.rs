//! From messages to ids: the tokenizer, the chat template, and the ids that a prompt and an answer are told
//! apart by.

use super::asset::Origin;
use super::{Files, IMAGE_TOKEN, tokens};
use crate::checkpoint::error::{CheckpointError, short};
use crate::config::{CONFIG, Layout, ModelConfig, PROCESSOR};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// The file that says how to generate.
pub(super) const GENERATION: &str = "generation_config.json";
/// Files of a chat template alone.
const TEMPLATE: &str = "chat_template.jinja";
const OLD_TEMPLATE: &str = "chat_template.json";
/// The folder of templates that have names, and the one that is taken where nobody asks for another.
const NAMED_TEMPLATES: &str = "additional_chat_templates";
pub(super) const DEFAULT_TEMPLATE: &str = "additional_chat_templates/default.jinja";
/// Ends a turn; Apple's code stops there whatever the config says.
const TURN_END: &str = "<|im_end|>";
/// The template of transformers' conversion script: a message's content is a list of parts.
const PARTS_TEMPLATE: &str = "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}{{ '<|im_start|>' + message['role'] + '\n' }}{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>' }}{% endfor %}{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ '\n' + content['text'] }}{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

/// Apple's conversation `qwen_2`, which is Qwen2's own template: content is a string.
pub const TEXT_TEMPLATE: &str = "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

/// Qwen2's way of cutting text into words, for checkpoints that ship `vocab.json` and `merges.txt` only.
pub(super) const QWEN2_WORDS: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

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
    match layout {
        Layout::Transformers => {
            let [index, id] = ["image_token_index", "image_token_id"]
                .map(|name| declared.get(name).filter(|value| !value.is_null()));
            if let (Some(index), Some(id)) = (index, id)
                && index != id
            {
                let problem = format!(
                    "`image_token_index` is {index} and `image_token_id` is {id}, expected the same, for they are one field"
                );
                return Err(files.config(CONFIG, problem));
            }
            let named = if index.is_some() {
                "image_token_index"
            } else {
                "image_token_id"
            };
            let stated = match index.or(id) {
                // FastVlmConfig's default.
                None => 151_646,
                Some(found) => found.as_i64().ok_or_else(|| {
                    files.config(CONFIG, format!("`{named}` is {found}, expected a whole number"))
                })?,
            };
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

/// Ids of `eos_token_id`, which is a number or a list, wherever it stands; and the end of a turn. `warnings` say
/// where transformers would not stop.
///
/// # Errors
/// None anywhere, or one that is no special token: an answer would end at a word, or never.
pub(super) fn stop_ids(
    files: &Files<'_>,
    generation: Option<&Value>,
    declared: &Value,
    ids: &Ids,
    layout: Layout,
    warnings: &mut Vec<String>,
) -> Result<Vec<i64>, CheckpointError> {
    const NAME: &str = "eos_token_id";
    let places = [
        (GENERATION, generation.and_then(|file| file.get(NAME))),
        (CONFIG, declared.get(NAME)),
        (CONFIG, declared.pointer("/text_config/eos_token_id")),
    ];
    let mut places = places
        .into_iter()
        .filter_map(|(file, value)| Some((file, value?)));
    let stated = places.find(|(_, value)| !value.is_null());
    let mut stop = BTreeSet::new();
    if let Some((file, value)) = stated {
        for id in ids_of(value) {
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
    // Apple's code stops at the end of a turn; transformers where one file says so, which is generation_config.json
    // if it is there.
    if layout == Layout::Transformers {
        let file = generation.map_or(CONFIG, |_| GENERATION);
        let counts = stated.filter(|(of, _)| *of == file).map(|(_, value)| value);
        let listed: Vec<i64> = counts
            .map_or(&[][..], ids_of)
            .iter()
            .filter_map(Value::as_i64)
            .collect();
        let further = ids
            .added
            .iter()
            .filter(|(_, id)| stop.contains(id) && !listed.contains(id));
        let further: Vec<String> = further.map(|(token, id)| format!("`{token}` ({id})")).collect();
        if !further.is_empty() {
            let found = counts.map_or_else(|| "not set".to_owned(), short);
            warnings.push(format!(
                "{file}: `{NAME}` is {found}, and answers end at {} too, where transformers would go on",
                further.join(" and ")
            ));
        }
    }
    Ok(stop.into_iter().collect())
}

/// Ids that are a number or a list.
fn ids_of(value: &Value) -> &[Value] {
    match value {
        Value::Array(list) => list.as_slice(),
        one => std::slice::from_ref(one),
    }
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

/// Whether a file of a checkpoint, by its path there, is a chat template of those that have names.
pub fn is_named_template(path: &str) -> bool {
    let inside = path.strip_prefix(NAMED_TEMPLATES);
    let name = inside.and_then(|rest| rest.strip_prefix('/')?.strip_suffix(".jinja"));
    name.is_some_and(|name| !name.is_empty() && !name.contains(['/', '\\']))
}

/// Paths of the chat templates that have names, sorted.
///
/// # Errors
/// A folder that cannot be read.
fn named_templates(files: &Files<'_>) -> Result<Vec<String>, CheckpointError> {
    let path = files.path(NAMED_TEMPLATES);
    let io = |source| CheckpointError::Io {
        path: path.clone(),
        source,
    };
    if !path.is_dir() {
        return Ok(Vec::new());
    }
    let mut found = Vec::new();
    for entry in std::fs::read_dir(&path).map_err(io)? {
        let name = entry.map_err(io)?.file_name();
        let name = format!("{NAMED_TEMPLATES}/{}", name.to_string_lossy());
        found.extend(Some(name).filter(|name| is_named_template(name)));
    }
    found.sort();
    Ok(found)
}

/// The checkpoint's chat template, or the published one of its layout. Places are read in the order of
/// transformers' processors, then that of its tokenizers; `warnings` say where files of a processor have others.
///
/// # Errors
/// A template that is empty, or none that is called `default` among several; templates that have names beside
/// `chat_template.json`.
pub(super) fn template(
    files: &Files<'_>,
    tokenizer_config: &Value,
    layout: Layout,
    warnings: &mut Vec<String>,
) -> Result<(String, Origin), CheckpointError> {
    let mut found = Vec::new();
    for name in [PROCESSOR, OLD_TEMPLATE] {
        if let Some(file) = files.json(name)?
            && let Some(text) = stated(files, name, &file)?
        {
            found.push((name, text));
        }
    }
    let named = named_templates(files)?;
    if let (Some(other), true) = (named.first(), files.path(OLD_TEMPLATE).exists()) {
        let problem =
            format!("is there beside `{other}`, which transformers refuses: expected one of the two");
        return Err(CheckpointError::malformed(&files.path(OLD_TEMPLATE), problem));
    }
    found.extend(files.text(TEMPLATE)?.map(|text| (TEMPLATE, text)));
    if named.iter().any(|name| name == DEFAULT_TEMPLATE) {
        found.extend(files.text(DEFAULT_TEMPLATE)?.map(|text| (DEFAULT_TEMPLATE, text)));
    }
    if let ([], [first, ..]) = (found.as_slice(), named.as_slice()) {
        let problem = format!(
            "is a chat template with a name, and none is the default: expected `{TEMPLATE}` or \
             `{DEFAULT_TEMPLATE}` beside it"
        );
        return Err(CheckpointError::malformed(&files.path(first), problem));
    }
    if found.is_empty() {
        let text = stated(files, tokens::TOKENIZER_CONFIG, tokenizer_config)?;
        found.extend(text.map(|text| (tokens::TOKENIZER_CONFIG, text)));
    }
    let Some(((name, text), others)) = found.split_first() else {
        let (text, from) = match layout {
            Layout::Llava | Layout::Mlx => (TEXT_TEMPLATE, "the conversation `qwen_2` in Apple's code"),
            Layout::Transformers => (PARTS_TEMPLATE, "transformers' conversion script"),
        };
        return Ok((text.to_owned(), Origin::Derived(from.to_owned())));
    };
    if text.trim().is_empty() {
        return Err(files.config(name, "the chat template is empty".to_owned()));
    }
    let read = line_feeds(text);
    // Jinja leaves out the last line end.
    let shown = |text: &str| line_feeds(text.strip_suffix('\n').unwrap_or(text));
    for (other, differs) in others {
        if shown(differs) != shown(text) {
            warnings.push(format!(
                "{name} and {other} have different chat templates: that of {name} is taken, as transformers does"
            ));
        }
    }
    let origin = match *name {
        TEMPLATE if text.contains('\r') => Origin::Adapted("with line feeds as line ends".to_owned()),
        TEMPLATE => Origin::Kept,
        from => Origin::Derived(from.to_owned()),
    };
    Ok((read, origin))
}

/// The field `chat_template` of a file: a text, or several with names, of which one is the default.
fn stated(files: &Files<'_>, name: &str, file: &Value) -> Result<Option<String>, CheckpointError> {
    const DEFAULT: &str = "default";
    let Some(value) = file.get("chat_template").filter(|value| !value.is_null()) else {
        return Ok(None);
    };
    let text = match value {
        Value::Array(list) => list
            .iter()
            .find(|entry| entry.get("name").and_then(Value::as_str) == Some(DEFAULT))
            .and_then(|entry| entry.get("template")),
        Value::Object(named) => named.get(DEFAULT),
        one => Some(one),
    };
    let Some(text) = text.and_then(Value::as_str) else {
        let problem = format!(
            "`chat_template` is {}, expected a text, or one that is called `{DEFAULT}`",
            short(value)
        );
        return Err(files.config(name, problem));
    };
    Ok(Some(text.to_owned()))
}
