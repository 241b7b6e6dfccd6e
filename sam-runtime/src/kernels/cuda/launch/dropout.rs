//! Launches of `dropout.cu`.

use candle_core::Result;

use super::elementwise::elementwise;
use super::{KernelArg, Launcher};

/// Sets elements to 0 at random, and scales the others.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Dropout {
    pub(crate) seed: u64,
    /// The drop probability.
    pub(crate) drop: f32,
    pub(crate) scale: f32,
    /// Pixels of a channel, and the distance from one pixel to the next: 1 in NCHW, the number of channels in NHWC.
    pub(crate) plane: usize,
    pub(crate) step: usize,
}

impl Dropout {
    /// Of n elements.
    pub(crate) fn run(self, launcher: &mut impl Launcher, dtype: u32, [x, y]: [u64; 2], n: usize) -> Result<()> {
        let Self { seed, drop, scale, plane, step } = self;
        let layout = [KernelArg::U64(plane as u64), KernelArg::U64(step as u64)];
        let mask = [KernelArg::U64(seed), KernelArg::F64(drop.into()), KernelArg::F64(scale.into())];
        elementwise(launcher, "dropout", dtype, &[x, y], n, &[&layout[..], &mask].concat())
    }
}
