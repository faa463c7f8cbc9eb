//! Is what a JPEG's segment of an application or a comment holds its own? It may hold anything behind its length, a
//! thumbnail too. But where it was cut, it claims the first bytes of what follows, the next frame's.

use std::ops::Range;

/// SOI, and the first byte of the marker behind it.
const PICTURE: [u8; 3] = [0xff, 0xd8, 0xff];

/// Where a frame has the code of its first marker, and where the name of an application behind its length.
const CODE: usize = 3;
const NAME: Range<usize> = 6..10;
const NAMES: [&[u8]; 3] = [b"JFIF", b"JFXX", b"Exif"];

/// What such a segment claims, of places in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Claim {
    /// What is its own.
    Nothing,
    /// A picture, which may be the next frame; `open` says that it goes on behind the segment, or is broken.
    Perhaps { at: usize, open: bool },
    /// The next frame.
    Next(usize),
}

/// What the segment whose content is the first `length` of these bytes claims. Behind it stand the three bytes that
/// follow it, where the stream has them. `frame` is the segment's own, from SOI on.
pub(super) fn claim(bytes: &[u8], length: usize, frame: &[u8]) -> Claim {
    let content = bytes.get(..length).unwrap_or(bytes);
    let thumbnail = Thumbnail::of(content);
    let (mut found, mut own) = (None, None);
    let mut from = 0;
    while let Some(at) = next(bytes, from) {
        let rest = content.get(at..).unwrap_or_default();
        let is_own = thumbnail.is_some_and(|own| own.start == at);
        match inside(rest) {
            // Neither is a frame: the thumbnail, and a picture that another one begins in.
            Inside::Whole(bytes) if thumbnail.is_some_and(|own| own.is(at, bytes)) => from = at + bytes,
            Inside::Cut(place) => from = at + place,
            Inside::First if is_known(rest, frame) => return Claim::Next(found.unwrap_or(at)),
            Inside::Whole(bytes) => {
                found.get_or_insert(at);
                from = at + bytes;
            }
            // A thumbnail that is not as it is described.
            _ if is_own => {
                own = Some(at);
                from = at + 1;
            }
            // The segment's last bytes may be any two: only a frame that begins as this one does is believed, or one
            // behind another.
            _ if at + PICTURE.len() > length
                && found.is_none()
                && bytes.get(at + CODE) != frame.get(CODE) =>
            {
                return Claim::Perhaps { at, open: false };
            }
            Inside::Open | Inside::First if at + PICTURE.len() <= length => {
                let at = found.unwrap_or(at);
                return Claim::Perhaps { at, open: true };
            }
            _ => return Claim::Next(found.unwrap_or(at)),
        }
    }
    match (found, own) {
        (Some(at), _) => Claim::Perhaps { at, open: false },
        (None, Some(at)) => Claim::Perhaps { at, open: true },
        (None, None) => Claim::Nothing,
    }
}

/// Whether what begins a picture names an application that begins pictures, or the one that began this frame.
fn is_known(picture: &[u8], frame: &[u8]) -> bool {
    let name = picture.get(NAME);
    let same = picture.get(CODE) == frame.get(CODE) && name == frame.get(NAME);
    name.is_some_and(|name| same || NAMES.contains(&name))
}

/// The first frame in a segment of which the stream has these bytes and no more.
pub(super) fn first(bytes: &[u8]) -> Option<usize> {
    let thumbnail = Thumbnail::of(bytes);
    let mut from = 0;
    loop {
        let at = next(bytes, from)?;
        from = match inside(bytes.get(at..)?) {
            Inside::Cut(place) => at + place,
            Inside::Whole(bytes) if thumbnail.is_some_and(|own| own.is(at, bytes)) => at + bytes,
            Inside::Open | Inside::First | Inside::Head if thumbnail.is_some_and(|own| own.start == at) => {
                at + 1
            }
            _ => return Some(at),
        };
    }
}

/// Where the next picture begins.
fn next(bytes: &[u8], from: usize) -> Option<usize> {
    let mut from = from;
    loop {
        let rest = bytes.get(from..)?;
        let at = from + place(rest)?;
        // No frame begins with one of these markers: RST, SOI and EOI.
        let code = bytes.get(at + PICTURE.len());
        if code.is_none_or(|code| *code >= 0xc0 && !(0xd0..=0xd9).contains(code)) {
            return Some(at);
        }
        from = at + 1;
    }
}

/// A picture, as far as a segment holds it.
#[derive(Debug, PartialEq, Eq)]
enum Inside {
    /// All of it, of so many bytes.
    Whole(usize),
    /// Another one begins in it, at this place.
    Cut(usize),
    /// Whole segments, of which the last ends where this ends.
    Head,
    /// Its first segment goes on behind.
    First,
    /// Anything else.
    Open,
}

