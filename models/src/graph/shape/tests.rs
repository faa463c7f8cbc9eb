use super::*;
use crate::graph::Source;

const B: Dim = Dim::Batch;
const P: Dim = Dim::Past;
const N: Dim = Dim::New;
const T: Dim = Dim::Total;

fn f(n: u64) -> Dim {
    Dim::Fixed(n)
}

fn value(dtype: DType, shape: &[Dim]) -> Value {
    Value {
        name: "x".to_owned(),
        dtype,
        shape: shape.to_vec(),
        source: Source::Input,
    }
}

struct Case {
    name: &'static str,
    op: Op,
    inputs: Vec<(DType, Vec<Dim>)>,
    expected: Result<Vec<(DType, Vec<Dim>)>, &'static str>,
}

#[test]
fn every_rule_and_every_refusal() {
    use DType::{Bool, Float32 as F, Int64 as I};
    let case = |name, op, inputs: &[(DType, &[Dim])], expected: Result<&[(DType, &[Dim])], &'static str>| {
        let owned = |list: &[(DType, &[Dim])]| list.iter().map(|(d, s)| (*d, s.to_vec())).collect::<Vec<_>>();
        Case {
            name,
            op,
            inputs: owned(inputs),
            expected: expected.map(owned),
        }
    };
    let conv = || Op::Conv {
        group: 2,
        strides: [2, 2],
        pads: [1, 1, 1, 1],
    };
    let cases = [
        case(
            "add",
            Op::Add,
            &[(F, &[B, N, f(8)]), (F, &[f(8)])],
            Ok(&[(F, &[B, N, f(8)])]),
        ),
        case(
            "add sizes",
            Op::Add,
            &[(F, &[f(7)]), (F, &[f(8)])],
            Err("cannot broadcast 7 with 8"),
        ),
        case(
            "add symbols",
            Op::Add,
            &[(F, &[N]), (F, &[T])],
            Err("cannot broadcast new with total"),
        ),
        case(
            "add dtypes",
            Op::Add,
            &[(F, &[]), (I, &[])],
            Err("mixes float32 with int64"),
        ),
        case(
            "add one",
            Op::Add,
            &[(F, &[])],
            Err("takes 2 to 2 inputs, found 1"),
        ),
        case("sqrt int", Op::Sqrt, &[(I, &[])], Err("wants a float")),
        case(
            "softmax axis",
            Op::Softmax { axis: 2 },
            &[(F, &[B, N])],
            Err("axis 2"),
        ),
        case(
            "matmul",
            Op::MatMul,
            &[(F, &[B, f(2), f(7), N, f(4)]), (F, &[B, f(2), f(1), f(4), T])],
            Ok(&[(F, &[B, f(2), f(7), N, T])]),
        ),
        case(
            "matmul inner",
            Op::MatMul,
            &[(F, &[N, f(4)]), (F, &[f(5), f(2)])],
            Err("length 4"),
        ),
        case(
            "matmul rank",
            Op::MatMul,
            &[(F, &[f(4)]), (F, &[f(4), f(2)])],
            Err("rank 2 or more"),
        ),
        case(
            "gemm",
            Op::Gemm { trans_b: true },
            &[(F, &[B, f(4)]), (F, &[f(9), f(4)])],
            Ok(&[(F, &[B, f(9)])]),
        ),
        case(
            "gemm with a bias",
            Op::Gemm { trans_b: true },
            &[(F, &[B, f(4)]), (F, &[f(9), f(4)]), (F, &[f(9)])],
            Ok(&[(F, &[B, f(9)])]),
        ),
        case(
            "gemm with another bias",
            Op::Gemm { trans_b: true },
            &[(F, &[B, f(4)]), (F, &[f(9), f(4)]), (F, &[f(4)])],
            Err("to rows of length 9"),
        ),
        case(
            "gemm inner",
            Op::Gemm { trans_b: false },
            &[(F, &[B, f(4)]), (F, &[f(9), f(4)])],
            Err("length 4"),
        ),
        case(
            "gemm rank",
            Op::Gemm { trans_b: false },
            &[(F, &[f(4)]), (F, &[f(9), f(4)])],
            Err("wants rank 2"),
        ),
        case(
            "conv",
            conv(),
            &[
                (F, &[B, f(4), f(7), f(8)]),
                (F, &[f(6), f(2), f(3), f(3)]),
                (F, &[f(6)]),
            ],
            Ok(&[(F, &[B, f(6), f(4), f(4)])]),
        ),
        case(
            "conv groups",
            conv(),
            &[(F, &[B, f(5), f(7), f(8)]), (F, &[f(6), f(2), f(3), f(3)])],
            Err("groups"),
        ),
        case(
            "conv symbol",
            conv(),
            &[(F, &[B, f(4), N, f(8)]), (F, &[f(6), f(2), f(3), f(3)])],
            Err("fixed"),
        ),
        case(
            "conv kernel",
            conv(),
            &[(F, &[B, f(4), f(1), f(8)]), (F, &[f(6), f(2), f(9), f(3)])],
            Err("kernel"),
        ),
        case(
            "conv bias",
            conv(),
            &[
                (F, &[B, f(4), f(7), f(8)]),
                (F, &[f(6), f(2), f(3), f(3)]),
                (F, &[f(5)]),
            ],
            Err("the bias has shape [5]"),
        ),
        case(
            "mean",
            Op::ReduceMean {
                axes: vec![-1, 1],
                keep_dims: true,
            },
            &[(F, &[B, N, f(3)])],
            Ok(&[(F, &[B, f(1), f(1)])]),
        ),
        case(
            "mean dropped",
            Op::ReduceMean {
                axes: vec![1],
                keep_dims: false,
            },
            &[(F, &[B, N, f(3)])],
            Ok(&[(F, &[B, f(3)])]),
        ),
        case(
            "norm",
            Op::LayerNormalization {
                axis: -1,
                epsilon: 1e-5,
            },
            &[(F, &[B, N, f(3)]), (F, &[f(3)]), (F, &[f(4)])],
            Err("normalises [3]"),
        ),
        case("cast", Op::Cast { to: F }, &[(I, &[B])], Ok(&[(F, &[B])])),
        case(
            "concat cache",
            Op::Concat { axis: 2 },
            &[(F, &[B, f(2), P, f(4)]), (F, &[B, f(2), N, f(4)])],
            Ok(&[(F, &[B, f(2), T, f(4)])]),
        ),
        case(
            "concat order",
            Op::Concat { axis: 0 },
            &[(F, &[N]), (F, &[P])],
            Err("whose sum has no name"),
        ),
        case(
            "concat other",
            Op::Concat { axis: 0 },
            &[(F, &[f(1), N]), (F, &[f(1), P])],
            Err("along axis 0"),
        ),
        case(
            "gather",
            Op::Gather { axis: 0 },
            &[(F, &[f(9), f(4)]), (I, &[B, N])],
            Ok(&[(F, &[B, N, f(4)])]),
        ),
        case(
            "gather float",
            Op::Gather { axis: 0 },
            &[(F, &[f(9), f(4)]), (F, &[B, N])],
            Err("wants int64"),
        ),
        case(
            "last",
            Op::Slice {
                axis: 1,
                start: -1,
                end: i64::MAX,
            },
            &[(F, &[B, N, f(3)])],
            Ok(&[(F, &[B, f(1), f(3)])]),
        ),
        case(
            "slice",
            Op::Slice {
                axis: 0,
                start: 2,
                end: -1,
            },
            &[(F, &[f(7)])],
            Ok(&[(F, &[f(4)])]),
        ),
        case(
            "slice symbol",
            Op::Slice {
                axis: 0,
                start: 0,
                end: 2,
            },
            &[(F, &[N])],
            Err("only the last element"),
        ),
        case(
            "split",
            Op::Split {
                axis: -1,
                sizes: vec![1, 2],
            },
            &[(F, &[B, f(3)])],
            Ok(&[(F, &[B, f(1)]), (F, &[B, f(2)])]),
        ),
        case(
            "split sum",
            Op::Split {
                axis: -1,
                sizes: vec![1, 1],
            },
            &[(F, &[B, f(3)])],
            Err("sum to 2"),
        ),
        case(
            "heads",
            Op::Reshape {
                shape: vec![0, 0, 2, 7, 4],
            },
            &[(F, &[B, N, f(56)])],
            Ok(&[(F, &[B, N, f(2), f(7), f(4)])]),
        ),
        case(
            "flatten",
            Op::Reshape {
                shape: vec![0, 0, -1],
            },
            &[(F, &[B, N, f(2), f(28)])],
            Ok(&[(F, &[B, N, f(56)])]),
        ),
        case(
            "reshape product",
            Op::Reshape { shape: vec![0, 5] },
            &[(F, &[B, f(4)])],
            Err("do not match"),
        ),
        case(
            "reshape symbols",
            Op::Reshape { shape: vec![-1] },
            &[(F, &[B, N])],
            Err("two symbols"),
        ),
        case(
            "reshape zero",
            Op::Reshape { shape: vec![0, 0] },
            &[(F, &[B])],
            Err("beyond the input's rank"),
        ),
        case(
            "transpose",
            Op::Transpose { perm: vec![1, 0] },
            &[(F, &[B, N])],
            Ok(&[(F, &[N, B])]),
        ),
        case(
            "transpose twice",
            Op::Transpose { perm: vec![1, 1] },
            &[(F, &[B, N])],
            Err("permutes"),
        ),
        case(
            "unsqueeze",
            Op::Unsqueeze { axes: vec![0, 2] },
            &[(F, &[B])],
            Ok(&[(F, &[f(1), B, f(1)])]),
        ),
        case(
            "unsqueeze twice",
            Op::Unsqueeze { axes: vec![0, 0] },
            &[(F, &[B])],
            Err("twice"),
        ),
        case(
            "squeeze",
            Op::Squeeze { axes: vec![1] },
            &[(F, &[B, f(1)])],
            Ok(&[(F, &[B])]),
        ),
        case(
            "squeeze long",
            Op::Squeeze { axes: vec![0] },
            &[(F, &[B, f(1)])],
            Err("of length batch"),
        ),
        case(
            "shape",
            Op::Shape { start: 1, end: 2 },
            &[(F, &[B, N])],
            Ok(&[(I, &[f(1)])]),
        ),
        case(
            "range",
            Op::Range { dim: N },
            &[(I, &[]), (I, &[]), (I, &[])],
            Ok(&[(I, &[N])]),
        ),
        case(
            "range vector",
            Op::Range { dim: N },
            &[(I, &[f(1)]), (I, &[]), (I, &[])],
            Err("wants scalars"),
        ),
        case(
            "compare",
            Op::LessOrEqual,
            &[(I, &[f(1), T]), (I, &[N, f(1)])],
            Ok(&[(Bool, &[N, T])]),
        ),
        case("and", Op::And, &[(Bool, &[N, T]), (I, &[T])], Err("wants bool")),
        case(
            "where",
            Op::Where,
            &[(Bool, &[N, T]), (F, &[]), (F, &[])],
            Ok(&[(F, &[N, T])]),
        ),
        case(
            "slice update",
            Op::SliceUpdate,
            &[(F, &[f(3), f(4)]), (F, &[f(1), f(2)]), (I, &[f(2)])],
            Ok(&[(F, &[f(3), f(4)])]),
        ),
        case(
            "slice update beyond the end",
            Op::SliceUpdate,
            &[(F, &[f(3), f(4)]), (F, &[f(4), f(2)]), (I, &[f(2)])],
            Err("writes [4, 2] into [3, 4]"),
        ),
        case(
            "attention",
            Op::ScaledDotProductAttention,
            &[
                (F, &[f(2), f(6), f(8)]),
                (F, &[f(2), f(5), f(8)]),
                (F, &[f(2), f(5), f(8)]),
                (F, &[f(6), f(5)]),
            ],
            Ok(&[(F, &[f(2), f(6), f(8)])]),
        ),
        case(
            "attention bias",
            Op::ScaledDotProductAttention,
            &[
                (F, &[f(2), f(6), f(8)]),
                (F, &[f(2), f(5), f(8)]),
                (F, &[f(2), f(5), f(8)]),
                (F, &[f(3), f(6), f(5), f(5)]),
            ],
            Err("broadcast"),
        ),
    ];
    let mut failures = Vec::new();
    for case in cases {
        let values: Vec<Value> = case.inputs.iter().map(|(d, s)| value(*d, s)).collect();
        let found = infer(&case.op, &values.iter().collect::<Vec<_>>());
        let right = match (&found, &case.expected) {
            (Ok(found), Ok(expected)) => found == expected,
            (Err(found), Err(expected)) => found.contains(expected),
            _ => false,
        };
        if !right {
            failures.push(format!(
                "{}: found {found:?}, expected {:?}",
                case.name, case.expected
            ));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
