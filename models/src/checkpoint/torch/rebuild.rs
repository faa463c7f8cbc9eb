//! Tensors and storages as the arguments of torch's functions describe them
//! (`torch._utils._rebuild_tensor_v2`).

use super::globals::Global;
use super::values::{Id, Storage, Value, Values, View};

/// Most dimensions of a tensor, as in torch.
const MAX_RANK: usize = 64;

/// A storage by its persistent id: `("storage", type, key, device, elements)`, in the oldest files with a
/// part.
///
/// # Errors
/// Another persistent id.
pub(super) fn storage<'a>(values: &Values<'a>, id: Id) -> Result<Storage<'a>, String> {
    let (tag, kind, key, elements, part) = match values.tuple(id) {
        Some(&[tag, kind, key, _device, elements]) => (tag, kind, key, elements, None),
        Some(&[tag, kind, key, _device, elements, part]) => (tag, kind, key, elements, Some(part)),
        _ => {
            let kind = values.get(id).kind();
            return Err(format!(
                "refers to {kind} outside of it, expected a storage (a tuple of 5 or 6)"
            ));
        }
    };
    let part = match part.map(|part| values.get(part)) {
        None | Some(Value::None) => None,
        Some(Value::Tuple(part)) => match part[..] {
            [_key, first, count] => values.number(first).zip(values.number(count)),
            _ => None,
        }
        .map(Some)
        .ok_or("refers to a part of a storage that is no key and two numbers")?,
        Some(other) => {
            let kind = other.kind();
            return Err(format!(
                "refers to a part of a storage that is {kind}, expected a tuple"
            ));
        }
    };
    if values.text(tag) != Some("storage") {
        let found = values.text(tag).unwrap_or_else(|| values.get(tag).kind());
        return Err(format!("refers to `{found}` outside of it, expected a `storage`"));
    }
    let kind = match values.get(kind) {
        Value::Global(kind @ Global::Storage(_)) => *kind,
        other => {
            let found = other.kind();
            return Err(format!(
                "refers to a storage whose type is {found}, expected `torch.FloatStorage`"
            ));
        }
    };
    match (values.text(key), values.number(elements)) {
        (Some(key), Some(elements)) => Ok(Storage {
            key,
            kind,
            elements,
            part,
        }),
        _ => Err("refers to a storage without a text as its key and a number of elements".to_owned()),
    }
}

/// A tensor by the arguments of the function that rebuilds it.
///
/// # Errors
/// Arguments that the function does not take.
pub(super) fn tensor<'a>(values: &Values<'a>, function: Global, given: &[Id]) -> Result<View<'a>, String> {
    let (expected, name) = match function {
        Global::RebuildTensor => (4..=4, "_rebuild_tensor"),
        Global::RebuildTensorV3 => (7..=8, "_rebuild_tensor_v3"),
        _ => (6..=7, "_rebuild_tensor_v2"),
    };
    let wrong = |what: &str| format!("calls `torch._utils.{name}` {what}");
    if !expected.contains(&given.len()) {
        return Err(wrong(&format!("with {} arguments", given.len())));
    }
    let &[storage, offset, shape, strides, ..] = given else {
        return Err(wrong("with too few arguments"));
    };
    let Value::Storage(storage) = *values.get(storage) else {
        let kind = values.get(storage).kind();
        return Err(wrong(&format!("with {kind}, expected a storage")));
    };
    let dtype = match (
        function,
        storage.kind,
        given.get(6).map(|dtype| values.get(*dtype)),
    ) {
        (Global::RebuildTensorV3, _, Some(Value::Global(Global::DType(dtype)))) => *dtype,
        (Global::RebuildTensorV3, ..) => return Err(wrong("without a type of torch")),
        (_, Global::Storage(Some(dtype)), _) => dtype,
        _ => return Err(wrong("with a storage without a type")),
    };
    // Says that values are to be conjugated or negated when they are read.
    let metadata = if function == Global::RebuildTensorV3 { 7 } else { 6 };
    match given.get(metadata).map(|metadata| values.get(*metadata)) {
        None | Some(Value::None) => {}
        Some(Value::Dict(entries)) if entries.is_empty() => {}
        Some(_) => {
            return Err(wrong(
                "with metadata, by which values are negated or conjugated: save a clone",
            ));
        }
    }
    let numbers = |id: Id| {
        // Copied for each tensor.
        let all = values.tuple(id).filter(|all| all.len() <= MAX_RANK)?.iter();
        all.map(|number| values.number(*number))
            .collect::<Option<Vec<u64>>>()
    };
    match (values.number(offset), numbers(shape), numbers(strides)) {
        (Some(offset), Some(shape), Some(strides)) if shape.len() == strides.len() => Ok(View {
            storage,
            dtype,
            offset,
            shape,
            strides,
        }),
        _ => Err(wrong(
            "without an offset, a shape and as many strides, all of them whole numbers from 0 on, of at most 64 dimensions",
        )),
    }
}

/// The tensor inside a parameter.
///
/// # Errors
/// A parameter of something else.
pub(super) fn parameter(values: &Values<'_>, given: &[Id]) -> Result<Id, String> {
    match given {
        [tensor, _, _] | [tensor, _, _, _] if matches!(values.get(*tensor), Value::Tensor(_)) => Ok(*tensor),
        _ => Err("calls `torch._utils._rebuild_parameter` without a tensor".to_owned()),
    }
}

/// Keys and values of an `OrderedDict`: none, as it is filled afterwards, or a list of pairs, as Python 2
/// wrote.
///
/// # Errors
/// Other arguments.
pub(super) fn pairs(values: &Values<'_>, given: &[Id]) -> Result<Vec<(Id, Id)>, String> {
    let wrong = || "calls `collections.OrderedDict` with something else than a list of pairs".to_owned();
    let list = match given {
        [] => return Ok(Vec::new()),
        [list] => list,
        _ => return Err(wrong()),
    };
    let Value::List(list) = values.get(*list) else {
        return Err(wrong());
    };
    let pair = |id: &Id| match values.get(*id) {
        Value::List(pair) | Value::Tuple(pair) => match pair[..] {
            [key, value] => Ok((key, value)),
            _ => Err(wrong()),
        },
        _ => Err(wrong()),
    };
    list.iter().map(pair).collect()
}
