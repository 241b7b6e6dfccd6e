//! ReLU and sums.

use candle_core::Result;

use super::{Arg, Machine};

/// Elements that one block takes where each is by itself.
const STRETCH: usize = 1 << 12;

pub(super) fn elementwise(
    machine: &mut impl Machine,
    kernel: &'static str,
    dtype: u32,
    addresses: &[u64],
    n: usize,
    more: &[Arg<'_>],
) -> Result<()> {
    let mut args = vec![Arg::U32(dtype)];
    args.extend(addresses.iter().map(|address| Arg::U64(*address)));
    args.push(Arg::U64(n as u64));
    args.extend(more);
    machine.launch(kernel, n.div_ceil(STRETCH), &args)
}

/// y = max(x, 0), of n elements.
pub(crate) fn relu(machine: &mut impl Machine, dtype: u32, [x, y]: [u64; 2], n: usize) -> Result<()> {
    elementwise(machine, "nn_relu", dtype, &[x, y], n, &[])
}

/// dx = dy where y > 0, else 0.
pub(crate) fn relu_back(machine: &mut impl Machine, dtype: u32, [y, dy, dx]: [u64; 3], n: usize) -> Result<()> {
    elementwise(machine, "nn_relu_back", dtype, &[y, dy, dx], n, &[])
}

/// y = a + b
pub(crate) fn add(machine: &mut impl Machine, dtype: u32, [a, b, y]: [u64; 3], n: usize) -> Result<()> {
    elementwise(machine, "nn_add", dtype, &[a, b, y], n, &[])
}
