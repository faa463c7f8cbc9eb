//! How does a JPEG become RGB?
//!
//! A decoder of ITU-T T.81, because the libraries are not right on all of it: of the 957 files of
//! `conformance`'s matrix, zune-jpeg 0.5.15 decodes 256 wrongly without a word, jpeg-decoder 0.3.2 123 and
//! libjpeg-turbo-rs 0.8.0 38 (it refuses 141 more). This one decodes to the bit what Pillow's libjpeg-turbo
//! does: its inverse DCT (`idct`), its upsampling and its colour conversion (`rows`).
//!
//! Decoded are Huffman-coded files with 8 bits a channel: sequential and progressive, in any order of scans,
//! one, three or four components with any sampling factors that divide the largest, restart intervals, 16-bit
//! quantisation tables, no Huffman tables (as webcams send them). Everything else is refused, and so is
//! damage: where libjpeg goes on with a warning and a gray area, this is an error.

mod bits;
mod header;
mod idct;
mod rows;
mod scan;

use super::problem::Problem;
use header::{Frame, Header, Metadata, Next};
pub(super) use rows::{ColorSpace, from_ink};

/// A file whose frame is known and of which nothing is decoded yet.
pub(super) struct Jpeg<'a> {
    header: Header<'a>,
    frame: Frame,
}

impl<'a> Jpeg<'a> {
    /// Reads `bytes` up to the first scan.
    pub(super) fn open(bytes: &'a [u8]) -> Result<Jpeg<'a>, Problem> {
        let mut header = Header::new(bytes);
        match header.next(None)? {
            Next::Frame(frame) => Ok(Jpeg { header, frame }),
            Next::Scan(_) => Problem::damaged("a scan stands before the frame header"),
            Next::End => Problem::damaged("it has no frame header"),
        }
    }

    /// Width and height in pixels, as stored (before any orientation).
    pub(super) fn size(&self) -> (u32, u32) {
        (self.frame.width, self.frame.height)
    }

    /// `[height, width, 3]`: the RGB pixels, and what stands beside them. `space` says what the components
    /// are; otherwise the file does.
    pub(super) fn decode(self, space: Option<ColorSpace>) -> Result<(Vec<u8>, Metadata<'a>), Problem> {
        let Jpeg {
            mut header,
            mut frame,
        } = self;
        let mut scan = match header.next(Some(&mut frame))? {
            Next::Scan(scan) => scan,
            Next::Frame(_) => return two_frames(),
            Next::End => return Problem::damaged("it has no scan"),
        };
        // Each block has a bit at least: a short file that asks for much gets nothing.
        let bits = header.bytes.len().saturating_sub(header.at).saturating_mul(8);
        if frame.blocks() > bits {
            return Err(Problem::Truncated);
        }
        // What stands behind the first scan says nothing any more, about colours neither.
        let metadata = std::mem::take(&mut header.metadata);
        let space = space.unwrap_or_else(|| header.color_space(&frame));
        if frame.components.len() != space.components() {
            return Problem::damaged("it has other components than its colours need");
        }
        if !frame.progressive && scan.components.len() == frame.components.len() {
            // All there is, in one scan; libjpeg looks at no further one.
            let pixels = scan::whole(&mut header, &frame, &scan, space)?;
            header.find_end()?;
            return Ok((pixels, metadata));
        }
        let mut stores = scan::stores(&frame);
        loop {
            scan::part(&mut header, &frame, &scan, &mut stores)?;
            scan = match header.next(Some(&mut frame))? {
                Next::Scan(scan) => scan,
                Next::Frame(_) => return two_frames(),
                Next::End => break,
            };
        }
        frame.check_complete()?;
        Ok((rows::rgb(&frame, &stores, space), metadata))
    }
}

fn two_frames<T>() -> Result<T, Problem> {
    Problem::damaged("it has two frame headers")
}
