//! How do text embeddings and image features become one sequence?

use crate::prompt::Span;
use ndarray::{Array2, ArrayView2, s};
use thiserror::Error;

/// Embeddings that do not fit the spans they are for.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum SpliceError {
    /// The embedded tokens are not as many as the spans hold.
    #[error("text embeddings of {rows} x {columns} for {tokens} tokens, expected {tokens} x {hidden}")]
    Text {
        /// Rows given.
        rows: usize,
        /// Their length.
        columns: usize,
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
    #[error("image {index} has features of {found} x {columns}, expected at least {rows} x {hidden}")]
    Features {
        /// The image among those given, from 0.
        index: usize,
        /// Rows given.
        found: usize,
        /// Their length.
        columns: usize,
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
    text: ArrayView2<'_, f32>,
    images: &[ArrayView2<'_, f32>],
    hidden: usize,
) -> Result<Array2<f32>, SpliceError> {
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
    let (rows, columns) = text.dim();
    if rows != tokens || (tokens > 0 && columns != hidden) {
        return Err(SpliceError::Text {
            rows,
            columns,
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
    let mut sequence = Array2::zeros((positions, hidden));
    let (mut at, mut token) = (0, 0);
    let mut images = images.iter().enumerate();
    for span in spans {
        let mut place = sequence.slice_mut(s![at..at + span.len(), ..]);
        at += span.len();
        match span {
            Span::Tokens(ids) => {
                place.assign(&text.slice(s![token..token + ids.len(), ..]));
                token += ids.len();
            }
            Span::Image { rows, .. } => {
                let Some((index, features)) = images.next() else {
                    return Err(SpliceError::Images {
                        found: images.len(),
                        expected,
                    });
                };
                let (found, columns) = features.dim();
                if rows.end > found || columns != hidden {
                    return Err(SpliceError::Features {
                        index,
                        found,
                        columns,
                        rows: rows.end,
                        hidden,
                    });
                }
                place.assign(&features.slice(s![rows.clone(), ..]));
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
            let images: Vec<ArrayView2<'_, f32>> = spans
                .iter()
                .filter_map(|span| {
                    if let Span::Image { id, .. } = span {
                        Some(id)
                    } else {
                        None
                    }
                })
                .map(|id| {
                    let values = &stored.iter().find(|(other, _)| other == id).unwrap().1;
                    ArrayView2::from_shape((values.len() / hidden, hidden), values).unwrap()
                })
                .collect();
            let text = ArrayView2::from_shape((text.len() / hidden, hidden), &text).unwrap();
            let found = splice(&spans, text, &images, hidden).unwrap();
            let expected = rows[skip.min(rows.len())..].concat();
            assert_eq!(found.dim(), (prompt.len().saturating_sub(skip), hidden));
            assert_eq!(found.into_flat().to_vec(), expected);
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
            text: (usize, usize),
            images: &'static [(usize, usize)],
            expected: &'static str,
        }
        let cases = [
            Case {
                text: (3, 1),
                images: &[(3, 2)],
                expected: "text embeddings of 3 x 1 for 2 tokens, expected 2 x 2",
            },
            Case {
                text: (3, 2),
                images: &[(3, 2)],
                expected: "text embeddings of 3 x 2 for 2 tokens, expected 2 x 2",
            },
            Case {
                text: (2, 2),
                images: &[],
                expected: "features of 0 images for 1 image spans",
            },
            Case {
                text: (2, 2),
                images: &[(3, 2), (3, 2)],
                expected: "features of 2 images for 1 image spans",
            },
            Case {
                text: (2, 2),
                images: &[(2, 2)],
                expected: "image 0 has features of 2 x 2, expected at least 3 x 2",
            },
            Case {
                text: (2, 2),
                images: &[(3, 3)],
                expected: "image 0 has features of 3 x 3, expected at least 3 x 2",
            },
        ];
        for case in cases {
            let images: Vec<Array2<f32>> = case.images.iter().map(|shape| Array2::zeros(*shape)).collect();
            let images: Vec<ArrayView2<'_, f32>> = images.iter().map(|image| image.view()).collect();
            let text = Array2::zeros(case.text);
            let error = splice(&spans, text.view(), &images, 2).unwrap_err();
            assert_eq!(error.to_string(), case.expected);
        }
        let none = Array2::zeros((0, 0));
        assert_eq!(splice(&[], none.view(), &[], 2), Ok(Array2::zeros((0, 2))));
    }
}
