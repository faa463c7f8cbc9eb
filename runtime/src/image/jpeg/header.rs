//! JPEG's markers: frame and scan headers, tables, and what Adobe's and JFIF's segments say about colours.

use super::super::orientation::EXIF_NAME;
use super::super::problem::Problem;
use super::bits::{Huffman, next_marker};
use super::rows::ColorSpace;

/// Natural position of the coefficient at each place of the zigzag (T.81, figure A.6).
pub(super) const ZIGZAG: [u8; 64] = [
    0, 1, 8, 16, 9, 2, 3, 10, 17, 24, 32, 25, 18, 11, 4, 5, 12, 19, 26, 33, 40, 48, 41, 34, 27, 20, 13, 6, 7,
    14, 21, 28, 35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23, 30, 37, 44, 51, 58, 59, 52, 45, 38, 31, 39,
    46, 53, 60, 61, 54, 47, 55, 62, 63,
];

/// Most work that scans may ask for, in visits of coefficients: real files of 100 megapixels need a third of
/// it, and a few bytes of a made-up one could ask for any number.
const MAX_WORK: u64 = 1 << 31;

/// What a block costs before its coefficients are looked at: it comes from memory.
const BLOCK_WORK: usize = 15;

/// Bytes of a JFIF segment; a shorter one is none.
const JFIF: usize = 14;

/// A coefficient of which no scan has told anything.
const UNKNOWN: u8 = u8::MAX;

/// The frame header (SOF), and which bits of which coefficients scans have brought.
#[derive(Debug)]
pub(super) struct Frame {
    pub(super) progressive: bool,
    pub(super) width: u32,
    pub(super) height: u32,
    /// MCUs from left to right and from top to bottom, where all components are in one scan.
    pub(super) mcus: (usize, usize),
    /// The largest sampling factors.
    pub(super) most: (usize, usize),
    pub(super) components: Vec<Component>,
    work: u64,
}

/// A component of the frame.
#[derive(Debug)]
pub(super) struct Component {
    id: u8,
    /// Sampling factors.
    pub(super) horizontal: usize,
    pub(super) vertical: usize,
    table: usize,
    /// The quantisation table as it was at the component's first scan, in natural order.
    pub(super) quantisation: Option<[u16; 64]>,
    /// Samples that are part of the image.
    pub(super) width: usize,
    pub(super) height: usize,
    /// Blocks, padded to whole MCUs.
    pub(super) across: usize,
    pub(super) down: usize,
    /// For each coefficient in the zigzag: the lowest bit that is known, or [`UNKNOWN`].
    known: [u8; 64],
}

/// A scan header (SOS), and the tables of each of its components.
#[derive(Debug)]
pub(super) struct Scan {
    /// Place of each component in the frame, and its tables.
    pub(super) components: Vec<(usize, usize, usize)>,
    /// First and last coefficient in the zigzag.
    pub(super) first: usize,
    pub(super) last: usize,
    /// Whether bits are added to what earlier scans brought.
    pub(super) refines: bool,
    /// The lowest bit that this scan brings.
    pub(super) low: u8,
}

/// What comes next in the file.
pub(super) enum Next {
    Frame(Frame),
    Scan(Scan),
    End,
}

/// What stands in a file beside its pixels: the contents of all EXIF segments, one behind the other, and of the last XMP
/// packet.
#[derive(Debug, Clone, Default)]
pub(in super::super) struct Metadata<'a> {
    /// With its name in front.
    pub(in super::super) exif: Option<Vec<u8>>,
    pub(in super::super) xmp: Option<&'a [u8]>,
}

impl<'a> Metadata<'a> {
    fn read(&mut self, segment: &'a [u8]) {
        if let Some(more) = segment.strip_prefix(EXIF_NAME) {
            match &mut self.exif {
                Some(exif) => exif.extend_from_slice(more),
                None => self.exif = Some(segment.to_vec()),
            }
        } else if let Some(xmp) = segment.strip_prefix(b"http://ns.adobe.com/xap/1.0/\0") {
            self.xmp = Some(xmp);
        }
    }
}

