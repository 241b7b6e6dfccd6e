//! The Hessian of a training loss: its largest eigenvalues and the density of all, by stochastic Lanczos quadrature
//! (section 4.2 and Figure 3 of the paper; Ghorbani et al. 2019).
//!
//! Products with the Hessian are exact: the gradient of <∇L, v>, through the graph of the first backward pass. candle keeps
//! that only for a process with [`KEEP_GRAPH`] in its environment, and only its own operations can be gone through twice.

use anyhow::{Result, ensure};
use candle_core::{DType, Device, Tensor, Var};
use nalgebra::{DMatrix, DVector, SymmetricEigen};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};

use crate::data::{ImageSet, TEST_BATCH};
use crate::models::Model;
use crate::models::layers::{CandleNn, LayerSet as _};
use crate::models::params::trained_vars;

/// candle's switch for gradients that can be differentiated, to be set to 1 before a process starts.
pub const KEEP_GRAPH: &str = "CANDLE_GRAD_DO_NOT_DETACH";

/// Whether this process keeps the graph.
#[must_use]
pub fn keeps_graph() -> bool {
    std::env::var_os(KEEP_GRAPH).is_some_and(|value| value == "1")
}

/// What Lanczos' method sees of a symmetric matrix from one random direction.
#[derive(Clone, Debug, PartialEq)]
pub struct Spectrum {
    /// The eigenvalues of its tridiagonal matrix, the highest first: the first few are those of the matrix.
    pub values: Vec<f64>,
    /// How much of the density is at each of them; the sum is 1.
    pub weights: Vec<f64>,
}

impl Spectrum {
    /// λ₁
    #[must_use]
    pub fn largest(&self) -> f64 {
        self.values.first().copied().unwrap_or(0.0)
    }

    /// λ₁ / λ₅, the paper's measure of how far the largest stand out; `None` for fewer than five eigenvalues.
    #[must_use]
    pub fn ratio(&self) -> Option<f64> {
        Some(self.largest() / self.values.get(4)?)
    }

    /// The density of the eigenvalues at `x`, each spread over a normal distribution of this width.
    #[must_use]
    pub fn density(&self, x: f64, width: f64) -> f64 {
        let bell = |value: f64| (-0.5 * ((x - value) / width).powi(2)).exp();
        let sum: f64 = self.values.iter().zip(&self.weights).map(|(value, weight)| weight * bell(*value)).sum();
        sum / (width * (2.0 * std::f64::consts::PI).sqrt())
    }
}

/// Lanczos' method with full orthogonalization: at most `order` products of a symmetric matrix of n rows with a vector.
///
/// # Errors
/// Those of the product, or if it is not finite.
///
/// ```
/// use sam_examples::experiments::hessian::lanczos;
///
/// let diagonal = [5., 3., 2., -1.];
/// let product = |v: &[f64]| Ok(v.iter().zip(diagonal).map(|(v, d)| v * d).collect());
/// let spectrum = lanczos(4, 10, 0, product)?;
/// for (found, expected) in spectrum.values.iter().zip(diagonal) {
///     assert!((found - expected).abs() < 1e-9);
/// }
/// # Ok::<_, anyhow::Error>(())
/// ```
pub fn lanczos(
    n: usize,
    order: usize,
    seed: u64,
    mut product: impl FnMut(&[f64]) -> Result<Vec<f64>>,
) -> Result<Spectrum> {
    ensure!(
        n > 0 && order > 0,
        "cannot estimate {order} eigenvalues of a matrix of {n} rows: expected 1 or more of each"
    );
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let start = DVector::from_fn(n, |_, _| StandardNormal.sample(&mut rng));
    let mut basis: Vec<DVector<f64>> = vec![start.normalize()];
    let (mut diagonal, mut beside) = (Vec::new(), Vec::new());
    loop {
        let last = &basis[basis.len() - 1];
        let mut next = DVector::from_vec(product(last.as_slice())?);
        ensure!(
            next.iter().all(|x| x.is_finite()),
            "a product with the Hessian is not finite: check the weights and the images"
        );
        let scale = next.norm();
        diagonal.push(next.dot(last));
        // Twice is enough against rounding.
        for _ in 0..2 {
            for v in &basis {
                next.axpy(-next.dot(v), v, 1.0);
            }
        }
        let rest = next.norm();
        if basis.len() == order.min(n) || rest <= 1e-12 * scale {
            break;
        }
        beside.push(rest);
        basis.push(next / rest);
    }
    let size = diagonal.len();
    let tridiagonal = DMatrix::from_fn(size, size, |i, j| match i.abs_diff(j) {
        0 => diagonal[i],
        1 => beside[i.min(j)],
        _ => 0.0,
    });
    let SymmetricEigen { eigenvectors, eigenvalues } = SymmetricEigen::new(tridiagonal);
    let mut pairs: Vec<(f64, f64)> =
        eigenvalues.iter().zip(eigenvectors.row(0).iter()).map(|(value, first)| (*value, first * first)).collect();
    pairs.sort_by(|a, b| b.0.total_cmp(&a.0));
    let (values, weights) = pairs.into_iter().unzip();
    Ok(Spectrum { values, weights })
}

