//! Which factors move large activations into weights? A product's inputs become bytes in blocks that share a
//! scale, so one large channel costs its neighbours their precision; and a channel that is always small
//! wastes it. What writes the channel (a norm, a depthwise convolution, the values of attention, the linear
//! half of a gated block) is divided by a factor, and the weights that read it are multiplied with it: the
//! network computes the same, and rounds better.
//!
//! Factors are powers of two, so that "the same" is to the bit in float32. Those are taken, of a few
//! families, for which the expected squared error of the product is least.

use crate::error::ExportError;
use models::arch::fused::Encodings;
use models::checkpoint::{Canonical, Statistics};
use models::config::TokenMixer;
use models::fused::{BLOCK, Encoding};
use models::weights::{MOMENTS, Weights};
use std::collections::BTreeMap;

/// Activations that share a scale in the kernels.
const ACTIVATIONS: usize = 128;

/// Most that a channel is multiplied or divided with, as a power of two.
const MOST: f32 = 5.0;

/// Rows of weights that are looked at.
const ROWS: usize = 512;

/// What rounding with error feedback leaves of the squared error of weights, about.
const FEEDBACK: f64 = 0.5;

/// Factors of a weight, as a matrix: of its rows and of its columns. Empty is 1 throughout.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Factors {
    pub(crate) rows: Vec<f32>,
    pub(crate) columns: Vec<f32>,
}

/// Channels between what writes them and what reads them.
struct Site {
    /// Weights with a row for each channel, and the first of those rows.
    writers: Vec<(String, usize)>,
    /// Matrices of which each column is multiplied with a channel.
    readers: Vec<String>,
    /// The channel of each column.
    channels: Vec<usize>,
    encoding: Encoding,
}

/// The factors of all weights that have some.
///
/// # Errors
/// Weights or statistics that cannot be read.
pub(crate) fn factors(
    weights: &Canonical,
    statistics: &Statistics,
    encodings: Encodings,
) -> Result<BTreeMap<String, Factors>, ExportError> {
    let mut all: BTreeMap<String, Factors> = BTreeMap::new();
    for site in sites(weights, encodings) {
        let exists = |name: &String| weights.specs().iter().any(|spec| spec.name == *name);
        if !site.readers.iter().all(exists) {
            continue;
        }
        let Some(found) = best(weights, statistics, &site)? else {
            continue;
        };
        for (writer, first) in site.writers.iter().filter(|(name, _)| exists(name)) {
            let spec = weights.specs().iter().find(|spec| spec.name == *writer);
            let rows = spec.map_or(0, |spec| spec.matrix().0);
            let factors = all.entry(writer.clone()).or_default();
            if factors.rows.is_empty() {
                factors.rows = vec![1.0; rows];
            }
            for (row, factor) in factors.rows.iter_mut().skip(*first).zip(&found) {
                *row /= factor;
            }
        }
        for reader in &site.readers {
            let factors = all.entry(reader.clone()).or_default();
            factors.columns = site
                .channels
                .iter()
                .map(|channel| found.get(*channel).copied().unwrap_or(1.0))
                .collect();
        }
    }
    Ok(all)
}

