//! What did the published implementation compute? The recorded references of `conformance/golden` (schema in its
//! README), opened and checked.

use crate::compare::{Comparison, Distance, Tolerance, measure};
use crate::safetensors::{self, SafetensorsError};
use crate::tensor::{Tensor, index_of, strides_of};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use thiserror::Error;

/// The schema that this build reads.
pub const SCHEMA: u32 = 1;

/// A reference that cannot be used.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ReferenceError {
    /// The file cannot be read.
    #[error("reference {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is not what its schema says.
    #[error("reference {}: {problem}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// Where it departs from the schema.
        problem: String,
    },
    /// The tensors beside it cannot be read.
    #[error("reference tensors {0}")]
    Tensors(#[from] SafetensorsError),
}

/// A recorded reference with its tensors.
#[derive(Debug, Deserialize)]
pub struct Reference {
    /// [`SCHEMA`].
    pub schema: u32,
    /// The file's stem.
    pub name: String,
    /// Which weights it was recorded with.
    pub checkpoint: Source,
    /// Who recorded it.
    pub recorder: Recorder,
    tolerances: BTreeMap<String, BTreeMap<String, Limit>>,
    tensors: String,
    /// Positions that one image takes in the sequence; absent where no case has an image.
    pub image_tokens: Option<usize>,
    /// In the order of running.
    pub cases: Vec<RecordedCase>,
    #[serde(skip)]
    data: BTreeMap<String, Tensor>,
    /// Where the file lies: paths of images may be relative to it.
    #[serde(skip)]
    pub directory: PathBuf,
}

/// Where the weights of a reference come from.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Source {
    /// `fvlm-conform synth` makes them.
    Synth {
        /// `demo`, `0.5b`, ...
        size: String,
        /// `llava`, `transformers`, `transformers-train`.
        layout: String,
        /// `fp32`, `fp16`, `bf16`.
        dtype: String,
        /// Seed of the generator.
        seed: u64,
        /// Whether massive activations are planted.
        outliers: bool,
        /// Another tokenizer than the stand-in.
        tokenizer: Option<String>,
    },
    /// A directory of the repository.
    Directory {
        /// Relative to the repository's root.
        path: String,
        /// Of its `model.safetensors`, where somebody wrote it down.
        sha256: Option<String>,
    },
    /// A user's own.
    External {
        /// What the user called it.
        id: String,
    },
}

/// Who recorded a reference.
#[derive(Debug, Clone, Deserialize)]
pub struct Recorder {
    /// The command line.
    pub command: String,
    /// Programs and libraries with their versions.
    pub versions: BTreeMap<String, serde_json::Value>,
    /// Whose code computed it.
    pub architecture: String,
    /// Element type of the computation.
    pub dtype: String,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
struct Limit {
    relative_l2: Option<f64>,
    max_abs: Option<f64>,
}

/// One batch: images, prompts, steps, and what they gave.
#[derive(Debug, Clone, Deserialize)]
pub struct RecordedCase {
    /// Unique in the reference.
    pub name: String,
    /// In the order in which rows use them.
    pub images: Vec<RecordedImage>,
    /// One per sequence of the batch.
    pub rows: Vec<Row>,
    /// `[step][row]`: ids fed one by one after the prompt.
    pub feed: Vec<Vec<i64>>,
    /// What to compare, in network order.
    pub checks: Vec<Check>,
}

/// An image of a case.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum RecordedImage {
    /// Drawn by `synth::image::scene`.
    Scene {
        /// In pixels.
        width: usize,
        /// In pixels.
        height: usize,
        /// Seed of the drawing.
        seed: u64,
        /// Of its RGB bytes.
        sha256: String,
    },
    /// A file of the repository, or of the user.
    File {
        /// Relative to the repository or to the reference.
        path: String,
        /// Of the file.
        sha256: String,
    },
}

/// One sequence of a batch.
#[derive(Debug, Clone, Deserialize)]
pub struct Row {
    /// The prompt.
    pub segments: Vec<Segment>,
    /// The prompt as text; absent where the ids were made up.
    pub text: Option<String>,
    /// What a user asked, where the prompt is one turn of the chat template.
    pub question: Option<String>,
    /// Ids of the greedy continuation.
    pub greedy: Vec<i64>,
    /// For each greedy id: by how much it won.
    pub margins: Vec<f64>,
    /// `greedy` decoded without special tokens.
    pub answer: Option<String>,
}

/// A piece of a prompt.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub enum Segment {
    /// Token ids.
    Ids {
        /// In order.
        ids: Vec<i64>,
    },
    /// An image of the case.
    Image {
        /// Index into the case's images.
        image: usize,
    },
}

/// One recorded tensor.
#[derive(Debug, Clone, Deserialize)]
pub struct Check {
    /// Its name: `vision_tower.stages.2`, `prefill.logits`.
    pub value: String,
    /// Of the whole tensor.
    pub shape: Vec<usize>,
    tolerance: String,
    tensor: String,
    indices: Option<String>,
    norm: f64,
    abs_max: f64,
    top: Option<Top>,
    padding: Option<Vec<usize>>,
}

