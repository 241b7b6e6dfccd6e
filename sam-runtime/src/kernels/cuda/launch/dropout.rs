//! Dropout.

use candle_core::Result;

use super::elementwise::elementwise;
use super::{Arg, Machine};

/// Sets elements to 0 with a probability, and scales the others.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Dropout {
    pub(crate) seed: u64,
    /// The probability.
    pub(crate) drop: f32,
    pub(crate) scale: f32,
    /// Pixels of a channel, and channels that lie side by side: 1 in planes.
    pub(crate) plane: usize,
    pub(crate) step: usize,
}

impl Dropout {
    /// Of n elements.
    pub(crate) fn of(self, machine: &mut impl Machine, dtype: u32, [x, y]: [u64; 2], n: usize) -> Result<()> {
        let Self { seed, drop, scale, plane, step } = self;
        let place = [Arg::U64(plane as u64), Arg::U64(step as u64)];
        let mask = [Arg::U64(seed), Arg::F64(drop.into()), Arg::F64(scale.into())];
        elementwise(machine, "nn_dropout", dtype, &[x, y], n, &[&place[..], &mask].concat())
    }
}
