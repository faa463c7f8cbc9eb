//! BMP, by the `image` crate, with what Pillow does otherwise: where the pixels are, which colour an index has, and how
//! 5 and 6 bits become 8.

use super::decode::{Decoded, Limits};
use super::problem::Problem;
use image::ImageDecoder;
use image::codecs::bmp::BmpDecoder;
use std::borrow::Cow;
use std::io::Cursor;

/// Most colours that a palette may have.
const MAX_COLORS: usize = 1 << 16;

/// The image, with alpha where the header has a mask for it.
pub(super) fn decode(bytes: &[u8], limits: &Limits) -> Result<Decoded, Problem> {
    let header = Header::parse(bytes);
    if header.size == 12 && !matches!(header.bits, 1 | 4 | 8 | 24) {
        return Problem::unsupported(format!(
            "a BMP with a header of OS/2 and {} bits a pixel",
            header.bits
        ));
    }
    let file = header.usual(bytes)?;
    let mut decoded = decode_as_is(&file, limits)?;
    if header.indexed() {
        let colors = header.colors(bytes)?;
        for pixel in decoded.pixels.chunks_exact_mut(3) {
            pixel.copy_from_slice(&colors[usize::from(pixel[0])]);
        }
    } else if let Some(most) = header.most() {
        for pixel in decoded.pixels.chunks_exact_mut(3) {
            for (value, most) in pixel.iter_mut().zip(most) {
                // The crate rounds to the nearest level, Pillow down.
                let stored = (u16::from(*value) * most + 127) / 255;
                *value = u8::try_from(stored * 255 / most).unwrap_or(u8::MAX);
            }
        }
    }
    Ok(decoded)
}

fn decode_as_is(bytes: &[u8], limits: &Limits) -> Result<Decoded, Problem> {
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
    let mut alpha = None;
    if channels == 4 {
        alpha = Some(pixels.chunks_exact(4).map(|pixel| pixel[3]).collect());
        pixels = pixels
            .chunks_exact(4)
            .flat_map(|pixel| [pixel[0], pixel[1], pixel[2]])
            .collect();
    }
    Ok(Decoded {
        width,
        height,
        pixels,
        alpha,
    })
}

/// What of the headers decides how Pillow reads the pixels.
struct Header {
    /// Where the pixels are said to be.
    offset: usize,
    size: usize,
    bits: u16,
    compression: u32,
    /// Colours of the palette, if there is one.
    colors: usize,
    masks: [u32; 3],
}

impl Header {
    fn parse(bytes: &[u8]) -> Header {
        let word = |at: usize| {
            let bytes = bytes.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
            bytes.map_or(0, u32::from_le_bytes)
        };
        let short = |at: usize| u16::try_from(word(at) & 0xffff).unwrap_or(0);
        let large = |at: usize| usize::try_from(word(at)).unwrap_or(usize::MAX);
        let (offset, size) = (large(10), large(14));
        let of_os2 = size == 12;
        let bits = short(if of_os2 { 24 } else { 28 });
        let colors = match if of_os2 { 0 } else { large(46) } {
            0 => 1 << bits.min(16),
            colors => colors,
        };
        Header {
            offset,
            size,
            bits,
            compression: if of_os2 { 0 } else { word(30) },
            colors,
            masks: [word(54), word(58), word(62)],
        }
    }

    /// Whether pixels are indices of a palette, in a way that is decoded.
    fn indexed(&self) -> bool {
        let coded = matches!(
            (self.compression, self.bits),
            (0, 1 | 2 | 4 | 8) | (1, 8) | (2, 4)
        );
        coded && matches!(self.size, 12 | 40 | 52 | 56 | 64 | 108 | 124)
    }

    /// Bytes of a colour.
    fn step(&self) -> usize {
        if self.size == 12 { 3 } else { 4 }
    }

    /// Where the header ends, and the masks that follow the shortest.
    fn end(&self) -> usize {
        let masks = if self.size == 40 && self.compression == 3 {
            12
        } else {
            0
        };
        self.size.saturating_add(14 + masks)
    }

    /// Where Pillow looks for the pixels: behind everything else where the file does not say it, and behind the palette
    /// where the file says that they stand at its begin.
    fn place(&self) -> usize {
        let palette = if self.bits <= 8 {
            self.colors.saturating_mul(self.step())
        } else {
            0
        };
        match self.offset {
            0 => self.end().saturating_add(palette),
            offset if offset == self.size.saturating_add(14) => offset.saturating_add(palette),
            offset => offset,
        }
    }

