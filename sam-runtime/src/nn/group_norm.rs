//! Group normalization.

pub use candle_nn::group_norm::*;