/// Where factors can stand.
fn sites(weights: &Canonical, encodings: Encodings) -> Vec<Site> {
    let config = weights.config();
    let mut sites = Vec::new();
    let straight = |length: u64| (0..size(length)).collect::<Vec<_>>();
    let mut add = |writers: Vec<(String, usize)>, readers: Vec<String>, channels, encoding| {
        sites.push(Site {
            writers,
            readers,
            channels,
            encoding,
        });
    };
    let vision = &config.vision;
    for (stage, (width, layers)) in vision.embed_dims.iter().zip(&vision.layers).enumerate() {
        let scope = format!("vision_tower.stages.{stage}");
        let both =
            |name: &str, first| vec![(format!("{name}.weight"), first), (format!("{name}.bias"), first)];
        if !vision.lkc_use_act {
            let scope = format!("{scope}.downsample.proj");
            let reader = format!("{scope}.1.weight");
            add(
                both(&format!("{scope}.0"), 0),
                vec![reader],
                straight(*width),
                encodings.vision,
            );
        }
        for block in 0..*layers {
            let scope = format!("{scope}.blocks.{block}");
            let reader = format!("{scope}.mlp.fc1.weight");
            add(
                both(&format!("{scope}.mlp.conv"), 0),
                vec![reader],
                straight(*width),
                encodings.vision,
            );
            if vision.token_mixers.get(stage) == Some(&TokenMixer::Attention) {
                let qkv = format!("{scope}.token_mixer.qkv.weight");
                add(
                    both(&format!("{scope}.norm"), 0),
                    vec![qkv.clone()],
                    straight(*width),
                    encodings.vision,
                );
                let proj = format!("{scope}.token_mixer.proj.weight");
                add(
                    vec![(qkv, 2 * size(*width))],
                    vec![proj],
                    straight(*width),
                    encodings.vision,
                );
            }
        }
    }
    let decoder = &config.decoder;
    for layer in 0..decoder.layers {
        let scope = format!("language_model.layers.{layer}");
        let reader = |names: &[&str]| -> Vec<String> {
            names
                .iter()
                .map(|name| format!("{scope}.{name}.weight"))
                .collect()
        };
        let norm = |name: &str| vec![(format!("{scope}.{name}.weight"), 0)];
        let hidden = straight(decoder.hidden_size);
        let attention = reader(&["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]);
        add(
            norm("input_layernorm"),
            attention,
            hidden.clone(),
            encodings.decoder,
        );
        let values = vec![
            (format!("{scope}.self_attn.v_proj.weight"), 0),
            (format!("{scope}.self_attn.v_proj.bias"), 0),
        ];
        let (length, shared) = (
            size(decoder.head_dim),
            size(decoder.heads / decoder.kv_heads.max(1)).max(1),
        );
        let channels = straight(decoder.heads * decoder.head_dim);
        let channels = channels.iter().map(|column| {
            let head = column / length.max(1) / shared;
            head * length + column % length.max(1)
        });
        add(
            values,
            reader(&["self_attn.o_proj"]),
            channels.collect(),
            encodings.decoder,
        );
        add(
            norm("post_attention_layernorm"),
            reader(&["mlp.gate_proj", "mlp.up_proj"]),
            hidden,
            encodings.decoder,
        );
        add(
            norm("mlp.up_proj"),
            reader(&["mlp.down_proj"]),
            straight(decoder.intermediate_size),
            encodings.decoder,
        );
    }
    sites
}

fn size(length: u64) -> usize {
    usize::try_from(length).unwrap_or(usize::MAX)
}

/// The best factors of a site's channels; `None` where 1 is best.
fn best(
    weights: &dyn Weights,
    statistics: &Statistics,
    site: &Site,
) -> Result<Option<Vec<f32>>, ExportError> {
    let columns = site.channels.len();
    let channels = site.channels.iter().max().map_or(0, |most| most + 1);
    let Some(first) = site.readers.first() else {
        return Ok(None);
    };
    let peaks = statistics.peaks(first, columns)?;
    let mut squares = Vec::with_capacity(columns);
    for run in 0..columns.div_ceil(MOMENTS) {
        let moments = statistics.moments(first, run, columns)?;
        let width = MOMENTS.min(columns - run * MOMENTS);
        squares.extend(moments.iter().step_by(width + 1));
    }
    let mut lines = Vec::new();
    for reader in &site.readers {
        let spec = weights.specs().iter().find(|spec| spec.name == *reader);
        let rows = spec.map_or(0, |spec| spec.matrix().0);
        for row in (0..rows).step_by(rows.div_ceil(ROWS).max(1)) {
            let mut line = vec![0.0; columns];
            weights.read_block(reader, row..row + 1, 0..columns, &mut line)?;
            lines.push(line);
        }
    }
    let seen = Seen {
        peaks,
        squares,
        lines,
        encoding: site.encoding,
    };
    // Of each channel: how large its inputs get, and how large what reads it is.
    let (mut large, mut read) = (vec![0.0_f32; channels], vec![0.0_f32; channels]);
    for (column, channel) in site.channels.iter().enumerate() {
        let peak = seen
            .peaks
            .get(column)
            .copied()
            .unwrap_or(0.0)
            .max(0.0)
            .sqrt()
            .sqrt();
        let square: f32 = seen
            .lines
            .iter()
            .filter_map(|line| line.get(column))
            .map(|w| w * w)
            .sum();
        if let (Some(large), Some(read)) = (large.get_mut(*channel), read.get_mut(*channel)) {
            *large = large.max(peak);
            *read += square;
        }
    }
    let (large, read) = (
        logarithms(&large),
        logarithms(&read.iter().map(|sum| sum.sqrt()).collect::<Vec<_>>()),
    );
    let plain = vec![1.0; channels];
    let none = seen.error(&plain, &site.channels);
    // Worth a change only if it is one.
    let mut best = (0.98 * none, None);
    for of_large in [0.0_f32, 0.25, 0.5, 0.75, 1.0] {
        for of_read in [0.0_f32, 0.25, 0.5, 0.75] {
            let factors: Vec<f32> = large
                .iter()
                .zip(&read)
                .map(|(large, read)| {
                    (of_large * large - of_read * read)
                        .round()
                        .clamp(-MOST, MOST)
                        .exp2()
                })
                .collect();
            let error = seen.error(&factors, &site.channels);
            if error < best.0 {
                best = (error, Some(factors));
            }
        }
    }
    Ok(best.1)
}

/// Logarithms to base 2, less their mean; 0 for what is 0.
fn logarithms(values: &[f32]) -> Vec<f32> {
    let logarithm = |value: f32| (value > 0.0 && value.is_finite()).then(|| value.log2());
    let known: Vec<f32> = values.iter().filter_map(|value| logarithm(*value)).collect();
    let mean = known.iter().sum::<f32>() / known.len().max(1) as f32;
    values
        .iter()
        .map(|value| logarithm(*value).map_or(0.0, |found| found - mean))
        .collect()
}

/// What is known of a product.
struct Seen {
    /// Fourth moments of the inputs.
    peaks: Vec<f32>,
    /// Second moments of the inputs.
    squares: Vec<f32>,
    /// Some rows of the weights.
    lines: Vec<Vec<f32>>,
    encoding: Encoding,
}

impl Seen {
    /// The expected squared error of the product, up to a factor, with these factors of the channels.
    fn error(&self, factors: &[f32], channels: &[usize]) -> f64 {
        let factor: Vec<f64> = channels
            .iter()
            .map(|channel| f64::from(factors.get(*channel).copied().unwrap_or(1.0)))
            .collect();
        let read: Vec<f64> = (0..channels.len())
            .map(|column| {
                let column = self.lines.iter().filter_map(|line| line.get(column));
                column.map(|weight| f64::from(*weight).powi(2)).sum()
            })
            .collect();
        let small: Vec<f64> = self
            .squares
            .iter()
            .zip(&factor)
            .map(|(x, s)| f64::from(*x) / (s * s))
            .collect();
        let mut error = 0.0;
        let blocks = self
            .peaks
            .chunks(ACTIVATIONS)
            .zip(factor.chunks(ACTIVATIONS))
            .zip(read.chunks(ACTIVATIONS));
        for ((peaks, factors), read) in blocks {
            let peak: f64 = peaks
                .iter()
                .zip(factors)
                .map(|(x, s)| f64::from(*x) / s.powi(4))
                .sum();
            let read: f64 = read.iter().zip(factors).map(|(w, s)| w * s * s).sum();
            error += peak.sqrt() / (127.0 * 127.0) * read;
        }
        let (width, steps) = match self.encoding {
            Encoding::Int4 => (usize::try_from(BLOCK).unwrap_or(32), 8.0),
            Encoding::Int8 | Encoding::Float32 => (channels.len().max(1), 127.0),
        };
        for line in &self.lines {
            let blocks = line
                .chunks(width)
                .zip(factor.chunks(width))
                .zip(small.chunks(width));
            for ((weights, factors), small) in blocks {
                let largest = weights.iter().zip(factors).map(|(w, s)| f64::from(w.abs()) * s);
                let step = largest.fold(0.0, f64::max) / steps;
                error += FEEDBACK * step * step * small.iter().sum::<f64>();
            }
        }
        error
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One channel is a hundred times larger: a factor of it makes the expected error smaller, and of none
    /// larger.
    #[test]
    fn a_large_channel_is_worth_a_factor() {
        let width = 64;
        let mut peaks = vec![1.0_f32; width];
        let mut squares = vec![1.0_f32; width];
        peaks[5] = 1e8;
        squares[5] = 1e4;
        let seen = Seen {
            peaks,
            squares,
            lines: (0..8)
                .map(|row| {
                    (0..width)
                        .map(|k| ((row * 7 + k * 3) % 11) as f32 / 5.0 - 1.0)
                        .collect()
                })
                .collect(),
            encoding: Encoding::Int8,
        };
        let channels: Vec<usize> = (0..width).collect();
        let mut factors = vec![1.0; width];
        let none = seen.error(&factors, &channels);
        factors[5] = 8.0;
        assert!(seen.error(&factors, &channels) < 0.5 * none);
        factors[5] = 1.0;
        factors[6] = 32.0;
        assert!(seen.error(&factors, &channels) > none);
    }

    #[test]
    fn logarithms_are_around_zero() {
        assert_eq!(logarithms(&[1.0, 4.0, 0.0, 16.0]), [-2.0, 0.0, 0.0, 2.0]);
    }
}
