//! Cross entropy in one operation: log-softmax, label smoothing and mean.

#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, DType, Result, Shape, Tensor};
use rayon::prelude::*;

use super::layer::{Layer, apply};
use super::ready;
#[cfg(feature = "cuda")]
use crate::kernels::cuda;
use crate::kernels::float::{Float, for_float, like, output, view};

/// The mean cross entropy of `logits` (n, classes) with the labels `target` (n), which are of an integer type.
///
/// # Errors
/// If the shapes do not fit, or a label is not one of the classes. On CUDA nobody looks at the labels, which would wait for
/// the device: the loss is then not a number.
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
    cross_entropy_smoothed(logits, target, 0.0)
}

/// [`cross_entropy`] with label smoothing (Szegedy et al. 2016): a share `smoothing` of each label is spread evenly over
/// all classes, as in PyTorch.
///
/// # Errors
/// As [`cross_entropy`], and if `smoothing` is not in [0, 1].
pub fn cross_entropy_smoothed(logits: &Tensor, target: &Tensor, smoothing: f64) -> Result<Tensor> {
    let (n, classes) = logits.dims2()?;
    if !(0.0..=1.0).contains(&smoothing) {
        candle_core::bail!("expected a label smoothing in [0, 1], found {smoothing}")
    }
    if target.dims() != [n] || !target.dtype().is_int() {
        candle_core::bail!("expected {n} integer labels, found {:?} of {:?}", target.dims(), target.dtype())
    }
    #[cfg(feature = "cuda")]
    if logits.device().is_cuda() {
        let target = target.to_dtype(DType::I64)?.contiguous()?;
        return mean_cost(logits, Targets::OnDevice { target, smoothing });
    }
    if !logits.device().is_cpu() {
        let log = candle_nn::ops::log_softmax(logits, 1)?;
        let hard = candle_nn::loss::nll(&log, target)?;
        return if smoothing == 0.0 { Ok(hard) } else { (hard * (1.0 - smoothing))? - (log.mean_all()? * smoothing)? };
    }
    let labels: Vec<i64> = target.to_dtype(DType::I64)?.to_vec1()?;
    if let Some(label) = labels.iter().find(|label| usize::try_from(**label).map_or(true, |label| label >= classes)) {
        candle_core::bail!("expected labels below {classes}, found {label}")
    }
    let labels = labels.into_iter().map(|label| label.unsigned_abs() as usize).collect();
    mean_cost(logits, Targets::Labels { labels, smoothing })
}

/// The mean cross entropy of `logits` (n, classes) with the probabilities `target` (n, classes), which are a constant:
/// for mixed images or a teacher.
///
/// # Errors
/// If the shapes do not fit.
pub fn cross_entropy_soft(logits: &Tensor, target: &Tensor) -> Result<Tensor> {
    let (n, _) = logits.dims2()?;
    if target.dims() != logits.dims() {
        candle_core::bail!("expected probabilities of {:?}, found {:?}", logits.dims(), target.dims())
    }
    #[cfg(feature = "cuda")]
    if logits.device().is_cuda() {
        let target = target.detach().contiguous()?;
        return mean_cost(logits, Targets::OnDevice { target, smoothing: 0.0 });
    }
    if logits.device().is_cpu() {
        let values = target.to_dtype(DType::F64)?.flatten_all()?.to_vec1()?;
        mean_cost(logits, Targets::Soft(values))
    } else {
        let product = (candle_nn::ops::log_softmax(logits, 1)? * target.detach())?;
        product.sum_all()? * (-1.0 / n as f64)
    }
}

fn mean_cost(logits: &Tensor, targets: Targets) -> Result<Tensor> {
    if logits.elem_count() == 0 {
        candle_core::bail!("expected at least one example and one class, found {:?}", logits.dims())
    }
    apply(CrossEntropy(targets), &[&ready(logits)?])?.to_dtype(logits.dtype())
}

enum Targets {
    Labels {
        labels: Vec<usize>,
        smoothing: f64,
    },
    Soft(Vec<f64>),
    /// Labels in i64, or probabilities, where the logits are.
    #[cfg(feature = "cuda")]
    OnDevice {
        target: Tensor,
        smoothing: f64,
    },
}

impl Targets {
    /// The probability of a class, for a row.
    fn of(&self, row: usize, classes: usize) -> impl Fn(usize) -> f64 + '_ {
        move |class| match self {
            Self::Labels { labels, smoothing } => {
                let even = smoothing / classes as f64;
                if class == labels[row] { 1.0 - smoothing + even } else { even }
            }
            Self::Soft(values) => values[row * classes + class],
            #[cfg(feature = "cuda")]
            Self::OnDevice { .. } => f64::NAN,
        }
    }
}

struct CrossEntropy(Targets);

#[cfg(feature = "cuda")]
impl CrossEntropy {
    fn on_device(&self) -> Result<(&Tensor, f64)> {
        match &self.0 {
            Targets::OnDevice { target, smoothing } => Ok((target, *smoothing)),
            _ => candle_core::bail!("expected a target on the device of the logits"),
        }
    }
}

/// log Σ exp, safe from overflow.
fn log_sum_exp<T: Float>(row: &[T]) -> f64 {
    let max = row.iter().fold(f64::NEG_INFINITY, |max, x| max.max(x.wide()));
    // With no finite maximum the sum says what there is: infinity or NaN.
    let max = if max.is_finite() { max } else { 0.0 };
    max + row.iter().map(|x| (x.wide() - max).exp()).sum::<f64>().ln()
}

impl Layer for CrossEntropy {
    fn name(&self) -> &'static str {
        "cross-entropy"
    }

    fn forward(&self, args: &[Tensor]) -> Result<(CpuStorage, Shape)> {
        let (n, classes) = args[0].dims2()?;
        let logits = view(&args[0]);
        for_float!(args[0].dtype(), self.name(), |T| {
            let row = |(i, row): (usize, &[T])| {
                let (log, target) = (log_sum_exp(row), self.0.of(i, classes));
                // A class of probability 0 costs nothing, also where its logit is -∞.
                let cost = |(class, x): (usize, &T)| match target(class) {
                    0.0 => 0.0,
                    target => target * (log - x.wide()),
                };
                row.iter().enumerate().map(cost).sum::<f64>()
            };
            let rows: Vec<f64> = logits.elements::<T>()?.par_chunks(classes).enumerate().map(row).collect();
            let loss = T::narrow(rows.into_iter().sum::<f64>() / n as f64);
            Ok(output(vec![loss], ()))
        })
    }

    fn backward(&self, args: &[Tensor], _: &[bool], _: &Tensor, dy: &Tensor) -> Result<Vec<Option<Tensor>>> {
        let (n, classes) = args[0].dims2()?;
        let scale = dy.to_dtype(DType::F64)?.to_scalar::<f64>()? / n as f64;
        let logits = view(&args[0]);
        for_float!(args[0].dtype(), self.name(), |T| {
            let mut dx = vec![T::default(); n * classes];
            let rows = dx.par_chunks_mut(classes).zip(logits.elements::<T>()?.par_chunks(classes)).enumerate();
            rows.for_each(|(i, (dx, row))| {
                let (log, target) = (log_sum_exp(row), self.0.of(i, classes));
                let all: f64 = (0..classes).map(&target).sum();
                for (class, (dx, x)) in dx.iter_mut().zip(row).enumerate() {
                    *dx = T::narrow(((x.wide() - log).exp() * all - target(class)) * scale);
                }
            });
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
