//! Threads that cannot be had: an image is decoded all the same, on the caller's thread.

#![expect(clippy::unwrap_used, reason = "a test")]

use runtime::image::{Limits, decode};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Says to the child that it is one.
const CHILD: &str = "FVLM_TEST_WITHOUT_THREADS";

fn images() -> [PathBuf; 2] {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/tall");
    // Tall enough for several threads, in one scan and in many.
    ["baseline.jpg", "progressive.jpg"].map(|name| data.join(name))
}

/// A number that other pixels would not have.
fn pixels(path: &Path) -> u64 {
    let picture = decode(&std::fs::read(path).unwrap(), "tall.jpg", &Limits::default()).unwrap();
    let numbers = picture.pixels().iter();
    numbers.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// A child of this test, in which a thread's stack is larger than what can be addressed.
#[test]
fn images_are_decoded_where_no_thread_can_be_had() {
    if std::env::var_os(CHILD).is_some() {
        assert!(
            std::thread::Builder::new().spawn(|| ()).is_err(),
            "there are threads"
        );
        for path in images() {
            println!("found {}", pixels(&path));
        }
        return;
    }
    let stack = (1_u64 << 47).to_string();
    let child = Command::new(std::env::current_exe().unwrap())
        .args([
            "images_are_decoded_where_no_thread_can_be_had",
            "--exact",
            "--nocapture",
        ])
        .arg("--test-threads=1")
        .env(CHILD, "1")
        .env("RUST_MIN_STACK", stack)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&child.stdout);
    assert!(
        child.status.success(),
        "{text}{}",
        String::from_utf8_lossy(&child.stderr)
    );
    for path in images() {
        let expected = format!("found {}", pixels(&path));
        assert!(text.contains(&expected), "{}: {text}", path.display());
    }
}
