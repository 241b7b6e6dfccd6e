//! Pooling of images, whose backward also works where windows overlap.

#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, Result, Shape, Tensor};

use crate::autograd::fused_op::{FusedOp, Saved};
use crate::autograd::tape::apply;
use crate::kernels::cpu::pool as cpu;
#[cfg(feature = "cuda")]
use crate::kernels::cuda;
use crate::kernels::has_fused_kernels;
use crate::kernels::prepare::to_compute_dtype;
use crate::kernels::shapes::PoolShape;

/// The largest element of each window of `kernel` by `kernel`, every `stride` rows and columns of (n, channels, height,
/// width), with `padding` elements on each side that are never the largest. Of equal elements the first gets the gradient, as
/// in PyTorch.
///
/// # Errors
/// If the sizes do not fit, if the padding is more than half a window, or if there is padding on a device other than the CPU
/// and CUDA.
///
/// ```
/// use candle_core::{DType, Device, Result, Tensor};
/// use sam_runtime::nn;
///
/// # fn main() -> Result<()> {
/// let x = Tensor::zeros((2, 64, 112, 112), DType::F32, &Device::Cpu)?;
/// assert_eq!(nn::max_pool2d(&x, 3, 2, 1)?.dims(), [2, 64, 56, 56]);
/// # Ok(())
/// # }
/// ```
pub fn max_pool2d(x: &Tensor, kernel: usize, stride: usize, padding: usize) -> Result<Tensor> {
    pool(x, true, [kernel, stride, padding])
}

/// The mean of each window, zeros of the padding included, otherwise as [`max_pool2d`].
///
/// # Errors
/// As [`max_pool2d`].
pub fn avg_pool2d(x: &Tensor, kernel: usize, stride: usize, padding: usize) -> Result<Tensor> {
    pool(x, false, [kernel, stride, padding])
}

/// The mean of each channel: from (n, channels, height, width) to (n, channels).
///
/// # Errors
/// If `x` has other than four dimensions, or images without pixels.
pub fn global_avg_pool2d(x: &Tensor) -> Result<Tensor> {
    let (_, _, height, width) = x.dims4()?;
    if height * width == 0 {
        candle_core::bail!("expected images to take the mean of, found {:?}", x.dims())
    }
    if has_fused_kernels(x.device()) {
        let mean = GlobalMean { plane: height * width };
        apply(mean, &[&to_compute_dtype(x)?])?.to_dtype(x.dtype())
    } else {
        x.mean((2, 3))
    }
}

fn pool(x: &Tensor, max: bool, [kernel, stride, padding]: [usize; 3]) -> Result<Tensor> {
    let (n, channels, height, width) = x.dims4()?;
    if kernel == 0 || stride == 0 || 2 * padding > kernel {
        candle_core::bail!(
            "expected a kernel and stride of at least 1 and a padding of at most half a kernel, found {kernel}, {stride} \
             and {padding}"
        )
    }
    if height * width == 0 || height.min(width) + 2 * padding < kernel {
        candle_core::bail!("expected images of at least {kernel} with their padding, found {:?}", x.dims())
    }
    if has_fused_kernels(x.device()) {
        let images = to_compute_dtype(x)?;
        #[cfg(feature = "cuda")]
        let step = if images.device().is_cuda() { cuda::step(&images)? } else { 1 };
        #[cfg(not(feature = "cuda"))]
        let step = 1;
        let (input, planes) = ([height, width], n * channels);
        let output = input.map(|side| (side + 2 * padding - kernel) / stride + 1);
        let shape = PoolShape { max, kernel, stride, padding, input, output, planes, step };
        return apply(Pool(shape), &[&images])?.to_dtype(x.dtype());
    }
    match max {
        _ if padding > 0 => {
            candle_core::bail!("expected no padding on a device other than the CPU and CUDA, found {padding}")
        }
        true => x.max_pool2d_with_stride(kernel, stride),
        false => x.avg_pool2d_with_stride(kernel, stride),
    }
}

struct Pool(PoolShape);

impl FusedOp for Pool {
    fn name(&self) -> &'static str {
        "pool2d"
    }

    fn saved(&self) -> Saved {
        Saved::ARGS
    }

    fn forward(&self, args: &[Tensor]) -> Result<(CpuStorage, Shape)> {
        cpu::pool(&self.0, &args[0])
    }

    fn backward(&self, args: &[Tensor], _: &[bool], _: &Tensor, dy: &Tensor) -> Result<Vec<Option<Tensor>>> {
        Ok(vec![Some(cpu::pool_back(&self.0, &args[0], dy)?)])
    }

    #[cfg(feature = "cuda")]
    fn cuda_forward(&self, args: &[Tensor]) -> Result<(CudaStorage, Shape)> {
        cuda::pool(&self.0, &args[0])
    }

    #[cfg(feature = "cuda")]
    fn cuda_backward(&self, args: &[Tensor], _: &[bool], _: &Tensor, dy: &Tensor) -> Result<Vec<Option<Tensor>>> {
        Ok(vec![Some(cuda::pool_back(&self.0, &args[0], dy)?)])
    }
}

struct GlobalMean {
    plane: usize,
}

impl FusedOp for GlobalMean {
    fn name(&self) -> &'static str {
        "global-avg-pool2d"
    }

    fn saved(&self) -> Saved {
        Saved::ARGS
    }

    fn forward(&self, args: &[Tensor]) -> Result<(CpuStorage, Shape)> {
        cpu::mean(&args[0], self.plane)
    }

    fn backward(&self, args: &[Tensor], _: &[bool], _: &Tensor, dy: &Tensor) -> Result<Vec<Option<Tensor>>> {
        Ok(vec![Some(cpu::mean_back(&args[0], self.plane, dy)?)])
    }

    #[cfg(feature = "cuda")]
    fn cuda_forward(&self, args: &[Tensor]) -> Result<(CudaStorage, Shape)> {
        cuda::mean(&args[0])
    }

    #[cfg(feature = "cuda")]
    fn cuda_backward(&self, args: &[Tensor], _: &[bool], _: &Tensor, dy: &Tensor) -> Result<Vec<Option<Tensor>>> {
        Ok(vec![Some(cuda::mean_back(&args[0], dy)?)])
    }
}
