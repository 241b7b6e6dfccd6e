//! The sum of two tensors: a layer, and what gradients that meet are added up with.

#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, Result, Shape, Tensor};

use super::tape::{Layer, apply};
use crate::kernels::cpu::elementwise;
#[cfg(feature = "cuda")]
use crate::kernels::cuda;
use crate::kernels::has_fused_kernels;
use crate::kernels::prepare::{to_compute_dtype, to_layout_of};

/// x + y. Both get the gradient of the sum.
///
/// # Errors
/// If the shapes or types differ, or are not those of float tensors.
pub(crate) fn add(x: &Tensor, y: &Tensor) -> Result<Tensor> {
    if x.dims() != y.dims() || x.dtype() != y.dtype() {
        let (x, y) = ((x.dims(), x.dtype()), (y.dims(), y.dtype()));
        candle_core::bail!("expected two tensors of one shape and type to add, found {x:?} and {y:?}")
    }
    if has_fused_kernels(x.device()) && x.device().same_device(y.device()) {
        let wide = to_compute_dtype(x)?;
        apply(Add, &[&wide, &to_layout_of(&wide, y)?])?.to_dtype(x.dtype())
    } else {
        x + y
    }
}

/// x + y, of one shape.
struct Add;

impl Layer for Add {
    fn name(&self) -> &'static str {
        "add"
    }

    fn forward(&self, args: &[Tensor]) -> Result<(CpuStorage, Shape)> {
        elementwise::add(&args[0], &args[1])
    }

    fn backward(&self, _: &[Tensor], _: &[bool], _: &Tensor, dy: &Tensor) -> Result<Vec<Option<Tensor>>> {
        Ok(vec![Some(dy.clone()), Some(dy.clone())])
    }

    #[cfg(feature = "cuda")]
    fn cuda_forward(&self, args: &[Tensor]) -> Result<(CudaStorage, Shape)> {
        cuda::add(&args[0], &args[1])
    }

    #[cfg(feature = "cuda")]
    fn cuda_backward(&self, args: &[Tensor], wanted: &[bool], y: &Tensor, dy: &Tensor) -> Result<Vec<Option<Tensor>>> {
        self.backward(args, wanted, y, dy)
    }
}
