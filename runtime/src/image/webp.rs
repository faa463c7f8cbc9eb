//! WebP's animations: the first frame alone on an empty canvas, as Pillow shows it. Decoders that play animations
//! blend it with a background.

use super::problem::Problem;
use image::RgbImage;

/// The first frame of an animation.
pub(super) struct Frame {
    /// Width and height of the canvas.
    canvas: (u32, u32),
    /// Where the frame is, and its width and height.
    left: u32,
    top: u32,
    width: u32,
    height: u32,
    /// The frame as a file of its own.
    pub(super) still: Vec<u8>,
}

impl Frame {
    /// The first frame of the file `bytes`, if it is an animation.
    pub(super) fn find(bytes: &[u8]) -> Result<Option<Frame>, Problem> {
        let mut chunks = Chunks(bytes.get(12..).unwrap_or_default());
        let canvas = match chunks.next() {
            Some((b"VP8X", data, _)) if data.first().is_some_and(|flags| flags & 2 != 0) => {
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
            still: [b"RIFF", &size.to_le_bytes()[..], &body].concat(),
        }))
    }

    /// The canvas with `picture`, which `still` was decoded to.
    pub(super) fn paint(&self, picture: RgbImage) -> Result<RgbImage, Problem> {
        let (width, height) = self.canvas;
        let fits = self.left + self.width <= width && self.top + self.height <= height;
        if !fits || picture.dimensions() != (self.width, self.height) {
            return Problem::damaged("its first frame has another size than it says");
        }
        if self.canvas == picture.dimensions() {
            return Ok(picture);
        }
        let mut canvas = RgbImage::new(width, height);
        image::imageops::replace(&mut canvas, &picture, self.left.into(), self.top.into());
        Ok(canvas)
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
