//! Checkpoints as directories: layouts, train-time branches, ties, contradictions, shards, attacks.

mod adapters;

use super::branches::{Kind, Take, branches};
use super::tensor_file::TensorId;
use super::weight_files::{INDEX, SINGLE};
use super::*;
use crate::arch;
use crate::weights::Weights;
use serde_json::{Map, Value, json};
use write::float32 as write_file;

mod bin;
mod mlx;
mod mlx_write;
mod write;

const LAYOUTS: [Layout; 3] = [Layout::Llava, Layout::Transformers, Layout::Mlx];

type Stored = BTreeMap<String, (Vec<u64>, Vec<f32>)>;

fn config(layout: Layout, tied: bool) -> Value {
    let decoder = json!({
        "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2,
        "intermediate_size": 24, "vocab_size": 20, "eos_token_id": 3, "tie_word_embeddings": tied,
    });
    let tower = json!({"embed_dims": [32, 32, 32, 32, 32], "layers": [1, 1, 1, 1, 1]});
    match layout {
        Layout::Llava | Layout::Mlx => {
            let mut config = decoder;
            config["model_type"] = json!("llava_qwen2");
            config["mm_vision_tower"] = json!("mobileclip_l_64");
            config["mm_hidden_size"] = json!(64);
            config["vision_config"] = tower;
            config
        }
        Layout::Transformers => json!({
            "model_type": "fast_vlm", "image_seq_length": 1, "tie_word_embeddings": tied, "text_config": decoder,
            "vision_config": {"architecture": "fastvit_mci3", "model_args": tower},
        }),
    }
}

/// Notes what is asked for.
struct Recorder(Vec<(String, Vec<u64>)>);

impl Take for Recorder {
    fn take(&mut self, name: &str, shape: &[u64]) -> Option<TensorId> {
        self.0.push((name.to_owned(), shape.to_vec()));
        None
    }

    fn any(&self, _: &str) -> bool {
        false
    }
}

/// Every tensor that a checkpoint of this config has, with values that depend on the unified name only.
fn tensors(config: &Value, layout: Layout, train_time: bool) -> Stored {
    let (config, _) = ModelConfig::parse(&config.to_string(), Path::new("config.json")).unwrap();
    let mut recorder = Recorder(Vec::new());
    for spec in arch::specs(&config).unwrap() {
        let (base, part) = spec.name.rsplit_once('.').unwrap();
        match Kind::of(base, &config.vision) {
            None => drop(recorder.take(&spec.name, &spec.shape)),
            Some(kind) if train_time || kind == Kind::ConvNorm => {
                if let [output, per_group, side, _] = spec.shape[..] {
                    branches(&mut recorder, kind, base, [output, per_group, side], true);
                }
            }
            Some(_) => drop(recorder.take(&format!("{base}.reparam_conv.{part}"), &spec.shape)),
        }
    }
    let tensor = |(unified, shape): (String, Vec<u64>)| {
        let count: u64 = shape.iter().product();
        let seed = unified
            .bytes()
            .fold(7u64, |sum, byte| sum * 31 % 1009 + u64::from(byte));
        let value = |i| f32::from(u16::try_from((i * 17 + seed) % 23).unwrap()) / 16.0 + 0.25;
        (
            layout.spell(&unified, &config.vision),
            (shape, (0..count).map(value).collect()),
        )
    };
    recorder.0.into_iter().map(tensor).collect()
}

/// A checkpoint on disk.
fn directory(config: &Value, stored: &Stored) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join(CONFIG), config.to_string()).unwrap();
    write_file(&directory.path().join(SINGLE), stored);
    directory
}

/// A fused checkpoint of Apple's layout whose tensors were changed.
fn changed(tied: bool, change: impl FnOnce(&mut Stored)) -> tempfile::TempDir {
    let config = config(Layout::Llava, tied);
    let mut stored = tensors(&config, Layout::Llava, false);
    change(&mut stored);
    directory(&config, &stored)
}

