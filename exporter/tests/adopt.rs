//! Adopted graphs: `fvlm-export --from-onnx`. Graphs here are ours, changed as others write them; graphs of torch.onnx are
//! adopted and run by `conformance/clients/adopt`.

#![expect(clippy::unwrap_used, reason = "a failure here is a failed test")]

use exporter::onnx::proto::{
    DimensionProto, ModelProto, NodeProto, OperatorSetIdProto, StringStringEntryProto, TensorProto,
    TensorShapeProto, TensorTypeProto, TypeProto, ValueInfoProto,
};
use models::bundle::{Adopted, Aspect, Bundle, Content, Given, IoDim, Precision, Target, Told};
use models::dtype::DType;
use prost::Message as _;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use tempfile::TempDir;

const DECODER: &str = "onnx/decoder_model_merged.onnx";
const ENCODER: &str = "onnx/vision_encoder.onnx";
const EMBEDDING: &str = "onnx/embed_tokens.onnx";

/// A directory in the layout of transformers.js, in which a test may do what it likes.
struct World {
    folder: TempDir,
}

struct Ran {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

/// The demo model's graphs of two precisions beside its checkpoint's small files.
fn original() -> &'static Path {
    static MADE: OnceLock<TempDir> = OnceLock::new();
    let folder = MADE.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        let model = folder.path().join("graphs");
        fs::create_dir(&model).unwrap();
        exporter::demo::extract(&model).unwrap();
        let ran = run(
            folder.path(),
            "--model graphs --quiet -o made --precision fp32 --precision fp16",
        );
        assert_eq!(ran.code, Some(0), "{}", ran.stderr);
        fs::remove_file(model.join("model.safetensors")).unwrap();
        fs::rename(folder.path().join("made/onnx"), model.join("onnx")).unwrap();
        folder
    });
    folder.path()
}

fn run(folder: &Path, flags: &str) -> Ran {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fvlm-export"));
    let output = command
        .current_dir(folder)
        .args(flags.split_whitespace())
        .output();
    let output = output.unwrap();
    Ran {
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

/// Every file below a directory with its contents.
fn tree(directory: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(tree(&path));
        } else {
            files.insert(path.clone(), fs::read(&path).unwrap_or_default());
        }
    }
    files
}

impl World {
    fn new() -> World {
        let folder = tempfile::tempdir().unwrap();
        let (from, to) = (original().join("graphs"), folder.path().join("graphs"));
        fs::create_dir_all(to.join("onnx")).unwrap();
        for path in tree(&from).keys() {
            fs::copy(path, to.join(path.strip_prefix(&from).unwrap())).unwrap();
        }
        World { folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join("graphs").join(name)
    }

    /// Adopts, into `bundle`.
    fn adopt(&self, flags: &str) -> Ran {
        run(
            self.folder.path(),
            &format!("--from-onnx graphs -o bundle {flags}"),
        )
    }

    fn adopted(&self, flags: &str) -> (Bundle, String) {
        let before = tree(&self.path(""));
        let ran = self.adopt(flags);
        assert_eq!(ran.code, Some(0), "{}", ran.stderr);
        assert_eq!(tree(&self.path("")), before, "the directory was touched");
        let bundle = self.folder.path().join("bundle");
        let verified = run(self.folder.path(), "--verify bundle");
        assert_eq!(verified.code, Some(0), "{}", verified.stderr);
        (Bundle::open(&bundle).unwrap(), ran.stderr)
    }

    /// Adopts, which is refused with these words, and leaves nothing.
    fn refused(&self, says: &[&str]) {
        let ran = self.adopt("--precision fp32");
        let Ran { code, stdout, stderr } = &ran;
        assert_eq!(*code, Some(2), "{stdout}{stderr}");
        for words in says {
            assert!(stderr.contains(words), "{stderr}\nexpected {words}");
        }
        assert_eq!(stderr.matches("error:").count(), 1, "{stderr}");
        let left: Vec<_> = fs::read_dir(self.folder.path()).unwrap().collect();
        assert_eq!(left.len(), 1, "{left:?}");
    }

    fn change(&self, graph: &str, change: impl FnOnce(&mut ModelProto)) {
        let path = self.path(graph);
        let mut model = ModelProto::decode(fs::read(&path).unwrap().as_slice()).unwrap();
        change(&mut model);
        fs::write(path, model.encode_to_vec()).unwrap();
    }

    fn change_text(&self, name: &str, old: &str, new: &str) {
        let text = fs::read_to_string(self.path(name)).unwrap();
        assert!(text.contains(old), "{text}");
        fs::write(self.path(name), text.replacen(old, new, 1)).unwrap();
    }
}

fn port<'m>(list: &'m mut [ValueInfoProto], name: &str) -> &'m mut ValueInfoProto {
    let mut ports = list.iter_mut();
    ports.find(|port| port.name.as_deref() == Some(name)).unwrap()
}

