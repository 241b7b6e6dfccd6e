//! Matrix products of any shape, as BLIS has them (Van Zee and van de Geijn, ACM TOMS 2015, figure 4).
//!
//! c = start + a b in tiles of 6 rows and 2 vectors, or 4 where there are 32 registers. Of b, [`DEPTH`] rows of the columns of
//! a tile lie one behind the other in a panel, packed once for all rows of a, in the order in which tiles read them. Rows
//! of a are read where they are; where a is transposed, [`ROWS`] elements of a column are packed side by side.
//!
//! Threads share out the rows of c. Where these are few and the sums long, as in the gradient of a weight, threads share
//! out the sums instead: parts whose number the shapes decide, added in order. Every element is added up in the order of k, each
//! product with one rounding: results are bitwise identical for any number of threads.
//!
//! Two cores of an AMD EPYC (AVX2), GFLOP/s of this and of the crate `gemm` 0.19 in alternating calls; forward, gradient of the
//! input, gradient of the weight of a linear layer from k to n with m rows:
//!
//! | m, k, n | forward | input | weight |
//! | --- | --- | --- | --- |
//! | 8320, 192, 576 | 138, 117 | 126, 97 | 109, 97 |
//! | 8320, 192, 192 | 118, 98 | 128, 113 | 96, 78 |
//! | 8320, 192, 768 | 130, 106 | 122, 105 | 106, 97 |
//! | 8320, 768, 192 | 115, 95 | 125, 93 | 101, 91 |
//! | 8192, 256, 1024 | 120, 95 | 134, 116 | 133, 115 |
//! | 8192, 1024, 256 | 143, 117 | 141, 115 | 104, 95 |
//! | 1024, 1024, 1024 | 148, 159 | 137, 127 | 145, 138 |
//! | 256, 512, 512 | 103, 112 | 106, 115 | 120, 101 |
//! | 2048, 4096, 4096 | 127, 124 | 144, 157 | 130, 124 |
//!
//! A loop over a number of rows that the compiler does not know keeps the sums in memory: 15 GFLOP/s a core where it is 60 to 70.

#![allow(clippy::inline_always, reason = "a loop has the vector width of the function that it is inlined into")]

use std::ops::Range;

use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use super::ARCH;
use super::float::Float;
use super::matmul::Matrix;

/// Rows of a tile.
const ROWS: usize = 6;

/// Vectors of a tile, with 32 registers and with 16.
const WIDE: usize = 4;
const NARROW: usize = 2;

/// Elements of the widest row of a tile.
const WIDTH: usize = 64;

/// Products that are added up before the sums are stored: a panel of b stays in the first level cache.
const DEPTH: usize = 256;

/// Rows of a that one thread takes at a time, at most.
const SHARE: usize = 96;

/// Elements of b that are packed at a time.
const PACKED: usize = 1 << 20;

/// Parts of long sums: so many at most, of so many products at least, with so many elements in all; and how many of these a
/// thread adds up at a time.
const PARTS: usize = 16;
const LONG: usize = 512;
const PARTIAL: usize = 1 << 22;
const ADDED: usize = 1 << 14;

/// What a sum begins with.
#[derive(Clone, Copy)]
pub(crate) enum Start<'a, T> {
    Zero,
    /// What the product held.
    Kept,
    /// The same row everywhere.
    Row(&'a [T]),
}

/// c = start + a b, by all threads or by this one `alone`, which does not share out long sums.
pub(super) fn multiply<T: Float>(c: &mut [T], a: Matrix<'_, T>, b: Matrix<'_, T>, start: Start<'_, T>, alone: bool) {
    let [rows, depth, columns] = [a.rows, a.columns, b.columns];
    if rows * columns == 0 {
        return;
    }
    let parts = if alone { 1 } else { (depth / LONG).min(PARTIAL / (rows * columns)).min(PARTS) };
    if depth > 4 * rows.max(columns) && parts > 3 {
        return in_parts(c, a, b, start, 1 << parts.ilog2());
    }
    in_blocks(c, a, b, start, alone);
}

