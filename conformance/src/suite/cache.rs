//! Does the KV cache hold what a model needs to know of the past, and nothing else? Claims without a reference: two ways
//! to the same sequence give the same logits and the same cache. First the decoder's graph with a cache that we carry,
//! on every subject; then the runtime's decoders, which carry their own, on every engine.

use crate::array::Array;
use crate::compare::{Tolerance, compare};
use crate::golden::Source;
use crate::setup::case::{Case, Findings};
use crate::setup::error::{CaseError, Context};
use crate::setup::model::{Cache, Decoder, Deployed, left_pad, run_one};
use crate::setup::subject::{Precision, Subject};
use crate::setup::workspace::{Workspace, small};
use crate::synth;
use crate::tiny::numbers;
use models::arch::Network;
use models::bundle::Target;
use ndarray::{Array1, Array2, ArrayView4, Axis, Ix2, concatenate, s, stack};
use runtime::backend::DecoderState;
use runtime::image::Picture;
use runtime::{Engine, Message, Model, Provider, Request, Role};
use std::sync::Arc;

/// Positions of the longest sequence here.
const LENGTH: usize = 9;

/// Every claim.
pub fn cases() -> Vec<Case> {
    let graph = |name: &str, claim: &str, check: fn(&mut Trial<'_>) -> Result<(), CaseError>| {
        Case::on_each(
            format!("cache/graph/{name}"),
            claim,
            |_| true,
            move |subject, workspace| {
                let deployed = model(workspace)?;
                let mut trial = Trial::open(&deployed, subject)?;
                check(&mut trial)?;
                Ok(trial.findings)
            },
        )
    };
    let engine = |name: &str, claim: &str, check: CheckParts| {
        Case::on_each_form(
            format!("cache/runtime/{name}"),
            claim,
            // Lengths that are fixed have tests of their own.
            |subject| subject.is_engine() && subject.target() != Target::OrtCoreMl,
            move |subject, workspace| {
                let deployed = workspace.deployed_on(&of(), subject.target())?;
                check(&deployed, subject)
            },
        )
    };
    vec![
        graph(
            "prefill_equals_steps",
            "a prompt at once is the prompt one by one",
            prefill_equals_steps,
        ),
        graph(
            "chunks_do_not_matter",
            "where a prompt is cut plays no role",
            chunks_do_not_matter,
        ),
        graph(
            "batch_equals_singles",
            "rows of a left-padded batch do not know of each other",
            batch_equals_singles,
        ),
        graph(
            "padding_is_not_seen",
            "what stands in the padding plays no role",
            padding_is_not_seen,
        ),
        graph(
            "an_empty_cache",
            "a cache of length 0 is a past of padding only",
            an_empty_cache,
        ),
        graph(
            "truncate_and_refeed",
            "after forgetting, the sequence is as if it had never been longer",
            truncate_and_refeed,
        ),
        graph(
            "the_past_matters",
            "another first token gives other logits, at once and step by step",
            the_past_matters,
        ),
        engine(
            "roles_are_the_graphs",
            "roles give what their graphs give",
            roles_are_the_graphs,
        ),
        engine(
            "prefill_equals_steps",
            "`feed` at once is `feed` in any pieces",
            feed_in_pieces,
        ),
        engine(
            "together_equals_alone",
            "sequences of any lengths that are stepped together, join and leave, are what they are alone",
            together_equals_alone,
        ),
        engine(
            "truncate_and_refeed",
            "after `truncate`, a decoder is as if it had never been longer",
            truncate_a_decoder,
        ),
        engine(
            "errors_change_nothing",
            "after an error a decoder is as it was",
            errors_change_nothing,
        ),
        Case::on_each(
            "cache/runtime/follow_up_equals_fresh",
            "a follow-up question is answered as in a fresh conversation, without computing the prefix again",
            // In half precision, reused and recomputed entries may settle close choices differently.
            |subject| subject.is_engine() && subject.precision() == Precision::Fp32,
            |subject, workspace| follow_up_equals_fresh(&*model(workspace)?, subject),
        ),
    ]
}

type CheckParts = fn(&Deployed, &Subject) -> Result<Findings, CaseError>;

/// What these claims are of.
fn of() -> Source {
    small("transformers-train", 1)
}

