//! The second-order term that the paper drops.

use candle_core::DType;

use crate::core::pass::Pass;
use crate::core::storage::{SwapGuard, swap_all};
use crate::core::var_list::{Gradient, VarTensors};
use crate::kernels::vars::{mixed, paired, ratio};
use crate::kernels::{check_finite, mix_all, number, square};
use crate::step::output::LossOutput;
use crate::step::session::StepContext;
use crate::variants::{Combination, second_order_direction};

impl StepContext<'_> {
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
        let Some((_, like)) = u.first() else { return Ok(()) };
        // Small for the loss, and large for the rounding of its gradient.
        let r = self.rho
            * match like.dtype() {
                DType::F64 => 1e-3,
                DType::F32 => 1e-1,
                // As far as ε̂, which the variables have been found to hold.
                _ => 1.0,
            };
        let size = square(u.iter().map(|(_, u)| u))?.sqrt()?;
        let one = number(like, 1.0)?;
        let unit = ratio(&number(like, r)?.to_dtype(size.dtype())?, &size)?;
        let factor = (size / (2.0 * r))?;
        let kept = VarTensors::new(u);
        let home: Gradient = weights.iter().cloned().collect();
        for sign in [1.0, -1.0] {
            let values = mixed(&home, &one, &kept, &(&unit * sign)?)?;
            swap_all(&values)?;
            let (_, there) = self.pass(Pass::Descent, loss)?;
            check_finite(&there, Pass::Descent)?;
            let there = VarTensors::new(there);
            mix_all(&paired(second, &there), &one, &(&factor * sign)?)?;
        }
        Ok(())
    }
}
