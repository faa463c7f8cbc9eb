//! What surrounds the weights in a checkpoint: from an image to pixels, from messages to ids, and the small files that
//! a bundle carries so that the ecosystem's own clients can open it.
//!
//! A bundle's `config.json` is written in the dialect that those clients know (`llava_qwen2`), whatever the
//! checkpoint's; its numbers are the checkpoint's.

#![deny(clippy::as_conversions)]

use super::{license, small};
use crate::bundle::{Aspect, Content, ImageSpec, PromptSpec, Resample};
use crate::config::{Layout, ModelConfig};
use crate::error::CheckpointError;
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// What a bundle needs beside the networks.
#[derive(Debug, Clone, PartialEq)]
pub struct Assets {
    /// From an image file to pixels.
    pub image: ImageSpec,
    /// From messages to ids.
    pub prompt: PromptSpec,
    /// The small files, sorted by path.
    pub files: Vec<Asset>,
    /// What the checkpoint calls its terms of use: `apple-amlr`. `None` where it says nothing.
    pub license: Option<String>,
    /// What the user should know, one sentence each.
    pub warnings: Vec<String>,
}

/// A small file of the bundle.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asset {
    /// Path in the bundle.
    pub path: String,
    /// All of it.
    pub contents: Vec<u8>,
    /// Where it comes from.
    pub origin: Origin,
}

/// Where a small file of the bundle comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// The checkpoint's file of this name, byte for byte.
    Kept,
    /// The checkpoint's file of this name; what was changed.
    Adapted(String),
    /// The checkpoint has no file of this name; what it was derived from.
    Derived(String),
}

/// Names of the small files that are read where they exist; beside them, those that
/// [`is_license`](super::is_license) tells.
pub const SMALL_FILES: [&str; 12] = [
    "README.md",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "config.json",
    "generation_config.json",
    "merges.txt",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
];

/// Marks an image in a prompt, in both layouts.
const IMAGE_TOKEN: &str = "<image>";
/// Ends a turn; Apple's code stops there whatever the config says.
const TURN_END: &str = "<|im_end|>";
/// Longest small file that is read.
const MAX_BYTES: u64 = 256 << 20;

/// The template of transformers' conversion script: a message's content is a list of parts.
const PARTS_TEMPLATE: &str = "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}{{ '<|im_start|>' + message['role'] + '\n' }}{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>' }}{% endfor %}{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ '\n' + content['text'] }}{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

/// Apple's conversation `qwen_2`, which is Qwen2's own template: content is a string.
const TEXT_TEMPLATE: &str = "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

