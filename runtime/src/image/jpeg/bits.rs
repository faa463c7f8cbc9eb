//! JPEG's entropy-coded segments: bits, and Huffman codes.

use super::super::problem::Problem;
use super::header::ZIGZAG;

/// Bits of a code that are looked up at once.
const LOOK: u32 = 10;

/// Counts and values of a Huffman table.
type Definition = ([u8; 16], &'static [u8]);

/// Annex K's tables for DC and AC, of luminance and of chrominance.
pub(super) const STANDARD: [[Definition; 2]; 2] = [
    [
        ([0, 1, 5, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0], DC_VALUES),
        ([0, 2, 1, 3, 3, 2, 4, 3, 5, 5, 4, 4, 0, 0, 1, 0x7d], AC_LUMINANCE),
    ],
    [
        ([0, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0], DC_VALUES),
        (
            [0, 2, 1, 2, 4, 4, 3, 4, 7, 5, 4, 4, 0, 1, 2, 0x77],
            AC_CHROMINANCE,
        ),
    ],
];

const DC_VALUES: &[u8] = &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11];

#[rustfmt::skip]
const AC_LUMINANCE: &[u8] = &[
    0x01, 0x02, 0x03, 0x00, 0x04, 0x11, 0x05, 0x12, 0x21, 0x31, 0x41, 0x06, 0x13, 0x51, 0x61, 0x07,
    0x22, 0x71, 0x14, 0x32, 0x81, 0x91, 0xa1, 0x08, 0x23, 0x42, 0xb1, 0xc1, 0x15, 0x52, 0xd1, 0xf0,
    0x24, 0x33, 0x62, 0x72, 0x82, 0x09, 0x0a, 0x16, 0x17, 0x18, 0x19, 0x1a, 0x25, 0x26, 0x27, 0x28,
    0x29, 0x2a, 0x34, 0x35, 0x36, 0x37, 0x38, 0x39, 0x3a, 0x43, 0x44, 0x45, 0x46, 0x47, 0x48, 0x49,
    0x4a, 0x53, 0x54, 0x55, 0x56, 0x57, 0x58, 0x59, 0x5a, 0x63, 0x64, 0x65, 0x66, 0x67, 0x68, 0x69,
    0x6a, 0x73, 0x74, 0x75, 0x76, 0x77, 0x78, 0x79, 0x7a, 0x83, 0x84, 0x85, 0x86, 0x87, 0x88, 0x89,
    0x8a, 0x92, 0x93, 0x94, 0x95, 0x96, 0x97, 0x98, 0x99, 0x9a, 0xa2, 0xa3, 0xa4, 0xa5, 0xa6, 0xa7,
    0xa8, 0xa9, 0xaa, 0xb2, 0xb3, 0xb4, 0xb5, 0xb6, 0xb7, 0xb8, 0xb9, 0xba, 0xc2, 0xc3, 0xc4, 0xc5,
    0xc6, 0xc7, 0xc8, 0xc9, 0xca, 0xd2, 0xd3, 0xd4, 0xd5, 0xd6, 0xd7, 0xd8, 0xd9, 0xda, 0xe1, 0xe2,
    0xe3, 0xe4, 0xe5, 0xe6, 0xe7, 0xe8, 0xe9, 0xea, 0xf1, 0xf2, 0xf3, 0xf4, 0xf5, 0xf6, 0xf7, 0xf8,
    0xf9, 0xfa,
];

