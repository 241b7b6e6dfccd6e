//! A few numbers about the loss where a training is, at a cost that is known.

use candle_core::Result;

use super::landscape::Landscape;
use super::session::Session;
use super::weight_vector::WeightVector;
use crate::sam::Sam;

/// What one look at the loss shows: for the log of a training, every so many steps.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Report {
    /// L(w)
    pub loss: f64,
    /// L(w + ε̂) - L(w)
    pub sharpness: f64,
    /// The cosine of the angle between ∇L(w) and ∇L(w + ε̂): 1 where the loss is linear.
    pub cosine: f64,
    /// λ, the eigenvalue of the Hessian of the largest absolute value, as far as it was found.
    pub largest_eigenvalue: f64,
    /// ‖H v - λ v‖: an eigenvalue is at most so far from λ.
    pub residual: f64,
    /// What it cost, in forward and backward passes over the samples.
    pub passes: f64,
}

impl Landscape<'_> {
    /// Looks at the loss in 2 + 2 · `products` passes: at w, at w + ε̂ of this `Sam`, and with so many products with the Hessian by
    /// central differences, in which power iteration starts from ∇L(w + ε̂) - ∇L(w). That is close to the sharpest
    /// direction already, so a few products will do; the residual says whether.
    ///
    /// Every 100 steps with 5 products it is an eighth of the passes of plain training, and a sixteenth of SAM's.
    ///
    /// ```
    /// use candle_core::{Device, Result, Var};
    /// use sam_runtime::Sam;
    /// use sam_runtime::sharpness::Landscape;
    ///
    /// # fn main() -> Result<()> {
    /// let w = Var::new(&[1f64, 2.], &Device::Cpu)?;
    /// let (sam, mut landscape) = (Sam::new(0.05), Landscape::new([w.clone()], || w.sqr()?.sum_all()));
    /// for step in 0..200 {
    ///     if step % 100 == 0 {
    ///         let report = landscape.report(&sam, 3)?;
    ///         println!("step {step}: sharpness {}, λ {}", report.sharpness, report.largest_eigenvalue);
    ///         assert!((report.largest_eigenvalue - 2.0).abs() < 1e-4 && report.passes == 8.0);
    ///     }
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`ascent`](Self::ascent).
    pub fn report(&mut self, sam: &Sam, products: usize) -> Result<Report> {
        let mut session = Session::begin(self)?;
        let (loss, gradient) = session.gradient()?;
        let epsilon = session.ascent(sam, gradient.tensors()?)?;
        let (there, other) = session.at(&epsilon, Session::gradient)?;
        let cosine = gradient.dot(&other)? / (gradient.norm() * other.norm());
        let (mut largest_eigenvalue, mut residual) = (f64::NAN, f64::NAN);
        let mut vector = other.plus(&gradient, -1.0)?;
        // As far as SAM goes: where the loss is looked at anyway.
        let step = epsilon.norm();
        for _ in 0..products {
            let Some(v) = direction(&vector) else { break };
            vector = session.difference(&v, step)?;
            largest_eigenvalue = v.dot(&vector)?;
            residual = vector.plus(&v, -largest_eigenvalue)?.norm();
        }
        Ok(Report { loss, sharpness: there - loss, cosine, largest_eigenvalue, residual, passes: session.passes() })
    }
}

/// Of norm 1, if there is one.
fn direction(vector: &WeightVector) -> Option<WeightVector> {
    vector.normalized().ok()
}
