//! Are two tensors the same? By a tolerance that has a name, with the first element that says no.

use crate::array::Array;
use models::bundle::Precision;
use ndarray::{ArrayViewD, Dimension as _};
use serde::Serialize;
use std::fmt;

/// How much two tensors may differ. The measure is the relative L2 distance, `|found - expected| / |expected|`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Tolerance {
    /// Every element is the same number.
    Exact,
    /// float32 arithmetic in another order: 1e-4 per stage.
    Close,
    /// float32 logits, after every layer: 5e-4.
    Logits,
    /// float16 storage and arithmetic: 5e-3.
    Half,
    /// Activations rounded to bytes on their way into products, weights the same: 4e-2.
    Bytes,
    /// As [`Tolerance::Bytes`], and float16 arithmetic between them: 6e-2. ONNX Runtime's on AArch64, 4.3e-2 apart for one
    /// position at a time and several (under qemu).
    BytesInHalf,
    /// As [`Tolerance::Bytes`], and the low nibbles of unlikely logits left out: 1e-1.
    Planes,
    /// Logits of the demo model in bytes: 8e-2; 5.0e-2 was measured. Its features and its cache, of which 2.5e-2 and
    /// 2.8e-2 were measured, keep to [`Tolerance::Bytes`].
    BytesLogits,
    /// The cache of the demo model, its decoder in nibbles: 1.3e-1; 8.4e-2 was measured.
    Nibbles,
    /// Its logits: 3e-1; 2.2e-1 was measured.
    NibblesLogits,
    /// Image features of random weights in bytes: 1.3e-1; 8.7e-2 was measured.
    FeaturesOfNoise,
    /// Cache and logits of random weights in bytes: 4.5e-1; 1.9e-1 and 3.1e-1 were measured.
    BytesOfNoise,
    /// The cache of random weights in nibbles: 8e-1; 5.4e-1 was measured.
    NibblesOfNoise,
    /// Logits of random weights in nibbles: 1.2; 9.2e-1 was measured, and unrelated ones lie 1.4 apart.
    NibblesLogitsOfNoise,
    /// A limit that a reference brings along.
    Custom(f64),
}

impl Tolerance {
    /// How far a tensor of a whole model may lie from the published one for having weights in bytes or nibbles; `None`
    /// for other precisions. `trained` tells the demo model, which was trained, from random weights.
    ///
    /// Each limit is one and a half times the greatest distance of all recorded cases, on ONNX Runtime and tract, of
    /// 2026-11-28. Random weights have nothing that survives rounding: a model of theirs says less.
    pub fn of_rounded(precision: Precision, value: &str, trained: bool) -> Option<Tolerance> {
        let nibbles = match precision {
            Precision::Fp32 | Precision::Fp16 => return None,
            Precision::Int8 | Precision::Q8 => false,
            Precision::Q4 | Precision::Q4F16 => true,
        };
        let logits = value.contains("logits");
        // Encoders have bytes in both.
        let features = value == "image_features";
        Some(match (trained, features, nibbles, logits) {
            (true, true, _, _) | (true, false, false, false) => Tolerance::Bytes,
            (true, false, false, true) => Tolerance::BytesLogits,
            (true, false, true, false) => Tolerance::Nibbles,
            (true, false, true, true) => Tolerance::NibblesLogits,
            (false, true, _, _) => Tolerance::FeaturesOfNoise,
            (false, false, false, _) => Tolerance::BytesOfNoise,
            (false, false, true, false) => Tolerance::NibblesOfNoise,
            (false, false, true, true) => Tolerance::NibblesLogitsOfNoise,
        })
    }

    /// The largest relative L2 distance that passes.
    pub const fn relative_l2(self) -> f64 {
        match self {
            Tolerance::Exact => 0.0,
            Tolerance::Close => 1e-4,
            Tolerance::Logits => 5e-4,
            Tolerance::Half => 5e-3,
            Tolerance::Bytes => 4e-2,
            Tolerance::BytesInHalf => 6e-2,
            Tolerance::Planes => 1e-1,
            Tolerance::BytesLogits => 8e-2,
            Tolerance::Nibbles | Tolerance::FeaturesOfNoise => 1.3e-1,
            Tolerance::NibblesLogits => 3e-1,
            Tolerance::BytesOfNoise => 4.5e-1,
            Tolerance::NibblesOfNoise => 8e-1,
            Tolerance::NibblesLogitsOfNoise => 1.2,
            Tolerance::Custom(limit) => limit,
        }
    }
}

