//! Which modules does an adapter reach? PEFT puts LoRA around the modules that the config names, and passes over
//! tensors of all others: what would be merged here would not be what it answers.

use super::pattern::expression;
use fancy_regex::Regex;
use std::collections::BTreeSet;

/// Modules, as a field names them.
#[derive(Debug)]
pub(super) enum Modules {
    /// An expression that a whole name matches.
    Expression(Regex),
    /// Names, or their ends.
    Names(BTreeSet<String>),
}

impl Modules {
    /// An expression of Python, matched as by `re.fullmatch`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn expression(text: &str) -> Result<Modules, String> {
        expression(text, &format!("^(?:{text})$")).map(Modules::Expression)
    }

    /// Whether a module is one of them.
    fn have(&self, module: &str) -> Result<bool, String> {
        match self {
            Modules::Expression(regex) => is_match(regex, module),
            Modules::Names(names) => {
                let ends = module
                    .match_indices('.')
                    .filter_map(|(at, _)| module.get(at + 1..));
                Ok(names.contains(module) || ends.into_iter().any(|end| names.contains(end)))
            }
        }
    }
}

/// What `check_target_module_exists` of peft asks for.
#[derive(Debug, Default)]
pub(super) struct Reach {
    /// `target_modules`; none where the tensors say what it meant.
    pub(super) targets: Option<Modules>,
    /// `exclude_modules`.
    pub(super) excluded: Option<Modules>,
    /// `layers_to_transform`.
    pub(super) layers: Option<BTreeSet<u64>>,
    /// `layers_pattern`, each before the number of a layer; none stands for any.
    pub(super) before_layers: Vec<Regex>,
}

impl Reach {
    /// An expression before the number of a layer.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn before_layer(text: &str) -> Result<Regex, String> {
        expression(text, &format!(r"^(?:^|.*?\.)(?:{text})\.(?P<idx>\d+)\."))
    }

    /// The field that leaves a module out.
    ///
    /// # Errors
    /// An expression that takes too long.
    pub(super) fn leaves_out(&self, module: &str) -> Result<Option<&'static str>, String> {
        if let Some(excluded) = &self.excluded
            && excluded.have(module)?
        {
            return Ok(Some("exclude_modules"));
        }
        let Some(targets) = &self.targets else {
            return Ok(None);
        };
        if !targets.have(module)? {
            return Ok(Some("target_modules"));
        }
        // As in peft, layers count where a name is not all of a module's.
        let whole = match targets {
            Modules::Expression(_) => true,
            Modules::Names(names) => names.contains(module),
        };
        match &self.layers {
            Some(layers) if !whole && !self.layer(module)?.is_some_and(|layer| layers.contains(&layer)) => {
                Ok(Some("layers_to_transform"))
            }
            _ => Ok(None),
        }
    }

    /// The number of a module's layer.
    fn layer(&self, module: &str) -> Result<Option<u64>, String> {
        if self.before_layers.is_empty() {
            // The first number that has two names before it, and something behind.
            let mut segments = module.split('.').skip(2);
            let mut number = None;
            while let Some(segment) = segments.next() {
                if !segment.is_empty() && segment.bytes().all(|byte| byte.is_ascii_digit()) {
                    number = segments.next().and_then(|_| segment.parse().ok());
                    break;
                }
            }
            return Ok(number);
        }
        for regex in &self.before_layers {
            let found = regex
                .captures(module)
                .map_err(|error| format!("`layers_pattern` cannot be matched with `{module}`: {error}"))?;
            if let Some(number) = found.and_then(|found| found.name("idx")?.as_str().parse().ok()) {
                return Ok(Some(number));
            }
        }
        Ok(None)
    }
}

fn is_match(regex: &Regex, module: &str) -> Result<bool, String> {
    let matches = regex.is_match(module);
    matches.map_err(|error| format!("`{}` cannot be matched with `{module}`: {error}", regex.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const Q1: &str = "model.language_model.layers.1.self_attn.q_proj";

    fn names(names: &[&str]) -> Option<Modules> {
        Some(Modules::Names(
            names.iter().map(|name| (*name).to_owned()).collect(),
        ))
    }

    /// Expected values are those of peft 0.21's `check_target_module_exists`.
    #[test]
    fn modules_are_reached_as_in_peft() {
        let of = |targets, excluded, layers: Option<&[u64]>, before: &[&str]| Reach {
            targets,
            excluded,
            layers: layers.map(|layers| layers.iter().copied().collect()),
            before_layers: before
                .iter()
                .map(|text| Reach::before_layer(text).unwrap())
                .collect(),
        };
        let expression = |text| Some(Modules::expression(text).unwrap());
        let q = || names(&["q_proj"]);
        let (layers, targets) = (Some("layers_to_transform"), Some("target_modules"));
        let excluded = Some("exclude_modules");
        let cases = [
            (of(None, None, None, &[]), None),
            (of(q(), None, None, &[]), None),
            (of(names(&["_proj"]), None, None, &[]), targets),
            (of(names(&[Q1]), None, None, &[]), None),
            (
                of(expression(r".*layers\.\d\..*(q|v)_proj"), None, None, &[]),
                None,
            ),
            (of(expression("q_proj"), None, None, &[]), targets),
            (of(expression("model|.*q_proj"), None, None, &[]), None),
            (
                of(q(), names(&["layers.1.self_attn.q_proj"]), None, &[]),
                excluded,
            ),
            (of(q(), names(&["layers.0.self_attn.q_proj"]), None, &[]), None),
            (of(q(), expression(r".*\.1\..*"), None, &[]), excluded),
            (of(q(), expression(r"\.1\."), None, &[]), None),
            (of(q(), None, Some(&[0, 1]), &[]), None),
            (of(q(), None, Some(&[0, 2]), &[]), layers),
            (of(names(&[Q1]), None, Some(&[0]), &[]), None),
            (of(q(), None, Some(&[1]), &["blocks", "layers"]), None),
            (of(q(), None, Some(&[1]), &["blocks"]), layers),
        ];
        for (reach, expected) in cases {
            assert_eq!(reach.leaves_out(Q1), Ok(expected), "{reach:?}");
        }
        let numbered = of(names(&["x"]), None, Some(&[1]), &[]);
        for (module, expected) in [
            ("a.b.1.x", None),
            ("a.1.x", layers),
            ("a.b.2.1.x", layers),
            ("a.b.x", layers),
        ] {
            assert_eq!(numbered.leaves_out(module), Ok(expected), "{module}");
        }
    }
}
