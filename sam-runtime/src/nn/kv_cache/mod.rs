//! `candle_nn::kv_cache`, whose results have a gradient: that of the keys and values that are appended. What is kept for the
//! next call is a constant.
//!
//! Where no input depends on a variable, these are candle's caches.

use std::ops::Range;

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::kv_cache as stock;
pub use candle_nn::kv_cache::*;

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

/// `candle_nn::kv_cache::ScatteredKvCache`, which has a gradient only where no tokens but the new ones are kept, and is an
/// error otherwise.
#[derive(Debug, Clone)]
pub struct ScatteredKvCache(stock::ScatteredKvCache);

impl ScatteredKvCache {
    /// All keys and values that are kept, with these.
    ///
    /// # Errors
    /// If `k` or `v` depends on a variable, for which there is [`RotatingKvCache`]; if shapes or types differ from those before.
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
