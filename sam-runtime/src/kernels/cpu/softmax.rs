//! Softmax of rows on the CPU, as cross entropies need it: its normalizer, and numbers in proportion to it.
//!
//! Exponentials of f32 are taken in f32, by a polynomial that the compiler turns into vectors as wide as the machine has, and
//! are added up in f64, after a few in their own dtype. Every row is computed by one thread, with the same operations for any width of vectors: results
//! are bitwise identical for any number of threads.

#![allow(clippy::inline_always, reason = "a loop has the vector width of the function that it is inlined into")]

use pulp::NullaryFnOnce;
use rayon::prelude::*;

use super::ARCH;
use super::exp::Exp;
use super::float::Float;
use super::lanes::{LANES, fold_halves, run_sum};

/// Elements that are exponentiated at a time: long enough for vectors, short enough for the first level cache.
const BLOCK: usize = 256;

/// Elements that one thread takes at least.
const SHARE: usize = 1 << 14;

/// The largest element of a row, and Σ exp(x - max). If no element is finite, 0 stands for the largest.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Normalizer {
    max: f64,
    sum: f64,
    log: f64,
    is_finite: bool,
}

impl Normalizer {
    fn new(max: f64, sum: f64, is_finite: bool) -> Self {
        Self { max, sum, log: sum.ln(), is_finite }
    }

    /// -log p of an element x of the row.
    pub(crate) fn cost(self, x: f64) -> f64 {
        (self.max - x) + self.log
    }

    /// p of an element x of the row.
    pub(crate) fn probability(self, x: f64) -> f64 {
        (x - self.max).exp() / self.sum
    }
}

/// Of each row of `columns` elements.
pub(crate) fn normalizers<T: Exp>(values: &[T], columns: usize) -> Vec<Normalizer> {
    let part = |rows: &[T]| ARCH.dispatch(Normalizers { rows, columns });
    let size = rows_at_a_time(columns) * columns;
    values.par_chunks(size).flat_map_iter(part).collect()
}

/// Rows of a job that is worth a thread.
pub(crate) fn rows_at_a_time(columns: usize) -> usize {
    SHARE.div_ceil(columns.max(1))
}

struct Normalizers<'a, T> {
    rows: &'a [T],
    columns: usize,
}

impl<T: Exp> NullaryFnOnce for Normalizers<'_, T> {
    type Output = Vec<Normalizer>;

    #[inline(always)]
    fn call(self) -> Vec<Normalizer> {
        self.rows.chunks_exact(self.columns).map(normalizer).collect()
    }
}

#[inline(always)]
fn normalizer<T: Exp>(row: &[T]) -> Normalizer {
    let max = maximum(row);
    if !max.wide().is_finite() {
        // The sum is infinity or NaN, or 0 where all are -∞.
        let sum = row.iter().map(|x| x.wide().exp()).sum();
        return Normalizer::new(0.0, sum, false);
    }
    let mut powers = [T::default(); BLOCK];
    let mut sum = 0.0;
    for block in row.chunks(BLOCK) {
        sum += exponentials(&mut powers[..block.len()], block, max);
    }
    Normalizer::new(max.wide(), sum, true)
}

/// y = exp(x - max), and the sum of these.
#[inline(always)]
pub(super) fn exponentials<T: Exp>(y: &mut [T], x: &[T], max: T) -> f64 {
    let mut sum = 0.0;
    for (y, x) in y.chunks_mut(BLOCK).zip(x.chunks(BLOCK)) {
        y.iter_mut().zip(x).for_each(|(y, x)| *y = (*x - max).exp());
        sum += run_sum(y, y, |y, _| y);
    }
    sum
}

