//! The layers' arithmetic, as launches of the kernels of `nn.cu`. Tensors have no gaps, and those of one operation one
//! [`ImageLayout`]; types are by their [code](super::code), and 0 is the address of what there is not.

use candle_core::Result;

use super::{Arg, Machine, Memory, bytes, word};
use crate::core::image_layout::ImageLayout;
use crate::kernels::shapes::PoolShape;

/// Elements that one block takes where each is by itself.
const STRETCH: usize = 1 << 12;

/// Threads of a block.
const THREADS: usize = 256;

/// Bytes that are read as one.
const VECTOR: usize = 16;

/// Elements that are read as one where each is of another channel.
const ROW_LANES: usize = 4;

/// The most threads side by side in a row of channels.
const ACROSS: usize = 16;

/// Channels that a block takes where their parts are added up.
const TOTALS: usize = 8;

/// Threads that take the mean of a plane together.
const TEAM: usize = 32;

/// Blocks that a reduction should have: what a large GPU can have at a time.
const ENOUGH: usize = 512;

/// What a normalisation knows of a channel: mean, 1/σ, γ/σ and β.
pub(crate) const STATISTICS: usize = 4;

fn elementwise(
    machine: &mut impl Machine,
    kernel: &'static str,
    dtype: u32,
    addresses: &[u64],
    n: usize,
    more: &[Arg<'_>],
) -> Result<()> {
    let mut args = vec![Arg::U32(dtype)];
    args.extend(addresses.iter().map(|address| Arg::U64(*address)));
    args.push(Arg::U64(n as u64));
    args.extend(more);
    machine.launch(kernel, n.div_ceil(STRETCH), &args)
}

/// y = max(x, 0), of n elements.
pub(crate) fn relu(machine: &mut impl Machine, dtype: u32, [x, y]: [u64; 2], n: usize) -> Result<()> {
    elementwise(machine, "nn_relu", dtype, &[x, y], n, &[])
}

/// dx = dy where y > 0, else 0.
pub(crate) fn relu_back(machine: &mut impl Machine, dtype: u32, [y, dy, dx]: [u64; 3], n: usize) -> Result<()> {
    elementwise(machine, "nn_relu_back", dtype, &[y, dy, dx], n, &[])
}

/// y = a + b
pub(crate) fn add(machine: &mut impl Machine, dtype: u32, [a, b, y]: [u64; 3], n: usize) -> Result<()> {
    elementwise(machine, "nn_add", dtype, &[a, b, y], n, &[])
}

/// Sets elements to 0 with a probability, and scales the others.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Dropout {
    pub(crate) seed: u64,
    /// The probability.
    pub(crate) drop: f32,
    pub(crate) scale: f32,
    /// Pixels of a channel, and channels that lie side by side: 1 in planes.
    pub(crate) plane: usize,
    pub(crate) step: usize,
}

impl Dropout {
    /// Of n elements.
    pub(crate) fn of(self, machine: &mut impl Machine, dtype: u32, [x, y]: [u64; 2], n: usize) -> Result<()> {
        let Self { seed, drop, scale, plane, step } = self;
        let place = [Arg::U64(plane as u64), Arg::U64(step as u64)];
        let mask = [Arg::U64(seed), Arg::F64(drop.into()), Arg::F64(scale.into())];
        elementwise(machine, "nn_dropout", dtype, &[x, y], n, &[&place[..], &mask].concat())
    }
}

/// y = Σ f x over one or two tensors x, with a number f for each example of so many elements: in f64 for f64, else in f32.
pub(crate) fn mixture(
    machine: &mut impl Machine,
    dtype: u32,
    [a, b, y]: [u64; 3],
    [n, example]: [usize; 2],
    factors: [u64; 2],
) -> Result<()> {
    let more = [Arg::U64(example as u64), Arg::U64(factors[0]), Arg::U64(factors[1])];
    elementwise(machine, "nn_mixture", dtype, &[a, b, y], n, &more)
}

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
struct Share {
    arg: Arg<'static>,
    blocks: usize,
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
    fn share(self, dtype: u32, addresses: &[u64]) -> Result<Share> {
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

    fn count(self) -> f64 {
        (self.images * self.plane) as f64
    }

    fn parts(self, machine: &mut impl Machine) -> Result<Arg<'static>> {
        machine.memory(Memory::Parts, 2 * self.channels * self.splits()).map(Arg::U64)
    }

