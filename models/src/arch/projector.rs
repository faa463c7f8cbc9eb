//! The projector: from the encoder's tokens to the decoder's width.
//!
//! transformers `FastVlmMultiModalProjector`, Apple `mlp2x_gelu`: linear, exact GELU, linear.

use super::products::{FeedForward, Names, Stored};
use crate::config::ProjectorConfig;
use crate::fused::Norm;
use crate::graph::{Builder, ValueId, signed};

const SCOPE: &str = "multi_modal_projector";

/// `tokens [B,N,C] -> features [B,N,D]`
pub(super) fn projector(b: &mut Builder, config: &ProjectorConfig, tokens: ValueId) -> ValueId {
    let b = &mut b.scope(SCOPE);
    let hidden = b.linear("linear_1", tokens, config.input, config.hidden, config.bias); // [B,N,D]
    let active = b.gelu(hidden); // [B,N,D]
    b.linear("linear_2", active, config.hidden, config.hidden, config.bias) // [B,N,D]
}

/// The same for one image, in rank 2: `tokens [1,N,C] -> features [1,N,D]`.
pub(super) fn projector_of_one(b: &mut Builder, config: &ProjectorConfig, tokens: ValueId) -> ValueId {
    let b = &mut b.scope(SCOPE);
    let tokens = b.reshape(tokens, &[-1, signed(config.input)]); // [N,C]
    let hidden = b.dense("linear_1", tokens, config.input, config.hidden, config.bias); // [N,D]
    let active = b.gelu(hidden); // [N,D]
    let features = b.dense("linear_2", active, config.hidden, config.hidden, config.bias); // [N,D]
    b.reshape(features, &[1, -1, signed(config.hidden)]) // [1,N,D]
}

/// The same in one fused operator: `tokens [B,N,C] -> features [B,N,D]`.
pub(super) fn projector_fused(
    b: &mut Builder,
    config: &ProjectorConfig,
    encoding: Stored<'_>,
    tokens: ValueId,
) -> ValueId {
    let b = &mut b.scope(SCOPE);
    let feed_forward = FeedForward {
        inputs: config.input,
        hidden: config.hidden,
        outputs: config.hidden,
        norm: Norm::None,
        encoding,
        bias: config.bias,
        names: Names {
            gate: None,
            up: "linear_1",
            down: "linear_2",
        },
        norm_name: None,
        gain: None,
    };
    feed_forward.add(b, tokens, None)
}
