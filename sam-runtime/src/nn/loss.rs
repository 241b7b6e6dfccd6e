//! Cross entropy in one operation: log-softmax, label smoothing and mean.

use std::sync::OnceLock;

#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, D, DType, Result, Shape, Tensor};
use rayon::prelude::*;

use crate::autograd::tape::{Layer, apply};
use crate::kernels::cpu::float::{for_float, like, output, view};
use crate::kernels::cpu::softmax::{self, Exp, Normaliser, Subtract};
#[cfg(feature = "cuda")]
use crate::kernels::cuda;
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
/// (checking would synchronise with the device): the loss is NaN where one is out of range.
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
/// It is `ignore_index` in PyTorch, where it is -100 if nothing else is said. Labels of unsigned types are compared as `i64`: mark
/// those in `u8` with 255, say.
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
        return mean_cost(&logits, Targets::OnDevice { target, smoothing });
    }
    if !logits.device().is_cpu() {
        return by_candle(&logits, &target, smoothing, ignored);
    }
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
    if count == 0 {
        candle_core::bail!("expected a label that counts, found {} labels that are all ignored", labels.len())
    }
    mean_cost(&logits, Targets::Labels { labels, count, smoothing })
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

/// For devices without a kernel, or without one that ignores labels.
fn by_candle(logits: &Tensor, target: &Tensor, smoothing: f64, ignored: Option<i64>) -> Result<Tensor> {
    let dtype = logits.dtype();
    let wide = if matches!(dtype, DType::BF16 | DType::F16) { DType::F32 } else { dtype };
    let log = candle_nn::ops::log_softmax(&logits.to_dtype(wide)?, D::Minus1)?;
    let counts = match ignored {
        Some(ignored) => target.to_dtype(DType::I64)?.ne(ignored)?,
        None => target.ones_like()?.to_dtype(DType::U8)?,
    };
    let labels = counts.where_cond(target, &target.zeros_like()?)?.to_dtype(DType::U32)?;
    let mut costs = log.gather(&labels.unsqueeze(1)?, 1)?.squeeze(1)?;
    if smoothing > 0.0 {
        costs = ((costs * (1.0 - smoothing))? + (log.mean(1)? * smoothing)?)?;
    }
    let zeros = costs.zeros_like()?;
    let sum = counts.where_cond(&costs, &zeros)?.sum_all()?;
    (sum / counts.to_dtype(wide)?.sum_all()?)?.neg()?.to_dtype(dtype)
}

/// The mean cross entropy of `logits` (n, classes) with the probabilities `target` (n, classes), which are a constant:
/// for mixed images or a teacher.
///
/// # Errors
/// If the shapes do not fit, or are those of nothing.
pub fn cross_entropy_with_probs(logits: &Tensor, target: &Tensor) -> Result<Tensor> {
    let (n, _) = logits.dims2()?;
    if target.dims() != logits.dims() {
        candle_core::bail!("expected probabilities of {:?}, found {:?}", logits.dims(), target.dims())
    }
    if logits.elem_count() == 0 {
        candle_core::bail!("expected at least one row and one class, found logits {:?}", logits.dims())
    }
    #[cfg(feature = "cuda")]
    if logits.device().is_cuda() {
        let target = target.detach().contiguous()?;
        return mean_cost(logits, Targets::OnDevice { target, smoothing: 0.0 });
    }
    if logits.device().is_cpu() {
        let dtype = if logits.dtype() == DType::F64 { DType::F64 } else { DType::F32 };
        let target = target.detach().to_device(logits.device())?.to_dtype(dtype)?.contiguous()?;
        mean_cost(logits, Targets::Soft(target))
    } else {
        let product = (candle_nn::ops::log_softmax(logits, 1)? * target.detach())?;
        product.sum_all()? * (-1.0 / n as f64)
    }
}

fn mean_cost(logits: &Tensor, targets: Targets) -> Result<Tensor> {
    let layer = CrossEntropy { targets, normalisers: OnceLock::new() };
    apply(layer, &[&to_compute_dtype(logits)?])?.to_dtype(logits.dtype())
}

enum Targets {
    Labels {
        /// None is ignored.
        labels: Vec<Option<usize>>,
        /// How many are not.
        count: usize,
        smoothing: f64,
    },
    /// Probabilities in the type that is computed in.
    Soft(Tensor),
    /// Labels in i64, or probabilities, where the logits are.
    #[cfg(feature = "cuda")]
    OnDevice { target: Tensor, smoothing: f64 },
}

struct CrossEntropy {
    targets: Targets,
    /// Of each row, for the backward pass.
    normalisers: OnceLock<Vec<Normaliser>>,
}

impl CrossEntropy {
    #[cfg(feature = "cuda")]
    fn on_device(&self) -> Result<(&Tensor, f64)> {
        match &self.targets {
            Targets::OnDevice { target, smoothing } => Ok((target, *smoothing)),
            _ => candle_core::bail!("expected a target on the device of the logits"),
        }
    }