fn open(directory: &Path, forced: Option<Layout>) -> Result<(Canonical, Accounting), String> {
    let opened = Checkpoint::open(directory).map_err(|error| error.to_string())?;
    canonical(&opened, forced).map_err(|error| error.to_string())
}

#[test]
fn the_same_model_in_every_layout_has_the_same_weights() {
    for train_time in [false, true] {
        let read = |layout| {
            let config = config(layout, true);
            let mut stored = tensors(&config, layout, train_time);
            let count = stored.len();
            if layout == Layout::Llava {
                let tower = "model.vision_tower.vision_tower.model";
                stored.insert(format!("{tower}.head.proj"), (vec![2], vec![0.0, 0.0]));
                stored.insert(format!("{tower}.x.num_batches_tracked"), (vec![], vec![0.0]));
            }
            if layout == Layout::Mlx {
                stored = mlx_write::channels_last(stored);
            }
            let directory = directory(&config, &stored);
            let (canonical, accounting) = open(directory.path(), None).unwrap();
            assert_eq!(canonical.layout(), layout);
            assert_eq!(accounting.used.len(), count);
            assert_eq!(
                accounting.ignored.len(),
                if layout == Layout::Llava { 2 } else { 0 }
            );
            assert_eq!(accounting.warnings, Vec::<String>::new());
            let specs = canonical.specs().iter();
            specs
                .map(|spec| (spec.name.clone(), canonical.read(&spec.name).unwrap()))
                .collect::<Vec<_>>()
        };
        let [llava, transformers, mlx] = LAYOUTS.map(read);
        assert!(llava == transformers && llava == mlx, "train time {train_time}");
    }
}

#[test]
fn names_without_the_leading_model_are_known() {
    let config = config(Layout::Transformers, true);
    let cases: [fn(&str) -> String; 2] = [
        |name| name.strip_prefix("model.").unwrap_or(name).to_owned(),
        |name| match name.strip_prefix("model.language_model.") {
            Some(rest) => format!("language_model.model.{rest}"),
            None => name.strip_prefix("model.").unwrap_or(name).to_owned(),
        },
    ];
    for rename in cases {
        let stored = tensors(&config, Layout::Transformers, false);
        let stored = stored
            .into_iter()
            .map(|(name, tensor)| (rename(&name), tensor))
            .collect();
        open(directory(&config, &stored).path(), None).unwrap();
    }
}

#[test]
fn blocks_are_parts_of_the_whole() {
    let directory = changed(true, |_| {});
    let (canonical, _) = open(directory.path(), None).unwrap();
    for name in [
        "language_model.embed_tokens.weight",
        "vision_tower.stages.0.blocks.0.mlp.conv.weight",
    ] {
        let whole = canonical.read(name).unwrap();
        let (rows, columns) = canonical
            .specs()
            .iter()
            .find(|spec| spec.name == name)
            .unwrap()
            .matrix();
        for (some_rows, some_columns) in [
            (0..rows, 1..3),
            (2..5, 0..columns),
            (rows - 1..rows, 4..4),
            (3..4, 2..7),
        ] {
            let mut block = vec![f32::NAN; some_rows.len() * some_columns.len()];
            canonical
                .read_block(name, some_rows.clone(), some_columns.clone(), &mut block)
                .unwrap();
            let place = |row| some_columns.clone().map(move |column| row * columns + column);
            let expected: Vec<f32> = some_rows.flat_map(place).map(|at| whole[at]).collect();
            assert_eq!(block, expected, "{name}");
        }
        let mut block = vec![0.0; 2];
        assert!(
            canonical
                .read_block(name, rows..rows + 1, 0..2, &mut block)
                .is_err()
        );
        assert!(canonical.read_block(name, 0..1, 0..3, &mut block).is_err());
    }
    assert!(canonical.read("no.such.weight").is_err());
}

