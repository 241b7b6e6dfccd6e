//! Cross entropy.

use candle_core::{DType, Result, Tensor};

use super::buffers::{Fresh, Output, address_of, device, place};
use super::context::with;
use super::launch::code;
use super::launch::cross_entropy::{CrossEntropy, Target};

/// The mean cross entropy of logits with labels in i64, of which a share is spread evenly, or with probabilities.
pub(crate) fn cross_entropy(logits: &Tensor, target: &Tensor, smoothing: f64) -> Result<Output> {
    let loss = Fresh::new(device(logits)?, logits.dtype(), ())?;
    let (costs, addresses) = (costs(logits, target, smoothing)?, [place(logits)?.address, loss.address()?]);
    with(device(logits)?, |engine| costs.forward(engine, addresses))?;
    Ok(loss.output())
}

/// The gradient of the logits.
pub(crate) fn cross_entropy_back(logits: &Tensor, target: &Tensor, smoothing: f64, dy: &Tensor) -> Result<Tensor> {
    let dx = Fresh::like(logits)?;
    let addresses = [place(logits)?.address, place(dy)?.address, dx.address()?];
    let costs = costs(logits, target, smoothing)?;
    with(device(logits)?, |engine| costs.backward(engine, addresses))?;
    dx.tensor()
}

fn costs(logits: &Tensor, target: &Tensor, smoothing: f64) -> Result<CrossEntropy> {
    let ((rows, classes), there) = (logits.dims2()?, address_of(target)?);
    let target = match target.dtype() {
        DType::I64 => Target::Labels { address: there, smoothing },
        _ => Target::Probabilities { address: there, dtype: code(target.dtype())? },
    };
    Ok(CrossEntropy { rows, classes, dtype: code(logits.dtype())?, target })
}
