//! Self-attention of the image encoder: every patch of an image looks at every other, without a mask.
//!
//! A task has one head of one image, or some query rows of it. It packs the head's keys into panels of
//! sixteen, so that the scores of sixteen keys are one vector, and its values into consecutive rows. Then,
//! for a tile of a few query rows at a time: scores to all keys, softmax, the weighted sum of the values. The
//! steps on a tile are shared with the decoder's attention.
//!
//! Where float32 is not asked for and the set is faster at it, the same in words of 16 bits: queries and keys
//! with a scale each, values with one for each component, exponentials as multiples of a 2^14th. Sums are
//! exact over the components of a head, and over 64 keys.

mod tile;
mod words;

use super::isa::{Isa, LANES, Lanes, dispatch};
use super::parallel::{Parallel, Shared, scratch};
use super::sizes::product;
pub(super) use tile::{MOST_ROWS, Tile, pack_keys, pack_rows, tile_rows};
use words::one_part_in_words;

/// Sizes of one call.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SelfAttention {
    /// Images, B.
    pub batch: usize,
    /// Tokens of each, N.
    pub tokens: usize,
    /// Heads.
    pub heads: usize,
    /// Length of a head's vectors, d.
    pub head_dim: usize,
    /// What products of queries with keys are multiplied by: `1 / sqrt(d)`.
    pub scale: f32,
    /// Whether sets that are faster so may compute in words of 16 bits: rounding then costs about 1e-3 of the
    /// result, a tenth of what activations in bytes do.
    pub words: bool,
}

