//! Sums of branches with a factor for each sample: Shake-Shake and ShakeDrop.

use candle_core::{Result, Tensor};

use super::buffers::{Output, UninitTensor, device, device_ptr};
use super::context::with_context;
use super::launch::branch_mix;
use crate::core::dtype::wide;

/// Σ f x over one or two tensors x, with a factor f for each sample.
pub(crate) fn branch_mix(args: &[Tensor], factors: &[Vec<f32>]) -> Result<Output> {
    let factors = factors.iter().map(|factors| to_device(factors, &args[0])).collect::<Result<Vec<_>>>()?;
    Ok(mixed(&args.iter().zip(&factors).collect::<Vec<_>>())?.output())
}

/// The gradients of those tensors.
pub(crate) fn branch_mix_back(dy: &Tensor, factors: &[Vec<f32>]) -> Result<Vec<Option<Tensor>>> {
    factors.iter().map(|factors| mixed(&[(dy, &to_device(factors, dy)?)])?.tensor().map(Some)).collect()
}

fn to_device(factors: &[f32], like: &Tensor) -> Result<Tensor> {
    Tensor::from_slice(factors, factors.len(), like.device())?.to_dtype(wide(like.dtype()))
}

/// Σ f x over one or two tensors x, with one factor f per sample.
pub(super) fn mixed(terms: &[(&Tensor, &Tensor)]) -> Result<UninitTensor> {
    let (mut tensors, mut factors) = ([0; 2], [0; 2]);
    if terms.iter().any(|(x, _)| x.dtype() != terms[0].0.dtype()) {
        candle_core::bail!("expected tensors of one type to mix")
    }
    for (i, (x, f)) in terms.iter().enumerate() {
        (tensors[i], factors[i]) = (device_ptr(x)?.address, device_ptr(f)?.address);
    }
    let (x, f) = terms[0];
    let (dtype, n, y) = (device_ptr(x)?.dtype, x.elem_count(), UninitTensor::like(x)?);
    let [a, b] = tensors;
    let sizes = [n, n / f.elem_count()];
    with_context(device(x)?, |context| branch_mix::branch_mix(context, dtype, [a, b, y.address()?], sizes, factors))?;
    Ok(y)
}
