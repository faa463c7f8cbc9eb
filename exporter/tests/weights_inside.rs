//! `fvlm-export --weights inside`: the same weights, in the graphs' own files.

#![expect(clippy::unwrap_used, reason = "a failure here is a failed test")]

use exporter::onnx::proto::{ModelProto, TensorProto};
use models::bundle::{Bundle, Variant};
use prost::Message as _;
use std::path::Path;
use std::process::{Command, Output};

fn export(folder: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fvlm-export"));
    command.current_dir(folder).args(arguments).output().unwrap()
}

fn bundle(folder: &Path, name: &str, place: &[&str]) -> Bundle {
    let forms = [
        "--precision",
        "fp32",
        "--precision",
        "fp16",
        "--precision",
        "q4",
        "--target",
        "portable",
        "--target",
        "cpu",
        "--target",
        "coreml",
        "--max-context",
        "96",
        "--prefill",
        "32",
        "--image-size",
        "128",
        "-o",
        name,
    ];
    let output = export(folder, &[&forms[..], place].concat());
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{said}");
    Bundle::open(&folder.join(name)).unwrap()
}

/// The tensors of a graph and the contents of each.
fn tensors(bundle: &Path, path: &str) -> Vec<(TensorProto, Vec<u8>)> {
    let model = ModelProto::decode(std::fs::read(bundle.join(path)).unwrap().as_slice()).unwrap();
    let folder = bundle.join(path);
    let contents = |tensor: &TensorProto| {
        if tensor.external_data.is_empty() {
            return tensor.raw_data.clone().unwrap_or_default();
        }
        let entry = |key: &str| {
            let mut entries = tensor.external_data.iter();
            let entry = entries.find(|entry| entry.key.as_deref() == Some(key)).unwrap();
            entry.value.clone().unwrap()
        };
        let number = |key: &str| entry(key).parse::<usize>().unwrap();
        let file = std::fs::read(folder.with_file_name(entry("location"))).unwrap();
        file[number("offset")..][..number("length")].to_vec()
    };
    let tensors = model.graph.unwrap().initializer;
    tensors
        .into_iter()
        .map(|tensor| {
            let contents = contents(&tensor);
            (tensor, contents)
        })
        .collect()
}

#[test]
fn every_graph_holds_the_weights_that_would_lie_beside_it() {
    let folder = tempfile::tempdir().unwrap();
    let beside = bundle(folder.path(), "beside", &[]);
    let inside = bundle(folder.path(), "inside", &["--weights", "inside"]);
    assert_eq!(bundle(folder.path(), "usual", &["--weights", "beside"]), beside);
    let data = |bundle: &Bundle| {
        bundle
            .files
            .iter()
            .filter(|file| file.path.ends_with("_data"))
            .count()
    };
    assert!(data(&beside) > 0);
    assert_eq!(data(&inside), 0);
    let graphs = |bundle: &Bundle| -> Vec<models::bundle::GraphEntry> {
        bundle
            .variants
            .iter()
            .flat_map(Variant::graphs)
            .cloned()
            .collect()
    };
    let (beside, inside) = (graphs(&beside), graphs(&inside));
    assert!(
        inside.len() > 18 && inside.len() == beside.len(),
        "{}",
        inside.len()
    );
    let mut large = 0;
    for (beside, inside) in beside.iter().zip(&inside) {
        assert_eq!(beside.path, inside.path);
        assert!(
            !beside.data.is_empty() && inside.data.is_empty(),
            "{}",
            inside.path
        );
        let expected = tensors(&folder.path().join("beside"), &beside.path);
        let found = tensors(&folder.path().join("inside"), &inside.path);
        assert_eq!(expected.len(), found.len(), "{}", inside.path);
        for ((expected, expected_bytes), (found, bytes)) in expected.iter().zip(&found) {
            assert!(
                found.external_data.is_empty() && found.data_location.is_none(),
                "{found:?}"
            );
            assert_eq!((&expected.name, &expected.dims), (&found.name, &found.dims));
            assert_eq!(expected.data_type, found.data_type);
            assert!(expected_bytes == bytes, "{}: {:?}", inside.path, found.name);
            large += usize::from(!expected.external_data.is_empty());
        }
    }
    assert!(large > 100, "{large}");
}

#[test]
fn what_makes_no_sense_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    for (arguments, words) in [
        (
            &["--weights", "inside", "--to", "coreml"][..],
            "--weights inside is about --to onnx",
        ),
        (&["--weights", "inside", "--self-contained"], "--self-contained"),
        (&["--weights", "outside"], "[possible values: beside, inside]"),
        (&["--weights", "inside", "--verify", "bundle"], "--verify"),
    ] {
        let output = export(folder.path(), arguments);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains(words), "{arguments:?}: {said}");
    }
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}
