//! What is said of HEIC and AVIF files before they are decoded, and what is refused.

use super::*;
use crate::image::ImageError;

const MEGAPIXEL: Limits = Limits {
    max_pixels: 1_000_000,
};

/// A box.
fn part(kind: &[u8; 4], parts: &[&[u8]]) -> Vec<u8> {
    let body = parts.concat();
    let size = u32::try_from(body.len() + 8).unwrap();
    [&size.to_be_bytes(), &kind[..], &body].concat()
}

/// A box with a version and flags of zero.
fn full(kind: &[u8; 4], parts: &[&[u8]]) -> Vec<u8> {
    part(kind, &[&[0; 4], &parts.concat()])
}

/// An item of a file: its type, its data, its properties, the items that it is made of and those that it is alpha of.
#[derive(Clone, Default)]
struct Item {
    kind: [u8; 4],
    data: Vec<u8>,
    properties: Vec<Vec<u8>>,
    made_of: Vec<u16>,
    alpha_of: Option<u16>,
}

/// A file of items, numbered from 1, of which the last is shown; data lie in `idat`.
fn file(items: &[Item]) -> Vec<u8> {
    let (mut boxes, mut data) = (Vec::new(), Vec::new());
    let (mut iinf, mut iloc, mut ipma, mut iref) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let number = |number: usize| u16::try_from(number).unwrap().to_be_bytes();
    let mut places = 0;
    for (id, item) in items
        .iter()
        .enumerate()
        .map(|(place, item)| (number(place + 1), item))
    {
        let entry = part(b"infe", &[&[2, 0, 0, 0], &id, &[0; 2], &item.kind, &[0]]);
        iinf.extend(entry);
        let offset = u32::try_from(data.len()).unwrap().to_be_bytes();
        let length = u32::try_from(item.data.len()).unwrap().to_be_bytes();
        iloc.extend([&id[..], &[0, 1, 0, 0, 0, 1], &offset, &length].concat());
        data.extend(&item.data);
        ipma.extend([&id[..], &[u8::try_from(item.properties.len()).unwrap()]].concat());
        for property in &item.properties {
            boxes.extend(property);
            places += 1;
            ipma.push(places);
        }
        for (kind, to) in [
            (b"dimg", item.made_of.clone()),
            (b"auxl", item.alpha_of.into_iter().collect()),
        ] {
            let count = number(to.len());
            let to: Vec<u8> = to.iter().flat_map(|id| id.to_be_bytes()).collect();
            if !to.is_empty() {
                iref.extend(part(kind, &[&id, &count, &to]));
            }
        }
    }
    let count = number(items.len());
    let associations = [&[0, 0][..], &count, &ipma].concat();
    let meta = full(
        b"meta",
        &[
            &full(b"pitm", &[&count]),
            &full(b"iinf", &[&count, &iinf]),
            &part(b"iloc", &[&[1, 0, 0, 0, 0x44, 0], &count, &iloc]),
            &full(b"iref", &[&iref]),
            &part(
                b"iprp",
                &[&part(b"ipco", &[&boxes]), &full(b"ipma", &[&associations])],
            ),
            &part(b"idat", &[&data]),
        ],
    );
    [part(b"ftyp", &[b"mif1\0\0\0\0mif1heic"]), meta].concat()
}

/// Items may have the same bytes, a few times; each is looked at from end to end.
#[test]
fn items_of_the_same_bytes_are_bounded() {
    let mut items = vec![
        Item {
            kind: *b"hvc1",
            data: vec![0; 4000],
            properties: vec![part(b"hvcC", &[&[0; 23]])],
            ..Item::default()
        };
        20
    ];
    items.push(Item {
        kind: *b"iden",
        made_of: (1..=20).collect(),
        ..Item::default()
    });
    let bytes = file(&items);
    let read = Items::read(&bytes).unwrap().unwrap();
    let mut looking = Looking {
        items: read,
        limits: &MEGAPIXEL,
        codecs: Vec::new(),
        known: BTreeMap::new(),
        read: bytes.len() * SHARED + LITTLE - 4000,
    };
    assert!(looking.bytes(1).is_ok());
    let error = looking.bytes(2).unwrap_err();
    assert!(matches!(error, Problem::Damaged(words) if words.contains("times as many bytes")));
}

