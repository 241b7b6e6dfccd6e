//! The algorithm, as types: ascend → perturb → descend → restore. Each stage is made by the one before and by nothing
//! else, so the compiler refuses any other order.

use std::collections::HashSet;

use candle_core::Var;

use crate::gradient::{Gradient, check_loss, gradient, loss_with_gradient};
use crate::kernels;
use crate::pass::Step;
use crate::sam::Ball;
use crate::weights::Displaced;
use crate::{Error, Output, Pass, Sam, Shards};

/// After stage one: L(w) and ∇L(w) are known, the graph is gone.
#[derive(Debug)]
#[must_use = "the step goes on with `.perturb()`"]
pub struct Ascent<O> {
    output: O,
    /// None where nothing is perturbed: the output is then the plain loss, graph and all.
    found: Option<Found>,
}

#[derive(Debug)]
struct Found {
    step: Step,
    ball: Ball,
    /// The variables that are perturbed, with their gradients.
    gradient: Gradient,
    /// The variables that keep what the first pass has made of them.
    state: Vec<Var>,
}

/// After stage two: the variables hold w + ε̂. Dropped, it puts w back.
#[must_use = "the step goes on with `.descend(..)`"]
pub struct Perturbed<O> {
    output: O,
    weights: Option<(Step, Displaced)>,
}

/// After stage three: ∇L(w + ε̂) is known, the variables still hold w + ε̂. Dropped, it puts w back.
#[must_use = "the step ends with `.restore()`"]
pub struct Descent<O> {
    output: O,
    found: Option<(Displaced, Gradient)>,
}

impl<O: Output> Ascent<O> {
    pub(crate) fn run<E>(sam: &Sam, loss: &mut impl FnMut(Pass) -> Result<O, E>) -> Result<Self, E>
    where
        E: From<candle_core::Error>,
    {
        if !sam.perturbs() {
            return Ok(Self { output: loss(Pass::Plain)?, found: None });
        }
        let step = Step::begin();
        let output = step.run(Pass::Ascent, &mut *loss)?;
        check_loss(output.loss(), Pass::Ascent)?;
        let mut gradient = gradient(output.loss())?;
        if gradient.is_empty() {
            return Ok(Self { output, found: None });
        }
        let mut state = Vec::new();
        if let Some(vars) = &sam.vars {
            state = without_gradient(vars, &gradient);
            let perturbed: HashSet<_> = vars.iter().map(|var| var.id()).collect();
            gradient.retain(|(var, _)| perturbed.contains(&var.id()));
            if gradient.is_empty() {
                return Err(candle_core::Error::from(Error::NothingToPerturb).into());
            }
        }
        Ok(Self { output: output.detach(), found: Some(Found { step, ball: sam.ball, gradient, state }) })
    }
}

// What a stage asks of O it asks method by method, so that a loss that returns something else is refused once.
impl<O> Ascent<O> {
    /// Stage two: w ← w + ε̂(w). Written over the gradient's buffers, which then change places with the weights'.
    ///
    /// # Errors
    /// If the gradient is not finite; no weight has been touched then.
    pub fn perturb(self) -> candle_core::Result<Perturbed<O>> {
        let weights = match self.found {
            None => None,
            Some(Found { step, ball, gradient, state }) => {
                let mut weights = Displaced::new(kernels::perturbed(ball, gradient)?)?;
                weights.keep(state)?;
                Some((step, weights))
            }
        };
        Ok(Perturbed { output: self.output, weights })
    }
}

impl<O> Perturbed<O> {
    /// Stage three: runs the loss at w + ε̂ and takes its gradient, that of every variable the loss depends on.
    ///
    /// # Errors
    /// Those of the loss, and [`Error`](crate::Error). The weights are then put back.
    pub fn descend<E>(self, loss: &mut impl FnMut(Pass) -> Result<O, E>) -> Result<Descent<O>, E>
    where
        O: Output,
        E: From<candle_core::Error>,
    {
        let found = match self.weights {
            None => None,
            Some((step, weights)) => {
                let output = step.run(Pass::Descent, loss)?;
                check_loss(output.loss(), Pass::Descent)?;
                let gradient = gradient(output.loss())?;
                kernels::check_finite(&gradient, Pass::Descent)?;
                Some((weights, gradient))
            }
        };
        Ok(Descent { output: self.output, found })
    }
}

impl<O> Descent<O> {
    /// Stage four: w ← w. The loss whose value is L(w) and whose gradient is ∇L(w + ε̂).
    ///
    /// # Errors
    /// Only if candle fails to build a tensor of one number.
    pub fn restore<E>(self) -> Result<O, E>
    where
        O: Output,
        E: From<candle_core::Error>,
    {
        let Some((weights, gradient)) = self.found else { return Ok(self.output) };
        weights.restore()?;
        let loss = loss_with_gradient(self.output.loss(), gradient)?;
        Ok(self.output.with_loss(loss))
    }

    /// Stage four, for one [shard](Shards) of a batch: w ← w, and the gradient joins the average.
    ///
    /// # Errors
    /// If candle fails to add the gradient up.
    pub fn restore_into(self, shards: &mut Shards<O>) -> candle_core::Result<()>
    where
        O: Output,
    {
        let Some((weights, gradient)) = self.found else { return shards.add(self.output, None) };
        weights.restore()?;
        shards.add(self.output, Some(gradient))
    }
}

/// Those of `vars` that the loss has no gradient for, each once.
fn without_gradient(vars: &[Var], gradient: &Gradient) -> Vec<Var> {
    let mut seen: HashSet<_> = gradient.iter().map(|(var, _)| var.id()).collect();
    vars.iter().filter(|var| seen.insert(var.id())).cloned().collect()
}
