//! Files that must not be decoded, and what is said of them.

use super::*;
use std::io::Write;

fn refuse(bytes: &[u8]) -> ImageError {
    match decode(bytes, "it.png", &Limits::default()) {
        Ok(picture) => panic!("decoded as {picture:?}: {:02x?}", &bytes[..bytes.len().min(64)]),
        Err(error) => error,
    }
}

/// The valid files of the recorded cases, as seeds for damage.
fn files() -> Vec<(String, Vec<u8>)> {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data");
    let mut files = Vec::new();
    for folder in ["images", "matrix"] {
        for entry in std::fs::read_dir(data.join(folder)).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|end| end != "json") {
                let name = path.file_name().unwrap().to_string_lossy().into_owned();
                files.push((name, std::fs::read(&path).unwrap()));
            }
        }
    }
    files.sort();
    files
}

/// CRC-32.
fn checksum(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |checksum, &byte| {
        (0..8).fold(checksum ^ u32::from(byte), |value, _| {
            (value >> 1) ^ if value & 1 == 1 { 0xedb8_8320 } else { 0 }
        })
    })
}

fn png_header(width: u32, height: u32) -> Vec<u8> {
    let mut header = b"IHDR".to_vec();
    header.extend(width.to_be_bytes());
    header.extend(height.to_be_bytes());
    header.extend([8, 2, 0, 0, 0]);
    let checksum = checksum(&header);
    let mut png = b"\x89PNG\r\n\x1a\n\0\0\0\x0d".to_vec();
    png.extend(header);
    png.extend(checksum.to_be_bytes());
    png.extend(b"\0\0\0\x10IDAT");
    png
}

#[test]
fn what_is_no_image_is_named() {
    let cases: [(&[u8], &str); 18] = [
        (b"", "is empty (0 bytes)"),
        (b"hello, I am no image\n", "is text, expected one of PNG, JPEG"),
        ("h\u{e9}llo".as_bytes(), "is text"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "is an SVG drawing"),
        (b"<?xml version='1.0'?>\n<svg/>", "is an SVG drawing"),
        (b"<!DOCTYPE html><html></html>", "is an HTML page"),
        (b"%PDF-1.7\n", "is a PDF file"),
        (
            b"\0\0\0\x18ftypheic\0\0\0\0",
            "is a damaged HEIC file: it ends too early",
        ),
        (
            b"\0\0\0\x18ftypMiHE\0\0\0\0mif1heic",
            "is a HEIF file without a still image",
        ),
        (
            b"\0\0\0\x1cftypmif1\0\0\0\0mif1avif",
            "is a damaged AVIF file: it ends too early",
        ),
        (
            b"\0\0\0\x18ftypisom\0\0\0\0isomavc1",
            "is an MP4 or QuickTime file, expected one of PNG, JPEG, WebP, GIF, BMP, TIFF, HEIC, AVIF; convert it: \
             `ffmpeg -i in.mp4 -frames:v 1 out.png`",
        ),
        (b"qoif", "is a QOI image, expected one of PNG"),
        (
            b"version https://git-lfs.github.com/spec/v1\n",
            "is a Git LFS pointer",
        ),
        (b"PK\x03\x04", "is a zip archive"),
        (
            b"RIFF\0\0\0\0WAVE",
            "of an unknown format (it starts with 52 49 46 46",
        ),
        (b"\0", "of an unknown format (it starts with 00)"),
        (b"\x89PNX", "of an unknown format"),
        (b"\xff\x0a\0", "is a JPEG XL image"),
    ];
    for (bytes, part) in cases {
        let error = refuse(bytes).to_string();
        assert!(error.contains(part) && error.contains("`it.png`"), "{error}");
    }
}

