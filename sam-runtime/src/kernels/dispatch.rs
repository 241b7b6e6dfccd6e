//! Picks the backend of each operation: fused kernels on the CPU and on CUDA, candle's own operations on other devices.

#[cfg(not(feature = "cuda"))]
use candle_core::backend::{BackendDevice, BackendStorage};
use candle_core::op::BackpropOp;
use candle_core::{CudaStorage, DType, Device, Result, Shape, Storage, Tensor, Var};

use super::cpu;
#[cfg(feature = "cuda")]
use super::cuda;
use super::operands::{AdamWMove, Move, PerturbTarget};
use super::portable::params as portable;
use super::prepare::{to_compute_dtype, to_layout_of};
use super::rounding::Rounding;
use crate::core::dtype::wide;
use crate::core::error::Error;
use crate::core::names::name_of;
use crate::core::norm_ball::Ball;
use crate::core::pass::Pass;
use crate::core::var_list::Gradient;

/// w + ε̂ for each variable. The gradient's buffers are written over.
///
/// On the CPU a gradient that is not finite is an error, and so is a perturbation that the variables' dtype cannot hold.
/// On other devices values are not checked, because checking would synchronize with the device: ε̂ is then 0, and the
/// gradient that the caller gets is the plain one.
pub(crate) fn perturbed(ball: Ball, targets: Vec<PerturbTarget>) -> Result<Gradient> {
    #[cfg(feature = "cuda")]
    if cuda::is_home_of(targets.iter().map(|target| target.var.as_tensor())) {
        return cuda::perturbed(ball, targets);
    }
    if targets.iter().any(|target| !target.var.device().is_cpu()) {
        return portable::perturbed(ball, targets);
    }
    if targets.iter().all(PerturbTarget::is_fused)
        && let Some(measure) = cpu::params::measure(ball, &targets)?
    {
        if let Some(rounding) = cpu::params::perturb(ball, measure, &targets, Rounding::of(&targets))? {
            rounding.check()?;
        }
        return Ok(targets.into_iter().map(|target| (target.var, target.grad)).collect());
    }
    let gradient: Gradient = targets.iter().map(|target| (target.var.clone(), target.grad.clone())).collect();
    check_finite(&gradient, Pass::Ascent)?;
    portable::perturbed(ball, targets)
}

/// An error if the gradient is not finite. On other devices than the CPU it is not checked.
pub(crate) fn check_finite(gradient: &Gradient, pass: Pass) -> Result<()> {
    if !on_cpu(gradient) || cpu::reduce::is_finite(gradient.iter().map(|(_, grad)| grad))? {
        Ok(())
    } else {
        Err(not_finite(gradient, pass)?)
    }
}

/// One number, on the host.
pub(crate) fn read(number: &Tensor) -> Result<f64> {
    Ok(number.flatten_all()?.to_device(&Device::Cpu)?.to_dtype(DType::F64)?.to_vec1()?[0])
}

/// A number for [`mix`], on the device of a tensor and in its accumulation dtype.
pub(crate) fn number(like: &Tensor, value: f64) -> Result<Tensor> {
    if like.device().is_cpu() {
        return Tensor::new(value, &Device::Cpu);
    }
    match wide(like.dtype()) {
        DType::F64 => Tensor::new(value, like.device()),
        _ => Tensor::new(value as f32, like.device()),
    }
}

/// Σ a b over pairs of one shape and type, as a number on the device of the first. In f64 on the CPU and for f64.
pub(crate) fn dot(pairs: &[(&Tensor, &Tensor)]) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if cuda::is_home_of(pairs.iter().flat_map(|(a, b)| [*a, *b])) {
        return cuda::dot(pairs);
    }
    if pairs.iter().all(|(a, _)| a.device().is_cpu()) {
        Tensor::new(cpu::reduce::dot(pairs.iter().copied())?, &Device::Cpu)
    } else {
        portable::dot(pairs)
    }
}

/// Σ a², as [`dot`].
pub(crate) fn square<'a>(tensors: impl IntoIterator<Item = &'a Tensor>) -> Result<Tensor> {
    dot(&tensors.into_iter().map(|tensor| (tensor, tensor)).collect::<Vec<_>>())
}

/// a ← α a + β b. The numbers are tensors, so that nothing synchronizes with a device.
pub(crate) fn mix(a: &Tensor, alpha: &Tensor, b: &Tensor, beta: &Tensor) -> Result<()> {
    mix_all(&[(a, b)], alpha, beta)
}

