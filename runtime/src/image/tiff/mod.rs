//! TIFF: the first image of a file, in the kinds that Pillow shows as they are meant.
//!
//! Gray, palette, RGB and CMYK with 8 or 16 bits a channel, with or without alpha; gray and palette with 1, 2
//! or 4 bits too; strips and tiles, interleaved or a plane each; without compression, or with LZW, deflate,
//! PackBits, JPEG or group 4 fax.

mod chunks;
mod directory;

use super::decode::{Decoded, Limits};
use super::problem::Problem;
use directory::Directory;
use image::metadata::Orientation;

/// Which kinds are decoded, for messages.
pub(super) const EXPECTED: &str = "gray, palette, RGB or CMYK with at most 16 bits a channel, \
     without compression or \
     with LZW, deflate, PackBits, JPEG or group 4 fax";

/// The image as stored, and the orientation.
pub(super) fn decode(bytes: &[u8], limits: &Limits) -> Result<(Decoded, Orientation), Problem> {
    let directory = Directory::read(bytes)?;
    let layout = Layout::of(&directory)?;
    limits.allow(layout.width, layout.height)?;
    let size = |edge: u64| u32::try_from(edge).map_err(|_| Problem::Memory);
    let (width, height) = (size(layout.width)?, size(layout.height)?);
    let samples = chunks::samples(bytes, &directory, &layout, limits)?;
    let pixels = pixels(&directory, &layout, &samples)?;
    let alpha = |alpha: usize| {
        samples
            .chunks_exact(layout.channels)
            .map(|pixel| pixel[alpha])
            .collect()
    };
    let alpha = layout.alpha.map(alpha);
    let orientation = super::orientation::of_tiff(&directory.place(), directory.data(700)?);
    let decoded = Decoded {
        width,
        height,
        pixels,
        alpha,
    };
    Ok((decoded, orientation))
}

/// What the samples of a pixel are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Photometric {
    White,
    Black,
    Rgb,
    Palette,
    Cmyk,
    /// Only with JPEG, which makes it RGB.
    Ycc,
}

impl Photometric {
    /// Samples that are colours.
    fn colors(self) -> usize {
        match self {
            Photometric::White | Photometric::Black | Photometric::Palette => 1,
            Photometric::Rgb | Photometric::Ycc => 3,
            Photometric::Cmyk => 4,
        }
    }
}

/// How the samples lie in the file.
#[derive(Debug)]
struct Layout {
    width: u64,
    height: u64,
    bits: u32,
    /// Samples of a pixel.
    channels: usize,
    photometric: Photometric,
    /// Which sample is alpha.
    alpha: Option<usize>,
    /// Whether the colours are multiplied with alpha, which is the first sample behind them.
    associated: bool,
    planar: bool,
    compression: u64,
    /// Whether a row has differences.
    predictor: bool,
    /// Whether bits stand in bytes from the lowest on.
    reversed: bool,
}

impl Layout {
    fn of(directory: &Directory<'_>) -> Result<Layout, Problem> {
        let number = |tag: u16, default: u64| Ok::<_, Problem>(directory.number(tag)?.unwrap_or(default));
        let needed = |tag: u16, name: &str| {
            let found = directory.number(tag)?;
            found.ok_or_else(|| Problem::Damaged(format!("its {name} is missing")))
        };
        let (width, height) = (needed(256, "width")?, needed(257, "height")?);
        let channels = number(277, 1)?;
        let kind = number(262, 0)?;
        let bits = directory.numbers(258)?.unwrap_or_else(|| vec![1]);
        let formats = directory.numbers(339)?.unwrap_or_default();
        let extra = directory.numbers(338)?.unwrap_or_default();
        let compression = number(259, 1)?;
        let first = bits.first().copied().unwrap_or(1);
        let photometric = match kind {
            0 => Photometric::White,
            1 => Photometric::Black,
            2 => Photometric::Rgb,
            3 => Photometric::Palette,
            5 => Photometric::Cmyk,
            6 if compression == 7 => Photometric::Ycc,
            6 => return Problem::unsupported("a TIFF with YCbCr colours"),
            8..=10 => return Problem::unsupported("a TIFF with Lab colours"),
            _ => return Problem::unsupported(format!("a TIFF with photometric interpretation {kind}")),
        };
        if !matches!(compression, 1 | 4 | 5 | 7 | 8 | 32_773 | 32_946) {
            let name = match compression {
                2 | 3 => "fax compression before group 4",
                6 => "JPEG compression of the old kind",
                50_000 => "Zstandard compression",
                50_001 => "WebP compression",
                34_925 => "LZMA compression",
                _ => "an unknown compression",
            };
            return Problem::unsupported(format!("a TIFF with {name} ({compression})"));
        }
        if formats.contains(&3) {
            return Problem::unsupported("a TIFF with floating-point channels");
        }
        if formats.iter().any(|&format| !matches!(format, 1 | 4)) {
            return Problem::unsupported("a TIFF with signed or complex channels");
        }
        if bits.iter().any(|&bits| bits != first) {
            return Problem::unsupported(
                format!("a TIFF with {bits:?} bits a channel").replace(['[', ']'], ""),
            );
        }
        let colors = photometric.colors();
        let channels = usize::try_from(channels).unwrap_or(usize::MAX);
        if channels < colors || channels > colors + 4 {
            return Problem::unsupported(format!(
                "a TIFF with {channels} channels where colours have {colors}"
            ));
        }
        if extra.len() > channels - colors {
            return Problem::unsupported(format!(
                "a TIFF with {channels} channels, of which {} are said to be more than the {colors} of colours",
                extra.len()
            ));
        }
        let fits = match first {
            1 | 2 | 4 => colors == 1 && channels == 1,
            8 => true,
            16 => photometric != Photometric::Palette,
            _ => false,
        };
        if !fits || (compression == 7 && first != 8) || (compression == 4 && first != 1) {
            return Problem::unsupported(format!(
                "a TIFF with {first} bits a channel and {channels} channels"
            ));
        }
        let predictor = match number(317, 1)? {
            1 => false,
            2 if first >= 8 && matches!(compression, 5 | 8 | 32_946) => true,
            // Without these compressions, the tag says nothing.
            _ if !matches!(compression, 5 | 8 | 32_946) => false,
            other => return Problem::unsupported(format!("a TIFF with predictor {other} of {first} bits")),
        };
        let reversed = number(266, 1)? == 2;
        if reversed && (!matches!(compression, 1 | 4) || first > 8) {
            return Problem::unsupported("a TIFF with reversed bits and compression, or 16 bits");
        }
        Ok(Layout {
            width,
            height,
            bits: u32::try_from(first).unwrap_or(u32::MAX),
            channels,
            photometric,
            alpha: alpha(photometric, channels, &extra),
            associated: photometric == Photometric::Rgb && extra.first() == Some(&1),
            planar: number(284, 1)? == 2 && channels > 1,
            compression,
            predictor,
            reversed,
        })
    }
}

