//! What the perturbation follows.

use candle_core::{Result, Tensor, Var};

use super::state::State;
use crate::core::dtype::{epsilon, wide};
use crate::core::error::{Error, at_least, share};
use crate::core::identity::number_of;
use crate::core::rng::gaussian;
use crate::core::var_list::{Gradient, VarTensors};
use crate::kernels::{self, number};
use crate::optim::MomentumBuffers;

/// The ascent direction; the paper's is the gradient.
///
/// What is remembered is remembered for each variable: one that takes no part in a step keeps its mean, and so do the
/// variables of one loss while another takes its turn with the same `Sam`.
///
/// With the last three there is no pass at w: a step is one pass, at w + ε̂, and so is the value that it returns. Their
/// first step, before there is anything to follow, is a plain one.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub enum Direction {
    /// g, the gradient at w.
    #[default]
    Gradient,
    /// d ← (1 - θ) d + θ g, from d = g: less noise (VaSSO, Li and Giannakis 2023, <https://arxiv.org/abs/2309.15639>;
    /// the authors' code: θ = 0.9).
    Ema {
        /// θ, from 0 to 1.
        theta: f64,
    },
    /// g - σ m, then m ← λ m + (1 - λ) g: the noise of the batch without what all batches share (F-SAM, Li et al. 2024,
    /// <https://arxiv.org/abs/2403.12350>). As in the authors' code (`utils.py` of nblt/F-SAM) the m of the step before is
    /// taken away, the first step follows g, and m begins as its g. Coordinates in which g and σ m differ by rounding alone
    /// are not perturbed.
    MinusEma {
        /// σ; the authors: 1.
        sigma: f64,
        /// λ, from 0 to 1; the authors: 0.9 as the default of their class, 0.6 or 0.95 in their run script.
        lambda: f64,
    },
    /// -v, v being the optimizer's velocity: [`Sgd::momentum_buffers`](crate::optim::Sgd::momentum_buffers) (MSAM, Becker et al. 2024,
    /// <https://arxiv.org/abs/2401.12033>; with the sign of the authors' code).
    Momentum(MomentumBuffers),
    /// The last gradient of each variable, in one ball around all variables that had one. In the spirit of AsyncSAM, which
    /// takes it from another device. For losses that take turns on different variables, use a `Sam` for each: otherwise the
    /// perturbation is shared out among the variables of both.
    PreviousGradient,
    /// z ~ N(0, 1), the paper's comparison. Needs [`vars`](crate::Sam::vars) to know what to perturb before the only pass:
    /// without those that are state, whose new values would be lost.
    Random,
}

impl Direction {
    pub(crate) fn validate(&self) -> std::result::Result<(), Error> {
        match *self {
            Self::Ema { theta } => share("theta", theta),
            Self::MinusEma { sigma, lambda } => {
                at_least("sigma", sigma, 0.0)?;
                share("lambda", lambda)
            }
            _ => Ok(()),
        }
    }

    /// Whether it takes the gradient at w to know it.
    pub(crate) fn needs_gradient(&self) -> bool {
        matches!(self, Self::Gradient | Self::Ema { .. } | Self::MinusEma { .. })
    }

    /// Whether it is the gradient of this step and nothing else.
    pub(crate) fn is_gradient(&self) -> bool {
        matches!(self, Self::Gradient)
    }

    /// Whether steps depend on those before.
    pub(crate) fn has_memory(&self) -> bool {
        !matches!(self, Self::Gradient | Self::Random)
    }

    /// The direction, given the gradient at w: in new buffers, unless it is the gradient.
    pub(crate) fn of_gradient(&self, gradient: Gradient, state: &mut State) -> Result<Gradient> {
        match *self {
            Self::Ema { theta } => {
                state.average = averaged(&state.average, &gradient, [1.0 - theta, theta])?;
                let own = |(var, grad): (Var, Tensor)| {
                    let mean = state.average.get(&var).map_or(Ok(grad), |mean| in_own_type(&var, mean))?;
                    Ok((var, mean))
                };
                gradient.into_iter().map(own).collect()
            }
            Self::MinusEma { sigma, lambda } => {
                let mut residual = Gradient::with_capacity(gradient.len());
                for (var, grad) in &gradient {
                    let ascent = match state.average.get(var) {
                        Some(mean) => kernels::residual(grad, sigma, mean, rounding(mean, lambda))?,
                        None => grad.copy()?,
                    };
                    residual.push((var.clone(), ascent.to_dtype(var.dtype())?));
                }
                state.average = averaged(&state.average, &gradient, [lambda, 1.0 - lambda])?;
                Ok(residual)
            }
            _ => Ok(gradient),
        }
    }

    /// The direction, where it is known without a gradient.
    pub(crate) fn without_gradient(&self, vars: &[Var], state: &State, seed: u64) -> Result<Gradient> {
        match self {
            Self::Momentum(velocities) => {
                let against = |(var, velocity): &(Var, Tensor)| {
                    Ok((var.clone(), velocity.detach().neg()?.to_dtype(var.dtype())?.contiguous()?))
                };
                let mut ascent: Gradient = velocities.lock().iter().map(against).collect::<Result<_>>()?;
                // In the order in which they were made: that of a map is another one each time.
                ascent.sort_by_key(|(var, _)| number_of(var.id()));
                ascent.dedup_by_key(|(var, _)| var.id());
                Ok(ascent)
            }
            Self::PreviousGradient => {
                state.previous.iter().map(|(var, last)| Ok((var.clone(), in_own_type(var, last)?))).collect()
            }
            Self::Random => {
                let mut floats: Vec<_> = vars.iter().filter(|var| var.dtype().is_float()).collect();
                floats.sort_by_key(|var| number_of(var.id()));
                let draw = |(i, var): (usize, &Var)| Ok((var.clone(), gaussian(var, [seed, state.steps, i as u64])?));
                floats.into_iter().enumerate().map(draw).collect()
            }
            _ => Ok(Gradient::new()),
        }
    }
}

/// m ← a m + b g, and m = g for a variable that has no m yet. Variables without a gradient in this step keep theirs. f16 and
/// bf16 are averaged in f32.
fn averaged(kept: &VarTensors, gradient: &Gradient, [a, b]: [f64; 2]) -> Result<VarTensors> {
    let mut means = Gradient::with_capacity(gradient.len());
    for (var, grad) in gradient {
        let grad = grad.to_dtype(wide(grad.dtype()))?;
        let mean = match kept.get(var) {
            Some(mean) => {
                let mean = mean.copy()?;
                kernels::mix(&mean, &number(&mean, a)?, &grad, &number(&mean, b)?)?;
                mean
            }
            None => grad.copy()?,
        };
        means.push((var.clone(), mean));
    }
    Ok(kept.with(means))
}

/// What g - m may be of g by rounding alone. m ← λ m + (1 - λ) g rounds in each step, and forgets a part 1 - λ of it.
fn rounding(mean: &Tensor, lambda: f64) -> f64 {
    let steps = if lambda < 1.0 { 1.0 / (1.0 - lambda) } else { 1.0 };
    (2.0 * epsilon(mean.dtype()) * steps).min(1.0)
}

/// A copy, in the dtype of the variable.
fn in_own_type(var: &Var, value: &Tensor) -> Result<Tensor> {
    if value.dtype() == var.dtype() { value.copy() } else { value.to_dtype(var.dtype()) }
}
