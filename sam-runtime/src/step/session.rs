//! What goes on within one step, of whatever pieces: passes over the examples, the way to w + ε̂, the account of both.

use std::collections::HashSet;

use candle_core::{DType, Tensor, Var};

use crate::autograd::fixed_gradient::has_loss_of_call;
use crate::autograd::gradient::{check_loss, gradient_of};
use crate::autograd::stale::{Moment, check_made_since};
use crate::core::dtype::wide;
use crate::core::error::Error;
use crate::core::names::describe;
use crate::core::overlap::Watch;
use crate::core::pass::{Before, Context, Pass, Step};
use crate::core::storage::{SwapGuard, swap_all};
use crate::core::var_list::{Gradient, Kept};
use crate::kernels::vars::{mixed, paired, ratio};
use crate::kernels::weighted_mean::Mean;
use crate::kernels::{self, Slope, check_finite, mix_all, number, read, square};
use crate::sam::stats::{Alignment, AscentSeen, StepStats};
use crate::sam::{Sam, UnderWay};
use crate::step::batch_selection::{BatchSelection, Portion, Rows, Rule};
use crate::step::output::{LossOutput, value_of};
use crate::variants::{Combination, Direction, LossFactor, Radius, Schedule, State, second_order_direction};

/// A forward pass without its backward pass, which costs about two of it.
const FORWARD: f64 = 1.0 / 3.0;

/// A step of a [`Sam`] under way. What it changes in the memory of the `Sam` counts when it has ended, not before.
pub(crate) struct Course<'a> {
    sam: &'a Sam,
    examples: Option<&'a BatchSelection<'a>>,
    step: Step,
    /// False inside another step, and under [`plain`](crate::plain).
    outermost: bool,
    rho: f64,
    /// What a pass goes over.
    portions: Vec<Portion>,
    /// The loss of each example in the last run, where it returns them, and at w.
    losses: Vec<f64>,
    losses_at_w: Vec<f64>,
    state: State,
    last: StepStats,
    /// The first pass, as long as its gradient is of use.
    watch: Option<Watch>,
    _under_way: Option<UnderWay<'a>>,
}

/// A run of the loss function whose gradient is to be taken.
struct Attempt<O> {
    output: O,
    began: Moment,
    watch: Watch,
    call: u64,
}

impl Drop for Course<'_> {
    /// A step that did not end failed: the state of layers goes back, as the weights do.
    fn drop(&mut self) {
        drop(self.step.take_before());
    }
}

impl<'a> Course<'a> {
    pub(crate) fn begin(sam: &'a Sam, examples: Option<&'a BatchSelection<'a>>) -> candle_core::Result<Self> {
        if examples.is_some_and(|examples| examples.rule() == Rule::Sharpest) {
            let refuse = |why| Error::Settings { what: "sharpest", why };
            if !sam.direction.needs_gradient() {
                Err(refuse("the direction has no pass at w, to tell whose loss rises"))?;
            }
            if sam.combination == Combination::SecondOrder {
                Err(refuse("the second-order term is that of all examples"))?;
            }
        }
        let outermost = Step::is_outermost();
        if outermost {
            sam.check_rate()?;
        }
        // Before its memory is read, which another step might change.
        let under_way = if outermost { Some(sam.under_way()?) } else { None };
        let state = sam.state();
        // A schedule runs once a step, and not while the memory is locked.
        let rho = if outermost { sam.radius.before(state.steps, state.rate) } else { 0.0 };
        if !rho.is_finite() || rho < 0.0 {
            Err(Error::Rho(rho))?;
        }
        if outermost && !state.remainder.is_empty() {
            let why = "the last step is not finished: call `Sam::apply_decoupled` after the optimizer's step";
            Err(Error::Settings { what: "WsamDecoupled", why })?;
        }
        Ok(Self {
            sam,
            examples,
            step: Step::begin(),
            outermost,
            rho,
            portions: examples.map_or_else(|| vec![Portion::ALL], BatchSelection::portions),
            losses: Vec::new(),
            losses_at_w: Vec::new(),
            state,
            last: StepStats::default(),
            watch: None,
            _under_way: under_way,
        })
    }

    /// Whether there may be a perturbation, for all that is known before the first pass.
    pub(crate) fn may_perturb(&self) -> bool {
        self.outermost && self.rho > 0.0 && self.sam.schedule.before(self.state.steps, self.sam.seed) != Some(false)
    }

    pub(crate) fn ascent_steps(&self) -> usize {
        self.sam.ascents.count
    }

