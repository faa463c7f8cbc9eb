//! Operators that look at one element of each input at a time, with ONNX's broadcasting.

use super::shape::{broadcast_shape, spread};
use crate::array::{Array, Shared};
use ndarray::Zip;

/// Applies `f` to every real number.
pub(super) fn map(x: &Array, f: impl Fn(f64) -> f64) -> Result<Array, String> {
    let x = x.as_float().ok_or("the input is not real")?;
    Ok(Array::from(x.mapv(|v| f(f64::from(v)) as f32)))
}

/// The exact form: `x / 2 * (1 + erf(x / sqrt(2)))`.
pub(super) fn gelu(x: f64) -> f64 {
    0.5 * x * (1.0 + erf(x * std::f64::consts::FRAC_1_SQRT_2))
}

/// The error function to about 1e-16: its power series near 0, Lentz's continued fraction of `erfc` beyond.
fn erf(x: f64) -> f64 {
    let magnitude = x.abs();
    let value = if magnitude < 2.5 {
        let square = magnitude * magnitude;
        let mut term = magnitude;
        let mut sum = magnitude;
        let mut n = 0.0;
        while term > sum * 1e-17 && n < 200.0 {
            n += 1.0;
            term *= 2.0 * square / (2.0 * n + 1.0);
            sum += term;
        }
        2.0 / std::f64::consts::PI.sqrt() * (-square).exp() * sum
    } else if magnitude < 6.5 {
        let mut fraction = magnitude;
        for k in (1..=60).rev() {
            fraction = magnitude + f64::from(k) * 0.5 / fraction;
        }
        1.0 - (-magnitude * magnitude).exp() / (std::f64::consts::PI.sqrt() * fraction)
    } else {
        1.0
    };
    value.copysign(x)
}

/// `-x`, real or integer.
pub(super) fn negate(x: &Array) -> Result<Array, String> {
    match x {
        Array::Float(x) => Ok(Array::from(x.mapv(|v| -v))),
        Array::Int(x) => Ok(Array::from(x.mapv(i64::wrapping_neg))),
        Array::Bool(_) => Err("truth values cannot be negated".to_owned()),
    }
}

/// A binary operator on reals or integers.
pub(super) fn arithmetic(
    a: &Array,
    b: &Array,
    real: impl Fn(f64, f64) -> f64,
    integer: impl Fn(i64, i64) -> i64,
) -> Result<Array, String> {
    match (a, b) {
        (Array::Float(a), Array::Float(b)) => Ok(Array::Float(pairs(a, b, |a, b| {
            real(f64::from(a), f64::from(b)) as f32
        })?)),
        (Array::Int(a), Array::Int(b)) => Ok(Array::Int(pairs(a, b, integer)?)),
        _ => Err("the inputs are of two types".to_owned()),
    }
}

/// `a <= b`.
pub(super) fn less_or_equal(a: &Array, b: &Array) -> Result<Array, String> {
    match (a, b) {
        (Array::Float(a), Array::Float(b)) => Ok(Array::Bool(pairs(a, b, |a, b| a <= b)?)),
        (Array::Int(a), Array::Int(b)) => Ok(Array::Bool(pairs(a, b, |a, b| a <= b)?)),
        _ => Err("the inputs are of two types".to_owned()),
    }
}

/// Logical and.
pub(super) fn and(a: &Array, b: &Array) -> Result<Array, String> {
    match (a, b) {
        (Array::Bool(a), Array::Bool(b)) => Ok(Array::Bool(pairs(a, b, |a, b| a && b)?)),
        _ => Err("the inputs are not truth values".to_owned()),
    }
}

/// `condition ? a : b`.
pub(super) fn select(condition: &Array, a: &Array, b: &Array) -> Result<Array, String> {
    let Array::Bool(condition) = condition else {
        return Err("the condition is not truth values".to_owned());
    };
    match (a, b) {
        (Array::Float(a), Array::Float(b)) => Ok(Array::Float(chosen(condition, a, b)?)),
        (Array::Int(a), Array::Int(b)) => Ok(Array::Int(chosen(condition, a, b)?)),
        _ => Err("the inputs are of two types".to_owned()),
    }
}

fn chosen<T: Copy>(condition: &Shared<bool>, a: &Shared<T>, b: &Shared<T>) -> Result<Shared<T>, String> {
    let shape = broadcast_shape(condition.shape(), &broadcast_shape(a.shape(), b.shape())?)?;
    let inputs = Zip::from(spread(condition, &shape)?)
        .and(spread(a, &shape)?)
        .and(spread(b, &shape)?);
    let result = inputs.map_collect(|&first, &a, &b| if first { a } else { b });
    Ok(result.into_shared())
}

/// `f` of every two elements that meet in the broadcast shape.
fn pairs<T: Copy, U: Clone>(
    a: &Shared<T>,
    b: &Shared<T>,
    f: impl Fn(T, T) -> U,
) -> Result<Shared<U>, String> {
    let shape = broadcast_shape(a.shape(), b.shape())?;
    let inputs = Zip::from(spread(a, &shape)?).and(spread(b, &shape)?);
    Ok(inputs.map_collect(|&a, &b| f(a, b)).into_shared())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn erf_agrees_with_tables() {
        // Abramowitz and Stegun, table 7.1, and Python's math.erf beyond.
        let cases = [
            (0.0, 0.0),
            (0.1, 0.112_462_916_018_284_89),
            (0.5, 0.520_499_877_813_046_5),
            (1.0, 0.842_700_792_949_714_9),
            (2.0, 0.995_322_265_018_952_7),
            (2.5, 0.999_593_047_982_555),
            (3.0, 0.999_977_909_503_001_4),
            (7.0, 1.0),
        ];
        for (x, expected) in cases {
            assert!((erf(x) - expected).abs() < 1e-14, "erf({x}) = {}", erf(x));
            assert_eq!(erf(-x), -erf(x));
        }
    }

    #[test]
    fn select_broadcasts_three_ways() {
        let condition = Array::bool(&[2, 1], vec![true, false]);
        let result = select(
            &condition,
            &Array::int(&[3], vec![1, 2, 3]),
            &Array::int(&[], vec![9]),
        );
        assert_eq!(result, Ok(Array::int(&[2, 3], vec![1, 2, 3, 9, 9, 9])));
    }
}
