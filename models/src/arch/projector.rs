//! The projector: from the encoder's tokens to the decoder's width.
//!
//! transformers `FastVlmMultiModalProjector`, Apple `mlp2x_gelu`: linear, exact GELU, linear.

use crate::config::ProjectorConfig;
use crate::graph::{Builder, ValueId};

/// `tokens [B,N,C] -> features [B,N,D]`
pub(super) fn projector(b: &mut Builder, config: &ProjectorConfig, tokens: ValueId) -> ValueId {
    let b = &mut b.scope("multi_modal_projector");
    let hidden = b.linear("linear_1", tokens, config.input, config.hidden, config.bias); // [B,N,D]
    let active = b.gelu(hidden); // [B,N,D]
    b.linear("linear_2", active, config.hidden, config.hidden, config.bias) // [B,N,D]
}

/// The same for one image, in rank 2: `tokens [1,N,C] -> features [1,N,D]`.
pub(super) fn projector_of_one(b: &mut Builder, config: &ProjectorConfig, tokens: ValueId) -> ValueId {
    let b = &mut b.scope("multi_modal_projector");
    let signed = |length: u64| i64::try_from(length).unwrap_or(i64::MAX);
    let tokens = b.reshape(tokens, &[-1, signed(config.input)]); // [N,C]
    let hidden = b.dense("linear_1", tokens, config.input, config.hidden, config.bias); // [N,D]
    let active = b.gelu(hidden); // [N,D]
    let features = b.dense("linear_2", active, config.hidden, config.hidden, config.bias); // [N,D]
    b.reshape(features, &[1, -1, signed(config.hidden)]) // [1,N,D]
}
