//! Pooling of images, whose backward also works where windows overlap.

#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, Result, Shape, Tensor};
use rayon::prelude::*;

use crate::autograd::tape::{Layer, apply};
use crate::kernels::cpu::float::{Float, for_float, like, output, view, zeros};
#[cfg(feature = "cuda")]
use crate::kernels::cuda;
use crate::kernels::has_fused_kernels;
use crate::kernels::prepare::to_compute_dtype;

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
    pool(x, Pool { kind: Kind::Max, kernel, stride, padding })
}

/// The mean of each window, zeros of the padding included, otherwise as [`max_pool2d`].
///
/// # Errors
/// As [`max_pool2d`].
pub fn avg_pool2d(x: &Tensor, kernel: usize, stride: usize, padding: usize) -> Result<Tensor> {
    pool(x, Pool { kind: Kind::Mean, kernel, stride, padding })
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

fn pool(x: &Tensor, op: Pool) -> Result<Tensor> {
    let Pool { kind, kernel, stride, padding } = op;
    let (_, _, height, width) = x.dims4()?;
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
        return apply(op, &[&to_compute_dtype(x)?])?.to_dtype(x.dtype());
    }
    match kind {
        _ if padding > 0 => {
            candle_core::bail!("expected no padding on a device other than the CPU and CUDA, found {padding}")
        }
        Kind::Max => x.max_pool2d_with_stride(kernel, stride),
        Kind::Mean => x.avg_pool2d_with_stride(kernel, stride),
    }
}

#[derive(Clone, Copy)]
enum Kind {
    Max,
    Mean,
}

#[derive(Clone, Copy)]
struct Pool {
    kind: Kind,
    kernel: usize,
    stride: usize,
    padding: usize,
}

impl Pool {
    fn output(self, input: usize) -> usize {
        (input + 2 * self.padding - self.kernel) / self.stride + 1
    }

    /// The places of the window of an output that lie in the image.
    fn window(self, output: usize, input: usize) -> std::ops::Range<usize> {
        let start = output * self.stride;
        start.saturating_sub(self.padding)..(start + self.kernel).saturating_sub(self.padding).min(input)
    }

    /// Calls `f` with each output of a plane and the rows and columns of its window.
    fn windows(self, [height, width]: [usize; 2], mut f: impl FnMut(usize, &mut dyn Iterator<Item = usize>)) {
        let columns = self.output(width);
        for (y, x) in (0..self.output(height)).flat_map(|y| (0..columns).map(move |x| (y, x))) {
            let across = self.window(x, width);
            let mut places = self.window(y, height).flat_map(|y| across.clone().map(move |x| y * width + x));
            f(y * columns + x, &mut places);
        }
    }

    fn share(self) -> f64 {
        1.0 / (self.kernel * self.kernel) as f64
    }

    #[cfg(feature = "cuda")]
    fn sizes(self, x: &Tensor) -> Result<crate::kernels::cuda::launch::nn::Pool> {
        let (n, channels, height, width) = x.dims4()?;
        let Self { kind, kernel, stride, padding } = self;
        let (max, input) = (matches!(kind, Kind::Max), [height, width]);
        let output = input.map(|side| self.output(side));
        let (planes, step) = (n * channels, cuda::step(x)?);
        Ok(crate::kernels::cuda::launch::nn::Pool { max, kernel, stride, padding, input, output, planes, step })
    }
}

/// The first of the largest. NaN is larger than any number.
fn largest<T: Float>(x: &[T], places: &mut dyn Iterator<Item = usize>) -> usize {
    let first = places.next().unwrap_or_default();
    places.fold(first, |best, place| if x[place] <= x[best] || x[best].wide().is_nan() { best } else { place })
}

impl Layer for Pool {
    fn name(&self) -> &'static str {
        "pool2d"
    }

    fn forward(&self, args: &[Tensor]) -> Result<(CpuStorage, Shape)> {
        let (n, channels, height, width) = args[0].dims4()?;
        let (rows, columns) = (self.output(height), self.output(width));
        let x = view(&args[0]);
        for_float!(args[0].dtype(), self.name(), |T| {
            let mut y = zeros::<T>(n * channels * rows * columns);
            y.par_chunks_mut(rows * columns).zip(x.elements::<T>()?.par_chunks(height * width)).for_each(|(y, x)| {
                self.windows([height, width], |output, places| {
                    y[output] = match self.kind {
                        Kind::Max => x[largest(x, places)],
                        Kind::Mean => T::narrow(places.map(|place| x[place].wide()).sum::<f64>() * self.share()),
                    };
                });
            });
            Ok(output(y, (n, channels, rows, columns)))
        })
    }

    fn backward(&self, args: &[Tensor], _: &[bool], _: &Tensor, dy: &Tensor) -> Result<Vec<Option<Tensor>>> {
        let (_, _, height, width) = args[0].dims4()?;
        let outputs = self.output(height) * self.output(width);
        let (x, dy) = (view(&args[0]), view(dy));
        for_float!(args[0].dtype(), self.name(), |T| {
            let mut dx = zeros::<T>(args[0].elem_count());
            let planes = x.elements::<T>()?.par_chunks(height * width).zip(dy.elements::<T>()?.par_chunks(outputs));
            dx.par_chunks_mut(height * width).zip(planes).for_each(|(dx, (x, dy))| {
                let share = T::narrow(self.share());
                self.windows([height, width], |output, places| match self.kind {
                    Kind::Max => dx[largest(x, places)] += dy[output],
                    Kind::Mean => places.for_each(|place| dx[place] += dy[output] * share),
                });
            });
            Ok(vec![Some(like(dx, &args[0])?)])
        })
    }

    #[cfg(feature = "cuda")]
    fn cuda_forward(&self, args: &[Tensor]) -> Result<(CudaStorage, Shape)> {
        cuda::pool(&self.sizes(&args[0])?, &args[0])
    }

    #[cfg(feature = "cuda")]
    fn cuda_backward(&self, args: &[Tensor], _: &[bool], _: &Tensor, dy: &Tensor) -> Result<Vec<Option<Tensor>>> {
        Ok(vec![Some(cuda::pool_back(&self.sizes(&args[0])?, &args[0], dy)?)])
    }
}

struct GlobalMean {
    plane: usize,
}

impl Layer for GlobalMean {
    fn name(&self) -> &'static str {
        "global-avg-pool2d"
    }

    fn forward(&self, args: &[Tensor]) -> Result<(CpuStorage, Shape)> {
        let (n, channels, _, _) = args[0].dims4()?;
        let x = view(&args[0]);
        for_float!(args[0].dtype(), self.name(), |T| {
            let mean = |x: &[T]| T::narrow(x.iter().map(|x| x.wide()).sum::<f64>() / self.plane as f64);
            let y: Vec<T> = x.elements::<T>()?.par_chunks(self.plane).map(mean).collect();
            Ok(output(y, (n, channels)))
        })
    }

    fn backward(&self, args: &[Tensor], _: &[bool], _: &Tensor, dy: &Tensor) -> Result<Vec<Option<Tensor>>> {
        let dy = view(dy);
        for_float!(args[0].dtype(), self.name(), |T| {
            let mut dx = zeros::<T>(args[0].elem_count());
            let share = T::narrow(1.0 / self.plane as f64);
            dx.par_chunks_mut(self.plane).zip(dy.elements::<T>()?).for_each(|(dx, dy)| dx.fill(*dy * share));
            Ok(vec![Some(like(dx, &args[0])?)])
        })
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
