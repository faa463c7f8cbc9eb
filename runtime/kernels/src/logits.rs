//! Logits: the product of few rows with the embedding table, which is bound by reading the table: it is read
//! once, some entries at a time for all rows.
//!
//! The table lies row by row, so that a token's embedding is one run of memory: each logit is a sum of
//! products of two runs.

#![expect(
    clippy::needless_range_loop,
    reason = "chains of sums are registers: all arrays by the same index"
)]

use super::isa::{Isa, LANES, Lanes, dispatch};
use super::norm::{Norm, load_part};
use super::parallel::{Parallel, Serial, Shared, scratch};
use super::planes::{Planes, plane_logits};
use super::quantise::{BLOCK, Quantised, Rows, Wanted, with_rows};
use super::sizes::product;
use std::ops::Range;

/// An embedding table `[V, K]`, row by row.
#[derive(Debug, Clone, Copy)]
pub enum Table<'a> {
    /// `[V, K]`
    Float32(&'a [f32]),
    /// One scale per row.
    Int8 {
        /// `[V, K]`, value + 128
        bytes: &'a [u8],
        /// `[V]`: `w = scale * (byte - 128)`
        scales: &'a [f32],
    },
    /// The same bytes in two planes.
    Planes(Planes<'a>),
}

/// Bytes that a vector of [`Lanes::dot_bytes`] takes.
const SEGMENT: usize = 4 * LANES;
/// Rows of the table that are multiplied at once.
const ROWS: usize = 4;
/// Bytes of the table that stay in a first cache while all rows are multiplied with them.
const NEAR: usize = 16 << 10;

/// The parts of some entries, of `size` bytes each, that all rows are multiplied with one after the other:
/// whole numbers of [`ROWS`], and all at once for a single row.
pub(super) fn near(entries: Range<usize>, size: usize, rows: usize) -> impl Iterator<Item = Range<usize>> {
    let step = match rows {
        1 => entries.len().max(1),
        _ => (NEAR / size.max(1)).next_multiple_of(ROWS).max(ROWS),
    };
    let end = entries.end;
    entries
        .step_by(step)
        .map(move |start| start..end.min(start + step))
}

impl Table<'_> {
    /// Writes a row; `None` if there is no such row.
    pub fn row(&self, entry: usize, out: &mut [f32]) -> Option<()> {
        let width = out.len();
        let place = || Some(entry.checked_mul(width)?..entry.checked_add(1)?.checked_mul(width)?);
        match self {
            Table::Float32(values) => out.copy_from_slice(values.get(place()?)?),
            Table::Int8 { bytes, scales } => {
                let (bytes, scale) = (bytes.get(place()?)?, scales.get(entry)?);
                for (out, byte) in out.iter_mut().zip(bytes) {
                    *out = scale * (f32::from(*byte) - 128.0);
                }
            }
            Table::Planes(planes) => return planes.row(entry, out),
        }
        Some(())
    }

    /// That the table has as many rows of this length.
    fn check(&self, entries: usize, inputs: usize) {
        let elements = match self {
            Table::Float32(values) => values.len(),
            Table::Int8 { bytes, scales } => {
                assert_eq!(scales.len(), entries, "the table has not one scale per entry");
                bytes.len()
            }
            Table::Planes(planes) => return planes.check(entries, inputs),
        };
        assert_eq!(
            elements,
            product([entries, inputs]),
            "the table is not whole rows"
        );
    }
}

/// `out = x table^T` for `x` `[M, K]` and `out` `[M, V]`, where `K` is `inputs` and `V` is `entries`.
///
/// # Panics
/// Lengths that do not fit each other.
pub fn logits(
    isa: Isa,
    parallel: &dyn Parallel,
    x: &[f32],
    inputs: usize,
    table: Table<'_>,
    entries: usize,
    out: &mut [f32],
) {
    assert!(entries > 0, "a table without entries");
    assert!(inputs > 0, "a table without numbers");
    table.check(entries, inputs);
    let rows = x.len() / inputs;
    assert_eq!(x.len(), rows * inputs, "x is not whole rows");
    assert_eq!(
        out.len(),
        product([rows, entries]),
        "out has not the product's shape"
    );
    let out = Shared::new(out);
    // Several tasks a thread, of whole vectors.
    let length = entries
        .div_ceil(8 * parallel.threads())
        .max(65_536_usize.div_ceil(inputs))
        .next_multiple_of(LANES);
    let tasks = entries.div_ceil(length);
    let task_entries = |task: usize| task * length..entries.min((task + 1) * length);
    match table {
        Table::Float32(values) => parallel.run(tasks, &|task| {
            for Range { start, end } in near(task_entries(task), 4 * inputs, rows) {
                let values = values.get(start * inputs..end * inputs).unwrap_or(&[]);
                for (row, x) in x.chunks_exact(inputs).enumerate() {
                    // SAFETY: these entries are this task's own.
                    let to = unsafe { out.part(row * entries + start, end - start) };
                    dispatch!(isa, float_entries(x: &[f32], values: &[f32], to: &mut [f32]));
                }
            }
        }),
        Table::Int8 { bytes, scales } => {
            with_rows(isa, &Serial, x, inputs, &Norm::None, Wanted::BYTES, |prepared| {
                let Rows::Bytes(quantised) = prepared else { return };
                scratch(
                    product([rows, quantised.blocks, LANES]),
                    |corrections: &mut [i32]| {
                        lane_corrections(quantised, corrections);
                        let corrections = &*corrections;
                        parallel.run(tasks, &|task| {
                            for Range { start, end } in near(task_entries(task), inputs, rows) {
                                let bytes = bytes.get(start * inputs..end * inputs).unwrap_or(&[]);
                                let scales = scales.get(start..end).unwrap_or(&[]);
                                for row in 0..rows {
                                    // SAFETY: these entries are this task's own.
                                    let to = unsafe { out.part(row * entries + start, end - start) };
                                    let at = row * quantised.blocks * LANES;
                                    let corrections = corrections.get(at..).unwrap_or(&[]);
                                    dispatch!(isa, byte_entries(
                                        quantised: &Quantised<'_>, row: usize, corrections: &[i32],
                                        bytes: &[u8], scales: &[f32], to: &mut [f32],
                                    ));
                                }
                            }
                        });
                    },
                );
            });
        }
        Table::Planes(planes) => {
            with_rows(isa, &Serial, x, inputs, &Norm::None, Wanted::BYTES, |prepared| {
                let Rows::Bytes(quantised) = prepared else { return };
                plane_logits(isa, parallel, quantised, rows, &planes, [entries, length], &out);
            });
        }
    }
}