#[test]
fn huge_sizes_are_refused_before_anything_is_decoded() {
    let bmp = |width: i32, height: i32| {
        let mut bmp = b"BM\x36\0\0\0\0\0\0\0\x36\0\0\0\x28\0\0\0".to_vec();
        bmp.extend(width.to_le_bytes());
        bmp.extend(height.to_le_bytes());
        bmp.extend(b"\x01\0\x18\0");
        bmp.extend([0; 24]);
        bmp
    };
    let jpeg = |width: u16, height: u16| {
        let mut jpeg = b"\xff\xd8\xff\xc0\0\x11\x08".to_vec();
        jpeg.extend(height.to_be_bytes());
        jpeg.extend(width.to_be_bytes());
        jpeg.extend(b"\x03\x01\x22\0\x02\x11\x01\x03\x11\x01");
        jpeg
    };
    let cases = [
        (
            png_header(30_000, 30_000),
            "is 30000 x 30000 pixels, expected at most 100000000 pixels",
        ),
        (
            png_header(u32::MAX >> 1, u32::MAX >> 1),
            "pixels, expected at most",
        ),
        (
            png_header(2_000_000, 10),
            "is 2000000 x 10 pixels, expected edges of at most 1048576",
        ),
        (jpeg(65_535, 65_535), "is 65535 x 65535 pixels, expected at most"),
        (bmp(60_000, 60_000), "pixels, expected at most"),
        (
            b"GIF89a\xff\xff\xff\xff\0\0\0".to_vec(),
            "is 65535 x 65535 pixels",
        ),
    ];
    for (bytes, part) in cases {
        let error = refuse(&bytes).to_string();
        assert!(error.contains(part), "{error}");
    }
    // The limit is a flag.
    let image = files()
        .into_iter()
        .find(|(name, _)| name == "png_rgb.png")
        .unwrap()
        .1;
    let error = decode(&image, "a.png", &Limits { max_pixels: 265 }).unwrap_err();
    assert!(
        matches!(
            error,
            ImageError::TooManyPixels {
                width: 19,
                height: 14,
                ..
            }
        ),
        "{error}"
    );
    assert!(decode(&image, "a.png", &Limits { max_pixels: 266 }).is_ok());
}

#[test]
fn images_without_pixels_are_refused() {
    for bytes in [png_header(0, 10), b"GIF89a\0\0\0\0\0\0\0".to_vec()] {
        let error = refuse(&bytes).to_string();
        assert!(error.contains("0 x") || error.contains("damaged"), "{error}");
    }
}

#[test]
fn unusual_jpegs_are_named() {
    let jpeg = files()
        .into_iter()
        .find(|(name, _)| name == "jpeg_444.jpg")
        .unwrap()
        .1;
    let frame = jpeg.windows(2).position(|pair| pair == [0xff, 0xc0]).unwrap();
    let cases: [(usize, u8, &str); 4] = [
        (4, 12, "a JPEG with 12 bits a channel, expected a baseline"),
        (1, 0xc9, "a JPEG with arithmetic coding"),
        (1, 0xc3, "a lossless JPEG"),
        (1, 0xc5, "a hierarchical JPEG"),
    ];
    for (offset, value, part) in cases {
        let mut jpeg = jpeg.clone();
        jpeg[frame + offset] = value;
        let error = refuse(&jpeg).to_string();
        assert!(error.contains(part), "{error}");
    }
}

/// A cut anywhere is an error, or costs nothing: the rest of some formats is not needed for the pixels.
#[test]
fn truncated_files_are_errors() {
    let mut refused = 0;
    for (name, bytes) in files() {
        let Ok(whole) = decode(&bytes, &name, &Limits::default()) else {
            refused += 1;
            continue;
        };
        for length in (0..bytes.len()).step_by(bytes.len().div_ceil(150)) {
            if let Ok(picture) = decode(&bytes[..length], &name, &Limits::default()) {
                assert_eq!(
                    picture.pixels(),
                    whole.pixels(),
                    "{name} cut at {length} of {}",
                    bytes.len()
                );
            }
        }
    }
    assert!(refused < 10, "{refused} files of kinds that are not decoded");
}

