//! Losses, each one operation: cross entropies (log-softmax, label smoothing and mean), and means over elements.

use std::sync::OnceLock;

#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, DType, Result, Shape, Tensor};

pub use super::elementwise_loss::{binary_cross_entropy_with_logit, huber, mse, nll};
use crate::autograd::fused_op::{FusedOp, Saved};
use crate::autograd::tape::apply;
use crate::kernels::cpu::cross_entropy::Targets;
use crate::kernels::cpu::softmax::Normalizer;
#[cfg(feature = "cuda")]
use crate::kernels::cuda;
use crate::kernels::portable::cross_entropy as portable;
use crate::kernels::prepare::to_compute_dtype;

/// The mean cross entropy of `logits` (n, classes) with the labels `target` (n), which are of an integer type.
///
/// As in PyTorch, logits may have more dimensions, (n, classes, d1, ..), with labels (n, d1, ..): those of a segmentation, or of
/// each token of a sequence. The loss is the mean over all labels.
///
/// A class whose logit is -∞ is masked: it has no share of the probability, and the gradient of its logit is 0. The
/// exponentials are computed in the type of the logits and added up in f64.
///
/// # Errors
/// If the shapes do not fit, if there are no labels, or if a label is not one of the classes. On CUDA labels are not checked
/// (checking would synchronize with the device): the loss is NaN where one is out of range.
///
/// ```
/// use candle_core::{Device, Result, Tensor};
/// use sam_runtime::nn;
///
/// # fn main() -> Result<()> {
/// let logits = Tensor::new(&[[0f32, 0.], [3., 3.]], &Device::Cpu)?;
/// let loss = nn::cross_entropy(&logits, &Tensor::new(&[0u32, 1], &Device::Cpu)?)?;
/// assert!((loss.to_scalar::<f32>()? - 2f32.ln()).abs() < 1e-6);
/// # Ok(())
/// # }
/// ```
pub fn cross_entropy(logits: &Tensor, target: &Tensor) -> Result<Tensor> {
    of_labels(logits, target, 0.0, None)
}

/// [`cross_entropy`] without the labels that are `ignored`: they have no cost and no gradient, and the mean is over the
/// others. For padded tokens, or pixels without a class.
///
/// It is `ignore_index` in PyTorch, where the default is -100. Labels of unsigned types are compared as `i64`: for `u8`
/// use 255, for example.
///
/// # Errors
/// As [`cross_entropy`], and if all labels are ignored. On other devices than the CPU the loss is then NaN.
///
/// ```
/// use candle_core::{Device, Result, Tensor};
/// use sam_runtime::nn;
///
/// # fn main() -> Result<()> {
/// let logits = Tensor::new(&[[0f32, 0.], [3., 9.]], &Device::Cpu)?;
/// let loss = nn::cross_entropy_ignoring(&logits, &Tensor::new(&[0i64, -100], &Device::Cpu)?, -100)?;
/// assert!((loss.to_scalar::<f32>()? - 2f32.ln()).abs() < 1e-6);
/// # Ok(())
/// # }
/// ```
pub fn cross_entropy_ignoring(logits: &Tensor, target: &Tensor, ignored: i64) -> Result<Tensor> {
    of_labels(logits, target, 0.0, Some(ignored))
}

/// [`cross_entropy`] with label smoothing (Szegedy et al. 2016): a share `smoothing` of each label is spread evenly over
/// all classes, as in PyTorch.
///
/// # Errors
/// As [`cross_entropy`], and if `smoothing` is not in [0, 1].
pub fn cross_entropy_with_label_smoothing(logits: &Tensor, target: &Tensor, smoothing: f64) -> Result<Tensor> {
    if !(0.0..=1.0).contains(&smoothing) {
        candle_core::bail!("expected a label smoothing in [0, 1], found {smoothing}")
    }
    of_labels(logits, target, smoothing, None)
}

fn of_labels(logits: &Tensor, target: &Tensor, smoothing: f64, ignored: Option<i64>) -> Result<Tensor> {
    let shape = logits.dims();
    let &[n, classes, ref rest @ ..] = shape else {
        candle_core::bail!("expected logits (n, classes) or (n, classes, ..), found {shape:?}")
    };
    let expected = [&[n], rest].concat();
    if target.dims() != expected || !target.dtype().is_int() {
        candle_core::bail!(
            "expected integer labels {expected:?} for logits {shape:?}, whose classes are dimension 1, found {:?} of {:?}",
            target.dims(),
            target.dtype()
        )
    }
    if logits.elem_count() == 0 {
        candle_core::bail!("expected at least one label and one class, found logits {shape:?}")
    }
    let (logits, target) = (rows(logits)?, target.flatten_all()?);
    #[cfg(feature = "cuda")]
    if logits.device().is_cuda() && ignored.is_none() {
        let target = target.to_dtype(DType::I64)?.contiguous()?;
        return mean_cost(&logits, Target::Cuda { target, smoothing });
    }
    if !logits.device().is_cpu() {
        return portable::of_labels(&logits, &target, smoothing, ignored);
    }
    let (labels, count) = checked_labels(&target, classes, ignored)?;
    if count == 0 {
        candle_core::bail!("expected a label that counts, found {} labels that are all ignored", labels.len())
    }
    mean_cost(&logits, Target::Cpu(Targets::Labels { labels, count, smoothing }))
}

