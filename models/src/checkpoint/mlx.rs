//! Is this a checkpoint for MLX? Apple's exports hold the tower only as a Core ML package, so there is nothing
//! to export; mlx-vlm's conversions have other names and store convolutions channels last.

use crate::checkpoint::CheckpointError;
use serde_json::Value;
use std::path::Path;

/// The published checkpoints by the decoder's `hidden_size`.
const ORIGINALS: [(u64, &str); 3] = [
    (896, "FastVLM-0.5B"),
    (1536, "FastVLM-1.5B"),
    (3584, "FastVLM-7B"),
];

/// What mlx-vlm calls the tower.
const CONVERTED: &str = "vision_tower.vision_model.";

/// Refuses a checkpoint for MLX, naming the checkpoint that it was made from.
pub(super) fn refuse<'a>(
    directory: &Path,
    config: &Value,
    names: impl Iterator<Item = &'a str>,
) -> Result<(), CheckpointError> {
    let package = directory.join("fastvithd.mlpackage").exists();
    let quantized = config.get("quantization").is_some_and(Value::is_object);
    let (mut tower, mut converted) = (false, false);
    for name in names {
        tower |= name.contains("vision_tower.");
        converted |= name.starts_with(CONVERTED);
    }
    if !converted && !quantized && (tower || !package) {
        return Ok(());
    }
    let what = if converted && !quantized {
        "is a conversion by mlx-vlm, whose tensors have other names and other orders of dimensions"
    } else {
        "is an MLX export, which has no weights of the vision tower"
    };
    let hidden = config.get("hidden_size").and_then(Value::as_u64);
    let original = ORIGINALS
        .iter()
        .find(|(size, _)| Some(*size) == hidden)
        .map_or("FastVLM-*", |(_, name)| name);
    Err(CheckpointError::NotACheckpoint {
        path: directory.to_owned(),
        problem: format!("{what}; use the original checkpoint `apple/{original}`"),
    })
}
