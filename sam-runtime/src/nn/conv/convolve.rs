//! The operation behind the layers that convolve.

#[cfg(feature = "cuda")]
use std::sync::OnceLock;

#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, Result, Shape, Tensor};

use crate::autograd::fused_op::{FusedOp, Saved};
use crate::autograd::tape::apply;
use crate::kernels::cpu::conv;
use crate::kernels::cpu::float::{View, for_float, like, output, view};
#[cfg(feature = "cuda")]
use crate::kernels::cuda;
use crate::kernels::prepare::{to_compute_dtype, weight_for};
use crate::kernels::shapes::{ConvDim, ConvShape};

/// What the configurations of all convolutions have.
#[derive(Clone, Copy)]
pub(super) struct Window {
    pub(super) padding: usize,
    pub(super) stride: usize,
    pub(super) dilation: usize,
    pub(super) groups: usize,
}

/// The side of a sequence that it does not have.
pub(super) const NO_SIDE: ConvDim = ConvDim { input: 1, kernel: 1, output: 1, stride: 1, padding: 0, dilation: 1 };

impl Window {
    /// Images and a weight that fit together.
    pub(super) fn of_images(self, x: &[usize], weight: &[usize]) -> Result<ConvShape> {
        let (&[images, channels, height, width], &[filters, in_group, kernel_height, kernel_width]) = (x, weight)
        else {
            candle_core::bail!("expected images and a weight of four dimensions, found {x:?} and {weight:?}")
        };
        self.check(&[kernel_height, kernel_width])?;
        if channels * height * width * filters == 0 {
            candle_core::bail!("expected at least one channel, row, column and filter, found {x:?} and {weight:?}")
        }
        self.check_channels("images", channels, in_group, filters)?;
        let (height, width) = (self.side("images", height, kernel_height)?, self.side("images", width, kernel_width)?);
        Ok(ConvShape { images, channels, filters, groups: self.groups, height, width })
    }

    /// Sequences and a weight that fit together, as images of one row.
    pub(super) fn of_sequences(self, x: &[usize], weight: &[usize]) -> Result<ConvShape> {
        let (&[images, channels, length], &[filters, in_group, kernel]) = (x, weight) else {
            candle_core::bail!("expected sequences and a weight of three dimensions, found {x:?} and {weight:?}")
        };
        self.check(&[kernel])?;
        if channels * length * filters == 0 {
            candle_core::bail!("expected at least one channel, element and filter, found {x:?} and {weight:?}")
        }
        self.check_channels("sequences", channels, in_group, filters)?;
        let width = self.side("sequences", length, kernel)?;
        Ok(ConvShape { images, channels, filters, groups: self.groups, height: NO_SIDE, width })
    }

    pub(super) fn check(self, kernel: &[usize]) -> Result<()> {
        let Self { stride, dilation, groups, .. } = self;
        if stride == 0 || dilation == 0 || groups == 0 || kernel.contains(&0) {
            let kernel: Vec<String> = kernel.iter().map(usize::to_string).collect();
            candle_core::bail!(
                "expected a stride, dilation, groups and kernel of at least 1, found {stride}, {dilation}, {groups} and {}",
                kernel.join("x")
            )
        }
        Ok(())
    }

    fn check_channels(self, what: &str, channels: usize, in_group: usize, filters: usize) -> Result<()> {
        let groups = self.groups;
        if channels != in_group * groups || !filters.is_multiple_of(groups) {
            candle_core::bail!(
                "expected {what} of {} channels and filters in {groups} equal groups, found {channels} channels and \
                 {filters} filters",
                in_group * groups
            )
        }
        Ok(())
    }

    fn side(self, what: &str, input: usize, kernel: usize) -> Result<ConvDim> {
        let Self { padding, stride, dilation, .. } = self;
        let (room, span) = (input + 2 * padding, dilation * (kernel - 1) + 1);
        if room < span {
            candle_core::bail!("expected {what} of at least {span} with their padding, found {room}")
        }
        Ok(ConvDim { input, kernel, output: (room - span) / stride + 1, stride, padding, dilation })
    }
}

/// The convolution of x with a weight, plus a bias.
pub(super) fn convolve(sizes: ConvShape, x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    apply_to(Convolve::new(sizes, x.rank()), sizes.filters, x, weight, bias)
}

