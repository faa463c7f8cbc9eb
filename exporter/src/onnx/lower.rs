//! How does a graph become an ONNX model? Almost one to one: operators have ONNX's names and semantics, and what
//! is an attribute here but an input there (axes, shapes, bounds) becomes a constant named after its node.

#![deny(clippy::wildcard_enum_match_arm)]
#![deny(clippy::as_conversions)]

use super::external::Stored;
use super::proto::{
    AttributeProto, AttributeType, DataLocation, DataType, DimensionProto, FunctionProto, GraphProto,
    IR_VERSION, IR_VERSION_OF_FUNCTIONS, ModelProto, NodeProto, OperatorSetIdProto, StringStringEntryProto,
    TensorProto, TensorShapeProto, TensorTypeProto, TypeProto, ValueInfoProto,
};
use crate::error::ExportError;
use half::f16;
use models::arch::body::body;
use models::dtype::DType;
use models::fused::{Attribute, DOMAIN, Fused};
use models::graph::{Blocks, Constant, Dim, Graph, Node, OPSET, Op, Source, Value, ValueId};
use std::collections::BTreeSet;

/// The domain of ONNX Runtime's own operators, which other engines know too.
const CONTRIB: &str = "com.microsoft";

/// What an engine may do with the activations of a product in blocks, at most: make them bytes, a scale for each block.
/// Products of 8 bits have kernels in ONNX Runtime with it alone, and those of 4 bits are faster.
const ACCURACY_LEVEL: i64 = 4;

/// Lowers a graph. `stored` says for every weight value, by its index in [`Graph::values`], where its elements are;
/// `described`, whether the shapes of computed values are stated.
///
/// # Errors
/// A literal that its element type cannot hold, or a graph that is not consistent.
pub fn lower(
    graph: &Graph,
    mut stored: Vec<Option<Stored>>,
    described: bool,
) -> Result<ModelProto, ExportError> {
    let mut initializers = Vec::new();
    for (index, value) in graph.values.iter().enumerate() {
        match &value.source {
            Source::Input | Source::Node => {}
            Source::Weight(weight) => {
                let place = stored.get_mut(index).and_then(Option::take);
                let place = place.ok_or_else(|| ExportError::Internal {
                    what: format!("weight `{}` was not placed", weight.name),
                })?;
                initializers.push(weight_tensor(value, place)?);
            }
            Source::Constant(constant) => initializers.push(constant_tensor(value, constant)?),
        }
    }
    let mut nodes = Vec::with_capacity(graph.nodes.len());
    let mut functions = Functions::default();
    for node in &graph.nodes {
        let mut lowered = lower_node(graph, node, &mut initializers)?;
        if let Op::Fused(fused) = &node.op {
            let inputs: Vec<&Value> = node.inputs.iter().map(|id| graph.value(*id)).collect();
            lowered.domain = Some(DOMAIN.to_owned());
            lowered.overload = Some(functions.overload(fused, &inputs, &lowered.attribute)?);
        }
        nodes.push(lowered);
    }
    let mut opset_import = vec![opset("", OPSET)];
    if graph.nodes.iter().any(|node| is_contrib(&node.op)) {
        opset_import.push(opset(CONTRIB, 1));
    }
    if !functions.protos.is_empty() {
        opset_import.push(opset(DOMAIN, 1));
    }
    // Of operators that are not ONNX's, nobody else would know what they compute.
    let foreign: BTreeSet<ValueId> = graph
        .nodes
        .iter()
        .filter(|node| is_contrib(&node.op))
        .flat_map(|node| node.outputs.iter().copied())
        .collect();
    let inner = graph.values.iter().enumerate().filter(|(index, value)| {
        let id = ValueId(*index);
        (described || foreign.contains(&id)) && value.source == Source::Node && !graph.outputs.contains(&id)
    });
    let inner = inner
        .map(|(_, value)| value_info(value))
        .collect::<Result<_, _>>()?;
    let describe = |ids: &[models::graph::ValueId]| -> Result<Vec<ValueInfoProto>, ExportError> {
        ids.iter().map(|id| value_info(graph.value(*id))).collect()
    };
    Ok(ModelProto {
        ir_version: Some(if functions.protos.is_empty() {
            IR_VERSION
        } else {
            IR_VERSION_OF_FUNCTIONS
        }),
        producer_name: Some("fvlm-export".to_owned()),
        producer_version: Some(env!("CARGO_PKG_VERSION").to_owned()),
        graph: Some(GraphProto {
            node: nodes,
            name: Some(graph.name.clone()),
            initializer: initializers,
            input: describe(&graph.inputs)?,
            output: describe(&graph.outputs)?,
            value_info: inner,
        }),
        opset_import,
        functions: functions.protos,
    })
}

