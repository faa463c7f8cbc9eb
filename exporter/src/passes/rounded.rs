//! How do products read weights of 8 and 4 bits in graphs of standard operators? A weight becomes codes and scales,
//! and its reader one that takes them.
//!
//! | reader | signed bytes, a scale for each output | blocks |
//! |---|---|---|
//! | `MatMul` | `DequantizeLinear`, `MatMul` | `MatMulNBits` |
//! | `Conv` of 1 x 1, float32 | `DequantizeLinear`, `Conv` | the same as signed bytes |
//! | `Gemm`, the head | `Transpose`, `DequantizeLinear`, `MatMul` | `MatMulNBits` |
//! | `Gather`, the embedding | `Gather` of bytes and of scales, `Cast`, `Mul` | the same, block by block |
//!
//! `GatherBlockQuantized` would be one operator for the embedding. ONNX Runtime for WebAssembly has no kernel for it, so
//! rows are looked up as codes and scaled by ONNX's own operators; the table stays bytes in any engine.
//!
//! A head of signed bytes reads the table as the embedding has it, so that a tied one is stored once; ONNX Runtime turns
//! bytes when it opens the graph, and makes a product of bytes of `DequantizeLinear` and `MatMul`. Other weights stay:
//! convolutions of more than a pixel, biases, norms.

use crate::error::ExportError;
use crate::plan::{Storage, Stored};
use models::dtype::DType;
use models::fused::BLOCK;
use models::graph::{Blocks, Constant, Dim, Graph, Node, Op, Source, Value, ValueId, WeightForm, WeightRef};
use std::collections::BTreeMap;

/// Numbers in a block of bytes: the largest of these that a row is a multiple of, otherwise the last one.
const SIZES: [u64; 3] = [128, 64, BLOCK];

/// Rewrites a graph before it has rounded weights.
///
/// # Errors
/// A graph that is not consistent.
pub(super) fn rounded(graph: &Graph, storage: Storage) -> Result<Graph, ExportError> {
    let mut pass = Pass {
        graph,
        storage,
        out: Graph {
            name: graph.name.clone(),
            inputs: Vec::new(),
            outputs: Vec::new(),
            values: Vec::new(),
            nodes: Vec::new(),
        },
        made: vec![None; graph.values.len()],
        parts: BTreeMap::new(),
    };
    for id in &graph.inputs {
        let new = pass.copy(*id);
        pass.out.inputs.push(new);
    }
    for node in &graph.nodes {
        pass.node(node)?;
    }
    for id in &graph.outputs {
        let new = pass.read(*id)?;
        pass.out.outputs.push(new);
    }
    Ok(pass.out)
}

struct Pass<'g> {
    graph: &'g Graph,
    storage: Storage,
    out: Graph,
    /// For each value of the old graph, the new one.
    made: Vec<Option<ValueId>>,
    /// Codes and scales, by weight and label: one weight's codes have a shape for each operator.
    parts: BTreeMap<(WeightRef, &'static str), ValueId>,
}

/// A weight that is rounded: a matrix of rows, each of which makes an output.
#[derive(Clone, Copy)]
struct Matrix<'g> {
    value: &'g Value,
    weight: &'g WeightRef,
    rows: u64,
    columns: u64,
}

impl Matrix<'_> {
    /// In blocks of codes of so many bits.
    fn blocks(&self, bits: u64) -> Blocks {
        let mut sizes = SIZES.into_iter();
        let size = sizes.find(|size| bits == 8 && self.columns.is_multiple_of(*size));
        Blocks {
            bits,
            size: size.unwrap_or(BLOCK),
            half: self.value.dtype == DType::Float16,
        }
    }
}

