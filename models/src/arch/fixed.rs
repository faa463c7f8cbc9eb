//! The same networks for target `coreml`: every length is a number, no value has a rank above 4, and nothing
//! is computed in integers. One image at a time; what the decoder is like stands in `qwen2/fixed.rs`.
//!
//! A linear layer is one `Gemm` that reads the weight as the checkpoint has it, so that decoders of different
//! lengths, and the embedding with a tied head, share their bytes.

use super::fastvithd::{self, Attention};
pub use super::qwen2::fixed::{Lengths, decoder};
use super::{Network, projector};
use crate::config::ModelConfig;
use crate::dtype::DType;
use crate::graph::{Builder, Dim, Graph, GraphError};

/// `pixel_values [1,3,H,W] -> image_features [1,tokens,hidden]`
///
/// # Errors
/// As [`super::build`].
pub fn vision_encoder(config: &ModelConfig) -> Result<Graph, GraphError> {
    encoder(config, Attention::OfOne)
}

/// The encoder of one image.
pub(super) fn encoder(config: &ModelConfig, attention: Attention) -> Result<Graph, GraphError> {
    let mut b = Builder::new(Network::VisionEncoder.name());
    let side = Dim::Fixed(config.vision.image_size);
    let pixels = b.input(
        "pixel_values",
        DType::Float32,
        &[Dim::Fixed(1), Dim::Fixed(3), side, side],
    );
    let tokens = fastvithd::fastvithd(&mut b, &config.vision, attention, pixels);
    let features = projector::projector_of_one(&mut b, &config.projector, tokens);
    b.output("image_features", features);
    b.finish()
}

/// The embedding is looked up outside: its graph is the portable one, over the same table.
///
/// # Errors
/// As [`super::build`].
pub fn embed_tokens(config: &ModelConfig) -> Result<Graph, GraphError> {
    super::build(Network::EmbedTokens, config)
}

#[cfg(test)]
mod tests {
    use super::super::tests::published;
    use super::*;
    use crate::graph::{Op, Source, Value, ValueId};
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
        let portable = Network::ALL.map(|network| super::super::build(network, &config).unwrap());
        assert_eq!(names(&fixed), names(&portable));
    }
}