#[test]
fn weights_that_are_not_finite_are_named() {
    let directory = changed(true, |stored| {
        stored.get_mut("model.norm.weight").unwrap().1[3] = f32::NAN;
        stored.get_mut("model.layers.0.mlp.up_proj.weight").unwrap().1[9] = f32::INFINITY;
    });
    let (canonical, _) = open(directory.path(), None).unwrap();
    assert_eq!(canonical.non_finite(), Vec::<String>::new());
    for spec in canonical.specs() {
        canonical.read(&spec.name).unwrap();
    }
    let expected = [
        "language_model.layers.0.mlp.up_proj.weight",
        "language_model.norm.weight",
    ];
    assert_eq!(canonical.non_finite(), expected);
}

#[test]
fn the_tensors_decide_about_the_head() {
    const HEAD: &str = "lm_head.weight";
    let own = |stored: &mut Stored| drop(stored.insert(HEAD.to_owned(), (vec![20, 16], vec![0.0; 320])));
    let copy = |stored: &mut Stored| {
        let table = stored["model.embed_tokens.weight"].clone();
        stored.insert(HEAD.to_owned(), table);
    };
    // What the config says, what the file has: is the head tied, how many warnings?
    for (directory, tied, warnings) in [
        (changed(true, |_| {}), true, 0),
        (changed(true, own), false, 1),
        (changed(false, own), false, 0),
        (changed(false, copy), true, 1),
        (changed(true, copy), true, 0),
    ] {
        let (canonical, accounting) = open(directory.path(), None).unwrap();
        assert_eq!(canonical.config().decoder.tie_word_embeddings, tied);
        assert_eq!(accounting.warnings.len(), warnings);
    }
    let message = open(changed(false, |stored| drop(stored.remove(HEAD))).path(), None).unwrap_err();
    assert!(message.contains("1 missing: `lm_head.weight`"), "{message}");
}

/// As `safetensors.torch.save_model` writes a tied model.
#[test]
fn a_tied_table_may_be_called_the_head() {
    let rename = |stored: &mut Stored| {
        let table = stored.remove("model.embed_tokens.weight").unwrap();
        stored.insert("lm_head.weight".to_owned(), table);
    };
    let (renamed, accounting) = open(changed(true, rename).path(), None).unwrap();
    let (plain, _) = open(changed(true, |_| {}).path(), None).unwrap();
    assert!(renamed.config().decoder.tie_word_embeddings);
    assert_eq!(accounting.warnings, Vec::<String>::new());
    assert_eq!(renamed.specs(), plain.specs());
    for spec in plain.specs() {
        assert_eq!(renamed.read(&spec.name).unwrap(), plain.read(&spec.name).unwrap());
    }
    let message = open(changed(false, rename).path(), None).unwrap_err();
    assert!(
        message.contains("1 missing: `model.embed_tokens.weight`"),
        "{message}"
    );
}

#[test]
fn the_config_names_the_weights_that_are_read() {
    let with = |value: Value, names: &[&str]| {
        let mut config = config(Layout::Transformers, true);
        config["transformers_weights"] = value;
        let directory = directory(&config, &tensors(&config, Layout::Transformers, false));
        for name in names {
            fs::copy(directory.path().join(SINGLE), directory.path().join(name)).unwrap();
        }
        open(directory.path(), None).map(|_| ())
    };
    assert_eq!(with(Value::Null, &[]), Ok(()));
    assert_eq!(with(json!(SINGLE), &[]), Ok(()));
    for (value, names) in [
        (json!("tuned.safetensors"), &["tuned.safetensors"][..]),
        (json!("tuned.safetensors"), &[]),
        (json!(INDEX), &[INDEX]),
        (json!(3), &[]),
    ] {
        let message = with(value.clone(), names).unwrap_err();
        let expected = format!(
            "config.json: `transformers_weights` is {value}, which transformers would read instead of"
        );
        assert!(message.contains(&expected), "{message}");
    }
}

