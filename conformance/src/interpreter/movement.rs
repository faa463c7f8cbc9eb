//! Operators that move elements without changing them.

use super::shape::resolve;
use crate::tensor::{Data, Tensor, strides_of};

/// Builds a tensor of `shape` from flat positions of `x`.
fn pick(x: &Tensor, shape: Vec<usize>, positions: impl Iterator<Item = usize>) -> Tensor {
    let data = match &x.data {
        Data::Float(data) => Data::Float(positions.map(|at| data[at]).collect()),
        Data::Int(data) => Data::Int(positions.map(|at| data[at]).collect()),
        Data::Bool(data) => Data::Bool(positions.map(|at| data[at]).collect()),
    };
    Tensor { shape, data }
}

/// Output axis `i` is input axis `perm[i]`.
pub(super) fn transpose(x: &Tensor, perm: &[usize]) -> Result<Tensor, String> {
    let mut sorted = perm.to_vec();
    sorted.sort_unstable();
    if sorted != (0..x.shape.len()).collect::<Vec<_>>() {
        return Err(format!("{perm:?} does not permute the axes of {:?}", x.shape));
    }
    let strides = strides_of(&x.shape);
    let shape: Vec<usize> = perm.iter().map(|&axis| x.shape[axis]).collect();
    let steps: Vec<usize> = perm.iter().map(|&axis| strides[axis]).collect();
    let mut index = vec![0; shape.len()];
    let mut at = 0;
    let count = x.len();
    let positions = (0..count).map(|_| {
        let here = at;
        for axis in (0..shape.len()).rev() {
            index[axis] += 1;
            at += steps[axis];
            if index[axis] < shape[axis] {
                break;
            }
            at -= steps[axis] * shape[axis];
            index[axis] = 0;
        }
        here
    });
    Ok(pick(x, shape.clone(), positions.collect::<Vec<_>>().into_iter()))
}

/// Inputs joined along an axis.
pub(super) fn concat(inputs: &[&Tensor], axis: i64) -> Result<Tensor, String> {
    let first = inputs.first().ok_or("no input")?;
    let axis = resolve(axis, first.shape.len())?;
    let mut shape = first.shape.clone();
    shape[axis] = 0;
    for input in inputs {
        let mut other = input.shape.clone();
        if other.len() != shape.len() {
            return Err(format!(
                "shapes {:?} and {:?} do not join",
                first.shape, input.shape
            ));
        }
        let length = std::mem::take(&mut other[axis]);
        let total = std::mem::take(&mut shape[axis]);
        if other != shape {
            return Err(format!(
                "shapes {:?} and {:?} do not join",
                first.shape, input.shape
            ));
        }
        shape[axis] = total + length;
    }
    let outer: usize = shape[..axis].iter().product();
    let widths: Vec<usize> = inputs
        .iter()
        .map(|input| input.shape[axis..].iter().product())
        .collect();
    let mut result = pick(first, vec![0], std::iter::empty());
    for row in 0..outer {
        for (input, &width) in inputs.iter().zip(&widths) {
            let range = row * width..(row + 1) * width;
            match (&mut result.data, &input.data) {
                (Data::Float(out), Data::Float(data)) => out.extend_from_slice(&data[range]),
                (Data::Int(out), Data::Int(data)) => out.extend_from_slice(&data[range]),
                (Data::Bool(out), Data::Bool(data)) => out.extend_from_slice(&data[range]),
                _ => return Err("the inputs are of two types".to_owned()),
            }
        }
    }
    result.shape = shape;
    Ok(result)
}

/// Slices of `data` along an axis, by index; negative ones count from the end.
pub(super) fn gather(data: &Tensor, indices: &Tensor, axis: i64) -> Result<Tensor, String> {
    let axis = resolve(axis, data.shape.len())?;
    let length = data.shape[axis];
    let wanted = indices.as_int().ok_or("the indices are not integers")?;
    let mut rows = Vec::with_capacity(wanted.len());
    for &index in wanted {
        let signed = i64::try_from(length).unwrap_or(i64::MAX);
        let row = usize::try_from(if index < 0 { index + signed } else { index })
            .ok()
            .filter(|&row| row < length);
        rows.push(row.ok_or_else(|| format!("index {index} is outside axis {axis} of length {length}"))?);
    }
    let outer: usize = data.shape[..axis].iter().product();
    let inner: usize = data.shape[axis + 1..].iter().product();
    let mut shape = data.shape[..axis].to_vec();
    shape.extend(&indices.shape);
    shape.extend(&data.shape[axis + 1..]);
    let positions = (0..outer)
        .flat_map(|block| rows.iter().map(move |row| (block * length + row) * inner))
        .flat_map(|start| start..start + inner);
    Ok(pick(data, shape, positions))
}

