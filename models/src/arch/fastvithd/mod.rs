//! FastViTHD, the image encoder, in inference form: timm `FastVit` as `fastvit_mci3` configures it.
//!
//! A stem (stride 4), five stages (stride 2 each but the first), a final convolution with squeeze-and-excite.
//! Stages mix tokens by a depthwise convolution (RepMixer) or by self-attention; every block ends with a
//! ConvFFN. Each convolution's weights are already folded with its normalisation and its train-time branches.
//!
//! Letters: `B` images, `C` channels of the stage, `H` x `W` its feature map, `N = H * W`, `h` heads, `d`
//! their length.

mod fixed;
pub(super) mod fused;

use super::attention;
use crate::config::{TokenMixer, VisionConfig};
use crate::graph::{Builder, Conv, Dim, ValueId, signed};

/// How attention is written down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Attention {
    /// Products and a softmax, for any number of images.
    Portable,
    /// The same for one image, in rank 4 and dense layers: for Core ML.
    OfOne,
    /// For one image, in one operator.
    WholeOfOne,
}

/// `pixels [B,3,S,S] -> tokens [B,N,F]`, row by row.
pub(super) fn fastvithd(
    b: &mut Builder,
    config: &VisionConfig,
    attention: Attention,
    pixels: ValueId,
) -> ValueId {
    let b = &mut b.scope("vision_tower");
    let mut x = stem(b, config, pixels); // [B,C0,S/4,S/4]
    for index in 0..config.embed_dims.len() {
        x = stage(b, config, attention, index, x); // [B,C,H,W]
    }
    let x = final_conv(b, config, x); // [B,F,H,W]
    tokens_of(b, x) // [B,N,F]
}

/// Three convolutions with GELU: 3x3 stride 2, depthwise 3x3 stride 2, 1x1.
fn stem(b: &mut Builder, config: &VisionConfig, pixels: ValueId) -> ValueId {
    let width = config.embed_dims[0];
    let b = &mut b.scope("stem");
    let mut x = pixels; // [B,3,S,S]
    for (name, conv) in [
        (
            "0",
            Conv {
                input: 3,
                output: width,
                kernel: 3,
                stride: 2,
                group: 1,
            },
        ), // [B,C,S/2,S/2]
        (
            "1",
            Conv {
                input: width,
                output: width,
                kernel: 3,
                stride: 2,
                group: width,
            },
        ), // [B,C,S/4,S/4]
        (
            "2",
            Conv {
                input: width,
                output: width,
                kernel: 1,
                stride: 1,
                group: 1,
            },
        ), // [B,C,S/4,S/4]
    ] {
        x = b.conv(name, x, conv);
        x = b.scope(name).gelu(x);
    }
    x
}

fn stage(b: &mut Builder, config: &VisionConfig, attention: Attention, index: usize, x: ValueId) -> ValueId {
    let width = config.embed_dims[index];
    let b = &mut b.scope(format!("stages.{index}"));
    let mut x = if config.downsamples(index) {
        downsample(b, config, index, x)
    } else {
        x
    }; // [B,C,H,W]
    if let Some(kernel) = config.pos_embs[index] {
        x = b.conv(
            "pos_emb",
            x,
            Conv {
                input: width,
                output: width,
                kernel,
                stride: 1,
                group: width,
            },
        ); // [B,C,H,W]
    }
    for block in 0..config.layers[index] {
        let b = &mut b.scope(format!("blocks.{block}"));
        x = match config.token_mixers[index] {
            TokenMixer::RepMixer => repmixer_block(b, config, index, x), // [B,C,H,W]
            TokenMixer::Attention => attention_block(b, config, attention, index, x), // [B,C,H,W]
        };
    }
    x
}

/// A large depthwise convolution with stride, then 1x1. timm `PatchEmbed`.
fn downsample(b: &mut Builder, config: &VisionConfig, index: usize, x: ValueId) -> ValueId {
    let output = config.embed_dims[index];
    let input = if index == 0 {
        output
    } else {
        config.embed_dims[index - 1]
    };
    let b = &mut b.scope("downsample.proj");
    let large = Conv {
        input,
        output,
        kernel: config.down_patch_size,
        stride: config.down_stride,
        group: input,
    };
    let mut x = b.conv("0", x, large); // [B,C,H,W]
    if config.lkc_use_act {
        x = b.scope("0").gelu(x); // [B,C,H,W]
    }
    let x = b.conv(
        "1",
        x,
        Conv {
            input: output,
            output,
            kernel: 1,
            stride: 1,
            group: 1,
        },
    ); // [B,C,H,W]
    b.scope("1").gelu(x) // [B,C,H,W]
}

/// `x = mixer(x); x + scale * ffn(x)`. timm `RepMixerBlock`.
fn repmixer_block(b: &mut Builder, config: &VisionConfig, index: usize, x: ValueId) -> ValueId {
    let width = config.embed_dims[index];
    let depthwise = Conv {
        input: width,
        output: width,
        kernel: config.repmixer_kernel_size,
        stride: 1,
        group: width,
    };
    let x = b.conv("token_mixer", x, depthwise); // [B,C,H,W]
    let mixed = conv_ffn(b, config, index, x); // [B,C,H,W]
    residual(b, config, "layer_scale", x, mixed)
}

