//! What does a graph compute, by the book? A naive evaluator of [`models::graph`]: the referee when two engines
//! disagree, and the way to tell a wrong network from a wrong lowering.
//!
//! Sums are kept in float64 and rounded once per operator; precisions of an export play no role. Every computed
//! shape is checked against the shape that the graph declares for it.

mod blocks;
mod convolution;
mod elementwise;
mod matrix;
mod movement;
mod shape;

use crate::array::{Array, Shared, round_to_half};
use exporter::onnx::pack;
use models::arch::body::body;
use models::checkpoint::CheckpointError;
use models::dtype::DType;
use models::fused::Fused;
use models::graph::{Constant, Dim, Graph, Node, Op, Source, Value, ValueId, WeightForm, WeightRef};
use models::weights::Weights;
use ndarray::{ArcArray2, ShapeError};
use std::collections::BTreeMap;
use thiserror::Error;

/// A graph that cannot be evaluated with these inputs.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum InterpretError {
    /// Inputs are missing, too many, or of a wrong type or shape.
    #[error("graph `{graph}`: {}", problems.join("; "))]
    Inputs {
        /// The graph.
        graph: String,
        /// Everything that is wrong with them.
        problems: Vec<String>,
    },
    /// An operator's inputs do not fit it.
    #[error("node `{node}`: {problem}")]
    Node {
        /// The node.
        node: String,
        /// What does not fit.
        problem: String,
    },
    /// A computed value has not the shape or type that the graph declares.
    #[error("value `{value}`: computed {found}, the graph declares {declared}")]
    Declared {
        /// The value.
        value: String,
        /// Shape computed.
        found: String,
        /// Shape declared.
        declared: String,
    },
    /// A weight cannot be read.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
}

/// Evaluates one graph, again and again with other inputs; weights are read once.
pub struct Interpreter<'a> {
    graph: &'a Graph,
    weights: &'a dyn Weights,
    loaded: BTreeMap<WeightRef, Array>,
}

impl std::fmt::Debug for Interpreter<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Interpreter")
            .field("graph", &self.graph.name)
            .finish_non_exhaustive()
    }
}

