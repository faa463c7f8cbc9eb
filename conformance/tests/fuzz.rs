//! Fuzz targets without a fuzzer: each is given its seeds, and changes to them, the same each time.
//!
//! The targets of `conformance/fuzz` are compiled here without sanitizer: so they compile, and inputs that
//! once crashed never do again, in each run of the tests. `scripts/fuzz` is what looks for more.

#![expect(clippy::print_stderr, unreachable_pub, reason = "modules of another crate")]
#![expect(clippy::unwrap_used, reason = "a test")]

#[path = "../fuzz/src/adapter.rs"]
mod adapter;
#[path = "../fuzz/src/bundle.rs"]
mod bundle;
#[path = "../fuzz/src/config.rs"]
mod config;
#[path = "../fuzz/src/constraint.rs"]
mod constraint;
#[path = "../fuzz/src/edit.rs"]
mod edit;
#[path = "../fuzz/src/folder.rs"]
mod folder;
#[path = "../fuzz/src/frames.rs"]
mod frames;
#[path = "../fuzz/src/fused.rs"]
mod fused;
#[path = "../fuzz/src/heif.rs"]
mod heif;
#[path = "../fuzz/src/image.rs"]
mod image;
#[path = "../fuzz/src/onnx.rs"]
mod onnx;
#[path = "../fuzz/src/panics.rs"]
mod panics;
#[path = "../fuzz/src/safetensors.rs"]
mod safetensors;
#[expect(dead_code, reason = "what tests of the reader need")]
#[path = "../../models/src/checkpoint/torch/write.rs"]
mod saved;
#[path = "../fuzz/src/shards.rs"]
mod shards;
#[path = "../fuzz/src/small_files.rs"]
mod small_files;
#[path = "../fuzz/src/stream.rs"]
mod stream;
#[path = "../fuzz/src/template.rs"]
mod template;
#[path = "../fuzz/src/tokenizer.rs"]
mod tokenizer;
#[path = "../fuzz/src/tokens.rs"]
mod tokens;
#[path = "../fuzz/src/torch.rs"]
mod torch;
#[path = "../fuzz/src/words.rs"]
mod words;

use std::fs;
use std::path::{Path, PathBuf};

/// A target, the longest input that it is given, and seeds that other tests have.
type Target = (&'static str, fn(&[u8]), usize, Option<&'static str>);

const TARGETS: [Target; 16] = [
    ("safetensors", safetensors::run, 4096, None),
    ("shards", shards::run, 512, None),
    ("torch", torch::run, 8192, None),
    ("adapter", adapter::run, 1024, None),
    ("config", config::run, 4096, None),
    ("constraint", constraint::run, 1024, None),
    ("small_files", small_files::run, 2048, None),
    ("bundle", bundle::run, 16384, None),
    ("onnx", onnx::run, 4096, None),
    ("image", image::run, 16384, Some("runtime/tests/data/images")),
    ("heif", heif::run, 16384, Some("runtime/tests/data/heif")),
    ("template", template::run, 8192, None),
    ("tokenizer", tokenizer::run, 8192, None),
    ("stream", stream::run, 512, None),
    ("fused", fused::run, 128, None),
    ("frames", frames::run, 16384, None),
];
/// Changed inputs of each target, unless `FVLM_FUZZ_CHANGES` says how many.
const CHANGES: usize = 400;

#[test]
fn targets_hold_on_seeds_and_on_changes_to_them() {
    let changes = std::env::var("FVLM_FUZZ_CHANGES").map_or(CHANGES, |number| number.parse().unwrap());
    panics::begin();
    for (name, run, longest, shared) in TARGETS {
        let seeds = seeds(name, shared);
        assert!(!seeds.is_empty(), "{name} has no seeds");
        for (path, seed) in &seeds {
            at(name, &path.display().to_string(), run, seed);
        }
        let mut random = Random(0x9e37_79b9_7f4a_7c15);
        for number in 0..changes {
            let input = changed(&seeds, &mut random, longest);
            at(name, &format!("change {number}"), run, &input);
        }
    }
    for entry in fs::read_dir(std::env::temp_dir()).unwrap().flatten() {
        let name = entry.file_name().into_string().unwrap_or_default();
        if name.starts_with("fvlm-fuzz-") && name.ends_with(&format!("-{}", std::process::id())) {
            fs::remove_dir_all(entry.path()).unwrap();
        }
    }
}

#[test]
fn no_target_is_left_out() {
    let modules = include_str!("../fuzz/src/lib.rs").lines();
    let modules = modules.filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';'));
    let mut targets = TARGETS.map(|(name, ..)| name);
    targets.sort_unstable();
    assert!(modules.eq(targets), "{targets:?}");
}

/// A panic says which input it was.
fn at(name: &str, what: &str, run: fn(&[u8]), input: &[u8]) {
    let held = std::panic::catch_unwind(|| run(input));
    assert!(held.is_ok(), "{name}: {what}: {}", input.escape_ascii());
}

/// Inputs of the target's folder and of another one, in order.
fn seeds(name: &str, shared: Option<&str>) -> Vec<(PathBuf, Vec<u8>)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folders = [
        Some(root.join("fuzz/seeds").join(name)),
        shared.map(|folder| root.join("..").join(folder)),
    ];
    let mut found = Vec::new();
    for folder in folders.into_iter().flatten().filter(|folder| folder.is_dir()) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_file() {
                found.push((path.clone(), fs::read(path).unwrap()));
            }
        }
    }
    found.sort();
    found
}

/// A seed with up to six changes: bytes of another value, more, fewer, or some of another seed.
fn changed(seeds: &[(PathBuf, Vec<u8>)], random: &mut Random, longest: usize) -> Vec<u8> {
    let seed = |random: &mut Random| seeds[random.below(seeds.len())].1.clone();
    let mut data = seed(random);
    for _ in 0..=random.below(6) {
        let at = random.below(data.len() + 1);
        let end = (at + 1 + random.below(32)).min(data.len());
        match random.below(4) {
            0 if at < data.len() => data[at] = random.byte(),
            1 => data.insert(at, random.byte()),
            2 if at < end => drop(data.drain(at..end)),
            _ => {
                let other = seed(random);
                let from = random.below(other.len() + 1);
                let to = (from + random.below(64)).min(other.len());
                drop(data.splice(at..at, other[from..to].to_vec()));
            }
        }
    }
    data.truncate(longest);
    data
}

/// Numbers that look random (xorshift).
struct Random(u64);

impl Random {
    /// Below `end`, or 0.
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        let number = usize::try_from(self.0 >> 33).unwrap_or_default();
        number % end.max(1)
    }

    fn byte(&mut self) -> u8 {
        u8::try_from(self.below(256)).unwrap_or_default()
    }
}
