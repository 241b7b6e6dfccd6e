//! γ (x - mean) / σ + β: the operations behind layer, RMS and group normalization.

use std::sync::OnceLock;

#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, D, DType, Result, Shape, Tensor};

use crate::autograd::fused_op::{FusedOp, Saved};
use crate::autograd::tape::apply;
use crate::kernels::cpu::group_norm;
use crate::kernels::cpu::layer_norm::{self, Moments};
#[cfg(feature = "cuda")]
use crate::kernels::cuda;
use crate::kernels::has_fused_kernels;
use crate::kernels::prepare::{to_compute_dtype, weight_for};
use crate::kernels::shapes::{GroupNormShape, RowNormShape};

/// `candle_nn::ops::layer_norm`, with a gradient: α (x - mean) / √(var + ε) + β over the last dimension.
///
/// Statistics are taken in f64 on the CPU, bf16 and f16 are computed in f32 there. `alpha` and `beta` may be of another float type
/// than `xs`; the result has the type of `xs`.
///
/// # Errors
/// If `alpha` or `beta` is not of the size of the last dimension, or `xs` not of a float type.
///
/// ```
/// use candle_core::{Device, Result, Tensor, Var};
/// use sam_runtime::nn;
///
/// # fn main() -> Result<()> {
/// let x = Var::new(&[[1f32, 2., 3., 6.]], &Device::Cpu)?;
/// let (alpha, beta) = (Tensor::new(&[1f32, 1., 1., 2.], &Device::Cpu)?, Tensor::zeros_like(&x.squeeze(0)?)?);
/// let y = nn::ops::layer_norm(&x, &alpha, &beta, 1e-5)?;
/// assert!((y.mean_all()?.to_scalar::<f32>()? - 0.4009).abs() < 1e-4);
/// assert!(y.sum_all()?.backward()?.get(&x).is_some());
/// # Ok(())
/// # }
/// ```
pub fn layer_norm(xs: &Tensor, alpha: &Tensor, beta: &Tensor, eps: f32) -> Result<Tensor> {
    if has_fused_kernels(xs.device()) {
        return normalize(xs, alpha, Some(beta), true, eps.into());
    }
    if [xs, alpha, beta].iter().any(|tensor| tensor.track_op()) {
        candle_nn::ops::layer_norm_slow(xs, alpha, beta, eps)
    } else {
        candle_nn::ops::layer_norm(xs, alpha, beta, eps)
    }
}

/// `candle_nn::ops::rms_norm`, with a gradient: α x / √(mean of x² + ε) over the last dimension. See [`layer_norm`].
///
/// # Errors
/// As [`layer_norm`].
pub fn rms_norm(xs: &Tensor, alpha: &Tensor, eps: f32) -> Result<Tensor> {
    if has_fused_kernels(xs.device()) {
        return normalize(xs, alpha, None, false, eps.into());
    }
    if xs.track_op() || alpha.track_op() {
        candle_nn::ops::rms_norm_slow(xs, alpha, eps)
    } else {
        candle_nn::ops::rms_norm(xs, alpha, eps)
    }
}

/// On a device with kernels, over the last dimension.
pub(super) fn normalize(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    centered: bool,
    eps: f64,
) -> Result<Tensor> {
    let columns = x.dim(D::Minus1)?;
    for affine in [Some(weight), bias].into_iter().flatten() {
        if affine.dims() != [columns] {
            candle_core::bail!(
                "expected a weight and a bias of {columns} for {:?}, found {:?}",
                x.dims(),
                affine.dims()
            )
        }
    }
    let args = arguments(x, weight, bias)?;
    let layer = NormalizeRows { norm: RowNormShape { columns, eps, centered }, statistics: Statistics::default() };
    apply(layer, &args.iter().collect::<Vec<_>>())?.to_dtype(x.dtype())
}

/// On a device with kernels, of images (n, channels, ..) in groups of channels.
pub(super) fn normalize_groups(
    x: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    [channels, groups]: [usize; 2],
    eps: f64,
) -> Result<Tensor> {
    let [weight, bias] = [weight, bias].map(|affine| {
        if affine.elem_count() != channels {
            candle_core::bail!("expected a weight and a bias of {channels}, found {:?}", affine.dims())
        }
        if affine.rank() == 1 { Ok(affine.clone()) } else { affine.flatten_all() }
    });
    let plane = x.dims().iter().skip(2).product();
    let norm = GroupNormShape { channels, groups, plane, eps };
    let args = arguments(x, &weight?, Some(&bias?))?;
    let layer = NormalizeGroups { norm, statistics: Statistics::default() };
    apply(layer, &args.iter().collect::<Vec<_>>())?.to_dtype(x.dtype())
}

