//! How large is an image in its codec's own words? What HEVC and AV1 say of sizes and of how many pictures follow, which
//! is what a decoder takes memory and time for, whatever the file around it says.

use super::boxes::Cursor;
use crate::image::problem::Problem;

/// Of AV1's, an image may have so many, each finer than the one before.
const LAYERS: u64 = 8;

/// What decoding takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Coded {
    pub(super) width: u64,
    pub(super) height: u64,
    /// Without what is cut off at the edges: the smallest, of several.
    pub(super) shown: (u64, u64),
    /// How many there are: one, unless somebody wants a decoder to be busy.
    pub(super) pictures: u64,
}

impl Coded {
    fn size(&mut self, (width, height): (u64, u64), shown: (u64, u64)) {
        self.shown = match self.width {
            0 => shown,
            _ => (self.shown.0.min(shown.0), self.shown.1.min(shown.1)),
        };
        self.width = self.width.max(width);
        self.height = self.height.max(height);
    }

    /// What is true of one image: `most` are pictures that may follow each other.
    fn checked(self, codec: &str, most: u64) -> Result<Coded, Problem> {
        if self.width == 0 || self.height == 0 {
            return Problem::damaged(format!("its {codec} data do not say how large the image is"));
        }
        if self.pictures == 0 {
            return Problem::damaged(format!("its {codec} data have no image"));
        }
        if self.pictures > most {
            let pictures = self.pictures;
            return Problem::damaged(format!(
                "its {codec} data have {pictures} images, expected at most {most}"
            ));
        }
        Ok(self)
    }
}

/// HEVC: of `hvcC`, which has the parameter sets, and of the units behind lengths of 4 bytes.
pub(super) fn hevc(config: &[u8], data: &[u8]) -> Result<Coded, Problem> {
    let mut coded = Coded::default();
    let mut body = Cursor::new(config, *b"hvcC");
    body.take(21)?;
    let length = body.u8()? & 3;
    if length != 3 {
        return Problem::unsupported(format!("a HEIC image with lengths of {} bytes", length + 1));
    }
    for _ in 0..body.u8()? {
        body.u8()?;
        for _ in 0..body.u16()? {
            let length = body.u16()?.into();
            coded.unit(body.take(length)?)?;
        }
    }
    let mut body = Cursor::new(data, *b"hvc1");
    while !body.rest().is_empty() {
        let length = usize::try_from(body.u32()?).unwrap_or(usize::MAX);
        coded.unit(body.take(length)?)?;
    }
    coded.checked("HEVC", 1)
}

impl Coded {
    /// A unit of HEVC's (NAL unit).
    fn unit(&mut self, unit: &[u8]) -> Result<(), Problem> {
        let &[head, layer, ref payload @ ..] = unit else {
            return Problem::damaged("a unit of its HEVC data is shorter than its head");
        };
        // Of other layers: another eye, say.
        if head & 1 != 0 || layer >> 3 != 0 {
            return Ok(());
        }
        match head >> 1 & 0x3f {
            // A slice, which says whether it is the first of a picture.
            0..=31 => self.pictures += u64::from(payload.first().is_some_and(|byte| byte & 0x80 != 0)),
            33 => {
                let (whole, shown) = hevc_size(payload)?;
                self.size(whole, shown);
            }
            _ => {}
        }
        Ok(())
    }
}

/// Width and height.
type Size = (u64, u64);

/// Of a sequence parameter set: the size, and that without what is cut off at the edges.
fn hevc_size(payload: &[u8]) -> Result<(Size, Size), Problem> {
    let mut bits = Bits::new(payload, true, "HEVC parameter set");
    bits.take(4)?;
    let layers = bits.take(3)?;
    bits.take(1)?;
    if layers > 6 {
        return Problem::damaged("its HEVC parameter set has more than 7 layers");
    }
    // Profile, tier and level, in general and of each layer that has its own.
    bits.skip(88 + 8)?;
    let mut own = 0;
    for _ in 0..layers {
        own += 88 * bits.take(1)? + 8 * bits.take(1)?;
    }
    if layers > 0 {
        bits.skip(2 * (8 - layers))?;
    }
    bits.skip(own)?;
    bits.exponential()?;
    let chroma = bits.exponential()?;
    if chroma == 3 {
        bits.take(1)?;
    }
    let (width, height) = (bits.exponential()?, bits.exponential()?);
    let mut shown = (width, height);
    if bits.take(1)? == 1 {
        // In pixels of colour.
        let (across, down) = match chroma {
            1 => (2, 2),
            2 => (2, 1),
            _ => (1, 1),
        };
        let mut cut = || Ok::<u64, Problem>(bits.exponential()?.saturating_add(bits.exponential()?));
        let (columns, rows) = (cut()?, cut()?);
        shown = (
            width.saturating_sub(columns.saturating_mul(across)),
            height.saturating_sub(rows.saturating_mul(down)),
        );
    }
    Ok(((width, height), shown))
}

/// AV1: of `av1C`, which may have a sequence header, and of the units.
pub(super) fn av1(config: &[u8], data: &[u8]) -> Result<Coded, Problem> {
    let mut coded = Coded::default();
    coded.units(config.get(4..).unwrap_or_default())?;
    coded.units(data)?;
    coded.checked("AV1", LAYERS)
}