/// Whether it is ONNX Runtime's own operator.
fn is_contrib(op: &Op) -> bool {
    matches!(op, Op::MatMulNBits { .. })
}

fn opset(domain: &str, version: i64) -> OperatorSetIdProto {
    OperatorSetIdProto {
        domain: Some(domain.to_owned()),
        version: Some(version),
    }
}

/// The bodies of the fused operators that a graph uses: one for each operator with its parameters and input types.
#[derive(Default)]
struct Functions {
    keys: Vec<FunctionKey>,
    protos: Vec<FunctionProto>,
}

/// An operator with its parameters, and its inputs' types and shapes.
type FunctionKey = (Fused, Vec<(DType, Vec<Dim>)>);

impl Functions {
    /// The overload that a node calls; its body is added if it is new.
    fn overload(
        &mut self,
        fused: &Fused,
        inputs: &[&Value],
        attributes: &[AttributeProto],
    ) -> Result<String, ExportError> {
        let types = inputs
            .iter()
            .map(|value| (value.dtype, value.shape.clone()))
            .collect();
        let key = (*fused, types);
        if let Some(index) = self.keys.iter().position(|known| *known == key) {
            return Ok(index.to_string());
        }
        let overload = self.keys.len().to_string();
        let attributes = attributes.iter().filter_map(|attribute| attribute.name.clone());
        self.protos
            .push(function(fused, inputs, &overload, attributes.collect())?);
        self.keys.push(key);
        Ok(overload)
    }
}

/// A body as a function: what would be stored tensors become constant nodes.
fn function(
    fused: &Fused,
    inputs: &[&Value],
    overload: &str,
    attribute: Vec<String>,
) -> Result<FunctionProto, ExportError> {
    let body = body(fused, inputs)?;
    let mut tensors = Vec::new();
    for value in &body.values {
        if let Source::Constant(constant) = &value.source {
            tensors.push(constant_tensor(value, constant)?);
        }
    }
    let mut nodes = Vec::with_capacity(body.nodes.len());
    for node in &body.nodes {
        nodes.push(lower_node(&body, node, &mut tensors)?);
    }
    let constants = tensors.into_iter().map(constant_node);
    let names = |ids: &[models::graph::ValueId]| -> Vec<String> {
        ids.iter().map(|id| body.value(*id).name.clone()).collect()
    };
    Ok(FunctionProto {
        name: Some(fused.name().to_owned()),
        input: names(&body.inputs),
        output: names(&body.outputs),
        attribute,
        node: constants.chain(nodes).collect(),
        opset_import: vec![opset("", OPSET)],
        domain: Some(DOMAIN.to_owned()),
        overload: Some(overload.to_owned()),
    })
}

fn constant_node(mut tensor: TensorProto) -> NodeProto {
    let output = tensor.name.take();
    NodeProto {
        output: output.into_iter().collect(),
        op_type: Some("Constant".to_owned()),
        attribute: vec![AttributeProto {
            name: Some("value".to_owned()),
            t: Some(tensor),
            r#type: Some(i32::from(AttributeType::Tensor)),
            ..AttributeProto::default()
        }],
        ..NodeProto::default()
    }
}

/// ONNX's number for an element type.
pub const fn data_type(dtype: DType) -> DataType {
    match dtype {
        DType::Float32 => DataType::Float,
        DType::Float16 => DataType::Float16,
        DType::BFloat16 => DataType::Bfloat16,
        DType::Int64 => DataType::Int64,
        DType::Bool => DataType::Bool,
        DType::UInt8 => DataType::Uint8,
        DType::Int8 => DataType::Int8,
    }
}

