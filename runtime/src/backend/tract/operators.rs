//! How does tract come to run our kernels? Its loader calls a builder by a node's type; the nodes of target `cpu` become
//! operators that read their weights where the data file is mapped, so that tract never sees or copies them.

use crate::backend::fused::{self, Data, Input, Means, Outputs};
use crate::backend::isa;
use kernels::Isa;
use kernels::pool::Pool;
use memmap2::Mmap;
use models::fused::{Attributes, DOMAIN, Fused, Kind, Length};
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::path::{Component, Path};
use std::sync::Arc;
use tract_onnx::model::ParsingContext;
use tract_onnx::pb::{AttributeProto, ModelProto, NodeProto, TensorProto, tensor_proto};
use tract_onnx::prelude::f16;
use tract_onnx::tract_hir::internal::*;

/// Takes the fused nodes' external weights out of a model and registers how those nodes are built.
pub(super) fn prepare(
    framework: &mut tract_onnx::Onnx,
    proto: &mut ModelProto,
    path: &Path,
) -> TractResult<Weights> {
    for kind in Kind::ALL {
        framework.op_register.insert(kind.name(), build);
    }
    take_weights(proto, path.parent().unwrap_or(Path::new("")))
}

/// The inputs of each fused node, by its name.
pub(super) type Weights = HashMap<String, Vec<Slot>>;

/// Gives the fused nodes of a model their weights and threads.
pub(super) fn complete(
    model: &mut InferenceModel,
    mut weights: Weights,
    pool: &Arc<Pool>,
) -> TractResult<()> {
    let bytes = |slot: &Slot| matches!(slot, Slot::Weight(weight) if weight.datum == DatumType::U8);
    let words = weights.values().flatten().any(bytes);
    for node in model.nodes_mut() {
        let name = node.name.clone();
        let Some(expansion) = node.op_as_mut::<Box<dyn Expansion>>() else {
            continue;
        };
        let Some(fused) = expansion.as_any_mut().downcast_mut::<FusedNode>() else {
            continue;
        };
        fused.slots = weights.remove(&name).with_context(|| {
            format!("node `{name}` is not one of the graph's own, or has no name in the file")
        })?;
        fused.pool = Some(Arc::clone(pool));
        fused.words = words;
    }
    Ok(())
}

/// An input of a fused node.
#[derive(Debug, Clone)]
pub(super) enum Slot {
    /// The next value that the graph computes.
    Value,
    /// A weight.
    Weight(Arc<Weight>),
}

/// Elements in a mapped file, checked to be as many as the shape says and to be aligned.
#[derive(Debug)]
pub(super) struct Weight {
    map: Arc<Mmap>,
    start: usize,
    end: usize,
    datum: DatumType,
    shape: Vec<usize>,
}

impl Weight {
    fn open(tensor: &TensorProto, directory: &Path, maps: &mut Maps) -> TractResult<Weight> {
        let entry = |key: &str| {
            let found = tensor.external_data.iter().find(|entry| entry.key == key);
            found.map(|entry| entry.value.as_str())
        };
        let location = entry("location").context("has no location")?;
        let number = |key: &str| entry(key).map(str::parse::<usize>).transpose();
        let start = number("offset")
            .context("has no whole number as offset")?
            .unwrap_or(0);
        let length = number("length").context("has no whole number as length")?;
        let map = map(location, directory, maps)?;
        let end = match length {
            Some(length) => start.checked_add(length),
            None => Some(map.len()),
        };
        let end = end.filter(|end| start <= *end && *end <= map.len());
        let end = end.with_context(|| {
            let length = length.map_or_else(|| "the rest".to_owned(), |length| length.to_string());
            format!(
                "wants {length} of {location} from byte {start} on, which has {}",
                map.len()
            )
        })?;
        let datum = tensor_proto::DataType::try_from(tensor.data_type)
            .map_err(|error| format_err!("has an unknown type: {error}"))
            .and_then(DatumType::try_from)?;
        let shape: Vec<usize> = tensor
            .dims
            .iter()
            .map(|length| usize::try_from(*length))
            .collect::<Result<_, _>>()
            .with_context(|| format!("has shape {:?}", tensor.dims))?;
        let weight = Weight {
            map,
            start,
            end,
            datum,
            shape,
        };
        let elements = weight
            .shape
            .iter()
            .try_fold(datum.size_of(), |size, length| size.checked_mul(*length));
        ensure!(
            elements == Some(end - start),
            "has shape {:?} of {datum:?}, and {} bytes",
            weight.shape,
            end - start
        );
        weight.data()?;
        Ok(weight)
    }

