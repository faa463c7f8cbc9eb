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

use super::isa::{Isa, LANES, Lanes, dispatch, prefetch};
use super::math::{exp, exp2_coarse};
use super::norm::{load_part, store_part};
use super::parallel::{Parallel, Shared, scratch};
use super::sizes::product;
use super::unroll::unroll;

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
        pack_keys(&input[(heads + head) * d..], width, tokens, d, keys);
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

/// [`one_part`] in words.
///
/// # Safety
/// As [`Lanes`]; slices as [`self_attention`] makes them.
#[inline(always)]
unsafe fn one_part_in_words<V: Lanes>(job: &Job<'_>, task: usize, space: &mut [f32], words: &mut [i16]) {
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

/// [`Tile`] in words.
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

/// Rows of the tallest tile.
pub(super) const MOST_ROWS: usize = 12;

/// How many rows a tile should have.
pub(super) fn tile_rows<V: Lanes>(head_dim: usize) -> usize {
    // What `Tile` is compiled for.
    const { assert!(matches!(V::ATTENTION_ROWS, [MOST_ROWS, 6] | [4, 4])) }
    V::ATTENTION_ROWS[usize::from(head_dim > 2 * LANES)]
}

/// `[count, d]` keys, `stride` apart, to panels `[ceil(count / 16), d, 16]`, zeros after the last.
pub(super) fn pack_keys(from: &[f32], stride: usize, count: usize, d: usize, to: &mut [f32]) {
    for (panel, to) in to
        .chunks_exact_mut(d * LANES)
        .enumerate()
        .take(count.div_ceil(LANES))
    {
        let first = panel * LANES;
        let live = LANES.min(count - first);
        if live < LANES {
            to.fill(0.0);
        }
        for key in 0..live {
            let from = &from[(first + key) * stride..][..d];
            for (to, from) in to.chunks_exact_mut(LANES).zip(from) {
                to[key] = *from;
            }
        }
    }
}

/// `[count, d]` rows, `stride` apart, to `[count, d]` with d filled up with zeros to whole vectors.
pub(super) fn pack_rows(from: &[f32], stride: usize, count: usize, d: usize, to: &mut [f32]) {
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
pub(super) struct Tile {
    /// Query rows, at most [`MOST_ROWS`].
    pub(super) rows: usize,
    /// Length of a query, of a key and of a value, d.
    pub(super) head_dim: usize,
    /// Number of keys.
    pub(super) keys: usize,
}

/// From one panel of scores to the next.
const PITCH: usize = MOST_ROWS * LANES;

impl Tile {
    /// The products of `queries` with the packed keys.
    ///
    /// # Safety
    /// As [`Lanes`].
    #[inline(always)]
    pub(super) unsafe fn scores<V: Lanes>(&self, queries: &[f32], keys: &[f32], scores: &mut [f32]) {
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
    pub(super) unsafe fn softmax<V: Lanes>(
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
    pub(super) unsafe fn weigh<'a, V: Lanes>(
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
                    from = from.add(width);
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
                let (mut error, mut norm) = (0.0, 0.0);
                for (found, expected) in out.iter().zip(&expected) {
                    error += (f64::from(*found) - expected).powi(2);
                    norm += expected.powi(2);
                }
                // Scores of magnitude 10 carry a rounding of 1e-6, which the exponential makes relative.
                let error = (error / norm).sqrt();
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
                let (mut error, mut norm) = (0.0, 0.0);
                for (found, expected) in out.iter().zip(&expected) {
                    error += (f64::from(*found) - expected).powi(2);
                    norm += expected.powi(2);
                }
                // Values are rounded to a 4095th of their range; scores of magnitude 10 carry d roundings of
                // a 5000th.
                let error = (error / norm).sqrt();
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