#[test]
fn all_that_does_not_fit_is_listed_at_once() {
    let directory = changed(true, |stored| {
        stored.remove("model.norm.weight");
        stored.remove("model.vision_tower.vision_tower.model.network.5.proj.0.lkb_reparam.bias");
        stored.insert("model.layers.0.extra".to_owned(), (vec![1], vec![0.0]));
        stored.insert("unheard.of".to_owned(), (vec![1], vec![0.0]));
        stored.insert(
            "mm_projector.0.weight".to_owned(),
            (vec![16, 64], vec![0.0; 1024]),
        );
        stored.insert("model.mm_projector.0.bias".to_owned(), (vec![2], vec![0.0; 2]));
    });
    let message = open(directory.path(), None).unwrap_err();
    for expected in [
        "(llava layout)",
        "2 missing: `model.norm.weight`, `model.vision_tower.vision_tower.model.network.5.proj.0.lkb_reparam.bias`",
        "2 not in any rule: `model.layers.0.extra`, `unheard.of`",
        "model.mm_projector.0.bias has shape [2], expected [16]",
        "is a second tensor for multi_modal_projector.linear_1.weight",
    ] {
        assert!(message.contains(expected), "{message}\nexpected {expected}");
    }
}

#[test]
fn layouts_are_detected_by_markers() {
    let swapped = directory(
        &config(Layout::Transformers, true),
        &tensors(&config(Layout::Llava, true), Layout::Llava, false),
    );
    let message = open(swapped.path(), None).unwrap_err();
    let expected = "declares the transformers layout, the tensors have names of the llava layout";
    assert!(message.contains(expected), "{message}");
    assert_eq!(
        open(swapped.path(), Some(Layout::Llava)).unwrap().0.layout(),
        Layout::Llava
    );
    let message = open(swapped.path(), Some(Layout::Transformers)).unwrap_err();
    assert!(message.contains("(transformers layout)"), "{message}");
}

#[test]
fn mlx_exports_are_refused_by_name() {
    let mut config = config(Layout::Llava, true);
    config["hidden_size"] = json!(1536);
    config["quantization"] = json!({"bits": 4, "group_size": 64});
    let message = open(directory(&config, &Stored::new()).path(), None).unwrap_err();
    assert!(
        message.contains("MLX export") && message.contains("apple/FastVLM-1.5B"),
        "{message}"
    );
    let package = changed(true, |stored| {
        stored.retain(|name, _| !name.contains("vision_tower"))
    });
    fs::create_dir(package.path().join("fastvithd.mlpackage")).unwrap();
    let message = open(package.path(), None).unwrap_err();
    assert!(message.contains("MLX export"), "{message}");
}

#[test]
fn empty_tensors_are_refused_in_one_sentence() {
    let empty = changed(true, |stored| {
        for (shape, values) in stored.values_mut() {
            *shape = vec![0];
            values.clear();
        }
    });
    let message = open(empty.path(), None).unwrap_err();
    assert!(
        message.contains("tensors are empty, as DeepSpeed's ZeRO-3"),
        "{message}"
    );
    assert!(
        message.contains("zero_to_fp32.py") && message.lines().count() == 1,
        "{message}"
    );
}

/// transformers would apply it: whoever exports without it answers otherwise.
#[test]
fn an_adapter_is_not_left_out_without_a_word() {
    let stated = r#"{"peft_type": "LORA", "base_model_name_or_path": "apple/FastVLM-0.5B"}"#;
    for (text, expected) in [
        (
            stated,
            "an adapter of `apple/FastVLM-0.5B`, which is not applied here: merge it as an adapter of the model",
        ),
        ("{}", "an adapter, which is not applied here"),
        ("no JSON", "an adapter, which is not applied here"),
    ] {
        let adapted = changed(true, |_| {});
        fs::write(adapted.path().join("adapter_config.json"), text).unwrap();
        let message = open(adapted.path(), None).unwrap_err();
        assert!(message.contains(expected), "{message}");
        fs::remove_file(adapted.path().join("adapter_config.json")).unwrap();
        assert!(open(adapted.path(), None).is_ok());
    }
}

#[test]
fn a_byte_order_mark_is_no_part_of_json() {
    let marked = changed(true, |_| {});
    let path = marked.path().join(CONFIG);
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, format!("\u{feff}{text}")).unwrap();
    assert!(open(marked.path(), None).is_ok());
}