    fn data(&self) -> TractResult<Data<'_>> {
        let bytes = self.map.get(self.start..self.end).unwrap_or(&[]);
        let misplaced = |_| format_err!("starts at byte {}, which is not aligned", self.start);
        Ok(match self.datum {
            DatumType::F32 => Data::F32(bytemuck::try_cast_slice(bytes).map_err(misplaced)?),
            DatumType::F16 => Data::F16(bytemuck::try_cast_slice(bytes).map_err(misplaced)?),
            DatumType::I64 => Data::I64(bytemuck::try_cast_slice(bytes).map_err(misplaced)?),
            DatumType::U8 => Data::U8(bytes),
            other => bail!("is {other:?}, which no kernel takes"),
        })
    }
}

/// Data files, each mapped once.
type Maps = HashMap<String, Arc<Mmap>>;

fn map(location: &str, directory: &Path, maps: &mut Maps) -> TractResult<Arc<Mmap>> {
    if let Some(map) = maps.get(location) {
        return Ok(Arc::clone(map));
    }
    let inside = Path::new(location)
        .components()
        .all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
    ensure!(
        inside,
        "lies in {location:?}, which is not inside the model's directory"
    );
    let path = directory.join(location);
    let open = || {
        let file = models::regular::open(&path)?;
        // SAFETY: as for every mapped model: another process that shortens the file meanwhile is the user's to avoid.
        #[expect(unsafe_code, reason = "mapping a file")]
        unsafe {
            Mmap::map(&file)
        }
    };
    let map = Arc::new(open().with_context(|| format!("opening {}", path.display()))?);
    maps.insert(location.to_owned(), Arc::clone(&map));
    Ok(map)
}

/// Removes external initializers from the inputs of fused nodes, and from the graph where nobody else reads them.
fn take_weights(proto: &mut ModelProto, directory: &Path) -> TractResult<Weights> {
    let Some(graph) = &mut proto.graph else {
        return Ok(Weights::new());
    };
    let external = |tensor: &&TensorProto| !tensor.external_data.is_empty();
    let initializers: HashMap<&str, &TensorProto> = graph
        .initializer
        .iter()
        .filter(external)
        .map(|tensor| (tensor.name.as_str(), tensor))
        .collect();
    let (mut maps, mut opened) = (Maps::new(), HashMap::new());
    let mut weights = Weights::new();
    for node in graph.node.iter_mut().filter(|node| node.domain == DOMAIN) {
        let mut slots = Vec::with_capacity(node.input.len());
        let mut values = Vec::new();
        for name in std::mem::take(&mut node.input) {
            let Some(tensor) = initializers.get(name.as_str()) else {
                values.push(name);
                slots.push(Slot::Value);
                continue;
            };
            let weight = match opened.get(&name) {
                Some(weight) => Arc::clone(weight),
                None => {
                    let weight = Weight::open(tensor, directory, &mut maps);
                    Arc::new(weight.with_context(|| format!("weight `{name}`"))?)
                }
            };
            opened.insert(name, Arc::clone(&weight));
            slots.push(Slot::Weight(weight));
        }
        node.input = values;
        let twice = weights.insert(node.name.clone(), slots);
        ensure!(twice.is_none(), "two nodes have the name `{}`", node.name);
    }
    let read: HashSet<String> = graph.node.iter().flat_map(|node| node.input.clone()).collect();
    let outputs: HashSet<String> = graph.output.iter().map(|output| output.name.clone()).collect();
    graph.initializer.retain(|tensor| {
        !opened.contains_key(&tensor.name) || read.contains(&tensor.name) || outputs.contains(&tensor.name)
    });
    Ok(weights)
}

/// The attributes of a node.
struct OfNode<'a>(&'a NodeProto);

impl OfNode<'_> {
    fn find(&self, name: &str) -> Option<&AttributeProto> {
        self.0.attribute.iter().find(|attribute| attribute.name == name)
    }
}

impl Attributes for OfNode<'_> {
    fn int(&self, name: &str) -> Option<i64> {
        self.find(name).map(|attribute| attribute.i)
    }

    fn float(&self, name: &str) -> Option<f32> {
        self.find(name).map(|attribute| attribute.f)
    }
}

