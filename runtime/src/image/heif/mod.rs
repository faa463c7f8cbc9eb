//! HEIC and AVIF: photos of phones, decoded by libheif, which is opened at run time.
//!
//! libheif puts tiles together, crops, turns and mirrors as the file's boxes say, and makes RGB of YCbCr as its `nclx`
//! box or the codec's own words say. The orientation of EXIF says the same once more and is not applied. As in the
//! other formats alpha is beside the colours, channels of more than 8 bits keep their upper byte, and ICC profiles are not
//! looked at. Colours that are stored multiplied with alpha are divided by it. Of several images in a file the primary one is
//! decoded.
//!
//! libheif is C++, and its older versions take as much memory and time as a file wants. So the file is looked at here
//! first ([`survey()`]): it must hold all that its image is made of, every part of that must be within the limits in
//! the codec's own words, and so must be all parts together.

mod boxes;
mod calls;
mod coded;
mod items;
mod library;
#[cfg(test)]
mod tests;

use super::decode::Decoded;
use super::problem::Problem;
use super::{ImageError, Limits};
use boxes::{Cursor, letters};
use coded::Coded;
use items::Items;
use std::borrow::Cow;
use std::collections::BTreeMap;

pub use library::VARIABLE;

/// Which kinds are decoded.
pub(super) const EXPECTED: &str =
    "an image coded in HEVC or AV1; `heif-convert in.heif out.png` may convert it";

/// How deep images are made of images.
const DEPTH: u32 = 8;

/// Of the largest image, how many times its pixels the parts of one may have together: tiles stand over its edges, and
/// alpha is an image too.
const TIMES: u64 = 4;

/// How many times the bytes of a file may belong to its items.
const SHARED: usize = 4;

/// Bytes that they may have together in any file: tiles of one colour are one tile.
const LITTLE: usize = 1 << 20;

/// Pixels that a coded image may stand over each edge: blocks are of up to 64.
const OVERHANG: u64 = 63;

/// Pixels that small images may take too: a few tiles.
const LEAST: u64 = 1 << 22;

/// Pixels that a coded image counts as at least: to decode a small one takes as long.
const SMALL: u64 = 1 << 16;

/// A codec inside HEIF.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Codec {
    /// That of HEIC.
    Hevc,
    /// That of AVIF.
    Av1,
}

/// What a HEIC or AVIF file asks of a decoder.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Survey {
    /// What its image and all that this is made of are coded in, without repetitions.
    pub codecs: Vec<Codec>,
    /// Pixels that are decoded and put together until the image is whole; each coded part counts as 65,536 at least.
    pub pixels: u64,
}

/// What the HEIC or AVIF file `bytes` asks for, before a pixel of it is decoded; `name` stands in errors.
///
/// # Errors
/// What is cut off, contradicts itself, is coded in something else, or asks for more than `limits` allow.
pub fn survey(bytes: &[u8], name: &str, limits: &Limits) -> Result<Survey, ImageError> {
    look(bytes, limits).map_err(|problem| problem.of(name, "HEIF", EXPECTED, limits))
}

/// The file's primary image, upright.
pub(super) fn decode(bytes: &[u8], limits: &Limits) -> Result<Decoded, Problem> {
    let survey = look(bytes, limits)?;
    // Mutated files are for what is above, not for somebody else's C++.
    if cfg!(fuzzing) {
        return Err(Problem::NoDecoder(
            "libheif is not opened while fuzzing".to_owned(),
        ));
    }
    let heif = library::get().map_err(Problem::NoDecoder)?;
    for &codec in &survey.codecs {
        if !heif.has_decoder(codec) {
            return Err(Problem::NoDecoder(library::no_plugin(heif, codec)));
        }
    }
    heif.decode(bytes, limits)
}

fn look(bytes: &[u8], limits: &Limits) -> Result<Survey, Problem> {
    let Some(items) = Items::read(bytes)? else {
        return Problem::unsupported(
            "a HEIF file without a still image (a sequence, or a header of the short kind)",
        );
    };
    let mut looking = Looking {
        items,
        limits,
        codecs: Vec::new(),
        known: BTreeMap::new(),
        read: 0,
    };
    let primary = looking.items.primary()?;
    let pixels = looking.whole(primary, 0)?;
    let most = limits.max_pixels.max(LEAST).saturating_mul(TIMES);
    if pixels > most {
        return Problem::damaged(format!(
            "its parts have {pixels} pixels together, expected at most {most}"
        ));
    }
    let Looking { codecs, .. } = looking;
    Ok(Survey { codecs, pixels })
}

struct Looking<'a> {
    items: Items<'a>,
    limits: &'a Limits,
    codecs: Vec<Codec>,
    /// Pixels of images that were looked at.
    known: BTreeMap<u32, u64>,
    /// Bytes of them.
    read: usize,
}

