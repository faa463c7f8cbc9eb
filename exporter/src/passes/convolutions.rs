//! What does the Neural Engine want instead of linear layers? Convolutions of 1 x 1 over `[1,channels,1,positions]`: channels first, the long
//! axis last. So Apple's "Deploying Transformers on the Apple Neural Engine" asks for.
//!
//! It also computes in float16 and nothing else: with this pass no node is in float32, whatever the network marks. That is for
//! the image encoder, whose values are tame; the decoder's are not.

#![deny(clippy::wildcard_enum_match_arm)]

use models::graph::{Dim, Graph, Node, Op, Precision, Source, Value, ValueId};

/// Rewrites every `x [n,K] * w [N,K]^T (+ b)` and takes the marks away.
pub(super) fn convolutions(graph: &Graph) -> Graph {
    let mut out = Graph {
        nodes: Vec::with_capacity(graph.nodes.len()),
        ..graph.clone()
    };
    for node in &graph.nodes {
        let mut node = node.clone();
        node.precision = Precision::Storage;
        match (&node.op, &node.inputs[..], &node.outputs[..]) {
            (Op::Gemm { trans_b: true }, &[x, weight, ..], &[y])
                if matches!(graph.value(weight).source, Source::Weight(_)) =>
            {
                convolution(&mut out, &node, [x, weight, y]);
            }
            _other => out.nodes.push(node),
        }
    }
    out
}

/// Transposed, convolved, transposed back.
fn convolution(graph: &mut Graph, node: &Node, [x, weight, y]: [ValueId; 3]) {
    let dims = |graph: &Graph, id: ValueId| -> [Dim; 2] {
        let shape = &graph.value(id).shape;
        [0, 1].map(|axis: usize| shape.get(axis).copied().unwrap_or(Dim::Fixed(1)))
    };
    let ([n, k], [outputs, _]) = (dims(graph, x), dims(graph, weight));
    let one = Dim::Fixed(1);
    // Each matrix of the encoder is read once: the value itself changes, its elements stay where they are.
    graph.values[weight.0].shape = vec![outputs, k, one, one];
    let add = |graph: &mut Graph, step: &str, op: Op, inputs: Vec<ValueId>, shape: Vec<Dim>| {
        let name = format!("{}/{step}", node.name);
        graph.values.push(Value {
            name: format!("{name}_output_0"),
            shape,
            source: Source::Node,
            dtype: graph.value(y).dtype,
        });
        let output = ValueId(graph.values.len() - 1);
        graph.nodes.push(Node {
            name,
            op,
            inputs,
            outputs: vec![output],
            precision: Precision::Storage,
        });
        output
    };
    let turn = || Op::Transpose { perm: vec![1, 0] };
    let columns = add(graph, "columns", turn(), vec![x], vec![k, n]);
    let axes = Op::Unsqueeze { axes: vec![0, 2] };
    let map = add(graph, "map", axes, vec![columns], vec![one, k, one, n]);
    let conv = Op::Conv {
        group: 1,
        strides: [1, 1],
        pads: [0; 4],
    };
    let inputs = [map, weight].into_iter().chain(node.inputs.get(2).copied());
    let map = add(graph, "conv", conv, inputs.collect(), vec![one, outputs, one, n]);
    let axes = Op::Squeeze { axes: vec![0, 2] };
    let columns = add(graph, "rows", axes, vec![map], vec![outputs, n]);
    graph.nodes.push(Node {
        op: turn(),
        inputs: vec![columns],
        ..node.clone()
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use models::dtype::DType;
    use models::graph::Builder;

    #[test]
    fn snapshot() {
        let mut b = Builder::new("tiny");
        let x = b.input("x", DType::Float32, &[Dim::Fixed(5), Dim::Fixed(3)]);
        let y = {
            let b = &mut b.scope("model");
            let b = &mut b.full();
            b.dense("up", x, 3, 4, true)
        };
        b.output("y", y);
        let expected = "\
graph tiny
  in  x float32 [5, 3]
  /model/up/Gemm/columns = Transpose { perm: [1, 0] }(x) -> [3, 5]
  /model/up/Gemm/map = Unsqueeze { axes: [0, 2] }(/model/up/Gemm/columns_output_0) -> [1, 3, 1, 5]
  /model/up/Gemm/conv = Conv { group: 1, strides: [1, 1], pads: [0, 0, 0, 0] }(/model/up/Gemm/map_output_0, model.up.weight, \
             model.up.bias) -> [1, 4, 1, 5]
  /model/up/Gemm/rows = Squeeze { axes: [0, 2] }(/model/up/Gemm/conv_output_0) -> [4, 5]
  /model/up/Gemm = Transpose { perm: [1, 0] }(/model/up/Gemm/rows_output_0) -> [5, 4]
  out y float32 [5, 4]
";
        assert_eq!(convolutions(&b.finish().unwrap()).to_string(), expected);
    }
}
