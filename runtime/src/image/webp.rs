//! WebP's containers. Of animations the first frame is shown, alone on an empty canvas, as Pillow shows it; decoders that
//! play animations blend it with a background. What stands beside the pixels counts only if the header announces it.

use super::problem::Problem;
use image::metadata::Orientation;
use image::{DynamicImage, ImageBuffer, Pixel, RgbImage, RgbaImage};
use std::borrow::Cow;

/// What the header of a container announces.
mod flags {
    pub(super) const ANIMATION: u8 = 2;
    pub(super) const XMP: u8 = 4;
    pub(super) const EXIF: u8 = 8;
    pub(super) const ALPHA: u8 = 16;
}

/// Which way up the file `bytes` is.
pub(super) fn orientation(bytes: &[u8]) -> Orientation {
    let announced = announced(bytes);
    let part = |flag: u8, name: &[u8; 4]| {
        let found = chunks(bytes).find(|(kind, _, _)| *kind == name)?;
        (announced & flag != 0 && !found.1.is_empty()).then_some(found.1)
    };
    super::orientation::of(part(flags::EXIF, b"EXIF"), part(flags::XMP, b"XMP "))
}

/// The file `bytes` with a header that announces nothing that is not there: the decoder refuses such a file.
pub(super) fn usual(bytes: &[u8]) -> Cow<'_, [u8]> {
    let announced = announced(bytes);
    let has = |name: &[u8; 4]| chunks(bytes).any(|(kind, _, _)| kind == name);
    let mut kept = announced & !(flags::EXIF | flags::XMP);
    if has(b"VP8 ") && !has(b"ALPH") {
        kept &= !flags::ALPHA;
    }
    if kept == announced {
        return Cow::Borrowed(bytes);
    }
    let mut file = bytes.to_vec();
    file[20] = kept;
    Cow::Owned(file)
}

/// The flags of the header, if the file is a container.
fn announced(bytes: &[u8]) -> u8 {
    match chunks(bytes).next() {
        Some((b"VP8X", &[flags, ..], _)) => flags,
        _ => 0,
    }
}

/// The chunks of the file `bytes`.
fn chunks(bytes: &[u8]) -> Chunks<'_> {
    let size = bytes.get(4..).and_then(<[u8]>::first_chunk);
    let size = size.and_then(|&size| usize::try_from(u32::from_le_bytes(size)).ok());
    let end = size.unwrap_or(0).saturating_add(8).min(bytes.len());
    Chunks(bytes.get(12..end).unwrap_or_default())
}

/// The first frame of an animation.
pub(super) struct Frame {
    /// Width and height of the canvas.
    canvas: (u32, u32),
    /// Where the frame is, and its width and height.
    left: u32,
    top: u32,
    width: u32,
    height: u32,
    /// Whether the header announces alpha: what the frame leaves free is transparent then.
    alpha: bool,
    /// The frame as a file of its own.
    pub(super) still: Vec<u8>,
}

impl Frame {
    /// The first frame of the file `bytes`, if it is an animation.
    pub(super) fn find(bytes: &[u8]) -> Result<Option<Frame>, Problem> {
        let mut chunks = self::chunks(bytes);
        let canvas = match chunks.next() {
            Some((b"VP8X", data, _)) if data.first().is_some_and(|flag| flag & flags::ANIMATION != 0) => {
                (number(data, 4)? + 1, number(data, 7)? + 1)
            }
            _ => return Ok(None),
        };
        let Some((_, data, _)) = chunks.find(|(kind, _, _)| *kind == b"ANMF") else {
            return Err(Problem::Truncated);
        };
        let (width, height) = (number(data, 6)? + 1, number(data, 9)? + 1);
        let (mut parts, mut alpha) = (Vec::new(), false);
        for (kind, _, chunk) in Chunks(data.get(16..).unwrap_or_default()) {
            if matches!(kind, b"ALPH" | b"VP8 " | b"VP8L") {
                alpha |= kind == b"ALPH";
                parts.extend_from_slice(chunk);
            }
        }
        let mut body = b"WEBP".to_vec();
        if alpha {
            body.extend(b"VP8X\x0a\0\0\0\x10\0\0\0");
            body.extend(&(width - 1).to_le_bytes()[..3]);
            body.extend(&(height - 1).to_le_bytes()[..3]);
        }
        body.extend(parts);
        let size = u32::try_from(body.len()).map_err(|_| Problem::Memory)?;
        Ok(Some(Frame {
            canvas,
            left: number(data, 0)? * 2,
            top: number(data, 3)? * 2,
            width,
            height,
            alpha: announced(bytes) & flags::ALPHA != 0,
            still: [b"RIFF", &size.to_le_bytes()[..], &body].concat(),
        }))
    }

