//! The gradients that an optimizer is about to step along.

use std::collections::{HashMap, HashSet};

use candle_core::{Result, Tensor, TensorId, Var};

use crate::autograd::fixed_gradient::registered_gradient_or_backward;
use crate::core::identity::storage_of;
use crate::core::names::describe;
use crate::core::overlap::check_may_move;

/// The gradient of each variable, by its id: those of this crate's layers, and of SAM's loss, are not copied.
pub(super) fn gradient_of(loss: &Tensor) -> Result<HashMap<TensorId, Tensor>> {
    Ok(registered_gradient_or_backward(loss)?.into_iter().map(|(var, grad)| (var.id(), grad)).collect())
}

/// The variables that have a gradient, by their index, each with that gradient: contiguous, and in a buffer that stays as it is
/// while variables and state move. `state`: what else will be written to.
///
/// # Errors
/// If a variable must not move now, or a gradient is not like its variable.
pub(super) fn ready<'a, 'b>(
    vars: &[&Var],
    state: impl IntoIterator<Item = &'b Tensor>,
    grad: impl Fn(&Var) -> Option<&'a Tensor>,
) -> Result<Vec<(usize, Tensor)>> {
    check_may_move(vars.iter().copied())?;
    let with_grads: Vec<_> = vars.iter().enumerate().filter_map(|(i, var)| Some((i, *var, grad(var)?))).collect();
    let mut written: HashSet<_> = state.into_iter().map(storage_of).collect();
    for (_, var, grad) in &with_grads {
        check_gradient(var, grad)?;
        written.insert(storage_of(var));
    }
    let ready = with_grads.into_iter().map(|(i, _, grad)| {
        // A gradient may be a variable itself, that of xy by x is y: it must not change while others move.
        let grad = if written.contains(&storage_of(grad)) { grad.copy()? } else { grad.contiguous()? };
        Ok((i, grad.detach().contiguous()?))
    });
    ready.collect()
}

/// An error if a gradient is not like its variable.
pub(super) fn check_gradient(var: &Var, grad: &Tensor) -> Result<()> {
    if grad.shape() != var.shape() || grad.dtype() != var.dtype() || !grad.device().same_device(var.device()) {
        candle_core::bail!(
            "the gradient of {} is {:?} {:?} on {:?}: expected the shape, type and device of the variable ({:?}); no \
             variable has moved",
            describe(var),
            grad.dtype(),
            grad.dims(),
            grad.device().location(),
            var.device().location()
        )
    }
    Ok(())
}
