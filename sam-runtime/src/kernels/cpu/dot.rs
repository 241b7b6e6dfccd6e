//! Products of a matrix and the transpose of another, as a linear layer takes them: each element is the dot product of two
//! rows.
//!
//! Lanes run along the rows, so nothing is transposed. Of the first matrix some rows lie side by side in a copy, so that one
//! pointer reads them all; a tile of 2 or 4 of them and 6 rows of the second is in registers. Threads share out the rows of
//! the second, and parts of the first. Every element is added up by one thread, in an order that the shapes decide: the
//! same bits for any number of them.
//!
//! 128 rows of 1024 with 1024 others, on two cores of an AMD EPYC (Zen 4), in billions of multiplications a second:
//!
//! | what | found |
//! | --- | --- |
//! | `gemm` by all threads, which transposes the second matrix element by element | 39 |
//! | dot products, nothing packed: ten pointers 4 KiB apart are two too many for the first level cache | 58 |
//! | rows of the first matrix packed for every 48 of the second | 79 |
//! | packed once | 90 |
//! | the same in AVX2; 3 rows by 4, which do not leave room for one of each | 75; 43 |
//! | what `gemm` does where there is nothing to transpose | 104 |
//!
//! Rows in parts of 512 elements gained nothing. What is left goes into adding up the lanes, 24 vectors a tile.
//!
//! `gemm` transposes the second matrix once, so the more rows the first one has, the less that matters. The processor time of
//! dot products over that of `gemm`, for 256, 1024 and 3072 columns and 256 and 1024 rows of the second matrix, with one
//! and two threads: 0.34 to 0.62 at 16 rows of the first matrix, 0.60 to 1.19 at 64, 0.84 to 1.17 at 128, 0.93 to 1.44 at 256, and
//! 0.95 to 1.80 at 1024.

#![allow(clippy::inline_always, reason = "a loop has the vector width of the function that it is inlined into")]

use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use super::ARCH;
use super::float::Float;

/// Shorter rows do not pay for adding up the lanes, nor do fewer rows for packing them.
const COLUMNS: usize = 256;
const ROWS: usize = 8;

/// With more rows of the first matrix than this, `gemm` is faster.
const MOST_ROWS: usize = 192;

/// Rows of the first matrix and of the second in a tile, with 32 registers and with 16.
const WIDE: [usize; 2] = [4, 6];
const NARROW: [usize; 2] = [2, 6];

/// Rows of the second matrix that a thread takes at a time: whole tiles of any machine.
const SHARE: usize = 48;

/// Elements of the first matrix that are packed at a time, so that they stay in the second level cache.
const PACKED: usize = 1 << 17;

/// Rows of which each begins `pitch` elements behind the one before.
#[derive(Clone, Copy)]
pub(super) struct Rows<'a, T> {
    pub(super) values: &'a [T],
    pub(super) count: usize,
    pub(super) columns: usize,
    pub(super) pitch: usize,
}

impl<'a, T> Rows<'a, T> {
    fn row(&self, i: usize) -> &'a [T] {
        &self.values[i * self.pitch..][..self.columns]
    }

    /// At most so many at a time.
    fn chunks(self, size: usize) -> impl IndexedParallelIterator<Item = Self>
    where
        T: Sync,
    {
        (0..self.count.div_ceil(size)).into_par_iter().map(move |i| {
            let first = i * size;
            Self { values: &self.values[first * self.pitch..], count: size.min(self.count - first), ..self }
        })
    }
}

/// Whether this is the way to multiply them.
pub(super) fn fits<T>(a: &Rows<'_, T>, b: &Rows<'_, T>) -> bool {
    a.columns >= COLUMNS && (ROWS..=MOST_ROWS).contains(&a.count) && b.count >= ROWS
}

/// product[i, j] += Σ a[i, k] b[j, k], by all threads.
pub(super) fn add_dots<T: Float>(product: &mut [T], a: Rows<'_, T>, b: Rows<'_, T>) {
    let size = (PACKED / a.columns).max(ROWS);
    product.par_chunks_mut(size * b.count).zip(a.chunks(size)).for_each(|(product, a)| {
        let packed = ARCH.dispatch(Pack(a));
        let part = |b: Rows<'_, T>| ARCH.dispatch(Dots { a, packed: &packed, b });
        let parts: Vec<Vec<T>> = b.chunks(SHARE).map(part).collect();
        for (j, part) in parts.iter().enumerate() {
            let rows = part.len() / a.count;
            for (to, dots) in product.chunks_exact_mut(b.count).zip(part.chunks_exact(rows)) {
                to[j * SHARE..][..rows].iter_mut().zip(dots).for_each(|(to, dot)| *to += *dot);
            }
        }
    });
}

/// Vectors of rows, those of a tile side by side.
struct Pack<'a, T>(Rows<'a, T>);

impl<T: Float> WithSimd for Pack<'_, T> {
    type Output = Vec<T>;

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> Vec<T> {
        if S::REGISTER_COUNT >= 32 { self.run::<S, { WIDE[0] }>() } else { self.run::<S, { NARROW[0] }>() }
    }
}

