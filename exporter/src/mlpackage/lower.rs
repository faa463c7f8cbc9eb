//! How does a graph become a function of the model intermediate language? One node, one operation, but for what Core ML
//! wants as constants before it, and for states: what is updated is written, and read again.
//!
//! Operators and their parameters are those of coremltools 9.0 (`converters/mil/mil/ops/defs`). Integers are int32 there.

#![deny(clippy::wildcard_enum_match_arm)]
#![deny(clippy::as_conversions)]

use super::blob::Blob;
use super::proto::{
    Argument, Binding, BlobFileValue, Block, ConstantDimension, DataType, Dimension, Function,
    ImmediateValue, NamedValueType, Operation, RepeatedBools, RepeatedBytes, RepeatedFloats, RepeatedInts,
    RepeatedStrings, StateType, TensorType, TensorValue, Value, ValueType, binding, tensor_value, value,
    value_type,
};
use super::{Deployment, Storage, WEIGHT_FILE};
use crate::error::ExportError;
use half::f16;
use models::dtype::DType;
use models::fused;
use models::graph::{self, Constant, Graph, Node, Op, Source, ValueId, WeightForm, WeightRef};
use std::collections::{BTreeMap, BTreeSet};

/// Elements up to which a literal stands in the program.
const INLINE: usize = 64;

/// Lowers a graph. `states` are the names of inputs that stay, each with that of the output which is its next value;
/// `storage` says how each weight value is stored.
///
/// # Errors
/// An operator that has no form, or a graph that is not of fixed lengths.
pub fn lower(
    graph: &Graph,
    states: &[(&str, &str)],
    storage: &BTreeMap<ValueId, Storage>,
    blob: &Blob,
    deployment: Deployment,
) -> Result<Function, ExportError> {
    let mut lowering = Lowering {
        graph,
        storage,
        blob,
        deployment,
        names: BTreeMap::new(),
        taken: BTreeSet::new(),
        held: BTreeMap::new(),
        operations: Vec::new(),
    };
    let is_state = |id: &ValueId| states.iter().any(|(input, _)| *input == graph.value(*id).name);
    let mut inputs = Vec::new();
    for id in &graph.inputs {
        let value = graph.value(*id);
        let name = lowering.name(&value.name);
        let tensor = tensor_type(value)?;
        let state = is_state(id);
        inputs.push(NamedValueType {
            name: name.clone(),
            r#type: Some(if state {
                state_type(tensor.clone())
            } else {
                tensor.clone()
            }),
        });
        if state {
            lowering.held.insert(*id, name.clone());
            let read = lowering.name(&format!("{name}_read"));
            lowering.push(
                "read_state",
                vec![("input", by_name(&name))],
                vec![(read.clone(), tensor)],
            );
            lowering.names.insert(*id, read);
        } else {
            lowering.names.insert(*id, name);
        }
    }
    for node in &graph.nodes {
        lowering.node(node)?;
    }
    let returned = graph.outputs.iter().filter(|id| {
        let name = &graph.value(**id).name;
        !states.iter().any(|(_, output)| output == name)
    });
    let outputs = returned
        .map(|id| lowering.names.get(id).cloned().unwrap_or_default())
        .collect();
    let block = Block {
        outputs,
        operations: lowering.operations,
    };
    let opset = deployment.opset().to_owned();
    Ok(Function {
        inputs,
        opset: opset.clone(),
        block_specializations: BTreeMap::from([(opset, block)]),
    })
}

/// Places the literals of a graph that are too long for the program.
///
/// # Errors
/// A literal of a type that has no form.
pub fn place_literals(graph: &Graph, blob: &mut Blob) -> Result<(), ExportError> {
    for value in &graph.values {
        if let Source::Constant(constant) = &value.source
            && is_long(constant)
        {
            let kind = data_type(value.dtype)?;
            blob.literal(value.dtype, kind, &float_bytes(constant, value.dtype));
        }
    }
    Ok(())
}

/// Integers stay in the program: no record has a number for them.
fn is_long(constant: &Constant) -> bool {
    matches!(constant, Constant::Float32(values) if values.len() > INLINE)
}

/// A graph on its way.
struct Lowering<'g> {
    graph: &'g Graph,
    storage: &'g BTreeMap<ValueId, Storage>,
    blob: &'g Blob,
    deployment: Deployment,
    /// What is already computed, or stands for itself.
    names: BTreeMap<ValueId, String>,
    /// Names that are used.
    taken: BTreeSet<String>,
    /// The state that a value is the content of.
    held: BTreeMap<ValueId, String>,
    operations: Vec<Operation>,
}