/// `x + scale * attention(norm(x))`, then `x + scale * ffn(x)`. timm `AttentionBlock`.
fn attention_block(
    b: &mut Builder,
    config: &VisionConfig,
    attention: Attention,
    index: usize,
    x: ValueId,
) -> ValueId {
    let width = config.embed_dims[index];
    let (height, breadth) = match *b.shape_of(x) {
        [_, _, Dim::Fixed(height), Dim::Fixed(breadth)] => (height, breadth),
        _ => (0, 0),
    };
    // The norm is over channels: in the token form that is the last axis.
    let tokens = tokens_of(b, x); // [B,N,C]
    let normed = b.layer_norm("norm", tokens, width, config.norm_epsilon); // [B,N,C]
    let attended = match attention {
        Attention::Portable => self_attention(b, config, width, normed), // [B,N,C]
        Attention::OfOne => fixed::attention(b, config, width, height * breadth, false, normed), // [1,N,C]
        Attention::WholeOfOne => fixed::attention(b, config, width, height * breadth, true, normed), // [1,N,C]
    };
    let columns = b.transpose(attended, &[0, 2, 1]); // [B,C,N]
    let map = b.reshape(columns, &[0, signed(width), signed(height), signed(breadth)]); // [B,C,H,W]
    let x = residual(b, config, "layer_scale_1", x, map); // [B,C,H,W]
    let mixed = conv_ffn(b, config, index, x); // [B,C,H,W]
    residual(b, config, "layer_scale_2", x, mixed)
}

/// Multi-head self-attention, qkv without bias. timm `Attention`.
fn self_attention(b: &mut Builder, config: &VisionConfig, width: u64, x: ValueId) -> ValueId {
    let length = config.head_dim;
    let heads = width / length.max(1);
    let b = &mut b.scope("token_mixer");
    let qkv = b.linear("qkv", x, width, 3 * width, false); // [B,N,3C]
    let parts = attention::parts(b, qkv, signed(heads), signed(length)); // [B,h,N,d] each
    let mixed = attention::products(b, length, parts); // [B,h,N,d]
    let mixed = attention::joined(b, mixed); // [B,N,C]
    b.linear("proj", mixed, width, width, true) // [B,N,C]
}

/// Depthwise 7x7, 1x1 to the MLP's width, exact GELU, 1x1 back. timm `ConvMlp`.
fn conv_ffn(b: &mut Builder, config: &VisionConfig, index: usize, x: ValueId) -> ValueId {
    let width = config.embed_dims[index];
    let wide = config.mlp_channels(index);
    let b = &mut b.scope("mlp");
    let x = b.conv(
        "conv",
        x,
        Conv {
            input: width,
            output: width,
            kernel: 7,
            stride: 1,
            group: width,
        },
    ); // [B,C,H,W]
    let x = b.conv(
        "fc1",
        x,
        Conv {
            input: width,
            output: wide,
            kernel: 1,
            stride: 1,
            group: 1,
        },
    ); // [B,4C,H,W]
    let x = b.gelu(x); // [B,4C,H,W]
    b.conv(
        "fc2",
        x,
        Conv {
            input: wide,
            output: width,
            kernel: 1,
            stride: 1,
            group: 1,
        },
    ) // [B,C,H,W]
}

/// `x + gamma * y`, gamma `[C,1,1]`.
fn residual(b: &mut Builder, config: &VisionConfig, scale: &str, x: ValueId, y: ValueId) -> ValueId {
    let width = b.shape_of(x).get(1).and_then(|dim| dim.fixed()).unwrap_or(0);
    let scaled = if config.layer_scale {
        let b = &mut b.scope(scale);
        let gamma = b.weight("gamma", &[width, 1, 1]);
        b.mul(y, gamma)
    } else {
        y
    };
    b.add(x, scaled)
}

/// 3x3 in groups of one input channel, squeeze-and-excite, GELU. timm `FastVit.final_conv`.
fn final_conv(b: &mut Builder, config: &VisionConfig, x: ValueId) -> ValueId {
    let input = config.embed_dims.last().copied().unwrap_or(0);
    let (output, squeezed) = (config.final_channels, config.se_channels());
    let x = b.conv(
        "final_conv",
        x,
        Conv {
            input,
            output,
            kernel: 3,
            stride: 1,
            group: input,
        },
    ); // [B,F,H,W]
    let b = &mut b.scope("final_conv");
    let gate = {
        let b = &mut b.scope("se");
        let mean = b.full().reduce_mean(x, &[2, 3]); // [B,F,1,1]
        let small = b.conv(
            "fc1",
            mean,
            Conv {
                input: output,
                output: squeezed,
                kernel: 1,
                stride: 1,
                group: 1,
            },
        );
        let small = b.relu(small); // [B,F/16,1,1]
        let wide = b.conv(
            "fc2",
            small,
            Conv {
                input: squeezed,
                output,
                kernel: 1,
                stride: 1,
                group: 1,
            },
        );
        b.sigmoid(wide) // [B,F,1,1]
    };
    let x = b.mul(x, gate); // [B,F,H,W]
    b.gelu(x) // [B,F,H,W]
}

/// `[B,C,H,W] -> [B,H*W,C]`
fn tokens_of(b: &mut Builder, x: ValueId) -> ValueId {
    let flat = b.reshape(x, &[0, 0, -1]); // [B,C,N]
    b.transpose(flat, &[0, 2, 1]) // [B,N,C]
}