/// Damage anywhere gives an error or an image, in bounded memory, and never a panic.
#[test]
fn damaged_files_do_no_harm() {
    let rounds: u64 = std::env::var("FVLM_FUZZ_ROUNDS").map_or(40, |rounds| rounds.parse().unwrap());
    let limits = Limits {
        max_pixels: 1_000_000,
    };
    let mut random = 1_u64;
    let mut below = |bound: usize| {
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(random >> 33).unwrap() % bound
    };
    for (name, bytes) in files() {
        for _ in 0..rounds {
            let mut bytes = bytes.clone();
            for _ in 0..1 + below(8) {
                // Headers are small: half of the damage goes to the first bytes.
                let at = if below(2) == 0 {
                    below(bytes.len().min(64))
                } else {
                    below(bytes.len())
                };
                bytes[at] = [0, 0xff, 0x7f, 0x80, u8::try_from(below(256)).unwrap()][below(5)];
            }
            let _ = decode(&bytes, &name, &limits);
        }
    }
}

#[test]
fn files_that_cannot_be_read_are_named() {
    let directory = tempfile::tempdir().unwrap();
    for path in [directory.path().join("missing.png"), directory.path().to_owned()] {
        let error = open(&path, &Limits::default()).unwrap_err();
        assert!(matches!(error, ImageError::Read { .. }), "{error}");
        assert!(error.to_string().contains(&path.display().to_string()), "{error}");
    }
    let mut file = std::fs::File::create(directory.path().join("photo.png")).unwrap();
    file.write_all(&files().into_iter().find(|(name, _)| name == "gif.gif").unwrap().1)
        .unwrap();
    assert!(
        open(&directory.path().join("photo.png"), &Limits::default()).is_ok(),
        "the content decides"
    );
}

#[test]
fn addresses_are_no_files() {
    for address in [
        "https://example.com/a.png",
        "HTTP://a/b",
        "file:///a.png",
        "data:image/png;base64,iVBO",
    ] {
        let error = open(Path::new(address), &Limits::default()).unwrap_err();
        assert!(matches!(error, ImageError::Address { .. }), "{error}");
        assert!(
            error.to_string().contains("is an address, expected a file"),
            "{error}"
        );
    }
    for path in ["missing.png", "c:/missing.png", "data:missing"] {
        let error = open(Path::new(path), &Limits::default()).unwrap_err();
        assert!(matches!(error, ImageError::Read { .. }), "{error}");
    }
}

/// A checksum that does not fit is told in words, whichever chunk has it.
#[test]
fn wrong_checksums_are_told_in_words() {
    let image = files()
        .into_iter()
        .find(|(name, _)| name == "png_rgb.png")
        .unwrap()
        .1;
    for chunk in [&b"IHDR"[..], b"IDAT"] {
        let mut image = image.clone();
        let start = image.windows(4).position(|bytes| bytes == chunk).unwrap();
        let length = u32::from_be_bytes(image[start - 4..start].try_into().unwrap());
        image[start + 4 + usize::try_from(length).unwrap()] ^= 1;
        let error = refuse(&image).to_string();
        assert!(
            error.ends_with("is a damaged PNG file: a checksum is wrong: bytes were changed"),
            "{error}"
        );
    }
}

/// What is behind the bits of a scan is looked at once, however many bits are missing.
#[test]
fn a_marker_without_end_is_found_once() {
    let (width, height) = (65_496_u16.to_be_bytes(), 8_u16.to_be_bytes());
    // One code of one bit: no change of DC; fifteen bits of AC.
    let table = |class: u8, value: u8| [&[0xff, 0xc4, 0, 20, class, 1][..], &[0; 15], &[value]].concat();
    let jpeg = [
        &[0xff, 0xd8, 0xff, 0xdb, 0, 67, 0][..],
        &[1; 64],
        &[0xff, 0xc0, 0, 11, 8],
        &height,
        &width,
        &[1, 1, 0x11, 0],
        &table(0x00, 0),
        &table(0x10, 15),
        &[0xff, 0xda, 0, 8, 1, 1, 0, 0, 63, 0],
        &[0xff; 4 << 20],
    ]
    .concat();
    let error = refuse(&jpeg).to_string();
    assert!(error.contains("ends too early"), "{error}");
}

