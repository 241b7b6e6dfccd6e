//! Activation functions.

pub use candle_nn::activation::*;
