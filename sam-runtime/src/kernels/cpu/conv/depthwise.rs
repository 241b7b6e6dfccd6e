//! Convolutions of one channel a group, of any kernel, stride, padding and dilation.
//!
//! Nothing is shared by filters, so this is no matrix product: each plane is read, multiplied by a few weights and written. As in
//! [`direct`](super::direct) planes are copied with their zeros, for a stride in phases, so that output and input have the same rows
//! and a tap is a distance; lanes run along the pixels, across the ends of rows, so that small planes fill vectors too. The
//! gradient of the input is the same function for each phase. That of the weight has its sums in registers over some images of one
//! channel, and in f64 across them.
//!
//! Two cores of an Intel Xeon (Sapphire Rapids, AVX-512) that others used too, 32 images, forward and both gradients, processor
//! time over that of PyTorch 2.15 in the better of its two formats (`channels_last`). Single runs, not alternating, so only rough:
//!
//! | what | 5x5, 240 channels on 16x16; 672 on 8x8 | 3x3, 144 on 32x32 | 3x3, stride 2, 96 on 64x64 |
//! | --- | --- | --- | --- |
//! | each phase over all planes of some images | 0.6; 0.7 | 1.2 to 2 | 2.3 |
//! | all phases of a plane together | 0.5; 0.5 | 1.1 | 1.6 |
//! | every second element of a row in pairs, instead of by `step_by` | not timed yet | | |
//!
//! By [`direct`](super::direct), whose tiles one filter fills to an eighth, wall time was 1.2 to 4 times that of PyTorch.

#![allow(clippy::inline_always, reason = "a loop has the vector width of the function that it is inlined into")]

use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use super::direct::write;
use super::plan::{Axis, Plan};
use super::{Images, Map, PARTS, Target, correlate_tile};
use crate::kernels::cpu::ARCH;
use crate::kernels::cpu::float::{Float, zeros};
use crate::kernels::shapes::ConvShape;

/// Filters of a group, at most. More fill tiles of [`direct`](super::direct).
const FILTERS: usize = 3;

/// Pixels of the planes that are worked on together.
const SPAN: usize = 1 << 12;

/// Vectors of a tile of outputs.
const WIDTH: usize = 4;

/// Whether a convolution is one of these.
pub(super) fn fits(conv: &ConvShape) -> bool {
    let [channels, filters] = conv.in_group();
    conv.groups > 1 && channels == 1 && filters <= FILTERS
}

/// See [`super::forward`].
pub(super) fn forward<T: Float>(conv: &ConvShape, x: &[T], w: &[T], bias: Option<&[T]>) -> Vec<T> {
    let plan = Plan::new(Axis::forward(conv.height), Axis::forward(conv.width));
    let weights = w.chunks_exact(conv.taps()).flat_map(|w| plan.taps.iter().map(|tap| [w[tap.index]])).collect();
    run(&Map::forward(conv, bias), [1; 2], &[Phase { position: [0; 2], plan, weights }], x)
}

/// See [`super::input_gradient`].
pub(super) fn input_gradient<T: Float>(conv: &ConvShape, dy: &[T], w: &[T]) -> Vec<T> {
    let stride = [conv.height.stride, conv.width.stride];
    let phase = |position: [usize; 2]| {
        let plan = Plan::new(Axis::backward(conv.height, position[0]), Axis::backward(conv.width, position[1]));
        let weights = w.chunks_exact(conv.taps()).flat_map(|w| plan.taps.iter().map(|tap| [w[tap.index]])).collect();
        Phase { position, plan, weights }
    };
    let positions = (0..stride[0]).flat_map(|down| (0..stride[1]).map(move |right| [down, right]));
    // No output saw the pixels of a phase without taps: their gradient is 0.
    let phases: Vec<_> = positions.map(phase).filter(|phase| !phase.plan.is_empty()).collect();
    run(&Map::backward(conv), stride, &phases, dy)
}

/// See [`super::weight_gradient`].
pub(super) fn weight_gradient<T: Float>(conv: &ConvShape, x: &[T], dy: &[T]) -> Vec<T> {
    let plan = Plan::new(Axis::forward(conv.height), Axis::forward(conv.width));
    let size = conv.in_group()[1] * conv.taps();
    let mut dw = zeros(conv.groups * size);
    dw.par_chunks_mut(size).enumerate().for_each(|(channel, dw)| {
        T::with_scratch(|scratch| ARCH.dispatch(Accumulate { conv, plan: &plan, channel, x, dy, dw, scratch }));
    });
    dw
}

