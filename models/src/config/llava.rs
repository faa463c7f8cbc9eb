//! Apple's dialect of `config.json`: `LlavaQwen2ForCausalLM`.

use super::fields::{Fields, Problems};
use super::shared::{MCI3, decoder, rope_theta, tower};
use super::{ModelConfig, ProjectorConfig};
use serde_json::{Map, Value};

/// What a config in Apple's dialect declares.
pub(super) fn llava(object: &Map<String, Value>, problems: &mut Problems) -> ModelConfig {
    let fields = Fields::new(object);
    // mlx-vlm may write the decoder's fields in an object of their own.
    let nested = fields.value("hidden_size").is_none() && fields.value("text_config").is_some();
    let text = match nested {
        true => fields.inside("text_config", "text_config.", problems),
        false => Fields::new(object),
    };
    let theta = rope_theta(&text, problems);
    let tied = text.flag("tie_word_embeddings", false, problems);
    let decoder = decoder(&text, theta, tied, problems);
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
