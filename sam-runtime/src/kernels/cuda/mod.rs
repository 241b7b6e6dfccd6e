//! The arithmetic on a CUDA device.
//!
//! `src` has the kernels, [`launch`] says which of them run, on how many blocks and with which arguments, and everything
//! else brings tensors to them. `emulator` runs kernels and launches on the processor.

#[cfg(feature = "cuda")]
mod context;
#[cfg(feature = "cudnn")]
mod cudnn;
#[cfg(all(test, target_os = "linux"))]
mod emulator;
#[cfg(feature = "cuda")]
mod im2col;
pub(crate) mod launch;
#[cfg(feature = "cuda")]
mod layers;
#[cfg(feature = "cuda")]
mod params;

#[cfg(feature = "cuda")]
pub(crate) use context::{is_home_of, token};
#[cfg(feature = "cuda")]
pub(crate) use layers::{
    BatchNormed, Normalisation, add, batch_norm, batch_norm_back, conv, conv_back, cross_entropy, cross_entropy_back,
    dropout, linear, linear_back, mean, mean_back, mixture, mixture_back, pool, pool_back, relu, relu_back, step, sum,
    times,
};
#[cfg(feature = "cuda")]
pub(crate) use params::{dot, mix, penalty, perturbed, sgd, skipped_step_count};
