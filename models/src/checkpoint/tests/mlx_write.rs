//! Writes checkpoints as mlx-vlm does, for tests: kernels with channels last, matrices in groups of codes, all
//! else in bf16.

use super::write::Typed;
use half::bf16;
use std::collections::BTreeMap;

/// Shape and values by name.
type Stored = BTreeMap<String, (Vec<u64>, Vec<f32>)>;

/// The order of dimensions that MLX has, in Apple's.
fn order(name: &str, shape: &[u64]) -> Option<[usize; 4]> {
    let scale = name.rsplit('.').next().unwrap().starts_with("layer_scale");
    match shape.len() {
        4 if name.starts_with("vision_tower.") => Some([0, 2, 3, 1]),
        3 if scale => Some([1, 2, 0, 3]),
        _ => None,
    }
}

/// Tensors with mlx-vlm's names, in its orders of dimensions.
pub(crate) fn channels_last(stored: Stored) -> Stored {
    let last = |(name, (shape, values)): (String, (Vec<u64>, Vec<f32>))| {
        let Some(order) = order(&name, &shape) else {
            return (name, (shape, values));
        };
        let mut four = shape.clone();
        four.resize(4, 1);
        let strides = [four[1] * four[2] * four[3], four[2] * four[3], four[3], 1];
        let turned = order.map(|dimension| four[dimension]);
        let steps = order.map(|dimension| strides[dimension]);
        let mut moved = Vec::new();
        for a in 0..turned[0] {
            for b in 0..turned[1] {
                for c in 0..turned[2] {
                    for d in 0..turned[3] {
                        let at = a * steps[0] + b * steps[1] + c * steps[2] + d * steps[3];
                        moved.push(values[usize::try_from(at).unwrap()]);
                    }
                }
            }
        }
        (name, (turned[..shape.len()].to_vec(), moved))
    };
    stored.into_iter().map(last).collect()
}

fn in_bf16(values: &[f32]) -> Vec<u8> {
    let brain = values.iter().map(|value| bf16::from_f32(*value).to_le_bytes());
    brain.flatten().collect()
}

/// Puts matrices into groups of codes: `groups` says of a module how many bits a code has and how many share a
/// scale, if it is to be so. What tensors then stand for is written back into `stored`.
pub(crate) fn grouped(
    stored: &mut Stored,
    groups: impl Fn(&str) -> Option<(u64, u64)>,
) -> BTreeMap<String, Typed<u64>> {
    let mut typed = BTreeMap::new();
    for (name, (shape, values)) in stored.iter_mut() {
        let module = name.trim_end_matches(".weight");
        let of = groups(module).filter(|(_, size)| shape.len() == 2 && shape[1] % size == 0);
        let Some((bits, group)) = of else {
            // As bf16 rounds them.
            values
                .iter_mut()
                .for_each(|value| *value = bf16::from_f32(*value).to_f32());
            typed.insert(name.clone(), ("BF16", shape.clone(), in_bf16(values)));
            continue;
        };
        let size = usize::try_from(group).unwrap();
        let levels = if bits == 4 { 15.0 } else { 255.0 };
        let (mut codes, mut scales, mut biases) = (Vec::new(), Vec::new(), Vec::new());
        for values in values.chunks_exact_mut(size) {
            let least = values.iter().copied().fold(f32::INFINITY, f32::min);
            let most = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let bias = bf16::from_f32(least).to_f32();
            let scale = bf16::from_f32((most - least) / levels).to_f32();
            for value in values {
                let steps = if scale == 0.0 {
                    0.0
                } else {
                    (*value - bias) / scale
                };
                let code = steps.round().clamp(0.0, levels);
                *value = code * scale + bias;
                // Of a float without a fraction; 0 may be negative.
                codes.push(format!("{}", code.abs()).parse::<u8>().unwrap());
            }
            scales.push(scale);
            biases.push(bias);
        }
        let bytes: Vec<u8> = match bits {
            4 => codes.chunks_exact(2).map(|pair| pair[0] | pair[1] << 4).collect(),
            _ => codes,
        };
        let words = vec![shape[0], shape[1] * bits / 32];
        let parts = vec![shape[0], shape[1] / group];
        typed.insert(name.clone(), ("U32", words, bytes));
        typed.insert(
            format!("{module}.scales"),
            ("BF16", parts.clone(), in_bf16(&scales)),
        );
        typed.insert(format!("{module}.biases"), ("BF16", parts, in_bf16(&biases)));
    }
    typed
}
