//! Pooling.

use candle_core::Result;

use super::{Arg, Machine, THREADS, word};
use crate::kernels::shapes::PoolShape;

/// Threads that take the mean of a plane together.
const TEAM: usize = 32;

impl PoolShape {
    fn arg(&self) -> Result<Arg<'static>> {
        let [height, width] = self.input;
        let [rows, columns] = self.output;
        word(height * width * self.step)?;
        let mut sizes = [0; 9];
        let values =
            [usize::from(!self.max), self.kernel, self.stride, self.padding, height, width, rows, columns, self.step];
        for (size, value) in sizes.iter_mut().zip(values) {
            *size = word(value)?;
        }
        Ok(Arg::Pool(sizes))
    }

    pub(crate) fn forward(&self, machine: &mut impl Machine, dtype: u32, [x, y]: [u64; 2]) -> Result<()> {
        let n = self.planes * self.output[0] * self.output[1];
        let args = [Arg::U32(dtype), self.arg()?, Arg::U64(x), Arg::U64(n as u64), Arg::U64(y)];
        machine.launch("nn_pool", n.div_ceil(THREADS), &args)
    }

    pub(crate) fn backward(&self, machine: &mut impl Machine, dtype: u32, [x, dy, dx]: [u64; 3]) -> Result<()> {
        let n = self.planes * self.input[0] * self.input[1];
        let args = [Arg::U32(dtype), self.arg()?, Arg::U64(x), Arg::U64(dy), Arg::U64(n as u64), Arg::U64(dx)];
        machine.launch("nn_pool_back", n.div_ceil(THREADS), &args)
    }
}

/// The mean of each of `planes` planes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mean {
    pub(crate) planes: usize,
    pub(crate) plane: usize,
    /// From one pixel to the next: 1 in planes, else the number of channels.
    pub(crate) step: usize,
}

impl Mean {
    pub(crate) fn forward(self, machine: &mut impl Machine, dtype: u32, [x, y]: [u64; 2]) -> Result<()> {
        let Self { planes, plane, step } = self;
        let sizes = [Arg::U32(word(planes)?), Arg::U32(word(plane)?), Arg::U32(word(step)?)];
        let args = [&[Arg::U32(dtype), Arg::U64(x)], &sizes[..], &[Arg::U64(y)]].concat();
        machine.launch("nn_mean", planes.div_ceil(if step == 1 { THREADS / TEAM } else { THREADS }), &args)
    }

    pub(crate) fn backward(self, machine: &mut impl Machine, dtype: u32, [dy, dx]: [u64; 2]) -> Result<()> {
        let n = self.planes * self.plane;
        let (plane, step) = (Arg::U32(word(self.plane)?), Arg::U32(word(self.step)?));
        let args = [Arg::U32(dtype), Arg::U64(dy), plane, step, Arg::U64(n as u64), Arg::U64(dx)];
        machine.launch("nn_mean_back", n.div_ceil(THREADS), &args)
    }
}
