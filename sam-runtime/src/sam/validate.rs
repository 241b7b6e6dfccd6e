//! Which settings go together. Each piece checks its own values.

use super::{AscentSteps, Sam};
use crate::core::error::{Error, at_least};
use crate::variants::{Combination, Direction, Mask, Metric, Radius, Schedule, Scope};

impl Sam {
    /// Whether every setting is in range, and all go together; a step asks this first. What a ρ schedule returns is checked
    /// by the step that uses it.
    ///
    /// # Errors
    /// If one is not, or two do not.
    pub fn validate(&self) -> Result<(), Error> {
        self.check_values().and_then(|()| self.check_pairs())
    }

    fn check_values(&self) -> Result<(), Error> {
        self.radius.validate()?;
        if self.p.is_nan() || self.p < 1.0 {
            return Err(Error::P(self.p));
        }
        self.metric.validate()?;
        self.direction.validate()?;
        self.mask.map_or(Ok(()), Mask::validate)?;
        self.schedule.validate()?;
        self.combination.validate()?;
        at_least("ascent_steps", self.ascents.count as f64, 1.0)?;
        at_least("length", self.ascents.length, 0.0)?;
        let loss_scale = self.current_loss_scale();
        if !(loss_scale.is_finite() && loss_scale > 0.0) {
            let expected = "a finite number above 0";
            return Err(Error::Setting { what: "loss_scale", value: loss_scale, expected });
        }
        Ok(())
    }

    fn check_pairs(&self) -> Result<(), Error> {
        let refuse = |what, why| Err(Error::Settings { what, why });
        if self.has_synchronized_ascent && self.comm.is_none() {
            return refuse("synchronized_ascent", "it is for the ranks of `all_reduce`, which is not set");
        }
        let simple = self.metric == Metric::Euclidean
            && self.mask.is_none()
            && self.normalized
            && matches!(self.scope, Scope::Global)
            && self.direction.is_gradient()
            && self.p == 2.0;
        if !self.normalized && self.p != 2.0 {
            return refuse("unnormalized", "it is for p = 2");
        }
        let one = self.ascents == AscentSteps { count: 1, length: 1.0 };
        if self.combination == Combination::SecondOrder {
            if !(simple && one) {
                return refuse("second_order", "it is for one step along the gradient in the plain ball of p = 2");
            }
            if matches!(self.radius, Radius::LossBudget { .. }) {
                return refuse("second_order", "the radius must not depend on the weights, as a loss budget's does");
            }
        }
        if !(simple || one) {
            return refuse("ascent_steps", "they are for the gradient in the plain ball of p = 2");
        }
        let of_gradient = matches!(self.metric, Metric::Fisher { .. }) || matches!(self.mask, Some(Mask::TopK { .. }));
        if of_gradient && !self.direction.is_gradient() {
            return refuse("direction", "`Metric::Fisher` and `Mask::TopK` are made of the gradient: expected that");
        }
        if !self.direction.needs_gradient() {
            if self.combination != Combination::PerturbedGradient {
                return refuse(
                    "combination",
                    "the direction has no gradient at w to combine: expected `Combination::PerturbedGradient`",
                );
            }
            if matches!(self.schedule, Schedule::GradNormAdaptive { .. })
                || matches!(self.radius, Radius::LossBudget { .. })
            {
                return refuse(
                    "direction",
                    "`Schedule::GradNormAdaptive` and `Radius::LossBudget` need the gradient at w, it has none",
                );
            }
            if matches!(self.direction, Direction::Random) && self.vars.is_none() {
                return refuse("direction", "a random one needs `vars`, to know what to perturb before the pass");
            }
        }
        Ok(())
    }
}
