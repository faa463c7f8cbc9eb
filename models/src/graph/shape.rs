//! The dtype and shape rule of every operator.

use super::{Dim, Op, Value, blocks};
use crate::dtype::DType;
use crate::fused;
pub(super) use crate::fused::show;

/// dtype and shape of each output.
type Outputs = Vec<(DType, Vec<Dim>)>;

/// Applies the operator's rule to its inputs. The error says what was expected and what was found.
pub(super) fn infer(op: &Op, inputs: &[&Value]) -> Result<Outputs, String> {
    arity(op, inputs.len())?;
    let one = |dtype, shape| Ok(vec![(dtype, shape)]);
    match op {
        Op::Add | Op::Sub | Op::Mul | Op::Div => {
            let dtype = same_dtype(inputs)?;
            one(dtype, broadcast(&inputs[0].shape, &inputs[1].shape)?)
        }
        Op::Neg | Op::Sqrt | Op::Cos | Op::Sin | Op::Sigmoid | Op::Relu | Op::Gelu => {
            one(float(inputs[0])?, inputs[0].shape.clone())
        }
        Op::Softmax { axis } => {
            position(*axis, inputs[0].shape.len())?;
            one(float(inputs[0])?, inputs[0].shape.clone())
        }
        Op::MatMul => {
            let dtype = same_dtype(inputs)?;
            one(dtype, matmul(&inputs[0].shape, &inputs[1].shape)?)
        }
        Op::Gemm { trans_b } => {
            let dtype = same_dtype(inputs)?;
            let ([m, k], [p, q]) = (rank2(inputs[0])?, rank2(inputs[1])?);
            let (inner, n) = if *trans_b { (q, p) } else { (p, q) };
            if k != inner {
                return Err(format!(
                    "multiplies rows of length {k} with columns of length {inner}"
                ));
            }
            if let Some(bias) = inputs.get(2)
                && bias.shape != [n]
            {
                return Err(format!(
                    "adds `{}` of shape {} to rows of length {n}",
                    bias.name,
                    show(&bias.shape)
                ));
            }
            one(dtype, vec![m, n])
        }
        Op::Conv { group, strides, pads } => {
            let dtype = same_dtype(inputs)?;
            one(dtype, conv(*group, *strides, *pads, inputs)?)
        }
        Op::ReduceMean { axes, keep_dims } => {
            let dtype = float(inputs[0])?;
            one(dtype, reduce(&inputs[0].shape, axes, *keep_dims)?)
        }
        Op::LayerNormalization { axis, .. } => {
            let dtype = same_dtype(inputs)?;
            let shape = &inputs[0].shape;
            let normalised = &shape[position(*axis, shape.len())?..];
            for value in &inputs[1..] {
                if value.shape != normalised {
                    return Err(format!(
                        "normalises {}, but `{}` has shape {}",
                        show(normalised),
                        value.name,
                        show(&value.shape)
                    ));
                }
            }
            one(dtype, shape.clone())
        }
        Op::Cast { to } => one(*to, inputs[0].shape.clone()),
        Op::Concat { axis } => {
            let dtype = same_dtype(inputs)?;
            one(dtype, concat(*axis, inputs)?)
        }
        Op::Gather { axis } => {
            expect_dtype(inputs[1], DType::Int64)?;
            let data = &inputs[0].shape;
            let axis = position(*axis, data.len())?;
            let shape = [&data[..axis], &inputs[1].shape, &data[axis + 1..]].concat();
            one(inputs[0].dtype, shape)
        }
        Op::Slice { axis, start, end } => {
            let mut shape = inputs[0].shape.clone();
            let axis = position(*axis, shape.len())?;
            shape[axis] = slice(shape[axis], *start, *end)?;
            one(inputs[0].dtype, shape)
        }
        Op::Split { axis, sizes } => {
            let shape = &inputs[0].shape;
            let axis = position(*axis, shape.len())?;
            let total: u64 = sizes.iter().sum();
            if shape[axis] != Dim::Fixed(total) {
                return Err(format!("splits {} into parts that sum to {total}", shape[axis]));
            }
            let part = |&size: &u64| {
                let mut part = shape.clone();
                part[axis] = Dim::Fixed(size);
                (inputs[0].dtype, part)
            };
            Ok(sizes.iter().map(part).collect())
        }
        Op::Reshape { shape } => one(inputs[0].dtype, reshape(&inputs[0].shape, shape)?),
        Op::Transpose { perm } => one(inputs[0].dtype, transpose(&inputs[0].shape, perm)?),
        Op::Unsqueeze { axes } => one(inputs[0].dtype, unsqueeze(&inputs[0].shape, axes)?),
        Op::Squeeze { axes } => one(inputs[0].dtype, squeeze(&inputs[0].shape, axes)?),
        Op::Shape { start, end } => {
            let rank = inputs[0].shape.len();
            let (start, end) = (position(*start, rank)?, bound(*end, rank)?);
            let length = u64::try_from(end.saturating_sub(start)).unwrap_or(0);
            one(DType::Int64, vec![Dim::Fixed(length)])
        }
        Op::Range { dim } => {
            for value in inputs {
                expect_dtype(value, DType::Int64)?;
                if !value.shape.is_empty() {
                    return Err(format!(
                        "wants scalars, `{}` has shape {}",
                        value.name,
                        show(&value.shape)
                    ));
                }
            }
            one(DType::Int64, vec![*dim])
        }
        Op::LessOrEqual => {
            same_dtype(inputs)?;
            one(DType::Bool, broadcast(&inputs[0].shape, &inputs[1].shape)?)
        }
        Op::And => {
            expect_dtype(inputs[0], DType::Bool)?;
            expect_dtype(inputs[1], DType::Bool)?;
            one(DType::Bool, broadcast(&inputs[0].shape, &inputs[1].shape)?)
        }
        Op::Where => {
            expect_dtype(inputs[0], DType::Bool)?;
            let dtype = same_dtype(&inputs[1..])?;
            let branches = broadcast(&inputs[1].shape, &inputs[2].shape)?;
            one(dtype, broadcast(&inputs[0].shape, &branches)?)
        }
        Op::SliceUpdate => {
            let (data, update) = (&inputs[0].shape, &inputs[1].shape);
            expect_dtype(inputs[1], inputs[0].dtype)?;
            expect_dtype(inputs[2], DType::Int64)?;
            let rank = u64::try_from(data.len()).unwrap_or(u64::MAX);
            let fits = |(whole, part): (&Dim, &Dim)| {
                whole
                    .fixed()
                    .zip(part.fixed())
                    .is_some_and(|(whole, part)| part <= whole)
            };
            let inside = data.len() == update.len() && data.iter().zip(update).all(fits);
            if !inside || inputs[2].shape != [Dim::Fixed(rank)] {
                return Err(format!(
                    "writes {} into {} at {} indices",
                    show(update),
                    show(data),
                    show(&inputs[2].shape)
                ));
            }
            one(inputs[0].dtype, data.clone())
        }
        Op::ScaledDotProductAttention => one(same_dtype(inputs)?, attention(inputs)?),
        Op::DequantizeLinear { axis } => one(float(inputs[1])?, blocks::dequantized(*axis, inputs)?),
        Op::MatMulNBits {
            blocks,
            inputs: width,
            outputs,
        } => one(
            blocks.scale_type(),
            blocks::products(*blocks, [*width, *outputs], inputs)?,
        ),
        Op::Fused(fused) => {
            let inputs: Vec<fused::Input<'_, Dim>> = inputs
                .iter()
                .map(|value| fused::Input {
                    name: &value.name,
                    dtype: value.dtype,
                    shape: &value.shape,
                })
                .collect();
            let shapes = fused.infer(&inputs)?;
            Ok(shapes.into_iter().map(|shape| (DType::Float32, shape)).collect())
        }
    }
}

