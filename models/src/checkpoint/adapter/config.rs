//! `adapter_config.json`: what PEFT says of an adapter. What changes numbers is done or refused by name,
//! fields that nobody here knows too; what was only about training is passed over.

use super::pattern::Patterns;
use super::reach::{Modules, Reach};
use crate::checkpoint::error::{CheckpointError, short};
use crate::checkpoint::small;
use serde_json::{Map, Value};
use std::path::Path;

/// Longest file that is read: peft writes some kilobytes, some hundred with a rank for every module.
const MAX_BYTES: u64 = 4 << 20;
/// Most patterns before the number of a layer, which every tensor is held against, whether it fits the base or not.
const MOST_BEFORE_LAYERS: usize = 16;
/// Most names of a list: several for each layer of the largest model.
const MOST_NAMES: usize = 4096;
/// Highest rank that is believed.
const MAX_RANK: u64 = 1 << 20;

/// Fields that say how an adapter was trained, or that tensors say better.
const PASSED_OVER: [&str; 24] = [
    "auto_mapping",
    "corda_config",
    "eva_config",
    "inference_mode",
    "loftq_config",
    "lora_dropout",
    "lora_ga_config",
    "megatron_config",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "runtime_config",
    "task_type",
    "velora_config",
    // Read below.
    "alpha_pattern",
    "base_model_name_or_path",
    "bias",
    "ensure_weight_tying",
    "fan_in_fan_out",
    "init_lora_weights",
    "lora_alpha",
    "lora_bias",
    "modules_to_save",
    "peft_type",
];
const READ: [&str; 9] = [
    "exclude_modules",
    "layers_pattern",
    "layers_to_transform",
    "r",
    "rank_pattern",
    "revision",
    "target_modules",
    "use_dora",
    "use_rslora",
];

/// Ways to begin that take something out of the base's weights, which only whoever began so can do again.
const CHANGES_THE_BASE: [&str; 5] = ["pissa", "olora", "corda", "loftq", "lora_ga"];
/// Ways to begin that leave the base as it is.
const LEAVES_THE_BASE: [&str; 4] = ["gaussian", "eva", "orthogonal", "mica"];

/// What an adapter says of itself.
#[derive(Debug)]
pub(super) struct LoraConfig {
    rank: u64,
    alpha: f64,
    ranks: Patterns<u64>,
    alphas: Patterns<f64>,
    rank_stabilised: bool,
    /// Whether magnitudes are trained apart from directions.
    pub(super) dora: bool,
    /// Whether `lora_B` has a bias.
    pub(super) bias_of_b: bool,
    /// Whether the head follows the embedding where the base has one table for both.
    pub(super) stays_tied: bool,
    /// Modules whose tensors the adapter has as a whole.
    pub(super) modules_to_save: Vec<String>,
    /// Names of the modules that were adapted, where they are a list.
    pub(super) target_modules: Vec<String>,
    /// Which modules' tensors count.
    pub(super) reach: Reach,
    /// What it was trained on: a directory or a model of the hub.
    pub(super) base: Option<String>,
    /// Which revision of that.
    pub(super) revision: Option<String>,
    /// What the user should know.
    pub(super) warnings: Vec<String>,
}

impl LoraConfig {
    /// Reads a file.
    ///
    /// # Errors
    /// A file that cannot be read or is no JSON object, everything in it that is not done here, and every
    /// field that is missing or of another type.
    pub(super) fn read(path: &Path) -> Result<LoraConfig, CheckpointError> {
        let value = small::object_of(&small::text(path, MAX_BYTES)?, path)?;
        let mut fields = Fields {
            object: value.as_object(),
            problems: Vec::new(),
        };
        let config = fields.config();
        if fields.problems.is_empty() {
            Ok(config)
        } else {
            Err(CheckpointError::Config {
                path: path.to_owned(),
                problems: fields.problems,
            })
        }
    }

    /// Rank of a module's pair, and what its product is multiplied with.
    ///
    /// # Errors
    /// A pattern that takes too long.
    pub(super) fn scale(&self, module: &str) -> Result<Scale, String> {
        let rank = self.ranks.of(module)?.unwrap_or(self.rank);
        let alpha = self.alphas.of(module)?.unwrap_or(self.alpha);
        #[expect(clippy::as_conversions, reason = "ranks are far below 2^53")]
        let by = rank as f64;
        let by = if self.rank_stabilised { by.sqrt() } else { by };
        Ok(Scale {
            rank,
            alpha,
            factor: alpha / by,
        })
    }

    /// Patterns that are the first to match none of the modules, with the field they stand in.
    pub(super) fn unused_patterns(&self, modules: &[&str]) -> Vec<(&'static str, &str)> {
        let ranks = self.ranks.unused(modules).into_iter();
        let alphas = self.alphas.unused(modules).into_iter();
        ranks
            .map(|key| ("rank_pattern", key))
            .chain(alphas.map(|key| ("alpha_pattern", key)))
            .collect()
    }
}

