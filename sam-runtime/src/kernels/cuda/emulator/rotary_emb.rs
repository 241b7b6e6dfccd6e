//! Rotations, against the CPU kernels in f64.

use candle_core::{DType, Device, Tensor};

use super::super::launch::dtype_code;
use super::super::launch::rotary_emb::rope;
use super::{Buffer, FLOATS, assert_close, in_both_orders, numbers, on_cpu, tolerance};
use crate::kernels::cpu::rotary_emb::rotate;
use crate::kernels::shapes::RotaryShape;

#[test]
fn rotations() {
    let [batch, heads, time, half, times] = [2, 3, 41, 18, 43];
    for (dtype, case) in FLOATS.into_iter().flat_map(|dtype| (0..8).map(move |case| (dtype, case))) {
        let steps = if case & 4 == 0 { [0; 2] } else { [times * half; 2] };
        let rotation =
            RotaryShape { interleaved: case & 1 != 0, batch, heads, time, half, heads_inside: case & 2 != 0, steps };
        let wide = if dtype == DType::F64 { DType::F64 } else { DType::F32 };
        let x = Buffer::new(dtype, &numbers(batch * heads * time * 2 * half, 1));
        let [cos, sin] = [2, 3].map(|seed| Buffer::new(wide, &numbers(batch * times * half, seed)));
        let tensor = |buffer: &Buffer| Tensor::new(buffer.values(), &Device::Cpu).unwrap();
        let inputs = [&x, &cos, &sin].map(tensor);
        for inverse in [false, true] {
            let Some(found) = in_both_orders(|launcher| {
                let y = Buffer::empty(dtype, x.len);
                let addresses = [x.address(), cos.address(), sin.address(), y.address()];
                rope(launcher, &rotation, dtype_code(dtype).unwrap(), addresses, inverse)?;
                Ok(vec![y])
            }) else {
                return;
            };
            let [x, cos, sin] = inputs.each_ref();
            let sin = if inverse { sin.neg().unwrap() } else { sin.clone() };
            let expected = on_cpu(&rotate(&rotation, [x, cos, &sin]).unwrap());
            assert_close(&found[0], &expected, 2.0 * tolerance(dtype), &format!("{rotation:?}, {dtype:?}"));
        }
    }
}
