//! Fuzz targets: each gives what comes from elsewhere to the function that a program gives it to, and says
//! what must hold beside that nothing crashes.
//!
//! A target is a module here with a function `run`, and a file in `fuzz_targets/` that calls it. A bug is a
//! panic, an error of memory or arithmetic, an input that takes too long or too much, or a property that does
//! not hold.

pub mod adapter;
pub mod bundle;
pub mod config;
pub mod constraint;
mod edit;
mod folder;
pub mod frames;
pub mod fused;
pub mod heif;
pub mod image;
pub mod onnx;
mod panics;
pub mod safetensors;
#[expect(dead_code, reason = "what tests of the reader need")]
#[path = "../../../models/src/checkpoint/torch/write.rs"]
mod saved;
pub mod shards;
pub mod small_files;
pub mod stream;
pub mod template;
pub mod tokenizer;
mod tokens;
pub mod torch;
mod words;

pub use panics::begin;
