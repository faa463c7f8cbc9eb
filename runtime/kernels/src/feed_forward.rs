//! Feed-forward networks without their middle: tile by tile of rows, a few hundred hidden numbers at a time.
//!
//! A tile's rows are multiplied with the weights of 128 hidden numbers; those go through the activation and
//! become bytes (128 numbers are one block with one scale). A few such blocks are multiplied with their part
//! of the second weight, onto sums that the tile keeps. The hidden numbers of a whole image never exist.
//!
//! Up to sixteen rows, or too few rows for the threads there are: the two products one after the other, each
//! split by columns.

use super::coming::{Coming, NOTHING};
use super::isa::{Isa, LANES, Lanes, dispatch};
use super::linear::{Activation, Finish, Scaled, few_linear, many_linear, tasks_of_panels, with_few};
use super::math::{gelu, gelu_coarse, silu};
use super::matrix::{Cut, FEW, FewRows, Matrix, PAIR, Sums, TILE, accumulate, few_panel, in_groups};
use super::norm::{Norm, load_part, store_part};
use super::parallel::{Parallel, Serial, Shared, part_of, scratch};
use super::quantise::{BLOCK, GROUP, Group, Rows, Target, VECTORS, Wanted, largest, with_rows, with_target};
use super::sizes::product;
use std::ops::Range;

/// Two linear layers, `K -> H -> N`, with an activation between them.
///
/// With a gate `down(silu(gate(x)) * (up(x) + up_bias)) + down_bias`, without `down(GELU(up(x) + up_bias)) +
/// down_bias`, where `x` is normalised first.
#[derive(Debug, Clone, Copy)]
pub struct FeedForward<'a> {
    /// Over the rows of the input.
    pub norm: Norm<'a>,
    /// `[H, K]`, of the same form as `up` or at least, like `up`, of bytes or nibbles.
    pub gate: Option<Matrix<'a>>,
    /// `[H, K]`
    pub up: Matrix<'a>,
    /// `[H]`
    pub up_bias: Option<&'a [f32]>,
    /// `[N, H]`
    pub down: Matrix<'a>,
    /// `[N]`
    pub down_bias: Option<&'a [f32]>,
}

impl FeedForward<'_> {
    /// What the products of many rows with the first weights want of the rows.
    fn wants(&self, isa: Isa) -> Wanted {
        let gate = self.gate.map_or(Wanted::default(), |gate| gate.wants(isa));
        gate.and(self.up.wants(isa))
    }

    /// Bytes that making panels of the first weights takes.
    fn room(&self, isa: Isa) -> usize {
        let gate = self.gate.map_or(0, |gate| gate.room(isa, gate.inputs));
        gate.max(self.up.room(isa, self.up.inputs))
    }

    fn check(&self) {
        self.up.check();
        self.down.check();
        self.norm.check(self.up.inputs);
        assert_eq!(
            self.up.outputs, self.down.inputs,
            "up and down have different hidden sizes"
        );
        if let Some(gate) = &self.gate {
            gate.check();
            assert_eq!(
                (gate.outputs, gate.inputs),
                (self.up.outputs, self.up.inputs),
                "gate has not the shape of up"
            );
            assert_eq!(
                gate.is_bytes(),
                self.up.is_bytes(),
                "gate and up want different inputs"
            );
        }
        assert!(
            self.up_bias.is_none_or(|bias| bias.len() == self.up.outputs),
            "length of up's bias"
        );
        assert!(
            self.down_bias.is_none_or(|bias| bias.len() == self.down.outputs),
            "length of down's bias"
        );
    }
}

