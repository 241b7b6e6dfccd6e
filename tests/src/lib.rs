//! What the tests share: small networks with seeded weights, and the paper's step in f64, written from the formula.

#![allow(clippy::unwrap_used, clippy::missing_panics_doc, clippy::cast_sign_loss, reason = "this is test code")]

pub mod counting;

use std::sync::LazyLock;

use candle_core::{DType, Device, Result, Tensor, Var};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Where tests run: on the CPU, and with `SAM_TEST_DEVICE=cuda` on the first CUDA device. Where there is none, a line says
/// so, and the CPU takes its place.
#[must_use]
pub fn device() -> &'static Device {
    static DEVICE: LazyLock<Device> = LazyLock::new(|| match std::env::var("SAM_TEST_DEVICE").as_deref() {
        Err(_) | Ok("cpu") => Device::Cpu,
        Ok("cuda") => Device::new_cuda(0).unwrap_or_else(|error| {
            eprintln!("skipped on CUDA, run on the CPU: {error}");
            Device::Cpu
        }),
        Ok(other) => panic!("SAM_TEST_DEVICE is {other}: expected cpu or cuda"),
    });
    &DEVICE
}

/// Whether this test is about the CPU and has nothing to do on another device; a line says so.
#[must_use]
pub fn is_for_the_cpu(why: &str) -> bool {
    let skipped = !device().is_cpu();
    if skipped {
        eprintln!("skipped on CUDA: {why}");
    }
    skipped
}

/// Numbers from the uniform distribution on [-1, 1), from a seed.
#[must_use]
pub fn numbers(n: usize, seed: u64) -> Vec<f64> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..n).map(|_| rng.random_range(-1.0..1.0)).collect()
}

/// A tensor of [`numbers`], divided by the square root of its last dimension.
#[must_use]
pub fn tensor(shape: &[usize], dtype: DType, seed: u64) -> Tensor {
    let numbers = numbers(shape.iter().product(), seed);
    let tensor = Tensor::from_vec(numbers, shape, device()).unwrap();
    (tensor / (*shape.last().unwrap() as f64).sqrt()).unwrap().to_dtype(dtype).unwrap()
}

/// A perceptron with one hidden layer: 6 inputs, 8 hidden units, 3 classes.
#[derive(Clone, Debug)]
pub struct Net {
    /// Weight and bias of the hidden layer, weight and bias of the output layer.
    pub vars: [Var; 4],
}

impl Net {
    /// Weights from a seed.
    #[must_use]
    pub fn new(dtype: DType, seed: u64) -> Self {
        let shapes: [&[usize]; 4] = [&[8, 6], &[8], &[3, 8], &[3]];
        let mut seeds = seed..;
        Self { vars: shapes.map(|shape| Var::from_tensor(&tensor(shape, dtype, seeds.next().unwrap())).unwrap()) }
    }

    /// The same weights in f64, as a network of its own.
    #[must_use]
    pub fn to_f64(&self) -> Self {
        Self { vars: self.vars.each_ref().map(|var| copy(&var.to_dtype(DType::F64).unwrap())) }
    }

    /// The logits of a batch of shape (n, 6).
    ///
    /// # Errors
    /// If the batch has another shape or type.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let [w1, b1, w2, b2] = &self.vars;
        let hidden = x.matmul(&w1.t()?)?.broadcast_add(b1)?.tanh()?;
        hidden.matmul(&w2.t()?)?.broadcast_add(b2)
    }

    /// The mean cross-entropy of a batch with labels.
    ///
    /// # Errors
    /// If the batch has another shape or type.
    pub fn loss(&self, x: &Tensor, y: &Tensor) -> Result<Tensor> {
        let logits = self.forward(x)?;
        let sum = logits.exp()?.sum(1)?.log()?;
        let hit = logits.gather(&y.unsqueeze(1)?, 1)?.squeeze(1)?;
        (sum - hit)?.mean_all()
    }

    /// The weights' bits.
    #[must_use]
    pub fn bits(&self) -> Vec<Vec<u64>> {
        self.vars.iter().map(|var| bits(var)).collect()
    }
}

/// A variable with the values of a tensor, and a buffer of its own.
#[must_use]
pub fn copy(tensor: &Tensor) -> Var {
    Var::from_tensor(&tensor.detach().copy().unwrap()).unwrap()
}

/// A batch of `n` samples for [`Net`].
#[must_use]
pub fn batch(n: usize, dtype: DType, seed: u64) -> (Tensor, Tensor) {
    let labels: Vec<u32> = numbers(n, seed ^ 1).iter().map(|x| ((x + 1.0) * 1.5) as u32).collect();
    (tensor(&[n, 6], dtype, seed), Tensor::from_vec(labels, n, device()).unwrap())
}

/// A tensor's numbers, converted on the CPU: candle's conversions on CUDA fail for a tensor without elements.
#[must_use]
pub fn values(tensor: &Tensor) -> Vec<f64> {
    let tensor = tensor.detach().to_device(&Device::Cpu).unwrap();
    tensor.flatten_all().unwrap().to_dtype(DType::F64).unwrap().to_vec1().unwrap()
}

/// A tensor's numbers as bits; widening to f64 keeps them apart.
#[must_use]
pub fn bits(tensor: &Tensor) -> Vec<u64> {
    values(tensor).into_iter().map(f64::to_bits).collect()
}

/// The gradient of a loss, variable by variable.
#[must_use]
pub fn gradient(loss: &Tensor, vars: &[Var]) -> Vec<Vec<f64>> {
    let grads = loss.backward().unwrap();
    vars.iter().map(|var| values(grads.get(var).unwrap())).collect()
}

