//! What a FastVLM's `config.json` says, in one form for both dialects.

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