/// The largest that is a number; -∞ if there is none.
#[inline(always)]
pub(super) fn maximum<T: Float>(row: &[T]) -> T {
    let larger = |a: T, b: T| if b > a { b } else { a };
    let mut maxima = [T::narrow(f64::NEG_INFINITY); LANES];
    let (whole, rest) = row.as_chunks::<LANES>();
    for x in whole {
        maxima.iter_mut().zip(x).for_each(|(max, x)| *max = larger(*max, *x));
    }
    maxima.iter_mut().zip(rest).for_each(|(max, x)| *max = larger(*max, *x));
    fold_halves(&maxima, larger)
}

/// to = `scale` · softmax(x) - `subtract` of one row.
pub(crate) fn scaled<T: Exp>(to: &mut [T], x: &[T], normalizer: Normalizer, scale: f64, subtract: Subtract<'_, T>) {
    ARCH.dispatch(Scaled { to, x, normalizer, scale, subtract });
}

/// What is subtracted from the elements of a row.
#[derive(Clone, Copy)]
pub(crate) enum Subtract<'a, T> {
    /// The same from each.
    Even(f64),
    /// These numbers times a factor.
    Each(&'a [T], f64),
}

struct Scaled<'a, T> {
    to: &'a mut [T],
    x: &'a [T],
    normalizer: Normalizer,
    scale: f64,
    subtract: Subtract<'a, T>,
}

impl<T: Exp> NullaryFnOnce for Scaled<'_, T> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let Self { to, x, normalizer: Normalizer { max, sum, is_finite, .. }, scale, subtract } = self;
        let factor = scale / sum;
        if is_finite {
            let max = T::narrow(max);
            write(to, x, factor, subtract, move |x| (x - max).exp());
        } else {
            write(to, x, factor, subtract, move |x| T::narrow(x.wide().exp()));
        }
    }
}

#[inline(always)]
fn write<T: Float>(to: &mut [T], x: &[T], factor: f64, subtract: Subtract<'_, T>, power: impl Fn(T) -> T) {
    match subtract {
        Subtract::Even(even) => {
            let (factor, even) = (T::narrow(factor), T::narrow(even));
            to.iter_mut().zip(x).for_each(|(to, x)| *to = power(*x) * factor - even);
        }
        // In f64: the difference may be small.
        Subtract::Each(each, share) => {
            let pairs = x.iter().zip(each);
            let difference = |x: T, each: T| T::narrow(power(x).wide() * factor - each.wide() * share);
            to.iter_mut().zip(pairs).for_each(|(to, (x, each))| *to = difference(*x, *each));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Against f64, in units in the last place.
    #[test]
    fn exponentials_are_off_by_less_than_one_and_a_half_ulp() {
        let mut worst = (0.0, 0.0);
        for bits in ((-1e-30f32).to_bits()..(-87f32).to_bits()).step_by(211) {
            let x = f32::from_bits(bits);
            let (found, expected) = (Exp::exp(x), f64::from(x).exp());
            let ulp = f64::from(f32::from_bits((expected as f32).to_bits() + 1)) - f64::from(expected as f32);
            let off = (f64::from(found) - expected).abs() / ulp;
            if off > worst.0 {
                worst = (off, f64::from(x));
            }
        }
        assert!(worst.0 < 1.5, "{worst:?}");
        assert_eq!([0.0, -0.0, -87.1, -1e30, f32::NEG_INFINITY].map(Exp::exp), [1f32, 1.0, 0.0, 0.0, 0.0]);
        assert!(Exp::exp(f32::NAN).is_nan());
    }

    #[test]
    fn normalizers_are_those_of_f64() {
        for columns in [1, 10, 255, 256, 257, 1000] {
            let values: Vec<f32> = (0..3 * columns).map(|i| ((i * 7919 % 1009) as f32 / 40.0) - 12.0).collect();
            for (row, found) in values.chunks(columns).zip(normalizers(&values, columns)) {
                let sum: f64 = row.iter().map(|x| f64::from(*x).exp()).sum();
                for x in row {
                    let expected = sum.ln() - f64::from(*x);
                    assert!((found.cost((*x).into()) - expected).abs() < 2e-7 * (1.0 + expected.abs()), "{found:?}");
                }
            }
        }
    }
}
