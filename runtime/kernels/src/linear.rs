//! Linear layers: `residual + activation(norm(x) W^T + bias)`, all in one pass.
//!
//! - Many rows: tasks are tiles of rows, each normalised, quantised and multiplied by the task that owns it;
//!   where there are fewer tiles than threads can share, tiles are also split by columns, and rows are
//!   quantised beforehand.
//! - Up to sixteen rows: tasks are runs of panels, each read once, in order.

use super::isa::{Isa, LANES, Lanes, dispatch};
use super::math::gelu;
use super::matrix::{
    Cut, FEW, FewRows, Matrix, NIBBLE_BLOCK, PAIR, Sums, WIDTH, accumulate, few_panel, in_groups,
    nibble_corrections,
};
use super::norm::{Norm, load_part, store_part};
use super::parallel::{Parallel, Serial, Shared, part_of, scratch};
use super::quantise::{Rows, Wanted, with_rows};
use super::sizes::product;
use std::ops::Range;

/// What is applied to each number of a product.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// Nothing.
    None,
    /// `x / 2 * (1 + erf(x / sqrt(2)))`
    Gelu,
}

/// `activation(norm(x) W^T + bias)`
#[derive(Debug, Clone, Copy)]
pub struct Linear<'a> {
    /// Over the rows of the input.
    pub norm: Norm<'a>,
    /// `[N, K]`
    pub weight: Matrix<'a>,
    /// `[N]`
    pub bias: Option<&'a [f32]>,
    /// Comes last.
    pub activation: Activation,
}

/// `out = residual + linear(x)` for `x` `[M, K]`, `out` and `residual` `[M, N]`.
///
/// # Panics
/// Lengths that do not fit each other.
pub fn linear(
    isa: Isa,
    parallel: &dyn Parallel,
    x: &[f32],
    layer: &Linear<'_>,
    residual: Option<&[f32]>,
    out: &mut [f32],
) {
    let Linear {
        norm,
        weight,
        bias,
        activation,
    } = layer;
    weight.check();
    norm.check(weight.inputs);
    let rows = x.len() / weight.inputs;
    assert_eq!(x.len(), rows * weight.inputs, "x is not whole rows");
    assert_eq!(
        out.len(),
        product([rows, weight.outputs]),
        "out has not the product's shape"
    );
    assert!(
        residual.is_none_or(|residual| residual.len() == out.len()),
        "residual has not the shape of out"
    );
    assert!(
        bias.is_none_or(|bias| bias.len() == weight.outputs),
        "bias has not one number per output"
    );
    if rows == 0 {
        return;
    }
    let finish = Finish {
        outputs: weight.outputs,
        bias: *bias,
        activation: *activation,
        residual,
        out: Shared::new(out),
    };
    if rows <= FEW {
        with_few(isa, x, weight.inputs, norm, weight.wants_few(), &|few| {
            few_linear(isa, parallel, few, rows, weight, &finish);
        });
    } else {
        many_linear(isa, parallel, x, rows, norm, weight, &finish);
    }
}

/// What happens to the sums of a product.
#[derive(Debug)]
pub(super) struct Finish<'a> {
    pub(super) outputs: usize,
    pub(super) bias: Option<&'a [f32]>,
    pub(super) activation: Activation,
    pub(super) residual: Option<&'a [f32]>,
    pub(super) out: Shared<f32>,
}

