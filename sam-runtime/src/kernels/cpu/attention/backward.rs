//! The backward pass: dv = Pᵀ dy, dS = P (dy vᵀ - Σ dy y), dq = dS k, dk = dSᵀ q.

use std::ops::Range;

use candle_core::{Result, Tensor};
use rayon::prelude::*;

use super::super::ARCH;
use super::super::exp::Exp2;
use super::super::float::{Float, for_float, like, view, zeros};
use super::product::{KEYS, Left, Product, UNIT, copy_rows, padded, transpose, transposed_len};
use super::scores::Gradients;
use super::tiles::{Heads, Inputs, QUERIES, key_blocks, part, parts, products, query_blocks, split, tiles};
use crate::kernels::shapes::{AttentionShape, HeadStrides};

/// The wanted gradients of the arguments, given what [`attention`](super::forward::attention) has returned.
pub(crate) fn attention_back(
    shape: &AttentionShape,
    args: &[Tensor],
    wanted: &[bool],
    y: &Tensor,
    dy: &Tensor,
    logs: &Tensor,
) -> Result<Vec<Option<Tensor>>> {
    let views: Vec<_> = args.iter().map(view).collect();
    let (y, dy_view, logs) = (view(y), view(dy), view(logs));
    for_float!(args[0].dtype(), "attention", |T| {
        let inputs = Inputs::<T>::new(shape, args, &views)?;
        let dy = Heads { values: dy_view.elements::<T>()?, strides: shape.output(), dim: shape.v_dim };
        let given = Given { dy, logs: logs.elements::<T>()?, deltas: &deltas(shape, y.elements()?, dy.values) };
        let (of_inputs, of_masks) = wanted.split_at(shape.inputs());
        let mut gradients: Vec<Option<Tensor>> = Vec::new();
        for (values, (arg, wanted)) in inputs.gradients(given, args, of_inputs).into_iter().zip(args.iter().zip(wanted))
        {
            gradients.push(if *wanted { Some(like(values, arg)?) } else { None });
        }
        for (mask, wanted) in args[shape.inputs()..].iter().zip(of_masks) {
            gradients.push(if *wanted { Some(like(inputs.mask_gradient(given, mask.dims4()?), mask)?) } else { None });
        }
        Ok(gradients)
    })
}

/// What the backward pass is given: the gradient of the output, log₂ Σ and Σ dy y of each row.
#[derive(Clone, Copy)]
struct Given<'a, T> {
    dy: Heads<'a, T>,
    logs: &'a [T],
    deltas: &'a [T],
}

/// Σ dy y of each row, (batch, heads, queries).
fn deltas<T: Float>(shape: &AttentionShape, y: &[T], dy: &[T]) -> Vec<T> {
    let AttentionShape { batch, heads, queries, v_dim, .. } = *shape;
    let mut deltas = vec![T::default(); batch * heads * queries];
    if v_dim == 0 || deltas.is_empty() {
        return deltas;
    }
    let size = heads * queries;
    let rows = y.par_chunks_exact(size * v_dim).zip(dy.par_chunks_exact(size * v_dim));
    deltas.par_chunks_exact_mut(size).zip(rows).for_each(|(deltas, (y, dy))| {
        for (row, (y, dy)) in y.chunks_exact(v_dim).zip(dy.chunks_exact(v_dim)).enumerate() {
            let mut sums = [T::default(); UNIT];
            let ((y, y_rest), (dy, dy_rest)) = (y.as_chunks::<UNIT>(), dy.as_chunks::<UNIT>());
            for (y, dy) in y.iter().zip(dy) {
                sums.iter_mut().zip(y.iter().zip(dy)).for_each(|(sum, (y, dy))| *sum += *y * *dy);
            }
            sums.iter_mut().zip(y_rest.iter().zip(dy_rest)).for_each(|(sum, (y, dy))| *sum += *y * *dy);
            let (query, head) = (row / heads, row % heads);
            deltas[head * queries + query] = T::narrow(sums.iter().map(|sum| sum.wide()).sum());
        }
    });
    deltas
}

