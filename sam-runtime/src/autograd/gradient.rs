//! The gradient of a loss.

use std::collections::HashSet;

use candle_core::backprop::GradStore;
use candle_core::{DType, Result, Tensor, Var};

use super::tape::backward_through_layers;
use crate::core::error::Error;
use crate::core::pass::Pass;
use crate::core::var_list::Gradient;

/// ∇L, as buffers of its own: whoever holds it holds no activation, and may write over them.
pub(crate) fn gradient(loss: &Tensor) -> Result<Gradient> {
    let nodes = loss.sorted_nodes();
    gradient_of(loss, nodes.iter().copied())
}

/// The same, given the nodes of the loss's graph.
pub(crate) fn gradient_of<'a>(loss: &Tensor, nodes: impl Iterator<Item = &'a Tensor>) -> Result<Gradient> {
    let mut grads = match backward_through_layers(loss)? {
        Some(grads) => grads,
        None => loss.backward()?,
    };
    let mut gradient = Vec::new();
    let mut seen = HashSet::new();
    for node in nodes.filter(|node| node.is_variable()) {
        let Some(grad) = grads.remove(node) else { continue };
        // A sum propagates one gradient to both of its parts.
        let grad = if seen.insert(grad.id()) { grad.detach().contiguous()? } else { grad.detach().copy()?.detach() };
        gradient.push((Var::from_tensor(node)?, grad));
    }
    Ok(gradient)
}

/// `loss.backward()` for the variables alone, whose gradients come from the layers without a copy: for whoever clips them
/// or adds them up before the optimizer's step.
///
/// # Errors
/// Those of the backward pass.
///
/// ```
/// use candle_core::{Device, Result, Var};
/// use sam_runtime::nn;
///
/// # fn main() -> Result<()> {
/// let w = Var::new(&[3f32, 4.], &Device::Cpu)?;
/// let gradient = nn::backward(&w.sqr()?.sum_all()?)?;
/// assert_eq!(gradient.get(&w).unwrap().to_vec1::<f32>()?, [6., 8.]);
/// # Ok(())
/// # }
/// ```
pub fn backward(loss: &Tensor) -> Result<GradStore> {
    let mut store = GradStore::default();
    for (var, grad) in gradient(loss)? {
        store.insert(&var, grad);
    }
    Ok(store)
}

/// A loss that can be differentiated: one finite number. On other devices than the CPU its value is not checked,
/// because that would synchronize with the device.
pub(crate) fn check_loss(loss: &Tensor, pass: Pass) -> Result<()> {
    if loss.elem_count() != 1 {
        Err(Error::NotScalar(loss.shape().clone()))?;
    }
    if !loss.dtype().is_float() {
        Err(Error::NotFloat(loss.dtype()))?;
    }
    if loss.device().is_cpu() {
        let value = loss.detach().flatten_all()?.to_dtype(DType::F64)?.to_vec1::<f64>()?[0];
        if !value.is_finite() {
            Err(Error::NonFiniteLoss { pass, value })?;
        }
    }
    Ok(())
}
