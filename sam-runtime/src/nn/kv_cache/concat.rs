//! The cache that is concatenated anew.

use candle_core::{Result, Tensor};
use candle_nn::kv_cache as stock;

use super::joined;

/// `candle_nn::kv_cache::ConcatKvCache`, with a gradient.
#[derive(Debug, Clone)]
pub struct ConcatKvCache(stock::ConcatKvCache);

impl ConcatKvCache {
    /// Of tokens that are dimension `dim`.
    #[must_use]
    pub fn new(dim: usize) -> Self {
        Self(stock::ConcatKvCache::new(dim))
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

    /// The dimension of the tokens.
    #[must_use]
    pub fn dim(&self) -> usize {
        self.0.dim()
    }

    /// All keys and values, with these at the end.
    ///
    /// # Errors
    /// If shapes or types differ from those before.
    pub fn append(&mut self, k: &Tensor, v: &Tensor) -> Result<(Tensor, Tensor)> {
        let (dim, before) = (self.0.dim(), self.0.current_seq_len());
        let (all_k, all_v) = self.0.append(k, v)?;
        Ok((joined(&all_k, k, dim, before)?, joined(&all_v, v, dim, before)?))
    }

    /// Without tokens again.
    pub fn reset(&mut self) {
        self.0.reset();
    }

    /// All keys, as a constant.
    #[must_use]
    pub fn k(&self) -> Option<&Tensor> {
        self.0.k()
    }

    /// All values, as a constant.
    #[must_use]
    pub fn v(&self) -> Option<&Tensor> {
        self.0.v()
    }

    /// All keys.
    pub fn k_mut(&mut self) -> Option<&mut Tensor> {
        self.0.k_mut()
    }

    /// All values.
    pub fn v_mut(&mut self) -> Option<&mut Tensor> {
        self.0.v_mut()
    }

    /// All keys and values, as constants.
    #[must_use]
    pub fn into_inner(self) -> Option<(Tensor, Tensor)> {
        self.0.into_inner()
    }
}
