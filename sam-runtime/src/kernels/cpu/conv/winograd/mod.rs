//! 3x3 convolutions of stride 1 in 16 multiplications for 4 outputs instead of 36.
//!
//! F(2x2, 3x3) of Lavin & Gray, "Fast Algorithms for Convolutional Neural Networks" (CVPR 2016): an output tile of 2x2
//! is Aᵀ \[(G g Gᵀ) ⊙ (Bᵀ d B)\] A of the kernel g and the 4x4 tile d of the input. Summed over channels, the products are
//! 16 matrix products, one for each element of a transformed tile. The gradient of the input is the same function of y's
//! gradient and the turned kernel; that of the weight is Gᵀ \[Σ (A dy Aᵀ) ⊙ (Bᵀ d B)\] G, summed over the tiles.
//!
//! B and A have only 0 and ±1, G also ½: the error stays that of a direct sum. A larger tile, F(4x4, 3x3), would multiply
//! half as often and err several times as much. Tiles of a few rows are transformed at a time, so that they stay in the
//! second level cache; they lie one behind the other whatever the image's size, so that no lane is wasted.

#![allow(clippy::inline_always, reason = "a loop has the vector width of the function that it is inlined into")]

mod weight;

use std::ops::Range;

use pulp::{Simd, WithSimd};
use rayon::prelude::*;

pub(super) use self::weight::weight_gradient;
use super::{Block, Images, Map, PARTS, Target, correlate_tile};
use crate::kernels::cpu::ARCH;
use crate::kernels::cpu::float::{Float, zeros};
use crate::kernels::shapes::{ConvDim, ConvShape};

/// Elements of a transformed tile.
const ELEMENTS: usize = 16;

/// Fewer channels or filters than this do not pay for the transforms.
const CHANNELS: usize = 8;

/// Nor do fewer weights pay for those of the weight's gradient.
const WEIGHTS: usize = 1024;

/// Tiles of a channel, times channels, whose transforms stay in the second level cache.
const TILES: usize = 6144;

/// Whether a convolution is one of these.
pub(super) fn fits(conv: &ConvShape) -> bool {
    // A transposed convolution with output padding has an input that reaches beyond the last window.
    let plain = |side: ConvDim| {
        let ends_together = side.output + 2 == side.input + 2 * side.padding;
        side.kernel == 3 && side.stride == 1 && side.dilation == 1 && side.padding <= 2 && ends_together
    };
    plain(conv.height) && plain(conv.width) && conv.in_group().into_iter().all(|channels| channels >= CHANNELS)
}

/// Whether the gradient of its weight is best taken here.
pub(super) fn fits_weights(conv: &ConvShape) -> bool {
    fits(conv) && conv.in_group().into_iter().product::<usize>() >= WEIGHTS
}

/// See [`super::forward`].
pub(super) fn forward<T: Float>(conv: &ConvShape, x: &[T], w: &[T], bias: Option<&[T]>) -> Vec<T> {
    let ([channels, filters], tiles, w) = (conv.in_group(), Tiles::forward(conv), w.as_chunks::<9>().0);
    let kernels = |group: usize| {
        Kernels::pack(filters, channels, |filter, channel| w[(group * filters + filter) * channels + channel])
    };
    let kernels: Vec<_> = (0..conv.groups).map(kernels).collect();
    Map::forward(conv, bias).apply(x, tiles.images(channels, conv.images), |group, x, y| {
        let kernels = &kernels[group];
        T::with_scratch(|scratch| ARCH.dispatch(Correlate { tiles, kernels, x, y, scratch }));
    })
}

/// See [`super::input_gradient`]: the same function as [`forward`], of y's gradient and the turned kernel.
pub(super) fn input_gradient<T: Float>(conv: &ConvShape, dy: &[T], w: &[T]) -> Vec<T> {
    let ([channels, filters], tiles, w) = (conv.in_group(), Tiles::backward(conv), w.as_chunks::<9>().0);
    let kernels = |group: usize| {
        Kernels::pack(channels, filters, |channel, filter| {
            let mut kernel = w[(group * filters + filter) * channels + channel];
            kernel.reverse();
            kernel
        })
    };
    let kernels: Vec<_> = (0..conv.groups).map(kernels).collect();
    Map::backward(conv).apply(dy, tiles.images(filters, conv.images), |group, x, y| {
        let kernels = &kernels[group];
        T::with_scratch(|scratch| ARCH.dispatch(Correlate { tiles, kernels, x, y, scratch }));
    })
}

