//! Layer normalization and RMS normalization, over the last dimension.

use candle_core::{D, DType, Result, Tensor};

/// Weight and bias may be any that can be broadcast.
pub(crate) fn normalize(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    centered: bool,
    eps: f64,
) -> Result<Tensor> {
    let dtype = x.dtype();
    let x = if matches!(dtype, DType::F16 | DType::BF16) { x.to_dtype(DType::F32)? } else { x.clone() };
    let x = if centered { x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)? } else { x };
    let square = x.sqr()?.mean_keepdim(D::Minus1)?;
    let x = x.broadcast_div(&(square + eps)?.sqrt()?)?.to_dtype(dtype)?;
    let x = x.broadcast_mul(&weight.to_dtype(dtype)?)?;
    match bias {
        None => Ok(x),
        Some(bias) => x.broadcast_add(&bias.to_dtype(dtype)?),
    }
}
