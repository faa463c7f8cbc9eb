//! What lies beside an adapter's tensors: a config of the model that it was trained in, a tokenizer. The
//! base's are used, but for how images were made square, which LLaVA's `builder.py` takes from the adapter.

use super::Adapter;
use crate::checkpoint::error::CheckpointError;
use crate::checkpoint::small::{self, MAX_INDEX};
use crate::checkpoint::{Checkpoint, Layout, assets};
use crate::config::{CONFIG, Declared, ModelConfig, TokenMixer};
use serde_json::Value;
use std::path::Path;

/// How images that are not square are made so, in Apple's dialect.
const ASPECT: &str = "image_aspect_ratio";

impl Checkpoint {
    /// Looks at what lies beside adapters: the model of their `config.json` must be this one, and how it made
    /// images square is believed. What the user should know comes back.
    ///
    /// # Errors
    /// A config of another model, or two of which each makes images square in its own way; a file that cannot
    /// be read.
    pub fn adapt(&mut self, adapters: &[Adapter]) -> Result<Vec<String>, CheckpointError> {
        let mut warnings = Vec::new();
        let mut stated: Option<(&Adapter, Value)> = None;
        for adapter in adapters.iter().filter(|adapter| adapter.path.is_dir()) {
            if let Some(aspect) = self.declared_beside(adapter)? {
                match &stated {
                    Some((other, another)) if *another != aspect => {
                        let problem = format!(
                            "`{CONFIG}` says `{ASPECT}` {aspect}, that of adapter `{}` {another}",
                            other.name
                        );
                        return Err(misfit(adapter, vec![problem]));
                    }
                    _ => stated = Some((adapter, aspect)),
                }
            }
            let differ = self.different_inputs(adapter)?;
            if !differ.is_empty() {
                warnings.push(format!(
                    "adapter `{}`: {} not as in the model, whose own are used",
                    adapter.name,
                    match differ.as_slice() {
                        [one] => format!("{one} is"),
                        several => format!("{} are", several.join(" and ")),
                    }
                ));
            }
        }
        if let Some((adapter, aspect)) = stated {
            let own = self.declared.fields.get(ASPECT).cloned().unwrap_or(Value::Null);
            if squared(&own) != squared(&aspect) {
                warnings.push(format!(
                    "adapter `{}`: `{ASPECT}` is {aspect}, that of the model {own}: the adapter's is used",
                    adapter.name
                ));
                if let Value::Object(fields) = &mut self.declared.fields {
                    fields.insert(ASPECT.to_owned(), aspect);
                }
            }
        }
        Ok(warnings)
    }

    /// How the config beside an adapter makes images square, where both dialects are Apple's; `None` without
    /// a config.
    fn declared_beside(&self, adapter: &Adapter) -> Result<Option<Value>, CheckpointError> {
        if !adapter.path.join(CONFIG).exists() {
            return Ok(None);
        }
        let fields = Declared::fields(&adapter.path)?;
        let aspect = fields.get(ASPECT).cloned().unwrap_or(Value::Null);
        let found = Declared::read(&adapter.path, fields)?;
        let differences = differences(&found.config, self.config());
        if !differences.is_empty() {
            return Err(misfit(adapter, differences));
        }
        let both = [found.layout, self.declared.layout];
        Ok((both == [Layout::Llava; 2]).then_some(aspect))
    }

    /// Files for inputs that are not as they are beside the checkpoint's weights.
    fn different_inputs(&self, adapter: &Adapter) -> Result<Vec<String>, CheckpointError> {
        let mut differ = Vec::new();
        for name in assets::input_files() {
            let read = |directory: &Path| small::text_if_there(&directory.join(name), MAX_INDEX);
            let Some(found) = read(&adapter.path)? else {
                continue;
            };
            if read(&self.path)?.is_none_or(|own| !same(&own, &found)) {
                differ.push(format!("`{name}`"));
            }
        }
        Ok(differ)
    }
}

