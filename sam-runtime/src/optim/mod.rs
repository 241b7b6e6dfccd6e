//! Optimizers, and what else belongs to a training loop: `candle_nn`'s interface, PyTorch's formulas.
//!
//! Any other optimizer of candle works with SAM as well. Two optimizers that step one after the other, each with a part of
//! the variables, should take their gradients from one backward pass: `let grads = loss.backward()?`, then `step(&grads)` for
//! each. If each calls `backward_step(&loss)` on a plain loss, the second backward pass runs after the first optimizer has
//! moved its variables, and gradients that depend on their values are those at the moved ones, as in candle in general. (The
//! gradient of a sharpness-aware loss is fixed when the loss is returned, and does not change.)

mod adamw;
mod clip;
mod ema;
mod grad_scaler;
mod gradients;
mod group;
mod lr_schedule;
mod momentum;
mod sgd;
pub(crate) mod state_file;

pub use adamw::AdamW;
pub use candle_nn::{Optimizer, ParamsAdamW};
pub use clip::{clip_grad_norm, clip_grad_value};
pub use ema::Ema;
pub use grad_scaler::GradScaler;
pub use group::{ParamGroup, decay_groups};
pub use lr_schedule::{LrSchedule, LrScheduler, OneCycle};
pub use momentum::MomentumBuffers;
pub use sgd::{ParamsSgd, Sgd};
