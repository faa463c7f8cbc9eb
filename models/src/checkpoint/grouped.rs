//! Matrices in groups of 4 or 8 bits, as MLX quantizes them: `X.weight` holds codes, packed into uint32 from
//! the lowest bits up, `X.scales` and `X.biases` a number each for a group of a row. A value is
//! `code * scale + bias` (`mlx.core.quantize`, mode `affine`). A block is computed when it is read.

#![deny(clippy::as_conversions)]

use super::tensor_file::{TensorFile, TensorId};
use crate::checkpoint::CheckpointError;
use crate::config::CONFIG;
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::path::Path;

/// The fields of `config.json` that state it, one for MLX and one in transformers' words.
const FIELD: &str = "quantization";
/// Most values that are computed at once.
const RUN: usize = 4096;

/// How codes are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Groups {
    /// 4 or 8.
    pub(super) bits: u64,
    /// Codes that share a scale.
    pub(super) size: u64,
}

/// What a config says of its matrices: of all, and of modules by name that differ.
#[derive(Debug, Default)]
pub(super) struct Quantization {
    all: Option<Groups>,
    modules: BTreeMap<String, Groups>,
}

impl Quantization {
    /// Reads the field of `config.json`.
    ///
    /// # Errors
    /// Other bits than 4 and 8, or another mode than MLX's `affine`.
    pub(super) fn of(config: &Value, directory: &Path) -> Result<Quantization, CheckpointError> {
        let Some(Value::Object(fields)) = config.get(FIELD) else {
            return Ok(Quantization::default());
        };
        let mut problems = Vec::new();
        let mut groups = |fields: &Map<String, Value>, way: &str| match groups(fields, way) {
            Ok(groups) => Some(groups),
            Err(problem) => {
                problems.push(problem);
                None
            }
        };
        let all = groups(fields, FIELD);
        let mut modules = BTreeMap::new();
        for (module, fields) in fields {
            // `false` says that a module is not quantized, which its tensors say too.
            if let Value::Object(fields) = fields
                && let Some(groups) = groups(fields, &format!("{FIELD}.{module}"))
            {
                modules.insert(module.clone(), groups);
            }
        }
        if problems.is_empty() {
            Ok(Quantization { all, modules })
        } else {
            Err(CheckpointError::Config {
                path: directory.join(CONFIG),
                problems,
            })
        }
    }

    /// How a module's codes are stored; `None` where the config does not say.
    pub(super) fn groups(&self, module: &str) -> Option<Groups> {
        self.modules.get(module).copied().or(self.all)
    }
}

fn groups(fields: &Map<String, Value>, way: &str) -> Result<Groups, String> {
    let number = |name: &str, default: u64| match fields.get(name) {
        None => Ok(default),
        Some(value) => value
            .as_u64()
            .ok_or_else(|| format!("`{way}.{name}` is {value}, expected a whole number")),
    };
    if let Some(mode) = fields.get("mode").filter(|mode| *mode != "affine") {
        return Err(format!("`{way}.mode` is {mode}, this build supports \"affine\""));
    }
    // `mlx.core.quantize`'s defaults.
    let (bits, size) = (number("bits", 4)?, number("group_size", 64)?);
    match (bits, size) {
        (4 | 8, 32 | 64 | 128) => Ok(Groups { bits, size }),
        (4 | 8, _) => Err(format!("`{way}.group_size` is {size}, expected 32, 64 or 128")),
        _ => Err(format!("`{way}.bits` is {bits}, this build supports 4 and 8")),
    }
}

/// A matrix whose rows are whole groups.
#[derive(Debug)]
pub(super) struct Grouped {
    pub(super) codes: TensorId,
    pub(super) scales: TensorId,
    pub(super) biases: TensorId,
    pub(super) groups: Groups,
}

impl Grouped {
    /// Reads values `from .. from + out.len()`, counted row-major.
    ///
    /// # Errors
    /// As [`TensorFile::read`].
    pub(super) fn read(
        &self,
        files: &[TensorFile],
        mut from: usize,
        mut out: &mut [f32],
    ) -> Result<(), CheckpointError> {
        let group = usize::try_from(self.groups.size).unwrap_or(1).max(1);
        while !out.is_empty() {
            // A row is whole groups, and groups are whole words: rows lie one after the other.
            let length = (RUN - from % group).min(out.len());
            let (run, rest) = out.split_at_mut(length);
            self.run(files, from, group, run)?;
            from += length;
            out = rest;
        }
        Ok(())
    }

    /// A run of values: their groups lie one after the other.
    fn run(
        &self,
        files: &[TensorFile],
        from: usize,
        group: usize,
        out: &mut [f32],
    ) -> Result<(), CheckpointError> {
        let place = |id: TensorId| (&files[id.0], &files[id.0].tensors()[id.1]);
        let first = from / group;
        let count = (from + out.len()).div_ceil(group) - first;
        let (mut scales, mut biases) = (vec![0.0; count], vec![0.0; count]);
        let (file, tensor) = place(self.scales);
        file.read(tensor, first, &mut scales)?;
        let (file, tensor) = place(self.biases);
        file.read(tensor, first, &mut biases)?;
        // Words hold 4 or 8 codes from the lowest bits up: bytes in order, and of a byte the low half first.
        let per_word = if self.groups.bits == 4 { 8 } else { 4 };
        let word = from / per_word;
        let mut bytes = vec![0; 4 * ((from + out.len()).div_ceil(per_word) - word)];
        let (file, tensor) = place(self.codes);
        file.copy(tensor, word, &mut bytes)?;
        let skipped = word * per_word;
        for (i, out) in (from..).zip(out) {
            let code = if self.groups.bits == 4 {
                bytes[(i - skipped) / 2] >> (4 * (i % 2)) & 0xf
            } else {
                bytes[i - skipped]
            };
            let group = i / group - first;
            *out = f32::from(code) * scales[group] + biases[group];
        }
        Ok(())
    }
}
