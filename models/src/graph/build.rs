//! How a network is written down: scopes name nodes and weights, one method adds one node.
//!
//! Methods return plain values; the first error is kept and [`Builder::finish`] returns it, so that networks
//! read like formulas and a config that does not fit never panics.

use super::{
    Constant, Dim, Graph, GraphError, Node, Op, Precision, Source, Value, ValueId, WeightForm, WeightRef,
    check, shape,
};
use crate::dtype::DType;
use crate::fused::Fused;
use std::collections::BTreeMap;
use std::ops::{Deref, DerefMut};

/// Adds nodes to a graph.
#[derive(Debug)]
pub struct Builder {
    graph: Graph,
    scopes: Vec<String>,
    precision: Precision,
    /// How often a node name was asked for.
    names: BTreeMap<String, usize>,
    weights: BTreeMap<WeightRef, ValueId>,
    constants: usize,
    error: Option<GraphError>,
}

/// A part of a network: leaves its scope, and its precision, when it is dropped.
#[derive(Debug)]
pub struct Scope<'b> {
    builder: &'b mut Builder,
    depth: usize,
    precision: Precision,
}

impl Deref for Scope<'_> {
    type Target = Builder;

    fn deref(&self) -> &Builder {
        self.builder
    }
}

impl DerefMut for Scope<'_> {
    fn deref_mut(&mut self) -> &mut Builder {
        self.builder
    }
}

impl Drop for Scope<'_> {
    fn drop(&mut self) {
        self.builder.scopes.truncate(self.depth);
        self.builder.precision = self.precision;
    }
}

impl Builder {
    /// An empty graph.
    pub fn new(name: &str) -> Self {
        Builder {
            graph: Graph {
                name: name.to_owned(),
                inputs: Vec::new(),
                outputs: Vec::new(),
                values: Vec::new(),
                nodes: Vec::new(),
            },
            scopes: Vec::new(),
            precision: Precision::Storage,
            names: BTreeMap::new(),
            weights: BTreeMap::new(),
            constants: 0,
            error: None,
        }
    }

