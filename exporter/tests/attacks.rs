//! What does `fvlm-export` do among others? The real binary: signals, closed and full outputs, names that are not kind,
//! files that are none, exports beside each other.

#![cfg(unix)]
#![expect(clippy::unwrap_used, reason = "a failure here is a failed test")]

#[path = "support/world.rs"]
mod world;

use exporter::onnx::proto::{GraphProto, ModelProto, NodeProto};
use programs::testing::hearing;
use prost::Message as _;
use serde_json::Value;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};
use world::World;

const PROGRAM: &str = env!("CARGO_BIN_EXE_fvlm-export");

impl World {
    fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// What a shell makes of a command; `$0` is the program.
    fn shell(&self, script: &str) -> Output {
        let mut shell = Command::new("bash");
        shell
            .args(["-c", script, PROGRAM])
            .current_dir(self.directory.path());
        shell.output().unwrap()
    }

    /// Runs and expects exit code 2 and all of these words, soon.
    fn refused(&self, arguments: &[&str], says: &[&str]) -> String {
        let start = Instant::now();
        let output = self.run(arguments);
        let said = said(&output);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {said}");
        for words in says {
            assert!(said.contains(words), "{arguments:?} should say `{words}`: {said}");
        }
        assert!(
            start.elapsed() < Duration::from_secs(20),
            "{arguments:?} takes its time"
        );
        said
    }

    /// A long export that has begun to write into `b`.
    fn begun(&self, command: &mut Command) -> Child {
        let child = command
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let deadline = Instant::now() + Duration::from_secs(30);
        while self.names().len() < 2 && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
        child
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.directory.path()).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned());
        let mut names: Vec<String> = names.collect();
        names.sort();
        names
    }
}

/// Every precision: an export that takes long enough to be disturbed.
const LONG: [&str; 9] = [
    "-o",
    "b",
    "--overwrite",
    "--precision=fp32",
    "--precision=fp16",
    "--precision=q4",
    "--precision=int8",
    "--to=onnx",
    "--to=coreml",
];

fn said(output: &Output) -> String {
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!said.contains("panicked"), "{said}");
    said
}

fn pipe(path: &Path) {
    assert!(Command::new("mkfifo").arg(path).status().unwrap().success());
}

fn signal(child: &Child, name: &str) {
    let id = child.id().to_string();
    assert!(Command::new("kill").args([name, &id]).status().unwrap().success());
}

#[test]
fn signals_end_an_export_as_they_end_others_and_leave_nothing() {
    for (name, number) in [("-TERM", 15), ("-HUP", 1)] {
        let world = World::new();
        let child = world.begun(&mut hearing(&world.command(&LONG)));
        signal(&child, name);
        let output = child.wait_with_output().unwrap();
        let ended = (output.status.signal(), output.status.code());
        // The signal may come too late, then the bundle is whole.
        if ended == (None, Some(0)) {
            models::bundle::Bundle::open(&world.path("b")).unwrap();
        } else {
            assert_eq!(ended, (Some(number), None), "{}", said(&output));
            assert!(said(&output).contains("interrupted"));
            assert_eq!(world.names(), ["model"]);
        }
    }
}

#[test]
fn ignored_signals_stay_ignored() {
    let world = World::new();
    let mut shell = Command::new("bash");
    shell
        .args(["-c", "trap '' HUP INT; exec \"$0\" \"$@\"", PROGRAM])
        .args(LONG)
        .current_dir(world.directory.path());
    let child = world.begun(&mut shell);
    for name in ["-HUP", "-INT", "-HUP"] {
        signal(&child, name);
    }
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    models::bundle::Bundle::open(&world.path("b")).unwrap();
}

#[test]
fn an_account_that_is_lost_is_an_error() {
    let world = World::new();
    let mut wanted = vec![">&-", "1</dev/null"];
    if cfg!(target_os = "linux") {
        wanted.push(">/dev/full");
    }
    for stdout in wanted {
        for flags in [
            "--dry-run",
            "--json --overwrite -o b",
            "--check coreml --target coreml",
            "--help",
            "--version",
            "--generate man",
        ] {
            let output = world.shell(&format!("exec \"$0\" {flags} {stdout}"));
            let said = said(&output);
            assert_eq!(output.status.code(), Some(2), "{flags} {stdout}: {said}");
            assert!(said.contains("cannot write"), "{flags} {stdout}: {said}");
        }
        // What was asked for is a bundle.
        let output = world.shell(&format!("exec \"$0\" -q --overwrite -o b {stdout}"));
        assert_eq!(output.status.code(), Some(0), "{stdout}: {}", said(&output));
    }
    // Whoever has had enough is no error.
    let output = world.shell("set -o pipefail; \"$0\" --dry-run | head -c1");
    assert_eq!(
        (output.status.code(), output.stdout.len()),
        (Some(0), 1),
        "{}",
        said(&output)
    );
}

