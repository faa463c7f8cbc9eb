//! The sums: a run of rows of the base's tensor, and what adapters make of it.
//!
//! A tensor is the matrix `[shape[0], product of the rest]`. `W` is the base's, `M(W)` what one adapter makes
//! of it:
//!
//! - LoRA (arXiv 2106.09685): `W + scale * B A`; of an embedding `W + scale * (B A)^T`, for PEFT keeps those
//!   factors the other way round;
//! - DoRA (arXiv 2402.09353): `m / |W + scale * B A| * (W + scale * B A)`, with the length of each row; of an
//!   embedding of each column;
//! - a tensor that was trained as a whole: itself, before the above.
//!
//! Products are summed in float32, eight at a time, all else in float64, and rounded to float32 once. What a
//! number becomes does not depend on which block it is read in, nor on the number of threads.

use super::applied::region;
use super::{Adapter, AdapterFile};
use crate::checkpoint::{CheckpointError, StoredTensor};
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

/// Elements that one thread works on at a time.
const STRIP: usize = 1 << 18;
/// Ranks whose factors are in memory at a time.
const RANKS: usize = 64;
/// Columns whose sums stay in the first cache.
const TILE: usize = 512;
/// Products that are summed in float32.
const LANES: usize = 8;

/// A tensor of an adapter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) adapter: usize,
    pub(super) file: usize,
    pub(super) index: usize,
}

/// How a pair is laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Factors {
    /// `A [rank, columns]`, `B [rows, rank]`.
    Matrix,
    /// `A [rank, rows]`, `B [columns, rank]`.
    Embedding,
}

/// A pair of low rank.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct LowRank {
    pub(super) a: Place,
    pub(super) b: Place,
    pub(super) factors: Factors,
    pub(super) rank: usize,
    pub(super) scale: f64,
    /// DoRA's lengths.
    pub(super) magnitude: Option<Place>,
}

/// What one adapter does to a tensor.
#[derive(Debug)]
pub(super) struct Change {
    weight: f64,
    /// Takes the base's place.
    pub(super) instead: Option<Place>,
    pub(super) low: Option<LowRank>,
    /// A vector that is added, times a number.
    pub(super) add: Option<(Place, f64)>,
    /// Lengths of all columns, which take a look at all rows.
    lengths: Mutex<Option<Arc<Vec<f64>>>>,
}

impl Change {
    pub(super) fn new(weight: f64) -> Change {
        Change {
            weight,
            instead: None,
            low: None,
            add: None,
            lengths: Mutex::new(None),
        }
    }

    /// Whether the base's numbers stay, and something is added to them.
    fn only_adds(&self) -> bool {
        let magnitude = self.low.as_ref().and_then(|low| low.magnitude);
        self.instead.is_none() && magnitude.is_none()
    }
}

/// What all adapters do to a tensor.
#[derive(Debug, Default)]
pub(in crate::checkpoint) struct Patch(Vec<Change>);

/// Reads rows and columns of the base's tensor.
pub(in crate::checkpoint) type ReadBase<'a> =
    dyn Fn(Range<usize>, Range<usize>, &mut [f32]) -> Result<(), CheckpointError> + Sync + 'a;

impl Patch {
    pub(super) fn push(&mut self, change: Change) {
        self.0.push(change);
    }

