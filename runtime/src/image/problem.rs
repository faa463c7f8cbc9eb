//! Why an image file is not decoded, before its name is known.

use super::{ImageError, Limits};

/// Why a file is not decoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Problem {
    /// The bytes end before the image.
    Truncated,
    /// Something in the file contradicts itself or its standard: what.
    Damaged(String),
    /// A kind of its format that is not decoded: which, if that is known.
    Unsupported(String),
    /// What decodes its format is not installed: what to do about it.
    NoDecoder(String),
    /// It would take more memory than any image within the limits.
    Memory,
    /// Of a size that the limits refuse.
    Size {
        /// Declared width.
        width: u64,
        /// Declared height.
        height: u64,
    },
}

impl Problem {
    pub(super) fn damaged<T>(what: impl Into<String>) -> Result<T, Problem> {
        Err(Problem::Damaged(what.into()))
    }

    pub(super) fn unsupported<T>(kind: impl Into<String>) -> Result<T, Problem> {
        Err(Problem::Unsupported(kind.into()))
    }

    /// The error of image `name`, which is a `format` file; `expected` are the kinds that are decoded.
    pub(super) fn of(self, name: &str, format: &'static str, expected: &str, limits: &Limits) -> ImageError {
        let name = name.to_owned();
        let max_bytes = limits.max_memory();
        match self {
            Problem::Truncated => ImageError::Damaged {
                name,
                format,
                reason: "it ends too early (is it truncated?)".to_owned(),
            },
            Problem::Damaged(reason) => ImageError::Damaged { name, format, reason },
            Problem::Unsupported(found) => ImageError::UnsupportedKind {
                name,
                found: if found.is_empty() {
                    format!("a {format} of a kind that is not decoded here")
                } else {
                    found
                },
                expected: expected.to_owned(),
            },
            Problem::NoDecoder(reason) => ImageError::NoDecoder { name, format, reason },
            Problem::Memory => ImageError::TooMuchMemory { name, max_bytes },
            Problem::Size { width, height } => match limits.check(&name, width, height) {
                Err(error) => error,
                Ok(()) => ImageError::TooMuchMemory { name, max_bytes },
            },
        }
    }
}

impl From<std::io::Error> for Problem {
    fn from(error: std::io::Error) -> Problem {
        if error.kind() == std::io::ErrorKind::UnexpectedEof {
            Problem::Truncated
        } else {
            Problem::Damaged(in_words(&error.to_string()))
        }
    }
}

impl From<image::ImageError> for Problem {
    fn from(error: image::ImageError) -> Problem {
        use std::error::Error;
        match error {
            image::ImageError::Unsupported(_) => Problem::Unsupported(String::new()),
            image::ImageError::Limits(_) => Problem::Memory,
            image::ImageError::IoError(error) => error.into(),
            // The crate's own sentence says once more that the format could not be decoded.
            error => Problem::Damaged(in_words(&match error.source() {
                Some(source) => source.to_string(),
                None => error.to_string(),
            })),
        }
    }
}

/// What a decoder says, unless that is meant for its authors: names of types and fields.
pub(super) fn in_words(message: &str) -> String {
    let message = message.trim();
    if message.contains("CRC") || message.contains("checksum") {
        return "a checksum is wrong: bytes were changed".to_owned();
    }
    if message.contains("InsufficientInput") {
        return "its compressed data end too early".to_owned();
    }
    let of_types = ["{", "}", "[", "]", "::", "Some(", "None", "Err(", "Ok(", "\""];
    let camel = |name: &[char]| name[0].is_lowercase() && name[1].is_uppercase() && name[2].is_lowercase();
    let letters: Vec<char> = message.chars().collect();
    if message.is_empty()
        || of_types.iter().any(|part| message.contains(part))
        || letters.windows(3).any(camel)
    {
        return "its contents contradict themselves".to_owned();
    }
    message.to_owned()
}

#[cfg(test)]
mod tests {
    use super::in_words;

    #[test]
    fn words_are_for_people() {
        let crc =
            "CRC error: expected 0x1 have 0x2 while decoding ChunkType { type: IDAT, critical: true } chunk.";
        assert_eq!(in_words(crc), "a checksum is wrong: bytes were changed");
        let debug = "Unexpected state Some(Header { bits: 3 })";
        assert_eq!(in_words(debug), "its contents contradict themselves");
        assert_eq!(in_words("corrupt deflate stream"), "corrupt deflate stream");
        assert_eq!(
            in_words("Corrupt deflate stream. InsufficientInput"),
            "its compressed data end too early"
        );
        assert_eq!(in_words("wrong: BadMagic"), "its contents contradict themselves");
    }
}
