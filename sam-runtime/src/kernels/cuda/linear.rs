//! Linear layers on tensors.

use candle_core::backend::BackendStorage;
use candle_core::{Result, Storage, Tensor};

use super::buffers::{Output, UninitTensor, device, device_ptr};
use super::context::with_context;
use super::launch::channels::{self, Channels};
use super::launch::dtype_code;
use crate::core::image_layout::ImageLayout;

/// x wᵀ + b, of (rows, in), (out, in) and (out).
pub(crate) fn linear(x: &Tensor, w: &Tensor, bias: Option<&Tensor>) -> Result<Output> {
    product(x, w, bias).map(UninitTensor::output)
}

pub(super) fn product(x: &Tensor, w: &Tensor, bias: Option<&Tensor>) -> Result<UninitTensor> {
    let ((rows, inner), (outer, _)) = (x.dims2()?, w.dims2()?);
    let w = w.to_dtype(x.dtype())?.t()?;
    let product = {
        let ((x, x_layout), (w, w_layout)) = (x.storage_and_layout(), w.storage_and_layout());
        let (Storage::Cuda(x), Storage::Cuda(w)) = (&*x, &*w) else {
            candle_core::bail!("expected a weight on the CUDA device of the input")
        };
        x.matmul(w, (1, rows, outer, inner), x_layout, w_layout)?
    };
    let y = UninitTensor { storage: product, shape: (rows, outer).into(), format: ImageLayout::Nchw };
    if let Some(bias) = bias {
        let (dtypes, sizes) = ([dtype_code(x.dtype())?, device_ptr(bias)?.dtype], columns(rows, outer));
        let addresses = [y.address()?, device_ptr(bias)?.address];
        with_context(device(x)?, |context| channels::bias(context, sizes, dtypes, addresses))?;
    }
    Ok(y)
}

/// The requested gradients of x, w and b.
pub(crate) fn linear_back(args: &[Tensor], wanted: &[bool], dy: &Tensor) -> Result<Vec<Option<Tensor>>> {
    let (rows, outer) = dy.dims2()?;
    let gradient = |(i, arg): (usize, &Tensor)| match i {
        _ if !wanted[i] => Ok(None),
        0 => dy.matmul(&args[1].to_dtype(dy.dtype())?).map(Some),
        1 => dy.t()?.matmul(&args[0])?.to_dtype(arg.dtype()).map(Some),
        _ => bias_back(arg, dy, columns(rows, outer)).map(Some),
    };
    args.iter().enumerate().map(gradient).collect()
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
