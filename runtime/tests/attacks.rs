//! What does `fvlm-run` do among others? The real binary over the bundle of `cli.rs`: closed and full outputs, names
//! and answers that are not kind, files that are none, lines without an end, signals.

#![cfg(all(unix, feature = "tract"))]
#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]

use programs::testing::hearing;
use serde_json::Value;
use sha2::Digest as _;
use std::ffi::OsStr;
use std::io::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

const PROGRAM: &str = env!("CARGO_BIN_EXE_fvlm-run");

/// A folder with a red image and a copy of the bundle, whose answer to it is `R.`.
struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Folder {
        let folder = Folder(tempfile::tempdir().unwrap());
        let red = image::RgbImage::from_pixel(8, 8, image::Rgb([255, 0, 0]));
        red.save(folder.path("red.png")).unwrap();
        let bundle = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/bundle");
        copy(&bundle, &folder.path("fastvlm-bundle"));
        folder
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(PROGRAM);
        command
            .current_dir(self.0.path())
            .args(["--provider", "tract"])
            .args(arguments)
            .stdin(Stdio::null());
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    fn run_with(&self, arguments: &[&str], stdin: &[u8]) -> Output {
        let mut child = self.begin(&mut self.command(arguments));
        // The program may end before it has read everything.
        let _ = child.stdin.take().unwrap().write_all(stdin);
        child.wait_with_output().unwrap()
    }

    fn begin(&self, command: &mut Command) -> Child {
        let command = command.stdin(Stdio::piped()).stdout(Stdio::piped());
        command.stderr(Stdio::piped()).spawn().unwrap()
    }

    /// Writes a file of the bundle, and its length and hash into the contract.
    fn put(&self, name: &str, text: &str) {
        std::fs::write(self.path("fastvlm-bundle").join(name), text).unwrap();
        let contract = self.path("fastvlm-bundle/bundle.json");
        let mut bundle: Value = serde_json::from_slice(&std::fs::read(&contract).unwrap()).unwrap();
        for file in bundle["files"].as_array_mut().unwrap() {
            if file["path"] == name {
                let digest = sha2::Sha256::digest(text);
                file["bytes"] = text.len().into();
                let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
                file["sha256"] = hex.into();
            }
        }
        std::fs::write(contract, bundle.to_string()).unwrap();
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

fn said(output: &Output) -> String {
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!said.contains("panicked"), "{said}");
    said
}

fn stdout(output: &Output) -> &str {
    std::str::from_utf8(&output.stdout).unwrap()
}

/// Whether a terminal would do something else than show it.
fn drives(text: &str) -> bool {
    text.chars()
        .any(|c| (c.is_control() && c != '\n') || c == '\u{202e}')
}

#[track_caller]
fn refused(output: &Output, words: &str) {
    let said = said(output);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains(words), "no `{words}` in {said}");
}

#[test]
fn an_answer_that_is_lost_is_an_error() {
    let folder = Folder::new();
    let mut wanted = vec![">&-", "1</dev/null"];
    if cfg!(target_os = "linux") {
        wanted.push(">/dev/full");
    }
    let provider = "--provider tract";
    for closed in wanted {
        for flags in [
            format!("{provider} red.png"),
            format!("{provider} --json red.png"),
            format!("{provider} red.png red.png"),
            format!("{provider} -i -p hi red.png"),
            "--help".to_owned(),
            "--version".to_owned(),
            "--generate man".to_owned(),
        ] {
            let mut shell = Command::new("bash");
            shell.args(["-c", &format!("exec \"$0\" {flags} {closed}"), PROGRAM]);
            let output = shell
                .current_dir(folder.0.path())
                .stdin(Stdio::null())
                .output()
                .unwrap();
            let said = said(&output);
            assert_eq!(output.status.code(), Some(2), "{flags} {closed}: {said}");
            assert!(said.contains("cannot write"), "{flags} {closed}: {said}");
        }
    }
    // A stdout that others made not to block is waited for.
    let script = "python3 -c 'import os; os.set_blocking(1, False)'; exec \"$0\" --provider tract red.png";
    let mut shell = Command::new("bash");
    let output = shell
        .args(["-c", script, PROGRAM])
        .current_dir(folder.0.path())
        .output()
        .unwrap();
    assert_eq!(stdout(&output), "R.\n", "{}", said(&output));
}