fn input<'m>(model: &'m mut ModelProto, name: &str) -> &'m mut ValueInfoProto {
    port(&mut model.graph.as_mut().unwrap().input, name)
}

fn output<'m>(model: &'m mut ModelProto, name: &str) -> &'m mut ValueInfoProto {
    port(&mut model.graph.as_mut().unwrap().output, name)
}

fn tensor_type(port: &mut ValueInfoProto) -> &mut TensorTypeProto {
    port.r#type.as_mut().unwrap().tensor_type.as_mut().unwrap()
}

fn dims(port: &mut ValueInfoProto) -> &mut Vec<DimensionProto> {
    &mut tensor_type(port).shape.as_mut().unwrap().dim
}

fn symbol(name: &str) -> DimensionProto {
    DimensionProto {
        dim_value: None,
        dim_param: Some(name.to_owned()),
    }
}

fn length(length: i64) -> DimensionProto {
    DimensionProto {
        dim_value: Some(length),
        dim_param: None,
    }
}

fn value(name: &str, elements: i32, dim: Vec<DimensionProto>) -> ValueInfoProto {
    let tensor = TensorTypeProto {
        elem_type: Some(elements),
        shape: Some(TensorShapeProto { dim }),
    };
    ValueInfoProto {
        name: Some(name.to_owned()),
        r#type: Some(TypeProto {
            tensor_type: Some(tensor),
        }),
    }
}

/// Gives a graph another input, at the end.
fn add_input(model: &mut ModelProto, value: ValueInfoProto) {
    model.graph.as_mut().unwrap().input.push(value);
}

#[test]
fn complete_precisions_are_adopted_and_others_named() {
    let world = World::new();
    let files = [
        "vision_encoder_q4.onnx",
        "embed_tokens_q4.onnx",
        "decoder_model_merged_bnb4.onnx",
    ];
    for file in files {
        fs::copy(world.path(EMBEDDING), world.path("onnx").join(file)).unwrap();
    }
    let (bundle, said) = world.adopted("");
    let precisions: Vec<_> = bundle
        .variants
        .iter()
        .map(|one| (one.target, one.precision))
        .collect();
    let of = |precision| (Target::Portable, precision);
    assert_eq!(precisions, [of(Precision::Fp32), of(Precision::Fp16)]);
    for words in [
        "precision q4 is left out: `onnx/decoder_model_merged_q4.onnx` is missing",
        "left out, as graphs of no network or precision that is known here: `onnx/decoder_model_merged_bnb4.onnx`",
        "graphs (fp32, fp16) is in bundle",
    ] {
        assert!(said.contains(words), "{said}");
    }
    assert_eq!(bundle.model.layout, "onnx");
    assert_eq!(bundle.prompt.content, Content::Parts);
    assert_eq!(bundle.image.tokens, 16);
    let of_embedding = bundle.source.iter().find(|file| file.path == EMBEDDING).unwrap();
    assert!(bundle.files.contains(of_embedding));
    let halves = &bundle.variants[1];
    assert_eq!(halves.kv_dtype, DType::Float16);
    assert_eq!(
        halves.decoder.data,
        [
            "onnx/decoder_model_merged_fp16.onnx_data",
            "onnx/embed_tokens_fp16.onnx_data"
        ]
    );
    // Graphs and weights are the same bytes.
    for (path, contents) in tree(&world.path("onnx")) {
        let name = path.strip_prefix(world.path("")).unwrap();
        let copied = fs::read(world.folder.path().join("bundle").join(name)).ok();
        let adopted = !files.iter().any(|file| name.ends_with(file));
        assert_eq!(copied.is_some(), adopted, "{name:?}");
        assert!(copied.is_none_or(|copied| copied == contents), "{name:?}");
    }
}

