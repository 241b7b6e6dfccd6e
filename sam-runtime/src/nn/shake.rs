//! Shake-Shake and ShakeDrop: random mixtures of branches, whose backward pass has random numbers of its own.

#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, Device, Result, Shape, Tensor};

use super::rng_stream::RngStream;
use crate::autograd::fused_op::{FusedOp, Saved};
use crate::autograd::tape::apply;
use crate::core::pass::Pass;
use crate::core::rng::uniform_f32;
use crate::kernels::cpu::branch_mix;
#[cfg(feature = "cuda")]
use crate::kernels::cuda;
use crate::kernels::has_fused_kernels;
use crate::kernels::prepare::{to_compute_dtype, to_layout_of};

/// Shake-Shake (Gastaldi 2017): α a + (1 - α) b with α uniform in [0, 1] for each sample in training, half of each
/// otherwise. The backward pass uses another β in place of α.
///
/// In a sharpness-aware step both passes see the same numbers, and the first takes the true gradient, β = α, as the
/// authors' code does.
///
/// ```
/// use candle_core::{DType, Device, Result, Tensor};
/// use sam_runtime::nn::{RngStream, ShakeShake};
///
/// # fn main() -> Result<()> {
/// let (a, b) = (Tensor::ones((8, 3), DType::F32, &Device::Cpu)?, Tensor::zeros((8, 3), DType::F32, &Device::Cpu)?);
/// let shake = ShakeShake::new(RngStream::new(0));
/// assert_eq!(shake.forward(&a, &b, false)?.to_vec2::<f32>()?, [[0.5; 3]; 8]);
/// let alpha = shake.forward(&a, &b, true)?.to_vec2::<f32>()?;
/// assert!(alpha.iter().flatten().all(|alpha| (0.0..1.0).contains(alpha)));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct ShakeShake {
    rng: RngStream,
}

/// ShakeDrop (Yamada et al. 2018): in training a sample's branch is kept with the probability `survival` and otherwise
/// multiplied by α uniform in [-1, 1], backward by β uniform in [0, 1]; otherwise it is multiplied by `survival`, the mean.
///
/// Passes of a sharpness-aware step are as in [`ShakeShake`].
#[derive(Clone, Debug)]
pub struct ShakeDrop {
    survival: f32,
    rng: RngStream,
}

impl ShakeShake {
    /// With numbers of this stream.
    #[must_use]
    pub fn new(rng: RngStream) -> Self {
        Self { rng }
    }

    /// The mixture of two tensors (n, ..) of one shape.
    ///
    /// # Errors
    /// If the shapes differ or have no dimension.
    pub fn forward(&self, a: &Tensor, b: &Tensor, train: bool) -> Result<Tensor> {
        let n = samples(a)?;
        if a.dims() != b.dims() {
            candle_core::bail!("expected two branches of one shape to mix, found {:?} and {:?}", a.dims(), b.dims())
        }
        let weights = |draw: &dyn Fn(u64) -> f32| {
            let alpha: Vec<f32> = (0..n as u64).map(draw).collect();
            let rest = alpha.iter().map(|alpha| 1.0 - alpha).collect();
            vec![alpha, rest]
        };
        let mixture = if train {
            let seed = self.rng.next_seed();
            Mixture::new(weights(&|i| uniform_f32(seed, 2 * i)), weights(&|i| uniform_f32(seed, 2 * i + 1)))
        } else {
            Mixture { forward: weights(&|_| 0.5), backward: weights(&|_| 0.5) }
        };
        mixture.of(&[a, b])
    }
}

impl ShakeDrop {
    /// With this probability of survival, and numbers of this stream.
    #[must_use]
    pub fn new(survival: f32, rng: RngStream) -> Self {
        Self { survival, rng }
    }