fn lower_node(
    graph: &Graph,
    node: &Node,
    initializers: &mut Vec<TensorProto>,
) -> Result<NodeProto, ExportError> {
    let mut lowered = NodeProto {
        input: node
            .inputs
            .iter()
            .map(|id| graph.value(*id).name.clone())
            .collect(),
        output: node
            .outputs
            .iter()
            .map(|id| graph.value(*id).name.clone())
            .collect(),
        name: Some(node.name.clone()),
        op_type: Some(node.op.name().to_owned()),
        ..NodeProto::default()
    };
    // ONNX wants these integers as inputs; the constant is named after the node and its role.
    let mut constant = |role: &str, values: &[i64]| {
        let name = format!("{}/{role}", node.name);
        initializers.push(int64_tensor(&name, values));
        name
    };
    match &node.op {
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
        | Op::MatMul
        | Op::LessOrEqual
        | Op::And
        | Op::Where
        | Op::Range { dim: _ } => {}
        Op::Softmax { axis } | Op::Concat { axis } | Op::Gather { axis } => {
            lowered.attribute.push(int("axis", *axis));
        }
        Op::Gemm { trans_b } => lowered.attribute.push(int("transB", i64::from(*trans_b))),
        Op::Conv { group, strides, pads } => {
            // The specification's default, which not every engine (rten) knows.
            lowered.attribute.push(ints("dilations", vec![1, 1]));
            lowered.attribute.push(int("group", signed(*group)?));
            lowered.attribute.push(ints("pads", signed_all(pads)?));
            lowered.attribute.push(ints("strides", signed_all(strides)?));
        }
        Op::ReduceMean { axes, keep_dims } => {
            lowered.input.push(constant("axes", axes));
            lowered.attribute.push(int("keepdims", i64::from(*keep_dims)));
        }
        Op::LayerNormalization { axis, epsilon } => {
            lowered.attribute.push(int("axis", *axis));
            lowered.attribute.push(float("epsilon", *epsilon));
        }
        Op::Cast { to } => lowered
            .attribute
            .push(int("to", i64::from(i32::from(data_type(*to))))),
        Op::Slice { axis, start, end } => {
            lowered.input.push(constant("starts", &[*start]));
            lowered.input.push(constant("ends", &[*end]));
            lowered.input.push(constant("axes", &[*axis]));
        }
        Op::Split { axis, sizes } => {
            lowered.input.push(constant("split", &signed_all(sizes)?));
            lowered.attribute.push(int("axis", *axis));
        }
        Op::Reshape { shape } => lowered.input.push(constant("shape", shape)),
        Op::Transpose { perm } => lowered.attribute.push(ints("perm", signed_all(perm)?)),
        Op::Unsqueeze { axes } | Op::Squeeze { axes } => lowered.input.push(constant("axes", axes)),
        Op::Shape { start, end } => {
            lowered.attribute.push(int("start", *start));
            lowered.attribute.push(int("end", *end));
        }
        Op::DequantizeLinear { axis } => lowered.attribute.push(int("axis", signed(*axis)?)),
        Op::MatMulNBits {
            blocks,
            inputs,
            outputs,
        } => {
            lowered.domain = Some(CONTRIB.to_owned());
            let Blocks { bits, size, half: _ } = *blocks;
            lowered.attribute = vec![
                int("K", signed(*inputs)?),
                int("N", signed(*outputs)?),
                int("bits", signed(bits)?),
                int("block_size", signed(size)?),
                int("accuracy_level", ACCURACY_LEVEL),
            ];
        }
        Op::Fused(fused) => lowered.attribute = fused_attributes(fused)?,
        Op::SliceUpdate | Op::ScaledDotProductAttention => {
            return Err(ExportError::NoForm {
                node: node.name.clone(),
                op: node.op.name(),
                form: "ONNX",
            });
        }
    }
    Ok(lowered)
}

/// The parameters of a fused operator, for kernels: a body has them built in.
fn fused_attributes(fused: &Fused) -> Result<Vec<AttributeProto>, ExportError> {
    let attribute = |(name, value)| match value {
        Attribute::Int(value) => Ok(int(name, signed(value)?)),
        Attribute::Float(value) => Ok(float(name, value)),
    };
    fused.attributes().into_iter().map(attribute).collect()
}

fn int(name: &str, value: i64) -> AttributeProto {
    AttributeProto {
        name: Some(name.to_owned()),
        i: Some(value),
        r#type: Some(i32::from(AttributeType::Int)),
        ..AttributeProto::default()
    }
}

fn float(name: &str, value: f32) -> AttributeProto {
    AttributeProto {
        name: Some(name.to_owned()),
        f: Some(value),
        r#type: Some(i32::from(AttributeType::Float)),
        ..AttributeProto::default()
    }
}

