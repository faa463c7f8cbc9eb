//! Matrix products: how are rows multiplied with a weight that is used where it lies in its file?
//!
//! - Float32: tiles of rows and panels.
//! - Bytes: unsigned bytes are multiplied with signed ones, so weights are stored + 128; what that adds to a
//!   sum, 128 times the sum of the activations, is taken off beforehand (`quantise.rs`). Sums are exact
//!   within a block of 128 and are added up in float32, each times its activations' scale. The column's scale
//!   comes last.
//!   Sets without an instruction for such products multiply words instead (`Lanes::WORDS`).
//! - Nibbles, many rows: two panels at a time are turned into bytes on one scale per column, and go the way
//!   of the bytes; or they are multiplied as they are, whichever is faster on the set
//!   (`Lanes::NIBBLES`).
//! - Few rows: straight from the weights, whatever their form.
//!
//! A sum's order over the inputs is always the same, whatever the tile and the task: results do not depend on
//! either.

mod few;
mod panels;
mod tiles;

pub(crate) use few::{FEW, FewRows, few_panel, in_groups, nibble_corrections};
pub(crate) use panels::{Cut, NIBBLE_BLOCK, PAIR, WIDTH};
pub use panels::{Matrix, Panels};
pub(crate) use tiles::{Sums, TILE, accumulate};

#[cfg(test)]
pub(super) mod tests {
    use super::panels::Pair;
    use super::*;
    use crate::isa::{Isa, LANES};
    use crate::norm::Norm;
    use crate::parallel::Serial;
    use crate::quantise::with_rows;
    use crate::testing::noise;
    use half::f16;

    /// The three forms.
    pub(crate) const FORMS: [Form; 3] = [Form::Float32, Form::Int8, Form::Int4];

    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub(crate) enum Form {
        Float32,
        Int8,
        Int4,
    }

    /// A random matrix in one of the forms, and the values that it stands for.
    #[derive(Debug)]
    pub(crate) struct Weights {
        pub(crate) outputs: usize,
        pub(crate) inputs: usize,
        /// `[outputs, inputs]`
        pub(crate) values: Vec<f32>,
        form: Form,
        floats: Vec<f32>,
        bytes: Vec<u8>,
        halves: Vec<u16>,
    }

    impl Weights {
        pub(crate) fn new(form: Form, outputs: usize, inputs: usize, seed: u64) -> Weights {
            let mut values = noise(outputs * inputs, seed);
            let panels = outputs.div_ceil(LANES);
            let (mut floats, mut bytes, mut halves) = (Vec::new(), Vec::new(), Vec::new());
            match form {
                Form::Float32 => {
                    floats = vec![0.0; panels * inputs * LANES];
                    for (i, value) in values.iter().enumerate() {
                        let (n, k) = (i / inputs, i % inputs);
                        floats[(n / LANES * inputs + k) * LANES + n % LANES] = *value;
                    }
                }
                Form::Int8 => {
                    let quads = inputs.div_ceil(4);
                    bytes = vec![128; panels * quads * 4 * LANES];
                    floats = noise(outputs, seed + 1)
                        .iter()
                        .map(|x| (x + 1.5) / 127.0)
                        .collect();
                    for (i, value) in values.iter_mut().enumerate() {
                        let (n, k) = (i / inputs, i % inputs);
                        let whole = (*value * 127.0).round();
                        bytes[((n / LANES * quads + k / 4) * LANES + n % LANES) * 4 + k % 4] =
                            (whole + 128.0) as u8;
                        *value = whole * floats[n];
                    }
                }
                Form::Int4 => {
                    let blocks = inputs.div_ceil(32);
                    bytes = vec![0x88; panels * blocks * 256];
                    let scales = noise(panels * blocks * LANES, seed + 1);
                    halves = scales
                        .iter()
                        .map(|x| f16::from_f32((x + 0.3) / 7.0).to_bits())
                        .collect();
                    for (i, value) in values.iter_mut().enumerate() {
                        let (n, k) = (i / inputs, i % inputs);
                        let whole = (*value * 7.5 - 0.5).round();
                        let block = n / LANES * blocks + k / 32;
                        let (group, part) = (k % 32 / 8, k % 8);
                        let byte = &mut bytes[block * 256 + group * 64 + n % LANES * 4 + part % 4];
                        let nibble = (whole + 8.0) as u8;
                        *byte = if part < 4 {
                            *byte & 0xf0 | nibble
                        } else {
                            *byte & 0x0f | nibble << 4
                        };
                        *value = whole * f16::from_bits(halves[block * LANES + n % LANES]).to_f32();
                    }
                }
            }
            Weights {
                outputs,
                inputs,
                values,
                form,
                floats,
                bytes,
                halves,
            }
        }

