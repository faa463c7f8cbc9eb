//! The bundle: the directory in which exporter and runtime meet, and its contract `bundle.json`.
//!
//! Everything a runtime needs stands here; a runtime hard-codes no token id, size, layer count, tensor name or file
//! name. [`Bundle::check`] is the one check, used by the writer before it publishes and by every reader.

#![deny(clippy::as_conversions)]

mod check;
mod form;

pub use form::{Precision, Target, UnknownForm, UnknownWord};

#[cfg(feature = "describe")]
pub(crate) use check::inside;

use crate::dtype::DType;
use crate::error::BundleError;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// The schema that this build writes and reads.
pub const SCHEMA: u32 = 1;

/// File name of the contract inside a bundle.
pub const FILE_NAME: &str = "bundle.json";

/// Longest contract that is read.
const MAX_BYTES: u64 = 64 << 20;
/// Most decoder layers of a contract that is believed.
const MAX_LAYERS: usize = 4096;
/// Longest side of an image.
const MAX_SIDE: u32 = 1 << 14;
/// Bytes hashed at a time.
const BLOCK: usize = 1 << 20;

/// The contents of `bundle.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bundle {
    /// [`SCHEMA`]; a reader refuses any other number.
    pub schema: u32,
    /// Program and version that wrote the bundle: `fvlm-export 0.1.0`.
    pub tool: String,
    /// What was exported.
    pub model: ModelInfo,
    /// The checkpoint's files that went into the bundle, sorted by name.
    pub source: Vec<FileEntry>,
    /// Geometry of the KV cache.
    pub kv: KvSpec,
    /// From an image file to `pixel_values`.
    pub image: ImageSpec,
    /// From messages to token ids, and when to stop.
    pub prompt: PromptSpec,
    /// The exported forms of the networks; at least one here or in `packages`.
    pub variants: Vec<Variant>,
    /// The networks in Core ML's own form. Left out of the text where there are none; a reader that does not know the field
    /// refuses a bundle that has it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub packages: Vec<CoreMlPackages>,
    /// Every other file of the bundle, sorted by path, with length and SHA-256.
    pub files: Vec<FileEntry>,
    /// What was left out of `variants` and `packages` when the contract was read, because this build does not know its words.
    #[serde(skip)]
    pub unknown: Vec<UnknownForm>,
}

/// What was exported.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelInfo {
    /// Name for people: `demo`, `apple/FastVLM-0.5B`, a directory's name.
    pub name: String,
    /// Layout of the checkpoint: `llava` or `transformers`.
    pub layout: String,
    /// Element type of most of the checkpoint's bytes.
    pub stored: DType,
    /// Parameter counts of the canonical weights.
    pub parameters: Parameters,
    /// What the checkpoint calls its terms of use, which lie in the bundle if it has them as files. `None` where it says nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub license: Option<String>,
}

/// Parameter counts of the canonical (folded) weights; a tied table counts once, in `embed`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Parameters {
    /// The vision tower.
    pub vision: u64,
    /// The projector.
    pub projector: u64,
    /// The token embedding table.
    pub embed: u64,
    /// The decoder, with an untied head.
    pub decoder: u64,
}

/// A file with its length and SHA-256 (lower-case hex).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileEntry {
    /// Relative path with forward slashes, no `.` or `..`.
    pub path: String,
    /// Length in bytes.
    pub bytes: u64,
    /// SHA-256 of the contents, lower-case hex.
    pub sha256: String,
}

/// Geometry of the KV cache: per layer a key and a value of `[batch, kv_heads, past, head_dim]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KvSpec {
    /// Decoder layers.
    pub layers: usize,
    /// Heads of keys and values.
    pub kv_heads: usize,
    /// Length of one head.
    pub head_dim: usize,
    /// Longest sequence that the model was made for (`max_position_embeddings`).
    pub max_context: usize,
}

/// How an image becomes `pixel_values [1,3,height,width]`, in this order: convert to RGB, `aspect`, resize, crop,
/// times `rescale`, minus `mean`, divided by `std`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageSpec {
    /// Height of `pixel_values`.
    pub height: u32,
    /// Width of `pixel_values`.
    pub width: u32,
    /// What is done about images that are not square, before the resize.
    pub aspect: Aspect,
    /// The resize: the shortest edge becomes this long, the other in proportion (truncated, as transformers does).
    pub shortest_edge: u32,
    /// The filter of the resize.
    pub resample: Resample,
    /// Multiplies each byte: 1/255.
    pub rescale: f64,
    /// Subtracted, per channel, after `rescale`.
    pub mean: [f64; 3],
    /// Divides, per channel.
    pub std: [f64; 3],
    /// Positions that one image takes in the decoder's sequence.
    pub tokens: usize,
}

