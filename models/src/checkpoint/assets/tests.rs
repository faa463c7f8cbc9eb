use super::text::TEXT_TEMPLATE;
use super::*;
use crate::bundle::{Aspect, Resample};

const CONFIG: &str = r#"{"model_type": "llava_qwen2", "hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
        "num_key_value_heads": 1, "intermediate_size": 64, "vocab_size": 8, "mm_hidden_size": 3072, "eos_token_id": 2,
        "mm_vision_tower": "mobileclip_l_1024", "image_aspect_ratio": "pad"}"#;
const TOKENIZER: &str = r#"{"added_tokens": [{"id": 2, "content": "<|endoftext|>"}, {"id": 3, "content": "<|im_start|>"},
        {"id": 4, "content": "<|im_end|>"}], "model": {"vocab": {"a": 0, "b": 1}}}"#;

fn checkpoint(files: &[(&str, &str)]) -> Result<Assets, String> {
    let directory = tempfile::tempdir().unwrap();
    for (name, text) in [("config.json", CONFIG), ("tokenizer.json", TOKENIZER)]
        .iter()
        .chain(files)
    {
        match *text {
            "" => std::fs::remove_file(directory.path().join(name)).unwrap(),
            text => {
                let path = directory.path().join(name);
                std::fs::create_dir_all(path.parent().unwrap()).unwrap();
                std::fs::write(path, text).unwrap();
            }
        }
    }
    let read = |fields| Declared::read(directory.path(), fields);
    let declared = Declared::fields(directory.path()).and_then(read);
    let declared = declared.map_err(|error| error.to_string())?;
    assets(directory.path(), &declared.config, &declared).map_err(|error| error.to_string())
}

/// Each of these checkpoints is refused with these words.
#[track_caller]
fn refused(cases: &[(&[(&str, &str)], &str)]) {
    let mut failures = Vec::new();
    for (files, expected) in cases {
        match checkpoint(files) {
            Err(message) if message.contains(expected) => {}
            other => failures.push(format!("{other:?}, expected {expected}")),
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

fn fast_vlm() -> String {
    r#"{"model_type": "fast_vlm", "image_token_index": 5, "text_config": {"hidden_size": 64, "num_hidden_layers": 1,
            "num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 64, "vocab_size": 8}}"#
            .to_owned()
}

const IMAGE_TOKENIZER: &str = r#"{"added_tokens": [{"id": 1, "content": "x"}, {"id": 2, "content": "y"},
        {"id": 3, "content": "<|im_start|>"}, {"id": 4, "content": "<|im_end|>"}, {"id": 5, "content": "<image>"}],
        "model": {"vocab": {"a": 0}}}"#;
const PROCESSOR: &str = r#"{"size": {"shortest_edge": 100}, "crop_size": {"height": 128, "width": 128},
        "image_mean": [0.5, 0.5, 0.5], "image_std": [1, 1, 1], "resample": 2}"#;

#[test]
fn apples_layout() {
    let assets = checkpoint(&[]).unwrap();
    assert_eq!(assets.image.aspect, Aspect::Pad { color: [0; 3] });
    assert_eq!((assets.image.height, assets.image.tokens), (1024, 256));
    assert_eq!(assets.prompt.content, Content::Text);
    assert_eq!(assets.prompt.stop_ids, [2, 4]);
    assert_eq!(assets.prompt.image_token_id, Some(5));
    let names: Vec<&str> = assets.files.iter().map(|asset| asset.path.as_str()).collect();
    assert_eq!(
        names,
        [
            "chat_template.jinja",
            "config.json",
            "generation_config.json",
            "preprocessor_config.json",
            "processor_config.json",
            "tokenizer.json",
            "tokenizer_config.json"
        ]
    );
    let tokenizer: Value = serde_json::from_slice(&assets.files[5].contents).unwrap();
    assert_eq!(tokenizer["added_tokens"][3]["content"], "<image>");
    assert_eq!(assets.files[0].contents, TEXT_TEMPLATE.as_bytes());
    let origins: Vec<String> = assets
        .files
        .iter()
        .map(|asset| format!("{:?}", asset.origin))
        .collect();
    assert_eq!(
        origins,
        [
            "Derived(\"the conversation `qwen_2` in Apple's code\")",
            "Adapted(\"in the dialect of transformers.js, `llava_qwen2`\")",
            "Derived(\"greedy, with the model's stop ids\")",
            "Derived(\"the processor in Apple's code, at 1024 pixels\")",
            "Derived(\"LlavaProcessor, 64 pixels a token\")",
            "Adapted(\"with `<image>` as id 5\")",
            "Derived(\"with the chat template and LlavaProcessor\")",
        ]
    );
}

