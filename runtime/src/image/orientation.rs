//! Which way up is an image? Its EXIF segment says so, or else its XMP packet, as Pillow's `exif_transpose`
//! asks them: a tag that is there is the answer, whatever it says, and XMP is asked only without one.

use image::metadata::Orientation;
use std::collections::BTreeSet;

/// The name that an EXIF segment has in JPEG. Some writers take it over elsewhere.
pub(super) const EXIF_NAME: &[u8] = b"Exif\0\0";

/// The tag of a TIFF structure.
const ORIENTATION: u64 = 274;

/// The directory of a TIFF structure.
pub(super) struct Directory<'a> {
    pub(super) bytes: &'a [u8],
    pub(super) little: bool,
    /// Whether numbers have 8 bytes where those of usual files have 4.
    pub(super) big: bool,
    /// Its place in `bytes`.
    pub(super) start: u64,
}

/// The orientation that `exif` or else `xmp` says, or none.
pub(super) fn of(exif: Option<&[u8]>, xmp: Option<&[u8]>) -> Orientation {
    either(exif.and_then(from_exif), xmp)
}

/// The orientation of a TIFF file, which its `directory` or else `xmp` says, or none.
pub(super) fn of_tiff(directory: &Directory<'_>, xmp: Option<&[u8]>) -> Orientation {
    either(directory.orientation(), xmp)
}

fn either(tag: Option<Orientation>, xmp: Option<&[u8]>) -> Orientation {
    tag.or_else(|| from_xmp(xmp?))
        .unwrap_or(Orientation::NoTransforms)
}

/// What the tag of an EXIF segment says, or `None` if it has no such tag.
fn from_exif(exif: &[u8]) -> Option<Orientation> {
    let mut exif = exif;
    for _ in 0..2 {
        exif = exif.strip_prefix(EXIF_NAME).unwrap_or(exif);
    }
    if exif.is_empty() {
        return None;
    }
    let (little, start) = match exif.first_chunk() {
        // Two of these are wrong, and are read; of the kind with long numbers, Pillow reads one.
        Some(&[b'I', b'I', b'*', 0, a, b, c, d] | &[b'I', b'I', 0, b'*', a, b, c, d]) => {
            (true, u32::from_le_bytes([a, b, c, d]))
        }
        Some(&[b'M', b'M', 0, b'*' | b'+', a, b, c, d] | &[b'M', b'M', b'*', 0, a, b, c, d]) => {
            (false, u32::from_be_bytes([a, b, c, d]))
        }
        // It gives up, and asks nothing else.
        _ => return Some(Orientation::NoTransforms),
    };
    let directory = Directory {
        bytes: exif,
        little,
        big: false,
        start: start.into(),
    };
    directory.orientation()
}

impl Directory<'_> {
    /// What the first tag says that can be read, or `None` if there is none. Reading ends where the bytes do.
    fn orientation(&self) -> Option<Orientation> {
        let (count, first, word) = if self.big { (8, 8, 8) } else { (2, 2, 4) };
        let count = self.number(self.slice(self.start, count)?);
        let (mut seen, mut total) = (BTreeSet::new(), 0_u64);
        for index in 0..count {
            let length = 4 + 2 * word;
            let place = index
                .checked_mul(length)?
                .checked_add(self.start)?
                .checked_add(first)?;
            let (tag, rest) = self.slice(place, length)?.split_at(2);
            let (kind, rest) = rest.split_at(2);
            let (values, inline) = rest.split_at(rest.len() / 2);
            let (tag, kind) = (self.number(tag), self.number(kind));
            let Some(size) = size(kind) else { continue };
            if seen.contains(&tag) {
                continue;
            }
            let size = self.number(values).saturating_mul(size);
            let data = if size <= word {
                &inline[..usize::try_from(size).ok()?]
            } else {
                // No file has more than its length, and then a tag is passed over.
                total = total.saturating_add(size);
                if total > u64::try_from(self.bytes.len()).ok()? {
                    continue;
                }
                self.slice(self.number(inline), size)?
            };
            if data.is_empty() {
                continue;
            }
            if tag == ORIENTATION {
                let value = self.value(kind, data).and_then(|value| u8::try_from(value).ok());
                let orientation = value.and_then(Orientation::from_exif);
                return Some(orientation.unwrap_or(Orientation::NoTransforms));
            }
            seen.insert(tag);
        }
        None
    }

    /// The first value of `data`, which are of type `kind`, if it is a whole number.
    fn value(&self, kind: u64, data: &[u8]) -> Option<i64> {
        let whole = |value: f64| {
            (2..=8)
                .find(|&number: &i32| f64::from(number) == value)
                .map(i64::from)
        };
        let bits = |size: usize| data.get(..size).map(|data| self.number(data));
        let low = |bits: u64| u32::try_from(bits).ok();
        Some(match kind {
            3 | 4 | 13 | 16 => i64::try_from(bits(usize::try_from(size(kind)?).ok()?)?).ok()?,
            6 => bits(1)?.to_le_bytes()[0].cast_signed().into(),
            8 => u16::try_from(bits(2)?).ok()?.cast_signed().into(),
            9 => low(bits(4)?)?.cast_signed().into(),
            5 | 10 => {
                let (above, below) = data.get(..8)?.split_at(4);
                let number = |data: &[u8]| {
                    let number = low(self.number(data))?;
                    Some(if kind == 5 {
                        i64::from(number)
                    } else {
                        number.cast_signed().into()
                    })
                };
                let (above, below) = (number(above)?, number(below)?);
                if above.checked_rem(below)? != 0 {
                    return None;
                }
                above / below
            }
            11 => whole(f32::from_bits(low(bits(4)?)?).into())?,
            12 => whole(f64::from_bits(bits(8)?))?,
            // Bytes and texts are no numbers.
            _ => return None,
        })
    }

    fn slice(&self, at: u64, length: u64) -> Option<&[u8]> {
        let start = usize::try_from(at).ok()?;
        let end = usize::try_from(at.checked_add(length)?).ok()?;
        self.bytes.get(start..end)
    }

    fn number(&self, bytes: &[u8]) -> u64 {
        let fold = |value: u64, byte: &u8| value << 8 | u64::from(*byte);
        if self.little {
            bytes.iter().rev().fold(0, fold)
        } else {
            bytes.iter().fold(0, fold)
        }
    }
}

