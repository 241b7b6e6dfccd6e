//! Launches of `group_norm.cu`.

use candle_core::Result;

use super::shared::{AffineArgs, GroupArgs, THREADS};
use super::{KernelArg, Launcher, Scratch, rows, to_u32};

/// Group normalization of images. γ and β are of one dtype.
#[derive(Clone, Copy, Debug)]
pub(crate) struct GroupNorm {
    pub(crate) images: usize,
    pub(crate) channels: usize,
    pub(crate) groups: usize,
    /// Elements of one channel of one image.
    pub(crate) plane: usize,
    pub(crate) eps: f64,
    pub(crate) dtype: u32,
    pub(crate) affine_dtype: u32,
    pub(crate) weight: u64,
    pub(crate) bias: u64,
    /// Memory for [`ROW_STATISTICS`](super::shared::ROW_STATISTICS) f64 per group of each image.
    pub(crate) statistics: u64,
}

impl GroupNorm {
    fn affine(&self) -> KernelArg<'static> {
        KernelArg::Affine(AffineArgs { dtype: self.affine_dtype, weight: self.weight, bias: self.bias })
    }

    fn args(&self, addresses: &[u64]) -> Result<KernelArg<'static>> {
        // The size of a row has to fit as well.
        to_u32(self.channels * self.plane)?;
        Ok(KernelArg::Group(GroupArgs {
            channels: to_u32(self.channels)?,
            groups: to_u32(self.groups)?,
            plane: to_u32(self.plane)?,
            vectors: rows::in_vectors(self.dtype, self.plane, addresses).into(),
        }))
    }

    /// y, and the statistics.
    pub(crate) fn forward(&self, launcher: &mut impl Launcher, [x, y]: [u64; 2]) -> Result<()> {
        let args = [
            KernelArg::U32(self.dtype),
            KernelArg::U64(x),
            self.args(&[x, y])?,
            KernelArg::F64(self.eps),
            self.affine(),
            KernelArg::U64(self.statistics),
            KernelArg::U64(y),
        ];
        launcher.launch("group_norm", self.images * self.groups, &args)
    }

    /// The gradients of x, γ and β. Those that are not wanted are 0.
    pub(crate) fn backward(
        &self,
        launcher: &mut impl Launcher,
        [x, dy]: [u64; 2],
        [dx, d_weight, d_bias]: [u64; 3],
    ) -> Result<()> {
        let inputs = [KernelArg::U32(self.dtype), KernelArg::U64(x), KernelArg::U64(dy)];
        let planes = self.images * self.channels;
        let partials = KernelArg::U64(launcher.scratch(Scratch::Partials, 2 * planes)?);
        let statistics = KernelArg::U64(self.statistics);
        let args = [
            self.args(&[])?,
            KernelArg::U64(planes as u64),
            KernelArg::U32(to_u32(rows::width(self.plane))?),
            statistics,
            partials,
        ];
        launcher.launch("group_norm_sums", rows::blocks(planes, self.plane), &[&inputs[..], &args].concat())?;
        if dx != 0 {
            let args = [self.args(&[x, dy, dx])?, self.affine(), statistics, partials, KernelArg::U64(dx)];
            let args = [&inputs[..], &args].concat();
            launcher.launch("group_norm_backward", self.images * self.groups, &args)?;
        }
        if d_weight == 0 && d_bias == 0 {
            return Ok(());
        }
        let args = [
            partials,
            KernelArg::U64(self.images as u64),
            KernelArg::U32(to_u32(self.channels)?),
            KernelArg::U32(self.affine_dtype),
            KernelArg::U64(d_weight),
            KernelArg::U64(d_bias),
        ];
        launcher.launch("group_norm_affine", self.channels.div_ceil(THREADS), &args)
    }
}
