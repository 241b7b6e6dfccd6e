//! Interpolation, against that of the CPU in f64.

use candle_core::{Device, Tensor};

use super::super::launch::dtype_code;
use super::{Buffer, FLOATS, LAYOUTS, assert_close, in_both_orders, in_layout, numbers, on_cpu, to_nchw, tolerance};
use crate::core::image_layout::ImageLayout;
use crate::kernels::cpu;
use crate::kernels::shapes::{Resize, ResizeMode, UpsampleShape};

#[test]
fn upsampling() {
    let sides = [([3, 4], [7, 4]), ([5, 2], [3, 9]), ([1, 6], [4, 1]), ([4, 4], [8, 12])];
    let modes = [ResizeMode::Nearest, ResizeMode::Linear, ResizeMode::AlignedCorners];
    let cases = sides.into_iter().flat_map(|sides| modes.map(|mode| (sides, mode)));
    for (((input, output), mode), format) in cases.flat_map(|case| LAYOUTS.map(|format| (case, format))) {
        let [rows, columns] = [0, 1].map(|i| Resize::new(input[i], output[i], None, mode));
        let step = if format == ImageLayout::Nchw { 1 } else { 3 };
        let shape = UpsampleShape { rows, columns, planes: 6, step };
        let [n, m] = [input, output].map(|[a, b]| 6 * a * b);
        let [of_input, of_output] = [input, output].map(|[a, b]| [2, 3, a * b]);
        for dtype in FLOATS {
            let [x, dy] = [(n, 1), (m, 2)].map(|(n, seed)| Buffer::new(dtype, &numbers(n, seed)));
            let Some(found) = in_both_orders(|launcher| {
                let in_layout = |x: &Buffer, sizes| Buffer::new(dtype, &in_layout(&x.values(), sizes, format));
                let (x, dy) = (in_layout(&x, of_input), in_layout(&dy, of_output));
                let (y, dx) = (Buffer::empty(dtype, m), Buffer::empty(dtype, n));
                shape.forward(launcher, dtype_code(dtype)?, [x.address(), y.address()])?;
                shape.backward(launcher, dtype_code(dtype)?, [dy.address(), dx.address()])?;
                Ok(vec![y, dx])
            }) else {
                return;
            };
            let found = [to_nchw(&found[0], of_output, format), to_nchw(&found[1], of_input, format)];
            let of = |values: &Buffer, [h, w]: [usize; 2]| {
                Tensor::from_vec(values.values(), (2, 3, h, w), &Device::Cpu).unwrap()
            };
            let (x, dy) = (of(&x, input), of(&dy, output));
            let dx = cpu::upsample::upsample_back(&shape, &x, &dy).unwrap().flatten_all().unwrap().to_vec1().unwrap();
            let y = on_cpu(&cpu::upsample::upsample(&shape, &x, (2, 3, output[0], output[1]).into()).unwrap());
            for (found, expected) in found.iter().zip([y, dx]) {
                assert_close(found, &expected, 4.0 * tolerance(dtype), &format!("{dtype:?}, {shape:?}"));
            }
        }
    }
}
