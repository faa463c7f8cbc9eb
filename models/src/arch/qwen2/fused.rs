//! Qwen2 in fused operators: [`super`], four to a layer.
//!
//! Letters: `B` batch, `n` new, `t` total = past + new, `D` hidden, `k` kv heads, `h` query heads, `d` head
//! length, `V` vocabulary.

use super::EMBED_TOKENS;
use crate::arch::products::{FeedForward, Linear, Names, Stored, first};
use crate::config::DecoderConfig;
use crate::dtype::DType;
use crate::fused::{Fused, Norm, TableEncoding};
use crate::graph::{Builder, Nibble, ValueId, WeightForm};

/// `input_ids [B,n] -> inputs_embeds [B,n,D]`
pub(in crate::arch) fn embed_tokens(
    b: &mut Builder,
    config: &DecoderConfig,
    encoding: TableEncoding,
    ids: ValueId,
) -> ValueId {
    let table = table(b, config, EMBED_TOKENS, encoding);
    let b = &mut b.scope("language_model");
    let b = &mut b.scope("embed_tokens");
    let inputs = [&[ids][..], &table].concat();
    let width = config.hidden_size;
    first(&b.fused(Fused::Embedding { width, encoding }, &inputs), ids)
}

/// The whole decoder with its inputs and outputs.
pub(in crate::arch) fn decoder(
    b: &mut Builder,
    config: &DecoderConfig,
    encoding: Stored<'_>,
    table: TableEncoding,
) {
    let super::Inputs {
        embeds,
        mask,
        positions,
        past,
    } = super::inputs(b, config);
    let (normed, present) = {
        let b = &mut b.scope("language_model");
        let half = config.head_dim / 2;
        let frequencies = b.constant_f32(&[half], super::inverse_frequencies(config));
        let mut x = embeds; // [B,n,D]
        let mut present = Vec::with_capacity(past.len());
        for (layer, past) in past.into_iter().enumerate() {
            let inputs = [past[0], past[1], mask, positions, frequencies];
            let (next, cache) = decoder_layer(b, config, encoding, layer, x, inputs);
            x = next; // [B,n,D]
            present.push(cache);
        }
        (super::final_norm(b, config, x), present) // [B,1,D]
    };
    let logits = lm_head(b, config, table, normed); // [B,1,V]
    super::outputs(b, logits, present);
}

/// `x + attention(norm(x))`, then `x + mlp(norm(x))`. `cache`: past key and value, mask, positions,
/// frequencies.
fn decoder_layer(
    b: &mut Builder,
    config: &DecoderConfig,
    encoding: Stored<'_>,
    layer: usize,
    x: ValueId,
    cache: [ValueId; 5],
) -> (ValueId, [ValueId; 2]) {
    let b = &mut b.scope(format!("layers.{layer}"));
    let norm = Norm::Rms {
        epsilon: config.rms_norm_epsilon,
    };
    let (x, present) = {
        let norm_name = Some(b.weight_name("input_layernorm"));
        let b = &mut b.scope("self_attn");
        let (wide, narrow) = (config.heads * config.head_dim, config.kv_heads * config.head_dim);
        let qkv = Linear {
            inputs: config.hidden_size,
            parts: &[("q_proj", wide), ("k_proj", narrow), ("v_proj", narrow)],
            encoding,
            bias: true,
            gelu: false,
            gain: None,
            norm,
            norm_name,
        };
        let qkv = qkv.add(b, x, None); // [B,n,(h+2k)*d]
        let attention = Fused::DecoderAttention {
            heads: config.heads,
            kv_heads: config.kv_heads,
            head_dim: config.head_dim,
        };
        let outputs = b.fused(attention, &[&[qkv][..], &cache].concat());
        let (mixed, present) = match outputs[..] {
            [mixed, key, value] => (mixed, [key, value]), // [B,n,h*d], [B,k,t,d] each
            _ => (qkv, [qkv, qkv]),
        };
        let o_proj = Linear {
            inputs: wide,
            parts: &[("o_proj", config.hidden_size)],
            encoding,
            bias: false,
            gelu: false,
            gain: None,
            norm: Norm::None,
            norm_name: None,
        };
        (o_proj.add(b, mixed, Some(x)), present) // [B,n,D]
    };
    let norm_name = Some(b.weight_name("post_attention_layernorm"));
    let b = &mut b.scope("mlp");
    let mlp = FeedForward {
        inputs: config.hidden_size,
        hidden: config.intermediate_size,
        outputs: config.hidden_size,
        norm,
        encoding,
        bias: false,
        names: Names {
            gate: Some("gate_proj"),
            up: "up_proj",
            down: "down_proj",
        },
        norm_name,
        gain: None,
    };
    (mlp.add(b, x, Some(x)), present) // [B,n,D]
}

/// `[B,1,D] -> [B,1,V]`; a tied table exists once.
fn lm_head(b: &mut Builder, config: &DecoderConfig, encoding: TableEncoding, x: ValueId) -> ValueId {
    let table = table(b, config, super::head_name(config), encoding);
    let b = &mut b.scope("lm_head");
    let x = b.squeeze(x, &[1]); // [B,D]
    let inputs = [&[x][..], &table].concat();
    let logits = first(&b.fused(Fused::Logits { encoding }, &inputs), x); // [B,V]
    b.unsqueeze(logits, &[1]) // [B,1,V]
}

/// A table `[V,D]`, and its scales if it is one of bytes.
fn table(b: &mut Builder, config: &DecoderConfig, name: &str, encoding: TableEncoding) -> Vec<ValueId> {
    let (entries, width) = (config.vocab_size, config.hidden_size);
    let parts: &[(WeightForm, &str)] = match encoding {
        TableEncoding::Float32 => return vec![b.weight_named(name, &[entries, width], false)],
        TableEncoding::Bytes => &[(WeightForm::Bytes, "bytes")],
        TableEncoding::Planes => &[
            (WeightForm::Plane(Nibble::High), "high"),
            (WeightForm::Plane(Nibble::Low), "low"),
        ],
    };
    let mut table = Vec::new();
    for ((form, label), (dtype, shape)) in parts.iter().zip(encoding.elements(entries, width)) {
        table.push(b.weight_in(form.clone(), name, &format!("{name}.{label}"), dtype, &shape));
    }
    let label = format!("{name}.scales");
    table.push(b.weight_in(WeightForm::ByteScales, name, &label, DType::Float32, &[entries]));
    table
}