impl Lowering<'_> {
    fn node(&mut self, node: &Node) -> Result<(), ExportError> {
        let no_form = || ExportError::NoForm {
            node: node.name.clone(),
            op: node.op.name(),
            form: "Core ML",
        };
        let mut inputs = Vec::with_capacity(node.inputs.len());
        for id in &node.inputs {
            inputs.push(by_name(&self.operand(*id)?));
        }
        let input = |index: usize| inputs.get(index).cloned().unwrap_or_default();
        let output = |index: usize| node.outputs.get(index).map(|id| self.graph.value(*id));
        let first = output(0).ok_or_else(no_form)?;
        let given = |names: &[&'static str]| -> Vec<(&'static str, Argument)> {
            names.iter().copied().zip(inputs.iter().cloned()).collect()
        };
        let shape_in = node
            .inputs
            .first()
            .map(|id| shape(self.graph.value(*id)))
            .transpose()?;
        let float = first.dtype;
        let (operator, mut arguments, constants): (&str, Vec<_>, Vec<(&'static str, Value)>) = match &node.op
        {
            Op::Add => ("add", given(&["x", "y"]), vec![]),
            Op::Sub => ("sub", given(&["x", "y"]), vec![]),
            Op::Mul => ("mul", given(&["x", "y"]), vec![]),
            Op::Div => ("real_div", given(&["x", "y"]), vec![]),
            Op::Neg => ("mul", given(&["x"]), vec![("y", scalar(-1.0, float)?)]),
            Op::Sqrt => ("sqrt", given(&["x"]), vec![]),
            Op::Cos => ("cos", given(&["x"]), vec![]),
            Op::Sin => ("sin", given(&["x"]), vec![]),
            Op::Sigmoid => ("sigmoid", given(&["x"]), vec![]),
            Op::Relu => ("relu", given(&["x"]), vec![]),
            Op::Gelu => ("gelu", given(&["x"]), vec![("mode", text("EXACT"))]),
            Op::Softmax { axis } => ("softmax", given(&["x"]), vec![("axis", integer(*axis)?)]),
            Op::MatMul => (
                "matmul",
                given(&["x", "y"]),
                vec![("transpose_x", truth(false)), ("transpose_y", truth(false))],
            ),
            // Its weight is a constant, `[N, K]`.
            Op::Gemm { trans_b: true } => ("linear", given(&["x", "weight", "bias"]), vec![]),
            Op::Conv { group, strides, pads } => {
                let [top, left, bottom, right] = *pads;
                (
                    "conv",
                    given(&["x", "weight", "bias"]),
                    vec![
                        ("strides", lengths(strides)?),
                        ("pad_type", text("custom")),
                        ("pad", lengths(&[top, bottom, left, right])?),
                        ("dilations", lengths(&[1, 1])?),
                        ("groups", whole(*group)?),
                    ],
                )
            }
            Op::ReduceMean { axes, keep_dims } => (
                "reduce_mean",
                given(&["x"]),
                vec![("axes", integers(axes)?), ("keep_dims", truth(*keep_dims))],
            ),
            Op::LayerNormalization { axis: -1, epsilon } => (
                "layer_norm",
                given(&["x", "gamma", "beta"]),
                vec![("axes", integers(&[-1])?), ("epsilon", scalar(*epsilon, float)?)],
            ),
            Op::Cast { to } => {
                let from = node.inputs.first().map(|id| self.graph.value(*id).dtype);
                if from == Some(*to) {
                    return self.same(node);
                }
                ("cast", given(&["x"]), vec![("dtype", text(cast_name(*to)?))])
            }
            Op::Concat { axis } => {
                let values = inputs.iter().flat_map(|input| input.arguments.clone());
                let values = Argument {
                    arguments: values.collect(),
                };
                (
                    "concat",
                    vec![("values", values)],
                    vec![("axis", integer(*axis)?), ("interleave", truth(false))],
                )
            }
            Op::Gather { axis } => {
                let mut constants = vec![("axis", integer(*axis)?)];
                if self.deployment == Deployment::Ios18 {
                    constants.push(("batch_dims", integer(0)?));
                    constants.push(("validate_indices", truth(false)));
                }
                ("gather", given(&["x", "indices"]), constants)
            }
            Op::Slice { axis, start, end } => {
                let shape = shape_in.clone().unwrap_or_default();
                let (begin, end) = bounds(&shape, *axis, *start, *end).ok_or_else(no_form)?;
                (
                    "slice_by_index",
                    given(&["x"]),
                    vec![("begin", integers(&begin)?), ("end", integers(&end)?)],
                )
            }
            Op::Split { axis, sizes } => (
                "split",
                given(&["x"]),
                vec![("split_sizes", lengths(sizes)?), ("axis", integer(*axis)?)],
            ),
            Op::Reshape { .. } => (
                "reshape",
                given(&["x"]),
                vec![("shape", lengths(&shape(first)?)?)],
            ),
            Op::Transpose { perm } => ("transpose", given(&["x"]), vec![("perm", lengths(perm)?)]),
            Op::Unsqueeze { axes } => ("expand_dims", given(&["x"]), vec![("axes", integers(axes)?)]),
            Op::Squeeze { axes } => ("squeeze", given(&["x"]), vec![("axes", integers(axes)?)]),
            Op::LessOrEqual => ("less_equal", given(&["x", "y"]), vec![]),
            Op::And => ("logical_and", given(&["x", "y"]), vec![]),
            Op::Where => ("select", given(&["cond", "a", "b"]), vec![]),
            Op::ScaledDotProductAttention => {
                if self.deployment != Deployment::Ios18 {
                    return Err(no_form());
                }
                let names = ["query", "key", "value", "attn_mask"];
                ("scaled_dot_product_attention", given(&names), vec![])
            }
            Op::SliceUpdate => {
                let end = self.end_of(node, &input(2))?;
                let mut arguments = given(&["x", "update", "begin"]);
                arguments.push(("end", by_name(&end)));
                ("slice_update", arguments, vec![])
            }
            Op::Gemm { trans_b: false }
            | Op::LayerNormalization { .. }
            | Op::Shape { .. }
            | Op::Range { .. }
            | Op::DequantizeLinear { .. }
            | Op::MatMulNBits { .. }
            | Op::Fused(_) => return Err(no_form()),
        };
        let base = plain(&node.name);
        for (parameter, value) in constants {
            let name = self.name(&format!("{base}_{parameter}"));
            self.constant(&name, value);
            arguments.push((parameter, by_name(&name)));
        }
        let mut outputs = Vec::with_capacity(node.outputs.len());
        for id in &node.outputs {
            let value = self.graph.value(*id);
            let name = self.name(&value.name);
            self.names.insert(*id, name.clone());
            outputs.push((name, tensor_type(value)?));
        }
        self.push(operator, arguments, outputs);
        if node.op == Op::SliceUpdate {
            self.write_state(node)?;
        }
        Ok(())
    }

    /// Where an update ends: `begin` plus the lengths of what is written.
    fn end_of(&mut self, node: &Node, begin: &Argument) -> Result<String, ExportError> {
        let update = node.inputs.get(1).map(|id| shape(self.graph.value(*id)));
        let update = update.transpose()?.unwrap_or_default();
        let base = plain(&node.name);
        let length = self.name(&format!("{base}_length"));
        self.constant(&length, lengths(&update)?);
        let end = self.name(&format!("{base}_end"));
        let rank = u64::try_from(update.len()).unwrap_or(u64::MAX);
        let kind = tensor_of(DataType::Int32, &[rank]);
        let arguments = vec![("x", begin.clone()), ("y", by_name(&length))];
        self.push("add", arguments, vec![(end.clone(), kind)]);
        Ok(end)
    }

    /// What was updated becomes the content of its state, and what is read from it then is the updated value.
    fn write_state(&mut self, node: &Node) -> Result<(), ExportError> {
        let held = node.inputs.first().and_then(|id| self.held.get(id)).cloned();
        let (Some(state), Some(&id)) = (held, node.outputs.first()) else {
            return Ok(());
        };
        let updated = self.names.get(&id).cloned().unwrap_or_default();
        let arguments = vec![("input", by_name(&state)), ("data", by_name(&updated))];
        self.push("write_state", arguments, vec![]);
        let read = self.name(&format!("{updated}_read"));
        let kind = tensor_type(self.graph.value(id))?;
        self.push(
            "read_state",
            vec![("input", by_name(&state))],
            vec![(read.clone(), kind)],
        );
        self.held.insert(id, state);
        self.names.insert(id, read);
        Ok(())
    }

    /// A node that changes nothing.
    fn same(&mut self, node: &Node) -> Result<(), ExportError> {
        if let (Some(from), Some(to)) = (node.inputs.first(), node.outputs.first()) {
            let name = self.operand(*from)?;
            self.names.insert(*to, name);
        }
        Ok(())
    }

    /// The name of a value; weights and literals come to be where they are first used.
    fn operand(&mut self, id: ValueId) -> Result<String, ExportError> {
        if let Some(name) = self.names.get(&id) {
            return Ok(name.clone());
        }
        let value = self.graph.value(id);
        let name = self.name(&value.name);
        match &value.source {
            Source::Constant(constant) => {
                let literal = self.literal(value, constant)?;
                self.constant(&name, literal);
            }
            Source::Weight(weight) => self.weight(id, value, weight, &name)?,
            Source::Input | Source::Node => {
                let what = format!("value `{}` is used before it is computed", value.name);
                return Err(ExportError::Internal { what });
            }
        }
        self.names.insert(id, name.clone());
        Ok(name)
    }

    fn weight(
        &mut self,
        id: ValueId,
        value: &graph::Value,
        weight: &WeightRef,
        name: &str,
    ) -> Result<(), ExportError> {
        let shape = shape(value)?;
        let storage = self.storage.get(&id).copied().unwrap_or(Storage::Plain);
        let Some((data, scales)) = storage.parts(weight, &shape) else {
            let place = self.blob.weight_record(weight, value.dtype)?;
            self.constant(name, in_file(tensor_type(value)?, place));
            return Ok(());
        };
        let mut arguments = Vec::new();
        for (parameter, part) in [("data", &data), ("scale", &scales)] {
            let place = self.blob.weight_record(&part.weight, part.dtype)?;
            let literal = in_file(tensor_of(part.kind, &part.shape), place);
            arguments.push((parameter, by_value(literal)));
        }
        let output = vec![(name.to_owned(), tensor_type(value)?)];
        self.push("constexpr_blockwise_shift_scale", arguments, output);
        Ok(())
    }

    fn literal(&self, value: &graph::Value, constant: &Constant) -> Result<Value, ExportError> {
        let shape = shape(value)?;
        if !is_long(constant) {
            return literal(constant, value.dtype, &shape);
        }
        let bytes = float_bytes(constant, value.dtype);
        let place = self.blob.literal_record(value.dtype, &bytes)?;
        Ok(in_file(tensor_of(data_type(value.dtype)?, &shape), place))
    }

    fn constant(&mut self, name: &str, literal: Value) {
        let output = NamedValueType {
            name: name.to_owned(),
            r#type: literal.r#type.clone(),
        };
        let attributes = BTreeMap::from([("name".to_owned(), text(name)), ("val".to_owned(), literal)]);
        self.operations.push(Operation {
            r#type: "const".to_owned(),
            inputs: BTreeMap::new(),
            outputs: vec![output],
            attributes,
        });
    }

    fn push(
        &mut self,
        operator: &str,
        arguments: Vec<(&'static str, Argument)>,
        outputs: Vec<(String, ValueType)>,
    ) {
        let name = match outputs.first() {
            Some((name, _)) => name.clone(),
            None => self.name(operator),
        };
        let inputs = arguments.into_iter();
        self.operations.push(Operation {
            r#type: operator.to_owned(),
            inputs: inputs
                .map(|(name, argument)| (name.to_owned(), argument))
                .collect(),
            outputs: outputs
                .into_iter()
                .map(|(name, kind)| NamedValueType {
                    name,
                    r#type: Some(kind),
                })
                .collect(),
            attributes: BTreeMap::from([("name".to_owned(), text(&name))]),
        });
    }

    /// A name like this one that Core ML takes and that nothing else has.
    fn name(&mut self, wanted: &str) -> String {
        let plain = plain(wanted);
        let mut name = plain.clone();
        let mut count = 0;
        while !self.taken.insert(name.clone()) {
            count += 1;
            name = format!("{plain}_{count}");
        }
        name
    }
}

/// Letters, digits and underscores: `/language_model/layers.0/Add_output_0` is `language_model_layers_0_Add_output_0`.
pub(super) fn plain(name: &str) -> String {
    let legal = |c: char| if c.is_ascii_alphanumeric() { c } else { '_' };
    let name: String = name.trim_start_matches('/').chars().map(legal).collect();
    if name.starts_with(|c: char| c.is_ascii_digit()) {
        format!("_{name}")
    } else {
        name
    }
}

/// The first index and the one past the last of every axis.
fn bounds(shape: &[u64], axis: i64, start: i64, end: i64) -> Option<(Vec<i64>, Vec<i64>)> {
    let mut ends: Vec<i64> = shape
        .iter()
        .map(|length| i64::try_from(*length))
        .collect::<Result<_, _>>()
        .ok()?;
    let mut begins = vec![0; ends.len()];
    let rank = i64::try_from(ends.len()).ok()?;
    let axis = usize::try_from(if axis < 0 { axis + rank } else { axis }).ok()?;
    let length = *ends.get(axis)?;
    let clamp = |index: i64| if index < 0 { index + length } else { index }.clamp(0, length);
    *begins.get_mut(axis)? = clamp(start);
    *ends.get_mut(axis)? = clamp(end);
    Some((begins, ends))
}

fn cast_name(dtype: DType) -> Result<&'static str, ExportError> {
    Ok(match data_type(dtype)? {
        DataType::Float16 => "fp16",
        DataType::Int32 => "int32",
        DataType::Bool => "bool",
        DataType::Float32 | DataType::Unused | DataType::String | DataType::Int8 | DataType::Int4 => "fp32",
    })
}

/// The element type inside a program.
pub(super) fn data_type(dtype: DType) -> Result<DataType, ExportError> {
    match dtype {
        DType::Float32 => Ok(DataType::Float32),
        DType::Float16 => Ok(DataType::Float16),
        DType::Int64 => Ok(DataType::Int32),
        DType::Bool => Ok(DataType::Bool),
        DType::BFloat16 | DType::UInt8 | DType::Int8 => Err(ExportError::Internal {
            what: format!("a Core ML program has no {dtype}"),
        }),
    }
}

/// The lengths of a value.
pub(super) fn shape(value: &graph::Value) -> Result<Vec<u64>, ExportError> {
    let lengths: Option<Vec<u64>> = value.shape.iter().map(|dim| dim.fixed()).collect();
    lengths.ok_or_else(|| ExportError::Internal {
        what: format!("`{}` has a length that is not a number", value.name),
    })
}

fn tensor_type(value: &graph::Value) -> Result<ValueType, ExportError> {
    Ok(tensor_of(data_type(value.dtype)?, &shape(value)?))
}

fn tensor_of(kind: DataType, shape: &[u64]) -> ValueType {
    let dimension = |size: &u64| Dimension {
        constant: Some(ConstantDimension { size: *size }),
    };
    ValueType {
        r#type: Some(value_type::Type::Tensor(TensorType {
            data_type: i32::from(kind),
            rank: i64::try_from(shape.len()).unwrap_or(i64::MAX),
            dimensions: shape.iter().map(dimension).collect(),
        })),
    }
}

