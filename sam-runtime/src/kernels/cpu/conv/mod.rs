//! Convolution of images on the CPU: output, gradient of the input, gradient of the weight.
//!
//! There are four ways: one channel a group is [`depthwise`], 1x1 kernels are matrix products ([`pointwise`]), 3x3 kernels of
//! stride 1 go by [`winograd`], in fewer multiplications, all others [`direct`]ly.
//! Threads share out images, or channels, in parts that are a function of the shapes alone: results are bitwise identical for any
//! number of threads.
//!
//! What was tried on two AVX2 cores of an AMD EPYC, 64 to 64 channels, 32x32, in GFLOP/s of the plain sum: forward, gradient
//! of the input, gradient of the weight. The gradients are timed through `backward()`. The machine is shared and its pace
//! changes by a factor of two: beside each is what a `matmul` gave at that moment.
//!
//! | what | predicted | found | `matmul` |
//! | --- | --- | --- | --- |
//! | candle 0.11.1 | | 17, 5, 3 | 71 |
//! | direct; kernels in a closure inside the dispatch | nothing lost | 1, 1, 1: no vector instruction was inlined | 71 |
//! | direct; scratch outside, tiles of 3 vectors by 4 filters | the pace of `matmul` | 28, 25, 57: a sum was spilled | 58 |
//! | direct; tiles of 2 vectors by 6 filters | forward as the weight's | 74, 66, 85; later 108, 112, 142 | 77; 120 |
//! | Winograd; transforms of closures and `array::from_fn` | 1.8 times direct | 124, 120, 205: neither was inlined | 115 |
//! | Winograd; transforms of functions | 1.8 times direct | 228, 167, 210 | 179 |
//! | Winograd; the weight's gradient by `gemm` for each element of a tile | less memory, no faster | as before; 256 channels on 8x8 136 → 228, 512 on 4x4 73 → 140 | 165 |
//! | candle's zeros and sums between layers gone ([`nn`](crate::nn)) | 10 % of a step of ResNet-20 | 15 % | |
//! | tiles of 1024 to 32768 transforms at a time | a best size | no difference beyond the noise | |
//! | AVX-512 (Zen 4): tiles of 3 vectors by 8 filters | the pace of `matmul` | 300, 257, 203; 256 channels on 8x8 279, 266, 302 | 201 |
//! | rows of 4, 8 and 16 tiles with a length that the compiler knows | 5 % of a step of ResNet-20 | 1 %: they are memory-bound | |
//! | outputs not cleared | 5 % of a step | 3 % of WRN-16-4's: not worth what the compiler could no longer check | |
//!
//! Against f64, on normal numbers, the root mean square error of the output is 1.6e-7 to 7.4e-7 of its size with 16 to 512
//! channels, where candle's f32 has 2.1e-7 to 4.1e-7; of the gradients 1.6e-7 to 7.4e-7, where candle's have 0.9e-7 to
//! 4.2e-7.
//!
//! What is left: 16 and 32 filters fill 6 rows of a tile badly (18 and 36), and the outputs are cleared before they are
//! written.

#![allow(clippy::inline_always, reason = "a loop has the vector width of the function that it is inlined into")]

mod depthwise;
mod direct;
mod plan;
mod pointwise;
mod winograd;

use std::ops::Range;

use pulp::{NullaryFnOnce, Simd, WithSimd};
use rayon::prelude::*;

use super::ARCH;
use super::float::{Float, zeros};
use crate::kernels::shapes::ConvShape;

/// Parts that a batch is shared out in.
const PARTS: usize = 16;

/// How a convolution is computed.
#[derive(Clone, Copy)]
enum Way {
    Depthwise,
    Pointwise,
    Winograd,
    Direct,
}

impl Way {
    fn of(conv: &ConvShape) -> Self {
        if depthwise::fits(conv) {
            Self::Depthwise
        } else if pointwise::fits(conv) {
            Self::Pointwise
        } else if winograd::fits(conv) {
            Self::Winograd
        } else {
            Self::Direct
        }
    }
}

