//! How does a graph with `past_key_values.*` and `present.*` become a decoder with a state?

use super::Decoder;
use super::session::{EngineSession, Placement, Tensor};
use crate::error::BackendError;
use models::bundle::{GraphEntry, IoDim, KvSpec};
use models::dtype::DType;
use std::path::Path;

/// The axis of a cache tensor `[batch, kv_heads, past, head_dim]` along which positions follow each other.
const POSITIONS: usize = 2;

/// What the inputs and outputs of a decoder's graph are.
#[derive(Debug)]
pub(super) struct Ports {
    /// Length of an embedding.
    pub(super) hidden: usize,
    /// Names of the inputs `past_key_values.*`.
    pub(super) past: Vec<String>,
    /// For each of them: which output, `present.*`, has what was computed of the new positions.
    pub(super) present: Vec<usize>,
    /// Which output has the logits.
    logits: usize,
}

impl Ports {
    /// Of a graph that keeps its contract `entry`.
    ///
    /// # Errors
    /// A contract without the inputs and outputs of a decoder with a cache.
    pub(super) fn of(
        session: &impl EngineSession,
        entry: &GraphEntry,
        kv: &KvSpec,
    ) -> Result<Ports, BackendError> {
        let output = |name: &str| {
            let mut ports = session.description().outputs.iter();
            let found = ports.position(|port| port.name == name);
            found.ok_or_else(|| broken(session, format!("output `{name}` is missing")))
        };
        let (mut past, mut present) = (Vec::new(), Vec::new());
        for layer in 0..kv.layers {
            for part in ["key", "value"] {
                past.push(format!("past_key_values.{layer}.{part}"));
                present.push(output(&format!("present.{layer}.{part}"))?);
            }
        }
        let embeds = entry.inputs.iter().find(|io| io.name == "inputs_embeds");
        let hidden = embeds.and_then(|io| match io.dims.last() {
            Some(IoDim::Fixed(hidden)) => usize::try_from(*hidden).ok(),
            _ => None,
        });
        let nameless = || {
            broken(
                session,
                "input `inputs_embeds` has no fixed last dimension".to_owned(),
            )
        };
        Ok(Ports {
            logits: output("logits")?,
            hidden: hidden.filter(|&hidden| hidden > 0).ok_or_else(nameless)?,
            past,
            present,
        })
    }

    /// How many positions `embeds` are: at least one.
    pub(super) fn positions(
        &self,
        session: &impl EngineSession,
        embeds: &[f32],
    ) -> Result<usize, BackendError> {
        count_positions(&session.description().path, embeds, self.hidden)
    }

    /// The logits among the outputs.
    pub(super) fn logits<S: EngineSession>(
        &self,
        session: &S,
        outputs: &[S::Value],
    ) -> Result<Vec<f32>, BackendError> {
        let logits = session.download(given(session, outputs, self.logits)?)?;
        let found = logits.dtype();
        logits.into_f32().ok_or_else(|| BackendError::Run {
            path: session.description().path.clone(),
            reason: format!("`logits` is {found}, expected real numbers"),
        })
    }

    /// A cache tensor of this shape for each of the names.
    pub(super) fn cache<S: EngineSession>(
        &self,
        session: &S,
        dtype: DType,
        shape: &[usize],
    ) -> Result<Vec<S::Value>, BackendError> {
        let fresh = || {
            let found = Tensor::zeros(dtype, shape.to_vec());
            found.ok_or_else(|| {
                broken(
                    session,
                    format!("the cache is {dtype}, expected float32 or float16"),
                )
            })
        };
        self.past.iter().map(|_| session.upload(fresh()?)).collect()
    }
}

