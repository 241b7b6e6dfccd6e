//! What everything else stands on. It uses candle, and nothing else of this crate.

pub(crate) mod atomic_file;
pub(crate) mod dtype;
pub(crate) mod error;
pub(crate) mod identity;
pub(crate) mod image_layout;
pub(crate) mod lock;
pub(crate) mod names;
pub(crate) mod norm_ball;
pub(crate) mod overlap;
pub(crate) mod pass;
pub(crate) mod rng;
pub(crate) mod storage;
pub(crate) mod var_list;
