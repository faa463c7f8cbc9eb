//! What can be wrong with a network.

use super::{Op, Value, shape};
use thiserror::Error;

/// A network that cannot be built, or a graph that breaks an invariant.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum GraphError {
    /// An operator's inputs do not fit its rule.
    #[error("node `{node}`: {op} {problem}; inputs: {inputs}")]
    Rule {
        /// The node that would have been added.
        node: String,
        /// The operator.
        op: String,
        /// What was expected, and what was found.
        problem: String,
        /// Names, dtypes and shapes of the inputs.
        inputs: String,
    },
    /// The graph as a whole breaks an invariant.
    #[error("graph `{graph}`: {problem}")]
    Invariant {
        /// The graph.
        graph: String,
        /// What is broken.
        problem: String,
    },
}

impl GraphError {
    pub(super) fn rule(node: &str, op: &Op, problem: String, inputs: &[&Value]) -> GraphError {
        let shown = inputs
            .iter()
            .map(|value| format!("`{}` {} {}", value.name, value.dtype, shape::show(&value.shape)))
            .collect::<Vec<_>>()
            .join(", ");
        GraphError::Rule {
            node: node.to_owned(),
            op: op.name().to_owned(),
            problem,
            inputs: shown,
        }
    }

    /// The node or graph that the error is about.
    pub fn subject(&self) -> &str {
        match self {
            GraphError::Rule { node, .. } => node,
            GraphError::Invariant { graph, .. } => graph,
        }
    }
}
