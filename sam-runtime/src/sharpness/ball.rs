//! How far the loss rises in a ball around the weights.

use std::cmp::Ordering;
use std::sync::Arc;

use candle_core::{Result, Var};

use super::landscape::Landscape;
use super::session::Session;
use super::weight_vector::WeightVector;
use crate::core::error::Error;
use crate::core::rng::hash;
use crate::core::var_list::{Gradient, VarTensors};
use crate::sam::Sam;
use crate::step::perturb::in_the_ball;
use crate::variants::Metric;

/// The highest loss that was found in a ball.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Worst {
    /// L(w)
    pub at_w: f64,
    /// The highest L(w + ε) that was found; a lower bound of the maximum.
    pub highest: f64,
}

impl Worst {
    /// The sharpness, max L(w + ε) - L(w).
    #[must_use]
    pub fn rise(self) -> f64 {
        self.highest - self.at_w
    }
}

/// The mean of random draws.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Estimate {
    /// The mean.
    pub mean: f64,
    /// The standard deviation of the draws, divided by the root of their number; NaN for one draw.
    pub standard_error: f64,
}

impl Estimate {
    pub(super) fn of(draws: &[f64]) -> Self {
        let n = draws.len() as f64;
        let mean = draws.iter().sum::<f64>() / n;
        let square = draws.iter().map(|x| (x - mean).powi(2)).sum::<f64>();
        Self { mean, standard_error: (square / (n - 1.0) / n).sqrt() }
    }
}

impl Landscape<'_> {
    /// ε̂(w), where the first pass of a step of this `Sam` leads: along the gradient to the border of its ball.
    ///
    /// # Errors
    /// As [`gradient`](Self::gradient), and if the gradient is not finite.
    pub fn ascent(&mut self, sam: &Sam) -> Result<WeightVector> {
        let mut session = Session::begin(self)?;
        let gradient = session.gradient()?.1;
        session.ascent(sam, gradient.tensors()?)
    }

    /// The sharpness max L(w + ε) - L(w) over the ball of this `Sam`: its ρ, norm, [metric](Metric) and
    /// [scope](crate::variants::Scope), whatever its other pieces are. L is the mean over all samples.
    ///
    /// With one step it is the paper's measure, L(w + ε̂) - L(w). Each further step takes the gradient where the last one has led,
    /// and goes along it from w to the border: for a quadratic loss that is power iteration, and for any convex one the loss rises
    /// in each step (Journée et al. 2010, <https://arxiv.org/abs/0811.4724>, algorithm 1). Where it does not rise, it goes half the way
    /// from where it was, and stops when that does not help either. A step costs a forward and a backward pass.
    ///
    /// # Errors
    /// As [`ascent`](Self::ascent), and if `steps` is 0.
    pub fn sharpness(&mut self, sam: &Sam, steps: usize) -> Result<Worst> {
        Session::begin(self)?.climb(sam, steps, None)
    }

    /// m-sharpness: the mean over the batches of the sharpness of each, in a ball of its own. m is the number of samples of a batch;
    /// see [`over_batches`](Self::over_batches).
    ///
    /// # Errors
    /// As [`sharpness`](Self::sharpness).
    pub fn m_sharpness(&mut self, sam: &Sam, steps: usize) -> Result<Worst> {
        let mut session = Session::begin(self)?;
        let (mut at_w, mut highest) = (0.0, 0.0);
        for batch in 0..session.batches() {
            let found = session.climb(sam, steps, Some(batch))?;
            let share = session.landscape.shares[batch];
            at_w += share * found.at_w;
            highest += share * found.highest;
        }
        Ok(Worst { at_w, highest })
    }

    /// The average-case sharpness E L(w + δ) - L(w), with δ ~ N(0, ρ² c²) for each weight: c is 1, and with the adaptive metric
    /// |w| + η (Andriushchenko et al. 2023, <https://arxiv.org/abs/2302.07011>, equation 1). ρ is that of this `Sam`, here a standard deviation
    /// of each weight and no radius: ‖δ‖ is about ρ times the root of their number.
    ///
    /// # Errors
    /// As [`loss_at`](Self::loss_at); for other metrics, and without draws.
    pub fn average_sharpness(&mut self, sam: &Sam, draws: usize, seed: u64) -> Result<Estimate> {
        let eta = match sam.metric {
            Metric::Euclidean => None,
            Metric::Adaptive { eta } => Some(eta),
            _ => {
                let why = "the average-case sharpness is defined for the Euclidean and the adaptive metric";
                return Err(Error::Settings { what: "metric", why }.into());
            }
        };
        if draws == 0 {
            candle_core::bail!("the mean of 0 draws: expected 1 or more")
        }
        let rho = radius(sam)?;
        let mut session = Session::begin(self)?;
        let at_w = session.loss()?;
        let mut rises = Vec::with_capacity(draws);
        let vars = Arc::clone(&session.landscape.vars);
        let weights = WeightVector::of_weights(vars.iter().cloned())?;
        for draw in 0..draws {
            let seed = hash(seed ^ hash(draw as u64));
            let mut delta = WeightVector::gaussian(vars.iter().cloned(), seed)?.scaled(rho);
            if let Some(eta) = eta {
                let scaled = delta.values().iter().zip(weights.values()).map(|(d, w)| d * (w.abs() + eta)).collect();
                delta = delta.with(scaled);
            }
            rises.push(session.at(&delta, Session::loss)? - at_w);
        }
        Ok(Estimate::of(&rises))
    }
}

