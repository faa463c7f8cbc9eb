//! Is what runs what was published? Arrays that `conformance/reference/record.py` recorded from the published
//! implementation, compared in the order in which the networks compute them.

use crate::array::Array;
use crate::golden::{RecordedCase, Reference, Row, Segment, argmax};
use crate::setup::case::{Case, Findings};
use crate::setup::error::{CaseError, Context};
use crate::setup::model::{Cache, Decoder, Deployed, left_pad, run_one};
use crate::setup::subject::{Provider, Session, Subject, Target};
use crate::setup::workspace::Workspace;
use crate::suite::{end_to_end, recorded};
use models::arch::Network;
use ndarray::{Axis, Ix2, concatenate};
use runtime::image::preprocess;
use std::collections::BTreeMap;
use std::sync::Arc;

/// The references of small models, on everything.
pub fn cases() -> Vec<Case> {
    recorded::embedded(
        "references",
        |reference| !recorded::is_full_size(reference),
        |references| of("references", references, |_| true),
    )
}

/// The references of models as large as a published one, with their answers.
pub fn full_size() -> Vec<Case> {
    recorded::embedded("full-size", recorded::is_full_size, |references| {
        let mut cases = of("full-size", references, is_fast);
        cases.extend(end_to_end::of("full-size", references, is_fast));
        cases
    })
}

/// Whether a published size takes minutes, not hours: the interpreter is naive; and each form is an export of gigabytes.
fn is_fast(subject: &Subject) -> bool {
    !matches!(subject.provider, Provider::Interpreter) && subject.target() == Target::Portable
}

/// A case for each of the references' cases, on every subject that `applies` names.
pub fn of(suite: &str, references: &[Arc<Reference>], applies: fn(&Subject) -> bool) -> Vec<Case> {
    let mut cases = Vec::new();
    for reference in references {
        for (index, recorded) in reference.cases.iter().enumerate() {
            let name = format!("{suite}/{}/{}", reference.name, recorded.name);
            let count = recorded.checks.len();
            let claim = format!(
                "{count} tensors, and the greedy ids that won clearly, are those of {}",
                reference.recorder.architecture
            );
            let reference = Arc::clone(reference);
            cases.push(Case::on_each_form(
                name,
                claim,
                applies,
                move |subject, workspace| {
                    let deployed = workspace.deployed_for(&reference, subject.target())?;
                    let trial = Trial {
                        reference: &reference,
                        case: &reference.cases[index],
                        subject,
                        workspace,
                        deployed: &deployed,
                    };
                    trial.run()
                },
            ));
        }
    }
    cases
}

/// One recorded case on one subject.
struct Trial<'a> {
    reference: &'a Reference,
    case: &'a RecordedCase,
    subject: &'a Subject,
    workspace: &'a Workspace,
    deployed: &'a Deployed,
}

/// Computed tensors by the names that references give them.
type Found = BTreeMap<String, Array>;

