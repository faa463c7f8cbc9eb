//! Small made-up things for suites: numbers, weights, a config. Deterministic, from no file.

use crate::array::Array;
use models::checkpoint::CheckpointError;
use models::graph::{Graph, Source, WeightForm};
use models::weights::{WeightSpec, Weights};
use std::collections::BTreeMap;
use std::ops::Range;

/// Evenly spread numbers in [-1, 1), the same for the same seed: splitmix64 over a counter.
pub fn numbers(seed: u64, count: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    (0..count)
        .map(|_| {
            state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
            let mut z = state;
            z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            z ^= z >> 31;
            // 24 bits are exact in float32.
            (z >> 40) as f32 / 8_388_608.0 - 1.0
        })
        .collect()
}

/// An array of [`numbers`].
pub fn random(seed: u64, shape: &[usize]) -> Array {
    Array::float(shape, numbers(seed, shape.iter().product()))
}

/// Weights held in memory.
#[derive(Debug, Default)]
pub struct Given {
    specs: Vec<WeightSpec>,
    data: BTreeMap<String, Vec<f32>>,
}

impl Given {
    /// Random weights for everything that a graph reads, scaled so that activations keep their size: matrices and
    /// kernels by their inputs, scales around 1, biases small.
    pub fn random(graph: &Graph, seed: u64) -> Given {
        let mut given = Given::default();
        for value in &graph.values {
            let Source::Weight(weight) = &value.source else {
                continue;
            };
            let mut shape: Vec<u64> = value.shape.iter().filter_map(|dim| dim.fixed()).collect();
            if weight.form == WeightForm::Transposed {
                shape.reverse();
            }
            if !given.data.contains_key(&weight.name) {
                given.insert(
                    WeightSpec {
                        name: weight.name.clone(),
                        shape,
                    },
                    seed,
                );
            }
        }
        given
    }

    fn insert(&mut self, spec: WeightSpec, seed: u64) {
        let (rows, columns) = spec.matrix();
        let seed = spec.name.bytes().fold(seed, |seed, byte| {
            seed.wrapping_mul(31).wrapping_add(u64::from(byte))
        });
        let scale_like = spec.name.ends_with("norm.weight") || spec.name.ends_with("gamma");
        let (offset, scale) = match spec.shape.len() {
            _ if scale_like || spec.name.ends_with("layernorm.weight") => (0.8, 0.4),
            1 => (0.0, 0.1),
            _ => (0.0, (3.0 / columns as f32).sqrt()),
        };
        let data = numbers(seed, rows * columns)
            .into_iter()
            .map(|n| offset + scale * n)
            .collect();
        self.data.insert(spec.name.clone(), data);
        self.specs.push(spec);
    }
}

impl Weights for Given {
    fn specs(&self) -> &[WeightSpec] {
        &self.specs
    }

    fn read_block(
        &self,
        name: &str,
        rows: Range<usize>,
        columns: Range<usize>,
        out: &mut [f32],
    ) -> Result<(), CheckpointError> {
        let unknown = || CheckpointError::UnknownWeight {
            name: name.to_owned(),
        };
        let spec = self
            .specs
            .iter()
            .find(|spec| spec.name == name)
            .ok_or_else(unknown)?;
        let data = self.data.get(name).ok_or_else(unknown)?;
        let (_, width) = spec.matrix();
        for (row, out) in rows.zip(out.chunks_exact_mut(columns.len().max(1))) {
            out.copy_from_slice(&data[row * width..][columns.clone()]);
        }
        Ok(())
    }
}
