//! The forward pass.

use std::ops::Range;

use candle_core::{CpuStorage, Result, Shape, Tensor};
use rayon::prelude::*;

use super::super::ARCH;
use super::super::exp::Exp2;
use super::super::float::{View, for_float, output, view, zeros};
use super::product::{KEYS, Left, Product, copy_rows, padded, transpose, transposed_len};
use super::scores::{RowState, Softmax};
use super::tiles::{Inputs, QUERIES, key_blocks, part, parts, products, split, tiles};
use crate::kernels::shapes::AttentionShape;

/// (batch, queries, heads `v_dim`), and log₂ Σ of each row, (batch, heads, queries). The arguments are q, k and v, or all in one
/// tensor, and perhaps a contiguous mask whose dimensions are 1 or those of the scores.
pub(crate) fn attention(shape: &AttentionShape, args: &[Tensor]) -> Result<((CpuStorage, Shape), Tensor)> {
    let views: Vec<View<'_>> = args.iter().map(view).collect();
    for_float!(args[0].dtype(), "attention", |T| {
        let inputs = Inputs::<T>::new(shape, args, &views)?;
        let (y, logs) = forward(&inputs);
        let logs = Tensor::from_vec(logs, (shape.batch, shape.heads, shape.queries), args[0].device())?;
        Ok((output(y, (shape.batch, shape.queries, shape.heads * shape.v_dim)), logs))
    })
}

/// What a job has to write: rows of the output, one tile behind the other, and log₂ Σ of each.
struct Rows<T> {
    y: Vec<T>,
    logs: Vec<T>,
}

fn forward<T: Exp2>(inputs: &Inputs<'_, T>) -> (Vec<T>, Vec<T>) {
    let shape = inputs.shape;
    let AttentionShape { batch, heads, kv_heads, queries, keys, v_dim, .. } = *shape;
    let mut y = zeros::<T>(batch * queries * heads * v_dim);
    let mut logs = vec![T::narrow(f64::INFINITY); batch * heads * queries];
    if y.is_empty() || keys == 0 {
        return (y, logs);
    }
    let lists: Vec<_> = (0..kv_heads).map(|head| tiles(shape, head)).collect();
    let parts = parts(shape, lists.first().map_or(0, Vec::len));
    let to = shape.output();
    let chunks = y.par_chunks_mut(queries * heads * v_dim).zip(logs.par_chunks_mut(heads * queries));
    chunks.enumerate().for_each(|(batch, (y, logs))| {
        let job = |i: usize| {
            let (head, range) = (i / parts, part(lists[0].len(), parts, i % parts));
            (&lists[head][range.clone()], job(inputs, batch, head, &lists[head][range]))
        };
        let done: Vec<_> = (0..kv_heads * parts).into_par_iter().map(job).collect();
        for (tiles, rows) in done {
            let mut from = rows.y.chunks_exact(v_dim).zip(rows.logs);
            for (head, queries) in tiles {
                for query in queries.clone() {
                    let Some((row, log)) = from.next() else { return };
                    y[head * to.head + query * to.token..][..v_dim].copy_from_slice(row);
                    logs[head * shape.queries + query] = log;
                }
            }
        }
    });
    (y, logs)
}

/// Some tiles that use one head of k and v.
fn job<T: Exp2>(inputs: &Inputs<'_, T>, batch: usize, kv_head: usize, tiles: &[(usize, Range<usize>)]) -> Rows<T> {
    let shape = inputs.shape;
    let AttentionShape { dim, v_dim, .. } = *shape;
    let rows = tiles.iter().map(|(_, queries)| queries.len()).sum::<usize>();
    let seen = tiles.iter().map(|(_, queries)| shape.visible(queries.end - 1)).max().unwrap_or(0);
    let (pitch, v_pitch) = (padded(dim), padded(v_dim));
    let mut done = Rows { y: Vec::with_capacity(rows * v_dim), logs: Vec::with_capacity(rows) };
    T::with_scratch(|buffer| {
        let sizes =
            [seen * pitch.max(v_pitch), transposed_len(seen, dim), QUERIES * pitch, QUERIES * KEYS, QUERIES * v_pitch];
        let [rows, k, q, tile, sums] = split(buffer, sizes);
        copy_rows(&mut rows[..seen * pitch], dim, inputs.k.rows(batch, kv_head, 0..seen));
        transpose(k, &rows[..seen * pitch], dim);
        let v = &mut rows[..seen * v_pitch];
        copy_rows(v, v_dim, inputs.v.rows(batch, kv_head, 0..seen));
        for (head, queries) in tiles {
            copy_rows(q, dim, inputs.q.rows(batch, *head, queries.clone()));
            let mut states = [RowState::<T>::new(); QUERIES];
            let sums = &mut sums[..queries.len() * v_pitch];
            if shape.visible(queries.end - 1) == 0 {
                sums.fill(T::default());
            }
            for keys in key_blocks(0..shape.visible(queries.end - 1)) {
                let scores = inputs.scores(batch, *head, queries, &keys);
                products(tile, &scores, Left::Rows(q, pitch), &k[keys.start * dim..], dim);
                let rows = &mut states[..queries.len()];
                ARCH.dispatch(Softmax { scores, tile, rows, sums, pitch: v_pitch });
                ARCH.dispatch(Product {
                    to: sums,
                    to_pitch: v_pitch,
                    add: keys.start > 0,
                    rows: queries.len(),
                    width: v_pitch,
                    len: keys.len(),
                    a: Left::Rows(tile, KEYS),
                    b: &v[keys.start * v_pitch..],
                    b_pitch: v_pitch,
                });
            }
            for (row, state) in sums.chunks_exact(v_pitch).zip(states) {
                let inverse = state.inverse();
                done.y.extend(row[..v_dim].iter().map(|x| *x * inverse));
                done.logs.push(state.log());
            }
        }
    });
    done
}
