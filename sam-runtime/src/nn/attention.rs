//! Attention.

pub use candle_nn::attention::*;