/// The output of a function of some inputs, and the gradient of each, where that of the output is [`output_gradient`]. None
/// where an input gets none.
///
/// # Panics
/// If the function or its backward pass fails.
pub fn run(f: impl Fn(&[Tensor]) -> Result<Tensor>, inputs: &[Tensor], seed: u64) -> (Tensor, Vec<Option<Tensor>>) {
    let vars: Vec<Var> = inputs.iter().map(|input| Var::from_tensor(input).unwrap()).collect();
    let tensors: Vec<Tensor> = vars.iter().map(|var| var.as_tensor().clone()).collect();
    let y = f(&tensors).unwrap();
    let grads = (&y * output_gradient(&y, seed)).unwrap().sum_all().unwrap().backward().unwrap();
    (y.detach(), vars.iter().map(|var| grads.get(var).map(Tensor::detach)).collect())
}

/// Numbers from a seed of the shape and dtype of an output; 1 for a scalar.
#[must_use]
pub fn output_gradient(y: &Tensor, seed: u64) -> Tensor {
    if y.rank() == 0 { y.ones_like().unwrap() } else { tensor(y.dims(), y.dtype(), seed) }
}

/// The slope of a function of f64 inputs along a direction of the input number `i`, by central differences. The outputs are
/// summed with the weights of [`output_gradient`].
///
/// # Panics
/// If the function fails.
pub fn central_difference(
    f: impl Fn(&[Tensor]) -> Result<Tensor>,
    inputs: &[Tensor],
    seed: u64,
    (i, direction): (usize, &Tensor),
    step: f64,
) -> f64 {
    let total = |by: f64| {
        let mut moved = inputs.to_vec();
        moved[i] = (&moved[i] + (direction * by).unwrap()).unwrap();
        let y = f(&moved).unwrap();
        values(&(&y * output_gradient(&y, seed)).unwrap().sum_all().unwrap())[0]
    };
    (total(step) - total(-step)) / (2.0 * step)
}

/// Equation 2 of the paper for all variables together, in the form in which the paper has it:
/// ε̂ = ρ sign(g) |g|^(q-1) / (Σ|g|^q)^(1/p), and for the adaptive ball ε̂ = T ε̂(T g), T = |w| + η.
#[must_use]
pub fn equation_2(rho: f64, p: f64, eta: Option<f64>, w: &[Vec<f64>], g: &[Vec<f64>]) -> Vec<Vec<f64>> {
    let t: Vec<Vec<f64>> = w.iter().map(|w| w.iter().map(|w| eta.map_or(1.0, |eta| w.abs() + eta)).collect()).collect();
    let slope: Vec<Vec<f64>> = g.iter().zip(&t).map(|(g, t)| g.iter().zip(t).map(|(g, t)| g * t).collect()).collect();
    let all = || slope.iter().flatten().map(|s| s.abs());
    let size: Box<dyn Fn(f64) -> f64> = if p == 1.0 {
        let largest = all().fold(0.0, f64::max);
        let ties = all().filter(|s| *s == largest).count() as f64;
        Box::new(move |s| if s == largest { rho / ties } else { 0.0 })
    } else if p.is_infinite() {
        Box::new(move |_| rho)
    } else {
        let q = p / (p - 1.0);
        let sum: f64 = all().map(|s| s.powf(q)).sum();
        Box::new(move |s| rho * s.powf(q - 1.0) / sum.powf(1.0 / p))
    };
    let sign = |s: f64| if s == 0.0 { 0.0 } else { s.signum() };
    slope.iter().zip(&t).map(|(s, t)| s.iter().zip(t).map(|(s, t)| t * sign(*s) * size(s.abs())).collect()).collect()
}

/// ‖e‖_p.
#[must_use]
pub fn norm(p: f64, e: impl IntoIterator<Item = f64>) -> f64 {
    let e: Vec<f64> = e.into_iter().map(f64::abs).collect();
    let max = e.iter().copied().fold(0.0, f64::max);
    if max == 0.0 || p.is_infinite() {
        return max;
    }
    max * e.iter().map(|e| (e / max).powf(p)).sum::<f64>().powf(1.0 / p)
}

/// Adds ε to a network's weights.
pub fn displace(net: &Net, e: &[Vec<f64>]) {
    for (var, e) in net.vars.iter().zip(e) {
        let e = Tensor::from_slice(e, var.shape(), device()).unwrap();
        var.set(&(var.as_detached_tensor() + e.to_dtype(var.dtype()).unwrap()).unwrap()).unwrap();
    }
}

/// The weights (3, 4).
#[must_use]
pub fn three_four() -> Var {
    Var::new(&[3f64, 4.], device()).unwrap()
}

/// Whether this is `scale`·|w|² of [`three_four`], with the gradient at w + ε̂ for ρ = 0.5: 2·`scale`·(1.1 w).
#[track_caller]
pub fn assert_sharp(loss: &Tensor, w: &Var, scale: f64) {
    assert_gradient(loss, w, scale, [6.6, 8.8]);
}

/// Whether this is `scale`·|w|² of [`three_four`], with the gradient at w.
#[track_caller]
pub fn assert_flat(loss: &Tensor, w: &Var, scale: f64) {
    assert_gradient(loss, w, scale, [6., 8.]);
}

#[track_caller]
fn assert_gradient(loss: &Tensor, w: &Var, scale: f64, expected: [f64; 2]) {
    assert_eq!(values(w), [3., 4.]);
    assert!((values(loss)[0] - 25. * scale).abs() < 1e-12, "{loss}");
    let found = gradient(loss, std::slice::from_ref(w));
    assert!(found[0].iter().zip(expected).all(|(g, e)| (g - e * scale).abs() < 1e-12), "{found:?}");
}
