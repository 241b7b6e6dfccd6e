//! Convolutions on tensors: cuDNN where it has a plan, otherwise im2col.

use std::sync::OnceLock;

use candle_core::{DType, Result, Tensor};

use super::buffers::{Output, UninitTensor, device, device_ptr};
use super::context::with_context;
#[cfg(feature = "cudnn")]
use super::cudnn;
use super::im2col;
use super::launch::channels::{self, Channels};
use super::launch::dtype_code;
use super::launch::im2col::Filters;
use super::linear::bias_back;
use crate::core::image_layout::ImageLayout;
use crate::kernels::cpu::conv::Conv;

/// The convolution of x with w, plus a bias. `kept` stores the converted weight for the backward pass.
pub(crate) fn conv(conv: &Conv, args: &[Tensor], kept: &OnceLock<Tensor>) -> Result<Output> {
    let (x, w) = (&args[0], filters(&args[1], &args[0])?);
    let y = convolved(conv, x, &w)?;
    if let Some(bias) = args.get(2) {
        let (dtypes, addresses) =
            ([dtype_code(x.dtype())?, device_ptr(bias)?.dtype], [y.address()?, device_ptr(bias)?.address]);
        with_context(device(x)?, |context| channels::bias(context, outputs(conv, x), dtypes, addresses))?;
    }
    kept.get_or_init(|| w);
    Ok(y.output())
}

/// The requested gradients of x, w and the bias.
pub(crate) fn conv_back(
    conv: &Conv,
    args: &[Tensor],
    kept: Option<&Tensor>,
    wanted: &[bool],
    dy: &Tensor,
) -> Result<Vec<Option<Tensor>>> {
    let gradient = |(i, arg): (usize, &Tensor)| match i {
        _ if !wanted[i] => Ok(None),
        0 => {
            let w = kept.map_or_else(|| filters(&args[1], &args[0]), |kept| Ok(kept.clone()))?;
            back_to_images(conv, &w, dy, ImageLayout::of(&args[0])).map(Some)
        }
        1 => back_to_weight(conv, &args[0], arg, dy).map(Some),
        _ => bias_back(arg, dy, outputs(conv, dy)).map(Some),
    };
    args.iter().enumerate().map(gradient).collect()
}

fn convolved(conv: &Conv, x: &Tensor, w: &Tensor) -> Result<UninitTensor> {
    #[cfg(feature = "cudnn")]
    if let Some(y) = cudnn::forward(conv, x, w, ImageLayout::of(x))? {
        return Ok(y);
    }
    match ImageLayout::of(x) {
        ImageLayout::Nchw => im2col::forward(conv, x, w),
        ImageLayout::Nhwc => convolved(conv, &x.contiguous()?, &w.contiguous()?)?.channels_last(),
    }
}

/// The gradient of the images, in their layout: dy does not show it if it has one pixel or one channel.
fn back_to_images(conv: &Conv, w: &Tensor, dy: &Tensor, format: ImageLayout) -> Result<Tensor> {
    #[cfg(feature = "cudnn")]
    if let Some(dx) = cudnn::backward_data(conv, w, dy, format)? {
        return Ok(dx);
    }
    if format == ImageLayout::Nhwc {
        let dx = back_to_images(conv, &w.contiguous()?, &dy.contiguous()?, ImageLayout::Nchw)?;
        return format.arrange(&dx);
    }
    im2col::backward_data(conv, w, dy)
}

/// The gradient of the weight, contiguous and in the weight's dtype.
fn back_to_weight(conv: &Conv, x: &Tensor, weight: &Tensor, dy: &Tensor) -> Result<Tensor> {
    #[cfg(feature = "cudnn")]
    if let Some(dw) = cudnn::backward_filter(conv, x, dy, ImageLayout::of(x))? {
        return permuted(&dw, weight.dtype(), ImageLayout::Nchw);
    }
    if ImageLayout::of(x) == ImageLayout::Nhwc {
        return back_to_weight(conv, &x.contiguous()?, weight, &dy.contiguous()?);
    }
    im2col::backward_filter(conv, x, dy)?.to_dtype(weight.dtype())
}

/// The weight in the dtype and layout of the images.
fn filters(w: &Tensor, images: &Tensor) -> Result<Tensor> {
    permuted(w, images.dtype(), ImageLayout::of(images))
}

/// A weight in this dtype and layout.
fn permuted(w: &Tensor, dtype: DType, format: ImageLayout) -> Result<Tensor> {
    let (filters, channels, height, width) = w.dims4()?;
    if ImageLayout::of(w) == format || height * width == 1 {
        return w.to_dtype(dtype);
    }
    let sizes = Filters { count: filters, channels, taps: height * width };
    let (from, to) = (device_ptr(w)?, UninitTensor { format, ..UninitTensor::new(device(w)?, dtype, w.shape())? });
    let (types, addresses) = ([from.dtype, dtype_code(dtype)?], [from.address, to.address()?]);
    with_context(device(w)?, |context| sizes.permute(context, types, addresses, format))?;
    to.tensor()
}

fn outputs(conv: &Conv, images: &Tensor) -> Channels {
    let plane = conv.height.output * conv.width.output;
    Channels { images: conv.images, channels: conv.filters, plane, format: ImageLayout::of(images) }
}
