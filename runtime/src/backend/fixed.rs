//! How do decoders of fixed lengths become a decoder of any? What is fed is cut into pieces that they take, each padded in
//! front, and their new keys and values are written into a cache of fixed length.

use super::Decoder;
use super::kv::{Ports, given};
use super::session::{EngineSession, Placement, Tensor};
use crate::error::BackendError;
use models::bundle::{GraphEntry, HIDDEN, KvSpec};
use models::dtype::DType;
use std::path::Path;

/// Decoders of fixed lengths with their cache.
#[derive(Debug)]
pub struct FixedDecoder<S: EngineSession> {
    /// For one new position.
    step: Graph<S>,
    /// For more, ascending.
    prefill: Vec<Graph<S>>,
    context: usize,
    /// In the order of the ports: `[1, kv_heads, context, head_dim]`, of which positions from `len` on are anything.
    cache: Vec<S::Value>,
    len: usize,
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
        &mut self,
        embeds: &[f32],
        cache: &mut [S::Value],
        len: usize,
        context: usize,
    ) -> Result<Vec<f32>, BackendError> {
        let Graph { new, session, ports } = self;
        let (new, hidden) = (*new, ports.hidden);
        let pad = new - embeds.len() / hidden;
        let mut padded = vec![0.0; pad * hidden];
        padded.extend_from_slice(embeds);
        let padded = session.upload(Tensor::F32 {
            shape: vec![1, new, hidden],
            data: padded,
        })?;
        // The contract's positions are float32.
        let positions = (0..new).map(|row| (len + row).saturating_sub(pad) as f32);
        let positions = session.upload(Tensor::F32 {
            shape: vec![1, new],
            data: positions.collect(),
        })?;
        let mut bias = vec![HIDDEN; new * (context + new)];
        for (row, bias) in bias.chunks_exact_mut(context + new).enumerate() {
            let (past, fresh) = bias.split_at_mut(context);
            if row >= pad {
                past.iter_mut().take(len).for_each(|slot| *slot = 0.0);
            }
            // What stands in front sees itself: nobody reads it, and no sum is empty.
            let seen = fresh.iter_mut().take(row + 1).skip(row.min(pad));
            seen.for_each(|slot| *slot = 0.0);
        }
        let bias = session.upload(Tensor::F32 {
            shape: vec![1, 1, new, context + new],
            data: bias,
        })?;
        let mut inputs: Vec<(&str, &S::Value)> = vec![
            ("inputs_embeds", &padded),
            ("positions", &positions),
            ("attention_bias", &bias),
        ];
        inputs.extend(ports.past.iter().map(String::as_str).zip(&*cache));
        let outputs = session.compute(&inputs)?;
        for (cache, index) in cache.iter_mut().zip(&ports.present) {
            session.store(cache, len, given(session, &outputs, *index)?, pad)?;
        }
        ports.logits(session, &outputs)
    }
}

impl<S: EngineSession> FixedDecoder<S> {
    /// A decoder that has seen nothing: a graph for one new position, and graphs for more, ascending.
    ///
    /// # Errors
    /// What the engine says about the cache.
    pub fn new(
        step: Graph<S>,
        prefill: Vec<Graph<S>>,
        context: usize,
        kv: &KvSpec,
        dtype: DType,
    ) -> Result<FixedDecoder<S>, BackendError> {
        let shape = [1, kv.kv_heads, context, kv.head_dim];
        let cache = step.ports.cache(&step.session, dtype, &shape)?;
        Ok(FixedDecoder {
            step,
            prefill,
            context,
            cache,
            len: 0,
        })
    }
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

impl<S: EngineSession> Decoder for FixedDecoder<S> {
    fn feed(&mut self, embeds: &[f32]) -> Result<Vec<f32>, BackendError> {
        let Graph { session, ports, .. } = &self.step;
        let (count, hidden) = (ports.positions(session, embeds)?, ports.hidden);
        check_room(&session.description().path, count, self.len, self.context)?;
        let (mut rest, mut len, mut logits) = (embeds, self.len, Vec::new());
        while !rest.is_empty() {
            let left = rest.len() / hidden;
            // The shortest that takes all that is left, or else the longest.
            let fits = self.prefill.iter().position(|graph| graph.new >= left);
            let graph = match fits.or(self.prefill.len().checked_sub(1)) {
                Some(index) if left > 1 => self.prefill.get_mut(index),
                _ => None,
            };
            let graph = graph.unwrap_or(&mut self.step);
            let (piece, after) = rest.split_at(graph.new.min(left) * hidden);
            logits = graph.feed(piece, &mut self.cache, len, self.context)?;
            len += piece.len() / hidden;
            rest = after;
        }
        // Only now: a piece that failed leaves the sequence as it was, for nobody looks beyond its length.
        self.len = len;
        Ok(logits)
    }