#[rustfmt::skip]
const AC_CHROMINANCE: &[u8] = &[
    0x00, 0x01, 0x02, 0x03, 0x11, 0x04, 0x05, 0x21, 0x31, 0x06, 0x12, 0x41, 0x51, 0x07, 0x61, 0x71,
    0x13, 0x22, 0x32, 0x81, 0x08, 0x14, 0x42, 0x91, 0xa1, 0xb1, 0xc1, 0x09, 0x23, 0x33, 0x52, 0xf0,
    0x15, 0x62, 0x72, 0xd1, 0x0a, 0x16, 0x24, 0x34, 0xe1, 0x25, 0xf1, 0x17, 0x18, 0x19, 0x1a, 0x26,
    0x27, 0x28, 0x29, 0x2a, 0x35, 0x36, 0x37, 0x38, 0x39, 0x3a, 0x43, 0x44, 0x45, 0x46, 0x47, 0x48,
    0x49, 0x4a, 0x53, 0x54, 0x55, 0x56, 0x57, 0x58, 0x59, 0x5a, 0x63, 0x64, 0x65, 0x66, 0x67, 0x68,
    0x69, 0x6a, 0x73, 0x74, 0x75, 0x76, 0x77, 0x78, 0x79, 0x7a, 0x82, 0x83, 0x84, 0x85, 0x86, 0x87,
    0x88, 0x89, 0x8a, 0x92, 0x93, 0x94, 0x95, 0x96, 0x97, 0x98, 0x99, 0x9a, 0xa2, 0xa3, 0xa4, 0xa5,
    0xa6, 0xa7, 0xa8, 0xa9, 0xaa, 0xb2, 0xb3, 0xb4, 0xb5, 0xb6, 0xb7, 0xb8, 0xb9, 0xba, 0xc2, 0xc3,
    0xc4, 0xc5, 0xc6, 0xc7, 0xc8, 0xc9, 0xca, 0xd2, 0xd3, 0xd4, 0xd5, 0xd6, 0xd7, 0xd8, 0xd9, 0xda,
    0xe2, 0xe3, 0xe4, 0xe5, 0xe6, 0xe7, 0xe8, 0xe9, 0xea, 0xf2, 0xf3, 0xf4, 0xf5, 0xf6, 0xf7, 0xf8,
    0xf9, 0xfa,
];

/// A Huffman table, ready to decode.
#[derive(Debug)]
pub(super) struct Huffman {
    /// For the next [`LOOK`] bits: length and value of the code that they start with; length 0 where it is
    /// longer.
    codes: Box<[(u8, u8); 1 << LOOK]>,
    /// For AC, the same with the coefficient behind the code: bits in all, zeros before it, the coefficient.
    /// 0 bits where they are more than [`LOOK`], or where no coefficient follows.
    coefficients: Box<[(u8, u8, i16); 1 << LOOK]>,
    /// For each length: the first 16 bits that no code of that length starts with.
    limits: [u32; 17],
    /// For each length: what to add to a code for its place in `values`.
    offsets: [i32; 17],
    values: Vec<u8>,
}

impl Huffman {
    /// The table with `counts[n]` codes of n + 1 bits for `values` (T.81, annex C).
    pub(super) fn new(counts: &[u8; 16], values: &[u8], dc: bool) -> Result<Huffman, Problem> {
        if values.len() > 256 || (dc && values.iter().any(|&value| value > 15)) {
            return Problem::damaged("a Huffman table is wrong");
        }
        let mut table = Huffman {
            codes: Box::new([(0, 0); 1 << LOOK]),
            coefficients: Box::new([(0, 0, 0); 1 << LOOK]),
            limits: [0; 17],
            offsets: [0; 17],
            values: values.to_vec(),
        };
        let (mut code, mut place) = (0_u32, 0_usize);
        for (length, &count) in (1_u32..).zip(counts) {
            table.offsets[length as usize] = place as i32 - code as i32;
            for _ in 0..count {
                if code >> length != 0 {
                    return Problem::damaged("a Huffman table has more codes than there are");
                }
                if length <= LOOK {
                    let first = (code << (LOOK - length)) as usize;
                    let entries = &mut table.codes[first..first + (1 << (LOOK - length))];
                    entries.fill((length as u8, values[place]));
                }
                code += 1;
                place += 1;
            }
            table.limits[length as usize] = code << (16 - length);
            code <<= 1;
        }
        if !dc {
            table.look_at_coefficients();
        }
        Ok(table)
    }

