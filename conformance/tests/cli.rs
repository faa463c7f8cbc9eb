//! What does `fvlm-conform` do? The real binary: help, every subcommand, each refusal, and what is on stdout.

#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]

use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;

#[derive(Debug)]
struct Run {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

/// Runs in `folder`.
fn run_in(folder: &Path, arguments: &[&str]) -> Run {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fvlm-conform"));
    let output = command.current_dir(folder).args(arguments).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    let run = Run {
        code: output.status.code(),
        stdout: text(output.stdout),
        stderr: text(output.stderr),
    };
    assert!(!run.stderr.contains("panicked"), "{}", run.stderr);
    assert!(
        !run.stdout.contains('\u{1b}') && !run.stderr.contains('\u{1b}'),
        "colours where there is no terminal"
    );
    run
}

fn run(arguments: &[&str]) -> Run {
    run_in(Path::new(env!("CARGO_MANIFEST_DIR")), arguments)
}

impl Run {
    #[track_caller]
    fn code(self, code: i32) -> Run {
        assert_eq!(self.code, Some(code), "{self:?}");
        self
    }

    /// Exit code 2, nothing on stdout, and all of `words` in what it says.
    #[track_caller]
    fn refused(self, words: &[&str]) {
        let run = self.code(2);
        assert_eq!(run.stdout, "");
        for word in words {
            assert!(run.stderr.contains(word), "no `{word}` in {}", run.stderr);
        }
    }
}

/// A synthetic checkpoint of the demo's size, made by the command.
fn checkpoint(folder: &Path, seed: u64) -> PathBuf {
    let name = format!("checkpoint-{seed}");
    let seed = seed.to_string();
    let written = run_in(
        folder,
        &[
            "synth", "--size", "demo", "--layout", "llava", "--seed", &seed, "-o", &name,
        ],
    )
    .code(0);
    assert_eq!(written.stdout, "");
    assert!(written.stderr.contains("parameters in"), "{}", written.stderr);
    folder.join(name)
}

fn golden() -> String {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("golden/synth-demo-llava-1.json")
        .to_str()
        .unwrap()
        .to_owned()
}

#[test]
fn help_begins_with_an_example() {
    for arguments in [
        &["--help"][..],
        &["run", "--help"],
        &["list", "--help"],
        &["bench", "--help"],
        &["quality", "--help"],
        &["sensitivity", "--help"],
        &["calibrate", "--help"],
        &["synth", "--help"],
    ] {
        let help = run(arguments).code(0);
        assert!(
            help.stdout.starts_with("Examples:\n  fvlm-conform "),
            "{}",
            help.stdout
        );
        assert_eq!(help.stderr, "");
    }
    assert!(run(&["--version"]).code(0).stdout.starts_with("fvlm-conform "));
    run(&[]).code(2);
    run(&["record"]).refused(&["unrecognized subcommand"]);
}

#[test]
fn manual_and_completions_come_from_the_flags() {
    for kind in [
        "man",
        "complete-bash",
        "complete-zsh",
        "complete-fish",
        "complete-powershell",
    ] {
        let ran = run(&["generate", kind]);
        assert_eq!(ran.code, Some(0), "{kind}: {}", ran.stderr);
        for word in ["list", "bench", "quality", "sensitivity", "calibrate", "synth"] {
            assert!(ran.stdout.contains(word), "`{word}` in {kind}");
        }
    }
    assert!(
        run(&["generate", "man"]).stdout.contains("shard"),
        "flags of subcommands in the manual"
    );
}

#[cfg(unix)]
#[test]
fn bash_completes_flags_of_subcommands() {
    let ran = run(&["generate", "complete-bash"]);
    let script = format!(
        "{}\nCOMP_WORDS=(fvlm-conform synth --si); COMP_CWORD=2; _fvlm__conform fvlm-conform --si synth; echo \"${{COMPREPLY[@]}}\"",
        ran.stdout
    );
    let output = Command::new("bash")
        .args(["--norc", "-c", &script])
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "--size");
}

