//! TIFF's strips and tiles: decompressed, and put where they belong.

use super::super::jpeg::{ColorSpace, Jpeg};
use super::super::problem::Problem;
use super::directory::Directory;
use super::{Layout, Photometric};
use crate::image::decode::Limits;
use fax::Color;
use fax::decoder::{decode_g4, pels};
use flate2::read::ZlibDecoder;
use std::io::Read;
use weezl::BitOrder;

/// The grid of chunks.
struct Grid {
    /// Pixels of a chunk.
    width: usize,
    height: usize,
    /// Chunks from left to right and from top to bottom.
    across: usize,
    down: usize,
    tiles: bool,
}

/// Pixels of a chunk.
#[derive(Clone, Copy)]
struct Shape {
    width: usize,
    /// Rows that are wanted of it.
    height: usize,
    /// Rows that it may have.
    tallest: usize,
}

/// Pixels of a chunk that is a JPEG, and may be larger than the image.
const HARMLESS: u64 = 1 << 24;

/// Most bytes that the chunks of a file of `bytes` have together. Lengths may be wrong, and chunks may share some.
fn most_compressed(bytes: u64) -> u64 {
    bytes.saturating_mul(16).saturating_add(64 << 20)
}

/// `[height, width, channels]`, one byte each: of 16 bits the upper 8; of fewer than 8, the number as it is.
pub(super) fn samples(
    bytes: &[u8],
    directory: &Directory<'_>,
    layout: &Layout,
    limits: &Limits,
) -> Result<Vec<u8>, Problem> {
    let size = |value: u64| usize::try_from(value).map_err(|_| Problem::Memory);
    let (width, height) = (size(layout.width)?, size(layout.height)?);
    let grid = grid(directory, width, height)?;
    let planes = if layout.planar { layout.channels } else { 1 };
    let channels = layout.channels / planes;
    let (starts, lengths) = if grid.tiles { (324, 325) } else { (273, 279) };
    let starts = directory.numbers(starts)?.unwrap_or_default();
    let lengths = directory.numbers(lengths)?.unwrap_or_default();
    let count = grid.across * grid.down * planes;
    // Without compression, lengths say nothing that is needed; some writers leave them out.
    let plain = layout.compression == 1;
    if starts.len() < count || (lengths.len() < count && !plain) {
        return Problem::damaged(format!(
            "it has {} strips or tiles and {} lengths, expected {count}",
            starts.len(),
            lengths.len()
        ));
    }
    let row = (grid.width * channels * usize::try_from(layout.bits).unwrap_or(8)).div_ceil(8);
    let work = (row as u64)
        .saturating_mul(grid.height as u64)
        .saturating_mul(count as u64);
    let room = (width as u64 * height as u64).saturating_mul(layout.channels as u64);
    if work.saturating_add(room) > limits.max_memory() {
        return Err(Problem::Memory);
    }
    // What makes no pixels takes time too: chunks that are all the same bytes of the file.
    let listed = lengths
        .iter()
        .take(count)
        .map(|length| (*length).min(bytes.len() as u64));
    if !plain && listed.fold(0, u64::saturating_add) > most_compressed(bytes.len() as u64) {
        return Problem::damaged("its strips or tiles have the same bytes many times");
    }
    let mut samples = vec![0; width * height * layout.channels];
    let mut line = vec![0; grid.width * channels];
    for (index, &start) in starts.iter().take(count).enumerate() {
        let (plane, place) = (
            index / (grid.across * grid.down),
            index % (grid.across * grid.down),
        );
        let (top, left) = (
            place / grid.across * grid.height,
            place % grid.across * grid.width,
        );
        // The last strip ends with the image, tiles do not.
        let rows = if grid.tiles {
            grid.height
        } else {
            grid.height.min(height - top)
        };
        let rest = (bytes.len() as u64).saturating_sub(start);
        let length = if plain { rest } else { lengths[index].min(rest) };
        let data = directory.slice(start, length)?;
        // The last strip may have been compressed as high as the others.
        let tallest = if grid.tiles || top + grid.height < height {
            rows
        } else {
            grid.height.max(1 << 12)
        };
        let shape = Shape {
            width: grid.width,
            height: rows,
            tallest,
        };
        if layout.compression == 7 && (grid.width as u64).saturating_mul(rows as u64) > HARMLESS {
            // Its decoder takes several times the memory of the pixels that are wanted.
            limits.allow(grid.width as u64, rows as u64)?;
        }
        let data = decompress(data, directory, layout, (channels, row * rows), shape)?;
        let columns = grid.width.min(width - left);
        for (y, data) in data.chunks_exact(row).enumerate().take(rows.min(height - top)) {
            unpack(data, layout, channels, directory.little, &mut line);
            let target =
                &mut samples[((top + y) * width + left) * layout.channels..][..columns * layout.channels];
            let pixels = target.chunks_exact_mut(layout.channels);
            for (pixel, values) in pixels.zip(line.chunks_exact(channels)) {
                pixel[plane..plane + channels].copy_from_slice(values);
            }
        }
    }
    Ok(samples)
}

