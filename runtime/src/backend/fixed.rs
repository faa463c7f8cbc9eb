//! How do decoders of fixed lengths become a decoder of any? What is fed is cut into pieces that they take, each padded in
//! front, and their new keys and values are written into a cache of fixed length.

use super::kv::ports::{Ports, given};
use super::session::{EngineSession, Input, Placement};
use super::{Decoder, DecoderState};
use crate::error::BackendError;
use models::bundle::{GraphEntry, HIDDEN, KvSpec};
use models::dtype::DType;
use ndarray::{Array1, Array2, Array3, ArrayView2, Axis, s};
use std::path::Path;
use std::sync::Arc;

/// Decoders of fixed lengths.
#[derive(Debug)]
pub struct FixedDecoder<S: EngineSession> {
    /// For one new position.
    step: Graph<S>,
    /// For more, ascending.
    prefill: Vec<Graph<S>>,
    context: usize,
    dtype: DType,
    /// Of a tensor of the cache.
    shape: [usize; 4],
}

/// A decoder of a fixed number of new positions.
#[derive(Debug)]
pub struct Graph<S> {
    new: usize,
    session: S,
    ports: Ports,
}

impl<S: EngineSession> Graph<S> {
    /// A graph that keeps its contract `entry`.
    ///
    /// # Errors
    /// A contract without the inputs and outputs of such a decoder.
    pub fn new(new: usize, session: S, entry: &GraphEntry, kv: &KvSpec) -> Result<Graph<S>, BackendError> {
        let ports = Ports::of(&session, entry, kv)?;
        Ok(Graph { new, session, ports })
    }

    /// Feeds at most `new` positions, to the cache's positions from `len` on; returns the logits of the last.
    fn feed(
        &self,
        embeds: ArrayView2<'_, f32>,
        cache: &mut [S::Value],
        len: usize,
        context: usize,
    ) -> Result<Array1<f32>, BackendError> {
        let Graph { new, session, ports } = self;
        let new = *new;
        let pad = new - embeds.nrows();
        let mut padded = Array3::zeros((1, new, ports.hidden));
        padded.slice_mut(s![0, pad.., ..]).assign(&embeds);
        // The contract's positions are float32.
        let positions = (0..new).map(|row| (len + row).saturating_sub(pad) as f32);
        let positions = Array1::from_iter(positions).insert_axis(Axis(0));
        let mut bias = Array2::from_elem((new, context + new), HIDDEN);
        for (row, mut bias) in bias.rows_mut().into_iter().enumerate() {
            if row >= pad {
                bias.slice_mut(s![..len]).fill(0.0);
            }
            // What stands in front sees itself: nobody reads it, and no sum is empty.
            bias.slice_mut(s![context + row.min(pad)..=context + row])
                .fill(0.0);
        }
        let bias = bias.insert_axis(Axis(0)).insert_axis(Axis(0));
        let mut inputs: Vec<(&str, Input<'_, S::Value>)> = vec![
            ("inputs_embeds", Input::Lent(padded.view().into_dyn())),
            ("positions", Input::Lent(positions.view().into_dyn())),
            ("attention_bias", Input::Lent(bias.view().into_dyn())),
        ];
        let past = ports.past.iter().map(String::as_str);
        inputs.extend(past.zip(cache.iter().map(Input::Held)));
        let outputs = session.compute(&mut inputs)?;
        drop(inputs);
        for (cache, index) in cache.iter_mut().zip(&ports.present) {
            session.store(cache, len, given(session, &outputs, *index)?, pad)?;
        }
        ports.logits(session, &outputs)
    }
}

impl<S: EngineSession> FixedDecoder<S> {
    /// A graph for one new position, and graphs for more, ascending.
    pub fn new(
        step: Graph<S>,
        prefill: Vec<Graph<S>>,
        context: usize,
        kv: &KvSpec,
        dtype: DType,
    ) -> FixedDecoder<S> {
        FixedDecoder {
            step,
            prefill,
            context,
            dtype,
            shape: [1, kv.kv_heads, context, kv.head_dim],
        }
    }

    /// The graph for what is left: the shortest that takes all of it, or else the longest; never a longer one for a single
    /// position.
    fn graph(&self, left: usize) -> &Graph<S> {
        let fits = self.prefill.iter().find(|graph| graph.new >= left);
        match fits.or(self.prefill.last()) {
            Some(graph) if left > 1 => graph,
            _ => &self.step,
        }
    }
}

impl<S: EngineSession + 'static> Decoder for FixedDecoder<S> {
    fn start(self: Arc<Self>) -> Result<Box<dyn DecoderState>, BackendError> {
        let cache = self
            .step
            .ports
            .cache(&self.step.session, self.dtype, &self.shape)?;
        Ok(Box::new(FixedState {
            decoder: self,
            cache,
            len: 0,
        }))
    }

    fn placement(&self) -> Option<Placement> {
        let graphs = std::iter::once(&self.step).chain(&self.prefill);
        let parts: Vec<Option<Placement>> = graphs.map(|graph| graph.session.placement()).collect();
        Placement::sum(&parts)
    }
}