/// Qwen2's way of cutting text into words, for checkpoints that ship `vocab.json` and `merges.txt` only.
const QWEN2_WORDS: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// Reads everything but the weights of the checkpoint in `directory`.
///
/// # Errors
/// A file that is missing, cannot be read or asks for something that this build does not do.
pub(super) fn assets(
    directory: &Path,
    config: &ModelConfig,
    layout: Layout,
) -> Result<Assets, CheckpointError> {
    let files = Files { directory };
    let declared = files
        .json("config.json")?
        .ok_or_else(|| files.absent("config.json"))?;
    let image = match layout {
        Layout::Llava => llava_image(&files, &declared, config)?,
        Layout::Transformers => transformers_image(&files, config)?,
    };
    let tokenizer_config = files.json("tokenizer_config.json")?.unwrap_or_else(|| json!({}));
    let mut tokenizer = tokenizer(&files)?;
    if !tokenizer
        .pointer("/model/vocab")
        .is_some_and(|vocab| vocab.is_object() || vocab.is_array())
    {
        return Err(CheckpointError::malformed(
            &files.path("tokenizer.json"),
            "has no `model` with a `vocab`: is it a tokenizer of the tokenizers library?",
        ));
    }
    let named = Ids::of(&tokenizer).added.contains_key(IMAGE_TOKEN);
    let image_token_id = image_token(&files, &declared, config, layout, &mut tokenizer)?;
    let ids = Ids::of(&tokenizer);
    let generation = files.json("generation_config.json")?.unwrap_or_else(|| json!({}));
    let stop_ids = stop_ids(&generation, &declared, &ids);
    if stop_ids.is_empty() {
        let problem =
            format!("no `eos_token_id` here, none in config.json, and the tokenizer has no `{TURN_END}`");
        return Err(files.config("generation_config.json", problem));
    }
    let special_tokens = special_tokens(&tokenizer_config);
    let (template, template_origin) = template(&files, &tokenizer_config, layout)?;
    let prompt = PromptSpec {
        tokenizer: "tokenizer.json".to_owned(),
        chat_template: "chat_template.jinja".to_owned(),
        content: match layout {
            Layout::Llava => Content::Text,
            Layout::Transformers => Content::Parts,
        },
        image_token: IMAGE_TOKEN.to_owned(),
        image_token_id,
        stop_ids: stop_ids.clone(),
        special_tokens,
        vocab_size: usize::try_from(config.decoder.vocab_size).unwrap_or(usize::MAX),
        hidden_size: usize::try_from(config.decoder.hidden_size).unwrap_or(usize::MAX),
    };
    let pretty = |value: &Value| format!("{value:#}\n").into_bytes();
    let pad = declared
        .pointer("/text_config/pad_token_id")
        .or_else(|| generation.get("pad_token_id"))
        .cloned();
    let generation = json!({
        "do_sample": false,
        "eos_token_id": stop_ids,
        "max_new_tokens": 256,
        "pad_token_id": pad.unwrap_or_else(|| json!(stop_ids.first())),
    });
    let file = |path: &str, contents: Vec<u8>, how: String| {
        let given = files.path(path).exists();
        Asset {
            path: path.to_owned(),
            contents,
            origin: if given {
                Origin::Adapted(how)
            } else {
                Origin::Derived(how)
            },
        }
    };
    let token_side = config.vision.token_side();
    let terms = license::find(directory)?;
    let mut assets = terms.files;
    assets.extend([
        Asset {
            path: "chat_template.jinja".to_owned(),
            contents: template.clone().into_bytes(),
            origin: template_origin,
        },
        file(
            "config.json",
            pretty(&client_config(config, &declared, layout, &prompt)),
            "in the dialect of transformers.js, `llava_qwen2`".to_owned(),
        ),
        file(
            "generation_config.json",
            pretty(&generation),
            "greedy, with the model's stop ids".to_owned(),
        ),
        file(
            "preprocessor_config.json",
            pretty(&client_image(&image)),
            match layout {
                Layout::Llava => format!("the processor in Apple's code, at {} pixels", image.width),
                Layout::Transformers => "all fields of CLIPImageProcessor, defaults included".to_owned(),
            },
        ),
        file(
            "processor_config.json",
            pretty(&client_processor(token_side)),
            format!("LlavaProcessor, {token_side} pixels a token"),
        ),
        file(
            "tokenizer.json",
            tokenizer.to_string().into_bytes(),
            match (files.path("tokenizer.json").exists(), image_token_id) {
                (true, Some(id)) if !named => format!("with `{IMAGE_TOKEN}` as id {id}"),
                (true, _) => "without white space".to_owned(),
                (false, _) => "vocab.json, merges.txt and added_tokens.json".to_owned(),
            },
        ),
        file(
            "tokenizer_config.json",
            pretty(&client_tokenizer(&tokenizer_config, &template)),
            "with the chat template and LlavaProcessor".to_owned(),
        ),
    ]);
    assets.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(Assets {
        image,
        prompt,
        files: assets,
        license: terms.name,
        warnings: terms.left_out,
    })
}

// --- reading ------------------------------------------------------------------------------------------------------

struct Files<'a> {
    directory: &'a Path,
}

impl Files<'_> {
    fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    fn text(&self, name: &str) -> Result<Option<String>, CheckpointError> {
        small::text_if_there(&self.path(name), MAX_BYTES)
    }

    fn json(&self, name: &str) -> Result<Option<Value>, CheckpointError> {
        let Some(text) = self.text(name)? else {
            return Ok(None);
        };
        let path = self.path(name);
        match serde_json::from_str(&text) {
            Ok(value @ Value::Object(_)) => Ok(Some(value)),
            Ok(_) => Err(CheckpointError::malformed(&path, "is not a JSON object")),
            Err(error) => Err(CheckpointError::malformed(&path, error.to_string())),
        }
    }

    fn absent(&self, name: &str) -> CheckpointError {
        let problem = format!("has no `{name}`");
        CheckpointError::NotACheckpoint {
            path: self.directory.to_owned(),
            problem,
        }
    }

    fn config(&self, name: &str, problem: String) -> CheckpointError {
        CheckpointError::Config {
            path: self.path(name),
            problems: vec![problem],
        }
    }
}

// --- images -------------------------------------------------------------------------------------------------------