/// Logits as rows (n, classes).
fn rows(logits: &Tensor) -> Result<Tensor> {
    let &[n, classes, ref rest @ ..] = logits.dims() else {
        candle_core::bail!("expected logits (n, classes, ..), found {:?}", logits.dims())
    };
    if rest.is_empty() {
        return Ok(logits.clone());
    }
    let pixels: usize = rest.iter().product();
    logits.reshape((n, classes, pixels))?.transpose(1, 2)?.contiguous()?.reshape((n * pixels, classes))
}

/// The mean cross entropy of `logits` (n, classes) with the probabilities `target` (n, classes), which are a constant:
/// for mixed images or a teacher.
///
/// # Errors
/// If the shapes do not fit, or are those of nothing.
pub fn cross_entropy_with_probs(logits: &Tensor, target: &Tensor) -> Result<Tensor> {
    logits.dims2()?;
    if target.dims() != logits.dims() {
        candle_core::bail!("expected probabilities of {:?}, found {:?}", logits.dims(), target.dims())
    }
    if logits.elem_count() == 0 {
        candle_core::bail!("expected at least one row and one class, found logits {:?}", logits.dims())
    }
    #[cfg(feature = "cuda")]
    if logits.device().is_cuda() {
        let target = target.detach().contiguous()?;
        return mean_cost(logits, Target::Cuda { target, smoothing: 0.0 });
    }
    if logits.device().is_cpu() {
        let dtype = if logits.dtype() == DType::F64 { DType::F64 } else { DType::F32 };
        let target = target.detach().to_device(logits.device())?.to_dtype(dtype)?.contiguous()?;
        mean_cost(logits, Target::Cpu(Targets::Soft(target)))
    } else {
        portable::of_probs(logits, &target.detach())
    }
}

/// The cross entropy of each row of `logits` (n, classes) with its label, as a tensor (n): for
/// [`Sam::hardest`](crate::Sam::hardest) and [`Sam::sharpest`](crate::Sam::sharpest), and for custom weights. It is
/// `reduction = "none"` in PyTorch.
///
/// # Errors
/// As [`cross_entropy`]. On CUDA the loss of a sample whose label is out of range is NaN.
///
/// ```
/// use candle_core::{Device, Result, Tensor};
/// use sam_runtime::nn;
///
/// # fn main() -> Result<()> {
/// let logits = Tensor::new(&[[0f32, 0.], [3., 3.]], &Device::Cpu)?;
/// let losses = nn::cross_entropy_per_example(&logits, &Tensor::new(&[0u32, 1], &Device::Cpu)?)?;
/// assert_eq!(losses.dims(), [2]);
/// assert!((losses.to_vec1::<f32>()?[1] - 2f32.ln()).abs() < 1e-6);
/// # Ok(())
/// # }
/// ```
pub fn cross_entropy_per_example(logits: &Tensor, target: &Tensor) -> Result<Tensor> {
    let (n, classes) = logits.dims2()?;
    if target.dims() != [n] || !target.dtype().is_int() {
        candle_core::bail!(
            "expected integer labels [{n}] for logits {:?}, found {:?} of {:?}",
            logits.dims(),
            target.dims(),
            target.dtype()
        )
    }
    if logits.elem_count() == 0 {
        candle_core::bail!("expected at least one label and one class, found logits {:?}", logits.dims())
    }
    #[cfg(feature = "cuda")]
    if logits.device().is_cuda() {
        let target = target.to_dtype(DType::I64)?.contiguous()?;
        return cost(logits, Target::Cuda { target, smoothing: 0.0 }, Reduction::None);
    }
    if !logits.device().is_cpu() {
        return portable::of_each(logits, target);
    }
    let (labels, count) = checked_labels(target, classes, None)?;
    cost(logits, Target::Cpu(Targets::Labels { labels, count, smoothing: 0.0 }), Reduction::None)
}

/// Labels on the host, None those that are ignored, and the number of the others.
fn checked_labels(target: &Tensor, classes: usize, ignored: Option<i64>) -> Result<(Vec<Option<usize>>, usize)> {
    let labels: Vec<i64> = target.to_dtype(DType::I64)?.to_vec1()?;
    let label = |(row, label): (usize, i64)| match usize::try_from(label) {
        _ if ignored == Some(label) => Ok(None),
        Ok(label) if label < classes => Ok(Some(label)),
        _ => candle_core::bail!(
            "expected labels in 0..{classes}, found {label} at index {row}: pass a label that is not to count to \
             `cross_entropy_ignoring`"
        ),
    };
    let labels = labels.into_iter().enumerate().map(label).collect::<Result<Vec<_>>>()?;
    let count = labels.iter().flatten().count();
    Ok((labels, count))
}

