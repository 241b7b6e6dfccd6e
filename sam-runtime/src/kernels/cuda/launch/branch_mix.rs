//! Sums of branches with a weight for each example.

use candle_core::Result;

use super::elementwise::elementwise;
use super::{Arg, Machine};

/// y = Σ f x over one or two tensors x, with a number f for each example of so many elements: in f64 for f64, else in f32.
pub(crate) fn mixture(
    machine: &mut impl Machine,
    dtype: u32,
    [a, b, y]: [u64; 3],
    [n, example]: [usize; 2],
    factors: [u64; 2],
) -> Result<()> {
    let more = [Arg::U64(example as u64), Arg::U64(factors[0]), Arg::U64(factors[1])];
    elementwise(machine, "nn_mixture", dtype, &[a, b, y], n, &more)
}
