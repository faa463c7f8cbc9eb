//! The three networks of a FastVLM as graphs, and the canonical weights that they need.

mod attention;
pub mod body;
mod fastvithd;
pub mod fixed;
pub mod fused;
mod products;
mod projector;
mod qwen2;
pub mod stateful;

use crate::config::ModelConfig;
use crate::dtype::DType;
use crate::graph::{Builder, Dim, Graph, GraphError, Source, WeightForm};
use crate::weights::WeightSpec;
use fastvithd::Attention;
pub(crate) use qwen2::{EMBED_TOKENS, HEAD};
use std::collections::BTreeSet;

/// The graphs that a bundle holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Network {
    /// `pixel_values [batch,3,H,W] -> image_features [batch,tokens,hidden]`: FastViTHD and the projector.
    VisionEncoder,
    /// `input_ids [batch,new] -> inputs_embeds [batch,new,hidden]`.
    EmbedTokens,
    /// `inputs_embeds, attention_mask, position_ids, past_key_values.* -> logits [batch,1,vocab], present.*`.
    Decoder,
}

impl Network {
    /// All of them, in canonical order.
    pub const ALL: [Network; 3] = [Network::VisionEncoder, Network::EmbedTokens, Network::Decoder];

    /// The graph's name, and its file's.
    pub const fn name(self) -> &'static str {
        match self {
            Network::VisionEncoder => "vision_encoder",
            Network::EmbedTokens => "embed_tokens",
            Network::Decoder => "decoder_model_merged",
        }
    }
}

/// Builds a network's graph.
///
/// # Errors
/// A config whose sizes do not fit together, by the first node that shows it.
pub fn build(network: Network, config: &ModelConfig) -> Result<Graph, GraphError> {
    let mut b = Builder::new(network.name());
    match network {
        Network::VisionEncoder => {
            let side = Dim::Fixed(config.vision.image_size);
            let pixels = b.input(
                "pixel_values",
                DType::Float32,
                &[Dim::Batch, Dim::Fixed(3), side, side],
            );
            let tokens = fastvithd::fastvithd(&mut b, &config.vision, Attention::Portable, pixels);
            let features = projector::projector(&mut b, &config.projector, tokens);
            b.output("image_features", features);
        }
        Network::EmbedTokens => {
            let ids = b.input("input_ids", DType::Int64, &[Dim::Batch, Dim::New]);
            let embeds = qwen2::embed_tokens(&mut b, &config.decoder, ids);
            b.output("inputs_embeds", embeds);
        }
        Network::Decoder => qwen2::decoder(&mut b, &config.decoder),
    }
    b.finish()
}

/// Whether an input or output of this name is a part of the decoder's cache that a program feeds back.
pub fn is_cache(name: &str) -> bool {
    qwen2::is_cache(name)
}