fn grid(directory: &Directory<'_>, width: usize, height: usize) -> Result<Grid, Problem> {
    let edge = |tag: u16, default: Option<usize>| {
        let found = directory
            .number(tag)?
            .map(|edge| usize::try_from(edge).unwrap_or(usize::MAX));
        match found.or(default) {
            Some(edge) if edge > 0 => Ok(edge),
            _ => Problem::damaged("its strips or tiles have no pixels"),
        }
    };
    let tiles = directory.number(322)?.is_some();
    let (across, down) = if tiles {
        (edge(322, None)?, edge(323, None)?)
    } else {
        (width, edge(278, Some(height))?.min(height))
    };
    if across > 1 << 20 || down > 1 << 20 {
        return Err(Problem::Memory);
    }
    Ok(Grid {
        width: across,
        height: down,
        across: width.div_ceil(across),
        down: height.div_ceil(down),
        tiles,
    })
}

/// The `expected` bytes of a chunk of `channels` channels and `shape` pixels.
fn decompress(
    data: &[u8],
    directory: &Directory<'_>,
    layout: &Layout,
    (channels, expected): (usize, usize),
    shape: Shape,
) -> Result<Vec<u8>, Problem> {
    let out = match layout.compression {
        1 => {
            let data = data.get(..expected).ok_or(Problem::Truncated)?;
            if layout.reversed {
                data.iter().map(|byte| byte.reverse_bits()).collect()
            } else {
                data.to_vec()
            }
        }
        4 => fax(data, layout.reversed, shape)?,
        5 => lzw(data, expected)?,
        7 => jpeg(data, directory, layout, channels, shape)?,
        32_773 => pack_bits(data, expected)?,
        _ => {
            let mut out = vec![0; expected];
            ZlibDecoder::new(data).read_exact(&mut out)?;
            out
        }
    };
    if out.len() < expected {
        return Err(Problem::Truncated);
    }
    Ok(out)
}

/// Group 4 fax: rows of bits, white ones 0.
fn fax(data: &[u8], reversed: bool, shape: Shape) -> Result<Vec<u8>, Problem> {
    let Shape { width, height, .. } = shape;
    let size = |edge: usize| u16::try_from(edge).map_err(|_| Problem::Memory);
    let (columns, rows) = (size(width)?, size(height)?);
    let bytes = data
        .iter()
        .map(|&byte| if reversed { byte.reverse_bits() } else { byte });
    let mut out = Vec::with_capacity(width.div_ceil(8) * height);
    let decoded = decode_g4(bytes, columns, Some(rows), |line| {
        let row = out.len();
        out.resize(row + width.div_ceil(8), 0);
        for (place, color) in pels(line, columns).enumerate() {
            if color == Color::Black {
                out[row + place / 8] |= 0x80 >> (place % 8);
            }
        }
    });
    match decoded {
        Some(()) => Ok(out),
        None => Problem::damaged("its fax codes are wrong"),
    }
}

fn lzw(data: &[u8], expected: usize) -> Result<Vec<u8>, Problem> {
    if data.starts_with(&[0, 1]) {
        return Problem::unsupported("a TIFF with LZW compression of the old kind");
    }
    let mut decoder = weezl::decode::Decoder::with_tiff_size_switch(BitOrder::Msb, 8);
    let mut out = vec![0; expected];
    let (mut read, mut written) = (0, 0);
    while written < expected {
        let result = decoder.decode_bytes(&data[read..], &mut out[written..]);
        read += result.consumed_in;
        written += result.consumed_out;
        match result.status {
            Ok(weezl::LzwStatus::Ok) if result.consumed_in + result.consumed_out > 0 => {}
            Ok(_) if written < expected => return Err(Problem::Truncated),
            Ok(_) => {}
            Err(_) => return Problem::damaged("its LZW codes are wrong"),
        }
    }
    Ok(out)
}

