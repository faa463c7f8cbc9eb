//! The demo model, inside the program: an installed `fvlm-export` works anywhere.

use crate::error::ExportError;
use std::path::Path;

macro_rules! files {
    ($($name:literal),* $(,)?) => {
        &[$(($name, include_bytes!(concat!("../../models/demo/checkpoint/", $name)).as_slice())),*]
    };
}

/// File names and contents of the checkpoint: transformers layout, train-time branches kept, float16.
/// `models/demo/README.md` says how it was trained.
pub const FILES: &[(&str, &[u8])] = files![
    "LICENSE",
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
];

/// Writes the checkpoint into an existing directory.
///
/// # Errors
/// A file that cannot be written.
pub fn extract(directory: &Path) -> Result<(), ExportError> {
    for (name, contents) in FILES {
        let path = directory.join(name);
        std::fs::write(&path, contents).map_err(ExportError::io("write", &path))?;
    }
    Ok(())
}
