//! The optimizers under the names of `candle_nn`.

pub use candle_nn::optim::*;
