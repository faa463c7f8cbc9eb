//! The same three networks for target `cpu`, in fused operators and channels last.
//!
//! What a fused operator computes is written down in [`super::body`]. Every function of `qwen2/fused.rs` and
//! `fastvithd/fused.rs` has its counterpart in the portable network beside it, which is the one to read
//! first; the two are held equal by the conformance suites. Norms, biases, activations, residuals and layer
//! scales are parts of the products that they stand next to, so that activations are read and written once.

pub use super::products::Encodings;
use super::{Network, fastvithd, projector, qwen2};
use crate::config::ModelConfig;
use crate::dtype::DType;
use crate::graph::{Builder, Dim, Graph, GraphError};

/// Builds a network's graph from fused operators: the same inputs, outputs and canonical weights as
/// [`super::build`].
///
/// # Errors
/// As [`super::build`].
pub fn build(network: Network, config: &ModelConfig, encodings: Encodings) -> Result<Graph, GraphError> {
    let mut b = Builder::new(network.name());
    match network {
        Network::VisionEncoder => {
            let side = Dim::Fixed(config.vision.image_size);
            let pixels = b.input(
                "pixel_values",
                DType::Float32,
                &[Dim::Batch, Dim::Fixed(3), side, side],
            );
            let tokens = fastvithd::fused::fastvithd(&mut b, &config.vision, encodings.vision, pixels);
            let features = projector::projector_fused(&mut b, &config.projector, encodings.vision, tokens);
            b.output("image_features", features);
        }
        Network::EmbedTokens => {
            let ids = b.input("input_ids", DType::Int64, &[Dim::Batch, Dim::New]);
            let embeds = qwen2::fused::embed_tokens(&mut b, &config.decoder, encodings.table, ids);
            b.output("inputs_embeds", embeds);
        }
        Network::Decoder => qwen2::fused::decoder(&mut b, &config.decoder, encodings),
    }
    b.finish()
}