#[test]
fn names_do_not_drive_the_terminal_and_json_has_them() {
    let folder = Folder::new();
    let name = "a\u{1b}[31m\u{9b}2J\u{202e}\nerror: forged.png";
    std::fs::copy(folder.path("red.png"), folder.path(name)).unwrap();
    let output = folder.run(&[name, "red.png"]);
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    assert!(!drives(stdout(&output)), "{:?}", stdout(&output));
    assert!(!stdout(&output).contains("\nerror"), "{}", stdout(&output));
    let output = folder.run(&["--json", name]);
    assert!(!drives(stdout(&output)), "{:?}", stdout(&output));
    let record: Value = serde_json::from_str(stdout(&output)).unwrap();
    assert_eq!(record["images"][0], name);
    assert_eq!(record.get("images_hex"), None);
    for arguments in [
        &["no\u{1b}[31m\nerror: forged.png"][..],
        &["--model", "no\u{1b}[31m\nerror: forged", "red.png"],
        &["--provider", "\u{1b}[31m", "red.png"],
        &["--\u{1b}]0;owned\u{7}"],
    ] {
        let output = folder.run(arguments);
        let said = said(&output);
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(!drives(&said) && !said.contains("\nerror: forged"), "{said:?}");
    }
}

#[test]
fn names_that_are_no_text_are_said_byte_by_byte() {
    if cfg!(target_vendor = "apple") {
        // Its file systems refuse such names.
        return;
    }
    let folder = Folder::new();
    let odd = OsStr::from_bytes(b"a\xff.png");
    std::fs::copy(folder.path("red.png"), folder.0.path().join(odd)).unwrap();
    let missing = OsStr::from_bytes(b"b\xfe.png");
    let mut command = folder.command(&["--json", "red.png"]);
    let output = command.args([odd, missing]).output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{}", said(&output));
    let lines = stdout(&output).lines();
    let records: Vec<Value> = lines.map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(records[0].get("images_hex"), None);
    assert_eq!(records[1]["images"][0], "a\u{fffd}.png");
    assert_eq!(records[1]["images_hex"][0], "61ff2e706e67");
    assert!(records[2]["error"].is_string());
    assert_eq!(records[2]["images_hex"][0], "62fe2e706e67");
}

#[test]
fn answers_do_not_drive_the_terminal_and_json_has_them() {
    let folder = Folder::new();
    let tokenizer = std::fs::read_to_string(folder.path("fastvlm-bundle/tokenizer.json")).unwrap();
    // How vocabularies of bytes write ESC.
    let hostile = tokenizer.replace("\"R\"", "\"\u{11b}[31mR\"");
    assert_ne!(hostile, tokenizer);
    folder.put("tokenizer.json", &hostile);
    let output = folder.run(&["red.png"]);
    assert_eq!(stdout(&output), "\u{fffd}[31mR.\n", "{}", said(&output));
    let output = folder.run(&["red.png", "red.png"]);
    assert!(
        !drives(stdout(&output)) && stdout(&output).contains("[31mR."),
        "{}",
        said(&output)
    );
    let output = folder.run(&["--json", "red.png"]);
    assert!(!drives(stdout(&output)), "{:?}", stdout(&output));
    let record: Value = serde_json::from_str(stdout(&output)).unwrap();
    assert_eq!(record["text"], "\u{1b}[31mR.");
}

#[test]
fn a_byte_order_mark_is_no_part_of_a_command() {
    let folder = Folder::new();
    let chat = "\u{feff}/image red.png\r\nwhat?\r\n";
    let output = folder.run_with(&["-i"], chat.as_bytes());
    assert_eq!(
        (stdout(&output), output.status.code()),
        ("R.\n", Some(0)),
        "{}",
        said(&output)
    );
}

#[test]
fn a_line_without_an_end_is_refused() {
    let folder = Folder::new();
    let start = Instant::now();
    let zero = std::fs::File::open("/dev/zero").unwrap();
    let output = folder.command(&["-i"]).stdin(zero).output().unwrap();
    refused(&output, "a line of the chat is longer than 1048576 bytes");
    assert!(start.elapsed() < Duration::from_secs(20));
}

#[test]
fn pipes_and_devices_are_not_waited_for() {
    for name in [
        "bundle.json",
        "tokenizer.json",
        "chat_template.jinja",
        "onnx/embed_tokens.onnx",
    ] {
        let folder = Folder::new();
        let path = folder.path("fastvlm-bundle").join(name);
        std::fs::remove_file(&path).unwrap();
        assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
        refused(&folder.run(&["red.png"]), name);
        std::fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink("/dev/zero", &path).unwrap();
        refused(&folder.run(&["red.png"]), name);
    }
    let folder = Folder::new();
    refused(&folder.run(&["/dev/zero"]), "/dev/zero");
    let pipe = folder.path("pipe.png");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let output = folder.run(&["red.png", "pipe.png", "red.png"]);
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(
        stdout(&output),
        "==> red.png <==\nR.\n\n==> red.png <==\nR.\n",
        "{}",
        said(&output)
    );
    assert!(said(&output).contains("it is a pipe, expected a regular file"));
    for (name, file, is_pipe) in [(".", "a.jsonl", false), ("pipe.png", "b.jsonl", true)] {
        let output = folder.run(&["--output", file, name]);
        let written = std::fs::read_to_string(folder.path(file)).unwrap();
        assert_eq!(written.lines().count(), 1, "{written} {}", said(&output));
        assert_eq!(written.contains("it is a pipe"), is_pipe, "{written}");
    }
    // What a shell gives in the place of a file is an image like any other.
    let mut shell = Command::new("bash");
    let script = "\"$0\" --provider tract <(cat red.png) && \"$0\" --provider tract /dev/stdin < red.png";
    let output = shell
        .args(["-c", script, PROGRAM])
        .current_dir(folder.0.path())
        .output()
        .unwrap();
    assert_eq!(stdout(&output), "R.\nR.\n", "{}", said(&output));
}

