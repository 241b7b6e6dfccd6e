//! Layer and RMS normalization on tensors.

use candle_core::{DType, Result, Tensor};

use super::buffers::{Output, UninitTensor, device, device_ptr};
use super::context::with_context;
use super::launch::layer_norm::LayerNorm;
use super::launch::shared::ROW_STATISTICS;
use crate::kernels::shapes::RowNormShape;

/// y, and the statistics that the backward pass needs.
pub(crate) fn layer_norm(
    norm: RowNormShape,
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
) -> Result<(Output, Tensor)> {
    let rows = x.elem_count() / norm.columns.max(1);
    let (y, statistics) = (UninitTensor::like(x)?, UninitTensor::new(device(x)?, DType::F64, ROW_STATISTICS * rows)?);
    let sizes = sizes(norm, x, weight, bias, statistics.address()?)?;
    let addresses = [device_ptr(x)?.address, y.address()?];
    with_context(device(x)?, |context| sizes.forward(context, addresses))?;
    Ok((y.output(), statistics.tensor()?))
}

/// The wanted gradients of x, γ and β.
pub(crate) fn layer_norm_back(
    norm: RowNormShape,
    args: &[Tensor],
    statistics: &Tensor,
    wanted: &[bool],
    dy: &Tensor,
) -> Result<Vec<Option<Tensor>>> {
    let [x, weight, ..] = args else { candle_core::bail!("expected an input and a weight") };
    let gradient = |(arg, wanted): (&Tensor, &bool)| wanted.then(|| UninitTensor::like(arg)).transpose();
    let gradients = args.iter().zip(wanted).map(gradient).collect::<Result<Vec<_>>>()?;
    let mut addresses = [0; 3];
    for (address, gradient) in addresses.iter_mut().zip(&gradients) {
        *address = gradient.as_ref().map_or(Ok(0), UninitTensor::address)?;
    }
    let sizes = sizes(norm, x, weight, args.get(2), device_ptr(statistics)?.address)?;
    let inputs = [device_ptr(x)?.address, device_ptr(dy)?.address];
    with_context(device(x)?, |context| sizes.backward(context, inputs, addresses))?;
    gradients.into_iter().map(|gradient| gradient.map(UninitTensor::tensor).transpose()).collect()
}

fn sizes(norm: RowNormShape, x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, statistics: u64) -> Result<LayerNorm> {
    let RowNormShape { columns, eps, centered } = norm;
    let (x, weight) = (device_ptr(x)?, device_ptr(weight)?);
    Ok(LayerNorm {
        rows: x.elements / columns.max(1),
        columns,
        eps,
        centered,
        dtype: x.dtype,
        affine_dtype: weight.dtype,
        weight: weight.address,
        bias: bias.map_or(Ok(0), |bias| Ok::<_, candle_core::Error>(device_ptr(bias)?.address))?,
        statistics,
    })
}
