//! The cache of keys and values in one tensor.

use candle_core::{Result, Tensor};
use candle_nn::kv_cache as stock;

use super::joined;

/// `candle_nn::kv_cache::InterleavedKvCache`, with a gradient.
#[derive(Debug, Clone)]
pub struct InterleavedKvCache(stock::InterleavedKvCache);

impl InterleavedKvCache {
    /// Of heads of this dimension.
    #[must_use]
    pub fn new(head_dim: usize) -> Self {
        Self(stock::InterleavedKvCache::new(head_dim))
    }

    /// Tokens so far.
    #[must_use]
    pub fn current_seq_len(&self) -> usize {
        self.0.current_seq_len()
    }

    /// Whether there are no tokens.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// All keys and values, with these, (1, heads, tokens, dim), at the end: (all tokens, heads, 2 dim).
    ///
    /// # Errors
    /// If shapes or types differ from those before.
    pub fn append(&mut self, k: &Tensor, v: &Tensor) -> Result<Tensor> {
        let before = self.0.current_seq_len();
        let all = self.0.append(k, v)?;
        if !k.track_op() && !v.track_op() {
            return Ok(all);
        }
        let in_order = |x: &Tensor| x.squeeze(0)?.transpose(0, 1);
        joined(&all, &Tensor::cat(&[in_order(k)?, in_order(v)?], 2)?, 0, before)
    }

    /// All keys and values, as a constant.
    #[must_use]
    pub fn kv(&self) -> Option<&Tensor> {
        self.0.kv()
    }

    /// The dimension of the heads.
    #[must_use]
    pub fn head_dim(&self) -> usize {
        self.0.head_dim()
    }

    /// Without tokens again.
    pub fn reset(&mut self) {
        self.0.reset();
    }
}
