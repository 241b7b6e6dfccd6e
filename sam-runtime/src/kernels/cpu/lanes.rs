//! Sums of the elements of a row, in [`LANES`] partial sums: bitwise the same for any vector width.

#![allow(clippy::inline_always, reason = "a loop has the vector width of the function that it is inlined into")]

use super::float::Float;

/// Partial sums of a row.
pub(super) const LANES: usize = 32;

/// Elements that are added up in their own dtype, at most `RUN / LANES` to a lane, before f64.
const RUN: usize = 256;

/// Σ f(x), in f64.
#[inline(always)]
pub(super) fn wide_sum<T: Float>(row: &[T], f: impl Fn(f64) -> f64) -> f64 {
    let mut lanes = [0.0; LANES];
    let (whole, rest) = row.as_chunks::<LANES>();
    for x in whole {
        // One thing at a time, or the compiler adds up one lane after the other.
        let mut terms = [0.0; LANES];
        for i in 0..LANES {
            terms[i] = f(x[i].wide());
        }
        for i in 0..LANES {
            lanes[i] += terms[i];
        }
    }
    lanes.iter_mut().zip(rest).for_each(|(lane, x)| *lane += f(x.wide()));
    total(&lanes)
}

/// Σ f(a, b), over each run in the dtype of the elements, and then in f64.
#[inline(always)]
pub(super) fn run_sum<T: Float>(a: &[T], b: &[T], f: impl Fn(T, T) -> T) -> f64 {
    let mut sums = [0.0; LANES];
    for (a, b) in a.chunks(RUN).zip(b.chunks(RUN)) {
        let mut lanes = [T::default(); LANES];
        let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
        for (a, b) in a.iter().zip(b) {
            let mut terms = [T::default(); LANES];
            for i in 0..LANES {
                terms[i] = f(a[i], b[i]);
            }
            for i in 0..LANES {
                lanes[i] += terms[i];
            }
        }
        lanes.iter_mut().zip(a_rest.iter().zip(b_rest)).for_each(|(lane, (a, b))| *lane += f(*a, *b));
        for i in 0..LANES {
            sums[i] += lanes[i].wide();
        }
    }
    total(&sums)
}

/// Σ γ dy and Σ γ dy (x - center), with γ in chunks and a rest, as [`run_sum`].
#[inline(always)]
pub(super) fn two_run_sums<'a, T: Float>(
    x: &[T],
    dy: &[T],
    distance: impl Fn(T) -> T,
    weights: impl Iterator<Item = &'a [T; LANES]>,
    weight_rest: &[T],
) -> [f64; 2] {
    let ((x_chunks, x_rest), (dy_chunks, dy_rest)) = (x.as_chunks::<LANES>(), dy.as_chunks::<LANES>());
    let (mut first, mut second) = ([0.0; LANES], [0.0; LANES]);
    let mut weights = weights;
    for (x, dy) in x_chunks.chunks(RUN / LANES).zip(dy_chunks.chunks(RUN / LANES)) {
        let (mut sums, mut moments) = ([T::default(); LANES], [T::default(); LANES]);
        for ((x, dy), weight) in x.iter().zip(dy).zip(&mut weights) {
            let (mut slope, mut moment) = ([T::default(); LANES], [T::default(); LANES]);
            for i in 0..LANES {
                slope[i] = dy[i] * weight[i];
            }
            for i in 0..LANES {
                moment[i] = slope[i] * distance(x[i]);
            }
            for i in 0..LANES {
                sums[i] += slope[i];
            }
            for i in 0..LANES {
                moments[i] += moment[i];
            }
        }
        for i in 0..LANES {
            first[i] += sums[i].wide();
        }
        for i in 0..LANES {
            second[i] += moments[i].wide();
        }
    }
    for (i, (x, (dy, weight))) in x_rest.iter().zip(dy_rest.iter().zip(weight_rest)).enumerate() {
        let slope = *dy * *weight;
        first[i] += slope.wide();
        second[i] += (slope * distance(*x)).wide();
    }
    [total(&first), total(&second)]
}

#[inline(always)]
fn total(lanes: &[f64; LANES]) -> f64 {
    fold_halves(lanes, |a, b| a + b)
}

/// Folds lanes half by half: one lane after the other would take as long as a short row.
#[inline(always)]
pub(super) fn fold_halves<T: Copy>(lanes: &[T; LANES], f: impl Fn(T, T) -> T) -> T {
    let (mut half, mut quarter) = ([lanes[0]; LANES / 2], [lanes[0]; LANES / 4]);
    for i in 0..LANES / 2 {
        half[i] = f(lanes[i], lanes[i + LANES / 2]);
    }
    for i in 0..LANES / 4 {
        quarter[i] = f(half[i], half[i + LANES / 4]);
    }
    let [a, b, c, d, e, g, h, i] = quarter;
    f(f(f(a, e), f(c, h)), f(f(b, g), f(d, i)))
}
