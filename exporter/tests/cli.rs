//! The real `fvlm-export`: stdout, stderr, exit code, and what is on the disk afterwards.

#![expect(clippy::unwrap_used, reason = "a failure here is a failed test")]

#[path = "support/ran.rs"]
mod ran;
#[path = "support/tensors.rs"]
mod tensors;
#[path = "support/world.rs"]
mod world;
#[path = "../../models/src/checkpoint/tests/write.rs"]
mod write;

use models::bundle::{FileEntry, GraphEntry};
use ran::tree;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
#[cfg(unix)]
use std::process::{Command, Stdio};
#[cfg(unix)]
use std::time::Duration;
use world::World;

impl World {
    fn edit_config(&self, edit: impl FnOnce(&mut Value)) {
        let path = self.path("model/config.json");
        let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        edit(&mut config);
        fs::write(path, config.to_string()).unwrap();
    }

    /// Rewrites the header of `model.safetensors`; the data stays.
    fn edit_header(&self, edit: impl FnOnce(&mut Map<String, Value>)) {
        let path = self.path("model/model.safetensors");
        let (mut header, data) = split(&fs::read(&path).unwrap());
        edit(&mut header);
        let header = Value::Object(header).to_string();
        let mut bytes = u64::try_from(header.len()).unwrap().to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        bytes.extend(data);
        fs::write(path, bytes).unwrap();
    }
}

fn split(file: &[u8]) -> (Map<String, Value>, Vec<u8>) {
    let (length, rest) = file.split_first_chunk::<8>().unwrap();
    let (header, data) = rest.split_at(usize::try_from(u64::from_le_bytes(*length)).unwrap());
    (serde_json::from_slice(header).unwrap(), data.to_vec())
}

fn relative(files: BTreeMap<PathBuf, Vec<u8>>, root: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    files
        .into_iter()
        .map(|(path, contents)| (path.strip_prefix(root).unwrap().to_owned(), contents))
        .collect()
}

