//! Pooling, against the CPU kernels in f64.

use candle_core::{DType, Device, Result, Tensor, Var};

use super::super::launch::dtype_code;
use super::super::launch::pool::Mean;
use super::{
    Buffer, FLOATS, LAYOUTS, assert_close, emulators, in_both_orders, in_layout, numbers, on_cpu, to_nchw, tolerance,
};
use crate::core::image_layout::ImageLayout;
use crate::kernels::cpu;
use crate::kernels::shapes::PoolShape;

/// The value of a function of one tensor in f64, and its gradient for `dy`.
fn reference(x: &Buffer, shape: &[usize], dy: &[f64], f: impl Fn(&Tensor) -> Result<Tensor>) -> [Vec<f64>; 2] {
    let x = Var::from_tensor(&Tensor::from_vec(x.values(), shape, &Device::Cpu).unwrap()).unwrap();
    let y = f(&x).unwrap();
    let flat = y.flatten_all().unwrap();
    let dy = Tensor::new(&dy[..flat.elem_count()], &Device::Cpu).unwrap();
    let grads = (&flat * dy).unwrap().sum_all().unwrap().backward().unwrap();
    [flat, grads.get(&x).unwrap().flatten_all().unwrap()].map(|t| t.to_vec1().unwrap())
}

#[test]
fn pooling() {
    let sizes = [(2, 2, 0, [6, 8]), (3, 2, 1, [7, 9]), (3, 1, 1, [5, 4]), (2, 3, 0, [9, 8]), (4, 2, 2, [6, 5])];
    for (dtype, (kernel, stride, padding, input)) in FLOATS.into_iter().flat_map(|d| sizes.map(|s| (d, s))) {
        for (max, format) in [false, true].into_iter().flat_map(|max| LAYOUTS.map(|format| (max, format))) {
            let output = input.map(|side| (side + 2 * padding - kernel) / stride + 1);
            let (planes, type_code) = (6, dtype_code(dtype).unwrap());
            let step = if format == ImageLayout::Nchw { 1 } else { 3 };
            let pool = PoolShape { max, kernel, stride, padding, input, output, planes, step };
            let [n, m] = [input, output].map(|[a, b]| planes * a * b);
            let [of_input, of_output] = [input, output].map(|[a, b]| [2, 3, a * b]);
            // Few distinct values, so that windows have ties.
            let x: Vec<f64> = numbers(n, 1).into_iter().map(|x| (x * 4.0).round() / 4.0).collect();
            let [x, dy] = [x, numbers(m, 2)].map(|values| Buffer::new(dtype, &values));
            let Some(mut found) = in_both_orders(|launcher| {
                let in_layout = |x: &Buffer, sizes| Buffer::new(dtype, &in_layout(&x.values(), sizes, format));
                let (x, dy) = (in_layout(&x, of_input), in_layout(&dy, of_output));
                let (y, dx) = (Buffer::empty(dtype, m), Buffer::empty(dtype, n));
                pool.forward(launcher, type_code, [x.address(), y.address()])?;
                pool.backward(launcher, type_code, [x.address(), dy.address(), dx.address()])?;
                Ok(vec![y, dx])
            }) else {
                return;
            };
            found = vec![to_nchw(&found[0], of_output, format), to_nchw(&found[1], of_input, format)];
            let shape = [2, 3, input[0], input[1]];
            let of =
                |values: &Buffer, shape: [usize; 4]| Tensor::from_vec(values.values(), &shape, &Device::Cpu).unwrap();
            let (x, dy) = (of(&x, shape), of(&dy, [2, 3, output[0], output[1]]));
            let dx = cpu::pool::pool_back(&pool, &x, &dy).unwrap().flatten_all().unwrap().to_vec1().unwrap();
            let expected = [on_cpu(&cpu::pool::pool(&pool, &x).unwrap()), dx];
            for (found, expected) in found.iter().zip(&expected) {
                assert_close(found, expected, 2.0 * tolerance(dtype), &format!("{dtype:?}, {pool:?}"));
            }
        }
    }
    let nan = Buffer::new(DType::F32, &[1.0, f64::NAN, 2.0, 3.0]);
    for mut launcher in emulators() {
        let y = Buffer::empty(DType::F32, 1);
        let (input, output) = ([2, 2], [1, 1]);
        let pool = PoolShape { max: true, kernel: 2, stride: 2, padding: 0, input, output, planes: 1, step: 1 };
        pool.forward(&mut launcher, 0, [nan.address(), y.address()]).unwrap();
        assert!(y.values()[0].is_nan());
    }
}

#[test]
fn means_of_planes() {
    for (dtype, format) in FLOATS.into_iter().flat_map(|dtype| LAYOUTS.map(|format| (dtype, format))) {
        for sizes @ [images, channels, plane] in [[4, 3, 64], [3, 3, 7], [1, 1, 1], [2, 300, 5]] {
            let (planes, step) = (images * channels, if format == ImageLayout::Nchw { 1 } else { channels });
            let (means, type_code, n) = (Mean { planes, plane, step }, dtype_code(dtype).unwrap(), planes * plane);
            let [x, dy] = [(1, n), (2, planes)].map(|(seed, n)| Buffer::new(dtype, &numbers(n, seed)));
            let Some(mut found) = in_both_orders(|launcher| {
                let (y, dx) = (Buffer::empty(dtype, planes), Buffer::empty(dtype, n));
                let x = Buffer::new(dtype, &in_layout(&x.values(), sizes, format));
                means.forward(launcher, type_code, [x.address(), y.address()])?;
                means.backward(launcher, type_code, [dy.address(), dx.address()])?;
                Ok(vec![y, dx])
            }) else {
                return;
            };
            found[1] = to_nchw(&found[1], sizes, format);
            let expected = reference(&x, &[planes, plane], &dy.values(), |x| x.mean(1));
            for (found, expected) in found.iter().zip(&expected) {
                assert_close(found, expected, tolerance(dtype), &format!("{dtype:?}, {sizes:?}, {format:?}"));
            }
        }
    }
}
