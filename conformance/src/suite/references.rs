//! Is what runs what was published? Tensors that `conformance/reference/record.py` recorded from the published
//! implementation, compared in the order in which the networks compute them.

use crate::golden::{RecordedCase, Reference, Row, Segment, argmax};
use crate::setup::case::{Case, Findings};
use crate::setup::error::CaseError;
use crate::setup::model::{Cache, Decoder, Deployed, left_pad, run_one};
use crate::setup::subject::{Provider, Session, Subject};
use crate::setup::workspace::Workspace;
use crate::suite::{end_to_end, recorded};
use crate::tensor::Tensor;
use models::arch::Network;
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

/// Whether a published size takes minutes, not hours: the interpreter is naive.
fn is_fast(subject: &Subject) -> bool {
    !matches!(subject.provider, Provider::Interpreter)
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
            cases.push(Case::on_each(name, claim, applies, move |subject, workspace| {
                let deployed = workspace.deployed_for(&reference)?;
                let trial = Trial {
                    reference: &reference,
                    case: &reference.cases[index],
                    subject,
                    workspace,
                    deployed: &deployed,
                };
                trial.run()
            }));
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
type Found = BTreeMap<String, Tensor>;

impl Trial<'_> {
    fn run(&self) -> Result<Findings, CaseError> {
        if !self.subject.is_interpreter() {
            self.deployed.variant(self.subject)?;
        }
        let mut found = Found::new();
        let mut findings = Findings::default();
        let features = self.encode(&mut found)?;
        let mut embedder = self.deployed.session(self.subject, Network::EmbedTokens)?;
        let mut rows = Vec::with_capacity(self.case.rows.len());
        for row in &self.case.rows {
            rows.push(embed_row(embedder.as_mut(), row, &features)?);
        }
        let mut decoder = Decoder::open(self.deployed, self.subject)?;
        self.decode(&mut decoder, embedder.as_mut(), &rows, &mut found)?;
        self.compare(&found, &mut findings);
        self.greedy(&mut decoder, embedder.as_mut(), &rows, &mut findings)?;
        Ok(findings)
    }

    fn wants(&self, value: &str) -> bool {
        self.case.checks.iter().any(|check| check.value == value)
    }

    /// Preprocesses and encodes the images; returns `[tokens, hidden]` for each.
    fn encode(&self, found: &mut Found) -> Result<Vec<Tensor>, CaseError> {
        if self.case.images.is_empty() {
            return Ok(Vec::new());
        }
        let mut data = Vec::new();
        let mut shape = vec![self.case.images.len(), 3, 0, 0];
        for image in &self.case.images {
            let picture = self.workspace.picture(self.reference, image)?;
            let pixels = preprocess(&picture, &self.deployed.bundle.image)
                .map_err(|error| CaseError::failed("preprocessing", &error))?;
            (shape[2], shape[3]) = (pixels.height, pixels.width);
            data.extend(pixels.data);
        }
        let mut pixels = Tensor::float(&shape, data);
        found.insert("pixel_values".to_owned(), pixels.clone());
        // What the published encoder saw, where it is recorded whole.
        let recorded = self
            .case
            .checks
            .iter()
            .find(|check| check.value == "pixel_values");
        if let Some(whole) = recorded
            .and_then(|check| self.reference.whole(check))
            .filter(|whole| whole.shape == shape)
        {
            pixels = whole;
        }
        let values = self.case.checks.iter().map(|check| check.value.as_str());
        let inner: Vec<&str> = values
            .filter(|value| value.starts_with("vision_tower."))
            .collect();
        let outputs = self
            .deployed
            .encode(self.subject, self.workspace.root(), &pixels, &inner)?;
        found.extend(outputs);
        let Some(features) = found
            .get("image_features")
            .filter(|features| features.shape.len() == 3)
        else {
            return Err(CaseError::Failed {
                context: "running the vision encoder".to_owned(),
                message: "there is no output `image_features` of rank 3".to_owned(),
            });
        };
        let [_, tokens, hidden] = features.shape[..] else {
            return Ok(Vec::new());
        };
        let values = features.to_float();
        Ok(values
            .chunks_exact((tokens * hidden).max(1))
            .map(|one| Tensor::float(&[tokens, hidden], one.to_vec()))
            .collect())
    }

    /// Prefill of the left-padded batch, then the recorded steps.
    fn decode(
        &self,
        decoder: &mut Decoder<'_>,
        embedder: &mut dyn Session,
        rows: &[Tensor],
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
            let hidden = embeds.shape[1];
            let embeds = embeds.reshaped(&[ids.len(), 1, hidden]);
            let logits = decoder.feed(&mut cache, &embeds, &vec![vec![1]; ids.len()])?;
            found.insert(format!("steps.{step}.logits"), logits);
            self.keep_cache(&format!("steps.{step}"), &cache, found);
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
        for check in &self.case.checks {
            match found.get(&check.value) {
                Some(tensor) => findings.push(self.reference.compare(
                    check,
                    self.subject.precision.name(),
                    tensor,
                )),
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
        decoder: &mut Decoder<'_>,
        embedder: &mut dyn Session,
        rows: &[Tensor],
        findings: &mut Findings,
    ) -> Result<(), CaseError> {
        let margin = self
            .reference
            .decisive_margin(self.case, self.subject.precision.name());
        for (number, (row, embeds)) in self.case.rows.iter().zip(rows).enumerate() {
            let count = row.decided(margin);
            let mut cache = decoder.empty(1);
            let (mut embeds, mut real) = left_pad(std::slice::from_ref(embeds));
            for (place, &expected) in row.greedy[..count].iter().enumerate() {
                let logits = decoder.feed(&mut cache, &embeds, &real)?;
                let best = logits
                    .as_float()
                    .and_then(argmax)
                    .and_then(|best| i64::try_from(best).ok());
                if best != Some(expected) {
                    let found = best.map_or_else(|| "none".to_owned(), |best| best.to_string());
                    findings.problems.push(format!(
                        "`greedy`: row {number}, id {place} is {found}, expected {expected}, which won by {:.3}",
                        row.margins[place]
                    ));
                    break;
                }
                let next = embed(embedder, &[expected])?;
                let hidden = next.shape[1];
                (embeds, real) = (next.reshaped(&[1, 1, hidden]), vec![vec![1]]);
            }
        }
        Ok(())
    }
}

/// Logits at every position `[1, new, vocab]`, of a graph that gives the last one only: fed one by one.
fn logits_of_all(decoder: &mut Decoder<'_>, embeds: &Tensor, real: &[Vec<i64>]) -> Result<Tensor, CaseError> {
    let [batch, new, hidden] = embeds.shape[..] else {
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
    let values = embeds.to_float();
    let mut cache = decoder.empty(1);
    let mut logits = Vec::new();
    for (position, one) in values.chunks_exact(hidden.max(1)).enumerate() {
        let one = Tensor::float(&[1, 1, hidden], one.to_vec());
        logits.extend(
            decoder
                .feed(&mut cache, &one, &[vec![real[0][position]]])?
                .to_float(),
        );
    }
    let width = logits.len() / new.max(1);
    Ok(Tensor::float(&[1, new, width], logits))
}

/// `[ids, hidden]`
fn embed(session: &mut dyn Session, ids: &[i64]) -> Result<Tensor, CaseError> {
    let embeds = run_one(session, "input_ids", Tensor::int(&[1, ids.len()], ids.to_vec()))?;
    let [1, count, hidden] = embeds.shape[..] else {
        return Err(CaseError::Failed {
            context: "embedding tokens".to_owned(),
            message: format!("shape {:?}, expected [1, {}, hidden]", embeds.shape, ids.len()),
        });
    };
    Ok(embeds.reshaped(&[count, hidden]))
}

/// A prompt as `[positions, hidden]`.
fn embed_row(session: &mut dyn Session, row: &Row, features: &[Tensor]) -> Result<Tensor, CaseError> {
    let mut data = Vec::new();
    let mut hidden = 0;
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
        if hidden != 0 && part.shape[1] != hidden {
            return Err(CaseError::Failed {
                context: "joining text and image".to_owned(),
                message: format!("features are {} long, embeddings {hidden}", part.shape[1]),
            });
        }
        hidden = part.shape[1];
        data.extend(part.to_float());
    }
    Ok(Tensor::float(&[data.len() / hidden.max(1), hidden], data))
}
