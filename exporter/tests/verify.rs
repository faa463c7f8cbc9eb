//! A bundle is verified: `fvlm-export --verify`, and what a changed byte of its small files becomes when it is opened.

#![expect(clippy::unwrap_used, reason = "a failure here is a failed test")]

use models::bundle::{Bundle, FileEntry};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Runs the program; exit code, stdout and stderr.
fn run(directory: &Path, arguments: &[&str]) -> (Option<i32>, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fvlm-export"));
    let output = command.current_dir(directory).args(arguments).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

/// The demo model, exported with these flags.
fn exported(flags: &[&str]) -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let (code, _, stderr) = run(directory.path(), &[&["-o", "bundle"], flags].concat());
    assert_eq!(code, Some(0), "{stderr}");
    let bundle = directory.path().join("bundle");
    (directory, bundle)
}

fn flip(path: &Path, place: usize, bit: u8) {
    let mut bytes = fs::read(path).unwrap();
    bytes[place] ^= 1 << bit;
    fs::write(path, bytes).unwrap();
}

#[test]
fn every_file_is_read_and_compared() {
    let (world, directory) = exported(&["--precision", "q4"]);
    let (code, stdout, stderr) = run(world.path(), &["--verify", "bundle"]);
    assert_eq!((code, stderr.as_str()), (Some(0), ""));
    assert!(stdout.starts_with("bundle is whole: 1"), "{stdout}");
    let bundle = Bundle::open(&directory).unwrap();
    for FileEntry { path, bytes, .. } in &bundle.files {
        let place = usize::try_from(bytes / 2).unwrap();
        flip(&directory.join(path), place, 3);
        let (code, stdout, stderr) = run(world.path(), &["--verify", "bundle"]);
        assert_eq!((code, stdout.as_str()), (Some(1), ""), "{path}: {stderr}");
        let expected = format!("error: bundle: `{path}` has SHA-256 ");
        assert!(stderr.starts_with(&expected), "{path}: {stderr}");
        let (code, stdout, _) = run(world.path(), &["--verify", "bundle", "--json"]);
        let said: serde_json::Value = serde_json::from_str(&stdout).unwrap();
        assert_eq!((code, &said["whole"]), (Some(1), &serde_json::json!(false)));
        assert_eq!(said["problems"].as_array().unwrap().len(), 1, "{stdout}");
        flip(&directory.join(path), place, 3);
    }
    let (code, stdout, _) = run(world.path(), &["--verify", "bundle", "--json"]);
    let said: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(code, Some(0));
    assert_eq!(said["files"], bundle.files.len());
    assert_eq!(
        said["bytes"],
        bundle.files.iter().map(|file| file.bytes).sum::<u64>()
    );
    for (arguments, says) in [
        (&["--verify", "elsewhere"][..], "elsewhere is not a bundle"),
        (
            &["--verify", "bundle", "--overwrite"],
            "cannot be used with '--overwrite'",
        ),
    ] {
        let (code, stdout, stderr) = run(world.path(), arguments);
        assert_eq!((code, stdout.as_str()), (Some(2), ""), "{stderr}");
        assert!(stderr.contains(says), "{stderr}");
    }
}

/// A contract that cannot be read is a bundle that is not as it was written.
#[test]
fn a_broken_contract_is_a_finding() {
    let (world, directory) = exported(&["--precision", "fp32"]);
    let path = directory.join("bundle.json");
    let whole = fs::read(&path).unwrap();
    let text = String::from_utf8(whole.clone()).unwrap();
    let wide: Vec<u8> = text.encode_utf16().flat_map(u16::to_le_bytes).collect();
    for broken in [&whole[..whole.len() / 2], &wide, b""] {
        fs::write(&path, broken).unwrap();
        let bundle = directory.to_str().unwrap();
        let (code, stdout, stderr) = run(world.path(), &["--verify", bundle]);
        assert_eq!((code, stdout.as_str()), (Some(1), ""), "{stderr}");
        assert!(
            stderr.contains("bundle.json") && !stderr.contains("was written"),
            "{stderr}"
        );
    }
}

/// All that an answer depends on, of a contract.
fn meaning(bundle: &Bundle) -> String {
    let Bundle {
        kv,
        image,
        prompt,
        variants,
        packages,
        ..
    } = bundle;
    format!("{kv:?} {image:?} {prompt:?} {variants:?} {packages:?}")
}

/// Bytes of `bundle.json`, which has no hash, all along it, a bit each: an error, or nothing that an answer depends on.
#[test]
fn a_changed_contract_is_refused_or_means_the_same() {
    for flags in [
        &["--precision", "fp32"][..],
        &["--target", "coreml", "--max-context", "96", "--prefill", "16"],
        &["--image-size", "512", "--image-size", "128"],
    ] {
        let (_world, directory) = exported(flags);
        let expected = meaning(&Bundle::open(&directory).unwrap());
        let path = directory.join("bundle.json");
        let whole = fs::read(&path).unwrap();
        let (mut refused, mut same) = (0, 0);
        for place in (0..whole.len()).step_by(whole.len() / 2000) {
            let mut bytes = whole.clone();
            bytes[place] ^= 1 << (place * 7 % 8);
            fs::write(&path, &bytes).unwrap();
            match Bundle::open(&directory) {
                Err(_) => refused += 1,
                Ok(found) => {
                    same += 1;
                    let line = bytes[..place].iter().filter(|byte| **byte == b'\n').count() + 1;
                    let text = String::from_utf8_lossy(&bytes);
                    let said = text.lines().nth(line - 1).unwrap_or_default();
                    // Of nodes a contract says the opset for people; no reader takes it from there.
                    assert!(
                        meaning(&found) == expected || said.contains("\"opset\""),
                        "{flags:?}: line {line}, {said:?} is believed"
                    );
                }
            }
        }
        // White space, names for people, and hashes of files that are read later.
        assert!(refused > same, "{flags:?}: {refused} refused, {same} the same");
    }
}
