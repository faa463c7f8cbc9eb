//! What surrounds the weights in a checkpoint: from an image to pixels, from messages to ids, and the small
//! files that a bundle carries so that the ecosystem's own clients can open it.
//!
//! A bundle's `config.json` is written in the dialect that those clients know (`llava_qwen2`), whatever the
//! checkpoint's; its numbers are the checkpoint's.

pub(super) mod asset;
mod clients;
mod encoding;
mod generation;
mod graphs;
mod image;
mod text;
mod tokens;

use super::{license, small};
use crate::bundle::{Alpha, Content, ImageSpec, PromptSpec};
use crate::checkpoint::error::CheckpointError;
use crate::config::{Declared, Layout, ModelConfig};
pub use asset::{Asset, Origin};
use clients::{client_config, client_image, client_processor, client_tokenizer};
use image::{llava_aspect, llava_image, transformers_image};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use text::{Ids, image_token, special_tokens, stop_ids, template, tokenizer};
pub use text::{TEXT_TEMPLATE, is_named_template};

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

/// Names of the small files that are read where they exist; beside them, those that
/// [`is_license`](super::is_license) and [`is_named_template`] tell.
pub const SMALL_FILES: [&str; 15] = [
    "README.md",
    "adapter_config.json",
    "added_tokens.json",
    text::DEFAULT_TEMPLATE,
    "chat_template.jinja",
    "chat_template.json",
    "config.json",
    "generation_config.json",
    "merges.txt",
    "preprocessor_config.json",
    "processor_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
];

/// Those that say nothing of how text and images become inputs.
const NO_INPUTS: [&str; 4] = [
    "README.md",
    "adapter_config.json",
    "config.json",
    "generation_config.json",
];

/// The small files that say how text and images become inputs; beside them, those that [`is_named_template`] tells.
pub fn input_files() -> impl Iterator<Item = &'static str> {
    let inputs = |name: &&str| !NO_INPUTS.contains(name);
    SMALL_FILES.into_iter().filter(inputs)
}

/// Marks an image in a prompt, in both layouts.
const IMAGE_TOKEN: &str = "<image>";
/// Longest small file that is read.
const MAX_BYTES: u64 = 256 << 20;

/// Reads everything but the weights of the checkpoint in `directory`.
///
/// # Errors
/// A file that is missing, cannot be read or asks for something that this build does not do.
pub(super) fn assets(
    directory: &Path,
    config: &ModelConfig,
    declared: &Declared,
) -> Result<Assets, CheckpointError> {
    let files = Files { directory };
    let (image, from) = match declared.layout {
        Layout::Llava | Layout::Mlx => {
            let image = llava_image(&files, &declared.fields, config)?;
            let from = format!("the processor in Apple's code, at {} pixels", image.width);
            (image, from)
        }
        Layout::Transformers => {
            let image = transformers_image(&files, &declared.processors, config)?;
            (image, PROCESSOR_FIELDS.to_owned())
        }
    };
    let mut assets = with_image(&files, config, declared, image, from)?;
    if declared.layout == Layout::Transformers {
        // How many positions an image has says the tower here.
        let problems = graphs::processor_problems(&files, config)?.into_iter();
        let said =
            problems.map(|problem| format!("{}: {problem}: it is not believed", crate::config::PROCESSOR));
        assets.warnings.extend(said);
    }
    Ok(assets)
}

/// Reads everything but the graphs of the directory that others exported them to.
///
/// # Errors
/// As [`assets`], and files that contradict each other.
pub(super) fn of_graphs(directory: &Path, declared: &Declared) -> Result<Assets, CheckpointError> {
    let files = Files { directory };
    let config = &declared.config;
    let mut image = transformers_image(&files, &declared.processors, config)?;
    if declared.layout != Layout::Transformers {
        image.aspect = llava_aspect(&files, &declared.fields, image.mean)?;
        image.alpha = Alpha::Dropped;
    }
    graphs::check(&files, declared)?;
    with_image(&files, config, declared, image, PROCESSOR_FIELDS.to_owned())
}

/// Where a written processor is from, if the checkpoint has one.
const PROCESSOR_FIELDS: &str = "all fields of CLIPImageProcessor, defaults included";

