//! Where do weights lie, and how do they get there? In data files beside the graphs, a block at a time.
//!
//! Order: that of first use. Alignment: a tensor of a megabyte or more begins at a multiple of 4096, so that an engine
//! can map it; smaller ones at a multiple of 64, a cache line. Tensors of up to [`INLINE_LIMIT`] bytes stay in the
//! `.onnx` file. One thread reads and converts, another hashes and writes; a few blocks of 16 MB are all the memory.

#![deny(clippy::as_conversions)]

use super::pack;
use crate::error::ExportError;
use crate::files;
use crate::report::Report;
use half::f16;
use half::slice::HalfFloatSliceExt as _;
use models::bundle::FileEntry;
use models::dtype::DType;
use models::graph::{Graph, Source, WeightForm, WeightRef};
use models::weights::{WeightSpec, Weights};
use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::ops::Range;
use std::path::Path;
use std::sync::mpsc;

#[cfg(target_endian = "big")]
compile_error!("weights are written as they lie in memory, and ONNX wants them little-endian");

/// Largest weight that stays inside the `.onnx` file, in bytes.
pub const INLINE_LIMIT: u64 = 1024;

/// Elements of a block: 16 MB of float32.
const BLOCK: usize = 4 << 20;

/// Where a weight's elements are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stored {
    /// In the `.onnx` file: these bytes.
    Inline(Vec<u8>),
    /// In a data file.
    External(Place),
}

/// A range of a data file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// File name, relative to the graph's directory.
    pub file: String,
    /// First byte.
    pub offset: u64,
    /// Length in bytes.
    pub bytes: u64,
}

/// A data file before it is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DataFile {
    /// File name.
    pub name: String,
    /// Length in bytes, padding included; 0 if there is nothing to write.
    pub length: u64,
    /// The tensors in file order.
    pub tensors: Vec<Tensor>,
}

/// One tensor of a data file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tensor {
    /// Which weight, in which form.
    pub weight: WeightRef,
    /// Element type in the file.
    pub dtype: DType,
    /// First byte.
    pub offset: u64,
    /// Length in bytes.
    pub bytes: u64,
    /// What stands right before it, where that is not zeros: records of a Core ML package.
    pub before: Vec<u8>,
}

/// The weights placed so far; graphs that read the same weight in the same form share its bytes, unless they are to be
/// self-contained.
#[derive(Debug, Default)]
pub struct Pool {
    places: BTreeMap<Key, Place>,
    self_contained: bool,
    inside: bool,
}

/// A weight in a form, and the graph that it is for where graphs share nothing.
type Key = (WeightRef, DType, Option<String>);

impl Pool {
    /// A pool of graphs that share nothing.
    pub fn self_contained() -> Pool {
        Pool {
            self_contained: true,
            ..Pool::default()
        }
    }

    /// A pool of graphs that share nothing and have their weights inside: what would be a graph's data file stands in its
    /// `.onnx` file.
    pub fn inside() -> Pool {
        Pool {
            self_contained: true,
            inside: true,
            ..Pool::default()
        }
    }

    /// Whether weights stand inside the graphs.
    pub fn is_inside(&self) -> bool {
        self.inside
    }

    fn key(&self, graph: &Graph, weight: &WeightRef, dtype: DType) -> Key {
        let whose = self.self_contained.then(|| graph.name.clone());
        (weight.clone(), dtype, whose)
    }

    /// Places the weights of a graph that it does not share with an earlier graph, in a data file of the given name.
    ///
    /// # Errors
    /// A weight whose shape is not fixed.
    pub fn place(&mut self, graph: &Graph, name: &str) -> Result<DataFile, ExportError> {
        let mut file = DataFile {
            name: name.to_owned(),
            length: 0,
            tensors: Vec::new(),
        };
        for value in &graph.values {
            let Source::Weight(weight) = &value.source else {
                continue;
            };
            let key = self.key(graph, weight, value.dtype);
            let bytes = byte_length(value)?;
            if bytes <= INLINE_LIMIT || self.places.contains_key(&key) {
                continue;
            }
            let offset = file.length.next_multiple_of(alignment(bytes));
            file.length = offset + bytes;
            file.tensors.push(Tensor {
                weight: weight.clone(),
                dtype: value.dtype,
                offset,
                bytes,
                before: Vec::new(),
            });
            self.places.insert(
                key,
                Place {
                    file: name.to_owned(),
                    offset,
                    bytes,
                },
            );
        }
        Ok(file)
    }

