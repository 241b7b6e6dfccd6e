//! `candle_nn::ops`, with a gradient everywhere.

pub use candle_nn::ops::*;

pub use super::dropout::Dropout;
pub use super::normalize::{layer_norm, rms_norm};
pub use super::softmax::{log_softmax, softmax, softmax_last_dim};