/// How often a step that does not rise is halved.
const HALVINGS: usize = 3;

impl Session<'_, '_> {
    /// From w, where the variables are, along a gradient to the border of the ball.
    pub(super) fn ascent(&self, sam: &Sam, gradient: Gradient) -> Result<WeightVector> {
        let vars = &self.landscape.vars;
        let weights = WeightVector::of_weights(vars.iter().cloned())?;
        let there = VarTensors::new(in_the_ball(sam, radius(sam)?, gradient, None)?);
        let value = |var: &Var| (var.clone(), there.get(var).cloned().unwrap_or_else(|| var.as_detached_tensor()));
        WeightVector::of_gradient(vars, &vars.iter().map(value).collect())?.plus(&weights, -1.0)
    }

    /// Of one batch, or of all.
    fn climb(&mut self, sam: &Sam, steps: usize, batch: Option<usize>) -> Result<Worst> {
        if steps == 0 {
            candle_core::bail!("the sharpness after 0 steps: expected 1 or more")
        }
        let (at_w, mut gradient) = self.gradient_over(batch)?;
        let mut best: Option<(f64, WeightVector)> = None;
        for _ in 0..steps {
            let mut epsilon = self.ascent(sam, gradient.tensors()?)?;
            let mut there = self.at(&epsilon, |session| session.gradient_over(batch))?;
            if let Some((highest, before)) = &best {
                for _ in 0..HALVINGS {
                    if there.0 > *highest {
                        break;
                    }
                    epsilon = epsilon.plus(before, 1.0)?.scaled(0.5);
                    there = self.at(&epsilon, |session| session.gradient_over(batch))?;
                }
                if there.0.partial_cmp(highest) != Some(Ordering::Greater) {
                    break;
                }
            }
            gradient = there.1;
            best = Some((there.0, epsilon));
            if !there.0.is_finite() {
                break;
            }
        }
        Ok(Worst { at_w, highest: best.map_or(at_w, |(highest, _)| highest) })
    }

    fn gradient_over(&mut self, batch: Option<usize>) -> Result<(f64, WeightVector)> {
        let Some(batch) = batch else { return self.gradient() };
        let (loss, gradient) = self.gradient_of(batch)?;
        Ok((loss, WeightVector::of_gradient(&self.landscape.vars, &gradient)?))
    }
}

fn radius(sam: &Sam) -> Result<f64> {
    let rho = sam.radius_now();
    if rho.is_finite() && rho >= 0.0 { Ok(rho) } else { Err(Error::Rho(rho).into()) }
}