/// What a job has to write: gradients of q, a tile behind the other, and of some keys.
struct Done<T> {
    dq: Vec<T>,
    dk: Vec<T>,
    dv: Vec<T>,
}

/// The parts of the gradients' buffers that belong to one element of the batch.
type Chunks<'a, T> = Vec<&'a mut [T]>;

impl<T: Exp2> Inputs<'_, T> {
    /// Those of q, k and v, or of the tensor that has all three; empty for what is not wanted.
    fn gradients(&self, given: Given<'_, T>, args: &[Tensor], wanted: &[bool]) -> Vec<Vec<T>> {
        let shape = self.shape;
        let AttentionShape { batch, kv_heads, queries, keys, .. } = *shape;
        let size = |(arg, wanted): (&Tensor, &bool)| if *wanted { zeros(arg.elem_count()) } else { Vec::new() };
        let mut buffers: Vec<Vec<T>> = args.iter().zip(wanted).map(size).collect();
        if batch * kv_heads * queries * keys == 0 || !wanted.contains(&true) {
            return buffers;
        }
        let dims: Vec<&[usize]> = args[..shape.inputs()].iter().map(Tensor::dims).collect();
        let strides = shape.gradient_strides(&dims);
        let mut chunks: Vec<Chunks<'_, T>> = (0..batch).map(|_| Vec::new()).collect();
        for buffer in &mut buffers {
            let size = buffer.len() / batch;
            let mut rest = buffer.as_mut_slice();
            for chunks in &mut chunks {
                let (chunk, behind) = rest.split_at_mut(size);
                chunks.push(chunk);
                rest = behind;
            }
        }
        let wanted: [bool; 3] = std::array::from_fn(|i| wanted[if shape.packed { 0 } else { i }]);
        let blocks: Vec<_> = key_blocks(0..keys).collect();
        let parts = parts(shape, blocks.len());
        chunks.into_par_iter().enumerate().for_each(|(batch, mut chunks)| {
            let job = |i: usize| {
                let blocks = &blocks[part(blocks.len(), parts, i % parts)];
                let keys = blocks[0].start..blocks[blocks.len() - 1].end;
                (i / parts, keys.clone(), self.job(given, batch, i / parts, keys, wanted))
            };
            let done: Vec<_> = (0..kv_heads * parts).into_par_iter().map(job).collect();
            for (kv_head, keys, done) in done {
                let mut place = |i: usize, head: usize, tokens: Range<usize>, from: &[T], dim: usize| {
                    let HeadStrides { first, head: by_head, token, .. } = strides[i];
                    let to = &mut chunks[if shape.packed { 0 } else { i }];
                    for (t, row) in tokens.zip(from.chunks_exact(dim.max(1))) {
                        let to = &mut to[first + head * by_head + t * token..][..dim];
                        if i == 0 && keys.start > 0 {
                            to.iter_mut().zip(row).for_each(|(to, x)| *to += *x);
                        } else {
                            to.copy_from_slice(row);
                        }
                    }
                };
                let mut dq = done.dq.as_slice();
                for (head, queries) in tiles(shape, kv_head) {
                    if wanted[0] {
                        let (tile, behind) = dq.split_at(queries.len() * shape.dim);
                        place(0, head, queries, tile, shape.dim);
                        dq = behind;
                    }
                }
                for (i, from, dim) in [(1, &done.dk, shape.dim), (2, &done.dv, shape.v_dim)] {
                    if wanted[i] {
                        place(i, kv_head, keys.clone(), from, dim);
                    }
                }
            }
        });
        buffers
    }

    /// All queries of a head of k and v, and some of its keys.
    fn job(&self, given: Given<'_, T>, batch: usize, kv_head: usize, all: Range<usize>, wanted: [bool; 3]) -> Done<T> {
        let shape = self.shape;
        let AttentionShape { dim, v_dim, heads, queries: rows, .. } = *shape;
        let (pitch, v_pitch) = (padded(dim), padded(v_dim));
        let n = all.len();
        let mut dq = Vec::with_capacity(if wanted[0] { shape.group() * rows * dim } else { 0 });
        let (mut dk, mut dv) = (Vec::new(), Vec::new());
        T::with_scratch(|buffer| {
            let (tile, of_keys) = (QUERIES * KEYS, [n * pitch, n * v_pitch]);
            let [k_len, v_len] = [transposed_len(n, dim), transposed_len(n, v_dim)];
            let of_queries = [QUERIES * pitch, QUERIES * v_pitch, QUERIES * pitch];
            let [k, v, k_sums, v_sums, q, dy, q_sums, tile, gradient, k_transposed, v_transposed] = split(
                buffer,
                [
                    of_keys[0],
                    of_keys[1],
                    of_keys[0],
                    of_keys[1],
                    of_queries[0],
                    of_queries[1],
                    of_queries[2],
                    tile,
                    tile,
                    k_len,
                    v_len,
                ],
            );
            copy_rows(k, dim, self.k.rows(batch, kv_head, all.clone()));
            copy_rows(v, v_dim, self.v.rows(batch, kv_head, all.clone()));
            transpose(k_transposed, k, dim);
            transpose(v_transposed, v, v_dim);
            k_sums.fill(T::default());
            v_sums.fill(T::default());
            for (head, queries) in tiles(shape, kv_head) {
                copy_rows(q, dim, self.q.rows(batch, head, queries.clone()));
                copy_rows(dy, v_dim, given.dy.rows(batch, head, queries.clone()));
                let first = (batch * heads + head) * rows + queries.start;
                let end = shape.visible(queries.end - 1).min(all.end);
                let q_sums = &mut q_sums[..queries.len() * pitch];
                if end <= all.start {
                    q_sums.fill(T::default());
                }
                for keys in key_blocks(all.start.min(end)..end) {
                    let (scores, at) = (self.scores(batch, head, &queries, &keys), keys.start - all.start);
                    products(tile, &scores, Left::Rows(q, pitch), &k_transposed[at * dim..], dim);
                    products(gradient, &scores, Left::Rows(dy, v_pitch), &v_transposed[at * v_dim..], v_dim);
                    let [logs, deltas] = [given.logs, given.deltas].map(|all| &all[first..][..queries.len()]);
                    ARCH.dispatch(Gradients { scores, tile, gradient, logs, deltas, of_mask: false });
                    let of_queries = |to, a, b, pitch| Product {
                        to,
                        to_pitch: pitch,
                        add: true,
                        rows: keys.len(),
                        width: pitch,
                        len: queries.len(),
                        a: Left::Columns(a),
                        b,
                        b_pitch: pitch,
                    };
                    if wanted[2] {
                        ARCH.dispatch(of_queries(&mut v_sums[at * v_pitch..], tile, dy, v_pitch));
                    }
                    if wanted[1] {
                        ARCH.dispatch(of_queries(&mut k_sums[at * pitch..], gradient, q, pitch));
                    }
                    if wanted[0] {
                        ARCH.dispatch(Product {
                            to: q_sums,
                            to_pitch: pitch,
                            add: at > 0,
                            rows: queries.len(),
                            width: pitch,
                            len: keys.len(),
                            a: Left::Rows(gradient, KEYS),
                            b: &k[at * pitch..],
                            b_pitch: pitch,
                        });
                    }
                }
                if wanted[0] {
                    q_sums.chunks_exact(pitch.max(1)).for_each(|row| dq.extend_from_slice(&row[..dim]));
                }
            }
            let rows = |from: &[T], pitch: usize, dim: usize| {
                from.chunks_exact(pitch.max(1)).flat_map(|row| &row[..dim]).copied().collect()
            };
            if wanted[1] {
                dk = rows(k_sums, pitch, dim);
            }
            if wanted[2] {
                dv = rows(v_sums, v_pitch, v_dim);
            }
        });
        Done { dq, dk, dv }
    }

    /// That of an additive mask, whose dimensions are 1 or those of the scores.
    fn mask_gradient(&self, given: Given<'_, T>, mask: (usize, usize, usize, usize)) -> Vec<T> {
        let (batches, heads, queries, keys) = mask;
        let shape = self.shape;
        let mut sums = zeros::<T>(batches * heads * queries * keys);
        if sums.is_empty() || shape.batch * shape.heads * shape.queries * shape.keys == 0 {
            return sums;
        }
        // A job has the queries of a tile, or all where they share a row.
        let blocks: Vec<_> = query_blocks(shape.queries).collect();
        let rows = if queries == 1 { 1 } else { blocks[0].len() };
        let heads_of_batches = sums.par_chunks_mut(queries * keys).enumerate();
        heads_of_batches.for_each(|(i, sums)| {
            sums.par_chunks_mut(rows * keys).enumerate().for_each(|(j, sums)| {
                let blocks = if queries == 1 { &blocks[..] } else { &blocks[j..=j] };
                let every = |size: usize, all: usize, index: usize| if size == 1 { 0..all } else { index..index + 1 };
                for batch in every(batches, shape.batch, i / heads) {
                    for head in every(heads, shape.heads, i % heads) {
                        for block in blocks {
                            self.add_mask_gradient(given, sums, [batch, head], block, (queries, keys));
                        }
                    }
                }
            });
        });
        sums
    }

    /// The part of one tile of queries, added to `sums`, (queries or 1, keys or 1).
    fn add_mask_gradient(
        &self,
        given: Given<'_, T>,
        sums: &mut [T],
        [batch, head]: [usize; 2],
        queries: &Range<usize>,
        (mask_queries, mask_keys): (usize, usize),
    ) {
        let shape = self.shape;
        let AttentionShape { dim, v_dim, heads, .. } = *shape;
        let (pitch, v_pitch) = (padded(dim), padded(v_dim));
        let (kv_head, first) = (head / shape.group(), (batch * heads + head) * shape.queries + queries.start);
        T::with_scratch(|buffer| {
            let sizes = [
                QUERIES * pitch,
                QUERIES * v_pitch,
                KEYS * pitch.max(v_pitch),
                KEYS * dim,
                KEYS * v_dim,
                QUERIES * KEYS,
                QUERIES * KEYS,
            ];
            let [q, dy, rows, k, v, tile, gradient] = split(buffer, sizes);
            copy_rows(q, dim, self.q.rows(batch, head, queries.clone()));
            copy_rows(dy, v_dim, given.dy.rows(batch, head, queries.clone()));
            for keys in key_blocks(0..shape.visible(queries.end - 1)) {
                let scores = self.scores(batch, head, queries, &keys);
                copy_rows(rows, dim, self.k.rows(batch, kv_head, keys.clone()));
                transpose(k, &rows[..keys.len() * pitch], dim);
                copy_rows(rows, v_dim, self.v.rows(batch, kv_head, keys.clone()));
                transpose(v, &rows[..keys.len() * v_pitch], v_dim);
                products(tile, &scores, Left::Rows(q, pitch), k, dim);
                products(gradient, &scores, Left::Rows(dy, v_pitch), v, v_dim);
                let [logs, deltas] = [given.logs, given.deltas].map(|all| &all[first..][..queries.len()]);
                ARCH.dispatch(Gradients { scores, tile, gradient, logs, deltas, of_mask: true });
                for (i, row) in gradient.chunks_exact(KEYS).take(queries.len()).enumerate() {
                    let sums = if mask_queries == 1 { &mut *sums } else { &mut sums[i * mask_keys..][..mask_keys] };
                    let row = &row[..keys.len()];
                    if mask_keys == 1 {
                        sums[0] += row.iter().fold(T::default(), |sum, x| sum + *x);
                    } else {
                        sums[keys.clone()].iter_mut().zip(row).for_each(|(sum, x)| *sum += *x);
                    }
                }
            }
        });
    }
}
