//! Layer and RMS normalization, against the CPU kernels in f64.

use candle_core::{DType, Device, Tensor};

use super::super::launch::dtype_code;
use super::super::launch::layer_norm::LayerNorm;
use super::{Buffer, FLOATS, assert_close, in_both_orders, numbers, on_cpu, tolerance};
use crate::kernels::cpu::layer_norm::{backward, forward};
use crate::kernels::shapes::RowNormShape;

#[test]
fn layer_norms() {
    let shapes = [[5, 8], [70, 17], [3, 300], [2, 2104], [130, 64]];
    for (i, (dtype, [rows, columns])) in
        FLOATS.into_iter().flat_map(|dtype| shapes.map(|shape| (dtype, shape))).enumerate()
    {
        let (n, centered, biased) = (rows * columns, i % 3 != 0, i % 2 == 0);
        let affine_dtype = if i % 4 < 2 { DType::F32 } else { dtype };
        // A large mean, as far as the type can hold what is beside it.
        let mean = if matches!(dtype, DType::F32 | DType::F64) && centered { 1000.0 } else { 0.5 };
        let values: Vec<f64> = numbers(n, 1).into_iter().map(|x| mean + 2.0 * x).collect();
        let [x, dy] = [&values, &numbers(n, 2)].map(|values| Buffer::shifted(dtype, values, i / 2 % 2));
        let [weight, bias] = [3, 4].map(|seed| Buffer::new(affine_dtype, &numbers(columns, seed)));
        let norm = |statistics: &Buffer| LayerNorm {
            rows,
            columns,
            eps: 1e-5,
            centered,
            dtype: dtype_code(dtype).unwrap(),
            affine_dtype: dtype_code(affine_dtype).unwrap(),
            weight: weight.address(),
            bias: if biased { bias.address() } else { 0 },
            statistics: statistics.address(),
        };
        let Some(found) = in_both_orders(|launcher| {
            let statistics = Buffer::empty(DType::F64, 2 * rows);
            let [y, dx] = [(); 2].map(|()| Buffer::empty(dtype, n));
            let [d_weight, d_bias] = [(); 2].map(|()| Buffer::empty(affine_dtype, columns));
            norm(&statistics).forward(launcher, [x.address(), y.address()])?;
            let gradients = [dx.address(), d_weight.address(), d_bias.address()];
            norm(&statistics).backward(launcher, [x.address(), dy.address()], gradients)?;
            Ok(vec![y, dx, d_weight, d_bias])
        }) else {
            return;
        };
        let tensor = |buffer: &Buffer, shape: &[usize]| Tensor::from_vec(buffer.values(), shape, &Device::Cpu).unwrap();
        let args = [tensor(&x, &[rows, columns]), tensor(&weight, &[columns]), tensor(&bias, &[columns])];
        let on_rows = RowNormShape { columns, eps: 1e-5, centered };
        let (y, moments) = forward(on_rows, &args[0], &args[1], biased.then_some(&args[2])).unwrap();
        let gradients = backward(on_rows, &args, &moments, &[true; 3], &tensor(&dy, &[rows, columns])).unwrap();
        let what = format!("{dtype:?}, γ of {affine_dtype:?}, {rows} of {columns}, centered {centered}");
        assert_close(&found[0], &on_cpu(&y), 4.0 * tolerance(dtype), &what);
        for ((found, expected), dtype) in found[1..].iter().zip(gradients).zip([dtype, affine_dtype, affine_dtype]) {
            let expected: Vec<f64> = expected.unwrap().flatten_all().unwrap().to_vec1().unwrap();
            assert_close(found, &expected, 4.0 * tolerance(dtype).max(1e-12), &what);
        }
    }
}
