use super::*;
use crate::parallel::Serial;
use crate::testing::{Backwards, noise};

#[test]
fn sines_and_cosines() {
    for step in 0..200_000 {
        let angle = step as f32 * 0.37 - 1000.0;
        let (sin, cos) = sin_cos(angle);
        let wide = f64::from(angle);
        assert!((f64::from(sin) - wide.sin()).abs() < 1e-7, "sin {angle}");
        assert!((f64::from(cos) - wide.cos()).abs() < 1e-7, "cos {angle}");
    }
}

/// Output, keys and values, by the definition.
fn naive(shape: &DecoderAttention, input: &Input<'_>) -> [Vec<f64>; 3] {
    let call = Call { shape, input };
    let (d, total, new, past) = (shape.head_dim, shape.total(), shape.new, shape.past);
    let turned = |row: usize, head: usize| -> Vec<f64> {
        let from = call.head(row, head);
        let half = d / 2;
        (0..d)
            .map(|i| {
                let angle = f64::from(input.positions[row] as f32 * input.inv_freq[i % half]);
                let (a, b) = (f64::from(from[i]), f64::from(from[(i + half) % d]));
                if i < half {
                    a * angle.cos() - b * angle.sin()
                } else {
                    a * angle.cos() + b * angle.sin()
                }
            })
            .collect()
    };
    let (mut keys, mut values) = (Vec::new(), Vec::new());
    let before = input.past.unwrap();
    for sequence in 0..shape.batch {
        for head in 0..shape.kv_heads {
            let old = (sequence * shape.kv_heads + head) * past * d
                ..(sequence * shape.kv_heads + head + 1) * past * d;
            keys.extend(before.key[old.clone()].iter().map(|x| f64::from(*x)));
            values.extend(before.value[old].iter().map(|x| f64::from(*x)));
            for i in 0..new {
                keys.extend(turned(sequence * new + i, shape.heads + head));
                let value = call.head(sequence * new + i, shape.heads + shape.kv_heads + head);
                values.extend(value.iter().map(|x| f64::from(*x)));
            }
        }
    }
    let mut out = Vec::new();
    for sequence in 0..shape.batch {
        for i in 0..new {
            for head in 0..shape.heads {
                let query = turned(sequence * new + i, head);
                let start = (sequence * shape.kv_heads + head / shape.group()) * total * d;
                let scores: Vec<f64> = (0..total)
                    .map(|slot| {
                        let key = &keys[start + slot * d..][..d];
                        let dot: f64 = query.iter().zip(key).map(|(q, k)| q * k).sum();
                        let seen = slot <= past + i && input.mask[sequence * total + slot] != 0;
                        if seen {
                            dot * f64::from(shape.scale)
                        } else {
                            f64::from(f32::MIN)
                        }
                    })
                    .collect();
                let largest = scores.iter().fold(f64::MIN, |a, b| a.max(*b));
                let sum: f64 = scores.iter().map(|s| (s - largest).exp()).sum();
                for c in 0..d {
                    let term =
                        |slot: usize| (scores[slot] - largest).exp() / sum * values[start + slot * d + c];
                    out.push((0..total).map(term).sum());
                }
            }
        }
    }
    [out, keys, values]
}

fn distance(found: &[f32], expected: &[f64]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let (mut error, mut norm) = (0.0, 1e-30);
    for (found, expected) in found.iter().zip(expected) {
        error += (f64::from(*found) - expected).powi(2);
        norm += expected.powi(2);
    }
    (error / norm).sqrt()
}

/// Keys and values `[B, k, filled, d]` in caches of more slots; NaN where nothing is.
fn spread(caches: [&[f32]; 2], filled: usize, shape: &DecoderAttention) -> [Vec<f32>; 2] {
    let DecoderAttention {
        slots, head_dim: d, ..
    } = *shape;
    let heads = shape.batch * shape.kv_heads;
    caches.map(|cache| {
        let mut to = vec![f32::NAN; heads * slots * d];
        for head in 0..heads {
            to[head * slots * d..][..filled * d].copy_from_slice(&cache[head * filled * d..][..filled * d]);
        }
        to
    })
}

