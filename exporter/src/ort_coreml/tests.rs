//! A case for each rule: a form that is claimed, and forms that break one thing each.

use super::view::{BOOL, F16, F32, I32, I64};
use super::*;
use crate::onnx::proto::{
    AttributeProto, DimensionProto, GraphProto, NodeProto, OperatorSetIdProto, TensorProto, TensorShapeProto,
    TensorTypeProto, TypeProto, ValueInfoProto,
};
use std::collections::BTreeSet;

const BF16: i32 = 16;

/// A model of one node, `y = OP(in0, in1, ..)`.
#[derive(Clone)]
struct One {
    node: NodeProto,
    graph: GraphProto,
    opset: i64,
}

fn info(name: &str, dtype: i32, shape: &[i64]) -> ValueInfoProto {
    let dim = shape
        .iter()
        .map(|&length| DimensionProto {
            dim_value: (length >= 0).then_some(length),
            dim_param: (length < 0).then(|| "n".to_owned()),
        })
        .collect();
    ValueInfoProto {
        name: Some(name.to_owned()),
        r#type: Some(TypeProto {
            tensor_type: Some(TensorTypeProto {
                elem_type: Some(dtype),
                shape: Some(TensorShapeProto { dim }),
            }),
        }),
    }
}

fn op(name: &str) -> One {
    One {
        node: NodeProto {
            op_type: Some(name.to_owned()),
            name: Some("/node".to_owned()),
            output: vec!["y".to_owned()],
            ..NodeProto::default()
        },
        graph: GraphProto::default(),
        opset: 20,
    }
}

impl One {
    /// An input that is computed elsewhere; -1 for a length that varies.
    fn input(mut self, dtype: i32, shape: &[i64]) -> One {
        let name = format!("in{}", self.node.input.len());
        self.graph.input.push(info(&name, dtype, shape));
        self.node.input.push(name);
        self
    }

    /// A constant of zeros.
    fn weight(mut self, dtype: i32, shape: &[i64]) -> One {
        let name = format!("in{}", self.node.input.len());
        self.graph.initializer.push(TensorProto {
            name: Some(name.clone()),
            dims: shape.to_vec(),
            data_type: Some(dtype),
            ..TensorProto::default()
        });
        self.node.input.push(name);
        self
    }

    fn ints(mut self, values: &[i64]) -> One {
        self = self.weight(I64, &[i64::try_from(values.len()).unwrap()]);
        self.graph.initializer.last_mut().unwrap().int64_data = values.to_vec();
        self
    }

    fn skip(mut self) -> One {
        self.node.input.push(String::new());
        self
    }

    /// An input of which the file says nothing.
    fn unknown(mut self) -> One {
        self.node.input.push("elsewhere".to_owned());
        self
    }

    fn attribute(mut self, name: &str, set: impl FnOnce(&mut AttributeProto)) -> One {
        let mut attribute = AttributeProto {
            name: Some(name.to_owned()),
            ..AttributeProto::default()
        };
        set(&mut attribute);
        self.node.attribute.push(attribute);
        self
    }

    fn int(self, name: &str, value: i64) -> One {
        self.attribute(name, |attribute| attribute.i = Some(value))
    }

    fn list(self, name: &str, values: &[i64]) -> One {
        self.attribute(name, |attribute| attribute.ints = values.to_vec())
    }

    fn text(self, name: &str, value: &str) -> One {
        self.attribute(name, |attribute| attribute.s = Some(value.as_bytes().to_vec()))
    }

    fn outputs(mut self, count: usize) -> One {
        self.node.output = (0..count).map(|index| format!("y{index}")).collect();
        self
    }

    fn result(mut self, dtype: i32, shape: &[i64]) -> One {
        self.graph.output.push(info("y", dtype, shape));
        self
    }

    fn opset(mut self, version: i64) -> One {
        self.opset = version;
        self
    }

    fn verdict(mut self, fixed: bool) -> Verdict {
        self.graph.node.push(self.node);
        let model = ModelProto {
            ir_version: Some(9),
            graph: Some(self.graph),
            opset_import: vec![OperatorSetIdProto {
                domain: None,
                version: Some(self.opset),
            }],
            ..ModelProto::default()
        };
        check(&model, "one", fixed)
    }
}

