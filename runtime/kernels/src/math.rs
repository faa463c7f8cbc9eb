//! Activation functions: exp, SiLU, erf and GELU, sixteen numbers at a time.

use super::isa::Lanes;

/// `exp(x)`, relative error below 2e-7; that of -87 below -87, and of 88 above 88.
///
/// `x = n ln 2 + r` with `|r| <= ln 2 / 2`; a polynomial of degree 6 in `r` (Cephes `expf`), scaled by `2^n`.
///
/// # Safety
/// As [`Lanes`].
#[inline(always)]
pub(crate) unsafe fn exp<V: Lanes>(x: V) -> V {
    unsafe {
        let x = x.max(V::splat(-87.0)).min(V::splat(88.0));
        let n = x.mul(V::splat(std::f32::consts::LOG2_E)).round();
        // ln 2 in two parts, so that the difference keeps its low bits.
        let r = n.mul_add(V::splat(-0.693_359_375), x);
        let r = n.mul_add(V::splat(2.121_944_4e-4), r);
        let mut p = V::splat(1.987_569_1e-4);
        for coefficient in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
            p = p.mul_add(r, V::splat(coefficient));
        }
        let p = p.mul_add(r.mul(r), r).add(V::splat(1.0));
        p.scale_by_power(n)
    }
}

/// `2^x` for `x` of at most 0, relative error below 1e-5: for values that are rounded to words at once. Nearly
/// 0 below -120.
///
/// # Safety
/// As [`Lanes`].
#[inline(always)]
pub(crate) unsafe fn exp2_coarse<V: Lanes>(x: V) -> V {
    unsafe {
        let x = x.max(V::splat(-120.0));
        let n = x.round();
        let r = x.sub(n);
        let mut p = V::splat(0.0095700862);
        for coefficient in [0.0559178591, 0.240247452, 0.693121815, 0.999999261] {
            p = p.mul_add(r, V::splat(coefficient));
        }
        p.scale_by_power(n)
    }
}

/// `x / (1 + exp(-x))`
///
/// # Safety
/// As [`Lanes`].
#[inline(always)]
pub(crate) unsafe fn silu<V: Lanes>(x: V) -> V {
    unsafe {
        let e = exp(V::splat(0.0).sub(x));
        x.div(V::splat(1.0).add(e))
    }
}

/// `erf(x)`, absolute error below 4e-7.
///
/// Eigen's quotient of two polynomials in `x^2` (`generic_fast_erf_float`), on `|x| <= 4`, where float32
/// reaches 1.
///
/// # Safety
/// As [`Lanes`].
#[inline(always)]
pub(crate) unsafe fn erf<V: Lanes>(x: V) -> V {
    unsafe {
        let x = x.max(V::splat(-4.0)).min(V::splat(4.0));
        let s = x.mul(x);
        let mut p = V::splat(-2.726_142_3e-10);
        for coefficient in [
            2.770_681_4e-8,
            -2.101_024e-6,
            -5.692_506_4e-5,
            -7.349_906_1e-4,
            -2.954_600_1e-3,
            -1.609_603_3e-2,
        ] {
            p = p.mul_add(s, V::splat(coefficient));
        }
        let mut q = V::splat(-1.456_607_1e-5);
        for coefficient in [-2.133_740_5e-4, -1.682_827_e-3, -7.373_329e-3, -1.426_473_9e-2] {
            q = q.mul_add(s, V::splat(coefficient));
        }
        x.mul(p).div(q)
    }
}

/// `x / 2 * (1 + erf(x / sqrt(2)))`, the exact GELU.
///
/// # Safety
/// As [`Lanes`].
#[inline(always)]
pub(crate) unsafe fn gelu<V: Lanes>(x: V) -> V {
    unsafe {
        let half = x.mul(V::splat(0.5));
        let e = erf(x.mul(V::splat(std::f32::consts::FRAC_1_SQRT_2)));
        half.mul_add(e, half)
    }
}

/// GELU without a division, absolute error below 1e-4 up to `|x| = 100`: for values that are rounded to bytes
/// at once.
///
/// Where sets can [`Lanes::pick`], `x / 2 + p(|x|)` with a `p` of degree 2 for each sixteenth of what is
/// below 4.2. Elsewhere `x (1/2 + u P(u^2))`, `u` being `x` cut off at 4.2, where the bracket is 0 or 1 but
/// for float32's rounding. All have the least possible maximum of the error, so that near zero the error is
/// below 6e-4 of the value.
///
/// # Safety
/// As [`Lanes`].
#[inline(always)]
pub(crate) unsafe fn gelu_coarse<V: Lanes>(x: V) -> V {
    unsafe {
        if V::PICKS {
            return gelu_picked(x);
        }
        let u = x.max(V::splat(-4.2)).min(V::splat(4.2));
        let s = u.mul(u);
        let mut p = V::splat(-9.017_534_4e-10);
        for coefficient in [
            7.941_341e-8,
            -3.037_932e-6,
            6.689_07e-5,
            -9.506_575_5e-4,
            9.298_23e-3,
            -6.552_82e-2,
            0.398_465_35,
        ] {
            p = p.mul_add(s, V::splat(coefficient));
        }
        x.mul(u.mul_add(p, V::splat(0.5)))
    }
}

