//! What is half precision in an fp16 export? Weights, the KV cache, and the products that read the weights.
//!
//! Nodes marked [`Precision::Full`] compute in float32, with casts where the types meet: the residual stream of the
//! decoder and its norms, softmax and the scores before it, rotary angles, `silu(gate) * up`. Operators that
//! only move data keep the type that arrives. Matrices are stored as float16 whoever reads them (so that a tied table
//! is stored once); vectors that a float32 node reads stay float32, they are too small to matter. Graph inputs and
//! outputs stay float32, but for the KV cache.
//!
//! One product needs more than casts: `silu(gate) * up` multiplies two unbounded factors, and in Qwen2 the result and
//! its projection leave float16's range at the first token. It enters `down_proj` scaled by [`PRODUCT_SCALE`] and the
//! scale is taken out again in float32, after the sum.

#![deny(clippy::wildcard_enum_match_arm)]

use crate::error::ExportError;
use models::arch::is_cache;
use models::dtype::DType;
use models::graph::{Constant, Dim, Graph, Node, Op, Precision, Source, Value, ValueId};
use std::collections::{BTreeMap, BTreeSet};

/// What a product of two activations is multiplied by before it is rounded to float16: a power of two, so that only
/// values below 2^-8 lose bits (they become subnormal), while values up to 2^22 keep inside the range.
pub const PRODUCT_SCALE: f32 = 1.0 / 64.0;

/// Rewrites a float32 graph.
pub(super) fn cast_f16(graph: &Graph) -> Result<Graph, ExportError> {
    let mut pass = Pass::new(graph);
    for &id in &graph.inputs {
        let value = graph.value(id);
        let cache = is_cache(&value.name);
        let dtype = if cache && value.dtype == DType::Float32 {
            DType::Float16
        } else {
            value.dtype
        };
        let new = pass
            .out
            .push(value.name.clone(), dtype, &value.shape, Source::Input);
        pass.native[id.0] = Some(new);
        pass.out.inputs.push(new);
    }
    for node in &graph.nodes {
        pass.node(node)?;
    }
    for &id in &graph.outputs {
        let value = graph.value(id);
        let new = pass.read(id, output_dtype(value))?;
        pass.out.outputs.push(new);
    }
    Ok(pass.out)
}

/// The cache is float16 so that a program can feed `present.*` back as `past_key_values.*`.
fn output_dtype(value: &Value) -> DType {
    if value.dtype != DType::Float32 {
        value.dtype
    } else if is_cache(&value.name) {
        DType::Float16
    } else {
        DType::Float32
    }
}

struct Pass<'g> {
    graph: &'g Graph,
    out: Graph,
    /// For each value of the old graph, the new value with the type in which it comes to be.
    native: Vec<Option<ValueId>>,
    /// New values in the other type.
    casts: BTreeMap<(ValueId, DType), ValueId>,
    /// Literals by old value and type.
    literals: BTreeMap<(ValueId, DType), ValueId>,
    /// Old values that are the product of two activations, computed in float32.
    products: BTreeSet<ValueId>,
    /// Vectors that a float32 node reads.
    full_vectors: BTreeSet<ValueId>,
}

/// In which type a node computes.
enum Compute {
    /// Whatever arrives at input 0.
    AsGiven,
    /// Its inputs' types do not matter to its outputs.
    Any,
    /// This one.
    In(DType),
}

impl<'g> Pass<'g> {
    fn new(graph: &'g Graph) -> Self {
        let mut products = BTreeSet::new();
        let mut full_vectors = BTreeSet::new();
        for node in graph
            .nodes
            .iter()
            .filter(|node| node.precision == Precision::Full)
        {
            let computed = |id: &ValueId| graph.value(*id).source == Source::Node;
            if node.op == Op::Mul && node.inputs.iter().all(computed) {
                products.extend(node.outputs.iter().copied());
            }
            full_vectors.extend(
                node.inputs
                    .iter()
                    .copied()
                    .filter(|id| is_vector(&graph.value(*id).shape)),
            );
        }
        let out = Graph {
            name: graph.name.clone(),
            inputs: Vec::new(),
            outputs: Vec::new(),
            values: Vec::new(),
            nodes: Vec::new(),
        };
        let native = vec![None; graph.values.len()];
        Pass {
            graph,
            out,
            native,
            casts: BTreeMap::new(),
            literals: BTreeMap::new(),
            products,
            full_vectors,
        }
    }

