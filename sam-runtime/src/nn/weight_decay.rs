//! Weight decay as a part of a loss.

#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, Result, Shape, Tensor};

use crate::autograd::fused_op::{FusedOp, Saved};
use crate::autograd::tape::apply;
#[cfg(feature = "cuda")]
use crate::core::dtype::wide;
use crate::kernels::cpu::weight_decay;
#[cfg(feature = "cuda")]
use crate::kernels::cuda;
use crate::kernels::has_fused_kernels;
use crate::kernels::prepare::to_compute_dtype;

/// ½ λ ‖w‖², a scalar: the weight decay of one variable as a term of the loss, where the ascent's gradient sees it, as in
/// the authors' code.
///
/// # Errors
/// If `w` is not a float tensor.
///
/// ```
/// use candle_core::{Device, Result, Var};
/// use sam_runtime::nn;
///
/// # fn main() -> Result<()> {
/// let w = Var::new(&[3f32, 4.], &Device::Cpu)?;
/// let penalty = nn::l2_penalty(&w, 0.1)?;
/// assert_eq!(penalty.to_scalar::<f32>()?, 1.25);
/// assert_eq!(penalty.backward()?.get(&w).unwrap().to_vec1::<f32>()?, [0.3, 0.4]);
/// # Ok(())
/// # }
/// ```
pub fn l2_penalty(w: &Tensor, lambda: f64) -> Result<Tensor> {
    if has_fused_kernels(w.device()) {
        apply(Penalty(lambda), &[&to_compute_dtype(w)?])?.to_dtype(w.dtype())
    } else {
        w.sqr()?.sum_all()? * (0.5 * lambda)
    }
}

struct Penalty(f64);

impl FusedOp for Penalty {
    fn name(&self) -> &'static str {
        "l2-penalty"
    }

    fn saved(&self) -> Saved {
        Saved::ARGS
    }

    fn forward(&self, args: &[Tensor]) -> Result<(CpuStorage, Shape)> {
        weight_decay::penalty(&args[0], 0.5 * self.0)
    }

    fn backward(&self, args: &[Tensor], _: &[bool], _: &Tensor, dy: &Tensor) -> Result<Vec<Option<Tensor>>> {
        let scale = self.0 * dy.to_dtype(candle_core::DType::F64)?.to_scalar::<f64>()?;
        Ok(vec![Some(weight_decay::times(&args[0], scale)?)])
    }

    #[cfg(feature = "cuda")]
    fn cuda_forward(&self, args: &[Tensor]) -> Result<(CudaStorage, Shape)> {
        cuda::penalty(&args[0], 0.5 * self.0)
    }

    #[cfg(feature = "cuda")]
    fn cuda_backward(&self, args: &[Tensor], _: &[bool], _: &Tensor, dy: &Tensor) -> Result<Vec<Option<Tensor>>> {
        let number = (dy.detach().to_dtype(wide(dy.dtype()))? * self.0)?;
        Ok(vec![Some(cuda::times(&args[0], &number)?)])
    }
}
