//! Matrix products: dot products of rows where these are few, tiles otherwise.

#![allow(clippy::inline_always, reason = "a loop has the vector width of the function that it is inlined into")]

use pulp::NullaryFnOnce;
use rayon::prelude::*;

use super::ARCH;
use super::dot;
use super::float::Float;
use super::gemm;
pub(crate) use super::gemm::Start;
pub(crate) use super::matrix::Matrix;

/// Columns that one thread adds up at a time, and elements that are worth a thread.
const COLUMNS: usize = 256;
const SHARE: usize = 1 << 15;

/// `product` = `start` + a b, by all threads; bitwise the same for any number of them.
pub(crate) fn multiply<T: Float>(product: &mut [T], a: Matrix<'_, T>, b: Matrix<'_, T>, start: Start<'_, T>) {
    check(product, a, b);
    if let (Some(rows), Some(columns)) = (a.in_rows(), b.transposed().in_rows())
        && dot::fits(&rows, &columns)
    {
        start.write(product, b.columns);
        return dot::add_dots(product, rows, columns);
    }
    gemm::multiply(product, a, b, start, false);
}

/// [`multiply`] by this thread alone, in an order of its own.
pub(crate) fn multiply_alone<T: Float>(product: &mut [T], a: Matrix<'_, T>, b: Matrix<'_, T>, start: Start<'_, T>) {
    check(product, a, b);
    gemm::multiply(product, a, b, start, true);
}

fn check<T: Float>(product: &[T], a: Matrix<'_, T>, b: Matrix<'_, T>) {
    assert_eq!(a.columns, b.rows, "expected matrices that can be multiplied");
    assert_eq!(product.len(), a.rows * b.columns, "expected room for {} by {}", a.rows, b.columns);
}

/// The sum of each column of a matrix whose rows are stored one after the other. Sums are taken in f64, row after row.
pub(crate) fn column_sums<T: Float>(values: &[T], columns: usize) -> Vec<T> {
    let rows = values.len() / columns.max(1);
    let share = SHARE.div_ceil(COLUMNS * rows.max(1));
    let parts = (0..columns.div_ceil(COLUMNS)).into_par_iter().with_min_len(share);
    parts.flat_map_iter(|part| ARCH.dispatch(ColumnSums { values, columns, first: part * COLUMNS })).collect()
}

struct ColumnSums<'a, T> {
    values: &'a [T],
    columns: usize,
    first: usize,
}

impl<T: Float> NullaryFnOnce for ColumnSums<'_, T> {
    type Output = Vec<T>;

    #[inline(always)]
    fn call(self) -> Vec<T> {
        let Self { values, columns, first } = self;
        let mine = first..columns.min(first + COLUMNS);
        let mut sums = vec![0.0; mine.len()];
        for row in values.chunks_exact(columns) {
            sums.iter_mut().zip(&row[mine.clone()]).for_each(|(sum, x)| *sum += x.wide());
        }
        sums.into_iter().map(T::narrow).collect()
    }
}
