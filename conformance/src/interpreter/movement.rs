//! Operators that move elements without changing them. Most only say anew in which order or shape the elements are.

use super::shape::resolve;
use crate::array::{Array, Shared, each};
use ndarray::{Array1, Axis, Ix0, Slice, concatenate};

/// Output axis `i` is input axis `perm[i]`.
pub(super) fn transpose(x: &Array, perm: &[usize]) -> Result<Array, String> {
    let mut sorted = perm.to_vec();
    sorted.sort_unstable();
    if sorted != (0..x.shape().len()).collect::<Vec<_>>() {
        return Err(format!("{perm:?} does not permute the axes of {:?}", x.shape()));
    }
    Ok(each!(x, x => x.clone().permuted_axes(perm)))
}

/// Inputs joined along an axis.
pub(super) fn concat(inputs: &[&Array], axis: i64) -> Result<Array, String> {
    let first = inputs.first().ok_or("no input")?;
    let axis = Axis(resolve(axis, first.shape().len())?);
    match first {
        Array::Float(_) => joined(inputs, axis, Array::as_float).map(Array::Float),
        Array::Int(_) => joined(inputs, axis, Array::as_int).map(Array::Int),
        Array::Bool(_) => joined(inputs, axis, Array::as_bool).map(Array::Bool),
    }
}

fn joined<T: Clone>(
    inputs: &[&Array],
    axis: Axis,
    elements: fn(&Array) -> Option<&Shared<T>>,
) -> Result<Shared<T>, String> {
    let problem = || {
        let shapes: Vec<&[usize]> = inputs.iter().map(|input| input.shape()).collect();
        format!("shapes {shapes:?} do not join")
    };
    let mut views = Vec::with_capacity(inputs.len());
    for input in inputs {
        views.push(elements(input).ok_or("the inputs are of two types")?.view());
    }
    if views.iter().any(|view| view.ndim() != views[0].ndim()) {
        return Err(problem());
    }
    let joined = concatenate(axis, &views).map_err(|_| problem())?;
    Ok(joined.into_shared())
}

/// Slices of `data` along an axis, by index; negative ones count from the end.
pub(super) fn gather(data: &Array, indices: &Array, axis: i64) -> Result<Array, String> {
    let shape = data.shape();
    let axis = resolve(axis, shape.len())?;
    let length = shape[axis];
    let wanted = indices.as_int().ok_or("the indices are not integers")?;
    let mut places = Vec::with_capacity(wanted.len());
    for &index in wanted {
        let signed = i64::try_from(length).unwrap_or(i64::MAX);
        let place = usize::try_from(if index < 0 { index + signed } else { index })
            .ok()
            .filter(|&place| place < length);
        places.push(place.ok_or_else(|| format!("index {index} is outside axis {axis} of length {length}"))?);
    }
    let shape = [&shape[..axis], indices.shape(), &shape[axis + 1..]].concat();
    let gathered = data.select(axis, &places).reshaped(&shape);
    gathered.map_err(|error| error.to_string())
}

/// Elements from `start` to `end` along an axis, ONNX bounds.
pub(super) fn slice(x: &Array, axis: i64, start: i64, end: i64) -> Result<Array, String> {
    let axis = resolve(axis, x.shape().len())?;
    let signed = i64::try_from(x.shape()[axis]).unwrap_or(i64::MAX);
    let bound = |at: i64| {
        let from_front = if at < 0 { at.saturating_add(signed) } else { at };
        usize::try_from(from_front.clamp(0, signed)).unwrap_or(0)
    };
    let (start, end) = (bound(start), bound(end));
    Ok(x.part(axis, start..end.max(start)))
}

