//! Products with the Hessian of the loss, and what is found with them.
//!
//! Beside `PyHessian`, of a perceptron with 101,770 weights on 1,000 images of Fashion-MNIST, λ₁ to λ₅: exact 11.9679, 8.0029, 6.2779,
//! 5.4308, 4.2872 (40 products), `PyHessian` 11.9677, 8.0027, 6.2777, 5.4308, 4.2870. By differences λ₁ is 12.2, and the trace 85.7 ± 15.2,
//! `PyHessian`'s 104.7 ± 5.3 (± two standard errors of 10 and 100 draws).
//!
//! Where the gradient has jumps, as a network with ReLU has, a difference of gradients depends on how many jumps are between the two
//! points. λ₁ by 15 products with differences h away on each side, f32, two perceptrons of 101,770 weights (norms 15 and 18) on 1,000
//! images; exact products give 8.03 and 4.17:
//!
//! | h | 1 | 0.3 | 0.1 | 0.03 | 0.01 | 0.003 | 0.001 | 0.0003 |
//! | --- | --- | --- | --- | --- | --- | --- | --- | --- |
//! | λ₁ of the first | 7.80 | 7.17 | 7.77 | 7.99 | 8.41 | 9.26 | 8.25 | 9.26 |
//! | λ₁ of the second | 4.98 | 3.73 | 4.04 | 4.14 | 4.03 | 3.99 | 4.50 | 8.89 |
//!
//! Large steps average over many jumps, and small ones are ruled by the few that they meet. A random direction does not show that: its
//! product is so small that jumps are most of it. So h is chosen along a direction that two products have turned to the large
//! eigenvalues. The trace is taken with random directions, and wants larger steps there (20 draws, ± two standard errors; exact 98.5 ± 9.0
//! and 57.2 ± 5.4):
//!
//! | h | 30 | 10 | 3 | 1 | 0.3 | 0.1 | 0.03 | 0.01 |
//! | --- | --- | --- | --- | --- | --- | --- | --- | --- |
//! | trace of the first | 172 | 102 | 91 | 88 | 114 | 131 | 111 | 78 |
//! | trace of the second | 84 | 51 | 49 | 51 | 40 | 32 | 26 | 19 |

use std::fmt;
use std::sync::Arc;

use candle_core::{DType, Result, Tensor};

use super::ball::Estimate;
use super::lanczos::{Krylov, Spectrum};
use super::landscape::Landscape;
use super::session::Session;
use super::weight_vector::WeightVector;
use crate::autograd::tape::has_layer;
use crate::core::rng::hash;
use crate::core::var_list::Gradient;
use crate::kernels::weighted_mean::WeightedMean;

/// candle's switch for gradients that can be differentiated once more, read when a process starts.
const KEEP_GRAPH: &str = "CANDLE_GRAD_DO_NOT_DETACH";

/// How products with the Hessian are computed.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum HessianMethod {
    /// The gradient of ⟨∇L, v⟩, through the graph of the first backward pass. candle keeps that in a process that starts with
    /// `CANDLE_GRAD_DO_NOT_DETACH=1` in its environment, and its own operations can be gone through twice; layers of
    /// [`nn`](crate::nn) cannot.
    Exact,
    /// (∇L(w + h v) - ∇L(w - h v)) / 2h for a vector of norm 1.
    Differences {
        /// h
        step: f64,
    },
}

/// An eigenvalue of the Hessian with its vector.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Eigenpair {
    /// λ
    pub value: f64,
    /// v, of norm 1.
    pub vector: WeightVector,
    /// ‖H v - λ v‖: an eigenvalue is at most so far from λ.
    pub residual: f64,
}

/// The Hessian of a [`Landscape`] at w, seen by its products with vectors. The weights must not change while it lives.
///
/// On two batches, or on networks in training mode, it is that of the same loss in every product.
pub struct Hessian<'s, 'a> {
    session: Session<'s, 'a>,
    method: HessianMethod,
    error: f64,
    /// For the trace: larger, where the gradient has jumps.
    trace_step: f64,
    after_each: Box<dyn FnMut() -> Result<()> + 's>,
}

impl fmt::Debug for Hessian<'_, '_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hessian").field("method", &self.method).field("error", &self.error).finish_non_exhaustive()
    }
}