/// How many positions of length `hidden` `embeds` are: at least one. `path` is for the error.
pub(super) fn count_positions(path: &Path, embeds: &[f32], hidden: usize) -> Result<usize, BackendError> {
    let count = embeds.len() / hidden;
    if count > 0 && count * hidden == embeds.len() {
        return Ok(count);
    }
    Err(BackendError::Inputs {
        path: path.to_owned(),
        problems: vec![format!(
            "`inputs_embeds` has {} values, expected a multiple of {hidden}, at least once",
            embeds.len()
        )],
    })
}

/// An output by its number.
pub(super) fn given<'o, S: EngineSession>(
    session: &S,
    outputs: &'o [S::Value],
    index: usize,
) -> Result<&'o S::Value, BackendError> {
    outputs.get(index).ok_or_else(|| BackendError::Run {
        path: session.description().path.clone(),
        reason: format!(
            "the engine gave {} outputs, expected more than {index}",
            outputs.len()
        ),
    })
}

fn broken(session: &impl EngineSession, problem: String) -> BackendError {
    BackendError::Contract {
        path: session.description().path.clone(),
        problems: vec![problem],
    }
}

/// A decoder over a session: the outputs `present.*` of a step are the inputs `past_key_values.*` of the next, and stay
/// in the engine's own form.
#[derive(Debug)]
pub struct KvDecoder<S: EngineSession> {
    session: S,
    ports: Ports,
    dtype: DType,
    empty_shape: [usize; 4],
    /// In the order of the ports; empty while nothing was fed.
    cache: Vec<S::Value>,
    len: usize,
}

impl<S: EngineSession> KvDecoder<S> {
    /// A decoder that has seen nothing. `entry`: the decoder's contract, which the session's graph keeps.
    ///
    /// # Errors
    /// A contract without the inputs and outputs of a decoder with a cache.
    pub fn new(
        session: S,
        entry: &GraphEntry,
        kv: &KvSpec,
        dtype: DType,
    ) -> Result<KvDecoder<S>, BackendError> {
        let ports = Ports::of(&session, entry, kv)?;
        Ok(KvDecoder {
            session,
            ports,
            dtype,
            empty_shape: [1, kv.kv_heads, 0, kv.head_dim],
            cache: Vec::new(),
            len: 0,
        })
    }
}

impl<S: EngineSession> Decoder for KvDecoder<S> {
    fn feed(&mut self, embeds: &[f32]) -> Result<Vec<f32>, BackendError> {
        let new = self.ports.positions(&self.session, embeds)?;
        if self.cache.is_empty() {
            self.cache = self.ports.cache(&self.session, self.dtype, &self.empty_shape)?;
        }
        let total = self.len + new;
        let positions = (self.len..total)
            .map(|position| i64::try_from(position).unwrap_or(i64::MAX))
            .collect();
        let upload = |tensor| self.session.upload(tensor);
        let embeds = upload(Tensor::F32 {
            shape: vec![1, new, self.ports.hidden],
            data: embeds.to_vec(),
        })?;
        let mask = upload(Tensor::I64 {
            shape: vec![1, total],
            data: vec![1; total],
        })?;
        let positions = upload(Tensor::I64 {
            shape: vec![1, new],
            data: positions,
        })?;
        let mut inputs: Vec<(&str, &S::Value)> = vec![
            ("inputs_embeds", &embeds),
            ("attention_mask", &mask),
            ("position_ids", &positions),
        ];
        inputs.extend(self.ports.past.iter().map(String::as_str).zip(&self.cache));
        let outputs = self.session.compute(&inputs)?;
        let logits = self.ports.logits(&self.session, &outputs)?;
        let mut outputs: Vec<Option<S::Value>> = outputs.into_iter().map(Some).collect();
        let mut cache = Vec::with_capacity(self.cache.len());
        for (&index, name) in self.ports.present.iter().zip(&self.ports.past) {
            let value = outputs.get_mut(index).and_then(Option::take);
            cache.push(value.ok_or_else(|| BackendError::Run {
                path: self.session.description().path.clone(),
                reason: format!("the engine gave no `{name}`"),
            })?);
        }
        // Only now: a step that failed leaves the state as it was.
        self.cache = cache;
        self.len = total;
        Ok(logits)
    }

