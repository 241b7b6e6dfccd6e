//! The algorithm, as types: ascend → perturb → descend → restore. Each stage is made by the one before and by nothing
//! else, so the compiler refuses any other order.

use crate::autograd::fixed_gradient::loss_with_gradient;
use crate::core::pass::{Before, Pass};
use crate::core::storage::SwapGuard;
use crate::core::var_list::Gradient;
use crate::kernels::check_finite;
use crate::sam::Sam;
use crate::step::batch_selection::BatchSelection;
use crate::step::output::LossOutput;
use crate::step::session::StepContext;
use crate::step::shards::Shards;

/// After stage one: L(w) and ∇L(w) are known, the graph is gone.
#[must_use = "the step continues with `.perturb()`"]
pub struct Ascent<'a, O> {
    found: Found<O>,
    step: StepContext<'a>,
}

enum Found<O> {
    /// Nothing is perturbed: the step is as good as over.
    Done(Done<O>),
    /// The pass at w was run.
    FirstPass(FirstPass<O>),
    /// The direction is known without a pass.
    Direction(Gradient),
}

/// The result of a step.
struct Done<O> {
    output: O,
    /// `None`: no gradient was fixed, the output keeps candle's graph (plain step).
    gradient: Option<Gradient>,
}

struct FirstPass<O> {
    output: O,
    /// Of the variables that are perturbed.
    gradient: Gradient,
    /// Of all variables, where the second gradient is not all that counts.
    first: Option<Gradient>,
    /// Where the ascents so far have led, if there are several.
    weights: Option<SwapGuard>,
}

/// After stage two: the variables hold w + ε̂. Dropped, it puts w back.
#[must_use = "the step continues with `.descend(..)`"]
pub struct Perturbed<'a, O> {
    // The weights are restored first, then the state of layers, which may be among the variables that are kept with them.
    moved: Moved<O>,
    step: StepContext<'a>,
}

enum Moved<O> {
    Done(Done<O>),
    /// After a pass at w.
    Second {
        output: O,
        first: Option<Gradient>,
        weights: SwapGuard,
    },
    /// Without one.
    Only {
        weights: SwapGuard,
    },
}

/// After stage three: ∇L(w + ε̂) is known, the variables still hold w + ε̂. Dropped, it puts w back.
#[must_use = "the step ends with `.restore()`"]
pub struct Descent<'a, O> {
    done: Done<O>,
    weights: Option<SwapGuard>,
    step: StepContext<'a>,
}

impl<'a, O: LossOutput> Ascent<'a, O> {
    pub(crate) fn run<E>(
        sam: &'a Sam,
        selection: Option<&'a BatchSelection<'a>>,
        loss: &mut impl FnMut(Pass) -> Result<O, E>,
    ) -> Result<Self, E>
    where
        E: From<candle_core::Error>,
    {
        let mut step = StepContext::begin(sam, selection)?;
        let found = Found::from(&mut step, loss)?;
        Ok(Self { found, step })
    }
}

impl<O: LossOutput> Found<O> {
    fn from<E>(step: &mut StepContext<'_>, loss: &mut impl FnMut(Pass) -> Result<O, E>) -> Result<Self, E>
    where
        E: From<candle_core::Error>,
    {
        let along = step.direction_at_once()?;
        step.keep_buffers()?;
        if !step.is_sam_step() || along.as_ref().is_some_and(Gradient::is_empty) {
            let (output, gradient) = step.plain(loss)?;
            return Ok(Self::Done(Done { output, gradient }));
        }
        if let Some(direction) = along {
            return Ok(Self::Direction(direction));
        }

        let (output, all) = step.ascent_pass(loss)?;
        let output = output.into_detached()?;
        if all.is_empty() {
            return Ok(Self::Done(Done { output, gradient: None }));
        }
        let gradient = step.perturbed_among(&all)?;
        if step.finishes_after_first_pass(&gradient, &all)? {
            return Ok(Self::Done(Done { output, gradient: Some(all) }));
        }
        let first = step.snapshot_first_gradient(&all)?;
        drop(all);
        let mut slope = FirstPass { output, gradient, first, weights: None };
        for _ in 1..step.ascent_steps() {
            let there = step.perturb(slope.weights, slope.gradient)?;
            let (_, all) = step.pass(Pass::Descent, loss)?;
            slope = FirstPass { gradient: step.perturbed_among(&all)?, weights: Some(there), ..slope };
        }
        Ok(Self::FirstPass(slope))
    }
}

impl<O> Found<O> {
    fn moved(self, step: &mut StepContext<'_>) -> candle_core::Result<Moved<O>> {
        Ok(match self {
            Self::Done(done) => Moved::Done(done),
            Self::FirstPass(FirstPass { output, gradient, first, weights }) => {
                let along = step.direction(gradient)?;
                let weights = step.perturb(weights, along)?;
                step.record_ascent(first.as_ref(), &weights)?;
                Moved::Second { output, first, weights }
            }
            Self::Direction(along) => {
                let weights = step.perturb(None, along)?;
                step.record_ascent(None, &weights)?;
                Moved::Only { weights }
            }
        })
    }
}

// What a stage asks of O it asks method by method, so that a loss that returns something else is refused once.
impl<'a, O> Ascent<'a, O> {
    /// Stage two: w ← w + ε̂(w), written over the gradient's buffers. Then the storages of both are swapped.
    ///
    /// # Errors
    /// If the gradient is not finite; no weight has been touched then.
    pub fn perturb(self) -> candle_core::Result<Perturbed<'a, O>> {
        let Self { mut step, found } = self;
        let moved = found.moved(&mut step);
        let moved = step.exchange.note(moved)?;
        Ok(Perturbed { moved, step })
    }
}