#[test]
fn list_names_suites_and_claims() {
    let list = run(&["list"]).code(0);
    for line in [
        "ops (",
        "demo-eval (3, on request)",
        "  references/synth-demo-llava-1/scene\n",
    ] {
        assert!(list.stdout.contains(line), "no `{line}` in {}", list.stdout);
    }
    let table = run(&["list", "--markdown"]).code(0).stdout;
    assert!(
        table.starts_with("| target | precision | ONNX Runtime, CPU | tract | rten | "),
        "{table}"
    );
    assert!(
        table.contains("\n| `cpu` | q4 | recorded | recorded | – | – | – |\n"),
        "{table}"
    );
    let table = run(&["list", "--references"]).code(0).stdout;
    assert!(
        table.starts_with("| network | layout | recorded |\n|---|"),
        "{table}"
    );
}

#[test]
fn synth_writes_once() {
    let folder = tempfile::tempdir().unwrap();
    let directory = checkpoint(folder.path(), 1);
    let bytes = std::fs::read(directory.join("model.safetensors")).unwrap();
    let again = [
        "synth",
        "--size",
        "demo",
        "--layout",
        "llava",
        "--seed",
        "2",
        "-o",
        "checkpoint-1",
    ];
    run_in(folder.path(), &again).refused(&["`checkpoint-1` exists and is not empty", "hint:"]);
    assert_eq!(std::fs::read(directory.join("model.safetensors")).unwrap(), bytes);
    let quiet = [
        "synth",
        "--quiet",
        "--size",
        "demo",
        "--layout",
        "transformers",
        "--dtype",
        "bf16",
        "-o",
        "sharded",
        "--shard-bytes",
        "3000000",
    ];
    assert_eq!(run_in(folder.path(), &quiet).code(0).stderr, "");
    assert!(
        folder
            .path()
            .join("sharded/model.safetensors.index.json")
            .exists()
    );
    for (flag, value, words) in [
        ("--size", "3b", "[possible values: demo, 0.5b, 1.5b, 7b]"),
        (
            "--layout",
            "mlx",
            "[possible values: llava, transformers, transformers-train]",
        ),
        ("--tokenizer", "missing.json", "missing.json"),
        ("-o", ".", "`.` exists and is not empty"),
        ("-o", "sharded/config.json", "sharded/config.json"),
    ] {
        let mut arguments = vec!["synth", "--size", "demo", "--layout", "llava", "-o", "other"];
        match arguments.iter().position(|argument| *argument == flag) {
            Some(place) => arguments[place + 1] = value,
            None => arguments.extend([flag, value]),
        }
        run_in(folder.path(), &arguments).refused(&[words]);
    }
    let names: Vec<_> = std::fs::read_dir(folder.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(names.len(), 2, "{names:?}");
    let empty = tempfile::tempdir().unwrap();
    let nameless = ["synth", "--size", "demo", "--layout", "llava", "-o", "."];
    run_in(empty.path(), &nameless).refused(&["`.` is no name of a directory", "hint:"]);
}

/// The interpreter needs no engine, and sees where the first difference is.
#[test]
fn a_checkpoint_is_compared_with_a_reference() {
    let folder = tempfile::tempdir().unwrap();
    let arguments = |seed: u64| {
        let checkpoint = checkpoint(folder.path(), seed).to_str().unwrap().to_owned();
        [
            "run",
            "--provider",
            "interpreter",
            "--case",
            "tall",
            "--reference",
            &golden(),
            "--checkpoint",
            &checkpoint,
        ]
        .map(str::to_owned)
    };
    let run = |arguments: &[String], more: &[&str]| {
        let arguments: Vec<&str> = arguments
            .iter()
            .map(String::as_str)
            .chain(more.iter().copied())
            .collect();
        run_in(folder.path(), &arguments)
    };
    let right = arguments(1);
    let table = run(&right, &[]).code(0);
    assert!(
        table.stdout.starts_with("case ") && table.stdout.ends_with("\n1 ok\n"),
        "{}",
        table.stdout
    );
    assert!(
        table.stdout.contains("references/synth-demo-llava-1/tall  ok "),
        "{}",
        table.stdout
    );
    assert_eq!(run(&right, &["--quiet"]).code(0).stdout, "1 ok\n");

    let wrong = arguments(2);
    let table = run(&wrong, &[]).code(1);
    let first = table
        .stdout
        .split_once("differs\n")
        .unwrap()
        .1
        .lines()
        .next()
        .unwrap()
        .trim();
    assert!(first.starts_with("`vision_tower.stem`: relative L2 "), "{first}");
    assert!(
        first.contains("first at [0, ") && first.contains(" found ") && first.contains(" expected "),
        "{first}"
    );
    assert!(table.stdout.ends_with("\n0 ok, 1 differ\n"), "{}", table.stdout);

    let json: Value = serde_json::from_str(&run(&wrong, &["--json"]).code(1).stdout).unwrap();
    assert_eq!(json["fine"], false);
    assert_eq!(json["totals"]["mismatch"], 1);
    let result = &json["results"][0];
    assert_eq!(
        (&result["case"], &result["outcome"]),
        (&"references/synth-demo-llava-1/tall".into(), &"mismatch".into())
    );
    assert_eq!(result["subject"], "interpreter fp32");
    assert!(
        result["details"][0]
            .as_str()
            .unwrap()
            .starts_with("`vision_tower.stem`"),
        "{result}"
    );
}

#[test]
#[cfg(feature = "tract")]
fn a_bundle_is_compared_with_a_reference() {
    use conformance::setup::subject::Precision;
    use conformance::setup::workspace::export;
    let folder = tempfile::tempdir().unwrap();
    let bundle = |seed: u64| {
        let directory = folder.path().join(format!("bundle-{seed}"));
        export(&checkpoint(folder.path(), seed), &directory, &[Precision::Fp32]).unwrap();
        directory.to_str().unwrap().to_owned()
    };
    let (right, wrong) = (bundle(1), bundle(2));
    let arguments = |bundle: &str, more: &[&str]| {
        let mut arguments = vec!["run", "--provider", "tract", "--reference", "R", "--bundle", "B"];
        let golden = golden();
        (arguments[4], arguments[6]) = (&golden, bundle);
        arguments.extend(more);
        run_in(folder.path(), &arguments)
    };
    let fine = arguments(&right, &[]).code(0);
    for line in [
        "bundle/integrity ",
        "references/synth-demo-llava-1/batch ",
        "end_to_end/synth-demo-llava-1/answers ",
    ] {
        assert!(fine.stdout.contains(line), "no `{line}` in {}", fine.stdout);
    }
    assert!(
        fine.stderr.contains("left out: --checkpoint is not given"),
        "{}",
        fine.stderr
    );
    let differs = arguments(&wrong, &["--suite", "references", "--case", "scene"]).code(1);
    assert!(
        differs.stdout.contains("\n  `image_features`: relative L2 "),
        "{}",
        differs.stdout
    );
    let answers = arguments(&wrong, &["--suite", "end_to_end"]).code(1);
    assert!(answers.stdout.contains("greedy id 0 is "), "{}", answers.stdout);

    // What is asked for must be there.
    arguments(&right, &["--precision", "fp16"]).refused(&["no fp16 variant, found fp32", "hint:"]);
    arguments(&right, &["--suite", "cache"]).refused(&["`cache`", "bundle, references and end_to_end"]);
    arguments(&right, &["--suite", "references", "--suite", "cache"]).refused(&["`cache`"]);
    let without = run_in(folder.path(), &["run", "--provider", "tract", "--bundle", &right]);
    without.refused(&[
        "no compiled-in reference is of the weights of this bundle",
        "--reference",
    ]);
    let interpreter = run_in(
        folder.path(),
        &[
            "run",
            "--provider",
            "interpreter",
            "--bundle",
            &right,
            "--reference",
            &golden(),
        ],
    );
    interpreter.refused(&["the interpreter needs the checkpoint", "--checkpoint"]);

    // References that nothing could differ from, or that this bundle cannot be compared with.
    let text = std::fs::read_to_string(golden()).unwrap();
    let tensors = Path::new(&golden()).with_extension("safetensors");
    std::fs::copy(tensors, folder.path().join("edited.safetensors")).unwrap();
    let edited = |edit: &dyn Fn(&mut Value)| {
        let mut reference: Value = serde_json::from_str(&text).unwrap();
        reference["tensors"] = "edited.safetensors".into();
        edit(&mut reference);
        let path = folder.path().join("edited.json");
        std::fs::write(&path, reference.to_string()).unwrap();
        let run = [
            "run",
            "--provider",
            "tract",
            "--bundle",
            &right,
            "--reference",
            "edited.json",
        ];
        run_in(folder.path(), &run)
    };
    edited(&|reference| reference["cases"] = Value::Array(Vec::new())).refused(&["it has no cases"]);
    edited(&|reference| {
        let case = &mut reference["cases"][0];
        case["checks"] = Value::Array(Vec::new());
        for row in case["rows"].as_array_mut().unwrap() {
            row["greedy"] = Value::Array(Vec::new());
        }
    })
    .refused(&["no `checks` and no `greedy`"]);
    edited(&|reference| {
        for (_, limits) in reference["tolerances"].as_object_mut().unwrap() {
            for (_, limit) in limits.as_object_mut().unwrap() {
                *limit = serde_json::json!({});
            }
        }
    })
    .refused(&["nothing could differ"]);
    let long = edited(&|reference| {
        for case in reference["cases"].as_array_mut().unwrap() {
            case["rows"][0]["segments"] = serde_json::json!([{ "ids": vec![1; 1_000_000] }]);
        }
    })
    .code(2);
    assert!(
        long.stdout.contains("row 0 has 1000000 positions and ")
            && long.stdout.contains("the model's context"),
        "{}",
        long.stdout
    );

    // The checkpoint is the one that was exported.
    for (bundle, code) in [(&right, 0), (&wrong, 1)] {
        let checkpoint = folder.path().join("checkpoint-1");
        let more = ["--suite", "bundle", "--checkpoint", checkpoint.to_str().unwrap()];
        let compared = arguments(bundle, &more).code(code);
        let differs = compared.stdout.contains("`model.safetensors` has SHA-256 ");
        assert_eq!(differs, code == 1, "{}", compared.stdout);
        assert!(compared.stdout.contains("bundle/source "), "{}", compared.stdout);
    }

    // A byte that changed in the weights is a difference, not a crash.
    let data = folder.path().join("bundle-1/onnx/decoder_model_merged.onnx_data");
    let mut bytes = std::fs::read(&data).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x10;
    std::fs::write(&data, bytes).unwrap();
    let changed = arguments(&right, &["--suite", "bundle"]).code(1);
    assert!(
        changed
            .stdout
            .contains("`onnx/decoder_model_merged.onnx_data` has SHA-256"),
        "{}",
        changed.stdout
    );
}

/// Shapes only: times are whatever they are.
#[test]
#[cfg(feature = "tract")]
fn bench_measures_every_form() {
    use conformance::setup::subject::Precision;
    use conformance::setup::workspace::export;
    let folder = tempfile::tempdir().unwrap();
    let bundle = folder.path().join("bundle");
    export(
        &checkpoint(folder.path(), 1),
        &bundle,
        &[Precision::Fp32, Precision::Fp16],
    )
    .unwrap();
    let bench = |more: &[&str]| {
        let mut arguments = vec![
            "bench",
            "--model",
            "bundle",
            "--provider",
            "tract",
            "--warm-up",
            "0",
        ];
        arguments.extend(more);
        run_in(folder.path(), &arguments)
    };
    let measured = bench(&[
        "--repeat",
        "2",
        "--decode-tokens",
        "2",
        "--json",
        "--plot",
        "timeline.svg",
    ])
    .code(0);
    assert_eq!(measured.stderr, "");
    let json: Value = serde_json::from_str(&measured.stdout).unwrap();
    assert!(json["machine"]["cpu"].is_string() && json["machine"]["os"].is_string());
    assert!(json["machine"]["cores"].as_u64().unwrap() > 0);
    assert!(json["machine"]["features"].is_array());
    let results = json["results"].as_array().unwrap();
    let precisions: Vec<&str> = results
        .iter()
        .map(|result| result["precision"].as_str().unwrap())
        .collect();
    assert_eq!(precisions, ["fp32", "fp16"]);
    for result in results {
        assert_eq!(
            (&result["provider"], &result["target"]),
            (&"tract".into(), &"portable".into())
        );
        assert!(result["prompt_tokens"].as_u64().unwrap() > 1, "{result}");
        assert_eq!(
            result["peak_rss_bytes"].is_u64(),
            cfg!(target_os = "linux"),
            "{result}"
        );
        for step in [
            "load_s",
            "preprocess_s",
            "encode_s",
            "prefill_s",
            "ttft_s",
            "decode_s",
        ] {
            let number = |name: &str| result[step][name].as_f64().unwrap();
            let [median, min, max] = ["median", "min", "max"].map(number);
            assert!(0.0 < min && min <= median && median <= max, "{step}: {result}");
        }
        let parts = ["preprocess_s", "encode_s", "prefill_s"];
        let parts: f64 = parts
            .iter()
            .map(|step| result[step]["min"].as_f64().unwrap())
            .sum();
        assert!(parts <= result["ttft_s"]["min"].as_f64().unwrap(), "{result}");
    }
    let svg = std::fs::read_to_string(folder.path().join("timeline.svg")).unwrap();
    assert!(
        svg.starts_with("<svg ") && svg.contains("tract portable fp16"),
        "{svg}"
    );

    let once = ["--repeat", "1", "--decode-tokens", "1", "--precision", "fp32"];
    let table = bench(&once).code(0).stdout;
    assert!(
        table.contains("\nprovider  target    precision  kernels  load"),
        "{table}"
    );
    let markdown = bench(&[&once[..], &["--markdown"]].concat()).code(0).stdout;
    assert!(
        markdown.starts_with("| provider | target | precision |"),
        "{markdown}"
    );

    bench(&["--precision", "int8"]).refused(&[
        "no precision `int8` in the bundle, found portable fp32, portable fp16",
        "hint:",
    ]);
    bench(&["--target", "cpu"]).refused(&["no target `cpu` in the bundle, found portable fp32"]);
    bench(&["--image", "missing.png"]).refused(&["missing.png"]);
    bench(&["--plot", "nowhere/a.svg"]).refused(&["--plot is `nowhere/a.svg`", "no directory `nowhere`"]);
    bench(&["--repeat", "0", "--decode-tokens", "0"]).refused(&["--repeat is 0", "--decode-tokens is 0"]);
    bench(&["--prompt", " "]).refused(&["--prompt is empty"]);
    // What is only seen while measuring is told once, by the process that did not.
    bench(&["--repeat", "2", "--decode-tokens", "999999"]).refused(&[
        "left out: tract portable fp32: building the prompt: ",
        "999999 tokens, expected at most",
        "nothing could be measured",
    ]);
}

/// What halves lose is little, and not nothing; what another tool wrote is compared the same way.
#[test]
#[cfg(feature = "tract")]
fn quality_is_measured_against_fp32() {
    use conformance::setup::subject::Precision;
    use conformance::setup::workspace::export;
    let folder = tempfile::tempdir().unwrap();
    let bundle = folder.path().join("bundle");
    export(
        &checkpoint(folder.path(), 1),
        &bundle,
        &[Precision::Fp32, Precision::Fp16],
    )
    .unwrap();
    let quality = |more: &[&str]| {
        let mut arguments = vec!["quality", "--model", "bundle", "--provider", "tract"];
        if !more.contains(&"--positions") {
            arguments.extend(["--positions", "12"]);
        }
        arguments.extend(more);
        run_in(folder.path(), &arguments)
    };
    let json = |run: Run| -> Value { serde_json::from_str(&run.code(0).stdout).unwrap() };
    let dump = ["--precision", "fp16", "--dump", "half.safetensors"];
    let dumped = quality(&[&dump[..], &["--json", "--compare", "half.safetensors"]].concat());
    // The file is not there before it is written.
    dumped.refused(&["cannot read `half.safetensors`"]);
    let dumped = quality(&dump).code(0);
    assert!(
        dumped
            .stderr
            .contains("tract portable fp16 is in half.safetensors"),
        "{}",
        dumped.stderr
    );

    let report = json(quality(&["--json", "--compare", "half.safetensors"]));
    assert_eq!(
        (&report["reference"], &report["positions"]),
        (&"tract portable fp32".into(), &12.into())
    );
    let [half, file] = report["results"].as_array().unwrap().as_slice() else {
        panic!("{report}");
    };
    assert_eq!(
        (&half["provider"], &half["precision"]),
        (&"tract".into(), &"fp16".into())
    );
    let small = |value: &Value| (1e-6..2e-2).contains(&value.as_f64().unwrap());
    assert!(small(&half["features_relative_l2"]), "{half}");
    for regime in ["end_to_end", "decoder_alone"] {
        assert!(
            small(&half[regime]["relative_l2"]) && small(&half[regime]["relative_l2_median"]),
            "{half}"
        );
        let number = |name: &str| half[regime][name].as_f64().unwrap();
        assert!(
            0.0 < number("kl_mean") && number("kl_mean") <= number("kl_max"),
            "{half}"
        );
        assert!((0.5..=1.0).contains(&number("top1")), "{half}");
    }
    // The same numbers by another way.
    assert_eq!((&file["name"], &file["provider"]), (&half["name"], &Value::Null));
    for (name, expected) in half["end_to_end"].as_object().unwrap() {
        let (found, expected) = (
            file["end_to_end"][name].as_f64().unwrap(),
            expected.as_f64().unwrap(),
        );
        assert!((found - expected).abs() <= 1e-3 * expected, "{name}: {report}");
    }
    // Turned round: against the file, its own form does not differ and fp32 does.
    let turned = json(quality(&["--json", "--reference", "half.safetensors"]));
    let errors: Vec<f64> = turned["results"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| row["end_to_end"]["relative_l2"].as_f64().unwrap())
        .collect();
    assert!(
        errors.len() == 2 && errors[0] > 1e-6 && errors[1] < errors[0] / 10.0,
        "{errors:?}"
    );

    let text = quality(&["--text-only", "--markdown"]).code(0).stdout;
    assert!(
        text.starts_with("|  | logits | median | KL mean | KL max | top-1 |\n|---|"),
        "{text}"
    );
    assert!(
        text.contains("| tract portable fp16 | ") && text.contains("(no image)"),
        "{text}"
    );
    let table = quality(&["--quiet"]).code(0);
    assert!(
        table.stdout.contains("image features") && table.stderr.is_empty(),
        "{table:?}"
    );

    // Other ids, another shape, another kind of prompt.
    quality(&["--compare", "half.safetensors", "--positions", "11"])
        .refused(&["comparing with `tract portable fp16`: `token_ids` has 12 ids, expected 11"]);
    quality(&["--reference", "half.safetensors", "--prompt", "Another one"]).refused(&["`prompt_ids` has "]);
    quality(&["--reference", "half.safetensors", "--text-only"]).refused(&["expected a prompt of text only"]);
    let scene = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/demo/scenes/scene_1.png");
    let scene = scene.to_str().unwrap();
    quality(&["--reference", "half.safetensors", "--image", scene])
        .refused(&["`pixel_values` are of another image"]);
    // What is read is not written to.
    let whole = std::fs::read(folder.path().join("half.safetensors")).unwrap();
    let data = "bundle/onnx/decoder_model_merged.onnx_data";
    for file in ["half.safetensors", data] {
        let reference = [
            "--precision",
            "fp16",
            "--reference",
            "half.safetensors",
            "--dump",
            file,
        ];
        quality(&reference).refused(&["--dump is", "which is read as"]);
    }
    assert_eq!(
        std::fs::read(folder.path().join("half.safetensors")).unwrap(),
        whole
    );
    quality(&["--reference", "half.safetensors", "--answers", "a.json"])
        .refused(&["--answers is about --agreement"]);
    std::fs::write(folder.path().join("bad.safetensors"), [255; 12]).unwrap();
    quality(&["--compare", "bad.safetensors"]).refused(&["bad.safetensors", "does not fit"]);
    quality(&["--precision", "int8"]).refused(&["no precision `int8` in the bundle, found portable fp32"]);
    quality(&["--precision", "fp32"]).refused(&["there is nothing to compare", "hint:"]);
    quality(&["--dump", "all.safetensors"]).refused(&["--dump writes one form, found 2", "--precision"]);
    quality(&["--demo-eval"]).refused(&["expected the demo model"]);
    quality(&["--positions", "0", "--threads", "0"]).refused(&["--positions is 0", "--threads is 0"]);
    quality(&["--positions", "999999"]).refused(&["999999 tokens, expected at most"]);
}

#[test]
fn what_makes_no_sense_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let bad = folder.path().join("bad.json");
    std::fs::write(&bad, "{}").unwrap();
    std::fs::write(folder.path().join("bad.safetensors"), [255; 12]).unwrap();
    let bad = bad.to_str().unwrap();
    let text = std::fs::read_to_string(golden()).unwrap();
    for (name, edited) in [
        ("newer.json", text.replacen("\"schema\": 1", "\"schema\": 2", 1)),
        (
            "tensors.json",
            text.replacen("synth-demo-llava-1.safetensors", "tensors.safetensors", 1),
        ),
    ] {
        std::fs::write(folder.path().join(name), edited).unwrap();
    }
    std::fs::write(folder.path().join("tensors.safetensors"), [255; 12]).unwrap();
    std::fs::write(folder.path().join("in.png"), "a picture").unwrap();
    std::fs::write(folder.path().join("newer.safetensors"), [255; 12]).unwrap();
    let cases: &[(&[&str], &[&str])] = &[
        (
            &["run", "--suite", "opps"],
            &["no suite is named `opps`", "ops, networks"],
        ),
        (
            &["run", "--case", "no/such/case"],
            &["no case matches `no/such/case`", "hint:"],
        ),
        (
            &["run", "--suite", "ops", "--case", "ops/*/no"],
            &["no case matches"],
        ),
        (
            &["run", "--suite", "ops", "--provider", "interpreter"],
            &["none of these cases", "hint:"],
        ),
        (
            &["run", "--provider", "interpreter", "--precision", "fp16"],
            &["nothing to put to the test", "hint:"],
        ),
        (
            &["calibrate", "--checkpoint", "demo", "in.png", "-o", "in.png"],
            &["--output is `in.png`, which is read as `in.png`"],
        ),
        (&["bench"], &["fastvlm-bundle is not a bundle", "hint: --model"]),
        (&["quality"], &["fastvlm-bundle is not a bundle", "hint: --model"]),
        (
            &["run", "--provider", "cuda"],
            &["[possible values: interpreter, cpu, tract, rten]"],
        ),
        (
            &["run", "--bundle", "missing"],
            &["missing is not a bundle", "hint:"],
        ),
        (
            &["run", "--reference", "missing.json"],
            &["missing.json", "hint:"],
        ),
        (&["run", "--reference", bad], &["bad.json", "schema"]),
        (&["run", "--reference", "newer.json"], &["schema 2, expected 1"]),
        (
            &["run", "--reference", "tensors.json"],
            &["tensors.safetensors", "does not fit"],
        ),
        (
            &["run", "--checkpoint", "missing"],
            &["no checkpoint directory `missing`"],
        ),
        (
            &["run", "--checkpoint", "."],
            &["--checkpoint is given alone", "--reference"],
        ),
        (
            &[
                "run",
                "--reference",
                &golden(),
                "--checkpoint",
                ".",
                "--provider",
                "interpreter",
            ],
            &["config.json"],
        ),
    ];
    for (arguments, words) in cases {
        let found = run_in(folder.path(), arguments).code(2);
        for word in *words {
            let text = format!("{}{}", found.stdout, found.stderr);
            assert!(text.contains(word), "{arguments:?}: no `{word}` in {text}");
        }
    }
}

