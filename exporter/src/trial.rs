//! A prompt made of what will be written, before it is: with the code that a runtime will use.

use crate::error::ExportError;
use models::bundle::Content;
use models::checkpoint::{Assets, Origin, TEXT_TEMPLATE};
use prompt::text::Tokenizer;
use prompt::{Message, Prompter};
use std::path::Path;

/// Asks a question of a checkpoint's files, with an image and without; what a user should know of the template is a warning.
///
/// # Errors
/// A file that no runtime could use: a broken template or tokenizer, special tokens that do not fit together.
pub(crate) fn settle(directory: &Path, assets: &mut Assets) -> Result<(), ExportError> {
    match assets.prompt.content {
        Content::Parts => settle_content(directory, assets),
        // Of Apple's layout.
        Content::Text => {
            let prompter = prompter(directory, assets, None)?;
            let own = assets
                .files
                .iter()
                .find(|file| file.path == assets.prompt.chat_template);
            if own.is_some_and(|own| own.contents == TEXT_TEMPLATE.as_bytes()) {
                return Ok(());
            }
            // One that the tokenizer has no tokens for makes other prompts, too.
            let apples = self::prompter(directory, assets, Some(TEXT_TEMPLATE));
            let question = [Message::user([], "What is it?")];
            let same = apples.and_then(|apples| Ok(apples.build(&question)? == prompter.build(&question)?));
            if !same.unwrap_or(false) {
                assets.warnings.push(
                    "the chat template in the files makes other prompts than the conversation `qwen_2`, which Apple's code \
                     takes whatever the files have: the bundle has that of the files"
                        .to_owned(),
                );
            }
            Ok(())
        }
    }
}

/// What the chat template takes, found by asking: parts, or a text with the image's place in it.
///
/// # Errors
/// As [`settle`].
pub(crate) fn settle_content(directory: &Path, assets: &mut Assets) -> Result<(), ExportError> {
    let declared = assets.prompt.content;
    assets.prompt.content = Content::Parts;
    if prompter(directory, assets, None).is_ok() {
        return Ok(());
    }
    assets.prompt.content = Content::Text;
    let text = prompter(directory, assets, None);
    if text.is_err() && declared == Content::Parts {
        assets.prompt.content = Content::Parts;
        return prompter(directory, assets, None).map(drop);
    }
    text.map(drop)
}

/// Opens tokenizer and template, that of the files or another, and asks a question, with an image and without.
fn prompter(directory: &Path, assets: &Assets, other: Option<&str>) -> Result<Prompter, ExportError> {
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
    let own = String::from_utf8_lossy(&template.contents);
    let text = other.unwrap_or(&own);
    let prompter = Prompter::new(tokenizer, (&name, text), spec, assets.image.tokens)?;
    prompter.try_out()?;
    Ok(prompter)
}
