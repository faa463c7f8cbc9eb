//! Where do a torch tensor's elements lie in the file? Its storage's bytes, an offset, a shape and strides,
//! of which everything is checked.

use super::super::safetensors::MAX_TENSORS;
use super::super::tensor_file::{Content, MAX_RANK, Place, StoredTensor, StoredType};
use super::globals::Global;
use super::state::State;
use super::values::{Storage, View};
use std::ops::Range;

/// How many times the file's length its tensors may take together: views may share storages, and repeat them.
const MOST_SHARED: u64 = 16;

/// Gives every tensor its place; `find` has the bytes of a storage, as many as it must have.
///
/// # Errors
/// A tensor that its storage does not hold, or tensors that take far more than the file has.
pub(super) fn place<'a>(
    state: State<'_, 'a>,
    file: usize,
    find: &dyn Fn(&Storage<'a>) -> Result<Range<usize>, String>,
) -> Result<Content, String> {
    if state.tensors.len() > MAX_TENSORS {
        return Err(format!("has more than {MAX_TENSORS} tensors"));
    }
    let mut tensors = Vec::with_capacity(state.tensors.len());
    let mut total: u64 = 0;
    for (name, view) in state.tensors {
        let in_tensor = |problem: String| format!("tensor `{name}` {problem}");
        let bytes = find(&view.storage).map_err(in_tensor)?;
        let placed = one(name, view, bytes).map_err(in_tensor)?;
        total = total.saturating_add(placed.bytes());
        tensors.push(placed);
    }
    let length = u64::try_from(file).unwrap_or(u64::MAX);
    if total > length.saturating_mul(MOST_SHARED) {
        return Err(format!(
            "has tensors of {total} bytes in {length} bytes of file, expected at most {MOST_SHARED} times as many \
             (tensors made by `expand` must be saved as clones)"
        ));
    }
    tensors.sort_by(|a, b| (a.start(), &a.name).cmp(&(b.start(), &b.name)));
    Ok(Content {
        tensors,
        skipped: state.skipped,
    })
}

/// Bytes that a storage must have.
///
/// # Errors
/// More than any file has.
pub(super) fn length(storage: &Storage<'_>) -> Result<usize, String> {
    let size = match storage.kind {
        Global::Storage(Some(dtype)) => dtype.bits() / 8,
        _ => 1,
    };
    let bytes = storage.elements.checked_mul(size);
    bytes
        .and_then(|bytes| usize::try_from(bytes).ok())
        .ok_or_else(|| {
            format!(
                "has a storage of {} elements, more than any file has",
                storage.elements
            )
        })
}

/// A tensor in the bytes of its storage.
fn one(name: &str, view: &View<'_>, storage: Range<usize>) -> Result<StoredTensor, String> {
    let View { shape, strides, .. } = view;
    if shape.len() > MAX_RANK {
        return Err(format!(
            "has {} dimensions, at most {MAX_RANK} are read",
            shape.len()
        ));
    }
    let size = view.dtype.bits() / 8;
    let overflow = || format!("has shape {shape:?}, which overflows");
    let elements = shape
        .iter()
        .try_fold(1_u64, |product, &n| product.checked_mul(n))
        .ok_or_else(overflow)?;
    elements.checked_mul(size).ok_or_else(overflow)?;
    let held = held(view, &storage, size)?;
    let place = if elements == 0 {
        Place::Whole(storage.start..storage.start)
    } else {
        let steps = shape
            .iter()
            .zip(strides)
            .map(|(side, stride)| (side - 1).checked_mul(*stride));
        let last = steps
            .chain([Some(view.offset)])
            .try_fold(0_u64, |sum, step| sum.checked_add(step?));
        if last.is_none_or(|last| last >= held.end - held.start) {
            return Err(format!(
                "of shape {shape:?}, strides {strides:?} and offset {} does not lie in its storage of {} elements",
                view.offset,
                held.end - held.start
            ));
        }
        let bytes = |elements: u64| usize::try_from(elements.checked_mul(size)?).ok();
        let start = bytes(held.start + view.offset).and_then(|at| at.checked_add(storage.start));
        let start = start.ok_or_else(overflow)?;
        // A dimension of one element has no next one, whatever its stride.
        let stride = |(side, stride): (&u64, &u64)| if *side == 1 { Some(0) } else { bytes(*stride) };
        let strides = shape.iter().zip(strides).map(stride).collect::<Option<_>>();
        let size = usize::try_from(size).map_err(|_| overflow())?;
        Place::new(start, shape, strides.ok_or_else(overflow)?, size)
    };
    Ok(StoredTensor {
        name: name.to_owned(),
        dtype: view.dtype,
        shape: shape.clone(),
        place,
    })
}

/// The elements of a storage, or of the part of it, that a view is of; counted in the view's type.
fn held(view: &View<'_>, storage: &Range<usize>, size: u64) -> Result<Range<u64>, String> {
    if size == 0 {
        return Err("has elements smaller than a byte".to_owned());
    }
    if let (Global::Storage(Some(dtype)), false) = (view.storage.kind, same_size(view)) {
        return Err(format!(
            "is {} in a storage of {}, expected one type",
            view.dtype.name(),
            dtype.name()
        ));
    }
    let all = u64::try_from(storage.len()).unwrap_or(u64::MAX) / size;
    let Some((first, count)) = view.storage.part else {
        return Ok(0..all);
    };
    match first.checked_add(count) {
        Some(end) if end <= all => Ok(first..end),
        _ => Err(format!(
            "is in elements {first} to {first} + {count} of a storage that has {all}"
        )),
    }
}

fn same_size(view: &View<'_>) -> bool {
    match view.storage.kind {
        Global::Storage(Some(dtype)) => StoredType::bits(dtype) == view.dtype.bits(),
        _ => true,
    }
}