/// An image that is waited for keeps no answer back that is before it.
#[test]
fn answers_do_not_wait_for_an_image_behind_them() {
    let folder = Folder::new();
    let picture = std::fs::read(folder.path("red.png")).unwrap();
    let mut child = folder.begin(&mut folder.command(&["missing.png", "red.png", "-"]));
    let mut stdin = child.stdin.take().unwrap();
    let (sender, receiver) = std::sync::mpsc::channel::<()>();
    let writer = std::thread::spawn(move || {
        let answered = receiver.recv_timeout(Duration::from_secs(60)).is_ok();
        stdin.write_all(&picture).unwrap();
        answered
    });
    let first = "==> red.png <==\nR.\n";
    let mut begin = vec![0; first.len()];
    std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut begin).unwrap();
    assert_eq!(std::str::from_utf8(&begin).unwrap(), first);
    let _ = sender.send(());
    assert!(writer.join().unwrap(), "the answer waited for the next image");
    let output = child.wait_with_output().unwrap();
    assert_eq!(stdout(&output), "\n==> stdin <==\nR.\n", "{}", said(&output));
}

#[test]
fn signals_end_a_chat_as_they_end_others() {
    let folder = Folder::new();
    for (name, ended) in [
        ("-TERM", (Some(15), None)),
        ("-HUP", (Some(1), None)),
        ("-INT", (None, Some(130))),
    ] {
        let mut child = folder.begin(&mut hearing(&folder.command(&["-i", "red.png"])));
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(b"what?\n").unwrap();
        let mut answer = [0; 3];
        std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut answer).unwrap();
        assert_eq!(&answer, b"R.\n");
        let id = child.id().to_string();
        let deadline = Instant::now() + Duration::from_secs(30);
        // The first Ctrl-C may come when the answer is written but not yet ended: then it ends only that.
        while child.try_wait().unwrap().is_none() && Instant::now() < deadline {
            assert!(Command::new("kill").args([name, &id]).status().unwrap().success());
            std::thread::sleep(Duration::from_millis(20));
        }
        // One that goes on is not waited for.
        let _ = child.kill();
        let output = child.wait_with_output().unwrap();
        assert_eq!((output.status.signal(), output.status.code()), ended, "{name}");
        drop(stdin);
    }
}

#[test]
fn ignored_signals_stay_ignored() {
    let folder = Folder::new();
    let script = "trap '' INT HUP; exec \"$0\" --provider tract -i red.png";
    let mut shell = Command::new("bash");
    shell.args(["-c", script, PROGRAM]).current_dir(folder.0.path());
    let mut child = folder.begin(&mut shell);
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(b"what?\n").unwrap();
    let mut answer = [0; 3];
    std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut answer).unwrap();
    for name in ["-INT", "-HUP", "-INT"] {
        let kill = Command::new("kill")
            .args([name, &child.id().to_string()])
            .status();
        assert!(kill.unwrap().success());
    }
    std::thread::sleep(Duration::from_millis(100));
    stdin.write_all(b"and now?\n").unwrap();
    drop(stdin);
    let output = child.wait_with_output().unwrap();
    assert_eq!(
        (stdout(&output), output.status.code()),
        ("R.\n", Some(0)),
        "{}",
        said(&output)
    );
}

#[test]
fn more_threads_than_help_are_not_started() {
    let folder = Folder::new();
    let start = Instant::now();
    let output = folder.run(&["--threads", "1000", "red.png"]);
    assert_eq!(
        (stdout(&output), output.status.code()),
        ("R.\n", Some(0)),
        "{}",
        said(&output)
    );
    assert!(start.elapsed() < Duration::from_secs(20));
    let used = runtime::Options::default().with_threads(1000).thread_count();
    assert!(
        used < 1000 && said(&output).contains(&format!("{used} threads are used")),
        "{}",
        said(&output)
    );
}
