#![doc = include_str!("../README.md")]

pub mod backend;
mod choose;
#[cfg(feature = "cli")]
pub mod cli;
#[cfg(feature = "cli")]
pub mod command;
pub mod constrain;
mod conversation;
mod engine;
mod error;
mod features;
#[cfg(test)]
mod features_tests;
pub mod generate;
pub mod image;
mod lazy;
#[cfg(test)]
mod lazy_tests;
pub mod library;
mod logprobs;
mod model;
mod opening;
mod replaceable;
mod request;
pub mod sample;
mod sequence;
mod shift;
pub mod splice;
pub mod stats;
mod sync;
pub mod timeline;

pub use ::prompt;
pub use ::prompt::{Message, Role, text};
pub use backend::{KernelReport, Options, Provider};
pub use choose::{Choice, Choices, ChoicesError, MAX_CHOICES};
pub use constrain::{Constraint, ConstraintError};
pub use conversation::{Answer, Conversation, Progress, Reading};
pub use engine::Engine;
pub use error::{BackendError, EngineError};
pub use generate::{Finish, Piece};
pub use logprobs::{LogprobRecord, TokenLogprob};
pub use model::{ImageSize, Model, ProviderReport, at_image_size};
pub use models::bundle::{Precision, Target, UnknownWord};
pub use request::{DEFAULT_MAX_TOKENS, DEFAULT_PROMPT, MAX_LOGPROBS, MAX_TOKENS, Request};
pub use sample::Sampling;
pub use stats::Stats;
pub use timeline::Timeline;