impl<'g> Pass<'g> {
    fn node(&mut self, node: &'g Node) -> Result<(), ExportError> {
        match &node.op {
            Op::MatMul => match self.matrix(node, 1, &WeightForm::Transposed) {
                Some((matrix, Stored::Outputs)) => {
                    self.dequantized(node, matrix, WeightForm::Int8Transposed, 1)
                }
                Some((matrix, Stored::Blocks(bits))) => self.product(node, matrix, bits),
                Some((_, Stored::Plain)) | None => self.same(node),
            },
            Op::Gemm { trans_b: true } if node.inputs.len() == 2 => {
                match self.matrix(node, 1, &WeightForm::Stored) {
                    Some((matrix, Stored::Outputs)) => self.head(node, matrix),
                    Some((matrix, Stored::Blocks(bits))) => self.product(node, matrix, bits),
                    Some((_, Stored::Plain)) | None => self.same(node),
                }
            }
            Op::Gather { axis: 0 } => match self.matrix(node, 0, &WeightForm::Stored) {
                Some((matrix, Stored::Outputs)) => self.rows(node, matrix),
                Some((matrix, Stored::Blocks(bits))) => self.lines(node, matrix, bits),
                Some((_, Stored::Plain)) | None => self.same(node),
            },
            Op::Conv { group: 1, .. } => match self.matrix(node, 1, &WeightForm::Stored) {
                Some((matrix, Stored::Outputs | Stored::Blocks(_)))
                    if is_pixel(matrix.value) && matrix.value.dtype == DType::Float32 =>
                {
                    self.dequantized(node, matrix, WeightForm::Int8, 0)
                }
                _ => self.same(node),
            },
            _ => self.same(node),
        }
    }

    /// The weight that a node reads there, and how it is stored.
    fn matrix(&self, node: &Node, input: usize, form: &WeightForm) -> Option<(Matrix<'g>, Stored)> {
        let graph = self.graph;
        let value = graph.value(*node.inputs.get(input)?);
        let Source::Weight(weight) = &value.source else {
            return None;
        };
        let mut lengths = value.shape.iter().map(|dim| dim.fixed());
        let (first, rest) = (lengths.next()??, lengths.collect::<Option<Vec<u64>>>()?);
        let rest: u64 = rest.iter().product();
        let (rows, columns) = match form {
            WeightForm::Transposed => (rest, first),
            _ => (first, rest),
        };
        let table = matches!(node.op, Op::Gather { .. } | Op::Gemm { .. });
        let vision = ["vision_tower.", "multi_modal_projector."];
        let stored = if table {
            self.storage.table
        } else if vision.iter().any(|start| weight.name.starts_with(start)) {
            self.storage.vision
        } else {
            self.storage.decoder
        };
        let matrix = Matrix {
            value,
            weight,
            rows,
            columns,
        };
        (weight.form == *form && value.dtype.is_float()).then_some((matrix, stored))
    }

    /// The node as it is.
    fn same(&mut self, node: &Node) -> Result<(), ExportError> {
        let inputs = node.inputs.iter().map(|id| self.read(*id));
        let inputs = inputs.collect::<Result<_, _>>()?;
        self.finish(node, node.name.clone(), node.op.clone(), inputs);
        Ok(())
    }

    /// The node with numbers that are made of signed bytes; `axis` is that of the outputs.
    fn dequantized(
        &mut self,
        node: &Node,
        matrix: Matrix<'_>,
        form: WeightForm,
        axis: u64,
    ) -> Result<(), ExportError> {
        let bytes = self.part(matrix, form, "int8", DType::Int8, &matrix.value.shape);
        let scales = self.byte_scales(matrix);
        let name = format!("{}/DequantizeLinear", node.name);
        let numbers = self.push_node(
            node,
            &name,
            Op::DequantizeLinear { axis },
            &[bytes, scales],
            DType::Float32,
            &matrix.value.shape,
        );
        let mut inputs = Vec::with_capacity(node.inputs.len());
        for (index, id) in node.inputs.iter().enumerate() {
            inputs.push(if index == 1 { numbers } else { self.read(*id)? });
        }
        self.finish(node, node.name.clone(), node.op.clone(), inputs);
        Ok(())
    }

    /// `x [M,D], table [V,D] -> [M,V]`, the table in signed bytes.
    fn head(&mut self, node: &Node, matrix: Matrix<'_>) -> Result<(), ExportError> {
        let bytes = self.part(matrix, WeightForm::Int8, "int8", DType::Int8, &matrix.value.shape);
        let turned: Vec<Dim> = matrix.value.shape.iter().rev().copied().collect();
        let turn = Op::Transpose { perm: vec![1, 0] };
        let name = format!("{}/Transpose", node.name);
        let bytes = self.push_node(node, &name, turn, &[bytes], DType::Int8, &turned);
        let scales = self.byte_scales(matrix);
        let name = format!("{}/DequantizeLinear", node.name);
        let whole = Op::DequantizeLinear { axis: 1 };
        let numbers = self.push_node(node, &name, whole, &[bytes, scales], DType::Float32, &turned);
        let x = self.first(node)?;
        self.finish(node, renamed(node, "MatMul"), Op::MatMul, vec![x, numbers]);
        Ok(())
    }