/// What is done about images that are not square.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind", deny_unknown_fields)]
pub enum Aspect {
    /// transformers' recipe: nothing; the centre crop after the resize cuts the longer edge.
    Crop,
    /// LLaVA's recipe: a square of the longer edge in `color`, the image pasted at half the difference, rounded down.
    Pad {
        /// RGB, `int(mean * 255)`.
        color: [u8; 3],
    },
}

/// The filter of a resize.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Resample {
    /// Pillow's `BICUBIC`: antialiased, a = -0.5.
    Bicubic,
    /// Pillow's `BILINEAR`: antialiased triangle.
    Bilinear,
    /// Pillow's `LANCZOS`: a = 3.
    Lanczos,
}

/// How messages become token ids.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PromptSpec {
    /// Path of `tokenizer.json` in the bundle.
    pub tokenizer: String,
    /// Path of the chat template (Jinja) in the bundle.
    pub chat_template: String,
    /// What the template expects as a message's content.
    pub content: Content,
    /// Marks an image's place in the rendered prompt: `<image>`.
    pub image_token: String,
    /// Id of `image_token` where the vocabulary has it. It is never embedded: features take its place.
    pub image_token_id: Option<i64>,
    /// Ids that end a generation, sorted.
    pub stop_ids: Vec<i64>,
    /// Text of special tokens that templates may ask for (`bos_token`, `eos_token`, `pad_token`), sorted by name.
    pub special_tokens: std::collections::BTreeMap<String, String>,
    /// Rows of the embedding table and of the logits (with padding rows).
    pub vocab_size: usize,
    /// Length of an embedding.
    pub hidden_size: usize,
}

/// What a chat template expects as `message.content`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Content {
    /// A string; images are written as `image_token` and a line break before the text (LLaVA's way).
    Text,
    /// A list of `{"type": "image"}` and `{"type": "text", "text": ..}` (transformers' way).
    Parts,
}

/// One exported form of the networks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Variant {
    /// For which engines.
    pub target: Target,
    /// How weights are stored.
    pub precision: Precision,
    /// ONNX opset of the graphs.
    pub opset: i64,
    /// Element type of the KV cache's inputs and outputs.
    pub kv_dtype: DType,
    /// `pixel_values -> image_features`, of the size that [`Bundle::image`] states.
    pub vision_encoder: GraphEntry,
    /// Encoders for other image sizes, ascending by size. Left out of the text where there are none, so that a bundle of
    /// one size reads as it always did; a reader that does not know the field refuses a bundle that has it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub further_encoders: Vec<SizedEncoder>,
    /// `input_ids -> inputs_embeds`.
    pub embed_tokens: GraphEntry,
    /// `inputs_embeds, attention_mask, position_ids, past_key_values.* -> logits, present.*`; with `fixed` the graph for one
    /// new position, see [`FixedDecoder`].
    pub decoder: GraphEntry,
    /// What else there is to know of networks whose lengths are fixed. Left out of the text where they are not; a reader
    /// that does not know the field refuses a bundle that has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fixed: Option<FixedDecoder>,
}

/// What [`FixedDecoder`]s hide a slot with: float16's lowest number, so that adding it to a score of any size keeps it finite
/// or makes it minus infinity, and its weight 0.
pub const HIDDEN: f32 = -65504.0;

/// A decoder whose lengths are numbers: a graph for one new position ([`Variant::decoder`]) and graphs for more, with a
/// cache of `context` slots as inputs `past_key_values.* [1,kv_heads,context,head_dim]`.
///
/// Outputs `present.* [1,kv_heads,new,head_dim]` are the keys and values of the new slots alone; whoever runs the graph writes
/// those of real positions into the cache. Fewer positions than slots are padded on the left: the last slot is the last
/// position, and `logits` are its. `positions [1,new]` are float32. `attention_bias [1,1,new,context + new]` is added to the
/// scores: 0 where the slot of the row looks at the slot of the column (first those of the cache, then the new ones),
/// [`HIDDEN`] where not. Every row must see at least itself, padding too.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FixedDecoder {
    /// Slots of the cache, and so the longest sequence: at most [`KvSpec::max_context`].
    pub context: usize,
    /// Graphs for several new positions, ascending; they read the weights of the variant's `decoder`.
    pub prefill: Vec<Prefill>,
}

/// A decoder's graph for several new positions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Prefill {
    /// New slots: at least 2.
    pub new: usize,
    /// The graph.
    pub graph: GraphEntry,
}

