//! GIF: the first frame on its canvas, as Pillow shows it.

use super::decode::Limits;
use super::problem::{Problem, in_words};
use ::gif::{ColorOutput, DecodeOptions, DecodingError, MemoryLimit};
use std::num::NonZeroU64;

/// Width, height and `[height, width, 3]`.
///
/// What the frame leaves free of the canvas has the transparent index, or index 0. A canvas that is smaller
/// than its frame grows.
pub(super) fn decode(bytes: &[u8], limits: &Limits) -> Result<(u32, u32, Vec<u8>), Problem> {
    // Before anything else is read.
    if let Some(&[a, b, c, d]) = bytes.get(6..10) {
        limits.allow(u16::from_le_bytes([a, b]), u16::from_le_bytes([c, d]))?;
    }
    let mut options = DecodeOptions::new();
    options.set_color_output(ColorOutput::Indexed);
    if let Some(most) = NonZeroU64::new(limits.max_memory()) {
        options.set_memory_limit(MemoryLimit::Bytes(most));
    }
    let mut decoder = options.read_info(bytes).map_err(problem)?;
    let canvas = (u32::from(decoder.width()), u32::from(decoder.height()));
    let frame = decoder.next_frame_info().map_err(problem)?;
    let Some(frame) = frame else {
        return Problem::damaged("it has no frame");
    };
    let (left, top) = (usize::from(frame.left), usize::from(frame.top));
    let (columns, rows) = (usize::from(frame.width), usize::from(frame.height));
    let rest = frame.transparent.unwrap_or(0);
    let right = u32::from(frame.left) + u32::from(frame.width);
    let (width, height) = (
        canvas.0.max(right),
        canvas.1.max(u32::from(frame.top) + u32::from(frame.height)),
    );
    limits.allow(width, height)?;
    let mut indices = vec![0; decoder.buffer_size()];
    decoder.read_into_buffer(&mut indices).map_err(problem)?;
    let colors = colors(decoder.palette().ok());
    let size = |edge: u32| usize::try_from(edge).unwrap_or(usize::MAX);
    let stride = size(width) * 3;
    let mut pixels = colors[usize::from(rest)].repeat(size(width) * size(height));
    if columns > 0 {
        let lines = pixels.chunks_exact_mut(stride).skip(top).take(rows);
        for (line, indices) in lines.zip(indices.chunks_exact(columns)) {
            for (pixel, &index) in line[left * 3..].chunks_exact_mut(3).zip(indices) {
                pixel.copy_from_slice(&colors[usize::from(index)]);
            }
        }
    }
    Ok((width, height, pixels))
}

/// The colour of each index: without a palette, gray.
fn colors(palette: Option<&[u8]>) -> [[u8; 3]; 256] {
    let mut colors = [[0; 3]; 256];
    match palette {
        Some(palette) => {
            for (color, entry) in colors.iter_mut().zip(palette.chunks_exact(3)) {
                color.copy_from_slice(entry);
            }
        }
        None => {
            for (value, color) in (0..=u8::MAX).zip(&mut colors) {
                color.fill(value);
            }
        }
    }
    colors
}

fn problem(error: DecodingError) -> Problem {
    match error {
        DecodingError::Io(error) => error.into(),
        DecodingError::OutOfMemory | DecodingError::MemoryLimit => Problem::Memory,
        DecodingError::UnexpectedEof => Problem::Truncated,
        error => Problem::Damaged(in_words(&error.to_string())),
    }
}
