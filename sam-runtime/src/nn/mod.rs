//! Layers with state or randomness that know which pass is running: drop-in for those of `candle_nn`.
//!
//! A loss that is built from these needs neither `vars` nor `replay`: in the second pass the batch normalisation leaves
//! its running statistics alone, and the dropout draws the masks of the first.

mod batch_norm;
mod conv;
mod dropout;

pub use batch_norm::{BatchNorm, batch_norm};
pub use candle_nn::{BatchNormConfig, Conv2dConfig};
pub use conv::{Conv2d, conv2d, conv2d_no_bias};
pub use dropout::Dropout;
