//! The runtime as a library: what its documentation promises to those who build it in.

#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]

use conformance::setup::{required, subject};
use exporter::{ExportPlan, Silent, Source};
use runtime::image::{self, Picture};
use runtime::{Engine, EngineError, Finish, Message, Options, Provider, Request};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;

fn bundle() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let plan = ExportPlan::new(Source::Demo, folder.path().join("bundle"));
    exporter::export(&plan, &mut Silent).unwrap();
    folder
}

fn engine(folder: &tempfile::TempDir) -> Engine {
    Engine::open(&folder.path().join("bundle"), &Options::default()).unwrap()
}

/// Engines that work here; those that are required do.
fn engines() -> impl Iterator<Item = Provider> {
    let named = [subject::Provider::Cpu, subject::Provider::Tract];
    let working = named.into_iter().filter(|named| required::works(*named).unwrap());
    working.filter_map(subject::Provider::engine)
}

fn scene(number: usize) -> Picture {
    let path = format!("../models/demo/scenes/scene_{number}.png");
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    image::open(&path, &image::Limits::default()).unwrap()
}

const QUESTION: &str = "Describe the image.";

#[test]
fn one_engine_after_another_thread() {
    let folder = bundle();
    let mut engine = engine(&folder);
    let here = engine
        .describe(&scene(1), QUESTION, &Request::default())
        .unwrap()
        .text()
        .unwrap();
    assert!(!here.is_empty());
    let there = std::thread::spawn(move || {
        let text = engine
            .describe(&scene(1), QUESTION, &Request::default())
            .unwrap()
            .text();
        (engine, text.unwrap())
    });
    let (mut engine, there) = there.join().unwrap();
    assert_eq!(here, there);
    let again = engine
        .describe(&scene(1), QUESTION, &Request::default())
        .unwrap()
        .text();
    assert_eq!(again.unwrap(), here);
}

#[test]
fn engines_beside_each_other() {
    let folder = bundle();
    let alone: Vec<String> = (1..=3)
        .map(|number| {
            let mut engine = engine(&folder);
            engine
                .describe(&scene(number), QUESTION, &Request::default())
                .unwrap()
                .text()
                .unwrap()
        })
        .collect();
    let threads: Vec<_> = (1..=3)
        .map(|number| {
            let mut engine = engine(&folder);
            std::thread::spawn(move || {
                let picture = scene(number);
                let mut answer = engine.describe(&picture, QUESTION, &Request::default()).unwrap();
                answer.text().unwrap()
            })
        })
        .collect();
    let beside: Vec<String> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
    assert_eq!(beside, alone);
}

#[test]
fn cancelled_from_another_thread() {
    let folder = bundle();
    let mut engine = engine(&folder);
    let whole = {
        let mut answer = engine.describe(&scene(1), QUESTION, &Request::default()).unwrap();
        answer.text().unwrap();
        answer.tokens().to_vec()
    };
    assert!(whole.len() > 4);
    let cancel = Arc::new(AtomicBool::new(false));
    let request = Request::default().with_cancel(Arc::clone(&cancel));
    // Another thread that is told of every token and has enough after three.
    let (sender, receiver) = mpsc::channel::<mpsc::Sender<()>>();
    let other = std::thread::spawn(move || {
        for (count, done) in receiver.iter().enumerate() {
            if count == 2 {
                cancel.store(true, Ordering::Relaxed);
            }
            done.send(()).unwrap();
        }
        cancel
    });
    let picture = scene(1);
    let mut answer = engine.describe(&picture, QUESTION, &request).unwrap();
    for piece in answer.by_ref() {
        piece.unwrap();
        let (done, is_done) = mpsc::channel();
        sender.send(done).unwrap();
        is_done.recv().unwrap();
    }
    assert_eq!(answer.finish(), Some(Finish::Cancelled));
    assert_eq!(answer.tokens(), &whole[..3]);
    drop(answer);
    drop(sender);
    // Still set: the next answer does not begin, and the conversation is not harmed.
    let cancel = other.join().unwrap();
    let refused = engine.describe(&picture, QUESTION, &request).unwrap_err();
    assert!(matches!(refused, EngineError::Cancelled), "{refused}");
    cancel.store(false, Ordering::Relaxed);
    let mut answer = engine.describe(&picture, QUESTION, &request).unwrap();
    answer.text().unwrap();
    assert_eq!(answer.tokens(), whole);
}

#[test]
fn errors_are_types() {
    let folder = bundle();
    let open = |options: Options| Engine::open(&folder.path().join("bundle"), &options).unwrap_err();
    let found = open(Options::default().with_precision(runtime::Precision::Fp16));
    assert!(matches!(found, EngineError::NoVariant { .. }), "{found}");
    let found = open(Options::default().with_image_size(77));
    assert!(
        matches!(found, EngineError::NoImageSize { asked: 77, .. }),
        "{found}"
    );
    let found = Engine::open(folder.path(), &Options::default()).unwrap_err();
    assert!(matches!(found, EngineError::Bundle(_)), "{found}");

    let mut engine = engine(&folder);
    let image = engine.add_image(&scene(1)).unwrap();
    engine.forget_images();
    let request = Request::default();
    let found = engine
        .chat(&[Message::user([image], QUESTION)], &request)
        .unwrap_err();
    assert!(matches!(found, EngineError::UnknownImage), "{found}");
    let found = engine
        .chat(&[Message::user([], "long ".repeat(5000))], &request)
        .unwrap_err();
    assert!(matches!(found, EngineError::TooLong { .. }), "{found}");
    // What failed left nothing behind.
    let answer = engine
        .describe(&scene(1), QUESTION, &request)
        .unwrap()
        .text()
        .unwrap();
    assert!(!answer.is_empty());
}

