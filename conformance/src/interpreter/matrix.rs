//! Products, norms and reductions: everything that sums along an axis.

use super::elementwise;
use super::movement;
use super::shape::{broadcast_shape, broadcast_strides, resolve};
use crate::tensor::{Tensor, index_of};
use rayon::prelude::*;

/// Matrix product over the last two axes; leading axes broadcast.
pub(super) fn matmul(a: &Tensor, b: &Tensor) -> Result<Tensor, String> {
    let (x, y) = (
        a.as_float().ok_or("the inputs are not real")?,
        b.as_float().ok_or("the inputs are not real")?,
    );
    let ([lead_a @ .., m, k], [lead_b @ .., k_b, n]) = (a.shape.as_slice(), b.shape.as_slice()) else {
        return Err(format!("ranks of {:?} and {:?} are below 2", a.shape, b.shape));
    };
    let (m, k, n) = (*m, *k, *n);
    if k != *k_b {
        return Err(format!("shapes {:?} and {:?} do not multiply", a.shape, b.shape));
    }
    let lead = broadcast_shape(lead_a, lead_b)?;
    let (step_a, step_b) = (
        broadcast_strides(lead_a, lead.len()),
        broadcast_strides(lead_b, lead.len()),
    );
    let mut shape = lead.clone();
    shape.extend([m, n]);
    let mut out = vec![0.0; shape.iter().product()];
    if n > 0 {
        out.par_chunks_mut(n).enumerate().for_each_init(
            || vec![0.0_f64; n],
            |sums, (row, out)| {
                let (matrix, row) = (row / m, row % m);
                let place = index_of(&lead, matrix);
                let offset =
                    |steps: &[usize]| place.iter().zip(steps).map(|(i, step)| i * step).sum::<usize>();
                let left = &x[(offset(&step_a) * m + row) * k..][..k];
                let right = &y[offset(&step_b) * k * n..][..k * n];
                sums.fill(0.0);
                for (&factor, row) in left.iter().zip(right.chunks_exact(n)) {
                    add_scaled(sums, row, factor);
                }
                round(sums, out);
            },
        );
    }
    Ok(Tensor::float(&shape, out))
}

/// `a * b` or `a * b^T`, plus a broadcast `c`.
pub(super) fn gemm(a: &Tensor, b: &Tensor, c: Option<&Tensor>, trans_b: bool) -> Result<Tensor, String> {
    if a.shape.len() != 2 || b.shape.len() != 2 {
        return Err(format!(
            "shapes {:?} and {:?} are not of rank 2",
            a.shape, b.shape
        ));
    }
    let product = if trans_b {
        let (x, y) = (
            a.as_float().ok_or("the inputs are not real")?,
            b.as_float().ok_or("the inputs are not real")?,
        );
        let (m, k, n) = (a.shape[0], a.shape[1], b.shape[0]);
        if k != b.shape[1] {
            return Err(format!(
                "shapes {:?} and {:?} transposed do not multiply",
                a.shape, b.shape
            ));
        }
        let dot = |position: usize| {
            let (left, right) = (&x[position / n * k..][..k], &y[position % n * k..][..k]);
            left.iter()
                .zip(right)
                .map(|(&p, &q)| f64::from(p) * f64::from(q))
                .sum::<f64>() as f32
        };
        Tensor::float(&[m, n], (0..m * n).into_par_iter().map(dot).collect())
    } else {
        matmul(a, b)?
    };
    match c {
        Some(c) => super::elementwise::arithmetic(&product, c, |a, b| a + b, |a, _| a),
        None => Ok(product),
    }
}

/// Normalised exponentials along an axis.
pub(super) fn softmax(x: &Tensor, axis: i64) -> Result<Tensor, String> {
    let axis = resolve(axis, x.shape.len())?;
    let mut data = x.as_float().ok_or("the input is not real")?.to_vec();
    let length = x.shape[axis];
    let inner: usize = x.shape[axis + 1..].iter().product();
    if length == 0 || inner == 0 {
        return Ok(Tensor::float(&x.shape, data));
    }
    for block in data.chunks_exact_mut(length * inner) {
        for column in 0..inner {
            let place = |i: usize| i * inner + column;
            let highest = (0..length)
                .map(|i| f64::from(block[place(i)]))
                .fold(f64::NEG_INFINITY, f64::max);
            let powers: Vec<f64> = (0..length)
                .map(|i| (f64::from(block[place(i)]) - highest).exp())
                .collect();
            let sum: f64 = powers.iter().sum();
            for (i, power) in powers.iter().enumerate() {
                block[place(i)] = (power / sum) as f32;
            }
        }
    }
    Ok(Tensor::float(&x.shape, data))
}

/// `softmax(query key^T / sqrt(E) + bias) value`
pub(super) fn attention(
    query: &Tensor,
    key: &Tensor,
    value: &Tensor,
    bias: Option<&Tensor>,
) -> Result<Tensor, String> {
    let rank = key.shape.len();
    let mut perm: Vec<usize> = (0..rank).collect();
    perm.swap(rank.saturating_sub(1), rank.saturating_sub(2));
    let width = query.shape.last().copied().unwrap_or(1) as f64;
    let query = elementwise::map(query, |x| x / width.sqrt())?;
    let mut scores = matmul(&query, &movement::transpose(key, &perm)?)?;
    if let Some(bias) = bias {
        scores = elementwise::arithmetic(&scores, bias, |a, b| a + b, i64::wrapping_add)?;
    }
    matmul(&softmax(&scores, -1)?, value)
}