    /// Reads `rows x columns` of the merged tensor, a matrix of `[height, width]`, into `out`.
    ///
    /// # Errors
    /// A file that can no longer be read.
    pub(in crate::checkpoint) fn read(
        &self,
        adapters: &[Adapter],
        [height, width]: [usize; 2],
        rows: Range<usize>,
        columns: Range<usize>,
        base: &ReadBase<'_>,
        out: &mut [f32],
    ) -> Result<(), CheckpointError> {
        let merge = Merge {
            patch: self,
            adapters,
            height,
            width,
            base,
        };
        let length = columns.len();
        if length == 0 || rows.is_empty() {
            return Ok(());
        }
        for change in &self.0 {
            merge.prepare(change)?;
        }
        // Of DoRA, rows are looked at whole.
        let by_rows = self.0.iter().filter_map(|change| change.low.as_ref());
        let by_rows = by_rows.filter(|low| low.factors == Factors::Matrix && low.magnitude.is_some());
        let step = STRIP / if by_rows.count() > 0 { width } else { length };
        let step = step.max(1);
        let strips: Vec<(Range<usize>, &mut [f32])> = rows
            .clone()
            .step_by(step)
            .map(|from| from..rows.end.min(from + step))
            .zip(out.chunks_mut(step * length))
            .collect();
        let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        if strips.len() == 1 || threads == 1 {
            return strips
                .into_iter()
                .try_for_each(|(rows, out)| merge.strip(rows, columns.clone(), out));
        }
        let queue = Mutex::new(strips.into_iter());
        let work = || {
            loop {
                let next = queue.lock().unwrap_or_else(PoisonError::into_inner).next();
                match next {
                    None => return Ok(()),
                    Some((rows, out)) => merge.strip(rows, columns.clone(), out)?,
                }
            }
        };
        std::thread::scope(|scope| {
            // One that does not start leaves its work to the others.
            let others: Vec<_> = (1..threads)
                .map_while(|_| {
                    let thread = std::thread::Builder::new().name("merging".to_owned());
                    thread.spawn_scoped(scope, work).ok()
                })
                .collect();
            let mut result = work();
            for other in others {
                let found = match other.join() {
                    Ok(found) => found,
                    Err(panic) => std::panic::resume_unwind(panic),
                };
                result = result.and(found);
            }
            result
        })
    }
}

/// A tensor while it is merged.
struct Merge<'a> {
    patch: &'a Patch,
    adapters: &'a [Adapter],
    height: usize,
    width: usize,
    base: &'a ReadBase<'a>,
}

impl<'a> Merge<'a> {
    /// One strip of rows.
    fn strip(
        &self,
        rows: Range<usize>,
        columns: Range<usize>,
        out: &mut [f32],
    ) -> Result<(), CheckpointError> {
        if let [only] = self.patch.0.as_slice()
            && only.weight == 1.0
        {
            // The numbers that one adapter makes of the base, without a detour.
            if let (Some(instead), None, None) = (only.instead, &only.low, only.add) {
                return self.region(instead, self.width, rows, columns, out);
            }
            let own = self.own(only, rows, columns)?;
            round(&own, out);
            return Ok(());
        }
        (self.base)(rows.clone(), columns.clone(), out)?;
        let mut sum: Vec<f64> = out.iter().copied().map(f64::from).collect();
        for change in &self.patch.0 {
            if change.only_adds() {
                self.add(change, change.weight, &mut sum, rows.clone(), columns.clone())?;
                continue;
            }
            let own = self.own(change, rows.clone(), columns.clone())?;
            for ((sum, own), base) in sum.iter_mut().zip(own).zip(&*out) {
                *sum += change.weight * (own - f64::from(*base));
            }
        }
        round(&sum, out);
        Ok(())
    }

    /// What one adapter makes of a strip.
    fn own(
        &self,
        change: &Change,
        rows: Range<usize>,
        columns: Range<usize>,
    ) -> Result<Vec<f64>, CheckpointError> {
        let by_rows = change
            .low
            .as_ref()
            .and_then(|low| low.magnitude.filter(|_| low.factors == Factors::Matrix));
        let Some(magnitude) = by_rows else {
            let mut own = self.directed(change, rows.clone(), columns.clone())?;
            if let Some(low) = change.low.as_ref()
                && let Some(magnitude) = low.magnitude
            {
                let lengths = change
                    .lengths
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .clone();
                let lengths = lengths.unwrap_or_default();
                let magnitudes = self.vector(magnitude, columns.clone())?;
                for row in own.chunks_exact_mut(columns.len()) {
                    let lengths = lengths.get(columns.clone()).unwrap_or(&[]);
                    for ((value, magnitude), length) in row.iter_mut().zip(&magnitudes).zip(lengths) {
                        *value *= f64::from(*magnitude) / length;
                    }
                }
            }
            return Ok(own);
        };
        // The length of a row is that of all its columns.
        let mut whole = self.directed(change, rows.clone(), 0..self.width)?;
        let magnitudes = self.vector(magnitude, rows)?;
        for (row, magnitude) in whole.chunks_exact_mut(self.width).zip(magnitudes) {
            let length = row.iter().map(|value| value * value).sum::<f64>().sqrt();
            for value in row {
                *value *= f64::from(magnitude) / length;
            }
        }
        if columns.len() == self.width {
            return Ok(whole);
        }
        let rows = whole.chunks_exact(self.width);
        Ok(rows.flat_map(|row| &row[columns.clone()]).copied().collect())
    }

