//! What does a processor do fastest? The fused operators of target `cpu`, computed by our own code.
//!
//! A bundle's `cpu` graphs call functions of the domain `fvlm`; each has a body of standard operators, which says what
//! it computes and which any ONNX Runtime can run. Where this crate opens the session, the kernels here are registered
//! under the same names and are run instead. All take and return float32; what happens inside (bytes, blocks of
//! nibbles, halves) is the weights' form.
//!
//! Activations stay `[rows, channels]`, channels last, so that nothing is ever transposed between two operators.

#![allow(unsafe_code)] // Vector instructions, and tasks that write parts of one slice.
#![allow(clippy::missing_safety_doc)] // What `Lanes` asks for is said once, on the trait.
#![allow(clippy::excessive_precision)] // Coefficients as published.

pub mod decoder_attention;
pub mod depthwise;
pub mod feed_forward;
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
pub mod simd;
pub mod stem;
#[cfg(test)]
mod testing;
