//! Bundles with graphs of another program.

use super::*;

/// [`bundle`] whose graphs are another program's: names, symbols, types and a number of its own.
fn adopted() -> Bundle {
    use DType::{Bool, Float16, Float32, Int64};
    let mut bundle = bundle();
    let variant = &mut bundle.variants[0];
    variant.kv_dtype = Float16;
    variant.vision_encoder.inputs = vec![io("pixels", Float16, &["n", "3", "height", "64"])];
    variant.vision_encoder.outputs = vec![
        io("hidden", Float32, &["n", "7"]),
        io("features", Float32, &["1", "16"]),
    ];
    variant.vision_encoder.adopted = named(&[("pixel_values", "pixels"), ("image_features", "features")]);
    variant.embed_tokens.inputs = vec![io("input_ids", Int64, &["b", "s"])];
    variant.embed_tokens.outputs = vec![io("inputs_embeds", Float16, &["b", "s", "16"])];
    variant.embed_tokens.adopted = named(&[]);
    variant.decoder.inputs = vec![
        io("use_cache_branch", Bool, &["1"]),
        io("embeds", Float16, &["1", "s", "16"]),
        io("attention_mask", Int64, &["1", "t"]),
        io("past_key_values.0.key", Float16, &["1", "2", "p", "8"]),
        io("past_key_values.0.value", Float16, &["1", "2", "p", "8"]),
        io("num_logits_to_keep", Int64, &[]),
    ];
    variant.decoder.outputs = vec![
        io("logits", Float16, &["1", "s", "50"]),
        io("present.0.key", Float16, &["1", "2", "t", "8"]),
        io("present.0.value", Float16, &["1", "2", "t", "8"]),
    ];
    variant.decoder.adopted = named(&[("inputs_embeds", "embeds")]);
    let given = &mut variant.decoder.adopted.as_mut().unwrap().given;
    given.insert("num_logits_to_keep".to_owned(), Given::Number(1));
    given.insert("use_cache_branch".to_owned(), Given::Told(Told::HasPast));
    bundle
}

fn named(names: &[(&str, &str)]) -> Option<Adopted> {
    let names = names.iter();
    let names = names.map(|(ours, theirs)| ((*ours).to_owned(), (*theirs).to_owned()));
    Some(Adopted {
        names: names.collect(),
        given: BTreeMap::new(),
    })
}

#[test]
fn graphs_of_another_program_are_read_and_checked() {
    let whole = adopted();
    assert!(whole.variants[0].is_adopted() && !bundle().variants[0].is_adopted());
    let read = Bundle::open(on_disk(&whole).path()).unwrap();
    assert_eq!(read, whole);
    assert_eq!(read.adopted_problems(&read.variants[0]), [""; 0]);
    let described = read.variants[0].decoder.adopted.as_ref().unwrap();
    assert_eq!(described.name("inputs_embeds"), "embeds");
    assert_eq!(described.name("logits"), "logits");
    assert!(described.steps());
    let text = whole.to_json();
    assert!(text.contains(r#""use_cache_branch": "has_past""#), "{text}");
    // What is not there is not written: bundles of ours read as they always did.
    assert!(!bundle().to_json().contains("adopted"));
}

#[test]
fn what_does_not_fit_of_them_is_named() {
    type Change = fn(&mut Variant);
    let cases: [(Change, &str); 14] = [
        (
            |v| v.decoder.inputs[3].dims[1] = IoDim::Fixed(4),
            "`onnx/d.onnx` has the input `past_key_values.0.key` float16 [1,4,p,8], expected float16 [batch,2,any,8]",
        ),
        (
            |v| v.decoder.inputs[4].dtype = DType::Float32,
            "`past_key_values.0.value` float32 [1,2,p,8], expected float16",
        ),
        (
            |v| v.decoder.inputs[1].dims[2] = IoDim::Symbol("h".to_owned()),
            "has the input `embeds` float16 [1,s,h] as `inputs_embeds`, expected float32 or float16 [batch,any,16]",
        ),
        (
            |v| v.decoder.inputs[2].dims[1] = IoDim::Fixed(9),
            "`attention_mask` int64 [1,9], expected int64 [batch,any]",
        ),
        (
            |v| v.decoder.outputs[0].dims[2] = IoDim::Symbol("v".to_owned()),
            "`logits` float16 [1,s,v], expected float32 or float16 [batch,any,50]",
        ),
        (
            |v| drop(v.decoder.outputs.pop()),
            "has no output `present.0.value`, expected float16 [batch,2,any,8]",
        ),
        (
            |v| v.decoder.inputs[5].dims = vec![IoDim::Fixed(2)],
            "has the input `num_logits_to_keep` int64 [2], which is given a number, expected int64 or bool [] or [1]",
        ),
        (
            |v| v.decoder.adopted.as_mut().unwrap().given.clear(),
            "has the input `use_cache_branch` bool [1] with no role and no number, expected either",
        ),
        (
            |v| {
                let given = &mut v.decoder.adopted.as_mut().unwrap().given;
                given.insert("embeds".to_owned(), Given::Number(0));
            },
            "has the input `embeds` float16 [1,s,16] with a role and a number, expected either",
        ),
        (
            |v| {
                let given = &mut v.decoder.adopted.as_mut().unwrap().given;
                given.insert("nothing".to_owned(), Given::Number(0));
            },
            "gives a number to `nothing`, which it has not",
        ),
        (
            |v| {
                let names = &mut v.decoder.adopted.as_mut().unwrap().names;
                names.insert("pixel_values".to_owned(), "embeds".to_owned());
            },
            "names `pixel_values`, which is no role of its",
        ),
        (
            |v| v.vision_encoder.outputs[1].dims = vec![IoDim::Fixed(2), IoDim::Fixed(16)],
            "`features` float32 [2,16] as `image_features`, expected float32 or float16 [batch,1,16] or [1,16]",
        ),
        (
            |v| v.embed_tokens.adopted = None,
            "has adopted graphs and other ones, expected three adopted ones of target portable",
        ),
        (
            |v| v.target = Target::Cpu,
            "expected three adopted ones of target portable",
        ),
    ];
    for (change, expected) in cases {
        let mut bundle = adopted();
        change(&mut bundle.variants[0]);
        let problems = bundle.adopted_problems(&bundle.variants[0]).join("; ");
        assert!(problems.contains(expected), "{problems}, expected {expected}");
        let message = Bundle::open(on_disk(&bundle).path()).unwrap_err().to_string();
        assert!(message.contains(expected), "{message}, expected {expected}");
    }
}
