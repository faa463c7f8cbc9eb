//! What a contract may say, and what it may not.

mod adopted;

use super::*;
use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;

fn io(name: &str, dtype: DType, dims: &[&str]) -> Io {
    let dims = dims
        .iter()
        .map(|dim| {
            dim.parse()
                .map_or_else(|_| IoDim::Symbol((*dim).to_owned()), IoDim::Fixed)
        })
        .collect();
    Io {
        name: name.to_owned(),
        dtype,
        dims,
    }
}

fn graph(path: &str, inputs: Vec<Io>, outputs: Vec<Io>) -> GraphEntry {
    GraphEntry {
        path: path.to_owned(),
        data: Vec::new(),
        inputs,
        outputs,
        adopted: None,
    }
}

/// A bundle of one layer whose files hold their own names.
fn bundle() -> Bundle {
    use DType::{Float32, Int64};
    let cache = |prefix: &str, length: &str| -> Vec<Io> {
        let one = |part: &str| {
            io(
                &format!("{prefix}.0.{part}"),
                Float32,
                &["batch", "2", length, "8"],
            )
        };
        vec![one("key"), one("value")]
    };
    let embeds = || io("inputs_embeds", Float32, &["batch", "new", "16"]);
    let mut inputs = vec![
        embeds(),
        io("attention_mask", Int64, &["batch", "total"]),
        io("position_ids", Int64, &["batch", "new"]),
    ];
    inputs.extend(cache("past_key_values", "past"));
    let mut outputs = vec![io("logits", Float32, &["batch", "1", "50"])];
    outputs.extend(cache("present", "total"));
    let files = [
        "chat_template.jinja",
        "onnx/d.onnx",
        "onnx/e.onnx",
        "onnx/v.onnx",
        "tokenizer.json",
    ];
    let entry = |path: &&str| entry(path);
    Bundle {
        schema: SCHEMA,
        tool: "fvlm-export 0.1.0".to_owned(),
        model: ModelInfo {
            name: "demo".to_owned(),
            layout: "llava".to_owned(),
            stored: Float32,
            parameters: Parameters {
                vision: 1,
                projector: 1,
                embed: 1,
                decoder: 1,
            },
            license: None,
        },
        source: Vec::new(),
        adapters: Vec::new(),
        packages: Vec::new(),
        kv: KvSpec {
            layers: 1,
            kv_heads: 2,
            head_dim: 8,
            max_context: 100,
        },
        image: ImageSpec {
            height: 64,
            width: 64,
            aspect: Aspect::Crop,
            shortest_edge: 64,
            resample: Resample::Bicubic,
            rescale: 1.0 / 255.0,
            mean: [0.0; 3],
            std: [1.0; 3],
            tokens: 1,
            alpha: Alpha::Dropped,
        },
        prompt: PromptSpec {
            tokenizer: "tokenizer.json".to_owned(),
            chat_template: "chat_template.jinja".to_owned(),
            content: Content::Text,
            image_token: "<image>".to_owned(),
            image_token_id: None,
            stop_ids: vec![49],
            special_tokens: BTreeMap::new(),
            vocab_size: 50,
            hidden_size: 16,
        },
        variants: vec![Variant {
            target: Target::Portable,
            precision: Precision::Fp32,
            opset: 20,
            kv_dtype: Float32,
            vision_encoder: graph(
                "onnx/v.onnx",
                vec![io("pixel_values", Float32, &["batch", "3", "64", "64"])],
                vec![io("image_features", Float32, &["batch", "1", "16"])],
            ),
            further_encoders: Vec::new(),
            embed_tokens: graph(
                "onnx/e.onnx",
                vec![io("input_ids", Int64, &["batch", "new"])],
                vec![embeds()],
            ),
            decoder: graph("onnx/d.onnx", inputs, outputs),
            fixed: None,
        }],
        files: files.iter().map(entry).collect(),
        unknown: Vec::new(),
    }
}

/// [`bundle`] with an encoder for images of another size in the same file.
fn two_sizes() -> Bundle {
    let mut bundle = bundle();
    let mut graph = bundle.variants[0].vision_encoder.clone();
    graph.inputs = vec![io("pixel_values", DType::Float32, &["batch", "3", "128", "128"])];
    graph.outputs = vec![io("image_features", DType::Float32, &["batch", "4", "16"])];
    bundle.variants[0].further_encoders.push(SizedEncoder {
        height: 128,
        width: 128,
        shortest_edge: 144,
        tokens: 4,
        graph,
    });
    bundle
}

