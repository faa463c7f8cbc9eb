//! What does the CoreML execution provider claim in its ML Program format? One row for each operator that it has a
//! builder for, with the upstream file that says so.
//!
//! Read for ONNX Runtime [`VERSION`]. Three sources, in this order of trust: the library of that release for macOS
//! (the operators that it registers, the versions and types that it compares with, and the words of each refusal, which
//! name file and function), the builders' text in the public repository, and its list of ML Program operators. Where a
//! published text of a builder was older than the release, the release's words won.

use super::view::{BOOL, F16, F32, I32, I64, Shape, View, operator};
use crate::onnx::proto::{AttributeProto, DataType, NodeProto};

/// The release of ONNX Runtime whose rules these are.
pub const VERSION: &str = "1.32.0";

/// Where upstream's builders lie.
pub const SOURCE: &str = "onnxruntime/core/providers/coreml/builders/impl";

/// Newest version of an operator that any builder takes (`BaseOpBuilder::GetMaxSupportedOpSet`).
pub(super) const NEWEST: i64 = 28;

/// Highest rank of an input.
const RANK: usize = 5;

/// Longest side of a convolution's tensors (`CheckShapeForConvMemoryLimit`, `builders/helper.cc`).
const CONVOLUTION: i64 = 16384;

/// `BaseOpBuilder::IsInputDtypeSupport` for ML Programs.
const COMMON: &[i32] = &[F32, F16, I64];
const FLOATS: &[i32] = &[F32, F16];
const NUMBERS: &[i32] = &[F32, F16, I32, I64];
const ANY: &[i32] = &[F32, F16, I32, I64, BOOL];

/// What the builder of an operator asks for.
#[derive(Debug)]
pub struct Rule {
    /// The operator. The provider looks at its name only, not at its domain.
    pub operator: &'static str,
    /// Upstream's file, in [`SOURCE`].
    pub source: &'static str,
    /// Oldest opset whose form of the operator the builder takes.
    pub opset: i64,
    /// Which element types inputs may have, by the input's index.
    types: &'static [(usize, &'static [i32])],
    /// Inputs that must be constants if they are given, with their names.
    constants: &'static [(usize, &'static str)],
    /// What else must hold.
    form: Form,
    /// In words, for people.
    pub asks: &'static str,
}

type Form = fn(&NodeView<'_>) -> Result<(), String>;

const FIRST: &[(usize, &[i32])] = &[(0, COMMON)];
const FIRST_FLOAT: &[(usize, &[i32])] = &[(0, FLOATS)];

const fn rule(
    operator: &'static str,
    source: &'static str,
    opset: i64,
    form: Form,
    asks: &'static str,
) -> Rule {
    Rule {
        operator,
        source,
        opset,
        types: FIRST,
        constants: &[],
        form,
        asks,
    }
}

const fn typed(rule: Rule, types: &'static [(usize, &'static [i32])]) -> Rule {
    Rule { types, ..rule }
}

const fn constants(rule: Rule, constants: &'static [(usize, &'static str)]) -> Rule {
    Rule { constants, ..rule }
}