/// Elements from `start` to `end` along an axis, ONNX bounds.
pub(super) fn slice(x: &Tensor, axis: i64, start: i64, end: i64) -> Result<Tensor, String> {
    let axis = resolve(axis, x.shape.len())?;
    let length = x.shape[axis];
    let signed = i64::try_from(length).unwrap_or(i64::MAX);
    let bound = |at: i64| {
        let from_front = if at < 0 { at.saturating_add(signed) } else { at };
        usize::try_from(from_front.clamp(0, signed)).unwrap_or(0)
    };
    let (start, end) = (bound(start), bound(end));
    Ok(part(x, axis, start, end.max(start)))
}

fn part(x: &Tensor, axis: usize, start: usize, end: usize) -> Tensor {
    let outer: usize = x.shape[..axis].iter().product();
    let inner: usize = x.shape[axis + 1..].iter().product();
    let width = x.shape[axis] * inner;
    let mut shape = x.shape.clone();
    shape[axis] = end - start;
    pick(
        x,
        shape,
        (0..outer).flat_map(|row| row * width + start * inner..row * width + end * inner),
    )
}

/// Parts of the given sizes along an axis.
pub(super) fn split(x: &Tensor, axis: i64, sizes: &[u64]) -> Result<Vec<Tensor>, String> {
    let axis = resolve(axis, x.shape.len())?;
    let sizes: Vec<usize> = sizes
        .iter()
        .map(|&n| usize::try_from(n).unwrap_or(usize::MAX))
        .collect();
    if sizes.iter().fold(0, |sum: usize, &n| sum.saturating_add(n)) != x.shape[axis] {
        return Err(format!("sizes {sizes:?} do not add up to {}", x.shape[axis]));
    }
    let mut start = 0;
    Ok(sizes
        .iter()
        .map(|&size| {
            start += size;
            part(x, axis, start - size, start)
        })
        .collect())
}

/// `data` with `update` written at `begin`, one index for each axis.
pub(super) fn slice_update(data: &Tensor, update: &Tensor, begin: &Tensor) -> Result<Tensor, String> {
    let begin = begin.as_int().ok_or("the indices are not integers")?;
    let (to, from) = (strides_of(&data.shape), strides_of(&update.shape));
    let mut out = data.clone();
    let (Data::Float(target), Some(source)) = (&mut out.data, update.as_float()) else {
        return Err("only real numbers are updated".to_owned());
    };
    for (index, value) in source.iter().enumerate() {
        let mut place = 0;
        for (axis, stride) in from.iter().enumerate() {
            let within = index / stride % update.shape[axis];
            let start = usize::try_from(begin[axis]).map_err(|_| "a negative index")?;
            if start + update.shape[axis] > data.shape[axis] {
                return Err(format!("axis {axis} ends before {}", start + update.shape[axis]));
            }
            place += (start + within) * to[axis];
        }
        target[place] = *value;
    }
    Ok(out)
}

