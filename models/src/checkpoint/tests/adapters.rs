//! Adapters over checkpoints: what each kind makes of the weights, against sums in float64; what does not
//! fit.

use super::*;
use crate::checkpoint::Merged;

/// Numbers that look random and are the same everywhere, between -1 and 1.
fn noise(seed: u64, count: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        f32::from(u16::try_from(state >> 48).unwrap()) / 32_768.0 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

fn lora(rank: u64, alpha: f64) -> Value {
    json!({"peft_type": "LORA", "r": rank, "lora_alpha": alpha, "target_modules": ["q_proj"], "bias": "none"})
}

/// The directory of an adapter, as PEFT writes it.
fn adapter(config: &Value, stored: &Stored) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("adapter_config.json"), config.to_string()).unwrap();
    write_file(&directory.path().join("adapter_model.safetensors"), stored);
    directory
}

/// Puts tensors of noise into a file to be.
fn put(stored: &mut Stored, name: &str, shape: &[u64]) {
    let seed = name
        .bytes()
        .fold(3u64, |sum, byte| sum.wrapping_mul(131) + u64::from(byte));
    stored.insert(
        name.to_owned(),
        (shape.to_vec(), noise(seed, shape.iter().product())),
    );
}

/// A pair for a linear layer `[outputs, inputs]`.
fn pair(stored: &mut Stored, module: &str, [outputs, inputs]: [u64; 2], rank: u64) {
    put(
        stored,
        &format!("base_model.model.{module}.lora_A.weight"),
        &[rank, inputs],
    );
    put(
        stored,
        &format!("base_model.model.{module}.lora_B.weight"),
        &[outputs, rank],
    );
}

fn values<'a>(stored: &'a Stored, module: &str, part: &str) -> &'a [f32] {
    &stored[&format!("base_model.model.{module}.{part}")].1
}

/// `B A` of a pair in float64, row-major.
fn product(b: &[f32], a: &[f32], rank: usize) -> Vec<f64> {
    let width = a.len() / rank;
    let at = |row: usize, column: usize| -> f64 {
        (0..rank)
            .map(|k| f64::from(b[row * rank + k]) * f64::from(a[k * width + column]))
            .sum()
    };
    (0..b.len() / rank)
        .flat_map(|row| (0..width).map(move |column| (row, column)))
        .map(|(row, column)| at(row, column))
        .collect()
}

/// Whether two are alike but for roundings.
fn assert_close(found: &[f32], expected: &[f64], what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (at, (found, expected)) in found.iter().zip(expected).enumerate() {
        let off = (f64::from(*found) - expected).abs();
        assert!(
            off <= 1e-6 * expected.abs().max(1.0),
            "{what} at {at}: {found}, expected {expected}"
        );
    }
}

fn merge(base: &Path, adapters: &[(&Path, f64)]) -> Result<(Canonical, Accounting), String> {
    let merged = || -> Result<(Canonical, Accounting), CheckpointError> {
        let mut opened = Checkpoint::open(base)?;
        let adapters = adapters.iter().map(|(path, weight)| Adapter::open(path, *weight));
        let adapters: Vec<Adapter> = adapters.collect::<Result<_, _>>()?;
        let beside = opened.adapt(&adapters)?;
        let (weights, mut accounting) = canonical_with(&opened, None, adapters.into())?;
        accounting.warnings.extend(beside);
        Ok((weights, accounting))
    };
    merged().map_err(|error| error.to_string())
}

/// All weights by name.
fn read(canonical: &Canonical) -> BTreeMap<String, Vec<f32>> {
    let specs = canonical.specs().iter();
    specs
        .map(|spec| (spec.name.clone(), canonical.read(&spec.name).unwrap()))
        .collect()
}

fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().copied().map(f64::from).collect()
}

fn plus(base: &[f32], factor: f64, delta: &[f64]) -> Vec<f64> {
    base.iter()
        .zip(delta)
        .map(|(base, delta)| f64::from(*base) + factor * delta)
        .collect()
}

/// A base without train-time branches.
fn base(layout: Layout, tied: bool) -> tempfile::TempDir {
    let config = config(layout, tied);
    directory(&config, &tensors(&config, layout, false))
}

/// Every block of a weight is a part of the whole.
fn assert_blocks(canonical: &Canonical, name: &str) {
    let whole = canonical.read(name).unwrap();
    let spec = canonical.specs().iter().find(|spec| spec.name == name).unwrap();
    let (height, width) = spec.matrix();
    for (rows, columns) in [
        (1..height, 0..width),
        (0..height, width / 2..width),
        (height / 2..height, 1..width.max(2) - 1),
        (0..1, 0..1),
    ] {
        let mut block = vec![0.0; rows.len() * columns.len()];
        canonical
            .read_block(name, rows.clone(), columns.clone(), &mut block)
            .unwrap();
        let place = |row| columns.clone().map(move |column| row * width + column);
        let expected: Vec<f32> = rows.flat_map(place).map(|at| whole[at]).collect();
        assert_eq!(block, expected, "{name}");
    }
}

const Q: &str = "language_model.layers.0.self_attn.q_proj.weight";
const UP: &str = "language_model.layers.0.mlp.up_proj.weight";

