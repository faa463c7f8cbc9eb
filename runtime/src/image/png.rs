//! PNG's chunks: what a decoder must not be given, and which way up the image is.

use super::orientation;
use super::problem::Problem;
use flate2::read::ZlibDecoder;
use image::metadata::Orientation;
use std::borrow::Cow;
use std::io::{ErrorKind, Read};

/// Longest text that is looked at.
const MAX_TEXT: u64 = 1 << 20;

/// Most bytes that texts are inflated to, all of a file together.
const MAX_TEXTS: u64 = 64 << 20;

/// Where XMP stands.
const XMP: &[u8] = b"XML:com.adobe.xmp";

/// Where ImageMagick writes an EXIF segment: as text, in hexadecimal digits.
const RAW_PROFILE: &[u8] = b"Raw profile type exif";

/// Width and height of the file `png`, which has the chunks that a decoder expects.
pub(super) fn size(png: &[u8]) -> Result<(u32, u32), Problem> {
    let mut chunks = Chunks::of(png);
    let (kind, header) = chunks.next().ok_or(Problem::Truncated)?;
    match kind {
        b"IHDR" => {}
        b"CgBI" => {
            return Problem::unsupported("a PNG in Apple's own form (CgBI), which only its systems read");
        }
        _ => {
            return Problem::damaged(format!(
                "its first chunk is `{}`, expected `IHDR`",
                kind.escape_ascii()
            ));
        }
    }
    let &[a, b, c, d, e, f, g, h, _, color, ..] = header else {
        return Problem::damaged(format!("its header has {} bytes, expected 13", header.len()));
    };
    let palettes = chunks.take_while(|(kind, _)| *kind != b"IDAT");
    for (_, palette) in palettes.filter(|(kind, _)| *kind == b"PLTE") {
        if color == 3 && palette.len() % 3 != 0 {
            return Problem::damaged(format!(
                "its palette has {} bytes, expected three for each colour",
                palette.len()
            ));
        }
    }
    Ok((u32::from_be_bytes([a, b, c, d]), u32::from_be_bytes([e, f, g, h])))
}

/// The colour that is transparent in a file of 16 bits a channel, as Pillow understands it: the upper bytes of a pixel are
/// compared with the lower ones of the colour.
pub(super) fn transparent(png: &[u8]) -> Option<[u8; 3]> {
    let mut chunks = Chunks::of(png);
    let (_, header) = chunks.next()?;
    let [16, 2] = header.get(8..10)? else {
        return None;
    };
    let mut heads = chunks.take_while(|(kind, _)| *kind != b"IDAT");
    match heads.find(|(kind, _)| *kind == b"tRNS")?.1 {
        &[_, red, _, green, _, blue] => Some([red, green, blue]),
        _ => None,
    }
}

/// Which way up the file `png` is. Of chunks that say it more than once, the last counts, behind the pixels too.
pub(super) fn orientation(png: &[u8]) -> Orientation {
    let (mut beside, mut left) = (Beside::default(), MAX_TEXTS);
    // An animation, of which the rest is not read: frames, if they are announced, and whether one was.
    let (mut frames, mut framed, mut pixels) = (None, false, false);
    for (kind, data) in Chunks::of(png) {
        match kind {
            b"IEND" => break,
            b"IDAT" if !pixels => {
                pixels = true;
                frames = frames.map(|frames: u32| frames.saturating_add(u32::from(!framed)));
            }
            b"acTL" if !pixels => {
                let count = data.first_chunk().map(|&count| u32::from_be_bytes(count));
                frames = count.filter(|count| frames.is_none() && (1..=1 << 31).contains(count));
            }
            b"fcTL" if pixels && frames.is_some_and(|frames| frames > 1) => break,
            b"fcTL" => framed = true,
            b"eXIf" => beside.exif = Some(Cow::Borrowed(data)),
            b"tEXt" | b"zTXt" | b"iTXt" => beside.read(kind, data, &mut left),
            _ => {}
        }
    }
    let raw = || beside.raw_profile.as_deref().map(|text| Cow::Owned(digits(text)));
    let exif = beside.exif.clone().or_else(raw);
    let xmp = beside
        .xmp
        .iter()
        .chain(&beside.xmp_bytes)
        .find(|xmp| !xmp.is_empty());
    orientation::of(exif.as_deref(), xmp.map(|xmp| &**xmp))
}

