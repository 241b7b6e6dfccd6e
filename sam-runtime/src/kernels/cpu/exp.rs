//! Exponentials by polynomials, which become vector instructions.

#![allow(clippy::inline_always, reason = "a loop has the vector width of the function that it is inlined into")]

use pulp::Simd;

use super::float::Float;

/// A number with an exponential function that the compiler can vectorize.
pub(crate) trait Exp: Float {
    /// The exponential of a number that is not positive; NaN stays NaN.
    fn exp(self) -> Self;
}

impl Exp for f32 {
    /// 2ⁿ eʳ, n an integer, |r| ≤ ln 2 / 2. Off by less than 1 ulp; below -87, where results are close to the least normal
    /// number, it is 0.
    #[inline(always)]
    #[allow(clippy::suboptimal_flops, reason = "without FMA `mul_add` is a function call")]
    fn exp(self) -> Self {
        const LEAST: f32 = -87.0;
        /// Added to a small number, it leaves the nearest integer in the lowest bits.
        const ROUND: f32 = 12_582_912.0;
        /// ln 2 in two parts, the first of few bits: its multiples are exact.
        const LN_2: [f32; 2] = [0.693_359_4, -2.121_944_4e-4];
        /// Of (eʳ - 1 - r) / r², from the highest power (Cephes, `expf.c`).
        const COEFFICIENTS: [f32; 6] =
            [1.987_569_1e-4, 1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 5e-1];
        let x = if self < LEAST { LEAST } else { self };
        let shifted = x * std::f32::consts::LOG2_E + ROUND;
        let n = shifted - ROUND;
        let r = (x - n * LN_2[0]) - n * LN_2[1];
        let [first, rest @ ..] = COEFFICIENTS;
        let mut tail = first;
        for coefficient in rest {
            tail = tail * r + coefficient;
        }
        let power = f32::from_bits((shifted.to_bits() << 23).wrapping_add(1f32.to_bits()));
        let y = ((tail * (r * r) + r) + 1.0) * power;
        if self < LEAST { 0.0 } else { y }
    }
}

impl Exp for f64 {
    #[inline(always)]
    fn exp(self) -> Self {
        f64::exp(self)
    }
}

/// The exponential of a number, cut off where it leaves f64; NaN stays NaN. Off by some units of the last place.
#[inline(always)]
#[allow(clippy::suboptimal_flops, reason = "without FMA `mul_add` is a function call")]
pub(super) fn exp_f64(x: f64) -> f64 {
    const MOST: f64 = 708.0;
    /// Added to a small number, it leaves the nearest integer in the lowest bits.
    const ROUND: f64 = 6_755_399_441_055_744.0;
    /// ln 2 in two parts, the first of few bits: its multiples are exact.
    const LN_2: [f64; 2] = [0.693_147_180_369_123_8, 1.908_214_929_270_587_7e-10];
    /// 1 / n!, from the 13th on down.
    const COEFFICIENTS: [f64; 12] = [
        1.605_904_383_682_161_5e-10,
        2.087_675_698_786_81e-9,
        2.505_210_838_544_172e-8,
        2.755_731_922_398_589e-7,
        2.755_731_922_398_589_3e-6,
        2.480_158_730_158_73e-5,
        1.984_126_984_126_984e-4,
        1.388_888_888_888_889e-3,
        8.333_333_333_333_333e-3,
        4.166_666_666_666_666_4e-2,
        1.666_666_666_666_666_6e-1,
        0.5,
    ];
    let x = if x > MOST { MOST } else { x };
    let x = if x < -MOST { -MOST } else { x };
    let shifted = x * std::f64::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = (x - n * LN_2[0]) - n * LN_2[1];
    let [first, rest @ ..] = COEFFICIENTS;
    let mut tail = first;
    for coefficient in rest {
        tail = tail * r + coefficient;
    }
    let power = f64::from_bits((shifted.to_bits() << 52).wrapping_add(1f64.to_bits()));
    ((tail * (r * r) + r) + 1.0) * power
}

