//! What clients are told about the model.

use models::bundle::FILE_NAME;
use models::plain::hex;
use runtime::{EngineError, Model};
use sha2::{Digest as _, Sha256};
use std::path::Path;
use std::time::SystemTime;

/// What clients are told about the model.
#[derive(Debug, Clone)]
pub struct About {
    /// The name that they ask for.
    pub name: String,
    /// Of the networks together.
    pub parameters: u64,
    /// The precision of the weights: `fp16`.
    pub precision: String,
    /// Longest sequence.
    pub context: usize,
    /// Length of an embedding.
    pub width: usize,
    /// Bytes of the bundle.
    pub bytes: u64,
    /// SHA-256 of the bundle's contract, in hex.
    pub digest: String,
    /// When the bundle was written.
    pub modified: SystemTime,
    /// The licence of the weights, where it is known.
    pub license: Option<String>,
}

impl About {
    /// Of a model that was opened from `directory`. Waits until it is open.
    ///
    /// # Errors
    /// What cannot be opened.
    pub fn of(model: &Model, directory: &Path, name: String) -> Result<About, EngineError> {
        let bundle = model.bundle();
        let contract = directory.join(FILE_NAME);
        let modified = std::fs::metadata(&contract).and_then(|found| found.modified());
        let parameters = &bundle.model.parameters;
        Ok(About {
            name,
            parameters: parameters.vision + parameters.projector + parameters.embed + parameters.decoder,
            precision: model.provider()?.precision.name().to_owned(),
            context: bundle.kv.max_context,
            width: bundle.prompt.hidden_size,
            bytes: bundle.files.iter().map(|file| file.bytes).sum(),
            digest: hex(&Sha256::digest(bundle.to_json().as_bytes())),
            modified: modified.unwrap_or(SystemTime::UNIX_EPOCH),
            license: bundle.model.license.clone(),
        })
    }

    /// A name for the bundle in `directory`: that of the directory, without what would have to be escaped in an address.
    pub fn name_of(directory: &Path) -> String {
        let directory = directory.canonicalize().unwrap_or_else(|_| directory.to_owned());
        let name = directory.file_name().unwrap_or_default().to_string_lossy();
        let plain = |letter: char| letter.is_ascii_alphanumeric() || matches!(letter, '.' | '_' | '-');
        let name: String = name
            .chars()
            .map(|letter| if plain(letter) { letter } else { '-' })
            .collect();
        if name.chars().any(|letter| letter.is_ascii_alphanumeric()) {
            name
        } else {
            "fastvlm".to_owned()
        }
    }
}