/// The spectrum of the mean cross-entropy of a set of images, of the network as it is tested: batch normalizations use
/// their running statistics. `tell` is called after each product.
///
/// # Errors
/// Those of the model, and without [`KEEP_GRAPH`].
pub fn of_loss(
    model: &Model<CandleNn>,
    images: &ImageSet,
    order: usize,
    seed: u64,
    mut tell: impl FnMut(),
) -> Result<Spectrum> {
    ensure!(keeps_graph(), "candle detaches gradients from their graph: set {KEEP_GRAPH}=1 before the process starts");
    let vars = trained_vars(model.vars());
    lanczos(vars.iter().map(|var| var.elem_count()).sum(), order, seed, |v| {
        let mut sum = vec![0.0; v.len()];
        for batch in images.in_order(TEST_BATCH) {
            let (x, y) = batch?;
            let share = y.elem_count() as f64 / images.len() as f64;
            let product = product(model, &vars, &x, &y, v)?;
            sum.iter_mut().zip(product).for_each(|(sum, h)| *sum += share * h);
        }
        tell();
        Ok(sum)
    })
}

/// H v for the loss of some images.
fn product(model: &Model<CandleNn>, vars: &[Var], x: &Tensor, y: &Tensor, v: &[f64]) -> Result<Vec<f64>> {
    let loss = CandleNn::cross_entropy(&model.forward(x, false)?, y)?;
    let gradient = loss.backward()?;
    let (mut along, mut at) = (loss.zeros_like()?, 0);
    for var in vars {
        let part = Tensor::from_slice(&v[at..at + var.elem_count()], var.dims(), &Device::Cpu)?;
        at += var.elem_count();
        if let Some(gradient) = gradient.get(var) {
            let part = part.to_dtype(var.dtype())?.to_device(var.device())?;
            along = (along + (gradient * part)?.sum_all()?)?;
        }
    }
    let second = along.backward()?;
    let mut all = Vec::with_capacity(v.len());
    for var in vars {
        match second.get(var) {
            Some(h) => all.extend(h.flatten_all()?.to_dtype(DType::F64)?.to_vec1::<f64>()?),
            None => all.resize(all.len() + var.elem_count(), 0.0),
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::data;
    use crate::models::params::trained;

    #[test]
    fn a_spectrum_is_that_of_its_matrix() {
        let a = DMatrix::from_fn(30, 30, |i, j| ((i * j) % 7) as f64 - 3.0 + if i == j { i as f64 } else { 0.0 });
        let a = (&a + a.transpose()) / 2.0;
        let product = |v: &[f64]| Ok((&a * DVector::from_column_slice(v)).as_slice().to_vec());
        let found = lanczos(30, 30, 3, product).unwrap();
        let mut expected: Vec<f64> = SymmetricEigen::new(a.clone()).eigenvalues.iter().copied().collect();
        expected.sort_by(|a, b| b.total_cmp(a));
        for (found, expected) in found.values.iter().zip(&expected) {
            assert!((found - expected).abs() < 1e-8, "{found} {expected}");
        }
        assert!((found.weights.iter().sum::<f64>() - 1.0).abs() < 1e-9);
        let few = lanczos(30, 12, 3, |v| Ok((&a * DVector::from_column_slice(v)).as_slice().to_vec())).unwrap();
        assert!((few.largest() - expected[0]).abs() < 1e-3 * expected[0]);
        let area: f64 = (-4000..8000).map(|i| few.density(f64::from(i) * 0.01, 0.5) * 0.01).sum();
        assert!((area - 1.0).abs() < 1e-6, "{area}");
        assert!(lanczos(3, 3, 0, |_| Ok(vec![f64::NAN; 3])).unwrap_err().to_string().contains("not finite"));
    }

    /// One product tells the curvature along the first direction: that of the loss's own values.
    #[test]
    fn products_are_those_of_the_losss_hessian() {
        if !keeps_graph() {
            let test = std::process::Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "experiments::hessian::tests::products_are_those_of_the_losss_hessian"])
                .env(KEEP_GRAPH, "1")
                .output()
                .unwrap();
            let said = String::from_utf8_lossy(&test.stdout);
            assert!(test.status.success() && said.contains("1 passed"), "{said}");
            return;
        }
        let [images, _] = ImageSet::both(&Arc::new(data::embedded().unwrap()));
        let images = images.part((0..50).collect());
        for (architecture, step) in [("mlp-w4", 0.2), ("mlp-norm-w4", 0.2), ("cnn-w2", 0.02)] {
            let model: Model<CandleNn> = Model::new(architecture.parse().unwrap(), images.shape(), 10, 1).unwrap();
            for (_, var) in trained(model.vars()).iter().filter(|(name, var)| var.rank() == 1 && name.ends_with("bias"))
            {
                var.set(&var.affine(0.0, 3.0).unwrap()).unwrap(); // no ReLU has its bend near
            }
            for (_, var) in trained(model.vars()).iter().filter(|(_, var)| var.rank() == 4) {
                var.set(&(var.abs().unwrap() * 0.3).unwrap()).unwrap(); // and none of those behind it
            }
            let mut products = 0;
            let found = of_loss(&model, &images, 1, 5, || products += 1).unwrap();
            assert_eq!((products, found.values.len()), (1, 1));

            let vars = trained_vars(model.vars());
            let n = vars.iter().map(|var| var.elem_count()).sum();
            let mut rng = ChaCha8Rng::seed_from_u64(5);
            let start: DVector<f64> = DVector::from_fn(n, |_, _| StandardNormal.sample(&mut rng));
            let start = start.normalize();
            let weights: Vec<_> = vars.iter().map(|var| var.as_detached_tensor().copy().unwrap()).collect();
            let (x, y) = images.in_order(50).next().unwrap().unwrap();
            let loss = |by: f64| {
                let mut at = 0;
                for (var, weight) in vars.iter().zip(&weights) {
                    let part = &start.as_slice()[at..at + weight.elem_count()];
                    at += part.len();
                    let step = Tensor::from_slice(part, weight.dims(), &Device::Cpu).unwrap();
                    var.set(&(weight + (step.to_dtype(DType::F32).unwrap() * by).unwrap()).unwrap()).unwrap();
                }
                let logits = model.forward(&x, false).unwrap().to_dtype(DType::F64).unwrap();
                candle_nn::loss::cross_entropy(&logits, &y).unwrap().to_scalar::<f64>().unwrap()
            };
            let curvature = (loss(step) - 2.0 * loss(0.0) + loss(-step)) / (step * step);
            let found = found.largest();
            assert!((found - curvature).abs() < 0.03 * curvature.abs() + 1e-4, "{architecture}: {found} {curvature}");
        }
    }
}
