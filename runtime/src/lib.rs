//! runtime

pub mod image;
pub mod prompt;
pub mod sample;
pub mod splice;
pub mod text;
