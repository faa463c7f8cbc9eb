//! Checkpoints for MLX, as mlx-vlm converts them: kernels with channels last, matrices in groups, bf16.

use super::super::grouped::{Grouped, Groups};
use super::super::tensor_file::TensorId;
use super::mlx_write::{channels_last, grouped};
use super::*;

type Typed = write::Typed<u64>;

/// A config whose matrices have whole groups, and its tensors with mlx-vlm's names.
fn wide() -> (Value, Stored) {
    let mut config = config(Layout::Mlx, false);
    config["hidden_size"] = json!(64);
    config["intermediate_size"] = json!(96);
    let stored = tensors(&config, Layout::Mlx, false);
    (config, stored)
}

/// A checkpoint of these tensors.
fn typed_directory(config: &Value, typed: &BTreeMap<String, Typed>) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join(CONFIG), config.to_string()).unwrap();
    write::typed(&directory.path().join(SINGLE), typed);
    directory
}

fn weights(canonical: &Canonical) -> Vec<(String, Vec<f32>)> {
    let specs = canonical.specs().iter();
    specs
        .map(|spec| (spec.name.clone(), canonical.read(&spec.name).unwrap()))
        .collect()
}

#[test]
fn matrices_in_groups_are_the_values_that_they_stand_for() {
    for (bits, size, quantization) in [
        (4, 32, json!({"bits": 4, "group_size": 32})),
        (8, 32, json!({"bits": 8, "group_size": 32, "mode": "affine"})),
        (4, 64, json!({})),
    ] {
        let (mut config, stored) = wide();
        let mut stored = channels_last(stored);
        let typed = grouped(&mut stored, |_| Some((bits, size)));
        assert!(typed.contains_key("language_model.model.embed_tokens.scales"));
        assert!(typed.contains_key("language_model.lm_head.scales"));
        assert!(typed.contains_key("mm_projector.0.biases"));
        let expected = open(directory(&config, &stored).path(), None).unwrap().0;
        config["quantization"] = quantization;
        let directory = typed_directory(&config, &typed);
        let (canonical, accounting) = open(directory.path(), None).unwrap();
        assert_eq!(canonical.layout(), Layout::Mlx);
        assert!(weights(&canonical) == weights(&expected), "{bits} {size}");
        assert_eq!(accounting.used.len(), typed.len());
        assert_eq!(
            Checkpoint::open(directory.path()).unwrap().stored(),
            DType::BFloat16
        );
        // A block is a part of the whole.
        let name = "language_model.layers.0.mlp.down_proj.weight";
        let whole = canonical.read(name).unwrap();
        let mut block = vec![0.0; 3 * 5];
        canonical.read_block(name, 2..5, 61..66, &mut block).unwrap();
        let expected: Vec<f32> = (2..5)
            .flat_map(|row| &whole[row * 96 + 61..row * 96 + 66])
            .copied()
            .collect();
        assert_eq!(block, expected);
    }
}

#[test]
fn modules_may_have_groups_of_their_own() {
    let (mut config, stored) = wide();
    let mut stored = channels_last(stored);
    let typed = grouped(&mut stored, |module| match module {
        "language_model.model.embed_tokens" => Some((8, 32)),
        "mm_projector.2" => None,
        _ => Some((4, 64)),
    });
    let expected = open(directory(&config, &stored).path(), None).unwrap().0;
    config["quantization"] = json!({
        "bits": 4, "group_size": 64, "mm_projector.2": false,
        "language_model.model.embed_tokens": {"bits": 8, "group_size": 32},
    });
    let (canonical, _) = open(typed_directory(&config, &typed).path(), None).unwrap();
    assert!(weights(&canonical) == weights(&expected));
}

/// A head in groups that is a copy of the table is stored once, as any other.
#[test]
fn a_head_in_groups_may_be_the_table() {
    let (mut config, mut stored) = wide();
    let table = stored["language_model.model.embed_tokens.weight"].clone();
    stored.insert("language_model.lm_head.weight".to_owned(), table);
    let mut stored = channels_last(stored);
    let mut typed = grouped(&mut stored, |_| Some((4, 64)));
    config["quantization"] = json!({"bits": 4, "group_size": 64});
    let (canonical, accounting) = open(typed_directory(&config, &typed).path(), None).unwrap();
    assert!(canonical.config().decoder.tie_word_embeddings);
    assert_eq!(accounting.ignored.len(), 3);
    // Other scales are another matrix.
    typed.get_mut("language_model.lm_head.scales").unwrap().2[0] ^= 1;
    let (canonical, _) = open(typed_directory(&config, &typed).path(), None).unwrap();
    assert!(!canonical.config().decoder.tie_word_embeddings);
}

