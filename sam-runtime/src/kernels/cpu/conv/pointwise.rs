//! Convolutions with 1x1 kernels: a matrix product for each image, whose pixels lie side by side.
//!
//! Small images are put side by side first, so that the products have rows worth multiplying.
//!
//! - output: y = w x, and gradient of the input: dx = wᵀ dy, of each image
//! - gradient of the weight: Σ dy xᵀ, over parts of the batch whose sums are added in order. Both matrices have their pixels in rows,
//!   so these are dot products of rows ([`matmul`](crate::kernels::cpu::matmul)).

use std::ops::Range;

use rayon::prelude::*;

use super::PARTS;
use crate::kernels::cpu::float::{Float, zeros};
use crate::kernels::cpu::matmul::{Matrix, Start, multiply, multiply_alone};
use crate::kernels::shapes::ConvShape;

/// Pixels of a product, at least, if there are so many.
const PIXELS: usize = 512;

/// Pixels of a part of the weight's gradient, at least, and of one of its products.
const LONG: usize = 1024;

/// Elements of all partial sums of a weight's gradient.
const PARTIAL: usize = 1 << 20;

/// Whether a convolution is one of these.
pub(super) fn fits(conv: &ConvShape) -> bool {
    let sides = [conv.height, conv.width];
    conv.groups == 1
        && sides
            .into_iter()
            .all(|side| side.kernel == 1 && side.stride == 1 && side.padding == 0 && side.input == side.output)
}

/// See [`super::forward`].
pub(super) fn forward<T: Float>(conv: &ConvShape, x: &[T], w: &[T], bias: Option<&[T]>) -> Vec<T> {
    products(Matrix::new(w, conv.filters, conv.channels), [conv.channels, conv.filters], conv.input(), bias, x)
}

/// See [`super::input_gradient`].
pub(super) fn input_gradient<T: Float>(conv: &ConvShape, dy: &[T], w: &[T]) -> Vec<T> {
    let w = Matrix::new(w, conv.filters, conv.channels).transposed();
    products(w, [conv.filters, conv.channels], conv.input(), None, dy)
}

/// a x, plus a bias, for each image of x.
fn products<T: Float>(a: Matrix<'_, T>, [from, to]: [usize; 2], plane: usize, bias: Option<&[T]>, x: &[T]) -> Vec<T> {
    let images = x.len() / (from * plane);
    let together = (PIXELS / plane).clamp(1, images);
    let alone = images.div_ceil(together) >= PARTS;
    let multiply = if alone { multiply_alone } else { multiply };
    let mut y = zeros(images * to * plane);
    y.par_chunks_mut(together * to * plane).zip(x.par_chunks(together * from * plane)).for_each(|(y, x)| {
        let pixels = x.len() / from;
        if pixels == plane {
            multiply(y, a, Matrix::new(x, from, plane), Start::Zero);
        } else {
            T::with_scratch(|scratch| {
                scratch.resize((from + to) * pixels, T::default());
                let (rows, product) = scratch[..(from + to) * pixels].split_at_mut(from * pixels);
                side_by_side(x, [from, plane], rows);
                multiply(product, a, Matrix::new(rows, from, pixels), Start::Zero);
                for (channel, product) in product.chunks_exact(pixels).enumerate() {
                    for (image, product) in product.chunks_exact(plane).enumerate() {
                        y[(image * to + channel) * plane..][..plane].copy_from_slice(product);
                    }
                }
            });
        }
        if let Some(bias) = bias {
            for image in y.chunks_exact_mut(to * plane) {
                for (y, bias) in image.chunks_exact_mut(plane).zip(bias) {
                    for y in y {
                        *y += *bias;
                    }
                }
            }
        }
    });
    y
}

/// From (images, channels, plane) to (channels, images, plane).
fn side_by_side<T: Float>(x: &[T], [channels, plane]: [usize; 2], rows: &mut [T]) {
    let pixels = x.len() / channels;
    for (channel, row) in rows.chunks_exact_mut(pixels).enumerate() {
        for (image, row) in row.chunks_exact_mut(plane).enumerate() {
            row.copy_from_slice(&x[(image * channels + channel) * plane..][..plane]);
        }
    }
}

/// See [`super::weight_gradient`].
pub(super) fn weight_gradient<T: Float>(conv: &ConvShape, x: &[T], dy: &[T]) -> Vec<T> {
    let ConvShape { images, channels, filters, .. } = *conv;
    let (plane, size) = (conv.input(), channels * filters);
    let parts = (images * plane / LONG).min(PARTIAL / size).clamp(1, PARTS).min(images);
    let parts: Vec<Range<usize>> = (0..parts).map(|i| i * images / parts..(i + 1) * images / parts).collect();
    let together = (LONG / plane).clamp(1, images);
    // The one with fewer rows is the first: it is packed.
    let flipped = filters > channels;
    let part = |part: &Range<usize>| {
        let mut sum = zeros::<T>(size);
        for first in part.clone().step_by(together) {
            let last = (first + together).min(part.end);
            let pixels = (last - first) * plane;
            let x = &x[first * channels * plane..last * channels * plane];
            let dy = &dy[first * filters * plane..last * filters * plane];
            let mut add = |x: &[T], dy: &[T]| {
                let (x, dy) = (Matrix::new(x, channels, pixels), Matrix::new(dy, filters, pixels));
                let (a, b) = if flipped { (x, dy) } else { (dy, x) };
                multiply(&mut sum, a, b.transposed(), Start::Kept);
            };
            if pixels == plane {
                add(x, dy);
            } else {
                T::with_scratch(|scratch| {
                    scratch.resize((channels + filters) * pixels, T::default());
                    let (rows, others) = scratch[..(channels + filters) * pixels].split_at_mut(channels * pixels);
                    side_by_side(x, [channels, plane], rows);
                    side_by_side(dy, [filters, plane], others);
                    add(rows, others);
                });
            }
        }
        sum
    };
    let mut sums = parts.par_iter().map(part).collect::<Vec<_>>().into_iter();
    let mut dw = sums.next().unwrap_or_default();
    for sum in sums {
        dw.iter_mut().zip(sum).for_each(|(dw, sum)| *dw += sum);
    }
    if flipped { transposed(&dw, filters) } else { dw }
}

/// The transpose of a matrix with this many columns.
fn transposed<T: Float>(x: &[T], columns: usize) -> Vec<T> {
    const BLOCK: usize = 16;
    let rows = x.len() / columns;
    let mut y = zeros(x.len());
    y.par_chunks_mut(BLOCK * rows).enumerate().for_each(|(block, y)| {
        let first = block * BLOCK;
        for (row, x) in x.chunks_exact(columns).enumerate() {
            for (y, x) in y.chunks_exact_mut(rows).zip(&x[first..]) {
                y[row] = *x;
            }
        }
    });
    y
}