    /// Names of the data files that a graph reads, sorted; none where its weights stand inside.
    pub fn files(&self, graph: &Graph) -> Vec<String> {
        if self.inside {
            return Vec::new();
        }
        let names: BTreeSet<&String> = graph
            .values
            .iter()
            .filter_map(|value| match &value.source {
                Source::Weight(weight) => self.places.get(&self.key(graph, weight, value.dtype)),
                Source::Input | Source::Node | Source::Constant(_) => None,
            })
            .map(|place| &place.file)
            .collect();
        names.into_iter().cloned().collect()
    }

    /// Where each weight value of a graph is, by index in [`Graph::values`]; small ones are read.
    ///
    /// # Errors
    /// A small weight that cannot be read.
    pub fn stored(&self, graph: &Graph, weights: &dyn Weights) -> Result<Vec<Option<Stored>>, ExportError> {
        let mut stored = Vec::with_capacity(graph.values.len());
        for value in &graph.values {
            let Source::Weight(weight) = &value.source else {
                stored.push(None);
                continue;
            };
            stored.push(Some(
                match self.places.get(&self.key(graph, weight, value.dtype)) {
                    Some(place) => Stored::External(place.clone()),
                    None => Stored::Inline(read_small(weight, value.dtype, weights)?),
                },
            ));
        }
        Ok(stored)
    }
}

/// Writes a data file, and returns its name, length and hash.
///
/// # Errors
/// Weights that cannot be read or do not fit float16, a file that cannot be written, an interruption.
pub fn write(
    file: &DataFile,
    weights: &dyn Weights,
    directory: &Path,
    report: &mut dyn Report,
) -> Result<FileEntry, ExportError> {
    let path = directory.join(&file.name);
    report.file(&file.name);
    let output = files::HashedFile::create(&path)?;
    let (bytes, sha256) = stream(file, weights, &path, output, report)?.finish()?;
    check_length(file, bytes)?;
    Ok(FileEntry {
        path: file.name.clone(),
        bytes,
        sha256,
    })
}

/// The contents of a data file, in memory: for weights that stand inside a graph.
///
/// # Errors
/// Weights that cannot be read, do not fit float16 or do not fit memory, an interruption.
pub fn gather(
    file: &DataFile,
    weights: &dyn Weights,
    report: &mut dyn Report,
) -> Result<Vec<u8>, ExportError> {
    let name = Path::new(&file.name);
    let mut bytes = Vec::new();
    let room = usize::try_from(file.length).unwrap_or(usize::MAX);
    if bytes.try_reserve_exact(room).is_err() {
        let full = std::io::ErrorKind::OutOfMemory;
        return Err(ExportError::io("hold the weights of", name)(full.into()));
    }
    let bytes = stream(file, weights, name, bytes, report)?;
    check_length(file, u64::try_from(bytes.len()).unwrap_or(u64::MAX))?;
    Ok(bytes)
}

fn check_length(file: &DataFile, bytes: u64) -> Result<(), ExportError> {
    if bytes == file.length {
        return Ok(());
    }
    let what = format!("`{}` has {bytes} bytes instead of {}", file.name, file.length);
    Err(ExportError::Internal { what })
}

/// Sends the contents of a data file to `output`, which a thread of its own writes; `path` is for errors.
fn stream<W: Write + Send>(
    file: &DataFile,
    weights: &dyn Weights,
    path: &Path,
    mut output: W,
    report: &mut dyn Report,
) -> Result<W, ExportError> {
    std::thread::scope(|scope| {
        let (full_sender, full_receiver) = mpsc::sync_channel::<Block>(2);
        let (free_sender, free_receiver) = mpsc::channel::<Block>();
        let thread = std::thread::Builder::new().name("writing".to_owned());
        let writer = thread.spawn_scoped(scope, move || -> Result<W, ExportError> {
            for block in full_receiver {
                output
                    .write_all(block.bytes())
                    .map_err(ExportError::io("write", path))?;
                // The reader may be done and gone; then nobody wants the block back.
                drop(free_sender.send(block));
            }
            Ok(output)
        });
        let writer = writer.map_err(ExportError::io("start a thread to write", path))?;
        let mut reader = Reader {
            weights,
            sender: full_sender,
            free: free_receiver,
            scratch: Vec::new(),
            wide: Vec::new(),
        };
        let read = reader.send_file(file, report);
        drop(reader);
        let written = writer.join().unwrap_or_else(|_| {
            Err(ExportError::Internal {
                what: "the writing thread panicked".to_owned(),
            })
        });
        // A failed write makes the reader stop too; the writer knows why.
        if !matches!(read, Err(Stop::Writer)) {
            read.map_err(Stop::error)?;
        }
        written
    })
}

