//! Rotary position embeddings.

pub use candle_nn::rotary_emb::*;
