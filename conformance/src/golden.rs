//! What did the published implementation compute? The recorded references of `conformance/golden` (schema in its
//! README), opened, and compared with what is computed here.

mod contradictions;

use crate::array::Array;
use crate::compare::{Comparison, Distance, Tolerance, measure};
use crate::safetensors::{self, SafetensorsError};
use models::bundle::Precision;
use ndarray::{ArrayViewD, Axis, Dimension as _, IxDyn, Slice};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use thiserror::Error;

/// The schema that this build reads.
pub const SCHEMA: u32 = 1;

/// What the runtime makes of an image, in every precision the same.
const PIXELS: &str = "pixel_values";

/// The tolerance of pixels out of a JPEG.
const VAGUE: &str = "jpeg_pixels";

/// How much farther than the recorded limit float16 may be off on AArch64: there ONNX Runtime adds halves up in halves, where it
/// computes in float32 on x86-64. 1.27 times the limit was measured (`scripts/check_platforms arm64`, 2026-11-30, under qemu).
const HALVES_ADDED_UP: f64 = 1.6;

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
    /// Side of the square that images became, in pixels; absent where it was the model's own.
    pub image_size: Option<u32>,
    /// Positions that one image takes in the sequence; absent where no case has an image.
    pub image_tokens: Option<usize>,
    /// In the order of running.
    pub cases: Vec<RecordedCase>,
    #[serde(skip)]
    data: BTreeMap<String, Array>,
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
            models::regular::bytes(path, u64::MAX).map_err(|source| ReferenceError::Read {
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
    pub fn whole(&self, check: &Check) -> Option<Array> {
        check
            .indices
            .is_none()
            .then(|| self.data.get(&check.tensor).cloned())
            .flatten()
    }

    /// Compares a computed tensor with a check of this reference.
    pub fn compare(&self, check: &Check, precision: Precision, found: &Array) -> Comparison {
        let Some(limit) = self.limit(check, precision) else {
            let problem = format!(
                "the reference has no tolerance `{}` for {}",
                check.tolerance,
                precision.name()
            );
            return Comparison::refused(&check.value, Tolerance::Exact, problem);
        };
        let tolerance = self
            .rounded(check, precision)
            .unwrap_or(Tolerance::Custom(limit.relative_l2.unwrap_or(f64::INFINITY)));
        if found.shape() != check.shape {
            let problem = format!("shape {:?}, expected {:?}", found.shape(), check.shape);
            return Comparison::refused(&check.value, tolerance, problem);
        }
        let (values, expected) = (found.to_float(), self.data[&check.tensor].to_float());
        let indices = check.indices.as_ref().and_then(|name| self.data[name].as_int());
        let distance = match indices {
            None => match expected.to_shape(IxDyn(&check.shape)) {
                Ok(expected) => measure(&values.view(), &expected.view(), tolerance),
                Err(error) => return Comparison::refused(&check.value, tolerance, error.to_string()),
            },
            Some(places) => {
                let flat = values.flatten();
                let pick = |&place: &i64| usize::try_from(place).map_or(f32::NAN, |place| flat[place]);
                let picked = places.map(pick);
                let mut distance = measure(&picked.view(), &expected.view(), tolerance);
                if let Some(first) = &mut distance.first {
                    let place = usize::try_from(places[&*first.index]).unwrap_or(0);
                    let place = values.indexed_iter().nth(place);
                    first.index = place.map_or_else(Vec::new, |(index, _)| index.slice().to_vec());
                }
                distance
            }
        };
        let mut comparison = Comparison::judge(&check.value, tolerance, distance);
        if comparison.passed() {
            comparison.problem = over(limit.max_abs, comparison.distance.as_ref())
                .or_else(|| check.whole_problem(&values.view(), limit))
                .or_else(|| check.top_problem(&values.view(), limit));
        }
        comparison
    }

    /// How far a tensor may lie from a check. Pixels are the same in every precision; what rounding weights to bytes and
    /// nibbles costs is [`Tolerance`]'s to say, for a recorder knows nothing of it.
    fn limit(&self, check: &Check, precision: Precision) -> Option<Limit> {
        let limits = self.tolerances.get(&check.tolerance)?;
        if let Some(tolerance) = self.rounded(check, precision) {
            return Some(Limit {
                relative_l2: Some(tolerance.relative_l2()),
                max_abs: None,
            });
        }
        let precision = match check.value.as_str() {
            PIXELS => Precision::Fp32,
            _ => precision,
        };
        let limit = limits.get(precision.name()).copied()?;
        let wider = precision == Precision::Fp16 && cfg!(target_arch = "aarch64");
        Some(Limit {
            relative_l2: limit
                .relative_l2
                .map(|most| if wider { most * HALVES_ADDED_UP } else { most }),
            ..limit
        })
    }

    /// The tolerance that rounded weights give a tensor, where they do.
    fn rounded(&self, check: &Check, precision: Precision) -> Option<Tolerance> {
        match check.value.as_str() {
            PIXELS => None,
            // A user's own weights were trained: the wide limits are of noise, and let logits of nothing but zeros pass.
            value => {
                let random = matches!(self.checkpoint, Source::Synth { .. });
                Tolerance::of_rounded(precision, value, !random)
            }
        }
    }

    /// Whether it is of the demo model, which was trained; others are random.
    fn is_trained(&self) -> bool {
        matches!(self.checkpoint, Source::Directory { .. })
    }

    /// By how much a greedy choice must have won for an engine to have to choose alike: float32 always has to, and so do
    /// bytes and nibbles of the demo model, which was trained to be sure of its words; others only where their tolerance
    /// cannot swap the two best, and so does what follows from pixels of a JPEG, about which decoders disagree.
    pub fn decisive_margin(&self, case: &RecordedCase, precision: Precision) -> f64 {
        let vague = case.checks.iter().any(|check| check.tolerance == VAGUE);
        let sure = match precision {
            Precision::Fp32 => true,
            Precision::Fp16 => false,
            Precision::Int8 | Precision::Q8 | Precision::Q4 | Precision::Q4F16 => self.is_trained(),
        };
        if sure && !vague {
            return 0.0;
        }
        let check = logits_of(case).or_else(|| self.cases.iter().find_map(logits_of));
        let precision = if precision == Precision::Fp32 {
            Precision::Fp16
        } else {
            precision
        };
        let margin =
            check.and_then(|check| Some(2.0 * self.limit(check, precision)?.relative_l2? * check.abs_max));
        margin.unwrap_or(f64::INFINITY)
    }
}

fn logits_of(case: &RecordedCase) -> Option<&Check> {
    case.checks.iter().find(|check| check.value == "prefill.logits")
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
    fn whole_problem(&self, values: &ArrayViewD<'_, f32>, limit: Limit) -> Option<String> {
        let relative = limit.relative_l2?;
        let mut square = 0.0_f64;
        let mut largest = 0.0_f64;
        // `[batch, heads, slots, width]` where there is padding, `hidden` slots of a row.
        let real = match &self.padding {
            Some(padding) => {
                let rows = values.outer_iter().zip(padding);
                rows.map(|(mut row, &hidden)| {
                    row.slice_axis_inplace(Axis(1), Slice::from(hidden.min(self.shape[2])..));
                    row
                })
                .collect()
            }
            None => vec![values.view()],
        };
        for &value in real.iter().flatten() {
            square += f64::from(value) * f64::from(value);
            largest = largest.max(f64::from(value).abs());
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
    fn top_problem(&self, values: &ArrayViewD<'_, f32>, limit: Limit) -> Option<String> {
        let top = self.top.as_ref()?;
        let tolerance = limit.relative_l2? * self.abs_max * 2.0;
        let rows = values.outer_iter().zip(top.ids.iter().zip(&top.logits));
        for (row, (found, (ids, logits))) in rows.enumerate() {
            let best = argmax(&found)?;
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
pub fn argmax<'a>(values: impl IntoIterator<Item = &'a f32>) -> Option<usize> {
    let mut best: Option<(usize, f32)> = None;
    for (index, &value) in values.into_iter().enumerate() {
        if best.is_none_or(|(_, highest)| value > highest) {
            best = Some((index, value));
        }
    }
    best.map(|(index, _)| index)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAME: &str = "synth-demo-llava-1";

    fn golden(extension: &str) -> Vec<u8> {
        let path = format!("golden/{NAME}.{extension}");
        std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
    }

    pub(super) fn parse(edit: impl FnOnce(&mut serde_json::Value)) -> Result<Reference, ReferenceError> {
        let mut json: serde_json::Value = serde_json::from_slice(&golden("json")).unwrap();
        edit(&mut json);
        let path = format!("{NAME}.json");
        Reference::parse(
            Path::new(&path),
            json.to_string().as_bytes(),
            &golden("safetensors"),
        )
    }

    /// The first check of that name, and what a perfect engine would compute for it.
    fn check<'a>(reference: &'a Reference, value: &str) -> (&'a Check, Array) {
        let checks = reference.cases.iter().flat_map(|case| &case.checks);
        let check = checks
            .filter(|check| check.indices.is_none())
            .find(|check| check.value == value)
            .unwrap();
        (check, reference.whole(check).unwrap())
    }

    #[test]
    fn one_wrong_element_is_found() {
        let reference = parse(|_| {}).unwrap();
        let (logits, right) = check(&reference, "prefill.logits");
        let comparison = reference.compare(logits, Precision::Fp32, &right);
        assert!(comparison.passed(), "{comparison:?}");
        let mut values = right.to_float().into_owned();
        values[[0, 700]] += 1.0;
        let comparison = reference.compare(logits, Precision::Fp32, &Array::from(values));
        let problem = comparison.problem.unwrap();
        assert!(problem.contains("first at [0, 700]"), "{problem}");
        let turned = right.reshaped(&[1024, 1]).unwrap();
        let comparison = reference.compare(logits, Precision::Fp32, &turned);
        assert_eq!(comparison.problem.unwrap(), "shape [1024, 1], expected [1, 1024]");
        // What rounding costs is not the recorder's to say; anything else is.
        let rounded = reference.compare(logits, Precision::Int8, &right);
        assert!(
            rounded.passed() && rounded.tolerance.relative_l2() > 0.0,
            "{rounded:?}"
        );
        let without = |json: &mut serde_json::Value| {
            json["tolerances"]["logits"]
                .as_object_mut()
                .unwrap()
                .remove("fp16");
        };
        let comparison = parse(without).unwrap().compare(logits, Precision::Fp16, &right);
        assert!(
            comparison
                .problem
                .unwrap()
                .contains("no tolerance `logits` for fp16")
        );
    }

    #[test]
    fn what_samples_do_not_see_is_seen_by_norm_magnitude_and_rank() {
        let sampled = |edit: fn(&mut [f32])| {
            // A tensor of 40 elements of which the reference holds four.
            let mut reference = parse(|_| {}).unwrap();
            let mut values: Vec<f32> = (0..40).map(|i| (i as f32 * 0.7).sin()).collect();
            let norm = values
                .iter()
                .map(|v| f64::from(*v) * f64::from(*v))
                .sum::<f64>()
                .sqrt();
            let abs_max = values.iter().fold(0.0_f64, |max, v| max.max(f64::from(v.abs())));
            let places = [3, 11, 20, 33];
            reference.data.insert(
                "x".to_owned(),
                Array::float(&[4], places.iter().map(|&i: &i64| values[i as usize]).collect()),
            );
            reference
                .data
                .insert("x.indices".to_owned(), Array::int(&[4], places.to_vec()));
            let best = argmax(&values).unwrap();
            let top = Top {
                ids: vec![vec![best, 0]],
                logits: vec![vec![f64::from(values[best]), 0.0]],
            };
            let check = Check {
                value: "x".to_owned(),
                shape: vec![1, 40],
                tolerance: "logits".to_owned(),
                tensor: "x".to_owned(),
                indices: Some("x.indices".to_owned()),
                norm,
                abs_max,
                top: Some(top),
                padding: None,
            };
            edit(&mut values);
            reference
                .compare(&check, Precision::Fp32, &Array::float(&[1, 40], values))
                .problem
        };
        assert_eq!(sampled(|_| {}), None);
        assert!(
            sampled(|values| values[11] = 9.0)
                .unwrap()
                .contains("first at [0, 11]")
        );
        assert!(sampled(|values| values[0] = 0.9).unwrap().contains("norm "));
        assert!(
            sampled(|values| values[5] = f32::NAN)
                .unwrap()
                .contains("norm NaN")
        );
        // Two values swapped: neither samples nor norm nor magnitude can tell.
        assert!(sampled(|values| values.swap(0, 2)).is_none());
        let problem = sampled(|values| {
            let best = argmax(&*values).unwrap();
            values.swap(0, best);
        });
        assert!(problem.unwrap().contains("the largest logit is that of id 0"));
    }

    #[test]
    fn greedy_ids_count_as_far_as_they_are_decided() {
        let mut reference = parse(|_| {}).unwrap();
        let case = reference.cases[0].clone();
        assert_eq!(reference.decisive_margin(&case, Precision::Fp32), 0.0);
        let half = reference.decisive_margin(&case, Precision::Fp16);
        assert!(half > 0.0 && half.is_finite());
        let row = Row {
            greedy: vec![1, 2, 3],
            margins: vec![5.0, 0.5, 5.0],
            ..case.rows[0].clone()
        };
        assert_eq!([row.decided(0.0), row.decided(1.0), row.decided(9.0)], [3, 1, 0]);
        // From a JPEG nothing narrow is decided, in any precision.
        reference.cases[0].checks[0].tolerance = VAGUE.to_owned();
        assert_eq!(
            reference.decisive_margin(&reference.cases[0], Precision::Fp32),
            half
        );
    }
}
