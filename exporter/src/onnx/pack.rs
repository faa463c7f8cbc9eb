//! What do quantised forms hold, byte for byte? Those of target `cpu` are panels, bytes and nibbles, described in
//! [`models::fused`]; those of Core ML packages are rows; those of portable graphs are rows and blocks (`rows`). They are
//! made here, a few rows at a time.

mod halves;
mod rows;

use super::feedback::{Run, run_of};
use crate::error::ExportError;
use half::f16;
use halves::Halves;
use models::checkpoint::CheckpointError;
use models::fused::{BLOCK, Encoding, PANEL, PLANE_BLOCK};
use models::graph::{Nibble, Rows, WeightForm, WeightRef};
use models::weights::{MOMENTS, WeightSpec, Weights};

/// Outputs in a panel.
const LANES: usize = PANEL as usize;

/// Inputs that share an int4 scale.
const WIDTH: usize = BLOCK as usize;

/// Bytes of an int4 block of a panel.
const NIBBLES: usize = LANES * WIDTH / 2;

/// Bytes of a plane's run.
const RUN: usize = PLANE_BLOCK as usize / 2;

/// Rows of a table that are handled together.
const TABLE_ROWS: usize = 1024;

/// Whether the weight's form is one that is made here.
pub fn is_packed(weight: &WeightRef) -> bool {
    match weight.form {
        WeightForm::Stored | WeightForm::Transposed => false,
        WeightForm::Vector(_)
        | WeightForm::Panels(..)
        | WeightForm::PanelScales(..)
        | WeightForm::Bytes
        | WeightForm::Plane(_)
        | WeightForm::ByteScales
        | WeightForm::Signed8
        | WeightForm::Signed8Scales
        | WeightForm::Signed4
        | WeightForm::Signed4Scales
        | WeightForm::Int8
        | WeightForm::Int8Transposed
        | WeightForm::Blocks(_)
        | WeightForm::BlockScales(_) => true,
    }
}

/// Makes the bytes of a weight in its form, piece by piece in file order.
///
/// # Errors
/// Weights that cannot be read, scales that float16 does not hold, or what `emit` returns.
pub fn pack<E: From<ExportError>>(
    weight: &WeightRef,
    weights: &dyn Weights,
    emit: &mut dyn FnMut(Vec<u8>) -> Result<(), E>,
) -> Result<(), E> {
    match &weight.form {
        WeightForm::Vector(rows) => {
            let matrix = Matrix::open(weight, rows, weights)?;
            let mut values = Vec::new();
            matrix.read(0, matrix.rows, &mut values)?;
            emit(bytemuck::cast_slice(&values).to_vec())
        }
        WeightForm::Panels(encoding, rows) => {
            panels(&Matrix::open(weight, rows, weights)?, *encoding, None, emit)
        }
        WeightForm::PanelScales(encoding, rows) => {
            let mut halves = Halves::default();
            let matrix = Matrix::open(weight, rows, weights)?;
            panels(&matrix, *encoding, Some(&mut halves), emit)?;
            Ok(halves.finish(&weight.name)?)
        }
        WeightForm::Bytes => table(weight, weights, &mut bytes_of, emit),
        WeightForm::Plane(nibble) => table(weight, weights, &mut |row| plane_of(row, *nibble), emit),
        WeightForm::ByteScales => table(
            weight,
            weights,
            &mut |row| byte_scale(row).to_le_bytes().to_vec(),
            emit,
        ),
        WeightForm::Signed8 => table(weight, weights, &mut signed_bytes, emit),
        WeightForm::Signed8Scales => {
            let mut halves = Halves::unpacked();
            let mut scale = |row: &[f32]| halves.scale(row, byte_scale(row)).to_le_bytes().to_vec();
            table(weight, weights, &mut scale, emit)?;
            Ok(halves.finish(&weight.name)?)
        }
        WeightForm::Signed4 => table(weight, weights, &mut signed_nibbles, emit),
        WeightForm::Signed4Scales => {
            let mut halves = Halves::unpacked();
            let mut scales = |row: &[f32]| {
                let scale = |block| halves.scale(block, nibble_scale(&padded(block), None));
                row.chunks(WIDTH).map(scale).flat_map(f16::to_le_bytes).collect()
            };
            table(weight, weights, &mut scales, emit)?;
            Ok(halves.finish(&weight.name)?)
        }
        WeightForm::Int8 => table(weight, weights, &mut rows::signed, emit),
        WeightForm::Int8Transposed => rows::transposed(weight, weights, emit),
        WeightForm::Blocks(blocks) => {
            rows::expect(*blocks)?;
            table(weight, weights, &mut |row| rows::codes(row, *blocks), emit)
        }
        WeightForm::BlockScales(blocks) => {
            rows::expect(*blocks)?;
            let mut halves = if blocks.half {
                Halves::unpacked()
            } else {
                Halves::default()
            };
            let mut scales = |row: &[f32]| rows::scales(row, *blocks, &mut halves);
            table(weight, weights, &mut scales, emit)?;
            Ok(halves.finish(&weight.name)?)
        }
        WeightForm::Stored | WeightForm::Transposed => Err(E::from(ExportError::Internal {
            what: format!("weight `{}` is not to be packed", weight.name),
        })),
    }
}