#[test]
fn exports_the_demo_into_a_complete_bundle() {
    let world = World::new();
    let ran = world.run(&["--precision", "fp32", "--precision", "fp16"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (Some(0), ""), "{}", ran.stderr);
    assert!(ran.stderr.contains("fastvlm-bundle"), "{}", ran.stderr);
    let bundle = models::bundle::Bundle::open(&world.path("fastvlm-bundle")).unwrap();
    bundle.verify(&world.path("fastvlm-bundle"), &|_| ()).unwrap();
    assert_eq!(bundle.variants.len(), 2);
    let source: Vec<&str> = bundle.source.iter().map(|file| file.path.as_str()).collect();
    assert_eq!(source, ["config.json", "model.safetensors"]);
    let mut listed: Vec<PathBuf> = bundle
        .files
        .iter()
        .map(|file| PathBuf::from(&file.path))
        .collect();
    listed.push("bundle.json".into());
    listed.sort();
    let root = world.path("fastvlm-bundle");
    let found: Vec<PathBuf> = relative(tree(&root), &root)
        .into_keys()
        .filter(|path| root.join(path).is_file())
        .collect();
    assert_eq!(found, listed);
    let text = fs::read_to_string(root.join("bundle.json")).unwrap();
    assert!(
        !text.contains(world.directory.path().to_str().unwrap()),
        "a machine path is in the bundle"
    );
}

#[test]
fn two_exports_are_the_same_bytes() {
    let world = World::new();
    for output in ["a", "b"] {
        assert_eq!(
            world
                .run(&["--precision", "fp32", "--precision", "fp16", "-o", output])
                .code,
            Some(0)
        );
    }
    let (a, b) = (world.path("a"), world.path("b"));
    assert!(relative(tree(&a), &a) == relative(tree(&b), &b));
}

#[test]
fn a_dry_run_writes_nothing_and_tells_all() {
    let world = World::new();
    let before = tree(world.directory.path());
    let ran = world.run(&["--model", "model", "--dry-run"]);
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    for text in [
        "parameters",
        "used",
        "ignored",
        "vision_encoder.onnx",
        "past_key_values.0.key",
        "logits",
        "bytes",
    ] {
        assert!(ran.stdout.contains(text), "`{text}` is missing: {}", ran.stdout);
    }
    let ran = world.run(&["--model", "model", "--dry-run", "--json"]);
    let summary: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(summary["output"], Value::Null);
    let tensors = split(&fs::read(world.path("model/model.safetensors")).unwrap()).0;
    let count = tensors.keys().filter(|name| *name != "__metadata__").count();
    let accounted = ["used", "ignored"].map(|kind| summary["accounting"][kind].as_array().unwrap().len());
    assert_eq!(
        accounted.iter().sum::<usize>(),
        count,
        "every tensor is used or ignored"
    );
    let ran = world.run(&["--model", "model", "--dump"]);
    assert!(
        ran.stdout.contains("graph decoder_model_merged"),
        "{}",
        ran.stderr
    );
    assert!(tree(world.directory.path()) == before);
}

#[test]
fn json_says_what_was_written() {
    let world = World::new();
    let ran = world.run(&["--model", "model", "--json", "-o", "b"]);
    let summary: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!((summary["output"].as_str(), ran.stderr.as_str()), (Some("b"), ""));
    let bundle = models::bundle::Bundle::open(&world.path("b")).unwrap();
    let bytes: u64 = bundle.files.iter().map(|file| file.bytes).sum();
    assert_eq!(summary["bytes"], json!(bytes));
}

#[test]
fn image_sizes_share_the_weights() {
    let world = World::new();
    let variants = ["fp32", "fp16", "int8", "q4"].map(|name| format!("--precision={name}"));
    let variants: Vec<&str> = variants.iter().map(String::as_str).collect();
    let sizes = [
        "--image-size=512",
        "--image-size=128",
        "--image-size=256",
        "--image-size=512",
    ];
    world.exported(&[&variants[..], &["-o", "one"]].concat());
    let ran = world.run(&[&variants[..], &sizes, &["-o", "b"]].concat());
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    // The model's own is 256.
    let bundle = models::bundle::Bundle::open(&world.path("b")).unwrap();
    assert_eq!(bundle.image_sizes(), [(256, 256), (128, 128), (512, 512)]);
    assert_eq!(bundle.variants.len(), 4);
    for variant in &bundle.variants {
        let own = &variant.vision_encoder;
        let further: Vec<_> = variant.further_encoders.iter().collect();
        assert_eq!(further.iter().map(|one| one.tokens).collect::<Vec<_>>(), [4, 64]);
        for encoder in further {
            // No byte of weights more.
            assert_eq!(encoder.graph.data, own.data);
            let suffix = own.path.strip_prefix("onnx/vision_encoder").unwrap();
            assert_eq!(
                encoder.graph.path,
                format!("onnx/vision_encoder_{}{suffix}", encoder.height)
            );
            assert_eq!(encoder.shortest_edge, encoder.height);
        }
    }
    // Seen as a bundle of one size, it is the one without the others.
    let one = models::bundle::Bundle::open(&world.path("one")).unwrap();
    let view = bundle.at_size(256, 256).unwrap();
    assert_eq!((view.image, view.variants), (one.image, one.variants));
    for (size, expected) in [
        ("300", "image size 300"),
        ("0", "image size 0"),
        ("2112", "64 to 2048"),
    ] {
        world.refused(
            &["-o", "c", "--image-size", size],
            &[expected, "a multiple of 64", "--image-size"],
        );
    }
    let ran = world.run(&["--dry-run", "--image-size", "128"]);
    assert!(ran.stdout.contains("vision_encoder_128.onnx"), "{}", ran.stdout);
}

#[test]
fn packages_for_core_ml() {
    let world = World::new();
    let flags = [
        "--to",
        "coreml",
        "--precision",
        "fp16",
        "--precision",
        "q4",
        "--ios16-encoder",
        "--prefill",
        "16",
    ];
    for output in ["a", "b"] {
        let ran = world.run(&[&flags[..], &["--max-context", "64", "-o", output]].concat());
        assert_eq!((ran.code, ran.stdout.as_str()), (Some(0), ""), "{}", ran.stderr);
    }
    let (a, b) = (world.path("a"), world.path("b"));
    assert!(
        relative(tree(&a), &a) == relative(tree(&b), &b),
        "two exports differ"
    );
    let bundle = models::bundle::Bundle::open(&a).unwrap();
    assert!(bundle.variants.is_empty());
    let named: Vec<(&str, &str)> = bundle
        .packages
        .iter()
        .map(|packages| (packages.precision.name(), &*packages.decoder))
        .collect();
    assert_eq!(
        named,
        [
            ("fp16", "coreml/decoder.mlpackage"),
            ("q4", "coreml/decoder_q4.mlpackage")
        ]
    );
    let packages = &bundle.packages[0];
    assert_eq!((packages.context, &packages.prefill[..]), (64, &[16][..]));
    let older = packages.vision_encoder_ios16.as_deref();
    assert_eq!(older, Some("coreml/vision_encoder_ios16.mlpackage"));
    let bytes = |packages: &models::bundle::CoreMlPackages| {
        fs::metadata(a.join(&packages.embedding.path)).unwrap().len()
    };
    assert!(
        2 * bytes(&bundle.packages[1]) < bytes(packages),
        "nibbles are as long as halves"
    );
    // What is missing is named before anybody opens it.
    fs::remove_file(a.join("coreml/decoder.mlpackage/Manifest.json")).unwrap();
    let error = models::bundle::Bundle::open(&a).unwrap_err().to_string();
    assert!(
        error.contains("coreml/decoder.mlpackage/Manifest.json"),
        "{error}"
    );
    // Both forms, and a bundle that is replaced leaves nothing of the other.
    assert_eq!(
        world
            .run(&["--to", "onnx", "--to", "coreml", "-o", "b", "--overwrite"])
            .code,
        Some(0)
    );
    assert!(!b.join("coreml/decoder_q4.mlpackage").exists());
    let dry = world.run(&["--to", "coreml", "--dry-run"]);
    assert!(
        dry.stdout.contains("functions step, prefill_64, prefill_320"),
        "{}",
        dry.stdout
    );
    let sizes = ["--to", "onnx", "--to", "coreml", "--image-size", "128", "-o", "c"];
    world.refused(&sizes, &["--image-size", "own size"]);
    world.refused(
        &["--to", "coreml", "--target", "cpu", "-o", "c"],
        &["--target", "--to coreml"],
    );
    world.refused(
        &["--ios16-encoder", "-o", "c"],
        &["--ios16-encoder", "--to coreml"],
    );
    world.refused(
        &["--neural-engine", "-o", "c"],
        &["--neural-engine", "--to coreml"],
    );
    let fp32 = [
        "--to",
        "coreml",
        "--neural-engine",
        "--precision",
        "fp32",
        "-o",
        "c",
    ];
    world.refused(&fp32, &["--neural-engine", "fp32"]);
    for (flag, value, found) in [
        ("--max-context", "0", "a cache of 0 slots"),
        ("--max-context", "99999999", "a cache of 99999999 slots"),
        ("--prefill", "1", "[1] positions"),
        (
            "--prefill",
            "1025",
            "a cache of 1024 slots and prefill graphs for [1025]",
        ),
    ] {
        for form in [["--to", "coreml"], ["--target", "coreml"]] {
            let refused = [&form[..], &[flag, value, "-o", "c"]].concat();
            world.refused(&refused, &[found, "the model's context", "--max-context"]);
        }
    }
}

#[test]
fn targets_that_exist() {
    let world = World::new();
    world.exported(&["-o", "b"]);
    world.refused(&["-o", "b"], &["the bundle", "exists", "--overwrite"]);
    assert_eq!(
        world.run(&["-o", "b", "--overwrite", "--precision", "fp16"]).code,
        Some(0)
    );
    assert!(!world.path("b/onnx/vision_encoder.onnx").exists());
    fs::write(world.path("b/notes.txt"), "mine").unwrap();
    world.refused(&["-o", "b", "--overwrite"], &["notes.txt"]);
    fs::create_dir(world.path("thesis")).unwrap();
    fs::write(world.path("thesis/chapter.txt"), "mine").unwrap();
    world.refused(&["-o", "thesis", "--overwrite"], &["thesis", "is not a bundle"]);
    world.refused(&["-o", "thesis/chapter.txt"], &["chapter.txt", "a file"]);
    world.refused(&["-o", "thesis/chapter.txt/b"], &["chapter.txt"]);
}

#[test]
fn models_that_are_not_there() {
    let world = World::new();
    world.refused(
        &["--model", "nowhere"],
        &["no model directory `nowhere`", "hint:"],
    );
    world.refused(&["--model", "."], &["config.json"]);
    world.refused(&["--model", "model/config.json"], &["config.json"]);
    world.refused(&["--precision", "fp12"], &["fp12", "fp16"]);
    world.refused(&["--max-tokens", "3"], &["--max-tokens"]);
    world.refused(
        &["--layout", "llava", "--model", "model"],
        &["missing", "not in any rule"],
    );
}

#[test]
fn weights_files_that_lie() {
    type Edit = fn(&World);
    let header_longer_than_the_file: Edit = |world| {
        let path = world.path("model/model.safetensors");
        let mut bytes = fs::read(&path).unwrap();
        bytes[..8].copy_from_slice(&u64::MAX.to_le_bytes());
        fs::write(path, bytes).unwrap();
    };
    let cut: Edit = |world| {
        let path = world.path("model/model.safetensors");
        let bytes = fs::read(&path).unwrap();
        fs::write(path, &bytes[..bytes.len() - 1000]).unwrap();
    };
    let overlapping: Edit = |world| {
        world.edit_header(|header| {
            let names: Vec<String> = header
                .keys()
                .filter(|name| *name != "__metadata__")
                .cloned()
                .collect();
            let same = header[&names[0]]["data_offsets"].clone();
            let first = header[&names[0]].clone();
            header[&names[1]] = first;
            header[&names[1]]["data_offsets"] = same;
        });
    };
    let huge: Edit = |world| {
        world.edit_header(|header| {
            let name = header
                .keys()
                .find(|name| *name != "__metadata__")
                .unwrap()
                .clone();
            header[&name]["shape"] = json!([u64::MAX, u64::MAX]);
        });
    };
    let empty: Edit = |world| fs::write(world.path("model/model.safetensors"), "").unwrap();
    let renamed: Edit = |world| {
        world.edit_header(|header| {
            let entry = header.shift_remove("model.language_model.norm.weight").unwrap();
            header.insert("model.language_model.norm.wait".to_owned(), entry);
        });
    };
    let missing_shard: Edit = |world| {
        let map = json!({"metadata": {}, "weight_map": {"a": "model-00001-of-00002.safetensors"}});
        fs::remove_file(world.path("model/model.safetensors")).unwrap();
        fs::write(world.path("model/model.safetensors.index.json"), map.to_string()).unwrap();
    };
    let other_size: Edit =
        |world| world.edit_config(|config| config["text_config"]["hidden_size"] = json!(384));
    let no_such_field: Edit = |world| {
        world.edit_config(|config| {
            config["text_config"]
                .as_object_mut()
                .unwrap()
                .remove("num_attention_heads");
        });
    };
    let not_json: Edit = |world| fs::write(world.path("model/config.json"), "{").unwrap();
    let absurd: Edit =
        |world| world.edit_config(|config| config["text_config"]["num_hidden_layers"] = json!(u64::MAX));
    let cases: [(&str, Edit, &[&str]); 11] = [
        (
            "header longer than the file",
            header_longer_than_the_file,
            &["model.safetensors"],
        ),
        ("cut", cut, &["model.safetensors"]),
        ("overlapping", overlapping, &["model.safetensors"]),
        ("huge dimensions", huge, &["model.safetensors"]),
        ("empty", empty, &["model.safetensors"]),
        (
            "renamed",
            renamed,
            &[
                "model.language_model.norm.weight",
                "model.language_model.norm.wait",
            ],
        ),
        (
            "missing shard",
            missing_shard,
            &["model-00001-of-00002.safetensors", "missing"],
        ),
        ("another hidden size", other_size, &["has shape", "expected"]),
        (
            "a missing field",
            no_such_field,
            &["config.json", "num_attention_heads"],
        ),
        ("not JSON", not_json, &["config.json"]),
        ("absurd depth", absurd, &["num_hidden_layers"]),
    ];
    for (what, edit, says) in cases {
        let world = World::new();
        edit(&world);
        println!("{what}");
        world.refused(&["--model", "model", "-o", "b"], says);
    }
}

/// A template of transformers' layout may take texts, as Qwen2's own does: users then write the image's place themselves.
#[test]
fn a_template_that_takes_texts_is_taken() {
    let world = World::new();
    fs::write(
        world.path("model/chat_template.jinja"),
        models::checkpoint::TEXT_TEMPLATE,
    )
    .unwrap();
    world.exported(&["--model", "model", "-o", "b", "--precision", "fp16"]);
    let bundle = models::bundle::Bundle::open(&world.path("b")).unwrap();
    assert_eq!(bundle.prompt.content, models::bundle::Content::Text);
    fs::write(world.path("model/chat_template.jinja"), "{{ 'hello' }}").unwrap();
    world.refused(&["--model", "model", "-o", "c"], &["chat_template.jinja"]);
}

/// The tokenizers library panics on it: nobody sees that, and the error names the file.
#[test]
fn a_caught_panic_is_an_error_alone() {
    let world = World::new();
    let path = world.path("model/tokenizer.json");
    let mut tokenizer: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    tokenizer["model"]["continuing_subword_prefix"] = json!("##");
    fs::write(&path, tokenizer.to_string()).unwrap();
    world.refused(&["--model", "model", "-o", "b"], &["tokenizer.json`: "]);
}

/// Weights whose products are as they were, and that need scales which float16 does not have.
#[test]
fn scales_beyond_float16_are_refused() {
    let world = World::new();
    let path = world.path("model/model.safetensors");
    let mut stored: BTreeMap<String, (Vec<usize>, Vec<f32>)> = tensors::read(&path);
    for (name, (_, values)) in &mut stored {
        let factor = match name {
            name if name.ends_with("mlp.up_proj.weight") => 1_048_576.0,
            name if name.ends_with("mlp.down_proj.weight") => 1.0 / 1_048_576.0,
            _ => continue,
        };
        values.iter_mut().for_each(|value| *value *= factor);
    }
    write::float32(&path, &stored);
    for flags in [
        &["--precision", "q4"][..],
        &["--target", "portable", "--precision", "q4"],
        &["--target", "portable", "--precision", "q4f16"],
        &["--to", "coreml", "--precision", "q4"],
        &["--to", "coreml", "--precision", "int8"],
    ] {
        let base = ["--model", "model", "-o", "b"];
        world.refused(
            &[&base[..], flags].concat(),
            &[
                "scales in float16 do not hold",
                "layers.3.mlp.down_proj.weight",
                "--precision fp32",
            ],
        );
    }
    world.exported(&["--model", "model", "-o", "b", "--precision", "int8"]);
}

#[test]
fn weights_that_are_not_numbers_are_named() {
    let world = World::new();
    let path = world.path("model/model.safetensors");
    let bytes = fs::read(&path).unwrap();
    let (header, data) = split(&bytes);
    let start = header["model.language_model.norm.weight"]["data_offsets"][0]
        .as_u64()
        .unwrap();
    let mut bytes = bytes;
    let place = bytes.len() - data.len() + usize::try_from(start).unwrap();
    bytes[place..place + 2].copy_from_slice(&half::f16::NAN.to_le_bytes());
    fs::write(path, bytes).unwrap();
    let ran = world.run(&["--model", "model", "-o", "b"]);
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    assert!(
        ran.stderr.contains("warning: NaN") && ran.stderr.contains("language_model.norm.weight"),
        "{}",
        ran.stderr
    );
}

#[cfg(unix)]
#[test]
fn killed_at_any_moment_it_leaves_the_old_bundle_or_the_new_one() {
    let world = World::new();
    world.exported(&["-o", "b"]);
    let root = world.path("b");
    let old = relative(tree(&root), &root);
    world.exported(&["-o", "new", "--precision", "fp16"]);
    let root_of_new = world.path("new");
    let new = relative(tree(&root_of_new), &root_of_new);
    for milliseconds in (0..120).step_by(8) {
        let mut child = world
            .command(&["-o", "b", "--overwrite", "--precision", "fp16", "--quiet"])
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(milliseconds));
        child.kill().unwrap();
        child.wait().unwrap();
        let found = relative(tree(&root), &root);
        assert!(
            found == old || found == new,
            "after {milliseconds} ms the bundle is neither"
        );
    }
    // The next export removes what the killed ones left.
    world.exported(&["-o", "b", "--overwrite"]);
    let mut left: Vec<String> = fs::read_dir(world.directory.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    left.sort();
    assert_eq!(left, ["b", "model", "new"]);
}

#[cfg(unix)]
#[test]
fn an_interrupt_leaves_nothing() {
    let world = World::new();
    let before = tree(world.directory.path());
    let child = world
        .command(&["-o", "b"])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let id = child.id().to_string();
    // As soon as it has begun to write.
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    while tree(world.directory.path()).len() == before.len() && std::time::Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(1));
    }
    Command::new("kill").args(["-INT", &id]).status().unwrap();
    let output = child.wait_with_output().unwrap();
    // The demo is small: the signal may come too late, then the bundle is whole.
    if output.status.code() == Some(0) {
        models::bundle::Bundle::open(&world.path("b")).unwrap();
    } else {
        assert_eq!(
            output.status.code(),
            Some(130),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        assert!(tree(world.directory.path()) == before);
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_an_error() {
    let world = World::new();
    // A file size limit stands in for a full disk: the write fails in the middle of the data.
    let before = tree(world.directory.path());
    let binary = env!("CARGO_BIN_EXE_fvlm-export");
    let script = format!("trap '' XFSZ; ulimit -f 2048; exec '{binary}' -o b");
    let output = Command::new("bash")
        .args(["-c", &script])
        .current_dir(world.directory.path())
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    assert!(
        stderr.contains("cannot write") && stderr.contains("too large"),
        "{stderr}"
    );
    assert!(tree(world.directory.path()) == before);
}

#[cfg(unix)]
#[test]
fn pipes_are_not_waited_for() {
    for name in [
        "config.json",
        "generation_config.json",
        "LICENSE",
        "model.safetensors",
    ] {
        let world = World::new();
        let pipe = world.path("model").join(name);
        fs::remove_file(&pipe).unwrap();
        assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        let ran = world.run(&["--model", "model", "-o", "b"]);
        assert_eq!(ran.code, Some(2), "{}", ran.stderr);
        let says = format!("{name}: is not a regular file");
        assert!(ran.stderr.contains(&says), "should say `{says}`: {}", ran.stderr);
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_lost_message_loses_no_work() {
    let world = World::new();
    for (flags, code) in [(&["-o", "b"][..], 0), (&["--model", "nowhere"], 2)] {
        let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let status = world.command(flags).stderr(full).status().unwrap();
        assert_eq!(status.code(), Some(code), "{flags:?}");
    }
    models::bundle::Bundle::open(&world.path("b")).unwrap();
}

#[test]
fn a_card_says_what_is_there() {
    let world = World::new();
    fs::write(world.path("model/README.md"), "---\nlicense: apple-amlr\n---\n").unwrap();
    let flags = [
        "--model", "model", "-o", "bundle", "--card", "--to", "onnx", "--to", "coreml",
    ];
    let ran = world.run(&[&flags[..], &["--precision", "fp16", "--precision", "q4"]].concat());
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    assert!(ran.stderr.contains("license apple-amlr"), "{}", ran.stderr);
    let card = fs::read_to_string(world.path("bundle/README.md")).unwrap();
    let contract = world.json("bundle/bundle.json");
    let front = card
        .strip_prefix("---\n")
        .unwrap()
        .split_once("\n---\n")
        .unwrap()
        .0;
    for line in [
        "license: apple-amlr",
        "pipeline_tag: image-text-to-text",
        "- onnx",
        "- coreml",
    ] {
        assert!(front.lines().any(|found| found == line), "`{line}` in {front}");
    }
    for source in contract["source"].as_array().unwrap() {
        let line = format!(
            "| `{}` | {} | `{}` |",
            source["path"].as_str().unwrap(),
            source["bytes"],
            source["sha256"].as_str().unwrap()
        );
        assert!(card.contains(&line), "`{line}` in {card}");
    }
    for row in [
        "| ONNX, target `portable` | fp16 |",
        "| ONNX, target `cpu` | q4 |",
        "| Core ML | fp16 |",
        "| Core ML | q4 |",
    ] {
        assert!(card.contains(row), "`{row}` in {card}");
    }
    // What it names is there.
    for word in card
        .split('`')
        .skip(1)
        .step_by(2)
        .filter(|word| word.starts_with("onnx/") || word.starts_with("coreml/"))
    {
        assert!(world.path("bundle").join(word).exists(), "{word}");
    }
    // It is part of the bundle, which can be replaced as a whole.
    assert!(
        contract["files"]
            .as_array()
            .unwrap()
            .iter()
            .any(|file| file["path"] == "README.md")
    );
    let ran = world.run(&["--model", "model", "-o", "bundle", "--overwrite"]);
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    assert!(!world.path("bundle/README.md").exists());
}

#[test]
fn a_card_is_yaml_whatever_the_terms_are_called() {
    let world = World::new();
    for (file, text, lines) in [
        (
            "LICENSE (1).txt",
            "1.0\n",
            &[
                "license: other",
                "license_name: \"1.0\"",
                "license_link: \"LICENSE (1).txt\"",
            ][..],
        ),
        (
            "LICENSE",
            "\u{8bb8}\u{53ef}\n",
            &["license: other", "license_link: \"LICENSE\""],
        ),
        ("LICENSE", "", &["license: other", "license_link: \"LICENSE\""]),
        ("README.md", "---\nlicense: CC0-1.0\n---\n", &["license: cc0-1.0"]),
    ] {
        fs::remove_file(world.path("model/LICENSE")).unwrap_or_default();
        fs::write(world.path("model").join(file), text).unwrap();
        let ran = world.run(&["--model", "model", "-o", "bundle", "--overwrite", "--card"]);
        assert_eq!(ran.code, Some(0), "{}", ran.stderr);
        let card = fs::read_to_string(world.path("bundle/README.md")).unwrap();
        let found: Vec<&str> = card.lines().filter(|line| line.starts_with("license")).collect();
        assert_eq!(found, lines, "{file}: {text}");
        fs::remove_file(world.path("model").join(file)).unwrap();
    }
}

#[test]
fn self_contained_graphs_read_their_own_file_alone() {
    let world = World::new();
    let flags = [
        "--precision",
        "fp16",
        "--precision",
        "q4",
        "--image-size",
        "128",
        "--card",
    ];
    let export = |name: &str, further: &[&str]| {
        let ran = world.run(&[&flags[..], &["-o", name], further].concat());
        assert_eq!(ran.code, Some(0), "{}", ran.stderr);
        models::bundle::Bundle::open(&world.path(name)).unwrap()
    };
    let (shared, alone) = (export("shared", &[]), export("alone", &["--self-contained"]));
    let bytes = |bundle: &models::bundle::Bundle, graph: &GraphEntry| -> u64 {
        let data = |file: &&FileEntry| graph.data.contains(&file.path);
        bundle.files.iter().filter(data).map(|file| file.bytes).sum()
    };
    for (shared_variant, variant) in shared.variants.iter().zip(&alone.variants) {
        let [encoder] = &variant.further_encoders[..] else {
            panic!("{} further encoders", variant.further_encoders.len());
        };
        for graph in [
            &variant.vision_encoder,
            &variant.embed_tokens,
            &variant.decoder,
            &encoder.graph,
        ] {
            assert_eq!(graph.data, [format!("{}_data", graph.path)]);
        }
        // The demo's table is tied: the decoder's own file has it too.
        let table = bytes(&shared, &shared_variant.embed_tokens);
        assert_eq!(bytes(&alone, &variant.embed_tokens), table);
        let both = bytes(&shared, &shared_variant.decoder);
        let decoder = bytes(&alone, &variant.decoder);
        assert!(
            both.abs_diff(decoder) <= 4096,
            "{decoder} bytes, {both} in two files"
        );
    }
    let card = |name: &str| fs::read_to_string(world.path(name).join("README.md")).unwrap();
    assert!(card("alone").contains("in Node.js or a browser"));
    assert!(card("shared").contains("`--self-contained`"));
    world.refused(
        &["-o", "c", "--to", "coreml", "--self-contained"],
        &["--self-contained is about --to onnx"],
    );
    for flag in ["--max-context=100", "--prefill=3"] {
        let (name, _) = flag.split_once('=').unwrap();
        world.refused(&["-o", "c", flag], &[name, "--target coreml", "found neither"]);
    }
}

#[test]
fn what_transformers_js_is_told() {
    let world = World::new();
    let config = |flags: &[&str]| {
        let ran = world.run(&[&["--model", "model", "-o", "bundle", "--overwrite"], flags].concat());
        assert_eq!(ran.code, Some(0), "{}", ran.stderr);
        let config = world.json("bundle/config.json");
        for name in config["transformers.js_config"]["use_external_data_format"]
            .as_object()
            .into_iter()
            .flatten()
        {
            let data = world.path("bundle/onnx").join(format!("{}_data", name.0));
            assert!(data.exists(), "{}", data.display());
        }
        config["transformers.js_config"].clone()
    };
    let told = config(&["--precision", "q4", "--precision", "fp16"]);
    assert_eq!(told["dtype"], "q4");
    assert_eq!(told["use_external_data_format"].as_object().unwrap().len(), 6);
    assert_eq!(told["kv_cache_dtype"], json!({"fp16": "float16"}));
    assert_eq!(config(&["--precision", "q4"])["kv_cache_dtype"], Value::Null);
    // Graphs that it cannot open.
    assert_eq!(config(&["--target", "coreml"]), Value::Null);
    assert_eq!(config(&["--target", "cpu"]), Value::Null);
    assert_eq!(config(&["--to", "coreml"]), Value::Null);
}

#[test]
fn manual_and_completions_come_from_the_flags() {
    let world = World::new();
    let generate = |kind: &str| {
        let ran = world.run(&["--generate", kind]);
        assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""), "{kind}");
        ran.stdout
    };
    let help = world.run(&["--help"]).stdout;
    let flags: Vec<&str> = help
        .split_whitespace()
        .filter_map(|word| word.strip_prefix("--"))
        .map(|word| word.trim_end_matches(|c: char| !c.is_ascii_alphanumeric()))
        .collect();
    assert!(flags.len() > 10, "{flags:?}");
    for kind in [
        "man",
        "complete-bash",
        "complete-zsh",
        "complete-fish",
        "complete-powershell",
    ] {
        // A page writes dashes as `\\-`, fish leaves them out.
        let text = generate(kind).replace('\\', "");
        for flag in &flags {
            assert!(text.contains(flag), "`{flag}` in {kind}");
        }
    }
    let page = generate("man");
    assert!(
        page.contains(".SH EXAMPLES") && page.contains("fvlm\\-export "),
        "{page}"
    );
    let ran = world.run(&["--generate", "csh"]);
    assert_eq!(ran.code, Some(2));
    assert!(ran.stderr.contains("complete-zsh"), "{}", ran.stderr);
}

#[test]
fn a_page_beside_the_graphs() {
    let world = World::new();
    let ran = world.run(&["--model", "model", "-o", "plain", "--self-contained"]);
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    let ran = world.run(&["--model", "model", "-o", "bundle", "--self-contained", "--page"]);
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    // It adds files, and changes none but the contract, which lists them.
    let files = |name: &str| -> BTreeMap<String, Vec<u8>> {
        let root = world.path(name);
        let all = relative(tree(&root), &root).into_iter();
        let files = all.filter(|(path, _)| root.join(path).is_file());
        files
            .map(|(path, contents)| (path.to_string_lossy().into_owned(), contents))
            .collect()
    };
    let (plain, paged) = (files("plain"), files("bundle"));
    for (path, contents) in &plain {
        assert!(
            path == "bundle.json" || paged.get(path) == Some(contents),
            "{path}"
        );
    }
    let contract = models::bundle::Bundle::open(&world.path("bundle")).unwrap();
    contract.verify(&world.path("bundle"), &|_| ()).unwrap();
    let listed = |path: &String| contract.files.iter().any(|file| file.path == *path);
    let added: Vec<&String> = paged.keys().filter(|path| !plain.contains_key(*path)).collect();
    assert!(added.len() > 20, "{added:?}");
    for path in added {
        assert!(
            listed(path) && (path == "index.html" || path.starts_with("page/")),
            "{path}"
        );
    }
    let index = fs::read_to_string(world.path("bundle/index.html")).unwrap();
    assert!(index.contains(r#"content="bundle.js""#));
    // It goes with the bundle that it is part of; what a reader put beside it is not ours to remove.
    let overwrite = ["--model", "model", "-o", "bundle", "--overwrite"];
    fs::create_dir(world.path("bundle/vendor")).unwrap();
    fs::write(world.path("bundle/vendor/transformers.min.js"), "x").unwrap();
    world.refused(&overwrite, &["files that are not part of it: vendor/"]);
    fs::remove_dir_all(world.path("bundle/vendor")).unwrap();
    let ran = world.run(&overwrite);
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    assert!(!world.path("bundle/index.html").exists() && !world.path("bundle/page").exists());
}

#[test]
fn what_a_page_wants() {
    let world = World::new();
    let alone = ["-o", "c", "--page", "--self-contained"];
    for (flags, says) in [
        (&["-o", "c", "--page"][..], "--page wants --self-contained"),
        (
            &["-o", "c", "--page", "--to", "coreml"],
            "--page is about --to onnx",
        ),
        (&["-o", "c", "--page", "--verify", "model"], "--verify"),
        (
            &[&alone[..], &["--target", "coreml"]].concat(),
            "found coreml fp16 alone",
        ),
        (
            &[&alone[..], &["--target", "coreml", "--target", "cpu"]].concat(),
            "found coreml fp16 and cpu fp32 alone",
        ),
    ] {
        world.refused(flags, &[says]);
    }
    for flags in [
        &["--precision", "q4"][..],
        &["--target", "cpu", "--target", "portable"],
    ] {
        let ran = world.run(&[&alone[..], flags, &["--dry-run"]].concat());
        assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    }
}
