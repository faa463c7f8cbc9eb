//! What a FastVLM's `config.json` says, in one form for both dialects.
//!
//! A field that changes numbers and is missing is an error, unless the published implementation has a default for it:
//! each default below says whose. All problems of a file are reported together.

use crate::checkpoint::{MAX_INDEX, small};
use crate::error::CheckpointError;
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};

/// The dialect of a config, and with it the names that the tensors have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Layout {
    /// Apple's `LlavaQwen2ForCausalLM`.
    Llava,
    /// transformers' `FastVlmForConditionalGeneration`.
    Transformers,
}

/// Geometry of a model.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    /// The image encoder.
    pub vision: VisionConfig,
    /// The MLP between encoder and decoder.
    pub projector: ProjectorConfig,
    /// The language model.
    pub decoder: DecoderConfig,
}

/// Largest side of images that an encoder is made for beside the model's own: in the fourth stage of the published tower
/// 2048 pixels are 4096 positions, whose attention scores take 1.6 GB.
const MAX_FURTHER_SIDE: u64 = 2048;

impl ModelConfig {
    /// Sides of square images that an encoder can be made for: multiples of the first number (every stage's map is whole)
    /// up to the second (the features leave room in the decoder's context).
    pub fn image_sizes(&self) -> (u64, u64) {
        let multiple = self.vision.token_side().max(1);
        let fits = self
            .decoder
            .max_position_embeddings
            .saturating_sub(1)
            .isqrt()
            .saturating_mul(multiple);
        let largest = fits.min(MAX_FURTHER_SIDE) / multiple * multiple;
        (multiple, largest.max(self.vision.image_size))
    }

    /// The same model for square images of another side, in pixels; `None` where the network does not allow it.
    pub fn at_image_size(&self, side: u64) -> Option<ModelConfig> {
        let (multiple, largest) = self.image_sizes();
        let legal = side > 0 && side.is_multiple_of(multiple) && side <= largest;
        legal.then(|| {
            let mut config = self.clone();
            config.vision.image_size = side;
            config
        })
    }

    /// Positions that one image takes in the decoder's sequence.
    pub fn image_tokens(&self) -> u64 {
        let side = self.vision.image_size / self.vision.token_side().max(1);
        side.saturating_mul(side)
    }
}

/// Geometry of FastViTHD, in timm's words (`FastVit.__init__`). Lists have one entry a stage.
#[derive(Debug, Clone, PartialEq)]
pub struct VisionConfig {
    /// Side of the square image, pixels.
    pub image_size: u64,
    /// Channels of each stage.
    pub embed_dims: Vec<u64>,
    /// Blocks of each stage.
    pub layers: Vec<u64>,
    /// ConvFFN width over stage width.
    pub mlp_ratios: Vec<f64>,
    /// How each stage mixes tokens.
    pub token_mixers: Vec<TokenMixer>,
    /// Whether a stage begins with a downsampling even if its width is the one before.
    pub downsamples: Vec<bool>,
    /// Side of the kernel of the conditional positional encoding, where a stage has one.
    pub pos_embs: Vec<Option<u64>>,
    /// Side of RepMixer's kernel.
    pub repmixer_kernel_size: u64,
    /// Side of the kernel of a downsampling.
    pub down_patch_size: u64,
    /// Its stride.
    pub down_stride: u64,
    /// Whether an activation follows the large kernel of a downsampling.
    pub lkc_use_act: bool,
    /// Channels of the final convolution.
    pub final_channels: u64,
    /// Whether blocks scale their branches (`layer_scale_init_value` is not null).
    pub layer_scale: bool,
    /// Added to the variance in the attention blocks' LayerNorm.
    pub norm_epsilon: f32,
    /// Length of an attention head.
    pub head_dim: u64,
}

/// How a stage mixes tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenMixer {
    /// A depthwise convolution.
    RepMixer,
    /// Multi-head self-attention.
    Attention,
}

impl VisionConfig {
    /// Whether a stage begins with a downsampling (timm: asked for, or the width changes).
    pub fn downsamples(&self, stage: usize) -> bool {
        let before = if stage == 0 {
            self.embed_dims[0]
        } else {
            self.embed_dims[stage - 1]
        };
        self.downsamples[stage] || before != self.embed_dims[stage]
    }

