//! How is a graph written as ONNX? Lowered to protobuf messages, with its weights in a data file beside it.

pub mod external;
mod feedback;
pub mod lower;
pub mod pack;
pub mod proto;

use crate::error::ExportError;
use crate::files;
use crate::passes;
use crate::plan::{Target, Variant};
use crate::report::{Report, Silent};
use external::{DataFile, Pool, Stored};
use models::bundle::{FileEntry, GraphEntry, Io, IoDim};
use models::graph::{Graph, ValueId};
use models::weights::Weights;
use prost::Message;
use std::path::{Path, PathBuf};

/// Most bytes of weights inside a graph: protobuf's 2 GiB, less 16 MiB for the graph itself.
const MOST_INSIDE: u64 = (1 << 31) - (1 << 24);

/// The directory of the graphs inside a bundle.
pub(crate) const DIRECTORY: &str = "onnx";

/// A graph on its way into a directory: its weights have places, nothing is written yet.
#[derive(Debug)]
pub struct Prepared {
    /// The graph after the passes.
    pub graph: Graph,
    /// File name of the `.onnx` file.
    pub file_name: String,
    /// The data file that this graph adds.
    pub data: DataFile,
    /// Names of all data files that it reads, sorted: its own, and those of graphs with which it shares weights.
    pub reads: Vec<String>,
    /// Whether the file states the shape of every value: where all are fixed, so that it can be checked as it is.
    pub described: bool,
}

/// Runs the passes and gives every weight its place; `suffix` ends the names of the files.
///
/// `pool` holds the weights that earlier graphs have placed: those are shared, not written again, unless the pool is of
/// self-contained graphs.
///
/// # Errors
/// A graph that a pass cannot rewrite, or whose weights are to stand inside it and do not fit.
pub fn prepare(
    graph: Graph,
    variant: Variant,
    suffix: &str,
    pool: &mut Pool,
) -> Result<Prepared, ExportError> {
    let stem = format!("{}{suffix}", graph.name);
    let graph = passes::run(graph, variant)?;
    let data = pool.place(&graph, &format!("{stem}.onnx_data"))?;
    let reads = pool.files(&graph);
    if pool.is_inside() && data.length > MOST_INSIDE {
        return Err(ExportError::TooLargeInside {
            graph: format!("{stem}.onnx"),
            bytes: data.length,
            most: MOST_INSIDE,
        });
    }
    Ok(Prepared {
        graph,
        file_name: format!("{stem}.onnx"),
        data,
        reads,
        described: variant.target() == Target::OrtCoreMl,
    })
}

/// The file of a prepared graph, with the shapes of all its values.
///
/// # Errors
/// Small weights that cannot be read: those are inside the file.
pub fn described(
    prepared: &Prepared,
    weights: &dyn Weights,
    pool: &Pool,
) -> Result<proto::ModelProto, ExportError> {
    lower::lower(&prepared.graph, pool.stored(&prepared.graph, weights)?, true)
}

/// Writes a prepared graph and the data file that it adds (none if that would be empty, or if weights stand inside) into a
/// directory.
///
/// # Errors
/// Weights that cannot be read, files that cannot be written, or an interruption. Partial files stay: the directory
/// is the caller's to remove.
pub fn write(
    prepared: &Prepared,
    weights: &dyn Weights,
    pool: &Pool,
    directory: &Path,
    report: &mut dyn Report,
) -> Result<Vec<FileEntry>, ExportError> {
    let mut written = Vec::new();
    let mut stored = pool.stored(&prepared.graph, weights)?;
    if pool.is_inside() {
        report.file(&prepared.file_name);
        bring_inside(&mut stored, &external::gather(&prepared.data, weights, report)?);
    } else if prepared.data.length > 0 {
        written.push(external::write(&prepared.data, weights, directory, report)?);
    }
    let model = lower::lower(&prepared.graph, stored, prepared.described)?;
    let bytes = model.encode_to_vec();
    drop(model);
    written.push(files::write(directory, &prepared.file_name, &bytes)?);
    Ok(written)
}

