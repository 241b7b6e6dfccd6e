//! What sharpness-aware methods differ in, piece by piece.
//!
//! | what | piece | default |
//! | --- | --- | --- |
//! | what the perturbation follows | [`Direction`], and [`ascents`](crate::Sam::ascent_steps) | the gradient at w, in one step |
//! | how the ball is shaped | [`p`](crate::Sam::p), [`Metric`], [`Scope`], [`Mask`], [`vars`](crate::Sam::vars) | one Euclidean ball around all variables |
//! | how large it is | [`Radius`] | ρ |
//! | which steps | [`Schedule`] | all |
//! | which examples | [`shards`](crate::Sam::shards), [`parts`](crate::Sam::micro_batches), [`hardest`](crate::Sam::hardest), [`sharpest`](crate::Sam::sharpest) | the whole batch at once |
//! | what the two gradients come to | [`Combination`], [`FunctionalSam`] | the one at w + ε̂ |
//!
//! # The published ones
//!
//! With g = ∇L(w), ε̂ = ρ g / ‖g‖ and g₂ = ∇L(w + ε̂) unless the formula says another. Passes: forward and backward passes a
//! step, counted by a test. Memory: beside SAM's copy of the weights, in copies of them; "g" is one while a step lasts.
//! Constants: the authors', and with an asterisk ours, where theirs are not known to us; where a publication has a constant for
//! each data set, the first one for CIFAR.
//!
//! "Gain" is what a variant's test error is lower than SAM's, in %, mean ± standard error over five seeds by pairs, on 5000 images
//! of Fashion-MNIST with 40 % wrong labels, a perceptron with batch normalisation, 40 epochs: SAM's 18.6 ± 0.0, SGD's
//! 39.1 ± 0.3. Each has the radius, of a grid of factors two, that it does best with there. `cargo run --release --bin variants`
//! runs it. It is one small problem with wrong labels, on which nothing gains: it tells what is lost.
//!
//! | variant | formula | passes | memory | constants | for | gain | made by |
//! | --- | --- | --- | --- | --- | --- | --- | --- |
//! | SAM | g₂ | 2 | - | ρ 0.05 | first |  | [`Sam::new`](crate::Sam::new) |
//! | m-sharpness | the mean of g₂ over shards of m examples, each with its own ε̂ | 2 | 1 | m: the batch of one accelerator | large batches | -0.1 ± 0.1 | `shards(x, y; m = 32)` |
//! | ASAM | ε̂ = ρ T² g / ‖T g‖, T = \|w\| + η | 2 | - | ρ 0.5, η 0.01 | layers of other scales | -1.8 ± 0.1 | [`Sam::asam`](crate::Sam::asam) |
//! | Fisher SAM | ε̂ = ρ F⁻¹g / √(gᵀF⁻¹g), F = 1 + η g² | 2 | 1 | ρ 0.1*, η 1* | as ASAM | 0.1 ± 0.0 | [`Sam::fisher`](crate::Sam::fisher) |
//! | LayerSAM | ε̂ = ρ ‖w‖ g / ‖g‖, each variable by itself | 2 | - | ρ 0.1* | large batches, transformers | -0.7 ± 0.1 | [`Sam::layer_sam`](crate::Sam::layer_sam) |
//! | SAM-ON | ASAM's ε̂ with η = 0, on normalisation layers only | 2 | - | ρ 10 | networks with normalisation | -1.5 ± 0.2 | [`Sam::sam_on`](crate::Sam::sam_on) |
//! | sparse SAM | ε̂ where g² is among the largest half | 2 | 1 | ρ 0.1 | to study sparsity; saves no time | -0.6 ± 0.1 | [`Sam::sparse_sam`](crate::Sam::sparse_sam) |
//! | USAM | ε̂ = ρ g | 2 | - | none | theory | -0.1 ± 0.0 | [`Sam::usam`](crate::Sam::usam) |
//! | GSAM | g₂ - α g⊥, g⊥ the part of g orthogonal to g₂; ρ goes with the learning rate | 2 | g | α 0.6, ρ 0.6 to 0.1 | transformers, long schedules | -2.2 ± 0.2 | [`Sam::gsam`](crate::Sam::gsam) |
//! | WSAM | g, and then w ← w - lr γ / (1 - γ) (g₂ - g) | 2 | g + 1 | γ 0.9, ρ 0.05 | to weigh sharpness by hand | 0.0 ± 0.0 | [`Sam::wsam`](crate::Sam::wsam) |
//! | WSAM, coupled | (1 - a) g + a g₂, a = γ / (1 - γ) | 2 | g | γ 0.9, ρ 0.05 | the same, within momentum | -1.7 ± 0.1 | `wsam = 0.9` |
//! | Stable SAM | (‖g‖ / ‖g₂‖) g₂ | 2 | g | ρ 0.05* | where SAM is unstable | -0.1 ± 0.1 | [`Sam::stable`](crate::Sam::stable) |
//! | FunctionalSam-SAM | J(w + ε̂)ᵀ ∂L/∂z at w, z the outputs | 2 | outputs | none | language models | -0.2 ± 0.1 | [`FunctionalSam`] |
//! | F-SAM | ε̂ along g - σ m, m ← λ m + (1 - λ) g | 2 | 2 | σ 1 and λ 0.9 of the class, ρ 0.2 of the run script | small batches | 0.0 ± 0.1 | [`Sam::f_sam`](crate::Sam::f_sam) |
//! | VaSSO | ε̂ along d ← (1 - θ) d + θ g | 2 | 2 | θ 0.9, ρ 0.2 | small batches | -0.1 ± 0.0 | [`Sam::vasso`](crate::Sam::vasso) |
//! | MSAM | ε̂ = -ρ v / ‖v‖, v the optimizer's velocity | 1 | - | ρ 3 | the time of one pass | -0.4 ± 0.1 | [`Sam::momentum_sam`](crate::Sam::momentum_sam) |
//! | LookSAM | g₂ every fifth step, else g + α (‖g‖ / ‖gᵥ‖) gᵥ | 1.2 | g + 2 | α 0.7, ρ 0.1* | little time | -0.9 ± 0.2 | [`Sam::look_sam`](crate::Sam::look_sam) |
//! | ESAM | ε̂ in a random part, g₂ of the half whose loss rises most | 1.83 | 1 | 0.6, half, ρ 0.05 | little less time | -2.2 ± 0.2 | [`Sam::esam`](crate::Sam::esam) and `sharpest` |
//! | K-SAM | g and g₂ of the k examples with the largest loss | 1 at a third | - | none | the time of one pass, right labels | -18.4 ± 0.3 | `hardest` |
//! | AE-SAM | g₂ where ‖g‖² is large for the run so far, else g | about 1.5 | - | ρ 0.05* | less time | -0.8 ± 0.1 | [`Sam::ae_sam`](crate::Sam::ae_sam) |
//! | RST | g₂ with probability ½, else the plain step | 1.5 | - | ρ 0.05* | less time | 0.0 ± 0.1 | [`Sam::rst`](crate::Sam::rst) |
//! | LE-SAM | ρ = min(σ / ‖g‖, largest) | 2 | - | none | gradients of changing size | -0.2 ± 0.1 | [`Sam::le_sam`](crate::Sam::le_sam) |
//! | last steps only | the plain step, then SAM | 1 to 2 | - | the last half* | less time | -0.7 ± 0.1 | [`Schedule::FromStep`] |
//! | several ascents | ε ← onto the ball(ε + a ∇L(w + ε) / ‖·‖) | n + 1 | - | none | to study the maximum | -0.1 ± 0.1 | [`Sam::ascent_steps`](crate::Sam::ascent_steps) |
//! | second order | g₂ + H u, the gradient of L(w + ε̂(w)) | 4 | g + 2 | ρ 0.05 | to study the dropped term | -0.0 ± 0.1 | [`Sam::second_order`](crate::Sam::second_order) |
//! | stale direction | ε̂ along the last step's gradient | 1 | 1 | ρ 0.05 | the time of one pass | -2.1 ± 0.4 | [`Sam::previous_gradient`](crate::Sam::previous_gradient) |
//! | random direction | ε̂ along noise | 1 | 1 | none | a control | -20.2 ± 0.4 | [`Sam::random_direction`](crate::Sam::random_direction) |
//!
//! # When to use which
//!
//! Plain SAM first: every other one is an answer to a reason not to. Where two passes are too dear, RST (in our run as good as
//! SAM, at twice the radius) or MSAM (nearly, in one pass), LookSAM, AE-SAM, or SAM in the last epochs only. Where layers differ
//! in scale and weights are not normalised, ASAM; its authors' gains are on clean images. For large batches on transformers
//! LayerSAM and GSAM, for language models FunctionalSam-SAM, as their authors found. K-SAM and ESAM choose the examples whose labels
//! are wrong, where some are. Random and stale directions, several ascents and the second-order term are there to learn
//! something, not to win.
//!
//! # Several losses, and variables that take no part
//!
//! What a [`Sam`](crate::Sam) remembers of gradients it remembers for each variable. A variable that takes no part in a step keeps its
//! mean ([`Direction::Ema`], [`Direction::MinusEma`]) and its last gradient ([`Direction::PreviousGradient`]); one that took no part
//! when [`Mask::TopK`] or [`Combination::LookSam`] looked at the gradients is looked at in the next step that it takes part
//! in. So one `Sam` can serve losses that take turns. Counters of steps ([`Schedule`], schedules of [`Radius`]) and the mean of
//! [`Schedule::GradNormAdaptive`] are one for all of them: where that is not wanted, use a `Sam` for each loss.
//!
//! # Half precision
//!
//! Keep weights in f32 and convert them with `to_dtype` in the forward pass. Variables in f16 and bf16 cannot hold w + ε̂ where
//! ε̂ is less than the distance between two neighbouring numbers, in bf16 about 1/256 of the weight. On the CPU a step that
//! would lose more than half of ‖ε̂‖ to rounding is an [`Error::LostToRounding`](crate::Error::LostToRounding); on other devices
//! it is not checked, because checking would synchronise with the device.
//!
//! # What is not here
//!
//! bSAM (Möllenhoff and Khan 2023, <https://arxiv.org/abs/2210.01620>) is an optimizer of its own: it draws weights before the
//! first pass, and its perturbation, its step and its weight decay share a preconditioner that the step changes. SAF and MESA
//! (Du et al. 2022, <https://arxiv.org/abs/2205.14083>) perturb nothing: they add a distance to earlier outputs of the same
//! examples to the loss, which is a loss function with a memory for each example. Neither would be a piece of a step.

