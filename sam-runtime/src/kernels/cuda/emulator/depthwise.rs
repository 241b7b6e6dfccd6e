//! Depthwise convolutions, against those of the CPU in f64.

use super::super::launch::depthwise::Depthwise;
use super::super::launch::dtype_code;
use super::{Buffer, FLOATS, assert_close, in_both_orders, numbers, tolerance};
use crate::kernels::cpu::conv;
use crate::kernels::shapes::{ConvDim, ConvShape};

#[test]
fn depthwise_convolutions() {
    // Kernel, stride, padding, dilation and input of both sides, and filters of a channel.
    let cases = [
        ([[3, 1, 1, 1, 6], [3, 1, 1, 1, 5]], 1),
        ([[5, 2, 2, 1, 9], [3, 2, 1, 1, 8]], 2),
        ([[1, 1, 0, 1, 1], [4, 1, 3, 1, 300]], 1),
        ([[2, 3, 2, 2, 7], [3, 1, 0, 2, 9]], 3),
    ];
    for (dtype, (sides, multiple)) in FLOATS.into_iter().flat_map(|dtype| cases.map(|case| (dtype, case))) {
        let [height, width] = sides.map(|[kernel, stride, padding, dilation, input]| {
            let output = (input + 2 * padding - dilation * (kernel - 1) - 1) / stride + 1;
            ConvDim { input, kernel, output, stride, padding, dilation }
        });
        let (images, channels) = (3, 4);
        let conv = ConvShape { images, channels, filters: channels * multiple, groups: channels, height, width };
        let depthwise = Depthwise::of(&conv).unwrap();
        let n = images * channels * height.input * width.input;
        let m = images * conv.filters * height.output * width.output;
        let k = conv.filters * height.kernel * width.kernel;
        let [x, w, dy] = [(n, 1), (k, 2), (m, 3)].map(|(n, seed)| Buffer::new(dtype, &numbers(n, seed)));
        let Some(found) = in_both_orders(|launcher| {
            let [y, dx, dw] = [m, n, k].map(|n| Buffer::empty(dtype, n));
            let code = dtype_code(dtype)?;
            depthwise.forward(launcher, code, [x.address(), w.address(), y.address()])?;
            depthwise.back_to_images(launcher, code, [dy.address(), w.address(), dx.address()])?;
            depthwise.back_to_weight(launcher, code, [x.address(), dy.address(), dw.address()])?;
            Ok(vec![y, dx, dw])
        }) else {
            return;
        };
        let (x, w, dy) = (x.values(), w.values(), dy.values());
        let expected = [
            conv::forward(&conv, &x, &w, None),
            conv::input_gradient(&conv, &dy, &w),
            conv::weight_gradient(&conv, &x, &dy),
        ];
        for (found, expected) in found.iter().zip(&expected) {
            assert_close(found, expected, 8.0 * tolerance(dtype), &format!("{dtype:?}, {conv:?}"));
        }
    }
}
