//! What do both dialects say alike? The tower's arguments and Qwen2's.

use super::fields::{Fields, Problems, whole};
use super::{DecoderConfig, TokenMixer, VisionConfig};
use serde_json::Value;

/// Geometry that a name stands for: timm's `fastvit_mci3` is Apple's `fastvithd`.
pub(super) const MCI3: (&[u64], &[u64]) = (&[96, 192, 384, 768, 1536], &[2, 12, 24, 4, 2]);
/// timm's larger sibling of the same form.
pub(super) const MCI4: (&[u64], &[u64]) = (&[128, 256, 512, 1024, 2048], &[2, 12, 24, 4, 4]);
fn mixer(value: &Value) -> Option<TokenMixer> {
    match value.as_str()? {
        "repmixer" => Some(TokenMixer::RepMixer),
        "attention" => Some(TokenMixer::Attention),
        _ => None,
    }
}

/// The tower of a named architecture, with what the config says otherwise.
pub(super) fn tower(
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

const KV_HEADS: &str = "num_key_value_heads";

/// Fields of Qwen2 that are alike in both dialects. Defaults are those of transformers' `Qwen2Config`.
pub(super) fn decoder(
    fields: &Fields<'_>,
    rope_theta: f64,
    tied: bool,
    problems: &mut Problems,
) -> DecoderConfig {
    // transformers has two names for it.
    if fields.value("hidden_act").and_then(Value::as_str) != Some("swish") {
        fields.only("hidden_act", &Value::from("silu"), problems);
    }
    let types = fields.value("layer_types").and_then(Value::as_array);
    if let (Some(found), None) = (fields.value("layer_types"), types) {
        problems.add(format!(
            "`{}layer_types` is {found}, expected a list",
            fields.prefix
        ));
    }
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
    let hidden_size = fields.size("hidden_size", None, problems);
    let heads = fields.size("num_attention_heads", None, problems);
    let layers = fields.size("num_hidden_layers", None, problems);
    if types.is_none() {
        refuse_sliding(fields, layers, problems);
    }
    // transformers: null is as many as query heads. A missing field has another default there.
    let null = fields.object.and_then(|object| object.get(KV_HEADS)) == Some(&Value::Null);
    let kv_heads = fields.size(KV_HEADS, null.then_some(heads), problems);
    let head_dim = fields.size("head_dim", Some((hidden_size / heads).max(1)), problems);
    DecoderConfig {
        hidden_size,
        layers,
        heads,
        kv_heads,
        head_dim,
        intermediate_size: fields.size("intermediate_size", None, problems),
        vocab_size: fields.size("vocab_size", Some(151_936), problems),
        rms_norm_epsilon: fields.number("rms_norm_eps", Some(1e-6), problems) as f32,
        rope_theta,
        max_position_embeddings: fields.size("max_position_embeddings", Some(32768), problems),
        tie_word_embeddings: tied,
    }
}

/// Refuses attention that does not see everything, as `Qwen2Config` has it where no `layer_types` say which: in
/// layers from `max_window_layers` on.
fn refuse_sliding(fields: &Fields<'_>, layers: u64, problems: &mut Problems) {
    let slides = fields.flag("use_sliding_window", false, problems);
    // Its default is 4096, null is none.
    let window = fields.object.and_then(|object| object.get("sliding_window"));
    if !slides || window == Some(&Value::Null) {
        return;
    }
    let from = fields.take(
        "max_window_layers",
        Some(28),
        "a whole number",
        problems,
        Value::as_u64,
    );
    if let Some(from) = from.filter(|from| *from < layers) {
        problems.add(format!(
            "`{}use_sliding_window` is true with `max_window_layers` {from} of {layers} layers, this build supports \
             false, or no layer that slides",
            fields.prefix
        ));
    }
}

/// `rope_theta` at the top (transformers 4), in `rope_parameters` (transformers 5), or in `rope_scaling`, which
/// transformers 5 reads instead of the second; `Qwen2Config`'s default is 10000.
pub(super) fn rope_theta(fields: &Fields<'_>, problems: &mut Problems) -> f64 {
    // The two places of a decoder's fields.
    let [in_parameters, in_scaling] = if fields.prefix.is_empty() {
        ["rope_parameters.", "rope_scaling."]
    } else {
        ["text_config.rope_parameters.", "text_config.rope_scaling."]
    };
    let parameters = fields.inside("rope_parameters", in_parameters, problems);
    let scaling = fields.inside("rope_scaling", in_scaling, problems);
    for rope in [&parameters, &scaling] {
        refuse_scaled(rope, problems);
    }
    let scales = scaling.object.is_some_and(|object| !object.is_empty());
    let inside = if scales { &scaling } else { &parameters };
    let from = if inside.value("rope_theta").is_some() {
        inside
    } else {
        fields
    };
    if let (true, None, Some(theta)) = (scales, from.value("rope_theta"), parameters.value("rope_theta")) {
        let prefix = fields.prefix;
        problems.add(format!(
            "`{prefix}rope_scaling` has no `rope_theta`, and `{prefix}rope_parameters` has {theta}, which \
             transformers does not read beside it: expected one of the two objects"
        ));
    }
    from.number("rope_theta", Some(10_000.0), problems)
}

/// Refuses what turns keys otherwise than the base alone says, and every field that is not known: a kind of
/// rope in transformers' word or, with `type`, in its old one.
fn refuse_scaled(rope: &Fields<'_>, problems: &mut Problems) {
    let prefix = rope.prefix;
    let kind = rope.value("rope_type").or_else(|| rope.value("type"));
    for (name, value) in rope.object.into_iter().flatten() {
        let expected = match name.as_str() {
            "rope_theta" => continue,
            _ if value.is_null() => continue,
            // Positions that are divided by 1.
            "rope_type" | "type" if value == "default" || value == "linear" => continue,
            "factor" | "partial_rotary_factor" if value.as_f64() == Some(1.0) => continue,
            "rope_type" | "type" => "this build supports \"default\", and \"linear\" with a `factor` of 1",
            "factor" | "partial_rotary_factor" => "this build supports 1",
            _ => "which this build does not know: expected `rope_theta` and `rope_type`",
        };
        problems.add(format!("`{prefix}{name}` is {value}, {expected}"));
    }
    if kind.is_some_and(|kind| kind == "linear") && rope.value("factor").is_none() {
        problems.add(format!("`{prefix}factor` is missing, this build supports 1"));
    }
}
