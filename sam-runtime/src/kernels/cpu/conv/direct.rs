//! Convolutions of any kernel, stride, padding, dilation and groups.
//!
//! All three are sums over the kernel's taps of shifted images. The input is copied once, into planes that have the zeros
//! of the padding around them and, for a stride s, s² phases apart, so that output and input have the same rows. The
//! element that tap k reads for output q is then at `offset[k] + q`, whatever k and q are: a matrix product whose second
//! matrix is the image itself, seen at K offsets. Nothing is written out per tap. Rows end in a few positions that no
//! output has; they are computed and dropped.
//!
//! - output: y[f, q] = Σ w[f, k] x[offset[k] + q]. A tile of 2 or 3 vectors of q and 6 or 8 filters is in registers.
//! - gradient of the input: the same function, of y's gradient and the transposed kernel, once for each phase.
//! - gradient of the weight: g[f, k] = Σ y'[f, q] x[offset[k] + q]. A tile of 4 or 8 filters and [`TAPS`] taps is in
//!   registers, lanes run along q, and each tile is added up once per group of images.
//!
//! Threads share out groups of images, whose size is a function of the shapes alone, and partial sums are added in the
//! order of the groups: results are bitwise identical for any number of threads.

#![allow(clippy::inline_always, reason = "a loop has the vector width of the function that it is inlined into")]

use std::ops::Range;

use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use super::plan::{Axis, Plan};
use super::{Block, Images, Map, PARTS, Target, correlate_tile};
use crate::kernels::cpu::ARCH;
use crate::kernels::cpu::float::{Float, zeros};
use crate::kernels::shapes::ConvShape;

/// Taps of a tile of the weight's gradient.
const TAPS: usize = 3;

/// Elements of all partial sums of a weight's gradient.
const PARTIAL: usize = 1 << 20;

/// See [`super::forward`].
pub(super) fn forward<T: Float>(conv: &ConvShape, x: &[T], w: &[T], bias: Option<&[T]>) -> Vec<T> {
    let ([channels, filters], taps) = (conv.in_group(), conv.taps());
    let plan = Plan::new(Axis::forward(conv.height), Axis::forward(conv.width));
    let weights = |group: usize| {
        Weights::pack(filters, channels, &plan, |filter, channel, tap| {
            w[((group * filters + filter) * channels + channel) * taps + tap]
        })
    };
    let weights: Vec<_> = (0..conv.groups).map(weights).collect();
    Map::forward(conv, bias).apply(x, plan.group(channels, conv.images), |group, x, y| {
        let (plan, weights) = (&plan, &weights[group]);
        T::with_scratch(|scratch| {
            ARCH.dispatch(Correlate { plan, weights, x, y, position: [0; 2], stride: [1; 2], scratch });
        });
    })
}

/// See [`super::input_gradient`].
pub(super) fn input_gradient<T: Float>(conv: &ConvShape, dy: &[T], w: &[T]) -> Vec<T> {
    let ([channels, filters], taps) = (conv.in_group(), conv.taps());
    let stride = [conv.height.stride, conv.width.stride];
    let mut phases = Vec::new();
    for position in (0..stride[0]).flat_map(|down| (0..stride[1]).map(move |right| [down, right])) {
        let plan = Plan::new(Axis::backward(conv.height, position[0]), Axis::backward(conv.width, position[1]));
        if plan.is_empty() {
            continue; // No output saw these: their gradient is 0.
        }
        let weights = |group: usize| {
            Weights::pack(channels, filters, &plan, |channel, filter, tap| {
                w[((group * filters + filter) * channels + channel) * taps + tap]
            })
        };
        let weights: Vec<_> = (0..conv.groups).map(weights).collect();
        phases.push((position, plan, weights));
    }
    let images = phases.iter().map(|(_, plan, _)| plan.group(filters, conv.images)).min().unwrap_or(1);
    Map::backward(conv).apply(dy, images, |group, dy, mut dx| {
        for (position, plan, weights) in &phases {
            let (position, weights, x, y) = (*position, &weights[group], dy.clone(), dx.again());
            T::with_scratch(|scratch| ARCH.dispatch(Correlate { plan, weights, x, y, position, stride, scratch }));
        }
    })
}

