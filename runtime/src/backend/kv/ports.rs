//! Ports of a decoder's graph: which input and output is what, and what must they be?

use crate::backend::session::{EngineSession, Tensor};
use crate::error::BackendError;
use models::bundle::{GraphEntry, IoDim, KvSpec};
use models::dtype::DType;
use ndarray::{Array1, ArrayView2, s};
use std::path::Path;

/// The axis of a cache tensor `[batch, kv_heads, past, head_dim]` along which positions follow each other.
pub(super) const POSITIONS: usize = 2;

/// What the inputs and outputs of a decoder's graph are.
#[derive(Debug)]
pub(in crate::backend) struct Ports {
    /// Length of an embedding.
    pub(in crate::backend) hidden: usize,
    /// Names of the inputs `past_key_values.*`.
    pub(in crate::backend) past: Vec<String>,
    /// For each of them: which output, `present.*`, has what was computed of the new positions.
    pub(in crate::backend) present: Vec<usize>,
    /// Which output has the logits.
    logits: usize,
    /// How many there are of a position, where the contract says so.
    vocab: Option<usize>,
    /// Values of one position in one tensor of the cache.
    width: usize,
}

impl Ports {
    /// Of a graph that keeps its contract `entry`.
    ///
    /// # Errors
    /// A contract without the inputs and outputs of a decoder with a cache.
    pub(in crate::backend) fn of(
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
        let logits = entry.outputs.iter().find(|io| io.name == "logits");
        let vocab = logits.and_then(|io| match io.dims.last() {
            Some(IoDim::Fixed(vocab)) => usize::try_from(*vocab).ok(),
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
            vocab,
            hidden: hidden.filter(|&hidden| hidden > 0).ok_or_else(nameless)?,
            past,
            present,
            width: kv.kv_heads * kv.head_dim,
        })
    }

    /// How many positions `embeds` are: at least one.
    pub(in crate::backend) fn positions(
        &self,
        session: &impl EngineSession,
        embeds: &ArrayView2<'_, f32>,
    ) -> Result<usize, BackendError> {
        count_positions(&session.description().path, embeds, self.hidden)
    }

    /// Bytes of a cache of so many positions.
    pub(in crate::backend) fn cache_bytes(&self, dtype: DType, positions: usize) -> usize {
        positions * self.past.len() * self.width * dtype.size()
    }

    /// The logits among the outputs.
    pub(in crate::backend) fn logits<S: EngineSession>(
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
        if let (Some(vocab), Some(found)) = (self.vocab, logits.shape().last())
            && *found != vocab
        {
            return Err(BackendError::Run {
                path: session.description().path.clone(),
                reason: format!("`logits` has {found} for a position, expected {vocab}"),
            });
        }
        Ok(logits.into_flat())
    }

    /// Of logits of one sequence those of the last position: an adopted graph may give those of all.
    pub(in crate::backend) fn of_last(&self, logits: Array1<f32>) -> Array1<f32> {
        match self.vocab {
            Some(vocab) if logits.len() > vocab => logits.slice(s![logits.len() - vocab..]).to_owned(),
            _ => logits,
        }
    }

    /// A cache tensor of this shape for each of the names.
    pub(in crate::backend) fn cache<S: EngineSession>(
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
pub(in crate::backend) fn count_positions(
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
pub(in crate::backend) fn given<'o, S: EngineSession>(
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