#[test]
fn a_frame_is_as_good_as_a_file() {
    let folder = bundle();
    let file = scene(2);
    let frame = Picture::new(file.width(), file.height(), file.pixels().to_vec()).unwrap();
    let options = Options::default().with_provider(Provider::Tract);
    let mut engine = Engine::open(&folder.path().join("bundle"), &options).unwrap();
    let (a, b) = (
        engine.add_image(&file).unwrap(),
        engine.add_image(&frame).unwrap(),
    );
    assert_eq!(a, b);
    let answer = engine
        .chat(&[Message::user([b], QUESTION)], &Request::default())
        .unwrap()
        .text();
    assert!(!answer.unwrap().is_empty());
}

/// The Hugging Face cache: every file of a bundle is a link into a folder `blobs`, under another name.
#[cfg(unix)]
fn linked(bundle: &Path, folder: &Path) -> std::path::PathBuf {
    let (snapshot, blobs) = (folder.join("snapshots/main"), folder.join("blobs"));
    std::fs::create_dir_all(&blobs).unwrap();
    let contract = models::bundle::Bundle::open(bundle).unwrap();
    let files = contract.files.iter().map(|file| file.path.as_str());
    for (number, path) in files.chain(["bundle.json"]).enumerate() {
        let (blob, link) = (blobs.join(format!("{number:040}")), snapshot.join(path));
        std::fs::copy(bundle.join(path), &blob).unwrap();
        std::fs::create_dir_all(link.parent().unwrap()).unwrap();
        std::os::unix::fs::symlink(&blob, link).unwrap();
    }
    snapshot
}

#[test]
#[cfg(unix)]
fn a_bundle_in_the_hub_cache_answers_on_every_engine() {
    use exporter::{Precision, Target, Variant};
    let folder = tempfile::tempdir().unwrap();
    let mut plan = ExportPlan::new(Source::Demo, folder.path().join("bundle"));
    plan.variants = [
        (Target::Portable, Precision::Fp32),
        (Target::Cpu, Precision::Int8),
    ]
    .map(|(target, precision)| Variant::new(target, precision).unwrap())
    .to_vec();
    exporter::export(&plan, &mut Silent).unwrap();
    let links = linked(&folder.path().join("bundle"), &folder.path().join("models--demo"));
    for provider in engines() {
        for target in [runtime::Target::Portable, runtime::Target::Cpu] {
            let options = Options::default()
                .with_provider(provider)
                .with_fallback(false)
                .with_target(Some(target));
            let answer = |bundle: &Path| {
                let mut engine = Engine::open(bundle, &options).unwrap();
                let request = Request::default().with_max_tokens(8);
                let mut answer = engine.describe(&scene(1), QUESTION, &request).unwrap();
                answer.text().unwrap()
            };
            let expected = answer(&folder.path().join("bundle"));
            assert_eq!(answer(&links), expected, "{provider} {target}");
        }
    }
}

#[test]
fn weights_inside_graphs_answer_as_weights_beside_them() {
    use exporter::{Precision, Target, Variant};
    let folder = tempfile::tempdir().unwrap();
    let forms = [
        (Target::Portable, Precision::Fp32),
        (Target::Portable, Precision::Fp16),
        (Target::Cpu, Precision::Q4),
        (Target::OrtCoreMl, Precision::Fp32),
    ];
    let export = |name: &str, inside: bool| {
        let mut plan = ExportPlan::new(Source::Demo, folder.path().join(name));
        plan.variants = forms
            .map(|(target, precision)| Variant::new(target, precision).unwrap())
            .to_vec();
        (plan.weights_inside, plan.max_context, plan.prefill) = (inside, Some(96), vec![32]);
        exporter::export(&plan, &mut Silent).unwrap();
        plan.output
    };
    let (beside, inside) = (export("beside", false), export("inside", true));
    for provider in engines() {
        for (target, precision) in forms {
            let options = Options::default()
                .with_provider(provider)
                .with_fallback(false)
                .with_target(Some(target))
                .with_precision(precision);
            let answer = |bundle: &Path| {
                let mut engine = Engine::open(bundle, &options).unwrap();
                let request = Request::default().with_max_tokens(8);
                let mut answer = engine.describe(&scene(1), QUESTION, &request).unwrap();
                answer.text().unwrap()
            };
            let (found, expected) = (answer(&inside), answer(&beside));
            assert!(!found.is_empty());
            assert_eq!(found, expected, "{provider} {target} {precision}");
        }
    }
}

#[test]
fn weights_are_verified_when_asked() {
    let folder = bundle();
    let path = folder.path().join("bundle/onnx/decoder_model_merged.onnx_data");
    let mut bytes = std::fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let engine = engine(&folder);
    let read = std::sync::atomic::AtomicU64::new(0);
    let error = engine
        .model()
        .verify(&|count| {
            read.fetch_add(count, Ordering::Relaxed);
        })
        .unwrap_err();
    let files = &engine.bundle().files;
    assert_eq!(
        read.into_inner(),
        files.iter().map(|file| file.bytes).sum::<u64>()
    );
    let words = error.to_string();
    assert!(
        words.contains("`onnx/decoder_model_merged.onnx_data` has SHA-256") && error.is_about_model(),
        "{words}"
    );
}
