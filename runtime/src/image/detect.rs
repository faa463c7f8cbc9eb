//! Which format is a file of, and what is it if it is no image?

use super::ImageError;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    Png,
    Jpeg,
    WebP,
    Gif,
    Bmp,
    Tiff,
    Heic,
    Avif,
}

impl Format {
    /// Its name, and which kinds of it are decoded.
    pub(super) fn words(self) -> (&'static str, &'static str) {
        match self {
            Format::Png => ("PNG", "RGB, gray or palette with at most 16 bits a channel"),
            Format::Jpeg => ("JPEG", "a baseline or progressive JPEG with 8 bits a channel"),
            Format::WebP => ("WebP", "lossy or lossless WebP"),
            Format::Gif => ("GIF", "GIF 87a or 89a"),
            Format::Bmp => (
                "BMP",
                "RGB or palette without compression, with masks or with run lengths",
            ),
            Format::Tiff => ("TIFF", super::tiff::EXPECTED),
            Format::Heic => ("HEIC", super::heif::EXPECTED),
            Format::Avif => ("AVIF", super::heif::EXPECTED),
        }
    }
}

/// Bytes that tell a format.
pub(super) const HEAD: u64 = 512;

/// The format by content; a file name says nothing.
pub(super) fn detect(bytes: &[u8], name: &str) -> Result<Format, ImageError> {
    if bytes.is_empty() {
        return Err(ImageError::Empty {
            name: name.to_owned(),
        });
    }
    let starts = |magic: &[u8]| bytes.starts_with(magic);
    let at = |offset: usize, magic: &[u8]| bytes.get(offset..).is_some_and(|rest| rest.starts_with(magic));
    if starts(b"\x89PNG\r\n\x1a\n") {
        return Ok(Format::Png);
    } else if starts(b"\xff\xd8\xff") {
        return Ok(Format::Jpeg);
    } else if starts(b"RIFF") && at(8, b"WEBP") {
        return Ok(Format::WebP);
    } else if starts(b"GIF87a") || starts(b"GIF89a") {
        return Ok(Format::Gif);
    } else if starts(b"BM") {
        return Ok(Format::Bmp);
    } else if [b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"]
        .into_iter()
        .any(|magic| starts(magic))
    {
        return Ok(Format::Tiff);
    } else if let Some(format) = heif(bytes) {
        return Ok(format);
    }
    let (found, convert) = describe(bytes);
    Err(ImageError::UnknownFormat {
        name: name.to_owned(),
        found,
        convert,
    })
}

/// HEIC or AVIF, by the brands of the box that such a file begins with: of all of them, for the first may be one that only
/// its maker knows.
fn heif(bytes: &[u8]) -> Option<Format> {
    let (size, rest) = bytes.split_first_chunk()?;
    let brands = rest.strip_prefix(b"ftyp")?;
    let size = usize::try_from(u32::from_be_bytes(*size)).ok()?;
    let brands = &brands[..brands.len().min(size.saturating_sub(8))];
    // Behind the first stands a number.
    let brands = brands.as_chunks::<4>().0.iter().enumerate();
    let brands = brands.filter(|(place, _)| *place != 1).map(|(_, brand)| brand);
    let mut found = None;
    for brand in brands {
        match brand {
            b"avif" | b"avis" => return Some(Format::Avif),
            b"heic" | b"heix" | b"heim" | b"heis" | b"hevc" | b"hevx" | b"mif1" | b"mif2" | b"msf1" => {
                found = Some(Format::Heic);
            }
            _ => {}
        }
    }
    found
}

/// `a HEIC image`, `an AVIF image`.
pub(super) fn with_article(format: &str) -> String {
    let article = if format == "AVIF" { "an" } else { "a" };
    format!("{article} {format} image")
}

/// What the first bytes of a file are, in words: `a GIF image`, `text`.
pub(super) fn what(bytes: &[u8]) -> String {
    match detect(bytes, "") {
        Ok(format) => with_article(format.words().0),
        Err(ImageError::Empty { .. }) => "empty (0 bytes)".to_owned(),
        Err(_) => describe(bytes).0,
    }
}

/// How formats begin that are not decoded, what they are, and the command that converts them.
const OTHERS: [(&[u8], &str, Option<&str>); 14] = [
    (b"%PDF", "a PDF file", Some("pdftoppm -png in.pdf out")),
    (b"\xff\x0a", "a JPEG XL image", Some("djxl in.jxl out.png")),
    (b"\0\0\0\x0cJXL ", "a JPEG XL image", Some("djxl in.jxl out.png")),
    (
        b"\0\0\0\x0cjP  ",
        "a JPEG 2000 image",
        Some("opj_decompress -i in.jp2 -o out.png"),
    ),
    (
        b"\xff\x4f\xff\x51",
        "a JPEG 2000 image",
        Some("opj_decompress -i in.j2k -o out.png"),
    ),
    (b"\0\0\x01\0", "an icon (ICO)", Some("ffmpeg -i in.ico out.png")),
    (
        b"8BPS",
        "a Photoshop file (PSD)",
        Some("ffmpeg -i in.psd out.png"),
    ),
    (b"PK\x03\x04", "a zip archive", None),
    (b"\x1f\x8b", "a gzip file", None),
    (b"qoif", "a QOI image", Some("ffmpeg -i in.qoi out.png")),
    (
        b"\x76\x2f\x31\x01",
        "an OpenEXR image",
        Some("ffmpeg -i in.exr out.png"),
    ),
    (b"DDS ", "a DDS image", Some("ffmpeg -i in.dds out.png")),
    (b"\x7fELF", "a program (ELF)", None),
    (b"\x89PNG", "a PNG file damaged in its first 8 bytes", None),
];

/// What bytes that are none of ours look like, and the command that converts them.
fn describe(bytes: &[u8]) -> (String, Option<&'static str>) {
    let at = |offset: usize, magic: &[u8]| bytes.get(offset..).is_some_and(|rest| rest.starts_with(magic));
    if at(4, b"ftyp") {
        let (kind, convert) = match bytes.get(8..12).unwrap_or_default() {
            b"crx " => ("a raw camera image (CR3)", "darktable-cli in.cr3 out.jpg"),
            _ => ("an MP4 or QuickTime file", "ffmpeg -i in.mp4 -frames:v 1 out.png"),
        };
        return (kind.to_owned(), Some(convert));
    }
    if let Some((_, kind, convert)) = OTHERS.iter().find(|(magic, ..)| bytes.starts_with(magic)) {
        return ((*kind).to_owned(), *convert);
    }
    let words = |words: &str| (words.to_owned(), None);
    let head = &bytes[..bytes.len().min(256)];
    // A character may be cut at the end of the head.
    let text = match std::str::from_utf8(head) {
        Ok(text) => text,
        Err(error) if error.error_len().is_none() => {
            std::str::from_utf8(&head[..error.valid_up_to()]).unwrap_or_default()
        }
        Err(_) => "",
    };
    let plain = |character: char| !character.is_control() || character.is_whitespace();
    if !text.is_empty() && text.chars().all(plain) {
        let text = text.trim_start_matches('\u{feff}').trim_start();
        let markup = text.starts_with("<svg") || (text.starts_with("<?xml") && text.contains("<svg"));
        let html = text
            .get(..5)
            .is_some_and(|start| start.eq_ignore_ascii_case("<!doc") || start == "<html");
        return if markup {
            (
                "an SVG drawing".to_owned(),
                Some("rsvg-convert in.svg -o out.png"),
            )
        } else if html {
            words("an HTML page")
        } else if text.starts_with("version https://git-lfs") {
            words("a Git LFS pointer instead of the file")
        } else {
            words("text")
        };
    }
    let start: Vec<String> = bytes.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    words(&format!(
        "of an unknown format (it starts with {})",
        start.join(" ")
    ))
}
