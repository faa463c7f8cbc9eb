//! How does an image file become 8-bit RGB?
//!
//! The result is what Pillow's `ImageOps.exif_transpose(Image.open(file)).convert("RGB")` gives, to the bit,
//! in every format, or an error. Measured against Pillow 13 (libjpeg-turbo 3.2, libwebp 1.6, libtiff 4.7) on
//! 2653 generated files (`scripts/check_images`):
//! - Alpha is beside it, not blended: transparent pixels show the colour that they store. What becomes of it, a bundle
//!   says ([`Alpha`](models::bundle::Alpha)).
//! - The orientation of EXIF and TIFF is applied, or else that of XMP, read as Pillow reads them: whatever the type of the
//!   tag, wherever PNG has it, and in WebP only if the header announces it.
//! - Of animations, the first frame is decoded. What a GIF's first frame leaves free has its transparent
//!   index, or index 0; in WebP it is black.
//! - 16-bit channels keep their upper byte, as Pillow's do in RGB and in gray with alpha. Plain 16-bit gray
//!   it clips at 255, which turns nearly every such image white, and in TIFF it reads 16-bit planes and
//!   inverted 16-bit gray wrongly: here they keep their upper byte too.
//! - CMYK and YCCK JPEGs are inverted as Adobe writes them, then converted without colour management.
//! - Colour profiles and gamma are not looked at.
//!
//! HEIC and AVIF are libheif's ([`heif`](super::heif)), within 2 levels of what its `heif-convert` makes of them.
//!
//! Nothing is believed before it is bounded: sizes are checked before anything is allocated for them.

use super::detect::{Format, HEAD, detect};
use super::jpeg::Jpeg;
use super::problem::{Problem, in_words};
use super::webp::{self, Frame};
use super::{ImageError, Picture, png};
use ::prompt::catch::catch;
use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader};
use std::io::{Cursor, Read};
use std::path::Path;

/// The formats, for messages.
pub const FORMATS: &str = "PNG, JPEG, WebP, GIF, BMP, TIFF, HEIC, AVIF";

/// Longest edge in pixels, whatever the limits say: it bounds tables whose size follows an edge.
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

impl Limits {
    /// Longest file: the largest image without compression (4 channels of 16 bits), and room for
    /// what else is in it.
    fn max_bytes(&self) -> u64 {
        self.max_pixels.saturating_mul(8).saturating_add(64 << 20)
    }

    /// Most memory a decoder may ask for: the decoded image and one working copy.
    pub(super) fn max_memory(&self) -> u64 {
        self.max_pixels.saturating_mul(16).saturating_add(64 << 20)
    }

    /// Refuses sizes beyond the limits.
    pub(super) fn allow(&self, width: impl Into<u64>, height: impl Into<u64>) -> Result<(), Problem> {
        let (width, height) = (width.into(), height.into());
        self.check("", width, height)
            .map_err(|_| Problem::Size { width, height })
    }

    pub(super) fn check(&self, name: &str, width: u64, height: u64) -> Result<(), ImageError> {
        let name = || name.to_owned();
        if width == 0 || height == 0 {
            return Err(ImageError::NoPixels {
                name: name(),
                width,
                height,
            });
        }
        if width.saturating_mul(height) > self.max_pixels {
            let max_pixels = self.max_pixels;
            return Err(ImageError::TooManyPixels {
                name: name(),
                width,
                height,
                max_pixels,
            });
        }
        if width.max(height) > u64::from(MAX_EDGE) {
            return Err(ImageError::EdgeTooLong {
                name: name(),
                width,
                height,
            });
        }
        Ok(())
    }
}

/// Decodes the file at `path`: a regular one. A pipe would wait for whoever writes it; who wants to wait opens it, and
/// calls [`read()`].
pub fn open(path: &Path, limits: &Limits) -> Result<Picture, ImageError> {
    let name = path.display().to_string();
    let file = models::regular::open(path).map_err(|source| {
        let name = name.clone();
        if is_address(&name) {
            ImageError::Address { name }
        } else {
            ImageError::Read { name, source }
        }
    })?;
    read(file, &name, limits)
}

/// Whether a path that is no file is the address of one: `https://...`, `data:image/...`.
fn is_address(path: &str) -> bool {
    let scheme = path
        .split_once(':')
        .map(|(scheme, rest)| (scheme.to_ascii_lowercase(), rest));
    scheme.is_some_and(|(scheme, rest)| {
        let known = ["http", "https", "file", "ftp", "s3", "gs", "hf"].contains(&scheme.as_str());
        (known && rest.starts_with("/")) || (scheme == "data" && rest.starts_with("image/"))
    })
}