#[test]
fn a_size_is_a_bundle_of_its_own() {
    let whole = two_sizes();
    let directory = on_disk(&whole);
    let read = Bundle::open(directory.path()).unwrap();
    assert_eq!(read, whole);
    assert_eq!(read.image_sizes(), [(64, 64), (128, 128)]);
    assert_eq!(read.at_size(64, 64), Some(bundle()));
    assert_eq!(read.at_size(128, 64), None);
    let large = read.at_size(128, 128).unwrap();
    large.check(directory.path()).unwrap();
    assert_eq!(large.image_sizes(), [(128, 128)]);
    assert_eq!((large.image.shortest_edge, large.image.tokens), (144, 4));
    // A variant without that size is not part of it.
    let mut uneven = whole;
    uneven.variants.push(Variant {
        target: Target::Cpu,
        further_encoders: Vec::new(),
        ..uneven.variants[0].clone()
    });
    assert_eq!(uneven.at_size(64, 64).unwrap().variants.len(), 2);
    assert_eq!(uneven.at_size(128, 128).unwrap().variants.len(), 1);
}

/// [`bundle`] with lengths of 6 slots, 1 and 4 new ones.
fn fixed_lengths() -> Bundle {
    use DType::Float32;
    let mut bundle = bundle();
    let cache = |prefix: &str, length: &str| {
        ["key", "value"].map(|part| io(&format!("{prefix}.0.{part}"), Float32, &["1", "2", length, "8"]))
    };
    let decoder = |new: &str, slots: &str| {
        let mut inputs = vec![
            io("inputs_embeds", Float32, &["1", new, "16"]),
            io("attention_bias", Float32, &["1", "1", new, slots]),
            io("positions", Float32, &["1", new]),
        ];
        inputs.extend(cache("past_key_values", "6"));
        let mut outputs = vec![io("logits", Float32, &["1", "1", "50"])];
        outputs.extend(cache("present", new));
        graph("onnx/d.onnx", inputs, outputs)
    };
    let variant = &mut bundle.variants[0];
    variant.target = Target::OrtCoreMl;
    variant.vision_encoder.inputs[0].dims[0] = IoDim::Fixed(1);
    variant.vision_encoder.outputs[0].dims[0] = IoDim::Fixed(1);
    variant.decoder = decoder("1", "7");
    variant.fixed = Some(FixedDecoder {
        context: 6,
        prefill: vec![Prefill {
            new: 4,
            graph: decoder("4", "10"),
        }],
    });
    bundle
}

#[test]
fn fixed_lengths_are_read_and_checked() {
    let whole = fixed_lengths();
    let read = Bundle::open(on_disk(&whole).path()).unwrap();
    assert_eq!(read, whole);
    assert_eq!(read.context(&read.variants[0]), 6);
    // What would be made whole is bounded.
    let mut long = fixed_lengths();
    long.kv.max_context = 1 << 24;
    let fixed = long.variants[0].fixed.as_mut().unwrap();
    (fixed.context, fixed.prefill[0].new) = (1 << 24, 1 << 24);
    let error = Bundle::open(on_disk(&long).path()).unwrap_err().to_string();
    assert!(
        error.contains("numbers at once, expected at most 2147483648"),
        "{error}"
    );
    assert_eq!(bundle().context(&bundle().variants[0]), 100);
    type Change = fn(&mut FixedDecoder, &mut GraphEntry);
    let cases: [(Change, &str); 6] = [
        (
            |fixed, _| fixed.context = 101,
            "a cache of 101 slots and graphs for [4] new ones",
        ),
        (|fixed, _| fixed.prefill[0].new = 1, "graphs for [1] new ones"),
        (
            |fixed, _| fixed.prefill.push(fixed.prefill[0].clone()),
            "graphs for [4, 4] new ones",
        ),
        (
            |fixed, _| fixed.prefill[0].new = 3,
            "expected `inputs_embeds` float32 [1,3,16]",
        ),
        (
            |fixed, _| fixed.prefill[0].graph.path = "onnx/w.onnx".to_owned(),
            "`onnx/w.onnx` is used and not listed",
        ),
        (|_, step| step.inputs.truncate(2), "has 2 inputs, expected 5"),
    ];
    for (change, expected) in cases {
        let mut bundle = fixed_lengths();
        let variant = &mut bundle.variants[0];
        change(variant.fixed.as_mut().unwrap(), &mut variant.decoder);
        let message = Bundle::open(on_disk(&bundle).path()).unwrap_err().to_string();
        assert!(message.contains(expected), "{message}, expected {expected}");
    }
}

