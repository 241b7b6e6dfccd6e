//! The passes of a step: the loss function over the batch, or a part of it, and its gradient.

use std::collections::HashSet;

use candle_core::{Tensor, Var};

use crate::autograd::fixed_gradient::has_loss_of_call;
use crate::autograd::gradient::{check_loss, gradient_of};
use crate::autograd::stale::{Moment, check_made_since};
use crate::core::dtype::wide;
use crate::core::error::Error;
use crate::core::names::describe;
use crate::core::overlap::Watch;
use crate::core::pass::{Context, Pass};
use crate::core::storage::SwapGuard;
use crate::core::var_list::Gradient;
use crate::kernels::check_finite;
use crate::kernels::weighted_mean::WeightedMean;
use crate::step::batch_selection::{Portion, Rows, Rule};
use crate::step::output::{LossOutput, value_of};
use crate::step::session::StepContext;

/// A forward pass without its backward pass, which costs about two of it.
const FORWARD: f64 = 1.0 / 3.0;

/// A run of the loss function whose gradient is to be taken.
struct Attempt<O> {
    output: O,
    began: Moment,
    watch: Watch,
    call: u64,
}

impl StepContext<'_> {
    /// The loss as it is written: with its own graph, where it is a part of another one, else with the gradient at w.
    pub(crate) fn plain<O, E>(
        &mut self,
        loss: &mut impl FnMut(Pass) -> Result<O, E>,
    ) -> Result<(O, Option<Gradient>), E>
    where
        O: LossOutput,
        E: From<candle_core::Error>,
    {
        if !self.outermost {
            let (output, call) = Context::call(|| loss(Pass::Plain));
            let output = self.one_loss(output?, Pass::Plain)?;
            if rayon::current_thread_index().is_some() {
                check_not_nested(&output.loss().sorted_nodes(), call)?;
            }
            return Ok((output, None));
        }
        let (output, gradient) = self.pass(Pass::Plain, loss)?;
        self.exchange.note(check_finite(&gradient, Pass::Plain))?;
        self.last.loss = Some(value_of(output.loss())?);
        let gradient = (!gradient.is_empty()).then_some(gradient);
        Ok((output.into_detached()?, gradient))
    }

    /// The ascent pass, at w. With `hardest`, a forward pass over the whole batch first selects the samples and gives the
    /// returned value.
    pub(crate) fn ascent_pass<O, E>(&mut self, loss: &mut impl FnMut(Pass) -> Result<O, E>) -> Result<(O, Gradient), E>
    where
        O: LossOutput,
        E: From<candle_core::Error>,
    {
        let Some(selection) = self.selection.filter(|selection| selection.rule() == Rule::Hardest) else {
            let (output, gradient) = self.pass(Pass::Ascent, loss)?;
            self.check_listed(&gradient)?;
            self.last.loss = Some(value_of(output.loss())?);
            self.losses_at_w.clone_from(&self.losses);
            return Ok((output, gradient));
        };
        let Attempt { output, .. } = self.run(Pass::Ascent, 0, &Rows::All, loss)?;
        let mut state = SwapGuard::new(&self.step, Vec::new())?;
        state.keep(self.sam.buffers.as_slice())?;
        let output = output.into_detached()?;
        self.last.passes += FORWARD;
        self.portions = vec![selection.choose(&self.losses)];
        let (chosen, gradient) = self.pass(Pass::Descent, loss)?;
        state.restore()?;
        self.check_listed(&gradient)?;
        self.last.loss = Some(value_of(chosen.loss())?);
        Ok((output, gradient))
    }

    /// The pass at w + ε̂, where there was none at w.
    pub(crate) fn single_pass<O, E>(&mut self, loss: &mut impl FnMut(Pass) -> Result<O, E>) -> Result<(O, Gradient), E>
    where
        O: LossOutput,
        E: From<candle_core::Error>,
    {
        let found = self.ascent_pass(loss)?;
        self.last.perturbed_loss = self.last.loss.take();
        Ok(found)
    }

    /// The descent pass, at w + ε̂. With `sharpest`, a forward pass over the whole batch first selects the samples.
    pub(crate) fn descent_pass<O, E>(&mut self, loss: &mut impl FnMut(Pass) -> Result<O, E>) -> Result<Gradient, E>
    where
        O: LossOutput,
        E: From<candle_core::Error>,
    {
        let Some(selection) = self.selection.filter(|selection| selection.rule() == Rule::Sharpest) else {
            let (there, gradient) = self.pass(Pass::Descent, loss)?;
            self.last.perturbed_loss = Some(value_of(there.loss())?);
            return Ok(gradient);
        };
        let Attempt { output: there, .. } = self.run(Pass::Descent, 0, &Rows::All, loss)?;
        self.last.perturbed_loss = Some(value_of(there.loss())?);
        self.last.passes += FORWARD;
        drop(there);
        let rises: Vec<_> = self.losses.iter().zip(&self.losses_at_w).map(|(there, here)| there - here).collect();
        self.portions = vec![selection.choose(&rises)];
        Ok(self.pass(Pass::Descent, loss)?.1)
    }

    /// One forward and backward pass: of all variables that the loss depends on, the gradient.
    pub(crate) fn pass<O, E>(
        &mut self,
        pass: Pass,
        loss: &mut impl FnMut(Pass) -> Result<O, E>,
    ) -> Result<(O, Gradient), E>
    where
        O: LossOutput,
        E: From<candle_core::Error>,
    {
        let portions = self.portions.clone();
        self.watch = None;
        self.last.passes += portions.iter().map(|portion| portion.share).sum::<f64>();
        if let [Portion { rows, .. }] = &portions[..] {
            let attempt = self.run(pass, 0, rows, loss)?;
            let gradient = self.gradient(&attempt, pass);
            let gradient = self.exchange.note(gradient)?;
            self.watch = Some(attempt.watch);
            return Ok((attempt.output, self.exchange.after_pass(pass, gradient)?));
        }
        let mut outputs = Vec::with_capacity(portions.len());
        let mut mean = WeightedMean::default();
        for (part, Portion { weight, rows, .. }) in portions.iter().enumerate() {
            let attempt = self.run(pass, part, rows, loss)?;
            mean.add(*weight, self.gradient(&attempt, pass)?)?;
            outputs.push((*weight, attempt.output.into_detached()?));
            self.watch.get_or_insert(attempt.watch);
        }
        let output = O::join_shards(outputs)?;
        Ok((output, self.exchange.after_pass(pass, mean.finish()?)?))
    }

    /// Runs the loss function on some of the samples.
    fn run<O, E>(
        &mut self,
        pass: Pass,
        part: usize,
        rows: &Rows,
        loss: &mut impl FnMut(Pass) -> Result<O, E>,
    ) -> Result<Attempt<O>, E>
    where
        O: LossOutput,
        E: From<candle_core::Error>,
    {
        if let Some(selection) = self.selection {
            selection.show(rows.clone());
        }
        let (began, watch) = (Moment::now()?, Watch::begin(&self.step));
        let (output, call) = self.step.run(pass, part, |pass| (loss(pass), Context::current_call()));
        let output = self.one_loss(output?, pass)?;
        self.exchange.note(check_loss(output.loss(), pass))?;
        Ok(Attempt { output, began, watch, call })
    }

    /// The mean, where the loss function returns a loss for each sample.
    fn one_loss<O: LossOutput>(&mut self, output: O, pass: Pass) -> candle_core::Result<O> {
        match self.selection {
            Some(selection) if selection.rule().is_per_sample() => {
                self.losses = selection.losses(output.loss(), pass)?;
                let mean = output.loss().mean_all()?;
                Ok(output.with_loss(mean))
            }
            _ => Ok(output),
        }
    }

    /// ∇L, taken of the scaled loss and then unscaled.
    fn gradient<O: LossOutput>(&self, attempt: &Attempt<O>, pass: Pass) -> candle_core::Result<Gradient> {
        let Attempt { output, began, watch, call } = attempt;
        let loss = output.loss();
        let nodes = loss.sorted_nodes();
        check_not_nested(&nodes, *call)?;
        if pass != Pass::Plain {
            check_made_since(*began, &nodes)?;
        }
        let nodes = nodes.into_iter();
        let scale = self.sam.current_loss_scale();
        let gradient = if scale == 1.0 {
            gradient_of(loss, nodes)?
        } else {
            let unscaled = |(var, grad): (Var, Tensor)| {
                let grad = (grad.to_dtype(wide(grad.dtype()))? * scale.recip())?.to_dtype(var.dtype())?;
                Ok((var, grad))
            };
            gradient_of(&(loss * scale)?, nodes)?.into_iter().map(unscaled).collect::<candle_core::Result<_>>()?
        };
        watch.check(gradient.iter().map(|(var, _)| var))?;
        Ok(gradient)
    }

    /// Every variable that `vars` lists needs a gradient.
    fn check_listed(&self, all: &Gradient) -> candle_core::Result<()> {
        let Some(vars) = &self.sam.vars else { return Ok(()) };
        let found: HashSet<_> = self.perturbed_among(all)?.iter().map(|(var, _)| var.id()).collect();
        let mut listed = vars.as_slice().iter().filter(|var| self.sam.may_move(var));
        match listed.find(|var| !found.contains(&var.id())) {
            Some(var) => Err(Error::NoGradient { variable: describe(var) }.into()),
            None => Ok(()),
        }
    }
}

/// An error if a sharpness-aware loss that was made inside this call of a loss function is a part of the loss.
fn check_not_nested(nodes: &[&Tensor], call: u64) -> candle_core::Result<()> {
    if has_loss_of_call(nodes.iter().copied(), call) { Err(Error::Nested.into()) } else { Ok(()) }
}