/// All of it.
///
/// # Errors
/// Weights that cannot be read.
pub fn bytes(weight: &WeightRef, weights: &dyn Weights) -> Result<Vec<u8>, ExportError> {
    let mut bytes = Vec::new();
    pack::<ExportError>(weight, weights, &mut |piece| {
        bytes.extend(piece);
        Ok(())
    })?;
    Ok(bytes)
}

/// A matrix of several weights, read by rows.
struct Matrix<'w> {
    weights: &'w dyn Weights,
    /// Each weight with its rows.
    parts: Vec<(&'w WeightSpec, usize)>,
    gain: Option<Vec<f32>>,
    rows: usize,
    columns: usize,
}

impl<'w> Matrix<'w> {
    fn open(weight: &WeightRef, rows: &Rows, weights: &'w dyn Weights) -> Result<Self, ExportError> {
        let spec = |name: &str| {
            let found = weights.specs().iter().find(|spec| spec.name == name);
            found.ok_or_else(|| CheckpointError::UnknownWeight {
                name: name.to_owned(),
            })
        };
        let names = std::iter::once(&weight.name).chain(&rows.below);
        let mut parts = Vec::new();
        for name in names {
            let spec = spec(name)?;
            parts.push((spec, spec.matrix().0));
        }
        let columns = parts.first().map_or(0, |(spec, _)| spec.matrix().1);
        let total = parts.iter().map(|(_, rows)| rows).sum();
        let gain = rows.gain.as_ref().map(|name| weights.read(name)).transpose()?;
        let fits = |values: &Vec<f32>| values.len() == total;
        if parts.iter().any(|(spec, _)| spec.matrix().1 != columns) || !gain.as_ref().is_none_or(fits) {
            let what = format!("the parts of `{}` do not fit together", weight.name);
            return Err(ExportError::Internal { what });
        }
        Ok(Matrix {
            weights,
            parts,
            gain,
            rows: total,
            columns,
        })
    }

    /// Rows `start..end` (what lies beyond the last is 0), row-major.
    fn read(&self, start: usize, end: usize, out: &mut Vec<f32>) -> Result<(), ExportError> {
        out.clear();
        out.resize((end - start) * self.columns, 0.0);
        let mut first = 0;
        for (spec, rows) in &self.parts {
            let (from, to) = (start.max(first), end.min(first + rows));
            if from < to {
                let place = (from - start) * self.columns..(to - start) * self.columns;
                let target = out.get_mut(place).unwrap_or_default();
                self.weights
                    .read_block(&spec.name, from - first..to - first, 0..self.columns, target)?;
            }
            first += rows;
        }
        if let Some(gain) = &self.gain {
            let lines = out.chunks_mut(self.columns.max(1));
            for (line, factor) in lines.zip(gain.iter().skip(start)) {
                line.iter_mut().for_each(|value| *value *= factor);
            }
        }
        Ok(())
    }
}

