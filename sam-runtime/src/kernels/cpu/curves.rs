//! The activation functions and their derivatives, one number at a time.
//!
//! Each is written so that nothing cancels (1 + tanh is a logistic function), and so that ±∞ and large numbers give the limits: a
//! factor that grows is bounded where the other is 0. NaN stays NaN. Where a function has a corner, its derivative there is PyTorch's.

#![allow(clippy::inline_always, reason = "a loop has the vector width of the function that it is inlined into")]

use super::real::Real;

/// A function and its derivative.
pub(super) trait Curve: Copy + Send + Sync {
    fn value<T: Real>(self, x: T) -> T;
    fn slope<T: Real>(self, x: T) -> T;
}

/// Calls a function that is generic over [`Curve`] for a [`Function`](crate::kernels::activation::Function).
macro_rules! with_curve {
    ($function:expr, |$curve:ident| $call:expr) => {{
        use $crate::kernels::activation::Function;
        use $crate::kernels::cpu::curves;
        macro_rules! call {
            ($value:expr) => {{
                let $curve = $value;
                $call
            }};
        }
        match $function {
            Function::GeluTanh => call!(curves::GeluTanh),
            Function::GeluErf => call!(curves::GeluErf),
            Function::Silu => call!(curves::Silu),
            Function::Sigmoid => call!(curves::Sigmoid),
            Function::Tanh => call!(curves::Tanh),
            Function::Mish => call!(curves::Mish),
            Function::Relu2 => call!(curves::Relu2),
            Function::Relu6 => call!(curves::Relu6),
            Function::HardSigmoid => call!(curves::HardSigmoid),
            Function::HardSwish => call!(curves::HardSwish),
            Function::LeakyRelu(slope) => call!(curves::LeakyRelu(slope)),
            Function::Elu(alpha) => call!(curves::Elu { alpha, gamma: 1.0 }),
            Function::Selu { alpha, gamma } => call!(curves::Elu { alpha, gamma }),
        }
    }};
}
pub(super) use with_curve;

/// 1 / (1 + e⁻ˣ), and its derivative.
#[inline(always)]
pub(super) fn logistic<T: Real>(x: T) -> [T; 2] {
    let zero = T::default();
    let z = (zero - x.abs()).exp();
    let r = T::one() / (T::one() + z);
    [if x < zero { z * r } else { r }, z * r * r]
}

/// x times the logistic function of 2 √(2/π) (x + 0.044715 x³), which is x (1 + tanh(..)) / 2.
#[derive(Clone, Copy)]
pub(super) struct GeluTanh;

impl GeluTanh {
    const LINEAR: f64 = 1.595_769_121_605_730_7;
    const CUBIC: f64 = 0.044_715 * Self::LINEAR;
}

impl Curve for GeluTanh {
    #[inline(always)]
    fn value<T: Real>(self, x: T) -> T {
        let b = x.bounded();
        let [share, _] = logistic(b * (T::narrow(Self::LINEAR) + T::narrow(Self::CUBIC) * (b * b)));
        x.at_least() * share
    }

    #[inline(always)]
    fn slope<T: Real>(self, x: T) -> T {
        let (linear, cubic, b) = (T::narrow(Self::LINEAR), T::narrow(Self::CUBIC), x.bounded());
        let square = b * b;
        let [share, slope] = logistic(b * (linear + cubic * square));
        share + b * (linear + T::narrow(3.0) * cubic * square) * slope
    }
}

/// x Φ(x)
#[derive(Clone, Copy)]
pub(super) struct GeluErf;

impl Curve for GeluErf {
    #[inline(always)]
    fn value<T: Real>(self, x: T) -> T {
        let [tail, _] = x.bounded().abs().normal();
        x.at_least() * if x < T::default() { tail } else { T::one() - tail }
    }

    #[inline(always)]
    fn slope<T: Real>(self, x: T) -> T {
        let b = x.bounded();
        let [tail, density] = b.abs().normal();
        b * density + if x < T::default() { tail } else { T::one() - tail }
    }
}

/// x σ(x)
#[derive(Clone, Copy)]
pub(super) struct Silu;

impl Curve for Silu {
    #[inline(always)]
    fn value<T: Real>(self, x: T) -> T {
        x.at_least() * logistic(x)[0]
    }

    #[inline(always)]
    fn slope<T: Real>(self, x: T) -> T {
        let [share, slope] = logistic(x);
        share + x.bounded() * slope
    }
}

#[derive(Clone, Copy)]
pub(super) struct Sigmoid;

impl Curve for Sigmoid {
    #[inline(always)]
    fn value<T: Real>(self, x: T) -> T {
        logistic(x)[0]
    }