fn state_type(tensor: ValueType) -> ValueType {
    ValueType {
        r#type: Some(value_type::Type::State(Box::new(StateType {
            wrapped_type: Some(Box::new(tensor)),
        }))),
    }
}

fn by_name(name: &str) -> Argument {
    bound(binding::Binding::Name(name.to_owned()))
}

fn by_value(value: Value) -> Argument {
    bound(binding::Binding::Value(value))
}

fn bound(binding: binding::Binding) -> Argument {
    Argument {
        arguments: vec![Binding {
            binding: Some(binding),
        }],
    }
}

fn in_file(kind: ValueType, offset: u64) -> Value {
    Value {
        r#type: Some(kind),
        value: Some(value::Value::BlobFile(BlobFileValue {
            file_name: format!("@model_path/{WEIGHT_FILE}"),
            offset,
        })),
    }
}

fn immediate(kind: ValueType, elements: tensor_value::Value) -> Value {
    Value {
        r#type: Some(kind),
        value: Some(value::Value::Immediate(ImmediateValue {
            tensor: Some(TensorValue {
                value: Some(elements),
            }),
        })),
    }
}

fn text(text: &str) -> Value {
    let values = vec![text.to_owned()];
    immediate(
        tensor_of(DataType::String, &[]),
        tensor_value::Value::Strings(RepeatedStrings { values }),
    )
}

