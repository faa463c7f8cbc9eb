//! FastViTHD's attention for one image, for Core ML: no value has a rank above 4, and a linear layer is one
//! `Gemm`.
//!
//! Letters: `N` tokens of an image, `C` channels, `h` heads, `d` their length.

use crate::arch::attention;
use crate::config::VisionConfig;
use crate::graph::{Builder, ValueId, signed};

/// Multi-head self-attention, qkv without bias, in one operator if `whole`: `[1,N,C] -> [1,N,C]`. The scope
/// is the block's.
pub(super) fn attention(
    b: &mut Builder,
    config: &VisionConfig,
    width: u64,
    tokens: u64,
    whole: bool,
    x: ValueId,
) -> ValueId {
    let length = config.head_dim;
    let heads = width / length.max(1);
    let (n, h, d) = (signed(tokens), signed(heads), signed(length));
    let b = &mut b.scope("token_mixer");
    let x = b.reshape(x, &[n, signed(width)]); // [N,C]
    let qkv = b.dense("qkv", x, width, 3 * width, false); // [N,3C]
    let parts = b.split(qkv, 1, [width, width, width]); // [N,C] each
    let parts = parts.map(|part| attention::per_head(b, part, [n, h, d])); // [1,h,N,d] each
    let mixed = if whole {
        b.full().attention(parts, None) // [1,h,N,d]
    } else {
        attention::products(b, length, parts) // [1,h,N,d]
    };
    let mixed = b.transpose(mixed, &[0, 2, 1, 3]); // [1,N,h,d]
    let mixed = b.reshape(mixed, &[n, signed(width)]); // [N,C]
    let mixed = b.dense("proj", mixed, width, width, true); // [N,C]
    b.reshape(mixed, &[1, n, signed(width)]) // [1,N,C]
}
