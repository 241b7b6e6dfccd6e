//! How the gradients at w and at w + ε̂ are combined.

use std::mem;

use candle_core::{Result, Tensor};

use super::factor::LossFactor;
use super::state::State;
use crate::core::dtype::epsilon;
use crate::core::error::{Error, at_least};
use crate::core::var_list::{Gradient, VarTensors};
use crate::kernels::vars::{mixed, paired, ratio};
use crate::kernels::{dot, mix_all, number, square};

/// The gradient that the caller gets: of g at w and g₂ at w + ε̂.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[non_exhaustive]
pub enum Combination {
    /// g₂, as in the paper.
    #[default]
    PerturbedGradient,
    /// g₂ - α g⊥, with g⊥ the part of g that is orthogonal to g₂: the loss falls, and so does the surrogate gap (GSAM,
    /// Zhuang et al. 2022, <https://arxiv.org/abs/2203.08065>).
    Gsam {
        /// α; the authors: 0.4 (PyTorch), 0.6 (JAX).
        alpha: f64,
    },
    /// (1 - a) g + a g₂ with a = γ / (1 - γ) (WSAM, Yue et al. 2023, <https://arxiv.org/abs/2305.15817>). γ = ½ is SAM.
    Wsam {
        /// γ, from 0 up to but not 1; the authors: 0.9.
        gamma: f64,
    },
    /// g, and after the optimizer's step w ← w - lr a (g₂ - g): [`Sam::apply_decoupled`](crate::Sam::apply_decoupled) does that. WSAM as its
    /// authors run it: the sharpness takes no part in momentum.
    ///
    /// Whatever the loss is multiplied by before its backward pass multiplies g₂ - g as well. Clipping is done to the
    /// gradients afterwards and does not: the authors clip both gradients, here only g is clipped.
    WsamDecoupled {
        /// γ, from 0 up to but not 1; the authors: 0.9.
        gamma: f64,
    },
    /// g₂ every k steps; between them one pass and g + α (‖g‖ / ‖gᵥ‖) gᵥ, with gᵥ the part of the last g₂ that was
    /// orthogonal to its g (LookSAM, Liu et al. 2022, <https://arxiv.org/abs/2203.02714>). A gᵥ that is no larger than the
    /// rounding of g₂ counts as 0.
    ///
    /// A step is one with g₂ also where one of its variables has no gᵥ from the last k steps. So losses that share some or
    /// none of their variables can take turns with one `Sam`.
    LookSam {
        /// k; the authors: 5.
        every: u64,
        /// α; the authors: 0.7.
        alpha: f64,
    },
    /// (‖g‖ / ‖g₂‖) g₂ (Stable SAM, Tan et al. 2024, <https://arxiv.org/abs/2401.07250>).
    Rescaled,
    /// g₂ + H u, u = (ρ / ‖g‖) (g₂ - ĝ ĝᵀg₂): the whole gradient of L(w + ε̂(w)), with the term that the paper drops
    /// (appendix C.4). H u is a central difference of two more gradients. For p = 2.
    SecondOrder,
}

impl Combination {
    pub(crate) fn validate(self) -> std::result::Result<(), Error> {
        match self {
            Self::Gsam { alpha } => at_least("alpha", alpha, 0.0),
            Self::Wsam { gamma } | Self::WsamDecoupled { gamma } if !(0.0..1.0).contains(&gamma) => {
                let expected = "a number from 0 up to but not 1";
                Err(Error::Setting { what: "gamma", value: gamma, expected })
            }
            Self::LookSam { every, alpha } => {
                at_least("every", every as f64, 1.0)?;
                at_least("alpha", alpha, 0.0)
            }
            _ => Ok(()),
        }
    }

    /// Whether it needs g after the perturbation.
    pub(crate) fn needs_first(self) -> bool {
        self != Self::PerturbedGradient
    }

    pub(crate) fn has_memory(self) -> bool {
        matches!(self, Self::LookSam { .. } | Self::WsamDecoupled { .. })
    }

    /// Whether this step, whose gradient is `first`, does without a second pass.
    pub(crate) fn is_between(self, first: &Gradient, state: &State) -> bool {
        let Self::LookSam { every, .. } = self else { return false };
        !state.steps.is_multiple_of(every) && first.iter().all(|(var, _)| state.orthogonal.get(var).is_some())
    }