/// [`gelu_coarse`] by a table: part `i` is of the magnitudes nearest to `0.272 i`, the last of all above.
///
/// # Safety
/// As [`Lanes`].
#[inline(always)]
unsafe fn gelu_picked<V: Lanes>(x: V) -> V {
    #[rustfmt::skip]
    const COEFFICIENTS: [[f32; 16]; 3] = [
        [
            0.397_684_1, 0.370_053_65, 0.292_492_96, 0.190_821_28, 0.090_697_758, 0.012_738_616,
            -0.034_170_806, -0.052_403_636, -0.050_882_783, -0.039_754_607, -0.026_707_569, -0.015_875_973,
            -0.008_470_268, -0.004_093_196_7, -0.001_799_595_4, 0.0,
        ],
        [
            3.424_898e-5, 0.009_430_02, 0.074_121_893, 0.212_885_19, 0.402_936_58, 0.592_551_11,
            0.731_560_47, 0.794_974_92, 0.788_155_2, 0.736_480_42, 0.669_085_56, 0.607_353_69,
            0.561_170_04, 0.531_516_49, 0.514_740_59, 0.5,
        ],
        [
            0.0, -0.000_788_109_61, -0.014_391_141, -0.061_890_077, -0.152_227_92, -0.267_638_27,
            -0.370_684_65, -0.425_838_05, -0.418_254_05, -0.358_249_58, -0.271_197_59, -0.183_225_38,
            -0.111_211_72, -0.060_981_821, -0.030_303_152, -7.901_178_5e-5,
        ],
    ];
    unsafe {
        let u = x.abs();
        // The part is the lowest bits of a number of which no bits are left for a fraction.
        let part = u.min(V::splat(4.1888));
        let part = part.mul_add(V::splat(1.0 / 0.272), V::splat(12_582_912.0));
        let [square, linear, constant] = COEFFICIENTS;
        let p = part.pick(&square).mul_add(u, part.pick(&linear));
        let p = p.mul_add(u, part.pick(&constant));
        x.mul_add(V::splat(0.5), p)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::{Isa, dispatch};
    use crate::testing;

    #[inline(always)]
    unsafe fn evaluate<V: Lanes>(x: f32) -> [f32; 4] {
        let mut lanes = [0.0; 16];
        unsafe {
            let x = V::splat(x);
            [exp(x), silu(x), erf(x), gelu(x)].map(|value| {
                value.store(lanes.as_mut_ptr());
                lanes[3]
            })
        }
    }

    #[inline(always)]
    unsafe fn coarse<V: Lanes>(x: f32) -> f32 {
        let mut lanes = [0.0; 16];
        unsafe { gelu_coarse(V::splat(x)).store(lanes.as_mut_ptr()) };
        lanes[9]
    }

    #[inline(always)]
    unsafe fn power<V: Lanes>(x: f32) -> f32 {
        let mut lanes = [0.0; 16];
        unsafe { exp2_coarse(V::splat(x)).store(lanes.as_mut_ptr()) };
        lanes[5]
    }

    #[test]
    fn coarse_powers_stay_within_their_bound() {
        for isa in Isa::available() {
            for step in -12_000..=0 {
                let x = step as f32 / 100.0;
                let found = f64::from(dispatch!(isa, power(x: f32) -> f32));
                let exact = f64::from(x).exp2();
                assert!(
                    (found / exact - 1.0).abs() < 1e-5,
                    "{} exp2_coarse({x}) = {found}",
                    isa.name()
                );
            }
            let least = f32::NEG_INFINITY;
            let found = dispatch!(isa, power(least: f32) -> f32);
            assert!((0.0..1e-30).contains(&found), "{}: {found}", isa.name());
        }
    }

    #[test]
    fn coarse_gelu_stays_within_its_bound() {
        for isa in Isa::available() {
            for step in -100_000..=100_000 {
                let x = step as f32 / 1000.0;
                let wide = f64::from(x);
                let exact = testing::gelu(wide);
                let found = f64::from(dispatch!(isa, coarse(x: f32) -> f32));
                let bound = if x.abs() < 0.15 { 6e-4 * exact.abs() } else { 1e-4 };
                assert!(
                    (found - exact).abs() <= bound,
                    "{} gelu_coarse({x}) = {found}",
                    isa.name()
                );
            }
        }
    }

    #[test]
    fn close_to_float64() {
        for isa in Isa::available() {
            for step in -1600..=1600 {
                let x = step as f32 / 100.0;
                let wide = f64::from(x);
                let [e, s, f, g] = dispatch!(isa, evaluate(x: f32) -> [f32; 4]).map(f64::from);
                assert!(
                    (e / wide.exp() - 1.0).abs() < 3e-7,
                    "{} exp({x}) = {e}",
                    isa.name()
                );
                let silu = wide / (1.0 + (-wide).exp());
                assert!(
                    (s - silu).abs() <= 4e-7 * silu.abs().max(1e-3),
                    "{} silu({x}) = {s}",
                    isa.name()
                );
                assert!(
                    (f - testing::erf(wide)).abs() < 4e-7,
                    "{} erf({x}) = {f}",
                    isa.name()
                );
                let gelu = testing::gelu(wide);
                assert!(
                    (g - gelu).abs() < 4e-7 * wide.abs().max(1.0),
                    "{} gelu({x}) = {g}",
                    isa.name()
                );
            }
        }
    }
}