    /// Σ(x - origin) and Σ(x - origin)² of each part.
    fn moments(self, machine: &mut impl Machine, dtype: u32, x: u64, centred: bool) -> Result<Arg<'static>> {
        let (share, parts, centred) = (self.share(dtype, &[x])?, self.parts(machine)?, Arg::U32(centred.into()));
        machine.launch("nn_moments", share.blocks, &[Arg::U32(dtype), share.arg, Arg::U64(x), centred, parts])?;
        Ok(parts)
    }

    /// Blocks that add up parts.
    fn totals(self) -> usize {
        self.channels.div_ceil(TOTALS)
    }
}

/// How to normalise, and with what.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Norm {
    pub(crate) sizes: Channels,
    pub(crate) eps: f64,
    /// Whether the mean is subtracted.
    pub(crate) centred: bool,
    pub(crate) relu: bool,
    /// Of x and everything of its size.
    pub(crate) dtype: u32,
    /// Of γ and β.
    pub(crate) affine_dtype: u32,
    pub(crate) weight: u64,
    pub(crate) bias: u64,
    /// Memory for [`STATISTICS`] f64 for each channel.
    pub(crate) statistics: u64,
}

/// The running statistics of a layer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Running {
    pub(crate) dtype: u32,
    pub(crate) mean: u64,
    pub(crate) var: u64,
}

impl Norm {
    /// Its type is the low half of the first word.
    fn affine(&self) -> Arg<'static> {
        Arg::Affine([self.affine_dtype.into(), self.weight, self.bias])
    }

    /// The statistics of the batch; running ones move by `momentum` towards them.
    pub(crate) fn measure(&self, machine: &mut impl Machine, x: u64, running: Option<(Running, f64)>) -> Result<()> {
        let parts = self.sizes.moments(machine, self.dtype, x, self.centred)?;
        let (running, momentum) = running.unwrap_or((Running { dtype: 0, mean: 0, var: 0 }, 0.0));
        let args = [
            Arg::U32(self.dtype),
            self.sizes.share(self.dtype, &[x])?.arg,
            Arg::U64(x),
            self.affine(),
            Arg::U32(self.centred.into()),
            Arg::F64(self.sizes.count()),
            Arg::F64(self.eps),
            parts,
            Arg::U64(self.statistics),
            Arg::F64(momentum),
            Arg::U32(running.dtype),
            Arg::U64(running.mean),
            Arg::U64(running.var),
        ];
        machine.launch("nn_statistics", self.sizes.totals(), &args)
    }

    /// The running statistics, in place of those of the batch.
    pub(crate) fn take(&self, machine: &mut impl Machine, running: Running) -> Result<()> {
        let args = [
            Arg::U32(running.dtype),
            Arg::U64(running.mean),
            Arg::U64(running.var),
            Arg::U32(word(self.sizes.channels)?),
            self.affine(),
            Arg::F64(self.eps),
            Arg::U64(self.statistics),
        ];
        machine.launch("nn_running", self.sizes.channels.div_ceil(THREADS), &args)
    }

    /// y = relu(γ (x - mean) / σ + β + residual)
    pub(crate) fn forward(&self, machine: &mut impl Machine, [x, residual, y]: [u64; 3]) -> Result<()> {
        let share = self.sizes.share(self.dtype, &[x, residual, y])?;
        let args = [
            Arg::U32(self.dtype),
            share.arg,
            Arg::U64(x),
            Arg::U64(residual),
            Arg::U64(self.statistics),
            Arg::U32(self.relu.into()),
            Arg::U64(y),
        ];
        machine.launch("nn_normalise", share.blocks, &args)
    }

    /// The gradients of x, the residual, γ and β from that of y. y is needed where there was a residual, `lines` is memory
    /// for two f64 for each channel, and `fixed` says that the statistics were not those of the batch.
    pub(crate) fn backward(
        &self,
        machine: &mut impl Machine,
        [x, y, dy]: [u64; 3],
        fixed: bool,
        lines: u64,
        [dx, d_residual, d_weight, d_bias]: [u64; 4],
    ) -> Result<()> {
        let images = [Arg::U64(x), Arg::U64(y), Arg::U64(dy), Arg::U64(self.statistics), Arg::U32(self.relu.into())];
        let of = |share: &Share| [&[Arg::U32(self.dtype), share.arg], &images[..]].concat();

        let (share, parts) = (self.sizes.share(self.dtype, &[x, y, dy])?, self.sizes.parts(machine)?);
        machine.launch("nn_slopes", share.blocks, &[&of(&share)[..], &[parts]].concat())?;

        let args = [
            share.arg,
            Arg::U64(self.statistics),
            Arg::U32(self.centred.into()),
            Arg::U32(fixed.into()),
            Arg::F64(self.sizes.count()),
            parts,
            Arg::U64(lines),
            Arg::U32(self.affine_dtype),
            Arg::U64(d_weight),
            Arg::U64(d_bias),
        ];
        machine.launch("nn_lines", self.sizes.totals(), &args)?;

        let share = self.sizes.share(self.dtype, &[x, y, dy, dx, d_residual])?;
        let outputs = [Arg::U64(lines), Arg::U64(dx), Arg::U64(d_residual)];
        machine.launch("nn_normalise_back", share.blocks, &[&of(&share)[..], &outputs].concat())
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

/// What the rows of logits should be: labels in i64, of which a share is spread evenly, or probabilities.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Target {
    Labels { address: u64, smoothing: f64 },
    Probabilities { address: u64, dtype: u32 },
}