/// See [`super::weight_gradient`].
pub(super) fn weight_gradient<T: Float>(conv: &ConvShape, x: &[T], dy: &[T]) -> Vec<T> {
    let [channels, filters] = conv.in_group();
    let plan = Plan::new(Axis::forward(conv.height), Axis::forward(conv.width));
    let row = channels * conv.taps();
    let size = conv.filters * row;
    let images = plan.group(channels, conv.images);
    let groups = conv.images.div_ceil(images);
    // Few weights: sums over parts of the batch. Many: a part of the filters each.
    let sums = (PARTIAL / size).clamp(1, PARTS).min(groups);
    let shares = (PARTS / sums).min(filters.div_ceil(32)).max(1);
    let share = filters.div_ceil(shares).next_multiple_of(8);
    let sums: Vec<Range<usize>> = (0..sums).map(|i| i * groups / sums..(i + 1) * groups / sums).collect();
    let shares: Vec<Range<usize>> = (0..conv.groups)
        .flat_map(|group| {
            let (first, end) = (group * filters, (group + 1) * filters);
            (first..end).step_by(share).map(move |from| from..(from + share).min(end))
        })
        .collect();
    let mut dw = zeros(size);
    let mut shared = Vec::new();
    let mut rest = &mut dw[..];
    for share in &shares {
        let (part, others) = rest.split_at_mut(share.len() * row);
        shared.push((share.clone(), part));
        rest = others;
    }
    let part = |range: &Range<usize>, share: &Range<usize>| {
        let mut part = vec![T::default(); share.len() * row];
        let group = share.start / filters;
        for first in range.clone().map(|group| group * images) {
            let last = (first + images).min(conv.images);
            let x = Images {
                values: &x[first * conv.channels * conv.input()..last * conv.channels * conv.input()],
                all: conv.channels,
                range: group * channels..(group + 1) * channels,
            };
            let dy = Images {
                values: &dy[first * conv.filters * conv.output()..last * conv.filters * conv.output()],
                all: conv.filters,
                range: share.clone(),
            };
            let sums = &mut part;
            T::with_scratch(|scratch| ARCH.dispatch(Accumulate { plan: &plan, x, dy, sums, scratch }));
        }
        part
    };
    shared.into_par_iter().for_each(|(share, dw)| {
        let parts: Vec<Vec<T>> = sums.par_iter().map(|range| part(range, &share)).collect();
        for part in parts {
            for (sum, part) in dw.iter_mut().zip(part) {
                *sum += part;
            }
        }
    });
    dw
}

/// The weights of a correlation: for each block of filters and each k, one of each filter.
struct Weights<T> {
    values: Vec<T>,
    filters: usize,
}

impl<T: Float> Weights<T> {
    fn pack(filters: usize, channels: usize, plan: &Plan, weight: impl Fn(usize, usize, usize) -> T + Sync) -> Self {
        let block = ARCH.dispatch(Block);
        let row = channels * plan.taps.len();
        let mut values = zeros(filters.div_ceil(block) * block * row);
        values.par_chunks_mut((block * row).max(1)).enumerate().for_each(|(i, values)| {
            let first = i * block;
            for (k, values) in values.chunks_exact_mut(block).enumerate() {
                let (channel, tap) = (k / plan.taps.len(), plan.taps[k % plan.taps.len()].index);
                for (filter, value) in (first..filters).zip(values) {
                    *value = weight(filter, channel, tap);
                }
            }
        });
        Self { values, filters }
    }
}

/// y[filter, q] = Σ w[filter, k] x[offset[k] + q] for a group of images.
struct Correlate<'a, T> {
    plan: &'a Plan,
    weights: &'a Weights<T>,
    x: Images<'a, T>,
    y: Target<'a, T>,
    /// The first row and column that is written, and how far it is to the next.
    position: [usize; 2],
    stride: [usize; 2],
    scratch: &'a mut Vec<T>,
}

impl<T: Float> WithSimd for Correlate<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        if S::REGISTER_COUNT >= 32 { self.run::<S, 3, 8>(simd) } else { self.run::<S, 2, 6>(simd) }
    }
}

impl<T: Float> Correlate<'_, T> {
    #[inline(always)]
    fn run<S: Simd, const WIDTH: usize, const FILTERS: usize>(self, simd: S) {
        let Self { plan, weights, x, mut y, position, stride, scratch } = self;
        let tile = WIDTH * T::lanes::<S>();
        let images = x.count(plan.rows.input * plan.columns.input);
        let span = plan.span(images).next_multiple_of(tile);
        let offsets = plan.offsets(x.range.len(), images);
        let len = plan.len(x.range.len(), images, tile);
        scratch.clear();
        scratch.resize(len + FILTERS * span, T::default());
        let (planes, sums) = scratch.split_at_mut(len);
        plan.spread(&x, planes);
        let blocks = weights.values.as_chunks::<FILTERS>().0.chunks_exact(offsets.len());
        for (i, weights_of) in blocks.enumerate() {
            for from in (0..span).step_by(tile) {
                let tile = correlate_tile::<S, T, WIDTH, FILTERS>(simd, weights_of, &offsets, &planes[from..]);
                for (sums, tile) in sums.chunks_exact_mut(span).zip(tile) {
                    T::vectors_mut::<S>(&mut sums[from..])[..WIDTH].copy_from_slice(&tile);
                }
            }
            for (filter, sums) in (i * FILTERS..weights.filters).zip(sums.chunks_exact(span)) {
                write(plan, images, filter, sums, &mut y, position, stride);
            }
        }
    }
}

