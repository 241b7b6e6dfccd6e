//! SAM's arithmetic and SGD, over all variables in one launch.

use candle_core::cuda::WrapErr;
use candle_core::{DType, Device, Result, Tensor};

use super::buffers::{DevicePtr, UninitTensor, device, device_ptr};
use super::context::with_context;
use super::launch::params::{self, Entry, Metric, NOT_FINITE, OUTCOME_WORDS};
use super::launch::{Launcher, Scratch, dtype_code};
use crate::core::dtype::wide;
use crate::core::norm_ball::Ball;
use crate::core::var_list::Gradient;
use crate::kernels::operands::{Move, PerturbTarget, Scale, by_step};

/// w + ε̂ for each variable, in the buffers of the gradient.
pub(crate) fn perturbed(ball: Ball, targets: Vec<PerturbTarget>) -> Result<Gradient> {
    let Some(first) = targets.first() else { return Ok(Vec::new()) };
    let device = device(&first.var)?.clone();
    // Keeps converted tensors alive until the launches.
    let mut converted = Vec::new();
    let mut entries = Vec::with_capacity(targets.len());
    for target in &targets {
        let [w, g] = pair(&target.var, &target.grad)?;
        let mut of = |tensor: &Tensor, dtype: DType| -> Result<u64> {
            let tensor = tensor.detach().to_dtype(dtype)?.contiguous()?;
            let address = device_ptr(&tensor)?.address;
            converted.push(tensor);
            Ok(address)
        };
        let metric = match &target.metric {
            Scale::One => Metric::One,
            Scale::Weights(eta) => Metric::Weights(*eta),
            Scale::Given(metric) if metric.rank() == 0 => Metric::Number(of(metric, wide(target.var.dtype()))?),
            Scale::Given(metric) => Metric::Given(of(metric, wide(target.var.dtype()))?),
        };
        let mask = target.mask.as_ref().map_or(Ok(0), |mask| of(mask, target.var.dtype()))?;
        entries.push(Entry { dtype: w.dtype, size: w.elements, metric, pointers: vec![w.address, g.address, mask] });
    }
    entries.retain(|entry| entry.size > 0);
    with_context(&device, |context| params::perturb(context, ball, entries))?;
    drop(converted);
    Ok(targets.into_iter().map(|target| (target.var, target.grad)).collect())
}

/// One SGD step of all variables: a launch for each group of equal constants.
pub(crate) fn sgd(moves: &[Move<'_>]) -> Result<()> {
    for (step, moves) in by_step(moves, |step| step.step) {
        let mut entries = Vec::with_capacity(moves.len());
        for Move { var, grad, velocity, .. } in &moves {
            let [w, g] = pair(var, grad)?;
            let velocity = velocity.map_or(Ok(0), |velocity| device_ptr(velocity).map(|place| place.address))?;
            let pointers = vec![w.address, g.address, velocity];
            entries.push(Entry { dtype: w.dtype, size: w.elements, metric: Metric::One, pointers });
        }
        with_context(device(moves[0].var)?, |context| params::sgd(context, step, &entries))?;
    }
    Ok(())
}

/// Σ a b, as a tensor on the device.
pub(crate) fn dot(pairs: &[(&Tensor, &Tensor)]) -> Result<Tensor> {
    let Some((first, _)) = pairs.first() else { return Tensor::new(0f32, &Device::Cpu) };
    total(pairs, 1.0, wide(first.dtype()))?.tensor()
}

pub(super) fn total(pairs: &[(&Tensor, &Tensor)], factor: f64, dtype: DType) -> Result<UninitTensor> {
    let entries = pairs.iter().map(|(a, b)| entry(a, b)).collect::<Result<Vec<_>>>()?;
    let home = device(pairs[0].0)?;
    let total = UninitTensor::new(home, dtype, ())?;
    with_context(home, |context| params::dot(context, &entries, factor, dtype_code(dtype)?, total.address()?))?;
    Ok(total)
}

/// a ← α a + β b for each pair.
pub(crate) fn mix(pairs: &[(&Tensor, &Tensor)], alpha: &Tensor, beta: &Tensor) -> Result<()> {
    let Some((first, _)) = pairs.first() else { return Ok(()) };
    let dtype = wide(first.dtype());
    let [alpha, beta] = [alpha, beta].map(|x| x.detach().to_dtype(dtype)?.to_device(first.device()));
    let (alpha, beta) = (alpha?, beta?);
    let entries = pairs.iter().map(|(a, b)| entry(a, b)).collect::<Result<Vec<_>>>()?;
    let numbers = [device_ptr(&alpha)?.address, device_ptr(&beta)?.address];
    with_context(device(first)?, |context| params::mix(context, &entries, dtype_code(dtype)?, numbers))
}

fn entry(a: &Tensor, b: &Tensor) -> Result<Entry> {
    let [a, b] = pair(a, b)?;
    Ok(Entry { dtype: a.dtype, size: a.elements, metric: Metric::One, pointers: vec![a.address, b.address] })
}

/// Two tensors of one dtype and size.
fn pair(a: &Tensor, b: &Tensor) -> Result<[DevicePtr; 2]> {
    if a.dtype() != b.dtype() || a.elem_count() != b.elem_count() {
        let [a, b] = [a, b].map(|tensor| (tensor.dtype(), tensor.dims()));
        candle_core::bail!("expected two tensors of one type and size, found {a:?} and {b:?}")
    }
    Ok([device_ptr(a)?, device_ptr(b)?])
}

/// How many gradients in steps of this thread were not finite so far. Synchronizes with the device.
pub(crate) fn skipped_step_count(device: &Device) -> Result<u64> {
    with_context(device.as_cuda_device()?, |context| {
        context.scratch(Scratch::Outcome, OUTCOME_WORDS)?;
        let outcome: Vec<u64> = match context.scratch.get(&Scratch::Outcome) {
            Some(outcome) => context.stream.clone_dtoh(outcome).w()?,
            None => Vec::new(),
        };
        Ok(outcome.get(NOT_FINITE).copied().unwrap_or_default())
    })
}
