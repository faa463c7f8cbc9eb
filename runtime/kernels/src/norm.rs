//! RMS and layer normalisation, alone or ahead of a matrix product.

use super::isa::{Isa, LANES, Lanes, dispatch};
use super::parallel::{Parallel, Shared};

/// A normalisation over the last axis.
#[derive(Debug, Clone, Copy)]
pub enum Norm<'a> {
    /// The row as it is.
    None,
    /// `x / sqrt(mean(x^2) + epsilon) * gamma`
    Rms {
        /// `[channels]`
        gamma: &'a [f32],
        /// Added to the mean of the squares.
        epsilon: f32,
    },
    /// `(x - mean(x)) / sqrt(variance(x) + epsilon) * gamma + beta`
    Layer {
        /// `[channels]`
        gamma: &'a [f32],
        /// `[channels]`
        beta: &'a [f32],
        /// Added to the variance.
        epsilon: f32,
    },
}

impl Norm<'_> {
    /// That the weights have as many numbers as the rows.
    ///
    /// # Panics
    /// Otherwise.
    pub(super) fn check(&self, channels: usize) {
        match self {
            Norm::None => {}
            Norm::Rms { gamma, .. } => {
                assert_eq!(gamma.len(), channels, "gamma has not one number per channel")
            }
            Norm::Layer { gamma, beta, .. } => {
                assert_eq!(gamma.len(), channels, "gamma has not one number per channel");
                assert_eq!(beta.len(), channels, "beta has not one number per channel");
            }
        }
    }
}

/// Normalises each row of `x` `[rows, channels]` into `out`, of the same shape.
///
/// # Panics
/// Lengths that do not fit each other.
pub fn normalise(
    isa: Isa,
    parallel: &dyn Parallel,
    x: &[f32],
    channels: usize,
    norm: &Norm<'_>,
    out: &mut [f32],
) {
    assert!(
        channels > 0 && x.len().is_multiple_of(channels),
        "x is not whole rows"
    );
    assert_eq!(x.len(), out.len(), "out has not the shape of x");
    norm.check(channels);
    let rows = x.len() / channels;
    let chunk = 32;
    let out = Shared::new(out);
    parallel.run(rows.div_ceil(chunk), &|task| {
        let start = task * chunk * channels;
        let length = (chunk * channels).min(x.len() - start);
        let Some(x) = x.get(start..start + length) else {
            return;
        };
        // SAFETY: tasks have rows of their own.
        let to = unsafe { out.part(start, length) };
        normalise_rows(isa, x, channels, norm, to, channels);
    });
}

