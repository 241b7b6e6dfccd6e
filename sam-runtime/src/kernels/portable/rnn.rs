//! One step of a recurrent layer.

use candle_core::{Result, Tensor};
use candle_nn::ops;

/// x wᵀ + bias
pub(crate) fn product(x: &Tensor, w: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let product = x.matmul(&w.t()?)?;
    bias.map_or(Ok(product.clone()), |bias| product.broadcast_add(bias))
}

/// h and c, of the products for all gates and the c before.
pub(crate) fn lstm([from_x, from_h]: [Tensor; 2], c: &Tensor) -> Result<[Tensor; 2]> {
    let gates = (from_x + from_h)?.chunk(4, 1)?;
    let (i, f, o) = (ops::sigmoid(&gates[0])?, ops::sigmoid(&gates[1])?, ops::sigmoid(&gates[3])?);
    let c = ((f * c)? + (i * gates[2].tanh()?)?)?;
    let h = (o * c.tanh()?)?;
    Ok([h, c])
}

/// h, of the products for all gates and the h before.
pub(crate) fn gru([from_x, from_h]: [Tensor; 2], h: &Tensor) -> Result<Tensor> {
    let (from_x, from_h) = (from_x.chunk(3, 1)?, from_h.chunk(3, 1)?);
    let r = ops::sigmoid(&(&from_x[0] + &from_h[0])?)?;
    let z = ops::sigmoid(&(&from_x[1] + &from_h[1])?)?;
    let n = (&from_x[2] + (r * &from_h[2])?)?.tanh()?;
    (&z * h)? - ((&z - 1.)? * n)?
}
