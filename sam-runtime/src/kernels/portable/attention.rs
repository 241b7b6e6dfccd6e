//! Scaled dot product attention.

use candle_core::{D, DType, Result, Tensor};

use crate::kernels::shapes::AttentionShape;

/// Of (batch, heads, tokens, dim), with a mask that can be broadcast to the scores: (batch, heads, queries, `v_dim`). `drop` is
/// applied to the weights, in place of the shape's dropout.
pub(crate) fn attention(
    shape: &AttentionShape,
    [q, k, v]: [&Tensor; 3],
    mask: Option<&Tensor>,
    drop: impl FnOnce(Tensor) -> Result<Tensor>,
) -> Result<Tensor> {
    let AttentionShape { batch, heads, kv_heads, queries, keys, scale, softcap, causal, .. } = *shape;
    let for_all = |x: &Tensor| {
        let dim = x.dim(D::Minus1)?;
        let x = x.unsqueeze(2)?.broadcast_as((batch, kv_heads, heads / kv_heads, keys, dim))?;
        x.reshape((batch, heads, keys, dim))?.contiguous()
    };
    let mut scores = (q.contiguous()?.matmul(&for_all(k)?.t()?.contiguous()?)? * scale)?;
    if softcap != 0.0 {
        scores = ((scores / softcap)?.tanh()? * softcap)?;
    }
    let hidden = |seen: &Tensor, scores: &Tensor| {
        let never = Tensor::full(f32::NEG_INFINITY, (), q.device())?.to_dtype(scores.dtype())?;
        seen.broadcast_as(scores.shape())?.where_cond(scores, &never.broadcast_as(scores.shape())?)
    };
    if let Some(mask) = mask {
        scores = if mask.dtype() == DType::U8 { hidden(mask, &scores)? } else { scores.broadcast_add(mask)? };
    }
    if let Some(offset) = causal {
        let sees = |i: usize| (0..keys).map(move |j| u8::from(j < (i + 1).saturating_add_signed(offset)));
        let seen: Vec<u8> = (0..queries).flat_map(sees).collect();
        scores = hidden(&Tensor::from_vec(seen, (queries, keys), q.device())?, &scores)?;
    }
    drop(candle_nn::ops::softmax(&scores, D::Minus1)?)?.matmul(&for_all(v)?)
}
