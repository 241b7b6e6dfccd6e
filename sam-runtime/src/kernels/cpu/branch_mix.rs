//! Sums of branches with a weight for each sample: Shake-Shake and ShakeDrop.

use candle_core::{CpuStorage, Result, Shape, Tensor};
use rayon::prelude::*;

use super::float::{Float, for_float, like, output, view, zeros};

/// Σ f x over some tensors x, with a weight f for each tensor and sample.
pub(crate) fn mix(args: &[Tensor], weights: &[Vec<f32>]) -> Result<(CpuStorage, Shape)> {
    let sample = args[0].elem_count() / weights[0].len();
    let views: Vec<_> = args.iter().map(view).collect();
    for_float!(args[0].dtype(), "shake", |T| {
        let mut y = zeros::<T>(args[0].elem_count());
        for (weights, x) in weights.iter().zip(&views) {
            let rows = y.par_chunks_mut(sample).zip(x.elements::<T>()?.par_chunks(sample)).zip(weights);
            rows.for_each(|((y, x), &weight)| {
                let weight = T::narrow(weight.into());
                y.iter_mut().zip(x).for_each(|(y, x)| *y += *x * weight);
            });
        }
        Ok(output(y, args[0].shape()))
    })
}

/// The gradients of the branches, with weights of their own.
pub(crate) fn mix_back(args: &[Tensor], weights: &[Vec<f32>], dy: &Tensor) -> Result<Vec<Option<Tensor>>> {
    let sample = dy.elem_count() / weights[0].len();
    let dy = view(dy);
    for_float!(args[0].dtype(), "shake", |T| {
        let dy = dy.elements::<T>()?;
        let gradient = |(weights, arg): (&Vec<f32>, &Tensor)| {
            let mut dx = zeros::<T>(dy.len());
            let rows = dx.par_chunks_mut(sample).zip(dy.par_chunks(sample)).zip(weights);
            rows.for_each(|((dx, dy), &weight)| {
                let weight = T::narrow(weight.into());
                dx.iter_mut().zip(dy).for_each(|(dx, dy)| *dx = *dy * weight);
            });
            like(dx, arg).map(Some)
        };
        weights.iter().zip(args).map(gradient).collect()
    })
}
