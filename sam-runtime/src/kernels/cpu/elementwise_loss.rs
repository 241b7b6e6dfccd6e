//! The mean of a loss over all elements, with one reading of them, and its gradient.
//!
//! Losses are computed in the type of the elements, and added up in f64: lanes of a block, and block after block.

#![allow(clippy::inline_always, reason = "a loop has the vector width of the function that it is inlined into")]

use candle_core::{CpuStorage, DType, Result, Shape, Tensor};
use pulp::NullaryFnOnce;
use rayon::prelude::*;

use super::ARCH;
use super::activation::blocks;
use super::curves::logistic;
use super::float::{Float, for_float, like, output, view, zeros};
use super::real::Real;
use crate::kernels::elementwise_loss::Loss;

/// Elements whose losses are added up at a time.
const PART: usize = 1 << 12;

const LANES: usize = 16;

/// The loss of an element, and its derivatives by x and by t.
trait Cost: Copy {
    fn value<T: Real>(self, x: T, t: T) -> T;
    fn slopes<T: Real>(self, x: T, t: T) -> [T; 2];
}

#[derive(Clone, Copy)]
struct Square;

impl Cost for Square {
    #[inline(always)]
    fn value<T: Real>(self, x: T, t: T) -> T {
        (x - t) * (x - t)
    }

    #[inline(always)]
    fn slopes<T: Real>(self, x: T, t: T) -> [T; 2] {
        [T::narrow(2.0) * (x - t), T::narrow(2.0) * (t - x)]
    }
}

#[derive(Clone, Copy)]
struct LogitEntropy;

impl Cost for LogitEntropy {
    #[inline(always)]
    fn value<T: Real>(self, x: T, t: T) -> T {
        // Without 0 · ∞: a prediction that is certain and right has no cost.
        let wrong = if x < T::default() { t } else { T::one() - t };
        let line = if wrong == T::default() { wrong } else { wrong * x.abs() };
        (T::default() - x.abs()).exp().ln_1p() + line
    }

    #[inline(always)]
    fn slopes<T: Real>(self, x: T, t: T) -> [T; 2] {
        let (right, wrong) = (logistic(x)[0], logistic(T::default() - x)[0]);
        [(T::one() - t) * right - t * wrong, T::default() - x]
    }
}

#[derive(Clone, Copy)]
struct Huber(f64);

impl Cost for Huber {
    #[inline(always)]
    fn value<T: Real>(self, x: T, t: T) -> T {
        let (size, delta) = ((x - t).abs(), T::narrow(self.0));
        let line = delta * (size - T::narrow(0.5) * delta);
        if size > delta { line } else { T::narrow(0.5) * size * size }
    }

    #[inline(always)]
    fn slopes<T: Real>(self, x: T, t: T) -> [T; 2] {
        let (d, delta) = (x - t, T::narrow(self.0));
        let lower = if d < T::default() - delta { T::default() - delta } else { d };
        let slope = if lower > delta { delta } else { lower };
        [slope, T::default() - slope]
    }
}

impl Loss {
    /// The mean loss.
    pub(crate) fn mean(self, x: &Tensor, target: &Tensor) -> Result<(CpuStorage, Shape)> {
        let (elements, target) = (view(x), view(target));
        for_float!(x.dtype(), "loss", |T| {
            let (x_all, target) = (elements.elements::<T>()?, target.elements::<T>()?);
            let part = |(x, t): (&[T], &[T])| match self {
                Self::Square => ARCH.dispatch(Sum { cost: Square, x, t }),
                Self::LogitEntropy => ARCH.dispatch(Sum { cost: LogitEntropy, x, t }),
                Self::Huber(delta) => ARCH.dispatch(Sum { cost: Huber(delta), x, t }),
            };
            let parts: Vec<f64> = x_all.par_chunks(PART).zip(target.par_chunks(PART)).map(part).collect();
            Ok(output(vec![(parts.into_iter().sum::<f64>() / x_all.len() as f64) as T], ()))
        })
    }

