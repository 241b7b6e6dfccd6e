//! The published methods by name: each is what it changes, with its authors' constants.

use std::ops::RangeInclusive;

use candle_core::Var;
use candle_nn::VarMap;

use super::Sam;
use crate::variants::{Combination, Direction, Mask, Metric, MomentumBuffers, Radius, Schedule, Scope, named};

/// The published methods, with the authors' constants where the [table](crate::variants) does not say otherwise. Every piece of
/// one can be exchanged afterwards: `Sam::look_sam().p(f64::INFINITY)`.
impl Sam {
    /// ASAM (Kwon et al. 2021, <https://arxiv.org/abs/2102.11600>): ε̂ = ρ T² g / ‖T g‖ with T = |w| + η, ρ = 0.5, η = 0.01.
    /// For CIFAR-100 they take ρ = 1.
    ///
    /// As in the authors' code T = 1 for variables without "weight" in their name. With
    /// [`adaptive`](Self::adaptive) alone it is |w| + η for all, and the best ρ about four times larger
    /// (<https://github.com/davda54/sam/issues/37>).
    pub fn asam(vars: &VarMap) -> Self {
        Self::new(0.5).adaptive(Self::ASAM_ETA).metric_for(named(vars, |name| name.contains("weight")))
    }

    /// GSAM (Zhuang et al. 2022, <https://arxiv.org/abs/2203.08065>): g₂ - α g⊥, α = 0.6, with ρ going from 0.6 to 0.1 as
    /// the learning rate goes through `rates` (the authors' constants for ImageNet in `big_vision`; their PyTorch example
    /// has α = 0.4). Set the rate with [`set_learning_rate`](Self::set_learning_rate) before each step; without it the first step
    /// is an error.
    pub fn gsam(rates: RangeInclusive<f64>) -> Self {
        Self::default()
            .radius(Radius::LinkedToLr { rho: 0.1..=0.6, rate: rates })
            .combination(Combination::Gsam { alpha: 0.6 })
    }

    /// LookSAM (Liu et al. 2022, <https://arxiv.org/abs/2203.02714>): g₂ every fifth step, between them one pass and
    /// g + α (‖g‖ / ‖gᵥ‖) gᵥ. α = 0.7, ρ = 0.1. 1.2 passes a step.
    pub fn look_sam() -> Self {
        Self::new(0.1).combination(Combination::LookSam { every: 5, alpha: 0.7 })
    }

    /// ESAM (Du et al. 2022, <https://arxiv.org/abs/2110.03141>): ε̂ in a random 0.6 of the coordinates, ρ = 0.05. Its other half
    /// is [`sharpest`](Self::sharpest), with half of the batch: `#[sam(with = sam, sharpest(x, y; k = 64))]`.
    ///
    /// The authors' code (`dydjw9/Efficient_SAM`) draws for each whole tensor instead, after a step for the next one: a tensor that is
    /// left out has no gradient at w then, and ε̂ of the others is ρ g / (0.6 ‖g‖) with the norm of those alone.
    pub fn esam() -> Self {
        Self::new(0.05).mask(Mask::Random { keep: 0.6 })
    }

    /// F-SAM (Li et al. 2024, <https://arxiv.org/abs/2403.12350>): along g - σ m with m ← λ m + (1 - λ) g. σ = 1 and λ = 0.9,
    /// the defaults of the authors' class, and ρ = 0.2, that of their run script, where λ is 0.6 (`run.sh` of nblt/F-SAM).
    pub fn f_sam() -> Self {
        Self::new(0.2).direction(Direction::MinusEma { sigma: 1.0, lambda: 0.9 })
    }

    /// VaSSO (Li and Giannakis 2023, <https://arxiv.org/abs/2309.15639>): along d ← (1 - θ) d + θ g. θ = 0.9, ρ = 0.2.
    pub fn vasso() -> Self {
        Self::new(0.2).direction(Direction::Ema { theta: 0.9 })
    }