    /// Makes the gradient of such a step out of that at w.
    pub(crate) fn mix_in(self, first: &Gradient, state: &State) -> Result<()> {
        let Self::LookSam { alpha, .. } = self else { return Ok(()) };
        let pairs = paired(first, &state.orthogonal);
        let Some((like, _)) = pairs.first() else { return Ok(()) };
        let size = square(pairs.iter().map(|(g, _)| *g))?.sqrt()?;
        let kept = square(pairs.iter().map(|(_, v)| *v))?.sqrt()?;
        let factor = (ratio(&size, &kept)? * alpha)?;
        mix_all(&pairs, &number(like, 1.0)?, &factor)
    }

    /// Writes the combination over `second`. A variable that has the second gradient only keeps that;
    /// one that has the first only has none, as with SAM.
    pub(crate) fn combine(self, first: &Gradient, second: &Gradient, state: &mut State) -> Result<()> {
        let kept = VarTensors::new(first.clone());
        let pairs = paired(second, &kept);
        let Some((like, _)) = pairs.first() else { return Ok(()) };
        let one = number(like, 1.0)?;
        let second_square = || square(pairs.iter().map(|(a, _)| *a));
        let first_square = || square(pairs.iter().map(|(_, b)| *b));
        match self {
            Self::PerturbedGradient | Self::SecondOrder => Ok(()),
            Self::Gsam { alpha } => {
                // g₂ - α (g - c g₂), with c = <g, g₂> / ‖g₂‖²
                let along = ratio(&dot(&pairs)?, &second_square()?)?;
                mix_all(&pairs, &(&one + (along * alpha)?)?, &number(like, -alpha)?)
            }
            Self::Wsam { gamma } => {
                let a = gamma / (1.0 - gamma);
                mix_all(&pairs, &number(like, a)?, &number(like, 1.0 - a)?)
            }
            Self::WsamDecoupled { gamma } => {
                let a = number(like, gamma / (1.0 - gamma))?;
                state.remainder = VarTensors::new(mixed(second, &a, &kept, &a.neg()?)?);
                state.factor = LossFactor::new();
                mix_all(&pairs, &number(like, 0.0)?, &one)
            }
            Self::LookSam { every, .. } => {
                let along = ratio(&dot(&pairs)?, &first_square()?)?.neg()?;
                let across = mixed(second, &one, &kept, &along)?;
                without_rounding(&across, second, &second_square()?)?;
                // Every k steps all are found anew, so that none is older.
                let before = if state.steps.is_multiple_of(every) {
                    VarTensors::default()
                } else {
                    mem::take(&mut state.orthogonal)
                };
                // A variable without a second gradient has no such part.
                let zeros = first.iter().map(|(var, grad)| Ok((var.clone(), grad.zeros_like()?)));
                state.orthogonal = before.with(zeros.collect::<Result<_>>()?).with(across);
                Ok(())
            }
            Self::Rescaled => {
                let factor = ratio(&first_square()?, &second_square()?)?.sqrt()?;
                mix_all(&pairs, &factor, &number(like, 0.0)?)
            }
        }
    }
}

/// Makes the part of a gradient that is orthogonal to another one 0, where it is no larger than the rounding of their
/// difference: its direction means nothing then, and its length is about to be changed.
fn without_rounding(across: &Gradient, second: &Gradient, second_square: &Tensor) -> Result<()> {
    let epsilon = across.iter().map(|(_, across)| epsilon(across.dtype())).fold(0.0, f64::max);
    let size = square(across.iter().map(|(_, across)| across))?.sqrt()?;
    let is_more = size.gt(&(second_square.sqrt()? * (2.0 * epsilon))?)?.to_dtype(size.dtype())?;
    let second = VarTensors::new(second.clone());
    let pairs = paired(across, &second);
    let Some((like, _)) = pairs.first() else { return Ok(()) };
    mix_all(&pairs, &is_more, &number(like, 0.0)?)
}

/// u of the second-order term, and what it leads to: the direction in which the gradient is differentiated.
pub(crate) fn second_order_direction(rho: f64, first: &Gradient, second: &Gradient) -> Result<Gradient> {
    let kept = VarTensors::new(second.clone());
    let pairs = paired(first, &kept);
    let Some((like, _)) = pairs.first() else { return Ok(Gradient::new()) };
    let square = square(pairs.iter().map(|(g, _)| *g))?;
    // u = (ρ / ‖g‖) g₂ - (ρ <g, g₂> / ‖g‖³) g
    let scale = ratio(&number(like, rho)?.to_dtype(square.dtype())?, &square.sqrt()?)?;
    let along = (ratio(&dot(&pairs)?, &square)? * &scale)?.neg()?;
    mixed(first, &along, &kept, &scale)
}
