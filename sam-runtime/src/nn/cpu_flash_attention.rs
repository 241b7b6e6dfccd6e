//! `candle_nn::cpu_flash_attention`, with a gradient.

use candle_core::{Result, Tensor, WithDType};

use super::attention::{AttnMask, flash_attn};

/// [`flash_attn`] with a mask or none.
///
/// # Errors
/// As [`flash_attn`].
#[deprecated(note = "use `attention::{flash_attn, AttnMask}` instead")]
pub fn run_flash_attn_cpu<T: WithDType + num_traits::Float + 'static>(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    mask: Option<&Tensor>,
    softmax_scale: f32,
    max_bias: Option<f32>,
    softcap: Option<f32>,
) -> Result<Tensor> {
    let mask = mask.map_or(AttnMask::None, |mask| AttnMask::Mask(mask.clone()));
    flash_attn::<T>(q, k, v, softmax_scale, mask, max_bias, softcap)
}
