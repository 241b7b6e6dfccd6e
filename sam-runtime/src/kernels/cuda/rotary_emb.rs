//! Rotations of pairs on tensors.

use candle_core::{Result, Tensor};

use super::buffers::{Output, UninitTensor, address_of, device, device_ptr};
use super::context::with_context;
use super::launch::rotary_emb::rope;
use crate::kernels::shapes::RotaryShape;

/// Every pair of x turned by its angle.
pub(crate) fn rotate(rotation: &RotaryShape, args: [&Tensor; 3]) -> Result<Output> {
    turned(rotation, args, false).map(UninitTensor::output)
}

/// The gradient of x: that of the output, turned back.
pub(crate) fn rotate_back(rotation: &RotaryShape, args: [&Tensor; 3]) -> Result<Tensor> {
    turned(rotation, args, true)?.tensor()
}

fn turned(rotation: &RotaryShape, [x, cos, sin]: [&Tensor; 3], inverse: bool) -> Result<UninitTensor> {
    let (from, y) = (device_ptr(x)?, UninitTensor::like(x)?);
    let addresses = [from.address, address_of(cos)?, address_of(sin)?, y.address()?];
    with_context(device(x)?, |context| rope(context, rotation, from.dtype, addresses, inverse))?;
    Ok(y)
}
