//! How do planes of luma and chroma become RGB?
//!
//! By BT.601, which is what y4m means where nobody says otherwise (its header cannot), and by linear interpolation of the
//! chroma at the places where its samples lie. All is computed in whole numbers; each channel is at most one level off what
//! float64 gives.

use super::y4m::{Axis, Y4m};
use crate::image::Picture;

/// Binary digits behind the point.
const DIGITS: u32 = 16;

/// What an interpolated sample of chroma is multiplied by: a quarter along each axis.
const SCALE: i32 = 16;

/// The two samples at and behind place `at` of luma, and how many quarters the second counts.
#[derive(Debug, Clone, Copy)]
struct Between {
    first: usize,
    second: usize,
    quarters: i32,
}

impl Axis {
    fn between(self, at: usize, samples: usize) -> Between {
        let last = samples.saturating_sub(1);
        // In quarters of a sample of chroma.
        let place = 4 * at / self.step;
        // The place in the middle of two is half a sample of luma further on.
        let Some(place) = place.checked_sub(usize::from(self.centred)) else {
            return Between {
                first: 0,
                second: 0,
                quarters: 0,
            };
        };
        Between {
            first: (place / 4).min(last),
            second: (place / 4 + 1).min(last),
            quarters: (place % 4) as i32,
        }
    }
}

impl Between {
    /// Four times what lies there.
    fn blend(self, first: i32, second: i32) -> i32 {
        (4 - self.quarters) * first + self.quarters * second
    }
}

/// What the numbers of a range are multiplied by, in steps of `1 << DIGITS`.
struct Factors {
    black: i32,
    luma: i32,
    red_of_cr: i32,
    green_of_cb: i32,
    green_of_cr: i32,
    blue_of_cb: i32,
}

impl Factors {
    /// BT.601: red is 0.299 of luma, blue 0.114.
    fn new(full: bool) -> Factors {
        let (black, luma, chroma) = if full {
            (0, 1.0, 1.0)
        } else {
            (16, 255.0 / 219.0, 255.0 / 224.0)
        };
        let (red, green, blue) = (0.299, 0.587, 0.114);
        let fixed = |value: f64| (value * f64::from(1 << DIGITS)).round() as i32;
        let of = |value: f64| fixed(value * chroma / f64::from(SCALE));
        Factors {
            black,
            luma: fixed(luma),
            red_of_cr: of(2.0 * (1.0 - red)),
            green_of_cb: of(-2.0 * (1.0 - blue) * blue / green),
            green_of_cr: of(-2.0 * (1.0 - red) * red / green),
            blue_of_cb: of(2.0 * (1.0 - blue)),
        }
    }

    /// A pixel, of luma and [`SCALE`] times chroma.
    fn rgb(&self, luma: u8, cb: i32, cr: i32) -> [u8; 3] {
        let level = |sum: i32| (sum >> DIGITS).clamp(0, 255) as u8;
        // With a half, for rounding.
        let luma = (i32::from(luma) - self.black) * self.luma + (1 << (DIGITS - 1));
        let (cb, cr) = (cb - 128 * SCALE, cr - 128 * SCALE);
        [
            level(luma + self.red_of_cr * cr),
            level(luma + self.green_of_cb * cb + self.green_of_cr * cr),
            level(luma + self.blue_of_cb * cb),
        ]
    }
}

/// The picture of a frame's planes; `None` if there are fewer bytes than it has.
pub(super) fn rgb(y4m: &Y4m, planes: &[u8]) -> Option<Picture> {
    let factors = Factors::new(y4m.full);
    let (across, down) = y4m.grid();
    let (luma, rest) = planes.split_at_checked(y4m.luma())?;
    let (cb, rest) = rest.split_at_checked(across * down)?;
    let cr = rest.get(..across * down)?;
    let mut pixels = Vec::with_capacity(3 * y4m.luma());
    let columns: Vec<Between> = match y4m.chroma {
        Some((axis, _)) => (0..y4m.width).map(|x| axis.between(x, across)).collect(),
        None => Vec::new(),
    };
    // A row of chroma, four times what lies at the height of a row of luma.
    let mut rows = [vec![0; across], vec![0; across]];
    for (y, luma) in luma.chunks_exact(y4m.width.max(1)).enumerate() {
        let Some((_, axis)) = y4m.chroma else {
            let gray = |luma: &u8| factors.rgb(*luma, 128 * SCALE, 128 * SCALE);
            pixels.extend(luma.iter().flat_map(gray));
            continue;
        };
        let height = axis.between(y, down);
        for (row, plane) in rows.iter_mut().zip([cb, cr]) {
            let first = plane.get(height.first * across..)?;
            let second = plane.get(height.second * across..)?;
            for ((sample, first), second) in row.iter_mut().zip(first).zip(second) {
                *sample = height.blend(i32::from(*first), i32::from(*second));
            }
        }
        let [cb, cr] = &rows;
        for (luma, column) in luma.iter().zip(&columns) {
            let sample = |row: &[i32]| Some(column.blend(*row.get(column.first)?, *row.get(column.second)?));
            pixels.extend(factors.rgb(*luma, sample(cb)?, sample(cr)?));
        }
    }
    Picture::new(
        u32::try_from(y4m.width).ok()?,
        u32::try_from(y4m.height).ok()?,
        pixels,
    )
}
