//! Where does each frame of a stream begin and end? JPEGs, PNGs, Motion-JPEG and y4m, one picture behind the other.
//!
//! What cameras and `ffmpeg -f image2pipe` write has no index: the end of a JPEG follows from its segments, that of a PNG
//! from its chunks, that of a y4m frame from the header. [`Frames`] gives each frame as soon as its last byte is there and
//! keeps one at a time. Bytes between frames (padding, the headers of `multipart/x-mixed-replace`) are passed over, up to
//! [`MAX_GAP`]. A broken frame is an error, and the next one follows.

mod claim;
mod error;
mod search;
mod sketch;
mod walk;
mod window;
mod y4m;
mod yuv;

pub use error::FrameError;
pub use sketch::Sketch;

use super::detect::what;
use super::{ImageError, Limits, Picture, decode};
use search::{Begin, Found};
use std::io::{self, Read};
use walk::{Walk, Why};
use window::Window;
use y4m::{Refused, Y4m};

/// The kinds of frames, for messages.
pub const KINDS: &str = "JPEG, PNG or y4m frames";

/// Most bytes before the first frame.
pub const MAX_LEAD: u64 = 1 << 20;

/// Most bytes between two frames.
pub const MAX_GAP: u64 = 256 << 20;

/// What a frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Jpeg,
    Png,
    Y4m(Y4m),
}

/// A frame of a stream, not decoded.
#[derive(Debug, Clone)]
pub struct Frame {
    number: u64,
    skipped: u64,
    kind: Kind,
    bytes: Vec<u8>,
}

impl Frame {
    /// Its place in the stream, from 1 on; broken frames are counted.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Bytes between it and the last whole frame.
    pub fn skipped(&self) -> u64 {
        self.skipped
    }

    /// The file, or of y4m the planes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Its picture.
    ///
    /// # Errors
    /// As [`super::decode()`].
    pub fn decode(&self, limits: &Limits) -> Result<Picture, ImageError> {
        let name = format!("frame {}", self.number);
        match &self.kind {
            Kind::Jpeg | Kind::Png => decode(&self.bytes, &name, limits),
            Kind::Y4m(y4m) => {
                let edge = |edge: usize| u64::try_from(edge).unwrap_or(u64::MAX);
                limits.check(&name, edge(y4m.width), edge(y4m.height))?;
                yuv::rgb(y4m, &self.bytes).ok_or_else(|| ImageError::Damaged {
                    name,
                    format: "y4m",
                    reason: "it has fewer bytes than its planes".to_owned(),
                })
            }
        }
    }
}

/// The frames of a stream, in their order. After an error that [ends it](FrameError::is_end) there are no more.
///
/// ```
/// use runtime::image::{Limits, frames::Frames};
/// let png = std::fs::read("../models/demo/scenes/scene_1.png").unwrap();
/// let stream = [&png[..], &png].concat();
/// let frames: Vec<_> = Frames::new(&stream[..], "a camera", Limits::default()).collect();
/// assert_eq!(frames.len(), 2);
/// let picture = frames[1].as_ref().unwrap().decode(&Limits::default()).unwrap();
/// assert_eq!(picture.width(), 256);
/// ```
#[derive(Debug)]
pub struct Frames<R> {
    window: Window<R>,
    name: String,
    limits: Limits,
    /// Frames so far, broken ones too.
    count: u64,
    /// Bytes since the last frame, whole or broken, that are of none.
    gap: u64,
    skipped: u64,
    /// The same up to the last whole frame.
    told: u64,
    /// The header of a y4m stream.
    y4m: Option<Y4m>,
    over: bool,
}

impl<R: Read> Frames<R> {
    /// The frames that `reader` brings; `name` stands in errors. Memory is that of one frame within the limits.
    pub fn new(reader: R, name: &str, limits: Limits) -> Frames<R> {
        Frames {
            window: Window::new(reader),
            name: name.to_owned(),
            limits,
            count: 0,
            gap: 0,
            skipped: 0,
            told: 0,
            y4m: None,
            over: false,
        }
    }

    /// Frames so far, broken ones too.
    pub fn number(&self) -> u64 {
        self.count
    }