/// Takes what has a place in a data file out of its contents.
fn bring_inside(stored: &mut [Option<Stored>], data: &[u8]) {
    for stored in stored.iter_mut().flatten() {
        let range = match stored {
            Stored::Inline(_) => continue,
            Stored::External(place) => {
                let offset = usize::try_from(place.offset).unwrap_or(usize::MAX);
                offset..offset.saturating_add(usize::try_from(place.bytes).unwrap_or(usize::MAX))
            }
        };
        // The places are those of the file whose contents these are: it is as long as the last of them.
        *stored = Stored::Inline(data.get(range).unwrap_or_default().to_vec());
    }
}

/// A graph's entry in the contract, from the graph that is written.
pub(crate) fn entry(graph: &Prepared) -> GraphEntry {
    let list = |ids: &[ValueId]| -> Vec<Io> {
        ids.iter()
            .map(|id| {
                let value = graph.graph.value(*id);
                let dims = value.shape.iter().map(|dim| match dim.fixed() {
                    Some(length) => IoDim::Fixed(length),
                    None => IoDim::Symbol(dim.to_string()),
                });
                Io {
                    name: value.name.clone(),
                    dtype: value.dtype,
                    dims: dims.collect(),
                }
            })
            .collect()
    };
    GraphEntry {
        path: in_bundle(&graph.file_name),
        data: graph.reads.iter().map(|name| in_bundle(name)).collect(),
        inputs: list(&graph.graph.inputs),
        outputs: list(&graph.graph.outputs),
        adopted: None,
    }
}

/// The path in the bundle of a file beside the graphs.
pub(crate) fn in_bundle(name: &str) -> String {
    format!("{DIRECTORY}/{name}")
}

/// Writes one graph with its weights into an existing directory, without a bundle around it, passes included.
/// Returns the path of the `.onnx` file.
///
/// # Errors
/// As [`prepare`] and [`write()`].
pub fn write_graph(
    graph: &Graph,
    weights: &dyn Weights,
    variant: Variant,
    directory: &Path,
) -> Result<PathBuf, ExportError> {
    let mut pool = Pool::default();
    let prepared = prepare(graph.clone(), variant, variant.suffix(), &mut pool)?;
    write(&prepared, weights, &pool, directory, &mut Silent)?;
    Ok(directory.join(&prepared.file_name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::onnx::external::tests::Memory;
    use models::dtype::DType;
    use models::graph::{Builder, Dim};

    #[test]
    fn what_no_file_can_hold_does_not_go_inside() {
        let graph = |width: u64| {
            let mut b = Builder::new("wide");
            let x = b.input("x", DType::Float32, &[Dim::Batch, Dim::New, Dim::Fixed(width)]);
            let y = b.scope("model").linear("up", x, width, width, false);
            b.output("y", y);
            b.finish().unwrap()
        };
        let (small, large) = (graph(1000), graph(1 << 15));
        let inside = |graph: Graph| prepare(graph, Variant::PORTABLE, "", &mut Pool::inside());
        assert_eq!(inside(small).unwrap().reads, [""; 0]);
        let words = inside(large.clone()).unwrap_err().to_string();
        assert!(
            words.contains("`wide.onnx` would hold 4294967296 bytes of weights, expected at most 2130706432"),
            "{words}"
        );
        let beside = prepare(large, Variant::PORTABLE, "", &mut Pool::default()).unwrap();
        assert_eq!(beside.reads, ["wide.onnx_data"]);
    }

    /// A linear layer, a norm and an inline vector, as bytes: whoever changes the writer sees it here.
    #[test]
    fn golden_bytes() {
        let mut b = Builder::new("tiny");
        let x = b.input("x", DType::Float32, &[Dim::Batch, Dim::New, Dim::Fixed(2)]);
        let y = {
            let b = &mut b.scope("model");
            let y = b.linear("up", x, 2, 3, true);
            let y = b.gelu(y);
            b.reshape(y, &[0, 0, 3])
        };
        b.output("y", y);
        let graph = b.finish().unwrap();
        let weights = Memory::new(&[("model.up.weight", &[3, 2]), ("model.up.bias", &[3])]);
        let directory = tempfile::tempdir().unwrap();
        let path = write_graph(&graph, &weights, Variant::PORTABLE, directory.path()).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/tiny.onnx");
        if std::env::var_os("BLESS").is_some() {
            std::fs::write(&golden, &bytes).unwrap();
        }
        assert!(bytes.len() < 2048);
        assert_eq!(
            bytes,
            std::fs::read(&golden).unwrap(),
            "run with BLESS=1 and look at the difference"
        );
    }
}
