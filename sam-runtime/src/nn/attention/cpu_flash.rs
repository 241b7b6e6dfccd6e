//! `candle_nn::attention::cpu_flash`, with a gradient: candle's functions where no input depends on a variable, and else
//! [`scaled_dot_product_attention`](super::scaled_dot_product_attention)'s operation.

use candle_core::{DType, Result, Tensor, WithDType};
use candle_nn::attention::AttnMask;

use super::fused::{Settings, attend};
use super::varlen::{alibi, offset};

/// `candle_nn::attention::flash_attn`, with a gradient, and on every device: of q (batch, queries, heads, dim), k and v
/// (batch, keys, `kv_heads`, dim) the result is (batch, heads, queries, dim), in f32 for a batch of one.
///
/// `max_bias` is that of `ALiBi`; with a mask, the mask is multiplied by each head's slope instead. `softcap` c makes scores s
/// c tanh(s / c).
///
/// # Errors
/// If shapes, types or devices do not fit.
pub fn flash_attn<T: WithDType + num_traits::Float>(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    softmax_scale: f32,
    attn_mask: AttnMask,
    max_bias: Option<f32>,
    softcap: Option<f32>,
) -> Result<Tensor> {
    let of_mask = match &attn_mask {
        AttnMask::Mask(mask) => mask.track_op(),
        _ => false,
    };
    let tracked = of_mask || [q, k, v].iter().any(|x| x.track_op());
    if !tracked && q.device().is_cpu() && candle_can(q, k, &attn_mask, softcap) {
        return candle_nn::attention::flash_attn::<T>(q, k, v, softmax_scale, attn_mask, max_bias, softcap);
    }
    flash(q, k, v, softmax_scale, &attn_mask, max_bias, softcap)
}

/// Whether candle has this, and does what its documentation says: for more than one sample it takes the causal mask to be
/// aligned with the last key.
fn candle_can(q: &Tensor, k: &Tensor, mask: &AttnMask, softcap: Option<f32>) -> bool {
    let (&[batch, queries, ..], &[_, keys, ..]) = (q.dims(), k.dims()) else { return true };
    let fits = match mask {
        AttnMask::None => true,
        AttnMask::Causal { kv_offset } => kv_offset + queries == keys,
        AttnMask::Mask(_) => false,
    };
    batch == 1 || softcap.is_none() && matches!(q.dtype(), DType::F32 | DType::F16) && fits
}

fn flash(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    softmax_scale: f32,
    attn_mask: &AttnMask,
    max_bias: Option<f32>,
    softcap: Option<f32>,
) -> Result<Tensor> {
    let ((batch, queries, heads, _), keys) = (q.dims4()?, k.dims4()?.1);
    let mut settings = Settings::new(attn_mask, None, Some(softmax_scale.into()));
    settings.softcap = softcap.unwrap_or(0.0).into();
    if let Some(max_bias) = max_bias.filter(|max_bias| *max_bias > 0.0) {
        let slopes = slopes(heads, max_bias, q)?;
        settings.mask = match (settings.mask, settings.causal) {
            (Some(mask), _) => {
                let of_floats = if mask.dtype().is_float() { mask.to_dtype(DType::F32)? } else { mask };
                Some(of_floats.broadcast_mul(&slopes)?)
            }
            (None, Some(offset)) => Some(alibi(&slopes, queries, keys, offset, true)?),
            (None, None) if batch > 1 => Some(alibi(&slopes, queries, keys, offset(queries, keys), false)?),
            // candle has no bias there for a batch of one.
            (None, None) => None,
        };
    }
    let y = attend(&q.transpose(1, 2)?, &k.transpose(1, 2)?, &v.transpose(1, 2)?, &settings)?;
    if batch == 1 { y.to_dtype(DType::F32) } else { Ok(y) }
}

/// `ALiBi`'s factor of each head, (heads, 1, 1).
fn slopes(heads: usize, max_bias: f32, like: &Tensor) -> Result<Tensor> {
    let all = heads.next_power_of_two() as f32;
    let slopes: Vec<f32> = (1..=heads).map(|head| 2f32.powf(-max_bias * head as f32 / all)).collect();
    Tensor::from_vec(slopes, (heads, 1, 1), like.device())
}

pub mod standard {
    //! `candle_nn::attention::cpu_flash::standard`, with a gradient.

    use candle_core::{Result, Tensor, WithDType};
    use candle_nn::attention::AttnMask;

    use super::flash;

    /// [`flash_attn`](super::flash_attn) of a batch of one, with a mask or none.
    ///
    /// # Errors
    /// If shapes, types or devices do not fit.
    pub fn run_flash_attn_cpu<T: WithDType>(
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        mask: Option<&Tensor>,
        softmax_scale: f32,
        max_bias: Option<f32>,
        softcap: Option<f32>,
    ) -> Result<Tensor> {
        if ![Some(q), Some(k), Some(v), mask].into_iter().flatten().any(Tensor::track_op) {
            return candle_nn::attention::cpu_flash::standard::run_flash_attn_cpu::<T>(
                q,
                k,
                v,
                mask,
                softmax_scale,
                max_bias,
                softcap,
            );
        }
        let mask = mask.map_or(AttnMask::None, |mask| AttnMask::Mask(mask.clone()));
        flash(q, k, v, softmax_scale, &mask, max_bias, softcap)
    }
}

pub mod causal {
    //! `candle_nn::attention::cpu_flash::causal`, with a gradient.

    use candle_core::{Result, Tensor, WithDType};
    use candle_nn::attention::AttnMask;
    pub use candle_nn::attention::cpu_flash::causal::*;

    use super::flash;

    /// [`flash_attn`](super::flash_attn) of a batch of one, with the causal mask.
    ///
    /// # Errors
    /// If shapes, types or devices do not fit.
    pub fn run_causal_attn_cpu<T: WithDType + num_traits::Float>(
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        softmax_scale: f32,
        kv_offset: usize,
        max_bias: Option<f32>,
        softcap: Option<f32>,
    ) -> Result<Tensor> {
        if [q, k, v].iter().any(|x| x.track_op()) {
            return flash(q, k, v, softmax_scale, &AttnMask::Causal { kv_offset }, max_bias, softcap);
        }
        candle_nn::attention::cpu_flash::causal::run_causal_attn_cpu::<T>(
            q,
            k,
            v,
            softmax_scale,
            kv_offset,
            max_bias,
            softcap,
        )
    }
}

pub mod varlen {
    //! `candle_nn::attention::cpu_flash::varlen`, with a gradient.

    use candle_core::{Result, Tensor};

    use super::super::varlen::{Packed, attend_each};

    /// [`flash_attn_varlen_unfused`](super::super::flash_attn_varlen_unfused) by candle's kernel where no input depends on a variable.
    ///
    /// # Errors
    /// If shapes, types or devices do not fit.
    #[allow(clippy::too_many_arguments, reason = "candle's")]
    pub fn flash_attn_varlen_cpu(
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
        window_left: Option<usize>,
        window_right: Option<usize>,
    ) -> Result<Tensor> {
        let packed = Packed { q, k, v, alibi_slopes, seqlens_q, seqlens_k };
        if packed.is_tracked() {
            return attend_each(&packed, softmax_scale, causal, [window_left, window_right]);
        }
        candle_nn::attention::flash_attn_varlen_cpu(
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
            window_left,
            window_right,
        )
    }
}