impl Trial<'_> {
    fn run(&self) -> Result<Findings, CaseError> {
        if !self.subject.is_interpreter() {
            self.deployed.variant(self.subject)?;
        }
        self.fits()?;
        let mut found = Found::new();
        let mut findings = Findings::default();
        let features = self.encode(&mut found)?;
        let mut embedder = self.deployed.session(self.subject, Network::EmbedTokens)?;
        let mut rows = Vec::with_capacity(self.case.rows.len());
        for row in &self.case.rows {
            rows.push(embed_row(embedder.as_mut(), row, &features)?);
        }
        let embedder = embedder.as_mut();
        if self.has_fixed_lengths() {
            let mut alone = Alone(self.deployed.sequence(self.subject)?);
            self.decode_alone(&mut alone, embedder, &rows, &mut found)?;
            self.compare(&found, &mut findings);
            self.greedy(&mut alone, embedder, &rows, &mut findings)?;
            return self.compared(findings);
        }
        let mut decoder = Decoder::open(self.deployed, self.subject)?;
        self.decode(&mut decoder, embedder, &rows, &mut found)?;
        self.compare(&found, &mut findings);
        let cache = decoder.empty(1);
        self.greedy(&mut Cached { decoder, cache }, embedder, &rows, &mut findings)?;
        self.compared(findings)
    }

    /// What was found; a skip where nothing that was recorded could be looked at.
    fn compared(&self, findings: Findings) -> Result<Findings, CaseError> {
        let answered = self.case.rows.iter().any(|row| !row.greedy.is_empty());
        if findings.comparisons.is_empty() && findings.problems.is_empty() && !answered {
            return Err(CaseError::Skip(
                "all recorded tensors are inside of the graphs".to_owned(),
            ));
        }
        Ok(findings)
    }

    /// Whether each row, and what follows it, has no more positions than the model.
    fn fits(&self) -> Result<(), CaseError> {
        let (tokens, room) = (
            self.deployed.bundle.image.tokens,
            self.deployed.bundle.kv.max_context,
        );
        for (number, row) in self.case.rows.iter().enumerate() {
            let segments = row.segments.iter().map(|segment| match segment {
                Segment::Ids { ids } => ids.len(),
                Segment::Image { .. } => tokens,
            });
            let prompt = segments.fold(0, usize::saturating_add);
            // Nothing is fed after the last id.
            let after = self.case.feed.len().max(row.greedy.len().saturating_sub(1));
            if prompt.saturating_add(after) > room {
                return Err(CaseError::Failed {
                    context: "looking at the reference".to_owned(),
                    message: format!(
                        "row {number} has {prompt} positions and {after} after them, expected at most {room} together, the \
                         model's context"
                    ),
                });
            }
        }
        Ok(())
    }

    /// Whether the graphs take one image, one sequence, and numbers of positions of their own choice.
    fn has_fixed_lengths(&self) -> bool {
        self.subject.target() == Target::OrtCoreMl
    }

    /// Whether a recorded tensor is not an output of the subject's graphs, nor can be made one.
    fn is_hidden(&self, value: &str) -> bool {
        match self.subject.target() {
            Target::Portable => false,
            // Stages are inside of fused operators, or in an order of their own.
            Target::Cpu => value.starts_with("vision_tower."),
            // The runtime owns the cache.
            Target::OrtCoreMl => value.starts_with("vision_tower.") || value.contains(".present."),
        }
    }

    fn wants(&self, value: &str) -> bool {
        self.case.checks.iter().any(|check| check.value == value)
    }

    /// Preprocesses and encodes the images; returns `[tokens, hidden]` for each.
    fn encode(&self, found: &mut Found) -> Result<Vec<Array>, CaseError> {
        if self.case.images.is_empty() {
            return Ok(Vec::new());
        }
        let mut images = Vec::with_capacity(self.case.images.len());
        for image in &self.case.images {
            let picture = self.workspace.picture(self.reference, image)?;
            let pixels = preprocess(&picture, &self.deployed.bundle.image)
                .map_err(|error| CaseError::failed("preprocessing", &error))?;
            images.push(pixels);
        }
        let mut pixels = recorded::batch(&images)?;
        found.insert("pixel_values".to_owned(), pixels.clone());
        // What the published encoder saw, where it is recorded whole.
        let recorded = self
            .case
            .checks
            .iter()
            .find(|check| check.value == "pixel_values");
        if let Some(whole) = recorded
            .and_then(|check| self.reference.whole(check))
            .filter(|whole| whole.shape() == pixels.shape())
        {
            pixels = whole;
        }
        let values = self.case.checks.iter().map(|check| check.value.as_str());
        let inner: Vec<&str> = values
            .filter(|value| value.starts_with("vision_tower.") && !self.is_hidden(value))
            .collect();
        let encode = |pixels: &Array| {
            self.deployed
                .encode(self.subject, self.workspace.root(), pixels, &inner)
        };
        if self.has_fixed_lengths() {
            let mut features = Vec::with_capacity(images.len());
            for image in singly(&pixels) {
                features.extend(encode(&image)?.into_iter().map(|(_, features)| features));
            }
            found.insert("image_features".to_owned(), joined(&features)?);
        } else {
            found.extend(encode(&pixels)?);
        }
        let Some(features) = found
            .get("image_features")
            .filter(|features| features.shape().len() == 3)
        else {
            return Err(CaseError::Failed {
                context: "running the vision encoder".to_owned(),
                message: "there is no output `image_features` of rank 3".to_owned(),
            });
        };
        Ok(features.outer())
    }

    /// Prefill of the left-padded batch, then the recorded steps.
    fn decode(
        &self,
        decoder: &mut Decoder<'_>,
        embedder: &mut dyn Session,
        rows: &[Array],
        found: &mut Found,
    ) -> Result<(), CaseError> {
        let (embeds, real) = left_pad(rows);
        let mut cache = decoder.empty(rows.len());
        let logits = decoder.feed(&mut cache, &embeds, &real)?;
        found.insert("prefill.logits".to_owned(), logits);
        self.keep_cache("prefill", &cache, found);
        if self.wants("prefill.logits.all") {
            found.insert(
                "prefill.logits.all".to_owned(),
                logits_of_all(decoder, &embeds, &real)?,
            );
        }
        for (step, ids) in self.case.feed.iter().enumerate() {
            let embeds = embed(embedder, ids)?;
            let embeds = embeds
                .reshaped(&[ids.len(), 1, embeds.shape()[1]])
                .during(|| "feeding one by one".to_owned())?;
            let logits = decoder.feed(&mut cache, &embeds, &vec![vec![1]; ids.len()])?;
            found.insert(format!("steps.{step}.logits"), logits);
            self.keep_cache(&format!("steps.{step}"), &cache, found);
        }
        Ok(())
    }

    /// As [`Trial::decode`], each row from its beginning to its end, without padding.
    fn decode_alone(
        &self,
        sequence: &mut dyn Sequence,
        embedder: &mut dyn Session,
        rows: &[Array],
        found: &mut Found,
    ) -> Result<(), CaseError> {
        let mut logits = vec![Vec::with_capacity(rows.len()); 1 + self.case.feed.len()];
        for (row, embeds) in rows.iter().enumerate() {
            sequence.begin()?;
            logits[0].push(sequence.feed(embeds)?);
            for (ids, logits) in self.case.feed.iter().zip(&mut logits[1..]) {
                logits.push(sequence.feed(&embed(embedder, &ids[row..=row])?)?);
            }
        }
        for (moment, logits) in logits.iter().enumerate() {
            let name = match moment.checked_sub(1) {
                None => "prefill.logits".to_owned(),
                Some(step) => format!("steps.{step}.logits"),
            };
            found.insert(name, joined(logits)?);
        }
        if let ([row], true) = (rows, self.wants("prefill.logits.all")) {
            sequence.begin()?;
            let mut logits = Vec::with_capacity(row.shape()[0]);
            for position in singly(row) {
                logits.push(sequence.feed(&position)?);
            }
            found.insert("prefill.logits.all".to_owned(), in_one_row(&logits)?);
        }
        Ok(())
    }

    fn keep_cache(&self, moment: &str, cache: &Cache, found: &mut Found) {
        for (layer, tensors) in cache.layers.iter().enumerate() {
            for (part, tensor) in ["key", "value"].into_iter().zip(tensors) {
                let name = format!("{moment}.present.{layer}.{part}");
                if self.wants(&name) {
                    found.insert(name, tensor.clone());
                }
            }
        }
    }

    fn compare(&self, found: &Found, findings: &mut Findings) {
        let mut inner = 0;
        let checks = self.case.checks.iter();
        for check in checks.filter(|check| !self.is_hidden(&check.value)) {
            match found.get(&check.value) {
                Some(tensor) => {
                    findings.push(self.reference.compare(check, self.subject.precision(), tensor));
                }
                None if self.deployed.described.is_none() && check.value.starts_with("vision_tower.") => {
                    inner += 1
                }
                None => findings.problems.push(format!(
                    "`{}`: this program does not know how to compute it",
                    check.value
                )),
            }
        }
        if inner > 0 {
            findings.notes.push(format!(
                "{inner} tensors inside the encoder were left out: the checkpoint was not given"
            ));
        }
    }

    /// The greedy continuation of each row on its own: it must not matter in which batch it was recorded.
    fn greedy(
        &self,
        sequence: &mut dyn Sequence,
        embedder: &mut dyn Session,
        rows: &[Array],
        findings: &mut Findings,
    ) -> Result<(), CaseError> {
        let margin = self
            .reference
            .decisive_margin(self.case, self.subject.precision());
        for (number, (row, embeds)) in self.case.rows.iter().zip(rows).enumerate() {
            let count = row.decided(margin);
            sequence.begin()?;
            let mut embeds = embeds.clone();
            for (place, &expected) in row.greedy[..count].iter().enumerate() {
                let logits = sequence.feed(&embeds)?;
                let best = argmax(&logits.to_float()).and_then(|best| i64::try_from(best).ok());
                if best != Some(expected) {
                    let found = best.map_or_else(|| "none".to_owned(), |best| best.to_string());
                    findings.problems.push(format!(
                        "`greedy`: row {number}, id {place} is {found}, expected {expected}, which won by {:.3}",
                        row.margins[place]
                    ));
                    break;
                }
                embeds = embed(embedder, &[expected])?;
            }
        }
        Ok(())
    }
}

