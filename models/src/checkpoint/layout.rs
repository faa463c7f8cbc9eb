//! Which names does a layout give to the tensors? Every layout is a table from its names to unified ones:
//! canonical prefixes with timm's suffixes (`vision_tower.stem.0.conv_kxk.0.bn.weight`), train-time branches
//! included.

use super::prefix::replace_prefix;
use super::{llava, mlx};
use crate::config::{Layout, VisionConfig};

/// What a layout makes of a stored name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Unified {
    /// The unified name.
    Name(String),
    /// Not needed, by this rule.
    Ignored(&'static str),
    /// No rule mentions it.
    Unknown,
}

/// Prefixes of the transformers layout; the first match wins. Files of transformers 4 lack the leading
/// `model.`, or have it after `language_model.`.
const TRANSFORMERS: [(&str, &str); 9] = [
    ("model.vision_tower.timm_model.", "vision_tower."),
    ("vision_tower.timm_model.", "vision_tower."),
    ("model.multi_modal_projector.", "multi_modal_projector."),
    ("multi_modal_projector.", "multi_modal_projector."),
    ("model.language_model.", "language_model."),
    ("language_model.model.", "language_model."),
    ("language_model.lm_head.", "lm_head."),
    ("language_model.", "language_model."),
    ("lm_head.", "lm_head."),
];

/// Endings and unified beginnings of tensors that inference does not need.
const IGNORED_ENDINGS: [(&str, &str); 2] = [
    (".num_batches_tracked", "counter of training steps"),
    (".rotary_emb.inv_freq", "computed from rope_theta"),
];
const IGNORED_PREFIXES: [(&str, &str); 1] = [("vision_tower.head.", "classifier of the tower, never used")];

impl Layout {
    /// The layout's name in flags, bundles and messages.
    pub const fn name(self) -> &'static str {
        match self {
            Layout::Llava => "llava",
            Layout::Transformers => "transformers",
            Layout::Mlx => "mlx",
        }
    }

    /// The unified name of a stored tensor.
    pub(super) fn unify(self, name: &str, tower: &VisionConfig) -> Unified {
        if let Some((_, rule)) = IGNORED_ENDINGS.iter().find(|(ending, _)| name.ends_with(ending)) {
            return Unified::Ignored(rule);
        }
        let unified = match self {
            Layout::Transformers => replace_prefix(name, &TRANSFORMERS),
            Layout::Llava => llava::unify(name, tower),
            Layout::Mlx => mlx::unify(name, tower),
        };
        match unified {
            None => Unified::Unknown,
            Some(unified) => match IGNORED_PREFIXES
                .iter()
                .find(|(prefix, _)| unified.starts_with(prefix))
            {
                Some((_, rule)) => Unified::Ignored(rule),
                None => Unified::Name(unified),
            },
        }
    }

    /// The layout's name for a unified one, for messages; the first of several.
    pub(super) fn spell(self, unified: &str, tower: &VisionConfig) -> String {
        match self {
            Layout::Llava => llava::spell(unified, tower),
            Layout::Mlx => mlx::spell(unified, tower),
            Layout::Transformers => {
                let prefix = TRANSFORMERS
                    .iter()
                    .find_map(|(own, to)| Some((own, unified.strip_prefix(to)?)));
                match prefix {
                    // The head is named alike in all versions; the table's first entry for it is an old
                    // one's.
                    Some((own, rest)) if !unified.starts_with("lm_head.") => format!("{own}{rest}"),
                    _ => unified.to_owned(),
                }
            }
        }
    }

    /// The layout whose marker the tensors bear: the projector's name, or mlx-vlm's of the tower. Several are
    /// none.
    pub(super) fn of_tensors<'a>(names: impl Iterator<Item = &'a str>) -> Option<Layout> {
        let (mut llava, mut transformers, mut converted) = (false, false, false);
        for name in names {
            converted |= name.starts_with(mlx::TOWER);
            let name = name.strip_prefix("model.").unwrap_or(name);
            llava |= name.starts_with("mm_projector.");
            transformers |= name.starts_with("multi_modal_projector.");
        }
        match (llava, transformers, converted) {
            (true, false, false) => Some(Layout::Llava),
            (false, true, false) => Some(Layout::Transformers),
            (_, false, true) => Some(Layout::Mlx),
            _ => None,
        }
    }
}