    #[inline(always)]
    fn slope<T: Real>(self, x: T) -> T {
        logistic(x)[1]
    }
}

#[derive(Clone, Copy)]
pub(super) struct Tanh;

impl Curve for Tanh {
    #[inline(always)]
    fn value<T: Real>(self, x: T) -> T {
        x.tanh()
    }

    #[inline(always)]
    fn slope<T: Real>(self, x: T) -> T {
        T::narrow(4.0) * logistic(T::narrow(2.0) * x)[1]
    }
}

/// x tanh(ln(1 + eˣ))
#[derive(Clone, Copy)]
pub(super) struct Mish;

impl Mish {
    /// tanh(ln(1 + eˣ)), and 1 - that.
    #[inline(always)]
    fn share<T: Real>(x: T) -> [T; 2] {
        let (one, two) = (T::one(), T::narrow(2.0));
        let z = (T::default() - x.abs()).exp();
        let (above, left, below) = if x < T::default() {
            (z * (z + two), two, z * (z + two) + two)
        } else {
            (one + two * z, two * z * z, one + two * z * (one + z))
        };
        [above / below, left / below]
    }
}

impl Curve for Mish {
    #[inline(always)]
    fn value<T: Real>(self, x: T) -> T {
        x.at_least() * Self::share(x)[0]
    }

    #[inline(always)]
    fn slope<T: Real>(self, x: T) -> T {
        let [share, left] = Self::share(x);
        share + x.bounded() * (left * (T::one() + share) * logistic(x)[0])
    }
}

/// max(x, 0)²
#[derive(Clone, Copy)]
pub(super) struct Relu2;

impl Curve for Relu2 {
    #[inline(always)]
    fn value<T: Real>(self, x: T) -> T {
        if x < T::default() { T::default() } else { x * x }
    }

    #[inline(always)]
    fn slope<T: Real>(self, x: T) -> T {
        if x < T::default() { T::default() } else { x + x }
    }
}

#[derive(Clone, Copy)]
pub(super) struct Relu6;

impl Curve for Relu6 {
    #[inline(always)]
    fn value<T: Real>(self, x: T) -> T {
        let (zero, six) = (T::default(), T::narrow(6.0));
        let lower = if x < zero { zero } else { x };
        if lower > six { six } else { lower }
    }

    #[inline(always)]
    fn slope<T: Real>(self, x: T) -> T {
        if x <= T::default() || x >= T::narrow(6.0) { T::default() } else { T::one() }
    }
}

/// (x + 3) / 6 in [0, 1]
#[derive(Clone, Copy)]
pub(super) struct HardSigmoid;

impl Curve for HardSigmoid {
    #[inline(always)]
    fn value<T: Real>(self, x: T) -> T {
        let y = (x + T::narrow(3.0)) * T::narrow(1.0 / 6.0);
        let lower = if y < T::default() { T::default() } else { y };
        if lower > T::one() { T::one() } else { lower }
    }

    #[inline(always)]
    fn slope<T: Real>(self, x: T) -> T {
        let inside = x > T::narrow(-3.0) && x < T::narrow(3.0);
        if inside { T::narrow(1.0 / 6.0) } else { T::default() }
    }
}

/// x times the hard sigmoid of x.
#[derive(Clone, Copy)]
pub(super) struct HardSwish;

impl Curve for HardSwish {
    #[inline(always)]
    fn value<T: Real>(self, x: T) -> T {
        let three = T::narrow(3.0);
        let middle = x * ((x + three) * T::narrow(1.0 / 6.0));
        let lower = if x <= T::narrow(-3.0) { T::default() } else { middle };
        if x >= three { x } else { lower }
    }

    #[inline(always)]
    fn slope<T: Real>(self, x: T) -> T {
        let middle = x * T::narrow(1.0 / 3.0) + T::narrow(0.5);
        let lower = if x <= T::narrow(-3.0) { T::default() } else { middle };
        if x >= T::narrow(3.0) { T::one() } else { lower }
    }
}

/// x, and negative numbers times a factor.
#[derive(Clone, Copy)]
pub(super) struct LeakyRelu(pub(super) f64);

impl Curve for LeakyRelu {
    #[inline(always)]
    fn value<T: Real>(self, x: T) -> T {
        if x > T::default() { x } else { x * T::narrow(self.0) }
    }

    #[inline(always)]
    fn slope<T: Real>(self, x: T) -> T {
        if x > T::default() { T::one() } else { T::narrow(self.0) }
    }
}

/// γ x, and γ α (eˣ - 1) of negative numbers.
#[derive(Clone, Copy)]
pub(super) struct Elu {
    pub(super) alpha: f64,
    pub(super) gamma: f64,
}