impl<'a> Interpreter<'a> {
    /// An interpreter of `graph` with the weights that it names.
    pub fn new(graph: &'a Graph, weights: &'a dyn Weights) -> Interpreter<'a> {
        Interpreter {
            graph,
            weights,
            loaded: BTreeMap::new(),
        }
    }

    /// Computes the graph's outputs, in its order.
    ///
    /// # Errors
    /// Inputs that the graph does not have, or not of that shape; see [`InterpretError`].
    pub fn run(&mut self, inputs: &[(&str, Array)]) -> Result<Vec<(String, Array)>, InterpretError> {
        self.run_traced(inputs, &mut |_, _| {})
    }

    /// As [`Interpreter::run`], and shows every value that a node computes, in network order.
    ///
    /// # Errors
    /// As [`Interpreter::run`].
    pub fn run_traced(
        &mut self,
        inputs: &[(&str, Array)],
        trace: &mut dyn FnMut(&str, &Array),
    ) -> Result<Vec<(String, Array)>, InterpretError> {
        let graph = self.graph;
        let lengths = bind(graph, inputs)?;
        let mut values: Vec<Option<Array>> = vec![None; graph.values.len()];
        for &id in &graph.inputs {
            let value = graph.value(id);
            values[id.0] = inputs
                .iter()
                .find(|(name, _)| *name == value.name)
                .map(|(_, tensor)| tensor.clone());
        }
        let last_use = last_uses(graph);
        for (position, node) in graph.nodes.iter().enumerate() {
            let mut arguments = Vec::with_capacity(node.inputs.len());
            for &id in &node.inputs {
                arguments.push(self.argument(id, &values)?);
            }
            let arguments: Vec<&Array> = arguments.iter().collect();
            let results = match &node.op {
                Op::Fused(fused) => self.fused(node, fused, &arguments)?,
                op => evaluate(op, &arguments).map_err(|problem| InterpretError::Node {
                    node: node.name.clone(),
                    problem,
                })?,
            };
            store(graph, node, results, &lengths, &mut values, trace)?;
            for &id in &node.inputs {
                if last_use[id.0] == Some(position) {
                    values[id.0] = None;
                }
            }
        }
        let mut outputs = Vec::with_capacity(graph.outputs.len());
        for &id in &graph.outputs {
            let tensor = self.argument(id, &values)?;
            outputs.push((graph.value(id).name.clone(), tensor));
        }
        Ok(outputs)
    }

    fn argument(&mut self, id: ValueId, values: &[Option<Array>]) -> Result<Array, InterpretError> {
        if let Some(tensor) = &values[id.0] {
            return Ok(tensor.clone());
        }
        let value = self.graph.value(id);
        match &value.source {
            Source::Weight(weight) => self.weight(weight, value),
            Source::Constant(constant) => Ok(literal(constant, &value.shape)),
            Source::Input | Source::Node => Err(InterpretError::Node {
                node: value.name.clone(),
                problem: "used before it is computed".to_owned(),
            }),
        }
    }

    /// A fused operator computes what its body computes.
    fn fused(&self, node: &Node, fused: &Fused, arguments: &[&Array]) -> Result<Vec<Array>, InterpretError> {
        let values: Vec<&Value> = node.inputs.iter().map(|id| self.graph.value(*id)).collect();
        let body = body(fused, &values).map_err(|error| InterpretError::Node {
            node: node.name.clone(),
            problem: error.to_string(),
        })?;
        let names: Vec<String> = body
            .inputs
            .iter()
            .map(|id| body.value(*id).name.clone())
            .collect();
        let tensors = arguments.iter().copied().cloned();
        let inputs: Vec<(&str, Array)> = names.iter().map(String::as_str).zip(tensors).collect();
        let outputs = Interpreter::new(&body, self.weights).run(&inputs)?;
        Ok(outputs.into_iter().map(|(_, tensor)| tensor).collect())
    }

    /// A weight in the form in which `value` reads it.
    fn weight(&mut self, weight: &WeightRef, value: &Value) -> Result<Array, InterpretError> {
        if let Some(tensor) = self.loaded.get(weight) {
            return Ok(tensor.clone());
        }
        let refuse = |problem: String| InterpretError::Node {
            node: weight.name.clone(),
            problem,
        };
        let fixed = |dim: &Dim| dim.fixed().and_then(|n| usize::try_from(n).ok()).unwrap_or(0);
        let shape: Vec<usize> = value.shape.iter().map(fixed).collect();
        let misfit = |error: ShapeError| refuse(error.to_string());
        let tensor = match weight.form {
            WeightForm::Stored => {
                let data = self.weights.read(&weight.name)?;
                Array::Float(Shared::from_shape_vec(shape, data).map_err(misfit)?)
            }
            WeightForm::Transposed => {
                let rows = shape.last().copied().unwrap_or(1);
                let data = self.weights.read(&weight.name)?;
                let stored = (rows, data.len() / rows.max(1));
                let matrix = ArcArray2::from_shape_vec(stored, data).map_err(misfit)?;
                let turned = Array::from(matrix.reversed_axes());
                turned.reshaped(&shape).map_err(misfit)?
            }
            WeightForm::Vector(_)
            | WeightForm::Panels(..)
            | WeightForm::PanelScales(..)
            | WeightForm::Bytes
            | WeightForm::Plane(_)
            | WeightForm::ByteScales
            | WeightForm::Signed8
            | WeightForm::Signed8Scales
            | WeightForm::Signed4
            | WeightForm::Signed4Scales
            | WeightForm::Int8
            | WeightForm::Int8Transposed
            | WeightForm::Blocks(_)
            | WeightForm::BlockScales(_) => {
                let bytes = pack::bytes(weight, self.weights).map_err(|error| refuse(error.to_string()))?;
                elements(shape, value.dtype, &bytes).map_err(misfit)?
            }
        };
        self.loaded.insert(weight.clone(), tensor.clone());
        Ok(tensor)
    }
}