/// a - β b in new buffers, with b in the [`wide`] dtype of a, and so the result. 0 where it is less than `tolerance` times a:
/// what is left of a difference by rounding is no direction.
pub(crate) fn residual(a: &Tensor, beta: f64, b: &Tensor, tolerance: f64) -> Result<Tensor> {
    let a = a.to_dtype(wide(a.dtype()))?;
    if !a.device().is_cpu() || a.elem_count() == 0 {
        return portable::residual(&a, beta, b, tolerance);
    }
    let a = a.copy()?;
    cpu::params::residual(&a, beta, b, tolerance)?;
    Ok(a)
}

/// ‖a‖₂ as a number on the tensor's device, which overflows or vanishes only if the norm itself does. In f64 on the CPU and
/// for f64.
pub(crate) fn norm_of(a: &Tensor) -> Result<Tensor> {
    if a.device().is_cpu() {
        return Tensor::new(cpu::reduce::norm(a)?, &Device::Cpu);
    }
    if a.elem_count() == 0 { Tensor::zeros((), wide(a.dtype()), a.device()) } else { portable::norm(a) }
}

/// [`mix`] for each pair of tensors.
pub(crate) fn mix_all(pairs: &[(&Tensor, &Tensor)], alpha: &Tensor, beta: &Tensor) -> Result<()> {
    #[cfg(feature = "cuda")]
    if cuda::is_home_of(pairs.iter().flat_map(|(a, b)| [*a, *b])) {
        return cuda::mix(pairs, alpha, beta);
    }
    // Candle takes the strides of an empty tensor for repeated elements, and refuses to write to it.
    pairs.iter().filter(|(a, _)| a.elem_count() > 0).try_for_each(|(a, b)| {
        if a.device().is_cpu() {
            cpu::params::mix(a, read(alpha)?, b, read(beta)?)
        } else {
            portable::mix(a, alpha, b, beta)
        }
    })
}

