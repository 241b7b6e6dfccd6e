//! Optimizers over all variables in one launch: AdamW, averages, and what is done to gradients before a step.

use candle_core::{DType, Device, Result, Tensor, Var};

use super::buffers::{device, device_ptr};
use super::context::with_context;
use super::launch::optim;
use super::launch::params::{Entry, Metric};
use super::params::total;
use crate::kernels::operands::{AdamWMove, by_step};

/// One step of AdamW of all variables: a launch for each group of equal constants.
pub(crate) fn adamw(moves: &[AdamWMove<'_>]) -> Result<()> {
    for (step, moves) in by_step(moves, |step| step.step) {
        let entry = |AdamWMove { var, grad, first, second, .. }: &AdamWMove<'_>| {
            entry(&[var.as_tensor(), grad, *first, *second])
        };
        let entries = moves.iter().map(|step| entry(step)).collect::<Result<Vec<_>>>()?;
        with_context(device(moves[0].var)?, |context| optim::adamw(context, step, &entries))?;
    }
    Ok(())
}

/// a ← d a + (1 - d) w for each pair.
pub(crate) fn ema(pairs: &[(&Tensor, &Var)], decay: f64) -> Result<()> {
    let Some((first, _)) = pairs.first() else { return Ok(()) };
    let entries = pairs.iter().map(|(average, var)| entry(&[var.as_tensor(), *average])).collect::<Result<Vec<_>>>()?;
    with_context(device(first)?, |context| optim::ema(context, decay, &entries))
}

/// Each number of these to the nearest one within ±limit.
pub(crate) fn clamp(tensors: &[&Tensor], limit: f64) -> Result<()> {
    let Some(first) = tensors.first() else { return Ok(()) };
    let entries = tensors.iter().map(|tensor| entry(&[*tensor])).collect::<Result<Vec<_>>>()?;
    with_context(device(first)?, |context| optim::clamp(context, limit, &entries))
}

/// Σ a² of all, in f64, on the device. The squares of f32 do not overflow there.
pub(crate) fn square(tensors: &[&Tensor]) -> Result<Tensor> {
    if tensors.is_empty() {
        return Tensor::new(0f64, &Device::Cpu);
    }
    let pairs: Vec<_> = tensors.iter().map(|tensor| (*tensor, *tensor)).collect();
    total(&pairs, 1.0, DType::F64)?.tensor()
}

/// Tensors of one size; the first has the type of the entry.
fn entry(tensors: &[&Tensor]) -> Result<Entry> {
    let places = tensors.iter().map(|tensor| device_ptr(tensor)).collect::<Result<Vec<_>>>()?;
    if places.iter().any(|place| place.elements != places[0].elements) {
        candle_core::bail!(
            "expected tensors of one size, found {:?}",
            tensors.iter().map(|t| t.dims()).collect::<Vec<_>>()
        )
    }
    let pointers = places.iter().map(|place| place.address).collect();
    Ok(Entry { dtype: places[0].dtype, size: places[0].elements, metric: Metric::One, pointers })
}