/// An array from its little-endian bytes.
fn elements(shape: Vec<usize>, dtype: DType, bytes: &[u8]) -> Result<Array, ShapeError> {
    match dtype {
        DType::UInt8 => {
            let bytes = bytes.iter().map(|byte| i64::from(*byte)).collect();
            Ok(Array::Int(Shared::from_shape_vec(shape, bytes)?))
        }
        DType::Int8 => {
            let bytes = bytes.iter().map(|byte| i64::from(byte.cast_signed())).collect();
            Ok(Array::Int(Shared::from_shape_vec(shape, bytes)?))
        }
        DType::Float16 => {
            let halves = bytes.as_chunks::<2>().0.iter();
            let floats = halves.map(|bytes| half::f16::from_le_bytes(*bytes).to_f32());
            Ok(Array::Float(Shared::from_shape_vec(shape, floats.collect())?))
        }
        _float32 => {
            let floats = bytes.as_chunks::<4>().0.iter();
            let floats = floats.map(|bytes| f32::from_le_bytes(*bytes));
            Ok(Array::Float(Shared::from_shape_vec(shape, floats.collect())?))
        }
    }
}

/// One operator on its inputs. The only match over [`Op`] of the interpreter.
fn evaluate(op: &Op, inputs: &[&Array]) -> Result<Vec<Array>, String> {
    let one = |result: Result<Array, String>| result.map(|tensor| vec![tensor]);
    let a = || {
        inputs
            .first()
            .copied()
            .ok_or_else(|| "an input is missing".to_owned())
    };
    let b = || {
        inputs
            .get(1)
            .copied()
            .ok_or_else(|| "the second input is missing".to_owned())
    };
    let c = || {
        inputs
            .get(2)
            .copied()
            .ok_or_else(|| "the third input is missing".to_owned())
    };
    match op {
        Op::Add => one(elementwise::arithmetic(
            a()?,
            b()?,
            |a, b| a + b,
            i64::wrapping_add,
        )),
        Op::Sub => one(elementwise::arithmetic(
            a()?,
            b()?,
            |a, b| a - b,
            i64::wrapping_sub,
        )),
        Op::Mul => one(elementwise::arithmetic(
            a()?,
            b()?,
            |a, b| a * b,
            i64::wrapping_mul,
        )),
        Op::Div => one(elementwise::arithmetic(
            a()?,
            b()?,
            |a, b| a / b,
            |a, b| a.checked_div(b).unwrap_or(0),
        )),
        Op::Neg => one(elementwise::negate(a()?)),
        Op::Sqrt => one(elementwise::map(a()?, f64::sqrt)),
        Op::Cos => one(elementwise::map(a()?, f64::cos)),
        Op::Sin => one(elementwise::map(a()?, f64::sin)),
        Op::Sigmoid => one(elementwise::map(a()?, |x| 1.0 / (1.0 + (-x).exp()))),
        Op::Relu => one(elementwise::map(a()?, |x| x.max(0.0))),
        Op::Gelu => one(elementwise::map(a()?, elementwise::gelu)),
        Op::Softmax { axis } => one(matrix::softmax(a()?, *axis)),
        Op::MatMul => one(matrix::matmul(a()?, b()?)),
        Op::Gemm { trans_b } => one(matrix::gemm(a()?, b()?, inputs.get(2).copied(), *trans_b)),
        Op::Conv { group, strides, pads } => one(convolution::conv(
            a()?,
            b()?,
            inputs.get(2).copied(),
            *group,
            *strides,
            *pads,
        )),
        Op::ReduceMean { axes, keep_dims } => one(matrix::reduce_mean(a()?, axes, *keep_dims)),
        Op::LayerNormalization { axis, epsilon } => {
            one(matrix::layer_norm(a()?, b()?, c()?, *axis, *epsilon))
        }
        Op::Cast { to } => Ok(vec![cast(a()?, *to)]),
        Op::Concat { axis } => one(movement::concat(inputs, *axis)),
        Op::Gather { axis } => one(movement::gather(a()?, b()?, *axis)),
        Op::Slice { axis, start, end } => one(movement::slice(a()?, *axis, *start, *end)),
        Op::Split { axis, sizes } => movement::split(a()?, *axis, sizes),
        Op::Reshape { shape } => one(movement::reshape(a()?, shape)),
        Op::Transpose { perm } => {
            let perm: Vec<usize> = perm
                .iter()
                .map(|&axis| usize::try_from(axis).unwrap_or(usize::MAX))
                .collect();
            one(movement::transpose(a()?, &perm))
        }
        Op::Unsqueeze { axes } => one(movement::unsqueeze(a()?, axes)),
        Op::Squeeze { axes } => one(movement::squeeze(a()?, axes)),
        Op::Shape { start, end } => one(movement::shape(a()?, *start, *end)),
        Op::Range { dim: _ } => one(movement::range(a()?, b()?, c()?)),
        Op::LessOrEqual => one(elementwise::less_or_equal(a()?, b()?)),
        Op::And => one(elementwise::and(a()?, b()?)),
        Op::Where => one(elementwise::select(a()?, b()?, c()?)),
        Op::SliceUpdate => one(movement::slice_update(a()?, b()?, c()?)),
        Op::ScaledDotProductAttention => one(matrix::attention(a()?, b()?, c()?, inputs.get(3).copied())),
        Op::DequantizeLinear { axis } => one(blocks::dequantized(a()?, b()?, *axis)),
        Op::MatMulNBits { blocks, inputs, .. } => {
            let weight = blocks::numbers(b()?, c()?, *blocks, *inputs)?;
            one(movement::transpose(&weight, &[1, 0]).and_then(|weight| matrix::matmul(a()?, &weight)))
        }
        Op::Fused(fused) => Err(format!("{} is computed by its body", fused.name())),
    }
}