#[test]
fn lora_is_merged_whatever_the_layout_of_both() {
    let names = [
        ("model.layers.0", "model.mm_projector.2"),
        (
            "model.language_model.layers.0",
            "model.multi_modal_projector.linear_2",
        ),
        ("language_model.model.layers.0", "multi_modal_projector.linear_2"),
    ];
    for layout in [Layout::Llava, Layout::Transformers] {
        let base = base(layout, true);
        let plain = read(&open(base.path(), None).unwrap().0);
        for (layer, projector) in names {
            let mut stored = Stored::new();
            let [q, up] = ["self_attn.q_proj", "mlp.up_proj"].map(|part| format!("{layer}.{part}"));
            pair(&mut stored, &q, [16, 16], 4);
            // More ranks than are summed at a time, and not a multiple of them.
            pair(&mut stored, &up, [24, 16], 75);
            pair(&mut stored, projector, [16, 16], 4);
            let mut config = lora(4, 6.0);
            config["rank_pattern"] = json!({"up_proj": 75});
            config["target_modules"] = json!(["q_proj", "up_proj"]);
            let adapter = adapter(&config, &stored);
            let (canonical, accounting) = merge(base.path(), &[(adapter.path(), 1.0)]).unwrap();
            let merged = read(&canonical);
            let projector_weight = "multi_modal_projector.linear_2.weight";
            for (name, values_now) in &merged {
                let of = match name.as_str() {
                    Q => Some((&q[..], 4, 1.5)),
                    UP => Some((&up[..], 75, 6.0 / 75.0)),
                    name if name == projector_weight => Some((projector, 4, 1.5)),
                    _ => None,
                };
                match of {
                    None => assert!(*values_now == plain[name], "{name} is another"),
                    Some((module, rank, scale)) => {
                        let [a, b] =
                            ["lora_A.weight", "lora_B.weight"].map(|part| values(&stored, module, part));
                        let expected = plus(&plain[name], scale, &product(b, a, rank));
                        assert_close(values_now, &expected, name);
                        assert_blocks(&canonical, name);
                    }
                }
            }
            assert_eq!(accounting.warnings, Vec::<String>::new());
            assert_eq!(accounting.merged.len(), 3);
            let found = accounting
                .merged
                .iter()
                .find(|merged| merged.tensor.contains("q_proj"));
            let found: &Merged = found.unwrap();
            assert_eq!(found.how, "LoRA of rank 4, scale 1.5");
            assert_eq!(
                found.from,
                ["A", "B"].map(|half| format!("base_model.model.{q}.lora_{half}.weight"))
            );
        }
    }
}

#[test]
fn ranks_alphas_and_rank_stabilised() {
    let base = base(Layout::Llava, true);
    let plain = read(&open(base.path(), None).unwrap().0);
    let module = "model.layers.0.self_attn.q_proj";
    let cases = [
        (json!({}), 4.0 / 9.0),
        (json!({"use_rslora": true}), 4.0 / 3.0),
        (json!({"alpha_pattern": {"k_proj": 1, "q_proj": 18.0}}), 2.0),
        (
            json!({"alpha_pattern": {"^model\\.layers\\.[0-3]\\..*": 9, "q_proj": 18}}),
            1.0,
        ),
        (
            json!({"r": 2, "rank_pattern": {"layers.0.self_attn.q_proj": 9}, "use_rslora": true}),
            4.0 / 3.0,
        ),
        (json!({"r": 9.0, "lora_alpha": -4.5}), -0.5),
    ];
    for (changes, scale) in cases {
        let mut stored = Stored::new();
        pair(&mut stored, module, [16, 16], 9);
        let mut config = lora(9, 4.0);
        for (name, value) in changes.as_object().unwrap() {
            config[name] = value.clone();
        }
        let adapter = adapter(&config, &stored);
        let (canonical, _) = merge(base.path(), &[(adapter.path(), 1.0)]).unwrap();
        let [a, b] = ["lora_A.weight", "lora_B.weight"].map(|part| values(&stored, module, part));
        let expected = plus(&plain[Q], scale, &product(b, a, 9));
        assert_close(&canonical.read(Q).unwrap(), &expected, &changes.to_string());
    }
}

/// Each row divided by its length and multiplied by its magnitude.
fn of_length(values: &[f64], width: usize, magnitudes: &[f32]) -> Vec<f64> {
    let rows = values.chunks(width).zip(magnitudes);
    rows.flat_map(|(row, magnitude)| {
        let length = row.iter().map(|value| value * value).sum::<f64>().sqrt();
        row.iter()
            .map(move |value| value * f64::from(*magnitude) / length)
    })
    .collect()
}

fn flipped<T: Copy>(values: &[T], width: usize) -> Vec<T> {
    let column = |column| values.iter().skip(column).step_by(width);
    (0..width).flat_map(column).copied().collect()
}

