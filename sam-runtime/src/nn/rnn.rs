//! Recurrent layers.

pub use candle_nn::rnn::*;
