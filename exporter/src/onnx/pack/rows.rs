//! Rows of portable graphs: signed bytes with a scale for each row, as `DequantizeLinear` has them, and blocks of codes,
//! as `MatMulNBits` and tables beside it have them. Scales and codes are those of the other forms: nibbles round as
//! in target `cpu`, bytes by the same search, in a block as in a row.

use super::{
    Halves, Matrix, TABLE_ROWS, WIDTH, byte_of, byte_scale, bytes_of, half_scale, inverse, nibble_codes,
    nibble_scale, padded,
};
use crate::error::ExportError;
use models::graph::{Blocks, Rows, WeightRef};
use models::weights::Weights;

/// Numbers of a part of a matrix that is transposed in memory.
const PART: usize = 1 << 22;

/// Bits of a nibble.
const NIBBLE: u64 = 4;

/// The code of 0 in a byte.
const ZERO: u8 = 128;

/// Whether such blocks can be made: nibbles have the blocks of target `cpu`.
///
/// # Errors
/// They cannot.
pub(super) fn expect(blocks: Blocks) -> Result<(), ExportError> {
    if blocks.bits == 8 || (blocks.bits == NIBBLE && length(blocks) == WIDTH) {
        return Ok(());
    }
    Err(ExportError::Internal {
        what: format!(
            "no blocks of {} numbers of {} bits are made",
            blocks.size, blocks.bits
        ),
    })
}

fn length(blocks: Blocks) -> usize {
    usize::try_from(blocks.size).unwrap_or(usize::MAX)
}

/// `[K]`, two's complement.
pub(super) fn signed(row: &[f32]) -> Vec<u8> {
    bytes_of(row).iter().map(|byte| byte.wrapping_sub(ZERO)).collect()
}

/// `[K/size, size * bits / 8]`, the lower bits of a byte first.
pub(super) fn codes(row: &[f32], blocks: Blocks) -> Vec<u8> {
    let mut out = Vec::with_capacity(row.len().next_multiple_of(length(blocks)));
    for block in row.chunks(length(blocks)) {
        if blocks.bits == NIBBLE {
            let codes = nibble_codes(&padded(block));
            let pairs = codes.as_chunks::<2>().0.iter();
            out.extend(pairs.map(|[low, high]| low | high << 4));
        } else {
            let end = out.len() + length(blocks);
            let inverse = inverse(byte_block_scale(block, blocks));
            out.extend(block.iter().map(|value| byte_of(*value, inverse)));
            out.resize(end, ZERO);
        }
    }
    out
}

/// `[K/size]`, float16 or float32. Nibbles have the scales of target `cpu`, which are float16 whatever holds them.
pub(super) fn scales(row: &[f32], blocks: Blocks, halves: &mut Halves) -> Vec<u8> {
    let mut out = Vec::new();
    for block in row.chunks(length(blocks)) {
        let exact = match blocks.bits {
            NIBBLE => nibble_scale(&padded(block), None),
            _ => byte_scale(block),
        };
        if blocks.bits != NIBBLE && !blocks.half {
            out.extend(exact.to_le_bytes());
            continue;
        }
        let half = halves.scale(block, exact);
        if blocks.half {
            out.extend(half.to_le_bytes());
        } else {
            out.extend(half.to_f32().to_le_bytes());
        }
    }
    out
}

/// The scale of a block of bytes, a number of its type.
fn byte_block_scale(block: &[f32], blocks: Blocks) -> f32 {
    if blocks.half {
        half_scale(block).to_f32()
    } else {
        byte_scale(block)
    }
}

