//! Operators that look at one element of each input at a time, with ONNX's broadcasting.

use super::shape::{broadcast_shape, broadcast_strides};
use crate::tensor::{Data, Tensor};

/// Applies `f` to every real number.
pub(super) fn map(x: &Tensor, f: impl Fn(f64) -> f64) -> Result<Tensor, String> {
    let data = x.as_float().ok_or("the input is not real")?;
    Ok(Tensor::float(
        &x.shape,
        data.iter().map(|&v| f(f64::from(v)) as f32).collect(),
    ))
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
pub(super) fn negate(x: &Tensor) -> Result<Tensor, String> {
    let data = match &x.data {
        Data::Float(data) => Data::Float(data.iter().map(|v| -v).collect()),
        Data::Int(data) => Data::Int(data.iter().map(|v| v.wrapping_neg()).collect()),
        Data::Bool(_) => return Err("truth values cannot be negated".to_owned()),
    };
    Ok(Tensor {
        shape: x.shape.clone(),
        data,
    })
}

/// A binary operator on reals or integers.
pub(super) fn arithmetic(
    a: &Tensor,
    b: &Tensor,
    real: impl Fn(f64, f64) -> f64,
    integer: impl Fn(i64, i64) -> i64,
) -> Result<Tensor, String> {
    match (&a.data, &b.data) {
        (Data::Float(x), Data::Float(y)) => {
            let (shape, data) = broadcast(&a.shape, &b.shape, |i, j| {
                real(f64::from(x[i]), f64::from(y[j])) as f32
            })?;
            Ok(Tensor {
                shape,
                data: Data::Float(data),
            })
        }
        (Data::Int(x), Data::Int(y)) => {
            let (shape, data) = broadcast(&a.shape, &b.shape, |i, j| integer(x[i], y[j]))?;
            Ok(Tensor {
                shape,
                data: Data::Int(data),
            })
        }
        _ => Err("the inputs are of two types".to_owned()),
    }
}

/// `a <= b`.
pub(super) fn less_or_equal(a: &Tensor, b: &Tensor) -> Result<Tensor, String> {
    let (shape, data) = match (&a.data, &b.data) {
        (Data::Float(x), Data::Float(y)) => broadcast(&a.shape, &b.shape, |i, j| x[i] <= y[j])?,
        (Data::Int(x), Data::Int(y)) => broadcast(&a.shape, &b.shape, |i, j| x[i] <= y[j])?,
        _ => return Err("the inputs are of two types".to_owned()),
    };
    Ok(Tensor {
        shape,
        data: Data::Bool(data),
    })
}

/// Logical and.
pub(super) fn and(a: &Tensor, b: &Tensor) -> Result<Tensor, String> {
    match (&a.data, &b.data) {
        (Data::Bool(x), Data::Bool(y)) => {
            let (shape, data) = broadcast(&a.shape, &b.shape, |i, j| x[i] && y[j])?;
            Ok(Tensor {
                shape,
                data: Data::Bool(data),
            })
        }
        _ => Err("the inputs are not truth values".to_owned()),
    }
}

/// `condition ? a : b`.
pub(super) fn select(condition: &Tensor, a: &Tensor, b: &Tensor) -> Result<Tensor, String> {
    let Data::Bool(chosen) = &condition.data else {
        return Err("the condition is not truth values".to_owned());
    };
    // Positions first, then values: broadcasting three tensors is broadcasting two twice.
    let (shape, pairs) = broadcast(&a.shape, &b.shape, |i, j| (i, j))?;
    let (shape, picks) = broadcast(&condition.shape, &shape, |i, j| (chosen[i], pairs[j]))?;
    let data = match (&a.data, &b.data) {
        (Data::Float(x), Data::Float(y)) => Data::Float(
            picks
                .iter()
                .map(|&(first, (i, j))| if first { x[i] } else { y[j] })
                .collect(),
        ),
        (Data::Int(x), Data::Int(y)) => Data::Int(
            picks
                .iter()
                .map(|&(first, (i, j))| if first { x[i] } else { y[j] })
                .collect(),
        ),
        _ => return Err("the inputs are of two types".to_owned()),
    };
    Ok(Tensor { shape, data })
}

/// Calls `f` with the flat positions in both inputs of every element of the broadcast shape, row-major.
fn broadcast<T>(
    a: &[usize],
    b: &[usize],
    mut f: impl FnMut(usize, usize) -> T,
) -> Result<(Vec<usize>, Vec<T>), String> {
    let shape = broadcast_shape(a, b)?;
    let count = shape.iter().product();
    let mut out = Vec::with_capacity(count);
    if a == b {
        out.extend((0..count).map(|i| f(i, i)));
        return Ok((shape, out));
    }
    let (step_a, step_b) = (
        broadcast_strides(a, shape.len()),
        broadcast_strides(b, shape.len()),
    );
    let mut index = vec![0; shape.len()];
    let (mut at_a, mut at_b) = (0, 0);
    for _ in 0..count {
        out.push(f(at_a, at_b));
        for axis in (0..shape.len()).rev() {
            index[axis] += 1;
            at_a += step_a[axis];
            at_b += step_b[axis];
            if index[axis] < shape[axis] {
                break;
            }
            at_a -= step_a[axis] * shape[axis];
            at_b -= step_b[axis] * shape[axis];
            index[axis] = 0;
        }
    }
    Ok((shape, out))
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
        let condition = Tensor::bool(&[2, 1], vec![true, false]);
        let result = select(
            &condition,
            &Tensor::int(&[3], vec![1, 2, 3]),
            &Tensor::int(&[], vec![9]),
        );
        assert_eq!(result, Ok(Tensor::int(&[2, 3], vec![1, 2, 3, 9, 9, 9])));
    }
}