impl<T: Float> Pack<'_, T> {
    #[inline(always)]
    fn run<S: Simd, const A: usize>(self) -> Vec<T> {
        let (rows, whole) = (self.0, self.0.columns / T::lanes::<S>());
        let mut packed = vec![T::default(); rows.count.div_ceil(A) * A * whole * T::lanes::<S>()];
        let vectors = T::vectors_mut::<S>(&mut packed).as_chunks_mut::<A>().0;
        for i in 0..rows.count {
            let tile = &mut vectors[i / A * whole..][..whole];
            tile.iter_mut().zip(T::vectors::<S>(rows.row(i))).for_each(|(to, from)| to[i % A] = *from);
        }
        packed
    }
}

/// All dot products of rows of a, which are packed as well, and rows of b.
struct Dots<'a, T> {
    a: Rows<'a, T>,
    packed: &'a [T],
    b: Rows<'a, T>,
}

impl<T: Float> WithSimd for Dots<'_, T> {
    type Output = Vec<T>;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> Vec<T> {
        if S::REGISTER_COUNT >= 32 {
            self.run::<S, { WIDE[0] }, { WIDE[1] }>(simd)
        } else {
            self.run::<S, { NARROW[0] }, { NARROW[1] }>(simd)
        }
    }
}

impl<T: Float> Dots<'_, T> {
    #[inline(always)]
    fn run<S: Simd, const A: usize, const B: usize>(self, simd: S) -> Vec<T> {
        let Self { a, packed, b } = self;
        let whole = a.columns / T::lanes::<S>();
        let packed = T::vectors::<S>(packed).as_chunks::<A>().0;
        let mut dots = vec![T::default(); a.count * b.count];
        for j in (0..b.count).step_by(B) {
            let mut right = [T::vectors::<S>(b.row(j)); B];
            for (n, row) in right.iter_mut().enumerate() {
                *row = &T::vectors::<S>(b.row((j + n).min(b.count - 1)))[..whole];
            }
            for (i, left) in packed.chunks_exact(whole.max(1)).enumerate() {
                let tile = dots_tile::<S, T, A, B>(simd, left, right);
                for (row, tile) in dots[i * A * b.count..].chunks_exact_mut(b.count).zip(tile) {
                    row[j..].iter_mut().zip(tile).for_each(|(to, dot)| *to = dot);
                }
            }
        }
        let rest = whole * T::lanes::<S>()..a.columns;
        if !rest.is_empty() {
            for (i, dots) in dots.chunks_exact_mut(b.count).enumerate() {
                for (j, dot) in dots.iter_mut().enumerate() {
                    for (x, y) in a.row(i)[rest.clone()].iter().zip(&b.row(j)[rest.clone()]) {
                        *dot += *x * *y;
                    }
                }
            }
        }
        dots
    }
}

#[inline(always)]
fn dots_tile<S: Simd, T: Float, const A: usize, const B: usize>(
    simd: S,
    a: &[[T::Vector<S>; A]],
    b: [&[T::Vector<S>]; B],
) -> [[T; B]; A] {
    let mut sums = [[T::splat(simd, T::default()); B]; A];
    for (k, a) in a.iter().enumerate() {
        for (n, row) in b.into_iter().enumerate() {
            let y = row[k];
            for (sums, x) in sums.iter_mut().zip(a) {
                sums[n] = T::mul_add(simd, *x, y, sums[n]);
            }
        }
    }
    let mut dots = [[T::default(); B]; A];
    for (dots, sums) in dots.iter_mut().zip(sums) {
        for (dot, sum) in dots.iter_mut().zip(sums) {
            *dot = T::total(simd, sum);
        }
    }
    dots
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;

    /// Sizes that fill no tile, no vector and no share, or more than one part of the first matrix.
    #[test]
    fn dots_are_those_of_f64() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        for (rows, others, columns, gap) in [(8, 8, 256, 0), (9, 49, 257, 3), (13, 101, 300, 1), (150, 60, 1029, 0)] {
            let mut draw = |n: usize| (0..n).map(|_| rng.random_range(-1f32..1.0)).collect::<Vec<_>>();
            let pitch = columns + gap;
            let (a, b, before) = (draw(rows * pitch), draw(others * pitch), draw(rows * others));
            let of = |values, count| Rows { values, count, columns, pitch };
            let (a, b) = (of(&a, rows), of(&b, others));
            assert!(fits(&a, &b));
            let mut product = before.clone();
            add_dots(&mut product, a, b);
            for (at, (found, before)) in product.iter().zip(before).enumerate() {
                let pairs = a.row(at / others).iter().zip(b.row(at % others));
                let expected = pairs.map(|(x, y)| x.wide() * y.wide()).sum::<f64>() + before.wide();
                assert!((found.wide() - expected).abs() < 1e-4, "{rows}, {others}, {columns}: {found}, {expected}");
            }
        }
    }
}