impl Finish<'_> {
    /// Scales sums and writes them to rows from `row`, columns from `column` on.
    ///
    /// # Safety
    /// These numbers of `out` belong to one task.
    pub(super) unsafe fn write(&self, isa: Isa, from: &Scaled<'_>, row: usize, column: usize) {
        #[inline(always)]
        unsafe fn body<V: Lanes>(finish: &Finish<'_>, from: &Scaled<'_>, row: usize, column: usize) {
            let mut start = 0;
            while start < WIDTH && column + start < finish.outputs {
                let at = column + start;
                let length = LANES.min(finish.outputs - at);
                // SAFETY: lengths are checked by `part`, `load_part` and below.
                unsafe {
                    let scale: V = load_part(from.scales, start);
                    let bias: V = load_part(finish.bias.unwrap_or(&[]), at);
                    for i in 0..from.rows {
                        let sums = V::load(from.sums.as_ptr().add(i * from.stride + start));
                        let mut value = sums.mul_add(scale, bias);
                        if finish.activation == Activation::Gelu {
                            value = gelu(value);
                        }
                        finish.put(value, row + i, at, length);
                    }
                }
                start += LANES;
            }
        }
        assert!(
            from.rows == 0 || from.sums.len() >= (from.rows - 1) * from.stride + WIDTH,
            "too few sums"
        );
        let finish = self;
        dispatch!(isa, body(finish: &Finish<'_>, from: &Scaled<'_>, row: usize, column: usize));
    }

    /// Scales sums of all columns and writes them to whole rows from `row` on, without an activation.
    ///
    /// # Safety
    /// These rows of `out` belong to one task.
    pub(super) unsafe fn write_rows(&self, isa: Isa, from: &Scaled<'_>, row: usize) {
        #[inline(always)]
        unsafe fn body<V: Lanes>(finish: &Finish<'_>, from: &Scaled<'_>, row: usize) {
            let outputs = finish.outputs;
            let whole = outputs / LANES * LANES;
            for i in 0..from.rows {
                let start = (row + i) * outputs;
                // SAFETY: lengths are checked by `part`, `get` and below; only whole vectors are read and written.
                unsafe {
                    let to = finish.out.part(start, outputs).as_mut_ptr();
                    let residual = finish.residual.map(|residual| {
                        let row = residual.get(start..start + outputs);
                        row.expect("a residual has all rows").as_ptr()
                    });
                    let sums = from.sums.as_ptr().add(i * from.stride);
                    for at in (0..whole).step_by(LANES) {
                        let bias = match finish.bias {
                            Some(bias) => V::load(bias.as_ptr().add(at)),
                            None => V::splat(0.0),
                        };
                        let scale = V::load(from.scales.as_ptr().add(at));
                        let mut value = V::load(sums.add(at)).mul_add(scale, bias);
                        if let Some(residual) = residual {
                            value = value.add(V::load(residual.add(at)));
                        }
                        value.store(to.add(at));
                    }
                    if whole < outputs {
                        let scale = V::load(from.scales.as_ptr().add(whole));
                        let bias = load_part(finish.bias.unwrap_or(&[]), whole);
                        let value = V::load(sums.add(whole)).mul_add(scale, bias);
                        finish.put(value, row + i, whole, outputs - whole);
                    }
                }
            }
        }
        let width = self.outputs.next_multiple_of(LANES);
        assert!(
            from.stride >= width && from.sums.len() >= from.rows * from.stride && from.scales.len() >= width,
            "too few sums"
        );
        assert!(
            self.bias.is_none_or(|bias| bias.len() >= self.outputs),
            "too short a bias"
        );
        assert_eq!(
            self.activation,
            Activation::None,
            "an activation that is not computed"
        );
        let finish = self;
        dispatch!(isa, body(finish: &Finish<'_>, from: &Scaled<'_>, row: usize));
    }

    /// Adds the residual and writes up to sixteen numbers.
    ///
    /// # Safety
    /// As [`Lanes`]; these numbers of `out` belong to one task.
    #[inline(always)]
    unsafe fn put<V: Lanes>(&self, value: V, row: usize, column: usize, length: usize) {
        let at = row * self.outputs + column;
        // SAFETY: as for this function.
        unsafe {
            let to = self.out.part(at, length);
            let value = match self.residual {
                Some(residual) => value.add(load_part(residual.get(..at + length).unwrap_or(&[]), at)),
                None => value,
            };
            store_part(value, to, 0);
        }
    }
}

/// Sums of up to 32 columns, and what they are to be multiplied with.
#[derive(Debug)]
pub(super) struct Scaled<'a> {
    /// `[rows, stride]`
    pub(super) sums: &'a [f32],
    pub(super) stride: usize,
    /// Of each column.
    pub(super) scales: &'a [f32],
    pub(super) rows: usize,
}

