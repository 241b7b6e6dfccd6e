//! Layers that know which pass is running, and that train at the pace of the CPU: drop-in for those of `candle_nn`.
//!
//! A loss that is built from these needs neither `vars` nor `replay`: in the second pass the batch normalisation leaves
//! its running statistics alone, and the dropout draws the masks of the first.
//!
//! Names, arguments, variables and their initial values are those of `candle_nn`, so checkpoints go both ways. On the CPU
//! and on CUDA each layer is one operation with a backward pass of its own, in the same bits for any number of threads;
//! elsewhere it is candle's. On CUDA the input may be in bf16 where the weights are in f32.
//!
//! candle's backward pass adds each gradient to a tensor of zeros. Layers hand theirs to the layer before without that, and
//! [`Sgd::backward_step`](crate::optim::Sgd) takes those of the variables as they are. Everything of candle's goes between,
//! before and behind.

mod batch_norm;
mod conv;
mod draws;
mod dropout;
mod elementwise;
mod layer;
mod linear;
mod loss;
mod penalty;
mod pool;
mod shake;

pub use batch_norm::{BatchNorm, batch_norm};
use candle_core::{DType, Result, Tensor};
pub use candle_nn::{BatchNormConfig, Conv2dConfig};
pub use conv::{Conv2d, conv2d, conv2d_no_bias};
pub use draws::Draws;
pub use dropout::Dropout;
#[cfg(test)]
pub(crate) use dropout::Mask;
pub use elementwise::{add, relu};
pub use linear::{Linear, linear, linear_no_bias};
pub use loss::{cross_entropy, cross_entropy_smoothed, cross_entropy_soft};
pub use penalty::{backward, l2_penalty};
pub use pool::{avg_pool2d, global_avg_pool2d, max_pool2d};
pub use shake::{Shake, ShakeDrop};

/// Contiguous, and on the CPU bf16 and f16 as f32, in which its kernels compute.
fn ready(x: &Tensor) -> Result<Tensor> {
    let wide = if x.device().is_cpu() && matches!(x.dtype(), DType::BF16 | DType::F16) {
        x.to_dtype(DType::F32)?
    } else {
        x.clone()
    };
    wide.contiguous()
}

/// A layer's weights, ready for an input: on the CPU in the type that it is computed in. On CUDA kernels read them in
/// their own, so that weights in f32 train a network that computes in bf16.
fn ready_for(x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    if x.device().is_cpu() { weight.to_dtype(ready(x)?.dtype())?.contiguous() } else { weight.contiguous() }
}