/// What is known of a matrix's inputs: how errors are taken back, run by run, and how much each input matters.
struct Known {
    runs: Vec<Run>,
    /// Second moment of each input.
    importance: Vec<f32>,
}

impl Known {
    /// Of a matrix, where there are statistics of its inputs.
    fn of(matrix: &Matrix<'_>) -> Result<Option<Known>, ExportError> {
        let Some((first, _)) = matrix.parts.first() else {
            return Ok(None);
        };
        let mut known = Known {
            runs: Vec::new(),
            importance: Vec::new(),
        };
        for index in 0..matrix.columns.div_ceil(MOMENTS) {
            let width = run_of(index, matrix.columns).len();
            let Some(moments) = matrix.weights.moments(&first.name, index)? else {
                return Ok(None);
            };
            known.runs.push(Run::new(&first.name, &moments, width)?);
            known.importance.extend(moments.iter().step_by(width + 1));
        }
        // What was never seen matters a little.
        let mean = known.importance.iter().sum::<f32>() / known.importance.len().max(1) as f32;
        let floor = if mean > 0.0 { 0.01 * mean } else { 1.0 };
        known.importance.iter_mut().for_each(|much| *much += floor);
        Ok(Some(known))
    }
}

/// Panels of 16 outputs, or with `scales` those, which note what becomes float16.
fn panels<E: From<ExportError>>(
    matrix: &Matrix<'_>,
    encoding: Encoding,
    mut scales: Option<&mut Halves>,
    emit: &mut dyn FnMut(Vec<u8>) -> Result<(), E>,
) -> Result<(), E> {
    let known = match encoding {
        Encoding::Float32 => None,
        Encoding::Int8 | Encoding::Int4 => Known::of(matrix)?,
    };
    if let Some(known) = known {
        return informed_panels(matrix, encoding, scales, &known, emit);
    }
    let mut lines = Vec::new();
    for start in (0..matrix.rows).step_by(LANES) {
        matrix.read(start, start + LANES, &mut lines)?;
        let rows: Vec<&[f32]> = lines.chunks(matrix.columns.max(1)).collect();
        emit(match (encoding, &mut scales) {
            (Encoding::Float32, _) => float_panel(&rows),
            (Encoding::Int8, None) => byte_panel(&rows),
            (Encoding::Int8, Some(_)) => {
                let real = rows.iter().take(matrix.rows - start);
                real.flat_map(|row| byte_scale(row).to_le_bytes()).collect()
            }
            (Encoding::Int4, None) => nibble_panel(&rows),
            (Encoding::Int4, Some(halves)) => {
                let factors = nibble_scales(&rows, None, halves);
                let halves = factors.iter().flatten();
                halves.flat_map(|scale| scale.to_le_bytes()).collect()
            }
        })?;
    }
    Ok(())
}