/// `[rows, blocks, 16]`: -128 times the sums of a block's bytes, each in the lane that multiplies them.
fn lane_corrections(rows: &Quantised<'_>, to: &mut [i32]) {
    to.fill(0);
    for (bytes, to) in rows
        .bytes
        .chunks_exact(rows.stride)
        .zip(to.chunks_exact_mut(rows.blocks * LANES))
    {
        for (bytes, to) in bytes.chunks_exact(BLOCK).zip(to.chunks_exact_mut(LANES)) {
            for segment in bytes.chunks_exact(SEGMENT) {
                for (four, to) in segment.chunks_exact(4).zip(to.iter_mut()) {
                    *to -= 128 * four.iter().map(|byte| i32::from(*byte)).sum::<i32>();
                }
            }
        }
    }
}

/// # Safety
/// As [`Lanes`].
#[inline(always)]
unsafe fn float_entries<V: Lanes>(x: &[f32], values: &[f32], to: &mut [f32]) {
    const CHAINS: usize = 4;
    for (entry, to) in values.chunks_exact(x.len()).zip(to) {
        // SAFETY: whole vectors lie inside `x`, and `entry` is as long.
        unsafe {
            let (x_at, entry_at) = (x.as_ptr(), entry.as_ptr());
            let mut acc = [V::splat(0.0); CHAINS];
            let mut k = 0;
            while k + CHAINS * LANES <= x.len() {
                for chain in 0..CHAINS {
                    let at = k + chain * LANES;
                    acc[chain] = V::load(entry_at.add(at)).mul_add(V::load(x_at.add(at)), acc[chain]);
                }
                k += CHAINS * LANES;
            }
            while k < x.len() {
                acc[0] = load_part::<V>(entry, k).mul_add(load_part(x, k), acc[0]);
                k += LANES;
            }
            *to = acc[0].add(acc[1]).add(acc[2].add(acc[3])).sum();
        }
    }
}

/// # Safety
/// As [`Lanes`].
#[inline(always)]
unsafe fn byte_entries<V: Lanes>(
    rows: &Quantised<'_>,
    row: usize,
    corrections: &[i32],
    bytes: &[u8],
    scales: &[f32],
    to: &mut [f32],
) {
    let inputs = rows.inputs;
    let whole = to.len() / ROWS * ROWS;
    // SAFETY: the table has as many entries as `to`, each of `inputs` bytes; `rows` has the row, with whole
    // segments.
    unsafe {
        let a = rows.bytes.as_ptr().add(row * rows.stride);
        let a_scales = rows.scales.as_ptr().add(row * rows.blocks);
        let mut entry = 0;
        while entry < whole {
            let from = bytes.as_ptr().add(entry * inputs);
            let sums = entries::<V, ROWS>(a, a_scales, corrections.as_ptr(), from, inputs);
            for (i, sum) in sums.into_iter().enumerate() {
                *to.as_mut_ptr().add(entry + i) = sum * *scales.as_ptr().add(entry + i);
            }
            entry += ROWS;
        }
        while entry < to.len() {
            let from = bytes.as_ptr().add(entry * inputs);
            let [sum] = entries::<V, 1>(a, a_scales, corrections.as_ptr(), from, inputs);
            *to.as_mut_ptr().add(entry) = sum * *scales.as_ptr().add(entry);
            entry += 1;
        }
    }
}

