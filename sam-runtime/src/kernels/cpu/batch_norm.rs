//! Batch normalization on the CPU, with what follows it in a residual network: the sum with a shortcut, and ReLU.
//!
//! Each thread takes a channel at a time, which stays in its cache between the first reading, for the statistics, and
//! the second: memory is read once and written once. Sums are taken in f64, in [`LANES`] lanes, plane after plane:
//! results are bitwise identical for any number of threads. Backward keeps the mean and 1/σ of each channel, and recomputes the rest.
//!
//! What was tried, 64 channels of 128 images of 32x32, GiB/s of the bytes that have to move; a copy gives 20 to 28:
//!
//! | what | predicted | forward, backward |
//! | --- | --- | --- |
//! | sums by a closure that returns two | as fast as memory | 5.9, 6.1: pairs of scalars, no vectors |
//! | the output cleared by all threads, backward in two readings | a fifth | 6.8, 6.0 |
//! | one sum after the other | twice | 8.3, 6.4 |

#![allow(clippy::inline_always, reason = "a loop has the vector width of the function that it is inlined into")]

use pulp::NullaryFnOnce;
use rayon::prelude::*;

use super::ARCH;
use super::float::{Float, zeros};
use crate::kernels::shapes::BatchNormShape;

/// Partial sums that a channel is added up in.
const LANES: usize = 8;

/// A channel, image after image.
type Planes<'a, T> = Vec<&'a mut [T]>;

/// Mean and variance of each channel.
#[derive(Clone, Debug)]
pub(crate) struct Statistics {
    pub(crate) mean: Vec<f64>,
    pub(crate) var: Vec<f64>,
}

/// y = relu(γ (x - mean) / σ + β + residual), and the statistics of the batch where none are given.
pub(crate) fn forward<T: Float>(
    norm: &BatchNormShape,
    x: &[T],
    residual: Option<&[T]>,
    affine: &[T],
    fixed: Option<&Statistics>,
) -> (Vec<T>, Statistics) {
    let mut y = zeros(x.len());
    let (weight, bias) = affine.split_at(norm.channels);
    let forward = |(channel, y): (usize, Planes<'_, T>)| {
        let fixed = fixed.map(|fixed| (fixed.mean[channel], fixed.var[channel]));
        let (weight, bias) = (weight[channel], bias[channel]);
        ARCH.dispatch(Forward { norm, channel, x, residual, weight, bias, fixed, y })
    };
    let (mean, var) = norm.split(&mut y).into_par_iter().enumerate().map(forward).unzip();
    (y, Statistics { mean, var })
}

/// What the gradient of y gives.
pub(crate) struct Gradients<T> {
    pub(crate) x: Vec<T>,
    /// Without ReLU it is that of y.
    pub(crate) residual: Option<Vec<T>>,
    /// Of γ, and then of β.
    pub(crate) affine: Vec<T>,
}

/// The gradients; `fixed` where the statistics were not those of the batch.
pub(crate) fn backward<T: Float>(
    norm: &BatchNormShape,
    [x, y, dy]: [&[T]; 3],
    affine: &[T],
    statistics: &Statistics,
    fixed: bool,
    residual: bool,
) -> Gradients<T> {
    let mut dx = zeros(x.len());
    let mut dr = zeros(if residual { x.len() } else { 0 });
    let backward = |(channel, (dx, dr)): (usize, (Planes<'_, T>, Planes<'_, T>))| {
        let (mean, var) = (statistics.mean[channel], statistics.var[channel]);
        ARCH.dispatch(Backward { norm, channel, x, y, dy, weight: affine[channel], mean, var, fixed, dx, dr })
    };
    let channels = norm.split(&mut dx).into_par_iter().zip(norm.split(&mut dr));
    let (mut weight, bias): (Vec<T>, Vec<T>) = channels.enumerate().map(backward).unzip();
    weight.extend(bias);
    Gradients { x: dx, residual: residual.then_some(dr), affine: weight }
}

impl BatchNormShape {
    /// The planes of each channel, for threads to share out.
    fn split<'a, T>(&self, values: &'a mut [T]) -> Vec<Planes<'a, T>> {
        let mut channels: Vec<Planes<'_, T>> = (0..self.channels).map(|_| Vec::new()).collect();
        for (i, plane) in values.chunks_exact_mut(self.plane).enumerate() {
            channels[i % self.channels].push(plane);
        }
        channels
    }

    #[inline(always)]
    fn planes<'a, T>(&self, values: &'a [T], channel: usize) -> impl Iterator<Item = &'a [T]> + use<'a, T> {
        values.chunks_exact(self.plane).skip(channel).step_by(self.channels)
    }
}

struct Forward<'a, T> {
    norm: &'a BatchNormShape,
    channel: usize,
    x: &'a [T],
    residual: Option<&'a [T]>,
    weight: T,
    bias: T,
    fixed: Option<(f64, f64)>,
    y: Planes<'a, T>,
}

