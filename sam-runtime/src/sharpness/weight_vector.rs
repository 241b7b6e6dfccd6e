//! A number for each weight: directions, gradients, eigenvectors.

use std::sync::Arc;

use candle_core::{DType, Device, Result, Tensor, Var};
use rayon::prelude::*;

use crate::core::names::describe;
use crate::core::rng::gaussian;
use crate::core::var_list::Gradient;

/// Sums are taken over so many numbers, and these added in order: the same for any number of threads.
const CHUNK: usize = 1 << 14;

/// A number for each element of some variables, in f64 on the host.
///
/// ```
/// use candle_core::{Device, Result, Var};
/// use sam_runtime::sharpness::WeightVector;
///
/// # fn main() -> Result<()> {
/// let w = Var::new(&[3f32, 4.], &Device::Cpu)?;
/// let at = WeightVector::of_weights([w.clone()])?;
/// assert_eq!((at.norm(), at.normalized()?.values()), (5.0, &[0.6, 0.8][..]));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct WeightVector {
    vars: Arc<[Var]>,
    values: Vec<f64>,
}

impl WeightVector {
    pub(super) fn new(vars: &Arc<[Var]>, values: Vec<f64>) -> Self {
        Self { vars: Arc::clone(vars), values }
    }

    /// The values that the variables have now. The difference of those of two checkpoints is the line between them.
    ///
    /// # Errors
    /// Those of candle.
    pub fn of_weights(vars: impl IntoIterator<Item = Var>) -> Result<Self> {
        let vars: Arc<[Var]> = vars.into_iter().collect();
        let mut values = Vec::new();
        for var in vars.iter() {
            values.extend(numbers(var)?);
        }
        Ok(Self { vars, values })
    }

    /// Numbers from N(0, 1), from a seed.
    ///
    /// # Errors
    /// Those of candle.
    pub fn gaussian(vars: impl IntoIterator<Item = Var>, seed: u64) -> Result<Self> {
        let vars: Arc<[Var]> = vars.into_iter().collect();
        let n = vars.iter().map(|var| var.elem_count()).sum::<usize>();
        let values = gaussian(&Tensor::zeros(n, DType::F64, &Device::Cpu)?, [seed, 0, 0])?.to_vec1()?;
        Ok(Self { vars, values })
    }

    /// -1 or 1, from a seed.
    pub(super) fn signs(vars: &Arc<[Var]>, seed: u64) -> Result<Self> {
        let mut signs = Self::gaussian(vars.iter().cloned(), seed)?;
        signs.values.par_iter_mut().for_each(|x| *x = 1f64.copysign(*x));
        Ok(signs)
    }

    /// Other numbers for the same variables: those of another model of the same kind, say, whose variables come in the same order.
    ///
    /// # Errors
    /// If they are not as many.
    pub fn with_values(&self, values: Vec<f64>) -> Result<Self> {
        if values.len() != self.values.len() {
            candle_core::bail!("{} numbers for {} weights: expected as many", values.len(), self.values.len())
        }
        Ok(self.with(values))
    }

    /// Other numbers for the same variables.
    pub(super) fn with(&self, values: Vec<f64>) -> Self {
        Self::new(&self.vars, values)
    }

    pub(super) fn of_gradient(vars: &Arc<[Var]>, gradient: &Gradient) -> Result<Self> {
        let mut values = Vec::new();
        for (_, part) in gradient {
            values.extend(numbers(part)?);
        }
        Ok(Self::new(vars, values))
    }

    /// The numbers, variable by variable.
    #[must_use]
    pub fn values(&self) -> &[f64] {
        &self.values
    }

    /// The variables, in their order.
    #[must_use]
    pub fn vars(&self) -> &[Var] {
        &self.vars
    }

    /// ⟨self, other⟩
    ///
    /// # Errors
    /// If they are of other variables.
    pub fn dot(&self, other: &Self) -> Result<f64> {
        self.check_same(other)?;
        Ok(dot(&self.values, &other.values))
    }

    /// ‖self‖₂
    #[must_use]
    pub fn norm(&self) -> f64 {
        dot(&self.values, &self.values).sqrt()
    }

    /// self · factor
    #[must_use]
    pub fn scaled(&self, factor: f64) -> Self {
        self.with(self.values.par_iter().map(|x| x * factor).collect())
    }

    /// self + other · factor
    ///
    /// # Errors
    /// If they are of other variables.
    pub fn plus(&self, other: &Self, factor: f64) -> Result<Self> {
        self.check_same(other)?;
        Ok(self.with(self.values.par_iter().zip(&other.values).map(|(x, y)| x + y * factor).collect()))
    }

