//! Self-attention in words of 16 bits, for sets that multiply and add pairs of them at once.

use super::Job;
use super::tile::{MOST_ROWS, PITCH, tile_rows};
use crate::isa::{LANES, Lanes, prefetch};
use crate::math::exp2_coarse;
use crate::norm::{load_part, store_part};
use crate::unroll::unroll;

/// The largest exponential, in words.
const WHOLE: f32 = 16384.0;
/// The largest value: 64 keys' products with exponentials fit 31 bits.
const VALUE: f32 = 2047.0;
/// Panels of keys whose products are added before they become float32.
const PANELS_TOGETHER: usize = 4;

/// Asks for the same numbers of a row some rows further on, which need not exist: rows lie pages apart.
#[inline(always)]
fn ahead(row: &[f32], width: usize) {
    for start in (0..row.len()).step_by(LANES) {
        prefetch(row.as_ptr().wrapping_add(MOST_ROWS * width + start));
    }
}

/// A row in words of at most `limit`, to `to`, whole vectors of them, zeros after the last. Returns what a word
/// stands for: NaN where the row has a number that is none.
///
/// # Safety
/// As [`Lanes`].
#[inline(always)]
unsafe fn to_words<V: Lanes>(row: &[f32], limit: f32, to: &mut [i16]) -> f32 {
    let vectors = row.len().div_ceil(LANES);
    assert!(to.len() >= vectors * LANES, "words of a row");
    // SAFETY: the length above.
    unsafe {
        let zero = V::splat(0.0);
        let (mut top, mut sum) = (zero, zero);
        for vector in 0..vectors {
            let value: V = load_part(row, vector * LANES);
            top = top.max_abs(value);
            sum = value.mul_add(zero, sum);
        }
        let (top, sum) = (top.max_lane(), sum.sum());
        let factor = V::splat(if top > 1e-30 { limit / top } else { 0.0 });
        for vector in 0..vectors {
            let value: V = load_part(row, vector * LANES);
            value.mul(factor).store_i16(to.as_mut_ptr().add(vector * LANES));
        }
        if top > 1e-30 { top / limit + sum } else { sum }
    }
}