/// A little-endian TIFF of the entries (tag, type, count, value).
fn tiff(entries: &[(u16, u16, u32, u32)]) -> Vec<u8> {
    let mut tiff = b"II*\0\x08\0\0\0".to_vec();
    tiff.extend(u16::try_from(entries.len()).unwrap().to_le_bytes());
    for &(tag, kind, count, value) in entries {
        tiff.extend(tag.to_le_bytes());
        tiff.extend(kind.to_le_bytes());
        tiff.extend(count.to_le_bytes());
        tiff.extend(value.to_le_bytes());
    }
    tiff.extend([0; 4]);
    tiff
}

#[test]
fn hostile_tiffs_are_refused_at_once() {
    let gray = [(258, 3, 1, 8), (262, 3, 1, 1), (273, 4, 1, 8), (279, 4, 1, 8)];
    let sized = |width, height| [(256, 4, 1, width), (257, 4, 1, height)];
    type Entries<'a> = &'a [(u16, u16, u32, u32)];
    let cases: [(Entries<'_>, Entries<'_>, &str); 8] = [
        (
            &sized(1 << 31, 1 << 31),
            &gray,
            "is 2147483648 x 2147483648 pixels, expected at most",
        ),
        (&sized(0, 5), &gray, "is 0 x 5 pixels"),
        (&sized(9, 9), &gray, "ends too early"),
        (
            &sized(1, 1),
            &[
                (258, 3, 1, 8),
                (262, 3, 1, 1),
                (322, 4, 1, u32::MAX),
                (323, 4, 1, u32::MAX),
            ],
            "takes over",
        ),
        // A tile that is a JPEG, whose decoder takes more than the tile.
        (
            &sized(1, 1),
            &[
                (258, 3, 1, 8),
                (259, 3, 1, 7),
                (262, 3, 1, 1),
                (322, 4, 1, 40_000),
                (323, 4, 1, 40_000),
                (324, 4, 1, 8),
                (325, 4, 1, 8),
            ],
            "is 40000 x 40000 pixels, expected at most",
        ),
        (
            &sized(1, 1),
            &[(258, 3, 1, 8), (262, 3, 1, 1), (273, 4, u32::MAX, 8)],
            "takes over",
        ),
        (
            &sized(4, 4),
            &[(258, 3, 1, 32), (339, 3, 1, 3), (262, 3, 1, 1)],
            "with floating-point channels",
        ),
        // Alpha, for which there is no channel.
        (
            &sized(1, 1),
            &[
                (258, 3, 1, 8),
                (262, 3, 1, 2),
                (273, 4, 1, 8),
                (277, 3, 1, 3),
                (338, 3, 1, 1),
            ],
            "with 3 channels, of which 1 are said to be more than the 3 of colours",
        ),
    ];
    for (size, rest, part) in cases {
        let error = refuse(&tiff(&[size, rest].concat())).to_string();
        assert!(error.contains(part), "{error}");
    }
}

/// The same bytes are not decompressed for each of a million tiles.
#[test]
fn tiles_of_the_same_bytes_are_refused() {
    let tiles = 1_000_u32 * 1_000;
    let entries = 9;
    let lists = 8 + 2 + 12 * entries + 4;
    for compression in [5, 7, 8, 32_773] {
        let mut image = tiff(&[
            (256, 4, 1, 1000),
            (257, 4, 1, 1000),
            (258, 3, 1, 8),
            (259, 3, 1, compression),
            (262, 3, 1, 1),
            (322, 4, 1, 1),
            (323, 4, 1, 1),
            (324, 4, tiles, lists),
            (325, 4, tiles, lists + 4 * tiles),
        ]);
        assert_eq!(image.len(), usize::try_from(lists).unwrap());
        for number in [8, u32::MAX] {
            image.extend((0..tiles).flat_map(|_| number.to_le_bytes()));
        }
        let error = refuse(&image).to_string();
        assert!(error.contains("the same bytes many times"), "{error}");
    }
}

