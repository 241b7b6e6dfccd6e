//! SAM's arithmetic over all variables at once: fused on the CPU, plain candle operations elsewhere.

pub(crate) mod conv;
pub(crate) mod cpu;
pub(crate) mod float;
mod generic;
pub(crate) mod matmul;
pub(crate) mod norm;

use candle_core::{DType, Result, Tensor, Var};

use crate::gradient::Gradient;
use crate::optim::ParamsSgd;
use crate::sam::Ball;
use crate::{Error, Pass};

/// The type that numbers of this one are added up in on any device: halves would lose them.
pub(crate) fn wide(dtype: DType) -> DType {
    if dtype == DType::F64 { DType::F64 } else { DType::F32 }
}

/// w + ε̂ for each variable. The gradient's buffers are written over.
///
/// On the CPU a gradient that is not finite is an error. Elsewhere nobody looks at it, which would wait for the
/// device: ε̂ is then 0, and the gradient that the caller gets is the plain one.
pub(crate) fn perturbed(ball: Ball, gradient: Gradient) -> Result<Vec<(Var, Tensor)>> {
    if on_cpu(&gradient) {
        let Some(measure) = cpu::measure(ball, &gradient)? else {
            return Err(not_finite(&gradient, Pass::Ascent)?);
        };
        cpu::perturb(ball, measure, &gradient)?;
        Ok(gradient)
    } else {
        generic::perturbed(ball, gradient)
    }
}

/// An error if the gradient is not finite. On other devices than the CPU it is not looked at.
pub(crate) fn check_finite(gradient: &Gradient, pass: Pass) -> Result<()> {
    if !on_cpu(gradient) || cpu::is_finite(gradient)? { Ok(()) } else { Err(not_finite(gradient, pass)?) }
}

/// One step of stochastic gradient descent, see [`Sgd`](crate::optim::Sgd).
pub(crate) fn sgd(params: ParamsSgd, var: &Var, grad: &Tensor, velocity: Option<&Tensor>) -> Result<()> {
    if var.device().is_cpu() {
        cpu::sgd(params, var, grad, velocity)
    } else {
        generic::sgd(params, var, grad, velocity)
    }
}

fn on_cpu(gradient: &Gradient) -> bool {
    gradient.iter().all(|(var, _)| var.device().is_cpu())
}

/// The error that names the first variable whose gradient is not finite.
fn not_finite(gradient: &Gradient, pass: Pass) -> Result<candle_core::Error> {
    let mut index = 0;
    while index + 1 < gradient.len() && cpu::is_finite(&gradient[index..=index])? {
        index += 1;
    }
    let (var, _) = &gradient[index];
    let (shape, dtype) = (var.shape().clone(), var.dtype());
    Ok(Error::NonFiniteGradient { pass, index: index + 1, count: gradient.len(), shape, dtype }.into())
}

#[cfg(test)]
mod tests {
    use candle_core::Device;
    use proptest::prelude::*;

    use super::*;

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
            let ball = Ball { rho: 0.3, p, eta };
            let pairs = pairs(dtype, &sizes, seed);
            let fused = values(&perturbed(ball, copy(&pairs)).unwrap());
            let plain = values(&generic::perturbed(ball, copy(&pairs)).unwrap());
            let tolerance = match dtype { DType::F64 => 1e-12, DType::F32 => 2e-6, DType::F16 => 2e-3, _ => 1.6e-2 };
            for (a, b) in fused.iter().zip(&plain) {
                prop_assert!((a - b).abs() <= tolerance, "{a} and {b}");
            }
        }
    }

    #[test]
    fn zero_and_non_finite_gradients() {
        for p in [1.0, 1.5, 2.0, 3.0, f64::INFINITY] {
            let ball = Ball { rho: 0.3, p, eta: None };
            for dtype in [DType::F32, DType::F64, DType::BF16, DType::F16] {
                let mut zero = pairs(dtype, &[7, 40], 1);
                let w: Vec<f64> =
                    zero.iter().flat_map(|(w, _)| w.to_dtype(DType::F64).unwrap().to_vec1::<f64>().unwrap()).collect();
                for (_, grad) in &mut zero {
                    *grad = grad.zeros_like().unwrap();
                }
                assert_eq!(values(&perturbed(ball, copy(&zero)).unwrap()), w);
                assert_eq!(values(&generic::perturbed(ball, copy(&zero)).unwrap()), w);

                for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
                    let mut pairs = copy(&zero);
                    let mut grad = vec![0.5; 40];
                    grad[33] = bad;
                    pairs[1].1 = Tensor::from_vec(grad, 40, &Device::Cpu).unwrap().to_dtype(dtype).unwrap();
                    assert!(check_finite(&pairs, Pass::Descent).is_err());
                    let error = perturbed(ball, copy(&pairs)).unwrap_err().to_string();
                    assert!(error.contains("ascent") && error.contains("variable 2 of 2"), "{error}");
                    assert_eq!(values(&generic::perturbed(ball, pairs).unwrap()), w);
                }
            }
        }
    }

    /// Squares of these overflow or vanish even in f64.
    #[test]
    fn extreme_gradients_in_f64() {
        let ball = Ball { rho: 0.3, p: 2.0, eta: None };
        for scale in [1e-200, 1e200] {
            let var = Var::zeros(2, DType::F64, &Device::Cpu).unwrap();
            let grad = Tensor::new(&[3.0 * scale, 4.0 * scale], &Device::Cpu).unwrap();
            let e = values(&perturbed(ball, vec![(var, grad)]).unwrap());
            assert!((e[0] - 0.18).abs() < 1e-15 && (e[1] - 0.24).abs() < 1e-15, "{e:?}");
        }
    }
}