#[test]
fn a_precision_by_its_name() {
    let world = World::new();
    let (bundle, _) = world.adopted("--precision fp16");
    let precisions: Vec<_> = bundle.variants.iter().map(|one| one.precision).collect();
    assert_eq!(precisions, [Precision::Fp16]);
    let ran = world.adopt("--precision fp32 --overwrite");
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    let ran = world.adopt("--precision fp32");
    assert!(
        ran.code == Some(2) && ran.stderr.contains("exists"),
        "{}",
        ran.stderr
    );
    let ran = world.adopt("--precision q8 --overwrite");
    let words = "has no precision q8: expected `onnx/vision_encoder_quantized.onnx` and";
    assert!(
        ran.code == Some(2) && ran.stderr.contains(words),
        "{}",
        ran.stderr
    );
}

#[test]
fn a_dry_run_writes_nothing_and_says_everything() {
    let world = World::new();
    let ran = world.adopt("--dry-run");
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    for words in [
        "portable fp16, opset 20",
        "`past_key_values.0.key` float16 [batch,2,past,32]",
        "onnx layout",
    ] {
        assert!(ran.stdout.contains(words), "{}", ran.stdout);
    }
    assert!(!world.folder.path().join("bundle").exists());
    let ran = world.adopt("--json");
    let account: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(account["model"]["layout"], "onnx");
    assert_eq!(
        account["variants"][0]["graphs"][2]["adopted"],
        serde_json::json!({})
    );
}

#[test]
fn roles_are_found_by_form_where_names_differ() {
    let world = World::new();
    world.change(DECODER, |model| {
        input(model, "inputs_embeds").name = Some("embeddings".to_owned());
        input(model, "attention_mask").name = Some("the_mask".to_owned());
        for layer in 0..4 {
            for part in ["key", "value"] {
                let past = format!("past_key_values.{layer}.{part}");
                input(model, &past).name = Some(format!("past_{layer}_{part}"));
                let present = format!("present.{layer}.{part}");
                output(model, &present).name = Some(format!("new_{part}_{layer}"));
            }
        }
        let graph = model.graph.as_mut().unwrap();
        graph
            .input
            .retain(|port| port.name.as_deref() != Some("position_ids"));
        let logits = output(model, "logits");
        logits.name = Some("scores".to_owned());
        dims(logits)[1] = symbol("sequence");
        dims(logits)[2] = symbol("vocabulary");
        add_input(model, value("num_logits_to_keep", 7, Vec::new()));
        add_input(model, value("use_cache_branch", 9, vec![length(1)]));
    });
    world.change(ENCODER, |model| {
        input(model, "pixel_values").name = Some("pixels".to_owned());
        let features = output(model, "image_features");
        *dims(features) = vec![symbol("all"), length(192)];
    });
    let (bundle, _) = world.adopted("--precision fp32");
    let decoder = &bundle.variants[0].decoder;
    let Adopted { names, given } = decoder.adopted.clone().unwrap();
    assert_eq!(given["num_logits_to_keep"], Given::Number(1));
    assert_eq!(given["use_cache_branch"], Given::Told(Told::HasPast));
    assert_eq!(names["inputs_embeds"], "embeddings");
    assert_eq!(names["attention_mask"], "the_mask");
    assert_eq!(names["past_key_values.3.value"], "past_3_value");
    assert_eq!(names["present.2.key"], "new_key_2");
    assert_eq!(names["logits"], "scores");
    assert_eq!(names.len(), 3 + 16);
    // What the graph leaves open and a runtime must know.
    let scores = decoder.outputs.iter().find(|io| io.name == "scores").unwrap();
    assert_eq!(scores.dims.last(), Some(&IoDim::Fixed(1024)));
    let encoder = bundle.variants[0].vision_encoder.adopted.clone().unwrap();
    assert_eq!(
        encoder.names,
        BTreeMap::from([("pixel_values".to_owned(), "pixels".to_owned())])
    );
}