    /// The gradient of x, or of the target.
    pub(crate) fn mean_back(self, x: &Tensor, target: &Tensor, dy: &Tensor, of_target: bool) -> Result<Tensor> {
        let scale = dy.to_dtype(DType::F64)?.to_scalar::<f64>()? / x.elem_count() as f64;
        let (elements, target) = (view(x), view(target));
        let which = usize::from(of_target);
        for_float!(x.dtype(), "loss", |T| {
            let (x_all, target, scale) = (elements.elements::<T>()?, target.elements::<T>()?, scale as T);
            let dx = blocks(x_all.len(), &|range, to| {
                let (x, t) = (&x_all[range.clone()], &target[range]);
                match self {
                    Self::Square => ARCH.dispatch(Slopes { cost: Square, which, x, t, scale, to }),
                    Self::LogitEntropy => ARCH.dispatch(Slopes { cost: LogitEntropy, which, x, t, scale, to }),
                    Self::Huber(delta) => ARCH.dispatch(Slopes { cost: Huber(delta), which, x, t, scale, to }),
                }
            });
            like(dx, x)
        })
    }
}

// The loops have no closures: one that is not inlined is computed without vectors, element by element.
struct Sum<'a, T, C> {
    cost: C,
    x: &'a [T],
    t: &'a [T],
}

impl<T: Real, C: Cost> NullaryFnOnce for Sum<'_, T, C> {
    type Output = f64;

    #[inline(always)]
    fn call(self) -> f64 {
        let mut sums = [0.0; LANES];
        let ((x, x_rest), (t, t_rest)) = (self.x.as_chunks::<LANES>(), self.t.as_chunks::<LANES>());
        for (x, t) in x.iter().zip(t) {
            for (sum, (x, t)) in sums.iter_mut().zip(x.iter().zip(t)) {
                *sum += self.cost.value(*x, *t).wide();
            }
        }
        for (sum, (x, t)) in sums.iter_mut().zip(x_rest.iter().zip(t_rest)) {
            *sum += self.cost.value(*x, *t).wide();
        }
        sums.iter().sum()
    }
}

struct Slopes<'a, T, C> {
    cost: C,
    which: usize,
    x: &'a [T],
    t: &'a [T],
    scale: T,
    to: &'a mut [T],
}

impl<T: Real, C: Cost> NullaryFnOnce for Slopes<'_, T, C> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let pairs = self.x.iter().zip(self.t);
        let elements = self.to.iter_mut().zip(pairs);
        if self.which == 0 {
            for (to, (x, t)) in elements {
                *to = self.cost.slopes(*x, *t)[0] * self.scale;
            }
        } else {
            for (to, (x, t)) in elements {
                *to = self.cost.slopes(*x, *t)[1] * self.scale;
            }
        }
    }
}

/// -Σ x[i, label i] / n of rows x, where a label [`NONE`](crate::kernels::indices::NONE) adds nothing.
pub(crate) fn nll(x: &Tensor, labels: &[u32]) -> Result<(CpuStorage, Shape)> {
    let (n, classes) = x.dims2()?;
    let elements = view(x);
    for_float!(x.dtype(), "nll", |T| {
        let rows = elements.elements::<T>()?.chunks_exact(classes.max(1));
        let sum: f64 = rows.zip(labels).filter_map(|(row, label)| row.get(*label as usize)).map(|x| x.wide()).sum();
        Ok(output(vec![(-sum / n as f64) as T], ()))
    })
}

/// The gradient of the rows.
pub(crate) fn nll_back(x: &Tensor, labels: &[u32], dy: &Tensor) -> Result<Tensor> {
    let (n, classes) = x.dims2()?;
    let slope = -dy.to_dtype(DType::F64)?.to_scalar::<f64>()? / n as f64;
    for_float!(x.dtype(), "nll", |T| {
        let mut dx = zeros::<T>(n * classes);
        for (row, label) in dx.chunks_exact_mut(classes.max(1)).zip(labels) {
            if let Some(to) = row.get_mut(*label as usize) {
                *to = slope as T;
            }
        }
        like(dx, x)
    })
}
