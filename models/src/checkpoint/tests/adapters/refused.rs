//! What is no adapter, or does not fit: what is said of it.

use super::*;

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
        (json!({"r": null}), "`r` is null, expected a whole number above 0"),
        (json!({"r": 1e300}), "`r` is 1e"),
        (
            json!({"lora_alpha": "8"}),
            "`lora_alpha` is \"8\", expected a number",
        ),
        (json!({"lora_alpha": [8]}), "`lora_alpha` is [8]"),
        (
            json!({"lora_alpha": null}),
            "`lora_alpha` is null, expected a number",
        ),
        (json!({"exclude_modules": 3}), "`exclude_modules` is 3"),
        (
            json!({"exclude_modules": "("}),
            "`exclude_modules`: `(` is not a regular expression",
        ),
        (
            json!({"layers_to_transform": "0", "target_modules": ["q_proj"]}),
            "`layers_to_transform` is \"0\", expected a layer's number",
        ),
        (
            json!({"layers_to_transform": [0]}),
            "expected no such field beside a `target_modules` that is no list",
        ),
        (json!({"layers_pattern": ["("]}), "`layers_pattern`: `(`"),
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
            json!({"init_lora_weights": "lora_ga"}),
            "changes the base's weights",
        ),
        (
            json!({"alpha_pattern": {"[a-z&&_]*_proj": 77}}),
            "has `&&`, which is read otherwise here than in Python",
        ),
        (
            json!({"layers_pattern": vec!["layers"; 17], "layers_to_transform": [0]}),
            "`layers_pattern`: more than 16 patterns",
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
        ("target_modules", json!(["q_proj"])),
        ("layers_to_transform", json!([0])),
        ("exclude_modules", json!(["v_proj"])),
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
    // peft's defaults: the same rank and alpha.
    let mut stored = Stored::new();
    pair(&mut stored, "model.layers.0.self_attn.q_proj", [16, 16], 8);
    let merged = |config: &Value| {
        let adapter = super::adapter(config, &stored);
        let (canonical, _) = merge(base.path(), &[(adapter.path(), 1.0)]).unwrap();
        read(&canonical)
    };
    let mut config = lora(8, 8.0);
    let stated = merged(&config);
    for name in ["r", "lora_alpha"] {
        config.as_object_mut().unwrap().remove(name);
    }
    assert!(merged(&config) == stated);
}

#[test]
fn tensors_that_peft_would_not_load_are_refused() {
    let base = base(Layout::Llava, true);
    let mut stored = Stored::new();
    pair(&mut stored, "model.layers.0.self_attn.q_proj", [16, 16], 4);
    for (changes, field) in [
        (json!({"target_modules": ["k_proj"]}), "target_modules"),
        (json!({"target_modules": "q_proj"}), "target_modules"),
        (
            json!({"exclude_modules": ["layers.0.self_attn.q_proj"]}),
            "exclude_modules",
        ),
        (
            json!({"target_modules": ["q_proj"], "layers_to_transform": 1}),
            "layers_to_transform",
        ),
    ] {
        let mut config = lora(4, 8.0);
        for (name, value) in changes.as_object().unwrap() {
            config[name] = value.clone();
        }
        let adapter = adapter(&config, &stored);
        let message = merge(base.path(), &[(adapter.path(), 1.0)])
            .map(|_| ())
            .unwrap_err();
        assert!(
            message.contains(&format!("q_proj.lora_A.weight` is of a module that `{field}`")),
            "{message}"
        );
    }
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