/// A file's markers, read one after another.
pub(super) struct Header<'a> {
    pub(super) bytes: &'a [u8],
    pub(super) at: usize,
    pub(super) dc: [Option<Huffman>; 4],
    pub(super) ac: [Option<Huffman>; 4],
    pub(super) restart: usize,
    pub(super) metadata: Metadata<'a>,
    quantisation: [Option<[u16; 64]>; 4],
    jfif: bool,
    adobe: Option<u8>,
}

impl<'a> Header<'a> {
    /// `bytes` start with SOI.
    pub(super) fn new(bytes: &'a [u8]) -> Header<'a> {
        Header {
            bytes,
            at: 2,
            dc: [const { None }; 4],
            ac: [const { None }; 4],
            restart: 0,
            metadata: Metadata::default(),
            quantisation: [None; 4],
            jfif: false,
            adobe: None,
        }
    }

    /// Reads segments up to the next frame header, scan header or end.
    pub(super) fn next(&mut self, mut frame: Option<&mut Frame>) -> Result<Next, Problem> {
        loop {
            let marker = self.marker()?;
            if marker == 0xd9 {
                return Ok(Next::End);
            }
            let segment = self.segment()?;
            match marker {
                0xc4 => self.huffman_tables(segment)?,
                0xdb => self.quantisation_tables(segment)?,
                0xdd => self.restart = usize::from(Reader(segment).word()?),
                0xda => {
                    let Some(frame) = frame.as_deref_mut() else {
                        return Problem::damaged("a scan stands before the frame header");
                    };
                    let scan = frame.scan(segment, &self.quantisation)?;
                    self.default_tables(frame)?;
                    return Ok(Next::Scan(scan));
                }
                0xc0..=0xc2 => return Frame::parse(marker, segment).map(Next::Frame),
                0xc3 | 0xc5..=0xc7 | 0xc9..=0xcb | 0xcd..=0xcf => return Err(unsupported(marker)),
                0xd8 => return Problem::damaged("a second image starts inside the first"),
                0xe0 => self.jfif |= segment.len() >= JFIF && segment.starts_with(b"JFIF\0"),
                0xe1 => self.metadata.read(segment),
                0xee if segment.starts_with(b"Adobe") => self.adobe = segment.get(11).copied().or(self.adobe),
                // Application data, comments, and what the standard reserves.
                _ => {}
            }
        }
    }

    /// The next marker that has a segment, or EOI.
    fn marker(&mut self) -> Result<u8, Problem> {
        loop {
            let marker = next_marker(self.bytes, &mut self.at)?;
            // These have no segment: TEM, and restart markers at the end of a scan.
            if !matches!(marker, 0x01 | 0xd0..=0xd7) {
                return Ok(marker);
            }
        }
    }

    /// The contents of the segment that starts here.
    fn segment(&mut self) -> Result<&'a [u8], Problem> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let length = usize::from(Reader(rest).word().map_err(|_| Problem::Truncated)?);
        if length < 2 {
            return Problem::damaged(format!("a segment is {length} bytes long, expected at least 2"));
        }
        let segment = rest.get(2..length).ok_or(Problem::Truncated)?;
        self.at += length;
        Ok(segment)
    }