    /// Image pixels along one side of a token: 4 in the stem, times the stride of every downsampling.
    pub fn token_side(&self) -> u64 {
        let stages = self.embed_dims.len().min(self.downsamples.len());
        (0..stages)
            .filter(|&stage| self.downsamples(stage))
            .fold(4, |side: u64, _| side.saturating_mul(self.down_stride))
    }

    /// Width of a stage's ConvFFN: `int(dim * mlp_ratio)`.
    pub fn mlp_channels(&self, stage: usize) -> u64 {
        (self.embed_dims[stage] as f64 * self.mlp_ratios[stage]) as u64
    }

    /// Width inside the squeeze-and-excite: a sixteenth, rounded (timm `SqueezeExcite`, `rd_ratio` 1/16,
    /// `rd_divisor` 1).
    pub fn se_channels(&self) -> u64 {
        ((self.final_channels as f64 / 16.0 + 0.5) as u64).max(1)
    }
}

/// Geometry of the projector.
#[derive(Debug, Clone, PartialEq)]
pub struct ProjectorConfig {
    /// Length of the encoder's tokens.
    pub input: u64,
    /// Length of the decoder's embeddings.
    pub hidden: u64,
    /// Whether its linear layers have biases.
    pub bias: bool,
}

/// Geometry of Qwen2.
#[derive(Debug, Clone, PartialEq)]
pub struct DecoderConfig {
    /// Length of an embedding.
    pub hidden_size: u64,
    /// Layers.
    pub layers: u64,
    /// Query heads.
    pub heads: u64,
    /// Key and value heads.
    pub kv_heads: u64,
    /// Length of a head.
    pub head_dim: u64,
    /// Width of the MLP.
    pub intermediate_size: u64,
    /// Rows of the embedding table, padding rows included.
    pub vocab_size: u64,
    /// Added to the mean square in RMSNorm.
    pub rms_norm_epsilon: f32,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Longest sequence the model was made for.
    pub max_position_embeddings: u64,
    /// Whether the output head is the embedding table.
    pub tie_word_embeddings: bool,
}

/// Geometry that a name stands for: timm's `fastvit_mci3` is Apple's `fastvithd`.
const MCI3: (&[u64], &[u64]) = (&[96, 192, 384, 768, 1536], &[2, 12, 24, 4, 2]);
/// timm's larger sibling of the same form.
const MCI4: (&[u64], &[u64]) = (&[128, 256, 512, 1024, 2048], &[2, 12, 24, 4, 4]);
/// No dimension of a network is longer; products of two stay far from overflow.
const LARGEST: u64 = 1 << 24;
/// No network is deeper: a graph of so many blocks still fits in memory.
const DEEPEST: u64 = 1024;
/// No tower has more stages: each halves the image, whose side has at most 14 bits.
const MOST_STAGES: usize = 14;

impl ModelConfig {
    /// Reads `config.json` of a checkpoint, and the image size from the image processor's file where the config does
    /// not state it.
    ///
    /// # Errors
    /// A file that cannot be read, is not JSON, or asks for something that this build does not do.
    pub fn open(directory: &Path) -> Result<(ModelConfig, Layout), CheckpointError> {
        let path = directory.join("config.json");
        let text = small::text(&path, MAX_INDEX)?;
        let (mut config, layout) = ModelConfig::parse(&text, &path)?;
        if layout == Layout::Transformers
            && let Some(side) = crop_side(directory)?
        {
            config.vision.image_size = side;
            let mut problems = Problems(Vec::new());
            check(&config, &mut problems);
            if !problems.0.is_empty() {
                return Err(problems.of(directory));
            }
        }
        Ok((config, layout))
    }

    /// Reads the text of a `config.json`; `path` is for messages.
    ///
    /// # Errors
    /// As [`ModelConfig::open`].
    pub fn parse(text: &str, path: &Path) -> Result<(ModelConfig, Layout), CheckpointError> {
        let value: Value = serde_json::from_str(text)
            .map_err(|error| CheckpointError::malformed(path, error.to_string()))?;
        let Value::Object(object) = value else {
            return Err(CheckpointError::malformed(path, "is not a JSON object"));
        };
        let mut problems = Problems(Vec::new());
        let layout = match object.get("model_type").and_then(Value::as_str) {
            Some("fast_vlm") => Layout::Transformers,
            Some("llava_qwen2") => Layout::Llava,
            found => {
                let found = found.map_or("none".to_owned(), |name| format!("`{name}`"));
                problems.add(format!(
                    "`model_type` is {found}, expected `llava_qwen2` or `fast_vlm`"
                ));
                return Err(problems.of(path));
            }
        };
        let config = match layout {
            Layout::Llava => llava(&object, &mut problems),
            Layout::Transformers => transformers(&object, &mut problems),
        };
        if problems.0.is_empty() {
            check(&config, &mut problems);
        }
        if problems.0.is_empty() {
            Ok((config, layout))
        } else {
            Err(problems.of(path))
        }
    }
}