    /// Bytes so far that are of no whole frame, headers of y4m not counted.
    pub fn skipped(&self) -> u64 {
        self.skipped
    }

    /// Drops bytes that are of no whole frame.
    fn pass(&mut self, count: usize) {
        let count = count.min(self.window.bytes().len());
        let bytes = u64::try_from(count).unwrap_or(u64::MAX);
        self.gap = self.gap.saturating_add(bytes);
        self.skipped = self.skipped.saturating_add(bytes);
        self.window.drop_front(count);
    }

    fn read_error(&self, source: io::Error) -> FrameError {
        FrameError::Read {
            name: self.name.clone(),
            source,
        }
    }

    /// Another picture at the very beginning, or nothing.
    fn check_first(&mut self) -> Result<(), FrameError> {
        self.window
            .have(search::FIRST)
            .map_err(|source| self.read_error(source))?;
        match search::refuse_first(self.window.bytes()) {
            Some(found) => Err(self.none(found)),
            None => Ok(()),
        }
    }

    fn none(&self, found: String) -> FrameError {
        FrameError::None {
            name: self.name.clone(),
            found,
        }
    }

    /// Goes on to where a frame begins; `None` at the end of the stream.
    fn find(&mut self) -> Result<Option<Begin>, FrameError> {
        let first = self.count == 0 && self.y4m.is_none();
        let most = if first { MAX_LEAD } else { MAX_GAP };
        if first && self.gap == 0 {
            self.check_first()?;
        }
        // Of no use behind the first frame. The same bytes however many a read gave.
        let bytes = self.window.bytes();
        let head = match (self.count, self.y4m) {
            (0, None) => what(&bytes[..bytes.len().min(search::FIRST)]),
            _ => "a y4m stream that ends behind its header".to_owned(),
        };
        loop {
            let found = search::begin(self.window.bytes(), self.y4m.is_some());
            match found {
                Found::At(place, begin) => {
                    self.pass(place);
                    return Ok(Some(begin));
                }
                Found::Perhaps(place) => self.pass(place),
            }
            if self.gap > most {
                return Err(if first {
                    let bytes = MAX_LEAD;
                    self.none(format!("{head}, and no frame begins in its first {bytes} bytes"))
                } else {
                    FrameError::Lost {
                        name: self.name.clone(),
                        after: self.count,
                    }
                });
            }
            if !self.window.more().map_err(|source| self.read_error(source))? {
                // A frame of which nothing but a part of its first bytes is there.
                let begun = self.window.bytes().len() > 1;
                if begun {
                    self.count += 1;
                    let error = self.short("frame");
                    self.pass(self.window.bytes().len());
                    return Err(error);
                }
                if self.count == 0 {
                    return Err(self.none(head));
                }
                self.pass(self.window.bytes().len());
                return Ok(None);
            }
        }
    }

    fn short(&self, kind: &'static str) -> FrameError {
        let bytes = self.window.bytes().len();
        self.damaged(kind, format!("the stream ends inside it, after {bytes} bytes"))
    }

    fn damaged(&self, kind: &'static str, reason: String) -> FrameError {
        FrameError::Damaged {
            name: self.name.clone(),
            number: self.count,
            kind,
            reason,
        }
    }

    /// A frame of so many bytes, which are there.
    fn frame(&mut self, kind: Kind, bytes: usize) -> Frame {
        self.gap = 0;
        Frame {
            number: self.count,
            skipped: self.skipped - std::mem::replace(&mut self.told, self.skipped),
            kind,
            bytes: self.window.take_front(bytes),
        }
    }

