//! Passes that see the same masks and statistics, at w and beside it.

use std::sync::Arc;

use candle_core::{DType, Device, Result, Tensor};

use super::landscape::Landscape;
use super::weight_vector::WeightVector;
use crate::autograd::gradient::gradient_of;
use crate::core::error::Error;
use crate::core::names::describe;
use crate::core::overlap::Watch;
use crate::core::pass::{Pass, Step, plain};
use crate::core::storage::SwapGuard;
use crate::core::var_list::{Gradient, VarTensors};
use crate::kernels::weighted_mean::WeightedMean;

/// A step that leads nowhere: it is given up when it is dropped, and what its passes have changed is put back.
pub(super) struct Session<'s, 'a> {
    pub(super) landscape: &'s mut Landscape<'a>,
    step: Step,
    /// The first pass of each batch draws the masks, and the later ones have them again.
    has_run: Vec<bool>,
    passes: f64,
}

impl Drop for Session<'_, '_> {
    fn drop(&mut self) {
        drop(self.step.take_before());
    }
}

impl<'s, 'a> Session<'s, 'a> {
    pub(super) fn begin(landscape: &'s mut Landscape<'a>) -> Result<Self> {
        if landscape.vars.is_empty() {
            Err(Error::NothingToPerturb)?;
        }
        if !Step::is_outermost() {
            candle_core::bail!("a landscape is looked at inside a loss function, or inside `plain`: do it outside")
        }
        let step = Step::begin();
        for buffer in &landscape.buffers {
            step.keep(buffer)?;
        }
        let has_run = vec![false; landscape.shares.len()];
        Ok(Self { landscape, step, has_run, passes: 0.0 })
    }

    /// Forward and backward passes over all samples so far; without the backward pass they count for a third.
    pub(super) fn passes(&self) -> f64 {
        self.passes
    }

    pub(super) fn batches(&self) -> usize {
        self.has_run.len()
    }

    /// Runs `f` with the variables at w + v.
    pub(super) fn at<R>(&mut self, v: &WeightVector, f: impl FnOnce(&mut Self) -> Result<R>) -> Result<R> {
        v.check_vars(&self.landscape.vars)?;
        let values = WeightVector::of_weights(self.landscape.vars.iter().cloned())?.plus(v, 1.0)?.tensors()?;
        self.with_values(values, f)
    }

    /// Runs `f` with these values in the variables.
    pub(super) fn with_values<R>(&mut self, values: Gradient, f: impl FnOnce(&mut Self) -> Result<R>) -> Result<R> {
        let weights = SwapGuard::new(&self.step, values)?;
        let result = f(self)?;
        weights.restore()?;
        Ok(result)
    }

    /// Where the variables are now.
    pub(super) fn loss(&mut self) -> Result<f64> {
        let mut sum = 0.0;
        for batch in 0..self.batches() {
            sum += self.landscape.shares[batch] * self.loss_of(batch)?;
        }
        Ok(sum)
    }

    pub(super) fn loss_of(&mut self, batch: usize) -> Result<f64> {
        self.passes += self.landscape.shares[batch] / 3.0;
        value(&self.run(batch, |loss| Ok(loss.detach()))?)
    }

    /// The loss and its gradient.
    pub(super) fn gradient(&mut self) -> Result<(f64, WeightVector)> {
        let (mut sum, mut mean) = (0.0, WeightedMean::default());
        for batch in 0..self.batches() {
            let (loss, gradient) = self.gradient_of(batch)?;
            let share = self.landscape.shares[batch];
            sum += share * loss;
            mean.add(share, gradient)?;
        }
        Ok((sum, WeightVector::of_gradient(&self.landscape.vars, &mean.finish()?)?))
    }

    /// Of one batch.
    pub(super) fn gradient_of(&mut self, batch: usize) -> Result<(f64, Gradient)> {
        self.passes += self.landscape.shares[batch];
        let vars = Arc::clone(&self.landscape.vars);
        let (loss, gradient) = self.run(batch, |loss| {
            let nodes = loss.sorted_nodes();
            Ok((loss.detach(), gradient_of(loss, nodes.into_iter())?))
        })?;
        let found = VarTensors::new(gradient);
        let mut own = Gradient::new();
        for var in vars.iter() {
            let Some(gradient) = found.get(var) else {
                return Err(Error::NoGradient { variable: describe(var) }.into());
            };
            own.push((var.clone(), gradient.clone()));
        }
        Ok((value(&loss)?, own))
    }

    /// Runs the loss function on a batch, and what is made of its result.
    pub(super) fn run<R>(&mut self, batch: usize, f: impl FnOnce(&Tensor) -> Result<R>) -> Result<R> {
        let pass = if self.has_run[batch] { Pass::Descent } else { Pass::Ascent };
        let watch = Watch::begin(&self.step);
        let Landscape { vars, loss, .. } = &mut *self.landscape;
        let result = self.step.run(pass, batch, |_| plain(|| f(&scalar(loss(batch)?)?)))?;
        watch.check(vars.iter())?;
        self.has_run[batch] = true;
        Ok(result)
    }
}

fn scalar(loss: Tensor) -> Result<Tensor> {
    if loss.elem_count() != 1 {
        Err(Error::NotScalar(loss.shape().clone()))?;
    }
    if !loss.dtype().is_float() {
        Err(Error::NotFloat(loss.dtype()))?;
    }
    Ok(loss)
}

fn value(loss: &Tensor) -> Result<f64> {
    loss.to_device(&Device::Cpu)?.flatten_all()?.to_dtype(DType::F64)?.get(0)?.to_scalar()
}
