//! Standard graphs of 8 and 4 bits: `fvlm-export --target portable --precision int8|q8|q4|q4f16`.

#![expect(clippy::unwrap_used, reason = "a failure here is a failed test")]

use exporter::onnx::proto::{DataType, GraphProto, ModelProto, NodeProto, TensorProto};
use half::f16;
use models::bundle::{Bundle, GraphEntry, Precision, Target, Variant};
use prost::Message as _;
use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

fn export(folder: &Path, name: &str, flags: &str) -> Bundle {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fvlm-export"));
    let flags = flags.split_whitespace();
    let output = command
        .current_dir(folder)
        .args(["-o", name])
        .args(flags)
        .output();
    let output = output.unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{said}");
    Bundle::open(&folder.join(name)).unwrap()
}

fn model(bundle: &Path, path: &str) -> ModelProto {
    ModelProto::decode(std::fs::read(bundle.join(path)).unwrap().as_slice()).unwrap()
}

fn variant(bundle: &Bundle, target: Target, precision: Precision) -> &Variant {
    let mut variants = bundle.variants.iter();
    variants
        .find(|variant| (variant.target, variant.precision) == (target, precision))
        .unwrap()
}

fn graphs(variant: &Variant) -> [&GraphEntry; 3] {
    [&variant.vision_encoder, &variant.embed_tokens, &variant.decoder]
}

fn attribute(node: &NodeProto, name: &str) -> i64 {
    let mut attributes = node.attribute.iter();
    let found = attributes.find(|attribute| attribute.name.as_deref() == Some(name));
    found.unwrap().i.unwrap()
}

fn tensor<'g>(graph: &'g GraphProto, name: &str) -> &'g TensorProto {
    let mut tensors = graph.initializer.iter();
    tensors
        .find(|tensor| tensor.name.as_deref() == Some(name))
        .unwrap()
}

fn place(tensor: &TensorProto) -> Vec<String> {
    ["location", "offset", "length"]
        .map(|key| {
            let mut entries = tensor.external_data.iter();
            let entry = entries.find(|entry| entry.key.as_deref() == Some(key));
            entry.and_then(|entry| entry.value.clone()).unwrap_or_default()
        })
        .to_vec()
}

/// The contents of a tensor.
fn bytes(bundle: &Path, tensor: &TensorProto) -> Vec<u8> {
    if let Some(raw) = &tensor.raw_data {
        return raw.clone();
    }
    let [file, offset, length] = &place(tensor)[..] else {
        panic!("no place")
    };
    let data = std::fs::read(bundle.join("onnx").join(file)).unwrap();
    let offset: usize = offset.parse().unwrap();
    data[offset..][..length.parse::<usize>().unwrap()].to_vec()
}

/// Real numbers of a tensor of halves or floats.
fn numbers(bundle: &Path, tensor: &TensorProto) -> Vec<f32> {
    let bytes = bytes(bundle, tensor);
    if tensor.data_type == Some(i32::from(DataType::Float16)) {
        let halves = bytes.as_chunks::<2>().0.iter();
        return halves.map(|half| f16::from_le_bytes(*half).to_f32()).collect();
    }
    assert_eq!(tensor.data_type, Some(i32::from(DataType::Float)));
    let floats = bytes.as_chunks::<4>().0.iter();
    floats.map(|float| f32::from_le_bytes(*float)).collect()
}

fn kinds(model: &ModelProto) -> BTreeSet<(String, String)> {
    let nodes = &model.graph.as_ref().unwrap().node;
    let kind = |node: &NodeProto| {
        (
            node.domain.clone().unwrap_or_default(),
            node.op_type.clone().unwrap(),
        )
    };
    nodes.iter().map(kind).collect()
}

const ALL: &str =
    "--target portable --precision fp32 --precision int8 --precision q8 --precision q4 --precision q4f16";

