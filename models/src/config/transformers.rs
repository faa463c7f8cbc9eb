//! transformers' dialect of `config.json`: `FastVlmForConditionalGeneration`.

use super::fields::{Fields, Problems};
use super::shared::{MCI3, MCI4, decoder, rope_theta, tower};
use super::{ModelConfig, ProjectorConfig};
use serde_json::{Map, Value};

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

/// What a config in transformers' dialect declares. Defaults are those of `FastVlmConfig`.
pub(super) fn transformers(object: &Map<String, Value>, problems: &mut Problems) -> ModelConfig {
    let fields = Fields::new(object);
    let text = fields.inside("text_config", "text_config.", problems);
    text.only("model_type", &Value::from("qwen2"), problems);
    // transformers asks whether it is true, which null is not.
    let causal = text.object.and_then(|text| text.get("is_causal"));
    if let Some(found) = causal.filter(|found| **found != Value::Bool(true)) {
        problems.add(format!(
            "`text_config.is_causal` is {found}, by which tokens see what follows them: this build supports true"
        ));
    }
    let theta = rope_theta(&text, problems);
    // FastVlmConfig.__post_init__: either flag ties.
    let tied = fields.flag("tie_word_embeddings", false, problems)
        | text.flag("tie_word_embeddings", false, problems);
    let decoder = decoder(&text, theta, tied, problems);

    let tower_fields = fields.inside("vision_config", "vision_config.", problems);
    let geometry = match tower_fields
        .value("architecture")
        .map(|name| name.as_str().unwrap_or_default())
        // timm: what follows a dot names published weights, which a checkpoint replaces.
        .map(|name| {
            name.split_once('.')
                .map_or(name, |(architecture, _)| architecture)
        }) {
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
    // The side that `image_seq_length` implies. The image processor's file states it; this is for a config
    // alone.
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
