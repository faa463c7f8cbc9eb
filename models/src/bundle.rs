//! The bundle: the directory in which exporter and runtime meet, and its contract `bundle.json`.
//!
//! Everything a runtime needs stands here; a runtime hard-codes no token id, size, layer count, tensor name or file
//! name. [`Bundle::check`] is the one check, used by the writer before it publishes and by every reader.

use crate::dtype::DType;
use serde::{Deserialize, Serialize};

/// The schema that this build writes and reads.
pub const SCHEMA: u32 = 1;

/// File name of the contract inside a bundle.
pub const FILE_NAME: &str = "bundle.json";

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
    /// The exported forms of the networks; at least one.
    pub variants: Vec<Variant>,
    /// Every other file of the bundle, sorted by path, with length and SHA-256.
    pub files: Vec<FileEntry>,
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
    /// `portable`.
    pub target: String,
    /// `fp32` or `fp16`.
    pub precision: String,
    /// ONNX opset of the graphs.
    pub opset: i64,
    /// Element type of the KV cache's inputs and outputs.
    pub kv_dtype: DType,
    /// `pixel_values -> image_features`.
    pub vision_encoder: GraphEntry,
    /// `input_ids -> inputs_embeds`.
    pub embed_tokens: GraphEntry,
    /// `inputs_embeds, attention_mask, position_ids, past_key_values.* -> logits, present.*`.
    pub decoder: GraphEntry,
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