/// Every operator with a builder for ML Programs. `LRN` and `Flatten` have builders for the older format only.
#[rustfmt::skip]
pub const RULES: &[Rule] = &[
    rule("Add", "binary_op_builder.cc", 7, nothing, "input 0 float32, float16 or int64"),
    typed(rule("And", "logical_op_builder.cc", 1, nothing, "both inputs bool"), &[(0, &[BOOL]), (1, &[BOOL])]),
    rule("ArgMax", "argmax_op_builder.cc", 1, arg_max, "select_last_index 0"),
    rule("AveragePool", "pool_op_builder.cc", 1, pool, "rank 4, 2-D kernel, no dilation, one output"),
    constants(rule("BatchNormalization", "batch_norm_op_builder.cc", 7, batch_normalization, "rank 4, inference form, constant scale, bias, mean, variance"),
        &[(1, "scale"), (2, "B"), (3, "mean"), (4, "var")]),
    typed(rule("Cast", "cast_op_builder.cc", 1, cast, "between float32, float16, int32, int64, bool"), &[(0, ANY)]),
    rule("Ceil", "unary_op_builder.cc", 1, nothing, "input 0 float32, float16 or int64"),
    constants(rule("Clip", "clip_op_builder.cc", 1, clip, "constant bounds of float32 or float16"), &[(1, "min"), (2, "max")]),
    rule("Concat", "concat_op_builder.cc", 1, concat, "two inputs or more"),
    constants(rule("Conv", "conv_op_builder.cc", 1, conv, "1-D or 2-D, constant bias, kernel_shape that of the weight, no dimension over 16384"), &[(2, "bias")]),
    constants(rule("ConvTranspose", "convtranspose_op_builder.cc", 1, conv_transpose, "constant weight and bias, explicit equal pads, no output_shape or output_padding"),
        &[(1, "weight"), (2, "bias")]),
    rule("Cos", "unary_op_builder.cc", 1, nothing, "input 0 float32, float16 or int64"),
    rule("DepthToSpace", "depthtospace_op_builder.cc", 1, depth_to_space, "mode DCR, or CRD with a static shape"),
    rule("Div", "binary_op_builder.cc", 7, nothing, "input 0 float32, float16 or int64"),
    rule("Elu", "activation_op_builder.cc", 6, nothing, "input 0 float32, float16 or int64"),
    rule("Erf", "unary_op_builder.cc", 1, nothing, "input 0 float32, float16 or int64"),
    rule("Exp", "unary_op_builder.cc", 1, nothing, "input 0 float32, float16 or int64"),
    typed(constants(rule("FusedConv", "conv_op_builder.cc", 1, fused_conv, "as Conv; no residual input, float32 or float16"), &[(2, "bias")]), FIRST_FLOAT),
    typed(rule("Gather", "gather_op_builder.cc", 1, gather, "output rank up to 5, int32 or int64 indices; scalar indices: static data of rank up to 4"),
        &[(0, &[F32, F16, I64]), (1, &[I32, I64])]),
    typed(constants(rule("GatherND", "gather_nd_op_builder.cc", 1, gather_nd, "constant indices, batch_dims 0"), &[(1, "indices")]),
        &[(0, ANY), (1, &[I32, I64])]),
    rule("Gelu", "activation_op_builder.cc", 6, nothing, "input 0 float32, float16 or int64"),
    constants(rule("Gemm", "gemm_op_builder.cc", 1, gemm, "constant B and C, transA 0, alpha = beta = 1, C of shape {}, {1}, {N} or {1, N}"),
        &[(1, "B"), (2, "C")]),
    rule("GlobalAveragePool", "pool_op_builder.cc", 1, global_pool, "rank 4"),
    rule("GlobalMaxPool", "pool_op_builder.cc", 1, global_pool, "rank 4"),
    rule("GridSample", "gridsample_op_builder.cc", 1, grid_sample, "rank 4, mode bilinear"),
    typed(constants(rule("GroupNormalization", "normalization_op_builder.cc", 1, normalization, "constant scale and bias of the input's type, stash_type 1"),
        &[(1, "scale"), (2, "bias")]), FIRST_FLOAT),
    typed(rule("HardSigmoid", "activation_op_builder.cc", 6, nothing, "float32 or float16"), FIRST_FLOAT),
    rule("Identity", "identity_op_builder.cc", 1, nothing, "input 0 float32, float16 or int64"),
    typed(constants(rule("InstanceNormalization", "normalization_op_builder.cc", 1, instance_normalization, "constant scale and bias of the input's type"),
        &[(1, "scale"), (2, "bias")]), FIRST_FLOAT),
    typed(constants(rule("LayerNormalization", "normalization_op_builder.cc", 1, normalization, "one output, constant scale and bias of the input's type, stash_type 1"),
        &[(1, "scale"), (2, "bias")]), FIRST_FLOAT),
    rule("LeakyRelu", "activation_op_builder.cc", 6, nothing, "input 0 float32, float16 or int64"),
    rule("MatMul", "gemm_op_builder.cc", 1, matmul, "no 1-D input beside one of higher rank"),
    rule("Max", "binary_op_builder.cc", 8, nothing, "input 0 float32, float16 or int64"),
    rule("MaxPool", "pool_op_builder.cc", 1, pool, "rank 4, 2-D kernel, no dilation, one output, storage_order 0"),
    rule("Mul", "binary_op_builder.cc", 7, nothing, "input 0 float32, float16 or int64"),
    constants(rule("PRelu", "activation_op_builder.cc", 6, prelu, "rank 3 or 4, constant slope of shape [C,1,1] or one element"), &[(1, "slope")]),
    typed(constants(rule("Pad", "pad_op_builder.cc", 11, pad, "mode constant or reflect, constant pads, value and axes, no negative pad"),
        &[(1, "pads"), (2, "constant_value"), (3, "axes")]), FIRST_FLOAT),
    rule("Pow", "binary_op_builder.cc", 7, pow, "both inputs of one type"),
    rule("QuickGelu", "quick_gelu_op_builder.cc", 1, nothing, "input 0 float32, float16 or int64"),
    rule("Reciprocal", "unary_op_builder.cc", 1, nothing, "input 0 float32, float16 or int64; computes 1 / (x + 1e-4)"),
    constants(rule("ReduceMax", "reduction_op_builder.cc", 1, nothing, "constant axes"), &[(1, "axes")]),
    constants(rule("ReduceMean", "reduction_op_builder.cc", 1, nothing, "constant axes"), &[(1, "axes")]),
    constants(rule("ReduceMin", "reduction_op_builder.cc", 1, nothing, "constant axes"), &[(1, "axes")]),
    constants(rule("ReduceProd", "reduction_op_builder.cc", 1, nothing, "constant axes"), &[(1, "axes")]),
    constants(rule("ReduceSum", "reduction_op_builder.cc", 1, nothing, "constant axes"), &[(1, "axes")]),
    rule("Relu", "activation_op_builder.cc", 6, nothing, "input 0 float32, float16 or int64"),
    constants(rule("Reshape", "reshape_op_builder.cc", 5, reshape, "constant shape of rank up to 5, no 0 with allowzero"), &[(1, "shape")]),
    constants(rule("Resize", "resize_op_builder.cc", 11, resize, "rank 3 to 5, mode nearest or linear, constant scales or sizes, last two axes only"),
        &[(2, "scales"), (3, "sizes")]),
    rule("Round", "unary_op_builder.cc", 1, nothing, "input 0 float32, float16 or int64"),
    typed(rule("Shape", "shape_op_builder.cc", 1, nothing, "float32, float16, int32 or int64"), &[(0, NUMBERS)]),
    rule("Sigmoid", "activation_op_builder.cc", 6, nothing, "input 0 float32, float16 or int64"),
    rule("Sin", "unary_op_builder.cc", 1, nothing, "input 0 float32, float16 or int64"),
    typed(constants(rule("Slice", "slice_op_builder.cc", 10, slice, "static input, constant bounds, axes and steps, no empty range"),
        &[(1, "starts"), (2, "ends"), (3, "axes"), (4, "steps")]), &[(0, &[F32, F16, I64])]),
    rule("Softmax", "softmax_op_builder.cc", 1, softmax, "static input before opset 13"),
    rule("Softplus", "activation_op_builder.cc", 6, nothing, "input 0 float32, float16 or int64"),
    constants(rule("Split", "split_op_builder.cc", 1, split, "constant sizes, at least two outputs, static axis"), &[(1, "split")]),
    rule("Sqrt", "unary_op_builder.cc", 1, nothing, "input 0 float32, float16 or int64"),
    constants(rule("Squeeze", "squeeze_op_builder.cc", 1, nothing, "constant axes"), &[(1, "axes")]),
    rule("Sub", "binary_op_builder.cc", 7, nothing, "input 0 float32, float16 or int64"),
    rule("Tanh", "activation_op_builder.cc", 6, nothing, "input 0 float32, float16 or int64"),
    typed(rule("Tile", "tile_op_builder.cc", 1, tile, "positive repeats, one for each axis"), &[(0, ANY)]),
    rule("Transpose", "transpose_op_builder.cc", 1, transpose, "perm of the input's rank"),
    constants(rule("Unsqueeze", "squeeze_op_builder.cc", 1, unsqueeze, "constant axes, output rank up to 5"), &[(1, "axes")]),
    typed(rule("Where", "where_op_builder.cc", 1, choose, "condition bool, both values float32 or both float16"),
        &[(0, &[BOOL]), (1, FLOATS), (2, FLOATS)]),
];

