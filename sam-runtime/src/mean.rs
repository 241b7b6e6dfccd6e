//! The gradient of a batch from the gradients of its parts.

use std::collections::HashMap;

use candle_core::{Result, TensorId};

use crate::gradient::Gradient;
use crate::kernels::{self, number, wide};

/// A weighted sum of gradients, added up in place. f16 and bf16 are added up in f32: eight shards in bf16 would leave five
/// significant bits.
#[derive(Debug, Default)]
pub(crate) struct Mean {
    sums: Gradient,
    places: HashMap<TensorId, usize>,
}

impl Mean {
    pub(crate) fn add(&mut self, weight: f64, gradient: Gradient) -> Result<()> {
        let mut later = Vec::with_capacity(gradient.len());
        for (var, grad) in gradient {
            let grad = grad.to_dtype(wide(grad.dtype()))?;
            if let Some(place) = self.places.get(&var.id()) {
                later.push((*place, grad));
            } else {
                self.places.insert(var.id(), self.sums.len());
                self.sums.push((var, (grad * weight)?));
            }
        }
        let pairs: Vec<_> = later.iter().map(|(place, grad)| (&self.sums[*place].1, grad)).collect();
        let Some((beside, _)) = pairs.first() else { return Ok(()) };
        kernels::mix_all(&pairs, &number(beside, 1.0)?, &number(beside, weight)?)
    }

    /// The sum, in the dtypes of the variables.
    pub(crate) fn finish(self) -> Result<Gradient> {
        self.sums.into_iter().map(|(var, grad)| Ok((var.clone(), grad.to_dtype(var.dtype())?))).collect()
    }
}
