//! A graph that calls a fused operator wrongly is an error of the session, never a crash.

#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]

use conformance::setup::{required, subject};
use conformance::tiny::Given;
use models::dtype::DType;
use models::fused::{Encoding, Fused, Norm};
use models::graph::{Builder, Dim, Rows, WeightForm};
use runtime::backend::session::Tensor;
use runtime::{Options, Provider, backend};
use std::path::{Path, PathBuf};

/// `x [batch,8] -> [batch,16]` by the kernel `Linear`, as a file.
fn graph(directory: &Path) -> PathBuf {
    let x = |b: &mut Builder| b.input("x", DType::Float32, &[Dim::Batch, Dim::Fixed(8)]);
    let mut portable = Builder::new("linear");
    let input = x(&mut portable);
    let y = portable.linear("up", input, 8, 16, false);
    portable.output("y", y);
    let weights = Given::random(&portable.finish().unwrap(), 1);

    let mut b = Builder::new("linear");
    let input = x(&mut b);
    let (dtype, shape) = Encoding::Float32.elements(16, 8);
    let form = WeightForm::Panels(Encoding::Float32, Rows::default());
    let panels = b.weight_in(form, "up.weight", "up.weight.panels", dtype, &shape);
    let linear = Fused::Linear {
        inputs: 8,
        outputs: 16,
        norm: Norm::None,
        encoding: Encoding::Float32,
        bias: false,
        gelu: false,
        residual: false,
    };
    let y = b.fused(linear, &[input, panels]);
    b.output("y", y[0]);
    let graph = b.finish().unwrap();
    exporter::onnx::write_graph(&graph, &weights, exporter::Variant::PORTABLE, directory).unwrap()
}

/// Opens the file and runs it on two rows of zeros.
fn run(path: &Path) -> Result<(), String> {
    let options = Options::default();
    let session = backend::open_session(Provider::Cpu, path, &options).map_err(|error| error.to_string())?;
    let x = Tensor::F32(ndarray::ArrayD::zeros(vec![2, 8]));
    session
        .run(&[("x", x)])
        .map(|_| ())
        .map_err(|error| error.to_string())
}

#[test]
fn wrong_attributes_are_errors() {
    if !required::works(subject::Provider::Cpu).unwrap() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let path = graph(directory.path());
    run(&path).unwrap();
    let bytes = std::fs::read(&path).unwrap();
    // The attributes as protobuf has them: a name, then the number.
    let cases: [(&[u8], &[u8], &str); 4] = [
        (
            b"\x0a\x06inputs\x18\x08",
            b"\x0a\x06inputs\x18\x09",
            "do not fit together",
        ),
        (
            b"\x0a\x07outputs\x18\x10",
            b"\x0a\x07outputs\x18\x7f",
            "do not fit together",
        ),
        (b"\x0a\x04bits\x18\x20", b"\x0a\x04bits\x18\x03", "3 bits"),
        (
            b"\x0a\x08residual\x18\x00",
            b"\x0a\x08residual\x18\x01",
            "fused operator",
        ),
    ];
    for (found, replacement, expected) in cases {
        let place = bytes
            .windows(found.len())
            .position(|window| window == found)
            .unwrap();
        let mut broken = bytes.clone();
        broken[place..place + found.len()].copy_from_slice(replacement);
        std::fs::write(&path, &broken).unwrap();
        let message = run(&path).unwrap_err();
        assert!(message.contains(expected), "{message}");
    }
}
