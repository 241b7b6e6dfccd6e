//! Images of another size by interpolation.
//!
//! Models call `Tensor::upsample_nearest2d` and the like, whose gradients candle refuses where the factor is no integer, and for
//! bilinear interpolation altogether. These functions have the same values, and gradients.

#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, Result, Shape, Tensor};

use crate::autograd::fused_op::{FusedOp, Saved};
use crate::autograd::tape::apply;
use crate::kernels::cpu::upsample as cpu;
#[cfg(feature = "cuda")]
use crate::kernels::cuda;
use crate::kernels::prepare::to_compute_dtype;
use crate::kernels::shapes::{Resize, ResizeMode, UpsampleShape};
use crate::kernels::{has_fused_kernels, portable};

/// Sequences (batch, channels, length) with another length, whose elements are the nearest of `x` (rounded down), as
/// `Tensor::upsample_nearest1d`. Each element's gradient is the sum over its copies.
///
/// # Errors
/// If `x` has other than three dimensions, no elements in its last, or is not a float tensor.
///
/// ```
/// use candle_core::{Device, Result, Tensor};
/// use sam_runtime::nn;
///
/// # fn main() -> Result<()> {
/// let x = Tensor::new(&[[[1f32, 2.]]], &Device::Cpu)?;
/// assert_eq!(nn::upsample_nearest1d(&x, 3)?.to_vec3::<f32>()?, [[[1., 1., 2.]]]);
/// # Ok(())
/// # }
/// ```
pub fn upsample_nearest1d(x: &Tensor, target_size: usize) -> Result<Tensor> {
    let (_, _, length) = x.dims3()?;
    check(x, &[length])?;
    let [rows, columns] = [(1, 1), (length, target_size)].map(|(i, o)| Resize::new(i, o, None, ResizeMode::Nearest));
    upsample(x, rows, columns)
}

/// Images (batch, channels, height, width) with another height and width, whose pixels are the nearest of `x` (rounded down), as
/// `Tensor::upsample_nearest2d`. Each pixel's gradient is the sum over its copies.
///
/// # Errors
/// If `x` has other than four dimensions, no pixels, or is not a float tensor.
///
/// ```
/// use candle_core::{DType, Device, Result, Tensor};
/// use sam_runtime::nn;
///
/// # fn main() -> Result<()> {
/// let x = Tensor::zeros((2, 16, 7, 7), DType::F32, &Device::Cpu)?;
/// assert_eq!(nn::upsample_nearest2d(&x, 10, 14)?.dims(), [2, 16, 10, 14]);
/// # Ok(())
/// # }
/// ```
pub fn upsample_nearest2d(x: &Tensor, target_h: usize, target_w: usize) -> Result<Tensor> {
    resize(x, [target_h, target_w], [None; 2], ResizeMode::Nearest)
}

/// Images (batch, channels, height, width) with another height and width, by bilinear interpolation, as
/// `Tensor::upsample_bilinear2d` and PyTorch's `interpolate(size = ..)`. With `align_corners` the pixels in the corners stay there.
///
/// # Errors
/// As [`upsample_nearest2d`].
///
/// ```
/// use candle_core::{Device, Result, Var};
/// use sam_runtime::nn;
///
/// # fn main() -> Result<()> {
/// let x = Var::new(&[[[[0f32, 4.]]]], &Device::Cpu)?;
/// let y = nn::upsample_bilinear2d(&x, 1, 4, false)?;
/// assert_eq!(y.flatten_all()?.to_vec1::<f32>()?, [0., 1., 3., 4.]);
/// assert_eq!(y.sum_all()?.backward()?.get(&x).unwrap().flatten_all()?.to_vec1::<f32>()?, [2., 2.]);
/// # Ok(())
/// # }
/// ```
pub fn upsample_bilinear2d(x: &Tensor, target_h: usize, target_w: usize, align_corners: bool) -> Result<Tensor> {
    resize(x, [target_h, target_w], [None; 2], linear(align_corners))
}