/// Apple's `MobileCLIPVisionTower` and `process_images`: the processor's numbers stand in the code.
fn llava_image(
    files: &Files<'_>,
    declared: &Value,
    config: &ModelConfig,
) -> Result<ImageSpec, CheckpointError> {
    let aspect = match declared.get("image_aspect_ratio") {
        // int(mean * 255) with means of 0.
        Some(Value::String(name)) if name == "pad" => Aspect::Pad { color: [0; 3] },
        None | Some(Value::Null) => Aspect::Crop,
        Some(Value::String(name)) if name == "square" => Aspect::Crop,
        Some(other) => {
            let problem =
                format!("`image_aspect_ratio` is {other}, this build supports \"pad\", \"square\" and null");
            return Err(files.config("config.json", problem));
        }
    };
    let side = u32::try_from(config.vision.image_size).unwrap_or(u32::MAX);
    Ok(ImageSpec {
        height: side,
        width: side,
        aspect,
        shortest_edge: side,
        resample: Resample::Bicubic,
        rescale: 1.0 / 255.0,
        mean: [0.0; 3],
        std: [1.0; 3],
        tokens: tokens(config),
    })
}

fn tokens(config: &ModelConfig) -> usize {
    usize::try_from(config.image_tokens()).unwrap_or(usize::MAX)
}

/// transformers' `CLIPImageProcessor`. Defaults are those of that class.
fn transformers_image(files: &Files<'_>, config: &ModelConfig) -> Result<ImageSpec, CheckpointError> {
    let (name, value) = match files.json("preprocessor_config.json")? {
        Some(value) => ("preprocessor_config.json", value),
        None => {
            let name = "processor_config.json";
            let found = files
                .json(name)?
                .and_then(|mut value| value.get_mut("image_processor").map(Value::take));
            (
                name,
                found.ok_or_else(|| files.absent("preprocessor_config.json"))?,
            )
        }
    };
    let mut problems = Vec::new();
    let flag = |field: &str| value.get(field).and_then(Value::as_bool).unwrap_or(true);
    for field in ["do_resize", "do_center_crop"] {
        if !flag(field) {
            problems.push(format!("`{field}` is false, this build supports true"));
        }
    }
    let resample = match value
        .get("resample")
        .filter(|v| !v.is_null())
        .map_or(Some(3), Value::as_u64)
    {
        Some(1) => Resample::Lanczos,
        Some(2) => Resample::Bilinear,
        Some(3) => Resample::Bicubic,
        _ => {
            problems.push(format!(
                "`resample` is {}, this build supports 1, 2 and 3",
                value["resample"]
            ));
            Resample::Bicubic
        }
    };
    let side = u32::try_from(config.vision.image_size).unwrap_or(u32::MAX);
    let shortest_edge = match value
        .pointer("/size/shortest_edge")
        .and_then(Value::as_u64)
        .map(u32::try_from)
    {
        Some(Ok(edge)) if edge > 0 => edge,
        _ => {
            problems.push(format!("`size` is {}, expected a `shortest_edge`", value["size"]));
            side
        }
    };
    let mut triple = |field: &str, default: [f64; 3]| match value.get(field).filter(|v| !v.is_null()) {
        None => default,
        Some(found) => {
            let list: Option<Vec<f64>> = found
                .as_array()
                .and_then(|list| list.iter().map(Value::as_f64).collect());
            match list.as_deref() {
                Some(&[r, g, b]) => [r, g, b],
                _ => {
                    problems.push(format!("`{field}` is {found}, expected three numbers"));
                    default
                }
            }
        }
    };
    // OPENAI_CLIP_MEAN and OPENAI_CLIP_STD.
    let mean = triple("image_mean", [0.481_454_66, 0.457_827_5, 0.408_210_73]);
    let std = triple("image_std", [0.268_629_54, 0.261_302_58, 0.275_777_11]);
    let (mean, std) = if flag("do_normalize") {
        (mean, std)
    } else {
        ([0.0; 3], [1.0; 3])
    };
    if std.contains(&0.0) {
        problems.push("`image_std` has a 0, by which pixels would be divided".to_owned());
    }
    let factor = match value.get("rescale_factor") {
        None | Some(Value::Null) => 1.0 / 255.0,
        Some(found) => found.as_f64().unwrap_or_else(|| {
            problems.push(format!("`rescale_factor` is {found}, expected a number"));
            1.0
        }),
    };
    if problems.is_empty() {
        Ok(ImageSpec {
            height: side,
            width: side,
            aspect: Aspect::Crop,
            shortest_edge,
            resample,
            rescale: if flag("do_rescale") { factor } else { 1.0 },
            mean,
            std,
            tokens: tokens(config),
        })
    } else {
        Err(CheckpointError::Config {
            path: files.path(name),
            problems,
        })
    }
}

