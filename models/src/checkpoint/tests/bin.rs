//! Checkpoints whose weights are torch files (`pytorch_model.bin`): the same weights, and what is refused.

use super::super::torch::write::{Saved, text};
use super::*;

const BIN: &str = "pytorch_model.bin";
const BIN_INDEX: &str = "pytorch_model.bin.index.json";

/// What torch would save of these tensors.
fn saved(stored: &Stored) -> Saved {
    let mut saved = Saved::default();
    for (name, (shape, values)) in stored {
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        saved.add(name, "FloatStorage", shape, bytes);
    }
    saved
}

/// A checkpoint of these files and a config.
fn bin_directory(config: &Value, files: &[(&str, Vec<u8>)]) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join(CONFIG), config.to_string()).unwrap();
    for (name, bytes) in files {
        fs::write(directory.path().join(name), bytes).unwrap();
    }
    directory
}

/// All weights, and what the user is told.
fn weights(directory: &Path) -> (Vec<(String, Vec<f32>)>, Vec<String>) {
    let (canonical, accounting) = open(directory, None).unwrap();
    let specs = canonical.specs().iter();
    let read = specs.map(|spec| (spec.name.clone(), canonical.read(&spec.name).unwrap()));
    (read.collect(), accounting.warnings)
}

#[test]
fn torch_files_hold_the_weights_that_safetensors_hold() {
    for (layout, train_time) in [(Layout::Llava, false), (Layout::Transformers, true)] {
        let config = config(layout, true);
        let stored = tensors(&config, layout, train_time);
        let plain = directory(&config, &stored);
        let expected = weights(plain.path());
        let fingerprint = Checkpoint::open(plain.path()).unwrap().fingerprint();
        let mut wrapped = saved(&stored);
        wrapped.around = Some("state_dict".to_owned());
        let mut turned = saved(&stored);
        for tensor in &mut turned.tensors {
            turn(
                &mut turned.storages[tensor.storage].1,
                &tensor.shape,
                &mut tensor.strides,
            );
        }
        for (name, bytes) in [
            (BIN, saved(&stored).archive()),
            (BIN, saved(&stored).legacy()),
            ("model.pth", saved(&stored).archive()),
            ("best.pt", wrapped.archive()),
            (BIN, turned.archive()),
            (BIN, turned.legacy()),
        ] {
            let directory = bin_directory(&config, &[(name, bytes)]);
            assert!(weights(directory.path()) == expected, "{name}");
            let opened = Checkpoint::open(directory.path()).unwrap();
            assert_eq!(opened.fingerprint(), fingerprint);
            assert_eq!(opened.stored(), DType::Float32);
            let files: Vec<&Path> = opened.files().iter().map(|file| file.path.as_path()).collect();
            let mut sources = vec![directory.path().join(CONFIG), directory.path().join(name)];
            sources.sort();
            assert_eq!(files, sources);
        }
    }
}

/// Stores a tensor's first two dimensions the other way round.
fn turn(bytes: &mut [u8], shape: &[u64], strides: &mut [u64]) {
    let [height, width, rest @ ..] = shape else {
        return;
    };
    let size = |n: u64| usize::try_from(n).unwrap();
    let run = size(rest.iter().product::<u64>()) * 4;
    let (height, width) = (size(*height), size(*width));
    let old = bytes.to_owned();
    for row in 0..height {
        for column in 0..width {
            let (from, to) = ((row * width + column) * run, (column * height + row) * run);
            bytes[to..to + run].copy_from_slice(&old[from..from + run]);
        }
    }
    let run = u64::try_from(run / 4).unwrap();
    strides[0] = run;
    strides[1] = run * shape[0];
}

#[test]
fn a_tied_head_may_be_stored_as_a_second_name() {
    let config = config(Layout::Llava, true);
    let stored = tensors(&config, Layout::Llava, false);
    let expected = weights(directory(&config, &stored).path());
    let mut tied = saved(&stored);
    let table = tied
        .tensors
        .iter()
        .find(|tensor| tensor.name.ends_with("embed_tokens.weight"));
    let (storage, shape) = table.map(|table| (table.storage, table.shape.clone())).unwrap();
    tied.view("lm_head.weight", storage, 0, &shape, &[shape[1], 1]);
    for bytes in [tied.archive(), tied.legacy()] {
        assert!(weights(bin_directory(&config, &[(BIN, bytes)]).path()) == expected);
    }
}