/// The sums over parts of k, each by one thread, added in order.
fn in_parts<T: Float>(c: &mut [T], a: Matrix<'_, T>, b: Matrix<'_, T>, start: Start<'_, T>, parts: usize) {
    let [rows, depth, columns] = [a.rows, a.columns, b.columns];
    let size = depth.div_ceil(parts);
    let part = |i: usize| {
        let range = (i * size).min(depth)..((i + 1) * size).min(depth);
        let mut sums = vec![T::default(); rows * columns];
        in_blocks(&mut sums, a.columns_of(range.clone()), b.rows_of(range), Start::Zero, true);
        sums
    };
    let sums: Vec<Vec<T>> = (0..parts).into_par_iter().map(part).collect();
    begin(c, columns, start);
    c.par_chunks_mut(ADDED).enumerate().for_each(|(i, c)| {
        for part in &sums {
            c.iter_mut().zip(&part[i * ADDED..]).for_each(|(c, sum)| *c += *sum);
        }
    });
}

/// What the sums begin with.
pub(super) fn begin<T: Float>(c: &mut [T], columns: usize, start: Start<'_, T>) {
    match start {
        Start::Zero => c.fill(T::default()),
        Start::Kept => {}
        Start::Row(row) => c.chunks_exact_mut(columns).for_each(|c| c.copy_from_slice(row)),
    }
}

fn in_blocks<T: Float>(c: &mut [T], a: Matrix<'_, T>, b: Matrix<'_, T>, start: Start<'_, T>, alone: bool) {
    let depth = a.columns;
    if depth == 0 {
        return begin(c, b.columns, start);
    }
    let most = ARCH.dispatch(Most(std::marker::PhantomData::<T>));
    // Blocks of b that stay in a cache: the second level's of one thread, or the last one's.
    let deep = if alone { DEPTH } else { (4 * DEPTH).max(PACKED / b.columns.max(1) / DEPTH * DEPTH) };
    let wide = (PACKED / deep.min(depth)).next_multiple_of(WIDTH);
    let share = if alone { SHARE } else { a.rows.div_ceil(32).next_multiple_of(ROWS).clamp(ROWS, SHARE) };
    T::with_scratch(|scratch| {
        for from in (0..depth).step_by(deep) {
            let ks = from..depth.min(from + deep);
            for first in (0..b.columns).step_by(wide) {
                let columns = first..b.columns.min(first + wide);
                let panels = panels(ks.clone(), columns, most);
                let size: usize = panels.iter().map(Panel::len).sum();
                if scratch.len() < size {
                    scratch.resize(size, T::default());
                }
                let packed = &mut scratch[..size];
                pack(b, &panels, packed, alone);
                let start = if from == 0 { start } else { Start::Kept };
                let part = |(i, c): (usize, &mut [T])| {
                    let a = a.rows_of(i * share..a.rows.min((i + 1) * share));
                    T::with_scratch(|left| {
                        ARCH.dispatch(Block { c, pitch: b.columns, a, panels: &panels, packed, start, left });
                    });
                };
                if alone {
                    c.chunks_mut(share * b.columns).enumerate().for_each(part);
                } else {
                    c.par_chunks_mut(share * b.columns).enumerate().for_each(part);
                }
            }
        }
    });
}

/// Lanes, and the most vectors in a panel.
struct Most<T>(std::marker::PhantomData<T>);

impl<T: Float> WithSimd for Most<T> {
    type Output = [usize; 2];

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> [usize; 2] {
        [T::lanes::<S>(), if S::REGISTER_COUNT >= 32 { WIDE } else { NARROW }]
    }
}

/// Rows `ks` of some columns of b, as many as a tile has, zeros behind them.
struct Panel {
    ks: Range<usize>,
    columns: Range<usize>,
    /// A whole number of vectors.
    width: usize,
}

impl Panel {
    fn len(&self) -> usize {
        self.ks.len() * self.width
    }
}

