//! Decoder attention: causal, with rotary positions, grouped heads and a cache of keys and values.
//!
//! The cache grows where it lies, or what was in it is carried over to another place, one position longer.
//!
//! Two ways to the same numbers (up to rounding). For several new tokens: first the cache is carried over,
//! the new keys are rotated and all keys packed; then tiles of query rows against the keys they may see. For
//! one new token, where reading the cache is all there is to do: each task carries over some slots of one
//! head's cache and, while they are near, computes the share that they have in the outputs of all query
//! heads; the shares are added at the end. The slots of a task do not depend on the number of threads, and are
//! counted from the first one with a token: a sequence that is padded in front, to the length of others, has
//! the same bits as alone, and its padding is carried over but not computed with.

use super::isa::{Isa, LANES, Lanes, dispatch, prefetch};
use super::parallel::{Parallel, Shared, scratch};
use super::self_attention::{MOST_ROWS, Tile, pack_keys, pack_rows, tile_rows};
use super::sizes::{MOST, product};

/// Sizes of one call.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DecoderAttention {
    /// Sequences, B.
    pub batch: usize,
    /// New tokens of each, n.
    pub new: usize,
    /// Slots of the cache that are filled.
    pub past: usize,
    /// Slots that each head has in the cache that is written, at least `past + new`; what is behind those is left alone.
    pub slots: usize,
    /// Query heads, h.
    pub heads: usize,
    /// Key and value heads, k: query head `j` uses `j / (h / k)`.
    pub kv_heads: usize,
    /// Length of a head's vectors, d: even.
    pub head_dim: usize,
    /// What products of queries with keys are multiplied by: `1 / sqrt(d)`.
    pub scale: f32,
}

impl DecoderAttention {
    /// Slots after the call.
    pub fn total(&self) -> usize {
        self.past + self.new
    }

    /// Numbers in a row of the fused projection.
    fn width(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.head_dim
    }

    /// Query heads that share a key head.
    fn group(&self) -> usize {
        self.heads / self.kv_heads
    }
}

/// Slots carried over by one task before the attention of several tokens: whole panels.
const CARRY_SLOTS: usize = 32;

/// Slots of one task in the attention of one token: whole panels.
const SHARE_SLOTS: usize = 256;

/// Panels of sixteen keys that are asked for before they are packed.
const KEYS_AHEAD: usize = 2;

/// Query rows of one task: a multiple of every tile.
const TASK_ROWS: usize = 24;

/// What a call reads.
#[derive(Debug, Clone, Copy)]
pub struct Input<'a> {
    /// `[B, n, (h + 2k) * d]`: query heads, key heads, value heads, not yet rotated.
    pub qkv: &'a [f32],
    /// The cache so far, `past` slots of each head; `None` where they are in the cache that is written already.
    pub past: Option<Cache<'a>>,
    /// `[B, past + n]`: 1 for slots that hold a token. The query in slot `past + i` sees the slots up to its
    /// own whose mask is not 0. One that sees none gets the mean of all slots' values, as adding the lowest
    /// float32 to all scores gives.
    pub mask: &'a [i64],
    /// `[B, n]`
    pub positions: &'a [i64],
    /// `[d / 2]`: components `i` and `i + d / 2` are rotated by `position * inv_freq[i]`, a float32 product.
    pub inv_freq: &'a [f32],
}

/// Keys, rotated, and values.
#[derive(Debug, Clone, Copy)]
pub struct Cache<'a> {
    /// `[B, k, slots, d]`
    pub key: &'a [f32],
    /// `[B, k, slots, d]`
    pub value: &'a [f32],
}

/// A [`Cache`] to be written.
#[derive(Debug)]
pub struct CacheMut<'a> {
    /// `[B, k, slots, d]`
    pub key: &'a mut [f32],
    /// `[B, k, slots, d]`
    pub value: &'a mut [f32],
}

