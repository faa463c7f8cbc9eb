//! Graphs of another program behind our contract: an engine that remembers what it was given.

#![expect(clippy::unwrap_used, reason = "a failure here is a failed test")]

use half::f16;
use models::bundle::{Adopted, Given, GraphEntry, Io, IoDim, KvSpec, Told};
use models::dtype::DType;
use ndarray::{Array1, Array2, Array4, ArrayD};
use runtime::BackendError;
use runtime::backend::adopted::{AdoptedSession, as_ours};
use runtime::backend::kv::KvDecoder;
use runtime::backend::session::{Description, EngineSession, Input, Port, Tensor, check_contract};
use runtime::backend::stateless::{SessionEmbedder, SessionEncoder};
use runtime::backend::{Decoder as _, TokenEmbedder as _, VisionEncoder as _};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

/// What an engine was given: names with types and shapes, numbers where there are few.
type Call = BTreeMap<String, Tensor>;

/// An engine that remembers what it was given, and computes what `compute` says.
struct Spy {
    description: Description,
    calls: Arc<Mutex<Vec<Call>>>,
    compute: fn(&Call) -> Vec<Tensor>,
    /// The call that fails.
    fails: Arc<AtomicUsize>,
}

impl EngineSession for Spy {
    type Value = Tensor;

    fn description(&self) -> &Description {
        &self.description
    }

    fn upload(&self, tensor: Tensor) -> Result<Tensor, BackendError> {
        Ok(tensor)
    }

    fn download(&self, value: &Tensor) -> Result<Tensor, BackendError> {
        Ok(value.clone())
    }

