//! Statistics of a checkpoint's activations: what the vectors look like that its matrices are multiplied
//! with. A safetensors file, written by a program that runs the model over images (`fvlm-conform calibrate`)
//! and read by one that rounds weights (`fvlm-export --calibration`):
//!
//! | tensor | what |
//! |---|---|
//! | `fingerprint` uint8 `[32]` | of the checkpoint's weights, see [`Checkpoint::fingerprint`] |
//! | `W.moments.R` float32 `[n, n]` | mean of `x x^T` over inputs `512 R ..` of the matrix with canonical name `W` |
//! | `W.peaks` float32 `[inputs]` | mean of `x^4` |
//!
//! [`Checkpoint::fingerprint`]: super::Checkpoint::fingerprint

use super::CheckpointError;
use super::tensor_file::{StoredTensor, StoredType, TensorFile};
use crate::dtype::DType;
use crate::weights::MOMENTS;
use std::collections::BTreeMap;
use std::path::Path;

/// Name of the tensor that says of which checkpoint a file is.
pub const FINGERPRINT: &str = "fingerprint";

/// Name of the second moments of a run of a weight's inputs.
pub fn moments_name(weight: &str, run: usize) -> String {
    format!("{weight}.moments.{run}")
}

/// Name of the fourth moments of a weight's inputs.
pub fn peaks_name(weight: &str) -> String {
    format!("{weight}.peaks")
}

/// An opened file of statistics.
#[derive(Debug)]
pub struct Statistics {
    file: TensorFile,
    places: BTreeMap<String, usize>,
}

impl Statistics {
    /// Opens a file.
    ///
    /// # Errors
    /// A file that cannot be read or is no such file.
    pub fn open(path: &Path) -> Result<Statistics, CheckpointError> {
        let file = TensorFile::open_safetensors(path)?;
        let names = file.tensors().iter().enumerate();
        let places = names
            .map(|(place, tensor)| (tensor.name.clone(), place))
            .collect();
        Ok(Statistics { file, places })
    }

    /// Of which checkpoint it is.
    ///
    /// # Errors
    /// A file that does not say.
    pub fn fingerprint(&self) -> Result<[u8; 32], CheckpointError> {
        let tensor = self.find(FINGERPRINT)?;
        let bytes = <[u8; 32]>::try_from(self.file.contiguous(tensor).unwrap_or_default());
        bytes.map_err(|_| self.malformed(format!("`{FINGERPRINT}` is not 32 bytes")))
    }

    /// Second moments of inputs `run * MOMENTS ..` of a weight with so many inputs, `[n, n]`.
    ///
    /// # Errors
    /// Moments that are missing, of another shape, or no moments.
    pub fn moments(&self, weight: &str, run: usize, inputs: usize) -> Result<Vec<f32>, CheckpointError> {
        let width = inputs.saturating_sub(run * MOMENTS).min(MOMENTS);
        let name = moments_name(weight, run);
        let values = self.floats(&name, &[width, width])?;
        let diagonal = values.iter().step_by(width + 1);
        match diagonal.copied().find(|value| *value < 0.0) {
            Some(value) => {
                Err(self.malformed(format!("`{name}` has {value} on its diagonal, expected squares")))
            }
            None => Ok(values),
        }
    }

    /// Fourth moments of the inputs of a weight that has so many.
    ///
    /// # Errors
    /// As [`Statistics::moments`].
    pub fn peaks(&self, weight: &str, inputs: usize) -> Result<Vec<f32>, CheckpointError> {
        self.floats(&peaks_name(weight), &[inputs])
    }

    fn find(&self, name: &str) -> Result<&StoredTensor, CheckpointError> {
        let place = self
            .places
            .get(name)
            .and_then(|place| self.file.tensors().get(*place));
        place.ok_or_else(|| self.malformed(format!("has no tensor `{name}`")))
    }

    fn floats(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, CheckpointError> {
        let tensor = self.find(name)?;
        let expected: Vec<u64> = shape
            .iter()
            .map(|n| u64::try_from(*n).unwrap_or(u64::MAX))
            .collect();
        if tensor.dtype != StoredType::Float(DType::Float32) || tensor.shape != expected {
            return Err(self.malformed(format!(
                "tensor `{name}` is {} {:?}, expected float32 {expected:?}",
                tensor.dtype.name(),
                tensor.shape
            )));
        }
        let (chunks, _) = self.file.contiguous(tensor).unwrap_or_default().as_chunks::<4>();
        let values: Vec<f32> = chunks.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
        match values.iter().find(|value| !value.is_finite()) {
            Some(value) => Err(self.malformed(format!("tensor `{name}` has {value}, expected numbers"))),
            None => Ok(values),
        }
    }

    fn malformed(&self, problem: String) -> CheckpointError {
        CheckpointError::malformed(self.file.path(), problem)
    }
}