#[test]
fn names_do_not_drive_the_terminal() {
    let world = World::new();
    let name = "x\u{1b}[31m\u{9b}2J\u{202e}\nerror: forged";
    let node = NodeProto {
        name: Some(name.to_owned()),
        op_type: Some(name.to_owned()),
        output: vec![name.to_owned()],
        ..NodeProto::default()
    };
    let model = ModelProto {
        graph: Some(GraphProto {
            node: vec![node],
            ..GraphProto::default()
        }),
        ..ModelProto::default()
    };
    let file = format!("{name}.onnx");
    fs::write(world.path(&file), model.encode_to_vec()).unwrap();
    let drives = |text: &str| {
        text.chars()
            .any(|c| (c.is_control() && c != '\n') || c == '\u{202e}')
    };
    let check = ["--check", "coreml", "--onnx", file.as_str()];
    let output = world.run(&check);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(!drives(&text), "{text:?}");
    assert!(!text.contains("\nerror"), "{text}");
    let output = world.run(&[&check[..], &["--json"]].concat());
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(!drives(&text), "{text:?}");
    let verdicts: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(verdicts[0]["graph"], file.as_str());
    assert_eq!(verdicts[0]["left"][0]["operator"], name);
    assert_eq!(verdicts[0]["left"][0]["first"][0], name);

    // A checkpoint's name, a target's, an argument's.
    fs::rename(world.path("model"), world.path(name)).unwrap();
    let target = format!("b{name}");
    let output = world.run(&["--model", name, "-o", &target]);
    let text = said(&output);
    assert_eq!(output.status.code(), Some(0), "{text}");
    assert!(!drives(&text) && !text.contains("\nerror"), "{text:?}");
    for arguments in [
        &["--model", name, "-o", target.as_str()][..],
        &["--model", "no\u{1b}[31m\nerror: forged", "-o", "b"],
        &["--precision", "\u{1b}[31m"],
        &["\u{1b}]0;owned\u{7}"],
    ] {
        let text = world.refused(arguments, &["error"]);
        assert!(!drives(&text), "{text:?}");
        assert!(!text.contains("\nerror: forged"), "{text}");
    }
    let output = world.run(&["--model", name, "--dry-run"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(!drives(&text) && !text.contains("\nerror"), "{text:?}");
}

#[test]
fn a_target_that_is_no_text_is_said_byte_by_byte() {
    if cfg!(target_vendor = "apple") {
        // Its file systems refuse such names.
        return;
    }
    let world = World::new();
    let mut command = world.command(&["--json", "-o"]);
    let output = command.arg(OsStr::from_bytes(b"b\xff")).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    let summary: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        (&summary["output"], &summary["output_hex"]),
        (&"b\u{fffd}".into(), &"62ff".into())
    );
    let output = world.run(&["--json", "-o", "b"]);
    let summary: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        (&summary["output"], summary.get("output_hex")),
        (&"b".into(), None)
    );
}

#[test]
fn the_current_directory_stays_and_others_trees_are_not_walked() {
    let world = World::new();
    fs::create_dir(world.path("here")).unwrap();
    for output in [".", "../here", "./", ".."] {
        let mut command = world.command(&["-o", output, "--overwrite"]);
        let ran = command.current_dir(world.path("here")).output().unwrap();
        let said = said(&ran);
        assert_eq!(ran.status.code(), Some(2), "{output}: {said}");
        assert!(
            said.contains("current directory") || said.contains("without a name"),
            "{output}: {said}"
        );
    }
    assert!(world.path("here").exists());
    world.refused(&["-o", "/usr", "--overwrite"], &["without bundle.json"]);
    // One that says it is a bundle: the tree below is named, and not walked.
    let deep = world.path("b/my/deep");
    fs::create_dir_all(&deep).unwrap();
    fs::write(deep.join("thesis.txt"), "x").unwrap();
    fs::write(
        world.path("b/bundle.json"),
        r#"{"tool": "fvlm-export 0", "files": []}"#,
    )
    .unwrap();
    world.refused(&["-o", "b", "--overwrite"], &["not part of it: my/"]);
}