    fn compute(&self, inputs: &mut [(&str, Input<'_, Tensor>)]) -> Result<Vec<Tensor>, BackendError> {
        let given = inputs.iter().map(|(name, input)| {
            let tensor = match input {
                Input::Held(tensor) => (*tensor).clone(),
                Input::Open(_) => panic!("this engine writes no caches"),
                Input::Lent(array) => Tensor::F32(array.to_owned()),
            };
            ((*name).to_owned(), tensor)
        });
        let call: Call = given.collect();
        let outputs = (self.compute)(&call);
        let mut calls = self.calls.lock().unwrap();
        calls.push(call);
        if calls.len() == self.fails.load(Ordering::Relaxed) {
            return Err(BackendError::Run {
                path: self.description.path.clone(),
                reason: "asked to".to_owned(),
            });
        }
        Ok(outputs)
    }
}

fn dims(words: &[&str]) -> Vec<IoDim> {
    let dim = |word: &&str| match word.parse() {
        Ok(length) => IoDim::Fixed(length),
        Err(_) => IoDim::Symbol((*word).to_owned()),
    };
    words.iter().map(dim).collect()
}

fn io(name: &str, dtype: DType, words: &[&str]) -> Io {
    Io {
        name: name.to_owned(),
        dtype,
        dims: dims(words),
    }
}

fn entry(inputs: Vec<Io>, outputs: Vec<Io>, adopted: Adopted) -> GraphEntry {
    GraphEntry {
        path: "graph.onnx".to_owned(),
        data: Vec::new(),
        inputs,
        outputs,
        adopted: Some(adopted),
    }
}

fn names(names: &[(&str, &str)]) -> BTreeMap<String, String> {
    let names = names.iter();
    names
        .map(|(ours, theirs)| ((*ours).to_owned(), (*theirs).to_owned()))
        .collect()
}

/// A session of that contract, and what it is given.
fn session(
    entry: &GraphEntry,
    compute: fn(&Call) -> Vec<Tensor>,
) -> (AdoptedSession<Spy>, Arc<Mutex<Vec<Call>>>, Arc<AtomicUsize>) {
    let port = |io: &Io| Port {
        name: io.name.clone(),
        dtype: Some(io.dtype),
        dims: io
            .dims
            .iter()
            .map(|dim| match dim {
                IoDim::Fixed(length) => usize::try_from(*length).ok(),
                IoDim::Symbol(_) => None,
            })
            .collect(),
    };
    let description = Description {
        path: PathBuf::from("graph.onnx"),
        inputs: entry.inputs.iter().map(port).collect(),
        outputs: entry.outputs.iter().map(port).collect(),
    };
    check_contract(&description, entry).unwrap();
    let (calls, fails) = (Arc::default(), Arc::default());
    let spy = Spy {
        description,
        calls: Arc::clone(&calls),
        compute,
        fails: Arc::clone(&fails),
    };
    let adopted = entry.adopted.clone().unwrap();
    (AdoptedSession::new(spy, entry, &adopted), calls, fails)
}

#[test]
fn pixels_become_halves_and_features_are_found() {
    let adopted = Adopted {
        names: names(&[("pixel_values", "pixels"), ("image_features", "features")]),
        given: BTreeMap::new(),
    };
    let entry = |tokens: &str| {
        entry(
            vec![io("pixels", DType::Float16, &["n", "3", "2", "2"])],
            vec![
                io("hidden", DType::Float32, &["n", "1"]),
                io("features", DType::Float32, &[tokens, "2"]),
            ],
            adopted.clone(),
        )
    };
    let compute: fn(&Call) -> Vec<Tensor> = |_| {
        let features = ArrayD::from_shape_vec(vec![3, 2], vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        vec![
            Tensor::F32(ArrayD::zeros(vec![1, 1])),
            Tensor::F32(features.unwrap()),
        ]
    };
    // More features than the contract states would be cut.
    let (other, _, _) = session(&entry("2"), compute);
    let error = SessionEncoder::new(other)
        .encode(Array4::zeros((1, 3, 2, 2)).view())
        .unwrap_err();
    assert!(
        error.to_string().contains("has shape [3, 2], expected [2, 2]"),
        "{error}"
    );
    let (session, calls, _) = session(&entry("3"), compute);
    let encoder = SessionEncoder::new(session);
    let features = encoder
        .encode(Array4::from_elem((1, 3, 2, 2), 0.5).view())
        .unwrap();
    assert_eq!(features.dim(), (3, 2));
    assert_eq!(features[[2, 1]], 6.0);
    let calls = calls.lock().unwrap();
    let halves = Tensor::F16(ArrayD::from_elem(vec![1, 3, 2, 2], f16::from_f32(0.5)));
    assert_eq!(*calls, [BTreeMap::from([("pixels".to_owned(), halves)])]);
}

#[test]
fn embeddings_in_halves_are_numbers() {
    let entry = entry(
        vec![io("tokens", DType::Int64, &["b", "s"])],
        vec![io("inputs_embeds", DType::Float16, &["b", "s", "1"])],
        Adopted {
            names: names(&[("input_ids", "tokens")]),
            given: BTreeMap::new(),
        },
    );
    let (session, _, _) = session(&entry, |call| {
        let Tensor::I64(ids) = &call["tokens"] else {
            panic!("{call:?}")
        };
        let numbers = ids.mapv(|id| f16::from_f32(id as f32));
        let shape = vec![1, ids.len(), 1];
        vec![Tensor::F16(numbers.into_shape_with_order(shape).unwrap())]
    });
    let embeds = SessionEmbedder(session).embed(&[4, 5]).unwrap();
    assert_eq!(embeds.into_iter().collect::<Vec<_>>(), [4.0, 5.0]);
}

/// A decoder whose cache holds its embeddings, and whose logits of a position are its number and the sum up to it.
fn sums(call: &Call) -> Vec<Tensor> {
    let half = |name: &str| match &call[name] {
        Tensor::F16(array) => array.clone(),
        other => panic!("{name}: {other:?}"),
    };
    let (embeds, past) = (half("embeds"), half("past_0_key"));
    let all: Vec<f16> = past.iter().chain(&embeds).copied().collect();
    let cache = ArrayD::from_shape_vec(vec![1, 1, all.len(), 1], all.clone()).unwrap();
    let mut logits = Vec::new();
    for last in past.len()..all.len() {
        let sum: f32 = all[..=last].iter().map(|number| number.to_f32()).sum();
        logits.extend([f16::from_f32(last as f32), f16::from_f32(sum)]);
    }
    let logits = ArrayD::from_shape_vec(vec![1, embeds.len(), 2], logits).unwrap();
    vec![
        Tensor::F16(logits),
        Tensor::F16(cache.clone()),
        Tensor::F16(cache),
    ]
}

/// A decoder, what its graph was called with, and which of its calls fails.
type Spied = (
    Arc<KvDecoder<AdoptedSession<Spy>>>,
    Arc<Mutex<Vec<Call>>>,
    Arc<AtomicUsize>,
);

fn decoder(given: &[(&str, Given)]) -> Spied {
    use DType::{Bool, Float16, Int64};
    let cache = |name: &str| io(name, Float16, &["1", "1", "p", "1"]);
    let mut inputs = vec![
        io("embeds", Float16, &["1", "s", "1"]),
        io("attention_mask", Int64, &["1", "t"]),
        cache("past_0_key"),
        cache("past_key_values.0.value"),
    ];
    for (name, given) in given {
        inputs.push(match given {
            Given::Number(_) => io(name, Int64, &[]),
            Given::Told(_) => io(name, Bool, &["1"]),
        });
    }
    let adopted = Adopted {
        names: names(&[
            ("inputs_embeds", "embeds"),
            ("past_key_values.0.key", "past_0_key"),
            ("logits", "scores"),
        ]),
        given: given
            .iter()
            .map(|(name, given)| ((*name).to_owned(), *given))
            .collect(),
    };
    let outputs = vec![
        io("scores", Float16, &["1", "s", "2"]),
        cache("present.0.key"),
        cache("present.0.value"),
    ];
    let entry = entry(inputs, outputs, adopted);
    let (session, calls, fails) = session(&entry, sums);
    let ours = as_ours(&entry, entry.adopted.as_ref().unwrap());
    let kv = KvSpec {
        layers: 1,
        kv_heads: 1,
        head_dim: 1,
        max_context: 16,
    };
    let decoder = KvDecoder::new(session, &ours, &kv, Float16, false).unwrap();
    (Arc::new(decoder), calls, fails)
}

fn rows(numbers: &[f32]) -> Array2<f32> {
    Array2::from_shape_vec((numbers.len(), 1), numbers.to_vec()).unwrap()
}

#[test]
fn logits_are_those_of_the_last_position() {
    let (decoder, calls, _) = decoder(&[("num_logits_to_keep", Given::Number(1))]);
    let mut state = decoder.start().unwrap();
    let logits = state.feed(rows(&[1.0, 2.0, 3.0]).view()).unwrap();
    assert_eq!(logits, Array1::from(vec![2.0, 6.0]));
    let logits = state.feed(rows(&[4.0, 5.0]).view()).unwrap();
    assert_eq!(logits, Array1::from(vec![4.0, 15.0]));
    state.truncate(1).unwrap();
    let logits = state.feed(rows(&[7.0]).view()).unwrap();
    assert_eq!(logits, Array1::from(vec![1.0, 8.0]));
    let calls = calls.lock().unwrap();
    assert_eq!(calls.len(), 3);
    for call in calls.iter() {
        // No positions: the graph does not take them.
        let names: Vec<&str> = call.keys().map(String::as_str).collect();
        let expected = [
            "attention_mask",
            "embeds",
            "num_logits_to_keep",
            "past_0_key",
            "past_key_values.0.value",
        ];
        assert_eq!(names, expected);
        assert_eq!(
            call["num_logits_to_keep"],
            Tensor::I64(ArrayD::from_elem(vec![], 1))
        );
    }
}

#[test]
fn a_graph_with_a_branch_for_the_cache_takes_one_position_in_it() {
    let (decoder, calls, fails) = decoder(&[("use_cache_branch", Given::Told(Told::HasPast))]);
    let mut state = decoder.start().unwrap();
    state.feed(rows(&[1.0, 2.0, 3.0]).view()).unwrap();
    let logits = state.feed(rows(&[4.0, 5.0]).view()).unwrap();
    assert_eq!((logits, state.len()), (Array1::from(vec![4.0, 15.0]), 5));
    let seen = |calls: &[Call]| -> Vec<(bool, usize)> {
        let of = |call: &Call| match &call["use_cache_branch"] {
            Tensor::Bool(flag) if flag.shape() == [1] => (flag[[0]], call["embeds"].len()),
            other => panic!("{other:?}"),
        };
        calls.iter().map(of).collect()
    };
    assert_eq!(seen(&calls.lock().unwrap()), [(false, 3), (true, 1), (true, 1)]);
    // The second of three positions fails: none was fed.
    fails.store(5, Ordering::Relaxed);
    assert!(state.feed(rows(&[6.0, 7.0, 8.0]).view()).is_err());
    assert_eq!(state.len(), 5);
    let logits = state.feed(rows(&[6.0]).view()).unwrap();
    assert_eq!(logits, Array1::from(vec![5.0, 21.0]));
    assert!(state.feed(Array2::zeros((0, 1)).view()).is_err());
    // Anew from the start.
    state.truncate(0).unwrap();
    state.feed(rows(&[1.0, 2.0]).view()).unwrap();
    assert_eq!(seen(&calls.lock().unwrap()).last(), Some(&(false, 2)));
}