#[test]
fn properties_of_an_item_are_bounded() {
    let item = Item {
        kind: *b"hvc1",
        properties: vec![part(b"free", &[]); 200],
        ..Item::default()
    };
    let bytes = file(&[item]);
    // Once more as many.
    let body = [&[0, 0, 0, 0, 0, 0, 0, 1, 0, 1, 200][..], &[1; 200]].concat();
    let mut items = Items::read(&bytes).unwrap().unwrap();
    let error = items.associate(Cursor::new(&body, *b"ipma")).unwrap_err();
    assert!(matches!(error, Problem::Damaged(words) if words.contains("more than 255 properties")));
}

#[test]
fn extents_that_take_no_byte_are_bounded() {
    // No offset, no length, no base; one item, of so many extents.
    let located = |extents: u16| {
        let located = full(b"iloc", &[&[0, 0, 0, 1, 0, 1, 0, 0], &extents.to_be_bytes()]);
        Items::read(&full(b"meta", &[&located])).map(|items| items.is_some())
    };
    assert!(located(1).unwrap());
    let error = located(u16::MAX).unwrap_err();
    assert!(
        matches!(error, Problem::Damaged(words) if words.contains("65535 extents of item 1 that take no byte"))
    );
}

/// Bits, the highest first, filled up with zeros.
#[derive(Default)]
struct Bits(String);

impl Bits {
    fn put(mut self, value: u64, bits: usize) -> Bits {
        if bits > 0 {
            self.0 += &format!("{value:0bits$b}");
        }
        self
    }

    fn exponential(self, value: u64) -> Bits {
        let bits = format!("{:b}", value + 1).len();
        self.put(0, bits - 1).put(value + 1, bits)
    }

    /// Bytes, with a 3 behind two zeros where HEVC wants one.
    fn bytes(self, escaped: bool) -> Vec<u8> {
        let text = self.0.as_bytes().chunks(8).map(|bits| {
            let bits = std::str::from_utf8(bits).unwrap();
            u8::from_str_radix(&format!("{bits:0<8}"), 2).unwrap()
        });
        let mut bytes = Vec::new();
        for byte in text {
            if escaped && byte <= 3 && bytes.ends_with(&[0, 0]) {
                bytes.push(3);
            }
            bytes.push(byte);
        }
        bytes
    }
}

/// A sequence parameter set of HEVC, with `layers` below the first that say their own level, and `cut` pixels of colour cut
/// off on the right and below.
fn parameters_cut(width: u64, height: u64, layers: usize, cut: u64) -> Vec<u8> {
    let mut bits = Bits::default()
        .put(0, 4)
        .put(layers as u64, 3)
        .put(1, 1)
        .put(0, 96);
    for _ in 0..layers {
        bits = bits.put(1, 2);
    }
    if layers > 0 {
        bits = bits.put(0, 2 * (8 - layers));
    }
    let bits = bits.put(0, 8 * layers).exponential(0).exponential(1);
    let bits = bits.exponential(width).exponential(height);
    let bits = bits.put(1, 1).exponential(0).exponential(cut);
    let payload = bits.exponential(0).exponential(cut).bytes(true);
    [&[33 << 1, 1][..], &payload].concat()
}

fn parameters(width: u64, height: u64, layers: usize) -> Vec<u8> {
    parameters_cut(width, height, layers, 0)
}

/// A unit of HEVC that is the first slice of a picture.
const SLICE: [u8; 6] = [19 << 1, 1, 0x80, 0, 0, 0];

fn unit(unit: &[u8]) -> Vec<u8> {
    [&u32::try_from(unit.len()).unwrap().to_be_bytes(), unit].concat()
}

fn hevc_config(sets: &[Vec<u8>]) -> Vec<u8> {
    let head = [&[1; 21][..], &[3, u8::try_from(sets.len()).unwrap()]].concat();
    let sets = sets.iter().flat_map(|set| {
        let length = u16::try_from(set.len()).unwrap().to_be_bytes();
        [&[33, 0, 1][..], &length, set].concat()
    });
    part(b"hvcC", &[&head, &sets.collect::<Vec<u8>>()])
}

fn ispe(width: u64, height: u64) -> Vec<u8> {
    let edge = |edge| u32::try_from(edge).unwrap().to_be_bytes();
    full(b"ispe", &[&edge(width), &edge(height)])
}