    // ------------------------------------------------------------------------------------------------ passes

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
        check_finite(&gradient, Pass::Plain)?;
        self.last.loss = Some(value_of(output.loss())?);
        let gradient = (!gradient.is_empty()).then_some(gradient);
        Ok((output.into_detached()?, gradient))
    }

    /// The pass at w. Where it takes the hardest examples, after a look at all: that gives the value.
    pub(crate) fn first<O, E>(&mut self, loss: &mut impl FnMut(Pass) -> Result<O, E>) -> Result<(O, Gradient), E>
    where
        O: LossOutput,
        E: From<candle_core::Error>,
    {
        let Some(examples) = self.examples.filter(|examples| examples.rule() == Rule::Hardest) else {
            let (output, gradient) = self.pass(Pass::Ascent, loss)?;
            self.check_listed(&self.perturbed_among(&gradient)?)?;
            self.last.loss = Some(value_of(output.loss())?);
            self.losses_at_w.clone_from(&self.losses);
            return Ok((output, gradient));
        };
        let Attempt { output, .. } = self.run(Pass::Ascent, 0, &Rows::All, loss)?;
        let mut state = SwapGuard::new(&self.step, Vec::new())?;
        state.keep(&self.sam.buffers)?;
        let output = output.into_detached()?;
        self.last.passes += FORWARD;
        self.portions = vec![examples.choose(&self.losses)];
        let (chosen, gradient) = self.pass(Pass::Descent, loss)?;
        state.restore()?;
        self.check_listed(&self.perturbed_among(&gradient)?)?;
        self.last.loss = Some(value_of(chosen.loss())?);
        Ok((output, gradient))
    }

    /// The pass at w + ε̂, where there was none at w.
    pub(crate) fn only<O, E>(&mut self, loss: &mut impl FnMut(Pass) -> Result<O, E>) -> Result<(O, Gradient), E>
    where
        O: LossOutput,
        E: From<candle_core::Error>,
    {
        let found = self.first(loss)?;
        self.last.perturbed_loss = self.last.loss.take();
        Ok(found)
    }

    /// The pass at w + ε̂. Where it takes the sharpest examples, after a look at all.
    pub(crate) fn second<O, E>(&mut self, loss: &mut impl FnMut(Pass) -> Result<O, E>) -> Result<Gradient, E>
    where
        O: LossOutput,
        E: From<candle_core::Error>,
    {
        let Some(examples) = self.examples.filter(|examples| examples.rule() == Rule::Sharpest) else {
            let (there, gradient) = self.pass(Pass::Descent, loss)?;
            self.last.perturbed_loss = Some(value_of(there.loss())?);
            return Ok(gradient);
        };
        let Attempt { output: there, .. } = self.run(Pass::Descent, 0, &Rows::All, loss)?;
        self.last.perturbed_loss = Some(value_of(there.loss())?);
        self.last.passes += FORWARD;
        drop(there);
        let rises: Vec<_> = self.losses.iter().zip(&self.losses_at_w).map(|(there, here)| there - here).collect();
        self.portions = vec![examples.choose(&rises)];
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
            let gradient = self.gradient(&attempt, pass)?;
            self.watch = Some(attempt.watch);
            return Ok((attempt.output, gradient));
        }
        let mut outputs = Vec::with_capacity(portions.len());
        let mut mean = Mean::default();
        for (part, Portion { weight, rows, .. }) in portions.iter().enumerate() {
            let attempt = self.run(pass, part, rows, loss)?;
            mean.add(*weight, self.gradient(&attempt, pass)?)?;
            outputs.push((*weight, attempt.output.into_detached()?));
            self.watch.get_or_insert(attempt.watch);
        }
        Ok((O::join_shards(outputs)?, mean.finish()?))
    }

    /// Runs the loss function on some of the examples.
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
        if let Some(examples) = self.examples {
            examples.show(rows.clone());
        }
        let (began, watch) = (Moment::now()?, Watch::begin(&self.step));
        let (output, call) = self.step.run(pass, part, |pass| (loss(pass), Context::current_call()));
        let output = self.one_loss(output?, pass)?;
        check_loss(output.loss(), pass)?;
        Ok(Attempt { output, began, watch, call })
    }

    /// The mean, where the loss function returns a loss for each example.
    fn one_loss<O: LossOutput>(&mut self, output: O, pass: Pass) -> candle_core::Result<O> {
        match self.examples {
            Some(examples) if examples.rule().is_per_example() => {
                self.losses = examples.losses(output.loss(), pass)?;
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
        let scale = self.sam.loss_scale;
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

    // --------------------------------------------------------------------------------------- after the first

    /// The gradient of the variables that are perturbed.
    pub(crate) fn perturbed_among(&self, all: &Gradient) -> candle_core::Result<Gradient> {
        if self.sam.vars.is_none() && self.sam.buffers.is_empty() {
            return Ok(all.clone());
        }
        let perturbed: Gradient = all.iter().filter(|(var, _)| self.sam.may_move(var)).cloned().collect();
        if perturbed.is_empty() {
            Err(Error::NothingToPerturb)?;
        }
        Ok(perturbed)
    }

    /// Remembers what the buffers hold before the first pass, so that they go back if the step fails.
    pub(crate) fn keep_buffers(&self) -> candle_core::Result<()> {
        let buffers = self.sam.buffers.iter().filter(|_| self.outermost);
        buffers.into_iter().try_for_each(|var| self.step.keep(var))
    }

    /// Every variable that `vars` lists needs a gradient.
    fn check_listed(&self, perturbed: &Gradient) -> candle_core::Result<()> {
        let found: HashSet<_> = perturbed.iter().map(|(var, _)| var.id()).collect();
        let listed = self.sam.vars.iter().flatten().filter(|var| self.sam.may_move(var));
        match listed.into_iter().find(|var| !found.contains(&var.id())) {
            Some(var) => Err(Error::NoGradient { variable: describe(var) }.into()),
            None => Ok(()),
        }
    }

    /// Whether this gradient is what the step comes to; makes it so, where something is added to it.
    pub(crate) fn needs_no_second(&mut self, perturbed: &Gradient, all: &Gradient) -> candle_core::Result<bool> {
        let asks = matches!(self.sam.schedule, Schedule::GradNormAdaptive { .. })
            || matches!(self.sam.radius, Radius::LossBudget { .. });
        if asks {
            check_finite(all, Pass::Ascent)?;
            let square = read(&square(perturbed.iter().map(|(_, grad)| grad))?)?;
            if !square.is_finite() {
                // It overflowed, or the gradient did: on devices where nobody looks at it this is the first to know.
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
    pub(crate) fn put_aside(&self, all: &Gradient) -> candle_core::Result<Option<Gradient>> {
        let needed = self.sam.watched || self.sam.combination.needs_first();
        let copy = |(var, grad): &(Var, Tensor)| Ok((var.clone(), grad.copy()?));
        needed.then(|| all.iter().map(copy).collect()).transpose()
    }

    // -------------------------------------------------------------------------------------- to w + ε̂

    /// The direction, if it is known without a gradient.
    pub(crate) fn direction_at_once(&self) -> candle_core::Result<Option<Gradient>> {
        if self.sam.direction.needs_gradient() {
            return Ok(None);
        }
        let vars = self.sam.vars.as_deref().unwrap_or_default();
        let mut along = self.sam.direction.at_once(vars, &self.state, self.sam.seed)?;
        along.retain(|(var, _)| self.sam.may_move(var));
        Ok(Some(along))
    }

    /// The direction, given the gradient at w.
    pub(crate) fn direction(&mut self, gradient: Gradient) -> candle_core::Result<Gradient> {
        self.sam.direction.along(gradient, &mut self.state)
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
            weights.keep(&self.sam.buffers)?;
        }
        Ok(weights)
    }

    /// The variables' values after the move.
    fn moved(&mut self, along: Gradient) -> candle_core::Result<Gradient> {
        let mask = match self.sam.mask {
            Some(mask) => Some(mask.draw(&along, &mut self.state, self.sam.seed)?),
            None => None,
        };
        let slope = |(var, grad): (Var, Tensor)| {
            let metric = self.sam.scaling(&var, &grad)?;
            let mask = mask.as_ref().and_then(|mask| mask.get(&var).cloned());
            Ok(Slope { var, grad, metric, mask })
        };
        let ball = self.sam.ball(self.rho * self.sam.ascents.length);
        let slopes = along.into_iter().map(slope).collect::<candle_core::Result<_>>()?;
        let mut balls = self.sam.scope.balls(slopes);
        if balls.len() == 1 {
            return kernels::perturbed(ball, balls.remove(0));
        }
        let all: Gradient = balls.iter().flatten().map(|slope| (slope.var.clone(), slope.grad.clone())).collect();
        check_finite(&all, Pass::Ascent)?;
        let mut values = Gradient::new();
        for slopes in balls {
            values.extend(kernels::perturbed(ball, slopes)?);
        }
        Ok(values)
    }

    // -------------------------------------------------------------------------------------- after the second

    /// Adds H u by a central difference: (∇L(w + r û) - ∇L(w - r û)) ‖u‖ / 2r.
    pub(crate) fn second_order<O, E>(
        &mut self,
        first: &Gradient,
        second: &Gradient,
        weights: &SwapGuard,
        loss: &mut impl FnMut(Pass) -> Result<O, E>,
    ) -> Result<(), E>
    where
        O: LossOutput,
        E: From<candle_core::Error>,
    {
        if self.sam.combination != Combination::SecondOrder {
            return Ok(());
        }
        let first = weights.of(first);
        let u = second_order_direction(self.rho, &first, second)?;
        let Some((_, beside)) = u.first() else { return Ok(()) };
        // Small for the loss, and large for the rounding of its gradient.
        let r = self.rho
            * match beside.dtype() {
                DType::F64 => 1e-3,
                DType::F32 => 1e-1,
                // As far as ε̂, which the variables have been found to hold.
                _ => 1.0,
            };
        let size = square(u.iter().map(|(_, u)| u))?.sqrt()?;
        let one = number(beside, 1.0)?;
        let unit = ratio(&number(beside, r)?.to_dtype(size.dtype())?, &size)?;
        let factor = (size / (2.0 * r))?;
        let kept = Kept::new(u);
        let home: Gradient = weights.iter().cloned().collect();
        for sign in [1.0, -1.0] {
            let values = mixed(&home, &one, &kept, &(&unit * sign)?)?;
            swap_all(&values)?;
            let (_, there) = self.pass(Pass::Descent, loss)?;
            check_finite(&there, Pass::Descent)?;
            let there = Kept::new(there);
            mix_all(&paired(second, &there), &one, &(&factor * sign)?)?;
        }
        Ok(())
    }

    /// Writes what the two gradients come to over the second.
    pub(crate) fn combine(&mut self, first: &Gradient, second: &Gradient) -> candle_core::Result<()> {
        self.sam.combination.combine(first, second, &mut self.state)
    }

    // --------------------------------------------------------------------------------------------- the account

    pub(crate) fn look_at_step(&mut self, first: Option<&Gradient>, weights: &SwapGuard) -> candle_core::Result<()> {
        if self.sam.watched {
            self.last.ascent = Some(AscentSeen::look(first, weights)?);
        }
        Ok(())
    }

    pub(crate) fn look_at_both(
        &mut self,
        first: &Gradient,
        second: &Gradient,
        weights: &SwapGuard,
    ) -> candle_core::Result<()> {
        if self.sam.watched {
            self.last.alignment = Some(Alignment::look(&weights.of(first), second)?);
        }
        Ok(())
    }

    /// What is told of the loss's backward pass, where more than the gradient depends on it.
    pub(crate) fn loss_factor(&self) -> Option<LossFactor> {
        (!self.state.remainder.is_empty()).then(|| self.state.factor.clone())
    }

    /// The step has ended well: what it has found is remembered. Returns what the state of layers was before, for whoever
    /// can still fail.
    pub(crate) fn end(mut self, gradient: Option<&Gradient>) -> candle_core::Result<Before> {
        if self.outermost {
            if let (Direction::PreviousGradient, Some(gradient)) = (&self.sam.direction, gradient) {
                self.state.kept = self.state.kept.with(gradient.clone());
            }
            self.state.steps += 1;
            self.last.tell();
            let state = std::mem::take(&mut self.state).after(&self.sam.state())?;
            self.sam.remember(state, std::mem::take(&mut self.last));
        }
        Ok(self.step.take_before())
    }
}

/// An error if a sharpness-aware loss that was made inside this call of a loss function is a part of the loss.
fn check_not_nested(nodes: &[&Tensor], call: u64) -> candle_core::Result<()> {
    if has_loss_of_call(nodes.iter().copied(), call) { Err(Error::Nested.into()) } else { Ok(()) }
}

/// Draws values that are farther from home than ρ back onto the ball.
fn onto_the_ball(rho: f64, home: &Gradient, values: Gradient) -> candle_core::Result<Gradient> {
    let kept = Kept::new(home.clone());
    let pairs: Vec<_> = values.iter().filter_map(|(var, value)| Some((value, kept.get(var)?))).collect();
    let Some((beside, _)) = pairs.first() else { return Ok(values) };
    let steps = pairs.iter().map(|(value, home)| *value - *home).collect::<candle_core::Result<Vec<_>>>()?;
    let distance = square(&steps)?.sqrt()?;
    let one = number(beside, 1.0)?.to_dtype(distance.dtype())?;
    let share = (distance.clamp(rho, f64::MAX)?.recip()? * rho)?;
    mix_all(&pairs, &share, &(&one - &share)?)?;
    Ok(values)
}
