#![doc = include_str!("../README.md")]

pub mod backend;
mod engine;
mod error;
pub mod generate;
pub mod image;
mod lazy;
pub mod library;
#[cfg(feature = "cli")]
pub mod manual;
mod opening;
pub mod prompt;
pub mod sample;
mod sequence;
pub mod splice;
pub mod stats;
pub mod text;
pub mod timeline;

pub use backend::{Options, Provider};
pub use engine::{
    Answer, DEFAULT_MAX_TOKENS, DEFAULT_PROMPT, Engine, ImageSize, ProviderReport, Request, at_image_size,
};
pub use error::{BackendError, EngineError};
pub use generate::{Finish, Piece};
pub use models::bundle::{Precision, Target, UnknownWord};
pub use prompt::{Message, Role};
pub use sample::Sampling;
pub use stats::Stats;
pub use timeline::Timeline;
