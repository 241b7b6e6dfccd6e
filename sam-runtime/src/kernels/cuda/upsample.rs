//! Images of another size on tensors.

use candle_core::{Result, Shape, Tensor};

use super::buffers::{Output, UninitTensor, device, device_ptr};
use super::context::with_context;
use crate::kernels::shapes::UpsampleShape;

/// The images of x, interpolated.
pub(crate) fn upsample(sizes: &UpsampleShape, x: &Tensor, shape: Shape) -> Result<Output> {
    let (from, y) = (device_ptr(x)?, UninitTensor::like_with_shape(x, shape)?);
    let addresses = [from.address, y.address()?];
    with_context(device(x)?, |context| sizes.forward(context, from.dtype, addresses))?;
    Ok(y.output())
}

/// The gradient of x.
pub(crate) fn upsample_back(sizes: &UpsampleShape, x: &Tensor, dy: &Tensor) -> Result<Tensor> {
    let (gradient, dx) = (device_ptr(dy)?, UninitTensor::like(x)?);
    let addresses = [gradient.address, dx.address()?];
    with_context(device(x)?, |context| sizes.backward(context, gradient.dtype, addresses))?;
    dx.tensor()
}
