//! How far apart are two lists of logits? Position by position, in float64.

use crate::bench::statistics::Spread;
use crate::golden::argmax;
use serde::Serialize;

/// How logits differ from those of the reference. A number that is not finite makes a distance infinite (`null` in JSON).
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LogitsError {
    /// `|found - expected| / |expected|` over all positions.
    pub relative_l2: f64,
    /// The same per position, the median.
    pub relative_l2_median: f64,
    /// Kullback-Leibler divergence of the next token's distribution from the reference's, in nats, the mean.
    pub kl_mean: f64,
    /// The same, the greatest.
    pub kl_max: f64,
    /// Share of positions with the same likeliest token.
    pub top1: f64,
}

/// Adds positions up.
#[derive(Debug, Clone, Default)]
pub struct Tally {
    square_difference: f64,
    square_expected: f64,
    relative_l2: Vec<f64>,
    divergences: Vec<f64>,
    agreed: usize,
}

impl Tally {
    /// Adds a position: what was found, and what the reference has. Both are `[vocabulary]`.
    pub fn add(&mut self, found: &[f32], expected: &[f32]) {
        let (difference, size) = squares(found, expected);
        self.square_difference += difference;
        self.square_expected += size;
        self.relative_l2.push(relative(difference, size));
        self.divergences.push(divergence(expected, found));
        self.agreed += usize::from(argmax(found) == argmax(expected));
    }

    /// Positions that were added.
    pub fn positions(&self) -> usize {
        self.divergences.len()
    }

    /// What they say together; `None` where there are none.
    pub fn error(&self) -> Option<LogitsError> {
        let count = self.positions() as f64;
        Some(LogitsError {
            relative_l2: relative(self.square_difference, self.square_expected),
            relative_l2_median: Spread::of(&self.relative_l2)?.median,
            kl_mean: self.divergences.iter().sum::<f64>() / count,
            kl_max: self.divergences.iter().copied().reduce(f64::max)?,
            top1: self.agreed as f64 / count,
        })
    }
}

/// `|found - expected| / |expected|`; 0 where both are zero, infinite where only `expected` is or where an element of
/// either is not finite.
pub fn relative_l2(found: &[f32], expected: &[f32]) -> f64 {
    let (difference, size) = squares(found, expected);
    relative(difference, size)
}

fn squares(found: &[f32], expected: &[f32]) -> (f64, f64) {
    let (mut difference, mut size) = (0.0, 0.0);
    for (&a, &b) in found.iter().zip(expected) {
        let (a, b) = (f64::from(a), f64::from(b));
        difference += (a - b) * (a - b);
        size += b * b;
    }
    if difference.is_finite() && size.is_finite() {
        (difference, size)
    } else {
        (f64::INFINITY, size)
    }
}

fn relative(difference: f64, size: f64) -> f64 {
    if difference == 0.0 {
        0.0
    } else if difference.is_finite() {
        (difference / size).sqrt()
    } else {
        f64::INFINITY
    }
}

/// The Kullback-Leibler divergence of `found` from `expected` in nats, both as logits: the sum of
/// `p log(p / q)` with `p` what is expected.
pub fn divergence(expected: &[f32], found: &[f32]) -> f64 {
    let (Some(p), Some(q)) = (Softmax::of(expected), Softmax::of(found)) else {
        return f64::INFINITY;
    };
    let terms = expected.iter().zip(found).map(|(&a, &b)| {
        let (a, b) = (p.log(a), q.log(b));
        a.exp() * (a - b)
    });
    // Rounding can leave a hair below zero, where a divergence cannot be.
    terms.sum::<f64>().max(0.0)
}

/// Turns logits into logarithms of probabilities.
struct Softmax {
    highest: f64,
    log_sum: f64,
}

impl Softmax {
    /// `None` where a logit is not finite.
    fn of(logits: &[f32]) -> Option<Softmax> {
        if logits.is_empty() || logits.iter().any(|logit| !logit.is_finite()) {
            return None;
        }
        let logits = logits.iter().map(|&logit| f64::from(logit));
        let highest = logits.clone().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = logits.map(|logit| (logit - highest).exp()).sum();
        Some(Softmax {
            highest,
            log_sum: sum.ln(),
        })
    }

    fn log(&self, logit: f32) -> f64 {
        f64::from(logit) - self.highest - self.log_sum
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn near(found: f64, expected: f64) {
        assert!(
            (found - expected).abs() <= 1e-9 * expected.abs().max(1.0),
            "{found}, expected {expected}"
        );
    }

    #[test]
    fn equal_logits_do_not_differ() {
        let logits = [0.5, -3.0, 80.0, 7.25];
        assert_eq!(divergence(&logits, &logits), 0.0);
        assert_eq!(relative_l2(&logits, &logits), 0.0);
        assert_eq!(relative_l2(&[0.0], &[0.0]), 0.0);
    }

    #[test]
    fn divergences_by_hand() {
        // p = (1/2, 1/2), q = (1/4, 3/4): ln 2 / 2 + ln(2/3) / 2 = ln(4/3) / 2.
        let (p, q) = ([0.0, 0.0], [0.0, 3.0_f32.ln()]);
        let expected = (4.0_f64 / 3.0).ln() / 2.0;
        assert!((divergence(&p, &q) - expected).abs() < 1e-7);
        // The other way round it is another number: ln(1/2) / 4 + 3 ln(3/2) / 4.
        let expected = 0.5_f64.ln() / 4.0 + 0.75 * 1.5_f64.ln();
        assert!((divergence(&q, &p) - expected).abs() < 1e-7);
        // What is added to every logit changes nothing, however large.
        let shifted = q.map(|logit| logit + 1024.0);
        assert!((divergence(&q, &shifted)).abs() < 1e-6);
        // Logits far apart do not overflow: one certain token against another.
        near(divergence(&[500.0, -500.0], &[-500.0, 500.0]), 1000.0);
    }

    #[test]
    fn positions_by_hand() {
        let mut tally = Tally::default();
        assert_eq!(tally.error(), None);
        tally.add(&[3.0, 4.0], &[3.0, 4.0]);
        tally.add(&[4.0, 3.0], &[0.0, 5.0]);
        tally.add(&[0.0, 2.0], &[0.0, 1.0]);
        let error = tally.error().unwrap();
        // Squares: 0 of 25, 20 of 25, 1 of 1.
        near(error.relative_l2, (21.0_f64 / 51.0).sqrt());
        near(error.relative_l2_median, (20.0_f64 / 25.0).sqrt());
        near(error.top1, 2.0 / 3.0);
        let divergences = [
            0.0,
            divergence(&[0.0, 5.0], &[4.0, 3.0]),
            divergence(&[0.0, 1.0], &[0.0, 2.0]),
        ];
        near(error.kl_mean, divergences.iter().sum::<f64>() / 3.0);
        near(error.kl_max, divergences[1]);
    }

    #[test]
    fn what_is_not_finite_is_infinitely_far() {
        for bad in [f32::NAN, f32::INFINITY] {
            let mut tally = Tally::default();
            tally.add(&[1.0, bad], &[1.0, 2.0]);
            tally.add(&[1.0, 2.0], &[1.0, 2.0]);
            let error = tally.error().unwrap();
            assert_eq!((error.relative_l2, error.kl_max), (f64::INFINITY, f64::INFINITY));
            assert_eq!(
                serde_json::to_value(&error).unwrap()["kl_mean"],
                serde_json::Value::Null
            );
        }
        assert_eq!(relative_l2(&[1.0], &[0.0]), f64::INFINITY);
    }
}