fn conv() -> One {
    op("Conv").input(F32, &[1, 4, 8, 8]).weight(F32, &[6, 4, 3, 3])
}

fn gemm() -> One {
    op("Gemm")
        .input(F16, &[5, 4])
        .weight(F16, &[6, 4])
        .int("transB", 1)
}

fn pool(name: &str) -> One {
    op(name).input(F32, &[1, 3, 8, 8])
}

fn norm(name: &str) -> One {
    op(name).input(F32, &[1, 4, 8]).weight(F32, &[8])
}

fn resize() -> One {
    op("Resize")
        .input(F32, &[1, 3, 8, 8])
        .skip()
        .skip()
        .ints(&[1, 3, 16, 16])
        .text("mode", "linear")
}

fn pad() -> One {
    op("Pad").input(F32, &[1, 3, 8, 8])
}

/// Forms that are claimed, at least one for each rule.
fn accepted() -> Vec<One> {
    let x: &[i64] = &[2, 3, 4];
    let mut all: Vec<One> = [
        "Ceil",
        "Cos",
        "Elu",
        "Erf",
        "Exp",
        "Gelu",
        "HardSigmoid",
        "Identity",
        "LeakyRelu",
        "QuickGelu",
        "Reciprocal",
        "Relu",
        "Round",
        "Shape",
        "Sigmoid",
        "Sin",
        "Softmax",
        "Sqrt",
        "Tanh",
        "ReduceMax",
        "ReduceMean",
        "ReduceMin",
        "ReduceProd",
        "ReduceSum",
        "ArgMax",
    ]
    .into_iter()
    .map(|name| op(name).input(F16, x))
    .collect();
    for name in ["Add", "Div", "Max", "Mul", "Pow", "Sub"] {
        all.push(op(name).input(F32, x).input(F32, &[4]));
    }
    for name in ["AveragePool", "GlobalAveragePool", "GlobalMaxPool", "MaxPool"] {
        all.push(pool(name));
    }
    for name in [
        "GroupNormalization",
        "InstanceNormalization",
        "LayerNormalization",
    ] {
        all.push(norm(name));
    }
    all.extend([
        op("Softplus").input(F16, x).opset(22),
        op("And").input(BOOL, x).input(BOOL, x),
        op("BatchNormalization")
            .input(F32, &[1, 3, 8, 8])
            .weight(F32, &[3])
            .weight(F32, &[3])
            .weight(F32, &[3])
            .weight(F32, &[3]),
        op("Cast").input(F32, x).int("to", i64::from(F16)),
        op("Cast").input(I64, x).int("to", i64::from(F32)),
        op("Clip").input(F32, x).weight(F32, &[]).weight(F32, &[]),
        op("Clip").input(F32, x),
        op("Concat").input(F32, x).input(F32, x).int("axis", 1),
        conv().result(F32, &[1, 6, 6, 6]),
        conv()
            .weight(F32, &[6])
            .list("kernel_shape", &[3, 3])
            .result(F32, &[1, 6, 6, 6]),
        op("FusedConv")
            .input(F32, &[1, 4, 8, 8])
            .weight(F32, &[6, 4, 3, 3])
            .text("activation", "Relu")
            .result(F32, &[1, 6, 6, 6]),
        op("ConvTranspose")
            .input(F32, &[1, 4, 8, 8])
            .weight(F32, &[4, 6, 3, 3]),
        op("DepthToSpace").input(F32, &[1, 8, 4, 4]).int("blocksize", 2),
        op("Gather").input(F32, &[9, 4]).input(I64, &[1, 5]),
        op("Gather").input(F16, &[9, 4]).input(I32, &[]),
        op("GatherND").input(F32, &[9, 4]).weight(I64, &[5, 1]),
        gemm(),
        gemm().weight(F16, &[6]),
        gemm().weight(F16, &[1, 6]),
        op("GridSample")
            .input(F32, &[1, 3, 8, 8])
            .input(F32, &[1, 4, 4, 2])
            .text("mode", "bilinear"),
        op("MatMul").input(F16, &[1, 2, 5, 4]).input(F16, &[1, 2, 4, 6]),
        op("PRelu").input(F32, &[1, 3, 8, 8]).weight(F32, &[3, 1, 1]),
        pad().ints(&[0, 0, 1, 1, 0, 0, 1, 1]),
        pad().ints(&[0, 0, 1, 1, 0, 0, 1, 1]).text("mode", "reflect"),
        op("Reshape").input(F32, x).ints(&[0, -1]),
        op("Reshape").input(F32, x).ints(&[1, 1, 1, 6, 4]),
        resize(),
        op("Slice").input(F32, x).ints(&[-1]).ints(&[i64::MAX]).ints(&[1]),
        op("Slice")
            .input(F32, x)
            .ints(&[-1])
            .ints(&[i64::MIN])
            .ints(&[1])
            .ints(&[-1]),
        op("Split").input(F32, x).ints(&[1, 3]).int("axis", -1).outputs(2),
        op("Split")
            .input(F32, x)
            .int("axis", 2)
            .int("num_outputs", 2)
            .outputs(2),
        op("Squeeze").input(F32, &[1, 3]).ints(&[0]),
        op("Tile").input(F32, x).ints(&[1, 2, 3]),
        op("Transpose").input(F32, x).list("perm", &[0, 2, 1]),
        op("Unsqueeze").input(F32, x).ints(&[0, 1]),
        op("Where").input(BOOL, x).input(F32, x).input(F32, &[]),
    ]);
    all
}