#[test]
fn dora_of_layers_kernels_and_embeddings() {
    let base = base(Layout::Transformers, false);
    let plain = read(&open(base.path(), None).unwrap().0);
    let q = "model.language_model.layers.0.self_attn.q_proj";
    let fc = "model.vision_tower.timm_model.stages.0.blocks.0.mlp.fc1";
    let table = "model.language_model.embed_tokens";
    let fc_weight = "vision_tower.stages.0.blocks.0.mlp.fc1.weight";
    for magnitude in ["lora_magnitude_vector", "lora_magnitude_vector.weight"] {
        let mut stored = Stored::new();
        pair(&mut stored, q, [16, 16], 4);
        let name = |module: &str, part: &str| format!("base_model.model.{module}.{part}");
        put(&mut stored, &name(fc, "lora_A.weight"), &[4, 32, 1, 1]);
        put(&mut stored, &name(fc, "lora_B.weight"), &[128, 4, 1, 1]);
        put(&mut stored, &name(table, "lora_embedding_A"), &[4, 20]);
        put(&mut stored, &name(table, "lora_embedding_B"), &[16, 4]);
        put(&mut stored, &name(q, magnitude), &[16]);
        put(&mut stored, &name(fc, magnitude), &[1, 128, 1, 1]);
        put(&mut stored, &name(table, magnitude), &[16]);
        let mut config = lora(4, 2.0);
        config["use_dora"] = json!(true);
        let adapter = adapter(&config, &stored);
        let (canonical, accounting) = merge(base.path(), &[(adapter.path(), 1.0)]).unwrap();
        for (module, weight, width) in [(q, Q, 16), (fc, fc_weight, 32)] {
            let [a, b] = ["lora_A.weight", "lora_B.weight"].map(|part| values(&stored, module, part));
            let sum = plus(&plain[weight], 0.5, &product(b, a, 4));
            let expected = of_length(&sum, width, values(&stored, module, magnitude));
            assert_close(&canonical.read(weight).unwrap(), &expected, weight);
            assert_blocks(&canonical, weight);
        }
        let a = values(&stored, table, "lora_embedding_A");
        let b = values(&stored, table, "lora_embedding_B");
        // [columns, rows]
        let delta = product(b, a, 4);
        let own = flipped(&plain["language_model.embed_tokens.weight"], 16);
        let sum = of_length(&plus(&own, 0.5, &delta), 20, values(&stored, table, magnitude));
        let found = canonical.read("language_model.embed_tokens.weight").unwrap();
        assert_close(&found, &flipped(&sum, 20), table);
        assert_blocks(&canonical, "language_model.embed_tokens.weight");
        assert!(canonical.read("lm_head.weight").unwrap() == plain["lm_head.weight"]);
        assert!(
            accounting
                .merged
                .iter()
                .all(|merged| merged.how == "DoRA of rank 4, scale 0.5")
        );
    }
}