#[allow(clippy::cast_sign_loss, reason = "factors are positive")]
/// [`upsample_bilinear2d`] by factors, as `Tensor::upsample_bilinear2d_with_scale` and PyTorch's `interpolate(scale_factor = ..)`.
///
/// # Errors
/// As [`upsample_nearest2d`], and if a factor is not a positive number.
pub fn upsample_bilinear2d_with_scale(x: &Tensor, scale_h: f64, scale_w: f64, align_corners: bool) -> Result<Tensor> {
    let (_, _, height, width) = x.dims4()?;
    if !(scale_h > 0.0 && scale_h.is_finite() && scale_w > 0.0 && scale_w.is_finite()) {
        candle_core::bail!("expected positive factors, found {scale_h} and {scale_w}")
    }
    let size = [(height, scale_h), (width, scale_w)].map(|(side, scale)| (side as f64 * scale).floor() as usize);
    if size == [height, width] {
        return Ok(x.clone());
    }
    resize(x, size, [Some(scale_h), Some(scale_w)], linear(align_corners))
}

fn linear(align_corners: bool) -> ResizeMode {
    if align_corners { ResizeMode::AlignedCorners } else { ResizeMode::Linear }
}

fn resize(x: &Tensor, size: [usize; 2], factors: [Option<f64>; 2], mode: ResizeMode) -> Result<Tensor> {
    let (_, _, height, width) = x.dims4()?;
    check(x, &[height, width])?;
    let rows = Resize::new(height, size[0], factors[0], mode);
    upsample(x, rows, Resize::new(width, size[1], factors[1], mode))
}

fn check(x: &Tensor, sides: &[usize]) -> Result<()> {
    if sides.contains(&0) {
        candle_core::bail!("expected something to interpolate, found {:?}", x.dims())
    }
    if !x.dtype().is_float() {
        candle_core::bail!("expected a tensor of floats, found {:?}", x.dtype())
    }
    Ok(())
}

fn upsample(x: &Tensor, rows: Resize, columns: Resize) -> Result<Tensor> {
    if !has_fused_kernels(x.device()) {
        return portable::upsample::upsample(x, &rows, &columns);
    }
    let images = to_compute_dtype(x)?;
    #[cfg(feature = "cuda")]
    let step = if images.device().is_cuda() { cuda::step(&images)? } else { 1 };
    #[cfg(not(feature = "cuda"))]
    let step = 1;
    let planes = x.dims()[..2].iter().product();
    apply(Upsample(UpsampleShape { rows, columns, planes, step }), &[&images])?.to_dtype(x.dtype())
}

struct Upsample(UpsampleShape);

impl Upsample {
    fn shape(&self, x: &Tensor) -> Shape {
        let mut dims = x.dims().to_vec();
        let n = dims.len();
        dims[n - 1] = self.0.columns.output;
        if n == 4 {
            dims[2] = self.0.rows.output;
        }
        dims.into()
    }
}

impl FusedOp for Upsample {
    fn name(&self) -> &'static str {
        "upsample"
    }

    fn saved(&self) -> Saved {
        Saved::ARGS
    }

    fn forward(&self, args: &[Tensor]) -> Result<(CpuStorage, Shape)> {
        cpu::upsample(&self.0, &args[0], self.shape(&args[0]))
    }

    fn backward(&self, args: &[Tensor], _: &[bool], _: &Tensor, dy: &Tensor) -> Result<Vec<Option<Tensor>>> {
        Ok(vec![Some(cpu::upsample_back(&self.0, &args[0], dy)?)])
    }

    #[cfg(feature = "cuda")]
    fn cuda_forward(&self, args: &[Tensor]) -> Result<(CudaStorage, Shape)> {
        cuda::upsample(&self.0, &args[0], self.shape(&args[0]))
    }

    #[cfg(feature = "cuda")]
    fn cuda_backward(&self, args: &[Tensor], _: &[bool], _: &Tensor, dy: &Tensor) -> Result<Vec<Option<Tensor>>> {
        Ok(vec![Some(cuda::upsample_back(&self.0, &args[0], dy)?)])
    }
}
