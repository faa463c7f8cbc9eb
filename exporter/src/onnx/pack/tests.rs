use super::*;
use crate::onnx::external::tests::Memory;

fn floats_of(bytes: &[u8]) -> Vec<f32> {
    bytes
        .as_chunks::<4>()
        .0
        .iter()
        .map(|bytes| f32::from_le_bytes(*bytes))
        .collect()
}

fn reference(name: &str, form: WeightForm) -> WeightRef {
    WeightRef {
        name: name.to_owned(),
        form,
    }
}

/// The planes are the halves of the bytes, 128 numbers in 64 bytes.
#[test]
fn planes_are_halves_of_bytes() {
    let (entries, width) = (1030, 150);
    let weights = Memory::new(&[("t", &[1030, 150])]);
    let read = |form| bytes(&reference("t", form), &weights).unwrap();
    let whole = read(WeightForm::Bytes);
    let (high, low) = (
        read(WeightForm::Plane(Nibble::High)),
        read(WeightForm::Plane(Nibble::Low)),
    );
    assert_eq!(whole.len(), entries * width);
    assert_eq!([high.len(), low.len()], [entries * 128; 2]);
    for (i, byte) in whole.iter().enumerate() {
        let (entry, k) = (i / width, i % width);
        let place = entry * 128 + k / 128 * 64 + k % 64;
        let nibble = |plane: &[u8]| {
            if k % 128 < 64 {
                plane[place] & 15
            } else {
                plane[place] >> 4
            }
        };
        assert_eq!(*byte, 16 * nibble(&high) + nibble(&low), "{entry} {k}");
    }
}

/// Two weights below each other with a gain: every element is where the layout says, padding is 0.
#[test]
fn elements_are_where_the_layout_says() {
    let (n, k) = (20 + 3, 37);
    let weights = Memory::new(&[("a", &[20, 37]), ("b", &[3, 37]), ("g", &[23])]);
    let rows = Rows {
        below: vec!["b".to_owned()],
        gain: Some("g".to_owned()),
    };
    let mut wanted = weights.read("a").unwrap();
    wanted.extend(weights.read("b").unwrap());
    let gain = weights.read("g").unwrap();
    for (row, line) in wanted.chunks_mut(k).enumerate() {
        line.iter_mut().for_each(|value| *value *= gain[row]);
    }
    let at = |row: usize, column: usize| {
        if row < n && column < k {
            wanted[row * k + column]
        } else {
            0.0
        }
    };

    let form = WeightForm::Panels(Encoding::Float32, rows.clone());
    let floats: Vec<f32> = floats_of(&bytes(&reference("a", form), &weights).unwrap());
    assert_eq!(floats.len(), 32 * k);
    for (place, value) in floats.iter().enumerate() {
        let (panel, rest) = (place / (k * 16), place % (k * 16));
        assert_eq!(*value, at(panel * 16 + rest % 16, rest / 16));
    }

    let form = |scales: bool| {
        let form = if scales {
            WeightForm::PanelScales
        } else {
            WeightForm::Panels
        };
        form(Encoding::Int8, rows.clone())
    };
    let found = bytes(&reference("a", form(false)), &weights).unwrap();
    let scales: Vec<f32> = floats_of(&bytes(&reference("a", form(true)), &weights).unwrap());
    assert_eq!((found.len(), scales.len()), (32 * 40, n));
    for (place, byte) in found.iter().enumerate() {
        let (panel, rest) = (place / (40 * 16), place % (40 * 16));
        let (row, column) = (panel * 16 + rest % 64 / 4, rest / 64 * 4 + rest % 4);
        let scale = scales.get(row).copied().unwrap_or(0.0);
        let found = scale * (f32::from(*byte) - 128.0);
        assert!((found - at(row, column)).abs() <= scale * 26.0, "{row} {column}");
        assert!(row < n || *byte == 128);
    }

    let form = |scales: bool| {
        let form = if scales {
            WeightForm::PanelScales
        } else {
            WeightForm::Panels
        };
        form(Encoding::Int4, rows.clone())
    };
    let nibbles = bytes(&reference("a", form(false)), &weights).unwrap();
    let scales: Vec<f16> = bytes(&reference("a", form(true)), &weights)
        .unwrap()
        .chunks(2)
        .map(|pair| f16::from_le_bytes([pair[0], pair[1]]))
        .collect();
    assert_eq!((nibbles.len(), scales.len()), (2 * 2 * 256, 2 * 2 * 16));
    for row in 0..32 {
        for column in 0..64 {
            let block = row / 16 * 2 + column / 32;
            let within = column % 32;
            let byte = nibbles[block * 256 + within / 8 * 64 + row % 16 * 4 + within % 4];
            let nibble = if within % 8 < 4 { byte & 15 } else { byte >> 4 };
            let scale = scales[block * 16 + row % 16].to_f32();
            let found = scale * (f32::from(nibble) - 8.0);
            assert!(
                (found - at(row, column)).abs() <= scale.abs() * 1.01,
                "{row} {column}"
            );
        }
    }
}

