//! The CUDA backend.
//!
//! `src` has the kernels. [`launch`] chooses kernels, grid sizes and arguments, without any CUDA. The other files apply
//! them to tensors, one file per operation as in `cpu`. `emulator` compiles kernels with the C++ compiler and tests
//! them on the CPU.

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
#[cfg(test)]
#[cfg(target_os = "linux")]
mod emulator;
#[cfg(feature = "cuda")]
mod im2col;
pub(crate) mod launch;
#[cfg(feature = "cuda")]
mod linear;
#[cfg(feature = "cuda")]
mod params;
#[cfg(feature = "cuda")]
mod pool;
#[cfg(feature = "cuda")]
mod weight_decay;

#[cfg(feature = "cuda")]
pub(crate) use self::{
    attention::{attention, attention_back},
    batch_norm::{BatchNormInput, StatisticsSource, batch_norm, batch_norm_back},
    branch_mix::{branch_mix, branch_mix_back},
    buffers::{is_home_of, token},
    conv::{conv, conv_back},
    cross_entropy::{cross_entropy, cross_entropy_back},
    dropout::dropout,
    elementwise::{add, relu, relu_back, sum},
    linear::{linear, linear_back},
    params::{dot, mix, perturbed, sgd, skipped_step_count},
    pool::{mean, mean_back, pool, pool_back, step},
    weight_decay::{penalty, times},
};
