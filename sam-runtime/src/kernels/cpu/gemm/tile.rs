//! Tiles of a product, whose sums are in registers.

use std::ops::Range;

use pulp::{Simd, WithSimd};

use super::pack::{Left, Panel, ROWS, WIDTH};
use super::start::Start;
use crate::kernels::cpu::float::Float;
use crate::kernels::cpu::matrix::Matrix;

/// Some rows of c and of a, and a part of b.
pub(super) struct Block<'a, T> {
    pub(super) c: &'a mut [T],
    pub(super) pitch: usize,
    pub(super) a: Matrix<'a, T>,
    pub(super) panels: &'a [Panel],
    pub(super) packed: &'a [T],
    pub(super) start: Start<'a, T>,
    pub(super) left: &'a mut Vec<T>,
}

impl<T: Float> WithSimd for Block<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { c, pitch, a, panels, mut packed, mut start, left } = self;
        for panels in panels.chunk_by(|a, b| a.ks == b.ks) {
            let ks = panels[0].ks.clone();
            let left = Left::new(a, ks, left);
            for panel in panels {
                let (right, rest) = packed.split_at(panel.len());
                packed = rest;
                let tiles = Tiles { c: &mut *c, pitch, left, right, columns: &panel.columns, start };
                match panel.width / T::lanes::<S>() {
                    4 => tiles.run::<S, 4>(simd),
                    3 => tiles.run::<S, 3>(simd),
                    2 => tiles.run::<S, 2>(simd),
                    _ => tiles.run::<S, 1>(simd),
                }
            }
            start = Start::Kept;
        }
    }
}

/// One panel, and all rows.
struct Tiles<'a, T> {
    c: &'a mut [T],
    pitch: usize,
    left: Left<'a, T>,
    right: &'a [T],
    columns: &'a Range<usize>,
    start: Start<'a, T>,
}

impl<T: Float> Tiles<'_, T> {
    #[inline(always)]
    fn run<S: Simd, const V: usize>(self, simd: S) {
        let Self { c, pitch, left, right, columns, start } = self;
        let width = V * T::lanes::<S>();
        let right = T::vectors::<S>(right).as_chunks::<V>().0;
        let rows = left.rows();
        let whole = columns.len() == width;
        let zero = [T::splat(simd, T::default()); V];
        for row in (0..rows).step_by(ROWS) {
            let height = ROWS.min(rows - row);
            let mut sums = [zero; ROWS];
            match start {
                Start::Zero => {}
                Start::Row(start) => sums.fill(load::<S, T, V>(simd, &start[columns.clone()])),
                Start::Kept => {
                    for (i, sums) in sums.iter_mut().enumerate() {
                        let from = (row + i.min(height - 1)) * pitch + columns.start;
                        *sums = load::<S, T, V>(simd, &c[from..][..columns.len()]);
                    }
                }
            }
            match left {
                Left::Rows { values, pitch, .. } => {
                    let mut rows = [&values[..right.len()]; ROWS];
                    for (i, to) in rows.iter_mut().enumerate() {
                        *to = &values[(row + i.min(height - 1)) * pitch..][..right.len()];
                    }
                    for (k, right) in right.iter().enumerate() {
                        for (sums, row) in sums.iter_mut().zip(rows) {
                            let x = T::splat(simd, row[k]);
                            for (sum, y) in sums.iter_mut().zip(right) {
                                *sum = T::mul_add(simd, x, *y, *sum);
                            }
                        }
                    }
                }
                Left::Packed { tiles, .. } => {
                    let tiles = &tiles[row / ROWS * right.len()..][..right.len()];
                    for (left, right) in tiles.iter().zip(right) {
                        for (sums, x) in sums.iter_mut().zip(left) {
                            let x = T::splat(simd, *x);
                            for (sum, y) in sums.iter_mut().zip(right) {
                                *sum = T::mul_add(simd, x, *y, *sum);
                            }
                        }
                    }
                }
            }
            for (i, sums) in sums.iter().enumerate().take(height) {
                let to = &mut c[(row + i) * pitch + columns.start..][..columns.len()];
                if whole {
                    T::vectors_mut::<S>(&mut to[..width]).copy_from_slice(sums);
                } else {
                    let mut edge = [T::default(); WIDTH];
                    T::vectors_mut::<S>(&mut edge[..width]).copy_from_slice(sums);
                    to.copy_from_slice(&edge[..to.len()]);
                }
            }
        }
    }
}

/// V vectors, with zeros behind the last element.
#[inline(always)]
fn load<S: Simd, T: Float, const V: usize>(simd: S, from: &[T]) -> [T::Vector<S>; V] {
    let mut to = [T::splat(simd, T::default()); V];
    let width = V * T::lanes::<S>();
    if from.len() == width {
        to.copy_from_slice(T::vectors::<S>(&from[..width]));
    } else {
        let mut edge = [T::default(); WIDTH];
        edge[..from.len()].copy_from_slice(from);
        to.copy_from_slice(T::vectors::<S>(&edge[..width]));
    }
    to
}