/// Its portable form; a given bundle where there is one.
fn model(workspace: &Workspace) -> Result<Arc<Deployed>, CaseError> {
    workspace.deployed(&of())
}

/// Two ways to compute the same thing, in the same precision: what rounding alone may change.
fn tolerance(subject: &Subject) -> Tolerance {
    match subject.precision() {
        Precision::Q4F16 if subject.rounds() && cfg!(target_arch = "aarch64") => Tolerance::BytesInHalf,
        _ if subject.rounds() => Tolerance::Bytes,
        Precision::Fp32 => Tolerance::Logits,
        Precision::Fp16 | Precision::Int8 | Precision::Q8 | Precision::Q4 | Precision::Q4F16 => {
            Tolerance::Half
        }
    }
}

/// Embeddings of made-up ids, `[length, hidden]`; another seed, other ids.
fn embeddings(deployed: &Deployed, subject: &Subject, seed: u64, length: usize) -> Result<Array, CaseError> {
    let vocabulary = deployed.bundle.prompt.vocab_size as f32;
    // Rows at the end of a table may belong to no token.
    let id = |n: f32| ((n + 1.0) / 2.0 * 0.9 * vocabulary) as i64;
    let ids = numbers(seed, length).into_iter().map(id).collect();
    let mut session = deployed.session(subject, Network::EmbedTokens)?;
    let embeds = run_one(&mut *session, "input_ids", Array::int(&[1, length], ids))?;
    let hidden = deployed.bundle.prompt.hidden_size;
    embeds
        .reshaped(&[length, hidden])
        .during(|| "embedding tokens".to_owned())
}

/// Rows `from..to` of `[n, hidden]`.
fn part(rows: &Array, from: usize, to: usize) -> Array {
    rows.part(0, from..to)
}

/// Rows of both, one after the other.
fn joined(first: &Array, second: &Array) -> Result<Array, CaseError> {
    let (first, second) = (first.to_float(), second.to_float());
    let rows = concatenate(Axis(0), &[first.view(), second.view()]);
    Ok(Array::from(rows.during(|| "joining rows".to_owned())?))
}

/// A decoder graph on a subject, a sequence to feed it, and what was found.
struct Trial<'a> {
    decoder: Decoder<'a>,
    /// `[LENGTH, hidden]`
    sequence: Array,
    /// As many others.
    others: Array,
    tolerance: Tolerance,
    findings: Findings,
}

/// What a decoder says at the end of a sequence, and what it remembers.
struct End {
    logits: Array,
    cache: Cache,
}