    /// Length and value of the code of more than [`LOOK`] bits that `bits`, the next 16, start with.
    #[cold]
    fn long_code(&self, bits: u32) -> Option<(u8, u8)> {
        let length = (LOOK + 1..=16).find(|&length| bits < self.limits[length as usize])?;
        let place = (bits >> (16 - length)) as i32 + self.offsets[length as usize];
        let value = self.values.get(usize::try_from(place).ok()?)?;
        Some((length as u8, *value))
    }

    fn look_at_coefficients(&mut self) {
        for (look, (&(length, value), entry)) in
            self.codes.iter().zip(self.coefficients.iter_mut()).enumerate()
        {
            let (zeros, size) = (value >> 4, value & 15);
            let bits = u32::from(length) + u32::from(size);
            if length > 0 && size > 0 && bits <= LOOK {
                let magnitude = (look as u32) >> (LOOK - bits) & ((1 << size) - 1);
                *entry = (bits as u8, zeros, extend(magnitude, size) as i16);
            }
        }
    }
}

/// A coefficient from its category and its bits (T.81, F.2.2.1).
fn extend(bits: u32, size: u8) -> i32 {
    let value = bits as i32;
    if size > 0 && value >> (size - 1) == 0 {
        value - (1 << size) + 1
    } else {
        value
    }
}

/// What is wrong in the bits of a scan. Small, because each symbol may have it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// A code that is none of its table.
    Code,
    /// More coefficients than a block or a band has.
    Beyond,
    /// A refinement of several bits at once.
    Several,
}

impl Fault {
    pub(super) fn problem(self) -> Problem {
        let what = match self {
            Fault::Code => "a Huffman code is none of its table",
            Fault::Beyond => "a block has more coefficients than there are",
            Fault::Several => "a scan that adds bits brings a coefficient of several",
        };
        Problem::Damaged(what.to_owned())
    }
}

/// The bits of a scan, up to the next marker. Behind them are zeros, which [`Bits::check`] tells from bits.
///
/// A copy is worked with in inner loops, and nothing there takes its address: so it stays in registers.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bits<'a> {
    bytes: &'a [u8],
    pub(super) at: usize,
    /// The next bits, from the highest on.
    buffer: u64,
    count: u32,
    /// How many of the last ones are made up.
    missing: u32,
}

impl<'a> Bits<'a> {
    /// The bits of `bytes` from `at` on.
    pub(super) fn new(bytes: &'a [u8], at: usize) -> Bits<'a> {
        Bits {
            bytes,
            at,
            buffer: 0,
            count: 0,
            missing: 0,
        }
    }

    /// Makes 32 bits or more ready: enough for a code and what follows it.
    #[inline(always)]
    pub(super) fn refill(&mut self) {
        if self.count < 32 {
            self.fill();
        }
    }

    #[inline(always)]
    fn fill(&mut self) {
        if let Some(Ok(next)) = self.bytes.get(self.at..self.at + 8).map(<[u8; 8]>::try_from) {
            let next = u64::from_be_bytes(next);
            let ones = (!next).wrapping_sub(0x0101_0101_0101_0101) & next & 0x8080_8080_8080_8080;
            if ones == 0 {
                let taken = ((64 - self.count) / 8).min(7);
                self.buffer |= (next & !(u64::MAX >> (8 * taken))) >> self.count;
                self.count += 8 * taken;
                self.at += taken as usize;
                return;
            }
        }
        *self = self.filled_slowly();
    }

    #[cold]
    #[inline(never)]
    fn filled_slowly(mut self) -> Bits<'a> {
        while self.count <= 56 {
            let byte = self.byte();
            if byte.is_none() {
                self.missing += 8;
            }
            self.buffer |= u64::from(byte.unwrap_or(0)) << (56 - self.count);
            self.count += 8;
        }
        self
    }

