//! Convolution as a matrix product.

use candle_core::Result;

use super::{Arg, Machine, THREADS, word};
use crate::core::image_layout::ImageLayout;

/// The weight of a convolution, (filters, channels, places of a kernel), from one format to the other, and from one type
/// to another.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Weight {
    pub(crate) filters: usize,
    pub(crate) channels: usize,
    pub(crate) places: usize,
}

impl Weight {
    pub(crate) fn swap_storage(
        self,
        machine: &mut impl Machine,
        [from, to]: [u32; 2],
        [x, y]: [u64; 2],
        format: ImageLayout,
    ) -> Result<()> {
        let sizes = [word(self.channels)?, word(self.places)?].map(Arg::U32);
        let to_rows = Arg::U32((format == ImageLayout::Nhwc).into());
        let tensors = [Arg::U32(from), Arg::U64(x), Arg::U32(to), Arg::U64(y)];
        let args = [&tensors[..], &sizes, &[to_rows]].concat();
        machine.launch("nn_exchange", self.filters * self.channels.div_ceil(THREADS), &args)
    }
}

/// A convolution as a product with a matrix of patches: rows (channel, kernel row, kernel column), columns (image, row,
/// column).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patches {
    pub(crate) images: usize,
    pub(crate) channels: usize,
    pub(crate) input: [usize; 2],
    pub(crate) kernel: [usize; 2],
    pub(crate) output: [usize; 2],
    pub(crate) stride: usize,
    pub(crate) padding: usize,
    pub(crate) dilation: usize,
}

impl Patches {
    /// Rows and columns of the matrix.
    pub(crate) fn matrix(&self) -> [usize; 2] {
        let [product, pixels] = [self.kernel, self.output].map(|[height, width]| height * width);
        [self.channels * product, self.images * pixels]
    }

    fn arg(&self) -> Result<Arg<'static>> {
        let mut sizes = [0; 11];
        let [height, width] = self.input;
        let [kernel_height, kernel_width] = self.kernel;
        let [rows, columns] = self.output;
        let values = [
            self.images,
            self.channels,
            height,
            width,
            kernel_height,
            kernel_width,
            rows,
            columns,
            self.stride,
            self.padding,
            self.dilation,
        ];
        for (size, value) in sizes.iter_mut().zip(values) {
            *size = word(value)?;
        }
        Ok(Arg::Convolution(sizes))
    }

    pub(crate) fn take(&self, machine: &mut impl Machine, dtype: u32, [x, patches]: [u64; 2]) -> Result<()> {
        let [rows, columns] = self.matrix();
        let n = rows * columns;
        let args = [Arg::U32(dtype), self.arg()?, Arg::U64(x), Arg::U64(n as u64), Arg::U64(patches)];
        machine.launch("nn_patches", n.div_ceil(THREADS), &args)
    }

    /// The gradient of the images from that of the patches.
    pub(crate) fn put_back(&self, machine: &mut impl Machine, dtype: u32, [patches, dx]: [u64; 2]) -> Result<()> {
        let n = self.images * self.channels * self.input[0] * self.input[1];
        let args = [Arg::U32(dtype), self.arg()?, Arg::U64(patches), Arg::U64(n as u64), Arg::U64(dx)];
        machine.launch("nn_patches_back", n.div_ceil(THREADS), &args)
    }
}