/// y (images, filters, height, width) of x (images, channels, height, width) and
/// w (filters, channels / groups, height, width).
pub(crate) fn forward<T: Float>(conv: &ConvShape, x: &[T], w: &[T], bias: Option<&[T]>) -> Vec<T> {
    match Way::of(conv) {
        Way::Depthwise => depthwise::forward(conv, x, w, bias),
        Way::Pointwise => pointwise::forward(conv, x, w, bias),
        Way::Winograd => winograd::forward(conv, x, w, bias),
        Way::Direct => direct::forward(conv, x, w, bias),
    }
}

/// The gradient of x, given that of y.
pub(crate) fn input_gradient<T: Float>(conv: &ConvShape, dy: &[T], w: &[T]) -> Vec<T> {
    match Way::of(conv) {
        Way::Depthwise => depthwise::input_gradient(conv, dy, w),
        Way::Pointwise => pointwise::input_gradient(conv, dy, w),
        Way::Winograd => winograd::input_gradient(conv, dy, w),
        Way::Direct => direct::input_gradient(conv, dy, w),
    }
}

/// The gradient of w, given that of y.
pub(crate) fn weight_gradient<T: Float>(conv: &ConvShape, x: &[T], dy: &[T]) -> Vec<T> {
    match Way::of(conv) {
        Way::Depthwise => depthwise::weight_gradient(conv, x, dy),
        Way::Pointwise => pointwise::weight_gradient(conv, x, dy),
        Way::Winograd if winograd::fits_weights(conv) => winograd::weight_gradient(conv, x, dy),
        Way::Winograd | Way::Direct => direct::weight_gradient(conv, x, dy),
    }
}

/// Adds a bias to each channel of `plane` pixels.
pub(crate) fn add_bias<T: Float>(plane: usize, bias: &[T], y: &mut [T]) {
    y.par_chunks_mut(plane).enumerate().for_each(|(i, y)| {
        let bias = bias[i % bias.len()];
        for y in y {
            *y += bias;
        }
    });
}

/// The gradient of a bias: the sum of each of `channels` channels over images and their `plane` pixels, in f64.
pub(crate) fn bias_gradient<T: Float>(channels: usize, plane: usize, dy: &[T]) -> Vec<T> {
    (0..channels).into_par_iter().map(|channel| ARCH.dispatch(ChannelSum { channels, plane, channel, dy })).collect()
}

struct ChannelSum<'a, T> {
    channels: usize,
    plane: usize,
    channel: usize,
    dy: &'a [T],
}

impl<T: Float> NullaryFnOnce for ChannelSum<'_, T> {
    type Output = T;

    #[inline(always)]
    fn call(self) -> T {
        let Self { channels, plane, channel, dy } = self;
        let (mut sums, mut rest) = ([0.0; 16], 0.0);
        for image in dy.chunks_exact(channels * plane) {
            let (chunks, end) = image[channel * plane..][..plane].as_chunks::<16>();
            for chunk in chunks {
                sums.iter_mut().zip(chunk).for_each(|(sum, dy)| *sum += dy.wide());
            }
            for dy in end {
                rest += dy.wide();
            }
        }
        T::narrow(sums.iter().sum::<f64>() + rest)
    }
}

/// Some channels of some images.
#[derive(Clone)]
struct Images<'a, T> {
    values: &'a [T],
    /// Channels of an image, and those that count.
    all: usize,
    range: Range<usize>,
}

impl<'a, T> Images<'a, T> {
    fn count(&self, plane: usize) -> usize {
        self.values.len() / (self.all * plane)
    }

    fn plane(&self, image: usize, channel: usize, plane: usize) -> &'a [T] {
        &self.values[(image * self.all + channel) * plane..][..plane]
    }
}