    /// With norm 1.
    ///
    /// # Errors
    /// If it is zero, or not finite.
    pub fn normalized(&self) -> Result<Self> {
        let norm = self.norm();
        if norm > 0.0 && norm.is_finite() {
            return Ok(self.with(self.values.par_iter().map(|x| x / norm).collect()));
        }
        candle_core::bail!("a vector of norm {norm} has no direction: expected a norm above 0")
    }

    /// Each filter with the norm that the filter of the weights has now, and what is no filter 0: directions in which networks of
    /// different scale can be compared (Li et al. 2018, <https://arxiv.org/abs/1712.09913>, section 4). A filter is what belongs to one index of
    /// the first dimension of a variable of two dimensions or more: an output channel, a neuron, an embedding.
    ///
    /// # Errors
    /// Those of candle.
    pub fn filter_normalized(&self) -> Result<Self> {
        let mut values = Vec::with_capacity(self.values.len());
        let mut start = 0;
        for var in self.vars.iter() {
            let own = &self.values[start..start + var.elem_count()];
            start += own.len();
            if var.rank() < 2 || own.is_empty() {
                values.resize(start, 0.0);
                continue;
            }
            let len = own.len() / var.dim(0)?;
            for (own, weights) in own.chunks_exact(len).zip(numbers(var)?.chunks_exact(len)) {
                let norm = |x: &[f64]| dot(x, x).sqrt();
                let factor = if norm(own) > 0.0 { norm(weights) / norm(own) } else { 0.0 };
                values.extend(own.iter().map(|x| x * factor));
            }
        }
        Ok(self.with(values))
    }

    /// The part of each variable, of its shape and dtype, on its device.
    pub(super) fn tensors(&self) -> Result<Gradient> {
        let mut start = 0;
        let mut parts = Gradient::new();
        for var in self.vars.iter() {
            let own = &self.values[start..start + var.elem_count()];
            start += own.len();
            let part = Tensor::from_slice(own, var.shape(), &Device::Cpu)?.to_dtype(var.dtype())?;
            parts.push((var.clone(), part.to_device(var.device())?));
        }
        Ok(parts)
    }

    pub(super) fn check_vars(&self, vars: &[Var]) -> Result<()> {
        let same = self.vars.len() == vars.len() && self.vars.iter().zip(vars).all(|(a, b)| a.id() == b.id());
        if same {
            return Ok(());
        }
        let name = |vars: &[Var]| vars.first().map_or_else(|| "none".to_owned(), |var| describe(var));
        candle_core::bail!(
            "two vectors are of other variables: {} with {} first, and {} with {} first; expected the same list, in the same order",
            self.vars.len(),
            name(&self.vars),
            vars.len(),
            name(vars)
        )
    }

    fn check_same(&self, other: &Self) -> Result<()> {
        self.check_vars(&other.vars)
    }
}

pub(super) fn dot(a: &[f64], b: &[f64]) -> f64 {
    let part = |(a, b): (&[f64], &[f64])| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    a.par_chunks(CHUNK).zip(b.par_chunks(CHUNK)).map(part).collect::<Vec<_>>().iter().sum()
}

fn numbers(tensor: &Tensor) -> Result<Vec<f64>> {
    tensor.detach().to_device(&Device::Cpu)?.flatten_all()?.to_dtype(DType::F64)?.to_vec1()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "this is test code")]
mod tests {
    use super::*;

    #[test]
    fn filters_have_the_norm_of_the_weights() {
        let w = Var::new(&[[3f64, 4.], [0., 0.], [1., 0.]], &Device::Cpu).unwrap();
        let b = Var::new(&[7f64], &Device::Cpu).unwrap();
        let vars: Arc<[Var]> = [w, b].into();
        let v = WeightVector::new(&vars, vec![1., 0., 2., 2., 0., 0., 9.]);
        assert_eq!(v.filter_normalized().unwrap().values, [5., 0., 0., 0., 0., 0., 0.]);
    }

    #[test]
    fn other_variables_are_refused() {
        let [a, b] = [1f64, 2.].map(|x| Var::new(&[x], &Device::Cpu).unwrap());
        let [a, b] = [a, b].map(|var| WeightVector::of_weights([var]).unwrap());
        assert!(a.dot(&b).unwrap_err().to_string().contains("other variables"));
        assert!(a.plus(&a, -1.0).unwrap().normalized().unwrap_err().to_string().contains("norm 0"));
    }
}