/// What stands beside the pixels.
#[derive(Default)]
struct Beside<'a> {
    exif: Option<Cow<'a, [u8]>>,
    raw_profile: Option<Cow<'a, [u8]>>,
    xmp: Option<Cow<'a, [u8]>>,
    /// XMP that is no text, to be asked if there is no other.
    xmp_bytes: Option<Cow<'a, [u8]>>,
}

impl<'a> Beside<'a> {
    /// Reads a text of whichever kind of chunk; `left` bytes may come of those that are deflated.
    fn read(&mut self, kind: &[u8; 4], data: &'a [u8], left: &mut u64) {
        let Some(end) = data.iter().position(|&byte| byte == 0) else {
            return;
        };
        let (key, text) = (&data[..end], &data[end + 1..]);
        if ![XMP, RAW_PROFILE, b"exif"].contains(&key) {
            return;
        }
        let (text, valid) = match kind {
            b"tEXt" => (Cow::Borrowed(text), true),
            b"zTXt" => match text {
                [0, text @ ..] => (Cow::Owned(inflate(text, left).unwrap_or_default()), true),
                [] => (Cow::Borrowed(text), true),
                _ => return,
            },
            _ => match international(text, left) {
                Some(found) => found,
                None => return,
            },
        };
        if key == XMP {
            if kind == b"iTXt" {
                self.xmp_bytes = Some(text.clone());
            }
            if valid {
                self.xmp = Some(text);
            }
        } else if key == RAW_PROFILE && valid {
            self.raw_profile = Some(text);
        } else if kind == b"tEXt" {
            self.exif = Some(text);
        }
    }
}

/// The text of an `iTXt` chunk, and whether it is one: UTF-8, as what stands before it.
fn international<'a>(text: &'a [u8], left: &mut u64) -> Option<(Cow<'a, [u8]>, bool)> {
    let (&[compressed, method], text) = text.split_first_chunk()?;
    // A language and a translated keyword, each up to a zero.
    let mut parts = text.splitn(3, |&byte| byte == 0);
    let (language, keyword, text) = (parts.next()?, parts.next()?, parts.next()?);
    let text = match (compressed, method) {
        (0, _) => Cow::Borrowed(text),
        (_, 0) => Cow::Owned(inflate(text, left)?),
        _ => return None,
    };
    let valid = [language, keyword, &text]
        .iter()
        .all(|part| std::str::from_utf8(part).is_ok());
    Some((text, valid))
}

/// The bytes of a raw profile: behind an empty line, the name and the length stand digits.
fn digits(text: &[u8]) -> Vec<u8> {
    let lines = text.split(|&byte| byte == b'\n').skip(3);
    let digits = lines.flatten().filter_map(|&byte| char::from(byte).to_digit(16));
    let digits: Vec<u8> = digits.filter_map(|digit| u8::try_from(digit).ok()).collect();
    digits
        .chunks_exact(2)
        .map(|pair| pair[0] << 4 | pair[1])
        .collect()
}

/// At most [`MAX_TEXT`] bytes of a deflated text, which may end too early, and at most as many as are `left`.
fn inflate(text: &[u8], left: &mut u64) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    let result = ZlibDecoder::new(text)
        .take(MAX_TEXT.min(*left))
        .read_to_end(&mut out);
    *left = left.saturating_sub(u64::try_from(out.len()).unwrap_or(u64::MAX));
    match result {
        Err(error) if error.kind() != ErrorKind::UnexpectedEof => None,
        _ => Some(out),
    }
}

/// Chunks: kind and contents. They end where the file does.
struct Chunks<'a>(&'a [u8]);