impl fmt::Display for Tolerance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self {
            Tolerance::Exact => return f.write_str("exact"),
            Tolerance::Custom(limit) => return write!(f, "{limit:e}"),
            Tolerance::Close => "close",
            Tolerance::Logits => "logits",
            Tolerance::Half => "half",
            Tolerance::Bytes => "bytes",
            Tolerance::BytesInHalf => "bytes, in float16",
            Tolerance::Planes => "planes",
            Tolerance::BytesLogits => "bytes, logits",
            Tolerance::Nibbles => "nibbles",
            Tolerance::NibblesLogits => "nibbles, logits",
            Tolerance::FeaturesOfNoise => "bytes, features of random weights",
            Tolerance::BytesOfNoise => "bytes of random weights",
            Tolerance::NibblesOfNoise => "nibbles of random weights",
            Tolerance::NibblesLogitsOfNoise => "nibbles, logits of random weights",
        };
        write!(f, "{name} ({:e})", self.relative_l2())
    }
}

/// How far two tensors of one shape lie apart.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Distance {
    /// `|found - expected| / |expected|`; 0 where both are zero, infinite where only `expected` is or where an
    /// element of either is not finite.
    pub relative_l2: f64,
    /// Largest difference of two elements.
    pub max_abs: f64,
    /// The first element that differs by more than the tolerance allows on average.
    pub first: Option<Difference>,
}

/// An element that differs.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Difference {
    /// Where, in the whole tensor.
    pub index: Vec<usize>,
    /// What was computed.
    pub found: f64,
    /// What should have been.
    pub expected: f64,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "at {:?} found {} expected {}",
            self.index, self.found, self.expected
        )
    }
}

/// Measures how far `found` lies from `expected`, which has the same shape.
///
/// A number that is not finite is a difference even where both have it: no reference has one.
pub fn measure(
    found: &ArrayViewD<'_, f32>,
    expected: &ArrayViewD<'_, f32>,
    tolerance: Tolerance,
) -> Distance {
    let mut square_difference = 0.0_f64;
    let mut square_expected = 0.0_f64;
    let mut max_abs = 0.0_f64;
    let mut finite = true;
    for (&a, &b) in found.iter().zip(expected) {
        if !(a.is_finite() && b.is_finite()) {
            finite = false;
            break;
        }
        let difference = (f64::from(a) - f64::from(b)).abs();
        max_abs = max_abs.max(difference);
        square_difference += difference * difference;
        square_expected += f64::from(b) * f64::from(b);
    }
    let first = |differs: &dyn Fn(f64, f64) -> bool| {
        let pairs = found.indexed_iter().zip(expected);
        let mut pairs = pairs.map(|((index, &a), &b)| (index, f64::from(a), f64::from(b)));
        pairs
            .find(|&(_, found, expected)| differs(found, expected))
            .map(|(index, found, expected)| Difference {
                index: index.slice().to_vec(),
                found,
                expected,
            })
    };
    if !finite {
        return Distance {
            relative_l2: f64::INFINITY,
            max_abs: f64::INFINITY,
            first: first(&|a, b| !(a.is_finite() && b.is_finite())),
        };
    }
    let relative_l2 = if square_difference == 0.0 {
        0.0
    } else {
        (square_difference / square_expected).sqrt()
    };
    // Where the whole is too far apart, at least one element is further apart than the tolerance times the root
    // mean square of what was expected.
    let count = expected.len().max(1) as f64;
    let limit = tolerance.relative_l2() * (square_expected / count).sqrt();
    let first = if relative_l2 > tolerance.relative_l2() {
        first(&|a, b| (a - b).abs() > limit)
    } else {
        None
    };
    Distance {
        relative_l2,
        max_abs,
        first,
    }
}

/// What a comparison of one named tensor says.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Comparison {
    /// The tensor: `vision_tower.stages.2`, `logits`.
    pub value: String,
    /// The limit that was applied.
    pub tolerance: Tolerance,
    /// How far apart, where the shapes agree.
    pub distance: Option<Distance>,
    /// What is wrong; `None` where nothing is.
    pub problem: Option<String>,
}

impl Comparison {
    /// Whether the tensors agree.
    pub fn passed(&self) -> bool {
        self.problem.is_none()
    }

    /// A comparison that failed before any element was looked at.
    pub fn refused(value: &str, tolerance: Tolerance, problem: String) -> Comparison {
        Comparison {
            value: value.to_owned(),
            tolerance,
            distance: None,
            problem: Some(problem),
        }
    }

    /// Judges a distance.
    pub fn judge(value: &str, tolerance: Tolerance, distance: Distance) -> Comparison {
        let problem = (distance.relative_l2 > tolerance.relative_l2()).then(|| {
            let place = distance
                .first
                .as_ref()
                .map_or_else(String::new, |first| format!("; first {first}"));
            format!(
                "relative L2 {:.3e}, allowed {tolerance}; largest difference {:.3e}{place}",
                distance.relative_l2, distance.max_abs
            )
        });
        Comparison {
            value: value.to_owned(),
            tolerance,
            distance: Some(distance),
            problem,
        }
    }
}

