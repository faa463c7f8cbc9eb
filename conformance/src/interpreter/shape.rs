//! Axes and shapes: what every kind of operator asks first.

use ndarray::{ArrayBase, ArrayViewD, Data, IxDyn};

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

/// `x` repeated to a shape that [`broadcast_shape`] gave.
pub(super) fn spread<'a, S: Data>(
    x: &'a ArrayBase<S, IxDyn>,
    shape: &[usize],
) -> Result<ArrayViewD<'a, S::Elem>, String> {
    x.broadcast(shape)
        .ok_or_else(|| format!("shape {:?} does not broadcast to {shape:?}", x.shape()))
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
