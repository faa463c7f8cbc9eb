//! How much does a precision lose? One image, one prompt and a fixed sequence of tokens through each form of a model, against
//! a reference: the features of the image, and the logits at every position.
//!
//! The tokens are given, not chosen (teacher forcing), so that every form is asked the same and an early slip does not
//! count again at every later position. Logits are looked at twice: end to end, after the form's own encoder; and of the
//! decoder alone, fed the features of the reference.

pub mod agreement;
pub mod calibrate;
pub mod collect;
pub mod demo;
pub mod file;
pub mod metrics;
pub mod script;
pub mod sensitivity;
pub mod table;

use crate::loaded::Combination;
use metrics::LogitsError;
use serde::Serialize;
use std::path::PathBuf;

/// Version of the JSON form; a change of meaning raises it.
pub const SCHEMA: u32 = 1;

/// What is fed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The image; a painted scene where there is none.
    pub image: Option<PathBuf>,
    /// Whether the prompt has no image at all.
    pub text_only: bool,
    /// The question.
    pub prompt: String,
    /// Tokens that are fed after the prompt.
    pub positions: usize,
}

/// What was computed of a script, by a form of ours or by another tool.
#[derive(Debug, Clone, PartialEq)]
pub struct Recording {
    /// Who computed.
    pub name: String,
    /// Ids of the prompt, one a position; see [`script::Script`].
    pub prompt_ids: Vec<i64>,
    /// Ids that were fed after it, one by one.
    pub token_ids: Vec<i64>,
    /// What was made of the image, `[3, height, width]`; `None` where the prompt has none, or the tool does not say.
    pub pixels: Option<Vec<f32>>,
    /// Image features; `None` where the prompt has no image.
    pub features: Option<Features>,
    /// Length of a row of `logits`.
    pub vocabulary: usize,
    /// `[positions, vocabulary]`: row `i` follows `token_ids[i]`.
    pub logits: Vec<f32>,
}

/// Image features.
#[derive(Debug, Clone, PartialEq)]
pub struct Features {
    /// Rows.
    pub tokens: usize,
    /// Length of a row.
    pub hidden: usize,
    /// `[tokens, hidden]`
    pub values: Vec<f32>,
}

impl Recording {
    /// The logits of a position.
    pub fn row(&self, position: usize) -> Option<&[f32]> {
        let start = position.checked_mul(self.vocabulary)?;
        self.logits.get(start..start.checked_add(self.vocabulary)?)
    }
}

/// How a form, or what another tool computed, differs from the reference.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    /// For people.
    pub name: String,
    /// The bundle's directory name; `None` for a file.
    pub bundle: Option<String>,
    /// Which form; `None` for a file.
    #[serde(flatten)]
    pub combination: Option<Combination>,
    /// Relative L2 distance of the image features; `None` without an image.
    pub features_relative_l2: Option<f64>,
    /// The logits, after the form's own features.
    pub end_to_end: LogitsError,
    /// The logits, after the features of the reference; `None` for a file, and without an image.
    pub decoder_alone: Option<LogitsError>,
    /// The demo model's held-out questions, where they were asked.
    pub demo_eval: Option<ExactMatch>,
    /// Greedy answers that are the reference's word for word, where they were asked for.
    pub agreement: Option<ExactMatch>,
}

/// How often another tool answered as the reference does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Other {
    /// Who answered.
    pub name: String,
    /// Its answers that are the reference's word for word.
    pub agreement: ExactMatch,
}

/// Answers that are right word for word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct ExactMatch {
    /// How many are.
    pub right: usize,
    /// How many were asked for.
    pub asked: usize,
}

/// All that was compared. The fields are stable; `schema` is raised when one changes its meaning.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// [`SCHEMA`].
    pub schema: u32,
    /// Program and version.
    pub tool: &'static str,
    /// The model's name in its bundle.
    pub model: String,
    /// Who computed the reference.
    pub reference: String,
    /// The reference's own answers to the demo model's questions, where they were asked.
    pub reference_demo_eval: Option<ExactMatch>,
    /// Name of the image; `None` without one.
    pub image: Option<String>,
    /// The question.
    pub prompt: String,
    /// Positions of the prompt.
    pub prompt_tokens: usize,
    /// Positions that were compared.
    pub positions: usize,
    /// In the order of the forms, then of the files.
    pub results: Vec<Row>,
    /// Tools whose answers were compared with the reference's.
    pub others: Vec<Other>,
}