fn build(_: &ParsingContext<'_>, node: &NodeProto) -> TractResult<(Box<dyn InferenceOp>, Vec<String>)> {
    ensure!(
        node.domain == DOMAIN,
        "there is no operator {} in the domain `{}`",
        node.op_type,
        node.domain
    );
    let kind = Kind::ALL.into_iter().find(|kind| kind.name() == node.op_type);
    let kind = kind.context("no fused operator")?;
    let fused = Fused::read(kind, &OfNode(node)).map_err(TractError::msg)?;
    let fused = FusedNode {
        fused,
        slots: Vec::new(),
        pool: None,
        words: false,
        isa: isa::set()?,
    };
    Ok((expand(fused), Vec::new()))
}

/// A dimension as tract has it.
#[derive(Debug, Clone)]
struct Side(TDim);

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Length for Side {
    fn number(number: u64) -> Side {
        Side(number.to_dim())
    }

    fn known(&self) -> Option<u64> {
        self.0.to_i64().ok()?.try_into().ok()
    }

    fn quotient(&self, divisor: u64) -> Option<Side> {
        Some(Side(self.0.clone().divceil(usize::try_from(divisor).ok()?)))
    }

    fn sum(&self, other: &Side) -> Option<Side> {
        Some(Side(self.0.clone() + &other.0))
    }
}

/// A fused operator in tract's graph.
#[derive(Debug, Clone)]
struct FusedNode {
    fused: Fused,
    /// The inputs of the node as it was written.
    slots: Vec<Slot>,
    pool: Option<Arc<Pool>>,
    /// Whether the graph has weights in bytes or less.
    words: bool,
    isa: Isa,
}

impl PartialEq for FusedNode {
    fn eq(&self, other: &Self) -> bool {
        let same = |(a, b): (&Slot, &Slot)| match (a, b) {
            (Slot::Value, Slot::Value) => true,
            (Slot::Weight(a), Slot::Weight(b)) => Arc::ptr_eq(a, b),
            _ => false,
        };
        self.fused == other.fused
            && self.slots.len() == other.slots.len()
            && self.slots.iter().zip(&other.slots).all(same)
    }
}

impl Eq for FusedNode {}

impl FusedNode {
    /// The shapes of the inputs as the node was written, given those of the values.
    fn shapes(&self, values: &[&TypedFact]) -> TractResult<Vec<Vec<Side>>> {
        let mut values = values.iter();
        let shape = |slot: &Slot| match slot {
            Slot::Value => {
                let fact = values.next().context("has too few inputs")?;
                Ok(fact.shape.iter().cloned().map(Side).collect())
            }
            Slot::Weight(weight) => Ok(weight.shape.iter().map(|length| Side(length.to_dim())).collect()),
        };
        self.slots.iter().map(shape).collect()
    }
}

impl Expansion for FusedNode {
    fn name(&self) -> StaticName {
        self.fused.name().into()
    }

    fn nboutputs(&self) -> TractResult<usize> {
        Ok(self.fused.kind().outputs())
    }

    fn rules<'r, 'p: 'r, 's: 'r>(
        &'s self,
        solver: &mut Solver<'r>,
        inputs: &'p [TensorProxy],
        outputs: &'p [TensorProxy],
    ) -> InferenceResult {
        for output in outputs {
            solver.equals(&output.datum_type, DatumType::F32)?;
        }
        let (Some(x), [first, present @ ..]) = (inputs.first(), outputs) else {
            bail!("{} has no inputs or no outputs", self.fused.name());
        };
        match self.fused.kind() {
            Kind::Embedding => solver.equals(x.rank.bex() + 1, &first.rank)?,
            _ => solver.equals(&x.rank, &first.rank)?,
        }
        for output in present {
            solver.equals(&output.rank, 4)?;
        }
        Ok(())
    }

    fn wire(&self, prefix: &str, model: &mut TypedModel, inputs: &[OutletId]) -> TractResult<TVec<OutletId>> {
        model.wire_node(prefix, self.clone(), inputs)
    }
}

impl Op for FusedNode {
    fn name(&self) -> StaticName {
        self.fused.name().into()
    }

    op_as_typed_op!();
}

impl TypedOp for FusedNode {
    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        let shapes = self.fused.output_shapes(&self.shapes(inputs)?);
        let fact = |shape: Vec<Side>| f32::fact(shape.into_iter().map(|side| side.0));
        Ok(shapes.map_err(TractError::msg)?.into_iter().map(fact).collect())
    }

    as_op!();
}

impl EvalOp for FusedNode {
    op_out_of_plan!();