/// Bytes of a value of type `kind`; `None` for types that Pillow passes over.
fn size(kind: u64) -> Option<u64> {
    match kind {
        1 | 2 | 6 | 7 => Some(1),
        3 | 8 => Some(2),
        4 | 9 | 11 | 13 => Some(4),
        5 | 10 | 12 | 16 => Some(8),
        _ => None,
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    /// A TIFF structure with orientation 6.
    const EXIF: &[u8] = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0";

    /// The same with a tag of another type, count and value, and what stands behind.
    fn tag(kind: u8, count: u8, value: &[u8; 4], behind: &[u8]) -> Vec<u8> {
        let mut exif = EXIF[..10].to_vec();
        exif.extend([1, 18, 0, kind, 0, 0, 0, count]);
        exif.extend(value);
        exif.extend([0; 4]);
        exif.extend(behind);
        exif
    }

    #[test]
    fn exif_comes_before_xmp() {
        let named = [EXIF_NAME, EXIF].concat();
        let twice = [EXIF_NAME, EXIF_NAME, EXIF].concat();
        let (attribute, element) = (
            b"<x tiff:Orientation=\"3\"/>",
            b"<tiff:Orientation>8</tiff:Orientation>",
        );
        let nine = tag(3, 1, b"\0\x09\0\0", b"");
        let byte = tag(1, 1, b"\x06\0\0\0", b"");
        type Bytes<'a> = Option<&'a [u8]>;
        let cases: [(Bytes<'_>, Bytes<'_>, Orientation); 13] = [
            (Some(EXIF), None, Orientation::Rotate90),
            (Some(&named), None, Orientation::Rotate90),
            (Some(&twice), None, Orientation::Rotate90),
            (Some(EXIF), Some(attribute), Orientation::Rotate90),
            (None, Some(attribute), Orientation::Rotate180),
            (
                Some(b"MM\0*\0\0\0\x08\0\0"),
                Some(element),
                Orientation::Rotate270,
            ),
            (Some(EXIF_NAME), Some(element), Orientation::Rotate270),
            // The tag is there, and no number that says anything.
            (Some(&nine), Some(element), Orientation::NoTransforms),
            (Some(&byte), Some(element), Orientation::NoTransforms),
            // No TIFF structure.
            (Some(b"hello"), Some(element), Orientation::NoTransforms),
            (
                Some(b"MM\x55\x55\0\0\0\x08\0\0"),
                Some(element),
                Orientation::NoTransforms,
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
    fn tags_of_all_types_are_read_as_in_pillow() {
        let turned = Some(Orientation::Rotate90);
        let upright = Some(Orientation::NoTransforms);
        let long = b"\0\0\0\x06";
        let far = b"\0\0\0\x1a";
        type Case<'a> = (u8, u8, &'a [u8; 4], &'a [u8], Option<Orientation>);
        let cases: [Case<'_>; 19] = [
            (1, 1, b"\x06\0\0\0", b"", upright),
            (2, 2, b"6\0\0\0", b"", upright),
            (3, 2, b"\0\x06\0\x03", b"", turned),
            (3, 3, far, b"\0\x06\0\x03\0\0", turned),
            (3, 0, b"\0\x06\0\0", b"", None),
            (4, 1, long, b"", turned),
            (5, 1, far, b"\0\0\0\x0c\0\0\0\x02", turned),
            (5, 1, far, b"\0\0\0\x0d\0\0\0\x02", upright),
            (5, 1, far, b"\0\0\0\x06\0\0\0\0", upright),
            (10, 1, far, b"\xff\xff\xff\xfa\xff\xff\xff\xff", turned),
            (6, 1, b"\x06\0\0\0", b"", turned),
            (6, 1, b"\xfa\0\0\0", b"", upright),
            (7, 1, b"\x06\0\0\0", b"", upright),
            (8, 1, b"\0\x06\0\0", b"", turned),
            (9, 1, long, b"", turned),
            (11, 1, b"\x40\xc0\0\0", b"", turned),
            (12, 1, far, b"\x40\x18\0\0\0\0\0\0", turned),
            (13, 1, long, b"", turned),
            (99, 1, long, b"", None),
        ];
        for (kind, count, value, behind, expected) in cases {
            let exif = tag(kind, count, value, behind);
            assert_eq!(from_exif(&exif), expected, "type {kind}, {count} of {value:?}");
        }
        // A tag that cannot be read ends the directory; one that claims too much is passed over.
        let before = |count: u8, at: u8| {
            let mut exif = EXIF.to_vec();
            exif[9] = 2;
            exif.splice(10..10, [1, 15, 0, 2, 0, 0, 0, count, 0, 0, 0, at]);
            exif
        };
        assert_eq!(from_exif(&before(5, 30)), turned);
        assert_eq!(from_exif(&before(5, 200)), None);
        assert_eq!(from_exif(&before(200, 30)), turned);
        for length in 9..EXIF.len() - 4 {
            let found = from_exif(&EXIF[..length]);
            assert!(found.is_none() || length >= 22, "{length}: {found:?}");
        }
    }
}
