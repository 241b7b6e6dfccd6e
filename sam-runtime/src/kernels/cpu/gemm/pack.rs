//! The operands of a product in the order in which tiles read them.

use std::ops::Range;

use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use crate::kernels::cpu::ARCH;
use crate::kernels::cpu::float::Float;
use crate::kernels::cpu::matrix::Matrix;

/// Rows of a tile.
pub(super) const ROWS: usize = 6;

/// Elements of the widest row of a tile.
pub(super) const WIDTH: usize = 64;

/// Products that are added up before the sums are stored: a panel of b stays in the first level cache.
pub(super) const DEPTH: usize = 256;

/// Rows `ks` of some columns of b, as many as a tile has, zeros behind them.
pub(super) struct Panel {
    pub(super) ks: Range<usize>,
    pub(super) columns: Range<usize>,
    /// A whole number of vectors.
    pub(super) width: usize,
}

impl Panel {
    pub(super) fn len(&self) -> usize {
        self.ks.len() * self.width
    }
}

/// The panels of a part of b: those of the first `DEPTH` rows, then those of the next.
pub(super) fn panels(ks: Range<usize>, columns: Range<usize>, [lanes, most]: [usize; 2]) -> Vec<Panel> {
    let vectors = columns.len().div_ceil(lanes);
    let count = vectors.div_ceil(most);
    let mut panels = Vec::new();
    for from in ks.clone().step_by(DEPTH) {
        for i in 0..count {
            let [first, end] = [i, i + 1].map(|i| i * vectors / count * lanes);
            panels.push(Panel {
                ks: from..ks.end.min(from + DEPTH),
                columns: columns.start + first..columns.end.min(columns.start + end),
                width: end - first,
            });
        }
    }
    panels
}

/// Copies these parts of b one behind the other.
pub(super) fn pack<T: Float>(b: Matrix<'_, T>, panels: &[Panel], mut packed: &mut [T], alone: bool) {
    let mut parts = Vec::with_capacity(panels.len());
    for panel in panels {
        let (to, rest) = packed.split_at_mut(panel.len());
        packed = rest;
        parts.push(Pack { b, panel, to });
    }
    if alone {
        for part in parts {
            ARCH.dispatch(part);
        }
    } else {
        parts.into_par_iter().for_each(|part| ARCH.dispatch(part));
    }
}

struct Pack<'a, T> {
    b: Matrix<'a, T>,
    panel: &'a Panel,
    to: &'a mut [T],
}

impl<T: Float> WithSimd for Pack<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let Self { b, panel: Panel { ks, columns, width }, to } = self;
        let count = columns.len();
        let [down, right] = b.strides;
        if right == 1 {
            for (to, k) in to.chunks_exact_mut(*width).zip(ks.clone()) {
                let from = &b.values[k * down + columns.start..][..count];
                if count == WIDTH {
                    to[..WIDTH].copy_from_slice(&from[..WIDTH]);
                } else if count == 16 {
                    to[..16].copy_from_slice(&from[..16]);
                } else {
                    to[..count].copy_from_slice(from);
                    to[count..].fill(T::default());
                }
            }
        } else {
            transpose(to, *width, |j| &b.values[(columns.start + j) * right + ks.start..][..ks.len()], count);
        }
    }
}

/// to[k, j] = row(j)[k], with zeros behind the last of `count` rows.
#[inline(always)]
fn transpose<'a, T: Float>(to: &mut [T], width: usize, row: impl Fn(usize) -> &'a [T], count: usize) {
    const SIDE: usize = 8;
    let depth = to.len() / width;
    for first in (0..count).step_by(SIDE) {
        let used = SIDE.min(count - first);
        let mut rows = [row(first); SIDE];
        for (i, rows) in rows.iter_mut().enumerate() {
            *rows = row(first + i.min(used - 1));
        }
        let whole = depth / SIDE * SIDE;
        for k in (0..whole).step_by(SIDE) {
            let mut square = [[T::default(); SIDE]; SIDE];
            for (i, row) in rows.iter().enumerate() {
                for (j, x) in row[k..][..SIDE].iter().enumerate() {
                    square[j][i] = *x;
                }
            }
            if used == SIDE {
                for (to, square) in to[k * width..].chunks_exact_mut(width).zip(square) {
                    to[first..][..SIDE].copy_from_slice(&square);
                }
            } else {
                for (to, square) in to[k * width..].chunks_exact_mut(width).zip(square) {
                    to[first..][..used].copy_from_slice(&square[..used]);
                }
            }
        }
        for k in whole..depth {
            for (to, row) in to[k * width + first..][..used].iter_mut().zip(rows) {
                *to = row[k];
            }
        }
    }
    if count < width {
        to.chunks_exact_mut(width).for_each(|to| to[count..].fill(T::default()));
    }
}

/// Rows of a.
#[derive(Clone, Copy)]
pub(super) enum Left<'a, T> {
    /// As they lie in memory: a[i, k] is `pitch` i + k.
    Rows { values: &'a [T], rows: usize, pitch: usize },
    /// [`ROWS`] of them side by side.
    Packed { tiles: &'a [[T; ROWS]], rows: usize },
}

impl<'a, T: Float> Left<'a, T> {
    #[inline(always)]
    pub(super) fn new(a: Matrix<'a, T>, ks: Range<usize>, scratch: &'a mut Vec<T>) -> Self {
        let [down, right] = a.strides;
        if right == 1 {
            return Self::Rows { values: &a.values[ks.start..], rows: a.rows, pitch: down };
        }
        let (tiles, depth) = (a.rows.div_ceil(ROWS), ks.len());
        if scratch.len() < tiles * depth * ROWS {
            scratch.resize(tiles * depth * ROWS, T::default());
        }
        let packed = scratch[..tiles * depth * ROWS].as_chunks_mut::<ROWS>().0;
        for (at, k) in ks.enumerate() {
            let from = &a.values[k * right..][..a.rows];
            let (whole, rest) = from.as_chunks::<ROWS>();
            for (i, from) in whole.iter().enumerate() {
                packed[i * depth + at] = *from;
            }
            if !rest.is_empty() {
                let to = &mut packed[whole.len() * depth + at];
                to[..rest.len()].copy_from_slice(rest);
                to[rest.len()..].fill(T::default());
            }
        }
        Self::Packed { tiles: packed, rows: a.rows }
    }

    #[inline(always)]
    pub(super) fn rows(self) -> usize {
        match self {
            Self::Rows { rows, .. } | Self::Packed { rows, .. } => rows,
        }
    }
}