    fn eval(&self, _: &EvalContext, values: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let pool = self.pool.as_ref().context("has no threads")?;
        let mut rest = values.iter();
        let mut inputs = Vec::with_capacity(self.slots.len());
        for slot in &self.slots {
            inputs.push(match slot {
                Slot::Value => value(rest.next().context("has too few inputs")?)?,
                Slot::Weight(weight) => Input {
                    shape: weight.shape.clone(),
                    data: weight.data()?,
                },
            });
        }
        let mut outputs = OfCall(Vec::new());
        let means = Means {
            isa: self.isa,
            pool: &**pool,
            words: self.words,
        };
        fused::run(&self.fused, means, &inputs, &mut outputs).map_err(TractError::msg)?;
        Ok(outputs.0.into_iter().map(Tensor::into_tvalue).collect())
    }
}

/// A tensor as kernels take it.
fn value(value: &TValue) -> TractResult<Input<'_>> {
    let plain = value.try_as_plain_ram()?;
    let data = match value.datum_type() {
        DatumType::F32 => Data::F32(plain.as_slice()?),
        DatumType::F16 => Data::F16(bytemuck::cast_slice(plain.as_slice::<f16>()?)),
        DatumType::U8 => Data::U8(plain.as_slice()?),
        DatumType::I64 => Data::I64(plain.as_slice()?),
        other => bail!("an input is {other:?}, which no kernel takes"),
    };
    Ok(Input {
        shape: value.shape().to_vec(),
        data,
    })
}

/// The outputs of a call.
struct OfCall(Vec<Tensor>);

