//! Launches of `batch_norm.cu`.

use candle_core::Result;

use super::channels::{Channels, Grid};
use super::shared::{AffineArgs, THREADS};
use super::{KernelArg, Launcher, to_u32};

/// A batch normalization and its parameters.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BatchNorm {
    pub(crate) sizes: Channels,
    pub(crate) eps: f64,
    /// Whether the mean is subtracted.
    pub(crate) centered: bool,
    pub(crate) relu: bool,
    /// Of x and all tensors of its size.
    pub(crate) dtype: u32,
    /// Of γ and β.
    pub(crate) affine_dtype: u32,
    pub(crate) weight: u64,
    pub(crate) bias: u64,
    /// The address of [`STATISTICS`](super::shared::STATISTICS) f64 per channel.
    pub(crate) statistics: u64,
}

/// The running statistics of a layer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Running {
    pub(crate) dtype: u32,
    pub(crate) mean: u64,
    pub(crate) var: u64,
}

impl BatchNorm {
    fn affine(&self) -> KernelArg<'static> {
        KernelArg::Affine(AffineArgs { dtype: self.affine_dtype, weight: self.weight, bias: self.bias })
    }

    /// Computes the statistics of the batch. Running ones move towards them by `momentum`.
    pub(crate) fn batch_statistics(
        &self,
        launcher: &mut impl Launcher,
        x: u64,
        running: Option<(Running, f64)>,
    ) -> Result<()> {
        let partials = self.sizes.moments(launcher, self.dtype, x, self.centered)?;
        let (running, momentum) = running.unwrap_or((Running { dtype: 0, mean: 0, var: 0 }, 0.0));
        let args = [
            KernelArg::U32(self.dtype),
            self.sizes.grid(self.dtype, &[x])?.arg,
            KernelArg::U64(x),
            self.affine(),
            KernelArg::U32(self.centered.into()),
            KernelArg::F64(self.sizes.count()),
            KernelArg::F64(self.eps),
            partials,
            KernelArg::U64(self.statistics),
            KernelArg::F64(momentum),
            KernelArg::U32(running.dtype),
            KernelArg::U64(running.mean),
            KernelArg::U64(running.var),
        ];
        launcher.launch("bn_batch_statistics", self.sizes.sum_blocks(), &args)
    }

    /// Takes the running statistics instead of those of the batch.
    pub(crate) fn use_running(&self, launcher: &mut impl Launcher, running: Running) -> Result<()> {
        let args = [
            KernelArg::U32(running.dtype),
            KernelArg::U64(running.mean),
            KernelArg::U64(running.var),
            KernelArg::U32(to_u32(self.sizes.channels)?),
            self.affine(),
            KernelArg::F64(self.eps),
            KernelArg::U64(self.statistics),
        ];
        launcher.launch("bn_running_statistics", self.sizes.channels.div_ceil(THREADS), &args)
    }

    /// y = relu(γ (x - mean) / σ + β + residual)
    pub(crate) fn forward(&self, launcher: &mut impl Launcher, [x, residual, y]: [u64; 3]) -> Result<()> {
        let grid = self.sizes.grid(self.dtype, &[x, residual, y])?;
        let args = [
            KernelArg::U32(self.dtype),
            grid.arg,
            KernelArg::U64(x),
            KernelArg::U64(residual),
            KernelArg::U64(self.statistics),
            KernelArg::U32(self.relu.into()),
            KernelArg::U64(y),
        ];
        launcher.launch("bn_forward", grid.blocks, &args)
    }

    /// The gradients of x, the residual, γ and β from that of y. y is required if there was a residual. `coefficients`
    /// is memory for two f64 per channel. `fixed`: the statistics were not those of the batch.
    pub(crate) fn backward(
        &self,
        launcher: &mut impl Launcher,
        [x, y, dy]: [u64; 3],
        fixed: bool,
        coefficients: u64,
        [dx, d_residual, d_weight, d_bias]: [u64; 4],
    ) -> Result<()> {
        let images = [
            KernelArg::U64(x),
            KernelArg::U64(y),
            KernelArg::U64(dy),
            KernelArg::U64(self.statistics),
            KernelArg::U32(self.relu.into()),
        ];
        let of = |grid: &Grid| [&[KernelArg::U32(self.dtype), grid.arg], &images[..]].concat();

        let (grid, partials) = (self.sizes.grid(self.dtype, &[x, y, dy])?, self.sizes.partials(launcher)?);
        launcher.launch("bn_backward_reduce", grid.blocks, &[&of(&grid)[..], &[partials]].concat())?;

        let args = [
            grid.arg,
            KernelArg::U64(self.statistics),
            KernelArg::U32(self.centered.into()),
            KernelArg::U32(fixed.into()),
            KernelArg::F64(self.sizes.count()),
            partials,
            KernelArg::U64(coefficients),
            KernelArg::U32(self.affine_dtype),
            KernelArg::U64(d_weight),
            KernelArg::U64(d_bias),
        ];
        launcher.launch("bn_backward_coefficients", self.sizes.sum_blocks(), &args)?;

        let grid = self.sizes.grid(self.dtype, &[x, y, dy, dx, d_residual])?;
        let outputs = [KernelArg::U64(coefficients), KernelArg::U64(dx), KernelArg::U64(d_residual)];
        launcher.launch("bn_backward", grid.blocks, &[&of(&grid)[..], &outputs].concat())
    }
}