    /// The mean cost of the rows.
    fn mean<T: Exp>(&self, logits: &[T], classes: usize) -> Result<f64> {
        let rows = softmax::normalisers(logits, classes);
        let least = softmax::rows_at_a_time(classes);
        let all = || logits.par_chunks_exact(classes).zip(&rows).with_min_len(least);
        let (costs, count): (Vec<f64>, usize) = match &self.targets {
            Targets::Labels { labels, count, smoothing } => {
                let cost = |((x, row), label): ((&[T], &Normaliser), &Option<usize>)| {
                    label.map_or(0.0, |label| smoothed_cost(x, *row, label, *smoothing))
                };
                (all().zip(labels).map(cost).collect(), *count)
            }
            Targets::Soft(target) => {
                let target = view(target);
                let cost = |((x, row), target): ((&[T], &Normaliser), &[T])| soft_cost(x, *row, target);
                (all().zip(target.elements::<T>()?.par_chunks_exact(classes)).map(cost).collect(), rows.len())
            }
            #[cfg(feature = "cuda")]
            Targets::OnDevice { .. } => candle_core::bail!("expected a target on the CPU"),
        };
        self.normalisers.get_or_init(|| rows);
        Ok(costs.into_iter().sum::<f64>() / count as f64)
    }

    /// `scale` times the gradient.
    fn gradient<T: Exp>(&self, logits: &[T], classes: usize, scale: f64) -> Result<Vec<T>> {
        let Some(normalisers) = self.normalisers.get() else {
            candle_core::bail!("expected a forward pass before the backward pass of a cross entropy")
        };
        let mut dx = vec![T::default(); logits.len()];
        let rows = dx.par_chunks_exact_mut(classes).zip(logits.par_chunks_exact(classes)).zip(normalisers);
        let rows = rows.with_min_len(softmax::rows_at_a_time(classes));
        match &self.targets {
            Targets::Labels { labels, count, smoothing } => {
                let (scale, even) = (scale / *count as f64, smoothing / classes as f64);
                rows.zip(labels).for_each(|(((dx, x), row), label)| {
                    let Some(label) = *label else { return };
                    softmax::scaled(dx, x, *row, scale, Subtract::Even(even * scale));
                    // In f64: the difference may be small.
                    dx[label] = T::narrow((row.probability(x[label].wide()) - (1.0 - smoothing + even)) * scale);
                });
            }
            Targets::Soft(target) => {
                let (target, scale) = (view(target), scale / normalisers.len() as f64);
                let targets = target.elements::<T>()?.par_chunks_exact(classes);
                rows.zip(targets).for_each(|(((dx, x), row), target)| {
                    let all: f64 = target.iter().map(|target| target.wide()).sum();
                    softmax::scaled(dx, x, *row, scale * all, Subtract::Each(target, scale));
                });
            }
            #[cfg(feature = "cuda")]
            Targets::OnDevice { .. } => candle_core::bail!("expected a target on the CPU"),
        }
        Ok(dx)
    }
}

fn smoothed_cost<T: Exp>(x: &[T], row: Normaliser, label: usize, smoothing: f64) -> f64 {
    let cost = row.cost(x[label].wide());
    if smoothing == 0.0 {
        return cost;
    }
    let mean = x.iter().map(|x| row.cost(x.wide())).sum::<f64>() / x.len() as f64;
    // Without 0 · ∞.
    if smoothing == 1.0 { mean } else { (1.0 - smoothing) * cost + smoothing * mean }
}

fn soft_cost<T: Exp>(x: &[T], row: Normaliser, target: &[T]) -> f64 {
    // A class of probability 0 costs nothing, also where its logit is -∞.
    let cost = |(x, target): (&T, &T)| match target.wide() {
        0.0 => 0.0,
        target => target * row.cost(x.wide()),
    };
    x.iter().zip(target).map(cost).sum()
}

impl Layer for CrossEntropy {
    fn name(&self) -> &'static str {
        "cross-entropy"
    }

    fn forward(&self, args: &[Tensor]) -> Result<(CpuStorage, Shape)> {
        let (_, classes) = args[0].dims2()?;
        let logits = view(&args[0]);
        for_float!(args[0].dtype(), self.name(), |T| {
            Ok(output(vec![self.mean::<T>(logits.elements()?, classes)? as T], ()))
        })
    }

    fn backward(&self, args: &[Tensor], _: &[bool], _: &Tensor, dy: &Tensor) -> Result<Vec<Option<Tensor>>> {
        let (_, classes) = args[0].dims2()?;
        let scale = dy.to_dtype(DType::F64)?.to_scalar::<f64>()?;
        let logits = view(&args[0]);
        for_float!(args[0].dtype(), self.name(), |T| {
            let dx = self.gradient::<T>(logits.elements()?, classes, scale)?;
            Ok(vec![Some(like(dx, &args[0])?)])
        })
    }

    #[cfg(feature = "cuda")]
    fn cuda_forward(&self, args: &[Tensor]) -> Result<(CudaStorage, Shape)> {
        let (target, smoothing) = self.on_device()?;
        cuda::cross_entropy(&args[0], target, smoothing)
    }

    #[cfg(feature = "cuda")]
    fn cuda_backward(&self, args: &[Tensor], _: &[bool], _: &Tensor, dy: &Tensor) -> Result<Vec<Option<Tensor>>> {
        let (target, smoothing) = self.on_device()?;
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
                let theirs = by_candle(&logits, labels, smoothing, ignored)?;
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