/// One sequence in a [`FixedDecoder`].
#[derive(Debug)]
struct FixedState<S: EngineSession> {
    decoder: Arc<FixedDecoder<S>>,
    /// In the order of the ports: `[1, kv_heads, context, head_dim]`, of which positions from `len` on are anything.
    cache: Vec<S::Value>,
    len: usize,
}

/// Feeds `embeds` `[rows, hidden]` in pieces of lengths that graphs take, after `len` positions; the logits of the last.
///
/// `length` says how many positions the graph for so many rows at that position takes, at least one; `feed` is given that
/// number, at most as many rows, and their position.
pub(super) fn in_pieces(
    embeds: ArrayView2<'_, f32>,
    len: usize,
    length: impl Fn(usize, usize) -> usize,
    mut feed: impl FnMut(usize, ArrayView2<'_, f32>, usize) -> Result<Array1<f32>, BackendError>,
) -> Result<Array1<f32>, BackendError> {
    let (mut rest, mut len, mut logits) = (embeds, len, Array1::default(0));
    while rest.nrows() > 0 {
        let new = length(rest.nrows(), len).max(1);
        let (piece, after) = rest.split_at(Axis(0), rest.nrows().min(new));
        logits = feed(new, piece, len)?;
        len += piece.nrows();
        rest = after;
    }
    Ok(logits)
}

/// Whether `count` more positions after `len` fit into a cache of `context` slots.
pub(super) fn check_room(path: &Path, count: usize, len: usize, context: usize) -> Result<(), BackendError> {
    if count <= context.saturating_sub(len) {
        return Ok(());
    }
    Err(BackendError::Full {
        path: path.to_owned(),
        count,
        len,
        context,
    })
}

impl<S: EngineSession + 'static> DecoderState for FixedState<S> {
    fn feed(&mut self, embeds: ArrayView2<'_, f32>) -> Result<Array1<f32>, BackendError> {
        let decoder = &*self.decoder;
        let Graph { session, ports, .. } = &decoder.step;
        let count = ports.positions(session, &embeds)?;
        check_room(&session.description().path, count, self.len, decoder.context)?;
        let length = |left, _position| decoder.graph(left).new;
        let logits = in_pieces(embeds, self.len, length, |new, piece, position| {
            let graph = decoder.graph(new);
            graph.feed(piece, &mut self.cache, position, decoder.context)
        })?;
        // Only now: a piece that failed leaves the sequence as it was, for nobody looks beyond its length.
        self.len += count;
        Ok(logits)
    }

    fn len(&self) -> usize {
        self.len
    }

    fn truncate(&mut self, len: usize) -> Result<(), BackendError> {
        self.len = self.len.min(len);
        Ok(())
    }

    fn cache_bytes(&self) -> usize {
        let decoder = &*self.decoder;
        decoder.step.ports.cache_bytes(decoder.dtype, decoder.context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::session::{Description, Port, Tensor, UNWRITTEN};
    use models::bundle::{Io, IoDim};
    use ndarray::ArrayD;
    use std::path::PathBuf;
    use std::sync::atomic::{AtomicBool, Ordering};

    /// An engine whose decoder keeps embeddings of one number as keys and values, and whose logits are the sum of
    /// `key * (1 + slot's position)` that the last position sees, and how many it sees.
    #[derive(Debug)]
    struct Sum {
        description: Description,
        fail: AtomicBool,
    }

    impl EngineSession for Sum {
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
            if self.fail.load(Ordering::Relaxed) {
                return Err(BackendError::Run {
                    path: self.description.path.clone(),
                    reason: "asked to".to_owned(),
                });
            }
            let get = |wanted: &str| match &inputs.iter().find(|(name, _)| *name == wanted).unwrap().1 {
                Input::Held(tensor) => (*tensor).clone().into_f32().unwrap(),
                Input::Open(_) => panic!("{UNWRITTEN}"),
                Input::Lent(array) => array.to_owned(),
            };
            let past = get("past_key_values.0.key");
            let embeds = get("inputs_embeds");
            let bias = get("attention_bias");
            let (new, context) = (embeds.len(), past.len());
            assert_eq!(bias.shape(), [1, 1, new, context + new]);
            let positions = get("positions");
            let bias = bias.into_flat().to_vec();
            assert!(
                bias.chunks(context + new).all(|row| row.contains(&0.0)),
                "a row sees nothing"
            );
            let seen = &bias[(new - 1) * (context + new)..];
            let slots = past.iter().copied().zip((0_u8..).map(f32::from));
            let slots = slots.chain(embeds.iter().copied().zip(positions.iter().copied()));
            let seen: Vec<(f32, f32)> = slots
                .zip(seen)
                .filter(|(_, bias)| **bias == 0.0)
                .map(|(slot, _)| slot)
                .collect();
            let sum = seen.iter().map(|(key, position)| key * (1.0 + position)).sum();
            let added = embeds.into_shape_with_order(vec![1, 1, new, 1]).unwrap();
            let added = Tensor::F32(added);
            let logits = vec![sum, f32::from(u16::try_from(seen.len()).unwrap())];
            let logits = Tensor::F32(ArrayD::from_shape_vec(vec![1, 1, 2], logits).unwrap());
            Ok(vec![added.clone(), logits, added])
        }
    }

    fn decoder(context: usize) -> Arc<FixedDecoder<Sum>> {
        let port = |name: &str| Port {
            name: name.to_owned(),
            dtype: None,
            dims: Vec::new(),
        };
        let session = || Sum {
            description: Description {
                path: PathBuf::from("decoder.onnx"),
                inputs: Vec::new(),
                outputs: vec![port("present.0.key"), port("logits"), port("present.0.value")],
            },
            fail: AtomicBool::new(false),
        };
        let entry = GraphEntry {
            path: "decoder.onnx".to_owned(),
            data: Vec::new(),
            inputs: vec![Io {
                name: "inputs_embeds".to_owned(),
                dtype: DType::Float32,
                dims: vec![IoDim::Fixed(1), IoDim::Fixed(1), IoDim::Fixed(1)],
            }],
            outputs: Vec::new(),
            adopted: None,
        };
        let kv = KvSpec {
            layers: 1,
            kv_heads: 1,
            head_dim: 1,
            max_context: 100,
        };
        let graph = |new| Graph::new(new, session(), &entry, &kv).unwrap();
        let prefill = vec![graph(3), graph(5)];
        Arc::new(FixedDecoder::new(graph(1), prefill, context, &kv, DType::Float32))
    }

    /// Feeds rows of one.
    fn feed(state: &mut Box<dyn DecoderState>, embeds: &[f32]) -> Result<Vec<f32>, BackendError> {
        let embeds = ArrayView2::from_shape((embeds.len(), 1), embeds).unwrap();
        Ok(state.feed(embeds)?.to_vec())
    }

    fn numbers(range: std::ops::Range<u8>) -> Vec<f32> {
        range.map(f32::from).collect()
    }

    fn expected(numbers: &[f32]) -> Vec<f32> {
        let sum = numbers
            .iter()
            .zip(1_u8..)
            .map(|(number, place)| number * f32::from(place))
            .sum();
        vec![sum, f32::from(u8::try_from(numbers.len()).unwrap())]
    }

    #[test]
    fn pieces_of_any_length_are_one_sequence() {
        let all = numbers(7..27);
        for first in 1..20 {
            let mut state = decoder(20).start().unwrap();
            assert_eq!(feed(&mut state, &all[..first]).unwrap(), expected(&all[..first]));
            for length in first + 1..=20 {
                assert_eq!(
                    feed(&mut state, &all[length - 1..length]).unwrap(),
                    expected(&all[..length])
                );
            }
            assert_eq!(state.len(), 20);
            state.truncate(4).unwrap();
            assert_eq!(feed(&mut state, &all[4..11]).unwrap(), expected(&all[..11]));
        }
    }

    #[test]
    fn a_failed_piece_changes_nothing_and_a_full_cache_is_an_error() {
        let all = numbers(1..20);
        let decoder = decoder(12);
        let fail = &decoder.prefill[0].session.fail;
        let mut state = Arc::clone(&decoder).start().unwrap();
        feed(&mut state, &all[..4]).unwrap();
        fail.store(true, Ordering::Relaxed);
        assert!(feed(&mut state, &all[4..12]).is_err());
        assert_eq!(state.len(), 4);
        fail.store(false, Ordering::Relaxed);
        assert_eq!(feed(&mut state, &all[4..12]).unwrap(), expected(&all[..12]));
        let error = feed(&mut state, &all[12..13]).unwrap_err();
        let full = matches!(
            error,
            BackendError::Full {
                count: 1,
                len: 12,
                context: 12,
                ..
            }
        );
        assert!(full && error.to_string().contains("more than its 12"), "{error}");
        assert!(feed(&mut state, &[]).is_err());
        assert_eq!(state.len(), 12);
    }

    #[test]
    fn sequences_of_one_decoder_do_not_know_of_each_other() {
        let (one, other) = (numbers(1..9), numbers(20..30));
        let decoder = decoder(20);
        let mut first = Arc::clone(&decoder).start().unwrap();
        let mut second = Arc::clone(&decoder).start().unwrap();
        feed(&mut first, &one[..6]).unwrap();
        feed(&mut second, &other[..9]).unwrap();
        assert_eq!(feed(&mut first, &one[6..]).unwrap(), expected(&one));
        assert_eq!(feed(&mut second, &other[9..]).unwrap(), expected(&other));
        drop((first, second));
        assert_eq!(Arc::strong_count(&decoder), 1);
    }
}
