//! Launches of `rotary_emb.cu`.

use candle_core::Result;

use super::shared::ELEMENTS_PER_BLOCK;
use super::{KernelArg, Launcher, to_u32};
use crate::kernels::shapes::RotaryShape;

/// y = x, of the type with this code, turned by angles in the type that it is computed in, or turned back.
pub(crate) fn rope(
    launcher: &mut impl Launcher,
    rotation: &RotaryShape,
    dtype: u32,
    [x, cos, sin, y]: [u64; 4],
    inverse: bool,
) -> Result<()> {
    let RotaryShape { interleaved, batch, heads, time, half, heads_inside, steps } = *rotation;
    let pairs = batch * heads * time * half;
    let args = [
        KernelArg::U32(dtype),
        KernelArg::U64(x),
        KernelArg::U64(cos),
        KernelArg::U64(sin),
        KernelArg::U64(y),
        KernelArg::U64(pairs as u64),
        KernelArg::F64(if inverse { -1.0 } else { 1.0 }),
        KernelArg::U32(to_u32(half)?),
        KernelArg::U32(to_u32(heads)?),
        KernelArg::U32(to_u32(time)?),
        KernelArg::U32(heads_inside.into()),
        KernelArg::U32(interleaved.into()),
        KernelArg::U64(steps[0] as u64),
        KernelArg::U64(steps[1] as u64),
    ];
    launcher.launch("rope", pairs.div_ceil(ELEMENTS_PER_BLOCK), &args)
}