    /// The branch (n, ..), each sample multiplied by 1 or by its random number.
    ///
    /// # Errors
    /// If the probability is not in [0, 1], or `x` has no dimension.
    pub fn forward(&self, x: &Tensor, train: bool) -> Result<Tensor> {
        let n = samples(x)? as u64;
        let survival = self.survival;
        if !(0.0..=1.0).contains(&survival) {
            candle_core::bail!("expected a probability of survival in [0, 1], found {survival}")
        }
        if !train {
            return x * f64::from(survival);
        }
        let seed = self.rng.next_seed();
        let factors = |draw: &dyn Fn(u64) -> f32| {
            let factor = |i: u64| if uniform_f32(seed, 3 * i) < survival { 1.0 } else { draw(i) };
            vec![(0..n).map(factor).collect()]
        };
        let forward = factors(&|i| 2.0 * uniform_f32(seed, 3 * i + 1) - 1.0);
        Mixture::new(forward, factors(&|i| uniform_f32(seed, 3 * i + 2))).of(&[x])
    }
}

fn samples(x: &Tensor) -> Result<usize> {
    match x.dims().first() {
        Some(&n) if x.elem_count() > 0 => Ok(n),
        _ => candle_core::bail!("expected a batch of samples, found {:?}", x.dims()),
    }
}

/// Σ f x over some tensors x, with a weight f for each tensor and sample; the gradients are taken with other weights.
struct Mixture {
    forward: Vec<Vec<f32>>,
    backward: Vec<Vec<f32>>,
}

impl Mixture {
    fn new(forward: Vec<Vec<f32>>, backward: Vec<Vec<f32>>) -> Self {
        let backward = if Pass::current() == Pass::Ascent { forward.clone() } else { backward };
        Self { forward, backward }
    }

    fn of(self, args: &[&Tensor]) -> Result<Tensor> {
        for arg in &args[1..] {
            if arg.dtype() != args[0].dtype() || !arg.device().same_device(args[0].device()) {
                let [a, b] = [args[0], arg].map(|x| (x.dtype(), x.device().location()));
                candle_core::bail!("expected branches of one type, on one device, to mix, found {a:?} and {b:?}")
            }
        }
        let first = to_compute_dtype(args[0])?;
        if has_fused_kernels(first.device()) {
            let others = args[1..].iter().map(|arg| to_layout_of(&first, arg)).collect::<Result<Vec<_>>>()?;
            let wide: Vec<_> = std::iter::once(&first).chain(&others).collect();
            return apply(self, &wide)?.to_dtype(args[0].dtype());
        }
        // Σ b x has the gradient, and Σ (f - b) x, a constant, makes the value right.
        let mut terms = Vec::new();
        for ((arg, forward), backward) in args.iter().zip(&self.forward).zip(&self.backward) {
            let difference: Vec<f32> = forward.iter().zip(backward).map(|(f, b)| f - b).collect();
            terms.push(arg.broadcast_mul(&column(backward, arg)?)?);
            terms.push(arg.detach().broadcast_mul(&column(&difference, arg)?)?);
        }
        let mut sum = terms.remove(0);
        for term in terms {
            sum = (sum + term)?;
        }
        Ok(sum)
    }
}

/// A number for each sample, of the rank, dtype and device of a tensor.
fn column(numbers: &[f32], like: &Tensor) -> Result<Tensor> {
    let mut shape = vec![1; like.rank()];
    shape[0] = numbers.len();
    Tensor::new(numbers, &Device::Cpu)?.reshape(shape)?.to_dtype(like.dtype())?.to_device(like.device())
}