impl<T: Float> NullaryFnOnce for Forward<'_, T> {
    type Output = (f64, f64);

    #[inline(always)]
    fn call(self) -> (f64, f64) {
        let Self { norm, channel, x, residual, weight, bias, fixed, y } = self;
        let (mean, var) = match fixed {
            Some(fixed) => fixed,
            None => moments(norm, x, channel, y.len() * norm.plane),
        };
        let scale = T::narrow(weight.wide() / (var + norm.eps).sqrt());
        let center = T::narrow(mean);
        let zero = T::default();
        let clamp = |y: T| if norm.relu && y < zero { zero } else { y };
        match residual {
            None => {
                for (y, x) in y.into_iter().zip(norm.planes(x, channel)) {
                    y.iter_mut().zip(x).for_each(|(y, x)| *y = clamp((*x - center) * scale + bias));
                }
            }
            Some(residual) => {
                let inputs = norm.planes(x, channel).zip(norm.planes(residual, channel));
                for (y, (x, residual)) in y.into_iter().zip(inputs) {
                    let inputs = x.iter().zip(residual);
                    y.iter_mut().zip(inputs).for_each(|(y, (x, r))| *y = clamp((*x - center) * scale + bias + *r));
                }
            }
        }
        (mean, var)
    }
}

/// Mean and variance. What is added up is the distance from the first element, or a large mean would swallow the rest.
#[inline(always)]
fn moments<T: Float>(norm: &BatchNormShape, x: &[T], channel: usize, count: usize) -> (f64, f64) {
    let origin = if norm.centered { x[channel * norm.plane].wide() } else { 0.0 };
    let [sum, squares] = sums([x; 3].map(|x| norm.planes(x, channel)), origin, |x, _| x.wide() - origin);
    let (mean, square) = (sum / count as f64, squares / count as f64);
    if norm.centered { (origin + mean, (square - mean * mean).max(0.0)) } else { (0.0, square) }
}

/// Σ f(a, b) and Σ f(a, b) (x - origin).
#[inline(always)]
fn sums<'a, T: Float>([x, a, b]: [impl Iterator<Item = &'a [T]>; 3], origin: f64, f: impl Fn(T, T) -> f64) -> [f64; 2] {
    let (mut first, mut second) = ([0.0; LANES], [0.0; LANES]);
    for (x, (a, b)) in x.zip(a.zip(b)) {
        let [(x, x_rest), (a, a_rest), (b, b_rest)] = [x.as_chunks::<LANES>(), a.as_chunks(), b.as_chunks()];
        for (x, (a, b)) in x.iter().zip(a.iter().zip(b)) {
            // One thing at a time, or the compiler makes pairs of the two sums and not vectors of the lanes.
            let (mut value, mut distance) = ([0.0; LANES], [0.0; LANES]);
            for i in 0..LANES {
                value[i] = f(a[i], b[i]);
            }
            for i in 0..LANES {
                distance[i] = x[i].wide() - origin;
            }
            for i in 0..LANES {
                first[i] += value[i];
            }
            for i in 0..LANES {
                second[i] += value[i] * distance[i];
            }
        }
        for (i, (x, (a, b))) in x_rest.iter().zip(a_rest.iter().zip(b_rest)).enumerate() {
            let value = f(*a, *b);
            first[i] += value;
            second[i] += value * (x.wide() - origin);
        }
    }
    [first.iter().sum(), second.iter().sum()]
}

struct Backward<'a, T> {
    norm: &'a BatchNormShape,
    channel: usize,
    x: &'a [T],
    y: &'a [T],
    dy: &'a [T],
    weight: T,
    mean: f64,
    var: f64,
    fixed: bool,
    dx: Planes<'a, T>,
    dr: Planes<'a, T>,
}

impl<T: Float> NullaryFnOnce for Backward<'_, T> {
    type Output = (T, T);

    #[inline(always)]
    fn call(self) -> (T, T) {
        let Self { norm, channel, x, y, dy, weight, mean, var, fixed, dx, dr } = self;
        let (zero, relu) = (T::default(), norm.relu);
        let (count, inverse) = ((dx.len() * norm.plane) as f64, (var + norm.eps).sqrt().recip());
        let before_relu = |dy: T, y: T| if !relu || y > zero { dy } else { zero };
        let planes = [x, dy, y].map(|values| norm.planes(values, channel));
        let [sum, moment] = sums(planes, mean, |dy, y| before_relu(dy, y).wide());
        // dx = γ/σ (dy - mean of dy - (x - mean) · mean of dy (x - mean) / σ²)
        let scale = weight.wide() * inverse;
        let shift = if fixed || !norm.centered { 0.0 } else { scale * sum / count };
        let slope = if fixed { 0.0 } else { scale * inverse * inverse * moment / count };
        let (center, scale, shift, slope) = (T::narrow(mean), T::narrow(scale), T::narrow(shift), T::narrow(slope));
        let inputs = norm.planes(x, channel).zip(norm.planes(dy, channel).zip(norm.planes(y, channel)));
        for (dx, (x, (dy, y))) in dx.into_iter().zip(inputs) {
            let inputs = x.iter().zip(dy.iter().zip(y));
            dx.iter_mut().zip(inputs).for_each(|(dx, (x, (dy, y)))| {
                *dx = before_relu(*dy, *y) * scale - shift - (*x - center) * slope;
            });
        }
        let inputs = norm.planes(dy, channel).zip(norm.planes(y, channel));
        for (dr, (dy, y)) in dr.into_iter().zip(inputs) {
            dr.iter_mut().zip(dy.iter().zip(y)).for_each(|(dr, (dy, y))| *dr = before_relu(*dy, *y));
        }
        (T::narrow(moment * inverse), T::narrow(sum))
    }
}
