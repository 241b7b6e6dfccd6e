//! Caches of the last tokens.

use std::ops::Range;

use candle_core::{Device, Result, Tensor};
use candle_nn::kv_cache as stock;

/// `candle_nn::kv_cache::RotatingCache`, with a gradient.
#[derive(Debug, Clone)]
pub struct RotatingCache(stock::RotatingCache);

impl RotatingCache {
    /// Of the last `max_seq_len` tokens, which are dimension `dim`.
    #[must_use]
    pub fn new(dim: usize, max_seq_len: usize) -> Self {
        Self(stock::RotatingCache::new(dim, max_seq_len))
    }

    /// Where the next token is stored.
    #[must_use]
    pub fn offset(&self) -> usize {
        self.0.offset()
    }

    /// The dimension of the tokens.
    #[must_use]
    pub fn dim(&self) -> usize {
        self.0.dim()
    }

    /// Tokens so far, also those that are not kept.
    #[must_use]
    pub fn current_seq_len(&self) -> usize {
        self.0.current_seq_len()
    }

    /// Tokens that are kept.
    #[must_use]
    pub fn max_seq_len(&self) -> usize {
        self.0.max_seq_len()
    }

    /// The memory, as a constant.
    #[must_use]
    pub fn all_data(&self) -> &Option<Tensor> {
        self.0.all_data()
    }

    /// The tokens that are kept, as a constant, in the order of the memory.
    ///
    /// # Errors
    /// Those of candle.
    pub fn current_data(&self) -> Result<Option<Tensor>> {
        self.0.current_data()
    }

    /// Without tokens again.
    pub fn reset(&mut self) {
        self.0.reset();
    }

    /// The tokens that are kept, with these, in the order of the memory; these alone if they fill it.
    ///
    /// # Errors
    /// If shapes or types differ from those before.
    pub fn append(&mut self, src: &Tensor) -> Result<Tensor> {
        let (dim, first, max) = (self.0.dim(), self.0.offset(), self.0.max_seq_len());
        let all = self.0.append(&src.detach())?;
        if !src.track_op() {
            return Ok(all);
        }
        let (n, kept) = (src.dim(dim)?, all.dim(dim)?);
        if n >= max {
            return Ok(src.clone());
        }
        let behind = n.min(max - first);
        let part = |x: &Tensor, range: Range<usize>| x.narrow(dim, range.start, range.end - range.start);
        let parts = [
            part(src, behind..n)?,
            part(&all, n - behind..first)?,
            part(src, 0..behind)?,
            part(&all, first + behind..kept.max(first + behind))?,
        ];
        let parts: Vec<&Tensor> = parts.iter().filter(|part| part.elem_count() > 0).collect();
        if parts.is_empty() { Ok(all) } else { Tensor::cat(&parts, dim) }
    }

    /// The positions of the tokens that the next [`append`](Self::append), of so many, returns.
    #[must_use]
    pub fn positions(&self, seq_len: usize) -> Vec<usize> {
        self.0.positions(seq_len)
    }

    /// The mask for the tokens that the next [`append`](Self::append), of so many, returns: 1 where a key is hidden.
    ///
    /// # Errors
    /// Those of candle.
    pub fn attn_mask(&self, seq_len: usize, device: &Device) -> Result<Option<Tensor>> {
        self.0.attn_mask(seq_len, device)
    }
}

/// `candle_nn::kv_cache::RotatingKvCache`, with a gradient.
#[derive(Debug, Clone)]
pub struct RotatingKvCache {
    k: RotatingCache,
    v: RotatingCache,
}

impl RotatingKvCache {
    /// Of the last `max_seq_len` tokens, which are dimension `dim`.
    #[must_use]
    pub fn new(dim: usize, max_seq_len: usize) -> Self {
        Self { k: RotatingCache::new(dim, max_seq_len), v: RotatingCache::new(dim, max_seq_len) }
    }

    /// The keys.
    #[must_use]
    pub fn k_cache(&self) -> &RotatingCache {
        &self.k
    }

    /// The values.
    #[must_use]
    pub fn v_cache(&self) -> &RotatingCache {
        &self.v
    }

    /// The keys.
    pub fn k_cache_mut(&mut self) -> &mut RotatingCache {
        &mut self.k
    }

    /// The values.
    pub fn v_cache_mut(&mut self) -> &mut RotatingCache {
        &mut self.v
    }

    /// The keys that are kept, as a constant.
    ///
    /// # Errors
    /// Those of candle.
    pub fn k(&self) -> Result<Option<Tensor>> {
        self.k.current_data()
    }

    /// The values that are kept, as a constant.
    ///
    /// # Errors
    /// Those of candle.
    pub fn v(&self) -> Result<Option<Tensor>> {
        self.v.current_data()
    }

    /// [`RotatingCache::append`] for both.
    ///
    /// # Errors
    /// If shapes or types differ from those before.
    pub fn append(&mut self, k: &Tensor, v: &Tensor) -> Result<(Tensor, Tensor)> {
        Ok((self.k.append(k)?, self.v.append(v)?))
    }

    /// Where the next token is stored.
    #[must_use]
    pub fn offset(&self) -> usize {
        self.k.offset()
    }

    /// Tokens so far, also those that are not kept.
    #[must_use]
    pub fn current_seq_len(&self) -> usize {
        self.k.current_seq_len()
    }

    /// [`RotatingCache::attn_mask`]
    ///
    /// # Errors
    /// Those of candle.
    pub fn attn_mask(&self, seq_len: usize, device: &Device) -> Result<Option<Tensor>> {
        self.k.attn_mask(seq_len, device)
    }

    /// [`RotatingCache::positions`]
    #[must_use]
    pub fn positions(&self, seq_len: usize) -> Vec<usize> {
        self.k.positions(seq_len)
    }

    /// Without tokens again.
    pub fn reset(&mut self) {
        self.k.reset();
        self.v.reset();
    }
}
