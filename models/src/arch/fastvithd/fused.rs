//! FastViTHD in fused operators: [`super`], channels last.
//!
//! Letters: `B` images, `C` channels of the stage, `H` x `W` its feature map, `N = H * W`, `h` heads, `d`
//! their length.

use crate::arch::products::{FeedForward, Linear, Names, Stored, first};
use crate::config::{TokenMixer, VisionConfig};
use crate::dtype::DType;
use crate::fused::{Fused, Norm};
use crate::graph::{Builder, Dim, ValueId, WeightForm, signed};

/// `pixels [B,3,S,S] -> tokens [B,N,F]`, row by row.
pub(in crate::arch) fn fastvithd(
    b: &mut Builder,
    config: &VisionConfig,
    encoding: Stored<'_>,
    pixels: ValueId,
) -> ValueId {
    let b = &mut b.scope("vision_tower");
    let mut x = stem(b, config, encoding, pixels); // [B,S/4,S/4,C0]
    for index in 0..config.embed_dims.len() {
        x = stage(b, config, encoding, index, x); // [B,H,W,C]
    }
    final_conv(b, config, encoding, x) // [B,N,F]
}

/// Three convolutions with GELU: 3x3 stride 2, depthwise 3x3 stride 2, 1x1.
fn stem(b: &mut Builder, config: &VisionConfig, encoding: Stored<'_>, pixels: ValueId) -> ValueId {
    let width = config.embed_dims.first().copied().unwrap_or(0);
    let b = &mut b.scope("stem");
    let both = Fused::Stem {
        kernel: 3,
        stride: 2,
        depthwise_kernel: 3,
        depthwise_stride: 2,
    };
    let mut inputs = vec![pixels];
    inputs.extend(taps(&mut b.scope("0"), 3 * 9, width));
    inputs.extend(taps(&mut b.scope("1"), 9, width));
    let x = first(&b.fused(both, &inputs), pixels); // [B,S/4,S/4,C]
    pointwise(b, "2", x, [width, width], encoding) // [B,S/4,S/4,C]
}

fn stage(b: &mut Builder, config: &VisionConfig, encoding: Stored<'_>, index: usize, x: ValueId) -> ValueId {
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
    encoding: Stored<'_>,
    index: usize,
    x: ValueId,
) -> ValueId {
    let output = config.embed_dims.get(index).copied().unwrap_or(0);
    let b = &mut b.scope("downsample.proj");
    let (kernel, stride) = (config.down_patch_size, config.down_stride);
    let x = depthwise(b, "0", x, output, kernel, stride, config.lkc_use_act); // [B,H,W,C]
    pointwise(b, "1", x, [output, output], encoding) // [B,H,W,C]
}

/// `x = mixer(x); x + scale * ffn(x)`
fn repmixer_block(
    b: &mut Builder,
    config: &VisionConfig,
    encoding: Stored<'_>,
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
    encoding: Stored<'_>,
    index: usize,
    x: ValueId,
) -> ValueId {
    let width = config.embed_dims.get(index).copied().unwrap_or(0);
    let (height, breadth) = size(b, x);
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
    let x = b.reshape(attended, &[0, signed(height), signed(breadth), signed(width)]); // [B,H,W,C]
    conv_ffn(b, config, encoding, index, "layer_scale_2", x) // [B,H,W,C]
}

/// `x + scale * ffn(x)`: depthwise 7x7, 1x1 to the MLP's width, exact GELU, 1x1 back.
fn conv_ffn(
    b: &mut Builder,
    config: &VisionConfig,
    encoding: Stored<'_>,
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

/// Depthwise 3x3, squeeze-and-excite, GELU: `x [B,H,W,C] -> [B,N,F]`.
fn final_conv(b: &mut Builder, config: &VisionConfig, encoding: Stored<'_>, x: ValueId) -> ValueId {
    let (output, squeezed) = (config.final_channels, config.se_channels());
    let (height, width) = size(b, x);
    let x = depthwise(b, "final_conv", x, output, 3, 1, false); // [B,H,W,F]
    let x = b.reshape(x, &[0, -1, signed(output)]); // [B,N,F]
    let b = &mut b.scope("final_conv");
    let gate = {
        let b = &mut b.scope("se");
        // A mean as a product: ONNX Runtime's ReduceMean takes forty times as long.
        let mean = mean_of(b, height * width);
        let mean = b.matmul(mean, x); // [B,1,F]
        let small = product(b, "fc1", mean, [output, squeezed], encoding, false);
        let small = b.relu(small); // [B,1,F/16]
        let wide = product(b, "fc2", small, [squeezed, output], encoding, false);
        b.sigmoid(wide) // [B,1,F]
    };
    let x = b.mul(x, gate); // [B,N,F]
    b.gelu(x) // [B,N,F]
}

/// `[1,N]` of `1 / N`: its product with `[B,N,F]` is the mean of N rows.
fn mean_of(b: &mut Builder, rows: u64) -> ValueId {
    let share = 1.0 / rows as f32;
    b.constant_f32(&[1, rows], (0..rows).map(|_| share).collect())
}

/// Height and width of a feature map `[B,H,W,C]`.
fn size(b: &Builder, x: ValueId) -> (u64, u64) {
    match *b.shape_of(x) {
        [_, Dim::Fixed(height), Dim::Fixed(width), _] => (height, width),
        _ => (0, 0),
    }
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
    let b = &mut b.scope(name);
    let [kernel_taps, bias] = taps(b, kernel * kernel, width);
    let conv = Fused::DepthwiseConv { kernel, stride, gelu };
    first(&b.fused(conv, &[x, kernel_taps, bias]), x)
}

/// A convolution's kernel, read as `[taps, outputs]`, and its bias.
fn taps(b: &mut Builder, taps: u64, outputs: u64) -> [ValueId; 2] {
    let weight = b.weight_name("weight");
    let label = format!("{weight}.taps");
    let kernel = b.weight_in(
        WeightForm::Transposed,
        &weight,
        &label,
        DType::Float32,
        &[taps, outputs],
    );
    [kernel, b.weight("bias", &[outputs])]
}

/// A 1x1 convolution with bias and GELU.
fn pointwise(b: &mut Builder, name: &str, x: ValueId, sizes: [u64; 2], encoding: Stored<'_>) -> ValueId {
    product(b, name, x, sizes, encoding, true)
}

/// A 1x1 convolution with bias.
fn product(
    b: &mut Builder,
    name: &str,
    x: ValueId,
    [inputs, outputs]: [u64; 2],
    encoding: Stored<'_>,
    gelu: bool,
) -> ValueId {
    let linear = Linear {
        inputs,
        parts: &[(name, outputs)],
        encoding,
        bias: true,
        gelu,
        gain: None,
        norm: Norm::None,
        norm_name: None,
    };
    linear.add(b, x, None)
}