/// Attention of the new tokens to `out` `[B, n, h * d]`; the first slots of `present`, `[B, k, slots, d]`, become the
/// past, then the new: `past + n`.
///
/// # Panics
/// Slices of the wrong length, heads that do not divide: bugs of the caller.
pub fn decoder_attention(
    isa: Isa,
    parallel: &dyn Parallel,
    shape: &DecoderAttention,
    input: &Input<'_>,
    out: &mut [f32],
    present: CacheMut<'_>,
) {
    let DecoderAttention {
        batch,
        new,
        past,
        slots,
        heads,
        kv_heads,
        head_dim: d,
        ..
    } = *shape;
    assert!(
        kv_heads > 0 && heads.is_multiple_of(kv_heads),
        "query heads share key heads evenly"
    );
    assert!(d > 0 && d.is_multiple_of(2), "components are rotated in pairs");
    assert!(
        [new, past, slots, heads, kv_heads]
            .into_iter()
            .all(|size| size <= MOST),
        "sizes of no cache"
    );
    let (total, all_heads) = (shape.total(), heads + 2 * kv_heads);
    assert!(total <= slots, "no room for the new");
    assert_eq!(input.qkv.len(), product([batch, new, all_heads, d]), "input");
    assert_eq!(input.mask.len(), product([batch, total]), "mask");
    assert_eq!(input.positions.len(), product([batch, new]), "positions");
    assert_eq!(input.inv_freq.len(), d / 2, "frequencies");
    assert_eq!(out.len(), product([batch, new, heads, d]), "output");
    let (before, after) = (
        product([batch, kv_heads, past, d]),
        product([batch, kv_heads, slots, d]),
    );
    if let Some(Cache { key, value }) = input.past {
        assert_eq!((key.len(), value.len()), (before, before), "past");
    }
    assert_eq!(
        (present.key.len(), present.value.len()),
        (after, after),
        "present"
    );
    if batch * new == 0 {
        if let Some(Cache { key, value }) = input.past.filter(|_| past * d > 0) {
            for (from, to) in [(key, present.key), (value, present.value)] {
                for (from, to) in from.chunks_exact(past * d).zip(to.chunks_exact_mut(slots * d)) {
                    to[..past * d].copy_from_slice(from);
                }
            }
        }
        return;
    }
    let call = Call { shape, input };
    if new == 1 {
        one_token(isa, parallel, call, out, present);
    } else {
        some_tokens(isa, parallel, call, out, present);
    }
}

/// What is only read, of checked lengths.
#[derive(Clone, Copy)]
struct Call<'a> {
    shape: &'a DecoderAttention,
    input: &'a Input<'a>,
}

impl Call<'_> {
    /// The vector of a head (query heads, then key heads, then value heads) in row `row` of `[B * n]`.
    fn head(&self, row: usize, head: usize) -> &[f32] {
        let d = self.shape.head_dim;
        &self.input.qkv[row * self.shape.width() + head * d..][..d]
    }

    /// Cosines, then sines, of the angles of a row of `[B * n]`.
    fn angles(&self, row: usize, to: &mut [f32]) {
        let position = self.input.positions[row] as f32;
        let (cos, sin) = to.split_at_mut(self.input.inv_freq.len());
        for ((cos, sin), frequency) in cos.iter_mut().zip(sin).zip(self.input.inv_freq) {
            (*sin, *cos) = sin_cos(position * frequency);
        }
    }

    /// What is added to the scores of the slots of a sequence: 0, or the lowest float32 where there is no
    /// token. Returns whether there is any such slot.
    fn bias(&self, sequence: usize, slots: std::ops::Range<usize>, to: &mut [f32]) -> bool {
        let mask = &self.input.mask[sequence * self.shape.total()..][slots];
        for (to, mask) in to.iter_mut().zip(mask) {
            *to = if *mask == 0 { f32::MIN } else { 0.0 };
        }
        mask.contains(&0)
    }
    /// Slots of a sequence before the first with a token; none where no slot has one.
    fn padding(&self, sequence: usize) -> usize {
        let total = self.shape.total();
        let mask = &self.input.mask[sequence * total..][..total];
        mask.iter().position(|mask| *mask != 0).unwrap_or(0)
    }
}

/// Sine and cosine, errors below 1e-7 for magnitudes up to 2^30; the same on every processor, and free of
/// branches.
#[inline(always)]
fn sin_cos(angle: f32) -> (f32, f32) {
    /// Adding it leaves a whole number in the low bits.
    const MAGIC: f64 = 6_755_399_441_055_744.0;
    let x = f64::from(angle);
    let shifted = x * std::f64::consts::FRAC_2_PI + MAGIC;
    let quarter = shifted.to_bits();
    let r = x - (shifted - MAGIC) * std::f64::consts::FRAC_PI_2;
    let s = r * r;
    // Taylor: |r| <= pi / 4, so the first term left out is below 1e-11.
    let sin = r
        * (1.0
            + s * (-1.0 / 6.0
                + s * (1.0 / 120.0 + s * (-1.0 / 5040.0 + s * (1.0 / 362_880.0 - s / 39_916_800.0)))));
    let cos = 1.0
        + s * (-0.5
            + s * (1.0 / 24.0
                + s * (-1.0 / 720.0 + s * (1.0 / 40_320.0 + s * (-1.0 / 3_628_800.0 + s / 479_001_600.0)))));
    let (sin, cos) = if quarter & 1 == 0 { (sin, cos) } else { (cos, sin) };
    let sin = if quarter & 2 == 0 { sin } else { -sin };
    let cos = if (quarter + 1) & 2 == 0 { cos } else { -cos };
    (sin as f32, cos as f32)
}