/// Everything that is wrong with a config, one sentence each.
struct Problems(Vec<String>);

impl Problems {
    fn add(&mut self, problem: String) {
        self.0.push(problem);
    }

    fn of(self, path: &Path) -> CheckpointError {
        CheckpointError::Config {
            path: path.to_owned(),
            problems: self.0,
        }
    }
}

/// An object of the config with the way to it.
struct Fields<'a> {
    object: Option<&'a Map<String, Value>>,
    prefix: &'a str,
}

impl<'a> Fields<'a> {
    fn new(object: &'a Map<String, Value>) -> Self {
        Fields {
            object: Some(object),
            prefix: "",
        }
    }

    /// An object inside; absent and null read as an object without fields.
    fn inside(&self, name: &str, prefix: &'a str, problems: &mut Problems) -> Fields<'a> {
        let object = match self.value(name) {
            None => None,
            Some(Value::Object(object)) => Some(object),
            Some(other) => {
                problems.add(format!("`{}{name}` is {other}, expected an object", self.prefix));
                None
            }
        };
        Fields { object, prefix }
    }

    /// The field's value; null counts as absent.
    fn value(&self, name: &str) -> Option<&'a Value> {
        self.object
            .and_then(|object| object.get(name))
            .filter(|value| !value.is_null())
    }