impl<'a> Chunks<'a> {
    fn of(png: &'a [u8]) -> Chunks<'a> {
        Chunks(png.get(8..).unwrap_or_default())
    }
}

impl<'a> Iterator for Chunks<'a> {
    type Item = (&'a [u8; 4], &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let length = usize::try_from(u32::from_be_bytes(*self.0.first_chunk()?)).ok()?;
        let (kind, rest) = self.0.get(4..)?.split_first_chunk()?;
        let (data, rest) = rest.split_at_checked(length)?;
        self.0 = rest.get(4..).unwrap_or_default();
        Some((kind, data))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A TIFF structure with orientation 6, and one with 3.
    const SIX: &[u8] = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0";
    const THREE: &[u8] = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x03\0\0\0\0\0\0";

    type Chunk<'a> = (&'a [u8; 4], &'a [u8]);

    fn file(chunks: &[Chunk<'_>]) -> Vec<u8> {
        let mut png = b"\x89PNG\r\n\x1a\n".to_vec();
        for (kind, data) in chunks {
            png.extend(u32::try_from(data.len()).unwrap().to_be_bytes());
            png.extend(*kind);
            png.extend(*data);
            png.extend([0; 4]);
        }
        png
    }

    fn raw(exif: &[u8]) -> Vec<u8> {
        let digits: String = exif.iter().map(|byte| format!("{byte:02x}")).collect();
        format!("Raw profile type exif\0\nexif\n{:8}\n{digits}\n", exif.len()).into_bytes()
    }

    #[test]
    fn a_transparent_color_of_sixteen_bits_is_its_lower_bytes() {
        let header = |bits: u8, color: u8| [0, 0, 0, 1, 0, 0, 0, 1, bits, color, 0, 0, 0];
        let found = |header: &[u8], key: &[u8]| {
            transparent(&file(&[(b"IHDR", header), (b"tRNS", key), (b"IDAT", b"")]))
        };
        assert_eq!(found(&header(16, 2), &[9, 1, 9, 2, 9, 3]), Some([1, 2, 3]));
        assert_eq!(found(&header(8, 2), &[0, 1, 0, 2, 0, 3]), None);
        assert_eq!(found(&header(16, 0), &[0, 1]), None);
        assert_eq!(found(&header(16, 2), &[0, 1]), None);
        let none = file(&[(b"IHDR", &header(16, 2)), (b"IDAT", b""), (b"tRNS", &[0; 6])]);
        assert_eq!(transparent(&none), None);
    }

    #[test]
    fn the_last_chunk_counts_wherever_it_stands() {
        let xmp = |value: u8, head: &[u8]| {
            let text = format!("tiff:Orientation=\"{value}\"");
            [b"XML:com.adobe.xmp\0", head, text.as_bytes()].concat()
        };
        let idat: Chunk<'_> = (b"IDAT", b"");
        let end: Chunk<'_> = (b"IEND", b"");
        let (six, three): (Chunk<'_>, Chunk<'_>) = ((b"eXIf", SIX), (b"eXIf", THREE));
        let (raw_six, raw_three) = (raw(SIX), raw(THREE));
        let raw_international = [b"Raw profile type exif\0\0\0\0\0", &raw_six[22..]].concat();
        let (plain, international) = (xmp(8, b""), xmp(8, b"\0\0\0\0"));
        let (second, unknown) = (xmp(6, b"\0\0\0\0"), xmp(6, b"\x01\x01\0\0"));
        let no_text = xmp(8, b"\0\0\0\0\xff");
        let animation: Chunk<'_> = (b"acTL", b"\0\0\0\x02\0\0\0\0");
        let frame: Chunk<'_> = (b"fcTL", b"");
        let cases: [(&str, Vec<Chunk<'_>>, Orientation); 20] = [
            ("none", vec![idat, end], Orientation::NoTransforms),
            ("before", vec![six, idat, end], Orientation::Rotate90),
            ("behind", vec![idat, six, end], Orientation::Rotate90),
            ("without an end", vec![idat, six], Orientation::Rotate90),
            ("behind the end", vec![idat, end, six], Orientation::NoTransforms),
            ("two", vec![six, three, idat], Orientation::Rotate180),
            ("around", vec![three, idat, six], Orientation::Rotate90),
            ("raw", vec![(b"tEXt", &raw_six), idat], Orientation::Rotate90),
            (
                "raw, in another kind",
                vec![(b"iTXt", &raw_international)],
                Orientation::Rotate90,
            ),
            (
                "two raw",
                vec![(b"tEXt", &raw_six), (b"tEXt", &raw_three)],
                Orientation::Rotate180,
            ),
            ("both", vec![(b"tEXt", &raw_six), three], Orientation::Rotate180),
            (
                "empty, and raw",
                vec![(b"eXIf", b""), (b"tEXt", &raw_six)],
                Orientation::NoTransforms,
            ),
            ("XMP", vec![(b"iTXt", &international)], Orientation::Rotate270),
            ("XMP as text", vec![(b"tEXt", &plain)], Orientation::Rotate270),
            (
                "two XMP",
                vec![(b"iTXt", &international), (b"iTXt", &second)],
                Orientation::Rotate90,
            ),
            (
                "XMP of an unknown compression",
                vec![(b"iTXt", &unknown)],
                Orientation::NoTransforms,
            ),
            (
                "XMP that is no text",
                vec![(b"iTXt", &no_text)],
                Orientation::Rotate270,
            ),
            (
                "XMP that is no text, and text",
                vec![(b"tEXt", &plain), (b"iTXt", &second)],
                Orientation::Rotate90,
            ),
            (
                "a further frame",
                vec![animation, frame, idat, frame, six],
                Orientation::NoTransforms,
            ),
            (
                "the only frame",
                vec![frame, idat, frame, six],
                Orientation::Rotate90,
            ),
        ];
        for (name, chunks, expected) in cases {
            assert_eq!(orientation(&file(&chunks)), expected, "{name}");
        }
    }

    #[test]
    fn deflated_texts_are_read() {
        let mut text = Vec::new();
        let plain = &raw(SIX)[22..];
        flate2::read::ZlibEncoder::new(plain, flate2::Compression::fast())
            .read_to_end(&mut text)
            .unwrap();
        let chunk = [b"Raw profile type exif\0\0", &text[..]].concat();
        assert_eq!(orientation(&file(&[(b"zTXt", &chunk)])), Orientation::Rotate90);
        let mut left = 10;
        assert_eq!(inflate(&text, &mut left), Some(plain[..10].to_vec()));
        assert_eq!(inflate(&text, &mut left), Some(vec![]));
        let cut = &chunk[..chunk.len() - 2];
        assert_eq!(orientation(&file(&[(b"zTXt", cut)])), Orientation::Rotate90);
    }

    #[test]
    fn what_decoders_must_not_get_is_named() {
        let header = |color: u8| [0, 0, 0, 2, 0, 0, 0, 3, 8, color, 0, 0, 0];
        let (gray, palette) = (header(0), header(3));
        let cases: [(&[Chunk<'_>], &str); 5] = [
            (&[], "Truncated"),
            (&[(b"CgBI", b"\0\0\0\0"), (b"IHDR", &gray)], "(CgBI)"),
            (
                &[(b"gAMA", b"\0\0\0\0"), (b"IHDR", &gray)],
                "first chunk is `gAMA`, expected `IHDR`",
            ),
            (&[(b"IHDR", b"\0\0\0\0")], "header has 4 bytes, expected 13"),
            (
                &[(b"IHDR", &palette), (b"PLTE", b"1234567")],
                "palette has 7 bytes",
            ),
        ];
        for (chunks, part) in cases {
            let words = format!("{:?}", size(&file(chunks)).unwrap_err());
            assert!(words.contains(part), "{words}");
        }
        for header in [gray, palette] {
            assert_eq!(
                size(&file(&[(b"IHDR", &header), (b"PLTE", b"123456")])),
                Ok((2, 3))
            );
        }
        assert_eq!(
            size(&file(&[(b"IHDR", &gray), (b"PLTE", b"1234567")])),
            Ok((2, 3))
        );
    }
}
