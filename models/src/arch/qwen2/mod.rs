//! Qwen2, the decoder: pre-norm transformer with grouped-query attention, biased q/k/v, rotary positions and
//! SwiGLU.
//!
//! transformers `Qwen2ForCausalLM`. The graph is one step of any length: it takes embeddings of `new`
//! positions and the keys and values of `past` positions, and returns the logits of the last position and the
//! longer cache. `past` may be 0. Sequences of a batch are padded on the left; the attention mask says where.
//!
//! What stays in float32 in a half-precision export, and why: Qwen2 has single channels and a first token
//! that are hundreds of times larger than the rest, so the residual stream and the sums over it (norms) leave
//! float16's range or drown the small channels; scores and softmax decide between large exponents;
//! `silu(gate) * up` is a product of two unbounded factors; rotary angles grow with the position. Logits are products
//! like others, in the precision of the table, and become float32 at their end.
//!
//! Letters: `B` batch, `n` new, `t` total = past + new, `D` hidden, `k` kv heads, `g` query heads per kv
//! head, `d` head length, `I` intermediate, `V` vocabulary.

pub(super) mod fixed;
pub(super) mod fused;
pub(super) mod stateful;

use super::attention;
use crate::config::DecoderConfig;
use crate::dtype::DType;
use crate::graph::{Builder, Dim, ValueId, signed};

/// Canonical name of the embedding table, which a tied head reads as well.
pub const EMBED_TOKENS: &str = "language_model.embed_tokens.weight";
/// Canonical name of the head, where it is not that table.
pub(crate) const HEAD: &str = "lm_head.weight";

/// What the names of the cache begin with, as inputs and as outputs.
const PAST: &str = "past_key_values.";
const PRESENT: &str = "present.";

/// Whether an input or output of this name is part of the cache.
pub(super) fn is_cache(name: &str) -> bool {
    name.starts_with(PAST) || name.starts_with(PRESENT)
}

/// What every layer needs and no layer owns.
pub(super) struct Shared {
    /// `[B,1,1,n,t]`: 0 where a position may look, float32's minimum where not.
    pub(super) bias: ValueId,
    /// `[B,n,1,d/2]`
    pub(super) cos: ValueId,
    /// `[B,n,1,d/2]`
    pub(super) sin: ValueId,
}

/// `input_ids [B,n] -> inputs_embeds [B,n,D]`
pub(super) fn embed_tokens(b: &mut Builder, config: &DecoderConfig, ids: ValueId) -> ValueId {
    let table = b.weight_named(EMBED_TOKENS, &[config.vocab_size, config.hidden_size], false);
    b.scope("language_model").scope("embed_tokens").gather(table, ids)
}

/// The inputs of the decoder's graph.
pub(super) struct Inputs {
    /// `[B,n,D]`
    pub(super) embeds: ValueId,
    /// `[B,t]`
    pub(super) mask: ValueId,
    /// `[B,n]`
    pub(super) positions: ValueId,
    /// Key and value of each layer, `[B,k,past,d]`.
    pub(super) past: Vec<[ValueId; 2]>,
}

/// The whole decoder with its inputs and outputs.
pub(super) fn decoder(b: &mut Builder, config: &DecoderConfig) {
    let Inputs {
        embeds,
        mask,
        positions,
        past,
    } = inputs(b, config);
    let Some(first) = past.first() else { return };

    let (normed, present) = {
        let b = &mut b.scope("language_model");
        let bias = attention_bias(b, mask, first[0]); // [B,1,1,n,t]
        let frequencies = b
            .full()
            .constant_f32(&[config.head_dim / 2], inverse_frequencies(config));
        let (cos, sin) = rotary_angles(b, frequencies, positions); // [B,n,1,d/2]
        let shared = Shared { bias, cos, sin };
        let mut x = embeds; // [B,n,D]
        let mut present = Vec::with_capacity(past.len());
        for (layer, past) in (0..).zip(past) {
            let attend = |b: &mut Builder, x| self_attention(b, config, x, past, &shared);
            let (next, cache) = decoder_layer(b, config, Builder::linear, layer, x, attend);
            x = next; // [B,n,D]
            present.push(cache);
        }
        (final_norm(b, config, x), present) // [B,1,D]
    };
    let logits = lm_head(b, config, normed); // [B,1,V]
    outputs(b, logits, present);
}

