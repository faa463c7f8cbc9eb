//! What does the model remember? One sequence, its KV cache, and the features of images.

mod feeding;

use crate::backend::{Decoder, DecoderState, TokenEmbedder};
use crate::error::EngineError;
use crate::features::Shared;
use crate::generate::NextToken;
use crate::image::{ImageId, PixelValues};
use crate::opening::Parts;
use crate::prompt::catch::catch;
use crate::prompt::{Position, Prompt, common_prefix};
use crate::timeline::Timeline;
pub(crate) use feeding::Feeding;
use ndarray::Array1;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// An image, before or after the vision encoder saw it.
#[derive(Debug)]
enum Image {
    Pixels(PixelValues),
    Features(Shared),
}

/// Numbers of the model that a sequence depends on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Geometry {
    /// Length of an embedding.
    pub(crate) hidden: usize,
    /// Positions of an image.
    pub(crate) image_tokens: usize,
}

/// A sequence in the decoder that it began with, whatever becomes of the model's engine meanwhile.
struct Running {
    embedder: Arc<dyn TokenEmbedder>,
    decoder: Arc<dyn Decoder>,
    state: Box<dyn DecoderState>,
    /// Positions that the decoder can hold.
    context: usize,
}

impl Running {
    /// Appends a token; the logits `[vocab]` that follow.
    fn step(&mut self, token: i64) -> Result<Array1<f32>, EngineError> {
        guarded("decoder", || {
            let embeds = self.embedder.embed(&[token])?;
            Ok(self.state.feed(embeds.view())?)
        })?
    }
}

impl fmt::Debug for Running {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Running")
            .field("len", &self.state.len())
            .field("context", &self.context)
            .finish_non_exhaustive()
    }
}

/// What an engine computes. Its panic is an error: it must not be the end of what others ask for, and states are as before
/// it, for they change when a computation is done.
fn guarded<T>(network: &'static str, work: impl FnOnce() -> T) -> Result<T, EngineError> {
    catch(work).map_err(|reason| EngineError::Panic { network, reason })
}

/// One sequence, and the images that it may name.
#[derive(Debug)]
pub(crate) struct Sequence<P> {
    parts: P,
    geometry: Geometry,
    timeline: Timeline,
    /// There from the first prompt on.
    running: Option<Running>,
    /// What the decoder has been fed: as many as its state has.
    fed: Vec<Position>,
    images: BTreeMap<ImageId, Image>,
}

impl<P: Parts> Sequence<P> {
    pub(crate) fn new(parts: P, geometry: Geometry, timeline: Timeline) -> Sequence<P> {
        Sequence {
            parts,
            geometry,
            timeline,
            running: None,
            fed: Vec::new(),
            images: BTreeMap::new(),
        }
    }

    /// Who has the model's parts.
    pub(crate) fn parts(&self) -> &P {
        &self.parts
    }

    /// Bytes of its KV cache.
    pub(crate) fn cache_bytes(&self) -> usize {
        self.running
            .as_ref()
            .map_or(0, |running| running.state.cache_bytes())
    }

    /// How many sequences the computation continued that appended the last position.
    pub(crate) fn beside(&self) -> usize {
        self.running.as_ref().map_or(1, |running| running.state.beside())
    }

    /// Positions at the start that it has in common with a prompt.
    pub(crate) fn in_common(&self, prompt: &Prompt) -> usize {
        common_prefix(&self.fed, &prompt.positions())
    }

    /// Makes an image known. One that is known already stays as it is, with its features.
    pub(crate) fn add(&mut self, pixels: PixelValues) -> ImageId {
        let id = pixels.id;
        self.images.entry(id).or_insert(Image::Pixels(pixels));
        id
    }

    /// Makes an image known whose features the model keeps; whether it does.
    pub(crate) fn recall(&mut self, id: ImageId) -> bool {
        if let Some(features) = self.parts.features().get(id) {
            self.images.insert(id, Image::Features(features));
        }
        matches!(self.images.get(&id), Some(Image::Features(_)))
    }

    /// Whether an image was made known, and not forgotten since.
    pub(crate) fn knows(&self, id: ImageId) -> bool {
        self.images.contains_key(&id)
    }

    /// The features of an image that has them.
    pub(crate) fn features_of(&self, id: ImageId) -> Option<Shared> {
        match self.images.get(&id)? {
            Image::Features(features) => Some(Arc::clone(features)),
            Image::Pixels(_) => None,
        }
    }

    /// Forgets sequence and images, and frees the KV cache.
    pub(crate) fn reset(&mut self) {
        self.running = None;
        self.fed.clear();
        self.forget_images();
    }

    /// Forgets the images, but not what the decoder made of them.
    pub(crate) fn forget_images(&mut self) {
        self.images.clear();
    }

    /// Begins, where nothing was fed yet.
    fn running(&mut self) -> Result<&mut Running, EngineError> {
        let running = match self.running.take() {
            Some(running) => running,
            None => {
                // First, for waiting for it may replace the others.
                let decoder = self.parts.decoder()?;
                Running {
                    embedder: self.parts.embedder()?,
                    state: guarded("decoder", || Arc::clone(&decoder).start())??,
                    decoder,
                    context: self.parts.context()?,
                }
            }
        };
        Ok(self.running.insert(running))
    }

