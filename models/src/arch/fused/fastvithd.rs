//! FastViTHD in fused operators: [`crate::arch::fastvithd`], channels last.
//!
//! Letters: `B` images, `C` channels of the stage, `H` x `W` its feature map, `N = H * W`, `h` heads, `d` their length.

use super::{FeedForward, Linear, Names, first};
use crate::arch::fastvithd::{final_conv, tokens_of};
use crate::config::{TokenMixer, VisionConfig};
use crate::dtype::DType;
use crate::graph::fused::{Encoding, Fused, Norm};
use crate::graph::{Builder, Dim, ValueId, WeightForm};

/// `pixels [B,3,S,S] -> tokens [B,N,F]`, row by row.
pub(super) fn fastvithd(
    b: &mut Builder,
    config: &VisionConfig,
    encoding: Encoding,
    pixels: ValueId,
) -> ValueId {
    let b = &mut b.scope("vision_tower");
    let mut x = stem(b, config, encoding, pixels); // [B,S/4,S/4,C0]
    for index in 0..config.embed_dims.len() {
        x = stage(b, config, encoding, index, x); // [B,H,W,C]
    }
    // What is left is a small map: portable operators.
    let x = b.transpose(x, &[0, 3, 1, 2]); // [B,C,H,W]
    let x = final_conv(b, config, x); // [B,F,H,W]
    tokens_of(b, x) // [B,N,F]
}

/// Three convolutions with GELU: 3x3 stride 2, depthwise 3x3 stride 2, 1x1.
fn stem(b: &mut Builder, config: &VisionConfig, encoding: Encoding, pixels: ValueId) -> ValueId {
    let width = config.embed_dims.first().copied().unwrap_or(0);
    let b = &mut b.scope("stem");
    let first_conv = Fused::Stem {
        kernel: 3,
        stride: 2,
        gelu: true,
    };
    let x = convolution(b, "0", first_conv, pixels, 3 * 9, width); // [B,S/2,S/2,C]
    let x = depthwise(b, "1", x, width, 3, 2, true); // [B,S/4,S/4,C]
    pointwise(b, "2", x, [width, width], encoding) // [B,S/4,S/4,C]
}

fn stage(b: &mut Builder, config: &VisionConfig, encoding: Encoding, index: usize, x: ValueId) -> ValueId {
    let width = config.embed_dims.get(index).copied().unwrap_or(0);
    let b = &mut b.scope(format!("stages.{index}"));
    let mut x = if config.downsamples(index) {
        downsample(b, config, encoding, index, x)
    } else {
        x
    }; // [B,H,W,C]
    if let Some(Some(kernel)) = config.pos_embs.get(index) {
        x = depthwise(b, "pos_emb", x, width, *kernel, 1, false); // [B,H,W,C]
    }
    for block in 0..config.layers.get(index).copied().unwrap_or(0) {
        let b = &mut b.scope(format!("blocks.{block}"));
        x = match config.token_mixers.get(index) {
            Some(TokenMixer::Attention) => attention_block(b, config, encoding, index, x), // [B,H,W,C]
            Some(TokenMixer::RepMixer) | None => repmixer_block(b, config, encoding, index, x), // [B,H,W,C]
        };
    }
    x
}

/// A large depthwise convolution with stride, then 1x1 with GELU.
fn downsample(
    b: &mut Builder,
    config: &VisionConfig,
    encoding: Encoding,
    index: usize,
    x: ValueId,
) -> ValueId {
    let output = config.embed_dims.get(index).copied().unwrap_or(0);
    let input = index
        .checked_sub(1)
        .and_then(|before| config.embed_dims.get(before))
        .copied();
    let input = input.unwrap_or(output);
    let b = &mut b.scope("downsample.proj");
    let (kernel, stride) = (config.down_patch_size, config.down_stride);
    let x = if input == output {
        depthwise(b, "0", x, input, kernel, stride, config.lkc_use_act) // [B,H,W,C]
    } else {
        widening(b, config, x, [input, output]) // [B,H,W,C]
    };
    pointwise(b, "1", x, [output, output], encoding) // [B,H,W,C]
}

/// The depthwise convolution of a downsampling that has several outputs for each channel: portable operators.
fn widening(b: &mut Builder, config: &VisionConfig, x: ValueId, [input, output]: [u64; 2]) -> ValueId {
    let planes = b.transpose(x, &[0, 3, 1, 2]); // [B,C,H,W]
    let conv = crate::graph::Conv {
        input,
        output,
        kernel: config.down_patch_size,
        stride: config.down_stride,
        group: input,
    };
    let mut x = b.conv("0", planes, conv); // [B,C',H/2,W/2]
    if config.lkc_use_act {
        x = b.scope("0").gelu(x); // [B,C',H/2,W/2]
    }
    b.transpose(x, &[0, 2, 3, 1]) // [B,H/2,W/2,C']
}

