//! What is done to gradients before an optimizer's step.

use std::collections::HashSet;

use candle_core::backprop::GradStore;
use candle_core::{Device, Result, Tensor, Var};

use super::gradients::check_gradient;
use crate::core::identity::number_of;
use crate::kernels;

/// Scales the gradients of these variables so that their norm, that of all of them together, is at most `max_norm`. Returns
/// the norm from before.
///
/// As PyTorch's `clip_grad_norm_`: the factor is `max_norm / (norm + 1e-6)`, and 1 where that is larger. The norm is summed in f64
/// in an order that does not depend on that of `vars`, so it is bitwise the same for any number of threads and any order in
/// which a map returns its variables. If it is NaN or infinite, so are gradients afterwards, which is not checked: see
/// [`GradScaler`](super::GradScaler).
///
/// The norm is returned as a tensor of one number, on the CPU in f64: on CUDA nothing synchronizes with the device, unless you
/// read it. Gradients that are scaled get new buffers in the store; whoever else holds the old ones keeps them as they were. On
/// the CPU nothing is written where the norm is small enough. Variables without a gradient are left out, and one that is listed
/// several times counts once.
///
/// # Errors
/// If `max_norm` is negative or NaN, or a gradient is not like its variable.
///
/// ```
/// use candle_core::{Device, Result, Var};
/// use sam_runtime::{nn, optim::clip_grad_norm};
///
/// # fn main() -> Result<()> {
/// let w = Var::new(&[3f64, 4.], &Device::Cpu)?;
/// let mut grads = nn::backward(&(w.sqr()?.sum_all()? * 0.5)?)?;
/// let norm = clip_grad_norm(&mut grads, &[w.clone()], 1.0)?;
/// assert_eq!(norm.to_scalar::<f64>()?, 5.0);
/// let clipped = grads.get(&w).unwrap().to_vec1::<f64>()?;
/// assert!((clipped[0] - 0.6).abs() < 1e-6 && (clipped[1] - 0.8).abs() < 1e-6);
/// # Ok(())
/// # }
/// ```
pub fn clip_grad_norm(grads: &mut GradStore, vars: &[Var], max_norm: f64) -> Result<Tensor> {
    check("max_norm", max_norm)?;
    let found = gradients(grads, vars)?;
    let tensors: Vec<_> = found.iter().map(|(_, grad)| grad).collect();
    let norm = kernels::total_norm(&tensors)?;
    let factor = if matches!(norm.device(), Device::Cpu) {
        let factor = max_norm / (kernels::read(&norm)? + 1e-6);
        if factor >= 1.0 {
            return Ok(norm);
        }
        Tensor::new(factor, &Device::Cpu)?
    } else {
        ((&norm + 1e-6)?.recip()? * max_norm)?.minimum(1.0)?
    };
    let scaled = kernels::scaled(&tensors, &factor)?;
    put(grads, found.iter().map(|(var, _)| var), scaled);
    Ok(norm)
}

/// Moves each number of the gradients of these variables to the nearest one from `-limit` to `limit`, as PyTorch's
/// `clip_grad_value_`. NaN stays NaN. The gradients get new buffers in the store.
///
/// # Errors
/// If `limit` is negative or NaN, or a gradient is not like its variable.
///
/// ```
/// use candle_core::{Device, Result, Var};
/// use sam_runtime::{nn, optim::clip_grad_value};
///
/// # fn main() -> Result<()> {
/// let w = Var::new(&[3f64, 0.25], &Device::Cpu)?;
/// let mut grads = nn::backward(&w.sqr()?.sum_all()?)?;
/// clip_grad_value(&mut grads, &[w.clone()], 1.0)?;
/// assert_eq!(grads.get(&w).unwrap().to_vec1::<f64>()?, [1.0, 0.5]);
/// # Ok(())
/// # }
/// ```
pub fn clip_grad_value(grads: &mut GradStore, vars: &[Var], limit: f64) -> Result<()> {
    check("limit", limit)?;
    let found = gradients(grads, vars)?;
    let clamped = kernels::clamped(&found.iter().map(|(_, grad)| grad).collect::<Vec<_>>(), limit)?;
    put(grads, found.iter().map(|(var, _)| var), clamped);
    Ok(())
}

fn check(what: &str, value: f64) -> Result<()> {
    if value >= 0.0 {
        return Ok(());
    }
    candle_core::bail!("`{what}` is {value}: expected a number, 0 or more")
}

/// The gradients of these variables, each once and contiguous, in the order in which the variables were made.
fn gradients(grads: &GradStore, vars: &[Var]) -> Result<Vec<(Var, Tensor)>> {
    let mut seen = HashSet::new();
    let mut found = Vec::new();
    for var in vars.iter().filter(|var| seen.insert(var.id())) {
        if let Some(grad) = grads.get(var) {
            check_gradient(var, grad)?;
            found.push((var.clone(), grad.detach().contiguous()?));
        }
    }
    found.sort_by_key(|(var, _)| number_of(var.id()));
    Ok(found)
}

fn put<'a>(grads: &mut GradStore, vars: impl Iterator<Item = &'a Var>, values: Vec<Tensor>) {
    for (var, value) in vars.zip(values) {
        grads.insert(var, value);
    }
}