impl<'a> Trial<'a> {
    fn open(deployed: &'a Deployed, subject: &Subject) -> Result<Trial<'a>, CaseError> {
        Ok(Trial {
            decoder: Decoder::open(deployed, subject)?,
            sequence: embeddings(deployed, subject, 61, LENGTH)?,
            others: embeddings(deployed, subject, 62, LENGTH)?,
            tolerance: tolerance(subject),
            findings: Findings::default(),
        })
    }

    /// One sequence, from nothing, in pieces.
    fn fresh(&mut self, pieces: &[Array]) -> Result<End, CaseError> {
        let cache = self.decoder.empty(1);
        self.go_on(cache, pieces)
    }

    fn go_on(&mut self, mut cache: Cache, pieces: &[Array]) -> Result<End, CaseError> {
        let mut logits = Array::float(&[0], Vec::new());
        for piece in pieces {
            let (embeds, real) = left_pad(std::slice::from_ref(piece));
            logits = self.decoder.feed(&mut cache, &embeds, &real)?;
        }
        Ok(End { logits, cache })
    }

    /// One row of a batch, as if it were alone: its logits, and the slots of its cache that are real.
    fn row(end: &End, row: usize) -> End {
        let logits = end.logits.part(0, row..row + 1);
        let mask = &end.cache.mask[row];
        let real: Vec<usize> = (0..mask.len()).filter(|&slot| mask[slot] == 1).collect();
        // `[batch, kv_heads, slots, head_dim]`
        let keep = |tensor: &Array| tensor.part(0, row..row + 1).select(2, &real);
        let layers = end
            .cache
            .layers
            .iter()
            .map(|[key, value]| [keep(key), keep(value)])
            .collect();
        let real = mask.iter().copied().filter(|&one| one == 1).collect();
        End {
            logits,
            cache: Cache {
                layers,
                mask: vec![real],
            },
        }
    }

    fn equal(&mut self, way: &str, found: &End, expected: &End) {
        self.findings
            .require(found.cache.mask == expected.cache.mask, || {
                format!(
                    "{way}: the mask is {:?}, expected {:?}",
                    found.cache.mask, expected.cache.mask
                )
            });
        let layers = found.cache.layers.iter().zip(&expected.cache.layers).enumerate();
        for (layer, (found, expected)) in layers {
            for (part, (found, expected)) in ["key", "value"].iter().zip(found.iter().zip(expected)) {
                let name = format!("{way}: present.{layer}.{part}");
                self.findings
                    .push(compare(&name, found, expected, self.tolerance));
            }
        }
        let name = format!("{way}: logits");
        self.findings
            .push(compare(&name, &found.logits, &expected.logits, self.tolerance));
    }
}

/// The pieces of `rows` between cuts.
fn cut(rows: &Array, lengths: &[usize]) -> Vec<Array> {
    let mut start = 0;
    let mut pieces = Vec::with_capacity(lengths.len());
    for &length in lengths {
        pieces.push(part(rows, start, start + length));
        start += length;
    }
    debug_assert_eq!(start, rows.shape()[0]);
    pieces
}

fn prefill_equals_steps(trial: &mut Trial<'_>) -> Result<(), CaseError> {
    let sequence = trial.sequence.clone();
    let expected = trial.fresh(std::slice::from_ref(&sequence))?;
    let found = trial.fresh(&cut(&sequence, &[1; LENGTH]))?;
    trial.equal("steps", &found, &expected);
    Ok(())
}

fn chunks_do_not_matter(trial: &mut Trial<'_>) -> Result<(), CaseError> {
    let sequence = trial.sequence.clone();
    let expected = trial.fresh(std::slice::from_ref(&sequence))?;
    for lengths in [&[4, 3, 2][..], &[1, 8], &[8, 1], &[2, 5, 1, 1]] {
        let found = trial.fresh(&cut(&sequence, lengths))?;
        trial.equal(&format!("{lengths:?}"), &found, &expected);
    }
    Ok(())
}

fn batch_equals_singles(trial: &mut Trial<'_>) -> Result<(), CaseError> {
    // Three prompts of different lengths, then two steps of all.
    let (sequence, others) = (trial.sequence.clone(), trial.others.clone());
    let prompts = [part(&sequence, 0, 7), part(&others, 0, 3), part(&sequence, 2, 7)];
    let steps: Vec<Vec<Array>> = (0..2)
        .map(|step| {
            let (first, second) = (7 + step, 4 + step);
            vec![
                part(&sequence, first, first + 1),
                part(&others, second, second + 1),
                part(&others, first, first + 1),
            ]
        })
        .collect();
    let mut cache = trial.decoder.empty(prompts.len());
    let (embeds, real) = left_pad(&prompts);
    let logits = trial.decoder.feed(&mut cache, &embeds, &real)?;
    let mut ends = vec![End {
        logits,
        cache: cache.clone(),
    }];
    for rows in &steps {
        let (embeds, real) = left_pad(rows);
        let logits = trial.decoder.feed(&mut cache, &embeds, &real)?;
        ends.push(End {
            logits,
            cache: cache.clone(),
        });
    }
    for (row, prompt) in prompts.iter().enumerate() {
        let mut pieces = vec![prompt.clone()];
        for (step, end) in ends.iter().enumerate() {
            if step > 0 {
                pieces.push(steps[step - 1][row].clone());
            }
            let expected = trial.fresh(&pieces)?;
            trial.equal(
                &format!("row {row} after {step} steps"),
                &Trial::row(end, row),
                &expected,
            );
        }
    }
    Ok(())
}

fn padding_is_not_seen(trial: &mut Trial<'_>) -> Result<(), CaseError> {
    // One row with four slots of padding: zeros, then the embeddings of other tokens.
    let row = part(&trial.sequence, 0, 5);
    let expected = trial.fresh(&[row.clone(), part(&trial.sequence.clone(), 5, 6)])?;
    let width = row.shape()[1];
    let zeros = Array::from(ndarray::Array2::<f32>::zeros((4, width)));
    for (way, padding) in [("zeros", zeros), ("other tokens", part(&trial.others, 0, 4))] {
        let (padded, _) = left_pad(&[joined(&padding, &row)?]);
        let mut cache = trial.decoder.empty(1);
        trial.decoder.feed(
            &mut cache,
            &padded,
            &[(0..LENGTH).map(|slot| i64::from(slot >= 4)).collect()],
        )?;
        let step = part(&trial.sequence.clone(), 5, 6);
        let end = trial.go_on(cache, &[step])?;
        trial.equal(way, &Trial::row(&end, 0), &expected);
    }
    Ok(())
}

fn an_empty_cache(trial: &mut Trial<'_>) -> Result<(), CaseError> {
    for length in [1, LENGTH] {
        let row = part(&trial.sequence, 0, length);
        let found = trial.fresh(std::slice::from_ref(&row))?;
        // The same after a past in which nothing is real.
        let mut cache = trial.decoder.empty(1);
        let (padding, _) = left_pad(&[part(&trial.others, 0, 3)]);
        trial.decoder.feed(&mut cache, &padding, &[vec![0; 3]])?;
        let end = trial.go_on(cache, &[row])?;
        trial.equal(&format!("{length} positions"), &found, &Trial::row(&end, 0));
        let slots = found
            .cache
            .layers
            .iter()
            .flatten()
            .all(|tensor| tensor.shape()[2] == length);
        trial
            .findings
            .require(slots, || format!("the cache does not hold {length} positions"));
    }
    Ok(())
}

fn truncate_and_refeed(trial: &mut Trial<'_>) -> Result<(), CaseError> {
    let (sequence, others) = (trial.sequence.clone(), trial.others.clone());
    for kept in [0, 1, 4, LENGTH - 1] {
        let mut long = trial.fresh(std::slice::from_ref(&sequence))?;
        long.cache.truncate(kept);
        let again = part(&others, kept, LENGTH);
        let found = trial.go_on(long.cache, std::slice::from_ref(&again))?;
        let expected = trial.fresh(&[joined(&part(&sequence, 0, kept), &again)?])?;
        trial.equal(&format!("{kept} kept"), &found, &expected);
    }
    Ok(())
}

/// Without this, a model that forgets everything would pass every claim above.
fn the_past_matters(trial: &mut Trial<'_>) -> Result<(), CaseError> {
    let sequence = trial.sequence.clone();
    let changed = joined(&part(&trial.others, 0, 1), &part(&sequence, 1, LENGTH))?;
    for lengths in [&[LENGTH][..], &[1; LENGTH]] {
        let first = trial.fresh(&cut(&sequence, lengths))?;
        let second = trial.fresh(&cut(&changed, lengths))?;
        let limit = 10.0 * trial.tolerance.relative_l2();
        let far = compare("logits", &second.logits, &first.logits, Tolerance::Custom(limit));
        let distance = far.distance.as_ref().map_or(0.0, |distance| distance.relative_l2);
        trial
            .findings
            .require(distance.is_finite() && distance > limit, || {
                format!(
                    "another first token moves the last logits by {distance:.1e}, expected over {limit:e}"
                )
            });
    }
    Ok(())
}

/// The runtime's model.
fn open(deployed: &Deployed, subject: &Subject) -> Result<Model, CaseError> {
    let Some(provider) = subject.provider.engine() else {
        return Err(CaseError::Skip(
            "the interpreter is no engine of the runtime".to_owned(),
        ));
    };
    let opening = || format!("opening the model on {}", subject.name());
    let variant = deployed.variant(subject)?;
    let mut options = subject.options.clone();
    options.provider = provider;
    options.fallback = false;
    options.target = Some(variant.target);
    options.precision = Some(variant.precision);
    Model::open(&deployed.directory, &options).during(opening)
}

/// A sequence in the model's decoder.
fn start(model: &Model) -> Result<Box<dyn DecoderState>, CaseError> {
    let starting = || "starting a sequence".to_owned();
    model.decoder().during(starting)?.start().during(starting)
}

/// Rows as a role takes them.
fn rows(array: &Array) -> Result<Array2<f32>, CaseError> {
    let rows = array.to_float().as_standard_layout().into_owned();
    rows.into_dimensionality::<Ix2>().during(computing)
}

fn computing() -> String {
    "computing".to_owned()
}

fn row(values: Array1<f32>) -> Array {
    Array::float(&[1, values.len()], values.to_vec())
}

fn roles_are_the_graphs(deployed: &Deployed, subject: &Subject) -> Result<Findings, CaseError> {
    let model = open(deployed, subject)?;
    let mut findings = Findings::default();

    let image = &deployed.bundle.image;
    let [height, width] = [image.height, image.width].map(|side| usize::try_from(side).unwrap_or(0));
    let scene = synth::image::scene(image.width, image.height, 5);
    // `[height, width, 3]` to `[3, height, width]`.
    let pixels: Vec<f32> = (0..3)
        .flat_map(|channel| scene.iter().skip(channel).step_by(3))
        .map(|&byte| f32::from(byte) / 255.0)
        .collect();
    let given = ArrayView4::from_shape((1, 3, height, width), &pixels).during(computing)?;
    let encoder = model.vision_encoder().during(computing)?;
    let found = encoder.encode(given).during(computing)?;
    let mut session = deployed.session(subject, Network::VisionEncoder)?;
    let expected = run_one(
        &mut *session,
        "pixel_values",
        Array::float(&[1, 3, height, width], pixels),
    )?;
    let (tokens, hidden) = found.dim();
    let found = Array::float(&[1, tokens, hidden], found.into_flat().to_vec());
    // The engine of a role knows that the batch is 1 and may order its sums otherwise, in half precision too.
    // What is made bytes then may be the next one.
    let bytes = subject.rounds() || subject.target() == Target::Cpu;
    let features = match subject.precision() {
        Precision::Int8 | Precision::Q8 | Precision::Q4 | Precision::Q4F16 if bytes => Tolerance::Bytes,
        Precision::Fp32 => Tolerance::Close,
        Precision::Fp16 | Precision::Int8 | Precision::Q8 | Precision::Q4 | Precision::Q4F16 => {
            Tolerance::Custom(2e-2)
        }
    };
    findings.push(compare("image_features", &found, &expected, features));

    let ids = vec![7, 0, 42, 7, 255];
    let embedder = model.token_embedder().during(computing)?;
    let found = embedder.embed(&ids).during(computing)?;
    let mut session = deployed.session(subject, Network::EmbedTokens)?;
    let expected = run_one(
        &mut *session,
        "input_ids",
        Array::int(&[1, ids.len()], ids.clone()),
    )?;
    let shape = [1, found.nrows(), found.ncols()];
    findings.push(compare(
        "inputs_embeds",
        &Array::float(&shape, found.into_flat().to_vec()),
        &expected,
        Tolerance::Exact,
    ));

    let sequence = embeddings(deployed, subject, 61, LENGTH)?;
    let mut decoder = Decoder::open(deployed, subject)?;
    let mut cache = decoder.empty(1);
    let mut state = start(&model)?;
    for (step, piece) in cut(&sequence, &[6, 1, 2]).iter().enumerate() {
        let found = state.feed(rows(piece)?.view()).during(computing)?;
        let (embeds, real) = left_pad(std::slice::from_ref(piece));
        let expected = decoder.feed(&mut cache, &embeds, &real)?;
        findings.push(compare(
            &format!("feed {step}: logits"),
            &row(found),
            &expected,
            tolerance(subject),
        ));
    }
    Ok(findings)
}

/// Feeds the pieces and returns the last logits; the length is what was fed.
fn feed(
    state: &mut Box<dyn DecoderState>,
    pieces: &[Array],
    findings: &mut Findings,
) -> Result<Array, CaseError> {
    let mut logits = Array1::default(0);
    for piece in pieces {
        let before = state.len();
        logits = state.feed(rows(piece)?.view()).during(computing)?;
        let (after, expected) = (state.len(), before + piece.shape()[0]);
        findings.require(after == expected, || {
            format!("the sequence has length {after}, expected {expected}")
        });
    }
    Ok(row(logits))
}

/// Which of three sequences are stepped together, one after the other.
const TOGETHER: [&[usize]; 6] = [&[0, 1], &[1, 0, 2], &[0, 2], &[1], &[2, 1, 0], &[2, 1]];

/// What the sequences begin with.
const PROMPTS: [usize; 3] = [5, 3, 2];

fn together_equals_alone(deployed: &Deployed, subject: &Subject) -> Result<Findings, CaseError> {
    let model = open(deployed, subject)?;
    let decoder = model.decoder().during(computing)?;
    let mut findings = Findings::default();
    let mut sequences = Vec::new();
    for seed in [61, 62, 63] {
        sequences.push(rows(&embeddings(deployed, subject, seed, LENGTH)?)?);
    }
    let mut alone = Vec::new();
    for (sequence, prompt) in sequences.iter().zip(PROMPTS) {
        let mut state = start(&model)?;
        state.feed(sequence.slice(s![..prompt, ..])).during(computing)?;
        let mut logits = Vec::new();
        for position in prompt..LENGTH {
            let fed = state.feed(sequence.slice(s![position..=position, ..]));
            logits.push(fed.during(computing)?);
        }
        alone.push(logits);
    }
    let mut states = Vec::new();
    for (sequence, prompt) in sequences.iter().zip(PROMPTS) {
        let mut state = start(&model)?;
        state.feed(sequence.slice(s![..prompt, ..])).during(computing)?;
        states.push(state);
    }
    let variant = deployed.variant(subject)?;
    // Our kernels compute each row as if there were no other.
    let tolerance = match variant.target {
        Target::Cpu => Tolerance::Exact,
        _ => tolerance(subject),
    };
    let together =
        variant.fixed.is_none() && matches!(subject.provider.engine(), Some(Provider::Cpu | Provider::Tract));
    for (step, set) in TOGETHER.into_iter().enumerate() {
        let mut given: Vec<_> = states.iter_mut().enumerate().collect();
        given.retain(|(number, _)| set.contains(number));
        given.sort_by_key(|(number, _)| set.iter().position(|member| member == number));
        let embeds = set.iter().map(|&number| {
            let position = given.iter().find(|(found, _)| *found == number);
            sequences[number].row(position.map_or(0, |(_, state)| state.len()))
        });
        let embeds = stack(Axis(0), &embeds.collect::<Vec<_>>()).during(computing)?;
        let mut fed: Vec<_> = given.iter_mut().map(|(_, state)| &mut ***state).collect();
        let logits = Arc::clone(&decoder).feed_each(&mut fed, embeds.view());
        for (&number, found) in set.iter().zip(logits) {
            let state = &states[number];
            let expected = &alone[number][state.len() - 1 - PROMPTS[number]];
            findings.push(compare(
                &format!("step {step}: sequence {number}"),
                &row(found.during(computing)?),
                &row(expected.clone()),
                tolerance,
            ));
            let (beside, wanted) = (state.beside(), if together { set.len() } else { 1 });
            findings.require(beside == wanted, || {
                format!("step {step} computed {beside} sequences at once, expected {wanted}")
            });
        }
    }
    Ok(findings)
}

fn feed_in_pieces(deployed: &Deployed, subject: &Subject) -> Result<Findings, CaseError> {
    let mut state = start(&open(deployed, subject)?)?;
    let mut findings = Findings::default();
    findings.require(state.is_empty(), || "a new decoder is not empty".to_owned());
    let sequence = embeddings(deployed, subject, 61, LENGTH)?;
    let expected = feed(&mut state, std::slice::from_ref(&sequence), &mut findings)?;
    for lengths in [&[1; LENGTH][..], &[4, 3, 2], &[8, 1]] {
        state.truncate(0).during(computing)?;
        let found = feed(&mut state, &cut(&sequence, lengths), &mut findings)?;
        findings.push(compare(
            &format!("{lengths:?}: logits"),
            &found,
            &expected,
            tolerance(subject),
        ));
    }
    Ok(findings)
}

fn truncate_a_decoder(deployed: &Deployed, subject: &Subject) -> Result<Findings, CaseError> {
    // Two sequences of one model, beside each other.
    let model = open(deployed, subject)?;
    let (mut state, mut fresh) = (start(&model)?, start(&model)?);
    let mut findings = Findings::default();
    let sequence = embeddings(deployed, subject, 61, LENGTH)?;
    let others = embeddings(deployed, subject, 62, LENGTH)?;
    for kept in [0, 1, 4, LENGTH - 1] {
        state.truncate(0).during(computing)?;
        feed(&mut state, std::slice::from_ref(&sequence), &mut findings)?;
        // Longer than it is: nothing to forget.
        state.truncate(LENGTH + 3).during(computing)?;
        findings.require(state.len() == LENGTH, || {
            "forgetting nothing changed the length".to_owned()
        });
        state.truncate(kept).during(computing)?;
        let length = state.len();
        findings.require(length == kept, || {
            format!("after `truncate({kept})` the length is {length}")
        });
        let again = part(&others, kept, LENGTH);
        let found = feed(&mut state, std::slice::from_ref(&again), &mut findings)?;
        fresh.truncate(0).during(computing)?;
        let whole = joined(&part(&sequence, 0, kept), &again)?;
        let expected = feed(&mut fresh, &[whole], &mut findings)?;
        findings.push(compare(
            &format!("{kept} kept: logits"),
            &found,
            &expected,
            tolerance(subject),
        ));
    }
    Ok(findings)
}

fn errors_change_nothing(deployed: &Deployed, subject: &Subject) -> Result<Findings, CaseError> {
    let mut state = start(&open(deployed, subject)?)?;
    let mut findings = Findings::default();
    let sequence = embeddings(deployed, subject, 61, LENGTH)?;
    let expected = feed(&mut state, &cut(&sequence, &[6, 3]), &mut findings)?;
    state.truncate(6).during(computing)?;
    let width = sequence.shape()[1];
    for wrong in [(0, width), (1, 1), (1, width + 1)] {
        let refused = state.feed(Array2::from_elem(wrong, 0.5).view()).is_err();
        findings.require(refused, || {
            format!("{wrong:?} values were taken for embeddings of {width}")
        });
        let length = state.len();
        findings.require(length == 6, || {
            format!("after an error the length is {length}, expected 6")
        });
    }
    let found = feed(&mut state, &[part(&sequence, 6, LENGTH)], &mut findings)?;
    findings.push(compare(
        "after errors: logits",
        &found,
        &expected,
        tolerance(subject),
    ));
    Ok(findings)
}

fn follow_up_equals_fresh(deployed: &Deployed, subject: &Subject) -> Result<Findings, CaseError> {
    let Some(provider) = subject.provider.engine() else {
        return Err(CaseError::Skip(
            "the interpreter is no engine of the runtime".to_owned(),
        ));
    };
    let options = subject
        .options
        .clone()
        .with_provider(provider)
        .with_fallback(false)
        .with_precision(deployed.variant(subject)?.precision);
    let picture = Picture::new(96, 64, synth::image::scene(96, 64, 7))
        .ok_or_else(|| CaseError::Skip("the scene has no pixels".to_owned()))?;
    let request = Request::default().with_max_tokens(8);
    let chatting = || "chatting".to_owned();
    let answer = |engine: &mut Engine, messages: &[Message]| -> Result<_, CaseError> {
        let mut text = String::new();
        let mut answer = engine.chat(messages, &request).during(chatting)?;
        for piece in answer.by_ref() {
            text.push_str(&piece.during(chatting)?.text);
        }
        Ok((text, answer.tokens().to_vec(), answer.stats()))
    };

    let mut engine = Engine::open(&deployed.directory, &options).during(chatting)?;
    let image = engine.add_image(&picture).during(chatting)?;
    let mut messages = vec![Message::user([image], "What is it?")];
    let (text, _, first) = answer(&mut engine, &messages)?;
    messages.push(Message::new(Role::Assistant, text));
    messages.push(Message::new(Role::User, "Are you sure?"));
    let (_, found, reusing) = answer(&mut engine, &messages)?;

    let mut fresh = Engine::open(&deployed.directory, &options).during(chatting)?;
    fresh.add_image(&picture).during(chatting)?;
    let (_, expected, computing) = answer(&mut fresh, &messages)?;

    let mut findings = Findings::default();
    findings.require(!expected.is_empty(), || {
        "the answer is empty: nothing was compared".to_owned()
    });
    findings.require(found == expected, || {
        format!("answered {found:?}, expected {expected:?}")
    });
    findings.require(computing.reused_positions == 0, || {
        "a fresh engine reused something".to_owned()
    });
    findings.require(reusing.images_encoded == 0, || {
        "the image was encoded again".to_owned()
    });
    // The whole first prompt is a prefix of the second.
    let (reused, prefix) = (reusing.reused_positions, first.prompt_positions);
    findings.require(reused >= prefix, || {
        format!("{reused} positions were reused, expected at least {prefix}")
    });
    Ok(findings)
}
