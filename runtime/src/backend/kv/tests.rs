//! Sequences on a decoder that adds up: alone, together, and where the engine refuses.

use super::group::{FREE_PADDING, MOST_TOGETHER};
use super::*;
use crate::backend::session::{Description, Port};
use models::bundle::Io;
use ndarray::{Array4, Ix3, Ix4};
use std::path::PathBuf;
use std::sync::atomic::AtomicUsize;

/// Adds up all embeddings: the cache holds them, the logits are the sum of the last position's past.
#[derive(Debug)]
struct Sum {
    description: Description,
    fail: AtomicBool,
    /// Refuses more sequences than this at once.
    most: usize,
    /// Whether caches are written where they lie.
    writes: bool,
    /// Computations, and rows that were copied from one cache into another.
    computed: AtomicUsize,
    copied: AtomicUsize,
}

impl Sum {
    fn new() -> Sum {
        let port = |name: &str| Port {
            name: name.to_owned(),
            dtype: Some(DType::Float32),
            dims: Vec::new(),
        };
        let outputs = vec![port("present.0.value"), port("logits"), port("present.0.key")];
        let description = Description {
            path: PathBuf::from("decoder.onnx"),
            inputs: Vec::new(),
            outputs,
        };
        Sum {
            description,
            fail: AtomicBool::new(false),
            most: 99,
            writes: false,
            computed: AtomicUsize::new(0),
            copied: AtomicUsize::new(0),
        }
    }
}

impl EngineSession for Sum {
    type Value = Tensor;

    fn description(&self) -> &Description {
        &self.description
    }

    fn writes_caches(&self, _count: usize) -> bool {
        self.writes
    }

    fn upload(&self, tensor: Tensor) -> Result<Tensor, BackendError> {
        Ok(tensor)
    }

    fn download(&self, value: &Tensor) -> Result<Tensor, BackendError> {
        Ok(value.clone())
    }