/// As [`panels`] for bytes and nibbles, where the inputs are known.
fn informed_panels<E: From<ExportError>>(
    matrix: &Matrix<'_>,
    encoding: Encoding,
    scales: Option<&mut Halves>,
    known: &Known,
    emit: &mut dyn FnMut(Vec<u8>) -> Result<(), E>,
) -> Result<(), E> {
    let columns = matrix.columns;
    let mut lines = Vec::new();
    let wants_scales = scales.is_some();
    let mut unasked = Halves::default();
    let halves = scales.unwrap_or(&mut unasked);
    for start in (0..matrix.rows).step_by(LANES) {
        matrix.read(start, start + LANES, &mut lines)?;
        let rows: Vec<&[f32]> = lines.chunks(columns.max(1)).collect();
        // `[blocks][lane]`; bytes have one block.
        let (width, factors) = match encoding {
            Encoding::Int4 => {
                let factors = nibble_scales(&rows, Some(&known.importance), halves);
                (
                    WIDTH,
                    factors.into_iter().map(|block| block.map(f16::to_f32)).collect(),
                )
            }
            Encoding::Int8 | Encoding::Float32 => {
                let scale = |row: &&[f32]| best_byte_scale(row, Some(&known.importance));
                (columns.max(1), vec![array_of(rows.iter().map(scale))])
            }
        };
        if wants_scales {
            emit(match encoding {
                Encoding::Int4 => {
                    let halves = factors.iter().flatten().map(|scale| f16::from_f32(*scale));
                    halves.flat_map(f16::to_le_bytes).collect()
                }
                Encoding::Int8 | Encoding::Float32 => {
                    let real = factors.iter().flatten().take(matrix.rows - start);
                    real.flat_map(|scale| scale.to_le_bytes()).collect()
                }
            })?;
            continue;
        }
        let inverses: Vec<[f32; LANES]> = factors.iter().map(|block| block.map(inverse)).collect();
        let (least, most) = match encoding {
            Encoding::Int4 => (-8.0, 7.0),
            Encoding::Int8 | Encoding::Float32 => (-127.0, 127.0),
        };
        // `[K][lane]`: weights, then whole numbers.
        let mut panel: Vec<[f32; LANES]> = (0..columns)
            .map(|column| array_of(rows.iter().map(|row| row.get(column).copied().unwrap_or(0.0))))
            .collect();
        for (index, run) in known.runs.iter().enumerate() {
            let place = run_of(index, columns);
            let first = place.start;
            let part = panel.get_mut(place).unwrap_or_default();
            let mut codes = vec![[0.0; LANES]; part.len()];
            run.round(part, |input, weights| {
                let block = (first + input) / width;
                let factors = factors.get(block).copied().unwrap_or([0.0; LANES]);
                let inverses = inverses.get(block).copied().unwrap_or([0.0; LANES]);
                let mut code = [0.0; LANES];
                for ((code, weight), inverse) in code.iter_mut().zip(weights).zip(&inverses) {
                    *code = round((weight * inverse).clamp(least, most));
                }
                if let Some(place) = codes.get_mut(input) {
                    *place = code;
                }
                let mut rounded = [0.0; LANES];
                for ((rounded, code), factor) in rounded.iter_mut().zip(&code).zip(&factors) {
                    *rounded = code * factor;
                }
                rounded
            });
            part.copy_from_slice(&codes);
        }
        emit(match encoding {
            Encoding::Int4 => nibbles_of(&panel),
            Encoding::Int8 | Encoding::Float32 => bytes_of_panel(&panel),
        })?;
    }
    Ok(())
}

/// The first [`LANES`] values, filled up with 0.
fn array_of(values: impl Iterator<Item = f32>) -> [f32; LANES] {
    let mut array = [0.0; LANES];
    array.iter_mut().zip(values).for_each(|(to, from)| *to = from);
    array
}

/// The half-precision scales of a panel's blocks of nibbles, `[K/32][16]`; the importance of the inputs counts where it
/// is known.
fn nibble_scales(rows: &[&[f32]], importance: Option<&[f32]>, halves: &mut Halves) -> Vec<[f16; LANES]> {
    let columns = rows.first().map_or(0, |row| row.len());
    let mut scales = vec![[f16::ZERO; LANES]; columns.div_ceil(WIDTH)];
    let importance: Vec<[f32; WIDTH]> = importance
        .into_iter()
        .flat_map(|importance| importance.chunks(WIDTH).map(padded))
        .collect();
    for (lane, row) in rows.iter().enumerate() {
        for (index, (scales, values)) in scales.iter_mut().zip(row.chunks(WIDTH)).enumerate() {
            let exact = nibble_scale(&padded(values), importance.get(index));
            if let Some(to) = scales.get_mut(lane) {
                *to = halves.scale(values, exact);
            }
        }
    }
    scales
}

