//! models
pub mod bundle;
pub mod dtype;
pub mod error;
#[cfg(feature = "describe")]
pub mod graph;
#[cfg(feature = "describe")]
pub mod weights;
