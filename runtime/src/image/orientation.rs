//! Which way up is an image? Its EXIF segment says so, or else its XMP packet, as Pillow's `exif_transpose`
//! asks them.

use flate2::read::ZlibDecoder;
use image::metadata::Orientation;
use std::io::Read;

/// Longest text of a PNG that is looked at.
const MAX_TEXT: u64 = 1 << 20;

/// The orientation that `exif` or else `xmp` says, or none.
pub(super) fn of(exif: Option<&[u8]>, xmp: Option<&[u8]>) -> Orientation {
    // Some writers take over the name that the segment has in JPEG.
    let exif = exif.map(|exif| exif.strip_prefix(b"Exif\0\0").unwrap_or(exif));
    let found = exif.and_then(Orientation::from_exif_chunk);
    found
        .or_else(|| from_xmp(xmp?))
        .unwrap_or(Orientation::NoTransforms)
}

fn from_xmp(xmp: &[u8]) -> Option<Orientation> {
    let name = b"tiff:Orientation";
    let mut rest = xmp;
    loop {
        let start = rest.windows(name.len()).position(|bytes| bytes == name)?;
        rest = &rest[start + name.len()..];
        let value = rest.strip_prefix(b"=\"").or(rest.strip_prefix(b">"));
        if let Some(digit) = value
            .and_then(<[u8]>::first)
            .filter(|digit| digit.is_ascii_digit())
        {
            return Orientation::from_exif(digit - b'0');
        }
    }
}

/// The XMP packet of a PNG.
pub(super) fn xmp_of_png(png: &[u8]) -> Option<Vec<u8>> {
    let text = chunk(png, |kind, data| {
        (kind == b"iTXt")
            .then(|| data.strip_prefix(b"XML:com.adobe.xmp\0"))
            .flatten()
    })?;
    let (&[compressed, _], text) = text.split_first_chunk()?;
    // A language and a translated keyword, each up to a zero.
    let mut parts = text.splitn(3, |&byte| byte == 0);
    let text = parts.nth(2)?;
    if compressed == 0 {
        Some(text.to_vec())
    } else {
        inflate(text)
    }
}

/// The EXIF segment that ImageMagick writes into a PNG: as text, in hexadecimal digits.
pub(super) fn raw_profile(png: &[u8]) -> Option<Vec<u8>> {
    let text = chunk(png, |kind, data| {
        let text = data.strip_prefix(b"Raw profile type exif\0")?;
        match (kind, text) {
            (b"tEXt", text) => Some(Text::Plain(text)),
            (b"zTXt", [0, text @ ..]) => Some(Text::Deflated(text)),
            _ => None,
        }
    })?;
    let text = match text {
        Text::Plain(text) => text.to_vec(),
        Text::Deflated(text) => inflate(text)?,
    };
    // An empty line, the name and the length, then the digits.
    let lines = text.split(|&byte| byte == b'\n').skip(3);
    let digits: Vec<u8> = lines.flatten().copied().filter(u8::is_ascii_hexdigit).collect();
    let pair = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    digits.chunks_exact(2).map(pair).collect()
}

enum Text<'a> {
    Plain(&'a [u8]),
    Deflated(&'a [u8]),
}

/// What `wanted` finds in the chunks of a PNG, kind and contents, first.
fn chunk<'a, T>(png: &'a [u8], wanted: impl Fn(&'a [u8], &'a [u8]) -> Option<T>) -> Option<T> {
    let mut rest = png.get(8..)?;
    loop {
        let length = usize::try_from(u32::from_be_bytes(*rest.first_chunk()?)).ok()?;
        let (kind, data) = (rest.get(4..8)?, rest.get(8..)?.get(..length)?);
        if let Some(found) = wanted(kind, data) {
            return Some(found);
        }
        rest = rest.get(12 + length..)?;
    }
}

/// At most [`MAX_TEXT`] bytes of a deflated text.
fn inflate(text: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    ZlibDecoder::new(text).take(MAX_TEXT).read_to_end(&mut out).ok()?;
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A TIFF structure with orientation 6.
    const EXIF: &[u8] = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0";

    #[test]
    fn exif_comes_before_xmp() {
        let named = [b"Exif\0\0", EXIF].concat();
        let (attribute, element) = (
            b"<x tiff:Orientation=\"3\"/>",
            b"<tiff:Orientation>8</tiff:Orientation>",
        );
        type Bytes<'a> = Option<&'a [u8]>;
        let cases: [(Bytes<'_>, Bytes<'_>, Orientation); 7] = [
            (Some(EXIF), None, Orientation::Rotate90),
            (Some(&named), None, Orientation::Rotate90),
            (Some(EXIF), Some(attribute), Orientation::Rotate90),
            (None, Some(attribute), Orientation::Rotate180),
            (
                Some(b"MM\0*\0\0\0\x08\0\0"),
                Some(element),
                Orientation::Rotate270,
            ),
            (
                None,
                Some(b"tiff:Orientation is tiff:Orientation"),
                Orientation::NoTransforms,
            ),
            (None, None, Orientation::NoTransforms),
        ];
        for (exif, xmp, expected) in cases {
            assert_eq!(of(exif, xmp), expected, "{exif:?} {xmp:?}");
        }
    }

    #[test]
    fn a_raw_profile_is_read() {
        let digits: String = EXIF.iter().map(|byte| format!("{byte:02x}")).collect();
        let text = format!("Raw profile type exif\0\nexif\n{:8}\n{digits}\n", EXIF.len());
        let mut png = b"\x89PNG\r\n\x1a\n".to_vec();
        png.extend(u32::try_from(text.len()).unwrap().to_be_bytes());
        png.extend(b"tEXt");
        png.extend(text.as_bytes());
        assert_eq!(raw_profile(&png).unwrap(), EXIF);
        assert_eq!(raw_profile(&png[..png.len() - 30]), None);
    }
}