    fn len(&self) -> usize {
        self.len
    }

    fn truncate(&mut self, len: usize) -> Result<(), BackendError> {
        if len >= self.len {
            return Ok(());
        }
        if len == 0 {
            self.cache = Vec::new();
        } else {
            self.cache = self
                .cache
                .iter()
                .map(|value| {
                    self.session
                        .upload(self.session.download(value)?.keep(POSITIONS, len))
                })
                .collect::<Result<_, BackendError>>()?;
        }
        self.len = len;
        Ok(())
    }

    fn placement(&self) -> Option<Placement> {
        self.session.placement()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::session::{Description, Port};
    use models::bundle::Io;
    use std::path::PathBuf;

    /// Adds up all embeddings: the cache holds them, the logits are the sum of the last position's past.
    #[derive(Debug)]
    struct Sum {
        description: Description,
        fail: bool,
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
                fail: false,
            }
        }
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
            let path = self.description.path.clone();
            if self.fail {
                return Err(BackendError::Run {
                    path,
                    reason: "asked to".to_owned(),
                });
            }
            let get = |wanted: &str| inputs.iter().find(|(name, _)| *name == wanted).unwrap().1.clone();
            let past = get("past_key_values.0.key").into_f32().unwrap();
            let embeds = get("inputs_embeds").into_f32().unwrap();
            let Tensor::I64 { data: positions, .. } = get("position_ids") else {
                panic!("positions")
            };
            assert_eq!(usize::try_from(positions[0]), Ok(past.len() / 2));
            assert_eq!(get("attention_mask").shape()[1], past.len() / 2 + positions.len());
            let all: Vec<f32> = past.into_iter().chain(embeds).collect();
            let cache = Tensor::F32 {
                shape: vec![1, 1, all.len() / 2, 2],
                data: all.clone(),
            };
            let logits = Tensor::F32 {
                shape: vec![1, 1, 1],
                data: vec![all.iter().sum()],
            };
            Ok(vec![cache.clone(), logits, cache])
        }
    }

    fn decoder() -> KvDecoder<Sum> {
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
        };
        let kv = KvSpec {
            layers: 1,
            kv_heads: 1,
            head_dim: 2,
            max_context: 16,
        };
        KvDecoder::new(Sum::new(), &entry, &kv, DType::Float32).unwrap()
    }

    #[test]
    fn prefill_equals_steps_and_truncate_equals_fresh() {
        let mut whole = decoder();
        assert_eq!(whole.feed(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]).unwrap(), [21.0]);
        let mut steps = decoder();
        steps.feed(&[1.0, 2.0]).unwrap();
        steps.feed(&[3.0, 4.0]).unwrap();
        assert_eq!(steps.feed(&[5.0, 6.0]).unwrap(), [21.0]);
        assert_eq!(steps.len(), 3);
        steps.truncate(9).unwrap();
        assert_eq!(steps.len(), 3);
        steps.truncate(1).unwrap();
        assert_eq!(steps.feed(&[0.0, 4.0]).unwrap(), [7.0]);
        steps.truncate(0).unwrap();
        assert_eq!(steps.feed(&[1.0, 1.0]).unwrap(), [2.0]);
    }

    #[test]
    fn a_failed_step_changes_nothing() {
        let mut decoder = decoder();
        decoder.feed(&[1.0, 2.0]).unwrap();
        decoder.session.fail = true;
        assert!(decoder.feed(&[1.0, 2.0]).is_err());
        decoder.session.fail = false;
        assert_eq!(decoder.len(), 1);
        assert_eq!(decoder.feed(&[1.0, 1.0]).unwrap(), [5.0]);
        for wrong in [&[][..], &[1.0]] {
            assert!(decoder.feed(wrong).is_err());
        }
    }
}
