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

/// A decoded image: 8-bit RGB, upright, and what is transparent of it. Clones share its pixels.
#[derive(Clone)]
pub struct Picture {
    width: u32,
    height: u32,
    pixels: Arc<dyn AsRef<[u8]> + Send + Sync>,
    /// `[height, width]`, 255 where nothing shines through.
    alpha: Option<Arc<[u8]>>,
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
            alpha: None,
        })
    }

    /// The same with an alpha channel `[height, width]`: 0 is transparent, 255 is not. One of another length changes
    /// nothing, and neither does one that is 255 everywhere.
    #[must_use]
    pub fn with_alpha(self, alpha: &[u8]) -> Picture {
        let fits = alpha.len() * 3 == self.pixels().len();
        let shows = alpha.iter().any(|&alpha| alpha < 255);
        Picture {
            alpha: (fits && shows).then(|| alpha.into()),
            ..self
        }
    }

    /// The image on white: what transformers' `convert_to_rgb` makes of it, to the bit.
    pub fn on_white(&self) -> Picture {
        let Some(alpha) = &self.alpha else {
            return self.clone();
        };
        let pixels = self.pixels().chunks_exact(3).zip(&**alpha);
        let pixels =
            pixels.flat_map(|(pixel, &alpha)| [0, 1, 2].map(|channel| over_white(pixel[channel], alpha)));
        Picture {
            width: self.width,
            height: self.height,
            pixels: Arc::new(pixels.collect::<Vec<u8>>()),
            alpha: None,
        }
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

/// Pillow's `alpha_composite` over white: `(value * alpha + 255 * (255 - alpha)) / 255`, rounded.
fn over_white(value: u8, alpha: u8) -> u8 {
    let (value, alpha) = (u32::from(value), u32::from(alpha));
    let sum = value * alpha + 255 * (255 - alpha) + 128;
    u8::try_from(((sum >> 8) + sum) >> 8).unwrap_or(u8::MAX)
}

impl PartialEq for Picture {
    fn eq(&self, other: &Picture) -> bool {
        (self.width, self.height, self.pixels(), &self.alpha)
            == (other.width, other.height, other.pixels(), &other.alpha)
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Pillow 13.
    #[test]
    fn transparency_lies_on_white() {
        for (value, alpha, expected) in [
            (0, 0, 255),
            (0, 255, 0),
            (255, 0, 255),
            (200, 255, 200),
            (10, 0, 255),
            (0, 1, 254),
            (255, 1, 255),
            (0, 254, 1),
            (128, 128, 191),
            (1, 127, 128),
            (68, 32, 232),
            (130, 60, 226),
            (253, 230, 253),
            (241, 194, 244),
            (107, 48, 227),
            (249, 14, 255),
            (199, 221, 206),
            (1, 228, 28),
            (136, 117, 200),
            (52, 162, 126),
        ] {
            assert_eq!(over_white(value, alpha), expected, "{value} {alpha}");
        }
        let picture = Picture::new(2, 1, vec![1, 2, 3, 4, 5, 6]).unwrap();
        assert_eq!(picture.clone().with_alpha(&[255, 255]), picture);
        assert_eq!(picture.clone().with_alpha(&[0]), picture);
        let veiled = picture.clone().with_alpha(&[255, 0]);
        assert_ne!(veiled, picture);
        assert_eq!(veiled.pixels(), picture.pixels());
        let white = Picture::new(2, 1, vec![1, 2, 3, 255, 255, 255]).unwrap();
        assert_eq!(veiled.on_white(), white);
        assert_eq!(picture.on_white(), picture);
    }
}
