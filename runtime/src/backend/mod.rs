//! Backends: the roles that a model is made of, and the engines that can play them. This file is the map.
//!
//! `provider` names the engines, `options` says how they are opened, `roles` what they must be able to do,
//! `form` what of a bundle they run, and `choose` takes one. An engine is a file (`ort`, `tract`, `rten`, `native`) over what engines share:
//! `session`, `kv`, `fixed`, `stateless`, `adopted`, `parts`, `fused`, `node`, `isa`, `cores`. "Compiled in" and "usable here" are
//! two things: [`Backend::check`] tells the second.

pub mod adopted;
mod choose;
mod cores;
pub mod fixed;
mod form;
#[cfg(any(feature = "ort", feature = "tract"))]
mod fused;
pub(crate) mod isa;
pub mod kv;
#[cfg(feature = "coreml-native")]
mod native;
#[cfg(any(feature = "ort", feature = "tract"))]
#[doc(hidden)]
pub mod node;
mod options;
#[cfg(feature = "ort")]
mod ort;
#[cfg(any(feature = "ort", feature = "rten", feature = "tract"))]
mod parts;
pub(crate) mod provider;
mod roles;
#[cfg(feature = "rten")]
mod rten;
pub mod session;
pub mod stateless;
#[cfg(feature = "tract")]
mod tract;

#[cfg(any(feature = "ort", feature = "rten", feature = "tract"))]
use ::prompt::catch::catch;
pub use ::prompt::catch::silence_caught_panics;
pub use choose::{Choice, backends, choose, open_session};
pub(crate) use choose::{check_forms, choose_for, form};
pub use form::Form;
pub use isa::KernelReport;
pub use options::{CoreMlFormat, CoreMlOptions, CoreMlUnits, Options};
#[cfg(feature = "ort")]
pub use ort::watch_thread;
pub use provider::Provider;
pub use roles::{Backend, Decoder, DecoderState, Model, TokenEmbedder, VisionEncoder};
