//! The operation behind the transposed convolutions: the gradient of a convolution's input as a forward pass.

#[cfg(feature = "cuda")]
use std::sync::OnceLock;

#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, Result, Shape, Tensor};

use super::convolve::{NO_SIDE, Window, apply_to, shape};
use crate::autograd::fused_op::{FusedOp, Saved};
use crate::kernels::cpu::conv;
use crate::kernels::cpu::float::{View, for_float, like, output, view};
#[cfg(feature = "cuda")]
use crate::kernels::cuda;
use crate::kernels::shapes::{ConvDim, ConvShape};

/// The transposed convolution of x, of rank 3 or 4, with a weight of
/// `(in_channels, out_channels / groups, ..)`, plus a bias.
pub(super) fn transpose(
    window: Window,
    output_padding: usize,
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
) -> Result<Tensor> {
    let sizes = sizes(window, output_padding, x.dims(), weight.dims())?;
    let op = Transpose {
        sizes,
        rank: x.rank(),
        #[cfg(feature = "cuda")]
        kept: OnceLock::new(),
    };
    apply_to(op, sizes.channels, x, weight, bias)
}

/// The convolution whose output has x's shape, and its input that of the result.
fn sizes(window: Window, output_padding: usize, x: &[usize], weight: &[usize]) -> Result<ConvShape> {
    let Window { padding, stride, dilation, groups } = window;
    let (images, filters, kernel) = (x[0], x[1], &weight[2..]);
    window.check(kernel)?;
    let channels = weight[1] * groups;
    if weight[0] != filters || !filters.is_multiple_of(groups) {
        candle_core::bail!(
            "expected an input of {} channels in {groups} equal groups, found {filters} channels",
            weight[0]
        )
    }
    if channels * x[1..].iter().product::<usize>() == 0 {
        candle_core::bail!("expected at least one channel and element, found {x:?} and {weight:?}")
    }
    let side = |from: usize, kernel: usize| {
        let room = (from - 1) * stride + dilation * (kernel - 1) + output_padding + 1;
        if room <= 2 * padding {
            candle_core::bail!("expected a padding of less than half of {room}, found {padding}")
        }
        Ok(ConvDim { input: room - 2 * padding, kernel, output: from, stride, padding, dilation })
    };
    let (height, width) = match (&x[2..], kernel) {
        (&[length], &[kernel]) => (NO_SIDE, side(length, kernel)?),
        (&[height, width], &[down, right]) => (side(height, down)?, side(width, right)?),
        _ => candle_core::bail!("expected an input and a weight of as many dimensions, found {x:?} and {weight:?}"),
    };
    Ok(ConvShape { images, channels, filters, groups, height, width })
}

/// Of x and w, and a bias if there is one.
struct Transpose {
    sizes: ConvShape,
    /// Of x and y: 4, or for sequences 3.
    rank: usize,
    /// The weight in the type and format of the images.
    #[cfg(feature = "cuda")]
    kept: OnceLock<Tensor>,
}

impl Transpose {
    /// Height and width of the result.
    fn sides(&self) -> [usize; 2] {
        [self.sizes.height.input, self.sizes.width.input]
    }

    fn shape(&self) -> Shape {
        shape(self.rank, self.sizes.images, self.sizes.channels, self.sides())
    }
}

impl FusedOp for Transpose {
    fn name(&self) -> &'static str {
        if self.rank == 3 { "conv-transpose1d" } else { "conv-transpose2d" }
    }

    fn saved(&self) -> Saved {
        Saved::ARGS
    }

    fn forward(&self, args: &[Tensor]) -> Result<(CpuStorage, Shape)> {
        let (x, w, bias) = (view(&args[0]), view(&args[1]), args.get(2).map(view));
        for_float!(args[0].dtype(), self.name(), |T| {
            if self.sizes.images == 0 {
                return Ok(output(Vec::<T>::new(), self.shape()));
            }
            let mut y = conv::input_gradient(&self.sizes, x.elements::<T>()?, w.elements()?);
            if let Some(bias) = bias.as_ref().map(View::elements::<T>).transpose()? {
                conv::add_bias(self.sides().iter().product(), bias, &mut y);
            }
            Ok(output(y, self.shape()))
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
                    0 => conv::forward(sizes, dy, w, None),
                    1 => conv::weight_gradient(sizes, dy, x),
                    _ => conv::bias_gradient(sizes.channels, self.sides().iter().product(), dy),
                };
                like(values, arg).map(Some)
            };
            args.iter().enumerate().map(gradient).collect()
        })
    }

    #[cfg(feature = "cuda")]
    fn cuda_forward(&self, args: &[Tensor]) -> Result<(CudaStorage, Shape)> {
        let (storage, _) = cuda::conv_transpose(&self.sizes, &cuda::as_images(args)?, &self.kept)?;
        Ok((storage, self.shape()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_backward(&self, args: &[Tensor], wanted: &[bool], _: &Tensor, dy: &Tensor) -> Result<Vec<Option<Tensor>>> {
        let images = cuda::as_images(args)?;
        let gradients = cuda::conv_transpose_back(&self.sizes, &images, self.kept.get(), wanted, &cuda::as_image(dy)?)?;
        cuda::in_shapes_of(args, gradients)
    }
}
