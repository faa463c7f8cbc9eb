//! What do the files beside the tensors say: config, tokenizer, templates, preprocessing?

use super::table::{Geometry, Table};
use super::{Layout, Options, Size, Stored, SynthError};
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};

/// Writes every file but the tensors.
pub(super) fn write(options: &Options, table: &Table, geometry: &Geometry) -> Result<(), SynthError> {
    let out = &options.output;
    let llava = options.layout == Layout::Llava;
    let config = if llava {
        llava_config(geometry, options)
    } else {
        transformers_config(geometry, options)
    };
    // The tokenizer can be refused: it comes first.
    write_json(&out.join("tokenizer.json"), &tokenizer(options, table, geometry)?)?;
    write_json(&out.join("config.json"), &config)?;
    let first = geometry.first_special;
    let generation = json!({
        "bos_token_id": first,
        "do_sample": false,
        "eos_token_id": [first + 2, first],
        "pad_token_id": first,
        "transformers_version": if llava { "4.39.3" } else { "5.24.0" },
    });
    write_json(&out.join("generation_config.json"), &generation)?;
    let mut tokenizer_config = json!({
        "add_prefix_space": false,
        "bos_token": null,
        "clean_up_tokenization_spaces": false,
        "eos_token": "<|im_end|>",
        "errors": "replace",
        "model_max_length": if llava { 8192 } else { geometry.max_position_embeddings },
        "pad_token": "<|endoftext|>",
        "tokenizer_class": "PreTrainedTokenizerFast",
    });
    if llava {
        tokenizer_config["chat_template"] = Value::from(table.templates.llava.as_str());
    } else {
        tokenizer_config["image_token"] = Value::from("<image>");
        tokenizer_config["processor_class"] = Value::from("LlavaProcessor");
        write_text(&out.join("chat_template.jinja"), &table.templates.transformers)?;
        write_json(&out.join("preprocessor_config.json"), &image_config(geometry))?;
        let processor = json!({
            "image_processor": image_config(geometry),
            "image_token": "<image>",
            "num_additional_image_tokens": 0,
            "patch_size": 64,
            "processor_class": "LlavaProcessor",
            "vision_feature_select_strategy": "full",
        });
        write_json(&out.join("processor_config.json"), &processor)?;
    }
    write_json(&out.join("tokenizer_config.json"), &tokenizer_config)
}

/// Pretty JSON with a line break at the end.
pub(super) fn write_json(path: &Path, value: &Value) -> Result<(), SynthError> {
    write_text(path, &format!("{value:#}\n"))
}

fn write_text(path: &Path, text: &str) -> Result<(), SynthError> {
    std::fs::write(path, text).map_err(SynthError::io(path))
}

fn torch_name(dtype: Stored) -> &'static str {
    match dtype {
        Stored::Fp32 => "float32",
        Stored::Fp16 => "float16",
        Stored::Bf16 => "bfloat16",
    }
}

/// Appends the fields of `more` to `config`; both are objects.
fn extend(config: &mut Value, more: Value) {
    if let (Value::Object(config), Value::Object(more)) = (config, more) {
        config.extend(more);
    }
}

fn decoder_config(geometry: &Geometry) -> Value {
    json!({
        "attention_dropout": 0.0,
        "bos_token_id": geometry.first_special,
        "eos_token_id": geometry.first_special + 2,
        "hidden_act": "silu",
        "hidden_size": geometry.hidden_size,
        "initializer_range": 0.02,
        "intermediate_size": geometry.intermediate_size,
        "max_position_embeddings": geometry.max_position_embeddings,
        "max_window_layers": geometry.num_hidden_layers,
    })
}

fn heads_config(geometry: &Geometry) -> Value {
    json!({
        "num_attention_heads": geometry.num_attention_heads,
        "num_hidden_layers": geometry.num_hidden_layers,
        "num_key_value_heads": geometry.num_key_value_heads,
        "rms_norm_eps": 1e-6,
    })
}

