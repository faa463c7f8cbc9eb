//! What became of each tensor of a checkpoint: used, ignored by a rule, or said to be left out.

use super::adapter::Merged;
use super::tensor_file::TensorFile;
use serde::Serialize;

/// What became of a checkpoint's tensors.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Accounting {
    /// Tensors that canonical weights are made from, sorted.
    pub used: Vec<Used>,
    /// Tensors that are not needed, sorted.
    pub ignored: Vec<Ignored>,
    /// What adapters made of tensors of the checkpoint, sorted; left out where there are none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub merged: Vec<Merged>,
    /// What the user should know: where config and tensors disagree and the tensors were believed.
    pub warnings: Vec<String>,
}

/// A tensor that a canonical weight is made from.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Used {
    /// The checkpoint's name.
    pub tensor: String,
    /// The canonical weight; of a folded convolution, its `.weight`.
    pub weight: String,
}

/// A tensor that is not needed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Ignored {
    /// The checkpoint's name.
    pub tensor: String,
    /// Why not.
    pub rule: String,
}

/// What to say about what stands in a torch file beside the tensors.
pub(super) fn skipped(file: &TensorFile) -> Option<String> {
    let first = file.skipped().first()?;
    let more = match file.skipped().len() - 1 {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let name = file.path().file_name().unwrap_or_default().to_string_lossy();
    Some(format!(
        "`{name}` has `{first}`{more} beside the model's tensors: not read"
    ))
}
