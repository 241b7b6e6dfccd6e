//! Functional-SAM: the second pass goes back along the first pass's slope of the loss in the network's outputs.

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CudaStorage, CustomOp1, Layout, MetalStorage, Result, Shape, Tensor};

use crate::Pass;
use crate::pass::{Run, Step};

/// Hands the network's outputs on as they are. In the second pass of a step their gradient is the one that they had in the
/// first, so that what comes of the step is J(w + ε̂)ᵀ ∂L/∂z at w: the sharpness of the network as a function, without that
/// of the loss on top (Functional-SAM, Singh et al. 2025, <https://arxiv.org/abs/2502.02407>).
///
/// Called between the network and the loss, once in a pass; a network with several outputs has one of these for each. In
/// further passes, where a variant has them, the slope is the first one's too.
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
pub struct Functional(Arc<Mutex<Option<First>>>);

/// The slopes of the first pass of a step, one for each part of the batch.
#[derive(Debug)]
struct First {
    step: Step,
    slopes: Vec<(Run, Tensor)>,
}

impl Functional {
    /// `outputs`, as they are.
    ///
    /// # Errors
    /// If candle fails. In the backward pass: if the second pass has outputs of another shape than the first.
    pub fn of(&self, outputs: &Tensor) -> Result<Tensor> {
        let Some(step) = Step::current() else { return Ok(outputs.clone()) };
        outputs.contiguous()?.apply_op1(Slope { first: Arc::clone(&self.0), step, run: Run::current() })
    }
}

struct Slope {
    first: Arc<Mutex<Option<First>>>,
    step: Step,
    run: Run,
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
        let mut first = self.first.lock().unwrap_or_else(PoisonError::into_inner);
        match self.run.pass {
            Pass::Plain => return Ok(Some(dz.clone())),
            Pass::Ascent => {
                let known = first.take().filter(|first| first.step == self.step);
                let mut slopes = known.map_or_else(Vec::new, |first| first.slopes);
                if slopes.get(self.run.part).is_some_and(|(run, _)| *run == self.run) {
                    candle_core::bail!("`Functional::of` was called twice in a pass: make one for each output")
                }
                slopes.truncate(self.run.part);
                slopes.push((self.run, dz.detach()));
                *first = Some(First { step: self.step.clone(), slopes });
                return Ok(Some(dz.clone()));
            }
            Pass::Descent => {}
        }
        match first.as_ref().filter(|first| first.step == self.step).and_then(|first| first.slopes.get(self.run.part)) {
            Some((_, slope)) if slope.dims() == z.dims() => Ok(Some(slope.clone())),
            Some((_, slope)) => {
                candle_core::bail!("expected outputs of {:?} as in the first pass, found {:?}", slope.dims(), z.dims())
            }
            None => candle_core::bail!(
                "the first pass of this step took no gradient of the outputs: Functional-SAM works on whole batches and \
                 on `parts`, not on `hardest` examples"
            ),
        }
    }
}
