//! What does a file say about its values? Types, shapes and constants, as ONNX Runtime knows them before it asks its
//! providers.

use crate::onnx::proto::{DataType, GraphProto, ModelProto, NodeProto, TensorProto, TypeProto};
use std::collections::BTreeMap;

/// Element types, as `TensorProto.DataType` numbers them.
pub(super) const F32: i32 = 1;
pub(super) const I32: i32 = 6;
pub(super) const I64: i32 = 7;
pub(super) const BOOL: i32 = 9;
pub(super) const F16: i32 = 10;

/// A shape as far as the file states it: `None` for a dimension that varies.
pub(super) type Shape = Vec<Option<i64>>;

/// What is known of a value.
#[derive(Debug, Default)]
struct Info {
    dtype: Option<i32>,
    shape: Option<Shape>,
    /// A constant initializer.
    constant: bool,
    /// Its elements, where they are integers inside the file.
    ints: Option<Vec<i64>>,
}

/// A graph with what is known of its values.
#[derive(Debug)]
pub(super) struct View<'m> {
    /// The nodes that compute; `Constant` nodes are constants, as in ONNX Runtime.
    pub(super) nodes: Vec<&'m NodeProto>,
    /// Version of the standard operators.
    pub(super) opset: i64,
    /// Domain and name of functions that the model brings itself.
    pub(super) functions: Vec<(&'m str, &'m str)>,
    values: BTreeMap<&'m str, Info>,
}

impl<'m> View<'m> {
    pub(super) fn new(model: &'m ModelProto, graph: &'m GraphProto) -> View<'m> {
        let mut values: BTreeMap<&str, Info> = BTreeMap::new();
        for info in graph.value_info.iter().chain(&graph.input).chain(&graph.output) {
            if let (Some(name), Some(found)) = (info.name.as_deref(), info.r#type.as_ref()) {
                let (dtype, shape) = tensor_type(found);
                let value = values.entry(name).or_default();
                value.dtype = dtype.or(value.dtype);
                value.shape = shape.or(value.shape.take());
            }
        }
        // Before IR version 4 every initializer was an input too, and none could be replaced.
        let overridable = model.ir_version.unwrap_or(0) >= 4;
        for tensor in &graph.initializer {
            let name = tensor.name.as_deref().unwrap_or_default();
            let input = graph
                .input
                .iter()
                .any(|input| input.name.as_deref() == Some(name));
            values.insert(name, constant(tensor, !(overridable && input)));
        }
        let mut nodes = Vec::with_capacity(graph.node.len());
        for node in &graph.node {
            if operator(node) != "Constant" || node.domain.as_deref().is_some_and(|domain| !domain.is_empty())
            {
                nodes.push(node);
                continue;
            }
            let Some(output) = node.output.first() else {
                continue;
            };
            let info = match node.attribute.first() {
                Some(attribute) if attribute.t.is_some() => attribute
                    .t
                    .as_ref()
                    .map_or_else(Info::default, |tensor| constant(tensor, true)),
                Some(attribute) if attribute.name.as_deref() == Some("value_int") => {
                    integers(attribute.i.into_iter().collect(), Vec::new())
                }
                Some(attribute) if attribute.name.as_deref() == Some("value_ints") => {
                    let length = i64::try_from(attribute.ints.len()).unwrap_or(i64::MAX);
                    integers(attribute.ints.clone(), vec![Some(length)])
                }
                Some(attribute) if attribute.name.as_deref() == Some("value_float") => Info {
                    dtype: Some(F32),
                    shape: Some(Vec::new()),
                    constant: true,
                    ints: None,
                },
                _ => Info {
                    constant: true,
                    ..Info::default()
                },
            };
            values.insert(output.as_str(), info);
        }
        let opset = model
            .opset_import
            .iter()
            .find(|set| set.domain.as_deref().unwrap_or_default().is_empty())
            .and_then(|set| set.version)
            .unwrap_or(1);
        let functions = model
            .functions
            .iter()
            .map(|one| {
                (
                    one.domain.as_deref().unwrap_or_default(),
                    one.name.as_deref().unwrap_or_default(),
                )
            })
            .collect();
        View {
            nodes,
            opset,
            functions,
            values,
        }
    }

    pub(super) fn dtype(&self, value: &str) -> Option<i32> {
        self.values.get(value)?.dtype
    }

    pub(super) fn shape(&self, value: &str) -> Option<&Shape> {
        self.values.get(value)?.shape.as_ref()
    }

    /// Whether the value is a constant initializer.
    pub(super) fn constant(&self, value: &str) -> bool {
        self.values.get(value).is_some_and(|info| info.constant)
    }

    /// The integers of a constant, where they are inside the file.
    pub(super) fn ints(&self, value: &str) -> Option<&[i64]> {
        self.values.get(value)?.ints.as_deref()
    }
}

/// A node's operator.
pub(super) fn operator(node: &NodeProto) -> &str {
    node.op_type.as_deref().unwrap_or_default()
}

fn tensor_type(found: &TypeProto) -> (Option<i32>, Option<Shape>) {
    let Some(tensor) = &found.tensor_type else {
        return (None, None);
    };
    let shape = tensor.shape.as_ref().map(|shape| {
        let length = |dim: &crate::onnx::proto::DimensionProto| dim.dim_value.filter(|length| *length >= 0);
        shape.dim.iter().map(length).collect()
    });
    (tensor.elem_type, shape)
}

fn integers(values: Vec<i64>, shape: Shape) -> Info {
    Info {
        dtype: Some(I64),
        shape: Some(shape),
        constant: true,
        ints: Some(values),
    }
}

fn constant(tensor: &TensorProto, fixed: bool) -> Info {
    Info {
        dtype: tensor.data_type,
        // A negative length is none.
        shape: Some(
            tensor
                .dims
                .iter()
                .map(|length| Some(*length).filter(|length| *length >= 0))
                .collect(),
        ),
        constant: fixed,
        ints: elements(tensor),
    }
}

/// The elements of a tensor of integers, if they are inside the file.
fn elements(tensor: &TensorProto) -> Option<Vec<i64>> {
    if !tensor.external_data.is_empty() {
        return None;
    }
    let raw = tensor.raw_data.as_deref().filter(|raw| !raw.is_empty());
    match (DataType::try_from(tensor.data_type?).ok()?, raw) {
        (DataType::Int64, None) => Some(tensor.int64_data.clone()),
        (DataType::Int32, None) => Some(tensor.int32_data.iter().copied().map(i64::from).collect()),
        (DataType::Int64, Some(raw)) => {
            let whole = raw.chunks_exact(8).filter_map(|bytes| bytes.try_into().ok());
            Some(whole.map(i64::from_le_bytes).collect())
        }
        (DataType::Int32, Some(raw)) => {
            let whole = raw.chunks_exact(4).filter_map(|bytes| bytes.try_into().ok());
            Some(whole.map(i32::from_le_bytes).map(i64::from).collect())
        }
        _other => None,
    }
}
