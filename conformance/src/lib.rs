#![doc = include_str!("../README.md")]

pub mod array;
pub mod bench;
pub mod compare;
pub mod golden;
pub mod interpreter;
pub mod loaded;
pub mod quality;
pub mod report;
pub mod safetensors;
pub mod setup;
pub mod status;
pub mod suite;
pub mod synth;
pub mod table;
pub mod tiny;
