//! Activation functions: f(x), and f'(x) dy, which is computed from x again.
//!
//! 1,048,576 numbers in f32, one thread (Intel Xeon, AVX-512), least time in ms on a machine that others used as well; a copy of
//! them took 0.30:
//!
//! | function | forward | backward | candle forward |
//! | --- | --- | --- | --- |
//! | GELU with tanh | 0.77 | 0.99 | 39 |
//! | GELU with erf | 1.09 | 1.17 | 26 |
//! | `silu` | 0.68 | 0.76 | 2.5 |
//! | `swiglu` | 0.45 | 1.18 | |
//! | GELU with erf, `swiglu`, in closures that were not inlined | 8.1, 0.46 | 16, 27 | |

#![allow(clippy::inline_always, reason = "a loop has the vector width of the function that it is inlined into")]

use std::ops::Range;

use candle_core::{CpuStorage, Result, Shape, Tensor};
use pulp::NullaryFnOnce;
use rayon::prelude::*;

use super::ARCH;
use super::curves::{Curve, Sigmoid, Silu, with_curve};
use super::float::{Float, for_float, like, output, view, zeros};
use super::real::Real;
use crate::kernels::activation::{Function, Gate};

/// Elements that are computed at a time, in the first level cache.
const BLOCK: usize = 512;

/// Elements that one thread takes at least.
const SHARE: usize = 1 << 14;

/// f(x)
pub(crate) fn activate(function: Function, x: &Tensor) -> Result<(CpuStorage, Shape)> {
    let elements = view(x);
    for_float!(x.dtype(), "activation", |T| {
        let x_all = elements.elements::<T>()?;
        let values = with_curve!(function, |curve| blocks(x_all.len(), &|range, to| {
            ARCH.dispatch(Values { curve, x: &x_all[range], to });
        }));
        Ok(output(values, x.shape()))
    })
}

/// f'(x) dy
pub(crate) fn activate_back(function: Function, x: &Tensor, dy: &Tensor) -> Result<Tensor> {
    let (elements, gradient) = (view(x), view(dy));
    for_float!(x.dtype(), "activation", |T| {
        let (x_all, dy) = (elements.elements::<T>()?, gradient.elements::<T>()?);
        let values = with_curve!(function, |curve| blocks(x_all.len(), &|range, to| {
            ARCH.dispatch(Slopes { curve, x: &x_all[range.clone()], dy: &dy[range], to });
        }));
        like(values, x)
    })
}

/// f of one half of each row of x, times the other.
pub(crate) fn gate(gate: Gate, x: &Tensor, shape: &[usize]) -> Result<(CpuStorage, Shape)> {
    let elements = view(x);
    for_float!(x.dtype(), "gate", |T| {
        let x_all = elements.elements::<T>()?;
        let values = match gate.function {
            Function::Sigmoid => gated(gate, Sigmoid, x_all),
            Function::Silu => gated(gate, Silu, x_all),
            other => candle_core::bail!("there is no gate with {other:?}"),
        };
        Ok(output(values, shape))
    })
}

/// The gradient of x.
pub(crate) fn gate_back(gate: Gate, x: &Tensor, dy: &Tensor) -> Result<Tensor> {
    let (elements, gradient) = (view(x), view(dy));
    for_float!(x.dtype(), "gate", |T| {
        let (x_all, dy) = (elements.elements::<T>()?, gradient.elements::<T>()?);
        let values = match gate.function {
            Function::Sigmoid => gated_back(gate, Sigmoid, x_all, dy),
            Function::Silu => gated_back(gate, Silu, x_all, dy),
            other => candle_core::bail!("there is no gate with {other:?}"),
        };
        like(values, x)
    })
}

fn gated<T: Real>(gate: Gate, curve: impl Curve, x: &[T]) -> Vec<T> {
    let mut y = zeros(x.len() / 2);
    let size = gate.elements_at_a_time();
    let parts = y.par_chunks_mut(size).zip(x.par_chunks(2 * size));
    parts.for_each(|(to, x)| ARCH.dispatch(Gated { curve, gate, x, to }));
    y
}