#[test]
fn what_nobody_needs_is_computed_and_said() {
    let world = World::new();
    world.change(ENCODER, |model| {
        let outputs = &mut model.graph.as_mut().unwrap().output;
        outputs.insert(
            0,
            value("hidden", 1, vec![symbol("batch"), length(16), length(512)]),
        );
    });
    let (bundle, said) = world.adopted("--precision fp32");
    assert!(
        said.contains("`onnx/vision_encoder.onnx` computes `hidden`, which nothing here needs"),
        "{said}"
    );
    assert_eq!(bundle.variants[0].vision_encoder.outputs.len(), 2);
}

#[test]
fn a_precision_that_does_not_fit_is_left_out_unless_it_is_asked_for() {
    let world = World::new();
    world.change("onnx/decoder_model_merged_fp16.onnx", |model| {
        add_input(model, value("temperature", 1, Vec::new()));
    });
    let (bundle, said) = world.adopted("");
    assert_eq!(bundle.variants.len(), 1);
    let words = "precision fp16 is left out: `graphs/onnx/decoder_model_merged_fp16.onnx` has the input `temperature` float32 [], \
                 expected no others than";
    assert!(said.contains(words), "{said}");
    let ran = world.adopt("--precision fp16 --overwrite");
    assert!(
        ran.code == Some(2) && ran.stderr.contains("`temperature`"),
        "{}",
        ran.stderr
    );
}

/// A change of a graph, and what is said about it.
struct Case {
    graph: &'static str,
    change: fn(&mut ModelProto),
    says: &'static [&'static str],
}

#[test]
fn what_does_not_fit_is_said_in_one_sentence() {
    let case = |graph, change, says| Case { graph, change, says };
    let cases = [
        case(
            DECODER,
            |model| tensor_type(input(model, "attention_mask")).elem_type = Some(6),
            &[
                "decoder_model_merged.onnx` has the input `attention_mask` of type int32, expected float32, float16, int64",
            ],
        ),
        case(
            DECODER,
            |model| tensor_type(input(model, "attention_mask")).elem_type = Some(9),
            &["has the input `attention_mask` bool [batch,total], expected int64 [batch,any]"],
        ),
        case(
            DECODER,
            |model| dims(input(model, "past_key_values.2.key"))[1] = length(14),
            &["`past_key_values.2.key` float32 [batch,14,past,32], expected float32 [batch,2,any,32]"],
        ),
        case(
            DECODER,
            |model| {
                let graph = model.graph.as_mut().unwrap();
                let last = |port: &ValueInfoProto| port.name.as_deref().unwrap().contains(".3.");
                graph.input.retain(|port| !last(port));
            },
            &["has keys and values of 3 layers as inputs, expected 4, as config.json states"],
        ),
        case(
            DECODER,
            |model| {
                let graph = model.graph.as_mut().unwrap();
                graph
                    .output
                    .retain(|port| port.name.as_deref() != Some("present.1.value"));
            },
            &["has no output `present.1.value`, expected float32 [batch,2,any,32]"],
        ),
        case(
            DECODER,
            |model| dims(output(model, "logits"))[2] = length(1000),
            &["has the output `logits` float32 [batch,1,1000], expected float32 or float16 [batch,any,1024]"],
        ),
        case(
            DECODER,
            |model| *dims(input(model, "attention_mask")) = vec![symbol("batch"), length(512)],
            &["`attention_mask` int64 [batch,512], expected int64 [batch,any]"],
        ),
        case(
            DECODER,
            |model| tensor_type(input(model, "past_key_values.1.value")).elem_type = Some(10),
            &["`past_key_values.1.value` float16 [batch,2,past,32], expected float32"],
        ),
        case(
            DECODER,
            |model| add_input(model, value("cache_position", 7, vec![symbol("new")])),
            &["has the input `cache_position` int64 [new], expected no others than `inputs_embeds`"],
        ),
        case(
            DECODER,
            |model| add_input(model, value("num_logits_to_keep", 1, Vec::new())),
            &["`num_logits_to_keep` float32 [], which is given a number, expected int64 or bool [] or [1]"],
        ),
        case(
            DECODER,
            |model| {
                add_input(
                    model,
                    value("other_mask", 7, vec![symbol("batch"), symbol("total")]),
                )
            },
            &["has the inputs `attention_mask` and `other_mask` for `attention_mask`, expected one"],
        ),
        case(
            ENCODER,
            |model| dims(input(model, "pixel_values"))[2] = length(512),
            &["vision_encoder.onnx` has the input `pixel_values` float32 [batch,3,512,256], expected"],
        ),
        case(
            ENCODER,
            |model| dims(output(model, "image_features"))[1] = length(64),
            &[
                "`image_features` float32 [batch,64,192], expected float32 or float16 [batch,16,192] or [16,192]",
            ],
        ),
        case(
            ENCODER,
            |model| input(model, "pixel_values").r#type = Some(TypeProto { tensor_type: None }),
            &["has the input `pixel_values`, which is not a tensor"],
        ),
        case(
            ENCODER,
            |model| tensor_type(output(model, "image_features")).shape = None,
            &["has the output `image_features` without a shape"],
        ),
        case(
            EMBEDDING,
            |model| dims(output(model, "inputs_embeds"))[2] = length(896),
            &["embed_tokens.onnx` has the output `inputs_embeds` float32 [batch,new,896], expected"],
        ),
        case(
            EMBEDDING,
            |model| model.graph.as_mut().unwrap().node[0].domain = Some("my.ops".to_owned()),
            &[
                "embed_tokens.onnx` has operator `",
                "` of domain `my.ops`, expected ai.onnx",
            ],
        ),
        case(
            EMBEDDING,
            |model| model.graph.as_mut().unwrap().node[0].domain = Some("fvlm".to_owned()),
            &["of domain `fvlm`, expected standard ones"],
        ),
        case(
            EMBEDDING,
            |model| model.opset_import.clear(),
            &["states no opset of ONNX"],
        ),
        case(
            EMBEDDING,
            |model| model.graph.as_mut().unwrap().node = Vec::<NodeProto>::new(),
            &["is not an ONNX model: it has 1 graphs with 0 nodes"],
        ),
    ];
    for Case { graph, change, says } in cases {
        let world = World::new();
        world.change(graph, change);
        world.refused(says);
    }
}

