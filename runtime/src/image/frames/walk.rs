//! Where does a JPEG or a PNG end? By its segments or chunks: what stands inside them, a thumbnail for example, ends nothing.

use super::claim::{self, Claim};
use super::window::Window;
use crate::image::decode::Limits;
use flate2::Crc;
use std::io::{Read, Result};

/// Bytes of a file beside its pixels, at most: tables, EXIF, colour profiles.
const BESIDE: usize = 16 << 20;

/// What a walk from the first byte of a frame came to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Walk {
    /// The frame has so many bytes.
    Whole(usize),
    /// It is broken; the next one may begin at byte `next`.
    Broken { next: usize, why: Why },
}

/// Why a frame has no end.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Why {
    /// Another one begins inside it.
    Cut,
    /// The stream ends inside it.
    Short,
    /// It contradicts its format.
    Damaged(&'static str),
    /// Of a size that the limits refuse.
    Size { width: u64, height: u64 },
    /// It has more bytes than an image of its size.
    Long { most: usize },
}

/// Most bytes of a frame of this size: 16 bits in four channels, and what stands beside the pixels.
fn most_bytes(width: u64, height: u64) -> usize {
    let pixels = width.saturating_mul(height).saturating_mul(8);
    usize::try_from(pixels)
        .unwrap_or(usize::MAX)
        .saturating_add(BESIDE)
}

