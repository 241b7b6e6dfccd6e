//! The cache with memory for more tokens than there are.

use candle_core::{Result, Tensor};
use candle_nn::kv_cache::{self as stock, Cache};

use super::{joined, stored};

/// `candle_nn::kv_cache::KvCache`, with a gradient.
#[derive(Debug, Clone)]
pub struct KvCache(stock::KvCache);

impl KvCache {
    /// Of up to `max_seq_len` tokens at first, which are dimension `dim`.
    #[must_use]
    pub fn new(dim: usize, max_seq_len: usize) -> Self {
        Self(stock::KvCache::new(dim, max_seq_len))
    }

    /// The keys.
    #[must_use]
    pub fn k_cache(&self) -> &Cache {
        self.0.k_cache()
    }

    /// The values.
    #[must_use]
    pub fn v_cache(&self) -> &Cache {
        self.0.v_cache()
    }

    /// The keys.
    pub fn k_cache_mut(&mut self) -> &mut Cache {
        self.0.k_cache_mut()
    }

    /// The values.
    pub fn v_cache_mut(&mut self) -> &mut Cache {
        self.0.v_cache_mut()
    }

    /// All keys, as a constant.
    ///
    /// # Errors
    /// Those of candle.
    pub fn k(&self) -> Result<Option<Tensor>> {
        self.0.k()
    }

    /// All values, as a constant.
    ///
    /// # Errors
    /// Those of candle.
    pub fn v(&self) -> Result<Option<Tensor>> {
        self.0.v()
    }

    /// All keys and values, with these at the end.
    ///
    /// # Errors
    /// If shapes or types differ from those before.
    pub fn append(&mut self, k: &Tensor, v: &Tensor) -> Result<(Tensor, Tensor)> {
        let dims = [self.0.k_cache().dim(), self.0.v_cache().dim()];
        let before = [self.0.k_cache().current_seq_len(), self.0.v_cache().current_seq_len()];
        let (all_k, all_v) = self.0.append(&stored(k)?, &stored(v)?)?;
        Ok((joined(&all_k, k, dims[0], before[0])?, joined(&all_v, v, dims[1], before[1])?))
    }

    /// Tokens so far.
    #[must_use]
    pub fn current_seq_len(&self) -> usize {
        self.0.current_seq_len()
    }

    /// Without tokens again.
    pub fn reset(&mut self) {
        self.0.reset();
    }
}