/// `[..,L,E], [..,S,E], [..,S,E] -> [..,L,E]`, with a bias that can be broadcast to `[..,L,S]`.
fn attention(inputs: &[&Value]) -> Result<Vec<Dim>, String> {
    let [query, key, value] = [0, 1, 2].map(|index: usize| &inputs[index].shape[..]);
    let turned = |shape: &[Dim]| match shape {
        [batch @ .., length, width] => [batch, &[*width, *length]].concat(),
        _ => shape.to_vec(),
    };
    let scores = matmul(query, &turned(key))?;
    if let Some(bias) = inputs.get(3)
        && broadcast(&scores, &bias.shape)? != scores
    {
        return Err(format!(
            "adds `{}` of shape {} to scores of shape {}",
            bias.name,
            show(&bias.shape),
            show(&scores)
        ));
    }
    matmul(&scores, value)
}

fn arity(op: &Op, found: usize) -> Result<(), String> {
    let expected = match op {
        Op::Add
        | Op::Sub
        | Op::Mul
        | Op::Div
        | Op::MatMul
        | Op::Gather { .. }
        | Op::DequantizeLinear { .. }
        | Op::LessOrEqual
        | Op::And => 2..=2,
        Op::Neg
        | Op::Sqrt
        | Op::Cos
        | Op::Sin
        | Op::Sigmoid
        | Op::Relu
        | Op::Gelu
        | Op::Softmax { .. }
        | Op::ReduceMean { .. }
        | Op::Cast { .. }
        | Op::Slice { .. }
        | Op::Split { .. }
        | Op::Reshape { .. }
        | Op::Transpose { .. }
        | Op::Unsqueeze { .. }
        | Op::Squeeze { .. }
        | Op::Shape { .. } => 1..=1,
        Op::Conv { .. } | Op::Gemm { .. } => 2..=3,
        Op::LayerNormalization { .. }
        | Op::Range { .. }
        | Op::Where
        | Op::SliceUpdate
        | Op::MatMulNBits { .. } => 3..=3,
        Op::ScaledDotProductAttention => 3..=4,
        Op::Concat { .. } => 1..=usize::MAX,
        Op::Fused(fused) => fused.inputs()..=fused.inputs(),
    };
    if expected.contains(&found) {
        Ok(())
    } else {
        Err(format!(
            "takes {} to {} inputs, found {found}",
            expected.start(),
            expected.end()
        ))
    }
}