impl<'a> Landscape<'a> {
    /// The Hessian of L at w.
    ///
    /// Products are exact where the graph allows it, and central differences elsewhere: which of them, and with which error, is
    /// found out here with up to two dozen gradients.
    ///
    /// # Errors
    /// As [`gradient`](Self::gradient), and if the gradient is not finite.
    pub fn hessian(&mut self) -> Result<Hessian<'_, 'a>> {
        let mut session = Session::begin(self)?;
        let vars = Arc::clone(&session.landscape.vars);
        let Calibration { v, product: by_differences, step, error, size } = calibrate(&mut session)?;
        let mut hessian = Hessian {
            session,
            method: HessianMethod::Differences { step },
            error,
            trace_step: if error > SMOOTH { step.max(0.1 * size) } else { step },
            after_each: Box::new(|| Ok(())),
        };
        // An operation of others that cannot be gone through twice adds nothing, without an error.
        if std::env::var_os(KEEP_GRAPH).is_some_and(|value| value == "1")
            && let Ok(exact) = hessian.session.exact_product(&v)
            && relative(&exact, &by_differences)? <= (3.0 * error).clamp(1e-3, 0.5)
        {
            hessian.method = HessianMethod::Exact;
            // H is symmetric: what is not is rounding.
            let u = WeightVector::signs(&vars, 0xca_11b8)?.normalized()?;
            let other = hessian.session.exact_product(&u)?;
            let size = exact.norm() + other.norm();
            let asymmetry = (u.dot(&exact)? - v.dot(&other)?).abs();
            hessian.error = if size > 0.0 { asymmetry / size } else { 0.0 };
        }
        Ok(hessian)
    }
}

impl<'s> Hessian<'s, '_> {
    /// How products are computed.
    #[must_use]
    pub fn method(&self) -> HessianMethod {
        self.method
    }

    /// The relative error of a product with a vector that belongs to large eigenvalues, as it was found: by differences the change with another step, exact the
    /// asymmetry.
    #[must_use]
    pub fn error(&self) -> f64 {
        self.error
    }

    /// Calls this after each product: for a progress bar, or to end the work with an error.
    #[must_use]
    pub fn after_each(mut self, f: impl FnMut() -> Result<()> + 's) -> Self {
        self.after_each = Box::new(f);
        self
    }

    /// H v.
    ///
    /// # Errors
    /// Those of the loss, and if the product is not finite or `v` is of other variables.
    pub fn product(&mut self, v: &WeightVector) -> Result<WeightVector> {
        v.check_vars(&self.session.landscape.vars)?;
        let step = match self.method {
            HessianMethod::Exact => 0.0,
            HessianMethod::Differences { step } => step,
        };
        self.product_with(v, step)
    }

    /// By differences `step` away, unless it is exact.
    fn product_with(&mut self, v: &WeightVector, step: f64) -> Result<WeightVector> {
        let product = match self.method {
            HessianMethod::Exact => self.session.exact_product(v)?,
            HessianMethod::Differences { .. } => self.session.difference(v, step)?,
        };
        if !product.norm().is_finite() {
            candle_core::bail!("a product with the Hessian is not finite: check the weights and the samples")
        }
        (self.after_each)()?;
        Ok(product)
    }

    /// The eigenvalue of the largest absolute value, by power iteration: until the residual is below `tolerance` times it, or after
    /// `most` products.
    ///
    /// # Errors
    /// As [`product`](Self::product), and if `most` is 0.
    pub fn power_iteration(&mut self, tolerance: f64, most: usize, seed: u64) -> Result<Eigenpair> {
        let mut vector = self.random_direction(seed)?;
        for number in 1..=most {
            let product = self.product(&vector)?;
            let value = vector.dot(&product)?;
            let residual = product.plus(&vector, -value)?.norm();
            if residual <= tolerance * value.abs() || number == most {
                return Ok(Eigenpair { value, vector, residual });
            }
            vector = product.normalized()?;
        }
        candle_core::bail!("power iteration with 0 products: expected 1 or more")
    }

    /// The spectrum as `order` products from a random direction show it; each takes 8 bytes of memory for each weight.
    ///
    /// # Errors
    /// As [`product`](Self::product), and if `order` is 0.
    pub fn spectrum(&mut self, order: usize, seed: u64) -> Result<Spectrum> {
        Ok(self.krylov(order, seed)?.spectrum)
    }

    /// The k largest eigenvalues with their vectors, by `order` products of the Lanczos method; fewer, if there are fewer.
    ///
    /// # Errors
    /// As [`spectrum`](Self::spectrum).
    pub fn top_eigenpairs(&mut self, k: usize, order: usize, seed: u64) -> Result<Vec<Eigenpair>> {
        let found = self.krylov(order, seed)?;
        let values = found.spectrum.values().iter().zip(found.spectrum.errors()).take(k).enumerate();
        values
            .map(|(i, (value, residual))| {
                Ok(Eigenpair { value: *value, vector: found.vector(i)?, residual: *residual })
            })
            .collect()
    }

    /// The trace: the sum of all eigenvalues, as the mean of ⟨v, H v⟩ over random vectors of signs (Hutchinson 1989).
    ///
    /// # Errors
    /// As [`product`](Self::product), and without draws.
    pub fn trace(&mut self, draws: usize, seed: u64) -> Result<Estimate> {
        if draws == 0 {
            candle_core::bail!("the mean of 0 draws: expected 1 or more")
        }
        let vars = Arc::clone(&self.session.landscape.vars);
        let mut found = Vec::with_capacity(draws);
        for draw in 0..draws {
            let v = WeightVector::signs(&vars, hash(seed ^ hash(draw as u64)))?;
            found.push(v.dot(&self.product_with(&v, self.trace_step)?)?);
        }
        Ok(Estimate::of(&found))
    }

    fn krylov(&mut self, order: usize, seed: u64) -> Result<Krylov> {
        let start = self.random_direction(seed)?;
        Krylov::of(&start, order, |v| self.product(v))
    }

    fn random_direction(&self, seed: u64) -> Result<WeightVector> {
        WeightVector::gaussian(self.session.landscape.vars.iter().cloned(), seed)?.normalized()
    }
}

