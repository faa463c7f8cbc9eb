//! Qwen2 for Core ML's own form: the cache is a state, which the decoder writes in place.
//!
//! Lengths are numbers, as in [`super::fixed`]. A call has `n` new positions, of which the first lies at slot
//! `position`; their keys and values go into the slots from there. Every position sees the slots up to its
//! own, so that what lies behind is never looked at: a prompt that is shorter than `n` is padded behind,
//! `last` says which row is its last, and the next call writes over the padding. All layers share two states,
//! as in Apple's "On Device Llama 3.1 with Core ML".
//!
//! Angles of the rotary embedding are a table with a row for each slot: they come from float64, not from a
//! cosine in half precision.
//!
//! Letters: `n` new, `c` slots, `L` layers, `D` hidden, `k` kv heads, `g` query heads per kv head, `d` head
//! length, `V` vocabulary.

use super::fixed::{self, Lengths};
use super::{decoder_layer, head_name, inverse_frequencies};
use crate::arch::attention;
use crate::config::{DecoderConfig, ModelConfig};
use crate::dtype::DType;
use crate::graph::{Builder, Dim, Graph, GraphError, ValueId, signed};

/// Names of the states of keys and values, as inputs.
pub const CACHES: [&str; 2] = ["key_cache", "value_cache"];

/// Names of the same states after a call, as outputs.
pub const UPDATED: [&str; 2] = ["key_cache_updated", "value_cache_updated"];

/// What is taken from the score of a slot that is not to be seen: float16 holds it, and a score beside it
/// vanishes.
const HIDDEN: f32 = 40000.0;

/// `inputs_embeds [1,n,D], position [1], last [1] (where n > 1), key_cache, value_cache [L,k,c,d] -> logits [1,1,V]`,
/// and the caches with the new positions in them.
///
/// # Errors
/// As [`crate::arch::build`].
pub fn decoder(config: &ModelConfig, lengths: Lengths) -> Result<Graph, GraphError> {
    let mut b = Builder::new(&lengths.name());
    let config = &config.decoder;
    let Lengths { context, new } = lengths;
    let fixed = Dim::Fixed;
    let embeds = b.input(
        "inputs_embeds",
        DType::Float32,
        &[fixed(1), fixed(new), fixed(config.hidden_size)],
    );
    let position = b.input("position", DType::Int64, &[fixed(1)]);
    let last = (new > 1).then(|| b.input("last", DType::Int64, &[fixed(1)]));
    let cache = [config.layers, config.kv_heads, context, config.head_dim].map(fixed);
    // Core ML's states are float16, whatever the rest is.
    let mut caches = CACHES.map(|name| b.input(name, DType::Float16, &cache));

    let normed = {
        let b = &mut b.scope("language_model");
        let shared = shared(b, config, lengths, position);
        let mut x = b.reshape(embeds, &[signed(new), signed(config.hidden_size)]); // [n,D]
        for layer in 0..config.layers {
            let attend = |b: &mut Builder, x| self_attention(b, config, new, layer, x, caches, &shared);
            (x, caches) = decoder_layer(b, config, Builder::dense, layer, x, attend); // [n,D]
        }
        let x = match last {
            Some(last) => b.gather(x, last), // [1,D]
            None => x,
        };
        b.rms_norm("norm", x, config.hidden_size, config.rms_norm_epsilon) // [1,D]
    };
    let shape = [config.vocab_size, config.hidden_size];
    let table = b.weight_named(head_name(config), &shape, false);
    let logits = {
        let b = &mut b.scope("lm_head");
        let logits = b.gemm_transposed(normed, table); // [1,V]
        b.unsqueeze(logits, &[1]) // [1,1,V]
    };
    b.output("logits", logits);
    for (name, cache) in UPDATED.into_iter().zip(caches) {
        b.output(name, cache);
    }
    b.finish()
}