fn same_dtype(inputs: &[&Value]) -> Result<DType, String> {
    let dtype = inputs[0].dtype;
    match inputs.iter().find(|value| value.dtype != dtype) {
        None => Ok(dtype),
        Some(value) => Err(format!("mixes {dtype} with {} (`{}`)", value.dtype, value.name)),
    }
}

fn float(value: &Value) -> Result<DType, String> {
    if value.dtype.is_float() {
        Ok(value.dtype)
    } else {
        Err(format!("wants a float, `{}` is {}", value.name, value.dtype))
    }
}

pub(super) fn expect_dtype(value: &Value, dtype: DType) -> Result<(), String> {
    if value.dtype == dtype {
        Ok(())
    } else {
        Err(format!("wants {dtype}, `{}` is {}", value.name, value.dtype))
    }
}

fn rank2(value: &Value) -> Result<[Dim; 2], String> {
    match value.shape[..] {
        [a, b] => Ok([a, b]),
        _ => Err(format!(
            "wants rank 2, `{}` has shape {}",
            value.name,
            show(&value.shape)
        )),
    }
}

/// A possibly negative axis as an index into a shape of this rank.
fn position(axis: i64, rank: usize) -> Result<usize, String> {
    let length = i64::try_from(rank).unwrap_or(i64::MAX);
    let index = if axis < 0 { axis + length } else { axis };
    usize::try_from(index)
        .ok()
        .filter(|&index| index < rank)
        .ok_or_else(|| format!("has axis {axis}, the input has rank {rank}"))
}

/// As [`position`], but the end itself is allowed.
fn bound(axis: i64, rank: usize) -> Result<usize, String> {
    if usize::try_from(axis) == Ok(rank) {
        Ok(rank)
    } else {
        position(axis, rank)
    }
}

fn broadcast(a: &[Dim], b: &[Dim]) -> Result<Vec<Dim>, String> {
    let rank = a.len().max(b.len());
    let at = |shape: &[Dim], i: usize| {
        let missing = rank - shape.len();
        if i < missing {
            Dim::Fixed(1)
        } else {
            shape[i - missing]
        }
    };
    (0..rank)
        .map(|i| match (at(a, i), at(b, i)) {
            (x, y) if x == y => Ok(x),
            (Dim::Fixed(1), y) => Ok(y),
            (x, Dim::Fixed(1)) => Ok(x),
            (x, y) => Err(format!(
                "cannot broadcast {x} with {y} ({} with {})",
                show(a),
                show(b)
            )),
        })
        .collect()
}