/// A stored tensor in another file.
fn outside(entries: &[(&str, &str)]) -> TensorProto {
    let entry = |(key, value): &(&str, &str)| StringStringEntryProto {
        key: Some((*key).to_owned()),
        value: Some((*value).to_owned()),
    };
    TensorProto {
        dims: vec![16],
        data_type: Some(1),
        name: Some("extra".to_owned()),
        external_data: entries.iter().map(entry).collect(),
        data_location: Some(1),
        ..TensorProto::default()
    }
}

#[test]
fn weights_that_are_not_there_are_found_out() {
    for (entries, says) in [
        (
            &[("location", "none.bin")][..],
            "has tensor `extra` in `onnx/none.bin`, which cannot be read",
        ),
        (
            &[("location", "../config.json")],
            "tensor `extra` lies in `../config.json`, expected a file beside the graph",
        ),
        (
            &[("location", "/etc/hostname")],
            "tensor `extra` lies in `/etc/hostname`, expected a file beside",
        ),
        (
            &[("location", "C:\\x")],
            "expected a file beside the graph or below it",
        ),
        (&[], "tensor `extra` lies in another file and does not say which"),
        (
            &[
                ("location", "vision_encoder.onnx_data"),
                ("offset", "99999999999"),
            ],
            "has tensor `extra` in `onnx/vision_encoder.onnx_data`, which has",
        ),
        (
            &[("location", "vision_encoder.onnx_data"), ("offset", "-1")],
            "has offset `-1`, expected a number of bytes",
        ),
        (
            &[
                ("location", "vision_encoder.onnx_data"),
                ("offset", "18446744073709551615"),
            ],
            "does not say how far",
        ),
        (
            &[("location", "vision_encoder.onnx_data"), ("length", "65")],
            "tensor `extra` has 65 bytes, expected 64 by its shape and type",
        ),
    ] {
        let world = World::new();
        let tensor = outside(entries);
        world.change(ENCODER, |model| {
            model.graph.as_mut().unwrap().initializer.push(tensor)
        });
        world.refused(&["vision_encoder.onnx", says]);
    }
    let world = World::new();
    let data = world.path("onnx/vision_encoder.onnx_data");
    let bytes = fs::read(&data).unwrap();
    fs::write(&data, &bytes[..bytes.len() - 1]).unwrap();
    world.refused(&[
        "in `onnx/vision_encoder.onnx_data`, which has",
        "expected a file of at least",
    ]);
    fs::remove_file(&data).unwrap();
    fs::create_dir(&data).unwrap();
    world.refused(&["in `onnx/vision_encoder.onnx_data`, which is no file"]);
}

