//! What attentions have in common, whoever's they are.
//!
//! Letters: `B` batch, `N` tokens, `h` heads, `d` their length.

use crate::graph::{Builder, ValueId};

/// `1 / sqrt(d)`
pub(super) fn scale(length: u64) -> f32 {
    (1.0 / (length as f64).sqrt()) as f32
}

/// `softmax(q k^T / sqrt(d)) v`, each `[B,h,N,d]`.
pub(super) fn products(b: &mut Builder, length: u64, [q, k, v]: [ValueId; 3]) -> ValueId {
    let weights = {
        let b = &mut b.full();
        let scale = b.constant_f32(&[], vec![scale(length)]);
        let q = b.mul(q, scale); // [B,h,N,d]
        let k = b.transpose(k, &[0, 1, 3, 2]); // [B,h,d,N]
        let scores = b.matmul(q, k); // [B,h,N,N]
        b.softmax(scores) // [B,h,N,N]
    };
    b.matmul(weights, v) // [B,h,N,d]
}

/// `qkv [B,N,3*h*d]` as queries, keys and values `[B,h,N,d]`.
pub(super) fn parts(b: &mut Builder, qkv: ValueId, heads: i64, length: i64) -> [ValueId; 3] {
    let parts = b.reshape(qkv, &[0, 0, 3, heads, length]); // [B,N,3,h,d]
    let parts = b.transpose(parts, &[2, 0, 3, 1, 4]); // [3,B,h,N,d]
    b.split(parts, 0, [1, 1, 1]).map(|part| b.squeeze(part, &[0])) // [B,h,N,d] each
}

/// `[B,h,N,d] -> [B,N,h*d]`
pub(super) fn joined(b: &mut Builder, mixed: ValueId) -> ValueId {
    let mixed = b.transpose(mixed, &[0, 2, 1, 3]); // [B,N,h,d]
    b.reshape(mixed, &[0, 0, -1]) // [B,N,h*d]
}

/// `[n,k,d]`, or `[n,k*d]` in memory alike, as `[1,k,n,d]`.
pub(super) fn per_head(b: &mut Builder, x: ValueId, [n, k, d]: [i64; 3]) -> ValueId {
    let x = b.reshape(x, &[1, n, k, d]); // [1,n,k,d]
    b.transpose(x, &[0, 2, 1, 3]) // [1,k,n,d]
}
