//! How does an image file become 8-bit RGB?

use super::{ImageError, Picture};
use std::io::Read;
use std::path::Path;

/// The formats, for messages.
pub const FORMATS: &str = "PNG, JPEG, WebP, GIF, BMP, TIFF";

/// Longest edge in pixels, whatever the limits say.
pub const MAX_EDGE: u32 = 1 << 20;

/// What a file may ask for before it is believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Largest width times height, as the header declares it.
    pub max_pixels: u64,
}

impl Default for Limits {
    /// 100 megapixels.
    fn default() -> Limits {
        Limits {
            max_pixels: 100_000_000,
        }
    }
}

/// Decodes the file at `path`.
pub fn open(path: &Path, limits: &Limits) -> Result<Picture, ImageError> {
    let name = path.display().to_string();
    let file = std::fs::File::open(path).map_err(|source| ImageError::Read {
        name: name.clone(),
        source,
    })?;
    read(file, &name, limits)
}

/// Decodes what `reader` holds, to its end; `name` stands in errors.
pub fn read(reader: impl Read, name: &str, limits: &Limits) -> Result<Picture, ImageError> {
    let _ = (reader, limits);
    Err(ImageError::Empty {
        name: name.to_owned(),
    })
}

/// Decodes the file `bytes`; `name` stands in errors.
pub fn decode(bytes: &[u8], name: &str, limits: &Limits) -> Result<Picture, ImageError> {
    let _ = (bytes, limits);
    Err(ImageError::Empty {
        name: name.to_owned(),
    })
}
