//! Matrix products, by the `gemm` crate: the one call in this library that the compiler cannot check. AddressSanitizer has,
//! with the tests of the layers:
//!
//! ```sh
//! RUSTC_BOOTSTRAP=1 RUSTFLAGS=-Zsanitizer=address cargo test --release --target x86_64-unknown-linux-gnu -p sam-tests --test layers
//! ```

#![allow(clippy::inline_always, reason = "a loop has the vector width of the function that it is inlined into")]

use gemm::Parallelism;
use pulp::NullaryFnOnce;
use rayon::prelude::*;

use super::ARCH;
use super::dot::{self, Rows};
use super::float::Float;

/// Columns that one thread adds up at a time, and elements that are worth a thread.
const COLUMNS: usize = 256;
const SHARE: usize = 1 << 15;

/// A matrix in a slice: its rows one behind the other, or with `transposed` its columns.
#[derive(Clone, Copy)]
pub(crate) struct Matrix<'a, T> {
    values: &'a [T],
    rows: usize,
    columns: usize,
    strides: [usize; 2],
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

    /// Its rows, where these lie one behind the other.
    fn in_rows(self) -> Option<Rows<'a, T>> {
        let Self { values, rows, columns, strides: [pitch, right] } = self;
        (right == 1).then_some(Rows { values, count: rows, columns, pitch })
    }
}

/// `product` += a b, by all threads. Each element is added up in the same order for any number of them.
pub(crate) fn add_product<T: Float>(product: &mut [T], a: Matrix<'_, T>, b: Matrix<'_, T>) {
    multiply(product, a, b, Parallelism::Rayon(0), true);
}

/// `product` = a b: what it held is not read. By all threads, or with `alone` by this one; the same bits in either case.
pub(crate) fn set_product<T: Float>(product: &mut [T], a: Matrix<'_, T>, b: Matrix<'_, T>, alone: bool) {
    multiply(product, a, b, if alone { Parallelism::None } else { Parallelism::Rayon(0) }, false);
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

/// [`add_product`] by this thread alone.
pub(crate) fn add_product_alone<T: Float>(product: &mut [T], a: Matrix<'_, T>, b: Matrix<'_, T>) {
    multiply(product, a, b, Parallelism::None, true);
}

fn multiply<T: Float>(product: &mut [T], a: Matrix<'_, T>, b: Matrix<'_, T>, threads: Parallelism, keep: bool) {
    assert_eq!(a.columns, b.rows, "expected matrices that can be multiplied");
    assert_eq!(product.len(), a.rows * b.columns, "expected room for {} by {}", a.rows, b.columns);
    if let (true, Parallelism::Rayon(_), Some(rows), Some(columns)) =
        (keep, threads, a.in_rows(), b.transposed().in_rows())
        && dot::fits(&rows, &columns)
    {
        return dot::add_dots(product, rows, columns);
    }
    let [a_down, a_right] = a.strides.map(usize::cast_signed);
    let [b_down, b_right] = b.strides.map(usize::cast_signed);
    let (one, columns) = (T::narrow(1.0), b.columns.cast_signed());
    // SAFETY: `Matrix` can only be made of as many elements as its rows and columns reach to, in either order, so every
    // place that gemm reads is in its slice; the product has been checked to be of a's rows and b's columns, and nobody
    // else holds it. gemm dispatches on the type, and `Float` has only f32 and f64, which it knows.
    unsafe {
        gemm::gemm(
            a.rows,
            b.columns,
            a.columns,
            product.as_mut_ptr(),
            1,
            columns,
            keep,
            a.values.as_ptr(),
            a_right,
            a_down,
            b.values.as_ptr(),
            b_right,
            b_down,
            one,
            one,
            false,
            false,
            false,
            threads,
        );
    }
}
