//! The CUDA backend.
//!
//! `src` has the kernels. [`launch`] chooses kernels, grid sizes and arguments, without any CUDA. The other files apply
//! them to tensors, one file per operation as in `cpu`. `emulator` compiles kernels with the C++ compiler and tests
//! them on the CPU.

#[cfg(feature = "cuda")]
mod activation;
#[cfg(feature = "cuda")]
mod attention;
#[cfg(feature = "cuda")]
mod batch_norm;
#[cfg(feature = "cuda")]
mod branch_mix;
#[cfg(feature = "cuda")]
mod buffers;
#[cfg(feature = "cuda")]
mod context;
#[cfg(feature = "cuda")]
mod conv;
#[cfg(feature = "cuda")]
mod cross_entropy;
#[cfg(feature = "cudnn")]
mod cudnn;
#[cfg(feature = "cuda")]
mod dropout;
#[cfg(feature = "cuda")]
mod elementwise;
#[cfg(feature = "cuda")]
mod embedding;
#[cfg(test)]
#[cfg(target_os = "linux")]
mod emulator;
#[cfg(feature = "cuda")]
mod group_norm;
#[cfg(feature = "cuda")]
mod im2col;
pub(crate) mod launch;
#[cfg(feature = "cuda")]
mod layer_norm;
#[cfg(feature = "cuda")]
mod linear;
#[cfg(feature = "cuda")]
mod optim;
#[cfg(feature = "cuda")]
mod params;
#[cfg(feature = "cuda")]
mod pool;
#[cfg(feature = "cuda")]
mod rnn;
#[cfg(feature = "cuda")]
mod rotary_emb;
#[cfg(feature = "cuda")]
mod softmax_dim;
#[cfg(feature = "cuda")]
mod upsample;
#[cfg(feature = "cuda")]
mod weight_decay;

#[cfg(feature = "cuda")]
pub(crate) use self::{
    activation::{activate, activate_back, gate, gate_back},
    attention::{attention, attention_back},
    batch_norm::{BatchNormInput, StatisticsSource, batch_norm, batch_norm_back},
    branch_mix::{branch_mix, branch_mix_back},
    buffers::{copy, is_home_of, token},
    conv::{as_image, as_images, conv, conv_back, conv_transpose, conv_transpose_back, in_shapes_of},
    cross_entropy::{cross_entropy, cross_entropy_back},
    dropout::dropout,
    elementwise::{add, relu, relu_back, sum},
    embedding::{embedding, embedding_back},
    group_norm::{group_norm, group_norm_back},
    layer_norm::{layer_norm, layer_norm_back},
    linear::{linear, linear_back},
    optim::{adamw, clamp, ema, square},
    params::{dot, mix, perturbed, sgd, skipped_step_count},
    pool::{mean, mean_back, pool, pool_back, step},
    rnn::{rnn, rnn_back},
    rotary_emb::{rotate, rotate_back},
    softmax_dim::{softmax, softmax_back},
    upsample::{upsample, upsample_back},
    weight_decay::{penalty, times},
};
