//! How attention is divided into tiles and jobs, and what they read.

use std::ops::Range;

use candle_core::{DType, Result, Tensor};

use super::super::ARCH;
use super::super::float::{Float, View};
use super::product::{KEYS, Left, Product, ROWS, padded};
use super::scores::{Mask, MaskValues, Scores};
use crate::kernels::shapes::{AttentionShape, HeadStrides, mask_strides};

/// Queries of a tile, a multiple of [`ROWS`].
pub(super) const QUERIES: usize = 8 * ROWS;

/// Jobs that there are at least, if there are as many tiles.
const JOBS: usize = 16;

/// The rows of all heads of a tensor.
#[derive(Clone, Copy)]
pub(super) struct Heads<'a, T> {
    pub(super) values: &'a [T],
    pub(super) strides: HeadStrides,
    pub(super) dim: usize,
}

impl<'a, T> Heads<'a, T> {
    pub(super) fn rows(self, batch: usize, head: usize, tokens: Range<usize>) -> impl Iterator<Item = &'a [T]> {
        let HeadStrides { first, batch: by_batch, head: by_head, token } = self.strides;
        let first = first + batch * by_batch + head * by_head;
        tokens.map(move |t| &self.values[first + t * token..][..self.dim])
    }
}

pub(super) struct Inputs<'a, T> {
    pub(super) shape: &'a AttentionShape,
    pub(super) q: Heads<'a, T>,
    pub(super) k: Heads<'a, T>,
    pub(super) v: Heads<'a, T>,
    pub(super) mask: Option<Mask<'a, T>>,
}

impl<'a, T: Float> Inputs<'a, T> {
    pub(super) fn new(shape: &'a AttentionShape, args: &[Tensor], views: &'a [View<'_>]) -> Result<Self> {
        let (inputs, masks) = args.split_at(shape.inputs());
        let layouts: Vec<_> = inputs.iter().map(|arg| (arg.dims(), arg.stride())).collect();
        let strides = shape.strides(&layouts);
        let heads = |i: usize, dim: usize| {
            let values = views[if shape.packed { 0 } else { i }].behind_first::<T>()?;
            Ok::<_, candle_core::Error>(Heads { values, strides: strides[i], dim })
        };
        let mask = match masks.first() {
            None => None,
            Some(mask) => {
                let (view, dims) = (&views[inputs.len()], mask.dims4()?);
                let values = match mask.dtype() {
                    DType::U8 => MaskValues::Boolean(view.elements()?),
                    _ => MaskValues::Additive(view.elements()?),
                };
                Some(Mask { values, strides: mask_strides(dims) })
            }
        };
        Ok(Self { shape, q: heads(0, shape.dim)?, k: heads(1, shape.dim)?, v: heads(2, shape.v_dim)?, mask })
    }

    pub(super) fn scores(
        &self,
        batch: usize,
        head: usize,
        queries: &Range<usize>,
        keys: &Range<usize>,
    ) -> Scores<'a, T> {
        let (width, mask) = (padded(keys.len()), self.mask);
        let (query, key) = (queries.start, keys.start);
        Scores { shape: self.shape, mask, batch, head, query, queries: queries.len(), key, keys: keys.len(), width }
    }
}

/// The queries of each tile: all of about the same size.
pub(super) fn query_blocks(queries: usize) -> impl DoubleEndedIterator<Item = Range<usize>> + Clone {
    let size = queries.div_ceil(queries.div_ceil(QUERIES).max(1)).next_multiple_of(ROWS).max(1);
    (0..queries.div_ceil(size)).map(move |i| i * size..queries.min((i + 1) * size))
}

/// The heads and queries of each tile that uses a head of k and v.
pub(super) fn tiles(shape: &AttentionShape, kv_head: usize) -> Vec<(usize, Range<usize>)> {
    let heads = kv_head * shape.group()..(kv_head + 1) * shape.group();
    heads.flat_map(|head| query_blocks(shape.queries).map(move |queries| (head, queries))).collect()
}

/// Parts of about the same size of `n`, as many as there have to be for enough jobs.
pub(super) fn parts(shape: &AttentionShape, n: usize) -> usize {
    JOBS.div_ceil((shape.batch * shape.kv_heads).max(1)).min(n).max(1)
}

pub(super) fn part(n: usize, parts: usize, i: usize) -> Range<usize> {
    n * i / parts..n * (i + 1) / parts
}

/// The parts of a buffer, which grows to have them.
pub(super) fn split<T: Float, const N: usize>(buffer: &mut Vec<T>, sizes: [usize; N]) -> [&mut [T]; N] {
    let all = sizes.iter().sum();
    if buffer.len() < all {
        buffer.resize(all, T::default());
    }
    let mut rest = buffer.as_mut_slice();
    sizes.map(|size| {
        let (part, behind) = std::mem::take(&mut rest).split_at_mut(size);
        rest = behind;
        part
    })
}

/// The keys of each tile.
pub(super) fn key_blocks(keys: Range<usize>) -> impl Iterator<Item = Range<usize>> {
    let end = keys.end;
    keys.step_by(KEYS).map(move |first| first..end.min(first + KEYS))
}

/// Rows of q, or of dy, times a block of k, or of v, that is transposed.
pub(super) fn products<T: Float>(tile: &mut [T], scores: &Scores<'_, T>, a: Left<'_, T>, b: &[T], dim: usize) {
    let (rows, width) = (scores.queries, scores.width);
    ARCH.dispatch(Product { to: tile, to_pitch: KEYS, add: false, rows, width, len: dim, a, b, b_pitch: KEYS });
}