/// The pixels that are written every so many rows and columns, from a first one on.
struct Phase<T> {
    position: [usize; 2],
    plan: Plan,
    /// For each plane that is written, those of each plane that it reads.
    weights: Vec<[T; 1]>,
}

/// All phases of a map, by all threads: parts are some images, or if there are few some groups of one.
fn run<T: Float>(map: &Map<'_, T>, stride: [usize; 2], phases: &[Phase<T>], x: &[T]) -> Vec<T> {
    let ([from, from_plane], [to, to_plane]) = (map.from, map.to);
    let images = x.len() / (from * from_plane);
    let plane = phases.iter().map(|phase| phase.plan.plane()).max().unwrap_or(1);
    let together = (SPAN / plane).min(images / PARTS).max(1);
    let splits = (PARTS.div_ceil(images)..=map.groups).find(|splits| map.groups.is_multiple_of(*splits));
    let splits = splits.unwrap_or(map.groups);
    let (groups, from, to) = (map.groups / splits, from / splits, to / splits);
    let mut y = zeros(images * splits * to * to_plane);
    let parts = y.par_chunks_mut(together * to * to_plane).zip(x.par_chunks(together * from * from_plane));
    parts.enumerate().for_each(|(part, (y, x))| {
        let first = part % splits;
        let x = Images { values: x, all: from, range: 0..from };
        let bias = map.bias.map(|bias| &bias[first * to..][..to]);
        let y = Target { values: y, all: to, first: 0, bias, size: map.size, plane: to_plane };
        T::with_scratch(|scratch| {
            ARCH.dispatch(Correlate { phases, first: first * groups, groups, x, y, stride, scratch });
        });
    });
    y
}

/// Some groups of some images, from a first one on.
struct Correlate<'a, T> {
    phases: &'a [Phase<T>],
    first: usize,
    groups: usize,
    x: Images<'a, T>,
    y: Target<'a, T>,
    stride: [usize; 2],
    scratch: &'a mut Vec<T>,
}

/// Where a phase has its planes in the scratch memory.
struct Room {
    span: usize,
    offsets: Vec<usize>,
    len: usize,
}

impl<T: Float> WithSimd for Correlate<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { phases, first, groups, x, mut y, stride, scratch } = self;
        let (from, to) = (x.all / groups, y.all / groups);
        let lanes = T::lanes::<S>();
        let mut rooms = Vec::with_capacity(phases.len());
        let (mut len, mut longest) = (0, 0);
        for Phase { plan, .. } in phases {
            let images = x.count(plan.rows.input * plan.columns.input);
            let span = plan.span(images).next_multiple_of(lanes);
            let room = Room { span, offsets: plan.offsets(from, images), len: plan.len(from, images, lanes) };
            (len, longest) = (len + room.len, longest.max(span));
            rooms.push(room);
        }
        scratch.clear();
        scratch.resize(len + longest, T::default());
        let (all_planes, sums) = scratch.split_at_mut(len);
        for group in 0..groups {
            let x = Images { range: group * from..(group + 1) * from, ..x.clone() };
            let mut rest = &mut *all_planes;
            // All phases of a plane, while it is in the first level cache.
            for (Phase { position, plan, weights }, Room { span, offsets, len }) in phases.iter().zip(&rooms) {
                let (planes, others) = rest.split_at_mut(*len);
                rest = others;
                let images = x.count(plan.rows.input * plan.columns.input);
                // The zeros around each plane stay.
                plan.spread(&x, planes);
                let weights = &weights[(first + group) * to * offsets.len()..];
                for (filter, weights) in (group * to..(group + 1) * to).zip(weights.chunks_exact(offsets.len())) {
                    let mut at = 0;
                    while at + WIDTH * lanes <= *span {
                        let [tile] = correlate_tile::<S, T, WIDTH, 1>(simd, weights, offsets, &planes[at..]);
                        T::vectors_mut::<S>(&mut sums[at..])[..WIDTH].copy_from_slice(&tile);
                        at += WIDTH * lanes;
                    }
                    while at < *span {
                        let [tile] = correlate_tile::<S, T, 1, 1>(simd, weights, offsets, &planes[at..]);
                        T::vectors_mut::<S>(&mut sums[at..])[..1].copy_from_slice(&tile);
                        at += lanes;
                    }
                    write(plan, images, filter, sums, &mut y, *position, stride);
                }
            }
        }
    }
}

