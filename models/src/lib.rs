#![doc = include_str!("../README.md")]
#![deny(missing_docs)]

#[cfg(feature = "describe")]
pub mod arch;
pub mod bundle;
#[cfg(feature = "describe")]
pub mod checkpoint;
#[cfg(feature = "describe")]
pub mod config;
pub mod dtype;
pub mod fused;
#[cfg(feature = "describe")]
pub mod graph;
pub mod plain;
pub mod regular;
#[cfg(feature = "describe")]
pub mod weights;