/// The published dialect of Apple's checkpoints.
fn llava_config(geometry: &Geometry, options: &Options) -> Value {
    let mut config = json!({"architectures": ["LlavaQwen2ForCausalLM"]});
    extend(&mut config, decoder_config(geometry));
    let multimodal = json!({
        "freeze_mm_mlp_adapter": false,
        "image_aspect_ratio": "pad",
        "image_grid_pinpoints": null,
        "mm_hidden_size": geometry.features(),
        "mm_patch_merge_type": "flat",
        "mm_projector_lr": null,
        "mm_projector_type": "mlp2x_gelu",
        "mm_use_im_patch_token": false,
        "mm_use_im_start_end": false,
        "mm_vision_select_feature": "patch",
        "mm_vision_select_layer": -2,
        "mm_vision_tower": format!("mobileclip_l_{}", geometry.image_size),
        "model_type": "llava_qwen2",
    });
    extend(&mut config, multimodal);
    extend(&mut config, heads_config(geometry));
    let rest = json!({
        "rope_theta": 1000000.0,
        "sliding_window": 32768,
        "tie_word_embeddings": geometry.tied,
        "tokenizer_model_max_length": 8192,
        "tokenizer_padding_side": "right",
        "torch_dtype": torch_name(options.dtype),
        "transformers_version": "4.39.3",
        "tune_mm_mlp_adapter": false,
        "unfreeze_mm_vision_tower": true,
        "use_cache": true,
        "use_mm_proj": true,
        "use_sliding_window": false,
        "vocab_size": geometry.vocab_size,
    });
    extend(&mut config, rest);
    if options.size == Size::Demo {
        // Apple's dialect names the tower; a tower of another size has no published spelling. These fields are those
        // that the MLX conversions write.
        config["vision_config"] = json!({
            "embed_dims": geometry.embed_dims,
            "layers": geometry.layers,
            "mlp_ratios": [4, 4, 4, 4, 4],
            "token_mixers": ["repmixer", "repmixer", "repmixer", "attention", "attention"],
            "pos_embs_shapes": [null, null, null, [7, 7], [7, 7]],
        });
    }
    config
}

/// transformers' dialect.
fn transformers_config(geometry: &Geometry, options: &Options) -> Value {
    let mut model_args = Map::new();
    if options.size == Size::Demo {
        model_args.insert("embed_dims".to_owned(), json!(geometry.embed_dims));
        model_args.insert("layers".to_owned(), json!(geometry.layers));
    }
    model_args.insert(
        "inference_mode".to_owned(),
        json!(options.layout == Layout::Transformers),
    );
    let mut text = decoder_config(geometry);
    text["model_type"] = Value::from("qwen2");
    extend(&mut text, heads_config(geometry));
    let rest = json!({
        "rope_parameters": {"rope_theta": 1000000.0, "rope_type": "default"},
        "sliding_window": null,
        "tie_word_embeddings": geometry.tied,
        "use_cache": true,
        "use_sliding_window": false,
        "vocab_size": geometry.vocab_size,
    });
    extend(&mut text, rest);
    let side = geometry.image_size / 64;
    json!({
        "architectures": ["FastVlmForConditionalGeneration"],
        "dtype": torch_name(options.dtype),
        "image_seq_length": side * side,
        "image_token_index": geometry.first_special + 3,
        "model_type": "fast_vlm",
        "multimodal_projector_bias": true,
        "projector_hidden_act": "gelu",
        "text_config": text,
        "tie_word_embeddings": geometry.tied,
        "transformers_version": "5.24.0",
        "vision_config": {
            "architecture": "fastvit_mci3",
            "do_pooling": true,
            "global_pool": "avg",
            "hidden_size": geometry.features(),
            "initializer_range": 0.02,
            "model_args": model_args,
            "model_type": "timm_wrapper",
            "num_classes": 0,
        },
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "full",
    })
}