fn big(bytes: &[u8], at: usize, count: usize) -> u64 {
    let number = bytes.get(at..).unwrap_or_default().iter().take(count);
    number.fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// What a JPEG has shown so far.
#[derive(Debug, Default)]
struct Seen {
    size: bool,
    /// Tables of quantisation, or that it is lossless.
    quantization: bool,
    scan: bool,
    /// Where a picture stands in a segment that claims it, and that is not believed before a scan begins.
    doubt: Option<usize>,
}

impl Seen {
    /// A segment of this code. Before the first scan stands what it is decoded by, or something was lost.
    fn note(&mut self, code: u8) {
        self.size |= is_size(code);
        self.quantization |= matches!(code, 0xdb | 0xc3 | 0xc7 | 0xcb | 0xcf);
        if code == 0xda && self.size && self.quantization {
            self.scan = true;
            self.doubt = None;
        }
    }
}

/// Whether a segment says a picture's size.
fn is_size(code: u8) -> bool {
    matches!(code, 0xc0..=0xc3 | 0xc5..=0xc7 | 0xc9..=0xcb | 0xcd..=0xcf)
}

/// A JPEG: its segments by their lengths, and what stands between them, the data of scans, by its markers. Where a
/// segment that was cut claims a picture, that is the next frame, if it is not looked for too often.
pub(super) fn jpeg<R: Read>(window: &mut Window<R>, limits: &Limits) -> Result<Walk> {
    let mut seen = Seen::default();
    let walk = markers(window, limits, &mut seen)?;
    let (Walk::Whole(end) | Walk::Broken { next: end, .. }) = walk;
    Ok(match seen.doubt {
        Some(next) if window.may_look_again(end) => Walk::Broken { next, why: Why::Cut },
        _ => walk,
    })
}

fn markers<R: Read>(window: &mut Window<R>, limits: &Limits, seen: &mut Seen) -> Result<Walk> {
    let broken = |next, why| Ok(Walk::Broken { next, why });
    let mut most = BESIDE;
    // Behind SOI.
    let mut at = 2;
    loop {
        if at > most {
            return broken(at, Why::Long { most });
        }
        // The next marker: 0xff, any number of times, and its code.
        let rest = window.bytes().get(at..).unwrap_or_default();
        let Some(place) = rest.iter().position(|byte| *byte == 0xff) else {
            at = at.max(window.bytes().len());
            if !window.more()? {
                return broken(at, Why::Short);
            }
            continue;
        };
        at += place + 1;
        let code = loop {
            match window.byte(at)? {
                Some(0xff) if at <= most => at += 1,
                Some(code) => break code,
                None => return broken(at, Why::Short),
            }
        };
        match code {
            // A byte of data, restart markers, and what has no segment. 0xff: too many of them, found above.
            0x00 | 0x01 | 0xd0..=0xd7 | 0xff => at += 1,
            0xd8 => return broken(at - 1, Why::Cut),
            0xd9 => return Ok(Walk::Whole(at + 1)),
            _ => {
                let end = match segment(window, at, seen)? {
                    Ok(end) => end,
                    Err((next, why)) => return broken(next, why),
                };
                if is_size(code) && end >= at + 8 {
                    let (height, width) = (big(window.bytes(), at + 4, 2), big(window.bytes(), at + 6, 2));
                    if limits.check("", width, height.max(1)).is_err() {
                        return broken(end, Why::Size { width, height });
                    }
                    most = most_bytes(width, height);
                }
                at = end;
            }
        }
    }
}

/// The end of the segment whose code stands at this place, or where the next frame may begin and why this one is
/// broken.
fn segment<R: Read>(
    window: &mut Window<R>,
    at: usize,
    seen: &mut Seen,
) -> Result<std::result::Result<usize, (usize, Why)>> {
    let code = window.byte(at)?.unwrap_or_default();
    let segment = at + 1;
    window.have(segment + 2)?;
    let length = usize::try_from(big(window.bytes(), segment, 2)).unwrap_or(0);
    // The decoder says what is wrong with a segment of less than two bytes.
    let end = segment + length;
    let whole = window.have(end.max(segment + 2))?;
    // Three bytes at least follow: the next marker, and a byte of its segment or of the data.
    window.have(end.saturating_add(3))?;
    let there = window.bytes();
    let upto = |end: usize| there.get(segment..end.min(there.len())).unwrap_or_default();
    // What an application or a person wrote may hold anything, behind its length; tables hold no image.
    let tables = code < 0xe0;
    let plain = upto(if tables {
        end.saturating_add(2)
    } else {
        segment + 4
    });
    if let Some(place) = plain.windows(3).position(|bytes| bytes == [0xff, 0xd8, 0xff]) {
        return Ok(Err((segment + place, Why::Cut)));
    }
    let content = segment + 2;
    let bytes = upto(end.saturating_add(3)).get(2..).unwrap_or_default();
    if !whole {
        let next = claim::first(bytes).filter(|_| !tables);
        let else_at = if tables { segment } else { there.len() };
        return Ok(Err(match next {
            Some(place) => (content + place, Why::Cut),
            None => (else_at, Why::Short),
        }));
    }
    if let Some(length) = length.checked_sub(2).filter(|_| !tables) {
        match claim::claim(bytes, length, there) {
            Claim::Nothing => {}
            Claim::Next(place) => return Ok(Err((content + place, Why::Cut))),
            Claim::Perhaps { at, open } if open && !claim::is_marker(bytes.get(length..)) => {
                return Ok(Err((content + at, Why::Cut)));
            }
            Claim::Perhaps { at, .. } if !seen.scan && seen.doubt.is_none() => {
                seen.doubt = Some(content + at)
            }
            Claim::Perhaps { .. } => {}
        }
    }
    seen.note(code);
    Ok(Ok(end.max(segment)))
}

/// A PNG: its chunks by their lengths. The next frame may begin inside of one that is broken, if that is not looked at too often.
pub(super) fn png<R: Read>(window: &mut Window<R>, limits: &Limits) -> Result<Walk> {
    let mut looked = 8;
    Ok(match chunks(window, limits, &mut looked)? {
        Walk::Broken { why, .. } if !window.may_look_again(looked) => Walk::Broken { next: looked, why },
        walk => walk,
    })
}

/// The chunks; `looked` is up to where they were.
fn chunks<R: Read>(window: &mut Window<R>, limits: &Limits, looked: &mut usize) -> Result<Walk> {
    let broken = |next, why| Ok(Walk::Broken { next, why });
    let mut most = BESIDE;
    // Behind the signature.
    let first = 8;
    let mut at = first;
    loop {
        if !window.have(at + 8)? {
            return broken(first, Why::Short);
        }
        let length = big(window.bytes(), at, 4);
        let kind = window.bytes().get(at + 4..at + 8).unwrap_or_default();
        let (header, last) = (kind == b"IHDR", kind == b"IEND");
        if !kind.iter().all(u8::is_ascii_alphabetic) || length >> 31 > 0 {
            return broken(
                first,
                Why::Damaged("a chunk has no name, or a length that no chunk has"),
            );
        }
        if header != (at == first) || (header && length != 13) {
            return broken(
                first,
                Why::Damaged("its chunk IHDR is missing, is not the first, or has another length than 13"),
            );
        }
        let end = (at + 12).saturating_add(usize::try_from(length).unwrap_or(usize::MAX));
        if end > most {
            return broken(first, Why::Long { most });
        }
        if !window.have(end)? {
            return broken(first, Why::Short);
        }
        // A chunk that was cut has bytes of the next frame, and may end where a chunk of that begins.
        let mut sum = Crc::new();
        sum.update(window.bytes().get(at + 4..end - 4).unwrap_or_default());
        *looked = end;
        if u64::from(sum.sum()) != big(window.bytes(), end - 4, 4) {
            let reason = "a checksum is wrong: bytes were changed or lost";
            return broken(first, Why::Damaged(reason));
        }
        if header {
            let (width, height) = (big(window.bytes(), at + 8, 4), big(window.bytes(), at + 12, 4));
            if limits.check("", width, height).is_err() {
                // Of a header that is cut, the size is made of the next frame's bytes.
                return broken(first, Why::Size { width, height });
            }
            most = most_bytes(width, height);
        }
        if last {
            return Ok(Walk::Whole(end));
        }
        at = end;
    }
}
