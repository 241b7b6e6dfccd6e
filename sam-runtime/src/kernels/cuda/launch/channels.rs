//! How the blocks share the channels of images, and launches of `channels.cu`.

use candle_core::Result;

use super::shared::{CHANNELS_PER_BLOCK, ChannelArgs, MAX_ROW_LANES, THREADS, VECTOR_BYTES};
use super::{KernelArg, Launcher, Scratch, bytes, to_u32};
use crate::core::image_layout::ImageLayout;

/// Neighboring threads in a row of channels, at most.
const MAX_THREADS_PER_ROW: usize = 16;

/// Blocks that a reduction aims at: enough to fill a large GPU.
const TARGET_BLOCKS: usize = 512;

/// Images of `channels` channels of `plane` pixels.
#[derive(Clone, Copy, Debug)]
#[expect(clippy::struct_field_names, reason = "the sizes of (images, channels, plane)")]
pub(crate) struct Channels {
    pub(crate) images: usize,
    pub(crate) channels: usize,
    pub(crate) plane: usize,
    pub(crate) format: ImageLayout,
}

/// The argument that shares images among blocks, and the number of blocks.
pub(super) struct Grid {
    pub(super) arg: KernelArg<'static>,
    pub(super) blocks: usize,
}

impl Channels {
    /// Whether the channels of a pixel are neighbors in memory.
    fn in_rows(self) -> bool {
        self.format == ImageLayout::Nhwc || self.plane == 1
    }

    /// Neighboring threads in a row of channels, with `lanes` channels each.
    fn across(self, lanes: usize) -> usize {
        self.channels.div_ceil(lanes).next_power_of_two().min(MAX_THREADS_PER_ROW)
    }

    /// Parts that each channel is divided into.
    fn splits(self) -> usize {
        if self.in_rows() {
            // Several pixels per thread, so that several loads are in flight.
            let across = self.across(MAX_ROW_LANES);
            let (strips, pixels_per_block) = (self.channels.div_ceil(MAX_ROW_LANES * across), 8 * THREADS / across);
            TARGET_BLOCKS.div_ceil(strips.max(1)).min((self.images * self.plane).div_ceil(pixels_per_block)).max(1)
        } else {
            TARGET_BLOCKS.div_ceil(self.channels.max(1)).min(self.images).max(1)
        }
    }

    /// For tensors of this dtype at these addresses. Uses vectors if sizes and alignment permit.
    pub(super) fn grid(self, dtype: u32, addresses: &[u64]) -> Result<Grid> {
        let Self { images, channels, plane, .. } = self;
        if images * plane > 1 << 31 {
            candle_core::bail!("expected at most 2^31 pixels, found {images} images of {plane}")
        }
        let (rows, splits) = (self.in_rows(), self.splits());
        let lanes = (VECTOR_BYTES / bytes(dtype)).min(if rows { MAX_ROW_LANES } else { VECTOR_BYTES });
        let whole = (if rows { channels } else { plane }).is_multiple_of(lanes);
        let aligned = addresses.iter().all(|address| address.is_multiple_of(VECTOR_BYTES as u64));
        let lanes = if whole && aligned { lanes } else { 1 };
        let across = if rows { self.across(lanes) } else { 0 };
        let strips = if rows { channels.div_ceil(lanes * across) } else { channels };
        let arg = ChannelArgs {
            images: to_u32(images)?,
            channels: to_u32(channels)?,
            plane: to_u32(plane)?,
            splits: to_u32(splits)?,
            across: to_u32(across)?,
            lanes: to_u32(lanes)?,
        };
        Ok(Grid { arg: KernelArg::Channels(arg), blocks: strips * splits })
    }

    pub(super) fn count(self) -> f64 {
        (self.images * self.plane) as f64
    }

    pub(super) fn partials(self, launcher: &mut impl Launcher) -> Result<KernelArg<'static>> {
        launcher.scratch(Scratch::Partials, 2 * self.channels * self.splits()).map(KernelArg::U64)
    }

    /// Σ(x - origin) and Σ(x - origin)² of each part.
    pub(super) fn moments(
        self,
        launcher: &mut impl Launcher,
        dtype: u32,
        x: u64,
        centered: bool,
    ) -> Result<KernelArg<'static>> {
        let (grid, partials, centered) =
            (self.grid(dtype, &[x])?, self.partials(launcher)?, KernelArg::U32(centered.into()));
        launcher.launch(
            "channel_moments",
            grid.blocks,
            &[KernelArg::U32(dtype), grid.arg, KernelArg::U64(x), centered, partials],
        )?;
        Ok(partials)
    }

    /// Blocks of the kernels that add up partials.
    pub(super) fn sum_blocks(self) -> usize {
        self.channels.div_ceil(CHANNELS_PER_BLOCK)
    }
}

/// y ← y + bias, with one bias per channel.
pub(crate) fn bias(
    launcher: &mut impl Launcher,
    sizes: Channels,
    [dtype, bias_dtype]: [u32; 2],
    [y, bias]: [u64; 2],
) -> Result<()> {
    let grid = sizes.grid(dtype, &[y])?;
    let args = [KernelArg::U32(dtype), grid.arg, KernelArg::U64(y), KernelArg::U32(bias_dtype), KernelArg::U64(bias)];
    launcher.launch("channel_bias", grid.blocks, &args)
}

/// The gradient of the bias: Σ dy over each channel.
pub(crate) fn bias_back(
    launcher: &mut impl Launcher,
    sizes: Channels,
    [dtype, bias_dtype]: [u32; 2],
    [dy, d_bias]: [u64; 2],
) -> Result<()> {
    let partials = sizes.moments(launcher, dtype, dy, false)?;
    let args = [sizes.grid(dtype, &[dy])?.arg, partials, KernelArg::U32(bias_dtype), KernelArg::U64(d_bias)];
    launcher.launch("channel_bias_backward", sizes.sum_blocks(), &args)
}