/// Parts of the given sizes along an axis.
pub(super) fn split(x: &Array, axis: i64, sizes: &[u64]) -> Result<Vec<Array>, String> {
    let axis = resolve(axis, x.shape().len())?;
    let length = x.shape()[axis];
    let sizes: Vec<usize> = sizes
        .iter()
        .map(|&n| usize::try_from(n).unwrap_or(usize::MAX))
        .collect();
    if sizes.iter().fold(0, |sum: usize, &n| sum.saturating_add(n)) != length {
        return Err(format!("sizes {sizes:?} do not add up to {length}"));
    }
    let mut start = 0;
    let part = |&size: &usize| {
        start += size;
        x.part(axis, start - size..start)
    };
    Ok(sizes.iter().map(part).collect())
}

/// `data` with `update` written at `begin`, one index for each axis.
pub(super) fn slice_update(data: &Array, update: &Array, begin: &Array) -> Result<Array, String> {
    let begin = begin.as_int().ok_or("the indices are not integers")?;
    let (Some(data), Some(update)) = (data.as_float(), update.as_float()) else {
        return Err("only real numbers are updated".to_owned());
    };
    if update.ndim() != data.ndim() || begin.shape() != [data.ndim()] {
        let (data, update, begin) = (data.shape(), update.shape(), begin.shape());
        return Err(format!(
            "{update:?} at an index of shape {begin:?} does not fit {data:?}"
        ));
    }
    let mut places = Vec::with_capacity(data.ndim());
    for (axis, (&start, &length)) in begin.iter().zip(update.shape()).enumerate() {
        let start = usize::try_from(start).map_err(|_| "a negative index")?;
        let end = start.saturating_add(length);
        if end > data.shape()[axis] {
            return Err(format!("axis {axis} ends before {end}"));
        }
        places.push(start..end);
    }
    let mut out = data.clone();
    out.slice_each_axis_mut(|axis| Slice::from(places[axis.axis.index()].clone()))
        .assign(update);
    Ok(Array::Float(out))
}

/// New shape: 0 copies, one -1 is computed.
pub(super) fn reshape(x: &Array, target: &[i64]) -> Result<Array, String> {
    let problem = || format!("shape {:?} cannot become {target:?}", x.shape());
    let mut shape = Vec::with_capacity(target.len());
    let mut open = None;
    for (axis, &wanted) in target.iter().enumerate() {
        shape.push(match wanted {
            0 => *x.shape().get(axis).ok_or_else(problem)?,
            -1 if open.is_none() => {
                open = Some(axis);
                1
            }
            _ => usize::try_from(wanted).map_err(|_| problem())?,
        });
    }
    if let Some(axis) = open {
        let rest: usize = shape.iter().product();
        // An empty tensor leaves the open length undefined; ONNX calls that an error.
        if rest == 0 || !x.len().is_multiple_of(rest) {
            return Err(problem());
        }
        shape[axis] = x.len() / rest;
    }
    x.reshaped(&shape).map_err(|_| problem())
}

/// Axes of length 1 inserted; positions count in the output.
pub(super) fn unsqueeze(x: &Array, axes: &[i64]) -> Result<Array, String> {
    let rank = x.shape().len() + axes.len();
    let mut inserted = axes
        .iter()
        .map(|&axis| resolve(axis, rank))
        .collect::<Result<Vec<usize>, String>>()?;
    inserted.sort_unstable();
    if inserted.windows(2).any(|pair| pair[0] == pair[1]) {
        return Err(format!("axes {axes:?} repeat"));
    }
    let mut shape = x.shape().to_vec();
    for axis in inserted {
        shape.insert(axis, 1);
    }
    x.reshaped(&shape).map_err(|error| error.to_string())
}

/// Axes of length 1 removed.
pub(super) fn squeeze(x: &Array, axes: &[i64]) -> Result<Array, String> {
    let mut shape: Vec<Option<usize>> = x.shape().iter().copied().map(Some).collect();
    for &axis in axes {
        let axis = resolve(axis, shape.len())?;
        if x.shape()[axis] != 1 {
            return Err(format!("axis {axis} of {:?} is not of length 1", x.shape()));
        }
        shape[axis] = None;
    }
    let shape: Vec<usize> = shape.into_iter().flatten().collect();
    x.reshaped(&shape).map_err(|error| error.to_string())
}

