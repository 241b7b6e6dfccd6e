//! The Lanczos method: what products with a symmetric matrix tell of its eigenvalues.

use candle_core::Result;
use nalgebra::{DMatrix, SymmetricEigen};
use rayon::prelude::*;

use super::weight_vector::{WeightVector, dot};

/// What the Lanczos method sees of a Hessian from one random direction or several.
///
/// The extreme values are eigenvalues of the Hessian, as far as [`errors`](Self::errors) says. All of them together, each with its
/// weight, are a quadrature of the spectral density (stochastic Lanczos quadrature; Ghorbani et al. 2019,
/// <https://arxiv.org/abs/1901.10159>).
#[derive(Clone, Debug, PartialEq)]
pub struct Spectrum {
    values: Vec<f64>,
    weights: Vec<f64>,
    errors: Vec<f64>,
}

impl Spectrum {
    /// The Ritz values, the highest first.
    #[must_use]
    pub fn values(&self) -> &[f64] {
        &self.values
    }

    /// How much of the density is at each of them. The sum is 1.
    #[must_use]
    pub fn weights(&self) -> &[f64] {
        &self.weights
    }

    /// How far an eigenvalue can be from each of them: the norm of the residual ‖H v - λ v‖ of its vector.
    #[must_use]
    pub fn errors(&self) -> &[f64] {
        &self.errors
    }

    /// λ₁ / λ₅, the paper's measure of how far the largest stand out (section 4.2); `None` for fewer than five values.
    #[must_use]
    pub fn ratio(&self) -> Option<f64> {
        Some(self.values.first()? / self.values.get(4)?)
    }

    /// The density of the eigenvalues at `x`, each spread over a normal distribution of this width.
    #[must_use]
    pub fn density(&self, x: f64, width: f64) -> f64 {
        let bell = |value: f64| (-0.5 * ((x - value) / width).powi(2)).exp();
        let sum: f64 = self.values.iter().zip(&self.weights).map(|(value, weight)| weight * bell(*value)).sum();
        sum / (width * (2.0 * std::f64::consts::PI).sqrt())
    }

    /// The mean of several, from other directions.
    #[must_use]
    pub fn mean(of: &[Self]) -> Self {
        let share = (of.len() as f64).recip();
        let mut all: Vec<(f64, f64, f64)> = Vec::new();
        for spectrum in of {
            let entries = spectrum.values.iter().zip(&spectrum.weights).zip(&spectrum.errors);
            all.extend(entries.map(|((value, weight), error)| (*value, weight * share, *error)));
        }
        Self::sorted(all)
    }

    fn sorted(mut all: Vec<(f64, f64, f64)>) -> Self {
        all.sort_by(|a, b| b.0.total_cmp(&a.0));
        Self {
            values: all.iter().map(|entry| entry.0).collect(),
            weights: all.iter().map(|entry| entry.1).collect(),
            errors: all.iter().map(|entry| entry.2).collect(),
        }
    }
}

/// An orthonormal basis in which the matrix is tridiagonal.
pub(super) struct Krylov {
    basis: Vec<WeightVector>,
    pub(super) spectrum: Spectrum,
    /// Column i is the vector of the value number i, in the basis.
    vectors: Vec<Vec<f64>>,
}

impl Krylov {
    /// At most `order` products, from this direction on, with full reorthogonalization.
    pub(super) fn of(
        start: &WeightVector,
        order: usize,
        mut product: impl FnMut(&WeightVector) -> Result<WeightVector>,
    ) -> Result<Self> {
        let n = start.values().len();
        if n == 0 || order == 0 {
            candle_core::bail!("{order} Lanczos steps with {n} weights: expected 1 or more of each")
        }
        let mut basis = vec![start.normalized()?];
        let (mut diagonal, mut beside) = (Vec::new(), Vec::new());
        let mut rest;
        loop {
            let last = &basis[basis.len() - 1];
            let mut next = product(last)?;
            let scale = next.norm();
            diagonal.push(next.dot(last)?);
            // Twice is enough against rounding (Parlett, The Symmetric Eigenvalue Problem, section 6.9).
            for _ in 0..2 {
                next = orthogonal_to(&basis, &next);
            }
            rest = next.norm();
            if basis.len() == order.min(n) || rest <= 1e-12 * scale {
                break;
            }
            beside.push(rest);
            basis.push(next.scaled(rest.recip()));
        }
        let size = diagonal.len();
        let tridiagonal = DMatrix::from_fn(size, size, |i, j| match i.abs_diff(j) {
            0 => diagonal[i],
            1 => beside[i.min(j)],
            _ => 0.0,
        });
        let SymmetricEigen { eigenvectors, eigenvalues } = SymmetricEigen::new(tridiagonal);
        let mut order: Vec<usize> = (0..size).collect();
        order.sort_by(|a, b| eigenvalues[*b].total_cmp(&eigenvalues[*a]));
        let entry = |i: &usize| {
            let column = eigenvectors.column(*i);
            (eigenvalues[*i], column[0] * column[0], rest * column[size - 1].abs())
        };
        let spectrum = Spectrum::sorted(order.iter().map(entry).collect());
        let vectors = order.iter().map(|i| eigenvectors.column(*i).iter().copied().collect()).collect();
        Ok(Self { basis, spectrum, vectors })
    }

    /// The vector of the value number i, of norm 1.
    pub(super) fn vector(&self, i: usize) -> Result<WeightVector> {
        let Some((first, others)) = self.basis.split_first() else { candle_core::bail!("there is no vector {i}") };
        let mut sum = first.scaled(self.vectors[i][0]);
        for (vector, factor) in others.iter().zip(&self.vectors[i][1..]) {
            sum = sum.plus(vector, *factor)?;
        }
        sum.normalized()
    }
}

/// What remains of a vector without its parts along the basis.
fn orthogonal_to(basis: &[WeightVector], vector: &WeightVector) -> WeightVector {
    let along: Vec<f64> = basis.iter().map(|b| dot(b.values(), vector.values())).collect();
    let rest =
        |(i, x): (usize, &f64)| x - basis.iter().zip(&along).map(|(b, along)| along * b.values()[i]).sum::<f64>();
    vector.with(vector.values().par_iter().enumerate().map(rest).collect())
}
