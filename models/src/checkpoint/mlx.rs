//! The layout of checkpoints for MLX, as mlx-vlm converts them (`vision_tower.vision_model.`): Apple's
//! modules with other prefixes, kernels with channels last, and matrices in groups of 4 or 8 bits. Source:
//! mlx-vlm, `mlx_vlm/models/fastvlm`, its `sanitize` functions.

#![deny(clippy::as_conversions)]

use super::llava;
use super::prefix::replace_prefix;
use super::tensor_file::{StoredTensor, TensorFile};
use crate::checkpoint::CheckpointError;
use crate::config::VisionConfig;
use serde_json::Value;
use std::path::Path;

/// The published checkpoints by the decoder's `hidden_size`.
const ORIGINALS: [(u64, &str); 3] = [
    (896, "FastVLM-0.5B"),
    (1536, "FastVLM-1.5B"),
    (3584, "FastVLM-7B"),
];

/// What mlx-vlm calls the tower.
pub(super) const TOWER: &str = "vision_tower.vision_model.";
/// Its name of the stem, and Apple's.
const STEM: (&str, &str) = ("patch_embed.blocks.", "patch_embed.");

/// Prefixes outside the tower; the first match wins.
const PREFIXES: [(&str, &str); 5] = [
    ("mm_projector.0.", "multi_modal_projector.linear_1."),
    ("mm_projector.2.", "multi_modal_projector.linear_2."),
    ("language_model.model.", "language_model."),
    ("language_model.lm_head.", "lm_head."),
    ("lm_head.", "lm_head."),
];

/// Orders of dimensions by which MLX stores a kernel `[output, input, height, width]` with channels last, and
/// a layer scale `[channels, 1, 1]`.
const KERNEL: [usize; 4] = [0, 3, 1, 2];
const SCALE: [usize; 3] = [2, 0, 1];

/// The unified name of a stored tensor.
pub(super) fn unify(name: &str, tower: &VisionConfig) -> Option<String> {
    match name.strip_prefix(TOWER) {
        Some(rest) => {
            let rest = match rest.strip_prefix(STEM.0) {
                Some(rest) => format!("{}{rest}", STEM.1),
                None => rest.to_owned(),
            };
            Some(format!("vision_tower.{}", llava::unify_tower(&rest, tower)?))
        }
        None => replace_prefix(name, &PREFIXES),
    }
}

/// mlx-vlm's name of a unified one, for messages.
pub(super) fn spell(name: &str, tower: &VisionConfig) -> String {
    if name.starts_with("vision_tower.") {
        let apple = llava::spell(name, tower);
        let rest = llava::in_tower(&apple).unwrap_or(&apple);
        return match rest.strip_prefix(STEM.1) {
            Some(rest) => format!("{TOWER}{}{rest}", STEM.0),
            None => format!("{TOWER}{rest}"),
        };
    }
    let prefix = PREFIXES
        .iter()
        .find_map(|(own, unified)| Some((own, name.strip_prefix(unified)?)));
    prefix.map_or(name.to_owned(), |(own, rest)| format!("{own}{rest}"))
}

/// Gives the tower's kernels and scales the order of dimensions that all other layouts have, where they lie.
pub(super) fn channels_first(files: &mut [TensorFile]) {
    for file in files {
        file.rearrange(&|tensor: &StoredTensor| order(&tensor.name, tensor.shape.len()));
    }
}

/// Where each dimension of a tensor lies in its file, if that is another place.
fn order(name: &str, rank: usize) -> Option<&'static [usize]> {
    let rest = name.strip_prefix(TOWER)?;
    let scale = rest.rsplit('.').next()?.starts_with("layer_scale");
    match rank {
        4 => Some(&KERNEL),
        3 if scale => Some(&SCALE),
        _ => None,
    }
}

/// A shape as the file has it, for messages.
pub(super) fn as_in_file(name: &str, shape: &[u64]) -> Vec<u64> {
    let mut stored = shape.to_vec();
    for (side, &place) in shape.iter().zip(order(name, shape.len()).unwrap_or_default()) {
        stored[place] = *side;
    }
    stored
}

/// Refuses a checkpoint for MLX whose tower is elsewhere, naming the checkpoint that it was made from:
/// Apple's exports hold it only as a Core ML package.
pub(super) fn refuse<'a>(
    directory: &Path,
    config: &Value,
    mut names: impl Iterator<Item = &'a str>,
) -> Result<(), CheckpointError> {
    let package = directory.join("fastvithd.mlpackage").exists();
    let quantized = config.get("quantization").is_some_and(Value::is_object);
    let tower = names.any(|name| name.contains("vision_tower."));
    if tower || !(package || quantized) {
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
            "is an MLX export, which has no weights of the vision tower; use the original checkpoint \
             `apple/{original}`"
        ),
    })
}
