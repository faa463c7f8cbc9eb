//! How are weights rounded where their inputs are known? One input after the other; what rounding one of them
//! does to the products is taken back with the inputs that are still to be rounded, as far as they are
//! correlated with it (Optimal Brain Surgeon; Frantar and others call it GPTQ, 2022).
//!
//! With `H` the second moments of the inputs, the inverse of `H` is `U^T U` with `U` upper triangular. Where
//! input `i` is rounded with the error `e`, every later input `j` gets `-e U_ij / U_ii`. Inputs go in order
//! of falling moments, so that what matters most is rounded first and taken back by all others.

use crate::error::ExportError;
use models::weights::MOMENTS;

/// Rows of weights that are rounded beside each other.
pub(super) const LANES: usize = models::fused::PANEL as usize;

/// Of the mean of the diagonal, what is added to the diagonal: inputs that were never seen, or always
/// together, stay tame.
const DAMPING: f64 = 0.01;

/// A run of inputs: in which order they are rounded, and what an error does to the later ones.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Run {
    /// Inputs, the first to be rounded first.
    order: Vec<usize>,
    /// `[place][later place]`, row by row: `U_ij / U_ii`, only what is behind the diagonal.
    later: Vec<f32>,
}

impl Run {
    /// Of the second moments `[width, width]` of a run's inputs; `name` names the weight in errors.
    ///
    /// # Errors
    /// Moments that no inputs have.
    pub(super) fn new(name: &str, moments: &[f32], width: usize) -> Result<Run, ExportError> {
        let bad = |what: String| ExportError::Moments {
            name: name.to_owned(),
            what,
        };
        if moments.len() != width * width {
            return Err(bad(format!(
                "{} moments, expected {}",
                moments.len(),
                width * width
            )));
        }
        let at = |i: usize, j: usize| moments.get(i * width + j).copied().unwrap_or(0.0);
        let mut order: Vec<usize> = (0..width).collect();
        order.sort_by(|a, b| at(*b, *b).total_cmp(&at(*a, *a)).then(a.cmp(b)));
        let mean = (0..width).map(|i| f64::from(at(i, i))).sum::<f64>() / width.max(1) as f64;
        // Inputs that were all zero: nothing is known, and nothing is taken back.
        let damping = if mean > 0.0 { DAMPING * mean } else { 1.0 };
        // Backwards, so that the lower factor of what is backwards is the upper one of what is not.
        let mut lower: Vec<f64> = Vec::with_capacity(width * width);
        for a in order.iter().rev() {
            for b in order.iter().rev() {
                lower.push(f64::from(at(*a, *b)) + if a == b { damping } else { 0.0 });
            }
        }
        if !cholesky(&mut lower, width) {
            return Err(bad("not positive definite".to_owned()));
        }
        let inverse = inverse_of_lower(&lower, width);
        let mut later = vec![0.0; width * width];
        for (place, row) in later.chunks_mut(width.max(1)).enumerate() {
            // Row `place` of U is the row of the inverse at the same place from behind, read backwards.
            let back = width - 1 - place;
            let line = inverse.get(back * width..(back + 1) * width).unwrap_or(&[]);
            let diagonal = line.get(back).copied().unwrap_or(1.0);
            for (to, from) in row.iter_mut().zip(line.iter().rev()).skip(place + 1) {
                *to = (from / diagonal) as f32;
            }
        }
        Ok(Run { order, later })
    }

    /// Rounds this run of a panel: `weights [width][16]` are overwritten; `round` is told input and weights,
    /// and gives what they become.
    pub(super) fn round(
        &self,
        weights: &mut [[f32; LANES]],
        mut round: impl FnMut(usize, &[f32; LANES]) -> [f32; LANES],
    ) {
        let width = self.order.len();
        // In the order of rounding, so that what is later lies together.
        let mut line: Vec<[f32; LANES]> = self
            .order
            .iter()
            .map(|input| weights.get(*input).copied().unwrap_or([0.0; LANES]))
            .collect();
        for (place, input) in self.order.iter().enumerate() {
            let (done, rest) = line.split_at_mut(place + 1);
            let Some(wanted) = done.last_mut() else { continue };
            let rounded = round(*input, wanted);
            let mut error = [0.0; LANES];
            for ((error, wanted), rounded) in error.iter_mut().zip(wanted.iter()).zip(&rounded) {
                *error = wanted - rounded;
            }
            *wanted = rounded;
            let factors = self.later.get(place * width + place + 1..(place + 1) * width);
            for (weights, factor) in rest.iter_mut().zip(factors.unwrap_or(&[])) {
                for (weight, error) in weights.iter_mut().zip(&error) {
                    *weight -= error * factor;
                }
            }
        }
        for (input, rounded) in self.order.iter().zip(line) {
            if let Some(weights) = weights.get_mut(*input) {
                *weights = rounded;
            }
        }
    }
}

/// Inputs `start..end` of a run.
pub(super) fn run_of(index: usize, inputs: usize) -> std::ops::Range<usize> {
    let start = (index * MOMENTS).min(inputs);
    start..inputs.min(start + MOMENTS)
}