#[test]
fn operators_names_and_types() {
    let folder = tempfile::tempdir().unwrap();
    let bundle = export(folder.path(), "b", &format!("{ALL} --image-size 128"));
    let root = folder.path().join("b");
    for (precision, suffix, half) in [
        (Precision::Int8, "_int8", false),
        (Precision::Q8, "_quantized", false),
        (Precision::Q4, "_q4", false),
        (Precision::Q4F16, "_q4f16", true),
    ] {
        let form = variant(&bundle, Target::Portable, precision);
        for (graph, name) in
            graphs(form)
                .into_iter()
                .zip(["vision_encoder", "embed_tokens", "decoder_model_merged"])
        {
            assert_eq!(graph.path, format!("onnx/{name}{suffix}.onnx"));
        }
        let further = &form.further_encoders[0].graph.path;
        assert_eq!(*further, format!("onnx/vision_encoder_128{suffix}.onnx"));
        let cache = if half { "float16" } else { "float32" };
        assert_eq!(form.kv_dtype.name(), cache);
        for io in form.decoder.inputs.iter().chain(&form.decoder.outputs) {
            let expected = match &*io.name {
                "attention_mask" | "position_ids" => "int64",
                "inputs_embeds" | "logits" => "float32",
                _ => cache,
            };
            assert_eq!(io.dtype.name(), expected, "{}", io.name);
        }
        let models = graphs(form).map(|graph| model(&root, &graph.path));
        for model in &models {
            let found: BTreeSet<String> = kinds(model).into_iter().map(|(domain, _)| domain).collect();
            let imported: BTreeSet<String> = model
                .opset_import
                .iter()
                .map(|import| import.domain.clone().unwrap())
                .collect();
            assert_eq!(found, imported);
            let own = BTreeSet::from([String::new()]);
            let both = BTreeSet::from([String::new(), "com.microsoft".to_owned()]);
            assert!(found == own || (precision != Precision::Int8 && (found == both || found.len() == 1)));
            assert!(model.functions.is_empty());
            assert_eq!(model.ir_version, Some(9));
        }
        let has = |model: &ModelProto, operator: &str| kinds(model).iter().any(|(_, kind)| kind == operator);
        let [encoder, embedding, decoder] = &models;
        assert_eq!(has(encoder, "DequantizeLinear"), precision != Precision::Q4F16);
        assert!(kinds(embedding).iter().all(|(domain, _)| domain.is_empty()));
        assert_eq!(has(decoder, "MatMulNBits"), precision != Precision::Int8);
        assert!(!has(decoder, "Gemm"), "{precision}");
    }
}

