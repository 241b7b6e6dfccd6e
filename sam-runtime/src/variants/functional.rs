//! Functional-SAM: the second backward pass starts from the first pass's gradient of the loss in the network's outputs.

use std::sync::{Arc, Mutex};

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CudaStorage, CustomOp1, Layout, MetalStorage, Result, Shape, Tensor};

use crate::core::lock::lock;
use crate::core::pass::{Pass, Run, Step, WeakStep};

/// Returns the network's outputs as they are. In the second pass of a step their gradient is the one that they had in the
/// first, so that the result of the step is J(w + ε̂)ᵀ ∂L/∂z at w: the sharpness of the network as a function, without that
/// of the loss on top (Functional-SAM, Singh et al. 2025, <https://arxiv.org/abs/2502.02407>).
///
/// Call it between the network and the loss, once in a pass; a network with several outputs has one of these for each. In
/// further passes, which some variants have, the slope is that of the first one too. Slopes are remembered for each step, so
/// other steps, on this thread or on others, may use it between the passes.
///
/// ```
/// use candle_core::{Device, Result, Tensor, Var};
/// use sam_runtime::{FunctionalSam, Sam};
///
/// # fn main() -> Result<()> {
/// let (w, functional) = (Var::new(&[1f64, 2.], &Device::Cpu)?, FunctionalSam::default());
/// let loss = Sam::new(0.1).loss(|| -> Result<Tensor> {
///     let z = functional.apply(&w.sqr()?)?;               // the network: z = w²
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
pub struct FunctionalSam(Arc<Mutex<Vec<First>>>);

/// The slopes of the first pass of a step, one for each part of the batch.
#[derive(Debug)]
struct First {
    number: u64,
    step: WeakStep,
    slopes: Vec<(Run, Tensor)>,
}

impl FunctionalSam {
    /// `outputs`, as they are.
    ///
    /// # Errors
    /// If candle fails. In the backward pass: if the second pass has outputs of another shape than the first.
    pub fn apply(&self, outputs: &Tensor) -> Result<Tensor> {
        let Some(step) = Step::current() else { return Ok(outputs.clone()) };
        let slope = ReplaySlopeOp {
            first: Arc::clone(&self.0),
            number: step.number(),
            step: step.downgrade(),
            run: Run::current(),
        };
        // The operation copies the whole buffer, so that of a view has to be its own.
        let is_whole = outputs.layout().contiguous_offsets().is_some_and(|(start, _)| start == 0);
        let outputs = if is_whole { outputs.clone() } else { outputs.force_contiguous()? };
        outputs.apply_op1(slope)
    }
}

struct ReplaySlopeOp {
    first: Arc<Mutex<Vec<First>>>,
    number: u64,
    step: WeakStep,
    run: Run,
}

impl CustomOp1 for ReplaySlopeOp {
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
        let mut steps = lock(&self.first);
        let known = steps.iter().position(|first| first.number == self.number);
        match self.run.pass {
            Pass::Plain => return Ok(Some(dz.clone())),
            Pass::Ascent => {
                let index = known.unwrap_or_else(|| {
                    steps.retain(|first| !first.step.is_over());
                    steps.push(First { number: self.number, step: self.step.clone(), slopes: Vec::new() });
                    steps.len() - 1
                });
                let slopes = &mut steps[index].slopes;
                if slopes.get(self.run.part).is_some_and(|(run, _)| *run == self.run) {
                    candle_core::bail!("`FunctionalSam::apply` was called twice in a pass: make one for each output")
                }
                slopes.truncate(self.run.part);
                slopes.push((self.run, dz.detach()));
                return Ok(Some(dz.clone()));
            }
            Pass::Descent => {}
        }
        match known.and_then(|index| steps[index].slopes.get(self.run.part)) {
            Some((_, slope)) if slope.dims() == z.dims() => Ok(Some(slope.clone())),
            Some((_, slope)) => {
                candle_core::bail!("expected outputs of {:?} as in the first pass, found {:?}", slope.dims(), z.dims())
            }
            None => candle_core::bail!(
                "the first pass of this step took no gradient of the outputs: Functional-SAM works on whole batches and \
                 on `parts`, not on `hardest` samples"
            ),
        }
    }
}
