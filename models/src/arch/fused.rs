//! The same three networks for target `cpu`, in fused operators and channels last.
//!
//! What a fused operator computes is written down in [`super::body`]. Every function of `qwen2/fused.rs` and
//! `fastvithd/fused.rs` has its counterpart in the portable network beside it, which is the one to read
//! first; the two are held equal by the conformance suites. Norms, biases, activations, residuals and layer
//! scales are parts of the products that they stand next to, so that activations are read and written once.

use super::products::Stored;
pub use super::products::{Encodings, Exceptions};
use super::{Network, fastvithd, projector, qwen2};
use crate::config::ModelConfig;
use crate::dtype::DType;
use crate::graph::{Builder, Dim, Graph, GraphError, Source, WeightForm};

/// Builds a network's graph from fused operators: the same inputs, outputs and canonical weights as
/// [`super::build`].
///
/// # Errors
/// As [`super::build`].
pub fn build(network: Network, config: &ModelConfig, encodings: Encodings) -> Result<Graph, GraphError> {
    build_with(network, config, encodings, &Exceptions::new())
}

/// As [`build()`], with some operators in another encoding than their part's.
///
/// # Errors
/// As [`super::build`].
pub fn build_with(
    network: Network,
    config: &ModelConfig,
    encodings: Encodings,
    exceptions: &Exceptions,
) -> Result<Graph, GraphError> {
    let stored = |usual| Stored { usual, exceptions };
    let vision = stored(encodings.vision);
    let mut b = Builder::new(network.name());
    match network {
        Network::VisionEncoder => {
            let side = Dim::Fixed(config.vision.image_size);
            let pixels = b.input(
                "pixel_values",
                DType::Float32,
                &[Dim::Batch, Dim::Fixed(3), side, side],
            );
            let tokens = fastvithd::fused::fastvithd(&mut b, &config.vision, vision, pixels);
            let features = projector::projector_fused(&mut b, &config.projector, vision, tokens);
            b.output("image_features", features);
        }
        Network::EmbedTokens => {
            let ids = b.input("input_ids", DType::Int64, &[Dim::Batch, Dim::New]);
            let embeds = qwen2::fused::embed_tokens(&mut b, &config.decoder, encodings.table, ids);
            b.output("inputs_embeds", embeds);
        }
        Network::Decoder => {
            let products = stored(encodings.decoder);
            qwen2::fused::decoder(&mut b, &config.decoder, products, encodings.table);
        }
    }
    b.finish()
}

/// The operators of a network that multiply with matrices, by the names that [`Exceptions`] has, in order.
pub fn products(graph: &Graph) -> Vec<&str> {
    let mut names = Vec::new();
    for node in &graph.nodes {
        let weight = node.inputs.iter().find_map(|id| match &graph.value(*id).source {
            Source::Weight(weight) if matches!(weight.form, WeightForm::Panels(..)) => Some(&weight.name),
            Source::Weight(_) | Source::Input | Source::Node | Source::Constant(_) => None,
        });
        names.extend(weight.map(String::as_str));
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::tests::published;
    use crate::fused::{Encoding, Fused, TableEncoding};
    use crate::graph::Op;

    /// An exception changes the encoding of the operator that it names and of no other.
    #[test]
    fn exceptions_are_of_one_operator() {
        let config = published(2);
        let encodings = Encodings {
            vision: Encoding::Int8,
            decoder: Encoding::Int4,
            table: TableEncoding::Planes,
        };
        let encodings_of = |graph: &Graph| -> Vec<Encoding> {
            let of = |op: &Op| match op {
                Op::Fused(Fused::Linear { encoding, .. } | Fused::FeedForward { encoding, .. }) => {
                    Some(*encoding)
                }
                _ => None,
            };
            graph.nodes.iter().filter_map(|node| of(&node.op)).collect()
        };
        for network in [Network::VisionEncoder, Network::Decoder] {
            let usual = build(network, &config, encodings).unwrap();
            let names = products(&usual);
            let before = encodings_of(&usual);
            assert_eq!(names.len(), before.len());
            for (place, name) in names.iter().enumerate() {
                let exceptions = Exceptions::from([((*name).to_owned(), Encoding::Float32)]);
                let graph = build_with(network, &config, encodings, &exceptions).unwrap();
                let mut expected = before.clone();
                expected[place] = Encoding::Float32;
                assert_eq!(encodings_of(&graph), expected, "{name}");
            }
        }
    }
}