fn hevc(width: u64, height: u64) -> Item {
    Item {
        kind: *b"hvc1",
        data: unit(&SLICE),
        properties: vec![hevc_config(&[parameters(width, height, 0)]), ispe(width, height)],
        ..Item::default()
    }
}

/// A sequence header of AV1: of a still picture, or with everything that may stand before the size.
fn header(width: u64, height: u64, still: bool) -> Vec<u8> {
    let bits = Bits::default().put(0, 3).put(1, 1).put(u64::from(still), 1);
    let bits = if still {
        bits.put(0, 5)
    } else {
        let timing = bits.put(1, 1).put(0, 64).put(1, 1).exponential(6);
        let model = timing.put(1, 1).put(9, 5).put(0, 42);
        // Two points: with a tier, the model's delays of 10 bits and one to display; with none of that.
        let points = model.put(1, 1).put(1, 5);
        let first = points
            .put(0, 12)
            .put(8, 5)
            .put(0, 1)
            .put(1, 1)
            .put(0, 21)
            .put(1, 1)
            .put(5, 4);
        first.put(0, 12).put(7, 5).put(0, 1).put(0, 1)
    };
    let bits = bits.put(15, 4).put(15, 4).put(width - 1, 16).put(height - 1, 16);
    let bytes = bits.bytes(false);
    [&[0x0a, u8::try_from(bytes.len()).unwrap()][..], &bytes].concat()
}

const FRAME: [u8; 3] = [0x32, 1, 0];

fn av1(width: u64, height: u64) -> Item {
    Item {
        kind: *b"av01",
        data: [header(width, height, true), FRAME.to_vec()].concat(),
        properties: vec![part(b"av1C", &[&[0x81, 0, 0, 0]]), ispe(width, height)],
        ..Item::default()
    }
}

/// A grid of one row.
fn grid(width: u16, height: u16, made_of: Vec<u16>) -> Item {
    let size = [width, height].map(u16::to_be_bytes).concat();
    let columns = u8::try_from(made_of.len().max(1) - 1).unwrap();
    Item {
        kind: *b"grid",
        data: [vec![0, 0, 0, columns], size].concat(),
        properties: vec![ispe(width.into(), height.into())],
        made_of,
        ..Item::default()
    }
}

fn look(items: &[Item]) -> Result<Survey, String> {
    survey(&file(items), "it.heic", &MEGAPIXEL).map_err(|error| error.to_string())
}

#[test]
fn a_file_says_what_its_image_takes() {
    let alpha = full(b"auxC", &[b"urn:mpeg:hevc:2015:auxid:1\0"]);
    let mut veil = hevc(64, 32);
    veil.alpha_of = Some(2);
    veil.properties.push(alpha);
    let mut depth = hevc(5000, 5000);
    depth.alpha_of = Some(2);
    depth
        .properties
        .push(full(b"auxC", &[b"urn:mpeg:hevc:2015:auxid:2\0"]));
    let mut timed = av1(1, 1);
    timed.data = [header(640, 480, false), FRAME.to_vec()].concat();
    timed.properties.truncate(1);
    let mut layered = hevc(1, 1);
    layered.properties = vec![hevc_config(&[parameters(640, 480, 2)])];
    let both = vec![Codec::Hevc, Codec::Av1];
    let cases = [
        (vec![hevc(640, 480)], vec![Codec::Hevc], 640 * 480),
        (vec![layered], vec![Codec::Hevc], 640 * 480),
        (vec![av1(640, 480)], vec![Codec::Av1], 640 * 480),
        (vec![timed], vec![Codec::Av1], 640 * 480),
        // Its parts and the whole.
        (
            vec![hevc(64, 64), av1(64, 64), grid(128, 64, vec![1, 2])],
            both,
            2 * SMALL + 128 * 64,
        ),
        // Alpha is decoded too, what else belongs to it is not.
        (vec![veil.clone(), hevc(64, 64)], vec![Codec::Hevc], 2 * SMALL),
        (vec![depth, hevc(64, 64)], vec![Codec::Hevc], SMALL),
        // Of others in the file nothing is said.
        (vec![hevc(50_000, 50_000), hevc(8, 8)], vec![Codec::Hevc], SMALL),
    ];
    for (number, (items, codecs, pixels)) in cases.into_iter().enumerate() {
        assert_eq!(look(&items), Ok(Survey { codecs, pixels }), "{number}");
    }
}

