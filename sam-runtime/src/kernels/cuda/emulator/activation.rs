//! Activation functions and gates, against the CPU kernels in f64.

use candle_core::{DType, Device, Tensor};

use super::super::launch::{activation, dtype_code};
use super::{Buffer, FLOATS, assert_close, emulators, in_both_orders, numbers, on_cpu, tolerance};
use crate::kernels::activation::{Function, Gate};
use crate::kernels::cpu;

const ALL: [Function; 13] = [
    Function::GeluTanh,
    Function::GeluErf,
    Function::Silu,
    Function::Sigmoid,
    Function::Tanh,
    Function::Mish,
    Function::Relu2,
    Function::Relu6,
    Function::HardSigmoid,
    Function::HardSwish,
    Function::LeakyRelu(0.25),
    Function::Elu(1.25),
    Function::Selu { alpha: 1.67, gamma: 1.05 },
];

fn on_host(buffer: &Buffer, shape: &[usize]) -> Tensor {
    Tensor::from_vec(buffer.values(), shape, &Device::Cpu).unwrap()
}

#[test]
fn functions_and_slopes() {
    for (dtype, before) in FLOATS.into_iter().flat_map(|dtype| [(dtype, 0), (dtype, 1)]) {
        let (n, type_code) = (4096 + 37, dtype_code(dtype).unwrap());
        let x = Buffer::shifted(dtype, &numbers(n, 1).iter().map(|x| 7.0 * x).collect::<Vec<_>>(), before);
        let dy = Buffer::shifted(dtype, &numbers(n, 2), before);
        for function in ALL {
            let Some(found) = in_both_orders(|launcher| {
                let [y, dx] = [(); 2].map(|()| Buffer::empty(dtype, n));
                activation::activation(launcher, function, type_code, [x.address(), y.address()], n)?;
                let addresses = [x.address(), dy.address(), dx.address()];
                activation::activation_back(launcher, function, type_code, addresses, n)?;
                Ok(vec![y, dx])
            }) else {
                return;
            };
            let (x, dy) = (on_host(&x, &[n]), on_host(&dy, &[n]));
            let y = on_cpu(&cpu::activation::activate(function, &x).unwrap());
            let dx = cpu::activation::activate_back(function, &x, &dy).unwrap().to_vec1().unwrap();
            for (found, expected) in found.iter().zip([y, dx]) {
                assert_close(found, &expected, tolerance(dtype), &format!("{function:?}, {dtype:?}"));
            }
        }
    }
}

#[test]
fn limits_are_those_of_the_cpu() {
    let numbers =
        [f64::NEG_INFINITY, -1e30, -300.0, -105.0, -50.0, 0.0, 50.0, 105.0, 300.0, 1e30, f64::INFINITY, f64::NAN];
    let n = numbers.len();
    for (dtype, function) in
        [DType::F32, DType::F64].into_iter().flat_map(|dtype| ALL.map(|function| (dtype, function)))
    {
        for mut launcher in emulators() {
            let [x, ones] = [numbers, [1.0; 12]].map(|values| Buffer::new(dtype, &values));
            let ([y, dx], type_code) = ([(); 2].map(|()| Buffer::empty(dtype, n)), dtype_code(dtype).unwrap());
            activation::activation(&mut launcher, function, type_code, [x.address(), y.address()], n).unwrap();
            let addresses = [x.address(), ones.address(), dx.address()];
            activation::activation_back(&mut launcher, function, type_code, addresses, n).unwrap();
            let (x, ones) = (on_host(&x, &[n]).to_dtype(dtype).unwrap(), on_host(&ones, &[n]).to_dtype(dtype).unwrap());
            let expected = on_cpu(&cpu::activation::activate(function, &x).unwrap());
            let slopes = cpu::activation::activate_back(function, &x, &ones).unwrap().to_dtype(DType::F64).unwrap();
            for (found, expected) in [(y, expected), (dx, slopes.to_vec1().unwrap())] {
                for (i, (a, b)) in found.values().iter().zip(&expected).enumerate() {
                    let near = a == b || a.is_nan() && b.is_nan() || (a - b).abs() < 1e-6 * b.abs() + 1e-20;
                    assert!(near, "{function:?}, {dtype:?} at {}: {a} and {b}", numbers[i]);
                }
            }
        }
    }
}

#[test]
fn gates() {
    for (dtype, half, second) in FLOATS.into_iter().flat_map(|dtype| [(dtype, 5, false), (dtype, 300, true)]) {
        let (rows, type_code) = (17, dtype_code(dtype).unwrap());
        let n = rows * half;
        let x = Buffer::new(dtype, &numbers(2 * n, 1).iter().map(|x| 3.0 * x).collect::<Vec<_>>());
        let dy = Buffer::new(dtype, &numbers(n, 2));
        for function in [Function::Silu, Function::Sigmoid] {
            let gate = Gate { function, half, second };
            let Some(found) = in_both_orders(|launcher| {
                let [y, dx] = [n, 2 * n].map(|n| Buffer::empty(dtype, n));
                activation::gate(launcher, gate, type_code, [x.address(), y.address()], n)?;
                activation::gate_back(launcher, gate, type_code, [x.address(), dy.address(), dx.address()], n)?;
                Ok(vec![y, dx])
            }) else {
                return;
            };
            let (x, dy) = (on_host(&x, &[rows, 2 * half]), on_host(&dy, &[rows, half]));
            let y = on_cpu(&cpu::activation::gate(gate, &x, &[rows, half]).unwrap());
            let dx = cpu::activation::gate_back(gate, &x, &dy).unwrap().flatten_all().unwrap().to_vec1().unwrap();
            for (found, expected) in found.iter().zip([y, dx]) {
                assert_close(found, &expected, 3.0 * tolerance(dtype), &format!("{gate:?}, {dtype:?}"));
            }
        }
    }
}