/// A number whose powers of 2 are taken in rows.
pub(crate) trait Exp2: Float {
    /// x ← 2^(factor x - shift), and the sum; 0 where the exponent is less than that of a normal number. The row is of
    /// whole vectors.
    fn exp2<S: Simd>(simd: S, row: &mut [Self], factor: Self, shift: Self) -> Self;
    /// The largest, perhaps without those that are not a number. Of whole vectors.
    fn largest<S: Simd>(simd: S, row: &[Self]) -> Self;
}

impl Exp2 for f32 {
    /// 2ⁿ 2ʳ, n an integer, |r| ≤ 1/2: off by less than 2 ulp.
    #[inline(always)]
    fn exp2<S: Simd>(simd: S, row: &mut [Self], factor: Self, shift: Self) -> Self {
        const LEAST: f32 = -126.0;
        /// Added to a small number, it leaves the nearest integer in the lowest bits.
        const ROUND: f32 = 12_582_912.0;
        /// Of (2ʳ - 1) / r, from the highest power (Cephes, `exp2f.c`).
        const COEFFICIENTS: [f32; 6] =
            [1.535_336_2e-4, 1.339_887_4e-3, 9.618_437e-3, 5.550_332_5e-2, 2.402_264_8e-1, 6.931_472e-1];
        let coefficients = COEFFICIENTS.map(|c| simd.splat_f32s(c));
        let [least, round, one, zero] = [LEAST, ROUND, 1.0, 0.0].map(|c| simd.splat_f32s(c));
        let (factor, shift) = (simd.splat_f32s(factor), simd.splat_f32s(-shift));
        let (bits, one_bits) = (simd.splat_u32s(23), simd.splat_u32s(1f32.to_bits()));
        let mut sum = zero;
        for x in S::as_mut_simd_f32s(row).0 {
            let t = simd.mul_add_e_f32s(*x, factor, shift);
            let vanishes = simd.less_than_f32s(t, least);
            let t = simd.select_f32s(vanishes, least, t);
            let shifted = simd.add_f32s(t, round);
            let r = simd.sub_f32s(t, simd.sub_f32s(shifted, round));
            let mut tail = coefficients[0];
            for coefficient in &coefficients[1..] {
                tail = simd.mul_add_e_f32s(tail, r, *coefficient);
            }
            let y = simd.mul_add_e_f32s(tail, r, one);
            let n = simd.wrapping_dyn_shl_u32s(simd.transmute_u32s_f32s(shifted), bits);
            let power = simd.transmute_f32s_u32s(simd.add_u32s(n, one_bits));
            *x = simd.select_f32s(vanishes, zero, simd.mul_f32s(y, power));
            sum = simd.add_f32s(sum, *x);
        }
        simd.reduce_sum_f32s(sum)
    }

    #[inline(always)]
    fn largest<S: Simd>(simd: S, row: &[Self]) -> Self {
        let first = simd.splat_f32s(f32::NEG_INFINITY);
        simd.reduce_max_f32s(S::as_simd_f32s(row).0.iter().fold(first, |max, x| simd.max_f32s(*x, max)))
    }
}

impl Exp2 for f64 {
    #[inline(always)]
    fn exp2<S: Simd>(_: S, row: &mut [Self], factor: Self, shift: Self) -> Self {
        let mut sum = 0.0;
        for x in row {
            *x = (*x * factor - shift).exp2();
            sum += *x;
        }
        sum
    }

    #[inline(always)]
    fn largest<S: Simd>(simd: S, row: &[Self]) -> Self {
        let first = simd.splat_f64s(f64::NEG_INFINITY);
        simd.reduce_max_f64s(S::as_simd_f64s(row).0.iter().fold(first, |max, x| simd.max_f64s(*x, max)))
    }
}