/// [`super::one_part`] in words.
///
/// # Safety
/// As [`Lanes`]; slices as [`super::self_attention`] makes them.
#[inline(always)]
pub(super) unsafe fn one_part_in_words<V: Lanes>(
    job: &Job<'_>,
    task: usize,
    space: &mut [f32],
    words: &mut [i16],
) {
    let (tokens, heads, d) = (job.tokens, job.heads, job.head_dim);
    let parts = tokens.div_ceil(job.rows);
    let (part, head, image) = (task % parts, task / parts % heads, task / parts / heads);
    let padded = tokens.next_multiple_of(LANES);
    let (panels, pairs, wide) = (padded / LANES, d.div_ceil(2), d.next_multiple_of(LANES));
    let width = 3 * heads * d;
    // Products of two such numbers, over a head, fit 31 bits.
    let limit = (((i32::MAX as f32) / d as f32).sqrt().floor() - 1.0).min(32767.0);
    let (keys, words) = words.split_at_mut(2 * pairs * padded);
    let (queries, words) = words.split_at_mut(2 * pairs * MOST_ROWS);
    let (values, words) = words.split_at_mut(padded * wide);
    let (row_words, exponentials) = words.split_at_mut(wide);
    row_words.fill(0);
    let (key_scales, space) = space.split_at_mut(padded);
    let (value_scales, space) = space.split_at_mut(wide);
    let (value_factors, scores) = space.split_at_mut(wide);
    let input = &job.qkv[image * tokens * width..][..tokens * width];

    // Keys: `[panels, pairs, 16, 2]`.
    key_scales.fill(0.0);
    keys.fill(0);
    for (key, scale) in key_scales.iter_mut().enumerate().take(tokens) {
        let from = &input[key * width + (heads + head) * d..][..d];
        ahead(from, width);
        // SAFETY: the set is the caller's promise.
        *scale = unsafe { to_words::<V>(from, limit, row_words) };
        let to = &mut keys[key / LANES * 2 * pairs * LANES..][..2 * pairs * LANES];
        for (to, from) in to.chunks_exact_mut(2 * LANES).zip(row_words.chunks_exact(2)) {
            to[key % LANES * 2..][..2].copy_from_slice(from);
        }
    }
    // Values: `[padded / 2, wide, 2]`, a scale for each component.
    value_factors.fill(0.0);
    value_scales.fill(0.0);
    for token in 0..tokens {
        let from = &input[token * width + (2 * heads + head) * d..][..d];
        ahead(from, width);
        for ((top, sum), from) in value_factors.iter_mut().zip(value_scales.iter_mut()).zip(from) {
            *top = top.max(from.abs());
            *sum += from * 0.0;
        }
    }
    for (factor, scale) in value_factors.iter_mut().zip(value_scales.iter_mut()) {
        if *factor > 1e-30 {
            *scale += *factor / VALUE;
            *factor = VALUE / *factor;
        } else {
            *factor = 0.0;
        }
    }
    values.fill(0);
    for token in 0..tokens {
        let from = &input[token * width + (2 * heads + head) * d..][..d];
        let to = &mut values[token / 2 * 2 * wide..][..2 * wide];
        for start in (0..d).step_by(LANES) {
            // SAFETY: factors and words are whole vectors; the set is the caller's promise.
            unsafe {
                let value: V = load_part(from, start);
                let value = value.mul(V::load(value_factors.as_ptr().add(start)));
                value.store_i16(row_words.as_mut_ptr().add(start));
            }
        }
        for (to, from) in to.chunks_exact_mut(2).zip(&*row_words) {
            to[token % 2] = *from;
        }
    }
    // SAFETY: rows of `width` numbers, of which each head has `d` at its place; the parts of the scratch have
    // the lengths that the steps ask for; no other task writes these rows of this head.
    unsafe {
        let end = (part * job.rows + job.rows).min(tokens);
        let mut first = part * job.rows;
        while first < end {
            let count = word_rows::<V>(d).min(end - first);
            let mut row_scales = [0.0; MOST_ROWS];
            for (row, scale) in row_scales.iter_mut().enumerate().take(count) {
                let from = &input[(first + row) * width + head * d..][..d];
                ahead(from, width);
                // Exponentials are powers of two.
                *scale = to_words::<V>(from, limit, row_words) * job.scale * std::f32::consts::LOG2_E;
                let to = queries.chunks_exact_mut(2 * MOST_ROWS);
                for (to, from) in to.zip(row_words.chunks_exact(2)) {
                    to[2 * row..][..2].copy_from_slice(from);
                }
            }
            let tile = WordTile {
                rows: count,
                head_dim: d,
                keys: tokens,
            };
            let (keys, queries) = (keys.as_ptr(), queries.as_ptr());
            tile.scores::<V>(
                queries,
                &row_scales,
                keys,
                key_scales.as_ptr(),
                scores.as_mut_ptr(),
            );
            let mut factors = [0.0; MOST_ROWS];
            for (row, factor) in factors.iter_mut().enumerate().take(count) {
                let to = exponentials.as_mut_ptr().add(row * LANES);
                let sum = tile.exponentials::<V>(scores.as_mut_ptr().add(row * LANES), to);
                *factor = 1.0 / sum;
            }
            for row in (0..count).step_by(WORD_ROWS) {
                let weights = exponentials.as_ptr().add(row * LANES);
                let factors = &factors[row..];
                let start = ((image * tokens + first + row) * heads + head) * d;
                let rows = WORD_ROWS.min(count - row);
                let mut vector = 0;
                while vector * LANES < d {
                    let from = values.as_ptr().add(vector * 2 * LANES);
                    let scales = &value_scales[vector * LANES..];
                    macro_rules! columns {
                        ($most:literal) => {{
                            let sums =
                                weigh_words::<V, WORD_ROWS, $most>(weights, from, wide, panels, tokens);
                            for (i, sums) in sums.iter().enumerate().take(rows) {
                                let at = vector * LANES;
                                let live = ($most * LANES).min(d - at);
                                let to = job.out.part(start + i * heads * d + at, live);
                                for (n, sum) in sums.iter().enumerate() {
                                    let scale = V::load(scales.as_ptr().add(n * LANES));
                                    store_part(sum.mul(scale.mul(V::splat(factors[i]))), to, n * LANES);
                                }
                            }
                            vector += $most;
                        }};
                    }
                    if V::KEEPS_SUMS && d > (vector + 1) * LANES {
                        columns!(2);
                    } else {
                        columns!(1);
                    }
                }
            }
            first += count;
        }
    }
}