#[test]
fn tensors_that_were_trained_as_a_whole() {
    let config = config(Layout::Llava, true);
    let stored_base = tensors(&config, Layout::Llava, true);
    let base = directory(&config, &stored_base);
    let plain = read(&open(base.path(), None).unwrap().0);
    // What LLaVA leaves behind: parameters alone, so no statistics of batch normalisations.
    let mut trained = Stored::new();
    for (name, (shape, _)) in &stored_base {
        let statistic = name.contains("running_");
        if !statistic && (name.contains("mm_projector") || name.contains("patch_embed.0.rbr_conv.0.")) {
            put(&mut trained, &format!("base_model.model.{name}"), shape);
        }
    }
    assert!(trained.len() > 5, "{:?}", trained.keys());
    let folder = tempfile::tempdir().unwrap();
    write_file(&folder.path().join("non_lora_trainables.bin"), &trained);
    let (canonical, accounting) = merge(base.path(), &[(folder.path(), 1.0)]).unwrap();

    let mut replaced = stored_base.clone();
    for (name, tensor) in &trained {
        replaced.insert(
            name.trim_start_matches("base_model.model.").to_owned(),
            tensor.clone(),
        );
    }
    let expected = directory(&config, &replaced);
    let expected = read(&open(expected.path(), None).unwrap().0);
    // The same bits as of a checkpoint that has them.
    assert!(read(&canonical) == expected && expected != plain);
    assert_eq!(accounting.merged.len(), trained.len());
    assert!(accounting.merged.iter().all(|merged| merged.how == "replaced"));
    let [warning] = &accounting.warnings[..] else {
        panic!("{:?}", accounting.warnings);
    };
    assert!(warning.contains("comes without its statistics"), "{warning}");

    // A projector alone, from a directory and by its file, and not all of it.
    let mut projector = Stored::new();
    for (name, (shape, _)) in stored_base
        .iter()
        .filter(|(name, _)| name.contains("mm_projector"))
    {
        put(&mut projector, name, shape);
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("mm_projector.bin");
    write_file(&file, &projector);
    for path in [folder.path(), &file] {
        let (canonical, _) = merge(base.path(), &[(path, 1.0)]).unwrap();
        let weight = canonical.read("multi_modal_projector.linear_1.weight").unwrap();
        assert_eq!(weight, projector["model.mm_projector.0.weight"].1);
    }
    projector.remove("model.mm_projector.2.bias");
    write_file(&file, &projector);
    let message = merge(base.path(), &[(folder.path(), 1.0)])
        .map(|_| ())
        .unwrap_err();
    let expected = "`mm_projector.bin` has no tensor for the base's `model.mm_projector.2.bias`";
    assert!(message.contains(expected), "{message}");
}

#[test]
fn biases_and_modules_to_save_before_lora() {
    let base = base(Layout::Transformers, false);
    let plain = read(&open(base.path(), None).unwrap().0);
    let q = "model.language_model.layers.0.self_attn.q_proj";
    let head = "lm_head";
    let mut stored = Stored::new();
    pair(&mut stored, q, [16, 16], 2);
    let name = |module: &str, part: &str| format!("base_model.model.{module}.{part}");
    put(&mut stored, &name(q, "base_layer.bias"), &[16]);
    put(&mut stored, &name(q, "lora_B.bias"), &[16]);
    // A whole table, and a pair on top of it.
    put(&mut stored, &name(head, "base_layer.weight"), &[20, 16]);
    pair(&mut stored, head, [20, 16], 2);
    put(
        &mut stored,
        &name("model.language_model.norm", "modules_to_save.weight"),
        &[16],
    );
    let mut config = lora(2, 4.0);
    config["bias"] = json!("lora_only");
    config["lora_bias"] = json!(true);
    config["modules_to_save"] = json!(["norm"]);
    let adapter = adapter(&config, &stored);
    let (canonical, _) = merge(base.path(), &[(adapter.path(), 1.0)]).unwrap();
    let bias = wide(values(&stored, q, "base_layer.bias"));
    let added = values(&stored, q, "lora_B.bias");
    let bias: Vec<f64> = bias
        .iter()
        .zip(added)
        .map(|(own, added)| own + 2.0 * f64::from(*added))
        .collect();
    assert_close(
        &canonical.read(&Q.replace("weight", "bias")).unwrap(),
        &bias,
        "bias",
    );
    let [a, b] = ["lora_A.weight", "lora_B.weight"].map(|part| values(&stored, head, part));
    let expected = plus(values(&stored, head, "base_layer.weight"), 2.0, &product(b, a, 2));
    assert_close(&canonical.read("lm_head.weight").unwrap(), &expected, "head");
    let norm = canonical.read("language_model.norm.weight").unwrap();
    assert_eq!(
        norm,
        values(&stored, "model.language_model.norm", "modules_to_save.weight")
    );
    let table = "language_model.embed_tokens.weight";
    assert_eq!(canonical.read(table).unwrap(), plain[table]);
}

#[test]
fn adapters_add_up_by_their_weights() {
    let base = base(Layout::Llava, true);
    let plain = read(&open(base.path(), None).unwrap().0);
    let module = "model.layers.0.self_attn.q_proj";
    let make = |rank, dora: bool| {
        let mut stored = Stored::new();
        pair(&mut stored, module, [16, 16], rank);
        let mut config = lora(rank, 3.0);
        if dora {
            put(
                &mut stored,
                &format!("base_model.model.{module}.lora_magnitude_vector"),
                &[16],
            );
            config["use_dora"] = json!(true);
        }
        (adapter(&config, &stored), stored)
    };
    let delta = |stored: &Stored, rank| {
        let [a, b] = ["lora_A.weight", "lora_B.weight"].map(|part| values(stored, module, part));
        product(b, a, rank)
    };
    let ((one, stored_one), (two, stored_two), (dora, stored_dora)) =
        (make(2, false), make(6, false), make(2, true));
    let (canonical, accounting) = merge(base.path(), &[(one.path(), 0.5), (two.path(), -2.0)]).unwrap();
    let expected = plus(&plain[Q], 0.5 * 1.5, &delta(&stored_one, 2));
    let two_delta = delta(&stored_two, 6);
    let expected: Vec<f64> = expected
        .iter()
        .zip(&two_delta)
        .map(|(sum, delta)| sum - 2.0 * 0.5 * delta)
        .collect();
    assert_close(&canonical.read(Q).unwrap(), &expected, "two");
    assert_blocks(&canonical, Q);
    assert_eq!(accounting.merged.len(), 2);
    assert!(
        accounting
            .merged
            .iter()
            .any(|merged| merged.how == "LoRA of rank 2, scale 1.5, weight 0.5")
    );

    // What DoRA makes of the weight, of which a half.
    let (canonical, _) = merge(base.path(), &[(one.path(), 1.0), (dora.path(), 0.5)]).unwrap();
    let alone = of_length(
        &plus(&plain[Q], 1.5, &delta(&stored_dora, 2)),
        16,
        values(&stored_dora, module, "lora_magnitude_vector"),
    );
    let sum = plus(&plain[Q], 1.5, &delta(&stored_one, 2));
    let expected: Vec<f64> = sum
        .iter()
        .zip(alone)
        .zip(&plain[Q])
        .map(|((sum, alone), own)| sum + 0.5 * (alone - f64::from(*own)))
        .collect();
    assert_close(&canonical.read(Q).unwrap(), &expected, "LoRA and DoRA");

    // A weight of a tensor that takes the base's place goes a part of the way.
    let folder = tempfile::tempdir().unwrap();
    let mut stored = Stored::new();
    put(&mut stored, "model.norm.weight", &[16]);
    write_file(&folder.path().join("non_lora_trainables.bin"), &stored);
    let (canonical, _) = merge(base.path(), &[(folder.path(), 0.25)]).unwrap();
    let (own, trained) = (
        &plain["language_model.norm.weight"],
        &stored["model.norm.weight"].1,
    );
    let expected: Vec<f64> = own
        .iter()
        .zip(trained)
        .map(|(own, trained)| 0.75 * f64::from(*own) + 0.25 * f64::from(*trained))
        .collect();
    assert_close(
        &canonical.read("language_model.norm.weight").unwrap(),
        &expected,
        "norm",
    );
}

#[test]
fn a_head_that_was_the_embedding_is_its_own_where_one_of_them_changes() {
    const TABLE: &str = "language_model.embed_tokens.weight";
    let mut of_table = Stored::new();
    put(
        &mut of_table,
        "base_model.model.model.embed_tokens.lora_embedding_A",
        &[2, 20],
    );
    put(
        &mut of_table,
        "base_model.model.model.embed_tokens.lora_embedding_B",
        &[16, 2],
    );
    let mut of_head = Stored::new();
    pair(&mut of_head, "lm_head", [20, 16], 2);
    let copied = changed(false, |stored| {
        let table = stored["model.embed_tokens.weight"].clone();
        stored.insert("lm_head.weight".to_owned(), table);
    });
    for base in [base(Layout::Llava, true), copied] {
        let (canonical, _) = open(base.path(), None).unwrap();
        assert!(canonical.config().decoder.tie_word_embeddings);
        let own = canonical.read(TABLE).unwrap();
        for (stored, ensured, tied) in [
            (&of_table, false, false),
            (&of_table, true, true),
            (&of_head, false, false),
        ] {
            let mut config = lora(2, 2.0);
            config["ensure_weight_tying"] = json!(ensured);
            let adapter = adapter(&config, stored);
            let (canonical, accounting) = merge(base.path(), &[(adapter.path(), 1.0)]).unwrap();
            assert_eq!(canonical.config().decoder.tie_word_embeddings, tied);
            let table = canonical.read(TABLE).unwrap();
            if tied {
                assert_ne!(table, own);
                continue;
            }
            let head = canonical.read("lm_head.weight").unwrap();
            let changed = [table != own, head != own];
            assert_eq!(
                changed,
                [std::ptr::eq(stored, &of_table), std::ptr::eq(stored, &of_head)]
            );
            assert_blocks(&canonical, "lm_head.weight");
            let said = accounting
                .warnings
                .iter()
                .any(|warning| warning.contains("they are two now"));
            assert!(said, "{:?}", accounting.warnings);
        }
    }
}

#[test]
fn adapters_that_do_not_fit_are_refused() {
    const A: &str = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight";
    const B: &str = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight";
    let base = base(Layout::Llava, true);
    type Change = fn(&mut Value, &mut Stored);
    let cases: Vec<(&str, Change, &[&str])> = vec![
        (
            "no other half",
            |_, stored| drop(stored.remove(B)),
            &[A, "has no lora_B beside it"],
        ),
        (
            "no first half",
            |_, stored| drop(stored.remove(A)),
            &[B, "has no lora_A beside it"],
        ),
        (
            "other inputs",
            |_, stored| put(stored, A, &[4, 24]),
            &[
                A,
                "has shape [4, 24], expected [4, 16]",
                "q_proj.weight` of shape [16, 16]",
                "rank 4",
            ],
        ),
        (
            "other outputs",
            |_, stored| put(stored, B, &[24, 4]),
            &[B, "has shape [24, 4], expected [16, 4]", "of shape [16, 16]"],
        ),
        (
            "another rank than the config's",
            |config, _| config["r"] = json!(8),
            &[
                A,
                "has shape [4, 16], expected [8, 16]",
                "rank 8 by `adapter_config.json`",
            ],
        ),
        (
            "empty, of ZeRO-3",
            |_, stored| put(stored, A, &[0]),
            &[A, "has shape [0]", "ZeRO-3"],
        ),
        (
            "NaN",
            |_, stored| stored.get_mut(B).unwrap().1[5] = f32::NAN,
            &[B, "NaN or infinity at element 5"],
        ),
        (
            "infinite",
            |_, stored| stored.get_mut(A).unwrap().1[63] = f32::NEG_INFINITY,
            &[A, "at element 63"],
        ),
        (
            "zeros, as before training",
            |_, stored| stored.get_mut(B).unwrap().1.fill(0.0),
            &["changes nothing", "0 throughout"],
        ),
        (
            "alpha 0",
            |config, _| config["lora_alpha"] = json!(0),
            &["changes nothing", "0 throughout"],
        ),
        (
            "nothing at all",
            |_, stored| stored.clear(),
            &["`adapter_model.safetensors` has no tensors"],
        ),
        (
            "of another architecture",
            |_, stored| {
                stored.clear();
                pair(stored, "model.decoder.layers.0.fc1", [16, 16], 4);
            },
            &[
                "model.decoder.layers.0.fc1.lora_A.weight",
                "fits nothing",
                "shape [4, 16]",
            ],
        ),
        (
            "a layer that is not there",
            |_, stored| pair(stored, "model.layers.7.self_attn.q_proj", [16, 16], 4),
            &["model.layers.7.self_attn.q_proj.lora_A.weight", "fits nothing"],
        ),
        (
            "another variant of LoRA",
            |_, stored| {
                put(
                    stored,
                    "base_model.model.model.layers.0.self_attn.q_proj.lora_diag.weight",
                    &[4],
                )
            },
            &["lora_diag.weight", "not a part of LoRA or DoRA"],
        ),
        (
            "LoRA of a norm",
            |_, stored| pair(stored, "model.norm", [16, 16], 4),
            &[
                "model.norm.lora_A.weight",
                "changes matrices and kernels",
                "shape [16]",
            ],
        ),
        (
            "a magnitude without DoRA",
            |_, stored| {
                put(
                    stored,
                    "base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector",
                    &[16],
                );
            },
            &["lora_magnitude_vector", "`use_dora` is not true"],
        ),
        (
            "DoRA without a magnitude",
            |config, _| config["use_dora"] = json!(true),
            &[A, "has no lora_magnitude_vector beside it"],
        ),
        (
            "a magnitude of another length",
            |config, stored| {
                config["use_dora"] = json!(true);
                put(
                    stored,
                    "base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector",
                    &[4],
                );
            },
            &[
                "lora_magnitude_vector",
                "has shape [4], expected a number for each of 16",
            ],
        ),
        (
            "a bias of lora_B that is not declared",
            |_, stored| {
                put(
                    stored,
                    "base_model.model.model.layers.0.self_attn.q_proj.lora_B.bias",
                    &[16],
                )
            },
            &["lora_B.bias", "`lora_bias` is not true"],
        ),
        (
            "a bias that the base has not",
            |config, stored| {
                config["lora_bias"] = json!(true);
                pair(stored, "model.layers.0.mlp.up_proj", [24, 16], 4);
                put(
                    stored,
                    "base_model.model.model.layers.0.mlp.up_proj.lora_B.bias",
                    &[24],
                );
            },
            &[
                "up_proj.lora_B.bias",
                "fits nothing",
                "`model.layers.0.mlp.up_proj.bias`",
            ],
        ),
        (
            "another vocabulary",
            |_, stored| put(stored, "base_model.model.model.embed_tokens.weight", &[21, 16]),
            &["embed_tokens.weight` has shape [21, 16], expected [20, 16]"],
        ),
        (
            "twice",
            |_, stored| pair(stored, "model.layers.0.self_attn.q_proj.base_layer", [16, 16], 4),
            &["is lora_A of what"],
        ),
        (
            "a module that was to be saved",
            |config, _| config["modules_to_save"] = json!(["mm_projector"]),
            &["`modules_to_save` names `mm_projector`, of which the adapter has no tensor"],
        ),
        (
            "a convolution in groups",
            |_, stored| {
                let module = "model.vision_tower.vision_tower.model.network.0.0.convffn.conv.conv";
                put(
                    stored,
                    &format!("base_model.model.{module}.lora_A.weight"),
                    &[4, 32, 7, 7],
                );
                put(
                    stored,
                    &format!("base_model.model.{module}.lora_B.weight"),
                    &[32, 4, 1, 1],
                );
            },
            &["convffn.conv.conv.lora_A.weight", "a convolution in groups"],
        ),
        (
            "a pattern that never ends",
            |config, _| config["alpha_pattern"] = json!({"(.|..|...)*(?=x)x": 3}),
            &["cannot be matched"],
        ),
    ];
    let mut failures = Vec::new();
    for (what, change, says) in cases {
        let mut config = lora(4, 8.0);
        let mut stored = Stored::new();
        pair(&mut stored, "model.layers.0.self_attn.q_proj", [16, 16], 4);
        change(&mut config, &mut stored);
        let adapter = adapter(&config, &stored);
        let message = merge(base.path(), &[(adapter.path(), 1.0)]).map(|_| ());
        let message = message.err().unwrap_or_else(|| "merged".to_owned());
        if let Some(text) = says.iter().find(|text| !message.contains(**text)) {
            failures.push(format!("{what}: should say `{text}`: {message}"));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn configs_of_adapters_are_refused_by_field() {
    let base = base(Layout::Llava, true);
    let mut stored = Stored::new();
    pair(&mut stored, "model.layers.0.self_attn.q_proj", [16, 16], 4);
    let cases: Vec<(Value, &str)> = vec![
        (
            json!({"peft_type": "IA3"}),
            "`peft_type` is \"IA3\", expected \"LORA\"",
        ),
        (json!({"peft_type": null}), "`peft_type` is missing"),
        (
            json!({"peft_type": null, "lora_parameters": {"rank": 8}}),
            "an adapter of MLX",
        ),
        (json!({"r": 0}), "`r` is 0, expected a whole number above 0"),
        (json!({"r": -4}), "`r` is -4"),
        (json!({"r": 4.5}), "`r` is 4.5"),
        (json!({"r": "4"}), "`r` is \"4\""),
        (json!({"r": null}), "`r` is missing"),
        (json!({"r": 1e300}), "`r` is 1e"),
        (
            json!({"lora_alpha": "8"}),
            "`lora_alpha` is \"8\", expected a number",
        ),
        (json!({"lora_alpha": [8]}), "`lora_alpha` is [8]"),
        (json!({"lora_alpha": null}), "`lora_alpha` is missing"),
        (
            json!({"use_rslora": 1}),
            "`use_rslora` is 1, expected true or false",
        ),
        (json!({"use_dora": "true"}), "`use_dora` is \"true\""),
        (
            json!({"rank_pattern": [1]}),
            "`rank_pattern` is [1], expected an object of patterns",
        ),
        (json!({"rank_pattern": {"q": 0}}), "`rank_pattern.q` is 0"),
        (json!({"alpha_pattern": {"q": "x"}}), "`alpha_pattern.q` is \"x\""),
        (
            json!({"alpha_pattern": {"(": 1}}),
            "`alpha_pattern`: `(` is not a regular expression",
        ),
        (json!({"bias": "some"}), "`bias` is \"some\""),
        (
            json!({"modules_to_save": "lm_head"}),
            "`modules_to_save` is \"lm_head\"",
        ),
        (json!({"target_modules": 3}), "`target_modules` is 3"),
        (
            json!({"base_model_name_or_path": 3}),
            "`base_model_name_or_path` is 3",
        ),
        (
            json!({"init_lora_weights": "pissa_niter_16"}),
            "\"pissa_niter_16\", which changes the base's weights",
        ),
        (
            json!({"init_lora_weights": "olora"}),
            "changes the base's weights",
        ),
        (
            json!({"init_lora_weights": "loftq"}),
            "changes the base's weights",
        ),
        (
            json!({"init_lora_weights": "new"}),
            "expected true, false or one of gaussian",
        ),
        (
            json!({"layer_replication": [[0, 1], [0, 1]]}),
            "`layer_replication` is [[0,1],[0,1]]",
        ),
        (
            json!({"use_qalora": true}),
            "`use_qalora` is true, which is not merged here",
        ),
        (
            json!({"alora_invocation_tokens": [1, 2]}),
            "`alora_invocation_tokens`",
        ),
        (
            json!({"trainable_token_indices": [1]}),
            "`trainable_token_indices`",
        ),
        (json!({"target_parameters": ["x"]}), "`target_parameters`"),
        (json!({"kasa_config": {"beta": 0.1}}), "`kasa_config`"),
        (json!({"use_bdlora": {"nblocks": 2}}), "`use_bdlora`"),
        (json!({"arrow_config": {"top_k": 2}}), "`arrow_config`"),
        (
            json!({"monteclora_config": {"num_samples": 2}}),
            "`monteclora_config`",
        ),
        (json!({"of_the_future": 1}), "`of_the_future` is 1"),
    ];
    let mut failures = Vec::new();
    for (changes, says) in &cases {
        let mut config = lora(4, 8.0);
        for (name, value) in changes.as_object().unwrap() {
            config[name] = value.clone();
        }
        let adapter = adapter(&config, &stored);
        let message = merge(base.path(), &[(adapter.path(), 1.0)]).map(|_| ());
        let message = message.err().unwrap_or_else(|| "merged".to_owned());
        if !message.contains(says) || !message.contains("adapter_config.json") {
            failures.push(format!("{changes}: should say `{says}`: {message}"));
        }
    }
    for (text, says) in [
        ("", "EOF"),
        ("[]", "is not a JSON object"),
        (
            r#"{"peft_type": "LORA", "r": 4, "lora_alpha": NaN}"#,
            "expected value",
        ),
        (&"[".repeat(100_000), "recursion limit"),
    ] {
        let adapter = adapter(&json!({}), &stored);
        fs::write(adapter.path().join("adapter_config.json"), text).unwrap();
        let message = merge(base.path(), &[(adapter.path(), 1.0)])
            .map(|_| ())
            .unwrap_err();
        if !message.contains(says) {
            failures.push(format!("{says}: {message}"));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    // What training leaves there changes nothing.
    let mut config = lora(4, 8.0);
    for (name, value) in [
        ("lora_dropout", json!(0.05)),
        ("task_type", json!("CAUSAL_LM")),
        ("inference_mode", json!(true)),
        ("layers_to_transform", json!([0])),
        ("eva_config", json!({"rho": 2.0})),
        ("loftq_config", json!({})),
        ("init_lora_weights", json!("gaussian")),
        ("megatron_core", json!("megatron.core")),
        ("layer_replication", json!(null)),
        ("of_the_future", json!([])),
    ] {
        config[name] = value;
    }
    let adapter = adapter(&config, &stored);
    let (_, accounting) = merge(base.path(), &[(adapter.path(), 1.0)]).unwrap();
    assert_eq!(accounting.warnings, Vec::<String>::new());
}

#[test]
fn what_is_odd_about_an_adapter_is_said() {
    let base = base(Layout::Llava, true);
    let mut stored = Stored::new();
    pair(&mut stored, "model.layers.0.self_attn.q_proj", [16, 16], 4);
    let mut config = lora(4, 8.0);
    config["fan_in_fan_out"] = json!(true);
    config["target_modules"] = json!(["q_proj", "self_attn.q_proj", "query"]);
    config["rank_pattern"] = json!({"k_proj": 9});
    let adapter = adapter(&config, &stored);
    put(
        &mut stored,
        "model.vision_tower.vision_tower.model.head.proj",
        &[2],
    );
    write_file(&adapter.path().join("non_lora_trainables.bin"), &{
        let mut stored = Stored::new();
        put(&mut stored, "model.norm.weight", &[16]);
        put(
            &mut stored,
            "model.vision_tower.vision_tower.model.head.proj",
            &[2],
        );
        stored
    });
    fs::write(adapter.path().join("adapter_model.bin"), "not looked at").unwrap();
    fs::write(adapter.path().join("tokenizer_config.json"), r#"{"x": 1}"#).unwrap();
    let (_, accounting) = merge(base.path(), &[(adapter.path(), 1.0)]).unwrap();
    let all = accounting.warnings.join("\n");
    for text in [
        "`fan_in_fan_out` is true",
        "`target_modules` names `query`",
        "`k_proj` of `rank_pattern`",
        "`adapter_model.bin` stands beside",
        "`tokenizer_config.json` is not as in the model",
    ] {
        assert!(all.contains(text), "should say `{text}`: {all}");
    }
    assert_eq!(accounting.warnings.len(), 5, "{all}");
    let ignored = accounting
        .ignored
        .iter()
        .any(|ignored| ignored.tensor.ends_with("head.proj"));
    assert!(ignored, "{:?}", accounting.ignored);
}

#[test]
fn the_config_beside_an_adapter_is_of_the_same_model() {
    let base = base(Layout::Llava, true);
    let mut stored = Stored::new();
    pair(&mut stored, "model.layers.0.self_attn.q_proj", [16, 16], 4);
    let adapter = adapter(&lora(4, 8.0), &stored);
    let beside = |change: &dyn Fn(&mut Value)| {
        let mut config = config(Layout::Llava, false);
        change(&mut config);
        fs::write(adapter.path().join(CONFIG), config.to_string()).unwrap();
        merge(base.path(), &[(adapter.path(), 1.0)]).map(|(_, accounting)| accounting.warnings)
    };
    assert_eq!(beside(&|_| {}), Ok(Vec::new()));
    let message = beside(&|config| config["vocab_size"] = json!(21)).unwrap_err();
    assert!(
        message.contains("is of another model: `vocab_size` 21, the base has 20"),
        "{message}"
    );
    let message = beside(&|config| config["model_type"] = json!("llama")).unwrap_err();
    assert!(message.contains("`model_type` is `llama`"), "{message}");
    let said = beside(&|config| config["image_aspect_ratio"] = json!("pad")).unwrap();
    assert!(
        said[0].contains("`image_aspect_ratio` is \"pad\", that of the model null: the adapter's is used"),
        "{said:?}"
    );
    assert_eq!(
        beside(&|config| config["image_aspect_ratio"] = json!("square")),
        Ok(Vec::new())
    );
    // And then the images are.
    fs::write(adapter.path().join(CONFIG), {
        let mut config = config(Layout::Llava, true);
        config["image_aspect_ratio"] = json!("pad");
        config.to_string()
    })
    .unwrap();
    let mut opened = Checkpoint::open(base.path()).unwrap();
    opened
        .adapt(&[Adapter::open(adapter.path(), 1.0).unwrap()])
        .unwrap();
    assert_eq!(opened.declared.fields["image_aspect_ratio"], json!("pad"));
}

#[test]
fn what_is_no_adapter_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let refused = |path: &Path, weight: f64| Adapter::open(path, weight).map(|_| ()).unwrap_err().to_string();
    assert!(refused(&path.join("no"), 1.0).contains("No such file"));
    assert!(refused(path, 0.0).contains("is given the weight 0, expected a number other than 0"));
    assert!(refused(path, f64::NAN).contains("weight NaN"));
    assert!(refused(path, 1.0).contains("has no `adapter_model.safetensors`"));
    fs::write(path.join("model.safetensors"), "").unwrap();
    assert!(refused(path, 1.0).contains("`model.safetensors` is a whole model"));
    fs::write(path.join("adapter_config.json"), lora(4, 8.0).to_string()).unwrap();
    assert!(refused(path, 1.0).contains("neither `adapter_model.safetensors` nor `adapter_model.bin`"));
    fs::remove_file(path.join("adapter_config.json")).unwrap();
    let mut stored = Stored::new();
    pair(&mut stored, "model.layers.0.self_attn.q_proj", [16, 16], 4);
    write_file(&path.join("adapter_model.safetensors"), &stored);
    assert!(refused(path, 1.0).contains("without `adapter_config.json`"));
    fs::write(path.join("adapter_config.json"), lora(4, 8.0).to_string()).unwrap();
    Adapter::open(path, 1.0).unwrap();
    fs::write(path.join("adapter_model.safetensors"), "cut").unwrap();
    assert!(refused(path, 1.0).contains("adapter_model.safetensors"));
}

#[cfg(unix)]
#[test]
fn symlinks_as_in_the_cache_of_the_hub_are_followed() {
    let base = base(Layout::Llava, true);
    let mut stored = Stored::new();
    pair(&mut stored, "model.layers.0.self_attn.q_proj", [16, 16], 4);
    let real = adapter(&lora(4, 8.0), &stored);
    let linked = tempfile::tempdir().unwrap();
    for name in ["adapter_config.json", "adapter_model.safetensors"] {
        std::os::unix::fs::symlink(real.path().join(name), linked.path().join(name)).unwrap();
    }
    let [one, two] =
        [real.path(), linked.path()].map(|path| read(&merge(base.path(), &[(path, 1.0)]).unwrap().0));
    assert!(one == two);
    fs::remove_file(real.path().join("adapter_config.json")).unwrap();
    assert!(Adapter::open(linked.path(), 1.0).is_err());
}