/// The mean cross entropy of logits (rows, classes).
#[derive(Clone, Copy, Debug)]
pub(crate) struct CrossEntropy {
    pub(crate) rows: usize,
    pub(crate) classes: usize,
    pub(crate) dtype: u32,
    pub(crate) target: Target,
}

impl CrossEntropy {
    fn args(&self, logits: u64) -> Result<[Arg<'static>; 7]> {
        let (labels, dtype, probabilities, smoothing) = match self.target {
            Target::Labels { address, smoothing } => (address, 0, 0, smoothing),
            Target::Probabilities { address, dtype } => (0, dtype, address, 0.0),
        };
        Ok([
            Arg::U32(self.dtype),
            Arg::U64(logits),
            Arg::U64(labels),
            Arg::U32(dtype),
            Arg::U64(probabilities),
            Arg::F64(smoothing),
            Arg::U32(word(self.classes)?),
        ])
    }

    /// A label that is no class makes the loss NaN: looking would wait for the device.
    pub(crate) fn forward(&self, machine: &mut impl Machine, [logits, loss]: [u64; 2]) -> Result<()> {
        let costs = Arg::U64(machine.memory(Memory::Parts, self.rows)?);
        machine.launch("nn_costs", self.rows, &[&self.args(logits)?[..], &[costs]].concat())?;
        let args = [costs, Arg::U32(word(self.rows)?), Arg::U32(self.dtype), Arg::U64(loss)];
        machine.launch("nn_mean_cost", 1, &args)
    }

    pub(crate) fn backward(&self, machine: &mut impl Machine, [logits, dy, dx]: [u64; 3]) -> Result<()> {
        let more = [Arg::U32(word(self.rows)?), Arg::U64(dy), Arg::U64(dx)];
        machine.launch("nn_costs_back", self.rows, &[&self.args(logits)?[..], &more].concat())
    }
}
