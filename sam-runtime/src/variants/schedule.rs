//! Which steps are sharpness-aware; the others are plain ones, of one pass.

use super::state::State;
use crate::core::error::{Error, at_least, share};
use crate::core::rng::uniform;

/// When a step is a sharpness-aware one. Steps are those of one [`Sam`](crate::Sam), whatever their loss: for losses that take
/// turns, use a `Sam` for each.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[non_exhaustive]
pub enum Schedule {
    /// Always.
    #[default]
    Always,
    /// The first of every so many.
    Every(u64),
    /// Each with this probability (RST, Zhao et al. 2022, <https://arxiv.org/abs/2203.09962>; the authors: 0.5).
    Random(f64),
    /// Where ‖g‖² is large for the run so far: ‖g‖² ≥ μ + c σ, with μ and σ² its moving mean and variance and c going from
    /// `from` to `to` over `steps` steps (AE-SAM, Jiang et al. 2023,
    /// <https://arxiv.org/abs/2304.14647>). Reads ‖g‖² on the host.
    GradNormAdaptive {
        /// The number of steps of the run.
        steps: u64,
        /// c at the first step; the authors: 1.
        from: f64,
        /// c at the last; the authors: -1.
        to: f64,
        /// The share of the moving mean that a step keeps; the authors: 0.9.
        memory: f64,
    },
    /// After so many steps: SAM in the last epochs only (Zhou et al. 2024,
    /// <https://arxiv.org/abs/2410.10373>).
    FromStep(u64),
}

impl Schedule {
    pub(crate) fn validate(self) -> Result<(), Error> {
        match self {
            Self::Every(k) => at_least("every", k as f64, 1.0),
            Self::Random(p) => share("chance", p),
            Self::GradNormAdaptive { steps, from, to, memory } => {
                if !(from.is_finite() && to.is_finite()) {
                    return Err(Error::Setting { what: "from and to", value: from + to, expected: "finite numbers" });
                }
                at_least("steps", steps as f64, 1.0)?;
                share("memory", memory)
            }
            Self::Always | Self::FromStep(_) => Ok(()),
        }
    }

    /// Whether this step is one; None where that depends on the gradient.
    pub(crate) fn before(self, step: u64, seed: u64) -> Option<bool> {
        match self {
            Self::Always => Some(true),
            Self::Every(k) => Some(step.is_multiple_of(k)),
            Self::Random(p) => Some(uniform(&[seed, step]) < p),
            Self::FromStep(first) => Some(step >= first),
            Self::GradNormAdaptive { .. } => None,
        }
    }

    /// Whether this step is one, given ‖g‖² at w. Moves the mean and the variance.
    pub(crate) fn after(self, square: f64, state: &mut State) -> bool {
        let Self::GradNormAdaptive { steps, from, to, memory } = self else { return true };
        // The first is its own mean, exactly.
        let (mean, variance) = state.moments.map_or((square, 0.0), |(mean, variance)| {
            let mean = memory * mean + (1.0 - memory) * square;
            (mean, memory * variance + (1.0 - memory) * (square - mean) * (square - mean))
        });
        state.moments = Some((mean, variance));
        let done = (state.steps as f64 / steps as f64).min(1.0);
        square >= mean + ((1.0 - done) * from + done * to) * variance.sqrt()
    }

    pub(crate) fn has_memory(self) -> bool {
        !matches!(self, Self::Always)
    }
}