fn inside(bytes: &[u8]) -> Inside {
    let mut at = 2;
    let mut segments = 0;
    loop {
        match bytes.get(at..) {
            Some([0xff, 0xff, ..]) => at += 1,
            Some([0xff, 0xd8, ..]) => return Inside::Cut(at),
            Some([0xff, 0xd9, ..]) => return Inside::Whole(at + 2),
            Some([0xff, 0xda, ..]) => return scan(bytes, at),
            Some([0xff, code @ (0xc0..=0xcf | 0xdb..=0xfe), high, low, ..]) => {
                let segment = at + 2;
                at = segment + usize::from(u16::from_be_bytes([*high, *low]));
                // Tables hold no picture, and behind one that is a segment's own stands a marker.
                let content = bytes.get(segment..bytes.len().min(at + 2)).unwrap_or_default();
                if let Some(place) = place(content).filter(|_| *code < 0xe0 || !is_marker(bytes.get(at..))) {
                    return Inside::Cut(segment + place);
                }
                segments += usize::from(at <= bytes.len());
            }
            Some([]) if segments > 0 => return Inside::Head,
            None if segments == 0 => return Inside::First,
            _ => return Inside::Open,
        }
    }
}

/// Where a picture may begin.
fn place(bytes: &[u8]) -> Option<usize> {
    bytes.windows(PICTURE.len()).position(|bytes| bytes == PICTURE)
}

/// As [`inside`], from a scan's marker on: what stands between segments are its data.
fn scan(bytes: &[u8], at: usize) -> Inside {
    let mut at = at;
    loop {
        match bytes.get(at..) {
            None | Some([] | [_]) => return Inside::Open,
            Some([0xff, 0xd9, ..]) => return Inside::Whole(at + 2),
            Some([0xff, 0xd8, ..]) => return Inside::Cut(at),
            Some([0xff, code @ (0xc0..=0xcf | 0xda..=0xfe), high, low, ..]) => {
                let segment = at + 2;
                at = segment + usize::from(u16::from_be_bytes([*high, *low]));
                let tables = bytes
                    .get(segment..bytes.len().min(at + 2))
                    .filter(|_| *code < 0xe0);
                if let Some(place) = tables.and_then(place) {
                    return Inside::Cut(segment + place);
                }
            }
            Some([_, rest @ ..]) => {
                let data = rest.iter().position(|byte| *byte == 0xff);
                at += 1 + data.unwrap_or(rest.len());
            }
        }
    }
}

/// Whether these bytes, of which there may be too few to tell, begin with a marker of a segment, or EOI.
pub(super) fn is_marker(bytes: Option<&[u8]>) -> bool {
    match bytes.unwrap_or_default() {
        [0xff, code, ..] => matches!(code, 0xc0..=0xcf | 0xd9..=0xff),
        [0xff] | [] => true,
        _ => false,
    }
}

/// Where a segment says that its thumbnail is.
#[derive(Debug, Clone, Copy)]
struct Thumbnail {
    start: usize,
    end: usize,
}

impl Thumbnail {
    /// By EXIF's second directory, or by JFIF's extension, where it is all that is left.
    fn of(content: &[u8]) -> Option<Thumbnail> {
        if content.starts_with(b"JFXX\0\x10") {
            let (start, end) = (6, content.len());
            return Some(Thumbnail { start, end });
        }
        let name = b"Exif\0\0";
        let tiff = content.strip_prefix(name)?;
        let little = match tiff.first_chunk()? {
            b"II" => true,
            b"MM" => false,
            _ => return None,
        };
        let number = |at: usize, count: usize| -> Option<usize> {
            let bytes = tiff.get(at..)?.get(..count)?;
            let push = |number: usize, byte: &u8| number << 8 | usize::from(*byte);
            Some(match little {
                true => bytes.iter().rev().fold(0, push),
                false => bytes.iter().fold(0, push),
            })
        };
        let behind = |directory: usize, entry: usize| directory.saturating_add(2 + 12 * entry);
        let first = number(4, 4)?;
        let second = number(behind(first, number(first, 2)?), 4).filter(|place| *place > 0)?;
        let entries = number(second, 2)?;
        // `JPEGInterchangeFormat` and its length.
        let value = |tag: usize| {
            let mut entries = (0..entries).map(|entry| behind(second, entry));
            let entry = entries.find(|entry| number(*entry, 2) == Some(tag))?;
            number(entry + 8, 4)
        };
        let start = value(0x0201)?.checked_add(name.len())?;
        let end = start.checked_add(value(0x0202)?)?;
        Some(Thumbnail { start, end })
    }

    /// Whether it is the picture of so many bytes at a place.
    fn is(self, at: usize, bytes: usize) -> bool {
        (self.start, self.end) == (at, at + bytes)
    }
}
