//! Canonical weights: the inference form of every parameter, named alike whatever the checkpoint's layout.
//!
//! Names follow the transformers layout in its fused form: `vision_tower.stages.0.blocks.1.mlp.fc1.weight`,
//! `multi_modal_projector.linear_1.bias`, `language_model.layers.3.self_attn.q_proj.weight`,
//! `language_model.embed_tokens.weight`, `lm_head.weight`. Convolutions and norms of the tower are folded, so
//! that each canonical convolution has a weight and a bias and no batch normalisation is left.

use crate::checkpoint::CheckpointError;
use std::ops::Range;

/// Inputs of a matrix whose second moments are known together: a run.
pub const MOMENTS: usize = 512;

/// What a network needs: a canonical name and the shape it must have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WeightSpec {
    /// Canonical name.
    pub name: String,
    /// Row-major shape, outermost first.
    pub shape: Vec<u64>,
}

/// Canonical weights that can be read piece by piece. A rank-n weight is addressed as the matrix
/// `[shape[0], product of the rest]` (a vector is `[n, 1]`).
///
/// Implementations do not hold the model in memory: a block is converted when it is read.
pub trait Weights: Sync {
    /// Every canonical weight, in canonical order.
    fn specs(&self) -> &[WeightSpec];

    /// Reads `rows x columns` of the named weight as float32, row-major, into `out`
    /// (`out.len() == rows.len() * columns.len()`).
    ///
    /// # Errors
    /// An unknown name, or a file that can no longer be read. Ranges outside the weight are a bug of the
    /// caller and also an error.
    fn read_block(
        &self,
        name: &str,
        rows: Range<usize>,
        columns: Range<usize>,
        out: &mut [f32],
    ) -> Result<(), CheckpointError>;

    /// Second moments of the vectors that the named matrix is multiplied with, where they are known: the mean of
    /// `x x^T` over inputs `run * MOMENTS ..` (as many as there are, at most [`MOMENTS`]), row-major. By them a
    /// writer that rounds weights knows which errors matter.
    ///
    /// # Errors
    /// Moments that can no longer be read.
    fn moments(&self, name: &str, run: usize) -> Result<Option<Vec<f32>>, CheckpointError> {
        let _ = (name, run);
        Ok(None)
    }

    /// Reads the whole weight, row-major.
    ///
    /// # Errors
    /// As [`Weights::read_block`].
    fn read(&self, name: &str) -> Result<Vec<f32>, CheckpointError> {
        let spec = self
            .specs()
            .iter()
            .find(|spec| spec.name == name)
            .ok_or_else(|| CheckpointError::UnknownWeight {
                name: name.to_owned(),
            })?;
        let (rows, columns) = spec.matrix();
        let mut out = vec![0.0; rows * columns];
        self.read_block(name, 0..rows, 0..columns, &mut out)?;
        Ok(out)
    }
}

impl<W: Weights + ?Sized> Weights for &W {
    fn specs(&self) -> &[WeightSpec] {
        (**self).specs()
    }

    fn read_block(
        &self,
        name: &str,
        rows: Range<usize>,
        columns: Range<usize>,
        out: &mut [f32],
    ) -> Result<(), CheckpointError> {
        (**self).read_block(name, rows, columns, out)
    }

    fn moments(&self, name: &str, run: usize) -> Result<Option<Vec<f32>>, CheckpointError> {
        (**self).moments(name, run)
    }
}

impl WeightSpec {
    /// The weight as a matrix: `(shape[0], product of the rest)`.
    pub fn matrix(&self) -> (usize, usize) {
        let rows = self.shape.first().copied().unwrap_or(1);
        let columns: u64 = self.shape.iter().skip(1).product();
        (
            usize::try_from(rows).unwrap_or(usize::MAX),
            usize::try_from(columns).unwrap_or(usize::MAX),
        )
    }
}
