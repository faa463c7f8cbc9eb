//! Where does a frame begin? By the first bytes of each kind.

use super::super::detect::{Format, detect, what};
use super::y4m;

/// Bytes that tell what a stream is, where it is none of frames.
pub(super) const FIRST: usize = 24;

/// The signature of a PNG.
const PNG: &[u8] = b"\x89PNG\r\n\x1a\n";

/// What begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Begin {
    Jpeg,
    Png,
    Y4mHeader,
    Y4mFrame,
}

/// Where something begins.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// This, at this place.
    At(usize, Begin),
    /// Nothing before this place, where the bytes end; a frame may begin there.
    Perhaps(usize),
}

/// Whether bytes are what a kind begins with; `None` where there are too few to tell.
fn matches(bytes: &[u8], magic: &[u8]) -> Option<bool> {
    let count = bytes.len().min(magic.len());
    match bytes.get(..count) == magic.get(..count) {
        true if count < magic.len() => None,
        equal => Some(equal),
    }
}

/// SOI, and a marker that may stand behind it.
fn is_jpeg(bytes: &[u8]) -> Option<bool> {
    match bytes {
        [0xff, 0xd8, 0xff, 0xd0..=0xd9, ..] => Some(false),
        [0xff, 0xd8, 0xff, code, ..] => Some(*code >= 0xc0),
        _ => matches(bytes, b"\xff\xd8\xff").filter(|is| !is),
    }
}

/// The line of a y4m frame: its word, and then parameters or nothing.
fn is_y4m_frame(bytes: &[u8]) -> Option<bool> {
    match bytes.strip_prefix(y4m::FRAME) {
        Some([next, ..]) => Some(matches!(next, b'\n' | b' ')),
        Some([]) => None,
        None => matches(bytes, y4m::FRAME),
    }
}

/// The first place where a frame begins; of y4m only behind a header of such a stream.
pub(super) fn begin(bytes: &[u8], y4m: bool) -> Found {
    let mut from = 0;
    while let Some(rest) = bytes.get(from..) {
        let Some(place) = rest
            .iter()
            .position(|byte| matches!(byte, 0xff | 0x89 | b'Y' | b'F'))
        else {
            break;
        };
        from += place;
        let rest = bytes.get(from..).unwrap_or_default();
        let (begin, is) = match rest.first() {
            Some(0xff) => (Begin::Jpeg, is_jpeg(rest)),
            Some(0x89) => (Begin::Png, matches(rest, PNG)),
            Some(b'Y') => (Begin::Y4mHeader, matches(rest, y4m::MAGIC)),
            _ if y4m => (Begin::Y4mFrame, is_y4m_frame(rest)),
            _ => (Begin::Y4mFrame, Some(false)),
        };
        match is {
            Some(true) => return Found::At(from, begin),
            None => return Found::Perhaps(from),
            Some(false) => from += 1,
        }
    }
    Found::Perhaps(bytes.len())
}

/// What a stream is that begins with another picture.
pub(super) fn refuse_first(bytes: &[u8]) -> Option<String> {
    match detect(bytes, "") {
        Ok(Format::WebP | Format::Gif | Format::Bmp | Format::Tiff | Format::Heic | Format::Avif) => {
            Some(what(bytes))
        }
        _ => None,
    }
}
