//! Models with fine-tunes merged into them: every engine finds the features of an image and the logits of a prompt that
//! transformers finds with what peft's `merge_and_unload` and the steps of LLaVA's `builder.py` made of the same base.

#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]

#[path = "../../models/tests/adapters/recorded.rs"]
mod recorded;

use conformance::array::Array;
use conformance::compare::{Comparison, Tolerance, compare};
use conformance::safetensors;
use conformance::setup::model::{Decoder, run_one};
use conformance::setup::required;
use conformance::setup::subject::{Provider, Subject, Variant, available};
use models::arch::{self, Network};
use models::bundle::KvSpec;
use models::checkpoint::Canonical;
use models::config::DecoderConfig;
use recorded::{Case, case, data, merged, written};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// What stands for the image in a prompt.
const IMAGE: i64 = 19;

/// The recorder's image.
fn picture(side: usize) -> Array {
    let value = |at: usize| f32::from(u8::try_from(at * 7 % 61).unwrap()) / 64.0;
    Array::float(&[1, 3, side, side], (0..3 * side * side).map(value).collect())
}

/// Whoever computes portable graphs in float32 here; the interpreter always does.
fn subjects() -> Vec<Subject> {
    let (mut subjects, missing) = available(&Provider::ALL, &runtime::Options::default());
    required::check(&missing).unwrap();
    subjects.retain(|subject| subject.form == Variant::PORTABLE);
    assert!(subjects.iter().any(Subject::is_interpreter), "{missing:?}");
    subjects
}

fn cache(config: &DecoderConfig) -> KvSpec {
    let whole = |number: u64| usize::try_from(number).unwrap();
    KvSpec {
        layers: whole(config.layers),
        kv_heads: whole(config.kv_heads),
        head_dim: whole(config.head_dim),
        max_context: whole(config.max_position_embeddings),
    }
}

/// What a subject finds, compared with what was recorded.
fn compared(
    subject: &Subject,
    weights: &Canonical,
    expected: &BTreeMap<String, Array>,
    scratch: &Path,
) -> [Comparison; 2] {
    let config = weights.config();
    let [encoder, table, decoder] = [Network::VisionEncoder, Network::EmbedTokens, Network::Decoder]
        .map(|network| arch::build(network, config).unwrap());
    let session = |graph| subject.session(graph, weights, scratch).unwrap();
    let side = usize::try_from(config.vision.image_size).unwrap();
    let features = run_one(&mut *session(&encoder), "pixel_values", picture(side)).unwrap();

    let ids = expected["input_ids"].as_int().unwrap();
    let count = ids.len();
    let input = Array::int(&[1, count], ids.iter().copied().collect());
    let embeds = run_one(&mut *session(&table), "input_ids", input).unwrap();
    let mut decoder = Decoder::over(session(&decoder), cache(&config.decoder));
    let mut cache = decoder.empty(1);
    let mut logits = Vec::new();
    for (at, id) in ids.iter().enumerate() {
        let embed = if *id == IMAGE {
            features.clone()
        } else {
            embeds.part(1, at..at + 1)
        };
        let found = decoder.feed(&mut cache, &embed, &[vec![1]]).unwrap();
        logits.extend(found.to_float().iter().copied());
    }
    let logits = Array::float(&[count, logits.len() / count], logits);
    [
        compare(
            "image_features",
            &features,
            &expected["image_features"],
            Tolerance::Close,
        ),
        compare("logits", &logits, &expected["logits"], Tolerance::Logits),
    ]
}

#[test]
fn logits_are_those_of_the_merged_model() {
    let subjects = subjects();
    let scratch = tempfile::tempdir().unwrap();
    let mut problems = Vec::new();
    let mut seen = 0;
    for entry in fs::read_dir(data()).unwrap() {
        let path = entry.unwrap().path();
        if !path.is_dir() {
            continue;
        }
        seen += 1;
        let name = path.file_name().unwrap().to_str().unwrap();
        let Case {
            folder,
            config,
            tensors,
            adapters,
        } = case(name);
        let base = written(&config, &tensors);
        let (weights, _) = merged(base.path(), &adapters);
        let (plain, _) = merged(base.path(), &[]);
        let expected = safetensors::read(&folder.join("answers.safetensors")).unwrap();
        for subject in &subjects {
            let found = compared(subject, &weights, &expected, scratch.path());
            let wrong = found.into_iter().filter_map(|found| found.problem);
            problems.extend(wrong.map(|problem| format!("{name}, {}: {problem}", subject.name())));
        }
        // Without the adapter the logits are others: what is not merged would be seen.
        let referee = subjects.iter().find(|subject| subject.is_interpreter()).unwrap();
        let [_, logits] = compared(referee, &plain, &expected, scratch.path());
        let distance = logits.distance.unwrap().relative_l2;
        assert!(distance > 0.05, "{name}: {distance}");
    }
    assert!(problems.is_empty(), "{}", problems.join("\n"));
    assert_eq!(seen, 11);
}
