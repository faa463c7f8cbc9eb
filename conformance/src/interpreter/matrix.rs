//! Products, norms and reductions: everything that sums along an axis.

use super::elementwise;
use super::shape::{broadcast_shape, resolve, spread};
use crate::array::Array;
use ndarray::{Array3, ArrayView2, ArrayViewD, Axis, Dimension as _, Ix2, IxDyn, indices};

/// Matrix product over the last two axes; leading axes broadcast.
pub(super) fn matmul(a: &Array, b: &Array) -> Result<Array, String> {
    let (x, y) = (float64(a, "the inputs are")?, float64(b, "the inputs are")?);
    let (&[ref lead_a @ .., m, k], &[ref lead_b @ .., k_b, n]) = (a.shape(), b.shape()) else {
        return Err(format!(
            "ranks of {:?} and {:?} are below 2",
            a.shape(),
            b.shape()
        ));
    };
    if k != k_b {
        return Err(format!(
            "shapes {:?} and {:?} do not multiply",
            a.shape(),
            b.shape()
        ));
    }
    let lead = broadcast_shape(lead_a, lead_b)?;
    let whole = |last: [usize; 2]| [lead.as_slice(), &last].concat();
    let (x, y) = (spread(&x, &whole([m, k]))?, spread(&y, &whole([k, n]))?);
    let mut out = Array3::<f32>::zeros((lead.iter().product(), m, n));
    for (place, mut out) in indices(IxDyn(&lead)).into_iter().zip(out.outer_iter_mut()) {
        let product = matrix(&x, place.slice())?.dot(&matrix(&y, place.slice())?);
        out.zip_mut_with(&product, |out, &sum| *out = sum as f32);
    }
    Array::from(out)
        .reshaped(&whole([m, n]))
        .map_err(|error| error.to_string())
}

/// The last two axes at a place of the leading ones.
fn matrix<'a>(x: &'a ArrayViewD<'_, f64>, place: &[usize]) -> Result<ArrayView2<'a, f64>, String> {
    let at = |x: ArrayViewD<'a, f64>, &place: &usize| x.index_axis_move(Axis(0), place);
    let matrix = place.iter().fold(x.view(), at);
    matrix.into_dimensionality().map_err(|error| error.to_string())
}

/// Real numbers as sums are kept.
fn float64(x: &Array, what: &str) -> Result<ndarray::ArrayD<f64>, String> {
    let x = x.as_float().ok_or_else(|| format!("{what} not real"))?;
    Ok(x.mapv(f64::from))
}

/// `a * b` or `a * b^T`, plus a broadcast `c`.
pub(super) fn gemm(a: &Array, b: &Array, c: Option<&Array>, trans_b: bool) -> Result<Array, String> {
    if a.shape().len() != 2 || b.shape().len() != 2 {
        return Err(format!(
            "shapes {:?} and {:?} are not of rank 2",
            a.shape(),
            b.shape()
        ));
    }
    let product = if trans_b {
        matmul(a, &turned(b)?)?
    } else {
        matmul(a, b)?
    };
    match c {
        Some(c) => elementwise::arithmetic(&product, c, |a, b| a + b, |a, _| a),
        None => Ok(product),
    }
}

/// The last two axes swapped.
fn turned(x: &Array) -> Result<Array, String> {
    let mut turned = x.as_float().ok_or("the inputs are not real")?.clone();
    let rank = turned.ndim();
    if rank < 2 {
        return Err(format!("shape {:?} has no two axes to swap", x.shape()));
    }
    turned.swap_axes(rank - 2, rank - 1);
    Ok(Array::Float(turned))
}

/// Normalised exponentials along an axis.
pub(super) fn softmax(x: &Array, axis: i64) -> Result<Array, String> {
    let axis = resolve(axis, x.shape().len())?;
    let mut out = x.as_float().ok_or("the input is not real")?.to_owned();
    for mut lane in out.lanes_mut(Axis(axis)) {
        let highest = lane.fold(f64::NEG_INFINITY, |highest, &v| highest.max(f64::from(v)));
        let powers = lane.mapv(|v| (f64::from(v) - highest).exp());
        let sum = powers.sum();
        lane.zip_mut_with(&powers, |out, &power| *out = (power / sum) as f32);
    }
    Ok(Array::from(out))
}

