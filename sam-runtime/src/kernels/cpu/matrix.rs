//! Matrices in slices, as products take them.

use std::ops::Range;

use super::dot::Rows;

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
    pub(super) fn in_rows(self) -> Option<Rows<'a, T>> {
        let Self { values, rows, columns, strides: [pitch, right] } = self;
        (right == 1).then_some(Rows { values, count: rows, columns, pitch })
    }
}
