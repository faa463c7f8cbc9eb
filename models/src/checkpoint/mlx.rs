//! Is this one of Apple's MLX exports? They hold the tower only as a Core ML package, so there is nothing to
//! export.

use crate::checkpoint::CheckpointError;
use serde_json::Value;
use std::path::Path;

/// The published checkpoints by the decoder's `hidden_size`.
const ORIGINALS: [(u64, &str); 3] = [
    (896, "FastVLM-0.5B"),
    (1536, "FastVLM-1.5B"),
    (3584, "FastVLM-7B"),
];

/// Refuses an MLX export, naming the checkpoint that it was made from.
pub(super) fn refuse<'a>(
    directory: &Path,
    config: &Value,
    mut names: impl Iterator<Item = &'a str>,
) -> Result<(), CheckpointError> {
    let package = directory.join("fastvithd.mlpackage").exists();
    let quantized = config.get("quantization").is_some_and(Value::is_object);
    let tower = names.any(|name| name.contains("vision_tower."));
    if !quantized && (tower || !package) {
        return Ok(());
    }
    let hidden = config.get("hidden_size").and_then(Value::as_u64);
    let original = ORIGINALS
        .iter()
        .find(|(size, _)| Some(*size) == hidden)
        .map_or("FastVLM-*", |(_, name)| name);
    Err(CheckpointError::NotACheckpoint {
        path: directory.to_owned(),
        problem: format!(
            "is an MLX export, which has no weights of the vision tower; use the original checkpoint `apple/{original}`"
        ),
    })
}