    fn node(&mut self, node: &Node) -> Result<(), ExportError> {
        let dtype = match compute(node) {
            Compute::In(dtype) => dtype,
            Compute::Any => DType::Float32,
            Compute::AsGiven => {
                let fallback = storage(node.precision);
                match node.inputs.first() {
                    Some(&id) if self.graph.value(id).dtype.is_float() => self.native_dtype(id, fallback)?,
                    _ => fallback,
                }
            }
        };
        // A product with a bias would have to scale the bias too; no network has one behind a product of activations.
        let scaled = matches!(node.op, Op::MatMul | Op::Gemm { .. })
            && node.inputs.len() == 2
            && dtype == DType::Float16
            && node.inputs.first().is_some_and(|id| self.products.contains(id));

        let mut inputs = Vec::with_capacity(node.inputs.len());
        for (index, &id) in node.inputs.iter().enumerate() {
            let found = self.graph.value(id).dtype;
            let new = if !found.is_float() || matches!(compute(node), Compute::Any) {
                self.read_native(id)?
            } else if scaled && index == 0 {
                self.scale_down(node, id)?
            } else {
                self.read(id, dtype)?
            };
            inputs.push(new);
        }
        let mut op = node.op.clone();
        if let Op::Cast { to } = &mut op
            && to.is_float()
        {
            *to = dtype;
        }
        let mut outputs = Vec::with_capacity(node.outputs.len());
        for &id in &node.outputs {
            let value = self.graph.value(id);
            let dtype = if value.dtype.is_float() {
                dtype
            } else {
                value.dtype
            };
            let public = self.graph.outputs.contains(&id)
                && value.dtype.is_float()
                && (scaled || output_dtype(value) != dtype);
            let name = if public || scaled {
                typed_name(&value.name, dtype)
            } else {
                value.name.clone()
            };
            outputs.push(self.out.push(name, dtype, &value.shape, Source::Node));
        }
        self.out.nodes.push(Node {
            op,
            inputs,
            outputs: outputs.clone(),
            ..node.clone()
        });
        for (&old, new) in node.outputs.iter().zip(outputs) {
            let native = if scaled {
                self.scale_up(node, old, new)?
            } else {
                new
            };
            self.native[old.0] = Some(native);
        }
        Ok(())
    }

    /// `x * PRODUCT_SCALE` in float32, then rounded.
    fn scale_down(&mut self, node: &Node, id: ValueId) -> Result<ValueId, ExportError> {
        let x = self.read(id, DType::Float32)?;
        let small = self.scale(&format!("{}/scale_down", node.name), x, PRODUCT_SCALE, None);
        Ok(self.cast(small, DType::Float16))
    }

    /// Back to float32, then `/ PRODUCT_SCALE`.
    fn scale_up(&mut self, node: &Node, old: ValueId, new: ValueId) -> Result<ValueId, ExportError> {
        let wide = self.cast(new, DType::Float32);
        let value = self.graph.value(old);
        let half_output = self.graph.outputs.contains(&old) && output_dtype(value) == DType::Float16;
        let name = if half_output {
            typed_name(&value.name, DType::Float32)
        } else {
            value.name.clone()
        };
        Ok(self.scale(
            &format!("{}/scale_up", node.name),
            wide,
            1.0 / PRODUCT_SCALE,
            Some(name),
        ))
    }

