#![doc = include_str!("../README.md")]
#![expect(
    unsafe_code,
    reason = "vector instructions, and tasks that write parts of one slice"
)]
#![expect(clippy::excessive_precision, reason = "coefficients as published")]

mod coming;
pub mod decoder_attention;
pub mod depthwise;
pub mod feed_forward;
mod isa;
pub mod layout;
pub mod linear;
pub mod logits;
mod math;
pub mod matrix;
pub mod norm;
pub mod parallel;
pub mod planes;
pub mod pool;
#[cfg(test)]
mod pool_tests;
mod quantise;
pub mod resample;
pub mod self_attention;
mod sizes;
pub mod stem;
mod sync;
#[cfg(test)]
mod testing;
mod unroll;

pub use isa::{Isa, UnknownIsa};

const _: () = assert!(
    usize::BITS == 64,
    "products of sizes are bounded so that 64 bits hold them"
);
