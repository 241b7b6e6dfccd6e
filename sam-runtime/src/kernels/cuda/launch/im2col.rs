//! Launches of `im2col.cu`.

use candle_core::Result;

use super::shared::{ConvArgs, FILTER_TILE, THREADS};
use super::{KernelArg, Launcher, to_u32};
use crate::core::image_layout::ImageLayout;
use crate::kernels::shapes::ConvShape;

/// The weight of a convolution, (filters, channels, taps of the kernel), which changes its layout and dtype.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Filters {
    pub(crate) count: usize,
    pub(crate) channels: usize,
    pub(crate) taps: usize,
}

impl Filters {
    pub(crate) fn permute(
        self,
        launcher: &mut impl Launcher,
        [from, to]: [u32; 2],
        [x, y]: [u64; 2],
        format: ImageLayout,
    ) -> Result<()> {
        let sizes = [to_u32(self.channels)?, to_u32(self.taps)?].map(KernelArg::U32);
        let to_nhwc = KernelArg::U32((format == ImageLayout::Nhwc).into());
        let tensors = [KernelArg::U32(from), KernelArg::U64(x), KernelArg::U32(to), KernelArg::U64(y)];
        let args = [&tensors[..], &sizes, &[to_nhwc]].concat();
        launcher.launch("permute_filters", self.count * self.channels.div_ceil(FILTER_TILE), &args)
    }
}

/// The matrix of patches of a convolution: rows (channel, kernel row, kernel column), columns (image, row, column).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patches {
    pub(crate) images: usize,
    pub(crate) channels: usize,
    pub(crate) input: [usize; 2],
    pub(crate) kernel: [usize; 2],
    pub(crate) output: [usize; 2],
    pub(crate) stride: [usize; 2],
    pub(crate) padding: [usize; 2],
    pub(crate) dilation: [usize; 2],
}

impl Patches {
    pub(crate) fn new(conv: &ConvShape) -> Self {
        let ConvShape { images, channels, height, width, .. } = *conv;
        Self {
            images,
            channels,
            input: [height.input, width.input],
            kernel: [height.kernel, width.kernel],
            output: [height.output, width.output],
            stride: [height.stride, width.stride],
            padding: [height.padding, width.padding],
            dilation: [height.dilation, width.dilation],
        }
    }

    /// Rows and columns of the matrix.
    pub(crate) fn matrix(&self) -> [usize; 2] {
        let [product, pixels] = [self.kernel, self.output].map(|[height, width]| height * width);
        [self.channels * product, self.images * pixels]
    }

    pub(super) fn arg(&self) -> Result<KernelArg<'static>> {
        let [height, width] = self.input;
        let [kernel_height, kernel_width] = self.kernel;
        let [rows, columns] = self.output;
        Ok(KernelArg::Conv(ConvArgs {
            images: to_u32(self.images)?,
            channels: to_u32(self.channels)?,
            height: to_u32(height)?,
            width: to_u32(width)?,
            kernel_height: to_u32(kernel_height)?,
            kernel_width: to_u32(kernel_width)?,
            rows: to_u32(rows)?,
            columns: to_u32(columns)?,
            stride_down: to_u32(self.stride[0])?,
            stride_right: to_u32(self.stride[1])?,
            padding_down: to_u32(self.padding[0])?,
            padding_right: to_u32(self.padding[1])?,
            dilation_down: to_u32(self.dilation[0])?,
            dilation_right: to_u32(self.dilation[1])?,
        }))
    }

    pub(crate) fn im2col(&self, launcher: &mut impl Launcher, dtype: u32, [x, patches]: [u64; 2]) -> Result<()> {
        let [rows, columns] = self.matrix();
        let n = rows * columns;
        let args =
            [KernelArg::U32(dtype), self.arg()?, KernelArg::U64(x), KernelArg::U64(n as u64), KernelArg::U64(patches)];
        launcher.launch("im2col", n.div_ceil(THREADS), &args)
    }

    /// The gradient of the images from that of the patches.
    pub(crate) fn col2im(&self, launcher: &mut impl Launcher, dtype: u32, [patches, dx]: [u64; 2]) -> Result<()> {
        let n = self.images * self.channels * self.input[0] * self.input[1];
        let args =
            [KernelArg::U32(dtype), self.arg()?, KernelArg::U64(patches), KernelArg::U64(n as u64), KernelArg::U64(dx)];
        launcher.launch("col2im", n.div_ceil(THREADS), &args)
    }
}
