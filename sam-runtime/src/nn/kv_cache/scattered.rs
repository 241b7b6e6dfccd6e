//! The cache that is written by indices.

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::kv_cache::{self as stock, IndicesAndMask};

/// `candle_nn::kv_cache::ScatteredKvCache`, which has a gradient only where no tokens but the new ones are kept, and is an
/// error otherwise.
#[derive(Debug, Clone)]
pub struct ScatteredKvCache(stock::ScatteredKvCache);

impl ScatteredKvCache {
    /// All keys and values that are kept, with these.
    ///
    /// # Errors
    /// If `k` or `v` depends on a variable, for which there is [`RotatingKvCache`](super::RotatingKvCache); if shapes or types differ from those before.
    pub fn append(&mut self, k: &Tensor, v: &Tensor, iam: &IndicesAndMask) -> Result<(Tensor, Tensor)> {
        // As many as are kept: they are returned as they are.
        let is_all = k.dim(2)? >= self.k().dim(2)?;
        if !is_all && (k.track_op() || v.track_op()) {
            candle_core::bail!(
                "a ScatteredKvCache has no gradient: expected keys and values that depend on no variable"
            )
        }
        self.0.append(k, v, iam)
    }

    /// All keys.
    #[must_use]
    pub fn k(&self) -> &Tensor {
        self.0.k()
    }

    /// All values.
    #[must_use]
    pub fn v(&self) -> &Tensor {
        self.0.v()
    }
}

/// `candle_nn::kv_cache::ScatteredCacheBuilder`, which makes caches of this module.
#[derive(Debug, Clone)]
pub struct ScatteredCacheBuilder(stock::ScatteredCacheBuilder);

impl ScatteredCacheBuilder {
    /// For so many sequences, of each of which the last `context` tokens are kept.
    ///
    /// # Errors
    /// Those of candle.
    pub fn new(batch_size: usize, context: usize, dtype: DType, device: &Device) -> Result<Self> {
        stock::ScatteredCacheBuilder::new(batch_size, context, dtype, device).map(Self)
    }

    /// A cache without tokens.
    ///
    /// # Errors
    /// If there is no memory.
    pub fn make_cache(&self, num_heads: usize, head_dim: usize) -> Result<ScatteredKvCache> {
        self.0.make_cache(num_heads, head_dim).map(ScatteredKvCache)
    }

    /// Tokens of each sequence so far.
    #[must_use]
    pub fn positions(&self) -> &[usize] {
        self.0.positions()
    }

    /// All sequences without tokens again.
    pub fn reset(&mut self) {
        self.0.reset();
    }

    /// The number of sequences.
    #[must_use]
    pub fn batch_size(&self) -> usize {
        self.0.batch_size()
    }

    /// One sequence without tokens again.
    pub fn reset_batch_index(&mut self, batch_index: usize) {
        self.0.reset_batch_index(batch_index);
    }

    /// Where the next `seq_len` tokens of the sequences of `batch_mask` are stored.
    ///
    /// # Errors
    /// Those of candle.
    pub fn indices_and_mask(&mut self, seq_len: usize, batch_mask: &[bool]) -> Result<IndicesAndMask> {
        self.0.indices_and_mask(seq_len, batch_mask)
    }

    /// Where the caches are.
    #[must_use]
    pub fn device(&self) -> &Device {
        self.0.device()
    }
}