/// Why a reader stopped early.
enum Stop {
    /// Nobody takes blocks any more.
    Writer,
    Error(ExportError),
}

impl Stop {
    fn error(self) -> ExportError {
        match self {
            Stop::Writer => ExportError::Internal {
                what: "the writing thread stopped".to_owned(),
            },
            Stop::Error(error) => error,
        }
    }
}

impl From<ExportError> for Stop {
    fn from(error: ExportError) -> Self {
        Stop::Error(error)
    }
}

/// Elements on their way from reader to writer.
enum Block {
    Float32(Vec<f32>),
    Float16(Vec<f16>),
    Bytes(Vec<u8>),
}

impl Block {
    fn bytes(&self) -> &[u8] {
        match self {
            Block::Float32(values) => bytemuck::cast_slice(values),
            Block::Float16(values) => bytemuck::cast_slice(values),
            Block::Bytes(bytes) => bytes,
        }
    }
}

struct Reader<'w> {
    weights: &'w dyn Weights,
    sender: mpsc::SyncSender<Block>,
    free: mpsc::Receiver<Block>,
    /// A block as the checkpoint has it, before it is transposed.
    scratch: Vec<f32>,
    /// A block before it becomes float16.
    wide: Vec<f32>,
}

impl Reader<'_> {
    fn send_file(&mut self, file: &DataFile, report: &mut dyn Report) -> Result<(), Stop> {
        let specs: BTreeMap<&str, &WeightSpec> = self
            .weights
            .specs()
            .iter()
            .map(|spec| (spec.name.as_str(), spec))
            .collect();
        let mut position = 0;
        let (mut too_large, mut unscaled) = (Vec::new(), Vec::new());
        for tensor in &file.tensors {
            let padding = usize::try_from(tensor.offset - position).unwrap_or(0);
            if padding > 0 {
                let mut bytes = vec![0; padding.saturating_sub(tensor.before.len())];
                bytes.extend(&tensor.before);
                self.send(Block::Bytes(bytes))?;
            }
            position = tensor.offset + tensor.bytes;
            if pack::is_packed(&tensor.weight) {
                match self.send_packed(tensor, report) {
                    Err(Stop::Error(ExportError::Float16Scales { weights })) => unscaled.extend(weights),
                    sent => sent?,
                }
                continue;
            }
            let name = tensor.weight.name.as_str();
            let Some(spec) = specs.get(name) else {
                let unknown = models::checkpoint::CheckpointError::UnknownWeight {
                    name: name.to_owned(),
                };
                return Err(Stop::Error(unknown.into()));
            };
            if let Some(largest) = self.send_tensor(tensor, spec, report)? {
                too_large.push(format!("`{name}` up to {largest}"));
            }
        }
        if !unscaled.is_empty() {
            return Err(ExportError::Float16Scales { weights: unscaled }.into());
        }
        if too_large.is_empty() {
            Ok(())
        } else {
            Err(ExportError::Float16Range { weights: too_large }.into())
        }
    }

    /// Sends a tensor of a form that is made piece by piece.
    fn send_packed(&mut self, tensor: &Tensor, report: &mut dyn Report) -> Result<(), Stop> {
        let weights = self.weights;
        let mut sent = 0;
        pack::pack(&tensor.weight, weights, &mut |piece: Vec<u8>| {
            if report.interrupted() {
                return Err(Stop::Error(ExportError::Interrupted));
            }
            let bytes = u64::try_from(piece.len()).unwrap_or(u64::MAX);
            sent += bytes;
            self.send(Block::Bytes(piece))?;
            report.advance(bytes);
            Ok(())
        })?;
        if sent == tensor.bytes {
            return Ok(());
        }
        let what = format!(
            "weight `{}` has {sent} bytes instead of {}",
            tensor.weight.name, tensor.bytes
        );
        Err(ExportError::Internal { what }.into())
    }

    /// Sends a tensor block by block. Returns the largest magnitude if float16 cannot hold it.
    fn send_tensor(
        &mut self,
        tensor: &Tensor,
        spec: &WeightSpec,
        report: &mut dyn Report,
    ) -> Result<Option<f32>, Stop> {
        let mut too_large: Option<f32> = None;
        let transposed = tensor.weight.form == WeightForm::Transposed;
        for (rows, columns) in blocks(spec.matrix(), transposed) {
            if report.interrupted() {
                return Err(ExportError::Interrupted.into());
            }
            let block = match tensor.dtype {
                DType::Float16 => {
                    let mut wide = std::mem::take(&mut self.wide);
                    self.read(spec, rows, columns, transposed, &mut wide)?;
                    if let Some(found) = beyond_float16(&wide) {
                        too_large = Some(too_large.map_or(found, |largest| largest.max(found)));
                    }
                    let mut narrow = self.recycled(|block| match block {
                        Block::Float16(buffer) => Some(buffer),
                        Block::Float32(_) | Block::Bytes(_) => None,
                    });
                    narrow.resize(wide.len(), f16::ZERO);
                    narrow.convert_from_f32_slice(&wide);
                    self.wide = wide;
                    Block::Float16(narrow)
                }
                DType::Float32 => {
                    let mut wide = self.recycled(|block| match block {
                        Block::Float32(buffer) => Some(buffer),
                        Block::Float16(_) | Block::Bytes(_) => None,
                    });
                    self.read(spec, rows, columns, transposed, &mut wide)?;
                    Block::Float32(wide)
                }
                other => {
                    let what = format!("weight `{}` cannot be stored as {other}", spec.name);
                    return Err(ExportError::Internal { what }.into());
                }
            };
            let bytes = block.bytes().len();
            self.send(block)?;
            report.advance(u64::try_from(bytes).unwrap_or(u64::MAX));
        }
        Ok(too_large)
    }

    /// Reads a block in file order.
    fn read(
        &mut self,
        spec: &WeightSpec,
        rows: Range<usize>,
        columns: Range<usize>,
        transposed: bool,
        out: &mut Vec<f32>,
    ) -> Result<(), ExportError> {
        let (length, width) = (rows.len() * columns.len(), columns.len());
        if transposed {
            self.scratch.resize(length, 0.0);
            self.weights
                .read_block(&spec.name, rows, columns, &mut self.scratch)?;
            transpose(&self.scratch, width, out);
        } else {
            out.resize(length, 0.0);
            self.weights.read_block(&spec.name, rows, columns, out)?;
        }
        Ok(())
    }

    /// A buffer that the writer is done with, if there is one.
    fn recycled<T>(&self, buffer: impl Fn(Block) -> Option<Vec<T>>) -> Vec<T> {
        self.free.try_iter().find_map(buffer).unwrap_or_default()
    }

    fn send(&self, block: Block) -> Result<(), Stop> {
        self.sender.send(block).map_err(|_| Stop::Writer)
    }
}

