//! GIF: the first frame on its canvas, as Pillow shows it.

use super::decode::Limits;
use super::problem::{Problem, in_words};
use ::gif::{ColorOutput, DecodeOptions, DecodingError, MemoryLimit};
use ::image::{DynamicImage, RgbImage, RgbaImage};
use std::io::Read;
use std::num::NonZeroU64;

/// The first frame, with alpha where an index is transparent.
///
/// What the frame leaves free of the canvas has the transparent index, or index 0. A canvas that is smaller
/// than its frame grows.
pub(super) fn decode(bytes: &[u8], limits: &Limits) -> Result<DynamicImage, Problem> {
    // Before anything else is read. A canvas without pixels may grow.
    if let Some(&[a, b, c, d]) = bytes.get(6..10) {
        let (width, height) = (u16::from_le_bytes([a, b]), u16::from_le_bytes([c, d]));
        limits.allow(width.max(1), height.max(1))?;
    }
    let (head, rest) = before_frame(bytes)?;
    let mut options = DecodeOptions::new();
    options.set_color_output(ColorOutput::Indexed);
    if let Some(most) = NonZeroU64::new(limits.max_memory()) {
        options.set_memory_limit(MemoryLimit::Bytes(most));
    }
    let mut decoder = options.read_info(head.chain(rest)).map_err(problem)?;
    let canvas = (u32::from(decoder.width()), u32::from(decoder.height()));
    let frame = decoder.next_frame_info().map_err(problem)?;
    let Some(frame) = frame else {
        return Problem::damaged("it has no frame");
    };
    let (left, top) = (usize::from(frame.left), usize::from(frame.top));
    let (columns, rows) = (usize::from(frame.width), usize::from(frame.height));
    let transparent = frame.transparent;
    let rest = transparent.unwrap_or(0);
    let own_in_order = frame.palette.as_deref().is_some_and(in_order);
    let right = u32::from(frame.left) + u32::from(frame.width);
    let (width, height) = (
        canvas.0.max(right),
        canvas.1.max(u32::from(frame.top) + u32::from(frame.height)),
    );
    limits.allow(width, height)?;
    if own_in_order && decoder.global_palette().is_some_and(|palette| !in_order(palette)) {
        // Pillow forgets the frame's, and takes the file's.
        return Problem::unsupported("a GIF whose first frame has a gray palette beside that of the file");
    }
    let mut indices = vec![0; decoder.buffer_size()];
    decoder.read_into_buffer(&mut indices).map_err(problem)?;
    let colors = colors(decoder.palette().ok());
    let size = |edge: u32| usize::try_from(edge).unwrap_or(usize::MAX);
    let mut shown = vec![rest; size(width) * size(height)];
    if columns > 0 {
        let lines = shown.chunks_exact_mut(size(width)).skip(top).take(rows);
        for (line, indices) in lines.zip(indices.chunks_exact(columns)) {
            line[left..left + columns].copy_from_slice(indices);
        }
    }
    let color = |index: u8| colors[usize::from(index)];
    let image = match transparent {
        None => {
            let pixels = shown.into_iter().flat_map(color).collect();
            RgbImage::from_raw(width, height, pixels).map(DynamicImage::ImageRgb8)
        }
        Some(transparent) => {
            let alpha = |index: u8| if index == transparent { 0 } else { 255 };
            let pixels = shown.into_iter().flat_map(|index| {
                let [red, green, blue] = color(index);
                [red, green, blue, alpha(index)]
            });
            RgbaImage::from_raw(width, height, pixels.collect()).map(DynamicImage::ImageRgba8)
        }
    };
    image.map_or_else(
        || Problem::damaged("it has other pixels than its header says"),
        Ok,
    )
}