fn mean_cost(logits: &Tensor, target: Target) -> Result<Tensor> {
    cost(logits, target, Reduction::Mean)
}

fn cost(logits: &Tensor, target: Target, reduction: Reduction) -> Result<Tensor> {
    let layer = CrossEntropy { target, reduction, normalizers: OnceLock::new() };
    apply(layer, &[&to_compute_dtype(logits)?])?.to_dtype(logits.dtype())
}

/// What is returned of the costs of the rows.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reduction {
    Mean,
    None,
}

enum Target {
    Cpu(Targets),
    /// Labels in i64, or probabilities, where the logits are.
    #[cfg(feature = "cuda")]
    Cuda {
        target: Tensor,
        smoothing: f64,
    },
}

struct CrossEntropy {
    target: Target,
    reduction: Reduction,
    /// Of each row, for the backward pass.
    normalizers: OnceLock<Vec<Normalizer>>,
}

impl CrossEntropy {
    #[cfg_attr(not(feature = "cuda"), expect(clippy::unnecessary_wraps, reason = "on CUDA there is another target"))]
    fn on_cpu(&self) -> Result<&Targets> {
        match &self.target {
            Target::Cpu(targets) => Ok(targets),
            #[cfg(feature = "cuda")]
            Target::Cuda { .. } => candle_core::bail!("expected a target on the CPU"),
        }
    }

    #[cfg(feature = "cuda")]
    fn on_cuda(&self) -> Result<(&Tensor, f64)> {
        match &self.target {
            Target::Cuda { target, smoothing } => Ok((target, *smoothing)),
            Target::Cpu(_) => candle_core::bail!("expected a target on the device of the logits"),
        }
    }
}

impl FusedOp for CrossEntropy {
    fn name(&self) -> &'static str {
        "cross-entropy"
    }

    fn saved(&self) -> Saved {
        Saved::ARGS
    }

    fn forward(&self, args: &[Tensor]) -> Result<(CpuStorage, Shape)> {
        let target = self.on_cpu()?;
        let (costs, rows) = match self.reduction {
            Reduction::Mean => target.forward(&args[0])?,
            Reduction::None => target.forward_each(&args[0])?,
        };
        self.normalizers.get_or_init(|| rows);
        Ok(costs)
    }

    fn backward(&self, args: &[Tensor], _: &[bool], _: &Tensor, dy: &Tensor) -> Result<Vec<Option<Tensor>>> {
        let Some(rows) = self.normalizers.get() else {
            candle_core::bail!("expected a forward pass before the backward pass of a cross entropy")
        };
        Ok(vec![Some(self.on_cpu()?.backward(&args[0], rows, dy)?)])
    }

    #[cfg(feature = "cuda")]
    fn cuda_forward(&self, args: &[Tensor]) -> Result<(CudaStorage, Shape)> {
        let (target, smoothing) = self.on_cuda()?;
        cuda::cross_entropy(&args[0], target, smoothing, self.reduction == Reduction::None)
    }

    #[cfg(feature = "cuda")]
    fn cuda_backward(&self, args: &[Tensor], _: &[bool], _: &Tensor, dy: &Tensor) -> Result<Vec<Option<Tensor>>> {
        let (target, smoothing) = self.on_cuda()?;
        Ok(vec![Some(cuda::cross_entropy_back(&args[0], target, smoothing, dy)?)])
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};

    use super::*;

    /// The way of devices without a kernel, on the CPU.
    #[test]
    fn candle_gives_the_same() -> Result<()> {
        let logits = Var::rand(-3f64, 3., (6, 4), &Device::Cpu)?;
        let labels = Tensor::new(&[0i64, -100, 3, 2, 2, 1], &Device::Cpu)?;
        let counted = Tensor::new(&[0i64, 1, 3, 2, 2, 1], &Device::Cpu)?;
        for smoothing in [0.0, 0.2] {
            for (labels, ignored) in [(&labels, Some(-100)), (&counted, None)] {
                let ours = of_labels(&logits, labels, smoothing, ignored)?;
                let theirs = portable::of_labels(&logits, labels, smoothing, ignored)?;
                let gradient = |loss: &Tensor| {
                    loss.backward()?.get(&logits).map_or_else(|| logits.zeros_like(), |g| Ok(g.clone()))
                };
                let off = (gradient(&ours)? - gradient(&theirs)?)?.abs()?.max_all()?.to_scalar::<f64>()?;
                assert!(off < 1e-14, "{off}");
                assert!((ours - theirs)?.abs()?.to_scalar::<f64>()? < 1e-14);
            }
        }
        Ok(())
    }
}