#[test]
fn what_is_wrong_with_packages_is_named() {
    type Change = fn(&mut CoreMlPackages);
    let cases: [(Change, &str); 6] = [
        (
            |_| {},
            "the embedding of precision fp16 lies beyond the end of its file",
        ),
        (
            |p| p.embedding.offset = u64::MAX,
            "the embedding of precision fp16 lies beyond the end of its file",
        ),
        (
            |p| p.context = 101,
            "a cache of 101 slots and functions for [4] new ones",
        ),
        (|p| p.prefill = vec![4, 2], "functions for [4, 2] new ones"),
        (
            |p| p.decoder = "coreml/other.mlpackage".to_owned(),
            "`coreml/other.mlpackage/Manifest.json` is used and not listed",
        ),
        (
            |p| p.vision_encoder_ios16 = Some("../e".to_owned()),
            "`../e/Data/com.apple.CoreML/weights/weight.bin` is used and not listed",
        ),
    ];
    for (change, expected) in cases {
        let mut bundle = bundle();
        let mut packages = CoreMlPackages {
            precision: Precision::Fp16,
            vision_encoder: "coreml/vision_encoder.mlpackage".to_owned(),
            vision_encoder_ios16: None,
            decoder: "coreml/decoder.mlpackage".to_owned(),
            context: 8,
            prefill: vec![4],
            embedding: EmbeddingRows {
                path: "onnx/w.onnx_data".to_owned(),
                dtype: DType::Float16,
                offset: 64,
                scales: None,
            },
        };
        change(&mut packages);
        bundle.packages.push(packages);
        let message = Bundle::open(on_disk(&bundle).path()).unwrap_err().to_string();
        assert!(message.contains(expected), "{message}, expected {expected}");
    }
}

#[test]
fn what_is_wrong_with_a_size_is_named() {
    type Change = fn(&mut Bundle);
    let cases: [(Change, &str); 6] = [
        (
            |b| b.variants[0].further_encoders[0].tokens = 5,
            "expected `image_features` float32 [batch,5,16]",
        ),
        (
            |b| b.variants[0].further_encoders[0].height = 64,
            "expected `pixel_values` float32 [batch,3,64,128]",
        ),
        (
            |b| b.variants[0].further_encoders[0].width = 1 << 20,
            "expected sides from 1 to 16384",
        ),
        (
            |b| b.variants[0].further_encoders[0].graph.path = "onnx/w.onnx".to_owned(),
            "`onnx/w.onnx` is used and not listed",
        ),
        (
            |b| {
                let again = b.variants[0].further_encoders[0].clone();
                b.variants[0].further_encoders.push(again);
            },
            "variant portable fp32 has two encoders of images of 128 x 128",
        ),
        (
            |b| {
                let mut other = b.variants[0].clone();
                other.target = Target::Cpu;
                other.further_encoders[0].shortest_edge = 128;
                b.variants.push(other);
            },
            "images of 128 x 128 have shortest edge 144 and 4 tokens in one encoder, 128 and 4 in another",
        ),
    ];
    for (change, expected) in cases {
        let mut bundle = two_sizes();
        change(&mut bundle);
        let message = Bundle::open(on_disk(&bundle).path()).unwrap_err().to_string();
        assert!(message.contains(expected), "{message}, expected {expected}");
    }
}

/// A newer program may write forms that this build has no word for, with fields that it does not know either.
#[test]
fn forms_of_a_newer_program_are_set_aside() {
    let directory = on_disk(&bundle());
    let open = |change: &dyn Fn(&mut serde_json::Value)| {
        let mut value = serde_json::to_value(bundle()).unwrap();
        change(&mut value);
        std::fs::write(directory.path().join(FILE_NAME), value.to_string()).unwrap();
        Bundle::open(directory.path())
    };
    let newer = serde_json::json!({"target": "npu", "precision": "fp32", "new": 1});
    let read = open(&|value| value["variants"].as_array_mut().unwrap().insert(0, newer.clone())).unwrap();
    let [unknown] = &read.unknown[..] else {
        panic!("{:?}", read.unknown)
    };
    assert_eq!(
        unknown.to_string(),
        "`variants[0].target` is `npu`, expected one of portable, cpu, coreml"
    );
    let known = Bundle {
        unknown: Vec::new(),
        ..read
    };
    assert_eq!(known, bundle());
    let message = open(&|value| value["variants"][0]["precision"] = "fp8".into()).unwrap_err();
    let expected = "no form that this build knows: `variants[0].precision` is `fp8`, expected one of fp32, fp16, int8, q8, q4, q4f16";
    assert!(message.to_string().ends_with(expected), "{message}");
    let message = open(&|value| value["variants"][0]["target"] = 1.into()).unwrap_err();
    assert!(
        message.to_string().contains("invalid type: integer `1`"),
        "{message}"
    );
}

