//! A prompt made of what will be written, before it is: with the code that a runtime will use.

use crate::error::ExportError;
use models::checkpoint::{Assets, Origin};
use prompt::Prompter;
use prompt::text::Tokenizer;
use std::path::Path;

/// Opens tokenizer and template and asks a question, with an image and without.
///
/// # Errors
/// A file that no runtime could use: a broken template or tokenizer, special tokens that do not fit together.
pub(crate) fn prompt(directory: &Path, assets: &Assets) -> Result<(), ExportError> {
    let spec = &assets.prompt;
    let file = |path: &str| assets.files.iter().find(|file| file.path == path);
    let absent = |path: &str| ExportError::Internal {
        what: format!("`{path}` is named in the contract and not written"),
    };
    let tokenizer = file(&spec.tokenizer).ok_or_else(|| absent(&spec.tokenizer))?;
    let template = file(&spec.chat_template).ok_or_else(|| absent(&spec.chat_template))?;
    let name = match &template.origin {
        Origin::Derived(from) => from.clone(),
        Origin::Kept | Origin::Adapted(_) => directory.join(&template.path).display().to_string(),
    };
    let tokenizer = Tokenizer::read(&directory.join(&tokenizer.path), &tokenizer.contents)?;
    let text = String::from_utf8_lossy(&template.contents);
    Prompter::new(tokenizer, (&name, &text), spec, assets.image.tokens)?.try_out()?;
    Ok(())
}
