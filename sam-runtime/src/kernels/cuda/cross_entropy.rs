//! Cross entropy on tensors.

use candle_core::{DType, Result, Tensor};

use super::buffers::{Output, UninitTensor, address_of, device, device_ptr};
use super::context::with_context;
use super::launch::cross_entropy::{CrossEntropy, Target};
use super::launch::dtype_code;

/// The mean cross entropy of logits with i64 labels and label smoothing, or with probabilities.
pub(crate) fn cross_entropy(logits: &Tensor, target: &Tensor, smoothing: f64) -> Result<Output> {
    let loss = UninitTensor::new(device(logits)?, logits.dtype(), ())?;
    let (sizes, addresses) = (sizes(logits, target, smoothing)?, [device_ptr(logits)?.address, loss.address()?]);
    with_context(device(logits)?, |context| sizes.forward(context, addresses))?;
    Ok(loss.output())
}

/// The gradient of the logits.
pub(crate) fn cross_entropy_back(logits: &Tensor, target: &Tensor, smoothing: f64, dy: &Tensor) -> Result<Tensor> {
    let dx = UninitTensor::like(logits)?;
    let addresses = [device_ptr(logits)?.address, device_ptr(dy)?.address, dx.address()?];
    let sizes = sizes(logits, target, smoothing)?;
    with_context(device(logits)?, |context| sizes.backward(context, addresses))?;
    dx.tensor()
}

fn sizes(logits: &Tensor, target: &Tensor, smoothing: f64) -> Result<CrossEntropy> {
    let ((rows, classes), there) = (logits.dims2()?, address_of(target)?);
    let target = match target.dtype() {
        DType::I64 => Target::Labels { address: there, smoothing },
        _ => Target::Probabilities { address: there, dtype: dtype_code(target.dtype())? },
    };
    Ok(CrossEntropy { rows, classes, dtype: dtype_code(logits.dtype())?, target })
}
