//! `onnx`: an ONNX file, read and checked as `fvlm-export --check coreml` does it.
//!
//! Counts of a verdict add up, are the same each time, and survive their JSON; what is read and written is
//! read again as the same. The files that its tensors lie in are found by who opens bundles, too.

use crate::folder::Folder;
use crate::words;
use arbitrary::{Result, Unstructured};
use exporter::onnx::proto::{
    AttributeProto, DimensionProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto,
    StringStringEntryProto, TensorProto, TensorShapeProto, TensorTypeProto, TypeProto, ValueInfoProto,
};
use exporter::ort_coreml::{RULES, Verdict, check_file};
use prost::Message as _;
use std::cell::OnceCell;
use std::io::Cursor;

const VALUES: [&str; 9] = ["a", "b", "c", "d", "e", "f", "g", "", "\u{1b}[2K"];
const ATTRIBUTES: [&str; 20] = [
    "axis",
    "axes",
    "perm",
    "pads",
    "strides",
    "kernel_shape",
    "group",
    "dilations",
    "auto_pad",
    "mode",
    "to",
    "epsilon",
    "alpha",
    "transA",
    "keepdims",
    "num_outputs",
    "split",
    "ceil_mode",
    "coordinate_transformation_mode",
    "value",
];
const WORDS: [&str; 6] = ["SAME_UPPER", "VALID", "NOTSET", "linear", "nearest", "half_pixel"];
const NUMBERS: [i64; 12] = [0, 1, 2, 3, -1, -2, 4, 7, 16_385, 1 << 31, i64::MAX, i64::MIN];

thread_local! {
    static FOLDER: OnceCell<Folder> = const { OnceCell::new() };
}

/// The first byte says whether the rest is a file, or the choices for one.
pub fn run(data: &[u8]) {
    let Some((kind, rest)) = data.split_first() else {
        return;
    };
    let file = if kind % 4 == 0 {
        rest.to_vec()
    } else {
        model(&mut Unstructured::new(rest))
            .unwrap_or_default()
            .encode_to_vec()
    };
    let fixed = kind & 4 == 0;
    FOLDER.with(|folder| {
        let folder = folder.get_or_init(|| Folder::new("onnx"));
        let path = folder.put("model.onnx", Some(&file));
        match check_file(&path, fixed) {
            Ok(verdict) => {
                adds_up(&verdict);
                assert!(
                    check_file(&path, fixed).is_ok_and(|again| again == verdict),
                    "checked twice, not the same"
                );
                words::check(&verdict.to_string(), &file);
                let text = serde_json::to_string(&verdict).expect("a verdict is JSON");
                serde_json::from_str::<serde_json::Value>(&text).expect("its JSON is JSON");
                let model = ModelProto::decode(&file[..]).expect("it was read");
                places(&model, &file);
                let written =
                    ModelProto::decode(&model.encode_to_vec()[..]).expect("what is written is read");
                assert_eq!(
                    format!("{model:?}"),
                    format!("{written:?}"),
                    "read again, not the same"
                );
            }
            Err(error) => words::check(&error.to_string(), &file),
        }
    });
}

/// Wherever a tensor has external data, who opens a bundle finds it: a file, or an error.
fn places(model: &ModelProto, file: &[u8]) {
    let Ok(found) = models::bundle::external_data(Cursor::new(file), file.len() as u64) else {
        return;
    };
    let graph = model.graph.iter();
    let nodes = graph.clone().flat_map(|graph| &graph.node);
    let nodes = nodes.chain(model.functions.iter().flat_map(|function| &function.node));
    let attributes = nodes.flat_map(|node| &node.attribute);
    let tensors = graph.flat_map(|graph| &graph.initializer);
    let tensors = tensors.chain(attributes.filter_map(|attribute| attribute.t.as_ref()));
    for entry in tensors.flat_map(|tensor| &tensor.external_data) {
        if entry.key.as_deref() == Some("location") {
            let place = entry.value.as_deref().unwrap_or_default();
            assert!(found.contains(place), "{place:?} is not among {found:?}");
        }
    }
}

fn adds_up(verdict: &Verdict) {
    let left: usize = verdict.left.iter().map(|left| left.count).sum();
    assert_eq!(verdict.claimed + left, verdict.nodes, "{verdict:?}");
    assert!(verdict.partitions <= verdict.claimed, "{verdict:?}");
    assert_eq!(verdict.claimed == 0, verdict.partitions == 0, "{verdict:?}");
    assert!(
        verdict.left.iter().all(|left| left.first.len() <= left.count),
        "{verdict:?}"
    );
}

