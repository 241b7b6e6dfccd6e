//! `candle_nn::ops`, with a gradient everywhere.

pub use candle_nn::ops::*;

pub use super::activation::{
    elu, gelu, gelu_erf, glu, hard_sigmoid, hard_swish, leaky_relu, mish, relu2, relu6, selu, sigmoid, silu, swiglu,
    tanh,
};
pub use super::attention::sdpa;
pub use super::dropout::{Dropout, dropout};
pub use super::elementwise::relu;
pub use super::normalize::{layer_norm, rms_norm};
pub use super::softmax::{log_softmax, softmax, softmax_last_dim};
