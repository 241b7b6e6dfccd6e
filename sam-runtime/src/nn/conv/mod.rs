//! Convolutions of images and of sequences, and transposed ones.

mod conv1d;
mod conv2d;
mod convolve;
mod transpose;
mod transpose1d;
mod transpose2d;

pub use candle_nn::conv::*;

pub use conv1d::{Conv1d, conv1d, conv1d_no_bias};
pub use conv2d::{Conv2d, conv2d, conv2d_no_bias};
pub use transpose1d::{ConvTranspose1d, conv_transpose1d, conv_transpose1d_no_bias};
pub use transpose2d::{ConvTranspose2d, conv_transpose2d, conv_transpose2d_no_bias};