/// Declares the inputs.
pub(super) fn inputs(b: &mut Builder, config: &DecoderConfig) -> Inputs {
    let fixed = Dim::Fixed;
    let hidden = [Dim::Batch, Dim::New, fixed(config.hidden_size)];
    let embeds = b.input("inputs_embeds", DType::Float32, &hidden);
    let mask = b.input("attention_mask", DType::Int64, &[Dim::Batch, Dim::Total]);
    let positions = b.input("position_ids", DType::Int64, &[Dim::Batch, Dim::New]);
    let cache = [
        Dim::Batch,
        fixed(config.kv_heads),
        Dim::Past,
        fixed(config.head_dim),
    ];
    let past = cache_inputs(b, config, &cache);
    Inputs {
        embeds,
        mask,
        positions,
        past,
    }
}

/// Declares key and value of each layer as inputs.
fn cache_inputs(b: &mut Builder, config: &DecoderConfig, shape: &[Dim]) -> Vec<[ValueId; 2]> {
    let mut input = |layer, part| b.input(&format!("{PAST}{layer}.{part}"), DType::Float32, shape);
    (0..config.layers)
        .map(|layer| ["key", "value"].map(|part| input(layer, part)))
        .collect()
}

/// Names the outputs.
pub(super) fn outputs(b: &mut Builder, logits: ValueId, present: Vec<[ValueId; 2]>) {
    b.output("logits", logits);
    for (layer, cache) in present.into_iter().enumerate() {
        for (part, value) in ["key", "value"].into_iter().zip(cache) {
            b.output(&format!("{PRESENT}{layer}.{part}"), value);
        }
    }
}

/// The last position, normalised: `[B,n,D] -> [B,1,D]`.
pub(super) fn final_norm(b: &mut Builder, config: &DecoderConfig, x: ValueId) -> ValueId {
    let last = b.slice(x, 1, -1, i64::MAX); // [B,1,D]
    b.rms_norm("norm", last, config.hidden_size, config.rms_norm_epsilon) // [B,1,D]
}

/// Which position may look at which: its own and earlier slots that the mask does not hide.
///
/// A hidden score becomes float32's minimum, not minus infinity: a padding row that sees nothing then
/// averages over everything instead of dividing zero by zero, and nobody reads it.
pub(super) fn attention_bias(b: &mut Builder, mask: ValueId, past_key: ValueId) -> ValueId {
    let b = &mut b.scope("attention_bias");
    let b = &mut b.full();
    let past = b.dimension(past_key, 2); // scalar
    let total = b.dimension(mask, 1); // scalar
    let zero = b.constant_i64(&[], vec![0]);
    let queries = b.range(past, total, Dim::New); // [n]: slots of the new positions
    let keys = b.range(zero, total, Dim::Total); // [t]
    let queries = b.unsqueeze(queries, &[1]); // [n,1]
    let keys = b.unsqueeze(keys, &[0]); // [1,t]
    let causal = b.less_or_equal(keys, queries); // [n,t]
    let one = b.constant_i64(&[], vec![1]);
    let real = b.less_or_equal(one, mask); // [B,t]
    let real = b.unsqueeze(real, &[1, 2, 3]); // [B,1,1,1,t]
    let visible = b.and(causal, real); // [B,1,1,n,t]
    let allowed = b.constant_f32(&[], vec![0.0]);
    let hidden = b.constant_f32(&[], vec![f32::MIN]);
    b.select(visible, allowed, hidden) // [B,1,1,n,t]
}

