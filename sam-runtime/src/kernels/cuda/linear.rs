//! Linear layers on tensors.

use candle_core::backend::BackendStorage;
use candle_core::{Result, Storage, Tensor};

use super::buffers::{Output, UninitTensor, device, device_ptr};
use super::context::with_context;
use super::launch::channels::{self, Channels};
use super::launch::dtype_code;
use crate::core::image_layout::ImageLayout;

/// x wᵀ + b, of contiguous (.., in), (out, in) and (out).
pub(crate) fn linear(x: &Tensor, w: &Tensor, bias: Option<&Tensor>) -> Result<Output> {
    product(x, w, bias).map(UninitTensor::output)
}

pub(super) fn product(x: &Tensor, w: &Tensor, bias: Option<&Tensor>) -> Result<UninitTensor> {
    let mut shape = x.dims().to_vec();
    let (x, (outer, _)) = (in_rows(x)?, w.dims2()?);
    let (rows, inner) = x.dims2()?;
    shape.pop();
    shape.push(outer);
    let w = w.to_dtype(x.dtype())?.t()?;
    let product = {
        let ((x, x_layout), (w, w_layout)) = (x.storage_and_layout(), w.storage_and_layout());
        let (Storage::Cuda(x), Storage::Cuda(w)) = (&*x, &*w) else {
            candle_core::bail!("expected a weight on the CUDA device of the input")
        };
        x.matmul(w, (1, rows, outer, inner), x_layout, w_layout)?
    };
    let y = UninitTensor { storage: product, shape: shape.into(), format: ImageLayout::Nchw };
    if let Some(bias) = bias {
        let (dtypes, sizes) = ([dtype_code(x.dtype())?, device_ptr(bias)?.dtype], columns(rows, outer));
        let addresses = [y.address()?, device_ptr(bias)?.address];
        with_context(device(&x)?, |context| channels::bias(context, sizes, dtypes, addresses))?;
    }
    Ok(y)
}

/// The requested gradients of x, w and b.
pub(crate) fn linear_back(args: &[Tensor], wanted: &[bool], dy: &Tensor) -> Result<Vec<Option<Tensor>>> {
    let (dy, x) = (&in_rows(dy)?, in_rows(&args[0])?);
    let (rows, outer) = dy.dims2()?;
    let gradient = |(i, arg): (usize, &Tensor)| match i {
        _ if !wanted[i] => Ok(None),
        0 => dy.matmul(&args[1].to_dtype(dy.dtype())?)?.reshape(arg.shape()).map(Some),
        1 => dy.t()?.matmul(&x)?.to_dtype(arg.dtype()).map(Some),
        _ => bias_back(arg, dy, columns(rows, outer)).map(Some),
    };
    args.iter().enumerate().map(gradient).collect()
}

/// (.., n) as (rows, n).
fn in_rows(x: &Tensor) -> Result<Tensor> {
    let columns = x.dims().last().copied().unwrap_or(1).max(1);
    x.reshape((x.elem_count() / columns, columns))
}

fn columns(rows: usize, columns: usize) -> Channels {
    Channels { images: rows, channels: columns, plane: 1, format: ImageLayout::Nchw }
}

pub(super) fn bias_back(bias: &Tensor, dy: &Tensor, sizes: Channels) -> Result<Tensor> {
    let (d_bias, dy_ptr) = (UninitTensor::like(bias)?, device_ptr(dy)?);
    let (dtypes, addresses) = ([dy_ptr.dtype, dtype_code(bias.dtype())?], [dy_ptr.address, d_bias.address()?]);
    with_context(device(dy)?, |context| channels::bias_back(context, sizes, dtypes, addresses))?;
    d_bias.tensor()
}