    fn len(&self) -> usize {
        self.len
    }

    fn truncate(&mut self, len: usize) -> Result<(), BackendError> {
        self.len = self.len.min(len);
        Ok(())
    }

    fn placement(&self) -> Option<Placement> {
        let graphs = std::iter::once(&self.step).chain(&self.prefill);
        let parts: Vec<Option<Placement>> = graphs.map(|graph| graph.session.placement()).collect();
        Placement::sum(&parts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::session::{Description, Port};
    use models::bundle::{Io, IoDim};
    use std::path::PathBuf;

    /// An engine whose decoder keeps embeddings of one number as keys and values, and whose logits are the sum of
    /// `key * (1 + slot's position)` that the last position sees, and how many it sees.
    #[derive(Debug)]
    struct Sum {
        description: Description,
        fail: bool,
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

        fn compute(&mut self, inputs: &[(&str, &Tensor)]) -> Result<Vec<Tensor>, BackendError> {
            if self.fail {
                return Err(BackendError::Run {
                    path: self.description.path.clone(),
                    reason: "asked to".to_owned(),
                });
            }
            let get = |wanted: &str| inputs.iter().find(|(name, _)| *name == wanted).unwrap().1.clone();
            let past = get("past_key_values.0.key").into_f32().unwrap();
            let embeds = get("inputs_embeds").into_f32().unwrap();
            let bias = get("attention_bias");
            let (new, context) = (embeds.len(), past.len());
            assert_eq!(bias.shape(), [1, 1, new, context + new]);
            let positions = get("positions").into_f32().unwrap();
            let bias = bias.into_f32().unwrap();
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
            let added = Tensor::F32 {
                shape: vec![1, 1, new, 1],
                data: embeds,
            };
            let logits = Tensor::F32 {
                shape: vec![1, 1, 2],
                data: vec![sum, f32::from(u16::try_from(seen.len()).unwrap())],
            };
            Ok(vec![added.clone(), logits, added])
        }
    }

    fn decoder(context: usize) -> FixedDecoder<Sum> {
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
            fail: false,
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
        };
        let kv = KvSpec {
            layers: 1,
            kv_heads: 1,
            head_dim: 1,
            max_context: 100,
        };
        let graph = |new| Graph::new(new, session(), &entry, &kv).unwrap();
        FixedDecoder::new(graph(1), vec![graph(3), graph(5)], context, &kv, DType::Float32).unwrap()
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
            let mut decoder = decoder(20);
            assert_eq!(decoder.feed(&all[..first]).unwrap(), expected(&all[..first]));
            for length in first + 1..=20 {
                assert_eq!(
                    decoder.feed(&all[length - 1..length]).unwrap(),
                    expected(&all[..length])
                );
            }
            assert_eq!(decoder.len(), 20);
            decoder.truncate(4).unwrap();
            assert_eq!(decoder.feed(&all[4..11]).unwrap(), expected(&all[..11]));
        }
    }

    #[test]
    fn a_failed_piece_changes_nothing_and_a_full_cache_is_an_error() {
        let all = numbers(1..20);
        let mut decoder = decoder(12);
        decoder.feed(&all[..4]).unwrap();
        decoder.prefill[0].session.fail = true;
        assert!(decoder.feed(&all[4..12]).is_err());
        assert_eq!(decoder.len(), 4);
        decoder.prefill[0].session.fail = false;
        assert_eq!(decoder.feed(&all[4..12]).unwrap(), expected(&all[..12]));
        let error = decoder.feed(&all[12..13]).unwrap_err();
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
        assert!(decoder.feed(&[]).is_err());
        assert_eq!(decoder.len(), 12);
    }
}
