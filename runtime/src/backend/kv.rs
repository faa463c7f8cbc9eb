//! How does a graph with `past_key_values.*` and `present.*` become a decoder with a state?

use super::session::{EngineSession, Input, Placement, Tensor};
use super::{Decoder, DecoderState};
use crate::error::BackendError;
use models::bundle::{GraphEntry, IoDim, KvSpec};
use models::dtype::DType;
use ndarray::{Array1, Array2, ArrayView2, Axis};
use std::path::Path;
use std::sync::Arc;

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
    /// Values of one position in one tensor of the cache.
    width: usize,
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
            width: kv.kv_heads * kv.head_dim,
        })
    }

    /// How many positions `embeds` are: at least one.
    pub(super) fn positions(
        &self,
        session: &impl EngineSession,
        embeds: &ArrayView2<'_, f32>,
    ) -> Result<usize, BackendError> {
        count_positions(&session.description().path, embeds, self.hidden)
    }

    /// Bytes of a cache of so many positions.
    pub(super) fn cache_bytes(&self, dtype: DType, positions: usize) -> usize {
        positions * self.past.len() * self.width * dtype.size()
    }

    /// The logits among the outputs.
    pub(super) fn logits<S: EngineSession>(
        &self,
        session: &S,
        outputs: &[S::Value],
    ) -> Result<Array1<f32>, BackendError> {
        let logits = session.download(given(session, outputs, self.logits)?)?;
        let found = logits.dtype();
        let logits = logits.into_f32().ok_or_else(|| BackendError::Run {
            path: session.description().path.clone(),
            reason: format!("`logits` is {found}, expected real numbers"),
        })?;
        Ok(logits.into_flat())
    }

    /// A cache tensor of this shape for each of the names.
    pub(super) fn cache<S: EngineSession>(
        &self,
        session: &S,
        dtype: DType,
        shape: &[usize],
    ) -> Result<Vec<S::Value>, BackendError> {
        let fresh = || {
            let found = Tensor::zeros(dtype, shape);
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
pub(super) fn count_positions(
    path: &Path,
    embeds: &ArrayView2<'_, f32>,
    hidden: usize,
) -> Result<usize, BackendError> {
    let (count, width) = embeds.dim();
    if count > 0 && width == hidden {
        return Ok(count);
    }
    Err(BackendError::Inputs {
        path: path.to_owned(),
        problems: vec![format!(
            "`inputs_embeds` is {count} x {width}, expected at least 1 x {hidden}"
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
}

impl<S: EngineSession> KvDecoder<S> {
    /// `entry`: the decoder's contract, which the session's graph keeps.
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
        })
    }
}

impl<S: EngineSession + 'static> Decoder for KvDecoder<S> {
    fn start(self: Arc<Self>) -> Result<Box<dyn DecoderState>, BackendError> {
        Ok(Box::new(KvState {
            decoder: self,
            cache: Vec::new(),
            len: 0,
        }))
    }

    fn placement(&self) -> Option<Placement> {
        self.session.placement()
    }
}

/// One sequence in a [`KvDecoder`].
#[derive(Debug)]
struct KvState<S: EngineSession> {
    decoder: Arc<KvDecoder<S>>,
    /// In the order of the ports; empty while nothing was fed.
    cache: Vec<S::Value>,
    len: usize,
}

impl<S: EngineSession> DecoderState for KvState<S> {
    fn feed(&mut self, embeds: ArrayView2<'_, f32>) -> Result<Array1<f32>, BackendError> {
        let KvDecoder { session, ports, .. } = &*self.decoder;
        let new = ports.positions(session, &embeds)?;
        if self.cache.is_empty() {
            self.cache = ports.cache(session, self.decoder.dtype, &self.decoder.empty_shape)?;
        }
        let total = self.len + new;
        let positions = (self.len..total).map(|position| i64::try_from(position).unwrap_or(i64::MAX));
        let positions = Array1::from_iter(positions).insert_axis(Axis(0));
        let positions = session.upload(Tensor::I64(positions.into_dyn()))?;
        let mask = session.upload(Tensor::I64(Array2::ones((1, total)).into_dyn()))?;
        let mut inputs: Vec<(&str, Input<'_, S::Value>)> = vec![
            (
                "inputs_embeds",
                Input::Lent(embeds.insert_axis(Axis(0)).into_dyn()),
            ),
            ("attention_mask", Input::Held(&mask)),
            ("position_ids", Input::Held(&positions)),
        ];
        let past = ports.past.iter().map(String::as_str);
        inputs.extend(past.zip(self.cache.iter().map(Input::Held)));
        let outputs = session.compute(&inputs)?;
        let logits = ports.logits(session, &outputs)?;
        let mut outputs: Vec<Option<S::Value>> = outputs.into_iter().map(Some).collect();
        let mut cache = Vec::with_capacity(self.cache.len());
        for (&index, name) in ports.present.iter().zip(&ports.past) {
            let value = outputs.get_mut(index).and_then(Option::take);
            cache.push(value.ok_or_else(|| BackendError::Run {
                path: session.description().path.clone(),
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
        let session = &self.decoder.session;
        let kept = |value| session.upload(session.download(value)?.keep(POSITIONS, len));
        self.cache = if len == 0 {
            Vec::new()
        } else {
            self.cache.iter().map(kept).collect::<Result<_, BackendError>>()?
        };
        self.len = len;
        Ok(())
    }

    fn cache_bytes(&self) -> usize {
        self.decoder.ports.cache_bytes(self.decoder.dtype, self.len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::session::{Description, Port};
    use models::bundle::Io;
    use ndarray::ArrayD;
    use std::path::PathBuf;
    use std::sync::atomic::{AtomicBool, Ordering};

    /// Adds up all embeddings: the cache holds them, the logits are the sum of the last position's past.
    #[derive(Debug)]
    struct Sum {
        description: Description,
        fail: AtomicBool,
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

        fn compute(&self, inputs: &[(&str, Input<'_, Tensor>)]) -> Result<Vec<Tensor>, BackendError> {
            let path = self.description.path.clone();
            if self.fail.load(Ordering::Relaxed) {
                return Err(BackendError::Run {
                    path,
                    reason: "asked to".to_owned(),
                });
            }
            let get = |wanted: &str| match &inputs.iter().find(|(name, _)| *name == wanted).unwrap().1 {
                Input::Held(tensor) => (*tensor).clone(),
                Input::Lent(array) => Tensor::F32(array.to_owned()),
            };
            let past = get("past_key_values.0.key").into_f32().unwrap();
            let embeds = get("inputs_embeds").into_f32().unwrap();
            let Tensor::I64(positions) = get("position_ids") else {
                panic!("positions")
            };
            let positions = positions.into_flat();
            assert_eq!(usize::try_from(positions[0]), Ok(past.len() / 2));
            assert_eq!(get("attention_mask").shape()[1], past.len() / 2 + positions.len());
            let all: Vec<f32> = past.into_iter().chain(embeds).collect();
            let sum = all.iter().sum();
            let cache = ArrayD::from_shape_vec(vec![1, 1, all.len() / 2, 2], all).unwrap();
            let cache = Tensor::F32(cache);
            let logits = Tensor::F32(ArrayD::from_elem(vec![1, 1, 1], sum));
            Ok(vec![cache.clone(), logits, cache])
        }
    }

    fn decoder() -> Arc<KvDecoder<Sum>> {
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
        Arc::new(KvDecoder::new(Sum::new(), &entry, &kv, DType::Float32).unwrap())
    }

    /// Feeds rows of two.
    fn feed(state: &mut Box<dyn DecoderState>, embeds: &[f32]) -> Result<Vec<f32>, BackendError> {
        let embeds = ArrayView2::from_shape((embeds.len() / 2, 2), embeds).unwrap();
        Ok(state.feed(embeds)?.to_vec())
    }

    #[test]
    fn prefill_equals_steps_and_truncate_equals_fresh() {
        let mut whole = decoder().start().unwrap();
        assert_eq!(feed(&mut whole, &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]).unwrap(), [21.0]);
        let mut steps = decoder().start().unwrap();
        feed(&mut steps, &[1.0, 2.0]).unwrap();
        feed(&mut steps, &[3.0, 4.0]).unwrap();
        assert_eq!(feed(&mut steps, &[5.0, 6.0]).unwrap(), [21.0]);
        assert_eq!(steps.len(), 3);
        assert_eq!(steps.cache_bytes(), 3 * 2 * 2 * 4);
        steps.truncate(9).unwrap();
        assert_eq!(steps.len(), 3);
        steps.truncate(1).unwrap();
        assert_eq!(feed(&mut steps, &[0.0, 4.0]).unwrap(), [7.0]);
        steps.truncate(0).unwrap();
        assert_eq!(steps.cache_bytes(), 0);
        assert_eq!(feed(&mut steps, &[1.0, 1.0]).unwrap(), [2.0]);
    }

    #[test]
    fn a_failed_step_changes_nothing() {
        let decoder = decoder();
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

    #[test]
    fn sequences_of_one_decoder_do_not_know_of_each_other() {
        let decoder = decoder();
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
