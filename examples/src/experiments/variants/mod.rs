//! All variants of SAM compared on one network, with the same batches and wrong labels: the binary `variants`.

pub mod chart;
mod list;
pub mod report;
pub mod run;

pub use list::{Setting, Variant, variants};