#[test]
fn products_in_blocks_have_what_the_specification_wants() {
    let folder = tempfile::tempdir().unwrap();
    let bundle = export(folder.path(), "b", ALL);
    let root = folder.path().join("b");
    for (precision, layers, head) in [
        (Precision::Q8, 8, 8),
        (Precision::Q4, 4, 8),
        (Precision::Q4F16, 4, 8),
    ] {
        let form = variant(&bundle, Target::Portable, precision);
        let decoder = model(&root, &form.decoder.path);
        let graph = decoder.graph.as_ref().unwrap();
        let products: Vec<&NodeProto> = graph
            .node
            .iter()
            .filter(|node| node.op_type.as_deref() == Some("MatMulNBits"))
            .collect();
        assert_eq!(products.len(), 7 * bundle.kv.layers + 1);
        let scale_type = if precision == Precision::Q4F16 {
            DataType::Float16
        } else {
            DataType::Float
        };
        let described: BTreeSet<&str> = graph
            .value_info
            .iter()
            .filter_map(|value| value.name.as_deref())
            .collect();
        for node in &products {
            let is_head = node.name.as_deref().unwrap().starts_with("/lm_head");
            let [k, n, bits, size] = ["K", "N", "bits", "block_size"].map(|name| attribute(node, name));
            assert_eq!(bits, if is_head { head } else { layers });
            assert_eq!(attribute(node, "accuracy_level"), 4);
            assert!(size >= 16 && size.count_ones() == 1);
            let count = (k + size - 1) / size;
            let (codes, scales) = (tensor(graph, &node.input[1]), tensor(graph, &node.input[2]));
            assert_eq!(codes.dims, [n, count, size * bits / 8]);
            assert_eq!(scales.dims, [n, count]);
            assert_eq!(codes.data_type, Some(i32::from(DataType::Uint8)));
            assert_eq!(scales.data_type, Some(i32::from(scale_type)));
            // Whoever does not know the operator still knows what it computes.
            assert!(described.contains(&*node.output[0]), "{:?}", node.name);
        }
        // The demo's table is tied: one copy, which both graphs read.
        let embedding = model(&root, &form.embed_tokens.path);
        let lookup = embedding.graph.as_ref().unwrap();
        let gathers: Vec<&NodeProto> = lookup
            .node
            .iter()
            .filter(|node| node.op_type.as_deref() == Some("Gather"))
            .collect();
        let [codes, scales] = gathers[..] else {
            panic!("{} lookups", gathers.len())
        };
        let head = products.last().unwrap();
        for name in ["K", "N"] {
            assert!(attribute(head, name) > 0);
        }
        let table = tensor(lookup, &codes.input[0]);
        assert_eq!(table.data_type, Some(i32::from(DataType::Uint8)));
        assert_eq!(place(table), place(tensor(graph, &head.input[1])));
        assert_eq!(place(table)[0], form.embed_tokens.data[0].replace("onnx/", ""));
        assert_eq!(
            place(tensor(lookup, &scales.input[0])),
            place(tensor(graph, &head.input[2]))
        );
        assert_eq!(table.dims, [attribute(head, "N"), attribute(head, "K")]);
    }
}

/// Codes times scales are the weights of the float graph, but for rounding.
#[test]
fn codes_stand_for_the_weights() {
    let folder = tempfile::tempdir().unwrap();
    let bundle = export(folder.path(), "b", ALL);
    let root = folder.path().join("b");
    let plain = variant(&bundle, Target::Portable, Precision::Fp32);
    let plain = model(&root, &plain.decoder.path);
    let plain = plain.graph.as_ref().unwrap();
    let name = "language_model.layers.1.mlp.down_proj.weight";
    let weight = tensor(plain, name);
    let (columns, rows) = (
        usize::try_from(weight.dims[0]).unwrap(),
        usize::try_from(weight.dims[1]).unwrap(),
    );
    // `[K,N]`
    let wanted = numbers(&root, weight);
    let distance = |found: &dyn Fn(usize, usize) -> f32| {
        let (mut error, mut whole) = (0.0_f64, 0.0_f64);
        for row in 0..rows {
            for column in 0..columns {
                let wanted = wanted[column * rows + row];
                error += f64::from(found(row, column) - wanted).powi(2);
                whole += f64::from(wanted).powi(2);
            }
        }
        (error / whole).sqrt()
    };
    for (precision, limit) in [
        (Precision::Q8, 0.01),
        (Precision::Q4, 0.1),
        (Precision::Q4F16, 0.1),
    ] {
        let form = model(&root, &variant(&bundle, Target::Portable, precision).decoder.path);
        let graph = form.graph.as_ref().unwrap();
        let codes = tensor(graph, &format!("{name}.blocks"));
        let scales = numbers(&root, tensor(graph, &format!("{name}.scales")));
        let dims: Vec<usize> = codes
            .dims
            .iter()
            .map(|dim| usize::try_from(*dim).unwrap())
            .collect();
        let codes = bytes(&root, codes);
        let (count, blob) = (dims[1], dims[2]);
        let nibbles = precision != Precision::Q8;
        let size = if nibbles { 2 * blob } else { blob };
        let found = distance(&|row, column| {
            let place = row * count * size + column;
            let scale = scales[row * count + column / size];
            let code = if nibbles {
                f32::from((codes[place / 2] >> (4 * (place % 2))) & 15) - 8.0
            } else {
                f32::from(codes[place]) - 128.0
            };
            code * scale
        });
        assert!(found > 0.0 && found < limit, "{precision}: {found}");
    }
    let form = model(
        &root,
        &variant(&bundle, Target::Portable, Precision::Int8).decoder.path,
    );
    let graph = form.graph.as_ref().unwrap();
    let codes = tensor(graph, &format!("{name}.int8"));
    assert_eq!(codes.data_type, Some(i32::from(DataType::Int8)));
    assert_eq!(codes.dims, weight.dims);
    let codes = bytes(&root, codes);
    let scales = numbers(&root, tensor(graph, &format!("{name}.scales")));
    let found = distance(&|row, column| f32::from(codes[column * rows + row].cast_signed()) * scales[row]);
    assert!(found > 0.0 && found < 0.02, "{found}");
}