/// The networks as Core ML packages: directories that are opened whole.
///
/// The encoder has one function, `pixel_values [1,3,H,W] -> image_features [1,tokens,hidden]`, float32. The decoder has a function
/// `step` for one new position and `prefill_N` for `N`, which share their weights and two states, `key_cache` and `value_cache`
/// `[layers,kv_heads,context,head_dim]`, float16: `inputs_embeds [1,N,hidden]` (float32), `position [1]` (int32: how many slots are
/// filled) and, for more than one position, `last [1]` (int32: the row of the last real one) `-> logits [1,1,vocab]` (float32).
/// Fewer positions than `N` are padded behind, where `position + N` must not be above `context`; what padding wrote is not
/// looked at, and written over by the next call.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CoreMlPackages {
    /// How weights are stored.
    pub precision: Precision,
    /// Directory of the encoder's package in the bundle.
    pub vision_encoder: String,
    /// The same for iOS 16 and macOS 13, where it was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vision_encoder_ios16: Option<String>,
    /// Directory of the decoder's package, for iOS 18 and macOS 15.
    pub decoder: String,
    /// Slots of the cache: at most [`KvSpec::max_context`].
    pub context: usize,
    /// New positions of the prefill functions, ascending: at least 2 each.
    pub prefill: Vec<usize>,
    /// The table that token ids are looked up in.
    pub embedding: EmbeddingRows,
}

impl CoreMlPackages {
    /// The directories of its packages.
    pub fn directories(&self) -> impl Iterator<Item = &String> {
        [&self.vision_encoder, &self.decoder]
            .into_iter()
            .chain(&self.vision_encoder_ios16)
    }
}

/// Rows of a table `[vocab, hidden]` in a file, to be read one at a time where they lie.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EmbeddingRows {
    /// The file.
    pub path: String,
    /// Element type of a row, and of the scales where there are some.
    pub dtype: DType,
    /// First byte of the rows.
    pub offset: u64,
    /// First byte of a scale for each row: the rows are then signed bytes, to be multiplied by it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scales: Option<u64>,
}

/// A vision encoder for another image size than the one that [`ImageSpec`] states, and what it changes there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SizedEncoder {
    /// Height of `pixel_values`.
    pub height: u32,
    /// Width of `pixel_values`.
    pub width: u32,
    /// As [`ImageSpec::shortest_edge`].
    pub shortest_edge: u32,
    /// As [`ImageSpec::tokens`].
    pub tokens: usize,
    /// `pixel_values -> image_features`; it reads the weights of the variant's `vision_encoder`.
    pub graph: GraphEntry,
}

impl ImageSpec {
    /// The same for the images of another encoder.
    fn of(&self, encoder: &SizedEncoder) -> ImageSpec {
        ImageSpec {
            height: encoder.height,
            width: encoder.width,
            shortest_edge: encoder.shortest_edge,
            tokens: encoder.tokens,
            ..self.clone()
        }
    }
}

/// A graph file and its contract.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GraphEntry {
    /// Path of the `.onnx` file in the bundle.
    pub path: String,
    /// Paths of the external-data files that it reads, sorted.
    pub data: Vec<String>,
    /// Inputs in order.
    pub inputs: Vec<Io>,
    /// Outputs in order.
    pub outputs: Vec<Io>,
}

/// One input or output of a graph.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Io {
    /// `inputs_embeds`, `past_key_values.0.key`, ...
    pub name: String,
    /// Element type.
    pub dtype: DType,
    /// Outermost first.
    pub dims: Vec<IoDim>,
}

/// A dimension in the contract: a number, or one of `batch`, `past`, `new`, `total`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum IoDim {
    /// Fixed length.
    Fixed(u64),
    /// A symbol.
    Symbol(String),
}

