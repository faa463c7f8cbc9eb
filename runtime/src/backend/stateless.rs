//! How do the two graphs without a state, vision encoder and token embedding, become roles?

use super::session::{EngineSession, Input, Placement, Tensor};
use super::{TokenEmbedder, VisionEncoder};
use crate::error::BackendError;
use ndarray::{Array1, Array2, ArrayD, ArrayView4};
use std::sync::{Mutex, PoisonError};

/// The vision encoder over a session.
#[derive(Debug)]
pub struct SessionEncoder<S> {
    session: S,
    /// Held by who encodes: one image's activations are the most memory that anything here takes.
    turn: Mutex<()>,
}

impl<S> SessionEncoder<S> {
    /// The encoder that a graph is.
    pub fn new(session: S) -> SessionEncoder<S> {
        SessionEncoder {
            session,
            turn: Mutex::new(()),
        }
    }
}

/// The token embedding over a session.
#[derive(Debug)]
pub struct SessionEmbedder<S>(pub S);

/// Runs a graph that has one input and one output of real numbers, `[1, rows, hidden]`, or of an adopted graph
/// `[rows, hidden]`; returns `[rows, hidden]`.
fn run<S: EngineSession>(
    session: &S,
    name: &str,
    input: Input<'_, S::Value>,
) -> Result<Array2<f32>, BackendError> {
    let outputs = session.compute(&mut [(name, input)])?;
    let failed = |reason: String| BackendError::Run {
        path: session.description().path.clone(),
        reason,
    };
    let first = outputs
        .first()
        .ok_or_else(|| failed("the engine gave no output".to_owned()))?;
    let found = session
        .download(first)?
        .into_f32()
        .ok_or_else(|| failed("the output is not of real numbers".to_owned()))?;
    let stated = session
        .description()
        .outputs
        .first()
        .map(|port| port.dims.as_slice());
    if let Some(stated) = stated.filter(|stated| differs(found.shape(), stated)) {
        let (found, stated) = (found.shape(), words(stated));
        return Err(failed(format!(
            "the output has shape {found:?}, expected [{stated}]"
        )));
    }
    rows(found).map_err(|shape| {
        failed(format!(
            "the output has shape {shape:?}, expected [1, rows, hidden]"
        ))
    })
}

/// Whether a shape of as many dimensions as are stated has another length than one that is stated.
fn differs(shape: &[usize], stated: &[Option<usize>]) -> bool {
    let mut pairs = shape.iter().zip(stated);
    shape.len() == stated.len() && pairs.any(|(found, stated)| stated.is_some_and(|stated| stated != *found))
}

/// Stated lengths, for messages.
fn words(stated: &[Option<usize>]) -> String {
    let word = |length: &Option<usize>| length.map_or("any".to_owned(), |length| length.to_string());
    stated.iter().map(word).collect::<Vec<_>>().join(", ")
}

/// `[1, rows, hidden]` as `[rows, hidden]`, without a copy; the shape where it is another one.
fn rows(array: ArrayD<f32>) -> Result<Array2<f32>, Vec<usize>> {
    let shape = array.shape().to_vec();
    let (&[1, rows, hidden] | &[rows, hidden]) = shape.as_slice() else {
        return Err(shape);
    };
    array.into_shape_with_order((rows, hidden)).map_err(|_| shape)
}

impl<S: EngineSession> VisionEncoder for SessionEncoder<S> {
    fn encode(&self, pixels: ArrayView4<'_, f32>) -> Result<Array2<f32>, BackendError> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        run(&self.session, "pixel_values", Input::Lent(pixels.into_dyn()))
    }

    fn placement(&self) -> Option<Placement> {
        self.session.placement()
    }
}

impl<S: EngineSession> TokenEmbedder for SessionEmbedder<S> {
    fn embed(&self, ids: &[i64]) -> Result<Array2<f32>, BackendError> {
        let session = &self.0;
        if ids.is_empty() {
            let output = session.description().outputs.first();
            let hidden = output.and_then(|port| port.dims.last().copied().flatten());
            return Ok(Array2::zeros((0, hidden.unwrap_or(0))));
        }
        let ids = Array1::from(ids.to_vec()).insert_axis(ndarray::Axis(0));
        let ids = session.upload(Tensor::I64(ids.into_dyn()))?;
        run(session, "input_ids", Input::Held(&ids))
    }

    fn placement(&self) -> Option<Placement> {
        self.0.placement()
    }
}
