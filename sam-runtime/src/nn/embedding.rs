//! Embeddings.

pub use candle_nn::embedding::*;