fn matmul(a: &[Dim], b: &[Dim]) -> Result<Vec<Dim>, String> {
    let ([.., m, k], [.., inner, n]) = (a, b) else {
        return Err(format!("wants rank 2 or more, found {} and {}", show(a), show(b)));
    };
    if k != inner {
        return Err(format!(
            "multiplies rows of length {k} with columns of length {inner}"
        ));
    }
    let mut shape = broadcast(&a[..a.len() - 2], &b[..b.len() - 2])?;
    shape.extend([*m, *n]);
    Ok(shape)
}

fn conv(group: u64, strides: [u64; 2], pads: [u64; 4], inputs: &[&Value]) -> Result<Vec<Dim>, String> {
    let fixed = |dim: Dim| {
        dim.fixed()
            .ok_or_else(|| format!("wants fixed channels and sides, found {dim}"))
    };
    let ([batch, channels, height, width], [maps, per_group, kernel_height, kernel_width]) =
        (rank4(inputs[0])?, rank4(inputs[1])?);
    let (channels, maps, per_group) = (fixed(channels)?, fixed(maps)?, fixed(per_group)?);
    if group == 0 || per_group.checked_mul(group) != Some(channels) || maps % group != 0 {
        return Err(format!(
            "has {group} groups of {per_group} channels and {maps} maps, the input has {channels} channels"
        ));
    }
    if let Some(bias) = inputs.get(2)
        && bias.shape != [Dim::Fixed(maps)]
    {
        return Err(format!(
            "has {maps} maps, the bias has shape {}",
            show(&bias.shape)
        ));
    }
    let side = |length: Dim, kernel: Dim, before: u64, after: u64, stride: u64| {
        let (length, kernel) = (fixed(length)?, fixed(kernel)?);
        let padded = length.saturating_add(before).saturating_add(after);
        if kernel == 0 || stride == 0 || padded < kernel {
            return Err(format!(
                "has a kernel of {kernel} and stride {stride} over {padded} pixels"
            ));
        }
        Ok(Dim::Fixed((padded - kernel) / stride + 1))
    };
    Ok(vec![
        batch,
        Dim::Fixed(maps),
        side(height, kernel_height, pads[0], pads[2], strides[0])?,
        side(width, kernel_width, pads[1], pads[3], strides[1])?,
    ])
}

fn rank4(value: &Value) -> Result<[Dim; 4], String> {
    match value.shape[..] {
        [a, b, c, d] => Ok([a, b, c, d]),
        _ => Err(format!(
            "wants rank 4, `{}` has shape {}",
            value.name,
            show(&value.shape)
        )),
    }
}

fn reduce(shape: &[Dim], axes: &[i64], keep_dims: bool) -> Result<Vec<Dim>, String> {
    let mut reduced = vec![false; shape.len()];
    for &axis in axes {
        reduced[position(axis, shape.len())?] = true;
    }
    let kept = shape
        .iter()
        .zip(&reduced)
        .filter_map(|(&dim, &gone)| match (gone, keep_dims) {
            (false, _) => Some(dim),
            (true, true) => Some(Dim::Fixed(1)),
            (true, false) => None,
        });
    Ok(kept.collect())
}

fn concat(axis: i64, inputs: &[&Value]) -> Result<Vec<Dim>, String> {
    let mut shape = inputs[0].shape.clone();
    let axis = position(axis, shape.len())?;
    for value in &inputs[1..] {
        let others_equal = value.shape.len() == shape.len()
            && shape
                .iter()
                .zip(&value.shape)
                .enumerate()
                .all(|(i, (a, b))| i == axis || a == b);
        if !others_equal {
            return Err(format!(
                "joins {} with {} along axis {axis}",
                show(&shape),
                show(&value.shape)
            ));
        }
        shape[axis] = match (shape[axis], value.shape[axis]) {
            (Dim::Fixed(a), Dim::Fixed(b)) => Dim::Fixed(a.saturating_add(b)),
            (Dim::Past, Dim::New) => Dim::Total,
            (a, b) => return Err(format!("joins lengths {a} and {b}, whose sum has no name")),
        };
    }
    Ok(shape)
}