/// How rows and pairs of panels are divided into tasks: tiles of rows, and runs of pairs for each.
#[derive(Debug, Clone, Copy)]
struct Grid {
    tiles: usize,
    runs: usize,
}

impl Grid {
    /// Of tiles with about `wanted` rows; so many tasks that threads end together.
    fn new(rows: usize, pairs: usize, threads: usize, wanted: usize) -> Grid {
        let tiles = rows.div_ceil(wanted);
        if threads == 1 || tiles >= 4 * threads {
            let few = tiles < 8 * threads;
            let tiles = if few {
                tiles.next_multiple_of(threads)
            } else {
                tiles
            };
            return Grid { tiles, runs: 1 };
        }
        let runs = (8 * threads).div_ceil(tiles).min(pairs);
        Grid { tiles, runs }
    }
}

/// Rows of a tile: as many as keep their sums and bytes in a second cache.
const TILE_ROWS: usize = 96;

/// The product of many rows.
pub(super) fn many_linear(
    isa: Isa,
    parallel: &dyn Parallel,
    x: &[f32],
    rows: usize,
    norm: &Norm<'_>,
    weight: &Matrix<'_>,
    finish: &Finish<'_>,
) {
    // Panels that are made are made once per task.
    let wanted = if weight.is_made(isa) {
        3 * TILE_ROWS
    } else {
        TILE_ROWS
    };
    let pairs = weight.panel_count().div_ceil(PAIR);
    let grid = Grid::new(rows, pairs, parallel.threads(), wanted);
    let wants = weight.wants(isa);
    if grid.runs == 1 {
        parallel.run(grid.tiles, &|task| {
            let tile = part_of(rows, grid.tiles, task);
            let x = x.get(tile.start * weight.inputs..tile.end * weight.inputs);
            with_rows(
                isa,
                &Serial,
                x.unwrap_or(&[]),
                weight.inputs,
                norm,
                wants,
                |prepared| {
                    // SAFETY: the tile's rows are this task's own.
                    unsafe {
                        multiply(isa, prepared, 0..tile.len(), weight, 0..pairs, finish, tile.start);
                    };
                },
            );
        });
        return;
    }
    with_rows(isa, parallel, x, weight.inputs, norm, wants, |prepared| {
        parallel.run(grid.tiles * grid.runs, &|task| {
            let tile = part_of(rows, grid.tiles, task / grid.runs);
            let range = part_of(pairs, grid.runs, task % grid.runs);
            let start = tile.start;
            // SAFETY: the tile's part of these columns is this task's own.
            unsafe {
                multiply(isa, prepared, tile, weight, range, finish, start);
            };
        });
    });
}

/// Some rows times some pairs of panels, to rows of `out` from `row` on.
///
/// # Safety
/// These numbers of `out` belong to one task.
unsafe fn multiply(
    isa: Isa,
    prepared: &Rows<'_>,
    rows: Range<usize>,
    weight: &Matrix<'_>,
    pairs: Range<usize>,
    finish: &Finish<'_>,
    row: usize,
) {
    let count = rows.len();
    scratch(count * WIDTH, |values: &mut [f32]| {
        scratch(weight.room(isa, weight.inputs), |room: &mut [u8]| {
            let mut scales = [0.0; WIDTH];
            for pair in pairs {
                let panel = pair * PAIR;
                let panels = PAIR.min(weight.panel_count() - panel);
                weight.column_scales(isa, panel, panels, &mut scales);
                let cut = Cut {
                    first: panel,
                    count: panels,
                    block: 0,
                    inputs: weight.inputs,
                };
                let next = cut.next(weight, count);
                let weights = weight.pair(isa, cut, &scales, room);
                let sums = Sums {
                    values,
                    stride: WIDTH,
                    fresh: true,
                    coming: [next.as_ref(), None],
                };
                accumulate(isa, prepared, rows.clone(), &weights, sums);
                let from = Scaled {
                    sums: values,
                    stride: WIDTH,
                    scales: &scales,
                    rows: count,
                };
                // SAFETY: by the promise to this function.
                unsafe { finish.write(isa, &from, row, panel * LANES) };
            }
        });
    });
}