    /// Asks for the end of the image, as Pillow does, without looking at what stands before it.
    pub(super) fn find_end(&self) -> Result<(), Problem> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        if rest.windows(2).any(|pair| pair == [0xff, 0xd9]) {
            Ok(())
        } else {
            Err(Problem::Truncated)
        }
    }

    fn quantisation_tables(&mut self, segment: &[u8]) -> Result<(), Problem> {
        let mut reader = Reader(segment);
        while !reader.0.is_empty() {
            let head = reader.byte()?;
            let (wide, number) = (head >> 4, usize::from(head & 15));
            if wide > 1 || number > 3 {
                return Problem::damaged(format!("a quantisation table is numbered {head:#04x}"));
            }
            let mut table = [0; 64];
            for place in ZIGZAG {
                table[usize::from(place)] = if wide == 1 {
                    reader.word()?
                } else {
                    reader.byte()?.into()
                };
            }
            self.quantisation[number] = Some(table);
        }
        Ok(())
    }

    fn huffman_tables(&mut self, segment: &[u8]) -> Result<(), Problem> {
        let mut reader = Reader(segment);
        while !reader.0.is_empty() {
            let head = reader.byte()?;
            let number = usize::from(head & 15);
            if head >> 4 > 1 || number > 3 {
                return Problem::damaged(format!("a Huffman table is numbered {head:#04x}"));
            }
            let counts: [u8; 16] = reader.take(16)?.try_into().unwrap_or_default();
            let values = reader.take(counts.iter().map(|&count| usize::from(count)).sum())?;
            let table = Some(Huffman::new(&counts, values, head >> 4 == 0)?);
            if head >> 4 == 0 {
                self.dc[number] = table;
            } else {
                self.ac[number] = table;
            }
        }
        Ok(())
    }

    /// Where a sequential file brings no tables 0 and 1, they are those of the standard's annex K.
    fn default_tables(&mut self, frame: &Frame) -> Result<(), Problem> {
        if frame.progressive {
            return Ok(());
        }
        for (number, [(dc_counts, dc), (ac_counts, ac)]) in super::bits::STANDARD.iter().enumerate() {
            if self.dc[number].is_none() {
                self.dc[number] = Some(Huffman::new(dc_counts, dc, true)?);
            }
            if self.ac[number].is_none() {
                self.ac[number] = Some(Huffman::new(ac_counts, ac, false)?);
            }
        }
        Ok(())
    }

    /// What the components mean, by the rules of libjpeg: JFIF first, then Adobe, then their names.
    pub(super) fn color_space(&self, frame: &Frame) -> ColorSpace {
        let ids: Vec<u8> = frame.components.iter().map(|component| component.id).collect();
        match (frame.components.len(), self.adobe) {
            (1, _) => ColorSpace::Gray,
            (3, _) if self.jfif => ColorSpace::Ycc,
            (3, Some(0)) => ColorSpace::Rgb,
            (3, None) if ids == *b"RGB" => ColorSpace::Rgb,
            (3, _) => ColorSpace::Ycc,
            (_, None | Some(0)) => ColorSpace::Cmyk,
            (_, Some(_)) => ColorSpace::Ycck,
        }
    }
}

fn unsupported(marker: u8) -> Problem {
    let kind = match marker {
        0xc3 | 0xc7 | 0xcb | 0xcf => "a lossless JPEG",
        0xc5 | 0xc6 => "a hierarchical JPEG",
        _ => "a JPEG with arithmetic coding",
    };
    Problem::Unsupported(kind.to_owned())
}

impl Frame {
    fn parse(marker: u8, segment: &[u8]) -> Result<Frame, Problem> {
        let mut reader = Reader(segment);
        let bits = reader.byte()?;
        if bits != 8 {
            return Err(Problem::Unsupported(format!("a JPEG with {bits} bits a channel")));
        }
        let (height, width) = (u32::from(reader.word()?), u32::from(reader.word()?));
        let count = reader.byte()?;
        if !matches!(count, 1 | 3 | 4) {
            return Err(Problem::Unsupported(format!("a JPEG with {count} components")));
        }
        let mut components = Vec::new();
        for _ in 0..count {
            components.push(Component::parse(&mut reader)?);
        }
        let most = |factor: fn(&Component) -> usize| components.iter().map(factor).max().unwrap_or(1);
        let most = (
            most(|component| component.horizontal),
            most(|component| component.vertical),
        );
        let edge = |edge: u32| usize::try_from(edge).unwrap_or(usize::MAX);
        let mcus = (
            edge(width).div_ceil(8 * most.0),
            edge(height).div_ceil(8 * most.1),
        );
        for component in &mut components {
            let (horizontal, vertical) = (component.horizontal, component.vertical);
            if most.0 % horizontal != 0 || most.1 % vertical != 0 {
                let kind = format!(
                    "a JPEG with sampling factors {horizontal} x {vertical} beside the largest, {} x {}",
                    most.0, most.1
                );
                return Err(Problem::Unsupported(kind));
            }
            component.width = (edge(width) * horizontal).div_ceil(most.0);
            component.height = (edge(height) * vertical).div_ceil(most.1);
            component.across = mcus.0 * horizontal;
            component.down = mcus.1 * vertical;
        }
        Ok(Frame {
            progressive: marker == 0xc2,
            width,
            height,
            mcus,
            most,
            components,
            work: 0,
        })
    }