/// Without compression, lengths are not needed, and the orientation is read whatever its type.
#[test]
fn tiffs_need_no_lengths() {
    let sized = [(256, 4, 1, 3), (257, 4, 1, 1), (258, 3, 1, 8), (262, 3, 1, 1)];
    for (kind, value, size) in [(3, 1, (3, 1)), (3, 6, (1, 3)), (4, 6, (1, 3)), (1, 6, (3, 1))] {
        let entries = [&sized[..], &[(273, 4, 1, 0), (274, kind, 1, value)]].concat();
        let found = decode(&tiff(&entries), "a.tif", &Limits::default()).unwrap();
        assert_eq!(
            (found.width(), found.height()),
            size,
            "type {kind}, value {value}"
        );
        let turned = size.0 == 1;
        let expected = [b'I', b'I', b'*'].map(|value| [value; 3]).concat();
        assert!(turned || found.pixels() == expected, "{:?}", found.pixels());
    }
}

/// What a decoder's crate would panic on is refused, and the rest of the palette is told.
#[test]
fn palettes_of_half_colors_are_refused() {
    let image = files()
        .into_iter()
        .find(|(name, _)| name.starts_with("png-3-8-rows"))
        .unwrap()
        .1;
    let start = image.windows(4).position(|bytes| bytes == b"PLTE").unwrap();
    let length = u32::from_be_bytes(image[start - 4..start].try_into().unwrap());
    for more in 1..3 {
        let mut chunk = image[start..start + 4 + usize::try_from(length).unwrap()].to_vec();
        chunk.truncate(chunk.len() - 3 + more);
        let mut png = image[..start - 4].to_vec();
        png.extend(u32::try_from(chunk.len() - 4).unwrap().to_be_bytes());
        png.extend(&chunk);
        png.extend(checksum(&chunk).to_be_bytes());
        png.extend(&image[start + 8 + usize::try_from(length).unwrap()..]);
        let error = refuse(&png).to_string();
        assert!(error.contains("expected three for each colour"), "{error}");
    }
}

/// A PNG of one pixel with texts that would be a gigabyte: they are looked at, and not inflated.
#[test]
fn long_texts_cost_nothing() {
    use std::io::Read;
    let endless = std::io::repeat(b'0').take(1 << 28);
    let mut text = Vec::new();
    flate2::read::ZlibEncoder::new(endless, flate2::Compression::fast())
        .read_to_end(&mut text)
        .unwrap();
    let image = files()
        .into_iter()
        .find(|(name, _)| name == "png_rgb.png")
        .unwrap()
        .1;
    let expected = decode(&image, "a.png", &Limits::default()).unwrap();
    for head in [
        &b"iTXtXML:com.adobe.xmp\0\x01\0\0\0"[..],
        b"zTXtRaw profile type exif\0\0",
    ] {
        let chunk = [head, &text].concat();
        let mut png = image[..33].to_vec();
        png.extend(u32::try_from(chunk.len() - 4).unwrap().to_be_bytes());
        png.extend(&chunk);
        png.extend(checksum(&chunk).to_be_bytes());
        png.extend(&image[33..]);
        let found = decode(&png, "a.png", &Limits::default()).unwrap();
        assert!(found == expected, "another picture");
    }
    // A colour profile is inflated, up to what an image of that size may take.
    let chunk = [&b"iCCPx\0\0"[..], &text].concat();
    let mut png = image[..33].to_vec();
    png.extend(u32::try_from(chunk.len() - 4).unwrap().to_be_bytes());
    png.extend(&chunk);
    png.extend(checksum(&chunk).to_be_bytes());
    png.extend(&image[33..]);
    match decode(&png, "a.png", &Limits::default()) {
        Ok(found) => assert!(found == expected, "another picture"),
        Err(error) => assert!(matches!(error, ImageError::TooMuchMemory { .. }), "{error}"),
    }
}