/// The tiles of an image.
#[derive(Clone, Copy)]
struct Tiles {
    /// Rows and columns of zeros before the input.
    lead: [usize; 2],
    input: [usize; 2],
    output: [usize; 2],
    down: usize,
    across: usize,
}

impl Tiles {
    fn forward(conv: &ConvShape) -> Self {
        let sides = [conv.height, conv.width];
        Self::new(sides.map(|side| side.padding), sides.map(|side| side.input), sides.map(|side| side.output))
    }

    /// From the gradient of the output to that of the input.
    fn backward(conv: &ConvShape) -> Self {
        let sides = [conv.height, conv.width];
        Self::new(sides.map(|side| 2 - side.padding), sides.map(|side| side.output), sides.map(|side| side.input))
    }

    fn new(lead: [usize; 2], input: [usize; 2], output: [usize; 2]) -> Self {
        let [down, across] = output.map(|side| side.div_ceil(2));
        Self { lead, input, output, down, across }
    }

    /// Images that are worked on together.
    fn images(&self, channels: usize, images: usize) -> usize {
        (tiles_at_once(channels) / (self.down * self.across)).min(images / PARTS).max(1)
    }

    /// Rows of tiles of some images, by image.
    fn rows(self, range: Range<usize>) -> impl Iterator<Item = (usize, Range<usize>)> {
        let images = range.start / self.down..range.end.div_ceil(self.down);
        images.map(move |image| {
            let first = image * self.down;
            (image, range.start.max(first) - first..range.end.min(first + self.down) - first)
        })
    }
}

/// Tiles that are worked on together.
fn tiles_at_once(channels: usize) -> usize {
    (TILES / channels).clamp(32, 256)
}

/// G g Gᵀ
#[inline(always)]
fn transform_kernel<T: Float>(g: [[T; 3]; 3]) -> [[T; 4]; 4] {
    let half = T::narrow(0.5);
    let line = |[a, b, c]: [T; 3]| {
        let (outer, inner) = (half * (a + c), half * b);
        [a, outer + inner, outer - inner, c]
    };
    let rows = g.map(line);
    let columns: [[T; 4]; 4] = std::array::from_fn(|j| line([rows[0][j], rows[1][j], rows[2][j]]));
    std::array::from_fn(|i| std::array::from_fn(|j| columns[j][i]))
}

/// Transformed kernels: for each block of filters, element and channel, one of each filter.
struct Kernels<T> {
    values: Vec<T>,
    filters: usize,
    channels: usize,
}

impl<T: Float> Kernels<T> {
    fn pack(filters: usize, channels: usize, kernel: impl Fn(usize, usize) -> [T; 9] + Sync) -> Self {
        let block = ARCH.dispatch(Block);
        let mut values = zeros(filters.div_ceil(block) * ELEMENTS * channels * block);
        values.par_chunks_mut(ELEMENTS * channels * block).enumerate().for_each(|(i, values)| {
            for filter in i * block..(i * block + block).min(filters) {
                for channel in 0..channels {
                    let kernel = kernel(filter, channel);
                    let transformed =
                        transform_kernel(std::array::from_fn(|i| std::array::from_fn(|j| kernel[i * 3 + j])));
                    for (element, value) in transformed.as_flattened().iter().enumerate() {
                        values[(element * channels + channel) * block + filter % block] = *value;
                    }
                }
            }
        });
        Self { values, filters, channels }
    }
}

