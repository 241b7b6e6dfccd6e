//! Layers that know which pass is running, and that train fast on the CPU: all of `candle_nn`, trainable.
//!
//! A loss that is built from these needs neither `vars` nor `replay`: in the second pass batch normalization leaves
//! its running statistics alone, and dropout draws the masks of the first. Both know the step they belong to, so other
//! trainings and evaluation may use other threads, or the same layers, between the passes. Threads that the loss function uses
//! itself have to enter its [`Context`](crate::Context).
//!
//! Names, arguments, variables and their initial values are those of `candle_nn`, so checkpoints are compatible in both
//! directions. On the CPU and on CUDA each layer is one operation with its own backward pass, bitwise identical for any
//! number of threads; on other devices it is candle's. On CUDA images may be [channels last](channels_last).
//!
//! # Precision
//!
//! Keep variables in f32. For bf16, convert the activations: [`to_dtype`] at the input of the network, and again in f32 before the
//! loss. On CUDA the layers then compute in bf16 with weights in f32, whose gradients are in f32 too; on the CPU they compute
//! bf16 and f16 in f32. Variables in bf16 train badly with any optimizer: a step, and w + ε̂, are often smaller than
//! half the distance to the next bf16 number, and round to w.
//!
//! # In place of `candle_nn`
//!
//! This module has every public name of `candle_nn` 0.11. `use sam_runtime::nn as candle_nn;` serves a model file that was
//! written for that crate. Some of candle's operations are for inference: they are applied with `apply_op*_no_bwd`, and whatever is
//! below them gets no gradient, silently: `LayerNorm` with a bias, `RmsNorm`, `ops::softmax_last_dim`, `rotary_emb::rope`, `ops::sdpa`,
//! `kv_cache::KvCache`. Others have a wrong gradient, or a slow one. Those are this crate's own here; what there is nothing to add to
//! is re-exported. `docs/guide.md` has the list.
//!
//! # Gradients
//!
//! candle's backward pass adds each gradient to a tensor of zeros. Layers propagate theirs to the layer before without that, and
//! `backward_step` of [`Sgd`](crate::optim::Sgd) and [`AdamW`] takes those of the variables as they are.
//! Operations of candle can be used between, before and after layers. If there are none, [`backward`] and the passes of a
//! [`Sam`](crate::Sam) do without candle's backward pass: [`add`], [`relu`], [`to_dtype`] and [`l2_penalty`] are there so that a
//! whole loss can consist of layers.

pub mod activation;
pub mod attention;
pub mod batch_norm;
pub mod conv;
pub mod cpu_flash_attention;
mod dropout;
mod elementwise;
mod elementwise_loss;
pub mod embedding;
pub mod group_norm;
pub mod kv_cache;
pub mod layer_norm;
pub mod linear;
pub mod loss;
mod normalize;
pub mod ops;
pub mod optim;
mod pool;
mod rng_stream;
pub mod rnn;
pub mod rotary_emb;
mod shake;
mod softmax;
mod upsample;
pub mod varlen_attention;
mod weight_decay;

pub use crate::autograd::gradient::backward;
pub use activation::{
    Activation, PReLU, elu, gelu, gelu_erf, glu, hard_sigmoid, hard_swish, leaky_relu, mish, prelu, relu2, relu6, selu,
    sigmoid, silu, swiglu, tanh,
};
pub use attention::{multi_head_attention, scaled_dot_product_attention, self_attention};
pub use batch_norm::{BatchNorm, BatchNormConfig, batch_norm};
use candle_core::{Result, Tensor};
// What this crate has nothing to add to; the modules and names above and below shadow candle's.
pub use candle_nn::*;
pub use conv::{
    Conv1d, Conv1dConfig, Conv2d, Conv2dConfig, ConvTranspose1d, ConvTranspose1dConfig, ConvTranspose2d,
    ConvTranspose2dConfig, conv_transpose1d, conv_transpose1d_no_bias, conv_transpose2d, conv_transpose2d_no_bias,
    conv1d, conv1d_no_bias, conv2d, conv2d_no_bias,
};
pub use dropout::Dropout;
pub use elementwise::{add, relu, to_dtype};
pub use embedding::{Embedding, embedding};
pub use group_norm::{GroupNorm, group_norm};
pub use layer_norm::{LayerNorm, LayerNormConfig, RmsNorm, layer_norm, layer_norm_no_bias, rms_norm};
pub use linear::{Linear, linear, linear_b, linear_no_bias};
pub use loss::{
    cross_entropy, cross_entropy_ignoring, cross_entropy_per_example, cross_entropy_with_label_smoothing,
    cross_entropy_with_probs,
};
pub use optim::{AdamW, Optimizer, ParamsAdamW, SGD};
pub use pool::{avg_pool2d, global_avg_pool2d, max_pool2d};
pub use rng_stream::RngStream;
pub use rnn::{GRU, GRUConfig, LSTM, LSTMConfig, RNN, gru, lstm};
pub use shake::{ShakeDrop, ShakeShake};
pub use upsample::{upsample_bilinear2d, upsample_bilinear2d_with_scale, upsample_nearest1d, upsample_nearest2d};
pub use weight_decay::l2_penalty;

use crate::core::image_layout::ImageLayout;

/// The same images with the channels of each pixel side by side in memory, as PyTorch's `channels_last` has it: the shape
/// stays (images, channels, height, width), and everything can be done with them that could be done before.
///
/// On CUDA the layers of this module take such images and return such images, in the forward and the backward pass, so
/// that it is enough to convert the batch; images of one channel, which have both formats, after their first convolution. cuDNN
/// multiplies them on tensor cores (bf16, f16, TF32) directly, and has to transpose others first. On other devices each
/// layer copies them into candle's order.
///
/// # Errors
/// If `x` has other than four dimensions.
///
/// ```
/// use candle_core::{DType, Device, Result, Tensor};
/// use sam_runtime::nn;
///
/// # fn main() -> Result<()> {
/// let images = Tensor::zeros((8, 3, 32, 32), DType::F32, &Device::Cpu)?;
/// let images = nn::channels_last(&images)?;
/// assert_eq!((images.dims(), images.stride()), (&[8, 3, 32, 32][..], &[3072, 1, 96, 3][..]));
/// # Ok(())
/// # }
/// ```
pub fn channels_last(x: &Tensor) -> Result<Tensor> {
    x.dims4()?;
    ImageLayout::Nhwc.arrange(x)
}