/// Some channels of some images that are written.
struct Target<'a, T> {
    values: &'a mut [T],
    /// Channels of an image, and the first that is written.
    all: usize,
    first: usize,
    /// What is added to each of them.
    bias: Option<&'a [T]>,
    /// Elements of a row, and of a channel.
    size: usize,
    plane: usize,
}

impl<T: Float> Target<'_, T> {
    /// Reborrow.
    fn again(&mut self) -> Target<'_, T> {
        Target { values: self.values, ..*self }
    }

    #[inline(always)]
    fn plane(&mut self, image: usize, filter: usize) -> &mut [T] {
        &mut self.values[(image * self.all + self.first + filter) * self.plane..][..self.plane]
    }

    #[inline(always)]
    fn bias(&self, filter: usize) -> T {
        self.bias.map_or(T::default(), |bias| bias[filter])
    }
}

/// A map of images to images by groups of channels.
struct Map<'a, T> {
    groups: usize,
    /// Channels of an image and elements of a channel that are read, and those that are written.
    from: [usize; 2],
    to: [usize; 2],
    /// Elements of a row that is written.
    size: usize,
    bias: Option<&'a [T]>,
}

impl<'a, T: Float> Map<'a, T> {
    fn forward(conv: &ConvShape, bias: Option<&'a [T]>) -> Self {
        let (from, to) = ([conv.channels, conv.input()], [conv.filters, conv.output()]);
        Self { groups: conv.groups, from, to, size: conv.width.output, bias }
    }

    fn backward(conv: &ConvShape) -> Self {
        let (from, to) = ([conv.filters, conv.output()], [conv.channels, conv.input()]);
        Self { groups: conv.groups, from, to, size: conv.width.input, bias: None }
    }

    /// Calls `f` with each group and some images at a time, by all threads.
    fn apply(&self, x: &[T], images: usize, f: impl Fn(usize, Images<'_, T>, Target<'_, T>) + Sync) -> Vec<T> {
        let ([from, from_plane], [to, to_plane]) = (self.from, self.to);
        let mut y = zeros(x.len() / (from * from_plane) * to * to_plane);
        let parts = y.par_chunks_mut(images * to * to_plane).zip(x.par_chunks(images * from * from_plane));
        parts.for_each(|(y, x)| {
            for group in 0..self.groups {
                let (channels, filters) = (from / self.groups, to / self.groups);
                let first = group * filters;
                let x = Images { values: x, all: from, range: group * channels..(group + 1) * channels };
                let bias = self.bias.map(|bias| &bias[first..first + filters]);
                let y = Target { values: y, all: to, first, bias, size: self.size, plane: to_plane };
                f(group, x, y);
            }
        });
        y
    }
}

/// Filters of a tile of outputs. With 16 registers, 2 vectors and 6 filters leave room for the weight; 3 and 4 do not.
struct Block;

impl WithSimd for Block {
    type Output = usize;

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> usize {
        if S::REGISTER_COUNT >= 32 { 8 } else { 6 }
    }
}

/// Σ w[k][filter] x[offset[k] + q] for each filter and q of a tile.
#[inline(always)]
fn correlate_tile<S: Simd, T: Float, const WIDTH: usize, const FILTERS: usize>(
    simd: S,
    weights: &[[T; FILTERS]],
    offsets: &[usize],
    x: &[T],
) -> [[T::Vector<S>; WIDTH]; FILTERS] {
    let mut sums = [[T::splat(simd, T::default()); WIDTH]; FILTERS];
    for (weights, offset) in weights.iter().zip(offsets) {
        let x = T::vectors::<S>(&x[*offset..][..WIDTH * T::lanes::<S>()]);
        let x: [T::Vector<S>; WIDTH] = std::array::from_fn(|i| x[i]);
        for (sums, weight) in sums.iter_mut().zip(weights) {
            let weight = T::splat(simd, *weight);
            for (sum, x) in sums.iter_mut().zip(x) {
                *sum = T::mul_add(simd, weight, x, *sum);
            }
        }
    }
    sums
}
