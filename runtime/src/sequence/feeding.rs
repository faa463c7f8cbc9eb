//! Reading a prompt, whole or in pieces: what is fed to the decoder, and what is there already?

use super::{Image, Running, Sequence, guarded};
use crate::error::EngineError;
use crate::opening::Parts;
use crate::prompt::{Position, Prompt, Span, common_prefix, token_ids};
use crate::splice::splice;
use ndarray::{Array1, Array2};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A prompt that a sequence begins to be equal to, and what that took so far.
#[derive(Debug)]
pub(crate) struct Feeding {
    prompt: Prompt,
    /// Those of the prompt, of which the sequence has the first ones.
    positions: Vec<Position>,
    /// Positions that were in the KV cache already.
    pub(crate) reused: usize,
    /// Images that were encoded.
    pub(crate) encoded: usize,
    /// Time in the vision encoder.
    pub(crate) encode: Duration,
    /// Time in the embedding and the decoder.
    pub(crate) prefill: Duration,
}

impl Feeding {
    /// What is read.
    pub(crate) fn prompt(&self) -> &Prompt {
        &self.prompt
    }
}

impl<P: Parts> Sequence<P> {
    /// Begins to make the sequence equal to `prompt`: forgets what the two do not have in common at the start, and gets the
    /// features of images that are to be fed. Nothing is fed yet.
    pub(crate) fn begin(&mut self, prompt: Prompt) -> Result<Feeding, EngineError> {
        // Before there is a number for each position.
        let found = prompt.len();
        if found == 0 {
            return Err(EngineError::EmptyPrompt);
        }
        let expected = match &self.running {
            Some(running) => running.context,
            None => self.parts.context()?,
        };
        if found >= expected {
            return Err(EngineError::TooLong { found, expected });
        }
        let positions = prompt.positions();
        // The last position is always fed: its logits are what we are after.
        let reused = common_prefix(&self.fed, &positions).min(positions.len() - 1);
        if let Some(running) = &mut self.running {
            running.state.truncate(reused)?;
            self.fed.truncate(reused);
        }
        let spans = prompt.spans(reused);
        let images = spans.iter().filter_map(|span| match span {
            Span::Image { id, .. } => Some(*id),
            Span::Tokens(_) => None,
        });
        let (encoded, encode) = self.encode(images)?;
        Ok(Feeding {
            prompt,
            positions,
            reused,
            encoded,
            encode,
            prefill: Duration::ZERO,
        })
    }

    /// How many positions are still to be fed.
    pub(crate) fn left(&self, feeding: &Feeding) -> usize {
        feeding.positions.len().saturating_sub(self.fed.len())
    }

    /// Feeds the next positions, at most `most` and at least one; the logits `[vocab]` of the last of the prompt, as soon as
    /// that was fed. After an error the sequence is as it was before.
    pub(crate) fn read(
        &mut self,
        feeding: &mut Feeding,
        most: usize,
    ) -> Result<Option<Array1<f32>>, EngineError> {
        self.running()?;
        let begun = Instant::now();
        let spans = first(feeding.prompt.spans(self.fed.len()), most.max(1));
        let count: usize = spans.iter().map(Span::len).sum();
        let embeds = self.embed(&spans)?;
        let Running { state, .. } = self.running()?;
        let logits = guarded("decoder", || state.feed(embeds.view()))??;
        let end = Instant::now();
        self.timeline.record("prefill", begun, end);
        feeding.prefill += end.duration_since(begun);
        let next = feeding.positions.iter().skip(self.fed.len()).take(count);
        self.fed.extend(next);
        Ok((self.left(feeding) == 0).then_some(logits))
    }

    /// What stands at the positions of `spans`: `[positions, hidden]`.
    fn embed(&mut self, spans: &[Span<'_>]) -> Result<Array2<f32>, EngineError> {
        let embedder = Arc::clone(&self.running()?.embedder);
        let ids = token_ids(spans);
        let text = match ids.as_slice() {
            // In the middle of an image.
            [] => Array2::zeros((0, self.geometry.hidden)),
            ids => guarded("embedding", || embedder.embed(ids))??,
        };
        let mut features = Vec::new();
        for span in spans {
            if let Span::Image { id, .. } = span {
                match self.images.get(id) {
                    Some(Image::Features(values)) => features.push(values.view()),
                    _ => return Err(EngineError::UnknownImage),
                }
            }
        }
        Ok(splice(spans, text.view(), &features, self.geometry.hidden)?)
    }
}

/// The first `most` positions of `spans`.
fn first(spans: Vec<Span<'_>>, most: usize) -> Vec<Span<'_>> {
    let mut left = most;
    let cut = spans.into_iter().map_while(|span| {
        let length = span.len().min(left);
        left -= length;
        (length > 0).then(|| match span {
            Span::Tokens(ids) => Span::Tokens(&ids[..length]),
            Span::Image { id, rows } => Span::Image {
                id,
                rows: rows.start..rows.start + length,
            },
        })
    });
    cut.collect()
}
