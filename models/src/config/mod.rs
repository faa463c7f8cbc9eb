//! What a FastVLM's `config.json` says, in one form for both dialects.
//!
//! A field that changes numbers and is missing is an error, unless the published implementation has a default
//! for it: each default below says whose. All problems of a file are reported together.

mod check;
mod declared;
mod fields;
mod llava;
mod processor;
mod shared;
mod transformers;

use crate::checkpoint::error::CheckpointError;
use crate::checkpoint::small;
pub(crate) use check::MAX_SIDE;
use check::check;
pub(crate) use declared::{CONFIG, Declared};
use fields::Problems;
use llava::llava;
pub(crate) use processor::{PREPROCESSOR, PROCESSOR, Processor};
use serde_json::Value;
use std::path::Path;
use transformers::transformers;

/// The dialect of a config, and with it the names that the tensors have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Layout {
    /// Apple's `LlavaQwen2ForCausalLM`.
    Llava,
    /// transformers' `FastVlmForConditionalGeneration`.
    Transformers,
    /// mlx-vlm's conversion of the first, for MLX: it has Apple's dialect and names of its own.
    Mlx,
}

impl Layout {
    /// The layout whose dialect a config of this one has.
    pub const fn dialect(self) -> Layout {
        match self {
            Layout::Llava | Layout::Mlx => Layout::Llava,
            Layout::Transformers => Layout::Transformers,
        }
    }
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

/// Largest side of images that an encoder is made for beside the model's own: in the fourth stage of the
/// published tower 2048 pixels are 4096 positions, whose attention scores take 1.6 GB.
const MAX_FURTHER_SIDE: u64 = 2048;

impl ModelConfig {
    /// Sides of square images that an encoder can be made for: multiples of the first number (every stage's
    /// map is whole) up to the second (the features leave room in the decoder's context).
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

    /// The same model for square images of another side, in pixels; `None` where the network does not allow
    /// it.
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

impl ModelConfig {
    /// Reads `config.json` of a checkpoint, and the image size from the image processor's file where the
    /// config does not state it.
    ///
    /// # Errors
    /// A file that cannot be read, is not JSON, or asks for something that this build does not do.
    pub fn open(directory: &Path) -> Result<(ModelConfig, Layout), CheckpointError> {
        let declared = Declared::read(directory, Declared::fields(directory)?)?;
        Ok((declared.config, declared.layout))
    }

    /// Reads the text of a `config.json`; `path` is for messages.
    ///
    /// # Errors
    /// As [`ModelConfig::open`].
    pub fn parse(text: &str, path: &Path) -> Result<(ModelConfig, Layout), CheckpointError> {
        ModelConfig::of(&small::object_of(text, path)?, path)
    }

