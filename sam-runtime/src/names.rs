//! The names of variables, for errors.

use candle_core::Tensor;

/// A variable as an error calls it.
pub(crate) fn describe(var: &Tensor) -> String {
    format!("a variable of shape {:?}, {:?}", var.dims(), var.dtype())
}