impl Outputs for OfCall {
    fn make(&mut self, shapes: &[&[usize]]) -> Result<Vec<&mut [f32]>, String> {
        let words = |error: TractError| error.to_string();
        for shape in shapes {
            // SAFETY: a kernel writes all of its outputs before anybody reads them.
            #[expect(unsafe_code, reason = "no zeros where a kernel writes at once")]
            let tensor = unsafe { Tensor::uninitialized::<f32>(shape) };
            self.0.push(tensor.map_err(words)?);
        }
        let mut slices = Vec::with_capacity(shapes.len());
        for tensor in &mut self.0 {
            // SAFETY: the tensor was made with this type.
            #[expect(unsafe_code, reason = "the type is known")]
            slices.push(unsafe { tensor.as_slice_mut_unchecked::<f32>() });
        }
        Ok(slices)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tract_onnx::pb::{
        GraphProto, OperatorSetIdProto, StringStringEntryProto, TypeProto, ValueInfoProto,
        tensor_shape_proto, type_proto,
    };

    /// `y = x W^T` for `x` `[2, 3]` and `W` `[2, 3]`, whose 16 panel columns lie in `weights.data`.
    fn model(bits: i64) -> ModelProto {
        let int = |name: &str, i: i64| AttributeProto {
            name: name.to_owned(),
            i,
            ..AttributeProto::default()
        };
        let zeros = ["norm", "bias", "gelu", "residual"].map(|name| int(name, 0));
        let sizes = [int("inputs", 3), int("outputs", 2), int("bits", bits)];
        let epsilon = AttributeProto {
            name: "epsilon".to_owned(),
            ..AttributeProto::default()
        };
        let node = NodeProto {
            name: "product".to_owned(),
            op_type: "Linear".to_owned(),
            domain: DOMAIN.to_owned(),
            input: vec!["x".to_owned(), "w".to_owned()],
            output: vec!["y".to_owned()],
            attribute: zeros.into_iter().chain(sizes).chain([epsilon]).collect(),
            ..NodeProto::default()
        };
        let dim = |length: i64| tensor_shape_proto::Dimension {
            value: Some(tensor_shape_proto::dimension::Value::DimValue(length)),
            ..tensor_shape_proto::Dimension::default()
        };
        let value = |name: &str, shape: [i64; 2]| ValueInfoProto {
            name: name.to_owned(),
            r#type: Some(TypeProto {
                value: Some(type_proto::Value::TensorType(type_proto::Tensor {
                    elem_type: 1,
                    shape: Some(tract_onnx::pb::TensorShapeProto {
                        dim: shape.map(dim).to_vec(),
                    }),
                })),
                ..TypeProto::default()
            }),
            ..ValueInfoProto::default()
        };
        let entry = |key: &str, value: &str| StringStringEntryProto {
            key: key.to_owned(),
            value: value.to_owned(),
        };
        let weight = TensorProto {
            name: "w".to_owned(),
            dims: vec![1, 3, 16],
            data_type: 1,
            data_location: Some(1),
            external_data: vec![
                entry("location", "weights.data"),
                entry("offset", "64"),
                entry("length", "192"),
            ],
            ..TensorProto::default()
        };
        ModelProto {
            ir_version: 10,
            opset_import: vec![OperatorSetIdProto {
                domain: String::new(),
                version: 18,
            }],
            graph: Some(GraphProto {
                node: vec![node],
                input: vec![value("x", [2, 3])],
                output: vec![value("y", [2, 2])],
                initializer: vec![weight],
                ..GraphProto::default()
            }),
            ..ModelProto::default()
        }
    }

    /// What the model gives for `x = [[1, 2, 3], [4, 5, 6]]`, with a data file of this length.
    fn compute(mut proto: ModelProto, length: usize) -> TractResult<Vec<f32>> {
        let directory = tempfile::tempdir().unwrap();
        let mut data = vec![0_u8; 64];
        for k in 0..3_u8 {
            // Column 0 is [1, 2, 3], column 1 is [10, 20, 30].
            for column in 0..16_u8 {
                let value = [f32::from(k + 1), 10.0 * f32::from(k + 1)];
                let value = value.get(usize::from(column)).copied().unwrap_or(0.0);
                data.extend(value.to_le_bytes());
            }
        }
        data.truncate(length);
        std::fs::write(directory.path().join("weights.data"), data).unwrap();
        let mut framework = tract_onnx::onnx();
        let weights = prepare(&mut framework, &mut proto, &directory.path().join("model.onnx"))?;
        let mut model = framework.parse(&proto, directory.path().to_str())?.model;
        complete(&mut model, weights, &Pool::shared(2))?;
        let model = model.into_optimized()?.into_runnable()?;
        let x = Tensor::from_shape(&[2, 3], &[1.0_f32, 2.0, 3.0, 4.0, 5.0, 6.0])?;
        let y = model.run(tvec![x.into_tvalue()])?;
        Ok(y[0].try_as_plain_ram()?.as_slice::<f32>()?.to_vec())
    }

    #[test]
    fn weights_are_read_where_they_are_mapped() {
        let found = compute(model(32), 256).unwrap();
        assert_eq!(found, [14.0, 140.0, 32.0, 320.0]);
    }

    #[test]
    fn bad_weights_are_named() {
        type Change = fn(&mut TensorProto);
        let cases: [(Change, usize, &str); 9] = [
            (
                |_| (),
                255,
                "wants 192 of weights.data from byte 64 on, which has 255",
            ),
            (
                |w| w.external_data[0].value = "../weights.data".to_owned(),
                256,
                "not inside",
            ),
            (
                |w| w.external_data[0].value = "other.data".to_owned(),
                256,
                "other.data",
            ),
            (|w| w.external_data[1].value = "62".to_owned(), 256, "not aligned"),
            (|w| w.external_data[1].value = "-1".to_owned(), 256, "offset"),
            (
                |w| w.external_data[2].value = usize::MAX.to_string(),
                256,
                "wants 18446744073709551615",
            ),
            (|w| w.dims = vec![1, 4, 16], 256, "has shape [1, 4, 16]"),
            (|w| w.dims = vec![i64::MAX, i64::MAX], 256, "has shape"),
            (|w| w.data_type = 11, 256, "weight `w`"),
        ];
        for (change, length, words) in cases {
            let mut proto = model(32);
            change(&mut proto.graph.as_mut().unwrap().initializer[0]);
            let error = compute(proto, length).unwrap_err();
            let found = format!("{error:#}");
            assert!(
                found.contains(words) && found.contains("weight `w`"),
                "{words}: {found}"
            );
        }
    }

    #[test]
    fn bad_nodes_are_errors() {
        type Change = fn(&mut NodeProto);
        let cases: [(Change, &str); 6] = [
            (|node| node.attribute.clear(), "no attribute"),
            (|node| node.attribute[4].i = -5, "expected 1 to 2^24"),
            (|node| node.attribute[4].i = 7, "do not fit together"),
            (|node| node.attribute[6].i = 8, "expected uint8"),
            (|node| node.domain = "elsewhere".to_owned(), "elsewhere"),
            (|node| node.input.truncate(1), "too few inputs"),
        ];
        for (change, words) in cases {
            let mut proto = model(32);
            change(&mut proto.graph.as_mut().unwrap().node[0]);
            let found = format!("{:#}", compute(proto, 256).unwrap_err());
            assert!(found.contains(words), "{words}: {found}");
        }
    }
}
