//! Vector algebra over lists of variables.

use candle_core::{Result, Tensor};

use super::dispatch::mix;
use crate::core::var_list::{Gradient, VarTensors};

/// α a + β b for each variable of both, in buffers of their own.
pub(crate) fn mixed(a: &Gradient, alpha: &Tensor, b: &VarTensors, beta: &Tensor) -> Result<Gradient> {
    let mut sums = Gradient::with_capacity(a.len());
    for (var, a) in a {
        let Some(b) = b.get(var) else { continue };
        let sum = a.copy()?;
        mix(&sum, alpha, b, beta)?;
        sums.push((var.clone(), sum));
    }
    Ok(sums)
}

/// Each gradient with what is kept for its variable.
pub(crate) fn paired<'a>(gradient: &'a Gradient, kept: &'a VarTensors) -> Vec<(&'a Tensor, &'a Tensor)> {
    gradient.iter().filter_map(|(var, grad)| Some((grad, kept.get(var)?))).collect()
}

/// a / b, and 0 where b is 0.
pub(crate) fn ratio(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    b.eq(&b.zeros_like()?)?.where_cond(&a.zeros_like()?, &(a / b)?)
}
