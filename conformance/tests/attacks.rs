//! What does `fvlm-conform` do with pipes and devices in the place of its inputs? The real binary: each is refused by
//! its name, and nothing is waited for.

#![cfg(unix)]
#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]

use exporter::{ExportPlan, Silent, Source};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Longer than any of these takes on a busy machine: what is not over by then waits for somebody.
const PATIENCE: Duration = Duration::from_secs(120);

/// Runs in `folder`; the exit code and all that is said.
#[track_caller]
fn run(folder: &Path, arguments: &[&str]) -> (Option<i32>, String) {
    let output = tempfile::NamedTempFile::new_in(folder).unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_fvlm-conform"))
        .current_dir(folder)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(output.reopen().unwrap())
        .stderr(output.reopen().unwrap())
        .spawn()
        .unwrap();
    let deadline = Instant::now() + PATIENCE;
    let code = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status.code();
        }
        if Instant::now() > deadline {
            child.kill().unwrap();
            child.wait().unwrap();
            panic!("{arguments:?} waits");
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    let said = std::fs::read(output.path()).unwrap();
    (code, String::from_utf8_lossy(&said).into_owned())
}

/// Puts a pipe, which nobody writes to, and then a device without an end at `at`; both are refused by that name.
#[track_caller]
fn refuses(folder: &Path, at: &str, arguments: &[&str]) {
    let path = folder.join(at);
    let _ = std::fs::remove_file(&path);
    assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
    for found in ["a pipe", "a device"] {
        let (code, said) = run(folder, arguments);
        assert_eq!(code, Some(2), "{arguments:?}: {said}");
        let name = Path::new(at).file_name().unwrap().to_str().unwrap();
        let expected = format!("it is {found}, expected a regular file");
        let words = said.contains(name) && (said.contains(&expected) || said.contains("not a regular file"));
        assert!(words && !said.contains("panicked"), "{arguments:?}: {said}");
        std::fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink("/dev/zero", &path).unwrap();
    }
    std::fs::remove_file(&path).unwrap();
}

#[test]
fn inputs_of_suites_are_files() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    refuses(folder, "r.json", &["run", "--reference", "r.json"]);
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/synth-demo-llava-1.json");
    std::fs::copy(golden, folder.join("r.json")).unwrap();
    refuses(folder, "r.safetensors", &["run", "--reference", "r.json"]);
    refuses(folder, "c.json", &["bench", "--chart", "c.json"]);
    let synth = ["synth", "--size", "demo", "--layout", "llava", "-o", "made"];
    refuses(
        folder,
        "t.json",
        &[&synth[..], &["--tokenizer", "t.json"]].concat(),
    );
    assert!(!folder.join("made").exists());
    // An engine's library: the system's loader would wait for it.
    let pipe = folder.join("libonnxruntime.so");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let named = [
        "run",
        "--suite",
        "ops",
        "--provider",
        "cpu",
        "--onnxruntime",
        "libonnxruntime.so",
    ];
    let (code, said) = run(folder, &named);
    assert_eq!(code, Some(2), "{said}");
    assert!(
        !cfg!(feature = "ort") || said.contains("is neither a file nor a directory"),
        "{said}"
    );
}

#[test]
#[cfg(feature = "tract")]
fn inputs_about_a_bundle_are_files() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let plan = ExportPlan::new(Source::Demo, folder.join("fastvlm-bundle"));
    exporter::export(&plan, &mut Silent).unwrap();
    for arguments in [
        &["quality", "--compare", "x"][..],
        &["quality", "--reference", "x"],
        &["quality", "--agreement", "--answers", "x"],
        &["quality", "--image", "x"],
        &["bench", "--image", "x"],
    ] {
        refuses(folder, "x", &[arguments, &["--provider", "tract"]].concat());
    }
    let contract = std::fs::read(folder.join("fastvlm-bundle/bundle.json")).unwrap();
    for arguments in [
        &["bench"][..],
        &["quality", "--against", "fastvlm-bundle"],
        &["run", "--bundle", "fastvlm-bundle"],
    ] {
        refuses(folder, "fastvlm-bundle/bundle.json", arguments);
    }
    std::fs::write(folder.join("fastvlm-bundle/bundle.json"), contract).unwrap();
}

#[test]
#[cfg(feature = "tract")]
fn inputs_of_a_calibration_are_files() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    std::fs::create_dir_all(folder.join("photos")).unwrap();
    std::fs::create_dir_all(folder.join("model")).unwrap();
    for (name, contents) in exporter::demo::FILES {
        std::fs::write(folder.join("model").join(name), contents).unwrap();
    }
    let flags = [
        "--checkpoint",
        "model",
        "--provider",
        "tract",
        "-o",
        "S.safetensors",
    ];
    let calibrate = |images: &'static str| [&["calibrate", images][..], &flags].concat();
    refuses(folder, "x.png", &calibrate("x.png"));
    refuses(folder, "photos/x.png", &calibrate("photos"));
    let sensitivity = ["sensitivity", "--checkpoint", "model", "--provider", "tract"];
    for name in ["config.json", "model.safetensors", "tokenizer.json"] {
        let kept = std::fs::read(folder.join("model").join(name)).unwrap();
        refuses(folder, &format!("model/{name}"), &sensitivity);
        std::fs::write(folder.join("model").join(name), kept).unwrap();
    }
    assert!(!folder.join("S.safetensors").exists());
}
