//! What does `table.json` say: geometries, scales, outliers, templates?

use super::{Size, SynthError};
use serde::Deserialize;
use std::collections::BTreeMap;

/// The parsed table.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Table {
    sizes: BTreeMap<String, Geometry>,
    scales: Vec<Rule>,
    pub(super) outliers: Vec<Outlier>,
    sixteenths: BTreeMap<String, Vec<u64>>,
    pub(super) special_tokens: Vec<String>,
    pub(super) templates: Templates,
}

/// One size of the model.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Geometry {
    pub(super) image_size: u64,
    pub(super) embed_dims: Vec<u64>,
    pub(super) layers: Vec<u64>,
    pub(super) hidden_size: u64,
    pub(super) num_hidden_layers: u64,
    pub(super) num_attention_heads: u64,
    pub(super) num_key_value_heads: u64,
    pub(super) intermediate_size: u64,
    pub(super) vocab_size: u64,
    /// Id of `<|endoftext|>`; the other special tokens follow it.
    pub(super) first_special: u64,
    pub(super) max_position_embeddings: u64,
    pub(super) tied: bool,
}

impl Geometry {
    /// Channels of the tower's output.
    pub(super) fn features(&self) -> u64 {
        2 * self.embed_dims.last().copied().unwrap_or(0)
    }

    pub(super) fn head_dim(&self) -> u64 {
        self.hidden_size / self.num_attention_heads.max(1)
    }
}

/// Mean and half-range of the tensors whose names match; the first match wins.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Rule {
    #[serde(default)]
    starts: String,
    ends: String,
    pub(super) offset: f64,
    scale: Option<f64>,
    fan_in: Option<f64>,
    /// Added at the centre of every kernel: what a folded skip connection looks like.
    pub(super) centre: Option<f64>,
}

impl Rule {
    /// Half the range of the values: given, or a gain over the square root of the elements that one output sums.
    pub(super) fn half_range(&self, fan_in: u64) -> f64 {
        match (self.fan_in, self.scale) {
            (Some(gain), _) => gain * (3.0 / float(fan_in)).sqrt(),
            (None, scale) => scale.unwrap_or(0.0),
        }
    }
}

/// Elements that are `add + factor * value` when outliers are asked for.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Outlier {
    pub(super) ends: String,
    pub(super) rows: String,
    pub(super) columns: String,
    pub(super) factor: f64,
    pub(super) add: f64,
}

/// Chat templates by layout.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Templates {
    pub(super) llava: String,
    pub(super) transformers: String,
}

impl Table {
    pub(super) fn read() -> Result<Table, SynthError> {
        serde_json::from_str(include_str!("table.json")).map_err(|error| SynthError::Table {
            reason: error.to_string(),
        })
    }

    pub(super) fn geometry(&self, size: Size) -> Result<&Geometry, SynthError> {
        self.sizes.get(size.name()).ok_or_else(|| SynthError::Table {
            reason: format!("no size `{}`", size.name()),
        })
    }

    pub(super) fn rule(&self, name: &str) -> Result<&Rule, SynthError> {
        self.scales
            .iter()
            .find(|rule| name.starts_with(&rule.starts) && name.ends_with(&rule.ends))
            .ok_or_else(|| SynthError::Table {
                reason: format!("no scale for `{name}`"),
            })
    }

    /// Indices along an axis of `length` that an outlier's selector means.
    pub(super) fn select(
        &self,
        selector: &str,
        length: u64,
        geometry: &Geometry,
    ) -> Result<Vec<u64>, SynthError> {
        let head = geometry.head_dim();
        match selector {
            "all" => Ok((0..length).collect()),
            "first_token" => Ok(vec![geometry.first_special + 1]),
            "slow_rope" => Ok((0..length / head)
                .flat_map(|k| [head / 2 - 1, head - 1].map(|channel| k * head + channel))
                .collect()),
            named => match self.sixteenths.get(named) {
                Some(parts) => Ok(parts.iter().map(|part| length * part / 16).collect()),
                None => Err(SynthError::Table {
                    reason: format!("no selector `{named}`"),
                }),
            },
        }
    }
}

/// Counts here are far below 2^53.
pub(super) fn float(count: u64) -> f64 {
    count as f64
}