fn truth(truth: bool) -> Value {
    let values = vec![truth];
    immediate(
        tensor_of(DataType::Bool, &[]),
        tensor_value::Value::Bools(RepeatedBools { values }),
    )
}

/// A literal that stands in the program.
fn literal(constant: &Constant, dtype: DType, shape: &[u64]) -> Result<Value, ExportError> {
    let elements = match (constant, dtype) {
        (Constant::Float32(values), DType::Float32) => tensor_value::Value::Floats(RepeatedFloats {
            values: values.clone(),
        }),
        (Constant::Float32(_), dtype) => tensor_value::Value::Bytes(RepeatedBytes {
            values: float_bytes(constant, dtype),
        }),
        (Constant::Int64(values), _) => tensor_value::Value::Ints(RepeatedInts {
            values: values
                .iter()
                .map(|value| int32(*value))
                .collect::<Result<_, _>>()?,
        }),
    };
    Ok(immediate(tensor_of(data_type(dtype)?, shape), elements))
}

fn scalar(number: f32, dtype: DType) -> Result<Value, ExportError> {
    literal(&Constant::Float32(vec![number]), dtype, &[])
}

fn integer(number: i64) -> Result<Value, ExportError> {
    literal(&Constant::Int64(vec![number]), DType::Int64, &[])
}

