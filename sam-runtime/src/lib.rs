//! Sharpness-Aware Minimization for candle.
#![cfg_attr(docsrs, feature(doc_cfg))]

pub mod argument;
mod dual_norm;
mod error;
mod gradient;
mod kernels;
pub mod nn;
pub mod optim;
mod output;
mod pass;
mod sam;
mod shards;
mod stages;
mod weights;

pub use error::Error;
pub use output::{Aux, Output};
pub use pass::{Pass, plain};
pub use sam::Sam;
pub use sam_macros::sam;
pub use shards::{Shard, Shards, Split};
pub use stages::{Ascent, Descent, Perturbed};