/// The panels of a part of b: those of the first `DEPTH` rows, then those of the next.
fn panels(ks: Range<usize>, columns: Range<usize>, [lanes, most]: [usize; 2]) -> Vec<Panel> {
    let vectors = columns.len().div_ceil(lanes);
    let count = vectors.div_ceil(most);
    let mut panels = Vec::new();
    for from in ks.clone().step_by(DEPTH) {
        for i in 0..count {
            let [first, end] = [i, i + 1].map(|i| i * vectors / count * lanes);
            panels.push(Panel {
                ks: from..ks.end.min(from + DEPTH),
                columns: columns.start + first..columns.end.min(columns.start + end),
                width: end - first,
            });
        }
    }
    panels
}

fn pack<T: Float>(b: Matrix<'_, T>, panels: &[Panel], mut packed: &mut [T], alone: bool) {
    let mut parts = Vec::with_capacity(panels.len());
    for panel in panels {
        let (to, rest) = packed.split_at_mut(panel.len());
        packed = rest;
        parts.push(Pack { b, panel, to });
    }
    if alone {
        parts.into_iter().for_each(|part| ARCH.dispatch(part));
    } else {
        parts.into_par_iter().for_each(|part| ARCH.dispatch(part));
    }
}

struct Pack<'a, T> {
    b: Matrix<'a, T>,
    panel: &'a Panel,
    to: &'a mut [T],
}

impl<T: Float> WithSimd for Pack<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let Self { b, panel: Panel { ks, columns, width }, to } = self;
        let count = columns.len();
        let [down, right] = b.strides;
        if right == 1 {
            for (to, k) in to.chunks_exact_mut(*width).zip(ks.clone()) {
                let from = &b.values[k * down + columns.start..][..count];
                if count == WIDTH {
                    to[..WIDTH].copy_from_slice(&from[..WIDTH]);
                } else if count == 16 {
                    to[..16].copy_from_slice(&from[..16]);
                } else {
                    to[..count].copy_from_slice(from);
                    to[count..].fill(T::default());
                }
            }
        } else {
            transpose(to, *width, |j| &b.values[(columns.start + j) * right + ks.start..][..ks.len()], count);
        }
    }
}

/// to[k, j] = row(j)[k], with zeros behind the last of `count` rows.
#[inline(always)]
fn transpose<'a, T: Float>(to: &mut [T], width: usize, row: impl Fn(usize) -> &'a [T], count: usize) {
    const SIDE: usize = 8;
    let depth = to.len() / width;
    for first in (0..count).step_by(SIDE) {
        let used = SIDE.min(count - first);
        let mut rows = [row(first); SIDE];
        for (i, rows) in rows.iter_mut().enumerate() {
            *rows = row(first + i.min(used - 1));
        }
        let whole = depth / SIDE * SIDE;
        for k in (0..whole).step_by(SIDE) {
            let mut square = [[T::default(); SIDE]; SIDE];
            for (i, row) in rows.iter().enumerate() {
                for (j, x) in row[k..][..SIDE].iter().enumerate() {
                    square[j][i] = *x;
                }
            }
            if used == SIDE {
                for (to, square) in to[k * width..].chunks_exact_mut(width).zip(square) {
                    to[first..][..SIDE].copy_from_slice(&square);
                }
            } else {
                for (to, square) in to[k * width..].chunks_exact_mut(width).zip(square) {
                    to[first..][..used].copy_from_slice(&square[..used]);
                }
            }
        }
        for k in whole..depth {
            for (to, row) in to[k * width + first..][..used].iter_mut().zip(rows) {
                *to = row[k];
            }
        }
    }
    if count < width {
        to.chunks_exact_mut(width).for_each(|to| to[count..].fill(T::default()));
    }
}

/// Some rows of c and of a, and a part of b.
struct Block<'a, T> {
    c: &'a mut [T],
    pitch: usize,
    a: Matrix<'a, T>,
    panels: &'a [Panel],
    packed: &'a [T],
    start: Start<'a, T>,
    left: &'a mut Vec<T>,
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

