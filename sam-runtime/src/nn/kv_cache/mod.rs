//! `candle_nn::kv_cache`, whose results have a gradient: that of the keys and values that are appended. What is kept for the
//! next call is a constant.
//!
//! Where no input depends on a variable, these are candle's caches.

mod concat;
mod interleaved;
mod rotating;
mod scattered;
mod simple;

use candle_core::{Result, Tensor};
pub use candle_nn::kv_cache::*;

pub use self::concat::ConcatKvCache;
pub use self::interleaved::InterleavedKvCache;
pub use self::rotating::{RotatingCache, RotatingKvCache};
pub use self::scattered::{ScatteredCacheBuilder, ScatteredKvCache};
pub use self::simple::KvCache;

/// What is kept: candle takes contiguous tensors.
fn stored(x: &Tensor) -> Result<Tensor> {
    if x.track_op() { x.detach().contiguous() } else { Ok(x.clone()) }
}

/// All tokens that are kept, where those behind the first `before` are new: with their gradient, if they have one.
fn joined(all: &Tensor, new: &Tensor, dim: usize, before: usize) -> Result<Tensor> {
    match before {
        _ if !new.track_op() => Ok(all.clone()),
        0 => Ok(new.clone()),
        // A copy: the cache writes to its memory.
        _ => Tensor::cat(&[&all.narrow(dim, 0, before)?, new], dim),
    }
}
