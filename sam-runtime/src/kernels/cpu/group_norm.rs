//! Group normalization on the CPU: rows of some channels of an image, one factor and one shift for each channel.
//!
//! Each thread takes a row at a time. Sums are those of layer normalization, channel by channel, and over the channels and images
//! in f64 and in their order.

#![allow(clippy::inline_always, reason = "a loop has the vector width of the function that it is inlined into")]

use candle_core::{CpuStorage, Result, Shape, Tensor};
use pulp::NullaryFnOnce;
use rayon::prelude::*;

use super::ARCH;
use super::float::{Float, for_float, like, output, view, zeros};
use super::lanes::{LANES, two_run_sums};
use super::layer_norm::{Coefficients, Moments};
use crate::kernels::shapes::GroupNormShape;

/// Elements that one thread takes at least.
const SHARE: usize = 1 << 14;

impl GroupNormShape {
    /// Channels of a group.
    fn group(&self) -> usize {
        self.channels / self.groups.max(1)
    }

    /// Elements of a row, at least one.
    fn row(&self) -> usize {
        (self.group() * self.plane).max(1)
    }

    fn rows_at_a_time(&self) -> usize {
        SHARE.div_ceil(self.row())
    }

    /// Those of the channels of row i.
    #[inline(always)]
    fn of_row<'a, T>(&self, affine: &'a [T], row: usize) -> &'a [T] {
        &affine[row % self.groups * self.group()..][..self.group()]
    }
}

/// γ (x - mean) / σ + β, and what the backward pass needs of each group of each image.
pub(crate) fn forward(
    norm: GroupNormShape,
    x: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
) -> Result<((CpuStorage, Shape), Vec<Moments>)> {
    let (x_view, weight, bias) = (view(x), view(weight), view(bias));
    for_float!(x.dtype(), "group-norm", |T| {
        let (x_values, weight, bias) = (x_view.elements::<T>()?, weight.elements::<T>()?, bias.elements::<T>()?);
        let mut y = zeros(x_values.len());
        let rows = y.par_chunks_mut(norm.row()).zip(x_values.par_chunks(norm.row())).enumerate();
        let forward = |(row, (y, x))| {
            let (weight, bias) = (norm.of_row(weight, row), norm.of_row(bias, row));
            ARCH.dispatch(Forward { norm, x, weight, bias, y })
        };
        let moments = rows.with_min_len(norm.rows_at_a_time()).map(forward).collect();
        Ok((output(y, x.shape()), moments))
    })
}

struct Forward<'a, T> {
    norm: GroupNormShape,
    x: &'a [T],
    weight: &'a [T],
    bias: &'a [T],
    y: &'a mut [T],
}

impl<T: Float> NullaryFnOnce for Forward<'_, T> {
    type Output = Moments;

    #[inline(always)]
    fn call(self) -> Moments {
        let Self { norm: GroupNormShape { plane, eps, .. }, x, weight, bias, y } = self;
        let moments = Moments::of(x, eps, true);
        let center = moments.center::<T>();
        let planes = y.chunks_exact_mut(plane).zip(x.chunks_exact(plane));
        for ((y, x), (weight, bias)) in planes.zip(weight.iter().zip(bias)) {
            let (scale, bias) = (T::narrow(weight.wide() * moments.inverse), *bias);
            y.iter_mut().zip(x).for_each(|(y, x)| *y = center.of(*x) * scale + bias);
        }
        moments
    }
}

/// The wanted gradients of x, γ and β.
pub(crate) fn backward(
    norm: GroupNormShape,
    args: &[Tensor],
    moments: &[Moments],
    wanted: &[bool],
    dy: &Tensor,
) -> Result<Vec<Option<Tensor>>> {
    let [x, weight, bias] = args else { candle_core::bail!("expected an input, a weight and a bias") };
    let (x_view, weight_view, dy) = (view(x), view(weight), view(dy));
    for_float!(x.dtype(), "group-norm", |T| {
        let (x_values, weights, dy) = (x_view.elements::<T>()?, weight_view.elements::<T>()?, dy.elements::<T>()?);
        let mut dx: Vec<T> = zeros(x_values.len());
        let rows = dx.par_chunks_mut(norm.row()).zip(x_values.par_chunks(norm.row())).zip(dy.par_chunks(norm.row()));
        let rows = rows.zip(moments).enumerate().with_min_len(norm.rows_at_a_time());
        let parts = rows.map(|(row, (((dx, x), dy), moments))| {
            ARCH.dispatch(Backward { norm, x, dy, weight: norm.of_row(weights, row), moments: *moments, dx })
        });
        let parts: Vec<Vec<[f64; 2]>> = parts.collect();
        let mut sums = [vec![0.0; norm.channels], vec![0.0; norm.channels]];
        for (row, part) in parts.iter().enumerate() {
            let first = row % norm.groups * norm.group();
            for (i, [sum, moment]) in part.iter().enumerate() {
                sums[0][first + i] += moment;
                sums[1][first + i] += sum;
            }
        }
        let mut gradients = vec![wanted[0].then(|| like(dx, x)).transpose()?];
        for (sums, (arg, wanted)) in sums.iter().zip([weight, bias].into_iter().zip(&wanted[1..])) {
            let narrow = || like(sums.iter().map(|sum| *sum as T).collect::<Vec<T>>(), arg);
            gradients.push(wanted.then(narrow).transpose()?);
        }
        Ok(gradients)
    })
}

struct Backward<'a, T> {
    norm: GroupNormShape,
    x: &'a [T],
    dy: &'a [T],
    weight: &'a [T],
    moments: Moments,
    dx: &'a mut [T],
}

impl<T: Float> NullaryFnOnce for Backward<'_, T> {
    /// Σ dy and Σ dy (x - mean) / σ of each channel.
    type Output = Vec<[f64; 2]>;

    #[inline(always)]
    fn call(self) -> Vec<[f64; 2]> {
        let Self { norm: GroupNormShape { plane, .. }, x, dy, weight, moments, dx } = self;
        let ones = [T::narrow(1.0); LANES];
        let center = moments.center::<T>();
        let planes = || x.chunks_exact(plane).zip(dy.chunks_exact(plane));
        let sums = planes().map(|(x, dy)| two_run_sums(x, dy, |x| center.of(x), std::iter::repeat(&ones), &ones));
        let mut sums: Vec<[f64; 2]> = sums.collect();
        let mut all = [0.0; 2];
        for ([sum, moment], weight) in sums.iter().zip(weight) {
            all[0] += weight.wide() * sum;
            all[1] += weight.wide() * moment;
        }
        let row = Coefficients::<T>::new(moments, all, x.len(), true);
        for ((dx, (x, dy)), weight) in dx.chunks_exact_mut(plane).zip(planes()).zip(weight) {
            let scale = T::narrow(weight.wide() * moments.inverse);
            let gradient = |x: T, dy: T| dy * scale - row.shift - row.center.of(x) * row.slope;
            dx.iter_mut().zip(x.iter().zip(dy)).for_each(|(dx, (x, dy))| *dx = gradient(*x, *dy));
        }
        for [_, moment] in &mut sums {
            *moment *= moments.inverse;
        }
        sums
    }
}