#[test]
fn groups_that_do_not_fit_are_named() {
    type Change = fn(&mut Value, &mut BTreeMap<String, Typed>);
    let cases: [(Change, &str); 9] = [
        (
            |config, _| config["quantization"]["bits"] = json!(3),
            "`quantization.bits` is 3, this build supports 4 and 8",
        ),
        (
            |config, _| config["quantization"]["group_size"] = json!(48),
            "`quantization.group_size` is 48",
        ),
        (
            |config, _| config["quantization"]["bits"] = json!("4"),
            "is \"4\", expected a whole number",
        ),
        (
            |config, _| config["quantization"]["mode"] = json!("mxfp4"),
            "`quantization.mode` is \"mxfp4\"",
        ),
        (
            |config, _| config["quantization"]["mm_projector.0"] = json!({"bits": 6}),
            "`quantization.mm_projector.0.bits` is 6",
        ),
        (
            |config, _| config["quantization"]["bits"] = json!(8),
            "language_model.lm_head.weight has shape [20, 8], expected [20, 16]",
        ),
        (
            |config, _| drop(config.as_object_mut().unwrap().remove("quantization")),
            ": 10 wrong: `language_model.lm_head has scales, but config.json has no `quantization` for it`",
        ),
        (
            |_, typed| drop(typed.remove("mm_projector.0.biases")),
            "1 missing: `mm_projector.0.biases`",
        ),
        (
            |_, typed| typed.get_mut("mm_projector.0.weight").unwrap().0 = "I32",
            "mm_projector.0.weight has dtype I32, expected U32",
        ),
    ];
    let mut failures = Vec::new();
    for (change, expected) in cases {
        let (mut config, stored) = wide();
        let mut stored = channels_last(stored);
        let mut typed = grouped(&mut stored, |_| Some((4, 64)));
        config["quantization"] = json!({"bits": 4, "group_size": 64});
        change(&mut config, &mut typed);
        match open(typed_directory(&config, &typed).path(), None) {
            Err(message) if message.contains(expected) && message.lines().count() == 1 => {}
            other => failures.push(format!("{:?}, expected {expected}", other.map(|_| ()))),
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// Kernels in torch's order are not those of this layout.
#[test]
fn kernels_with_channels_first_are_refused_by_their_shape() {
    let (config, stored) = wide();
    let message = open(directory(&config, &stored).path(), None).unwrap_err();
    assert!(message.contains("(mlx layout)"), "{message}");
    // In the order of the file.
    let says = "conv_exp.reparam_conv.weight has shape [64, 1, 3, 3], expected [64, 3, 3, 1]";
    assert!(message.contains(says), "{message}");
}

/// What `conformance/reference` recorded with numpy, by MLX's formulas.
#[test]
fn groups_are_read_as_mlx_defines_them() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/mlx-groups.safetensors");
    let files = [TensorFile::open(&path).unwrap()];
    let place = |name: &str| {
        let mut tensors = files[0].tensors().iter();
        TensorId(0, tensors.position(|tensor| tensor.name == name).unwrap())
    };
    let mut cases = 0;
    for tensor in files[0].tensors() {
        let Some(case) = tensor.name.strip_suffix(".expected") else {
            continue;
        };
        let mut facts = case.split('-');
        let mut number = || facts.next().unwrap().parse().unwrap();
        let groups = Groups {
            bits: number(),
            size: number(),
        };
        let [codes, scales, biases] =
            ["weight", "scales", "biases"].map(|part| place(&format!("{case}.{part}")));
        let grouped = Grouped {
            codes,
            scales,
            biases,
            groups,
        };
        let mut expected = vec![0.0; usize::try_from(tensor.elements()).unwrap()];
        files[0].read(tensor, 0, &mut expected).unwrap();
        for (from, length) in [
            (0, expected.len()),
            (1, 1),
            (33, 300),
            (250, 12),
            (767, 1),
            (5, 0),
        ] {
            let mut found = vec![f32::NAN; length];
            grouped.read(&files, from, &mut found).unwrap();
            assert_eq!(found, expected[from..from + length], "{case}: {from}");
        }
        let mut beyond = vec![0.0; 2];
        assert!(grouped.read(&files, expected.len() - 1, &mut beyond).is_err());
        cases += 1;
    }
    assert_eq!(cases, 6);
}