fn gated_back<T: Real>(gate: Gate, curve: impl Curve, x: &[T], dy: &[T]) -> Vec<T> {
    let mut dx = zeros(x.len());
    let size = gate.elements_at_a_time();
    let parts = dx.par_chunks_mut(2 * size).zip(x.par_chunks(2 * size)).zip(dy.par_chunks(size));
    parts.for_each(|((to, x), dy)| ARCH.dispatch(GatedSlopes { curve, gate, x, dy, to }));
    dx
}

/// `n` elements, of which each is written once: memory that is cleared before costs as much as the function. `fill` is
/// no type parameter: rayon's part would be compiled anew for each function.
pub(super) fn blocks<T: Float>(n: usize, fill: &(dyn Fn(Range<usize>, &mut [T]) + Sync)) -> Vec<T> {
    let block = |i: usize| {
        let (mut block, range) = ([T::default(); BLOCK], i * BLOCK..n.min((i + 1) * BLOCK));
        let part = &mut block[..range.len()];
        fill(range, part);
        block
    };
    let all: Vec<[T; BLOCK]> = (0..n.div_ceil(BLOCK)).into_par_iter().with_min_len(SHARE / BLOCK).map(block).collect();
    let mut values = all.into_flattened();
    values.truncate(n);
    values
}

// The loops have no closures: one that is not inlined is computed without vectors, element by element.
struct Values<'a, T, C> {
    curve: C,
    x: &'a [T],
    to: &'a mut [T],
}

impl<T: Real, C: Curve> NullaryFnOnce for Values<'_, T, C> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        for (to, x) in self.to.iter_mut().zip(self.x) {
            *to = self.curve.value(*x);
        }
    }
}

struct Slopes<'a, T, C> {
    curve: C,
    x: &'a [T],
    dy: &'a [T],
    to: &'a mut [T],
}

impl<T: Real, C: Curve> NullaryFnOnce for Slopes<'_, T, C> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let pairs = self.x.iter().zip(self.dy);
        for (to, (x, dy)) in self.to.iter_mut().zip(pairs) {
            *to = self.curve.slope(*x) * *dy;
        }
    }
}

impl Gate {
    /// Whole rows of the output.
    fn elements_at_a_time(&self) -> usize {
        SHARE.div_ceil(self.half.max(1)) * self.half.max(1)
    }

    /// The half that the function is applied to, and the other.
    #[inline(always)]
    fn halves<'a, T>(&self, row: &'a [T]) -> (&'a [T], &'a [T]) {
        let (first, second) = row.split_at(self.half);
        if self.second { (second, first) } else { (first, second) }
    }
}

struct Gated<'a, T, C> {
    curve: C,
    gate: Gate,
    x: &'a [T],
    to: &'a mut [T],
}

impl<T: Real, C: Curve> NullaryFnOnce for Gated<'_, T, C> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let half = self.gate.half.max(1);
        for (to, row) in self.to.chunks_exact_mut(half).zip(self.x.chunks_exact(2 * half)) {
            let (a, b) = self.gate.halves(row);
            for (to, (a, b)) in to.iter_mut().zip(a.iter().zip(b)) {
                *to = self.curve.value(*a) * *b;
            }
        }
    }
}

struct GatedSlopes<'a, T, C> {
    curve: C,
    gate: Gate,
    x: &'a [T],
    dy: &'a [T],
    to: &'a mut [T],
}

impl<T: Real, C: Curve> NullaryFnOnce for GatedSlopes<'_, T, C> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let half = self.gate.half.max(1);
        let rows = self.to.chunks_exact_mut(2 * half).zip(self.x.chunks_exact(2 * half));
        for ((to, row), dy) in rows.zip(self.dy.chunks_exact(half)) {
            let (a, b) = self.gate.halves(row);
            let (first, second) = to.split_at_mut(half);
            let (da, db) = if self.gate.second { (second, first) } else { (first, second) };
            let values = a.iter().zip(b).zip(dy);
            for ((da, db), ((a, b), dy)) in da.iter_mut().zip(db).zip(values) {
                *da = self.curve.slope(*a) * *b * *dy;
                *db = self.curve.value(*a) * *dy;
            }
        }
    }
}