    /// What the fields of a `config.json` say; `path` is for messages.
    fn of(fields: &Value, path: &Path) -> Result<(ModelConfig, Layout), CheckpointError> {
        let Value::Object(object) = fields else {
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
            Layout::Llava | Layout::Mlx => llava(object, &mut problems),
            Layout::Transformers => transformers(object, &mut problems),
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
    fn what_transformers_reads_otherwise_written() {
        let expected = parse(TRANSFORMERS).unwrap();
        for (old, new) in [
            ("fastvit_mci3", "fastvit_mci3.apple_mclip2_dfndr2b"),
            (", \"vocab_size\": 151936", ""),
            ("\"vocab_size\"", "\"is_causal\": true, \"vocab_size\""),
        ] {
            assert!(TRANSFORMERS.contains(old));
            assert_eq!(parse(&TRANSFORMERS.replace(old, new)).unwrap(), expected, "{new}");
        }
    }

    /// As mlx-vlm may write it.
    #[test]
    fn the_decoder_may_have_an_object_of_its_own() {
        let mut config: Value = serde_json::from_str(LLAVA).unwrap();
        let expected = parse(LLAVA).unwrap();
        let top = config.as_object_mut().unwrap();
        let mut text = serde_json::Map::new();
        for name in [
            "hidden_size",
            "intermediate_size",
            "num_attention_heads",
            "num_hidden_layers",
            "num_key_value_heads",
            "rms_norm_eps",
            "rope_theta",
            "tie_word_embeddings",
            "vocab_size",
        ] {
            text.extend(top.shift_remove_entry(name));
        }
        top.insert("text_config".to_owned(), Value::Object(text));
        assert_eq!(parse(&config.to_string()).unwrap(), expected);
        config["text_config"]["num_hidden_layers"] = Value::from("x");
        let message = parse(&config.to_string()).unwrap_err();
        assert!(
            message.contains("`text_config.num_hidden_layers` is \"x\""),
            "{message}"
        );
        // Beside the fields it is what others wrote, and not read.
        let mut config: Value = serde_json::from_str(LLAVA).unwrap();
        config["text_config"] = Value::from(3);
        assert_eq!(parse(&config.to_string()).unwrap(), expected);
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
                old: "\"use_sliding_window\": false",
                new: "\"use_sliding_window\": true, \"max_window_layers\": 21",
                expected: "`use_sliding_window` is true with `max_window_layers` 21 of 24 layers",
            },
            Case {
                from: TRANSFORMERS,
                old: "\"vocab_size\": 151936",
                new: "\"use_sliding_window\": true, \"max_window_layers\": 0, \"vocab_size\": 151936",
                expected: "`text_config.use_sliding_window` is true with `max_window_layers` 0",
            },
            Case {
                from: LLAVA,
                old: "\"num_key_value_heads\": 2,",
                new: "",
                expected: "`num_key_value_heads` is missing",
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
                old: "\"vocab_size\": 151936",
                new: "\"is_causal\": false, \"vocab_size\": 151936",
                expected: "`text_config.is_causal` is false",
            },
            Case {
                from: TRANSFORMERS,
                old: "\"vocab_size\": 151936",
                new: "\"is_causal\": null, \"vocab_size\": 151936",
                expected: "`text_config.is_causal` is null",
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
                from: LLAVA,
                old: "\"vocab_size\": 151936",
                new: "\"rope_scaling\": {\"type\": \"linear\", \"factor\": 2.0}, \"vocab_size\": 151936",
                expected: "`rope_scaling.factor` is 2.0, this build supports 1",
            },
            Case {
                from: TRANSFORMERS,
                old: "\"vocab_size\": 151936",
                new: "\"rope_scaling\": {\"factor\": 2.0}, \"vocab_size\": 151936",
                expected: "`text_config.rope_scaling.factor` is 2.0, this build supports 1",
            },
            Case {
                from: LLAVA,
                old: "\"vocab_size\": 151936",
                new: "\"rope_scaling\": {\"type\": \"linear\"}, \"vocab_size\": 151936",
                expected: "`rope_scaling.factor` is missing, this build supports 1",
            },
            Case {
                from: LLAVA,
                old: "\"vocab_size\": 151936",
                new: "\"rope_scaling\": [2], \"vocab_size\": 151936",
                expected: "`rope_scaling` is [2], expected an object",
            },
            Case {
                from: TRANSFORMERS,
                old: "{\"rope_theta\": 1000000.0, \"rope_type\": \"default\"}",
                new: "{\"full_attention\": {\"rope_theta\": 1000000.0}}",
                expected: "rope_parameters.full_attention` is {\"rope_theta\":1000000.0}, which this build does not know",
            },
            Case {
                from: TRANSFORMERS,
                old: "\"rope_type\": \"default\"",
                new: "\"type\": \"yarn\"",
                expected: "rope_parameters.type` is \"yarn\"",
            },
            Case {
                from: TRANSFORMERS,
                old: "\"rope_type\": \"default\"",
                new: "\"partial_rotary_factor\": 0.5",
                expected: "rope_parameters.partial_rotary_factor` is 0.5, this build supports 1",
            },
            Case {
                from: TRANSFORMERS,
                old: "\"vocab_size\": 151936",
                new: "\"rope_scaling\": {\"rope_type\": \"default\"}, \"vocab_size\": 151936",
                expected: "`text_config.rope_scaling` has no `rope_theta`, and `text_config.rope_parameters` has 1000000.0",
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

    /// The bases are those of transformers 5.24's `Qwen2Config` for the same fields.
    #[test]
    fn rope_may_say_that_nothing_is_scaled() {
        let scaling = [
            (LLAVA, "null", None),
            (LLAVA, "{}", None),
            (LLAVA, r#"{"rope_type": "default"}"#, None),
            (LLAVA, r#"{"type": "default"}"#, None),
            (LLAVA, r#"{"type": "linear", "factor": 1.0}"#, None),
            (
                LLAVA,
                r#"{"rope_type": "default", "rope_theta": 5000.0}"#,
                Some(5000.0),
            ),
            (TRANSFORMERS, "null", None),
            (TRANSFORMERS, "{}", None),
            (
                TRANSFORMERS,
                r#"{"rope_type": "default", "rope_theta": 5000.0}"#,
                Some(5000.0),
            ),
        ];
        let scaling = scaling.map(|(from, value, theta)| {
            let new = format!("\"rope_scaling\": {value}, \"vocab_size\": 151936");
            (from, "\"vocab_size\": 151936", new, theta)
        });
        let parameters = [
            (r#"{"rope_theta": 1000000.0}"#, None),
            (
                r#"{"rope_type": "linear", "factor": 1, "rope_theta": 7.0}"#,
                Some(7.0),
            ),
            (r#"{"type": "default", "mrope_section": null}"#, Some(10_000.0)),
        ];
        let parameters = parameters.map(|(new, theta)| {
            let old = r#"{"rope_theta": 1000000.0, "rope_type": "default"}"#;
            (TRANSFORMERS, old, new.to_owned(), theta)
        });
        for (from, old, new, theta) in scaling.into_iter().chain(parameters) {
            let mut expected = parse(from).unwrap().0.decoder;
            expected.rope_theta = theta.unwrap_or(expected.rope_theta);
            assert!(from.contains(old), "{old}");
            assert_eq!(
                parse(&from.replacen(old, &new, 1)).unwrap().0.decoder,
                expected,
                "{new}"
            );
        }
    }

    /// As transformers 5.24's `Qwen2Config` reads them.
    #[test]
    fn a_window_that_no_layer_has_changes_nothing() {
        let full = format!("\"layer_types\": {:?}", ["full_attention"; 24]);
        for from in [LLAVA, TRANSFORMERS] {
            for more in [
                &full,
                "\"max_window_layers\": 24",
                "\"layer_types\": null",
                "\"max_window_layers\": 0, \"sliding_window\": null",
            ] {
                let sliding = from.replace("\"use_sliding_window\": false, ", "").replace(
                    "\"vocab_size\": 151936",
                    &format!("\"use_sliding_window\": true, {more}, \"vocab_size\": 151936"),
                );
                assert_eq!(parse(&sliding), parse(from), "{more}");
            }
        }
    }

    #[test]
    fn no_key_value_heads_are_as_many_as_query_heads() {
        for from in [LLAVA, TRANSFORMERS] {
            let null = from.replace("\"num_key_value_heads\": 2", "\"num_key_value_heads\": null");
            let decoder = parse(&null).unwrap().0.decoder;
            assert_eq!((decoder.heads, decoder.kv_heads), (14, 14));
        }
    }

    #[test]
    fn silu_has_two_names() {
        for from in [LLAVA, TRANSFORMERS] {
            assert_eq!(parse(&from.replace("silu", "swish")), parse(from));
        }
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
