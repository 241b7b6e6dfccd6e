//! Launches of `upsample.cu`.

use candle_core::Result;

use super::shared::{RESIZE_ALIGNED_CORNERS, RESIZE_LINEAR, RESIZE_NEAREST, THREADS};
use super::{KernelArg, Launcher, to_u32};
use crate::kernels::shapes::{ResizeMode, UpsampleShape};

impl UpsampleShape {
    fn launch(
        &self,
        launcher: &mut impl Launcher,
        kernel: &'static str,
        dtype: u32,
        [from, to]: [u64; 2],
        n: usize,
    ) -> Result<()> {
        let Self { rows, columns, step, .. } = *self;
        to_u32(rows.input.max(rows.output) * columns.input.max(columns.output) * step)?;
        let code = match rows.mode {
            ResizeMode::Nearest => RESIZE_NEAREST,
            ResizeMode::Linear => RESIZE_LINEAR,
            ResizeMode::AlignedCorners => RESIZE_ALIGNED_CORNERS,
        };
        let args = [
            KernelArg::U32(dtype),
            KernelArg::U32(code),
            KernelArg::U32(to_u32(rows.input)?),
            KernelArg::U32(to_u32(columns.input)?),
            KernelArg::U32(to_u32(rows.output)?),
            KernelArg::U32(to_u32(columns.output)?),
            KernelArg::F64(rows.scale),
            KernelArg::F64(columns.scale),
            KernelArg::U32(to_u32(step)?),
            KernelArg::U64(from),
            KernelArg::U64(n as u64),
            KernelArg::U64(to),
        ];
        launcher.launch(kernel, n.div_ceil(THREADS), &args)
    }

    /// From x to y.
    pub(crate) fn forward(&self, launcher: &mut impl Launcher, dtype: u32, addresses: [u64; 2]) -> Result<()> {
        let n = self.planes * self.rows.output * self.columns.output;
        self.launch(launcher, "upsample", dtype, addresses, n)
    }

    /// From dy to dx.
    pub(crate) fn backward(&self, launcher: &mut impl Launcher, dtype: u32, addresses: [u64; 2]) -> Result<()> {
        let n = self.planes * self.rows.input * self.columns.input;
        self.launch(launcher, "upsample_backward", dtype, addresses, n)
    }
}
