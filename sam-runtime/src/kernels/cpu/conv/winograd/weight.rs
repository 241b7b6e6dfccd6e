//! The gradient of the weight.

#![allow(clippy::inline_always, reason = "a loop has the vector width of the function that it is inlined into")]

use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use super::{ELEMENTS, Lines, Tiles, buffers, pitch, transform_input, vector};
use crate::kernels::cpu::ARCH;
use crate::kernels::cpu::conv::Images;
use crate::kernels::cpu::float::{Float, zeros};
use crate::kernels::cpu::matmul::{Matrix, Start, multiply_alone};
use crate::kernels::shapes::ConvShape;

/// Elements of the transforms that are held at a time for the gradient of the weight.
const HELD: usize = 1 << 20;

/// See [`weight_gradient`](crate::kernels::cpu::conv::weight_gradient).
pub(in crate::kernels::cpu::conv) fn weight_gradient<T: Float>(conv: &ConvShape, x: &[T], dy: &[T]) -> Vec<T> {
    let ([channels, filters], tiles) = (conv.in_group(), Tiles::forward(conv));
    let count = tiles.down * tiles.across;
    // Enough tiles at a time that the sums of many weights are not read and written all the time.
    let images = (HELD / (ELEMENTS * (channels + filters))).max(256).div_ceil(count).min(conv.images);
    let pitch = pitch(images * count);
    let mut v = zeros::<T>(channels * ELEMENTS * pitch);
    let mut d = zeros::<T>(filters * ELEMENTS * pitch);
    let mut dw = zeros::<T>(conv.filters * channels * 9);
    for (group, dw) in dw.chunks_mut(filters * channels * 9).enumerate() {
        let mut sums = zeros::<T>(ELEMENTS * filters * channels);
        let parts = x.chunks(images * conv.channels * conv.input());
        for (x, dy) in parts.zip(dy.chunks(images * conv.filters * conv.output())) {
            let spread = |values, all, channel, gradient, to| {
                let images = Images { values, all, range: channel..channel + 1 };
                T::with_scratch(|scratch| ARCH.dispatch(Spread { tiles, images, gradient, to, pitch, scratch }));
            };
            let (v_lines, d_lines) = (v.par_chunks_mut(ELEMENTS * pitch), d.par_chunks_mut(ELEMENTS * pitch));
            let (first, filter) = (group * channels, group * filters);
            v_lines.enumerate().for_each(|(i, v)| spread(x, conv.channels, first + i, false, v));
            d_lines.enumerate().for_each(|(i, d)| spread(dy, conv.filters, filter + i, true, d));
            let used = x.len() / (conv.channels * conv.input()) * count;
            sums.par_chunks_mut(filters * channels).enumerate().for_each(|(element, sums)| {
                let d = Matrix::with_pitch(&d[element * pitch..], filters, used, ELEMENTS * pitch);
                let v = Matrix::with_pitch(&v[element * pitch..], channels, used, ELEMENTS * pitch);
                multiply_alone(sums, d, v.transposed(), Start::Kept);
            });
        }
        dw.par_chunks_mut(channels * 9).enumerate().for_each(|(filter, dw)| {
            for (channel, dw) in dw.as_chunks_mut::<9>().0.iter_mut().enumerate() {
                let sum = |element: usize| sums[(element * filters + filter) * channels + channel];
                let kernel = gather_kernel(std::array::from_fn(|i| std::array::from_fn(|j| sum(i * 4 + j))));
                dw.copy_from_slice(kernel.as_flattened());
            }
        });
    }
    dw
}

/// Gᵀ u G
#[inline(always)]
fn gather_kernel<T: Float>(u: [[T; 4]; 4]) -> [[T; 3]; 3] {
    let half = T::narrow(0.5);
    let line = |[a, b, c, d]: [T; 4]| {
        let sum = half * (b + c);
        [a + sum, half * (b - c), sum + d]
    };
    let rows = u.map(line);
    let columns: [[T; 3]; 3] = std::array::from_fn(|j| line([rows[0][j], rows[1][j], rows[2][j], rows[3][j]]));
    std::array::from_fn(|i| std::array::from_fn(|j| columns[j][i]))
}

/// A dy
#[inline(always)]
fn gradient_line<S: Simd, T: Float>(simd: S, [a, b]: [T::Vector<S>; 2]) -> [T::Vector<S>; 4] {
    let zero = T::splat(simd, T::default());
    [a, T::plus(simd, a, b), T::minus(simd, a, b), T::minus(simd, zero, b)]
}

/// The transforms of one channel of x, or of one filter of dy: by element and tile.
struct Spread<'a, T> {
    tiles: Tiles,
    images: Images<'a, T>,
    gradient: bool,
    to: &'a mut [T],
    pitch: usize,
    scratch: &'a mut Vec<T>,
}

impl<T: Float> WithSimd for Spread<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { tiles, images, gradient, to, pitch, scratch } = self;
        let [height, width] = if gradient { tiles.output } else { tiles.input };
        let strips = images.count(height * width) * tiles.down;
        let ([], mut lines) = buffers(tiles, strips, T::lanes::<S>(), scratch, []);
        if gradient {
            transform_gradient::<S, T>(simd, tiles, &images, &mut lines, to, pitch);
        } else {
            transform_input::<S, T>(simd, tiles, &images, 0..strips, &mut lines, to, pitch);
        }
    }
}

/// d ← A dy Aᵀ: by element and tile.
#[inline(always)]
fn transform_gradient<S: Simd, T: Float>(
    simd: S,
    tiles: Tiles,
    dy: &Images<'_, T>,
    lines: &mut Lines<'_, T>,
    d: &mut [T],
    pitch: usize,
) {
    let (across, [height, width]) = (tiles.across, tiles.output);
    // The four elements of each tile.
    let ([e0, e1, ..], [o0, o1, ..]) = (&mut lines.even, &mut lines.odd);
    let images = dy.count(height * width);
    for image in 0..images {
        let plane = dy.plane(image, dy.range.start, height * width);
        for row in 0..2 * tiles.down {
            let start = (image * tiles.down + row / 2) * across;
            let (left, right) = if row % 2 == 0 { (&mut *e0, &mut *e1) } else { (&mut *o0, &mut *o1) };
            let (left, right) = (&mut left[start..start + across], &mut right[start..start + across]);
            if row >= height {
                left.fill(T::default());
                right.fill(T::default());
                continue;
            }
            let (pairs, rest) = plane[row * width..][..width].as_chunks::<2>();
            for ((pair, left), right) in pairs.iter().zip(&mut *left).zip(&mut *right) {
                [*left, *right] = *pair;
            }
            if let ([last], Some(left), Some(right)) = (rest, left.last_mut(), right.last_mut()) {
                [*left, *right] = [*last, T::default()];
            }
        }
    }
    for q in (0..images * tiles.down * across).step_by(T::lanes::<S>()) {
        let left = gradient_line::<S, T>(simd, [vector::<S, T>(e0, q), vector::<S, T>(o0, q)]);
        let right = gradient_line::<S, T>(simd, [vector::<S, T>(e1, q), vector::<S, T>(o1, q)]);
        for row in 0..4 {
            let line = gradient_line::<S, T>(simd, [left[row], right[row]]);
            for (column, value) in line.into_iter().enumerate() {
                let at = (row * 4 + column) * pitch + q;
                T::vectors_mut::<S>(&mut d[at..at + T::lanes::<S>()])[0] = value;
            }
        }
    }
}