/// Whether two texts say the same, as JSON or word for word.
fn same(one: &str, other: &str) -> bool {
    let json = |text| serde_json::from_str::<Value>(text).ok();
    one == other || json(one).is_some_and(|one| Some(one) == json(other))
}

/// How images are made square: null and `square` are the same.
fn squared(aspect: &Value) -> &Value {
    const SQUARE: &Value = &Value::Null;
    match aspect.as_str() {
        Some("square") => SQUARE,
        _ => aspect,
    }
}

fn misfit(adapter: &Adapter, problems: Vec<String>) -> CheckpointError {
    CheckpointError::Adapter {
        path: adapter.path.clone(),
        problems,
    }
}

/// Where two models have other sizes. Whether the head is tied is said by tensors.
fn differences(found: &ModelConfig, expected: &ModelConfig) -> Vec<String> {
    let pairs = geometry(found).into_iter().zip(geometry(expected));
    pairs
        .filter(|((_, found), (_, expected))| found != expected)
        .map(|((name, found), (_, expected))| {
            format!("`{CONFIG}` is of another model: {name} {found}, the base has {expected}")
        })
        .collect()
}

/// The sizes of a model, with names for people.
fn geometry(config: &ModelConfig) -> Vec<(&'static str, String)> {
    let list = |values: Vec<String>| values.join(" ");
    let whole = |values: &[u64]| list(values.iter().map(u64::to_string).collect());
    let ModelConfig {
        vision,
        projector,
        decoder,
    } = config;
    let mixers = vision.token_mixers.iter().map(|mixer| match mixer {
        TokenMixer::RepMixer => "repmixer".to_owned(),
        TokenMixer::Attention => "attention".to_owned(),
    });
    let positions = vision.pos_embs.iter();
    let positions = positions.map(|side| side.map_or("none".to_owned(), |side| side.to_string()));
    vec![
        ("image size", vision.image_size.to_string()),
        ("`embed_dims`", whole(&vision.embed_dims)),
        ("`layers` of the tower", whole(&vision.layers)),
        (
            "`mlp_ratios`",
            list(vision.mlp_ratios.iter().map(f64::to_string).collect()),
        ),
        ("`token_mixers`", list(mixers.collect())),
        (
            "`downsamples`",
            list(vision.downsamples.iter().map(bool::to_string).collect()),
        ),
        ("`pos_embs_shapes`", list(positions.collect())),
        ("`repmixer_kernel_size`", vision.repmixer_kernel_size.to_string()),
        ("`down_patch_size`", vision.down_patch_size.to_string()),
        ("`down_stride`", vision.down_stride.to_string()),
        ("`lkc_use_act`", vision.lkc_use_act.to_string()),
        (
            "channels of the final convolution",
            vision.final_channels.to_string(),
        ),
        ("layer scales", vision.layer_scale.to_string()),
        ("epsilon of the tower's norms", vision.norm_epsilon.to_string()),
        ("length of the tower's heads", vision.head_dim.to_string()),
        ("`mm_hidden_size`", projector.input.to_string()),
        ("bias of the projector", projector.bias.to_string()),
        ("`hidden_size`", decoder.hidden_size.to_string()),
        ("`num_hidden_layers`", decoder.layers.to_string()),
        ("`num_attention_heads`", decoder.heads.to_string()),
        ("`num_key_value_heads`", decoder.kv_heads.to_string()),
        ("`head_dim`", decoder.head_dim.to_string()),
        ("`intermediate_size`", decoder.intermediate_size.to_string()),
        ("`vocab_size`", decoder.vocab_size.to_string()),
        ("`rms_norm_eps`", decoder.rms_norm_epsilon.to_string()),
        ("`rope_theta`", decoder.rope_theta.to_string()),
        (
            "`max_position_embeddings`",
            decoder.max_position_embeddings.to_string(),
        ),
    ]
}