/// The largest logits of each row.
#[derive(Debug, Clone, Deserialize)]
struct Top {
    ids: Vec<Vec<usize>>,
    logits: Vec<Vec<f64>>,
}

impl Reference {
    /// Opens `NAME.json` and the tensors beside it.
    ///
    /// # Errors
    /// Unreadable files, another schema, names that lead nowhere.
    pub fn open(path: &Path) -> Result<Reference, ReferenceError> {
        let read = |path: &Path| {
            std::fs::read(path).map_err(|source| ReferenceError::Read {
                path: path.to_owned(),
                source,
            })
        };
        let text = read(path)?;
        let tensors = read(&path.with_extension("safetensors"))?;
        Reference::parse(path, &text, &tensors)
    }

    /// Checks the contents of the two files; `path` names them in errors.
    ///
    /// # Errors
    /// As [`Reference::open`].
    pub fn parse(path: &Path, text: &[u8], tensors: &[u8]) -> Result<Reference, ReferenceError> {
        let fail = |problem: String| ReferenceError::Content {
            path: path.to_owned(),
            problem,
        };
        let mut reference: Reference =
            serde_json::from_slice(text).map_err(|error| fail(error.to_string()))?;
        if reference.schema != SCHEMA {
            return Err(fail(format!("schema {}, expected {SCHEMA}", reference.schema)));
        }
        let file = path.with_extension("safetensors");
        if Path::new(&reference.tensors).file_name() != file.file_name() {
            return Err(fail(format!(
                "tensors are in `{}`, expected the same stem",
                reference.tensors
            )));
        }
        reference.data = safetensors::parse(&file, tensors)?;
        reference.directory = path.parent().map(Path::to_owned).unwrap_or_default();
        let problems = reference.problems();
        if problems.is_empty() {
            Ok(reference)
        } else {
            Err(fail(problems.join("; ")))
        }
    }

    /// The recorded elements of a check that the reference holds whole: `pixel_values`, `image_features`.
    pub fn whole(&self, check: &Check) -> Option<Tensor> {
        check
            .indices
            .is_none()
            .then(|| self.data.get(&check.tensor).cloned())
            .flatten()
    }

    /// Compares a computed tensor with a check of this reference.
    pub fn compare(&self, check: &Check, precision: &str, found: &Tensor) -> Comparison {
        let limit = self
            .tolerances
            .get(&check.tolerance)
            .and_then(|limits| limits.get(precision))
            .copied();
        let Some(limit) = limit else {
            let problem = format!(
                "the reference has no tolerance `{}` for {precision}",
                check.tolerance
            );
            return Comparison::refused(&check.value, Tolerance::Exact, problem);
        };
        let tolerance = Tolerance::Custom(limit.relative_l2.unwrap_or(f64::INFINITY));
        if found.shape != check.shape {
            let problem = format!("shape {:?}, expected {:?}", found.shape, check.shape);
            return Comparison::refused(&check.value, tolerance, problem);
        }
        let values = found.to_float();
        let expected = self.data[&check.tensor].to_float();
        let distance = match &check.indices {
            None => measure(&values, &expected, &check.shape, tolerance),
            Some(indices) => {
                let places = self.data[indices].as_int().unwrap_or_default();
                let picked: Vec<f32> = places
                    .iter()
                    .map(|&i| usize::try_from(i).map_or(f32::NAN, |i| values[i]))
                    .collect();
                let mut distance = measure(&picked, &expected, &[picked.len()], tolerance);
                if let Some(first) = &mut distance.first {
                    let place = usize::try_from(places[first.index[0]]).unwrap_or(0);
                    first.index = index_of(&check.shape, place);
                }
                distance
            }
        };
        let mut comparison = Comparison::judge(&check.value, tolerance, distance);
        if comparison.passed() {
            comparison.problem = over(limit.max_abs, comparison.distance.as_ref())
                .or_else(|| check.whole_problem(&values, limit))
                .or_else(|| check.top_problem(&values, limit));
        }
        comparison
    }

    /// By how much a greedy choice must have won for an engine to have to choose alike: float32 always has to; halves
    /// only where their tolerance cannot swap the two best.
    pub fn decisive_margin(&self, case: &RecordedCase, precision: &str) -> f64 {
        if precision == "fp32" {
            return 0.0;
        }
        let check = case.checks.iter().find(|check| check.value == "prefill.logits");
        let margin = check.and_then(|check| {
            let limit = self.tolerances.get(&check.tolerance)?.get(precision)?;
            Some(2.0 * limit.relative_l2? * check.abs_max)
        });
        margin.unwrap_or(f64::INFINITY)
    }

    fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        for case in &self.cases {
            for check in &case.checks {
                let place = format!("case `{}`, `{}`", case.name, check.value);
                let count: usize = check.shape.iter().product();
                match (
                    self.data.get(&check.tensor),
                    check.indices.as_ref().map(|name| self.data.get(name)),
                ) {
                    (None, _) => problems.push(format!("{place}: no tensor `{}`", check.tensor)),
                    (_, Some(None)) => problems.push(format!("{place}: no indices")),
                    (Some(tensor), None) if tensor.len() != count => {
                        problems.push(format!("{place}: {} elements, expected {count}", tensor.len()));
                    }
                    (Some(tensor), Some(Some(indices))) => {
                        let legal = |&i: &i64| usize::try_from(i).is_ok_and(|i| i < count);
                        if !indices
                            .as_int()
                            .is_some_and(|i| i.len() == tensor.len() && i.iter().all(legal))
                        {
                            problems.push(format!("{place}: the indices do not fit"));
                        }
                    }
                    (Some(_), None) => {}
                }
                if !self.tolerances.contains_key(&check.tolerance) {
                    problems.push(format!("{place}: no tolerance `{}`", check.tolerance));
                }
            }
            let images = case.images.len();
            for segment in case.rows.iter().flat_map(|row| &row.segments) {
                if matches!(segment, Segment::Image { image } if *image >= images) {
                    problems.push(format!(
                        "case `{}`: a segment names an image that is not there",
                        case.name
                    ));
                }
            }
            if case.rows.iter().any(|row| row.margins.len() != row.greedy.len()) {
                problems.push(format!(
                    "case `{}`: a row does not have one margin per greedy id",
                    case.name
                ));
            }
            if case.feed.iter().any(|ids| ids.len() != case.rows.len()) {
                problems.push(format!(
                    "case `{}`: `feed` does not have one id per row",
                    case.name
                ));
            }
        }
        problems
    }
}

fn over(limit: Option<f64>, distance: Option<&Distance>) -> Option<String> {
    let (limit, found) = (limit?, distance?.max_abs);
    (found > limit).then(|| format!("largest difference {found:.3e}, allowed {limit:.3e}"))
}

impl Row {
    /// How many of the greedy ids must come out where only choices that won by more than `margin` count.
    pub fn decided(&self, margin: f64) -> usize {
        // A reference without margins decides nothing by them.
        let decided = self.margins.iter().take_while(|&&won| won > margin).count();
        decided.min(self.greedy.len())
    }
}

impl Check {
    /// Norm and largest magnitude of the whole tensor: what sampled elements cannot see.
    fn whole_problem(&self, values: &[f32], limit: Limit) -> Option<String> {
        let relative = limit.relative_l2?;
        let strides = strides_of(&self.shape);
        let in_padding = |position: usize| {
            let Some(padding) = &self.padding else {
                return false;
            };
            let row = position / strides[0];
            let place = position / strides[2] % self.shape[2];
            place < padding.get(row).copied().unwrap_or(0)
        };
        let mut square = 0.0_f64;
        let mut largest = 0.0_f64;
        for (position, &value) in values.iter().enumerate() {
            if !in_padding(position) {
                square += f64::from(value) * f64::from(value);
                largest = largest.max(f64::from(value).abs());
            }
        }
        let norm = square.sqrt();
        // NaN compares as false, so the condition asks what is right.
        let near = |found: f64, expected: f64, limit: f64| {
            (found - expected).abs() <= limit * expected.abs().max(1e-12)
        };
        if !near(norm, self.norm, relative) {
            return Some(format!(
                "norm {norm:.6e}, expected {:.6e} within {relative:e}",
                self.norm
            ));
        }
        // One element may be off by more than the whole is; still, the largest is a large one.
        if !near(largest, self.abs_max, 10.0 * relative) {
            return Some(format!(
                "largest magnitude {largest:.6e}, expected {:.6e}",
                self.abs_max
            ));
        }
        None
    }

    /// The best ids of each row, as far as their logits lie apart enough to be told.
    fn top_problem(&self, values: &[f32], limit: Limit) -> Option<String> {
        let top = self.top.as_ref()?;
        let width = *self.shape.last()?;
        let tolerance = limit.relative_l2? * self.abs_max * 2.0;
        for (row, (ids, logits)) in top.ids.iter().zip(&top.logits).enumerate() {
            let found = values.get(row * width..(row + 1) * width)?;
            let best = argmax(found)?;
            let clear = logits.len() < 2 || logits[0] - logits[1] > tolerance;
            if clear && ids.first() != Some(&best) {
                return Some(format!(
                    "row {row}: the largest logit is that of id {best}, expected {}",
                    ids[0]
                ));
            }
        }
        None
    }
}

/// Index of the largest element; the first of equals.
pub fn argmax(values: &[f32]) -> Option<usize> {
    let mut best: Option<(usize, f32)> = None;
    for (index, &value) in values.iter().enumerate() {
        if best.is_none_or(|(_, highest)| value > highest) {
            best = Some((index, value));
        }
    }
    best.map(|(index, _)| index)
}
