//! Softmax and its logarithm, against the CPU kernels in f64.

use candle_core::{DType, Device, Tensor};

use super::super::launch::dtype_code;
use super::super::launch::softmax_dim::Softmax;
use super::{Buffer, FLOATS, assert_close, emulators, in_both_orders, numbers, on_cpu, tolerance};
use crate::kernels::cpu::softmax_dim::{softmax, softmax_back};
use crate::kernels::shapes::DimShape;

#[test]
fn softmaxes() {
    let shapes = [[40, 7, 1], [3, 300, 1], [2, 2104, 1], [5, 64, 1], [2, 9, 13], [1, 5, 300]];
    for (i, (dtype, [outer, size, inner])) in
        FLOATS.into_iter().flat_map(|dtype| shapes.map(|shape| (dtype, shape))).enumerate()
    {
        let (n, shape) = (outer * size * inner, DimShape { outer, size, inner });
        let mut values: Vec<f64> = numbers(n, 1).into_iter().map(|x| 8.0 * x).collect();
        values[1] = f64::NEG_INFINITY;
        let [x, dy] = [&values, &numbers(n, 2)].map(|values| Buffer::shifted(dtype, values, i % 2));
        let tensor = |values: Vec<f64>| Tensor::from_vec(values, (outer, size, inner), &Device::Cpu).unwrap();
        for log in [false, true] {
            let op = Softmax { shape, log, dtype: dtype_code(dtype).unwrap() };
            let Some(found) = in_both_orders(|launcher| {
                let [y, dx] = [(); 2].map(|()| Buffer::empty(dtype, n));
                op.forward(launcher, [x.address(), y.address()])?;
                op.backward(launcher, [y.address(), dy.address(), dx.address()])?;
                Ok(vec![y, dx])
            }) else {
                return;
            };
            let y = on_cpu(&softmax(&tensor(x.values()), shape, log).unwrap());
            let dx = softmax_back(&tensor(found[0].clone()), &tensor(dy.values()), shape, log).unwrap();
            let what = format!("{dtype:?}, {shape:?}, log {log}");
            if log {
                assert_eq!([found[0][1], y[1]], [f64::NEG_INFINITY; 2], "{what}");
            } else {
                assert_eq!([found[0][1], y[1], found[1][1]], [0.0; 3], "{what}");
            }
            let finite = |values: &[f64]| values.iter().map(|x| x.max(-1e4)).collect::<Vec<_>>();
            assert_close(&finite(&found[0]), &finite(&y), 4.0 * tolerance(dtype), &what);
            assert_close(&found[1], &dx.flatten_all().unwrap().to_vec1().unwrap(), 8.0 * tolerance(dtype), &what);
        }
    }
    let shape = DimShape { outer: 1, size: 2, inner: 1 };
    for mut launcher in emulators() {
        for values in [[f64::NEG_INFINITY; 2], [f64::INFINITY, 0.0], [f64::NAN, 0.0]] {
            let (x, y) = (Buffer::new(DType::F32, &values), Buffer::empty(DType::F32, 2));
            let op = Softmax { shape, log: false, dtype: 0 };
            op.forward(&mut launcher, [x.address(), y.address()]).unwrap();
            assert!(y.values().iter().all(|y| y.is_nan()), "{values:?}");
        }
    }
}