/// `[K/4,16,4]` of whole numbers `[K][16]`.
fn bytes_of_panel(panel: &[[f32; LANES]]) -> Vec<u8> {
    let mut out = vec![128; panel.len().next_multiple_of(4) * LANES];
    for (column, codes) in panel.iter().enumerate() {
        for (lane, code) in codes.iter().enumerate() {
            let place = column / 4 * 4 * LANES + 4 * lane + column % 4;
            if let Some(byte) = out.get_mut(place) {
                // Between 1 and 255; a cast takes NaN to 0.
                *byte = (code + 128.0) as u8;
            }
        }
    }
    out
}

/// `[K/32,256]` of whole numbers `[K][16]`.
fn nibbles_of(panel: &[[f32; LANES]]) -> Vec<u8> {
    let mut out = vec![0; panel.len().div_ceil(WIDTH) * NIBBLES];
    for column in 0..panel.len().next_multiple_of(WIDTH) {
        let codes = panel.get(column).copied().unwrap_or([0.0; LANES]);
        for (lane, code) in codes.iter().enumerate() {
            let code = (code + 8.0) as u8;
            if let Some(byte) = out.get_mut(place_of_nibble(column, lane)) {
                *byte |= if column % 8 < 4 { code } else { code << 4 };
            }
        }
    }
    out
}

/// The byte of a panel that holds the nibble of an input and a lane.
fn place_of_nibble(column: usize, lane: usize) -> usize {
    let (block, within) = (column / WIDTH, column % WIDTH);
    block * NIBBLES + within / 8 * 4 * LANES + 4 * lane + within % 4
}

/// `[K,16]`
fn float_panel(rows: &[&[f32]]) -> Vec<u8> {
    let columns = rows.first().map_or(0, |row| row.len());
    let mut out = Vec::with_capacity(columns * LANES * 4);
    for column in 0..columns {
        for row in rows {
            out.extend(row.get(column).copied().unwrap_or(0.0).to_le_bytes());
        }
    }
    out
}

/// `[K/4,16,4]`
fn byte_panel(rows: &[&[f32]]) -> Vec<u8> {
    let columns = rows.first().map_or(0, |row| row.len()).next_multiple_of(4);
    let mut out = vec![128; columns * LANES];
    for (lane, row) in rows.iter().enumerate() {
        let inverse = inverse(byte_scale(row));
        for (column, value) in row.iter().enumerate() {
            let place = column / 4 * 4 * LANES + 4 * lane + column % 4;
            if let Some(byte) = out.get_mut(place) {
                *byte = byte_of(*value, inverse);
            }
        }
    }
    out
}

/// The nearest whole number, halves to even, for magnitudes below 2^22: adding 1.5 * 2^23 leaves no bits for a
/// fraction. Not `round_ties_even`, which is a call where the processor that is compiled for has no instruction for it.
fn round(value: f32) -> f32 {
    const MAGIC: f32 = 12_582_912.0;
    (value + MAGIC) - MAGIC
}

/// `round(value / scale) + 128`
fn byte_of(value: f32, inverse: f32) -> u8 {
    // Between 1 and 255; a cast takes NaN to 0.
    (round(value * inverse).clamp(-127.0, 127.0) + 128.0) as u8
}

/// The scale of a row of bytes: of a few below the one that just covers the largest weight, that with the smallest
/// squared error.
fn byte_scale(row: &[f32]) -> f32 {
    best_byte_scale(row, None)
}

