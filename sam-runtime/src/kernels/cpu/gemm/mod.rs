//! Matrix products of any shape, as BLIS has them (Van Zee and van de Geijn, ACM TOMS 2015, figure 4).
//!
//! c = start + a b in tiles of 6 rows and 2 vectors, or 4 where there are 32 registers. Of b, [`DEPTH`] rows of the columns of
//! a tile lie one behind the other in a panel, packed once for all rows of a, in the order in which tiles read them. Rows
//! of a are read where they are; where a is transposed, [`ROWS`] elements of a column are packed side by side.
//!
//! Threads share out the rows of c. Where these are few and the sums long, as in the gradient of a weight, threads share
//! out the sums instead: parts whose number the shapes decide, added in order. Within a part an element is added up in the
//! order of k: results are bitwise identical for any number of threads.
//!
//! Two cores of an AMD EPYC (AVX2), GFLOP/s of this and of the crate `gemm` 0.19 in alternating calls; forward, gradient of the
//! input, gradient of the weight of a linear layer from k to n with m rows. Medians on a noisy machine; 1024, 1024, 1024 is of a later
//! run, after one in which both were slow (68, 79 forward):
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

mod pack;
mod start;
mod tile;

use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use self::pack::{DEPTH, Panel, ROWS, WIDTH, pack, panels};
pub(crate) use self::start::Start;
use self::tile::Block;
use super::ARCH;
use super::float::Float;
use super::matrix::Matrix;

/// Vectors of a tile, with 32 registers and with 16.
const WIDE: usize = 4;
const NARROW: usize = 2;

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
    start.write(c, columns);
    c.par_chunks_mut(ADDED).enumerate().for_each(|(i, c)| {
        for part in &sums {
            c.iter_mut().zip(&part[i * ADDED..]).for_each(|(c, sum)| *c += *sum);
        }
    });
}

/// In blocks of b, one after the other: packed once, then multiplied by all rows of a.
fn in_blocks<T: Float>(c: &mut [T], a: Matrix<'_, T>, b: Matrix<'_, T>, start: Start<'_, T>, alone: bool) {
    let depth = a.columns;
    if depth == 0 {
        return start.write(c, b.columns);
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
                let same = |other: &[f32]| c.iter().zip(other).all(|(a, b)| a.to_bits() == b.to_bits());
                assert!(same(&by(1, false)), "{m}, {k}, {n}, case {case}");
                let close = |other: &[f32]| c.iter().zip(other).all(|(a, b)| (a - b).abs() < 1e-6 * (9 + k) as f32);
                assert!(close(&by(0, true)), "{m}, {k}, {n}, case {case}");
            }
        }
    }
}
