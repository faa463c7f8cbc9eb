//! Qwen2 with fixed lengths, for target `coreml`: see [`crate::arch::fixed`] for what that form is.
//!
//! A decoder for a number of new positions, with a cache of `context` slots as inputs. What it has computed
//! of the new positions, and only that, are its outputs: whoever runs it writes them into the cache.
//! Positions come as float32, and a bias of `[1,1,new,context + new]` says which slot may look at which, so
//! that slots without a position, in the cache and among the new ones, need no graph of their own: they are
//! hidden. New positions are padded on the left: the last slot is always the last position.
//!
//! Letters: `n` new slots, `c` slots of the cache, `t` = c + n, `D` hidden, `k` kv heads, `g` query heads per
//! kv head, `d` head length, `V` vocabulary.

use super::{cache_inputs, decoder_layer, head_name, inverse_frequencies, outputs, rotate};
use crate::arch::attention;
use crate::config::{DecoderConfig, ModelConfig};
use crate::dtype::DType;
use crate::graph::{Builder, Dim, Graph, GraphError, ValueId, signed};

/// The lengths of a decoder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Lengths {
    /// Slots of the cache.
    pub context: u64,
    /// New slots of a call.
    pub new: u64,
}

impl Lengths {
    /// The graph's name: `decoder_step`, `decoder_prefill_64`.
    pub fn name(self) -> String {
        match self.new {
            1 => "decoder_step".to_owned(),
            new => format!("decoder_prefill_{new}"),
        }
    }
}

/// `inputs_embeds [1,n,D], attention_bias [1,1,n,t], positions [1,n], past_key_values.* [1,k,c,d] -> logits [1,1,V], present.* [1,k,n,d]`
///
/// # Errors
/// As [`crate::arch::build`].
pub fn decoder(config: &ModelConfig, lengths: Lengths) -> Result<Graph, GraphError> {
    let mut b = Builder::new(&lengths.name());
    let config = &config.decoder;
    let fixed = Dim::Fixed;
    let Lengths { context, new } = lengths;
    let one = fixed(1);
    let embeds = b.input(
        "inputs_embeds",
        DType::Float32,
        &[one, fixed(new), fixed(config.hidden_size)],
    );
    let bias = b.input(
        "attention_bias",
        DType::Float32,
        &[one, one, fixed(new), fixed(context + new)],
    );
    let positions = b.input("positions", DType::Float32, &[one, fixed(new)]);
    let cache = [
        one,
        fixed(config.kv_heads),
        fixed(context),
        fixed(config.head_dim),
    ];
    let past = cache_inputs(&mut b, config, &cache);

    let (normed, present) = {
        let b = &mut b.scope("language_model");
        let shared = shared(b, config, new, bias, positions);
        let mut x = b.reshape(embeds, &[signed(new), signed(config.hidden_size)]); // [n,D]
        let mut present = Vec::with_capacity(past.len());
        for (layer, past) in (0..).zip(past) {
            let attend = |b: &mut Builder, x| self_attention(b, config, new, x, past, &shared);
            let (next, cache) = decoder_layer(b, config, Builder::dense, layer, x, attend);
            x = next; // [n,D]
            present.push(cache);
        }
        let last = if new == 1 { x } else { b.slice(x, 0, -1, i64::MAX) }; // [1,D]
        let normed = b.rms_norm("norm", last, config.hidden_size, config.rms_norm_epsilon); // [1,D]
        (normed, present)
    };
    let table = b.weight_named(head_name(config), &[config.vocab_size, config.hidden_size], false);
    let logits = {
        let b = &mut b.scope("lm_head");
        let logits = b.gemm_transposed(normed, table); // [1,V]
        b.unsqueeze(logits, &[1]) // [1,1,V]
    };
    outputs(&mut b, logits, present);
    b.finish()
}

/// What every layer needs and no layer owns.
struct Shared {
    /// `[1,1,g*n,t]`: the bias once for each query head of a group.
    bias: ValueId,
    /// `[n,1,d/2]`
    cos: ValueId,
    /// `[n,1,d/2]`
    sin: ValueId,
}

fn shared(b: &mut Builder, config: &DecoderConfig, new: u64, bias: ValueId, positions: ValueId) -> Shared {
    let b = &mut b.full();
    let bias = match usize::try_from(groups(config)) {
        Ok(groups) if groups > 1 => b.scope("attention_bias").concat(&vec![bias; groups], 2),
        _ => bias,
    }; // [1,1,g*n,t]
    let b = &mut b.scope("rotary_emb");
    let frequencies = b.constant_f32(&[config.head_dim / 2], inverse_frequencies(config));
    let positions = b.reshape(positions, &[signed(new), 1, 1]); // [n,1,1]
    let angles = b.mul(positions, frequencies); // [n,1,d/2]
    Shared {
        bias,
        cos: b.cos(angles),
        sin: b.sin(angles),
    }
}