/// The blocks of a canonical matrix `(rows, columns)` in the order in which a file holds them: row ranges, or column
/// ranges where the file holds the transpose.
fn blocks((rows, columns): (usize, usize), transposed: bool) -> Vec<(Range<usize>, Range<usize>)> {
    let (outer, inner) = if transposed {
        (columns, rows)
    } else {
        (rows, columns)
    };
    if outer == 0 || inner == 0 {
        return Vec::new();
    }
    let mut blocks = Vec::new();
    let step = (BLOCK / inner).max(1);
    for start in (0..outer).step_by(step) {
        let lines = start..outer.min(start + step);
        for start in (0..inner).step_by(BLOCK) {
            let part = start..inner.min(start + BLOCK);
            let lines = lines.clone();
            blocks.push(if transposed { (part, lines) } else { (lines, part) });
        }
    }
    blocks
}

/// The transpose of a row-major matrix with the given number of columns, in tiles that fit a cache.
fn transpose(matrix: &[f32], columns: usize, out: &mut Vec<f32>) {
    const TILE: usize = 32;
    let rows = matrix.len() / columns.max(1);
    out.resize(matrix.len(), 0.0);
    for first_row in (0..rows).step_by(TILE) {
        let last_row = rows.min(first_row + TILE);
        for first_column in (0..columns).step_by(TILE) {
            for column in first_column..columns.min(first_column + TILE) {
                let line = &mut out[column * rows + first_row..column * rows + last_row];
                for (value, row) in line.iter_mut().zip(first_row..) {
                    *value = matrix[row * columns + column];
                }
            }
        }
    }
}

