//! How do text embeddings and image features become one sequence?

use crate::prompt::Span;
use thiserror::Error;

/// Embeddings that do not fit the spans they are for.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum SpliceError {
    /// The embedded tokens are not as many as the spans hold.
    #[error("{found} text embedding values for {tokens} tokens, expected {tokens} x {hidden}")]
    Text {
        /// Values given.
        found: usize,
        /// Tokens in the spans.
        tokens: usize,
        /// Length of one embedding.
        hidden: usize,
    },
    /// There are not as many images as image spans.
    #[error("features of {found} images for {expected} image spans")]
    Images {
        /// Images given.
        found: usize,
        /// Image spans.
        expected: usize,
    },
    /// An image has not as many features as its positions need.
    #[error("image {index} has {found} feature values, expected at least {rows} x {hidden}")]
    Features {
        /// The image among those given, from 0.
        index: usize,
        /// Values given.
        found: usize,
        /// Rows needed.
        rows: usize,
        /// Length of one row.
        hidden: usize,
    },
}

/// One sequence `[positions, hidden]` for `spans`, in their order.
///
/// - `text`: `[tokens, hidden]`, the embeddings of all text spans' ids one after another
///   ([`token_ids`](crate::prompt::token_ids)).
/// - `images`: for each image span, in order, **all** features of its image `[image tokens, hidden]`; the span says
///   which rows are wanted.
pub fn splice(
    spans: &[Span<'_>],
    text: &[f32],
    images: &[&[f32]],
    hidden: usize,
) -> Result<Vec<f32>, SpliceError> {
    let tokens: usize = spans
        .iter()
        .map(|span| {
            if let Span::Tokens(ids) = span {
                ids.len()
            } else {
                0
            }
        })
        .sum();
    if Some(text.len()) != tokens.checked_mul(hidden) {
        return Err(SpliceError::Text {
            found: text.len(),
            tokens,
            hidden,
        });
    }
    let expected = spans
        .iter()
        .filter(|span| matches!(span, Span::Image { .. }))
        .count();
    if images.len() != expected {
        return Err(SpliceError::Images {
            found: images.len(),
            expected,
        });
    }
    let positions: usize = spans.iter().map(Span::len).sum();
    let mut sequence = Vec::with_capacity(positions.saturating_mul(hidden));
    let mut text = text;
    let mut images = images.iter().enumerate();
    for span in spans {
        match span {
            Span::Tokens(ids) => {
                let (rows, rest) = text.split_at(ids.len() * hidden);
                sequence.extend_from_slice(rows);
                text = rest;
            }
            Span::Image { rows, .. } => {
                let Some((index, features)) = images.next() else {
                    return Err(SpliceError::Images {
                        found: images.len(),
                        expected,
                    });
                };
                let wanted = rows.start.saturating_mul(hidden)..rows.end.saturating_mul(hidden);
                let rows = features.get(wanted).ok_or(SpliceError::Features {
                    index,
                    found: features.len(),
                    rows: rows.end,
                    hidden,
                })?;
                sequence.extend_from_slice(rows);
            }
        }
    }
    Ok(sequence)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::ImageId;
    use crate::prompt::{Piece, Prompt};

    /// Numbers without a library: which, below `bound`.
    struct Random(u64);

    impl Random {
        fn below(&mut self, bound: usize) -> usize {
            self.0 = self
                .0
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            usize::try_from(self.0 >> 33).unwrap() % bound
        }
    }

    /// Every position has its row, in order, wherever the KV cache ends, with any number of images.
    #[test]
    fn positions_keep_their_order_and_their_rows() {
        let mut random = Random(20_261_124);
        for _ in 0..500 {
            let hidden = 1 + random.below(4);
            let mut pieces = Vec::new();
            let mut rows = Vec::new();
            let mut stored = Vec::new();
            for piece in 0..random.below(8) {
                let length = random.below(5);
                let row = |at: usize| vec![f32::from(u16::try_from(piece * 100 + at).unwrap()); hidden];
                rows.extend((0..length).map(row));
                let values: Vec<f32> = (0..length).flat_map(row).collect();
                if random.below(2) == 0 {
                    let ids = (0..length)
                        .map(|at| i64::try_from(piece * 100 + at).unwrap())
                        .collect();
                    pieces.push(Piece::Tokens(ids));
                } else {
                    let id = ImageId(u64::try_from(piece).unwrap());
                    pieces.push(Piece::Image { id, tokens: length });
                    stored.push((id, values));
                }
            }
            let prompt = Prompt::new(pieces);
            let skip = random.below(prompt.len() + 2);
            let spans = prompt.spans(skip);
            let text: Vec<f32> = crate::prompt::token_ids(&spans)
                .into_iter()
                .flat_map(|id| vec![f32::from(u16::try_from(id).unwrap()); hidden])
                .collect();
            let images: Vec<&[f32]> = spans
                .iter()
                .filter_map(|span| {
                    if let Span::Image { id, .. } = span {
                        Some(id)
                    } else {
                        None
                    }
                })
                .map(|id| stored.iter().find(|(other, _)| other == id).unwrap().1.as_slice())
                .collect();
            let found = splice(&spans, &text, &images, hidden).unwrap();
            assert_eq!(found.len(), prompt.len().saturating_sub(skip) * hidden);
            assert_eq!(found, rows[skip.min(rows.len())..].concat());
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let spans = [
            Span::Tokens(&[1, 2]),
            Span::Image {
                id: ImageId(1),
                rows: 1..3,
            },
        ];
        struct Case {
            text: usize,
            images: &'static [usize],
            expected: &'static str,
        }
        let cases = [
            Case {
                text: 3,
                images: &[6],
                expected: "3 text embedding values for 2 tokens, expected 2 x 2",
            },
            Case {
                text: 6,
                images: &[6],
                expected: "6 text embedding values for 2 tokens, expected 2 x 2",
            },
            Case {
                text: 4,
                images: &[],
                expected: "features of 0 images for 1 image spans",
            },
            Case {
                text: 4,
                images: &[6, 6],
                expected: "features of 2 images for 1 image spans",
            },
            Case {
                text: 4,
                images: &[5],
                expected: "image 0 has 5 feature values, expected at least 3 x 2",
            },
        ];
        let zeros = [0.0; 8];
        for case in cases {
            let images: Vec<&[f32]> = case.images.iter().map(|&length| &zeros[..length]).collect();
            let error = splice(&spans, &zeros[..case.text], &images, 2).unwrap_err();
            assert_eq!(error.to_string(), case.expected);
        }
        assert_eq!(splice(&[], &[], &[], 2), Ok(Vec::new()));
    }
}