/// Converts the element type. float16 keeps float32 storage with rounded values, bfloat16 cuts the lower half with
/// rounding to even; to int64 truncates.
fn cast(x: &Array, to: DType) -> Array {
    match to {
        DType::Float32 if x.as_float().is_some() => x.clone(),
        DType::Float32 => Array::from(x.to_float().into_owned()),
        DType::Float16 => Array::from(x.to_float().mapv(round_to_half)),
        DType::BFloat16 => Array::from(x.to_float().mapv(|v| half::bf16::from_f32(v).to_f32())),
        DType::Int64 | DType::UInt8 | DType::Int8 => match x {
            Array::Int(_) => x.clone(),
            // Values that a graph casts to integers are counts and positions.
            Array::Float(x) => Array::from(x.mapv(|v| v as i64)),
            Array::Bool(x) => Array::from(x.mapv(i64::from)),
        },
        DType::Bool => match x {
            Array::Bool(_) => x.clone(),
            Array::Float(x) => Array::from(x.mapv(|v| v != 0.0)),
            Array::Int(x) => Array::from(x.mapv(|v| v != 0)),
        },
    }
}

fn literal(constant: &Constant, shape: &[Dim]) -> Array {
    let shape: Vec<usize> = shape
        .iter()
        .map(|dim| dim.fixed().and_then(|n| usize::try_from(n).ok()).unwrap_or(0))
        .collect();
    match constant {
        Constant::Float32(data) => Array::float(&shape, data.clone()),
        Constant::Int64(data) => Array::int(&shape, data.clone()),
    }
}

