//! How does Apple's LLaVA-style layout spell the names? Source: apple/ml-fastvlm,
//! `llava/model/multimodal_encoder/mobileclip/mci.py`.

use super::prefix::replace_prefix;
use crate::config::VisionConfig;

/// Prefixes outside the tower; the first match wins.
const PREFIXES: [(&str, &str); 11] = [
    ("model.mm_projector.0.", "multi_modal_projector.linear_1."),
    ("model.mm_projector.2.", "multi_modal_projector.linear_2."),
    ("mm_projector.0.", "multi_modal_projector.linear_1."),
    ("mm_projector.2.", "multi_modal_projector.linear_2."),
    ("model.embed_tokens.", "language_model.embed_tokens."),
    ("model.layers.", "language_model.layers."),
    ("model.norm.", "language_model.norm."),
    ("embed_tokens.", "language_model.embed_tokens."),
    ("layers.", "language_model.layers."),
    ("norm.", "language_model.norm."),
    ("lm_head.", "lm_head."),
];

const TOWER: [&str; 2] = [
    "model.vision_tower.vision_tower.model.",
    "vision_tower.vision_tower.model.",
];

/// Segments inside the tower: Apple's name and timm's. The first five are train-time branches.
const SEGMENTS: [(&str, &str); 9] = [
    ("rbr_conv", "conv_kxk"),
    ("rbr_scale", "conv_scale"),
    ("rbr_skip", "identity"),
    ("lkb_origin", "large_conv"),
    ("pe", "pos_enc"),
    ("lkb_reparam", "reparam_conv"),
    ("convffn", "mlp"),
    ("reduce", "fc1"),
    ("expand", "fc2"),
];

/// The unified name of a stored tensor.
pub(super) fn unify(name: &str, tower: &VisionConfig) -> Option<String> {
    match in_tower(name) {
        Some(rest) => Some(format!("vision_tower.{}", unify_tower(rest, tower)?)),
        None => replace_prefix(name, &PREFIXES),
    }
}

/// As [`unify`], of what stands after the tower's prefix.
pub(super) fn unify_tower(name: &str, tower: &VisionConfig) -> Option<String> {
    let (first, rest) = name.split_once('.')?;
    let (prefix, rest) = match first {
        "patch_embed" => ("stem".to_owned(), rest),
        "conv_exp" => ("final_conv".to_owned(), rest),
        "head" => ("head".to_owned(), rest),
        "network" => {
            let (index, rest) = rest.split_once('.')?;
            (network(tower, index.parse().ok()?)?, rest)
        }
        _ => return None,
    };
    let segment = |found: &str| match SEGMENTS.iter().find(|(apple, _)| *apple == found) {
        Some((_, timm)) => (*timm).to_owned(),
        None => found.to_owned(),
    };
    let rest: Vec<String> = rest.split('.').map(segment).collect();
    // Apple's layer scales are bare parameters, timm's are modules.
    let gamma = match rest.last().map(String::as_str) {
        Some("layer_scale" | "layer_scale_1" | "layer_scale_2") => ".gamma",
        _ => "",
    };
    Some(format!("{prefix}.{}{gamma}", rest.join(".")))
}

/// Apple's name of a unified one, for messages.
pub(super) fn spell(name: &str, tower: &VisionConfig) -> String {
    let Some(rest) = name.strip_prefix("vision_tower.") else {
        let prefix = PREFIXES
            .iter()
            .find_map(|(apple, unified)| Some((apple, name.strip_prefix(unified)?)));
        return prefix.map_or(name.to_owned(), |(apple, rest)| format!("{apple}{rest}"));
    };
    let modules = modules(tower).into_iter().enumerate();
    let mut prefixes = modules.map(|(index, module)| (format!("{module}."), format!("network.{index}.")));
    let (prefix, rest) = match rest.split_once('.') {
        Some(("stem", rest)) => ("patch_embed.".to_owned(), rest),
        Some(("final_conv", rest)) => ("conv_exp.".to_owned(), rest),
        _ => prefixes
            .find_map(|(module, apple)| Some((apple, rest.strip_prefix(&module)?)))
            .unwrap_or((String::new(), rest)),
    };
    let squeeze = rest.starts_with("se.");
    let segment = |found: &str| match found {
        "reparam_conv" if name.contains(".downsample.proj.0.") => "lkb_reparam".to_owned(),
        "reparam_conv" => found.to_owned(),
        "fc1" | "fc2" if !squeeze => found.to_owned(),
        _ => SEGMENTS
            .iter()
            .find(|(_, timm)| *timm == found)
            .map_or(found.to_owned(), |(apple, _)| (*apple).to_owned()),
    };
    let rest: Vec<String> = rest.split('.').map(segment).collect();
    let rest = rest.join(".");
    format!(
        "{}{prefix}{}",
        TOWER[0],
        rest.strip_suffix(".gamma").unwrap_or(&rest)
    )
}

/// What stands after the tower's prefix in Apple's name.
pub(super) fn in_tower(name: &str) -> Option<&str> {
    TOWER.iter().find_map(|prefix| name.strip_prefix(prefix))
}

/// What stands at an index of Apple's `network` list.
fn network(tower: &VisionConfig, index: usize) -> Option<String> {
    modules(tower).into_iter().nth(index)
}

/// Apple's `network` list: per stage a positional encoding, the blocks, and the downsampling into the next
/// stage (`FastViT.__init__`).
fn modules(tower: &VisionConfig) -> Vec<String> {
    let mut modules = Vec::new();
    let stages = tower.embed_dims.len();
    for stage in 0..stages {
        if tower.pos_embs.get(stage).copied().flatten().is_some() {
            modules.push(format!("stages.{stage}.pos_emb"));
        }
        modules.push(format!("stages.{stage}.blocks"));
        if stage + 1 < stages && tower.downsamples(stage + 1) {
            modules.push(format!("stages.{}.downsample", stage + 1));
        }
    }
    modules
}