/// Mean over axes.
pub(super) fn reduce_mean(x: &Tensor, axes: &[i64], keep_dims: bool) -> Result<Tensor, String> {
    let data = x.as_float().ok_or("the input is not real")?;
    let rank = x.shape.len();
    let mut reduced = vec![false; rank];
    for &axis in axes {
        reduced[resolve(axis, rank)?] = true;
    }
    let kept: Vec<usize> = x
        .shape
        .iter()
        .zip(&reduced)
        .map(|(&n, &gone)| if gone { 1 } else { n })
        .collect();
    let steps = broadcast_strides(&kept, rank);
    let mut sums = vec![0.0_f64; kept.iter().product()];
    for (position, &value) in data.iter().enumerate() {
        let target: usize = index_of(&x.shape, position)
            .iter()
            .zip(&steps)
            .map(|(i, step)| i * step)
            .sum();
        sums[target] += f64::from(value);
    }
    let count: usize = x
        .shape
        .iter()
        .zip(&reduced)
        .map(|(&n, &gone)| if gone { n } else { 1 })
        .product();
    let shape: Vec<usize> = x
        .shape
        .iter()
        .zip(&reduced)
        .filter(|(_, gone)| keep_dims || !**gone)
        .zip(&kept)
        .map(|((&n, &gone), _)| if gone { 1 } else { n })
        .collect();
    Ok(Tensor::float(
        &shape,
        sums.iter().map(|sum| (sum / count as f64) as f32).collect(),
    ))
}

/// `(x - mean) / sqrt(variance + epsilon) * scale + bias` over the axes from `axis` on.
pub(super) fn layer_norm(
    x: &Tensor,
    scale: &Tensor,
    bias: &Tensor,
    axis: i64,
    epsilon: f32,
) -> Result<Tensor, String> {
    let axis = resolve(axis, x.shape.len())?;
    let mut data = x.as_float().ok_or("the input is not real")?.to_vec();
    let (scale, bias) = (
        scale.as_float().ok_or("the scale is not real")?,
        bias.as_float().ok_or("the bias is not real")?,
    );
    let length: usize = x.shape[axis..].iter().product();
    if scale.len() != length || bias.len() != length {
        return Err(format!(
            "scale and bias have {} and {} elements, expected {length}",
            scale.len(),
            bias.len()
        ));
    }
    for row in data.chunks_exact_mut(length.max(1)) {
        let mean = row.iter().map(|&v| f64::from(v)).sum::<f64>() / length as f64;
        let variance = row.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / length as f64;
        let divisor = (variance + f64::from(epsilon)).sqrt();
        for ((value, &scale), &bias) in row.iter_mut().zip(scale).zip(bias) {
            *value = ((f64::from(*value) - mean) / divisor * f64::from(scale) + f64::from(bias)) as f32;
        }
    }
    Ok(Tensor::float(&x.shape, data))
}

/// `sums += row * factor`.
pub(super) fn add_scaled(sums: &mut [f64], row: &[f32], factor: f32) {
    let factor = f64::from(factor);
    for (sum, &value) in sums.iter_mut().zip(row) {
        *sum += f64::from(value) * factor;
    }
}

/// Rounds the sums once.
pub(super) fn round(sums: &[f64], out: &mut [f32]) {
    for (out, &sum) in out.iter_mut().zip(sums) {
        *out = sum as f32;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matmul_broadcasts_leading_axes() {
        let a = Tensor::float(&[2, 1, 1, 2], vec![1.0, 2.0, 3.0, 4.0]);
        let b = Tensor::float(&[2, 2, 1], vec![1.0, 0.0, 0.0, 1.0]);
        assert_eq!(
            matmul(&a, &b),
            Ok(Tensor::float(&[2, 2, 1, 1], vec![1.0, 2.0, 3.0, 4.0]))
        );
    }

    #[test]
    fn a_cache_of_length_zero_multiplies() {
        let a = Tensor::float(&[1, 2, 0], vec![]);
        let b = Tensor::float(&[1, 0, 3], vec![]);
        assert_eq!(matmul(&a, &b), Ok(Tensor::float(&[1, 2, 3], vec![0.0; 6])));
    }

    #[test]
    fn means_drop_or_keep_axes() {
        let x = Tensor::float(&[2, 2, 2], vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]);
        assert_eq!(
            reduce_mean(&x, &[1, -1], false),
            Ok(Tensor::float(&[2], vec![2.5, 6.5]))
        );
        assert_eq!(
            reduce_mean(&x, &[0], true),
            Ok(Tensor::float(&[1, 2, 2], vec![3.0, 4.0, 5.0, 6.0]))
        );
    }

    #[test]
    fn softmax_survives_large_numbers() {
        let x = Tensor::float(&[2, 2], vec![1000.0, 1000.0, f32::MIN, 0.0]);
        assert_eq!(
            softmax(&x, -1),
            Ok(Tensor::float(&[2, 2], vec![0.5, 0.5, 0.0, 1.0]))
        );
    }
}