/// The gradient of the filters of one channel.
struct Accumulate<'a, T> {
    conv: &'a ConvShape,
    plan: &'a Plan,
    channel: usize,
    x: &'a [T],
    dy: &'a [T],
    dw: &'a mut [T],
    scratch: &'a mut Vec<T>,
}

impl<T: Float> WithSimd for Accumulate<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        if self.plan.taps.len() == 9 && S::REGISTER_COUNT >= 16 {
            self.run::<S, 9>(simd);
        } else {
            self.run::<S, 5>(simd);
        }
    }
}

impl<T: Float> Accumulate<'_, T> {
    #[inline(always)]
    fn run<S: Simd, const TAPS: usize>(self, simd: S) {
        let Self { conv, plan, channel, x, dy, dw, scratch } = self;
        let (lanes, taps, filters) = (T::lanes::<S>(), plan.taps.len(), conv.in_group()[1]);
        let (input, output) = (conv.channels * conv.input(), conv.filters * conv.output());
        let together = (SPAN / plan.plane()).clamp(1, conv.images);
        let mut sums = vec![0.0; dw.len()];
        let mut tile = [T::default(); TAPS];
        let mut cleared = 0;
        for (x, dy) in x.chunks(together * input).zip(dy.chunks(together * output)) {
            let images = x.len() / input;
            let span = plan.span(images).next_multiple_of(lanes);
            let offsets = plan.offsets(1, images);
            let len = plan.len(1, images, lanes);
            // The zeros around each plane stay, as long as the planes do.
            if cleared != images {
                scratch.clear();
                scratch.resize(len + span, T::default());
                cleared = images;
            }
            let (planes, spread) = scratch.split_at_mut(len);
            plan.spread(&Images { values: x, all: conv.channels, range: channel..channel + 1 }, planes);
            for (filter, sums) in (channel * filters..).zip(sums.chunks_exact_mut(taps)) {
                for image in 0..images {
                    let plane = &dy[(image * conv.filters + filter) * conv.output()..][..conv.output()];
                    for (row, dy) in plane.chunks_exact(plan.columns.output).enumerate() {
                        let from = image * plan.plane() + row * plan.columns.length;
                        spread[from..][..dy.len()].copy_from_slice(dy);
                    }
                }
                let dy = T::vectors::<S>(spread);
                for (offsets, sums) in offsets.chunks(TAPS).zip(sums.chunks_mut(TAPS)) {
                    accumulate::<S, T, TAPS>(simd, planes, offsets, dy, &mut tile);
                    sums.iter_mut().zip(&tile).for_each(|(sum, tile)| *sum += tile.wide());
                }
            }
        }
        dw.iter_mut().zip(sums).for_each(|(dw, sum)| *dw = T::narrow(sum));
    }
}

/// Σ dy[q] x[offset + q] for each offset. Where there are fewer than TAPS, the last is taken again.
#[inline(always)]
fn accumulate<S: Simd, T: Float, const TAPS: usize>(
    simd: S,
    x: &[T],
    offsets: &[usize],
    dy: &[T::Vector<S>],
    totals: &mut [T; TAPS],
) {
    let n = dy.len();
    let x: [&[T::Vector<S>]; TAPS] = std::array::from_fn(|tap| {
        let offset = offsets[tap.min(offsets.len() - 1)];
        &T::vectors::<S>(&x[offset..][..n * T::lanes::<S>()])[..n]
    });
    let mut sums = [T::splat(simd, T::default()); TAPS];
    for (i, dy) in dy.iter().enumerate() {
        for (sum, x) in sums.iter_mut().zip(&x) {
            *sum = T::mul_add(simd, *dy, x[i], *sum);
        }
    }
    for (total, sum) in totals.iter_mut().zip(sums) {
        *total = T::total(simd, sum);
    }
}
