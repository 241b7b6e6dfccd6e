//! Functional-SAM: the second pass goes back along the first pass's slope of the loss in the network's outputs.

use std::sync::{Mutex, PoisonError};

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CudaStorage, CustomOp1, Layout, MetalStorage, Result, Shape, Tensor};

use crate::Pass;
use crate::pass::Step;

/// Hands the network's outputs on as they are. In the second pass of a step their gradient is the one that they had in the
/// first, so that what comes of the step is J(w + ε̂)ᵀ ∂L/∂z at w: the sharpness of the network as a function, without that
/// of the loss on top (Functional-SAM, Singh et al. 2025, <https://arxiv.org/abs/2502.02407>).
///
/// Called between the network and the loss, once in a step:
///
/// ```
/// use candle_core::{Device, Result, Tensor, Var};
/// use sam_runtime::{Functional, Sam};
///
/// # fn main() -> Result<()> {
/// let (w, functional) = (Var::new(&[1f64, 2.], &Device::Cpu)?, Functional::default());
/// let loss = Sam::new(0.1).loss(|| -> Result<Tensor> {
///     let z = functional.of(&w.sqr()?)?;               // the network: z = w²
///     z.sqr()?.sum_all()                               // the loss: Σ z²
/// })?;
/// let g = loss.backward()?.get(&w).unwrap().to_vec1::<f64>()?;
/// let norm = (4f64 * 4. + 32. * 32.).sqrt();           // of ∇L = 4 w³
/// let moved = [1. + 0.1 * 4. / norm, 2. + 0.1 * 32. / norm];
/// assert!((g[0] - 2. * moved[0] * 2.).abs() < 1e-12);  // J(w + ε̂)ᵀ · 2 z(w)
/// assert!((g[1] - 2. * moved[1] * 8.).abs() < 1e-12);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Default)]
pub struct Functional(std::sync::Arc<Mutex<Option<(Step, Tensor)>>>);

impl Functional {
    /// `outputs`, as they are.
    ///
    /// # Errors
    /// If candle fails. In the backward pass: if the second pass has outputs of another shape than the first.
    pub fn of(&self, outputs: &Tensor) -> Result<Tensor> {
        let Some(step) = Step::current() else { return Ok(outputs.clone()) };
        let kept = std::sync::Arc::clone(&self.0);
        outputs.contiguous()?.apply_op1(Slope { kept, step, pass: Pass::current() })
    }
}

struct Slope {
    kept: std::sync::Arc<Mutex<Option<(Step, Tensor)>>>,
    step: Step,
    pass: Pass,
}

impl CustomOp1 for Slope {
    fn name(&self) -> &'static str {
        "functional-sam"
    }

    fn cpu_fwd(&self, z: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        Ok((z.try_clone(layout)?, layout.shape().clone()))
    }

    fn cuda_fwd(&self, z: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        Ok((z.try_clone(layout)?, layout.shape().clone()))
    }

    fn metal_fwd(&self, z: &MetalStorage, layout: &Layout) -> Result<(MetalStorage, Shape)> {
        Ok((z.try_clone(layout)?, layout.shape().clone()))
    }

    fn bwd(&self, _: &Tensor, z: &Tensor, dz: &Tensor) -> Result<Option<Tensor>> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if self.pass == Pass::Ascent {
            *kept = Some((self.step, dz.detach()));
            return Ok(Some(dz.clone()));
        }
        match &*kept {
            Some((step, first)) if *step == self.step && first.dims() == z.dims() => Ok(Some(first.clone())),
            Some((step, first)) if *step == self.step => {
                candle_core::bail!("expected outputs of {:?} as in the first pass, found {:?}", first.dims(), z.dims())
            }
            _ => Ok(Some(dz.clone())),
        }
    }
}