/// One convolution of some images.
struct Correlate<'a, T> {
    tiles: Tiles,
    kernels: &'a Kernels<T>,
    x: Images<'a, T>,
    y: Target<'a, T>,
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
        let Self { tiles, kernels, x, mut y, scratch } = self;
        let Kernels { values, filters, channels } = kernels;
        let (filters, channels, lanes) = (*filters, *channels, T::lanes::<S>());
        let images = x.count(tiles.input[0] * tiles.input[1]);
        let strips = (tiles_at_once(channels) / tiles.across).max(1);
        let span = (strips * tiles.across).next_multiple_of(WIDTH * lanes);
        let pitch = pitch(span);
        let sizes = [ELEMENTS * channels * pitch, ELEMENTS * FILTERS * pitch, 4 * pitch];
        let (buffers, mut lines) = buffers(tiles, strips, lanes, scratch, sizes);
        let [v, m, sums] = buffers;
        let offsets: Vec<usize> = (0..channels).map(|channel| channel * pitch).collect();
        for first in (0..images * tiles.down).step_by(strips) {
            let range = first..(first + strips).min(images * tiles.down);
            let used = range.len() * tiles.across;
            transform_input::<S, T>(simd, tiles, &x, range.clone(), &mut lines, v, pitch);
            let blocks = values.as_chunks::<FILTERS>().0.chunks_exact(ELEMENTS * channels);
            for (i, block) in blocks.enumerate() {
                let elements = block.chunks_exact(channels).zip(v.chunks_exact(channels * pitch));
                for ((kernels, v), m) in elements.zip(m.chunks_exact_mut(FILTERS * pitch)) {
                    for from in (0..used).step_by(WIDTH * lanes) {
                        let tile = correlate_tile::<S, T, WIDTH, FILTERS>(simd, kernels, &offsets, &v[from..]);
                        for (m, tile) in m.chunks_exact_mut(pitch).zip(tile) {
                            T::vectors_mut::<S>(&mut m[from..])[..WIDTH].copy_from_slice(&tile);
                        }
                    }
                }
                for filter in i * FILTERS..((i + 1) * FILTERS).min(filters) {
                    gather_output::<S, T>(simd, m, FILTERS * pitch, (filter - i * FILTERS) * pitch, used, sums, pitch);
                    write(tiles, range.clone(), filter, sums, pitch, &mut y);
                }
            }
        }
    }
}

/// Elements from one channel to the next: room for a vector behind the last tile, and channels in different sets of the
/// first level cache.
fn pitch(tiles: usize) -> usize {
    (tiles + 16).next_multiple_of(32) + 16
}

