//! Statistics of activations, from images to a bundle that is rounded by them: the same bytes each time,
//! other bytes in int8 and q4 alone, better answers, and errors that name what is wrong with a file.

#![cfg(feature = "tract")]
#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]

use conformance::loaded::{Combination, Loaded, prompt};
use conformance::quality::calibrate;
use conformance::quality::metrics::{Tally, relative_l2};
use conformance::safetensors::{self, View};
use conformance::setup::subject::{Precision, Provider, Target, Variant};
use exporter::{ExportPlan, Silent, Source};
use ndarray::{Array1, ArrayViewD};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Tensors by their names.
type Floats = BTreeMap<String, ndarray::ArrayD<f32>>;

fn scene(number: usize) -> PathBuf {
    let path = format!("../models/demo/scenes/scene_{number}.png");
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// One of the scenes of statistics.
fn seen(number: usize) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("quality/scenes/{number:03}.png"))
}

/// Statistics of the demo model over a few scenes, and its checkpoint beside them.
fn calibrated(folder: &Path) -> PathBuf {
    let checkpoint = folder.join("checkpoint");
    std::fs::create_dir(&checkpoint).unwrap();
    exporter::demo::extract(&checkpoint).unwrap();
    let settings = calibrate::Settings {
        checkpoint,
        images: (0..16).map(seen).collect(),
        prompts: vec!["Describe the image.".to_owned()],
        answer_tokens: 40,
        provider: Provider::Tract,
        options: runtime::Options::default(),
        scratch: folder.to_owned(),
    };
    let found = calibrate::calibrate(&settings, &mut |_| ()).unwrap();
    assert_eq!(found.images, 16);
    let file = folder.join("statistics.safetensors");
    found.write(&file).unwrap();
    file
}

fn plan(source: Source, output: PathBuf, calibration: Option<PathBuf>) -> ExportPlan {
    let mut plan = ExportPlan::new(source, output);
    plan.variants = [
        (Target::Portable, Precision::Fp32),
        (Target::Cpu, Precision::Fp32),
        (Target::Cpu, Precision::Int8),
        (Target::Cpu, Precision::Q4),
    ]
    .into_iter()
    .filter_map(|(target, precision)| Variant::new(target, precision))
    .collect();
    plan.calibration = calibration;
    plan
}

/// File names in a bundle and their hashes.
fn hashes(bundle: &Path) -> BTreeMap<String, String> {
    let bundle = models::bundle::Bundle::open(bundle).unwrap();
    bundle
        .files
        .into_iter()
        .map(|file| (file.path, file.sha256))
        .collect()
}

/// Of a form, about scenes that the statistics have not seen: how far its image features are from those of fp32, and
/// the mean divergence of its logits over the answers of fp32.
fn losses(bundle: &Path, precision: Precision) -> (f64, f64) {
    let open = |target, precision| {
        let combination = Combination {
            provider: runtime::Provider::Tract,
            target,
            precision,
        };
        Loaded::open(bundle, &combination, &runtime::Options::default()).unwrap()
    };
    let mut exact = open(Target::Portable, Precision::Fp32);
    let mut rounded = open(Target::Cpu, precision);
    let (mut distance, mut tally) = (0.0, Tally::default());
    for number in 1..=8 {
        let picture = runtime::image::open(&scene(number), &runtime::image::Limits::default()).unwrap();
        let image = exact.model.preprocess(&picture).unwrap();
        let (expected, found) = (exact.encode(&image).unwrap(), rounded.encode(&image).unwrap());
        distance += relative_l2(found.as_slice().unwrap(), expected.as_slice().unwrap());
        let prompt = prompt(&exact.model, Some(image.id), "Describe the image.", 40).unwrap();
        let ids = exact.greedy(&prompt, expected.view(), 40).unwrap();
        let mut compare = |found: Array1<f32>, expected: Array1<f32>| {
            tally.add(found.as_slice().unwrap(), expected.as_slice().unwrap());
        };
        compare(
            rounded.prefill(&prompt, found.view()).unwrap(),
            exact.prefill(&prompt, expected.view()).unwrap(),
        );
        for id in ids {
            compare(rounded.step(id).unwrap(), exact.step(id).unwrap());
        }
    }
    (distance, tally.error().unwrap().kl_mean)
}