impl Bundle {
    /// Reads the contract of the bundle in `directory` and checks it. A form whose target or precision this build does not
    /// know is set aside, see [`Bundle::unknown`]: a bundle of a newer program opens with the forms that are known.
    ///
    /// # Errors
    /// No bundle there, another schema, no form with known words, or a contract that the files do not keep.
    pub fn open(directory: &Path) -> Result<Bundle, BundleError> {
        let path = directory.join(FILE_NAME);
        let io = |source| BundleError::Io {
            path: path.clone(),
            source,
        };
        if !path.exists() {
            return Err(BundleError::NotABundle {
                path: directory.to_owned(),
            });
        }
        let malformed = |problem: String| BundleError::Malformed {
            path: path.clone(),
            problem,
        };
        let mut text = String::new();
        let read = File::open(&path)
            .map_err(io)?
            .take(MAX_BYTES + 1)
            .read_to_string(&mut text)
            .map_err(io)?;
        if u64::try_from(read).unwrap_or(u64::MAX) > MAX_BYTES {
            return Err(malformed(format!("is longer than {MAX_BYTES} bytes")));
        }
        let mut value: serde_json::Value =
            serde_json::from_str(&text).map_err(|error| malformed(error.to_string()))?;
        // The schema first: the fields of another one mean nothing here.
        match value.get("schema").and_then(serde_json::Value::as_u64) {
            None => return Err(malformed("has no number `schema`".to_owned())),
            Some(found) if found != u64::from(SCHEMA) => {
                return Err(BundleError::Schema {
                    path,
                    found,
                    expected: SCHEMA,
                });
            }
            Some(_) => {}
        }
        let unknown = form::set_aside(&mut value);
        let bundle = if unknown.is_empty() {
            // From the text, so that an error has its line.
            serde_json::from_str(&text)
        } else {
            serde_json::from_value(value)
        };
        let mut bundle: Bundle = bundle.map_err(|error| malformed(error.to_string()))?;
        bundle.unknown = unknown;
        bundle.check(directory)?;
        Ok(bundle)
    }

    /// The text of `bundle.json`.
    pub fn to_json(&self) -> String {
        // A value of these types always has a JSON form.
        let mut text = serde_json::to_string_pretty(self).unwrap_or_default();
        text.push('\n');
        text
    }

    /// Heights and widths of the images that some variant has an encoder for: that of [`Bundle::image`] first, the others
    /// ascending.
    pub fn image_sizes(&self) -> Vec<(u32, u32)> {
        let further: BTreeSet<(u32, u32)> = self
            .variants
            .iter()
            .flat_map(|variant| &variant.further_encoders)
            .map(|encoder| (encoder.height, encoder.width))
            .collect();
        std::iter::once((self.image.height, self.image.width))
            .chain(further)
            .collect()
    }

    /// The bundle as if images of that size were its only ones: a contract about the same files whose
    /// [`image`](Bundle::image) and [`vision_encoder`](Variant::vision_encoder) are those of the size, with the variants
    /// that have it. `None` where none does.
    pub fn at_size(&self, height: u32, width: u32) -> Option<Bundle> {
        let mut bundle = self.clone();
        if (self.image.height, self.image.width) == (height, width) {
            bundle
                .variants
                .iter_mut()
                .for_each(|variant| variant.further_encoders.clear());
            return Some(bundle);
        }
        bundle.variants.clear();
        for variant in &self.variants {
            let mut encoders = variant.further_encoders.iter();
            if let Some(encoder) = encoders.find(|one| (one.height, one.width) == (height, width)) {
                bundle.image = self.image.of(encoder);
                bundle.variants.push(Variant {
                    vision_encoder: encoder.graph.clone(),
                    further_encoders: Vec::new(),
                    ..variant.clone()
                });
            }
        }
        (!bundle.variants.is_empty()).then_some(bundle)
    }

    /// Longest sequence that a variant's decoder takes.
    pub fn context(&self, variant: &Variant) -> usize {
        let fixed = variant.fixed.as_ref().map(|fixed| fixed.context);
        fixed.unwrap_or(self.kv.max_context).min(self.kv.max_context)
    }
}

