//! How do decoders of fixed lengths become a decoder of any? What is fed is cut into pieces that they take, each padded in
//! front, and their new keys and values are written into a cache of fixed length.

use super::Decoder;
use super::session::{EngineSession, Placement, Tensor};
use crate::error::BackendError;
use half::f16;
use models::bundle::{GraphEntry, HIDDEN, IoDim, KvSpec};
use models::dtype::DType;

/// Decoders of fixed lengths with their cache.
#[derive(Debug)]
pub struct FixedDecoder<S: EngineSession> {
    /// Ascending by the number of new positions.
    graphs: Vec<Graph<S>>,
    hidden: usize,
    context: usize,
    /// `past_key_values.*`
    names: Vec<String>,
    /// In the order of `names`: `[1, kv_heads, context, head_dim]`, of which positions from `len` on are anything.
    cache: Vec<S::Value>,
    len: usize,
}

/// A decoder of a fixed number of new positions.
#[derive(Debug)]
struct Graph<S> {
    new: usize,
    session: S,
    logits: usize,
    /// For each of [`FixedDecoder::names`]: which output has its new positions.
    added: Vec<usize>,
}

impl<S: EngineSession> FixedDecoder<S> {
    /// A decoder that has seen nothing. `sessions`: the graphs with their numbers of new positions, ascending, the first
    /// of 1; `entry`: the contract of the first. All keep their contracts.
    ///
    /// # Errors
    /// A contract without the inputs and outputs of such a decoder, or what the engine says about the cache.
    pub fn new(
        sessions: Vec<(usize, S)>,
        entry: &GraphEntry,
        context: usize,
        kv: &KvSpec,
        dtype: DType,
    ) -> Result<FixedDecoder<S>, BackendError> {
        let parts = || (0..kv.layers).flat_map(|layer| ["key", "value"].map(|part| (layer, part)));
        let mut graphs = Vec::new();
        for (new, session) in sessions {
            let output = |name: &str| {
                let ports = &session.description().outputs;
                let found = ports.iter().position(|port| port.name == name);
                found.ok_or_else(|| broken(&session, format!("output `{name}` is missing")))
            };
            let added = parts().map(|(layer, part)| output(&format!("present.{layer}.{part}")));
            let added = added.collect::<Result<_, _>>()?;
            let logits = output("logits")?;
            graphs.push(Graph {
                new,
                session,
                logits,
                added,
            });
        }
        let Some(Graph { session, .. }) = graphs.first() else {
            let problems = vec!["there is no decoder".to_owned()];
            return Err(BackendError::Contract {
                path: entry.path.clone().into(),
                problems,
            });
        };
        let embeds = entry.inputs.iter().find(|io| io.name == "inputs_embeds");
        let hidden = embeds
            .and_then(|io| match io.dims.last() {
                Some(IoDim::Fixed(hidden)) => usize::try_from(*hidden).ok(),
                _ => None,
            })
            .filter(|&hidden| hidden > 0)
            .ok_or_else(|| {
                broken(
                    session,
                    "input `inputs_embeds` has no fixed last dimension".to_owned(),
                )
            })?;
        let names: Vec<String> = parts()
            .map(|(layer, part)| format!("past_key_values.{layer}.{part}"))
            .collect();
        let shape = vec![1, kv.kv_heads, context, kv.head_dim];
        let length = shape.iter().product();
        let mut cache = Vec::with_capacity(names.len());
        for _ in &names {
            let shape = shape.clone();
            cache.push(session.upload(match dtype {
                DType::Float32 => Tensor::F32 {
                    shape,
                    data: vec![0.0; length],
                },
                DType::Float16 => Tensor::F16 {
                    shape,
                    data: vec![f16::ZERO; length],
                },
                other => {
                    let problem = format!("the cache is {other}, expected float32 or float16");
                    return Err(broken(session, problem));
                }
            })?);
        }
        Ok(FixedDecoder {
            graphs,
            hidden,
            context,
            names,
            cache,
            len: 0,
        })
    }

