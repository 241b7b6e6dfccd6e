//! Batch normalization.

use candle_core::Result;

use super::channels::{Channels, Share};
use super::{Arg, Machine, THREADS, word};

/// What a normalisation knows of a channel: mean, 1/σ, γ/σ and β.
pub(crate) const STATISTICS: usize = 4;

/// How to normalise, and with what.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Norm {
    pub(crate) sizes: Channels,
    pub(crate) eps: f64,
    /// Whether the mean is subtracted.
    pub(crate) centred: bool,
    pub(crate) relu: bool,
    /// Of x and everything of its size.
    pub(crate) dtype: u32,
    /// Of γ and β.
    pub(crate) affine_dtype: u32,
    pub(crate) weight: u64,
    pub(crate) bias: u64,
    /// Memory for [`STATISTICS`] f64 for each channel.
    pub(crate) statistics: u64,
}

/// The running statistics of a layer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Running {
    pub(crate) dtype: u32,
    pub(crate) mean: u64,
    pub(crate) var: u64,
}

impl Norm {
    /// Its type is the low half of the first word.
    fn affine(&self) -> Arg<'static> {
        Arg::Affine([self.affine_dtype.into(), self.weight, self.bias])
    }

    /// The statistics of the batch; running ones move by `momentum` towards them.
    pub(crate) fn measure(&self, machine: &mut impl Machine, x: u64, running: Option<(Running, f64)>) -> Result<()> {
        let parts = self.sizes.moments(machine, self.dtype, x, self.centred)?;
        let (running, momentum) = running.unwrap_or((Running { dtype: 0, mean: 0, var: 0 }, 0.0));
        let args = [
            Arg::U32(self.dtype),
            self.sizes.share(self.dtype, &[x])?.arg,
            Arg::U64(x),
            self.affine(),
            Arg::U32(self.centred.into()),
            Arg::F64(self.sizes.count()),
            Arg::F64(self.eps),
            parts,
            Arg::U64(self.statistics),
            Arg::F64(momentum),
            Arg::U32(running.dtype),
            Arg::U64(running.mean),
            Arg::U64(running.var),
        ];
        machine.launch("nn_statistics", self.sizes.totals(), &args)
    }

    /// The running statistics, in place of those of the batch.
    pub(crate) fn take(&self, machine: &mut impl Machine, running: Running) -> Result<()> {
        let args = [
            Arg::U32(running.dtype),
            Arg::U64(running.mean),
            Arg::U64(running.var),
            Arg::U32(word(self.sizes.channels)?),
            self.affine(),
            Arg::F64(self.eps),
            Arg::U64(self.statistics),
        ];
        machine.launch("nn_running", self.sizes.channels.div_ceil(THREADS), &args)
    }

    /// y = relu(γ (x - mean) / σ + β + residual)
    pub(crate) fn forward(&self, machine: &mut impl Machine, [x, residual, y]: [u64; 3]) -> Result<()> {
        let share = self.sizes.share(self.dtype, &[x, residual, y])?;
        let args = [
            Arg::U32(self.dtype),
            share.arg,
            Arg::U64(x),
            Arg::U64(residual),
            Arg::U64(self.statistics),
            Arg::U32(self.relu.into()),
            Arg::U64(y),
        ];
        machine.launch("nn_normalise", share.blocks, &args)
    }

    /// The gradients of x, the residual, γ and β from that of y. y is needed where there was a residual, `lines` is memory
    /// for two f64 for each channel, and `fixed` says that the statistics were not those of the batch.
    pub(crate) fn backward(
        &self,
        machine: &mut impl Machine,
        [x, y, dy]: [u64; 3],
        fixed: bool,
        lines: u64,
        [dx, d_residual, d_weight, d_bias]: [u64; 4],
    ) -> Result<()> {
        let images = [Arg::U64(x), Arg::U64(y), Arg::U64(dy), Arg::U64(self.statistics), Arg::U32(self.relu.into())];
        let of = |share: &Share| [&[Arg::U32(self.dtype), share.arg], &images[..]].concat();

        let (share, parts) = (self.sizes.share(self.dtype, &[x, y, dy])?, self.sizes.parts(machine)?);
        machine.launch("nn_slopes", share.blocks, &[&of(&share)[..], &[parts]].concat())?;

        let args = [
            share.arg,
            Arg::U64(self.statistics),
            Arg::U32(self.centred.into()),
            Arg::U32(fixed.into()),
            Arg::F64(self.sizes.count()),
            parts,
            Arg::U64(lines),
            Arg::U32(self.affine_dtype),
            Arg::U64(d_weight),
            Arg::U64(d_bias),
        ];
        machine.launch("nn_lines", self.sizes.totals(), &args)?;

        let share = self.sizes.share(self.dtype, &[x, y, dy, dx, d_residual])?;
        let outputs = [Arg::U64(lines), Arg::U64(dx), Arg::U64(d_residual)];
        machine.launch("nn_normalise_back", share.blocks, &[&of(&share)[..], &outputs].concat())
    }
}