/// The canonical weights of all networks, each once, in the order in which the networks read them.
///
/// # Errors
/// As [`build`].
pub fn specs(config: &ModelConfig) -> Result<Vec<WeightSpec>, GraphError> {
    let mut seen = BTreeSet::new();
    let mut specs = Vec::new();
    for network in Network::ALL {
        for value in build(network, config)?.values {
            let Source::Weight(weight) = value.source else {
                continue;
            };
            let mut shape: Vec<u64> = value.shape.iter().filter_map(|dim| dim.fixed()).collect();
            if weight.form == WeightForm::Transposed {
                shape.reverse();
            }
            if seen.insert(weight.name.clone()) {
                specs.push(WeightSpec {
                    name: weight.name,
                    shape,
                });
            }
        }
    }
    Ok(specs)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::config::{DecoderConfig, ProjectorConfig, TokenMixer, VisionConfig};

    fn config(dims: [u64; 5], layers: [u64; 5], image_size: u64, decoder: DecoderConfig) -> ModelConfig {
        use TokenMixer::{Attention, RepMixer};
        ModelConfig {
            vision: VisionConfig {
                image_size,
                embed_dims: dims.to_vec(),
                layers: layers.to_vec(),
                mlp_ratios: vec![4.0; 5],
                token_mixers: vec![RepMixer, RepMixer, RepMixer, Attention, Attention],
                downsamples: vec![false, true, true, true, true],
                pos_embs: vec![None, None, None, Some(7), Some(7)],
                repmixer_kernel_size: 3,
                down_patch_size: 7,
                down_stride: 2,
                lkc_use_act: true,
                final_channels: 2 * dims[4],
                layer_scale: true,
                norm_epsilon: 1e-5,
                head_dim: 32,
            },
            projector: ProjectorConfig {
                input: 2 * dims[4],
                hidden: decoder.hidden_size,
                bias: true,
            },
            decoder,
        }
    }

    fn decoder(
        hidden: u64,
        layers: u64,
        heads: [u64; 2],
        intermediate: u64,
        vocab: u64,
        tied: bool,
    ) -> DecoderConfig {
        DecoderConfig {
            hidden_size: hidden,
            layers,
            heads: heads[0],
            kv_heads: heads[1],
            head_dim: hidden / heads[0],
            intermediate_size: intermediate,
            vocab_size: vocab,
            rms_norm_epsilon: 1e-6,
            rope_theta: 1e6,
            max_position_embeddings: 32768,
            tie_word_embeddings: tied,
        }
    }

    /// The 0.5B geometry with this many decoder layers.
    pub(crate) fn published(layers: u64) -> ModelConfig {
        published_with(decoder(896, layers, [14, 2], 4864, 151_936, true))
    }

    fn published_with(decoder: DecoderConfig) -> ModelConfig {
        config([96, 192, 384, 768, 1536], [2, 12, 24, 4, 2], 1024, decoder)
    }

    #[test]
    fn published_sizes() {
        let cases = [
            (
                "0.5B",
                decoder(896, 24, [14, 2], 4864, 151_936, true),
                493_000_000..495_000_000,
            ),
            (
                "1.5B",
                decoder(1536, 28, [12, 2], 8960, 151_936, true),
                1_540_000_000..1_550_000_000,
            ),
            (
                "7B",
                decoder(3584, 28, [28, 4], 18944, 152_064, false),
                7_610_000_000..7_620_000_000,
            ),
        ];
        for (name, decoder, expected) in cases {
            let specs = specs(&published_with(decoder)).unwrap();
            let count = |prefix: &str| -> u64 {
                let chosen = specs.iter().filter(|spec| spec.name.starts_with(prefix));
                chosen.map(|spec| spec.shape.iter().product::<u64>()).sum()
            };
            let language = count("language_model.") + count("lm_head.");
            assert!(expected.contains(&language), "{name}: {language}");
            // 122.7 M without the tower's head, as timm counts `fastvit_mci3` with everything folded.
            assert_eq!(count("vision_tower."), 122_696_352, "{name}");
        }
    }

    #[test]
    fn public_inputs_and_outputs() {
        let config = published(2);
        let show = |network| {
            let graph = build(network, &config).unwrap();
            let list = |ids: &[crate::graph::ValueId]| -> Vec<String> {
                let one = |value: &crate::graph::Value| {
                    let dims: Vec<String> = value.shape.iter().map(Dim::to_string).collect();
                    format!("{} {} [{}]", value.name, value.dtype, dims.join(","))
                };
                ids.iter().map(|&id| one(graph.value(id))).collect()
            };
            (list(&graph.inputs), list(&graph.outputs))
        };
        let (inputs, outputs) = show(Network::VisionEncoder);
        assert_eq!(inputs, ["pixel_values float32 [batch,3,1024,1024]"]);
        assert_eq!(outputs, ["image_features float32 [batch,256,896]"]);
        let (inputs, outputs) = show(Network::EmbedTokens);
        assert_eq!(inputs, ["input_ids int64 [batch,new]"]);
        assert_eq!(outputs, ["inputs_embeds float32 [batch,new,896]"]);
        let (inputs, outputs) = show(Network::Decoder);
        assert_eq!(inputs[0], "inputs_embeds float32 [batch,new,896]");
        assert_eq!(inputs[1], "attention_mask int64 [batch,total]");
        assert_eq!(inputs[2], "position_ids int64 [batch,new]");
        assert_eq!(inputs[6], "past_key_values.1.value float32 [batch,2,past,64]");
        assert_eq!(outputs[0], "logits float32 [batch,1,151936]");
        assert_eq!(outputs[4], "present.1.value float32 [batch,2,total,64]");
    }

    #[test]
    fn a_config_that_does_not_fit_names_the_node() {
        let mut broken = published(1);
        broken.projector.input = 3000;
        let error = build(Network::VisionEncoder, &broken).unwrap_err();
        assert_eq!(error.subject(), "/multi_modal_projector/linear_1/MatMul");
    }

    #[test]
    fn one_decoder_layer_as_text() {
        let tiny = config(
            [32, 32, 32, 32, 32],
            [1; 5],
            64,
            decoder(16, 1, [4, 2], 24, 50, true),
        );
        let text = build(Network::Decoder, &tiny).unwrap().to_string();
        let expected = include_str!("../../tests/snapshots/decoder_layer.txt");
        assert!(
            text == expected,
            "the decoder's graph changed; review and replace the snapshot:\n{text}"
        );
    }

    #[test]
    fn one_vision_stage_as_text() {
        let mut tiny = config(
            [32, 32, 32, 32, 32],
            [1; 5],
            64,
            decoder(16, 1, [4, 2], 24, 50, true),
        );
        let vision = &mut tiny.vision;
        (vision.embed_dims, vision.layers) = (vec![8, 32], vec![1, 1]);
        vision.token_mixers = vec![TokenMixer::RepMixer, TokenMixer::Attention];
        vision.pos_embs = vec![None, Some(7)];
        let text = build(Network::VisionEncoder, &tiny).unwrap().to_string();
        let expected = include_str!("../../tests/snapshots/vision_stages.txt");
        assert!(
            text == expected,
            "the encoder's graph changed; review and replace the snapshot:\n{text}"
        );
    }
}