/// Operators that are not worth a partition of their own (`IOpBuilder::IsTrivial`): `CoreMLExecutionProvider::GetCapability`
/// drops a group of nothing else. As the release's library for macOS has them.
pub(super) const TRIVIAL: &[&str] = &[
    "Cast",
    "Ceil",
    "Flatten",
    "Identity",
    "Reshape",
    "Squeeze",
    "Tile",
    "Transpose",
    "Unsqueeze",
];

/// Why the provider would leave a node to the CPU. `fixed`: whether every input must have a static shape
/// (`RequireStaticInputShapes`).
pub(super) fn refuses(view: &View<'_>, node: &NodeProto, fixed: bool) -> Option<String> {
    claims(&NodeView { view, node }, fixed).err()
}

fn claims(node: &NodeView<'_>, fixed: bool) -> Result<(), String> {
    let operator = operator(node.node);
    let domain = node.node.domain.as_deref().unwrap_or_default();
    if node.view.functions.contains(&(domain, operator)) {
        return Err(
            "is a function of the model: ONNX Runtime replaces it by its body first, which is not checked"
                .into(),
        );
    }
    let Some(rule) = RULES.iter().find(|rule| rule.operator == operator) else {
        return Err("no builder for ML Programs".into());
    };
    // Upstream compares the version since which an operator is what it is (`HasSupportedOpSet`). Of the others that is the
    // opset at which their builders begin.
    let since = match operator {
        _ if !(domain.is_empty() || domain == "ai.onnx") => 1,
        "Softplus" if node.view.opset < 22 => 1,
        _other => node.view.opset,
    };
    if !(rule.opset..=NEWEST).contains(&since) {
        return Err(format!(
            "is of version {since}, expected {} to {NEWEST}",
            rule.opset
        ));
    }
    node.inputs_allowed(fixed)?;
    for (index, allowed) in rule.types {
        let Some(name) = node.input(*index) else { continue };
        match node.view.dtype(name) {
            Some(found) if allowed.contains(&found) => {}
            Some(found) => {
                let allowed: Vec<String> = allowed.iter().map(|dtype| dtype_name(*dtype)).collect();
                let (found, allowed) = (dtype_name(found), allowed.join(", "));
                return Err(format!("input {index} is {found}, expected {allowed}"));
            }
            None => return Err(format!("the type of input {index} is unknown")),
        }
    }
    for (index, role) in rule.constants {
        if node.input(*index).is_some_and(|name| !node.view.constant(name)) {
            return Err(format!("input {index} ({role}) is not a constant"));
        }
    }
    node.axis_exists()?;
    (rule.form)(node)
}