    fn scale(&mut self, name: &str, x: ValueId, factor: f32, output: Option<String>) -> ValueId {
        let shape = self.out.value(x).shape.clone();
        let literal = Source::Constant(Constant::Float32(vec![factor]));
        let factor = self
            .out
            .push(format!("{name}/factor"), DType::Float32, &[], literal);
        let output = output.unwrap_or_else(|| format!("{name}/Mul_output_0"));
        let output = self.out.push(output, DType::Float32, &shape, Source::Node);
        self.out.nodes.push(Node {
            name: format!("{name}/Mul"),
            op: Op::Mul,
            inputs: vec![x, factor],
            outputs: vec![output],
            precision: Precision::Full,
        });
        output
    }

    /// The type in which a value comes to be; literals have none of their own.
    fn native_dtype(&mut self, id: ValueId, literal: DType) -> Result<DType, ExportError> {
        if matches!(self.graph.value(id).source, Source::Constant(_)) {
            return Ok(literal);
        }
        let new = self.read_native(id)?;
        Ok(self.out.value(new).dtype)
    }

    fn read_native(&mut self, id: ValueId) -> Result<ValueId, ExportError> {
        if let Some(new) = self.native[id.0] {
            return Ok(new);
        }
        let value = self.graph.value(id);
        let dtype = match (&value.source, value.dtype) {
            (Source::Weight(_), DType::Float32) if self.full_vectors.contains(&id) => DType::Float32,
            (Source::Weight(_), DType::Float32) => DType::Float16,
            (Source::Constant(_) | Source::Weight(_), other) => other,
            (Source::Input | Source::Node, _) => {
                let what = format!("value `{}` is used before it is computed", value.name);
                return Err(ExportError::Internal { what });
            }
        };
        let new = self
            .out
            .push(value.name.clone(), dtype, &value.shape, value.source.clone());
        self.native[id.0] = Some(new);
        Ok(new)
    }

    /// A value in the wanted type.
    fn read(&mut self, id: ValueId, wanted: DType) -> Result<ValueId, ExportError> {
        let value = self.graph.value(id);
        if let (Source::Constant(_), DType::Float16) = (&value.source, wanted) {
            if let Some(&new) = self.literals.get(&(id, wanted)) {
                return Ok(new);
            }
            let new = self.out.push(
                typed_name(&value.name, wanted),
                wanted,
                &value.shape,
                value.source.clone(),
            );
            self.literals.insert((id, wanted), new);
            return Ok(new);
        }
        let native = self.read_native(id)?;
        if self.out.value(native).dtype == wanted {
            return Ok(native);
        }
        if let Some(&cast) = self.casts.get(&(native, wanted)) {
            return Ok(cast);
        }
        // A public output keeps its name in its public type: its internal twin was named otherwise.
        let public = self.graph.outputs.contains(&id) && output_dtype(value) == wanted;
        let name = if public {
            value.name.clone()
        } else {
            typed_name(&value.name, wanted)
        };
        let cast = self.cast_named(native, wanted, name);
        self.casts.insert((native, wanted), cast);
        Ok(cast)
    }

    fn cast(&mut self, x: ValueId, to: DType) -> ValueId {
        let name = typed_name(&self.out.value(x).name, to);
        self.cast_named(x, to, name)
    }

    fn cast_named(&mut self, x: ValueId, to: DType, output: String) -> ValueId {
        let from = self.out.value(x).clone();
        let slash = if from.name.starts_with('/') { "" } else { "/" };
        let node = format!("{slash}{}/Cast_{to}", from.name);
        let output = self.out.push(output, to, &from.shape, Source::Node);
        self.out.nodes.push(Node {
            name: node,
            op: Op::Cast { to },
            inputs: vec![x],
            outputs: vec![output],
            precision: Precision::Full,
        });
        output
    }
}

fn typed_name(name: &str, dtype: DType) -> String {
    format!("{name}_{dtype}")
}