/// As the kernels take them: contiguous, on the CPU in one type. On CUDA the weights are of the type of x, or f32.
fn arguments(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Vec<Tensor>> {
    let mut args = vec![if x.device().is_cpu() { to_compute_dtype(x)? } else { x.contiguous()? }];
    let affine = || [Some(weight), bias].into_iter().flatten();
    let readable = [x.dtype(), DType::F32].contains(&weight.dtype());
    let fits = x.device().is_cpu() || readable && affine().all(|affine| affine.dtype() == weight.dtype());
    let common = if x.dtype() == DType::F64 { DType::F64 } else { DType::F32 };
    for affine in affine() {
        args.push(if fits { weight_for(x, affine)? } else { weight_for(x, &affine.to_dtype(common)?)? });
    }
    Ok(args)
}

/// What the backward pass needs of each row.
#[derive(Default)]
struct Statistics {
    on_cpu: OnceLock<Vec<Moments>>,
    /// Mean and 1/σ.
    #[cfg(feature = "cuda")]
    on_cuda: OnceLock<Tensor>,
}

impl Statistics {
    fn on_cpu(&self) -> Result<&[Moments]> {
        self.on_cpu.get().map_or_else(|| candle_core::bail!("{MISSING}"), |moments| Ok(&moments[..]))
    }

    #[cfg(feature = "cuda")]
    fn on_cuda(&self) -> Result<&Tensor> {
        self.on_cuda.get().map_or_else(|| candle_core::bail!("{MISSING}"), Ok)
    }
}

const MISSING: &str = "expected a forward pass before the backward pass of a normalization";

struct NormalizeRows {
    norm: RowNormShape,
    statistics: Statistics,
}

impl FusedOp for NormalizeRows {
    fn name(&self) -> &'static str {
        if self.norm.centered { "layer-norm" } else { "rms-norm" }
    }

    fn saved(&self) -> Saved {
        Saved::ARGS
    }

    fn forward(&self, args: &[Tensor]) -> Result<(CpuStorage, Shape)> {
        let (y, moments) = layer_norm::forward(self.norm, &args[0], &args[1], args.get(2))?;
        self.statistics.on_cpu.get_or_init(|| moments);
        Ok(y)
    }

    fn backward(&self, args: &[Tensor], wanted: &[bool], _: &Tensor, dy: &Tensor) -> Result<Vec<Option<Tensor>>> {
        layer_norm::backward(self.norm, args, self.statistics.on_cpu()?, wanted, dy)
    }

    #[cfg(feature = "cuda")]
    fn cuda_forward(&self, args: &[Tensor]) -> Result<(CudaStorage, Shape)> {
        let (y, statistics) = cuda::layer_norm(self.norm, &args[0], &args[1], args.get(2))?;
        self.statistics.on_cuda.get_or_init(|| statistics);
        Ok(y)
    }

    #[cfg(feature = "cuda")]
    fn cuda_backward(&self, args: &[Tensor], wanted: &[bool], _: &Tensor, dy: &Tensor) -> Result<Vec<Option<Tensor>>> {
        cuda::layer_norm_back(self.norm, args, self.statistics.on_cuda()?, wanted, dy)
    }
}

struct NormalizeGroups {
    norm: GroupNormShape,
    statistics: Statistics,
}

impl FusedOp for NormalizeGroups {
    fn name(&self) -> &'static str {
        "group-norm"
    }

    fn saved(&self) -> Saved {
        Saved::ARGS
    }

    fn forward(&self, args: &[Tensor]) -> Result<(CpuStorage, Shape)> {
        let (y, moments) = group_norm::forward(self.norm, &args[0], &args[1], &args[2])?;
        self.statistics.on_cpu.get_or_init(|| moments);
        Ok(y)
    }

    fn backward(&self, args: &[Tensor], wanted: &[bool], _: &Tensor, dy: &Tensor) -> Result<Vec<Option<Tensor>>> {
        group_norm::backward(self.norm, args, self.statistics.on_cpu()?, wanted, dy)
    }

    #[cfg(feature = "cuda")]
    fn cuda_forward(&self, args: &[Tensor]) -> Result<(CudaStorage, Shape)> {
        let (y, statistics) = cuda::group_norm(self.norm, &args[0], &args[1], &args[2])?;
        self.statistics.on_cuda.get_or_init(|| statistics);
        Ok(y)
    }

    #[cfg(feature = "cuda")]
    fn cuda_backward(&self, args: &[Tensor], wanted: &[bool], _: &Tensor, dy: &Tensor) -> Result<Vec<Option<Tensor>>> {
        cuda::group_norm_back(self.norm, args, self.statistics.on_cuda()?, wanted, dy)
    }
}