/// Grouped-query attention: the query heads of a group lie one below the other in one matrix.
fn self_attention(
    b: &mut Builder,
    config: &DecoderConfig,
    new: u64,
    x: ValueId,
    [past_key, past_value]: [ValueId; 2],
    shared: &Shared,
) -> (ValueId, [ValueId; 2]) {
    let length = config.head_dim;
    let [n, k, g, d] = lengths(config, new);
    let b = &mut b.scope("self_attn");
    let [q, key, value] = projections(b, config, new, x, [shared.cos, shared.sin]);
    let new_key = attention::per_head(b, key, [n, k, d]); // [1,k,n,d]
    let new_value = attention::per_head(b, value, [n, k, d]); // [1,k,n,d]
    let key = b.concat(&[past_key, new_key], 2); // [1,k,t,d]
    let value = b.concat(&[past_value, new_value], 2); // [1,k,t,d]

    let weights = {
        let b = &mut b.full();
        let scale = b.constant_f32(&[], vec![attention::scale(length)]);
        let q = b.mul(q, scale); // [n,k*g,d]
        let q = in_groups(b, q, [n, k, g, d]); // [1,k,g*n,d]
        let key = b.transpose(key, &[0, 1, 3, 2]); // [1,k,d,t]
        let scores = b.matmul(q, key); // [1,k,g*n,t]
        let scores = b.add(scores, shared.bias); // [1,k,g*n,t]
        b.softmax(scores) // [1,k,g*n,t]
    };
    let mixed = b.matmul(weights, value); // [1,k,g*n,d]
    let projected = output_projection(b, config, new, mixed); // [n,D]
    (projected, [new_key, new_value])
}

/// New slots, kv heads, query heads for each of them, and the length of a head.
pub(super) fn lengths(config: &DecoderConfig, new: u64) -> [i64; 4] {
    [new, config.kv_heads, groups(config), config.head_dim].map(signed)
}

/// Queries `[n,k*g,d]` and keys `[n,k,d]`, both rotated, and values `[n,k*d]`. The scope is the attention's.
pub(super) fn projections(
    b: &mut Builder,
    config: &DecoderConfig,
    new: u64,
    x: ValueId,
    angles: [ValueId; 2],
) -> [ValueId; 3] {
    let (width, length) = (config.hidden_size, config.head_dim);
    let [n, k, g, d] = lengths(config, new);
    let q = b.dense("q_proj", x, width, config.heads * length, true); // [n,k*g*d]
    let key = b.dense("k_proj", x, width, config.kv_heads * length, true); // [n,k*d]
    let value = b.dense("v_proj", x, width, config.kv_heads * length, true); // [n,k*d]
    let q = b.reshape(q, &[n, k * g, d]); // [n,k*g,d]
    let key = b.reshape(key, &[n, k, d]); // [n,k,d]
    let q = rotate(&mut b.scope("q_rotary"), q, length, angles); // [n,k*g,d]
    let key = rotate(&mut b.scope("k_rotary"), key, length, angles); // [n,k,d]
    [q, key, value]
}

/// The queries of a group one below the other: `[n,k*g,d] -> [1,k,g*n,d]`.
pub(super) fn in_groups(b: &mut Builder, q: ValueId, [n, k, g, d]: [i64; 4]) -> ValueId {
    let q = b.reshape(q, &[n, k, g, d]); // [n,k,g,d]
    let q = b.transpose(q, &[1, 2, 0, 3]); // [k,g,n,d]
    b.reshape(q, &[1, k, g * n, d]) // [1,k,g*n,d]
}

/// What the heads found, mixed: `[1,k,g*n,d] -> [n,D]`.
pub(super) fn output_projection(
    b: &mut Builder,
    config: &DecoderConfig,
    new: u64,
    mixed: ValueId,
) -> ValueId {
    let [n, k, g, d] = lengths(config, new);
    let mixed = b.reshape(mixed, &[k, g, n, d]); // [k,g,n,d]
    let mixed = b.transpose(mixed, &[2, 0, 1, 3]); // [n,k,g,d]
    let mixed = b.reshape(mixed, &[n, k * g * d]); // [n,k*g*d]
    let width = config.heads * config.head_dim;
    b.dense("o_proj", mixed, width, config.hidden_size, false) // [n,D]
}

/// Query heads for each head of keys and values.
pub(super) fn groups(config: &DecoderConfig) -> u64 {
    config.heads / config.kv_heads.max(1)
}