fn storage(precision: Precision) -> DType {
    match precision {
        Precision::Storage => DType::Float16,
        Precision::Full => DType::Float32,
    }
}

/// At most one dimension is longer than 1.
fn is_vector(shape: &[Dim]) -> bool {
    shape.iter().filter(|dim| dim.fixed() != Some(1)).count() <= 1
}

fn compute(node: &Node) -> Compute {
    match &node.op {
        Op::Reshape { .. }
        | Op::Transpose { .. }
        | Op::Slice { .. }
        | Op::Split { .. }
        | Op::Unsqueeze { .. }
        | Op::Squeeze { .. }
        | Op::Gather { .. }
        | Op::SliceUpdate => Compute::AsGiven,
        Op::Shape { .. } => Compute::Any,
        Op::Cast { to } if !to.is_float() => Compute::Any,
        Op::Cast { .. } => Compute::In(storage(node.precision)),
        Op::Add
        | Op::Sub
        | Op::Mul
        | Op::Div
        | Op::Neg
        | Op::Sqrt
        | Op::Cos
        | Op::Sin
        | Op::Sigmoid
        | Op::Relu
        | Op::Gelu
        | Op::Softmax { .. }
        | Op::MatMul
        | Op::Gemm { .. }
        | Op::Conv { .. }
        | Op::ReduceMean { .. }
        | Op::LayerNormalization { .. }
        | Op::Concat { .. }
        | Op::Range { .. }
        | Op::LessOrEqual
        | Op::And
        | Op::Where
        | Op::ScaledDotProductAttention => Compute::In(storage(node.precision)),
        // No variant has both; if one ever does, they compute in float32. Rounded weights come after this pass.
        Op::Fused(_) | Op::DequantizeLinear { .. } | Op::MatMulNBits { .. } => Compute::In(DType::Float32),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use models::graph::Builder;

    #[test]
    fn snapshot() {
        let mut b = Builder::new("tiny");
        let fixed = Dim::Fixed;
        let x = b.input("x", DType::Float32, &[Dim::Batch, Dim::New, fixed(4)]);
        let past = b.input(
            "past_key_values.0.key",
            DType::Float32,
            &[Dim::Batch, Dim::Past, fixed(4)],
        );
        let (y, cache) = {
            let b = &mut b.scope("model");
            let normed = b.rms_norm("norm", x, 4, 1e-6);
            let gate = b.linear("gate", normed, 4, 6, true);
            let up = b.linear("up", normed, 4, 6, false);
            let product = {
                let b = &mut b.full();
                let gate = b.silu(gate);
                b.mul(gate, up)
            };
            let down = b.linear("down", product, 6, 4, false);
            let y = b.full().add(x, down);
            (y, b.concat(&[past, normed], 1))
        };
        b.output("y", y);
        b.output("present.0.key", cache);
        let graph = cast_f16(&b.finish().unwrap()).unwrap();
        let mut names = BTreeSet::new();
        for value in &graph.values {
            assert!(names.insert(value.name.clone()), "{} twice", value.name);
        }
        let mut nodes = BTreeSet::new();
        for node in &graph.nodes {
            assert!(nodes.insert(node.name.clone()), "{} twice", node.name);
        }
        let stored: Vec<String> = graph
            .values
            .iter()
            .filter(|value| matches!(value.source, Source::Weight(_)))
            .map(|value| format!("{} {}", value.name, value.dtype))
            .collect();
        assert_eq!(
            stored,
            [
                "model.norm.weight float32",
                "model.gate.weight float16",
                "model.gate.bias float16",
                "model.up.weight float16",
                "model.down.weight float16"
            ]
        );
        let text = graph.to_string();
        let golden = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/half_precision.txt");
        if std::env::var_os("BLESS").is_some() {
            std::fs::write(&golden, &text).unwrap();
        }
        assert_eq!(
            text,
            std::fs::read_to_string(&golden).unwrap(),
            "run with BLESS=1 and look at the difference"
        );
    }
}
