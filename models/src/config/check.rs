//! Do the fields of a config fit together?

use super::fields::{LARGEST, Problems};
use super::{ModelConfig, TokenMixer};

/// No network is deeper: a graph of so many blocks still fits in memory.
const DEEPEST: u64 = 1024;
/// No image has a longer side, in pixels: what a bundle may state.
pub(crate) const MAX_SIDE: u64 = 1 << 14;
/// No tower has more stages: each halves the image, whose side has at most 14 bits.
const MOST_STAGES: usize = 14;
/// Longest side of a kernel: that of the fused operators.
const MOST_SIDE: u64 = 63;

/// What must hold between fields, so that the networks can be built without surprises.
pub(super) fn check(config: &ModelConfig, problems: &mut Problems) {
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
        if side % 2 == 0 || side < least || side > MOST_SIDE {
            problems.add(format!(
                "`{name}` is {side}, expected an odd number from {least} to {MOST_SIDE}"
            ));
        }
    }
    if vision.down_stride > vision.down_patch_size {
        problems.add(format!(
            "`down_stride` is {}, expected at most `down_patch_size`, {}",
            vision.down_stride, vision.down_patch_size
        ));
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
    if vision.image_size == 0 || vision.image_size % token_side != 0 || vision.image_size > MAX_SIDE {
        let found = vision.image_size;
        problems.add(format!(
            "the image size is {found}, expected a multiple of {token_side} up to {MAX_SIDE}"
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
