//! Launches of `branch_mix.cu`.

use candle_core::Result;

use super::elementwise::elementwise;
use super::{KernelArg, Launcher};

/// y = Σ f x over one or two tensors x, with a factor f per `sample` elements: f64 for f64 tensors, otherwise f32.
pub(crate) fn branch_mix(
    launcher: &mut impl Launcher,
    dtype: u32,
    [a, b, y]: [u64; 3],
    [n, sample]: [usize; 2],
    factors: [u64; 2],
) -> Result<()> {
    let more = [KernelArg::U64(sample as u64), KernelArg::U64(factors[0]), KernelArg::U64(factors[1])];
    elementwise(launcher, "branch_mix", dtype, &[a, b, y], n, &more)
}