#[test]
fn pipes_and_devices_are_not_waited_for() {
    let world = World::new();
    fs::create_dir(world.path("b")).unwrap();
    pipe(&world.path("b/bundle.json"));
    world.refused(&["-o", "b", "--overwrite"], &["bundle.json", "it is a pipe"]);
    // Names that look like what a killed export left.
    pipe(&world.path(".c.partial-abcdef"));
    fs::create_dir(world.path(".c.partial-foreign")).unwrap();
    pipe(&world.path(".c.partial-foreign/fvlm-export.lock"));
    assert_eq!(world.run(&["-q", "-o", "c"]).status.code(), Some(0));
    assert!(world.path(".c.partial-abcdef").exists());
    assert!(world.path(".c.partial-foreign/fvlm-export.lock").exists());
    for name in ["pipe.safetensors", "pipe.onnx"] {
        pipe(&world.path(name));
    }
    let calibration = [
        "--precision",
        "q4",
        "--calibration",
        "pipe.safetensors",
        "-o",
        "d",
    ];
    world.refused(&calibration, &["pipe.safetensors"]);
    world.refused(&["--check", "coreml", "--onnx", "pipe.onnx"], &["pipe.onnx"]);
    world.refused(&["--check", "coreml", "--onnx", "/dev/zero"], &["/dev/zero"]);
}

#[test]
fn pipes_in_the_hubs_cache_are_not_waited_for() {
    let world = World::new();
    let model = world.path("hub/hub/models--org--name");
    fs::create_dir_all(model.join("refs")).unwrap();
    fs::create_dir_all(model.join("snapshots/main")).unwrap();
    fs::write(model.join("snapshots/main/config.json"), "{}").unwrap();
    for name in ["refs/main", "snapshots/main/model.safetensors.index.json"] {
        pipe(&model.join(name));
    }
    pipe(&world.path("hub/token"));
    let mut export = world.command(&["--model", "org/name", "-o", "b"]);
    let export = export
        .env("HF_HOME", world.path("hub"))
        .env("HF_HUB_OFFLINE", "1");
    let start = Instant::now();
    let output = export.output().unwrap();
    let said = said(&output);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("is not in the local Hugging Face cache"), "{said}");
    assert!(start.elapsed() < Duration::from_secs(20));
}

#[test]
fn a_source_that_shrinks_is_an_error() {
    for attempt in 0..4 {
        let world = World::new();
        let mut flags = vec!["--model", "model"];
        flags.extend(LONG);
        let child = world.begun(&mut world.command(&flags));
        std::thread::sleep(Duration::from_millis(40 * attempt));
        let weights = fs::OpenOptions::new()
            .write(true)
            .open(world.path("model/model.safetensors"));
        weights.unwrap().set_len(100).unwrap();
        let output = child.wait_with_output().unwrap();
        let said = said(&output);
        if output.status.code() == Some(0) {
            // It was too late to matter.
            models::bundle::Bundle::open(&world.path("b")).unwrap();
            continue;
        }
        if cfg!(target_os = "linux") {
            assert_eq!(output.status.code(), Some(2), "{:?} {said}", output.status);
            assert!(
                said.contains("model.safetensors")
                    && (said.contains("shortened") || said.contains("changed")),
                "{said}"
            );
            assert_eq!(world.names(), ["model"]);
        }
    }
}

#[test]
fn exports_to_one_target_at_once_leave_one_whole_bundle() {
    let world = World::new();
    fs::create_dir(world.path(".b.partial-x")).unwrap();
    fs::write(world.path(".b.partial-x/thesis.txt"), "x").unwrap();
    for overwrite in [false, true] {
        let mut flags = vec!["-q", "-o", "b"];
        if overwrite {
            flags.push("--overwrite");
        }
        let begin = |_| world.command(&flags).stderr(Stdio::piped()).spawn().unwrap();
        let children: Vec<Child> = (0..4).map(begin).collect();
        let mut done = 0;
        for child in children {
            let output = child.wait_with_output().unwrap();
            let said = said(&output);
            match output.status.code() {
                Some(0) => done += 1,
                // Another was faster, and may not be replaced.
                code => assert!(!overwrite && code == Some(2) && said.contains("exists"), "{said}"),
            }
        }
        assert!(if overwrite { done == 4 } else { done == 1 }, "{done}");
        let bundle = models::bundle::Bundle::open(&world.path("b")).unwrap();
        bundle.verify(&world.path("b"), &|_| ()).unwrap();
    }
    assert_eq!(world.names(), [".b.partial-x", "b", "model"]);
    assert!(world.path(".b.partial-x/thesis.txt").exists());
}
