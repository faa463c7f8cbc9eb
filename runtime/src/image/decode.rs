//! How does an image file become 8-bit RGB?
//!
//! The result is what Pillow's `ImageOps.exif_transpose(Image.open(file)).convert("RGB")` gives, to the bit,
//! in every format, or an error. Measured against Pillow 13 (libjpeg-turbo 3.2, libwebp 1.6, libtiff 4.7) on
//! 2240 generated files (`scripts/check_images`):
//! - Alpha is dropped, not blended: transparent pixels show the colour that they store.
//! - The orientation of EXIF and TIFF is applied, or else that of XMP.
//! - Of animations, the first frame is decoded. What a GIF's first frame leaves free has its transparent
//!   index, or index 0.
//! - 16-bit channels keep their upper byte, as Pillow's do in RGB and in gray with alpha. Plain 16-bit gray
//!   it clips at 255, which turns nearly every such image white, and in TIFF it reads 16-bit planes and
//!   inverted 16-bit gray wrongly: here they keep their upper byte too.
//! - CMYK and YCCK JPEGs are inverted as Adobe writes them, then converted without colour management.
//! - Colour profiles and gamma are not looked at.
//!
//! Nothing is believed before it is bounded: sizes are checked before anything is allocated for them.

use super::jpeg::Jpeg;
use super::problem::Problem;
use super::{ImageError, Picture};
use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader};
use std::io::{Cursor, Read};
use std::path::Path;

/// The formats, for messages.
pub const FORMATS: &str = "PNG, JPEG, WebP, GIF, BMP, TIFF";

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