/// `x = mixer(x); x + scale * ffn(x)`
fn repmixer_block(
    b: &mut Builder,
    config: &VisionConfig,
    encoding: Encoding,
    index: usize,
    x: ValueId,
) -> ValueId {
    let width = config.embed_dims.get(index).copied().unwrap_or(0);
    let x = depthwise(b, "token_mixer", x, width, config.repmixer_kernel_size, 1, false); // [B,H,W,C]
    conv_ffn(b, config, encoding, index, "layer_scale", x) // [B,H,W,C]
}

/// `x + scale * attention(norm(x))`, then `x + scale * ffn(x)`
fn attention_block(
    b: &mut Builder,
    config: &VisionConfig,
    encoding: Encoding,
    index: usize,
    x: ValueId,
) -> ValueId {
    let width = config.embed_dims.get(index).copied().unwrap_or(0);
    let (height, breadth) = match *b.shape_of(x) {
        [_, Dim::Fixed(height), Dim::Fixed(breadth), _] => (signed(height), signed(breadth)),
        _ => (0, 0),
    };
    let tokens = b.reshape(x, &[0, -1, signed(width)]); // [B,N,C]
    let gain = layer_scale(b, config, "layer_scale_1");
    let attended = {
        let norm_name = b.weight_name("norm");
        let b = &mut b.scope("token_mixer");
        let qkv = Linear {
            inputs: width,
            parts: &[("qkv", 3 * width)],
            encoding,
            bias: false,
            gelu: false,
            gain: None,
            norm: Norm::Layer {
                epsilon: config.norm_epsilon,
            },
            norm_name: Some(norm_name),
        };
        let qkv = qkv.add(b, tokens, None); // [B,N,3C]
        let attention = Fused::SelfAttention {
            heads: width / config.head_dim.max(1),
            head_dim: config.head_dim,
        };
        let mixed = first(&b.fused(attention, &[qkv]), qkv); // [B,N,C]
        let proj = Linear {
            inputs: width,
            parts: &[("proj", width)],
            encoding,
            bias: true,
            gelu: false,
            gain,
            norm: Norm::None,
            norm_name: None,
        };
        proj.add(b, mixed, Some(tokens)) // [B,N,C]
    };
    let x = b.reshape(attended, &[0, height, breadth, signed(width)]); // [B,H,W,C]
    conv_ffn(b, config, encoding, index, "layer_scale_2", x) // [B,H,W,C]
}

/// `x + scale * ffn(x)`: depthwise 7x7, 1x1 to the MLP's width, exact GELU, 1x1 back.
fn conv_ffn(
    b: &mut Builder,
    config: &VisionConfig,
    encoding: Encoding,
    index: usize,
    scale: &str,
    x: ValueId,
) -> ValueId {
    let width = config.embed_dims.get(index).copied().unwrap_or(0);
    let gain = layer_scale(b, config, scale);
    let b = &mut b.scope("mlp");
    let mixed = depthwise(b, "conv", x, width, 7, 1, false); // [B,H,W,C]
    let feed_forward = FeedForward {
        inputs: width,
        hidden: config.mlp_channels(index),
        outputs: width,
        norm: Norm::None,
        encoding,
        bias: true,
        names: Names {
            gate: None,
            up: "fc1",
            down: "fc2",
        },
        norm_name: None,
        gain,
    };
    feed_forward.add(b, mixed, Some(x)) // [B,H,W,C]
}

/// Full canonical name of a layer scale, where the tower has them.
fn layer_scale(b: &Builder, config: &VisionConfig, name: &str) -> Option<String> {
    config
        .layer_scale
        .then(|| b.weight_name(&format!("{name}.gamma")))
}

/// `x [B,H,W,C] -> [B,H/stride,W/stride,C]`, "same" padding.
fn depthwise(
    b: &mut Builder,
    name: &str,
    x: ValueId,
    width: u64,
    kernel: u64,
    stride: u64,
    gelu: bool,
) -> ValueId {
    let conv = Fused::DepthwiseConv { kernel, stride, gelu };
    convolution(b, name, conv, x, kernel * kernel, width)
}

/// A convolution whose kernel is read as `[taps, outputs]`.
fn convolution(b: &mut Builder, name: &str, conv: Fused, x: ValueId, taps: u64, outputs: u64) -> ValueId {
    let b = &mut b.scope(name);
    let weight = b.weight_name("weight");
    let shape = [taps, outputs];
    let label = format!("{weight}.taps");
    let kernel = b.weight_in(WeightForm::Transposed, &weight, &label, DType::Float32, &shape);
    let bias = b.weight("bias", &[outputs]);
    first(&b.fused(conv, &[x, kernel, bias]), x)
}

/// A 1x1 convolution with bias and GELU.
fn pointwise(
    b: &mut Builder,
    name: &str,
    x: ValueId,
    [inputs, outputs]: [u64; 2],
    encoding: Encoding,
) -> ValueId {
    let linear = Linear {
        inputs,
        parts: &[(name, outputs)],
        encoding,
        bias: true,
        gelu: true,
        gain: None,
        norm: Norm::None,
        norm_name: None,
    };
    linear.add(b, x, None)
}

fn signed(length: u64) -> i64 {
    i64::try_from(length).unwrap_or(i64::MAX)
}
