//! The bundle: the directory in which exporter and runtime meet, and its contract `bundle.json`.
//!
//! Everything a runtime needs stands here; a runtime hard-codes no token id, size, layer count, tensor name
//! or file name. [`Bundle::check`] is the one check, used by the writer before it publishes and by every
//! reader.

#![deny(clippy::as_conversions)]

mod adopted;
mod agree;
mod check;
mod error;
mod form;
mod reads;
mod verify;

pub use adopted::{Adopted, Given, Told};
pub use error::BundleError;
pub use form::{Precision, Target, UnknownForm, UnknownWord};
pub use reads::places as external_data;

pub use check::inside;

use crate::dtype::DType;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
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
/// Most heads, numbers of all heads together, and positions: no config has more.
const MAX_SIZE: usize = 1 << 24;
/// Most tokens of a vocabulary: the runtime keeps what each of them says.
const MAX_VOCABULARY: usize = 1 << 22;
/// Most ids that end an answer.
const MAX_STOPS: usize = 1024;
/// Most numbers of one tensor of a decoder of fixed lengths: it is made whole when a sequence begins.
const MAX_FIXED: usize = 1 << 31;
/// Longest side of an image.
pub(crate) const MAX_SIDE: u32 = 1 << 14;

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
    /// Fine-tunes that were merged into the checkpoint's weights, in the order in which they were given. Left out
    /// of the text where there are none; a reader that does not know the field refuses a bundle that has it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub adapters: Vec<AdapterEntry>,
    /// Geometry of the KV cache.
    pub kv: KvSpec,
    /// From an image file to `pixel_values`.
    pub image: ImageSpec,
    /// From messages to token ids, and when to stop.
    pub prompt: PromptSpec,
    /// The exported forms of the networks; at least one here or in `packages`.
    pub variants: Vec<Variant>,
    /// The networks in Core ML's own form. Left out of the text where there are none; a reader that does not
    /// know the field refuses a bundle that has it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub packages: Vec<CoreMlPackages>,
    /// Every other file of the bundle, sorted by path, with length and SHA-256.
    pub files: Vec<FileEntry>,
    /// What was left out of `variants` and `packages` when the contract was read, because this build does not
    /// know its words.
    #[serde(skip)]
    pub unknown: Vec<UnknownForm>,
}

/// What was exported.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelInfo {
    /// Name for people: `demo`, `apple/FastVLM-0.5B`, a directory's name.
    pub name: String,
    /// Layout of the checkpoint: `llava`, `transformers` or `mlx`; `onnx` where graphs were adopted.
    pub layout: String,
    /// Element type of most of the checkpoint's bytes.
    pub stored: DType,
    /// Parameter counts of the canonical weights.
    pub parameters: Parameters,
    /// What the checkpoint calls its terms of use, which lie in the bundle if it has them as files. `None`
    /// where it says nothing.
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

/// A fine-tune that was merged into a checkpoint's weights.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdapterEntry {
    /// The name of its directory or file.
    pub name: String,
    /// What it makes of the checkpoint's weights was multiplied by this: a number other than 0.
    pub weight: f64,
    /// Its files that went into the bundle, sorted by name.
    pub files: Vec<FileEntry>,
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

/// How an image becomes `pixel_values [1,3,height,width]`, in this order: convert to RGB, `aspect`, resize,
/// crop, times `rescale`, minus `mean`, divided by `std`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageSpec {
    /// Height of `pixel_values`.
    pub height: u32,
    /// Width of `pixel_values`.
    pub width: u32,
    /// What is done about images that are not square, before the resize.
    pub aspect: Aspect,
    /// The resize: the shortest edge becomes this long, the other in proportion (truncated, as transformers
    /// does).
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
    /// What becomes of transparency. Left out of the text where it is dropped; a reader that does not know the field
    /// refuses a bundle that has it.
    #[serde(default, skip_serializing_if = "Alpha::is_dropped")]
    pub alpha: Alpha,
}

/// What becomes of an image's transparency, before the resize.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Alpha {
    /// Pillow's `convert("RGB")`, as Apple's code has it: transparent pixels show the colour that they store.
    #[default]
    Dropped,
    /// transformers' `convert_to_rgb`: the image lies on white.
    White,
}

impl Alpha {
    fn is_dropped(&self) -> bool {
        *self == Alpha::Dropped
    }
}

/// What is done about images that are not square.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind", deny_unknown_fields)]
pub enum Aspect {
    /// transformers' recipe: nothing; the centre crop after the resize cuts the longer edge.
    Crop,
    /// LLaVA's recipe: a square of the longer edge in `color`, the image pasted at half the difference,
    /// rounded down.
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
    /// Text of special tokens that templates may ask for (`bos_token`, `eos_token`, `pad_token`), sorted by
    /// name.
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
///
/// A precision may be there for target `cpu` and for `portable`: the paths of the standard graphs then have the
/// ecosystem's suffix (`_q4`), by which other people's clients find them, and those of target `cpu` say so
/// (`_cpu_q4`). Readers of the contract choose by [`Variant::target`].
///
/// Graphs that another program wrote are of target `portable`, in the precision that their names state, and each
/// says by [`GraphEntry::adopted`] how it is fed.
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
    /// Encoders for other image sizes, ascending by size. Left out of the text where there are none, so that
    /// a bundle of one size reads as it always did; a reader that does not know the field refuses a bundle
    /// that has it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub further_encoders: Vec<SizedEncoder>,
    /// `input_ids -> inputs_embeds`.
    pub embed_tokens: GraphEntry,
    /// `inputs_embeds, attention_mask, position_ids, past_key_values.* -> logits, present.*`; with `fixed`
    /// the graph for one new position, see [`FixedDecoder`].
    pub decoder: GraphEntry,
    /// What else there is to know of networks whose lengths are fixed. Left out of the text where they are
    /// not; a reader that does not know the field refuses a bundle that has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fixed: Option<FixedDecoder>,
}

