//! Cross entropy on tensors.

use candle_core::{DType, Result, Shape, Tensor};

use super::buffers::{Output, UninitTensor, address_of, device, device_ptr};
use super::context::with_context;
use super::launch::cross_entropy::{CrossEntropy, Target};
use super::launch::dtype_code;

/// The mean cross entropy of logits with i64 labels and label smoothing, or with probabilities; or that of `each` row.
pub(crate) fn cross_entropy(logits: &Tensor, target: &Tensor, smoothing: f64, each: bool) -> Result<Output> {
    let shape = if each { Shape::from(logits.dim(0)?) } else { Shape::from(()) };
    let loss = UninitTensor::new(device(logits)?, logits.dtype(), shape)?;
    let (sizes, addresses) = (sizes(logits, target, smoothing, each)?, [device_ptr(logits)?.address, loss.address()?]);
    with_context(device(logits)?, |context| sizes.forward(context, addresses))?;
    Ok(loss.output())
}

/// The gradient of the logits, from that of the mean, or of each row.
pub(crate) fn cross_entropy_back(logits: &Tensor, target: &Tensor, smoothing: f64, dy: &Tensor) -> Result<Tensor> {
    let dx = UninitTensor::like(logits)?;
    let addresses = [device_ptr(logits)?.address, device_ptr(dy)?.address, dx.address()?];
    let sizes = sizes(logits, target, smoothing, dy.rank() > 0)?;
    with_context(device(logits)?, |context| sizes.backward(context, addresses))?;
    dx.tensor()
}

fn sizes(logits: &Tensor, target: &Tensor, smoothing: f64, each: bool) -> Result<CrossEntropy> {
    let ((rows, classes), there) = (logits.dims2()?, address_of(target)?);
    let target = match target.dtype() {
        DType::I64 => Target::Labels { address: there, smoothing },
        _ => Target::Probabilities { address: there, dtype: dtype_code(target.dtype())? },
    };
    Ok(CrossEntropy { rows, classes, dtype: dtype_code(logits.dtype())?, target, each })
}