fn ints(name: &str, values: Vec<i64>) -> AttributeProto {
    AttributeProto {
        name: Some(name.to_owned()),
        ints: values,
        r#type: Some(i32::from(AttributeType::Ints)),
        ..AttributeProto::default()
    }
}

fn signed(value: u64) -> Result<i64, ExportError> {
    i64::try_from(value).map_err(|_| ExportError::Internal {
        what: format!("{value} does not fit an int64"),
    })
}

fn signed_all(values: &[u64]) -> Result<Vec<i64>, ExportError> {
    values.iter().map(|value| signed(*value)).collect()
}

fn fixed_dims(value: &Value) -> Result<Vec<i64>, ExportError> {
    value
        .shape
        .iter()
        .map(|dim| match dim.fixed() {
            Some(length) => signed(length),
            None => Err(ExportError::Internal {
                what: format!("stored tensor `{}` has a symbolic shape", value.name),
            }),
        })
        .collect()
}

fn int64_tensor(name: &str, values: &[i64]) -> TensorProto {
    TensorProto {
        dims: vec![i64::try_from(values.len()).unwrap_or(i64::MAX)],
        data_type: Some(i32::from(DataType::Int64)),
        name: Some(name.to_owned()),
        raw_data: Some(values.iter().flat_map(|value| value.to_le_bytes()).collect()),
        ..TensorProto::default()
    }
}

fn constant_tensor(value: &Value, constant: &Constant) -> Result<TensorProto, ExportError> {
    let raw: Vec<u8> = match (constant, value.dtype) {
        (Constant::Float32(values), DType::Float32) => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        (Constant::Float32(values), DType::Float16) => {
            if let Some(large) = values
                .iter()
                .find(|v| v.is_finite() && f16::from_f32(**v).is_infinite())
            {
                return Err(ExportError::ConstantRange {
                    value: value.name.clone(),
                    found: *large,
                });
            }
            values
                .iter()
                .flat_map(|v| f16::from_f32(*v).to_le_bytes())
                .collect()
        }
        (Constant::Int64(values), DType::Int64) => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        (Constant::Int64(values), DType::Bool) => values.iter().map(|v| u8::from(*v != 0)).collect(),
        (Constant::Float32(_) | Constant::Int64(_), found) => {
            return Err(ExportError::Internal {
                what: format!("constant `{}` cannot be {found}", value.name),
            });
        }
    };
    Ok(TensorProto {
        dims: fixed_dims(value)?,
        data_type: Some(i32::from(data_type(value.dtype))),
        name: Some(value.name.clone()),
        raw_data: Some(raw),
        ..TensorProto::default()
    })
}

fn weight_tensor(value: &Value, stored: Stored) -> Result<TensorProto, ExportError> {
    let mut tensor = TensorProto {
        dims: fixed_dims(value)?,
        data_type: Some(i32::from(data_type(value.dtype))),
        name: Some(value.name.clone()),
        ..TensorProto::default()
    };
    match stored {
        Stored::Inline(bytes) => tensor.raw_data = Some(bytes),
        Stored::External(place) => {
            let entry = |key: &str, value: String| StringStringEntryProto {
                key: Some(key.to_owned()),
                value: Some(value),
            };
            tensor.external_data = vec![
                entry("location", place.file),
                entry("offset", place.offset.to_string()),
                entry("length", place.bytes.to_string()),
            ];
            tensor.data_location = Some(i32::from(DataLocation::External));
        }
    }
    Ok(tensor)
}

fn value_info(value: &Value) -> Result<ValueInfoProto, ExportError> {
    let dim = |dim: &Dim| -> Result<DimensionProto, ExportError> {
        Ok(DimensionProto {
            dim_value: dim.fixed().map(signed).transpose()?,
            dim_param: dim.symbol().map(str::to_owned),
        })
    };
    Ok(ValueInfoProto {
        name: Some(value.name.clone()),
        r#type: Some(TypeProto {
            tensor_type: Some(TensorTypeProto {
                elem_type: Some(i32::from(data_type(value.dtype))),
                shape: Some(TensorShapeProto {
                    dim: value.shape.iter().map(dim).collect::<Result<_, _>>()?,
                }),
            }),
        }),
    })
}
