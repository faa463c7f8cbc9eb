//! Would the CoreML execution provider of ONNX Runtime take a graph whole? Its rules as data, applied to a file.
//!
//! Nothing here runs Core ML: [`check`] says what ONNX Runtime [`VERSION`] would hand over in its ML Program format and
//! what it would leave to the CPU. Whether Core ML then computes it well is another question, for a Mac.
//!
//! Two things happen in ONNX Runtime before its providers are asked, and not here: shapes are inferred (here they are
//! what the file states: `value_info`, inputs, outputs, constants; what is not stated is not claimed), and basic rewrites
//! are applied (constant folding, `MatMul` with `Add` as `Gemm`). Save the model with its basic optimisations and check
//! that file to see what they do.

mod partition;
mod rules;
mod view;

pub use rules::{RULES, Rule, SOURCE, VERSION};

use crate::error::ExportError;
use crate::onnx::proto::{GraphProto, ModelProto};
use models::plain;
use prost::Message as _;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::Path;
use view::{View, operator};

/// What the provider would do with a graph. The JSON form is stable.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Verdict {
    /// The release whose rules were applied: `ONNX Runtime 1.32.0`.
    pub rules: String,
    /// The graph's name, or its file's.
    pub graph: String,
    /// Whether inputs without a fixed shape are refused (`RequireStaticInputShapes`).
    pub static_shapes: bool,
    /// Nodes of the graph, constants left out.
    pub nodes: usize,
    /// Nodes that Core ML would take.
    pub claimed: usize,
    /// Pieces in which it would get them.
    pub partitions: usize,
    /// Nodes that would stay on the CPU, by operator and reason, the most frequent first.
    pub left: Vec<Left>,
    /// Values whose shape the file does not state, sorted; nodes that read them are not claimed.
    pub unknown_shapes: Vec<String>,
}

/// Nodes that would stay on the CPU for one reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Left {
    /// The operator.
    pub operator: String,
    /// Why.
    pub reason: String,
    /// Upstream's file with the rule; empty where there is none for the operator.
    pub source: String,
    /// How many.
    pub count: usize,
    /// Names of the first of them.
    pub first: Vec<String>,
}

/// Longest protobuf message.
const MOST_BYTES: u64 = 2 << 30;

/// Names that are kept of the nodes that stay on the CPU for one reason.
const NAMES: usize = 5;

impl Verdict {
    /// Whether Core ML would take every node, in one piece.
    pub fn whole(&self) -> bool {
        self.partitions == 1 && self.claimed == self.nodes
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pieces = if self.partitions == 1 {
            "partition"
        } else {
            "partitions"
        };
        write!(
            f,
            "{}: {} of {} nodes claimed, {} {pieces}",
            plain::line(&self.graph),
            self.claimed,
            self.nodes,
            self.partitions
        )?;
        for left in &self.left {
            let more = left.count.saturating_sub(left.first.len());
            let more = if more > 0 {
                format!(" and {more} more")
            } else {
                String::new()
            };
            let names: Vec<String> = left.first.iter().map(|name| format!("`{name}`")).collect();
            let source = if left.source.is_empty() {
                String::new()
            } else {
                format!(" ({})", left.source)
            };
            write!(
                f,
                "\n  cpu {:>4} {}: {}{source}\n           {}{more}",
                left.count,
                plain::line(&left.operator),
                plain::line(&left.reason),
                plain::line(&names.join(", "))
            )?;
        }
        Ok(())
    }
}