/// `softmax(query key^T / sqrt(E) + bias) value`
pub(super) fn attention(
    query: &Array,
    key: &Array,
    value: &Array,
    bias: Option<&Array>,
) -> Result<Array, String> {
    let width = query.shape().last().copied().unwrap_or(1) as f64;
    let query = elementwise::map(query, |x| x / width.sqrt())?;
    let mut scores = matmul(&query, &turned(key)?)?;
    if let Some(bias) = bias {
        scores = elementwise::arithmetic(&scores, bias, |a, b| a + b, i64::wrapping_add)?;
    }
    matmul(&softmax(&scores, -1)?, value)
}

/// Mean over axes.
pub(super) fn reduce_mean(x: &Array, axes: &[i64], keep_dims: bool) -> Result<Array, String> {
    let mut sums = float64(x, "the input is")?;
    let rank = sums.ndim();
    let mut axes = axes
        .iter()
        .map(|&axis| resolve(axis, rank))
        .collect::<Result<Vec<usize>, String>>()?;
    axes.sort_unstable();
    axes.dedup();
    let count: usize = axes.iter().map(|&axis| x.shape()[axis]).product();
    // The last first: it does not move the others.
    for axis in axes.into_iter().rev().map(Axis) {
        sums = sums.sum_axis(axis);
        if keep_dims {
            sums = sums.insert_axis(axis);
        }
    }
    Ok(Array::from(sums.mapv(|sum| (sum / count as f64) as f32)))
}

/// `(x - mean) / sqrt(variance + epsilon) * scale + bias` over the axes from `axis` on.
pub(super) fn layer_norm(
    x: &Array,
    scale: &Array,
    bias: &Array,
    axis: i64,
    epsilon: f32,
) -> Result<Array, String> {
    let shape = x.shape();
    let axis = resolve(axis, shape.len())?;
    let (outer, length) = (shape[..axis].iter().product(), shape[axis..].iter().product());
    let rows = |x: &Array, what: &str, rows: usize| {
        let problem = |_| format!("{what} of shape {:?}, expected {rows} x {length}", x.shape());
        float64(x, what)?
            .into_shape_clone(Ix2(rows, length))
            .map_err(problem)
    };
    let mut out = rows(x, "the input is", outer)?;
    let (scale, bias) = (rows(scale, "the scale is", 1)?, rows(bias, "the bias is", 1)?);
    for mut row in out.rows_mut() {
        let mean = row.sum() / length as f64;
        let variance = row.mapv(|v| (v - mean).powi(2)).sum() / length as f64;
        let divisor = (variance + f64::from(epsilon)).sqrt();
        row.mapv_inplace(|v| (v - mean) / divisor);
    }
    let out = out * scale + bias;
    let out = Array::from(out.mapv(|v| v as f32));
    out.reshaped(shape).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matmul_broadcasts_leading_axes() {
        let a = Array::float(&[2, 1, 1, 2], vec![1.0, 2.0, 3.0, 4.0]);
        let b = Array::float(&[2, 2, 1], vec![1.0, 0.0, 0.0, 1.0]);
        assert_eq!(
            matmul(&a, &b),
            Ok(Array::float(&[2, 2, 1, 1], vec![1.0, 2.0, 3.0, 4.0]))
        );
    }

    #[test]
    fn a_cache_of_length_zero_multiplies() {
        let a = Array::float(&[1, 2, 0], vec![]);
        let b = Array::float(&[1, 0, 3], vec![]);
        assert_eq!(matmul(&a, &b), Ok(Array::float(&[1, 2, 3], vec![0.0; 6])));
    }

    #[test]
    fn means_drop_or_keep_axes() {
        let x = Array::float(&[2, 2, 2], vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]);
        assert_eq!(
            reduce_mean(&x, &[1, -1], false),
            Ok(Array::float(&[2], vec![2.5, 6.5]))
        );
        assert_eq!(
            reduce_mean(&x, &[0], true),
            Ok(Array::float(&[1, 2, 2], vec![3.0, 4.0, 5.0, 6.0]))
        );
    }

    #[test]
    fn softmax_survives_large_numbers() {
        let x = Array::float(&[2, 2], vec![1000.0, 1000.0, f32::MIN, 0.0]);
        assert_eq!(
            softmax(&x, -1),
            Ok(Array::float(&[2, 2], vec![0.5, 0.5, 0.0, 1.0]))
        );
    }
}
