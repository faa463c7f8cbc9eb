//! How do the two graphs without a state, vision encoder and token embedding, become roles?

use super::session::{EngineSession, Placement, Tensor};
use super::{TokenEmbedder, VisionEncoder};
use crate::error::BackendError;

/// The vision encoder over a session.
#[derive(Debug)]
pub struct SessionEncoder<S>(pub S);

/// The token embedding over a session.
#[derive(Debug)]
pub struct SessionEmbedder<S>(pub S);

/// Runs a graph that has one input and one output of real numbers.
fn run<S: EngineSession>(session: &mut S, name: &str, tensor: Tensor) -> Result<Vec<f32>, BackendError> {
    let input = session.upload(tensor)?;
    let outputs = session.compute(&[(name, &input)])?;
    let failed = |reason: &str| BackendError::Run {
        path: session.description().path.clone(),
        reason: reason.to_owned(),
    };
    let first = outputs
        .first()
        .ok_or_else(|| failed("the engine gave no output"))?;
    session
        .download(first)?
        .into_f32()
        .ok_or_else(|| failed("the output is not of real numbers"))
}

impl<S: EngineSession> VisionEncoder for SessionEncoder<S> {
    fn encode(&mut self, pixels: &[f32], height: usize, width: usize) -> Result<Vec<f32>, BackendError> {
        let tensor = Tensor::F32 {
            shape: vec![1, 3, height, width],
            data: pixels.to_vec(),
        };
        run(&mut self.0, "pixel_values", tensor)
    }

    fn placement(&self) -> Option<Placement> {
        self.0.placement()
    }
}

impl<S: EngineSession> TokenEmbedder for SessionEmbedder<S> {
    fn embed(&mut self, ids: &[i64]) -> Result<Vec<f32>, BackendError> {
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        run(
            &mut self.0,
            "input_ids",
            Tensor::I64 {
                shape: vec![1, ids.len()],
                data: ids.to_vec(),
            },
        )
    }

    fn placement(&self) -> Option<Placement> {
        self.0.placement()
    }
}
