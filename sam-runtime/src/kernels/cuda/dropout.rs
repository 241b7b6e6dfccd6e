//! Dropout on tensors.

use candle_core::{Result, Tensor};

use super::buffers::{Output, UninitTensor, device, device_ptr};
use super::context::with_context;
use super::launch::dropout::Dropout;
use super::pool::step;

/// x times the mask of this seed; `[drop, scale]` are the drop probability and the factor of the other elements.
pub(crate) fn dropout(x: &Tensor, seed: u64, [drop, scale]: [f32; 2]) -> Result<Output> {
    let (from, y) = (device_ptr(x)?, UninitTensor::like(x)?);
    let plane = x.dims().iter().skip(2).product();
    let (mask, addresses) = (Dropout { seed, drop, scale, plane, step: step(x)? }, [from.address, y.address()?]);
    with_context(device(x)?, |context| mask.run(context, from.dtype, addresses, from.elements))?;
    Ok(y.output())
}
