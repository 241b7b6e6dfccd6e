//! Patches against the CPU's convolution in f64, and filters between layouts.

use super::super::launch::dtype_code;
use super::super::launch::im2col::{Filters, Patches};
use super::{Buffer, FLOATS, assert_close, in_both_orders, numbers, to_nchw, tolerance};
use crate::core::image_layout::ImageLayout;
use crate::kernels::cpu::conv;
use crate::kernels::shapes::{ConvDim, ConvShape};

#[test]
fn weights_between_formats_and_types() {
    let pairs = FLOATS.into_iter().flat_map(|from| FLOATS.map(|to| (from, to)));
    for ((from, to), sizes) in pairs.flat_map(|pair| [[5, 300, 9], [2, 7, 49], [3, 1, 2]].map(|sizes| (pair, sizes))) {
        let [filters, channels, taps] = sizes;
        let values = numbers(filters * channels * taps, 1);
        let x = Buffer::new(from, &values);
        let Some(found) = in_both_orders(|launcher| {
            let weight = Filters { count: filters, channels, taps };
            let [y, back] = [to, from].map(|dtype| Buffer::empty(dtype, values.len()));
            let (there, home) = ([x.address(), y.address()], [y.address(), back.address()]);
            weight.permute(launcher, [dtype_code(from)?, dtype_code(to)?], there, ImageLayout::Nhwc)?;
            weight.permute(launcher, [dtype_code(to)?, dtype_code(from)?], home, ImageLayout::Nchw)?;
            Ok(vec![y, back])
        }) else {
            return;
        };
        let once = Buffer::new(to, &x.values()).values();
        assert_eq!(to_nchw(&found[0], sizes, ImageLayout::Nhwc), once, "{from:?} to {to:?}");
        assert_eq!(found[1], Buffer::new(from, &once).values(), "{to:?} to {from:?}");
    }
}

/// The matrix product of a (rows, inner) and b (inner, columns).
fn product(a: &[f64], b: &[f64], inner: usize, columns: usize) -> Vec<f64> {
    let mut product = Vec::with_capacity(a.len() / inner * columns);
    for row in a.chunks(inner) {
        for column in 0..columns {
            product.push(row.iter().zip(b.iter().skip(column).step_by(columns)).map(|(a, b)| a * b).sum());
        }
    }
    product
}

/// From (a, b, plane) to (b, a, plane).
fn permuted(x: &[f64], a: usize, b: usize, plane: usize) -> Vec<f64> {
    let mut y = Vec::with_capacity(x.len());
    for (j, i) in (0..b).flat_map(|j| (0..a).map(move |i| (j, i))) {
        y.extend(&x[(i * b + j) * plane..][..plane]);
    }
    y
}

#[test]
fn patches_of_convolutions() {
    for (kernel, stride, padding, dilation, input) in [
        ([3, 3], [1; 2], [1; 2], [1; 2], [6, 5]),
        ([3, 3], [2; 2], [1; 2], [1; 2], [7, 8]),
        ([1, 1], [2; 2], [0; 2], [1; 2], [6, 7]),
        ([3, 2], [1; 2], [2; 2], [2; 2], [8, 9]),
        ([1, 3], [1, 2], [0, 1], [1, 3], [1, 9]),
    ] {
        let (images, channels, filters) = (2, 3, 4);
        let side = |i: usize| {
            let (stride, padding, dilation) = (stride[i], padding[i], dilation[i]);
            let output = (input[i] + 2 * padding - dilation * (kernel[i] - 1) - 1) / stride + 1;
            ConvDim { input: input[i], kernel: kernel[i], output, stride, padding, dilation }
        };
        let conv = ConvShape { images, channels, filters, groups: 1, height: side(0), width: side(1) };
        let output = [conv.height.output, conv.width.output];
        let patches = Patches::new(&conv);
        let ([rows, columns], pixels) = (patches.matrix(), output[0] * output[1]);
        let n = images * channels * input[0] * input[1];
        let [w, dy] = [(filters * rows, 2), (filters * columns, 3)].map(|(n, seed)| numbers(n, seed));
        for dtype in FLOATS {
            let x = Buffer::new(dtype, &numbers(n, 1));
            let transposed = {
                let dy = permuted(&dy, images, filters, pixels);
                let w: Vec<f64> = (0..rows).flat_map(|r| w.iter().skip(r).step_by(rows).copied()).collect();
                Buffer::new(dtype, &product(&w, &dy, filters, columns))
            };
            let Some(found) = in_both_orders(|launcher| {
                let (matrix, dx) = (Buffer::empty(dtype, rows * columns), Buffer::empty(dtype, n));
                patches.im2col(launcher, dtype_code(dtype)?, [x.address(), matrix.address()])?;
                patches.col2im(launcher, dtype_code(dtype)?, [transposed.address(), dx.address()])?;
                Ok(vec![matrix, dx])
            }) else {
                return;
            };
            let y = permuted(&product(&w, &found[0], rows, columns), filters, images, pixels);
            assert_close(&y, &conv::forward(&conv, &x.values(), &w, None), 1e-12, &format!("{dtype:?}, {conv:?}"));
            let dx = conv::input_gradient(&conv, &dy, &w);
            assert_close(&found[1], &dx, 8.0 * tolerance(dtype), &format!("{dtype:?}, {conv:?}"));
        }
    }
}