    /// `table [V,D], ids [..] -> [..,D]`, the table in signed bytes.
    fn rows(&mut self, node: &Node, matrix: Matrix<'_>) -> Result<(), ExportError> {
        let Some(ids) = node.inputs.get(1) else {
            return Err(broken(node));
        };
        let (ids, places) = (self.read(*ids)?, self.graph.value(*ids).shape.clone());
        let gather = || Op::Gather { axis: 0 };
        let rows: Vec<Dim> = [&places[..], &[Dim::Fixed(matrix.columns)]].concat();
        let bytes = self.part(matrix, WeightForm::Int8, "int8", DType::Int8, &matrix.value.shape);
        let bytes = self.push_node(node, &node.name, gather(), &[bytes, ids], DType::Int8, &rows);
        let cast = Op::Cast { to: DType::Float32 };
        let numbers = self.push_node(
            node,
            &format!("{}/Cast", node.name),
            cast,
            &[bytes],
            DType::Float32,
            &rows,
        );
        let scales = self.byte_scales(matrix);
        let name = format!("{}/scales/Gather", node.name);
        let scales = self.push_node(node, &name, gather(), &[scales, ids], DType::Float32, &places);
        let name = format!("{}/scales/Unsqueeze", node.name);
        let column: Vec<Dim> = [&places[..], &[Dim::Fixed(1)]].concat();
        let unsqueeze = Op::Unsqueeze { axes: vec![-1] };
        let scales = self.push_node(node, &name, unsqueeze, &[scales], DType::Float32, &column);
        self.finish(node, format!("{}/Mul", node.name), Op::Mul, vec![numbers, scales]);
        Ok(())
    }

    /// `x [..,K] -> [..,N]` with a weight in blocks.
    fn product(&mut self, node: &Node, matrix: Matrix<'_>, bits: u64) -> Result<(), ExportError> {
        let blocks = matrix.blocks(bits);
        let elements = blocks.elements(matrix.rows, matrix.columns).map(Dim::Fixed);
        let (codes, scales) = self.blocks(matrix, blocks, "blocks", &elements);
        let x = self.first(node)?;
        let op = Op::MatMulNBits {
            blocks,
            inputs: matrix.columns,
            outputs: matrix.rows,
        };
        self.finish(node, renamed(node, op.name()), op, vec![x, codes, scales]);
        Ok(())
    }