fn dtype_name(dtype: i32) -> String {
    let Ok(known) = DataType::try_from(dtype) else {
        return format!("type {dtype}");
    };
    match known {
        DataType::Undefined => "undefined",
        DataType::Float => "float32",
        DataType::Uint8 => "uint8",
        DataType::Int8 => "int8",
        DataType::Int32 => "int32",
        DataType::Int64 => "int64",
        DataType::Bool => "bool",
        DataType::Float16 => "float16",
        DataType::Bfloat16 => "bfloat16",
    }
    .to_owned()
}

/// A node in its graph.
struct NodeView<'v> {
    view: &'v View<'v>,
    node: &'v NodeProto,
}

impl NodeView<'_> {
    /// The name of an input, if it is given.
    fn input(&self, index: usize) -> Option<&str> {
        self.node
            .input
            .get(index)
            .map(String::as_str)
            .filter(|name| !name.is_empty())
    }

    fn shape(&self, index: usize) -> Result<&Shape, String> {
        let name = self
            .input(index)
            .ok_or_else(|| format!("input {index} is missing"))?;
        self.view.shape(name).ok_or_else(|| unknown_shape(name))
    }

    fn ints(&self, index: usize) -> Option<Result<&[i64], String>> {
        let name = self.input(index)?;
        let found = self.view.ints(name);
        Some(found.ok_or_else(|| format!("the elements of input {index} are not in the file")))
    }

    fn attribute(&self, name: &str) -> Option<&AttributeProto> {
        self.node
            .attribute
            .iter()
            .find(|one| one.name.as_deref() == Some(name))
    }

    fn int(&self, name: &str, default: i64) -> i64 {
        self.attribute(name).and_then(|one| one.i).unwrap_or(default)
    }

    fn float(&self, name: &str, default: f32) -> f32 {
        self.attribute(name).and_then(|one| one.f).unwrap_or(default)
    }

    fn text(&self, name: &str, default: &str) -> String {
        let found = self.attribute(name).and_then(|one| one.s.as_deref());
        found.map_or_else(
            || default.to_owned(),
            |text| String::from_utf8_lossy(text).into_owned(),
        )
    }

    /// `IsInputSupported`, `builders/helper.cc`.
    fn inputs_allowed(&self, fixed: bool) -> Result<(), String> {
        for (index, name) in self.node.input.iter().enumerate() {
            if name.is_empty() {
                continue;
            }
            let shape = self.view.shape(name).ok_or_else(|| unknown_shape(name))?;
            if fixed && shape.contains(&None) {
                return Err(format!(
                    "input {index} has the shape {}, expected fixed lengths",
                    show(shape)
                ));
            }
            // The second input of Resize is ignored and often empty.
            if shape.contains(&Some(0)) && !(operator(self.node) == "Resize" && index == 1) {
                return Err(format!(
                    "input {index} has the shape {}, expected no length of 0",
                    show(shape)
                ));
            }
            if shape.len() > RANK {
                return Err(format!(
                    "input {index} has rank {}, expected up to {RANK}",
                    shape.len()
                ));
            }
        }
        Ok(())
    }

    /// Whether the attribute `axis`, if there is one, is an axis of the first input: ONNX Runtime refuses others
    /// when it loads the graph, or when it computes the node.
    fn axis_exists(&self) -> Result<(), String> {
        // It may cut behind the last axis.
        if operator(self.node) == "Flatten" {
            return Ok(());
        }
        match self.attribute("axis").and_then(|one| one.i) {
            Some(axis) => from_front(axis, self.shape(0)?.len()).map(|_| ()),
            None => Ok(()),
        }
    }

    /// The axis of an attribute, counted from the front.
    fn axis(&self, name: &str, default: i64, rank: usize) -> Result<usize, String> {
        from_front(self.int(name, default), rank)
    }
}

fn from_front(axis: i64, rank: usize) -> Result<usize, String> {
    let length = i64::try_from(rank).unwrap_or(i64::MAX);
    let found = if axis < 0 { axis + length } else { axis };
    usize::try_from(found)
        .ok()
        .filter(|found| *found < rank)
        .ok_or_else(|| format!("axis {axis} is not one of rank {rank}"))
}