/// Rows whose weighted sums are in registers together.
const WORD_ROWS: usize = 6;

/// How many rows a tile in words should have.
fn word_rows<V: Lanes>(head_dim: usize) -> usize {
    if V::KEEPS_SUMS {
        tile_rows::<V>(head_dim)
    } else {
        WORD_ROWS
    }
}

/// [`super::Tile`] in words.
#[derive(Debug, Clone, Copy)]
struct WordTile {
    rows: usize,
    head_dim: usize,
    keys: usize,
}

impl WordTile {
    /// The products of `queries` `[pairs, 12, 2]` with the packed keys, times both scales.
    ///
    /// # Safety
    /// As [`Lanes`]; pointers to as many numbers as [`one_part_in_words`] has.
    #[inline(always)]
    unsafe fn scores<V: Lanes>(
        &self,
        queries: *const i16,
        row_scales: &[f32; MOST_ROWS],
        keys: *const i16,
        key_scales: *const f32,
        scores: *mut f32,
    ) {
        let panels = self.keys.div_ceil(LANES);
        // SAFETY: the caller's promise.
        unsafe {
            macro_rules! panels {
                ($rows:literal, $most:literal) => {{
                    let mut panel = 0;
                    while panels - panel >= $most {
                        self.panels::<V, $rows, $most>(panel, queries, row_scales, keys, key_scales, scores);
                        panel += $most;
                    }
                    while panel < panels {
                        self.panels::<V, $rows, 1>(panel, queries, row_scales, keys, key_scales, scores);
                        panel += 1;
                    }
                }};
            }
            if !V::KEEPS_SUMS {
                panels!(6, 1);
            } else if self.rows <= 6 {
                panels!(6, 4);
            } else {
                panels!(12, 2);
            }
        }
    }

    /// `R` rows against `N` panels of keys.
    ///
    /// # Safety
    /// As [`WordTile::scores`].
    #[inline(always)]
    unsafe fn panels<V: Lanes, const R: usize, const N: usize>(
        &self,
        panel: usize,
        queries: *const i16,
        row_scales: &[f32; MOST_ROWS],
        keys: *const i16,
        key_scales: *const f32,
        scores: *mut f32,
    ) {
        // SAFETY: the caller's promise.
        unsafe {
            let pairs = self.head_dim.div_ceil(2);
            let mut acc = [[V::int_splat(0); N]; R];
            let mut from = keys.add(panel * pairs * 2 * LANES).cast::<u8>();
            let mut queries = queries.cast::<[i8; 4]>();
            for _ in 0..pairs {
                let mut vectors = [V::bytes_splat([0; 4]); N];
                for (n, vector) in vectors.iter_mut().enumerate() {
                    *vector = V::bytes_load(from.add(n * pairs * 4 * LANES));
                }
                unroll!(I < R {
                    let query = V::bytes_splat(queries.add(I).read_unaligned());
                    for n in 0..N {
                        acc[I][n] = V::word_products(acc[I][n], query, vectors[n]);
                    }
                });
                from = from.add(4 * LANES);
                queries = queries.add(MOST_ROWS);
            }
            let to = scores.add(panel * PITCH);
            let mut scales = [V::splat(0.0); N];
            for (n, scale) in scales.iter_mut().enumerate() {
                *scale = V::load(key_scales.add((panel + n) * LANES));
            }
            unroll!(I < R {
                let row = V::splat(row_scales[I]);
                for n in 0..N {
                    let value = V::from_int(acc[I][n]).mul(scales[n].mul(row));
                    value.store(to.add(n * PITCH + I * LANES));
                }
            });
        }
    }

