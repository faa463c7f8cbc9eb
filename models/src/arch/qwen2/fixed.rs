//! The same networks for target `coreml`: every length is a number, no value has a rank above 4, and nothing is computed
//! in integers.
//!
//! One image at a time; a decoder for a number of new positions, with a cache of `context` slots as inputs. What it has
//! computed of the new positions, and only that, are its outputs: whoever runs it writes them into the cache. Positions
//! come as float32, and a bias of `[1,1,new,context + new]` says which slot may look at which, so that slots without
//! a position, in the cache and among the new ones, need no graph of their own: they are hidden. New positions are
//! padded on the left: the last slot is always the last position.
//!
//! A linear layer is one `Gemm` that reads the weight as the checkpoint has it, so that decoders of different lengths, and
//! the embedding with a tied head, share their bytes.
//!
//! Letters: `n` new slots, `c` slots of the cache, `t` = c + n, `D` hidden, `k` kv heads, `g` query heads per kv head,
//! `d` head length, `I` intermediate, `V` vocabulary, `N` tokens of an image, `C` channels, `h` heads of the encoder.

use super::qwen2;
use super::{fastvithd, projector};
use crate::config::{DecoderConfig, ModelConfig, VisionConfig};
use crate::dtype::DType;
use crate::graph::{Builder, Dim, Graph, GraphError, ValueId};

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

/// `pixel_values [1,3,H,W] -> image_features [1,tokens,hidden]`
///
/// # Errors
/// As [`super::build`].
pub fn vision_encoder(config: &ModelConfig) -> Result<Graph, GraphError> {
    encoder(config, fastvithd::fastvithd)
}

/// The encoder of one image around a tower `pixels [1,3,S,S] -> tokens [1,N,F]`.
pub(super) fn encoder(
    config: &ModelConfig,
    tower: fn(&mut Builder, &VisionConfig, ValueId) -> ValueId,
) -> Result<Graph, GraphError> {
    let mut b = Builder::new(super::Network::VisionEncoder.name());
    let side = Dim::Fixed(config.vision.image_size);
    let pixels = b.input(
        "pixel_values",
        DType::Float32,
        &[Dim::Fixed(1), Dim::Fixed(3), side, side],
    );
    let tokens = tower(&mut b, &config.vision, pixels);
    let features = projector::projector_of_one(&mut b, &config.projector, tokens);
    b.output("image_features", features);
    b.finish()
}

/// `inputs_embeds [1,n,D], attention_bias [1,1,n,t], positions [1,n], past_key_values.* [1,k,c,d] -> logits [1,1,V],
/// present.* [1,k,n,d]`
///
/// # Errors
/// As [`super::build`].
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
    let past: Vec<[ValueId; 2]> = (0..config.layers)
        .map(|layer| {
            ["key", "value"]
                .map(|part| b.input(&format!("past_key_values.{layer}.{part}"), DType::Float32, &cache))
        })
        .collect();

    let (normed, present) = {
        let b = &mut b.scope("language_model");
        let shared = shared(b, config, new, bias, positions);
        let mut x = b.reshape(embeds, &[signed(new), signed(config.hidden_size)]); // [n,D]
        let mut present = Vec::with_capacity(past.len());
        for (layer, past) in (0..).zip(past) {
            let attend = |b: &mut Builder, x| self_attention(b, config, new, x, past, &shared);
            let (next, cache) = decoder_layer(b, config, layer, x, attend);
            x = next; // [n,D]
            present.push(cache);
        }
        let last = if new == 1 { x } else { b.slice(x, 0, -1, i64::MAX) }; // [1,D]
        let normed = b.rms_norm("norm", last, config.hidden_size, config.rms_norm_epsilon); // [1,D]
        (normed, present)
    };
    let table = b.weight_named(
        qwen2::head_name(config),
        &[config.vocab_size, config.hidden_size],
        false,
    );
    let logits = {
        let b = &mut b.scope("lm_head");
        let logits = b.gemm_transposed(normed, table); // [1,V]
        b.unsqueeze(logits, &[1]) // [1,1,V]
    };
    qwen2::outputs(&mut b, logits, present);
    b.finish()
}