#[test]
#[cfg(feature = "tract")]
fn forms_of_every_target_are_put_to_the_test() {
    let arguments = |target, precision| {
        let mut arguments = vec![
            "run",
            "--suite",
            "end_to_end",
            "--case",
            "end_to_end/demo/answers",
        ];
        arguments.extend([
            "--provider",
            "tract",
            "--target",
            target,
            "--precision",
            precision,
        ]);
        arguments
    };
    let q4 = run(&arguments("cpu", "q4")).code(0).stdout;
    assert!(q4.starts_with("case "), "{q4}");
    assert!(q4.contains("\nend_to_end/demo/answers, target cpu  ok\n"), "{q4}");
    let json = run(&[&arguments("cpu", "q4")[..], &["--json"]].concat())
        .code(0)
        .stdout;
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["results"][0]["subject"], "tract cpu q4");
    // There is no such form, and what is wrong is said.
    run(&arguments("portable", "q4")).refused(&["nothing to put to the test", "hint:"]);
    run(&arguments("gpu", "q4")).refused(&["[possible values: portable, cpu, coreml]"]);
}

#[test]
#[cfg(feature = "tract")]
fn every_instruction_set_answers_as_recorded() {
    let answers = |isa: &str| {
        let output = Command::new(env!("CARGO_BIN_EXE_fvlm-conform"))
            .args([
                "run",
                "--suite",
                "end_to_end",
                "--case",
                "end_to_end/demo/answers",
            ])
            .args(["--provider", "tract", "--target", "cpu", "--precision", "q4"])
            .env("FVLM_ISA", isa)
            .output()
            .unwrap();
        let said = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8(said).unwrap())
    };
    let (code, said) = answers("avx9");
    assert_ne!(code, Some(0), "{said}");
    let (_, sets) = said.split_once("`avx9` is none of this processor's: ").unwrap();
    let sets: Vec<&str> = sets.lines().next().unwrap().split(", ").collect();
    assert_eq!(sets[0], "portable", "{said}");
    for isa in sets {
        let (code, said) = answers(isa);
        assert_eq!(code, Some(0), "{isa}: {said}");
        assert!(
            said.contains("\nend_to_end/demo/answers, target cpu  ok\n"),
            "{isa}: {said}"
        );
    }
}