mod combination;
mod direction;
mod factor;
mod functional;
mod metric;
mod radius;
mod schedule;
mod state;

pub use crate::optim::MomentumBuffers;
pub use combination::Combination;
pub use direction::Direction;
pub use functional::FunctionalSam;
pub use metric::{Mask, Metric, Scope};
pub use radius::{Radius, Rho};
pub use schedule::Schedule;

pub(crate) use combination::second_order_direction;
pub(crate) use factor::LossFactor;
pub(crate) use state::State;

use candle_core::Var;
use candle_nn::VarMap;

use crate::core::names::Names;

/// The variables whose names are kept, in the order of their names: for [`Sam::vars`](crate::Sam::vars) and
/// [`Sam::metric_for`](crate::Sam::metric_for). Also [registers](crate::name_variables) the names.
///
/// ```
/// # use candle_core::{DType, Device, Result};
/// # use candle_nn::{VarBuilder, VarMap};
/// use sam_runtime::Sam;
/// use sam_runtime::variants::named;
///
/// # fn main() -> Result<()> {
/// # let vars = VarMap::new();
/// # let vb = VarBuilder::from_varmap(&vars, DType::F32, &Device::Cpu);
/// # let _ = (candle_nn::linear(2, 2, vb.pp("head"))?, candle_nn::layer_norm(2, 1e-5, vb.pp("norm"))?);
/// // SAM-ON: only the normalisation layers are perturbed.
/// let sam = Sam::new(0.5).vars(named(&vars, |name| name.contains("norm")));
/// # assert_eq!(named(&vars, |name| name.contains("norm")).len(), 2);
/// # Ok(())
/// # }
/// ```
#[must_use]
pub fn named(vars: &VarMap, keep: impl Fn(&str) -> bool) -> Vec<Var> {
    Names::of(vars).into_vars().into_iter().filter(|(name, _)| keep(name)).map(|(_, var)| var).collect()
}