/// What stands before the first frame, and the rest of the file from there. Of extensions, only which index is transparent
/// is kept, as Pillow reads it; it steps over bytes that start no block.
fn before_frame(bytes: &[u8]) -> Result<(Vec<u8>, &[u8]), Problem> {
    let flags = *bytes.get(10).ok_or(Problem::Truncated)?;
    let palette = if flags & 0x80 != 0 { 6 << (flags & 7) } else { 0 };
    let (head, mut rest) = bytes.split_at_checked(13 + palette).ok_or(Problem::Truncated)?;
    let mut transparent = None;
    loop {
        let (&kind, after) = rest.split_first().ok_or(Problem::Truncated)?;
        match kind {
            b',' => break,
            b';' => return Problem::damaged("it has no frame"),
            b'!' => {
                let (&label, mut after) = after.split_first().ok_or(Problem::Truncated)?;
                let block = sub_block(&mut after);
                match (label, block) {
                    (0xf9, Some(&[flags, _, _, index, ..])) if flags & 1 != 0 => transparent = Some(index),
                    (0xf9, Some(block)) if block.len() < 4 => {
                        return Problem::damaged(format!(
                            "a graphic control extension has {} bytes, expected 4",
                            block.len()
                        ));
                    }
                    // How often an animation is repeated.
                    (0xff, Some(block)) if block.starts_with(b"NETSCAPE2.0") => {
                        sub_block(&mut after);
                    }
                    _ => {}
                }
                // To Pillow, the first block of an extension does not end it, but that of a comment.
                if label != 0xfe || block.is_some() {
                    while sub_block(&mut after).is_some() {}
                }
                rest = after;
            }
            _ => rest = after,
        }
    }
    let mut head = head.to_vec();
    if let Some(index) = transparent {
        head.extend([b'!', 0xf9, 4, 1, 0, 0, index, 0]);
    }
    Ok((head, rest))
}

/// Takes a block of data off the front; `None` if it has no bytes, which ends a series of them.
fn sub_block<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (&length, after) = rest.split_first()?;
    let (block, after) = after.split_at(usize::from(length).min(after.len()));
    *rest = after;
    (length > 0).then_some(block)
}

/// Whether the colour of each index is that level of gray.
fn in_order(palette: &[u8]) -> bool {
    let mut colors = palette.chunks_exact(3).enumerate();
    colors.all(|(index, color)| color.iter().all(|&value| usize::from(value) == index))
}

/// The colour of each index: without a palette, gray. A palette that is gray in order is none to Pillow; beyond any other,
/// colours are black.
fn colors(palette: Option<&[u8]>) -> [[u8; 3]; 256] {
    let mut colors = [[0; 3]; 256];
    match palette.filter(|palette| !in_order(palette)) {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_before_the_frame_are_read_as_in_pillow() {
        let control = |flags: u8, index: u8| vec![b'!', 0xf9, 4, flags, 0, 0, index, 0];
        let cases: [(&str, Vec<u8>, Option<u8>); 7] = [
            ("none", vec![], None),
            ("stray bytes", vec![0, 0, 7], None),
            ("an unknown extension", b"!\x77\x02ab\0".to_vec(), None),
            ("a comment without text", b"!\xfe\0".to_vec(), None),
            ("an index", control(1, 3), Some(3)),
            ("the last index", [control(1, 3), control(1, 5)].concat(), Some(5)),
            (
                "an index, then none",
                [control(1, 3), control(0, 5)].concat(),
                Some(3),
            ),
        ];
        let start = b"GIF89a\x01\0\x01\0\0\0\0";
        for (name, blocks, transparent) in cases {
            let file = [&start[..], &blocks, b",rest"].concat();
            let (head, rest) = before_frame(&file).unwrap();
            assert_eq!(rest, b",rest", "{name}");
            let expected = transparent.map_or(vec![], |index| control(1, index));
            assert_eq!(head, [&start[..], &expected].concat(), "{name}");
        }
        let refused = [&b";"[..], b"", b"!", b"!\xf9\x01\0\0,", b"!\xfe\x09,"];
        for blocks in refused {
            let file = [&start[..], blocks].concat();
            assert!(before_frame(&file).is_err(), "{blocks:?}");
        }
    }

    #[test]
    fn a_palette_that_is_gray_in_order_is_none() {
        assert!(in_order(&[0, 0, 0, 1, 1, 1]));
        assert_eq!(colors(Some(&[0, 0, 0, 1, 1, 1]))[9], [9; 3]);
        assert_eq!(colors(Some(&[0, 0, 0, 1, 1, 2]))[9], [0; 3]);
        assert_eq!(colors(Some(&[0, 0, 0, 1, 1, 2]))[1], [1, 1, 2]);
    }
}
