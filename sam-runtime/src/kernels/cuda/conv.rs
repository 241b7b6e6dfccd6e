//! Convolutions on tensors: cuDNN where it has a plan, otherwise im2col.

use std::sync::OnceLock;

use candle_core::{DType, Result, Tensor};

use super::buffers::{Output, UninitTensor, copy, device, device_ptr};
use super::context::with_context;
#[cfg(feature = "cudnn")]
use super::cudnn;
use super::im2col;
use super::launch::channels::{self, Channels};
use super::launch::depthwise::Depthwise;
use super::launch::dtype_code;
use super::launch::im2col::Filters;
use super::linear::bias_back;
use crate::core::image_layout::ImageLayout;
use crate::kernels::shapes::ConvShape;

/// The convolution of x with w, plus a bias. `kept` stores the converted weight for the backward pass.
pub(crate) fn conv(conv: &ConvShape, args: &[Tensor], kept: &OnceLock<Tensor>) -> Result<Output> {
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
    conv: &ConvShape,
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

/// The transposed convolution of x with w: the gradient of the images of `conv`, plus a bias. `kept` as for [`conv`].
pub(crate) fn conv_transpose(conv: &ConvShape, args: &[Tensor], kept: &OnceLock<Tensor>) -> Result<Output> {
    let (x, w) = (&args[0], filters(&args[1], &args[0])?);
    let y = back_to_images(conv, &w, x, ImageLayout::of(x))?;
    if let Some(bias) = args.get(2) {
        let (y, bias) = (device_ptr(&y)?, device_ptr(bias)?);
        let channels = inputs(conv, x);
        with_context(device(x)?, |context| {
            channels::bias(context, channels, [y.dtype, bias.dtype], [y.address, bias.address])
        })?;
    }
    kept.get_or_init(|| w);
    let shape = y.shape().clone();
    copy(&ImageLayout::of(x).in_memory(&y)?, shape)
}

/// The requested gradients of x, w and the bias.
pub(crate) fn conv_transpose_back(
    conv: &ConvShape,
    args: &[Tensor],
    kept: Option<&Tensor>,
    wanted: &[bool],
    dy: &Tensor,
) -> Result<Vec<Option<Tensor>>> {
    // dy does not show the layout of the images if it has one pixel or one channel.
    let dy = ImageLayout::of(&args[0]).arrange(dy)?;
    let gradient = |(i, arg): (usize, &Tensor)| match i {
        _ if !wanted[i] => Ok(None),
        0 => {
            let w = kept.map_or_else(|| filters(&args[1], &args[0]), |kept| Ok(kept.clone()))?;
            convolved(conv, &dy, &w)?.tensor().map(Some)
        }
        1 => back_to_weight(conv, &dy, arg, &args[0]).map(Some),
        _ => bias_back(arg, &dy, inputs(conv, &args[0])).map(Some),
    };
    args.iter().enumerate().map(gradient).collect()
}

/// Sequences as images of one row, and a weight likewise. Others stay as they are.
pub(crate) fn as_image(x: &Tensor) -> Result<Tensor> {
    if x.rank() == 3 { x.unsqueeze(2) } else { Ok(x.clone()) }
}

/// [`as_image`] of each.
pub(crate) fn as_images(args: &[Tensor]) -> Result<Vec<Tensor>> {
    args.iter().map(as_image).collect()
}

/// The inverse of [`as_images`] for the gradients of `args`.
pub(crate) fn in_shapes_of(args: &[Tensor], gradients: Vec<Option<Tensor>>) -> Result<Vec<Option<Tensor>>> {
    let shaped = |(arg, gradient): (&Tensor, Option<Tensor>)| match gradient {
        Some(gradient) if arg.rank() == 3 => gradient.squeeze(2).map(Some),
        gradient => Ok(gradient),
    };
    args.iter().zip(gradients).map(shaped).collect()
}

fn convolved(conv: &ConvShape, x: &Tensor, w: &Tensor) -> Result<UninitTensor> {
    #[cfg(feature = "cudnn")]
    if let Some(y) = cudnn::convolution::forward(conv, x, w, ImageLayout::of(x))? {
        return Ok(y);
    }
    match (ImageLayout::of(x), Depthwise::of(conv)) {
        (ImageLayout::Nchw, Some(depthwise)) => {
            let ConvShape { images, filters, height, width, .. } = *conv;
            let y = UninitTensor::new(device(x)?, x.dtype(), (images, filters, height.output, width.output))?;
            let (from, w) = (device_ptr(x)?, device_ptr(w)?);
            let addresses = [from.address, w.address, y.address()?];
            with_context(device(x)?, |context| depthwise.forward(context, from.dtype, addresses))?;
            Ok(y)
        }
        (ImageLayout::Nchw, None) => im2col::forward(conv, x, w),
        (ImageLayout::Nhwc, _) => convolved(conv, &x.contiguous()?, &w.contiguous()?)?.channels_last(),
    }
}

/// The gradient of the images, in their layout: dy does not show it if it has one pixel or one channel.
fn back_to_images(conv: &ConvShape, w: &Tensor, dy: &Tensor, format: ImageLayout) -> Result<Tensor> {
    #[cfg(feature = "cudnn")]
    if let Some(dx) = cudnn::convolution::backward_data(conv, w, dy, format)? {
        return Ok(dx);
    }
    if format == ImageLayout::Nhwc {
        let dx = back_to_images(conv, &w.contiguous()?, &dy.contiguous()?, ImageLayout::Nchw)?;
        return format.arrange(&dx);
    }
    let Some(depthwise) = Depthwise::of(conv) else { return im2col::backward_data(conv, w, dy) };
    let ConvShape { images, channels, height, width, .. } = *conv;
    let dx = UninitTensor::new(device(dy)?, w.dtype(), (images, channels, height.input, width.input))?;
    let (gradient, w) = (device_ptr(dy)?, device_ptr(w)?);
    let addresses = [gradient.address, w.address, dx.address()?];
    with_context(device(dy)?, |context| depthwise.back_to_images(context, w.dtype, addresses))?;
    dx.tensor()
}

/// The gradient of the weight, contiguous and in the weight's dtype.
fn back_to_weight(conv: &ConvShape, x: &Tensor, weight: &Tensor, dy: &Tensor) -> Result<Tensor> {
    #[cfg(feature = "cudnn")]
    if let Some(dw) = cudnn::convolution::backward_filter(conv, x, dy, ImageLayout::of(x))? {
        return permuted(&dw, weight.dtype(), ImageLayout::Nchw);
    }
    if ImageLayout::of(x) == ImageLayout::Nhwc {
        return back_to_weight(conv, &x.contiguous()?, weight, &dy.contiguous()?);
    }
    let Some(depthwise) = Depthwise::of(conv) else {
        return im2col::backward_filter(conv, x, dy)?.to_dtype(weight.dtype());
    };
    let shape = (conv.filters, 1, conv.height.kernel, conv.width.kernel);
    let dw = UninitTensor::new(device(x)?, x.dtype(), shape)?;
    let (from, gradient) = (device_ptr(x)?, device_ptr(dy)?);
    let addresses = [from.address, gradient.address, dw.address()?];
    with_context(device(x)?, |context| depthwise.back_to_weight(context, from.dtype, addresses))?;
    dw.tensor()?.to_dtype(weight.dtype())
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

/// The images that a convolution reads: the result of the transposed one.
fn inputs(conv: &ConvShape, images: &Tensor) -> Channels {
    let plane = conv.height.input * conv.width.input;
    Channels { images: conv.images, channels: conv.channels, plane, format: ImageLayout::of(images) }
}

fn outputs(conv: &ConvShape, images: &Tensor) -> Channels {
    let plane = conv.height.output * conv.width.output;
    Channels { images: conv.images, channels: conv.filters, plane, format: ImageLayout::of(images) }
}