/// Weights whose inputs are known, and not correlated.
struct Informed(Memory);

impl Weights for Informed {
    fn specs(&self) -> &[WeightSpec] {
        self.0.specs()
    }

    fn read_block(
        &self,
        name: &str,
        rows: std::ops::Range<usize>,
        columns: std::ops::Range<usize>,
        out: &mut [f32],
    ) -> Result<(), CheckpointError> {
        self.0.read_block(name, rows, columns, out)
    }

    fn moments(&self, name: &str, run: usize) -> Result<Option<Vec<f32>>, CheckpointError> {
        let width = self
            .specs()
            .iter()
            .find(|spec| spec.name == name)
            .unwrap()
            .matrix()
            .1;
        let width = run_of(run, width).len();
        let at = |place: usize| {
            if place.is_multiple_of(width + 1) {
                1.0 + (place % 3) as f32
            } else {
                0.0
            }
        };
        Ok(Some((0..width * width).map(at).collect()))
    }
}

/// Without correlation nothing is taken back: each weight is rounded to the nearest, in the same places.
#[test]
fn informed_elements_are_where_the_layout_says() {
    let (n, k) = (21, MOMENTS + 37);
    let weights = Informed(Memory::new(&[("a", &[21, 549])]));
    let wanted = weights.read("a").unwrap();
    let read = |form| bytes(&reference("a", form), &weights).unwrap();
    let found = read(WeightForm::Panels(Encoding::Int8, Rows::default()));
    let scales = floats_of(&read(WeightForm::PanelScales(Encoding::Int8, Rows::default())));
    let columns = k.next_multiple_of(4);
    assert_eq!((found.len(), scales.len()), (32 * columns, n));
    for (place, byte) in found.iter().enumerate() {
        let (panel, rest) = (place / (columns * 16), place % (columns * 16));
        let (row, column) = (panel * 16 + rest % 64 / 4, rest / 64 * 4 + rest % 4);
        if row >= n || column >= k {
            assert_eq!(*byte, 128, "{row} {column}");
            continue;
        }
        let nearest = (wanted[row * k + column] * inverse(scales[row])).clamp(-127.0, 127.0);
        assert!(
            (nearest + 128.0 - f32::from(*byte)).abs() <= 0.5001,
            "{row} {column}"
        );
    }
    let nibbles = read(WeightForm::Panels(Encoding::Int4, Rows::default()));
    let halves = read(WeightForm::PanelScales(Encoding::Int4, Rows::default()));
    let blocks = k.div_ceil(32);
    assert_eq!((nibbles.len(), halves.len()), (2 * blocks * 256, 2 * blocks * 32));
    for row in 0..n {
        for column in 0..k {
            let block = row / 16 * blocks + column / 32;
            let half = 2 * (block * 16 + row % 16);
            let scale = f16::from_le_bytes([halves[half], halves[half + 1]]).to_f32();
            let within = column % 32;
            let byte = nibbles[block * 256 + within / 8 * 64 + row % 16 * 4 + within % 4];
            let nibble = if within % 8 < 4 { byte & 15 } else { byte >> 4 };
            let nearest = (wanted[row * k + column] * inverse(scale)).clamp(-8.0, 7.0);
            assert!(
                (nearest + 8.0 - f32::from(nibble)).abs() <= 0.5001,
                "{row} {column}"
            );
        }
    }
}

#[test]
fn vectors_follow_one_another() {
    let weights = Memory::new(&[("a", &[3]), ("b", &[2])]);
    let rows = Rows {
        below: vec!["b".to_owned()],
        gain: None,
    };
    let found = bytes(&reference("a", WeightForm::Vector(rows)), &weights).unwrap();
    let floats: Vec<f32> = floats_of(&found);
    assert_eq!(floats, [0.0, 0.125, 0.25, 0.0, 0.125]);
}