/// One padded row, and the rows of a channel after the transform of their columns, even and odd ones.
struct Lines<'a, T> {
    padded: &'a mut [T],
    even: [&'a mut [T]; 4],
    odd: [&'a mut [T]; 4],
}

/// Parts of the scratch of these sizes, and lines for so many rows of tiles.
fn buffers<T: Float, const N: usize>(
    tiles: Tiles,
    strips: usize,
    lanes: usize,
    scratch: &mut Vec<T>,
    sizes: [usize; N],
) -> ([&mut [T]; N], Lines<'_, T>) {
    let (padded, line) = (2 * tiles.across + 2, (strips + 1) * tiles.across + lanes);
    let len = sizes.iter().sum::<usize>() + padded + 8 * line;
    if scratch.len() < len {
        scratch.resize(len, T::default());
    }
    let mut rest = &mut scratch[..];
    let mut take = |size| rest.split_off_mut(..size).unwrap_or_default();
    let buffers = sizes.map(&mut take);
    let lines = Lines { padded: take(padded), even: [line; 4].map(&mut take), odd: [line; 4].map(&mut take) };
    lines.padded.fill(T::default());
    (buffers, lines)
}

/// v ← Bᵀ d B of some rows of tiles: by element, channel and tile.
#[inline(always)]
fn transform_input<S: Simd, T: Float>(
    simd: S,
    tiles: Tiles,
    x: &Images<'_, T>,
    range: Range<usize>,
    lines: &mut Lines<'_, T>,
    v: &mut [T],
    pitch: usize,
) {
    let (channels, lanes) = (x.range.len(), T::lanes::<S>());
    let Tiles { lead, input, across, .. } = tiles;
    for (i, channel) in x.range.clone().enumerate() {
        let mut from = i * pitch;
        for (image, rows) in tiles.rows(range.clone()) {
            let plane = x.plane(image, channel, input[0] * input[1]);
            for (line, row) in (2 * rows.start..2 * rows.end + 2).enumerate() {
                let start = line / 2 * across;
                let targets = if line % 2 == 0 { &mut lines.even } else { &mut lines.odd };
                let [a, b, c, d] = targets.each_mut().map(|line| &mut line[start..start + across]);
                if row < lead[0] || row >= lead[0] + input[0] {
                    for line in [a, b, c, d] {
                        line.fill(T::default());
                    }
                    continue;
                }
                let source = &plane[(row - lead[0]) * input[1]..][..input[1]];
                lines.padded[lead[1]..][..input[1]].copy_from_slice(source);
                let pairs = &lines.padded.as_chunks::<2>().0[..=across];
                for j in 0..across {
                    let ([even, odd], [next, after]) = (pairs[j], pairs[j + 1]);
                    a[j] = even - next;
                    b[j] = odd + next;
                    c[j] = next - odd;
                    d[j] = odd - after;
                }
            }
            let used = rows.len() * across;
            for column in 0..4 {
                let (even, odd) = (&lines.even[column], &lines.odd[column]);
                for q in (0..used).step_by(lanes) {
                    let [d0, d1] = [vector::<S, T>(even, q), vector::<S, T>(odd, q)];
                    let [d2, d3] = [vector::<S, T>(even, q + across), vector::<S, T>(odd, q + across)];
                    let sums =
                        [T::minus(simd, d0, d2), T::plus(simd, d1, d2), T::minus(simd, d2, d1), T::minus(simd, d1, d3)];
                    for (row, sum) in sums.into_iter().enumerate() {
                        let at = (row * 4 + column) * channels * pitch + from + q;
                        T::vectors_mut::<S>(&mut v[at..at + lanes])[0] = sum;
                    }
                }
            }
            from += used;
        }
    }
}

/// The vector that begins at an element.
#[inline(always)]
fn vector<S: Simd, T: Float>(values: &[T], at: usize) -> T::Vector<S> {
    T::vectors::<S>(&values[at..at + T::lanes::<S>()])[0]
}

/// Aᵀ m
#[inline(always)]
fn gather_line<S: Simd, T: Float>(simd: S, [a, b, c, d]: [T::Vector<S>; 4]) -> [T::Vector<S>; 2] {
    [T::plus(simd, T::plus(simd, a, b), c), T::minus(simd, T::minus(simd, b, c), d)]
}

/// sums ← Aᵀ m A: the four outputs of each tile.
#[inline(always)]
fn gather_output<S: Simd, T: Float>(
    simd: S,
    m: &[T],
    step: usize,
    from: usize,
    used: usize,
    sums: &mut [T],
    pitch: usize,
) {
    let lanes = T::lanes::<S>();
    for q in (0..used).step_by(lanes) {
        let mut columns = [[T::splat(simd, T::default()); 4]; 2];
        let [upper, lower] = &mut columns;
        for (j, (upper, lower)) in upper.iter_mut().zip(lower).enumerate() {
            let mut line = [T::splat(simd, T::default()); 4];
            for (i, part) in line.iter_mut().enumerate() {
                *part = vector::<S, T>(m, (i * 4 + j) * step + from + q);
            }
            [*upper, *lower] = gather_line::<S, T>(simd, line);
        }
        for (row, columns) in columns.into_iter().enumerate() {
            let outputs = gather_line::<S, T>(simd, columns);
            for (column, output) in outputs.into_iter().enumerate() {
                T::vectors_mut::<S>(&mut sums[(row * 2 + column) * pitch + q..][..lanes])[0] = output;
            }
        }
    }
}

/// Puts the outputs of one filter, sorted by their position in a tile, where they belong.
#[inline(always)]
fn write<T: Float>(tiles: Tiles, range: Range<usize>, filter: usize, sums: &[T], pitch: usize, y: &mut Target<'_, T>) {
    let (size, bias) = (y.size, y.bias(filter));
    let mut from = 0;
    for (image, rows) in tiles.rows(range) {
        let lines = y.plane(image, filter)[2 * rows.start * size..].chunks_mut(size);
        for (i, line) in lines.take(2 * rows.len()).enumerate() {
            let sums = &sums[i % 2 * 2 * pitch + from + i / 2 * tiles.across..];
            let (left, right) = (&sums[..tiles.across], &sums[pitch..][..tiles.across]);
            let (pairs, rest) = line.as_chunks_mut::<2>();
            for ((pair, left), right) in pairs.iter_mut().zip(left).zip(right) {
                *pair = [*left + bias, *right + bias];
            }
            if let ([last], [.., left]) = (rest, left) {
                *last = *left + bias;
            }
        }
        from += rows.len() * tiles.across;
    }
}