/// The largest finite magnitude, if float16 rounds it to infinity.
fn beyond_float16(values: &[f32]) -> Option<f32> {
    // Bit patterns of magnitudes are ordered like the magnitudes. 65520 is the first that rounds to infinity.
    const FIRST: u32 = 65520.0_f32.to_bits();
    const INFINITY: u32 = f32::INFINITY.to_bits();
    let magnitude = |value: &f32| value.to_bits() & 0x7fff_ffff;
    let found = values.iter().fold(false, |found, value| {
        let bits = magnitude(value);
        found | (FIRST..INFINITY).contains(&bits)
    });
    if !found {
        return None;
    }
    values
        .iter()
        .map(magnitude)
        .filter(|bits| *bits < INFINITY)
        .max()
        .map(f32::from_bits)
}

fn read_small(weight: &WeightRef, dtype: DType, weights: &dyn Weights) -> Result<Vec<u8>, ExportError> {
    if pack::is_packed(weight) {
        return pack::bytes(weight, weights);
    }
    let values = weights.read(&weight.name)?;
    let spec = weights.specs().iter().find(|spec| spec.name == weight.name);
    let values = match spec {
        Some(spec) if weight.form == WeightForm::Transposed => {
            let mut out = Vec::new();
            transpose(&values, spec.matrix().1, &mut out);
            out
        }
        _stored => values,
    };
    if dtype == DType::Float32 {
        return Ok(bytemuck::cast_slice(&values).to_vec());
    }
    if let Some(largest) = beyond_float16(&values) {
        return Err(ExportError::Float16Range {
            weights: vec![format!("`{}` up to {largest}", weight.name)],
        });
    }
    let narrow: Vec<f16> = values.iter().copied().map(f16::from_f32).collect();
    Ok(bytemuck::cast_slice(&narrow).to_vec())
}

fn byte_length(value: &models::graph::Value) -> Result<u64, ExportError> {
    let size = u64::try_from(value.dtype.size()).unwrap_or(u64::MAX);
    value
        .shape
        .iter()
        .try_fold(size, |bytes, dim| dim.fixed().and_then(|n| bytes.checked_mul(n)))
        .ok_or_else(|| ExportError::Internal {
            what: format!("weight `{}` has no fixed size", value.name),
        })
}

