//! How large the ball is.

use crate::core::error::{Error, at_least};
use std::fmt;
use std::ops::RangeInclusive;
use std::sync::Arc;

/// What a radius can be made of: any number that is an `f64` without loss.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a radius",
    label = "expected a number that is an `f64` without loss",
    note = "an integer of 64 bits converts with `as f64`",
    note = "`Sam` does not wrap an optimizer: it is for `#[sam(with = ..)]` on the loss function, and the training loop \
            keeps its optimizer"
)]
pub trait Rho: Into<f64> {}

#[diagnostic::do_not_recommend]
impl<T: Into<f64>> Rho for T {}

/// ρ, which may change from step to step.
#[derive(Clone)]
#[non_exhaustive]
pub enum Radius {
    /// The same in every step.
    Constant(f64),
    /// A function of the number of steps before this one. Called once a step.
    Schedule(Arc<dyn Fn(u64) -> f64 + Send + Sync>),
    /// ρ goes with the learning rate, from the smaller ρ at the smallest rate to the larger one at the largest (GSAM,
    /// Zhuang et al. 2022, equation 9). [`Sam::set_learning_rate`](crate::Sam::set_learning_rate) sets the rate; a step
    /// without it is an error.
    LinkedToLr {
        /// ρ
        rho: RangeInclusive<f64>,
        /// The learning rate.
        rate: RangeInclusive<f64>,
    },
    /// min(σ / ‖g‖₂, largest): the loss rises by about σ in each step (LE-SAM, <https://arxiv.org/abs/2605.10183>, with a
    /// constant σ). Reads ‖g‖ on the host.
    LossBudget {
        /// σ
        sigma: f64,
        /// The largest ρ.
        largest: f64,
    },
}

impl Radius {
    pub(crate) fn validate(&self) -> Result<(), Error> {
        let radius = |rho: f64| if rho.is_finite() && rho >= 0.0 { Ok(()) } else { Err(Error::Rho(rho)) };
        match self {
            Self::Constant(rho) => radius(*rho),
            // Checked by the step that asks for it.
            Self::Schedule(_) => Ok(()),
            Self::LinkedToLr { rho, rate } => {
                radius(*rho.start())?;
                radius(*rho.end())?;
                if rate.start() >= rate.end() || rate.start().is_nan() || rate.end().is_nan() {
                    let expected = "a range with the smaller rate first";
                    return Err(Error::Setting { what: "rate", value: *rate.start(), expected });
                }
                Ok(())
            }
            Self::LossBudget { sigma, largest } => {
                at_least("sigma", *sigma, 0.0)?;
                radius(*largest)
            }
        }
    }

    /// ρ, but for a loss budget, which has to know the gradient: its largest.
    pub(crate) fn before(&self, step: u64, rate: Option<f64>) -> f64 {
        match self {
            Self::Constant(rho) => *rho,
            Self::Schedule(rho) => rho(step),
            Self::LinkedToLr { rho, rate: rates } => {
                let Some(rate) = rate else { return *rho.end() };
                let share = (rate - rates.start()) / (rates.end() - rates.start());
                rho.start() + (rho.end() - rho.start()) * share.clamp(0.0, 1.0)
            }
            Self::LossBudget { largest, .. } => *largest,
        }
    }

    pub(crate) fn has_memory(&self) -> bool {
        matches!(self, Self::Schedule(_))
    }
}

impl fmt::Debug for Radius {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Constant(rho) => write!(f, "{rho}"),
            Self::Schedule(_) => f.write_str("a schedule"),
            Self::LinkedToLr { rho, rate } => write!(f, "{rho:?} over learning rates {rate:?}"),
            Self::LossBudget { sigma, largest } => write!(f, "{sigma} / |g|, {largest} at most"),
        }
    }
}
