//! Does the contract say what the bundle's other files say?
//!
//! `bundle.json` has no hash. What of it changes an answer and is not checked against a graph stands a second
//! time in files that have one, for the ecosystem's clients: a byte that changed in `bundle.json` alone is a
//! disagreement. Where a bundle has no such file, as bundles of other programs, nothing is compared.

#![deny(clippy::as_conversions)]

use super::{Alpha, Aspect, Bundle, Content, ImageSpec, Resample, SizedEncoder};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// The files that the contract is compared with.
pub(super) const FILES: [&str; 5] = [
    "preprocessor_config.json",
    "config.json",
    "generation_config.json",
    "processor_config.json",
    TOKENIZER,
];

/// Where special tokens are either texts or objects with one.
const TOKENIZER: &str = "tokenizer_config.json";

/// Fields of the contract that stand in another file as well.
struct Shared {
    /// In `bundle.json`.
    field: &'static str,
    /// Its value there.
    stated: Value,
    /// The other file.
    file: &'static str,
    /// Where in it.
    pointer: &'static str,
}

impl Bundle {
    /// Compares the contract with the contents of [`FILES`], as far as the bundle has them; all disagreements.
    pub(super) fn check_agreement(&self, contents: &BTreeMap<&str, Vec<u8>>, problems: &mut Vec<String>) {
        let mut read: Vec<(&str, Option<Value>)> = Vec::new();
        for shared in self.shared() {
            let Shared {
                field,
                stated,
                file,
                pointer,
            } = shared;
            if !read.iter().any(|(name, _)| *name == file) {
                read.push((file, contents.get(file).and_then(|bytes| object(bytes))));
            }
            let found = read.iter().find(|(name, _)| *name == file);
            let Some(object) = found.and_then(|(_, object)| object.as_ref()) else {
                continue;
            };
            // What is not there contradicts nothing.
            let Some(found) = object.pointer(pointer) else {
                continue;
            };
            let said = if file == TOKENIZER {
                token(found)
            } else {
                found.clone()
            };
            if said != stated {
                let place = pointer.trim_start_matches('/').replace('/', ".");
                problems.push(format!(
                    "`{field}` is {stated} in `bundle.json`, and `{place}` is {found} in `{file}`"
                ));
            }
        }
        self.check_recipe(problems);
    }

    /// What two files state.
    fn shared(&self) -> Vec<Shared> {
        let (image, prompt, kv) = (&self.image, &self.prompt, &self.kv);
        let resample = match image.resample {
            Resample::Lanczos => 1,
            Resample::Bilinear => 2,
            Resample::Bicubic => 3,
        };
        let special = |name: &str| json!(prompt.special_tokens.get(name));
        let preprocessor = [
            ("image.height", json!(image.height), "/crop_size/height"),
            ("image.width", json!(image.width), "/crop_size/width"),
            (
                "image.shortest_edge",
                json!(image.shortest_edge),
                "/size/shortest_edge",
            ),
            ("image.resample", json!(resample), "/resample"),
            ("image.rescale", json!(image.rescale), "/rescale_factor"),
            ("image.mean", json!(image.mean), "/image_mean"),
            ("image.std", json!(image.std), "/image_std"),
        ];
        let config = [
            (
                "kv.max_context",
                json!(kv.max_context),
                "/max_position_embeddings",
            ),
            ("kv.layers", json!(kv.layers), "/num_hidden_layers"),
            ("kv.kv_heads", json!(kv.kv_heads), "/num_key_value_heads"),
            ("kv.head_dim", json!(kv.head_dim), "/head_dim"),
            (
                "prompt.image_token_id",
                json!(prompt.image_token_id),
                "/image_token_id",
            ),
            ("prompt.vocab_size", json!(prompt.vocab_size), "/vocab_size"),
            ("prompt.hidden_size", json!(prompt.hidden_size), "/hidden_size"),
        ];
        let generation = [("prompt.stop_ids", json!(prompt.stop_ids), "/eos_token_id")];
        let processor = [("prompt.image_token", json!(prompt.image_token), "/image_token")];
        let tokenizer = [
            (
                "prompt.special_tokens.bos_token",
                special("bos_token"),
                "/bos_token",
            ),
            (
                "prompt.special_tokens.eos_token",
                special("eos_token"),
                "/eos_token",
            ),
            (
                "prompt.special_tokens.pad_token",
                special("pad_token"),
                "/pad_token",
            ),
            (
                "prompt.special_tokens.unk_token",
                special("unk_token"),
                "/unk_token",
            ),
        ];
        let lists: [&[_]; 5] = [&preprocessor, &config, &generation, &processor, &tokenizer];
        let shared = FILES.into_iter().zip(lists).flat_map(|(file, fields)| {
            fields.iter().map(move |(field, stated, pointer)| Shared {
                field,
                stated: stated.clone(),
                file,
                pointer,
            })
        });
        shared.collect()
    }

    /// What follows from other fields: from the layout how an image is made square and what templates take, from
    /// the first image size the edges of the others.
    fn check_recipe(&self, problems: &mut Vec<String>) {
        let ImageSpec {
            aspect, alpha, mean, ..
        } = &self.image;
        let content = self.prompt.content;
        let fits = match self.model.layout.as_str() {
            "transformers" => *aspect == Aspect::Crop,
            "llava" | "mlx" => *alpha == Alpha::Dropped && content == Content::Text,
            _ => true,
        };
        if !fits {
            let layout = &self.model.layout;
            problems.push(format!(
                "`image.aspect` is {aspect:?}, `image.alpha` {alpha:?} and `prompt.content` {content:?}, which layout \
                 `{layout}` has not"
            ));
        }
        if let Aspect::Pad { color } = aspect {
            // `int(mean * 255)`, as LLaVA's code does.
            let expected = mean.map(|mean| (mean * 255.0).trunc().clamp(0.0, 255.0));
            if color.map(f64::from) != expected {
                problems.push(format!(
                    "`image.aspect.color` is {color:?}, expected {expected:?}, the mean"
                ));
            }
        }
        for encoder in self.variants.iter().flat_map(|variant| &variant.further_encoders) {
            let SizedEncoder {
                height: side,
                shortest_edge: edge,
                ..
            } = encoder;
            let expected = self.image.edge_at(u64::from(*side));
            if self.lists("preprocessor_config.json") && u64::from(*edge) != expected {
                problems.push(format!(
                    "images of {side} x {side} have shortest edge {edge}, expected {expected}"
                ));
            }
        }
    }

    fn lists(&self, name: &str) -> bool {
        self.files.iter().any(|file| file.path == name)
    }
}

/// The object in a file; none where it is something else.
fn object(bytes: &[u8]) -> Option<Value> {
    let text = std::str::from_utf8(bytes).ok()?;
    let value: Value = serde_json::from_str(crate::regular::without_mark(text)).ok()?;
    value.is_object().then_some(value)
}

/// A special token as the contract writes it: its text, or nothing.
fn token(value: &Value) -> Value {
    let text = value
        .as_str()
        .or_else(|| value.get("content").and_then(Value::as_str));
    json!(text)
}