    /// `table [V,D], ids [..] -> [..,D]`, the table in blocks of bytes.
    fn lines(&mut self, node: &Node, matrix: Matrix<'_>, bits: u64) -> Result<(), ExportError> {
        let blocks = matrix.blocks(bits);
        let Some(ids) = node.inputs.get(1).filter(|_| bits == 8) else {
            return Err(broken(node));
        };
        let (ids, places) = (self.read(*ids)?, self.graph.value(*ids).shape.clone());
        let with = |last: &[u64]| -> Vec<Dim> {
            let last = last.iter().map(|length| Dim::Fixed(*length));
            places.iter().copied().chain(last).collect()
        };
        let kept = |last: &[i64]| {
            vec![0; places.len()]
                .into_iter()
                .chain(last.iter().copied())
                .collect()
        };
        let dtype = blocks.scale_type();
        let (count, size) = (blocks.count(matrix.columns), blocks.size);
        let name = |part: &str| format!("{}/{part}", node.name);
        let gather = || Op::Gather { axis: 0 };

        let elements = blocks.lines(matrix.rows, matrix.columns).map(Dim::Fixed);
        let (codes, scales) = self.blocks(matrix, blocks, "lines", &elements);
        let whole = with(&[count * size]);
        let codes = self.push_node(node, &node.name, gather(), &[codes, ids], DType::UInt8, &whole);
        let cast = Op::Cast { to: dtype };
        let codes = self.push_node(node, &name("Cast"), cast, &[codes], dtype, &whole);
        let zero = Source::Constant(Constant::Float32(vec![128.0]));
        let zero = self.out.push(name("zero_point"), dtype, &[], zero);
        let codes = self.push_node(node, &name("Sub"), Op::Sub, &[codes, zero], dtype, &whole);
        let parted = with(&[count, size]);
        let part = Op::Reshape {
            shape: kept(&[-1, i64::try_from(size).unwrap_or(i64::MAX)]),
        };
        let codes = self.push_node(node, &name("Reshape"), part, &[codes], dtype, &parted);

        let scales = self.push_node(
            node,
            &name("scales/Gather"),
            gather(),
            &[scales, ids],
            dtype,
            &with(&[count]),
        );
        let column = Op::Unsqueeze { axes: vec![-1] };
        let factors = with(&[count, 1]);
        let scales = self.push_node(
            node,
            &name("scales/Unsqueeze"),
            column,
            &[scales],
            dtype,
            &factors,
        );
        let numbers = self.push_node(node, &name("Mul"), Op::Mul, &[codes, scales], dtype, &parted);
        let join = Op::Reshape { shape: kept(&[-1]) };
        if count * size == matrix.columns {
            self.finish(node, name("Reshape_1"), join, vec![numbers]);
            return Ok(());
        }
        let numbers = self.push_node(node, &name("Reshape_1"), join, &[numbers], dtype, &whole);
        let slice = Op::Slice {
            axis: -1,
            start: 0,
            end: i64::try_from(matrix.columns).unwrap_or(i64::MAX),
        };
        self.finish(node, name("Slice"), slice, vec![numbers]);
        Ok(())
    }

    /// Codes of the given shape, and scales.
    fn blocks(
        &mut self,
        matrix: Matrix<'_>,
        blocks: Blocks,
        label: &'static str,
        elements: &[Dim],
    ) -> (ValueId, ValueId) {
        let form = WeightForm::Blocks(blocks);
        let codes = self.part(matrix, form, label, DType::UInt8, elements);
        let shape = blocks.scales(matrix.rows, matrix.columns).map(Dim::Fixed);
        let form = WeightForm::BlockScales(blocks);
        let scales = self.part(matrix, form, "scales", blocks.scale_type(), &shape);
        (codes, scales)
    }

    fn byte_scales(&mut self, matrix: Matrix<'_>) -> ValueId {
        let shape = [Dim::Fixed(matrix.rows)];
        self.part(matrix, WeightForm::ByteScales, "scales", DType::Float32, &shape)
    }

    /// A part of a rounded weight.
    fn part(
        &mut self,
        matrix: Matrix<'_>,
        form: WeightForm,
        label: &'static str,
        dtype: DType,
        shape: &[Dim],
    ) -> ValueId {
        let weight = WeightRef {
            name: matrix.weight.name.clone(),
            form,
        };
        if let Some(id) = self.parts.get(&(weight.clone(), label)) {
            return *id;
        }
        let name = format!("{}.{label}", matrix.value.name);
        let id = self.out.push(name, dtype, shape, Source::Weight(weight.clone()));
        self.parts.insert((weight, label), id);
        id
    }

    /// The new form of a node's first input.
    fn first(&mut self, node: &Node) -> Result<ValueId, ExportError> {
        match node.inputs.first() {
            Some(id) => self.read(*id),
            None => Err(broken(node)),
        }
    }

    /// The new value for an old one; stored ones come to be where they are first read.
    fn read(&mut self, id: ValueId) -> Result<ValueId, ExportError> {
        if let Some(new) = self.made.get(id.0).copied().flatten() {
            return Ok(new);
        }
        let value = self.graph.value(id);
        match value.source {
            Source::Weight(_) | Source::Constant(_) => Ok(self.copy(id)),
            Source::Input | Source::Node => Err(ExportError::Internal {
                what: format!("value `{}` is used before it is computed", value.name),
            }),
        }
    }

    fn copy(&mut self, id: ValueId) -> ValueId {
        let value = self.graph.value(id);
        let new = self.out.push(
            value.name.clone(),
            value.dtype,
            &value.shape,
            value.source.clone(),
        );
        if let Some(made) = self.made.get_mut(id.0) {
            *made = Some(new);
        }
        new
    }

