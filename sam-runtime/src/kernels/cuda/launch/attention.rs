//! Launches of `attention.cu`.

use candle_core::Result;

use super::shared::{
    ATTENTION_ROWS, ATTENTION_SLICE, AttentionArgs, HeadArgs, MASK_ADDITIVE, MASK_BOOLEAN, MASK_NONE, MaskArgs, THREADS,
};
use super::{KernelArg, Launcher, bytes, to_u32};
use crate::kernels::shapes::{AttentionShape, HeadStrides};

/// The address of a tensor, and where the rows of its heads are.
pub(crate) type Rows = (u64, HeadStrides);

/// A mask in memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mask {
    pub(crate) address: u64,
    /// The code of a float type; None: u8.
    pub(crate) dtype: Option<u32>,
    /// Of batch, heads, queries and keys: 0 where it is the same for all.
    pub(crate) strides: [usize; 4],
}

/// Attention of tensors in this type.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Attention<'a> {
    pub(crate) shape: &'a AttentionShape,
    pub(crate) dtype: u32,
    pub(crate) q: Rows,
    pub(crate) k: Rows,
    pub(crate) v: Rows,
    pub(crate) mask: Option<Mask>,
}

/// What the backward pass reads: the gradient of the output and the addresses of what there is of each row.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Given {
    pub(crate) dy: Rows,
    pub(crate) logs: u64,
    pub(crate) deltas: u64,
}

impl Attention<'_> {
    /// The output and the logarithms of the rows' sums, in the accumulation dtype.
    pub(crate) fn forward(&self, launcher: &mut impl Launcher, y: Rows, logs: u64) -> Result<()> {
        let AttentionShape { batch, heads, queries, v_dim, .. } = *self.shape;
        let mut args = self.inputs()?;
        args.extend(self.rows(y));
        args.push(KernelArg::U64(logs));
        launcher.launch("attention", batch * heads * tiles(queries) * slices(v_dim), &args)
    }

    /// Σ dy y of each row.
    pub(crate) fn deltas(&self, launcher: &mut impl Launcher, y: u64, dy: Rows, deltas: u64) -> Result<()> {
        let AttentionShape { batch, heads, queries, .. } = *self.shape;
        let mut args = vec![KernelArg::U32(self.dtype), self.args()?, KernelArg::U64(y)];
        args.extend(self.rows(dy));
        args.push(KernelArg::U64(deltas));
        launcher.launch("attention_deltas", (batch * heads * queries).div_ceil(THREADS), &args)
    }

    /// The gradient of q.
    pub(crate) fn backward_of_queries(&self, launcher: &mut impl Launcher, given: &Given, dq: Rows) -> Result<()> {
        let AttentionShape { batch, heads, queries, dim, .. } = *self.shape;
        let mut args = self.given(given)?;
        args.extend(self.rows(dq));
        launcher.launch("attention_backward_queries", batch * heads * tiles(queries) * slices(dim), &args)
    }

    /// The gradients of k and v that are wanted.
    pub(crate) fn backward_of_keys(
        &self,
        launcher: &mut impl Launcher,
        given: &Given,
        [dk, dv]: [Option<Rows>; 2],
    ) -> Result<()> {
        let AttentionShape { batch, kv_heads, keys, dim, v_dim, .. } = *self.shape;
        let none = HeadStrides { first: 0, batch: 0, head: 0, token: 0 };
        let mut args = self.given(given)?;
        for to in [dk, dv] {
            args.extend(self.rows(to.unwrap_or((0, none))));
        }
        let blocks = batch * kv_heads * tiles(keys) * slices(dim.max(v_dim));
        launcher.launch("attention_backward_keys", blocks, &args)
    }

    /// The gradient of an additive mask of `n` elements.
    pub(crate) fn backward_of_mask(
        &self,
        launcher: &mut impl Launcher,
        given: &Given,
        gradient: u64,
        n: usize,
    ) -> Result<()> {
        let mut args = self.given(given)?;
        args.extend([KernelArg::U64(gradient), KernelArg::U64(n as u64)]);
        launcher.launch("attention_backward_mask", n.div_ceil(THREADS), &args)
    }

    fn args(&self) -> Result<KernelArg<'static>> {
        let shape = self.shape;
        Ok(KernelArg::Attention(AttentionArgs {
            batch: to_u32(shape.batch)?,
            heads: to_u32(shape.heads)?,
            kv_heads: to_u32(shape.kv_heads)?,
            queries: to_u32(shape.queries)?,
            keys: to_u32(shape.keys)?,
            dim: to_u32(shape.dim)?,
            v_dim: to_u32(shape.v_dim)?,
            causal: shape.causal.is_some().into(),
            // Further than any key is far enough.
            offset: shape.causal.map_or(0, |offset| offset.min(shape.keys.cast_signed()) as i64).cast_unsigned(),
            seed: shape.seed,
            scale: shape.scale,
            softcap: shape.softcap,
            drop: shape.drop_p.into(),
        }))
    }

    /// An address with its strides.
    fn rows(&self, (address, strides): Rows) -> [KernelArg<'static>; 2] {
        let HeadStrides { first, batch, head, token } = strides;
        let [batch, head, token] = [batch, head, token].map(|stride| stride as u64);
        let first = (first * bytes(self.dtype)) as u64;
        [KernelArg::U64(address + first), KernelArg::Heads(HeadArgs { batch, head, token })]
    }

    /// Type, sizes, mask, q, k and v.
    fn inputs(&self) -> Result<Vec<KernelArg<'static>>> {
        let none = Mask { address: 0, dtype: None, strides: [0; 4] };
        let Mask { address, dtype, strides } = self.mask.unwrap_or(none);
        let kind = match (self.mask, dtype) {
            (None, _) => MASK_NONE,
            (_, None) => MASK_BOOLEAN,
            (_, Some(_)) => MASK_ADDITIVE,
        };
        let [batch, head, query, key] = strides.map(|stride| stride as u64);
        let mask = MaskArgs { kind, dtype: dtype.unwrap_or(0), batch, head, query, key, values: address };
        let mut args = vec![KernelArg::U32(self.dtype), self.args()?, KernelArg::Mask(mask)];
        for rows in [self.q, self.k, self.v] {
            args.extend(self.rows(rows));
        }
        Ok(args)
    }

    fn given(&self, given: &Given) -> Result<Vec<KernelArg<'static>>> {
        let mut args = self.inputs()?;
        args.extend(self.rows(given.dy));
        args.extend([KernelArg::U64(given.logs), KernelArg::U64(given.deltas)]);
        Ok(args)
    }
}

fn tiles(rows: usize) -> usize {
    rows.div_ceil(ATTENTION_ROWS)
}

fn slices(dim: usize) -> usize {
    dim.div_ceil(ATTENTION_SLICE)
}
