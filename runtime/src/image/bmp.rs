//! BMP, by the `image` crate, with what Pillow does otherwise: how 5 and 6 bits become 8, and which colour
//! pixels have that run lengths leave out.

use super::decode::Limits;
use super::problem::Problem;
use image::ImageDecoder;
use image::codecs::bmp::BmpDecoder;
use std::borrow::Cow;
use std::io::Cursor;
use std::ops::Range;

/// Width, height and `[height, width, 3]`.
pub(super) fn decode(bytes: &[u8], limits: &Limits) -> Result<(u32, u32, Vec<u8>), Problem> {
    let bytes = &*usual(bytes);
    let header = Header::parse(bytes);
    if header.size == 12 && !matches!(header.bits, 1 | 4 | 8 | 24) {
        return Problem::unsupported(format!(
            "a BMP with a header of OS/2 and {} bits a pixel",
            header.bits
        ));
    }
    let Some(palette) = header.palette(bytes) else {
        let (width, height, mut pixels) = decode_as_is(bytes, limits)?;
        if let Some(most) = header.most() {
            for pixel in pixels.chunks_exact_mut(3) {
                for (value, most) in pixel.iter_mut().zip(most) {
                    // The crate rounds to the nearest level, Pillow down.
                    let stored = (u16::from(*value) * most + 127) / 255;
                    *value = u8::try_from(stored * 255 / most).unwrap_or(u8::MAX);
                }
            }
        }
        return Ok((width, height, pixels));
    };
    // Pixels that run lengths leave out are black to the crate, and have index 0 to Pillow. So the crate gets
    // a palette that says the index.
    let mut indexed = bytes.to_vec();
    for (index, color) in (0..=u8::MAX).zip(indexed[palette.clone()].chunks_exact_mut(4)) {
        color.fill(index);
    }
    let (width, height, mut pixels) = decode_as_is(&indexed, limits)?;
    for pixel in pixels.chunks_exact_mut(3) {
        let color = bytes[palette.clone()].chunks_exact(4).nth(pixel[0].into());
        pixel.copy_from_slice(&color.map_or([0; 3], |color| [color[2], color[1], color[0]]));
    }
    Ok((width, height, pixels))
}

/// The file with headers that the crate knows: without what version 2 of OS/2 adds, and with the place of the
/// pixels behind the palette where it is said to be before.
fn usual(bytes: &[u8]) -> Cow<'_, [u8]> {
    let word = |at: usize| {
        bytes
            .get(at..at + 4)
            .map(|word| u32::from_le_bytes([word[0], word[1], word[2], word[3]]))
    };
    let (Some(offset), Some(size)) = (word(10), word(14)) else {
        return Cow::Borrowed(bytes);
    };
    let header = Header::parse(bytes);
    let mut file = bytes.to_vec();
    let place;
    // 3 and 4 are compressions of OS/2 only.
    if size == 64 && header.compression < 3 && bytes.len() > 78 {
        file.drain(54..78);
        file[14..18].copy_from_slice(&40_u32.to_le_bytes());
        place = offset.saturating_sub(24);
    } else if header.bits <= 8 && size >= 40 && Some(offset) == size.checked_add(14) {
        let colors = match header.colors {
            0 => 1 << header.bits,
            colors => colors,
        };
        place = offset.saturating_add(colors.saturating_mul(4));
    } else {
        return Cow::Borrowed(bytes);
    }
    file[10..14].copy_from_slice(&place.to_le_bytes());
    Cow::Owned(file)
}

fn decode_as_is(bytes: &[u8], limits: &Limits) -> Result<(u32, u32, Vec<u8>), Problem> {
    let mut decoder = BmpDecoder::new(Cursor::new(bytes))?;
    let (width, height) = decoder.dimensions();
    limits.allow(width, height)?;
    let mut bounds = image::Limits::default();
    bounds.max_alloc = Some(limits.max_memory());
    decoder.set_limits(bounds)?;
    let channels = usize::from(decoder.color_type().channel_count());
    let size = usize::try_from(decoder.total_bytes()).map_err(|_| Problem::Memory)?;
    let mut pixels = vec![0; size];
    decoder.read_image(&mut pixels)?;
    if channels == 4 {
        pixels = pixels
            .chunks_exact(4)
            .flat_map(|pixel| [pixel[0], pixel[1], pixel[2]])
            .collect();
    }
    Ok((width, height, pixels))
}

/// What of the headers decides how Pillow reads the pixels.
struct Header {
    size: u32,
    bits: u16,
    compression: u32,
    colors: u32,
    masks: [u32; 3],
}

impl Header {
    fn parse(bytes: &[u8]) -> Header {
        let word = |at: usize| {
            let bytes = bytes.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
            bytes.map_or(0, u32::from_le_bytes)
        };
        let short = |at: usize| u16::try_from(word(at) & 0xffff).unwrap_or(0);
        if word(14) == 12 {
            return Header {
                size: 12,
                bits: short(24),
                compression: 0,
                colors: 0,
                masks: [0; 3],
            };
        }
        Header {
            size: word(14),
            bits: short(28),
            compression: word(30),
            colors: word(46),
            masks: [word(54), word(58), word(62)],
        }
    }

    /// Where the palette is (blue, green, red and nothing), if pixels are coded in run lengths.
    fn palette(&self, bytes: &[u8]) -> Option<Range<usize>> {
        if !matches!((self.compression, self.bits), (1, 8) | (2, 4)) {
            return None;
        }
        let colors = match self.colors {
            0 => 1 << self.bits,
            colors => usize::try_from(colors).ok()?.min(1 << self.bits),
        };
        let start = 14 + usize::try_from(self.size).ok()?;
        let range = start..start + colors * 4;
        bytes.get(range.clone()).is_some().then_some(range)
    }

    /// The largest value of each channel of 16-bit pixels, where they are as Pillow knows them.
    fn most(&self) -> Option<[u16; 3]> {
        match (self.bits, self.compression, self.masks) {
            (16, 0, _) | (16, 3, [0x7c00, 0x3e0, 0x1f]) => Some([31; 3]),
            (16, 3, [0xf800, 0x7e0, 0x1f]) => Some([31, 63, 31]),
            _ => None,
        }
    }
}
