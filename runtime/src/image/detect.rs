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
    }
    Err(ImageError::UnknownFormat {
        name: name.to_owned(),
        found: describe(bytes),
    })
}

/// What the first bytes of a file are, in words: `a GIF image`, `text`.
pub(super) fn what(bytes: &[u8]) -> String {
    match detect(bytes, "") {
        Ok(format) => format!("a {} image", format.words().0),
        Err(ImageError::Empty { .. }) => "empty (0 bytes)".to_owned(),
        Err(_) => describe(bytes),
    }
}

/// What bytes that are none of ours look like.
fn describe(bytes: &[u8]) -> String {
    let at = |offset: usize, magic: &[u8]| bytes.get(offset..).is_some_and(|rest| rest.starts_with(magic));
    if at(4, b"ftyp") {
        let brand = bytes.get(8..12).unwrap_or_default();
        let kind = match brand {
            b"avif" | b"avis" => "an AVIF image",
            b"heic" | b"heix" | b"heim" | b"heis" | b"hevc" | b"hevx" | b"mif1" | b"msf1" => "a HEIC image",
            b"crx " => "a raw camera image (CR3)",
            _ => "an MP4 or QuickTime file",
        };
        return kind.to_owned();
    }
    let known: [(&[u8], &str); 14] = [
        (b"%PDF", "a PDF file"),
        (b"\xff\x0a", "a JPEG XL image"),
        (b"\0\0\0\x0cJXL ", "a JPEG XL image"),
        (b"\0\0\0\x0cjP  ", "a JPEG 2000 image"),
        (b"\xff\x4f\xff\x51", "a JPEG 2000 image"),
        (b"\0\0\x01\0", "an icon (ICO)"),
        (b"8BPS", "a Photoshop file (PSD)"),
        (b"PK\x03\x04", "a zip archive"),
        (b"\x1f\x8b", "a gzip file"),
        (b"qoif", "a QOI image"),
        (b"\x76\x2f\x31\x01", "an OpenEXR image"),
        (b"DDS ", "a DDS image"),
        (b"\x7fELF", "a program (ELF)"),
        (b"\x89PNG", "a PNG file damaged in its first 8 bytes"),
    ];
    if let Some((_, kind)) = known.iter().find(|(magic, _)| bytes.starts_with(magic)) {
        return (*kind).to_owned();
    }
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
            "an SVG drawing".to_owned()
        } else if html {
            "an HTML page".to_owned()
        } else if text.starts_with("version https://git-lfs") {
            "a Git LFS pointer instead of the file".to_owned()
        } else {
            "text".to_owned()
        };
    }
    let start: Vec<String> = bytes.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    format!("of an unknown format (it starts with {})", start.join(" "))
}
