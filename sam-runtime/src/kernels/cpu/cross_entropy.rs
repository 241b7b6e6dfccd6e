//! The cross entropy of rows of logits, or its mean: log-softmax, label smoothing and mean in one reading.

use candle_core::{CpuStorage, DType, Result, Shape, Tensor};
use rayon::prelude::*;

use super::exp::Exp;
use super::float::{for_float, like, output, view};
use super::softmax::{self, Normalizer, Subtract};

/// What the rows should be.
pub(crate) enum Targets {
    Labels {
        /// None is ignored.
        labels: Vec<Option<usize>>,
        /// How many are not.
        count: usize,
        smoothing: f64,
    },
    /// Probabilities, in the dtype of the logits.
    Soft(Tensor),
}

impl Targets {
    /// The mean over the rows of `logits` (n, classes), and what the backward pass needs of each.
    pub(crate) fn forward(&self, logits: &Tensor) -> Result<((CpuStorage, Shape), Vec<Normalizer>)> {
        let (_, classes) = logits.dims2()?;
        let (dtype, logits) = (logits.dtype(), view(logits));
        for_float!(dtype, "cross-entropy", |T| {
            let (costs, rows) = self.costs::<T>(logits.elements()?, classes)?;
            let mean = costs.into_iter().sum::<f64>() / self.count(&rows) as f64;
            Ok((output(vec![mean as T], ()), rows))
        })
    }

    /// The same without the mean: a cost for each row.
    pub(crate) fn forward_each(&self, logits: &Tensor) -> Result<((CpuStorage, Shape), Vec<Normalizer>)> {
        let (n, classes) = logits.dims2()?;
        let (dtype, logits) = (logits.dtype(), view(logits));
        for_float!(dtype, "cross-entropy", |T| {
            let (costs, rows) = self.costs::<T>(logits.elements()?, classes)?;
            Ok((output(costs.into_iter().map(|cost| cost as T).collect(), n), rows))
        })
    }

    /// The gradient of the logits, given that of the mean, or of the costs of all rows.
    pub(crate) fn backward(&self, logits: &Tensor, rows: &[Normalizer], dy: &Tensor) -> Result<Tensor> {
        let (_, classes) = logits.dims2()?;
        let is_mean = dy.rank() == 0;
        let dy: Vec<f64> = dy.flatten_all()?.to_dtype(DType::F64)?.to_vec1()?;
        let scales = if is_mean { vec![dy[0] / self.count(rows) as f64; rows.len()] } else { dy };
        let elements = view(logits);
        for_float!(logits.dtype(), "cross-entropy", |T| {
            like(self.gradient::<T>(elements.elements()?, rows, classes, &scales)?, logits)
        })
    }

    /// The rows that the mean is over.
    fn count(&self, rows: &[Normalizer]) -> usize {
        match self {
            Self::Labels { count, .. } => *count,
            Self::Soft(_) => rows.len(),
        }
    }

    /// The costs of the rows, and what normalizes each.
    fn costs<T: Exp>(&self, logits: &[T], classes: usize) -> Result<(Vec<f64>, Vec<Normalizer>)> {
        let rows = softmax::normalizers(logits, classes);
        let least = softmax::rows_at_a_time(classes);
        let all = || logits.par_chunks_exact(classes).zip(&rows).with_min_len(least);
        let costs = match self {
            Self::Labels { labels, smoothing, .. } => {
                let cost = |((x, row), label): ((&[T], &Normalizer), &Option<usize>)| {
                    label.map_or(0.0, |label| smoothed_cost(x, *row, label, *smoothing))
                };
                all().zip(labels).map(cost).collect()
            }
            Self::Soft(target) => {
                let target = view(target);
                let cost = |((x, row), target): ((&[T], &Normalizer), &[T])| soft_cost(x, *row, target);
                all().zip(target.elements::<T>()?.par_chunks_exact(classes)).map(cost).collect()
            }
        };
        Ok((costs, rows))
    }

    /// The gradient, each row times its scale.
    fn gradient<T: Exp>(
        &self,
        logits: &[T],
        normalizers: &[Normalizer],
        classes: usize,
        scales: &[f64],
    ) -> Result<Vec<T>> {
        let mut dx = vec![T::default(); logits.len()];
        let rows = dx.par_chunks_exact_mut(classes).zip(logits.par_chunks_exact(classes)).zip(normalizers).zip(scales);
        let rows = rows.with_min_len(softmax::rows_at_a_time(classes));
        match self {
            Self::Labels { labels, smoothing, .. } => {
                let even = smoothing / classes as f64;
                rows.zip(labels).for_each(|((((dx, x), row), scale), label)| {
                    let Some(label) = *label else { return };
                    softmax::scaled(dx, x, *row, *scale, Subtract::Even(even * scale));
                    // In f64: the difference may be small.
                    dx[label] = T::narrow((row.probability(x[label].wide()) - (1.0 - smoothing + even)) * scale);
                });
            }
            Self::Soft(target) => {
                let target = view(target);
                let targets = target.elements::<T>()?.par_chunks_exact(classes);
                rows.zip(targets).for_each(|((((dx, x), row), scale), target)| {
                    let all: f64 = target.iter().map(|target| target.wide()).sum();
                    softmax::scaled(dx, x, *row, scale * all, Subtract::Each(target, *scale));
                });
            }
        }
        Ok(dx)
    }
}

fn smoothed_cost<T: Exp>(x: &[T], row: Normalizer, label: usize, smoothing: f64) -> f64 {
    let cost = row.cost(x[label].wide());
    if smoothing == 0.0 {
        return cost;
    }
    let mean = x.iter().map(|x| row.cost(x.wide())).sum::<f64>() / x.len() as f64;
    // Without 0 · ∞.
    if smoothing == 1.0 { mean } else { (1.0 - smoothing) * cost + smoothing * mean }
}

fn soft_cost<T: Exp>(x: &[T], row: Normalizer, target: &[T]) -> f64 {
    // A class of probability 0 costs nothing, also where its logit is -∞.
    let cost = |(x, target): (&T, &T)| match target.wide() {
        0.0 => 0.0,
        target => target * row.cost(x.wide()),
    };
    x.iter().zip(target).map(cost).sum()
}