    fn compute(&self, inputs: &mut [(&str, Input<'_, Tensor>)]) -> Result<Vec<Tensor>, BackendError> {
        let failed = |reason: &str| BackendError::Run {
            path: self.description.path.clone(),
            reason: reason.to_owned(),
        };
        if self.fail.load(Ordering::Relaxed) {
            return Err(failed("asked to"));
        }
        let get = |wanted: &str| match &inputs.iter().find(|(name, _)| *name == wanted).unwrap().1 {
            Input::Held(tensor) => (*tensor).clone(),
            Input::Open(tensor) => (**tensor).clone(),
            Input::Lent(array) => Tensor::F32(array.to_owned()),
        };
        let ints = |wanted: &str| match get(wanted) {
            Tensor::I64(array) => array,
            _ => panic!("{wanted}"),
        };
        let past = get("past_key_values.0.key").into_f32().unwrap();
        let mut past = past.into_dimensionality::<Ix4>().unwrap();
        let embeds = get("inputs_embeds").into_f32().unwrap();
        let embeds = embeds.into_dimensionality::<Ix3>().unwrap();
        let (positions, mask) = (ints("position_ids"), ints("attention_mask"));
        let (batch, new, width) = embeds.dim();
        if self.writes {
            // Beyond what the mask has, nothing is anything.
            let filled = mask.shape()[1] - new;
            assert!(filled + new <= past.dim().2);
            past.slice_mut(s![.., 0, filled..filled + new, ..])
                .assign(&embeds);
            for (name, input) in inputs.iter_mut() {
                if let Input::Open(tensor) = input {
                    assert!(name.starts_with("past_key_values."), "{name}");
                    **tensor = Tensor::F32(past.clone().into_dyn());
                }
            }
            past = past.slice(s![.., .., ..filled, ..]).to_owned();
        }
        let (_, _, slots, _) = past.dim();
        if batch > self.most {
            return Err(failed("too many"));
        }
        self.computed.fetch_add(1, Ordering::Relaxed);
        assert_eq!(mask.shape(), [batch, slots + new]);
        assert_eq!(positions.shape(), [batch, new]);
        let mut cache = Array4::zeros((batch, 1, slots + new, width));
        cache.slice_mut(s![.., .., ..slots, ..]).assign(&past);
        cache.slice_mut(s![.., 0, slots.., ..]).assign(&embeds);
        let mut logits = Array3::zeros((batch, 1, 1));
        for row in 0..batch {
            let seen = mask.slice(s![row, ..slots]).sum();
            assert_eq!(positions[[row, 0]], seen, "row {row}");
            for slot in (0..slots + new).filter(|slot| mask[[row, *slot]] == 1) {
                logits[[row, 0, 0]] += cache.slice(s![row, 0, slot, ..]).sum();
            }
        }
        if self.writes {
            cache = Array4::zeros((batch, 1, 0, width));
        }
        let cache = Tensor::F32(cache.into_dyn());
        Ok(vec![cache.clone(), Tensor::F32(logits.into_dyn()), cache])
    }

    fn gather(
        &self,
        rows: &[Positions<'_, Tensor>],
        _dtype: DType,
        shape: [usize; 3],
        end: usize,
    ) -> Result<Tensor, BackendError> {
        self.copied.fetch_add(rows.len(), Ordering::Relaxed);
        let views = rows.iter().map(|row| {
            let cache = row.cache.map(|cache| match cache {
                Tensor::F32(array) => array.view(),
                _ => panic!("not float32"),
            });
            (cache, row.row, row.from..row.to)
        });
        let all = super::super::session::gather_positions(views, shape, end, 0.0);
        Ok(Tensor::F32(all.unwrap()))
    }
}

/// Of an engine that makes new caches, and of one that writes those that it is given.
fn decoders() -> [Arc<KvDecoder<Sum>>; 2] {
    [false, true].map(|writes| decoder_of(Sum { writes, ..Sum::new() }))
}

fn decoder_of(session: Sum) -> Arc<KvDecoder<Sum>> {
    let io = |name: &str, dims| Io {
        name: name.to_owned(),
        dtype: DType::Float32,
        dims,
    };
    let entry = GraphEntry {
        path: "decoder.onnx".to_owned(),
        data: Vec::new(),
        inputs: vec![io(
            "inputs_embeds",
            vec![IoDim::Symbol("batch".to_owned()), IoDim::Fixed(2)],
        )],
        outputs: Vec::new(),
        adopted: None,
    };
    let kv = KvSpec {
        layers: 1,
        kv_heads: 1,
        head_dim: 2,
        max_context: 4096,
    };
    Arc::new(KvDecoder::new(session, &entry, &kv, DType::Float32, true).unwrap())
}

/// Feeds rows of two.
fn feed(state: &mut Box<dyn DecoderState>, embeds: &[f32]) -> Result<Vec<f32>, BackendError> {
    let embeds = ArrayView2::from_shape((embeds.len() / 2, 2), embeds).unwrap();
    Ok(state.feed(embeds)?.to_vec())
}

#[test]
fn prefill_equals_steps_and_truncate_equals_fresh() {
    for decoder in decoders() {
        let mut whole = Arc::clone(&decoder).start().unwrap();
        assert_eq!(feed(&mut whole, &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]).unwrap(), [21.0]);
        let mut steps = Arc::clone(&decoder).start().unwrap();
        feed(&mut steps, &[1.0, 2.0]).unwrap();
        feed(&mut steps, &[3.0, 4.0]).unwrap();
        assert_eq!(feed(&mut steps, &[5.0, 6.0]).unwrap(), [21.0]);
        assert_eq!(steps.len(), 3);
        assert_eq!(steps.cache_bytes(), decoder.slots(3) * 2 * 2 * 4);
        steps.truncate(9).unwrap();
        assert_eq!(steps.len(), 3);
        steps.truncate(1).unwrap();
        assert_eq!(feed(&mut steps, &[0.0, 4.0]).unwrap(), [7.0]);
        steps.truncate(0).unwrap();
        assert_eq!(steps.cache_bytes(), 0);
        assert_eq!(feed(&mut steps, &[1.0, 1.0]).unwrap(), [2.0]);
    }
}

/// A long cache of which little is left gives its memory back, and a short one does not.
#[test]
fn a_cache_is_not_much_longer_than_what_is_in_it() {
    for decoder in decoders() {
        let bytes = |positions: usize| decoder.slots(positions) * 2 * 2 * 4;
        let mut state = Arc::clone(&decoder).start().unwrap();
        feed(&mut state, &[1.0; 6000]).unwrap();
        assert_eq!(state.cache_bytes(), bytes(3000));
        state.truncate(2000).unwrap();
        let kept = if decoder.in_place { 3000 } else { 2000 };
        assert_eq!(state.cache_bytes(), bytes(kept));
        state.truncate(100).unwrap();
        assert_eq!((state.len(), state.cache_bytes()), (100, bytes(100)));
        assert_eq!(feed(&mut state, &[1.0, 2.0]).unwrap(), [203.0]);
        // What cannot be copied stays.
        feed(&mut state, &[1.0; 4000]).unwrap();
        state.truncate(3).unwrap();
        assert_eq!(feed(&mut state, &[1.0, 2.0]).unwrap(), [9.0]);
    }
}

#[test]
fn a_failed_step_changes_nothing() {
    for decoder in decoders() {
        let mut state = Arc::clone(&decoder).start().unwrap();
        feed(&mut state, &[1.0, 2.0]).unwrap();
        decoder.session.fail.store(true, Ordering::Relaxed);
        assert!(feed(&mut state, &[1.0, 2.0]).is_err());
        decoder.session.fail.store(false, Ordering::Relaxed);
        assert_eq!(state.len(), 1);
        assert_eq!(feed(&mut state, &[1.0, 1.0]).unwrap(), [5.0]);
        for wrong in [Array2::zeros((0, 2)), Array2::zeros((1, 1))] {
            assert!(state.feed(wrong.view()).is_err());
        }
    }
}

#[test]
fn sequences_of_one_decoder_do_not_know_of_each_other() {
    for decoder in decoders() {
        let mut first = Arc::clone(&decoder).start().unwrap();
        let mut second = Arc::clone(&decoder).start().unwrap();
        assert_eq!(feed(&mut first, &[1.0, 2.0]).unwrap(), [3.0]);
        assert_eq!(feed(&mut second, &[10.0, 20.0]).unwrap(), [30.0]);
        assert_eq!(feed(&mut first, &[3.0, 4.0]).unwrap(), [10.0]);
        first.truncate(0).unwrap();
        assert_eq!(feed(&mut second, &[1.0, 1.0]).unwrap(), [32.0]);
        drop((first, second));
        assert_eq!(Arc::strong_count(&decoder), 1);
    }
}
/// Feeds a row of two to each of some states together.
fn feed_each(
    decoder: &Arc<KvDecoder<Sum>>,
    states: &mut [Box<dyn DecoderState>],
    embeds: &[f32],
) -> Vec<Result<f32, String>> {
    let embeds = ArrayView2::from_shape((states.len(), 2), embeds).unwrap();
    let mut states: Vec<_> = states.iter_mut().map(|state| &mut **state).collect();
    let fed = Arc::clone(decoder).feed_each(&mut states, embeds);
    fed.into_iter()
        .map(|logits| Ok(logits.map_err(|error| error.to_string())?.sum()))
        .collect()
}

fn counts(decoder: &KvDecoder<Sum>) -> [usize; 2] {
    let Sum { computed, copied, .. } = &decoder.session;
    [computed, copied].map(|count| count.swap(0, Ordering::Relaxed))
}

#[test]
fn sequences_of_different_lengths_are_continued_by_one_computation() {
    for decoder in decoders() {
        let mut states: Vec<_> = (0..4).map(|_| Arc::clone(&decoder).start().unwrap()).collect();
        feed(&mut states[0], &[1.0, 0.0, 2.0, 0.0, 3.0, 0.0]).unwrap();
        feed(&mut states[1], &[10.0, 0.0]).unwrap();
        feed(&mut states[2], &[100.0, 0.0, 200.0, 0.0]).unwrap();
        counts(&decoder);
        let ones = [1.0, 0.0].repeat(4);
        // The fourth is fed its first position.
        assert_eq!(
            feed_each(&decoder, &mut states, &ones),
            [Ok(7.0), Ok(11.0), Ok(301.0), Ok(1.0)]
        );
        // Both tensors of each.
        assert_eq!(counts(&decoder), [1, 8]);
        assert_eq!(
            states.iter().map(|state| state.len()).collect::<Vec<_>>(),
            [4, 2, 3, 1]
        );
        assert!(states.iter().all(|state| state.beside() == 4));
        assert_eq!(
            feed_each(&decoder, &mut states, &ones),
            [Ok(8.0), Ok(12.0), Ok(302.0), Ok(2.0)]
        );
        // In another order, still without a copy.
        states.rotate_left(1);
        let embeds = [1.0, 0.0, 2.0, 0.0, 3.0, 0.0, 4.0, 0.0];
        assert_eq!(
            feed_each(&decoder, &mut states, &embeds),
            [Ok(13.0), Ok(304.0), Ok(5.0), Ok(12.0)]
        );
        assert_eq!(counts(&decoder), [2, 0]);
        assert_eq!(states[0].cache_bytes(), 4 * 2 * 2 * 4);
    }
}

#[test]
fn sequences_join_and_leave() {
    for decoder in decoders() {
        let mut states: Vec<_> = (0..3).map(|_| Arc::clone(&decoder).start().unwrap()).collect();
        for (state, value) in states.iter_mut().zip([1.0, 10.0, 100.0]) {
            feed(state, &[value, 0.0]).unwrap();
        }
        let ones = [1.0, 0.0].repeat(4);
        assert_eq!(
            feed_each(&decoder, &mut states, &ones[..6]),
            [Ok(2.0), Ok(11.0), Ok(101.0)]
        );
        // The first leaves and lives on; it gets its own tensors when the others go on.
        let mut first = states.remove(0);
        assert_eq!(
            feed_each(&decoder, &mut states, &ones[..4]),
            [Ok(12.0), Ok(102.0)]
        );
        counts(&decoder);
        assert_eq!(feed(&mut first, &[5.0, 0.0]).unwrap(), [7.0]);
        assert_eq!(counts(&decoder), [1, 0]);
        // One that is fed by itself leaves, and comes back.
        assert_eq!(feed(&mut states[0], &[1.0, 0.0, 1.0, 0.0]).unwrap(), [14.0]);
        assert_eq!(
            feed_each(&decoder, &mut states, &ones[..4]),
            [Ok(15.0), Ok(103.0)]
        );
        states.push(first);
        assert_eq!(
            feed_each(&decoder, &mut states, &ones[..6]),
            [Ok(16.0), Ok(104.0), Ok(8.0)]
        );
        // One that is gone is no burden for who is left, and what is forgotten is forgotten.
        drop(states.remove(0));
        states[0].truncate(1).unwrap();
        assert_eq!(feed_each(&decoder, &mut states, &ones[..4]), [Ok(101.0), Ok(9.0)]);
        states[1].truncate(0).unwrap();
        assert_eq!(feed(&mut states[1], &[3.0, 0.0]).unwrap(), [3.0]);
        assert_eq!(feed_each(&decoder, &mut states, &ones[..4]), [Ok(102.0), Ok(4.0)]);
        drop(states);
        assert_eq!(Arc::strong_count(&decoder), 1);
    }
}

#[test]
fn padding_is_bounded() {
    for decoder in decoders() {
        let mut states: Vec<_> = (0..3).map(|_| Arc::clone(&decoder).start().unwrap()).collect();
        let long = 2 * 10 + FREE_PADDING;
        feed(&mut states[0], &[1.0, 0.0].repeat(long)).unwrap();
        feed(&mut states[1], &[1.0, 0.0].repeat(10)).unwrap();
        feed(&mut states[2], &[1.0, 0.0].repeat(9)).unwrap();
        counts(&decoder);
        let ones = [1.0, 0.0].repeat(3);
        let sums = feed_each(&decoder, &mut states, &ones);
        assert_eq!(sums, [Ok(long as f32 + 1.0), Ok(11.0), Ok(10.0)]);
        // The shortest by itself.
        assert_eq!(counts(&decoder)[0], 2);
        assert_eq!(
            states.iter().map(|state| state.beside()).collect::<Vec<_>>(),
            [2, 2, 1]
        );
        // More than are computed at once.
        let mut states: Vec<_> = (0..MOST_TOGETHER + 2)
            .map(|_| Arc::clone(&decoder).start().unwrap())
            .collect();
        for round in 1..4_u8 {
            let sums = feed_each(&decoder, &mut states, &[1.0, 0.0].repeat(MOST_TOGETHER + 2));
            assert!(sums.iter().all(|sum| *sum == Ok(f32::from(round))));
            let [computed, copied] = counts(&decoder);
            assert_eq!((computed, copied > 0), (2, round == 1));
        }
    }
}

#[test]
fn an_error_is_that_of_each_and_changes_nothing() {
    for decoder in decoders() {
        let mut states: Vec<_> = (0..2).map(|_| Arc::clone(&decoder).start().unwrap()).collect();
        let ones = [1.0, 0.0].repeat(2);
        feed_each(&decoder, &mut states, &ones);
        decoder.session.fail.store(true, Ordering::Relaxed);
        let failed = feed_each(&decoder, &mut states, &ones);
        assert!(
            failed
                .iter()
                .all(|sum| sum.as_ref().is_err_and(|error| error.contains("asked to")))
        );
        decoder.session.fail.store(false, Ordering::Relaxed);
        assert_eq!(feed_each(&decoder, &mut states, &ones), [Ok(2.0), Ok(2.0)]);
        assert!(states.iter().all(|state| state.len() == 2 && state.beside() == 2));
        // A state of another decoder is fed by its own.
        let [other, _] = decoders();
        states.push(Arc::clone(&other).start().unwrap());
        assert_eq!(
            feed_each(&decoder, &mut states, &[1.0, 0.0].repeat(3)),
            [Ok(3.0), Ok(3.0), Ok(1.0)]
        );
    }
}

#[test]
fn an_engine_that_refuses_is_asked_once() {
    let decoder = decoder_of(Sum {
        most: 1,
        ..Sum::new()
    });
    let mut states: Vec<_> = (0..2).map(|_| Arc::clone(&decoder).start().unwrap()).collect();
    for round in 1..4_u8 {
        let sums = feed_each(&decoder, &mut states, &[1.0, 0.0].repeat(2));
        assert_eq!(sums, [Ok(f32::from(round)), Ok(f32::from(round))]);
        assert!(states.iter().all(|state| state.beside() == 1));
    }
    let [computed, copied] = counts(&decoder);
    // To a group and back, once.
    assert_eq!((computed, copied), (6, 8));
}

#[test]
fn sequences_of_several_threads_join_and_leave_at_once() {
    for decoder in decoders() {
        std::thread::scope(|scope| {
            let (to, from) = std::sync::mpsc::channel::<Box<dyn DecoderState>>();
            let (back, again) = std::sync::mpsc::channel::<Box<dyn DecoderState>>();
            let other = Arc::clone(&decoder);
            scope.spawn(move || {
                // Half of a group goes on here, beside the other half.
                for mut state in from {
                    let len = state.len() as f32;
                    assert_eq!(feed(&mut state, &[1.0, 0.0]).unwrap(), [len + 1.0]);
                    let mut pair = [state, Arc::clone(&other).start().unwrap()];
                    assert_eq!(
                        feed_each(&other, &mut pair, &[1.0, 0.0].repeat(2)),
                        [Ok(len + 2.0), Ok(1.0)]
                    );
                    let [state, _] = pair;
                    back.send(state).unwrap();
                }
            });
            let mut states: Vec<_> = (0..3).map(|_| Arc::clone(&decoder).start().unwrap()).collect();
            for _ in 0..50 {
                feed_each(&decoder, &mut states, &[1.0, 0.0].repeat(3));
                to.send(states.remove(0)).unwrap();
                for _ in 0..3 {
                    let lens: Vec<f32> = states.iter().map(|state| state.len() as f32).collect();
                    let sums = feed_each(&decoder, &mut states, &[1.0, 0.0].repeat(2));
                    assert_eq!(sums, [Ok(lens[0] + 1.0), Ok(lens[1] + 1.0)]);
                }
                states.push(again.recv().unwrap());
            }
            drop(to);
        });
    }
}

#[test]
fn room_is_used_up_before_a_cache_is_copied() {
    let [_, decoder] = decoders();
    let mut states: Vec<_> = (0..3).map(|_| Arc::clone(&decoder).start().unwrap()).collect();
    let mut copied = 0;
    for fed in 1..1000_u16 {
        assert_eq!(feed(&mut states[0], &[1.0, 0.0]).unwrap(), [f32::from(fed)]);
        copied += counts(&decoder)[1];
    }
    // Both tensors, each time for an eighth more and 64.
    assert!((4..20).contains(&copied), "{copied}");
    // Forgetting costs nothing, and what is behind is not seen.
    states[0].truncate(100).unwrap();
    assert_eq!(feed(&mut states[0], &[2.0, 0.0]).unwrap(), [102.0]);
    assert_eq!(counts(&decoder)[1], 0);
    for (state, start) in states[1..].iter_mut().zip([10.0, 20.0]) {
        feed(state, &[start, 0.0]).unwrap();
    }
    counts(&decoder);
    for fed in 1..500_u16 {
        let sums = feed_each(&decoder, &mut states, &[1.0, 0.0].repeat(3));
        assert_eq!(
            sums,
            [102.0, 10.0, 20.0].map(|before| Ok(before + f32::from(fed)))
        );
    }
    // To the group, and where it grows; not for every position.
    assert!((12..60).contains(&counts(&decoder)[1]));
    // Alone again, the room is its own.
    assert_eq!(feed(&mut states[1], &[1.0, 0.0]).unwrap(), [510.0]);
    assert_eq!(feed(&mut states[2], &[1.0, 0.0]).unwrap(), [520.0]);
    assert_eq!(feed(&mut states[0], &[1.0, 0.0]).unwrap(), [602.0]);
}