// --- text ---------------------------------------------------------------------------------------------------------

/// `tokenizer.json`, or one made of `vocab.json`, `merges.txt` and `added_tokens.json`.
fn tokenizer(files: &Files<'_>) -> Result<Value, CheckpointError> {
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
struct Ids {
    added: BTreeMap<String, i64>,
    highest: Option<i64>,
}

impl Ids {
    fn of(tokenizer: &Value) -> Ids {
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

/// The id of `<image>`. Apple's tokenizer has none (its code cuts the text there): clients that look for it by id get
/// the next free one, where the embedding table has a row for it. The row is never read.
fn image_token(
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
            Err(files.config("config.json", problem))
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
fn stop_ids(generation: &Value, declared: &Value, ids: &Ids) -> Vec<i64> {
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

fn special_tokens(tokenizer_config: &Value) -> BTreeMap<String, String> {
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
fn template(
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

// --- what the ecosystem's clients read --------------------------------------------------------------------------

/// `config.json` as transformers.js knows the architecture: `llava_qwen2`, the decoder's geometry at the top.
fn client_config(config: &ModelConfig, declared: &Value, layout: Layout, prompt: &PromptSpec) -> Value {
    let mut fields = match (layout, declared) {
        (Layout::Llava, Value::Object(fields)) => fields.clone(),
        _ => Map::new(),
    };
    let decoder = &config.decoder;
    let more = json!({
        "architectures": ["LlavaQwen2ForCausalLM"],
        "model_type": "llava_qwen2",
        "hidden_act": "silu",
        "hidden_size": decoder.hidden_size,
        "head_dim": decoder.head_dim,
        "image_token_id": prompt.image_token_id,
        "image_token_index": prompt.image_token_id,
        "intermediate_size": decoder.intermediate_size,
        "max_position_embeddings": decoder.max_position_embeddings,
        "mm_hidden_size": config.projector.input,
        "mm_projector_type": "mlp2x_gelu",
        "mm_vision_tower": format!("mobileclip_l_{}", config.vision.image_size),
        "num_attention_heads": decoder.heads,
        "num_hidden_layers": decoder.layers,
        "num_key_value_heads": decoder.kv_heads,
        "rms_norm_eps": decoder.rms_norm_epsilon.to_string().parse::<f64>().unwrap_or(1e-6),
        "rope_theta": decoder.rope_theta,
        "tie_word_embeddings": decoder.tie_word_embeddings,
        "vocab_size": decoder.vocab_size,
    });
    if let Value::Object(more) = more {
        fields.extend(more);
    }
    let eos = declared
        .pointer("/text_config/eos_token_id")
        .cloned()
        .unwrap_or_else(|| json!(prompt.stop_ids));
    fields.entry("eos_token_id").or_insert(eos);
    Value::Object(fields)
}

fn client_image(image: &ImageSpec) -> Value {
    json!({
        "crop_size": {"height": image.height, "width": image.width},
        "do_center_crop": true,
        "do_convert_rgb": true,
        "do_normalize": true,
        "do_rescale": true,
        "do_resize": true,
        "image_mean": image.mean,
        "image_processor_type": "CLIPImageProcessor",
        "image_std": image.std,
        "processor_class": "LlavaProcessor",
        "resample": match image.resample {
            Resample::Lanczos => 1,
            Resample::Bilinear => 2,
            Resample::Bicubic => 3,
        },
        "rescale_factor": image.rescale,
        "size": {"shortest_edge": image.shortest_edge},
    })
}

fn client_processor(token_side: u64) -> Value {
    json!({
        "image_token": IMAGE_TOKEN,
        "num_additional_image_tokens": 0,
        "patch_size": token_side,
        "processor_class": "LlavaProcessor",
        "vision_feature_select_strategy": "full",
    })
}

fn client_tokenizer(tokenizer_config: &Value, template: &str) -> Value {
    let mut value = tokenizer_config.clone();
    value["chat_template"] = Value::from(template);
    value["processor_class"] = Value::from("LlavaProcessor");
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: &str = r#"{"model_type": "llava_qwen2", "hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
        "num_key_value_heads": 1, "intermediate_size": 64, "vocab_size": 8, "mm_hidden_size": 3072, "eos_token_id": 2,
        "mm_vision_tower": "mobileclip_l_1024", "image_aspect_ratio": "pad"}"#;
    const TOKENIZER: &str =
        r#"{"added_tokens": [{"id": 4, "content": "<|im_end|>"}], "model": {"vocab": {"a": 0, "b": 1}}}"#;

    fn checkpoint(files: &[(&str, &str)]) -> Result<Assets, String> {
        let directory = tempfile::tempdir().unwrap();
        for (name, text) in [("config.json", CONFIG), ("tokenizer.json", TOKENIZER)]
            .iter()
            .chain(files)
        {
            match *text {
                "" => std::fs::remove_file(directory.path().join(name)).unwrap(),
                text => std::fs::write(directory.path().join(name), text).unwrap(),
            }
        }
        let (config, layout) = ModelConfig::open(directory.path()).map_err(|error| error.to_string())?;
        assets(directory.path(), &config, layout).map_err(|error| error.to_string())
    }

    fn fast_vlm() -> String {
        r#"{"model_type": "fast_vlm", "image_token_index": 5, "text_config": {"hidden_size": 64, "num_hidden_layers": 1,
            "num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 64, "vocab_size": 8}}"#
            .to_owned()
    }

    const IMAGE_TOKENIZER: &str = r#"{"added_tokens": [{"id": 4, "content": "<|im_end|>"}, {"id": 5, "content": "<image>"}],
        "model": {"vocab": {"a": 0}}}"#;
    const PROCESSOR: &str = r#"{"size": {"shortest_edge": 100}, "crop_size": {"height": 128, "width": 128},
        "image_mean": [0.5, 0.5, 0.5], "image_std": [1, 1, 1], "resample": 2}"#;

    #[test]
    fn apples_layout() {
        let assets = checkpoint(&[]).unwrap();
        assert_eq!(assets.image.aspect, Aspect::Pad { color: [0; 3] });
        assert_eq!((assets.image.height, assets.image.tokens), (1024, 256));
        assert_eq!(assets.prompt.content, Content::Text);
        assert_eq!(assets.prompt.stop_ids, [2, 4]);
        assert_eq!(assets.prompt.image_token_id, Some(5));
        let names: Vec<&str> = assets.files.iter().map(|asset| asset.path.as_str()).collect();
        assert_eq!(
            names,
            [
                "chat_template.jinja",
                "config.json",
                "generation_config.json",
                "preprocessor_config.json",
                "processor_config.json",
                "tokenizer.json",
                "tokenizer_config.json"
            ]
        );
        let tokenizer: Value = serde_json::from_slice(&assets.files[5].contents).unwrap();
        assert_eq!(tokenizer["added_tokens"][1]["content"], "<image>");
        assert_eq!(assets.files[0].contents, TEXT_TEMPLATE.as_bytes());
        let origins: Vec<String> = assets
            .files
            .iter()
            .map(|asset| format!("{:?}", asset.origin))
            .collect();
        assert_eq!(
            origins,
            [
                "Derived(\"the conversation `qwen_2` in Apple's code\")",
                "Adapted(\"in the dialect of transformers.js, `llava_qwen2`\")",
                "Derived(\"greedy, with the model's stop ids\")",
                "Derived(\"the processor in Apple's code, at 1024 pixels\")",
                "Derived(\"LlavaProcessor, 64 pixels a token\")",
                "Adapted(\"with `<image>` as id 5\")",
                "Derived(\"with the chat template and LlavaProcessor\")",
            ]
        );
    }

    #[test]
    fn terms_of_use_go_along() {
        let assets = checkpoint(&[
            ("LICENSE", "Apple's terms\n"),
            ("README.md", "---\nlicense: apple-amlr\n---\n"),
        ]);
        let assets = assets.unwrap();
        assert_eq!(assets.license.as_deref(), Some("apple-amlr"));
        assert_eq!(assets.files[0].path, "LICENSE");
        assert_eq!(
            (&assets.files[0].contents[..], &assets.files[0].origin),
            (&b"Apple's terms\n"[..], &Origin::Kept)
        );
        assert_eq!(assets.files.len(), 8);
    }

    #[test]
    fn transformers_layout() {
        let config = fast_vlm();
        let assets = checkpoint(&[
            ("config.json", &config),
            ("tokenizer.json", IMAGE_TOKENIZER),
            ("preprocessor_config.json", PROCESSOR),
            (
                "generation_config.json",
                r#"{"eos_token_id": [4, 1], "pad_token_id": 1}"#,
            ),
            (
                "tokenizer_config.json",
                r#"{"eos_token": {"content": "x"}, "pad_token": "y", "bos_token": null}"#,
            ),
        ])
        .unwrap();
        assert_eq!(assets.image.aspect, Aspect::Crop);
        assert_eq!(
            (
                assets.image.height,
                assets.image.shortest_edge,
                assets.image.tokens
            ),
            (128, 100, 4)
        );
        assert_eq!(
            (assets.image.resample, assets.image.mean),
            (Resample::Bilinear, [0.5; 3])
        );
        assert_eq!(assets.prompt.stop_ids, [1, 4]);
        assert_eq!(assets.prompt.image_token_id, Some(5));
        assert_eq!(assets.prompt.special_tokens["eos_token"], "x");
        assert_eq!(assets.prompt.content, Content::Parts);
        let config: Value = serde_json::from_slice(&assets.files[1].contents).unwrap();
        assert_eq!(config["model_type"], "llava_qwen2");
        assert_eq!(config["num_key_value_heads"], 1);
        assert_eq!(config["rms_norm_eps"], 1e-6);
    }

    #[test]
    fn vocabulary_and_merges_make_a_tokenizer() {
        let assets = checkpoint(&[
            ("tokenizer.json", ""),
            ("vocab.json", r#"{"a": 0, "b": 1, "ab": 2}"#),
            ("merges.txt", "#version: 0.2\na b\n"),
            ("added_tokens.json", r#"{"<|im_end|>": 4, "<|endoftext|>": 3}"#),
        ])
        .unwrap();
        let tokenizer: Value = serde_json::from_slice(&assets.files[5].contents).unwrap();
        assert_eq!(tokenizer["model"]["merges"], json!(["a b"]));
        let ids: Vec<&Value> = tokenizer["added_tokens"]
            .as_array()
            .unwrap()
            .iter()
            .map(|token| &token["id"])
            .collect();
        assert_eq!(ids, [3, 4, 5]);
    }

    #[test]
    fn what_is_missing_or_unsupported_is_named() {
        let fast_vlm = fast_vlm();
        let cases: [(&[(&str, &str)], &str); 10] = [
            (&[("tokenizer.json", "")], "has no `tokenizer.json`"),
            (&[("tokenizer.json", "{}")], "has no `model` with a `vocab`"),
            (&[("chat_template.jinja", " \n")], "is empty"),
            (
                &[
                    ("config.json", &fast_vlm),
                    ("tokenizer.json", IMAGE_TOKENIZER),
                    (
                        "preprocessor_config.json",
                        r#"{"size": {"shortest_edge": 1024}, "rescale_factor": "x", "image_std": [1, 0, 1]}"#,
                    ),
                ],
                "`image_std` has a 0, by which pixels would be divided; `rescale_factor` is \"x\", expected a number",
            ),
            (
                &[("tokenizer.json", "[1]")],
                "tokenizer.json: is not a JSON object",
            ),
            (
                &[
                    ("tokenizer.json", r#"{"model": {"vocab": {}}}"#),
                    ("config.json", &CONFIG.replace("\"eos_token_id\": 2,", "")),
                ],
                "no `eos_token_id`",
            ),
            (
                &[("config.json", &CONFIG.replace("\"pad\"", "\"anyres\""))],
                "`image_aspect_ratio` is \"anyres\"",
            ),
            (
                &[("config.json", &fast_vlm), ("tokenizer.json", IMAGE_TOKENIZER)],
                "has no `preprocessor_config.json`",
            ),
            (
                &[
                    ("config.json", &fast_vlm),
                    ("preprocessor_config.json", PROCESSOR),
                ],
                "`image_token_index` is 5, the tokenizer has no such token",
            ),
            (
                &[
                    ("config.json", &fast_vlm),
                    ("tokenizer.json", IMAGE_TOKENIZER),
                    (
                        "preprocessor_config.json",
                        r#"{"size": 3, "resample": 9, "do_resize": false}"#,
                    ),
                ],
                "`do_resize` is false, this build supports true; `resample` is 9",
            ),
        ];
        let mut failures = Vec::new();
        for (files, expected) in cases {
            match checkpoint(files) {
                Err(message) if message.contains(expected) => {}
                other => failures.push(format!("{other:?}, expected {expected}")),
            }
        }
        assert!(failures.is_empty(), "{}", failures.join("\n"));
    }
}