    /// Feeds as many positions as one graph takes, to the cache's positions from `len` on.
    fn piece(&mut self, embeds: &[f32], len: usize, index: usize) -> Result<Vec<f32>, BackendError> {
        let (hidden, context) = (self.hidden, self.context);
        let count = embeds.len() / hidden;
        let Some(graph) = self.graphs.get_mut(index) else {
            return Ok(Vec::new());
        };
        let new = graph.new;
        let pad = new - count;
        let session = &graph.session;
        let mut padded = vec![0.0; pad * hidden];
        padded.extend_from_slice(embeds);
        let padded = session.upload(Tensor::F32 {
            shape: vec![1, new, hidden],
            data: padded,
        })?;
        #[allow(clippy::as_conversions, clippy::cast_precision_loss)] // The contract's positions are float32.
        let positions = (0..new).map(|row| (len + row).saturating_sub(pad) as f32);
        let positions = session.upload(Tensor::F32 {
            shape: vec![1, new],
            data: positions.collect(),
        })?;
        let mut bias = vec![HIDDEN; new * (context + new)];
        for (row, bias) in bias.chunks_exact_mut(context + new).enumerate() {
            let (past, fresh) = bias.split_at_mut(context);
            // What stands in front sees itself: nobody reads it, and no sum is empty.
            let first = if row < pad { row } else { pad };
            if row >= pad {
                past.iter_mut().take(len).for_each(|slot| *slot = 0.0);
            }
            fresh
                .iter_mut()
                .take(row + 1)
                .skip(first)
                .for_each(|slot| *slot = 0.0);
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
        inputs.extend(self.names.iter().map(String::as_str).zip(&self.cache));
        let outputs = graph.session.compute(&inputs)?;
        let session = &graph.session;
        let missing = || BackendError::Run {
            path: session.description().path.clone(),
            reason: "the engine gave too few outputs".to_owned(),
        };
        for (cache, index) in self.cache.iter_mut().zip(&graph.added) {
            let added = outputs.get(*index).ok_or_else(missing)?;
            session.store(cache, len, added, pad)?;
        }
        let logits = session.download(outputs.get(graph.logits).ok_or_else(missing)?)?;
        let found = logits.dtype();
        logits.into_f32().ok_or_else(|| BackendError::Run {
            path: session.description().path.clone(),
            reason: format!("`logits` is {found}, expected real numbers"),
        })
    }
}

fn broken<S: EngineSession>(session: &S, problem: String) -> BackendError {
    BackendError::Contract {
        path: session.description().path.clone(),
        problems: vec![problem],
    }
}

impl<S: EngineSession> Decoder for FixedDecoder<S> {
    fn feed(&mut self, embeds: &[f32]) -> Result<Vec<f32>, BackendError> {
        let refuse = |problem: String| BackendError::Inputs {
            path: self
                .graphs
                .first()
                .map(|graph| graph.session.description().path.clone())
                .unwrap_or_default(),
            problems: vec![problem],
        };
        let count = embeds.len() / self.hidden;
        if count == 0 || count * self.hidden != embeds.len() {
            return Err(refuse(format!(
                "`inputs_embeds` has {} values, expected a multiple of {}, at least once",
                embeds.len(),
                self.hidden
            )));
        }
        if count > self.context - self.len {
            return Err(refuse(format!(
                "{count} more positions after {} are more than the cache's {}; fvlm-export --max-context makes room",
                self.len, self.context
            )));
        }
        let (mut rest, mut len, mut logits) = (embeds, self.len, Vec::new());
        while !rest.is_empty() {
            let left = rest.len() / self.hidden;
            let fits = self.graphs.iter().position(|graph| graph.new >= left);
            let index = fits.unwrap_or(self.graphs.len() - 1);
            let taken = self.graphs.get(index).map_or(left, |graph| graph.new.min(left));
            let (piece, after) = rest.split_at(taken * self.hidden);
            logits = self.piece(piece, len, index)?;
            (rest, len) = (after, len + taken);
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
        let parts: Vec<Option<Placement>> = self
            .graphs
            .iter()
            .map(|graph| graph.session.placement())
            .collect();
        Placement::sum(&parts)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;
    use crate::backend::session::{Description, Port};
    use models::bundle::Io;
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
        let sessions = vec![(1, session()), (3, session()), (5, session())];
        FixedDecoder::new(sessions, &entry, context, &kv, DType::Float32).unwrap()
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
        decoder.graphs[1].session.fail = true;
        assert!(decoder.feed(&all[4..12]).is_err());
        assert_eq!(decoder.len(), 4);
        decoder.graphs[1].session.fail = false;
        assert_eq!(decoder.feed(&all[4..12]).unwrap(), expected(&all[..12]));
        let error = decoder.feed(&all[12..13]).unwrap_err().to_string();
        assert!(error.contains("--max-context"), "{error}");
        assert!(decoder.feed(&[]).is_err());
        assert_eq!(decoder.len(), 12);
    }
}
