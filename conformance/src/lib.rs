#![doc = include_str!("../README.md")]

pub mod case;
pub mod compare;
pub mod golden;
pub mod interpreter;
pub mod known;
pub mod model;
pub mod report;
pub mod safetensors;
pub mod status;
pub mod subject;
pub mod suite;
pub mod synth;
pub mod tensor;
pub mod tiny;
pub mod workspace;
