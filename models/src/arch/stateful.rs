//! The same networks for Core ML's own form: the decoder's cache is a state, and attention is one operator.
//! Lengths are numbers, as in [`super::fixed`]; what the decoder is like stands in `qwen2/stateful.rs`.

use super::fastvithd::Attention;
use super::fixed;
pub use super::qwen2::EMBED_TOKENS;
pub use super::qwen2::stateful::{CACHES, UPDATED, decoder};
use crate::config::ModelConfig;
use crate::graph::{Graph, GraphError};

/// `pixel_values [1,3,H,W] -> image_features [1,tokens,hidden]`, attention in one operator.
///
/// # Errors
/// As [`super::build`].
pub fn vision_encoder(config: &ModelConfig) -> Result<Graph, GraphError> {
    fixed::encoder(config, Attention::WholeOfOne)
}