#[test]
fn statistics_make_rounding_better_and_nothing_else_other() {
    let folder = tempfile::tempdir().unwrap();
    let statistics = calibrated(folder.path());
    let export = |name: &str, calibration: Option<&PathBuf>| {
        let bundle = folder.path().join(name);
        exporter::export(
            &plan(Source::Demo, bundle.clone(), calibration.cloned()),
            &mut Silent,
        )
        .unwrap();
        bundle
    };
    let (plain, by, again) = (
        export("plain", None),
        export("by", Some(&statistics)),
        export("again", Some(&statistics)),
    );
    assert_eq!(hashes(&by), hashes(&again));
    let (before, after) = (hashes(&plain), hashes(&by));
    assert!(before.keys().eq(after.keys()));
    for (path, hash) in &before {
        let rounded = path.contains("_int8") || path.contains("_q4");
        let products = rounded && !path.contains("embed_tokens") && path.ends_with(".onnx_data");
        if products || !rounded {
            assert_eq!(after[path] != *hash, products, "{path}");
        }
    }
    for precision in [Precision::Int8, Precision::Q4] {
        let (before, after) = (losses(&plain, precision), losses(&by, precision));
        assert!(
            after.0 < 0.95 * before.0 && after.1 < before.1,
            "{precision}: {after:?} with statistics, {before:?} without"
        );
    }
}

/// What a file of statistics must have is named where it has it not.
#[test]
fn statistics_that_do_not_fit_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let statistics = calibrated(folder.path());
    let refused = |file: &Path, words: &str| {
        let plan = plan(Source::Demo, folder.path().join("none"), Some(file.to_owned()));
        let error = exporter::export(&plan, &mut Silent).unwrap_err().to_string();
        assert!(error.contains(words), "no `{words}` in {error}");
        assert!(!folder.path().join("none").exists());
    };
    refused(Path::new("nowhere.safetensors"), "nowhere.safetensors");

    let tensors = safetensors::read(&statistics).unwrap();
    let fingerprint = models::checkpoint::Checkpoint::open(&folder.path().join("checkpoint"))
        .unwrap()
        .fingerprint();
    let name = "language_model.layers.1.mlp.down_proj.weight.moments.0";
    let write = |fingerprint: [u8; 32], change: &dyn Fn(&mut Floats)| {
        let floats = tensors.iter().filter_map(|(name, array)| {
            let array = array.as_float()?;
            Some((name.clone(), array.to_owned().into_owned().into_dyn()))
        });
        let mut floats: Floats = floats.collect();
        change(&mut floats);
        let of = ArrayViewD::from_shape(ndarray::IxDyn(&[32]), &fingerprint).unwrap();
        let mut views = vec![("fingerprint", View::Bytes(of))];
        views.extend(
            floats
                .iter()
                .map(|(name, array)| (name.as_str(), View::Float(array.view()))),
        );
        let file = folder.path().join("changed.safetensors");
        safetensors::write(&file, &[], &views).unwrap();
        file
    };
    let mut other = fingerprint;
    other[0] ^= 1;
    refused(
        &write(other, &|_| ()),
        "statistics of a checkpoint with fingerprint",
    );
    let missing = write(fingerprint, &|floats| drop(floats.remove(name)));
    refused(&missing, &format!("has no tensor `{name}`"));
    let not_a_number = write(fingerprint, &|floats| {
        floats.get_mut(name).unwrap()[[3, 4]] = f32::NAN;
    });
    refused(
        &not_a_number,
        &format!("tensor `{name}` has NaN, expected numbers"),
    );
    let negative = write(fingerprint, &|floats| {
        floats.get_mut(name).unwrap()[[3, 3]] = -1.0;
    });
    refused(&negative, "has -1 on its diagonal, expected squares");
    let shorter = write(fingerprint, &|floats| {
        let part = floats[name].slice(ndarray::s![..5, ..5]).to_owned().into_dyn();
        floats.insert(name.to_owned(), part);
    });
    refused(&shorter, "is float32 [5, 5], expected float32 [512, 512]");
}