impl Curve for Elu {
    #[inline(always)]
    fn value<T: Real>(self, x: T) -> T {
        let negative = if x > T::default() { T::default() } else { x };
        let y = if x > T::default() { x } else { T::narrow(self.alpha) * negative.exp_m1() };
        T::narrow(self.gamma) * y
    }

    #[inline(always)]
    fn slope<T: Real>(self, x: T) -> T {
        let negative = if x > T::default() { T::default() } else { x };
        let y = if x > T::default() { T::one() } else { T::narrow(self.alpha) * negative.exp() };
        T::narrow(self.gamma) * y
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::activation::Function;

    const ALL: [Function; 13] = [
        Function::GeluTanh,
        Function::GeluErf,
        Function::Silu,
        Function::Sigmoid,
        Function::Tanh,
        Function::Mish,
        Function::Relu2,
        Function::Relu6,
        Function::HardSigmoid,
        Function::HardSwish,
        Function::LeakyRelu(0.1),
        Function::Elu(1.3),
        Function::Selu { alpha: 1.67, gamma: 1.05 },
    ];

    fn both<T: Real>(function: Function, x: T) -> [T; 2] {
        with_curve!(function, |curve| [curve.value(x), curve.slope(x)])
    }

    #[test]
    fn f32_is_f64() {
        for function in ALL {
            for i in -4000..4000 {
                let x = i as f32 / 200.0 + 1e-4;
                let (found, expected) = (both(function, x), both(function, f64::from(x)));
                for (found, expected) in found.into_iter().zip(expected) {
                    // A slope is the sum of a share and a part that may have the opposite sign.
                    let bound = 2e-7 * (1.0 + expected.abs());
                    assert!((f64::from(found) - expected).abs() < bound, "{function:?} at {x}: {found}, {expected}");
                }
                // Left tails are not differences.
                let (found, expected) = (f64::from(found[0]), expected[0]);
                let bound = (4e-7 + 1.5e-7 * f64::from(x * x)) * expected.abs() + 1e-36;
                assert!((found - expected).abs() < bound, "{function:?} at {x}: {found}, {expected}");
            }
        }
    }

    #[test]
    fn slopes_are_those_of_differences() {
        for function in ALL {
            for i in -400..400 {
                let (x, step) = (f64::from(i) / 40.0 + 1e-3, 1e-5);
                let difference = (both(function, x + step)[0] - both(function, x - step)[0]) / (2.0 * step);
                let slope = both(function, x)[1];
                assert!((slope - difference).abs() < 1e-8, "{function:?} at {x}: {slope}, {difference}");
            }
        }
    }

    #[test]
    fn limits() {
        for function in ALL {
            let gamma = if let Function::Selu { gamma, .. } = function { gamma } else { 1.0 };
            for large in [300.0, 1e30, f64::INFINITY] {
                let grows = !matches!(
                    function,
                    Function::Sigmoid | Function::Tanh | Function::HardSigmoid | Function::Relu6 | Function::Relu2
                );
                for ([y, slope], x) in [
                    (both(function, large), large),
                    (both(function, large as f32).map(f64::from), f64::from(large as f32)),
                ] {
                    if grows {
                        assert!((y - gamma * x).abs() <= 1e-6 * x || y == x, "{function:?}: {y}");
                        assert!((slope - gamma).abs() < 1e-6, "{function:?}: {slope}");
                    } else if function != Function::Relu2 {
                        assert_eq!(y, if function == Function::Relu6 { 6.0 } else { 1.0 }, "{function:?}");
                        assert!(slope < 1e-100, "{function:?}: {slope}");
                    }
                }
                let [y, slope] = both(function, -large);
                let (y32, slope32) = (both(function, -large as f32)[0], both(function, -large as f32)[1]);
                let expected = match function {
                    Function::LeakyRelu(s) => (-large * s, s),
                    Function::Tanh => (-1.0, 0.0),
                    Function::Elu(alpha) => (-alpha, 0.0),
                    Function::Selu { alpha, gamma } => (-alpha * gamma, 0.0),
                    _ => (0.0, 0.0),
                };
                let near = |a: f64, b: f64| a == b || (a - b).abs() < 1e-6 * b.abs() + 1e-100;
                assert!(near(y, expected.0) && near(slope, expected.1), "{function:?}: {y}, {slope}");
                assert!(
                    near(y32.into(), f64::from(expected.0 as f32)) && near(slope32.into(), expected.1),
                    "{function:?}"
                );
            }
            assert!(both(function, f32::NAN)[0].is_nan() && both(function, f64::NAN)[0].is_nan(), "{function:?}");
        }
    }
}