/// The embedding is looked up outside: its graph is the portable one, over the same table.
///
/// # Errors
/// As [`super::build`].
pub fn embed_tokens(config: &ModelConfig) -> Result<Graph, GraphError> {
    super::build(super::Network::EmbedTokens, config)
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
    let frequencies = b.constant_f32(&[config.head_dim / 2], qwen2::inverse_frequencies(config));
    let positions = b.reshape(positions, &[signed(new), 1, 1]); // [n,1,1]
    let angles = b.mul(positions, frequencies); // [n,1,d/2]
    Shared {
        bias,
        cos: b.cos(angles),
        sin: b.sin(angles),
    }
}

/// A layer around an attention `[n,D] -> [n,D]`, which also gives what it has to say of the cache.
pub(super) fn decoder_layer<C>(
    b: &mut Builder,
    config: &DecoderConfig,
    layer: u64,
    x: ValueId,
    attend: impl FnOnce(&mut Builder, ValueId) -> (ValueId, C),
) -> (ValueId, C) {
    let (width, epsilon) = (config.hidden_size, config.rms_norm_epsilon);
    let b = &mut b.scope(format!("layers.{layer}"));
    let normed = b.rms_norm("input_layernorm", x, width, epsilon); // [n,D]
    let (attended, cache) = attend(b, normed); // [n,D]
    let x = b.full().add(x, attended); // [n,D]
    let normed = b.rms_norm("post_attention_layernorm", x, width, epsilon); // [n,D]
    let mixed = mlp(b, config, normed); // [n,D]
    (b.full().add(x, mixed), cache) // [n,D]
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
    let new_key = per_head(b, key, [n, k, d]); // [1,k,n,d]
    let new_value = per_head(b, value, [n, k, d]); // [1,k,n,d]
    let key = b.concat(&[past_key, new_key], 2); // [1,k,t,d]
    let value = b.concat(&[past_value, new_value], 2); // [1,k,t,d]

    let weights = {
        let b = &mut b.full();
        let scale = b.constant_f32(&[], vec![qwen2::scale(length)]);
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
    let q = qwen2::rotate(&mut b.scope("q_rotary"), q, length, angles); // [n,k*g,d]
    let key = qwen2::rotate(&mut b.scope("k_rotary"), key, length, angles); // [n,k,d]
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

/// `[n,k,d]`, or `[n,k*d]` in memory alike, as `[1,k,n,d]`.
pub(super) fn per_head(b: &mut Builder, x: ValueId, [n, k, d]: [i64; 3]) -> ValueId {
    let x = b.reshape(x, &[1, n, k, d]); // [1,n,k,d]
    b.transpose(x, &[0, 2, 1, 3]) // [1,k,n,d]
}

/// `down(silu(gate(x)) * up(x))`
fn mlp(b: &mut Builder, config: &DecoderConfig, x: ValueId) -> ValueId {
    let (width, wide) = (config.hidden_size, config.intermediate_size);
    let b = &mut b.scope("mlp");
    let gate = b.dense("gate_proj", x, width, wide, false); // [n,I]
    let up = b.dense("up_proj", x, width, wide, false); // [n,I]
    let product = {
        let b = &mut b.full();
        let gate = b.silu(gate); // [n,I]
        b.mul(gate, up) // [n,I]
    };
    b.dense("down_proj", product, wide, width, false) // [n,D]
}

/// The encoder's attention for one image, in one operator if `whole`: `[1,N,C] -> [1,N,C]`. The scope is the block's.
pub(super) fn image_attention(
    b: &mut Builder,
    length: u64,
    width: u64,
    tokens: u64,
    whole: bool,
    x: ValueId,
) -> ValueId {
    let heads = width / length.max(1);
    let (n, h, d) = (signed(tokens), signed(heads), signed(length));
    let b = &mut b.scope("token_mixer");
    let x = b.reshape(x, &[n, signed(width)]); // [N,C]
    let qkv = b.dense("qkv", x, width, 3 * width, false); // [N,3C]
    let parts = b.split(qkv, 1, [width, width, width]); // [N,C] each
    let [q, k, v] = parts.map(|part| per_head(b, part, [n, h, d])); // [1,h,N,d] each
    let mixed = if whole {
        b.full().attention([q, k, v], None) // [1,h,N,d]
    } else {
        let weights = {
            let b = &mut b.full();
            let scale = b.constant_f32(&[], vec![qwen2::scale(length)]);
            let q = b.mul(q, scale); // [1,h,N,d]
            let k = b.transpose(k, &[0, 1, 3, 2]); // [1,h,d,N]
            let scores = b.matmul(q, k); // [1,h,N,N]
            b.softmax(scores) // [1,h,N,N]
        };
        b.matmul(weights, v) // [1,h,N,d]
    };
    let mixed = b.transpose(mixed, &[0, 2, 1, 3]); // [1,N,h,d]
    let mixed = b.reshape(mixed, &[n, signed(width)]); // [N,C]
    let mixed = b.dense("proj", mixed, width, width, true); // [N,C]
    b.reshape(mixed, &[1, n, signed(width)]) // [1,N,C]
}

/// Query heads for each head of keys and values.
pub(super) fn groups(config: &DecoderConfig) -> u64 {
    config.heads / config.kv_heads.max(1)
}

fn signed(length: u64) -> i64 {
    i64::try_from(length).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::super::tests::published;
    use super::*;
    use crate::graph::{Op, Source, Value};
    use std::collections::BTreeSet;

    fn shown(graph: &Graph, ids: &[ValueId]) -> Vec<String> {
        let one = |value: &Value| {
            let dims: Vec<String> = value.shape.iter().map(Dim::to_string).collect();
            format!("{} [{}]", value.name, dims.join(","))
        };
        ids.iter().map(|&id| one(graph.value(id))).collect()
    }

    #[test]
    fn public_inputs_and_outputs() {
        let config = published(2);
        let step = decoder(&config, Lengths { context: 512, new: 1 }).unwrap();
        assert_eq!(step.name, "decoder_step");
        let inputs = shown(&step, &step.inputs);
        assert_eq!(inputs[0], "inputs_embeds [1,1,896]");
        assert_eq!(inputs[1], "attention_bias [1,1,1,513]");
        assert_eq!(inputs[2], "positions [1,1]");
        assert_eq!(inputs[6], "past_key_values.1.value [1,2,512,64]");
        let outputs = shown(&step, &step.outputs);
        assert_eq!(outputs[0], "logits [1,1,151936]");
        assert_eq!(outputs[4], "present.1.value [1,2,1,64]");
        let prefill = decoder(
            &config,
            Lengths {
                context: 512,
                new: 64,
            },
        )
        .unwrap();
        assert_eq!(prefill.name, "decoder_prefill_64");
        assert_eq!(shown(&prefill, &prefill.outputs)[0], "logits [1,1,151936]");
        assert_eq!(shown(&prefill, &prefill.outputs)[3], "present.1.key [1,2,64,64]");
        let encoder = vision_encoder(&config).unwrap();
        assert_eq!(shown(&encoder, &encoder.inputs), ["pixel_values [1,3,1024,1024]"]);
        assert_eq!(shown(&encoder, &encoder.outputs), ["image_features [1,256,896]"]);
    }

    #[test]
    fn nothing_varies_no_rank_is_above_four_and_no_integer_is_computed() {
        let config = published(1);
        let lengths = |new| Lengths { context: 64, new };
        let graphs = [
            vision_encoder(&config).unwrap(),
            decoder(&config, lengths(1)).unwrap(),
            decoder(&config, lengths(16)).unwrap(),
        ];
        for graph in &graphs {
            for value in &graph.values {
                let fixed = value.shape.iter().all(|dim| dim.fixed().is_some());
                assert!(
                    fixed && value.shape.len() <= 4,
                    "{} {:?}",
                    value.name,
                    value.shape
                );
                assert!(value.dtype.is_float(), "{} {}", value.name, value.dtype);
            }
            assert!(graph.nodes.iter().all(|node| !matches!(node.op, Op::Cast { .. })));
        }
    }

    /// All lengths read the same bytes, and all networks the canonical weights of the portable ones.
    #[test]
    fn weights_are_shared() {
        let config = published(1);
        let read = |graph: &Graph| -> BTreeSet<_> { graph.weights().into_iter().cloned().collect() };
        let step = decoder(&config, Lengths { context: 64, new: 1 }).unwrap();
        let prefill = decoder(&config, Lengths { context: 64, new: 16 }).unwrap();
        assert_eq!(read(&step), read(&prefill));
        let names = |graphs: &[Graph]| -> BTreeSet<String> {
            let weights = graphs.iter().flat_map(|graph| &graph.values);
            weights
                .filter_map(|value| match &value.source {
                    Source::Weight(weight) => Some(weight.name.clone()),
                    _ => None,
                })
                .collect()
        };
        let fixed = [
            vision_encoder(&config).unwrap(),
            embed_tokens(&config).unwrap(),
            step,
        ];
        let portable =
            super::super::Network::ALL.map(|network| super::super::build(network, &config).unwrap());
        assert_eq!(names(&fixed), names(&portable));
    }
}