/// One step of stochastic gradient descent, see [`Sgd`](crate::optim::Sgd).
pub(crate) fn sgd(moves: &[Move<'_>]) -> Result<()> {
    #[cfg(feature = "cuda")]
    if cuda::is_home_of(moves.iter().map(|step| step.var.as_tensor())) {
        return cuda::sgd(moves);
    }
    moves.iter().filter(|Move { var, .. }| var.elem_count() > 0).try_for_each(|Move { step, var, grad, velocity }| {
        if var.device().is_cpu() {
            cpu::params::sgd(*step, var, grad, *velocity)
        } else {
            portable::sgd(*step, var, grad, *velocity)
        }
    })
}

/// One step of AdamW, see [`AdamW`](crate::optim::AdamW).
pub(crate) fn adamw(moves: &[AdamWMove<'_>]) -> Result<()> {
    #[cfg(feature = "cuda")]
    if cuda::is_home_of(moves.iter().map(|step| step.var.as_tensor())) {
        return cuda::adamw(moves);
    }
    let mut moves = moves.iter().filter(|step| step.var.elem_count() > 0);
    moves.try_for_each(|AdamWMove { step, var, grad, first, second }| {
        if var.device().is_cpu() {
            cpu::optim::adamw(*step, var, grad, first, second)
        } else {
            portable::adamw(*step, var, grad, first, second)
        }
    })
}

/// a ← d a + (1 - d) w for each pair of an average, in the [`wide`] type of its variable, and the variable.
pub(crate) fn ema(pairs: &[(&Tensor, &Var)], decay: f64) -> Result<()> {
    #[cfg(feature = "cuda")]
    if cuda::is_home_of(pairs.iter().map(|(average, _)| *average)) {
        return cuda::ema(pairs, decay);
    }
    pairs.iter().filter(|(average, _)| average.elem_count() > 0).try_for_each(|(average, var)| {
        if average.device().is_cpu() {
            cpu::optim::ema(average, var, decay)
        } else {
            portable::ema(average, var, decay)
        }
    })
}

/// ‖a‖₂ of all of these together, as a number on the device of the first: in f64 on the CPU and on CUDA.
pub(crate) fn total_norm(tensors: &[&Tensor]) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if cuda::is_home_of(tensors.iter().copied()) {
        return cuda::square(tensors)?.sqrt();
    }
    square(tensors.iter().copied())?.sqrt()
}

/// factor · a for each, in buffers of their own. The factor is a number on their device, so that nothing synchronizes with it.
pub(crate) fn scaled(tensors: &[&Tensor], factor: &Tensor) -> Result<Vec<Tensor>> {
    #[cfg(feature = "cuda")]
    if cuda::is_home_of(tensors.iter().copied()) {
        let copies = tensors.iter().map(|tensor| tensor.copy()).collect::<Result<Vec<_>>>()?;
        let pairs: Vec<_> = copies.iter().zip(tensors.iter().copied()).collect();
        cuda::mix(&pairs, factor, &factor.zeros_like()?)?;
        return Ok(copies);
    }
    let one = |tensor: &&Tensor| match tensor.device() {
        Device::Cpu => cpu::optim::scaled(tensor, read(factor)?),
        _ => portable::times(tensor, factor),
    };
    tensors.iter().map(one).collect()
}

/// Each number of these to the nearest one within ±limit, in buffers of their own. NaN stays.
pub(crate) fn clamped(tensors: &[&Tensor], limit: f64) -> Result<Vec<Tensor>> {
    #[cfg(feature = "cuda")]
    if cuda::is_home_of(tensors.iter().copied()) {
        let copies = tensors.iter().map(|tensor| tensor.copy()).collect::<Result<Vec<_>>>()?;
        cuda::clamp(&copies.iter().collect::<Vec<_>>(), limit)?;
        return Ok(copies);
    }
    let one = |tensor: &&Tensor| match tensor.device() {
        Device::Cpu => cpu::optim::clamped(tensor, limit),
        _ => portable::clamped(tensor, limit),
    };
    tensors.iter().map(one).collect()
}

/// Whether every number of these is finite. Synchronizes with their device.
pub(crate) fn all_finite(tensors: &[&Tensor]) -> Result<bool> {
    if tensors.iter().all(|tensor| tensor.device().is_cpu()) {
        return cpu::reduce::is_finite(tensors.iter().copied());
    }
    // The square of an f32 that is finite is so in f64.
    Ok(read(&total_norm(tensors)?)?.is_finite())
}

/// How many gradients on a CUDA device were not finite, in steps of this thread so far. Such a step continues without a
/// perturbation, because stopping it would synchronize with the device. Reading the count does. 0 for other devices.
///
/// # Errors
/// If the device fails.
///
/// ```
/// # use candle_core::Device;
/// assert_eq!(sam_runtime::skipped_step_count(&Device::Cpu)?, 0); // there such a gradient is an error
/// # Ok::<_, candle_core::Error>(())
/// ```
pub fn skipped_step_count(device: &Device) -> Result<u64> {
    #[cfg(feature = "cuda")]
    if device.is_cuda() {
        return cuda::skipped_step_count(device);
    }
    let _ = device;
    Ok(0)
}

/// An error unless two tensors can be added element by element.
pub(crate) fn check_addable(x: &Tensor, y: &Tensor) -> Result<()> {
    if x.dims() != y.dims() || x.dtype() != y.dtype() {
        let (x, y) = ((x.dims(), x.dtype()), (y.dims(), y.dtype()));
        candle_core::bail!("expected two tensors of one shape and type to add, found {x:?} and {y:?}")
    }
    Ok(())
}

/// x + y, without a graph.
///
/// # Errors
/// As [`check_addable`].
pub(crate) fn sum(x: &Tensor, y: &Tensor) -> Result<Tensor> {
    check_addable(x, y)?;
    if !has_fused_kernels(x.device()) || !x.device().same_device(y.device()) {
        return x + y;
    }
    let wide = to_compute_dtype(x)?;
    let y = to_layout_of(&wide, y)?;
    #[cfg(feature = "cuda")]
    if wide.device().is_cuda() {
        return cuda::sum(&wide, &y)?.to_dtype(x.dtype());
    }
    let (storage, shape) = cpu::elementwise::add(&wide, &y)?;
    Tensor::from_storage(Storage::Cpu(storage), shape, BackpropOp::none(), false).to_dtype(x.dtype())
}

/// Whether this crate's layers have kernels of their own there.
pub(crate) fn has_fused_kernels(device: &Device) -> bool {
    device.is_cpu() || cfg!(feature = "cuda") && device.is_cuda()
}

fn on_cpu(gradient: &Gradient) -> bool {
    gradient.iter().all(|(var, _)| var.device().is_cpu())
}

/// An uninitialized graph token on a CUDA device. It is never read, so it is not zeroed, which would cost one launch for each
/// node. candle may add such tokens up; the sums are garbage and unused.
pub(crate) fn cuda_token(like: &CudaStorage, shape: &Shape, dtype: DType) -> Result<(CudaStorage, Shape)> {
    #[cfg(feature = "cuda")]
    return cuda::token(like, shape, dtype);
    #[cfg(not(feature = "cuda"))]
    Ok((like.device().zeros_impl(shape, dtype)?, shape.clone()))
}

/// The error that names the first variable whose gradient is not finite.
fn not_finite(gradient: &Gradient, pass: Pass) -> Result<candle_core::Error> {
    let mut index = 0;
    while index + 1 < gradient.len() && cpu::reduce::is_finite([&gradient[index].1].into_iter())? {
        index += 1;
    }
    let (var, _) = &gradient[index];
    let (name, shape, dtype) = (name_of(var), var.shape().clone(), var.dtype());
    Ok(Error::NonFiniteGradient { pass, name, index: index + 1, count: gradient.len(), shape, dtype }.into())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::kernels::operands::Scale;

    fn pairs(dtype: DType, sizes: &[usize], seed: u64) -> Vec<(Var, Tensor)> {
        use rand::{RngExt, SeedableRng};
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
        let mut tensor = |n: usize| {
            let values: Vec<f64> = (0..n).map(|_| rng.random_range(-1.0..1.0)).collect();
            Tensor::from_vec(values, n, &Device::Cpu).unwrap().to_dtype(dtype).unwrap()
        };
        sizes.iter().map(|&n| (Var::from_tensor(&tensor(n)).unwrap(), tensor(n))).collect()
    }

    fn values(pairs: &[(Var, Tensor)]) -> Vec<f64> {
        pairs.iter().flat_map(|(_, t)| t.to_dtype(DType::F64).unwrap().to_vec1::<f64>().unwrap()).collect()
    }

    fn copy(pairs: &[(Var, Tensor)]) -> Gradient {
        pairs.iter().map(|(var, grad)| (var.clone(), grad.copy().unwrap())).collect()
    }

    fn targets(pairs: &[(Var, Tensor)], eta: Option<f64>) -> Vec<PerturbTarget> {
        let metric = eta.map_or(Scale::One, Scale::Weights);
        copy(pairs)
            .into_iter()
            .map(|pair| PerturbTarget { metric: metric.clone(), ..PerturbTarget::plain(pair) })
            .collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        /// The fused kernels against candle's own operations, in every type.
        #[test]
        fn cpu_agrees_with_plain_operations(
            sizes in prop::collection::vec(1usize..300, 1..5),
            p in prop::sample::select(vec![1.0, 1.25, 1.5, 2.0, 2.7, 3.0, 7.0, f64::INFINITY]),
            eta in prop::option::of(0.0..0.5f64),
            dtype in prop::sample::select(vec![DType::F32, DType::F64, DType::BF16, DType::F16]),
            seed: u64,
        ) {
            let ball = Ball { rho: 0.3, p, normalized: true };
            let pairs = pairs(dtype, &sizes, seed);
            let fused = values(&perturbed(ball, targets(&pairs, eta)).unwrap());
            let plain = values(&portable::perturbed(ball, targets(&pairs, eta)).unwrap());
            let tolerance = match dtype { DType::F64 => 1e-12, DType::F32 => 2e-6, DType::F16 => 2e-3, _ => 1.6e-2 };
            for (a, b) in fused.iter().zip(&plain) {
                prop_assert!((a - b).abs() <= tolerance, "{a} and {b}");
            }
        }
    }

    #[test]
    fn zero_and_non_finite_gradients() {
        for p in [1.0, 1.5, 2.0, 3.0, f64::INFINITY] {
            let ball = Ball { rho: 0.3, p, normalized: true };
            for dtype in [DType::F32, DType::F64, DType::BF16, DType::F16] {
                let mut zero = pairs(dtype, &[7, 40], 1);
                let w: Vec<f64> =
                    zero.iter().flat_map(|(w, _)| w.to_dtype(DType::F64).unwrap().to_vec1::<f64>().unwrap()).collect();
                for (_, grad) in &mut zero {
                    *grad = grad.zeros_like().unwrap();
                }
                assert_eq!(values(&perturbed(ball, targets(&zero, None)).unwrap()), w);
                assert_eq!(values(&portable::perturbed(ball, targets(&zero, None)).unwrap()), w);

                for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
                    let mut pairs = copy(&zero);
                    let mut grad = vec![0.5; 40];
                    grad[33] = bad;
                    pairs[1].1 = Tensor::from_vec(grad, 40, &Device::Cpu).unwrap().to_dtype(dtype).unwrap();
                    assert!(check_finite(&pairs, Pass::Descent).is_err());
                    let error = perturbed(ball, targets(&pairs, None)).unwrap_err().to_string();
                    assert!(error.contains("ascent") && error.contains("variable 2 of 2"), "{error}");
                    assert_eq!(values(&portable::perturbed(ball, targets(&pairs, None)).unwrap()), w);
                }
            }
        }
    }

    /// Squares of these overflow or vanish even in f64.
    #[test]
    fn extreme_gradients_in_f64() {
        let ball = Ball { rho: 0.3, p: 2.0, normalized: true };
        for scale in [1e-200, 1e200] {
            let var = Var::zeros(2, DType::F64, &Device::Cpu).unwrap();
            let grad = Tensor::new(&[3.0 * scale, 4.0 * scale], &Device::Cpu).unwrap();
            let e = values(&perturbed(ball, targets(&[(var, grad)], None)).unwrap());
            assert!((e[0] - 0.18).abs() < 1e-15 && (e[1] - 0.24).abs() < 1e-15, "{e:?}");
        }
    }
}
