//! ½ λ ‖w‖² and its gradient, on tensors.

use candle_core::{Result, Tensor};

use super::branch_mix::mixed;
use super::buffers::Output;
use super::params::total;
use crate::core::dtype::wide;

/// f Σ w², in the dtype of w.
pub(crate) fn penalty(w: &Tensor, factor: f64) -> Result<Output> {
    Ok(total(&[(w, w)], factor, w.dtype())?.output())
}

/// w times a scalar tensor on its device.
pub(crate) fn times(w: &Tensor, number: &Tensor) -> Result<Tensor> {
    mixed(&[(w, &number.to_dtype(wide(w.dtype()))?)])?.tensor()
}
