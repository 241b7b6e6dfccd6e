//! ReLU and sums on tensors.

use candle_core::{Result, Tensor};

use super::buffers::{Output, UninitTensor, device, device_ptr};
use super::context::with_context;
use super::launch::elementwise;

/// max(x, 0)
pub(crate) fn relu(x: &Tensor) -> Result<Output> {
    let (from, y) = (device_ptr(x)?, UninitTensor::like(x)?);
    let addresses = [from.address, y.address()?];
    with_context(device(x)?, |context| elementwise::relu(context, from.dtype, addresses, from.elements))?;
    Ok(y.output())
}

/// The gradient of x.
pub(crate) fn relu_back(y: &Tensor, dy: &Tensor) -> Result<Tensor> {
    let (from, gradient, dx) = (device_ptr(y)?, device_ptr(dy)?, UninitTensor::like(y)?);
    let addresses = [from.address, gradient.address, dx.address()?];
    with_context(device(y)?, |context| elementwise::relu_back(context, from.dtype, addresses, from.elements))?;
    dx.tensor()
}

/// a + b
pub(crate) fn add(a: &Tensor, b: &Tensor) -> Result<Output> {
    added(a, b).map(UninitTensor::output)
}

/// a + b, as a tensor.
pub(crate) fn sum(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    added(a, b)?.tensor()
}

fn added(a: &Tensor, b: &Tensor) -> Result<UninitTensor> {
    let (left, right, y) = (device_ptr(a)?, device_ptr(b)?, UninitTensor::like(a)?);
    let addresses = [left.address, right.address, y.address()?];
    with_context(device(a)?, |context| elementwise::add(context, left.dtype, addresses, left.elements))?;
    Ok(y)
}
