//! A tile of attention in float32: a few query rows against the packed keys and values of a head.

use crate::isa::{LANES, Lanes};
use crate::math::exp;
use crate::unroll::unroll;

/// Rows of the tallest tile.
pub(crate) const MOST_ROWS: usize = 12;

/// How many rows a tile should have.
pub(crate) fn tile_rows<V: Lanes>(head_dim: usize) -> usize {
    // What `Tile` is compiled for.
    const { assert!(matches!(V::ATTENTION_ROWS, [MOST_ROWS, 6] | [4, 4])) }
    V::ATTENTION_ROWS[usize::from(head_dim > 2 * LANES)]
}

/// `[count, d]` keys, `stride` apart, to panels `[ceil(count / 16), d, 16]`, zeros after the last.
///
/// # Safety
/// As [`Lanes`].
#[inline(always)]
pub(crate) unsafe fn pack_keys<V: Lanes>(
    from: &[f32],
    stride: usize,
    count: usize,
    d: usize,
    to: &mut [f32],
) {
    for (panel, to) in to
        .chunks_exact_mut(d * LANES)
        .enumerate()
        .take(count.div_ceil(LANES))
    {
        let first = panel * LANES;
        let live = LANES.min(count - first);
        let from = &from[first * stride..][..(live - 1) * stride + d];
        let mut done = 0;
        if live == LANES {
            for (part, to) in to.chunks_exact_mut(LANES * LANES).enumerate() {
                // SAFETY: sixteen numbers of each of sixteen keys, to a part as long.
                unsafe { turn::<V>(from.as_ptr().add(part * LANES), stride, to.as_mut_ptr()) };
                done += LANES;
            }
        } else {
            to.fill(0.0);
        }
        for key in 0..live {
            let from = &from[key * stride..][done..d];
            for (to, from) in to.chunks_exact_mut(LANES).skip(done).zip(from) {
                to[key] = *from;
            }
        }
    }
}

/// `[16, 16]` numbers, rows `stride` apart, to their columns, row by row: four times the first half of the
/// vectors is interleaved with the second.
///
/// # Safety
/// As [`Lanes`]; the numbers exist.
#[inline(always)]
unsafe fn turn<V: Lanes>(from: *const f32, stride: usize, to: *mut f32) {
    unsafe {
        let mut rows = [V::splat(0.0); LANES];
        for (i, row) in rows.iter_mut().enumerate() {
            *row = V::load(from.add(i * stride));
        }
        for _ in 0..LANES.ilog2() {
            let before = rows;
            for i in 0..LANES / 2 {
                [rows[2 * i], rows[2 * i + 1]] = before[i].interleave(before[i + LANES / 2]);
            }
        }
        for (i, row) in rows.into_iter().enumerate() {
            row.store(to.add(i * LANES));
        }
    }
}

/// `[count, d]` rows, `stride` apart, to `[count, d]` with d filled up with zeros to whole vectors.
pub(crate) fn pack_rows(from: &[f32], stride: usize, count: usize, d: usize, to: &mut [f32]) {
    for (row, to) in to
        .chunks_exact_mut(d.next_multiple_of(LANES))
        .enumerate()
        .take(count)
    {
        let (live, rest) = to.split_at_mut(d);
        live.copy_from_slice(&from[row * stride..][..d]);
        rest.fill(0.0);
    }
}

/// A few query rows against some keys.
///
/// Queries are kept component by component, `[d, 12]`, and scores panel by panel,
/// `[ceil(keys / 16), 12, 16]`, each with room for [`MOST_ROWS`] rows: so the numbers that one step of a sum
/// needs lie at fixed distances. Of the rows beyond `rows`, some are read and written, whatever is in them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Tile {
    /// Query rows, at most [`MOST_ROWS`].
    pub(crate) rows: usize,
    /// Length of a query, of a key and of a value, d.
    pub(crate) head_dim: usize,
    /// Number of keys.
    pub(crate) keys: usize,
}

/// From one panel of scores to the next.
pub(super) const PITCH: usize = MOST_ROWS * LANES;