#[test]
fn an_engine_that_is_required_is_not_left_out() {
    let run = |required: &str, more: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_fvlm-conform"));
        command
            .env("FVLM_REQUIRE", required)
            .env("ORT_DYLIB_PATH", "missing.so");
        command
            .args(["run", "--suite", "ops", "--case", "ops/add/*"])
            .args(more);
        let output = command.output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    for (required, code, words) in [
        ("", 0, "left out: "),
        ("cpu", 2, "FVLM_REQUIRE names `cpu`, which does not work here: "),
        (
            "cuda",
            2,
            "FVLM_REQUIRE names `cuda`, expected some of cpu,tract,rten",
        ),
    ] {
        let (found, said) = run(required, &[]);
        assert_eq!(found, Some(code), "{required}: {said}");
        assert!(said.contains(words), "{required}: {said}");
    }
    // What was not asked for is not missing.
    let (found, said) = run("cpu", &["--provider", "rten"]);
    assert_eq!(found, Some(0), "{said}");
}

#[cfg(unix)]
const SCENES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/demo/scenes");

#[test]
#[cfg(unix)]
fn ctrl_c_leaves_nothing_behind() {
    use std::time::{Duration, Instant};
    let folder = tempfile::tempdir().unwrap();
    let begin = |arguments: &[&str]| {
        // With what Ctrl-C does by default, also where these tests were started without.
        let mut command = programs::testing::hearing(&Command::new(env!("CARGO_BIN_EXE_fvlm-conform")));
        command
            .current_dir(folder.path())
            .env("TMPDIR", folder.path())
            .args(arguments);
        command
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::piped());
        command.spawn().unwrap()
    };
    let names = || -> Vec<_> {
        std::fs::read_dir(folder.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect()
    };
    for arguments in [
        &["synth", "--size", "1.5b", "--layout", "llava", "-o", "large"][..],
        &["run", "--suite", "references", "--provider", "interpreter"],
        #[cfg(feature = "tract")]
        &["calibrate", "--provider", "tract", SCENES, "-o", "/dev/null"],
        #[cfg(feature = "tract")]
        &["sensitivity", "--provider", "tract"],
    ] {
        let mut child = begin(arguments);
        let start = Instant::now();
        while names().is_empty() {
            assert!(
                child.try_wait().unwrap().is_none(),
                "{arguments:?} ended before it was interrupted"
            );
            assert!(
                start.elapsed() < Duration::from_secs(60),
                "{arguments:?} writes nothing"
            );
            std::thread::sleep(Duration::from_millis(5));
        }
        let killed = Command::new("kill")
            .args(["-INT", &child.id().to_string()])
            .status()
            .unwrap();
        assert!(killed.success());
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(130), "{arguments:?}: {said}");
        assert!(names().is_empty(), "{arguments:?} left {:?}", names());
    }
}
