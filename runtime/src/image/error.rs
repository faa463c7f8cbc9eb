//! What can be wrong with an image, and how it is told.

use thiserror::Error;

/// An image that cannot be decoded or prepared. Every variant names the image (`name`: a path, or `stdin`).
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ImageError {
    /// The file cannot be opened or read.
    #[error("cannot read image `{name}`: {source}")]
    Read {
        /// The image.
        name: String,
        /// Why.
        source: std::io::Error,
    },
    /// No file, but the address of one.
    #[error("image `{name}` is an address, expected a file: images are not fetched, download it first")]
    Address {
        /// The address.
        name: String,
    },
    /// Nothing to decode.
    #[error("image `{name}` is empty (0 bytes)")]
    Empty {
        /// The image.
        name: String,
    },
    /// The bytes are of no format that is decoded here.
    #[error("image `{name}` is {found}, expected one of {}{}", super::decode::FORMATS, converted(.convert))]
    UnknownFormat {
        /// The image.
        name: String,
        /// What its first bytes look like.
        found: String,
        /// A command that makes an image of it that is decoded, where one is known.
        convert: Option<&'static str>,
    },
    /// The format is known, this kind of it is not decoded.
    #[error("image `{name}` is {found}, expected {expected}")]
    UnsupportedKind {
        /// The image.
        name: String,
        /// The kind found, with its format.
        found: String,
        /// Which kinds are decoded.
        expected: String,
    },
    /// The format is decoded by a library that is not installed, is too old, or lacks a part.
    #[error("image `{name}` is {}, which is not decoded here: {reason}", super::detect::with_article(.format))]
    NoDecoder {
        /// The image.
        name: String,
        /// `HEIC` or `AVIF`.
        format: &'static str,
        /// What is missing, how to install it, and the command that converts the image.
        reason: String,
    },
    /// The header declares more pixels than the limit. Nothing was decoded.
    #[error("image `{name}` is {width} x {height} pixels, expected at most {max_pixels} pixels")]
    TooManyPixels {
        /// The image.
        name: String,
        /// Declared width.
        width: u64,
        /// Declared height.
        height: u64,
        /// The limit ([`super::Limits::max_pixels`]).
        max_pixels: u64,
    },
    /// An edge is longer than [`super::decode::MAX_EDGE`]. Nothing was decoded.
    #[error(
        "image `{name}` is {width} x {height} pixels, expected edges of at most {} pixels",
        super::decode::MAX_EDGE
    )]
    EdgeTooLong {
        /// The image.
        name: String,
        /// Declared width.
        width: u64,
        /// Declared height.
        height: u64,
    },
    /// The file is longer than any image within the limits.
    #[error("image `{name}` has over {max_bytes} bytes, expected at most that many")]
    TooManyBytes {
        /// The image.
        name: String,
        /// The limit, which follows from [`super::Limits::max_pixels`].
        max_bytes: u64,
    },
    /// Decoding would take more memory than any image within the limits.
    #[error("image `{name}` takes over {max_bytes} bytes of memory to decode, expected at most that many")]
    TooMuchMemory {
        /// The image.
        name: String,
        /// The limit, which follows from [`super::Limits::max_pixels`].
        max_bytes: u64,
    },
    /// The header declares an image without pixels.
    #[error("image `{name}` is {width} x {height} pixels, expected at least 1 x 1")]
    NoPixels {
        /// The image.
        name: String,
        /// Declared width.
        width: u64,
        /// Declared height.
        height: u64,
    },
    /// The file is damaged or truncated.
    #[error("image `{name}` is a damaged {format} file: {reason}")]
    Damaged {
        /// The image.
        name: String,
        /// `PNG`, `JPEG`, ...
        format: &'static str,
        /// What the decoder says.
        reason: String,
    },
    /// The bundle's image spec cannot be followed. All its faults.
    #[error("the bundle's image spec is wrong: {}", .problems.join("; "))]
    Spec {
        /// One sentence a fault.
        problems: Vec<String>,
    },
}

/// The end of a sentence: how to convert an image.
fn converted(command: &Option<&'static str>) -> String {
    command.map_or_else(String::new, |command| format!("; convert it: `{command}`"))
}