    /// The canvas with `picture`, which `still` was decoded to.
    pub(super) fn paint(&self, picture: DynamicImage) -> Result<DynamicImage, Problem> {
        let (width, height) = self.canvas;
        let fits = self.left + self.width <= width && self.top + self.height <= height;
        if !fits || (picture.width(), picture.height()) != (self.width, self.height) {
            return Problem::damaged("its first frame has another size than it says");
        }
        Ok(if self.alpha {
            let canvas = RgbaImage::new(width, height);
            DynamicImage::ImageRgba8(self.on_canvas(canvas, picture.into_rgba8()))
        } else {
            let canvas = RgbImage::new(width, height);
            DynamicImage::ImageRgb8(self.on_canvas(canvas, picture.into_rgb8()))
        })
    }

    fn on_canvas<P>(
        &self,
        mut canvas: ImageBuffer<P, Vec<u8>>,
        picture: ImageBuffer<P, Vec<u8>>,
    ) -> ImageBuffer<P, Vec<u8>>
    where
        P: Pixel<Subpixel = u8>,
    {
        if canvas.dimensions() == picture.dimensions() {
            return picture;
        }
        image::imageops::replace(&mut canvas, &picture, self.left.into(), self.top.into());
        canvas
    }
}

/// The 24-bit number at `at`.
fn number(data: &[u8], at: usize) -> Result<u32, Problem> {
    match data.get(at..at + 3) {
        Some(&[a, b, c]) => Ok(u32::from_le_bytes([a, b, c, 0])),
        _ => Err(Problem::Truncated),
    }
}

/// Chunks: kind, contents, and all of it with header and padding.
struct Chunks<'a>(&'a [u8]);

impl<'a> Iterator for Chunks<'a> {
    type Item = (&'a [u8; 4], &'a [u8], &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let kind = self.0.first_chunk()?;
        let length = u32::from_le_bytes(*self.0.get(4..)?.first_chunk()?);
        let length = usize::try_from(length).ok()?;
        let data = self.0.get(8..)?.get(..length)?;
        let end = self.0.len().min(8 + length + length % 2);
        let (chunk, rest) = self.0.split_at(end);
        self.0 = rest;
        Some((kind, data, chunk))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Chunk<'a> = (&'a [u8; 4], &'a [u8]);

    fn file(flags: u8, chunks: &[Chunk<'_>]) -> Vec<u8> {
        let mut body = b"WEBPVP8X\x0a\0\0\0".to_vec();
        body.extend([flags, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        for (kind, data) in chunks {
            body.extend(*kind);
            body.extend(u32::try_from(data.len()).unwrap().to_le_bytes());
            body.extend(*data);
            body.resize(body.len() + data.len() % 2, 0);
        }
        let size = u32::try_from(body.len()).unwrap();
        [b"RIFF", &size.to_le_bytes()[..], &body].concat()
    }

    #[test]
    fn what_is_not_announced_does_not_count() {
        let exif = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0";
        let parts: [Chunk<'_>; 2] = [(b"EXIF", exif), (b"XMP ", b"tiff:Orientation=\"8\"")];
        let cases = [
            (0, &parts[..], Orientation::NoTransforms),
            (8, &parts, Orientation::Rotate90),
            (4, &parts, Orientation::Rotate270),
            (12, &parts, Orientation::Rotate90),
            (12, &parts[1..], Orientation::Rotate270),
            (8, &[(b"EXIF", b"")], Orientation::NoTransforms),
            (12, &[], Orientation::NoTransforms),
        ];
        for (flags, parts, expected) in cases {
            assert_eq!(orientation(&file(flags, parts)), expected, "{flags} {parts:?}");
        }
        let mut behind = file(8, &parts);
        behind[4..8].copy_from_slice(&22_u32.to_le_bytes());
        assert_eq!(orientation(&behind), Orientation::NoTransforms, "behind the end");
    }

    #[test]
    fn headers_announce_what_is_there() {
        let (lossy, alpha): (Chunk<'_>, Chunk<'_>) = ((b"VP8 ", b"x"), (b"ALPH", b"x"));
        for (flags, parts, expected) in [
            (0x1c, &[lossy][..], 0),
            (0x1c, &[alpha, lossy], 0x10),
            (0x1e, &[], 0x12),
            (0, &[lossy], 0),
        ] {
            assert_eq!(usual(&file(flags, parts))[20], expected, "{flags} {parts:?}");
        }
        assert_eq!(usual(b"RIFF"), &b"RIFF"[..]);
    }
}