#[test]
fn shards_of_torch_are_what_their_index_says() {
    let config = config(Layout::Llava, true);
    let stored = tensors(&config, Layout::Llava, false);
    let expected = weights(directory(&config, &stored).path());
    let (b, a): (Stored, Stored) = stored
        .into_iter()
        .partition(|(name, _)| name.starts_with("model.layers"));
    let names = [
        "pytorch_model-00001-of-00002.bin",
        "pytorch_model-00002-of-00002.bin",
    ];
    let map: Map<String, Value> = (a.keys().map(|name| (name.clone(), json!(names[0]))))
        .chain(b.keys().map(|name| (name.clone(), json!(names[1]))))
        .collect();
    let index = |map: &Map<String, Value>| json!({"weight_map": map}).to_string().into_bytes();
    let shards = [(names[0], saved(&a).archive()), (names[1], saved(&b).legacy())];
    let with = |index: Vec<u8>| {
        let [one, two] = shards.clone();
        bin_directory(&config, &[one, two, (BIN_INDEX, index)])
    };
    let whole = with(index(&map));
    assert!(weights(whole.path()) == expected);
    assert_eq!(Checkpoint::open(whole.path()).unwrap().files().len(), 4);
    let mut other = map.clone();
    other.insert("model.norm.weight".to_owned(), json!(names[1]));
    let message = open(with(index(&other)).path(), None).unwrap_err();
    assert!(
        message.contains("`model.norm.weight` is not in `pytorch_model-00002"),
        "{message}"
    );
    other.insert("model.norm.weight".to_owned(), json!("model.safetensors"));
    let message = open(with(index(&other)).path(), None).unwrap_err();
    assert!(
        message.contains("`model.safetensors` is not the name of a shard"),
        "{message}"
    );
    let message = open(bin_directory(&config, &shards).path(), None).unwrap_err();
    assert!(
        message.contains("no `pytorch_model.bin.index.json`, which says"),
        "{message}"
    );
}

#[test]
fn safetensors_are_read_before_torch_files() {
    let config = config(Layout::Llava, true);
    let stored = tensors(&config, Layout::Llava, false);
    let directory = directory(&config, &stored);
    fs::write(directory.path().join(BIN), "no torch file").unwrap();
    fs::write(directory.path().join("model.pth"), "nor this").unwrap();
    open(directory.path(), None).unwrap();
}

/// transformers' `checkpoint-N`: nothing of the trainer's own files is opened.
#[test]
fn what_trainers_leave_beside_the_weights_is_not_opened() {
    let config = config(Layout::Llava, true);
    let stored = tensors(&config, Layout::Llava, false);
    let bytes = saved(&stored).archive();
    let own = [
        "optimizer.pt",
        "optimizer.bin",
        "scheduler.pt",
        "scaler.pt",
        "rng_state.pth",
        "rng_state_0.pth",
        "random_states_0.pkl",
        "training_args.bin",
        "trainer_state.json",
    ];
    for name in [BIN, "model.pth"] {
        let mut files = vec![(name, bytes.clone())];
        files.extend(own.map(|name| (name, b"cos\nsystem\n".to_vec())));
        let directory = bin_directory(&config, &files);
        fs::create_dir(directory.path().join("global_step10")).unwrap();
        let opened = Checkpoint::open(directory.path()).unwrap();
        assert_eq!(opened.files().len(), 2, "{name}");
        canonical(&opened, None).unwrap();
    }
}

#[test]
fn what_stands_beside_the_tensors_is_said() {
    let config = config(Layout::Llava, true);
    let mut saved = saved(&tensors(&config, Layout::Llava, false));
    saved.around = Some("model".to_owned());
    text(&mut saved.more, "epoch");
    saved.more.extend(b"K\x07");
    text(&mut saved.more, "optimizer");
    saved.more.extend(b"}");
    let (_, warnings) = weights(bin_directory(&config, &[("last.pt", saved.archive())]).path());
    let expected = "`last.pt` has `epoch` and 1 more beside the model's tensors: not read";
    assert_eq!(warnings, [expected]);
}

#[test]
fn directories_without_whole_weights_are_refused_in_one_sentence() {
    let config = config(Layout::Llava, true);
    let bytes = || saved(&tensors(&config, Layout::Llava, false)).archive();
    let cases: [(&[&str], &str); 6] = [
        (
            &["training_args.bin", "optimizer.pt"],
            "has neither `model.safetensors` nor `pytorch_model.bin`",
        ),
        (
            &["global_step500/mp_rank_00_model_states.pt"],
            "`python zero_to_fp32.py . pytorch_model.bin`",
        ),
        (
            &["zero_pp_rank_0_mp_rank_00_model_states.pt", "latest"],
            "zero_to_fp32.py",
        ),
        (
            &["mm_projector.bin"],
            "only a part of a model's weights (`mm_projector.bin`)",
        ),
        (
            &["a.pth", "b.bin"],
            "call the one with the weights `pytorch_model.bin` (`a.pth`; `b.bin`)",
        ),
        (
            &["pytorch_model-00001-of-00001.bin"],
            "no `pytorch_model.bin.index.json`",
        ),
    ];
    let mut failures = Vec::new();
    for (names, expected) in cases {
        let directory = bin_directory(&config, &[]);
        for name in names {
            let path = directory.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes()).unwrap();
        }
        match open(directory.path(), None) {
            Err(message) if message.contains(expected) && message.lines().count() == 1 => {}
            other => failures.push(format!("{:?}, expected {expected}", other.map(|_| ()))),
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn a_truncated_torch_file_is_refused_at_any_length() {
    let config = config(Layout::Llava, true);
    let saved = saved(&tensors(&config, Layout::Llava, false));
    for whole in [saved.archive(), saved.legacy()] {
        for length in [0, 1, 7, 8, 100, whole.len() / 3, whole.len() / 2, whole.len() - 1] {
            let directory = bin_directory(&config, &[(BIN, whole[..length].to_vec())]);
            let message = open(directory.path(), None).unwrap_err();
            assert!(message.contains(BIN), "{length}: {message}");
        }
    }
}
