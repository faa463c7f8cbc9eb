//! Scales in float16: does each hold what its weights need? One beyond its range makes infinities of a block, one that
//! is too small for it makes nothing of a block, or something else.

use super::largest;
use crate::error::ExportError;
use half::f16;

/// The largest number of float16.
const MOST: f32 = 65_504.0;
/// A scale that changes by more than this share of itself is too small: float16 has few digits there, or none.
const SHARE: f32 = 1.0 / 16.0;
/// From which share of the largest weight on a block counts. One of much smaller weights changes no product: it is far
/// below what rounding takes of the others.
const COUNTS: f32 = 1.0 / 64.0;

/// The scales of a weight on their way into float16.
#[derive(Debug, Default)]
pub(super) struct Halves {
    /// The largest finite weight.
    largest: f32,
    /// The largest scale.
    scale: f32,
    /// The largest weight of a block with a scale that is too small, and that scale.
    lost: (f32, f32),
    /// Whether weights become float16 themselves where they are used.
    unpacked: bool,
}

impl Halves {
    /// Of a weight that is float16 where it is used.
    pub(super) fn unpacked() -> Halves {
        Halves {
            unpacked: true,
            ..Halves::default()
        }
    }

    /// The scale of a block of weights, as it is stored. Weights that are no numbers are somebody else's complaint.
    pub(super) fn scale(&mut self, block: &[f32], exact: f32) -> f16 {
        let stored = f16::from_f32(exact);
        let weight = largest(block);
        if !weight.is_finite() || !exact.is_finite() {
            return stored;
        }
        let exact = exact.abs();
        self.largest = self.largest.max(weight);
        self.scale = self.scale.max(exact);
        let rounded = stored.to_f32().abs();
        if rounded.is_finite() && (rounded - exact).abs() > SHARE * exact && weight > self.lost.0 {
            self.lost = (weight, exact);
        }
        stored
    }

    /// Whether all scales of the weight of this name are what they stand for.
    ///
    /// # Errors
    /// One beyond float16's range, or one that is lost below it.
    pub(super) fn finish(self, name: &str) -> Result<(), ExportError> {
        let Halves {
            largest,
            scale,
            lost: (weight, small),
            unpacked,
        } = self;
        let problem = if f16::from_f32(scale).is_infinite() {
            format!("`{name}` with a scale of {scale:e}, expected at most {MOST}")
        } else if unpacked && f16::from_f32(largest).is_infinite() {
            format!("`{name}` with weights up to {largest}, expected at most {MOST}")
        } else if weight > COUNTS * largest {
            format!(
                "`{name}` with a scale of {small:e}, for weights up to {weight:e}: expected at least 5e-7"
            )
        } else {
            return Ok(());
        };
        Err(ExportError::Float16Scales {
            weights: vec![problem],
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(mut halves: Halves, blocks: &[(&[f32], f32)]) -> Result<(), String> {
        for (block, scale) in blocks {
            halves.scale(block, *scale);
        }
        halves.finish("w").map_err(|error| error.to_string())
    }

    #[test]
    fn scales_that_float16_holds_and_others() {
        let usual: (&[f32], f32) = (&[0.5, -0.25], 0.0625);
        for (blocks, expected) in [
            (&[usual][..], ""),
            (&[usual, (&[0.0, 0.0], 0.0)], ""),
            (&[(&[70_000.0], 65_519.0)], ""),
            (
                &[(&[80_000.0], -65_520.0)],
                "a scale of 6.552e4, expected at most 65504",
            ),
            (&[(&[4e-6], 5e-7)], ""),
            (&[(&[2e-8], 2.5e-9)], "a scale of 2.5e-9, for weights up to 2e-8"),
            (&[(&[8e-7], -8.9e-8)], "a scale of 8.9e-8"),
            // Small beside the others, and not.
            (&[usual, (&[2e-8], 2.5e-9)], ""),
            (&[(&[2e-6], 5e-7), (&[4e-8], 2.5e-9)], "a scale of 2.5e-9"),
            (&[(&[f32::NAN], f32::NAN), (&[f32::INFINITY], f32::NAN)], ""),
        ] {
            let found = of(Halves::default(), blocks);
            let right = match &found {
                Ok(()) => expected.is_empty(),
                Err(message) => !expected.is_empty() && message.contains(expected),
            };
            assert!(right, "{blocks:?}: {found:?}, expected {expected}");
        }
        let message = of(Halves::unpacked(), &[(&[70_000.0], 550.0)]).unwrap_err();
        assert!(message.contains("`w` with weights up to 70000"), "{message}");
    }
}
