//! What can be wrong with a checkpoint.

use crate::graph::GraphError;
use serde_json::Value;
use std::path::{Path, PathBuf};
use thiserror::Error;

/// A checkpoint that cannot be read, or is not the model that its config declares.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum CheckpointError {
    /// A file cannot be read.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file that a checkpoint needs is not there.
    #[error("{}: {problem}", path.display())]
    NotACheckpoint {
        /// The directory.
        path: PathBuf,
        /// What was looked for, what was found.
        problem: String,
    },
    /// A safetensors file, or its index, is not what the format demands.
    #[error("{}: {problem}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Where and what.
        problem: String,
    },
    /// The config asks for something this build does not do, or lacks a field; every such field.
    #[error("{}: {}", path.display(), problems.join("; "))]
    Config {
        /// The file.
        path: PathBuf,
        /// Field, found, expected, one sentence each.
        problems: Vec<String>,
    },
    /// The weights are not those of the declared model; all problems at once.
    #[error("{} does not hold the model that its config declares ({layout} layout): {problems}", path.display())]
    Weights {
        /// The checkpoint.
        path: PathBuf,
        /// The layout whose rules were applied.
        layout: &'static str,
        /// Missing, unmapped and misshapen tensors.
        problems: Box<WeightProblems>,
    },
    /// The markers of the config and of the tensors name different layouts, or none.
    #[error("{}: {problem}", path.display())]
    Layout {
        /// The checkpoint.
        path: PathBuf,
        /// What was found.
        problem: String,
    },
    /// A checkpoint with an adapter, which transformers would apply to these or to other weights.
    #[error(
        "{}: has `adapter_config.json`, an adapter{}, which is not applied here: merge it as an adapter of the model \
         that it was made from, or remove `adapter_config.json` to export the weights without it",
        path.display(),
        of.as_ref().map_or(String::new(), |of| format!(" of `{of}`"))
    )]
    HasAdapter {
        /// The directory.
        path: PathBuf,
        /// What the adapter was made from, if it says so.
        of: Option<String>,
    },
    /// What was given as an adapter is none, or none that is read here.
    #[error("{} {problem}", path.display())]
    NotAnAdapter {
        /// The directory or file.
        path: PathBuf,
        /// What was looked for, what was found.
        problem: String,
    },
    /// An adapter does not fit the checkpoint; everything that is wrong with it.
    #[error("adapter {}: {}", path.display(), first_few(problems))]
    Adapter {
        /// The directory or file.
        path: PathBuf,
        /// Tensor, found, expected, one sentence each.
        problems: Vec<String>,
    },
    /// A canonical weight was asked for that the model does not have, or outside its bounds.
    #[error("no canonical weight is named `{name}` and has the rows and columns asked for")]
    UnknownWeight {
        /// The name asked for.
        name: String,
    },
    /// The config's sizes do not fit together.
    #[error("the network cannot be built from the config: {0}")]
    Graph(#[from] GraphError),
}

/// Everything that is wrong with a checkpoint's tensors.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WeightProblems {
    /// Tensors that a rule needs and no file has.
    pub missing: Vec<String>,
    /// Tensors that no rule mentions.
    pub unmapped: Vec<String>,
    /// Tensors of the wrong shape or dtype: found and expected, one sentence each.
    pub misshapen: Vec<String>,
}

impl WeightProblems {
    /// Whether nothing is wrong.
    pub fn is_empty(&self) -> bool {
        self.missing.is_empty() && self.unmapped.is_empty() && self.misshapen.is_empty()
    }
}

impl std::fmt::Display for WeightProblems {
    /// Counts and the first few of each kind on one line; the lists have them all.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        const SHOWN: usize = 8;
        let mut separator = "";
        for (kind, list) in [
            ("missing", &self.missing),
            ("not in any rule", &self.unmapped),
            ("wrong", &self.misshapen),
        ] {
            if list.is_empty() {
                continue;
            }
            let first: Vec<String> = list.iter().take(SHOWN).map(|name| format!("`{name}`")).collect();
            let rest = list.len().saturating_sub(SHOWN);
            let more = if rest > 0 {
                format!(" and {rest} more")
            } else {
                String::new()
            };
            write!(f, "{separator}{} {kind}: {}{more}", list.len(), first.join(", "))?;
            separator = "; ";
        }
        Ok(())
    }
}

/// A list for people: all counted, the first shown.
pub(super) fn first_few(problems: &[String]) -> String {
    const SHOWN: usize = 8;
    let shown = problems
        .iter()
        .take(SHOWN)
        .cloned()
        .collect::<Vec<_>>()
        .join("; ");
    match problems.len().checked_sub(SHOWN) {
        Some(more) if more > 0 => format!("{shown}; and {more} more"),
        _ => shown,
    }
}

impl CheckpointError {
    /// The file, directory, weight or node that the error is about.
    pub fn subject(&self) -> String {
        match self {
            CheckpointError::Io { path, .. }
            | CheckpointError::NotACheckpoint { path, .. }
            | CheckpointError::Malformed { path, .. }
            | CheckpointError::Config { path, .. }
            | CheckpointError::Weights { path, .. }
            | CheckpointError::HasAdapter { path, .. }
            | CheckpointError::NotAnAdapter { path, .. }
            | CheckpointError::Adapter { path, .. }
            | CheckpointError::Layout { path, .. } => path.display().to_string(),
            CheckpointError::UnknownWeight { name } => name.clone(),
            CheckpointError::Graph(error) => error.subject().to_owned(),
        }
    }

    pub(crate) fn malformed(path: &Path, problem: impl Into<String>) -> Self {
        CheckpointError::Malformed {
            path: path.to_owned(),
            problem: problem.into(),
        }
    }
}

/// A value for a message, cut behind eighty characters.
pub(super) fn short(value: &Value) -> String {
    const LONGEST: usize = 80;
    let text = value.to_string();
    match text.char_indices().nth(LONGEST) {
        Some((at, _)) => format!("{}...", &text[..at]),
        None => text,
    }
}
