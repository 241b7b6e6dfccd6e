//! Sums and maxima over tensors, in f64: in [`LANES`] lanes over chunks of [`CHUNK`] elements, and chunk after chunk, so
//! bitwise the same for any number of threads and any vector width.

#![allow(clippy::inline_always, reason = "a loop has the vector width of the function that it is inlined into")]

use std::ops::Range;

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, Layout, Result, Storage, StorageRef, Tensor};
use half::{bf16, f16};
use pulp::NullaryFnOnce;
use rayon::prelude::*;

use super::ARCH;
use super::storage_float::StorageFloat;

/// Elements that one thread takes at a time.
pub(super) const CHUNK: usize = 1 << 15;

/// Partial sums that one chunk is added up in.
pub(super) const LANES: usize = 16;

/// Σ a b, each pair in f64.
pub(crate) fn dot<'a>(pairs: impl Iterator<Item = (&'a Tensor, &'a Tensor)>) -> Result<f64> {
    let guards = guards(pairs);
    Ok(reduce(&slices(&guards)?, |pair| pair.reduce(Sum(|a: f64, b: f64| a * b))))
}

/// ‖a‖₂, in f64.
pub(crate) fn norm(a: &Tensor) -> Result<f64> {
    let guards = guards([(a, a)].into_iter());
    let pairs = slices(&guards)?;
    let sum = reduce(&pairs, |pair| pair.reduce(Sum(|a: f64, _| a * a)));
    if sum.is_normal() {
        return Ok(sum.sqrt());
    }
    let max = reduce_max(&pairs, |pair| pair.reduce(Max(|a: f64, _| a.abs())));
    if max == 0.0 || !max.is_finite() {
        return Ok(max);
    }
    Ok(max * reduce(&pairs, |pair| pair.reduce(Sum(move |a: f64, _| (a / max) * (a / max)))).sqrt())
}

/// Whether every element of these is a number.
pub(crate) fn is_finite<'a>(tensors: impl Iterator<Item = &'a Tensor>) -> Result<bool> {
    let guards = guards(tensors.map(|tensor| (tensor, tensor)));
    Ok(reduce_max(&slices(&guards)?, |pair| pair.reduce(Max(|g: f64, _| g.abs()))).is_finite())
}

/// A reduction operator: within a chunk, lane by lane, and over the lanes and chunks.
pub(super) trait Fold: Copy + Send + Sync {
    fn step(self, so_far: f64, g: f64, w: f64) -> f64;
    fn join(self, a: f64, b: f64) -> f64;
}

#[derive(Clone, Copy)]
pub(super) struct Sum<F>(pub(super) F);

impl<F: Fn(f64, f64) -> f64 + Copy + Send + Sync> Fold for Sum<F> {
    #[inline(always)]
    fn step(self, so_far: f64, g: f64, w: f64) -> f64 {
        so_far + (self.0)(g, w)
    }

    #[inline(always)]
    fn join(self, a: f64, b: f64) -> f64 {
        a + b
    }
}

/// The largest number that is not negative. As bits they are in order, infinity and NaN on top, so neither gets lost.
#[derive(Clone, Copy)]
pub(super) struct Max<F>(pub(super) F);

impl<F: Fn(f64, f64) -> f64 + Copy + Send + Sync> Fold for Max<F> {
    #[inline(always)]
    fn step(self, so_far: f64, g: f64, w: f64) -> f64 {
        self.join(so_far, (self.0)(g, w))
    }

    #[inline(always)]
    fn join(self, a: f64, b: f64) -> f64 {
        larger(a, b)
    }
}

#[inline(always)]
pub(super) fn larger(a: f64, b: f64) -> f64 {
    f64::from_bits(a.to_bits().max(b.to_bits()))
}

/// The sum over all chunks, in their order.
pub(super) fn reduce<T: Chunks>(parts: &[T], f: impl Fn(T) -> f64 + Send + Sync) -> f64 {
    over_chunks(parts, &f).into_iter().sum()
}

pub(super) fn reduce_max<T: Chunks>(parts: &[T], f: impl Fn(T) -> f64 + Send + Sync) -> f64 {
    over_chunks(parts, &f).into_iter().fold(0.0, larger)
}

/// `f` is no type parameter: rayon's part would be compiled anew for each.
pub(super) fn over_chunks<T: Chunks>(parts: &[T], f: &(dyn Fn(T) -> f64 + Send + Sync)) -> Vec<f64> {
    let chunks: Vec<_> = parts.iter().flat_map(|part| part.chunks()).collect();
    chunks.into_par_iter().map(f).collect()
}