/// The dimensions from `start` to `end`.
pub(super) fn shape(x: &Array, start: i64, end: i64) -> Result<Array, String> {
    let dims = x.shape().iter().map(|&n| i64::try_from(n).unwrap_or(i64::MAX));
    slice(&Array::from(Array1::from_iter(dims)), 0, start, end)
}

/// `start, start + delta, ..` below `limit`.
pub(super) fn range(start: &Array, limit: &Array, delta: &Array) -> Result<Array, String> {
    let scalar = |x: &Array| match x.as_int().map(|x| x.view().into_dimensionality::<Ix0>()) {
        Some(Ok(x)) => Ok(*x.into_scalar()),
        _ => Err(format!("shape {:?} is not an integer scalar", x.shape())),
    };
    let (start, limit, delta) = (scalar(start)?, scalar(limit)?, scalar(delta)?);
    if delta == 0 {
        return Err("a step of 0".to_owned());
    }
    let mut values = Vec::new();
    let mut next = start;
    while (delta > 0 && next < limit) || (delta < 0 && next > limit) {
        values.push(next);
        next += delta;
    }
    Ok(Array::from(Array1::from(values)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(shape: &[usize]) -> Array {
        Array::int(shape, (0..shape.iter().product::<usize>() as i64).collect())
    }

    #[test]
    fn movements_by_hand() {
        let x = counted(&[2, 3]);
        let cases: Vec<(&str, Result<Array, String>, Array)> = vec![
            (
                "transpose",
                transpose(&x, &[1, 0]),
                Array::int(&[3, 2], vec![0, 3, 1, 4, 2, 5]),
            ),
            (
                "concat",
                concat(&[&x, &x], 1),
                Array::int(&[2, 6], vec![0, 1, 2, 0, 1, 2, 3, 4, 5, 3, 4, 5]),
            ),
            (
                "gather",
                gather(&x, &Array::int(&[2], vec![2, -3]), 1),
                Array::int(&[2, 2], vec![2, 0, 5, 3]),
            ),
            (
                "slice to the end",
                slice(&x, 1, 1, i64::MAX),
                Array::int(&[2, 2], vec![1, 2, 4, 5]),
            ),
            (
                "slice from the end",
                slice(&x, -1, -1, i64::MAX),
                Array::int(&[2, 1], vec![2, 5]),
            ),
            ("empty slice", slice(&x, 0, 2, 1), Array::int(&[0, 3], vec![])),
            (
                "reshape",
                reshape(&x, &[0, -1, 1]),
                Array::int(&[2, 3, 1], vec![0, 1, 2, 3, 4, 5]),
            ),
            ("unsqueeze", unsqueeze(&x, &[0, -1]), counted(&[1, 2, 3, 1])),
            ("squeeze", squeeze(&counted(&[1, 2, 1]), &[0, 2]), counted(&[2])),
            ("shape", shape(&x, -1, i64::MAX), Array::int(&[1], vec![3])),
            (
                "range",
                range(
                    &Array::int(&[], vec![2]),
                    &Array::int(&[], vec![5]),
                    &Array::int(&[], vec![1]),
                ),
                Array::int(&[3], vec![2, 3, 4]),
            ),
        ];
        for (what, found, expected) in cases {
            assert_eq!(found, Ok(expected), "{what}");
        }
    }

    #[test]
    fn impossible_movements_are_refused() {
        let x = counted(&[2, 3]);
        assert!(transpose(&x, &[0, 0]).is_err());
        assert!(gather(&x, &Array::int(&[1], vec![3]), 1).is_err());
        assert!(reshape(&x, &[4, -1]).is_err());
        assert!(squeeze(&x, &[0]).is_err());
        assert!(split(&x, 1, &[1, 1]).is_err());
        assert!(concat(&[&x, &counted(&[3, 3])], 1).is_err());
    }
}
