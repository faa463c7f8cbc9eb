//! From train-time branches to one convolution: all in float64, rounded to float32 once.
//!
//! Every branch is a kernel `K` (padded to the centre of the largest) with an optional batch normalisation.
//! With `t = gamma / sqrt(var + eps)` a normalised branch is the convolution `K * t` with bias
//! `beta - mean * t` (RepVGG, arXiv 2101.03697, section 3.3; timm `MobileOneBlock._fuse_bn_tensor`). An
//! identity branch is the kernel with 1 at the centre of its own channel. Branches are summed with a
//! per-channel factor: RepMixer is `x + s * (mixer(x) - norm(x))`, so its mixer counts `+s`, its norm `-s`
//! and a bare identity 1 (timm `RepMixer.reparameterize`).

/// `eps` of every `BatchNorm2d` in FastViT: torch's default, which timm does not change.
pub(super) const BATCH_NORM_EPSILON: f64 = 1e-5;

/// Sizes of the folded kernel `[output, per_group, side, side]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct KernelSize {
    pub(super) output: usize,
    pub(super) per_group: usize,
    pub(super) side: usize,
}

/// One branch with its tensors in memory.
#[derive(Debug, Clone)]
pub(super) struct BranchValues {
    /// `None` is the identity; otherwise the values `[output, per_group, side, side]` and their side.
    pub(super) kernel: Option<(Vec<f32>, usize)>,
    /// `[output]`
    pub(super) bias: Option<Vec<f32>>,
    /// gamma, beta, mean and variance, `[output]` each.
    pub(super) norm: Option<[Vec<f32>; 4]>,
    /// Per-channel factor `[output]`; `None` is 1.
    pub(super) factor: Option<Vec<f32>>,
    /// Whether the branch is subtracted.
    pub(super) negative: bool,
}

/// Sums the branches: weight `[output, per_group, side, side]` and bias `[output]`.
pub(super) fn fold(size: KernelSize, branches: &[BranchValues]) -> (Vec<f32>, Vec<f32>) {
    let KernelSize {
        output,
        per_group,
        side,
    } = size;
    let area = side * side;
    let per_output = per_group * area;
    let mut weight = vec![0f64; output * per_output];
    let mut bias = vec![0f64; output];
    for branch in branches {
        for channel in 0..output {
            let (scale, shift) = match &branch.norm {
                Some([gamma, beta, mean, variance]) => {
                    let scale = f64::from(gamma[channel])
                        / (f64::from(variance[channel]) + BATCH_NORM_EPSILON).sqrt();
                    (scale, f64::from(beta[channel]) - f64::from(mean[channel]) * scale)
                }
                None => (1.0, 0.0),
            };
            let factor = branch
                .factor
                .as_ref()
                .map_or(1.0, |factor| f64::from(factor[channel]));
            let factor = if branch.negative { -factor } else { factor };
            let own_bias = branch.bias.as_ref().map_or(0.0, |bias| f64::from(bias[channel]));
            bias[channel] += factor * (own_bias * scale + shift);
            let target = &mut weight[channel * per_output..(channel + 1) * per_output];
            match &branch.kernel {
                None => target[(channel % per_group) * area + (side / 2) * side + side / 2] += factor * scale,
                Some((values, own)) => {
                    let before = (side - own) / 2;
                    let values =
                        &values[channel * per_group * own * own..(channel + 1) * per_group * own * own];
                    for input in 0..per_group {
                        for row in 0..*own {
                            for column in 0..*own {
                                target[input * area + (row + before) * side + column + before] +=
                                    factor * scale * f64::from(values[(input * own + row) * own + column]);
                            }
                        }
                    }
                }
            }
        }
    }
    (round(&weight), round(&bias))
}

