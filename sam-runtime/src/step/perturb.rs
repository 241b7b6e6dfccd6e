//! The way to w + ε̂: whether it is taken, along which direction, and how far.

use candle_core::{Tensor, Var};

use crate::core::error::Error;
use crate::core::pass::Pass;
use crate::core::storage::{SwapGuard, swap_all};
use crate::core::var_list::{Gradient, VarSet, VarTensors};
use crate::kernels::{self, PerturbTarget, check_finite, mix_all, number, read, square};
use crate::sam::Sam;
use crate::step::session::StepContext;
use crate::variants::{Radius, Schedule};

impl StepContext<'_> {
    /// Whether no second pass is needed: AE-SAM below its threshold, LookSAM between two SAM steps, whose stored component is
    /// added in place.
    pub(crate) fn finishes_after_first_pass(
        &mut self,
        perturbed: &Gradient,
        all: &Gradient,
    ) -> candle_core::Result<bool> {
        let asks = matches!(self.sam.schedule, Schedule::GradNormAdaptive { .. })
            || matches!(self.sam.radius, Radius::LossBudget { .. });
        if asks {
            check_finite(all, Pass::Ascent)?;
            let square = read(&square(perturbed.iter().map(|(_, grad)| grad))?)?;
            if !square.is_finite() {
                // It overflowed, or the gradient did: on devices where values are not checked it is found here first.
                Err(Error::NonFiniteNorm(square))?;
            }
            if !self.sam.schedule.after(square, &mut self.state) {
                return Ok(true);
            }
            if let Radius::LossBudget { sigma, largest } = self.sam.radius {
                self.rho = largest.min(sigma / square.sqrt());
            }
        }
        if !self.sam.combination.is_between(all, &self.state) {
            return Ok(false);
        }
        check_finite(all, Pass::Ascent)?;
        self.sam.combination.mix_in(all, &self.state)?;
        Ok(true)
    }

    /// The gradient at w, out of the perturbation's way.
    pub(crate) fn snapshot_first_gradient(&self, all: &Gradient) -> candle_core::Result<Option<Gradient>> {
        let needed = self.sam.has_diagnostics || self.sam.combination.needs_first();
        let copy = |(var, grad): &(Var, Tensor)| Ok((var.clone(), grad.copy()?));
        needed.then(|| all.iter().map(copy).collect()).transpose()
    }

    /// The direction, if it is known without a gradient.
    pub(crate) fn direction_at_once(&self) -> candle_core::Result<Option<Gradient>> {
        if self.sam.direction.needs_gradient() {
            return Ok(None);
        }
        let vars = self.sam.vars.as_ref().map_or(&[][..], VarSet::as_slice);
        let mut along = self.sam.direction.without_gradient(vars, &self.state, self.sam.seed)?;
        along.retain(|(var, _)| self.sam.may_move(var));
        Ok(Some(along))
    }

    /// The direction, given the gradient at w.
    pub(crate) fn direction(&mut self, gradient: Gradient) -> candle_core::Result<Gradient> {
        self.sam.direction.of_gradient(gradient, &mut self.state)
    }

    /// Moves the variables along the direction. The buffers keep the value of the first pass meanwhile, if there was one.
    pub(crate) fn perturb(&mut self, weights: Option<SwapGuard>, along: Gradient) -> candle_core::Result<SwapGuard> {
        let mut values = self.moved(along)?;
        let ascents = self.sam.ascents;
        if ascents.count > 1 || ascents.length > 1.0 {
            let home: Gradient = match &weights {
                Some(weights) => weights.iter().cloned().collect(),
                None => values.iter().map(|(var, _)| (var.clone(), var.as_detached_tensor())).collect(),
            };
            values = onto_the_ball(self.rho, &home, values)?;
        }
        if let Some(weights) = weights {
            swap_all(&values)?;
            return Ok(weights);
        }
        if let Some(watch) = &self.watch {
            watch.check(values.iter().map(|(var, _)| var))?;
        }
        let mut weights = SwapGuard::new(&self.step, values)?;
        if self.sam.direction.needs_gradient() {
            weights.keep(self.sam.buffers.as_slice())?;
        }
        Ok(weights)
    }

    /// The variables' values after the move.
    fn moved(&mut self, along: Gradient) -> candle_core::Result<Gradient> {
        let mask = match self.sam.mask {
            Some(mask) => Some(mask.draw(&along, &mut self.state, self.sam.seed)?),
            None => None,
        };
        in_the_ball(self.sam, self.rho * self.sam.ascents.length, along, mask.as_ref())
    }
}

/// The variables' values after a move along a direction to the border of the ball of this radius, written over the direction.
pub(crate) fn in_the_ball(
    sam: &Sam,
    rho: f64,
    along: Gradient,
    mask: Option<&VarTensors>,
) -> candle_core::Result<Gradient> {
    let target = |(var, grad): (Var, Tensor)| {
        let metric = sam.scaling(&var, &grad)?;
        let mask = mask.and_then(|mask| mask.get(&var).cloned());
        Ok(PerturbTarget { var, grad, metric, mask })
    };
    let ball = sam.ball(rho);
    let targets = along.into_iter().map(target).collect::<candle_core::Result<_>>()?;
    let mut balls = sam.scope.balls(targets);
    if balls.len() == 1 {
        return kernels::perturbed(ball, balls.remove(0));
    }
    let all: Gradient = balls.iter().flatten().map(|target| (target.var.clone(), target.grad.clone())).collect();
    check_finite(&all, Pass::Ascent)?;
    let mut values = Gradient::new();
    for targets in balls {
        values.extend(kernels::perturbed(ball, targets)?);
    }
    Ok(values)
}

/// Puts values that are farther from home than ρ back onto the ball.
fn onto_the_ball(rho: f64, home: &Gradient, values: Gradient) -> candle_core::Result<Gradient> {
    let kept = VarTensors::new(home.clone());
    let pairs: Vec<_> = values.iter().filter_map(|(var, value)| Some((value, kept.get(var)?))).collect();
    let Some((like, _)) = pairs.first() else { return Ok(values) };
    let steps = pairs.iter().map(|(value, home)| *value - *home).collect::<candle_core::Result<Vec<_>>>()?;
    let distance = square(&steps)?.sqrt()?;
    let one = number(like, 1.0)?.to_dtype(distance.dtype())?;
    let share = (distance.clamp(rho, f64::MAX)?.recip()? * rho)?;
    mix_all(&pairs, &share, &(&one - &share)?)?;
    Ok(values)
}