/// Splits into chunks for a parallel reduction.
pub(super) trait Chunks: Copy + Send + Sync {
    fn chunks(self) -> Vec<Self>;
}

/// A gradient and its variable, or any two tensors of one type.
#[derive(Clone, Copy)]
pub(super) enum Pair<'a> {
    F32(&'a [f32], &'a [f32]),
    F64(&'a [f64], &'a [f64]),
    BF16(&'a [bf16], &'a [bf16]),
    F16(&'a [f16], &'a [f16]),
}

impl Chunks for Pair<'_> {
    fn chunks(self) -> Vec<Self> {
        macro_rules! chunks {
            ($($variant:ident)*) => {
                match self {
                    $(Self::$variant(g, w) => {
                        g.chunks(CHUNK).zip(w.chunks(CHUNK)).map(|(g, w)| Self::$variant(g, w)).collect()
                    })*
                }
            };
        }
        chunks!(F32 F64 BF16 F16)
    }
}

impl Pair<'_> {
    pub(super) fn reduce(self, fold: impl Fold) -> f64 {
        match self {
            Self::F32(g, w) => ARCH.dispatch(Reduce { g, w, fold }),
            Self::F64(g, w) => ARCH.dispatch(Reduce { g, w, fold }),
            Self::BF16(g, w) => ARCH.dispatch(Reduce { g, w, fold }),
            Self::F16(g, w) => ARCH.dispatch(Reduce { g, w, fold }),
        }
    }
}

struct Reduce<'a, T, F> {
    g: &'a [T],
    w: &'a [T],
    fold: F,
}

impl<T: StorageFloat, F: Fold> NullaryFnOnce for Reduce<'_, T, F> {
    type Output = f64;

    #[inline(always)]
    fn call(self) -> f64 {
        let Self { g, w, fold } = self;
        let mut lanes = [0.0; LANES];
        let (g_blocks, g_rest) = g.as_chunks::<LANES>();
        let (w_blocks, w_rest) = w.as_chunks::<LANES>();
        for (g, w) in g_blocks.iter().zip(w_blocks) {
            for i in 0..LANES {
                lanes[i] = fold.step(lanes[i], g[i].to_f64(), w[i].to_f64());
            }
        }
        for ((lane, g), w) in lanes.iter_mut().zip(g_rest).zip(w_rest) {
            *lane = fold.step(*lane, g.to_f64(), w.to_f64());
        }
        lanes.into_iter().fold(0.0, |a, b| fold.join(a, b))
    }
}

/// Locks the buffers for reading.
pub(super) fn guards<'a>(
    pairs: impl Iterator<Item = (&'a Tensor, &'a Tensor)>,
) -> Vec<[(StorageRef<'a>, &'a Layout); 2]> {
    pairs.map(|(grad, var)| [grad.storage_and_layout(), var.storage_and_layout()]).collect()
}

pub(super) fn slices<'a>(guards: &'a [[(StorageRef<'_>, &Layout); 2]]) -> Result<Vec<Pair<'a>>> {
    let pair = |[(g, g_layout), (w, w_layout)]: &'a [(StorageRef<'_>, &Layout); 2]| {
        let (Storage::Cpu(g), Storage::Cpu(w)) = (&**g, &**w) else {
            candle_core::bail!("a variable and its gradient must be on the CPU")
        };
        let (g_range, w_range) = (range(g_layout)?, range(w_layout)?);
        Ok(match (g, w) {
            (CpuStorage::F32(g), CpuStorage::F32(w)) => Pair::F32(&g[g_range], &w[w_range]),
            (CpuStorage::F64(g), CpuStorage::F64(w)) => Pair::F64(&g[g_range], &w[w_range]),
            (CpuStorage::BF16(g), CpuStorage::BF16(w)) => Pair::BF16(&g[g_range], &w[w_range]),
            (CpuStorage::F16(g), CpuStorage::F16(w)) => Pair::F16(&g[g_range], &w[w_range]),
            (g, w) => mismatch(w, g)?,
        })
    };
    guards.iter().map(pair).collect()
}

pub(super) fn range(layout: &Layout) -> Result<Range<usize>> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(start..end),
        None => candle_core::bail!("a variable and its gradient must be contiguous, found {layout:?}"),
    }
}

pub(super) fn mismatch<T>(w: &CpuStorage, g: &CpuStorage) -> Result<T> {
    candle_core::bail!("a variable of {:?} with a gradient of {:?}: expected one float type", w.dtype(), g.dtype())
}