const fn alignment(bytes: u64) -> u64 {
    if bytes >= 1 << 20 { 4096 } else { 64 }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::report::Silent;
    use models::checkpoint::CheckpointError;
    use models::graph::{Dim, Value};

    /// Weights whose elements are 0, 1, 2, ... divided by 8.
    pub(crate) struct Memory {
        specs: Vec<WeightSpec>,
    }

    impl Memory {
        pub(crate) fn new(shapes: &[(&str, &[u64])]) -> Self {
            let specs = shapes
                .iter()
                .map(|(name, shape)| WeightSpec {
                    name: (*name).to_owned(),
                    shape: shape.to_vec(),
                })
                .collect();
            Memory { specs }
        }
    }

    impl Weights for Memory {
        fn specs(&self) -> &[WeightSpec] {
            &self.specs
        }

        fn read_block(
            &self,
            name: &str,
            rows: Range<usize>,
            columns: Range<usize>,
            out: &mut [f32],
        ) -> Result<(), CheckpointError> {
            let width = self
                .specs
                .iter()
                .find(|spec| spec.name == name)
                .unwrap()
                .matrix()
                .1;
            let cells = rows.flat_map(|row| columns.clone().map(move |column| row * width + column));
            for (value, cell) in out.iter_mut().zip(cells) {
                *value = f32::from(u16::try_from(cell % 50_000).unwrap()) / 8.0;
            }
            Ok(())
        }
    }

    fn graph_of(weights: &[(&str, &[u64], bool)], dtype: DType) -> Graph {
        let values = weights
            .iter()
            .map(|(name, shape, transposed)| {
                let mut shape: Vec<Dim> = shape.iter().map(|n| Dim::Fixed(*n)).collect();
                if *transposed {
                    shape.reverse();
                }
                let weight = WeightRef {
                    name: (*name).to_owned(),
                    form: if *transposed {
                        WeightForm::Transposed
                    } else {
                        WeightForm::Stored
                    },
                };
                Value {
                    name: (*name).to_owned(),
                    dtype,
                    shape,
                    source: Source::Weight(weight),
                }
            })
            .collect();
        Graph {
            name: "g".to_owned(),
            inputs: vec![],
            outputs: vec![],
            values,
            nodes: vec![],
        }
    }

    #[test]
    fn offsets_are_aligned_and_never_overlap() {
        for count in [1, 7, 400] {
            for seed in 0..20_u64 {
                let shapes: Vec<(String, [u64; 2])> = (0..count)
                    .map(|i: u64| {
                        let n = (i * 7919 + seed * 104_729) % 1_000;
                        (format!("w{i}"), [n * n % 997 + 1, n % 600 + 1])
                    })
                    .collect();
                let list: Vec<(&str, &[u64], bool)> = shapes
                    .iter()
                    .map(|(name, shape)| (name.as_str(), shape.as_slice(), false))
                    .collect();
                let mut pool = Pool::default();
                let file = pool.place(&graph_of(&list, DType::Float32), "d").unwrap();
                let mut end = 0;
                for tensor in &file.tensors {
                    assert!(tensor.offset >= end && tensor.offset - end < 4096);
                    assert_eq!(tensor.offset % alignment(tensor.bytes), 0);
                    assert!(tensor.bytes > INLINE_LIMIT);
                    end = tensor.offset + tensor.bytes;
                }
                assert_eq!(end, file.length);
                let again = pool.place(&graph_of(&list, DType::Float32), "e").unwrap();
                assert_eq!(again.length, 0, "a second graph shares what the first has placed");
            }
        }
    }

    #[test]
    fn file_holds_every_tensor_at_its_offset() {
        let shapes: [(&str, &[u64], bool); 4] = [
            ("a", &[300, 70], false),
            ("b", &[129, 65], true),
            ("small", &[3], false),
            ("c", &[3000, 1801], true),
        ];
        let specs: Vec<(&str, &[u64])> = shapes.iter().map(|(name, shape, _)| (*name, *shape)).collect();
        let weights = Memory::new(&specs);
        for dtype in [DType::Float32, DType::Float16] {
            let graph = graph_of(&shapes, dtype);
            let mut pool = Pool::default();
            let file = pool.place(&graph, "data").unwrap();
            let directory = tempfile::tempdir().unwrap();
            let entry = write(&file, &weights, directory.path(), &mut Silent).unwrap();
            let bytes = std::fs::read(directory.path().join("data")).unwrap();
            assert_eq!(u64::try_from(bytes.len()).unwrap(), entry.bytes);
            assert_eq!(entry.sha256, files::sha256(&bytes));
            assert_eq!(file.tensors.len(), 3);
            for tensor in &file.tensors {
                let expected = read_small(&tensor.weight, dtype, &weights).unwrap();
                let start = usize::try_from(tensor.offset).unwrap();
                assert!(
                    bytes[start..start + expected.len()] == expected,
                    "{} {dtype}",
                    tensor.weight.name
                );
            }
        }
    }

    #[test]
    fn blocks_cover_the_matrix_once() {
        for (shape, transposed) in [
            ((3, 5), false),
            ((3, 5), true),
            ((1, BLOCK + 3), false),
            ((2, 2 * BLOCK), true),
        ] {
            let cells: usize = blocks(shape, transposed)
                .iter()
                .map(|(r, c)| r.len() * c.len())
                .sum();
            assert_eq!(cells, shape.0 * shape.1);
            assert!(
                blocks(shape, transposed)
                    .iter()
                    .all(|(r, c)| r.len() * c.len() <= BLOCK)
            );
        }
    }

    #[test]
    fn float16_range() {
        assert_eq!(beyond_float16(&[1.0, -65519.0, f32::INFINITY, f32::NAN]), None);
        assert_eq!(beyond_float16(&[1.0, -65520.0, f32::NEG_INFINITY]), Some(65520.0));
        assert!(f16::from_f32(65520.0).is_infinite() && f16::from_f32(65519.0).is_finite());
    }
}