/// Files that ask for more than the limits in each place that can, and what is said.
#[test]
fn bombs_are_refused_before_anything_is_decoded() {
    let large = "is 60000 x 60000 pixels, expected at most 1000000 pixels";
    let mut second = hevc(64, 64);
    second.properties = vec![hevc_config(&[
        parameters(64, 64, 0),
        parameters(60_000, 60_000, 0),
    ])];
    let mut within = hevc(64, 64);
    within.data = [unit(&parameters(60_000, 60_000, 0)), unit(&SLICE)].concat();
    let mut config = av1(64, 64);
    config.properties = vec![part(b"av1C", &[&[0x81, 0, 0, 0], &header(60_000, 60_000, false)])];
    let mut declared = hevc(64, 64);
    declared.properties[1] = ispe(60_000, 60_000);
    let mut veil = av1(60_000, 60_000);
    veil.alpha_of = Some(2);
    veil.properties
        .push(full(b"auxC", &[b"urn:mpeg:mpegB:cicp:systems:auxiliary:alpha\0"]));
    let mut pictures = hevc(1000, 1000);
    pictures.data = unit(&SLICE).repeat(2);
    let mut frames = av1(1000, 1000);
    frames.data.extend(FRAME.repeat(8));
    let together = "have 17000000 pixels together, expected at most 16777216";
    let mut deep = vec![hevc(8, 8)];
    deep.extend((1..12).map(|below| grid(8, 8, vec![below])));
    let cases = [
        (vec![hevc(60_000, 60_000)], large),
        (vec![av1(60_000, 60_000)], large),
        (vec![second], large),
        (vec![within], large),
        (vec![config], large),
        (vec![declared], large),
        (vec![hevc(8, 8), grid(60_000, 60_000, vec![1])], large),
        (vec![hevc(60_000, 60_000), grid(8, 8, vec![1])], large),
        (vec![veil, hevc(64, 64)], large),
        (vec![pictures], "its HEVC data have 2 images, expected at most 1"),
        (vec![frames], "its AV1 data have 9 images, expected at most 8"),
        // Small parts take time too.
        (
            vec![hevc(8, 8), grid(8, 8, vec![1; 256])],
            "have 16777280 pixels together, expected at most 16777216",
        ),
        (vec![hevc(1000, 1000), grid(1000, 1000, vec![1; 16])], together),
        (
            vec![grid(8, 8, vec![1])],
            "images are made of images over 8 times",
        ),
        (deep, "images are made of images over 8 times"),
        (vec![hevc(9, 1 << 21)], "expected at most 1000000 pixels"),
    ];
    for (number, (items, part)) in cases.iter().enumerate() {
        let error = look(items).unwrap_err();
        assert!(
            error.contains(part) && error.contains("`it.heic`"),
            "{number}: {error}"
        );
    }
    // Without the edges of blocks it is within them.
    assert!(look(&[hevc(1063, 1063)]).is_ok());
    assert!(look(&[hevc(1064, 1064)]).is_err());
}

