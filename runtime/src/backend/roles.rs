//! Roles: what a model is made of, and what an engine must be able to do to play them.

use super::form::Form;
use super::options::Options;
use super::provider::Provider;
use super::session::{Placement, Session};
use crate::error::BackendError;
use models::bundle::{Bundle, Precision, Target};
use ndarray::{Array1, Array2, ArrayView2, ArrayView4, Axis};
use std::any::Any;
use std::path::Path;
use std::sync::Arc;

/// Turns an image into features. Any number of conversations share one.
pub trait VisionEncoder: Send + Sync {
    /// `pixels`: `[1, 3, height, width]`, rows without gaps; returns `[tokens, hidden]`.
    ///
    /// # Errors
    /// What the engine says.
    fn encode(&self, pixels: ArrayView4<'_, f32>) -> Result<Array2<f32>, BackendError>;

    /// How many nodes an accelerator took, where one was asked for and says so.
    fn placement(&self) -> Option<Placement> {
        None
    }
}

/// Turns token ids into embeddings. Any number of conversations share one.
pub trait TokenEmbedder: Send + Sync {
    /// Returns `[ids, hidden]`.
    ///
    /// # Errors
    /// What the engine says.
    fn embed(&self, ids: &[i64]) -> Result<Array2<f32>, BackendError>;

    /// How many nodes an accelerator took, where one was asked for and says so.
    fn placement(&self) -> Option<Placement> {
        None
    }
}

/// Continues sequences, each of which has a state of its own. Any number of conversations share one.
pub trait Decoder: Send + Sync {
    /// The state of a sequence of nothing. It keeps the decoder alive.
    ///
    /// # Errors
    /// What the engine says.
    fn start(self: Arc<Self>) -> Result<Box<dyn DecoderState>, BackendError>;

    /// Appends to each of `states` one position, its row of `embeds` `[states, hidden]`, and gives each the logits
    /// `[vocab]` of it. Where the engine can, that is one computation, which reads the weights once for all of them; then
    /// their caches lie together until they are fed otherwise. Each sequence gets what it would get alone, up to the
    /// order of sums inside the engine. An error is that of one sequence, which then is as it was.
    ///
    /// A state of another decoder is fed by that.
    fn feed_each(
        self: Arc<Self>,
        states: &mut [&mut (dyn DecoderState + 'static)],
        embeds: ArrayView2<'_, f32>,
    ) -> Vec<Result<Array1<f32>, BackendError>> {
        let rows = embeds.axis_chunks_iter(Axis(0), 1);
        states
            .iter_mut()
            .zip(rows)
            .map(|(state, row)| state.feed(row))
            .collect()
    }

    /// How many nodes an accelerator took, where one was asked for and says so.
    fn placement(&self) -> Option<Placement> {
        None
    }
}

/// One sequence in a [`Decoder`]: its KV cache, which is freed with it.
pub trait DecoderState: Any + Send {
    /// Appends `embeds`, `[new, hidden]` with `new` at least 1 and rows without gaps, and returns the logits
    /// `[vocab]` of the last position. Prompt and single step alike. After an error the sequence is as it was.
    ///
    /// # Errors
    /// What the engine says.
    fn feed(&mut self, embeds: ArrayView2<'_, f32>) -> Result<Array1<f32>, BackendError>;

    /// Positions in the sequence.
    fn len(&self) -> usize;

    /// Whether nothing was fed.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Forgets all positions from `len` on.
    ///
    /// # Errors
    /// What the engine says.
    fn truncate(&mut self, len: usize) -> Result<(), BackendError>;

    /// Bytes that the cache takes.
    fn cache_bytes(&self) -> usize;

    /// How many sequences the computation continued that appended the last position, this one included.
    fn beside(&self) -> usize {
        1
    }
}

/// What a backend opens parts of: one exported form of a bundle.
#[derive(Debug, Clone, Copy)]
pub struct Model<'a> {
    /// The bundle's directory.
    pub directory: &'a Path,
    /// Its contract.
    pub bundle: &'a Bundle,
    /// What of it.
    pub form: &'a Form,
    /// How.
    pub options: &'a Options,
}

/// An engine that this program was built with.
pub trait Backend: Sync {
    /// Which provider it is.
    fn provider(&self) -> Provider;

    /// Whether it can run here.
    ///
    /// # Errors
    /// Why not.
    fn check(&self, options: &Options) -> Result<(), BackendError>;

    /// Whether what works here, as [`Backend::check`] says, works with a form; with any form where none is named.
    ///
    /// # Errors
    /// Why it does not.
    fn check_form(&self, form: Option<&Form>, options: &Options) -> Result<(), BackendError> {
        let _ = (form, options);
        Ok(())
    }

    /// Prepares one graph, with any inputs and outputs.
    ///
    /// # Errors
    /// A graph that it refuses, or an engine that cannot run here.
    fn open_session(&self, path: &Path, options: &Options) -> Result<Box<dyn Session>, BackendError>;

    /// The targets whose graphs it can run, the best first; none where it runs packages.
    fn targets(&self) -> &'static [Target];

    /// Whether it runs graphs of such a target in a precision.
    fn runs(&self, target: Target, precision: Precision) -> bool {
        let _ = precision;
        self.targets().contains(&target)
    }

    /// Whether it runs graphs that another program wrote and a bundle adopted: any operators, any lengths.
    fn runs_adopted(&self) -> bool {
        false
    }

    /// Whether it runs Core ML packages.
    fn runs_packages(&self) -> bool {
        false
    }

    /// Prepares a model's vision encoder.
    ///
    /// # Errors
    /// A graph that is not that of the contract, or that the engine refuses; or an engine that cannot run
    /// here.
    fn vision_encoder(&self, model: &Model<'_>) -> Result<Arc<dyn VisionEncoder>, BackendError>;

    /// Prepares a model's token embedding.
    ///
    /// # Errors
    /// As for the vision encoder.
    fn embedder(&self, model: &Model<'_>) -> Result<Arc<dyn TokenEmbedder>, BackendError>;

    /// Prepares a model's decoder.
    ///
    /// # Errors
    /// As for the vision encoder.
    fn decoder(&self, model: &Model<'_>) -> Result<Arc<dyn Decoder>, BackendError>;
}
