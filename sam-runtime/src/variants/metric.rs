//! How the ball is shaped: T, by which it is scaled in each coordinate, and what of ε̂ is left out.

use std::collections::HashSet;
use std::mem;

use candle_core::{DType, Device, Result, Tensor, TensorId, Var};

use super::state::State;
use crate::core::dtype::exact;
use crate::core::error::{Error, at_least};
use crate::core::rng::bernoulli;
use crate::core::var_list::{Gradient, VarTensors};
use crate::kernels::{PerturbTarget, Scale, norm_of};

/// T of the ball ‖T⁻¹ ε‖ₚ ≤ ρ, so that ε̂ = T ε̂(T g).
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[non_exhaustive]
pub enum Metric {
    /// 1
    #[default]
    Euclidean,
    /// |w| + η: a rescaled layer is perturbed alike (ASAM, Kwon et al. 2021, <https://arxiv.org/abs/2102.11600>).
    Adaptive {
        /// η; the authors: 0.01.
        eta: f64,
    },
    /// (1 + η g²)^(-½), the inverse root of a diagonal Fisher matrix (Fisher SAM, Kim et al. 2022,
    /// <https://arxiv.org/abs/2206.04920>).
    Fisher {
        /// η
        eta: f64,
    },
    /// ‖w‖₂ of the whole variable. With a [ball for each variable](Scope::PerVariable) it is LayerSAM's. A variable of zeros
    /// is not perturbed.
    LayerNormalized,
}

/// Which coordinates are perturbed at all; the ball is that of all of them.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Mask {
    /// Each with this probability, and then by its inverse more (ESAM's stochastic weight perturbation, Du et al. 2022,
    /// <https://arxiv.org/abs/2110.03141>; the authors: 0.6 and 0.5). Drawn anew in each step, and for each coordinate, as in
    /// the paper; the authors' code draws once for each whole tensor, in the step before.
    Random {
        /// The probability, above 0, up to 1.
        keep: f64,
    },
    /// Those where the squared gradient is largest, found anew every so many steps (SSAM-F, Mi et al. 2022,
    /// <https://arxiv.org/abs/2210.05177>, whose squared gradients are means over single samples; here it is that of
    /// the batch). Finding them reads the gradient on the host. A variable that has taken no part since the last search
    /// gets its mask in the next step that it takes part in, among the variables of that step that have none.
    TopK {
        /// The share of coordinates that stay where they are, from 0 up to but not 1; the authors: 0.5.
        sparsity: f64,
        /// Steps between two searches.
        every: u64,
    },
}

/// What one ball is around.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub enum Scope {
    /// All variables together, as in the paper.
    #[default]
    Global,
    /// Each variable by itself, every one with radius ρ.
    PerVariable,
    /// Each of these groups, every one with radius ρ, and one more around the variables that are in none. A variable in
    /// several groups belongs to the first of them.
    Groups(Vec<Vec<Var>>),
}

impl Scope {
    /// The targets of each ball.
    pub(crate) fn balls(&self, targets: Vec<PerturbTarget>) -> Vec<Vec<PerturbTarget>> {
        match self {
            Self::Global => vec![targets],
            Self::PerVariable => targets.into_iter().map(|target| vec![target]).collect(),
            Self::Groups(groups) => {
                let groups: Vec<HashSet<_>> =
                    groups.iter().map(|group| group.iter().map(|var| var.id()).collect()).collect();
                let mut balls: Vec<_> = (0..=groups.len()).map(|_| Vec::new()).collect();
                for target in targets {
                    let group = groups.iter().position(|group| group.contains(&target.var.id()));
                    balls[group.unwrap_or(groups.len())].push(target);
                }
                balls.retain(|ball| !ball.is_empty());
                balls
            }
        }
    }
}

impl Metric {
    pub(crate) fn validate(self) -> std::result::Result<(), Error> {
        match self {
            Self::Adaptive { eta } if !(eta.is_finite() && eta >= 0.0) => Err(Error::Eta(eta)),
            Self::Fisher { eta } => at_least("eta", eta, 0.0),
            _ => Ok(()),
        }
    }

