//! Does every operator do on every engine what the interpreter says? Small graphs, in the forms that the networks use
//! and a little beyond.

use crate::array::Array;
use crate::compare::{Tolerance, compare};
use crate::interpreter::Interpreter;
use crate::setup::case::{Case, Findings};
use crate::setup::error::{CaseError, Context};
use crate::setup::subject::{Precision, Provider, Subject};
use crate::setup::workspace::Workspace;
use crate::tiny::{Given, random};
use models::dtype::DType;
use models::graph::{Builder, Conv, Dim, Op, ValueId};

/// A small graph with inputs.
struct Problem {
    name: &'static str,
    inputs: Vec<(&'static str, Vec<Dim>, Array)>,
    build: Box<Build>,
}

type Build = dyn Fn(&mut Builder, &[ValueId]) -> Vec<ValueId> + Send + Sync;

impl Problem {
    fn new(
        name: &'static str,
        inputs: Vec<(&'static str, Vec<Dim>, Array)>,
        build: impl Fn(&mut Builder, &[ValueId]) -> Vec<ValueId> + Send + Sync + 'static,
    ) -> Problem {
        Problem {
            name,
            inputs,
            build: Box::new(build),
        }
    }

    /// One node on the inputs.
    fn node(name: &'static str, op: Op, inputs: Vec<(&'static str, Vec<Dim>, Array)>) -> Problem {
        Problem::new(name, inputs, move |b, inputs| vec![b.node(op.clone(), inputs)])
    }

    fn run(&self, op: &str, subject: &Subject, workspace: &Workspace) -> Result<Findings, CaseError> {
        let mut b = Builder::new("problem");
        let ids: Vec<ValueId> = self
            .inputs
            .iter()
            .map(|(name, dims, tensor)| b.input(name, dtype_of(tensor), dims))
            .collect();
        for (i, value) in (self.build)(&mut b, &ids).into_iter().enumerate() {
            b.output(&format!("result_{i}"), value);
        }
        let graph = b.finish().during(|| format!("building `{}`", self.name))?;
        let weights = Given::random(&graph, 7);
        let inputs: Vec<(&str, Array)> = self
            .inputs
            .iter()
            .map(|(name, _, tensor)| (*name, tensor.clone()))
            .collect();
        // What rounds weights is not in question here: the interpreter reads the same codes.
        let rounded = subject
            .rounds()
            .then(|| exporter::passes::run(graph.clone(), subject.form))
            .transpose()
            .during(|| format!("rounding `{}`", self.name))?;
        let expected = Interpreter::new(rounded.as_ref().unwrap_or(&graph), &weights)
            .run(&inputs)
            .during(|| format!("interpreting {op}"))?;
        let found = subject
            .session(&graph, &weights, workspace.root())?
            .run(&inputs)?;
        let tolerance = match subject.precision() {
            _ if subject.rounds() => Tolerance::Bytes,
            Precision::Fp32 => Tolerance::Close,
            Precision::Fp16 | Precision::Int8 | Precision::Q8 | Precision::Q4 | Precision::Q4F16 => {
                Tolerance::Half
            }
        };
        let mut findings = Findings::default();
        for (name, expected) in expected {
            match found.iter().find(|(found, _)| *found == name) {
                Some((_, found)) => findings.push(compare(&name, found, &expected, tolerance)),
                None => findings.problems.push(format!("no output `{name}`")),
            }
        }
        Ok(findings)
    }
}

fn dtype_of(tensor: &Array) -> DType {
    match tensor {
        Array::Float(_) => DType::Float32,
        Array::Int(_) => DType::Int64,
        Array::Bool(_) => DType::Bool,
    }
}

/// Every problem of every operator, on every engine.
pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    let mut next = Some(Op::Add);
    while let Some(op) = next {
        let (problems, after) = problems(&op);
        for problem in problems {
            let name = op.name();
            cases.push(Case::on_each(
                format!("ops/{}/{}", name.to_lowercase(), problem.name),
                format!("{name}: {}", problem.name.replace('_', " ")),
                |subject| subject.provider != Provider::Interpreter,
                move |subject, workspace| problem.run(name, subject, workspace),
            ));
        }
        next = after;
    }
    cases
}

