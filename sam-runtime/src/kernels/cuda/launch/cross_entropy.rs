//! Launches of `cross_entropy.cu`.

use candle_core::Result;

use super::shared::THREADS;
use super::{KernelArg, Launcher, Scratch, to_u32};

/// The targets of the rows: i64 labels with label smoothing, or probabilities.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Target {
    Labels { address: u64, smoothing: f64 },
    Probabilities { address: u64, dtype: u32 },
}

/// The cross entropy of logits (rows, classes).
#[derive(Clone, Copy, Debug)]
pub(crate) struct CrossEntropy {
    pub(crate) rows: usize,
    pub(crate) classes: usize,
    pub(crate) dtype: u32,
    pub(crate) target: Target,
    /// Whether each row has a loss, instead of their mean.
    pub(crate) each: bool,
}

impl CrossEntropy {
    fn args(&self, logits: u64) -> Result<[KernelArg<'static>; 7]> {
        let (labels, dtype, probabilities, smoothing) = match self.target {
            Target::Labels { address, smoothing } => (address, 0, 0, smoothing),
            Target::Probabilities { address, dtype } => (0, dtype, address, 0.0),
        };
        Ok([
            KernelArg::U32(self.dtype),
            KernelArg::U64(logits),
            KernelArg::U64(labels),
            KernelArg::U32(dtype),
            KernelArg::U64(probabilities),
            KernelArg::F64(smoothing),
            KernelArg::U32(to_u32(self.classes)?),
        ])
    }

    /// The loss. An out-of-range label makes it NaN: an error would need a synchronization.
    pub(crate) fn forward(&self, launcher: &mut impl Launcher, [logits, loss]: [u64; 2]) -> Result<()> {
        let row_losses = KernelArg::U64(launcher.scratch(Scratch::Partials, self.rows)?);
        launcher.launch("cross_entropy_rows", self.rows, &[&self.args(logits)?[..], &[row_losses]].concat())?;
        let args = [row_losses, KernelArg::U32(to_u32(self.rows)?), KernelArg::U32(self.dtype), KernelArg::U64(loss)];
        if self.each {
            return launcher.launch("cross_entropy_each", self.rows.div_ceil(THREADS), &args);
        }
        launcher.launch("cross_entropy_mean", 1, &args)
    }

    pub(crate) fn backward(&self, launcher: &mut impl Launcher, [logits, dy, dx]: [u64; 3]) -> Result<()> {
        let (rows, each) = (KernelArg::U32(to_u32(self.rows)?), KernelArg::U32(self.each.into()));
        let more = [rows, each, KernelArg::U64(dy), KernelArg::U64(dx)];
        launcher.launch("cross_entropy_backward", self.rows, &[&self.args(logits)?[..], &more].concat())
    }
}