    /// Reads a scan header and notes what the scan will bring.
    fn scan(&mut self, segment: &[u8], tables: &[Option<[u16; 64]>; 4]) -> Result<Scan, Problem> {
        let mut reader = Reader(segment);
        let count = reader.byte()?;
        let mut components = Vec::new();
        for _ in 0..count {
            let (id, numbers) = (reader.byte()?, reader.byte()?);
            let unused = |place: &usize| components.iter().all(|&(other, _, _)| other != *place);
            let place = (0..self.components.len())
                .filter(unused)
                .find(|&place| self.components[place].id == id);
            let Some(place) = place else {
                return Problem::damaged(format!("a scan has a component {id} that the frame has not"));
            };
            let (dc, ac) = (usize::from(numbers >> 4), usize::from(numbers & 15));
            if dc > 3 || ac > 3 {
                return Problem::damaged(format!(
                    "a scan has Huffman tables {dc} and {ac}, expected 0 to 3"
                ));
            }
            components.push((place, dc, ac));
        }
        let (first, last, bits) = (reader.byte()?, reader.byte()?, reader.byte()?);
        let (high, low) = (bits >> 4, bits & 15);
        if components.is_empty() {
            return Problem::damaged("a scan has no components");
        }
        let blocks = |&(place, _, _): &(usize, usize, usize)| {
            self.components[place].horizontal * self.components[place].vertical
        };
        if components.len() > 1 && components.iter().map(blocks).sum::<usize>() > 10 {
            return Problem::damaged("a scan has more than 10 blocks in a unit");
        }
        let scan = Scan {
            components,
            first: if self.progressive { first.into() } else { 0 },
            last: if self.progressive { last.into() } else { 63 },
            refines: self.progressive && high > 0,
            low: if self.progressive { low } else { 0 },
        };
        let dc_only = scan.first == 0 && scan.last == 0;
        let band = scan.first > 0 && scan.first <= scan.last && scan.last < 64 && scan.components.len() == 1;
        let bits = low < 14 && (high == 0 || high == low + 1);
        if self.progressive && !((dc_only || band) && bits) {
            return Problem::damaged(format!(
                "a scan of {} components has coefficients {first} to {last} and bits {high} to {low}",
                scan.components.len()
            ));
        }
        for &(place, _, _) in &scan.components {
            self.components[place].note(&scan, high, tables)?;
            let component = &self.components[place];
            let coefficients = if scan.refines {
                scan.last - scan.first + 1
            } else {
                1
            };
            let work = component.across * component.down * (BLOCK_WORK + coefficients);
            self.work += u64::try_from(work).unwrap_or(u64::MAX);
        }
        if self.work > MAX_WORK {
            return Problem::damaged("it has more scans than an image of its size needs");
        }
        Ok(scan)
    }

    /// Blocks of all components that are part of the image.
    pub(super) fn blocks(&self) -> usize {
        let blocks = |component: &Component| component.blocks().0 * component.blocks().1;
        self.components.iter().map(blocks).sum()
    }

