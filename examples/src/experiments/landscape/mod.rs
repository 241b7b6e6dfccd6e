//! The loss around the minima of trained networks, side by side: the binary `landscape`.

mod draw;
mod log;
mod measure;
mod page;
mod write;

pub use draw::draw;
pub use log::{PointLog, digest_of};
pub use measure::{Landscapes, Network, Settings, count, measure, open_log};
pub use write::write;