/// Cosines and sines of `position / theta^(2i/d)`.
pub(super) fn rotary_angles(b: &mut Builder, frequencies: ValueId, positions: ValueId) -> (ValueId, ValueId) {
    let b = &mut b.scope("rotary_emb");
    let b = &mut b.full();
    let positions = b.cast(positions, DType::Float32); // [B,n]
    let positions = b.unsqueeze(positions, &[2, 3]); // [B,n,1,1]
    let angles = b.mul(positions, frequencies); // [B,n,1,d/2]
    (b.cos(angles), b.sin(angles))
}

/// How a linear layer is written down: [`Builder::linear`] or [`Builder::dense`].
type Linear = fn(&mut Builder, &str, ValueId, u64, u64, bool) -> ValueId;

/// A layer around an attention `[..,n,D] -> [..,n,D]`, which also gives what it has to say of the cache.
fn decoder_layer<C>(
    b: &mut Builder,
    config: &DecoderConfig,
    linear: Linear,
    layer: u64,
    x: ValueId,
    attend: impl FnOnce(&mut Builder, ValueId) -> (ValueId, C),
) -> (ValueId, C) {
    let (width, epsilon) = (config.hidden_size, config.rms_norm_epsilon);
    let b = &mut b.scope(format!("layers.{layer}"));
    let normed = b.rms_norm("input_layernorm", x, width, epsilon); // [..,n,D]
    let (attended, cache) = attend(b, normed); // [..,n,D]
    let x = b.full().add(x, attended); // [..,n,D]
    let normed = b.rms_norm("post_attention_layernorm", x, width, epsilon); // [..,n,D]
    let mixed = mlp(b, config, linear, normed); // [..,n,D]
    (b.full().add(x, mixed), cache) // [..,n,D]
}

/// Grouped-query attention; keys and values are broadcast over the query heads of their group, never copied.
fn self_attention(
    b: &mut Builder,
    config: &DecoderConfig,
    x: ValueId,
    past: [ValueId; 2],
    shared: &Shared,
) -> (ValueId, [ValueId; 2]) {
    let (width, length) = (config.hidden_size, config.head_dim);
    let b = &mut b.scope("self_attn");
    let q = b.linear("q_proj", x, width, config.heads * length, true); // [B,n,k*g*d]
    let k = b.linear("k_proj", x, width, config.kv_heads * length, true); // [B,n,k*d]
    let v = b.linear("v_proj", x, width, config.kv_heads * length, true); // [B,n,k*d]
    let heads = Heads {
        query: config.heads,
        kv: config.kv_heads,
        length,
    };
    let (mixed, present) = attend(b, heads, [q, k, v], past, shared); // [B,n,k*g*d]
    let projected = b.linear("o_proj", mixed, config.heads * length, width, false); // [B,n,D]
    (projected, present)
}

/// How the channels of an attention are divided.
#[derive(Debug, Clone, Copy)]
pub(super) struct Heads {
    /// Query heads.
    pub(super) query: u64,
    /// Key and value heads.
    pub(super) kv: u64,
    /// Channels of a head.
    pub(super) length: u64,
}