    /// Refuses an image of which something is missing that libjpeg would make up.
    pub(super) fn check_complete(&self) -> Result<(), Problem> {
        for component in &self.components {
            let known = &component.known;
            if known[0] == UNKNOWN {
                return Problem::damaged("it ends before all its components have come");
            }
            // Where the coarse coefficients are not exact, libjpeg smooths what it has.
            if known[..10].iter().any(|&low| low != 0) {
                let kind = "a progressive JPEG whose scans leave out a part of the coarse coefficients";
                return Err(Problem::Unsupported(kind.to_owned()));
            }
        }
        Ok(())
    }
}

impl Component {
    fn parse(reader: &mut Reader<'_>) -> Result<Component, Problem> {
        let (id, factors, table) = (reader.byte()?, reader.byte()?, reader.byte()?);
        let (horizontal, vertical) = (usize::from(factors >> 4), usize::from(factors & 15));
        if !(1..=4).contains(&horizontal) || !(1..=4).contains(&vertical) || table > 3 {
            return Problem::damaged(format!(
                "component {id} has sampling factors {horizontal} x {vertical} and quantisation table {table}"
            ));
        }
        Ok(Component {
            id,
            horizontal,
            vertical,
            table: table.into(),
            quantisation: None,
            width: 0,
            height: 0,
            across: 0,
            down: 0,
            known: [UNKNOWN; 64],
        })
    }

    /// Notes what `scan` brings: each bit once, the upper before the lower.
    fn note(&mut self, scan: &Scan, high: u8, tables: &[Option<[u16; 64]>; 4]) -> Result<(), Problem> {
        if self.quantisation.is_none() {
            self.quantisation = tables[self.table];
        }
        if self.quantisation.is_none() {
            return Problem::damaged(format!("quantisation table {} is missing", self.table));
        }
        if scan.first > 0 && self.known[0] == UNKNOWN {
            return Problem::damaged("a scan brings fine coefficients before the mean values");
        }
        let before = if scan.refines { high } else { UNKNOWN };
        for known in &mut self.known[scan.first..=scan.last] {
            if *known != before {
                return Problem::damaged("two scans bring the same bits, or a scan leaves some out");
            }
            *known = scan.low;
        }
        Ok(())
    }

    /// Blocks of this component's image, where it is alone in a scan: across and down.
    pub(super) fn blocks(&self) -> (usize, usize) {
        (self.width.div_ceil(8), self.height.div_ceil(8))
    }
}

/// Takes numbers off the front of a segment.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], Problem> {
        let Some((taken, rest)) = self.0.split_at_checked(count) else {
            return Problem::damaged("a segment ends too early");
        };
        self.0 = rest;
        Ok(taken)
    }

    fn byte(&mut self) -> Result<u8, Problem> {
        Ok(self.take(1)?[0])
    }

    fn word(&mut self) -> Result<u16, Problem> {
        let bytes = self.take(2)?;
        Ok(u16::from_be_bytes([bytes[0], bytes[1]]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_are_joined_and_the_last_packet_counts() {
        let mut metadata = Metadata::default();
        metadata.read(b"Exif\0\0ab");
        metadata.read(b"Exif\0\xffno");
        metadata.read(b"Exif\0\0cd");
        metadata.read(b"http://ns.adobe.com/xap/1.0/\0first");
        metadata.read(b"http://ns.adobe.com/xap/1.0/\0last");
        assert_eq!(metadata.exif.unwrap(), b"Exif\0\0abcd");
        assert_eq!(metadata.xmp.unwrap(), b"last");
    }

    #[test]
    fn a_short_jfif_segment_is_none() {
        let jfif = b"JFIF\0\x01\x01\0\0\x01\0\x01\0\0";
        for (length, expected) in [(13, false), (14, true)] {
            let mut jpeg = b"\xff\xd8\xff\xe0\0".to_vec();
            jpeg.push(u8::try_from(length + 2).unwrap());
            jpeg.extend(&jfif[..length]);
            jpeg.extend(b"\xff\xd9");
            let mut header = Header::new(&jpeg);
            assert!(matches!(header.next(None), Ok(Next::End)));
            assert_eq!(header.jfif, expected, "{length} bytes");
        }
    }
}
