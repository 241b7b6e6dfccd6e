//! Launches of `pool.cu`.

use candle_core::Result;

use super::shared::{POOL_MAX, POOL_MEAN, PoolArgs, THREADS, THREADS_PER_PLANE};
use super::{KernelArg, Launcher, to_u32};
use crate::kernels::shapes::PoolShape;

impl PoolShape {
    fn arg(&self) -> Result<KernelArg<'static>> {
        let [height, width] = self.input;
        let [rows, columns] = self.output;
        to_u32(height * width * self.step)?;
        Ok(KernelArg::Pool(PoolArgs {
            kind: if self.max { POOL_MAX } else { POOL_MEAN },
            kernel: to_u32(self.kernel)?,
            stride: to_u32(self.stride)?,
            padding: to_u32(self.padding)?,
            height: to_u32(height)?,
            width: to_u32(width)?,
            rows: to_u32(rows)?,
            columns: to_u32(columns)?,
            step: to_u32(self.step)?,
        }))
    }

    pub(crate) fn forward(&self, launcher: &mut impl Launcher, dtype: u32, [x, y]: [u64; 2]) -> Result<()> {
        let n = self.planes * self.output[0] * self.output[1];
        let args = [KernelArg::U32(dtype), self.arg()?, KernelArg::U64(x), KernelArg::U64(n as u64), KernelArg::U64(y)];
        launcher.launch("pool2d", n.div_ceil(THREADS), &args)
    }

    pub(crate) fn backward(&self, launcher: &mut impl Launcher, dtype: u32, [x, dy, dx]: [u64; 3]) -> Result<()> {
        let n = self.planes * self.input[0] * self.input[1];
        let args = [
            KernelArg::U32(dtype),
            self.arg()?,
            KernelArg::U64(x),
            KernelArg::U64(dy),
            KernelArg::U64(n as u64),
            KernelArg::U64(dx),
        ];
        launcher.launch("pool2d_backward", n.div_ceil(THREADS), &args)
    }
}

/// The mean of each of `planes` planes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mean {
    pub(crate) planes: usize,
    pub(crate) plane: usize,
    /// The distance from one pixel to the next: 1 in NCHW, the number of channels in NHWC.
    pub(crate) step: usize,
}

impl Mean {
    pub(crate) fn forward(self, launcher: &mut impl Launcher, dtype: u32, [x, y]: [u64; 2]) -> Result<()> {
        let Self { planes, plane, step } = self;
        let sizes = [KernelArg::U32(to_u32(planes)?), KernelArg::U32(to_u32(plane)?), KernelArg::U32(to_u32(step)?)];
        let args = [&[KernelArg::U32(dtype), KernelArg::U64(x)], &sizes[..], &[KernelArg::U64(y)]].concat();
        launcher.launch(
            "global_avg_pool2d",
            planes.div_ceil(if step == 1 { THREADS / THREADS_PER_PLANE } else { THREADS }),
            &args,
        )
    }

    pub(crate) fn backward(self, launcher: &mut impl Launcher, dtype: u32, [dy, dx]: [u64; 2]) -> Result<()> {
        let n = self.planes * self.plane;
        let (plane, step) = (KernelArg::U32(to_u32(self.plane)?), KernelArg::U32(to_u32(self.step)?));
        let args =
            [KernelArg::U32(dtype), KernelArg::U64(dy), plane, step, KernelArg::U64(n as u64), KernelArg::U64(dx)];
        launcher.launch("global_avg_pool2d_backward", n.div_ceil(THREADS), &args)
    }
}