    /// Enters a scope: a segment of node names and of canonical weight names.
    pub fn scope(&mut self, name: impl Into<String>) -> Scope<'_> {
        let (depth, precision) = (self.scopes.len(), self.precision);
        self.scopes.push(name.into());
        Scope {
            builder: self,
            depth,
            precision,
        }
    }

    /// Nodes added through the returned scope are computed in float32 whatever the storage precision.
    pub fn full(&mut self) -> Scope<'_> {
        let (depth, precision) = (self.scopes.len(), self.precision);
        self.precision = Precision::Full;
        Scope {
            builder: self,
            depth,
            precision,
        }
    }

    /// Checks the invariants and returns the graph, or the first error.
    ///
    /// # Errors
    /// The first rule that an operator's inputs broke, or a broken invariant of the whole graph.
    pub fn finish(self) -> Result<Graph, GraphError> {
        if let Some(error) = self.error {
            return Err(error);
        }
        check::check(&self.graph)?;
        Ok(self.graph)
    }

    /// A value's shape.
    pub fn shape_of(&self, value: ValueId) -> &[Dim] {
        &self.graph.value(value).shape
    }

    /// Adds a graph input.
    pub fn input(&mut self, name: &str, dtype: DType, shape: &[Dim]) -> ValueId {
        let id = self.graph.push(name.to_owned(), dtype, shape, Source::Input);
        self.graph.inputs.push(id);
        id
    }

    /// Makes a value an output of the graph under a public name.
    pub fn output(&mut self, name: &str, value: ValueId) {
        if self.graph.values[value.0].source == Source::Node {
            name.clone_into(&mut self.graph.values[value.0].name);
        } else {
            self.fail_graph(format!("output `{name}` is not computed by a node"));
        }
        self.graph.outputs.push(value);
    }

    /// The weight `parameter` of this scope, as stored.
    pub fn weight(&mut self, parameter: &str, shape: &[u64]) -> ValueId {
        let name = self.weight_name(parameter);
        self.weight_named(&name, shape, false)
    }

    /// The transpose `[in, out]` of this scope's canonical `[out, in]` weight.
    pub fn weight_transposed(&mut self, parameter: &str, shape: [u64; 2]) -> ValueId {
        let name = self.weight_name(parameter);
        self.weight_named(&name, &shape, true)
    }

    /// A weight by its full canonical name and canonical shape.
    pub fn weight_named(&mut self, name: &str, shape: &[u64], transposed: bool) -> ValueId {
        let form = if transposed {
            WeightForm::Transposed
        } else {
            WeightForm::Stored
        };
        let mut shape = shape.to_vec();
        if transposed {
            shape.reverse();
        }
        self.weight_in(form, name, name, DType::Float32, &shape)
    }

    /// A weight in any form, by its full canonical name; `label` names the graph's value, `shape` is that of
    /// the form.
    pub fn weight_in(
        &mut self,
        form: WeightForm,
        name: &str,
        label: &str,
        dtype: DType,
        shape: &[u64],
    ) -> ValueId {
        let key = WeightRef {
            name: name.to_owned(),
            form,
        };
        if let Some(&id) = self.weights.get(&key) {
            return id;
        }
        let dims: Vec<Dim> = shape.iter().map(|&n| Dim::Fixed(n)).collect();
        let id = self
            .graph
            .push(label.to_owned(), dtype, &dims, Source::Weight(key.clone()));
        self.weights.insert(key, id);
        id
    }

    /// A fused operator; one value for each of its outputs.
    pub fn fused(&mut self, fused: Fused, inputs: &[ValueId]) -> Vec<ValueId> {
        self.nodes(Op::Fused(fused), inputs)
    }

    /// A float32 literal; equal literals are one value.
    pub fn constant_f32(&mut self, shape: &[u64], data: Vec<f32>) -> ValueId {
        self.constant(DType::Float32, shape, Constant::Float32(data))
    }

    /// An int64 literal; equal literals are one value.
    pub fn constant_i64(&mut self, shape: &[u64], data: Vec<i64>) -> ValueId {
        self.constant(DType::Int64, shape, Constant::Int64(data))
    }

    /// `a + b`
    pub fn add(&mut self, a: ValueId, b: ValueId) -> ValueId {
        self.node(Op::Add, &[a, b])
    }

    /// `a - b`
    pub fn sub(&mut self, a: ValueId, b: ValueId) -> ValueId {
        self.node(Op::Sub, &[a, b])
    }

    /// `a * b`
    pub fn mul(&mut self, a: ValueId, b: ValueId) -> ValueId {
        self.node(Op::Mul, &[a, b])
    }

    /// `a / b`
    pub fn div(&mut self, a: ValueId, b: ValueId) -> ValueId {
        self.node(Op::Div, &[a, b])
    }

    /// Square root.
    pub fn sqrt(&mut self, x: ValueId) -> ValueId {
        self.node(Op::Sqrt, &[x])
    }

    /// Cosine.
    pub fn cos(&mut self, x: ValueId) -> ValueId {
        self.node(Op::Cos, &[x])
    }

    /// Sine.
    pub fn sin(&mut self, x: ValueId) -> ValueId {
        self.node(Op::Sin, &[x])
    }

    /// Logistic function.
    pub fn sigmoid(&mut self, x: ValueId) -> ValueId {
        self.node(Op::Sigmoid, &[x])
    }

    /// `max(x, 0)`
    pub fn relu(&mut self, x: ValueId) -> ValueId {
        self.node(Op::Relu, &[x])
    }

    /// Exact GELU.
    pub fn gelu(&mut self, x: ValueId) -> ValueId {
        self.node(Op::Gelu, &[x])
    }

    /// Softmax over the last axis.
    pub fn softmax(&mut self, x: ValueId) -> ValueId {
        self.node(Op::Softmax { axis: -1 }, &[x])
    }

    /// Matrix product.
    pub fn matmul(&mut self, a: ValueId, b: ValueId) -> ValueId {
        self.node(Op::MatMul, &[a, b])
    }

    /// `a [M,K] * b [N,K]^T`
    pub fn gemm_transposed(&mut self, a: ValueId, b: ValueId) -> ValueId {
        self.node(Op::Gemm { trans_b: true }, &[a, b])
    }

    /// Mean over axes, which keep length 1.
    pub fn reduce_mean(&mut self, x: ValueId, axes: &[i64]) -> ValueId {
        self.node(
            Op::ReduceMean {
                axes: axes.to_vec(),
                keep_dims: true,
            },
            &[x],
        )
    }

    /// Change of element type.
    pub fn cast(&mut self, x: ValueId, to: DType) -> ValueId {
        self.node(Op::Cast { to }, &[x])
    }

    /// Joined along an axis.
    pub fn concat(&mut self, inputs: &[ValueId], axis: i64) -> ValueId {
        self.node(Op::Concat { axis }, inputs)
    }

    /// Rows of `data`.
    pub fn gather(&mut self, data: ValueId, indices: ValueId) -> ValueId {
        self.node(Op::Gather { axis: 0 }, &[data, indices])
    }

    /// A range of one axis.
    pub fn slice(&mut self, x: ValueId, axis: i64, start: i64, end: i64) -> ValueId {
        self.node(Op::Slice { axis, start, end }, &[x])
    }

    /// Parts along an axis.
    pub fn split<const N: usize>(&mut self, x: ValueId, axis: i64, sizes: [u64; N]) -> [ValueId; N] {
        let ids = self.nodes(
            Op::Split {
                axis,
                sizes: sizes.to_vec(),
            },
            &[x],
        );
        std::array::from_fn(|i| ids.get(i).copied().unwrap_or(x))
    }

    /// New shape; 0 copies a dimension.
    pub fn reshape(&mut self, x: ValueId, shape: &[i64]) -> ValueId {
        self.node(
            Op::Reshape {
                shape: shape.to_vec(),
            },
            &[x],
        )
    }

    /// Axes permuted.
    pub fn transpose(&mut self, x: ValueId, perm: &[u64]) -> ValueId {
        self.node(Op::Transpose { perm: perm.to_vec() }, &[x])
    }

    /// Axes of length 1 inserted.
    pub fn unsqueeze(&mut self, x: ValueId, axes: &[i64]) -> ValueId {
        self.node(Op::Unsqueeze { axes: axes.to_vec() }, &[x])
    }

    /// Axes of length 1 removed.
    pub fn squeeze(&mut self, x: ValueId, axes: &[i64]) -> ValueId {
        self.node(Op::Squeeze { axes: axes.to_vec() }, &[x])
    }

    /// One dimension as an int64 scalar.
    pub fn dimension(&mut self, x: ValueId, axis: i64) -> ValueId {
        let shape = self.node(
            Op::Shape {
                start: axis,
                end: axis + 1,
            },
            &[x],
        );
        self.squeeze(shape, &[0])
    }

    /// `start..limit` as an int64 vector whose length is `dim`.
    pub fn range(&mut self, start: ValueId, limit: ValueId, dim: Dim) -> ValueId {
        let one = self.constant_i64(&[], vec![1]);
        self.node(Op::Range { dim }, &[start, limit, one])
    }

    /// `a <= b`
    pub fn less_or_equal(&mut self, a: ValueId, b: ValueId) -> ValueId {
        self.node(Op::LessOrEqual, &[a, b])
    }

    /// Logical and.
    pub fn and(&mut self, a: ValueId, b: ValueId) -> ValueId {
        self.node(Op::And, &[a, b])
    }

    /// `condition ? a : b`
    pub fn select(&mut self, condition: ValueId, a: ValueId, b: ValueId) -> ValueId {
        self.node(Op::Where, &[condition, a, b])
    }

    /// `data` with `update` written at `begin`, one index for each axis.
    pub fn slice_update(&mut self, data: ValueId, update: ValueId, begin: ValueId) -> ValueId {
        self.node(Op::SliceUpdate, &[data, update, begin])
    }

    /// `softmax(query key^T / sqrt(E) + bias) value`
    pub fn attention(&mut self, [query, key, value]: [ValueId; 3], bias: Option<ValueId>) -> ValueId {
        let inputs: Vec<ValueId> = [query, key, value].into_iter().chain(bias).collect();
        self.node(Op::ScaledDotProductAttention, &inputs)
    }

    /// `x W^T (+ b)` with the weights of scope `name`: `weight [out, in]` and, if `bias`, `bias [out]`.
    pub fn linear(&mut self, name: &str, x: ValueId, input: u64, output: u64, bias: bool) -> ValueId {
        let b = &mut self.scope(name);
        let weight = b.weight_transposed("weight", [output, input]);
        let product = b.matmul(x, weight);
        if bias {
            let bias = b.weight("bias", &[output]);
            b.add(product, bias)
        } else {
            product
        }
    }

    /// As [`linear`](Builder::linear) for `x` of rank 2, in one operator that reads the weight as it is
    /// stored.
    pub fn dense(&mut self, name: &str, x: ValueId, input: u64, output: u64, bias: bool) -> ValueId {
        let b = &mut self.scope(name);
        let weight = b.weight("weight", &[output, input]);
        let mut inputs = vec![x, weight];
        if bias {
            inputs.push(b.weight("bias", &[output]));
        }
        b.node(Op::Gemm { trans_b: true }, &inputs)
    }

    /// A square convolution, "same" padding, with bias and the weights of scope `name`.
    pub fn conv(&mut self, name: &str, x: ValueId, conv: Conv) -> ValueId {
        let b = &mut self.scope(name);
        let per_group = conv.input / conv.group.max(1);
        let weight = b.weight("weight", &[conv.output, per_group, conv.kernel, conv.kernel]);
        let bias = b.weight("bias", &[conv.output]);
        let pad = conv.kernel / 2;
        b.node(
            Op::Conv {
                group: conv.group,
                strides: [conv.stride; 2],
                pads: [pad; 4],
            },
            &[x, weight, bias],
        )
    }

    /// LayerNorm over the last axis (`width` long) with the weights of scope `name`.
    pub fn layer_norm(&mut self, name: &str, x: ValueId, width: u64, epsilon: f32) -> ValueId {
        let b = &mut self.scope(name);
        let b = &mut b.full();
        let weight = b.weight("weight", &[width]);
        let bias = b.weight("bias", &[width]);
        b.node(Op::LayerNormalization { axis: -1, epsilon }, &[x, weight, bias])
    }

    /// RMSNorm over the last axis, `x / sqrt(mean(x^2) + epsilon) * weight`, with the weight of scope `name`.
    pub fn rms_norm(&mut self, name: &str, x: ValueId, width: u64, epsilon: f32) -> ValueId {
        let b = &mut self.scope(name);
        let b = &mut b.full();
        let weight = b.weight("weight", &[width]);
        b.rms_norm_with(x, weight, epsilon)
    }

    /// RMSNorm over the last axis with the given weight.
    pub fn rms_norm_with(&mut self, x: ValueId, weight: ValueId, epsilon: f32) -> ValueId {
        let b = self;
        let epsilon = b.constant_f32(&[], vec![epsilon]);
        let square = b.mul(x, x);
        let mean = b.reduce_mean(square, &[-1]);
        let shifted = b.add(mean, epsilon);
        let root = b.sqrt(shifted);
        let normed = b.div(x, root);
        b.mul(normed, weight)
    }

    /// `x * sigmoid(x)`
    pub fn silu(&mut self, x: ValueId) -> ValueId {
        let gate = self.sigmoid(x);
        self.mul(x, gate)
    }

    /// Adds a node with one output.
    pub fn node(&mut self, op: Op, inputs: &[ValueId]) -> ValueId {
        let ids = self.nodes(op, inputs);
        ids.first().copied().unwrap_or(ValueId(0))
    }

    fn nodes(&mut self, op: Op, inputs: &[ValueId]) -> Vec<ValueId> {
        let name = self.node_name(op.name());
        let values: Vec<&Value> = inputs.iter().map(|&id| self.graph.value(id)).collect();
        let results = match shape::infer(&op, &values) {
            Ok(results) => results,
            Err(problem) => {
                let error = GraphError::rule(&name, &op, problem, &values);
                self.error.get_or_insert(error);
                return inputs.to_vec();
            }
        };
        let outputs: Vec<ValueId> = results
            .into_iter()
            .enumerate()
            .map(|(i, (dtype, shape))| {
                self.graph
                    .push(format!("{name}_output_{i}"), dtype, &shape, Source::Node)
            })
            .collect();
        self.graph.nodes.push(Node {
            name,
            op,
            inputs: inputs.to_vec(),
            outputs: outputs.clone(),
            precision: self.precision,
        });
        outputs
    }

    fn constant(&mut self, dtype: DType, shape: &[u64], data: Constant) -> ValueId {
        let dims: Vec<Dim> = shape.iter().map(|&n| Dim::Fixed(n)).collect();
        let source = Source::Constant(data);
        let same = self
            .graph
            .values
            .iter()
            .position(|value| value.source == source && value.shape == dims && value.dtype == dtype);
        if let Some(index) = same {
            return ValueId(index);
        }
        let name = format!("constant_{}", self.constants);
        self.constants += 1;
        self.graph.push(name, dtype, &dims, source)
    }

    /// The full canonical name of a parameter of this scope.
    pub fn weight_name(&self, parameter: &str) -> String {
        let mut name = self.scopes.join(".");
        name.push('.');
        name.push_str(parameter);
        name
    }

    fn node_name(&mut self, op: &str) -> String {
        let mut name = String::new();
        for scope in &self.scopes {
            name.push('/');
            name.push_str(scope);
        }
        name.push('/');
        name.push_str(op);
        let count = self.names.entry(name.clone()).or_insert(0);
        *count += 1;
        if *count > 1 {
            format!("{name}_{}", *count - 1)
        } else {
            name
        }
    }

    fn fail_graph(&mut self, problem: String) {
        let error = GraphError::Invariant {
            graph: self.graph.name.clone(),
            problem,
        };
        self.error.get_or_insert(error);
    }
}

/// Geometry of a square convolution with "same" padding (`kernel / 2`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Conv {
    /// Input channels.
    pub input: u64,
    /// Output channels.
    pub output: u64,
    /// Side of the kernel.
    pub kernel: u64,
    /// Step.
    pub stride: u64,
    /// Groups of channels; `input` for a depthwise convolution.
    pub group: u64,
}