/// A stored tensor that is listed as an input too, as files before IR version 4 have it, is none.
#[test]
fn stored_tensors_are_no_inputs() {
    let world = World::new();
    world.change(EMBEDDING, |model| {
        let graph = model.graph.as_mut().unwrap();
        let stored = graph.initializer[0].name.clone().unwrap();
        graph
            .input
            .insert(0, value(&stored, 1, vec![length(1024), length(192)]));
    });
    let (bundle, _) = world.adopted("--precision fp32");
    assert_eq!(bundle.variants[0].embed_tokens.inputs.len(), 1);
}

/// A domain that the file has functions of.
#[test]
fn functions_of_the_file_are_its_own() {
    let world = World::new();
    world.change(EMBEDDING, |model| {
        model.graph.as_mut().unwrap().node[0].domain = Some("pkg.torch".to_owned());
        model.functions.push(exporter::onnx::proto::FunctionProto {
            name: Some("Gather".to_owned()),
            domain: Some("pkg.torch".to_owned()),
            ..Default::default()
        });
        model.opset_import.push(OperatorSetIdProto {
            domain: Some("pkg.torch".to_owned()),
            version: Some(1),
        });
    });
    world.adopted("--precision fp32");
}

#[test]
fn a_directory_that_contradicts_itself_is_refused() {
    for (file, old, new, says) in [
        (
            "config.json",
            "\"num_hidden_layers\": 4",
            "\"num_hidden_layers\": 5",
            "of 4 layers as inputs, expected 5",
        ),
        (
            "config.json",
            "\"num_key_value_heads\": 2",
            "\"num_key_value_heads\": 1",
            "[batch,2,past,32], expected float32 [batch,1,any,32]",
        ),
        (
            "config.json",
            "\"vocab_size\": 1024",
            "\"vocab_size\": 1088",
            "[batch,1,1024], expected float32 or float16 [batch,any,1088]",
        ),
        (
            "config.json",
            "\"hidden_size\": 192",
            "\"hidden_size\": 384",
            "expected",
        ),
        (
            "config.json",
            "\"image_token_index\": 1023",
            "\"image_token_index\": 1021",
            "`image_token_index` is 1021, tokenizer.json has id 1023",
        ),
        (
            "config.json",
            "\"fast_vlm\"",
            "\"llava_next\"",
            "`model_type` is `llava_next`",
        ),
        (
            "processor_config.json",
            "\"patch_size\": 64",
            "\"patch_size\": 14",
            "`patch_size` is 14, expected 64",
        ),
        (
            "processor_config.json",
            "\"<image>\"",
            "\"<img>\"",
            "`image_token` is \"<img>\", expected \"<image>\"",
        ),
        ("preprocessor_config.json", "256", "250", "`crop_size`"),
        ("tokenizer.json", "{", "[", "tokenizer.json"),
    ] {
        let world = World::new();
        world.change_text(file, old, new);
        world.refused(&[says]);
    }
    for file in ["tokenizer.json", "config.json", "preprocessor_config.json"] {
        let world = World::new();
        fs::remove_file(world.path(file)).unwrap();
        if file == "preprocessor_config.json" {
            fs::remove_file(world.path("processor_config.json")).unwrap();
        }
        world.refused(&[&format!("has no `{file}`")]);
    }
    let world = World::new();
    fs::rename(world.path("onnx"), world.path("graphs")).unwrap();
    world.refused(&["has no folder `onnx`", "--from-onnx takes what"]);
    fs::remove_dir_all(world.path("")).unwrap();
    fs::write(world.folder.path().join("graphs"), "x").unwrap();
    world.refused(&["graphs"]);
}

