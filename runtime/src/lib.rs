//! runtime

pub mod backend;
mod error;
pub mod image;
#[cfg(feature = "ort")]
pub mod library;
pub mod prompt;
pub mod sample;
pub mod splice;
pub mod text;

pub use backend::{Options, Provider};
pub use error::{BackendError, EngineError};