impl<'a, O> Perturbed<'a, O> {
    /// Stage three: runs the loss at w + ε̂ and takes its gradient, that of every variable the loss depends on.
    ///
    /// # Errors
    /// Those of the loss, and [`Error`](crate::Error). The weights are then put back.
    pub fn descend<E>(self, loss: &mut impl FnMut(Pass) -> Result<O, E>) -> Result<Descent<'a, O>, E>
    where
        O: LossOutput,
        E: From<candle_core::Error>,
    {
        let Self { mut step, moved } = self;
        let (output, gradient, weights) = match moved {
            Moved::Done(done) => return Ok(Descent { step, done, weights: None }),
            Moved::Second { output, first, weights } => {
                let gradient = step.descent_pass(loss)?;
                step.exchange.note(check_finite(&gradient, Pass::Descent))?;
                if let Some(first) = first {
                    step.record_alignment(&first, &gradient, &weights)?;
                    step.second_order(&first, &gradient, &weights, loss)?;
                    step.combine(&first, &gradient)?;
                }
                (output, gradient, weights)
            }
            Moved::Only { weights } => {
                let (output, gradient) = step.single_pass(loss)?;
                step.exchange.note(check_finite(&gradient, Pass::Ascent))?;
                (output.into_detached()?, gradient, weights)
            }
        };
        Ok(Descent { step, done: Done { output, gradient: Some(gradient) }, weights: Some(weights) })
    }
}

impl<'a, O> Descent<'a, O> {
    /// Stage four: restores the weights. Returns the loss whose value is L(w) and whose gradient is ∇L(w + ε̂), the mean over
    /// the ranks of a [distributed](crate::distributed) training.
    ///
    /// # Errors
    /// If another rank has failed. Otherwise only if candle fails to build a tensor of one number.
    pub fn restore<E>(self) -> Result<O, E>
    where
        O: LossOutput,
        E: From<candle_core::Error>,
    {
        let factor = self.step.loss_factor();
        let (Done { output, gradient }, before) = self.end(StepContext::exchange)?;
        let output = match gradient {
            Some(gradient) => {
                let loss = loss_with_gradient(output.loss(), gradient)?;
                let loss = if let Some(factor) = factor { factor.watch(&loss)? } else { loss };
                output.with_loss(loss)
            }
            None => output,
        };
        before.forget();
        Ok(output)
    }

    /// Stage four, for one [shard](Shards) of a batch: restores the weights, and adds the gradient to the average.
    ///
    /// # Errors
    /// If candle fails to add the gradient up.
    pub fn restore_into(self, shards: &mut Shards<O>) -> candle_core::Result<()>
    where
        O: LossOutput,
    {
        let (Done { output, gradient }, before) = self.end(|step, gradient| {
            // The ranks exchange the gradient of all shards.
            step.exchange.leave();
            Ok(gradient)
        })?;
        shards.add(output, gradient, before)
    }

    fn end(
        self,
        exchange: impl FnOnce(&mut StepContext<'a>, Option<Gradient>) -> candle_core::Result<Option<Gradient>>,
    ) -> candle_core::Result<(Done<O>, Before)> {
        let Self { mut step, mut done, weights } = self;
        if let Some(weights) = weights {
            weights.restore()?;
        }
        done.gradient = exchange(&mut step, done.gradient)?;
        let before = step.end(done.gradient.as_ref())?;
        Ok((done, before))
    }
}
