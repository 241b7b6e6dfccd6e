//! Dropout in NHWC.

use candle_core::{DType, Device, Tensor};

use super::super::launch::dropout::Dropout;
use super::{Buffer, in_both_orders, in_layout, numbers, on_cpu, to_nchw};
use crate::core::image_layout::ImageLayout;
use crate::kernels::cpu::dropout::DropoutMask;

#[test]
fn dropout_of_images_that_are_channels_last() {
    let sizes @ [images, channels, plane] = [3, 7, 11];
    let [n, step] = [images * channels * plane, channels];
    let values = numbers(n, 1);
    let x = Buffer::new(DType::F32, &in_layout(&values, sizes, ImageLayout::Nhwc));
    let Some(found) = in_both_orders(|launcher| {
        let y = Buffer::empty(DType::F32, n);
        let mask = Dropout { seed: 77, drop: 0.3, scale: 1.0 / (1.0 - 0.3), plane, step };
        mask.run(launcher, 0, [x.address(), y.address()], n)?;
        Ok(vec![y])
    }) else {
        return;
    };
    let x = Tensor::new(values, &Device::Cpu).unwrap().to_dtype(DType::F32).unwrap();
    let expected = on_cpu(&DropoutMask { drop_p: 0.3, seed: 77 }.apply(&x).unwrap());
    assert_eq!(to_nchw(&found[0], sizes, ImageLayout::Nhwc), expected);
}