/// The same, each error weighted by the importance of its input where that is known.
fn best_byte_scale(row: &[f32], importance: Option<&[f32]>) -> f32 {
    let largest = largest(row);
    if largest == 0.0 || !largest.is_finite() {
        return if largest == 0.0 { 0.0 } else { f32::NAN };
    }
    let covering = largest / 127.0;
    let mut best = (f32::INFINITY, covering);
    for shrink in [1.0_f32, 0.96, 0.92, 0.88, 0.84, 0.8] {
        let scale = covering * shrink;
        let inverse = 1.0 / scale;
        let square = |value: f32| {
            let error = value - round(value * inverse).clamp(-127.0, 127.0) * scale;
            error * error
        };
        let error = match importance {
            None => sum_over(row, square),
            Some(importance) => row
                .iter()
                .zip(importance)
                .map(|(value, much)| much * square(*value))
                .sum(),
        };
        if error < best.0 {
            best = (error, scale);
        }
    }
    best.1
}

/// The largest magnitude; NaN if there is one.
fn largest(values: &[f32]) -> f32 {
    // Bit patterns of magnitudes are ordered like the magnitudes, NaN last.
    let bits = values
        .iter()
        .fold(0, |largest, value| value.abs().to_bits().max(largest));
    f32::from_bits(bits)
}

/// A sum in lanes, so that it compiles to vector instructions.
fn sum_over(values: &[f32], term: impl Fn(f32) -> f32) -> f32 {
    let (chunks, rest) = values.as_chunks::<8>();
    let mut sums = [0.0_f32; 8];
    for chunk in chunks {
        for (sum, value) in sums.iter_mut().zip(chunk) {
            *sum += term(*value);
        }
    }
    sums.iter().sum::<f32>() + rest.iter().map(|value| term(*value)).sum::<f32>()
}

/// `1 / scale`, 0 for 0.
fn inverse(scale: f32) -> f32 {
    if scale == 0.0 { 0.0 } else { 1.0 / scale }
}

/// `[K/32,256]` nibbles.
fn nibble_panel(rows: &[&[f32]]) -> Vec<u8> {
    let columns = rows.first().map_or(0, |row| row.len());
    let blocks = columns.div_ceil(WIDTH);
    let mut nibbles = vec![0; blocks * NIBBLES];
    for (lane, row) in rows.iter().enumerate() {
        for (index, values) in row.chunks(WIDTH).enumerate() {
            let codes = nibble_codes(&padded(values));
            for (column, code) in codes.iter().enumerate() {
                let (group, within) = (column / 8, column % 8);
                let place = index * NIBBLES + group * 4 * LANES + 4 * lane + within % 4;
                if let Some(byte) = nibbles.get_mut(place) {
                    *byte |= if within < 4 { *code } else { *code << 4 };
                }
            }
        }
    }
    nibbles
}

/// The codes (0 to 15, 8 is 0) of a block of weights by the scale that is stored.
fn nibble_codes(block: &[f32; WIDTH]) -> [u8; WIDTH] {
    let scale = f16::from_f32(nibble_scale(block, None)).to_f32();
    if !scale.is_finite() {
        return [8; WIDTH];
    }
    let inverse = inverse(scale);
    block.map(|value| (round(value * inverse).clamp(-8.0, 7.0) + 8.0) as u8)
}

/// The scale of a block of nibbles with the smallest squared error found, each error weighted by the importance of its
/// input where that is known.
///
/// For each of a few starting scales: round, then the scale that fits those codes best, `sum(w q) / sum(q^2)`. The
/// starting scales put the largest weight at -8, the end with one more step, or a little inside or outside.
fn nibble_scale(block: &[f32; WIDTH], importance: Option<&[f32; WIDTH]>) -> f32 {
    let magnitude = largest(block);
    if magnitude == 0.0 || !magnitude.is_finite() {
        return if magnitude == 0.0 { 0.0 } else { f32::NAN };
    }
    // With its sign: the codes reach one step further below than above.
    let signed = block
        .iter()
        .find(|value| value.abs() == magnitude)
        .copied()
        .unwrap_or(magnitude);
    let mut best = (f32::NEG_INFINITY, 0.0);
    for steps in [8.0_f32, 7.0, 7.25, 7.5, 7.75, 8.25, 8.5, 9.0, -7.0, -7.5] {
        let inverse = -steps / signed;
        let code = |value: f32| round(value * inverse).clamp(-8.0, 7.0);
        let (product, square) = match importance {
            None => (
                sum_over(block, |value| value * code(value)),
                sum_over(block, |value| code(value) * code(value)),
            ),
            Some(importance) => {
                let (mut product, mut square) = (0.0, 0.0);
                for (value, much) in block.iter().zip(importance) {
                    let code = code(*value);
                    product += much * value * code;
                    square += much * code * code;
                }
                (product, square)
            }
        };
        // The squared error is sum(w^2) - product^2 / square.
        let gain = product * product / square;
        if square > 0.0 && gain > best.0 {
            best = (gain, product / square);
        }
    }
    best.1
}

