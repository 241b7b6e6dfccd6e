//! Attention of sequences of different lengths, without kernels: `candle_nn::varlen_attention` with a gradient everywhere.

pub use super::attention::varlen::*;
