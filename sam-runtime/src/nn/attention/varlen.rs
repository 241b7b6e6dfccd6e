//! `candle_nn::attention::varlen`, with a gradient.

use candle_core::{DType, Result, Tensor};

use super::fused::{Settings, attend};

/// Attention of sequences of different lengths, one behind the other: q (all queries, heads, dim), k and v (all keys, `kv_heads`,
/// dim), and the length of each sequence in u32. candle's where no input depends on a variable. Sequences without a query or a
/// key are left out.
///
/// `causal` is aligned with the last key of each sequence. A window hides keys that are further from the query than so many; one
/// to the left alone hides all on the right.
///
/// # Errors
/// If shapes, types or devices do not fit, or with `causal` a sequence has more queries than keys.
#[allow(clippy::too_many_arguments, reason = "candle's")]
pub fn flash_attn_varlen_unfused(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    alibi_slopes: Option<&Tensor>,
    seqlens_q: &Tensor,
    seqlens_k: &Tensor,
    max_seqlen_q: usize,
    max_seqlen_k: usize,
    softmax_scale: f32,
    causal: bool,
    window_size_left: Option<usize>,
    window_size_right: Option<usize>,
) -> Result<Tensor> {
    let packed = Packed { q, k, v, alibi_slopes, seqlens_q, seqlens_k };
    if packed.is_tracked() {
        return attend_each(&packed, softmax_scale, causal, [window_size_left, window_size_right]);
    }
    candle_nn::attention::flash_attn_varlen_unfused(
        q,
        k,
        v,
        alibi_slopes,
        seqlens_q,
        seqlens_k,
        max_seqlen_q,
        max_seqlen_k,
        softmax_scale,
        causal,
        window_size_left,
        window_size_right,
    )
}

/// Sequences one behind the other.
pub(super) struct Packed<'a> {
    pub(super) q: &'a Tensor,
    pub(super) k: &'a Tensor,
    pub(super) v: &'a Tensor,
    pub(super) alibi_slopes: Option<&'a Tensor>,
    pub(super) seqlens_q: &'a Tensor,
    pub(super) seqlens_k: &'a Tensor,
}

impl Packed<'_> {
    pub(super) fn is_tracked(&self) -> bool {
        [Some(self.q), Some(self.k), Some(self.v), self.alibi_slopes].into_iter().flatten().any(Tensor::track_op)
    }
}

/// One sequence after the other.
pub(super) fn attend_each(packed: &Packed<'_>, scale: f32, causal: bool, window: [Option<usize>; 2]) -> Result<Tensor> {
    let Packed { q, k, v, alibi_slopes, seqlens_q, seqlens_k } = *packed;
    let ((all_queries, heads, _), (all_keys, ..), v_dim) = (q.dims3()?, k.dims3()?, v.dims3()?.2);
    let (of_q, of_k) = (seqlens_q.to_vec1::<u32>()?, seqlens_k.to_vec1::<u32>()?);
    let total = |lengths: &[u32]| lengths.iter().map(|length| *length as usize).sum::<usize>();
    if of_q.len() != of_k.len() || total(&of_q) != all_queries || total(&of_k) != all_keys {
        candle_core::bail!("expected lengths of {all_queries} queries and {all_keys} keys, found {of_q:?} and {of_k:?}")
    }
    let slopes = match alibi_slopes {
        Some(slopes) if slopes.dims() == [heads] => Some(slopes.reshape((heads, 1, 1))?),
        Some(slopes) => candle_core::bail!("expected {heads} slopes, found {:?}", slopes.dims()),
        None => None,
    };
    let (mut outputs, mut first_query, mut first_key) = (Vec::new(), 0, 0);
    for (queries, keys) in of_q.into_iter().zip(of_k).map(|(queries, keys)| (queries as usize, keys as usize)) {
        let range = (first_query, first_key);
        (first_query, first_key) = (first_query + queries, first_key + keys);
        if queries == 0 || keys == 0 {
            continue;
        }
        if causal && keys < queries {
            candle_core::bail!("expected at least as many keys as queries, found {keys} and {queries}")
        }
        let part = |x: &Tensor, first: usize, n: usize| x.narrow(0, first, n)?.transpose(0, 1)?.unsqueeze(0);
        let offset = offset(queries, keys);
        let bias = slopes.as_ref().map(|slopes| alibi(slopes, queries, keys, offset, causal)).transpose()?;
        let mask = match (window_mask(window, queries, keys, q)?, bias) {
            (Some(window), Some(bias)) => Some(bias.broadcast_add(&window.to_dtype(bias.dtype())?)?),
            (window, bias) => window.or(bias),
        };
        let causal = causal.then_some(offset);
        let settings = Settings { mask, causal, softcap: 0.0, scale: Some(scale.into()), dropout: None };
        let (k, v) = (part(k, range.1, keys)?, part(v, range.1, keys)?);
        outputs.push(attend(&part(q, range.0, queries)?, &k, &v, &settings)?.squeeze(0)?.transpose(0, 1)?);
    }
    if outputs.is_empty() {
        return Tensor::zeros((0, heads, v_dim), q.dtype(), q.device());
    }
    Tensor::cat(&outputs, 0)
}

/// -∞ where a key is outside of the window, (queries, keys).
fn window_mask(window: [Option<usize>; 2], queries: usize, keys: usize, like: &Tensor) -> Result<Option<Tensor>> {
    let (left, right) = match window {
        [None, None] => return Ok(None),
        [Some(left), right] => (left, right.unwrap_or(0)),
        [None, Some(_)] => candle_core::bail!("expected a window to the left with the one to the right"),
    };
    let hidden = |i: usize, j: usize| {
        let key = i.cast_signed() + offset(queries, keys);
        let seen = key - j.cast_signed() <= left.cast_signed() && j.cast_signed() - key <= right.cast_signed();
        if seen { 0f32 } else { f32::NEG_INFINITY }
    };
    let values: Vec<f32> = (0..queries).flat_map(|i| (0..keys).map(move |j| hidden(i, j))).collect();
    Tensor::from_vec(values, (queries, keys), like.device())?.to_dtype(DType::F32).map(Some)
}

/// From a query's index to that of the last key that it sees.
pub(super) fn offset(queries: usize, keys: usize) -> isize {
    keys.cast_signed() - queries.cast_signed()
}

/// `ALiBi`'s bias, (heads, queries, keys), of slopes (heads, 1, 1).
pub(super) fn alibi(slopes: &Tensor, queries: usize, keys: usize, offset: isize, causal: bool) -> Result<Tensor> {
    let distance = |i: usize, j: usize| {
        let distance = (i.cast_signed() + offset - j.cast_signed()) as f32;
        if causal { -distance.max(0.0) } else { -distance.abs() }
    };
    let biases: Vec<f32> = (0..queries).flat_map(|i| (0..keys).map(move |j| distance(i, j))).collect();
    slopes.broadcast_mul(&Tensor::from_vec(biases, (1, queries, keys), slopes.device())?)
}