impl Tile {
    /// The products of `queries` with the packed keys.
    ///
    /// # Safety
    /// As [`Lanes`].
    #[inline(always)]
    pub(crate) unsafe fn scores<V: Lanes>(&self, queries: &[f32], keys: &[f32], scores: &mut [f32]) {
        let panels = self.keys.div_ceil(LANES);
        assert!(
            self.rows <= MOST_ROWS && queries.len() >= MOST_ROWS * self.head_dim,
            "queries"
        );
        assert!(keys.len() >= panels * self.head_dim * LANES, "keys");
        assert!(scores.len() >= panels * PITCH, "scores");
        let (queries, keys, scores) = (queries.as_ptr(), keys.as_ptr(), scores.as_mut_ptr());
        // SAFETY: the lengths above.
        unsafe {
            macro_rules! panels {
                ($first:expr, $rows:literal, $most:literal) => {{
                    let queries = queries.add($first);
                    let scores = scores.add($first * LANES);
                    let mut panel = 0;
                    while panels - panel >= $most {
                        self.score_panels::<V, $rows, $most>(panel, queries, keys, scores);
                        panel += $most;
                    }
                    while panel < panels {
                        self.score_panels::<V, $rows, 1>(panel, queries, keys, scores);
                        panel += 1;
                    }
                }};
            }
            match (V::ATTENTION_ROWS, self.rows) {
                ([MOST_ROWS, _], 0..=6) => panels!(0, 6, 4),
                ([MOST_ROWS, _], 7..=8) => panels!(0, 8, 3),
                ([MOST_ROWS, _], _) => panels!(0, 12, 2),
                (_, rows) => {
                    for first in (0..rows).step_by(4) {
                        panels!(first, 4, 1);
                    }
                }
            }
        }
    }

    /// `R` rows against `N` panels of keys.
    #[inline(always)]
    unsafe fn score_panels<V: Lanes, const R: usize, const N: usize>(
        &self,
        panel: usize,
        queries: *const f32,
        keys: *const f32,
        scores: *mut f32,
    ) {
        unsafe {
            let d = self.head_dim;
            let mut acc = [[V::splat(0.0); N]; R];
            let mut from = keys.add(panel * d * LANES);
            let mut queries = queries;
            for _ in 0..d {
                let mut vectors = [V::splat(0.0); N];
                for (n, vector) in vectors.iter_mut().enumerate() {
                    *vector = V::load(from.add(n * d * LANES));
                }
                unroll!(I < R {
                    let query = V::splat(*queries.add(I));
                    for n in 0..N {
                        acc[I][n] = query.mul_add(vectors[n], acc[I][n]);
                    }
                });
                from = from.add(LANES);
                queries = queries.add(MOST_ROWS);
            }
            let to = scores.add(panel * PITCH);
            unroll!(I < R {
                for (n, value) in acc[I].iter().enumerate() {
                    value.store(to.add(n * PITCH + I * LANES));
                }
            });
        }
    }

    /// Softmax of a row without its division: the first `count` scores, plus `bias`, become
    /// `exp(score - max)`, the rest up to the tile's last panel zeros. Returns the maximum and the sum of the
    /// exponentials.
    ///
    /// # Safety
    /// As [`Lanes`].
    #[inline(always)]
    pub(crate) unsafe fn softmax<V: Lanes>(
        &self,
        scores: &mut [f32],
        row: usize,
        count: usize,
        bias: Option<&[f32]>,
    ) -> (f32, f32) {
        let panels = self.keys.div_ceil(LANES);
        assert!(row < MOST_ROWS && scores.len() >= panels * PITCH, "scores");
        assert!(0 < count && count <= self.keys, "keys");
        assert!(bias.is_none_or(|bias| bias.len() >= panels * LANES), "bias");
        let used = count.div_ceil(LANES);
        let live = count - (used - 1) * LANES;
        // SAFETY: the lengths above.
        unsafe {
            let start = scores.as_mut_ptr().add(row * LANES);
            for panel in used..panels {
                V::splat(0.0).store(start.add(panel * PITCH));
            }
            if let Some(bias) = bias {
                for panel in 0..used {
                    let at = start.add(panel * PITCH);
                    V::load(at)
                        .add(V::load(bias.as_ptr().add(panel * LANES)))
                        .store(at);
                }
            }
            let last = start.add((used - 1) * PITCH);
            for lane in live..LANES {
                last.add(lane).write(f32::MIN);
            }
            let mut largest = [V::load(last); 4];
            let mut panel = 0;
            while panel + 4 <= used {
                for (i, largest) in largest.iter_mut().enumerate() {
                    *largest = largest.max(V::load(start.add((panel + i) * PITCH)));
                }
                panel += 4;
            }
            let [a, b, c, d] = largest;
            let mut largest = a.max(b).max(c.max(d));
            while panel < used {
                largest = largest.max(V::load(start.add(panel * PITCH)));
                panel += 1;
            }
            let largest = largest.max_lane();
            let shift = V::splat(largest);
            let mut sum = V::splat(0.0);
            for panel in 0..used - 1 {
                let at = start.add(panel * PITCH);
                let e = exp(V::load(at).sub(shift));
                e.store(at);
                sum = sum.add(e);
            }
            exp(V::load(last).sub(shift)).store(last);
            for lane in live..LANES {
                last.add(lane).write(0.0);
            }
            (largest, sum.add(V::load(last)).sum())
        }
    }

