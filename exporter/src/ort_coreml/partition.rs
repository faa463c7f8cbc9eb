//! Into how many pieces would ONNX Runtime cut the graph? `CreateSupportedPartitionNodeGroups` of
//! `onnxruntime/core/providers/partitioning_utils.cc`: nodes in the order in which they become ready; a claimed node
//! joins the open group, a node that is not claimed and reads from the open group waits until the group is closed.

use crate::onnx::proto::NodeProto;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// The claimed nodes, by index, in the groups that ONNX Runtime would hand over.
pub(super) fn groups(nodes: &[&NodeProto], claimed: &[bool]) -> Vec<Vec<usize>> {
    let mut producer: BTreeMap<&str, usize> = BTreeMap::new();
    for (index, node) in nodes.iter().enumerate() {
        for output in node.output.iter().filter(|name| !name.is_empty()) {
            producer.insert(output, index);
        }
    }
    // An edge for each use, as ONNX Runtime counts them.
    let mut readers: Vec<Vec<usize>> = vec![Vec::new(); nodes.len()];
    let mut waiting: Vec<usize> = vec![0; nodes.len()];
    for (index, node) in nodes.iter().enumerate() {
        for input in &node.input {
            if let Some(&from) = producer.get(input.as_str()) {
                readers[from].push(index);
                waiting[index] += 1;
            }
        }
    }
    let mut ready: VecDeque<usize> = (0..nodes.len()).filter(|&index| waiting[index] == 0).collect();
    let mut later: VecDeque<usize> = VecDeque::new();
    let mut groups = Vec::new();
    let mut group: Vec<usize> = Vec::new();
    let mut frontier: BTreeSet<usize> = BTreeSet::new();
    loop {
        let Some(index) = ready.pop_front() else {
            if !group.is_empty() {
                groups.push(std::mem::take(&mut group));
                frontier.clear();
            }
            if later.is_empty() {
                return groups;
            }
            std::mem::swap(&mut ready, &mut later);
            continue;
        };
        let taken = claimed.get(index).copied().unwrap_or(false);
        if !taken && frontier.contains(&index) {
            later.push_back(index);
            continue;
        }
        if taken {
            group.push(index);
            frontier.remove(&index);
            frontier.extend(&readers[index]);
        }
        for &reader in &readers[index] {
            waiting[reader] -= 1;
            if waiting[reader] == 0 {
                ready.push_back(reader);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(inputs: &[&str], output: &str) -> NodeProto {
        NodeProto {
            input: inputs.iter().map(|&name| name.to_owned()).collect(),
            output: vec![output.to_owned()],
            ..NodeProto::default()
        }
    }

    #[test]
    fn groups_close_where_an_unclaimed_node_reads_from_them() {
        type Case<'a> = (&'a str, Vec<NodeProto>, &'a [bool], Vec<Vec<usize>>);
        let chain = || vec![node(&["x"], "a"), node(&["a"], "b"), node(&["b"], "c")];
        let cases: Vec<Case<'_>> = vec![
            ("whole", chain(), &[true; 3], vec![vec![0, 1, 2]]),
            ("nothing", chain(), &[false; 3], vec![]),
            ("a hole", chain(), &[true, false, true], vec![vec![0], vec![2]]),
            ("the first", chain(), &[false, true, true], vec![vec![1, 2]]),
            ("the last", chain(), &[true, true, false], vec![vec![0, 1]]),
            (
                // b is not claimed and independent of the group: it is done while the group is open.
                "a neighbour",
                vec![node(&["x"], "a"), node(&["x"], "b"), node(&["a", "b"], "c")],
                &[true, false, true],
                vec![vec![0, 2]],
            ),
            (
                // c needs b, b needs a: what does not need b stays with a.
                "a branch",
                vec![
                    node(&["x"], "a"),
                    node(&["a"], "b"),
                    node(&["a"], "d"),
                    node(&["b", "d"], "c"),
                ],
                &[true, false, true, true],
                vec![vec![0, 2], vec![3]],
            ),
            (
                "a value read twice by one node",
                vec![node(&["x"], "a"), node(&["a", "a"], "b")],
                &[true, true],
                vec![vec![0, 1]],
            ),
        ];
        for (name, nodes, claimed, expected) in cases {
            let nodes: Vec<&NodeProto> = nodes.iter().collect();
            assert_eq!(groups(&nodes, claimed), expected, "{name}");
        }
    }
}
