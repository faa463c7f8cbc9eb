//! `frames`: a stream of frames, cut into them and decoded, as `fvlm-run --frames` does it.
//!
//! What comes of a stream does not depend on how many bytes a read gives. Frames are parts of the stream, in its order and
//! without overlap; it ends, and what is decoded has no more pixels than were allowed.

use crate::words;
use runtime::image::Limits;
use runtime::image::frames::Frames;
use std::io::Read;

/// Most pixels of a frame, so that a run takes milliseconds.
const PIXELS: u64 = 1 << 14;

/// Gives so many bytes at a time, in turn.
struct Pieces<'a>(&'a [u8], &'a [u8], usize);

impl Read for Pieces<'_> {
    fn read(&mut self, to: &mut [u8]) -> std::io::Result<usize> {
        let wanted = self.1.get(self.2 % self.1.len().max(1)).copied().unwrap_or(1);
        self.2 += 1;
        let count = (usize::from(wanted) + 1).min(to.len());
        self.0.read(&mut to[..count])
    }
}

/// A stream as it is; its last bytes say how it is read too.
///
/// # Panics
/// Something that must hold does not.
pub fn run(stream: &[u8]) {
    let limits = Limits { max_pixels: PIXELS };
    let pieces = stream.last_chunk::<4>().map_or(&[][..], |pieces| &pieces[..]);
    let mut whole = Frames::new(stream, "x", limits);
    let mut parts = Frames::new(Pieces(stream, pieces, 0), "x", limits);
    let (mut at, mut count) = (0, 0);
    while let Some(frame) = whole.next() {
        count += 1;
        assert!(count <= stream.len() + 1, "more frames than bytes");
        match (frame, parts.next()) {
            (Ok(frame), Some(Ok(other))) => {
                assert_eq!(frame.number(), whole.number());
                assert_eq!(
                    (frame.bytes(), frame.number(), frame.skipped()),
                    (other.bytes(), other.number(), other.skipped())
                );
                let bytes = frame.bytes();
                let found = stream[at..]
                    .windows(bytes.len().max(1))
                    .position(|part| part == bytes);
                at += found.expect("a frame that is no part of the stream behind the last one") + bytes.len();
                match frame.decode(&limits) {
                    Ok(picture) => {
                        let pixels = u64::from(picture.width()) * u64::from(picture.height());
                        assert!(pixels > 0 && pixels <= PIXELS, "{picture:?}");
                    }
                    Err(error) => words::check(&error.to_string(), stream),
                }
            }
            (Err(error), Some(Err(other))) => {
                assert_eq!(error.to_string(), other.to_string());
                words::check(&error.to_string(), stream);
            }
            (frame, other) => panic!("{frame:?} of the whole stream, {other:?} of its pieces"),
        }
    }
    assert!(parts.next().is_none(), "more frames of pieces");
    assert_eq!(whole.skipped(), parts.skipped());
    assert!(whole.skipped() <= stream.len() as u64);
}