/// The products of a row with `COUNT` entries, without the entries' scales.
///
/// # Safety
/// As [`Lanes`]; there are `COUNT * inputs` bytes of the table.
#[inline(always)]
unsafe fn entries<V: Lanes, const COUNT: usize>(
    a: *const i8,
    a_scales: *const f32,
    corrections: *const i32,
    from: *const u8,
    inputs: usize,
) -> [f32; COUNT] {
    unsafe {
        let mut sums = [V::splat(0.0); COUNT];
        for block in 0..inputs.div_ceil(BLOCK) {
            let start = block * BLOCK;
            let start_from = if V::SIGNED {
                V::int_splat(0)
            } else {
                V::int_load(corrections.add(block * LANES))
            };
            let mut acc = [start_from; COUNT];
            if start + BLOCK <= inputs {
                for at in [start, start + SEGMENT] {
                    for i in 0..COUNT {
                        acc[i] = V::dot_bytes(acc[i], from.add(i * inputs + at), a.add(at));
                    }
                }
            } else {
                for at in (start..inputs).step_by(SEGMENT) {
                    for i in 0..COUNT {
                        // What follows the last entry may not be read.
                        let mut segment = [0_u8; SEGMENT];
                        let length = SEGMENT.min(inputs - at);
                        std::ptr::copy_nonoverlapping(
                            from.add(i * inputs + at),
                            segment.as_mut_ptr(),
                            length,
                        );
                        acc[i] = V::dot_bytes(acc[i], segment.as_ptr(), a.add(at));
                    }
                }
            }
            let scale = V::splat(*a_scales.add(block));
            for i in 0..COUNT {
                sums[i] = V::from_int(acc[i]).mul_add(scale, sums[i]);
            }
        }
        let mut out = [0.0; COUNT];
        for i in 0..COUNT {
            out[i] = sums[i].sum();
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Backwards, noise};

    #[test]
    fn agrees_with_float64() {
        for (rows, inputs, entries) in [
            (1, 5, 3),
            (1, 128, 40),
            (1, 896, 101),
            (2, 200, 33),
            (8, 896, 300),
            (1, 64, 5000),
        ] {
            let x = noise(rows * inputs, 1);
            let values = noise(entries * inputs, 2);
            let scales: Vec<f32> = noise(entries, 3).iter().map(|x| x + 1.1).collect();
            let bytes: Vec<u8> = values
                .iter()
                .map(|x| (x * 127.0).round() as i32 as u8 ^ 0x80)
                .collect();
            let rounded: Vec<f32> = (0..values.len())
                .map(|i| scales[i / inputs] * (f32::from(bytes[i]) - 128.0))
                .collect();
            let scales = scales.as_slice();
            let tables = [
                (Table::Float32(&values), &values, 0.0),
                (
                    Table::Int8 {
                        bytes: &bytes,
                        scales,
                    },
                    &rounded,
                    0.501 / 127.0,
                ),
            ];
            for (table, w, step) in tables {
                for isa in Isa::available() {
                    for threads in [1, 16] {
                        let mut out = vec![f32::NAN; rows * entries];
                        logits(isa, &Backwards(threads), &x, inputs, table, entries, &mut out);
                        for (i, found) in out.iter().enumerate() {
                            let x = &x[i / entries * inputs..][..inputs];
                            let w = &w[i % entries * inputs..][..inputs];
                            let pairs = || x.iter().zip(w).map(|(x, w)| (f64::from(*x), f64::from(*w)));
                            let expected: f64 = pairs().map(|(x, w)| x * w).sum();
                            // Magnitudes are at most 1.
                            let bound: f64 = pairs().map(|(x, w)| w.abs() * (step + 1e-6 * x.abs())).sum();
                            let off = (f64::from(*found) - expected).abs();
                            assert!(off <= bound + 1e-6, "{} {i}: {found} for {expected}", isa.name());
                        }
                    }
                }
            }
        }
    }
    /// The bits of each row are those that it has alone.
    #[test]
    fn rows_do_not_know_of_each_other() {
        let (rows, inputs, entries) = (9, 200, 3001);
        let x = noise(rows * inputs, 1);
        let floats = noise(entries * inputs, 2);
        let scales = noise(entries, 3);
        let bytes: Vec<u8> = floats.iter().map(|x| (x * 127.0 + 128.0) as u8).collect();
        let plane = &bytes[..entries * inputs.div_ceil(128) * 64];
        let tables = [
            Table::Float32(&floats),
            Table::Int8 {
                bytes: &bytes,
                scales: &scales,
            },
            Table::Planes(Planes {
                high: plane,
                low: &bytes[entries..][..plane.len()],
                scales: &scales,
            }),
        ];
        for isa in Isa::available() {
            for table in tables {
                let product = |x: &[f32]| {
                    let mut out = vec![f32::NAN; x.len() / inputs * entries];
                    logits(isa, &Backwards(2), x, inputs, table, entries, &mut out);
                    out
                };
                let alone: Vec<f32> = x.chunks(inputs).flat_map(product).collect();
                assert!(product(&x) == alone, "{}", isa.name());
            }
        }
    }
}