/// Prepares up to [`FEW`] rows, on this thread.
pub(super) fn with_few(
    isa: Isa,
    x: &[f32],
    inputs: usize,
    norm: &Norm<'_>,
    wanted: Wanted,
    body: &dyn Fn(&FewRows<'_>),
) {
    with_rows(isa, &Serial, x, inputs, norm, wanted, |rows| match rows {
        Rows::Floats { .. } => body(&FewRows {
            rows,
            corrections: &[],
        }),
        Rows::Bytes(quantised) => {
            let length = x.len() / inputs * inputs.div_ceil(NIBBLE_BLOCK);
            scratch(length, |corrections: &mut [i32]| {
                nibble_corrections(quantised, corrections);
                body(&FewRows { rows, corrections });
            });
        }
    });
}

/// In how many tasks the panels of a weight are only read: several for each thread and equally many, but none
/// too short to be worth it.
pub(super) fn tasks_of_panels(weight: &Matrix<'_>, threads: usize) -> usize {
    let worth_it = weight.panel_count() * weight.panel_size() / 65_536;
    let tasks = match worth_it.min(4 * threads) {
        few if few < threads => few,
        some => some - some % threads,
    };
    if threads == 1 {
        1
    } else {
        tasks.clamp(1, weight.panel_count().max(1))
    }
}

/// The product of up to [`FEW`] rows.
pub(super) fn few_linear(
    isa: Isa,
    parallel: &dyn Parallel,
    few: &FewRows<'_>,
    rows: usize,
    weight: &Matrix<'_>,
    finish: &Finish<'_>,
) {
    #[inline(always)]
    unsafe fn part<V: Lanes, const ROWS: usize>(
        few: &FewRows<'_>,
        first: usize,
        weight: &Matrix<'_>,
        finish: &Finish<'_>,
        panel: usize,
    ) {
        let at = panel * LANES;
        let length = LANES.min(finish.outputs - at);
        // SAFETY: the caller has prepared the rows for this matrix, and has these columns for itself.
        unsafe {
            let bias: V = load_part(finish.bias.unwrap_or(&[]), at);
            let sums = few_panel::<V, ROWS>(few, first, weight, panel);
            for (row, sum) in sums.into_iter().enumerate() {
                let value = sum.add(bias);
                let value = if finish.activation == Activation::Gelu {
                    gelu(value)
                } else {
                    value
                };
                finish.put(value, first + row, at, length);
            }
        }
    }
    #[inline(always)]
    unsafe fn body<V: Lanes>(
        few: &FewRows<'_>,
        rows: usize,
        weight: &Matrix<'_>,
        finish: &Finish<'_>,
        range: Range<usize>,
    ) {
        for panel in range {
            // SAFETY: as above.
            unsafe { in_groups!(V, rows, first => part(few, first, weight, finish, panel)) }
        }
    }
    assert!((1..=FEW).contains(&rows), "not few rows");
    let count = weight.panel_count();
    let tasks = tasks_of_panels(weight, parallel.threads());
    parallel.run(tasks, &|task| {
        let range = part_of(count, tasks, task);
        dispatch!(isa, body(
            few: &FewRows<'_>, rows: usize, weight: &Matrix<'_>, finish: &Finish<'_>, range: Range<usize>,
        ));
    });
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::matrix::tests::{FORMS, Weights};
    use crate::norm::tests::naive;
    use crate::testing::{self, Backwards, noise};

    #[test]
    fn agrees_with_float64() {
        for (rows, inputs, outputs) in [
            (1, 7, 5),
            (2, 32, 16),
            (3, 100, 33),
            (4, 300, 50),
            (5, 129, 70),
            (13, 64, 48),
            (16, 200, 40),
            (30, 384, 96),
            (205, 33, 17),
            (700, 40, 20),
        ] {
            let x: Vec<f32> = noise(rows * inputs, 1).iter().map(|x| x * 2.0).collect();
            let (gamma, beta) = (noise(inputs, 2), noise(inputs, 3));
            let (gamma, beta) = (gamma.as_slice(), beta.as_slice());
            let (bias, residual) = (noise(outputs, 4), noise(rows * outputs, 5));
            let norms = [
                Norm::None,
                Norm::Rms { gamma, epsilon: 1e-6 },
                Norm::Layer {
                    gamma,
                    beta,
                    epsilon: 1e-5,
                },
            ];
            for (case, form) in FORMS.into_iter().enumerate() {
                let weights = Weights::new(form, outputs, inputs, 6);
                let norm = &norms[(case + rows) % 3];
                let (product, bounds) = weights.product(&naive(&x, inputs, norm), rows > FEW);
                for (bias, activation, residual) in [
                    (None, Activation::None, None),
                    (Some(bias.as_slice()), Activation::Gelu, None),
                    (Some(bias.as_slice()), Activation::None, Some(residual.as_slice())),
                ] {
                    for isa in Isa::available() {
                        let mut first: Option<Vec<f32>> = None;
                        for threads in [1, 2, 16] {
                            let mut out = vec![f32::NAN; rows * outputs];
                            let layer = Linear {
                                norm: *norm,
                                weight: weights.matrix(),
                                bias,
                                activation,
                            };
                            linear(isa, &Backwards(threads), &x, &layer, residual, &mut out);
                            for (i, found) in out.iter().enumerate() {
                                let mut expected = product[i];
                                expected += bias.map_or(0.0, |bias| f64::from(bias[i % outputs]));
                                if activation == Activation::Gelu {
                                    expected = testing::gelu(expected);
                                }
                                expected += residual.map_or(0.0, |residual| f64::from(residual[i]));
                                // GELU's slope is at most 1.13.
                                let bound = 1.13 * bounds[i] + 1e-6;
                                assert!(
                                    (f64::from(*found) - expected).abs() <= bound,
                                    "{} {form:?} {rows}x{inputs}x{outputs} at {i}: {found} for {expected} \
                                     +- {bound}",
                                    isa.name()
                                );
                            }
                            assert_eq!(
                                *first.get_or_insert_with(|| out.clone()),
                                out,
                                "depends on threads"
                            );
                        }
                    }
                }
            }
        }
    }

    /// Of up to sixteen rows, each has the bits that it has alone.
    #[test]
    fn few_rows_do_not_know_of_each_other() {
        let (inputs, outputs) = (300, 50);
        let x = noise(FEW * inputs, 1);
        for form in FORMS {
            let weights = Weights::new(form, outputs, inputs, 6);
            let layer = Linear {
                norm: Norm::None,
                weight: weights.matrix(),
                bias: None,
                activation: Activation::None,
            };
            for isa in Isa::available() {
                let product = |x: &[f32]| {
                    let mut out = vec![f32::NAN; x.len() / inputs * outputs];
                    linear(isa, &Backwards(2), x, &layer, None, &mut out);
                    out
                };
                let alone: Vec<f32> = x.chunks(inputs).flat_map(product).collect();
                for rows in 2..=FEW {
                    let together = product(&x[..rows * inputs]);
                    assert_eq!(
                        together,
                        alone[..rows * outputs],
                        "{} {form:?} {rows}",
                        isa.name()
                    );
                }
            }
        }
    }

    #[test]
    fn a_row_that_is_no_number_stays_alone() {
        for rows in [2, 12, 20] {
            for form in FORMS {
                let weights = Weights::new(form, 20, 200, 1);
                let mut x = noise(rows * 200, 2);
                x[200 + 77] = f32::NAN;
                for isa in Isa::available() {
                    let mut out = vec![0.0; rows * 20];
                    let layer = Linear {
                        norm: Norm::None,
                        weight: weights.matrix(),
                        bias: None,
                        activation: Activation::None,
                    };
                    linear(isa, &Serial, &x, &layer, None, &mut out);
                    for (i, value) in out.iter().enumerate() {
                        assert_eq!(value.is_nan(), i / 20 == 1, "{} {form:?} {i}", isa.name());
                    }
                }
            }
        }
    }
}
