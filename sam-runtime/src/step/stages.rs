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
use crate::step::session::Course;
use crate::step::shards::Shards;

/// After stage one: L(w) and ∇L(w) are known, the graph is gone.
#[must_use = "the step goes on with `.perturb()`"]
pub struct Ascent<'a, O> {
    found: Found<O>,
    course: Course<'a>,
}

enum Found<O> {
    /// Nothing is perturbed: the step is as good as over.
    Done(Done<O>),
    /// The pass at w was run.
    Slope(Slope<O>),
    /// The direction is known without a pass.
    Direction(Gradient),
}

/// What a step comes to.
struct Done<O> {
    output: O,
    /// None where the output has its own graph.
    gradient: Option<Gradient>,
}

struct Slope<O> {
    output: O,
    /// Of the variables that are perturbed.
    gradient: Gradient,
    /// Of all variables, where the second gradient is not all that counts.
    first: Option<Gradient>,
    /// Where the ascents so far have led, if there are several.
    weights: Option<SwapGuard>,
}

/// After stage two: the variables hold w + ε̂. Dropped, it puts w back.
#[must_use = "the step goes on with `.descend(..)`"]
pub struct Perturbed<'a, O> {
    // The weights go back first, then the state of layers, which may be among the variables that are kept with them.
    moved: Moved<O>,
    course: Course<'a>,
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
    course: Course<'a>,
}

impl<'a, O: LossOutput> Ascent<'a, O> {
    pub(crate) fn run<E>(
        sam: &'a Sam,
        examples: Option<&'a BatchSelection<'a>>,
        loss: &mut impl FnMut(Pass) -> Result<O, E>,
    ) -> Result<Self, E>
    where
        E: From<candle_core::Error>,
    {
        let mut course = Course::begin(sam, examples)?;
        let found = Found::from(&mut course, loss)?;
        Ok(Self { found, course })
    }
}

impl<O: LossOutput> Found<O> {
    fn from<E>(course: &mut Course<'_>, loss: &mut impl FnMut(Pass) -> Result<O, E>) -> Result<Self, E>
    where
        E: From<candle_core::Error>,
    {
        let along = course.direction_at_once()?;
        course.keep_buffers()?;
        if !course.may_perturb() || along.as_ref().is_some_and(Gradient::is_empty) {
            let (output, gradient) = course.plain(loss)?;
            return Ok(Self::Done(Done { output, gradient }));
        }
        if let Some(direction) = along {
            return Ok(Self::Direction(direction));
        }

        let (output, all) = course.first(loss)?;
        let output = output.into_detached()?;
        if all.is_empty() {
            return Ok(Self::Done(Done { output, gradient: None }));
        }
        let gradient = course.perturbed_among(&all)?;
        if course.needs_no_second(&gradient, &all)? {
            return Ok(Self::Done(Done { output, gradient: Some(all) }));
        }
        let first = course.put_aside(&all)?;
        drop(all);
        let mut slope = Slope { output, gradient, first, weights: None };
        for _ in 1..course.ascent_steps() {
            let there = course.perturb(slope.weights, slope.gradient)?;
            let (_, all) = course.pass(Pass::Descent, loss)?;
            slope = Slope { gradient: course.perturbed_among(&all)?, weights: Some(there), ..slope };
        }
        Ok(Self::Slope(slope))
    }
}

// What a stage asks of O it asks method by method, so that a loss that returns something else is refused once.
impl<'a, O> Ascent<'a, O> {
    /// Stage two: w ← w + ε̂(w). Written over the gradient's buffers, which then change places with the weights'.
    ///
    /// # Errors
    /// If the gradient is not finite; no weight has been touched then.
    pub fn perturb(self) -> candle_core::Result<Perturbed<'a, O>> {
        let Self { mut course, found } = self;
        let moved = match found {
            Found::Done(done) => Moved::Done(done),
            Found::Slope(Slope { output, gradient, first, weights }) => {
                let along = course.direction(gradient)?;
                let weights = course.perturb(weights, along)?;
                course.look_at_step(first.as_ref(), &weights)?;
                Moved::Second { output, first, weights }
            }
            Found::Direction(along) => {
                let weights = course.perturb(None, along)?;
                course.look_at_step(None, &weights)?;
                Moved::Only { weights }
            }
        };
        Ok(Perturbed { moved, course })
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
        let Self { mut course, moved } = self;
        let (output, gradient, weights) = match moved {
            Moved::Done(done) => return Ok(Descent { course, done, weights: None }),
            Moved::Second { output, first, weights } => {
                let gradient = course.second(loss)?;
                check_finite(&gradient, Pass::Descent)?;
                if let Some(first) = first {
                    course.look_at_both(&first, &gradient, &weights)?;
                    course.second_order(&first, &gradient, &weights, loss)?;
                    course.combine(&first, &gradient)?;
                }
                (output, gradient, weights)
            }
            Moved::Only { weights } => {
                let (output, gradient) = course.only(loss)?;
                check_finite(&gradient, Pass::Ascent)?;
                (output.into_detached()?, gradient, weights)
            }
        };
        Ok(Descent { course, done: Done { output, gradient: Some(gradient) }, weights: Some(weights) })
    }
}

impl<O> Descent<'_, O> {
    /// Stage four: w ← w. The loss whose value is L(w) and whose gradient is ∇L(w + ε̂).
    ///
    /// # Errors
    /// Only if candle fails to build a tensor of one number.
    pub fn restore<E>(self) -> Result<O, E>
    where
        O: LossOutput,
        E: From<candle_core::Error>,
    {
        let factor = self.course.loss_factor();
        let (Done { output, gradient }, before) = self.end()?;
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

    /// Stage four, for one [shard](Shards) of a batch: w ← w, and the gradient joins the average.
    ///
    /// # Errors
    /// If candle fails to add the gradient up.
    pub fn restore_into(self, shards: &mut Shards<O>) -> candle_core::Result<()>
    where
        O: LossOutput,
    {
        let (Done { output, gradient }, before) = self.end()?;
        shards.add(output, gradient, before)
    }

    fn end(self) -> candle_core::Result<(Done<O>, Before)> {
        let Self { course, done, weights } = self;
        if let Some(weights) = weights {
            weights.restore()?;
        }
        let before = course.end(done.gradient.as_ref())?;
        Ok((done, before))
    }
}