/// What a file holds: its name, in a graph as a field that nobody follows.
fn contents(path: &str) -> Vec<u8> {
    let name = path.as_bytes().to_vec();
    if path.ends_with(".onnx") {
        [vec![0x12, u8::try_from(name.len()).unwrap()], name].concat()
    } else {
        name
    }
}

fn entry(path: &str) -> FileEntry {
    let contents = contents(path);
    FileEntry {
        path: path.to_owned(),
        bytes: u64::try_from(contents.len()).unwrap(),
        sha256: Sha256::digest(contents)
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect(),
    }
}

fn on_disk(bundle: &Bundle) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    std::fs::create_dir(directory.path().join("onnx")).unwrap();
    for file in self::bundle().files {
        std::fs::write(directory.path().join(&file.path), contents(&file.path)).unwrap();
    }
    std::fs::write(directory.path().join(FILE_NAME), bundle.to_json()).unwrap();
    directory
}

#[test]
fn what_is_written_is_read() {
    let directory = on_disk(&bundle());
    let read = Bundle::open(directory.path()).unwrap();
    assert_eq!(read, bundle());
    let bytes = std::sync::atomic::AtomicU64::new(0);
    read.verify(directory.path(), &|count| {
        bytes.fetch_add(count, std::sync::atomic::Ordering::Relaxed);
    })
    .unwrap();
    let expected = read.files.iter().map(|file| file.bytes).sum::<u64>();
    assert_eq!(bytes.into_inner(), expected);
    std::fs::write(directory.path().join("onnx/v.onnx"), "..onnx/V.onnx").unwrap();
    let error = read.verify(directory.path(), &|_| ()).unwrap_err().to_string();
    assert!(error.contains("`onnx/v.onnx` has SHA-256"), "{error}");
}