        pub(crate) fn matrix(&self) -> Matrix<'_> {
            Matrix {
                outputs: self.outputs,
                inputs: self.inputs,
                panels: match self.form {
                    Form::Float32 => Panels::Float32(&self.floats),
                    Form::Int8 => Panels::Int8 {
                        bytes: &self.bytes,
                        scales: &self.floats,
                    },
                    Form::Int4 => Panels::Int4 {
                        nibbles: &self.bytes,
                        scales: &self.halves,
                    },
                },
            }
        }

        /// `x W^T` in float64 for `x` `[rows, inputs]`, and how far off a kernel may be: what rounding the
        /// activations (to half of a step of their block) and, if `spread`, nibbles (to half of a step of
        /// their column) can add up to, and float32's own rounding.
        pub(crate) fn product(&self, x: &[f64], spread: bool) -> (Vec<f64>, Vec<f64>) {
            let (mut out, mut bounds) = (Vec::new(), Vec::new());
            for x in x.chunks(self.inputs) {
                for w in self.values.chunks(self.inputs) {
                    let (mut sum, mut size, mut bound) = (0.0, 0.0, 0.0);
                    // A column's largest nibble is at most 8 / 7 of the largest value that occurs, or 8 times
                    // a scale that no value makes use of: the test's scales are at most 1.3 / 7.
                    let column_step = if spread && self.form == Form::Int4 {
                        8.0 * 1.3 / 7.0 / 127.0
                    } else {
                        0.0
                    };
                    for (x, w) in x.chunks(128).zip(w.chunks(128)) {
                        let top = x.iter().fold(0.0_f64, |top, x| top.max(x.abs()));
                        let step = if self.form == Form::Float32 {
                            0.0
                        } else {
                            top / 127.0
                        };
                        for (x, w) in x.iter().zip(w) {
                            let w = f64::from(*w);
                            sum += x * w;
                            size += (x * w).abs();
                            bound += 0.501 * step * (w.abs() + 0.51 * column_step);
                            bound += 0.51 * column_step * x.abs();
                        }
                    }
                    out.push(sum);
                    bounds.push(bound + 1e-5 * size + 1e-6);
                }
            }
            (out, bounds)
        }
    }

    #[test]
    fn spread_nibbles_keep_their_values() {
        let weights = Weights::new(Form::Int4, 40, 100, 5);
        let matrix = weights.matrix();
        matrix.check();
        for isa in Isa::available() {
            for (first, count) in [(0, 2), (2, 1)] {
                let mut scales = [0.0; WIDTH];
                matrix.column_scales(isa, first, count, &mut scales);
                let mut room = vec![0; matrix.room(isa, 100)];
                let cut = Cut {
                    first,
                    count,
                    block: 0,
                    inputs: 100,
                };
                let pair = matrix.pair(isa, cut, &scales, &mut room);
                // Rows of one 1 each, whose products are the weights.
                let ones: Vec<f32> = (0..100 * 100).map(|i| f32::from(i % 101 == 0)).collect();
                let mut sums = vec![0.0; 100 * WIDTH];
                with_rows(isa, &Serial, &ones, 100, &Norm::None, matrix.wants(isa), |rows| {
                    let sums = Sums {
                        values: &mut sums,
                        stride: WIDTH,
                        fresh: true,
                        coming: [None; 2],
                    };
                    accumulate(isa, rows, 0..100, &pair, sums);
                });
                for n in first * LANES..(40).min((first + count) * LANES) {
                    let column = n - first * LANES;
                    for k in 0..100 {
                        let value = scales[column] * sums[k * WIDTH + column];
                        let error = (value - weights.values[n * 100 + k]).abs();
                        assert!(error <= scales[column] * 0.503, "{} {n} {k}: {error}", isa.name());
                    }
                }
            }
        }
    }

    /// The sums of rows with a matrix of one pair of panels, `[rows, 32]`, as tiles make them, and whether its
    /// weights became bytes for that.
    fn pair_sums(isa: Isa, matrix: &Matrix<'_>, scales: &[f32], x: &[f32]) -> (bool, Vec<f32>) {
        let inputs = matrix.inputs;
        let rows = x.len() / inputs;
        let mut room = vec![0xff; matrix.room(isa, inputs)];
        let cut = Cut {
            first: 0,
            count: 2,
            block: 0,
            inputs,
        };
        let pair = matrix.pair(isa, cut, scales, &mut room);
        let mut values = vec![f32::NAN; rows * WIDTH];
        with_rows(
            isa,
            &Serial,
            x,
            inputs,
            &Norm::None,
            matrix.wants(isa),
            |prepared| {
                let sums = Sums {
                    values: &mut values,
                    stride: WIDTH,
                    fresh: true,
                    coming: [None; 2],
                };
                accumulate(isa, prepared, 0..rows, &pair, sums);
            },
        );
        (matches!(pair, Pair::Bytes { .. }), values)
    }

    #[test]
    fn sums_of_bytes_are_exact_on_every_set() {
        for (rows, inputs) in [(1, 128), (7, 128), (13, 100), (25, 33), (12, 4)] {
            // Whole numbers with 127 or -127 in each row, whose scale is one step.
            let mut x: Vec<f32> = noise(rows * inputs, 3)
                .iter()
                .map(|x| (x * 127.0).round())
                .collect();
            for (row, x) in x.chunks_mut(inputs).enumerate() {
                x[row % inputs] = if row % 2 == 0 { 127.0 } else { -127.0 };
            }
            for least in [0, 255, 1] {
                // All bytes, the largest sums that there are, and the smallest.
                let quads = inputs.div_ceil(4);
                let bytes: Vec<u8> = (0..2 * quads * 64).map(|i| (i * 37 % 256) as u8).collect();
                let bytes: Vec<u8> = match least {
                    0 => bytes,
                    least => vec![least; bytes.len()],
                };
                let ones = [1.0; WIDTH];
                let matrix = Matrix {
                    outputs: WIDTH,
                    inputs,
                    panels: Panels::Int8 {
                        bytes: &bytes,
                        scales: &ones,
                    },
                };
                for isa in Isa::available() {
                    let (_, sums) = pair_sums(isa, &matrix, &ones, &x);
                    for (i, sum) in sums.iter().enumerate() {
                        let (row, column) = (i / WIDTH, i % WIDTH);
                        let expected: i32 = (0..inputs)
                            .map(|k| {
                                let at = (column / LANES * quads + k / 4) * 64 + column % LANES * 4 + k % 4;
                                (i32::from(bytes[at]) - 128) * x[row * inputs + k] as i32
                            })
                            .sum();
                        let expected = expected as f32 * (127.0 * (1.0 / 127.0));
                        assert_eq!(*sum, expected, "{} {rows}x{inputs} {row} {column}", isa.name());
                    }
                }
            }
        }
    }

    #[test]
    fn sums_of_nibbles_are_exact_where_they_are_not_spread() {
        for (rows, inputs) in [(1, 128), (13, 100), (25, 33)] {
            let mut x: Vec<f32> = noise(rows * inputs, 3)
                .iter()
                .map(|x| (x * 127.0).round())
                .collect();
            for (row, x) in x.chunks_mut(inputs).enumerate() {
                x[row % inputs] = 127.0;
                if row % 3 == 1 {
                    // The largest sums that there are, of either sign.
                    x.fill(if row % 2 == 0 { 127.0 } else { -127.0 });
                }
            }
            let blocks = inputs.div_ceil(NIBBLE_BLOCK);
            let ones = vec![f16::ONE.to_bits(); 2 * blocks * LANES];
            for fill in [None, Some(0_u8), Some(0xff)] {
                let nibbles: Vec<u8> = (0..2 * blocks * 256)
                    .map(|i| fill.unwrap_or((i * 37 % 256) as u8))
                    .collect();
                let matrix = Matrix {
                    outputs: WIDTH,
                    inputs,
                    panels: Panels::Int4 {
                        nibbles: &nibbles,
                        scales: &ones,
                    },
                };
                for isa in Isa::available() {
                    let mut scales = [0.0; WIDTH];
                    matrix.column_scales(isa, 0, 2, &mut scales);
                    let (spread, sums) = pair_sums(isa, &matrix, &scales, &x);
                    if spread {
                        continue;
                    }
                    for (i, sum) in sums.iter().enumerate() {
                        let (row, column) = (i / WIDTH, i % WIDTH);
                        let expected: i32 = (0..inputs)
                            .map(|k| {
                                let block = column / LANES * blocks + k / 32;
                                let (group, part) = (k % 32 / 8, k % 8);
                                let byte = nibbles[block * 256 + group * 64 + column % LANES * 4 + part % 4];
                                let nibble = if part < 4 { byte & 15 } else { byte >> 4 };
                                (i32::from(nibble) - 8) * x[row * inputs + k] as i32
                            })
                            .sum();
                        let expected = expected as f32 * (127.0 * (1.0 / 127.0));
                        assert_eq!(*sum, expected, "{} {rows}x{inputs} {row} {column}", isa.name());
                    }
                }
            }
        }
    }
}
