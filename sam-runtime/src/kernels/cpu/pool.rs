//! Pooling, forward and backward, also where windows overlap.

use candle_core::{CpuStorage, Result, Shape, Tensor};
use rayon::prelude::*;

use super::float::{Float, for_float, like, output, view, zeros};
use crate::kernels::shapes::PoolShape;

/// From (n, channels, height, width) to (n, channels, rows, columns).
pub(crate) fn pool(pool: &PoolShape, x: &Tensor) -> Result<(CpuStorage, Shape)> {
    let (n, channels, height, width) = x.dims4()?;
    let [rows, columns] = pool.output;
    let (dtype, x) = (x.dtype(), view(x));
    for_float!(dtype, "pool2d", |T| {
        let mut y = zeros::<T>(n * channels * rows * columns);
        y.par_chunks_mut(rows * columns).zip(x.elements::<T>()?.par_chunks(height * width)).for_each(|(y, x)| {
            pool.windows(|output, indices| {
                y[output] = if pool.max {
                    x[largest(x, indices)]
                } else {
                    T::narrow(indices.map(|index| x[index].wide()).sum::<f64>() * pool.share())
                };
            });
        });
        Ok(output(y, (n, channels, rows, columns)))
    })
}

/// The gradient of x.
pub(crate) fn pool_back(pool: &PoolShape, x: &Tensor, dy: &Tensor) -> Result<Tensor> {
    let ([height, width], [rows, columns]) = (pool.input, pool.output);
    let (x_view, dy) = (view(x), view(dy));
    for_float!(x.dtype(), "pool2d", |T| {
        let mut dx = zeros::<T>(x.elem_count());
        let dy = dy.elements::<T>()?.par_chunks(rows * columns);
        let planes = x_view.elements::<T>()?.par_chunks(height * width).zip(dy);
        dx.par_chunks_mut(height * width).zip(planes).for_each(|(dx, (x, dy))| {
            let share = T::narrow(pool.share());
            pool.windows(|output, indices| {
                if pool.max {
                    dx[largest(x, indices)] += dy[output];
                } else {
                    indices.for_each(|index| dx[index] += dy[output] * share);
                }
            });
        });
        like(dx, x)
    })
}

/// The first of the largest. NaN is larger than any number.
fn largest<T: Float>(x: &[T], indices: &mut dyn Iterator<Item = usize>) -> usize {
    let first = indices.next().unwrap_or_default();
    indices.fold(first, |best, index| if x[index] <= x[best] || x[best].wide().is_nan() { best } else { index })
}

/// The mean of each channel, whose images have `plane` pixels.
pub(crate) fn mean(x: &Tensor, plane: usize) -> Result<(CpuStorage, Shape)> {
    let (n, channels, _, _) = x.dims4()?;
    let (dtype, x) = (x.dtype(), view(x));
    for_float!(dtype, "global-avg-pool2d", |T| {
        let mean = |x: &[T]| T::narrow(x.iter().map(|x| x.wide()).sum::<f64>() / plane as f64);
        let y: Vec<T> = x.elements::<T>()?.par_chunks(plane).map(mean).collect();
        Ok(output(y, (n, channels)))
    })
}

/// The gradient of x.
pub(crate) fn mean_back(x: &Tensor, plane: usize, dy: &Tensor) -> Result<Tensor> {
    let dy = view(dy);
    for_float!(x.dtype(), "global-avg-pool2d", |T| {
        let mut dx = zeros::<T>(x.elem_count());
        let share = T::narrow(1.0 / plane as f64);
        dx.par_chunks_mut(plane).zip(dy.elements::<T>()?).for_each(|(dx, dy)| dx.fill(*dy * share));
        like(dx, x)
    })
}