#[expect(clippy::as_conversions, reason = "float64 to float32 has no other spelling")]
fn round(values: &[f64]) -> Vec<f32> {
    values.iter().map(|&value| value as f32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values that look random and are the same everywhere.
    fn values(seed: u64, count: usize) -> Vec<f32> {
        let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            f32::from(u16::try_from(state >> 48).unwrap()) / 65_536.0 - 0.5
        };
        (0..count).map(|_| next()).collect()
    }

    fn positive(seed: u64, count: usize) -> Vec<f32> {
        values(seed, count).iter().map(|value| value + 0.9).collect()
    }

    fn norm(seed: u64, count: usize) -> [Vec<f32>; 4] {
        [
            positive(seed, count),
            values(seed + 1, count),
            values(seed + 2, count),
            positive(seed + 3, count),
        ]
    }

    /// "Same" convolution of one `[channels, n, n]` image, float64.
    fn convolve(
        x: &[f64],
        n: usize,
        size: KernelSize,
        groups: usize,
        weight: &[f64],
        bias: &[f64],
    ) -> Vec<f64> {
        let KernelSize {
            output,
            per_group,
            side,
        } = size;
        let pad = side / 2;
        let mut y = vec![0f64; output * n * n];
        for o in 0..output {
            let first = o / (output / groups) * per_group;
            for row in 0..n {
                for column in 0..n {
                    let mut sum = bias[o];
                    for i in 0..per_group {
                        for (r, c) in (0..side).flat_map(|r| (0..side).map(move |c| (r, c))) {
                            let (Some(y0), Some(x0)) =
                                ((row + r).checked_sub(pad), (column + c).checked_sub(pad))
                            else {
                                continue;
                            };
                            if y0 < n && x0 < n {
                                sum += weight[((o * per_group + i) * side + r) * side + c]
                                    * x[((first + i) * n + y0) * n + x0];
                            }
                        }
                    }
                    y[(o * n + row) * n + column] = sum;
                }
            }
        }
        y
    }

    /// What a branch does at train time, without folding.
    fn run(
        branch: &BranchValues,
        x: &[f64],
        n: usize,
        output: usize,
        per_group: usize,
        groups: usize,
    ) -> Vec<f64> {
        let wide = |values: &[f32]| -> Vec<f64> { values.iter().map(|&value| f64::from(value)).collect() };
        let mut y = match &branch.kernel {
            None => x.to_vec(),
            Some((kernel, side)) => {
                let size = KernelSize {
                    output,
                    per_group,
                    side: *side,
                };
                let bias = branch.bias.as_ref().map_or(vec![0.0; output], |bias| wide(bias));
                convolve(x, n, size, groups, &wide(kernel), &bias)
            }
        };
        for channel in 0..output {
            for value in &mut y[channel * n * n..(channel + 1) * n * n] {
                if let Some([gamma, beta, mean, variance]) = &branch.norm {
                    let std = (f64::from(variance[channel]) + 1e-5).sqrt();
                    *value = (*value - f64::from(mean[channel])) / std * f64::from(gamma[channel])
                        + f64::from(beta[channel]);
                }
                *value *= branch
                    .factor
                    .as_ref()
                    .map_or(1.0, |factor| f64::from(factor[channel]));
                if branch.negative {
                    *value = -*value;
                }
            }
        }
        y
    }

    #[test]
    fn folded_equals_unfolded() {
        let plain = BranchValues {
            kernel: None,
            bias: None,
            norm: None,
            factor: None,
            negative: false,
        };
        let conv = |seed, count: usize, side: usize| BranchValues {
            kernel: Some((values(seed, count * side * side), side)),
            norm: Some(norm(seed + 10, 4)),
            ..plain.clone()
        };
        let gamma = Some(values(77, 4));
        let cases: Vec<(&str, usize, usize, usize, Vec<BranchValues>)> = vec![
            ("conv + norm", 3, 1, 4, vec![conv(1, 4, 3)]),
            (
                "MobileOne with two k x k, scale and identity, depthwise",
                3,
                1,
                4,
                vec![
                    conv(1, 4, 3),
                    conv(2, 4, 3),
                    conv(3, 4, 1),
                    BranchValues {
                        norm: Some(norm(40, 4)),
                        ..plain.clone()
                    },
                ],
            ),
            (
                "MobileOne dense 1 x 1 with identity",
                1,
                4,
                1,
                vec![
                    conv(5, 16, 1),
                    BranchValues {
                        norm: Some(norm(50, 4)),
                        ..plain.clone()
                    },
                ],
            ),
            (
                "large kernel with a small one",
                7,
                1,
                4,
                vec![conv(6, 4, 7), conv(7, 4, 3)],
            ),
            (
                "conditional positional encoding",
                7,
                1,
                4,
                vec![
                    BranchValues {
                        kernel: Some((values(8, 4 * 49), 7)),
                        bias: Some(values(9, 4)),
                        ..plain.clone()
                    },
                    plain.clone(),
                ],
            ),
            (
                "RepMixer",
                3,
                1,
                4,
                vec![
                    plain.clone(),
                    BranchValues {
                        factor: gamma.clone(),
                        ..conv(11, 4, 3)
                    },
                    BranchValues {
                        factor: gamma.clone(),
                        ..conv(12, 4, 1)
                    },
                    BranchValues {
                        norm: Some(norm(60, 4)),
                        factor: gamma.clone(),
                        ..plain.clone()
                    },
                    BranchValues {
                        norm: Some(norm(70, 4)),
                        factor: gamma,
                        negative: true,
                        ..plain.clone()
                    },
                ],
            ),
        ];
        let n = 9;
        let x: Vec<f64> = values(99, 4 * n * n).into_iter().map(f64::from).collect();
        for (name, side, per_group, groups, branches) in cases {
            let size = KernelSize {
                output: 4,
                per_group,
                side,
            };
            let (weight, bias) = fold(size, &branches);
            let wide =
                |values: &[f32]| -> Vec<f64> { values.iter().map(|&value| f64::from(value)).collect() };
            let folded = convolve(&x, n, size, groups, &wide(&weight), &wide(&bias));
            let mut expected = vec![0f64; folded.len()];
            for branch in &branches {
                for (sum, value) in expected.iter_mut().zip(run(branch, &x, n, 4, per_group, groups)) {
                    *sum += value;
                }
            }
            let worst = folded
                .iter()
                .zip(&expected)
                .map(|(a, b)| (a - b).abs())
                .fold(0.0, f64::max);
            assert!(worst < 1e-6, "{name}: {worst}");
        }
    }
}