fn unknown_shape(name: &str) -> String {
    format!("the shape of `{name}` is unknown")
}

fn show(shape: &Shape) -> String {
    let dims: Vec<String> = shape
        .iter()
        .map(|dim| dim.map_or_else(|| "?".to_owned(), |length| length.to_string()))
        .collect();
    format!("[{}]", dims.join(","))
}

fn ensure(holds: bool, problem: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(problem()) }
}

fn nothing(_: &NodeView<'_>) -> Result<(), String> {
    Ok(())
}

fn arg_max(node: &NodeView<'_>) -> Result<(), String> {
    ensure(node.int("select_last_index", 0) == 0, || {
        "select_last_index is not 0".into()
    })
}

fn global_pool(node: &NodeView<'_>) -> Result<(), String> {
    let rank = node.shape(0)?.len();
    ensure(rank == 4, || format!("input 0 has rank {rank}, expected 4"))
}

fn pool(node: &NodeView<'_>) -> Result<(), String> {
    global_pool(node)?;
    ensure(node.int("storage_order", 0) == 0, || {
        "storage_order is not 0".into()
    })?;
    if let Some(kernel) = node.attribute("kernel_shape") {
        let found = kernel.ints.len();
        ensure(found == 2, || {
            format!("the kernel has {found} dimensions, expected 2")
        })?;
    }
    if let Some(dilations) = node.attribute("dilations") {
        ensure(dilations.ints.iter().all(|one| *one == 1), || "is dilated".into())?;
    }
    one_output(node)
}

fn one_output(node: &NodeView<'_>) -> Result<(), String> {
    let found = node.node.output.len();
    ensure(found == 1, || format!("has {found} outputs, expected 1"))
}

fn batch_normalization(node: &NodeView<'_>) -> Result<(), String> {
    one_output(node)?;
    ensure(node.int("spatial", 1) == 1, || "spatial is not 1".into())?;
    global_pool(node)
}

fn cast(node: &NodeView<'_>) -> Result<(), String> {
    let to = i32::try_from(node.int("to", 0)).unwrap_or(0);
    ensure(ANY.contains(&to), || format!("casts to {}", dtype_name(to)))
}

fn clip(node: &NodeView<'_>) -> Result<(), String> {
    for index in [1, 2] {
        if let Some(name) = node.input(index) {
            let found = node.view.dtype(name).unwrap_or(0);
            ensure(FLOATS.contains(&found), || {
                format!("input {index} is {}", dtype_name(found))
            })?;
        }
    }
    Ok(())
}

fn concat(node: &NodeView<'_>) -> Result<(), String> {
    let found = node.node.input.len();
    ensure(found >= 2, || format!("has {found} inputs, expected 2 or more"))
}

fn conv(node: &NodeView<'_>) -> Result<(), String> {
    let output = node.node.output.first().map(String::as_str).unwrap_or_default();
    let result = node.view.shape(output).ok_or_else(|| unknown_shape(output))?;
    let weight = node.shape(1)?;
    for (what, shape) in [
        ("input 0", node.shape(0)?),
        ("the weight", weight),
        ("the output", result),
    ] {
        ensure(
            shape.iter().flatten().all(|length| *length <= CONVOLUTION),
            || {
                format!(
                    "{what} has the shape {}, expected lengths up to {CONVOLUTION}",
                    show(shape)
                )
            },
        )?;
    }
    ensure(matches!(weight.len(), 3 | 4), || {
        format!("the weight has rank {}, expected 3 or 4", weight.len())
    })?;
    if let Some(kernel) = node.attribute("kernel_shape") {
        let found: Vec<Option<i64>> = kernel.ints.iter().copied().map(Some).collect();
        ensure(weight.get(2..) == Some(&found), || {
            format!(
                "kernel_shape is {}, the weight has the shape {}",
                show(&found),
                show(weight)
            )
        })?;
    }
    Ok(())
}

fn fused_conv(node: &NodeView<'_>) -> Result<(), String> {
    ensure(node.input(3).is_none(), || "has a residual input".into())?;
    let known = ["Relu", "Sigmoid", "Tanh", "LeakyRelu", "Clip", "HardSigmoid"];
    let found = node.text("activation", "");
    ensure(known.contains(&found.as_str()), || {
        format!("the activation is `{found}`")
    })?;
    conv(node)
}