#[test]
fn nibbles_beat_plain_rounding() {
    // A block whose largest weight is alone: covering it would waste the codes.
    let mut block = [0.0_f32; WIDTH];
    for (i, value) in block.iter_mut().enumerate() {
        *value = ((i * 37 % 32) as f32 - 15.5) / 16.0;
    }
    let error = |scale: f32, codes: &[u8; WIDTH]| -> f32 {
        let values = block.iter().zip(codes);
        values
            .map(|(w, q)| (w - scale * (f32::from(*q) - 8.0)).powi(2))
            .sum()
    };
    let (scale, codes) = (f16::from_f32(nibble_scale(&block, None)), nibble_codes(&block));
    let plain = 0.96875_f32 / 7.0;
    let plain_codes = block.map(|w| ((w / plain).round_ties_even() + 8.0) as u8);
    assert!(error(scale.to_f32(), &codes) < error(plain, &plain_codes));
}

#[test]
fn odd_blocks() {
    assert_eq!(nibble_scale(&[0.0; WIDTH], None), 0.0);
    assert_eq!(nibble_codes(&[0.0; WIDTH]), [8; WIDTH]);
    let mut block = [1.0; WIDTH];
    block[5] = f32::NAN;
    assert!(nibble_scale(&block, None).is_nan());
    assert_eq!(nibble_codes(&block), [8; WIDTH]);
    assert_eq!(byte_scale(&[0.0, -0.0]), 0.0);
    assert!(byte_scale(&[1.0, f32::INFINITY]).is_nan());
    let one = byte_scale(&[-2.54]);
    assert_eq!(byte_of(-2.54, inverse(one)), 1);
}

/// Weights times a factor.
struct Times<W>(W, f32);

impl<W: Weights> Weights for Times<W> {
    fn specs(&self) -> &[WeightSpec] {
        self.0.specs()
    }

    fn read_block(
        &self,
        name: &str,
        rows: std::ops::Range<usize>,
        columns: std::ops::Range<usize>,
        out: &mut [f32],
    ) -> Result<(), CheckpointError> {
        self.0.read_block(name, rows, columns, out)?;
        out.iter_mut().for_each(|value| *value *= self.1);
        Ok(())
    }

    fn moments(&self, name: &str, run: usize) -> Result<Option<Vec<f32>>, CheckpointError> {
        self.0.moments(name, run)
    }
}

/// In every form that has scales in float16, and in no other.
#[test]
fn scales_that_float16_does_not_hold_are_refused() {
    use models::graph::Blocks;
    let of = |form: WeightForm, factor: f32| {
        let weights = Times(Memory::new(&[("w", &[16, 64])]), factor);
        bytes(&reference("w", form), &weights)
            .map(|_| ())
            .map_err(|error| error.to_string())
    };
    let blocks = |bits, half| WeightForm::BlockScales(Blocks { bits, size: 32, half });
    let rows = Rows::default;
    // The largest weight is 128.
    for form in [
        WeightForm::PanelScales(Encoding::Int4, rows()),
        WeightForm::Signed8Scales,
        WeightForm::Signed4Scales,
        blocks(4, false),
        blocks(4, true),
        blocks(8, true),
    ] {
        assert_eq!(of(form.clone(), 1.0), Ok(()), "{form:?}");
        let message = of(form.clone(), 1e-9).unwrap_err();
        assert!(
            message.contains("scales in float16 do not hold `w` with a scale of"),
            "{form:?}: {message}"
        );
        let message = of(form.clone(), 1e6).unwrap_err();
        assert!(message.contains("expected at most 65504"), "{form:?}: {message}");
        // A weight of 131072, and a scale of 16384 at most.
        let unpacked = !matches!(form, WeightForm::PanelScales(..)) && form != blocks(4, false);
        assert_eq!(of(form.clone(), 1024.0).is_err(), unpacked, "{form:?}");
    }
    for form in [
        WeightForm::PanelScales(Encoding::Int8, rows()),
        WeightForm::ByteScales,
        blocks(8, false),
    ] {
        for factor in [1e-9, 1.0, 1e6] {
            assert_eq!(of(form.clone(), factor), Ok(()), "{form:?}");
        }
    }
    // The codes come without a word.
    assert_eq!(of(WeightForm::Panels(Encoding::Int4, rows()), 1e-9), Ok(()));
    let informed = |factor| {
        let weights = Informed(Memory::new(&[("w", &[16, 64])]));
        let weights = Times(weights, factor);
        let form = WeightForm::PanelScales(Encoding::Int4, rows());
        bytes(&reference("w", form), &weights)
            .map(|_| ())
            .map_err(|error| error.to_string())
    };
    assert_eq!(informed(1.0), Ok(()));
    assert!(informed(1e-9).is_err() && informed(1e6).is_err());
}
