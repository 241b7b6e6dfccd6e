//! Softmax on tensors.

use candle_core::{Result, Tensor};

use super::buffers::{Output, UninitTensor, device, device_ptr};
use super::context::with_context;
use super::launch::softmax_dim::Softmax;
use crate::kernels::shapes::DimShape;

/// Softmax along a dimension, or its logarithm.
pub(crate) fn softmax(x: &Tensor, shape: DimShape, log: bool) -> Result<Output> {
    let (from, y) = (device_ptr(x)?, UninitTensor::like(x)?);
    let (softmax, addresses) = (Softmax { shape, log, dtype: from.dtype }, [from.address, y.address()?]);
    with_context(device(x)?, |context| softmax.forward(context, addresses))?;
    Ok(y.output())
}

/// The gradient of x.
pub(crate) fn softmax_back(y: &Tensor, dy: &Tensor, shape: DimShape, log: bool) -> Result<Tensor> {
    let (from, gradient, dx) = (device_ptr(y)?, device_ptr(dy)?, UninitTensor::like(y)?);
    let softmax = Softmax { shape, log, dtype: from.dtype };
    let addresses = [from.address, gradient.address, dx.address()?];
    with_context(device(y)?, |context| softmax.backward(context, addresses))?;
    dx.tensor()
}