/// What [`FixedDecoder`]s hide a slot with: float16's lowest number, so that adding it to a score of any size
/// keeps it finite or makes it minus infinity, and its weight 0.
pub const HIDDEN: f32 = -65504.0;

/// A decoder whose lengths are numbers: a graph for one new position ([`Variant::decoder`]) and graphs for
/// more, with a cache of `context` slots as inputs `past_key_values.* [1,kv_heads,context,head_dim]`.
///
/// Outputs `present.* [1,kv_heads,new,head_dim]` are the keys and values of the new slots alone; whoever runs
/// the graph writes those of real positions into the cache. Fewer positions than slots are padded on the
/// left: the last slot is the last position, and `logits` are its. `positions [1,new]` are float32.
/// `attention_bias [1,1,new,context + new]` is added to the scores: 0 where the slot of the row looks at the
/// slot of the column (first those of the cache, then the new ones), [`HIDDEN`] where not. Every row must see
/// at least itself, padding too.
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
/// The encoder has one function, `pixel_values [1,3,H,W] -> image_features [1,tokens,hidden]`, float32. The
/// decoder has a function `step` for one new position and `prefill_N` for `N`, which share their weights and
/// two states, `key_cache` and `value_cache` `[layers,kv_heads,context,head_dim]`, float16:
/// `inputs_embeds [1,N,hidden]` (float32), `position [1]` (int32: how many slots are filled) and, for more
/// than one position, `last [1]` (int32: the row of the last real one) `-> logits [1,1,vocab]` (float32).
/// Fewer positions than `N` are padded behind, where `position + N` must not be above `context`; what padding
/// wrote is not looked at, and written over by the next call.
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
    /// The precisions that packages have.
    pub const PRECISIONS: [Precision; 4] = [Precision::Fp32, Precision::Fp16, Precision::Int8, Precision::Q4];

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
    /// [`ImageSpec::shortest_edge`] for images of another side: the resize keeps its relation to the crop.
    pub fn edge_at(&self, side: u64) -> u64 {
        let own = u64::from(self.height).max(1);
        u64::from(self.shortest_edge)
            .saturating_mul(side)
            .saturating_add(own / 2)
            / own
    }

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
    /// How it is fed, where another program wrote it: inputs and outputs then have that program's names and
    /// symbols. Left out of the text where it is ours; a reader that does not know the field refuses a bundle
    /// that has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adopted: Option<Adopted>,
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

/// A dimension in the contract: a number, or one of `batch`, `past`, `new`, `total`; of adopted graphs, whatever they
/// call it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum IoDim {
    /// Fixed length.
    Fixed(u64),
    /// A symbol.
    Symbol(String),
}

impl Bundle {
    /// Reads the contract of the bundle in `directory` and checks it. A form whose target or precision this
    /// build does not know is set aside, see [`Bundle::unknown`]: a bundle of a newer program opens with the
    /// forms that are known.
    ///
    /// Small files are hashed, and compared with the contract, which has no hash itself; graphs, packages and the
    /// tokenizer are hashed by whoever opens them, weights by [`Bundle::verify`].
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
        let read = crate::regular::open(&path)
            .map_err(io)?
            .take(MAX_BYTES + 1)
            .read_to_string(&mut text)
            .map_err(io)?;
        if u64::try_from(read).unwrap_or(u64::MAX) > MAX_BYTES {
            return Err(malformed(format!("is longer than {MAX_BYTES} bytes")));
        }
        // Nobody hashes this file: an editor's mark before it changes nothing.
        let text = crate::regular::without_mark(&text);
        let mut value: serde_json::Value =
            serde_json::from_str(text).map_err(|error| malformed(error.to_string()))?;
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
            serde_json::from_str(text)
        } else {
            serde_json::from_value(value)
        };
        let mut bundle: Bundle = bundle.map_err(|error| malformed(error.to_string()))?;
        bundle.unknown = unknown;
        bundle.check(directory)?;
        bundle.verify_small(directory)?;
        Ok(bundle)
    }

    /// The text of `bundle.json`.
    pub fn to_json(&self) -> String {
        // A value of these types always has a JSON form.
        let mut text = serde_json::to_string_pretty(self).unwrap_or_default();
        text.push('\n');
        text
    }

    /// Heights and widths of the images that some variant has an encoder for: that of [`Bundle::image`]
    /// first, the others ascending.
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
    /// [`image`](Bundle::image) and [`vision_encoder`](Variant::vision_encoder) are those of the size, with
    /// the variants that have it. `None` where none does.
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
        // No tensor has as many; a damaged contract may.
        const SHOWN: usize = 8;
        let mut dims: Vec<String> = self
            .dims
            .iter()
            .take(SHOWN)
            .map(|dim| match dim {
                IoDim::Fixed(length) => length.to_string(),
                IoDim::Symbol(name) => name.clone(),
            })
            .collect();
        if self.dims.len() > SHOWN {
            dims.push(format!("... {} lengths", self.dims.len()));
        }
        write!(f, "`{}` {} [{}]", self.name, self.dtype, dims.join(","))
    }
}

#[cfg(test)]
mod tests;
