//! Matrix products: dot products of rows where these are few, tiles otherwise.

#![allow(clippy::inline_always, reason = "a loop has the vector width of the function that it is inlined into")]

use std::ops::Range;

use pulp::NullaryFnOnce;
use rayon::prelude::*;

use super::ARCH;
use super::dot::{self, Rows};
use super::float::Float;
use super::gemm;
pub(crate) use super::gemm::Start;

/// Columns that one thread adds up at a time, and elements that are worth a thread.
const COLUMNS: usize = 256;
const SHARE: usize = 1 << 15;

/// A matrix in a slice: its rows one behind the other, or with `transposed` its columns.
#[derive(Clone, Copy)]
pub(crate) struct Matrix<'a, T> {
    pub(super) values: &'a [T],
    pub(super) rows: usize,
    pub(super) columns: usize,
    /// From a row to the next, and from a column to the next; one of them is 1.
    pub(super) strides: [usize; 2],
}

impl<'a, T> Matrix<'a, T> {
    pub(crate) fn new(values: &'a [T], rows: usize, columns: usize) -> Self {
        assert_eq!(values.len(), rows * columns, "expected a matrix of {rows} by {columns}");
        Self { values, rows, columns, strides: [columns, 1] }
    }

    /// Rows of which each begins `pitch` elements behind the one before.
    pub(crate) fn with_pitch(values: &'a [T], rows: usize, columns: usize, pitch: usize) -> Self {
        assert!(columns <= pitch, "expected rows of at most {pitch} elements, found {columns}");
        assert!(rows == 0 || (rows - 1) * pitch + columns <= values.len(), "expected {rows} rows of {columns}");
        Self { values, rows, columns, strides: [pitch, 1] }
    }

    pub(crate) fn transposed(self) -> Self {
        let [down, right] = self.strides;
        Self { rows: self.columns, columns: self.rows, strides: [right, down], ..self }
    }

    pub(super) fn rows_of(self, range: Range<usize>) -> Self {
        Self { values: self.values.get(range.start * self.strides[0]..).unwrap_or_default(), rows: range.len(), ..self }
    }

    pub(super) fn columns_of(self, range: Range<usize>) -> Self {
        Self {
            values: self.values.get(range.start * self.strides[1]..).unwrap_or_default(),
            columns: range.len(),
            ..self
        }
    }

    /// Its rows, where these lie one behind the other.
    fn in_rows(self) -> Option<Rows<'a, T>> {
        let Self { values, rows, columns, strides: [pitch, right] } = self;
        (right == 1).then_some(Rows { values, count: rows, columns, pitch })
    }
}

/// `product` = `start` + a b, by all threads; bitwise the same for any number of them.
pub(crate) fn multiply<T: Float>(product: &mut [T], a: Matrix<'_, T>, b: Matrix<'_, T>, start: Start<'_, T>) {
    check(product, a, b);
    if let (Some(rows), Some(columns)) = (a.in_rows(), b.transposed().in_rows())
        && dot::fits(&rows, &columns)
    {
        gemm::begin(product, b.columns, start);
        return dot::add_dots(product, rows, columns);
    }
    gemm::multiply(product, a, b, start, false);
}

/// [`multiply`] by this thread alone, in an order of its own.
pub(crate) fn multiply_alone<T: Float>(product: &mut [T], a: Matrix<'_, T>, b: Matrix<'_, T>, start: Start<'_, T>) {
    check(product, a, b);
    gemm::multiply(product, a, b, start, true);
}

fn check<T>(product: &[T], a: Matrix<'_, T>, b: Matrix<'_, T>) {
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
