//! What does the model remember? One sequence, its KV cache, and the features of images.

use crate::error::EngineError;
use crate::generate::Model;
use crate::image::{ImageId, PixelValues};
use crate::opening::Parts;
use crate::prompt::{Position, Prompt, Span, common_prefix, token_ids};
use crate::splice::splice;
use crate::timeline::Timeline;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// An image, before or after the vision encoder saw it.
#[derive(Debug)]
enum Image {
    Pixels(PixelValues),
    Features(Vec<f32>),
}

/// Numbers of the model that a sequence depends on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Geometry {
    /// Length of an embedding.
    pub(crate) hidden: usize,
    /// Positions of an image.
    pub(crate) image_tokens: usize,
    /// Positions that the model can hold, or fewer where its graphs cannot.
    pub(crate) max_context: usize,
}

/// What it took to read a prompt.
#[derive(Debug)]
pub(crate) struct Prefill {
    /// Logits of the last position.
    pub(crate) logits: Vec<f32>,
    /// Positions that were in the KV cache already.
    pub(crate) reused: usize,
    /// Images that were encoded.
    pub(crate) encoded: usize,
    /// Time in the vision encoder.
    pub(crate) encode: Duration,
    /// Time in the embedding and the decoder.
    pub(crate) prefill: Duration,
}

/// One sequence, and the images that it may name.
#[derive(Debug)]
pub(crate) struct Sequence<P> {
    parts: P,
    geometry: Geometry,
    timeline: Timeline,
    /// What the decoder has been fed: as many as `parts.decoder.len()`.
    fed: Vec<Position>,
    images: BTreeMap<ImageId, Image>,
}

impl<P: Parts> Sequence<P> {
    pub(crate) fn new(parts: P, geometry: Geometry, timeline: Timeline) -> Sequence<P> {
        Sequence {
            parts,
            geometry,
            timeline,
            fed: Vec::new(),
            images: BTreeMap::new(),
        }
    }

    /// The model's parts.
    pub(crate) fn parts(&mut self) -> &mut P {
        &mut self.parts
    }

    /// Makes an image known. One that is known already stays as it is, with its features.
    pub(crate) fn add(&mut self, pixels: PixelValues) -> ImageId {
        let id = pixels.id;
        self.images.entry(id).or_insert(Image::Pixels(pixels));
        id
    }

    /// Forgets sequence and images.
    pub(crate) fn reset(&mut self) -> Result<(), EngineError> {
        self.truncate(0)?;
        self.forget_images();
        Ok(())
    }

    /// Forgets the images, but not what the decoder made of them.
    pub(crate) fn forget_images(&mut self) {
        self.images.clear();
    }

    fn truncate(&mut self, len: usize) -> Result<(), EngineError> {
        // A decoder that is still being opened has nothing to forget.
        if len < self.fed.len() {
            self.parts.decoder()?.truncate(len)?;
            self.fed.truncate(len);
        }
        Ok(())
    }

    /// Makes the sequence equal to `prompt`; what both have in common at the start is not computed again.
    pub(crate) fn prefill(&mut self, prompt: &Prompt) -> Result<Prefill, EngineError> {
        let positions = prompt.positions();
        if positions.is_empty() {
            return Err(EngineError::EmptyPrompt);
        }
        // An engine may be replaced by one with other graphs, and these may have less room than the model.
        self.geometry.max_context = self.parts.context()?;
        if positions.len() >= self.geometry.max_context {
            let (found, expected) = (positions.len(), self.geometry.max_context);
            return Err(EngineError::TooLong { found, expected });
        }
        // The last position is always fed: its logits are what we are after.
        let reused = common_prefix(&self.fed, &positions).min(positions.len() - 1);
        self.truncate(reused)?;
        let spans = prompt.spans(reused);

        let images = spans.iter().filter_map(|span| match span {
            Span::Image { id, .. } => Some(*id),
            Span::Tokens(_) => None,
        });
        let (encoded, encode) = self.encode(images)?;

        let embedder = self.parts.embedder()?;
        let begun = Instant::now();
        let text = embedder.embed(&token_ids(&spans))?;
        let mut features = Vec::new();
        for span in &spans {
            if let Span::Image { id, .. } = span {
                match self.images.get(id) {
                    Some(Image::Features(values)) => features.push(values.as_slice()),
                    _ => return Err(EngineError::UnknownImage),
                }
            }
        }
        let embeds = splice(&spans, &text, &features, self.geometry.hidden)?;
        let embed = begun.elapsed();
        let decoder = self.parts.decoder()?;
        let begun = Instant::now();
        let logits = decoder.feed(&embeds)?;
        let end = Instant::now();
        self.timeline.record("prefill", begun, end);
        self.fed = positions;
        Ok(Prefill {
            logits,
            reused,
            encoded,
            encode,
            prefill: embed + end.duration_since(begun),
        })
    }