/// A table, row by row.
fn table<E: From<ExportError>>(
    weight: &WeightRef,
    weights: &dyn Weights,
    row: &mut dyn FnMut(&[f32]) -> Vec<u8>,
    emit: &mut dyn FnMut(Vec<u8>) -> Result<(), E>,
) -> Result<(), E> {
    let matrix = Matrix::open(weight, &Rows::default(), weights)?;
    let mut lines = Vec::new();
    for start in (0..matrix.rows).step_by(TABLE_ROWS) {
        matrix.read(start, matrix.rows.min(start + TABLE_ROWS), &mut lines)?;
        emit(lines.chunks(matrix.columns.max(1)).flat_map(&mut *row).collect())?;
    }
    Ok(())
}

/// `[D]`
fn bytes_of(row: &[f32]) -> Vec<u8> {
    let inverse = inverse(byte_scale(row));
    row.iter().map(|value| byte_of(*value, inverse)).collect()
}

/// The scale of a row of bytes as Core ML has it: what is rounded by it is multiplied by the same number again.
fn half_scale(row: &[f32]) -> f16 {
    f16::from_f32(byte_scale(row))
}

/// `[K]`, two's complement.
fn signed_bytes(row: &[f32]) -> Vec<u8> {
    let inverse = inverse(half_scale(row).to_f32());
    let signed = |value: &f32| byte_of(*value, inverse).wrapping_sub(128);
    row.iter().map(signed).collect()
}

/// `[K/2]`, two's complement, the lower nibble first. `K` is a multiple of [`BLOCK`].
fn signed_nibbles(row: &[f32]) -> Vec<u8> {
    let mut out = Vec::with_capacity(row.len() / 2);
    for block in row.chunks(WIDTH) {
        let codes = nibble_codes(&padded(block));
        // 8 stands for 0: with the highest bit turned over it is two's complement.
        let signed = codes.map(|code| code ^ 8);
        let pairs = signed.as_chunks::<2>().0.iter();
        out.extend(pairs.map(|[low, high]| low | high << 4));
    }
    out
}

/// A block, filled up with 0.
fn padded(values: &[f32]) -> [f32; WIDTH] {
    let mut block = [0.0; WIDTH];
    for (to, from) in block.iter_mut().zip(values) {
        *to = *from;
    }
    block
}

/// `[D/128,64]`
fn plane_of(row: &[f32], nibble: Nibble) -> Vec<u8> {
    let mut out = Vec::with_capacity(row.len().div_ceil(2 * RUN) * RUN);
    for bytes in bytes_of(row).chunks(2 * RUN) {
        let mut run = [0; RUN];
        for (index, byte) in bytes.iter().enumerate() {
            let half = match nibble {
                Nibble::High => byte >> 4,
                Nibble::Low => byte & 15,
            };
            let shift = if index < RUN { 0 } else { 4 };
            if let Some(to) = run.get_mut(index % RUN) {
                *to |= half << shift;
            }
        }
        out.extend(run);
    }
    out
}

#[cfg(test)]
mod tests;