fn conv_transpose(node: &NodeView<'_>) -> Result<(), String> {
    let padding = node.text("auto_pad", "NOTSET");
    ensure(!padding.starts_with("SAME"), || format!("auto_pad is {padding}"))?;
    if let Some(pads) = node.attribute("pads") {
        let equal = pads.ints.windows(2).all(|two| two.first() == two.last());
        ensure(equal, || "pads differ from each other".into())?;
    }
    ensure(node.attribute("output_shape").is_none(), || {
        "has output_shape".into()
    })?;
    let more = node.attribute("output_padding");
    ensure(
        more.is_none_or(|more| more.ints.iter().all(|one| *one == 0)),
        || "has output_padding".into(),
    )?;
    let weight = node.shape(1)?;
    node.shape(0)?;
    if let Some(kernel) = node.attribute("kernel_shape") {
        let found: Vec<Option<i64>> = kernel.ints.iter().copied().map(Some).collect();
        ensure(weight.get(2..) == Some(&found), || {
            "kernel_shape is not that of the weight".into()
        })?;
    }
    Ok(())
}

fn depth_to_space(node: &NodeView<'_>) -> Result<(), String> {
    let shape = node.shape(0)?;
    match node.text("mode", "DCR").as_str() {
        "DCR" => Ok(()),
        "CRD" => ensure(!shape.contains(&None), || {
            format!("mode CRD with the shape {}, expected fixed lengths", show(shape))
        }),
        other => Err(format!("the mode is {other}")),
    }
}

fn gather(node: &NodeView<'_>) -> Result<(), String> {
    let (data, indices) = (node.shape(0)?, node.shape(1)?);
    if indices.is_empty() {
        ensure(!data.contains(&None) && data.len() <= 4, || {
            format!(
                "scalar indices into {}, expected fixed lengths of rank up to 4",
                show(data)
            )
        })?;
    }
    let rank = (data.len() + indices.len()).saturating_sub(1);
    ensure(rank <= RANK, || {
        format!("the output has rank {rank}, expected up to {RANK}")
    })
}

fn gather_nd(node: &NodeView<'_>) -> Result<(), String> {
    ensure(node.int("batch_dims", 0) == 0, || "batch_dims is not 0".into())?;
    let (data, indices) = (node.shape(0)?, node.shape(1)?);
    let depth = indices.last().copied().flatten();
    let depth = depth
        .and_then(|depth| usize::try_from(depth).ok())
        .unwrap_or(usize::MAX);
    let indexed = data
        .get(..depth)
        .ok_or_else(|| format!("indices of shape {} into {}", show(indices), show(data)))?;
    ensure(!indexed.contains(&None), || {
        format!("indexes {}, expected fixed lengths", show(data))
    })
}

fn gemm(node: &NodeView<'_>) -> Result<(), String> {
    let (a, b) = (node.shape(0)?, node.shape(1)?);
    ensure(a.len() == 2 && b.len() == 2, || {
        format!("multiplies {} with {}, expected rank 2", show(a), show(b))
    })?;
    ensure(node.int("transA", 0) == 0, || "transA is not 0".into())?;
    for name in ["alpha", "beta"] {
        let found = node.float(name, 1.0);
        ensure(found == 1.0, || format!("{name} is {found}, expected 1"))?;
    }
    if node.input(2).is_some() {
        let c = node.shape(2)?;
        let n = b.get(usize::from(node.int("transB", 0) == 0)).copied().flatten();
        let fits = match c.as_slice() {
            [] | [Some(1)] => true,
            [one] | [Some(1), one] => *one == n && n.is_some(),
            _ => false,
        };
        ensure(fits, || {
            format!("C has the shape {}, expected [], [1], [N] or [1,N]", show(c))
        })?;
    }
    Ok(())
}

fn matmul(node: &NodeView<'_>) -> Result<(), String> {
    let (a, b) = (node.shape(0)?, node.shape(1)?);
    ensure((a.len() == 1) == (b.len() == 1), || {
        format!("multiplies {} with {}: one of them has rank 1", show(a), show(b))
    })
}

fn grid_sample(node: &NodeView<'_>) -> Result<(), String> {
    global_pool(node)?;
    let mode = node.text("mode", "linear");
    ensure(matches!(mode.as_str(), "linear" | "bilinear"), || {
        format!("the mode is {mode}")
    })
}

fn normalization(node: &NodeView<'_>) -> Result<(), String> {
    ensure(node.int("stash_type", 1) == 1, || "stash_type is not 1".into())?;
    instance_normalization(node)
}

fn instance_normalization(node: &NodeView<'_>) -> Result<(), String> {
    one_output(node)?;
    let dtype = |index| node.input(index).and_then(|name| node.view.dtype(name));
    for index in [1, 2] {
        if node.input(index).is_some() {
            ensure(dtype(index) == dtype(0), || {
                let names = [0, index].map(|index| dtype_name(dtype(index).unwrap_or(0)));
                format!(
                    "input {index} is {}, input 0 is {}: expected one type",
                    names[1], names[0]
                )
            })?;
        }
    }
    Ok(())
}

