//! What does an export make of statistics of activations? Weights that are rounded so that products stay, not
//! weights: the file of [`Statistics`] is checked against the checkpoint once, and what writes panels of
//! bytes and nibbles asks for the second moments of their inputs ([`Weights::moments`]).

use crate::balance::{self, Factors};
use crate::error::ExportError;
use crate::plan::{Precision, Target, Variant};
use models::arch::fused::Encodings;
use models::arch::{self, Network};
use models::checkpoint::{Canonical, Checkpoint, CheckpointError, Statistics};
use models::graph::WeightForm;
use models::plain::hex;
use models::weights::{MOMENTS, WeightSpec, Weights};
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

/// Statistics of a checkpoint's activations, complete and of that checkpoint.
#[derive(Debug)]
pub struct Calibration {
    statistics: Statistics,
    /// Inputs of each matrix that is known.
    inputs: BTreeMap<String, usize>,
}

impl Calibration {
    /// Opens a file of statistics and reads all of it.
    ///
    /// # Errors
    /// A file of another checkpoint, or one in which something is missing, of another shape or no number.
    pub fn open(
        path: &Path,
        checkpoint: &Checkpoint,
        weights: &Canonical,
    ) -> Result<Calibration, ExportError> {
        let statistics = Statistics::open(path)?;
        let (found, expected) = (statistics.fingerprint()?, checkpoint.fingerprint());
        if found != expected {
            return Err(ExportError::OtherCheckpoint {
                path: path.to_owned(),
                found: hex(&found),
                expected: hex(&expected),
            });
        }
        let mut inputs = BTreeMap::new();
        for (name, columns) in known_inputs(weights)? {
            statistics.peaks(&name, columns)?;
            for run in 0..columns.div_ceil(MOMENTS) {
                statistics.moments(&name, run, columns)?;
            }
            inputs.insert(name, columns);
        }
        Ok(Calibration { statistics, inputs })
    }

    /// The weights, with what is known of their inputs; balanced for these encodings.
    ///
    /// # Errors
    /// Weights that can no longer be read.
    pub fn over<'w>(
        &'w self,
        weights: &'w Canonical,
        encodings: Encodings,
    ) -> Result<Informed<'w>, ExportError> {
        Ok(Informed {
            weights,
            calibration: self,
            factors: balance::factors(weights, &self.statistics, encodings)?,
        })
    }
}

/// What statistics are about, in order of use: the vectors that products of the networks multiply with, by
/// the canonical name of the first weight that they are multiplied with, and their lengths.
///
/// # Errors
/// A network that cannot be built from the config.
pub fn known_inputs(weights: &Canonical) -> Result<Vec<(String, usize)>, ExportError> {
    let mut inputs: Vec<(String, usize)> = Vec::new();
    let variant = Variant::new(Target::Cpu, Precision::Int8);
    let Some(encodings) = variant.and_then(Variant::encodings) else {
        return Ok(inputs);
    };
    for network in [Network::VisionEncoder, Network::Decoder] {
        let graph = arch::fused::build(network, weights.config(), encodings)?;
        for weight in graph.weights() {
            if !matches!(weight.form, WeightForm::Panels(..)) {
                continue;
            }
            let name = name_of_inputs(&weight.name);
            let spec = weights.specs().iter().find(|spec| spec.name == name);
            if let Some(spec) = spec.filter(|_| !inputs.iter().any(|(known, _)| *known == name)) {
                inputs.push((name, spec.matrix().1));
            }
        }
    }
    Ok(inputs)
}

/// Under which weight's name the inputs of a weight are recorded: the parts of a product have the same.
pub fn name_of_inputs(weight: &str) -> String {
    let parts = [
        (".mlp.up_proj.", ".mlp.gate_proj."),
        (".self_attn.k_proj.", ".self_attn.q_proj."),
        (".self_attn.v_proj.", ".self_attn.q_proj."),
    ];
    let part = parts.iter().find(|(part, _)| weight.contains(part));
    part.map_or_else(|| weight.to_owned(), |(part, first)| weight.replace(part, first))
}

/// Weights with statistics of their inputs, some channels scaled between the weights that write and that read
/// them.
pub struct Informed<'w> {
    weights: &'w Canonical,
    calibration: &'w Calibration,
    factors: BTreeMap<String, Factors>,
}

impl std::fmt::Debug for Informed<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Informed")
            .field("calibration", self.calibration)
            .finish_non_exhaustive()
    }
}

impl Weights for Informed<'_> {
    fn specs(&self) -> &[WeightSpec] {
        self.weights.specs()
    }

    fn read_block(
        &self,
        name: &str,
        rows: Range<usize>,
        columns: Range<usize>,
        out: &mut [f32],
    ) -> Result<(), CheckpointError> {
        self.weights
            .read_block(name, rows.clone(), columns.clone(), out)?;
        let Some(factors) = self.factors.get(name) else {
            return Ok(());
        };
        let of_rows = factors.rows.get(rows).unwrap_or(&[]);
        for (line, factor) in out.chunks_mut(columns.len().max(1)).zip(of_rows) {
            line.iter_mut().for_each(|value| *value *= factor);
        }
        if let Some(of_columns) = factors.columns.get(columns).filter(|factors| !factors.is_empty()) {
            for line in out.chunks_mut(of_columns.len()) {
                line.iter_mut()
                    .zip(of_columns)
                    .for_each(|(value, factor)| *value *= factor);
            }
        }
        Ok(())
    }

    fn moments(&self, name: &str, run: usize) -> Result<Option<Vec<f32>>, CheckpointError> {
        let known = name_of_inputs(name);
        let Some(inputs) = self.calibration.inputs.get(&known) else {
            return Ok(None);
        };
        let mut moments = self.calibration.statistics.moments(&known, run, *inputs)?;
        let factors = self
            .factors
            .get(&known)
            .map_or(&[][..], |factors| &factors.columns);
        if let Some(factors) = factors.get(run * MOMENTS..(*inputs).min((run + 1) * MOMENTS)) {
            for (line, factor) in moments.chunks_mut(factors.len().max(1)).zip(factors) {
                line.iter_mut()
                    .zip(factors)
                    .for_each(|(moment, other)| *moment /= factor * other);
            }
        }
        Ok(Some(moments))
    }
}
