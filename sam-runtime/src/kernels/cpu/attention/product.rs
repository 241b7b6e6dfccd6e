//! Products of the tiles of attention, in registers: 6 rows of 4 vectors with 32 registers, of 2 with 16.
//!
//! Every element is added up by one thread in the order of k.

use pulp::{Simd, WithSimd};

use super::super::float::Float;

/// Widths are multiples of this: whole vectors of any machine.
pub(super) const UNIT: usize = 16;

/// Rows of a product that are in registers.
pub(super) const ROWS: usize = 6;

/// Keys of a tile, and from one of its rows to the next: a multiple of [`UNIT`] and of [`ROWS`].
pub(super) const KEYS: usize = 192;

/// A width that is a multiple of [`UNIT`].
pub(super) fn padded(width: usize) -> usize {
    width.next_multiple_of(UNIT)
}

/// The left matrix a.
#[derive(Clone, Copy)]
pub(super) enum Left<'a, T> {
    /// a[i, k] is `pitch` i + k.
    Rows(&'a [T], usize),
    /// a[i, k] is [`KEYS`] k + i: a tile, transposed.
    Columns(&'a [T]),
}

/// to[i, j] = Σ a[i, k] b[k, j], added to what is there or not.
pub(super) struct Product<'a, T> {
    pub(super) to: &'a mut [T],
    pub(super) to_pitch: usize,
    pub(super) add: bool,
    pub(super) rows: usize,
    /// Of j, a multiple of [`UNIT`].
    pub(super) width: usize,
    /// Of k.
    pub(super) len: usize,
    pub(super) a: Left<'a, T>,
    pub(super) b: &'a [T],
    pub(super) b_pitch: usize,
}

impl<T: Float> WithSimd for Product<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        let most = if S::REGISTER_COUNT >= 32 { 4 } else { 2 };
        let (lanes, vectors) = (T::lanes::<S>(), self.width / T::lanes::<S>());
        let mut first = 0;
        for left in (1..=vectors.div_ceil(most)).rev() {
            let count = (vectors - first).div_ceil(left);
            match count {
                4 => self.columns::<S, 4>(simd, first * lanes),
                3 => self.columns::<S, 3>(simd, first * lanes),
                2 => self.columns::<S, 2>(simd, first * lanes),
                _ => self.columns::<S, 1>(simd, first * lanes),
            }
            first += count;
        }
    }
}

impl<T: Float> Product<'_, T> {
    /// All rows of V vectors.
    #[inline(always)]
    fn columns<S: Simd, const V: usize>(&mut self, simd: S, first: usize) {
        let Self { to_pitch, add, rows, len, a, b, b_pitch, .. } = *self;
        let width = V * T::lanes::<S>();
        for row in (0..rows).step_by(ROWS) {
            let mut sums = [[T::splat(simd, T::default()); V]; ROWS];
            if add {
                for (i, sums) in sums.iter_mut().enumerate() {
                    let from = (row + i).min(rows - 1) * to_pitch + first;
                    sums.copy_from_slice(T::vectors::<S>(&self.to[from..][..width]));
                }
            }
            match a {
                Left::Rows(values, pitch) => {
                    let mut left = [&values[..len]; ROWS];
                    for (i, left) in left.iter_mut().enumerate() {
                        *left = &values[(row + i).min(rows - 1) * pitch..][..len];
                    }
                    for k in 0..len {
                        let right = T::vectors::<S>(&b[k * b_pitch + first..][..width]);
                        for (sums, left) in sums.iter_mut().zip(left) {
                            let x = T::splat(simd, left[k]);
                            for (sum, y) in sums.iter_mut().zip(right) {
                                *sum = T::mul_add(simd, x, *y, *sum);
                            }
                        }
                    }
                }
                Left::Columns(values) => {
                    for (k, left) in values.chunks_exact(KEYS).take(len).enumerate() {
                        let right = T::vectors::<S>(&b[k * b_pitch + first..][..width]);
                        for (sums, x) in sums.iter_mut().zip(&left[row..][..ROWS]) {
                            let x = T::splat(simd, *x);
                            for (sum, y) in sums.iter_mut().zip(right) {
                                *sum = T::mul_add(simd, x, *y, *sum);
                            }
                        }
                    }
                }
            }
            for (i, sums) in sums.iter().enumerate().take(rows - row) {
                let to = (row + i) * to_pitch + first;
                T::vectors_mut::<S>(&mut self.to[to..][..width]).copy_from_slice(sums);
            }
        }
    }
}

/// Copies rows of `dim` elements behind each other, each filled up with zeros to a multiple of [`UNIT`].
pub(super) fn copy_rows<'a, T: Float>(to: &mut [T], dim: usize, rows: impl Iterator<Item = &'a [T]>) {
    let rows = to.chunks_exact_mut(padded(dim)).zip(rows);
    if dim.is_multiple_of(UNIT) {
        for (to, from) in rows {
            // Of a size that the compiler knows: a call of `memcpy` for each row takes as long as the copy.
            for (to, from) in to.as_chunks_mut::<UNIT>().0.iter_mut().zip(from.as_chunks::<UNIT>().0) {
                *to = *from;
            }
        }
    } else {
        for (to, from) in rows {
            to[..dim].copy_from_slice(from);
            to[dim..].fill(T::default());
        }
    }
}

/// Elements of [`transpose`] for so many rows.
pub(super) fn transposed_len(rows: usize, dim: usize) -> usize {
    rows.div_ceil(KEYS) * dim * KEYS
}

/// Blocks of [`KEYS`] rows, each transposed: `dim` rows of [`KEYS`], with zeros behind the last. `from` has rows as
/// [`copy_rows`] makes them.
pub(super) fn transpose<T: Float>(to: &mut [T], from: &[T], dim: usize) {
    const SIDE: usize = 8;
    let pitch = padded(dim);
    for (to, from) in to.chunks_exact_mut(dim.max(1) * KEYS).zip(from.chunks(pitch.max(1) * KEYS)) {
        let keys = from.len() / pitch.max(1);
        for key in (0..keys).step_by(SIDE) {
            for first in (0..dim).step_by(SIDE) {
                let mut square = [[T::default(); SIDE]; SIDE];
                for (i, from) in from[key * pitch..].chunks_exact(pitch).take(SIDE).enumerate() {
                    for (j, x) in from[first..][..SIDE].iter().enumerate() {
                        square[j][i] = *x;
                    }
                }
                for (to, square) in to[first * KEYS..].chunks_exact_mut(KEYS).zip(square) {
                    to[key..][..SIDE].copy_from_slice(&square);
                }
            }
        }
        let behind = keys.next_multiple_of(SIDE).min(KEYS);
        for to in to.chunks_exact_mut(KEYS) {
            to[behind..].fill(T::default());
        }
    }
}