/// A sequence on its own.
trait Sequence {
    /// Forgets what was fed.
    fn begin(&mut self) -> Result<(), CaseError>;

    /// Feeds `embeds [new, hidden]`; returns the logits `[1, vocab]` of the last position.
    fn feed(&mut self, embeds: &Array) -> Result<Array, CaseError>;
}

/// A decoder whose cache is seen.
struct Cached<'a> {
    decoder: Decoder<'a>,
    cache: Cache,
}

impl Sequence for Cached<'_> {
    fn begin(&mut self) -> Result<(), CaseError> {
        self.cache = self.decoder.empty(1);
        Ok(())
    }

    fn feed(&mut self, embeds: &Array) -> Result<Array, CaseError> {
        let (embeds, real) = left_pad(std::slice::from_ref(embeds));
        self.decoder.feed(&mut self.cache, &embeds, &real)
    }
}

/// A decoder in the role that the runtime gives it.
struct Alone(Box<dyn runtime::backend::DecoderState>);

impl Sequence for Alone {
    fn begin(&mut self) -> Result<(), CaseError> {
        self.0.truncate(0).during(|| "emptying the cache".to_owned())
    }

    fn feed(&mut self, embeds: &Array) -> Result<Array, CaseError> {
        let running = || "running the decoder".to_owned();
        let embeds = embeds.to_float().as_standard_layout().into_owned();
        let embeds = embeds.into_dimensionality::<Ix2>().during(running)?;
        let logits = self.0.feed(embeds.view()).during(running)?;
        Ok(Array::from(logits.insert_axis(Axis(0))))
    }
}