/// What every layer needs and no layer owns.
struct Shared {
    /// `[1]`: the slot of the first new position.
    position: ValueId,
    /// `[g*n,c]`: the bias once for each query head of a group.
    bias: ValueId,
    /// `[n,1,d/2]`
    cos: ValueId,
    /// `[n,1,d/2]`
    sin: ValueId,
}

fn shared(b: &mut Builder, config: &DecoderConfig, lengths: Lengths, position: ValueId) -> Shared {
    let Lengths { context, new } = lengths;
    let b = &mut b.full();
    let offsets = b.constant_i64(&[new], (0..signed(new)).collect());
    let positions = b.scope("positions").add(position, offsets); // [n]
    let bias = {
        let b = &mut b.scope("attention_bias");
        let slots = b.constant_i64(&[1, context], (0..signed(context)).collect());
        let rows = b.unsqueeze(positions, &[1]); // [n,1]
        let visible = b.less_or_equal(slots, rows); // [n,c]
        // 1 or 0, then 0 or -1: coremltools gives a selection the shape of its branches, not of its
        // condition.
        let visible = b.cast(visible, DType::Float32); // [n,c]
        let [one, hidden] = [1.0, HIDDEN].map(|value| b.constant_f32(&[], vec![value]));
        let bias = b.sub(visible, one); // [n,c]
        let bias = b.mul(bias, hidden); // [n,c]
        match usize::try_from(fixed::groups(config)) {
            Ok(groups) if groups > 1 => b.concat(&vec![bias; groups], 0), // [g*n,c]
            _ => bias,
        }
    };
    let b = &mut b.scope("rotary_emb");
    let half = config.head_dim / 2;
    let [cos, sin] = [f64::cos, f64::sin].map(|function| {
        let table = b.constant_f32(&[context, 1, half], angles(config, context, function));
        b.gather(table, positions) // [n,1,d/2]
    });
    Shared {
        position,
        bias,
        cos,
        sin,
    }
}

/// `function(position * theta^(-2i/d))` for every slot and `i < d/2`.
fn angles(config: &DecoderConfig, context: u64, function: fn(f64) -> f64) -> Vec<f32> {
    // As the published implementation does, in float32 up to here; only the function itself is exact.
    let frequencies = inverse_frequencies(config);
    (0..context)
        .flat_map(|slot| frequencies.iter().map(move |frequency| slot as f32 * frequency))
        .map(|angle| function(f64::from(angle)) as f32)
        .collect()
}

/// Grouped-query attention: the query heads of a group lie one below the other in one matrix.
fn self_attention(
    b: &mut Builder,
    config: &DecoderConfig,
    new: u64,
    layer: u64,
    x: ValueId,
    caches: [ValueId; 2],
    shared: &Shared,
) -> (ValueId, [ValueId; 2]) {
    let [n, k, g, d] = fixed::lengths(config, new);
    let b = &mut b.scope("self_attn");
    let [q, key, value] = fixed::projections(b, config, new, x, [shared.cos, shared.sin]);
    let mut caches = caches;
    let [key, value] = {
        let b = &mut b.scope("cache");
        let front = b.constant_i64(&[2], vec![signed(layer), 0]);
        let back = b.constant_i64(&[1], vec![0]);
        let begin = b.concat(&[front, shared.position, back], 0); // [4]: layer, 0, position, 0
        let mut part = |index: usize, new: ValueId| {
            let new = attention::per_head(b, new, [n, k, d]); // [1,k,n,d]
            let new = b.cast(new, DType::Float16);
            let cache = b.slice_update(caches[index], new, begin); // [L,k,c,d]
            caches[index] = cache;
            let own = b.slice(cache, 0, signed(layer), signed(layer) + 1); // [1,k,c,d]
            b.cast(own, DType::Float32)
        };
        [part(0, key), part(1, value)]
    };
    let mixed = {
        let b = &mut b.full();
        let q = fixed::in_groups(b, q, [n, k, g, d]); // [1,k,g*n,d]
        b.attention([q, key, value], Some(shared.bias)) // [1,k,g*n,d]
    };
    (fixed::output_projection(b, config, new, mixed), caches) // [n,D]
}
