//! Dropout.

use candle_core::{Result, Tensor};

use super::buffers::{Output, UninitTensor, device, device_ptr};
use super::context::with_context;
use super::launch::dropout::Dropout;
use super::pool::step;

/// The elements that the mask of this seed keeps, times the scale: `mask` is the probability of 0, and the scale.
pub(crate) fn dropout(x: &Tensor, seed: u64, [drop, scale]: [f32; 2]) -> Result<Output> {
    let (from, y) = (device_ptr(x)?, UninitTensor::like(x)?);
    let plane = x.dims().iter().skip(2).product();
    let (mask, addresses) = (Dropout { seed, drop, scale, plane, step: step(x)? }, [from.address, y.address()?]);
    with_context(device(x)?, |context| mask.of(context, from.dtype, addresses, from.elements))?;
    Ok(y.output())
}
