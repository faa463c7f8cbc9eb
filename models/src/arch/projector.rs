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
