//! Means of a loss of each element, and the negative log likelihood.

use candle_core::{CpuStorage, Result, Shape, Tensor};

use crate::autograd::fused_op::{FusedOp, Saved};
use crate::autograd::tape::apply;
use crate::kernels::cpu::elementwise_loss::{nll as mean_of_labels, nll_back};
use crate::kernels::elementwise_loss::Loss;
use crate::kernels::indices::indices;
use crate::kernels::prepare::{to_compute_dtype, weight_for};

/// The mean of (x - t)² over all elements x of `inp` and t of `target`, which have one shape. Both may need a gradient.
///
/// # Errors
/// If the shapes differ, or are those of nothing.
///
/// ```
/// use candle_core::{Device, Result, Tensor};
/// use sam_runtime::nn::loss;
///
/// # fn main() -> Result<()> {
/// let (x, t) = (Tensor::new(&[1f32, 2.], &Device::Cpu)?, Tensor::new(&[1f32, 5.], &Device::Cpu)?);
/// assert_eq!(loss::mse(&x, &t)?.to_scalar::<f32>()?, 4.5);
/// # Ok(())
/// # }
/// ```
pub fn mse(inp: &Tensor, target: &Tensor) -> Result<Tensor> {
    mean(Loss::Square, inp, target)
}

/// The mean of |x - t|² / 2 where the distance is at most `delta`, and of `delta` (|x - t| - `delta` / 2) elsewhere (Huber 1964).
///
/// # Errors
/// As [`mse`].
///
/// ```
/// use candle_core::{Device, Result, Tensor};
/// use sam_runtime::nn::loss;
///
/// # fn main() -> Result<()> {
/// let (x, t) = (Tensor::new(&[1f32, 2.], &Device::Cpu)?, Tensor::new(&[1.5f32, 5.], &Device::Cpu)?);
/// assert_eq!(loss::huber(&x, &t, 1.0)?.to_scalar::<f32>()?, (0.125 + 2.5) / 2.0);
/// # Ok(())
/// # }
/// ```
pub fn huber(inp: &Tensor, target: &Tensor, delta: f64) -> Result<Tensor> {
    mean(Loss::Huber(delta), inp, target)
}

/// The mean binary cross entropy of the logits `inp` with the `target` probabilities, of one shape: labels 0 and 1, also as integers, or
/// anything between.
///
/// candle takes the logarithm of a sigmoid, which is -∞ from |x| of about 17 or 89 on, so that the loss is ∞ or NaN. This is
/// max(x, 0) - x t + ln(1 + exp(-|x|)): the loss grows with |x|, and its gradient is finite.
///
/// # Errors
/// As [`mse`].
///
/// ```
/// use candle_core::{Device, Result, Tensor};
/// use sam_runtime::nn::loss;
///
/// # fn main() -> Result<()> {
/// let (x, t) = (Tensor::new(&[100f32, 200.], &Device::Cpu)?, Tensor::new(&[1f32, 0.], &Device::Cpu)?);
/// assert_eq!(loss::binary_cross_entropy_with_logit(&x, &t)?.to_scalar::<f32>()?, 100.0);
/// # Ok(())
/// # }
/// ```
pub fn binary_cross_entropy_with_logit(inp: &Tensor, target: &Tensor) -> Result<Tensor> {
    mean(Loss::LogitEntropy, inp, target)
}

fn mean(loss: Loss, x: &Tensor, target: &Tensor) -> Result<Tensor> {
    if x.dims() != target.dims() {
        candle_core::bail!("expected a target of {:?}, found {:?}", x.dims(), target.dims())
    }
    if x.elem_count() == 0 {
        candle_core::bail!("expected at least one element, found {:?}", x.dims())
    }
    if !x.device().is_cpu() {
        return loss.by_candle(x, &target.to_dtype(x.dtype())?);
    }
    apply(loss, &[&to_compute_dtype(x)?, &weight_for(x, target)?])?.to_dtype(x.dtype())
}

impl FusedOp for Loss {
    fn name(&self) -> &'static str {
        "loss"
    }

    fn saved(&self) -> Saved {
        Saved::ARGS
    }

    fn forward(&self, args: &[Tensor]) -> Result<(CpuStorage, Shape)> {
        self.mean(&args[0], &args[1])
    }

    fn backward(&self, args: &[Tensor], wanted: &[bool], _: &Tensor, dy: &Tensor) -> Result<Vec<Option<Tensor>>> {
        let gradient = |of_target: bool| {
            let wanted = wanted[usize::from(of_target)];
            wanted.then(|| self.mean_back(&args[0], &args[1], dy, of_target)).transpose()
        };
        Ok(vec![gradient(false)?, gradient(true)?])
    }
}

/// The mean negative log likelihood: minus the mean of the elements of `inp` (n, classes), which are logarithms of probabilities, that the
/// labels `target` (n) choose. As in candle, a label that is the largest number of its type counts as 0.
///
/// # Errors
/// If the shapes do not fit, if there are no labels, or if a label is not one of the classes; the latter is not checked on other devices
/// than the CPU.
///
/// ```
/// use candle_core::{Device, Result, Tensor};
/// use sam_runtime::nn::loss;
///
/// # fn main() -> Result<()> {
/// let log_p = Tensor::new(&[[-1f32, -2.], [-3., -4.]], &Device::Cpu)?;
/// assert_eq!(loss::nll(&log_p, &Tensor::new(&[0u32, 1], &Device::Cpu)?)?.to_scalar::<f32>()?, 2.5);
/// # Ok(())
/// # }
/// ```
pub fn nll(inp: &Tensor, target: &Tensor) -> Result<Tensor> {
    let (n, classes) = inp.dims2()?;
    if target.dims() != [n] {
        candle_core::bail!("expected labels [{n}] for {:?}, found {:?}", inp.dims(), target.dims())
    }
    if n == 0 {
        candle_core::bail!("expected at least one label, found none")
    }
    if !inp.device().is_cpu() {
        return candle_nn::loss::nll(inp, target);
    }
    let op = Nll { labels: indices(target, classes)? };
    apply(op, &[&to_compute_dtype(inp)?])?.to_dtype(inp.dtype())
}

struct Nll {
    labels: Vec<u32>,
}

impl FusedOp for Nll {
    fn name(&self) -> &'static str {
        "nll"
    }

    fn saved(&self) -> Saved {
        Saved::ARGS
    }

    fn forward(&self, args: &[Tensor]) -> Result<(CpuStorage, Shape)> {
        mean_of_labels(&args[0], &self.labels)
    }

    fn backward(&self, args: &[Tensor], _: &[bool], _: &Tensor, dy: &Tensor) -> Result<Vec<Option<Tensor>>> {
        Ok(vec![Some(nll_back(&args[0], &self.labels, dy)?)])
    }
}