#[test]
fn every_rule_has_a_form_that_is_claimed() {
    let mut seen = BTreeSet::new();
    for one in accepted() {
        let name = one.node.op_type.clone().unwrap();
        let verdict = one.verdict(true);
        if rules::TRIVIAL.contains(&name.as_str()) {
            // Claimed, and alone, which is not worth a partition.
            let [left] = &verdict.left[..] else {
                panic!("{verdict}")
            };
            assert!(left.reason.starts_with("only moves data"), "{verdict}");
        } else {
            assert!(verdict.whole(), "{verdict}");
        }
        seen.insert(name);
    }
    let rules: BTreeSet<String> = RULES.iter().map(|rule| rule.operator.to_owned()).collect();
    assert_eq!(seen, rules);
    assert_eq!(rules.len(), RULES.len(), "an operator has two rows");
    let sorted = RULES.windows(2).all(|two| two[0].operator < two[1].operator);
    assert!(
        sorted
            && RULES
                .iter()
                .all(|rule| rule.source.ends_with("_op_builder.cc") && !rule.asks.is_empty())
    );
}

#[test]
fn what_breaks_a_rule_is_named() {
    let x: &[i64] = &[2, 3, 4];
    let cases: Vec<(One, &str)> = vec![
        // Every operator.
        (op("Neg").input(F32, x), "no builder for ML Programs"),
        (op("Expand").input(F32, x).ints(&[2, 3, 4]), "no builder"),
        (op("LessOrEqual").input(I64, x).input(I64, x), "no builder"),
        (op("Flatten").input(F32, x), "no builder"),
        (
            op("Range").input(I64, &[]).input(I64, &[]).input(I64, &[]),
            "no builder",
        ),
        (
            op("Add").unknown().input(F32, x),
            "the shape of `elsewhere` is unknown",
        ),
        (
            op("Add").input(F32, &[-1, 3]).input(F32, &[3]),
            "input 0 has the shape [?,3], expected fixed lengths",
        ),
        (
            op("Concat").input(F32, &[2, 0]).input(F32, &[2, 1]),
            "expected no length of 0",
        ),
        (
            op("Add").input(F32, &[1; 6]).input(F32, &[1]),
            "input 0 has rank 6, expected up to 5",
        ),
        (
            op("Add").input(F32, x).input(F32, x).opset(6),
            "is of version 6, expected 7 to 28",
        ),
        (
            op("Add").input(F32, x).input(F32, x).opset(29),
            "is of version 29",
        ),
        (op("Max").input(F32, x).input(F32, x).opset(7), "expected 8 to 28"),
        (op("Relu").input(F32, x).opset(5), "expected 6 to 28"),
        // The operator is of version 1 until opset 22.
        (op("Softplus").input(F32, x), "is of version 1, expected 6 to 28"),
        (
            op("Slice").input(F32, x).ints(&[0]).ints(&[1]).opset(9),
            "expected 10 to 28",
        ),
        (pad().ints(&[0; 8]).opset(10), "expected 11 to 28"),
        // Types.
        (
            op("Add").input(I32, x).input(I32, x),
            "input 0 is int32, expected float32, float16, int64",
        ),
        (op("Gelu").input(BF16, x), "input 0 is bfloat16"),
        (op("Softmax").input(BOOL, x), "input 0 is bool"),
        (
            op("HardSigmoid").input(I64, x),
            "input 0 is int64, expected float32, float16",
        ),
        (pad().ints(&[0; 8]).opset(20).cast_input(I64), "input 0 is int64"),
        (
            op("And").input(BOOL, x).input(F32, x),
            "input 1 is float32, expected bool",
        ),
        (
            op("Where").input(I64, x).input(F32, x).input(F32, x),
            "input 0 is int64, expected bool",
        ),
        (
            op("Where").input(BOOL, x).input(I64, x).input(I64, x),
            "input 1 is int64",
        ),
        (
            op("Where").input(BOOL, x).input(F32, x).input(F16, x),
            "the two values have different types",
        ),
        (
            op("Cast").input(F32, x).int("to", i64::from(BF16)),
            "casts to bfloat16",
        ),
        (
            op("Cast").input(BF16, x).int("to", i64::from(F32)),
            "input 0 is bfloat16",
        ),
        (op("Pow").input(F32, x).input(F16, x), "raises float32 to float16"),
        (
            op("Gather").input(F32, &[9, 4]).input(F32, &[5]),
            "input 1 is float32, expected int32, int64",
        ),
        (
            op("Slice").input(I32, x).ints(&[0]).ints(&[1]),
            "input 0 is int32",
        ),
        (
            op("LayerNormalization").input(F16, x).weight(F32, &[4]),
            "input 1 is float32, input 0 is float16: expected one type",
        ),
        (op("Clip").input(F32, x).weight(I64, &[]), "input 1 is int64"),
        // Constants.
        (
            conv().input(F32, &[6]).result(F32, &[1, 6, 6, 6]),
            "input 2 (bias) is not a constant",
        ),
        (
            op("Gemm").input(F32, &[5, 4]).input(F32, &[4, 6]),
            "input 1 (B) is not a constant",
        ),
        (gemm().input(F16, &[6]), "input 2 (C) is not a constant"),
        (
            op("Reshape").input(F32, x).input(I64, &[2]),
            "input 1 (shape) is not a constant",
        ),
        (
            op("ReduceMean").input(F32, x).input(I64, &[1]),
            "input 1 (axes) is not a constant",
        ),
        (
            op("Slice").input(F32, x).input(I64, &[1]).ints(&[1]),
            "input 1 (starts) is not a constant",
        ),
        (
            op("Split").input(F32, x).input(I64, &[2]).outputs(2),
            "input 1 (split) is not a constant",
        ),
        (
            op("Squeeze").input(F32, &[1, 3]).input(I64, &[1]),
            "input 1 (axes) is not a constant",
        ),
        (
            op("LayerNormalization").input(F32, x).input(F32, &[4]),
            "input 1 (scale) is not a constant",
        ),
        (
            op("Clip").input(F32, x).input(F32, &[]),
            "input 1 (min) is not a constant",
        ),
        (pad().input(I64, &[8]), "input 1 (pads) is not a constant"),
        (
            op("PRelu").input(F32, &[1, 3, 8, 8]).input(F32, &[3, 1, 1]),
            "input 1 (slope)",
        ),
        (
            op("GatherND").input(F32, &[9, 4]).input(I64, &[5, 1]),
            "input 1 (indices)",
        ),
        // Forms.
        (op("Concat").input(F32, x), "has 1 inputs, expected 2 or more"),
        (
            op("Concat").input(F32, x).input(F32, x).int("axis", -1 << 62),
            "is not one of rank",
        ),
        (
            op("Gather").input(F32, &[9]).input(I64, &[5]).int("axis", 99),
            "axis 99 is not one of rank 1",
        ),
        (
            op("Softmax").input(F32, &[2, 3]).int("axis", 2),
            "axis 2 is not one of rank 2",
        ),
        (
            op("Conv")
                .input(F32, &[1, 4, 8, 8, 8])
                .weight(F32, &[6, 4, 3, 3, 3])
                .result(F32, &[1, 6, 6, 6, 6]),
            "the weight has rank 5, expected 3 or 4",
        ),
        (
            op("Conv")
                .input(F32, &[1, 2, 20_000])
                .weight(F32, &[6, 2, 3])
                .result(F32, &[1, 6, 19_998]),
            "input 0 has the shape [1,2,20000], expected lengths up to 16384",
        ),
        (conv(), "the shape of `y` is unknown"),
        (
            conv().list("kernel_shape", &[5, 5]).result(F32, &[1, 6, 6, 6]),
            "kernel_shape is [5,5], the weight has the shape [6,4,3,3]",
        ),
        (
            op("FusedConv")
                .input(F32, &[1, 4, 8, 8])
                .weight(F32, &[6, 4, 3, 3])
                .text("activation", "Softplus")
                .result(F32, &[1, 6, 6, 6]),
            "the activation is `Softplus`",
        ),
        (
            op("ConvTranspose")
                .input(F32, &[1, 4, 8, 8])
                .weight(F32, &[4, 6, 3, 3])
                .list("pads", &[0, 1, 0, 1]),
            "pads differ",
        ),
        (gemm().int("transA", 1), "transA is not 0"),
        (
            gemm().attribute("alpha", |one| one.f = Some(0.5)),
            "alpha is 0.5, expected 1",
        ),
        (gemm().weight(F16, &[5, 6]), "C has the shape [5,6]"),
        (
            op("MatMul").input(F32, &[4]).input(F32, &[4, 6]),
            "one of them has rank 1",
        ),
        (
            op("Reshape").input(F32, x).ints(&[1, 1, 1, 1, 6, 4]),
            "the new shape has rank 6",
        ),
        (
            op("Reshape").input(F32, x).ints(&[0, -1]).int("allowzero", 1),
            "has a 0 with allowzero",
        ),
        (
            op("Unsqueeze").input(F32, x).ints(&[0, 1, 2]),
            "the output has rank 6",
        ),
        (
            op("Gather").input(F32, &[9, 4, 4, 4]).input(I64, &[2, 2, 2]),
            "the output has rank 6",
        ),
        (
            op("Gather").input(F32, &[9, 4, 4, 4, 4]).input(I64, &[]),
            "scalar indices into [9,4,4,4,4]",
        ),
        (
            op("Slice").input(F32, x).ints(&[2]).ints(&[2]).ints(&[1]),
            "the range 2..2 of axis 1 (3 long) is empty",
        ),
        (
            op("Split").input(F32, x).ints(&[4]).int("axis", 2).outputs(1),
            "has 1 outputs, expected 2 or more",
        ),
        (
            op("Split").input(F32, x).ints(&[1, 2]).int("axis", 2).outputs(2),
            "splits 4 into [1, 2]",
        ),
        (
            // Their sum is 4 where it wraps.
            op("Split")
                .input(F32, x)
                .ints(&[i64::MAX, i64::MAX, 6])
                .int("axis", 2)
                .outputs(3),
            "splits 4 into [9223372036854775807, 9223372036854775807, 6]",
        ),
        (
            op("Split").input(F32, x).int("axis", 2).outputs(2),
            "num_outputs is None",
        ),
        (
            op("Split").input(F32, x).int("axis", 1).outputs(2).opset(13),
            "splits 3 into 2 equal parts",
        ),
        (
            op("Transpose").input(F32, x).list("perm", &[1, 0]),
            "perm has 2 axes for rank 3",
        ),
        (
            op("Tile").input(F32, x).ints(&[1, 0, 1]),
            "repeats [1, 0, 1] for rank 3",
        ),
        (norm("LayerNormalization").outputs(3), "has 3 outputs, expected 1"),
        (
            norm("LayerNormalization").int("stash_type", 16),
            "stash_type is not 1",
        ),
        (
            op("MaxPool").input(F32, &[1, 3, 8]),
            "input 0 has rank 3, expected 4",
        ),
        (pool("MaxPool").list("dilations", &[2, 2]), "is dilated"),
        (pool("MaxPool").outputs(2), "has 2 outputs, expected 1"),
        (pool("MaxPool").int("storage_order", 1), "storage_order is not 0"),
        (pad().ints(&[0, 0, -1, 0, 0, 0, 0, 0]), "a pad is negative"),
        (pad().ints(&[0; 8]).text("mode", "edge"), "the mode is edge"),
        (
            pad().ints(&[0, 0, 8, 0, 0, 0, 0, 0]).text("mode", "reflect"),
            "reflects 8 elements at axis 2",
        ),
        (
            op("PRelu").input(F32, &[1, 3]).weight(F32, &[1]),
            "input 0 has rank 2, expected 3 or 4",
        ),
        (resize().int("antialias", 1), "is antialiased"),
        (
            resize().text("coordinate_transformation_mode", "tf_crop_and_resize"),
            "mode linear with tf_crop",
        ),
        (
            op("ArgMax").input(F32, x).int("select_last_index", 1),
            "select_last_index is not 0",
        ),
        (
            op("GatherND")
                .input(F32, &[9, 4])
                .weight(I64, &[5, 1])
                .int("batch_dims", 1),
            "batch_dims is not 0",
        ),
        (
            op("GridSample")
                .input(F32, &[1, 3, 8, 8])
                .input(F32, &[1, 4, 4, 2])
                .text("mode", "cubic"),
            "the mode is cubic",
        ),
    ];
    let mut problems = Vec::new();
    for (one, expected) in cases {
        let name = one.node.op_type.clone().unwrap();
        let verdict = one.verdict(true);
        let reason = verdict.left.first().map(|left| left.reason.clone());
        if verdict.claimed != 0
            || verdict.partitions != 0
            || !reason.as_deref().is_some_and(|found| found.contains(expected))
        {
            problems.push(format!("{name}: {reason:?}, expected {expected}"));
        }
    }
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

impl One {
    /// The first input in another type.
    fn cast_input(mut self, dtype: i32) -> One {
        let input = self.graph.input.first_mut().unwrap();
        input
            .r#type
            .as_mut()
            .unwrap()
            .tensor_type
            .as_mut()
            .unwrap()
            .elem_type = Some(dtype);
        self
    }
}

#[test]
fn varying_lengths_are_claimed_where_the_provider_is_left_to_its_default() {
    let one = || op("Add").input(F32, &[-1, 3]).input(F32, &[3]);
    assert!(!one().verdict(true).whole());
    assert!(one().verdict(false).whole());
    // Slice asks for fixed lengths itself.
    let slice = op("Slice").input(F32, &[-1, 3]).ints(&[0]).ints(&[1]);
    assert!(!slice.verdict(false).whole());
}

/// `a = x + x`, `b = -a`, `c = b + x`: what Core ML lacks in the middle.
fn broken_chain() -> ModelProto {
    let node = |op: &str, name: &str, inputs: &[&str], output: &str| NodeProto {
        op_type: Some(op.to_owned()),
        name: Some(name.to_owned()),
        input: inputs.iter().map(|&name| name.to_owned()).collect(),
        output: vec![output.to_owned()],
        ..NodeProto::default()
    };
    ModelProto {
        ir_version: Some(9),
        graph: Some(GraphProto {
            node: vec![
                node("Add", "/first", &["x", "x"], "a"),
                node("Neg", "/hole", &["a"], "b"),
                node("Add", "/last", &["b", "x"], "c"),
            ],
            input: vec![info("x", F32, &[2, 3])],
            output: vec![info("c", F32, &[2, 3])],
            value_info: vec![info("a", F32, &[2, 3]), info("b", F32, &[2, 3])],
            ..GraphProto::default()
        }),
        opset_import: vec![OperatorSetIdProto {
            domain: Some(String::new()),
            version: Some(20),
        }],
        ..ModelProto::default()
    }
}

#[test]
fn the_verdict_names_what_stays() {
    let verdict = check(&broken_chain(), "chain", true);
    assert_eq!((verdict.nodes, verdict.claimed, verdict.partitions), (3, 2, 2));
    assert!(!verdict.whole());
    assert_eq!(verdict.left.len(), 1);
    assert_eq!(verdict.left[0].first, ["/hole"]);
    let text = verdict.to_string();
    assert!(
        text.starts_with("chain: 2 of 3 nodes claimed, 2 partitions"),
        "{text}"
    );
    assert!(
        text.contains("1 Neg: no builder for ML Programs") && text.contains("`/hole`"),
        "{text}"
    );
}

#[test]
fn constant_nodes_are_constants_and_what_is_not_stated_is_said() {
    let mut model = broken_chain();
    let graph = model.graph.as_mut().unwrap();
    graph.node[1] = NodeProto {
        op_type: Some("Reshape".to_owned()),
        input: vec!["a".to_owned(), "target".to_owned()],
        output: vec!["b".to_owned()],
        ..NodeProto::default()
    };
    let constant = NodeProto {
        op_type: Some("Constant".to_owned()),
        output: vec!["target".to_owned()],
        attribute: vec![AttributeProto {
            name: Some("value_ints".to_owned()),
            ints: vec![3, 2],
            ..AttributeProto::default()
        }],
        ..NodeProto::default()
    };
    graph.node.insert(0, constant);
    let verdict = check(&model, "chain", true);
    assert!(verdict.whole() && verdict.nodes == 3, "{verdict}");
    model.graph.as_mut().unwrap().value_info.clear();
    let verdict = check(&model, "chain", true);
    assert_eq!(verdict.unknown_shapes, ["a", "b"]);
    assert_eq!((verdict.claimed, verdict.left.len()), (1, 2), "{verdict}");
}

#[test]
fn a_file_is_read_or_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("model.onnx");
    std::fs::write(&path, broken_chain().encode_to_vec()).unwrap();
    let found = check_file(&path, true).unwrap();
    assert_eq!(found, check(&broken_chain(), &path.display().to_string(), true));
    for (bytes, expected) in [
        (&b"\xff\xff\xff"[..], "is not an ONNX model"),
        (b"", "it has no nodes"),
    ] {
        std::fs::write(&path, bytes).unwrap();
        let message = check_file(&path, true).unwrap_err().to_string();
        assert!(
            message.contains(expected) && message.contains("model.onnx"),
            "{message}"
        );
    }
    assert!(check_file(&directory.path().join("none.onnx"), true).is_err());
    let message = check_file(directory.path(), true).unwrap_err().to_string();
    assert!(message.contains("it is not a file"), "{message}");
}