#[test]
fn what_contradicts_itself_or_is_not_decoded_is_named() {
    let cut = |mut item: Item, left: usize| {
        item.data.truncate(left);
        vec![item]
    };
    let without = |mut item: Item| {
        item.properties.clear();
        vec![item]
    };
    let mut short = hevc(64, 64);
    short.properties = vec![part(b"hvcC", &[&[1; 21], &[1, 0]])];
    let mut other = hevc(64, 64);
    other.kind = *b"jpeg";
    let mut smaller = hevc(64, 64);
    smaller.properties[0] = hevc_config(&[parameters_cut(64, 64, 0, 16)]);
    let mut turned = hevc(64, 64);
    turned.properties.push(part(b"irot", &[&[1]]));
    let over = |offset: [u8; 2]| Item {
        kind: *b"iovl",
        data: [&[0; 10][..], &[0, 64, 0, 64], &[0, 9], &offset].concat(),
        made_of: vec![1],
        ..Item::default()
    };
    assert!(look(&[hevc(64, 64), over([0, 9])]).is_ok());
    let same = Item {
        kind: *b"iden",
        made_of: vec![1],
        ..Item::default()
    };
    assert!(look(&[hevc(64, 64), same]).is_ok());
    let cases = [
        (cut(hevc(64, 64), 0), "its HEVC data have no image"),
        (cut(hevc(64, 64), 3), "`hvc1` ends too early"),
        (cut(hevc(64, 64), 8), "`hvc1` ends too early"),
        (cut(av1(64, 64), 1), "`av01` ends too early"),
        (cut(av1(64, 64), 4), "`av01` ends too early"),
        (
            cut(av1(64, 64), header(64, 64, true).len()),
            "its AV1 data have no image",
        ),
        (without(hevc(64, 64)), "item 1 has no `hvcC`"),
        (without(av1(64, 64)), "item 1 has no `av1C`"),
        (
            vec![short],
            "a HEIC image with lengths of 2 bytes, expected an image coded in HEVC or AV1",
        ),
        (vec![other], "a HEIF file whose image is of kind `jpeg`, expected"),
        (vec![grid(8, 8, vec![])], "its grid has 0 tiles, expected 1 x 1"),
        (
            vec![grid(8, 8, vec![5])],
            "item 5, which it refers to, is not in it",
        ),
        (
            vec![hevc(64, 64), grid(65, 64, vec![1])],
            "its tiles do not cover 65 x 64 pixels",
        ),
        (
            vec![hevc(64, 64), hevc(64, 65), grid(64, 64, vec![1, 2])],
            "its grid has tiles of several sizes",
        ),
        (
            vec![turned, grid(64, 64, vec![1])],
            "a grid of tiles that are turned or cropped",
        ),
        (
            vec![smaller],
            "item 1 is 64 x 64 pixels, and its codec has 32 x 32",
        ),
        (
            vec![hevc(64, 64), over([255, 247])],
            "an overlay of images that begin outside of it",
        ),
        (vec![hevc(0, 64)], "do not say how large the image is"),
    ];
    for (number, (items, part)) in cases.iter().enumerate() {
        let error = look(items).unwrap_err();
        assert!(error.contains(part), "{number}: {error}");
    }
    let sequence = part(b"ftyp", &[b"msf1\0\0\0\0hevc"]);
    let error = survey(&sequence, "it", &MEGAPIXEL).unwrap_err().to_string();
    assert!(error.contains("a HEIF file without a still image"), "{error}");
}

/// Files of `tests/data/heif`, which libheif made.
fn recorded() -> Vec<(String, Vec<u8>)> {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/heif");
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if name.ends_with(".heic") || name.ends_with(".avif") {
            files.push((name, std::fs::read(path).unwrap()));
        }
    }
    files.sort();
    assert!(files.len() > 15, "{}", files.len());
    files
}

#[test]
fn real_files_are_understood_and_each_that_is_cut_off_is_refused() {
    for (name, bytes) in recorded() {
        let found = survey(&bytes, &name, &MEGAPIXEL).unwrap();
        let codec = if name.ends_with("avif") {
            Codec::Av1
        } else {
            Codec::Hevc
        };
        assert_eq!(found.codecs, [codec], "{name}");
        assert!((SMALL..7 * SMALL).contains(&found.pixels), "{name}: {found:?}");
        // Behind the image there may be 40 bytes of EXIF, which nobody needs.
        let needed = bytes.len() - if name.contains("exif") { 40 } else { 0 };
        for left in 0..needed {
            let found = survey(&bytes[..left], &name, &MEGAPIXEL);
            assert!(found.is_err(), "{name}, {left} bytes of {}", bytes.len());
        }
        let tight = Limits { max_pixels: 15 };
        let error = survey(&bytes, &name, &tight);
        // Blocks at edges are forgiven, more is not.
        if let Err(error) = error {
            assert!(
                matches!(error, ImageError::TooManyPixels { .. }),
                "{name}: {error}"
            );
        }
    }
}

#[test]
fn changed_files_say_no_more_than_is_allowed() {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        usize::try_from(state % below as u64).unwrap()
    };
    for (name, bytes) in recorded() {
        for _ in 0..300 {
            let mut changed = bytes.clone();
            for _ in 0..=random(4) {
                // Most of what matters stands at the start.
                let reach = [bytes.len(), 600.min(bytes.len())][random(2)];
                let place = random(reach);
                changed[place] = u8::try_from(random(256)).unwrap();
            }
            if let Ok(found) = survey(&changed, &name, &MEGAPIXEL) {
                assert!(found.pixels <= 4 * (1 << 22), "{name}: {found:?}");
            }
        }
    }
}
