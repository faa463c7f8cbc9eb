//! YUV4MPEG2, `y4m`: a header, then frames of planes, each behind a line `FRAME`.

use crate::image::decode::{Limits, MAX_EDGE};

/// What the stream begins with.
pub(super) const MAGIC: &[u8] = b"YUV4MPEG2 ";

/// What a frame begins with.
pub(super) const FRAME: &[u8] = b"FRAME";

/// Longest header, of the stream and of a frame, in bytes.
pub(super) const MAX_LINE: usize = 4096;

/// Where a sample of chroma lies between samples of luma, along one axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Axis {
    /// Samples of luma for each of chroma: 1, 2 or 4.
    pub(super) step: usize,
    /// Whether it lies in the middle between two of them, not on the first.
    pub(super) centred: bool,
}

impl Axis {
    const EACH: Axis = Axis {
        step: 1,
        centred: false,
    };
    const PAIR: Axis = Axis {
        step: 2,
        centred: false,
    };
    const CENTRE: Axis = Axis {
        step: 2,
        centred: true,
    };
    const FOUR: Axis = Axis {
        step: 4,
        centred: false,
    };

    /// Samples of chroma along so many of luma.
    pub(super) fn samples(self, luma: usize) -> usize {
        luma.div_ceil(self.step)
    }
}

/// What the header says of all frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Y4m {
    pub(super) width: usize,
    pub(super) height: usize,
    /// Chroma across and down; `None` where there is none.
    pub(super) chroma: Option<(Axis, Axis)>,
    /// Whether a plane of alpha follows, which is not looked at.
    pub(super) alpha: bool,
    /// Whether black is 0 and white 255, not 16 and 235.
    pub(super) full: bool,
}

/// Why a header is none that is read here: what was found, and what is expected.
#[derive(Debug)]
pub(super) struct Refused {
    pub(super) found: String,
    pub(super) expected: String,
}

fn refuse<T>(found: impl Into<String>, expected: impl Into<String>) -> Result<T, Refused> {
    let (found, expected) = (found.into(), expected.into());
    Err(Refused { found, expected })
}

/// Chroma by its word, and whether there is alpha.
fn chroma(word: &str) -> Result<(Option<(Axis, Axis)>, bool), Refused> {
    const EXPECTED: &str =
        "8 bits in 420jpeg, 420mpeg2, 420paldv, 411, 422, 444, 444alpha or mono (ffmpeg: -pix_fmt yuv420p)";
    let planes = |across, down| Ok((Some((across, down)), false));
    match word {
        "420" | "420jpeg" => planes(Axis::CENTRE, Axis::CENTRE),
        "420mpeg2" => planes(Axis::PAIR, Axis::CENTRE),
        "420paldv" => planes(Axis::PAIR, Axis::PAIR),
        "411" => planes(Axis::FOUR, Axis::EACH),
        "422" => planes(Axis::PAIR, Axis::EACH),
        "444" => planes(Axis::EACH, Axis::EACH),
        "444alpha" => Ok((Some((Axis::EACH, Axis::EACH)), true)),
        "mono" => Ok((None, false)),
        _ => refuse(format!("of chroma `C{}`", word), EXPECTED),
    }
}

impl Y4m {
    /// Reads the header's line, from [`MAGIC`] on and without its end.
    pub(super) fn parse(line: &[u8], limits: &Limits) -> Result<Y4m, Refused> {
        let line = String::from_utf8_lossy(line);
        let (mut width, mut height, mut layout, mut full) = (None, None, None, None);
        let edge = |value: &str| -> Result<u64, Refused> {
            match value.parse() {
                Ok(edge) => Ok(edge),
                Err(_) => refuse(format!("with an edge of `{}`", value), "a number of pixels"),
            }
        };
        for parameter in line.split(' ').skip(1).filter(|parameter| !parameter.is_empty()) {
            let mut rest = parameter.chars();
            let letter = rest.next();
            let value = rest.as_str();
            match letter {
                Some('W') => width = Some(edge(value)?),
                Some('H') => height = Some(edge(value)?),
                Some('C') => layout = Some(chroma(value)?),
                Some('I') if !matches!(value, "p" | "?") => {
                    let expected = "whole frames, `Ip` (ffmpeg: -vf yadif)";
                    return refuse(format!("interlaced, `I{}`", value), expected);
                }
                Some('X') => match value.strip_prefix("COLORRANGE=") {
                    Some("FULL") => full = Some(true),
                    Some("LIMITED") => full = Some(false),
                    Some(range) => {
                        let found = format!("of the range `{}`", range);
                        return refuse(found, "XCOLORRANGE=FULL or LIMITED");
                    }
                    None => {}
                },
                // Rate and aspect of pixels, and what others have added.
                _ => {}
            }
        }
        let (Some(width), Some(height)) = (width, height) else {
            return refuse("without width or height", "W and H in its header");
        };
        if limits.check("", width, height).is_err() {
            let Limits { max_pixels } = limits;
            let expected = format!("1 to {max_pixels} pixels and edges of at most {MAX_EDGE}");
            return refuse(format!("of {width} x {height} pixels"), expected);
        }
        let (chroma, alpha) = match layout {
            Some(layout) => layout,
            None => chroma("420")?,
        };
        let edge = |edge: u64| usize::try_from(edge).unwrap_or(usize::MAX);
        Ok(Y4m {
            width: edge(width),
            height: edge(height),
            chroma,
            alpha,
            // Gray alone is what ffmpeg writes of gray pictures, which have the full range.
            full: full.unwrap_or(chroma.is_none()),
        })
    }

    /// Bytes of the plane of luma.
    pub(super) fn luma(&self) -> usize {
        self.width.saturating_mul(self.height)
    }

    /// Samples of chroma across and down; none where there are none.
    pub(super) fn grid(&self) -> (usize, usize) {
        match self.chroma {
            Some((across, down)) => (across.samples(self.width), down.samples(self.height)),
            None => (0, 0),
        }
    }

    /// Bytes of a frame, without its line.
    pub(super) fn frame_bytes(&self) -> usize {
        let (across, down) = self.grid();
        let luma = self.luma();
        let alpha = if self.alpha { luma } else { 0 };
        luma.saturating_add(across.saturating_mul(down).saturating_mul(2))
            .saturating_add(alpha)
    }
}