fn whole(number: u64) -> Result<Value, ExportError> {
    integer(i64::try_from(number).unwrap_or(i64::MAX))
}

fn integers(numbers: &[i64]) -> Result<Value, ExportError> {
    let length = u64::try_from(numbers.len()).unwrap_or(u64::MAX);
    literal(&Constant::Int64(numbers.to_vec()), DType::Int64, &[length])
}

fn lengths(numbers: &[u64]) -> Result<Value, ExportError> {
    let signed: Vec<i64> = numbers
        .iter()
        .map(|number| i64::try_from(*number).unwrap_or(i64::MAX))
        .collect();
    integers(&signed)
}

fn int32(number: i64) -> Result<i32, ExportError> {
    i32::try_from(number).map_err(|_| ExportError::Internal {
        what: format!("{number} is beyond int32, the integers of Core ML"),
    })
}

fn float_bytes(constant: &Constant, dtype: DType) -> Vec<u8> {
    match constant {
        Constant::Float32(values) if dtype == DType::Float16 => values
            .iter()
            .flat_map(|value| f16::from_f32(*value).to_le_bytes())
            .collect(),
        Constant::Float32(values) => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
        Constant::Int64(values) => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
    }
}

/// A tensor of a compressed weight.
pub(super) struct Part {
    /// Which weight, in which form.
    pub(super) weight: WeightRef,
    /// What its elements are in memory.
    pub(super) dtype: DType,
    /// What Core ML calls them.
    pub(super) kind: DataType,
    /// Its shape.
    pub(super) shape: Vec<u64>,
    /// Its length in the file.
    pub(super) bytes: u64,
}

