//! Networks for images: perceptrons, a small convolutional network, and every network of the paper's tables.

mod architecture;
mod init;
pub mod layers;
mod model;
mod net;
pub mod params;
mod pyramid;
mod resnet;
mod shake_shake;
mod small;
mod wide;

pub use architecture::{Architecture, NAMES, Skip};
pub use init::Init;
pub use model::Model;
