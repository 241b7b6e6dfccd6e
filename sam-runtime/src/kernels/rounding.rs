//! What is left of a perturbation where the variables are f16 or bf16.
//!
//! Between two neighboring numbers of bf16 lies 1/256 of their size, and a perturbation is usually less than that in each
//! coordinate: w + ε̂ rounds to w, or to a point in another direction. A step whose perturbation is lost is not a
//! sharpness-aware one, so it is refused.

use candle_core::{DType, Result, Tensor, Var};

use super::operands::PerturbTarget;
use crate::core::error::Error;
use crate::core::names::describe;

/// The largest ‖lost‖ / ‖ε̂‖ that passes.
const LARGEST: f64 = 0.5;

/// Sums over the variables of one ball.
#[derive(Debug, Default)]
pub(crate) struct Rounding {
    /// ‖ε̂‖²
    step: f64,
    /// ‖lost‖²
    lost: f64,
    /// The variable that loses most, and how much.
    worst: Option<(Var, f64)>,
}

impl Rounding {
    /// Nothing yet. None where there is nothing to lose, or where looking would synchronize with a device.
    pub(super) fn of(targets: &[PerturbTarget]) -> Option<Self> {
        let on_cpu = targets.iter().all(|target| target.var.device().is_cpu());
        (on_cpu && targets.iter().any(|target| is_half(&target.var))).then(Self::default)
    }

    /// Counts the squared norms of one variable's perturbation and of what rounding takes from it.
    pub(super) fn add(&mut self, var: &Var, step: f64, lost: f64) {
        self.step += step;
        if is_half(var) {
            self.lost += lost;
            if self.worst.as_ref().is_none_or(|(_, most)| lost > *most) {
                self.worst = Some((var.clone(), lost));
            }
        }
    }

    pub(super) fn check(self) -> Result<()> {
        let lost = (self.lost / self.step).sqrt();
        match self.worst {
            Some((var, _)) if lost > LARGEST => {
                let dtype = var.dtype();
                let variable = describe(&var);
                Err(Error::LostToRounding { variable, dtype, lost }.into())
            }
            _ => Ok(()),
        }
    }
}

fn is_half(tensor: &Tensor) -> bool {
    matches!(tensor.dtype(), DType::F16 | DType::BF16)
}
