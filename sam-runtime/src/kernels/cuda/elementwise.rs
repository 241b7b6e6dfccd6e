//! ReLU and sums.

use candle_core::{Result, Tensor};

use super::buffers::{Fresh, Output, device, place};
use super::context::with;
use super::launch::elementwise;

/// max(x, 0)
pub(crate) fn relu(x: &Tensor) -> Result<Output> {
    let (from, y) = (place(x)?, Fresh::like(x)?);
    let addresses = [from.address, y.address()?];
    with(device(x)?, |engine| elementwise::relu(engine, from.dtype, addresses, from.elements))?;
    Ok(y.output())
}

/// The gradient of x.
pub(crate) fn relu_back(y: &Tensor, dy: &Tensor) -> Result<Tensor> {
    let (from, gradient, dx) = (place(y)?, place(dy)?, Fresh::like(y)?);
    let addresses = [from.address, gradient.address, dx.address()?];
    with(device(y)?, |engine| elementwise::relu_back(engine, from.dtype, addresses, from.elements))?;
    dx.tensor()
}

/// a + b
pub(crate) fn add(a: &Tensor, b: &Tensor) -> Result<Output> {
    added(a, b).map(Fresh::output)
}

/// a + b, as a tensor.
pub(crate) fn sum(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    added(a, b)?.tensor()
}

fn added(a: &Tensor, b: &Tensor) -> Result<Fresh> {
    let (left, right, y) = (place(a)?, place(b)?, Fresh::like(a)?);
    let addresses = [left.address, right.address, y.address()?];
    with(device(a)?, |engine| elementwise::add(engine, left.dtype, addresses, left.elements))?;
    Ok(y)
}