#[test]
fn what_breaks_the_contract_is_named() {
    struct Case {
        change: fn(&mut Bundle),
        expected: &'static str,
    }
    let cases = [
        Case {
            change: |b| b.schema = 2,
            expected: "schema 2, this build reads schema 1",
        },
        Case {
            change: |b| b.kv.layers = 0,
            expected: "`kv` has 0 layers",
        },
        Case {
            change: |b| b.kv.layers = usize::MAX,
            expected: "at most 4096 layers",
        },
        Case {
            change: |b| b.kv.max_context = 1 << 41,
            expected: "and 2199023255552 positions, expected numbers above 0",
        },
        Case {
            change: |b| (b.kv.kv_heads, b.kv.head_dim) = (1 << 23, 1 << 23),
            expected: "`kv` has 1 layers, 8388608 heads of length 8388608",
        },
        Case {
            change: |b| b.kv.head_dim = 9,
            expected: "expected `past_key_values.0.key` float32 [batch,2,past,9]",
        },
        Case {
            change: |b| b.image.height = 0,
            expected: "expected sides from 1 to 16384",
        },
        Case {
            change: |b| b.image.std[1] = 0.0,
            expected: "cannot be divided by",
        },
        Case {
            change: |b| b.image.tokens = 4,
            expected: "expected `image_features` float32 [batch,4,16]",
        },
        Case {
            change: |b| b.prompt.stop_ids = vec![50],
            expected: "beyond its vocabulary of 50",
        },
        Case {
            change: |b| b.prompt.image_token_id = Some(49),
            expected: "`image_token_id` is 49, which is a stop id too: [49]",
        },
        Case {
            change: |b| b.prompt.stop_ids.clear(),
            expected: "`stop_ids` is empty",
        },
        Case {
            change: |b| b.prompt.stop_ids = vec![49; 1025],
            expected: "`stop_ids` has 1025 ids, expected at most 1024",
        },
        Case {
            change: |b| b.image.tokens = 10_000_000_000,
            expected: "1 to 16777216 tokens",
        },
        Case {
            change: |b| b.prompt.vocab_size = 4_294_967_295,
            expected: "expected 1 to 4194304 of 1 to 16777216",
        },
        Case {
            change: |b| b.prompt.hidden_size = 1 << 40,
            expected: "expected 1 to 4194304 of 1 to 16777216",
        },
        Case {
            change: |b| b.prompt.image_token_id = Some(-1),
            expected: "beyond its vocabulary of 50",
        },
        Case {
            change: |b| b.prompt.tokenizer = "other.json".to_owned(),
            expected: "`other.json` is used and not listed",
        },
        Case {
            change: |b| b.variants.clear(),
            expected: "there is neither a variant nor a package",
        },
        Case {
            change: |b| b.variants.push(b.variants[0].clone()),
            expected: "variant portable fp32 stands there twice",
        },
        Case {
            change: |b| b.files[1].bytes = 3,
            expected: "`onnx/d.onnx` has 13 bytes, expected 3",
        },
        Case {
            change: |b| b.files[0].path = "../x".to_owned(),
            expected: "`../x` is not a plain relative path",
        },
        Case {
            change: |b| b.files[0].path = "/etc/passwd".to_owned(),
            expected: "is not a plain relative path",
        },
        Case {
            change: |b| b.files[0].path = "a/./b".to_owned(),
            expected: "is not a plain relative path",
        },
        Case {
            change: |b| b.files[0].path = "c:\\x".to_owned(),
            expected: "is not a plain relative path",
        },
        Case {
            change: |b| b.files[0].path = "absent".to_owned(),
            expected: "`absent`: ",
        },
        Case {
            change: |b| b.files[0].path = "onnx".to_owned(),
            expected: "`onnx` is not a file",
        },
        Case {
            change: |b| b.variants[0].kv_dtype = DType::Float16,
            expected: "expected `past_key_values.0.key` float16",
        },
        Case {
            change: |b| drop(b.variants[0].decoder.outputs.pop()),
            expected: "has 2 outputs, expected 3",
        },
    ];
    let mut failures = Vec::new();
    for Case { change, expected } in cases {
        let mut bundle = bundle();
        change(&mut bundle);
        let directory = on_disk(&bundle);
        match Bundle::open(directory.path()).map_err(|error| error.to_string()) {
            Err(message) if message.contains(expected) => {}
            other => failures.push(format!("{other:?}, expected {expected}")),
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn no_bundle_and_no_json() {
    let directory = tempfile::tempdir().unwrap();
    let open = || Bundle::open(directory.path()).unwrap_err().to_string();
    assert!(open().contains("is not a bundle: it has no `bundle.json`"));
    for (text, expected) in [
        ("", "EOF"),
        ("[]", "has no number `schema`"),
        ("{\"schema\": 1}", "missing field"),
        ("{\"schema\": 1, \"new\": 2}", "unknown field `new`"),
    ] {
        std::fs::write(directory.path().join(FILE_NAME), text).unwrap();
        let message = open();
        assert!(message.contains(expected), "{message}, expected {expected}");
    }
}

/// What readers of other versions and languages see: a change here is a change of the schema.
#[test]
fn the_contract_as_text() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/snapshots/bundle.json");
    let text = bundle().to_json();
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(&path, &text).unwrap();
    }
    assert_eq!(
        text,
        std::fs::read_to_string(&path).unwrap(),
        "BLESS=1 writes it anew"
    );
}

/// A bundle with the files that the ecosystem's clients read, as an export has them.
fn with_clients() -> (Bundle, tempfile::TempDir) {
    let mut bundle = bundle();
    bundle.prompt.special_tokens = [("eos_token".to_owned(), "<|im_end|>".to_owned())].into();
    let directory = on_disk(&bundle);
    for (path, text) in [
        (
            "config.json",
            r#"{"max_position_embeddings": 100, "num_hidden_layers": 1, "num_key_value_heads": 2, "head_dim": 8,
                "image_token_id": null, "vocab_size": 50, "hidden_size": 16}"#,
        ),
        ("generation_config.json", r#"{"eos_token_id": [49]}"#),
        (
            "preprocessor_config.json",
            r#"{"crop_size": {"height": 64, "width": 64}, "size": {"shortest_edge": 64}, "resample": 3,
                "rescale_factor": 0.00392156862745098, "image_mean": [0.0, 0.0, 0.0], "image_std": [1.0, 1.0, 1.0]}"#,
        ),
        ("processor_config.json", r#"{"image_token": "<image>"}"#),
        (
            "tokenizer_config.json",
            r#"{"eos_token": {"content": "<|im_end|>"}, "pad_token": null, "unk_token": 7}"#,
        ),
    ] {
        std::fs::write(directory.path().join(path), text).unwrap();
        let file = FileEntry::of(directory.path(), path).unwrap();
        bundle.files.push(file);
    }
    bundle.files.sort();
    std::fs::write(directory.path().join(FILE_NAME), bundle.to_json()).unwrap();
    (bundle, directory)
}

#[test]
fn a_contract_that_contradicts_the_small_files_is_refused() {
    let (bundle, directory) = with_clients();
    assert_eq!(Bundle::open(directory.path()).unwrap(), bundle);
    type Change = fn(&mut Bundle);
    let cases: [(Change, &str); 11] = [
        (
            |b| b.kv.max_context = 101,
            "`kv.max_context` is 101 in `bundle.json`, and `max_position_embeddings` is 100 in `config.json`",
        ),
        (|b| b.image.shortest_edge = 65, "`image.shortest_edge` is 65"),
        (|b| b.image.resample = Resample::Lanczos, "`image.resample` is 1"),
        (|b| b.image.rescale = 1.0 / 254.0, "`image.rescale` is 0.0039"),
        (|b| b.image.mean[1] = 0.5, "`image.mean` is [0.0,0.5,0.0]"),
        (|b| b.image.std[2] = 0.5, "`image_std` is [1.0,1.0,1.0]"),
        (
            |b| b.image.aspect = Aspect::Pad { color: [0, 1, 0] },
            "`image.aspect.color` is [0, 1, 0]",
        ),
        (
            |b| b.prompt.stop_ids = vec![48],
            "`prompt.stop_ids` is [48] in `bundle.json`, and `eos_token_id` is [49] in `generation_config.json`",
        ),
        (
            |b| b.prompt.image_token = "<imag>".to_owned(),
            "`prompt.image_token`",
        ),
        (
            |b| b.prompt.image_token_id = Some(1),
            "`image_token_id` is null in `config.json`",
        ),
        (
            |b| drop(b.prompt.special_tokens.remove("eos_token")),
            "`prompt.special_tokens.eos_token` is null",
        ),
    ];
    for (change, expected) in cases {
        let mut changed = bundle.clone();
        change(&mut changed);
        std::fs::write(directory.path().join(FILE_NAME), changed.to_json()).unwrap();
        let message = Bundle::open(directory.path()).unwrap_err().to_string();
        assert!(message.contains(expected), "{message}, expected {expected}");
    }
}

#[test]
fn a_byte_order_mark_changes_nothing() {
    let (mut bundle, directory) = with_clients();
    let marked = |path: &str| {
        let text = std::fs::read_to_string(directory.path().join(path)).unwrap();
        std::fs::write(directory.path().join(path), format!("\u{feff}{text}")).unwrap();
    };
    marked(FILE_NAME);
    assert_eq!(Bundle::open(directory.path()).unwrap(), bundle);
    // Before a file that is hashed it is another byte.
    marked("config.json");
    let error = Bundle::open(directory.path()).unwrap_err().to_string();
    assert!(error.contains("`config.json` has "), "{error}");
    // Where the contract knows it, what the file says is still compared.
    for file in &mut bundle.files {
        *file = FileEntry::of(directory.path(), &file.path).unwrap();
    }
    std::fs::write(directory.path().join(FILE_NAME), bundle.to_json()).unwrap();
    Bundle::open(directory.path()).unwrap();
    bundle.kv.max_context = 99;
    std::fs::write(directory.path().join(FILE_NAME), bundle.to_json()).unwrap();
    let error = Bundle::open(directory.path()).unwrap_err().to_string();
    assert!(error.contains("`kv.max_context` is 99"), "{error}");
}

#[test]
fn what_is_read_was_hashed() {
    let directory = on_disk(&bundle());
    let read = |path: &str| bundle().read_file(directory.path(), path);
    assert_eq!(read("tokenizer.json").unwrap(), b"tokenizer.json");
    for (contents, expected) in [
        ("TOKENIZER.JSON", "`tokenizer.json` has SHA-256 "),
        ("tokenizer.jso", "`tokenizer.json` has 13 bytes, expected 14"),
        (
            "tokenizer.json and more",
            "`tokenizer.json`: it has more than 14 bytes",
        ),
    ] {
        std::fs::write(directory.path().join("tokenizer.json"), contents).unwrap();
        let error = read("tokenizer.json").unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
    let error = read("absent").unwrap_err().to_string();
    assert!(error.contains("`absent` is not listed"), "{error}");
}

/// What a graph reads has a hash, and nothing that is hashed at opening is called weights.
#[test]
fn a_graph_reads_what_its_contract_lists() {
    let mut bundle = bundle();
    bundle.variants[0].decoder.data = vec!["onnx/w.data".to_owned()];
    bundle.files.push(entry("onnx/w.data"));
    let directory = on_disk(&bundle);
    std::fs::write(directory.path().join("onnx/w.data"), contents("onnx/w.data")).unwrap();
    let graph = directory.path().join("onnx/d.onnx");
    for (place, expected) in [
        ("w.data", None),
        ("./w.data", None),
        (
            "x.data",
            Some("`onnx/d.onnx` reads weights from \"x.data\", expected one of its `data`: onnx/w.data"),
        ),
        (
            "../tokenizer.json",
            Some("reads weights from \"../tokenizer.json\""),
        ),
    ] {
        let field = |number: u8, contents: &[u8]| {
            [
                &[number << 3 | 2, u8::try_from(contents.len()).unwrap()],
                contents,
            ]
            .concat()
        };
        let place = [field(1, b"location"), field(2, place.as_bytes())].concat();
        std::fs::write(&graph, field(7, &field(5, &field(13, &place)))).unwrap();
        bundle.files[1] = FileEntry::of(directory.path(), "onnx/d.onnx").unwrap();
        for found in [
            bundle.verify_files(directory.path(), ["onnx/d.onnx"]),
            bundle.verify(directory.path(), &|_| ()),
        ] {
            match expected {
                None => found.unwrap(),
                Some(words) => {
                    let error = found.unwrap_err().to_string();
                    assert!(error.contains(words), "{error}");
                }
            }
        }
    }
    for other in ["onnx/v.onnx", "tokenizer.json", "chat_template.jinja"] {
        bundle.variants[0].decoder.data = vec![other.to_owned()];
        let error = bundle.check(directory.path()).unwrap_err().to_string();
        assert!(
            error.contains(&format!("`{other}` is named as weights of `onnx/d.onnx`")),
            "{error}"
        );
    }
}

#[test]
fn small_files_are_hashed_when_a_bundle_is_opened_and_weights_when_asked() {
    let mut bundle = bundle();
    bundle.variants[0].decoder.data = vec!["onnx/w.data".to_owned()];
    bundle.files.push(entry("onnx/w.data"));
    let directory = on_disk(&bundle);
    std::fs::write(directory.path().join("onnx/w.data"), contents("onnx/w.data")).unwrap();
    let weights: Vec<&str> = bundle.weights().map(|file| file.path.as_str()).collect();
    assert_eq!(weights, ["onnx/w.data"]);
    for (path, at_once) in [
        ("chat_template.jinja", true),
        ("onnx/d.onnx", false),
        ("onnx/w.data", false),
        ("tokenizer.json", false),
    ] {
        let path_on_disk = directory.path().join(path);
        std::fs::write(&path_on_disk, contents(path).to_ascii_uppercase()).unwrap();
        let opened = Bundle::open(directory.path()).map_err(|error| error.to_string());
        let expected = format!("`{path}` has SHA-256 ");
        match &opened {
            Ok(_) => assert!(!at_once, "{path}"),
            Err(message) => assert!(at_once && message.contains(&expected), "{message}"),
        }
        let verified = bundle.verify_files(directory.path(), [path]).unwrap_err();
        assert!(verified.to_string().contains(&expected), "{verified}");
        let verified = bundle.verify(directory.path(), &|_| ()).unwrap_err();
        assert!(verified.to_string().contains(&expected), "{verified}");
        std::fs::write(&path_on_disk, contents(path)).unwrap();
    }
    bundle.verify(directory.path(), &|_| ()).unwrap();
    let unlisted = bundle
        .verify_files(directory.path(), ["absent"])
        .unwrap_err()
        .to_string();
    assert!(unlisted.contains("`absent` is not listed"), "{unlisted}");
}