impl std::fmt::Display for Io {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let dims: Vec<String> = self
            .dims
            .iter()
            .map(|dim| match dim {
                IoDim::Fixed(length) => length.to_string(),
                IoDim::Symbol(name) => name.clone(),
            })
            .collect();
        write!(f, "`{}` {} [{}]", self.name, self.dtype, dims.join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sha2::{Digest as _, Sha256};
    use std::collections::BTreeMap;

    fn io(name: &str, dtype: DType, dims: &[&str]) -> Io {
        let dims = dims
            .iter()
            .map(|dim| {
                dim.parse()
                    .map_or_else(|_| IoDim::Symbol((*dim).to_owned()), IoDim::Fixed)
            })
            .collect();
        Io {
            name: name.to_owned(),
            dtype,
            dims,
        }
    }

    fn graph(path: &str, inputs: Vec<Io>, outputs: Vec<Io>) -> GraphEntry {
        GraphEntry {
            path: path.to_owned(),
            data: Vec::new(),
            inputs,
            outputs,
        }
    }

    /// A bundle of one layer whose files hold their own names.
    fn bundle() -> Bundle {
        use DType::{Float32, Int64};
        let cache = |prefix: &str, length: &str| -> Vec<Io> {
            let one = |part: &str| {
                io(
                    &format!("{prefix}.0.{part}"),
                    Float32,
                    &["batch", "2", length, "8"],
                )
            };
            vec![one("key"), one("value")]
        };
        let embeds = || io("inputs_embeds", Float32, &["batch", "new", "16"]);
        let mut inputs = vec![
            embeds(),
            io("attention_mask", Int64, &["batch", "total"]),
            io("position_ids", Int64, &["batch", "new"]),
        ];
        inputs.extend(cache("past_key_values", "past"));
        let mut outputs = vec![io("logits", Float32, &["batch", "1", "50"])];
        outputs.extend(cache("present", "total"));
        let files = [
            "chat_template.jinja",
            "onnx/d.onnx",
            "onnx/e.onnx",
            "onnx/v.onnx",
            "tokenizer.json",
        ];
        let entry = |path: &&str| FileEntry {
            path: (*path).to_owned(),
            bytes: u64::try_from(path.len()).unwrap(),
            sha256: Sha256::digest(path)
                .iter()
                .map(|byte| format!("{byte:02x}"))
                .collect(),
        };
        Bundle {
            schema: SCHEMA,
            tool: "fvlm-export 0.1.0".to_owned(),
            model: ModelInfo {
                name: "demo".to_owned(),
                layout: "llava".to_owned(),
                stored: Float32,
                parameters: Parameters {
                    vision: 1,
                    projector: 1,
                    embed: 1,
                    decoder: 1,
                },
                license: None,
            },
            source: Vec::new(),
            packages: Vec::new(),
            kv: KvSpec {
                layers: 1,
                kv_heads: 2,
                head_dim: 8,
                max_context: 100,
            },
            image: ImageSpec {
                height: 64,
                width: 64,
                aspect: Aspect::Crop,
                shortest_edge: 64,
                resample: Resample::Bicubic,
                rescale: 1.0 / 255.0,
                mean: [0.0; 3],
                std: [1.0; 3],
                tokens: 1,
            },
            prompt: PromptSpec {
                tokenizer: "tokenizer.json".to_owned(),
                chat_template: "chat_template.jinja".to_owned(),
                content: Content::Text,
                image_token: "<image>".to_owned(),
                image_token_id: None,
                stop_ids: vec![49],
                special_tokens: BTreeMap::new(),
                vocab_size: 50,
                hidden_size: 16,
            },
            variants: vec![Variant {
                target: Target::Portable,
                precision: Precision::Fp32,
                opset: 20,
                kv_dtype: Float32,
                vision_encoder: graph(
                    "onnx/v.onnx",
                    vec![io("pixel_values", Float32, &["batch", "3", "64", "64"])],
                    vec![io("image_features", Float32, &["batch", "1", "16"])],
                ),
                further_encoders: Vec::new(),
                embed_tokens: graph(
                    "onnx/e.onnx",
                    vec![io("input_ids", Int64, &["batch", "new"])],
                    vec![embeds()],
                ),
                decoder: graph("onnx/d.onnx", inputs, outputs),
                fixed: None,
            }],
            files: files.iter().map(entry).collect(),
            unknown: Vec::new(),
        }
    }

    /// [`bundle`] with an encoder for images of another size in the same file.
    fn two_sizes() -> Bundle {
        let mut bundle = bundle();
        let mut graph = bundle.variants[0].vision_encoder.clone();
        graph.inputs = vec![io("pixel_values", DType::Float32, &["batch", "3", "128", "128"])];
        graph.outputs = vec![io("image_features", DType::Float32, &["batch", "4", "16"])];
        bundle.variants[0].further_encoders.push(SizedEncoder {
            height: 128,
            width: 128,
            shortest_edge: 144,
            tokens: 4,
            graph,
        });
        bundle
    }

    #[test]
    fn a_size_is_a_bundle_of_its_own() {
        let whole = two_sizes();
        let directory = on_disk(&whole);
        let read = Bundle::open(directory.path()).unwrap();
        assert_eq!(read, whole);
        assert_eq!(read.image_sizes(), [(64, 64), (128, 128)]);
        assert_eq!(read.at_size(64, 64), Some(bundle()));
        assert_eq!(read.at_size(128, 64), None);
        let large = read.at_size(128, 128).unwrap();
        large.check(directory.path()).unwrap();
        assert_eq!(large.image_sizes(), [(128, 128)]);
        assert_eq!((large.image.shortest_edge, large.image.tokens), (144, 4));
        // A variant without that size is not part of it.
        let mut uneven = whole;
        uneven.variants.push(Variant {
            target: Target::Cpu,
            further_encoders: Vec::new(),
            ..uneven.variants[0].clone()
        });
        assert_eq!(uneven.at_size(64, 64).unwrap().variants.len(), 2);
        assert_eq!(uneven.at_size(128, 128).unwrap().variants.len(), 1);
    }

    /// [`bundle`] with lengths of 6 slots, 1 and 4 new ones.
    fn fixed_lengths() -> Bundle {
        use DType::Float32;
        let mut bundle = bundle();
        let cache = |prefix: &str, length: &str| {
            ["key", "value"].map(|part| io(&format!("{prefix}.0.{part}"), Float32, &["1", "2", length, "8"]))
        };
        let decoder = |new: &str, slots: &str| {
            let mut inputs = vec![
                io("inputs_embeds", Float32, &["1", new, "16"]),
                io("attention_bias", Float32, &["1", "1", new, slots]),
                io("positions", Float32, &["1", new]),
            ];
            inputs.extend(cache("past_key_values", "6"));
            let mut outputs = vec![io("logits", Float32, &["1", "1", "50"])];
            outputs.extend(cache("present", new));
            graph("onnx/d.onnx", inputs, outputs)
        };
        let variant = &mut bundle.variants[0];
        variant.target = Target::OrtCoreMl;
        variant.vision_encoder.inputs[0].dims[0] = IoDim::Fixed(1);
        variant.vision_encoder.outputs[0].dims[0] = IoDim::Fixed(1);
        variant.decoder = decoder("1", "7");
        variant.fixed = Some(FixedDecoder {
            context: 6,
            prefill: vec![Prefill {
                new: 4,
                graph: decoder("4", "10"),
            }],
        });
        bundle
    }

    #[test]
    fn fixed_lengths_are_read_and_checked() {
        let whole = fixed_lengths();
        let read = Bundle::open(on_disk(&whole).path()).unwrap();
        assert_eq!(read, whole);
        assert_eq!(read.context(&read.variants[0]), 6);
        assert_eq!(bundle().context(&bundle().variants[0]), 100);
        type Change = fn(&mut FixedDecoder, &mut GraphEntry);
        let cases: [(Change, &str); 6] = [
            (
                |fixed, _| fixed.context = 101,
                "a cache of 101 slots and graphs for [4] new ones",
            ),
            (|fixed, _| fixed.prefill[0].new = 1, "graphs for [1] new ones"),
            (
                |fixed, _| fixed.prefill.push(fixed.prefill[0].clone()),
                "graphs for [4, 4] new ones",
            ),
            (
                |fixed, _| fixed.prefill[0].new = 3,
                "expected `inputs_embeds` float32 [1,3,16]",
            ),
            (
                |fixed, _| fixed.prefill[0].graph.path = "onnx/w.onnx".to_owned(),
                "`onnx/w.onnx` is used and not listed",
            ),
            (|_, step| step.inputs.truncate(2), "has 2 inputs, expected 5"),
        ];
        for (change, expected) in cases {
            let mut bundle = fixed_lengths();
            let variant = &mut bundle.variants[0];
            change(variant.fixed.as_mut().unwrap(), &mut variant.decoder);
            let message = Bundle::open(on_disk(&bundle).path()).unwrap_err().to_string();
            assert!(message.contains(expected), "{message}, expected {expected}");
        }
    }

    #[test]
    fn what_is_wrong_with_packages_is_named() {
        type Change = fn(&mut CoreMlPackages);
        let cases: [(Change, &str); 6] = [
            (
                |_| {},
                "the embedding of precision fp16 lies beyond the end of its file",
            ),
            (
                |p| p.embedding.offset = u64::MAX,
                "the embedding of precision fp16 lies beyond the end of its file",
            ),
            (
                |p| p.context = 101,
                "a cache of 101 slots and functions for [4] new ones",
            ),
            (|p| p.prefill = vec![4, 2], "functions for [4, 2] new ones"),
            (
                |p| p.decoder = "coreml/other.mlpackage".to_owned(),
                "`coreml/other.mlpackage/Manifest.json` is used and not listed",
            ),
            (
                |p| p.vision_encoder_ios16 = Some("../e".to_owned()),
                "`../e/Data/com.apple.CoreML/weights/weight.bin` is used and not listed",
            ),
        ];
        for (change, expected) in cases {
            let mut bundle = bundle();
            let mut packages = CoreMlPackages {
                precision: Precision::Fp16,
                vision_encoder: "coreml/vision_encoder.mlpackage".to_owned(),
                vision_encoder_ios16: None,
                decoder: "coreml/decoder.mlpackage".to_owned(),
                context: 8,
                prefill: vec![4],
                embedding: EmbeddingRows {
                    path: "onnx/w.onnx_data".to_owned(),
                    dtype: DType::Float16,
                    offset: 64,
                    scales: None,
                },
            };
            change(&mut packages);
            bundle.packages.push(packages);
            let message = Bundle::open(on_disk(&bundle).path()).unwrap_err().to_string();
            assert!(message.contains(expected), "{message}, expected {expected}");
        }
    }

    #[test]
    fn what_is_wrong_with_a_size_is_named() {
        type Change = fn(&mut Bundle);
        let cases: [(Change, &str); 6] = [
            (
                |b| b.variants[0].further_encoders[0].tokens = 5,
                "expected `image_features` float32 [batch,5,16]",
            ),
            (
                |b| b.variants[0].further_encoders[0].height = 64,
                "expected `pixel_values` float32 [batch,3,64,128]",
            ),
            (
                |b| b.variants[0].further_encoders[0].width = 1 << 20,
                "expected sides from 1 to 16384",
            ),
            (
                |b| b.variants[0].further_encoders[0].graph.path = "onnx/w.onnx".to_owned(),
                "`onnx/w.onnx` is used and not listed",
            ),
            (
                |b| {
                    let again = b.variants[0].further_encoders[0].clone();
                    b.variants[0].further_encoders.push(again);
                },
                "variant portable fp32 has two encoders of images of 128 x 128",
            ),
            (
                |b| {
                    let mut other = b.variants[0].clone();
                    other.target = Target::Cpu;
                    other.further_encoders[0].shortest_edge = 128;
                    b.variants.push(other);
                },
                "images of 128 x 128 have shortest edge 144 and 4 tokens in one encoder, 128 and 4 in another",
            ),
        ];
        for (change, expected) in cases {
            let mut bundle = two_sizes();
            change(&mut bundle);
            let message = Bundle::open(on_disk(&bundle).path()).unwrap_err().to_string();
            assert!(message.contains(expected), "{message}, expected {expected}");
        }
    }

    /// A newer program may write forms that this build has no word for, with fields that it does not know either.
    #[test]
    fn forms_of_a_newer_program_are_set_aside() {
        let directory = on_disk(&bundle());
        let open = |change: &dyn Fn(&mut serde_json::Value)| {
            let mut value = serde_json::to_value(bundle()).unwrap();
            change(&mut value);
            std::fs::write(directory.path().join(FILE_NAME), value.to_string()).unwrap();
            Bundle::open(directory.path())
        };
        let newer = serde_json::json!({"target": "npu", "precision": "fp32", "new": 1});
        let read = open(&|value| value["variants"].as_array_mut().unwrap().insert(0, newer.clone())).unwrap();
        let [unknown] = &read.unknown[..] else {
            panic!("{:?}", read.unknown)
        };
        assert_eq!(
            unknown.to_string(),
            "`variants[0].target` is `npu`, expected one of portable, cpu, coreml"
        );
        let known = Bundle {
            unknown: Vec::new(),
            ..read
        };
        assert_eq!(known, bundle());
        let message = open(&|value| value["variants"][0]["precision"] = "fp8".into()).unwrap_err();
        let expected = "no form that this build knows: `variants[0].precision` is `fp8`, expected one of fp32, fp16, int8, q4";
        assert!(message.to_string().ends_with(expected), "{message}");
        let message = open(&|value| value["variants"][0]["target"] = 1.into()).unwrap_err();
        assert!(
            message.to_string().contains("invalid type: integer `1`"),
            "{message}"
        );
    }

    fn on_disk(bundle: &Bundle) -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join("onnx")).unwrap();
        for file in self::bundle().files {
            std::fs::write(directory.path().join(&file.path), &file.path).unwrap();
        }
        std::fs::write(directory.path().join(FILE_NAME), bundle.to_json()).unwrap();
        directory
    }

    #[test]
    fn what_is_written_is_read() {
        let directory = on_disk(&bundle());
        let read = Bundle::open(directory.path()).unwrap();
        assert_eq!(read, bundle());
        let mut bytes = 0;
        read.verify_hashes(directory.path(), &mut |count| bytes += count)
            .unwrap();
        assert_eq!(bytes, read.files.iter().map(|file| file.bytes).sum::<u64>());
        std::fs::write(directory.path().join("onnx/v.onnx"), "onnx/V.onnx").unwrap();
        let error = read
            .verify_hashes(directory.path(), &mut |_| {})
            .unwrap_err()
            .to_string();
        assert!(error.contains("`onnx/v.onnx` has SHA-256"), "{error}");
    }

    #[test]
    fn what_breaks_the_contract_is_named() {
        struct Case {
            change: fn(&mut Bundle),
            expected: &'static str,
        }
        let cases = [
            Case {
                change: |b| b.schema = 2,
                expected: "schema 2, this build reads schema 1",
            },
            Case {
                change: |b| b.kv.layers = 0,
                expected: "`kv` is KvSpec",
            },
            Case {
                change: |b| b.kv.layers = usize::MAX,
                expected: "at most 4096 layers",
            },
            Case {
                change: |b| b.kv.head_dim = 9,
                expected: "expected `past_key_values.0.key` float32 [batch,2,past,9]",
            },
            Case {
                change: |b| b.image.height = 0,
                expected: "expected sides from 1 to 16384",
            },
            Case {
                change: |b| b.image.std[1] = 0.0,
                expected: "cannot be divided by",
            },
            Case {
                change: |b| b.image.tokens = 4,
                expected: "expected `image_features` float32 [batch,4,16]",
            },
            Case {
                change: |b| b.prompt.stop_ids = vec![50],
                expected: "beyond its vocabulary of 50",
            },
            Case {
                change: |b| b.prompt.image_token_id = Some(-1),
                expected: "beyond its vocabulary of 50",
            },
            Case {
                change: |b| b.prompt.tokenizer = "other.json".to_owned(),
                expected: "`other.json` is used and not listed",
            },
            Case {
                change: |b| b.variants.clear(),
                expected: "there is neither a variant nor a package",
            },
            Case {
                change: |b| b.variants.push(b.variants[0].clone()),
                expected: "variant portable fp32 stands there twice",
            },
            Case {
                change: |b| b.files[1].bytes = 3,
                expected: "`onnx/d.onnx` has 11 bytes, expected 3",
            },
            Case {
                change: |b| b.files[0].path = "../x".to_owned(),
                expected: "`../x` is not a plain relative path",
            },
            Case {
                change: |b| b.files[0].path = "/etc/passwd".to_owned(),
                expected: "is not a plain relative path",
            },
            Case {
                change: |b| b.files[0].path = "a/./b".to_owned(),
                expected: "is not a plain relative path",
            },
            Case {
                change: |b| b.files[0].path = "c:\\x".to_owned(),
                expected: "is not a plain relative path",
            },
            Case {
                change: |b| b.files[0].path = "absent".to_owned(),
                expected: "`absent`: ",
            },
            Case {
                change: |b| b.files[0].path = "onnx".to_owned(),
                expected: "`onnx` is not a file",
            },
            Case {
                change: |b| b.variants[0].kv_dtype = DType::Float16,
                expected: "expected `past_key_values.0.key` float16",
            },
            Case {
                change: |b| drop(b.variants[0].decoder.outputs.pop()),
                expected: "has 2 outputs, expected 3",
            },
        ];
        let mut failures = Vec::new();
        for Case { change, expected } in cases {
            let mut bundle = bundle();
            change(&mut bundle);
            let directory = on_disk(&bundle);
            match Bundle::open(directory.path()).map_err(|error| error.to_string()) {
                Err(message) if message.contains(expected) => {}
                other => failures.push(format!("{other:?}, expected {expected}")),
            }
        }
        assert!(failures.is_empty(), "{}", failures.join("\n"));
    }

    #[test]
    fn no_bundle_and_no_json() {
        let directory = tempfile::tempdir().unwrap();
        let open = || Bundle::open(directory.path()).unwrap_err().to_string();
        assert!(open().contains("is not a bundle: it has no `bundle.json`"));
        for (text, expected) in [
            ("", "EOF"),
            ("[]", "has no number `schema`"),
            ("{\"schema\": 1}", "missing field"),
            ("{\"schema\": 1, \"new\": 2}", "unknown field `new`"),
        ] {
            std::fs::write(directory.path().join(FILE_NAME), text).unwrap();
            let message = open();
            assert!(message.contains(expected), "{message}, expected {expected}");
        }
    }

    /// What readers of other versions and languages see: a change here is a change of the schema.
    #[test]
    fn the_contract_as_text() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/snapshots/bundle.json");
        let text = bundle().to_json();
        if std::env::var_os("BLESS").is_some() {
            std::fs::write(&path, &text).unwrap();
        }
        assert_eq!(
            text,
            std::fs::read_to_string(&path).unwrap(),
            "BLESS=1 writes it anew"
        );
    }
}