    /// T for one variable. `only`: those that it is for, where it is not for all.
    pub(crate) fn at(self, var: &Var, grad: &Tensor, only: Option<&HashSet<TensorId>>) -> Result<Scale> {
        if only.is_some_and(|only| !only.contains(&var.id())) {
            return Ok(Scale::One);
        }
        Ok(match self {
            Self::Euclidean => Scale::One,
            Self::Adaptive { eta } => Scale::Weights(eta),
            Self::Fisher { eta } => Scale::Given(inverse_root(&(exact(grad)? * eta.sqrt())?)?),
            Self::LayerNormalized => Scale::Given(norm_of(&var.as_detached_tensor())?),
        })
    }
}

/// (1 + x²)^(-½), without the square of a large number.
fn inverse_root(x: &Tensor) -> Result<Tensor> {
    let size = x.abs()?;
    let (large, small) = (size.maximum(1.0)?, size.minimum(1.0)?);
    (large * ((small / &size.maximum(1.0)?)?.sqr()? + 1.0)?.sqrt()?)?.recip()
}

impl Mask {
    pub(crate) fn validate(self) -> std::result::Result<(), Error> {
        match self {
            Self::Random { keep } if !(keep > 0.0 && keep <= 1.0) => {
                Err(Error::Setting { what: "keep", value: keep, expected: "a probability above 0, up to 1" })
            }
            Self::TopK { sparsity, .. } if !(0.0..1.0).contains(&sparsity) => {
                let expected = "a number from 0 up to but not 1";
                Err(Error::Setting { what: "sparsity", value: sparsity, expected })
            }
            Self::TopK { every, .. } => at_least("every", every as f64, 1.0),
            Self::Random { .. } => Ok(()),
        }
    }

    pub(crate) fn has_memory(self) -> bool {
        matches!(self, Self::TopK { .. })
    }

    /// Factors for each variable of `along`.
    pub(crate) fn draw(self, along: &Gradient, state: &mut State, seed: u64) -> Result<VarTensors> {
        match self {
            Self::Random { keep } => {
                let mask = |(i, (var, _)): (usize, &(Var, Tensor))| {
                    Ok((var.clone(), bernoulli(var, keep, [seed, state.steps, i as u64])?))
                };
                along.iter().enumerate().map(mask).collect::<Result<_>>().map(VarTensors::new)
            }
            Self::TopK { sparsity, every } => {
                // Every so many steps all are found anew, so that none is older; between them those that are missing.
                let known =
                    if state.steps.is_multiple_of(every) { VarTensors::default() } else { mem::take(&mut state.mask) };
                let missing: Gradient = along.iter().filter(|(var, _)| known.get(var).is_none()).cloned().collect();
                state.mask = known.with(largest(&missing, sparsity)?);
                Ok(state.mask.clone())
            }
        }
    }
}

/// 1 for the share `1 - sparsity` of all coordinates with the largest squared gradient, and for those that equal the
/// smallest of them, 0 for the others.
fn largest(along: &Gradient, sparsity: f64) -> Result<Gradient> {
    let mut sizes = Vec::new();
    for (_, grad) in along {
        sizes.extend(on_host(grad)?.abs()?.flatten_all()?.to_vec1::<f64>()?);
    }
    if sizes.is_empty() {
        return Ok(Gradient::new());
    }
    #[expect(clippy::cast_sign_loss, reason = "a share of a length")]
    let left_out = (sparsity * sizes.len() as f64) as usize;
    let least = *sizes.select_nth_unstable_by(left_out, f64::total_cmp).1;
    let mask = |(var, grad): &(Var, Tensor)| {
        let sizes = on_host(grad)?.abs()?;
        let kept = sizes.ge(&(sizes.ones_like()? * least)?)?;
        Ok((var.clone(), kept.to_dtype(var.dtype())?.to_device(var.device())?))
    };
    along.iter().map(mask).collect()
}

fn on_host(tensor: &Tensor) -> Result<Tensor> {
    tensor.to_device(&Device::Cpu)?.to_dtype(DType::F64)
}