fn pack_bits(data: &[u8], expected: usize) -> Result<Vec<u8>, Problem> {
    let mut out = Vec::with_capacity(expected);
    let mut rest = data;
    while out.len() < expected {
        let (&head, after) = rest.split_first().ok_or(Problem::Truncated)?;
        let count = usize::from(head);
        if head < 128 {
            let (piece, after) = after.split_at_checked(count + 1).ok_or(Problem::Truncated)?;
            out.extend_from_slice(piece);
            rest = after;
        } else if head > 128 {
            let (&value, after) = after.split_first().ok_or(Problem::Truncated)?;
            out.extend(std::iter::repeat_n(value, 257 - count));
            rest = after;
        } else {
            rest = after;
        }
    }
    out.truncate(expected);
    Ok(out)
}

/// A chunk that is a JPEG; its tables may stand in the directory.
fn jpeg(
    data: &[u8],
    directory: &Directory<'_>,
    layout: &Layout,
    channels: usize,
    Shape {
        width,
        height,
        tallest,
    }: Shape,
) -> Result<Vec<u8>, Problem> {
    let space = match (layout.photometric, channels) {
        (Photometric::Ycc, 3) => ColorSpace::Ycc,
        (Photometric::Rgb, 3) => ColorSpace::Rgb,
        (Photometric::White | Photometric::Black | Photometric::Palette, 1) => ColorSpace::Gray,
        _ => return Problem::unsupported(format!("a TIFF with JPEG compression and {channels} channels")),
    };
    let tables = directory.data(347)?.unwrap_or_default();
    let whole = match (tables.strip_suffix(b"\xff\xd9"), data.strip_prefix(b"\xff\xd8")) {
        (Some(tables), Some(data)) => [tables, data].concat(),
        _ => data.to_vec(),
    };
    if !whole.starts_with(b"\xff\xd8\xff") {
        return Problem::damaged("a strip or tile is no JPEG");
    }
    let jpeg = Jpeg::open(&whole)?;
    let (found_width, found_height) = jpeg.size();
    let size = |edge: u32| usize::try_from(edge).unwrap_or(usize::MAX);
    if size(found_width) != width || size(found_height) < height || size(found_height) > tallest {
        return Problem::damaged(format!(
            "a strip or tile is {found_width} x {found_height} pixels, expected {width} x {height}"
        ));
    }
    let (pixels, _) = jpeg.decode(Some(space))?;
    Ok(match channels {
        1 => pixels.chunks_exact(3).map(|pixel| pixel[0]).collect(),
        _ => pixels,
    })
}

/// A row of packed samples as one byte each.
fn unpack(data: &[u8], layout: &Layout, channels: usize, little: bool, line: &mut [u8]) {
    match layout.bits {
        8 => {
            line.copy_from_slice(&data[..line.len()]);
            if layout.predictor {
                for index in channels..line.len() {
                    line[index] = line[index].wrapping_add(line[index - channels]);
                }
            }
        }
        16 => {
            let value = |pair: &[u8]| {
                let pair = [pair[0], pair[1]];
                if little {
                    u16::from_le_bytes(pair)
                } else {
                    u16::from_be_bytes(pair)
                }
            };
            let mut before = [0_u16; 16];
            for (index, (out, pair)) in line.iter_mut().zip(data.chunks_exact(2)).enumerate() {
                let mut sample = value(pair);
                if layout.predictor {
                    sample = sample.wrapping_add(before[index % channels]);
                    before[index % channels] = sample;
                }
                *out = sample.to_be_bytes()[0];
            }
        }
        bits => {
            let bits = bits as usize;
            let mask = (1_u8 << bits) - 1;
            for (index, out) in line.iter_mut().enumerate() {
                let at = index * bits;
                *out = data[at / 8] >> (8 - bits - at % 8) & mask;
            }
        }
    }
}