/// The lower triangular factor `L` of a symmetric matrix `L L^T`, in its place; what is above the diagonal
/// stays. Whether there is one.
fn cholesky(matrix: &mut [f64], width: usize) -> bool {
    for i in 0..width {
        let (before, rest) = matrix.split_at_mut(i * width);
        let row = rest.split_at_mut(width.min(rest.len())).0;
        for (j, line) in before.chunks(width).enumerate() {
            let (known, open) = row.split_at_mut(j);
            let product = dot(known, line.get(..j).unwrap_or(&[]));
            if let (Some(value), Some(diagonal)) = (open.first_mut(), line.get(j)) {
                *value = (*value - product) / diagonal;
            }
        }
        let (known, open) = row.split_at_mut(i);
        let Some(diagonal) = open.first_mut() else {
            return false;
        };
        let square = *diagonal - dot(known, known);
        if !(square > 0.0 && square.is_finite()) {
            return false;
        }
        *diagonal = square.sqrt();
    }
    true
}

/// The inverse of a lower triangular matrix, zeros above its diagonal.
fn inverse_of_lower(lower: &[f64], width: usize) -> Vec<f64> {
    let mut inverse = vec![0.0; width * width];
    for i in 0..width {
        let (before, rest) = inverse.split_at_mut(i * width);
        let row = rest.split_at_mut(width.min(rest.len())).0;
        let line = lower.get(i * width..(i + 1) * width).unwrap_or(&[]);
        let diagonal = line.get(i).copied().unwrap_or(1.0);
        for ((k, factor), known) in line.iter().enumerate().zip(before.chunks(width)) {
            for (to, from) in row.iter_mut().zip(known).take(k + 1) {
                *to -= factor * from;
            }
        }
        for value in row.iter_mut().take(i) {
            *value /= diagonal;
        }
        if let Some(value) = row.get_mut(i) {
            *value = 1.0 / diagonal;
        }
    }
    inverse
}

/// A sum of products in lanes, so that it compiles to vector instructions.
fn dot(a: &[f64], b: &[f64]) -> f64 {
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<8>(), b.as_chunks::<8>());
    let mut sums = [0.0; 8];
    for (a, b) in a.iter().zip(b) {
        for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
            *sum += a * b;
        }
    }
    let rest: f64 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    sums.iter().sum::<f64>() + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Second moments of inputs of which neighbours go together, and which grow.
    fn moments(width: usize) -> Vec<f32> {
        let at = |i: usize, j: usize| {
            let size = |i: usize| 1.0 + (i % 7) as f32;
            size(i) * size(j) * 0.8_f32.powi(i.abs_diff(j) as i32)
        };
        (0..width * width)
            .map(|place| at(place / width, place % width))
            .collect()
    }

    /// `H^-1 = U^T D U` with `U` of ones on the diagonal: `U H U^T` is diagonal.
    #[test]
    fn factors_are_those_of_the_inverse() {
        for width in [1, 2, 9, 33] {
            let moments = moments(width);
            let run = Run::new("w", &moments, width).unwrap();
            let mean = (0..width).map(|i| f64::from(moments[i * width + i])).sum::<f64>() / width as f64;
            let h = |a: usize, b: usize| {
                let (a, b) = (run.order[a], run.order[b]);
                f64::from(moments[a * width + b]) + if a == b { DAMPING * mean } else { 0.0 }
            };
            let u = |i: usize, j: usize| match i.cmp(&j) {
                std::cmp::Ordering::Equal => 1.0,
                std::cmp::Ordering::Less => f64::from(run.later[i * width + j]),
                std::cmp::Ordering::Greater => 0.0,
            };
            for i in 0..width {
                for j in 0..width {
                    let mut sum = 0.0;
                    for a in 0..width {
                        for b in 0..width {
                            sum += u(i, a) * h(a, b) * u(j, b);
                        }
                    }
                    assert!((sum.abs() < 1e-3) == (i != j), "{width} {i} {j}: {sum}");
                }
            }
        }
    }

    /// The error of the products is smaller than that of rounding to nearest.
    #[test]
    fn feedback_beats_nearest() {
        let width = 96;
        let moments = moments(width);
        let run = Run::new("w", &moments, width).unwrap();
        let weight = |i: usize, lane: usize| ((i * 31 + lane * 17) % 101) as f32 / 50.0 - 1.0;
        let nearest = |_: usize, w: &[f32; LANES]| w.map(|w| (w * 4.0).round_ties_even() / 4.0);
        let mut found: Vec<[f32; LANES]> = Vec::new();
        for i in 0..width {
            found.push(std::array::from_fn(|lane| weight(i, lane)));
        }
        let before = found.clone();
        let plain: Vec<[f32; LANES]> = before.iter().map(|w| nearest(0, w)).collect();
        run.round(&mut found, nearest);
        let error = |rounded: &[[f32; LANES]]| -> f64 {
            let mut sum = 0.0;
            for lane in 0..LANES {
                let e = |i: usize| f64::from(before[i][lane] - rounded[i][lane]);
                for i in 0..width {
                    for j in 0..width {
                        sum += e(i) * e(j) * f64::from(moments[i * width + j]);
                    }
                }
            }
            sum
        };
        assert!(found.iter().flatten().all(|w| (w * 4.0).fract() == 0.0));
        assert!(
            error(&found) < 0.7 * error(&plain),
            "{} {}",
            error(&found),
            error(&plain)
        );
    }

    #[test]
    fn odd_moments() {
        assert_eq!(Run::new("w", &[0.0; 4], 2).unwrap().later, [0.0; 4]);
        let error = Run::new("w", &[1.0, 5.0, 5.0, 1.0], 2).unwrap_err().to_string();
        assert!(
            error.contains("`w`") && error.contains("not positive definite"),
            "{error}"
        );
        let error = Run::new("w", &[1.0; 3], 2).unwrap_err().to_string();
        assert!(error.contains("3 moments, expected 4"), "{error}");
    }
}