/// Which sample is alpha, as Pillow takes it: of RGB the first behind the colours, where nothing says that it is something
/// else, of gray and of a palette where it is said.
fn alpha(photometric: Photometric, channels: usize, extra: &[u64]) -> Option<usize> {
    match (photometric, extra) {
        (Photometric::Rgb, [1 | 2 | 999, ..]) => Some(3),
        (Photometric::Rgb, []) if channels == 4 => Some(3),
        (Photometric::Black | Photometric::Palette, [2]) => Some(1),
        _ => None,
    }
}

/// RGB of samples `[height, width, channels]`, of which 16 bits have become 8.
fn pixels(directory: &Directory<'_>, layout: &Layout, samples: &[u8]) -> Result<Vec<u8>, Problem> {
    let pixels = samples.chunks_exact(layout.channels);
    Ok(match layout.photometric {
        Photometric::White | Photometric::Black => {
            let most = u8::try_from((1_u32 << layout.bits.min(8)) - 1).unwrap_or(u8::MAX);
            let white = layout.photometric == Photometric::White;
            let level = |value: u8| (if white { most - value.min(most) } else { value }) * (255 / most);
            pixels.flat_map(|pixel| [level(pixel[0]); 3]).collect()
        }
        Photometric::Palette => {
            let colors = palette(directory, layout.bits)?;
            let color = |pixel: &[u8]| colors.get(usize::from(pixel[0])).copied().unwrap_or_default();
            pixels.flat_map(color).collect()
        }
        Photometric::Rgb if layout.associated => {
            let divide = |value: u8, alpha: u8| match alpha {
                0 => 0,
                255 => value,
                alpha => u8::try_from(u16::from(value) * 255 / u16::from(alpha)).unwrap_or(u8::MAX),
            };
            pixels
                .flat_map(|pixel| [0, 1, 2].map(|channel| divide(pixel[channel], pixel[3])))
                .collect()
        }
        Photometric::Rgb | Photometric::Ycc => {
            pixels.flat_map(|pixel| [pixel[0], pixel[1], pixel[2]]).collect()
        }
        Photometric::Cmyk => {
            let ink =
                |pixel: &[u8], channel: usize| super::jpeg::from_ink(255 - pixel[channel], 255 - pixel[3]);
            pixels
                .flat_map(|pixel| [0, 1, 2].map(|channel| ink(pixel, channel)))
                .collect()
        }
    })
}

/// The colour of each index, of 16 bits the upper 8.
fn palette(directory: &Directory<'_>, bits: u32) -> Result<Vec<[u8; 3]>, Problem> {
    let values = directory.numbers(320)?.unwrap_or_default();
    let count = 1_usize << bits;
    if values.len() != count * 3 {
        return Problem::damaged(format!(
            "its palette has {} values, expected {}",
            values.len(),
            count * 3
        ));
    }
    let upper = |value: u64| u8::try_from(value >> 8).unwrap_or(u8::MAX);
    let color = |index: usize| [0, 1, 2].map(|channel| upper(values[channel * count + index]));
    Ok((0..count).map(color).collect())
}