/// Compares two tensors of one name.
pub fn compare(value: &str, found: &Array, expected: &Array, tolerance: Tolerance) -> Comparison {
    if found.shape() != expected.shape() {
        let problem = format!("shape {:?}, expected {:?}", found.shape(), expected.shape());
        return Comparison::refused(value, tolerance, problem);
    }
    let distance = measure(&found.to_float().view(), &expected.to_float().view(), tolerance);
    Comparison::judge(value, tolerance, distance)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_the_limits_of_the_design() {
        let limits = [
            Tolerance::Exact,
            Tolerance::Close,
            Tolerance::Logits,
            Tolerance::Half,
        ]
        .map(Tolerance::relative_l2);
        assert_eq!(limits, [0.0, 1e-4, 5e-4, 5e-3]);
    }

    #[test]
    fn rounded_weights_have_tolerances_of_their_own() {
        use Precision::{Fp16, Fp32, Int8, Q4};
        let limit = |precision, value, trained| {
            Tolerance::of_rounded(precision, value, trained).map(Tolerance::relative_l2)
        };
        assert_eq!(
            [limit(Fp32, "logits", true), limit(Fp16, "logits", false)],
            [None, None]
        );
        let (features, cache, logits) = ("image_features", "prefill.present.0.key", "steps.1.logits");
        for (precision, value, trained, random) in [
            (Int8, features, 4e-2, 1.3e-1),
            (Int8, cache, 4e-2, 4.5e-1),
            (Int8, logits, 8e-2, 4.5e-1),
            (Q4, features, 4e-2, 1.3e-1),
            (Q4, cache, 1.3e-1, 8e-1),
            (Q4, logits, 3e-1, 1.2),
        ] {
            assert_eq!(
                limit(precision, value, true),
                Some(trained),
                "{precision} {value}"
            );
            assert_eq!(
                limit(precision, value, false),
                Some(random),
                "{precision} {value}"
            );
        }
        assert_eq!(Tolerance::Close.to_string(), "close (1e-4)");
        assert_eq!(Tolerance::NibblesLogits.to_string(), "nibbles, logits (3e-1)");
    }

    #[test]
    fn comparisons_say_what_differs_first() {
        struct Case {
            what: &'static str,
            found: Vec<f32>,
            expected: Vec<f32>,
            tolerance: Tolerance,
            first: Option<Vec<usize>>,
            passed: bool,
        }
        let cases = [
            Case {
                what: "equal",
                found: vec![1.0, 2.0, 3.0, 4.0],
                expected: vec![1.0, 2.0, 3.0, 4.0],
                tolerance: Tolerance::Exact,
                first: None,
                passed: true,
            },
            Case {
                what: "one bit off is not exact",
                found: vec![1.0, 2.0, 3.0, f32::from_bits(4.0_f32.to_bits() + 1)],
                expected: vec![1.0, 2.0, 3.0, 4.0],
                tolerance: Tolerance::Exact,
                first: Some(vec![1, 1]),
                passed: false,
            },
            Case {
                what: "far off",
                found: vec![1.0, 2.0, 3.5, 4.0],
                expected: vec![1.0, 2.0, 3.0, 4.0],
                tolerance: Tolerance::Close,
                first: Some(vec![1, 0]),
                passed: false,
            },
            Case {
                what: "within the tolerance",
                found: vec![1.0, 2.0, 3.000_01, 4.0],
                expected: vec![1.0, 2.0, 3.0, 4.0],
                tolerance: Tolerance::Close,
                first: None,
                passed: true,
            },
            Case {
                what: "not a number, even on both sides",
                found: vec![1.0, f32::NAN, 3.0, 4.0],
                expected: vec![1.0, f32::NAN, 3.0, 4.0],
                tolerance: Tolerance::Half,
                first: Some(vec![0, 1]),
                passed: false,
            },
            Case {
                what: "anything against zeros",
                found: vec![0.0, 0.0, 1e-9, 0.0],
                expected: vec![0.0; 4],
                tolerance: Tolerance::Half,
                first: Some(vec![1, 0]),
                passed: false,
            },
            Case {
                what: "zeros against zeros",
                found: vec![0.0; 4],
                expected: vec![0.0; 4],
                tolerance: Tolerance::Exact,
                first: None,
                passed: true,
            },
        ];
        for case in cases {
            let (found, expected) = (
                Array::float(&[2, 2], case.found),
                Array::float(&[2, 2], case.expected),
            );
            let comparison = compare("x", &found, &expected, case.tolerance);
            assert_eq!(comparison.passed(), case.passed, "{}: {comparison:?}", case.what);
            let first = comparison
                .distance
                .and_then(|distance| distance.first)
                .map(|first| first.index);
            assert_eq!(first, case.first, "{}", case.what);
        }
    }

    #[test]
    fn other_shapes_are_named() {
        let comparison = compare(
            "logits",
            &Array::float(&[1, 3], vec![0.0; 3]),
            &Array::float(&[3, 1], vec![0.0; 3]),
            Tolerance::Close,
        );
        assert_eq!(
            comparison.problem.as_deref(),
            Some("shape [1, 3], expected [3, 1]")
        );
    }
}