    /// The next byte of data, if no marker and no end comes before it.
    fn byte(&mut self) -> Option<u8> {
        // Found once: what stands there may be long.
        if self.missing > 0 {
            return None;
        }
        let rest = &self.bytes[self.at.min(self.bytes.len())..];
        let byte = *rest.first()?;
        self.at += 1;
        if byte == 0xff {
            // A zero behind it says that 0xff is data.
            let fill = rest.iter().position(|&byte| byte != 0xff).unwrap_or(rest.len());
            if rest.get(fill) != Some(&0) {
                self.at -= 1;
                return None;
            }
            self.at += fill;
        }
        Some(byte)
    }

    #[inline(always)]
    fn peek(&self, count: u32) -> u32 {
        (self.buffer >> (64 - count)) as u32
    }

    #[inline(always)]
    fn skip(&mut self, count: u32) {
        self.buffer <<= count;
        self.count -= count;
    }

    /// The next `count` bits, at most 16; there must be as many ready.
    #[inline(always)]
    pub(super) fn take(&mut self, count: u8) -> u32 {
        if count == 0 {
            return 0;
        }
        let bits = self.peek(count.into());
        self.skip(count.into());
        bits
    }

    /// One bit.
    #[inline(always)]
    pub(super) fn bit(&mut self) -> bool {
        self.refill();
        self.take(1) == 1
    }

    /// The value of the next code.
    #[inline(always)]
    pub(super) fn symbol(&mut self, table: &Huffman) -> Result<u8, Fault> {
        self.refill();
        let (mut length, mut value) = table.codes[self.peek(LOOK) as usize];
        if length == 0 {
            (length, value) = table.long_code(self.peek(16)).ok_or(Fault::Code)?;
        }
        self.skip(length.into());
        Ok(value)
    }

    /// A coefficient of `size` bits; they must be ready.
    #[inline(always)]
    pub(super) fn coefficient(&mut self, size: u8) -> i32 {
        extend(self.take(size), size)
    }

    /// The next AC coefficient, if it and its code are short: zeros before it, and its value.
    #[inline(always)]
    pub(super) fn short_coefficient(&mut self, table: &Huffman) -> Option<(usize, i16)> {
        self.refill();
        let (bits, zeros, value) = table.coefficients[self.peek(LOOK) as usize];
        if bits == 0 {
            return None;
        }
        self.skip(bits.into());
        Some((zeros.into(), value))
    }

    /// Refuses what was read behind the last bit.
    pub(super) fn check(&self) -> Result<(), Problem> {
        if self.missing <= self.count {
            return Ok(());
        }
        // A marker too early, or no bytes any more?
        if self.at >= self.bytes.len() {
            return Err(Problem::Truncated);
        }
        Problem::damaged("a scan ends too early")
    }

    /// Goes on behind the restart marker that must come next; `number` counts them.
    pub(super) fn restart(&mut self, number: usize) -> Result<(), Problem> {
        self.check()?;
        let marker = next_marker(self.bytes, &mut self.at)?;
        if usize::from(marker) != 0xd0 + number % 8 {
            return Problem::damaged(format!(
                "marker {marker:02x} stands in a scan, expected {:02x}",
                0xd0 + number % 8
            ));
        }
        *self = Bits::new(self.bytes, self.at);
        Ok(())
    }
}

/// The next marker from `at` on, which then stands behind it. Other bytes and stuffed zeros are skipped, as
/// libjpeg does.
pub(super) fn next_marker(bytes: &[u8], at: &mut usize) -> Result<u8, Problem> {
    loop {
        let rest = bytes.get(*at..).unwrap_or_default();
        let start = rest
            .iter()
            .position(|&byte| byte == 0xff)
            .ok_or(Problem::Truncated)?;
        let fill = rest[start..]
            .iter()
            .position(|&byte| byte != 0xff)
            .ok_or(Problem::Truncated)?;
        let marker = rest[start + fill];
        *at += start + fill + 1;
        if marker != 0 {
            return Ok(marker);
        }
    }
}

/// Natural position of place `k` in the zigzag.
#[inline(always)]
pub(super) fn natural(k: usize) -> usize {
    ZIGZAG[k & 63].into()
}