/// The first step, relative to the weights, and the factor from one to the next.
const FIRST: f64 = 0.02;
const SHRINK: f64 = 0.25;
const MOST: usize = 8;

/// A product that changes less is of a gradient without jumps.
const SMOOTH: f64 = 1e-3;

struct Calibration {
    /// Of norm 1.
    v: WeightVector,
    product: WeightVector,
    step: f64,
    /// The relative change of the product.
    error: f64,
    /// ‖w‖, or 1.
    size: f64,
}

/// The step at which the product changes least from one step to the next: larger ones show the third derivative, smaller ones
/// rounding, and jumps of the gradient.
fn calibrate(session: &mut Session<'_, '_>) -> Result<Calibration> {
    let vars = Arc::clone(&session.landscape.vars);
    let size = WeightVector::of_weights(vars.iter().cloned())?.norm();
    let size = if size > 0.0 { size } else { 1.0 };
    let mut step = FIRST * size;
    let mut v = WeightVector::signs(&vars, 0x5ee_d0f5_16e5)?.normalized()?;
    let mut last = session.difference(&v, step)?;
    for _ in 0..2 {
        if last.norm() > 0.0 && last.norm().is_finite() {
            v = last.normalized()?;
            last = session.difference(&v, step)?;
        }
    }
    let mut best: Option<Calibration> = None;
    for _ in 0..MOST {
        step *= SHRINK;
        let product = session.difference(&v, step)?;
        let error = relative(&product, &last)?;
        last = product.clone();
        match &best {
            Some(best) if error > 4.0 * best.error => break,
            Some(best) if error >= best.error => {}
            _ => best = Some(Calibration { v: v.clone(), product, step, error, size }),
        }
    }
    best.ok_or_else(|| candle_core::Error::Msg("no step of differences was tried".to_owned()))
}

/// ‖a - b‖ / ‖b‖
fn relative(a: &WeightVector, b: &WeightVector) -> Result<f64> {
    let (distance, size) = (a.plus(b, -1.0)?.norm(), b.norm());
    if !distance.is_finite() || !size.is_finite() {
        candle_core::bail!("the gradient of the loss is not finite: check the weights and the samples")
    }
    Ok(if size > 0.0 {
        distance / size
    } else if distance > 0.0 {
        f64::INFINITY
    } else {
        0.0
    })
}

impl Session<'_, '_> {
    /// H v by central differences, `step` away on both sides.
    pub(super) fn difference(&mut self, v: &WeightVector, step: f64) -> Result<WeightVector> {
        let norm = v.norm();
        if norm == 0.0 {
            return Ok(v.clone());
        }
        let by = step / norm;
        let [above, below] = [by, -by].map(|by| self.at(&v.scaled(by), |session| Ok(session.gradient()?.1)));
        Ok(above?.plus(&below?, -1.0)?.scaled((2.0 * by).recip()))
    }

    /// H v through the graph of the gradient.
    fn exact_product(&mut self, v: &WeightVector) -> Result<WeightVector> {
        let parts = v.tensors()?;
        let mut mean = WeightedMean::default();
        for batch in 0..self.batches() {
            let share = self.landscape.shares[batch];
            mean.add(share, self.run(batch, |loss| product(loss, &parts))?)?;
        }
        WeightVector::of_gradient(&self.landscape.vars, &mean.finish()?)
    }
}

fn product(loss: &Tensor, v: &Gradient) -> Result<Gradient> {
    if has_layer(loss.sorted_nodes().into_iter()) {
        candle_core::bail!("a layer of `sam_runtime::nn` cannot be differentiated twice")
    }
    let gradient = loss.backward()?;
    let mut along: Option<Tensor> = None;
    for (var, v) in v {
        let Some(gradient) = gradient.get(var) else { continue };
        let part = (gradient * v)?.sum_all()?.to_dtype(DType::F64)?;
        along = Some(match along {
            Some(along) => (along + part)?,
            None => part,
        });
    }
    let second = along.map(|along| along.backward()).transpose()?;
    let part = |var: &Tensor| second.as_ref().and_then(|second| second.get(var));
    v.iter()
        .map(|(var, v)| Ok((var.clone(), part(var).map_or_else(|| v.zeros_like(), |found| Ok(found.detach()))?)))
        .collect()
}
