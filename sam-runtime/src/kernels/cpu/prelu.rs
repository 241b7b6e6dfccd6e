//! x, and negative numbers times a slope of their channel.

use candle_core::{CpuStorage, Result, Shape, Tensor};
use rayon::prelude::*;

use super::activation::blocks;
use super::float::{Float, for_float, like, output, view};

/// Elements that are added up at a time.
const PART: usize = 1 << 12;

/// x as (.., channels, plane), and slopes of the channels.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Channels {
    pub(crate) channels: usize,
    pub(crate) plane: usize,
}

impl Channels {
    fn channel(self, index: usize) -> usize {
        index / self.plane % self.channels
    }

    /// Calls `f` with the slope of each element of a range.
    fn each<T: Float>(self, slopes: &[T], first: usize, n: usize, mut f: impl FnMut(usize, T)) {
        let mut i = 0;
        while i < n {
            let slope = slopes[self.channel(first + i)];
            let end = n.min(i + self.plane - (first + i) % self.plane);
            (i..end).for_each(|i| f(i, slope));
            i = end;
        }
    }

    pub(crate) fn prelu(self, x: &Tensor, slopes: &Tensor) -> Result<(CpuStorage, Shape)> {
        let (elements, slopes) = (view(x), view(slopes));
        for_float!(x.dtype(), "prelu", |T| {
            let (x_all, slopes) = (elements.elements::<T>()?, slopes.elements::<T>()?);
            let y = blocks(x_all.len(), &|range, to| {
                let (first, x) = (range.start, &x_all[range]);
                self.each(slopes, first, x.len(), |i, slope| to[i] = if x[i] > 0.0 as T { x[i] } else { slope * x[i] });
            });
            Ok(output(y, x.shape()))
        })
    }

    /// The gradient of x.
    pub(crate) fn prelu_back(self, x: &Tensor, slopes: &Tensor, dy: &Tensor) -> Result<Tensor> {
        let (elements, slopes, gradient) = (view(x), view(slopes), view(dy));
        for_float!(x.dtype(), "prelu", |T| {
            let (x_all, slopes, dy) = (elements.elements::<T>()?, slopes.elements::<T>()?, gradient.elements::<T>()?);
            let dx = blocks(x_all.len(), &|range, to| {
                let (first, x, dy) = (range.start, &x_all[range.clone()], &dy[range]);
                self.each(slopes, first, x.len(), |i, slope| {
                    to[i] = if x[i] > 0.0 as T { dy[i] } else { slope * dy[i] }
                });
            });
            like(dx, x)
        })
    }

    /// The gradient of the slopes: Σ x dy over the negative x of each channel, in f64.
    pub(crate) fn slopes_back(self, x: &Tensor, slopes: &Tensor, dy: &Tensor) -> Result<Tensor> {
        let (elements, gradient) = (view(x), view(dy));
        for_float!(x.dtype(), "prelu", |T| {
            let (x_all, dy) = (elements.elements::<T>()?, gradient.elements::<T>()?);
            let sums = if self.plane == 1 { self.sums_across(x_all, dy) } else { self.sums_of_planes(x_all, dy) };
            like(sums.into_iter().map(|sum| sum as T).collect(), slopes)
        })
    }

    fn sums_of_planes<T: Float>(self, x: &[T], dy: &[T]) -> Vec<f64> {
        let part = |(x, dy): (&[T], &[T])| x.iter().zip(dy).map(|(x, dy)| cost(*x, *dy)).sum::<f64>();
        let plane = |(x, dy): (&[T], &[T])| -> f64 {
            x.par_chunks(PART).zip(dy.par_chunks(PART)).map(part).collect::<Vec<_>>().into_iter().sum()
        };
        let planes: Vec<f64> = x.par_chunks(self.plane).zip(dy.par_chunks(self.plane)).map(plane).collect();
        let mut sums = vec![0.0; self.channels];
        planes.into_iter().enumerate().for_each(|(i, plane)| sums[i % self.channels] += plane);
        sums
    }

    /// Rows are short, so sums run down the columns, of some rows at a time.
    fn sums_across<T: Float>(self, x: &[T], dy: &[T]) -> Vec<f64> {
        let size = PART.div_ceil(self.channels) * self.channels;
        let part = |(x, dy): (&[T], &[T])| {
            let mut sums = vec![0.0; self.channels];
            for (x, dy) in x.chunks_exact(self.channels).zip(dy.chunks_exact(self.channels)) {
                sums.iter_mut().zip(x.iter().zip(dy)).for_each(|(sum, (x, dy))| *sum += cost(*x, *dy));
            }
            sums
        };
        let parts: Vec<Vec<f64>> = x.par_chunks(size).zip(dy.par_chunks(size)).map(part).collect();
        let mut sums = vec![0.0; self.channels];
        for part in parts {
            sums.iter_mut().zip(part).for_each(|(sum, part)| *sum += part);
        }
        sums
    }
}

fn cost<T: Float>(x: T, dy: T) -> f64 {
    if x > T::default() { 0.0 } else { x.wide() * dy.wide() }
}