/// What lies along the first axis, one by one, of length 1.
fn singly(array: &Array) -> impl Iterator<Item = Array> {
    (0..array.shape()[0]).map(|place| array.part(0, place..place + 1))
}

/// Logits at every position `[1, new, vocab]`, of a graph that gives the last one only: fed one by one.
fn logits_of_all(decoder: &mut Decoder<'_>, embeds: &Array, real: &[Vec<i64>]) -> Result<Array, CaseError> {
    let &[batch, new, _] = embeds.shape() else {
        return Err(CaseError::Failed {
            context: "feeding one by one".to_owned(),
            message: "expected rank 3".to_owned(),
        });
    };
    if batch != 1 {
        return Err(CaseError::Failed {
            context: "feeding one by one".to_owned(),
            message: format!("{batch} rows have logits of every position, expected one row"),
        });
    }
    let mut cache = decoder.empty(1);
    let mut logits = Vec::with_capacity(new);
    for (position, &real) in real[0].iter().enumerate().take(new) {
        let one = embeds.part(1, position..position + 1);
        logits.push(decoder.feed(&mut cache, &one, &[vec![real]])?);
    }
    in_one_row(&logits)
}

/// Logits `[1, vocab]` of one position after the other as `[1, new, vocab]`.
fn in_one_row(logits: &[Array]) -> Result<Array, CaseError> {
    let logits = joined(logits)?;
    let shape = [1, logits.shape()[0], logits.shape()[1]];
    logits.reshaped(&shape).during(|| "feeding one by one".to_owned())
}

/// Rows `[n, width]` of real numbers, one after the other.
fn joined(parts: &[Array]) -> Result<Array, CaseError> {
    let parts: Vec<_> = parts.iter().map(Array::to_float).collect();
    let views: Vec<_> = parts.iter().map(|part| part.view()).collect();
    let rows = concatenate(Axis(0), &views).during(|| "joining rows".to_owned())?;
    Ok(Array::from(rows))
}

/// `[ids, hidden]`
fn embed(session: &mut dyn Session, ids: &[i64]) -> Result<Array, CaseError> {
    let embeds = run_one(session, "input_ids", Array::int(&[1, ids.len()], ids.to_vec()))?;
    let shape = embeds.shape();
    let &[1, count, hidden] = shape else {
        return Err(CaseError::Failed {
            context: "embedding tokens".to_owned(),
            message: format!("shape {shape:?}, expected [1, {}, hidden]", ids.len()),
        });
    };
    embeds
        .reshaped(&[count, hidden])
        .during(|| "embedding tokens".to_owned())
}

/// A prompt as `[positions, hidden]`.
fn embed_row(session: &mut dyn Session, row: &Row, features: &[Array]) -> Result<Array, CaseError> {
    let mut parts: Vec<Array> = Vec::with_capacity(row.segments.len());
    for segment in &row.segments {
        let part = match segment {
            Segment::Ids { ids } => embed(session, ids)?,
            Segment::Image { image } => features.get(*image).cloned().ok_or_else(|| CaseError::Failed {
                context: "joining text and image".to_owned(),
                message: format!(
                    "the encoder gave features of {} images, image {image} is not among them",
                    features.len()
                ),
            })?,
        };
        let (found, hidden) = (part.shape()[1], parts.first().map(|first| first.shape()[1]));
        if hidden.is_some_and(|hidden| hidden != found) {
            return Err(CaseError::Failed {
                context: "joining text and image".to_owned(),
                message: format!("a part is {found} wide, those before it {}", hidden.unwrap_or(0)),
            });
        }
        parts.push(part);
    }
    joined(&parts)
}
