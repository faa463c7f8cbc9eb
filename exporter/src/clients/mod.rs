//! What do other people's clients want to know about an export before they open it?

pub(crate) mod card;

use crate::Lowered;
use crate::error::ExportError;
use models::bundle::{GraphEntry, Io, Precision, PromptSpec, Target, Variant};
use models::checkpoint::{Asset, Assets};
use models::config::DecoderConfig;
use serde_json::{Map, Value};

/// The field of `config.json` that transformers.js reads.
const FIELD: &str = "transformers.js_config";

/// The dtype of transformers.js that means a variant, where it can open one.
pub(crate) fn dtype(variant: &Variant) -> Option<Precision> {
    match (variant.target, variant.precision) {
        (Target::OrtCoreMl, _) | (Target::Cpu, Precision::Fp32) => None,
        (Target::Portable | Target::Cpu, precision) => Some(precision),
    }
}

/// Tells transformers.js which precision to take unless it is told, and which graphs have their weights in a file beside
/// them: from a hub it brings only what it knows of.
///
/// # Errors
/// None that a config of ours has.
pub(crate) fn announce(assets: &mut Assets, variants: &[(&Variant, &Lowered)]) -> Result<(), ExportError> {
    let Some(first) = variants.iter().find_map(|(variant, _)| dtype(variant)) else {
        return Ok(());
    };
    let with_data = variants
        .iter()
        .filter(|(variant, _)| dtype(variant).is_some())
        .flat_map(|(_, lowered)| &lowered.graphs)
        .filter(|graph| graph.data.length > 0);
    let with_data: Map<String, Value> = with_data
        .map(|graph| (graph.file_name.clone(), Value::Bool(true)))
        .collect();
    let internal = |what: &str| ExportError::Internal {
        what: format!("config.json {what}"),
    };
    let config = assets.files.iter_mut().find(|asset| asset.path == "config.json");
    let Asset { contents, .. } = config.ok_or_else(|| internal("is not written"))?;
    let mut fields: Map<String, Value> =
        serde_json::from_slice(contents).map_err(|error| internal(&error.to_string()))?;
    fields.insert(
        FIELD.to_owned(),
        serde_json::json!({"dtype": first, "use_external_data_format": with_data}),
    );
    *contents = format!("{:#}\n", Value::Object(fields)).into_bytes();
    Ok(())
}

/// File name of what onnxruntime-genai reads.
pub(crate) const GENAI: &str = "genai_config.json";

/// The text decoder for onnxruntime-genai, as its model type `decoder-pipeline`: token embedding, then decoder, both as they are. Images
/// are not in it: its vision pipelines want the features joined inside the embedding's graph. `None` without graphs that it can run.
pub(crate) fn genai(config: &DecoderConfig, prompt: &PromptSpec, variants: &[Variant]) -> Option<String> {
    let variant = variants.iter().find(|variant| variant.fixed.is_none())?;
    let names = |list: &[Io]| -> Vec<String> { list.iter().map(|io| io.name.clone()).collect() };
    let stage = |name: &str, graph: &GraphEntry| {
        serde_json::json!({name: {
            "filename": graph.path,
            "inputs": names(&graph.inputs),
            "outputs": names(&graph.outputs),
        }})
    };
    let stop = prompt.stop_ids.first();
    let config = serde_json::json!({
        "model": {
            "type": "decoder-pipeline",
            "vocab_size": config.vocab_size,
            "context_length": config.max_position_embeddings,
            "bos_token_id": stop,
            "eos_token_id": prompt.stop_ids,
            "pad_token_id": stop,
            "decoder": {
                "hidden_size": config.hidden_size,
                "head_size": config.head_dim,
                "num_attention_heads": config.heads,
                "num_hidden_layers": config.layers,
                "num_key_value_heads": config.kv_heads,
                "inputs": {
                    "input_ids": "input_ids",
                    "inputs_embeds": "inputs_embeds",
                    "attention_mask": "attention_mask",
                    "position_ids": "position_ids",
                    "past_key_names": "past_key_values.%d.key",
                    "past_value_names": "past_key_values.%d.value",
                },
                "outputs": {
                    "logits": "logits",
                    "present_key_names": "present.%d.key",
                    "present_value_names": "present.%d.value",
                },
                "pipeline": [
                    stage("embedding", &variant.embed_tokens),
                    stage("decoder", &variant.decoder),
                ],
            },
        },
        "search": {
            "do_sample": false,
            "max_length": config.max_position_embeddings,
            "past_present_share_buffer": false,
        },
    });
    Some(format!("{config:#}\n"))
}