/// Decodes what `reader` holds, to its end; `name` stands in errors.
///
/// What is no image is refused after its first bytes, so that an endless stream ends here too.
pub fn read(mut reader: impl Read, name: &str, limits: &Limits) -> Result<Picture, ImageError> {
    let failed = |source| ImageError::Read {
        name: name.to_owned(),
        source,
    };
    let mut bytes = Vec::new();
    (&mut reader).take(HEAD).read_to_end(&mut bytes).map_err(failed)?;
    detect(&bytes, name)?;
    let max_bytes = limits.max_bytes();
    reader.take(max_bytes).read_to_end(&mut bytes).map_err(failed)?;
    if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > max_bytes {
        return Err(ImageError::TooManyBytes {
            name: name.to_owned(),
            max_bytes,
        });
    }
    decode(&bytes, name, limits)
}

/// Decodes the file `bytes`; `name` stands in errors.
pub fn decode(bytes: &[u8], name: &str, limits: &Limits) -> Result<Picture, ImageError> {
    let upright = |image| (image, Orientation::NoTransforms);
    let format = detect(bytes, name)?;
    let decoded = guard(|| match format {
        Format::Jpeg => decode_jpeg(bytes, limits),
        Format::Png => decode_png(bytes, limits),
        Format::WebP => decode_webp(bytes, limits),
        Format::Gif => super::gif::decode(bytes, limits).map(upright),
        Format::Bmp => super::bmp::decode(bytes, limits)
            .and_then(Decoded::image)
            .map(upright),
        Format::Tiff => decode_tiff(bytes, limits),
        Format::Heic | Format::Avif => super::heif::decode(bytes, limits)
            .and_then(Decoded::image)
            .map(upright),
    });
    let (format_name, expected) = format.words();
    let (mut picture, orientation) =
        decoded.map_err(|problem| problem.of(name, format_name, expected, limits))?;
    picture.apply_orientation(orientation);
    let (width, height) = (picture.width(), picture.height());
    let alpha: Option<Vec<u8>> = match &picture {
        DynamicImage::ImageRgba8(image) => {
            Some(image.as_raw().chunks_exact(4).map(|pixel| pixel[3]).collect())
        }
        _opaque => None,
    };
    let decoded = Picture::new(width, height, picture.into_rgb8().into_raw());
    let decoded = decoded.ok_or_else(|| ImageError::NoPixels {
        name: name.to_owned(),
        width: width.into(),
        height: height.into(),
    })?;
    Ok(match alpha {
        Some(alpha) => decoded.with_alpha(&alpha),
        None => decoded,
    })
}

/// Runs a decoder: it may have assertions that a damaged file reaches.
fn guard<T>(work: impl FnOnce() -> Result<T, Problem>) -> Result<T, Problem> {
    let stopped = |words: String| Problem::damaged(format!("its decoder stopped: {}", in_words(&words)));
    catch(work).unwrap_or_else(stopped)
}

fn decode_png(bytes: &[u8], limits: &Limits) -> Result<(DynamicImage, Orientation), Problem> {
    let (width, height) = png::size(bytes)?;
    // The decoder would only say that such an image takes too much memory.
    limits.allow(width, height)?;
    // What stands beside the pixels of a small image is no larger than beside those of a large one.
    let max_pixels = u64::from(width).saturating_mul(height.into());
    let decoder = decoder(bytes, ImageFormat::Png, limits, &Limits { max_pixels })?;
    let image = DynamicImage::from_decoder(decoder)?;
    let image = match image {
        DynamicImage::ImageLuma16(image) => eight_bits::<1>(width, height, image.as_raw()),
        DynamicImage::ImageLumaA16(image) => eight_bits::<2>(width, height, image.as_raw()),
        DynamicImage::ImageRgb16(image) => eight_bits::<3>(width, height, image.as_raw()),
        DynamicImage::ImageRgba16(image) => eight_bits::<4>(width, height, image.as_raw()),
        image => with_channels(image),
    };
    let image = match (image, png::transparent(bytes)) {
        (DynamicImage::ImageRgba8(mut image), Some(color)) => {
            for image::Rgba([red, green, blue, alpha]) in image.pixels_mut() {
                *alpha = if [*red, *green, *blue] == color { 0 } else { 255 };
            }
            DynamicImage::ImageRgba8(image)
        }
        (image, _) => image,
    };
    // The decoder would inflate texts whatever their length.
    Ok((image, png::orientation(bytes)))
}

