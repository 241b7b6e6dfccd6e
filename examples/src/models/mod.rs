//! Networks for images: perceptrons, convolutional networks, every network of the paper's tables, vision transformers and mixers;
//! and a language model.

mod architecture;
mod efficientnet;
mod init;
pub mod layers;
mod model;
mod net;
pub mod params;
mod pyramid;
mod resnet;
mod shake_shake;
mod size;
mod small;
mod transformer;
mod wide;

pub use architecture::{Architecture, NAMES, Skip};
pub use init::Init;
pub use model::Model;
pub use size::Size;