fn model(u: &mut Unstructured<'_>) -> Result<ModelProto> {
    let mut graph = GraphProto::default();
    for _ in 0..u.int_in_range(0..=4)? {
        let initializer = tensor(u)?;
        graph.initializer.push(initializer);
    }
    for _ in 0..u.int_in_range(0..=6)? {
        let value = value(u)?;
        match u.int_in_range(0..=2)? {
            0 => graph.input.push(value),
            1 => graph.output.push(value),
            _ => graph.value_info.push(value),
        }
    }
    for _ in 0..u.int_in_range(0..=12)? {
        let node = node(u)?;
        graph.node.push(node);
    }
    Ok(ModelProto {
        ir_version: Some(*u.choose(&[3, 4, 9, 10])?),
        graph: Some(graph),
        opset_import: vec![OperatorSetIdProto {
            domain: None,
            version: Some(*u.choose(&[1, 7, 11, 13, 17, 20, 28, 29, -1])?),
        }],
        ..ModelProto::default()
    })
}

fn node(u: &mut Unstructured<'_>) -> Result<NodeProto> {
    let operator = match u.int_in_range(0..=19)? {
        0 => "Constant",
        1 => "Nothing",
        _ => u.choose(RULES)?.operator,
    };
    let mut node = NodeProto {
        op_type: Some(operator.to_owned()),
        name: Some((*u.choose(&VALUES)?).to_owned()),
        ..NodeProto::default()
    };
    for _ in 0..u.int_in_range(0..=4)? {
        node.input.push((*u.choose(&VALUES)?).to_owned());
    }
    for _ in 0..u.int_in_range(0..=2)? {
        node.output.push((*u.choose(&VALUES)?).to_owned());
    }
    for _ in 0..u.int_in_range(0..=4)? {
        let mut attribute = AttributeProto {
            name: Some((*u.choose(&ATTRIBUTES)?).to_owned()),
            ..AttributeProto::default()
        };
        match u.int_in_range(0..=4)? {
            0 => attribute.i = Some(*u.choose(&NUMBERS)?),
            1 => attribute.ints = numbers(u)?,
            2 => attribute.s = Some((*u.choose(&WORDS)?).as_bytes().to_vec()),
            3 => attribute.f = Some(u.arbitrary()?),
            _ => attribute.t = Some(tensor(u)?),
        }
        node.attribute.push(attribute);
    }
    Ok(node)
}

fn numbers(u: &mut Unstructured<'_>) -> Result<Vec<i64>> {
    let mut numbers = Vec::new();
    for _ in 0..u.int_in_range(0..=6)? {
        numbers.push(*u.choose(&NUMBERS)?);
    }
    Ok(numbers)
}

fn tensor(u: &mut Unstructured<'_>) -> Result<TensorProto> {
    let bytes = u.int_in_range(0..=17_usize)?.min(u.len());
    Ok(TensorProto {
        name: Some((*u.choose(&VALUES)?).to_owned()),
        dims: numbers(u)?,
        data_type: Some(*u.choose(&[1, 6, 7, 9, 10, 16, 0, 99])?),
        int64_data: numbers(u)?,
        raw_data: u.arbitrary::<bool>()?.then_some(u.bytes(bytes)?.to_vec()),
        external_data: outside(u)?,
        ..TensorProto::default()
    })
}

/// Mostly none.
fn outside(u: &mut Unstructured<'_>) -> Result<Vec<StringStringEntryProto>> {
    let count = u.int_in_range(0..=8_usize)?.saturating_sub(6);
    let entry = |u: &mut Unstructured<'_>| {
        Ok(StringStringEntryProto {
            key: Some((*u.choose(&["location", "offset", ""])?).to_owned()),
            value: u.arbitrary()?,
        })
    };
    (0..count).map(|_| entry(u)).collect()
}

fn value(u: &mut Unstructured<'_>) -> Result<ValueInfoProto> {
    let dims = numbers(u)?.into_iter().map(|length| DimensionProto {
        dim_value: (length != 7).then_some(length),
        dim_param: None,
    });
    let dim = dims.collect();
    Ok(ValueInfoProto {
        name: Some((*u.choose(&VALUES)?).to_owned()),
        r#type: Some(TypeProto {
            tensor_type: Some(TensorTypeProto {
                elem_type: Some(*u.choose(&[1, 6, 7, 9, 10, 16])?),
                shape: Some(TensorShapeProto { dim }),
            }),
        }),
    })
}
