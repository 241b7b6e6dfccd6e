//! How the threads of the blocks share rows.

use candle_core::Result;

use super::shared::{THREADS, VECTOR_BYTES};
use super::{KernelArg, bytes, to_u32};

/// Elements of a row per thread, at most, before more threads take it.
const ELEMENTS_PER_THREAD: usize = 8;

/// The fewest threads of a row.
const LEAST_WIDTH: usize = 16;

/// Threads that take a row of so many columns.
pub(super) fn width(columns: usize) -> usize {
    columns.div_ceil(ELEMENTS_PER_THREAD).next_power_of_two().clamp(LEAST_WIDTH, THREADS)
}

/// Blocks of so many rows.
pub(super) fn blocks(rows: usize, columns: usize) -> usize {
    rows.div_ceil(THREADS / width(columns))
}

/// Whether loads of 16 bytes are aligned and stay within `run` elements.
pub(super) fn in_vectors(dtype: u32, run: usize, addresses: &[u64]) -> bool {
    run.is_multiple_of(VECTOR_BYTES / bytes(dtype))
        && addresses.iter().all(|address| address.is_multiple_of(VECTOR_BYTES as u64))
}

/// Rows, columns, threads of a row, and whether loads are of 16 bytes.
pub(super) fn args(dtype: u32, rows: usize, columns: usize, addresses: &[u64]) -> Result<[KernelArg<'static>; 4]> {
    Ok([
        KernelArg::U64(rows as u64),
        KernelArg::U32(to_u32(columns)?),
        KernelArg::U32(to_u32(width(columns))?),
        KernelArg::U32(in_vectors(dtype, columns, addresses).into()),
    ])
}
