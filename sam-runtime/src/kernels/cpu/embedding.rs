//! Rows of a table, and the gradient of the table.
//!
//! The gradient sums the rows of each id in the order of the tokens, in f64. Threads share out the ids, and the columns of
//! ids that many tokens have: every element is added up by one thread, in the same order for any number of them.

use candle_core::{CpuStorage, DType, Result, Shape, Tensor, WithDType};
use half::{bf16, f16};
use pulp::NullaryFnOnce;
use rayon::prelude::*;

use super::ARCH;
use super::float::{like, output, view};
use super::storage_float::StorageFloat;
use crate::kernels::indices::NONE;

/// Elements that are worth a thread.
const SHARE: usize = 1 << 14;

/// Columns that are added up at a time.
const COLUMNS: usize = 64;

/// A function of the tensor's own type: a table is not converted for the sake of some rows.
macro_rules! for_storage {
    ($dtype:expr, |$float:ident| $call:expr) => {
        match $dtype {
            DType::F32 => {
                type $float = f32;
                $call
            }
            DType::F64 => {
                type $float = f64;
                $call
            }
            DType::BF16 => {
                type $float = bf16;
                $call
            }
            DType::F16 => {
                type $float = f16;
                $call
            }
            dtype => Err(candle_core::Error::UnsupportedDTypeForOp(dtype, "embedding").bt()),
        }
    };
}

/// The rows `ids` of a table (rows, columns); [`NONE`] is a row of zeros.
pub(crate) fn embedding(table: &Tensor, ids: &[u32], shape: &[usize]) -> Result<(CpuStorage, Shape)> {
    let (_, columns) = table.dims2()?;
    let elements = view(table);
    for_storage!(table.dtype(), |T| Ok(output(rows(elements.elements::<T>()?, ids, columns), shape)))
}

/// The gradient of the table.
pub(crate) fn embedding_back(table: &Tensor, ids: &[u32], dy: &Tensor) -> Result<Tensor> {
    let (_, columns) = table.dims2()?;
    let gradient = view(dy);
    for_storage!(table.dtype(), |T| {
        like(gradient_of_rows(gradient.elements::<T>()?, ids, table.elem_count(), columns), table)
    })
}

fn rows<T: WithDType>(table: &[T], ids: &[u32], columns: usize) -> Vec<T> {
    let row = |id: u32| &table[id as usize * columns..][..columns];
    if ids.len() * columns < 4 * SHARE {
        let mut values = Vec::with_capacity(ids.len() * columns);
        for id in ids {
            match *id {
                NONE => values.resize(values.len() + columns, T::zero()),
                id => values.extend_from_slice(row(id)),
            }
        }
        return values;
    }
    let mut values = zeros(ids.len() * columns);
    let parts = values.par_chunks_exact_mut(columns.max(1)).zip(ids).with_min_len(SHARE.div_ceil(columns.max(1)));
    parts.filter(|(_, id)| **id != NONE).for_each(|(to, id)| to.copy_from_slice(row(*id)));
    values
}

fn gradient_of_rows<T: WithDType + StorageFloat>(dy: &[T], ids: &[u32], n: usize, columns: usize) -> Vec<T> {
    let tokens = ids.iter().enumerate().filter(|(_, id)| **id != NONE);
    let mut order: Vec<(u32, usize)> = tokens.map(|(token, id)| (*id, token)).collect();
    order.par_sort_unstable();
    let mut table = zeros(n);
    // Each row that has a gradient, with the tokens that it is the sum of.
    let (mut parts, mut rest, mut passed) = (Vec::new(), &mut table[..], 0);
    for tokens in order.chunk_by(|a, b| a.0 == b.0) {
        let id = tokens[0].0 as usize;
        let (row, behind) = rest.split_at_mut((id - passed) * columns).1.split_at_mut(columns);
        parts.push((row, tokens));
        (rest, passed) = (behind, id + 1);
    }
    let least = SHARE.div_ceil(columns.max(1)).div_ceil(order.len().div_ceil(parts.len().max(1)).max(1));
    parts.into_par_iter().with_min_len(least).for_each(|(row, tokens)| {
        let sum = |(i, to): (usize, &mut [T])| ARCH.dispatch(Sums { to, dy, tokens, columns, first: i * COLUMNS });
        if tokens.len() * columns < 4 * SHARE {
            row.chunks_mut(COLUMNS).enumerate().for_each(sum);
        } else {
            row.par_chunks_mut(COLUMNS).enumerate().for_each(sum);
        }
    });
    table
}

/// to = Σ dy over the rows of these tokens.
struct Sums<'a, T> {
    to: &'a mut [T],
    dy: &'a [T],
    tokens: &'a [(u32, usize)],
    columns: usize,
    first: usize,
}

impl<T: StorageFloat> NullaryFnOnce for Sums<'_, T> {
    type Output = ();

    #[inline(always)]
    #[allow(clippy::inline_always, reason = "a loop has the vector width of the function that it is inlined into")]
    fn call(self) {
        let part = |token: usize| &self.dy[token * self.columns + self.first..][..self.to.len()];
        if let [(_, token)] = *self.tokens {
            self.to.copy_from_slice(part(token));
            return;
        }
        let mut sums = [0.0; COLUMNS];
        for (_, token) in self.tokens {
            sums.iter_mut().zip(part(*token)).for_each(|(sum, dy)| *sum += dy.to_f64());
        }
        self.to.iter_mut().zip(sums).for_each(|(to, sum)| *to = T::from_f64(sum));
    }
}

/// By all threads where that pays.
fn zeros<T: WithDType>(n: usize) -> Vec<T> {
    rayon::iter::repeat_n(T::zero(), n).with_min_len(1 << 16).collect()
}