/// Rows of `x` `[rows, channels]` to rows `stride` apart; where the stride leaves room for them, a row's last
/// sixteen are filled up with zeros.
pub(super) fn normalise_rows(
    isa: Isa,
    x: &[f32],
    channels: usize,
    norm: &Norm<'_>,
    to: &mut [f32],
    stride: usize,
) {
    #[inline(always)]
    unsafe fn body<V: Lanes>(x: &[f32], channels: usize, norm: &Norm<'_>, to: &mut [f32], stride: usize) {
        for (x, to) in x.chunks_exact(channels).zip(to.chunks_mut(stride)) {
            // SAFETY: as for this function.
            unsafe { normalise_row::<V>(x, norm, to) };
        }
    }
    dispatch!(isa, body(x: &[f32], channels: usize, norm: &Norm<'_>, to: &mut [f32], stride: usize));
}

/// Up to sixteen numbers from `from`, zeros behind its end.
///
/// # Safety
/// As [`Lanes`].
#[inline(always)]
pub(super) unsafe fn load_part<V: Lanes>(from: &[f32], start: usize) -> V {
    // SAFETY: sixteen numbers are read only where there are sixteen.
    unsafe {
        if start + LANES <= from.len() {
            return V::load(from.as_ptr().add(start));
        }
        V::load(rest(from, start).as_ptr())
    }
}

/// What there is from `start` on, and zeros. Apart, for the rare case would be the most of what it is inlined in.
#[cold]
fn rest(from: &[f32], start: usize) -> [f32; LANES] {
    let mut lanes = [0.0; LANES];
    for (lane, value) in lanes.iter_mut().zip(from.iter().skip(start)) {
        *lane = *value;
    }
    lanes
}

/// As many of the sixteen as fit into `to` from `start` on.
///
/// # Safety
/// As [`Lanes`].
#[inline(always)]
pub(super) unsafe fn store_part<V: Lanes>(value: V, to: &mut [f32], start: usize) {
    // SAFETY: sixteen numbers are written only where there is room for sixteen.
    unsafe {
        if start + LANES <= to.len() {
            return value.store(to.as_mut_ptr().add(start));
        }
        let mut lanes = [0.0; LANES];
        value.store(lanes.as_mut_ptr());
        for (to, lane) in to.iter_mut().skip(start).zip(lanes) {
            *to = lane;
        }
    }
}

/// Sum over a row of `x - centre`, or of its square, in four chains.
///
/// # Safety
/// As [`Lanes`].
#[inline(always)]
unsafe fn sum_of<V: Lanes, const SQUARES: bool>(x: &[f32], centre: V) -> f32 {
    // SAFETY: as for this function.
    unsafe {
        let [mut a, mut b, mut c, mut d] = [V::splat(0.0); 4];
        let mut at = 0;
        while at + 4 * LANES <= x.len() {
            let from = x.as_ptr().add(at);
            a = add_to::<V, SQUARES>(a, V::load(from).sub(centre));
            b = add_to::<V, SQUARES>(b, V::load(from.add(LANES)).sub(centre));
            c = add_to::<V, SQUARES>(c, V::load(from.add(2 * LANES)).sub(centre));
            d = add_to::<V, SQUARES>(d, V::load(from.add(3 * LANES)).sub(centre));
            at += 4 * LANES;
        }
        while at < x.len() {
            a = add_to::<V, SQUARES>(a, load_part::<V>(x, at).sub(centre));
            at += LANES;
        }
        a.add(b).add(c.add(d)).sum()
    }
}

/// # Safety
/// As [`Lanes`].
#[inline(always)]
unsafe fn add_to<V: Lanes, const SQUARES: bool>(sum: V, value: V) -> V {
    // SAFETY: as for this function.
    unsafe {
        if SQUARES {
            value.mul_add(value, sum)
        } else {
            sum.add(value)
        }
    }
}

/// One row; `to` at least as long, zeros behind the row's end up to a multiple of sixteen if there is room.
///
/// # Safety
/// As [`Lanes`].
#[inline(always)]
pub(super) unsafe fn normalise_row<V: Lanes>(x: &[f32], norm: &Norm<'_>, to: &mut [f32]) {
    let length = x.len();
    let share = 1.0 / length as f32;
    // SAFETY: as for this function.
    unsafe {
        match norm {
            Norm::None => {
                for i in 0..length.div_ceil(LANES) {
                    store_part::<V>(load_part(x, i * LANES), to, i * LANES);
                }
            }
            Norm::Rms { gamma, epsilon } => {
                let squares = sum_of::<V, true>(x, V::splat(0.0));
                let factor = V::splat(1.0 / (squares * share + epsilon).sqrt());
                for i in 0..length.div_ceil(LANES) {
                    let value: V = load_part(x, i * LANES);
                    store_part(value.mul(factor).mul(load_part(gamma, i * LANES)), to, i * LANES);
                }
            }
            Norm::Layer { gamma, beta, epsilon } => {
                let mean = sum_of::<V, false>(x, V::splat(0.0)) * share;
                let centre = V::splat(mean);
                let (whole, rest) = x.split_at(length / LANES * LANES);
                let mut squares = sum_of::<V, true>(whole, centre);
                // The last few one by one: the zeros that would fill them up are no part of the variance.
                for value in rest {
                    squares += (value - mean) * (value - mean);
                }
                let factor = V::splat(1.0 / (squares * share + epsilon).sqrt());
                for i in 0..length.div_ceil(LANES) {
                    let value = load_part::<V>(x, i * LANES).sub(centre).mul(factor);
                    let value = value.mul_add(load_part(gamma, i * LANES), load_part(beta, i * LANES));
                    store_part(value, to, i * LANES);
                }
            }
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::parallel::Serial;
    use crate::testing::noise;

    /// The same in float64.
    pub(crate) fn naive(x: &[f32], channels: usize, norm: &Norm<'_>) -> Vec<f64> {
        let row = |x: &[f32]| -> Vec<f64> {
            let x: Vec<f64> = x.iter().map(|x| f64::from(*x)).collect();
            let mean = |x: &[f64]| x.iter().sum::<f64>() / channels as f64;
            let squares = |x: &[f64]| mean(&x.iter().map(|x| x * x).collect::<Vec<_>>());
            match norm {
                Norm::None => x,
                Norm::Rms { gamma, epsilon } => {
                    let size = (squares(&x) + f64::from(*epsilon)).sqrt();
                    x.iter()
                        .zip(*gamma)
                        .map(|(x, g)| x / size * f64::from(*g))
                        .collect()
                }
                Norm::Layer { gamma, beta, epsilon } => {
                    let centre = mean(&x);
                    let x: Vec<f64> = x.iter().map(|x| x - centre).collect();
                    let size = (squares(&x) + f64::from(*epsilon)).sqrt();
                    let weights = gamma
                        .iter()
                        .zip(*beta)
                        .map(|(g, b)| (f64::from(*g), f64::from(*b)));
                    x.iter()
                        .zip(weights)
                        .map(|(x, (g, b))| x / size * g + b)
                        .collect()
                }
            }
        };
        x.chunks(channels).flat_map(row).collect()
    }

    #[test]
    fn agrees_with_float64() {
        for channels in [1, 15, 16, 17, 100, 192, 1000] {
            let x: Vec<f32> = noise(channels * 37, 1).iter().map(|x| 3.0 * x + 0.5).collect();
            let (gamma, beta) = (noise(channels, 2), noise(channels, 3));
            let (gamma, beta) = (&gamma, &beta);
            let norms = [
                Norm::None,
                Norm::Rms { gamma, epsilon: 1e-6 },
                Norm::Layer {
                    gamma,
                    beta,
                    epsilon: 1e-5,
                },
            ];
            for norm in &norms {
                let expected = naive(&x, channels, norm);
                for isa in Isa::available() {
                    let mut out = vec![f32::NAN; x.len()];
                    normalise(isa, &Serial, &x, channels, norm, &mut out);
                    for (found, expected) in out.iter().zip(&expected) {
                        // A row of one number has no variance: its size is the root of epsilon, 300 times
                        // smaller.
                        let bound = if channels == 1 { 1e-4 } else { 4e-6 };
                        assert!(
                            (f64::from(*found) - expected).abs() < bound * expected.abs().max(1.0),
                            "{} {norm:?}: {found} for {expected}",
                            isa.name()
                        );
                    }
                }
            }
        }
    }
}