/// Writes the elements 0, 2, .. of a row.
#[inline(always)]
fn put_every_second<T: Float>(y: &mut [T], sums: &[T], bias: T) {
    let (pairs, last) = y.as_chunks_mut::<2>();
    let (front, back) = sums.split_at(sums.len().min(pairs.len()));
    pairs.iter_mut().zip(front).for_each(|(pair, sum)| pair[0] = *sum + bias);
    last.iter_mut().zip(back).for_each(|(y, sum)| *y = *sum + bias);
}

#[inline(always)]
pub(super) fn write<T: Float>(
    plan: &Plan,
    images: usize,
    filter: usize,
    sums: &[T],
    y: &mut Target<'_, T>,
    position: [usize; 2],
    [down, right]: [usize; 2],
) {
    let (size, bias) = (y.size, y.bias(filter));
    for image in 0..images {
        let y = y.plane(image, filter);
        for row in 0..plan.rows.output {
            let sums = &sums[image * plan.plane() + row * plan.columns.length..][..plan.columns.output];
            let y = &mut y[(position[0] + row * down) * size + position[1]..];
            if right == 1 {
                y.iter_mut().zip(sums).for_each(|(y, sum)| *y = *sum + bias);
            } else if right == 2 {
                put_every_second(y, sums, bias);
            } else {
                y.iter_mut().step_by(right).zip(sums).for_each(|(y, sum)| *y = *sum + bias);
            }
        }
    }
}

/// sums[filter, k] += Σ dy[filter, q] x[offset[k] + q] for a group of images.
struct Accumulate<'a, T> {
    plan: &'a Plan,
    x: Images<'a, T>,
    dy: Images<'a, T>,
    sums: &'a mut [T],
    scratch: &'a mut Vec<T>,
}

impl<T: Float> WithSimd for Accumulate<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        if S::REGISTER_COUNT >= 32 { self.run::<S, 8>(simd) } else { self.run::<S, 4>(simd) }
    }
}

impl<T: Float> Accumulate<'_, T> {
    #[inline(always)]
    fn run<S: Simd, const FILTERS: usize>(self, simd: S) {
        let Self { plan, x, dy, sums, scratch } = self;
        let lanes = T::lanes::<S>();
        let images = x.count(plan.rows.input * plan.columns.input);
        let span = plan.span(images).next_multiple_of(lanes);
        let offsets = plan.offsets(x.range.len(), images);
        let len = plan.len(x.range.len(), images, lanes);
        scratch.clear();
        scratch.resize(len + (FILTERS + 1) * span, T::default());
        let (planes, rest) = scratch.split_at_mut(len);
        let (spread, block) = rest.split_at_mut(span);
        plan.spread(&x, planes);
        let filters: Vec<usize> = dy.range.clone().collect();
        for (filters, sums) in filters.chunks(FILTERS).zip(sums.chunks_mut(FILTERS * offsets.len())) {
            // Lanes side by side, so that one pointer reads them all.
            let block = T::vectors_mut::<S>(block).as_chunks_mut::<FILTERS>().0;
            for (n, filter) in filters.iter().enumerate() {
                for image in 0..images {
                    let plane = dy.plane(image, *filter, plan.rows.output * plan.columns.output);
                    for (row, dy) in plane.chunks_exact(plan.columns.output).enumerate() {
                        let from = image * plan.plane() + row * plan.columns.length;
                        spread[from..][..dy.len()].copy_from_slice(dy);
                    }
                }
                block.iter_mut().zip(T::vectors::<S>(spread)).for_each(|(block, dy)| block[n] = *dy);
            }
            for (i, offsets_of) in offsets.chunks(TAPS).enumerate() {
                let x = std::array::from_fn(|tap| {
                    let offset = offsets_of[tap.min(offsets_of.len() - 1)];
                    T::vectors::<S>(&planes[offset..][..span])
                });
                let tile = accumulate_tile::<S, T, FILTERS>(simd, x, block);
                for (sums, tile) in sums.chunks_exact_mut(offsets.len()).zip(tile) {
                    for (sum, lanes) in sums[i * TAPS..].iter_mut().zip(tile) {
                        *sum += T::total(simd, lanes);
                    }
                }
            }
        }
    }
}

#[inline(always)]
fn accumulate_tile<S: Simd, T: Float, const FILTERS: usize>(
    simd: S,
    [a, b, c]: [&[T::Vector<S>]; TAPS],
    dy: &[[T::Vector<S>; FILTERS]],
) -> [[T::Vector<S>; TAPS]; FILTERS] {
    let mut sums = [[T::splat(simd, T::default()); TAPS]; FILTERS];
    for (((a, b), c), dy) in a.iter().zip(b).zip(c).zip(dy) {
        for (sums, dy) in sums.iter_mut().zip(dy) {
            for (sum, x) in sums.iter_mut().zip([a, b, c]) {
                *sum = T::mul_add(simd, *dy, *x, *sum);
            }
        }
    }
    sums
}
