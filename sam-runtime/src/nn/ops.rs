//! `candle_nn::ops`, with a gradient everywhere.

pub use candle_nn::ops::*;

pub use super::attention::sdpa;
pub use super::dropout::Dropout;