    /// Encodes those of `images` that were not; says how many, and how long that took.
    pub(crate) fn encode(
        &mut self,
        images: impl Iterator<Item = ImageId>,
    ) -> Result<(usize, Duration), EngineError> {
        let (mut encoded, mut time) = (0, Duration::ZERO);
        for id in images {
            let Some(image) = self.images.get_mut(&id) else {
                return Err(EngineError::UnknownImage);
            };
            if let Image::Pixels(pixels) = image {
                let encoder = self.parts.encoder()?;
                let begun = Instant::now();
                let values = encoder.encode(&pixels.data, pixels.height, pixels.width)?;
                let end = Instant::now();
                self.timeline.record("encode", begun, end);
                time += end.duration_since(begun);
                let expected = self.geometry.image_tokens * self.geometry.hidden;
                if values.len() != expected {
                    let (network, found) = ("vision encoder", values.len());
                    return Err(EngineError::Output {
                        network,
                        found,
                        expected,
                    });
                }
                *image = Image::Features(values);
                encoded += 1;
            }
        }
        Ok((encoded, time))
    }
}

impl<P: Parts> Model for Sequence<P> {
    fn has_room(&self) -> bool {
        self.fed.len() < self.geometry.max_context
    }

    fn step(&mut self, token: i64) -> Result<Vec<f32>, EngineError> {
        let embeds = self.parts.embedder()?.embed(&[token])?;
        let logits = self.parts.decoder()?.feed(&embeds)?;
        self.fed.push(Position::Token(token));
        Ok(logits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::{Decoder, TokenEmbedder, VisionEncoder};
    use crate::error::BackendError;
    use crate::prompt::Piece;
    use std::sync::{Arc, Mutex};

    /// What the fakes were asked to do.
    type Log = Arc<Mutex<Vec<String>>>;

    struct FakeEncoder(Log);
    struct FakeEmbedder;
    struct FakeDecoder(Log, Vec<f32>);

    impl VisionEncoder for FakeEncoder {
        fn encode(&mut self, pixels: &[f32], _: usize, _: usize) -> Result<Vec<f32>, BackendError> {
            self.0.lock().unwrap().push("encode".to_owned());
            Ok(vec![pixels[0]; 3])
        }
    }

    impl TokenEmbedder for FakeEmbedder {
        fn embed(&mut self, ids: &[i64]) -> Result<Vec<f32>, BackendError> {
            Ok(ids
                .iter()
                .map(|&id| f32::from(i8::try_from(id).unwrap()))
                .collect())
        }
    }

    impl Decoder for FakeDecoder {
        fn feed(&mut self, embeds: &[f32]) -> Result<Vec<f32>, BackendError> {
            self.0.lock().unwrap().push(format!("feed {embeds:?}"));
            self.1.extend_from_slice(embeds);
            Ok(vec![self.1.iter().sum()])
        }

        fn len(&self) -> usize {
            self.1.len()
        }

        fn truncate(&mut self, len: usize) -> Result<(), BackendError> {
            self.1.truncate(len);
            Ok(())
        }
    }

    struct Fakes {
        encoder: FakeEncoder,
        embedder: FakeEmbedder,
        decoder: FakeDecoder,
    }

    impl Parts for Fakes {
        fn encoder(&mut self) -> Result<&mut dyn VisionEncoder, EngineError> {
            Ok(&mut self.encoder)
        }

        fn embedder(&mut self) -> Result<&mut dyn TokenEmbedder, EngineError> {
            Ok(&mut self.embedder)
        }

        fn decoder(&mut self) -> Result<&mut dyn Decoder, EngineError> {
            Ok(&mut self.decoder)
        }

        fn context(&mut self) -> Result<usize, EngineError> {
            Ok(12)
        }
    }

    fn sequence() -> (Sequence<Fakes>, Log) {
        let log = Log::default();
        let parts = Fakes {
            encoder: FakeEncoder(Arc::clone(&log)),
            embedder: FakeEmbedder,
            decoder: FakeDecoder(Arc::clone(&log), Vec::new()),
        };
        (
            Sequence::new(
                parts,
                Geometry {
                    hidden: 1,
                    image_tokens: 3,
                    max_context: 12,
                },
                Timeline::begin(),
            ),
            log,
        )
    }

    fn pixels(id: u64) -> PixelValues {
        PixelValues {
            height: 1,
            width: 1,
            data: vec![0.5; 3],
            id: ImageId(id),
        }
    }

    fn prompt(before: &[i64], after: &[i64]) -> Prompt {
        let image = Piece::Image {
            id: ImageId(7),
            tokens: 3,
        };
        Prompt::new(vec![
            Piece::Tokens(before.to_vec()),
            image,
            Piece::Tokens(after.to_vec()),
        ])
    }

    #[test]
    fn a_follow_up_feeds_only_what_is_new_and_encodes_nothing() {
        let (mut sequence, log) = sequence();
        sequence.add(pixels(7));
        let first = sequence.prefill(&prompt(&[1], &[2])).unwrap();
        assert_eq!((first.reused, first.encoded), (0, 1));
        sequence.step(3).unwrap();
        // The answer `3` and one more token, then the next question.
        let second = sequence.prefill(&prompt(&[1], &[2, 3, 4, 5])).unwrap();
        assert_eq!((second.reused, second.encoded), (6, 0));
        assert_eq!(second.logits, [1.0 + 1.5 + 2.0 + 3.0 + 4.0 + 5.0]);
        // A different question about the same image.
        sequence.add(pixels(7));
        let third = sequence.prefill(&prompt(&[1], &[9])).unwrap();
        assert_eq!((third.reused, third.encoded), (4, 0));
        assert_eq!(third.logits, [11.5]);
        // The same prompt again: the last position gives the logits.
        assert_eq!(sequence.prefill(&prompt(&[1], &[9])).unwrap().reused, 4);
        // Another beginning: the image moves but is not encoded again.
        let fifth = sequence.prefill(&prompt(&[8, 8], &[9])).unwrap();
        assert_eq!((fifth.reused, fifth.encoded), (0, 0));
        let log = log.lock().unwrap();
        assert_eq!(
            log[..4],
            [
                "encode",
                "feed [1.0, 0.5, 0.5, 0.5, 2.0]",
                "feed [3.0]",
                "feed [4.0, 5.0]"
            ]
        );
        assert_eq!(log.iter().filter(|entry| *entry == "encode").count(), 1);
    }

    #[test]
    fn prompts_that_cannot_be_fed() {
        let (mut sequence, _) = sequence();
        assert!(matches!(
            sequence.prefill(&Prompt::default()),
            Err(EngineError::EmptyPrompt)
        ));
        assert!(matches!(
            sequence.prefill(&prompt(&[1], &[2])),
            Err(EngineError::UnknownImage)
        ));
        sequence.add(pixels(7));
        let long = prompt(&[1; 5], &[2; 4]);
        assert!(matches!(
            sequence.prefill(&long),
            Err(EngineError::TooLong {
                found: 12,
                expected: 12
            })
        ));
        let fits = prompt(&[1; 4], &[2; 4]);
        sequence.prefill(&fits).unwrap();
        assert!(sequence.has_room());
        sequence.step(1).unwrap();
        assert!(!sequence.has_room());
        sequence.reset().unwrap();
        assert!(matches!(
            sequence.prefill(&prompt(&[1], &[2])),
            Err(EngineError::UnknownImage)
        ));
    }
}