/// Everything beside the image's way to pixels, which is `image`, and `from` what it is derived.
fn with_image(
    files: &Files<'_>,
    config: &ModelConfig,
    declared: &Declared,
    image: ImageSpec,
    from: String,
) -> Result<Assets, CheckpointError> {
    let Declared {
        layout,
        fields: declared,
        ..
    } = declared;
    let layout = *layout;
    let tokenizer_config = files.json("tokenizer_config.json")?.unwrap_or_else(|| json!({}));
    let (mut tokenizer, made) = tokenizer(files)?;
    if !tokenizer
        .pointer("/model/vocab")
        .is_some_and(|vocab| vocab.is_object() || vocab.is_array())
    {
        return Err(CheckpointError::malformed(
            &files.path("tokenizer.json"),
            "has no `model` with a `vocab`: is it a tokenizer of the tokenizers library?",
        ));
    }
    let rows = config.decoder.vocab_size;
    let special = tokens::complete(files, &tokenizer_config, &mut tokenizer, made, rows)?;
    let mut warnings = encoding::check(files, &tokenizer, made, &tokenizer_config, &special)?;
    let named = Ids::of(&tokenizer).added.contains_key(IMAGE_TOKEN);
    let image_token_id = image_token(files, declared, config, layout, &mut tokenizer)?;
    let ids = Ids::of(&tokenizer);
    let generation = files.json("generation_config.json")?;
    let stop_ids = stop_ids(files, generation.as_ref(), declared, &ids, layout, &mut warnings)?;
    warnings.extend(generation::left_out(generation.as_ref(), declared));
    if let Some(id) = image_token_id.filter(|id| stop_ids.contains(id)) {
        let problem = format!("{id} is the id of `{IMAGE_TOKEN}` and a stop id: {stop_ids:?}");
        return Err(files.config("generation_config.json", problem));
    }
    let (template, template_origin) = template(files, &tokenizer_config, layout, &mut warnings)?;
    let special_tokens = special_tokens(&tokenizer_config, &special.named, &template);
    let prompt = PromptSpec {
        tokenizer: "tokenizer.json".to_owned(),
        chat_template: "chat_template.jinja".to_owned(),
        content: match layout {
            Layout::Llava | Layout::Mlx => Content::Text,
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
        .or_else(|| generation.as_ref()?.get("pad_token_id"))
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
    let terms = license::find(files.directory)?;
    warnings.extend(terms.left_out);
    let mut assets = terms.files;
    assets.extend([
        Asset {
            path: "chat_template.jinja".to_owned(),
            contents: template.clone().into_bytes(),
            origin: template_origin,
        },
        file(
            "config.json",
            pretty(&client_config(config, declared, layout, &prompt)),
            "in the dialect of transformers.js, `llava_qwen2`".to_owned(),
        ),
        file(
            "generation_config.json",
            pretty(&generation),
            "greedy, with the model's stop ids".to_owned(),
        ),
        file("preprocessor_config.json", pretty(&client_image(&image)), from),
        file(
            "processor_config.json",
            pretty(&client_processor(token_side)),
            format!("LlavaProcessor, {token_side} pixels a token"),
        ),
        file(
            "tokenizer.json",
            tokenizer.to_string().into_bytes(),
            match (made, special.from, image_token_id) {
                (true, from, _) => format!(
                    "vocab.json, merges.txt and {}",
                    from.unwrap_or("added_tokens.json")
                ),
                (false, _, Some(id)) if !named => format!("with `{IMAGE_TOKEN}` as id {id}"),
                (false, Some(from), _) => format!("with the special tokens of {from}"),
                (false, None, _) => "without white space".to_owned(),
            },
        ),
        file(
            "tokenizer_config.json",
            pretty(&client_tokenizer(
                &tokenizer_config,
                &template,
                &prompt.special_tokens,
            )),
            "with the chat template and LlavaProcessor".to_owned(),
        ),
    ]);
    assets.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(Assets {
        image,
        prompt,
        files: assets,
        license: terms.name,
        warnings,
    })
}

/// The directory of a checkpoint, for who reads small files there.
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
        small::object_if_there(&self.path(name), MAX_BYTES)
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

#[cfg(test)]
mod tests;