fn prelu(node: &NodeView<'_>) -> Result<(), String> {
    let (x, slope) = (node.shape(0)?, node.shape(1)?);
    ensure(matches!(x.len(), 3 | 4), || {
        format!("input 0 has rank {}, expected 3 or 4", x.len())
    })?;
    let channels = x.get(x.len() - 3).copied().flatten();
    let single = slope.iter().all(|length| *length == Some(1));
    let channel = matches!(slope.as_slice(), [_, Some(1), Some(1)]);
    ensure(
        channels.is_some() && (single || channel) && !(single && channels == Some(1)),
        || format!("a slope of shape {} for {}", show(slope), show(x)),
    )
}

fn pad(node: &NodeView<'_>) -> Result<(), String> {
    let shape = node.shape(0)?;
    ensure(!shape.is_empty(), || "input 0 is a scalar".into())?;
    let mode = node.text("mode", "constant");
    ensure(matches!(mode.as_str(), "constant" | "reflect"), || {
        format!("the mode is {mode}")
    })?;
    let pads = node.ints(1).ok_or_else(|| "has no pads".to_owned())??;
    ensure(pads.iter().all(|pad| *pad >= 0), || "a pad is negative".into())?;
    if mode == "reflect" {
        let rank = shape.len();
        let axes: Vec<usize> = match node.ints(3) {
            Some(axes) => axes?
                .iter()
                .map(|axis| from_front(*axis, rank))
                .collect::<Result<_, _>>()?,
            None => (0..rank).collect(),
        };
        for (place, axis) in axes.iter().enumerate() {
            for pad in [place, place + axes.len()].map(|place| pads.get(place).copied().unwrap_or(0)) {
                let length = shape.get(*axis).copied().flatten().unwrap_or(0);
                ensure(pad == 0 || (axis + 2 >= rank && pad < length), || {
                    format!("reflects {pad} elements at axis {axis} of {}", show(shape))
                })?;
            }
        }
    }
    Ok(())
}

fn pow(node: &NodeView<'_>) -> Result<(), String> {
    let dtype = |index| node.input(index).and_then(|name| node.view.dtype(name));
    ensure(dtype(0) == dtype(1), || {
        let names = [0, 1].map(|index| dtype_name(dtype(index).unwrap_or(0)));
        format!("raises {} to {}: expected one type", names[0], names[1])
    })
}

fn reshape(node: &NodeView<'_>) -> Result<(), String> {
    node.shape(0)?;
    let shape = node.ints(1).ok_or_else(|| "has no shape".to_owned())??;
    ensure(!shape.is_empty(), || "the new shape is empty".into())?;
    ensure(shape.len() <= RANK, || {
        format!("the new shape has rank {}, expected up to {RANK}", shape.len())
    })?;
    ensure(node.int("allowzero", 0) == 0 || !shape.contains(&0), || {
        "the new shape has a 0 with allowzero".into()
    })
}

fn resize(node: &NodeView<'_>) -> Result<(), String> {
    let shape = node.shape(0)?;
    let rank = shape.len();
    ensure((3..=5).contains(&rank), || {
        format!("input 0 has rank {rank}, expected 3 to 5")
    })?;
    ensure(node.int("antialias", 0) == 0, || "is antialiased".into())?;
    ensure(node.int("exclude_outside", 0) == 0, || {
        "exclude_outside is not 0".into()
    })?;
    let policy = node.text("keep_aspect_ratio_policy", "stretch");
    ensure(policy == "stretch", || {
        format!("keep_aspect_ratio_policy is {policy}")
    })?;
    let by_sizes = node.input(3).is_some();
    ensure(by_sizes || node.input(2).is_some(), || {
        "has neither scales nor sizes".into()
    })?;
    let mode = node.text("mode", "nearest");
    let places = node.text("coordinate_transformation_mode", "half_pixel");
    match mode.as_str() {
        "nearest" => {
            let rounding = node.text("nearest_mode", "round_prefer_floor");
            ensure(places == "asymmetric" && rounding == "floor", || {
                format!("mode nearest with {places} and {rounding}, expected asymmetric and floor")
            })?;
        }
        "linear" => ensure(
            matches!(places.as_str(), "half_pixel" | "align_corners") || (places == "asymmetric" && by_sizes),
            || format!("mode linear with {places}"),
        )?,
        other => return Err(format!("the mode is {other}")),
    }
    if let Some(sizes) = node.ints(3).filter(|_| by_sizes) {
        let sizes = sizes?;
        ensure(!shape.contains(&None), || {
            format!("sizes for {}, expected fixed lengths", show(shape))
        })?;
        let kept = sizes.iter().zip(shape).take(rank - 2);
        let all = kept.into_iter().all(|(size, length)| Some(*size) == *length);
        ensure(sizes.len() != rank || all, || {
            "changes another axis than the last two".into()
        })?;
    }
    Ok(())
}

