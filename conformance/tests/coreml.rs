//! Target `coreml`, run by engines that work here: graphs of fixed lengths answer as the portable ones do.

#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]

use conformance::setup::{required, subject};
use exporter::{ExportPlan, Precision, Silent, Source, Target, Variant};
use runtime::{Engine, EngineError, Message, Options, Provider, Request, image};
use std::path::{Path, PathBuf};

/// Questions that follow each other in one conversation, the second longer than the shorter prefill.
const QUESTIONS: [&str; 2] = [
    "Describe the image.",
    "Look again, and take your time: is there anything in the image that was not named so far, or is it only what was \
     named before, and if so, what is it, where is it, and what colour has the background behind it in the image?",
];

fn export(directory: &Path, variants: &[(Target, Precision)], max_context: u64) {
    let mut plan = ExportPlan::new(Source::Demo, directory.to_owned());
    plan.variants = variants
        .iter()
        .map(|(target, precision)| Variant::new(*target, *precision).unwrap())
        .collect();
    plan.max_context = Some(max_context);
    plan.prefill = [16, 64].map(|new: u64| new.min(max_context)).to_vec();
    exporter::export(&plan, &mut Silent).unwrap();
}

fn engine(directory: &Path, provider: Provider, target: Target, precision: Precision) -> Engine {
    let options = Options::default()
        .with_provider(provider)
        .with_fallback(false)
        .with_target(target)
        .with_precision(precision);
    Engine::open(directory, &options).unwrap()
}

fn scene(number: usize) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../models/demo/scenes/scene_{number}.png"))
}

/// The greedy tokens of the questions' answers about each of the demo's scenes, each a conversation of its own.
fn answers(engine: &mut Engine) -> Vec<Vec<i64>> {
    let request = Request::default().with_max_tokens(24);
    let mut answers = Vec::new();
    for scene_number in 1..=8 {
        let picture = image::open(&scene(scene_number), &image::Limits::default()).unwrap();
        let id = engine.add_image(&picture).unwrap();
        for question in QUESTIONS {
            let mut answer = engine.chat(&[Message::user([id], question)], &request).unwrap();
            answer.by_ref().for_each(|piece| drop(piece.unwrap()));
            answers.push(answer.tokens().to_vec());
        }
    }
    answers
}

#[test]
fn fixed_lengths_answer_as_any_length_does() {
    let folder = tempfile::tempdir().unwrap();
    let bundle = folder.path().join("bundle");
    let variants = [
        (Target::Portable, Precision::Fp32),
        (Target::OrtCoreMl, Precision::Fp32),
        (Target::OrtCoreMl, Precision::Fp16),
    ];
    export(&bundle, &variants, 200);
    for named in [subject::Provider::Cpu, subject::Provider::Tract] {
        let Some(provider) = named.engine().filter(|_| required::works(named).unwrap()) else {
            continue;
        };
        let expected = answers(&mut engine(&bundle, provider, Target::Portable, Precision::Fp32));
        assert!(expected.iter().any(|tokens| tokens.len() > 4));
        let found = answers(&mut engine(&bundle, provider, Target::OrtCoreMl, Precision::Fp32));
        assert_eq!(found, expected, "{provider}");
        if provider == Provider::Cpu {
            let found = answers(&mut engine(&bundle, provider, Target::OrtCoreMl, Precision::Fp16));
            assert_eq!(found, expected, "{provider} fp16");
        }
    }
}

/// A prompt that does not fit the cache is an error before anything is fed; an answer ends where the cache does.
#[test]
fn a_short_cache_ends_the_answer_and_refuses_the_prompt() {
    let folder = tempfile::tempdir().unwrap();
    let ask = |context: u64| -> Result<usize, EngineError> {
        let bundle = folder.path().join(context.to_string());
        export(&bundle, &[(Target::OrtCoreMl, Precision::Fp32)], context);
        let mut engine = engine(&bundle, Provider::Tract, Target::OrtCoreMl, Precision::Fp32);
        let picture = image::open(&scene(1), &image::Limits::default())?;
        let id = engine.add_image(&picture)?;
        let mut answer = engine.chat(&[Message::user([id], QUESTIONS[0])], &Request::default())?;
        for piece in answer.by_ref() {
            piece?;
        }
        Ok(answer.tokens().len())
    };
    let Err(EngineError::TooLong { found, expected: 12 }) = ask(12) else {
        panic!("a prompt of more than 12 positions was taken")
    };
    let whole = ask(1024).unwrap();
    let cut = ask(u64::try_from(found).unwrap() + 3).unwrap();
    assert!((1..=4).contains(&cut) && cut < whole, "{cut} of {whole}");
}