    fn take<T>(
        &self,
        name: &str,
        default: Option<T>,
        expected: &str,
        problems: &mut Problems,
        convert: impl Fn(&'a Value) -> Option<T>,
    ) -> Option<T> {
        let name_for_people = format!("{}{name}", self.prefix);
        match self.value(name) {
            Some(value) => {
                let converted = convert(value);
                if converted.is_none() {
                    problems.add(format!("`{name_for_people}` is {value}, expected {expected}"));
                }
                converted
            }
            None => {
                if default.is_none() {
                    problems.add(format!("`{name_for_people}` is missing, expected {expected}"));
                }
                default
            }
        }
    }

    fn size(&self, name: &str, default: Option<u64>, problems: &mut Problems) -> u64 {
        self.take(
            name,
            default,
            "a whole number from 1 to 16777216",
            problems,
            whole,
        )
        .unwrap_or(1)
    }

    fn number(&self, name: &str, default: Option<f64>, problems: &mut Problems) -> f64 {
        let positive = |value: &Value| {
            value
                .as_f64()
                .filter(|number| number.is_finite() && *number > 0.0)
        };
        self.take(name, default, "a number above 0", problems, positive)
            .unwrap_or(1.0)
    }

    fn flag(&self, name: &str, default: bool, problems: &mut Problems) -> bool {
        self.take(name, Some(default), "true or false", problems, Value::as_bool)
            .unwrap_or(default)
    }

    fn list<T>(
        &self,
        name: &str,
        default: Vec<T>,
        expected: &str,
        problems: &mut Problems,
        convert: impl Fn(&'a Value) -> Option<T>,
    ) -> Vec<T> {
        let all = |value: &'a Value| value.as_array()?.iter().map(&convert).collect::<Option<Vec<T>>>();
        self.take(name, Some(default), expected, problems, all)
            .unwrap_or_default()
    }

    /// A field that may stand there with one value only.
    fn only(&self, name: &str, supported: &Value, problems: &mut Problems) {
        if let Some(found) = self.value(name).filter(|found| *found != supported) {
            problems.add(format!(
                "`{}{name}` is {found}, this build supports {supported}",
                self.prefix
            ));
        }
    }
}

fn whole(value: &Value) -> Option<u64> {
    value.as_u64().filter(|&number| (1..=LARGEST).contains(&number))
}

fn mixer(value: &Value) -> Option<TokenMixer> {
    match value.as_str()? {
        "repmixer" => Some(TokenMixer::RepMixer),
        "attention" => Some(TokenMixer::Attention),
        _ => None,
    }
}

/// The tower of a named architecture, with what the config says otherwise.
fn tower(
    (dims, layers): (&[u64], &[u64]),
    image_size: u64,
    custom: &Fields<'_>,
    problems: &mut Problems,
) -> VisionConfig {
    use TokenMixer::{Attention, RepMixer};
    let sizes = "a list of whole numbers above 0";
    let embed_dims = custom.list("embed_dims", dims.to_vec(), sizes, problems, whole);
    let ratio = |value: &Value| value.as_f64().filter(|ratio| *ratio > 0.0 && *ratio < 64.0);
    let kernel = |value: &Value| match value {
        Value::Null => Some(None),
        // A kernel is square: `[7, 7]`.
        Value::Array(sides) => match sides.as_slice() {
            [height, width] if height == width => whole(height).map(Some),
            _ => None,
        },
        other => whole(other).map(Some),
    };
    let cls_ratio = custom.number("cls_ratio", Some(2.0), problems);
    VisionConfig {
        image_size,
        layers: custom.list("layers", layers.to_vec(), sizes, problems, whole),
        mlp_ratios: custom.list("mlp_ratios", vec![4.0; 5], "a list of numbers", problems, ratio),
        token_mixers: custom.list(
            "token_mixers",
            vec![RepMixer, RepMixer, RepMixer, Attention, Attention],
            "a list of `repmixer` and `attention`",
            problems,
            mixer,
        ),
        downsamples: custom.list(
            "downsamples",
            vec![false, true, true, true, true],
            "a list of true and false",
            problems,
            Value::as_bool,
        ),
        pos_embs: custom.list(
            "pos_embs_shapes",
            vec![None, None, None, Some(7), Some(7)],
            "a list of null and [side, side]",
            problems,
            kernel,
        ),
        repmixer_kernel_size: custom.size("repmixer_kernel_size", Some(3), problems),
        down_patch_size: custom.size("down_patch_size", Some(7), problems),
        down_stride: custom.size("down_stride", Some(2), problems),
        lkc_use_act: custom.flag("lkc_use_act", true, problems),
        final_channels: (embed_dims.last().copied().unwrap_or(1) as f64 * cls_ratio) as u64,
        layer_scale: true,
        // Apple's LayerNormChannel and timm's fastvit_mci3.
        norm_epsilon: 1e-5,
        // Apple's MHSA and timm's Attention: not configurable.
        head_dim: 32,
        embed_dims,
    }
}

/// Fields of Qwen2 that are alike in both dialects. Defaults are those of transformers' `Qwen2Config`.
fn decoder(fields: &Fields<'_>, rope_theta: f64, tied: bool, problems: &mut Problems) -> DecoderConfig {
    fields.only("hidden_act", &Value::from("silu"), problems);
    fields.only("use_sliding_window", &Value::from(false), problems);
    let types = fields.value("layer_types").and_then(Value::as_array);
    if let Some(found) = types
        .into_iter()
        .flatten()
        .find(|found| found.as_str() != Some("full_attention"))
    {
        problems.add(format!(
            "`{}layer_types` has {found}, this build supports \"full_attention\"",
            fields.prefix
        ));
    }
    if let Some(scaling) = fields.value("rope_scaling") {
        problems.add(format!(
            "`{}rope_scaling` is {scaling}, this build supports null",
            fields.prefix
        ));
    }
    let hidden_size = fields.size("hidden_size", None, problems);
    let heads = fields.size("num_attention_heads", None, problems);
    let head_dim = fields.size("head_dim", Some((hidden_size / heads).max(1)), problems);
    DecoderConfig {
        hidden_size,
        layers: fields.size("num_hidden_layers", None, problems),
        heads,
        kv_heads: fields.size("num_key_value_heads", None, problems),
        head_dim,
        intermediate_size: fields.size("intermediate_size", None, problems),
        vocab_size: fields.size("vocab_size", None, problems),
        rms_norm_epsilon: fields.number("rms_norm_eps", Some(1e-6), problems) as f32,
        rope_theta,
        max_position_embeddings: fields.size("max_position_embeddings", Some(32768), problems),
        tie_word_embeddings: tied,
    }
}

/// `rope_theta` at the top (transformers 4) or in `rope_parameters` (transformers 5); `Qwen2Config`'s default is 10000.
fn rope_theta(fields: &Fields<'_>, parameters: &Fields<'_>, problems: &mut Problems) -> f64 {
    parameters.only("rope_type", &Value::from("default"), problems);
    let from = if parameters.value("rope_theta").is_some() {
        parameters
    } else {
        fields
    };
    from.number("rope_theta", Some(10_000.0), problems)
}

/// Apple's dialect.
fn llava(object: &Map<String, Value>, problems: &mut Problems) -> ModelConfig {
    let fields = Fields::new(object);
    let parameters = fields.inside("rope_parameters", "rope_parameters.", problems);
    let theta = rope_theta(&fields, &parameters, problems);
    let tied = fields.flag("tie_word_embeddings", false, problems);
    let decoder = decoder(&fields, theta, tied, problems);
    // The tower's name carries the image size: `mobileclip_l_1024`.
    let expected = "a name like `mobileclip_l_1024`";
    let side = |value: &Value| value.as_str()?.strip_prefix("mobileclip_l_")?.parse().ok();
    let name = if fields.value("mm_vision_tower").is_some() {
        "mm_vision_tower"
    } else {
        "vision_tower"
    };
    let image_size = fields.take(name, None, expected, problems, side).unwrap_or(1);
    // Empty in published files; the fields that MLX conversions write describe a tower of another size.
    let custom = fields.inside("vision_config", "vision_config.", problems);
    let vision = tower(MCI3, image_size, &custom, problems);
    fields.only("mm_projector_type", &Value::from("mlp2x_gelu"), problems);
    // It puts other tokens around an image.
    fields.only("mm_use_im_start_end", &Value::from(false), problems);
    let input = fields.size("mm_hidden_size", None, problems);
    let hidden = decoder.hidden_size;
    ModelConfig {
        vision,
        projector: ProjectorConfig {
            input,
            hidden,
            bias: true,
        },
        decoder,
    }
}

/// timm's `FastVit` arguments that `model_args` may carry.
const MODEL_ARGS: [&str; 16] = [
    "embed_dims",
    "layers",
    "mlp_ratios",
    "token_mixers",
    "downsamples",
    "se_downsamples",
    "repmixer_kernel_size",
    "down_patch_size",
    "down_stride",
    "lkc_use_act",
    "cls_ratio",
    "layer_scale_init_value",
    "inference_mode",
    "stem_use_scale_branch",
    "drop_path_rate",
    "global_pool",
];

/// transformers' dialect. Defaults are those of `FastVlmConfig`.
fn transformers(object: &Map<String, Value>, problems: &mut Problems) -> ModelConfig {
    let fields = Fields::new(object);
    let text = fields.inside("text_config", "text_config.", problems);
    text.only("model_type", &Value::from("qwen2"), problems);
    let parameters = text.inside("rope_parameters", "text_config.rope_parameters.", problems);
    let theta = rope_theta(&text, &parameters, problems);
    // FastVlmConfig.__post_init__: either flag ties.
    let tied = fields.flag("tie_word_embeddings", false, problems)
        | text.flag("tie_word_embeddings", false, problems);
    let decoder = decoder(&text, theta, tied, problems);

    let tower_fields = fields.inside("vision_config", "vision_config.", problems);
    let geometry = match tower_fields
        .value("architecture")
        .map(|name| name.as_str().unwrap_or_default())
    {
        None | Some("fastvit_mci3") => MCI3,
        Some("fastvit_mci4") => MCI4,
        Some(name) => {
            problems.add(format!(
                "`vision_config.architecture` is `{name}`, this build supports `fastvit_mci3` and `fastvit_mci4`"
            ));
            MCI3
        }
    };
    let args = tower_fields.inside("model_args", "vision_config.model_args.", problems);
    for (name, value) in args.object.into_iter().flatten() {
        if !MODEL_ARGS.contains(&name.as_str()) {
            problems.add(format!(
                "`vision_config.model_args.{name}` is {value}, this build does not support it"
            ));
        }
    }
    args.only("se_downsamples", &Value::from(vec![false; 5]), problems);
    args.only("stem_use_scale_branch", &Value::from(false), problems);
    let mut vision = tower(geometry, 1, &args, problems);
    // The side that `image_seq_length` implies. The image processor's file states it; this is for a config alone.
    let tokens = fields.size("image_seq_length", Some(256), problems);
    vision.image_size = tokens.isqrt().saturating_mul(vision.token_side());
    vision.layer_scale =
        args.object.and_then(|args| args.get("layer_scale_init_value")) != Some(&Value::Null);

    fields.only("projector_hidden_act", &Value::from("gelu"), problems);
    fields.only("vision_feature_layer", &Value::from(-1), problems);
    fields.only("vision_feature_select_strategy", &Value::from("full"), problems);
    let bias = fields.flag("multimodal_projector_bias", true, problems);
    let input = tower_fields.size("hidden_size", Some(vision.final_channels), problems);
    let hidden = decoder.hidden_size;
    ModelConfig {
        vision,
        projector: ProjectorConfig { input, hidden, bias },
        decoder,
    }
}

/// The side of the centre crop in the image processor's file, where there is one.
fn crop_side(directory: &Path) -> Result<Option<u64>, CheckpointError> {
    for (name, pointer) in [
        ("preprocessor_config.json", "/crop_size"),
        ("processor_config.json", "/image_processor/crop_size"),
    ] {
        let path: PathBuf = directory.join(name);
        if !path.exists() {
            continue;
        }
        let value: Value = serde_json::from_str(&small::text(&path, MAX_INDEX)?)
            .map_err(|error| CheckpointError::malformed(&path, error.to_string()))?;
        let Some(crop) = value.pointer(pointer) else {
            continue;
        };
        let side = |name: &str| crop.get(name).unwrap_or(crop).as_u64();
        return match (side("height"), side("width")) {
            (Some(height), Some(width)) if height == width => Ok(Some(height)),
            _ => {
                let problem = format!("`crop_size` is {crop}, expected a square");
                Err(CheckpointError::Config {
                    path,
                    problems: vec![problem],
                })
            }
        };
    }
    Ok(None)
}

/// What must hold between fields, so that the networks can be built without surprises.
fn check(config: &ModelConfig, problems: &mut Problems) {
    let ModelConfig {
        vision,
        projector,
        decoder,
    } = config;
    let stages = vision.embed_dims.len();
    for (name, length) in [
        ("layers", vision.layers.len()),
        ("mlp_ratios", vision.mlp_ratios.len()),
        ("token_mixers", vision.token_mixers.len()),
        ("downsamples", vision.downsamples.len()),
        ("positional encodings", vision.pos_embs.len()),
    ] {
        if length != stages {
            problems.add(format!(
                "the tower has {stages} `embed_dims` and {length} {name}, expected as many"
            ));
        }
    }
    if stages == 0 {
        problems.add("`embed_dims` is empty, expected one width a stage".to_owned());
    }
    for (&width, mixer) in vision.embed_dims.iter().zip(&vision.token_mixers) {
        if *mixer == TokenMixer::Attention && width % vision.head_dim != 0 {
            problems.add(format!(
                "an attention stage is {width} wide, expected a multiple of {}",
                vision.head_dim
            ));
        }
    }
    let kernels = vision
        .pos_embs
        .iter()
        .flatten()
        .map(|side| ("pos_embs", *side, 1));
    let kernels = kernels.chain([
        ("repmixer_kernel_size", vision.repmixer_kernel_size, 1),
        // The small kernel beside it is 3x3.
        ("down_patch_size", vision.down_patch_size, 3),
    ]);
    for (name, side, least) in kernels {
        if side % 2 == 0 || side < least || side > 255 {
            problems.add(format!(
                "`{name}` is {side}, expected an odd number from {least} to 255"
            ));
        }
    }
    if stages > MOST_STAGES {
        problems.add(format!(
            "the tower has {stages} stages, at most {MOST_STAGES} are supported"
        ));
    }
    for (name, depth) in vision
        .layers
        .iter()
        .map(|depth| ("layers", *depth))
        .chain([("num_hidden_layers", decoder.layers)])
    {
        if depth > DEEPEST {
            problems.add(format!("`{name}` is {depth}, at most {DEEPEST} are supported"));
        }
    }
    let wide = [
        ("channels of the final convolution", vision.final_channels),
        (
            "elements of all query heads",
            decoder.heads.saturating_mul(decoder.head_dim),
        ),
    ];
    for (name, length) in wide {
        if !(1..=LARGEST).contains(&length) {
            problems.add(format!("{length} {name}, expected 1 to {LARGEST}"));
        }
    }
    // The rest asks the lists about every stage.
    if !problems.0.is_empty() {
        return;
    }
    if (0..stages).any(|stage| !(1..=LARGEST).contains(&vision.mlp_channels(stage))) {
        problems.add(format!(
            "`mlp_ratios` is {:?}, expected MLPs of 1 to {LARGEST} channels",
            vision.mlp_ratios
        ));
    }
    let token_side = vision.token_side();
    if vision.image_size == 0 || vision.image_size % token_side != 0 || vision.image_size > 1 << 14 {
        let found = vision.image_size;
        problems.add(format!(
            "the image size is {found}, expected a multiple of {token_side} up to 16384"
        ));
    }
    if projector.input != vision.final_channels {
        let (found, expected) = (projector.input, vision.final_channels);
        problems.add(format!(
            "the projector takes {found} channels, the tower gives {expected}"
        ));
    }
    if decoder.kv_heads == 0 || decoder.heads % decoder.kv_heads != 0 {
        let (heads, kv_heads) = (decoder.heads, decoder.kv_heads);
        problems.add(format!(
            "`num_attention_heads` is {heads}, expected a multiple of `num_key_value_heads`, {kv_heads}"
        ));
    }
    if decoder.head_dim % 2 != 0 {
        problems.add(format!(
            "a head is {} long, rotary positions need an even length",
            decoder.head_dim
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LLAVA: &str = r#"{"architectures": ["LlavaQwen2ForCausalLM"], "hidden_act": "silu", "hidden_size": 896,
        "image_aspect_ratio": "pad", "intermediate_size": 4864, "max_position_embeddings": 32768, "mm_hidden_size": 3072,
        "mm_projector_type": "mlp2x_gelu", "mm_vision_tower": "mobileclip_l_1024", "model_type": "llava_qwen2",
        "num_attention_heads": 14, "num_hidden_layers": 24, "num_key_value_heads": 2, "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0, "tie_word_embeddings": false, "use_sliding_window": false, "vision_config": {},
        "vocab_size": 151936}"#;

    const TRANSFORMERS: &str = r#"{"model_type": "fast_vlm", "image_seq_length": 256, "multimodal_projector_bias": true,
        "projector_hidden_act": "gelu", "tie_word_embeddings": true, "vision_feature_layer": -1,
        "text_config": {"model_type": "qwen2", "hidden_act": "silu", "hidden_size": 896, "intermediate_size": 4864,
        "max_position_embeddings": 32768, "num_attention_heads": 14, "num_hidden_layers": 24, "num_key_value_heads": 2,
        "rms_norm_eps": 1e-06, "rope_parameters": {"rope_theta": 1000000.0, "rope_type": "default"}, "vocab_size": 151936},
        "vision_config": {"architecture": "fastvit_mci3", "hidden_size": 3072, "model_args": {"inference_mode": true},
        "model_type": "timm_wrapper"}}"#;

    fn parse(text: &str) -> Result<(ModelConfig, Layout), String> {
        ModelConfig::parse(text, Path::new("config.json")).map_err(|error| error.to_string())
    }

    #[test]
    fn both_dialects_say_the_same() {
        let (mut llava, layout) = parse(LLAVA).unwrap();
        assert_eq!(layout, Layout::Llava);
        let (transformers, layout) = parse(TRANSFORMERS).unwrap();
        assert_eq!(layout, Layout::Transformers);
        assert_eq!(llava.vision.image_size, 1024);
        assert!(!llava.decoder.tie_word_embeddings);
        llava.decoder.tie_word_embeddings = true;
        assert_eq!(llava, transformers);
    }

    #[test]
    fn other_image_sizes() {
        let (mut config, _) = parse(LLAVA).unwrap();
        assert_eq!(config.image_sizes(), (64, 2048));
        for (side, tokens) in [(64, 1), (512, 64), (768, 144), (1024, 256), (2048, 1024)] {
            let other = config.at_image_size(side).unwrap();
            assert_eq!((other.vision.image_size, other.image_tokens()), (side, tokens));
        }
        for side in [0, 32, 500, 2112] {
            assert_eq!(config.at_image_size(side), None, "{side}");
        }
        // 8 x 8 features and a token of text.
        config.decoder.max_position_embeddings = 80;
        config.vision.image_size = 256;
        assert_eq!(config.image_sizes(), (64, 512));
        // Its own size is always one.
        config.vision.image_size = 4096;
        assert_eq!(config.image_sizes(), (64, 4096));
    }

    #[test]
    fn what_does_not_fit_is_named() {
        struct Case {
            from: &'static str,
            old: &'static str,
            new: &'static str,
            expected: &'static str,
        }
        let cases = [
            Case {
                from: LLAVA,
                old: "llava_qwen2",
                new: "llava",
                expected: "`model_type` is `llava`",
            },
            Case {
                from: LLAVA,
                old: "mobileclip_l_1024",
                new: "clip_336",
                expected: "`mm_vision_tower` is \"clip_336\"",
            },
            Case {
                from: LLAVA,
                old: "\"hidden_size\": 896,",
                new: "",
                expected: "`hidden_size` is missing",
            },
            Case {
                from: LLAVA,
                old: "\"hidden_size\": 896",
                new: "\"hidden_size\": -1",
                expected: "`hidden_size` is -1",
            },
            Case {
                from: LLAVA,
                old: "\"hidden_size\": 896",
                new: "\"hidden_size\": 1e30",
                expected: "`hidden_size` is 1e+30",
            },
            Case {
                from: LLAVA,
                old: "\"silu\"",
                new: "\"relu\"",
                expected: "`hidden_act` is \"relu\"",
            },
            Case {
                from: LLAVA,
                old: "mlp2x_gelu",
                new: "linear",
                expected: "`mm_projector_type` is \"linear\"",
            },
            Case {
                from: LLAVA,
                old: "3072",
                new: "3000",
                expected: "the projector takes 3000 channels",
            },
            Case {
                from: LLAVA,
                old: "\"vision_config\": {}",
                new: "\"vision_config\": {\"layers\": [1]}",
                expected: "5 `embed_dims` and 1 layers",
            },
            Case {
                from: LLAVA,
                old: "\"num_hidden_layers\": 24",
                new: "\"num_hidden_layers\": 16000000",
                expected: "`num_hidden_layers` is 16000000, at most 1024",
            },
            Case {
                from: LLAVA,
                old: "mobileclip_l_1024",
                new: "mobileclip_l_1000",
                expected: "the image size is 1000, expected a multiple of 64",
            },
            Case {
                from: LLAVA,
                old: "\"vision_config\": {}",
                new: "\"vision_config\": {\"cls_ratio\": 1e300}",
                expected: "channels of the final convolution",
            },
            Case {
                from: LLAVA,
                old: "\"vision_config\": {}",
                new: "\"vision_config\": {\"down_patch_size\": 4}",
                expected: "`down_patch_size` is 4, expected an odd number from 3",
            },
            Case {
                from: LLAVA,
                old: "\"vocab_size\": 151936",
                new: "\"head_dim\": 16777216, \"vocab_size\": 151936",
                expected: "elements of all query heads",
            },
            Case {
                from: TRANSFORMERS,
                old: "\"vocab_size\": 151936",
                new: "\"layer_types\": [\"sliding_attention\"], \"vocab_size\": 151936",
                expected: "`text_config.layer_types` has \"sliding_attention\"",
            },
            Case {
                from: TRANSFORMERS,
                old: "fastvit_mci3",
                new: "resnet50",
                expected: "`vision_config.architecture` is `resnet50`",
            },
            Case {
                from: TRANSFORMERS,
                old: "\"inference_mode\": true",
                new: "\"fork_feat\": true",
                expected: "model_args.fork_feat` is true",
            },
            Case {
                from: TRANSFORMERS,
                old: "\"default\"",
                new: "\"yarn\"",
                expected: "rope_parameters.rope_type` is \"yarn\"",
            },
            Case {
                from: TRANSFORMERS,
                old: "\"num_key_value_heads\": 2",
                new: "\"num_key_value_heads\": 3",
                expected: "expected a multiple of `num_key_value_heads`, 3",
            },
        ];
        let mut failures = Vec::new();
        for Case {
            from,
            old,
            new,
            expected,
        } in cases
        {
            assert!(from.contains(old), "{old}");
            match parse(&from.replacen(old, new, 1)) {
                Err(message) if message.contains(expected) => {}
                other => failures.push(format!("{new}: {other:?}, expected {expected}")),
            }
        }
        assert!(failures.is_empty(), "{}", failures.join("\n"));
    }

    #[test]
    fn all_problems_at_once() {
        let text = LLAVA
            .replace("\"silu\"", "\"relu\"")
            .replace("\"hidden_size\": 896,", "");
        let message = parse(&text).unwrap_err();
        assert!(
            message.contains("hidden_act") && message.contains("`hidden_size` is missing"),
            "{message}"
        );
    }
}
