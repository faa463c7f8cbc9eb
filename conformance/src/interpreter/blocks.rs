//! Weights of 8 and 4 bits: the numbers that codes and scales stand for.

use crate::array::Array;
use models::graph::Blocks;
use ndarray::{ArrayD, Axis};

/// `codes * scales`, a scale for each index of an axis.
pub(super) fn dequantized(codes: &Array, scales: &Array, axis: u64) -> Result<Array, String> {
    let codes = codes.as_int().ok_or("the codes are not integers")?;
    let scales = scales.as_float().ok_or("the scales are not real")?;
    let axis = usize::try_from(axis).unwrap_or(usize::MAX);
    if codes.shape().get(axis) != Some(&scales.len()) {
        return Err(format!(
            "{} scales for axis {axis} of {:?}",
            scales.len(),
            codes.shape()
        ));
    }
    let mut numbers: ArrayD<f32> = codes.mapv(|code| code as f32);
    for (mut part, scale) in numbers.axis_iter_mut(Axis(axis)).zip(scales) {
        part.mapv_inplace(|number| number * scale);
    }
    Ok(Array::from(numbers))
}

/// The matrix `[N,width]` whose codes lie in blocks `[N,count,bytes]`.
pub(super) fn numbers(codes: &Array, scales: &Array, blocks: Blocks, width: u64) -> Result<Array, String> {
    let &[rows, count, bytes] = codes.shape() else {
        return Err(format!("the codes have shape {:?}", codes.shape()));
    };
    let lines = codes
        .reshaped(&[rows, count * bytes])
        .map_err(|error| error.to_string())?;
    let padded = self::rows(&lines, scales, blocks)?;
    Ok(padded.part(1, 0..usize::try_from(width).unwrap_or(usize::MAX)))
}

/// Rows of codes `[..,count * bytes]` with scales `[..,count]` as numbers, padding included.
fn rows(codes: &Array, scales: &Array, blocks: Blocks) -> Result<Array, String> {
    let elements = codes.as_int().ok_or("the codes are not integers")?;
    let factors = scales.as_float().ok_or("the scales are not real")?;
    let whole = |number: u64| usize::try_from(number).unwrap_or(usize::MAX);
    let size = whole(blocks.size);
    let zero = 1_i64 << (blocks.bits - 1);
    let mut numbers = Vec::with_capacity(2 * elements.len());
    for code in elements {
        if blocks.bits == 4 {
            numbers.extend([code & 15, code >> 4].map(|code| (code - zero) as f32));
        } else {
            numbers.push((code - zero) as f32);
        }
    }
    let factors: Vec<f32> = factors.iter().copied().collect();
    if factors.len() * size != numbers.len() {
        return Err(format!("{} scales for {} numbers", factors.len(), numbers.len()));
    }
    for (block, factor) in numbers.chunks_mut(size).zip(factors) {
        block.iter_mut().for_each(|number| *number *= factor);
    }
    let mut shape = codes.shape().to_vec();
    if let Some(last) = shape.last_mut() {
        *last = *last * 8 / whole(blocks.bits);
    }
    Ok(Array::float(&shape, numbers))
}