#[test]
fn terms_of_use_go_along() {
    let assets = checkpoint(&[
        ("LICENSE", "Apple's terms\n"),
        ("README.md", "---\nlicense: apple-amlr\n---\n"),
    ]);
    let assets = assets.unwrap();
    assert_eq!(assets.license.as_deref(), Some("apple-amlr"));
    assert_eq!(assets.files[0].path, "LICENSE");
    assert_eq!(
        (&assets.files[0].contents[..], &assets.files[0].origin),
        (&b"Apple's terms\n"[..], &Origin::Kept)
    );
    assert_eq!(assets.files.len(), 8);
}

#[test]
fn transformers_layout() {
    let config = fast_vlm();
    let assets = checkpoint(&[
        ("config.json", &config),
        ("tokenizer.json", IMAGE_TOKENIZER),
        ("preprocessor_config.json", PROCESSOR),
        (
            "generation_config.json",
            r#"{"eos_token_id": [4, 1], "pad_token_id": 1}"#,
        ),
        (
            "tokenizer_config.json",
            r#"{"eos_token": {"content": "x"}, "pad_token": "y", "bos_token": null}"#,
        ),
    ])
    .unwrap();
    assert_eq!(assets.image.aspect, Aspect::Crop);
    assert_eq!(
        (
            assets.image.height,
            assets.image.shortest_edge,
            assets.image.tokens
        ),
        (128, 100, 4)
    );
    assert_eq!(
        (assets.image.resample, assets.image.mean),
        (Resample::Bilinear, [0.5; 3])
    );
    assert_eq!(assets.prompt.stop_ids, [1, 4]);
    assert_eq!(assets.prompt.image_token_id, Some(5));
    assert_eq!(assets.prompt.special_tokens["eos_token"], "x");
    assert_eq!(assets.prompt.content, Content::Parts);
    let config: Value = serde_json::from_slice(&assets.files[1].contents).unwrap();
    assert_eq!(config["model_type"], "llava_qwen2");
    assert_eq!(config["num_key_value_heads"], 1);
    assert_eq!(config["rms_norm_eps"], 1e-6);
}