/// What lies between the projections: `q [B,n,k*g*d], k [B,n,k*d], v [B,n,k*d] -> [B,n,k*g*d]`, and the
/// longer cache.
pub(super) fn attend(
    b: &mut Builder,
    heads: Heads,
    [q, k, v]: [ValueId; 3],
    [past_key, past_value]: [ValueId; 2],
    shared: &Shared,
) -> (ValueId, [ValueId; 2]) {
    let (length, kv_heads) = (heads.length, heads.kv);
    let groups = heads.query / kv_heads.max(1);
    let q = b.reshape(q, &[0, 0, signed(heads.query), signed(length)]); // [B,n,k*g,d]
    let k = b.reshape(k, &[0, 0, signed(kv_heads), signed(length)]); // [B,n,k,d]
    let v = b.reshape(v, &[0, 0, signed(kv_heads), signed(length)]); // [B,n,k,d]
    let q = rotate(&mut b.scope("q_rotary"), q, length, [shared.cos, shared.sin]); // [B,n,k*g,d]
    let k = rotate(&mut b.scope("k_rotary"), k, length, [shared.cos, shared.sin]); // [B,n,k,d]

    let k = b.transpose(k, &[0, 2, 1, 3]); // [B,k,n,d]
    let v = b.transpose(v, &[0, 2, 1, 3]); // [B,k,n,d]
    let key = b.concat(&[past_key, k], 2); // [B,k,t,d]
    let value = b.concat(&[past_value, v], 2); // [B,k,t,d]

    let weights = {
        let b = &mut b.full();
        let scale = b.constant_f32(&[], vec![attention::scale(length)]);
        let q = b.mul(q, scale); // [B,n,k*g,d]
        let q = b.reshape(q, &[0, 0, signed(kv_heads), signed(groups), signed(length)]); // [B,n,k,g,d]
        let q = b.transpose(q, &[0, 2, 3, 1, 4]); // [B,k,g,n,d]
        let k = b.unsqueeze(key, &[2]); // [B,k,1,t,d]
        let k = b.transpose(k, &[0, 1, 2, 4, 3]); // [B,k,1,d,t]
        let scores = b.matmul(q, k); // [B,k,g,n,t]
        let scores = b.add(scores, shared.bias); // [B,k,g,n,t]
        b.softmax(scores) // [B,k,g,n,t]
    };
    let v = b.unsqueeze(value, &[2]); // [B,k,1,t,d]
    let mixed = b.matmul(weights, v); // [B,k,g,n,d]
    let mixed = b.transpose(mixed, &[0, 3, 1, 2, 4]); // [B,n,k,g,d]
    (b.reshape(mixed, &[0, 0, -1]), [key, value]) // [B,n,k*g*d]
}

/// `x * cos + rotate_half(x) * sin`, written out over the two halves of a head.
pub(super) fn rotate(b: &mut Builder, x: ValueId, length: u64, [cos, sin]: [ValueId; 2]) -> ValueId {
    let b = &mut b.full();
    let half = length / 2;
    let [low, high] = b.split(x, -1, [half, half]); // [B,n,h,d/2] each
    let (a, c) = (b.mul(low, cos), b.mul(high, sin));
    let new_low = b.sub(a, c);
    let (a, c) = (b.mul(high, cos), b.mul(low, sin));
    let new_high = b.add(a, c);
    b.concat(&[new_low, new_high], -1) // [B,n,h,d]
}

/// `down(silu(gate(x)) * up(x))`
fn mlp(b: &mut Builder, config: &DecoderConfig, linear: Linear, x: ValueId) -> ValueId {
    let (width, wide) = (config.hidden_size, config.intermediate_size);
    let b = &mut b.scope("mlp");
    let gate = linear(b, "gate_proj", x, width, wide, false); // [..,n,I]
    let up = linear(b, "up_proj", x, width, wide, false); // [..,n,I]
    let product = {
        let b = &mut b.full();
        let gate = b.silu(gate); // [..,n,I]
        b.mul(gate, up) // [..,n,I]
    };
    linear(b, "down_proj", product, wide, width, false) // [..,n,D]
}

/// `x W^T` of the one position that is left. `Gemm` reads the weight as stored, so a tied table exists once.
fn lm_head(b: &mut Builder, config: &DecoderConfig, x: ValueId) -> ValueId {
    let weight = b.weight_named(head_name(config), &[config.vocab_size, config.hidden_size], false);
    let b = &mut b.scope("lm_head");
    let x = b.squeeze(x, &[1]); // [B,D]
    let logits = b.gemm_transposed(x, weight); // [B,V]
    b.unsqueeze(logits, &[1]) // [B,1,V]
}

/// Canonical name of the table that the head multiplies with.
pub(super) fn head_name(config: &DecoderConfig) -> &'static str {
    if config.tie_word_embeddings {
        EMBED_TOKENS
    } else {
        HEAD
    }
}

/// `theta^(-2i/d)` for `i < d/2`.
pub(super) fn inverse_frequencies(config: &DecoderConfig) -> Vec<f32> {
    let length = config.head_dim as f64;
    (0..config.head_dim / 2)
        .map(|i| config.rope_theta.powf(-2.0 * i as f64 / length) as f32)
        .collect()
}