impl<'a> Looking<'a> {
    /// The bytes of an item. Those of all together are not many more than the file has: each is looked at from end to end.
    fn bytes(&mut self, id: u32) -> Result<Cow<'a, [u8]>, Problem> {
        let bytes = self.items.bytes(id)?;
        self.read = self.read.saturating_add(bytes.len());
        let most = self.items.file_bytes().saturating_mul(SHARED);
        if self.read > most.saturating_add(LITTLE) {
            return Problem::damaged(format!(
                "its items have {SHARED} times as many bytes together as the file"
            ));
        }
        Ok(bytes)
    }

    /// Pixels that an image and its alpha take, with all that they are made of.
    fn whole(&mut self, id: u32, depth: u32) -> Result<u64, Problem> {
        if let Some(pixels) = self.known.get(&id) {
            return Ok(*pixels);
        }
        if depth > DEPTH {
            return Problem::damaged(format!("images are made of images over {DEPTH} times"));
        }
        let mut pixels = match &self.items.kind(id)? {
            b"hvc1" | b"hev1" => self.coded(id, Codec::Hevc)?,
            b"av01" => self.coded(id, Codec::Av1)?,
            b"grid" => {
                let canvas = self.grid(id)?;
                self.derived(id, canvas, depth)?
            }
            b"iovl" => {
                let canvas = overlay(&self.bytes(id)?)?;
                self.derived(id, canvas, depth)?
            }
            b"iden" => self.derived(id, (1, 1), depth)?,
            other => {
                let found = format!("a HEIF file whose image is of kind `{}`", letters(*other));
                return Problem::unsupported(found);
            }
        };
        let alpha: Vec<u32> = self.items.alpha_of(id).collect();
        for alpha in alpha {
            pixels = pixels.saturating_add(self.whole(alpha, depth + 1)?);
        }
        self.known.insert(id, pixels);
        Ok(pixels)
    }

    /// An image that a codec decodes.
    fn coded(&mut self, id: u32, codec: Codec) -> Result<u64, Problem> {
        if !self.codecs.contains(&codec) {
            self.codecs.push(codec);
        }
        let config = match codec {
            Codec::Hevc => *b"hvcC",
            Codec::Av1 => *b"av1C",
        };
        let Some(config) = self.items.property(id, config) else {
            return Problem::damaged(format!("item {id} has no `{}`", letters(config)));
        };
        let data = self.bytes(id)?;
        let Coded {
            width,
            height,
            shown,
            pictures,
        } = match codec {
            Codec::Hevc => coded::hevc(config.body, &data)?,
            Codec::Av1 => coded::av1(config.body, &data)?,
        };
        self.allow(width, height)?;
        if let Some((w, h)) = self.declared(id)? {
            self.allow(w, h)?;
            if w > shown.0 || h > shown.1 {
                let (width, height) = shown;
                return Problem::damaged(format!(
                    "item {id} is {w} x {h} pixels, and its codec has {width} x {height}"
                ));
            }
        }
        Ok(width.saturating_mul(height).max(SMALL).saturating_mul(pictures))
    }

    /// The size that `ispe` says.
    fn declared(&self, id: u32) -> Result<Option<(u64, u64)>, Problem> {
        let Some(size) = self.items.property(id, *b"ispe") else {
            return Ok(None);
        };
        let mut size = size.cursor();
        size.version()?;
        Ok(Some((size.u32()?.into(), size.u32()?.into())))
    }

    /// An image that is put together from others, on a canvas.
    fn derived(&mut self, id: u32, (width, height): (u64, u64), depth: u32) -> Result<u64, Problem> {
        self.allow(width, height)?;
        let mut pixels = width.saturating_mul(height);
        let made_of = self.items.made_of(id).to_vec();
        if made_of.is_empty() {
            return Problem::damaged(format!("item {id} is made of no images"));
        }
        for part in made_of {
            pixels = pixels.saturating_add(self.whole(part, depth + 1)?);
        }
        Ok(pixels)
    }

    /// The size of a grid, whose tiles cover it: older versions of libheif leave what no tile covers as it was in memory.
    fn grid(&mut self, id: u32) -> Result<(u64, u64), Problem> {
        let data = self.bytes(id)?;
        let mut body = Cursor::new(&data, *b"grid");
        let flags = body.take(2)?[1];
        let (rows, columns) = (u64::from(body.u8()?) + 1, u64::from(body.u8()?) + 1);
        let size = if flags & 1 == 0 { 2 } else { 4 };
        let (width, height) = (body.number(size)?, body.number(size)?);
        self.allow(width, height)?;
        let tiles = self.items.made_of(id);
        let count = tiles.len();
        if u64::try_from(count) != Ok(rows * columns) {
            return Problem::damaged(format!("its grid has {count} tiles, expected {rows} x {columns}"));
        }
        let first = self.declared(tiles[0])?;
        for &tile in tiles {
            self.items.kind(tile)?;
            if self.declared(tile)? != first {
                return Problem::damaged("its grid has tiles of several sizes");
            }
            if [b"irot", b"imir", b"clap"]
                .iter()
                .any(|kind| self.items.property(tile, **kind).is_some())
            {
                return Problem::unsupported("a grid of tiles that are turned or cropped");
            }
        }
        match first {
            Some((w, h)) if w.saturating_mul(columns) >= width && h.saturating_mul(rows) >= height => {
                Ok((width, height))
            }
            _ => Problem::damaged(format!("its tiles do not cover {width} x {height} pixels")),
        }
    }

    /// Refuses sizes beyond the limits, blocks at the edges aside.
    fn allow(&self, width: u64, height: u64) -> Result<(), Problem> {
        let shown = |edge: u64| {
            if edge > OVERHANG {
                edge - OVERHANG
            } else {
                edge.min(1)
            }
        };
        self.limits
            .allow(shown(width), shown(height))
            .map_err(|_| Problem::Size { width, height })
    }
}

/// The size of an overlay, whose images begin on it: older versions of libheif leave a part of those that begin above it
/// as it was in memory.
fn overlay(data: &[u8]) -> Result<(u64, u64), Problem> {
    let mut body = Cursor::new(data, *b"iovl");
    let flags = body.take(2)?[1];
    // The colour behind them.
    body.take(8)?;
    let size = if flags & 1 == 0 { 2 } else { 4 };
    let canvas = (body.number(size)?, body.number(size)?);
    while !body.rest().is_empty() {
        if body.take(size)?[0] & 0x80 != 0 {
            return Problem::unsupported("an overlay of images that begin outside of it");
        }
    }
    Ok(canvas)
}