#[test]
fn types_that_no_weight_has_are_named() {
    for (dtype, bytes) in [
        ("F8_E8M0", 16),
        ("F6_E2M3", 12),
        ("F4", 8),
        ("F8_E4M3", 16),
        ("I32", 64),
    ] {
        let directory = changed(true, |stored| drop(stored.remove("model.norm.weight")));
        let path = directory.path().join(SINGLE);
        let whole = fs::read(&path).unwrap();
        let (length, rest) = whole.split_first_chunk::<8>().unwrap();
        let (header, data) = rest.split_at(usize::try_from(u64::from_le_bytes(*length)).unwrap());
        let mut header: Value = serde_json::from_slice(header).unwrap();
        header["model.norm.weight"] =
            json!({"dtype": dtype, "shape": [16], "data_offsets": [data.len(), data.len() + bytes]});
        let header = header.to_string();
        let mut file = u64::try_from(header.len()).unwrap().to_le_bytes().to_vec();
        file.extend(header.as_bytes());
        file.extend(data);
        file.extend(vec![0; bytes]);
        fs::write(&path, file).unwrap();
        let message = open(directory.path(), None).unwrap_err();
        assert!(
            message.contains(dtype) && message.contains("model.norm.weight"),
            "{message}"
        );
    }
}

#[test]
fn directories_that_are_no_checkpoints() {
    let cases: [(&[(&str, &str)], &str); 5] = [
        (&[], "has no `config.json`"),
        (&[(CONFIG, "{")], "EOF while parsing"),
        (
            &[(CONFIG, "{}")],
            "has neither `model.safetensors` nor `pytorch_model.bin`",
        ),
        (
            &[(CONFIG, "{}"), ("pytorch_model.bin", "")],
            "pytorch_model.bin: is neither safetensors nor what `torch.save` writes",
        ),
        (
            &[(CONFIG, "{}"), (SINGLE, "")],
            "0 bytes, a safetensors file has at least 8",
        ),
    ];
    let mut failures = Vec::new();
    for (files, expected) in cases {
        let directory = tempfile::tempdir().unwrap();
        for (name, text) in files {
            fs::write(directory.path().join(name), text).unwrap();
        }
        match open(directory.path(), None) {
            Err(message) if message.contains(expected) => {}
            other => failures.push(format!("{:?}, expected {expected}", other.map(|_| ()))),
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    assert!(
        open(Path::new("no-such-directory"), None)
            .unwrap_err()
            .contains("is not a directory")
    );
}

#[test]
fn a_truncated_file_is_refused_at_any_length() {
    let directory = changed(true, |_| {});
    let path = directory.path().join(SINGLE);
    let whole = fs::read(&path).unwrap();
    for length in [0, 7, 8, 100, whole.len() / 2, whole.len() - 1] {
        fs::write(&path, &whole[..length]).unwrap();
        assert!(open(directory.path(), None).is_err(), "{length}");
    }
}

#[test]
fn shards_are_what_the_index_says() {
    type Change = fn(&mut Value, &Path);
    let cases: [(Change, Option<&str>); 10] = [
        (|_, _| {}, None),
        (
            |_, directory| fs::remove_file(directory.join("b.safetensors")).unwrap(),
            Some("shard `b.safetensors` is missing"),
        ),
        (
            |map, _| map["model.norm.weight"] = json!("a.safetensors"),
            Some("`model.norm.weight` is not in `a.safetensors`"),
        ),
        (
            |map, _| map["model.other"] = json!("a.safetensors"),
            Some("`model.other` is not in"),
        ),
        (
            |map, _| drop(map.as_object_mut().unwrap().remove("model.norm.weight")),
            Some("`model.norm.weight` of `b.safetensors` is not in the index"),
        ),
        (
            |map, _| map["x"] = json!("../a.safetensors"),
            Some("`../a.safetensors` is not the name of a shard"),
        ),
        (
            |map, _| map["x"] = json!("/a.safetensors"),
            Some("`/a.safetensors` is not the name of a shard"),
        ),
        (
            |_, directory| {
                fs::copy(directory.join("a.safetensors"), directory.join("b.safetensors")).unwrap();
            },
            Some("lies in `a.safetensors` and in `b.safetensors`"),
        ),
        (|map, _| *map = json!({}), Some("names no shard")),
        (|map, _| *map = json!(3), Some("invalid type")),
    ];
    let mut failures = Vec::new();
    for (change, expected) in cases {
        let config = config(Layout::Llava, true);
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join(CONFIG), config.to_string()).unwrap();
        let stored = tensors(&config, Layout::Llava, false);
        let (b, a): (Stored, Stored) = stored
            .into_iter()
            .partition(|(name, _)| name.starts_with("model.norm") || name.starts_with("model.layers"));
        let mut map = Map::new();
        for (file, stored) in [("a.safetensors", &a), ("b.safetensors", &b)] {
            write_file(&directory.path().join(file), stored);
            map.extend(stored.keys().map(|name| (name.clone(), json!(file))));
        }
        let mut map = Value::Object(map);
        change(&mut map, directory.path());
        let index = json!({"metadata": {"total_size": 0}, "weight_map": map});
        fs::write(directory.path().join(INDEX), index.to_string()).unwrap();
        let found = open(directory.path(), None).map(|_| ());
        let right = match (&found, expected) {
            (Ok(()), None) => true,
            (Err(message), Some(expected)) => message.contains(expected),
            _ => false,
        };
        if !right {
            failures.push(format!("{found:?}, expected {expected:?}"));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn every_element_type_is_converted_exactly() {
    let values = [0.0f32, -1.5, 0.333_251_95, 65504.0, 6.103_515_6e-5];
    let half: Vec<u8> = values
        .iter()
        .flat_map(|&value| half::f16::from_f32(value).to_le_bytes())
        .collect();
    let brain: Vec<u8> = values
        .iter()
        .flat_map(|&value| half::bf16::from_f32(value).to_le_bytes())
        .collect();
    let single: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    for (dtype, bytes) in [("F16", half), ("BF16", brain), ("F32", single)] {
        // One byte of another tensor before it: no alignment.
        let directory = changed(true, |_| {});
        let config = config(Layout::Llava, true);
        let mut others = tensors(&config, Layout::Llava, false);
        others.remove("model.norm.weight");
        write_file(&directory.path().join("others.safetensors"), &others);
        let shape = 16;
        let repeated: Vec<u8> = bytes
            .repeat(4)
            .into_iter()
            .take(shape * (bytes.len() / 5))
            .collect();
        let length = repeated.len() + 1;
        let header = json!({
            "x.num_batches_tracked": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]},
            "model.norm.weight": {"dtype": dtype, "shape": [shape], "data_offsets": [1, length]},
        })
        .to_string();
        let mut file = u64::try_from(header.len()).unwrap().to_le_bytes().to_vec();
        file.extend(header.as_bytes());
        file.push(9);
        file.extend(&repeated);
        fs::write(directory.path().join("norm.safetensors"), file).unwrap();
        fs::remove_file(directory.path().join(SINGLE)).unwrap();
        let mut map: Map<String, Value> = others
            .keys()
            .map(|name| (name.clone(), json!("others.safetensors")))
            .collect();
        map.insert("model.norm.weight".to_owned(), json!("norm.safetensors"));
        map.insert("x.num_batches_tracked".to_owned(), json!("norm.safetensors"));
        fs::write(
            directory.path().join(INDEX),
            json!({"weight_map": map}).to_string(),
        )
        .unwrap();
        let (canonical, _) = open(directory.path(), None).unwrap();
        let found = canonical.read("language_model.norm.weight").unwrap();
        let round = |value: f32| {
            if dtype == "BF16" {
                half::bf16::from_f32(value).to_f32()
            } else {
                value
            }
        };
        let expected: Vec<f32> = values
            .iter()
            .cycle()
            .take(shape)
            .map(|&value| round(value))
            .collect();
        assert_eq!(found, expected, "{dtype}");
    }
}
