//! Elementary functions that the compiler can vectorize for f32, and exact ones for f64.
//!
//! Those of f32 are polynomials without branches and without fused multiply-add, so that the results are the same for any width
//! of vectors. They are off by less than 3 ulp, the normal distribution's tail by less than 5; where an exponential of a rounded number is in it, that number times an ulp is
//! added.

#![allow(clippy::inline_always, reason = "a loop has the vector width of the function that it is inlined into")]

use std::f64::consts::{FRAC_1_SQRT_2, FRAC_2_SQRT_PI};

use super::exp::Exp;

/// A number with the functions that activations and losses are made of.
pub(crate) trait Real: Exp {
    /// exp(-x) is 0 for all larger x.
    const LIMIT: Self;

    fn tanh(self) -> Self;
    /// eˣ - 1 of a number that is not positive.
    fn exp_m1(self) -> Self;
    /// ln(1 + x) of a number in [0, 1].
    fn ln_1p(self) -> Self;
    /// The probability that a normal variable is larger than a number that is not negative, and the density there.
    fn normal(self) -> [Self; 2];

    #[inline(always)]
    fn abs(self) -> Self {
        if self < Self::default() { Self::default() - self } else { self }
    }

    /// The nearest number in ±`LIMIT`; NaN stays NaN.
    #[inline(always)]
    fn bounded(self) -> Self {
        let lower = self.at_least();
        if lower > Self::LIMIT { Self::LIMIT } else { lower }
    }

    /// The larger of it and -`LIMIT`; NaN stays NaN.
    #[inline(always)]
    fn at_least(self) -> Self {
        let least = Self::default() - Self::LIMIT;
        if self < least { least } else { self }
    }
}

impl Real for f32 {
    const LIMIT: Self = 100.0;

    /// Near 0 a polynomial (Cephes, `tanhf.c`).
    #[inline(always)]
    fn tanh(self) -> Self {
        const COEFFICIENTS: [f32; 5] = [-0.005_704_988_7, 0.020_639_088, -0.053_739_715, 0.133_314_42, -0.333_332_8];
        let (size, square) = (self.abs(), self * self);
        let small = self + polynomial(COEFFICIENTS, square) * square * self;
        let z = Exp::exp(-2.0 * size);
        let large = 1.0 - 2.0 * z / (1.0 + z);
        if size < 0.625 { small } else { large.copysign(self) }
    }

    #[inline(always)]
    fn exp_m1(self) -> Self {
        let t = Real::tanh(0.5 * self);
        2.0 * t / (1.0 - t)
    }

    /// 2 artanh(x / (2 + x)), whose argument is at most 1/3.
    #[inline(always)]
    fn ln_1p(self) -> Self {
        const COEFFICIENTS: [f32; 7] = [1.0 / 15.0, 1.0 / 13.0, 1.0 / 11.0, 1.0 / 9.0, 1.0 / 7.0, 1.0 / 5.0, 1.0 / 3.0];
        let w = self / (2.0 + self);
        let square = w * w;
        2.0 * (w + polynomial(COEFFICIENTS, square) * square * w)
    }

    /// exp(-x²/2) s P(s - 0.6), s = 1 / (1 + 0.4 x): interpolated at Chebyshev's nodes of [0, 13.3], off by 5e-9 before rounding.
    #[inline(always)]
    fn normal(self) -> [Self; 2] {
        const COEFFICIENTS: [f32; 10] = [
            0.031_834_06,
            -0.002_989_012,
            -0.048_789_557,
            0.033_909_384,
            0.050_503_15,
            -0.086_348_49,
            -0.068_299_33,
            0.196_314_29,
            0.387_897_16,
            0.319_430_05,
        ];
        let power = Exp::exp(-0.5 * self * self);
        let s = 1.0 / (1.0 + 0.4 * self);
        [polynomial(COEFFICIENTS, s - 0.6) * s * power, 0.398_942_3 * power]
    }
}

/// From the coefficient of the highest power.
#[inline(always)]
fn polynomial<const N: usize>(coefficients: [f32; N], x: f32) -> f32 {
    let mut sum = 0.0;
    for coefficient in coefficients {
        sum = sum * x + coefficient;
    }
    sum
}

impl Real for f64 {
    const LIMIT: Self = 800.0;

    #[inline(always)]
    fn tanh(self) -> Self {
        f64::tanh(self)
    }

    #[inline(always)]
    fn exp_m1(self) -> Self {
        f64::exp_m1(self)
    }

    #[inline(always)]
    fn ln_1p(self) -> Self {
        f64::ln_1p(self)
    }

    #[inline(always)]
    fn normal(self) -> [Self; 2] {
        let tail = 0.5 * candle_core::cpu::erf::erfc_f64(self * FRAC_1_SQRT_2);
        [tail, 0.5 * FRAC_2_SQRT_PI * FRAC_1_SQRT_2 * (-0.5 * self * self).exp()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The largest error of `f`, in units of the last place of f32, for |x| in [1e-30, `largest`], less an ulp for each unit of the
    /// `exponent`.
    fn worst(largest: f32, f: impl Fn(f32) -> (f32, f64), exponent: impl Fn(f64) -> f64) -> (f64, f32) {
        let mut worst = (0.0, 0.0);
        for bits in (1e-30_f32.to_bits()..largest.to_bits()).step_by(3001) {
            let x = f32::from_bits(bits);
            let (found, expected) = f(x);
            let near = (expected as f32).abs();
            let ulp = f64::from(f32::from_bits(near.to_bits() + 1)) - f64::from(near);
            let off = (f64::from(found) - expected).abs() / ulp - exponent(x.into());
            if off > worst.0 {
                worst = (off, x);
            }
        }
        worst
    }

    #[test]
    fn functions_are_those_of_f64() {
        let none = |_| 0.0;
        let of = |f: fn(f32) -> f32, g: fn(f64) -> f64| move |x: f32| (f(x), g(x.into()));
        let found = [
            ("tanh", worst(20.0, of(Real::tanh, f64::tanh), none)),
            ("tanh, negative", worst(20.0, of(|x| Real::tanh(-x), |x| f64::tanh(-x)), none)),
            ("exp_m1", worst(80.0, of(|x| Real::exp_m1(-x), |x| f64::exp_m1(-x)), none)),
            ("ln_1p", worst(1.0, of(Real::ln_1p, f64::ln_1p), none)),
            ("tail", worst(13.0, of(|x| Real::normal(x)[0], |x| Real::normal(x)[0]), |x| x * x / 2.0)),
            ("density", worst(13.0, of(|x| Real::normal(x)[1], |x| Real::normal(x)[1]), |x| x * x / 2.0)),
        ];
        for (what, (ulps, x)) in found {
            assert!(ulps < if what == "tail" { 5.0 } else { 3.0 }, "{what} is off by {ulps} at {x}");
        }
        assert_eq!([f32::INFINITY, f32::NEG_INFINITY].map(Real::tanh), [1.0, -1.0]);
        assert_eq!(Real::normal(f32::INFINITY), [0.0; 2]);
        assert!(
            [Real::tanh(f32::NAN), Real::exp_m1(f32::NAN), f32::NAN.at_least(), f32::NAN.bounded()].map(f32::is_nan)
                == [true; 4]
        );
    }
}
