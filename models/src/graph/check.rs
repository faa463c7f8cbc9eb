//! Invariants of a whole graph.

use super::{Graph, GraphError, Source, Value, WeightForm, shape};
use std::collections::BTreeSet;

/// Names are unique, every value is defined before it is used and by one node, everything declared is used,
/// and every node's outputs are what its operator makes of its inputs.
pub(super) fn check(graph: &Graph) -> Result<(), GraphError> {
    let fail = |problem: String| {
        Err(GraphError::Invariant {
            graph: graph.name.clone(),
            problem,
        })
    };

    let mut names = BTreeSet::new();
    for name in graph.nodes.iter().map(|node| &node.name) {
        if !names.insert(name) {
            return fail(format!("two nodes are named `{name}`"));
        }
    }
    let mut names = BTreeSet::new();
    for value in &graph.values {
        // A weight that is read both ways round is two values.
        let transposed =
            matches!(&value.source, Source::Weight(weight) if weight.form == WeightForm::Transposed);
        if !names.insert((&value.name, transposed)) {
            return fail(format!("two values are named `{}`", value.name));
        }
    }

    let mut defined: Vec<bool> = graph
        .values
        .iter()
        .map(|value| value.source != Source::Node)
        .collect();
    let mut used = vec![false; graph.values.len()];
    for node in &graph.nodes {
        for input in &node.inputs {
            if !defined[input.0] {
                return fail(format!(
                    "node `{}` uses `{}` before it is computed",
                    node.name,
                    graph.value(*input).name
                ));
            }
            used[input.0] = true;
        }
        for output in &node.outputs {
            if defined[output.0] {
                return fail(format!("`{}` is computed twice", graph.value(*output).name));
            }
            defined[output.0] = true;
        }
    }
    for output in &graph.outputs {
        used[output.0] = true;
    }
    let idle = graph
        .values
        .iter()
        .enumerate()
        .find(|(i, _)| !used[*i] || !defined[*i]);
    if let Some((_, value)) = idle {
        return fail(format!("`{}` is never used", value.name));
    }
    if graph.outputs.is_empty() {
        return fail("no outputs".to_owned());
    }
    for node in &graph.nodes {
        let inputs: Vec<&Value> = node.inputs.iter().map(|id| graph.value(*id)).collect();
        let made = shape::infer(&node.op, &inputs)
            .map_err(|problem| GraphError::rule(&node.name, &node.op, problem, &inputs))?;
        let outputs = node.outputs.iter().map(|id| graph.value(*id));
        let fits =
            |(value, (dtype, shape)): (&Value, &(_, _))| value.dtype == *dtype && value.shape == *shape;
        if node.outputs.len() != made.len() || !outputs.zip(&made).all(fits) {
            let shown = |(dtype, shape): &(_, Vec<_>)| format!("{dtype} {}", shape::show(shape));
            let made: Vec<String> = made.iter().map(shown).collect();
            return fail(format!(
                "the outputs of node `{}` are not what it computes, {}",
                node.name,
                made.join(", ")
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dtype::DType;
    use crate::graph::{Builder, Dim, Op};

    fn tiny() -> Graph {
        let mut b = Builder::new("tiny");
        let x = b.input("x", DType::Float32, &[Dim::Batch, Dim::Fixed(2)]);
        let y = b.linear("up", x, 2, 3, true);
        let z = b.relu(y);
        b.output("z", z);
        b.finish().unwrap()
    }

    #[test]
    fn broken_graphs_are_refused() {
        type Break = fn(&mut Graph);
        let cases: [(&str, Break); 8] = [
            ("`x` float32 [batch, 9]", |g| g.values[0].shape[1] = Dim::Fixed(9)),
            ("are not what it computes, float32 [batch, 3]", |g| {
                let last = g.nodes[2].outputs[0];
                g.values[last.0].dtype = DType::Float16;
            }),
            ("two nodes are named", |g| {
                g.nodes[1].name = g.nodes[0].name.clone()
            }),
            ("two values are named", |g| g.values[0].name = "z".to_owned()),
            ("before it is computed", |g| g.nodes.swap(0, 1)),
            ("is computed twice", |g| {
                let node = g.nodes[2].clone();
                g.nodes.push(crate::graph::Node {
                    name: "/again".to_owned(),
                    ..node
                });
            }),
            ("is never used", |g| {
                g.nodes.pop();
                g.outputs.clear();
            }),
            ("no outputs", |g| {
                g.outputs.clear();
                let last = g.nodes[2].outputs[0];
                g.nodes[2].inputs = vec![g.nodes[1].outputs[0]];
                g.nodes.push(crate::graph::Node {
                    name: "/sink".to_owned(),
                    op: Op::Relu,
                    inputs: vec![last],
                    outputs: vec![],
                    precision: crate::graph::Precision::Storage,
                });
            }),
        ];
        check(&tiny()).unwrap();
        for (expected, break_it) in cases {
            let mut graph = tiny();
            break_it(&mut graph);
            let message = check(&graph).unwrap_err().to_string();
            assert!(
                message.contains(expected),
                "expected {expected:?}, found {message:?}"
            );
        }
    }

    #[test]
    fn the_first_error_is_kept() {
        let mut b = Builder::new("bad");
        let x = b.input("x", DType::Float32, &[Dim::Batch, Dim::Fixed(2)]);
        let y = b.linear("first", x, 3, 4, false);
        let z = b.linear("second", y, 9, 9, false);
        b.output("z", z);
        let error = b.finish().unwrap_err();
        assert_eq!(error.subject(), "/first/MatMul");
        assert!(
            error
                .to_string()
                .contains("`x` float32 [batch, 2], `first.weight` float32 [3, 4]"),
            "{error}"
        );
    }
}