/// `qkv` `[B, N, 3 * heads * d]` (queries, then keys, then values, head after head) to `out`
/// `[B, N, heads * d]`: softmax over all N keys of `scale` times the products of queries with keys, times the
/// values.
///
/// # Panics
/// Slices of the wrong length: a bug of the caller.
pub fn self_attention(
    isa: Isa,
    parallel: &dyn Parallel,
    shape: &SelfAttention,
    qkv: &[f32],
    out: &mut [f32],
) {
    let SelfAttention {
        batch,
        tokens,
        heads,
        head_dim,
        scale,
        words,
    } = *shape;
    assert_eq!(qkv.len(), product([batch, tokens, 3, heads, head_dim]), "input");
    assert_eq!(out.len(), product([batch, tokens, heads, head_dim]), "output");
    if out.is_empty() {
        return;
    }
    // Whole heads where there are enough for all threads; otherwise parts of at least some tiles.
    let parts = (3 * parallel.threads()).div_ceil(batch * heads);
    let rows = tokens
        .div_ceil(parts)
        .next_multiple_of(MOST_ROWS)
        .max(4 * MOST_ROWS);
    let parts = tokens.div_ceil(rows);
    let shared = Shared::new(out);
    let job = Job {
        tokens,
        heads,
        head_dim,
        scale,
        rows,
        qkv,
        out: &shared,
    };
    let job = &job;
    let padded = tokens.next_multiple_of(LANES);
    if words && dispatch!(isa, multiplies_words() -> bool) {
        let pairs = head_dim.div_ceil(2);
        let wide = head_dim.next_multiple_of(LANES);
        parallel.run(batch * heads * parts, &|task| {
            scratch(padded * (1 + MOST_ROWS) + 2 * wide, |space: &mut [f32]| {
                let length = 2 * pairs * (padded + MOST_ROWS) + padded * (wide + MOST_ROWS) + wide;
                scratch(length, |words: &mut [i16]| {
                    dispatch!(
                        isa,
                        one_part_in_words(
                            job: &Job<'_>, task: usize, space: &mut [f32], words: &mut [i16],
                        )
                    );
                });
            });
        });
        return;
    }
    parallel.run(batch * heads * parts, &|task| {
        let space = (padded + MOST_ROWS) * head_dim + tokens * head_dim.next_multiple_of(LANES);
        scratch(space + MOST_ROWS * padded, |space: &mut [f32]| {
            dispatch!(isa, one_part(job: &Job<'_>, task: usize, space: &mut [f32]));
        });
    });
}

/// Whether the set is faster at words.
///
/// # Safety
/// As [`Lanes`].
#[inline(always)]
unsafe fn multiplies_words<V: Lanes>() -> bool {
    V::WORD_PAIRS
}

/// What all tasks have in common.
struct Job<'a> {
    tokens: usize,
    heads: usize,
    head_dim: usize,
    scale: f32,
    /// Query rows of a task.
    rows: usize,
    qkv: &'a [f32],
    out: &'a Shared<f32>,
}

/// Some query rows of one head.
///
/// # Safety
/// As [`Lanes`]; slices as [`self_attention`] makes them.
#[inline(always)]
unsafe fn one_part<V: Lanes>(job: &Job<'_>, task: usize, space: &mut [f32]) {
    let (tokens, heads, d) = (job.tokens, job.heads, job.head_dim);
    let parts = tokens.div_ceil(job.rows);
    let (part, head, image) = (task % parts, task / parts % heads, task / parts / heads);
    let padded = tokens.next_multiple_of(LANES);
    let wide = d.next_multiple_of(LANES);
    let width = 3 * heads * d;
    let (keys, space) = space.split_at_mut(padded * d);
    let (values, space) = space.split_at_mut(tokens * wide);
    let (queries, scores) = space.split_at_mut(MOST_ROWS * d);
    let input = &job.qkv[image * tokens * width..][..tokens * width];
    // SAFETY: rows of `width` numbers, of which each head has `d` at its place; the scratch parts have the
    // lengths that the steps ask for; no other task writes these rows of this head.
    unsafe {
        pack_keys::<V>(&input[(heads + head) * d..], width, tokens, d, keys);
        pack_rows(&input[(2 * heads + head) * d..], width, tokens, d, values);
        let end = (part * job.rows + job.rows).min(tokens);
        let mut first = part * job.rows;
        while first < end {
            let count = tile_rows::<V>(d).min(end - first);
            for row in 0..count {
                let from = &input[(first + row) * width + head * d..][..d];
                for (to, from) in queries[row..].iter_mut().step_by(MOST_ROWS).zip(from) {
                    *to = from * job.scale;
                }
            }
            let tile = Tile {
                rows: count,
                head_dim: d,
                keys: tokens,
            };
            tile.scores::<V>(queries, keys, scores);
            let mut factors = [0.0; MOST_ROWS];
            for (row, factor) in factors.iter_mut().enumerate().take(count) {
                let (_, sum) = tile.softmax::<V>(scores, row, tokens, None);
                *factor = 1.0 / sum;
            }
            let start = ((image * tokens + first) * heads + head) * d;
            tile.weigh::<V>(scores, values, wide, &factors, |row| {
                job.out.part(start + row * heads * d, d)
            });
            first += count;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parallel::Serial;
    use crate::testing::{Backwards, noise};

    fn naive(batch: usize, tokens: usize, heads: usize, d: usize, scale: f32, qkv: &[f32]) -> Vec<f64> {
        let mut out = vec![0.0; batch * tokens * heads * d];
        let at = |image: usize, token: usize, kind: usize, head: usize, i: usize| {
            f64::from(qkv[(image * tokens + token) * 3 * heads * d + (kind * heads + head) * d + i])
        };
        for image in 0..batch {
            for query in 0..tokens {
                for head in 0..heads {
                    let scores: Vec<f64> = (0..tokens)
                        .map(|key| {
                            let dot = |i| at(image, query, 0, head, i) * at(image, key, 1, head, i);
                            (0..d).map(dot).sum::<f64>() * f64::from(scale)
                        })
                        .collect();
                    let largest = scores.iter().fold(f64::MIN, |a, b| a.max(*b));
                    let sum: f64 = scores.iter().map(|s| (s - largest).exp()).sum();
                    for i in 0..d {
                        let value =
                            |key: usize| (scores[key] - largest).exp() / sum * at(image, key, 2, head, i);
                        out[((image * tokens + query) * heads + head) * d + i] = (0..tokens).map(value).sum();
                    }
                }
            }
        }
        out
    }

    /// The length of the difference, as a share of that of what is expected.
    fn relative_l2(found: &[f32], expected: &[f64]) -> f64 {
        let (mut error, mut norm) = (0.0, 0.0);
        for (found, expected) in found.iter().zip(expected) {
            error += (f64::from(*found) - expected).powi(2);
            norm += expected.powi(2);
        }
        (error / norm).sqrt()
    }

    #[test]
    fn close_to_float64() {
        for (batch, tokens, heads, d) in [
            (1, 1, 2, 8),
            (2, 7, 3, 32),
            (1, 33, 2, 40),
            (1, 64, 1, 64),
            (2, 130, 1, 16),
            (1, 37, 1, 128),
        ] {
            let qkv: Vec<f32> = noise(batch * tokens * 3 * heads * d, 5)
                .iter()
                .map(|x| x * 3.0)
                .collect();
            let scale = 1.0 / (d as f32).sqrt();
            let expected = naive(batch, tokens, heads, d, scale, &qkv);
            for isa in Isa::available() {
                let mut out = vec![f32::NAN; expected.len()];
                let shape = SelfAttention {
                    batch,
                    tokens,
                    heads,
                    head_dim: d,
                    scale,
                    words: false,
                };
                self_attention(isa, &Serial, &shape, &qkv, &mut out);
                // Scores of magnitude 10 carry a rounding of 1e-6, which the exponential makes relative.
                let error = relative_l2(&out, &expected);
                assert!(
                    error < 3e-6,
                    "{} {tokens} tokens, {heads} heads of {d}: {error}",
                    isa.name()
                );
                let mut again = vec![f32::NAN; expected.len()];
                self_attention(isa, &Backwards(64), &shape, &qkv, &mut again);
                assert!(out == again, "other tasks, other bits");

                let shape = SelfAttention { words: true, ..shape };
                out.fill(f32::NAN);
                self_attention(isa, &Serial, &shape, &qkv, &mut out);
                // Values are rounded to a 4095th of their range; scores of magnitude 10 carry d roundings of
                // a 5000th.
                let error = relative_l2(&out, &expected);
                assert!(
                    error < 2e-3,
                    "{} words, {tokens} tokens, {heads} heads of {d}: {error}",
                    isa.name()
                );
                self_attention(isa, &Backwards(64), &shape, &qkv, &mut again);
                assert!(out == again, "other tasks, other bits");
            }
        }
    }
}
