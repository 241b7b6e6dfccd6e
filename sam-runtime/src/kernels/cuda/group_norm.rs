//! Group normalization on tensors.

use candle_core::{DType, Result, Tensor};

use super::buffers::{Output, UninitTensor, device, device_ptr};
use super::context::with_context;
use super::launch::group_norm as launch;
use super::launch::shared::ROW_STATISTICS;
use crate::kernels::shapes::GroupNormShape;

/// y, and the statistics that the backward pass needs.
pub(crate) fn group_norm(norm: GroupNormShape, x: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<(Output, Tensor)> {
    let rows = x.dim(0)? * norm.groups;
    let (y, statistics) = (UninitTensor::like(x)?, UninitTensor::new(device(x)?, DType::F64, ROW_STATISTICS * rows)?);
    let sizes = sizes(norm, [x, weight, bias], statistics.address()?)?;
    let addresses = [device_ptr(x)?.address, y.address()?];
    if x.elem_count() > 0 {
        with_context(device(x)?, |context| sizes.forward(context, addresses))?;
    }
    Ok((y.output(), statistics.tensor()?))
}

/// The wanted gradients of x, γ and β.
pub(crate) fn group_norm_back(
    norm: GroupNormShape,
    args: &[Tensor],
    statistics: &Tensor,
    wanted: &[bool],
    dy: &Tensor,
) -> Result<Vec<Option<Tensor>>> {
    let [x, weight, bias] = args else { candle_core::bail!("expected an input, a weight and a bias") };
    if x.elem_count() == 0 {
        return args.iter().zip(wanted).map(|(arg, wanted)| wanted.then(|| arg.zeros_like()).transpose()).collect();
    }
    let gradient = |(arg, wanted): (&Tensor, &bool)| wanted.then(|| UninitTensor::like(arg)).transpose();
    let gradients = args.iter().zip(wanted).map(gradient).collect::<Result<Vec<_>>>()?;
    let mut addresses = [0; 3];
    for (address, gradient) in addresses.iter_mut().zip(&gradients) {
        *address = gradient.as_ref().map_or(Ok(0), UninitTensor::address)?;
    }
    let sizes = sizes(norm, [x, weight, bias], device_ptr(statistics)?.address)?;
    let inputs = [device_ptr(x)?.address, device_ptr(dy)?.address];
    with_context(device(x)?, |context| sizes.backward(context, inputs, addresses))?;
    gradients.into_iter().map(|gradient| gradient.map(UninitTensor::tensor).transpose()).collect()
}

fn sizes(norm: GroupNormShape, [x, weight, bias]: [&Tensor; 3], statistics: u64) -> Result<launch::GroupNorm> {
    let GroupNormShape { channels, groups, plane, eps } = norm;
    let (images, x, weight) = (x.dim(0)?, device_ptr(x)?, device_ptr(weight)?);
    Ok(launch::GroupNorm {
        images,
        channels,
        groups,
        plane,
        eps,
        dtype: x.dtype,
        affine_dtype: weight.dtype,
        weight: weight.address,
        bias: device_ptr(bias)?.address,
        statistics,
    })
}
