//! Axes and shapes, without elements: what every kind of operator asks first.

use crate::tensor::strides_of;

/// An axis that may count from the back.
pub(super) fn resolve(axis: i64, rank: usize) -> Result<usize, String> {
    let from_front = if axis < 0 {
        axis + i64::try_from(rank).unwrap_or(i64::MAX)
    } else {
        axis
    };
    usize::try_from(from_front)
        .ok()
        .filter(|&axis| axis < rank)
        .ok_or_else(|| format!("axis {axis} is outside rank {rank}"))
}

/// The common shape of two inputs: aligned at the back, a length of 1 is repeated.
pub(super) fn broadcast_shape(a: &[usize], b: &[usize]) -> Result<Vec<usize>, String> {
    let rank = a.len().max(b.len());
    let length =
        |shape: &[usize], axis: usize| (axis + shape.len()).checked_sub(rank).map_or(1, |at| shape[at]);
    (0..rank)
        .map(|axis| match (length(a, axis), length(b, axis)) {
            (x, y) if x == y => Ok(x),
            (1, y) => Ok(y),
            (x, 1) => Ok(x),
            _ => Err(format!("shapes {a:?} and {b:?} do not broadcast")),
        })
        .collect()
}

/// Strides of a shape inside a broadcast shape of the given rank: 0 where it is repeated.
pub(super) fn broadcast_strides(shape: &[usize], rank: usize) -> Vec<usize> {
    let mut strides = vec![0; rank - shape.len()];
    strides.extend(
        shape
            .iter()
            .zip(strides_of(shape))
            .map(|(&length, stride)| if length == 1 { 0 } else { stride }),
    );
    strides
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_broadcast_from_the_back() {
        assert_eq!(broadcast_shape(&[2, 1, 3], &[4, 1]), Ok(vec![2, 4, 3]));
        assert_eq!(broadcast_shape(&[], &[0, 2]), Ok(vec![0, 2]));
        assert!(broadcast_shape(&[2, 3], &[2]).is_err());
    }
}