/// What a pair's product is multiplied with.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Scale {
    pub(super) rank: u64,
    pub(super) alpha: f64,
    /// `alpha / rank`; of rank-stabilised LoRA `alpha / sqrt(rank)`.
    pub(super) factor: f64,
}

struct Fields<'a> {
    object: Option<&'a Map<String, Value>>,
    problems: Vec<String>,
}

impl<'a> Fields<'a> {
    /// The field's value; null counts as absent.
    fn value(&self, name: &str) -> Option<&'a Value> {
        let value = self.object.and_then(|object| object.get(name));
        value.filter(|value| !value.is_null())
    }

    fn expected(&mut self, name: &str, found: Option<&Value>, expected: &str) {
        self.problems.push(match found {
            Some(found) => format!("`{name}` is {}, expected {expected}", short(found)),
            None => format!("`{name}` is missing, expected {expected}"),
        });
    }

    fn flag(&mut self, name: &str) -> bool {
        match self.value(name) {
            None => false,
            Some(Value::Bool(flag)) => *flag,
            found => {
                self.expected(name, found, "true or false");
                false
            }
        }
    }

    fn text(&mut self, name: &str) -> Option<String> {
        match self.value(name) {
            None => None,
            Some(Value::String(text)) => Some(text.clone()),
            found => {
                self.expected(name, found, "a text");
                None
            }
        }
    }

    /// Names of modules; none where the field is missing.
    fn names(&mut self, name: &str) -> Vec<String> {
        let names = match self.value(name) {
            None => return Vec::new(),
            Some(Value::Array(list)) if list.len() > MOST_NAMES => {
                self.problems.push(format!(
                    "`{name}` has {} names, expected at most {MOST_NAMES}",
                    list.len()
                ));
                return Vec::new();
            }
            Some(Value::Array(list)) => list
                .iter()
                .map(|name| name.as_str().map(str::to_owned))
                .collect::<Option<Vec<_>>>(),
            Some(_) => None,
        };
        names.unwrap_or_else(|| {
            self.expected(name, self.value(name), "a list of names of modules");
            Vec::new()
        })
    }

    fn patterns<T: Copy>(
        &mut self,
        name: &str,
        expected: &str,
        read: impl Fn(&Value) -> Option<T>,
    ) -> Patterns<T> {
        let mut patterns = Patterns::default();
        match self.value(name) {
            None => {}
            Some(Value::Object(object)) => {
                for (key, value) in object {
                    match read(value) {
                        Some(value) => {
                            if let Err(problem) = patterns.add(key, value) {
                                self.problems.push(format!("`{name}`: {problem}"));
                            }
                        }
                        None => self.expected(&format!("{name}.{key}"), Some(value), expected),
                    }
                }
            }
            found => self.expected(name, found, "an object of patterns"),
        }
        patterns
    }

    fn config(&mut self) -> LoraConfig {
        match self.value("peft_type") {
            Some(Value::String(kind)) if kind == "LORA" => {}
            None if self.value("lora_parameters").is_some() || self.value("fine_tune_type").is_some() => {
                let problem = "is of an adapter of MLX, this build merges those of PEFT: fuse it into the \
                    weights first (`mlx_vlm`'s or `mlx_lm`'s `fuse`)";
                self.problems.push(problem.to_owned());
            }
            found => self.expected("peft_type", found, "\"LORA\", the one kind that is merged here"),
        }
        if !self.problems.is_empty() {
            // The rest of another kind's file means something else.
            let problems = std::mem::take(&mut self.problems);
            let config = self.read();
            self.problems = problems;
            return config;
        }
        self.refuse_unknown();
        self.refuse_beginnings();
        self.read()
    }

    /// Refuses every field that is not known to change nothing, where it is set.
    fn refuse_unknown(&mut self) {
        let fields = self.object.into_iter().flatten();
        for (name, value) in fields {
            let known = PASSED_OVER.contains(&name.as_str()) || READ.contains(&name.as_str());
            if !known && !is_unset(value) {
                let value = short(value);
                self.problems.push(format!(
                    "`{name}` is {value}, which is not merged here: expected null, false or no such field"
                ));
            }
        }
    }

    /// Refuses ways to begin that took something out of the base.
    fn refuse_beginnings(&mut self) {
        const NAME: &str = "init_lora_weights";
        match self.value(NAME) {
            None | Some(Value::Bool(_)) => {}
            Some(Value::String(way)) => {
                let way = way.to_lowercase();
                if CHANGES_THE_BASE.iter().any(|changes| way.starts_with(changes)) {
                    self.problems.push(format!(
                        "`{NAME}` is \"{way}\", which changes the base's weights before it is trained: save \
                         the adapter with `path_initial_model_for_weight_conversion`, or merge it with peft"
                    ));
                } else if !LEAVES_THE_BASE.contains(&way.as_str()) {
                    let known = LEAVES_THE_BASE.join(", ");
                    self.expected(NAME, self.value(NAME), &format!("true, false or one of {known}"));
                }
            }
            found => self.expected(NAME, found, "true, false or a text"),
        }
    }

    /// A field that peft has a default for, which null is not.
    fn or_default<T>(
        &mut self,
        name: &str,
        default: T,
        expected: &str,
        read: impl Fn(&Value) -> Option<T>,
    ) -> T {
        let Some(found) = self.object.and_then(|object| object.get(name)) else {
            return default;
        };
        read(found).unwrap_or_else(|| {
            self.expected(name, Some(found), expected);
            default
        })
    }

    /// Which modules the config names; `targets` are those of its list.
    fn reach(&mut self, targets: &[String]) -> Reach {
        let mut reach = Reach::default();
        let names = |list: Vec<String>| Modules::Names(list.into_iter().collect());
        match self.value("target_modules") {
            // What peft makes a list of, and an expression that is not understood: the tensors say what is meant.
            Some(Value::String(text)) if text != "all-linear" => {
                reach.targets = Modules::expression(text).ok();
            }
            Some(Value::Array(_)) => reach.targets = Some(names(targets.to_vec())),
            _ => {}
        }
        match self.value("exclude_modules") {
            Some(Value::String(text)) if text.is_empty() => {}
            Some(Value::String(text)) => match Modules::expression(text) {
                Ok(modules) => reach.excluded = Some(modules),
                Err(problem) => self.problems.push(format!("`exclude_modules`: {problem}")),
            },
            _ => reach.excluded = Some(names(self.names("exclude_modules"))),
        }
        const LAYERS: &str = "layers_to_transform";
        let found = self.value(LAYERS);
        let layers: Option<Vec<u64>> = match found {
            None => Some(Vec::new()),
            Some(Value::Array(list)) => list.iter().map(Value::as_u64).collect(),
            Some(one) => one.as_u64().map(|layer| vec![layer]),
        };
        match layers {
            Some(layers) if layers.is_empty() => {}
            Some(_) if self.value("target_modules").is_some_and(Value::is_string) => {
                self.expected(
                    LAYERS,
                    found,
                    "no such field beside a `target_modules` that is no list",
                );
            }
            Some(layers) => reach.layers = Some(layers.into_iter().collect()),
            None => self.expected(LAYERS, found, "a layer's number, or a list of them"),
        }
        let before = match self.value("layers_pattern") {
            Some(Value::String(text)) if text.is_empty() => Vec::new(),
            Some(Value::String(text)) => vec![text.clone()],
            _ => self.names("layers_pattern"),
        };
        if before.len() > MOST_BEFORE_LAYERS {
            self.problems.push(format!(
                "`layers_pattern`: more than {MOST_BEFORE_LAYERS} patterns"
            ));
            return reach;
        }
        for text in &before {
            match Reach::before_layer(text) {
                Ok(regex) => reach.before_layers.push(regex),
                Err(problem) => self.problems.push(format!("`layers_pattern`: {problem}")),
            }
        }
        reach
    }

    fn read(&mut self) -> LoraConfig {
        let whole = |value: &Value| {
            let whole = value.as_u64().filter(|rank| (1..=MAX_RANK).contains(rank));
            // A whole number may be written as 16.0.
            #[expect(
                clippy::as_conversions,
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "within the range and whole"
            )]
            whole.or_else(|| {
                let number = value.as_f64()?;
                ((1.0..=1e6).contains(&number) && number.fract() == 0.0).then_some(number as u64)
            })
        };
        let number = |value: &Value| value.as_f64().filter(|number| number.is_finite());
        const RANK: &str = "a whole number above 0";
        const ALPHA: &str = "a number";
        let rank = self.or_default("r", 8, RANK, whole);
        let alpha = self.or_default("lora_alpha", 8.0, ALPHA, number);
        match self.value("bias") {
            None => {}
            Some(Value::String(way)) if matches!(way.as_str(), "none" | "all" | "lora_only") => {}
            found => self.expected("bias", found, "\"none\", \"all\" or \"lora_only\""),
        }
        let target_modules = match self.value("target_modules") {
            // An expression, or `all-linear`: the tensors say what it meant.
            Some(Value::String(_)) => Vec::new(),
            _ => self.names("target_modules"),
        };
        let mut warnings = Vec::new();
        if self.flag("fan_in_fan_out") {
            warnings.push(
                "`fan_in_fan_out` is true, but no layer of a FastVLM stores its weight transposed: as in peft, \
                 it is not believed"
                    .to_owned(),
            );
        }
        LoraConfig {
            rank,
            alpha,
            ranks: self.patterns("rank_pattern", RANK, whole),
            alphas: self.patterns("alpha_pattern", ALPHA, number),
            rank_stabilised: self.flag("use_rslora"),
            dora: self.flag("use_dora"),
            bias_of_b: self.flag("lora_bias"),
            stays_tied: self.flag("ensure_weight_tying"),
            modules_to_save: self.names("modules_to_save"),
            reach: self.reach(&target_modules),
            target_modules,
            base: self.text("base_model_name_or_path"),
            revision: self.text("revision"),
            warnings,
        }
    }
}

/// Whether a value says that something is not used.
fn is_unset(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(object) => object.is_empty(),
        Value::Bool(true) | Value::Number(_) => false,
    }
}
