//! What does `fvlm-run` do? The real binary over a bundle whose answers can be told in advance: the letter of the
//! image's strongest colour and a full stop (`tests/data/make_bundle.py`).

#![cfg(feature = "tract")]
#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]

use serde_json::Value;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

#[path = "cli/captions.rs"]
mod captions;
#[path = "cli/structured.rs"]
mod structured;

/// A folder with a red, a green and a blue image and a copy of the bundle.
struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Folder {
        let folder = Folder(tempfile::tempdir().unwrap());
        for (name, color) in [
            ("red", [255, 0, 0]),
            ("green", [0, 255, 0]),
            ("blue", [0, 0, 255]),
        ] {
            let path = folder.path(&format!("{name}.png"));
            image::RgbImage::from_pixel(8, 8, image::Rgb(color))
                .save(path)
                .unwrap();
        }
        let bundle = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/bundle");
        copy(&bundle, &folder.path("fastvlm-bundle"));
        folder
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Runs with `--provider tract` unless the arguments name another.
    fn run(&self, arguments: &[&str]) -> Run {
        self.run_with(arguments, b"")
    }

    fn run_with(&self, arguments: &[&str], stdin: &[u8]) -> Run {
        self.run_in(arguments, &[], stdin)
    }

    /// With these environment variables.
    fn run_in(&self, arguments: &[&str], environment: &[(&str, &str)], stdin: &[u8]) -> Run {
        let mut command = Command::new(env!("CARGO_BIN_EXE_fvlm-run"));
        command
            .current_dir(self.0.path())
            .args(arguments)
            .env_remove("ORT_DYLIB_PATH")
            .envs(environment.iter().copied());
        if !arguments
            .iter()
            .any(|argument| argument.starts_with("--provider"))
        {
            command.args(["--provider", "tract"]);
        }
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        // The program may end before it has read everything.
        let _ = child.stdin.take().unwrap().write_all(stdin);
        Run::new(child.wait_with_output().unwrap())
    }

    fn edit(&self, name: &str, edit: impl FnOnce(String) -> String) {
        let path = self.path("fastvlm-bundle").join(name);
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, edit(text)).unwrap();
    }
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

#[derive(Debug)]
struct Run {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

impl Run {
    fn new(output: Output) -> Run {
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        let run = Run {
            code: output.status.code(),
            stdout: text(output.stdout),
            stderr: text(output.stderr),
        };
        assert!(!run.stderr.contains("panicked"), "{}", run.stderr);
        run
    }

    #[track_caller]
    fn success(self, stdout: &str) -> Run {
        assert_eq!(
            (self.code, self.stdout.as_str()),
            (Some(0), stdout),
            "{}",
            self.stderr
        );
        self
    }

    /// Exit code 2, and all of `words` in what it says.
    #[track_caller]
    fn failure(self, words: &[&str]) -> Run {
        assert_eq!(self.code, Some(2), "{self:?}");
        for word in words {
            assert!(self.stderr.contains(word), "no `{word}` in {}", self.stderr);
        }
        self
    }