/// `[K,N]` of [`signed`] rows `[N,K]`, some columns at a time.
pub(super) fn transposed<E: From<ExportError>>(
    weight: &WeightRef,
    weights: &dyn Weights,
    emit: &mut dyn FnMut(Vec<u8>) -> Result<(), E>,
) -> Result<(), E> {
    let matrix = Matrix::open(weight, &Rows::default(), weights)?;
    let (rows, columns) = (matrix.rows, matrix.columns.max(1));
    let mut inverses = Vec::with_capacity(rows);
    let mut lines = Vec::new();
    for start in (0..rows).step_by(TABLE_ROWS) {
        matrix.read(start, rows.min(start + TABLE_ROWS), &mut lines)?;
        inverses.extend(lines.chunks(columns).map(|row| inverse(byte_scale(row))));
    }
    let step = (PART / rows.max(1)).max(1);
    for start in (0..matrix.columns).step_by(step) {
        let width = step.min(matrix.columns - start);
        lines.resize(rows * width, 0.0);
        weights
            .read_block(&weight.name, 0..rows, start..start + width, &mut lines)
            .map_err(ExportError::from)?;
        let mut out = vec![0; rows * width];
        for (row, (line, inverse)) in lines.chunks(width).zip(&inverses).enumerate() {
            for (column, value) in line.iter().enumerate() {
                if let Some(to) = out.get_mut(column * rows + row) {
                    *to = byte_of(*value, *inverse).wrapping_sub(ZERO);
                }
            }
        }
        emit(out)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::bytes;
    use super::*;
    use crate::onnx::external::tests::Memory;
    use half::f16;
    use models::checkpoint::CheckpointError;
    use models::graph::WeightForm;
    use models::weights::WeightSpec;
    use std::ops::Range;

    fn read(weights: &dyn Weights, form: WeightForm) -> Vec<u8> {
        let weight = WeightRef {
            name: "w".to_owned(),
            form,
        };
        bytes(&weight, weights).unwrap()
    }

    const KINDS: [Blocks; 5] = [
        Blocks {
            bits: 4,
            size: 32,
            half: false,
        },
        Blocks {
            bits: 4,
            size: 32,
            half: true,
        },
        Blocks {
            bits: 8,
            size: 32,
            half: false,
        },
        Blocks {
            bits: 8,
            size: 64,
            half: true,
        },
        Blocks {
            bits: 8,
            size: 128,
            half: false,
        },
    ];

    /// Each code is the nearest to its weight, whatever the width, and what is padded is 0.
    #[test]
    fn codes_are_the_nearest() {
        for columns in [1, 31, 32, 70, 130, 256] {
            let rows = 5;
            let weights = Memory::new(&[("w", &[rows, columns])]);
            let wanted = weights.read("w").unwrap();
            let width = usize::try_from(columns).unwrap();
            for blocks in KINDS {
                let size = length(blocks);
                let found = read(&weights, WeightForm::Blocks(blocks));
                let scales = read(&weights, WeightForm::BlockScales(blocks));
                let scales: Vec<f32> = if blocks.half {
                    let halves = scales.as_chunks::<2>().0.iter();
                    halves.map(|bytes| f16::from_le_bytes(*bytes).to_f32()).collect()
                } else {
                    let floats = scales.as_chunks::<4>().0.iter();
                    floats.map(|bytes| f32::from_le_bytes(*bytes)).collect()
                };
                let count = width.div_ceil(size);
                assert_eq!(scales.len(), 5 * count);
                let (zero, least, most, step) = match blocks.bits {
                    4 => (8.0, -8.0, 7.0, 2),
                    _ => (128.0, -127.0, 127.0, 1),
                };
                assert_eq!(found.len(), 5 * count * size / step);
                for (row, line) in wanted.chunks(width).enumerate() {
                    for column in 0..count * size {
                        let place = row * count * size + column;
                        let byte = found[place / step];
                        let code = match (step, place % 2) {
                            (2, 0) => byte & 15,
                            (2, _) => byte >> 4,
                            _ => byte,
                        };
                        let weight = line.get(column).copied().unwrap_or(0.0);
                        let scale = scales[row * count + column / size];
                        let nearest = (weight * inverse(scale)).clamp(least, most);
                        assert!(
                            (nearest + zero - f32::from(code)).abs() <= 0.5001,
                            "{blocks:?} {columns}: {row} {column}"
                        );
                    }
                }
            }
        }
    }

    /// Nibbles and their scales are those of target `cpu`.
    #[test]
    fn nibbles_are_those_of_target_cpu() {
        let weights = Memory::new(&[("w", &[16, 64])]);
        let [blocks, half, ..] = KINDS;
        let codes = read(&weights, WeightForm::Blocks(blocks));
        assert_eq!(codes, read(&weights, WeightForm::Blocks(half)));
        let panels = read(
            &weights,
            WeightForm::Panels(models::fused::Encoding::Int4, Rows::default()),
        );
        for row in 0..16 {
            for column in 0..64 {
                let ours = panels[super::super::place_of_nibble(column, row)];
                let ours = if column % 8 < 4 { ours & 15 } else { ours >> 4 };
                let byte = codes[(row * 64 + column) / 2];
                let code = if column % 2 == 0 { byte & 15 } else { byte >> 4 };
                assert_eq!(code, ours, "{row} {column}");
            }
        }
        let scales = read(
            &weights,
            WeightForm::PanelScales(models::fused::Encoding::Int4, Rows::default()),
        );
        let standard = read(&weights, WeightForm::BlockScales(half));
        for row in 0..16 {
            for block in 0..2 {
                let (ours, place) = (2 * (block * 16 + row), 2 * (row * 2 + block));
                assert_eq!(scales[ours..ours + 2], standard[place..place + 2]);
            }
        }
    }

    /// Signed bytes are the bytes of target `cpu`, and their transpose is one.
    #[test]
    fn signed_bytes_are_those_of_target_cpu() {
        let weights = Memory::new(&[("w", &[7, 50])]);
        let signed = read(&weights, WeightForm::Int8);
        let bytes = read(&weights, WeightForm::Bytes);
        let turned = read(&weights, WeightForm::Int8Transposed);
        assert_eq!(turned.len(), 350);
        for row in 0..7 {
            for column in 0..50 {
                let place = row * 50 + column;
                assert_eq!(signed[place], bytes[place].wrapping_sub(128));
                assert_eq!(turned[column * 7 + row], signed[place]);
            }
        }
    }

    /// Weights that are the same whatever is read of them, and say how much that is at once.
    struct Wide(Vec<WeightSpec>);

    impl Weights for Wide {
        fn specs(&self) -> &[WeightSpec] {
            &self.0
        }

        fn read_block(
            &self,
            _: &str,
            rows: Range<usize>,
            columns: Range<usize>,
            out: &mut [f32],
        ) -> Result<(), CheckpointError> {
            assert_eq!(out.len(), rows.len() * columns.len());
            assert!(out.len() <= PART.max(TABLE_ROWS * 3000));
            let width = columns.len().max(1);
            for (place, value) in out.iter_mut().enumerate() {
                let (row, column) = (rows.start + place / width, columns.start + place % width);
                *value = ((row * 7 + column * 3) % 255) as f32 - 127.0;
            }
            Ok(())
        }
    }

    /// A transpose of more than a part: the parts follow one another.
    #[test]
    fn transposes_come_in_parts() {
        let weights = Wide(vec![WeightSpec {
            name: "w".to_owned(),
            shape: vec![3000, 3000],
        }]);
        let mut pieces = 0;
        let weight = WeightRef {
            name: "w".to_owned(),
            form: WeightForm::Int8Transposed,
        };
        let mut all = Vec::new();
        super::super::pack::<ExportError>(&weight, &weights, &mut |piece| {
            pieces += 1;
            all.extend(piece);
            Ok(())
        })
        .unwrap();
        assert!(pieces > 1);
        let signed = read(&weights, WeightForm::Int8);
        for (row, line) in signed.chunks(3000).enumerate() {
            assert!(
                line.iter()
                    .enumerate()
                    .all(|(column, byte)| all[column * 3000 + row] == *byte),
                "{row}"
            );
        }
    }

    #[test]
    fn other_blocks_are_not_made() {
        let odd = Blocks {
            bits: 4,
            size: 64,
            half: false,
        };
        assert!(
            expect(odd)
                .unwrap_err()
                .to_string()
                .contains("64 numbers of 4 bits")
        );
    }
}
