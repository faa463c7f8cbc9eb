//! Where does a graph's external data lie? Beside the graph, or where links beside it lead to: the Hugging Face cache has
//! links into a folder `blobs/`, and tract takes no file from outside the folder that it is given.

use std::path::{Component, Path, PathBuf};
use tract_onnx::pb::{ModelProto, TensorProto};
use tract_onnx::prelude::TractResult;
use tract_onnx::tract_hir::internal::{TractErrorContext as _, ensure};

/// The folder that tract is to take a graph's external data from. Where links lead out of the folder of the graph, that is
/// the root of the file system, and the locations in the graph become those of the files themselves.
///
/// # Errors
/// A location that is not inside the folder of the graph, links aside.
pub(super) fn resolve(proto: &mut ModelProto, path: &Path) -> TractResult<PathBuf> {
    let beside = path.parent().unwrap_or(Path::new("")).to_owned();
    let Some(graph) = &mut proto.graph else {
        return Ok(beside);
    };
    let mut locations: Vec<&str> = graph.initializer.iter().filter_map(location).collect();
    locations.sort_unstable();
    locations.dedup();
    if !locations.iter().any(|location| is_link(&beside.join(location))) {
        return Ok(beside);
    }
    for tensor in &mut graph.initializer {
        let Some(location) = location(tensor).map(str::to_owned) else {
            continue;
        };
        let inside = Path::new(&location)
            .components()
            .all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
        ensure!(
            inside,
            "`{}` lies in {location:?}, which is not inside the model's directory",
            tensor.name
        );
        let found = beside.join(&location);
        let found = found
            .canonicalize()
            .with_context(|| format!("opening {}", found.display()))?;
        let inside: PathBuf = found
            .components()
            .filter(|part| matches!(part, Component::Normal(_)))
            .collect();
        let text = inside.to_str().context("a path that is not UTF-8")?.to_owned();
        for entry in &mut tensor.external_data {
            if entry.key == "location" {
                entry.value.clone_from(&text);
            }
        }
    }
    let root = beside.canonicalize()?;
    Ok(root.ancestors().last().unwrap_or(&root).to_owned())
}

fn location(tensor: &TensorProto) -> Option<&str> {
    let mut entries = tensor.external_data.iter();
    let entry = entries.find(|entry| entry.key == "location");
    entry.map(|entry| entry.value.as_str())
}

fn is_link(path: &Path) -> bool {
    path.symlink_metadata()
        .is_ok_and(|found| found.file_type().is_symlink())
}
