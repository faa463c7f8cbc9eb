//! Choices and log-probabilities of tokens: those that transformers computes, within 1e-3.
//!
//! Recorded by `fvlm_conformance.reference.choices` of the demo model in fp32.

#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]

use conformance::setup::{required, subject};
use exporter::{ExportPlan, Silent, Source};
use runtime::image::{self, Limits};
use runtime::{Conversation, Message, Model, Options, Precision, Provider, Request};
use serde::Deserialize;
use std::path::Path;

/// How far a probability or its logarithm may be off.
const TOLERANCE: f64 = 1e-3;

#[derive(Deserialize)]
struct Recorded {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    images: Vec<String>,
    question: String,
    end_counts: bool,
    choices: Vec<Choice>,
    answer: Vec<Token>,
}

#[derive(Deserialize)]
struct Choice {
    text: String,
    logprob: f64,
    probability: f64,
}

#[derive(Deserialize)]
struct Token {
    id: i64,
    logprob: f64,
    top: Vec<(i64, f64)>,
}

fn recorded() -> Vec<Case> {
    let recorded: Recorded = serde_json::from_str(include_str!("data/choices.json")).unwrap();
    assert!(recorded.cases.len() >= 8);
    recorded.cases
}

/// The demo model in fp32 on each engine that works here.
fn models(folder: &Path) -> Vec<(Provider, Model)> {
    let plan = ExportPlan::new(Source::Demo, folder.join("bundle"));
    exporter::export(&plan, &mut Silent).unwrap();
    let options = |provider| {
        Options::default()
            .with_provider(provider)
            .with_fallback(false)
            .with_precision(Some(Precision::Fp32))
    };
    let named = [subject::Provider::Cpu, subject::Provider::Tract];
    let working = named.into_iter().filter(|named| required::works(*named).unwrap());
    let providers = working.filter_map(subject::Provider::engine);
    let models: Vec<_> = providers
        .map(|provider| {
            let model = Model::open(&folder.join("bundle"), &options(provider)).unwrap();
            (provider, model)
        })
        .collect();
    assert!(!models.is_empty(), "no engine works here");
    models
}

fn messages(conversation: &mut Conversation, case: &Case) -> Vec<Message> {
    let scenes = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/demo/scenes");
    let ids = case.images.iter().map(|name| {
        let picture = image::open(&scenes.join(name), &Limits::default()).unwrap();
        conversation.add_image(&picture).unwrap()
    });
    let ids: Vec<_> = ids.collect();
    vec![Message::user(ids, case.question.clone())]
}

fn near(found: f64, expected: f64) -> bool {
    (found - expected).abs() <= TOLERANCE
}

#[test]
fn choices_are_as_likely_as_transformers_finds_them() {
    let folder = tempfile::tempdir().unwrap();
    for (provider, model) in models(folder.path()) {
        let mut conversation = model.conversation();
        for case in recorded() {
            let messages = messages(&mut conversation, &case);
            let texts: Vec<&str> = case.choices.iter().map(|choice| choice.text.as_str()).collect();
            let found = conversation
                .choose(&messages, &texts, &Request::default())
                .unwrap();
            assert_eq!(found.end_counts, case.end_counts, "{}", case.question);
            for (found, expected) in found.choices.iter().zip(&case.choices) {
                assert_eq!(found.text, expected.text);
                // Of what is next to impossible, the logarithm is large, and so is its error.
                let logprob =
                    (found.logprob - expected.logprob).abs() <= TOLERANCE * expected.logprob.abs().max(1.0);
                assert!(
                    logprob && near(found.probability, expected.probability),
                    "{provider}, {}, `{}`: {} {}, expected {} {}",
                    case.question,
                    found.text,
                    found.logprob,
                    found.probability,
                    expected.logprob,
                    expected.probability
                );
            }
            let best = case
                .choices
                .iter()
                .max_by(|a, b| a.probability.total_cmp(&b.probability));
            assert_eq!(found.best().unwrap().text, best.unwrap().text);
            // What was tried is not said: the answer is that of a conversation that was not asked.
            let after: Vec<i64> = {
                let mut answer = conversation.chat(&messages, &Request::default()).unwrap();
                answer.text().unwrap();
                answer.tokens().to_vec()
            };
            let told: Vec<i64> = case.answer.iter().map(|token| token.id).collect();
            assert!(after.starts_with(&told), "{}: {after:?} {told:?}", case.question);
        }
    }
}

#[test]
fn tokens_are_as_likely_as_transformers_finds_them() {
    let folder = tempfile::tempdir().unwrap();
    for (provider, model) in models(folder.path()) {
        for case in recorded() {
            let mut conversation = model.conversation();
            let messages = messages(&mut conversation, &case);
            let request = Request::default().with_logprobs(5);
            let answer = conversation.chat(&messages, &request).unwrap();
            let found: Vec<_> = answer.filter_map(|piece| piece.unwrap().logprob).collect();
            assert!(found.len() >= case.answer.len());
            for (found, expected) in found.iter().zip(&case.answer) {
                let place = format!("{provider}, {}: {found:?}", case.question);
                assert_eq!(found.id, expected.id, "{place}");
                assert!(
                    near(found.logprob, expected.logprob),
                    "{place}, {}",
                    expected.logprob
                );
                assert_eq!(found.top.len(), 5);
                for ((_, found), (_, expected)) in found.top.iter().zip(&expected.top) {
                    let near = (found - expected).abs() <= TOLERANCE * expected.abs().max(1.0);
                    assert!(near, "{place}, {expected}");
                }
            }
        }
    }
}
