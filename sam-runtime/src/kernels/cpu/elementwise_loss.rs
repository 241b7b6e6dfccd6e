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

impl Loss {
    #[inline(always)]
    fn value<T: Real>(self, x: T, t: T) -> T {
        match self {
            Self::Square => (x - t) * (x - t),
            Self::LogitEntropy => {
                // Without 0 · ∞: a prediction that is certain and right has no cost.
                let wrong = if x < T::default() { t } else { T::one() - t };
                let line = if wrong == T::default() { wrong } else { wrong * x.abs() };
                (T::default() - x.abs()).exp().ln_1p() + line
            }
            Self::Huber(delta) => {
                let (size, delta) = ((x - t).abs(), T::narrow(delta));
                let line = delta * (size - T::narrow(0.5) * delta);
                if size > delta { line } else { T::narrow(0.5) * size * size }
            }
        }
    }

    /// The derivatives by x and by t.
    #[inline(always)]
    fn slopes<T: Real>(self, x: T, t: T) -> [T; 2] {
        let by_x = match self {
            Self::Square => T::narrow(2.0) * (x - t),
            Self::LogitEntropy => {
                let (right, wrong) = (logistic(x)[0], logistic(T::default() - x)[0]);
                return [(T::one() - t) * right - t * wrong, T::default() - x];
            }
            Self::Huber(delta) => {
                let (d, delta) = (x - t, T::narrow(delta));
                let lower = if d < T::default() - delta { T::default() - delta } else { d };
                if lower > delta { delta } else { lower }
            }
        };
        [by_x, T::default() - by_x]
    }

    /// The mean loss.
    pub(crate) fn mean(self, x: &Tensor, target: &Tensor) -> Result<(CpuStorage, Shape)> {
        let (elements, target) = (view(x), view(target));
        for_float!(x.dtype(), "loss", |T| {
            let (x_all, target) = (elements.elements::<T>()?, target.elements::<T>()?);
            let part = |(x, t): (&[T], &[T])| match self {
                Self::Square => ARCH.dispatch(Sum { loss: |x, t| Self::Square.value(x, t), x, t }),
                Self::LogitEntropy => ARCH.dispatch(Sum { loss: |x, t| Self::LogitEntropy.value(x, t), x, t }),
                Self::Huber(delta) => ARCH.dispatch(Sum { loss: move |x, t| Self::Huber(delta).value(x, t), x, t }),
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
            let dx = blocks(x_all.len(), |range, to| {
                let (x, t) = (&x_all[range.clone()], &target[range]);
                match self {
                    Self::Square => {
                        ARCH.dispatch(Slopes { slope: |x, t| Self::Square.slopes(x, t)[which], x, t, scale, to });
                    }
                    Self::LogitEntropy => {
                        ARCH.dispatch(Slopes { slope: |x, t| Self::LogitEntropy.slopes(x, t)[which], x, t, scale, to });
                    }
                    Self::Huber(delta) => {
                        let slope = move |x, t| Self::Huber(delta).slopes(x, t)[which];
                        ARCH.dispatch(Slopes { slope, x, t, scale, to });
                    }
                }
            });
            like(dx, x)
        })
    }
}

struct Sum<'a, T, F> {
    loss: F,
    x: &'a [T],
    t: &'a [T],
}

impl<T: Real, F: Fn(T, T) -> T> NullaryFnOnce for Sum<'_, T, F> {
    type Output = f64;

    #[inline(always)]
    fn call(self) -> f64 {
        let mut sums = [0.0; LANES];
        let ((x, x_rest), (t, t_rest)) = (self.x.as_chunks::<LANES>(), self.t.as_chunks::<LANES>());
        for (x, t) in x.iter().zip(t) {
            sums.iter_mut().zip(x.iter().zip(t)).for_each(|(sum, (x, t))| *sum += (self.loss)(*x, *t).wide());
        }
        sums.iter_mut().zip(x_rest.iter().zip(t_rest)).for_each(|(sum, (x, t))| *sum += (self.loss)(*x, *t).wide());
        sums.iter().sum()
    }
}

struct Slopes<'a, T, F> {
    slope: F,
    x: &'a [T],
    t: &'a [T],
    scale: T,
    to: &'a mut [T],
}

impl<T: Real, F: Fn(T, T) -> T> NullaryFnOnce for Slopes<'_, T, F> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let pairs = self.x.iter().zip(self.t);
        self.to.iter_mut().zip(pairs).for_each(|(to, (x, t))| *to = (self.slope)(*x, *t) * self.scale);
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
