//! Weight decay as a part of a loss, and the gradients of a loss in one store.

#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::backprop::GradStore;
use candle_core::{CpuStorage, Result, Shape, Tensor};
use rayon::prelude::*;

use crate::autograd::gradient::gradient;
use crate::autograd::tape::{Layer, apply};
use crate::kernels::cpu::float::{Float, for_float, like, output, view};
#[cfg(feature = "cuda")]
use crate::kernels::cuda;
use crate::kernels::has_fused_kernels;
use crate::kernels::prepare::to_compute_dtype;
#[cfg(feature = "cuda")]
use crate::kernels::wide;

/// Elements that are added up by one thread, in an order that depends on nothing else.
const CHUNK: usize = 1 << 14;

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

impl Layer for Penalty {
    fn name(&self) -> &'static str {
        "l2-penalty"
    }

    fn forward(&self, args: &[Tensor]) -> Result<(CpuStorage, Shape)> {
        let w = view(&args[0]);
        for_float!(args[0].dtype(), self.name(), |T| {
            let squares = |w: &[T]| w.iter().map(|w| w.wide() * w.wide()).sum::<f64>();
            let parts: Vec<f64> = w.elements::<T>()?.par_chunks(CHUNK).map(squares).collect();
            Ok(output(vec![T::narrow(0.5 * self.0 * parts.into_iter().sum::<f64>())], ()))
        })
    }

    fn backward(&self, args: &[Tensor], _: &[bool], _: &Tensor, dy: &Tensor) -> Result<Vec<Option<Tensor>>> {
        let scale = self.0 * dy.to_dtype(candle_core::DType::F64)?.to_scalar::<f64>()?;
        let w = view(&args[0]);
        for_float!(args[0].dtype(), self.name(), |T| {
            let scale = T::narrow(scale);
            let dw: Vec<T> = w.elements::<T>()?.par_iter().with_min_len(CHUNK).map(|w| *w * scale).collect();
            Ok(vec![Some(like(dw, &args[0])?)])
        })
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

/// `loss.backward()` for the variables alone, whose gradients come from the layers without a copy: for whoever clips them
/// or adds them up before the optimizer's step.
///
/// # Errors
/// Those of the backward pass.
///
/// ```
/// use candle_core::{Device, Result, Var};
/// use sam_runtime::nn;
///
/// # fn main() -> Result<()> {
/// let w = Var::new(&[3f32, 4.], &Device::Cpu)?;
/// let gradient = nn::backward(&w.sqr()?.sum_all()?)?;
/// assert_eq!(gradient.get(&w).unwrap().to_vec1::<f32>()?, [6., 8.]);
/// # Ok(())
/// # }
/// ```
pub fn backward(loss: &Tensor) -> Result<GradStore> {
    let mut store = GradStore::default();
    for (var, grad) in gradient(loss)? {
        store.insert(&var, grad);
    }
    Ok(store)
}
