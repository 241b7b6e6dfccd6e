//! All arithmetic. [`dispatch`] picks the backend: `cpu`, `cuda`, or [`portable`] in candle's own operations.

pub(crate) mod activation;
pub(crate) mod cpu;
#[cfg(any(test, feature = "cuda"))]
pub(crate) mod cuda;
mod dispatch;
pub(crate) mod elementwise_loss;
pub(crate) mod indices;
mod operands;
pub(crate) mod portable;
pub(crate) mod prepare;
mod rounding;
pub(crate) mod shapes;
pub(crate) mod vars;
pub(crate) mod weighted_mean;

pub use dispatch::skipped_step_count;
pub(crate) use dispatch::{
    adamw, all_finite, check_addable, check_finite, clamped, cuda_token, dot, ema, has_fused_kernels, mix, mix_all,
    norm_of, number, perturbed, read, residual, scaled, sgd, square, sum, total_norm,
};
pub(crate) use operands::{AdamWMove, AdamWStep, Move, PerturbTarget, Scale, SgdStep};
