#![doc = include_str!("../README.md")]

pub mod backend;
mod conversation;
mod engine;
mod error;
mod features;
pub mod generate;
pub mod image;
mod lazy;
pub mod library;
mod model;
mod opening;
mod request;
pub mod sample;
mod sequence;
mod shift;
pub mod splice;
pub mod stats;
pub mod timeline;

pub use ::prompt;
pub use ::prompt::{Message, Role, text};
pub use backend::{KernelReport, Options, Provider};
pub use conversation::{Answer, Conversation};
pub use engine::Engine;
pub use error::{BackendError, EngineError};
pub use generate::{Finish, Piece};
pub use model::{ImageSize, Model, ProviderReport, at_image_size};
pub use models::bundle::{Precision, Target, UnknownWord};
pub use request::{DEFAULT_MAX_TOKENS, DEFAULT_PROMPT, Request};
pub use sample::Sampling;
pub use stats::Stats;
pub use timeline::Timeline;