fn image_config(geometry: &Geometry) -> Value {
    let edge = geometry.image_size;
    json!({
        "crop_size": {"height": edge, "width": edge},
        "do_center_crop": true,
        "do_convert_rgb": true,
        "do_normalize": true,
        "do_rescale": true,
        "do_resize": true,
        "image_mean": [0.0, 0.0, 0.0],
        "image_processor_type": "CLIPImageProcessor",
        "image_std": [1.0, 1.0, 1.0],
        "resample": 3,
        "rescale_factor": 0.00392156862745098,
        "size": {"shortest_edge": edge},
    })
}

/// GPT-2's table: every byte as one printable character, the byte's value as its id.
fn byte_vocabulary() -> Map<String, Value> {
    let mut spare = 256_u32..;
    let mut vocabulary = Map::new();
    for byte in 0..=255_u32 {
        let printable = matches!(byte, 33..=126 | 161..=172 | 174..=255);
        let code = if printable { Some(byte) } else { spare.next() };
        if let Some(character) = code.and_then(char::from_u32) {
            vocabulary.insert(character.to_string(), Value::from(byte));
        }
    }
    vocabulary
}

/// The given tokenizer or the stand-in, its special tokens at the ids that the config declares.
fn tokenizer(options: &Options, table: &Table, geometry: &Geometry) -> Result<Value, SynthError> {
    let path = options
        .tokenizer
        .clone()
        .unwrap_or_else(|| PathBuf::from("tokenizer.json"));
    let wrong = |reason: String| SynthError::Tokenizer {
        path: path.clone(),
        reason,
    };
    let text = match &options.tokenizer {
        Some(file) => models::regular::text(file, u64::MAX).map_err(SynthError::io(file))?,
        None => include_str!("tokenizer.json").to_owned(),
    };
    let mut tokenizer: Value = serde_json::from_str(&text).map_err(|error| wrong(error.to_string()))?;
    let first = geometry.first_special;
    let known = &table.special_tokens;
    let is_known = |token: &str| known.iter().any(|name| name == token);

    let given = match tokenizer.pointer("/model/vocab") {
        _ if options.tokenizer.is_none() => byte_vocabulary(),
        Some(Value::Object(vocabulary)) => vocabulary.clone(),
        _ => {
            return Err(wrong(
                "no object `model.vocab`, expected a BPE tokenizer".to_owned(),
            ));
        }
    };
    let mut vocabulary: Map<String, Value> =
        given.into_iter().filter(|(token, _)| !is_known(token)).collect();
    let mut added: Vec<Value> = match tokenizer.get("added_tokens") {
        Some(Value::Array(tokens)) => tokens
            .iter()
            .filter(|token| !token.get("content").and_then(Value::as_str).is_some_and(is_known))
            .cloned()
            .collect(),
        _ => Vec::new(),
    };
    let ids = vocabulary
        .values()
        .chain(added.iter().filter_map(|token| token.get("id")));
    if let Some(id) = ids.filter_map(Value::as_u64).max().filter(|&id| id >= first) {
        return Err(wrong(format!(
            "has id {id}, expected ids below {first} beside the special tokens"
        )));
    }
    // Apple's tokenizer has no `<image>`: its code cuts the text there.
    let count = if options.layout == Layout::Llava {
        3
    } else {
        known.len()
    };
    let special: Vec<(&String, u64)> = known.iter().take(count).zip(first..).collect();
    for (name, id) in &special {
        added.push(json!({
            "id": id, "content": name, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
            "special": true,
        }));
    }
    // The library gives added tokens the ids after the vocabulary's last one, unless the vocabulary knows them.
    if vocabulary.len() as u64 != first {
        vocabulary.extend(
            special
                .into_iter()
                .map(|(name, id)| (name.clone(), Value::from(id))),
        );
    }
    tokenizer["added_tokens"] = Value::Array(added);
    tokenizer["model"]["vocab"] = Value::Object(vocabulary);
    Ok(tokenizer)
}
