//! onnxruntime-genai: the text decoder of a bundle as it is.

use super::found_by_others;
use models::bundle::{GraphEntry, Io, PromptSpec, Variant};
use models::config::DecoderConfig;

/// File name of what onnxruntime-genai reads.
pub(crate) const FILE_NAME: &str = "genai_config.json";

/// The text decoder for onnxruntime-genai, as its model type `decoder-pipeline`: token embedding, then decoder, both as they are. Images
/// are not in it: its vision pipelines want the features joined inside the embedding's graph. `None` without graphs that it can run.
pub(crate) fn config(config: &DecoderConfig, prompt: &PromptSpec, variants: &[Variant]) -> Option<String> {
    let variant = found_by_others(variants).find(|variant| variant.fixed.is_none())?;
    let names = |list: &[Io]| -> Vec<String> { list.iter().map(|io| io.name.clone()).collect() };
    let stage = |name: &str, graph: &GraphEntry| {
        serde_json::json!({name: {
            "filename": graph.path,
            "inputs": names(&graph.inputs),
            "outputs": names(&graph.outputs),
        }})
    };
    let stop = prompt.stop_ids.first();
    let text = serde_json::json!({
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
    Some(format!("{text:#}\n"))
}