impl FusedOp for Mixture {
    fn name(&self) -> &'static str {
        "shake"
    }

    fn saved(&self) -> Saved {
        Saved::ARGS
    }

    fn forward(&self, args: &[Tensor]) -> Result<(CpuStorage, Shape)> {
        branch_mix::mix(args, &self.forward)
    }

    fn backward(&self, args: &[Tensor], _: &[bool], _: &Tensor, dy: &Tensor) -> Result<Vec<Option<Tensor>>> {
        branch_mix::mix_back(args, &self.backward, dy)
    }

    #[cfg(feature = "cuda")]
    fn cuda_forward(&self, args: &[Tensor]) -> Result<(CudaStorage, Shape)> {
        cuda::branch_mix(args, &self.forward)
    }

    #[cfg(feature = "cuda")]
    fn cuda_backward(&self, _: &[Tensor], _: &[bool], _: &Tensor, dy: &Tensor) -> Result<Vec<Option<Tensor>>> {
        cuda::branch_mix_back(dy, &self.backward)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use candle_core::{DType, Var};

    use super::*;
    use crate::Sam;

    /// α and β of each sample: the output for branches of ones and zeros, and the gradient of its sum.
    fn factors(loss: impl FnOnce(&Tensor) -> Tensor, n: usize) -> (Vec<f32>, Vec<f32>) {
        let x = Var::ones((n, 1), DType::F32, &Device::Cpu).unwrap();
        let y = loss(&x);
        let gradient = y.sum_all().unwrap().backward().unwrap();
        let flat = |t: &Tensor| t.flatten_all().unwrap().to_vec1().unwrap();
        (flat(&y), flat(gradient.get(&x).unwrap()))
    }

    #[test]
    fn forward_and_backward_have_numbers_of_their_own() {
        let shake = ShakeShake::new(RngStream::new(3));
        let zeros = Tensor::zeros((1000, 1), DType::F32, &Device::Cpu).unwrap();
        let (alpha, beta) = factors(|x| shake.forward(x, &zeros, true).unwrap(), 1000);
        assert_ne!(alpha, beta);
        for numbers in [alpha, beta] {
            assert!(numbers.iter().all(|x| (0.0..1.0).contains(x)));
            let mean = numbers.iter().sum::<f32>() / 1000.0;
            assert!((mean - 0.5).abs() < 4.0 * (1.0 / 12.0f32 / 1000.0).sqrt(), "{mean}");
        }
    }

    #[test]
    fn shake_drop_keeps_its_share_and_its_mean() {
        let drop = ShakeDrop::new(0.7, RngStream::new(4));
        let (forward, backward) = factors(|x| drop.forward(x, true).unwrap(), 4000);
        let kept = forward.iter().filter(|x| **x == 1.0).count() as f64 / 4000.0;
        assert!((kept - 0.7).abs() < 4.0 * (0.21f64 / 4000.0).sqrt(), "{kept}");
        for (f, b) in forward.iter().zip(&backward) {
            assert!((*f == 1.0 && *b == 1.0) || ((-1.0..1.0).contains(f) && (0.0..1.0).contains(b)), "{f} {b}");
        }
        let x = Tensor::ones((2, 2), DType::F32, &Device::Cpu).unwrap();
        assert_eq!(drop.forward(&x, false).unwrap().to_vec2::<f32>().unwrap(), [[0.7; 2]; 2]);
        let never = ShakeDrop::new(1.5, RngStream::new(4)).forward(&x, true).unwrap_err();
        assert!(never.to_string().contains("1.5"), "{never}");
    }

    /// In a sharpness-aware step: the same α in both passes, β = α in the first, another in the second.
    #[test]
    fn the_first_pass_takes_the_true_gradient() {
        let shake = ShakeShake::new(RngStream::new(5));
        let w = Var::new(1f32, &Device::Cpu).unwrap();
        let zeros = Tensor::zeros((6, 1), DType::F32, &Device::Cpu).unwrap();
        let mut seen = Vec::new();
        for _ in 0..2 {
            Sam::new(0.05)
                .loss(|| -> Result<Tensor> {
                    seen.push(factors(|x| shake.forward(x, &zeros, true).unwrap(), 6));
                    w.sqr()
                })
                .unwrap();
        }
        let [(a0, b0), (a1, b1), (a2, ..), _] = &seen[..] else { panic!("{} passes", seen.len()) };
        assert_eq!(a0, b0);
        assert_eq!(a1, a0);
        assert_ne!(b1, a1);
        assert_ne!(a2, a0, "the next step has other numbers");
    }

    #[test]
    fn branches_must_fit() {
        let (shake, zeros) =
            (ShakeShake::new(RngStream::new(0)), |n| Tensor::zeros((n, 3), DType::F32, &Device::Cpu).unwrap());
        let error = shake.forward(&zeros(2), &zeros(3), true).unwrap_err().to_string();
        assert!(error.contains("[2, 3] and [3, 3]"), "{error}");
        assert!(shake.forward(&zeros(0), &zeros(0), true).is_err());
    }
}