impl Coded {
    /// AV1's units (OBUs).
    fn units(&mut self, data: &[u8]) -> Result<(), Problem> {
        let mut body = Cursor::new(data, *b"av01");
        while !body.rest().is_empty() {
            let head = body.u8()?;
            if head & 4 != 0 {
                body.u8()?;
            }
            let length = if head & 2 != 0 {
                leb128(&mut body)?
            } else {
                body.rest().len()
            };
            let unit = body.take(length)?;
            match head >> 3 & 15 {
                1 => {
                    let size = av1_size(unit)?;
                    self.size(size, size);
                }
                // A frame's header, alone or with its tiles.
                3 | 6 => self.pictures += 1,
                _ => {}
            }
        }
        Ok(())
    }
}

fn leb128(body: &mut Cursor<'_>) -> Result<usize, Problem> {
    let mut length = 0_u64;
    for place in 0..8 {
        let byte = body.u8()?;
        length |= u64::from(byte & 0x7f) << (7 * place);
        if byte & 0x80 == 0 {
            return Ok(usize::try_from(length).unwrap_or(usize::MAX));
        }
    }
    Problem::damaged("a length of its AV1 data has more than 8 bytes")
}

/// Of a sequence header.
fn av1_size(unit: &[u8]) -> Result<(u64, u64), Problem> {
    let mut bits = Bits::new(unit, false, "AV1 sequence header");
    bits.take(3 + 1)?;
    // Of a still picture.
    if bits.take(1)? == 1 {
        bits.take(5)?;
    } else {
        av1_points(&mut bits)?;
    }
    let (width, height) = (bits.take(4)? + 1, bits.take(4)? + 1);
    Ok((bits.take(width)? + 1, bits.take(height)? + 1))
}

/// Times and operating points, which stand before the size.
fn av1_points(bits: &mut Bits<'_>) -> Result<(), Problem> {
    let mut delay = None;
    // Timing.
    if bits.take(1)? == 1 {
        bits.skip(32 + 32)?;
        if bits.take(1)? == 1 {
            bits.exponential()?;
        }
        // The decoder's model.
        if bits.take(1)? == 1 {
            delay = Some(bits.take(5)? + 1);
            bits.skip(32 + 5 + 5)?;
        }
    }
    let displayed = bits.take(1)? == 1;
    for _ in 0..=bits.take(5)? {
        bits.skip(12)?;
        if bits.take(5)? > 7 {
            bits.take(1)?;
        }
        if let Some(delay) = delay
            && bits.take(1)? == 1
        {
            bits.skip(2 * delay + 1)?;
        }
        if displayed && bits.take(1)? == 1 {
            bits.take(4)?;
        }
    }
    Ok(())
}

/// Bits, the highest of a byte first.
struct Bits<'a> {
    bytes: &'a [u8],
    /// In bits, of the whole.
    place: usize,
    /// Whether a 3 behind two zeros is there only to keep them from being something else.
    escaped: bool,
    /// Zeros before the byte that is read.
    zeros: usize,
    of: &'static str,
}

impl<'a> Bits<'a> {
    fn new(bytes: &'a [u8], escaped: bool, of: &'static str) -> Bits<'a> {
        Bits {
            bytes,
            place: 0,
            escaped,
            zeros: 0,
            of,
        }
    }

    fn bit(&mut self) -> Result<u64, Problem> {
        if self.place.is_multiple_of(8) && self.escaped {
            let byte = |place: usize| self.bytes.get(place / 8);
            if self.zeros >= 2 && byte(self.place) == Some(&3) {
                self.place += 8;
                self.zeros = 0;
            }
            self.zeros = match self.bytes.get(self.place / 8) {
                Some(0) => self.zeros + 1,
                _ => 0,
            };
        }
        let Some(byte) = self.bytes.get(self.place / 8) else {
            return Problem::damaged(format!("its {} ends too early", self.of));
        };
        let bit = byte >> (7 - self.place % 8) & 1;
        self.place += 1;
        Ok(bit.into())
    }

    /// A number of up to 63 bits.
    fn take(&mut self, count: u64) -> Result<u64, Problem> {
        let mut number = 0;
        for _ in 0..count {
            number = number << 1 | self.bit()?;
        }
        Ok(number)
    }

    fn skip(&mut self, count: u64) -> Result<(), Problem> {
        for _ in 0..count {
            self.bit()?;
        }
        Ok(())
    }

    /// A number behind as many zeros as it has bits after its first: `ue(v)` of HEVC, `uvlc()` of AV1.
    fn exponential(&mut self) -> Result<u64, Problem> {
        let mut zeros = 0;
        while self.bit()? == 0 {
            zeros += 1;
            if zeros > 32 {
                return Problem::damaged(format!("its {} has a number of more than 32 bits", self.of));
            }
        }
        Ok((1 << zeros) - 1 + self.take(zeros)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_that_keep_zeros_apart_are_left_out() {
        let mut bits = Bits::new(&[0, 0, 3, 1, 0, 0, 3, 0, 0, 3, 9], true, "test");
        let bytes: Vec<u64> = (0..8).map(|_| bits.take(8).unwrap()).collect();
        assert_eq!(bytes, [0, 0, 1, 0, 0, 0, 0, 9]);
        assert!(bits.take(1).is_err());
        let mut plain = Bits::new(&[0, 0, 3], false, "test");
        assert_eq!(plain.take(24).unwrap(), 3);
    }

    #[test]
    fn exponential_numbers() {
        // 1, 010, 011, 00100, and one without an end.
        let mut bits = Bits::new(&[0b1010_0110, 0b0100_0000, 0, 0, 0, 0, 0], false, "test");
        let numbers: Vec<u64> = (0..4).map(|_| bits.exponential().unwrap()).collect();
        assert_eq!(numbers, [0, 1, 2, 3]);
        let problem = bits.exponential().unwrap_err();
        assert_eq!(
            problem,
            Problem::Damaged("its test has a number of more than 32 bits".to_owned())
        );
    }
}
