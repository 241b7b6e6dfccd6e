//! Layer normalization, and RMS normalization.

pub use candle_nn::layer_norm::*;