/// New shape: 0 copies, one -1 is computed.
pub(super) fn reshape(x: &Tensor, target: &[i64]) -> Result<Tensor, String> {
    let problem = || format!("shape {:?} cannot become {target:?}", x.shape);
    let mut shape = Vec::with_capacity(target.len());
    let mut open = None;
    for (axis, &wanted) in target.iter().enumerate() {
        shape.push(match wanted {
            0 => *x.shape.get(axis).ok_or_else(problem)?,
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
    if shape.iter().product::<usize>() != x.len() {
        return Err(problem());
    }
    Ok(x.clone().reshaped(&shape))
}

/// Axes of length 1 inserted; positions count in the output.
pub(super) fn unsqueeze(x: &Tensor, axes: &[i64]) -> Result<Tensor, String> {
    let rank = x.shape.len() + axes.len();
    let mut inserted = vec![false; rank];
    for &axis in axes {
        inserted[resolve(axis, rank)?] = true;
    }
    let mut old = x.shape.iter();
    let shape: Vec<usize> = inserted
        .iter()
        .map(|&new| if new { 1 } else { old.next().copied().unwrap_or(1) })
        .collect();
    if old.next().is_some() {
        return Err(format!("axes {axes:?} repeat"));
    }
    Ok(x.clone().reshaped(&shape))
}

/// Axes of length 1 removed.
pub(super) fn squeeze(x: &Tensor, axes: &[i64]) -> Result<Tensor, String> {
    let rank = x.shape.len();
    let mut removed = vec![false; rank];
    for &axis in axes {
        let axis = resolve(axis, rank)?;
        if x.shape[axis] != 1 {
            return Err(format!("axis {axis} of {:?} is not of length 1", x.shape));
        }
        removed[axis] = true;
    }
    let shape: Vec<usize> = x
        .shape
        .iter()
        .zip(&removed)
        .filter(|(_, gone)| !**gone)
        .map(|(&length, _)| length)
        .collect();
    Ok(x.clone().reshaped(&shape))
}

/// The dimensions from `start` to `end`.
pub(super) fn shape(x: &Tensor, start: i64, end: i64) -> Result<Tensor, String> {
    let dims: Vec<i64> = x
        .shape
        .iter()
        .map(|&n| i64::try_from(n).unwrap_or(i64::MAX))
        .collect();
    slice(&Tensor::int(&[dims.len()], dims), 0, start, end)
}

/// `start, start + delta, ..` below `limit`.
pub(super) fn range(start: &Tensor, limit: &Tensor, delta: &Tensor) -> Result<Tensor, String> {
    let scalar = |x: &Tensor| match x.as_int() {
        Some(&[value]) if x.shape.is_empty() => Ok(value),
        _ => Err(format!("shape {:?} is not an integer scalar", x.shape)),
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
    Ok(Tensor::int(&[values.len()], values))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(shape: &[usize]) -> Tensor {
        Tensor::int(shape, (0..shape.iter().product::<usize>() as i64).collect())
    }

    #[test]
    fn movements_by_hand() {
        let x = counted(&[2, 3]);
        let cases: Vec<(&str, Result<Tensor, String>, Tensor)> = vec![
            (
                "transpose",
                transpose(&x, &[1, 0]),
                Tensor::int(&[3, 2], vec![0, 3, 1, 4, 2, 5]),
            ),
            (
                "concat",
                concat(&[&x, &x], 1),
                Tensor::int(&[2, 6], vec![0, 1, 2, 0, 1, 2, 3, 4, 5, 3, 4, 5]),
            ),
            (
                "gather",
                gather(&x, &Tensor::int(&[2], vec![2, -3]), 1),
                Tensor::int(&[2, 2], vec![2, 0, 5, 3]),
            ),
            (
                "slice to the end",
                slice(&x, 1, 1, i64::MAX),
                Tensor::int(&[2, 2], vec![1, 2, 4, 5]),
            ),
            (
                "slice from the end",
                slice(&x, -1, -1, i64::MAX),
                Tensor::int(&[2, 1], vec![2, 5]),
            ),
            ("empty slice", slice(&x, 0, 2, 1), Tensor::int(&[0, 3], vec![])),
            (
                "reshape",
                reshape(&x, &[0, -1, 1]),
                Tensor::int(&[2, 3, 1], vec![0, 1, 2, 3, 4, 5]),
            ),
            ("unsqueeze", unsqueeze(&x, &[0, -1]), counted(&[1, 2, 3, 1])),
            ("squeeze", squeeze(&counted(&[1, 2, 1]), &[0, 2]), counted(&[2])),
            ("shape", shape(&x, -1, i64::MAX), Tensor::int(&[1], vec![3])),
            (
                "range",
                range(
                    &Tensor::int(&[], vec![2]),
                    &Tensor::int(&[], vec![5]),
                    &Tensor::int(&[], vec![1]),
                ),
                Tensor::int(&[3], vec![2, 3, 4]),
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
        assert!(gather(&x, &Tensor::int(&[1], vec![3]), 1).is_err());
        assert!(reshape(&x, &[4, -1]).is_err());
        assert!(squeeze(&x, &[0]).is_err());
        assert!(split(&x, 1, &[1, 1]).is_err());
        assert!(concat(&[&x, &counted(&[3, 3])], 1).is_err());
    }
}