/// A third of a megabyte that asks for 98 megapixels 882 times.
#[test]
fn scans_for_their_own_sake_are_refused() {
    let (width, height) = (65_496_u16, 1_504_u16);
    let blocks = u32::from(width / 8) * u32::from(height / 8);
    let mut jpeg = b"\xff\xd8\xff\xdb\0\x43\0".to_vec();
    jpeg.extend([1; 64]);
    jpeg.extend(b"\xff\xc2\0\x0b\x08");
    jpeg.extend(height.to_be_bytes());
    jpeg.extend(width.to_be_bytes());
    jpeg.extend(b"\x01\x01\x11\0");
    // A code of one bit: no difference, or 16384 blocks and more without anything.
    for (class, value) in [(0, 0), (0x10, 0xe0)] {
        jpeg.extend(b"\xff\xc4\0\x14");
        jpeg.extend([class, 1]);
        jpeg.extend([0; 15]);
        jpeg.push(value);
    }
    jpeg.extend(b"\xff\xda\0\x08\x01\x01\0\0\0\x0d");
    jpeg.extend(vec![0; usize::try_from(blocks.div_ceil(8)).unwrap()]);
    // 15 bits a run of 32767 blocks.
    let runs: String = (0..blocks.div_ceil(32_767)).map(|_| "011111111111111").collect();
    let mut scan = Vec::new();
    for bits in runs.as_bytes().chunks(8) {
        let byte = bits.iter().fold(0_u8, |byte, bit| byte << 1 | (bit - b'0')) << (8 - bits.len());
        scan.push(byte);
        if byte == 0xff {
            scan.push(0);
        }
    }
    for low in (0..14).rev() {
        for k in 1..64 {
            let high = if low == 13 { 0 } else { low + 1 };
            jpeg.extend([0xff, 0xda, 0, 8, 1, 1, 0, k, k, high << 4 | low]);
            jpeg.extend(&scan);
        }
    }
    jpeg.extend(b"\xff\xd9");
    let error = refuse(&jpeg).to_string();
    assert!(
        error.contains("more scans than an image of its size needs"),
        "{error}"
    );
}

/// Few bytes that ask for a decoded image again and again.
#[test]
fn scans_without_end_are_refused() {
    let mut jpeg = b"\xff\xd8\xff\xdb\0\x43\0".to_vec();
    jpeg.extend([1; 64]);
    jpeg.extend(b"\xff\xc2\0\x0b\x08\x20\0\x20\0\x01\x01\x11\0");
    // One code of one bit, for blocks without anything.
    for class in [0, 0x10] {
        jpeg.extend(b"\xff\xc4\0\x14");
        jpeg.push(class);
        jpeg.push(1);
        jpeg.extend([0; 16]);
    }
    let mut mean = jpeg.clone();
    mean.extend(b"\xff\xda\0\x08\x01\x01\0\0\0\x01");
    mean.extend(vec![0; 1 << 17]);
    let mut scans = mean.clone();
    for _ in 0..2 {
        scans.extend(b"\xff\xda\0\x08\x01\x01\0\0\0\x01");
    }
    let error = refuse(&scans).to_string();
    assert!(error.contains("two scans bring the same bits"), "{error}");
}

#[test]
fn endless_streams_end() {
    let error = read(std::io::repeat(0), "stdin", &Limits::default()).unwrap_err();
    assert!(matches!(error, ImageError::UnknownFormat { .. }), "{error}");
    let endless = std::io::Cursor::new(png_header(10, 10)).chain(std::io::repeat(0));
    let error = read(endless, "stdin", &Limits { max_pixels: 100 }).unwrap_err();
    assert!(matches!(error, ImageError::TooManyBytes { .. }), "{error}");
}

#[test]
fn panics_of_decoders_are_errors() {
    let index = std::hint::black_box(3);
    let found = guard(|| Ok([1, 2, 3][index]));
    let Err(Problem::Damaged(reason)) = found else {
        panic!("{found:?}");
    };
    assert!(
        reason.starts_with("its decoder stopped: index out of bounds"),
        "{reason}"
    );
}
