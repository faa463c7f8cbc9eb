//! What values does a tensor of an adapter have? Read once, before anything is written.

use crate::checkpoint::{CheckpointError, StoredTensor, TensorFile};

/// Values that are read at once.
const RUN: usize = 1 << 16;

/// What was found in a tensor.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Scanned {
    /// The first element that is NaN or infinite.
    pub(super) not_finite: Option<usize>,
    /// Whether all elements are 0.
    pub(super) zero: bool,
}

/// Reads a tensor of a weight's type.
///
/// # Errors
/// A file that can no longer be read.
pub(super) fn scan(file: &TensorFile, tensor: &StoredTensor) -> Result<Scanned, CheckpointError> {
    let count = usize::try_from(tensor.elements()).unwrap_or(usize::MAX);
    let mut run = vec![0f32; RUN.min(count)];
    let mut found = Scanned {
        not_finite: None,
        zero: true,
    };
    let mut from = 0;
    while from < count && found.not_finite.is_none() {
        let values = &mut run[..RUN.min(count - from)];
        file.read(tensor, from, values)?;
        found.not_finite = values
            .iter()
            .position(|value| !value.is_finite())
            .map(|at| from + at);
        found.zero &= values.iter().all(|value| *value == 0.0);
        from += values.len();
    }
    Ok(found)
}
