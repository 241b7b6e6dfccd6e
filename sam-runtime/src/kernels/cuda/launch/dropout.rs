//! Dropout.

use candle_core::Result;

use super::elementwise::elementwise;
use super::{KernelArg, Launcher};

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
    pub(crate) fn of(self, launcher: &mut impl Launcher, dtype: u32, [x, y]: [u64; 2], n: usize) -> Result<()> {
        let Self { seed, drop, scale, plane, step } = self;
        let place = [KernelArg::U64(plane as u64), KernelArg::U64(step as u64)];
        let mask = [KernelArg::U64(seed), KernelArg::F64(drop.into()), KernelArg::F64(scale.into())];
        elementwise(launcher, "dropout", dtype, &[x, y], n, &[&place[..], &mask].concat())
    }
}