    /// How many positions were fed.
    pub(crate) fn fed(&self) -> usize {
        self.fed.len()
    }

    /// How many positions fit.
    pub(crate) fn room(&self) -> usize {
        let context = self.running.as_ref().map_or(0, |running| running.context);
        context.saturating_sub(self.fed.len())
    }

    /// Forgets what was fed after the first `len` positions.
    pub(crate) fn rewind(&mut self, len: usize) -> Result<(), EngineError> {
        if let Some(running) = &mut self.running {
            running.state.truncate(len)?;
            self.fed.truncate(len);
        }
        Ok(())
    }

    /// Gets the features of those of `images` that have none yet; says how many were encoded, and how long that took.
    pub(crate) fn encode(
        &mut self,
        images: impl Iterator<Item = ImageId>,
    ) -> Result<(usize, Duration), EngineError> {
        let (mut encoded, mut time) = (0, Duration::ZERO);
        let Geometry { hidden, image_tokens } = self.geometry;
        for id in images {
            let Some(image) = self.images.get_mut(&id) else {
                return Err(EngineError::UnknownImage);
            };
            if let Image::Pixels(pixels) = image {
                let (parts, timeline) = (&self.parts, &self.timeline);
                let (features, now) = parts.features().get_or_encode(id, || {
                    let encoder = parts.encoder()?;
                    let begun = Instant::now();
                    let values = guarded("vision encoder", || encoder.encode(pixels.values.view()))??;
                    let end = Instant::now();
                    timeline.record("encode", begun, end);
                    time += end.duration_since(begun);
                    if values.dim() != (image_tokens, hidden) {
                        return Err(EngineError::Output {
                            network: "vision encoder",
                            found: values.shape().to_vec(),
                            expected: vec![image_tokens, hidden],
                        });
                    }
                    Ok(values)
                })?;
                encoded += usize::from(now);
                *image = Image::Features(features);
            }
        }
        Ok((encoded, time))
    }
}

impl<P: Parts> NextToken for Sequence<P> {
    fn has_room(&self) -> bool {
        let context = self.running.as_ref().map(|running| running.context);
        context.is_some_and(|context| self.fed.len() < context)
    }

    fn step(&mut self, token: i64) -> Result<Array1<f32>, EngineError> {
        let logits = self.running()?.step(token)?;
        self.fed.push(Position::Token(token));
        Ok(logits)
    }

    /// Sequences of one decoder together.
    fn step_each(sequences: &mut [&mut Self], tokens: &[i64]) -> Vec<Result<Array1<f32>, EngineError>> {
        let mut results: Vec<Option<Result<Array1<f32>, EngineError>>> = Vec::with_capacity(tokens.len());
        let mut rest = Vec::with_capacity(tokens.len());
        for (place, (sequence, token)) in sequences.iter_mut().zip(tokens).enumerate() {
            match sequence.running() {
                Ok(running) => {
                    rest.push((place, *token, running));
                    results.push(None);
                }
                Err(error) => results.push(Some(Err(error))),
            }
        }
        while let Some((_, _, first)) = rest.first() {
            let (embedder, decoder) = (Arc::clone(&first.embedder), Arc::clone(&first.decoder));
            let (mut same, others): (Vec<_>, Vec<_>) = rest
                .into_iter()
                .partition(|(_, _, running)| Arc::ptr_eq(&running.decoder, &decoder));
            rest = others;
            let ids: Vec<i64> = same.iter().map(|(_, token, _)| *token).collect();
            let mut states: Vec<_> = same
                .iter_mut()
                .map(|(_, _, running)| &mut *running.state)
                .collect();
            let lengths: Vec<usize> = states.iter().map(|state| state.len()).collect();
            let fed = guarded("decoder", || {
                let embeds = embedder.embed(&ids)?;
                Ok::<_, EngineError>(Arc::clone(&decoder).feed_each(&mut states, embeds.view()))
            });
            let steps: Vec<Result<Array1<f32>, EngineError>> = match fed {
                Ok(Ok(fed)) => {
                    let fed = fed.into_iter();
                    fed.map(|logits| logits.map_err(EngineError::from)).collect()
                }
                // Whose token it is has the error. A panic may have come when some had their position already.
                Ok(Err(_)) | Err(_) => {
                    let alone = same.iter_mut().zip(lengths);
                    let alone = alone.map(|((_, token, running), length)| {
                        running.state.truncate(length)?;
                        running.step(*token)
                    });
                    alone.collect()
                }
            };
            for ((place, _, _), step) in same.iter().zip(steps) {
                if let Some(result) = results.get_mut(*place) {
                    *result = Some(step);
                }
            }
        }
        let each = results.into_iter().zip(sequences).zip(tokens);
        let each = each.map(|((result, sequence), token)| match result {
            Some(Ok(logits)) => {
                sequence.fed.push(Position::Token(*token));
                Ok(logits)
            }
            Some(Err(error)) => Err(error),
            // An engine that forgot one.
            None => sequence.step(*token),
        });
        each.collect()
    }
}

#[cfg(test)]
mod tests;
