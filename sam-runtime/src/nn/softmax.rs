//! Softmax and its logarithm.

#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::shape::Dim;
use candle_core::{CpuStorage, D, Result, Shape, Tensor};

use crate::autograd::fused_op::{FusedOp, Saved};
use crate::autograd::tape::apply;
use crate::kernels::cpu::softmax_dim;
#[cfg(feature = "cuda")]
use crate::kernels::cuda;
use crate::kernels::has_fused_kernels;
use crate::kernels::prepare::to_compute_dtype;
use crate::kernels::shapes::DimShape;

/// exp(x) / Σ exp(x) along a dimension, as one operation with its own backward pass.
///
/// An element of -∞ is masked: it has no share, and its gradient is 0. Where all elements are -∞, or one is NaN or +∞, the result is
/// NaN, as in PyTorch. On the CPU bf16 and f16 are computed in f32.
///
/// # Errors
/// If there is no such dimension, or `xs` is not of a float type.
///
/// ```
/// use candle_core::{Device, Result, Tensor};
/// use sam_runtime::nn::ops::softmax;
///
/// # fn main() -> Result<()> {
/// let x = Tensor::new(&[[0f32, 0., f32::NEG_INFINITY], [1., 1., 1.]], &Device::Cpu)?;
/// assert_eq!(softmax(&x, 1)?.to_vec2::<f32>()?[0], [0.5, 0.5, 0.]);
/// # Ok(())
/// # }
/// ```
#[expect(clippy::needless_pass_by_value, reason = "the signature is candle's")]
pub fn softmax<D: Dim>(xs: &Tensor, dim: D) -> Result<Tensor> {
    along(xs, dim.to_index(xs.shape(), "softmax")?, false)
}

/// log softmax(x) along a dimension, without overflow. See [`softmax`]; a masked element becomes -∞.
///
/// # Errors
/// As [`softmax`].
#[expect(clippy::needless_pass_by_value, reason = "the signature is candle's")]
pub fn log_softmax<D: Dim>(xs: &Tensor, d: D) -> Result<Tensor> {
    along(xs, d.to_index(xs.shape(), "log-softmax")?, true)
}

/// [`softmax`] along the last dimension. It has a gradient, which candle's has not.
///
/// # Errors
/// As [`softmax`].
pub fn softmax_last_dim(xs: &Tensor) -> Result<Tensor> {
    if !has_fused_kernels(xs.device()) && !xs.track_op() {
        return candle_nn::ops::softmax_last_dim(xs);
    }
    softmax(xs, D::Minus1)
}

fn along(x: &Tensor, dim: usize, log: bool) -> Result<Tensor> {
    if !has_fused_kernels(x.device()) {
        return if log { candle_nn::ops::log_softmax(x, dim) } else { candle_nn::ops::softmax(x, dim) };
    }
    let layer = Softmax { shape: DimShape::new(x.dims(), dim), log };
    let ready = if x.device().is_cpu() { to_compute_dtype(x)? } else { x.contiguous()? };
    apply(layer, &[&ready])?.to_dtype(x.dtype())
}

struct Softmax {
    shape: DimShape,
    log: bool,
}

impl FusedOp for Softmax {
    fn name(&self) -> &'static str {
        if self.log { "log-softmax" } else { "softmax" }
    }

    fn saved(&self) -> Saved {
        Saved::OUTPUT
    }

    fn forward(&self, args: &[Tensor]) -> Result<(CpuStorage, Shape)> {
        softmax_dim::softmax(&args[0], self.shape, self.log)
    }

    fn backward(&self, _: &[Tensor], _: &[bool], y: &Tensor, dy: &Tensor) -> Result<Vec<Option<Tensor>>> {
        Ok(vec![Some(softmax_dim::softmax_back(y, dy, self.shape, self.log)?)])
    }

    #[cfg(feature = "cuda")]
    fn cuda_forward(&self, args: &[Tensor]) -> Result<(CudaStorage, Shape)> {
        cuda::softmax(&args[0], self.shape, self.log)
    }

    #[cfg(feature = "cuda")]
    fn cuda_backward(&self, _: &[Tensor], _: &[bool], y: &Tensor, dy: &Tensor) -> Result<Vec<Option<Tensor>>> {
        Ok(vec![Some(cuda::softmax_back(y, dy, self.shape, self.log)?)])
    }
}