/// Decodes the file at `path`.
pub fn open(path: &Path, limits: &Limits) -> Result<Picture, ImageError> {
    let name = path.display().to_string();
    let file = std::fs::File::open(path).map_err(|source| {
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
    let decoded = match format {
        Format::Jpeg => decode_jpeg(bytes, limits),
        Format::Png => decode_other(bytes, limits, ImageFormat::Png),
        Format::WebP => decode_other(bytes, limits, ImageFormat::WebP),
        Format::Gif => super::gif::decode(bytes, limits).and_then(of_pixels).map(upright),
        Format::Bmp => super::bmp::decode(bytes, limits).and_then(of_pixels).map(upright),
        Format::Tiff => decode_tiff(bytes, limits),
    };
    let (format_name, expected) = format.words();
    let (mut picture, orientation) =
        decoded.map_err(|problem| problem.of(name, format_name, expected, limits))?;
    picture.apply_orientation(orientation);
    let (width, height) = (picture.width(), picture.height());
    Picture::new(width, height, picture.into_rgb8().into_raw()).ok_or_else(|| ImageError::NoPixels {
        name: name.to_owned(),
        width: width.into(),
        height: height.into(),
    })
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Png,
    Jpeg,
    WebP,
    Gif,
    Bmp,
    Tiff,
}

impl Format {
    /// Its name, and which kinds of it are decoded.
    fn words(self) -> (&'static str, &'static str) {
        match self {
            Format::Png => ("PNG", "RGB, gray or palette with at most 16 bits a channel"),
            Format::Jpeg => ("JPEG", "a baseline or progressive JPEG with 8 bits a channel"),
            Format::WebP => ("WebP", "lossy or lossless WebP"),
            Format::Gif => ("GIF", "GIF 87a or 89a"),
            Format::Bmp => (
                "BMP",
                "RGB or palette without compression, with masks or with run lengths",
            ),
            Format::Tiff => ("TIFF", super::tiff::EXPECTED),
        }
    }
}

/// Bytes that tell a format.
const HEAD: u64 = 512;

/// The format by content; a file name says nothing.
fn detect(bytes: &[u8], name: &str) -> Result<Format, ImageError> {
    if bytes.is_empty() {
        return Err(ImageError::Empty {
            name: name.to_owned(),
        });
    }
    let starts = |magic: &[u8]| bytes.starts_with(magic);
    let at = |offset: usize, magic: &[u8]| bytes.get(offset..).is_some_and(|rest| rest.starts_with(magic));
    if starts(b"\x89PNG\r\n\x1a\n") {
        return Ok(Format::Png);
    } else if starts(b"\xff\xd8\xff") {
        return Ok(Format::Jpeg);
    } else if starts(b"RIFF") && at(8, b"WEBP") {
        return Ok(Format::WebP);
    } else if starts(b"GIF87a") || starts(b"GIF89a") {
        return Ok(Format::Gif);
    } else if starts(b"BM") {
        return Ok(Format::Bmp);
    } else if [b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"]
        .into_iter()
        .any(|magic| starts(magic))
    {
        return Ok(Format::Tiff);
    }
    Err(ImageError::UnknownFormat {
        name: name.to_owned(),
        found: describe(bytes),
    })
}

/// What bytes that are none of ours look like.
fn describe(bytes: &[u8]) -> String {
    let at = |offset: usize, magic: &[u8]| bytes.get(offset..).is_some_and(|rest| rest.starts_with(magic));
    if at(4, b"ftyp") {
        let brand = bytes.get(8..12).unwrap_or_default();
        let kind = match brand {
            b"avif" | b"avis" => "an AVIF image",
            b"heic" | b"heix" | b"heim" | b"heis" | b"hevc" | b"hevx" | b"mif1" | b"msf1" => "a HEIC image",
            b"crx " => "a raw camera image (CR3)",
            _ => "an MP4 or QuickTime file",
        };
        return kind.to_owned();
    }
    let known: [(&[u8], &str); 14] = [
        (b"%PDF", "a PDF file"),
        (b"\xff\x0a", "a JPEG XL image"),
        (b"\0\0\0\x0cJXL ", "a JPEG XL image"),
        (b"\0\0\0\x0cjP  ", "a JPEG 2000 image"),
        (b"\xff\x4f\xff\x51", "a JPEG 2000 image"),
        (b"\0\0\x01\0", "an icon (ICO)"),
        (b"8BPS", "a Photoshop file (PSD)"),
        (b"PK\x03\x04", "a zip archive"),
        (b"\x1f\x8b", "a gzip file"),
        (b"qoif", "a QOI image"),
        (b"\x76\x2f\x31\x01", "an OpenEXR image"),
        (b"DDS ", "a DDS image"),
        (b"\x7fELF", "a program (ELF)"),
        (b"\x89PNG", "a PNG file damaged in its first 8 bytes"),
    ];
    if let Some((_, kind)) = known.iter().find(|(magic, _)| bytes.starts_with(magic)) {
        return (*kind).to_owned();
    }
    let head = &bytes[..bytes.len().min(256)];
    // A character may be cut at the end of the head.
    let text = match std::str::from_utf8(head) {
        Ok(text) => text,
        Err(error) if error.error_len().is_none() => {
            std::str::from_utf8(&head[..error.valid_up_to()]).unwrap_or_default()
        }
        Err(_) => "",
    };
    let plain = |character: char| !character.is_control() || character.is_whitespace();
    if !text.is_empty() && text.chars().all(plain) {
        let text = text.trim_start_matches('\u{feff}').trim_start();
        let markup = text.starts_with("<svg") || (text.starts_with("<?xml") && text.contains("<svg"));
        let html = text
            .get(..5)
            .is_some_and(|start| start.eq_ignore_ascii_case("<!doc") || start == "<html");
        return if markup {
            "an SVG drawing".to_owned()
        } else if html {
            "an HTML page".to_owned()
        } else if text.starts_with("version https://git-lfs") {
            "a Git LFS pointer instead of the file".to_owned()
        } else {
            "text".to_owned()
        };
    }
    let start: Vec<String> = bytes.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    format!("of an unknown format (it starts with {})", start.join(" "))
}

/// PNG and WebP, by the `image` crate.
fn decode_other(
    bytes: &[u8],
    limits: &Limits,
    format: ImageFormat,
) -> Result<(DynamicImage, Orientation), Problem> {
    // The decoders would only say that such an image takes too much memory.
    if let Some((width, height)) = declared_size(bytes, format) {
        limits.allow(width, height)?;
    }
    if format == ImageFormat::WebP {
        // What is missing at the end may be the orientation.
        let declared = bytes
            .get(4..8)
            .and_then(|size| size.try_into().ok())
            .map_or(0, u32::from_le_bytes);
        if u64::from(declared) + 8 > u64::try_from(bytes.len()).unwrap_or(u64::MAX) {
            return Err(Problem::Truncated);
        }
    }
    let mut bounds = image::Limits::default();
    bounds.max_alloc = Some(limits.max_memory());
    let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
    reader.limits(bounds);
    let mut decoder = reader.into_decoder()?;
    let (width, height) = decoder.dimensions();
    limits.allow(width, height)?;
    let mut exif = decoder.exif_metadata().ok().flatten();
    if exif.is_none() && format == ImageFormat::Png {
        exif = super::orientation::raw_profile(bytes);
    }
    let xmp = decoder.xmp_metadata().ok().flatten();
    let orientation = super::orientation::of(exif.as_deref(), xmp.as_deref());
    let image = DynamicImage::from_decoder(decoder)?;
    let image = DynamicImage::ImageRgb8(match image {
        DynamicImage::ImageLuma16(image) => eight_bits::<1, false>(width, height, image.as_raw()),
        DynamicImage::ImageLumaA16(image) => eight_bits::<1, true>(width, height, image.as_raw()),
        DynamicImage::ImageRgb16(image) => eight_bits::<3, false>(width, height, image.as_raw()),
        DynamicImage::ImageRgba16(image) => eight_bits::<3, true>(width, height, image.as_raw()),
        image => image.into_rgb8(),
    });
    Ok((image, orientation))
}

/// Width and height where they stand at a fixed place.
fn declared_size(bytes: &[u8], format: ImageFormat) -> Option<(u64, u64)> {
    let big = |at: usize| {
        Some(u64::from(u32::from_be_bytes(
            bytes.get(at..at + 4)?.try_into().ok()?,
        )))
    };
    match format {
        ImageFormat::Png => Some((big(16)?, big(20)?)),
        _ => None,
    }
}

/// The upper bytes of 16-bit channels; gray (`COLORS` = 1) is repeated, alpha is dropped.
fn eight_bits<const COLORS: usize, const ALPHA: bool>(
    width: u32,
    height: u32,
    samples: &[u16],
) -> image::RgbImage {
    let upper = |sample: u16| sample.to_be_bytes()[0];
    let pixels = samples
        .chunks_exact(COLORS + usize::from(ALPHA))
        .flat_map(|pixel| [0, 1, 2].map(|channel| upper(pixel[channel % COLORS])))
        .collect();
    image::RgbImage::from_raw(width, height, pixels).unwrap_or_default()
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
    Ok((image, super::orientation::of(metadata.exif, metadata.xmp)))
}

fn decode_tiff(bytes: &[u8], limits: &Limits) -> Result<(DynamicImage, Orientation), Problem> {
    let (width, height, pixels, orientation) = super::tiff::decode(bytes, limits)?;
    Ok((of_pixels((width, height, pixels))?, orientation))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn refuse(bytes: &[u8]) -> ImageError {
        match decode(bytes, "it.png", &Limits::default()) {
            Ok(picture) => panic!("decoded as {picture:?}: {:02x?}", &bytes[..bytes.len().min(64)]),
            Err(error) => error,
        }
    }

    /// The valid files of the recorded cases, as seeds for damage.
    fn files() -> Vec<(String, Vec<u8>)> {
        let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data");
        let mut files = Vec::new();
        for folder in ["images", "matrix"] {
            for entry in std::fs::read_dir(data.join(folder)).unwrap() {
                let path = entry.unwrap().path();
                if path.extension().is_some_and(|end| end != "json") {
                    let name = path.file_name().unwrap().to_string_lossy().into_owned();
                    files.push((name, std::fs::read(&path).unwrap()));
                }
            }
        }
        files.sort();
        files
    }

    fn png_header(width: u32, height: u32) -> Vec<u8> {
        let mut header = b"IHDR".to_vec();
        header.extend(width.to_be_bytes());
        header.extend(height.to_be_bytes());
        header.extend([8, 2, 0, 0, 0]);
        let checksum = header.iter().fold(u32::MAX, |checksum, &byte| {
            (0..8).fold(checksum ^ u32::from(byte), |value, _| {
                (value >> 1) ^ if value & 1 == 1 { 0xedb8_8320 } else { 0 }
            })
        });
        let mut png = b"\x89PNG\r\n\x1a\n\0\0\0\x0d".to_vec();
        png.extend(header);
        png.extend((!checksum).to_be_bytes());
        png.extend(b"\0\0\0\x10IDAT");
        png
    }

    #[test]
    fn what_is_no_image_is_named() {
        let cases: [(&[u8], &str); 16] = [
            (b"", "is empty (0 bytes)"),
            (b"hello, I am no image\n", "is text, expected one of PNG, JPEG"),
            ("h\u{e9}llo".as_bytes(), "is text"),
            (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "is an SVG drawing"),
            (b"<?xml version='1.0'?>\n<svg/>", "is an SVG drawing"),
            (b"<!DOCTYPE html><html></html>", "is an HTML page"),
            (b"%PDF-1.7\n", "is a PDF file"),
            (b"\0\0\0\x18ftypheic\0\0\0\0", "is a HEIC image"),
            (b"\0\0\0\x18ftypavif\0\0\0\0", "is an AVIF image"),
            (b"\0\0\0\x18ftypisom\0\0\0\0", "is an MP4 or QuickTime file"),
            (
                b"version https://git-lfs.github.com/spec/v1\n",
                "is a Git LFS pointer",
            ),
            (b"PK\x03\x04", "is a zip archive"),
            (
                b"RIFF\0\0\0\0WAVE",
                "of an unknown format (it starts with 52 49 46 46",
            ),
            (b"\0", "of an unknown format (it starts with 00)"),
            (b"\x89PNX", "of an unknown format"),
            (b"\xff\x0a\0", "is a JPEG XL image"),
        ];
        for (bytes, part) in cases {
            let error = refuse(bytes).to_string();
            assert!(error.contains(part) && error.contains("`it.png`"), "{error}");
        }
    }

    #[test]
    fn huge_sizes_are_refused_before_anything_is_decoded() {
        let bmp = |width: i32, height: i32| {
            let mut bmp = b"BM\x36\0\0\0\0\0\0\0\x36\0\0\0\x28\0\0\0".to_vec();
            bmp.extend(width.to_le_bytes());
            bmp.extend(height.to_le_bytes());
            bmp.extend(b"\x01\0\x18\0");
            bmp.extend([0; 24]);
            bmp
        };
        let jpeg = |width: u16, height: u16| {
            let mut jpeg = b"\xff\xd8\xff\xc0\0\x11\x08".to_vec();
            jpeg.extend(height.to_be_bytes());
            jpeg.extend(width.to_be_bytes());
            jpeg.extend(b"\x03\x01\x22\0\x02\x11\x01\x03\x11\x01");
            jpeg
        };
        let cases = [
            (
                png_header(30_000, 30_000),
                "is 30000 x 30000 pixels, expected at most 100000000 pixels",
            ),
            (
                png_header(u32::MAX >> 1, u32::MAX >> 1),
                "pixels, expected at most",
            ),
            (
                png_header(2_000_000, 10),
                "is 2000000 x 10 pixels, expected edges of at most 1048576",
            ),
            (jpeg(65_535, 65_535), "is 65535 x 65535 pixels, expected at most"),
            (bmp(60_000, 60_000), "pixels, expected at most"),
            (
                b"GIF89a\xff\xff\xff\xff\0\0\0".to_vec(),
                "is 65535 x 65535 pixels",
            ),
        ];
        for (bytes, part) in cases {
            let error = refuse(&bytes).to_string();
            assert!(error.contains(part), "{error}");
        }
        // The limit is a flag.
        let image = files()
            .into_iter()
            .find(|(name, _)| name == "png_rgb.png")
            .unwrap()
            .1;
        let error = decode(&image, "a.png", &Limits { max_pixels: 265 }).unwrap_err();
        assert!(
            matches!(
                error,
                ImageError::TooManyPixels {
                    width: 19,
                    height: 14,
                    ..
                }
            ),
            "{error}"
        );
        assert!(decode(&image, "a.png", &Limits { max_pixels: 266 }).is_ok());
    }

    #[test]
    fn images_without_pixels_are_refused() {
        for bytes in [png_header(0, 10), b"GIF89a\0\0\0\0\0\0\0".to_vec()] {
            let error = refuse(&bytes).to_string();
            assert!(error.contains("0 x") || error.contains("damaged"), "{error}");
        }
    }

    #[test]
    fn unusual_jpegs_are_named() {
        let jpeg = files()
            .into_iter()
            .find(|(name, _)| name == "jpeg_444.jpg")
            .unwrap()
            .1;
        let frame = jpeg.windows(2).position(|pair| pair == [0xff, 0xc0]).unwrap();
        let cases: [(usize, u8, &str); 4] = [
            (4, 12, "a JPEG with 12 bits a channel, expected a baseline"),
            (1, 0xc9, "a JPEG with arithmetic coding"),
            (1, 0xc3, "a lossless JPEG"),
            (1, 0xc5, "a hierarchical JPEG"),
        ];
        for (offset, value, part) in cases {
            let mut jpeg = jpeg.clone();
            jpeg[frame + offset] = value;
            let error = refuse(&jpeg).to_string();
            assert!(error.contains(part), "{error}");
        }
    }

    /// A cut anywhere is an error, or costs nothing: the rest of some formats is not needed for the pixels.
    #[test]
    fn truncated_files_are_errors() {
        let mut refused = 0;
        for (name, bytes) in files() {
            let Ok(whole) = decode(&bytes, &name, &Limits::default()) else {
                refused += 1;
                continue;
            };
            for length in (0..bytes.len()).step_by(bytes.len().div_ceil(150)) {
                if let Ok(picture) = decode(&bytes[..length], &name, &Limits::default()) {
                    assert_eq!(
                        picture.pixels(),
                        whole.pixels(),
                        "{name} cut at {length} of {}",
                        bytes.len()
                    );
                }
            }
        }
        assert!(refused < 10, "{refused} files of kinds that are not decoded");
    }

    /// Damage anywhere gives an error or an image, in bounded memory, and never a panic.
    #[test]
    fn damaged_files_do_no_harm() {
        let rounds: u64 = std::env::var("FVLM_FUZZ_ROUNDS").map_or(40, |rounds| rounds.parse().unwrap());
        let limits = Limits {
            max_pixels: 1_000_000,
        };
        let mut random = 1_u64;
        let mut below = |bound: usize| {
            random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            usize::try_from(random >> 33).unwrap() % bound
        };
        for (name, bytes) in files() {
            for _ in 0..rounds {
                let mut bytes = bytes.clone();
                for _ in 0..1 + below(8) {
                    // Headers are small: half of the damage goes to the first bytes.
                    let at = if below(2) == 0 {
                        below(bytes.len().min(64))
                    } else {
                        below(bytes.len())
                    };
                    bytes[at] = [0, 0xff, 0x7f, 0x80, u8::try_from(below(256)).unwrap()][below(5)];
                }
                let _ = decode(&bytes, &name, &limits);
            }
        }
    }

    #[test]
    fn files_that_cannot_be_read_are_named() {
        let directory = tempfile::tempdir().unwrap();
        for path in [directory.path().join("missing.png"), directory.path().to_owned()] {
            let error = open(&path, &Limits::default()).unwrap_err();
            assert!(matches!(error, ImageError::Read { .. }), "{error}");
            assert!(error.to_string().contains(&path.display().to_string()), "{error}");
        }
        let mut file = std::fs::File::create(directory.path().join("photo.png")).unwrap();
        file.write_all(&files().into_iter().find(|(name, _)| name == "gif.gif").unwrap().1)
            .unwrap();
        assert!(
            open(&directory.path().join("photo.png"), &Limits::default()).is_ok(),
            "the content decides"
        );
    }

    #[test]
    fn addresses_are_no_files() {
        for address in [
            "https://example.com/a.png",
            "HTTP://a/b",
            "file:///a.png",
            "data:image/png;base64,iVBO",
        ] {
            let error = open(Path::new(address), &Limits::default()).unwrap_err();
            assert!(matches!(error, ImageError::Address { .. }), "{error}");
            assert!(
                error.to_string().contains("is an address, expected a file"),
                "{error}"
            );
        }
        for path in ["missing.png", "c:/missing.png", "data:missing"] {
            let error = open(Path::new(path), &Limits::default()).unwrap_err();
            assert!(matches!(error, ImageError::Read { .. }), "{error}");
        }
    }

    /// A checksum that does not fit is told in words, whichever chunk has it.
    #[test]
    fn wrong_checksums_are_told_in_words() {
        let image = files()
            .into_iter()
            .find(|(name, _)| name == "png_rgb.png")
            .unwrap()
            .1;
        for chunk in [&b"IHDR"[..], b"IDAT"] {
            let mut image = image.clone();
            let start = image.windows(4).position(|bytes| bytes == chunk).unwrap();
            let length = u32::from_be_bytes(image[start - 4..start].try_into().unwrap());
            image[start + 4 + usize::try_from(length).unwrap()] ^= 1;
            let error = refuse(&image).to_string();
            assert!(
                error.ends_with("is a damaged PNG file: a checksum is wrong: bytes were changed"),
                "{error}"
            );
        }
    }

    /// A little-endian TIFF of the entries (tag, type, count, value).
    fn tiff(entries: &[(u16, u16, u32, u32)]) -> Vec<u8> {
        let mut tiff = b"II*\0\x08\0\0\0".to_vec();
        tiff.extend(u16::try_from(entries.len()).unwrap().to_le_bytes());
        for &(tag, kind, count, value) in entries {
            tiff.extend(tag.to_le_bytes());
            tiff.extend(kind.to_le_bytes());
            tiff.extend(count.to_le_bytes());
            tiff.extend(value.to_le_bytes());
        }
        tiff.extend([0; 4]);
        tiff
    }

    #[test]
    fn hostile_tiffs_are_refused_at_once() {
        let gray = [(258, 3, 1, 8), (262, 3, 1, 1), (273, 4, 1, 8), (279, 4, 1, 8)];
        let sized = |width, height| [(256, 4, 1, width), (257, 4, 1, height)];
        type Entries<'a> = &'a [(u16, u16, u32, u32)];
        let cases: [(Entries<'_>, Entries<'_>, &str); 6] = [
            (
                &sized(1 << 31, 1 << 31),
                &gray,
                "is 2147483648 x 2147483648 pixels, expected at most",
            ),
            (&sized(0, 5), &gray, "is 0 x 5 pixels"),
            (&sized(9, 9), &gray, "ends too early"),
            (
                &sized(1, 1),
                &[
                    (258, 3, 1, 8),
                    (262, 3, 1, 1),
                    (322, 4, 1, u32::MAX),
                    (323, 4, 1, u32::MAX),
                ],
                "takes over",
            ),
            (
                &sized(1, 1),
                &[(258, 3, 1, 8), (262, 3, 1, 1), (273, 4, u32::MAX, 8)],
                "ends too early",
            ),
            (
                &sized(4, 4),
                &[(258, 3, 1, 32), (339, 3, 1, 3), (262, 3, 1, 1)],
                "with floating-point channels",
            ),
        ];
        for (size, rest, part) in cases {
            let error = refuse(&tiff(&[size, rest].concat())).to_string();
            assert!(error.contains(part), "{error}");
        }
    }

    /// Few bytes that ask for a decoded image again and again.
    #[test]
    fn scans_without_end_are_refused() {
        let mut jpeg = b"\xff\xd8\xff\xdb\0\x43\0".to_vec();
        jpeg.extend([1; 64]);
        jpeg.extend(b"\xff\xc2\0\x0b\x08\x20\0\x20\0\x01\x01\x11\0");
        // One code of one bit, for blocks without anything.
        for class in [0, 0x10] {
            jpeg.extend(b"\xff\xc4\0\x14");
            jpeg.push(class);
            jpeg.push(1);
            jpeg.extend([0; 16]);
        }
        let mut mean = jpeg.clone();
        mean.extend(b"\xff\xda\0\x08\x01\x01\0\0\0\x01");
        mean.extend(vec![0; 1 << 17]);
        let mut scans = mean.clone();
        for _ in 0..2 {
            scans.extend(b"\xff\xda\0\x08\x01\x01\0\0\0\x01");
        }
        let error = refuse(&scans).to_string();
        assert!(error.contains("two scans bring the same bits"), "{error}");
    }

    #[test]
    fn endless_streams_end() {
        let error = read(std::io::repeat(0), "stdin", &Limits::default()).unwrap_err();
        assert!(matches!(error, ImageError::UnknownFormat { .. }), "{error}");
        let endless = std::io::Cursor::new(png_header(10, 10)).chain(std::io::repeat(0));
        let error = read(endless, "stdin", &Limits { max_pixels: 100 }).unwrap_err();
        assert!(matches!(error, ImageError::TooManyBytes { .. }), "{error}");
    }
}
