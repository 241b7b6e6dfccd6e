//! Launches of `depthwise.cu`.

use candle_core::Result;

use super::im2col::Patches;
use super::shared::THREADS;
use super::{KernelArg, Launcher, to_u32};
use crate::kernels::shapes::ConvShape;

/// A convolution of one channel a group, NCHW.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Depthwise {
    conv: ConvShape,
}

impl Depthwise {
    /// None for other convolutions.
    pub(crate) fn of(conv: &ConvShape) -> Option<Self> {
        (conv.groups > 1 && conv.groups == conv.channels).then_some(Self { conv: *conv })
    }

    /// The arguments that all three begin with.
    fn args(&self, dtype: u32) -> Result<[KernelArg<'static>; 3]> {
        let filters = KernelArg::U32(to_u32(self.conv.filters / self.conv.channels)?);
        Ok([KernelArg::U32(dtype), Patches::new(&self.conv).arg()?, filters])
    }

    fn run(
        &self,
        launcher: &mut impl Launcher,
        kernel: &'static str,
        dtype: u32,
        [a, b, to]: [u64; 3],
        n: usize,
    ) -> Result<()> {
        let rest = [KernelArg::U64(a), KernelArg::U64(b), KernelArg::U64(n as u64), KernelArg::U64(to)];
        launcher.launch(kernel, n.div_ceil(THREADS), &[&self.args(dtype)?[..], &rest].concat())
    }

    /// y of x and w, all of one dtype.
    pub(crate) fn forward(&self, launcher: &mut impl Launcher, dtype: u32, addresses: [u64; 3]) -> Result<()> {
        let ConvShape { images, filters, height, width, .. } = self.conv;
        self.run(launcher, "depthwise", dtype, addresses, images * filters * height.output * width.output)
    }

    /// dx of dy and w.
    pub(crate) fn back_to_images(&self, launcher: &mut impl Launcher, dtype: u32, addresses: [u64; 3]) -> Result<()> {
        let ConvShape { images, channels, height, width, .. } = self.conv;
        let n = images * channels * height.input * width.input;
        self.run(launcher, "depthwise_back_to_images", dtype, addresses, n)
    }

    /// dw of x and dy.
    pub(crate) fn back_to_weight(&self, launcher: &mut impl Launcher, dtype: u32, addresses: [u64; 3]) -> Result<()> {
        let blocks = self.conv.filters * self.conv.height.kernel * self.conv.width.kernel;
        let addresses = addresses.map(KernelArg::U64);
        launcher.launch("depthwise_back_to_weight", blocks, &[&self.args(dtype)?[..], &addresses].concat())
    }
}
