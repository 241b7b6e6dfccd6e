//! Dropout.

use candle_core::{Result, Tensor};

use super::buffers::{Fresh, Output, device, place};
use super::context::with;
use super::launch::dropout::Dropout;
use super::pool::step;

/// The elements that the mask of this seed keeps, times the scale: `mask` is the probability of 0, and the scale.
pub(crate) fn dropout(x: &Tensor, seed: u64, [drop, scale]: [f32; 2]) -> Result<Output> {
    let (from, y) = (place(x)?, Fresh::like(x)?);
    let plane = x.dims().iter().skip(2).product();
    let (mask, addresses) = (Dropout { seed, drop, scale, plane, step: step(x)? }, [from.address, y.address()?]);
    with(device(x)?, |engine| mask.of(engine, from.dtype, addresses, from.elements))?;
    Ok(y.output())
}