#[test]
fn no_file_of_protobuf_is_too_odd() {
    let key = |field: u8, wire: u8| field << 3 | wire;
    // Graphs in branches of graphs, without an end.
    let mut deep = Vec::new();
    for _ in 0..200 {
        let mut outer = Vec::new();
        for field in [6, 5, 1] {
            let length = if outer.is_empty() { deep.len() } else { outer.len() };
            let inner = if outer.is_empty() {
                deep.clone()
            } else {
                outer.clone()
            };
            outer = vec![key(field, 2)];
            prost::encoding::encode_varint(length as u64, &mut outer);
            outer.extend(inner);
        }
        deep = outer;
    }
    let mut model = vec![key(7, 2)];
    prost::encoding::encode_varint(deep.len() as u64, &mut model);
    model.extend(deep);
    let huge = [key(7, 2), 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f, 1];
    for (bytes, says) in [
        (&b""[..], "it has 0 graphs"),
        (b"not an ONNX file at all", "is not an ONNX model"),
        (&[0xff; 40], "more than 64 bits"),
        (&huge, "which end beyond its message"),
        (&[key(7, 3), 0], "wire type 3"),
        (&[key(1, 1), 0], "end beyond their message"),
        (&model, "graphs lie in each other"),
    ] {
        let world = World::new();
        fs::write(world.path(ENCODER), bytes).unwrap();
        world.refused(&["vision_encoder.onnx", says]);
    }
}

#[cfg(unix)]
#[test]
fn links_lead_nowhere_else() {
    use std::os::unix::fs::symlink;
    for name in [
        "onnx/vision_encoder.onnx",
        "onnx/vision_encoder.onnx_data",
        "tokenizer.json",
    ] {
        let world = World::new();
        let elsewhere = tempfile::tempdir().unwrap();
        let to = elsewhere.path().join("file");
        fs::rename(world.path(name), &to).unwrap();
        symlink(&to, world.path(name)).unwrap();
        world.refused(&["is a link to", "expected a file of the directory itself"]);
    }
    // Inside it they may lie anywhere.
    let world = World::new();
    fs::rename(world.path(ENCODER), world.path("elsewhere")).unwrap();
    symlink("../elsewhere", world.path(ENCODER)).unwrap();
    world.adopted("--precision fp32");
    let copied = world.folder.path().join("bundle").join(ENCODER);
    assert!(!fs::symlink_metadata(copied).unwrap().is_symlink());
    // A pipe is no file.
    let world = World::new();
    fs::remove_file(world.path(ENCODER)).unwrap();
    let made = Command::new("mkfifo").arg(world.path(ENCODER)).status();
    assert!(made.unwrap().success());
    world.refused(&["vision_encoder.onnx"]);
}

/// The cache of the Hugging Face hub: links into `blobs`.
#[cfg(unix)]
#[test]
fn a_snapshot_of_the_hub_is_a_directory_too() {
    use std::os::unix::fs::symlink;
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("models--org--name");
    let (blobs, snapshot) = (model.join("blobs"), model.join("snapshots/abc"));
    fs::create_dir_all(&blobs).unwrap();
    fs::create_dir_all(snapshot.join("onnx")).unwrap();
    let from = original().join("graphs");
    for (number, path) in tree(&from).keys().enumerate() {
        let blob = blobs.join(number.to_string());
        fs::copy(path, &blob).unwrap();
        symlink(blob, snapshot.join(path.strip_prefix(&from).unwrap())).unwrap();
    }
    let flags = "--from-onnx models--org--name/snapshots/abc -o bundle --precision fp32 --quiet";
    let ran = run(folder.path(), flags);
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    let bundle = Bundle::open(&folder.path().join("bundle")).unwrap();
    assert_eq!(bundle.model.name, "org/name");

    // A blob whose name says its SHA-256, and another.
    let large = bundle.files.iter().find(|file| file.path.ends_with(".onnx_data"));
    let large = large.unwrap();
    let data = snapshot.join(&large.path);
    let bytes = fs::read(&data).unwrap();
    for (hash, problem) in [
        (large.sha256.clone(), None),
        ("7".repeat(64), Some("is damaged: its name states SHA-256 7777")),
    ] {
        let blob = blobs.join(hash);
        fs::write(&blob, &bytes).unwrap();
        fs::remove_file(&data).unwrap();
        symlink(blob, &data).unwrap();
        let ran = run(folder.path(), &format!("{flags} --overwrite"));
        match problem {
            None => assert_eq!(ran.code, Some(0), "{}", ran.stderr),
            Some(problem) => assert!(
                ran.code == Some(2) && ran.stderr.contains(problem),
                "{}",
                ran.stderr
            ),
        }
    }
}