fn slice(dim: Dim, start: i64, end: i64) -> Result<Dim, String> {
    match dim {
        Dim::Fixed(length) => {
            let limit = i64::try_from(length).unwrap_or(i64::MAX);
            let clamp = |index: i64| {
                (if index < 0 {
                    index.saturating_add(limit)
                } else {
                    index
                })
                .clamp(0, limit)
            };
            let kept = clamp(end).saturating_sub(clamp(start)).max(0);
            Ok(Dim::Fixed(u64::try_from(kept).unwrap_or(0)))
        }
        Dim::Batch | Dim::Past | Dim::New | Dim::Total if start == -1 && end == i64::MAX => Ok(Dim::Fixed(1)),
        Dim::Batch | Dim::Past | Dim::New | Dim::Total => Err(format!(
            "takes {start}..{end} of `{dim}`; of a symbol only the last element can be taken"
        )),
    }
}

fn reshape(shape: &[Dim], target: &[i64]) -> Result<Vec<Dim>, String> {
    let problem = |what: &str| Err(format!("turns {} into {target:?}: {what}", show(shape)));
    // What is left of the input after the dimensions that are copied.
    let mut left: Vec<Option<Dim>> = shape.iter().copied().map(Some).collect();
    let mut result = Vec::with_capacity(target.len());
    let mut product: u64 = 1;
    let mut open = None;
    for (i, &length) in target.iter().enumerate() {
        match length {
            0 => match left.get_mut(i).and_then(Option::take) {
                Some(dim) => result.push(dim),
                None => return problem("a 0 beyond the input's rank"),
            },
            -1 if open.is_none() => {
                open = Some(i);
                result.push(Dim::Fixed(0));
            }
            _ => match u64::try_from(length) {
                Ok(length) => {
                    product = product.saturating_mul(length);
                    result.push(Dim::Fixed(length));
                }
                Err(_) => return problem("a negative length other than one -1"),
            },
        }
    }
    let mut remaining: u64 = 1;
    let mut symbol = None;
    for dim in left.into_iter().flatten() {
        match (dim, symbol) {
            (Dim::Fixed(n), _) => remaining = remaining.saturating_mul(n),
            (dim, None) => symbol = Some(dim),
            (_, Some(_)) => return problem("two symbols would become one"),
        }
    }
    match (open, symbol) {
        (None, None) if remaining == product => {}
        (Some(i), None) if product > 0 && remaining.is_multiple_of(product) => {
            result[i] = Dim::Fixed(remaining / product)
        }
        (Some(i), Some(symbol)) if remaining == product => result[i] = symbol,
        _ => return problem("the lengths do not match"),
    }
    Ok(result)
}

fn transpose(shape: &[Dim], perm: &[u64]) -> Result<Vec<Dim>, String> {
    let mut seen = vec![false; shape.len()];
    let mut result = Vec::with_capacity(shape.len());
    for &axis in perm {
        let axis = usize::try_from(axis).unwrap_or(usize::MAX);
        match (shape.get(axis), seen.get_mut(axis)) {
            (Some(&dim), Some(seen)) if !*seen => {
                *seen = true;
                result.push(dim);
            }
            _ => return Err(format!("permutes {} by {perm:?}", show(shape))),
        }
    }
    if result.len() == shape.len() {
        Ok(result)
    } else {
        Err(format!("permutes {} by {perm:?}", show(shape)))
    }
}

fn unsqueeze(shape: &[Dim], axes: &[i64]) -> Result<Vec<Dim>, String> {
    let rank = shape.len() + axes.len();
    let mut inserted = vec![false; rank];
    for &axis in axes {
        inserted[position(axis, rank)?] = true;
    }
    let mut old = shape.iter().copied();
    let result: Vec<Dim> = inserted
        .iter()
        .filter_map(|&new| if new { Some(Dim::Fixed(1)) } else { old.next() })
        .collect();
    if result.len() == rank {
        Ok(result)
    } else {
        Err(format!("inserts an axis twice: {axes:?}"))
    }
}

fn squeeze(shape: &[Dim], axes: &[i64]) -> Result<Vec<Dim>, String> {
    let mut gone = vec![false; shape.len()];
    for &axis in axes {
        let index = position(axis, shape.len())?;
        if shape[index] != Dim::Fixed(1) {
            return Err(format!("removes axis {axis} of length {}", shape[index]));
        }
        gone[index] = true;
    }
    Ok(shape
        .iter()
        .zip(&gone)
        .filter(|&(_, &gone)| !gone)
        .map(|(&dim, _)| dim)
        .collect())
}

#[cfg(test)]
mod tests;
