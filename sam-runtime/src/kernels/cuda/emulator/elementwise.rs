//! ReLU and sums, and the mask of dropout.

use candle_core::{DType, Device, Tensor};

use super::super::launch::dropout::Dropout;
use super::super::launch::dtype_code;
use super::super::launch::elementwise;
use super::{Buffer, FLOATS, assert_close, emulators, in_both_orders, numbers, on_cpu, tolerance};
use crate::kernels::cpu::dropout::DropoutMask;

#[test]
fn elementwise_operations() {
    for (dtype, before) in FLOATS.into_iter().flat_map(|dtype| [(dtype, 0), (dtype, 1)]) {
        let (n, type_code) = (4096 + 37, dtype_code(dtype).unwrap());
        let [mut a, mut b] = [1, 2].map(|seed| numbers(n, seed));
        (a[5], b[5]) = (0.0, 1.0);
        let [a, b] = [a, b].map(|values| Buffer::shifted(dtype, &values, before));
        let Some(found) = in_both_orders(|launcher| {
            let [relu, back, sum, dropped] = [(); 4].map(|()| Buffer::empty(dtype, n));
            elementwise::relu(launcher, type_code, [a.address(), relu.address()], n)?;
            elementwise::relu_back(launcher, type_code, [relu.address(), b.address(), back.address()], n)?;
            elementwise::add(launcher, type_code, [a.address(), b.address(), sum.address()], n)?;
            let mask = Dropout { seed: 77, drop: 0.3, scale: 1.0 / (1.0 - 0.3), plane: 1, step: 1 };
            mask.run(launcher, type_code, [a.address(), dropped.address()], n)?;
            Ok(vec![relu, back, sum, dropped])
        }) else {
            return;
        };
        let (a, b) = (a.values(), b.values());
        let pairs = || a.iter().zip(&b);
        let what = format!("{dtype:?}");
        assert_eq!(found[0], a.iter().map(|a| a.max(0.0)).collect::<Vec<_>>(), "{what}");
        assert_eq!(found[1], pairs().map(|(a, b)| if *a > 0.0 { *b } else { 0.0 }).collect::<Vec<_>>(), "{what}");
        assert_close(&found[2], &pairs().map(|(a, b)| a + b).collect::<Vec<_>>(), tolerance(dtype), &what);
        let x = Tensor::new(a.clone(), &Device::Cpu).unwrap().to_dtype(dtype).unwrap();
        let dropped = on_cpu(&DropoutMask { drop_p: 0.3, seed: 77 }.apply(&x).unwrap());
        assert_eq!(found[3], dropped, "the mask of the CPU, bitwise, {what}");
    }
    for mut launcher in emulators() {
        let (nan, relu) = (Buffer::new(DType::F32, &[f64::NAN]), Buffer::empty(DType::F32, 1));
        elementwise::relu(&mut launcher, 0, [nan.address(), relu.address()], 1).unwrap();
        assert!(relu.values()[0].is_nan());
    }
}
