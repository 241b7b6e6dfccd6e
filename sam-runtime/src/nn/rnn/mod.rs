//! Recurrent layers.
//!
//! Over a sequence these are one operation: the product with all inputs is one, and backward passes through time need no graph.

mod gru;
mod lstm;
mod recurrent;

pub use candle_nn::rnn::*;

pub use gru::{GRU, gru};
pub use lstm::{LSTM, lstm};
