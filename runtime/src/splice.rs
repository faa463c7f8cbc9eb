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
