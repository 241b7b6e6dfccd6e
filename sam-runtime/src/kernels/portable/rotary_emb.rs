//! Rotary position embeddings.

use candle_core::{D, Result, Tensor};

use crate::kernels::shapes::RotaryShape;

/// x with its pairs turned. All three have gradients.
pub(crate) fn rotate(rotation: &RotaryShape, [x, cos, sin]: [&Tensor; 3]) -> Result<Tensor> {
    let (time, heads) = if rotation.heads_inside { (1, 2) } else { (2, 1) };
    // (batch or 1, time, 1, half) or (batch or 1, 1, time, half).
    let angles = |angles: &Tensor| {
        let angles = if angles.rank() == 2 { angles.unsqueeze(0)? } else { angles.clone() };
        angles.narrow(1, 0, x.dim(time)?)?.unsqueeze(heads)?.to_dtype(x.dtype())
    };
    let (cos, sin, half) = (angles(cos)?, angles(sin)?, x.dim(3)? / 2);
    let (a, b) = if rotation.interleaved {
        let pairs = x.contiguous()?.reshape((x.dim(0)?, x.dim(1)?, x.dim(2)?, half, 2))?;
        (pairs.narrow(4, 0, 1)?.squeeze(4)?, pairs.narrow(4, 1, 1)?.squeeze(4)?)
    } else {
        (x.narrow(3, 0, half)?, x.narrow(3, half, half)?)
    };
    let first = (a.broadcast_mul(&cos)? - b.broadcast_mul(&sin)?)?;
    let second = (a.broadcast_mul(&sin)? + b.broadcast_mul(&cos)?)?;
    if rotation.interleaved {
        Tensor::stack(&[first, second], D::Minus1)?.flatten_from(D::Minus2)
    } else {
        Tensor::cat(&[first, second], D::Minus1)
    }
}