    /// Sums of `values` `[keys, d]` (rows `width` apart, whole vectors) weighted by what [`Tile::softmax`]
    /// left, times each row's factor, to `row(0)`, `row(1)`, ..
    ///
    /// # Safety
    /// As [`Lanes`].
    #[inline(always)]
    pub(crate) unsafe fn weigh<'a, V: Lanes>(
        &self,
        weights: &[f32],
        values: &[f32],
        width: usize,
        factors: &[f32; MOST_ROWS],
        row: impl Fn(usize) -> &'a mut [f32],
    ) {
        let vectors = self.head_dim.div_ceil(LANES);
        assert!(
            self.rows <= MOST_ROWS && weights.len() >= self.keys.div_ceil(LANES) * PITCH,
            "weights"
        );
        assert!(width >= vectors * LANES, "whole vectors");
        assert!(values.len() >= self.keys * width, "values");
        // SAFETY: the lengths above.
        unsafe {
            macro_rules! columns {
                ($first:expr, $rows:literal, $most:literal) => {{
                    let mut vector = 0;
                    while vectors - vector >= $most {
                        self.weigh_vectors::<V, $rows, $most>(
                            $first, vector, weights, values, width, factors, &row,
                        );
                        vector += $most;
                    }
                    while vector < vectors {
                        self.weigh_vectors::<V, $rows, 1>(
                            $first, vector, weights, values, width, factors, &row,
                        );
                        vector += 1;
                    }
                }};
            }
            match (V::ATTENTION_ROWS, self.rows) {
                ([MOST_ROWS, _], 0..=6) => columns!(0, 6, 4),
                ([MOST_ROWS, _], 7..=8) => columns!(0, 8, 2),
                ([MOST_ROWS, _], _) => columns!(0, 12, 2),
                (_, rows) => {
                    for first in (0..rows).step_by(4) {
                        columns!(first, 4, 1);
                    }
                }
            }
        }
    }

    /// `R` rows of `N` vectors of the output.
    #[inline(always)]
    #[expect(
        clippy::too_many_arguments,
        reason = "of `weigh`, and which part of it: all of it stays in registers"
    )]
    unsafe fn weigh_vectors<'a, V: Lanes, const R: usize, const N: usize>(
        &self,
        first: usize,
        vector: usize,
        weights: &[f32],
        values: &[f32],
        width: usize,
        factors: &[f32; MOST_ROWS],
        row: &impl Fn(usize) -> &'a mut [f32],
    ) {
        unsafe {
            let mut weights = weights.as_ptr().add(first * LANES);
            let mut from = values.as_ptr().add(vector * LANES);
            let mut acc = [[V::splat(0.0); N]; R];
            let mut left = self.keys;
            while left > 0 {
                let here = left.min(LANES);
                for lane in 0..here {
                    let weights = weights.add(lane);
                    let mut vectors = [V::splat(0.0); N];
                    for (n, vector) in vectors.iter_mut().enumerate() {
                        *vector = V::load(from.add(n * LANES));
                    }
                    unroll!(I < R {
                        let weight = V::splat(*weights.add(I * LANES));
                        for n in 0..N {
                            acc[I][n] = weight.mul_add(vectors[n], acc[I][n]);
                        }
                    });
                    // Behind the last key nothing is read.
                    from = from.wrapping_add(width);
                }
                weights = weights.add(PITCH);
                left -= here;
            }
            let mut lanes = [[0.0; LANES]; N];
            unroll!(I < R {
                if first + I < self.rows {
                    let factor = V::splat(factors[first + I]);
                    let to = &mut row(first + I)[vector * LANES..];
                    for n in 0..N {
                        acc[I][n].mul(factor).store(lanes[n].as_mut_ptr());
                    }
                    let live = to.len().min(N * LANES);
                    to[..live].copy_from_slice(&lanes.as_flattened()[..live]);
                }
            });
        }
    }
}