/// The lengths of the symbols, from the inputs' shapes; `total` is `past + new` where both are known.
fn bind(graph: &Graph, inputs: &[(&str, Array)]) -> Result<BTreeMap<Dim, usize>, InterpretError> {
    let mut lengths = BTreeMap::new();
    let mut problems = Vec::new();
    for &id in &graph.inputs {
        let value = graph.value(id);
        let Some((_, tensor)) = inputs.iter().find(|(name, _)| *name == value.name) else {
            problems.push(format!("input `{}` is missing", value.name));
            continue;
        };
        if !tensor.is_a(value.dtype) {
            problems.push(format!("input `{}` is not {}", value.name, value.dtype));
        }
        if tensor.shape().len() != value.shape.len() {
            problems.push(format!(
                "input `{}` has rank {}, expected {}",
                value.name,
                tensor.shape().len(),
                value.shape.len()
            ));
            continue;
        }
        for (&length, &dim) in tensor.shape().iter().zip(&value.shape) {
            match dim.fixed() {
                Some(fixed) if usize::try_from(fixed) != Ok(length) => {
                    problems.push(format!(
                        "input `{}` has shape {:?}, expected {fixed} for {length}",
                        value.name,
                        tensor.shape()
                    ));
                }
                Some(_) => {}
                None => {
                    let known = *lengths.entry(dim).or_insert(length);
                    if known != length {
                        problems.push(format!(
                            "`{dim}` is {known} and, in input `{}`, {length}",
                            value.name
                        ));
                    }
                }
            }
        }
    }
    for (name, _) in inputs {
        if !graph.inputs.iter().any(|&id| graph.value(id).name == *name) {
            problems.push(format!("there is no input `{name}`"));
        }
    }
    if let (Some(&past), Some(&new)) = (lengths.get(&Dim::Past), lengths.get(&Dim::New)) {
        let total = *lengths.entry(Dim::Total).or_insert(past + new);
        if total != past + new {
            problems.push(format!("`total` is {total}, expected {past} + {new}"));
        }
    }
    if problems.is_empty() {
        Ok(lengths)
    } else {
        Err(InterpretError::Inputs {
            graph: graph.name.clone(),
            problems,
        })
    }
}

/// For every value the last node that reads it; graph outputs have none and are kept.
fn last_uses(graph: &Graph) -> Vec<Option<usize>> {
    let mut last = vec![None; graph.values.len()];
    for (position, node) in graph.nodes.iter().enumerate() {
        for &id in &node.inputs {
            last[id.0] = Some(position);
        }
    }
    for &id in &graph.outputs {
        last[id.0] = None;
    }
    last
}

fn store(
    graph: &Graph,
    node: &Node,
    results: Vec<Array>,
    lengths: &BTreeMap<Dim, usize>,
    values: &mut [Option<Array>],
    trace: &mut dyn FnMut(&str, &Array),
) -> Result<(), InterpretError> {
    if results.len() != node.outputs.len() {
        let problem = format!(
            "computes {} values, the graph has {}",
            results.len(),
            node.outputs.len()
        );
        return Err(InterpretError::Node {
            node: node.name.clone(),
            problem,
        });
    }
    for (&id, tensor) in node.outputs.iter().zip(results) {
        let value = graph.value(id);
        let declared: Vec<Option<usize>> = value
            .shape
            .iter()
            .map(|dim| match dim.fixed() {
                Some(n) => usize::try_from(n).ok(),
                None => lengths.get(dim).copied(),
            })
            .collect();
        let fits = declared.len() == tensor.shape().len()
            && declared
                .iter()
                .zip(tensor.shape())
                .all(|(declared, found)| declared.is_none_or(|n| n == *found));
        if !fits || !tensor.is_a(value.dtype) {
            return Err(InterpretError::Declared {
                value: value.name.clone(),
                found: format!("{:?}", tensor.shape()),
                declared: format!("{} {:?}", value.dtype, value.shape),
            });
        }
        trace(&value.name, &tensor);
        values[id.0] = Some(tensor);
    }
    Ok(())
}
