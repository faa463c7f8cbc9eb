//! Checkpoints for MLX, as mlx-vlm converts them: kernels with channels last, matrices in groups, bf16.

use super::super::grouped::{Grouped, Groups};
use super::super::tensor_file::TensorId;
use super::*;
use half::bf16;

/// A tensor as a file has it.
type Typed = (&'static str, Vec<u64>, Vec<u8>);

/// The order of dimensions that MLX has, in Apple's.
fn order(name: &str, shape: &[u64]) -> Option<[usize; 4]> {
    let scale = name.rsplit('.').next().unwrap().starts_with("layer_scale");
    match shape.len() {
        4 if name.starts_with("vision_tower.") => Some([0, 2, 3, 1]),
        3 if scale => Some([1, 2, 0, 3]),
        _ => None,
    }
}

/// Tensors with mlx-vlm's names, in its orders of dimensions.
pub(super) fn channels_last(stored: Stored) -> Stored {
    let last = |(name, (shape, values)): (String, (Vec<u64>, Vec<f32>))| {
        let Some(order) = order(&name, &shape) else {
            return (name, (shape, values));
        };
        let mut four = shape.clone();
        four.resize(4, 1);
        let strides = [four[1] * four[2] * four[3], four[2] * four[3], four[3], 1];
        let turned = order.map(|dimension| four[dimension]);
        let steps = order.map(|dimension| strides[dimension]);
        let mut moved = Vec::new();
        for a in 0..turned[0] {
            for b in 0..turned[1] {
                for c in 0..turned[2] {
                    for d in 0..turned[3] {
                        let at = a * steps[0] + b * steps[1] + c * steps[2] + d * steps[3];
                        moved.push(values[usize::try_from(at).unwrap()]);
                    }
                }
            }
        }
        (name, (turned[..shape.len()].to_vec(), moved))
    };
    stored.into_iter().map(last).collect()
}

fn write_typed(path: &Path, stored: &BTreeMap<String, Typed>) {
    let mut header = Map::new();
    let mut data: Vec<u8> = Vec::new();
    for (name, (dtype, shape, bytes)) in stored {
        let start = data.len();
        data.extend(bytes);
        let entry = json!({"dtype": dtype, "shape": shape, "data_offsets": [start, data.len()]});
        header.insert(name.clone(), entry);
    }
    let header = Value::Object(header).to_string();
    let mut file = u64::try_from(header.len()).unwrap().to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    file.extend(data);
    fs::write(path, file).unwrap();
}

fn in_bf16(values: &[f32]) -> Vec<u8> {
    let brain = values.iter().map(|value| bf16::from_f32(*value).to_le_bytes());
    brain.flatten().collect()
}

/// A config whose matrices have whole groups, and its tensors with mlx-vlm's names.
fn wide() -> (Value, Stored) {
    let mut config = config(Layout::Mlx, false);
    config["hidden_size"] = json!(64);
    config["intermediate_size"] = json!(96);
    let stored = tensors(&config, Layout::Mlx, false);
    (config, stored)
}

/// Puts matrices into groups; what they then stand for is written back into `stored`.
fn grouped(stored: &mut Stored, groups: impl Fn(&str) -> Option<Groups>) -> BTreeMap<String, Typed> {
    let mut typed = BTreeMap::new();
    for (name, (shape, values)) in stored.iter_mut() {
        let module = name.trim_end_matches(".weight");
        let of = groups(module).filter(|groups| shape.len() == 2 && shape[1] % groups.size == 0);
        let Some(groups) = of else {
            // As bf16 rounds them.
            values
                .iter_mut()
                .for_each(|value| *value = bf16::from_f32(*value).to_f32());
            typed.insert(name.clone(), ("BF16", shape.clone(), in_bf16(values)));
            continue;
        };
        let size = usize::try_from(groups.size).unwrap();
        let levels = if groups.bits == 4 { 15.0 } else { 255.0 };
        let (mut codes, mut scales, mut biases) = (Vec::new(), Vec::new(), Vec::new());
        for values in values.chunks_exact_mut(size) {
            let least = values.iter().copied().fold(f32::INFINITY, f32::min);
            let most = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let bias = bf16::from_f32(least).to_f32();
            let scale = bf16::from_f32((most - least) / levels).to_f32();
            for value in values {
                let code = ((*value - bias) / scale).round().clamp(0.0, levels);
                *value = code * scale + bias;
                codes.push(format!("{code}").parse::<u8>().unwrap());
            }
            scales.push(scale);
            biases.push(bias);
        }
        let bytes: Vec<u8> = match groups.bits {
            4 => codes.chunks_exact(2).map(|pair| pair[0] | pair[1] << 4).collect(),
            _ => codes,
        };
        let words = vec![shape[0], shape[1] * groups.bits / 32];
        let parts = vec![shape[0], shape[1] / groups.size];
        typed.insert(name.clone(), ("U32", words, bytes));
        typed.insert(
            format!("{module}.scales"),
            ("BF16", parts.clone(), in_bf16(&scales)),
        );
        typed.insert(format!("{module}.biases"), ("BF16", parts, in_bf16(&biases)));
    }
    typed
}

/// A checkpoint of these tensors.
fn typed_directory(config: &Value, typed: &BTreeMap<String, Typed>) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join(CONFIG), config.to_string()).unwrap();
    write_typed(&directory.path().join(SINGLE), typed);
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
        let typed = grouped(&mut stored, |_| Some(Groups { bits, size }));
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
    let (four, eight) = (Groups { bits: 4, size: 64 }, Groups { bits: 8, size: 32 });
    let typed = grouped(&mut stored, |module| match module {
        "language_model.model.embed_tokens" => Some(eight),
        "mm_projector.2" => None,
        _ => Some(four),
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
    let mut typed = grouped(&mut stored, |_| Some(Groups { bits: 4, size: 64 }));
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
        let mut typed = grouped(&mut stored, |_| Some(Groups { bits: 4, size: 64 }));
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