type Input = (&'static str, Vec<Dim>, Array);

/// `x` of random numbers, with its first two axes symbolic.
fn x(shape: &[usize]) -> Input {
    ("x", symbolic(shape), random(1, shape))
}

fn y(shape: &[usize]) -> Input {
    ("y", symbolic(shape), random(2, shape))
}

/// An image batch: only the first axis is a symbol.
fn map(shape: &[usize]) -> Input {
    let mut dims = fixed(shape);
    dims[0] = Dim::Batch;
    ("x", dims, random(3, shape))
}

fn symbolic(shape: &[usize]) -> Vec<Dim> {
    let mut dims = fixed(shape);
    if shape.len() > 2 {
        dims[0] = Dim::Batch;
        dims[1] = Dim::New;
    }
    dims
}

fn fixed(shape: &[usize]) -> Vec<Dim> {
    shape.iter().map(|&n| Dim::Fixed(n as u64)).collect()
}

fn positive(mut input: Input) -> Input {
    if let Array::Float(values) = &mut input.2 {
        values.mapv_inplace(|v| v.abs() + 0.25);
    }
    input
}

fn scaled((name, dims, mut tensor): Input, factor: f32) -> Input {
    if let Array::Float(values) = &mut tensor {
        values.mapv_inplace(|v| v * factor);
    }
    (name, dims, tensor)
}

/// `[past, batch]` lengths as a cache and a mask carry them.
fn cache_and_mask(past: usize, new: usize) -> Vec<Input> {
    let total = past + new;
    let cache = vec![Dim::Batch, Dim::Fixed(2), Dim::Past, Dim::Fixed(4)];
    let mut mask = vec![1; 2 * total];
    mask[0] = 0;
    vec![
        ("cache", cache, random(5, &[2, 2, past, 4])),
        ("new", vec![Dim::Batch, Dim::New], random(6, &[2, new])),
        (
            "mask",
            vec![Dim::Batch, Dim::Total],
            Array::int(&[2, total], mask),
        ),
    ]
}

/// The problems of an operator, and the operator after it: a new variant does not compile before it stands here.
fn problems(op: &Op) -> (Vec<Problem>, Option<Op>) {
    let one = |op: &Op, input: Input| vec![Problem::node("plain", op.clone(), vec![input])];
    let two = |op: &Op| {
        vec![
            Problem::node(
                "same_shape",
                op.clone(),
                vec![x(&[2, 3, 4]), positive(y(&[2, 3, 4]))],
            ),
            Problem::new("by_a_literal", vec![x(&[2, 3, 4])], {
                let op = op.clone();
                move |b, inputs| {
                    let literal = b.constant_f32(&[], vec![0.125]);
                    vec![b.node(op.clone(), &[inputs[0], literal])]
                }
            }),
            Problem::node(
                "broadcast",
                op.clone(),
                vec![
                    x(&[2, 3, 4]),
                    positive((
                        "y",
                        vec![Dim::Batch, Dim::Fixed(1), Dim::Fixed(4)],
                        random(2, &[2, 1, 4]),
                    )),
                ],
            ),
        ]
    };
    match op {
        Op::Add => (two(op), Some(Op::Sub)),
        Op::Sub => (two(op), Some(Op::Mul)),
        Op::Mul => (two(op), Some(Op::Div)),
        Op::Div => (two(op), Some(Op::Neg)),
        Op::Neg => (one(op, x(&[2, 3, 4])), Some(Op::Sqrt)),
        Op::Sqrt => (one(op, positive(x(&[2, 3, 4]))), Some(Op::Cos)),
        Op::Cos => (one(op, scaled(x(&[2, 3, 4]), 3.0)), Some(Op::Sin)),
        Op::Sin => (one(op, scaled(x(&[2, 3, 4]), 3.0)), Some(Op::Sigmoid)),
        Op::Sigmoid => (one(op, scaled(x(&[2, 3, 4]), 8.0)), Some(Op::Relu)),
        Op::Relu => (one(op, x(&[2, 3, 4])), Some(Op::Gelu)),
        Op::Gelu => (
            one(op, scaled(x(&[2, 3, 40]), 5.0)),
            Some(Op::Softmax { axis: -1 }),
        ),
        Op::Softmax { .. } => (softmax(), Some(Op::MatMul)),
        Op::MatMul => (matmul(), Some(Op::Gemm { trans_b: true })),
        Op::Gemm { .. } => (
            gemm(),
            Some(Op::Conv {
                group: 1,
                strides: [1, 1],
                pads: [0; 4],
            }),
        ),
        Op::Conv { .. } => (
            conv(),
            Some(Op::ReduceMean {
                axes: vec![],
                keep_dims: true,
            }),
        ),
        Op::ReduceMean { .. } => (
            reduce_mean(),
            Some(Op::LayerNormalization {
                axis: -1,
                epsilon: 1e-5,
            }),
        ),
        Op::LayerNormalization { .. } => (layer_norm(), Some(Op::Cast { to: DType::Float32 })),
        Op::Cast { .. } => (cast(), Some(Op::Concat { axis: 0 })),
        Op::Concat { .. } => (concat(), Some(Op::Gather { axis: 0 })),
        Op::Gather { .. } => (
            gather(),
            Some(Op::Slice {
                axis: 0,
                start: 0,
                end: 1,
            }),
        ),
        Op::Slice { .. } => (
            slice(),
            Some(Op::Split {
                axis: 0,
                sizes: vec![],
            }),
        ),
        Op::Split { .. } => (split(), Some(Op::Reshape { shape: vec![] })),
        Op::Reshape { .. } => (reshape(), Some(Op::Transpose { perm: vec![] })),
        Op::Transpose { .. } => (transpose(), Some(Op::Unsqueeze { axes: vec![] })),
        Op::Unsqueeze { .. } => {
            let op = Op::Unsqueeze { axes: vec![0, -1] };
            (one(&op, x(&[2, 3, 4])), Some(Op::Squeeze { axes: vec![] }))
        }
        Op::Squeeze { .. } => {
            let op = Op::Squeeze { axes: vec![2] };
            (one(&op, x(&[2, 3, 1])), Some(Op::Shape { start: 0, end: 1 }))
        }
        Op::Shape { .. } => (shape(), Some(Op::Range { dim: Dim::New })),
        Op::Range { .. } => (range(), Some(Op::LessOrEqual)),
        Op::LessOrEqual => (less_or_equal(), Some(Op::And)),
        Op::And => (and(), Some(Op::Where)),
        Op::Where => (select(), None),
        // No ONNX graph has them; Core ML packages are evaluated by `scripts/check_coreml`.
        Op::SliceUpdate | Op::ScaledDotProductAttention => (Vec::new(), None),
        // What they compute is written in the others; the suite `networks` holds the kernels to it.
        Op::Fused(_) => (Vec::new(), None),
        // A pass makes them: problems with weights have them in the forms that round.
        Op::DequantizeLinear { .. } | Op::MatMulNBits { .. } => (Vec::new(), None),
    }
}

fn softmax() -> Vec<Problem> {
    let op = Op::Softmax { axis: -1 };
    vec![
        Problem::node("last_axis", op.clone(), vec![scaled(x(&[2, 3, 5]), 4.0)]),
        Problem::new("hidden_scores", vec![x(&[2, 3, 5])], move |b, inputs| {
            let b = &mut b.full();
            let hidden = b.constant_f32(&[5], vec![0.0, f32::MIN, 0.0, f32::MIN, f32::MIN]);
            let scores = b.add(inputs[0], hidden);
            vec![b.node(op.clone(), &[scores])]
        }),
    ]
}

fn matmul() -> Vec<Problem> {
    vec![
        Problem::node(
            "batched",
            Op::MatMul,
            vec![
                x(&[2, 3, 4]),
                (
                    "y",
                    vec![Dim::Batch, Dim::Fixed(4), Dim::Fixed(5)],
                    random(2, &[2, 4, 5]),
                ),
            ],
        ),
        Problem::node(
            "grouped_heads",
            Op::MatMul,
            vec![
                (
                    "x",
                    vec![Dim::Batch, Dim::Fixed(2), Dim::Fixed(3), Dim::New, Dim::Fixed(4)],
                    random(1, &[2, 2, 3, 5, 4]),
                ),
                (
                    "y",
                    vec![
                        Dim::Batch,
                        Dim::Fixed(2),
                        Dim::Fixed(1),
                        Dim::Fixed(4),
                        Dim::Total,
                    ],
                    random(2, &[2, 2, 1, 4, 7]),
                ),
            ],
        ),
        Problem::new("by_a_weight", vec![x(&[2, 3, 8])], |b, inputs| {
            vec![b.linear("linear", inputs[0], 8, 6, true)]
        }),
    ]
}

fn gemm() -> Vec<Problem> {
    let rows = || ("x", vec![Dim::Batch, Dim::Fixed(8)], random(1, &[3, 8]));
    vec![
        Problem::new("transposed_weight", vec![rows()], |b, inputs| {
            let weight = b.scope("head").weight("weight", &[6, 8]);
            vec![b.gemm_transposed(inputs[0], weight)]
        }),
        Problem::new("with_a_bias", vec![rows()], |b, inputs| {
            vec![b.dense("head", inputs[0], 8, 6, true)]
        }),
        Problem::new("weight_as_stored", vec![rows()], |b, inputs| {
            let weight = b.scope("head").weight("weight", &[8, 6]);
            vec![b.node(Op::Gemm { trans_b: false }, &[inputs[0], weight])]
        }),
    ]
}

fn conv() -> Vec<Problem> {
    let problem = |name, shape: &[usize], conv: Conv| {
        Problem::new(name, vec![map(shape)], move |b, inputs| {
            vec![b.conv("conv", inputs[0], conv)]
        })
    };
    vec![
        problem(
            "pointwise",
            &[2, 6, 5, 5],
            Conv {
                input: 6,
                output: 8,
                kernel: 1,
                stride: 1,
                group: 1,
            },
        ),
        problem(
            "stem",
            &[2, 3, 8, 8],
            Conv {
                input: 3,
                output: 4,
                kernel: 3,
                stride: 2,
                group: 1,
            },
        ),
        problem(
            "depthwise",
            &[2, 4, 6, 6],
            Conv {
                input: 4,
                output: 4,
                kernel: 3,
                stride: 1,
                group: 4,
            },
        ),
        problem(
            "depthwise_7x7",
            &[2, 4, 9, 9],
            Conv {
                input: 4,
                output: 4,
                kernel: 7,
                stride: 1,
                group: 4,
            },
        ),
        problem(
            "large_kernel_stride_2",
            &[1, 4, 8, 8],
            Conv {
                input: 4,
                output: 8,
                kernel: 7,
                stride: 2,
                group: 4,
            },
        ),
        problem(
            "kernel_larger_than_the_map",
            &[1, 4, 2, 2],
            Conv {
                input: 4,
                output: 4,
                kernel: 7,
                stride: 1,
                group: 4,
            },
        ),
        problem(
            "two_outputs_a_group",
            &[2, 4, 4, 4],
            Conv {
                input: 4,
                output: 8,
                kernel: 3,
                stride: 1,
                group: 4,
            },
        ),
        Problem::new(
            "uneven_padding_without_bias",
            vec![map(&[1, 2, 5, 6])],
            |b, inputs| {
                let weight = b.scope("conv").weight("weight", &[3, 2, 3, 2]);
                let op = Op::Conv {
                    group: 1,
                    strides: [2, 1],
                    pads: [1, 0, 2, 1],
                };
                vec![b.node(op, &[inputs[0], weight])]
            },
        ),
    ]
}

fn reduce_mean() -> Vec<Problem> {
    vec![
        Problem::node(
            "last_axis",
            Op::ReduceMean {
                axes: vec![-1],
                keep_dims: true,
            },
            vec![x(&[2, 3, 8])],
        ),
        Problem::node(
            "over_a_map",
            Op::ReduceMean {
                axes: vec![2, 3],
                keep_dims: true,
            },
            vec![map(&[2, 3, 4, 4])],
        ),
        Problem::node(
            "axes_dropped",
            Op::ReduceMean {
                axes: vec![2, 3],
                keep_dims: false,
            },
            vec![map(&[2, 3, 4, 4])],
        ),
    ]
}

fn layer_norm() -> Vec<Problem> {
    vec![
        Problem::new("plain", vec![x(&[2, 3, 8])], |b, inputs| {
            vec![b.layer_norm("norm", inputs[0], 8, 1e-5)]
        }),
        Problem::new("rms", vec![scaled(x(&[2, 3, 8]), 30.0)], |b, inputs| {
            vec![b.rms_norm("norm", inputs[0], 8, 1e-6)]
        }),
    ]
}

fn cast() -> Vec<Problem> {
    let ids = (
        "x",
        vec![Dim::Batch, Dim::New],
        Array::int(&[2, 3], vec![0, 1, 2, 30_000, -4, 5]),
    );
    vec![Problem::new("positions", vec![ids], |b, inputs| {
        vec![b.full().cast(inputs[0], DType::Float32)]
    })]
}

fn concat() -> Vec<Problem> {
    let cache = |past: usize| {
        let dims = |length| vec![Dim::Batch, Dim::Fixed(2), length, Dim::Fixed(4)];
        vec![
            ("past", dims(Dim::Past), random(1, &[2, 2, past, 4])),
            ("new", dims(Dim::New), random(2, &[2, 2, 3, 4])),
        ]
    };
    vec![
        Problem::node("cache", Op::Concat { axis: 2 }, cache(5)),
        Problem::node("empty_cache", Op::Concat { axis: 2 }, cache(0)),
        Problem::node(
            "last_axis",
            Op::Concat { axis: -1 },
            vec![x(&[2, 3, 4]), y(&[2, 3, 2])],
        ),
    ]
}

fn gather() -> Vec<Problem> {
    let ids = (
        "ids",
        vec![Dim::Batch, Dim::New],
        Array::int(&[2, 3], vec![0, 4, 9, 9, 1, 0]),
    );
    vec![Problem::new("embedding", vec![ids], |b, inputs| {
        let table = b.scope("embed").weight("weight", &[10, 4]);
        vec![b.gather(table, inputs[0])]
    })]
}

fn slice() -> Vec<Problem> {
    let slice = |axis, start, end| Op::Slice { axis, start, end };
    vec![
        Problem::node("last_position", slice(1, -1, i64::MAX), vec![x(&[2, 5, 4])]),
        Problem::node("middle", slice(2, 1, 3), vec![x(&[2, 3, 4])]),
        Problem::node(
            "last_axis_from_the_back",
            slice(-1, -2, i64::MAX),
            vec![x(&[2, 3, 4])],
        ),
    ]
}

fn split() -> Vec<Problem> {
    vec![
        Problem::new("halves_of_a_head", vec![x(&[2, 3, 8])], |b, inputs| {
            b.split(inputs[0], -1, [4, 4]).to_vec()
        }),
        Problem::new("three_uneven", vec![x(&[2, 3, 8])], |b, inputs| {
            b.split(inputs[0], 2, [1, 2, 5]).to_vec()
        }),
    ]
}

fn reshape() -> Vec<Problem> {
    let reshape = |shape: &[i64]| Op::Reshape {
        shape: shape.to_vec(),
    };
    vec![
        Problem::node("heads", reshape(&[0, 0, 2, 4]), vec![x(&[2, 3, 8])]),
        Problem::node(
            "joined_heads",
            reshape(&[0, 0, -1]),
            vec![(
                "x",
                vec![Dim::Batch, Dim::New, Dim::Fixed(2), Dim::Fixed(4)],
                random(1, &[2, 3, 2, 4]),
            )],
        ),
        Problem::node("map_to_tokens", reshape(&[0, 0, -1]), vec![map(&[2, 3, 4, 4])]),
    ]
}

fn transpose() -> Vec<Problem> {
    vec![
        Problem::node(
            "tokens",
            Op::Transpose { perm: vec![0, 2, 1] },
            vec![x(&[2, 3, 4])],
        ),
        Problem::node(
            "grouped_heads",
            Op::Transpose {
                perm: vec![0, 2, 3, 1, 4],
            },
            vec![(
                "x",
                vec![Dim::Batch, Dim::New, Dim::Fixed(2), Dim::Fixed(3), Dim::Fixed(4)],
                random(1, &[2, 5, 2, 3, 4]),
            )],
        ),
    ]
}

fn shape() -> Vec<Problem> {
    let build = |b: &mut Builder, inputs: &[ValueId]| {
        let past = b.dimension(inputs[0], 2);
        let total = b.dimension(inputs[2], 1);
        let lengths = [b.unsqueeze(past, &[0]), b.unsqueeze(total, &[0])];
        // Engines may keep lengths in a type of their own, which they do not give out.
        let lengths = b.concat(&lengths, 0);
        let lengths = b.full().cast(lengths, DType::Float32);
        // Every input must be used: `new` binds its symbol.
        let new = b.neg_of(inputs[1]);
        let cache = b.neg_of(inputs[0]);
        vec![lengths, new, cache]
    };
    vec![
        Problem::new("lengths", cache_and_mask(4, 3), build),
        Problem::new("empty_cache", cache_and_mask(0, 3), build),
    ]
}

fn range() -> Vec<Problem> {
    let build = |b: &mut Builder, inputs: &[ValueId]| {
        let past = b.dimension(inputs[0], 2);
        let total = b.dimension(inputs[2], 1);
        let zero = b.constant_i64(&[], vec![0]);
        let queries = b.range(past, total, Dim::New);
        let keys = b.range(zero, total, Dim::Total);
        let new = b.neg_of(inputs[1]);
        let cache = b.neg_of(inputs[0]);
        vec![queries, keys, new, cache]
    };
    vec![
        Problem::new("slots", cache_and_mask(4, 3), build),
        Problem::new("slots_of_a_step", cache_and_mask(7, 1), build),
        Problem::new("slots_of_an_empty_cache", cache_and_mask(0, 3), build),
    ]
}

fn positions() -> Vec<Input> {
    vec![
        (
            "x",
            vec![Dim::Batch, Dim::New],
            Array::int(&[2, 3], vec![0, 1, 2, 3, 4, 5]),
        ),
        (
            "y",
            vec![Dim::Fixed(1), Dim::New],
            Array::int(&[1, 3], vec![3, 1, 2]),
        ),
    ]
}

/// Engines rarely give truth values out: they choose between two numbers.
fn shown(b: &mut Builder, truth: ValueId) -> ValueId {
    let yes = b.constant_f32(&[], vec![1.0]);
    let no = b.constant_f32(&[], vec![0.0]);
    b.select(truth, yes, no)
}

fn less_or_equal() -> Vec<Problem> {
    vec![Problem::new("causal", positions(), |b, inputs| {
        let truth = b.less_or_equal(inputs[0], inputs[1]);
        vec![shown(b, truth)]
    })]
}

fn and() -> Vec<Problem> {
    vec![Problem::new("causal_and_mask", positions(), |b, inputs| {
        let two = b.constant_i64(&[], vec![2]);
        let first = b.less_or_equal(inputs[0], two);
        let second = b.less_or_equal(two, inputs[1]);
        let truth = b.and(first, second);
        vec![shown(b, truth)]
    })]
}

fn select() -> Vec<Problem> {
    vec![Problem::new("bias", positions(), |b, inputs| {
        let b = &mut b.full();
        let truth = b.less_or_equal(inputs[0], inputs[1]);
        let allowed = b.constant_f32(&[], vec![0.0]);
        let hidden = b.constant_f32(&[], vec![f32::MIN]);
        vec![b.select(truth, allowed, hidden)]
    })]
}

/// `-x`, which the networks do not use and the builder has no method for.
trait Negated {
    fn neg_of(&mut self, x: ValueId) -> ValueId;
}

impl Negated for Builder {
    fn neg_of(&mut self, x: ValueId) -> ValueId {
        self.node(Op::Neg, &[x])
    }
}