/// Applies the rules to a model. `fixed`: refuse inputs whose shape is not fixed, as the provider does with
/// `RequireStaticInputShapes`.
pub fn check(model: &ModelProto, name: &str, fixed: bool) -> Verdict {
    let nothing = GraphProto::default();
    let view = View::new(model, model.graph.as_ref().unwrap_or(&nothing));
    let mut refusals: Vec<Option<String>> = view
        .nodes
        .iter()
        .map(|node| rules::refuses(&view, node, fixed))
        .collect();
    let claimed: Vec<bool> = refusals.iter().map(Option::is_none).collect();
    let groups = partition::groups(&view.nodes, &claimed);
    let reached: BTreeSet<usize> = groups.iter().flatten().copied().collect();
    for (index, refusal) in refusals.iter_mut().enumerate() {
        if refusal.is_none() && !reached.contains(&index) {
            *refusal = Some("waits for its own output: the graph has a circle".to_owned());
        }
    }
    let mut partitions = 0;
    for group in groups {
        let trivial = |index: &usize| {
            let node = view.nodes.get(*index);
            node.is_some_and(|node| rules::TRIVIAL.contains(&operator(node)))
        };
        if !group.iter().all(trivial) {
            partitions += 1;
            continue;
        }
        for index in group {
            if let Some(refusal) = refusals.get_mut(index) {
                *refusal = Some(
                    "only moves data, like all of its partition, which the provider then drops".to_owned(),
                );
            }
        }
    }
    let claimed: Vec<bool> = refusals.iter().map(Option::is_none).collect();

    let mut left: BTreeMap<(&str, String), Vec<String>> = BTreeMap::new();
    for (node, refusal) in view.nodes.iter().zip(refusals) {
        if let Some(reason) = refusal {
            let output = node.output.first().map(String::as_str).unwrap_or_default();
            let name = node
                .name
                .as_deref()
                .filter(|name| !name.is_empty())
                .unwrap_or(output);
            left.entry((operator(node), reason))
                .or_default()
                .push(name.to_owned());
        }
    }
    let mut left: Vec<Left> = left
        .into_iter()
        .map(|((operator, reason), mut names)| {
            let count = names.len();
            names.truncate(NAMES);
            let rule = RULES.iter().find(|rule| rule.operator == operator);
            Left {
                operator: operator.to_owned(),
                reason,
                source: rule.map_or_else(String::new, |rule| rule.source.to_owned()),
                count,
                first: names,
            }
        })
        .collect();
    left.sort_by_key(|left| std::cmp::Reverse(left.count));

    let mut unknown_shapes: Vec<String> = view
        .nodes
        .iter()
        .flat_map(|node| &node.input)
        .filter(|name| !name.is_empty() && view.shape(name).is_none())
        .cloned()
        .collect();
    unknown_shapes.sort();
    unknown_shapes.dedup();
    Verdict {
        rules: format!("ONNX Runtime {VERSION}"),
        graph: name.to_owned(),
        static_shapes: fixed,
        nodes: claimed.len(),
        claimed: claimed.iter().filter(|claimed| **claimed).count(),
        partitions,
        left,
        unknown_shapes,
    }
}

/// As [`check`], for a file. Weights beside it are not read.
///
/// # Errors
/// A file that cannot be read or is no ONNX model.
pub fn check_file(path: &Path, fixed: bool) -> Result<Verdict, ExportError> {
    let malformed = |problem: String| ExportError::NotAModel {
        path: path.to_owned(),
        problem,
    };
    let file = std::fs::metadata(path).map_err(ExportError::io("read", path))?;
    if !file.is_file() || file.len() > MOST_BYTES {
        let found = if file.is_file() {
            format!("it has {} bytes", file.len())
        } else {
            "it is not a file".to_owned()
        };
        return Err(malformed(format!(
            "{found}, expected a file of at most {MOST_BYTES} bytes, as protobuf has"
        )));
    }
    let bytes = models::regular::bytes(path, MOST_BYTES).map_err(ExportError::io("read", path))?;
    let model = ModelProto::decode(bytes.as_slice()).map_err(|error| malformed(error.to_string()))?;
    if model.graph.as_ref().is_none_or(|graph| graph.node.is_empty()) {
        return Err(malformed("it has no nodes".to_owned()));
    }
    Ok(check(&model, &path.display().to_string(), fixed))
}

#[cfg(test)]
mod tests;