    /// MSAM (Becker et al. 2024, <https://arxiv.org/abs/2401.12033>): against the optimizer's velocity, ρ = 3 (10 for ViT).
    /// One pass a step.
    ///
    /// An optimizer's weight decay is taken at w here, since the weights are back before its step. In the authors' code
    /// (`MarlonBecker/MSAM`) the weights stay at w + ε̂ between steps, and SGD's decay is taken there.
    ///
    /// ```
    /// # use candle_core::{Device, Result, Var};
    /// # use candle_nn::Optimizer;
    /// # use sam_runtime::Sam;
    /// # use sam_runtime::optim::{ParamsSgd, Sgd};
    /// # fn main() -> Result<()> {
    /// # let w = Var::new(&[3f64, -2.], &Device::Cpu)?;
    /// let sgd = Sgd::new(vec![w], ParamsSgd::default())?;
    /// let sam = Sam::momentum_sam(sgd.momentum_buffers());
    /// # sam.validate()?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn momentum_sam(buffers: MomentumBuffers) -> Self {
        Self::new(3.0).direction(Direction::Momentum(buffers))
    }

    /// SAM-ON (Mueller et al. 2023, <https://arxiv.org/abs/2306.04226>): only normalization layers are perturbed, with a
    /// ball scaled by |w| and ρ = 10. Theirs are the variables with "norm" or "bn" in their name.
    pub fn sam_on(vars: &VarMap) -> Self {
        let on = named(vars, |name| name.contains("norm") || name.contains("bn"));
        Self::new(10.0).adaptive(0.0).vars(on)
    }

    /// Fisher SAM (Kim et al. 2022, <https://arxiv.org/abs/2206.04920>): the ball of the inverse of a diagonal Fisher matrix,
    /// F ≈ 1 + η g². ρ = 0.1, η = 1.
    pub fn fisher() -> Self {
        Self::new(0.1).metric(Metric::Fisher { eta: 1.0 })
    }

    /// WSAM (Yue et al. 2023, <https://arxiv.org/abs/2305.15817>), decoupled as its authors run it: the optimizer's step
    /// is g's, and [`apply_decoupled`](Self::apply_decoupled) then does w ← w - lr γ / (1 - γ) (g₂ - g). γ = 0.9, ρ = 0.05. Coupled it is
    /// [`Combination::Wsam`].
    pub fn wsam() -> Self {
        Self::new(0.05).combination(Combination::WsamDecoupled { gamma: 0.9 })
    }

    /// USAM (Andriushchenko and Flammarion 2022, <https://arxiv.org/abs/2206.06232>): ε̂ = ρ g.
    pub fn usam(rho: impl Into<f64>) -> Self {
        Self::new(rho).unnormalized()
    }

    /// AE-SAM (Jiang et al. 2023, <https://arxiv.org/abs/2304.14647>) over a run of so many steps: a second pass where ‖g‖²
    /// is large for the run so far. ρ = 0.05, mean with 0.9, c from 1 to -1. About 1.5 passes a step.
    pub fn ae_sam(steps: u64) -> Self {
        Self::new(0.05).schedule(Schedule::GradNormAdaptive { steps, from: 1.0, to: -1.0, memory: 0.9 })
    }

    /// RST (Zhao et al. 2022, <https://arxiv.org/abs/2203.09962>): every step with probability ½. ρ = 0.05. 1.5 passes a step.
    pub fn rst() -> Self {
        Self::new(0.05).schedule(Schedule::Random(0.5))
    }

    /// Sparse SAM with a Fisher mask (SSAM-F, Mi et al. 2022, <https://arxiv.org/abs/2210.05177>): ε̂ in the half of the
    /// coordinates where the squared gradient is largest, looked for every `every` steps (the authors: every few epochs). ρ = 0.1.
    pub fn sparse_sam(every: u64) -> Self {
        Self::new(0.1).mask(Mask::TopK { sparsity: 0.5, every })
    }

    /// Stable SAM (Tan et al. 2024, <https://arxiv.org/abs/2401.07250>): g₂ with the length of g. ρ = 0.05.
    pub fn stable() -> Self {
        Self::new(0.05).combination(Combination::Rescaled)
    }

    /// LayerSAM (Liu et al. 2022, <https://arxiv.org/abs/2203.02714>), for large batches: each variable has a ball of its
    /// own, ε̂ = ρ ‖w‖ g / ‖g‖. ρ = 0.1.
    ///
    /// There is no code of the authors that we know of, and reimplementations differ: one public one has
    /// ρ min(‖w‖ / ‖g‖, 20) g / ‖G‖, with the norms of the layer in the ratio and the norm of all variables G below.
    pub fn layer_sam() -> Self {
        Self::new(0.1).metric(Metric::LayerNormalized).scope(Scope::PerVariable)
    }

    /// LE-SAM (Wang et al. 2026, <https://arxiv.org/abs/2605.10183>): ρ = min(σ / ‖g‖, `largest`), so that the loss rises by about
    /// σ in each step. In the publication σ falls to 0 along a cosine in the last epochs; here it is constant.
    pub fn le_sam(sigma: f64, largest: f64) -> Self {
        Self::default().radius(Radius::LossBudget { sigma, largest })
    }

    /// Along the gradient of the step before, ρ = 0.05: one pass a step. AsyncSAM has that gradient from another device
    /// meanwhile.
    pub fn previous_gradient() -> Self {
        Self::new(0.05).direction(Direction::PreviousGradient)
    }

    /// Along noise: what SAM is to be compared with. One pass a step. `vars` are those to perturb, without state such as
    /// the statistics of a batch normalization.
    pub fn random_direction(rho: impl Into<f64>, vars: impl IntoIterator<Item = Var>) -> Self {
        Self::new(rho).direction(Direction::Random).vars(vars)
    }

    /// SAM with the term that the paper drops (appendix C.4), ρ = 0.05: the whole gradient of L(w + ε̂(w)). Four passes.
    pub fn second_order() -> Self {
        Self::new(0.05).combination(Combination::SecondOrder)
    }
}