    /// The file as the crate knows it: with the place of its pixels, and without what version 2 of OS/2 adds. Indices get
    /// a palette whose colours are the indices, for pixels that run lengths leave out are black to the crate, and have index
    /// 0 to Pillow.
    fn usual<'a>(&self, bytes: &'a [u8]) -> Result<Cow<'a, [u8]>, Problem> {
        // 3 and 4 are compressions of OS/2 only.
        let longer = self.size == 64 && self.compression < 3;
        let place = self.place();
        if !self.indexed() && !longer && place == self.offset {
            return Ok(Cow::Borrowed(bytes));
        }
        if matches!(self.compression, 1 | 2) && place % 2 == 1 {
            // Pillow pads by the place in the file, everybody else by the length of a run.
            return Problem::unsupported("a BMP whose run lengths stand at an odd place");
        }
        let mut file = bytes.get(..self.end()).ok_or(Problem::Truncated)?.to_vec();
        if longer {
            file.truncate(54);
            file[14..18].copy_from_slice(&40_u32.to_le_bytes());
        }
        if self.indexed() {
            if self.size > 12 {
                // As many as there can be.
                file[46..50].fill(0);
            }
            for index in (0..=u8::MAX).take(1 << self.bits) {
                file.resize(file.len() + self.step(), index);
            }
        }
        let start = u32::try_from(file.len()).unwrap_or(u32::MAX);
        file[10..14].copy_from_slice(&start.to_le_bytes());
        file.extend_from_slice(bytes.get(place..).unwrap_or_default());
        Ok(Cow::Owned(file))
    }

    /// The colour of each index. Beyond the palette it is black, and where the palette is gray in order, the index.
    fn colors(&self, bytes: &[u8]) -> Result<[[u8; 3]; 256], Problem> {
        if self.colors > MAX_COLORS {
            return Problem::damaged(format!(
                "its palette has {} colours, expected at most {MAX_COLORS}",
                self.colors
            ));
        }
        let palette = bytes.get(self.end()..).unwrap_or_default();
        let colors = palette.chunks_exact(self.step()).take(self.colors);
        let colors: Vec<[u8; 3]> = colors.map(|color| [color[2], color[1], color[0]]).collect();
        let two = self.colors == 2;
        let gray = |index: usize| index.to_le_bytes()[0].saturating_mul(if two { 255 } else { 1 });
        let in_order = colors
            .iter()
            .enumerate()
            .all(|(index, &color)| color == [gray(index); 3]);
        let mut all = [[0; 3]; 256];
        if colors.len() < self.colors || !in_order {
            for (target, color) in all.iter_mut().zip(colors) {
                *target = color;
            }
            return Ok(all);
        }
        // Pillow forgets such a palette, and takes pixels for ones of 1 or 8 bits, whatever they are.
        let bits = if self.colors <= 2 { 1 } else { 8 };
        if bits != self.bits && (self.compression == 0 || bits == 1) {
            return Problem::unsupported(format!(
                "a BMP with {} bits a pixel whose palette has {} levels of gray",
                self.bits, self.colors
            ));
        }
        for (index, target) in (0..=u8::MAX).zip(&mut all) {
            target.fill(if bits == 1 && index > 0 { u8::MAX } else { index });
        }
        Ok(all)
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

#[cfg(test)]
mod tests {
    use super::*;

    /// A BMP of one row: its header, then what stands behind it, and where the pixels are said to be.
    fn row(width: u32, bits: u16, compression: u32, colors: u32, rest: &[u8], offset: u32) -> Vec<u8> {
        let mut bmp = b"BM\0\0\0\0\0\0\0\0".to_vec();
        bmp.extend(offset.to_le_bytes());
        for word in [
            40,
            width,
            1,
            1 | u32::from(bits) << 16,
            compression,
            0,
            0,
            0,
            colors,
            0,
        ] {
            bmp.extend(word.to_le_bytes());
        }
        bmp.extend(rest);
        bmp
    }

    #[test]
    fn pixels_and_colors_are_where_pillow_looks() {
        struct Case {
            name: &'static str,
            file: Vec<u8>,
            expected: Result<&'static [u8], &'static str>,
        }
        let (green, red) = ([0, 200, 0, 0], [0, 0, 100, 0]);
        let two = [green, red].concat();
        let few = |rest: &[u8]| [&two[..], rest].concat();
        let white = [[0; 4], [255, 255, 255, 0]].concat();
        let cases = [
            Case {
                name: "nowhere, behind the header",
                file: row(1, 24, 0, 0, &[1, 2, 3, 0], 0),
                expected: Ok(&[3, 2, 1]),
            },
            Case {
                name: "nowhere, behind the palette",
                file: row(2, 8, 0, 2, &few(&[1, 0, 0, 0]), 0),
                expected: Ok(&[100, 0, 0, 0, 200, 0]),
            },
            Case {
                name: "at the palette, behind it",
                file: row(2, 8, 0, 2, &few(&[1, 0, 0, 0]), 54),
                expected: Ok(&[100, 0, 0, 0, 200, 0]),
            },
            Case {
                name: "an index beyond the palette, in run lengths too",
                file: row(2, 8, 1, 2, &few(&[1, 1, 1, 9, 0, 1]), 62),
                expected: Ok(&[100, 0, 0, 0, 0, 0]),
            },
            Case {
                name: "black and white, of 1 bit",
                file: row(2, 1, 0, 2, &[&white[..], &[0x40, 0, 0, 0]].concat(), 62),
                expected: Ok(&[0, 0, 0, 255, 255, 255]),
            },
            Case {
                name: "black and white, of 8 bits",
                file: row(2, 8, 0, 2, &[&white[..], &[1, 0, 0, 0]].concat(), 62),
                expected: Err("2 levels of gray"),
            },
            Case {
                name: "run lengths at an odd place",
                file: row(2, 8, 1, 2, &few(&[0, 2, 1, 0, 1]), 63),
                expected: Err("odd place"),
            },
            Case {
                name: "too many colours",
                file: row(2, 8, 0, 1 << 17, &few(&[1, 0, 0, 0]), 62),
                expected: Err("131072 colours"),
            },
            Case {
                name: "no pixels",
                file: row(2, 8, 0, 2, &two, 0),
                expected: Err("Truncated"),
            },
        ];
        for case in cases {
            let found = decode(&case.file, &Limits::default());
            match (found, case.expected) {
                (Ok(decoded), Ok(expected)) => assert_eq!(decoded.pixels, expected, "{}", case.name),
                (Err(problem), Err(part)) => {
                    let words = format!("{problem:?}");
                    assert!(words.contains(part), "{}: {words}", case.name);
                }
                (found, _) => panic!("{}: {found:?}", case.name),
            }
        }
    }
}