    /// The same without DoRA's lengths.
    fn directed(
        &self,
        change: &Change,
        rows: Range<usize>,
        columns: Range<usize>,
    ) -> Result<Vec<f64>, CheckpointError> {
        let mut values = vec![0f32; rows.len() * columns.len()];
        match change.instead {
            Some(instead) => self.region(instead, self.width, rows.clone(), columns.clone(), &mut values)?,
            None => (self.base)(rows.clone(), columns.clone(), &mut values)?,
        }
        let mut own: Vec<f64> = values.iter().copied().map(f64::from).collect();
        drop(values);
        self.add(change, 1.0, &mut own, rows, columns)?;
        Ok(own)
    }

    /// Adds what a change adds, times `weight`.
    fn add(
        &self,
        change: &Change,
        weight: f64,
        sums: &mut [f64],
        rows: Range<usize>,
        columns: Range<usize>,
    ) -> Result<(), CheckpointError> {
        if let Some((vector, scale)) = change.add {
            // A vector is a matrix of one column.
            for (sum, added) in sums.iter_mut().zip(self.vector(vector, rows.clone())?) {
                *sum += weight * scale * f64::from(added);
            }
        }
        let Some(low) = &change.low else {
            return Ok(());
        };
        for from in (0..low.rank).step_by(RANKS) {
            let ranks = from..low.rank.min(from + RANKS);
            let (left, right) = self.pair(low, ranks.clone(), rows.clone(), columns.clone())?;
            let scale = weight * low.scale;
            add_product(sums, columns.len(), &left, &right, ranks.len(), scale);
        }
        Ok(())
    }

    /// Some ranks of a pair: `[rows, ranks]` and `[ranks, columns]`.
    fn pair(
        &self,
        low: &LowRank,
        ranks: Range<usize>,
        rows: Range<usize>,
        columns: Range<usize>,
    ) -> Result<(Vec<f32>, Vec<f32>), CheckpointError> {
        let read = |place, width, rows: Range<usize>, columns: Range<usize>| {
            let mut out = vec![0f32; rows.len() * columns.len()];
            self.region(place, width, rows, columns, &mut out)?;
            Ok::<_, CheckpointError>(out)
        };
        Ok(match low.factors {
            Factors::Matrix => (
                read(low.b, low.rank, rows, ranks.clone())?,
                read(low.a, self.width, ranks, columns)?,
            ),
            Factors::Embedding => {
                let (height, count) = (rows.len(), columns.len());
                let a = read(low.a, self.height, ranks.clone(), rows)?;
                let b = read(low.b, low.rank, columns, ranks.clone())?;
                (
                    transposed(&a, ranks.len(), height),
                    transposed(&b, count, ranks.len()),
                )
            }
        })
    }

    /// Lengths of columns, where a change needs them: once, in order.
    fn prepare(&self, change: &Change) -> Result<(), CheckpointError> {
        let by_columns = change
            .low
            .as_ref()
            .is_some_and(|low| low.magnitude.is_some() && low.factors == Factors::Embedding);
        if !by_columns {
            return Ok(());
        }
        let mut known = change.lengths.lock().unwrap_or_else(PoisonError::into_inner);
        if known.is_none() {
            let mut squares = vec![0f64; self.width];
            let step = (STRIP / self.width.max(1)).max(1);
            for from in (0..self.height).step_by(step) {
                let rows = from..self.height.min(from + step);
                let values = self.directed(change, rows, 0..self.width)?;
                for row in values.chunks_exact(self.width) {
                    for (square, value) in squares.iter_mut().zip(row) {
                        *square += value * value;
                    }
                }
            }
            *known = Some(Arc::new(squares.into_iter().map(f64::sqrt).collect()));
        }
        Ok(())
    }

