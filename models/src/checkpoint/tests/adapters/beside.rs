//! What lies beside an adapter's tensors, and where it lies: what is said of it and done with it.

use super::*;
use crate::checkpoint::torch::write::Saved;

/// LLaVA's script writes what was trained beside LoRA, also where that is nothing.
#[test]
fn nothing_may_be_trained_beside_lora() {
    let base = base(Layout::Llava, true);
    let mut stored = Stored::new();
    pair(&mut stored, "model.layers.0.self_attn.q_proj", [16, 16], 4);
    let adapter = adapter(&lora(4, 8.0), &stored);
    let (_, alone) = merge(base.path(), &[(adapter.path(), 1.0)]).unwrap();
    let empty = Saved::default();
    for bytes in [empty.archive(), empty.legacy()] {
        fs::write(adapter.path().join("non_lora_trainables.bin"), &bytes).unwrap();
        let (_, beside) = merge(base.path(), &[(adapter.path(), 1.0)]).unwrap();
        assert_eq!(beside.merged, alone.merged);
        // Alone it is no adapter.
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("non_lora_trainables.bin"), &bytes).unwrap();
        let error = merge(base.path(), &[(folder.path(), 1.0)]).unwrap_err();
        assert!(error.contains("holds an empty dict and no tensor"), "{error}");
    }
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