    /// A node that computes what `node` did.
    fn finish(&mut self, node: &Node, name: String, op: Op, inputs: Vec<ValueId>) {
        let outputs = node.outputs.iter().map(|id| self.copy(*id)).collect();
        self.out.nodes.push(Node {
            name,
            op,
            inputs,
            outputs,
            precision: node.precision,
        });
    }

    /// A node on the way there, and its output.
    fn push_node(
        &mut self,
        node: &Node,
        name: &str,
        op: Op,
        inputs: &[ValueId],
        dtype: DType,
        shape: &[Dim],
    ) -> ValueId {
        let output = self
            .out
            .push(format!("{name}_output"), dtype, shape, Source::Node);
        self.out.nodes.push(Node {
            name: name.to_owned(),
            op,
            inputs: inputs.to_vec(),
            outputs: vec![output],
            precision: node.precision,
        });
        output
    }
}

/// Whether a convolution's weight `[O,I,1,1]` is a matrix.
fn is_pixel(value: &Value) -> bool {
    matches!(value.shape[..], [_, _, Dim::Fixed(1), Dim::Fixed(1)])
}

/// The name of a node whose operator becomes another one: `/lm_head/Gemm` and `MatMul` give `/lm_head/MatMul`.
fn renamed(node: &Node, operator: &str) -> String {
    match node.name.rsplit_once('/') {
        Some((scope, last)) => format!("{scope}/{}", last.replacen(node.op.name(), operator, 1)),
        None => node.name.replacen(node.op.name(), operator, 1),
    }
}

