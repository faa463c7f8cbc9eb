//! What is element `i` of a tensor?

use super::SynthError;
use super::table::{Geometry, Table, float};
use sha2::{Digest, Sha256};

/// The finaliser of splitmix64.
pub(super) fn splitmix64(z: u64) -> u64 {
    let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// A tensor as a function of the index.
#[derive(Debug)]
pub(super) struct Noise {
    key: u64,
    offset: f64,
    scale: f64,
    /// `(taps of a kernel, offset at its centre)`.
    centre: Option<(u64, f64)>,
    /// Elements that are replaced, by ascending index: `(index, factor, add)`.
    outliers: Vec<(u64, f64, f64)>,
}

impl Noise {
    pub(super) fn new(
        table: &Table,
        geometry: &Geometry,
        seed: u64,
        name: &str,
        shape: &[u64],
        outliers: bool,
    ) -> Result<Noise, SynthError> {
        let rule = table.rule(name)?;
        let fan_in: u64 = shape.iter().skip(1).product();
        let digest = Sha256::digest(format!("{seed}/{name}"));
        let mut first = [0; 8];
        first.copy_from_slice(&digest[..8]);
        let centre = rule
            .centre
            .map(|centre| (shape.iter().rev().take(2).product(), rule.offset + centre));
        let mut replaced = Vec::new();
        if outliers {
            let rows = shape.first().copied().unwrap_or(1);
            for outlier in table
                .outliers
                .iter()
                .filter(|outlier| name.ends_with(&outlier.ends))
            {
                let columns = table.select(&outlier.columns, fan_in, geometry)?;
                for row in table.select(&outlier.rows, rows, geometry)? {
                    replaced.extend(
                        columns
                            .iter()
                            .map(|column| (row * fan_in + column, outlier.factor, outlier.add)),
                    );
                }
            }
            replaced.sort_by_key(|&(index, _, _)| index);
        }
        Ok(Noise {
            key: u64::from_le_bytes(first),
            offset: rule.offset,
            scale: rule.half_range(fan_in),
            centre,
            outliers: replaced,
        })
    }

    /// Element `i` before outliers, in float64.
    fn base(&self, i: u64) -> f64 {
        let bits = splitmix64(self.key.wrapping_add((i + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15)));
        let v = float(bits >> 40) / 8_388_608.0 - 1.0;
        let offset = match self.centre {
            Some((taps, offset)) if i % taps == taps / 2 => offset,
            _ => self.offset,
        };
        offset + self.scale * v
    }

    /// Element `i`, rounded once.
    pub(super) fn value(&self, i: u64) -> f32 {
        let base = self.base(i);
        let value = match self.outliers.binary_search_by_key(&i, |&(index, _, _)| index) {
            Ok(found) if !self.outliers.is_empty() => self.outliers[found].2 + self.outliers[found].1 * base,
            _ => base,
        };
        value as f32
    }
}