/// Rotates the pairs `(i, i + d / 2)` of a head's vector and scales it; components go to every `step`th place
/// of `to`.
#[inline(always)]
fn rotate(from: &[f32], angles: &[f32], scale: f32, to: &mut [f32], step: usize) {
    let half = from.len() / 2;
    let (cos, sin) = angles.split_at(half);
    let (first, second) = from.split_at(half);
    let (to_first, to_second) = to.split_at_mut(half * step);
    for i in 0..half {
        to_first[i * step] = (first[i] * cos[i] - second[i] * sin[i]) * scale;
        to_second[i * step] = (second[i] * cos[i] + first[i] * sin[i]) * scale;
    }
}

/// The mean of `[slots, d]` values, rows `width` apart.
fn mean(values: &[f32], width: usize, to: &mut [f32]) {
    to.fill(0.0);
    let rows = values.chunks_exact(width);
    let factor = 1.0 / rows.len() as f32;
    for row in rows {
        for (to, value) in to.iter_mut().zip(row) {
            *to += value;
        }
    }
    to.iter_mut().for_each(|to| *to *= factor);
}

/// The attention of several new tokens.
fn some_tokens(isa: Isa, parallel: &dyn Parallel, call: Call<'_>, out: &mut [f32], present: CacheMut<'_>) {
    let shape = call.shape;
    let (batch, new, d, total) = (shape.batch, shape.new, shape.head_dim, shape.total());
    let padded = total.next_multiple_of(LANES);
    let wide = d.next_multiple_of(LANES);
    let head_count = batch * shape.kv_heads;
    // Values are used as they lie in the cache where they are whole vectors.
    let packed_values = if wide == d {
        0
    } else {
        product([head_count, total, wide])
    };
    let (packed_keys, all_angles) = (product([head_count, padded, d]), product([batch, new, d]));
    scratch(packed_keys + all_angles + packed_values, |space: &mut [f32]| {
        let (keys, space) = space.split_at_mut(packed_keys);
        let (angles, values) = space.split_at_mut(all_angles);
        let carry = Carry {
            call,
            present_key: Shared::new(present.key),
            present_value: Shared::new(present.value),
            keys: Shared::new(keys),
            angles: Shared::new(angles),
            values: Shared::new(values),
        };
        let carry = &carry;
        parallel.run(batch * total.div_ceil(CARRY_SLOTS), &|task| {
            dispatch!(isa, carry_over(carry: &Carry<'_>, task: usize));
        });
        let (values, value_slots): (&[f32], usize) = if wide == d {
            (present.value, shape.slots)
        } else {
            (values, total)
        };
        let shared = Shared::new(out);
        let attend = Attend {
            call,
            keys,
            angles,
            values,
            value_slots,
            out: &shared,
        };
        let attend = &attend;
        // The last rows see most: they go first, so that no thread is left with them.
        let tasks = batch * shape.heads * new.div_ceil(TASK_ROWS);
        parallel.run(tasks, &|task| {
            let task = tasks - 1 - task;
            let length = MOST_ROWS * (d + padded) + padded;
            scratch(length, |space: &mut [f32]| {
                dispatch!(isa, attend_rows(attend: &Attend<'_>, task: usize, space: &mut [f32]));
            });
        });
    });
}

/// Where [`carry_over`] writes.
struct Carry<'a> {
    call: Call<'a>,
    present_key: Shared<f32>,
    present_value: Shared<f32>,
    /// Packed, `[B, k, ceil(total / 16), d, 16]`.
    keys: Shared<f32>,
    /// `[B, n, d]`: cosines, then sines.
    angles: Shared<f32>,
    /// `[B, k, total, d]`, d filled up to whole vectors; empty where it is whole anyway.
    values: Shared<f32>,
}

/// Some slots of one sequence, in all its heads.
///
/// # Safety
/// As [`Lanes`].
#[inline(always)]
unsafe fn carry_over<V: Lanes>(carry: &Carry<'_>, task: usize) {
    let call = carry.call;
    let shape = call.shape;
    let (d, past, total) = (shape.head_dim, shape.past, shape.total());
    let padded = total.next_multiple_of(LANES);
    let wide = d.next_multiple_of(LANES);
    let parts = total.div_ceil(CARRY_SLOTS);
    let (sequence, first) = (task / parts, task % parts * CARRY_SLOTS);
    let slots = CARRY_SLOTS.min(total - first);
    let news = first.max(past)..(first + slots).max(past);
    // SAFETY: every task has its own slots, and its own rows of angles.
    unsafe {
        let row = sequence * shape.new + news.start - past;
        let angles = carry.angles.part(row * d, news.len() * d);
        for (i, angles) in angles.chunks_exact_mut(d).enumerate() {
            call.angles(row + i, angles);
        }
        for head in 0..shape.kv_heads {
            let at = sequence * shape.kv_heads + head;
            let start = (at * shape.slots + first) * d;
            let keys = carry.present_key.part(start, slots * d);
            let values = carry.present_value.part(start, slots * d);
            carry_slots(call, sequence, head, first, angles, keys, values);
            let panels = slots.div_ceil(LANES) * LANES * d;
            pack_keys::<V>(
                keys,
                d,
                slots,
                d,
                carry.keys.part((at * padded + first) * d, panels),
            );
            if wide != d {
                pack_rows(
                    values,
                    d,
                    slots,
                    d,
                    carry.values.part((at * total + first) * wide, slots * wide),
                );
            }
        }
    }
}

/// Fills `keys` and `values` `[slots, d]` of one head from slot `first` on: from the past, unless they have it, and,
/// rotated, the new.
#[inline(always)]
fn carry_slots(
    call: Call<'_>,
    sequence: usize,
    head: usize,
    first: usize,
    angles: &[f32],
    keys: &mut [f32],
    values: &mut [f32],
) {
    let shape = call.shape;
    let (d, past) = (shape.head_dim, shape.past);
    let at = ((sequence * shape.kv_heads + head) * past + first) * d;
    let old = past.saturating_sub(first).min(keys.len() / d) * d;
    let (old_keys, new_keys) = keys.split_at_mut(old);
    let (old_values, new_values) = values.split_at_mut(old);
    if let Some(Cache { key, value }) = call.input.past.filter(|_| old > 0) {
        old_keys.copy_from_slice(&key[at..at + old]);
        old_values.copy_from_slice(&value[at..at + old]);
    }
    let row = sequence * shape.new + (first + old / d) - past.min(first + old / d);
    let news = new_keys
        .chunks_exact_mut(d)
        .zip(new_values.chunks_exact_mut(d))
        .zip(angles.chunks_exact(d));
    for (i, ((key, value), angles)) in news.enumerate() {
        rotate(call.head(row + i, shape.heads + head), angles, 1.0, key, 1);
        value.copy_from_slice(call.head(row + i, shape.heads + shape.kv_heads + head));
    }
}

/// What [`attend_rows`] reads and writes.
struct Attend<'a> {
    call: Call<'a>,
    keys: &'a [f32],
    angles: &'a [f32],
    /// `[B, k, value_slots, d]`, d filled up to whole vectors.
    values: &'a [f32],
    value_slots: usize,
    out: &'a Shared<f32>,
}

/// Some query rows of one head.
///
/// # Safety
/// As [`Lanes`].
#[inline(always)]
unsafe fn attend_rows<V: Lanes>(attend: &Attend<'_>, task: usize, space: &mut [f32]) {
    let call = attend.call;
    let shape = call.shape;
    let (new, d, past, total) = (shape.new, shape.head_dim, shape.past, shape.total());
    let padded = total.next_multiple_of(LANES);
    let wide = d.next_multiple_of(LANES);
    // Heads change fastest, so that the rows that see most come together.
    let (head, rest) = (task % shape.heads, task / shape.heads);
    let (sequence, part) = (rest % shape.batch, rest / shape.batch);
    let at = sequence * shape.kv_heads + head / shape.group();
    let keys = &attend.keys[at * padded * d..][..padded * d];
    let values = &attend.values[at * attend.value_slots * wide..][..total * wide];
    let (queries, space) = space.split_at_mut(MOST_ROWS * d);
    let (bias, scores) = space.split_at_mut(padded);
    let masked = call.bias(sequence, 0..total, bias);
    let visible = bias
        .iter()
        .take(total)
        .position(|bias| *bias == 0.0)
        .unwrap_or(total);

    let end = (part * TASK_ROWS + TASK_ROWS).min(new);
    let mut first = part * TASK_ROWS;
    while first < end {
        let count = tile_rows::<V>(d).min(end - first);
        for row in 0..count {
            let to = &mut queries[row..];
            let row = sequence * new + first + row;
            rotate(
                call.head(row, head),
                &attend.angles[row * d..][..d],
                shape.scale,
                to,
                MOST_ROWS,
            );
        }
        let tile = Tile {
            rows: count,
            head_dim: d,
            keys: past + first + count,
        };
        let start = ((sequence * new + first) * shape.heads + head) * d;
        let row_length = shape.heads * d;
        // SAFETY: the scratch parts have the lengths that the steps ask for; no other task writes these rows
        // of this head.
        unsafe {
            tile.scores::<V>(queries, keys, scores);
            let mut factors = [0.0; MOST_ROWS];
            for (row, factor) in factors.iter_mut().enumerate().take(count) {
                let seen = past + first + row + 1;
                let (_, sum) = tile.softmax::<V>(scores, row, seen, masked.then_some(&*bias));
                *factor = 1.0 / sum;
            }
            tile.weigh::<V>(scores, values, wide, &factors, |row| {
                attend.out.part(start + row * row_length, d)
            });
            for row in 0..count {
                if past + first + row < visible {
                    mean(values, wide, attend.out.part(start + row * row_length, d));
                }
            }
        }
        first += count;
    }
}

/// The attention of one new token.
fn one_token(isa: Isa, parallel: &dyn Parallel, call: Call<'_>, out: &mut [f32], present: CacheMut<'_>) {
    let shape = call.shape;
    let (batch, d, total) = (shape.batch, shape.head_dim, shape.total());
    let parts = total.div_ceil(SHARE_SLOTS);
    let record = d + 2;
    let shares = product([batch, parts, shape.heads, record]);
    scratch(
        product([batch, shape.heads + 1, d]) + shares,
        |space: &mut [f32]| {
            let (angles, space) = space.split_at_mut(batch * d);
            let (queries, shares) = space.split_at_mut(batch * shape.heads * d);
            for (row, angles) in angles.chunks_exact_mut(d).enumerate() {
                call.angles(row, angles);
                let queries = &mut queries[row * shape.heads * d..][..shape.heads * d];
                for (head, to) in queries.chunks_exact_mut(d).enumerate() {
                    rotate(call.head(row, head), angles, shape.scale, to, 1);
                }
            }
            let job = OneToken {
                call,
                angles,
                queries,
                present_key: Shared::new(present.key),
                present_value: Shared::new(present.value),
                shares: Shared::new(shares),
            };
            let job = &job;
            parallel.run(batch * shape.kv_heads * parts, &|task| {
                let wide = d.next_multiple_of(LANES);
                let slots = SHARE_SLOTS.min(total.next_multiple_of(LANES));
                let length = MOST_ROWS * (d + slots) + slots * (d + wide + 1);
                scratch(length, |space: &mut [f32]| {
                    dispatch!(isa, one_share(job: &OneToken<'_>, task: usize, space: &mut [f32]));
                });
            });
            for (head, to) in out.chunks_exact_mut(d).enumerate() {
                add_shares(&shares[head * parts * record..][..parts * record], to);
            }
        },
    );
}

/// What [`one_share`] reads and writes.
struct OneToken<'a> {
    call: Call<'a>,
    /// `[B, d]`: cosines, then sines.
    angles: &'a [f32],
    /// `[B, h, d]`, rotated and scaled.
    queries: &'a [f32],
    present_key: Shared<f32>,
    present_value: Shared<f32>,
    /// `[B, h, parts, d + 2]`: the largest score, the sum of the exponentials relative to it, the sum of the
    /// values weighted by them.
    shares: Shared<f32>,
}

/// The share of some slots of one key head in the output of its query heads.
///
/// # Safety
/// As [`Lanes`].
#[inline(always)]
unsafe fn one_share<V: Lanes>(job: &OneToken<'_>, task: usize, space: &mut [f32]) {
    let call = job.call;
    let shape = call.shape;
    let (d, total) = (shape.head_dim, shape.total());
    let wide = d.next_multiple_of(LANES);
    let record = d + 2;
    let parts = total.div_ceil(SHARE_SLOTS);
    let (part, at) = (task % parts, task / parts);
    let (sequence, head) = (at / shape.kv_heads, at % shape.kv_heads);
    let padding = call.padding(sequence);
    let angles = &job.angles[sequence * d..][..d];
    let group = shape.group();
    if part == 0 && padding > 0 {
        // SAFETY: these slots of the head are the first task's own.
        unsafe {
            let keys = job.present_key.part(at * shape.slots * d, padding * d);
            let values = job.present_value.part(at * shape.slots * d, padding * d);
            carry_slots(call, sequence, head, 0, angles, keys, values);
        }
    }
    let first = padding + part * SHARE_SLOTS;
    if first >= total {
        for head in 0..group {
            let query_head = sequence * shape.heads + at % shape.kv_heads * group + head;
            // SAFETY: this share is this task's own.
            let share = unsafe { job.shares.part((query_head * parts + part) * record, record) };
            share.fill(0.0);
            share[0] = f32::MIN;
        }
        return;
    }
    let slots = SHARE_SLOTS.min(total - first);
    let padded = slots.next_multiple_of(LANES);
    let (queries, space) = space.split_at_mut(MOST_ROWS * d);
    let (scores, space) = space.split_at_mut(MOST_ROWS * padded);
    let (bias, space) = space.split_at_mut(padded);
    let (packed, space) = space.split_at_mut(padded * d);
    // SAFETY: every task has its own slots of one head, and its own share of the outputs; the scratch parts
    // have the lengths that the steps ask for.
    unsafe {
        let start = (at * shape.slots + first) * d;
        let keys = job.present_key.part(start, slots * d);
        let values = job.present_value.part(start, slots * d);
        carry_slots(call, sequence, head, first, angles, keys, values);
        // A cache that stays where it is lies in memory: what comes is asked for while keys are packed.
        let length = LANES * d;
        for (panel, to) in packed.chunks_exact_mut(length).enumerate() {
            ask(keys, (panel + KEYS_AHEAD) * length, length);
            ask(values, panel * length, length);
            let first = panel * LANES;
            pack_keys::<V>(&keys[first * d..], d, LANES.min(slots - first), d, to);
        }
        let values: &[f32] = if wide == d {
            values
        } else {
            pack_rows(values, d, slots, d, space);
            &space[..slots * wide]
        };
        let masked = call.bias(sequence, first..first + slots, bias);
        for row in (0..group).step_by(8) {
            let tile = Tile {
                rows: (group - row).min(8),
                head_dim: d,
                keys: slots,
            };
            let query_head = sequence * shape.heads + head * group + row;
            for (row, from) in job.queries[query_head * d..]
                .chunks_exact(d)
                .enumerate()
                .take(tile.rows)
            {
                queries[row..]
                    .iter_mut()
                    .step_by(MOST_ROWS)
                    .zip(from)
                    .for_each(|(to, from)| *to = *from);
            }
            tile.scores::<V>(queries, packed, scores);
            let share = |row: usize| {
                job.shares
                    .part(((query_head + row) * parts + part) * record, record)
            };
            for row in 0..tile.rows {
                let (largest, sum) = tile.softmax::<V>(scores, row, slots, masked.then_some(&*bias));
                share(row)[..2].copy_from_slice(&[largest, sum]);
            }
            tile.weigh::<V>(scores, values, wide, &[1.0; MOST_ROWS], |row| {
                &mut share(row)[2..]
            });
        }
    }
}

/// Asks for `length` numbers from `start` on, which need not exist.
#[inline(always)]
fn ask(numbers: &[f32], start: usize, length: usize) {
    for at in (start..start + length).step_by(LANES) {
        prefetch(numbers.as_ptr().wrapping_add(at));
    }
}

/// Adds the shares `[parts, 2 + d]` of one output.
fn add_shares(shares: &[f32], to: &mut [f32]) {
    let shares = shares.chunks_exact(to.len() + 2);
    let largest = shares
        .clone()
        .fold(f32::MIN, |largest, share| largest.max(share[0]));
    let mut sum = 0.0;
    to.fill(0.0);
    for share in shares {
        let weight = (share[0] - largest).exp();
        sum += weight * share[1];
        for (to, value) in to.iter_mut().zip(&share[2..]) {
            *to += weight * value;
        }
    }
    let factor = 1.0 / sum;
    to.iter_mut().for_each(|to| *to *= factor);
}

#[cfg(test)]
mod tests;