/// The output of a call that writes this cache.
fn grown(isa: Isa, shape: &DecoderAttention, input: &Input<'_>, cache: &mut [Vec<f32>; 2]) -> Vec<f32> {
    let mut out = vec![f32::NAN; shape.batch * shape.new * shape.heads * shape.head_dim];
    let [key, value] = cache;
    decoder_attention(
        isa,
        &Backwards(7),
        shape,
        input,
        &mut out,
        CacheMut { key, value },
    );
    out
}

/// NaN is equal to itself.
fn bits(cache: &[Vec<f32>; 2]) -> Vec<u32> {
    cache.iter().flatten().map(|x| x.to_bits()).collect()
}

#[test]
fn close_to_float64() {
    // batch, new, past, heads, key heads, d, slots without a token at the start of the last sequence
    for (batch, new, past, heads, kv_heads, d, empty) in [
        (1, 1, 0, 2, 1, 8, 0),
        (1, 1, 37, 14, 2, 64, 0),
        (2, 1, 300, 4, 2, 32, 270),
        (2, 1, 20, 7, 1, 40, 21),
        (1, 1, 600, 10, 1, 128, 5),
        (9, 1, 700, 4, 2, 32, 600),
        (3, 1, 520, 4, 2, 8, 520),
        (1, 7, 0, 4, 4, 8, 0),
        (2, 33, 0, 7, 1, 40, 9),
        (1, 50, 13, 14, 2, 64, 0),
        (2, 5, 70, 4, 2, 32, 73),
        (1, 29, 3, 3, 1, 128, 40),
    ] {
        let shape = DecoderAttention {
            batch,
            new,
            past,
            slots: past + new,
            heads,
            kv_heads,
            head_dim: d,
            scale: 1.0 / (d as f32).sqrt(),
        };
        let total = shape.total();
        let empty = empty.min(total);
        let mut mask = vec![1; batch * total];
        mask[(batch - 1) * total..][..empty].fill(0);
        if total > 12 {
            mask[11] = 0;
        }
        let positions: Vec<i64> = (0..batch * new)
            .map(|i| (past + i * 911 % 32_000) as i64)
            .collect();
        let inv_freq: Vec<f32> = (0..d / 2)
            .map(|i| 1e6_f32.powf(-2.0 * i as f32 / d as f32))
            .collect();
        let qkv: Vec<f32> = noise(batch * new * shape.width(), 1)
            .iter()
            .map(|x| x * 3.0)
            .collect();
        let past_key = noise(batch * kv_heads * past * d, 2);
        let past_value = noise(batch * kv_heads * past * d, 3);
        let input = Input {
            qkv: &qkv,
            past: Some(Cache {
                key: &past_key,
                value: &past_value,
            }),
            mask: &mask,
            positions: &positions,
            inv_freq: &inv_freq,
        };
        let [expected, keys, values] = naive(&shape, &input);
        for isa in Isa::available() {
            let run = |parallel: &dyn Parallel| {
                let mut out = [
                    vec![f32::NAN; expected.len()],
                    vec![f32::NAN; keys.len()],
                    vec![f32::NAN; keys.len()],
                ];
                let [a, key, value] = &mut out;
                decoder_attention(isa, parallel, &shape, &input, a, CacheMut { key, value });
                out
            };
            let found = run(&Serial);
            let [a, b, c] = &found;
            // Scores of magnitude 10 carry a rounding of 1e-6, which the exponential makes relative.
            let error = distance(a, &expected);
            assert!(error < 3e-6, "{} {shape:?}: output {error}", isa.name());
            assert!(distance(b, &keys) < 2e-7, "{} {shape:?}: keys", isa.name());
            assert!(distance(c, &values) == 0.0, "{} {shape:?}: values", isa.name());
            assert!(found == run(&Backwards(64)), "other tasks, other bits");
            for free in [0, 5] {
                let shape = DecoderAttention {
                    slots: total + free,
                    ..shape
                };
                let carried = spread([b, c], total, &shape);
                let mut cache = spread([&past_key, &past_value], past, &shape);
                let mut other = spread([&[], &[]], 0, &shape);
                let carry = grown(isa, &shape, &input, &mut other);
                let stay = grown(isa, &shape, &Input { past: None, ..input }, &mut cache);
                assert!(*a == carry && *a == stay, "{} {shape:?}: output", isa.name());
                assert!(
                    bits(&cache) == bits(&carried) && bits(&other) == bits(&carried),
                    "{} {shape:?}: cache",
                    isa.name()
                );
            }
        }
    }
}
/// Sequences of different lengths, padded in front, and each of them alone.
#[test]
fn padding_does_not_change_a_bit() {
    let lengths = [700_usize, 1, 256, 300, 699];
    let (batch, past, heads, kv_heads, d) = (lengths.len(), 699, 4, 2, 40);
    let shape = |batch, past| DecoderAttention {
        batch,
        new: 1,
        past,
        slots: past + 1,
        heads,
        kv_heads,
        head_dim: d,
        scale: 1.0 / (d as f32).sqrt(),
    };
    let qkv = noise(batch * shape(1, 0).width(), 1);
    let past_key = noise(batch * kv_heads * past * d, 2);
    let past_value = noise(batch * kv_heads * past * d, 3);
    let inv_freq: Vec<f32> = (0..d / 2).map(|i| 0.5_f32.powi(i as i32)).collect();
    let positions: Vec<i64> = lengths.iter().map(|length| *length as i64 - 1).collect();
    let mut mask = vec![1; batch * (past + 1)];
    for (mask, length) in mask.chunks_exact_mut(past + 1).zip(lengths) {
        mask[..past + 1 - length].fill(0);
    }
    for isa in Isa::available() {
        let run = |shape: &DecoderAttention, input: &Input<'_>| {
            let mut out = vec![f32::NAN; shape.batch * heads * d];
            let mut present = [(); 2].map(|()| vec![f32::NAN; shape.batch * kv_heads * shape.total() * d]);
            let [key, value] = &mut present;
            decoder_attention(
                isa,
                &Backwards(3),
                shape,
                input,
                &mut out,
                CacheMut { key, value },
            );
            (out, present)
        };
        let input = Input {
            qkv: &qkv,
            past: Some(Cache {
                key: &past_key,
                value: &past_value,
            }),
            mask: &mask,
            positions: &positions,
            inv_freq: &inv_freq,
        };
        let (together, present) = run(&shape(batch, past), &input);
        for (row, length) in lengths.into_iter().enumerate() {
            // The slots that are this sequence's own, of each head.
            let own = |cache: &[f32], slots: usize, from: usize| -> Vec<f32> {
                let heads = cache[row * kv_heads * slots * d..][..kv_heads * slots * d].chunks(slots * d);
                heads.flat_map(|head| head[from * d..].to_vec()).collect()
            };
            let padding = past + 1 - length;
            let (key, value) = (own(&past_key, past, padding), own(&past_value, past, padding));
            let input = Input {
                qkv: &qkv[row * shape(1, 0).width()..][..shape(1, 0).width()],
                past: Some(Cache {
                    key: &key,
                    value: &value,
                }),
                mask: &vec![1; length],
                positions: &positions[row..=row],
                inv_freq: &inv_freq,
            };
            let (alone, cache) = run(&shape(1, length - 1), &input);
            assert_eq!(
                alone,
                together[row * heads * d..][..heads * d],
                "{} {row}",
                isa.name()
            );
            for (present, cache) in present.iter().zip(cache) {
                assert_eq!(own(present, past + 1, padding), cache, "{} {row}", isa.name());
            }
        }
    }
}