/// Rows of a.
#[derive(Clone, Copy)]
enum Left<'a, T> {
    /// As they lie in memory: a[i, k] is `pitch` i + k.
    Rows { values: &'a [T], rows: usize, pitch: usize },
    /// [`ROWS`] of them side by side.
    Packed { tiles: &'a [[T; ROWS]], rows: usize },
}

impl<'a, T: Float> Left<'a, T> {
    #[inline(always)]
    fn new(a: Matrix<'a, T>, ks: Range<usize>, scratch: &'a mut Vec<T>) -> Self {
        let [down, right] = a.strides;
        if right == 1 {
            return Self::Rows { values: &a.values[ks.start..], rows: a.rows, pitch: down };
        }
        let (tiles, depth) = (a.rows.div_ceil(ROWS), ks.len());
        if scratch.len() < tiles * depth * ROWS {
            scratch.resize(tiles * depth * ROWS, T::default());
        }
        let packed = scratch[..tiles * depth * ROWS].as_chunks_mut::<ROWS>().0;
        for (at, k) in ks.enumerate() {
            let from = &a.values[k * right..][..a.rows];
            let (whole, rest) = from.as_chunks::<ROWS>();
            for (i, from) in whole.iter().enumerate() {
                packed[i * depth + at] = *from;
            }
            if !rest.is_empty() {
                let to = &mut packed[whole.len() * depth + at];
                to[..rest.len()].copy_from_slice(rest);
                to[rest.len()..].fill(T::default());
            }
        }
        Self::Packed { tiles: packed, rows: a.rows }
    }

    #[inline(always)]
    fn rows(self) -> usize {
        match self {
            Self::Rows { rows, .. } | Self::Packed { rows, .. } => rows,
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

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;
    use rayon::ThreadPoolBuilder;

    use super::*;

    fn start(kind: usize, row: &[f32]) -> Start<'_, f32> {
        match kind {
            0 => Start::Zero,
            1 => Start::Kept,
            _ => Start::Row(row),
        }
    }

    /// Sizes that fill no tile, no vector and no panel, of several panels, blocks and parts, and of nothing.
    #[test]
    fn products_are_those_of_f64_and_of_any_number_of_threads() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let mut draw = |n: usize| (0..n).map(|_| rng.random_range(-1f32..1.0)).collect::<Vec<_>>();
        let pools = [1, 3].map(|threads| ThreadPoolBuilder::new().num_threads(threads).build().unwrap());
        let shapes = [
            [1, 1, 1],
            [7, 3, 5],
            [6, 16, 16],
            [13, 300, 33],
            [100, 513, 70],
            [37, 3000, 9],
            [97, 0, 5],
            [3, 7, 0],
            [2, 1100, 1000],
        ];
        for [m, k, n] in shapes {
            let (left, right, row, before) = (draw(m * k), draw(k * n), draw(n), draw(m * n));
            for case in 0..12 {
                let (a_transposed, b_transposed, kind) = (case % 2 == 1, case / 2 % 2 == 1, case / 4);
                let a = if a_transposed { Matrix::new(&left, k, m).transposed() } else { Matrix::new(&left, m, k) };
                let b = if b_transposed { Matrix::new(&right, n, k).transposed() } else { Matrix::new(&right, k, n) };
                let by = |threads: usize, alone: bool| {
                    let mut c = before.clone();
                    pools[threads].install(|| multiply(&mut c, a, b, start(kind, &row), alone));
                    c
                };
                let c = by(0, false);
                for (i, found) in c.iter().enumerate() {
                    let (i, j) = (i / n, i % n);
                    let product = |k: usize| {
                        a.values[i * a.strides[0] + k * a.strides[1]].wide()
                            * b.values[k * b.strides[0] + j * b.strides[1]].wide()
                    };
                    let begin = [0.0, before[i * n + j].wide(), row[j].wide()][kind];
                    let expected = begin + (0..k).map(product).sum::<f64>();
                    let what = format!("{m}, {k}, {n}, case {case}: {found} and {expected}");
                    assert!((found.wide() - expected).abs() < 1e-6 * (9 + k) as f64, "{what}");
                }
                for other in [by(0, false), by(0, true)] {
                    assert!(
                        c.iter().zip(&other).all(|(a, b)| a.to_bits() == b.to_bits()),
                        "{m}, {k}, {n}, case {case}"
                    );
                }
            }
        }
    }
}