/// Ours and the standard ones of one precision: each has a name, the contract has both, and other people's clients are
/// led to the standard ones.
#[test]
fn both_targets_in_one_bundle() {
    let folder = tempfile::tempdir().unwrap();
    let alone = export(folder.path(), "alone", "--precision q4 --precision int8");
    let both = export(
        folder.path(),
        "both",
        "--target cpu --target portable --precision q4 --precision int8 --card",
    );
    for (precision, suffix) in [(Precision::Q4, "q4"), (Precision::Int8, "int8")] {
        let ours = variant(&both, Target::Cpu, precision);
        let standard = variant(&both, Target::Portable, precision);
        let before = variant(&alone, Target::Cpu, precision);
        assert_eq!(
            ours.decoder.path,
            format!("onnx/decoder_model_merged_cpu_{suffix}.onnx")
        );
        assert_eq!(
            standard.decoder.path,
            format!("onnx/decoder_model_merged_{suffix}.onnx")
        );
        assert_eq!(before.decoder.path, standard.decoder.path);
        // The same bytes under the other name.
        for (before, ours) in graphs(before).into_iter().zip(graphs(ours)) {
            for (before, ours) in before.data.iter().zip(&ours.data) {
                let read =
                    |bundle: &str, path: &str| std::fs::read(folder.path().join(bundle).join(path)).unwrap();
                assert!(read("alone", before) == read("both", ours), "{ours}");
            }
        }
    }
    let text = |name: &str| std::fs::read_to_string(folder.path().join("both").join(name)).unwrap();
    let config: serde_json::Value = serde_json::from_str(&text("config.json")).unwrap();
    let told = &config["transformers.js_config"];
    assert_eq!(told["dtype"], "q4");
    let named = told["use_external_data_format"].as_object().unwrap();
    assert!(named.keys().all(|name| !name.contains("_cpu_")), "{named:?}");
    assert!(named.contains_key("decoder_model_merged_q4.onnx"), "{named:?}");
    let genai = text("genai_config.json");
    assert!(
        genai.contains("decoder_model_merged_q4.onnx") && !genai.contains("_cpu_"),
        "{genai}"
    );
    let card = text("README.md");
    assert!(
        card.contains("| ONNX, target `cpu` | q4 |") && card.contains("| ONNX, target `portable` | q4 |")
    );
    assert!(card.contains("dtype: 'q4'"), "{card}");
}

/// Whatever the plan's order and neighbours: a browser's graphs have all their weights, and equal bytes.
#[test]
fn self_contained_graphs_have_their_own_table() {
    let folder = tempfile::tempdir().unwrap();
    let flags = "--target portable --precision q4";
    let shared = export(folder.path(), "shared", flags);
    let alone = export(folder.path(), "alone", &format!("{flags} --self-contained"));
    let form = variant(&alone, Target::Portable, Precision::Q4);
    for graph in graphs(form) {
        assert_eq!(graph.data, [format!("{}_data", graph.path)]);
    }
    let bytes = |bundle: &Bundle| -> u64 { bundle.files.iter().map(|file| file.bytes).sum() };
    assert!(bytes(&alone) > bytes(&shared));
    // Twice the same export: the same bytes.
    assert_eq!(export(folder.path(), "again", flags), shared);
}
