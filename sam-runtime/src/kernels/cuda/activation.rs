//! Activation functions and gates on tensors.

use candle_core::{Result, Tensor};

use super::buffers::{Output, UninitTensor, device, device_ptr};
use super::context::with_context;
use super::launch::activation;
use crate::kernels::activation::{Function, Gate};

/// f(x)
pub(crate) fn activate(function: Function, x: &Tensor) -> Result<Output> {
    let (from, y) = (device_ptr(x)?, UninitTensor::like(x)?);
    let addresses = [from.address, y.address()?];
    with_context(device(x)?, |context| {
        activation::activation(context, function, from.dtype, addresses, from.elements)
    })?;
    Ok(y.output())
}

/// f'(x) dy
pub(crate) fn activate_back(function: Function, x: &Tensor, dy: &Tensor) -> Result<Tensor> {
    let (from, gradient, dx) = (device_ptr(x)?, device_ptr(dy)?, UninitTensor::like(x)?);
    let addresses = [from.address, gradient.address, dx.address()?];
    with_context(device(x)?, |context| {
        activation::activation_back(context, function, from.dtype, addresses, from.elements)
    })?;
    dx.tensor()
}

/// f of one half of each row, times the other.
pub(crate) fn gate(gate: Gate, x: &Tensor, shape: &[usize]) -> Result<Output> {
    let (from, y) = (device_ptr(x)?, UninitTensor::new(device(x)?, x.dtype(), shape)?);
    let addresses = [from.address, y.address()?];
    with_context(device(x)?, |context| activation::gate(context, gate, from.dtype, addresses, from.elements / 2))?;
    Ok(y.output())
}

/// The gradient of x.
pub(crate) fn gate_back(gate: Gate, x: &Tensor, dy: &Tensor) -> Result<Tensor> {
    let (from, gradient, dx) = (device_ptr(x)?, device_ptr(dy)?, UninitTensor::like(x)?);
    let addresses = [from.address, gradient.address, dx.address()?];
    with_context(device(x)?, |context| activation::gate_back(context, gate, from.dtype, addresses, gradient.elements))?;
    dx.tensor()
}
