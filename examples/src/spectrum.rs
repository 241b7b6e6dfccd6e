//! The Hessian of a training loss: its largest eigenvalues and the density of all, by stochastic Lanczos quadrature
//! (section 4.2 and Figure 3 of the paper; Ghorbani et al. 2019).
//!
//! Products with the Hessian are differences of gradients along a direction: H v ≈ (∇L(w + r v) - ∇L(w - r v)) / 2r.

use anyhow::{Result, ensure};
use candle_core::{DType, Device, Tensor, Var};
use nalgebra::{DMatrix, DVector, SymmetricEigen};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};
use sam_runtime::{nn, plain};

use crate::batches::Source;
use crate::loss::trained;
use crate::models::Model;

/// How far the weights are moved for a difference, in norm, as a share of theirs.
const REACH: f64 = 1e-3;

/// Images whose gradient is taken at a time.
const BATCH: usize = 500;

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

    /// λ₁ / λ₅, the paper's measure of how far the largest stand out.
    #[must_use]
    pub fn ratio(&self) -> f64 {
        self.largest() / self.values.get(4).copied().unwrap_or(f64::NAN)
    }

    /// The density of the eigenvalues at `x`, each spread over a normal distribution of this width.
    #[must_use]
    pub fn density(&self, x: f64, width: f64) -> f64 {
        let bell = |value: f64| (-0.5 * ((x - value) / width).powi(2)).exp();
        let sum: f64 = self.values.iter().zip(&self.weights).map(|(value, weight)| weight * bell(*value)).sum();
        sum / (width * (2.0 * std::f64::consts::PI).sqrt())
    }
}

/// Lanczos' method with full orthogonalisation: at most `order` products of a symmetric matrix of n rows with a vector.
///
/// # Errors
/// Those of the product, or if it is not finite.
///
/// ```
/// use sam_examples::spectrum::lanczos;
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
    ensure!(n > 0 && order > 0, "a matrix of {n} rows has no spectrum of {order} values: expected 1 or more of each");
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let start = DVector::from_fn(n, |_, _| StandardNormal.sample(&mut rng));
    let mut basis: Vec<DVector<f64>> = vec![start.normalize()];
    let (mut diagonal, mut beside) = (Vec::new(), Vec::new());
    loop {
        let last = &basis[basis.len() - 1];
        let mut next = DVector::from_vec(product(last.as_slice())?);
        ensure!(next.iter().all(|x| x.is_finite()), "a product with the Hessian is not finite");
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

/// The spectrum of the mean cross-entropy of a source's images, of the network as it is tested: batch normalisations go by
/// their running statistics. `tell` is called after each of the products. The weights are put back, also after an error.
///
/// # Errors
/// Those of the model.
pub fn of_loss(model: &Model, source: &Source, order: usize, seed: u64, mut tell: impl FnMut()) -> Result<Spectrum> {
    let vars: Vec<Var> = trained(model).into_iter().map(|(_, var)| var).collect();
    let weights = vars.iter().map(|var| Ok(var.as_detached_tensor().copy()?)).collect::<Result<Vec<_>>>()?;
    let norm = flat(&weights)?.iter().map(|w| w * w).sum::<f64>().sqrt();
    let reach = REACH * norm.max(1.0);
    let at = |direction: &[f64], by: f64| -> Result<Vec<f64>> {
        displace(&vars, &weights, direction, by)?;
        gradient(model, source, &vars)
    };
    let spectrum = lanczos(weights.iter().map(Tensor::elem_count).sum(), order, seed, |v| {
        let (up, down) = (at(v, reach)?, at(v, -reach)?);
        tell();
        Ok(up.iter().zip(&down).map(|(up, down)| (up - down) / (2.0 * reach)).collect())
    });
    for (var, weight) in vars.iter().zip(&weights) {
        var.set(weight)?;
    }
    spectrum
}

/// Puts the variables at w + by · direction.
fn displace(vars: &[Var], weights: &[Tensor], direction: &[f64], by: f64) -> Result<()> {
    let mut at = 0;
    for (var, weight) in vars.iter().zip(weights) {
        let part = &direction[at..at + weight.elem_count()];
        at += part.len();
        let step = Tensor::from_slice(part, weight.dims(), &Device::Cpu)?;
        let moved = (weight.to_device(&Device::Cpu)?.to_dtype(DType::F64)? + (step * by)?)?;
        var.set(&moved.to_dtype(weight.dtype())?.to_device(weight.device())?)?;
    }
    Ok(())
}

/// The gradient of the mean loss, all variables in one.
fn gradient(model: &Model, source: &Source, vars: &[Var]) -> Result<Vec<f64>> {
    let mut sum = vec![0.0; vars.iter().map(|var| var.elem_count()).sum()];
    for batch in source.in_order(BATCH) {
        let (x, y) = batch?;
        let share = y.elem_count() as f64 / source.len() as f64;
        let loss = plain(|| nn::cross_entropy(&model.forward(&x, false)?, &y))?;
        let gradient = nn::backward(&loss)?;
        let none = |var: &Var| var.as_detached_tensor().zeros_like();
        let parts = vars
            .iter()
            .map(|var| Ok(gradient.get(var).cloned().map_or_else(|| none(var), Ok)?))
            .collect::<Result<Vec<_>>>()?;
        sum.iter_mut().zip(flat(&parts)?).for_each(|(sum, g)| *sum += share * g);
    }
    Ok(sum)
}

fn flat(tensors: &[Tensor]) -> Result<Vec<f64>> {
    let mut all = Vec::new();
    for tensor in tensors {
        all.extend(tensor.flatten_all()?.to_dtype(DType::F64)?.to_vec1::<f64>()?);
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::data;
    use crate::models::Architecture;

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
        let [source, _] = Source::both(&Arc::new(data::embedded().unwrap()));
        let source = source.part((0..50).collect());
        let model = Model::new(Architecture::Mlp(4), source.shape(), 10, 1).unwrap();
        for (_, var) in trained(&model).iter().filter(|(_, var)| var.dims() == [4]) {
            var.set(&var.affine(0.0, 3.0).unwrap()).unwrap(); // no ReLU has its bend near
        }
        let vars: Vec<Var> = trained(&model).into_iter().map(|(_, var)| var).collect();
        let weights: Vec<_> = vars.iter().map(|var| var.as_detached_tensor().copy().unwrap()).collect();
        let before = flat(&weights).unwrap();
        let mut products = 0;
        let found = of_loss(&model, &source, 1, 5, || products += 1).unwrap();
        assert_eq!((products, found.values.len()), (1, 1));
        let after: Vec<_> = vars.iter().map(|var| var.as_tensor().clone()).collect();
        assert_eq!(flat(&after).unwrap(), before);

        let mut rng = ChaCha8Rng::seed_from_u64(5);
        let start: DVector<f64> = DVector::from_fn(before.len(), |_, _| StandardNormal.sample(&mut rng));
        let start = start.normalize();
        let (x, y) = source.in_order(50).next().unwrap().unwrap();
        let loss = |by: f64| {
            displace(&vars, &weights, start.as_slice(), by).unwrap();
            let logits = model.forward(&x, false).unwrap().to_dtype(DType::F64).unwrap();
            candle_nn::loss::cross_entropy(&logits, &y).unwrap().to_scalar::<f64>().unwrap()
        };
        let step = 0.2;
        let curvature = (loss(step) - 2.0 * loss(0.0) + loss(-step)) / (step * step);
        assert!((found.largest() - curvature).abs() < 0.05 * curvature.abs(), "{} {curvature}", found.largest());
    }
}
