//! Launches of `softmax_dim.cu`.

use candle_core::Result;

use super::shared::THREADS;
use super::{KernelArg, Launcher, rows, to_u32};
use crate::kernels::shapes::DimShape;

/// Softmax along a dimension, or its logarithm.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Softmax {
    pub(crate) shape: DimShape,
    pub(crate) log: bool,
    pub(crate) dtype: u32,
}

impl Softmax {
    pub(crate) fn forward(&self, launcher: &mut impl Launcher, [x, y]: [u64; 2]) -> Result<()> {
        self.launch(launcher, ["softmax_rows", "softmax_strided"], &[x], y)
    }

    /// The gradient of x, given the output.
    pub(crate) fn backward(&self, launcher: &mut impl Launcher, [y, dy, dx]: [u64; 3]) -> Result<()> {
        self.launch(launcher, ["softmax_rows_backward", "softmax_strided_backward"], &[y, dy], dx)
    }

    fn launch(
        &self,
        launcher: &mut impl Launcher,
        [of_rows, strided]: [&'static str; 2],
        inputs: &[u64],
        output: u64,
    ) -> Result<()> {
        let DimShape { outer, size, inner } = self.shape;
        if outer * size * inner == 0 {
            return Ok(());
        }
        let mut args = vec![KernelArg::U32(self.dtype)];
        args.extend(inputs.iter().map(|address| KernelArg::U64(*address)));
        let last = [KernelArg::U32(self.log.into()), KernelArg::U64(output)];
        if inner == 1 {
            args.extend(rows::args(self.dtype, outer, size, &[inputs, &[output]].concat())?);
            args.extend(last);
            return launcher.launch(of_rows, rows::blocks(outer, size), &args);
        }
        args.extend([KernelArg::U64(outer as u64), KernelArg::U32(to_u32(size)?), KernelArg::U64(inner as u64)]);
        args.extend(last);
        launcher.launch(strided, (outer * inner).div_ceil(THREADS), &args)
    }
}
