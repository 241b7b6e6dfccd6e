//! Launches of `elementwise.cu`.

use candle_core::Result;

use super::shared::ELEMENTS_PER_BLOCK;
use super::{KernelArg, Launcher};

pub(super) fn elementwise(
    launcher: &mut impl Launcher,
    kernel: &'static str,
    dtype: u32,
    addresses: &[u64],
    n: usize,
    more: &[KernelArg<'_>],
) -> Result<()> {
    let mut args = vec![KernelArg::U32(dtype)];
    args.extend(addresses.iter().map(|address| KernelArg::U64(*address)));
    args.push(KernelArg::U64(n as u64));
    args.extend(more);
    launcher.launch(kernel, n.div_ceil(ELEMENTS_PER_BLOCK), &args)
}

/// y = max(x, 0), of n elements.
pub(crate) fn relu(launcher: &mut impl Launcher, dtype: u32, [x, y]: [u64; 2], n: usize) -> Result<()> {
    elementwise(launcher, "relu", dtype, &[x, y], n, &[])
}

/// dx = dy where y > 0, else 0.
pub(crate) fn relu_back(launcher: &mut impl Launcher, dtype: u32, [y, dy, dx]: [u64; 3], n: usize) -> Result<()> {
    elementwise(launcher, "relu_backward", dtype, &[y, dy, dx], n, &[])
}

/// y = a + b
pub(crate) fn add(launcher: &mut impl Launcher, dtype: u32, [a, b, y]: [u64; 3], n: usize) -> Result<()> {
    elementwise(launcher, "add", dtype, &[a, b, y], n, &[])
}