    /// Elements of a vector, whatever dimensions of 1 it has.
    fn vector(&self, place: Place, range: Range<usize>) -> Result<Vec<f32>, CheckpointError> {
        let mut out = vec![0f32; range.len()];
        let (file, tensor) = self.find(place)?;
        file.tensors.read(tensor, range.start, &mut out)?;
        Ok(out)
    }

    /// Rows and columns of an adapter's tensor, a matrix of this width.
    fn region(
        &self,
        place: Place,
        width: usize,
        rows: Range<usize>,
        columns: Range<usize>,
        out: &mut [f32],
    ) -> Result<(), CheckpointError> {
        let (file, tensor) = self.find(place)?;
        region(&file.tensors, tensor, width, rows, columns, out)
    }

    fn find(&self, place: Place) -> Result<(&'a AdapterFile, &'a StoredTensor), CheckpointError> {
        let adapter = self.adapters.get(place.adapter);
        let file = adapter.and_then(|adapter| adapter.files.get(place.file));
        file.and_then(|file| Some((file, file.tensors.tensors().get(place.index)?)))
            .ok_or_else(|| CheckpointError::UnknownWeight {
                name: format!("{place:?}"),
            })
    }
}

/// Adds `scale * left [rows, ranks] * right [ranks, width]` to `sums [rows, width]`.
fn add_product(sums: &mut [f64], width: usize, left: &[f32], right: &[f32], ranks: usize, scale: f64) {
    for first in (0..width).step_by(TILE) {
        let tile = first..width.min(first + TILE);
        for (sums, left) in sums.chunks_exact_mut(width).zip(left.chunks_exact(ranks)) {
            let sums = &mut sums[tile.clone()];
            for (group, factors) in left.chunks(LANES).enumerate() {
                let line = |lane: usize| {
                    let from = (group * LANES + lane) * width;
                    &right[from + tile.start..from + tile.end]
                };
                if let Ok(factors) = <&[f32; LANES]>::try_from(factors) {
                    add_lanes(sums, factors, std::array::from_fn(line), scale);
                } else {
                    for (lane, factor) in factors.iter().enumerate() {
                        for (sum, value) in sums.iter_mut().zip(line(lane)) {
                            *sum += scale * f64::from(factor * value);
                        }
                    }
                }
            }
        }
    }
}

/// Eight ranks at once: the compiler makes vectors of it.
fn add_lanes(sums: &mut [f64], factors: &[f32; LANES], lines: [&[f32]; LANES], scale: f64) {
    let [a, b, c, d, e, f, g, h] = lines.map(|line| &line[..sums.len()]);
    let [fa, fb, fc, fd, fe, ff, fg, fh] = *factors;
    for (at, sum) in sums.iter_mut().enumerate() {
        let low = (fa * a[at] + fb * b[at]) + (fc * c[at] + fd * d[at]);
        let high = (fe * e[at] + ff * f[at]) + (fg * g[at] + fh * h[at]);
        *sum += scale * f64::from(low + high);
    }
}

/// `[height, width]` as `[width, height]`.
fn transposed(values: &[f32], height: usize, width: usize) -> Vec<f32> {
    let mut out = vec![0f32; values.len()];
    for (row, line) in values.chunks_exact(width.max(1)).enumerate() {
        for (column, value) in line.iter().enumerate() {
            out[column * height + row] = *value;
        }
    }
    out
}

#[expect(clippy::as_conversions, reason = "float64 to float32 has no other spelling")]
fn round(values: &[f64], out: &mut [f32]) {
    for (out, value) in out.iter_mut().zip(values) {
        *out = *value as f32;
    }
}