/// Applies an operation of x, a weight and perhaps a bias of so many channels.
pub(super) fn apply_to(
    op: impl FusedOp,
    channels: usize,
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
) -> Result<Tensor> {
    let (wide, weight) = (to_compute_dtype(x)?, weight_for(x, weight)?);
    let y = match bias {
        None => apply(op, &[&wide, &weight])?,
        Some(bias) if bias.dims() == [channels] => apply(op, &[&wide, &weight, &weight_for(x, bias)?])?,
        Some(bias) => candle_core::bail!("expected a bias of {channels} channels, found {:?}", bias.dims()),
    };
    y.to_dtype(x.dtype())
}

/// (images, channels, height, width), or without the height where x is sequences.
pub(super) fn shape(rank: usize, images: usize, channels: usize, [height, width]: [usize; 2]) -> Shape {
    if rank == 3 { (images, channels, width).into() } else { (images, channels, height, width).into() }
}

/// Of x and w, and a bias if there is one.
struct Convolve {
    sizes: ConvShape,
    /// Of x and y: 4, or for sequences 3.
    rank: usize,
    /// The weight in the type and format of the images.
    #[cfg(feature = "cuda")]
    kept: OnceLock<Tensor>,
}

impl Convolve {
    fn new(sizes: ConvShape, rank: usize) -> Self {
        Self {
            sizes,
            rank,
            #[cfg(feature = "cuda")]
            kept: OnceLock::new(),
        }
    }
}

impl FusedOp for Convolve {
    fn name(&self) -> &'static str {
        if self.rank == 3 { "conv1d" } else { "conv2d" }
    }

    fn saved(&self) -> Saved {
        Saved::ARGS
    }

    fn forward(&self, args: &[Tensor]) -> Result<(CpuStorage, Shape)> {
        let (x, w, bias) = (view(&args[0]), view(&args[1]), args.get(2).map(view));
        let sizes = &self.sizes;
        let shape = shape(self.rank, sizes.images, sizes.filters, sizes.pixels());
        for_float!(args[0].dtype(), self.name(), |T| {
            if sizes.images == 0 {
                return Ok(output(Vec::<T>::new(), shape));
            }
            let bias = bias.as_ref().map(View::elements::<T>).transpose()?;
            Ok(output(conv::forward(sizes, x.elements::<T>()?, w.elements()?, bias), shape))
        })
    }

    fn backward(&self, args: &[Tensor], wanted: &[bool], _: &Tensor, dy: &Tensor) -> Result<Vec<Option<Tensor>>> {
        let sizes = &self.sizes;
        if sizes.images == 0 {
            return Ok(vec![None; args.len()]);
        }
        let (x, w, dy) = (view(&args[0]), view(&args[1]), view(dy));
        for_float!(args[0].dtype(), self.name(), |T| {
            let (x, w, dy) = (x.elements::<T>()?, w.elements::<T>()?, dy.elements::<T>()?);
            let gradient = |(i, arg): (usize, &Tensor)| {
                let values = match i {
                    _ if !wanted[i] => return Ok(None),
                    0 => conv::input_gradient(sizes, dy, w),
                    1 => conv::weight_gradient(sizes, x, dy),
                    _ => conv::bias_gradient(sizes.filters, sizes.pixels().iter().product(), dy),
                };
                like(values, arg).map(Some)
            };
            args.iter().enumerate().map(gradient).collect()
        })
    }

    #[cfg(feature = "cuda")]
    fn cuda_forward(&self, args: &[Tensor]) -> Result<(CudaStorage, Shape)> {
        let (storage, _) = cuda::conv(&self.sizes, &cuda::as_images(args)?, &self.kept)?;
        Ok((storage, shape(self.rank, self.sizes.images, self.sizes.filters, self.sizes.pixels())))
    }

    #[cfg(feature = "cuda")]
    fn cuda_backward(&self, args: &[Tensor], wanted: &[bool], _: &Tensor, dy: &Tensor) -> Result<Vec<Option<Tensor>>> {
        let images = cuda::as_images(args)?;
        let gradients = cuda::conv_back(&self.sizes, &images, self.kept.get(), wanted, &cuda::as_image(dy)?)?;
        cuda::in_shapes_of(args, gradients)
    }
}
