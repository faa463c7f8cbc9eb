//! Adapters over a base's tensors: what is read of the base is what adapters make of it.

use super::{Adapter, Patch};
use crate::checkpoint::tensor_file::TensorId;
use crate::checkpoint::{CheckpointError, StoredTensor, TensorFile};
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

/// As what a tensor is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::checkpoint) enum Reading {
    /// As itself.
    Own,
    /// An embedding table as the head that it was before adapters told them apart.
    Head,
}

/// Adapters and what they do to which tensors.
#[derive(Debug)]
pub(in crate::checkpoint) struct Applied {
    adapters: Arc<[Adapter]>,
    patches: BTreeMap<TensorId, Patch>,
    head: Option<Patch>,
}

impl Applied {
    pub(in crate::checkpoint) fn new(
        adapters: Arc<[Adapter]>,
        patches: BTreeMap<TensorId, Patch>,
        head: Option<Patch>,
    ) -> Applied {
        Applied {
            adapters,
            patches,
            head,
        }
    }

    /// Reads `rows x columns` of a tensor, the matrix `[shape[0], product of the rest]`, as float32.
    ///
    /// # Errors
    /// A file that can no longer be read.
    pub(in crate::checkpoint) fn read(
        &self,
        files: &[TensorFile],
        id: TensorId,
        reading: Reading,
        rows: Range<usize>,
        columns: Range<usize>,
        out: &mut [f32],
    ) -> Result<(), CheckpointError> {
        let file = files.get(id.0);
        let found = file.and_then(|file| Some((file, file.tensors().get(id.1)?)));
        let Some((file, tensor)) = found else {
            let name = format!("{id:?}");
            return Err(CheckpointError::UnknownWeight { name });
        };
        let [height, width] = matrix(tensor);
        let patch = match reading {
            Reading::Own => self.patches.get(&id),
            Reading::Head => self.head.as_ref(),
        };
        match patch {
            None => region(file, tensor, width, rows, columns, out),
            Some(patch) => {
                let base = |rows: Range<usize>, columns: Range<usize>, out: &mut [f32]| {
                    region(file, tensor, width, rows, columns, out)
                };
                patch.read(&self.adapters, [height, width], rows, columns, &base, out)
            }
        }
    }

    /// Reads all of a tensor.
    ///
    /// # Errors
    /// As [`Applied::read`].
    pub(in crate::checkpoint) fn whole(
        &self,
        files: &[TensorFile],
        id: TensorId,
    ) -> Result<Vec<f32>, CheckpointError> {
        let tensor = files.get(id.0).and_then(|file| file.tensors().get(id.1));
        let [height, width] = tensor.map_or([0, 0], matrix);
        let mut out = vec![0.0; height.saturating_mul(width)];
        self.read(files, id, Reading::Own, 0..height, 0..width, &mut out)?;
        Ok(out)
    }
}

/// A tensor as a matrix.
fn matrix(tensor: &StoredTensor) -> [usize; 2] {
    let whole = |side: u64| usize::try_from(side).unwrap_or(usize::MAX);
    let rows = tensor.shape.first().copied().unwrap_or(1);
    let columns = tensor.shape.iter().skip(1).product();
    [whole(rows), whole(columns)]
}

/// Rows and columns of a tensor, a matrix of this width.
pub(super) fn region(
    file: &TensorFile,
    tensor: &StoredTensor,
    width: usize,
    rows: Range<usize>,
    columns: Range<usize>,
    out: &mut [f32],
) -> Result<(), CheckpointError> {
    if columns.len() == width {
        // Whole rows lie one after the other.
        return file.read(tensor, rows.start * width, out);
    }
    for (row, out) in rows.zip(out.chunks_exact_mut(columns.len().max(1))) {
        file.read(tensor, row * width + columns.start, out)?;
    }
    Ok(())
}
