//! Which data files of a graph are links? The Hugging Face cache has links into a folder `blobs/`; ONNX Runtime 1.24.0 and
//! 1.24.1 take no data from outside the folder of the graph, links or not (microsoft/onnxruntime#27353).

use models::bundle::{GraphEntry, Variant};
use std::path::{Path, PathBuf};

/// A data file that is a link.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Linked {
    /// As the graph calls it: relative to its own folder.
    pub(super) name: PathBuf,
    /// Where it is.
    pub(super) path: PathBuf,
}

/// The data files of the graph at `path` that are links, of a variant of the bundle in `directory`.
pub(super) fn linked(directory: &Path, variant: &Variant, path: &Path) -> Vec<Linked> {
    let mut graphs = variant.graphs();
    let graph = graphs.find(|graph| directory.join(&graph.path) == path);
    let data = graph.into_iter().flat_map(|GraphEntry { data, .. }| data);
    let linked = data.filter_map(|data| {
        let file = directory.join(data);
        let found = file.symlink_metadata().ok()?;
        let name = file.strip_prefix(path.parent()?).ok()?.to_owned();
        let link = found.file_type().is_symlink();
        link.then_some(Linked { name, path: file })
    });
    linked.collect()
}
