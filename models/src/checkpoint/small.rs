//! How is a file read that is small if it is what it is called? Never more than a limit, and nothing but a
//! file: a pipe would wait for whoever writes it.

use crate::checkpoint::error::CheckpointError;
use serde_json::Value;
use std::io;
use std::path::Path;

/// Longest file that is read beside weights and tokenizers: an index of shards, in bytes.
pub const MAX_INDEX: u64 = 100_000_000;

/// All of a file of at most `most` bytes.
///
/// # Errors
/// A file that is not there, is none, is longer, or cannot be read.
pub(crate) fn bytes(path: &Path, most: u64) -> Result<Vec<u8>, CheckpointError> {
    let io = |source| CheckpointError::Io {
        path: path.to_owned(),
        source,
    };
    let found = std::fs::metadata(path).map_err(io)?;
    if !found.is_file() {
        return Err(CheckpointError::malformed(path, "is not a regular file"));
    }
    let length = found.len();
    if length > most {
        let problem = format!("is {length} bytes long, at most {most} are read");
        return Err(CheckpointError::malformed(path, problem));
    }
    crate::regular::bytes(path, most).map_err(io)
}

/// All of a file of text, without a byte order mark: editors of some systems write one.
///
/// # Errors
/// As [`bytes`], and bytes that are not UTF-8.
pub(crate) fn text(path: &Path, most: u64) -> Result<String, CheckpointError> {
    let text = String::from_utf8(bytes(path, most)?).map_err(|error| CheckpointError::Io {
        path: path.to_owned(),
        source: io::Error::new(io::ErrorKind::InvalidData, error),
    })?;
    Ok(match crate::regular::without_mark(&text) {
        rest if rest.len() < text.len() => rest.to_owned(),
        _ => text,
    })
}

/// As [`text`]; `None` where there is no such file.
///
/// # Errors
/// As [`text`].
pub(crate) fn text_if_there(path: &Path, most: u64) -> Result<Option<String>, CheckpointError> {
    match text(path, most) {
        Err(CheckpointError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
        found => found.map(Some),
    }
}

/// A JSON object; `None` where there is no such file.
///
/// # Errors
/// As [`text`], and what is not JSON or not an object.
pub(crate) fn object_if_there(path: &Path, most: u64) -> Result<Option<Value>, CheckpointError> {
    let Some(text) = text_if_there(path, most)? else {
        return Ok(None);
    };
    object_of(&text, path).map(Some)
}

/// The JSON object that a text is; `path` is for messages.
///
/// # Errors
/// What is not JSON or not an object.
pub(crate) fn object_of(text: &str, path: &Path) -> Result<Value, CheckpointError> {
    match serde_json::from_str(text) {
        Ok(value @ Value::Object(_)) => Ok(value),
        Ok(_) => Err(CheckpointError::malformed(path, "is not a JSON object")),
        Err(error) => Err(CheckpointError::malformed(path, error.to_string())),
    }
}
