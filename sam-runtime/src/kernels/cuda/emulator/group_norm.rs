//! Group normalization, against the CPU kernels in f64.

use candle_core::{DType, Device, Tensor};

use super::super::launch::dtype_code;
use super::super::launch::group_norm::GroupNorm;
use super::{Buffer, FLOATS, assert_close, in_both_orders, numbers, on_cpu, tolerance};
use crate::kernels::cpu::group_norm::{backward, forward};
use crate::kernels::shapes::GroupNormShape;

#[test]
fn group_norms() {
    let shapes = [[2, 6, 3, 20], [3, 4, 1, 7], [1, 12, 12, 64], [2, 2, 2, 600]];
    for (i, (dtype, [images, channels, groups, plane])) in
        FLOATS.into_iter().flat_map(|dtype| shapes.map(|shape| (dtype, shape))).enumerate()
    {
        let n = images * channels * plane;
        let affine_dtype = if i % 2 == 0 { DType::F32 } else { dtype };
        let [x, dy] = [1, 2].map(|seed| Buffer::shifted(dtype, &numbers(n, seed), i / 2 % 2));
        let [weight, bias] = [3, 4].map(|seed| Buffer::new(affine_dtype, &numbers(channels, seed)));
        let norm = |statistics: &Buffer| GroupNorm {
            images,
            channels,
            groups,
            plane,
            eps: 1e-5,
            dtype: dtype_code(dtype).unwrap(),
            affine_dtype: dtype_code(affine_dtype).unwrap(),
            weight: weight.address(),
            bias: bias.address(),
            statistics: statistics.address(),
        };
        let Some(found) = in_both_orders(|launcher| {
            let statistics = Buffer::empty(DType::F64, 2 * images * groups);
            let [y, dx] = [(); 2].map(|()| Buffer::empty(dtype, n));
            let [d_weight, d_bias] = [(); 2].map(|()| Buffer::empty(affine_dtype, channels));
            norm(&statistics).forward(launcher, [x.address(), y.address()])?;
            let gradients = [dx.address(), d_weight.address(), d_bias.address()];
            norm(&statistics).backward(launcher, [x.address(), dy.address()], gradients)?;
            Ok(vec![y, dx, d_weight, d_bias])
        }) else {
            return;
        };
        let tensor = |buffer: &Buffer, shape: &[usize]| Tensor::from_vec(buffer.values(), shape, &Device::Cpu).unwrap();
        let shape = [images, channels, plane];
        let args = [tensor(&x, &shape), tensor(&weight, &[channels]), tensor(&bias, &[channels])];
        let norm = GroupNormShape { channels, groups, plane, eps: 1e-5 };
        let (y, moments) = forward(norm, &args[0], &args[1], &args[2]).unwrap();
        let gradients = backward(norm, &args, &moments, &[true; 3], &tensor(&dy, &shape)).unwrap();
        let what = format!("{dtype:?}, γ of {affine_dtype:?}, {shape:?} in {groups} groups");
        assert_close(&found[0], &on_cpu(&y), 4.0 * tolerance(dtype), &what);
        for ((found, expected), dtype) in found[1..].iter().zip(gradients).zip([dtype, affine_dtype, affine_dtype]) {
            let expected: Vec<f64> = expected.unwrap().flatten_all().unwrap().to_vec1().unwrap();
            assert_close(found, &expected, 4.0 * tolerance(dtype), &what);
        }
    }
}