fn slice(node: &NodeView<'_>) -> Result<(), String> {
    let shape = node.shape(0)?;
    ensure(!shape.contains(&None), || {
        format!("input 0 has the shape {}, expected fixed lengths", show(shape))
    })?;
    let starts = node.ints(1).ok_or_else(|| "has no starts".to_owned())??;
    let ends = node.ints(2).ok_or_else(|| "has no ends".to_owned())??;
    let every: Vec<i64> = (0..i64::try_from(starts.len()).unwrap_or(0)).collect();
    let axes = node.ints(3).transpose()?.unwrap_or(&every);
    let ones = vec![1; starts.len()];
    let steps = node.ints(4).transpose()?.unwrap_or(&ones);
    for (((start, end), axis), step) in starts.iter().zip(ends).zip(axes).zip(steps) {
        let axis = from_front(*axis, shape.len())?;
        let length = shape.get(axis).copied().flatten().unwrap_or(0);
        ensure(*step != 0, || "a step is 0".into())?;
        let place = |at: i64, low: i64, high: i64| {
            (if at < 0 { at.saturating_add(length) } else { at }).clamp(low, high)
        };
        let (first, last) = if *step > 0 {
            (place(*start, 0, length), place(*end, 0, length))
        } else {
            (place(*start, 0, length - 1), place(*end, -1, length - 1))
        };
        let empty = if *step > 0 { first >= last } else { first <= last };
        ensure(!empty, || {
            format!("the range {start}..{end} of axis {axis} ({length} long) is empty")
        })?;
    }
    Ok(())
}

fn softmax(node: &NodeView<'_>) -> Result<(), String> {
    let shape = node.shape(0)?;
    ensure(node.view.opset >= 13 || !shape.contains(&None), || {
        format!(
            "opset {} with the shape {}, expected fixed lengths",
            node.view.opset,
            show(shape)
        )
    })
}

fn split(node: &NodeView<'_>) -> Result<(), String> {
    let shape = node.shape(0)?;
    let axis = node.axis("axis", 0, shape.len())?;
    let length = shape.get(axis).copied().flatten();
    let attribute = node.attribute("split").map(|one| one.ints.as_slice());
    let sizes = match node.ints(1) {
        Some(sizes) => Some(sizes?),
        None => attribute,
    };
    let outputs = node.node.output.len();
    let count = sizes.map_or(outputs, <[i64]>::len);
    ensure(count >= 2, || format!("has {count} outputs, expected 2 or more"))?;
    let Some(length) = length else {
        return Err(format!(
            "splits axis {axis} of {}, expected a fixed length",
            show(shape)
        ));
    };
    match sizes {
        Some(sizes) => {
            let sum = sizes.iter().try_fold(0_i64, |sum, size| sum.checked_add(*size));
            ensure(sizes.iter().all(|size| *size > 0) && sum == Some(length), || {
                format!("splits {length} into {sizes:?}")
            })
        }
        None if node.view.opset >= 18 => {
            let found = node.attribute("num_outputs").and_then(|one| one.i);
            let fits = found.is_some_and(|found| usize::try_from(found) == Ok(outputs) && found <= length);
            ensure(fits, || {
                format!("num_outputs is {found:?} for {outputs} outputs of {length}")
            })
        }
        None => {
            let whole = i64::try_from(outputs).is_ok_and(|outputs| length % outputs == 0);
            ensure(whole, || format!("splits {length} into {outputs} equal parts"))
        }
    }
}

fn tile(node: &NodeView<'_>) -> Result<(), String> {
    let rank = node.shape(0)?.len();
    match node.ints(1) {
        Some(Ok(repeats)) => ensure(
            repeats.len() == rank && repeats.iter().all(|repeat| *repeat > 0),
            || format!("repeats {repeats:?} for rank {rank}"),
        ),
        // The ML Program form takes repeats that are computed.
        Some(Err(_)) | None => Ok(()),
    }
}

fn transpose(node: &NodeView<'_>) -> Result<(), String> {
    let rank = node.shape(0)?.len();
    match node.attribute("perm") {
        Some(perm) => ensure(perm.ints.len() == rank, || {
            format!("perm has {} axes for rank {rank}", perm.ints.len())
        }),
        None => Ok(()),
    }
}

fn unsqueeze(node: &NodeView<'_>) -> Result<(), String> {
    let rank = node.shape(0)?.len();
    let axes = match node.input(1) {
        Some(_) => {
            let length = node.shape(1)?.first().copied().flatten().unwrap_or(1);
            usize::try_from(length).unwrap_or(usize::MAX)
        }
        None => node.attribute("axes").map_or(0, |axes| axes.ints.len()),
    };
    let found = rank.saturating_add(axes);
    ensure(found <= RANK, || {
        format!("the output has rank {found}, expected up to {RANK}")
    })
}

fn choose(node: &NodeView<'_>) -> Result<(), String> {
    let dtype = |index| node.input(index).and_then(|name| node.view.dtype(name));
    ensure(dtype(1) == dtype(2), || {
        "the two values have different types".into()
    })
}
