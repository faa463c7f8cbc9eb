//! Roles: what a model is made of, and what an engine must be able to do to play them.

use super::form::Form;
use super::options::Options;
use super::provider::Provider;
use super::session::{Placement, Session};
use crate::error::BackendError;
use models::bundle::{Bundle, GraphEntry, Target, Variant};
use std::fmt;
use std::path::Path;

/// Turns an image into features.
pub trait VisionEncoder: Send {
    /// `pixels`: `[3, height, width]` of one image; returns `[tokens, hidden]`.
    ///
    /// # Errors
    /// What the engine says.
    fn encode(&mut self, pixels: &[f32], height: usize, width: usize) -> Result<Vec<f32>, BackendError>;

    /// How many nodes an accelerator took, where one was asked for and says so.
    fn placement(&self) -> Option<Placement> {
        None
    }
}

/// Turns token ids into embeddings.
pub trait TokenEmbedder: Send {
    /// Returns `[ids, hidden]`.
    ///
    /// # Errors
    /// What the engine says.
    fn embed(&mut self, ids: &[i64]) -> Result<Vec<f32>, BackendError>;

    /// How many nodes an accelerator took, where one was asked for and says so.
    fn placement(&self) -> Option<Placement> {
        None
    }
}

/// Continues one sequence. It owns what it remembers of it.
pub trait Decoder: Send {
    /// Appends `embeds`, `[new, hidden]` with `new` at least 1, and returns the logits `[vocab]` of the last
    /// position. Prompt and single step alike. After an error the sequence is as it was.
    ///
    /// # Errors
    /// What the engine says.
    fn feed(&mut self, embeds: &[f32]) -> Result<Vec<f32>, BackendError>;

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

    /// How many nodes an accelerator took, where one was asked for and says so.
    fn placement(&self) -> Option<Placement> {
        None
    }
}

/// A model, ready to compute.
pub struct Parts {
    /// Images to features.
    pub vision_encoder: Box<dyn VisionEncoder>,
    /// Ids to embeddings.
    pub embedder: Box<dyn TokenEmbedder>,
    /// The sequence.
    pub decoder: Box<dyn Decoder>,
}

impl fmt::Debug for Parts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Parts").finish_non_exhaustive()
    }
}

impl Parts {
    /// How many nodes an accelerator took of all three graphs; `None` where not all of them say.
    pub fn placement(&self) -> Option<Placement> {
        Placement::sum(&[
            self.vision_encoder.placement(),
            self.embedder.placement(),
            self.decoder.placement(),
        ])
    }
}

/// What a backend opens parts of.
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

    /// Prepares one graph, with any inputs and outputs.
    ///
    /// # Errors
    /// A graph that it refuses, or an engine that cannot run here.
    fn open_session(&self, path: &Path, options: &Options) -> Result<Box<dyn Session>, BackendError>;

    /// The targets whose graphs it can run, the best first; none where it runs packages.
    fn targets(&self) -> &'static [Target];

    /// Whether it runs Core ML packages.
    fn runs_packages(&self) -> bool {
        false
    }

    /// Prepares a model's vision encoder.
    ///
    /// # Errors
    /// A graph that is not that of the contract, or that the engine refuses; or an engine that cannot run
    /// here.
    fn vision_encoder(&self, model: &Model<'_>) -> Result<Box<dyn VisionEncoder>, BackendError>;

    /// Prepares a model's token embedding.
    ///
    /// # Errors
    /// As for the vision encoder.
    fn embedder(&self, model: &Model<'_>) -> Result<Box<dyn TokenEmbedder>, BackendError>;

    /// Prepares a model's decoder.
    ///
    /// # Errors
    /// As for the vision encoder.
    fn decoder(&self, model: &Model<'_>) -> Result<Box<dyn Decoder>, BackendError>;

    /// Prepares a model, its parts at the same time.
    ///
    /// # Errors
    /// Graphs that are not those of the contract, or that the engine refuses; or an engine that cannot run
    /// here.
    fn open(
        &self,
        directory: &Path,
        bundle: &Bundle,
        variant: &Variant,
        options: &Options,
    ) -> Result<Parts, BackendError> {
        let model = &Model {
            directory,
            bundle,
            form: &Form::Graphs(Box::new(variant.clone())),
            options,
        };
        let (vision_encoder, embedder, decoder) = std::thread::scope(|scope| {
            let vision_encoder = scope.spawn(move || self.vision_encoder(model));
            let embedder = scope.spawn(move || self.embedder(model));
            let decoder = self.decoder(model);
            (
                join(vision_encoder, directory, &variant.vision_encoder),
                join(embedder, directory, &variant.embed_tokens),
                decoder,
            )
        });
        Ok(Parts {
            vision_encoder: vision_encoder?,
            embedder: embedder?,
            decoder: decoder?,
        })
    }
}

fn join<T>(
    thread: std::thread::ScopedJoinHandle<'_, Result<T, BackendError>>,
    directory: &Path,
    entry: &GraphEntry,
) -> Result<T, BackendError> {
    thread.join().unwrap_or_else(|_| {
        Err(BackendError::Run {
            path: directory.join(&entry.path),
            reason: "the thread that opened it ended without an answer".to_owned(),
        })
    })
}