#[test]
fn vocabulary_and_merges_make_a_tokenizer() {
    let config = CONFIG.replace("\"eos_token_id\": 2", "\"eos_token_id\": 3");
    let assets = checkpoint(&[
        ("config.json", &config),
        ("tokenizer.json", ""),
        ("vocab.json", r#"{"a": 0, "b": 1, "ab": 2}"#),
        ("merges.txt", "#version: 0.2\na b\n"),
        ("added_tokens.json", r#"{"<|im_end|>": 4, "<|endoftext|>": 3}"#),
    ])
    .unwrap();
    let tokenizer: Value = serde_json::from_slice(&assets.files[5].contents).unwrap();
    assert_eq!(tokenizer["model"]["merges"], json!(["a b"]));
    let ids: Vec<&Value> = tokenizer["added_tokens"]
        .as_array()
        .unwrap()
        .iter()
        .map(|token| &token["id"])
        .collect();
    assert_eq!(ids, [3, 4, 5]);
}

/// Jinja changes them before it reads a template, wherever it stands.
#[test]
fn line_ends_of_templates_are_line_feeds() {
    let (template, expected) = ("a\r\nb\rc\n{{ 'x' }}", "a\nb\nc\n{{ 'x' }}");
    let json = json!({"chat_template": template}).to_string();
    let named = json!({"chat_template": [{"name": "default", "template": template}]}).to_string();
    for (file, text) in [
        ("chat_template.jinja", template),
        ("chat_template.json", &json),
        ("tokenizer_config.json", &json),
        ("tokenizer_config.json", &named),
    ] {
        let assets = checkpoint(&[(file, text)]).unwrap();
        assert_eq!(assets.files[0].contents, expected.as_bytes(), "{file}");
    }
}

#[test]
fn line_ends_of_merges_do_not_matter() {
    let read = |merges: &str| {
        let assets = checkpoint(&[
            ("tokenizer.json", ""),
            ("vocab.json", r#"{"a": 0, "b": 1}"#),
            ("merges.txt", merges),
            ("added_tokens.json", r#"{"<|endoftext|>": 2, "<|im_end|>": 3}"#),
        ]);
        assets.unwrap().files[5].contents.clone()
    };
    let plain = read("#version: 0.2\na b\n");
    assert_eq!(read("#version: 0.2\r\na b\r\n"), plain);
    assert_eq!(read("\u{feff}#version: 0.2\na b\n"), plain);
}

#[test]
fn files_that_contradict_each_other_are_refused() {
    let decoder = |id: &str| {
        format!(r#"{{"added_tokens_decoder": {{"{id}": {{"content": "<|im_end|>", "special": true}}}}}}"#)
    };
    let (other, same) = (decoder("7"), decoder("4"));
    assert!(checkpoint(&[("tokenizer_config.json", &same)]).is_ok());
    let cases: [(&[(&str, &str)], &str); 9] = [
        (
            &[("generation_config.json", r#"{"eos_token_id": [4, 5]}"#)],
            "5 is the id of `<image>` and a stop id: [4, 5]",
        ),
        (
            &[("tokenizer_config.json", &other)],
            "tokenizer_config.json: states id 7 for `<|im_end|>`, the tokenizer gives it 4",
        ),
        (
            &[("added_tokens.json", r#"{"<|im_end|>": 7}"#)],
            "added_tokens.json: states id 7 for `<|im_end|>`",
        ),
        (
            &[("added_tokens.json", r#"{"<|new|>": 7}"#)],
            "states id 7 for `<|new|>`, the tokenizer gives it 5",
        ),
        (
            &[("tokenizer_config.json", r#"{"eos_token": "</s>"}"#)],
            "`eos_token` is `</s>`, which the tokenizer does not know",
        ),
        (
            &[("generation_config.json", r#"{"eos_token_id": [4, 1]}"#)],
            "generation_config.json: `eos_token_id` is [4,1]: 1 is not the id of a special token",
        ),
        (
            &[("generation_config.json", r#"{"eos_token_id": 6}"#)],
            "6 is not the id of a special token",
        ),
        (
            &[("tokenizer_config.json", r#"{"added_tokens_decoder": {"x": {}}}"#)],
            "`added_tokens_decoder` has {} as `x`, expected a number and an object",
        ),
        (
            &[(
                "tokenizer.json",
                r#"{"added_tokens": [{"id": 3, "content": "<|im_end|>"}], "model": {"vocab": {"a": 0}}}"#,
            )],
            "`added_tokens[0]` states id 3 for `<|im_end|>`, the tokenizer gives it 1",
        ),
    ];
    refused(&cases);
}

#[test]
fn a_template_gets_the_tokens_that_it_names() {
    let config = r#"{"eos_token": "<|im_end|>", "image_token": "<image>", "boi_token": "<|im_start|>"}"#;
    let files = |template| {
        let assets = checkpoint(&[
            ("tokenizer_config.json", config),
            ("chat_template.jinja", template),
        ]);
        assets
            .unwrap()
            .prompt
            .special_tokens
            .into_iter()
            .collect::<Vec<_>>()
    };
    let pair = |name: &str, token: &str| (name.to_owned(), token.to_owned());
    let eos = pair("eos_token", "<|im_end|>");
    assert_eq!(files("{{ 'hello' }}"), std::slice::from_ref(&eos));
    assert_eq!(files("{{ image_token }}"), [eos, pair("image_token", "<image>")]);
}

#[test]
fn what_is_missing_or_unsupported_is_named() {
    let fast_vlm = fast_vlm();
    let cases: [(&[(&str, &str)], &str); 13] = [
        (&[("tokenizer.json", "")], "has no `tokenizer.json`"),
        (&[("tokenizer.json", "{}")], "has no `model` with a `vocab`"),
        (
            &[("chat_template.jinja", " \n")],
            "chat_template.jinja: the chat template is empty",
        ),
        (
            &[("processor_config.json", r#"{"chat_template": ""}"#)],
            "processor_config.json: the chat template is empty",
        ),
        (
            &[(
                "tokenizer_config.json",
                r#"{"chat_template": [{"name": "rag", "template": "x"}]}"#,
            )],
            "`chat_template` is [{\"name\":\"rag\",\"template\":\"x\"}], expected a text, or one that is called `default`",
        ),
        (
            &[
                ("config.json", &fast_vlm),
                ("tokenizer.json", IMAGE_TOKENIZER),
                (
                    "preprocessor_config.json",
                    r#"{"size": {"shortest_edge": 1024}, "crop_size": 128, "rescale_factor": "x", "image_std": [1, 0, 1]}"#,
                ),
            ],
            "`image_std` has a 0, by which pixels would be divided; `rescale_factor` is \"x\", expected a number",
        ),
        (
            &[("tokenizer.json", "[1]")],
            "tokenizer.json: is not a JSON object",
        ),
        (
            &[
                ("tokenizer.json", r#"{"model": {"vocab": {}}}"#),
                ("config.json", &CONFIG.replace("\"eos_token_id\": 2,", "")),
            ],
            "no `eos_token_id`",
        ),
        (
            &[("config.json", &CONFIG.replace("\"pad\"", "\"anyres\""))],
            "`image_aspect_ratio` is \"anyres\"",
        ),
        (
            &[("config.json", &fast_vlm), ("tokenizer.json", IMAGE_TOKENIZER)],
            "has no `preprocessor_config.json`",
        ),
        (
            &[
                ("config.json", &fast_vlm),
                ("preprocessor_config.json", PROCESSOR),
            ],
            "`image_token_index` is 5, the tokenizer has no such token",
        ),
        (
            &[
                ("config.json", &fast_vlm),
                ("tokenizer.json", IMAGE_TOKENIZER),
                (
                    "preprocessor_config.json",
                    r#"{"size": 0, "crop_size": 128, "resample": 9, "do_resize": false}"#,
                ),
            ],
            "`do_resize` is false, this build supports true; `resample` is 9",
        ),
        (
            &[
                ("config.json", &fast_vlm),
                ("tokenizer.json", IMAGE_TOKENIZER),
                ("preprocessor_config.json", r#"{"size": {"shortest_edge": 128}}"#),
            ],
            "`crop_size` is 224: the image size is 224, expected a multiple of 64",
        ),
    ];
    refused(&cases);
}

/// A checkpoint of transformers with these files, or the error.
fn of_transformers(files: &[(&str, &str)]) -> Result<Assets, String> {
    let config = fast_vlm();
    let mut all = vec![
        ("config.json", config.as_str()),
        ("tokenizer.json", IMAGE_TOKENIZER),
        ("preprocessor_config.json", PROCESSOR),
    ];
    all.extend(files);
    checkpoint(&all)
}

#[test]
fn what_an_image_processor_would_do_otherwise_is_refused() {
    let with = |more: &str| {
        let processor = format!("{}, {more}}}", PROCESSOR.strip_suffix('}').unwrap());
        // The last of two fields of a name counts.
        let processor: Value = serde_json::from_str(&processor).unwrap();
        of_transformers(&[("preprocessor_config.json", &processor.to_string())])
    };
    for more in [
        r#""do_pad": null, "pad_size": null, "default_to_square": false"#,
        r#""do_pad": false, "do_convert_rgb": true"#,
    ] {
        assert_eq!(
            with(more).unwrap().image,
            of_transformers(&[]).unwrap().image,
            "{more}"
        );
    }
    let edge = |size: &str| {
        let processor = PROCESSOR.replace(r#"{"shortest_edge": 100}"#, size);
        let assets = of_transformers(&[("preprocessor_config.json", &processor)])?;
        Ok::<u32, String>(assets.image.shortest_edge)
    };
    assert_eq!(edge("100"), Ok(100));
    assert_eq!(edge(r#"{"shortest_edge": 100, "longest_edge": null}"#), Ok(100));
    let null = |field: &str, old: &str| {
        let old = format!("\"{field}\": {old}");
        assert!(PROCESSOR.contains(&old));
        let processor = PROCESSOR.replace(&old, &format!("\"{field}\": null"));
        of_transformers(&[("preprocessor_config.json", &processor)]).map(|_| 0)
    };
    let cases = [
        (
            edge(r#"{"shortest_edge": 100, "longest_edge": 300}"#),
            "`size.longest_edge` is 300, this build supports a `shortest_edge` alone",
        ),
        (
            edge(r#"{"height": 100, "width": 100}"#),
            "expected a `shortest_edge`",
        ),
        (
            edge(r#"100, "default_to_square": true"#),
            "`size` is 100 with `default_to_square` true",
        ),
        (
            with(r#""do_pad": true"#).map(|_| 0),
            "`do_pad` is true, this build supports false",
        ),
        (
            with(r#""do_normalize": 1"#).map(|_| 0),
            "`do_normalize` is 1, expected true or false",
        ),
        (
            with(r#""do_resize": null"#).map(|_| 0),
            "`do_resize` is null, this build supports true",
        ),
        (
            edge(r#"{"shortest_edge": 4000000000}"#),
            "preprocessor_config.json: `size.shortest_edge` is 4000000000, expected 1 to 16384",
        ),
        (edge("5000000000"), "`size` is 5000000000, expected 1 to 16384"),
        (
            with(r#""crop_size": 4000000000"#).map(|_| 0),
            "preprocessor_config.json: `crop_size` is 4000000000: the image size is 4000000000",
        ),
        (
            with(r#""image_processor_type": "ConvNextImageProcessor""#).map(|_| 0),
            "`image_processor_type` is \"ConvNextImageProcessor\", this build supports",
        ),
        (
            with(r#""image_mean": [0.5, 0.5]"#).map(|_| 0),
            "expected three numbers or one",
        ),
        (
            with(r#""rescale_factor": null"#).map(|_| 0),
            "`rescale_factor` is null, expected a number",
        ),
        (
            null("image_mean", "[0.5, 0.5, 0.5]"),
            "`image_mean` is null, expected three numbers or one",
        ),
        (null("resample", "2"), "`resample` is null, this build supports"),
    ];
    for (found, expected) in cases {
        assert!(
            found.as_ref().is_err_and(|message| message.contains(expected)),
            "{found:?}: {expected}"
        );
    }
    let processor = PROCESSOR.replacen(
        '{',
        r#"{"do_normalize": false, "do_rescale": false, "rescale_factor": null, "#,
        1,
    );
    let processor = processor.replace("[0.5, 0.5, 0.5]", "null");
    let assets = of_transformers(&[("preprocessor_config.json", &processor)]).unwrap();
    assert_eq!((assets.image.mean, assets.image.rescale), ([0.0; 3], 1.0));
    let nulls = processor.replace(": false", ": null");
    assert_eq!(
        of_transformers(&[("preprocessor_config.json", &nulls)])
            .unwrap()
            .image,
        assets.image
    );
    let assets = with(r#""image_mean": 0.25, "image_std": 0.5"#).unwrap();
    assert_eq!((assets.image.mean, assets.image.std), ([0.25; 3], [0.5; 3]));
}

#[test]
fn a_tokenizer_that_would_make_other_ids_is_refused() {
    let image = r#""content": "<image>""#;
    let model = r#""model": {"#;
    let processor = |processor: &str| format!(r#""post_processor": {processor}, "model": {{"#);
    let template = r#"{"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "x", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]}"#;
    let nothing = r#"{"type": "TemplateProcessing", "single": [{"Sequence": {"id": "A", "type_id": 0}}]}"#;
    let cases = [
        (
            image,
            format!("{image}, \"rstrip\": true"),
            "`added_tokens` has `<image>` with `rstrip` true",
        ),
        (
            image,
            format!("{image}, \"lstrip\": true"),
            "`added_tokens` has `<image>` with `lstrip` true",
        ),
        (
            image,
            format!("{image}, \"single_word\": true"),
            "with `single_word` true",
        ),
        (image, format!("{image}, \"rstrip\": false"), ""),
        (
            model,
            format!("{model} \"dropout\": 0.5, "),
            "`model.dropout` is 0.5",
        ),
        (model, format!("{model} \"dropout\": null, "), ""),
        (
            model,
            processor(template),
            "`post_processor` adds `x` to every text",
        ),
        (model, processor(nothing), ""),
        (model, processor(r#"{"type": "ByteLevel"}"#), ""),
        (
            model,
            processor(&format!(
                r#"{{"type": "Sequence", "processors": [{nothing}, {template}]}}"#
            )),
            "`post_processor.processors[1]` adds `x`",
        ),
        (
            model,
            processor(r#"{"type": "RobertaProcessing", "cls": ["x", 1], "sep": ["y", 2]}"#),
            "adds `x` and `y`",
        ),
    ];
    for (old, new, expected) in cases {
        let tokenizer = IMAGE_TOKENIZER.replacen(old, &new, 1);
        let found = of_transformers(&[("tokenizer.json", &tokenizer)]).map(|_| ());
        let right = match &found {
            Ok(()) => expected.is_empty(),
            Err(message) => !expected.is_empty() && message.contains(expected),
        };
        assert!(right, "{new}: {found:?}, expected {expected}");
    }
    let decoder =
        r#"{"added_tokens_decoder": {"5": {"content": "<image>", "special": true, "rstrip": true}}}"#;
    let message = of_transformers(&[("tokenizer_config.json", decoder)]).unwrap_err();
    assert!(
        message.contains("tokenizer_config.json: `added_tokens_decoder` has `<image>`"),
        "{message}"
    );
}

#[test]
fn templates_are_read_in_transformers_order() {
    let places = [
        (
            "processor_config.json",
            r#"{"chat_template": "inside"}"#,
            "inside",
        ),
        (
            "chat_template.json",
            r#"{"chat_template": {"default": "old"}}"#,
            "old",
        ),
        ("chat_template.jinja", "alone", "alone"),
        (
            "tokenizer_config.json",
            r#"{"chat_template": "tokenizer's"}"#,
            "tokenizer's",
        ),
    ];
    for first in 0..places.len() {
        let files: Vec<(&str, &str)> = places[first..]
            .iter()
            .map(|(name, text, _)| (*name, *text))
            .collect();
        let assets = checkpoint(&files).unwrap();
        assert_eq!(assets.files[0].contents, places[first].2.as_bytes());
        let origin = match places[first].0 {
            "chat_template.jinja" => Origin::Kept,
            name => Origin::Derived(name.to_owned()),
        };
        assert_eq!(assets.files[0].origin, origin);
        let others = places[first + 1..]
            .iter()
            .filter(|(name, ..)| *name != "tokenizer_config.json");
        let said: Vec<String> = others
                .map(|(other, ..)| {
                    let name = places[first].0;
                    format!("{name} and {other} have different chat templates: that of {name} is taken, as transformers does")
                })
                .collect();
        assert_eq!(assets.warnings, said);
    }
    let same = [
        ("chat_template.json", r#"{"chat_template": "a\r\nb"}"#),
        ("chat_template.jinja", "a\nb\n"),
    ];
    assert_eq!(checkpoint(&same).unwrap().warnings, Vec::<String>::new());
}

/// As transformers 5.24 reads the files.
#[test]
fn what_a_tokenizers_class_does_otherwise_is_refused_or_said() {
    let words = serde_json::to_string(text::QWEN2_WORDS).unwrap();
    let whole = |more: &str, space: bool, normalizer: &str| {
        let parts = format!(
            r#"{more} "normalizer": {normalizer}, "pre_tokenizer": {{"type": "Sequence", "pretokenizers": [
                {{"type": "Split", "pattern": {{"Regex": {words}}}}}, {{"type": "ByteLevel", "add_prefix_space": {space}}}]}}, "model""#
        );
        IMAGE_TOKENIZER.replacen("\"model\"", &parts, 1)
    };
    let plain = whole("", false, r#"{"type": "NFC"}"#);
    let spaced = whole("", true, r#"{"type": "NFC"}"#);
    let end = r#""content": "<|im_end|>""#;
    let stripped = plain.replacen(end, &format!("{end}, \"rstrip\": true"), 1);
    let qwen2 = r#"{"tokenizer_class": "Qwen2Tokenizer"}"#;
    let with = |field: &str| qwen2.replacen('{', &format!("{{{field}, "), 1);
    let other = |field: &str| format!("{{{field}}}");
    let flag = |rstrip: bool| {
        format!(
            r#""added_tokens_decoder": {{"4": {{"content": "<|im_end|>", "special": true, "rstrip": {rstrip}}}}}"#
        )
    };
    let [strips, not] = [true, false].map(flag);
    let eos = r#""eos_token": "<|im_end|>", "unk_token": null, "pad_token": null"#;
    let quiet = r#""eos_token": null, "unk_token": null, "pad_token": null"#;
    for (tokenizer, config, expected) in [
        (&plain, other(eos), ""),
        (&plain, with(quiet), ""),
        (&plain, with(&format!("{quiet}, \"add_prefix_space\": false")), ""),
        (&spaced, with(&format!("{quiet}, \"add_prefix_space\": true")), ""),
        (&spaced, other(r#""add_prefix_space": false"#), ""),
        (
            &plain,
            with(&format!("{quiet}, \"add_prefix_space\": true")),
            "tokenizer_config.json: `add_prefix_space` is true, and the pre-tokenizer of tokenizer.json has false",
        ),
        (
            &spaced,
            with(quiet).replace("Qwen2Tokenizer", "Qwen2TokenizerFast"),
            "`add_prefix_space` is not set, and the pre-tokenizer of tokenizer.json has true",
        ),
        (
            &plain,
            other(r#""split_special_tokens": true"#),
            "tokenizer_config.json: `split_special_tokens` is true",
        ),
        (&stripped, other(eos), ""),
        (&stripped, with(quiet), ""),
        (&stripped, other(&strips), ""),
        (
            &stripped,
            with(eos),
            "`added_tokens` has `<|im_end|>` with `rstrip` true, and `Qwen2Tokenizer`, the `tokenizer_class` of",
        ),
        (
            &stripped,
            other(&not),
            "with `rstrip` true, and `added_tokens_decoder` of tokenizer_config.json has false",
        ),
        (
            &plain,
            other(&strips),
            "tokenizer.json: `added_tokens` has `<|im_end|>` with `rstrip` false, and `added_tokens_decoder`",
        ),
    ] {
        let found = of_transformers(&[("tokenizer.json", tokenizer), ("tokenizer_config.json", &config)]);
        let right = match &found {
            Ok(_) => expected.is_empty(),
            Err(message) => !expected.is_empty() && message.contains(expected),
        };
        assert!(right, "{config}: {:?}, expected {expected}", found.map(|_| ()));
    }
    let said = |tokenizer: &str, config: &str| {
        let generation = ("generation_config.json", r#"{"eos_token_id": 4}"#);
        let files = [
            generation,
            ("tokenizer.json", tokenizer),
            ("tokenizer_config.json", config),
        ];
        of_transformers(&files).unwrap().warnings
    };
    let config = with(quiet);
    assert_eq!(said(&plain, &config), Vec::<String>::new());
    let no_normalizer = whole("", false, "null");
    assert_eq!(
        said(&no_normalizer, &config),
        [
            "tokenizer.json: `normalizer` is null, and `Qwen2Tokenizer`, the `tokenizer_class` of \
                 tokenizer_config.json, has NFC in transformers: that of tokenizer.json is taken"
        ]
    );
    assert_eq!(said(&no_normalizer, "{}"), Vec::<String>::new());
    let other_words = plain.replace("(?!\\\\S)", "");
    assert_ne!(other_words, plain);
    assert!(matches!(said(&other_words, &config).as_slice(), [one] if one.contains("other words")));
    let cut = whole(
        r#""truncation": {"max_length": 70, "direction": "Right"},"#,
        false,
        r#"{"type": "NFC"}"#,
    );
    assert_eq!(
        said(&cut, "{}"),
        [
            "tokenizer.json: `truncation` has `max_length` 70, and transformers cuts prompts to as many positions, \
                 those of images too: nothing is cut here"
        ]
    );
}

#[test]
fn qwen2s_class_has_tokens_that_no_file_names() {
    let tokenizer = IMAGE_TOKENIZER.replace(r#""content": "x""#, r#""content": "<|endoftext|>""#);
    let tokens = |config: &str| {
        let template = (
            "chat_template.jinja",
            "{{ eos_token }}{{ pad_token }}{{ unk_token }}",
        );
        let files = [
            ("tokenizer.json", tokenizer.as_str()),
            ("tokenizer_config.json", config),
            template,
        ];
        let tokens = of_transformers(&files).unwrap().prompt.special_tokens.into_iter();
        tokens
            .map(|(name, token)| format!("{name} {token}"))
            .collect::<Vec<_>>()
    };
    let default = |name: &str| format!("{name} <|endoftext|>");
    assert_eq!(
        tokens(r#"{"tokenizer_class": "Qwen2TokenizerFast"}"#),
        ["eos_token", "pad_token", "unk_token"].map(default)
    );
    assert_eq!(
        tokens(r#"{"tokenizer_class": "Qwen2Tokenizer", "eos_token": "<|im_end|>", "pad_token": null}"#),
        ["eos_token <|im_end|>".to_owned(), default("unk_token")]
    );
    assert_eq!(
        tokens(r#"{"tokenizer_class": "TokenizersBackend"}"#),
        Vec::<String>::new()
    );
}

#[test]
fn an_image_token_that_is_no_whole_number_is_named() {
    for (config, expected) in [
        (
            fast_vlm().replace("index\": 5", "index\": 5.0"),
            "`image_token_index` is 5.0, expected a whole number",
        ),
        (
            fast_vlm().replace("index\": 5", "id\": \"5\""),
            "`image_token_id` is \"5\", expected a whole number",
        ),
    ] {
        let message = of_transformers(&[("config.json", &config)]).unwrap_err();
        assert!(message.contains(expected), "{message}");
    }
}

/// As transformers 5.24 reads the folder.
#[test]
fn a_template_with_a_name_may_be_the_default() {
    let default = ("additional_chat_templates/default.jinja", "by name");
    let other = ("additional_chat_templates/rag.jinja", "rag");
    let in_tokenizer = ("tokenizer_config.json", r#"{"chat_template": "tokenizer's"}"#);
    let alone = ("chat_template.jinja", "alone");
    let old = ("chat_template.json", r#"{"chat_template": "old"}"#);
    let in_processor = ("processor_config.json", r#"{"chat_template": "inside"}"#);
    let read = |files: &[(&str, &str)]| {
        let assets = checkpoint(files)?;
        let template = &assets.files[0];
        let text = String::from_utf8(template.contents.clone()).unwrap();
        Ok::<_, String>((text, template.origin.clone(), assets.warnings.len()))
    };
    let derived = || Origin::Derived(default.0.to_owned());
    assert_eq!(
        read(&[default, other, in_tokenizer]),
        Ok(("by name".to_owned(), derived(), 0))
    );
    assert_eq!(read(&[default, alone]), Ok(("alone".to_owned(), Origin::Kept, 1)));
    assert_eq!(read(&[other, alone]), Ok(("alone".to_owned(), Origin::Kept, 0)));
    let (text, ..) = read(&[other, in_processor]).unwrap();
    assert_eq!(text, "inside");
    let message = read(&[other, in_tokenizer]).unwrap_err();
    assert!(
        message.contains("rag.jinja: is a chat template with a name"),
        "{message}"
    );
    let message = read(&[default, old]).unwrap_err();
    assert!(
        message.contains("chat_template.json: is there beside `additional_chat_templates/default.jinja`"),
        "{message}"
    );
}

#[test]
fn where_answers_go_on_in_transformers_is_said() {
    let warnings = |file: &str| {
        of_transformers(&[("generation_config.json", file)])
            .unwrap()
            .warnings
    };
    assert_eq!(warnings(r#"{"eos_token_id": [1, 4]}"#), Vec::<String>::new());
    assert_eq!(
        warnings(r#"{"eos_token_id": 1}"#),
        [
            "generation_config.json: `eos_token_id` is 1, and answers end at `<|im_end|>` (4) too, where transformers \
              would go on"
        ]
    );
    assert_eq!(
        of_transformers(&[]).unwrap().warnings,
        [
            "config.json: `eos_token_id` is not set, and answers end at `<|im_end|>` (4) too, where transformers would \
              go on"
        ]
    );
    // Apple's code does not.
    assert_eq!(checkpoint(&[]).unwrap().warnings, Vec::<String>::new());
    let said = checkpoint(&[(
        "generation_config.json",
        r#"{"eos_token_id": 2, "repetition_penalty": 1.1}"#,
    )]);
    let said = said.unwrap().warnings;
    assert!(
        matches!(said.as_slice(), [one] if one.contains("`repetition_penalty` is 1.1")),
        "{said:?}"
    );
}

#[test]
fn positions_of_an_image_are_stated_once() {
    let warnings = |file: &str| {
        let generation = ("generation_config.json", r#"{"eos_token_id": 4}"#);
        of_transformers(&[generation, ("processor_config.json", file)])
            .unwrap()
            .warnings
    };
    for same in [
        r#"{"patch_size": 64, "num_additional_image_tokens": 0}"#,
        r#"{"patch_size": null, "num_additional_image_tokens": 1, "vision_feature_select_strategy": "default"}"#,
    ] {
        assert_eq!(warnings(same), Vec::<String>::new());
    }
    assert_eq!(
        warnings(r#"{"patch_size": 32, "num_additional_image_tokens": 1}"#),
        [
            "processor_config.json: `patch_size` is 32, expected 64, as config.json and the tower have it: it is not \
                 believed",
            "processor_config.json: `num_additional_image_tokens` is 1, expected 0, as config.json and the tower have \
                 it: it is not believed",
        ]
    );
    let both = fast_vlm().replacen('{', r#"{"image_token_id": 4, "#, 1);
    let message = of_transformers(&[("config.json", &both)]).unwrap_err();
    assert!(
        message.contains("`image_token_index` is 5 and `image_token_id` is 4, expected the same"),
        "{message}"
    );
    let both = fast_vlm().replacen('{', r#"{"image_token_id": 5, "#, 1);
    assert!(of_transformers(&[("config.json", &both)]).is_ok());
}