    /// A JPEG or a PNG, which begins here.
    fn file(&mut self, kind: Kind) -> Result<Frame, FrameError> {
        self.count += 1;
        let jpeg = kind == Kind::Jpeg;
        let walk = if jpeg {
            walk::jpeg(&mut self.window, &self.limits)
        } else {
            walk::png(&mut self.window, &self.limits)
        };
        let (next, why) = match walk.map_err(|source| self.read_error(source))? {
            Walk::Whole(bytes) => return Ok(self.frame(kind, bytes)),
            Walk::Broken { next, why } => (next, why),
        };
        let word = if jpeg { "JPEG" } else { "PNG" };
        let error = match why {
            Why::Short => self.short(word),
            Why::Cut => self.damaged(word, "another frame begins inside it".to_owned()),
            Why::Damaged(reason) => self.damaged(word, reason.to_owned()),
            Why::Long { most } => self.damaged(
                word,
                format!("it has over {most} bytes, expected at most that many of its size"),
            ),
            Why::Size { width, height } => {
                match self.limits.check(&format!("frame {}", self.count), width, height) {
                    Err(error) => FrameError::Image(error),
                    Ok(()) => self.damaged(word, "its size is none".to_owned()),
                }
            }
        };
        self.pass(next);
        // What follows is another gap.
        self.gap = 0;
        Err(error)
    }

    /// The end of the line that begins here; `None` where there is none, or it is too long.
    fn line(&mut self) -> Result<Option<usize>, FrameError> {
        loop {
            let head = &self.window.bytes()[..self.window.bytes().len().min(y4m::MAX_LINE)];
            if let Some(end) = head.iter().position(|byte| *byte == b'\n') {
                return Ok(Some(end));
            }
            if head.len() == y4m::MAX_LINE || !self.window.more().map_err(|source| self.read_error(source))? {
                return Ok(None);
            }
        }
    }

    /// The header of a y4m stream, which begins here.
    fn y4m_header(&mut self) -> Result<(), FrameError> {
        let refused = |frames: &Self, found: String, expected: String| FrameError::Y4m {
            name: frames.name.clone(),
            found,
            expected,
        };
        let Some(end) = self.line()? else {
            let found = "with a header that does not end".to_owned();
            return Err(refused(
                self,
                found,
                format!("a line of at most {} bytes", y4m::MAX_LINE),
            ));
        };
        let line = self.window.bytes().get(..end).unwrap_or_default();
        match Y4m::parse(line, &self.limits) {
            Ok(y4m) => self.y4m = Some(y4m),
            Err(Refused { found, expected }) => return Err(refused(self, found, expected)),
        }
        self.window.drop_front(end + 1);
        Ok(())
    }

    /// A frame of y4m, whose line begins here.
    fn y4m_frame(&mut self, y4m: Y4m) -> Result<Frame, FrameError> {
        self.count += 1;
        let Some(end) = self.line()? else {
            let error = if self.window.bytes().len() < y4m::MAX_LINE {
                self.short("y4m")
            } else {
                self.damaged("y4m", "its header does not end".to_owned())
            };
            self.pass(y4m::FRAME.len());
            return Err(error);
        };
        let bytes = y4m.frame_bytes();
        let whole = self
            .window
            .have((end + 1).saturating_add(bytes))
            .map_err(|source| self.read_error(source))?;
        if !whole {
            let error = self.short("y4m");
            self.pass(self.window.bytes().len());
            return Err(error);
        }
        self.window.drop_front(end + 1);
        Ok(self.frame(Kind::Y4m(y4m), bytes))
    }

    fn read_next(&mut self) -> Result<Option<Frame>, FrameError> {
        loop {
            let frame = match (self.find()?, self.y4m) {
                (None, _) => return Ok(None),
                (Some(Begin::Jpeg), _) => self.file(Kind::Jpeg),
                (Some(Begin::Png), _) => self.file(Kind::Png),
                (Some(Begin::Y4mHeader), _) => {
                    self.y4m_header()?;
                    continue;
                }
                (Some(Begin::Y4mFrame), Some(y4m)) => self.y4m_frame(y4m),
                (Some(Begin::Y4mFrame), None) => {
                    self.pass(y4m::FRAME.len());
                    continue;
                }
            };
            return frame.map(Some);
        }
    }
}

impl<R: Read> Iterator for Frames<R> {
    type Item = Result<Frame, FrameError>;

    fn next(&mut self) -> Option<Result<Frame, FrameError>> {
        if self.over {
            return None;
        }
        let next = self.read_next().transpose();
        self.over = match &next {
            None => true,
            Some(Err(error)) => error.is_end(),
            Some(Ok(_)) => false,
        };
        next
    }
}

#[cfg(test)]
mod tests;
