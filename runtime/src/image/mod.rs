//! How does an image file become `pixel_values`?
//!
//! [`decode()`] turns a file into a [`Picture`] (8-bit RGB), [`preprocess()`] turns that into [`PixelValues`] as the
//! bundle's [`ImageSpec`](models::bundle::ImageSpec) says. Both follow Pillow and transformers to the bit where they
//! can.

mod bmp;
pub mod decode;
mod detect;
mod error;
pub mod frames;
mod gif;
pub mod heif;
mod jpeg;
mod orientation;
mod png;
pub mod preprocess;
mod problem;
pub mod resize;
mod threads;
mod tiff;
mod webp;

pub use ::prompt::ImageId;
pub use decode::{Limits, decode, open, read};
pub use error::ImageError;
pub use preprocess::preprocess;

use ndarray::Array4;
use std::sync::Arc;

/// A decoded image: 8-bit RGB, upright. Clones share its pixels.
#[derive(Clone)]
pub struct Picture {
    width: u32,
    height: u32,
    pixels: Arc<dyn AsRef<[u8]> + Send + Sync>,
}

impl Picture {
    /// An image of `pixels`: rows from the top, three bytes (red, green, blue) a pixel. `None` if the image has no
    /// pixels or `pixels` has another length than `width * height * 3`.
    pub fn new(width: u32, height: u32, pixels: Vec<u8>) -> Option<Picture> {
        Picture::shared(width, height, Arc::new(pixels))
    }

    /// As [`Picture::new`], of bytes that somebody else holds too: they are not copied, and always the same.
    pub fn shared(width: u32, height: u32, pixels: Arc<dyn AsRef<[u8]> + Send + Sync>) -> Option<Picture> {
        let expected = u64::from(width) * u64::from(height) * 3;
        let found = u64::try_from((*pixels).as_ref().len());
        (expected > 0 && found == Ok(expected)).then_some(Picture {
            width,
            height,
            pixels,
        })
    }

    /// Width in pixels, at least 1.
    pub fn width(&self) -> u32 {
        self.width
    }

    /// Height in pixels, at least 1.
    pub fn height(&self) -> u32 {
        self.height
    }

    /// `[height, width, 3]`, rows from the top.
    pub fn pixels(&self) -> &[u8] {
        (*self.pixels).as_ref()
    }
}

impl PartialEq for Picture {
    fn eq(&self, other: &Picture) -> bool {
        (self.width, self.height, self.pixels()) == (other.width, other.height, other.pixels())
    }
}

impl Eq for Picture {}

impl std::fmt::Debug for Picture {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Picture({} x {})", self.width, self.height)
    }
}

/// An image as the vision encoder takes it.
#[derive(Debug, Clone, PartialEq)]
pub struct PixelValues {
    /// `[1, 3, height, width]`: all of red, then green, then blue; rows without gaps.
    pub values: Array4<f32>,
    /// Hash of the bytes behind `values`.
    pub id: ImageId,
}
