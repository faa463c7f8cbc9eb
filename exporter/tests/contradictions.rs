//! Files of a checkpoint that contradict each other, or ask for what a bundle does not carry: refused or said, never
//! passed over.

#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]

use exporter::{ExportPlan, Precision, Silent, Source, Target, Variant, export};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;

/// What an export says of the demo checkpoint after a change: its warnings, or the error.
fn said(file: &str, pointer: &str, field: &str, value: Value) -> Result<Vec<String>, String> {
    let folder = tempfile::tempdir().unwrap();
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/demo/checkpoint");
    for entry in fs::read_dir(demo).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), folder.path().join(entry.file_name())).unwrap();
    }
    let path = folder.path().join(file);
    let mut fields: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    fields.pointer_mut(pointer).unwrap()[field] = value;
    fs::write(&path, fields.to_string()).unwrap();
    let source = Source::Directory(folder.path().to_owned());
    let mut plan = ExportPlan::new(source, folder.path().join("bundle"));
    plan.variants = Variant::new(Target::Portable, Precision::Fp32)
        .into_iter()
        .collect();
    plan.dry_run = true;
    let summary = export(&plan, &mut Silent).map_err(|error| error.to_string())?;
    Ok(summary.warnings)
}

#[test]
fn contradictions_are_refused() {
    let (config, processor) = ("config.json", "processor_config.json");
    let cases = [
        (
            processor,
            "/image_processor",
            "image_mean",
            json!([0.5, 0.5, 0.5]),
            "`image_mean` of preprocessor_config.json",
        ),
        (
            config,
            "",
            "image_token_id",
            json!(1000),
            "`image_token_index` is 1023 and `image_token_id` is 1000",
        ),
        (
            config,
            "/text_config/rope_parameters",
            "full_attention",
            json!({}),
            "rope_parameters.full_attention` is {}",
        ),
        (
            "tokenizer.json",
            "/model",
            "dropout",
            json!(0.5),
            "tokenizer.json: `model.dropout` is 0.5",
        ),
        (
            "preprocessor_config.json",
            "",
            "image_processor_type",
            json!("ConvNextImageProcessor"),
            "preprocessor_config.json: `image_processor_type` is \"ConvNextImageProcessor\"",
        ),
        (
            config,
            "",
            "transformers_weights",
            json!("tuned.safetensors"),
            "config.json: `transformers_weights` is \"tuned.safetensors\"",
        ),
        (
            "tokenizer_config.json",
            "",
            "split_special_tokens",
            json!(true),
            "tokenizer_config.json: `split_special_tokens` is true",
        ),
    ];
    for (file, pointer, field, value, expected) in cases {
        let found = said(file, pointer, field, value);
        assert!(
            found.as_ref().is_err_and(|message| message.contains(expected)),
            "{found:?}: {expected}"
        );
    }
}

#[test]
fn what_a_bundle_does_not_carry_is_said() {
    let generation = "generation_config.json";
    let cases = [
        (
            generation,
            "repetition_penalty",
            json!(1.1),
            "`repetition_penalty` is 1.1",
        ),
        (
            generation,
            "eos_token_id",
            json!(1020),
            "answers end at `<|im_end|>` (1022) too",
        ),
        (
            "processor_config.json",
            "patch_size",
            json!(32),
            "`patch_size` is 32, expected 64",
        ),
        (
            "tokenizer.json",
            "truncation",
            json!({"direction": "Right", "max_length": 70, "strategy": "LongestFirst", "stride": 0}),
            "`truncation` has `max_length` 70",
        ),
    ];
    for (file, field, value, expected) in cases {
        let warnings = said(file, "", field, value).unwrap();
        assert!(
            warnings.iter().any(|warning| warning.contains(expected)),
            "{warnings:?}"
        );
    }
    assert_eq!(
        said(generation, "", "repetition_penalty", json!(1.0)),
        Ok(Vec::new())
    );
}
