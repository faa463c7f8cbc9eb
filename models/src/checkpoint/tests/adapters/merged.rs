//! What each kind of adapter makes of the weights, against sums in float64.

use super::*;
use crate::checkpoint::Merged;

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
            config["target_modules"] = json!(["q_proj", "up_proj", projector]);
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

/// What peft 0.21 writes for `ensure_weight_tying`: LoRA of the embedding, and the same turned over of the head, which
/// `target_modules` does not have. Unmerged, it answers with each where it stands.
#[test]
fn a_head_that_follows_the_embedding_has_the_same_delta() {
    const MODULE: &str = "base_model.model.model.embed_tokens";
    let mut stored = Stored::new();
    put(&mut stored, &format!("{MODULE}.lora_embedding_A"), &[2, 20]);
    put(&mut stored, &format!("{MODULE}.lora_embedding_B"), &[16, 2]);
    let turned = |name: &str, [rows, columns]: [u64; 2]| {
        let values = &stored[&format!("{MODULE}.{name}")].1;
        let (height, width) = (usize::try_from(rows).unwrap(), usize::try_from(columns).unwrap());
        let at = |column| (0..height).map(move |row| values[row * width + column]);
        (vec![columns, rows], (0..width).flat_map(at).collect::<Vec<f32>>())
    };
    let (a, b) = (
        turned("lora_embedding_B", [16, 2]),
        turned("lora_embedding_A", [2, 20]),
    );
    let delta = product(&b.1, &a.1, 2);
    stored.insert("base_model.model.lm_head.lora_A.weight".to_owned(), a);
    stored.insert("base_model.model.lm_head.lora_B.weight".to_owned(), b);
    let mut config = lora(2, 4.0);
    config["target_modules"] = json!(["q_proj", "model.embed_tokens"]);
    config["ensure_weight_tying"] = json!(true);
    let of = |config: &Value| adapter(config, &stored);
    let copied = changed(true, |stored| {
        let table = stored["model.embed_tokens.weight"].clone();
        stored.insert("lm_head.weight".to_owned(), table);
    });
    for base in [base(Layout::Llava, true), copied] {
        let own = open(base.path(), None).unwrap().0;
        let own = own.read("language_model.embed_tokens.weight").unwrap();
        let expected = plus(&own, 2.0, &delta);
        let (merged, _) = merge(base.path(), &[(of(&config).path(), 1.0)]).unwrap();
        for name in ["language_model.embed_tokens.weight", "lm_head.weight"] {
            assert_close(&merged.read(name).unwrap(), &expected, name);
        }
    }
    // A head of its own follows nothing, and without the flag nothing does.
    let says = "`target_modules` of `adapter_config.json` leaves out";
    let apart = base(Layout::Llava, false);
    let message = merge(apart.path(), &[(of(&config).path(), 1.0)]).unwrap_err();
    assert!(message.contains(says), "{message}");
    config["ensure_weight_tying"] = json!(false);
    let tied = base(Layout::Llava, true);
    let message = merge(tied.path(), &[(of(&config).path(), 1.0)]).unwrap_err();
    assert!(message.contains(says), "{message}");
}

/// What LLaVA's script writes of a trained table that is the head too: it is one parameter, with one name.
#[test]
fn a_trained_table_is_the_head_too_where_the_base_says_so() {
    const TABLE: &str = "language_model.embed_tokens.weight";
    let mut stored = Stored::new();
    pair(&mut stored, "model.layers.0.mlp.up_proj", [24, 16], 2);
    put(
        &mut stored,
        "base_model.model.model.embed_tokens.weight",
        &[20, 16],
    );
    let copied = |tied| {
        changed(tied, |stored| {
            let table = stored["model.embed_tokens.weight"].clone();
            stored.insert("lm_head.weight".to_owned(), table);
        })
    };
    for (base, saved, tied) in [
        (base(Layout::Llava, true), false, true),
        (copied(true), false, true),
        (copied(false), false, false),
        (base(Layout::Llava, true), true, false),
    ] {
        let mut config = lora(2, 2.0);
        if saved {
            // A module of its own, beside that of the base.
            config["modules_to_save"] = json!(["embed_tokens"]);
        }
        let adapter = adapter(&config, &stored);
        let own = open(base.path(), None).unwrap().0.read(TABLE).unwrap();
        let (canonical, _) = merge(base.path(), &[(adapter.path(), 1.0)]).unwrap();
        assert_eq!(canonical.config().decoder.tie_word_embeddings, tied);
        assert_eq!(
            canonical.read(TABLE).unwrap(),
            stored["base_model.model.model.embed_tokens.weight"].1
        );
        if !tied {
            assert_eq!(canonical.read("lm_head.weight").unwrap(), own);
        }
    }
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
