//! torch files: what torch itself wrote is read as it reads it, and attacks are refused in a sentence.

use super::super::tensor_file::{StoredTensor, StoredType, TensorFile};
use super::write::{self, Saved, text};
use super::*;
use crate::dtype::DType;
use serde_json::{Value, json};
use std::fs;
use std::path::PathBuf;

mod attacks;

/// Files that `torch_files.py` of conformance's recorder made with torch, and what torch reads of them.
fn made_by_torch() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data/torch")
}

fn floats(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

fn opened(bytes: &[u8]) -> Result<TensorFile, String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pytorch_model.bin");
    fs::write(&path, bytes).unwrap();
    TensorFile::open(&path).map_err(|error| error.to_string())
}

fn read(file: &TensorFile, name: &str) -> Vec<f32> {
    let tensor = file.find(name).unwrap();
    let mut values = vec![f32::NAN; usize::try_from(tensor.elements()).unwrap()];
    file.read(tensor, 0, &mut values).unwrap();
    values
}

#[test]
fn files_of_torch_are_read_as_torch_reads_them() {
    let expected: Value =
        serde_json::from_slice(&fs::read(made_by_torch().join("expected.json")).unwrap()).unwrap();
    let mut failures = Vec::new();
    for (name, expected) in expected.as_object().unwrap() {
        let found = match TensorFile::open(&made_by_torch().join(name)) {
            Ok(file) => read_by_us(&file),
            Err(error) => {
                let message = error.to_string();
                let says = expected["refused"].as_str();
                if says.is_none_or(|says| !message.contains(says)) || message.lines().count() != 1 {
                    failures.push(format!("{message}, expected {says:?}"));
                }
                continue;
            }
        };
        if found != *expected {
            failures.push(format!("{name}: {found}, expected {expected}"));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// What a file holds, as the recorder writes it.
fn read_by_us(file: &TensorFile) -> Value {
    let facts = |tensor: &StoredTensor| {
        let mut bytes: Vec<u8> = Vec::new();
        file.each_piece(tensor, &mut |piece| bytes.extend(piece));
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let facts = json!({"dtype": tensor.dtype.name(), "shape": tensor.shape, "bytes": hex});
        (tensor.name.clone(), facts)
    };
    let tensors: serde_json::Map<String, Value> = file.tensors().iter().map(facts).collect();
    json!({"tensors": tensors, "skipped": file.skipped()})
}

/// Both forms, with all that a view can be.
fn views() -> Saved {
    let mut saved = Saved::default();
    let count: Vec<f32> = (0_u8..24).map(f32::from).collect();
    saved.add("whole", "FloatStorage", &[2, 3, 4], floats(&count));
    saved.view("tied", 0, 0, &[2, 3, 4], &[12, 4, 1]);
    saved.view("turned", 0, 0, &[4, 3, 2], &[1, 4, 12]);
    saved.view("part", 0, 7, &[2, 2], &[12, 2]);
    saved.view("scalar", 0, 23, &[], &[]);
    saved.view("odd strides of one", 0, 4, &[1, 3], &[99, 1]);
    saved.view("repeated", 0, 5, &[2, 3], &[0, 0]);
    saved.view("empty", 0, 9, &[0, 4], &[4, 1]);
    saved.add("half", "HalfStorage", &[3], vec![0, 0x3c, 0, 0xc0, 0xff, 0x7b]);
    saved.add("brain", "BFloat16Storage", &[2], vec![0x80, 0x3f, 0x20, 0xc1]);
    saved.add("ints", "LongStorage", &[1], 7_i64.to_le_bytes().to_vec());
    saved.add("bools", "BoolStorage", &[2], vec![0, 1]);
    saved
}

#[test]
fn views_are_read_as_what_they_stand_for() {
    for bytes in [views().archive(), views().legacy()] {
        let file = opened(&bytes).unwrap();
        assert_eq!(read(&file, "tied"), read(&file, "whole"));
        let turned = read(&file, "turned");
        assert_eq!(turned[..6], [0.0, 12.0, 4.0, 16.0, 8.0, 20.0]);
        // Any run of the whole is the same as in the whole.
        let tensor = file.find("turned").unwrap();
        for from in 0..24 {
            let mut some = vec![0.0; 24 - from];
            file.read(tensor, from, &mut some).unwrap();
            assert_eq!(some, turned[from..]);
        }
        assert_eq!(read(&file, "part"), [7.0, 9.0, 19.0, 21.0]);
        assert_eq!(read(&file, "scalar"), [23.0]);
        assert_eq!(read(&file, "odd strides of one"), [4.0, 5.0, 6.0]);
        assert_eq!(read(&file, "repeated"), [5.0; 6]);
        assert_eq!(read(&file, "empty"), [0.0; 0]);
        assert_eq!(read(&file, "half"), [1.0, -2.0, 65504.0]);
        assert_eq!(read(&file, "brain"), [1.0, -10.0]);
        assert_eq!(
            file.find("half").unwrap().dtype,
            StoredType::Float(DType::Float16)
        );
        let mut one = [0.0];
        let message = file
            .read(file.find("ints").unwrap(), 0, &mut one)
            .unwrap_err()
            .to_string();
        assert!(
            message.contains("`ints` has dtype I64, expected float32"),
            "{message}"
        );
        let message = file.read(tensor, 24, &mut one).unwrap_err().to_string();
        assert!(message.contains("has not 1 elements from 24"), "{message}");
        assert!(TensorFile::same((&file, tensor), (&file, tensor)));
        let other = opened(&bytes).unwrap();
        assert!(TensorFile::same(
            (&file, tensor),
            (&other, other.find("turned").unwrap())
        ));
        assert!(!TensorFile::same(
            (&file, tensor),
            (&other, other.find("whole").unwrap())
        ));
    }
}

#[test]
fn a_view_longer_than_a_run_is_read_in_runs() {
    let mut saved = Saved::default();
    let count: Vec<f32> = (0_u16..6000).map(f32::from).collect();
    saved.add("whole", "FloatStorage", &[60, 100], floats(&count));
    saved.view("turned", 0, 0, &[100, 60], &[1, 100]);
    let file = opened(&saved.archive()).unwrap();
    let expected: Vec<f32> = (0..6000).map(|i| count[i % 60 * 100 + i / 60]).collect();
    assert_eq!(read(&file, "turned"), expected);
    let mut bytes: Vec<u8> = Vec::new();
    file.each_piece(file.find("turned").unwrap(), &mut |piece| bytes.extend(piece));
    assert_eq!(bytes, floats(&expected));
}

#[test]
fn what_stands_around_a_state_dict_is_named() {
    for around in ["state_dict", "model", "module", "model_state_dict"] {
        let mut saved = views();
        saved.around = Some(around.to_owned());
        text(&mut saved.more, "epoch");
        saved.more.extend(b"K\x07");
        text(&mut saved.more, "optimizer");
        saved.more.extend(b"}");
        for bytes in [saved.archive(), saved.legacy()] {
            let file = opened(&bytes).unwrap();
            assert_eq!(file.skipped(), ["epoch", "optimizer"]);
            assert_eq!(read(&file, "scalar"), [23.0]);
        }
    }
    let mut saved = views();
    text(&mut saved.more, "step");
    saved.more.extend(b"K\x07");
    text(&mut saved.more, "notes");
    saved.more.extend(b"]");
    assert_eq!(opened(&saved.archive()).unwrap().skipped(), ["notes", "step"]);
}

/// Python 2 wrote texts as bytes, ordered dicts from lists of pairs, and parts of storages.
#[test]
fn files_of_python_2_are_read() {
    let mut bytes = write::before(true);
    bytes.extend(b"\x80\x02ccollections\nOrderedDict\n](](U\x01wctorch._utils\n_rebuild_tensor\n(");
    bytes.extend(b"(U\x07storagectorch\nFloatStorage\nU\x02k1U\x03cpuK\x06(U\x02k2K\x02K\x03ttQ");
    bytes.extend(b"K\x01K\x02\x85K\x01\x85tRee\x85R.\x80\x02](U\x02k1e.");
    bytes.extend(6_u64.to_le_bytes());
    bytes.extend(floats(&[0.0, 1.0, 2.0, 3.0, 4.0, 5.0]));
    assert_eq!(read(&opened(&bytes).unwrap(), "w"), [3.0, 4.0]);
    let at = bytes.windows(4).position(|bytes| bytes == b"K\x02K\x03").unwrap();
    for (to, says) in [(4, "elements 4 to 4 + 3 of a storage that has 6"), (3, "")] {
        bytes[at + 1] = to;
        match validate(&bytes) {
            Ok(_) => assert_eq!(says, ""),
            Err(problem) => assert!(!says.is_empty() && problem.contains(says), "{problem}"),
        }
    }
}

#[test]
fn the_format_is_told_by_the_first_bytes() {
    // A header of 640 bytes begins as a pickle of protocol 2 does.
    let mut safetensors = 640_u64.to_le_bytes().to_vec();
    safetensors.extend(format!("{{}}{}", " ".repeat(638)).as_bytes());
    assert!(!looks_like(&safetensors));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.bin");
    fs::write(&path, &safetensors).unwrap();
    assert!(TensorFile::open(&path).unwrap().tensors().is_empty());
    for (bytes, says) in [
        (
            &b"hello, this is no file of tensors"[..],
            "neither safetensors nor what `torch.save` writes",
        ),
        (
            b"version https://git-lfs.github.com/spec/v1\n",
            "a pointer of Git LFS",
        ),
        (b"", "0 bytes"),
    ] {
        fs::write(&path, bytes).unwrap();
        let message = TensorFile::open(&path).unwrap_err().to_string();
        assert!(message.contains(says), "{message}");
    }
    fs::write(&path, views().archive()).unwrap();
    let message = TensorFile::open_safetensors(&path).unwrap_err().to_string();
    assert!(
        message.contains("a zip archive, as PyTorch writes weights"),
        "{message}"
    );
}