fn decode_webp(bytes: &[u8], limits: &Limits) -> Result<(DynamicImage, Orientation), Problem> {
    // What is missing at the end may be the orientation.
    let declared = bytes
        .get(4..8)
        .and_then(|size| size.try_into().ok())
        .map_or(0, u32::from_le_bytes);
    if u64::from(declared) + 8 > u64::try_from(bytes.len()).unwrap_or(u64::MAX) {
        return Err(Problem::Truncated);
    }
    let orientation = webp::orientation(bytes);
    let bytes = webp::usual(bytes);
    let decoder = decoder(&bytes, ImageFormat::WebP, limits, limits)?;
    let image = match Frame::find(&bytes)? {
        Some(frame) => {
            // Its file has no animation, so this ends here.
            let (picture, _) = decode_webp(&frame.still, limits)?;
            frame.paint(picture)?
        }
        None => with_channels(DynamicImage::from_decoder(decoder)?),
    };
    Ok((image, orientation))
}

/// In three channels of bytes, or in four where there is alpha.
fn with_channels(image: DynamicImage) -> DynamicImage {
    if image.color().has_alpha() {
        DynamicImage::ImageRgba8(image.into_rgba8())
    } else {
        DynamicImage::ImageRgb8(image.into_rgb8())
    }
}

/// A decoder of the `image` crate for a file within the `limits`, which may ask for as much as `own` allow.
fn decoder<'a>(
    bytes: &'a [u8],
    format: ImageFormat,
    limits: &Limits,
    own: &Limits,
) -> Result<impl ImageDecoder + 'a, Problem> {
    let mut bounds = image::Limits::default();
    bounds.max_alloc = Some(own.max_memory());
    let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
    reader.limits(bounds);
    let decoder = reader.into_decoder()?;
    let (width, height) = decoder.dimensions();
    limits.allow(width, height)?;
    Ok(decoder)
}

/// The upper bytes of so many 16-bit channels; gray is repeated, the second and the fourth are alpha.
fn eight_bits<const CHANNELS: usize>(width: u32, height: u32, samples: &[u16]) -> DynamicImage {
    let upper = |sample: u16| sample.to_be_bytes()[0];
    let pixels = samples.chunks_exact(CHANNELS);
    let colors = if CHANNELS < 3 { 1 } else { 3 };
    let color = |pixel: &[u16]| [0, 1, 2].map(|channel| upper(pixel[channel % colors]));
    if CHANNELS % 2 == 1 {
        let pixels = pixels.flat_map(color).collect();
        return DynamicImage::ImageRgb8(image::RgbImage::from_raw(width, height, pixels).unwrap_or_default());
    }
    let pixels = pixels.flat_map(|pixel| {
        let [red, green, blue] = color(pixel);
        [red, green, blue, upper(pixel[CHANNELS - 1])]
    });
    let pixels = pixels.collect();
    DynamicImage::ImageRgba8(image::RgbaImage::from_raw(width, height, pixels).unwrap_or_default())
}

/// What a decoder makes of a file.
#[derive(Debug)]
pub(super) struct Decoded {
    pub(super) width: u32,
    pub(super) height: u32,
    /// `[height, width, 3]`
    pub(super) pixels: Vec<u8>,
    /// `[height, width]`
    pub(super) alpha: Option<Vec<u8>>,
}

impl Decoded {
    fn image(self) -> Result<DynamicImage, Problem> {
        let Some(alpha) = self.alpha else {
            return of_pixels((self.width, self.height, self.pixels));
        };
        let pixels = self.pixels.chunks_exact(3).zip(alpha);
        let pixels = pixels.flat_map(|(pixel, alpha)| [pixel[0], pixel[1], pixel[2], alpha]);
        match image::RgbaImage::from_raw(self.width, self.height, pixels.collect()) {
            Some(image) => Ok(DynamicImage::ImageRgba8(image)),
            None => Problem::damaged("it has other pixels than its header says"),
        }
    }
}

/// An image of `pixels`, `[height, width, 3]`.
fn of_pixels((width, height, pixels): (u32, u32, Vec<u8>)) -> Result<DynamicImage, Problem> {
    match image::RgbImage::from_raw(width, height, pixels) {
        Some(image) => Ok(DynamicImage::ImageRgb8(image)),
        None => Problem::damaged("it has other pixels than its header says"),
    }
}

fn decode_jpeg(bytes: &[u8], limits: &Limits) -> Result<(DynamicImage, Orientation), Problem> {
    let jpeg = Jpeg::open(bytes)?;
    let (width, height) = jpeg.size();
    limits.allow(width, height)?;
    let (pixels, metadata) = jpeg.decode(None)?;
    let image = of_pixels((width, height, pixels))?;
    Ok((
        image,
        super::orientation::of(metadata.exif.as_deref(), metadata.xmp),
    ))
}

fn decode_tiff(bytes: &[u8], limits: &Limits) -> Result<(DynamicImage, Orientation), Problem> {
    let (decoded, orientation) = super::tiff::decode(bytes, limits)?;
    Ok((decoded.image()?, orientation))
}

#[cfg(test)]
mod tests;
