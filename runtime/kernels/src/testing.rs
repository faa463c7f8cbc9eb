//! What do the kernels' tests share? Numbers that look random, functions in float64, and threads that are
//! none.

use super::parallel::Parallel;

/// Numbers in -1..1 that look random.
pub(super) fn noise(length: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..length).map(next).collect()
}

/// erf by its series, `2/sqrt(pi) * sum of (-1)^n x^(2n+1) / (n! (2n+1))`.
pub(super) fn erf(x: f64) -> f64 {
    if x.abs() > 5.0 {
        return x.signum();
    }
    let (mut term, mut sum) = (x, x);
    for n in 1..200 {
        term *= -x * x / f64::from(n);
        sum += term / f64::from(2 * n + 1);
    }
    sum * std::f64::consts::FRAC_2_SQRT_PI
}

/// The exact GELU.
pub(super) fn gelu(x: f64) -> f64 {
    x / 2.0 * (1.0 + erf(x / 2f64.sqrt()))
}

/// As many tasks as there would be with so many threads, one after the other from the last.
#[derive(Debug)]
pub(super) struct Backwards(pub(super) usize);

// SAFETY: a loop over the numbers; tests have few threads.
unsafe impl Parallel for Backwards {
    fn threads(&self) -> usize {
        self.0
    }

    fn run(&self, count: usize, task: &(dyn Fn(usize) + Sync)) {
        (0..count).rev().for_each(task);
    }
}