    fn records(&self) -> Vec<Value> {
        self.stdout
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }
}

#[test]
fn describes_images() {
    let folder = Folder::new();
    let run = folder.run(&["red.png"]).success("R.\n");
    assert_eq!(run.stderr, "");
    folder
        .run(&["red.png", "blue.png"])
        .success("==> red.png <==\nR.\n\n==> blue.png <==\nB.\n");
    folder
        .run(&["--together", "red.png", "blue.png", "blue.png"])
        .success("B.\n");
    folder.run(&["--prompt", "hi?"]).success("?.\n");
    let green = std::fs::read(folder.path("green.png")).unwrap();
    folder.run_with(&["-"], &green).success("G.\n");
    folder.run(&["--max-tokens", "1", "red.png"]).success("R\n");
    folder.run(&["--stop", ".", "red.png"]).success("R\n");
    folder
        .run(&["--threads", "1", "--system", "?", "red.png"])
        .success("R.\n");
}

#[test]
fn an_instruction_set_that_is_not_there_is_refused() {
    let folder = Folder::new();
    for unknown in ["avx9", "AVX2", ""] {
        folder
            .run_in(&["red.png"], &[("FVLM_ISA", unknown)], b"")
            .failure(&[
                &format!(
                    "error: FVLM_ISA: instruction set `{unknown}` is none of this processor's: portable"
                ),
                "hint: without FVLM_ISA",
            ]);
    }
    // Graphs of target `portable` are run by the engine's own kernels, whatever the set.
    let run = folder.run_in(&["--stats", "red.png"], &[("FVLM_ISA", "portable")], b"");
    let line = "kernels     those of tract, for which FVLM_ISA changes nothing\n";
    let run = run.success("R.\n");
    assert!(run.stderr.contains(line), "{run:?}");
}

#[cfg(target_os = "linux")]
#[test]
fn a_lost_message_loses_no_answer() {
    let folder = Folder::new();
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_fvlm-run"))
        .current_dir(folder.path(""))
        .args(["--provider", "tract", "--stats", "nowhere.png", "red.png"])
        .stderr(full)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    let answers = String::from_utf8_lossy(&output.stdout);
    assert!(answers.contains("red.png"), "{answers}");
}

#[test]
fn talks_on_stderr_only() {
    let folder = Folder::new();
    let run = folder.run(&["--stats", "red.png"]).success("R.\n");
    for word in [
        "asked for tract",
        "preprocess",
        "encode",
        "prefill",
        "first token",
        "peak memory",
        "2 tokens",
        "open bundle",
        "load encoder",
        "load decoder",
        "load tokenizer",
        "decode image",
        "|#",
    ] {
        assert!(run.stderr.contains(word), "no `{word}` in {}", run.stderr);
    }
    let help = folder.run(&["--help"]);
    assert_eq!((help.code, help.stderr.as_str()), (Some(0), ""));
    assert!(help.stdout.starts_with("Examples:"), "{}", help.stdout);
}

#[test]
fn one_object_for_each_answer() {
    let folder = Folder::new();
    let run = folder
        .run(&["--json", "red.png", "missing.png", "green.png"])
        .failure(&["missing.png"]);
    let records = run.records();
    assert_eq!(records.len(), 3);
    assert_eq!(records[0]["images"][0], "red.png");
    assert_eq!(records[0]["prompt"], "Describe the image.");
    assert_eq!(records[0]["text"], "R.");
    assert_eq!(records[0]["tokens"], serde_json::json!([3, 6]));
    assert_eq!(records[0]["finish"], "stop");
    assert_eq!(
        records[0]["provider"],
        serde_json::json!({"asked": "tract", "used": "tract"})
    );
    assert_eq!(records[0]["precision"], "fp32");
    assert_eq!(records[0]["target"], "portable");
    assert_eq!(records[0]["kernels"], Value::Null);
    assert_eq!(records[0]["stats"]["images_encoded"], 1);
    assert!(records[1]["error"].as_str().unwrap().contains("missing.png"));
    assert_eq!(records[2]["text"], "G.");
    let run = folder.run(&["--json", "--max-tokens", "1", "red.png"]);
    assert_eq!(run.records()[0]["finish"], "max_tokens");
}

#[test]
fn a_timeline_of_each_answer() {
    let folder = Folder::new();
    let records = folder.run(&["--json", "red.png", "green.png"]).records();
    let steps = |record: &Value| -> Vec<String> {
        let steps = record["timeline"].as_array().unwrap();
        let name = |step: &Value| step["step"].as_str().unwrap().to_owned();
        for step in steps {
            let seconds = |name: &str| step[name].as_f64().unwrap();
            assert!(
                0.0 <= seconds("start_s") && seconds("start_s") <= seconds("end_s"),
                "{step}"
            );
            assert!(!step["thread"].as_str().unwrap().is_empty());
        }
        steps.iter().map(name).collect()
    };
    let first = steps(&records[0]);
    for step in [
        "open bundle",
        "load library",
        "load encoder",
        "load decoder",
        "load embeddings",
        "load tokenizer",
        "decode image",
        "preprocess",
        "encode",
        "prefill",
        "first token",
        "decode 1 tokens",
    ] {
        assert_eq!(
            first.iter().filter(|found| *found == step).count(),
            1,
            "{step}: {first:?}"
        );
    }
    let second = [
        "decode image",
        "preprocess",
        "encode",
        "prefill",
        "first token",
        "decode 1 tokens",
    ];
    assert_eq!(steps(&records[1]), second);
    assert_eq!(records[0]["peak_rss_bytes"].is_u64(), cfg!(target_os = "linux"));
}

#[test]
fn targets_are_asked_for_by_name() {
    let folder = Folder::new();
    folder.run(&["--target", "portable", "red.png"]).success("R.\n");
    folder
        .run(&["--target", "cpu", "red.png"])
        .failure(&["target `cpu`", "portable `fp32`", "--target"]);
}

#[test]
fn image_sizes_are_those_of_the_bundle() {
    let folder = Folder::new();
    let asked = |arguments: &[&str]| {
        let run = folder.run(&[&["--json", "red.png"], arguments].concat());
        let record = run.records().remove(0);
        let positions = record["stats"]["prompt_positions"].as_u64().unwrap();
        (record["text"].clone(), record["image_size"].clone(), positions)
    };
    let (text, size, default) = asked(&[]);
    assert_eq!(text, "R.");
    assert_eq!(size, serde_json::json!({"height": 4, "width": 4, "tokens": 2}));
    assert_eq!(asked(&["--image-size", "4"]), (text.clone(), size, default));
    let large = serde_json::json!({"height": 8, "width": 8, "tokens": 5});
    // Three positions more for the same image.
    assert_eq!(asked(&["--image-size", "8"]), (text, large, default + 3));
    let run = folder.run(&["--stats", "--image-size", "8", "blue.png"]);
    assert!(
        run.stderr.contains("image size  8 x 8, 5 positions"),
        "{}",
        run.stderr
    );
    run.success("B.\n");
    folder.run(&["--image-size", "16", "red.png"]).failure(&[
        "images of 16 x 16",
        "it has 4 x 4, 8 x 8",
        "--image-size",
    ]);
}

#[test]
fn a_chat_reuses_what_it_knows() {
    let folder = Folder::new();
    let chat = "what?\n\nand now?\n/image blue.png\n/image blue.png\nthis?\n/reset\nagain?\n/quit\nnever\n";
    let run = folder.run_with(&["--json", "--interactive", "red.png"], chat.as_bytes());
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    let records = run.records();
    let texts: Vec<&str> = records
        .iter()
        .map(|record| record["text"].as_str().unwrap())
        .collect();
    assert_eq!(texts, ["R.", "R.", "B.", "R."]);
    let stat = |turn: usize, name: &str| records[turn]["stats"][name].as_u64().unwrap();
    let encoded: Vec<u64> = (0..4).map(|turn| stat(turn, "images_encoded")).collect();
    assert_eq!(encoded, [1, 0, 1, 0]);
    // All of the first prompt, and the two tokens of the answer.
    assert_eq!(stat(1, "reused_positions"), stat(0, "prompt_positions") + 2);
    assert!(stat(3, "reused_positions") > 2);

    let run = folder.run_with(
        &["-i", "-p", "first?", "red.png"],
        b"/nonsense\n/image missing.png\nnext?",
    );
    run.failure(&["`/nonsense` is not a command", "missing.png"])
        .stdout
        .eq("R.\nR.\n")
        .then_some(())
        .unwrap();
}

#[test]
fn commands_that_make_no_sense() {
    let folder = Folder::new();
    folder.run(&[]).failure(&["no image and no question", "hint:"]);
    folder
        .run(&["--max-tokens", "0", "--threads", "0", "red.png"])
        .failure(&["--max-tokens is 0", "--threads is 0"]);
    folder
        .run(&["--temperature", "NaN", "red.png"])
        .failure(&["temperature"]);
    folder
        .run(&["--temperature", "-1", "red.png"])
        .failure(&["temperature is -1"]);
    folder
        .run(&["--frobnicate", "red.png"])
        .failure(&["--frobnicate"]);
    folder
        .run(&["--provider", "cuda", "red.png"])
        .failure(&["cuda", "coreml"]);
    folder
        .run(&["--precision", "q4", "red.png"])
        .failure(&["`q4`", "`fp32`", "hint:"]);
    folder
        .run(&["--model", "elsewhere", "red.png"])
        .failure(&["elsewhere", "not a bundle", "fvlm-export"]);
    folder
        .run(&["--prompt", &"?".repeat(100)])
        .failure(&["103 positions", "64"]);
}

#[test]
fn images_that_are_none() {
    let folder = Folder::new();
    for (name, bytes) in [
        ("empty.png", &b""[..]),
        ("text.png", b"hello"),
        ("cut.png", b"\x89PNG\r\n\x1a\n\0\0"),
    ] {
        std::fs::write(folder.path(name), bytes).unwrap();
        folder.run(&[name]).failure(&[name]);
        let run = folder.run(&[name, "red.png"]).failure(&[name]);
        assert!(run.stdout.ends_with("==> red.png <==\nR.\n"), "{}", run.stdout);
    }
    let address = "https://example.com/photo.jpg";
    folder
        .run(&[address])
        .failure(&[address, "is an address, expected a file"]);
    image::RgbImage::new(1200, 1000)
        .save(folder.path("large.png"))
        .unwrap();
    folder
        .run(&["--max-pixels", "1", "large.png"])
        .failure(&["large.png", "--max-pixels"]);
}

#[test]
fn bundles_that_are_broken() {
    type Break = fn(&Folder);
    let cases: [(&str, Break, &[&str]); 15] = [
        (
            "a graph is missing",
            |f| remove(f, "onnx/embed_tokens.onnx"),
            &["embed_tokens.onnx"],
        ),
        (
            "a graph is cut",
            |f| cut(f, "onnx/decoder_model_merged.onnx"),
            &["decoder_model_merged.onnx"],
        ),
        (
            "a graph is noise",
            |f| noise(f, "onnx/vision_encoder.onnx"),
            &["vision_encoder.onnx", "has SHA-256", "fvlm-export --verify"],
        ),
        (
            "a graph is noise, and the contract vouches for it",
            |f| {
                noise(f, "onnx/vision_encoder.onnx");
                vouch(f, "onnx/vision_encoder.onnx");
            },
            &["vision_encoder.onnx", "is no ONNX graph"],
        ),
        (
            "a graph is cut, and the contract vouches for it",
            |f| {
                cut(f, "onnx/decoder_model_merged.onnx");
                vouch(f, "onnx/decoder_model_merged.onnx");
            },
            &["decoder_model_merged.onnx", "is no ONNX graph"],
        ),
        (
            "the tokenizer is noise",
            |f| noise(f, "tokenizer.json"),
            &["tokenizer.json", "has SHA-256", "fvlm-export --verify"],
        ),
        (
            "the tokenizer is noise, and the contract vouches for it",
            |f| {
                noise(f, "tokenizer.json");
                vouch(f, "tokenizer.json");
            },
            &["tokenizer.json", "cannot use tokenizer"],
        ),
        (
            "another template",
            |f| f.edit("chat_template.jinja", |text| text.replacen('m', "n", 1)),
            &["chat_template.jinja", "has SHA-256", "fvlm-export --verify"],
        ),
        (
            "another name in a graph",
            |f| swap(f, "onnx/embed_tokens.onnx", b"inputs_embeds", b"inputs_emberz"),
            &["embed_tokens.onnx", "has SHA-256"],
        ),
        (
            "a bit of a graph",
            |f| flip(f, "onnx/decoder_model_merged.onnx", 40),
            &["decoder_model_merged.onnx", "has SHA-256"],
        ),
        (
            "a form with another word",
            |f| f.edit("bundle.json", |text| text.replace("fp32", "fp33")),
            &["fp33"],
        ),
        (
            "another schema",
            |f| f.edit("bundle.json", |text| text.replacen("1,", "7,", 1)),
            &["schema 7", "hint:"],
        ),
        (
            "no JSON",
            |f| f.edit("bundle.json", |text| text[..99].to_owned()),
            &["bundle.json"],
        ),
        (
            "a contract that lies about the model",
            |f| {
                f.edit("bundle.json", |text| {
                    text.replace("present.0.key", "present.0.kex")
                })
            },
            &["present.0.ke"],
        ),
        (
            "a graph that does not keep the contract",
            |f| {
                swap(f, "onnx/embed_tokens.onnx", b"inputs_embeds", b"inputs_emberz");
                vouch(f, "onnx/embed_tokens.onnx");
            },
            &["embed_tokens.onnx", "`inputs_embeds` is missing"],
        ),
    ];
    for (name, break_it, words) in cases {
        let folder = Folder::new();
        break_it(&folder);
        let run = folder.run(&["red.png"]);
        assert_eq!(
            (run.code, run.stdout.as_str()),
            (Some(2), ""),
            "{name}: {}",
            run.stderr
        );
        for word in words {
            assert!(run.stderr.contains(word), "{name}: no `{word}` in {}", run.stderr);
        }
        // Whatever opens it in the background, it is said once.
        let run = folder.run(&["red.png", "green.png"]);
        assert_eq!((run.code, run.stdout.as_str()), (Some(2), ""), "{name}");
        assert_eq!(run.stderr.matches("error:").count(), 1, "{name}: {}", run.stderr);
        let run = folder.run_with(&["-i", "red.png"], b"one?\ntwo?\n");
        assert_eq!((run.code, run.stdout.as_str()), (Some(2), ""), "{name}");
        assert_eq!(run.stderr.matches("error:").count(), 1, "{name}: {}", run.stderr);
    }
}

fn remove(folder: &Folder, name: &str) {
    std::fs::remove_file(folder.path("fastvlm-bundle").join(name)).unwrap();
}

fn cut(folder: &Folder, name: &str) {
    let path = folder.path("fastvlm-bundle").join(name);
    let bytes = std::fs::read(&path).unwrap();
    std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
}

/// Writes a file's length and hash as they are now into the contract, so that somebody has to read the contents.
fn vouch(folder: &Folder, name: &str) {
    let directory = folder.path("fastvlm-bundle");
    let path = directory.join("bundle.json");
    let text = std::fs::read_to_string(&path).unwrap();
    let mut contract: models::bundle::Bundle = serde_json::from_str(&text).unwrap();
    let file = contract.files.iter_mut().find(|file| file.path == name).unwrap();
    *file = models::bundle::FileEntry::of(&directory, name).unwrap();
    std::fs::write(&path, contract.to_json()).unwrap();
}

/// The length stays right, so that only the contents can tell.
fn noise(folder: &Folder, name: &str) {
    let path = folder.path("fastvlm-bundle").join(name);
    let length = std::fs::read(&path).unwrap().len();
    std::fs::write(&path, vec![0xA5; length]).unwrap();
}

/// Another bit at a place that is a part of the whole, in percent.
fn flip(folder: &Folder, name: &str, percent: usize) {
    let path = folder.path("fastvlm-bundle").join(name);
    let mut bytes = std::fs::read(&path).unwrap();
    let place = bytes.len() * percent / 100;
    bytes[place] ^= 4;
    std::fs::write(&path, bytes).unwrap();
}

fn swap(folder: &Folder, name: &str, from: &[u8], to: &[u8]) {
    let path = folder.path("fastvlm-bundle").join(name);
    let mut bytes = std::fs::read(&path).unwrap();
    for at in 0..bytes.len().saturating_sub(from.len()) {
        if bytes[at..].starts_with(from) {
            bytes[at..at + to.len()].copy_from_slice(to);
        }
    }
    std::fs::write(&path, bytes).unwrap();
}

#[test]
#[cfg(not(target_os = "macos"))]
fn a_provider_that_cannot_run_here_is_replaced_with_one_line() {
    let folder = Folder::new();
    let run = folder.run(&["--provider", "coreml", "red.png"]).success("R.\n");
    assert_eq!(run.stderr.lines().count(), 1, "{}", run.stderr);
    assert!(
        run.stderr.contains("`coreml`") && run.stderr.contains("using `"),
        "{}",
        run.stderr
    );
    let run = folder
        .run(&["--provider", "coreml", "--no-fallback", "red.png"])
        .failure(&["`coreml`"]);
    assert_eq!(run.stdout, "");
    let run = folder.run(&["--provider", "coreml", "--json", "--quiet", "red.png"]);
    assert_eq!(run.stderr, "");
    assert_eq!(run.records()[0]["provider"]["asked"], "coreml");
    assert_ne!(run.records()[0]["provider"]["used"], "coreml");
}

#[test]
#[cfg(feature = "ort")]
fn a_library_that_is_none_is_a_reason_not_a_crash() {
    let folder = Folder::new();
    std::fs::write(folder.path("libonnxruntime.so"), "no library").unwrap();
    for provider in ["auto", "cpu"] {
        let arguments = [
            "--onnxruntime",
            "libonnxruntime.so",
            "--provider",
            provider,
            "red.png",
        ];
        let run = folder.run(&arguments).success("R.\n");
        assert_eq!(run.stderr.lines().count(), 1, "{}", run.stderr);
        assert!(
            run.stderr.contains("libonnxruntime.so") && run.stderr.ends_with("using `tract`\n"),
            "{}",
            run.stderr
        );
        let mut strict = arguments.to_vec();
        strict.push("--no-fallback");
        folder.run(&strict).failure(&["libonnxruntime.so"]);
    }
    folder
        .run(&[
            "--onnxruntime",
            "nowhere",
            "--provider",
            "cpu",
            "--no-fallback",
            "red.png",
        ])
        .failure(&["nowhere"]);
}

#[test]
#[cfg(feature = "ort")]
fn onnx_runtime_gives_the_same_answers() {
    let folder = Folder::new();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.ort");
    // Somebody may have named another, of another processor perhaps; programs of tests do not see the variable.
    let named = std::env::var("ORT_DYLIB_PATH").ok();
    let named = named.or_else(|| root.exists().then(|| root.display().to_string()));
    let mut arguments = vec!["--provider", "cpu", "--no-fallback", "red.png", "blue.png"];
    if let Some(named) = &named {
        arguments.extend(["--onnxruntime", named]);
    }
    let run = folder.run(&arguments);
    if run.code == Some(2) && run.stderr.contains("no ONNX Runtime library was found") {
        let required = std::env::var("FVLM_REQUIRE").unwrap_or_default();
        let required = required.split(',').any(|word| word.trim() == "cpu");
        assert!(!required, "FVLM_REQUIRE names `cpu`: {}", run.stderr);
        eprintln!("skipped: no ONNX Runtime; scripts/fetch_onnxruntime brings it");
        return;
    }
    run.success("==> red.png <==\nR.\n\n==> blue.png <==\nB.\n");
}

/// A library that says when it is loaded, by making the file that the variable `LOADED` names; without a C compiler
/// a file that is none, which an error names.
#[cfg(all(feature = "ort", unix))]
fn trap(folder: &Path) -> (PathBuf, bool) {
    let (source, library) = (folder.join("trap.c"), folder.join("trap"));
    let text = "#include <stdio.h>\n#include <stdlib.h>\n\
        __attribute__((constructor)) static void loaded(void) {\n\
        FILE *file = fopen(getenv(\"LOADED\"), \"w\");\n  if (file) fclose(file);\n}\n";
    std::fs::write(&source, text).unwrap();
    let mut compiler = Command::new(std::env::var_os("CC").unwrap_or_else(|| "cc".into()));
    compiler
        .args(["-shared", "-fPIC", "-o"])
        .args([&library, &source]);
    let compiled = compiler.status().is_ok_and(|status| status.success());
    if !compiled {
        std::fs::write(&library, "no library").unwrap();
    }
    (library, compiled)
}

#[test]
#[cfg(all(feature = "ort", unix))]
fn no_library_is_loaded_from_the_current_folder_or_above_it() {
    let name = if cfg!(target_os = "macos") {
        "libonnxruntime.dylib"
    } else {
        "libonnxruntime.so"
    };
    let installed = tempfile::tempdir().unwrap();
    let (trap, compiled) = trap(installed.path());
    let plant = |folder: PathBuf| {
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::copy(&trap, folder.join(name)).unwrap();
    };
    // A program with nothing up its tree, run in a folder that somebody else filled.
    let program = installed.path().join("bin/fvlm-run");
    std::fs::create_dir_all(program.parent().unwrap()).unwrap();
    std::fs::copy(env!("CARGO_BIN_EXE_fvlm-run"), &program).unwrap();
    let folder = Folder::new();
    copy(
        &folder.path("fastvlm-bundle"),
        &folder.path("above/current/fastvlm-bundle"),
    );
    std::fs::copy(folder.path("red.png"), folder.path("above/current/red.png")).unwrap();
    let site = "lib/python3.12/site-packages/onnxruntime/capi";
    for above in ["above/current", "above"] {
        plant(folder.path(above));
        for planted in [".ort", ".ort/onnxruntime/capi", "lib", "bin"] {
            plant(folder.path(above).join(planted));
        }
        for prefix in [".venv", ".local", "."] {
            plant(folder.path(above).join(prefix).join(site));
        }
        std::fs::write(folder.path(above).join("bin/python3"), "").unwrap();
    }
    let marker = installed.path().join("marker");
    let run = |variables: &[(&str, &str)]| {
        let _ = std::fs::remove_file(&marker);
        let output = Command::new(&program)
            .current_dir(folder.path("above/current"))
            .args(["--provider", "cpu", "red.png"])
            .env_remove("ORT_DYLIB_PATH")
            .env_remove("LD_LIBRARY_PATH")
            .env_remove("CONDA_PREFIX")
            .env_remove("VIRTUAL_ENV")
            .env("HOME", installed.path())
            .env("PATH", "")
            .env("LOADED", &marker)
            .envs(variables.iter().copied())
            .output();
        (Run::new(output.unwrap()).success("R.\n").stderr, marker.exists())
    };
    let planted = folder.0.path().file_name().unwrap().to_str().unwrap();
    for variables in [
        &[][..],
        &[("PATH", "bin::.")],
        &[("VIRTUAL_ENV", ".venv"), ("CONDA_PREFIX", "."), ("HOME", ".")],
        &[("LD_LIBRARY_PATH", "lib:")],
        &[("ORT_DYLIB_PATH", name)],
    ] {
        let (said, loaded) = run(variables);
        assert!(!loaded && !said.contains(planted), "{variables:?}: {said}");
    }
    // The trap is one: where it may be looked for, it is loaded.
    let venv = folder.path("above/current/.venv");
    let (said, loaded) = run(&[("VIRTUAL_ENV", venv.to_str().unwrap())]);
    assert!(loaded == compiled && said.contains(planted), "{said}");
    plant(installed.path().join(".ort"));
    let (said, loaded) = run(&[]);
    assert!(loaded == compiled && said.contains(".ort"), "{said}");
}

#[test]
#[cfg(unix)]
fn a_closed_pipe_is_success() {
    let folder = Folder::new();
    let mut command = Command::new(env!("CARGO_BIN_EXE_fvlm-run"));
    command
        .current_dir(folder.0.path())
        .args(["--provider", "tract", "red.png"]);
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let run = Run::new(child.wait_with_output().unwrap());
    assert_eq!((run.code, run.stderr.as_str()), (Some(0), ""));
}

#[test]
fn manual_and_completions_come_from_the_flags() {
    let run = |arguments: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_fvlm-run"))
            .args(arguments)
            .output();
        let output = output.unwrap();
        assert!(output.status.success(), "{arguments:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let help = run(&["--help"]);
    let flags = help.split_whitespace().filter_map(|word| word.strip_prefix("--"));
    let flags: Vec<&str> = flags
        // `--logprobs[=<N>]`: its value may be left out.
        .map(|word| word.split('[').next().unwrap_or(word))
        .map(|word| word.trim_end_matches(|c: char| !c.is_ascii_alphanumeric()))
        .collect();
    assert!(flags.len() > 20, "{flags:?}");
    for kind in [
        "man",
        "complete-bash",
        "complete-zsh",
        "complete-fish",
        "complete-powershell",
    ] {
        let text = run(&["--generate", kind]).replace('\\', "");
        for flag in &flags {
            assert!(text.contains(flag), "`{flag}` in {kind}");
        }
    }
}

/// Weights are read where somebody asks, and only then; small files always are.
#[test]
fn a_bundle_is_verified_when_asked() {
    let folder = Folder::new();
    let run = folder.run(&["--verify", "red.png"]).success("R.\n");
    assert!(
        run.stderr.contains("every SHA-256 is as `bundle.json` states"),
        "{}",
        run.stderr
    );
    let run = folder.run(&["--verify", "--quiet"]).success("");
    assert_eq!(run.stderr, "");
    let run = folder.run(&["--verify", "--json", "--quiet"]);
    let records = run.records();
    assert_eq!((run.code, records.len()), (Some(0), 1));
    assert_eq!(records[0]["verified"], "fastvlm-bundle");
    // A file that nobody opens to answer.
    let name = "onnx/vision_encoder_8.onnx";
    flip(&folder, name, 50);
    folder.run(&["red.png"]).success("R.\n");
    for arguments in [&["--verify"][..], &["--verify", "red.png"]] {
        let run = folder.run(arguments).failure(&[name, "has SHA-256"]);
        assert_eq!(run.stdout, "");
    }
    folder
        .run(&["--image-size", "8", "red.png"])
        .failure(&[name, "has SHA-256"]);
}

/// A chat that gets longer than the 64 positions of the context.
#[test]
fn a_chat_whose_context_is_full() {
    let folder = Folder::new();
    let turn = "???\n";
    let chat = |flags: &[&str], lines: &str| {
        let arguments = [&["-i", "--json", "red.png"], flags].concat();
        folder.run_with(&arguments, lines.as_bytes())
    };
    let run = chat(&[], &format!("{}/reset\n{turn}", turn.repeat(10))).failure(&[
        "71 positions",
        "/reset forgets what was said",
        "--context-shift",
    ]);
    let records = run.records();
    let answered: Vec<bool> = records.iter().map(|record| record["text"] == "R.").collect();
    let expected = [[true; 7].as_slice(), &[false; 3], &[true]].concat();
    assert_eq!(answered, expected, "{records:?}");
    for record in &records[7..10] {
        let error = record["error"].as_str().unwrap();
        assert!(error.contains("71 positions"), "{record}");
        assert_eq!(record["images"], serde_json::json!([]));
    }
    // The image stays, or the answer would be another.
    let run = chat(&["--context-shift"], &turn.repeat(12));
    let records = run.records();
    assert_eq!((run.code, records.len()), (Some(0), 12), "{}", run.stderr);
    assert!(records.iter().all(|record| record["text"] == "R."), "{records:?}");
    let stat = |name: &str| -> Vec<u64> {
        let records = records.iter();
        records
            .map(|record| record["stats"][name].as_u64().unwrap())
            .collect()
    };
    let left_out = stat("left_out");
    assert_eq!(left_out[..5], [0; 5]);
    assert!(left_out.is_sorted() && left_out[11] > 5, "{left_out:?}");
    // Not every turn leaves out another, and what is computed stays useful then.
    let same = left_out.windows(2).filter(|two| two[0] == two[1]).count();
    assert!(same >= 5, "{left_out:?}");
    assert!(stat("prompt_positions").iter().all(|&positions| positions < 64));
    let reused = stat("reused_positions");
    assert!(
        (1..12).all(|turn| left_out[turn] > left_out[turn - 1] || reused[turn] >= 10),
        "{reused:?}"
    );
    assert!(run.stderr.contains("are left out"), "{}", run.stderr);
    let run = folder.run_with(&["-i", "--json", "red.png"], b"?\n\xff\n");
    assert_eq!(run.records().len(), 2, "{}", run.stdout);
    folder
        .run(&["--context-shift", "red.png"])
        .failure(&["--interactive"]);
}

/// The Hugging Face cache: every file is a link into `blobs`.
#[test]
#[cfg(unix)]
fn a_bundle_of_links_is_opened() {
    let folder = Folder::new();
    let bundle = folder.path("fastvlm-bundle");
    let blobs = folder.path("blobs");
    std::fs::create_dir(&blobs).unwrap();
    let link = |directory: &Path| {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_file() {
                let blob = blobs.join(path.file_name().unwrap());
                std::fs::rename(&path, &blob).unwrap();
                std::os::unix::fs::symlink(&blob, &path).unwrap();
            }
        }
    };
    link(&bundle);
    link(&bundle.join("onnx"));
    folder.run(&["red.png"]).success("R.\n");
    folder.run(&["--verify", "--quiet"]).success("");
}

/// Whatever a program asks, it gets an object for it.
#[test]
fn json_has_an_object_for_what_cannot_be_asked() {
    let folder = Folder::new();
    for (arguments, images) in [
        (
            &["--together", "red.png", "no.png"][..],
            &["red.png", "no.png"][..],
        ),
        (&["--frames", "no"], &["no"]),
        (&["--interactive", "no.png"], &["no.png"]),
        (&["no.png"], &["no.png"]),
    ] {
        let run = folder.run(&[&["--json"], arguments].concat()).failure(&["no"]);
        let records = run.records();
        assert_eq!(records.len(), 1, "{run:?}");
        assert_eq!(records[0]["images"], serde_json::json!(images));
        assert!(records[0]["error"].as_str().unwrap().contains("no"), "{run:?}");
    }
}
