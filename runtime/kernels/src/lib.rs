#![doc = include_str!("../README.md")]
#![allow(unsafe_code)] // Vector instructions, and tasks that write parts of one slice.
#![allow(clippy::missing_safety_doc)] // What `Lanes` asks for is said once, on the trait.
#![allow(clippy::excessive_precision)] // Coefficients as published.

pub mod decoder_attention;
pub mod depthwise;
pub mod feed_forward;
pub mod isa;
pub mod linear;
pub mod logits;
pub mod math;
pub mod matrix;
pub mod norm;
pub mod parallel;
pub mod planes;
pub mod pool;
mod quantise;
pub mod self_attention;
pub mod stem;
#[cfg(test)]
mod testing;