/// `out = residual + feed_forward(x)` for `x` `[M, K]`, `out` and `residual` `[M, N]`.
///
/// # Panics
/// Lengths that do not fit each other.
pub fn feed_forward(
    isa: Isa,
    parallel: &dyn Parallel,
    x: &[f32],
    ff: &FeedForward<'_>,
    residual: Option<&[f32]>,
    out: &mut [f32],
) {
    ff.check();
    let rows = x.len() / ff.up.inputs;
    assert_eq!(x.len(), rows * ff.up.inputs, "x is not whole rows");
    assert_eq!(
        out.len(),
        product([rows, ff.down.outputs]),
        "out has not the product's shape"
    );
    assert!(
        residual.is_none_or(|residual| residual.len() == out.len()),
        "residual has not the shape of out"
    );
    if rows == 0 {
        return;
    }
    let finish = Finish {
        outputs: ff.down.outputs,
        bias: ff.down_bias,
        activation: Activation::None,
        residual,
        out: Shared::new(out),
    };
    if rows <= FEW {
        few_rows(isa, parallel, x, rows, ff, &finish);
    } else if rows >= LEAST_ROWS * parallel.threads() || parallel.threads() == 1 {
        let tile = tile_rows(rows, ff, parallel.threads());
        let inputs = ff.up.inputs;
        let part = |start: usize| {
            x.get(start * inputs..rows.min(start + tile) * inputs)
                .unwrap_or(&[])
        };
        parallel.run(rows.div_ceil(tile), &|task| {
            let start = task * tile;
            let place = Place {
                start,
                next: part(rows.min(start + parallel.threads() * tile)),
            };
            // SAFETY: the tile's rows are this task's own.
            unsafe { fused_tile(isa, part(start), ff, &finish, &place) };
        });
    } else {
        by_columns(isa, parallel, x, rows, ff, &finish);
    }
}

/// Rows that each thread should have before tiles of rows are worth it: fewer read the weights too often.
const LEAST_ROWS: usize = 48;

/// Blocks of hidden bytes that are multiplied together: so often are the tile's sums read and written.
const TOGETHER: usize = 4;

/// Rows of a tile: its sums, its bytes and its hidden block should stay in a second cache; and threads should
/// have equally many tiles where they have few.
fn tile_rows(rows: usize, ff: &FeedForward<'_>, threads: usize) -> usize {
    let row_bytes = 4 * ff.down.outputs + ff.up.inputs + (4 + TOGETHER) * BLOCK + BLOCK;
    // The weights of a gated block are read from memory for every tile: there, fewer tiles are worth a fuller
    // cache.
    let (limit, most) = if ff.gate.is_some() {
        (1 << 20, 16)
    } else {
        (3 << 18, 12)
    };
    let wanted = (limit / row_bytes / TILE).clamp(2, most) * TILE;
    let tiles = rows.div_ceil(wanted);
    // The sets that keep sums in registers have tiles half as high: a thread has whole ones.
    let (tiles, step) = if tiles < 8 * threads {
        (tiles.next_multiple_of(threads), TILE / 2)
    } else {
        (tiles, TILE)
    };
    rows.div_ceil(tiles).next_multiple_of(step)
}

/// 128 hidden numbers of several rows: the sums of the products, and what turns them into the next product's
/// input.
#[derive(Debug)]
struct Hidden<'a> {
    up: BlockSums<'a>,
    /// Sums of no row without a gate.
    gate: BlockSums<'a>,
    bias: [f32; BLOCK],
    /// Whether the result becomes bytes.
    bytes: bool,
}

/// Sums of a layer's products for 128 of its outputs.
#[derive(Debug)]
struct BlockSums<'a> {
    /// `[rows, 128]`
    values: &'a mut [f32],
    /// What each column must be multiplied with.
    scales: [f32; BLOCK],
    /// What is asked for while they are made.
    coming: Option<&'a Coming>,
}

impl<'a> Hidden<'a> {
    fn new(up: &'a mut [f32], gate: &'a mut [f32], bytes: bool, coming: Option<&'a Coming>) -> Self {
        let [up, gate] = [up, gate].map(|values| BlockSums {
            values,
            scales: [0.0; BLOCK],
            coming,
        });
        Hidden {
            up,
            gate,
            bias: [0.0; BLOCK],
            bytes,
        }
    }

    fn is_gated(&self) -> bool {
        !self.gate.values.is_empty()
    }

    /// That there are as many rows.
    fn check(&self, rows: usize) {
        let length = rows * BLOCK;
        assert!(
            self.up.values.len() >= length && (!self.is_gated() || self.gate.values.len() >= length),
            "rows that are not there"
        );
    }
}