#[test]
fn a_bundle_of_ours_is_one_already() {
    let world = World::new();
    world.adopted("--precision fp32");
    let ran = run(world.folder.path(), "--from-onnx bundle -o other");
    assert!(
        ran.code == Some(2) && ran.stderr.contains("is a bundle already"),
        "{}",
        ran.stderr
    );
}

#[test]
fn flags_of_exports_are_about_exports() {
    let world = World::new();
    for flags in [
        "--model demo",
        "--target cpu",
        "--to coreml",
        "--card",
        "--page",
        "--image-size 512",
        "--dump",
        "--check coreml",
    ] {
        let ran = world.adopt(flags);
        assert_eq!(ran.code, Some(2), "{flags}");
        assert!(ran.stderr.contains("cannot be used with"), "{}", ran.stderr);
    }
}

/// Templates that take a text, and those that take parts.
#[test]
fn the_template_says_what_it_takes() {
    let world = World::new();
    let text =
        "{% for m in messages %}<|im_start|>{{ m['role'] + '\\n' + m['content'] }}<|im_end|>\\n{% endfor %}";
    fs::write(world.path("chat_template.jinja"), text).unwrap();
    let (bundle, _) = world.adopted("--precision fp32");
    assert_eq!(bundle.prompt.content, Content::Text);
    let world = World::new();
    fs::write(world.path("chat_template.jinja"), "{{ 'hello' }}").unwrap();
    world.refused(&["could not be asked anything"]);
}

/// The dialect of Apple's config, which the community's exports have.
#[test]
fn a_config_in_apples_dialect_says_how_images_are_made_square() {
    let config = serde_json::json!({
        "model_type": "llava_qwen2", "hidden_act": "silu", "hidden_size": 192, "intermediate_size": 512,
        "num_hidden_layers": 4, "num_attention_heads": 6, "num_key_value_heads": 2, "vocab_size": 1024,
        "max_position_embeddings": 2048, "rms_norm_eps": 1e-6, "rope_theta": 1_000_000.0, "tie_word_embeddings": true,
        "mm_hidden_size": 512, "mm_projector_type": "mlp2x_gelu", "mm_vision_tower": "mobileclip_l_256",
        "image_aspect_ratio": "pad", "image_token_index": 1023, "eos_token_id": 1022,
        "transformers.js_config": {"dtype": "q4", "use_external_data_format": true, "kv_cache_dtype": {"q4": "float16"},
            "device_config": {"webgpu": {}}},
        "vision_config": {"embed_dims": [16, 32, 64, 128, 256], "layers": [1, 1, 3, 1, 1]},
    });
    let world = World::new();
    fs::write(world.path("config.json"), config.to_string()).unwrap();
    let (bundle, _) = world.adopted("");
    assert_eq!(bundle.image.aspect, Aspect::Pad { color: [0; 3] });
    assert_eq!((bundle.image.height, bundle.image.tokens), (256, 16));
    assert_eq!(bundle.prompt.image_token_id, Some(1023));
    let written = fs::read(world.folder.path().join("bundle/config.json")).unwrap();
    let written: serde_json::Value = serde_json::from_slice(&written).unwrap();
    let told = &written["transformers.js_config"];
    let first = bundle.variants[0].precision.name();
    assert_eq!(told["dtype"], first, "{told}");
    // What the graphs have, not what was said of others.
    let with_data = told["use_external_data_format"].as_object().unwrap();
    assert!(
        with_data.len() == 6 && with_data.values().all(|files| *files == true),
        "{told}"
    );
    assert_eq!(told["kv_cache_dtype"], serde_json::json!({"fp16": "float16"}));
    assert_eq!(
        told["device_config"],
        config["transformers.js_config"]["device_config"]
    );
    for (old, new, says) in [
        (
            "1023",
            "1021",
            "`image_token_index` is 1021, tokenizer.json has id 1023",
        ),
        ("\"pad\"", "\"anyres\"", "`image_aspect_ratio` is \"anyres\""),
    ] {
        let world = World::new();
        fs::write(
            world.path("config.json"),
            config.to_string().replacen(old, new, 1),
        )
        .unwrap();
        world.refused(&[says]);
    }
}