impl Storage {
    /// The elements and the scales of a weight of this shape, where it is compressed.
    pub(super) fn parts(self, weight: &WeightRef, shape: &[u64]) -> Option<(Part, Part)> {
        let count: u64 = shape.iter().product();
        let [rows, columns] = [0, 1].map(|axis: usize| shape.get(axis).copied().unwrap_or(1));
        let of = |form: WeightForm| WeightRef {
            name: weight.name.clone(),
            form,
        };
        let (data, scales, kind, blocks, bytes) = match self {
            Storage::Plain => return None,
            Storage::Int8 => (
                WeightForm::Signed8,
                WeightForm::Signed8Scales,
                DataType::Int8,
                1,
                count,
            ),
            Storage::Int4 => {
                let blocks = columns / fused::BLOCK;
                (
                    WeightForm::Signed4,
                    WeightForm::Signed4Scales,
                    DataType::Int4,
                    blocks,
                    count / 2,
                )
            }
        };
        let mut scale_shape = vec![1; shape.len()];
        for (to, from) in scale_shape.iter_mut().zip([rows, blocks]) {
            *to = from;
        }
        Some((
            Part {
                weight: of(data),
                dtype: DType::UInt8,
                kind,
                shape: shape.to_vec(),
                bytes,
            },
            Part {
                weight: of(scales),
                dtype: DType::Float16,
                kind: DataType::Float16,
                shape: scale_shape,
                bytes: 2 * rows * blocks,
            },
        ))
    }
}