/// A partition of nodes that only move data is dropped; one node that computes keeps it whole.
#[test]
fn partitions_that_compute_nothing_are_dropped() {
    let chain = |operators: [&str; 3]| {
        let mut model = broken_chain();
        let nodes = &mut model.graph.as_mut().unwrap().node;
        for (node, operator) in nodes.iter_mut().zip(operators) {
            node.op_type = Some(operator.to_owned());
            node.input.truncate(1);
        }
        check(&model, "chain", true)
    };
    for (operators, partitions, claimed) in [
        (["Identity", "Ceil", "Identity"], 0, 0),
        (["Identity", "Sqrt", "Identity"], 1, 3),
        (["Identity", "Neg", "Sqrt"], 1, 1),
        (["Sqrt", "Neg", "Identity"], 1, 1),
    ] {
        let verdict = chain(operators);
        let found = (verdict.partitions, verdict.claimed);
        assert_eq!(found, (partitions, claimed), "{operators:?}: {verdict}");
    }
    let verdict = chain(["Identity", "Ceil", "Identity"]);
    assert!(
        !verdict.whole() && verdict.to_string().contains("only moves data"),
        "{verdict}"
    );
}

#[test]
fn a_circle_is_not_claimed() {
    let node = |from: &str, to: &str| NodeProto {
        op_type: Some("Relu".to_owned()),
        name: Some(format!("/{to}")),
        input: vec![from.to_owned()],
        output: vec![to.to_owned()],
        ..NodeProto::default()
    };
    let value = |name: &str| info(name, F32, &[1, 2]);
    let model = ModelProto {
        ir_version: Some(9),
        opset_import: vec![OperatorSetIdProto {
            domain: None,
            version: Some(20),
        }],
        graph: Some(GraphProto {
            node: vec![node("b", "a"), node("a", "b"), node("x", "y")],
            input: vec![value("x")],
            value_info: vec![value("a"), value("b")],
            output: vec![value("y")],
            ..GraphProto::default()
        }),
        ..ModelProto::default()
    };
    let verdict = check(&model, "circle", false);
    assert_eq!((verdict.nodes, verdict.claimed, verdict.partitions), (3, 1, 1));
    assert!(verdict.left[0].reason.contains("circle"), "{verdict}");
    assert_eq!(
        (verdict.left[0].count, &verdict.left[0].first[..]),
        (2, &["/a".to_owned(), "/b".to_owned()][..])
    );
}