    /// One row's scores to powers of two, at most [`WHOLE`], in words; returns their sum.
    ///
    /// # Safety
    /// As [`WordTile::scores`]; both places are the row's.
    #[inline(always)]
    unsafe fn exponentials<V: Lanes>(&self, scores: *mut f32, to: *mut i16) -> f32 {
        // Panels whose steps do not wait for each other.
        const STEP: usize = 4;
        let panels = self.keys.div_ceil(LANES);
        let live = self.keys - (panels - 1) * LANES;
        // SAFETY: the caller's promise.
        unsafe {
            let last = scores.add((panels - 1) * PITCH);
            for lane in live..LANES {
                last.add(lane).write(f32::MIN);
            }
            let mut largest = [V::load(last); STEP];
            let mut panel = 0;
            while panel + STEP <= panels {
                for (i, largest) in largest.iter_mut().enumerate() {
                    *largest = largest.max(V::load(scores.add((panel + i) * PITCH)));
                }
                panel += STEP;
            }
            while panel < panels {
                largest[0] = largest[0].max(V::load(scores.add(panel * PITCH)));
                panel += 1;
            }
            let [a, b, c, d] = largest;
            let shift = V::splat(a.max(b).max(c.max(d)).max_lane());
            let whole = V::splat(WHOLE);
            let mut sums = [V::splat(0.0); STEP];
            let mut panel = 0;
            while panel + STEP <= panels {
                for (i, sum) in sums.iter_mut().enumerate() {
                    let at = (panel + i) * PITCH;
                    let e = exp2_coarse(V::load(scores.add(at)).sub(shift)).mul(whole);
                    e.store_i16(to.add(at));
                    *sum = sum.add(e);
                }
                panel += STEP;
            }
            while panel < panels {
                let at = panel * PITCH;
                let e = exp2_coarse(V::load(scores.add(at)).sub(shift)).mul(whole);
                e.store_i16(to.add(at));
                sums[0] = sums[0].add(e);
                panel += 1;
            }
            let [a, b, c, d] = sums;
            a.add(b).add(c.add(d)).sum()
        }
    }
}

/// Sums of `N` vectors of values `[padded / 2, wide, 2]`, weighted by words `[panels, 12, 16]`.
///
/// # Safety
/// As [`Lanes`]; pointers to as many numbers as that.
#[inline(always)]
unsafe fn weigh_words<V: Lanes, const R: usize, const N: usize>(
    weights: *const i16,
    values: *const i16,
    wide: usize,
    panels: usize,
    tokens: usize,
) -> [[V; N]; R] {
    // SAFETY: the caller's promise.
    unsafe {
        let mut sums = [[V::splat(0.0); N]; R];
        for first in (0..panels).step_by(PANELS_TOGETHER) {
            let mut acc = [[V::int_splat(0); N]; R];
            for panel in first..panels.min(first + PANELS_TOGETHER) {
                let weights = weights.add(panel * PITCH).cast::<[i8; 4]>();
                let pairs = (LANES / 2).min((tokens - panel * LANES).div_ceil(2));
                for pair in 0..pairs {
                    let from = values.add((panel * LANES / 2 + pair) * 2 * wide).cast::<u8>();
                    let mut vectors = [V::bytes_splat([0; 4]); N];
                    for (n, vector) in vectors.iter_mut().enumerate() {
                        *vector = V::bytes_load(from.add(n * 4 * LANES));
                    }
                    unroll!(I < R {
                        let weight = weights.add(I * LANES / 2 + pair).read_unaligned();
                        let weight = V::bytes_splat(weight);
                        for n in 0..N {
                            acc[I][n] = V::word_products(acc[I][n], weight, vectors[n]);
                        }
                    });
                }
            }
            unroll!(I < R {
                for n in 0..N {
                    sums[I][n] = sums[I][n].add(V::from_int(acc[I][n]));
                }
            });
        }
        sums
    }
}