impl Hidden<'_> {
    /// One vector of a row after the activation.
    ///
    /// # Safety
    /// As [`Lanes`]; the row exists, and has a gate if `GATED`.
    #[inline(always)]
    unsafe fn activated<V: Lanes, const GATED: bool>(&self, row: usize, vector: usize) -> V {
        let at = vector * LANES;
        // SAFETY: by the promise to this function.
        unsafe {
            let up = V::load(self.up.values.as_ptr().add(row * BLOCK + at));
            let up = up.mul_add(
                V::load(self.up.scales.as_ptr().add(at)),
                V::load(self.bias.as_ptr().add(at)),
            );
            if GATED {
                let gate = V::load(self.gate.values.as_ptr().add(row * BLOCK + at));
                silu(gate.mul(V::load(self.gate.scales.as_ptr().add(at)))).mul(up)
            } else if self.bytes {
                gelu_coarse(up)
            } else {
                gelu(up)
            }
        }
    }
}

/// Activates and quantises the first `rows` rows, to a block of the target's. The sums are lost.
fn activate_bytes(isa: Isa, hidden: &mut Hidden<'_>, rows: usize, target: &Target, block: usize) {
    #[inline(always)]
    unsafe fn each<V: Lanes, const GATED: bool>(
        hidden: &mut Hidden<'_>,
        rows: usize,
        target: &Target,
        block: usize,
    ) {
        // All rows of a group are activated first: none waits for another, and they stay in a first cache.
        for start in (0..rows).step_by(GROUP) {
            // SAFETY: rows are checked below; the target is this task's own.
            unsafe {
                let count = GROUP.min(rows - start);
                let mut tops = [V::splat(0.0); GROUP];
                for (row, top) in (start..start + count).zip(&mut tops) {
                    let mut values = [V::splat(0.0); VECTORS];
                    for (vector, value) in values.iter_mut().enumerate() {
                        *value = hidden.activated::<V, GATED>(row, vector);
                    }
                    let to = hidden.up.values.as_mut_ptr().add(row * BLOCK);
                    for (vector, value) in values.iter().enumerate() {
                        value.store(to.add(vector * LANES));
                    }
                    *top = largest(&values);
                }
                let group = Group {
                    from: hidden.up.values.as_ptr().add(start * BLOCK),
                    stride: BLOCK,
                    length: BLOCK,
                    count,
                    largest: tops,
                };
                group.quantise(target, start, block);
            }
        }
    }
    #[inline(always)]
    unsafe fn body<V: Lanes>(hidden: &mut Hidden<'_>, rows: usize, target: &Target, block: usize) {
        // SAFETY: as above.
        unsafe {
            if hidden.is_gated() {
                each::<V, true>(hidden, rows, target, block);
            } else {
                each::<V, false>(hidden, rows, target, block);
            }
        }
    }
    hidden.check(rows);
    dispatch!(isa, body(hidden: &mut Hidden<'_>, rows: usize, target: &Target, block: usize));
}

/// Activates the first `rows` rows to rows `stride` apart, as many numbers as `columns`.
fn activate_floats(
    isa: Isa,
    hidden: &Hidden<'_>,
    rows: usize,
    columns: usize,
    to: &mut [f32],
    stride: usize,
) {
    #[inline(always)]
    unsafe fn body<V: Lanes>(
        hidden: &Hidden<'_>,
        rows: usize,
        columns: usize,
        to: &mut [f32],
        stride: usize,
    ) {
        for (row, to) in to.chunks_mut(stride).take(rows).enumerate() {
            let to = to.split_at_mut(columns).0;
            for vector in 0..columns.div_ceil(LANES) {
                // SAFETY: rows are checked below.
                unsafe {
                    let value: V = if hidden.is_gated() {
                        hidden.activated::<V, true>(row, vector)
                    } else {
                        hidden.activated::<V, false>(row, vector)
                    };
                    store_part(value, to, vector * LANES);
                }
            }
        }
    }
    hidden.check(rows);
    assert!(
        columns <= BLOCK && columns <= stride,
        "more numbers than a block has"
    );
    dispatch!(isa, body(hidden: &Hidden<'_>, rows: usize, columns: usize, to: &mut [f32], stride: usize));
}

/// A layer's products of some rows for the hidden numbers from `block * 128` on.
fn hidden_block(
    isa: Isa,
    rows: &Rows<'_>,
    range: Range<usize>,
    weight: &Matrix<'_>,
    block: usize,
    room: &mut [u8],
    sums: &mut BlockSums<'_>,
) {
    let BlockSums {
        values,
        scales,
        coming,
    } = sums;
    let start = block * BLOCK / LANES;
    let end = weight.panel_count().min(start + BLOCK / LANES);
    scales.fill(0.0);
    if end - start < VECTORS {
        // Columns that no panel writes.
        values.fill(0.0);
    }
    for panel in (start..end).step_by(PAIR) {
        let panels = PAIR.min(end - panel);
        let column = (panel - start) * LANES;
        let scales = scales.split_at_mut(column).1;
        weight.column_scales(isa, panel, panels, scales);
        let cut = Cut {
            first: panel,
            count: panels,
            block: 0,
            inputs: weight.inputs,
        };
        let next = cut.next(weight, range.len());
        let pair = weight.pair(isa, cut, scales, room);
        let sums = Sums {
            values: values.split_at_mut(column).1,
            stride: BLOCK,
            fresh: true,
            coming: [*coming, next.as_ref()],
        };
        accumulate(isa, rows, range.clone(), &pair, sums);
    }
}

/// All that the hidden numbers of some rows from `block * 128` on are made of.
fn hidden_numbers(
    isa: Isa,
    rows: &Rows<'_>,
    range: Range<usize>,
    ff: &FeedForward<'_>,
    block: usize,
    room: &mut [u8],
    to: &mut Hidden<'_>,
) {
    if let Some(weight) = &ff.gate {
        hidden_block(isa, rows, range.clone(), weight, block, room, &mut to.gate);
    }
    hidden_block(isa, rows, range, &ff.up, block, room, &mut to.up);
    hidden_bias(ff.up_bias, block, &mut to.bias);
}

/// The bias of a block of hidden numbers.
fn hidden_bias(bias: Option<&[f32]>, block: usize, to: &mut [f32; BLOCK]) {
    to.fill(0.0);
    for (to, bias) in to.iter_mut().zip(bias.unwrap_or(&[]).iter().skip(block * BLOCK)) {
        *to = *bias;
    }
}

/// Where a tile's rows lie.
#[derive(Debug)]
struct Place<'a> {
    /// The first of them.
    start: usize,
    /// The rows that this thread will probably be given next.
    next: &'a [f32],
}

impl Place<'_> {
    /// What the tile writes and adds, and what the next one reads.
    fn coming(&self, rows: usize, ff: &FeedForward<'_>, finish: &Finish<'_>) -> Coming {
        let (from, length) = (self.start * finish.outputs, rows * finish.outputs);
        let residual = match finish.residual {
            Some(residual) => (residual.as_ptr().wrapping_add(from), length),
            None => NOTHING,
        };
        let pairs = |panels: usize| panels.div_ceil(PAIR);
        let steps = ff.down.inputs.div_ceil(TOGETHER * BLOCK);
        let calls = pairs(ff.up.panel_count()) + pairs(ff.down.panel_count()) * steps;
        Coming::new(
            [
                residual,
                (finish.out.at(from).cast_const(), length),
                (self.next.as_ptr(), self.next.len()),
                NOTHING,
            ],
            rows.div_ceil(TILE) * 3 / 2 * calls,
        )
    }
}

/// All of the network for the rows `x`, to rows of `out` from `start` on.
///
/// # Safety
/// These rows belong to one task.
unsafe fn fused_tile(isa: Isa, x: &[f32], ff: &FeedForward<'_>, finish: &Finish<'_>, place: &Place<'_>) {
    let rows = x.len() / ff.up.inputs;
    let start = place.start;
    let coming = place.coming(rows, ff, finish);
    let down = &ff.down;
    let hidden = down.inputs;
    let panels = down.panel_count();
    // An odd number of cache lines, as for the bytes of `quantise`; whole pairs, for `Finish::write`.
    let stride = panels.next_multiple_of(PAIR) * LANES + LANES;
    let gates = if ff.gate.is_some() { rows * BLOCK } else { 0 };
    let together = if down.is_bytes() { TOGETHER } else { 1 };
    let up_room = ff.room(isa);
    let down_room = down.room(isa, together * BLOCK);
    with_rows(
        isa,
        &Serial,
        x,
        ff.up.inputs,
        &ff.norm,
        ff.wants(isa),
        |prepared| {
            scratch(
                product([rows, stride]) + panels * LANES + LANES,
                |buffer: &mut [f32]| {
                    scratch(2 * rows * BLOCK + gates, |blocks: &mut [f32]| {
                        scratch(up_room + down_room, |room: &mut [u8]| {
                            let (sums, scales) = buffer.split_at_mut(rows * stride);
                            scales.fill(0.0);
                            down.column_scales(isa, 0, panels, scales);
                            let (up, rest) = blocks.split_at_mut(rows * BLOCK);
                            let (gate, floats) = rest.split_at_mut(gates);
                            let (up_room, down_room) = room.split_at_mut(up_room);
                            let mut middle = Hidden::new(up, gate, down.is_bytes(), Some(&coming));
                            for first in (0..hidden.div_ceil(BLOCK)).step_by(together) {
                                let width = (together * BLOCK).min(hidden - first * BLOCK);
                                let mut multiply = |activated: &Rows<'_>| {
                                    for panel in (0..panels).step_by(PAIR) {
                                        let count = PAIR.min(panels - panel);
                                        let column = panel * LANES;
                                        let scales = scales.get(column..).unwrap_or(&[]);
                                        let cut = Cut {
                                            first: panel,
                                            count,
                                            block: first,
                                            inputs: width,
                                        };
                                        let next = cut.next(down, rows);
                                        let pair = down.pair(isa, cut, scales, down_room);
                                        let values = sums.get_mut(column..).unwrap_or(&mut []);
                                        let sums = Sums {
                                            values,
                                            stride,
                                            fresh: first == 0,
                                            coming: [Some(&coming), next.as_ref()],
                                        };
                                        accumulate(isa, activated, 0..rows, &pair, sums);
                                    }
                                };
                                if down.is_bytes() {
                                    let fill = |target: &Target| {
                                        for i in 0..width.div_ceil(BLOCK) {
                                            let all = 0..rows;
                                            hidden_numbers(
                                                isa,
                                                prepared,
                                                all,
                                                ff,
                                                first + i,
                                                up_room,
                                                &mut middle,
                                            );
                                            activate_bytes(isa, &mut middle, rows, target, i);
                                        }
                                    };
                                    with_target(rows, width, down.wants(isa), fill, |quantised| {
                                        multiply(&Rows::Bytes(*quantised));
                                    });
                                } else {
                                    hidden_numbers(isa, prepared, 0..rows, ff, first, up_room, &mut middle);
                                    activate_floats(isa, &middle, rows, width, floats, BLOCK);
                                    multiply(&Rows::Floats {
                                        inputs: width,
                                        values: floats,
                                        stride: BLOCK,
                                    });
                                }
                            }
                            let from = Scaled {
                                sums,
                                stride,
                                scales,
                                rows,
                            };
                            // SAFETY: by the promise to this function.
                            unsafe { finish.write_rows(isa, &from, start) };
                        });
                    });
                },
            );
        },
    );
}

/// The two products one after the other, for so few rows that threads share them by columns.
fn by_columns(
    isa: Isa,
    parallel: &dyn Parallel,
    x: &[f32],
    rows: usize,
    ff: &FeedForward<'_>,
    finish: &Finish<'_>,
) {
    let hidden = ff.up.outputs;
    let blocks = hidden.div_ceil(BLOCK);
    // Rows of a tile, as in `tile_rows`, but more: the weights are read once for each.
    let tiles = rows.div_ceil(24 * TILE);
    let tile = rows.div_ceil(tiles);
    let tiles = rows.div_ceil(tile);
    scratch(product([rows, hidden]), |middle: &mut [f32]| {
        let shared = Shared::new(middle);
        with_rows(
            isa,
            parallel,
            x,
            ff.up.inputs,
            &ff.norm,
            ff.wants(isa),
            |prepared| {
                parallel.run(tiles * blocks, &|task| {
                    let (first, block) = (task / blocks * tile, task % blocks);
                    let count = tile.min(rows - first);
                    let gates = if ff.gate.is_some() { count * BLOCK } else { 0 };
                    let room = ff.room(isa);
                    scratch(count * BLOCK * 2 + gates, |sums: &mut [f32]| {
                        scratch(room, |room: &mut [u8]| {
                            let (up, rest) = sums.split_at_mut(count * BLOCK);
                            let (gate, activated) = rest.split_at_mut(gates);
                            let mut middle = Hidden::new(up, gate, ff.down.is_bytes(), None);
                            let range = first..first + count;
                            hidden_numbers(isa, prepared, range, ff, block, room, &mut middle);
                            let width = BLOCK.min(hidden - block * BLOCK);
                            activate_floats(isa, &middle, count, width, activated, BLOCK);
                            for (row, from) in activated.chunks_exact(BLOCK).enumerate() {
                                // SAFETY: this block of this tile's rows is this task's own.
                                let to =
                                    unsafe { shared.part((first + row) * hidden + block * BLOCK, width) };
                                to.copy_from_slice(from.split_at(width).0);
                            }
                        });
                    });
                });
            },
        );
        many_linear(isa, parallel, middle, rows, &Norm::None, &ff.down, finish);
    });
}

/// Up to sixteen rows: two products that read the weights once.
fn few_rows(
    isa: Isa,
    parallel: &dyn Parallel,
    x: &[f32],
    rows: usize,
    ff: &FeedForward<'_>,
    finish: &Finish<'_>,
) {
    let hidden = ff.up.outputs;
    scratch(product([rows, hidden]), |middle: &mut [f32]| {
        let shared = Shared::new(middle);
        with_few(isa, x, ff.up.inputs, &ff.norm, ff.up.wants_few(), &|few| {
            let tasks = tasks_of_panels(&ff.up, parallel.threads());
            parallel.run(tasks, &|task| {
                let range = part_of(ff.up.panel_count(), tasks, task);
                few_hidden(isa, few, rows, ff, &shared, range);
            });
        });
        with_few(isa, middle, hidden, &Norm::None, ff.down.wants_few(), &|few| {
            few_linear(isa, parallel, few, rows, &ff.down, finish);
        });
    });
}

/// The hidden numbers of some panels.
fn few_hidden(
    isa: Isa,
    few: &FewRows<'_>,
    rows: usize,
    ff: &FeedForward<'_>,
    to: &Shared<f32>,
    range: Range<usize>,
) {
    #[inline(always)]
    unsafe fn part<V: Lanes, const ROWS: usize>(
        few: &FewRows<'_>,
        first: usize,
        ff: &FeedForward<'_>,
        to: &Shared<f32>,
        panel: usize,
    ) {
        let hidden = ff.up.outputs;
        let at = panel * LANES;
        let length = LANES.min(hidden - at);
        // SAFETY: the caller has prepared the rows for these matrices, and has these columns for itself.
        unsafe {
            let bias: V = load_part(ff.up_bias.unwrap_or(&[]), at);
            let ups = few_panel::<V, ROWS>(few, first, &ff.up, panel);
            let gates = match &ff.gate {
                Some(gate) => few_panel::<V, ROWS>(few, first, gate, panel),
                None => ups,
            };
            for (row, (up, gate)) in ups.into_iter().zip(gates).enumerate() {
                let up = up.add(bias);
                let value = if ff.gate.is_some() {
                    silu(gate).mul(up)
                } else {
                    gelu(up)
                };
                store_part(value, to.part((first + row) * hidden + at, length), 0);
            }
        }
    }
    #[inline(always)]
    unsafe fn body<V: Lanes>(
        few: &FewRows<'_>,
        rows: usize,
        ff: &FeedForward<'_>,
        to: &Shared<f32>,
        range: Range<usize>,
    ) {
        for panel in range {
            // SAFETY: as above.
            unsafe { in_groups!(V, rows, first => part(few, first, ff, to, panel)) }
        }
    }
    dispatch!(isa, body(
        few: &FewRows<'_>, rows: usize, ff: &FeedForward<'_>, to: &Shared<f32>, range: Range<usize>,
    ));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::matrix::tests::{FORMS, Form, Weights};
    use crate::norm::tests::naive;
    use crate::testing::{self, Backwards, noise};

    #[test]
    fn agrees_with_float64() {
        for (rows, inputs, hidden, outputs) in [
            (1, 40, 70, 20),
            (3, 130, 300, 50),
            (5, 64, 128, 32),
            (16, 130, 128, 40),
            (17, 33, 200, 33),
            (60, 96, 256, 48),
            (200, 40, 150, 24),
            (300, 20, 33, 17),
        ] {
            let x = noise(rows * inputs, 1);
            let gamma: Vec<f32> = noise(inputs, 2).iter().map(|x| x + 1.0).collect();
            let beta = noise(inputs, 3);
            let (bias, last_bias, residual) = (noise(hidden, 4), noise(outputs, 5), noise(rows * outputs, 6));
            for (form, gated) in FORMS.into_iter().flat_map(|form| [(form, true), (form, false)]) {
                let norm = match (gated, rows % 2) {
                    (true, _) => Norm::Rms {
                        gamma: &gamma,
                        epsilon: 1e-6,
                    },
                    (false, 0) => Norm::None,
                    (false, _) => Norm::Layer {
                        gamma: &gamma,
                        beta: &beta,
                        epsilon: 1e-5,
                    },
                };
                let gate = gated.then(|| Weights::new(form, hidden, inputs, 7));
                let up = Weights::new(form, hidden, inputs, 8);
                let down = Weights::new(form, outputs, hidden, 9);
                let ff = FeedForward {
                    norm,
                    gate: gate.as_ref().map(Weights::matrix),
                    up: up.matrix(),
                    up_bias: Some(&bias),
                    down: down.matrix(),
                    down_bias: (!gated).then_some(&last_bias),
                };
                let spread = rows > FEW;
                let x64 = naive(&x, inputs, &norm);
                let (mut middle, mut slack) = up.product(&x64, spread);
                let gates = gate.as_ref().map(|gate| gate.product(&x64, spread));
                for (i, (up, slack)) in middle.iter_mut().zip(&mut slack).enumerate() {
                    *up += f64::from(bias[i % hidden]);
                    match &gates {
                        None => {
                            *up = testing::gelu(*up);
                            // The slope of GELU, and the coarse one's own error.
                            *slack = 1.13 * *slack + 1e-4;
                        }
                        Some((gate, gate_slack)) => {
                            // SiLU's slope is at most 1.1.
                            let active = gate[i] / (1.0 + (-gate[i]).exp());
                            let active_slack = 1.1 * gate_slack[i] + 1e-6;
                            *slack = *slack * active.abs() + active_slack * (up.abs() + *slack);
                            *up *= active;
                        }
                    }
                }
                let (product, bounds) = down.product(&middle, spread);
                // What the hidden numbers may be off moves the sums by as much times the weights' magnitudes,
                // and the steps of their blocks by 1 / 127 of it.
                let magnitudes: Vec<f64> = slack
                    .chunks(hidden)
                    .flat_map(|slack| {
                        let per_output = |w: &[f32]| -> f64 {
                            let blocks = slack.chunks(128).zip(w.chunks(128));
                            blocks
                                .map(|(slack, w)| {
                                    let top = slack.iter().fold(0.0_f64, |top, x| top.max(*x));
                                    let sized = slack.iter().zip(w);
                                    sized
                                        .map(|(s, w)| (s + top / 127.0) * (f64::from(w.abs()) + 0.02))
                                        .sum::<f64>()
                                })
                                .sum()
                        };
                        down.values.chunks(hidden).map(per_output).collect::<Vec<_>>()
                    })
                    .collect();
                for residual in [None, Some(residual.as_slice())] {
                    for isa in Isa::available() {
                        let mut first: Option<Vec<f32>> = None;
                        for threads in [1, 2, 16] {
                            let mut out = vec![f32::NAN; rows * outputs];
                            feed_forward(isa, &Backwards(threads), &x, &ff, residual, &mut out);
                            let (mut error, mut size) = (0.0, 0.0);
                            for (i, found) in out.iter().enumerate() {
                                let mut expected =
                                    product[i] + residual.map_or(0.0, |residual| f64::from(residual[i]));
                                expected += if gated {
                                    0.0
                                } else {
                                    f64::from(last_bias[i % outputs])
                                };
                                let bound = bounds[i] + magnitudes[i];
                                let off = (f64::from(*found) - expected).abs();
                                assert!(
                                    off <= bound,
                                    "{} {form:?} {rows} rows at {i}: {found} for {expected} +- {bound}",
                                    isa.name()
                                );
                                error += off * off;
                                size += expected * expected;
                            }
                            // Bounds add up the worst of everything; errors that are independent do not.
                            let limit = match form {
                                Form::Float32 => 1e-5,
                                Form::Int8 => 0.03,
                                Form::Int4 => 0.04,
                            };
                            let relative = f64::sqrt(error / size);
                            assert!(
                                relative < limit,
                                "{} {form:?} {rows} rows: {relative}",
                                isa.name()
                            );
                            if let Some(first) = &first {
                                assert!(
                                    *first == out,
                                    "{} {form:?} {rows} rows depends on threads",
                                    isa.name()
                                );
                            }
                            first.get_or_insert(out);
                        }
                    }
                }
            }
        }
    }
}
