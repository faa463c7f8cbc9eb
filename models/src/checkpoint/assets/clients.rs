//! What do the ecosystem's clients read? `config.json` and the processors' files as transformers.js and
//! transformers know them.

use super::{IMAGE_TOKEN, generation};
use crate::bundle::{ImageSpec, PromptSpec, Resample};
use crate::config::{Layout, ModelConfig};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// Fields without what a bundle has not: what MLX says of weights in groups, code of the repository, and what changes
/// greedy answers, which clients would read here.
fn of_bundle(mut fields: Map<String, Value>) -> Map<String, Value> {
    if fields.shift_remove("quantization").is_some() {
        fields.shift_remove("quantization_config");
    }
    fields.shift_remove("auto_map");
    if let Some(Value::Object(text)) = fields.get_mut("text_config") {
        text.retain(|name, _| !generation::changes(name));
    }
    fields.retain(|name, _| !generation::changes(name));
    fields
}

/// `config.json` as transformers.js knows the architecture: `llava_qwen2`, the decoder's geometry at the top.
pub(super) fn client_config(
    config: &ModelConfig,
    declared: &Value,
    layout: Layout,
    prompt: &PromptSpec,
) -> Value {
    let mut fields = match (layout, declared) {
        (Layout::Llava | Layout::Mlx, Value::Object(fields)) => of_bundle(fields.clone()),
        _ => Map::new(),
    };
    let decoder = &config.decoder;
    let more = json!({
        "architectures": ["LlavaQwen2ForCausalLM"],
        "model_type": "llava_qwen2",
        "hidden_act": "silu",
        "hidden_size": decoder.hidden_size,
        "head_dim": decoder.head_dim,
        "image_token_id": prompt.image_token_id,
        "image_token_index": prompt.image_token_id,
        "intermediate_size": decoder.intermediate_size,
        "max_position_embeddings": decoder.max_position_embeddings,
        "mm_hidden_size": config.projector.input,
        "mm_projector_type": "mlp2x_gelu",
        "mm_vision_tower": format!("mobileclip_l_{}", config.vision.image_size),
        "num_attention_heads": decoder.heads,
        "num_hidden_layers": decoder.layers,
        "num_key_value_heads": decoder.kv_heads,
        "rms_norm_eps": decoder.rms_norm_epsilon.to_string().parse::<f64>().unwrap_or(1e-6),
        "rope_theta": decoder.rope_theta,
        "tie_word_embeddings": decoder.tie_word_embeddings,
        "vocab_size": decoder.vocab_size,
    });
    if let Value::Object(more) = more {
        fields.extend(more);
    }
    let eos = declared
        .pointer("/text_config/eos_token_id")
        .cloned()
        .unwrap_or_else(|| json!(prompt.stop_ids));
    fields.entry("eos_token_id").or_insert(eos);
    Value::Object(fields)
}

pub(super) fn client_image(image: &ImageSpec) -> Value {
    json!({
        "crop_size": {"height": image.height, "width": image.width},
        "do_center_crop": true,
        "do_convert_rgb": true,
        "do_normalize": true,
        "do_rescale": true,
        "do_resize": true,
        "image_mean": image.mean,
        "image_processor_type": "CLIPImageProcessor",
        "image_std": image.std,
        "processor_class": "LlavaProcessor",
        "resample": match image.resample {
            Resample::Lanczos => 1,
            Resample::Bilinear => 2,
            Resample::Bicubic => 3,
        },
        "rescale_factor": image.rescale,
        "size": {"shortest_edge": image.shortest_edge},
    })
}

pub(super) fn client_processor(token_side: u64) -> Value {
    json!({
        "image_token": IMAGE_TOKEN,
        "num_additional_image_tokens": 0,
        "patch_size": token_side,
        "processor_class": "LlavaProcessor",
        "vision_feature_select_strategy": "full",
    })
}

/// `special`: what the bundle's own contract says, where another file had the last word.
pub(super) fn client_tokenizer(
    tokenizer_config: &Value,
    template: &str,
    special: &BTreeMap<String, String>,
) -> Value {
    let mut value = tokenizer_config.clone();
    for (name, token) in special {
        let stated = value.get(name);
        let stated = stated.and_then(|stated| stated.as_str().or_else(|| stated.get("content")?.as_str()));
        if stated.is_some_and(|stated| stated != token) {
            value[name] = Value::from(token.as_str());
        }
    }
    value["chat_template"] = Value::from(template);
    value["processor_class"] = Value::from("LlavaProcessor");
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_of_weights_in_groups_are_left_out() {
        let fields = |value: Value| value.as_object().cloned().unwrap_or_default();
        let groups = json!({"bits": 4, "group_size": 64});
        let of_mlx = fields(json!({"quantization": groups, "quantization_config": groups, "vocab_size": 3}));
        assert_eq!(of_bundle(of_mlx), fields(json!({"vocab_size": 3})));
        let other = fields(json!({"quantization_config": groups}));
        assert_eq!(of_bundle(other.clone()), other);
        // Code of the repository, and what changes greedy answers.
        let more = fields(
            json!({"auto_map": {"AutoConfig": "llava_qwen.LlavaConfig"}, "repetition_penalty": 1.1,
            "text_config": {"num_beams": 2, "pad_token_id": 5}, "vocab_size": 3}),
        );
        let kept = json!({"text_config": {"pad_token_id": 5}, "vocab_size": 3});
        assert_eq!(of_bundle(more), fields(kept));
    }
}