fn broken(node: &Node) -> ExportError {
    ExportError::Internal {
        what: format!("node `{}` has too few inputs", node.name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use models::graph::{Builder, Conv};

    /// Every reader of a weight that there is: an embedding, a linear layer, convolutions, the head. `width` is that of
    /// the table.
    fn graph(width: u64) -> Graph {
        let mut b = Builder::new("tiny");
        let ids = b.input("ids", DType::Int64, &[Dim::Batch, Dim::New]);
        let pixels = b.input(
            "pixels",
            DType::Float32,
            &[Dim::Batch, Dim::Fixed(3), Dim::Fixed(4), Dim::Fixed(4)],
        );
        let x = {
            let b = &mut b.scope("language_model");
            let table = b.weight("embed_tokens.weight", &[50, width]);
            let x = b.scope("embed_tokens").gather(table, ids);
            b.linear("up", x, width, 33, true)
        };
        b.output("x", x);
        let logits = {
            let table = b.weight_named("language_model.embed_tokens.weight", &[50, width], false);
            let b = &mut b.scope("lm_head");
            let last = b.weight("norm.weight", &[1, width]);
            b.gemm_transposed(last, table)
        };
        b.output("logits", logits);
        let map = {
            let b = &mut b.scope("vision_tower");
            let conv = |input, output, kernel, group| Conv {
                input,
                output,
                kernel,
                stride: 1,
                group,
            };
            let map = b.conv("wide", pixels, conv(3, 8, 3, 1));
            let map = b.conv("depthwise", map, conv(8, 8, 3, 8));
            let map = b.conv("pixel", map, conv(8, 5, 1, 1));
            let rows = b.reshape(map, &[0, 0, -1]);
            b.linear("proj", rows, 16, 7, false)
        };
        b.output("map", map);
        b.finish().unwrap()
    }

    fn operators(graph: &Graph) -> Vec<&str> {
        graph.nodes.iter().map(|node| node.op.name()).collect()
    }

    fn stored(graph: &Graph) -> Vec<String> {
        let weights = graph.values.iter().filter_map(|value| match &value.source {
            Source::Weight(_) => {
                let dims: Vec<String> = value.shape.iter().map(Dim::to_string).collect();
                Some(format!("{} {} [{}]", value.name, value.dtype, dims.join(",")))
            }
            _ => None,
        });
        weights.collect()
    }

    const BYTES: Storage = Storage {
        vision: Stored::Outputs,
        decoder: Stored::Outputs,
        table: Stored::Outputs,
    };
    const NIBBLES: Storage = Storage {
        vision: Stored::Outputs,
        decoder: Stored::Blocks(4),
        table: Stored::Blocks(8),
    };

    #[test]
    fn signed_bytes_have_standard_operators() {
        let found = rounded(&graph(70), BYTES).unwrap();
        found.check().unwrap();
        assert_eq!(
            operators(&found),
            [
                "Gather",
                "Cast",
                "Gather",
                "Unsqueeze",
                "Mul",
                "DequantizeLinear",
                "MatMul",
                "Add",
                "Transpose",
                "DequantizeLinear",
                "MatMul",
                "Conv",
                "Conv",
                "DequantizeLinear",
                "Conv",
                "Reshape",
                "DequantizeLinear",
                "MatMul",
            ]
        );
        assert_eq!(
            stored(&found),
            [
                "language_model.embed_tokens.weight.int8 int8 [50,70]",
                "language_model.embed_tokens.weight.scales float32 [50]",
                "language_model.up.weight.int8 int8 [70,33]",
                "language_model.up.weight.scales float32 [33]",
                "language_model.up.bias float32 [33]",
                "lm_head.norm.weight float32 [1,70]",
                "vision_tower.wide.weight float32 [8,3,3,3]",
                "vision_tower.wide.bias float32 [8]",
                "vision_tower.depthwise.weight float32 [8,1,3,3]",
                "vision_tower.depthwise.bias float32 [8]",
                "vision_tower.pixel.weight.int8 int8 [5,8,1,1]",
                "vision_tower.pixel.weight.scales float32 [5]",
                "vision_tower.pixel.bias float32 [5]",
                "vision_tower.proj.weight.int8 int8 [16,7]",
                "vision_tower.proj.weight.scales float32 [7]",
            ]
        );
    }

    /// A row that is no multiple of a block is filled up, and a looked-up one is cut again.
    #[test]
    fn blocks_are_filled_up() {
        let found = rounded(&graph(70), NIBBLES).unwrap();
        found.check().unwrap();
        assert_eq!(
            operators(&found)[..12],
            [
                "Gather",
                "Cast",
                "Sub",
                "Reshape",
                "Gather",
                "Unsqueeze",
                "Mul",
                "Reshape",
                "Slice",
                "MatMulNBits",
                "Add",
                "MatMulNBits"
            ]
        );
        assert_eq!(
            stored(&found)[..6],
            [
                "language_model.embed_tokens.weight.lines uint8 [50,96]",
                "language_model.embed_tokens.weight.scales float32 [50,3]",
                "language_model.up.weight.blocks uint8 [33,3,16]",
                "language_model.up.weight.scales float32 [33,3]",
                "language_model.up.bias float32 [33]",
                "language_model.embed_tokens.weight.blocks uint8 [50,3,32]",
            ]
        );
    }

    #[test]
    fn blocks_are_as_large_as_the_row_allows() {
        for (width, size) in [(896, 128), (192, 64), (96, 32), (70, 32), (16, 32)] {
            let found = rounded(&graph(width), NIBBLES).unwrap();
            found.check().unwrap();
            let sizes: Vec<(u64, u64)> = found
                .nodes
                .iter()
                .filter_map(|node| match &node.op {
                    Op::MatMulNBits { blocks, .. } => Some((blocks.bits, blocks.size)),
                    _ => None,
                })
                .collect();
            assert_eq!(sizes, [(4, 32), (8, size)], "{width}");
            let cut = operators(&found).contains(&"Slice");
            assert_eq!(cut, width % size != 0, "{width}");
        }
    }

    /// What is half precision has scales in half precision, and nothing else changes.
    #[test]
    fn scales_have_the_type_of_the_weights() {
        let variant = crate::plan::Variant::new(crate::plan::Target::Portable, crate::plan::Precision::Q4F16);
        let found = super::super::run(graph(96), variant.unwrap()).unwrap();
        let halves = stored(&found);
        for expected in [
            "language_model.embed_tokens.weight.scales float16 [50,3]",
            "language_model.up.weight.scales float16 [33,3]",
            "vision_tower.pixel.weight float16 [5,8,1,1]",
        ] {
            assert!(
                halves.iter().any(|value| value == expected),
                "{expected} in {halves:?}"
            );
        }
    }
}
