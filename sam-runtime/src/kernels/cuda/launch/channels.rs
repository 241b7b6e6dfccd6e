//! Channels of images, and a bias for each.

use candle_core::Result;

use super::{Arg, Machine, Memory, THREADS, VECTOR, bytes, word};
use crate::core::image_layout::ImageLayout;

/// Elements that are read as one where each is of another channel.
const ROW_LANES: usize = 4;

/// The most threads side by side in a row of channels.
const ACROSS: usize = 16;

/// Channels that a block takes where their parts are added up.
const TOTALS: usize = 8;

/// Blocks that a reduction should have: what a large GPU can have at a time.
const ENOUGH: usize = 512;

/// Images of `plane` pixels in channels.
#[derive(Clone, Copy, Debug)]
#[expect(clippy::struct_field_names, reason = "the sizes of (images, channels, plane)")]
pub(crate) struct Channels {
    pub(crate) images: usize,
    pub(crate) channels: usize,
    pub(crate) plane: usize,
    pub(crate) format: ImageLayout,
}

/// How the blocks of a kernel share images out.
pub(super) struct Share {
    pub(super) arg: Arg<'static>,
    pub(super) blocks: usize,
}

impl Channels {
    /// Whether the channels of a pixel lie side by side.
    fn in_rows(self) -> bool {
        self.format == ImageLayout::Nhwc || self.plane == 1
    }

    /// Threads side by side in a row, with so many channels each.
    fn across(self, lanes: usize) -> usize {
        self.channels.div_ceil(lanes).next_power_of_two().min(ACROSS)
    }

    /// Parts that each channel is taken in.
    fn splits(self) -> usize {
        if self.in_rows() {
            // Some rows for each thread: it asks for several at a time.
            let across = self.across(ROW_LANES);
            let (strips, some) = (self.channels.div_ceil(ROW_LANES * across), 8 * THREADS / across);
            ENOUGH.div_ceil(strips.max(1)).min((self.images * self.plane).div_ceil(some)).max(1)
        } else {
            ENOUGH.div_ceil(self.channels.max(1)).min(self.images).max(1)
        }
    }

    /// For tensors of this type at these addresses, which are taken in vectors where they can be.
    pub(super) fn share(self, dtype: u32, addresses: &[u64]) -> Result<Share> {
        let Self { images, channels, plane, .. } = self;
        if images * plane > 1 << 31 {
            candle_core::bail!("expected at most 2^31 pixels, found {images} images of {plane}")
        }
        let (rows, splits) = (self.in_rows(), self.splits());
        let lanes = (VECTOR / bytes(dtype)).min(if rows { ROW_LANES } else { VECTOR });
        let whole = (if rows { channels } else { plane }).is_multiple_of(lanes);
        let aligned = addresses.iter().all(|address| address.is_multiple_of(VECTOR as u64));
        let lanes = if whole && aligned { lanes } else { 1 };
        let across = if rows { self.across(lanes) } else { 0 };
        let strips = if rows { channels.div_ceil(lanes * across) } else { channels };
        let mut sizes = [0; 6];
        for (size, value) in sizes.iter_mut().zip([images, channels, plane, splits, across, lanes]) {
            *size = word(value)?;
        }
        Ok(Share { arg: Arg::Channels(sizes), blocks: strips * splits })
    }

    pub(super) fn count(self) -> f64 {
        (self.images * self.plane) as f64
    }

    pub(super) fn parts(self, machine: &mut impl Machine) -> Result<Arg<'static>> {
        machine.memory(Memory::Parts, 2 * self.channels * self.splits()).map(Arg::U64)
    }

    /// Σ(x - origin) and Σ(x - origin)² of each part.
    pub(super) fn moments(self, machine: &mut impl Machine, dtype: u32, x: u64, centred: bool) -> Result<Arg<'static>> {
        let (share, parts, centred) = (self.share(dtype, &[x])?, self.parts(machine)?, Arg::U32(centred.into()));
        machine.launch("nn_moments", share.blocks, &[Arg::U32(dtype), share.arg, Arg::U64(x), centred, parts])?;
        Ok(parts)
    }

    /// Blocks that add up parts.
    pub(super) fn totals(self) -> usize {
        self.channels.div_ceil(TOTALS)
    }
}

/// y ← y + bias, a number for each channel.
pub(crate) fn bias(
    machine: &mut impl Machine,
    sizes: Channels,
    [dtype, bias_dtype]: [u32; 2],
    [y, bias]: [u64; 2],
) -> Result<()> {
    let share = sizes.share(dtype, &[y])?;
    let args = [Arg::U32(dtype), share.arg, Arg::U64(y), Arg::U32(bias_dtype), Arg::U64(bias)];
    machine.launch("nn_bias", share.blocks, &args)
}

/// The gradient of such a bias: Σ dy over each channel.
pub(crate) fn bias_back(
    machine: &mut impl Machine,
    sizes: Channels,
    [dtype, bias_dtype]: [u32; 2],
    [dy, d_bias]: [u64; 2],
) -> Result<()> {
    let parts = sizes.moments(machine, dtype, dy, false)?;
    let args = [sizes.share(dtype, &[dy])?.arg, parts, Arg::U32(bias_dtype), Arg::U64(d_bias)];
    machine.launch("nn_bias_back", sizes.totals(), &args)
}
